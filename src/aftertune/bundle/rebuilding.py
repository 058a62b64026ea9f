"""Rebuilds a ledger from the lines of a bundle, in a temporary folder, some lines at a time.

    with rebuilt_ledger(folder) as (ledger, claims):
        claims.comparisons         what the bundle says; their rows are computed again from the ledger
        ledger.answers(id)         what the models answered

Every value is checked against its type before it is stored. The rebuilt ledger has the comparisons of the bundle too,
so that a report of it can be written again.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from aftertune import bounds
from aftertune.bundle import files
from aftertune.errors import DiskError, InputError, StorageError
from aftertune.exchange.files import in_the_form_of
from aftertune.values import (
    Answer,
    Comparison,
    Drift,
    Evaluation,
    Item,
    Tuning,
    digest,
    restore,
)
from aftertune.values.reported import proven

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

Value = TypeVar("Value", Evaluation, Tuning, Comparison, Drift)


@dataclass(slots=True)
class Claims:
    """What a bundle says. redacted: by evaluation and task, the number of items from which a secret was removed.
    problems: what its lines contradict.
    """

    evaluations: list[Evaluation]
    tunings: list[Tuning]
    comparisons: list[Comparison]
    answers: int = 0
    redacted: Counter[tuple[str, str]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


@contextlib.contextmanager
def rebuilt_ledger(folder: Path) -> Iterator[tuple[Ledger, Claims]]:
    """The ledger of a bundle, until the end of the block. Raises InputError for a line that cannot be read, DiskError
    where the folder for temporary files has too little space."""
    from aftertune.ledger import Ledger
    from aftertune.ledger.staging import temporary_root

    with tempfile.TemporaryDirectory(prefix="aftertune-", dir=temporary_root()) as temporary, \
            Ledger(Path(temporary) / "ledger.db") as ledger:
        yield ledger, _fill(ledger, folder)


def _fill(ledger: Ledger, folder: Path) -> Claims:
    claims = Claims(evaluations=_values(folder, files.EVALUATIONS, Evaluation),
                    tunings=_values(folder, files.TUNINGS, Tuning),
                    comparisons=_values(folder, files.COMPARISONS, Comparison))
    drifts = _values(folder, files.DRIFTS, Drift)
    try:
        for number, evaluation in enumerate(claims.evaluations):
            _store(ledger, folder, number, evaluation, claims)
        with in_the_form_of("aftertune", files.TUNINGS):
            for tuning in claims.tunings:
                ledger.save_tuning(tuning)
        with in_the_form_of("aftertune", files.COMPARISONS):
            for comparison in claims.comparisons:
                ledger.save_comparison(comparison)
        with in_the_form_of("aftertune", files.DRIFTS):
            for drift in drifts:
                ledger.save_drift(drift)
        for where, study in files.read_lines(folder / files.STUDIES, files.STUDIES):
            with in_the_form_of("aftertune", where):
                _store_study(ledger, study)
    except DiskError as error:
        raise DiskError(f"{error}; or set TMPDIR to a folder on a disk with more space") from error
    except (StorageError, OverflowError) as error:
        raise InputError(f"{files.EVALUATIONS}: the lines of the bundle cannot be stored ({error}); get the bundle "
                         "again") from error
    return claims


def _values(folder: Path, name: str, kind: type[Value]) -> list[Value]:
    """The values of one file. Raises InputError where one does not fit, or two have the same id."""
    values: dict[str, Value] = {}
    for where, line in files.read_lines(folder / name, name):
        with in_the_form_of("aftertune", where):
            try:
                value = restore(kind, line)
            except ValueError as error:
                raise InputError(f"{where}: {error}") from None
        if value.id in values:
            raise InputError(f"{where}: {value.id} is there twice")
        if len(values) >= bounds.BUNDLE_EVALUATIONS:
            raise InputError(f"{name}: more than {bounds.BUNDLE_EVALUATIONS:,} entries, which no bundle has")
        values[value.id] = value
    return list(values.values())


def _store(ledger: Ledger, folder: Path, number: int, evaluation: Evaluation, claims: Claims) -> None:
    """Store an evaluation with its answers; what its lines contradict goes to the problems of the claims."""
    name = files.answers_file(number)
    if evaluation.status != "done":
        raise InputError(f"{files.EVALUATIONS}: evaluation {evaluation.id} is not finished, so it proves nothing")
    asked: Counter[str] = Counter()
    hashes: dict[str, list[str]] = {t.task: [] for t in evaluation.tasks}
    places: set[tuple[str, int]] = set()

    def answered() -> Iterator[tuple[Item, Answer]]:
        for where, line in files.read_lines(folder / name, name):
            with in_the_form_of("aftertune", where):
                item = restore(Item, line["item"])
                answer = None if line["answer"] is None else restore(
                    Answer, {**line["answer"], "task": item.task, "item": item.hash})
            if item.task not in hashes or (item.task, item.index) in places or (
                    answer is not None and answer.index != item.index):
                raise InputError(f"{where}: item {item.index} of {item.task} does not belong to evaluation "
                                 f"{evaluation.id}, or is there twice")
            places.add((item.task, item.index))
            hashes[item.task].append(item.hash)
            if line.get("redacted") is True:
                claims.redacted[evaluation.id, item.task] += 1
            elif proven(evaluation.model) and digest(item.doc) != item.hash:
                claims.problems.append(f"{where}: the question {item.index} of {item.task} is not the one that its "
                                       "hash stands for")
            if answer is not None:
                asked[item.task] += 1
                claims.answers += 1
                yield item, answer

    with in_the_form_of("aftertune", name):
        ledger.store_evaluation(evaluation, answered())
    for task in evaluation.tasks:
        expected = task.n if task.used is None else task.used
        if asked[task.task] != expected:
            claims.problems.append(f"{name}: {asked[task.task]:,} answers to {task.task}, but evaluation "
                                   f"{evaluation.id} says {expected:,}")
        elif len(hashes[task.task]) > task.n:
            claims.problems.append(f"{name}: {len(hashes[task.task]):,} questions of {task.task}, but evaluation "
                                   f"{evaluation.id} says {task.n:,}")
        elif proven(evaluation.model) and len(hashes[task.task]) == task.n and digest(hashes[task.task]) != task.items:
            claims.problems.append(f"{name}: the questions of {task.task} are not those that evaluation "
                                   f"{evaluation.id} names")


def _store_study(ledger: Ledger, line: dict[str, Any]) -> None:
    """Store a study with its cells. What is read of it is checked here."""
    study = line["study"]
    if not isinstance(study, dict) or not isinstance(study.get("tunings", {}), dict) or not (
            isinstance(study.get("family", ""), str) and isinstance(study.get("primary") or "", str)):
        raise ValueError("a study is a mapping with tunings")
    name, cells = line["name"], list(line["cells"])
    texts = [name, line["hash"], *(cell[k] for cell in cells for k in ("name", "status"))]
    texts += [cell[k] or "" for cell in cells for k in ("ref", "error")]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a study and its cells have texts")
    ledger.save_study(name, line["hash"], json.dumps(study))
    for cell in cells:
        ledger.save_cell(name, cell["name"], cell["status"], ref=cell["ref"], error=cell["error"])
