"""Implements ``eval``: evaluates a model on tasks and shows its scores with their standard errors.

    aftertune eval Qwen/Qwen2.5-0.5B --tasks hellaswag,arc_easy --sample 300 --name base
    aftertune eval Qwen/Qwen2.5-0.5B --target held.jsonl --scorer json --slice kind
    aftertune eval Qwen/Qwen2.5-0.5B --adapter runs/orders --tasks hellaswag --until-decided --against base
    aftertune eval Qwen/Qwen2.5-0.5B --tasks hellaswag --workers 4
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aftertune.api.objects import comparison_object, evaluation_object
from aftertune.cli.console import emit, margin_error, progress
from aftertune.cli.options import Given, JsonFlag, TakeOver, comma_separated, with_options
from aftertune.cli.streams import rich_console
from aftertune.cli.tracking import Track, chosen_trackers, hand_over
from aftertune.errors import InputError, TasksFailed
from aftertune.paths import exists
from aftertune.study import EarlySpec, EvalSpec, TaskSpec
from aftertune.study.own_task import LM_EVAL_ALONE, OwnTask, explain_value

if TYPE_CHECKING:
    from aftertune.cli.workers import Helpers
    from aftertune.ledger import Ledger
    from aftertune.values import Evaluation, Progress


@with_options
def evaluate(
    *,
    tasks: Annotated[str, typer.Option(help="lm-eval tasks or groups, separated by commas.")] = "",
    own: Given[OwnTask],
    adapter: Annotated[list[str] | None, typer.Option(
        help="PEFT adapter: a folder or Hub id. Repeatable; the base is loaded once.")] = None,
    task: Given[TaskSpec],
    task_data: Annotated[list[str] | None, typer.Option(help="TASK=FILE: local data for a task. Repeatable.")] = None,
    model: Given[EvalSpec],
    until_decided: Annotated[bool, typer.Option(
        "--until-decided", help="Stop each task at the first safe verdict against --against.")] = False,
    against: Annotated[str | None, typer.Option(
        help="The base: an evaluation in the ledger, or a model to evaluate at the same time.")] = None,
    early: Given[EarlySpec],
    workers: Annotated[int, typer.Option(min=1, help=(
        "Processes of this machine that share the batches, each with --threads (default: the cores divided among "
        "them); a run is resumed, and joined, with as many threads for each process."))] = 1,
    join: Annotated[bool, typer.Option(
        "--join", help="Help the process that runs this evaluation now, on this machine or with the same ledger on "
                       "another one.")] = False,
    track: Track = None,
    take_over: TakeOver = False,
    as_json: JsonFlag = False,
) -> None:
    """Evaluate MODEL on tasks. Finished batches are kept, so a stopped run continues where it stopped."""
    adapters, trackers = adapter or [], chosen_trackers(track)
    if "name" in model.values and len(adapters) > 1:
        raise InputError(f"--name {model.values['name']} names one evaluation, but there are {len(adapters)} adapters; "
                         "leave --name out, and each evaluation is named after the folder of its adapter")
    if until_decided:
        own, early = _with_stop_target(own, early)
    asked = _tasks(tasks, task_data or [], task, own)
    spec = model.make(tasks=asked, adapter=adapters[0] if len(adapters) == 1 else None)
    from aftertune.cli.workers import Helpers, check_shareable, end_with_parent
    from aftertune.ledger import Ledger

    helper = end_with_parent()
    if join:
        check_shareable(spec, "--join")
    helpers = Helpers(spec, workers, sys.argv[1:])
    if until_decided and against is not None:
        decided = _decide(helpers, against, early, len(adapters), take_over, join, as_json)
        with Ledger() as ledger:
            hand_over(trackers, [decided.id], ledger)
        return
    with Ledger(take_over=take_over) as ledger, progress() as update:
        with helpers:
            evaluations, failure = _evaluated(helpers, adapters, ledger, update, join)
        hints = [hint for evaluation in evaluations if (hint := _compare_hint(evaluation, ledger))]
        hand_over(trackers, [e.id for e in evaluations], ledger)
    show(evaluations, as_json)
    for hint in hints if not as_json else ():
        typer.echo(hint)
    if failure is not None and not helper:  # the command that was typed reports it
        raise failure


def _evaluated(helpers: Helpers, adapters: list[str], ledger: Ledger, update: Progress, join: bool
               ) -> tuple[list[Evaluation], TasksFailed | None]:
    """The evaluations that are stored, and the error where a task failed."""
    from aftertune.evaluation import evaluate as run
    from aftertune.evaluation import evaluate_adapters

    join = join or helpers.count > 1
    try:
        if len(adapters) > 1:
            return evaluate_adapters(helpers.spec, adapters, ledger=ledger, progress=update, join=join), None
        return [run(helpers.spec, ledger=ledger, progress=update, join=join)], None
    except TasksFailed as error:
        return list(error.evaluations), error


def _with_stop_target(own: Given[OwnTask], early: Given[EarlySpec]) -> tuple[Given[OwnTask], Given[EarlySpec]]:
    """``--target models`` and ``--target full-run`` as ``--stop-target``, unless a file has that name."""
    word = own.values.get("target")
    if word not in ("models", "full-run") or "target" in early.values or exists(Path(word)):
        return own, early
    rest = {path: value for path, value in own.values.items() if path != "target"}
    return Given(own.spec, rest), Given(early.spec, {**early.values, "target": word})


def _compare_hint(tuned: Evaluation, ledger: Ledger) -> str | None:
    """The command that compares a tuned model with its base, if the base has an evaluation on the same items."""
    roots = {t.base.fingerprint for t in ledger.tunings() if t.id == tuned.tuning}
    bases = [e for e in ledger.evaluations() if e.status == "done" and e.model.fingerprint in roots
             and [(t.task, t.items) for t in e.tasks] == [(t.task, t.items) for t in tuned.tasks]]
    if not bases:
        return None
    return f"compare with the base: aftertune compare {ledger.word_for(bases[-1])} {ledger.word_for(tuned)}"


def _decide(helpers: Helpers, against: str, early: Given[EarlySpec], adapters: int, take_over: bool, join: bool,
            as_json: bool) -> Evaluation:
    """Run ``--until-decided`` and show the evaluation and its comparison with the base; returns the evaluation."""
    if adapters > 1:
        raise InputError(f"--until-decided evaluates one model, but there are {adapters} adapters; run one command "
                         "for each adapter")
    margin = early.values.get("margin")
    if margin is not None and not 0 < margin <= 100:
        raise margin_error(f"{margin:g}")
    stopping = early.make()
    from aftertune.cli import compare
    from aftertune.early_stopping import until_decided
    from aftertune.ledger import Ledger

    with Ledger(take_over=take_over) as ledger, progress() as update, helpers:
        decided = until_decided(helpers.spec, against, stopping, ledger=ledger, progress=update,
                                join=join or helpers.count > 1)
    if as_json:
        emit({**evaluation_object(decided.tuned), "comparison": comparison_object(decided.comparison)})
        return decided.tuned
    show([decided.tuned], as_json=False)
    compare.show(decided.comparison)
    return decided.tuned


def _tasks(names: str, data: list[str], given: Given[TaskSpec], own: Given[OwnTask]) -> tuple[TaskSpec, ...]:
    """The tasks, each with the shared settings and its own data; the tasks of a target file first."""
    task_names = comma_separated(names)
    targets = _own_tasks(given, own, alone=not task_names)
    if not task_names and not targets:
        raise InputError("there is nothing to ask; name tasks of lm-eval, for example --tasks arc_easy,hellaswag, or a "
                         "file of your own with --target FILE")
    files = dict(_task_file(text) for text in data)
    for task in files:
        if task not in task_names:
            raise InputError(f"--task-data names {task!r}, which is not among --tasks ({', '.join(task_names)})")
    return (*targets, *(given.make(name=n, data=files.get(n)) for n in task_names))


def _own_tasks(given: Given[TaskSpec], own: Given[OwnTask], *, alone: bool) -> list[TaskSpec]:
    """The tasks of a target file, with the shared settings that are about items. alone: there are no other tasks."""
    target = own.make()
    shared = {path: value for path, value in given.values.items() if path not in LM_EVAL_ALONE}
    try:
        tasks = target.tasks()
    except ValueError as error:
        raise InputError(own.named(explain_value(error))) from None
    unused = [o for o in given.names() if o.removeprefix("--").replace("-", "_") in LM_EVAL_ALONE]
    if tasks and alone and unused:
        raise InputError(f"{unused[0]} is for tasks of lm-eval and has no effect on --target; "
                         + ("show examples with --target-shots FILE=K" if unused[0] == "--num-fewshot" else
                            "leave it out"))
    return [Given(TaskSpec, shared).make(**task) for task in tasks]


def _task_file(text: str) -> tuple[str, Path]:
    """``gsm8k=train.parquet`` as task and file."""
    task, equals, file = text.partition("=")
    if not equals or not task or not file:
        raise InputError(f"--task-data {text!r}: write TASK=FILE, for example gsm8k=train.parquet")
    return task, Path(file)


def show(evaluations: list[Evaluation], as_json: bool) -> None:
    """Print the scores as tables, or as one JSON object, which has a list if there are several evaluations."""
    if as_json:
        objects = [evaluation_object(e) for e in evaluations]
        emit(objects[0] if len(objects) == 1 else {"evaluations": objects})
        return
    from rich.text import Text

    from aftertune.report import terminal_scores

    for evaluation in evaluations:
        console = rich_console()
        console.print(terminal_scores(evaluation, width=console.width))
        run = f"  {evaluation.dtype} on {evaluation.device}, {evaluation.engine_note}"
        rich_console().print(Text.assemble("evaluation ", (evaluation.id, "bold"), run))
        for warning in evaluation.warnings:
            rich_console().print(Text.assemble(("note", "yellow"), f" {warning}"))
