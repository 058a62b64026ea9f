"""Marks the figures of an audited document, each where it stands.

    result = audit_document(parse_record(text, "record.md"))
    marks = mark_figures(result)
    marks[15].kind, marks[15].text          "impossible", "not reproducible as k/n at the stated n=100 (…)"
    mark_lines(text, marks)[40].parts       [("| gsm8k | ", ""), ("26.3", "impossible"), (" |", "")]

A figure is "impossible" where no k of n gives it or its error does not follow from it, and "possible" otherwise. Where
the document compares the model with a base, the difference decides between "established", which holds for every pairing
of the answers, and "doubtful", which the printed figures do not decide. A figure that cannot be checked is doubtful.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from aftertune.exchange.audits import Audit, Claim, pairing_text
from aftertune.exchange.files import normal_lines
from aftertune.exchange.score_checks import Check
from aftertune.values.reported import Reported

MarkKind = Literal["impossible", "doubtful", "established", "possible"]
#: Every kind with what it says, the worst first.
MARK_KINDS: dict[MarkKind, str] = {
    "impossible": "no number of right answers gives the figure, or its error does not follow from it",
    "doubtful": "it cannot be checked, or the figures do not show the difference from the base",
    "established": "possible, and the difference from the base holds for every pairing of the answers",
    "possible": "some number of right answers gives it"}


@dataclass(frozen=True, slots=True)
class FigureMark:
    """What the audit says about one figure. text: the reasons, in one line."""

    row: Reported
    kind: MarkKind
    text: str

    @property
    def label(self) -> str:
        """Whose figure it is, in words."""
        score = " ".join([self.row.task, *([] if self.row.metric in ("", self.row.task) else [self.row.metric]),
                          *([] if self.row.filter == "none" else [self.row.filter])])
        return f"{self.row.model}, {score}"


@dataclass(frozen=True, slots=True)
class MarkedLine:
    """One line of a document. parts: its text in pieces, each with the kind of its mark or ""; marks: of the figures
    that the line has, also those that were not found in its text, such as cells of an HTML table below it."""

    number: int
    parts: tuple[tuple[str, MarkKind | Literal[""]], ...]
    marks: tuple[FigureMark, ...]


def mark_figures(result: Audit) -> list[FigureMark]:
    """A mark for each checked figure, in the order of the document."""
    claims: dict[tuple[str, str, str, str], list[Claim]] = {}
    for claim in result.claims:
        claims.setdefault((claim.tuned, claim.task, claim.metric, claim.filter), []).append(claim)
    return [_mark(c, claims.get((c.row.model, c.row.task, c.row.metric, c.row.filter), ())) for c in result.checks]


def _mark(check: Check, claims: Sequence[Claim]) -> FigureMark:
    texts = [check.text, *(f"{100 * c.difference:+.2f} points against {c.base}: {pairing_text(c)}"
                           for c in claims if c.inputs_ok)]
    kind: MarkKind = "possible"
    if not check.ok:
        kind = "impossible"
    elif check.mark == "not checked" or any(c.status != "established" for c in claims):
        kind = "doubtful"
    elif claims:
        kind = "established"
    return FigureMark(check.row, kind, "; ".join(texts))


def mark_lines(text: str, marks: Sequence[FigureMark]) -> list[MarkedLine]:
    """Every line of a document with its marks. Lines count from 1."""
    lines = normal_lines(text).split("\n")
    of_line: dict[int, list[FigureMark]] = {}
    for mark in marks:
        of_line.setdefault(min(max(mark.row.line or 1, 1), len(lines)), []).append(mark)
    return [MarkedLine(number, tuple(_parts(line, of_line.get(number, ()))), tuple(of_line.get(number, ())))
            for number, line in enumerate(lines, 1)]


def _parts(line: str, marks: Sequence[FigureMark]) -> Iterator[tuple[str, MarkKind | Literal[""]]]:
    """The line in pieces. Figures are found from left to right; one that is not there is left out."""
    found: dict[int, tuple[int, MarkKind]] = {}  # start -> end, kind
    at = 0
    for mark in marks:
        places = [m for m in _figure(mark.row.value_text).finditer(line) if m.start() not in found]
        if places:
            place = next((m for m in places if m.start() >= at), places[0])
            found[place.start()], at = (place.end(), mark.kind), place.end()
    at = 0
    for start, (end, kind) in sorted(found.items()):
        if start > at:
            yield line[at:start], ""
        yield line[start:end], kind
        at = end
    if at < len(line) or not found:
        yield line[at:], ""


def _figure(value: str) -> re.Pattern[str]:
    """Finds a figure that is no part of a longer one. A percent sign may stand elsewhere, such as above the table."""
    number = value.rstrip("% ")
    return re.compile(rf"(?<![\w.]){re.escape(number)}(?:\s?%)?(?!\w|\.\d)" if number else r"(?!)")
