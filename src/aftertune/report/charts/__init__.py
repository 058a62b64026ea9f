"""Draws the charts of the report as inline SVG, with matplotlib.

    forest(comparison, 760)             '<svg role="img" aria-labelledby="…" viewBox="0 0 760 …">…</svg>'
    balance_chart(balance, 760)         learned against forgotten
    factor_chart(factor, 760)           curves over data size or replay share
    loss_curve(tuning, 760)             the loss during training
    position_bars("MMLU", positions, names, 340)      how often each choice was taken

The second argument is the width in px. A function returns "" if there is nothing to draw.
"""

from aftertune.report.charts.balance import balance_chart, balance_panels
from aftertune.report.charts.curves import (
    LookCurves,
    checkpoint_chart,
    factor_chart,
    loss_curve,
    strength_chart,
    watch_chart,
    watched,
)
from aftertune.report.charts.forest import contrast_forest, forest, task_forest
from aftertune.report.charts.positions import position_bars
from aftertune.report.charts.svg import STYLES, patch, swatch

__all__ = ["STYLES", "LookCurves", "balance_chart", "balance_panels", "checkpoint_chart", "contrast_forest",
           "factor_chart", "forest", "loss_curve", "patch", "position_bars", "strength_chart", "swatch",
           "task_forest", "watch_chart", "watched"]
