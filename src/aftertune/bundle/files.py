"""The files of a bundle: their names, their hashes, and lines of JSON.

    write_lines(folder / TUNINGS, map(plain, tunings))
    write_manifest(folder, {"title": "Orders study"})        the names, sizes and SHA-256 of all files
    manifest = read_manifest(folder)
    changed_files(folder, manifest)                          ["record.md: the file is missing", …]

A bundle is a folder of text files. Names come from the list below, not from the manifest, so none can lead out of the
folder, and a link is refused. Numbers that are not finite are written as texts ("inf"), so every line is JSON.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from aftertune import bounds
from aftertune.errors import InputError, StorageError, shown
from aftertune.sources.cache import write_atomic
from aftertune.values import json_ready

FORMAT, VERSION = "aftertune bundle", 1
MANIFEST = "manifest.json"
RECORD, PAGE, ENVIRONMENT = "record.md", "report.html", "environment.json"
EVALUATIONS, TUNINGS = "ledger/evaluations.jsonl", "ledger/tunings.jsonl"
COMPARISONS, DRIFTS, STUDIES = "ledger/comparisons.jsonl", "ledger/drifts.jsonl", "ledger/studies.jsonl"
ANSWERS = "ledger/answers"
#: The files that every bundle has, beside one of answers for each evaluation.
REQUIRED = (RECORD, PAGE, ENVIRONMENT, EVALUATIONS, TUNINGS, COMPARISONS, DRIFTS, STUDIES)
_ANSWERS_NAME = re.compile(rf"{ANSWERS}/[0-9]{{4}}\.jsonl")
_CHUNK = 1 << 20


def answers_file(number: int) -> str:
    """The file with the answers of an evaluation. number: its place among the evaluations, from 0."""
    return f"{ANSWERS}/{number:04}.jsonl"


# --- Writing ---

def write_lines(path: Path, values: Iterable[Any]) -> None:
    """Write each value as a line of JSON, one after another. Raises StorageError."""
    try:
        write_atomic(path, (json.dumps(json_ready(v), separators=(",", ":"), allow_nan=False) + "\n" for v in values))
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror}); choose another folder with "
                           "--bundle") from None


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest of the files in ``folder``. Raises StorageError."""
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
             for name in names_in(folder) if name != MANIFEST}
    text = json.dumps({"format": FORMAT, "version": VERSION, **facts, "files": files}, indent=1)
    try:
        write_atomic(folder / MANIFEST, text + "\n")
    except OSError as error:
        raise StorageError(f"{folder / MANIFEST}: cannot be written ({error.strerror}); choose another folder with "
                           "--bundle") from None


# --- Reading ---

def names_in(folder: Path) -> list[str]:
    """The paths of everything in the folder that is no folder, in order."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, which is read some at a time."""
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            hashed.update(chunk)
    return hashed.hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest. Raises InputError where the folder is no bundle, or one of a later version."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder that `aftertune export --bundle` wrote")
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise InputError(f"{folder}: has no {MANIFEST}, so it is no bundle; give the folder that `aftertune export "
                         "--bundle` wrote")
    with path.open("rb") as file:
        value = _json(file.read(bounds.BUNDLE_MANIFEST + 1), str(path), bounds.BUNDLE_MANIFEST)
    if not isinstance(value, dict) or value.get("format") != FORMAT or not isinstance(value.get("files"), dict):
        raise InputError(f"{path}: not the manifest of a bundle; give the folder that `aftertune export --bundle` "
                         "wrote")
    if value.get("version") != VERSION:
        raise InputError(f"{path}: a bundle of version {shown(value.get('version'))}, and this program reads version "
                         f"{VERSION}; install the aftertune that wrote it ({shown(value.get('aftertune'))})")
    return value


def changed_files(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """What is wrong with the files: a missing, changed or unknown one, and a name that no bundle has."""
    listed, problems = manifest["files"], []
    there = set(names_in(folder)) - {MANIFEST}
    for name in sorted({*listed, *REQUIRED}):
        if name not in REQUIRED and not _ANSWERS_NAME.fullmatch(name):
            problems.append(f"{shown(name)}: the manifest lists a file that no bundle has")
        elif name not in listed:
            problems.append(f"{name}: the manifest does not list it")
        elif name not in there:
            problems.append(f"{name}: the file is missing")
        else:
            problems += _changed(folder / name, name, listed[name])
    return problems + [f"{shown(name)}: the manifest does not list this file" for name in sorted(there - {*listed})]


def _changed(path: Path, name: str, listed: Any) -> list[str]:
    if path.is_symlink() or not path.is_file() or path.parent.is_symlink() or path.parent.parent.is_symlink():
        return [f"{name}: is a link or no plain file"]
    size = path.stat().st_size
    if not isinstance(listed, dict) or size != listed.get("bytes"):
        return [f"{name}: has {size:,} bytes, which is not what the manifest says"]
    return [] if sha256_of(path) == listed.get("sha256") else [f"{name}: was changed (its SHA-256 is another one)"]


def read_lines(path: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(``file:line``, object) of each line. Raises InputError that names the line."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(bounds.BUNDLE_LINE + 1):
            number += 1
            value = _json(line, f"{name}:{number}", bounds.BUNDLE_LINE)
            if not isinstance(value, dict):
                raise InputError(f"{name}:{number}: expected a JSON object, found {type(value).__name__}")
            yield f"{name}:{number}", value


def _json(text: bytes, where: str, limit: int) -> Any:
    if len(text) > limit:
        raise InputError(f"{where}: more than {limit:,} bytes, which no bundle has")
    if sum(map(text.count, (b",", b"[", b"{"))) > bounds.BUNDLE_VALUES:
        raise InputError(f"{where}: more than {bounds.BUNDLE_VALUES:,} commas and brackets, which no bundle has")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        detail = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:120]
        raise InputError(f"{where}: not valid JSON: {detail}; get the bundle again") from None
