"""Computes every score and every verdict of a bundle again, from the answers alone.

    proof = prove(ledger, claims)
    proof.scores, proof.rows      how many were computed again
    proof.failed                  what the answers do not show, each with its place
    proof.unchecked               what could not be computed here, with the reason

Scores: the responses are scored with lm-eval's filters and metrics (`aftertune.tasks.rescoring`); where that cannot be
done, from the stored values of the items. Verdicts: the two evaluations are compared again, with the margins of the
rows, and every figure and word must be the same. What remains unproven is whether the model gave these answers: that
needs its weights.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from aftertune.bundle.rebuilding import Claims
from aftertune.catalog import MetricKey, is_share
from aftertune.comparison import choose_primary, compare, note_of_answers
from aftertune.comparison.average import average_name
from aftertune.comparison.compatibility import OF_TEMPLATE, setting_of
from aftertune.comparison.margins import MARGIN
from aftertune.errors import AftertuneError, TaskError
from aftertune.exchange.files import in_the_form_of
from aftertune.redaction import published
from aftertune.tasks.rescoring import ScoredAgain, group_scores_again, lm_eval_version, score_again
from aftertune.values import (
    RULES,
    Answer,
    Asked,
    Comparison,
    ComparisonRow,
    Evaluation,
    Item,
    Margin,
    Score,
    TaskSettings,
)
from aftertune.values.comparison import OUT_OF_TIME

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

#: Another machine's arithmetic may differ in the last digits.
_RELATIVE, _ABSOLUTE = 1e-6, 1e-9
#: What of a comparison depends on the other entries of the ledger in which it was made, or repeats a score.
_ELSEWHERE = {"id", "note", "differences", "base_name", "tuned_name", "origin", "few_shot"}


@dataclass(slots=True)
class Proof:
    """What was computed again. scored: tasks whose responses were scored; from_values: tasks whose scores were computed
    from the stored values of their items, with the reason."""

    evaluations: int = 0
    answers: int = 0
    scores: int = 0
    rows: int = 0
    comparisons: int = 0
    scored: int = 0
    from_values: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)


def prove(ledger: Ledger, claims: Claims, progress: Callable[[int, int, str], None] | None = None) -> Proof:
    """Compute the scores and verdicts of a rebuilt ledger again."""
    proof = Proof(answers=claims.answers, failed=list(claims.problems))
    total = len(claims.evaluations) + len(claims.comparisons)
    for number, evaluation in enumerate(claims.evaluations):
        if progress:
            progress(number, total, f"scores of {evaluation.name}")
        with _failing(proof, f"evaluation {evaluation.id}"):
            _prove_scores(ledger, evaluation, claims, proof)
        proof.evaluations += 1
    for number, comparison in enumerate(claims.comparisons, len(claims.evaluations)):
        if progress:
            progress(number, total, f"verdicts of {comparison.tuned_name}")
        with _failing(proof, f"comparison {comparison.id}"):
            _prove_rows(ledger, comparison, proof)
        proof.comparisons += 1
    return proof


@contextlib.contextmanager
def _failing(proof: Proof, where: str) -> Iterator[None]:
    """Turn an error about what is stored into an entry of the proof."""
    try:
        with in_the_form_of("aftertune", where):
            yield
    except AftertuneError as error:
        proof.failed.append(str(error) if where in str(error) else f"{where}: {error}")


# --- Scores ---

def _prove_scores(ledger: Ledger, evaluation: Evaluation, claims: Claims, proof: Proof) -> None:
    """Compute the scores of an evaluation again: its tasks one after another, then its groups."""
    for settings in evaluation.tasks:
        where = f"evaluation {evaluation.id}, {settings.task}"
        answers = ledger.answers(evaluation.id, settings.task) if _has_answers(settings) else []
        again, reason = None, "it has no answers"
        if answers:
            again, reason = _scored(ledger, evaluation, settings, answers, claims, proof)
        scores = [s for s in evaluation.scores if s.task == settings.task and not s.group]
        if again is not None:
            proof.scored += 1
        elif reason:
            proof.from_values.append(f"{where}: {reason}")
        if evaluation.drawn_unequally(settings.task):
            proof.failed += [f"{where}: {s.key} is stored as a score, but its items are no sample of the task"
                             for s in scores]
            continue
        for line in _score_faults(scores, again, answers, proof):
            proof.failed.append(f"{where}: {line}")
    for group in dict.fromkeys(s.task for s in evaluation.scores if s.group):
        members = [t for t in evaluation.tasks if group in t.groups]
        for score, values, errors in group_scores_again(group, evaluation.scores, members):
            _prove_group(evaluation, score, values, errors, proof)
            size = sum(m.n if m.used is None else m.used for m in members)
            if score.n != size:
                proof.failed.append(f"evaluation {evaluation.id}, {group}: n of {score.key} is {score.n:,}, and its "
                                    f"tasks have {size:,} answers")
    known = {t.task for t in evaluation.tasks}
    proof.failed += [f"evaluation {evaluation.id}: a score of {s.task}, which it did not ask"
                     for s in evaluation.scores if not s.group and s.task not in known]


def _has_answers(settings: TaskSettings) -> bool:
    return (settings.n if settings.used is None else settings.used) > 0


def _scored(ledger: Ledger, evaluation: Evaluation, settings: TaskSettings, answers: Sequence[Answer], claims: Claims,
            proof: Proof) -> tuple[ScoredAgain | None, str]:
    """The task scored again from its responses, or why that cannot be done; "" where it failed."""
    removed = claims.redacted[evaluation.id, settings.task]
    if removed:
        return None, f"secrets were removed from {removed:,} of its items"
    items = ledger.items(evaluation.id, settings.task)
    try:
        again = score_again(settings, items, answers)
    except TaskError as error:
        return None, str(error)
    differing, slow = "", ""
    for pair in zip(answers, again.answers, strict=True):
        if line := _answer_differs(*pair):
            if any(OUT_OF_TIME in answer.extracted.values() for answer in pair):
                slow = slow or f"item {pair[0].index}: its filters took too long here or where it was scored"
            else:
                differing = differing or line
    differing = differing or next(
        (d for pair in zip(items, again.asked, strict=False) if (d := _question_differs(*pair))), "")
    if not differing:
        return (None, slow) if slow else (again, "")
    here, versions = lm_eval_version(), evaluation.provenance.versions if evaluation.provenance else {}
    there = versions.get("lm-eval") or versions.get("lm_eval") or "another version"
    if there != here:
        return None, f"lm-eval {there} scored it, and lm-eval {here} gives other values; install {there}"
    proof.failed.append(f"evaluation {evaluation.id}, {settings.task}, {differing}")
    return None, ""


def _answer_differs(stored: Answer, again: Answer) -> str:
    """The first metric, extracted text or cluster of an item that is not what its responses and its document give; ""
    if all agree."""
    for key in {**again.metrics, **stored.metrics}:
        old, new = stored.metrics.get(key), again.metrics.get(key)
        if not _close(old, new):
            return f"item {stored.index}: {key} is {_shown(old)}, and its responses give {_shown(new)}"
    for name in {**again.extracted, **stored.extracted}:
        if stored.extracted.get(name) != again.extracted.get(name):
            return f"item {stored.index}: the text that the filter {name} takes from its response is another one"
    if stored.cluster not in (None, again.cluster):
        return (f"item {stored.index}: cluster is {_shown(stored.cluster)}, and its document gives "
                f"{_shown(again.cluster)}")
    return ""


def _question_differs(item: Item, asked: Asked | None) -> str:
    """What the choices, the right ones or the reference of an item should be; "" where they agree."""
    old = item.asked or Asked()
    new = asked or Asked()
    for name in ("choices", "gold", "reference"):
        if item.asked is not None and getattr(old, name) != getattr(new, name):
            return (f"item {item.index}: {name} is {_shown(getattr(old, name))}, and its document gives "
                    f"{_shown(getattr(new, name))}")
    return ""


def _score_faults(scores: Sequence[Score], again: ScoredAgain | None, answers: Sequence[Answer], proof: Proof
                  ) -> Iterator[str]:
    """What is wrong with the scores of a task. again: None to compute them from the stored values of the items."""
    computed = {s.key: s for s in again.scores} if again is not None else {}
    for score in scores:
        proof.scores += 1
        if again is not None:
            if score.key not in computed:
                yield f"{score.key} is no score that its answers give"
                continue
            yield from _figures(score, computed[score.key], ("value", "stderr", "n", "higher_is_better", "primary"))
        else:
            yield from _from_values(score, answers, proof)
    for key in computed.keys() - {s.key for s in scores}:
        yield f"{key} is missing; its answers give {_shown(computed[key].value)}"


def _figures(score: Score, computed: Score, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        old, new = getattr(score, name), getattr(computed, name)
        if not _close(old, new):
            label = score.key if name == "value" else f"{name} of {score.key}"
            yield f"{label} is {_shown(old)}, and its answers give {_shown(new)}"


def _from_values(score: Score, answers: Sequence[Answer], proof: Proof) -> Iterator[str]:
    """What is wrong with a score by the values of the items: their mean, or exp of the negative mean."""
    where = f"{score.task}: {score.key}"
    values = [a.metrics[score.key] for a in answers if score.key in a.metrics]
    if score.n != len(answers):
        yield f"n of {score.key} is {score.n:,}, and there are {len(answers):,} answers"
    if len(values) != len(answers) or not values or not all(map(math.isfinite, values)):
        proof.unchecked.append(f"{where} is not computed from values of single items")
        return
    mean = math.fsum(values) / len(values)
    if score.value > 0 and _close(math.log(score.value), -mean) and not _close(score.value, mean):
        return  # a perplexity
    if not _close(score.value, mean):
        if not is_share(score.metric):
            proof.unchecked.append(f"{where} is not the mean of the values of its items")
            return
        yield f"{score.key} is {_shown(score.value)}, and its items give {_shown(mean)}"
    error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values)) \
        if len(values) > 1 else None
    if score.stderr is not None and not _close(score.stderr, error):
        proof.unchecked.append(f"{where}: its standard error is not that of a mean")


def _prove_group(evaluation: Evaluation, score: Score, values: Sequence[float], errors: Sequence[float], proof: Proof
                 ) -> None:
    where = f"evaluation {evaluation.id}, {score.task}"
    proof.scores += 1
    if not values:
        proof.failed.append(f"{where}: {score.key} is a score of a group without scores of all its tasks")
    elif not any(_close(score.value, v) for v in values):
        proof.failed.append(f"{where}: {score.key} is {_shown(score.value)}, and its tasks give "
                            f"{' or '.join(map(_shown, dict.fromkeys(values)))}")
    elif errors and score.stderr is not None and not any(_close(score.stderr, e) for e in errors):
        proof.unchecked.append(f"{where}: the standard error of {score.key} is not the pooled one of its tasks")


# --- Verdicts ---

def _prove_rows(ledger: Ledger, claim: Comparison, proof: Proof) -> None:
    """Compare the two evaluations again; every figure and word must be the same."""
    where = f"comparison {claim.id} ({claim.tuned_name} against {claim.base_name})"
    if claim.rules != RULES:
        proof.failed.append(f"{where}: judged by version {claim.rules} of the rules, and this program proves version "
                            f"{RULES}; verify it with the aftertune that wrote it")
        return
    again = published(_compared(ledger, claim))
    rows = {_row_key(r): r for r in again.rows}
    proof.rows += len(claim.rows)
    for row in claim.rows:
        other = rows.pop(_row_key(row), None)
        if other is None:
            proof.failed.append(f"{where}: the answers give no row {row.task} {row.metric}")
        elif difference := next(_differing(row, other), None):
            proof.failed.append(f"{where}, {row.task} {row.metric}: {difference}")
        elif note_of_answers(row.note) != note_of_answers(other.note):
            proof.unchecked.append(f"{where}, {row.task} {row.metric}: its note is not the one that the answers give")
    proof.failed += [f"{where}: the row {r.task} {r.metric} is missing" for r in rows.values()]
    rest = next(_differing(replace(claim, rows=()), replace(again, rows=())), None)
    if rest is not None:
        proof.failed.append(f"{where}: {rest}")
    blocking = [sorted(d.field for d in c.differences if d.blocking) for c in (claim, again)]
    if blocking[0] != blocking[1]:
        old, new = (", ".join(names) or "nothing" for names in blocking)
        proof.failed.append(f"{where}: the two evaluations differ in {new}, and it says {old}")


def _row_key(row: ComparisonRow) -> tuple[str, str, str, bool]:
    return row.task, row.metric, row.filter, bool(row.average_of)


def _compared(ledger: Ledger, claim: Comparison) -> Comparison:
    """The comparison made again as the claim was made. Raises NotComparable and InputError as `compare` does."""
    sides = [ledger.find_evaluation(id_) for id_ in (claim.base, claim.tuned)]
    for row in claim.rows:
        if row.primary and not row.average_of:
            sides = [_with_primary(side, row) for side in sides]
    force: Any = claim.forced
    if not claim.forced and any(setting_of(d) in OF_TEMPLATE for d in claim.differences):
        force = OF_TEMPLATE  # two forms of one prompt, whose difference is listed and marks nothing

    chosen = list(dict.fromkeys(r.task for r in claim.rows if not r.group))
    average = average_name({n for side in sides for t in side.tasks for n in (t.task, *t.groups)})
    best: Comparison | None = None
    for tasks in ([], chosen, [*chosen, average]):  # a comparison does not say which tasks were asked for
        made = compare(sides[0], sides[1], margins=_margins(claim), ledger=ledger, force=force, common=claim.common,
                       tasks=tasks, save=False)
        if next(_differing(claim, published(made)), None) is None:
            return made
        if best is None or [*map(_row_key, made.rows)] == [*map(_row_key, claim.rows)]:
            best = made
    assert best is not None
    return best


def _with_primary(evaluation: Evaluation, row: ComparisonRow) -> Evaluation:
    """The evaluation with the metric of a row as the primary one of its tasks."""
    key = MetricKey.of(row.metric, row.filter)
    tasks = [t for t in evaluation.tasks if row.task in (t.task, *t.groups)]
    return evaluation if all(t.primary == key for t in tasks) else choose_primary(evaluation, row.metric, row.task)


def _margins(claim: Comparison) -> dict[str, Margin]:
    """The margin of each task, group and average, from its rows."""
    margins = {}
    for name in dict.fromkeys(r.task for r in claim.rows):
        rows = sorted((r for r in claim.rows if r.task == name), key=lambda r: not r.primary)
        shares = [r.margin for r in rows if r.fraction and r.margin is not None]
        own = [r.margin for r in rows if not r.fraction and r.margin is not None]
        margins[name] = Margin(shares[0] if shares else MARGIN, own[0] if own else None)
    return margins


# --- Equal values ---

def _differing(claimed: Any, again: Any, path: str = "") -> Iterator[str]:
    """Where two values differ beyond the last digits."""
    if is_dataclass(claimed) and type(claimed) is type(again):
        for f in fields(claimed):
            if f.name not in _ELSEWHERE:
                yield from _differing(getattr(claimed, f.name), getattr(again, f.name), f"{path} {f.name}".strip())
    elif isinstance(claimed, dict) and isinstance(again, dict) and claimed.keys() == again.keys():
        for key in claimed:
            yield from _differing(claimed[key], again[key], f"{path} {key}")
    elif isinstance(claimed, list | tuple) and isinstance(again, list | tuple) and len(claimed) == len(again):
        for old, new in zip(claimed, again, strict=True):
            yield from _differing(old, new, path)
    elif not _close(claimed, again):
        yield f"{path} is {_shown(claimed)}, and the answers give {_shown(again)}"


def _close(old: Any, new: Any) -> bool:
    """Equal, or equal except for the last digits."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (old, new))
    if not numbers:
        return bool(old == new)
    return math.isclose(old, new, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE) or (math.isnan(old) and math.isnan(new))


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    return f"{value:.6g}" if isinstance(value, float) else str(value)[:100]
