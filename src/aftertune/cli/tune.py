"""``aftertune tune MODEL --data FILE``: fine-tune, with the held-out loss before and after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aftertune.cli.console import emit, fields, jsonable, progress

if TYPE_CHECKING:
    from aftertune.values import Tuning

_FLAGS = {"method": "--method", "epochs": "--epochs", "learning_rate": "--learning-rate", "dtype": "--dtype",
          "batch_size": "--batch-size", "examples": "--examples", "lora.r": "--rank", "r": "--rank",
          "max_length": "--max-length", "max_steps": "--max-steps", "name": "--name", "held_out": "--held-out"}


def tune(
    model: Annotated[str, typer.Argument(help="Hub id, folder, .gguf file, or package:NAME/FILE.")],
    data: Annotated[Path, typer.Option(help='JSONL rows {"prompt": …, "completion": …}.')],
    method: Annotated[str, typer.Option(help="lora or full.")] = "lora",
    examples: Annotated[int | None, typer.Option(help="A seeded subset of this many.")] = None,
    held_out: Annotated[float, typer.Option(help="Share kept out of training for the loss.")] = 0.1,
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 1.0,
    max_steps: Annotated[int | None, typer.Option(help="Stop after this many steps.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Default: lora 2e-4, full 2e-5.")] = None,
    batch_size: Annotated[int, typer.Option(help="Examples in one step and device.")] = 8,
    accumulation: Annotated[int, typer.Option(help="Batches summed into one step.")] = 1,
    max_length: Annotated[int, typer.Option(help="Longest example in tokens.")] = 1024,
    rank: Annotated[int, typer.Option(help="Rank of LoRA.")] = 16,
    alpha: Annotated[float, typer.Option(help="Scale of LoRA.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    raw_text: Annotated[bool, typer.Option("--raw-text", help="Without the model's chat template.")] = False,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cuda, cuda:N, mps or cpu.")] = "auto",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub model.")] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the tuning in the ledger.")] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run the model's own code.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Fine-tune MODEL; the output folder holds a PEFT adapter (lora) or whole weights (full)."""
    from pydantic import ValidationError

    from aftertune.study import DataSpec, LoraSpec, TuneSpec

    values: dict[str, Any] = {
        "model": model, "method": method, "epochs": epochs, "max_steps": max_steps, "seed": seed, "name": name,
        "learning_rate": learning_rate, "batch_size": batch_size, "accumulation": accumulation, "dtype": dtype,
        "max_length": max_length, "chat_template": not raw_text, "device": device, "revision": revision,
        "out": out, "trust_remote_code": trust_remote_code}
    try:
        spec = TuneSpec(data=DataSpec(file=data, examples=examples, held_out=held_out),
                        lora=LoraSpec(r=rank, alpha=alpha), **values)
    except ValidationError as error:
        raise fields(error, _FLAGS) from None
    from aftertune.ledger import Ledger
    from aftertune.tuning import tune as run

    with Ledger() as ledger, progress() as told:
        tuning = run(spec, ledger=ledger, progress=told)
    show(tuning, model, as_json)


def show(tuning: Tuning, model: str, as_json: bool) -> None:
    """What came out: the held-out loss before and after, notes, and the command that asks what was forgotten."""
    if as_json:
        emit({"tuning": tuning.id, **{k: v for k, v in jsonable(tuning).items() if k != "steps"}})
        return
    import rich
    from rich.text import Text

    rich.print(Text.assemble("tuning ", (tuning.id, "bold"), f" ({tuning.name}): {tuning.method}, "
                             f"{tuning.examples:,} examples"))
    if tuning.held_out:
        h = tuning.held_out
        rich.print(Text(f"held-out loss {h.before:.3f} → {h.after:.3f} nats per token, 95 % interval of the change "
                        f"{h.low:+.3f} to {h.high:+.3f} (n={h.n})"))
    for note in tuning.notes:
        rich.print(Text.assemble(("note", "yellow"), f" {note}"))
    flag = f"{model} --adapter {tuning.output}" if tuning.method != "full" else tuning.output
    typer.echo(f"written to {tuning.output}; what did it forget? aftertune eval {flag} --tasks …")
