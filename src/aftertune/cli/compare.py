"""Implements ``compare``, ``flips`` and ``gate``, which compare evaluations of the ledger item by item.

    aftertune compare base tuned --margin 2
    aftertune flips base tuned --task hellaswag --lost
    aftertune gate base tuned --max-drop hellaswag=2
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aftertune.api.objects import comparison_object, gate_object, refusal_object
from aftertune.cli.console import emit, jsonable, margin_error
from aftertune.cli.options import Common, Force, JsonFlag, StoredEvaluation
from aftertune.cli.streams import rich_console
from aftertune.errors import GateFailed, InputError, NotComparable

if TYPE_CHECKING:
    from aftertune.ledger import Ledger
    from aftertune.values import Comparison, Drift, Evaluation, GateLine, Margin


def compare(
    base: StoredEvaluation,
    tuned: Annotated[list[str], typer.Argument(help="Id or name of an evaluation. Several are compared one by one.")],
    margin: Annotated[list[str] | None, typer.Option(
        help="Margin in points; a smaller loss counts as no loss. TASK=VALUE for one task, in points or in the unit of "
             "its metric, and average=VALUE for the average over the tasks. Repeatable. Default: 2.")] = None,
    primary: Annotated[list[str] | None, typer.Option(
        help="Metric that gets the verdict, such as prob (expected accuracy). TASK=METRIC for one task. Repeatable.")
    ] = None,
    family: Annotated[str, typer.Option(
        help="What the error level of 5 % covers together: pair (the tasks of one fine-tune) or study (all fine-tunes "
             "of this command).")] = "pair",
    common: Common = False,
    force: Force = False,
    details: Annotated[bool, typer.Option(
        "--details", help="Also show McNemar's p-values, every task of a group, and what changed beside right and "
                          "wrong: log-probabilities, calibration, positions, lengths and ends.")] = False,
    again: Annotated[bool, typer.Option(
        "--again", help="Judge by the current rules what an earlier version of aftertune stored.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Compare evaluations question by question: what was forgotten, what was kept, what improved."""
    from aftertune.comparison import check_margins, compare_again
    from aftertune.comparison import compare as run
    from aftertune.comparison.rows import over_fine_tunes
    from aftertune.ledger import Ledger

    judge = compare_again if again else run
    margins = parse_margins(margin or [])
    if family not in ("pair", "study"):
        raise InputError(f"--family {family}: allowed are pair (the tasks of one fine-tune) and study (all fine-tunes "
                         "of this command)")
    comparisons: list[Comparison] = []
    errors: list[NotComparable] = []
    objects: list[dict[str, object] | None] = []  # None: of the next comparison
    words: dict[str, str] = {}
    drifts: dict[str, Drift | None] = {}
    with Ledger(create=False) as ledger:
        first = _by_metrics(base, primary or [], ledger)
        others = {name: _by_metrics(name, primary or [], ledger) for name in tuned}
        check_margins(margins, [(first, other) for other in others.values()])
        for name, other in others.items():
            try:
                comparisons.append(judge(first, other, margins=margins, ledger=ledger, force=force, common=common))
                objects.append(None)
                drifts[comparisons[-1].id] = stored_drift(comparisons[-1], ledger)
                words |= {side.id: ledger.word_for(side) for side in (first, other)}
            except NotComparable as error:
                errors.append(error)
                objects.append(refusal_object(error, base, name))
    if family == "study":
        comparisons = over_fine_tunes(comparisons)
    if as_json:
        shown = iter(comparisons)
        values = [comparison_object(c := next(shown), drifts[c.id]) if value is None else value for value in objects]
        emit(values[0] if len(values) == 1 else {"comparisons": values})
    else:
        _show_all(comparisons, details, words, drifts)
    if errors:
        raise errors[0]


def _by_metrics(name: str, primary: list[str], ledger: Ledger) -> Evaluation:
    """A finished evaluation with the primary metrics that ``METRIC`` and ``TASK=METRIC`` choose."""
    from aftertune.comparison import choose_primary, find_finished

    value = find_finished(name, ledger)
    for text in primary:
        task, _, metric = text.rpartition("=")
        value = choose_primary(value, metric, task)
    return value


def parse_margins(texts: list[str]) -> dict[str, Margin]:
    """``2`` (points) and ``judge=5`` (points, or the unit of its metric) by task; "*" is for all other tasks."""
    from aftertune.values import Margin

    margins: dict[str, Margin] = {}
    for text in texts:
        task, equals, number_text = text.rpartition("=")
        value = number(number_text)
        if not 0 < value <= (math.inf if task else 100) or math.isinf(value) or (equals and not task):
            raise margin_error(text, ", or TASK=VALUE in points or in the unit of its metric")
        margins[task or "*"] = Margin.given(value) if task else Margin(value / 100)
    return margins


def number(text: str) -> float:
    """A text as a number; NaN if it is not one."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def stored_drift(comparison: Comparison, ledger: Ledger) -> Drift | None:
    """The newest drift measurement of the two models in the ledger; None without one."""
    from aftertune.report import Results

    return Results.of_comparison(comparison, ledger).drift(comparison)


def show(comparison: Comparison, details: bool = False, words: Mapping[str, str] | None = None,
         drift: Drift | None = None) -> None:
    """Print the headline, the verdict table, and the differences in settings that do not block a comparison.

    words: id of an evaluation -> how a command line names it; its id where it is missing. drift: of the two models,
    where it was measured.
    """
    from rich.text import Text

    from aftertune.report import terminal_table
    from aftertune.report.sentences import rules_note

    console = rich_console()
    console.print(terminal_table(comparison, width=console.width, details=details, drift=drift))
    for difference in comparison.differences:
        console.print(Text.assemble(("differs", "yellow"), f" {difference.field}: {difference.left} in "
                                    f"{comparison.base_name}, {difference.right} in {comparison.tuned_name}"))
    if note := rules_note(comparison):
        console.print(Text.assemble(("hint", "yellow"), f" {note} `aftertune compare --again` judges by it."))
    if comparison.relation == "reversed":
        sides = ((words or {}).get(side, side) for side in (comparison.tuned, comparison.base))
        console.print(Text.assemble(("hint", "yellow"), f" give the base first: aftertune compare {' '.join(sides)}"))


def _show_all(comparisons: list[Comparison], details: bool, words: Mapping[str, str],
              drifts: Mapping[str, Drift | None]) -> None:
    """Print every table; for several tuned models also a line for each of them and a summary of all tasks."""
    from rich.text import Text

    from aftertune.report import Results, study_lines, terminal_summary

    for i, comparison in enumerate(comparisons):
        if i:
            rich_console().print()
        show(comparison, details, words, drifts[comparison.id])
    if len(comparisons) > 1:
        lines = (Text(line) for line in study_lines(Results(comparisons=comparisons)))
        rich_console().print(Text(), *lines, Text(), terminal_summary(comparisons), sep="\n")


def flips(
    base: StoredEvaluation,
    tuned: StoredEvaluation,
    task: Annotated[str, typer.Option(help="Task whose items are shown.")],
    metric: Annotated[str | None, typer.Option(help="Metric; default: the task's primary one.")] = None,
    lost: Annotated[bool, typer.Option("--lost", help="Show only items that became wrong.")] = False,
    gained: Annotated[bool, typer.Option("--gained", help="Show only items that became right.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Items to show for each direction.")] = 10,
    out: Annotated[str, typer.Option(help="Markdown file to write; - for stdout.")] = "-",
    common: Common = False,
    force: Force = False,
    as_json: JsonFlag = False,
) -> None:
    """Show the items that one model answers right and the other wrong, with both answers."""
    if lost and gained:
        raise InputError("--lost and --gained exclude each other; leave out both to show both")
    from aftertune.comparison.flips import flips as run
    from aftertune.ledger import Ledger
    from aftertune.report import write_document, write_flips

    with Ledger(create=False) as ledger:
        task_flips = run(base, tuned, task, ledger=ledger, metric=metric, force=force, common=common,
                         direction="lost" if lost else "gained" if gained else None)
    if as_json:
        items = [flip for direction in ("lost", "gained")
                 for flip in [f for f in task_flips.flips if f.direction == direction][:limit]]
        emit({**jsonable(replace(task_flips, flips=())), "forced": bool(task_flips.differences),
              "flips": jsonable(items)})
        return
    text = write_flips(task_flips, limit=limit)
    if out == "-":
        typer.echo(text)
        return
    write_document(Path(out), text)
    typer.echo(f"written to {out}")


_MaxDrop = Annotated[list[str], typer.Option(
    help="TASK=VALUE: the largest allowed drop, in points or in the unit of its metric; average=VALUE for the average "
         "over the tasks. Repeatable.")]
_Chain = Annotated[Path | None, typer.Option(
    help="Instead of two evaluations: the folder of `check-deploy` (its --out). The gate fails at the first link that "
         "lost more than a limit against the first one, or that has a fault.")]


def gate(
    base: Annotated[str | None, typer.Argument(help="Id or name of an evaluation.")] = None,
    tuned: Annotated[str | None, typer.Argument(help="Id or name of an evaluation.")] = None,
    max_drop: _MaxDrop = ...,  # type: ignore[assignment]
    chain: _Chain = None,
    require_proof: Annotated[bool, typer.Option(
        "--require-proof", help="Also fail if it is not proven that a limit holds.")] = False,
    common: Common = False,
    junit: Annotated[Path | None, typer.Option(help="JUnit XML file to write.")] = None,
    github: Annotated[bool | None, typer.Option(
        "--github/--no-github", help="Write annotations and a summary for GitHub Actions. Default: in such runs.",
        show_default=False)] = None,
    as_json: JsonFlag = False,
) -> None:
    """Exit with 1 if a drop beyond a limit is proven (with --require-proof: if its absence is not proven)."""
    from aftertune.comparison import find_finished
    from aftertune.comparison.gate import gate as run
    from aftertune.ledger import Ledger
    from aftertune.report import gate_text, headline, write_document, write_junit, write_junit_error
    from aftertune.values import Margin

    drops = _drops(max_drop)
    on_github = github if github is not None else os.environ.get("GITHUB_ACTIONS") == "true"
    _check_sides(base, tuned, chain, common)
    if chain is not None:
        from aftertune.cli.gate_chain import gate_links

        gate_links(chain, drops, require_proof=require_proof, junit=junit, on_github=on_github, as_json=as_json)
        return
    assert base
    assert tuned
    with Ledger(create=False) as ledger:
        left, right = find_finished(base, ledger), find_finished(tuned, ledger)
        title = f"{right.name} against {left.name}"
        limits = {task: Margin.given(value) for task, value in drops.items()}
        try:
            comparison, lines = run(left, right, limits, ledger=ledger, require_proof=require_proof, common=common)
            words = f"{ledger.word_for(left)} {ledger.word_for(right)}"
        except NotComparable as error:
            if junit is not None:
                write_document(junit, write_junit_error(tuple(limits), str(error), title=title))
            if as_json:
                emit({"passed": False, **refusal_object(error, base, tuned)})
            if on_github:
                show_on_github(error, to_stderr=as_json)
            raise
    if junit is not None:
        write_document(junit, write_junit(lines, title=title, said=" ".join(headline(comparison).sentences)))
    if on_github:
        show_on_github((comparison, lines), to_stderr=as_json)
    if as_json:
        emit(gate_object(comparison, lines))
    else:
        typer.echo(" ".join(headline(comparison).sentences))
        for line in lines:
            typer.echo(gate_text(line))
    failed = [line.task for line in lines if line.failed]
    if failed:
        raise GateFailed(f"the gate failed for {len(failed)} of {len(lines)} limits ({', '.join(failed)}); see the "
                         f"items with `aftertune flips {words} --task {failed[0]} --lost`")


def show_on_github(result: tuple[Comparison, Sequence[GateLine]] | NotComparable, *, to_stderr: bool) -> None:
    """Print annotations, and append the summary to the file that GitHub Actions names.

    A summary that cannot be written is a note: the gate itself goes on.
    """
    from aftertune.report import annotation, gate_annotations, gate_summary

    if isinstance(result, NotComparable):
        lines, summary = [annotation("error", "not comparable", str(result))], ""
    else:
        lines, summary = gate_annotations(result[1]), gate_summary(*result)
    for line in lines:
        typer.echo(line, err=to_stderr)
    file = os.environ.get("GITHUB_STEP_SUMMARY")
    if file and summary:
        from aftertune.cli.gate_chain import append_summary

        append_summary(file, summary)


def _check_sides(base: str | None, tuned: str | None, chain: Path | None, common: bool) -> None:
    """Raise InputError unless there are two evaluations or a chain."""
    if chain is not None and (base is not None or common):
        raise InputError("gate --chain compares the links of its folder; leave the evaluations and --common out")
    if chain is None and not (base and tuned):
        raise InputError("gate needs two evaluations, the base first, or --chain with a folder of `check-deploy`")


def _drops(texts: list[str]) -> dict[str, float]:
    """``hellaswag=2`` as task and value, in points or in the unit of its metric; each task once."""
    drops: dict[str, float] = {}
    for text in texts:
        task, _, points = text.rpartition("=")
        if not task or not 0 < number(points) < math.inf:
            raise InputError(f"--max-drop {text}: write TASK=VALUE, for example hellaswag=2, in points above 0, up to "
                             "100, or in the unit of its metric; a drop of 0 can never be excluded, so use the "
                             "smallest drop that matters")
        if task in drops:
            raise InputError(f"--max-drop {task}: given twice ({drops[task]:g} and {points}); each task has one limit")
        drops[task] = number(points)
    return drops
