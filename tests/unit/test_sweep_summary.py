"""What a sweep's measurements say: medians, best pairs, settings, command, table, picture."""

import shlex

import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

from layerskip_vllm import plugin
from layerskip_vllm.checkpoint.settings import CheckpointSettings
from layerskip_vllm.sweep.heat_map import draw
from layerskip_vllm.sweep.plan import EngineSetup
from layerskip_vllm.sweep.report import conclusions, markdown
from layerskip_vllm.sweep.summary import Pair, Summary, serve_command
from tests.sweeps import plain, self_speculating

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def two_batches():
    """(4, 2) is fastest at batch 1, (8, 1) at batch 4 and over both."""
    return Summary(
        [
            plain(),
            plain(batch_size=4),
            self_speculating(4, 2, 1.5),
            self_speculating(4, 2, 0.8, batch_size=4),
            self_speculating(8, 1, 1.3, acceptance=0.9),
            self_speculating(8, 1, 1.2, batch_size=4, acceptance=0.7),
        ]
    )


def test_the_median_over_the_rounds_counts():
    rounds = [
        self_speculating(4, 2, speedup, round_index=i) for i, speedup in enumerate((1.2, 9.0, 1.3))
    ]
    cell = Summary([plain(), *rounds]).cell(Pair(EngineSetup(4), 2), 1)
    assert cell.speedup.median == pytest.approx(1.3)
    assert cell.num_rounds == 3


def test_the_best_pair_is_that_of_the_batch_size(two_batches):
    assert two_batches.best(1) == Pair(EngineSetup(4), 2)
    assert two_batches.best(4) == Pair(EngineSetup(8), 1)


def test_the_best_overall_has_the_highest_geometric_mean(two_batches):
    assert two_batches.best_overall == Pair(EngineSetup(8), 1)
    assert two_batches.mean_speedup(Pair(EngineSetup(4), 2)) == pytest.approx((1.5 * 0.8) ** 0.5)


def test_a_pair_that_lacks_a_batch_size_is_not_the_best_overall():
    summary = Summary(
        [
            *(plain(), plain(batch_size=4), self_speculating(2, 1, 3.0)),
            *(self_speculating(4, 1, 1.1), self_speculating(4, 1, 1.1, batch_size=4)),
        ]
    )
    assert summary.best_overall == Pair(EngineSetup(4), 1)


def test_the_cheaper_of_equal_pairs_is_the_best():
    pairs = [(8, 1), (4, 3), (4, 2)]
    summary = Summary([plain(), *(self_speculating(e, k, 1.2) for e, k in pairs)])
    assert summary.best(1) == Pair(EngineSetup(4), 2)


def test_the_settings_name_the_best_exits_and_their_acceptance(two_batches):
    assert two_batches.settings(num_layers=16) == CheckpointSettings(
        exit_layers=(8, 4), num_speculative_tokens=1, acceptance_rate=(0.8, 0.5)
    )


def test_the_settings_are_of_the_best_vocabulary_and_name_no_neighbours():
    summary = Summary(
        [
            plain(),
            self_speculating(4, 2, 1.4),
            self_speculating(4, 2, 1.5, draft_vocab_size=64, acceptance=0.25),
            self_speculating(5, 2, 1.45, draft_vocab_size=64),
        ]
    )
    assert summary.settings(num_layers=16) == CheckpointSettings(
        (4,), num_speculative_tokens=2, acceptance_rate=(0.25,), draft_vocab_size=64
    )


def test_where_no_pair_beats_plain_there_is_nothing_to_save_and_the_report_says_so():
    summary = Summary([plain(), self_speculating(4, 2, 0.9)])
    assert summary.settings(num_layers=16) is None
    assert conclusions(summary)[-1].startswith("No pair beats plain vLLM")


def test_the_last_lines_name_the_best_of_each_batch_size_and_of_all(two_batches):
    first, second, overall, *_ = conclusions(two_batches)
    assert first.startswith("Best at batch 1: self:4, K=2: 1.50x plain vLLM")
    assert second.startswith("Best at batch 4: self:8, K=1: 1.20x plain vLLM")
    assert overall == "Best overall: self:8, K=1: 1.25x (geometric mean over the batch sizes)."


@pytest.mark.parametrize(
    ("best", "hint"),
    [
        ((4, 2), None),
        ((2, 2), "--exit-layers below 2"),
        ((6, 2), "--exit-layers above 6"),
        ((4, 3), "--num-speculative-tokens above 3"),
        ((2, 3), "--exit-layers below 2 and --num-speculative-tokens above 3"),
    ],
)
def test_a_best_pair_at_the_edge_of_the_grid_is_pointed_out(best, hint):
    pairs = [(e, k) for e in (2, 4, 6) for k in (1, 2, 3)]
    entries = [self_speculating(e, k, 1.5 if (e, k) == best else 1.1) for e, k in pairs]
    last = conclusions(Summary([plain(), *entries]))[-1]
    if hint is None:
        assert last.startswith("Best overall")
    else:
        assert last == f"It is at the edge of what was measured: try {hint} too."


def test_the_page_holds_every_pair_and_marks_the_best(two_batches):
    page = markdown("m", two_batches, {"model": "m"}, "vllm serve m")
    assert (
        "| 4 | 2 | all | **1.50 (1.50 to 1.50)** | 15.0 (15.0 to 15.0) | 25 % | 1.50 | 1 |" in page
    )
    assert "| 8 | 1 | all | 1.30 (1.30 to 1.30) | 13.0 (13.0 to 13.0) | 90 % | 1.90 | 1 |" in page
    assert page.count("**") == 4
    assert "```\nvllm serve m\n```" in page


def test_the_heat_map_is_a_png_also_with_gaps_and_odd_names(tmp_path):
    summary = Summary(
        [
            *(plain(), plain(batch_size=4), self_speculating(4, 2, 1.5)),
            self_speculating(8, 1, 0.5, batch_size=4, draft_vocab_size=64),
        ]
    )
    draw("a$b_c$ 中", summary, "on a CPU", tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(PNG_SIGNATURE)


def test_the_command_quotes_and_carries_the_flags():
    command = serve_command("my model", Pair(EngineSetup(8), 3), ["--dtype", "float32"])
    assert command == (
        "vllm serve 'my model' --dtype float32 --speculative-model self:8 "
        "--num-speculative-tokens 3"
    )
    assert serve_command("m", None, ["--dtype", "float32"]) == "vllm serve m --dtype float32"


def test_vllm_takes_the_command_with_a_draft_vocabulary():
    plugin.register()
    words = shlex.split(serve_command("m", Pair(EngineSetup(8, 64), 3), vocab_counts="c.json"))
    args = EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(words[3:])
    options = {"draft_vocab_size": 64, "draft_vocab_counts": "c.json"}
    assert args.additional_config == {"layerskip": options}
    assert (args.spec_model, args.spec_tokens) == ("self:8", 3)
