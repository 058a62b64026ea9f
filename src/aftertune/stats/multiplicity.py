"""Adjusts the p-values of several tests at once.

Holm controls the chance of any false claim in a family, whatever the dependence, and carries the verdicts;
Benjamini-Hochberg controls the share of false claims and is for exploring many subtasks only.

    holm([0.01, 0.04, 0.03, 0.005])                 [0.03, 0.06, 0.06, 0.02]
    benjamini_hochberg([0.01, 0.04, 0.03, 0.005])   [0.02, 0.04, 0.04, 0.02]
"""

from __future__ import annotations

from collections.abc import Sequence


def _check(p: Sequence[float]) -> None:
    wrong = [x for x in p if not 0 <= x <= 1]
    if wrong:
        raise ValueError(f"p-value {wrong[0]!r} is not in [0, 1]")


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in given order (Holm 1979). Raises ValueError outside [0, 1]."""
    _check(p)
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda j: p[j])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Benjamini-Hochberg step-up adjusted p-values, in the order given (Benjamini and Hochberg 1995).

    Raises ValueError outside [0, 1].
    """
    from scipy.stats import false_discovery_control

    _check(p)
    return [float(q) for q in false_discovery_control([float(x) for x in p])]
