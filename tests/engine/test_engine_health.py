"""The engine's counts, and the warning about drafts that do not pay."""

import time

import pytest

from layerskip_vllm.measure.engine import scheduler
from layerskip_vllm.scheduling import health
from tests.engine.engines import (
    as_prompts,
    close,
    counts,
    generate,
    greedy,
    make_llm,
    make_self_llm,
    random_prompts,
    runner,
)


@pytest.fixture
def warnings(monkeypatch):
    """Messages of our health logger; vLLM's first engine in a process drops loggers' handlers."""
    messages = []
    monkeypatch.setattr(
        health.logger, "warning", lambda text, *values: messages.append(text % values)
    )
    return messages


@pytest.mark.parametrize(("late_scale", "warns"), [(1.0, True), (0.0, False)], ids=["bad", "good"])
def test_a_bad_acceptance_rate_logs_one_warning(random_llama, warnings, late_scale, warns):
    llm = make_self_llm(random_llama(late_scale=late_scale, late_from=4), 4, 4)
    before = counts(llm)
    prompts = as_prompts(random_prompts([9] * 12))
    for _ in range(3):
        generate(llm, prompts, greedy(60, ignore_eos=True))
    counted, seen = counts(llm).since(before), scheduler(llm).acceptance
    close(llm)
    # Our counts equal vLLM's.
    assert (seen.num_drafted, seen.num_accepted) == (counted.num_drafted, counted.num_accepted)
    assert seen.num_drafted > 1000
    assert len(warnings) == (1 if warns else 0)


def test_metrics_count_every_position(random_llama):
    llm = make_self_llm(random_llama(late_scale=0.3), 5, 4)
    metrics_before = {m.name: m for m in llm.get_metrics()}
    before = counts(llm)
    outputs = generate(llm, as_prompts(random_prompts([5, 9, 30])), greedy(60, ignore_eos=True))
    counted = counts(llm).since(before)
    per_position = "vllm:spec_decode_num_accepted_tokens_per_pos"
    after = next(m for m in llm.get_metrics() if m.name == per_position).values
    start = metrics_before[per_position].values
    accepted = [b - a for a, b in zip(start, after, strict=True)]
    close(llm)
    assert accepted == sorted(accepted, reverse=True)
    assert sum(accepted) == counted.num_accepted
    # Each prompt's step yields one token; each cycle yields its accepted tokens and one more.
    delivered = sum(map(len, outputs))
    last_run_may_be_cut = 4 * len(outputs)
    produced = len(outputs) + counted.num_drafts + counted.num_accepted
    # The last token may come from a step without drafts.
    assert delivered - len(outputs) <= produced <= delivered + last_run_may_be_cut


def layerskip_metrics(llm) -> dict:
    """Our metrics by name: a counter's value, a histogram's (count, sum)."""
    ours = [m for m in llm.get_metrics() if m.name.startswith("vllm:layerskip_")]
    return {
        m.name.removeprefix("vllm:layerskip_"): m.value if hasattr(m, "value") else (m.count, m.sum)
        for m in ours
    }


@pytest.mark.on_v2
def test_worker_counts_agree_with_vllms_metrics(random_llama):
    llm = make_self_llm(random_llama(late_scale=0.3), 5, 4)
    scheduled, its_runner = [], runner(llm)
    execute_model = its_runner.execute_model

    def recording(scheduler_output, *args, **kwargs):
        scheduled.append(scheduler_output.total_num_scheduled_tokens)
        return execute_model(scheduler_output, *args, **kwargs)

    its_runner.execute_model = recording
    before, ours_before, started = counts(llm), layerskip_metrics(llm), time.perf_counter()
    generate(llm, as_prompts(random_prompts([5, 9, 30])), greedy(60, ignore_eos=True))
    elapsed = time.perf_counter() - started
    counted, ours = counts(llm).since(before), layerskip_metrics(llm)
    close(llm)

    num_resumed, num_fresh = (
        ours[name] - ours_before[name] for name in ("num_resumed_tokens", "num_fresh_tokens")
    )
    assert num_resumed == counted.num_resumed > 0
    assert num_resumed + num_fresh == sum(scheduled)
    (num_drafting, draft_seconds), (num_verifying, verify_seconds) = (
        [now - then for now, then in zip(ours[name], ours_before[name], strict=True)]
        for name in ("draft_time_seconds", "verify_time_seconds")
    )
    # A step verifies the drafts of the previous one.
    assert 0 < num_verifying <= num_drafting < len(scheduled)
    assert draft_seconds > 0
    assert verify_seconds > 0
    assert draft_seconds + verify_seconds < elapsed


def test_a_plain_engine_has_none_of_our_metrics(random_llama):
    llm = make_llm(random_llama())
    generate(llm, as_prompts(random_prompts([5])), greedy(4))
    assert layerskip_metrics(llm) == {}
    close(llm)
