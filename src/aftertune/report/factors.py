"""Builds the curves over the factors of a study: the number of training examples, the share of replay, and the
strength at which a fine-tune is used.

    factors(outcomes)[0]        Factor(name="training examples", panels=(Panel(title="HellaSwag", curves=…), …), …)

Each line is one recipe; fine-tunes that differ only in their seed share a point. The lines show what was measured. Only
a comparison of recipes over several seeds proves that a size or a share makes a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from aftertune.report import formatting as fmt
from aftertune.report.facts import mapping_text, method_text
from aftertune.report.names import task_title
from aftertune.report.results import Span, TuningOutcome, by_base, common_benchmarks
from aftertune.values import Tuning, canonical

#: Settings that follow from the size, the share or the machine, so they do not make another recipe.
_DERIVED = frozenset({"replay", "replay_examples", "replay_share", "validation", "validation_examples", "held_out",
                      "held_out_examples", "threads", "device", "soften"})


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One value of the factor. spans: one for each seed."""

    x: float
    spans: tuple[Span, ...]

    @property
    def mean(self) -> float:
        return sum(s.value for s in self.spans) / len(self.spans)


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of a panel. style: its number within the factor, the same in all panels."""

    label: str
    style: int
    points: tuple[CurvePoint, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """The curves of one measure. margin: in points, or None."""

    title: str
    unit: str
    margin: float | None
    curves: tuple[Curve, ...]


@dataclass(frozen=True, slots=True)
class Factor:
    """A factor that was varied, with one base. ticks: its values. labels: one for each line. shares: the values are
    fractions, shown in percent."""

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
        """The factor split into several, each with at most ``most`` lines."""
        return [replace(self, labels=self.labels[at:at + most], panels=tuple(
            replace(p, curves=tuple(replace(c, style=c.style - at) for c in p.curves[at:at + most]))
            for p in self.panels)) for at in range(0, len(self.labels), most)]


Axis = Callable[[TuningOutcome], float]


def factors(outcomes: Sequence[TuningOutcome]) -> list[Factor]:
    """The factors that were varied, base by base."""
    varied = []
    for family in by_base(outcomes):
        for name, axis in _AXES.items():
            if factor := _factor(name, family, axis):
                varied.append(factor)
    return varied


def _examples(outcome: TuningOutcome) -> float:
    return float(outcome.tuning.examples)


def _share(outcome: TuningOutcome) -> float:
    return outcome.share


def _strength(outcome: TuningOutcome) -> float:
    strength = outcome.tuning.settings.get("soften")
    return float(strength) if isinstance(strength, int | float) else 1.0


#: The factors: name -> value of a fine-tune.
_AXES: dict[str, Axis] = {"training examples": _examples, "replay share": _share, "strength": _strength}


def _factor(name: str, family: Sequence[TuningOutcome], axis: Axis) -> Factor | None:
    """One line for each recipe and values of the other factors, if it has at least two values of this factor."""
    other_axes = [other for other in _AXES.values() if other is not axis]
    lines: dict[tuple[str, ...], list[TuningOutcome]] = {}
    for outcome in family:
        key = (canonical(_recipe(outcome.tuning)), *(str(other(outcome)) for other in other_axes))
        lines.setdefault(key, []).append(outcome)
    lines = {key: line for key, line in lines.items() if len({axis(o) for o in line}) > 1}
    if not lines:
        return None
    members = [o for line in lines.values() for o in line]
    labels = _labels([line[0] for line in lines.values()], other_axes)
    first = members[0].comparison
    curves = list(zip(labels, range(len(labels)), lines.values(), strict=True))
    return Factor(name=name, base=first.base, base_name=first.base_name, labels=tuple(labels),
                  ticks=tuple(sorted({axis(o) for o in members})), shares=axis in (_share, _strength),
                  panels=tuple(_panels(members, curves, axis)))


def _panels(members: Sequence[TuningOutcome], curves: Sequence[tuple[str, int, list[TuningOutcome]]],
            axis: Axis) -> list[Panel]:
    """The panels of the target tasks, then of the held-out loss, then of the benchmarks."""
    targets = [t for t in dict.fromkeys(r.task for o in members for r in o.targets)
               if all(any(r.task == t for r in o.targets) for o in members)]
    panels = []
    for task in (*targets, *common_benchmarks(members)):
        rows = {o.comparison.id: r for o in members for r in (*o.targets, *o.benchmarks) if r.task == task}
        margins = {100 * r.margin for r in rows.values() if r.margin is not None}
        panels.append(Panel(task_title(task), "points", None if task in targets or len(margins) > 1 else margins.pop(),
                            _curves(curves, axis, {i: Span.of(r) for i, r in rows.items()})))
    drops = {o.comparison.id: o.loss_drop for o in members}
    spans = {i: drop for i, drop in drops.items() if drop is not None}
    if len(spans) == len(drops):
        panels.insert(len(targets), Panel("Drop in held-out loss", "nats per token", None,
                                          _curves(curves, axis, spans)))
    return panels


def _curves(curves: Sequence[tuple[str, int, list[TuningOutcome]]], axis: Axis,
            spans: dict[str, Span]) -> tuple[Curve, ...]:
    """The lines of one panel. spans: comparison id -> the value of its measure."""
    return tuple(Curve(label, style, tuple(CurvePoint(x, tuple(spans[o.comparison.id] for o in line if axis(o) == x))
                                           for x in sorted(set(map(axis, line)))))
                 for label, style, line in curves)


def _recipe(tuning: Tuning) -> dict[str, object]:
    """What all fine-tunes of one line have in common."""
    settings = {k: v for k, v in tuning.settings.items() if k not in _DERIVED}
    return {"method": tuning.method, "data": tuning.data_source, **settings}


def _labels(lines: Sequence[TuningOutcome], other_axes: Sequence[Axis]) -> list[str]:
    """The label of each line: the method, the other factors and every other setting, where the lines differ in it."""
    recipes = [_recipe(o.tuning) for o in lines]
    names = {k for r in recipes for k in r if len({canonical(q.get(k)) for q in recipes}) > 1} - {"method"}
    methods, varied = {_method(o.tuning) for o in lines}, [x for x in other_axes if len({x(o) for o in lines}) > 1]
    labels = []
    for outcome, recipe in zip(lines, recipes, strict=True):
        words = [_method(outcome.tuning)] if len(methods) > 1 or not varied else []
        words += [_axis_text(outcome, axis) for axis in varied]
        differing = mapping_text({k: recipe.get(k) for k in sorted(names)})
        labels.append(", ".join([*words, *([differing] if differing else [])]))
    return labels


def _method(tuning: Tuning) -> str:
    """The method in words, without the strength."""
    return method_text(replace(tuning, settings={k: v for k, v in tuning.settings.items() if k != "soften"}))


def _axis_text(outcome: TuningOutcome, axis: Axis) -> str:
    if axis is _examples:
        return f"{fmt.count(outcome.tuning.examples)} examples"
    if axis is _strength:
        return f"strength {100 * _strength(outcome):g} %"
    return f"replay {100 * outcome.share:g} %" if outcome.share else "no replay"
