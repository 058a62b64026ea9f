"""Measures calibration: whether a model's probability of its answer agrees with how often the answer is right.

    brier_score([0.7, 0.2, 0.1], right=0)        0.14: (0.7 - 1)**2 + 0.2**2 + 0.1**2
    error = calibration_error(confidence, right)
    error.plain, error.debiased, error.by_chance, error.bins

A model that is calibrated is right in 70 % of the items whose answer it gives 70 %. The expected calibration error
(ECE) groups the items by the probability of the chosen answer and averages |mean probability - accuracy| over the
groups (Naeini, Cooper and Hauskrecht 2015; Guo et al. 2017). It cannot be below 0, so with few items in each group it
is above 0 for a calibrated model too: ``by_chance`` is the value that a calibrated model is expected to show. The
debiased value subtracts an estimate of this excess (Kumar, Liang and Ma 2019, "Verified Uncertainty Calibration",
arXiv:1909.10155), with the accuracy of a group as a normal variable. For a calibrated model this removes less than half
of it, so ``by_chance`` is needed to read it.

The Brier score (Brier 1950) is the squared distance between the probabilities and the truth, from 0 to 2. It needs no
groups and is compared item by item.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr

from aftertune.stats.paired import Floats
from aftertune.values import CalibrationError

#: Groups of items with about equally many items, and the fewest items of a group: with fewer items there are fewer
#: groups.
BINS, ITEMS_OF_BIN = 10, 10


def brier_score(shares: Sequence[float], right: int) -> float:
    """sum_j (p_j - y_j)**2 over the choices of one item, y being 1 for the right choice and 0 for the others."""
    return math.fsum((p - (j == right)) ** 2 for j, p in enumerate(shares))


def calibration_error(confidence: Sequence[float] | Floats, right: Sequence[float] | Floats
                      ) -> CalibrationError | None:
    """The expected calibration error; None for fewer than 20 items, which are too few for two groups.

    confidence: probability of the chosen answer, float64 [n]. right: 1 where it is right, else 0.

    The items are sorted by confidence (equal ones stay in their order) and cut into BINS groups of equal size, into
    fewer where a group would have less than ITEMS_OF_BIN items. Raises ValueError where the two lengths differ.
    """
    c, y = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if c.size != y.size:
        raise ValueError(f"{c.size} probabilities but {y.size} outcomes: need one per item")
    bins = min(BINS, c.size // ITEMS_OF_BIN)
    if bins < 2:
        return None
    order = np.argsort(c, kind="stable")
    groups = [(c[part], y[part]) for part in np.array_split(order, bins)]
    sizes = np.array([part.size for part, _ in groups], dtype=np.float64)
    mean, accuracy = (np.array([group[side].mean() for group in groups]) for side in (0, 1))
    share = sizes / sizes.sum()
    plain = float(share @ np.abs(accuracy - mean))
    noise = np.sqrt(accuracy * (1 - accuracy) / sizes)
    excess = float(share @ _expected_size(accuracy - mean, noise)) - plain
    calibrated = np.array([math.sqrt(float((part * (1 - part)).sum())) / part.size for part, _ in groups])
    by_chance = float(share @ _expected_size(np.zeros(bins), calibrated))
    return CalibrationError(plain=plain, debiased=max(0.0, plain - excess), by_chance=by_chance, bins=bins)


def _expected_size(mean: Floats, deviation: Floats) -> Floats:
    """E|X| of normal variables X, float64 [bins]: the mean of a folded normal distribution."""
    sizes = np.abs(mean)
    noisy = deviation > 0
    mu, sd = mean[noisy], deviation[noisy]
    sizes[noisy] = sd * math.sqrt(2 / math.pi) * np.exp(-(mu**2) / (2 * sd**2)) + mu * (1 - 2 * ndtr(-mu / sd))
    return sizes
