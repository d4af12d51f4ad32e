"""With every option of a request, a speculating engine gives plain decoding's answer."""

import pytest
from vllm.config.reasoning import ReasoningConfig
from vllm.sampling_params import BeamSearchParams, StructuredOutputsParams

from layerskip_vllm.measure.engine import scheduler
from tests.engine.engines import (
    Counts,
    as_prompts,
    close,
    counts,
    generate,
    generate_with_pauses,
    greedy,
    make_llm,
    make_self_llm,
    random_prompts,
)

K = 3
THINK, ANSWER = "<", ">"
"""Start and end of a thought; one token each."""


def engine_flags() -> dict:
    """Flags of both engines; whitespace is off, since JSON allows it without limit."""
    return {
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        "reasoning_config": ReasoningConfig(reasoning_start_str=THINK, reasoning_end_str=ANSWER),
    }


@pytest.fixture(scope="module")
def model(random_llama):
    """Its drafts are accepted about half of the time."""
    return random_llama(num_layers=6, late_scale=0.3)


@pytest.fixture(scope="module")
def plain(model):
    llm = make_llm(model, **engine_flags())
    yield llm
    close(llm)


@pytest.fixture(scope="module")
def llm(model, plain):
    # After `plain`: a new engine takes over vLLM's counters.
    llm = make_self_llm(model, 5, K, **engine_flags())
    yield llm
    close(llm)


def speculate(llm, prompts, params) -> tuple[list[list[int]], Counts]:
    """Output token ids of each prompt, and the draft counts."""
    before = counts(llm)
    outputs = generate(llm, prompts, params)
    return outputs, counts(llm).since(before)


OPTIONS = [
    (None, K),
    ({"layerskip": False}, 0),
    ({"num_speculative_tokens": 1}, 1),
    ({"num_speculative_tokens": 0}, 0),
    ({"layerskip": True, "num_speculative_tokens": 2}, 2),
    ({"layerskip": 1}, K),
]
"""(`extra_args` of a request, number of tokens that a step may draft for it)."""


@pytest.mark.on_v2
def test_each_request_limits_its_drafts(llm, plain):
    prompts = as_prompts(random_prompts([5, 17, 40, 9, 3, 20]))
    params = [greedy(50, ignore_eos=True, extra_args=extra_args) for extra_args, _ in OPTIONS]
    expected = generate(plain, prompts, greedy(50, ignore_eos=True))
    alone = [speculate(llm, [prompt], one) for prompt, one in zip(prompts, params, strict=True)]
    assert [output for (output,), _ in alone] == expected
    for (_, max_drafts), (_, counted) in zip(OPTIONS, alone, strict=True):
        # The last cycles are shorter: no draft follows the last token.
        most = max_drafts * counted.num_drafts
        assert most - sum(range(max_drafts)) <= counted.num_drafted <= most
        assert (counted.num_drafts > 0) == (counted.num_resumed > 0) == (max_drafts > 0)

    # In one batch each request gets the same as alone.
    outputs, together = speculate(llm, prompts, params)
    assert outputs == expected
    for name in ("num_drafts", "num_drafted", "num_accepted"):
        assert getattr(together, name) == sum(getattr(counted, name) for _, counted in alone)
    assert 0 < together.num_accepted < together.num_drafted


def test_prompts_with_different_salts_share_no_blocks(llm, plain):
    (ids,) = random_prompts([70], seed=1)
    expected = generate(plain, as_prompts([ids]), greedy(40))
    before = counts(llm)
    for salt, num_cached in (("a", 0), ("b", 0), ("a", 64)):
        prompt = {"prompt_token_ids": ids, "cache_salt": salt}
        (output,) = llm.generate([prompt], greedy(40), use_tqdm=False)
        assert [list(output.outputs[0].token_ids)] == expected
        assert output.num_cached_tokens == num_cached
    assert counts(llm).since(before).num_accepted > 0


def test_beam_search_finds_the_same_beams(llm, plain):
    prompts = as_prompts(random_prompts([5, 17], seed=2))
    params = BeamSearchParams(beam_width=3, max_tokens=12, ignore_eos=True)

    def beams(engine) -> list[list[tuple[list[int], float]]]:
        outputs = engine.beam_search(prompts, params)
        return [[(beam.tokens, beam.cum_logprob) for beam in o.sequences] for o in outputs]

    expected, actual = beams(plain), beams(llm)
    assert [[tokens for tokens, _ in b] for b in actual] == [[t for t, _ in b] for b in expected]
    assert len({tuple(tokens) for tokens, _ in expected[0]}) == 3
    for one, other in zip(expected, actual, strict=True):
        assert [score for _, score in other] == pytest.approx([s for _, s in one], abs=1e-3)


SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue"]},
        "name": {"type": "string", "pattern": "^[a-z]{3,20}$"},
    },
    "required": ["colour", "name"],
    "additionalProperties": False,
}
CONSTRAINTS = [
    {"json": SCHEMA},
    {"regex": "[a-f]{8}-[0-9]{4}(-[x-z]{2}){3}"},
    {"regex": "[ -~]{50}"},
    {"grammar": 'root ::= word "," word "," word\nword ::= [a-m] [a-z] [n-z] | "yes" | "no"'},
    {"choice": ["apple", "apricot", "banana"]},
]


@pytest.mark.on_v2
def test_drafts_that_a_grammar_rejects_are_cut_off(llm, plain, monkeypatch):
    """Drafting ignores the grammar; vLLM's scheduler cuts the drafts."""
    prompts = as_prompts(random_prompts([5, 17, 40, 9, 3, 20], seed=3))

    def params() -> list:
        constrained = [StructuredOutputsParams(**constraint) for constraint in CONSTRAINTS]
        return [greedy(70, structured_outputs=one) for one in [*constrained, None]]

    its_scheduler = scheduler(llm)
    manager, proposed_and_kept = its_scheduler.structured_output_manager, []
    original = manager.validate_tokens

    def validate_tokens(request, token_ids):
        kept = original(request, token_ids)
        if request.use_structured_output:
            proposed_and_kept.append((len(token_ids), len(kept)))
        return kept

    expected = generate(plain, prompts, params())
    monkeypatch.setattr(manager, "validate_tokens", validate_tokens)
    outputs, counted = speculate(llm, prompts, params())
    assert outputs == expected
    assert any(kept == 0 < proposed for proposed, kept in proposed_and_kept)
    assert any(0 < kept < proposed for proposed, kept in proposed_and_kept)
    assert counted.num_accepted > 0
    assert counted.num_resumed > 0


@pytest.mark.on_v2
def test_a_thought_ends_at_its_budget(llm, plain):
    (start,), (end,) = (plain.get_tokenizer().encode(text) for text in (THINK, ANSWER))
    prompts = as_prompts([[*ids, start] for ids in random_prompts([5, 17, 40], seed=4)])
    params = [greedy(50, ignore_eos=True, thinking_token_budget=n) for n in (5, 8, 13)]
    expected = generate(plain, prompts, params)
    assert expected != generate(plain, prompts, greedy(50, ignore_eos=True))
    assert all(end in ids[:15] for ids in expected)
    outputs, counted = speculate(llm, prompts, params)
    assert outputs == expected
    assert 0 < counted.num_accepted < counted.num_drafted


def test_a_request_may_end_right_after_min_tokens(llm, plain):
    """At no later token, wherever it is in a step."""
    prompts = as_prompts(random_prompts([5, 17, 40, 9, 3, 20, 6, 11], seed=9))
    eos = plain.get_tokenizer().eos_token_id
    params = [greedy(40, min_tokens=10 + n, logit_bias={eos: 100}) for n in range(len(prompts))]
    expected = generate(plain, prompts, params)
    assert [len(ids) for ids in expected] == [11 + n for n in range(len(prompts))]
    outputs, counted = speculate(llm, prompts, params)
    assert outputs == expected
    assert counted.num_drafted > 0


@pytest.mark.on_v2
def test_bad_words_of_several_tokens(llm, plain):
    """Each request forbids words that it wrote before, which begin in any row of a step."""
    prompts = as_prompts(random_prompts([5, 17], seed=10))
    letters = plain.get_tokenizer().convert_tokens_to_ids([*"abcdefgh"])

    def params(bad_words: list[list[str]]) -> list:
        options = {"allowed_token_ids": letters, "ignore_eos": True}
        return [greedy(24, bad_words=words or None, **options) for words in bad_words]

    bad_words: list[list[str]] = [[] for _ in prompts]
    for size in (2, 3):
        written = plain.get_tokenizer().batch_decode(generate(plain, prompts, params(bad_words)))
        for words, text in zip(bad_words, written, strict=True):
            words += [text[i : i + size] for i in range(0, len(text) - size, 3)]
    outputs, counted = speculate(llm, prompts, params(bad_words))
    assert outputs == generate(plain, prompts, params(bad_words))
    texts = plain.get_tokenizer().batch_decode(outputs)
    assert not any(
        word in text for words, text in zip(bad_words, texts, strict=True) for word in words
    )
    assert 0 < counted.num_accepted < counted.num_drafted


@pytest.mark.parametrize("level", [0, 1])
def test_a_pause_leaves_requests_unchanged(llm, plain, level):
    prompts = as_prompts(random_prompts([20, 7, 33], seed=5))
    params = greedy(50, ignore_eos=True)
    expected, before = generate(plain, prompts, params), counts(llm)
    assert generate_with_pauses(llm, prompts, params, level) == expected
    assert counts(llm).since(before).num_accepted > 0


# Keep this test last: closing an engine destroys process groups that the module's engines share.
def test_thoughts_with_a_multi_token_end_are_decoded_plainly(model):
    """vLLM counts drafts of the end as accepted: `</` without `>` would not end a thought."""
    flags = {"reasoning_config": ReasoningConfig(reasoning_start_str="<", reasoning_end_str="</>")}
    plain = make_llm(model, **flags)
    (start,) = plain.get_tokenizer().encode("<")
    assert len(plain.get_tokenizer().encode("</>")) == 3
    prompts = as_prompts([[*ids, start] for ids in random_prompts([5, 17, 40], seed=4)])
    thoughts = [greedy(50, ignore_eos=True, thinking_token_budget=n) for n in (5, 8)]
    params = [*thoughts, greedy(50, ignore_eos=True)]
    expected = generate(plain, prompts, params)
    close(plain)
    llm = make_self_llm(model, 5, K, **flags)
    outputs, counted = speculate(llm, prompts, params)
    alone, of_thoughts = speculate(llm, prompts[:2], thoughts)
    close(llm)
    assert outputs == expected
    assert alone == expected[:2]
    assert counted.num_drafted > 0
    assert of_thoughts.num_drafted == 0
