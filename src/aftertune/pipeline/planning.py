"""What a study would do here: every cell with its state, its cost, its command, and what is missing for it.

    for cell in plan(study, ledger=ledger, file="study.yaml"):
        cell.name, cell.status, cell.cost.seconds, cell.command, cell.missing

Nothing is fetched or run. A cell counts as done where the ledger has it as the study says it now; as reported where an
imported document has scores of a model of its name.

What the cells of a study would cost here: owns the arithmetic, from the ledger's own history where it has any.

    Costs(study, ledger).of(cell)        Cost(seconds=…, memory=…, disk=…, basis="like evaluation e-…, 10,042 items")

A cell that is like one that was run (same method or same tasks) takes its pace, in proportion to parameters and items.
Else tokens are multiplied with the model's products at a rate that is measured on this machine in a moment. Shapes come
from presets or from the configs of models that are here; nothing is fetched.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from aftertune.catalog import closest, leaves
from aftertune.errors import AftertuneError
from aftertune.ledger import Ledger
from aftertune.ledger import StoredCell as Stored
from aftertune.methods import METHODS
from aftertune.pipeline.alone import held
from aftertune.pipeline.cells import Cell, cells_of, changed
from aftertune.sources import resolve_model, shape_of
from aftertune.sources.hub import offline, offline_only
from aftertune.study import BaseSpec, Study, TaskSpec, TuneSpec, on_hub
from aftertune.study.presets import ModelShape, known
from aftertune.tasks.data import choose_source
from aftertune.tuning.estimate import DTYPE_BYTES, UTILIZATION, Machine, Workload, estimate
from aftertune.tuning.unsloth import unavailable_error
from aftertune.values import Tuning
from aftertune.values.reported import plain_name

if TYPE_CHECKING:
    from aftertune.report import Planned

#: Items of a task that the catalog does not list, and tokens that the engine computes for one: a guess.
UNLISTED = (1000, 120)
#: Rows of a file that is not here, or that is not counted.
ROWS = 1000
#: The interpreter with its libraries, and one batch, in bytes.
PROGRAM = 2**30


@dataclass(frozen=True, slots=True)
class Cost:
    """seconds: None where nothing tells the model's size; memory, disk: bytes. estimated: the shape is a preset's, the
    config was not seen."""

    seconds: float | None
    memory: int | None
    disk: int | None
    basis: str
    estimated: bool = False


class Costs:
    """The costs of one study's cells on this machine."""

    def __init__(self, study: Study, ledger: Ledger | None) -> None:
        self.study = study
        self.evaluations = [e for e in ledger.evaluations() if e.status == "done"] if ledger else []
        self.tunings = [t for t in ledger.tunings() if t.status == "done"] if ledger else []
        self._shapes: dict[str, tuple[ModelShape | None, bool]] = {}

    def of(self, cell: Cell) -> Cost:
        """What a cell would take."""
        return self._tuning(cell.subject) if cell.kind == "tuning" else self._evaluation(cell)

    def shape(self, base: BaseSpec) -> tuple[ModelShape | None, bool]:
        """A base's shape, and whether its config was not seen."""
        if base.model not in self._shapes:
            preset = known(base.model)
            try:
                with offline_only():
                    found, guessed = shape_of(resolve_model(base.model, revision=base.revision)), False
            except AftertuneError:
                found, guessed = (preset.shape if preset else None), True
            self._shapes[base.model] = found, guessed
        return self._shapes[base.model]

    @cached_property
    def machine(self) -> Machine:
        """Where it would run; a device or dtype that is not here is taken as a CPU's float32."""
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
            return Cost(None, None, None, "its size is not known before its config is here", estimated=True)
        tasks = [t for t in self.study.tasks if t.asks(name)]
        memory = int(DTYPE_BYTES[self.machine.dtype] * shape.parameters * 2) + PROGRAM
        disk = 2 * shape.parameters if guessed else 0
        like = self._like(shape, tasks)
        if like is not None:
            return Cost(like[0], memory, disk, like[1], guessed)
        tokens = sum(items_of(t, self.study.task_source) * _tokens(t) for t in tasks)
        assert self.machine.rate is not None
        seconds = 2 * tokens * (shape.linear + shape.vocabulary * shape.hidden) / (self.machine.rate * UTILIZATION)
        basis = f"{tokens:,} tokens at {self.machine.rate / 1e9:,.0f} G operations/s"
        return Cost(seconds, memory, disk, basis, guessed)

    def _like(self, shape: ModelShape, tasks: list[TaskSpec]) -> tuple[float, str] | None:
        """Seconds at the pace of the last evaluation of the same tasks on this device, and which that was."""
        names = {task.name for task in tasks}
        for done in reversed(self.evaluations):
            if {_asked_name(t.task, names) for t in done.tasks} == names and done.model.parameters \
                    and done.device.split()[0].split(":")[0] == self.machine.device.split(":")[0] \
                    and isinstance(done.schedule.get("seconds"), int | float):
                items = sum(items_of(t, self.study.task_source) for t in tasks)
                share = items / max(sum(t.n for t in done.tasks), 1)
                seconds = done.schedule["seconds"] * share * shape.parameters / done.model.parameters
                return seconds, f"the pace of evaluation {done.name}"
        return None

    def _tuning(self, name: str) -> Cost:
        recipe = self.study.tunings[name]
        base = self.study.bases[recipe.base]
        shape, guessed = self.shape(base)
        if shape is None:
            return Cost(None, None, None, "its size is not known before its config is here", estimated=True)
        spec = recipe.spec(base, name=name, dtype="auto", device="auto", out=Path())
        load = Workload.guessed(_examples(spec), spec.max_length)
        found = estimate(shape, spec, load, self.machine)
        for done in reversed(self.tunings):
            pace = _pace(done)
            if done.method == recipe.method and pace and done.base.parameters:
                seconds = pace * found.steps * spec.batch_size * spec.accumulation * shape.parameters \
                    / done.base.parameters
                return Cost(seconds, found.memory, found.disk, f"the pace of tuning {done.name}", guessed)
        return Cost(found.seconds, found.memory, found.disk, found.basis, guessed)


def items_of(task: TaskSpec, source: str) -> int:
    """Items that a task will ask, as far as is known without reading it; source: the study's ``task_source``."""
    asked = [n for n in (task.sample, task.limit) if n is not None]
    if task.target is not None:
        return asked[0] if asked else _lines(task.target.file)
    row = closest(task.name)
    return min([*asked, UNLISTED[0] if row is None else row.items[choose_source(task.name, source)]])


def _tokens(task: TaskSpec) -> int:
    """Tokens that the engine computes for one item."""
    if task.target is not None:
        return 60 + task.target.max_tokens
    row = closest(task.name)
    return UNLISTED[1] if row is None else row.tokens


def _asked_name(task: str, names: set[str]) -> str:
    """A task of a group by the group's name."""
    return task if task in names else next((n for n in names if task in leaves(n) or task.startswith(f"{n}_")), task)


def _examples(spec: TuneSpec) -> int:
    """Examples that a tuning trains on, replay too, as far as a file's lines tell."""
    found = spec.data.examples or (ROWS if on_hub(spec.data.file) else _lines(spec.data.file))
    return int(found / (1 - spec.replay.share)) if spec.replay else found


def _lines(file: Path) -> int:
    try:
        with file.open("rb") as lines:
            return sum(1 for _ in lines) if file.suffix in (".jsonl", ".csv") else ROWS
    except OSError:
        return ROWS


def _pace(tuning: Tuning) -> float | None:
    """Seconds an example took."""
    seconds, settings = tuning.cost.get("seconds"), tuning.settings
    seen = len(tuning.steps) * settings.get("batch_size", 0) * settings.get("accumulation", 1)
    return seconds / seen if seconds and seen else None


CellStatus = Literal["planned", "running", "done", "failed", "reported"]


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """One cell as it stands. why: of a failure, or of a plan that is not simply new; missing: what must be there."""

    name: str
    status: CellStatus
    cost: Cost
    command: str
    missing: tuple[str, ...] = ()
    why: str = ""


def plan(study: Study, *, ledger: Ledger | None, file: str, out: Path | None = None) -> list[PlannedCell]:
    """Every cell of ``study`` in the order of a run. file: the study's, for the commands; out: of the run."""
    cells = cells_of(study)
    stored = {c.name: c for c in ledger.cells(study.study)} if ledger and _known(ledger, study) else {}
    stale = set(changed(_before(ledger, study), cells))
    reported = {plain_name(str(row["model"])) for row in ledger.reported()} if ledger else set()
    costs = Costs(study, ledger)
    with held(out or Path("runs") / study.study) as free:
        return [_planned(cell, stored.get(cell.name), _Facts(study, costs, file, stale, reported, running=not free))
                for cell in cells]


def unevaluated(study: Study, *, ledger: Ledger, file: str = "") -> list[Planned]:
    """The models of a study that the ledger has no evaluation of as the study says it now, for the record. file: the
    study's, for the commands; where it is not known they have a word in its place."""
    from aftertune.report import Planned

    cells = cells_of(study)
    stored = {c.name: c for c in ledger.cells(study.study)} if _known(ledger, study) else {}
    stale = set(changed(_before(ledger, study), cells))
    found = []
    for cell in cells:
        state = stored.get(cell.name)
        if cell.kind == "tuning" or (state and state.status == "done" and cell.name not in stale):
            continue
        base = study.tunings[cell.subject].base if cell.kind == "tuned" else cell.subject
        failed = next((s for s in (state, stored.get(f"tune {cell.subject}")) if s and s.status == "failed"), None)
        found.append(Planned(
            study=study.study, name=cell.subject, base=base, model=study.bases[base].model,
            command=_command(file or f"the file of {study.study}", cell.subject),
            state=f"failed: {failed.error}" if failed else "planned"))
    return found


@dataclass(frozen=True, slots=True)
class _Facts:
    """What all cells of a plan have in common."""

    study: Study
    costs: Costs
    file: str
    stale: set[str]
    reported: set[str]
    running: bool


def _planned(cell: Cell, stored: Stored | None, facts: _Facts) -> PlannedCell:
    status, why = _status(cell, stored, facts)
    done = status == "done"
    missing = () if done else tuple(_missing(cell, facts.study, facts.costs))
    return PlannedCell(cell.name, status, facts.costs.of(cell), _command(facts.file, cell.name), missing, why)


def _command(file: str, name: str) -> str:
    """What runs a cell, or all that a name stands for."""
    return f"aftertune run {shlex.quote(file)} --only {shlex.quote(name)}"


def _status(cell: Cell, stored: Stored | None, facts: _Facts) -> tuple[CellStatus, str]:
    status = cast(CellStatus, stored.status) if stored else "planned"
    if cell.name in facts.stale:
        return "planned", "the study says something else of it than when it was last run"
    if status == "running" and not facts.running:
        return "planned", "was interrupted; the next run goes on where it stopped"
    if status == "planned" and cell.kind != "tuning" and plain_name(cell.subject) in facts.reported:
        return "reported", "an imported document has scores of it"
    return status, (stored.error if stored else None) or ""


def _before(ledger: Ledger | None, study: Study) -> dict[str, str] | None:
    """Digests of the cells as they were when the study was last run."""
    for one in ledger.studies() if ledger else ():
        if one.name == study.study:
            try:
                return {c.name: c.digest for c in cells_of(Study.model_validate_json(one.yaml))}
            except ValueError:
                return None
    return None


def _known(ledger: Ledger, study: Study) -> bool:
    return any(one.name == study.study for one in ledger.studies())


def _missing(cell: Cell, study: Study, costs: Costs) -> list[str]:
    """What must be there before the cell can be run."""
    tuning = study.tunings.get(cell.subject)
    base = study.bases[tuning.base if tuning else cell.subject]
    found = _model_missing(base)
    if tuning is not None and cell.kind == "tuning":
        if METHODS[tuning.method].base == "nf4" and find_spec("bitsandbytes") is None:
            found.append("package bitsandbytes (pip install bitsandbytes)")
        files = [tuning.data.file, *([tuning.replay.data.file] if tuning.replay else [])]
        found += [why for file in files for why in _data_missing(file)]
    if cell.kind != "tuning":
        found += [f"task data {task.data}" for task in study.tasks
                  if task.data and task.asks(cell.subject) and not task.data.is_file()]
    return found + _machine_missing(cell, study, costs)


def _model_missing(base: BaseSpec) -> list[str]:
    preset = known(base.model)
    try:
        with offline_only():
            resolve_model(base.model, revision=base.revision)
    except AftertuneError as error:
        if preset is None and not re.fullmatch(r"[\w.-]+/[\w.-]+", base.model):
            return [str(error)]
        what = f"model {preset.source if preset else base.model}, fetched from the Hub when it is run"
        if preset is not None:
            what += f" ({2 * preset.shape.parameters / 2**30:.1f} GiB)"
            if preset.gated and not os.environ.get("HF_TOKEN"):
                what += "; gated: accept its terms on the Hub and set HF_TOKEN"
        return [what + ("; this machine is offline (HF_HUB_OFFLINE)" if offline() else "")]
    return []


def _data_missing(file: Path) -> list[str]:
    if file.is_file():
        return []
    if on_hub(file):
        state = "; this machine is offline (HF_HUB_OFFLINE)" if offline() else ""
        return [f"data set {file}, fetched from the Hub when it is run{state}"]
    return [f"data file {file}"]


def _machine_missing(cell: Cell, study: Study, costs: Costs) -> list[str]:
    from aftertune.engine.devices import choose_device, choose_dtype, free_memory

    try:
        device = choose_device(study.device)
        choose_dtype(study.dtype, device)
    except AftertuneError as error:
        return [str(error)]
    if cell.kind == "tuning" and study.tunings[cell.subject].backend == "unsloth" and (
            lack := unavailable_error(device)):
        return [str(lack)]
    need, free = costs.of(cell).memory, free_memory(device)
    if need is not None and need > free:
        return [f"memory: about {need / 2**30:.1f} GiB, of which {free / 2**30:.1f} are free on {device}"]
    return []
