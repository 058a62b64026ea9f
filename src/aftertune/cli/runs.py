"""Implements ``runs``: lists what the ledger holds, filtered and sorted.

    aftertune runs                                    everything, the newest last
    aftertune runs orders --status done --sort name   entries with "orders" in their id, name, model, tags or note
    aftertune runs --task hellaswag --since 7d

An entry that says ``running`` although no process works on it any more is shown as ``interrupted``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from aftertune.cli.console import emit
from aftertune.cli.options import JsonFlag
from aftertune.cli.streams import rich_console
from aftertune.errors import InputError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aftertune.ledger import EntryLabel, Ledger
    from aftertune.values import Evaluation, TaskSettings, Tuning
    from aftertune.values.reported import Reported

#: The orders of --sort; "added" is the order of the ledger.
SORTS = ("added", "name", "kind", "status", "started")
STATUSES = ("done", "running", "interrupted", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One line of the list. started: "2026-01-31 12:00" or ""; base: sources, ids and names of what it was made from;
    parts: what is in it, each part a word or a few that belong together."""

    id: str
    kind: str
    name: str
    status: str
    started: str
    parts: tuple[str, ...]
    tasks: tuple[str, ...] = ()
    base: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    note: str = ""

    def matches(self, word: str) -> bool:
        """Whether a word is in its id, kind, name, tasks, base, tags or note, in any case."""
        texts = (self.id, self.kind, self.name, self.note, *self.tasks, *self.base, *self.tags, *self.parts)
        return any(word.lower() in text.lower() for text in texts)


def runs(
    word: Annotated[str | None, typer.Argument(
        metavar="WORD", help="Only entries with this in their id, name, model, tasks, tags or note.")] = None,
    task: Annotated[str | None, typer.Option(help="Only entries with this task.")] = None,
    base: Annotated[str | None, typer.Option(
        help="Only fine-tunes and evaluations of this base model, and comparisons with it: a part of its source, an id "
             "or a name.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only entries with this tag.")] = None,
    status: Annotated[str | None, typer.Option(
        help="Only entries that are done, running, interrupted or failed.")] = None,
    since: Annotated[str | None, typer.Option(
        metavar="DATE|AGE", help="Only runs that started since: 2026-01-31, or 7d, or 12h.")] = None,
    sort: Annotated[str, typer.Option(help="Order: added (to the ledger), name, kind, status or started.")] = "added",
    reverse: Annotated[bool, typer.Option("--reverse", help="The other way round.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """List evaluations, tunings and comparisons, newest last. Without options: all of them."""
    from aftertune.ledger import Ledger

    for option, value, allowed in (("--sort", sort, SORTS), ("--status", status, STATUSES)):
        if value is not None and value not in allowed:
            raise InputError(f"{option} {value}: allowed are {', '.join(allowed)}{nearest(value, list(allowed))}")
    start = since_text(since) if since else ""
    with Ledger(create=False) as ledger:
        found = entries(ledger)
        chosen = [e for e in found if (not word or e.matches(word)) and (not task or task in e.tasks)
                  and (not base or any(base.lower() in text.lower() for text in e.base)) and (not tag or tag in e.tags)
                  and (not status or e.status == status) and (not start or e.started >= start)]
        if sort != "added":
            chosen.sort(key=lambda e: getattr(e, sort))
        if reverse:
            chosen.reverse()
        if as_json:
            emit(_object(ledger, {e.id or e.name: e for e in chosen}))
            return
    _show(chosen)
    if len(chosen) < len(found):
        typer.echo(f"{len(chosen)} of {len(found)} entries")


def since_text(text: str) -> str:
    """The start of a time as entries have it, from a date or an age. InputError for another form."""
    if re.fullmatch(r"\d{4}-\d{2}(-\d{2}([ T]\d{2}:\d{2})?)?", text):
        try:
            datetime.fromisoformat(text if len(text) > len("2026-01") else f"{text}-01")
        except ValueError as error:
            raise InputError(f"--since {text!r}: there is no such date ({error}); write one such as "
                             "2026-01-31") from None
        return text.replace("T", " ")
    age = re.fullmatch(r"(\d{1,4})([hdw])", text)
    if age is None:
        raise InputError(f"--since {text!r}: write a date such as 2026-01-31, or an age such as 12h, 7d or 2w")
    hours = int(age[1]) * {"h": 1, "d": 24, "w": 24 * 7}[age[2]]
    return f"{datetime.now(UTC) - timedelta(hours=hours):%Y-%m-%d %H:%M}"


def entries(ledger: Ledger) -> list[LedgerEntry]:
    """Everything in the ledger: evaluations, tunings, comparisons and reported documents, each kind newest last."""
    from aftertune.ledger import EntryLabel
    from aftertune.ledger.states import evaluation_state, tuning_state

    labels, held = ledger.labels(), ledger.processes()
    evaluations, tunings = ledger.evaluations(), ledger.tunings()
    made_from = {t.id: t.base.source for t in tunings}
    sources = {e.id: tuple(dict.fromkeys((e.model.source, made_from.get(e.tuning or "", e.model.source))))
               for e in evaluations}
    tasks = {e.id: tuple(dict.fromkeys(name for t in e.tasks for name in (t.task, *t.groups))) for e in evaluations}

    def labelled(id_: str) -> dict[str, tuple[str, ...] | str]:
        label = labels.get(id_, EntryLabel())
        return {"tags": label.tags, "note": label.note}

    found = [LedgerEntry(id=e.id, kind=_kind(e), name=e.name, status=evaluation_state(e, held), started=_started(e),
                   parts=(*(_task_text(t) for t in e.tasks), *_processes(held.get(e.id, 0))), tasks=tasks[e.id],
                   base=sources[e.id], **labelled(e.id)) for e in evaluations]  # type: ignore[arg-type]
    found += [LedgerEntry(id=t.id, kind="tuning", name=t.name, status=tuning_state(t), started=_started(t),
                    parts=(t.method, f"{t.examples:,} examples"), base=(t.base.source,),
                    **labelled(t.id)) for t in tunings]  # type: ignore[arg-type]
    found += [LedgerEntry(id=c.id, kind="comparison", name=f"{c.tuned_name} against {c.base_name}",
                    status="forced" if c.forced else "done", started="",
                    base=(c.base, c.base_name, *sources.get(c.base, ())),
                    parts=tuple(f"{r.task} {r.told.partition(' (')[0]}" for r in c.rows if r.primary),
                    tasks=tuple(dict.fromkeys(r.task for r in c.rows)),
                    **labelled(c.id)) for c in ledger.comparisons()]  # type: ignore[arg-type]
    for source, scores in documents(ledger).items():
        measured = [r for r in scores if r.planned is None]
        found.append(LedgerEntry(id="", kind="reported", name=source, status="not measured here", started="",
                           parts=(f"{len(measured)} scores of", ", ".join(dict.fromkeys(r.model for r in measured))),
                           tasks=tuple(dict.fromkeys(r.task for r in measured))))
    return found


def documents(ledger: Ledger) -> dict[str, list[Reported]]:
    """Document -> the scores that it reports."""
    from aftertune.values.reported import Reported

    scores: dict[str, list[Reported]] = {}
    for score in map(Reported.of, ledger.reported()):
        scores.setdefault(score.source, []).append(score)
    return scores


def label_texts(label: EntryLabel) -> list[str]:
    """Tags and note of an entry as lines, none where it has none."""
    return [*([" ".join(f"#{tag}" for tag in label.tags)] if label.tags else []), *([label.note] if label.note else [])]


def _started(value: Evaluation | Tuning) -> str:
    return value.provenance.started[:16].replace("T", " ") if value.provenance else ""


def _kind(evaluation: Evaluation) -> str:
    """What an evaluation is in the list, with a doubt about its model."""
    from aftertune.values.reported import identity_note

    note = identity_note(evaluation.model)
    if not note:
        return "evaluation"
    return "evaluation, imported" if note.startswith("not proven") else "evaluation, not verified"


def _processes(count: int) -> list[str]:
    """How many processes work on an evaluation, where there are several."""
    return [f"{count} processes"] if count > 1 else []


def _task_text(task: TaskSettings) -> str:
    """A task, with its number of items if not all were used."""
    used = task.n if task.used is None else task.used
    return f"{task.task} ({used:,} of {task.n_total:,})" if used < task.n_total else task.task


def _object(ledger: Ledger, chosen: dict[str, LedgerEntry]) -> dict[str, object]:
    """The chosen entries as ``runs --json`` prints them, those of each kind in the order of the list."""
    from aftertune.values.reported import identity_note, proven

    def entry(id_: str) -> dict[str, object]:
        own = chosen[id_]
        return {"interrupted": own.status == "interrupted", "started": own.started or None, "tags": list(own.tags),
                "note": own.note}

    evaluations = {e.id: e for e in ledger.evaluations()}
    tunings, comparisons = {t.id: t for t in ledger.tunings()}, {c.id: c for c in ledger.comparisons()}
    reported = documents(ledger)
    return {"evaluations": [{"id": e.id, "name": e.name, "status": e.status,
                             "imported": identity_note(e.model).startswith("not proven"), "verified": proven(e.model),
                             "tasks": [t.task for t in e.tasks], **entry(e.id)}
                            for e in (evaluations[id_] for id_ in chosen if id_ in evaluations)],
            "tunings": [{"id": t.id, "name": t.name, "status": t.status, "method": t.method, **entry(t.id)}
                        for t in (tunings[id_] for id_ in chosen if id_ in tunings)],
            "comparisons": [{"id": c.id, "base": c.base, "tuned": c.tuned, "tags": list(chosen[c.id].tags),
                             "note": chosen[c.id].note}
                            for c in (comparisons[id_] for id_ in chosen if id_ in comparisons)],
            "reported": [{"source": source, "models": list(dict.fromkeys(r.model for r in reported[source])),
                          "scores": sum(r.planned is None for r in reported[source])}
                         for source in chosen if source in reported]}


def _show(chosen: Sequence[LedgerEntry]) -> None:
    """Print the entries: a table where it fits, else a block for each. A name of a task is never cut."""
    from rich.cells import cell_len
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console = rich_console()
    rows = [((e.id, e.kind, e.name, e.status, e.started[:10]), _what(e)) for e in chosen]
    heads = ("id", "kind", "name", "status", "started")
    widths = [max((cell_len(cells[at]) for cells, _ in rows), default=0) for at in range(len(heads))]
    longest = max((cell_len(word) for _, what in rows for part in what for word in part.split()), default=0)
    room = console.width - sum(max(w, cell_len(h)) + 2 for w, h in zip(widths, heads, strict=True))
    if room >= max(longest, 30):
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        for heading in heads:
            table.add_column(heading, no_wrap=True)
        table.add_column("what")
        for cells, what in rows:
            table.add_row(*map(Text, cells), Text(", ".join(what)))  # Text: rich must not read a name as markup
        console.print(table)
        return
    for (id_, kind, name, status, started), what in rows:
        facts = ", ".join(fact for fact in (kind, status, started) if fact)
        console.print(Text.assemble((f"{id_}  " if id_ else "", "cyan"), (name, "bold"), f"  {facts}"))
        console.print(Padding(Text(", ".join(what), "dim"), (0, 0, 0, 2), expand=False))


def _what(entry: LedgerEntry) -> list[str]:
    """What is in an entry, with its tags and its note."""
    return [*entry.parts, *(f"#{tag}" for tag in entry.tags), *([entry.note] if entry.note else [])]
