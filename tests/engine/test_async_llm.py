"""Sessions through `AsyncLLM`, whose engine has a process of its own."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.protocol import StreamingInput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from tests.engine.engines import close, make_llm
from tests.engine.sessions import STOPS, Answer, Turns, converse, turns
from tests.options import FIXED

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(random_llama):
    """Every draft is accepted, so answers end inside a run."""
    return random_llama(late_from=4, late_scale=0.0)


def deltas(max_tokens: int, **options) -> SamplingParams:
    """A session's outputs may not wait for its end."""
    return SamplingParams(
        temperature=0, max_tokens=max_tokens, output_kind=RequestOutputKind.DELTA, **options
    )


def conversations() -> list[Turns]:
    """Answers that end at `max_tokens` or at a stop token, anywhere in a step."""
    lengths = [[40, 12, 12], [40, 20, 20], [40, 1, 1]]
    limited = [turns(lengths[0], deltas(n, ignore_eos=True), seed=n) for n in (2, 3, 4, 5, 6)]
    stopped = [
        turns(some, deltas(20, stop_token_ids=STOPS), seed=seed)
        for seed, some in enumerate(lengths)
    ]
    return limited + stopped


async def inputs(session: Turns, answered: asyncio.Semaphore) -> AsyncGenerator[StreamingInput]:
    """Send each input after the answer to the last one."""
    for token_ids, params in session:
        # vLLM extends the list that it is given by what follows.
        yield StreamingInput(prompt={"prompt_token_ids": list(token_ids)}, sampling_params=params)
        await answered.acquire()


async def hold(engine: AsyncLLM, request_id: str, session: Turns) -> list[Answer]:
    """Hold a session; returns its answers."""
    answered = asyncio.Semaphore(0)
    answers = [Answer()]
    async for output in engine.generate(inputs(session, answered), session[0][1], request_id):
        (completion,) = output.outputs
        answers[-1].token_ids.extend(completion.token_ids)
        if completion.finish_reason is not None and len(answers) <= len(session):
            answers[-1].finish_reason = completion.finish_reason
            answers.append(Answer())
            answered.release()
    return answers[:-1]


async def hold_all(model: str, sessions: Sequence[Turns]) -> list[list[Answer]]:
    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model,
            dtype="float32",
            enforce_eager=True,
            max_model_len=256,
            kv_cache_memory_bytes=64 << 20,
            block_size=32,
            spec_model="self:4",
            spec_tokens=4,
            additional_config={"layerskip": FIXED},
        )
    )
    try:
        held = (hold(engine, str(n), session) for n, session in enumerate(sessions))
        return await asyncio.wait_for(asyncio.gather(*held), timeout=120)
    finally:
        engine.shutdown()


def test_sessions_give_plain_decodings_answers(model):
    sessions = conversations()
    plain = make_llm(model)
    expected = converse(plain, sessions)
    close(plain)
    assert asyncio.run(hold_all(model, sessions)) == expected
    assert {answer.finish_reason for answers in expected for answer in answers} == {
        "length",
        "stop",
    }
