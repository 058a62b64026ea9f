"""Makes the figures of the page: each chart in two widths, with its caption and the key of its lines.

    figure(lambda width: forest(comparison, width), "Mark: the difference. …")      a ChartView; None if it is empty
    balance_views(outcomes(results))                                               "Learned against forgotten"
    factor_views(outcomes(results))                                                "Data size, replay and strength"
    position_views(comparison)                                                     the bars of each task's positions
    with_classes(html)                                                             styles of all charts as CSS classes
    with_attributes(html)                                                          the same as attributes of SVG
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

from markupsafe import Markup

from aftertune.report import formatting as fmt
from aftertune.report.badges import legend
from aftertune.report.changes import positions_of
from aftertune.report.charts import STYLES, balance_chart, balance_panels, factor_chart, patch, swatch
from aftertune.report.charts.positions import BARS, position_bars
from aftertune.report.factors import Factor, factors
from aftertune.report.facts import method_text
from aftertune.report.learned_vs_forgotten import LOSS, Balance, Point, balances
from aftertune.report.names import task_title
from aftertune.report.results import TuningOutcome
from aftertune.report.table import row_label
from aftertune.values import VERDICT_LABELS, Comparison

#: (CSS class, width in px) that charts are drawn for; the page shows the one that fits the screen.
_WIDTHS = (("wide", 760), ("narrow", 340))
#: The only width if a page has many charts; it fits every screen.
_SINGLE_WIDTH = (("any", 340),)
#: Tasks of one comparison whose positions are drawn; the table beside the charts has all.
_MOST_BARS = 12
_CSS_MARK = "/* charts */\n"  # replaced by the styles of all charts
_MARKS = legend({"lower": "forgot on at least one", "worse": "worse on at least one", "within": "kept on all",
                 "higher": "improved on at least one and kept on the others",
                 "better": "better on at least one and kept on the others",
                 "no_loss": "no loss beyond the margin on any", "undecided": "undecided on at least one"})
#: Factor -> what a comparison over seeds would test.
_CAUSES = {"training examples": "the number of examples", "replay share": "the replay share",
           "strength": "the strength"}


@dataclass(frozen=True, slots=True)
class ChartView:
    """One chart. charts: (CSS class, markup) of each width; key: (mark, name) of each line."""

    charts: tuple[tuple[str, Markup], ...]
    caption: str
    key: tuple[tuple[Markup, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceRow:
    """One fine-tune in the table of learned against forgotten. where: the tasks of each label; front: whether no other
    fine-tune has better estimates on both axes."""

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
    """Learned against forgotten, for one base. learned, changed: labels of the axes; panels: a chart for each
    benchmark, None if there is only one."""

    base: str
    learned: str
    changed: str
    figure: ChartView
    panels: ChartView | None
    rows: list[BalanceRow]


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorView:
    """The curves over one factor, such as the number of training examples."""

    base: str
    name: str
    figures: list[ChartView]


def figure(draw: Callable[[int], str], caption: str, names: Sequence[str] = (), *, marked: bool = True,
           many: bool = False) -> ChartView | None:
    """The chart that ``draw`` makes for a width in px; None if it draws nothing.

    names: of the lines, in the order of their styles. marked: whether each line has a marker of its own, which the key
    then shows. many: whether it is one of many charts, which are drawn for one width only.
    """
    charts = tuple((css, Markup(svg)) for css, width in (_SINGLE_WIDTH if many else _WIDTHS) if (svg := draw(width)))
    key = tuple((Markup(swatch(i, marked=marked)), fmt.visible(name)) for i, name in enumerate(names))
    return ChartView(charts, caption, key) if charts else None


def balance_views(outcomes: Sequence[TuningOutcome], link: Callable[[Comparison], str] | None = None
                  ) -> list[BalanceView]:
    """Learned against forgotten: a view for each base and measure of what was learned. link: address of a comparison,
    which makes the marks of the chart links."""
    views = []
    for balance in balances(outcomes):
        chart = figure(partial(balance_chart, balance, link=link), _caption(balance))
        assert chart is not None
        views.append(BalanceView(
            base=fmt.visible(balance.base_name), learned=balance.learned, changed=balance.changed, figure=chart,
            panels=figure(partial(balance_panels, balance),
                          "The same chart for each benchmark, with its verdicts and its Pareto front."),
            rows=[_balance_row(p, balance) for p in balance.points]))
    return views


def _caption(balance: Balance) -> str:
    names = fmt.visible(", ".join(map(task_title, balance.tasks)))
    change = (f"the change on {names}, with its 95 % interval" if len(balance.tasks) == 1 else
              f"the unweighted mean change over {names}, with the 95 % interval of that mean")
    floor = (f" Not included: {', '.join(map(task_title, balance.floor))}, because the base is at the floor there or "
             "not every fine-tune has a score." if balance.floor else "")
    joined = " Grey line: from a fine-tune to what was made of it without training." \
        if any(p.made_from for p in balance.points) else ""
    band = "" if balance.margin is None else f" Shaded: the margin of ±{balance.margin:.2f} points."
    return ("Each mark is one fine-tune, numbered as in the table. Horizontal axis: what it learned. Vertical axis: "
            f"{change}. {_MARKS}. Hollow mark: it is not proven that the fine-tune learned anything. Dashed line: the "
            "Pareto front, drawn through the fine-tunes that no other one beats on both axes, by the estimates."
            f"{joined}{band}{fmt.visible(floor)}")


def _balance_row(point: Point, balance: Balance) -> BalanceRow:
    comparison = point.outcome.comparison
    digits = 3 if balance.measure == LOSS else 2
    tasks_by_label: dict[str, list[str]] = {}
    for row in point.outcome.benchmarks:
        if row.task in balance.tasks:
            tasks_by_label.setdefault(row_label(row, lineage=True), []).append(task_title(row.task))
    return BalanceRow(
        number=point.number, name=fmt.visible(comparison.tuned_name), comparison=comparison.id,
        about=_about(point), learned=fmt.change(point.learned.value, digits),
        learned_interval=f"{fmt.change(point.learned.low, digits)} to {fmt.change(point.learned.high, digits)}",
        changed=fmt.points(point.changed.value, 1),
        changed_interval=fmt.points_interval(point.changed.low, point.changed.high, 1),
        verdict=point.verdict, label=VERDICT_LABELS[point.verdict] if point.verdict else fmt.DASH,
        where="; ".join(f"{label} on {', '.join(tasks)}" for label, tasks in tasks_by_label.items()), front=point.front)


def _about(point: Point) -> str:
    """The recipe of a point, and of which others it was made."""
    made = f", made from {' and '.join(map(str, point.made_from))}" if point.made_from else ""
    return f"{recipe_text(point.outcome)}{made}"


def recipe_text(outcome: TuningOutcome) -> str:
    """Method, number of examples, replay share, anchor and seed of a fine-tune."""
    tuning = outcome.tuning
    anchor = tuning.settings.get("anchor")
    settings = [method_text(tuning), f"{fmt.count(tuning.examples)} examples",
                *([f"replay {100 * outcome.share:g} %"] if outcome.share else []),
                *([f"anchor {anchor}"] if anchor else []), f"seed {tuning.seed}"]
    return fmt.visible(", ".join(settings))


def factor_views(outcomes: Sequence[TuningOutcome]) -> list[FactorView]:
    """Curves over each factor that was varied; a figure has at most as many lines as there are line styles."""
    return [FactorView(base=fmt.visible(factor.base_name), name=factor.name,
                       figures=[view for part in factor.parts(STYLES) if (view := _factor_figure(part))])
            for factor in factors(outcomes)]


def _factor_figure(factor: Factor) -> ChartView | None:
    return figure(
        partial(factor_chart, factor),
        f"Differences against {fmt.visible(factor.base_name)}. A small mark is one seed; the line connects the means "
        "over the seeds; a vertical bar is the 95 % interval of a value with a single seed. Shaded: the margin. The "
        f"curves describe what was measured. Whether {_CAUSES[factor.name]} caused the difference can only be shown by "
        "comparing recipes over three or more seeds.", factor.labels)


def position_views(comparison: Comparison) -> list[tuple[str, ChartView]]:
    """(task, chart) of the positions of the chosen answers, for the first tasks that have them."""
    names = fmt.visible(comparison.base_name), fmt.visible(comparison.tuned_name)
    key = tuple((Markup(patch(ink)), name) for ink, name in zip(BARS, ("right answers", *names), strict=True))
    return [(title, ChartView(tuple((css, Markup(position_bars(title, positions, names, width)))
                                    for css, width in _SINGLE_WIDTH),
                              "", key))
            for title, positions in islice(positions_of(comparison), _MOST_BARS)]


def with_classes(page: str) -> str:
    """The page with each style attribute of its charts replaced by a CSS class, which makes the charts much smaller."""
    rules: dict[str, str] = {}

    def class_of(style: re.Match[str]) -> str:
        return f' class="{rules.setdefault(style[1], f"k{len(rules)}")}"'

    def shorten(chart: re.Match[str]) -> str:  # only inside tags: the text between them may come from outside
        return re.sub(r"<[^>]*>", lambda tag: re.sub(r' style="([^"]*)"', class_of, tag[0]), chart[0])

    page = re.sub(r'<svg role="img".*?</svg>', shorten, page, flags=re.S)
    before, style, after = page.partition("<style>")
    return before + style + after.replace(_CSS_MARK, "".join(f".{n} {{ {css} }}\n" for css, n in rules.items()), 1)


def with_attributes(page: str) -> str:
    """The page with each style attribute of its charts as attributes of SVG, for a page whose policy forbids inline
    styles."""
    def attributes(style: re.Match[str]) -> str:
        pairs = (rule.partition(":") for rule in style[1].split(";") if ":" in rule)
        return "".join(f' {name.strip()}="{value.strip()}"' for name, _, value in pairs)

    def rewrite(chart: re.Match[str]) -> str:  # only inside tags: the text between them may come from outside
        return re.sub(r"<[^>]*>", lambda tag: re.sub(r' style="([^"]*)"', attributes, tag[0]), chart[0])

    return re.sub(r'<svg (?:role="img"|class="swatch).*?</svg>', rewrite, page, flags=re.S)
