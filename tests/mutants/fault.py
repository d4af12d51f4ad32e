"""A fault that the tests must notice."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A text of the package, its faulty replacement, and the tests that must fail."""

    name: str
    file: str
    """Under layerskip_vllm/."""
    right: str
    wrong: str
    tests: tuple[str, ...]
    """Arguments of pytest, under tests/."""
    runner: str = "v1"
    """vLLM's model runner that the tests run on; see tests/runner_v2.py."""
