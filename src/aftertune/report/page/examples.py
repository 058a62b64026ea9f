"""Questions that changed hands: what was lost and gained, with the choices and both answers, as the page shows them.

    examples({"c-1f…": [flips of HellaSwag, flips of ARC]})     comparison id -> a view for each task

A page holds so many of them in all; the more comparisons there are, the fewer each of them shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aftertune.catalog import MetricKey
from aftertune.report import format as fmt
from aftertune.report.flips import ENDS, forced_text, score_unit
from aftertune.report.names import metric_title, task_title
from aftertune.values import Flip, Flips, FlipSide

#: Comparison id -> the items that changed, a value for each task.
Flipped = Mapping[str, Sequence[Flips]]

_MOST, _EACH = 240, 5  # on a page, and of one direction of one task
_QUESTION, _CHOICE, _TEXT = 1200, 240, 1200  # characters that are shown


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice. right: it is the right one; base, tuned: (what the metric compared, it was taken)."""

    text: str
    right: bool
    base: tuple[str, bool]
    tuned: tuple[str, bool]


@dataclass(frozen=True, slots=True)
class Written:
    """One generated answer. about: how it ended and what was taken from it."""

    name: str
    right: bool
    about: str
    text: str


@dataclass(frozen=True, slots=True)
class Example:
    """One item, with either its choices or both texts."""

    direction: str
    index: int
    question: str
    opening: str
    gold: str
    choices: list[Choice]
    written: list[Written]


@dataclass(frozen=True, slots=True)
class FlipsView:
    """The items of one task that changed. told: how many; unit: of the choices' figures; more: how many are not
    shown."""

    title: str
    told: str
    watermark: str
    unit: str
    names: tuple[str, str]
    examples: list[Example]
    more: str


def examples(flips: Flipped) -> dict[str, list[FlipsView]]:
    """Views of what was handed in, as many items of each as the page has room for.

    Where there is no room for two of each, one lost item of those tasks is shown on which the most was lost.
    """
    lists = {(comparison, f.task): f for comparison, found in flips.items() for f in found if f.lost or f.gained}
    each = min(_EACH, _MOST // max(1, 2 * len(lists)))
    worst = set(sorted(lists, key=lambda key: -lists[key].lost)[:_MOST])
    views: dict[str, list[FlipsView]] = {comparison: [] for comparison in flips}
    for key, found in lists.items():
        views[key[0]].append(_view(found, lost=max(each, key in worst), gained=each))
    return views


def _view(found: Flips, *, lost: int, gained: int) -> FlipsView:
    key = MetricKey(found.metric)
    names = fmt.visible(found.base_name), fmt.visible(found.tuned_name)
    shown = [f for way, room in (("lost", lost), ("gained", gained))
             for f in [g for g in found.flips if g.direction == way][:room]]
    rest = found.lost + found.gained - len(shown)
    return FlipsView(
        title=fmt.visible(task_title(found.task)), names=names, unit=score_unit(key.metric),
        told=(f"of {fmt.count(found.n)} items, by {fmt.visible(metric_title(key.metric, key.filter))}, "
              f"{fmt.count(found.lost)} lost and {fmt.count(found.gained)} gained"),
        watermark=forced_text(found.differences) if found.differences else "",
        examples=[_example(f, names) for f in shown],
        more=fmt.count(rest) if rest else "")


def _example(flip: Flip, names: tuple[str, str]) -> Example:
    question = fmt.visible(flip.question, _QUESTION) or "(no text)"
    opening = " ".join(question.split())
    scored = bool(flip.base.scores or flip.tuned.scores)
    sides = zip(names, (flip.base, flip.tuned), strict=True)
    return Example(
        direction=flip.direction, index=flip.index, question=question,
        opening=opening if len(opening) <= 90 else f"{opening[:89]}…", gold=fmt.visible(flip.gold, _CHOICE),
        choices=_choices(flip) if scored else [],
        written=[] if scored else [Written(name, side.right, _about(side),
                                           fmt.visible(side.chosen, _TEXT) if side.chosen.strip() else "(empty)")
                                   for name, side in sides])


def _choices(flip: Flip) -> list[Choice]:
    best = [max(range(len(s.scores)), key=s.scores.__getitem__) if s.scores else -1 for s in (flip.base, flip.tuned)]
    rows = []
    for at in range(max(len(flip.base.scores), len(flip.tuned.scores))):
        text = flip.choices[at] if at < len(flip.choices) else f"choice {at + 1}"
        base, tuned = ((fmt.raw(s.scores[at], 3) if at < len(s.scores) else fmt.DASH, at == b)
                       for s, b in zip((flip.base, flip.tuned), best, strict=True))
        rows.append(Choice(fmt.visible(text, _CHOICE), text == flip.gold, base, tuned))
    return rows


def _about(side: FlipSide) -> str:
    taken = [f"{'' if name == 'none' else f'{name} '}{value.strip() or '(nothing)'}"
             for name, value in side.extracted.items() if value.strip() != side.chosen.strip()]
    parts = [ENDS.get(side.finish or "", ""), f"extracted: {', '.join(taken)}" if taken else ""]
    return fmt.visible("; ".join(filter(None, parts)), 200)
