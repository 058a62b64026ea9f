"""Curves over what was varied: training examples and replay share, one line for each recipe otherwise the same.

    factors(outcomes)[0]        Factor(name="training examples", panels=(Panel(title="HellaSwag", curves=…), …), …)

Fine-tunes that differ in their seed alone are one place on a line. The lines show what was measured; that a size or a
share makes a difference is for a comparison of recipes over several seeds to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from aftertune.report import formatting as fmt
from aftertune.report.facts import mapping_text, method_text
from aftertune.report.names import task_title
from aftertune.report.results import Span, TuningOutcome, against, common_benchmarks
from aftertune.values import Tuning, canonical

#: Settings that follow from the size or the share, or from where a run took place.
_FOLLOWS = frozenset({"replay", "replay_examples", "replay_share", "validation", "validation_examples", "held_out",
                      "held_out_examples", "threads", "device"})


@dataclass(frozen=True, slots=True)
class Place:
    """One value of what was varied; spans: a seed each."""

    x: float
    spans: tuple[Span, ...]

    @property
    def mean(self) -> float:
        return sum(s.value for s in self.spans) / len(self.spans)


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of a panel. style: its number in the factor, the same in all panels."""

    label: str
    style: int
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """One measure. margin: in points, None where it has none."""

    title: str
    unit: str
    margin: float | None
    curves: tuple[Curve, ...]


@dataclass(frozen=True, slots=True)
class Factor:
    """What was varied against one base. ticks: its values; labels: of the lines; shares: the values are shares."""

    name: str
    base: str
    base_name: str
    ticks: tuple[float, ...]
    labels: tuple[str, ...]
    panels: tuple[Panel, ...]
    shares: bool = False

    def tick(self, x: float) -> str:
        return f"{100 * x:g} %" if self.shares else fmt.count(x)

    def parts(self, most: int) -> list[Factor]:
        """The same with so many lines at most in each."""
        return [replace(self, labels=self.labels[at:at + most], panels=tuple(
            replace(p, curves=tuple(replace(c, style=c.style - at) for c in p.curves[at:at + most]))
            for p in self.panels)) for at in range(0, len(self.labels), most)]


Axis = Callable[[TuningOutcome], float]


def factors(found: Sequence[TuningOutcome]) -> list[Factor]:
    """Each of the two that was varied, base by base."""
    made = []
    for family in against(found):
        for name, axis, other in (("training examples", _examples, _share), ("replay share", _share, _examples)):
            if factor := _factor(name, family, axis, other):
                made.append(factor)
    return made


def _examples(outcome: TuningOutcome) -> float:
    return float(outcome.tuning.examples)


def _share(outcome: TuningOutcome) -> float:
    return outcome.share


def _factor(name: str, family: Sequence[TuningOutcome], axis: Axis, other: Axis) -> Factor | None:
    """Lines are recipes with one value of the other factor, and two values or more of this one."""
    lines: dict[tuple[str, float], list[TuningOutcome]] = {}
    for outcome in family:
        lines.setdefault((canonical(_recipe(outcome.tuning)), other(outcome)), []).append(outcome)
    kept = {key: line for key, line in lines.items() if len({axis(o) for o in line}) > 1}
    if not kept:
        return None
    members = [o for line in kept.values() for o in line]
    labels = _labels([line[0] for line in kept.values()], other)
    first = members[0].comparison
    curves = list(zip(labels, range(len(labels)), kept.values(), strict=True))
    return Factor(name=name, base=first.base, base_name=first.base_name, labels=tuple(labels),
                  ticks=tuple(sorted({axis(o) for o in members})), shares=axis is _share,
                  panels=tuple(_panels(members, curves, axis)))


def _panels(members: Sequence[TuningOutcome], curves: Sequence[tuple[str, int, list[TuningOutcome]]],
            axis: Axis) -> list[Panel]:
    """What was learned first, then each benchmark."""
    targets = [t for t in dict.fromkeys(r.task for o in members for r in o.targets)
               if all(any(r.task == t for r in o.targets) for o in members)]
    panels = []
    for task in (*targets, *common_benchmarks(members)):
        rows = {o.comparison.id: r for o in members for r in (*o.targets, *o.benchmarks) if r.task == task}
        margins = {100 * r.margin for r in rows.values()}
        panels.append(Panel(task_title(task), "points", None if task in targets or len(margins) > 1 else margins.pop(),
                            _drawn(curves, axis, {i: Span.of(r) for i, r in rows.items()})))
    drops = {o.comparison.id: o.loss_drop for o in members}
    known = {i: d for i, d in drops.items() if d is not None}
    if len(known) == len(drops):
        panels.insert(len(targets), Panel("Fall of the held-out loss", "nats per token", None,
                                          _drawn(curves, axis, known)))
    return panels


def _drawn(curves: Sequence[tuple[str, int, list[TuningOutcome]]], axis: Axis, spans: dict[str, Span]) -> tuple[Curve,
                                                                                                                ...]:
    return tuple(Curve(label, style, tuple(
        Place(x, tuple(spans[o.comparison.id] for o in line if axis(o) == x)) for x in sorted(set(map(axis, line)))))
        for label, style, line in curves)


def _recipe(tuning: Tuning) -> dict[str, object]:
    """What two fine-tunes of one line must have in common."""
    rest = {k: v for k, v in tuning.settings.items() if k not in _FOLLOWS}
    return {"method": tuning.method, "data": tuning.data_source, **rest}


def _labels(lines: Sequence[TuningOutcome], other: Axis) -> list[str]:
    """What tells the lines apart: the method, the other factor, and whatever else differs."""
    recipes = [_recipe(o.tuning) for o in lines]
    names = {k for r in recipes for k in r if len({canonical(q.get(k)) for q in recipes}) > 1} - {"method"}
    methods, others = {method_text(o.tuning) for o in lines}, {other(o) for o in lines}
    labels = []
    for outcome, recipe in zip(lines, recipes, strict=True):
        parts = [method_text(outcome.tuning)] if len(methods) > 1 or len(others) == 1 else []
        if len(others) > 1:
            parts.append(_other_text(outcome, other))
        differing = mapping_text({k: recipe.get(k) for k in sorted(names)})
        labels.append(", ".join([*parts, *([differing] if differing else [])]))
    return labels


def _other_text(outcome: TuningOutcome, other: Axis) -> str:
    if other is _examples:
        return f"{fmt.count(outcome.tuning.examples)} examples"
    return f"replay {100 * outcome.share:g} %" if outcome.share else "no replay"
