"""transformers' `generate` in this process, plain or with its early-exit assistant."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

from layerskip_vllm.measure.decoding import Decoding, DraftCounts, Recording


class StepStreamer(BaseStreamer):
    """Records the tokens that `generate` streams, step by step; the prompt comes first."""

    def __init__(self) -> None:
        self.recording = Recording(batch_size=1)
        self._is_prompt = True

    def put(self, value) -> None:  # type: ignore[no-untyped-def]
        """Receive the prompt, or the tokens of one step."""
        if not self._is_prompt:
            self.recording.add_step({0: value.flatten().tolist()})
        self._is_prompt = False

    def end(self) -> None:
        """Required by the base class; does nothing."""


class TransformersEngine:
    """A transformers system, at batch size 1."""

    def __init__(
        self,
        model: str,
        dtype: str,
        exit_layer: int | None = None,
        num_speculative_tokens: int | None = None,
    ) -> None:
        """Load the model.

        Args:
            model: The checkpoint's directory.
            dtype: Of the weights.
            exit_layer: E of the early-exit assistant; None decodes plainly.
            num_speculative_tokens: K of the assistant.
        """
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
        self.model.eval()
        config = self.model.generation_config
        config.eos_token_id = None
        # `generate` reads the assistant's settings here, not from its arguments. A confidence
        # threshold would shorten drafts, and any other schedule would change K.
        config.num_assistant_tokens = num_speculative_tokens
        config.num_assistant_tokens_schedule = "constant"
        config.assistant_confidence_threshold = 0.0
        self.exit_layer = exit_layer

    def decode(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> Decoding:
        """Decode the only prompt greedily, to exactly `max_tokens` tokens."""
        (prompt,) = prompts
        streamer = StepStreamer()
        assistant = {} if self.exit_layer is None else {"assistant_early_exit": self.exit_layer}
        self.model.generate(
            torch.tensor([list(prompt)]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=max_tokens,
            streamer=streamer,
            pad_token_id=0,
            **assistant,
        )
        recording = streamer.recording
        num_new_tokens = [new for (new,) in recording.num_new_tokens]
        return Decoding(
            recording.step_s,
            recording.num_new_tokens,
            recording.token_ids,
            [recording.step_s[0]],
            [sum(recording.step_s[1:]) / sum(num_new_tokens[1:])],
            self._drafts(num_new_tokens),
        )

    def _drafts(self, num_new_tokens: Sequence[int]) -> DraftCounts:
        """Draft counts from the tokens of each step, without the last one, which may be cut off."""
        if self.exit_layer is None:
            return DraftCounts()
        num_speculative_tokens = self.model.generation_config.num_assistant_tokens
        accepted = [n - 1 for n in num_new_tokens[:-1]]
        return DraftCounts(
            num_drafts=len(accepted),
            num_drafted=len(accepted) * num_speculative_tokens,
            num_accepted=sum(accepted),
            num_cut_short=sum(n < num_speculative_tokens for n in accepted),
        )
