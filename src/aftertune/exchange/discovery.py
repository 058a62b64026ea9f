"""Finds the results of other tools in a file or folder, identifies them by their content, and lists what is left.

    found = discover(Path("out"))
    found.files              [(path, "lm-eval"), …]
    found.notes              "out/notes.json is no results file that can be read", …

A file is identified by its content and not by its name, because older versions of lm-eval call it ``results.json`` or
as the user wished. Files that only look like results are named in the notes, so that nothing is left out silently.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aftertune.errors import InputError
from aftertune.exchange.files import parse_json, read_text, results_limits
from aftertune.exchange.lighteval_files import is_lighteval
from aftertune.exchange.lm_eval_files import LIMIT
from aftertune.paths import is_dir, is_file

Kind = Literal["lm-eval", "lighteval", "inspect", "every-eval-ever"]
#: What can be imported, for messages.
READABLE = ("results of lm-eval and lighteval (results_*.json), logs of inspect_ai (.eval, .json), Every Eval Ever "
            "(.json), Markdown records (.md)")
#: Names of files that hold results or answers; others are left out of a folder with one common note.
_LIKELY = re.compile(r"result|sample|eval|details|scores|pretrained__|\d{4}-\d{2}-\d{2}T", re.IGNORECASE)
_JSON = (".json", ".json.gz")
_ANSWERS = (".jsonl", ".jsonl.gz", ".parquet")


@dataclass(frozen=True, slots=True)
class Found:
    """What a path holds. files: results, sorted by path; answers: files with answers; notes: what is no result."""

    files: tuple[tuple[Path, Kind], ...]
    answers: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def kind_of(value: Any) -> Kind | None:
    """Which tool wrote this JSON; None where that is not known."""
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("eval"), dict) and "status" in value and "model" in value["eval"]:
        return "inspect"
    if "schema_version" in value and isinstance(value.get("evaluation_results"), list):
        return "every-eval-ever"
    if isinstance(value.get("results"), dict):
        return "lighteval" if is_lighteval(value) else "lm-eval"
    return None


def discover(path: Path) -> Found:
    """The results in ``path``: the file itself, or all below the folder. Raises InputError where there are none."""
    if is_file(path):
        return Found(((path, _kind(path)),))
    if not is_dir(path):
        raise InputError(f"{path}: no such file or folder")
    files: list[tuple[Path, Kind]] = []
    unread: list[tuple[Path, str]] = []
    others: list[tuple[Path, str]] = []
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        if file.name.lower().endswith((*_JSON, ".eval")):
            try:
                files.append((file, _kind(file)))
            except InputError as error:
                (unread if _LIKELY.search(file.name) else others).append((file, str(error)))
    answers = tuple(sorted(p for p in path.rglob("*") if p.name.lower().endswith(_ANSWERS)
                           and _LIKELY.search(p.name) and p.is_file()))
    samples = tuple(f for f, _ in unread if f.name.startswith(("samples_", "pretrained__")))
    if not files:
        raise InputError(_nothing(path, [text for _, text in unread], answers))
    notes = [f"not imported: {text}" for file, text in unread if file not in samples]
    if others:
        names = ", ".join(str(f.relative_to(path)) for f, _ in others[:4])
        notes.append(f"not imported, because they hold no results: {names}"
                     + (f" and {len(others) - 4} more JSON files" if len(others) > 4 else ""))
    return Found(tuple(files), (*answers, *samples), tuple(notes))


def _kind(path: Path) -> Kind:
    """Which tool wrote a file. Raises InputError where that is not known."""
    name = path.name.lower()
    if name.endswith(".eval"):
        return "inspect"
    if name.endswith(_ANSWERS):
        raise InputError(f"{path}: {'the details' if name.endswith('.parquet') else 'a samples file'} alone "
                         f"{'do' if name.endswith('.parquet') else 'does'} not state the model and settings; give the "
                         f"folder that contains it and the results of the same time{_beside(path)}")
    if not name.endswith(_JSON):
        raise InputError(f"{path}: not a file that can be imported; allowed are {READABLE}")
    with results_limits(str(path)):
        value = parse_json(read_text(path, limit=LIMIT), str(path))
    kind = kind_of(value)
    if kind is None and isinstance(value, list) and value and isinstance(value[0], dict) and "doc_id" in value[0]:
        raise InputError(f"{path}: a samples file alone does not state its model and settings; give the folder that "
                         f"contains it and the results of the same time{_beside(path)}")
    if kind is None:
        raise InputError(f"{path}: not a results file that is known: {_shape(value)}; allowed are {READABLE}")
    return kind


def _shape(value: Any) -> str:
    """What a JSON value is, in a few words."""
    if isinstance(value, dict):
        if "results" in value:
            return f"its `results` is a {type(value['results']).__name__}, and no object `results` was found"
        keys = ", ".join(repr(str(k)[:30]) for k in list(value)[:5])
        return f"the JSON has no object `results` (its keys: {keys or 'none'})"
    return f"the JSON is a {type(value).__name__} and has no object `results`"


def _beside(path: Path) -> str:
    """The results files beside a file with answers, for advice."""
    names = [p.name for p in sorted(path.parent.glob("*.json")) if _is_results(p)][:3]
    return f", here {', '.join(names)}" if names else ""


def _is_results(path: Path) -> bool:
    try:
        return kind_of(parse_json(read_text(path, limit=LIMIT), str(path))) is not None
    except InputError:
        return False


def _nothing(path: Path, unread: list[str], answers: tuple[Path, ...]) -> str:
    """The message for a folder without results."""
    if unread:
        return f"{unread[0]}{f' ({len(unread) - 1} more files could not be read)' if len(unread) > 1 else ''}"
    if answers:
        return (f"{path}: {len(answers)} files with answers ({answers[0].name}), but no results_*.json of the same "
                "run, which states the model and the settings; copy it into the folder")
    return (f"{path}: no results_*.json of lm-eval in this folder or below it, nor anything else that can be "
            f"imported ({READABLE}); run lm-eval with --output_path, and with --log_samples to import the answers too")


def unused(found: Found, used: set[Path], root: Path) -> Iterator[str]:
    """Notes on files with answers that belong to none of the results."""
    left = [p for p in found.answers if p not in used]
    if left:
        names = ", ".join(str(p.relative_to(root)) for p in left[:4])
        yield (f"not imported, because there are no results of the same run beside them: {names}"
               + (f" and {len(left) - 4} more files with answers" if len(left) > 4 else ""))
