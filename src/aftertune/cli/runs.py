"""``aftertune runs`` and ``aftertune show ID``: what is in the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from aftertune.cli.console import emit, jsonable
from aftertune.cli.options import Json
from aftertune.errors import InputError

if TYPE_CHECKING:
    from aftertune.ledger import Ledger
    from aftertune.reported import Reported
    from aftertune.values import Comparison, Evaluation, TaskSettings, Tuning


def runs(as_json: Json = False) -> None:
    """List evaluations, tunings and comparisons, newest last."""
    from aftertune.ledger import Ledger
    from aftertune.reported import proven

    with Ledger(create=False) as ledger:
        evaluations, tunings, comparisons = ledger.evaluations(), ledger.tunings(), ledger.comparisons()
        reported = documents(ledger)
    if as_json:
        emit({"evaluations": [{"id": e.id, "name": e.name, "status": e.status, "imported": not proven(e.model),
                               "tasks": [t.task for t in e.tasks]} for e in evaluations],
              "tunings": [{"id": t.id, "name": t.name, "status": t.status, "method": t.method} for t in tunings],
              "comparisons": [{"id": c.id, "base": c.base, "tuned": c.tuned} for c in comparisons],
              "reported": [{"source": source, "models": list(dict.fromkeys(r.model for r in rows)),
                            "scores": sum(r.planned is None for r in rows)} for source, rows in reported.items()]})
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("id", no_wrap=True)
    for head in ("kind", "name", "status", "what"):
        table.add_column(head, overflow="fold")
    rows = [(e.id, "evaluation" if proven(e.model) else "evaluation, imported", e.name, e.status,
             ", ".join(_part(t) for t in e.tasks)) for e in evaluations]
    rows += [(t.id, "tuning", t.name, t.status, f"{t.method}, {t.examples:,} examples") for t in tunings]
    rows += [(c.id, "comparison", f"{c.tuned_name} against {c.base_name}", "forced" if c.forced else "",
              ", ".join(f"{r.task} {r.told.partition(' (')[0]}" for r in c.rows if r.primary)) for c in comparisons]
    rows += [("", "reported", source, "not measured here", f"{sum(r.planned is None for r in found)} scores of "
              f"{', '.join(dict.fromkeys(r.model for r in found if r.planned is None))}")
             for source, found in reported.items()]
    for row in rows:
        table.add_row(*map(Text, row))  # Text: a name may hold what rich would read as markup
    Console().print(table)


def _part(task: TaskSettings) -> str:
    """A task, with how many of its items were asked where that is not all of them."""
    asked = task.n if task.used is None else task.used
    return f"{task.task} ({asked:,} of {task.n_total:,})" if asked < task.n_total else task.task


def show(
    word: Annotated[str, typer.Argument(metavar="ID", help="Id or name, as `aftertune runs` lists it.")],
    as_json: Json = False,
) -> None:
    """Show everything that is known about one evaluation, tuning, comparison or reported document."""
    from aftertune.ledger import Ledger

    with Ledger(create=False) as ledger:
        reported = documents(ledger).get(word)
        value = None if reported else find(ledger, word)
    if reported:
        _show_reported(word, reported, as_json)
        return
    if as_json:
        emit(value)
        return
    _print(value, jsonable(value))


def documents(ledger: Ledger) -> dict[str, list[Reported]]:
    """Document -> the scores that it reported."""
    from aftertune.reported import Reported

    found: dict[str, list[Reported]] = {}
    for row in map(Reported.of, ledger.reported()):
        found.setdefault(row.source, []).append(row)
    return found


def _show_reported(source: str, rows: list[Reported], as_json: bool) -> None:
    """Reported scores, each with its audit mark."""
    from rich.console import Console
    from rich.text import Text

    from aftertune.cli.audit import values_table
    from aftertune.exchange import check

    if as_json:
        emit({"source": source, "reported": rows})
        return
    console = Console()
    console.print(Text(f"reported in {source}, not measured here", style="bold"))
    console.print(values_table([check(r) for r in rows if r.planned is None]))
    for row in rows:
        if row.planned is not None:
            planned = f", planned with {row.planned}" if row.planned else ""
            console.print(Text(f"{row.model}: not evaluated{planned}"))


def find(ledger: Ledger, word: str) -> Evaluation | Tuning | Comparison:
    """What an id or name stands for; InputError of the evaluation's search where nothing is found."""
    order = {"t-": 1, "c-": 2}.get(word[:2], 0)
    searches: list[Any] = [ledger.find_evaluation, ledger.find_tuning, ledger.find_comparison]
    searches = [searches[order], *(s for i, s in enumerate(searches) if i != order)]
    first: InputError | None = None
    for search in searches:
        try:
            found: Evaluation | Tuning | Comparison = search(word)
            return found
        except InputError as error:
            first = first or error
    assert first is not None
    raise first


def _print(value: Any, known: dict[str, Any]) -> None:
    import rich

    from aftertune.values import Comparison, Evaluation

    if isinstance(value, Comparison):
        from aftertune.cli.compare import show as show_comparison

        show_comparison(value)
        return
    if isinstance(value, Evaluation):
        from aftertune.cli.eval import show as show_evaluation

        show_evaluation([value], as_json=False)
    rich.print_json(data={k: v for k, v in known.items() if k not in ("scores", "steps")})
