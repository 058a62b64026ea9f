"""Implements ``drift``, which measures how far a fine-tune moved a model, without a benchmark.

    aftertune drift HuggingFaceTB/SmolLM2-135M-Instruct runs/orders
    aftertune drift base tuned --data questions.jsonl --json
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aftertune.api.objects import drift_texts_object
from aftertune.cli.console import emit, progress
from aftertune.cli.options import JsonFlag, option_of
from aftertune.cli.streams import rich_console
from aftertune.study import EvalSpec

if TYPE_CHECKING:
    from aftertune.values import Drift, DriftText

#: Texts shown of each group, and letters of each.
_SHOWN, _LETTERS = 3, 160


def drift(
    base: Annotated[str, typer.Argument(
        help="The base model: Hub id, folder, .gguf file, package:NAME/FILE or preset.")],
    tuned: Annotated[str, typer.Argument(
        help="The tuned model: an adapter of the base, a whole model, or a fine-tune by folder, id or name.")],
    prompts: Annotated[int, typer.Option(min=8, max=1000, help="The most prompts of each kind.")] = 64,
    tokens: Annotated[int, typer.Option(min=1, max=2048, help="The most tokens of each continuation.")] = 64,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the sampled continuations.")] = 0,
    data: Annotated[Path | None, typer.Option(
        help="Examples whose prompts are used instead of the fine-tune's held-out prompts.")] = None,
    chat_template: Annotated[bool | None, typer.Option(
        "--apply-chat-template/--no-apply-chat-template",
        help="Format the general prompts with the model's chat template. Default: where it has one.")] = None,
    dtype: Annotated[str, option_of(EvalSpec, "dtype")] = "auto",
    device: Annotated[str, option_of(EvalSpec, "device")] = "auto",
    threads: Annotated[int | None, option_of(EvalSpec, "threads")] = None,
    trust_remote_code: Annotated[bool, option_of(EvalSpec, "trust_remote_code")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Measure how far TUNED moved from BASE: the KL divergence on the base's own texts. No benchmark is needed."""
    from aftertune.drift import DriftOptions, measure_drift
    from aftertune.ledger import Ledger

    options = DriftOptions(prompts, tokens, seed, data, chat_template, dtype, device, threads, trust_remote_code)
    with Ledger() as ledger, progress() as update:
        measured = measure_drift(base, tuned, options, ledger=ledger, progress=update)
    if as_json:
        emit({**drift_texts_object(measured), "tuned": tuned})
    else:
        show_drift(measured, tuned)


def show_drift(measured: Drift, tuned: str) -> None:
    """Print the divergence on each kind of prompts, and the texts that moved most."""
    from rich.table import Table
    from rich.text import Text

    console = rich_console()
    table = Table(box=None, pad_edge=False)
    table.add_column("prompts")
    for heading in ("n", "KL(base || tuned)", "95 % interval", "other top token"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for group in measured.groups:
        table.add_row(group.name, str(len(group.texts)), f"{group.kl:.4f}", f"{group.low:.4f} to {group.high:.4f}",
                      f"{group.changed:.1%}", Text("moved", "bold") if group.moved else Text("not seen to move", "dim"))
    console.print(Text(f"{tuned} against {measured.base.source}, in {measured.dtype} on {measured.device}"))
    console.print(table)
    for group in measured.groups:
        if group.random_kl is not None:
            word = "moves the model more than" if group.beyond_random else "is not shown to move the model more than"
            console.print(Text(f"On {group.name} the adapter {word} a random adapter of its size "
                               f"({group.random_kl:.4f})."))
    console.print(Text("KL in nats per token, on texts that the base wrote; 0 is the same model. It shows that a model "
                       "moved, not that it forgot: for that, compare answers (aftertune eval, aftertune compare).",
                       "dim"))
    for group in measured.groups:
        if group.moved:
            console.print(Text(f"\n{group.name} that moved most", "bold"))
            for text in group.texts[:_SHOWN]:
                console.print(_shown(text))
    for note in measured.notes:
        console.print(Text.assemble(("note", "yellow"), f" {note}"))


def _shown(text: DriftText) -> str:
    """One text on two lines: its divergence with the prompt, and what the base wrote."""
    from rich.markup import escape

    prompt, continuation = (" ".join(part.split()) for part in (text.prompt, text.text))
    return escape(f"  {text.kl:.3f}  {prompt[-_LETTERS:]}\n         → {continuation[:_LETTERS]}")
