"""Replays the choice of exit and K on machines with known times, against its rivals.

    python -m benchmarks.policy_replay

The text changes every 600 tokens between two sets, and with it how often each exit is right. All
figures are tokens/s over those of the oracle, which takes each set's best (exit, K) at once. A step
counts with its exact time and its expected tokens; policies see disturbed times, as on a shared
machine, and drawn tokens.

A last table mixes both sets' requests in one batch. It shows the greatest gain of a rate for each
request: the best choice for the true rates against the best one for the batch's rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from layerskip_vllm.config import LayerSkipConfig
from layerskip_vllm.scheduling.policy import MIN_GAIN, Choice, DraftPolicy

MAX_DRAFTS = 8
PHASES, PHASE_TOKENS = 8, 600
DISTURBANCES = [1.0, 1.0, 1.0, 1.02, 1.05, 3.0]
SHARED = 0.7
"""Share of tokens at which the exits are right or wrong together, as far as their rates allow."""

PLAIN = Choice(0, 0)

PROFILES = {
    "swap": ((0.80, 0.85, 0.88), (0.30, 0.55, 0.90)),
    "hidden": ((0.82, 0.85, 0.88), (0.35, 0.84, 0.88)),
    "code, chat": ((0.90, 0.93, 0.95), (0.20, 0.45, 0.75)),
    "on, off": ((0.85, 0.88, 0.90), (0.03, 0.05, 0.10)),
    "nothing pays": ((0.05, 0.10, 0.15), (0.05, 0.10, 0.15)),
}
"""How often each exit is right, in the first and in the second set."""


@dataclass(frozen=True)
class Machine:
    """Its times follow layers and rows: memory traffic first, then arithmetic."""

    exit_layers: tuple[int, ...] = (4, 8, 12)
    num_layers: int = 24
    head_layers: float = 1.0
    free_rows: int = 64
    """Rows that a forward computes in the time of one."""
    step_overhead: float = 0.02
    """Of each draft step, in plain steps of one row."""

    def layers(self, num_layers: float, rows: int) -> float:
        """Time of some layers, in plain steps of one row."""
        full = self.num_layers + self.head_layers
        return num_layers / full * max(1.0, rows / self.free_rows)

    def propose(self, batch_size: int, choice: Choice) -> float:
        """Time to draft."""
        layers = self.exit_layers[choice.exit_index] + self.head_layers
        return choice.num_drafts * (self.layers(layers, batch_size) + self.step_overhead)

    def verify(self, batch_size: int, choice: Choice, observes: bool = False) -> float:
        """Time to verify, with the early layers of the last draft."""
        layers = self.num_layers + self.head_layers
        if observes:  # the LM head once more, for the states at all exits
            layers += self.head_layers
        return self.layers(layers, batch_size * (choice.num_drafts + 1))

    def rate(self, choice: Choice, match_rates: np.ndarray) -> float:
        """Exact tokens per second of a choice; match_rates is [batch, exits]."""
        batch_size = len(match_rates)
        powers = match_rates[:, choice.exit_index, None] ** np.arange(choice.num_drafts + 1)
        seconds = self.propose(batch_size, choice) + self.verify(batch_size, choice)
        return float(powers.sum() / seconds)

    def rates(self, match_rates: np.ndarray) -> dict[Choice, float]:
        """Exact tokens per second of every choice."""
        exits, lengths = range(len(self.exit_layers)), range(1, MAX_DRAFTS + 1)
        choices = [PLAIN, *(Choice(i, k) for i in exits for k in lengths)]
        return {choice: self.rate(choice, match_rates) for choice in choices}


MACHINES = {
    "memory-bound": Machine(),
    "arithmetic-bound": Machine(free_rows=10, step_overhead=0.0),
    "128k tokens": Machine((3, 5, 8), 16, head_layers=4.0, free_rows=40, step_overhead=0.01),
}


class Fixed:
    """A constant choice."""

    sees_every_exit = False

    def __init__(self, choice: Choice) -> None:
        self.choice = choice

    def choose(self, limits: Sequence[int]) -> Choice:
        """Choose it."""
        return self.choice

    def observe_step(self, batch_size: int, *step: Choice | float) -> None:
        """Learn no times."""

    def observe_outcomes(self, exit_index: int, *outcomes: Sequence) -> None:
        """Learn no outcomes."""


class Del(Fixed):
    """DEL's (E, K) (arXiv 2504.05598): most tokens per layer, at the decayed rate of each exit.

    In every round it counts the matches of every exit (shadow tokens), here without their cost and
    with the best decay of 0.8, 0.9, 0.95 and 0.99. It omits DEL's threshold, which ends drafting
    within a round. DEL is for one sequence; here the batch pools its counts.
    """

    sees_every_exit = True

    def __init__(self, machine: Machine, decay: float = 0.9) -> None:
        super().__init__(Choice(1, 4))
        self._machine, self._decay = machine, decay
        self._counts = np.zeros((len(machine.exit_layers), 2))

    def observe_outcomes(self, exit_index: int, *outcomes: Sequence) -> None:
        """Count the matches, and choose anew."""
        self._counts = self._decay * self._counts + np.array(outcomes[2], float)
        rates = self._counts[:, 1] / self._counts[:, 0]
        lengths = np.arange(MAX_DRAFTS + 1)
        tokens = np.cumsum(rates[:, None] ** lengths, axis=1)
        layers = lengths * np.array(self._machine.exit_layers)[:, None] + self._machine.num_layers
        best = int(np.argmax(tokens / layers))
        self.choice = Choice(*divmod(best, MAX_DRAFTS + 1))


class Replay:
    """A batch that decodes without end, as the scheduler runs it."""

    def __init__(
        self, machine: Machine, policy: DraftPolicy | Fixed, batch_size: int, seed: int = 0
    ) -> None:
        self.machine, self.policy, self.batch_size = machine, policy, batch_size
        self._random = np.random.default_rng(seed)
        self._last = PLAIN
        self.choices: list[Choice] = []
        self.seconds = self.num_tokens = self.observing_seconds = 0.0

    def run(self, match_rates: Sequence[float], num_tokens: int) -> float:
        """Decode some tokens for each request; returns tokens per second."""
        tokens, seconds = self.num_tokens, self.seconds
        while self.num_tokens - tokens < num_tokens * self.batch_size:
            self.step(np.array(match_rates))
        return (self.num_tokens - tokens) / (self.seconds - seconds)

    def step(self, match_rates: np.ndarray) -> None:
        """Verify the last step's drafts, then draft."""
        batch_size, last = self.batch_size, self._last
        choice = self.policy.choose([MAX_DRAFTS] * batch_size)
        cycle = self.machine.propose(batch_size, choice) + self.machine.verify(batch_size, last)
        observing = self.machine.verify(batch_size, last, choice.observes)
        observing -= self.machine.verify(batch_size, last)
        matches = self._matches(match_rates)
        accepted = matches[:, : last.num_drafts, last.exit_index].cumprod(axis=1).sum(axis=1)
        if not choice.observes:
            disturbed = cycle * DISTURBANCES[self._random.integers(len(DISTURBANCES))]
            self.policy.observe_step(batch_size, last, choice, disturbed)
        counts = []
        if choice.observes or getattr(self.policy, "sees_every_exit", False):
            emitted = np.arange(MAX_DRAFTS + 1) <= accepted[:, None]
            matched = (matches & emitted[:, :, None]).sum(axis=(0, 1)).tolist()
            counts = [(int(emitted.sum()), each) for each in matched]
        drafted = [last.num_drafts] * batch_size if last.num_drafts else []
        self.policy.observe_outcomes(
            last.exit_index, drafted, accepted.tolist() if drafted else [], counts
        )
        self.seconds += cycle + observing
        self.observing_seconds += observing
        rate = match_rates[last.exit_index]
        self.num_tokens += batch_size * float((rate ** np.arange(last.num_drafts + 1)).sum())
        self.choices.append(choice)
        self._last = choice

    def _matches(self, match_rates: np.ndarray) -> np.ndarray:
        """Which exits are right at the next tokens, [batch, MAX_DRAFTS + 1, exits]."""
        shape = self.batch_size, MAX_DRAFTS + 1
        together = self._random.random((*shape, 1))
        apart = self._random.random((*shape, len(match_rates)))
        return np.where(self._random.random((*shape, 1)) < SHARED, together, apart) < match_rates


def make_policy(machine: Machine) -> DraftPolicy:
    """Ours, with the middle exit as the first guess."""
    layers = machine.exit_layers
    config = LayerSkipConfig(
        layers[len(layers) // 2],
        machine.num_layers,
        exit_layers=layers,
        head_layers=machine.head_layers,
    )
    return DraftPolicy(config, MAX_DRAFTS)


def over_mixture(
    machine: Machine,
    make: Callable[[Machine], DraftPolicy | Fixed],
    sets: Sequence[Sequence[float]],
    batch_size: int,
    seed: int = 0,
) -> Replay:
    """Decode both sets in turn, start-up included."""
    replay = Replay(machine, make(machine), batch_size, seed)
    for phase in range(PHASES):
        replay.run(sets[phase % 2], PHASE_TOKENS)
    return replay


def bounds(
    machine: Machine, sets: Sequence[Sequence[float]], batch_size: int
) -> tuple[float, float, float]:
    """Tokens per second over the mixture: the oracle's, the best single pair's and plain's."""
    by_set = [machine.rates(np.tile(np.array(each), (batch_size, 1))) for each in sets]
    both = {choice: 2 / sum(1 / rates[choice] for rates in by_set) for choice in by_set[0]}
    oracle = 2 / sum(1 / max(rates.values()) for rates in by_set)
    return oracle, max(both.values()), both[PLAIN]


def gain_by_request(machine: Machine, match_rates: np.ndarray) -> float:
    """The gain of the best choice for the true rates over the best one for the batch's rate.

    The batch's rate is counted as by the policy: the exit in use by its drafts, the others by
    the tokens of observing steps. match_rates is [batch, exits].
    """
    true = machine.rates(match_rates)
    best = choice = max(true, key=lambda each: true[each])
    for _ in range(20):
        emitted = match_rates[:, choice.exit_index, None] ** np.arange(choice.num_drafts + 1)
        pooled = (emitted.sum(axis=1) @ match_rates) / emitted.sum()
        if choice.num_drafts:
            pooled[choice.exit_index] = emitted[:, 1:].sum() / emitted[:, :-1].sum()
        pooled_rates = machine.rates(np.tile(pooled, (len(match_rates), 1)))
        last, choice = choice, max(pooled_rates, key=lambda each: pooled_rates[each])
        if pooled_rates[choice] < MIN_GAIN * pooled_rates[PLAIN]:
            choice = PLAIN
        if choice == last:
            break
    return true[best] / true[choice] - 1


def main() -> None:
    """Print the tables."""
    print("| machine | batch | text | ours | DEL | best pair | plain | observing |")
    print("|---|---|---|---|---|---|---|---|")
    for name, machine in MACHINES.items():
        for batch_size in (1, 4, 16):
            for text, sets in PROFILES.items():
                oracle, best, plain = bounds(machine, sets, batch_size)
                runs = [over_mixture(machine, make_policy, sets, batch_size, i) for i in range(3)]
                dels = [over_mixture(machine, Del, sets, batch_size, i) for i in range(3)]
                ours, rival = (
                    np.mean([run.num_tokens / run.seconds for run in each]) / oracle
                    for each in (runs, dels)
                )
                observing = np.mean([run.observing_seconds / run.seconds for run in runs])
                print(
                    f"| {name} | {batch_size} | {text} | {ours:.3f} | {rival:.3f} "
                    f"| {best / oracle:.3f} | {plain / oracle:.3f} | {observing:.1%} |"
                )
    print("\n| machine | batch | gain by request, at most: mean | highest |")
    print("|---|---|---|---|")
    for name, machine in MACHINES.items():
        for batch_size in (4, 16):
            gains = [
                gain_by_request(machine, np.array([easy] * num_easy + [hard] * num_hard))
                for easy, hard in list(PROFILES.values())[:4]
                for num_easy in (batch_size // 4, batch_size // 2, 3 * batch_size // 4)
                for num_hard in [batch_size - num_easy]
            ]
            print(f"| {name} | {batch_size} | {np.mean(gains):.1%} | {max(gains):.1%} |")


if __name__ == "__main__":
    main()
