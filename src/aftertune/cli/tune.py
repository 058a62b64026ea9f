"""``aftertune tune MODEL --data FILE``: fine-tune, with the held-out loss before and after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aftertune.cli.console import emit, fields, jsonable, progress
from aftertune.errors import InputError

if TYPE_CHECKING:
    from aftertune.study import TuneSpec
    from aftertune.tuning import Preview
    from aftertune.values import Question, Tuning
    from aftertune.watching import Watch

_FLAGS = {"method": "--method", "backend": "--backend", "epochs": "--epochs", "learning_rate": "--learning-rate",
          "dtype": "--dtype", "batch_size": "--batch-size", "examples": "--examples", "lora.r": "--rank", "r": "--rank",
          "max_length": "--max-length", "format": "--format", "template": "--template", "split": "--split",
          "subset": "--subset", "learn": "--learn", "replay.share": "--replay-share",
          "max_steps": "--max-steps", "name": "--name", "held_out": "--held-out", "validation": "--validation",
          "schedule": "--schedule", "early_stop.every": "--validate-every", "early_stop.patience": "--patience"}


def tune(
    model: Annotated[str, typer.Argument(
        help="Hub id, folder, .gguf file, package:NAME/FILE, or a preset such as tinyllama.")],
    data: Annotated[Path, typer.Option(help="A .jsonl, .json, .csv or .parquet file, or a Hub data set (alpaca).")],
    method: Annotated[str, typer.Option(help="lora, qlora, rslora, dora, pissa, ia3 or full.")] = "lora",
    backend: Annotated[str, typer.Option(
        help="peft, unsloth (on a CUDA device: faster) or auto (unsloth where it can run).")] = "peft",
    examples: Annotated[int | None, typer.Option(help="A seeded subset of this many.")] = None,
    data_format: Annotated[str, typer.Option(
        "--format", help="auto, prompt, messages, alpaca, sharegpt or text.")] = "auto",
    field: Annotated[list[str] | None, typer.Option(help="Another name for a field: prompt=question.")] = None,
    encoding: Annotated[str, typer.Option(help="Encoding of a text file.")] = "utf-8",
    split: Annotated[str, typer.Option(help="Split of a Hub data set.")] = "train",
    subset: Annotated[str | None, typer.Option(help="Subset of a Hub data set that has several.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave unreadable rows out, counted.")] = False,
    held_out: Annotated[float | None, typer.Option(
        help="Share kept out of training for the loss; a tenth, about 1,000 at most.")] = None,
    validation: Annotated[float | None, typer.Option(
        help="Share kept out of training for early stopping, beside the held-out one.")] = None,
    validate_every: Annotated[int, typer.Option(help="Steps between two validations.")] = 50,
    patience: Annotated[int, typer.Option(help="Validations without a better loss before training ends.")] = 3,
    replay: Annotated[Path | None, typer.Option(help="Other data mixed in, so that less is forgotten.")] = None,
    replay_share: Annotated[float | None, typer.Option(help="Its share of the final mixture, for example 0.2.")] = None,
    watch: Annotated[list[str] | None, typer.Option(
        help="TASK=N: look at N items of a task while training, against the base. Repeatable.")] = None,
    watch_every: Annotated[int, typer.Option(help="Steps between two looks.")] = 50,
    watch_margin: Annotated[float, typer.Option(help="Points within which a task counts as kept.")] = 2.0,
    stop_when_forgot: Annotated[bool, typer.Option(
        "--stop-when-forgot", help="End training where a watched task is proven to be forgotten.")] = False,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data; default: 1.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Stop after this many steps.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Default: 2e-4, ia3 8e-3, full 2e-5.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples in one step and device; default: 8.")] = None,
    accumulation: Annotated[int | None, typer.Option(help="Batches summed into one step; default: 1.")] = None,
    schedule: Annotated[str | None, typer.Option(
        help="Of the learning rate: linear (the default) or cosine.")] = None,
    gradient_checkpointing: Annotated[bool, typer.Option(
        "--gradient-checkpointing", help="Less memory for more time.")] = False,
    max_length: Annotated[int | None, typer.Option(help="Longest example in tokens; default: 1024.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of LoRA; default: 16.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Scale of LoRA; default: 32.")] = None,
    dropout: Annotated[float | None, typer.Option(help="Dropout of LoRA; default: 0.")] = None,
    target_modules: Annotated[str | None, typer.Option(
        help="Layers to adapt, with commas; default: all linear ones.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    template: Annotated[str | None, typer.Option(
        help="chat (the model's own, the default), alpaca or plain.")] = None,
    learn: Annotated[str, typer.Option(help="answers (every answer), last (the last one) or all (prompts too).")] =
        "answers",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cuda, cuda:N, mps or cpu.")] = "auto",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub model.")] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the tuning in the ledger.")] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run the model's own code.")] = False,
    merge: Annotated[bool, typer.Option("--merge", help="Write whole weights too, into OUT/merged.")] = False,
    tasks: Annotated[str | None, typer.Option(
        help="Evaluation tasks, or .jsonl files of held-out rows, to be looked for in the data; with commas.")] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Show three examples as trained, and stop.")] = False,
    dry_run: Annotated[bool, typer.Option(
        "--dry-run", help="Say what memory, disk and time it will take here, and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Fine-tune MODEL; the output folder holds a PEFT adapter (lora) or whole weights (full).

    A preset (smollm2-135m, llama-3.2-1b, tinyllama, phi-2, mistral-7b) brings its model and its community's settings
    as defaults.
    """
    from pydantic import ValidationError

    from aftertune.study import DataSpec, TuneSpec

    values: dict[str, Any] = {
        "model": model, "method": method, "backend": backend, "epochs": epochs, "max_steps": max_steps, "seed": seed,
        "name": name,
        "learning_rate": learning_rate, "batch_size": batch_size, "accumulation": accumulation, "dtype": dtype,
        "max_length": max_length, "template": template, "learn": learn, "schedule": schedule,
        "gradient_checkpointing": gradient_checkpointing,
        "early_stop": {"every": validate_every, "patience": patience},
        "watch": {"tasks": _items(watch), "every": watch_every, "margin": watch_margin, "stop": stop_when_forgot}
        if watch else None,
        "replay": _replay(replay, replay_share), "device": device, "revision": revision,
        "out": out, "trust_remote_code": trust_remote_code, "merge": merge,
        "lora": _said({"r": rank, "alpha": alpha, "dropout": dropout, "target_modules": _names(target_modules)})}
    try:
        source = DataSpec(
            file=data, examples=examples, held_out=held_out, validation=validation,
            format=data_format, fields=_pairs(field or []),  # type: ignore[arg-type]
            encoding=encoding, split=split, subset=subset, skip_bad=skip_bad)
        spec = TuneSpec(data=source, **_said(values))
    except ValidationError as error:
        raise fields(error, _FLAGS) from None
    if preview:
        return show_preview(spec, _questions(tasks), as_json)
    if dry_run:
        return show_estimate(spec, as_json)
    from aftertune.ledger import Ledger
    from aftertune.tuning import tune as run

    with Ledger() as ledger, progress() as told:
        told(0, 0, "reading the data")
        tuning = run(spec, ledger=ledger, progress=told, questions=_questions(tasks), look=_look(spec))
    return show(tuning, model, as_json)


def _look(spec: TuneSpec) -> Watch | None:
    """What looks at tasks on the way, where any are named."""
    if spec.watch is None:
        return None
    from aftertune.watching import Watch

    return Watch(spec)


def _items(given: list[str]) -> dict[str, int]:
    """``hellaswag=200`` as {"hellaswag": 200}."""
    found = {}
    for text in given:
        task, _, count = text.partition("=")
        if not task.strip() or not count.strip().isdigit():
            raise InputError(f"--watch {text!r}: write TASK=N, for example --watch hellaswag=200")
        found[task.strip()] = int(count)
    return found


def _questions(names: str | None) -> list[Question]:
    """What the tasks ask; a file of prompts and completions counts as a task."""
    if not names:
        return []
    from aftertune.study import TargetSpec, TaskSpec
    from aftertune.tasks import LoadOptions, questions

    given = [name.strip() for name in names.split(",") if name.strip()]
    return questions([TaskSpec(name=Path(name).name, target=TargetSpec(file=Path(name))) if name.endswith(".jsonl")
                      else TaskSpec(name=name) for name in given], LoadOptions())


def show_preview(spec: TuneSpec, questions: list[Question], as_json: bool) -> None:
    """Three examples: what is learned stands between ⟦ and ⟧, in colour where there is any; then what the data is."""
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
    """What a tuning will take on this machine."""
    from aftertune.report import duration_text
    from aftertune.tuning import foreseen

    found = foreseen(spec)
    if as_json:
        emit({"memory": found.memory, "disk": found.disk, "steps": found.steps, "tokens": found.tokens,
              "seconds": found.seconds, "basis": found.basis})
        return
    typer.echo(f"{spec.method} of {spec.model}: about {found.memory / 2**30:.1f} GiB of memory, "
               f"{found.disk / 2**30:.2f} GiB of disk, {duration_text(found.seconds or 0)} for {found.steps:,} steps "
               f"and {found.tokens:,} tokens (estimated from {found.basis}); nothing was run")


def show_data(found: Preview | Tuning) -> None:
    """What was read, left out, learned, and shared with evaluations; and the notes."""
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


def _said(values: dict[str, Any]) -> dict[str, Any]:
    """What was said; for the rest the defaults hold, a preset's first."""
    return {key: value for key, value in values.items() if value is not None}


def _names(text: str | None) -> tuple[str, ...] | None:
    """Names with commas between them; None where there is no text."""
    return tuple(name.strip() for name in text.split(",") if name.strip()) or None if text else None


def _replay(file: Path | None, share: float | None) -> dict[str, Any] | None:
    """Replay as a recipe has it; the two flags go together."""
    if (file is None) != (share is None):
        raise InputError("--replay FILE and --replay-share S go together: S is the share of the final mixture, for "
                         "example --replay-share 0.2")
    return None if file is None else {"data": file, "share": share}


def _pairs(given: list[str]) -> dict[str, str]:
    """``prompt=question`` as {"prompt": "question"}."""
    pairs = {}
    for text in given:
        ours, equals, theirs = text.partition("=")
        if not (ours and equals and theirs):
            raise InputError(f"--field {text!r}: write OURS=THEIRS, for example --field prompt=question")
        pairs[ours.strip()] = theirs.strip()
    return pairs


def show(tuning: Tuning, model: str, as_json: bool) -> None:
    """What came out: the held-out loss before and after, notes, and the command that asks what was forgotten."""
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
    flag = f"{model} --adapter {tuning.output}" if tuning.method != "full" else tuning.output
    if tuning.merged:
        typer.echo(f"whole weights in {tuning.output}/merged")
    typer.echo(f"written to {tuning.output}; what did it forget? aftertune eval {flag} --tasks …")
