"""Two servers of one model, measured in turns."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from layerskip_vllm.demo.comparison import Round
from layerskip_vllm.demo.models import DemoModel, Prompt
from layerskip_vllm.demo.race import transcript
from layerskip_vllm.demo.screen import LaneFrame, LogTail, Screen
from layerskip_vllm.demo.streams import Chunk, Stream, record
from layerskip_vllm.measure.server import Server, start

IDLE_AFTER_S = 1.2
"""A vLLM worker polls for its next step for 1 s and takes a core meanwhile
(`SpinCondition.busy_loop_s` in `vllm/distributed/device_communicators/shm_broadcast.py`)."""


def engine_flags(model: DemoModel) -> tuple[str, ...]:
    """Flags of both servers; compilation would take longer than the demo."""
    return (
        *("--dtype", "float32"),
        "--enforce-eager",
        *("--max-model-len", str(model.max_model_len)),
        *("--max-num-seqs", "8"),
        *("--kv-cache-memory-bytes", str(256 << 20)),
        *("--seed", "0"),
    )


@dataclass
class Session:
    """A plain and a self-speculating server, in this order, both ready."""

    servers: Sequence[Server]
    screen: Screen
    max_tokens: int
    _last_used: Server | None = None

    def warm_up(self, prompts: Sequence[Prompt]) -> None:
        """Run uncounted prompts on both, so that `self:auto` has learned when it is measured."""
        for server in self.servers:
            self._run(server, prompts)

    def measure(self, prompts: Sequence[Prompt], first: int) -> Round:
        """Run all prompts on both servers, beginning with server number `first`."""
        streams = {
            number: self._run(self.servers[number], prompts) for number in (first, 1 - first)
        }
        return Round(streams[0], streams[1])

    def _run(self, server: Server, prompts: Sequence[Prompt]) -> list[Stream]:
        if self._last_used is not server:
            time.sleep(IDLE_AFTER_S)
        self._last_used = server
        number = self.servers.index(server)
        return [
            record(server, prompt, self.max_tokens, partial(self._show, number, prompt))
            for prompt in prompts
        ]

    def _show(self, number: int, prompt: Prompt, chunks: Sequence[Chunk]) -> None:
        """Draw what server number `number` has streamed so far."""
        self.screen.lanes[number] = LaneFrame(
            self.screen.lanes[number].title,
            transcript(prompt, chunks),
            chunks[-1].num_tokens,
            self.max_tokens,
            chunks[-1].seconds,
        )


@contextmanager
def open_session(
    screen: Screen, model: DemoModel, self_flags: Sequence[str], max_tokens: int, logs: Path
) -> Iterator[Session]:
    """Start both servers at once, wait until they answer, and stop them at the end."""
    checkpoint = str(model.prepare())
    with ExitStack() as stack:
        servers = []
        for number, flags in enumerate(((), self_flags)):
            log = logs / f"server{number}.log"
            command = start(checkpoint, *engine_flags(model), *flags, log=log, env=dict(os.environ))
            servers.append(stack.enter_context(command))
            screen.lanes[number] = LaneFrame(screen.lanes[number].title, LogTail(log))
        for server in servers:
            server.wait_until_ready()
        yield Session(servers, screen, max_tokens)
