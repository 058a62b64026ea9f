"""Reads tasks that are named with their number of items, and files of held-out rows with how answers are judged.

    counted_task("--watch", "hellaswag=200")
    counted_task("--target", "orders_test.jsonl=100", scorer="rouge")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aftertune.errors import InputError
from aftertune.study import TargetSpec, TaskSpec, checked


def counted_task(option: str, text: str, match: str = "exact", scorer: str | None = None) -> TaskSpec:
    """The task of TASK=N. match, scorer: how answers to a file are judged. Raises InputError for another form."""
    name, _, count = text.rpartition("=")
    if not name or not count.isdecimal() or not int(count):
        raise InputError(f"{option} {text!r}: write TASK=N, for example {option} hellaswag=200")
    if not name.endswith(".jsonl"):
        if scorer is not None:
            raise InputError(f"{option} {name} is a task of lm-eval, which judges its answers itself; leave --scorer "
                             "out, or name a .jsonl file")
        return checked(TaskSpec, name=name, sample=int(count))
    if match not in ("exact", "json"):
        raise InputError(f"--match is {match!r}; allowed are exact and json")
    if not Path(name).is_file():
        raise InputError(f"{option} {name}: no such file; give rows of prompt and completion, or an lm-eval task")
    return checked(TaskSpec, name=Path(name).stem, sample=int(count), target=judged_file(Path(name), match, scorer))


def judged_file(file: Path, match: str, scorer: str | None, **fields: Any) -> TargetSpec:
    """The rows of a file whose answers are judged by ``match``, or by the scorer in place of it. Raises InputError."""
    if scorer is None:
        return checked(TargetSpec, file=file, match=match, **fields)
    if match != "exact" or fields.get("pattern") is not None:
        raise InputError(f"--scorer {scorer} says how answers are judged, and so does match {match}; give one of them")
    try:
        return checked(TargetSpec, file=file, scorer=scorer, **fields)
    except InputError as error:
        raise InputError(f"--scorer: {str(error).removeprefix('`study`: ')}") from None
