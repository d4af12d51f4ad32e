"""The size of a draft vocabulary by the layer-count model."""

import pytest

from layerskip_vllm.config import Exit, LayerSkipConfig
from layerskip_vllm.vllm_config.vocab_size import best_vocab_size, covered_by_rank

LLAMA_1B = LayerSkipConfig(4, 16, exit_layers=(2, 4, 6), is_auto=True, head_layers=4.31)
LLAMA_8B = LayerSkipConfig(4, 32, exit_layers=(2, 4, 6), is_auto=True, head_layers=2.41)
VOCAB_SIZE = 128256


def by_rank(size: int) -> float:
    return covered_by_rank(size, VOCAB_SIZE)


def test_a_head_that_outweighs_the_early_layers_is_cut_to_a_quarter():
    assert best_vocab_size(LLAMA_1B, VOCAB_SIZE, 6, by_rank) == VOCAB_SIZE // 4


def test_a_lighter_head_stays_whole():
    assert best_vocab_size(LLAMA_8B, VOCAB_SIZE, 6, by_rank) is None


def test_counts_of_an_even_text_rule_a_vocabulary_out():
    assert best_vocab_size(LLAMA_1B, VOCAB_SIZE, 6, lambda size: size / VOCAB_SIZE) is None


def test_counts_of_a_narrow_text_need_few_tokens():
    assert best_vocab_size(LLAMA_1B, VOCAB_SIZE, 6, lambda _: 1.0) == VOCAB_SIZE // 16


@pytest.mark.parametrize(
    ("part", "measured"), [(1, 1.0), (2, 0.946), (4, 0.871), (8, 0.783), (16, 0.694)]
)
def test_the_law_is_near_what_was_measured(part, measured):
    """113k tokens of English documentation, SmolLM2's tokenizer, ranked by its merges."""
    assert covered_by_rank(49152 // part, 49152) == pytest.approx(measured, abs=0.025)


def test_exits_are_those_of_the_layers_and_one_with_the_whole_head():
    config = LayerSkipConfig(
        4,
        16,
        exit_layers=(2, 4, 6),
        is_auto=True,
        head_layers=4.0,
        draft_vocab_size=100,
        draft_vocab_share=0.25,
        may_drop_vocab=True,
    )
    assert config.exits == (Exit(0), Exit(1), Exit(2), Exit(1, uses_lm_head=True))
    assert config.exit_labels == [(2, 100), (4, 100), (6, 100), (4, 0)]
    assert config.exit_draft_layers == [3, 5, 7, 8]
