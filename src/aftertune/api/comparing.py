"""Compares evaluations: verdicts, the items that changed, limits for a build, and how far a model moved."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from aftertune.api.parameters import LedgerPlace, opened, with_settings
from aftertune.api.progress import shown_progress
from aftertune.errors import InputError, nearest
from aftertune.values import Evaluation, GateResult, Margin, Progress, Tuning

if TYPE_CHECKING:
    from aftertune.values import Comparison, Drift, Flips


class AgainSetting(TypedDict, total=False):
    """A further keyword of `compare`."""

    again: bool


class DriftSettings(TypedDict, total=False):
    """Further keywords of `drift`."""

    seed: int
    data: Any
    chat: bool | None
    dtype: str
    device: str
    threads: int | None
    trust_remote_code: bool


#: An evaluation, or its id or name in the ledger.
NamedEvaluation = Evaluation | str
#: A margin in points, or one for each task ("*" for all others), in points or in the unit of a metric that is no share.
PointMargin = float | Margin | Mapping[str, float | Margin]

#: A margin of a share below this many points is refused: it is what version 0.1 took, a fraction.
LEAST_POINTS = 0.1


@with_settings()
def compare(base: NamedEvaluation, tuned: NamedEvaluation, *, margin: PointMargin = 2.0,
            primary: str | Mapping[str, str] | None = None, tasks: Collection[str] = (), common: bool = False,
            force: bool | Collection[str] = False, ledger: LedgerPlace = None, **more: Unpack[AgainSetting]
            ) -> Comparison:
    """Compare two finished evaluations item by item: what was forgotten, what was kept, what improved. The comparison
    is stored in the ledger.

    base, tuned: evaluations, or their ids or names. margin: points; a smaller loss counts as no loss. For some tasks:
    ``{"hellaswag": 5, "average": 1, "*": 2}``; for a task whose metric is no share, in the unit of its metric. primary:
    the metric that gets the verdict, such as "prob", for all tasks or ``{task: metric}``. tasks: only these. common:
    compare on the items that both have. force: compare despite different settings; the result is marked. again=True:
    judge by the current rules what an earlier version of aftertune stored. ledger: as of `evaluate`.

    Raises NotComparable (with its ``differences``) and InputError.
    """
    again = more.get("again", False)
    _check_margins(more)
    tasks, force = [tasks] if isinstance(tasks, str) else tasks, [force] if isinstance(force, str) else force
    from aftertune.comparison import check_margins, compare_again, find_finished
    from aftertune.comparison import compare as run

    with opened(ledger, create=False) as stored:
        left, right = (_by_metrics(find_finished(side, stored), primary) for side in (base, tuned))
        margins = margins_of(margin, left)
        check_margins(margins, [(left, right)], tasks)
        if again:
            if tasks or not isinstance(force, bool):
                raise InputError("again=True judges a whole comparison; leave tasks out, and give force as True or "
                                 "False")
            return compare_again(left, right, margins=margins, ledger=stored, force=force, common=common)
        return run(left, right, margins=margins, ledger=stored, force=force, common=common, tasks=tasks)


def _check_margins(more: Mapping[str, Any]) -> None:
    if "margins" in more:
        raise InputError("margins was a fraction and is now margin, in points, as on the command line: margins=0.02 is "
                         'margin=2, and margins={"hellaswag": 0.05} is margin={"hellaswag": 5}')
    for name in more.keys() - {"again"}:
        raise InputError(f"unknown setting {name!r}; allowed: margin, primary, tasks, common, force, again, ledger")


def _by_metrics(value: Evaluation, primary: str | Mapping[str, str] | None) -> Evaluation:
    """The evaluation with the metrics that get the verdicts."""
    from aftertune.comparison import choose_primary

    chosen = {"": primary} if isinstance(primary, str) else primary or {}
    for task, metric in chosen.items():
        value = choose_primary(value, metric, task)
    return value


def margins_of(margin: PointMargin, base: Evaluation | None, name: str = "margin") -> dict[str, Margin]:
    """Margins as a person writes them, by task; "*" is for all others. base: whose metrics may have units of their own.
    name: of the argument, for messages.

    Raises InputError for a share's margin below 0.1 points, which is probably a fraction; a `Margin` may be smaller.
    """
    given = margin if isinstance(margin, Mapping) else {"*": margin}
    own = {s.task for s in base.scores if s.primary and not s.fraction} if base else set()
    margins = {}
    for task, value in given.items():
        if isinstance(value, Margin):
            margins[task] = value
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0 or (
                value > 100 and task not in own):
            raise InputError(f"{name} is {value!r}; allowed are points above 0, up to 100, such as {name}=2, or one "
                             f'for each task, such as {name}={{"hellaswag": 5}}')
        if value < LEAST_POINTS and task not in own:
            raise InputError(f"{name} is {value:g}, which is {value:g} points; it is given in points, not as a "
                             f"fraction: write {100 * value:g} for {100 * value:g} points (for less than "
                             f"{LEAST_POINTS:g} points: aftertune.Margin(share={value / 100:g}))")
        margins[task] = Margin(value / 100) if task == "*" else Margin.given(value)
    return margins


@with_settings()
def flips(base: NamedEvaluation, tuned: NamedEvaluation, task: str, *, metric: str | None = None,
          direction: Literal["lost", "gained"] | None = None, common: bool = False, force: bool = False,
          ledger: LedgerPlace = None) -> Flips:
    """The items of a task that one model answered right and the other wrong, with both answers.

    metric: default: the task's primary one. direction: only items that became wrong ("lost") or right ("gained").
    common, force, ledger: as of `compare`. Raises NotComparable and InputError.
    """
    from aftertune.comparison.flips import flips as run

    if direction not in (None, "lost", "gained"):
        raise InputError(f'direction is {direction!r}; allowed are "lost", "gained" and None for both')
    with opened(ledger, create=False) as stored:
        return run(base, tuned, task, ledger=stored, metric=metric, direction=direction, force=force, common=common)


@with_settings()
def gate(base: NamedEvaluation, tuned: NamedEvaluation, max_drop: Mapping[str, float | Margin], *,
         require_proof: bool = False, common: bool = False, ledger: LedgerPlace = None) -> GateResult:
    """Whether a drop beyond a limit is proven; the result is true where the gate passed.

    max_drop: the largest allowed drop of each task, in points or in the unit of a metric that is no share:
    ``{"hellaswag": 2, "average": 1}``. require_proof: also fail where it is not proven that a limit holds. common,
    ledger: as of `compare`. Raises NotComparable and InputError.
    """
    from aftertune.comparison import find_finished
    from aftertune.comparison.gate import gate as run

    if not isinstance(max_drop, Mapping) or not max_drop:
        raise InputError('max_drop names tasks with the largest allowed drop in points, for example {"hellaswag": 2}; '
                         f"found {max_drop!r}")
    with opened(ledger, create=False) as stored:
        left, right = find_finished(base, stored), find_finished(tuned, stored)
        limits = margins_of(max_drop, left, "max_drop")
        comparison, lines = run(left, right, limits, ledger=stored, require_proof=require_proof, common=common)
    return GateResult(comparison=comparison, lines=lines)


@with_settings()
def drift(base: str, tuned: Any, *, prompts: int = 64, tokens: int = 64, ledger: LedgerPlace = None,
          progress: Progress | bool | None = None, **options: Unpack[DriftSettings]) -> Drift:
    """How far a fine-tune moved a model: the KL divergence on texts that the base writes. No benchmark is needed.

    base: a model as of `evaluate`. tuned: an adapter of it, a whole model, or a fine-tune (a `Tuning`, its folder, id
    or name). prompts: the most prompts of each kind. tokens: the most tokens of each continuation. options: seed, data
    (a file or rows whose prompts are used instead of the held-out ones), chat (format the general prompts with the chat
    template), dtype, device, threads, trust_remote_code. ledger, progress: as of `evaluate`.

    Raises SourceError, InputError and ResourceError.
    """
    from dataclasses import fields

    from aftertune.api.rows import stored_rows
    from aftertune.drift import DriftOptions, measure_drift

    allowed = [f.name for f in fields(DriftOptions)]
    for name in options:
        if name not in allowed:
            raise InputError(f"unknown setting {name!r}{nearest(name, allowed)}; allowed: {', '.join(allowed)}")
    for side, value, kinds in (("base", base, str | Path), ("tuned", tuned, str | Path | Tuning)):
        if not isinstance(value, kinds):
            raise InputError(f"{side} is a {type(value).__name__}; drift loads both models by itself: give a folder or "
                             "an id (model.save_pretrained(FOLDER) writes a folder)")
    word = str(tuned.output if isinstance(tuned, Tuning) else tuned)
    from aftertune.engine.devices import caller_state

    with opened(ledger) as stored, shown_progress(progress) as update, caller_state():
        data = options.get("data")
        file = None if data is None else stored_rows(data, stored.database.folder / "data")
        further: dict[str, Any] = {**options, "data": file}
        return measure_drift(str(base), word, DriftOptions(prompts=prompts, tokens=tokens, **further), ledger=stored,
                             progress=update)


def words_of(only: Iterable[NamedEvaluation] | NamedEvaluation) -> list[str]:
    """Evaluations, or their ids or names, as ids or names."""
    listed = list(only) if isinstance(only, Iterable) and not isinstance(only, str) else [only]
    for value in listed:
        if not isinstance(value, str | Evaluation):
            raise InputError(f"only has a {type(value).__name__}; allowed are evaluations, and their ids or names")
    return [value.id if isinstance(value, Evaluation) else str(value) for value in listed]
