"""Chooses the margin of each row, in the unit of its metric.

    margin_of(0.02, "share", "hellaswag")                                   0.02: two points
    margin_of({"*": 0.02, "judge": Margin.given(2)}, "unbounded", "judge")  2.0: two marks of a judge
    margin_of(0.02, "unbounded", "judge")                                   None: points mean nothing there

A margin for all tasks is in points, so it holds for shares alone. A metric in its own unit (a perplexity, BLEU, a
judge's marks) needs a margin of its own. Without one its row shows the figures, and nothing is tested.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from aftertune.catalog import FRACTIONS, Unit
from aftertune.errors import InputError
from aftertune.values import Margin

#: The default for shares: two points.
MARGIN = 0.02

#: One margin for all shares, or one for each task or group ("*" for all others). A number is a fraction where the
#: metric is a share; for a named task it is in the metric's own unit where it is not.
Margins = Mapping[str, float | Margin] | Mapping[str, float] | float


def margin_of(margins: Margins, unit: Unit, *names: str, primary: bool = True) -> float | None:
    """The margin of the first of ``names`` (a task, then its groups) that has one, else that of "*", else 0.02.

    None where the metric is no share and no margin was given in its unit. primary: the margin is used for a test. Then
    InputError is raised for a share unless it is a fraction above 0 and at most 1, and for another metric unless it is
    a number above 0; else None stands for a margin that is not allowed.
    """
    table: Mapping[str, float | Margin] = margins if isinstance(margins, Mapping) else {"*": margins}
    named = next((n for n in names if n in table), "")
    given = table.get(named or "*", MARGIN)
    margin = given if isinstance(given, Margin) else Margin(given, given if named else None)
    value = margin.share if unit in FRACTIONS else margin.own
    if value is None:
        return None
    if not isinstance(value, int | float) or not 0 < value < math.inf or (unit in FRACTIONS and value > 1):
        if not primary:
            return None
        if isinstance(given, Margin) and unit in FRACTIONS:
            raise InputError(f"{named or '*'}={100 * given.share:g}: the metric of {names[0]} is a share, so allowed "
                             "are points above 0, up to 100")
        allowed = "a fraction above 0, up to 1 (0.02 is two points)" if unit in FRACTIONS else \
            "a number above 0, in the unit of its metric"
        raise InputError(f"margin of {names[0]} is {value!r}; allowed is {allowed}")
    return float(value)


def missing_margin_note(task: str) -> str:
    """What a reader must know of a row without a margin: what to give."""
    return ("a margin in points means nothing here, so nothing is tested: give one in this unit, `aftertune compare` "
            f"with --margin {task}=VALUE")
