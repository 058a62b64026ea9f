"""Writes the part of a ledger that a bundle hands on: evaluations with their answers, and what belongs to them.

    chosen = choose(ledger, "careful")       an evaluation, a comparison, a study, or everything
    write_extract(ledger, chosen, folder)    the lines of ledger/*.jsonl

Evaluations bring their comparisons, the fine-tunes that made their models, and the evaluation against which they were
stopped early. Secrets are removed, and paths of this machine become names. Examples of training data that were found
among the questions stay behind. Where a question or an answer has a known secret, it is removed and the line says so.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aftertune.bundle import files
from aftertune.errors import AmbiguousName, InputError
from aftertune.redaction import published, redact_known
from aftertune.values import RULES, Answer, Comparison, Drift, Evaluation, Item, Tuning, json_ready, plain

if TYPE_CHECKING:
    from aftertune.ledger import Ledger, StoredStudy


@dataclass(frozen=True, slots=True)
class Chosen:
    """What of a ledger goes into a bundle. left_out: what does not, with the reason."""

    evaluations: tuple[Evaluation, ...]
    tunings: tuple[Tuning, ...]
    comparisons: tuple[Comparison, ...]
    drifts: tuple[Drift, ...]
    studies: tuple[StoredStudy, ...]
    left_out: tuple[str, ...] = ()


def choose(ledger: Ledger, word: str | None) -> Chosen:
    """What an id or name brings; None or "all": every finished evaluation. Raises InputError, also where nothing is
    finished."""
    named = {s.name: s for s in ledger.studies()}
    wanted = {e.id for e in ledger.evaluations()} if word in (None, "all") else _ids(ledger, str(word), named)
    chosen = choose_evaluations(ledger, wanted)
    if not chosen.evaluations:
        raise InputError(f"{word or 'the ledger'} has no finished evaluation, and a bundle needs one; run `aftertune "
                         "eval` or `aftertune run` first")
    return chosen


def choose_evaluations(ledger: Ledger, wanted: Collection[str]) -> Chosen:
    """The finished evaluations with these ids, those against which they were stopped early, and what belongs to
    them."""
    by_id = {e.id: e for e in ledger.evaluations() if e.status == "done"}
    ids = {id_ for id_ in wanted if id_ in by_id}
    ids |= {early.against for id_ in ids if (early := by_id[id_].early) and early.against in by_id}
    evaluations = tuple(e for e in by_id.values() if e.id in ids)
    both = [c for c in ledger.comparisons() if {c.base, c.tuned} <= ids]
    models = {e.model.fingerprint for e in evaluations}
    left_out = tuple(f"comparison {c.id} ({c.tuned_name} against {c.base_name}): judged by version {c.rules} of the "
                     f"rules, and this program proves version {RULES}; `aftertune compare {c.base} {c.tuned} --again` "
                     "judges it again" for c in both if c.rules != RULES)
    return Chosen(
        evaluations, _tunings_of(evaluations, ledger.tunings()), tuple(c for c in both if c.rules == RULES),
        tuple(d for d in ledger.drifts() if {d.base.fingerprint, d.tuned.fingerprint} <= models),
        tuple(s for s in ledger.studies() if ids & {c.ref for c in ledger.cells(s.name)}), left_out)


def _ids(ledger: Ledger, word: str, studies: dict[str, Any]) -> set[str]:
    """Ids of the evaluations that an entry stands for."""
    if word in studies:
        return {c.ref for c in ledger.cells(word) if c.ref}
    try:
        return {ledger.find_evaluation(word).id}
    except AmbiguousName:
        raise
    except InputError as error:
        try:
            comparison = ledger.find_comparison(word)
        except InputError:
            raise error from None
    return {comparison.base, comparison.tuned}


def _tunings_of(evaluations: Sequence[Evaluation], tunings: Sequence[Tuning]) -> tuple[Tuning, ...]:
    """The fine-tunes that made the models of the evaluations, and those that made their bases."""
    models = {e.model.fingerprint for e in evaluations}
    ids = {e.tuning for e in evaluations}
    while True:
        found = [t for t in tunings if t.id in ids or any(map(t.made, models))]
        more = {t.base.fingerprint for t in found} | models
        parents = {id_ for t in found if t.cure for id_ in t.cure.parents} | ids
        if more == models and parents == ids:
            return tuple(found)
        models, ids = more, parents


# --- Writing ---

def write_extract(ledger: Ledger, chosen: Chosen, folder: Path) -> None:
    """Write the lines below ``folder``. Raises StorageError."""
    files.write_lines(folder / files.EVALUATIONS, (plain(published(e)) for e in chosen.evaluations))
    files.write_lines(folder / files.TUNINGS, (plain(_without_examples(published(t))) for t in chosen.tunings))
    files.write_lines(folder / files.COMPARISONS, (plain(published(c)) for c in chosen.comparisons))
    files.write_lines(folder / files.DRIFTS, (plain(published(d)) for d in chosen.drifts))
    files.write_lines(folder / files.STUDIES, (_study(ledger, s) for s in chosen.studies))
    for number, evaluation in enumerate(chosen.evaluations):
        files.write_lines(folder / files.answers_file(number), _answered(ledger, evaluation))


def _without_examples(tuning: Tuning) -> Tuning:
    return replace(tuning, overlap=tuple(replace(o, found=()) for o in tuning.overlap))


def _study(ledger: Ledger, study: StoredStudy) -> dict[str, Any]:
    cells = [{"name": c.name, "status": c.status, "ref": c.ref, "error": published(c.error or "") or None}
             for c in ledger.cells(study.name)]
    return {"name": study.name, "hash": study.hash, "study": published(json.loads(study.yaml)), "cells": cells}


def _answered(ledger: Ledger, evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """A line for each item: the question, its answer (null where it was not asked), and whether a secret was removed.

    Items and answers are in the same order, and items that were not asked have no answer.
    """
    answers = ledger.each_answer(evaluation.id)
    answer = next(answers, None)
    for item in ledger.each_item(evaluation.id):
        mine = answer if answer is not None and (answer.task, answer.index) == (item.task, item.index) else None
        if mine is not None:
            answer = next(answers, None)
        yield _line(item, mine)


def _line(item: Item, answer: Answer | None) -> dict[str, Any]:
    line = json_ready({"item": plain(item),
                       "answer": None if answer is None else plain(replace(answer, task="", item=""))})
    clean = _clean(line)
    return {**clean, "redacted": True} if clean != line else line


def _clean(value: Any) -> Any:
    """A value without known secrets in its texts."""
    if isinstance(value, str):
        return redact_known(value)
    if isinstance(value, dict):
        return {redact_known(k): _clean(v) for k, v in value.items()}
    return [_clean(v) for v in value] if isinstance(value, list) else value
