"""Owns what an audit makes of the documents in a ledger, for a record that shows them beside what was measured.

    for document in judged(ledger):
        document.best["gsm8k", "exact_match", "strict-match"]      "Base Llama 3.2 1B"

Owns the audit of a published record: what its printed figures can be, and what its differences can show.

    found = audit(Path("record.md"))
    found.checks[15].text      "not reproducible as k/n at the stated n=100 (26 is 26.00% and 27 is 27.00%)"
    found.claims[0].status     "open": the summary alone does not settle it, the paired answers would

Only what the document prints is used. Within a section the first model called "base" stands against the others;
where a section has none, the document's first base does, and that is a comparison of models, never forgetting.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aftertune.catalog import is_share
from aftertune.exchange.importing import reported_scores
from aftertune.exchange.lm_eval_files import read_results
from aftertune.exchange.markdown_record import Document, read_record
from aftertune.ledger import Ledger
from aftertune.stats import audit as checks
from aftertune.stats.audit import Figure, Pairing, unpaired
from aftertune.stats.verdict import holm
from aftertune.values.reported import AuditedDocument, Remark, Reported, ReportedDifference, ScoreName

ALPHA = 0.05
ClaimStatus = Literal["established", "open", "not shown", "cannot be checked"]
_SETTINGS = ("Device", "Batch Size", "Data Type")
_LENGTH = re.compile(r"(?i)\blength|\bbytes?\b|\bcharacters?\b")
_IDENTITY = re.compile(r"(?i)\b(sha|sha256|hash|revision|fingerprint|weights|commit)\b")


@dataclass(frozen=True, slots=True)
class Check:
    """One reported value. value_ok, stderr_ok: None where it cannot be checked. power: chance that a random
    figure of as many digits would fail; 0 means that passing says nothing."""

    row: Reported
    value_ok: bool | None
    stderr_ok: bool | None
    counts: tuple[int, ...]
    power: float
    text: str

    @property
    def ok(self) -> bool:
        return self.value_ok is not False and self.stderr_ok is not False

    @property
    def mark(self) -> str:
        """"ok", "ok*" where every figure of as many digits is some k/n, "not reproducible", "not checked"."""
        if not self.ok:
            return "not reproducible"
        return "not checked" if self.value_ok is None else "ok" if self.power else "ok*"


@dataclass(frozen=True, slots=True)
class Claim:
    """A difference between two reported models on one metric. z, p: unpaired, from the printed errors; p_holm:
    over the metrics of this pair; family: both stand in one section, so that the document may speak of forgetting.
    pairing: bounds at 5 %; strict: the same at the level of the row's Holm step."""

    base: str
    tuned: str
    task: str
    metric: str
    filter: str
    difference: float
    z: float | None
    p: float
    p_holm: float
    family: bool
    inputs_ok: bool
    pairing: Pairing | None
    strict: Pairing | None

    @property
    def status(self) -> ClaimStatus:
        """What the summary alone carries."""
        if not self.inputs_ok:
            return "cannot be checked"
        if self.p_holm < ALPHA:
            return "established"
        return "open" if self.strict is not None and not self.strict.never else "not shown"


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """Something else that the reader of the document should know. where: model, metric or line."""

    where: str
    text: str


@dataclass(frozen=True, slots=True)
class Audit:
    """Everything that was found in one document."""

    source: str
    checks: tuple[Check, ...]
    claims: tuple[Claim, ...]
    findings: tuple[AuditFinding, ...]

    @property
    def ok(self) -> bool:
        """True where every value and error that could be checked is possible."""
        return all(c.ok for c in self.checks)


def audit(path: Path) -> Audit:
    """Audit a Markdown record, or a results file of lm-eval (.json). Raises InputError."""
    if path.suffix.lower() == ".json":
        run = read_results(path)
        return audit_document(Document(source=path.name, rows=reported_scores(run, path.name)))
    return audit_document(read_record(path))


def audit_document(document: Document) -> Audit:
    """Audit what a document states."""
    found = tuple(check(row) for row in document.scores)
    pairs = list(_pairs(document.scores))
    claims = tuple(claim for base, tuned, family in pairs for claim in _claims(base, tuned, found, family=family))
    return Audit(document.source, found, claims, tuple(_findings(document, pairs)))


def check(row: Reported) -> Check:
    """Whether a reported value can be k/n, and its error that of such a share."""
    value = _figure(row.value_text)
    if not is_share(row.metric) or value is None:
        return Check(row, None, None, (), 0.0, f"{row.metric} is not known to be a share of items")
    if row.n is None:
        return Check(row, None, None, (), 0.0, "how many items it is made of is not stated")
    counts = checks.whole_counts(value, row.n)
    stderr = _figure(row.stderr_text)
    stderr_ok = None if stderr is None or row.n < 2 else checks.stderr_agrees(value, stderr, row.n)
    said = [_value_text(row, value, counts)]
    if stderr is not None and stderr_ok is not None:
        said.append(_stderr_text(row, value, stderr, ok=stderr_ok))
    return Check(row, bool(counts), stderr_ok, counts, checks.power(value, row.n), "; ".join(said))


def _figure(text: str) -> Figure | None:
    try:
        return Figure.parse(text)
    except ValueError:
        return None


def _value_text(row: Reported, value: Figure, counts: Sequence[int]) -> str:
    assert row.n is not None
    if counts:
        some = f"k={counts[0]}" if len(counts) == 1 else f"k={counts[0]} to {counts[-1]}"
        return f"{some} of {row.n:,}"
    near = [k for k in checks.neighbours(value, row.n) if 0 <= k <= row.n]
    around = " and ".join(f"{k} is {_shown(k / row.n, value)}" for k in dict.fromkeys(near))
    return f"not reproducible as k/n at the stated n={row.n:,} ({around})"


def _stderr_text(row: Reported, value: Figure, stderr: Figure, *, ok: bool) -> str:
    assert row.n is not None
    low, high = (_shown(s, stderr, 1) for s in checks.stderr_span(value, row.n))
    if ok:
        return f"error {row.stderr_text} agrees"
    expected = low if low == high else f"{low} to {high}"
    needs = checks.counts_of_stderr(stderr, row.n, value.fraction)
    if needs is None:
        would = "no k of this n gives it"
    else:
        shares = [_shown(k / row.n, value) for k in dict.fromkeys(needs)]
        would = f"it needs k={'-'.join(map(str, dict.fromkeys(needs)))}, {' to '.join(shares)}"
    return f"error {row.stderr_text} does not follow from the value (expected {expected}; {would})"


def _shown(share: float, like: Figure, more: int = 0) -> str:
    """A share in the unit and with the decimals of a printed figure, perhaps some more."""
    return f"{share * like.scale:.{min(like.decimals, 6) + more}f}{'%' if like.scale == 100 else ''}"


def _pairs(rows: Sequence[Reported]) -> Iterator[tuple[str, str, bool]]:
    """(base, other, whether they stand in one section) of what the document sets side by side."""
    sections: dict[str, list[str]] = {}
    for row in rows:
        models = sections.setdefault(row.section, [])
        if row.model not in models:
            models.append(row.model)
    bases = {section: base for section, models in sections.items()
             if (base := next((m for m in models if re.search(r"(?i)\bbase\b", m)), None)) is not None}
    first = next(iter(bases.values()), None)
    for section, models in sections.items():
        base = bases.get(section, first)
        for model in models:
            if base is not None and model != base and model not in bases.values():
                yield base, model, section in bases


def _claims(base: str, tuned: str, found: Sequence[Check], *, family: bool) -> Iterator[Claim]:
    """The differences of two models on the metrics that both have with an error, Holm over them."""
    ours = {(c.row.task, c.row.metric, c.row.filter): c for c in found if c.row.model == base}
    both = [(ours[key], c) for c in found if c.row.model == tuned
            and (key := (c.row.task, c.row.metric, c.row.filter)) in ours and _complete(c) and _complete(ours[key])]
    tests = [checks.unpaired(_summary(a.row), _summary(b.row)) for a, b in both]
    adjusted = holm([t.p for t in tests])
    order = sorted(range(len(tests)), key=lambda i: tests[i].p)
    for i, (before, after) in enumerate(both):
        step = ALPHA / (len(tests) - order.index(i))
        yield Claim(base=base, tuned=tuned, task=after.row.task, metric=after.row.metric, filter=after.row.filter,
                    difference=tests[i].difference, z=tests[i].z, p=tests[i].p, p_holm=adjusted[i], family=family,
                    inputs_ok=before.ok and after.ok, pairing=_bounds(before, after, ALPHA),
                    strict=_bounds(before, after, step))


def _complete(one: Check) -> bool:
    return one.row.value is not None and one.row.stderr is not None and is_share(one.row.metric)


def _summary(row: Reported) -> tuple[float, float]:
    assert row.value is not None
    assert row.stderr is not None
    return row.value, row.stderr


def _bounds(before: Check, after: Check, alpha: float) -> Pairing | None:
    """What pairing could make of it; None unless both are one known k of the same n."""
    n = before.row.n
    if n is None or n != after.row.n or len(before.counts) != 1 or len(after.counts) != 1:
        return None
    return checks.pairing(before.counts[0], after.counts[0], n, alpha=alpha)


def pairing_text(claim: Claim) -> str:
    """What the paired answers could make of a difference, in words."""
    at, strict = claim.pairing, claim.strict
    if at is None or strict is None:
        return "the counts are not known, so nothing can be said of pairing"
    if strict.always:
        return (f"significant at every pairing ({at.low:,} to {at.high:,} of {at.n:,} items may differ), also after "
                "Holm")
    if at.never:
        return "significant at no pairing"
    held = f"{at.mid:,} ({100 * (at.mid or 0) / at.n:.1f} %)"
    step = "none" if strict.mid is None else f"{strict.mid:,} ({100 * strict.mid / at.n:.1f} %)"
    return (f"from {at.low:,} to {at.high:,} of {at.n:,} items may differ: mid-p below .05 only if at most {held} do "
            f"(exact: {at.exact or 0:,}), after Holm {step}; independent answers would differ on about "
            f"{math.floor(at.independent + 0.5):,}")


def _findings(document: Document, pairs: Sequence[tuple[str, str, bool]]) -> Iterator[AuditFinding]:
    facts = {row.model: row.facts for row in document.scores}
    yield from _dtypes(facts)
    for base, tuned, _ in pairs:
        differing = [f"{k} {facts[base][k]} | {facts[tuned][k]}" for k in _SETTINGS
                     if k in facts[base] and k in facts[tuned] and facts[base][k] != facts[tuned][k]]
        if differing:
            yield AuditFinding(tuned, f"was not run as {base} was: {'; '.join(differing)}")
    yield from _equal_filters(document.scores)
    for said in document.remarks:
        if said.kind == "definition" and said.metric == "acc_norm" and not _LENGTH.search(said.text):
            yield AuditFinding(f"line {said.line}",
                          f"the definition of {said.lead} is wrong ({said.text!r}): lm-eval divides the "
                          "log-likelihood of each choice by the length of the choice (its documents say bytes, its "
                          "code counts characters) before it takes the largest; no text is normalised")
    unnamed = [m for m, known_facts in facts.items() if not any(map(_IDENTITY.search, known_facts))]
    if unnamed and any(facts.values()):
        yield AuditFinding(", ".join(unnamed), "no hash or revision says which weights were evaluated")


def _dtypes(facts: Mapping[str, Mapping[str, str]]) -> Iterator[AuditFinding]:
    """A stated data type that the stated command does not set."""
    setting: list[str] = []
    lacking: list[tuple[str, str]] = []
    for model, known_facts in facts.items():
        command, dtype = known_facts.get("Evaluation Command", ""), known_facts.get("Data Type", "")
        if not dtype or not re.search(r"\blm[_-]eval\b", command) or "model_args" not in command:
            continue
        if re.search(r"\bdtype=", command):
            setting.append(model)
        else:
            lacking.append((model, dtype))
    for model, dtype in lacking:
        but = f", unlike that of {setting[0]}" if setting else ""
        yield AuditFinding(model, f"{dtype} is stated, but the command sets no dtype{but}: lm-eval then takes the "
                      "checkpoint's own")


def _equal_filters(rows: Sequence[Reported]) -> Iterator[AuditFinding]:
    """One model with the same figure under a strict and a flexible filter."""
    for row in rows:
        if row.filter != "strict-match":
            continue
        flexible = next((r for r in rows if (r.model, r.task, r.metric, r.filter) ==
                         (row.model, row.task, row.metric, "flexible-extract")), None)
        if flexible is not None and flexible.value_text == row.value_text:
            yield AuditFinding(f"{row.model}, {row.task}",
                               f"strict match equals flexible extract ({row.value_text}): every "
                          "right answer had the strict form, or one row repeats the other; the answers would tell")


def audited_documents(ledger: Ledger) -> list[AuditedDocument]:
    """Every imported document with its audit, in the order of import."""
    rows = [Reported.of(row) for row in ledger.reported()]
    return [audit_reported(Document(source=source, rows=tuple(r for r in rows if r.source == source),
                           remarks=tuple(map(Remark.of, ledger.remarks(source)))))
            for source in dict.fromkeys(row.source for row in rows)]


def audit_reported(document: Document) -> AuditedDocument:
    """One document with its audit."""
    found = audit_document(document)
    marks = {id(c.row): f"{c.mark}: {c.text}" for c in found.checks}
    models = tuple(dict.fromkeys(row.model for row in document.scores))
    shown = {remark.model for remark in document.remarks if remark.kind == "column"}
    columns = tuple(m for m in models if m in shown) or models
    return AuditedDocument(source=document.source, rows=tuple((row, marks.get(id(row), "")) for row in document.rows),
                  remarks=document.remarks, differences=tuple(_differences(found)),
                  findings=tuple((f.where, f.text) for f in found.findings), columns=columns,
                  best=dict(_best([c for c in found.checks if c.row.model in columns])))


def _differences(found: Audit) -> Iterator[ReportedDifference]:
    for claim in found.claims:
        yield ReportedDifference(base=claim.base, tuned=claim.tuned, score=(claim.task, claim.metric, claim.filter),
                         points=100 * claim.difference, family=claim.family, told=claim.status)


def _best(checks: Sequence[Check]) -> Iterator[tuple[ScoreName, str]]:
    """Of each score the model whose figure is better than every other one, unpaired, Holm over the others."""
    names = dict.fromkeys((c.row.task, c.row.metric, c.row.filter) for c in checks)
    for name in names:
        row = [c for c in checks if (c.row.task, c.row.metric, c.row.filter) == name]
        if len(row) < 2 or not is_share(name[1]) or not all(map(_usable, row)):
            continue
        first, *others = sorted(row, key=lambda c: -(c.row.value or 0))
        tests = [unpaired(_document_summary(first), _document_summary(other)) for other in others]
        if all(p < ALPHA for p in holm([t.p for t in tests])):
            yield name, first.row.model


def _usable(check: Check) -> bool:
    return check.ok and check.row.value is not None and check.row.stderr is not None


def _document_summary(check: Check) -> tuple[float, float]:
    return check.row.value or 0.0, check.row.stderr or 0.0
