"""Which turns a sweep takes, in which order, and what a rerun has left."""

from layerskip_vllm.sweep.plan import MIN_TEXTS, PLAIN, EngineSetup, Plan, Turn, schedule

PLAN = Plan(exit_layers=[2, 4], draft_lengths=[1, 3], batch_sizes=[1, 4], num_rounds=2)


def names(turns: list[Turn]) -> list[str]:
    """E of each turn, `p` for plain, once per start of an engine."""
    every = ["p" if t.setup == PLAIN else str(t.setup.exit_layer) for t in turns]
    return [name for i, name in enumerate(every) if i == 0 or name != every[i - 1]]


def test_a_round_measures_everything_once():
    turns = PLAN.turns()
    assert len(set(turns)) == len(turns) == 2 * 2 * 2 * 2
    vocabularies = Plan([2], [1], draft_vocab_sizes=[None, 64], num_rounds=1)
    assert [turn.setup for turn in vocabularies.turns()] == [EngineSetup(2), EngineSetup(2, 64)]


def test_every_other_round_runs_backwards_and_plain_comes_first_in_each():
    assert names(schedule(PLAN, set(), all_alive=False)) == ["p", "2", "4", "p", "4", "2"]


def test_plain_is_measured_at_each_batch_size_of_a_round():
    turns = schedule(PLAN, set(), all_alive=False)
    assert turns[:2] == [Turn(0, PLAIN, 0, 1), Turn(0, PLAIN, 0, 4)]
    assert sum(turn.setup == PLAIN for turn in turns) == 4


def test_plain_comes_before_each_engine_where_all_stay_alive():
    expected = ["p", "2", "p", "4", "p", "4", "p", "2"]
    assert names(schedule(PLAN, set(), all_alive=True)) == expected


def test_each_turn_follows_a_plain_turn_of_its_round_and_batch_size():
    done = set(PLAN.turns()[3:9])
    for all_alive in (False, True):
        seen: set[tuple[int, int]] = set()
        for turn in schedule(PLAN, done, all_alive):
            if turn.setup == PLAIN:
                seen.add((turn.round_index, turn.batch_size))
            assert (turn.round_index, turn.batch_size) in seen


def test_a_rerun_takes_only_what_is_left_and_plain_for_it():
    done = set(PLAN.turns()) - {Turn(1, EngineSetup(4), 3, 4)}
    assert schedule(PLAN, done, all_alive=False) == [
        Turn(1, PLAIN, 0, 4),
        Turn(1, EngineSetup(4), 3, 4),
    ]
    assert schedule(PLAN, PLAN.turns(), all_alive=False) == []


def test_all_turns_of_a_round_and_batch_size_read_the_same_prompts():
    prompts = [[i] for i in range(6)]
    batches = Turn(0, EngineSetup(2), 1, 1).prompts(prompts)
    assert batches == [[[0]], [[1]], [[2]], [[3]]]
    assert Turn(0, PLAIN, 0, 1).prompts(prompts) == batches
    assert Turn(1, EngineSetup(4), 3, 1).prompts(prompts) == [[[4]], [[5]], [[0]], [[1]]]


def test_a_measurement_reads_enough_prompts_at_any_batch_size():
    prompts = [[0], [1], [2]]
    for batch_size in (1, 3, 4, 7):
        batches = Turn(0, PLAIN, 0, batch_size).prompts(prompts)
        assert all(len(batch) == batch_size for batch in batches)
        assert sum(map(len, batches)) >= MIN_TEXTS
