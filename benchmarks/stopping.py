"""`python -m benchmarks.stopping`: rules that stop drafting, replayed on a model's own text.

What a draft's logits say about its being right is noted once, with transformers; then each rule
decides over the same drafts, at costs that are given in plain decoding steps. No noise of a machine
comes in, and no overhead of a rule either: whether one pays in vLLM, `benchmarks.compare` tells.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from benchmarks.models import MODELS, PreparedModel
from benchmarks.report import table
from layerskip_vllm.spec_decode.draft_stop import MatchRates, Prices, StopRule

DRAFT_COSTS = (0.1, 0.2, 0.3, 0.4)
"""Of a draft step, in plain steps; a verification costs one."""

MAX_DRAFTS = 8


@dataclass(frozen=True)
class Drafts:
    """One text's would-be drafts, position by position: [num_tokens] each.

    Attributes:
        leads: Best logit over second best.
        top_probs: Probability of the best.
        is_match: Whether the model wrote that token.
    """

    leads: np.ndarray
    top_probs: np.ndarray
    is_match: np.ndarray


class Rule(Protocol):
    """Decides how far to draft, and learns from what became of it."""

    def num_drafts(self, drafts: Drafts, start: int) -> tuple[int, int]:
        """(drafted, submitted) of a cycle whose first draft is at `start`."""

    def learn(self, drafts: Drafts, told: slice, seconds: float, num_tokens: int) -> None:
        """Hear of the drafts whose outcome the cycle told, its time and its tokens."""


class Fixed:
    """K drafts, always."""

    def __init__(self, num_drafts: int) -> None:
        self._num_drafts = num_drafts

    def num_drafts(self, drafts: Drafts, start: int) -> tuple[int, int]:
        """All."""
        num_drafts = min(self._num_drafts, len(drafts.is_match) - start)
        return num_drafts, num_drafts

    def learn(self, drafts: Drafts, told: slice, seconds: float, num_tokens: int) -> None:
        """Nothing."""


class Del:
    """DEL (arXiv 2504.05598): cut a draft below the middle of two decayed mean probabilities."""

    def __init__(self, decay: float = 0.95) -> None:
        self._decay = decay
        self._sums, self._counts = np.zeros(2), np.zeros(2)  # of drafts not matched, matched

    def num_drafts(self, drafts: Drafts, start: int) -> tuple[int, int]:
        """Up to the first draft below the threshold, which is not submitted."""
        threshold = (self._sums / self._counts).mean() if self._counts.all() else 0.0
        probs = drafts.top_probs[start : start + MAX_DRAFTS]
        below = np.flatnonzero(probs < threshold)
        return (int(below[0]) + 1, int(below[0])) if len(below) else (len(probs), len(probs))

    def learn(self, drafts: Drafts, told: slice, seconds: float, num_tokens: int) -> None:
        """The mean probabilities."""
        for prob, is_match in zip(drafts.top_probs[told], drafts.is_match[told], strict=True):
            kind = int(is_match)
            self._sums[kind] = self._decay * self._sums[kind] + prob
            self._counts[kind] = self._decay * self._counts[kind] + 1


class Ours:
    """`StopRule`, with the worth of a token from the cycles so far."""

    def __init__(self, draft_cost: float, decay: float = 0.98) -> None:
        self._draft_cost, self._decay = draft_cost, decay
        self._rates = MatchRates()
        self._seconds = self._num_tokens = 1.0

    def num_drafts(self, drafts: Drafts, start: int) -> tuple[int, int]:
        """Until the rule stops."""
        prices = Prices(self._seconds / self._num_tokens, self._draft_cost, verify_row=0)
        rule = StopRule(self._rates, prices, batch_size=1)
        leads = drafts.leads[start : start + MAX_DRAFTS]
        for k, lead in enumerate(leads):
            if not rule.after(lead[None])[1][0]:
                return k + 1, k + 1
        return len(leads), len(leads)

    def learn(self, drafts: Drafts, told: slice, seconds: float, num_tokens: int) -> None:
        """How often which lead is right, and what a token costs."""
        self._rates.observe(drafts.leads[told], drafts.is_match[told])
        self._seconds = self._decay * self._seconds + seconds
        self._num_tokens = self._decay * self._num_tokens + num_tokens


def replay(texts: Sequence[Drafts], rule: Rule, draft_cost: float) -> float:
    """Tokens per plain step's time, over all texts."""
    seconds = num_tokens = 0.0
    for drafts, start, drafted, submitted in _cycles(texts, rule):
        matches = drafts.is_match[start : start + submitted]
        accepted = int(np.cumprod(matches).sum())
        # A cycle samples one token more than it accepts, so one draft more is told about.
        told = slice(start, start + min(accepted + 1, drafted))
        cycle = 1 + drafted * draft_cost
        rule.learn(drafts, told, cycle, accepted + 1)
        seconds, num_tokens = seconds + cycle, num_tokens + accepted + 1
    return num_tokens / seconds


def _cycles(texts: Sequence[Drafts], rule: Rule) -> Iterator[tuple[Drafts, int, int, int]]:
    for drafts in texts:
        start = 0
        while start < len(drafts.is_match):
            drafted, submitted = rule.num_drafts(drafts, start)
            yield drafts, start, drafted, submitted
            start += int(np.cumprod(drafts.is_match[start : start + submitted]).sum()) + 1


def note_drafts(model: PreparedModel, num_prompts: int) -> list[Drafts]:
    """Let the model write, and note at each position what exit E would have drafted."""
    import torch
    from transformers import AutoModelForCausalLM

    llama = AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32).eval()
    texts = []
    for prompt in model.prompts[:num_prompts]:
        prompt_ids = torch.tensor([prompt])
        with torch.inference_mode():
            text = llama.generate(
                prompt_ids,
                attention_mask=torch.ones_like(prompt_ids),
                do_sample=False,
                min_new_tokens=model.max_tokens,
                max_new_tokens=model.max_tokens,
                pad_token_id=0,
            )
            states = llama.model(text[:, :-1], output_hidden_states=True).hidden_states
            exit_states = states[model.exit_layer][0, len(prompt) :]
            logits = llama.lm_head(llama.model.norm(exit_states))
            best = logits.topk(2)
            texts.append(
                Drafts(
                    leads=(best.values[:, 0] - best.values[:, 1]).numpy(),
                    top_probs=logits.softmax(-1).amax(-1).numpy(),
                    is_match=(best.indices[:, 0] == text[0, len(prompt) + 1 :]).numpy(),
                )
            )
    return texts


def told_apart(scores: np.ndarray, is_match: np.ndarray) -> float:
    """Chance that a right draft scores above a wrong one (area under the ROC curve)."""
    wrong = np.sort(scores[~is_match])
    below = np.searchsorted(wrong, scores[is_match], side="left")
    not_above = np.searchsorted(wrong, scores[is_match], side="right")
    return float((below + not_above).mean() / (2 * len(wrong)))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stopping", description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="trained")
    parser.add_argument("--num-prompts", type=int, default=40)
    args = parser.parse_args(argv)
    texts = note_drafts(MODELS[args.model].prepare(), args.num_prompts)
    is_match = np.concatenate([drafts.is_match for drafts in texts])
    print(f"{args.model}: {len(is_match)} drafts, {is_match.mean():.3f} right")
    for name in ("top_probs", "leads"):
        scores = np.concatenate([getattr(drafts, name) for drafts in texts])
        print(f"{name} tell right from wrong: {told_apart(scores, is_match):.3f}")
    rules: dict[str, Callable[[float], Rule]] = {
        **{f"K = {k}": lambda _, k=k: Fixed(k) for k in (1, 2, 4, MAX_DRAFTS)},  # type: ignore[misc]
        "DEL": lambda _: Del(),
        "ours": Ours,
    }
    print(
        table(
            ["rule, K <= 8", *(f"draft step {cost}" for cost in DRAFT_COSTS)],
            [
                [name, *(f"{replay(texts, rule(cost), cost):.2f}" for cost in DRAFT_COSTS)]
                for name, rule in rules.items()
            ],
        )
    )


if __name__ == "__main__":
    main()
