"""Keeps what a check of a chain found as a file beside its models, so that a gate can read it later.

    write_check(tuning, links, Path("orders-deploy"))     orders-deploy/check-deploy.json
    read_check(Path("orders-deploy")).links[1].faults     what is wrong with the files or prompts of the second link

The answers and scores are in the ledger; the file names their evaluations.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from aftertune import __version__
from aftertune.errors import InputError, SourceError
from aftertune.sources.cache import write_atomic
from aftertune.sources.library_errors import disk_errors
from aftertune.sources.resolve import read_json
from aftertune.values import Tuning

#: Name of the file in the folder of a check.
FILE = "check-deploy.json"


@dataclass(frozen=True, slots=True)
class StoredLink:
    """A link of a stored check. evaluation: its id in the ledger; faults: of its files and prompts."""

    name: str
    evaluation: str
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StoredCheck:
    """The links of a stored check, in their order. tuning: the name of the fine-tune."""

    tuning: str
    links: tuple[StoredLink, ...]


def write_check(tuning: Tuning, links: Sequence[StoredLink], out: Path) -> None:
    """Write what was found of the links of a fine-tune to the folder ``out``. Raises StorageError."""
    content = {"aftertune": __version__, "tuning": tuning.id, "name": tuning.name, "result": tuning.result,
               "links": [asdict(link) for link in links]}
    with disk_errors(out, "run the same command again"):
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_check(folder: Path) -> StoredCheck:
    """The check of a folder. Raises InputError where it has none, or an incomplete one."""
    try:
        content = read_json(folder / FILE)
        links = tuple(StoredLink(str(link["name"]), str(link["evaluation"]), _texts(link["faults"]))
                      for link in content["links"])
        name = str(content["name"])
    except FileNotFoundError:
        links, name = (), ""
    except (OSError, SourceError, KeyError, TypeError) as error:
        raise InputError(f"{folder / FILE}: cannot be read as the result of `aftertune check-deploy` ({error}); check "
                         "the chain again") from None
    if len(links) < 2:
        raise InputError(f"{folder}: has no {FILE} with two links or more; `aftertune check-deploy TUNING --out "
                         f"{folder}` makes it")
    return StoredCheck(name, links)


def _texts(values: Sequence[object]) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise TypeError("faults are no list of texts")
    return tuple(map(str, values))
