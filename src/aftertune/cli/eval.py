"""``aftertune eval MODEL --tasks a,b``: evaluate, and print Task, Metric, Result, Error range (±1 SE)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aftertune.cli.console import emit, fields, no_margin, progress
from aftertune.errors import InputError

if TYPE_CHECKING:
    from aftertune.ledger import Ledger
    from aftertune.study import EvalSpec, TaskSpec
    from aftertune.values import Evaluation

_FLAGS = {"limit": "--limit", "sample": "--sample", "dtype": "--dtype", "name": "--name", "threads": "--threads",
          "num_fewshot": "--num-fewshot", "tasks": "--tasks", "engine": "--engine",
          "quantize": "--quantize"}


def evaluate(
    model: Annotated[str, typer.Argument(help="Hub id, folder, .gguf file, or package:NAME/FILE.")],
    tasks: Annotated[str, typer.Option(help="lm-eval tasks or groups, with commas between them.")],
    adapter: Annotated[list[str] | None, typer.Option(
        help="PEFT adapter folder or Hub id; repeatable: the base is loaded once.")] = None,
    limit: Annotated[int | None, typer.Option(help="The first N items of each task.")] = None,
    sample: Annotated[int | None, typer.Option(help="N items of each task, drawn at random.")] = None,
    sample_seed: Annotated[int, typer.Option(help="Seed of --sample, and of the order of --until-decided.")] = 0,
    num_fewshot: Annotated[int | None, typer.Option(help="Examples in the prompt.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cuda, cuda:N, mps or cpu.")] = "auto",
    engine: Annotated[str, typer.Option(help="packed, plain, or lm-eval:NAME.")] = "packed",
    apply_chat_template: Annotated[bool, typer.Option("--apply-chat-template", help="Prompts as chats.")] = False,
    system_instruction: Annotated[str | None, typer.Option(help="Text before every prompt.")] = None,
    fewshot_as_multiturn: Annotated[bool, typer.Option("--fewshot-as-multiturn",
                                                       help="Examples as turns of the chat.")] = False,
    gen_kwargs: Annotated[str | None, typer.Option(help="Generation settings: a=1,b=2 or JSON.")] = None,
    quantize: Annotated[str | None, typer.Option(help="nf4: the base in four bits, as qlora trains on.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub model.")] = None,
    include_path: Annotated[Path | None, typer.Option(help="Folder with your own lm-eval task files.")] = None,
    allow_task_code: Annotated[bool, typer.Option("--allow-task-code", help="Let them run Python code.")] = False,
    task_data: Annotated[list[str] | None, typer.Option(help="TASK=FILE: data for a task; repeatable.")] = None,
    memory: Annotated[str | None, typer.Option(help="Use at most this much, for example 8GiB.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the evaluation in the ledger.")] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run the model's own code.")] = False,
    fork: Annotated[bool, typer.Option("--fork", help="Start anew beside a stored run.")] = False,
    until_decided: Annotated[bool, typer.Option(
        "--until-decided", help="Stop each task at the first safe verdict against --against.")] = False,
    against: Annotated[str | None, typer.Option(
        help="The base: an evaluation of the ledger, or a model that is scored alongside.")] = None,
    margin: Annotated[float, typer.Option(help="Points within which a change is none, for --until-decided.")] = 2,
    batch: Annotated[int | None, typer.Option(help="Items between two looks; 32, of a small task 8.")] = None,
    min_items: Annotated[int, typer.Option("--min-items", "--min-docs", help="Items asked at least.")] = 0,
    max_width: Annotated[float | None, typer.Option(
        help="Go on until the interval is no wider than this many points.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Evaluate MODEL on tasks; finished batches are kept, so a stopped run goes on where it stopped."""
    adapters = adapter or []
    if name is not None and len(adapters) > 1:
        raise InputError(f"--name {name} names one evaluation, but {len(adapters)} adapters are given; leave it out: "
                         "each is named after its folder")
    shared = {"limit": limit, "sample": sample, "sample_seed": sample_seed, "num_fewshot": num_fewshot}
    spec = _spec(_tasks(tasks, task_data or [], shared), {
        "model": model, "adapter": adapters[0] if len(adapters) == 1 else None, "revision": revision, "name": name,
        "quantize": quantize,
        "dtype": dtype, "device": device,
        "engine": engine, "apply_chat_template": apply_chat_template, "system_instruction": system_instruction,
        "fewshot_as_multiturn": fewshot_as_multiturn, "gen_kwargs": parse_settings(gen_kwargs),
        "include_path": include_path, "allow_task_code": allow_task_code, "memory": memory, "threads": threads,
        "trust_remote_code": trust_remote_code, "fork": fork})
    if until_decided or against is not None:
        _decide(spec, against if until_decided else None, {
            "margin": margin, "batch": batch, "min_items": min_items, "max_width": max_width}, len(adapters), as_json)
        return
    from aftertune.evaluation import evaluate as run
    from aftertune.evaluation import evaluate_adapters
    from aftertune.ledger import Ledger

    with Ledger() as ledger, progress() as told:
        if len(adapters) > 1:
            evaluations = evaluate_adapters(spec, adapters, ledger=ledger, progress=told)
        else:
            evaluations = [run(spec, ledger=ledger, progress=told)]
        further = [line for one in evaluations if (line := _next(one, ledger))]
    show(evaluations, as_json)
    for line in further if not as_json else ():
        typer.echo(line)


def _next(tuned: Evaluation, ledger: Ledger) -> str | None:
    """The command that holds a tuned model against its base, where the base was asked the same."""
    roots = {t.base.fingerprint for t in ledger.tunings() if t.id == tuned.tuning}
    bases = [e for e in ledger.evaluations() if e.status == "done" and e.model.fingerprint in roots
             and [(t.task, t.items) for t in e.tasks] == [(t.task, t.items) for t in tuned.tasks]]
    return f"what has changed? aftertune compare {bases[-1].name} {tuned.name}" if bases else None


def _decide(spec: EvalSpec, against: str | None, values: dict[str, Any], adapters: int, as_json: bool) -> None:
    """``--until-decided``: both evaluations, and the comparison that it stopped at."""
    from pydantic import ValidationError

    from aftertune.deciding import EarlySpec, until_decided

    if against is None:
        raise InputError("--until-decided and --against go together: name the base's evaluation or model, for example "
                         "--until-decided --against smollm2 --margin 2")
    if adapters > 1:
        raise InputError(f"--until-decided takes one model at a time, but {adapters} adapters are given")
    if not 0 < values["margin"] <= 100:
        raise no_margin(values["margin"])
    try:
        early = EarlySpec(**values)
    except ValidationError as error:
        raise fields(error, {k: f"--{k.replace('_', '-')}" for k in values}) from None
    from aftertune.cli import compare
    from aftertune.ledger import Ledger

    with Ledger() as ledger, progress() as told:
        decided = until_decided(spec, against, early, ledger=ledger, progress=told)
    if as_json:
        emit({**as_object(decided.tuned), "comparison": compare.as_object(decided.comparison)})
        return
    show([decided.tuned], as_json=False)
    compare.show(decided.comparison)


def _tasks(names: str, data: list[str], shared: dict[str, Any]) -> list[TaskSpec]:
    from pydantic import ValidationError

    from aftertune.study import TaskSpec

    if not names.replace(",", "").strip():
        raise InputError("--tasks is empty; name one or more tasks of lm-eval, for example --tasks arc_easy,hellaswag")
    files = dict(_pair(text) for text in data)
    wanted = [n.strip() for n in names.split(",") if n.strip()]
    for task in files:
        if task not in wanted:
            raise InputError(f"--task-data names {task!r}, which is not among --tasks ({', '.join(wanted)})")
    try:
        return [TaskSpec(name=n, data=files.get(n), **shared) for n in wanted]
    except ValidationError as error:
        raise fields(error, _FLAGS) from None


def _pair(text: str) -> tuple[str, Path]:
    task, found, file = text.partition("=")
    if not found or not task or not file:
        raise InputError(f"--task-data {text!r}: write TASK=FILE, for example gsm8k=train.parquet")
    return task, Path(file)


def _spec(tasks: list[TaskSpec], values: dict[str, Any]) -> EvalSpec:
    from pydantic import ValidationError

    from aftertune.study import EvalSpec

    try:
        return EvalSpec(tasks=tuple(tasks), **values)
    except ValidationError as error:
        raise fields(error, _FLAGS) from None


def parse_settings(text: str | None) -> dict[str, Any]:
    """``a=1,b=[2]`` or a JSON object as a mapping; values are JSON where they parse as such, else text."""
    if not text:
        return {}
    if text.lstrip().startswith("{"):
        try:
            return dict(json.loads(text))
        except ValueError as error:
            raise InputError(f"--gen-kwargs is no valid JSON: {error}") from None
    result: dict[str, Any] = {}
    for part in text.split(","):
        key, found, value = part.partition("=")
        if not found:
            raise InputError(f"--gen-kwargs {part!r}: write NAME=VALUE, with commas between them")
        try:
            result[key.strip()] = json.loads(value.lower() if value in ("True", "False") else value)
        except ValueError:
            result[key.strip()] = value
    return result


def show(evaluations: list[Evaluation], as_json: bool) -> None:
    """The scores, as tables or as JSON: one evaluation is an object, several are a list in one."""
    if as_json:
        objects = [as_object(e) for e in evaluations]
        emit(objects[0] if len(objects) == 1 else {"evaluations": objects})
        return
    import rich
    from rich.text import Text

    from aftertune.report import terminal_scores

    for evaluation in evaluations:
        rich.print(terminal_scores(evaluation))
        how = f"  {evaluation.dtype} on {evaluation.device}, {evaluation.engine_note}"
        rich.print(Text.assemble("evaluation ", (evaluation.id, "bold"), how))
        for warning in evaluation.warnings:
            rich.print(Text.assemble(("note", "yellow"), f" {warning}"))


def as_object(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation in the form that ``eval --json`` promises."""
    seconds = evaluation.provenance.seconds if evaluation.provenance else None
    return {"evaluation": evaluation.id, "model": evaluation.model,
            "scores": [{"task": s.task, "metric": s.metric, "filter": s.filter, "value": s.value,
                        "stderr": s.stderr, "n": s.n, "n_total": evaluation.total(s.task),
                        "stopped_early": evaluation.stopped(s.task) is not None}
                       for s in evaluation.scores],
            "early": evaluation.early,
            "seconds": seconds, "warnings": list(evaluation.warnings), "engine": evaluation.engine_note}
