"""The row-aware ideal: a cycle that costs only its share of plain forwards."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.forward_time import ForwardTimes


@dataclass(frozen=True)
class IdealCycle:
    """One cycle of self-speculation at a fixed K, in seconds of plain vLLM's forwards.

    Attributes:
        draft_s: K draft steps: E/L of the layers at B rows, and the LM head at B rows.
        early_s: The last early step, on d_K: E/L of the layers at B rows.
        remaining_s: Remaining layers: (L-E)/L of the layers at B(K+1) rows.
        head_s: LM head at B(K+1) rows.
        plain_s: A plain step at B rows.
    """

    draft_s: float
    early_s: float
    remaining_s: float
    head_s: float
    plain_s: float

    @classmethod
    def of(
        cls,
        times: ForwardTimes,
        *,
        batch_size: int,  # B
        num_speculative_tokens: int,  # K
        exit_layer: int,  # E
        num_layers: int,  # L
    ) -> IdealCycle:
        """Compute it from t(M)."""
        early = exit_layer / num_layers
        at_batch = times.at(batch_size)
        at_verify = times.at(batch_size * (num_speculative_tokens + 1))
        return cls(
            draft_s=num_speculative_tokens * (early * at_batch.layers_s + at_batch.head_s),
            early_s=early * at_batch.layers_s,
            remaining_s=(1 - early) * at_verify.layers_s,
            head_s=at_verify.head_s,
            plain_s=at_batch.total_s,
        )

    @property
    def total_s(self) -> float:
        """The whole cycle."""
        return self.draft_s + self.early_s + self.remaining_s + self.head_s

    def speedup(self, tokens_per_cycle: float) -> float:
        """Speed-up over plain decoding at a measured mean acceptance length."""
        return tokens_per_cycle * self.plain_s / self.total_s
