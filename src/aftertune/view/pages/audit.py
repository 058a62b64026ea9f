"""Audits: a document that a person pastes, with each figure marked where it stands, and the imported documents.

The text comes with a POST, is audited and shown, and is not stored. It never names a file. Of an imported document the
ledger has the figures and not the text, so these are listed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from threading import Lock

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aftertune import bounds
from aftertune.errors import InputError, ResourceError, shown
from aftertune.exchange import (
    Audit,
    FigureMark,
    audit_document,
    imported_documents,
    mark_figures,
    mark_lines,
    pairing_text,
    parse_record,
)
from aftertune.exchange.figure_marks import MARK_KINDS
from aftertune.report import formatting as fmt
from aftertune.view.guard import form_of
from aftertune.view.inputs import Inputs
from aftertune.view.rendering import NavigationLink, context_of, render

#: How a pasted document is called.
_PASTED = "document"
_NOTHING = "paste a document with a table of scores, or choose a Markdown file"
_one_audit = Lock()


def audits(request: Request) -> Response:
    """The form, and the imported documents; with ``source``, the audit of one of them."""
    source = Inputs(request).text("source")
    with context_of(request).ledgers.read() as ledger:
        documents = imported_documents(ledger, source or None)
    if not source:
        return _page(request, documents=[(d.source, len(d.scores), len({r.model for r in d.scores}))
                                         for d in documents])
    if not documents:
        raise InputError(f"source={shown(source)}: the ledger has no such document; the page Audit lists them")
    result = audit_document(documents[0])
    return _page(request, source=source, notes=documents[0].notes, **_findings(result, mark_figures(result)))


def audit_text(request: Request) -> Response:
    """The audit of the document that the form has."""
    text = form_of(request).get("document", "")
    if not text.strip():
        return _page(request, fault=_NOTHING)
    if not _one_audit.acquire(blocking=False):
        raise ResourceError("another document is being audited; wait a moment, then send it again")
    try:
        document = parse_record(text, _PASTED)
        result = audit_document(document)
    except InputError as error:
        return _page(request, text=text, fault=str(error).removeprefix(f"{_PASTED}: "))
    finally:
        _one_audit.release()
    marks = mark_figures(result)
    return _page(request, text=text, notes=document.notes, lines=mark_lines(text, marks), **_findings(result, marks))


def _findings(result: Audit, marks: Sequence[FigureMark]) -> dict[str, object]:
    """What the template shows of an audit."""
    return {"marks": marks, "counts": _counts(marks), "differences": _differences(result),
            "findings": result.findings}


def _counts(marks: Sequence[FigureMark]) -> list[tuple[str, int, str]]:
    """(kind, how many figures, what it says), the worst first."""
    found = Counter(mark.kind for mark in marks)
    return [(kind, found[kind], text) for kind, text in MARK_KINDS.items()]


def _differences(result: Audit) -> list[tuple[str, str, str, str, str]]:
    """(tuned, base, score, points, what the printed figures show) of each compared pair of figures."""
    return [(c.tuned, c.base, " ".join([c.task, c.metric, *([c.filter] if c.filter != "none" else [])]),
             fmt.points(c.difference), f"{c.status}: {pairing_text(c)}" if c.inputs_ok else c.status)
            for c in result.claims]


def _page(request: Request, **values: object) -> Response:
    fault = values.get("fault")
    return render(request, "audit.html", title="Audit", http_status=400 if fault else 200,
                  **{"lines": (), "marks": (), "documents": (), "source": "", "text": "", "fault": "", "notes": (),
                     "findings": (), "differences": (), "most": bounds.VIEW_DOCUMENT, **values})


ROUTES = [Route("/audit", audits, methods=["GET"]), Route("/audit", audit_text, methods=["POST"])]
BODIES = {"/audit": bounds.VIEW_DOCUMENT}
NAVIGATION = NavigationLink("Audit", "/audit", 60)
