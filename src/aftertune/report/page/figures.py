"""Charts as the page has them: each drawn for a wide and for a narrow screen, with the key of its lines.

    figure(lambda width: forest(comparison, width), "Mark: difference; …")      None where there is nothing to draw
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from markupsafe import Markup

from aftertune.report import formatting as fmt
from aftertune.report.badges import legend
from aftertune.report.charts import STYLES, balance_chart, balance_panels, factor_chart, swatch
from aftertune.report.factors import Factor, factors
from aftertune.report.facts import method_text
from aftertune.report.learned_vs_forgotten import LOSS, Balance, Point, balances
from aftertune.report.names import task_title
from aftertune.report.results import TuningOutcome
from aftertune.report.table import row_label
from aftertune.values import TOLD

#: px that charts are drawn for; the page shows the one that fits.
_SIZES = (("wide", 760), ("narrow", 340))
#: The one width that is drawn where there are many charts; it fits every screen.
_ONE = (("any", 340),)
_RULES = "/* charts */\n"  # where the page has room for the styles of its charts
_MARKS = legend({"lower": "forgot on one at least", "within": "kept on all",
                 "higher": "improved on one and kept the rest", "undecided": "undecided on one at least"})
_NOUNS = {"training examples": "the number of examples", "replay share": "the share"}


@dataclass(frozen=True, slots=True)
class ChartView:
    """charts: (the screen it is for, its markup); key: (mark, name) of each line."""

    charts: tuple[tuple[str, Markup], ...]
    caption: str
    key: tuple[tuple[Markup, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PointLine:
    """A row of the table beside the balance."""

    number: int
    name: str
    comparison: str
    about: str
    learned: str
    learned_interval: str
    changed: str
    changed_interval: str
    verdict: str | None
    label: str
    where: str
    front: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceView:
    base: str
    learned: str
    changed: str
    figure: ChartView
    panels: ChartView | None
    lines: list[PointLine]


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorView:
    base: str
    name: str
    figures: list[ChartView]


def figure(draw: Callable[[int], str], caption: str, names: Sequence[str] = (), *, marked: bool = True,
           many: bool = False) -> ChartView | None:
    """The chart that ``draw`` makes, for every screen; names: of its lines, in the order of their styles; marked: the
    marks on them are theirs; many: it is one of many, and is drawn but once."""
    charts = tuple((css, Markup(svg)) for css, width in (_ONE if many else _SIZES) if (svg := draw(width)))
    key = tuple((Markup(swatch(at, marked=marked)), fmt.visible(name)) for at, name in enumerate(names))
    return ChartView(charts, caption, key) if charts else None


def balance_views(found: Sequence[TuningOutcome]) -> list[BalanceView]:
    """Learned against forgotten, a view for each base and measure."""
    views = []
    for balance in balances(found):
        whole = figure(partial(balance_chart, balance), _caption(balance))
        assert whole is not None
        views.append(BalanceView(
            base=fmt.visible(balance.base_name), learned=balance.learned, changed=balance.changed, figure=whole,
            panels=figure(partial(balance_panels, balance),
                          "The same, one benchmark at a time, each with its own verdicts and its own front."),
            lines=[_line(p, balance) for p in balance.points]))
    return views


def _caption(balance: Balance) -> str:
    names = fmt.visible(", ".join(map(task_title, balance.tasks)))
    how = (f"on {names}, with the 95 % interval" if len(balance.tasks) == 1 else
           f"on benchmarks, the unweighted mean over {names}, with the 95 % interval of that mean")
    floor = (f" Left out, because the base scores at the floor there and has nothing to lose: "
             f"{', '.join(map(task_title, balance.floor))}." if balance.floor else "")
    band = "" if balance.margin is None else f" Shaded: the margin of ±{balance.margin:.2f} points."
    return ("Each mark is one fine-tune, its number that of the table. To the right: what it learned; up: what it "
            f"changed {how}. {_MARKS}; hollow: that anything was learned is not proven. Dashed: the front, "
            "the fine-tunes that no other one beats on both sides, by the estimates."
            f"{band}{fmt.visible(floor)}")


def _line(point: Point, balance: Balance) -> PointLine:
    comparison = point.outcome.comparison
    digits = 3 if balance.measure == LOSS else 2
    worst = [r for r in point.outcome.benchmarks if r.task in balance.tasks]
    words: dict[str, list[str]] = {}
    for row in worst:
        words.setdefault(row_label(row, lineage=True), []).append(task_title(row.task))
    return PointLine(
        number=point.number, name=fmt.visible(comparison.tuned_name), comparison=comparison.id,
        about=recipe_text(point.outcome), learned=fmt.change(point.learned.value, digits),
        learned_interval=f"{fmt.change(point.learned.low, digits)} to {fmt.change(point.learned.high, digits)}",
        changed=fmt.points(point.changed.value, 1),
        changed_interval=fmt.points_interval(point.changed.low, point.changed.high, 1),
        verdict=point.verdict, label=TOLD[point.verdict] if point.verdict else fmt.DASH,
        where="; ".join(f"{word} on {', '.join(tasks)}" for word, tasks in words.items()), front=point.front)


def recipe_text(outcome: TuningOutcome) -> str:
    """Method, size, replay and seed of a fine-tune."""
    tuning = outcome.tuning
    parts = [method_text(tuning), f"{fmt.count(tuning.examples)} examples",
             *([f"replay {100 * outcome.share:g} %"] if outcome.share else []), f"seed {tuning.seed}"]
    return fmt.visible(", ".join(parts))


def factor_views(found: Sequence[TuningOutcome]) -> list[FactorView]:
    """Curves over what was varied; a figure shows as many lines as can be told apart."""
    return [FactorView(base=fmt.visible(f.base_name), name=f.name,
                       figures=[part for p in f.parts(STYLES) if (part := _factor_figure(p))]) for f in factors(found)]


def _factor_figure(factor: Factor) -> ChartView | None:
    return figure(
        partial(factor_chart, factor),
        f"Differences against {fmt.visible(factor.base_name)}; a small mark is one seed, the line joins the means over "
        "the seeds, and a bar is the 95 % interval of a model that stands alone. Shaded: the margin. The curves show "
        f"what was measured; that {_NOUNS[factor.name]} made the difference takes a comparison of recipes over three "
        "seeds or more.", factor.labels)


def with_classes(page: str) -> str:
    """The page with every style of its charts written once, as a class: what charts repeat is most of their bytes."""
    rules: dict[str, str] = {}

    def named(style: re.Match[str]) -> str:
        return f' class="{rules.setdefault(style[1], f"k{len(rules)}")}"'

    def shorter(chart: re.Match[str]) -> str:  # inside tags alone: the text between them is foreign
        return re.sub(r"<[^>]*>", lambda tag: re.sub(r' style="([^"]*)"', named, tag[0]), chart[0])

    page = re.sub(r'<svg role="img".*?</svg>', shorter, page, flags=re.S)
    before, style, after = page.partition("<style>")
    return before + style + after.replace(_RULES, "".join(f".{n} {{ {css} }}\n" for css, n in rules.items()), 1)
