"""``aftertune import PATH``: results of lm-eval and Markdown records into the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aftertune.cli.console import emit
from aftertune.cli.options import Json

if TYPE_CHECKING:
    from aftertune.exchange import Arrival


def import_(
    path: Annotated[Path, typer.Argument(help="Output folder or results_*.json of lm-eval, or a Markdown record.")],
    name: Annotated[str | None, typer.Option(help="Name of the evaluation, or of the record.")] = None,
    as_json: Json = False,
) -> None:
    """Import results of others. With samples they can be compared; without samples they are reported scores."""
    from aftertune.exchange import receive
    from aftertune.ledger import Ledger

    with Ledger() as ledger:
        arrivals = receive(path, ledger=ledger, name=name)
    if as_json:
        emit({"imported": [as_object(a) for a in arrivals]})
        return
    for arrival in arrivals:
        _tell(arrival)


def as_object(arrival: Arrival) -> dict[str, Any]:
    """An arrival as ``import --json`` gives it."""
    evaluation = arrival.evaluation
    return {"source": arrival.source, "evaluation": evaluation.id if evaluation else None,
            "name": evaluation.name if evaluation else None, "new": arrival.new,
            "reported": sum(r.planned is None for r in arrival.reported),
            "planned": sum(r.planned is not None for r in arrival.reported)}


def _tell(arrival: Arrival) -> None:
    evaluation = arrival.evaluation
    if evaluation is not None:
        state = "" if arrival.new else " (already in the ledger)"
        tasks = ", ".join(f"{t.task} {t.n:,} of {t.n_total:,}" for t in evaluation.tasks)
        typer.echo(f"evaluation {evaluation.id} {evaluation.name}{state}: {tasks}")
    scores = [r for r in arrival.reported if r.planned is None]
    if scores:
        models = len({r.model for r in scores})
        typer.echo(f"{len(scores)} reported scores of {models} model{'s' if models > 1 else ''} from {arrival.source}; "
                   "they have no answers, so none can be compared question by question")
    for row in arrival.reported:
        if row.planned is not None:
            typer.echo(f"not evaluated there: {row.model}{f', planned with {row.planned}' if row.planned else ''}")
