"""Says in sentences what is wrong with a link of a chain, and what is known of the whole chain.

    reason(check.broken)      "it makes other prompts of messages: the system prompt is dropped"
    summary(check)            "No link is broken: on every task, no link lost more than the margin."
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aftertune.report.names import task_title
from aftertune.report.table import difference_text, interval_text
from aftertune.values import ComparisonRow
from aftertune.values.headline import CollapseKind

if TYPE_CHECKING:
    from aftertune.deploy.chain import ChainCheck, CheckedLink

#: Sign of collapse -> what a link does.
_COLLAPSE: dict[CollapseKind, str] = {
    "guessing": "it scores like a guess", "endless": "its texts do not end",
    "one_choice": "it always takes the same choice", "empty": "its texts are empty",
    "one_answer": "it always gives the same answer"}


def reason(link: CheckedLink) -> str:
    """Why a link is broken, in one sentence."""
    if link.faults:
        return link.faults[0]
    if link.losses:
        return "; ".join(f"{task_title(row.task)} {difference_with_interval(row)}" for row in link.losses)
    return "; ".join(dict.fromkeys(f"{_COLLAPSE[s.kind]} on {task_title(s.task)}" for s in link.collapse))


def difference_with_interval(row: ComparisonRow) -> str:
    """The difference with its interval, in points or in the metric's own unit."""
    return f"{difference_text(row, row.delta)} ({interval_text(row)})"


def summary(check: ChainCheck) -> str:
    """What is known of the chain in one sentence."""
    if (broken := check.broken) is not None:
        return f"The first broken link is {broken.link.name}: {reason(broken)}."
    rows = [row for link in check.links if link.first for row in link.first.rows if row.primary and not row.average_of]
    open_, untested = ({row.task: None for row in rows if row.verdict in verdicts} for verdicts in (
        ("undecided", "worse"), (None,)))
    if not open_ and not untested:
        return "No link is broken: on every task, no link lost more than the margin."
    sentences = ["No link is shown to be broken."]
    if open_:
        sentences.append(f"A loss beyond the margin is not ruled out on {', '.join(map(task_title, open_))}; ask more "
                         "items.")
    if untested:
        sentences.append(f"Not tested: {', '.join(map(task_title, untested))}, whose metric has a unit of its own; "
                         f"give a margin in it (--margin {next(iter(untested))}=VALUE).")
    return " ".join(sentences)
