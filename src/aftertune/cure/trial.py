"""Makes models from fine-tunes without training, scores them together, and hands on the one that is chosen.

    proposals = [Proposal("strength 0.4", {"all": 0.4}, write), …]      in the order of preference
    cured = run_trial(Trial("soften", [parent], proposals, request), ledger=ledger)
    cured.tuning.cure.outcome, cured.written                            "confirmed", True

Every cure is such a trial: the base and each proposal answer the items that choose; one is chosen; it, the base and the
fine-tune answer the items that confirm (`aftertune.cure.choosing`). Answers are stored in the ledger batch by batch and
belong to a model by its content. So a trial that was stopped at any moment continues when the same command runs again,
and a finished one computes nothing.

A proposal is written to a temporary folder and evaluated from there, exactly as it would be handed on. Adapters of one
form take turns on one base in memory: only their values are copied.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aftertune import tasks
from aftertune.catalog import MetricKey
from aftertune.comparison import compare
from aftertune.cure.choosing import MARGIN, AskedTask, Goal, choose, confirm, confirms, measure, refusal
from aftertune.cure.chosen_items import ChoosingItems, items_that_chose
from aftertune.cure.looks import LookKey, earlier_looks, look, trained_tunings
from aftertune.cure.parents import Parent
from aftertune.cure.retraining import Retraining
from aftertune.errors import AftertuneError, InputError
from aftertune.evaluation import EvaluationRun
from aftertune.forgetting_watch import item_clusters, primary_values, refuse_own_unit
from aftertune.harness.evaluated import LiveModel, identify
from aftertune.paths import exists
from aftertune.provenance import capture, finish
from aftertune.sources import BaseModelCache, fingerprint_file
from aftertune.sources.cache import remove_path, temporary_path
from aftertune.sources.library_errors import disk_errors
from aftertune.study import EvalSpec, TaskSpec, checked
from aftertune.tasks import LoadedTask, LoadOptions
from aftertune.tuning import output
from aftertune.values import Answer, Candidate, Cure, Evaluation, Half, Margin, Progress, Tuning, digest

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

#: With fewer items than this in a part, a task cannot choose and confirm.
FEWEST = 8
#: Models that answer the items that confirm beside the base: the chosen one and the fine-tune.
_CONFIRMING = 2
_PARTS: Mapping[Half, str] = {"choice": "choose", "report": "confirm"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CureRequest:
    """What a cure should reach, and how it is measured.

    keep: margin of each task that should be kept, in points; items: random items of each of them. target: the task that
    shows what was learned. require_proof: hand on only what is confirmed. out: the output folder. settings: other
    fields of EvalSpec.
    """

    keep: Mapping[str, float]
    items: int = 400
    target: TaskSpec | None = None
    require_proof: bool = False
    out: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def goal(self) -> Goal:
        return Goal(self.keep, self.target.name if self.target else "")

    @property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """All tasks, the target first."""
        kept = [checked(TaskSpec, name=name, sample=self.items) for name in self.keep]
        return (*([self.target] if self.target else []), *kept)


    def asked_like(self, tuning: Tuning) -> CureRequest:
        """The request with the target asked in the form in which the fine-tune was trained, unless it says how."""
        if self.target is None or self.target.apply_chat_template is not None:
            return self
        chat = tuning.settings.get("template") == "chat"
        return replace(self, target=self.target.model_copy(update={"apply_chat_template": chat}))


@dataclass(frozen=True, slots=True)
class Proposal:
    """A model that may be handed on. name: as it is shown; parts: as in `Candidate`; write: writes it to a new folder,
    without a manifest. turn: those with a smaller number are scored first, which matters under a budget."""

    name: str
    parts: Mapping[str, float]
    write: Callable[[Path], None]
    turn: int = 0


@dataclass(frozen=True, slots=True)
class Trial:
    """Proposals of one kind of cure. parents: the fine-tunes that they are made from, all of one base and one form.
    minutes: budget, None for none; the first proposal is scored in any case. skipped: what was left out before, by
    name, with the reason. finer: makes one more proposal from what the others showed on the items that choose, with the
    name of the one that it is preferred after; None if there is nothing between them."""

    kind: str
    parents: Sequence[Parent]
    proposals: Sequence[Proposal]
    request: CureRequest
    minutes: float | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    finer: Callable[[Sequence[Candidate]], tuple[Proposal, str] | None] | None = None

    @property
    def id(self) -> str:
        """Id of the resulting tuning: a hash of what decides it."""
        request = self.request
        return "t-" + digest([
            self.kind, [p.result for p in self.parents], [[p.name, dict(p.parts)] for p in self.proposals],
            dict(request.keep), [{"letters": False, **task.settings()} for task in request.tasks],
            [fingerprint_file(task.target.file) for task in request.tasks if task.target],
            {k: str(v) for k, v in request.settings.items() if k != "threads"},
            *([] if self.minutes is None else [self.minutes]), *(["finer"] if self.finer else [])])[:10]

    @property
    def out(self) -> Path:
        """The output folder: by default beside that of the first parent."""
        folder = self.parents[0].files.folder.resolve()
        return self.request.out or folder.with_name(f"{folder.name}-{_ENDINGS[self.kind]}")


_ENDINGS = {"soften": "softened", "blend": "blended", "cure": "cured"}


@dataclass(frozen=True, slots=True)
class Cured:
    """The result. tuning: its record, with the cure; written: whether a model was written to ``tuning.output``. again:
    ways to train again, of `cure` alone."""

    tuning: Tuning
    written: bool
    again: tuple[Retraining, ...] = ()

    @property
    def cure(self) -> Cure:
        """How the model was chosen, and what is confirmed of it."""
        assert self.tuning.cure is not None
        return self.tuning.cure

    @property
    def failed(self) -> bool:
        """True if there is nothing to hand on: no model may be chosen, or the chosen one is not good enough."""
        return not self.written and not self.as_tuned

    @property
    def as_tuned(self) -> bool:
        """True if the fine-tune itself was chosen, so there is nothing to write."""
        chosen = next((c for c in self.cure.candidates if c.name == self.cure.chosen), None)
        return chosen is not None and chosen.result in self.cure.parents.values() and self.cure.outcome != "failed"


def run_trial(trial: Trial, *, ledger: Ledger, progress: Progress | None = None) -> Cured:
    """Score the proposals, choose one, confirm it and write it, or say why there is none to write.

    Raises InputError (tasks, too few items, an output folder with something else), TasksFailed, SourceError,
    ResourceError and StorageError.
    """
    done = _finished(trial)
    if done is not None:
        return Cured(ledger.save_tuning(done), True)
    provenance = capture()
    scoring = _Scoring(trial, ledger, progress or (lambda *_: None))
    budget = TimeBudget(trial.minutes, _left_out(trial, ledger))
    before = scoring.base("choice")
    with _scratch(trial.out) as folder:
        tried, candidates, skipped = scoring.candidates(budget, folder, before)
        number = choose([c.points for c in candidates], trial.request.goal)
        cure = Cure(kind=trial.kind, parents={p.tuning.id: p.result for p in trial.parents},
                    keep=dict(trial.request.keep), target=trial.request.goal.target, candidates=tuple(candidates),
                    chosen="" if number is None else candidates[number].name, outcome="failed",
                    seconds=scoring.seconds, alone=scoring.alone(), base=scoring.started["choice"].stored.id,
                    skipped={**trial.skipped, **skipped})
        tuning = _record(trial, cure, provenance, scoring.chose)
        if number is None:
            return _store(replace(tuning, cure=replace(cure, reason=_none_reason(cure))), ledger)
        cure = scoring.confirmed(cure, tried[number], folder, earlier_looks(
            [p.tuning for p in trial.parents], {task.name for task in trial.request.tasks}, ledger))
        tuning, chosen = replace(tuning, cure=cure, provenance=finish(provenance)), candidates[number]
        if scoring.left_out:
            tuning = replace(tuning, notes=(*tuning.notes, _left_out_note(scoring.left_out)))
        refused = cure.outcome == "failed" or (trial.request.require_proof and cure.outcome == "open")
        if refused or chosen.result in cure.parents.values():
            return _store(tuning, ledger)
        tuning = replace(tuning, result=chosen.result,
                         states=tuple(s for s in tuning.states if s != chosen.result))
        _hand_on(trial, tried[number], tuning, folder)
    stored = ledger.save_tuning(tuning)
    if cure.tries == 1:  # a stored comparison is not corrected for tries
        margins = {task: Margin.given(points) for task, points in cure.keep.items()} | {"*": Margin(MARGIN / 100)}
        compare(scoring.evaluated["base"], scoring.evaluated[cure.chosen], margins=margins, ledger=ledger)
    return Cured(stored, True)


# --- The budget ---


class TimeBudget:
    """The budget of one run. minutes: None for no limit.

    earlier: what a finished run of the same trial left out, with the reason; None if there is none. It is left out
    again, so that the same trial always chooses among the same models.
    """

    def __init__(self, minutes: float | None, earlier: Mapping[str, str] | None) -> None:
        self.minutes, self.earlier = minutes, earlier
        self.started, self.base, self.longest = time.monotonic(), 0.0, 0.0

    def scored(self, seconds: float) -> None:
        """A model was scored in so many seconds."""
        self.longest = max(self.longest, seconds)

    def refusal(self, name: str) -> str:
        """Why a model does not fit; "" if it does. The slowest model so far says how long one takes; the base, which
        also loads the tasks, says it for itself alone (``base``, in seconds)."""
        if self.earlier is not None:
            return self.earlier.get(name, "")
        if self.minutes is None:
            return ""
        used, needed = time.monotonic() - self.started, self.base + (1 + _CONFIRMING) * self.longest
        if used + needed <= 60 * self.minutes:
            return ""
        return (f"no time for it in the budget of {self.minutes:g} minutes, because a model takes about "
                f"{self.longest:.0f} s, and the chosen one must still be confirmed")


def _left_out(trial: Trial, ledger: Ledger) -> Mapping[str, str] | None:
    """What a finished run of this trial left out; None if there is none."""
    done = next((t for t in ledger.tunings() if t.id == trial.id), None)
    return done.cure.skipped if done is not None and done.cure is not None else None


# --- Scoring ---


class _Scoring:
    """Evaluates the models of a trial on the items of one part."""

    def __init__(self, trial: Trial, ledger: Ledger, progress: Progress) -> None:
        first = trial.parents[0]
        self.trial, self.ledger, self.progress, self.cache = trial, ledger, progress, BaseModelCache()
        self.first, self.goal, base = first, trial.request.goal, first.tuning.base
        self.spec = checked(EvalSpec, model=base.source, revision=base.revision, tasks=trial.request.tasks,
                            trust_remote_code=base.trust_remote_code, **trial.request.settings)
        trained = trained_tunings([p.tuning for p in trial.parents], ledger)
        self.chose = items_that_chose(trained, trial.request.tasks, LoadOptions(
            include_path=self.spec.include_path, source=self.spec.task_source))
        self.left_out: dict[str, int] = {}  # of each task, items that chose a checkpoint, and so do not confirm
        self.seconds: dict[str, float] = {}
        self.started: dict[Half, EvaluationRun] = {}
        self.evaluated: dict[str, Evaluation] = {}  # on the items that confirm
        self.answering: list[float] = []  # seconds of each candidate
        self.spent = 0.0  # seconds of the last model; of one from the ledger those of its first run
        self.start_up = 0.0  # seconds that the base took beside answering; 0 where it computed nothing
        self.done, self.total = 0, len(trial.proposals) + 1
        self.stage = f"scoring {self.total} models on the items that choose"

    def base(self, part: Half) -> dict[str, list[Answer]]:
        """The answers of the base."""
        run = EvaluationRun(self._named(self.spec, "base", part), self.ledger, self._progress, self.cache,
                            part=partial(self._part, part))
        self.started[part], start = run, time.monotonic()
        evaluation = self._run(run, None)
        if run.engine is not None:
            self.start_up = time.monotonic() - start - float(evaluation.schedule.get("seconds", 0.0))
        answers = run.answers(evaluation)
        for task in run.loaded:
            refuse_own_unit(task, primary_values(task, answers[task.settings.task]),
                            "--target" if task.settings.task == self.goal.target else "--keep")
        return answers

    def candidates(self, budget: TimeBudget, folder: Path, base: Mapping[str, list[Answer]]
                   ) -> tuple[list[Proposal], list[Candidate], dict[str, str]]:
        """The proposals that fit into the budget, in their order, with their candidates; and why the others do not."""
        found: dict[float, tuple[Proposal, Candidate]] = {}
        skipped: dict[str, str] = {}
        budget.base = self.spent

        def score(number: float, proposal: Proposal) -> None:
            if found and (refused := budget.refusal(proposal.name)):
                skipped[proposal.name] = refused
                self.total -= 1
                return
            found[number] = proposal, self.candidate(proposal, folder, base)
            budget.scored(max(self.spent, self.seconds[proposal.name]))

        for number, proposal in sorted(enumerate(self.trial.proposals), key=lambda pair: pair[1].turn):
            score(number, proposal)
        finer = self.trial.finer([found[n][1] for n in sorted(found)]) if self.trial.finer else None
        if finer is not None:
            self.total += 1
            score(0.5 + [p.name for p in self.trial.proposals].index(finer[1]), finer[0])
        ordered = [found[n] for n in sorted(found)]
        return [p for p, _ in ordered], [c for _, c in ordered], skipped

    def candidate(self, proposal: Proposal, folder: Path, base: Mapping[str, list[Answer]]) -> Candidate:
        """A proposal on the items that choose."""
        start = time.monotonic()
        evaluation, values = self._values(proposal, folder, base, "choice")
        self.seconds[proposal.name] = round(time.monotonic() - start, 1)
        self.answering.append(float(evaluation.schedule.get("seconds", 0.0)))
        points = measure(values, self.goal)
        return Candidate(name=proposal.name, parts=dict(proposal.parts), result=evaluation.model.fingerprint,
                         evaluation=evaluation.id, points=points, refused=refusal(points, self.goal))

    def alone(self) -> float:
        """The seconds that all candidates would take as evaluations on their own; 0 where that is not known."""
        return round(sum(self.answering) + len(self.answering) * self.start_up, 1) if self.start_up else 0.0

    def confirmed(self, cure: Cure, chosen: Proposal, folder: Path, looked: Set[LookKey]) -> Cure:
        """The cure with what the items that confirm show of the chosen proposal, and of the fine-tune. looked: earlier
        looks."""
        of_name = {p.name: p for p in self.trial.proposals}
        tuned = next((of_name[c.name] for c in cure.candidates if c.result == self.first.result), None)
        self.done, self.total = 0, 2 + (tuned not in (None, chosen))
        self.stage = f"scoring {self.total} models on the items that confirm"
        base = self.base("report")
        self.evaluated["base"] = self.ledger.find_evaluation(self.started["report"].stored.id)
        self.evaluated[chosen.name], values = self._values(chosen, folder, base, "report")
        tries = len({*looked, look(cure, [(v.task, len(v.before)) for v in values])})
        result = confirm(values, self.goal, tries=tries)
        others = values if tuned in (None, chosen) else self._values(tuned, folder, base, "report")[1]
        return replace(cure, outcome=result.outcome, confirmed=result.points, outcomes=result.outcomes, tries=tries,
                       tuned=confirm(others, self.goal).points if tuned else (),
                       reason=_outcome_reason(cure, result.outcomes))

    def _values(self, proposal: Proposal, folder: Path, base: Mapping[str, list[Answer]], part: Half
                ) -> tuple[Evaluation, list[AskedTask]]:
        """The evaluation of a proposal, and its values beside those of the base."""
        written = folder / _slug(proposal.name)
        proposal.write(written)
        try:
            run = self._proposal_run(proposal, written, part)
            evaluation = self._run(run, self.started[part])
        finally:
            remove_path(written)
        answers = run.answers(evaluation)
        return evaluation, [_values_of(task, base[task.settings.task], answers[task.settings.task])
                            for task in run.loaded]

    def _proposal_run(self, proposal: Proposal, written: Path, part: Half) -> EvaluationRun:
        """The evaluation of the model in a temporary folder, under a name that stays."""
        label = f"{self.first.files.folder} at {proposal.name}"
        if self.first.files.adapter:
            spec = self.spec.model_copy(update={"adapter": str(written)})
            found = identify(spec)
            identity = replace(found.identity, adapter_source=label)
        else:
            spec = self.spec.model_copy(update={"model": str(written), "revision": None})
            found = identify(spec)
            identity = replace(found.identity, source=label)

        def load() -> Any:
            assert found.source is not None
            return self.cache.load(found.source, found.dtype, found.device, found.adapter, tokenizer=found.tokenizer)

        live = LiveModel(load, replace(found, identity=identity, adapter=None))
        return EvaluationRun(self._named(spec, _slug(proposal.name), part), self.ledger, self._progress, live=live,
                             part=partial(self._part, part))

    def _named(self, spec: EvalSpec, what: str, part: Half) -> EvalSpec:
        return spec.model_copy(update={"name": f"{self.first.tuning.name[:40]}-{what}-{_PARTS[part]}"})

    def _part(self, part: Half, loaded: list[LoadedTask]) -> list[LoadedTask]:
        """The tasks with the items of one part. Raises InputError where a task has too few."""
        return [self._items_of(task, part) for task in _single_tasks(loaded, self.goal)]

    def _items_of(self, task: LoadedTask, part: Half) -> LoadedTask:
        """The task with the items that choose, or with those that confirm. Items that chose a checkpoint of the
        fine-tune confirm nothing."""
        name, hashes = task.settings.task, self.chose.all
        labels = [label or item.hash for label, item in zip(item_clusters(task), task.items, strict=True)]
        chose = {label for label, item in zip(labels, task.items, strict=True) if item.hash in hashes}
        parts: dict[Half, list[int]] = {"choice": [], "report": []}
        for index, label in enumerate(labels):
            parts["report" if confirms(label) else "choice"].append(index)
        confirming = [index for index in parts["report"] if labels[index] not in chose]
        if left_out := len(parts["report"]) - len(confirming):
            self.left_out[name], parts["report"] = left_out, confirming
        if (fewest := min(map(len, parts.values()))) < FEWEST:
            option = f"a larger --target {name}=N" if name == self.goal.target else "a larger --items"
            rest = f" ({left_out} chose the checkpoint, --keep-best)" if left_out else ""
            raise InputError(f"{name}: {len(labels)} items{rest} are too few to choose on one part of them and confirm "
                             f"on the other (the smaller part has {fewest}, needed are {FEWEST}); give {option}, or "
                             "another task")
        return tasks.part_of_task(task, parts[part], _PARTS[part])

    def _run(self, run: EvaluationRun, like: EvaluationRun | None) -> Evaluation:
        start = time.monotonic()
        evaluation = run.run(like)
        self.spent = max(time.monotonic() - start, float(evaluation.schedule.get("seconds", 0.0)))
        self.done += 1
        self.progress(1000 * self.done, 1000 * self.total, self.stage)
        return evaluation

    def _progress(self, done: int, total: int, text: str) -> None:
        """The progress of one model as that of all, so that the remaining time is that of all."""
        del text
        self.progress(1000 * self.done + (1000 * done // total if total else 0), 1000 * self.total, self.stage)


def _single_tasks(loaded: list[LoadedTask], goal: Goal) -> list[LoadedTask]:
    """The tasks. Raises InputError where a name stands for a group of tasks."""
    names = {task.settings.task for task in loaded}
    for name in (*goal.keep, *([goal.target] if goal.target else [])):
        if name not in names:
            members = sorted(t.settings.task for t in loaded if name in t.groups)
            raise InputError(f"--keep {name}: it is a group of {len(members)} tasks, and a cure needs single ones; "
                             f"name a task of it, for example {(members or ['hellaswag'])[0]}")
    return loaded


def _values_of(task: LoadedTask, before: Sequence[Answer], after: Sequence[Answer]) -> AskedTask:
    settings, key = task.settings, MetricKey(task.settings.primary)
    first, second = (np.array(primary_values(task, side), dtype=np.float64) for side in (before, after))
    return AskedTask(task=settings.task, metric=key.metric, before=first, after=second, clusters=item_clusters(task),
                      chance=settings.chance, higher_is_better=settings.higher_is_better.get(key.metric, True))


def _slug(name: str) -> str:
    return name.replace(" ", "-").replace(",", "")


# --- Sentences ---


def _none_reason(cure: Cure) -> str:
    """Why no candidate may be chosen."""
    reasons = list(dict.fromkeys(f"{c.name} {c.refused}" for c in cure.candidates))
    return f"none of {len(cure.candidates)} models may be chosen: {'; '.join(reasons)}"


def _outcome_reason(cure: Cure, outcomes: Mapping[str, str]) -> str:
    """What is confirmed of the chosen candidate, in one sentence."""
    lost = [task for task, outcome in outcomes.items() if outcome == "lost"]
    if lost:
        return (f"{cure.chosen} was the best choice, but on the items that confirm it still loses on "
                f"{', '.join(lost)}, which is proven")
    still_open = [task for task, outcome in outcomes.items() if outcome == "open"]
    kept = [task for task, outcome in outcomes.items() if outcome == "kept"]
    parts = []
    if kept:
        parts.append(f"a loss beyond the margin is ruled out on {', '.join(kept)}")
    if outcomes.get(cure.target) == "learned":
        parts.append(f"a gain on {cure.target} is proven")
    if (kept_open := [task for task in still_open if task != cure.target]):
        parts.append(f"no loss beyond the margin is proven on {', '.join(kept_open)}, but none is ruled out either "
                     "(more --items decide it)")
    if cure.target in still_open:
        parts.append(f"a gain on {cure.target} is not proven")
    if floor := [task for task, outcome in outcomes.items() if outcome == "floor"]:
        parts.append(f"on {', '.join(floor)} the base only guesses, so there is nothing to lose")
    return f"{cure.chosen}: {'; '.join(parts)}"


# --- The record and the output folder ---


def _record(trial: Trial, cure: Cure, provenance: Any, chose: ChoosingItems) -> Tuning:
    """The trial as a tuning that made no model yet."""
    parent = trial.parents[0]
    tuned = parent.tuning
    states = dict.fromkeys(c.result for c in cure.candidates if not any(p.tuning.made(c.result) for p in trial.parents))
    notes: tuple[str, ...] = (
        f"made without training ({cure.kind}) from {', '.join(p.tuning.name for p in trial.parents)}; its data and "
        "settings are those of the first of them",)
    if tuned.settings.get("template") == "alpaca" and cure.target:
        notes += (f"it was trained with Alpaca prompts, but {cure.target} is asked without; write them into its file",)
    if unknown := sorted({*chose.unknown} & {*cure.keep, cure.target}):
        notes += (f"its checkpoint was chosen (--keep-best) on items of {', '.join(unknown)} that are not known any "
                  "more; some of them may be among those that confirm here, which favours it",)
    return Tuning(
        id=trial.id, name=trial.out.name, base=tuned.base, method=parent.method, data=tuned.data,
        data_source=tuned.data_source, examples=tuned.examples, seed=tuned.seed,
        settings={**tuned.settings, "cure": cure.kind}, output=str(trial.out), status="done",
        trainable_parameters=tuned.trainable_parameters, counts=tuned.counts, overlap=tuned.overlap, notes=notes,
        provenance=finish(provenance), states=tuple(states), cure=cure)


def _left_out_note(left_out: Mapping[str, int]) -> str:
    items = ", ".join(f"{n} of {task}" for task, n in sorted(left_out.items()))
    return f"its checkpoint was chosen (--keep-best) on some of these items, which do not confirm: {items}"


def _store(tuning: Tuning, ledger: Ledger) -> Cured:
    return Cured(ledger.save_tuning(tuning), False)


def _finished(trial: Trial) -> Tuning | None:
    """The finished result in the output folder, or None. Raises InputError if the folder holds something else."""
    out = trial.out
    if not exists(out) or (out.is_dir() and not any(out.iterdir())):
        return None
    tuning = output.read_manifest(out)
    if tuning is not None and tuning.id == trial.id and tuning.cure is not None:
        parent = trial.parents[0]
        with suppress(AftertuneError):  # damaged
            if output.result_of(out, parent.method, parent.tuning.base) == tuning.result and \
                    (tuning.cure.outcome == "confirmed" or not trial.request.require_proof):
                return replace(tuning, output=str(out))
    raise InputError(f"{out}: it holds something else than this command would write; remove it, or give another --out")


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """A temporary folder beside the output folder. Those of killed processes are removed."""
    with disk_errors(out, "run the same command again"):
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = temporary_path(out)
        folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _hand_on(trial: Trial, chosen: Proposal, tuning: Tuning, scratch: Path) -> None:
    """Write the chosen model to the output folder, completely or not at all."""
    written = scratch / "result"
    chosen.write(written)
    output.write_manifest(written, tuning)
    with disk_errors(trial.out, "run the same command again"):
        if trial.out.is_dir():
            trial.out.rmdir()  # it is empty
        written.rename(trial.out)
