"""``aftertune study FILE [KEY=VALUE …]``: what a study comes to; changes written into its file; its JSON Schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aftertune.cli.console import emit
from aftertune.cli.options import Json
from aftertune.errors import InputError

if TYPE_CHECKING:
    from aftertune.study import Study


def study(
    file: Annotated[Path | None, typer.Argument(help="Study file (YAML).")] = None,
    changes: Annotated[list[str] | None, typer.Argument(
        help="KEY=VALUE: a change to write into the file, for example tasks.hellaswag.limit=50.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of study files.")] = False,
    as_json: Json = False,
) -> None:
    """Check a study file and show its tunings, including those of its matrix. KEY=VALUE changes the file first."""
    from aftertune.report import write_document
    from aftertune.study import Study

    if schema:
        print(json.dumps(Study.json_schema(), indent=1))
        return
    if file is None:
        raise InputError("name a study file, or ask for --schema")
    if changes:
        text, found = Study.edited(file, changes)
        write_document(file, text)
    else:
        found = Study.load(file)
    if as_json:
        emit({"study": found.study, "hash": found.hash, "bases": list(found.bases),
              "tasks": [t.name for t in found.tasks], "tunings": {n: _told(found, n) for n in found.tunings}})
    else:
        _show(found)


def _told(study: Study, name: str) -> dict[str, Any]:
    """What a tuning says beside the defaults."""
    told: dict[str, Any] = study.tunings[name].model_dump(mode="json", exclude_defaults=True)
    return told


def _show(study: Study) -> None:
    from rich.console import Console
    from rich.table import Table

    counts = f"{len(study.bases)} bases, {len(study.tunings)} tunings, {len(study.tasks)} tasks"
    table = Table(title=f"{study.study}: {counts}", box=None, title_justify="left", pad_edge=False)
    for column in ("tuning", "base", "method", "settings"):
        table.add_column(column, overflow="fold")
    for name in study.tunings:
        told = _told(study, name)
        base, method = told.pop("base"), told.pop("method", study.tunings[name].method)
        table.add_row(name, base, method, ", ".join(_settings(told)))
    Console().print(table)


def _settings(told: dict[str, Any], before: str = "") -> list[str]:
    """``learning_rate 0.0001``, ``lora.r 8``; files by their name."""
    shown: list[str] = []
    for key, value in told.items():
        if isinstance(value, dict):
            shown += _settings(value, f"{before}{key}.")
        else:
            shown.append(f"{before}{key} {Path(value).name if key.endswith('file') else value}")
    return shown
