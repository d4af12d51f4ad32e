"""How a draft is chosen on model runner V1: with the LM head or some of its rows."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.spec_decode.draft_model import DraftModelProposer

from layerskip_vllm.spec_decode.draft_vocabulary import DraftHead, draft_token_ids

if TYPE_CHECKING:
    from layerskip_vllm.models.split import SplitForwardMixin


class DraftChoiceProposer(DraftModelProposer):
    """vLLM's draft sampling (`_sample_from_logits`), over a draft vocabulary where there is one."""

    model: SplitForwardMixin
    draft_head: DraftHead | None = None

    def load_draft_head(self, target_model: SplitForwardMixin) -> None:
        """Copy the rows of the draft's vocabulary, if it has one of its own.

        Raises:
            ValueError: No draft vocabulary can be made as configured.
        """
        token_ids = draft_token_ids(
            self.speculative_config.layerskip, self.vllm_config.model_config
        )
        if token_ids is not None:
            self.draft_head = DraftHead(target_model.lm_head, token_ids)

    def weights_changed(self) -> None:
        """Copy those rows of the LM head again."""
        if self.draft_head is not None:
            self.draft_head.copy_rows(self.model.lm_head)

    def _choose_drafts(
        self,
        hidden_states: torch.Tensor,  # [num_rows, hidden_size]
        sampling_metadata: SamplingMetadata,
        num_drafting: int,  # the first rows
        uses_lm_head: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Choose each request's next draft.

        Returns:
            (token_ids, sampling_probs), [num_drafting], int64, and [num_drafting, vocab_size],
            float32; None where all drafts are greedy.
        """
        if not self._enable_probabilistic_draft_probs or sampling_metadata.all_greedy:
            return self.top_tokens(hidden_states, num_drafting, uses_lm_head), None
        head = None if uses_lm_head else self.draft_head
        logits = self._logits(hidden_states, head)[:num_drafting]
        rows = slice(num_drafting)
        token_ids, probs = self._sample_from_logits(logits, of_rows(sampling_metadata, rows))
        return (
            (token_ids, probs) if head is None else (head.token_ids[token_ids], head.expand(probs))
        )

    def top_tokens(
        self,
        hidden_states: torch.Tensor,  # [num_rows, hidden_size], after the final norm
        num_drafting: int,  # the first rows
        uses_lm_head: bool = False,
    ) -> torch.Tensor:
        """Choose drafts greedily: [num_drafting], int64; among all tokens by the LM head."""
        head = None if uses_lm_head else self.draft_head
        if self.use_local_argmax_reduction and head is None:
            return self.model.get_top_tokens(hidden_states)[:num_drafting]
        # `max` takes half of the time of `argmax` on a CPU in bfloat16.
        token_ids = self._logits(hidden_states, head)[:num_drafting].max(dim=-1).indices
        return token_ids if head is None else head.token_ids[token_ids]

    def _logits(self, hidden_states: torch.Tensor, head: DraftHead | None) -> torch.Tensor:
        if head is None:
            return self.model.compute_logits(hidden_states)
        return self.model.logits_processor(head, hidden_states, head.bias)


def of_rows(sampling_metadata: SamplingMetadata, rows: torch.Tensor | slice) -> SamplingMetadata:
    """The part of the sampling metadata that vLLM's draft sampling reads, for some requests."""
    if sampling_metadata.temperature is None:
        return sampling_metadata
    return dataclasses.replace(sampling_metadata, temperature=sampling_metadata.temperature[rows])
