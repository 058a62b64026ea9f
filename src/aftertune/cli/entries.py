"""Implements ``rename``, ``tag``, ``note`` and ``rm``, which change entries of the ledger by their id or name.

    aftertune rename e-1f2e3d base-v2
    aftertune tag base-v2 paper final         aftertune tag base-v2 final --remove
    aftertune note base-v2 "seed 0 of table 2"
    aftertune rm base-v2                      says what goes, and what else depends on it; asks, or needs --yes
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from aftertune.cli.console import emit
from aftertune.cli.options import JsonFlag
from aftertune.errors import InputError, StorageError
from aftertune.redaction import redact

if TYPE_CHECKING:
    from aftertune.ledger import Ledger, Removal

EntryWord = Annotated[str, typer.Argument(metavar="ID", help="Id or name, as `aftertune runs` lists it.")]


def rename(
    word: EntryWord,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new name.")],
    as_json: JsonFlag = False,
) -> None:
    """Give an evaluation or a fine-tune another name. Its id stays, and with it all that refers to it."""
    from aftertune.ledger import Ledger
    from aftertune.ledger.labels import check_word
    from aftertune.ledger.states import check_free

    check_word("a name", name)
    with Ledger(create=False) as ledger:
        entry = ledger.find(word)
        check_free(ledger, entry)
        before = getattr(entry, "name", "")
        ledger.rename(entry.id, name)
    if as_json:
        emit({"id": entry.id, "before": before, "name": name})
    else:
        typer.echo(f"{entry.id} is now called {name} (before: {before})")


def tag(
    word: EntryWord,
    tags: Annotated[list[str] | None, typer.Argument(metavar="TAG…", help="Tags to add. Without: show them.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove these tags.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Tag an entry, so that `aftertune runs --tag TAG` finds it."""
    from aftertune.ledger import EntryLabel, Ledger
    from aftertune.ledger.labels import check_word

    for name in tags or ():
        check_word("a tag", name)
    with Ledger(create=False) as ledger:
        entry = ledger.find(word)
        label = ledger.labels().get(entry.id, EntryLabel())
        if remove and (missing := [name for name in tags or () if name not in label.tags]):
            raise InputError(f"{entry.id} has no tag {missing[0]!r}; its tags: {', '.join(label.tags) or 'none'}")
        kept = [name for name in label.tags if not remove or name not in (tags or ())]
        label = replace(label, tags=tuple(dict.fromkeys([*kept, *([] if remove else tags or [])])))
        if tags:
            ledger.save_label(entry.id, label)
    if as_json:
        emit({"id": entry.id, "tags": list(label.tags)})
    else:
        typer.echo(f"{entry.id} has the tags {', '.join(label.tags)}" if label.tags else f"{entry.id} has no tags")


def note(
    word: EntryWord,
    text: Annotated[str | None, typer.Argument(
        metavar="TEXT", help="The note; an empty one removes it. Without: show it.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a note to an entry, which `aftertune show` and `aftertune runs` print with it."""
    from aftertune.ledger import EntryLabel, Ledger
    from aftertune.ledger.labels import check_note

    if text is not None:
        check_note(text)
    with Ledger(create=False) as ledger:
        entry = ledger.find(word)
        label = ledger.labels().get(entry.id, EntryLabel())
        if text is not None:
            label = replace(label, note=redact(text))  # a secret gets into no ledger
            ledger.save_label(entry.id, label)
    if as_json:
        emit({"id": entry.id, "note": label.note})
    else:
        typer.echo(f"{entry.id}: {label.note}" if label.note else f"{entry.id} has no note")


def rm(
    words: Annotated[list[str], typer.Argument(metavar="ID…", help="Ids or names, as `aftertune runs` lists them.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and stop.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Remove entries from the ledger: says what goes and what depends on it, and asks. Files of a fine-tune stay."""
    from aftertune.ledger import Ledger

    with Ledger(create=False) as ledger:
        found = dict(_found(ledger, word) for word in words)
        removals = [ledger.removal(id_) for id_ in found]
        if not as_json:
            for removal in removals:
                typer.echo(removal_text(removal, found[removal.id]))
        if not dry_run:
            if not yes and (as_json or not sys.stdin.isatty()):
                raise InputError("nothing was removed, because nobody can be asked here; add --yes to remove, or "
                                 "--dry-run to see what would go")
            if not yes and not typer.confirm("Remove?"):
                typer.echo("nothing was removed")
                return
            removed: set[str] = set()
            for removal in removals:
                if removal.id not in removed:  # a comparison goes with its evaluation
                    removed |= {removal.id, *ledger.remove(removal.id).comparisons}
    if as_json:
        emit({"removed": not dry_run, "entries": [asdict(removal) for removal in removals]})
    elif not dry_run:
        typer.echo(f"removed: {', '.join(found)}")


def _found(ledger: Ledger, word: str) -> tuple[str, str]:
    """Id and name of an entry that may be removed; of one that is damaged, "damaged" instead of the name."""
    from aftertune.ledger.states import check_free

    try:
        entry = ledger.find(word)
    except StorageError:
        kind, id_ = ledger.key_of(word)
        if kind == "evaluation":
            ledger.check_free(id_)
        return id_, "damaged"
    check_free(ledger, entry)
    return entry.id, getattr(entry, "name", "")


def removal_text(removal: Removal, name: str) -> str:
    """What goes with an entry, and what stays without it."""
    goes = {"evaluation": "with its answers and scores", "tuning": "with its training log; its output folder stays",
            "comparison": "; its evaluations stay, and `aftertune compare` makes it again"}[removal.kind]
    lines = [f"{removal.kind} {removal.id}{f' ({name})' if name else ''} {goes}".replace(" ;", ";")]
    if removal.comparisons:
        lines.append(f"  goes with it: {_count(len(removal.comparisons), 'comparison')} "
                     f"({', '.join(removal.comparisons)})")
    if removal.evaluations:
        lines.append(f"  stays without it: {_count(len(removal.evaluations), 'evaluation')} of its model "
                     f"({', '.join(removal.evaluations)}), whose origin is then no longer proven")
    lines += [f"  study {study}: {cell!r} is planned again" for study, cell in removal.cells]
    return "\n".join(lines)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"
