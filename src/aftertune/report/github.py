"""Shows the result of a gate where GitHub Actions shows results: annotations of the run, and its summary page.

    gate_annotations(lines)                 ["::error title=hellaswag::a drop of more than 2.00 points is proven (…)"]
    gate_summary(comparison, lines)         a Markdown table for the file that GITHUB_STEP_SUMMARY names

Format: GitHub's documentation, "Workflow commands for GitHub Actions" (setting an error or warning message, adding a
job summary).
"""

from __future__ import annotations

from collections.abc import Sequence

from aftertune.report import documents as md
from aftertune.report import formatting as fmt
from aftertune.report.junit import gate_reason, limit_text
from aftertune.values import Comparison, GateLine

#: What a limit that did not fail is called in the summary.
_OUTCOMES = {"held": "passed", "open": "passed, not proven", "floor": "skipped", "dropped": "failed"}


def gate_annotations(lines: Sequence[GateLine]) -> list[str]:
    """One annotation for each limit that failed (error), or that nothing was proven about (warning)."""
    kinds = [("error" if line.failed else "warning", line) for line in lines if line.failed or line.outcome != "held"]
    return [annotation(kind, f"{line.task}: at most {limit_text(line)} lost", gate_reason(line))
            for kind, line in kinds]


def annotation(kind: str, title: str, message: str) -> str:
    """A workflow command on one line. kind: ``error``, ``warning`` or ``notice``."""
    name = _escaped(title).replace(":", "%3A").replace(",", "%2C")
    return f"::{kind} title={name}::{_escaped(message)}"


def _escaped(text: str) -> str:
    return fmt.visible(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def gate_summary(comparison: Comparison, lines: Sequence[GateLine]) -> str:
    """The gate as Markdown: a heading and a table with one row for each limit."""
    failed = sum(line.failed for line in lines)
    verdict = f"failed for {failed} of {len(lines)} limits" if failed else "passed"
    rows = [[_foreign(line.task), _foreign(limit_text(line)),
             f"**{'failed' if line.failed else _OUTCOMES[line.outcome]}**", _foreign(gate_reason(line))]
            for line in lines]
    models = f"{md.code(fmt.visible(comparison.tuned_name))} against {md.code(fmt.visible(comparison.base_name))}"
    table = md.table(["task", "largest drop allowed", "result", "what is proven"], rows)
    return f"### aftertune gate: {verdict}\n\n{models}\n\n{table}\n\n"


def _foreign(text: str) -> str:
    return md.text(fmt.visible(text))
