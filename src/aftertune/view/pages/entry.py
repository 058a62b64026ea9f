"""The page of one evaluation or fine-tune: where it comes from, the command to copy, its scores; name, tags and note,
which are the only things that the view changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from aftertune.errors import InputError
from aftertune.ledger import ARCHIVED, EntryLabel, EntryQuery, EntryRow, Ledger, title_of
from aftertune.ledger.labels import check_note, check_word
from aftertune.ledger.states import check_free
from aftertune.redaction import published
from aftertune.report import evaluation_facts, score_table, tuning_facts
from aftertune.report.facts import CODE, COMMANDS
from aftertune.report.results import tuning_of
from aftertune.sources.folder_lock import in_use
from aftertune.values import Comparison, Evaluation, Tuning
from aftertune.view.guard import form_of
from aftertune.view.inputs import Inputs
from aftertune.view.links import entry_path, runs_path, stored_path
from aftertune.view.rendering import context_of, render

_MOST = 200


@dataclass(frozen=True, slots=True)
class Relatives:
    """What belongs to an entry: the fine-tune that made its model, evaluations of what a fine-tune made, and
    comparisons with it."""

    tuning: Tuning | None
    evaluations: tuple[EntryRow, ...]
    comparisons: tuple[Comparison, ...]


def entry_page(request: Request) -> Response:
    """The page; a comparison has one of its own."""
    with context_of(request).ledgers.read() as ledger:
        entry = ledger.find(request.path_params["id"])
        if isinstance(entry, Comparison):
            return RedirectResponse(stored_path(entry), status_code=303)
        label = ledger.labels().get(entry.id, EntryLabel())
        relatives = _relatives(ledger, entry)
        status = _status(ledger, entry)
    facts = [fact for fact in (evaluation_facts(entry, relatives.tuning) if isinstance(entry, Evaluation) else
                               tuning_facts(entry)) if fact[0] not in COMMANDS]
    provenance = entry.provenance
    return render(
        request, "entry.html", title=entry.name, entry=entry, kind="evaluation" if isinstance(entry, Evaluation) else
        "fine-tune", status=status, label=label, archived=ARCHIVED in label.tags, code=CODE,
        facts_of_entry=published(facts),
        lines=score_table(entry) if isinstance(entry, Evaluation) else [],
        command=provenance.command if provenance else "", relatives=relatives,
        comparisons=[(stored_path(c), title_of(c)) for c in relatives.comparisons], inputs=Inputs(request))


def _relatives(ledger: Ledger, entry: Evaluation | Tuning) -> Relatives:
    if isinstance(entry, Tuning):
        rows = ledger.entry_page(EntryQuery(kind="evaluation", made_by=entry.id, archived=True, limit=_MOST)).rows
        return Relatives(None, rows, ())
    comparisons = [*ledger.comparisons(base=entry.id), *ledger.comparisons(tuned=entry.id)]
    made = [ledger.find_tuning(id_) for id_ in ledger.tunings_of(entry)]
    return Relatives(tuning_of(entry, made), (), tuple(comparisons[-_MOST:]))


def _status(ledger: Ledger, entry: Evaluation | Tuning) -> str:
    """Its status; "interrupted" where no process seems to work on it."""
    from pathlib import Path

    if entry.status != "running":
        return entry.status
    alive = entry.id in ledger.held() if isinstance(entry, Evaluation) else in_use(Path(entry.output))
    return "running" if alive else "interrupted"


def rename(request: Request) -> Response:
    """Give an entry another name."""
    name = form_of(request).get("name", "").strip()
    check_word("a name", name)

    def change(ledger: Ledger, entry: Any) -> None:
        check_free(ledger, entry)
        ledger.rename(entry.id, name)

    return _changed(request, change)


def change_tags(request: Request) -> Response:
    """Add or remove tags."""
    form = form_of(request)
    add, remove = form.get("add", "").split(), form.get("remove", "").split()
    for tag in add:
        check_word("a tag", tag)
    if not add and not remove:
        raise InputError("no tag is given; write one or more, with spaces between them")

    def change(ledger: Ledger, entry: Any) -> None:
        label = ledger.labels().get(entry.id, EntryLabel())
        kept = [tag for tag in label.tags if tag not in remove]
        ledger.save_label(entry.id, replace(label, tags=tuple(dict.fromkeys([*kept, *add]))))

    return _changed(request, change)


def change_note(request: Request) -> Response:
    """Replace the note; an empty one removes it."""
    text = form_of(request).get("note", "").replace("\r\n", "\n").strip()
    check_note(text)

    def change(ledger: Ledger, entry: Any) -> None:
        label = ledger.labels().get(entry.id, EntryLabel())
        ledger.save_label(entry.id, replace(label, note=text))

    return _changed(request, change)


def _changed(request: Request, change: Any) -> Response:
    """Make a change to the entry of the address, and show its page again."""
    with context_of(request).ledgers.write() as ledger:
        entry = ledger.find(request.path_params["id"])
        change(ledger, entry)
        path = stored_path(entry) if isinstance(entry, Comparison) else entry_path("", entry.id)
    back = form_of(request).get("back", "")
    return RedirectResponse(runs_path() if back == "runs" else path, status_code=303)


ROUTES = [Route("/entry/{id}", entry_page), Route("/entry/{id}/name", rename, methods=["POST"]),
          Route("/entry/{id}/tags", change_tags, methods=["POST"]),
          Route("/entry/{id}/note", change_note, methods=["POST"])]
