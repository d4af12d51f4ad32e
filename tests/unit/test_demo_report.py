"""The demo's table on a narrow screen."""

import io

from rich.console import Console

from layerskip_vllm.demo.models import Prompt
from layerskip_vllm.demo.report import Completion, report


def test_figures_are_whole_at_80_columns():
    screen = io.StringIO()
    plain = Completion("a", 96, 96 / 1181.4, 0, 0, 0)
    self_ = Completion("a", 96, 96 / 1234.5, 25, 96, 71)
    prompt = Prompt("torch/_inductor/package/package_of_a_long_name.py", "def f():\n")
    report(Console(file=screen, width=80), [prompt], [plain], [self_])
    row = next(line for line in screen.getvalue().splitlines() if "torch/" in line)
    assert row.split()[1:] == ["96", "1181.4", "1234.5", "1.04", "74", "%", "3.84", "yes"]
    for word in ("tokens", "plain", "speed-up", "accepted", "length", "same"):
        assert word in screen.getvalue()
