"""Plans a study: the state, cost and command of every cell, and what is missing to run it.

    for cell in plan(study, ledger=ledger, file="study.yaml"):
        cell.name, cell.status, cell.cost.seconds, cell.command, cell.missing

    Costs(study, ledger).of(cell)        Cost(seconds=…, memory=…, disk=…, basis="the pace of evaluation base")

Nothing is downloaded or run. A cell is done if the ledger has its result for the study's present settings. It is
reported if an imported document has scores of a model with its name.

Costs come from the ledger if it has a similar cell (same method, or same tasks): its time is scaled by parameters and
items. Otherwise the cost is the number of tokens times the operations of the model, at a rate that is measured on this
machine in a moment. Model sizes come from presets, or from the configs of models that are already here. Training data
that are here are encoded, if they are not large, because the longest examples decide the memory.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from aftertune.catalog import closest, leaves
from aftertune.comparison.weighted_draws import FEW
from aftertune.errors import AftertuneError
from aftertune.ledger import Ledger, StoredCell
from aftertune.ledger.running import RunningEntry
from aftertune.methods import METHODS, writes_adapter
from aftertune.paths import is_file
from aftertune.pipeline.cells import Cell, cells_of, changed_cells, digests_of
from aftertune.pipeline.scheduling import UNKNOWN_SECONDS, CellJob
from aftertune.sources import resolve_model, shape_of
from aftertune.sources.folder_lock import try_folder_lock
from aftertune.sources.hub import offline, offline_only
from aftertune.stats.planning import USUAL_DISCORDANCE, items_until_kept
from aftertune.stats.verdict import ALPHA
from aftertune.stats.weighted import enough_items
from aftertune.study import BaseSpec, EarlySpec, Study, TaskSpec, TuneSpec, on_hub
from aftertune.study.anchor import AnchorSetting
from aftertune.study.cured import made_from
from aftertune.study.links import QUANTIZER, QUANTIZER_TYPES, Link
from aftertune.study.presets import ModelShape, preset_of
from aftertune.tasks.data import choose_source
from aftertune.tuning.estimate import (
    DTYPE_BYTES,
    UTILIZATION,
    Machine,
    Workload,
    estimate,
    shape_and_workload,
    with_writing,
    writing_seconds,
)
from aftertune.tuning.unsloth import unavailable_error
from aftertune.values import Tuning, digest
from aftertune.values.reported import plain_name

if TYPE_CHECKING:
    from aftertune.report import Planned

# --- Costs ---

#: Assumed for a task that the catalog does not list: number of items, and tokens that the engine computes for one.
UNLISTED = (1000, 120)
#: Assumed number of rows of a data file that is not here or whose lines are not counted.
ROWS = 1000
#: Bytes of a data file up to which it is read and encoded for an estimate.
LARGE = 4 * 2**20
#: Memory of the interpreter with its libraries and of one batch, in bytes.
PROGRAM = 2**30
#: Engines whose evaluations several processes can compute together.
SHARED_ENGINES = ("packed", "plain")
#: Assumed bytes a second at which the weights of a model are read.
READ_RATE = 10**9


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one cell on this machine; None where the model's size is not known.

    seconds: of its run; memory, disk: bytes; basis: what the seconds are based on; estimated: True if the model's
    config was not read and its shape is a preset's.
    """

    seconds: float | None
    memory: int | None
    disk: int | None
    basis: str
    estimated: bool = False


_UNKNOWN_SIZE = "the model's size is not known until its config is downloaded"


class Costs:
    """The costs of one study's cells on this machine."""

    def __init__(self, study: Study, ledger: Ledger | None) -> None:
        self.study = study
        self.cured = made_from(study.tunings)
        self.evaluations = [e for e in ledger.evaluations() if e.status == "done"] if ledger else []
        self.tunings = [t for t in ledger.tunings() if t.status == "done"] if ledger else []
        self._shapes: dict[str, tuple[ModelShape | None, bool]] = {}
        self._workloads: dict[str, Workload] = {}

    def of(self, cell: Cell) -> Cost:
        """The cost of a cell."""
        return self._tuning(cell.subject) if cell.kind == "tuning" else self._evaluation(cell)

    def shape(self, base: BaseSpec) -> tuple[ModelShape | None, bool]:
        """A base's shape, or None if it is not known, and whether it was taken without reading the config."""
        if base.model not in self._shapes:
            preset = preset_of(base.model)
            try:
                with offline_only():
                    shape, guessed = shape_of(resolve_model(base.model, revision=base.revision)), False
            except AftertuneError:
                shape, guessed = (preset.shape if preset else None), True
            self._shapes[base.model] = shape, guessed
        return self._shapes[base.model]

    @cached_property
    def machine(self) -> Machine:
        """The device, dtype and speed of a run; a CPU if the study's device or dtype is not available here."""
        from aftertune.engine.devices import choose_device, choose_dtype, matmul_rate, set_threads

        set_threads()
        try:
            device = choose_device(self.study.device)
            dtype = choose_dtype(self.study.dtype, device)
        except AftertuneError:
            device = "cpu"
            dtype = choose_dtype("auto", device)
        return Machine(device, dtype, matmul_rate(device, dtype))

    def _evaluation(self, cell: Cell) -> Cost:
        name = cell.subject
        base = self.study.bases[name if cell.kind == "base" else self.study.tunings[name].base]
        shape, guessed = self.shape(base)
        if shape is None:
            return Cost(None, None, None, _UNKNOWN_SIZE, estimated=True)
        tasks = [t for t in self.study.tasks if t.asks(name)]
        memory = int(DTYPE_BYTES[self.machine.dtype] * shape.parameters * 2) + PROGRAM
        disk = 2 * shape.parameters if guessed else 0
        similar = self._similar_evaluation(cell, shape, tasks)
        if similar is not None:
            return Cost(similar[0], memory, disk, similar[1], guessed)
        early = {e.task: e.items for e in self.early(cell)}
        tokens = sum(early.get(t.name, items_of(t, self.study.task_source)) * _tokens(t) for t in tasks)
        assert self.machine.rate is not None
        seconds = 2 * tokens * (shape.products + shape.vocabulary * shape.hidden) / (self.machine.rate * UTILIZATION)
        basis = f"{tokens:,} tokens at {self.machine.rate / 1e9:,.0f} G operations/s"
        return Cost(seconds, memory, disk, basis, guessed)

    def early(self, cell: Cell) -> tuple[EarlyItems, ...]:
        """About how many items the tasks of a fine-tune are asked that stop at their verdicts."""
        rule = self.study.early_rule(cell.subject) if cell.kind == "tuned" else None
        return () if rule is None else tuple(early_items(self.study, cell.subject, rule))

    def _similar_evaluation(self, cell: Cell, shape: ModelShape, tasks: list[TaskSpec]) -> tuple[float, str] | None:
        """(seconds, basis) from the last evaluation of the same tasks on this device; None if there is none."""
        names = {task.name for task in tasks}
        for done in reversed(self.evaluations):
            if {_study_name(t.task, names) for t in done.tasks} == names and done.model.parameters \
                    and done.device.split()[0].split(":")[0] == self.machine.device.split(":")[0] \
                    and isinstance(done.schedule.get("seconds"), int | float):
                early = {e.task: e.items for e in self.early(cell)}
                items = sum(early.get(t.name, items_of(t, self.study.task_source)) for t in tasks)
                share = items / max(sum(t.n if t.used is None else t.used for t in done.tasks), 1)
                seconds = done.schedule["seconds"] * share * shape.parameters / done.model.parameters
                return seconds, f"the pace of evaluation {done.name}"
        return None

    def _tuning(self, name: str) -> Cost:
        recipe = self.study.tunings[name]
        base = self.study.bases[recipe.base]
        shape, guessed = self.shape(base)
        if shape is None:
            return Cost(None, None, None, _UNKNOWN_SIZE, estimated=True)
        if name in self.cured:
            size = 0 if METHODS[recipe.method].adapter else DTYPE_BYTES[self.machine.dtype] * shape.parameters
            return Cost(0.0, PROGRAM, size, f"made from {self.cured[name]} without training", guessed)
        spec = recipe.spec(base, name=name, dtype="auto", device="auto", out=Path())
        load = self._workload(spec, guess=guessed)
        estimated, writing = estimate(shape, spec, load, self.machine), 0.0
        if count := self._answers_to_write(name):
            estimated = with_writing(estimated, shape, count, self.machine)
            writing = writing_seconds(shape, count, self.machine)
        pace = self._pace(shape, spec, load)
        if pace is None:
            return Cost(estimated.seconds, estimated.memory, estimated.disk, estimated.basis, guessed)
        seconds = writing + pace[0] * estimated.steps * spec.batch_size * spec.accumulation
        return Cost(seconds, estimated.memory, estimated.disk, pace[1], guessed)

    def _workload(self, spec: TuneSpec, *, guess: bool) -> Workload:
        """The data of an epoch: encoded if the files are here and not large, else of the usual length. guess: the model
        is not here, and with it no tokenizer."""
        examples, replay = _examples(spec), spec.replay
        guessed = Workload.guessed(examples, spec.max_length, examples - _new_examples(spec))
        files = [spec.data.file, *([replay.data.file] if replay and replay.base is None else [])]
        if guess or not all(is_file(file) and file.stat().st_size <= LARGE for file in files):
            return guessed
        key = digest([spec.model, spec.revision, spec.data.model_dump(mode="json"), spec.template, spec.max_length,
                      replay.model_dump(mode="json") if replay and replay.base is None else None])
        if key not in self._workloads:
            with suppress(AftertuneError), offline_only():
                self._workloads[key] = shape_and_workload(spec)[1]
        found = self._workloads.setdefault(key, guessed)
        return found.with_answers(replay.base.count, spec.max_length) if replay and replay.base and found != guessed \
            else found

    def _pace(self, shape: ModelShape, spec: TuneSpec, load: Workload) -> tuple[float, str] | None:
        """(seconds per example, basis) of a tuning, from the last one of its method; None without any.

        Without one of its method, the pace of the last other tuning is multiplied by the ratio of the two methods'
        operations. An estimate from a rate of this machine beside a measured pace would make one of the two look
        cheaper that is not.
        """
        active = AnchorSetting.active(spec.anchor)
        anchor = str(active) if active else None
        timed = [(t, pace / t.base.parameters) for t in reversed(self.tunings)
                 if (pace := _pace(t)) and t.base.parameters and t.method in METHODS]
        alike = next((x for x in timed if (x[0].method, x[0].settings.get("anchor")) == (spec.method, anchor)), None)
        if alike is not None:
            return alike[1] * shape.parameters, f"the pace of tuning {alike[0].name}"
        if not timed:
            return None
        other, per_parameter = timed[0]
        theirs = estimate(shape, spec.model_copy(update={
            "method": other.method, "anchor": other.settings.get("anchor")}), load, self.machine)
        own = estimate(shape, spec, load, self.machine)
        if not theirs.seconds or not own.seconds:
            return None
        return (per_parameter * shape.parameters * own.seconds / theirs.seconds,
                f"the pace of tuning {other.name}, and the operations of {spec.method} beside those of {other.method}")

    def _answers_to_write(self, name: str) -> int:
        """How many answers the base writes for the replay of a tuning: of several tunings with the same base and
        prompts, the first writes them for all."""
        recipe = self.study.tunings[name]
        if recipe.replay is None or recipe.replay.base is None:
            return 0
        alike = [(other, tuning.replay.base.count) for other, tuning in self.study.tunings.items()
                 if other not in self.cured and tuning.base == recipe.base and tuning.template == recipe.template
                 and tuning.replay and tuning.replay.base and tuning.replay.base.file == recipe.replay.base.file]
        return max(count for _, count in alike) if alike[0][0] == name else 0


def cell_jobs(cells: Sequence[Cell], costs: Costs, done: Collection[str] = ()) -> list[CellJob]:
    """The cells as the schedule sees them. done: names of cells that earlier runs finished; they are only looked up."""
    jobs = []
    for cell in cells:
        cost = costs.of(cell)
        base = _loaded_base(cell, costs.study)
        load = max((cost.memory or 0) - PROGRAM, 0) / 2 / READ_RATE if base else 0.0
        seconds = 1.0 if cell.name in done else UNKNOWN_SECONDS if cost.seconds is None else cost.seconds
        jobs.append(CellJob(cell.name, seconds, cell.needs, base, load, cost.memory or 0, cost.disk or 0,
                            shared=cell.kind in ("base", "tuned") and costs.study.engine in SHARED_ENGINES))
    return jobs


def _loaded_base(cell: Cell, study: Study) -> str:
    """The base that stays loaded after a cell: that of an evaluation of it or of one of its adapters; else ""."""
    if cell.kind == "base":
        return study.bases[cell.subject].model
    if cell.kind == "tuned" and writes_adapter(study.tunings[cell.subject].method):
        return study.bases[study.tunings[cell.subject].base].model
    return ""


def items_of(task: TaskSpec, source: str) -> int:
    """Number of items of a task, estimated without reading the task. source: the study's ``task_source``."""
    limits = [n for n in (task.sample, task.limit) if n is not None]
    if task.target is not None:
        return limits[0] if limits else _rows(task.target.file)
    row = closest(task.name)
    return min([*limits, UNLISTED[0] if row is None else row.items[choose_source(task.name, source)]])


@dataclass(frozen=True, slots=True)
class EarlyItems:
    """About how many items of a task a fine-tune is asked until its verdict, if it loses nothing. total: that the task
    has; weighted: whether they are drawn where the base was unsure."""

    task: str
    items: int
    total: int
    weighted: bool


def early_items(study: Study, name: str, rule: EarlySpec) -> Iterator[EarlyItems]:
    """The estimate for each task of a fine-tune that stops at its verdict, at the usual discordance."""
    asked = [t for t in study.tasks if t.asks(name)]
    models = rule.target == "models"
    for task in asked:
        row, total = closest(task.name), items_of(task, study.task_source)
        margin = (rule.margin if task.margin is None else task.margin) / 100
        if not study.stops(task) or not 0 < margin < 1:
            continue
        tests = [total] if row is None or row.scored else [items_of(task.model_copy(update={"name": leaf}),
                                                                    study.task_source) for leaf in row.leaves]
        family = sum(1 if (r := closest(t.name)) is None or r.scored else len(r.leaves)
                     for t in asked if (t.target is None) == (task.target is None))
        weighted = (rule.draw != "uniform" and task.target is None and row is not None and row.choices is not None
                    and min(tests) > FEW and (not models or enough_items(min(tests), margin)))
        items = sum(min(n, rule.max_items or n, max(rule.min_items, items_until_kept(
            USUAL_DISCORDANCE, margin, n, alpha=ALPHA / family, models=models, weighted=weighted))) for n in tests)
        yield EarlyItems(task.name, items, sum(tests), weighted)


def _tokens(task: TaskSpec) -> int:
    """Tokens that the engine computes for one item."""
    if task.target is not None:
        return 60 + task.target.max_tokens
    row = closest(task.name)
    return UNLISTED[1] if row is None else row.tokens


def _study_name(task: str, names: set[str]) -> str:
    """The one of ``names`` that ``task`` belongs to: its own, or its group's."""
    return task if task in names else next((n for n in names if task in leaves(n) or task.startswith(f"{n}_")), task)


def _examples(spec: TuneSpec) -> int:
    """Number of examples that a tuning trains on, with replay, estimated from the lines of the file."""
    examples = _new_examples(spec)
    if spec.replay is None:
        return examples
    return examples + spec.replay.base.count if spec.replay.base else int(examples / (1 - (spec.replay.share or 0)))


def _new_examples(spec: TuneSpec) -> int:
    return spec.data.examples or (ROWS if on_hub(spec.data.file) else _rows(spec.data.file))


def _rows(file: Path) -> int:
    try:
        with file.open("rb") as lines:
            return sum(1 for _ in lines) if file.suffix in (".jsonl", ".csv") else ROWS
    except OSError:
        return ROWS


def _pace(tuning: Tuning) -> float | None:
    """Seconds per example."""
    seconds, settings = tuning.cost.get("seconds"), tuning.settings
    examples = len(tuning.steps) * settings.get("batch_size", 0) * settings.get("accumulation", 1)
    return seconds / examples if seconds and examples else None


# --- The plan ---


_VERB = {"evaluation": "evaluate", "tuning": "tune"}
CellStatus = Literal["planned", "running", "done", "failed", "reported"]


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """The state of one cell.

    command: runs it; missing: what must be there before it can run; why: why it failed or runs again, else ""; early:
    the tasks that stop at their verdicts; needs: names of the cells before it; job: as the schedule sees it.
    """

    name: str
    status: CellStatus
    cost: Cost
    command: str
    missing: tuple[str, ...] = ()
    why: str = ""
    early: tuple[EarlyItems, ...] = ()
    needs: tuple[str, ...] = ()
    job: CellJob | None = None


def plan(study: Study, *, ledger: Ledger | None, file: str, out: Path | None = None,
         sets: Sequence[str] = ()) -> list[PlannedCell]:
    """Every cell of ``study`` in the order of a run.

    file, sets: of the study and its changes, for the commands; out: folder of the run, also to see whether another
    process is running it.
    """
    cells = cells_of(study)
    stored = _stored_cells(ledger, study)
    stale = set(changed_cells(_stored_digests(ledger, study), cells))
    reported = {plain_name(str(row["model"])) for row in ledger.reported()} if ledger else set()
    costs = Costs(study, ledger)
    with try_folder_lock(out or Path("runs") / study.study) as free:
        now = {f"{_VERB[entry.kind]} {entry.name}": entry for entry in ledger.running()} if ledger else {}
        options = (*(w for s in sets for w in ("--set", s)), *(() if out is None else ("--out", str(out))))
        context = _PlanContext(study, costs, file, options, stale, reported, now, running=not free)
        return [_planned(cell, stored.get(cell.name), context) for cell in cells]


def unevaluated(study: Study, *, ledger: Ledger, file: str = "") -> list[Planned]:
    """The models of a study that have no evaluation in the ledger for its present settings, for the record.

    file: of the study, for the commands; without it the commands name the study.
    """
    from aftertune.report import Planned

    cells = cells_of(study)
    stored = _stored_cells(ledger, study)
    stale = set(changed_cells(_stored_digests(ledger, study), cells))
    models = []
    for cell in cells:
        state = stored.get(cell.name)
        if cell.kind in ("tuning", "link") or (state and state.status == "done" and cell.name not in stale):
            continue
        base = study.tunings[cell.subject].base if cell.kind == "tuned" else cell.subject
        failed = next((s for s in (state, stored.get(f"tune {cell.subject}")) if s and s.status == "failed"), None)
        models.append(Planned(
            study=study.study, name=cell.subject, base=base, model=study.bases[base].model,
            command=_command(file or f"the file of {study.study}", cell.subject),
            state=f"failed: {failed.error}" if failed else "planned"))
    return models


@dataclass(frozen=True, slots=True)
class _PlanContext:
    """What all cells of a plan share. options: of each command; stale: names of changed cells; reported: models of
    imported documents; now: what processes work on, by the name of its cell."""

    study: Study
    costs: Costs
    file: str
    options: tuple[str, ...]
    stale: set[str]
    reported: set[str]
    now: Mapping[str, RunningEntry]
    running: bool


def _planned(cell: Cell, stored: StoredCell | None, context: _PlanContext) -> PlannedCell:
    status, why = _status(cell, stored, context)
    done = status == "done"
    missing = () if done else tuple(_missing(cell, context.study, context.costs))
    command = _command(context.file, cell.name, context.options)
    return PlannedCell(cell.name, status, context.costs.of(cell), command, missing, why,
                       context.costs.early(cell), cell.needs, cell_jobs([cell], context.costs)[0])


def _command(file: str, name: str, options: Sequence[str] = ()) -> str:
    """The command that runs a cell, or all cells of a base or tuning."""
    return shlex.join(["aftertune", "run", file, "--only", name, *options])


def _status(cell: Cell, stored: StoredCell | None, context: _PlanContext) -> tuple[CellStatus, str]:
    status = cast(CellStatus, stored.status) if stored else "planned"
    if cell.name in context.stale:
        return "planned", "its settings in the study have changed since the last run"
    if status == "running" and not context.running and cell.name not in context.now:
        return "planned", "the last run was interrupted; the next one continues it"
    if status == "planned" and cell.kind in ("base", "tuned") and plain_name(cell.subject) in context.reported:
        return "reported", "an imported document has scores of this model"
    if status == "running" and cell.name in context.now:
        return status, _progress(context.now[cell.name])
    return status, (stored.error if stored else None) or ""


def _progress(entry: RunningEntry) -> str:
    """How far a running cell is, and on which machines it runs."""
    share = f"{entry.done / entry.total:.0%} done" if entry.total else "running"
    left = f", about {entry.seconds_left:.0f} s left" if entry.seconds_left else ""
    several = f", by {entry.processes} processes" if entry.processes > 1 else ""
    hosts = f", on {' and '.join(entry.hosts)}" if entry.hosts else ""
    return f"{share}{left}{several}{hosts}"


def _stored_digests(ledger: Ledger | None, study: Study) -> dict[str, str] | None:
    """Digests of the cells as they were when the study was last run; None if it was not."""
    stored = next((s for s in ledger.studies() if s.name == study.study), None) if ledger else None
    return None if stored is None else digests_of(stored.yaml)


def _stored_cells(ledger: Ledger | None, study: Study) -> dict[str, StoredCell]:
    """The cells of a study in the ledger, by name."""
    if ledger is None or all(s.name != study.study for s in ledger.studies()):
        return {}
    return {c.name: c for c in ledger.cells(study.study)}


def _missing(cell: Cell, study: Study, costs: Costs) -> list[str]:
    """What the cell needs and is not here."""
    tuning = study.tunings.get(cell.subject)
    base = study.bases[tuning.base if tuning else cell.subject]
    missing = _model_missing(base)
    if tuning is not None and cell.kind == "tuning" and cell.subject not in costs.cured:
        if METHODS[tuning.method].base == "nf4" and find_spec("bitsandbytes") is None:
            missing.append("package bitsandbytes (pip install bitsandbytes)")
        files = [tuning.data.file, *([tuning.replay.data.file] if tuning.replay and not tuning.replay.base else [])]
        missing += [text for file in files for text in _data_missing(file)]
    if cell.link is not None:
        missing += _link_missing(cell.link)
    if cell.kind != "tuning":
        missing += [f"task data {task.data}" for task in study.tasks
                    if task.data and task.asks(cell.subject) and not is_file(task.data)]
    return missing + _machine_missing(cell, study, costs)


def _link_missing(link: Link) -> Iterator[str]:
    """What a form of a fine-tune needs and is not installed. A server is asked when its cell runs."""
    if link.kind == "llamacpp" and find_spec("xllamacpp") is None:
        yield "package xllamacpp (pip install 'aftertune[llamacpp]')"
    if link.detail in QUANTIZER_TYPES and shutil.which(QUANTIZER) is None:
        yield f"{QUANTIZER} of llama.cpp on the PATH, for {link.detail}"


def _model_missing(base: BaseSpec) -> list[str]:
    preset = preset_of(base.model)
    try:
        with offline_only():
            resolve_model(base.model, revision=base.revision)
    except AftertuneError as error:
        if preset is None and not re.fullmatch(r"[\w.-]+/[\w.-]+", base.model):
            return [str(error)]
        text = f"model {preset.source if preset else base.model}, downloaded from the Hub during the run"
        if preset is not None:
            text += f" ({2 * preset.shape.parameters / 2**30:.1f} GiB)"
            if preset.gated and not os.environ.get("HF_TOKEN"):
                text += "; gated: accept its terms on the Hub and set HF_TOKEN"
        return [text + _offline_note()]
    return []


def _data_missing(file: Path) -> list[str]:
    if is_file(file):
        return []
    if on_hub(file):
        return [f"data set {file}, downloaded from the Hub during the run{_offline_note()}"]
    return [f"data file {file}"]


def _offline_note() -> str:
    return "; this machine is offline (HF_HUB_OFFLINE)" if offline() else ""


def _machine_missing(cell: Cell, study: Study, costs: Costs) -> list[str]:
    from aftertune.engine.devices import choose_device, choose_dtype, free_memory

    try:
        device = choose_device(study.device)
        choose_dtype(study.dtype, device)
    except AftertuneError as error:
        return [str(error)]
    if cell.kind == "tuning" and study.tunings[cell.subject].backend == "unsloth" and (
            reason := unavailable_error(device)):
        return [str(reason)]
    needed, free = costs.of(cell).memory, free_memory(device)
    if needed is not None and needed > free:
        return [f"memory: about {needed / 2**30:.1f} GiB are needed, {free / 2**30:.1f} GiB are free on {device}"]
    return []
