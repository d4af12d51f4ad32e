"""A server's metrics must be consistent with the tokens that its clients received."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tests.stress.answers import Answer
from tests.stress.jobs import Job

Metrics = Mapping[tuple[str, ...], float]
"""Result of `Server.metrics`: counters by name, and by position if there is one."""


@dataclass
class Delivered:
    """What the clients of one server received, and how much more it may have counted.

    A server continues a request until it notices that the client has left. A step can yield tokens
    beyond a stop string, which are counted and dropped.
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
    """Inconsistencies in the counters that every server has."""
    ranges = {
        "vllm:generation_tokens_total": (delivered.num_tokens, delivered.max_tokens_undelivered),
        "vllm:prompt_tokens_total": (
            delivered.num_prompt_tokens,
            delivered.max_prompt_tokens_unknown,
        ),
        # A request with several choices counts once, or once per choice.
        "vllm:request_success_total": (
            delivered.num_requests,
            delivered.max_choices - delivered.num_requests,
        ),
    }
    return [
        f"{name} rose by {counted[name,]:.0f}, but clients account for {least} to {least + more}"
        for name, (least, more) in ranges.items()
        if not least <= counted[name,] <= least + more
    ]


def speculation_faults(
    counted: Metrics, delivered: Delivered, num_speculative_tokens: int
) -> list[str]:
    """Draft counters that contradict each other or the generated tokens."""
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
    # Every output token is computed, except a choice's last one.
    continued = counted["vllm:generation_tokens_total",] - delivered.max_choices
    seconds = [counted[f"vllm:layerskip_{name}_time_seconds_sum",] for name in ("draft", "verify")]
    rules = {
        "drafts have at most K tokens": drafts <= drafted <= num_speculative_tokens * drafts,
        "accepted tokens were drafted": accepted <= drafted,
        "positions add up to accepted tokens": sum(per_position) == accepted,
        "a position is accepted after those before it": per_position
        == sorted(per_position, reverse=True),
        # A draft's tokens and the one before them can resume.
        "resumed tokens were drafted": resumed <= drafted + drafts,
        "generated and rejected tokens were computed": resumed + fresh
        >= continued + drafted - accepted,
        "drafting and verifying take time": drafts == 0 or min(seconds) > 0,
    }
    return [f"not true: {rule}" for rule, holds in rules.items() if not holds]
