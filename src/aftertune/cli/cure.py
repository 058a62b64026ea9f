"""Implements ``soften`` and ``blend``, which get back what fine-tunes forgot without training.

    aftertune soften runs/orders --keep hellaswag=2,arc_easy=2 --target orders_test.jsonl=100
    aftertune blend runs/orders runs/chat --search --keep hellaswag=2 --target orders_test.jsonl=100
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from aftertune.cli.checkpoints import counted_task
from aftertune.cli.compare import number
from aftertune.cli.console import emit, jsonable, progress
from aftertune.cli.options import Given, JsonFlag, comma_separated, with_options
from aftertune.cli.streams import rich_console
from aftertune.errors import GateFailed, InputError
from aftertune.methods import writes_adapter
from aftertune.study.cure import CureSpec

if TYPE_CHECKING:
    from aftertune.cure import Cured, CureRequest


@with_options
def soften(
    *,
    tuning: Annotated[str, typer.Argument(help="Fine-tune: folder, id or name.")],
    asked: Given[CureSpec],
    strengths: Annotated[str | None, typer.Option(
        help="Strengths to try, between 0 (the base) and 1 (the fine-tune), separated by commas. Default: "
             "0.2,0.4,0.6,0.8; with --by depth 0.3,0.6. The fine-tune itself is always among them.")] = None,
    by: Annotated[str | None, typer.Option(
        metavar="depth", help="depth: also soften the lower, the middle and the upper third of the layers alone.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Give a fine-tune less strength, without training, so that it keeps what you name. Exit with 1 if none does.

    Adapters are scaled; whole weights are interpolated with those of the base. One part of the items chooses the
    strength that gains most on the target and loses no more than the margins; the other part confirms it. A run that
    was stopped continues where it stopped.
    """
    from aftertune.cure import soften as run
    from aftertune.ledger import Ledger

    if by not in (None, "depth"):
        raise InputError(f"--by {by}: allowed is depth (the lower, the middle and the upper third of the layers)")
    request = _request(asked.make())
    with Ledger() as ledger, progress() as update:
        cured = run(tuning, request, strengths=_numbers("--strengths", strengths), by="depth" if by else "",
                    ledger=ledger, progress=update)
    _show(cured, as_json)


@with_options
def blend(
    *,
    tunings: Annotated[list[str], typer.Argument(metavar="TUNING…", help="Two or three fine-tunes of one base: "
                                                                         "folders, ids or names.")],
    asked: Given[CureSpec],
    weights: Annotated[str | None, typer.Option(
        help="Weight of each fine-tune, separated by commas: base + sum of weight x (fine-tune - base).")] = None,
    search: Annotated[bool, typer.Option(
        "--search", help="Try weights that sum to 1: multiples of a quarter (three fine-tunes: of a third).")] = False,
    method: Annotated[str, typer.Option(
        help="linear, ties, dare_linear or dare_ties. Whole models: linear alone.")] = "linear",
    density: Annotated[float, typer.Option(
        min=0.01, max=1.0, help="Share of an adapter's values that ties and dare keep.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of dare.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Blend fine-tunes of one base, without training, so that the blend keeps what you name. Exit with 1 if none does.

    Adapters are blended by PEFT, whole models are interpolated. The weights are chosen and confirmed as in soften.
    """
    from aftertune.cure import blend as run
    from aftertune.ledger import Ledger
    from aftertune.tuning.blending import METHODS_OF_PEFT, Blending

    if method not in METHODS_OF_PEFT:
        raise InputError(f"--method {method}: allowed are {', '.join(METHODS_OF_PEFT)}")
    if search == (weights is not None):
        raise InputError("give either --weights, one for each fine-tune (for example 0.5,0.5), or --search")
    request = _request(asked.make())
    with Ledger() as ledger, progress() as update:
        cured = run(tunings, request, weights=_numbers("--weights", weights),
                    blending=Blending(method, density, seed), ledger=ledger, progress=update)
    _show(cured, as_json)


def _request(asked: CureSpec) -> CureRequest:
    """The request that the options describe. Raises InputError for a target that cannot be asked."""
    from aftertune.cure import CureRequest

    target = None
    if asked.target is not None:
        target = counted_task("--target", asked.target, asked.match)
        target = target.model_copy(update={"apply_chat_template": asked.apply_chat_template})
    return CureRequest(keep=asked.margins, items=asked.items, target=target, require_proof=asked.require_proof,
                       out=asked.out, settings=asked.settings)


def _numbers(option: str, text: str | None) -> tuple[float, ...]:
    parts = comma_separated(text)
    for part in parts:
        if not 0 <= number(part) < 1e9:
            raise InputError(f"{option} {text}: {part!r} is no such number; write numbers with commas, for example "
                             "0.4,0.6")
    return tuple(map(float, parts))


def _show(cured: Cured, as_json: bool) -> None:
    """Print what was tried, what is confirmed and where the model is. Raises GateFailed if there is none to hand on."""
    cure, tuning = cured.cure, cured.tuning
    if as_json:
        emit({"tuning": tuning.id, "name": tuning.name, "base": tuning.base.source, "written": cured.written,
              "output": tuning.output if cured.written else None, "as_tuned": cured.as_tuned, **jsonable(cure)})
    else:
        _print(cured)
    if cured.failed:
        reason = cure.reason
        if cure.outcome == "open":
            reason += "; --require-proof writes only what is proven"
        raise GateFailed(f"nothing was written: {reason}")


def _print(cured: Cured) -> None:
    from rich.table import Column, Table
    from rich.text import Text

    from aftertune.report import confirmed_lines, cure_table, duration_text

    console, cure, tuning = rich_console(), cured.cure, cured.tuning
    head, rows = cure_table(cure)
    table = Table(*(Column(name) for name in head), box=None, pad_edge=False)
    for candidate, cells in zip(cure.candidates, rows, strict=True):
        style = "bold" if candidate.name == cure.chosen else "dim" if candidate.refused else ""
        table.add_row(*(Text(cell, style) for cell in cells))
    console.print(table)
    n = ", ".join(f"{p.n} of {p.task}" for p in cure.candidates[0].points)
    console.print(Text(f"changes against the base in points, with 95 % intervals, on the items that choose ({n}); "
                       "nothing is claimed from these", style="dim"))
    if cure.alone:
        console.print(Text(f"{len(cure.seconds)} models took {duration_text(sum(cure.seconds.values()))}; as "
                           f"evaluations on their own they would take about {duration_text(cure.alone)}", style="dim"))
    for line in confirmed_lines(cure):
        console.print(Text(line))
    if cured.written:
        flag = f"{tuning.base.source} --adapter {tuning.output}" if writes_adapter(tuning.method) else tuning.output
        console.print(Text(f"written to {tuning.output}\nmeasure it: aftertune eval {flag} --tasks …"))
    elif cured.as_tuned:
        console.print(Text(f"{cure.chosen} is a fine-tune that you have already, so nothing was written"))
