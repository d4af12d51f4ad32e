"""A mixed load: arrival times and counts."""

from types import SimpleNamespace

import pytest

from benchmarks.load import Arrival, arrivals, measure_load
from benchmarks.mixed_load import markdown, parse_arguments

PROMPTS = [[1], [2], [3]]


def drawn(**changes):
    settings = {
        "num_requests": 200,
        "interval_s": 0.5,
        "max_tokens": 10,
        "poisson": True,
        "seed": 0,
    }
    return arrivals(PROMPTS, **(settings | changes))


def test_equal_seeds_draw_equal_loads():
    assert drawn() == drawn()
    assert drawn() != drawn(seed=1)


def test_fixed_arrivals_are_equally_far_apart():
    assert [arrival.at_s for arrival in drawn(poisson=False)[:4]] == [0, 0.5, 1, 1.5]


def test_poisson_arrivals_have_the_interval_on_average():
    assert drawn(num_requests=2000)[-1].at_s / 1999 == pytest.approx(0.5, rel=0.1)


def test_requests_have_between_half_and_all_of_the_tokens():
    assert {arrival.max_tokens for arrival in drawn()} == set(range(5, 11))


class Engine:
    """Gives every running request one token per step."""

    def __init__(self):
        self.engine, self.running, self.most = self, {}, 0

    def has_unfinished_requests(self):
        return bool(self.running)

    def add(self, prompts, max_tokens):
        (prompt,) = prompts
        self.running[str(prompt[0])] = max_tokens
        return [str(prompt[0])]

    def step(self):
        self.most = max(self.most, len(self.running))
        outputs = []
        for req_id in list(self.running):
            self.running[req_id] -= 1
            finished = not self.running[req_id]
            if finished:
                del self.running[req_id]
            outputs.append(
                SimpleNamespace(
                    request_id=req_id,
                    finished=finished,
                    outputs=[SimpleNamespace(token_ids=[int(req_id)])],
                    metrics=SimpleNamespace(first_token_ts=1.0, last_token_ts=3.0),
                )
            )
        return outputs


def test_requests_that_arrive_together_run_together():
    engine = Engine()
    found = measure_load(engine, [Arrival(0.0, [1], 3), Arrival(0.0, [2], 5)])
    assert found.token_ids == [[1] * 3, [2] * 5]
    assert found.time_per_output_token_ms == 1000 * (2 / 2 + 2 / 4) / 2
    assert engine.most == 2


def test_a_request_is_not_added_before_it_arrives():
    engine = Engine()
    found = measure_load(engine, [Arrival(0.0, [1], 3), Arrival(0.1, [2], 5)])
    assert engine.most == 1
    assert found.tokens_per_s < 8 / 0.1


def test_a_table_shows_ratios_to_the_first_system():
    one, other = (
        SimpleNamespace(tokens_per_s=speed, time_per_output_token_ms=1.0, token_ids=[[speed]])
        for speed in (10.0, 20.0)
    )
    lines = markdown({"plain": [one], "self": [other]}).splitlines()
    assert lines[3].split(" | ")[2] == "2.000 [2.000, 2.000]"
    assert lines[3].endswith("| 0 of 1 |")


def test_transformers_systems_are_refused(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--system", "transformers"])
    assert "invalid choice" in capsys.readouterr().err
