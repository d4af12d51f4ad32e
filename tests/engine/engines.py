"""Real vLLM engines on CPU, their outputs and counts."""

import gc
from collections import Counter
from dataclasses import dataclass

import torch
from vllm import LLM, SamplingParams

from layerskip_vllm.measure.engine import model_runner as runner
from layerskip_vllm.measure.engine import scheduler, shut_down
from tests.engine import plain
from tests.engine.restarts import make_restarts_cheap
from tests.engine.scripted_choices import ScriptedChoices
from tests.options import FIXED

COUNTERS = {
    "vllm:spec_decode_num_drafts": "num_drafts",
    "vllm:spec_decode_num_draft_tokens": "num_drafted",
    "vllm:spec_decode_num_accepted_tokens": "num_accepted",
}


def drafter(its_runner):
    """What drafts on either model runner."""
    return its_runner.speculator if hasattr(its_runner, "speculator") else its_runner.drafter


OPEN: list[LLM] = []
"""Open engines; tests/engine/conftest.py closes those that a failing test leaves."""


def make_llm(model: str, **overrides) -> LLM:
    """An eager float32 engine in this process, with a small KV cache."""
    settings = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 256,
        "max_num_seqs": 32,
        "kv_cache_memory_bytes": 64 << 20,
        "block_size": 32,
        "disable_log_stats": False,
        "seed": 0,
    }
    make_restarts_cheap()
    llm = LLM(model, **(settings | overrides))
    OPEN.append(llm)
    return llm


def make_self_llm(
    model: str,
    exit_layer: int | list[int],
    num_speculative_tokens: int,
    options: dict | None = None,
    **overrides,
) -> LLM:
    """An engine that drafts K tokens in every step, unless `options` override it.

    With several exit layers it is one of `self:auto`, in which a script chooses another exit, K
    and kind of step each time.
    """
    if isinstance(exit_layer, list):
        llm = make_auto_llm(model, exit_layer, num_speculative_tokens, options, **overrides)
        ScriptedChoices(llm, len(exit_layer), num_speculative_tokens)
        return llm
    return make_llm(
        model,
        spec_model=f"self:{exit_layer}",
        spec_tokens=num_speculative_tokens,
        additional_config={"layerskip": FIXED | (options or {})},
        **overrides,
    )


def make_auto_llm(
    model: str,
    exit_layers: list[int],
    num_speculative_tokens: int,
    options: dict | None = None,
    **overrides,
) -> LLM:
    """An engine that chooses among exits."""
    return make_llm(
        model,
        spec_model="self:auto",
        spec_tokens=num_speculative_tokens,
        additional_config={"layerskip": {"exit_layers": exit_layers} | (options or {})},
        **overrides,
    )


def close(llm: LLM) -> None:
    """Free an engine's memory before the next one starts."""
    OPEN.remove(llm)
    shut_down(llm)
    gc.collect()


def greedy(max_tokens: int, **overrides) -> SamplingParams:
    return SamplingParams(**({"temperature": 0, "max_tokens": max_tokens} | overrides))


def as_prompts(token_ids: list[list[int]]) -> list[dict]:
    return [{"prompt_token_ids": ids} for ids in token_ids]


def generate(llm: LLM, prompts, params, lora_request=None) -> list[list[int]]:
    """Output token ids of each prompt."""
    outputs = llm.generate(prompts, params, use_tqdm=False, lora_request=lora_request)
    return [list(output.outputs[0].token_ids) for output in outputs]


def generate_with_pauses(llm: LLM, prompts, params, level: int) -> list[list[int]]:
    """Output token ids of each prompt, from an engine that pauses while drafts wait.

    On a CPU, level 1 (sleep) only pauses and drops the cached KV.
    """
    engine, finished, steps = llm.llm_engine, {}, 0
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), prompt, params)
    while engine.has_unfinished_requests():
        steps += 1
        if steps in (4, 9):
            engine.sleep(level, mode="keep")
            assert engine.step() == []
            assert engine.wake_up(["scheduling"] if level == 0 else None)
        for output in engine.step():
            if output.finished:
                finished[int(output.request_id)] = list(output.outputs[0].token_ids)
    assert steps > 9
    return [finished[i] for i in range(len(prompts))]


def generate_plainly(
    model: str, prompts, params, lora_request=None, **overrides
) -> list[list[int]]:
    """Output token ids of an engine without speculation, computed once in a test run."""

    def compute() -> list[list[int]]:
        llm = make_llm(model, **overrides)
        outputs = generate(llm, prompts, params, lora_request)
        close(llm)
        return outputs

    return plain.kept(compute, model, prompts, params, lora_request, overrides)


@dataclass
class Counts:
    """vLLM's speculative-decoding counters, and our runner's count of resumed tokens."""

    num_drafts: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    num_resumed: int = 0

    def since(self, before: "Counts") -> "Counts":
        return Counts(
            *(
                now - then
                for now, then in zip(vars(self).values(), vars(before).values(), strict=True)
            )
        )


def counts(llm: LLM) -> Counts:
    """Current counts. vLLM's counters are per process: subtract an earlier reading."""
    metrics = {metric.name: metric for metric in llm.get_metrics()}
    result = Counts(
        **{name: metrics[key].value for key, name in COUNTERS.items() if key in metrics}
    )
    result.num_resumed = getattr(runner(llm), "num_resumed_tokens", 0)  # stock vLLM has none
    return result


def both(
    model,
    prompts,
    params,
    exit_layer: int | list[int] = 5,
    num_speculative_tokens=3,
    lora_request=None,
    **overrides,
):
    """Outputs of a plain and a self-speculating engine, and the counts of the latter."""
    expected = generate_plainly(model, prompts, params, lora_request, **overrides)
    llm = make_self_llm(model, exit_layer, num_speculative_tokens, **overrides)
    before = counts(llm)
    actual = generate(llm, prompts, params, lora_request)
    counted = counts(llm).since(before)
    close(llm)
    return expected, actual, counted


def assert_speculated(counted: Counts) -> None:
    assert counted.num_drafts > 0
    assert counted.num_resumed > 0
    assert 0 < counted.num_accepted < counted.num_drafted


def num_preemptions(llm) -> int:
    return next(m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions")


def random_prompts(lengths, seed: int = 0, low: int = 3, high: int = 250) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(low, high, (n,), generator=generator).tolist() for n in lengths]


def note_most_drafts(llm) -> Counter:
    """Request -> most drafts that a step verifies of it; filled in from here on."""
    most, its_scheduler = Counter(), scheduler(llm)
    schedule = its_scheduler.schedule

    def noting_drafts(*args, **kwargs):
        output = schedule(*args, **kwargs)
        for req_id, drafts in output.scheduled_spec_decode_tokens.items():
            most[req_id] = max(most[req_id], len(drafts))
        return output

    its_scheduler.schedule = noting_drafts
    return most
