"""The demo's figures, replay, screen and picture, from recorded streams."""

import io
import xml.etree.ElementTree as ET

import pytest
from rich.console import Console

from layerskip_vllm.demo.comparison import Figures, Round, median_round
from layerskip_vllm.demo.method import hardware, method
from layerskip_vllm.demo.models import MODELS, Prompt
from layerskip_vllm.demo.race import Lane, photo_finish, replay
from layerskip_vllm.demo.report import report, save_picture
from layerskip_vllm.demo.screen import BODY_LINES, LaneFrame, LogTail, Screen, frame
from layerskip_vllm.demo.streams import Chunk, Stream
from layerskip_vllm.measure.decoding import DraftCounts

PROMPTS = [
    Prompt("torch/_inductor/package/package_of_a_long_name.py", "import torch\ndef f():\n    "),
    Prompt("b.py", "x"),
]


def stream(seconds: float, text: str = "abcd", drafts: DraftCounts | None = None) -> Stream:
    """One token for each letter, evenly spaced."""
    chunks = [
        Chunk(seconds * number / len(text), letter, number)
        for number, letter in enumerate(text, start=1)
    ]
    return Stream(chunks, drafts or DraftCounts())


def rounds_of(*times: tuple[float, float]) -> list[Round]:
    """One prompt in each round; its plain and its self-speculative seconds."""
    return [Round([stream(plain)], [stream(speculated)]) for plain, speculated in times]


def shown(*parts: object, width: int = 100) -> str:
    screen = io.StringIO()
    console = Console(file=screen, width=width)
    for part in parts:
        console.print(part)
    return screen.getvalue()


def test_speeds_are_medians_and_speed_ups_are_of_the_same_round():
    figures = Figures.of(rounds_of((4, 1), (2, 2), (1, 0.8)))
    assert figures.plain_tokens_per_s == 2
    assert figures.self_tokens_per_s == 4
    speed_up = figures.speed_up  # of 1, 1.25 and 4
    assert speed_up.median == 1.25
    assert (speed_up.min, speed_up.max) == (1, 4)
    assert (speed_up.low_quartile, speed_up.high_quartile) == (1.125, 2.625)


def test_a_slow_round_of_both_sides_leaves_the_speed_up_as_it_is():
    figures = Figures.of(rounds_of((3, 2), (30, 20), (3, 2)))
    assert figures.speed_up.min == figures.speed_up.max == 1.5


def test_prompts_of_a_round_are_added_before_the_ratio():
    of_two = Round([stream(1), stream(5)], [stream(1), stream(2)])
    assert of_two.speed_up == 2
    assert of_two.only(1).speed_up == 2.5


def test_drafts_of_all_rounds_are_added():
    counts = [DraftCounts(2, 6, 3), DraftCounts(2, 4, 3)]
    rounds = [Round([stream(1)], [stream(1, drafts=each)]) for each in counts]
    drafts = Figures.of(rounds).drafts
    assert drafts.acceptance_rate == 0.6
    assert drafts.mean_acceptance_length == 2.5


def test_one_text_that_differs_in_one_round_is_noticed():
    same = Round([stream(1)], [stream(1)])
    other = Round([stream(1)], [stream(1, "abce")])
    assert Figures.of([same, same]).same_text
    assert not Figures.of([same, other]).same_text


def test_the_round_to_replay_has_the_median_speed_up():
    assert median_round(rounds_of((4, 1), (3, 1), (2, 1))) == 1


@pytest.mark.parametrize(
    ("seconds", "text", "num_tokens"),
    [
        (0.9, "", 0),
        (1.0, "a", 1),
        (3.5, "abc", 3),
        (4.5, "abcd", 4),
        (6.0, "abcdef", 6),
        (99.0, "abcdef", 6),
    ],
)
def test_a_frame_holds_what_was_streamed_until_then(seconds, text, num_tokens):
    lane = Lane("plain", PROMPTS, [stream(4), stream(2, "ef")]).at(seconds)
    expected = f"{PROMPTS[0].name}\n    {text[:4]}\n\n"
    if seconds > 4:
        expected += f"b.py\nx{text[4:]}\n\n"
    assert str(lane.body) == expected
    assert (lane.num_tokens, lane.max_tokens) == (num_tokens, 6)
    assert lane.seconds == min(seconds, 6)


def test_the_photo_finish_is_when_the_faster_lane_ends():
    race = [Lane("plain", PROMPTS[:1], [stream(4)]), Lane("self", PROMPTS[:1], [stream(2)])]
    assert [lane.num_tokens for lane in photo_finish(race)] == [2, 4]


def test_the_replay_follows_the_clock_and_ends_with_both_texts():
    race = [Lane("plain", PROMPTS[:1], [stream(0.4)]), Lane("self", PROMPTS[:1], [stream(0.2)])]
    now, counts = [100.0], []

    def sleep(seconds: float) -> None:
        counts.append(tuple(lane.num_tokens for lane in screen.lanes))
        now[0] += seconds

    screen = Screen(Console(file=io.StringIO()), [])
    replay(screen, race, clock=lambda: now[0], sleep=sleep)
    assert counts[0] == (0, 0)
    assert (2, 4) in counts
    assert counts[-1] == (4, 4)
    assert counts == sorted(counts)
    assert now[0] == pytest.approx(100.44, abs=0.05)


def test_panels_keep_their_height_and_show_the_end_of_a_long_text():
    lines = "\n".join(f"line {number} " + "x" * 200 for number in range(40))
    lane = Lane("plain", PROMPTS[1:], [stream(1, lines)])
    start, end = (shown(frame([lane.at(at), lane.at(at)], "caption")) for at in (0, 1))
    assert start.count("\n") == end.count("\n") == BODY_LINES + 5
    assert "line 39" in end
    assert "line 25" not in end
    assert f"{len(lines):4} tokens   1.0 s" in end


def test_a_starting_server_shows_the_end_of_its_log(tmp_path):
    log = tmp_path / "server.log"
    log.write_text("old\n" * 99 + "\x1b[36m(APIServer)\x1b[0m ready\n")
    assert "│ (APIServer) ready " in shown(frame([LaneFrame("plain", LogTail(log))], ""))


def test_without_a_terminal_only_plain_lines_are_printed():
    printed = io.StringIO()
    with Screen(Console(file=printed, width=80), [LaneFrame("plain")]) as screen:
        screen.say("1 of 2 rounds measured " + "1.00x " * 20)
        screen.draw([LaneFrame("self")])
    assert printed.getvalue() == "1 of 2 rounds measured " + "1.00x " * 20 + "\n"


def test_figures_are_whole_at_80_columns():
    plain = stream(96 / 1181.4, "a" * 96)
    speculated = stream(96 / 1417.7, "a" * 96, DraftCounts(25, 96, 71))
    summary = report("Measured.", PROMPTS[:1], "self:auto", [Round([plain], [speculated])] * 3)
    text = shown(summary, width=80)
    row = next(line for line in text.splitlines() if "torch/" in line)
    expected = ["96", "1181", "1418", "1.20", "[1.20,", "1.20]", "74", "%", "3.84", "yes"]
    assert row.split()[1:] == expected
    for word in ("tokens", "plain", "self:auto", "speed-up", "accepted", "length", "same"):
        assert word in text


def test_the_picture_holds_race_and_table_and_loads_nothing(tmp_path):
    rounds = rounds_of((4, 2), (4, 2))
    race = [
        Lane("plain vLLM", PROMPTS[:1], rounds[0].plain),
        Lane("vLLM, self:auto", PROMPTS[:1], rounds[0].speculated),
    ]
    summary = report("Measured with care.", PROMPTS[:1], "self:auto", rounds)
    save_picture(tmp_path / "demo.svg", frame(photo_finish(race), "Replay"), summary)
    picture = (tmp_path / "demo.svg").read_text()
    text = " ".join("".join(ET.fromstring(picture).itertext()).replace("\xa0", " ").split())
    for expected in ("plain vLLM", "vLLM, self:auto", "Replay", "2.00 [2.00, 2.00]", "with care."):
        assert expected in text
    assert "url(http" not in picture
    assert "@font-face" not in picture


def test_the_method_names_what_was_measured():
    log = "(EngineCore pid=1) INFO omp.py:185] \tlocal_rank=0, core ids=[0, 1, 2]"
    text = method(MODELS["python-10m"], num_prompts=3, num_rounds=9, log=log)
    for expected in (
        "layerskip-python-10m",
        "float32",
        "greedy",
        "3 prompts",
        "9 rounds",
        "vLLM 0.",
    ):
        assert expected in text
    assert ", the engine on 3 of them" in hardware(log)
    assert "the engine" not in hardware("")
