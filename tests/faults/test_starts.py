"""Servers that cannot start, or barely can, behave like plain vLLM, and the next start works."""

import os
import shutil
import time
from pathlib import Path

import pytest

from layerskip_vllm.measure.server import START_LIMIT_S
from tests.faults.watched import Ending, errors_in, side_by_side, watched
from tests.parallel.hosts import skip_reason
from tests.server.servers import ENGINE_FLAGS

WEIGHTS = "model.safetensors"


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sound_model(random_llama):
    return random_llama(num_layers=6, late_scale=0.3)


@pytest.fixture
def model(sound_model, tmp_path):
    """A copy that a test may corrupt."""
    return Path(shutil.copytree(sound_model, tmp_path / "model"))


def failed_start(model, directory, *flags):
    """`happen` for `side_by_side`: a start that must fail with an error."""

    def happen(speculation) -> Ending:
        with watched(str(model), *flags, *speculation, directory=directory) as server:
            deadline = time.monotonic() + START_LIMIT_S
            while (exit_code := server.process.poll()) is None:
                assert time.monotonic() < deadline, server.log[-3000:]
                server.look_at_segments()
                time.sleep(0.2)
            return Ending(exit_code, errors_in(server.log), tuple(server.leftovers()))

    return happen


def assert_refused_alike(plain: Ending, ours: Ending, message: str) -> None:
    """Both fail with the same message and leave nothing behind."""
    assert ours.behaviour == plain.behaviour
    assert ours.exit_code != 0
    assert ours.leftovers == ()
    for ending in (plain, ours):
        assert any(message in error for error in ending.errors), ending.errors


@pytest.mark.parametrize(
    ("num_bytes", "message"),
    [
        pytest.param(1 << 50, "is less than requested memory for kv", id="more than there is"),
        pytest.param(1 << 18, "is larger than the available KV cache", id="too little to serve"),
    ],
)
def test_a_kv_cache_of_the_wrong_size(sound_model, tmp_path, num_bytes, message):
    flags = ("--kv-cache-memory-bytes", str(num_bytes))
    plain, ours = side_by_side(failed_start(sound_model, tmp_path, *flags))
    assert_refused_alike(plain, ours, message)
    errors = [{e for e in ending.errors if e.startswith("ValueError")} for ending in (plain, ours)]
    assert errors[0] == errors[1]


def truncate(weights: Path) -> None:
    os.truncate(weights, weights.stat().st_size // 2)


def overwrite_header(weights: Path) -> None:
    """Overwrite the header, since the weights themselves have no checksum."""
    with weights.open("r+b") as file:
        file.seek(8)
        file.write(b"\xff" * 64)


@pytest.mark.parametrize("corrupt", [truncate, overwrite_header])
def test_a_corrupt_checkpoint(sound_model, model, tmp_path, corrupt):
    corrupt(model / WEIGHTS)
    plain, ours = side_by_side(failed_start(model, tmp_path))
    assert_refused_alike(plain, ours, "SafetensorError")
    # With the file repaired, the same command serves.
    shutil.copyfile(Path(sound_model) / WEIGHTS, model / WEIGHTS)
    with watched(str(model), "--speculative-model", "self:4", directory=tmp_path) as server:
        server.wait_until_ready()
        server.complete()


MOUNTED = 'mount -t tmpfs -o size=64k tmpfs "$0" && exec "$@"'
"""Runs a command with a 64 kB disk mounted."""


@pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason()))
def test_a_full_disk_for_the_compile_cache(sound_model, tmp_path):
    """vLLM may serve or give up, but both servers must do the same."""
    caches = [tmp_path / name for name in ("plain", "ours")]
    compiled = [flag for flag in ENGINE_FLAGS if flag != "--enforce-eager"]

    def start(speculation, prefix, cache):
        variables = {
            "VLLM_CACHE_ROOT": str(cache),
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        }
        return watched(
            str(sound_model),
            *speculation,
            directory=tmp_path,
            engine_flags=compiled,
            prefix=prefix,
            **variables,
        )

    def happen(speculation) -> tuple[Ending, str | None]:
        cache = caches[bool(speculation)]
        cache.mkdir()
        full = ["unshare", "--mount", "--propagation", "private", "sh", "-c", MOUNTED, str(cache)]
        with start(speculation, full, cache) as server:
            try:
                server.wait_until_ready()
                answer = server.complete()
            except RuntimeError:  # it ended
                answer = None
            ended = Ending(server.process.poll(), errors_in(server.log), ())
        with start(speculation, (), cache) as again:
            again.wait_until_ready()
            assert answer in (None, again.complete())
        return ended, answer

    (plain, plain_answer), (ours, our_answer) = side_by_side(happen)
    assert our_answer == plain_answer
    assert ours.behaviour == plain.behaviour
    full_disk = "No space left on device"
    assert any(full_disk in e for e in ours.errors) == any(full_disk in e for e in plain.errors)
