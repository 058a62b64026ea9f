"""``aftertune check-merge TUNING``: is the merged model the same as the adapter?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from aftertune.cli.console import emit, progress
from aftertune.cli.options import Json, option_of
from aftertune.errors import GateFailed
from aftertune.study import EvalSpec, TaskSpec

if TYPE_CHECKING:
    from aftertune.merging import Likeness, MergeCheck


def check_merge(
    tuning: Annotated[str, typer.Argument(help="Tuning with merged weights: folder, id or name.")],
    tasks: Annotated[str, typer.Option(
        help="Tasks that are scored by log-likelihoods, separated by commas.")] = "hellaswag",
    sample: Annotated[int, typer.Option(min=1, help="Random items of each task.")] = 32,
    nf4: Annotated[bool, typer.Option("--nf4", help="Also check the merged weights in 4 bits.")] = False,
    dtype: Annotated[str, typer.Option(help="Data type; float32 shows the rounding of the weights alone.")] = "float32",
    device: Annotated[str, option_of(EvalSpec, "device")] = "auto",
    as_json: Json = False,
) -> None:
    """Score the adapter and the merged weights on the same items. Exit with 1 if they are not the same model."""
    from aftertune.ledger import Ledger
    from aftertune.merging import check_merge as run

    specs = [TaskSpec(name=name.strip(), sample=sample) for name in tasks.split(",") if name.strip()]
    with Ledger() as ledger, progress() as told:
        found = run(tuning, tasks=specs, ledger=ledger, nf4=nf4, dtype=dtype, device=device, progress=told)
    if as_json:
        emit({"tuning": found.tuning.id, "tasks": list(found.tasks), "items": found.items, "scores": found.scores,
              "moved": found.moved, "merged": _object(found.merged), "nf4": _object(found.nf4)})
    else:
        show(found)
    if not found.merged.same:
        raise GateFailed(f"{found.tuning.name}: the merged weights are not the model that the adapter makes of its "
                         "base; use the adapter unmerged, or merge into a base that is stored in a wider dtype")


def _object(found: Likeness | None) -> dict[str, object] | None:
    return None if found is None else {"same": found.same, "mean": found.mean, "largest": found.largest,
                                       "share": found.share, "discordant": found.discordant}


def show(found: MergeCheck) -> None:
    """A line for each form."""
    typer.echo(f"{found.tuning.name}: {found.items} items of {', '.join(found.tasks)}, {found.scores} log-likelihoods; "
               f"the tuning moved them by {found.moved:.4f} nats on average")
    for label, one in (("merged", found.merged), ("merged, in four bits", found.nf4)):
        if one is not None:
            typer.echo(f"{label}: {'the same model' if one.same else 'another model'}; differs by {one.mean:.4f} nats "
                       f"on average ({one.share:.1%} of that), {one.largest:.4f} at most; {one.discordant} of "
                       f"{found.items} items are answered differently")
