"""Loads that stress the per-request state of speculation, with every supported feature.

Greedy float32 output with and without self-speculation is the same, token for token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from layerskip_vllm.models import SUPPORTED_ARCHITECTURES
from tests.engine.engines import (
    as_prompts,
    assert_speculated,
    close,
    counts,
    generate,
    generate_plainly,
    greedy,
    make_self_llm,
    num_preemptions,
    random_prompts,
)
from tests.engine.features import (
    EXIT_LAYER,
    IN_ALL_SCENARIOS,
    IN_ONE_SCENARIO,
    Feature,
    Prepared,
)
from tests.engine.scripted_choices import choices_of
from tests.models import FAMILIES

THREE_EXITS = [1, EXIT_LAYER, 4]


def parametrize(
    features: dict[str, Feature], on_v2: Sequence[str] = (), auto: Sequence[str] = ()
) -> pytest.MarkDecorator:
    """Run a test with each feature; with adapters on model runner V1 alone.

    Args:
        features: By name.
        on_v2: Names of features with which `make test` runs it on V2 too, in both ways.
        auto: Names of features with which it also runs with `self:auto`, another exit in each step.
    """

    def case(name: str, exit_layer: int | list[int], test_id: str):
        needs_v1 = features[name].adapted_embeddings is not None
        marks = [pytest.mark.runner_v1] if needs_v1 else []
        marks += [pytest.mark.on_v2] if name in on_v2 else []
        return pytest.param(name, exit_layer, marks=marks, id=test_id)

    cases = [case(name, EXIT_LAYER, name) for name in features]
    cases += [case(name, THREE_EXITS, f"{name}-auto") for name in auto]
    return pytest.mark.parametrize(("name", "exit_layer"), cases)


every_feature = parametrize(IN_ALL_SCENARIOS | IN_ONE_SCENARIO, auto=list(IN_ALL_SCENARIOS))
main_features = parametrize(IN_ALL_SCENARIOS, auto=["llama"])
main_features_and_v2 = parametrize(IN_ALL_SCENARIOS, ["llama"], ["llama"])


@dataclass(frozen=True)
class Case:
    """A feature with its checkpoint and the exits of its drafts, and the requests of a scenario."""

    feature: Feature
    prepared: Prepared
    exit_layer: int | list[int]
    """Several: `self:auto`, as `make_self_llm` opens it."""

    def expected(self, prompts, params) -> list[list[int]]:
        adapters = self.prepared.adapters_of(len(prompts))
        settings = self.feature.settings
        return generate_plainly(self.prepared.model, prompts, params, adapters, **settings)

    def open(self, num_speculative_tokens: int = 3, **settings):
        settings |= self.feature.settings
        model = self.prepared.model
        return make_self_llm(model, self.exit_layer, num_speculative_tokens, **settings)

    def generate(self, llm, prompts, params) -> list[list[int]]:
        return generate(llm, prompts, params, self.prepared.adapters_of(len(prompts)))

    def close(self, llm) -> None:
        """Close the engine; each of its exits has drafted."""
        if isinstance(self.exit_layer, list):
            assert choices_of(llm).exits == set(range(len(self.exit_layer)))
        close(llm)

    def assert_equal(self, prompts, params, **settings) -> None:
        expected = self.expected(prompts, params)
        llm = self.open(**settings)
        before = counts(llm)
        outputs = self.generate(llm, prompts, params)
        counted = counts(llm).since(before)
        self.close(llm)
        assert outputs == expected
        assert_speculated(counted)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """`prepared(name)` -> that feature's checkpoint, written on first use."""
    features, known = IN_ALL_SCENARIOS | IN_ONE_SCENARIO, {}

    def prepared(name: str) -> Prepared:
        if name not in known:
            known[name] = features[name].prepare(tmp_path_factory.mktemp(name))
        return known[name]

    return prepared


@pytest.fixture
def case(prepared, name, exit_layer):
    return Case((IN_ALL_SCENARIOS | IN_ONE_SCENARIO)[name], prepared(name), exit_layer)


def test_every_supported_family_is_a_feature_or_is_llama():
    classes = {family.model.__name__ for family in FAMILIES.values()}
    assert {*SUPPORTED_ARCHITECTURES} == {"LlamaForCausalLM", *classes}
    shapes = [feature.shape for feature in (IN_ALL_SCENARIOS | IN_ONE_SCENARIO).values()]
    assert {shape["family"] for shape in shapes if "family" in shape} == {*FAMILIES}


@every_feature
def test_requests_of_unequal_length(case):
    case.assert_equal(as_prompts(random_prompts([5, 17, 40, 90, 3, 20])), greedy(60))


@main_features
def test_32_requests_of_unequal_length_join_and_leave(case):
    prompts = as_prompts(random_prompts([3 + 5 * i % 71 for i in range(32)], seed=1))
    params = [greedy(5 + 7 * i % 61, ignore_eos=True) for i in range(32)]
    case.assert_equal(prompts, params, max_num_seqs=12)


@main_features_and_v2
def test_chunked_prompts_mix_with_decodes(case):
    prompts = as_prompts(random_prompts([70, 5, 33, 90, 12, 60, 3, 41], seed=2))
    chunks = {"max_num_batched_tokens": case.feature.chunk_size, "max_num_seqs": 8}
    case.assert_equal(prompts, greedy(40), **chunks)


@main_features_and_v2
def test_shared_prefixes_hit_the_cache_on_the_second_run(case):
    (prefix,) = random_prompts([96], seed=3)
    tails = random_prompts([1, 7, 32, 33, 40, 64], seed=4)
    prompts = as_prompts([prefix + tail for tail in tails])
    expected = case.expected(prompts, greedy(50))
    llm = case.open(num_speculative_tokens=4)
    assert case.generate(llm, prompts, greedy(50)) == expected
    before = counts(llm)
    adapters = case.prepared.adapters_of(len(prompts))
    second = llm.generate(prompts, greedy(50), use_tqdm=False, lora_request=adapters)
    assert [list(output.outputs[0].token_ids) for output in second] == expected
    num_cached = min(output.num_cached_tokens for output in second)
    # The whole prompt and output are cached except the last block: decoding starts at once.
    longer = as_prompts(
        [p["prompt_token_ids"] + ids[:20] for p, ids in zip(prompts, expected, strict=True)]
    )
    assert case.generate(llm, longer, greedy(30)) == [ids[20:] for ids in expected]
    counted = counts(llm).since(before)
    case.close(llm)
    assert num_cached >= case.feature.min_cached_tokens
    assert_speculated(counted)


@main_features
def test_preempted_requests_start_over(case):
    """With a window, another request soon reuses the few blocks that one releases."""
    prompts = as_prompts(random_prompts([40, 50, 30, 45, 38, 42], seed=5))
    params = greedy(120, ignore_eos=True)
    expected = case.expected(prompts, params)
    llm = case.open(num_speculative_tokens=4, num_gpu_blocks_override=12)
    before, preempted_before = counts(llm), num_preemptions(llm)
    outputs = case.generate(llm, prompts, params)
    counted, preempted = counts(llm).since(before), num_preemptions(llm) - preempted_before
    case.close(llm)
    assert preempted > 0
    assert outputs == expected
    assert_speculated(counted)
