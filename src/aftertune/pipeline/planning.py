"""What a study would do here: every cell with its state, its cost, its command, and what is missing for it.

    for cell in plan(study, ledger=ledger, file="study.yaml"):
        cell.name, cell.status, cell.cost.seconds, cell.command, cell.missing

Nothing is fetched or run. A cell counts as done where the ledger has it as the study says it now; as reported where an
imported document has scores of a model of its name.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from aftertune.errors import AftertuneError
from aftertune.ledger import Cell as Stored
from aftertune.ledger import Ledger
from aftertune.methods import METHODS
from aftertune.pipeline.alone import held
from aftertune.pipeline.cells import Cell, cells_of, changed
from aftertune.pipeline.costs import Cost, Costs
from aftertune.reported import plain_name
from aftertune.sources import resolve_model
from aftertune.sources.hub import offline, offline_only
from aftertune.study import BaseSpec, Study, on_hub
from aftertune.study.presets import known
from aftertune.tuning.unsloth import absent

if TYPE_CHECKING:
    from aftertune.report import Planned

Status = Literal["planned", "running", "done", "failed", "reported"]


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """One cell as it stands. why: of a failure, or of a plan that is not simply new; missing: what must be there."""

    name: str
    status: Status
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


def _status(cell: Cell, stored: Stored | None, facts: _Facts) -> tuple[Status, str]:
    status = cast(Status, stored.status) if stored else "planned"
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
    if cell.kind == "tuning" and study.tunings[cell.subject].backend == "unsloth" and (lack := absent(device)):
        return [str(lack)]
    need, free = costs.of(cell).memory, free_memory(device)
    if need is not None and need > free:
        return [f"memory: about {need / 2**30:.1f} GiB, of which {free / 2**30:.1f} are free on {device}"]
    return []
