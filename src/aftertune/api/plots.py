"""Draws the charts of the page for a notebook, as SVG.

    forest_of(comparison, 760)                          the differences with their intervals
    balance_of(comparison, ledger, 760).save("x.svg")   learned against forgotten: all fine-tunes of the same base
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aftertune.errors import InputError

if TYPE_CHECKING:
    from aftertune.ledger import Ledger
    from aftertune.values import Comparison, Tuning


@dataclass(frozen=True, slots=True)
class SvgChart:
    """A chart as SVG, which a notebook shows. svg: its markup; title: what it shows."""

    svg: str
    title: str

    def _repr_html_(self) -> str:
        return f'<div style="max-width: 100%">{self.svg}</div>'

    def __repr__(self) -> str:
        return f"<SvgChart {self.title}: {len(self.svg):,} characters; save(FILE) writes it>"

    def save(self, path: str | Path) -> Path:
        """Write the chart as an .svg file, and return its path."""
        from aftertune.report import write_document

        named = '<svg xmlns="http://www.w3.org/2000/svg" '
        text = self.svg if "xmlns=" in self.svg else self.svg.replace("<svg ", named, 1)
        write_document(Path(path), f"{text}\n", verbatim=True)
        return Path(path)


def forest_of(comparison: Comparison, width: int) -> SvgChart:
    """The forest plot of a comparison. Raises InputError if nothing can be drawn."""
    from aftertune.report.charts import forest

    return _chart(forest(comparison, width), f"{comparison.tuned_name} against {comparison.base_name}",
                  "the comparison has no row with an interval")


def balance_of(comparison: Comparison, ledger: Ledger, width: int) -> SvgChart:
    """Learned against forgotten: the fine-tune of a comparison, beside the others of its base in the ledger."""
    from aftertune.report import Results
    from aftertune.report.charts import balance_chart
    from aftertune.report.learned_vs_forgotten import balances
    from aftertune.report.results import outcomes

    members = [o for o in outcomes(Results.load(ledger)) if o.comparison.base == comparison.base]
    found = [b for b in balances(members, least=1)
             if comparison.id in {p.outcome.comparison.id for p in b.points}]
    return _chart(balance_chart(found[0], width) if found else "", f"fine-tunes of {comparison.base_name}",
                  "learned against forgotten needs a fine-tune of the ledger with a target task or a held-out loss, "
                  "and a benchmark on which its base is above the floor")


def loss_of(tuning: Tuning, width: int) -> SvgChart:
    """The loss during a training. Raises InputError if there is none."""
    from aftertune.report.charts import loss_curve

    return _chart(loss_curve(tuning, width), f"loss of {tuning.name}", "the tuning has no training log")


def _chart(svg: str, title: str, why_not: str) -> SvgChart:
    if not svg:
        raise InputError(f"there is nothing to draw: {why_not}")
    return SvgChart(svg, title)
