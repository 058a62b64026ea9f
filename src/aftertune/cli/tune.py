"""Implements ``tune``, which fine-tunes a model, ``rollback``, which hands on another of its checkpoints, and
``templates``, which checks how chat templates are learned.

    aftertune tune Qwen/Qwen2.5-0.5B --data orders.jsonl --method lora --out runs/orders
    aftertune rollback runs/orders --to 50
    aftertune templates Qwen/Qwen2.5-0.5B-Instruct
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aftertune.cli.console import emit, jsonable, progress
from aftertune.cli.options import Given, JsonFlag, comma_separated, with_options
from aftertune.cli.streams import rich_console
from aftertune.cli.tracking import Track, chosen_trackers, hand_over
from aftertune.errors import GateFailed
from aftertune.methods import writes_adapter
from aftertune.study import TaskSpec, TuneSpec

if TYPE_CHECKING:
    from aftertune.forgetting_watch import ForgettingWatch
    from aftertune.report.checkpoints import CheckpointRow
    from aftertune.tuning import Preview
    from aftertune.tuning.template_check import TemplateCheck
    from aftertune.values import CheckpointChoice, Question, Tuning


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
    track: Track = None,
    as_json: JsonFlag = False,
) -> None:
    """Fine-tune MODEL. The output folder holds a PEFT adapter, or whole weights for the method full.

    A preset (smollm2-135m, llama-3.2-1b, tinyllama, phi-2, mistral-7b) sets the model and the defaults that its
    community uses.
    """
    spec, trackers = recipe.make(), chosen_trackers(track)
    if preview:
        return show_preview(spec, _questions(tasks, spec), as_json)
    if dry_run:
        return show_estimate(spec, as_json)
    from aftertune.ledger import Ledger
    from aftertune.tuning import tune as run

    with Ledger() as ledger, progress() as update:
        update(0, 0, "reading the data")
        tuning = run(spec, ledger=ledger, progress=update, questions=_questions(tasks, spec), look=_watch(spec))
        hand_over(trackers, [tuning.id], ledger)
    return show(tuning, spec.model, as_json)


def _watch(spec: TuneSpec) -> ForgettingWatch | None:
    """The watch that evaluates tasks during training; None without --watch."""
    if spec.watch is None:
        return None
    from aftertune.forgetting_watch import ForgettingWatch

    return ForgettingWatch(spec)


def _questions(names: str | None, spec: TuneSpec) -> list[Question]:
    """The questions of the tasks, and of the target that is measured during training; a .jsonl file of prompts and
    completions counts as a task."""
    from aftertune.study import TargetSpec
    from aftertune.tasks import LoadOptions, questions

    tasks = comma_separated(names)
    specs = [TaskSpec(name=Path(name).name, target=TargetSpec(file=Path(name))) if name.endswith(".jsonl")
             else TaskSpec(name=name) for name in tasks]
    if spec.watch and spec.watch.target:
        target = spec.watch.target
        specs.append(TaskSpec(name=target.name, target=TargetSpec(file=target.file)))
    return questions(specs, LoadOptions()) if specs else []


def show_preview(spec: TuneSpec, questions: list[Question], as_json: bool) -> None:
    """Print three examples, with the learned tokens between ⟦ and ⟧, and a summary of the data."""
    from aftertune.tuning import preview

    shown = preview(spec, questions=questions)
    if as_json:
        emit({"examples": [{"from": example.where, "tokens": example.tokens, "learned": example.learned,
                            "parts": [{"text": text, "learned": learned} for text, learned in example.parts]}
                           for example in shown.examples],
              "counts": shown.counts, "overlap": shown.overlap, "notes": list(shown.notes)})
        return
    from rich.text import Text

    for number, example in enumerate(shown.examples, 1):
        rich_console().print(Text.assemble((f"example {number}", "bold"), f"  {example.where}: {example.learned} of "
                                 f"{example.tokens} tokens are learned"))
        rich_console().print(Text.assemble(*((f"⟦{text}⟧", "bold green") if learned else (text, "dim")
                                   for text, learned in example.parts)), "")
    rich_console().print(Text.assemble(("⟦learned⟧", "bold green"), "  ", ("context", "dim")))
    show_data(shown)


def show_estimate(spec: TuneSpec, as_json: bool) -> None:
    """Print the estimated memory, disk and time of a tuning on this machine."""
    from aftertune.report import duration_text
    from aftertune.tuning import estimate_tuning

    estimate = estimate_tuning(spec)
    if as_json:
        emit({"trainable_parameters": estimate.trainable, "memory": estimate.memory, "disk": estimate.disk,
              "steps": estimate.steps, "tokens": estimate.tokens, "seconds": estimate.seconds,
              "basis": estimate.basis})
        return
    typer.echo(f"{spec.method} of {spec.model}: {estimate.trainable:,} trainable parameters, about "
               f"{estimate.memory / 2**30:.1f} GiB of memory, {estimate.disk / 2**30:.2f} GiB of disk, "
               f"{duration_text(estimate.seconds or 0)} for {estimate.steps:,} steps and "
               f"{estimate.tokens:,} tokens (estimated from {estimate.basis}); nothing was trained")


def show_data(data: Preview | Tuning) -> None:
    """Print how many rows were read, left out, learned, and shared with evaluations; then the notes."""
    from rich.table import Table
    from rich.text import Text

    from aftertune.report import data_facts

    table = Table(box=None, show_header=False, pad_edge=False)
    for label, value in data_facts(data.counts, data.overlap):
        shared = label.startswith("Data Overlap") and not value.startswith("none")
        table.add_row(Text(label.removeprefix("Data ").lower(), "yellow" if shared else ""), Text(value))
    for note in data.notes:
        table.add_row(Text("note", "yellow"), Text(note))
    rich_console().print(table)


def show(tuning: Tuning, model: str, as_json: bool) -> None:
    """Print the held-out loss before and after, how near the model stayed to its base with an anchor, the notes, and
    the command that measures forgetting."""
    from aftertune.report import anchor_facts, tuning_checkpoints

    if as_json:
        emit({"tuning": tuning.id, **{k: v for k, v in jsonable(tuning).items() if k != "steps"},
              "by_step": jsonable(tuning_checkpoints(tuning))})
        return
    from rich.text import Text

    named = f" ({tuning.name})" if tuning.name != tuning.id else ""
    rich_console().print(Text.assemble("tuning ", (tuning.id, "bold"), f"{named}: {tuning.method}, "
                             f"{tuning.examples:,} examples"))
    if tuning.held_out:
        h = tuning.held_out
        rich_console().print(Text(f"held-out loss {h.before:.3f} → {h.after:.3f} nats per token, 95 % interval of the "
                                  f"change {h.low:+.3f} to {h.high:+.3f} (n={h.n})"))
    for _, text in anchor_facts(tuning):
        rich_console().print(Text(f"anchor {text}"))
    show_checkpoints(tuning)
    show_data(tuning)
    model = model or tuning.base.source
    flag = f"{model} --adapter {tuning.output}" if writes_adapter(tuning.method) else tuning.output
    if tuning.merged:
        typer.echo(f"merged weights: {tuning.output}/merged")
    typer.echo(f"written to {tuning.output}\nmeasure forgetting: aftertune eval {flag} --tasks …")


def show_checkpoints(tuning: Tuning) -> None:
    """Print what was learned and forgotten at each step, which checkpoint a rule chose, and which are kept."""
    from rich.text import Text

    from aftertune.report import tuning_checkpoints

    print_steps(tuning_checkpoints(tuning), tuning.choice)
    if tuning.checkpoints:
        size = sum(c.size for c in tuning.checkpoints) / 2**20
        rich_console().print(Text(f"{len(tuning.checkpoints)} checkpoints are kept in {tuning.output}/kept "
                                  f"({size:,.1f} MiB); to hand on another one: aftertune rollback {tuning.output} "
                                  "--to STEP"))


def print_steps(rows: Sequence[CheckpointRow], choice: CheckpointChoice | None) -> None:
    """Print the table of what was learned and forgotten at each step, and which step a rule chose and why."""
    from rich.table import Column, Table
    from rich.text import Text

    from aftertune.report import checkpoint_table, choice_lines

    if rows:
        head, cells = checkpoint_table(rows)
        table = Table(*(Column(name, justify="right" if n == 0 else "left") for n, name in enumerate(head)), box=None,
                      pad_edge=False)
        for row_cells in cells:
            table.add_row(*map(Text, row_cells))
        rich_console().print(table)
        if any(row.points for row in rows):
            half = ", on the half of the items that chooses" if choice else ""
            rich_console().print(Text(f"changes against the base in points, with 95 % intervals{half}", style="dim"))
    if choice is not None:
        for line in choice_lines(choice):
            rich_console().print(Text(line, style="" if choice.met else "yellow"))


def rollback(
    tuning: Annotated[str, typer.Argument(help="Tuning that kept checkpoints: folder, id or name.")],
    to: Annotated[int, typer.Option("--to", metavar="STEP", help="Step of a kept checkpoint.")],
    as_json: JsonFlag = False,
) -> None:
    """Hand on another kept checkpoint of a fine-tune: the weights in its folder become those of a step.

    The weights that were final are kept as a checkpoint too, so that the same command goes back to them. `tune
    --keep-checkpoints` keeps the checkpoints.
    """
    from aftertune.ledger import Ledger
    from aftertune.tuning.rollback import roll_back

    with Ledger() as ledger:
        result = roll_back(tuning, to, ledger)
    if not as_json:
        typer.echo(f"{result.output} now holds the weights of step {to} of {result.name}; evaluations of other weights "
                   "stay with their checkpoint")
    show(result, "", as_json)


def templates(
    names: Annotated[list[str] | None, typer.Argument(
        metavar="[MODEL|FILE]…", help="Models, or .jinja files. Default: every template that the installed TRL ships.",
    )] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check how conversations are learned with chat templates, against plain transformers. Exit with 1 if one is wrong.

    Each case is learned as plain transformers write it (ok), not written whole by the template (left out), refused by
    the template, or wrong. `aftertune.tuning.template_check` lists the cases.
    """
    from aftertune.tuning.template_check import CASES, check_templates

    with progress() as update:
        checks = []
        for check in check_templates(names or ()):
            update(0, 0, f"checked {check.name}")
            checks.append(check)
    if as_json:
        emit({"templates": [{"name": check.name, "wrong": check.wrong, **{
            case: {"status": result.status, "details": list(result.details)}
            for case, result in check.results.items()}} for check in checks]})
    else:
        _show_templates(checks, list(CASES))
    if wrong := [check.name for check in checks if check.wrong]:
        raise GateFailed(f"{len(wrong)} of {len(checks)} templates are learned in another way than plain transformers "
                         f"write them: {', '.join(wrong)}; tell the project, or tune with --template plain")


def _show_templates(checks: list[TemplateCheck], cases: list[str]) -> None:
    """Print a table of templates and cases; what is not ok is explained below it where one template was checked."""
    from rich.table import Column, Table
    from rich.text import Text

    styles = {"ok": "green", "left out": "yellow", "refused": "yellow", "wrong": "bold red"}
    table = Table(Column("template", no_wrap=True), *cases, box=None, pad_edge=False)
    for check in checks:
        table.add_row(Text(check.name), *(Text(check.results[c].status, styles[check.results[c].status])
                                          for c in cases))
    rich_console().print(table)
    for check in checks:
        for case, result in check.results.items():
            for detail in dict.fromkeys(result.details if len(checks) == 1 or result.status == "wrong" else ()):
                rich_console().print(Text(f"{check.name}, {case}: {detail}"))
