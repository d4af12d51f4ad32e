"""Random requests with deterministic answers: temperature 0, a seed, or one token to choose."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from dataclasses import dataclass, field

BUDGET = 128
"""Tokens that the speculating server schedules in one step; some prompts are longer."""

MAX_PROMPT_LEN, MAX_TOKENS = 300, 96
ABORTED = 0.2
"""Share of the requests that the client aborts during the stream."""

STRUCTURED = 0.1
"""Share with a grammar and no other feature, since biases and bans could rule out all tokens."""

SAMPLED = 0.4
"""Share with a seed and a temperature above 0."""

LETTERS = range(3, 250)
"""Token ids of bytes in the test models."""


@dataclass(frozen=True)
class Job:
    """One request to the completions API, and when its client hangs up."""

    prompt: list[int]
    max_tokens: int
    options: dict = field(default_factory=dict)
    extra_body: dict = field(default_factory=dict)
    abort_after: int | None = None
    """Number of received tokens; None: the client stays to the end."""

    @property
    def n(self) -> int:
        return self.options.get("n", 1)

    @property
    def features(self) -> list[str]:
        return sorted([*self.options, *self.extra_body])

    def request(self, **overrides) -> dict:
        """Arguments for the `openai` client."""
        extra = {"return_token_ids": True, "return_tokens_as_token_ids": True, **self.extra_body}
        settings = {
            "prompt": self.prompt,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "extra_body": extra,
            **self.options,
        }
        return settings | overrides


def random_job(rng: random.Random, prefixes: list[list[int]]) -> Job:
    """A request of any length with any features, sometimes with a shared prefix."""
    length = rng.choice(
        (rng.randint(1, 30), rng.randint(30, BUDGET), rng.randint(BUDGET, MAX_PROMPT_LEN))
    )
    prompt = random_tokens(rng, length)
    if rng.random() < 0.3:
        prompt = (rng.choice(prefixes) + prompt)[:MAX_PROMPT_LEN]
    max_tokens = rng.randint(1, MAX_TOKENS)
    job = Job(
        prompt,
        max_tokens,
        extra_body={"ignore_eos": rng.random() < 0.7},
        abort_after=rng.randint(1, max(1, max_tokens // 2)) if rng.random() < ABORTED else None,
    )
    if rng.random() < STRUCTURED:
        _structured_outputs(rng, job)
    else:
        for feature in rng.sample(FEATURES, rng.choice((0, 0, 1, 1, 2, 3))):
            feature(rng, job)
    if rng.random() < SAMPLED:
        _temperature(rng, job)
    return job


def random_tokens(rng: random.Random, length: int) -> list[int]:
    return [rng.choice(LETTERS) for _ in range(length)]


def _logprobs(rng: random.Random, job: Job) -> None:
    job.options["logprobs"] = rng.randint(0, 5)


def _frequency_penalty(rng: random.Random, job: Job) -> None:
    job.options["frequency_penalty"] = rng.uniform(-1, 2)


def _presence_penalty(rng: random.Random, job: Job) -> None:
    job.options["presence_penalty"] = rng.uniform(-1, 2)


def _repetition_penalty(rng: random.Random, job: Job) -> None:
    job.extra_body["repetition_penalty"] = rng.uniform(1, 1.6)


def _min_tokens(rng: random.Random, job: Job) -> None:
    job.extra_body.update(min_tokens=rng.randint(1, job.max_tokens), ignore_eos=False)


def _stop(rng: random.Random, job: Job) -> None:
    job.options["stop"] = rng.sample(string.ascii_letters, rng.randint(1, 3))
    job.extra_body["include_stop_str_in_output"] = rng.random() < 0.5


def _stop_token_ids(rng: random.Random, job: Job) -> None:
    job.extra_body["stop_token_ids"] = rng.sample(LETTERS, 3)


def _logit_bias(rng: random.Random, job: Job) -> None:
    biased = rng.sample(LETTERS, rng.randint(1, 8))
    job.options["logit_bias"] = {str(token_id): rng.uniform(-5, 3) for token_id in biased}


def _n(rng: random.Random, job: Job) -> None:
    # vLLM refuses several choices at temperature 0: a nucleus of one token is equivalent.
    job.options.update(n=rng.randint(2, 3), temperature=1.0)
    job.extra_body["top_k"] = 1


def _allowed_token_ids(rng: random.Random, job: Job) -> None:
    job.extra_body["allowed_token_ids"] = rng.sample(LETTERS, 60)


def _bad_words(rng: random.Random, job: Job) -> None:
    job.extra_body["bad_words"] = rng.sample(string.ascii_letters, 6)


def _seed(rng: random.Random, job: Job) -> None:
    job.options["seed"] = rng.randint(0, 2**31)


def _temperature(rng: random.Random, job: Job) -> None:
    """Sample, with a seed of its own and among any number of tokens."""
    _seed(rng, job)
    job.options["temperature"] = rng.uniform(0.2, 1.5)
    job.extra_body.pop("top_k", None)
    cut = rng.choice(({}, {"top_k": rng.randint(2, 40)}, {"min_p": rng.uniform(0.01, 0.3)}))
    job.extra_body.update(cut)
    if rng.random() < 0.3:
        job.options["top_p"] = rng.uniform(0.3, 0.95)


def _layerskip_options(rng: random.Random, job: Job) -> None:
    """The plain server ignores them."""
    own = rng.choice(({"layerskip": 0}, {"num_speculative_tokens": rng.randint(0, 3)}))
    job.extra_body["vllm_xargs"] = own


def _structured_outputs(rng: random.Random, job: Job) -> None:
    words = ["".join(rng.sample(string.ascii_lowercase, rng.randint(2, 26))) for _ in range(4)]
    grammar = rng.choice(
        (
            {"choice": words},
            {"regex": rf"({'|'.join(words)}|[0-9]{{1,30}})( [a-z]{{1,9}}){{0,9}}"},
            {"json": {"type": "object", "properties": {words[0]: {"type": "integer"}}}},
        )
    )
    job.extra_body.update(structured_outputs=grammar, ignore_eos=False)


FEATURES: list[Callable[[random.Random, Job], None]] = [
    _logprobs,
    _frequency_penalty,
    _presence_penalty,
    _repetition_penalty,
    _min_tokens,
    _stop,
    _stop_token_ids,
    _logit_bias,
    _n,
    _allowed_token_ids,
    _bad_words,
    _seed,
    _layerskip_options,
]
