"""The cells of a study and the order in which they are run: owns what needs what, and what names stand for.

    [cell.name for cell in cells_of(study)]     ["evaluate smollm2", "tune careful", "evaluate careful"]

A base comes first, then all that is tuned from it, then their evaluations together, so that it is loaded once for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import Any, Literal

from aftertune.errors import InputError, nearest
from aftertune.study import Study
from aftertune.values import digest

CellKind = Literal["base", "tuning", "tuned"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One step of a study. subject: the base or tuning that it is of; needs: names of the cells before it; digest: of
    all that the study says of it, so that a changed cell is told from a finished one."""

    name: str
    kind: CellKind
    subject: str
    needs: tuple[str, ...] = ()
    digest: str = field(default="", compare=False)


def cells_of(study: Study) -> list[Cell]:
    """Every cell, in the order in which they are run."""
    found: list[Cell] = []
    for base in study.bases:
        found.append(Cell(f"evaluate {base}", "base", base, digest=digest(_portable(_said_of_base(study, base)))))
        names = [name for name, tuning in study.tunings.items() if tuning.base == base]
        found += [Cell(f"tune {name}", "tuning", name, digest=digest(_portable(_said_of_tuning(study, name))))
                  for name in names]
        found += [Cell(f"evaluate {name}", "tuned", name, (f"tune {name}", f"evaluate {base}"),
                       digest(_portable((_said_of_tuning(study, name), _asked(study, name))))) for name in names]
    return found


def chosen(study: Study, only: Sequence[str]) -> list[Cell]:
    """The cells that ``only`` names (bases, tunings, cells such as "tune careful", or patterns), with what they need;
    all of them where nothing is named. Raises InputError for a name that no cell has."""
    cells = cells_of(study)
    if not only:
        return cells
    wanted: set[str] = set()
    for pattern in only:
        hits = [c.name for c in cells if fnmatchcase(c.name, pattern) or fnmatchcase(c.subject, pattern)]
        if not hits:
            known = [*study.bases, *study.tunings]
            raise InputError(f"--only {pattern}: no cell of {study.study} has this name{nearest(pattern, known)}; its "
                             f"bases and tunings: {', '.join(known)}")
        wanted.update(hits)
    by_name = {c.name: c for c in cells}
    todo = list(wanted)
    while todo:
        more = [n for n in by_name[todo.pop()].needs if n not in wanted]
        wanted.update(more)
        todo += more
    return [c for c in cells if c.name in wanted]


def changed(then: Mapping[str, Any] | None, now: Sequence[Cell]) -> Iterator[str]:
    """Names of the cells of which the study says something else than it did. then: digest by name."""
    if then is not None:
        yield from (cell.name for cell in now if then.get(cell.name, cell.digest) != cell.digest)


def _portable(said: Any) -> Any:
    """What a study says, absolute paths by their last two parts: a study moved with its files is the same."""
    if isinstance(said, dict):
        return {key: _portable(value) for key, value in said.items()}
    if isinstance(said, list | tuple):
        return [_portable(value) for value in said]
    if isinstance(said, str) and PurePath(said).is_absolute():
        return "/".join(PurePath(said).parts[-2:])
    return said


def _said_of_base(study: Study, name: str) -> list[Any]:
    return [study.bases[name].model_dump(mode="json"), _asked(study, name)]


def _said_of_tuning(study: Study, name: str) -> list[Any]:
    tuning = study.tunings[name]
    return [study.bases[tuning.base].model_dump(mode="json"), tuning.model_dump(mode="json"), study.dtype, study.device]


def _asked(study: Study, name: str) -> list[Any]:
    """The tasks of a base or tuning, and how they are asked."""
    tasks = [t.model_dump(mode="json", exclude={"only", "margin"}) for t in study.tasks if t.asks(name)]
    return [tasks, study.dtype, study.device, study.engine, study.apply_chat_template, study.task_source]
