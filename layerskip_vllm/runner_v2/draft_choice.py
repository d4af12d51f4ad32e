"""How a draft is chosen on Model Runner V2: with the LM head or some of its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from vllm.v1.worker.gpu.spec_decode.speculator import DraftModelSpeculator

from layerskip_vllm.spec_decode.draft_vocabulary import DraftHead, draft_token_ids

if TYPE_CHECKING:
    from layerskip_vllm.models.split import SplitForwardMixin


class DraftChoiceSpeculator(DraftModelSpeculator):
    """vLLM's draft sampling, over a draft vocabulary where there is one."""

    model: SplitForwardMixin
    draft_head: DraftHead | None = None
    uses_lm_head = False
    """Whether the exit at which it drafts has the whole LM head in any case."""

    def load_draft_head(self, target_model: SplitForwardMixin) -> None:
        """Copy the rows of the draft's vocabulary, if it has one of its own.

        Raises:
            ValueError: No draft vocabulary can be made as configured.
        """
        self._validate_local_argmax_reduction()
        token_ids = draft_token_ids(
            self.speculative_config.layerskip, self.vllm_config.model_config
        )
        if token_ids is not None:
            self.draft_head = DraftHead(target_model.lm_head, token_ids)

    def weights_changed(self) -> None:
        """Copy those rows of the LM head again."""
        if self.draft_head is not None:
            self.draft_head.copy_rows(self.model.lm_head)

    @property
    def _head(self) -> DraftHead | None:
        return None if self.uses_lm_head else self.draft_head

    def sample_draft(self, *args, **kwargs) -> torch.Tensor:  # type: ignore[no-untyped-def]
        """Sample as the host does; greedy drafts of a restricted vocabulary become token ids."""
        sampled = super().sample_draft(*args, **kwargs)
        if self._head is None or self.draft_logits is not None:
            return sampled
        return self._head.token_ids[sampled]

    def get_draft_top_tokens(self, hidden_states: torch.Tensor, spec_step_idx: int) -> torch.Tensor:
        """Choose greedily, by `use_local_argmax_reduction`; a restricted vocabulary, whose logits
        are few, goes without it.
        """
        if self._head is None:
            return super().get_draft_top_tokens(hidden_states, spec_step_idx)
        return self.compute_draft_logits(hidden_states, spec_step_idx).argmax(dim=-1)

    def top_tokens(self, hidden_states: torch.Tensor, uses_lm_head: bool) -> torch.Tensor:
        """What a greedy draft would be after each row, [num_rows], int64.

        Args:
            hidden_states: [num_rows, hidden_size], after the final norm.
            uses_lm_head: Whether the exit has the whole LM head in any case.
        """
        self.uses_lm_head = uses_lm_head
        if self._head is None and self.use_local_argmax_reduction:
            return super().get_draft_top_tokens(hidden_states, 0)
        token_ids = self.compute_draft_logits(hidden_states, 0).argmax(dim=-1)
        if self._head is None or self.draft_logits is not None:
            return token_ids
        return self._head.token_ids[token_ids]

    def compute_draft_logits(self, hidden_states: torch.Tensor, spec_step_idx: int) -> torch.Tensor:
        """Logits of the draft's vocabulary, [num_reqs, num_draft_tokens].

        Where drafts are drawn, of the whole vocabulary, [num_reqs, vocab_size]: the rejection
        sampler reads them. A token that the draft does not know has -inf.
        """
        head = self._head
        if head is None:
            return super().compute_draft_logits(hidden_states, spec_step_idx)
        logits = self.model.logits_processor(head, hidden_states, head.bias)
        if self.draft_logits is None:
            return logits
        full = logits.new_full((len(logits), self.vocab_size), -torch.inf)
        # Idle rows of the head, whose logit is -inf, stand for token 0, which may be known too.
        return full.scatter_reduce_(1, head.token_ids.expand_as(logits), logits, "amax")
