"""``tune``: fine-tune a model; ``check-merge``: compare merged weights with the adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aftertune.cli.console import emit, jsonable, progress
from aftertune.cli.options import Given, JsonFlag, option_of, with_options
from aftertune.errors import GateFailed
from aftertune.methods import writes_adapter
from aftertune.study import EvalSpec, TaskSpec, TuneSpec

if TYPE_CHECKING:
    from aftertune.forgetting_watch import ForgettingWatch
    from aftertune.merge_check import Agreement, MergeCheck
    from aftertune.tuning import Preview
    from aftertune.values import Question, Tuning


@with_options
def tune(
    *,
    recipe: Given[TuneSpec],
    tasks: Annotated[str | None, typer.Option(
        help="Evaluation tasks, or .jsonl files of held-out rows, to search for in the training data; separated by "
             "commas.")] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Show three examples as trained, and stop.")] = False,
    dry_run: Annotated[bool, typer.Option(
        "--dry-run", help="Estimate memory, disk and time on this machine, and stop.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Fine-tune MODEL. The output folder holds a PEFT adapter, or whole weights for the method full.

    A preset (smollm2-135m, llama-3.2-1b, tinyllama, phi-2, mistral-7b) sets the model and the defaults that its
    community uses.
    """
    spec = recipe.make()
    if preview:
        return show_preview(spec, _questions(tasks), as_json)
    if dry_run:
        return show_estimate(spec, as_json)
    from aftertune.ledger import Ledger
    from aftertune.tuning import tune as run

    with Ledger() as ledger, progress() as update:
        update(0, 0, "reading the data")
        tuning = run(spec, ledger=ledger, progress=update, questions=_questions(tasks), look=_look(spec))
    return show(tuning, spec.model, as_json)


def _look(spec: TuneSpec) -> ForgettingWatch | None:
    """The watch that evaluates tasks during training; None without --watch."""
    if spec.watch is None:
        return None
    from aftertune.forgetting_watch import ForgettingWatch

    return ForgettingWatch(spec)


def _questions(names: str | None) -> list[Question]:
    """The questions of the tasks; a .jsonl file of prompts and completions counts as a task."""
    if not names:
        return []
    from aftertune.study import TargetSpec, TaskSpec
    from aftertune.tasks import LoadOptions, questions

    given = [name.strip() for name in names.split(",") if name.strip()]
    return questions([TaskSpec(name=Path(name).name, target=TargetSpec(file=Path(name))) if name.endswith(".jsonl")
                      else TaskSpec(name=name) for name in given], LoadOptions())


def show_preview(spec: TuneSpec, questions: list[Question], as_json: bool) -> None:
    """Print three examples, with the learned tokens between ⟦ and ⟧, and a summary of the data."""
    from aftertune.tuning import preview

    found = preview(spec, questions=questions)
    if as_json:
        emit({"examples": [{"from": one.where, "tokens": one.tokens, "learned": one.learned,
                            "parts": [{"text": text, "learned": learned} for text, learned in one.parts]}
                           for one in found.examples],
              "counts": found.counts, "overlap": found.overlap, "notes": list(found.notes)})
        return
    import rich
    from rich.text import Text

    for number, one in enumerate(found.examples, 1):
        rich.print(Text.assemble((f"example {number}", "bold"), f"  {one.where}: {one.learned} of {one.tokens} tokens "
                                 "are learned"))
        rich.print(Text.assemble(*((f"⟦{text}⟧", "bold green") if learned else (text, "dim")
                                   for text, learned in one.parts)), "")
    rich.print(Text.assemble(("⟦learned⟧", "bold green"), "  ", ("context", "dim")))
    show_data(found)


def show_estimate(spec: TuneSpec, as_json: bool) -> None:
    """Print the estimated memory, disk and time of a tuning on this machine."""
    from aftertune.report import duration_text
    from aftertune.tuning import estimate_tuning

    found = estimate_tuning(spec)
    if as_json:
        emit({"trainable_parameters": found.trainable, "memory": found.memory, "disk": found.disk, "steps": found.steps,
              "tokens": found.tokens, "seconds": found.seconds, "basis": found.basis})
        return
    typer.echo(f"{spec.method} of {spec.model}: {found.trainable:,} trained parameters, about "
               f"{found.memory / 2**30:.1f} GiB of memory, {found.disk / 2**30:.2f} GiB of disk, "
               f"{duration_text(found.seconds or 0)} for {found.steps:,} steps and "
               f"{found.tokens:,} tokens (estimated from {found.basis}); nothing was run")


def show_data(found: Preview | Tuning) -> None:
    """Print how many rows were read, left out, learned, and shared with evaluations; then the notes."""
    import rich
    from rich.table import Table
    from rich.text import Text

    from aftertune.report import data_facts

    table = Table(box=None, show_header=False, pad_edge=False)
    for label, value in data_facts(found.counts, found.overlap):
        shared = label.startswith("Data Overlap") and not value.startswith("none")
        table.add_row(Text(label.removeprefix("Data ").lower(), "yellow" if shared else ""), Text(value))
    for note in found.notes:
        table.add_row(Text("note", "yellow"), Text(note))
    rich.print(table)


def show(tuning: Tuning, model: str, as_json: bool) -> None:
    """Print the held-out loss before and after, the notes, and the command that measures forgetting."""
    if as_json:
        emit({"tuning": tuning.id, **{k: v for k, v in jsonable(tuning).items() if k != "steps"}})
        return
    import rich
    from rich.text import Text

    from aftertune.report import watch_text

    named = f" ({tuning.name})" if tuning.name != tuning.id else ""
    rich.print(Text.assemble("tuning ", (tuning.id, "bold"), f"{named}: {tuning.method}, "
                             f"{tuning.examples:,} examples"))
    if tuning.held_out:
        h = tuning.held_out
        rich.print(Text(f"held-out loss {h.before:.3f} → {h.after:.3f} nats per token, 95 % interval of the change "
                        f"{h.low:+.3f} to {h.high:+.3f} (n={h.n})"))
    for point in tuning.watch:
        rich.print(Text(watch_text(point)))
    show_data(tuning)
    flag = f"{model} --adapter {tuning.output}" if writes_adapter(tuning.method) else tuning.output
    if tuning.merged:
        typer.echo(f"whole weights in {tuning.output}/merged")
    typer.echo(f"written to {tuning.output}; what did it forget? aftertune eval {flag} --tasks …")


def check_merge(
    tuning: Annotated[str, typer.Argument(help="Tuning with merged weights: folder, id or name.")],
    tasks: Annotated[str, typer.Option(
        help="Tasks that are scored by log-likelihoods, separated by commas.")] = "hellaswag",
    sample: Annotated[int, typer.Option(min=1, help="Random items of each task.")] = 32,
    nf4: Annotated[bool, typer.Option("--nf4", help="Also check the merged weights in 4 bits.")] = False,
    dtype: Annotated[str, typer.Option(help="Data type; float32 shows the rounding of the weights alone.")] = "float32",
    device: Annotated[str, option_of(EvalSpec, "device")] = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Score the adapter and the merged weights on the same items. Exit with 1 if they are not the same model."""
    from aftertune.ledger import Ledger
    from aftertune.merge_check import check_merge as run

    specs = [TaskSpec(name=name.strip(), sample=sample) for name in tasks.split(",") if name.strip()]
    with Ledger() as ledger, progress() as update:
        found = run(tuning, tasks=specs, ledger=ledger, nf4=nf4, dtype=dtype, device=device, progress=update)
    if as_json:
        emit({"tuning": found.tuning.id, "tasks": list(found.tasks), "items": found.items, "scores": found.scores,
              "moved": found.moved, "merged": _likeness_object(found.merged), "nf4": _likeness_object(found.nf4)})
    else:
        _show_check(found)
    if not found.merged.same:
        raise GateFailed(f"{found.tuning.name}: the merged weights are not the model that the adapter makes of its "
                         "base; use the adapter unmerged, or merge into a base that is stored in a wider dtype")


def _likeness_object(found: Agreement | None) -> dict[str, object] | None:
    return None if found is None else {"same": found.same, "mean": found.mean, "largest": found.largest,
                                       "share": found.share, "discordant": found.discordant}


def _show_check(found: MergeCheck) -> None:
    """Print one line for each form of the merged weights."""
    typer.echo(f"{found.tuning.name}: {found.items} items of {', '.join(found.tasks)}, {found.scores} log-likelihoods; "
               f"the tuning moved them by {found.moved:.4f} nats on average")
    for label, one in (("merged", found.merged), ("merged, in four bits", found.nf4)):
        if one is not None:
            typer.echo(f"{label}: {'the same model' if one.same else 'another model'}; differs by {one.mean:.4f} nats "
                       f"on average ({one.share:.1%} of that), {one.largest:.4f} at most; {one.discordant} of "
                       f"{found.items} items are answered differently")
