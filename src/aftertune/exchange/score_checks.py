"""Checks whether each reported score can be k of n items, and its error the standard error of such a share.

    check_scores(document.scores)[15].text
    # "not reproducible as k/n at the stated n=100 (26 is 26.00% and 27 is 27.00%)"

A number of items that the document states is taken at its word. One that only lm-eval's task has is a guess: the run
may have been limited, or have used other data. A figure that is no k of it counts as impossible only where other
figures of the document show that the guess is right for this task and for this model. Otherwise it is not checked, and
the text says why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from aftertune.catalog import BENCHMARKS, is_share
from aftertune.stats import audit as checks
from aftertune.stats.audit import Figure
from aftertune.values.reported import Reported

#: A figure counts for or against a number of items if a random one would fail with this probability.
MIN_POWER = 0.3
#: The guess is right where the figures that fit would all fit by chance with at most this probability.
MAX_CHANCE = 0.01
#: Digits after the point of a float that nobody rounded. Then the file's program computed the score.
UNROUNDED = 10
#: An error this near to that of a share of n items supports n.
NEAR_ERROR = 0.15


@dataclass(frozen=True, slots=True)
class Check:
    """The check of one reported value.

    value_ok, stderr_ok: None where it cannot be checked; counts: every k that fits the value; power: the chance that a
    random figure with as many digits would fail, 0 where passing means nothing.
    """

    row: Reported
    value_ok: bool | None
    stderr_ok: bool | None
    counts: Sequence[int]
    power: float
    text: str

    @property
    def ok(self) -> bool:
        return self.value_ok is not False and self.stderr_ok is not False

    @property
    def mark(self) -> str:
        """"ok", "ok*" (every figure with as many digits is some k/n), "not reproducible" or "not checked"."""
        if not self.ok:
            return "not reproducible"
        return "not checked" if self.value_ok is None else "ok" if self.power else "ok*"


@dataclass(frozen=True, slots=True)
class _Neighbours:
    """How other figures of the document fit their guessed numbers of items.

    for_, against: those of the same task and of the same model; chance: of all that fit, that they do.
    """

    task_for: int
    task_against: int
    model_for: int
    model_against: int
    chance: float

    def confirm(self, *, near_error: bool) -> bool:
        """True where they show that the guess is right. near_error: the figure's own error supports it too."""
        task = self.task_against * 4 <= self.task_for
        model = near_error or self.model_against * 4 <= self.model_for
        return task and model and self.chance <= MAX_CHANCE


def check_scores(rows: Sequence[Reported]) -> tuple[Check, ...]:
    """Check each reported score of a document, in the light of the others."""
    first = [check_score(row) for row in rows]
    fits = [_fit(check) for check in first]
    of_task: dict[object, _Tally] = {}
    of_model: dict[object, _Tally] = {}
    of_both: dict[object, _Tally] = {}
    for row, fit in zip(rows, fits, strict=True):
        if fit is not None:
            for tallies, key in ((of_task, (row.task, row.n)), (of_model, row.model),
                                 (of_both, (row.task, row.n, row.model))):
                tallies.setdefault(key, _Tally()).add(*fit)
    errors = [c.stderr_ok for c in first if c.row.n_source == "known" and c.stderr_ok is not None]
    errors_hold = errors.count(True) >= max(2, 4 * errors.count(False))
    results = []
    for i, check in enumerate(first):
        if check.row.n_source != "known" or check.ok:
            results.append(check)
            continue
        row, own = rows[i], _Tally()
        if (fit := fits[i]) is not None:
            own.add(*fit)
        both = of_both.get((row.task, row.n, row.model), _Tally())
        others = of_task.get((row.task, row.n), _Tally()).without(both)
        neighbours = _neighbours(others, of_model.get(row.model, _Tally()).without(own))
        results.append(_decided(check, neighbours, errors_hold=errors_hold))
    return tuple(results)


def _fit(check: Check) -> tuple[bool, float] | None:
    """Whether a figure fits its guessed number of items, and the chance that a random one does; None if it says
    little."""
    row = check.row
    if row.n_source != "known" or check.value_ok is None or check.power < MIN_POWER or _is_group(row):
        return None
    return check.value_ok, 1 - check.power


@dataclass(slots=True)
class _Tally:
    """Some figures: how many fit their guessed numbers of items and how many do not.

    chance_log: logarithm of the chance that all that fit would, less those that no chance explains (certain).
    """

    fit: int = 0
    against: int = 0
    certain: int = 0
    chance_log: float = 0.0

    def add(self, fits: bool, chance: float) -> None:
        """Count one figure. chance: that a random one fits, in [0, 1)."""
        self.fit += fits
        self.against += not fits
        if fits:
            self.certain += chance <= 0
            self.chance_log += math.log(chance) if chance > 0 else 0.0

    def without(self, part: _Tally) -> _Tally:
        """The other figures, where ``part`` are some of these."""
        return _Tally(self.fit - part.fit, self.against - part.against, self.certain - part.certain,
                      self.chance_log - part.chance_log)


def _neighbours(same_task: _Tally, same_model: _Tally) -> _Neighbours:
    """same_task: figures of other models; same_model: of the same one. So no figure is in both."""
    certain = same_task.certain + same_model.certain > 0
    chance = 0.0 if certain else math.exp(min(0.0, same_task.chance_log + same_model.chance_log))
    return _Neighbours(same_task.fit, same_task.against, same_model.fit, same_model.against, chance)


def _decided(check: Check, neighbours: _Neighbours, *, errors_hold: bool) -> Check:
    """A check that failed at a guessed number of items: failed, or not checked where the guess may be wrong."""
    row = check.row
    assert row.n is not None
    value, stderr = _figure(row.value_text), _figure(row.stderr_text)
    assert value is not None
    if check.value_ok is False:
        expected = checks.stderr_of(value.fraction, row.n)
        near = stderr is not None and expected > 0 and abs(stderr.fraction / expected - 1) <= NEAR_ERROR
        if not _is_group(row) and neighbours.confirm(near_error=near):
            return replace(check, text=f"{check.text}; other figures of the document fit these numbers of items")
        text = (f"no k of the {row.n:,} items that lm-eval's task has, but the document does not state n and nothing "
                "in it confirms that number: it may be a mean of several runs or another set of items")
        return Check(row, None, None, (), 0.0, text)
    if errors_hold:
        return check
    return replace(check, stderr_ok=None, text=f"{_value_text(row, value, check.counts, cut=False)}; the error "
                                               f"{row.stderr_text} is not that of a share of so many items; the "
                                               "document states neither n nor how it was computed")


# --- One score ---


def check_score(row: Reported) -> Check:
    """Check one reported score by itself; a guessed number of items is taken for right."""
    value, stderr = _figure(row.value_text), _figure(row.stderr_text)
    if row.mean_of:
        return Check(row, None, None, (), 0.0, f"a mean ({row.mean_of}) is no k of n")
    if not is_share(row.metric) or value is None:
        return Check(row, None, None, (), 0.0, f"{row.metric} is not known to be a share of items")
    if row.n is None:
        return Check(row, None, None, (), 0.0, "the number of items is not stated")
    counts: Sequence[int] = checks.whole_counts(value, row.n)
    if not counts and value.decimals >= UNROUNDED and row.task not in BENCHMARKS and not _too_large(value, row):
        return Check(row, None, None, (), 0.0, f"no k of {row.n:,}: a mean of items that are not all 0 or 1")
    plain_error = stderr is not None and row.n > 1 and not row.error_of
    stderr_ok = checks.stderr_agrees(value, stderr, row.n) if plain_error and stderr is not None else None
    if row.n_source == "known" and stderr is not None and plain_error and not (counts and stderr_ok) and \
            (limit := checks.limit_of(value, stderr, row.n)) is not None:
        return _limited(row, value, *limit)
    cut = not counts and row.n_source == "known"
    counts = counts or (checks.cut_counts(value, row.n) if cut else ())
    texts = [_value_text(row, value, counts, cut=cut)]
    if stderr is not None and stderr_ok is not None:
        other = "" if stderr_ok else _other_error(value, stderr, row.n)
        stderr_ok = stderr_ok or (None if other else False)
        texts.append(other or _stderr_text(row, value, stderr, ok=bool(stderr_ok)))
    elif stderr is not None and row.error_of:
        texts.append(f"error {row.stderr_text} is {row.error_of}")
    return Check(row, bool(counts), stderr_ok, counts, checks.detection_power(value, row.n), "; ".join(texts))


def _limited(row: Reported, value: Figure, k: int, n: int) -> Check:
    """The check of a score whose value and error fit another number of items exactly."""
    text = (f"value and error are those of {k:,} of {n:,} items; lm-eval's task has {row.n:,}, so the run seems to "
            "have been limited")
    limited = replace(row, n=n, n_source="fits the error")
    return Check(limited, True, True, (k,), checks.detection_power(value, n), text)


def _too_large(value: Figure, row: Reported) -> bool:
    """True for an error above that of a share, which is the largest of all values between 0 and 1."""
    stderr = _figure(row.stderr_text)
    most = checks.stderr_of(value.fraction, row.n or 0)
    return stderr is not None and not row.error_of and stderr.fraction > most * 1.000_1


def _other_error(value: Figure, stderr: Figure, n: int) -> str:
    """How an error was computed that is not lm-eval's standard error of a share; "" where that is not known."""
    low, high = checks.stderr_span(value, n)
    below, above = stderr.span
    if low * 1.959 <= above and high * 1.961 >= below:
        return "the error is half the width of a 95 % interval"
    shrink = math.sqrt((n - 1) / n)  # divided by n in place of n - 1
    return "the error divides by n" if low * shrink <= above + 1e-9 and high * shrink >= below - 1e-9 else ""


def _figure(text: str) -> Figure | None:
    try:
        return Figure.parse(text)
    except ValueError:
        return None


def _is_group(row: Reported) -> bool:
    return row.task in BENCHMARKS and bool(BENCHMARKS[row.task].members)


def _items(row: Reported) -> str:
    """The number of items with where it comes from."""
    if row.n_source == "known":
        return f"the {row.n:,} items that lm-eval's task has"
    return f"the stated n={row.n:,}"


def _value_text(row: Reported, value: Figure, counts: Sequence[int], *, cut: bool) -> str:
    assert row.n is not None
    if counts:
        k_text = f"k={counts[0]}" if len(counts) == 1 else f"k={counts[0]} to {counts[-1]}"
        end = ", if its digits were cut off and not rounded" if cut else ""
        return f"{k_text} of {_items(row) if row.n_source == 'known' else f'{row.n:,}'}{end}"
    nearest = [k for k in checks.nearest_counts(value, row.n) if 0 <= k <= row.n]
    nearest_text = " and ".join(f"{k} is {_share_text(k / row.n, value)}" for k in dict.fromkeys(nearest))
    return f"not reproducible as k/n at {_items(row)} ({nearest_text})"


def _stderr_text(row: Reported, value: Figure, stderr: Figure, *, ok: bool) -> str:
    assert row.n is not None
    low, high = (_share_text(s, stderr, 1) for s in checks.stderr_span(value, row.n))
    if ok:
        return f"error {row.stderr_text} agrees"
    expected = low if low == high else f"{low} to {high}"
    needed = checks.counts_of_stderr(stderr, row.n, value.fraction)
    if needed is None:
        reason = "no k of this n gives it"
    else:
        shares = [_share_text(k / row.n, value) for k in dict.fromkeys(needed)]
        reason = f"it needs k={'-'.join(map(str, dict.fromkeys(needed)))}, {' to '.join(shares)}"
    return f"error {row.stderr_text} does not follow from the value (expected {expected}; {reason})"


def _share_text(share: float, like: Figure, more: int = 0) -> str:
    """A share in the unit and with the decimals of a printed figure. more: further decimals."""
    return f"{share * like.scale:.{min(like.decimals, 6) + more}f}{'%' if like.scale == 100 else ''}"


