"""The figures as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from benchmarks import markdown
from benchmarks.auto_vs_fixed.choices import OBSERVED
from benchmarks.auto_vs_fixed.figures import Figure, by_contender, figures
from benchmarks.auto_vs_fixed.plan import AUTO, SCREENING, Plan
from benchmarks.auto_vs_fixed.results import Measurement, Results
from layerskip_vllm.measure.spread import Spread

NUM_CHOICES = 3
"""Most frequent choices in the table."""


def report(results: Results, plan: Plan, batch_sizes: Iterable[int]) -> str:
    """All tables of the finished stages."""
    sizes = list(batch_sizes)
    return "\n\n".join(
        (
            proof([figure for size in sizes for figure in figures(results, plan, size)]),
            speeds(results, plan, sizes),
        )
    )


def proof(found: Iterable[Figure]) -> str:
    """The ratios beside their goals; a missed one is bold."""
    header = ("text", "batch", "`self:auto`, tokens/s", "rival", "ratio", "wanted")
    return markdown.table(header, [_row(figure) for figure in found])


def _row(figure: Figure) -> Sequence[str]:
    ratio = markdown.spread(figure.ratio, 3)
    return (
        *(figure.stage, str(figure.batch_size), markdown.spread(figure.auto, 1), figure.rival),
        f"**{ratio}**" if figure.is_missed else ratio,
        markdown.number(figure.wanted),
    )


def speeds(results: Results, plan: Plan, batch_sizes: Iterable[int]) -> str:
    """Median tokens/s, drafts and choices of every contender by stage and set."""
    rows = []
    for batch_size in batch_sizes:
        for stage in plan.stages:
            measured = results.of(batch_size, stage) if stage != SCREENING else []
            for text_set in dict.fromkeys(each.turn.text_set for each in measured):
                of_set = [each for each in measured if each.turn.text_set == text_set]
                where = stage if stage == text_set else f"{stage}: {text_set}"
                rows += [(where, str(batch_size), *row) for row in _speed_rows(of_set)]
    header = ("text", "batch", "system", "tokens/s", "accepted", "steps by E,K")
    return markdown.table(header, rows)


def _speed_rows(measured: Sequence[Measurement]) -> Iterable[Sequence[str]]:
    for contender, speed in by_contender(measured).items():
        mine = [each for each in measured if each.contender == contender]
        drafted = sum(each.num_drafted for each in mine)
        accepted = sum(each.num_accepted for each in mine)
        yield (
            contender.name,
            markdown.spread(Spread.of(speed), 1),
            f"{accepted / drafted:.0%}" if drafted else markdown.NOT_MEASURED,
            _choices(mine) if contender == AUTO else markdown.NOT_MEASURED,
        )


def _choices(measured: Iterable[Measurement]) -> str:
    chosen: Counter[str] = Counter()
    for each in measured:
        chosen.update(each.choices)
    observed = chosen.pop(OBSERVED, 0)
    total = max(1, chosen.total())
    common = [f"{pair} {steps / total:.0%}" for pair, steps in chosen.most_common(NUM_CHOICES)]
    return "; ".join([*common, f"{OBSERVED} {observed / total:.1%}"])
