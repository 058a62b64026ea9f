"""Implements ``soften``, ``blend`` and ``cure``, which get back what fine-tunes forgot without training.

    aftertune soften runs/orders --keep hellaswag=2,arc_easy=2 --target orders_test.jsonl=100
    aftertune blend runs/orders runs/chat --search --keep hellaswag=2 --target orders_test.jsonl=100
    aftertune cure runs/orders --keep hellaswag=2,arc_easy=2 --target orders_test.jsonl=100 --budget 20m
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from aftertune.api.cures import cure_request
from aftertune.cli.compare import number
from aftertune.cli.console import emit, jsonable, progress
from aftertune.cli.options import Given, JsonFlag, comma_separated, with_options
from aftertune.cli.streams import rich_console
from aftertune.errors import GateFailed, InputError
from aftertune.methods import writes_adapter
from aftertune.study.cure import CureSpec

if TYPE_CHECKING:
    from aftertune.cure import Cured


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
    request = cure_request(asked.make())
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
    request = cure_request(asked.make())
    with Ledger() as ledger, progress() as update:
        cured = run(tunings, request, weights=_numbers("--weights", weights),
                    blending=Blending(method, density, seed), ledger=ledger, progress=update)
    _show(cured, as_json)


@with_options
def cure(
    *,
    tuning: Annotated[str, typer.Argument(help="Fine-tune: folder, id or name.")],
    asked: Given[CureSpec],
    others: Annotated[list[str] | None, typer.Option(
        "--blend", metavar="TUNING", help="Also blend it with this fine-tune of the same base; may be given twice.")
    ] = None,
    budget: Annotated[str | None, typer.Option(
        metavar="20m|1h", help="Time for trying, in minutes or hours. What does not fit is left out and named. "
                               "Default: no limit.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Try all cures without training, and say which model to take. Exit with 1 if none keeps what you name.

    Tried are the fine-tune itself, its earlier kept checkpoints (at most four), less strength, and blends with --blend.
    One part of the items chooses one of them; the other part confirms it. Then it says what training again with less
    forgetting would cost. A run that was stopped continues where it stopped.
    """
    from aftertune.cure import cure as run
    from aftertune.ledger import Ledger

    minutes, request = _minutes(budget), cure_request(asked.make())
    with Ledger() as ledger, progress() as update:
        cured = run(tuning, request, others=others or (), minutes=minutes, ledger=ledger, progress=update)
    _show(cured, as_json)


def _minutes(budget: str | None) -> float | None:
    """The minutes of a budget such as 20m or 1.5h. Raises InputError for another form."""
    if budget is None:
        return None
    minutes = number(budget[:-1]) * {"m": 1, "h": 60}.get(budget[-1:], 0)
    if not 0 < minutes < 1e6:
        raise InputError(f"--budget {budget}: write minutes or hours above 0, for example 20m or 1.5h")
    return minutes


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
              "output": tuning.output if cured.written else None, "as_tuned": cured.as_tuned,
              "train_again": jsonable(cured.again), **jsonable(cure)})
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
    if cure.alone and len(cure.seconds) > 1:
        console.print(Text(f"{len(cure.seconds)} models took {duration_text(sum(cure.seconds.values()))}; as "
                           f"evaluations on their own they would take about {duration_text(cure.alone)}", style="dim"))
    for line in confirmed_lines(cure):
        console.print(Text(line))
    if cure.kind == "cure":
        _print_recommendation(cured)
    if cured.written:
        flag = f"{tuning.base.source} --adapter {tuning.output}" if writes_adapter(tuning.method) else tuning.output
        console.print(Text(f"written to {tuning.output}\nmeasure it: aftertune eval {flag} --tasks …"))
    elif cured.as_tuned:
        console.print(Text(f"{cure.chosen} is a fine-tune that you have already, so nothing was written"))


def _print_recommendation(cured: Cured) -> None:
    """Print what to do, and what training again would cost."""
    from rich.text import Text

    from aftertune.report import duration_text, recommendation

    console, cure = rich_console(), cured.cure
    if cure.confirmed and len(cure.candidates) > 1:
        console.print(Text(f"{len(cure.candidates)} models were tried, and the items that confirm had no part in "
                           "choosing one of them, so their number needs no correction", style="dim"))
    console.print(Text(recommendation(cure, written=cured.tuning.output if cured.written else "",
                                      ways=bool(cured.again)), style="bold"))
    if cured.again:
        console.print("training again with one of these, options of its tune command or keys of its study (estimates):")
    for way in cured.again:
        cost = "time unknown (--dry-run estimates it)" if way.seconds is None else f"about {duration_text(way.seconds)}"
        console.print(Text(f"  {way.option}: {cost}{f'; {way.note}' if way.note else ''}"))
