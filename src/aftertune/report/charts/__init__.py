"""Charts as inline SVG, drawn by matplotlib: forest plots, learned against forgotten, curves over data size and
replay share, and what happened while a model was trained.

    forest(comparison, 760)     '<svg role="img" aria-labelledby="…" viewBox="0 0 760 …">…</svg>'

Each takes the width in px that it is drawn for and returns "" where there is nothing to draw.
"""

from aftertune.report.charts.balance import balance_chart, balance_panels
from aftertune.report.charts.curves import factor_chart, loss_curve, watch_chart, watched
from aftertune.report.charts.forest import contrast_forest, forest, task_forest
from aftertune.report.charts.svg import STYLES, swatch

__all__ = ["STYLES", "balance_chart", "balance_panels", "contrast_forest", "factor_chart", "forest", "loss_curve",
           "swatch", "task_forest", "watch_chart", "watched"]
