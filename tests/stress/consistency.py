"""What a server's metrics must say of the tokens that its clients received."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tests.stress.answers import Answer
from tests.stress.jobs import Job

Metrics = Mapping[tuple[str, ...], float]
"""As `Server.metrics` returns them: counters by name, and by position where there is one."""


@dataclass
class Delivered:
    """Everything that the clients of one server received; the most that may be missing of it.

    A server goes on with a request until it hears that the client has left, and a step may yield
    tokens beyond a stop string, which are counted and thrown away.
    """

    num_tokens: int = 0
    num_prompt_tokens: int = 0
    num_requests: int = 0
    max_choices: int = 0
    num_aborted: int = 0
    max_tokens_undelivered: int = 0
    max_prompt_tokens_unknown: int = 0

    def add(self, job: Job, answer: Answer, num_speculative_tokens: int) -> None:
        self.num_tokens += answer.num_tokens
        self.max_choices += job.n
        if answer.is_aborted:
            self.num_aborted += 1
            self.max_tokens_undelivered += job.n * job.max_tokens - answer.num_tokens
            self.max_prompt_tokens_unknown += job.n * len(job.prompt)
            return
        self.num_requests += 1
        self.num_prompt_tokens += job.n * len(job.prompt)
        ended_by_text = [isinstance(c.stop_reason, str) for c in answer.choices.values()]
        self.max_tokens_undelivered += num_speculative_tokens * sum(ended_by_text)


def faults(counted: Metrics, delivered: Delivered) -> list[str]:
    """Counters that cannot be true, whichever server they are of."""
    ranges = {
        "vllm:generation_tokens_total": (delivered.num_tokens, delivered.max_tokens_undelivered),
        "vllm:prompt_tokens_total": (
            delivered.num_prompt_tokens,
            delivered.max_prompt_tokens_unknown,
        ),
        # A request of several choices counts once or once each.
        "vllm:request_success_total": (
            delivered.num_requests,
            delivered.max_choices - delivered.num_requests,
        ),
    }
    return [
        f"{name} rose by {counted[name,]:.0f}, and clients account for {least} to {least + more}"
        for name, (least, more) in ranges.items()
        if not least <= counted[name,] <= least + more
    ]


def speculation_faults(
    counted: Metrics, delivered: Delivered, num_speculative_tokens: int
) -> list[str]:
    """Counters of drafts that contradict each other or the tokens that were generated."""
    drafts, drafted, accepted = (
        counted[f"vllm:spec_decode_num_{name}_total",]
        for name in ("drafts", "draft_tokens", "accepted_tokens")
    )
    per_position = [
        counted["vllm:spec_decode_num_accepted_tokens_per_pos_total", str(position)]
        for position in range(num_speculative_tokens)
    ]
    resumed, fresh = (
        counted[f"vllm:layerskip_num_{name}_tokens_total",] for name in ("resumed", "fresh")
    )
    # Each output token but a choice's last one is computed.
    continued = counted["vllm:generation_tokens_total",] - delivered.max_choices
    seconds = [counted[f"vllm:layerskip_{name}_time_seconds_sum",] for name in ("draft", "verify")]
    rules = {
        "drafts are of at most K tokens": drafts <= drafted <= num_speculative_tokens * drafts,
        "accepted tokens were drafted": accepted <= drafted,
        "positions add up to accepted tokens": sum(per_position) == accepted,
        "a position is accepted after those before it": per_position
        == sorted(per_position, reverse=True),
        # Of a draft's tokens and the one before them all but the last can resume.
        "resumed tokens were drafted": resumed <= drafted + drafts,
        "what was generated or rejected was computed": resumed + fresh
        >= continued + drafted - accepted,
        "drafting and verifying take time": drafts == 0 or min(seconds) > 0,
    }
    return [f"not true: {rule}" for rule, holds in rules.items() if not holds]
