"""Draws how often each choice of a multiple-choice task was taken, as groups of three small bars.

    position_bars("MMLU", comparison.changes.tasks[0].positions, ("smollm2", "careless"), 340)

The bars of a position are, from left to right: right answers, answers of the base, answers of the tuned model.
"""

from __future__ import annotations

from aftertune.report import formatting as fmt
from aftertune.report.changes import position_name
from aftertune.report.charts.svg import INK, sheet
from aftertune.values import PositionTable

#: The inks of the three bars, in their order.
BARS = ("muted", "c1", "c2")
#: With more positions than this, the counts are not written above the bars.
_LABELLED = 5
_HEIGHT = 132


def position_bars(title: str, positions: PositionTable, names: tuple[str, str], width: int) -> str:
    """The bars of one task, ``width`` px wide. names: of the base and of the tuned model."""
    size = len(positions.pairs)
    groups = [("right answers", positions.right), (names[0], positions.base), (names[1], positions.tuned)]
    with sheet(f"positions {title} {names} {positions}", width, _HEIGHT) as s:
        axes = s.axes(6, 16, width - 12, _HEIGHT - 38)
        top = max(max(counts, default=0) for _, counts in groups)
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(0, top * 1.15)
        for bar, ((_, counts), ink) in enumerate(zip(groups, BARS, strict=True)):
            for position, count in enumerate(counts):
                x = position + (bar - 1) * 0.27
                axes.bar([x], [count], width=0.25, color=INK[ink], linewidth=0)
                if size <= _LABELLED:
                    axes.text(x, count + 0.03 * top, fmt.count(count), ha="center", va="bottom", fontsize=8.5,
                              color=INK["ink"])
        axes.set_xticks(range(size), [position_name(i) for i in range(size)])
        axes.set_yticks([])
        return s.svg(f"Positions of the answers on {title}", "; ".join(
            f"{name}: " + (", ".join(f"{position_name(i)} {fmt.count(n)}" for i, n in enumerate(counts)) or "not known")
            for name, counts in groups) + ".")
