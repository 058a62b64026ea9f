"""What the cells of a study would cost here: owns the arithmetic, from the ledger's own history where it has any.

    Costs(study, ledger).of(cell)        Cost(seconds=…, memory=…, disk=…, basis="like evaluation e-…, 10,042 items")

A cell that is like one that was run (same method or same tasks) takes its pace, in proportion to parameters and items.
Else tokens are multiplied with the model's products at a rate that is measured on this machine in a moment. Shapes come
from presets or from the configs of models that are here; nothing is fetched.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from aftertune.catalog import closest, leaves
from aftertune.errors import AftertuneError
from aftertune.ledger import Ledger
from aftertune.pipeline.cells import Cell
from aftertune.sources import resolve_model, shape_of
from aftertune.sources.hub import offline_only
from aftertune.study import BaseSpec, Study, TaskSpec, TuneSpec, on_hub
from aftertune.study.presets import Shape, known
from aftertune.tasks.local import asked_from
from aftertune.tuning.estimate import REACHED, SIZES, Load, Machine, estimate
from aftertune.values import Tuning

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
        self._shapes: dict[str, tuple[Shape | None, bool]] = {}

    def of(self, cell: Cell) -> Cost:
        """What a cell would take."""
        return self._tuning(cell.subject) if cell.kind == "tuning" else self._evaluation(cell)

    def shape(self, base: BaseSpec) -> tuple[Shape | None, bool]:
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
        from aftertune.engine.devices import choose_device, choose_dtype, product_rate, set_threads

        set_threads()
        try:
            device = choose_device(self.study.device)
            dtype = choose_dtype(self.study.dtype, device)
        except AftertuneError:
            device = "cpu"
            dtype = choose_dtype("auto", device)
        return Machine(device, dtype, product_rate(device, dtype))

    def _evaluation(self, cell: Cell) -> Cost:
        name = cell.subject
        base = self.study.bases[name if cell.kind == "base" else self.study.tunings[name].base]
        shape, guessed = self.shape(base)
        if shape is None:
            return Cost(None, None, None, "its size is not known before its config is here", estimated=True)
        tasks = [t for t in self.study.tasks if t.asks(name)]
        memory = int(SIZES[self.machine.dtype] * shape.parameters * 2) + PROGRAM
        disk = 2 * shape.parameters if guessed else 0
        like = self._like(shape, tasks)
        if like is not None:
            return Cost(like[0], memory, disk, like[1], guessed)
        tokens = sum(items_of(t, self.study.task_source) * _tokens(t) for t in tasks)
        assert self.machine.rate is not None
        seconds = 2 * tokens * (shape.linear + shape.vocabulary * shape.hidden) / (self.machine.rate * REACHED)
        basis = f"{tokens:,} tokens at {self.machine.rate / 1e9:,.0f} G operations/s"
        return Cost(seconds, memory, disk, basis, guessed)

    def _like(self, shape: Shape, tasks: list[TaskSpec]) -> tuple[float, str] | None:
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
        load = Load.guessed(_examples(spec), spec.max_length)
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
    return min([*asked, UNLISTED[0] if row is None else row.items[asked_from(task.name, source)]])


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

