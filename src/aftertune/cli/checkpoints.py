"""Implements ``checkpoints``: what was learned and forgotten at each checkpoint that a trainer left behind.

    aftertune checkpoints out --base Qwen/Qwen2.5-0.5B --watch hellaswag=200 --target orders_test.jsonl=100
    aftertune checkpoints out --base Qwen/Qwen2.5-0.5B --watch hellaswag=200 --keep-best "hellaswag"
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aftertune.api.counted_tasks import counted_task
from aftertune.cli.console import emit, jsonable, progress
from aftertune.cli.options import JsonFlag, comma_separated, option_of
from aftertune.cli.streams import rich_console
from aftertune.errors import InputError
from aftertune.study import EvalSpec, TaskSpec, WatchSpec
from aftertune.study.checkpoints import CheckpointSpec

if TYPE_CHECKING:
    from aftertune.trainer_checkpoints import CheckpointSeries


_FIELDS = CheckpointSpec.model_fields


def checkpoints(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with checkpoint-STEP folders, such as the "
                                                               "output_dir of a Trainer.")],
    base: Annotated[str, typer.Option(help="The model that was trained: Hub id, folder or package:NAME/FILE.")],
    tasks: Annotated[str | None, typer.Option(help="Tasks to evaluate whole, separated by commas.")] = None,
    watch: Annotated[list[str] | None, typer.Option(
        metavar="TASK=N", help="Evaluate N random items of a task. Repeatable.")] = None,
    target: Annotated[str | None, typer.Option(metavar="TASK=N", help=_FIELDS["target"].description)] = None,
    match: Annotated[str, typer.Option(
        help="How answers to the file of --target are judged: exact or json.")] = "exact",
    scorer: Annotated[str | None, option_of(CheckpointSpec, "scorer")] = None,
    keep_best: Annotated[str | None, typer.Option(metavar="RULE", help=_FIELDS["keep_best"].description)] = None,
    steps: Annotated[str | None, typer.Option(help="Only these steps, separated by commas.")] = None,
    margin: Annotated[float, option_of(WatchSpec, "margin")] = 2.0,
    apply_chat_template: Annotated[bool, option_of(EvalSpec, "apply_chat_template")] = False,
    dtype: Annotated[str, option_of(EvalSpec, "dtype")] = "auto",
    device: Annotated[str, option_of(EvalSpec, "device")] = "auto",
    threads: Annotated[int | None, option_of(EvalSpec, "threads")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Evaluate the checkpoints of any Trainer, and show what each learned and forgot against the base.

    A checkpoint is a PEFT adapter or a whole model. A run that was stopped continues where it stopped.
    """
    from aftertune.ledger import Ledger
    from aftertune.trainer_checkpoints import CheckpointRequest, evaluate_checkpoints

    aims = [counted_task("--target", target, match, scorer)] if target else []
    specs = [*aims, *(counted_task("--watch", text) for text in watch or ()),
             *(TaskSpec(name=name) for name in comma_separated(tasks))]
    if not specs:
        raise InputError("no tasks to evaluate; add for example --watch hellaswag=200, or --tasks hellaswag")
    if not 0 < margin <= 100:
        raise InputError(f"--watch-margin is {margin:g}; allowed are points above 0, up to 100")
    request = CheckpointRequest(
        folder=folder, base=base, tasks=tuple(specs), targets=frozenset(spec.name for spec in aims), rule=keep_best,
        margin=margin, steps=_steps(steps), settings={"apply_chat_template": apply_chat_template, "dtype": dtype,
                                                      "device": device, "threads": threads})
    with Ledger() as ledger, progress() as update:
        series = evaluate_checkpoints(request, ledger=ledger, progress=update)
    if as_json:
        emit({"tuning": series.tuning.id, "base": series.base.id, "failed": series.failed,
              "evaluations": {step: e.id for step, e in series.evaluations.items()},
              "validation_losses": series.losses, "points": jsonable(series.tuning.watch),
              "choice": jsonable(series.tuning.choice), "notes": list(series.notes)})
    else:
        _show(series)


def _steps(text: str | None) -> tuple[int, ...]:
    parts = comma_separated(text)
    for part in parts:
        if not part.isdecimal():
            raise InputError(f"--steps {text}: {part!r} is no step; write numbers with commas, for example 100,200")
    return tuple(int(part) for part in parts)


def _show(series: CheckpointSeries) -> None:
    """Print the table, the choice, the notes and what to do next."""
    from rich.text import Text

    from aftertune.cli.tune import print_steps
    from aftertune.report import checkpoint_rows

    tuning = series.tuning
    choice = tuning.choice
    print_steps(checkpoint_rows(tuning.watch, series.losses, saved=set(series.evaluations),
                                final=choice.step if choice else None), choice)
    for note in series.notes:
        rich_console().print(Text(f"note: {note}"))
    if series.failed:
        typer.echo(f"{len(series.failed)} of {len(series.failed) + len(series.evaluations)} checkpoints were left out")
    typer.echo(f"stored as tuning {tuning.id} ({tuning.name}); `aftertune report --out report.html` draws the chart")
