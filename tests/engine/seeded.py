"""Requests with a seed, a temperature and random sampling options; what they are answered."""

import random

from vllm import SamplingParams

from tests import runner_v2
from tests.engine.engines import as_prompts, random_prompts


def _penalties(rng: random.Random, _num_tokens: int) -> dict:
    return {
        "repetition_penalty": rng.uniform(0.8, 1.4),
        "presence_penalty": rng.uniform(-1, 1),
        "frequency_penalty": rng.uniform(-1, 1),
    }


def _min_tokens(rng: random.Random, num_tokens: int) -> dict:
    return {
        "min_tokens": rng.randint(num_tokens // 3, num_tokens),
        "stop_token_ids": rng.sample(range(250), 40),
    }


def _bad_words(rng: random.Random, _num_tokens: int) -> dict:
    """Pairs of letters, of which all but one in three may not come."""
    letters = rng.sample([chr(code) for code in range(ord("!"), ord("~"))], 12)
    pairs = [a + b for a in letters for b in letters]
    return {
        "allowed_token_ids": [ord(letter) - ord("!") for letter in letters],  # `byte_tokenizer`
        "bad_words": rng.sample(pairs, 90),
    }


OPTIONS = {
    "nothing": lambda _rng, _num_tokens: {},
    "top-k": lambda rng, _: {"top_k": rng.randint(2, 40)},
    "top-p": lambda rng, _: {"top_p": rng.uniform(0.3, 0.95)},
    "min-p": lambda rng, _: {"min_p": rng.uniform(0.01, 0.3)},
    "penalties": _penalties,
    "bias": lambda rng, _: {"logit_bias": {t: rng.uniform(-9, 9) for t in range(5, 60, 5)}},
    "allowed": lambda rng, _: {"allowed_token_ids": rng.sample(range(250), 100)},
    "min-tokens": _min_tokens,
    "bad-words": _bad_words,
    "logprobs": lambda rng, _: {"logprobs": rng.randint(0, 5)},
}
NOT_ON_V2 = {"top-k", "top-p"}
"""vLLM's kernel for them does not run under Triton's interpreter."""


def option_names() -> list[str]:
    """Names of the options that the runner of this test run can have."""
    return [name for name in OPTIONS if not (name in NOT_ON_V2 and runner_v2.is_chosen())]


def seeded(seed: int, max_tokens: int = 40, num_options: int = 2, **overrides) -> SamplingParams:
    """A request with a temperature and options of its own."""
    rng = random.Random(seed)
    params = {"temperature": rng.uniform(0.3, 1.5), "max_tokens": rng.randint(8, max_tokens)}
    for name in rng.sample(option_names(), num_options):
        params |= OPTIONS[name](rng, params["max_tokens"])
    return SamplingParams(**({"seed": seed, "ignore_eos": True} | params | overrides))


def requests(num_requests: int, first_seed: int = 0) -> tuple[list[dict], list[SamplingParams]]:
    """Prompts and parameters of requests of unequal length."""
    lengths = [3 + 11 * i % 47 for i in range(num_requests)]
    prompts = as_prompts(random_prompts(lengths, seed=6 + first_seed))
    return prompts, [seeded(first_seed + i) for i in range(num_requests)]


def answers(llm, prompts, params) -> list[tuple[list[int], str | None]]:
    """Output token ids of each prompt, and why it ended."""
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return [(list(o.outputs[0].token_ids), o.outputs[0].finish_reason) for o in outputs]


def scores(llm, prompts, params) -> list[list[dict[int, float]]]:
    """Logprobs, or what the engine's mode gives in their place, by prompt, position and token."""
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return [
        [
            {token: entry.logprob for token, entry in at.items()}
            for at in o.outputs[0].logprobs or ()
        ]
        for o in outputs
    ]
