"""A server's answer to a streamed request, and differences between two servers' answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import openai

from tests.stress.jobs import Job

LOGPROB_TOLERANCE = 1e-4

TIE = 1e-4
"""Two tokens are tied if their log-probabilities differ by no more, within float32's rounding.

Stock vLLM also chooses between such tokens by the other requests in the batch: the number of rows
decides which kernel sums a product, and in which order.
"""


@dataclass
class Choice:
    """One completion, put together from its chunks."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def add(self, chunk) -> None:
        self.token_ids += getattr(chunk, "token_ids", None) or []
        self.text += chunk.text
        self.logprobs += chunk.logprobs.token_logprobs if chunk.logprobs else []
        self.finish_reason = self.finish_reason or chunk.finish_reason
        self.stop_reason = self.stop_reason or getattr(chunk, "stop_reason", None)


@dataclass
class Answer:
    """All choices of a request, by index."""

    choices: dict[int, Choice] = field(default_factory=dict)
    usage: dict | None = None
    is_aborted: bool = False

    @property
    def num_tokens(self) -> int:
        return sum(len(choice.token_ids) for choice in self.choices.values())


async def ask(client: openai.AsyncOpenAI, model: str, job: Job) -> Answer:
    """Stream a request to its end, or until its client hangs up."""
    answer = Answer()
    stream = await client.completions.create(
        model=model, stream=True, stream_options={"include_usage": True}, **job.request()
    )
    async for chunk in stream:
        for choice in chunk.choices:
            answer.choices.setdefault(choice.index, Choice()).add(choice)
        if chunk.usage is not None:
            answer.usage = chunk.usage.model_dump()
        elif job.abort_after is not None and answer.num_tokens >= job.abort_after:
            answer.is_aborted = True
            await stream.close()
            break
    return answer


class Difference(NamedTuple):
    """A difference between two answers to a request."""

    what: str
    choice: int
    position: int | None = None  # of the first token that differs
    plain: object = None
    speculating: object = None


def differences(plain: Answer, speculating: Answer) -> list[Difference]:
    """Compare what both clients received; an aborted answer only as far as it goes."""
    found = []
    in_both = plain.choices.keys() & speculating.choices.keys()
    whole = not (plain.is_aborted or speculating.is_aborted)
    if whole and plain.choices.keys() != speculating.choices.keys():
        found.append(Difference("choices", -1, None, [*plain.choices], [*speculating.choices]))
    for index in sorted(in_both):
        one, other = plain.choices[index], speculating.choices[index]
        position = _first_different_token(one.token_ids, other.token_ids)
        if position is not None:
            token_ids = (one.token_ids[position], other.token_ids[position])
            found.append(Difference("token", index, position, *token_ids))
        elif whole:
            found += _differences_of_whole(index, one, other)
    if whole and not found and plain.usage != speculating.usage:
        found.append(Difference("usage", -1, None, plain.usage, speculating.usage))
    return found


def _first_different_token(one: list[int], other: list[int]) -> int | None:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), None)


def _differences_of_whole(index: int, one: Choice, other: Choice) -> list[Difference]:
    fields = ("token_ids", "text", "finish_reason", "stop_reason")
    found = [
        Difference(name, index, None, getattr(one, name), getattr(other, name))
        for name in fields
        if getattr(one, name) != getattr(other, name)
    ]
    distances = [abs(a - b) for a, b in zip(one.logprobs, other.logprobs, strict=False)]
    if len(one.logprobs) != len(other.logprobs) or max(distances, default=0) > LOGPROB_TOLERANCE:
        found.append(Difference("logprobs", index, None, one.logprobs, other.logprobs))
    return found


def tie_request(job: Job, prefix: list[int]) -> dict:
    """A request for the token after `prefix`, with the logprobs of the five most likely ones."""
    num_tokens = len(prefix) + 1
    extra = dict(job.request()["extra_body"])
    if "min_tokens" in extra:
        extra["min_tokens"] = min(extra["min_tokens"], num_tokens)
    return job.request(max_tokens=num_tokens, n=1, logprobs=5, extra_body=extra)


def is_tie(choice, prefix: list[int], difference: Difference) -> bool:
    """Whether both tokens have the same probability on the plain server, for this request alone.

    Both servers generated `prefix` before. The log-probabilities include penalties and biases
    (`--logprobs-mode`), as in the server's choice.
    """
    if choice.token_ids[:-1] != prefix:
        return False  # it diverged earlier
    top = choice.logprobs.top_logprobs[-1]
    token_ids = (difference.plain, difference.speculating)
    logprobs = [top.get(f"token_id:{token_id}") for token_id in token_ids]
    return None not in logprobs and abs(logprobs[0] - logprobs[1]) <= TIE
