"""Splits a study into cells, orders them, and selects cells by name.

    [cell.name for cell in cells_of(study)]     ["evaluate smollm2", "tune careful", "evaluate careful"]
    select_cells(study, ["careful"])            the cells of this tuning, and those that they need

A fine-tune with links to where it is deployed has a cell for each (``deploy careful gguf:q8_0``).

The order is: a base, then its tunings (first those that are trained, then those that are made from them), then the
evaluations of these and their links, so that the base is loaded once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import Any, Literal

from aftertune.errors import InputError, nearest
from aftertune.study import Study
from aftertune.study.cured import made_from
from aftertune.study.links import Link, deploy_links
from aftertune.values import digest

CellKind = Literal["base", "tuning", "tuned", "link"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One step of a study.

    subject: name of the base or tuning; needs: names of the cells that must run before it; digest: of everything in the
    study that affects the cell, so that a changed cell is run again; link: of a deployed fine-tune.
    """

    name: str
    kind: CellKind
    subject: str
    needs: tuple[str, ...] = ()
    digest: str = field(default="", compare=False)
    link: Link | None = None


def cells_of(study: Study) -> list[Cell]:
    """Every cell, in the order of a run."""
    cells: list[Cell] = []
    cured = made_from(study.tunings)
    for base in study.bases:
        cells.append(Cell(f"evaluate {base}", "base", base, digest=digest(_portable(_base_settings(study, base)))))
        names = [name for name, tuning in study.tunings.items() if tuning.base == base]
        cells += [Cell(f"tune {name}", "tuning", name, (f"tune {cured[name]}",) if name in cured else (),
                       digest(_portable(_tuning_settings(study, name))))
                  for name in sorted(names, key=cured.__contains__)]
        cells += [Cell(f"evaluate {name}", "tuned", name, (f"tune {name}", f"evaluate {base}"),
                       digest(_portable((_tuning_settings(study, name), _task_settings(study, name),
                                         *_tokenizer(study, name), *_early(study, name)))))
                  for name in names]
        cells += [cell for name in names for cell in _link_cells(study, name)]
    return cells


def _link_cells(study: Study, name: str) -> Iterator[Cell]:
    """A cell for each form of a fine-tune on its way to where it runs. Each needs the one before, with which it is
    compared."""
    needed: tuple[str, ...] = (f"tune {name}", f"evaluate {name}")
    links = deploy_links(study, name)
    letters = not all(link.scores for link in links)
    for link in links:
        cell = Cell(f"deploy {name} {link.name}", "link", name, needed, digest(_portable((
            _tuning_settings(study, name), _task_settings(study, name), link.name, letters))), link)
        yield cell
        needed = (*needed[:2], cell.name)


def select_cells(study: Study, only: Sequence[str]) -> list[Cell]:
    """The cells that ``only`` names, and the cells that they need; all cells if ``only`` is empty.

    only: bases, tunings, cells such as "tune careful", or patterns. Raises InputError for a name that no cell has.
    """
    cells = cells_of(study)
    if not only:
        return cells
    selected: set[str] = set()
    for pattern in only:
        matches = [c.name for c in cells if fnmatchcase(c.name, pattern) or fnmatchcase(c.subject, pattern)]
        if not matches:
            names = [*study.bases, *study.tunings]
            raise InputError(f"--only {pattern}: no cell of {study.study} has this name{nearest(pattern, names)}; its "
                             f"bases and tunings: {', '.join(names)}")
        selected.update(matches)
    by_name = {c.name: c for c in cells}
    todo = list(selected)
    while todo:
        needed = [n for n in by_name[todo.pop()].needs if n not in selected]
        selected.update(needed)
        todo += needed
    return [c for c in cells if c.name in selected]


def changed_cells(before: Mapping[str, Any] | None, cells: Sequence[Cell]) -> Iterator[str]:
    """Names of the cells that the study now defines otherwise. before: digest by name; None: there is none."""
    if before is not None:
        yield from (cell.name for cell in cells if before.get(cell.name, cell.digest) != cell.digest)


def digests_of(stored_study: str) -> dict[str, str] | None:
    """Digest of each cell of a study stored as JSON; None if this version cannot read it."""
    try:
        return {c.name: c.digest for c in cells_of(Study.model_validate_json(stored_study))}
    except ValueError:
        return None


def _portable(settings: Any) -> Any:
    """Settings with absolute paths cut to their last two parts, so that a study may move together with its files."""
    if isinstance(settings, dict):
        return {key: _portable(value) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [_portable(value) for value in settings]
    if isinstance(settings, str) and PurePath(settings).is_absolute():
        return "/".join(PurePath(settings).parts[-2:])
    return settings


def _base_settings(study: Study, name: str) -> list[Any]:
    return [study.bases[name].settings(), _task_settings(study, name)]


def _tuning_settings(study: Study, name: str) -> list[Any]:
    tuning = study.tunings[name]
    return [study.bases[tuning.base].model_dump(mode="json", exclude={"tokenizer"}), tuning.settings(),
            study.dtype, study.device, *_date(study)]


def _task_settings(study: Study, name: str) -> list[Any]:
    """The tasks of a base or tuning, and the settings of their evaluation."""
    tasks = [{k: v for k, v in t.settings().items() if k not in ("only", "margin", "until_decided")}
             for t in study.tasks if t.asks(name)]
    return [tasks, study.dtype, study.device, study.engine, study.apply_chat_template, study.task_source,
            *_date(study), *_later(study)]


def _tokenizer(study: Study, tuning: str) -> list[str]:
    """The tokenizer that a base has beside its own; it counts for evaluations alone."""
    other = study.bases[study.tunings[tuning].base].tokenizer
    return [other] if other else []


def _early(study: Study, tuning: str) -> list[Any]:
    """When the tasks of a fine-tune stop at their verdicts, with their margins; nothing where all items are asked."""
    rule = study.early_rule(tuning)
    return [] if rule is None else [rule.model_dump(mode="json"), [
        [t.name, t.margin, study.stops(t)] for t in study.tasks if t.asks(tuning)]]


def _later(study: Study) -> list[Any]:
    """The settings that older versions did not have, where the study sets one; so other digests stay the same."""
    later = study.later_settings()
    return [later] if later else []


def _date(study: Study) -> list[str]:
    """The date of chat templates where the study sets one; so the digests of other studies stay the same."""
    return [study.template_date] if study.template_date else []
