"""Implements ``check-deploy``, which finds the form of a fine-tune that lost something on its way to where it runs.

    aftertune check-deploy orders --chain adapter,merged,gguf:q8_0,openai:http://127.0.0.1:8080 --target orders.jsonl
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aftertune.api.counted_tasks import judged_file
from aftertune.cli.compare import parse_margins
from aftertune.cli.console import emit, progress
from aftertune.cli.options import JsonFlag, comma_separated
from aftertune.errors import GateFailed, InputError
from aftertune.study import TaskSpec
from aftertune.study.scorer import SCORER_FORMS

if TYPE_CHECKING:
    from aftertune.deploy import ChainCheck, CheckedLink
    from aftertune.values import Comparison, ComparisonRow


def check_deploy(
    tuning: Annotated[str, typer.Argument(help="A finished fine-tune: its folder, id or name.")],
    chain: Annotated[str, typer.Option(
        help="Links, separated by commas: adapter, merged, gguf:TYPE, llamacpp:TYPE (llama.cpp in this process), "
             "openai:URL or openai:URL#MODEL (a server).")] = "adapter,merged,gguf:q8_0",
    tasks: Annotated[str, typer.Option(help="Benchmarks that each link is asked, separated by commas.")] = "",
    sample: Annotated[int | None, typer.Option(min=1, help="Random items of each benchmark.")] = None,
    target: Annotated[Path | None, typer.Option(
        help="JSONL file of held-out prompts and completions: what the fine-tune taught.")] = None,
    target_match: Annotated[str, typer.Option(help="When an answer is right: json, exact or regex.")] = "exact",
    target_pattern: Annotated[str | None, typer.Option(help="Regular expression for --target-match regex.")] = None,
    scorer: Annotated[str | None, typer.Option(
        metavar="SCORER", help="In place of --target-match: how answers to the target are judged, one of "
                               f"{SCORER_FORMS}.")] = None,
    target_tokens: Annotated[int, typer.Option(min=1, help="Longest answer to the target in tokens.")] = 128,
    chat: Annotated[bool, typer.Option(
        "--chat/--no-chat", help="Ask the target with the model's chat template.")] = True,
    margin: Annotated[list[str] | None, typer.Option(
        help="Margin in points; a smaller loss counts as no loss. TASK=VALUE for one task, in points or in the unit of "
             "its metric. Repeatable. Default: 2.")] = None,
    out: Annotated[Path | None, typer.Option(
        help="Folder for merged weights and GGUF files. Default: exports/NAME-deploy.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Ask each form of a fine-tune the same items; exit with 1 if one lost something, and name the first that did."""
    from aftertune.deploy import check_chain
    from aftertune.deploy.findings import reason
    from aftertune.ledger import Ledger
    from aftertune.sources.cache import path_part

    margins = parse_margins(margin or [])
    specs = [TaskSpec(name=task, sample=sample) for task in comma_separated(tasks)] if tasks else []
    if target is not None:
        spec = judged_file(target, target_match, scorer, pattern=target_pattern, max_tokens=target_tokens)
        specs.insert(0, TaskSpec(name=target.stem, target=spec, apply_chat_template=chat))
    if not specs:
        raise InputError("check-deploy: nothing to ask; give --target FILE (what the fine-tune taught), --tasks, or "
                         "both")
    folder = out or Path(f"exports/{path_part(Path(tuning).name)}-deploy")
    with Ledger() as ledger, progress() as update:
        check = check_chain(tuning, comma_separated(chain), specs, ledger=ledger, out=folder, margins=margins,
                            progress=update)
    if as_json:
        emit(check_object(check))
    else:
        show_check(check)
    if (broken := check.broken) is not None:
        raise GateFailed(f"the first broken link of {check.tuning.name} is {broken.link.name}: {reason(broken)}")


def show_check(check: ChainCheck) -> None:
    """Print the scores of each link with its differences, and a sentence about the whole chain."""
    from rich.table import Table
    from rich.text import Text

    from aftertune.cli.streams import rich_console
    from aftertune.deploy.findings import summary
    from aftertune.report.formatting import visible

    console = rich_console()
    console.print(Text(f"{check.tuning.name}: {len(check.links)} links, each asked the same items"))
    table = Table(box=None, pad_edge=False)
    table.add_column("link")
    table.add_column("task")
    table.add_column("score", justify="right")
    for heading in ("against the link before", "against the first"):
        table.add_column(heading)
    for link in check.links:
        for n, (task, score) in enumerate(_scores(link).items()):
            cells = [_cell(comparison, task) for comparison in (link.before, link.first)]
            table.add_row(visible(link.link.name) if n == 0 else "", visible(task), score, *cells)
    console.print(table)
    for link in check.links:
        if link.weights is not None and link.weights.same:
            console.print(Text(f"{link.link.name}: each merged weight is the base with the adapter"))
        for fault in link.faults:
            console.print(Text(f"{link.link.name}: {visible(fault)}"))
        for difference in link.prompts[:1]:
            console.print(Text(f"  {difference.conversation}: {visible(difference.diff, 1000)}"))
        if link.before is not None and (note := _moved(link.before)):
            console.print(Text(f"{link.link.name}: {note}"))
        for line in cost_lines(link):
            console.print(Text(line))
    if check.by_letter:
        console.print(Text("note: multiple-choice tasks were asked by letter, because a link gives no log-likelihoods"))
    for note in check.notes:
        console.print(Text(f"note: {note}"))
    console.print(Text(summary(check), "bold"))


def cost_lines(link: CheckedLink) -> list[str]:
    """What the rounding of a GGUF file costs, a line for each task and one for the token probabilities."""
    from aftertune.catalog import EXPECTED_ACCURACY
    from aftertune.deploy.findings import difference_with_interval
    from aftertune.report.formatting import percent, raw
    from aftertune.report.names import task_title
    from aftertune.report.table import interval_text
    from aftertune.values.comparison import verdict_label

    if (cost := link.cost) is None:
        return []
    rows, lines = cost.compared.rows, []
    for row in (r for r in rows if r.primary and not r.average_of):
        costs = "gains" if row.delta > 0 else "costs"
        expected = next((f"; expected accuracy {difference_with_interval(r)}" for r in rows
                         if (r.task, r.metric) == (row.task, EXPECTED_ACCURACY) and not r.primary), "")
        label = verdict_label(row.verdict, lineage=True) if row.verdict else "not tested"  # made here, from this tuning
        unit = " points" if row.fraction else ""
        lines.append(f"{link.link.name} {costs} {_size(row)}{unit} on {task_title(row.task)} against {cost.whole} "
                     f"({interval_text(row)}): {label}{expected}")
    if (drift := cost.drift) is not None:
        lines.append(f"{link.link.name}: its token probabilities differ from those of the merged weights by "
                     f"{raw(drift.kl)} nats per token on {len(drift.texts)} held-out texts ({raw(drift.low)} to "
                     f"{raw(drift.high)}); the most likely token is another at {percent(drift.changed)} of their "
                     "tokens")
    return lines


def _size(row: ComparisonRow) -> str:
    """The difference of a row without its sign."""
    from aftertune.report.table import difference_text

    return difference_text(row, abs(row.delta)).lstrip("+")


def _scores(link: CheckedLink) -> dict[str, str]:
    """The primary score of each task, as text."""
    from aftertune.report.formatting import percent, raw

    scores = [s for s in link.evaluation.scores if s.primary and not s.group]
    return {s.task: percent(s.value) if s.fraction else raw(s.value) for s in scores}


def _cell(comparison: Comparison | None, task: str) -> str:
    if comparison is None:
        return ""
    from aftertune.deploy.findings import difference_with_interval
    from aftertune.values.comparison import verdict_label

    row = next((r for r in comparison.rows if r.task == task and r.primary), None)
    if row is None:
        return "not compared"
    label = verdict_label(row.verdict, lineage=False) if row.verdict else "not tested"
    return f"{difference_with_interval(row)} {label}"


def _moved(comparison: Comparison) -> str:
    """How far the answers are the same as those of the link before."""
    from aftertune.report.changes import change_lines

    return " ".join(change_lines(comparison)[-1:])


def _cost_object(link: CheckedLink) -> dict[str, Any] | None:
    """What rounding costs, as ``check-deploy --json`` prints it."""
    if (cost := link.cost) is None:
        return None
    rows = [{"task": r.task, "metric": r.metric, "verdict": r.verdict, "delta": r.delta, "low": r.low, "high": r.high,
             "n": r.n} for r in cost.compared.rows if not r.average_of]
    drift = cost.drift and {"kl": cost.drift.kl, "low": cost.drift.low, "high": cost.drift.high,
                            "changed": cost.drift.changed, "texts": len(cost.drift.texts),
                            "tokens": cost.drift.tokens}
    return {"against": cost.whole, "rows": rows, "held_out_texts": drift}


def check_object(check: ChainCheck) -> dict[str, Any]:
    """The check as ``check-deploy --json`` prints it."""
    from aftertune.deploy.findings import reason, summary

    def rows(comparison: Comparison | None) -> list[dict[str, Any]] | None:
        return None if comparison is None else [
            {"task": r.task, "metric": r.metric, "verdict": r.verdict, "delta": r.delta, "low": r.low, "high": r.high,
             "n": r.n} for r in comparison.rows if r.primary]

    broken = check.broken
    return {"tuning": check.tuning.id, "broken": broken.link.name if broken else None,
            "reason": reason(broken) if broken else None, "summary": summary(check), "by_letter": check.by_letter,
            "notes": list(check.notes),
            "links": [{"name": link.link.name, "evaluation": link.evaluation.id, "engine": link.evaluation.engine,
                       "engine_note": link.evaluation.engine_note, "stated": dict(link.evaluation.stated),
                       "scores": {s.task: s.value for s in link.evaluation.scores if s.primary and not s.group},
                       "against_before": rows(link.before), "against_first": rows(link.first),
                       "cost": _cost_object(link),
                       "weights_same": link.weights.same if link.weights else None, "faults": list(link.faults),
                       "prompts": [{"conversation": p.conversation, "cause": p.cause, "left": p.left, "right": p.right}
                                   for p in link.prompts]}
                      for link in check.links]}
