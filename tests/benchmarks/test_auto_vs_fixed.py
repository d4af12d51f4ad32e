"""`self:auto` against fixed pairs: the plan, the results file and the figures."""

import pytest

from benchmarks.auto_vs_fixed.__main__ import parse_arguments
from benchmarks.auto_vs_fixed.figures import BEST_OF_EACH, figures
from benchmarks.auto_vs_fixed.plan import (
    AUTO,
    MIXTURE,
    PLAIN,
    SCREENING,
    Contender,
    Plan,
    find_finalists,
    mixed_speed,
)
from benchmarks.auto_vs_fixed.results import Measurement, Results
from benchmarks.auto_vs_fixed.subjects import Subject, Texts
from benchmarks.auto_vs_fixed.tables import report
from benchmarks.auto_vs_fixed.turns import Progress, measure, prompts_of, screened
from layerskip_vllm.measure.decoding import Decoding, DraftCounts

SHALLOW, DEEP, SLOW = Contender(2, 4), Contender(4, 2), Contender(2, 2)
PLAN = Plan(
    exit_layers=(2, 4),
    draft_lengths=(2, 4),
    text_sets={"a": True, "b": True, "c": False},
    num_turns=3,
    num_cycles=2,
)
SPEEDS = {
    "a": {PLAIN: 10, AUTO: 14.4, SHALLOW: 16, DEEP: 12, SLOW: 8, Contender(4, 4): 11},
    "b": {PLAIN: 10, AUTO: 12, SHALLOW: 6, DEEP: 12.5, SLOW: 7, Contender(4, 4): 11},
    "c": {PLAIN: 10, AUTO: 9.8},
}
"""Set -> contender -> tokens/s."""


class Child:
    """An engine with known speeds: one token a step; the set is the prompt's first token."""

    def __init__(self, engine):
        self.engine = engine

    def call(self, method, prompts, max_tokens, num_drafts=0):
        exit_layer = int(self.engine[5:]) if self.engine not in {"plain", "self:auto"} else None
        contender = AUTO if method == "decode_choosing" else Contender(exit_layer, num_drafts)
        seconds = len(prompts) / SPEEDS["abc"[prompts[0][0]]][contender]
        decoding = Decoding(
            [seconds] * max_tokens,
            [[1] * len(prompts)] * max_tokens,
            [[0] * max_tokens for _ in prompts],
            [0.0],
            [0.0],
            DraftCounts(1, 4, 3, 1),
        )
        choices = {"2,4": 3, "0,0": 1, "observed": 1}
        return (decoding, choices) if contender == AUTO else decoding


SUBJECT = Subject(
    "m",
    path=None,
    exit_layers=(2, 4),
    texts={name: Texts([[i]] * 5, PLAN.text_sets[name]) for i, name in enumerate("abc")},
    dtype="float32",
    kv_cache_bytes=1,
)
STAGES = [(2, stage) for stage in PLAN.stages]
CHILDREN = {name: Child(name) for name in ("plain", "self:auto", "self:2", "self:4")}


@pytest.fixture
def results(tmp_path):
    results = Results(tmp_path / "m.jsonl", {"model": "m"})
    measure(SUBJECT, PLAN, STAGES, CHILDREN, results)
    return results


def test_each_set_and_the_mixture_have_a_stage():
    assert PLAN.stages == [SCREENING, "a", "b", "c", MIXTURE]
    assert Plan((2,), (2,), {"a": True}).stages == [SCREENING, "a"]
    assert Plan((2,), (2,), {"a": False}).stages == ["a"]


def test_the_mixture_changes_sets_and_warms_up_with_the_last():
    assert [turn.text_set for turn in PLAN.turns(1, MIXTURE)] == ["b", "a", "b", "a", "b"]
    assert [turn.number for turn in PLAN.turns(1, MIXTURE)] == [-1, 0, 1, 2, 3]


def test_in_the_mixture_pairs_decode_every_other_batch():
    turn = next(iter(PLAN.turns(1, MIXTURE)))
    assert list(turn.batches(AUTO)) == [0, 1, 2, 3, 4, 5]
    assert list(turn.batches(SHALLOW)) == [0, 2, 4]
    (turn, *_) = PLAN.turns(1, "a")
    assert list(turn.batches(SHALLOW)) == list(turn.batches(AUTO)) == [0]


def test_the_best_pairs_of_each_set_and_over_all_go_on(results):
    pairs = {
        "a": {SHALLOW: 16, DEEP: 12, SLOW: 11},
        "b": {SHALLOW: 6, DEEP: 12.5, SLOW: 11},
    }
    assert find_finalists(pairs, num_over_all=1) == [SHALLOW, DEEP]
    assert find_finalists(pairs, num_over_all=2) == [SLOW, SHALLOW, DEEP]
    assert screened(results, PLAN, 2) == [SHALLOW, DEEP, Contender(4, 4)]
    assert find_finalists({}) == []


def test_figures_compare_with_the_best_pair_plain_and_the_mixture(results):
    found = {(each.stage, each.rival): each for each in figures(results, PLAN, 2)}
    assert found["a", SHALLOW.name].ratio.median == pytest.approx(0.9)
    assert found["a", SHALLOW.name].is_missed
    assert found["a", "plain"].ratio.median == pytest.approx(1.44)
    assert found["b", DEEP.name].ratio.median == pytest.approx(12 / 12.5)
    assert found["c", "plain"].ratio.median == pytest.approx(0.98)
    assert not found["c", "plain"].is_missed
    auto = mixed_speed([14.4, 12])
    assert found[MIXTURE, DEEP.name].auto.median == pytest.approx(auto)
    assert found[MIXTURE, DEEP.name].ratio.median == pytest.approx(auto / mixed_speed([12, 12.5]))
    assert found[MIXTURE, DEEP.name].wanted == 1.05
    best_of_each = found[MIXTURE, BEST_OF_EACH]
    assert best_of_each.ratio.median == pytest.approx(auto / mixed_speed([16, 12.5]))


def test_the_tables_show_misses_in_bold_and_what_was_chosen(results):
    text = report(results, PLAN, [2])
    assert "| a | 2 | 14.4 [14.4, 14.4] | self:2, K=4 | **0.900 [0.900, 0.900]** | 0.97 |" in text
    assert "| self:auto | 14.4 [14.4, 14.4] | 75% | 2,4 75%; 0,0 25%; observed 25.0% |" in text


def test_finished_stages_are_kept_and_interrupted_ones_dropped(results, tmp_path):
    path = tmp_path / "m.jsonl"
    *lines, last = path.read_text().splitlines()
    assert last == '{"finished": [2, "mixture"]}'
    path.write_text("\n".join([*lines, '{"torn": ']))
    again = Results(path, {"model": "m"})
    assert not again.is_finished(2, MIXTURE)
    assert again.of(2, MIXTURE) == []
    assert again.of(2, "a") == results.of(2, "a") != []
    with pytest.raises(ValueError, match="give another --output"):
        Results(path, {"model": "other"})


def test_progress_counts_down_to_nothing():
    progress = Progress(PLAN, STAGES)
    for _, stage in STAGES:
        for turn in PLAN.turns(2, stage):
            minutes = progress.add(turn, PLAN.contenders(stage, [SHALLOW, DEEP, SLOW]))
            assert minutes >= 0
    assert minutes == 0


def test_turns_that_warm_up_do_not_count(tmp_path):
    results = Results(tmp_path / "m.jsonl", {})
    for turn in PLAN.turns(1, "a"):
        results.add(Measurement(turn, AUTO, 1, 1.0))
    assert len(results.of(1, "a")) == PLAN.num_turns


def test_all_contenders_of_a_turn_get_the_same_prompts():
    subject = Subject("m", None, (1,), {"a": Texts([[i] for i in range(9)])}, "float32", 1)
    turn = next(iter(Plan((1,), (2,), {"a": True}, batches_per_phase=1).turns(2, "a")))
    assert prompts_of(subject, turn, 0) == [[[0], [1]]]
    assert prompts_of(subject, turn._replace(number=0), 0) == [[[2], [3]]]


@pytest.mark.parametrize("argv", [["fine-tuned"], ["trained", "--checkpoint", "x"]])
def test_a_checkpoint_goes_with_the_fine_tuned_model(argv, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(argv)
    assert "--checkpoint goes with" in capsys.readouterr().err


def test_texts_must_fit_the_engines(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["trained", "--max-tokens", "200"])
    assert "must be at most 185" in capsys.readouterr().err
