"""Compare the tokens of two engines, and give the margin of plain decoding's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TIE_GAP = 1e-4
"""Natural logarithms. float32 sums in another order differ by some 1e-6; a wrong key or value
changes logits by far more. A difference at a smaller gap is a tie that rounding decides."""


@dataclass(frozen=True)
class Reference:
    """The output of plain vLLM.

    Attributes:
        token_ids: Output of each request.
        logprobs: For each request and output token, token id -> log-probability of the most
            likely tokens, from a second run of the same prompts.
        logprob_token_ids: The second run's tokens.
    """

    token_ids: list[list[int]]
    logprobs: list[list[Mapping[int, float]]]
    logprob_token_ids: list[list[int]]


@dataclass(frozen=True)
class Difference:
    """Where one request's tokens first differ.

    Attributes:
        request: Its number, from 0.
        token: Number of the output token, from 0.
        gap: log-probability of the reference's token minus that of the other; None if unknown.
    """

    request: int
    token: int
    gap: float | None


def differences(reference: Reference, token_ids: Sequence[Sequence[int]]) -> list[Difference]:
    """The first difference of each request that has one.

    Raises:
        ValueError: The numbers of requests differ.
    """
    return [
        Difference(request, token, _gap(reference, request, token, other[token : token + 1]))
        for request, (own, other) in enumerate(zip(reference.token_ids, token_ids, strict=True))
        if (token := first_difference(own, other)) is not None
    ]


def first_difference(own: Sequence[int], other: Sequence[int]) -> int | None:
    """Index of the first token that differs or that only one has; None if all are equal."""
    for index, (a, b) in enumerate(zip(own, other, strict=False)):
        if a != b:
            return index
    return None if len(own) == len(other) else min(len(own), len(other))


def max_gap(found: Sequence[Difference]) -> float | None:
    """The largest gap; None if there is none or one is unknown."""
    gaps = [difference.gap for difference in found]
    return None if not gaps or None in gaps else max(gap for gap in gaps if gap is not None)


def _gap(reference: Reference, request: int, token: int, other: Sequence[int]) -> float | None:
    own = reference.token_ids[request]
    if not other or token >= len(own):
        return None
    if reference.logprob_token_ids[request][: token + 1] != own[: token + 1]:
        return None  # the second run has other tokens before, so its logits are of another text
    logprobs = reference.logprobs[request][token]
    if own[token] not in logprobs or other[0] not in logprobs:
        return None
    return logprobs[own[token]] - logprobs[other[0]]
