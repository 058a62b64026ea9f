"""Audits published scores: whether the printed values and errors are possible, and what their differences show.

    result = audit(Path("record.md"))
    result.checks[15].text      "not reproducible as k/n at the stated n=100 (26 is 26.00% and 27 is 27.00%)"
    result.claims[0].status     "open": the summary does not decide it, the paired answers would

    for document in audited_documents(ledger):          every imported document with its audit
        document.best["gsm8k", "exact_match", "strict-match"]      "Base Llama 3.2 1B"

Only what the document prints is used. In each section the first model with "base" in its name is compared with the
others. A section without one uses the first base of the document; that compares two models and never shows forgetting.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aftertune.actions import Shown
from aftertune.catalog import is_share
from aftertune.exchange.markdown_record import Document, read_record
from aftertune.exchange.reading import read_scores
from aftertune.exchange.score_checks import Check, check_scores
from aftertune.ledger import Ledger
from aftertune.stats import audit as checks
from aftertune.stats.audit import PairingBounds
from aftertune.stats.verdict import holm
from aftertune.values.reported import AuditedDocument, Remark, Reported, ReportedDifference, ScoreName

#: Error level of the tests.
ALPHA = 0.05
ClaimStatus = Literal["established", "open", "not shown", "cannot be checked"]
#: Facts that a base and its fine-tune should share.
_SETTINGS = ("Device", "Batch Size", "Data Type")
_LENGTH = re.compile(r"(?i)\blength|\bbytes?\b|\bcharacters?\b")
_IDENTITY = re.compile(r"(?i)\b(sha|sha256|hash|revision|fingerprint|weights|commit)\b")


@dataclass(frozen=True, slots=True)
class Claim:
    """A difference between two reported models on one metric.

    z, p: of the unpaired test with the printed errors; p_holm: adjusted over the metrics of this pair; p_every: the
    largest p of a paired test over all pairings of the answers, adjusted likewise; family: both models are in one
    section, so the document may call the difference forgetting; pairing: bounds at the 5 % level; strict: bounds at the
    level of the row's Holm step.
    """

    base: str
    tuned: str
    task: str
    metric: str
    filter: str
    difference: float
    z: float | None
    p: float
    p_holm: float
    p_every: float
    family: bool
    inputs_ok: bool
    pairing: PairingBounds | None
    strict: PairingBounds | None

    @property
    def status(self) -> ClaimStatus:
        """What the printed summary shows without the answers: "established" is significant at every pairing."""
        if not self.inputs_ok:
            return "cannot be checked"
        if self.p_every < ALPHA:
            return "established"
        if self.strict is None:  # no counts, so the pairings cannot be counted
            return "open" if self.p_holm < ALPHA else "not shown"
        return "not shown" if self.strict.never else "open"


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """Another problem of the document. where: model, metric or line."""

    where: str
    text: str


@dataclass(frozen=True, slots=True)
class Audit(Shown):
    """The audit of one document."""

    source: str
    checks: tuple[Check, ...]
    claims: tuple[Claim, ...]
    findings: tuple[AuditFinding, ...]

    @property
    def ok(self) -> bool:
        """True if every value and error that could be checked is possible."""
        return all(c.ok for c in self.checks)


def audit(path: Path) -> Audit:
    """Audit a Markdown record, or the results of another tool (.json, .json.gz, .eval, or a folder). Raises InputError.
    """
    if path.is_dir() or path.suffix.lower() in (".json", ".gz", ".eval"):
        return audit_document(Document(source=path.name, rows=read_scores(path)))
    return audit_document(read_record(path))


def audit_document(document: Document) -> Audit:
    """Audit the scores and statements of a document."""
    results = check_scores(document.scores)
    pairs = list(_pairs(document.scores))
    of_model: dict[str, list[Check]] = {}
    for check in results:
        of_model.setdefault(check.row.model, []).append(check)
    claims = tuple(claim for base, tuned, family in pairs
                   for claim in _claims(of_model[base], of_model[tuned], family=family))
    return Audit(document.source, results, claims, tuple(_findings(document, pairs)))


# --- Differences ---


def _pairs(rows: Sequence[Reported]) -> Iterator[tuple[str, str, bool]]:
    """(base, other model, whether both are in one section) of the models that the document compares."""
    sections: dict[str, dict[str, None]] = {}
    for row in rows:
        sections.setdefault(row.section, {})[row.model] = None
    bases = {section: base for section, models in sections.items()
             if (base := next((m for m in models if re.search(r"(?i)\bbase\b", m)), None)) is not None}
    first_base, all_bases = next(iter(bases.values()), None), set(bases.values())
    for section, models in sections.items():
        base = bases.get(section, first_base)
        for model in models:
            if base is not None and model != base and model not in all_bases:
                yield base, model, section in bases


def _claims(base: Sequence[Check], tuned: Sequence[Check], *, family: bool) -> Iterator[Claim]:
    """The differences of two models on the metrics that both have with an error, corrected with Holm's method."""
    of_base = {_score_name(c): c for c in base}
    both = [(of_base[name], c) for c in tuned
            if (name := _score_name(c)) in of_base and _complete(c) and _complete(of_base[name])]
    tests = [checks.unpaired_difference(_summary(a.row), _summary(b.row)) for a, b in both]
    adjusted, every = holm([t.p for t in tests]), holm([_p_every(a, b) for a, b in both])
    order = sorted(range(len(tests)), key=lambda i: tests[i].p)
    rank = {i: place for place, i in enumerate(order)}
    for i, (before, after) in enumerate(both):
        step = ALPHA / (len(tests) - rank[i])
        row = after.row
        yield Claim(base=before.row.model, tuned=row.model, task=row.task, metric=row.metric, filter=row.filter,
                    difference=tests[i].difference, z=tests[i].z, p=tests[i].p, p_holm=adjusted[i],
                    p_every=every[i], family=family, inputs_ok=before.ok and after.ok,
                    pairing=_bounds(before, after, ALPHA),
                    strict=_bounds(before, after, step))


def _score_name(result: Check) -> ScoreName:
    return result.row.task, result.row.metric, result.row.filter


def _complete(result: Check) -> bool:
    return result.row.value is not None and result.row.stderr is not None and is_share(result.row.metric)


def _summary(row: Reported) -> tuple[float, float]:
    assert row.value is not None
    assert row.stderr is not None
    return row.value, row.stderr


def _p_every(before: Check, after: Check) -> float:
    """The largest p over all pairings: from the counts where both are known, else from the values and errors."""
    n = before.row.n
    if n is not None and n == after.row.n and before.counts and after.counts:
        return checks.p_at_every_pairing(before.counts, after.counts, n)
    return checks.p_at_any_correlation(_summary(before.row), _summary(after.row))


def _bounds(before: Check, after: Check, alpha: float) -> PairingBounds | None:
    """Bounds of the paired test; None unless the k of both is known and their n is the same."""
    n = before.row.n
    if n is None or n != after.row.n or len(before.counts) != 1 or len(after.counts) != 1:
        return None
    return checks.pairing_bounds(before.counts[0], after.counts[0], n, alpha=alpha)


def pairing_text(claim: Claim) -> str:
    """For which pairings of the answers a difference would be significant, in words."""
    bounds, strict = claim.pairing, claim.strict
    if bounds is None or strict is None:
        return "the counts are not known, so a paired test cannot be bounded"
    if claim.status == "established":
        return (f"significant at every pairing ({bounds.low:,} to {bounds.high:,} of {bounds.n:,} items may differ), "
                "also after Holm")
    if bounds.never:
        return "significant at no pairing"
    most = f"{bounds.mid:,} ({100 * (bounds.mid or 0) / bounds.n:.1f} %)"
    most_holm = "none" if strict.mid is None else f"{strict.mid:,} ({100 * strict.mid / bounds.n:.1f} %)"
    return (f"from {bounds.low:,} to {bounds.high:,} of {bounds.n:,} items may differ: mid-p below .05 only if at most "
            f"{most} do (exact: {bounds.exact or 0:,}), after Holm {most_holm}; independent answers would differ on "
            f"about {math.floor(bounds.independent + 0.5):,}")


# --- Other findings ---


def _findings(document: Document, pairs: Sequence[tuple[str, str, bool]]) -> Iterator[AuditFinding]:
    facts = {row.model: row.facts for row in document.scores}
    yield from _dtypes(facts)
    for base, tuned, _ in pairs:
        differing = [f"{k} {facts[base][k]} | {facts[tuned][k]}" for k in _SETTINGS
                     if k in facts[base] and k in facts[tuned] and facts[base][k] != facts[tuned][k]]
        if differing:
            yield AuditFinding(tuned, f"was run with other settings than {base}: {'; '.join(differing)}")
    yield from _equal_filters(document.scores)
    for remark in document.remarks:
        if remark.kind == "definition" and remark.metric == "acc_norm" and not _LENGTH.search(remark.text):
            yield AuditFinding(
                f"line {remark.line}",
                f"the definition of {remark.lead} is wrong ({remark.text!r}): lm-eval divides the log-likelihood of "
                "each choice by the length of the choice (its documents say bytes, its code counts characters) before "
                "it takes the largest; no text is normalised")
    for note in document.remarks:
        if note.kind == "note":
            yield AuditFinding(f"line {note.line}", note.text)
    unidentified = [m for m, model_facts in facts.items() if not any(map(_IDENTITY.search, model_facts))]
    if unidentified and any(facts.values()):
        yield AuditFinding(", ".join(unidentified), "no hash or revision identifies the weights that were evaluated")


def _dtypes(facts: Mapping[str, Mapping[str, str]]) -> Iterator[AuditFinding]:
    """Models with a stated data type that the stated command does not set."""
    with_dtype: list[str] = []
    without: list[tuple[str, str]] = []
    for model, model_facts in facts.items():
        command, dtype = model_facts.get("Evaluation Command", ""), model_facts.get("Data Type", "")
        if not dtype or not re.search(r"\blm[_-]eval\b", command) or "model_args" not in command:
            continue
        if re.search(r"\bdtype=", command):
            with_dtype.append(model)
        else:
            without.append((model, dtype))
    for model, dtype in without:
        contrast = f", unlike that of {with_dtype[0]}" if with_dtype else ""
        yield AuditFinding(model, f"{dtype} is stated, but the command sets no dtype{contrast}: lm-eval then uses the "
                                  "checkpoint's dtype")


def _equal_filters(rows: Sequence[Reported]) -> Iterator[AuditFinding]:
    """Models with the same figure under a strict and a flexible filter."""
    all_flexible: dict[tuple[str, str, str], Reported] = {}
    for row in rows:
        if row.filter == "flexible-extract":
            all_flexible.setdefault((row.model, row.task, row.metric), row)
    for row in rows:
        if row.filter != "strict-match":
            continue
        flexible = all_flexible.get((row.model, row.task, row.metric))
        if flexible is not None and flexible.value_text == row.value_text:
            yield AuditFinding(f"{row.model}, {row.task}",
                               f"strict match equals flexible extract ({row.value_text}): either every right answer "
                               "has the strict form, or one row repeats the other; only the answers can show which")


# --- Imported documents ---


def audited_documents(ledger: Ledger) -> list[AuditedDocument]:
    """Every imported document of a ledger with its audit, in the order of import."""
    return list(map(audit_reported, imported_documents(ledger)))


def imported_documents(ledger: Ledger, source: str | None = None) -> list[Document]:
    """Every imported document of a ledger, or the one of this source, in the order of import."""
    by_source: dict[str, list[Reported]] = {}
    for row in map(Reported.of, ledger.reported(source)):
        by_source.setdefault(row.source, []).append(row)
    remarks: dict[str, list[Remark]] = {}
    for stored in ledger.remarks(source):
        remarks.setdefault(stored["source"], []).append(Remark.of(stored))
    return [Document(source=name, rows=tuple(rows), remarks=tuple(remarks.get(name, ())))
            for name, rows in by_source.items()]


def audit_reported(document: Document) -> AuditedDocument:
    """One document with its audit."""
    result = audit_document(document)
    marks = {id(row): f"{c.mark}: {c.text}" for row, c in zip(document.scores, result.checks, strict=True)}
    models = tuple(dict.fromkeys(row.model for row in document.scores))
    compared = {remark.model for remark in document.remarks if remark.kind == "column"}
    columns = tuple(m for m in models if m in compared) or models
    return AuditedDocument(
        source=document.source, rows=tuple((row, marks.get(id(row), "")) for row in document.rows),
        remarks=document.remarks, differences=tuple(_differences(result)),
        findings=tuple((f.where, f.text) for f in result.findings), columns=columns,
        best=dict(_best([c for c in result.checks if c.row.model in columns])))


def _differences(result: Audit) -> Iterator[ReportedDifference]:
    for claim in result.claims:
        yield ReportedDifference(
            base=claim.base, tuned=claim.tuned, score=(claim.task, claim.metric, claim.filter),
            points=100 * claim.difference, family=claim.family, told=claim.status)


def _best(results: Sequence[Check]) -> Iterator[tuple[ScoreName, str]]:
    """(score, model) where one model is better than every other at every pairing, corrected with Holm's method."""
    by_name: dict[ScoreName, list[Check]] = {}
    for check in results:
        by_name.setdefault(_score_name(check), []).append(check)
    for name, row in by_name.items():
        if len(row) < 2 or len({c.row.model for c in row}) < len(row) or not all(c.ok and _complete(c) for c in row):
            continue
        best, *others = sorted(row, key=lambda c: -(c.row.value or 0))
        if all(p < ALPHA for p in holm([_p_every(best, other) for other in others])):
            yield name, best.row.model
