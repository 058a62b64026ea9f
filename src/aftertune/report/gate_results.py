"""Describes the result of a gate in sentences, as JUnit XML, and for GitHub Actions.

    gate_text(line)       "FAILED  hellaswag: a drop of more than 2.00 points is proven: −14.67 (…)"
    write_junit(lines, title="tuned against base")
    gate_annotations(lines)                 ["::error title=hellaswag::a drop of more than 2.00 points is proven (…)"]
    gate_summary(comparison, lines)         a Markdown table for the file that GITHUB_STEP_SUMMARY names

JUnit has one test case for each limit: failed, passed, or skipped if no proof is required and nothing is proven (or the
base is at the floor). The form for GitHub is that of its documentation, "Workflow commands for GitHub Actions".
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from aftertune.report import documents as md
from aftertune.report import formatting as fmt
from aftertune.report.headline import headline
from aftertune.report.table import difference_text, early_text, interval_text, items_needed_text, stopped_target
from aftertune.values import Comparison, GateLine

#: What a limit that did not fail is called in the summary.
_OUTCOMES = {"held": "passed", "open": "passed, not proven", "floor": "skipped", "dropped": "failed"}


def gate_text(line: GateLine) -> str:
    """One line of a gate: passed, FAILED or skipped, with the reason."""
    status = "FAILED" if line.failed else {"held": "passed", "open": "passed", "floor": "skipped"}[line.outcome]
    return f"{status:<8}{fmt.visible(line.task)}: {gate_reason(line)}"


def limit_text(line: GateLine) -> str:
    """The limit with its unit: "2.00 points"."""
    limit = difference_text(line.row, line.limit).lstrip("+")
    return f"{limit} points" if line.row.fraction else f"{limit} in the unit of {fmt.visible(line.row.metric)}"


def gate_reason(line: GateLine) -> str:
    """What is proven, with the figures that prove it."""
    row = line.row
    figures = f"{difference_text(row, row.delta)}, 95 % interval {interval_text(row)}, n={fmt.count(row.n)}"
    drop = f"a drop of more than {limit_text(line)}"
    if row.stopped_of is not None:
        figures += f"; {early_text(row.n, row.stopped_of)}, the interval is for {stopped_target(row)}"
    scope = "in the full run " if row.stopped_of and stopped_target(row) == "the full run" else ""
    if line.outcome == "dropped":
        return f"{drop} {scope}is proven ({figures})"
    if line.outcome == "held":
        return f"proven: no drop of more than {limit_text(line)}{scope and ' ' + scope.rstrip()} ({figures})"
    if line.outcome == "floor":
        return f"the base is at the floor: it has nothing to lose, so this limit tests nothing ({figures})"
    needed = f"; {items_needed_text(row)}" if items_needed_text(row) else ""
    return f"neither {drop} nor its absence is proven ({figures}{needed})"


def write_junit(lines: Sequence[GateLine], *, title: str, said: str = "", faults: Sequence[tuple[str, str]] = ()
                ) -> str:
    """The gate as a JUnit XML document. said: the headline; it becomes a property of the test suite. faults: (link of
    a chain, what is wrong with it), each a test case that failed."""
    suite = _suite(title, tests=len(lines) + len(faults), failures=sum(line.failed for line in lines) + len(faults),
                   skipped=sum(_skipped(line) for line in lines), errors=0)
    if said:
        properties = ElementTree.SubElement(suite, "properties")
        ElementTree.SubElement(properties, "property", name="headline", value=_xml(said))
    for link, fault in faults:
        ElementTree.SubElement(_case(suite, f"{link}: files and prompts"), "failure", message=_xml(fault), type="fault")
    for line in lines:
        case = _case(suite, f"{line.task}: at most {limit_text(line)} lost")
        if line.failed:
            ElementTree.SubElement(case, "failure", message=_xml(gate_reason(line)), type=line.outcome)
        elif _skipped(line):
            ElementTree.SubElement(case, "skipped", message=_xml(gate_reason(line)))
        else:
            ElementTree.SubElement(case, "system-out").text = _xml(gate_reason(line))
    return _document(suite)


def _skipped(line: GateLine) -> bool:
    """True for a limit that did not fail although its test showed nothing."""
    return not line.failed and line.outcome in ("floor", "open")


def write_junit_error(tasks: Sequence[str], message: str, *, title: str) -> str:
    """The document for two evaluations that could not be compared: every limit is an error."""
    suite = _suite(title, tests=len(tasks), failures=0, skipped=0, errors=len(tasks))
    for task in tasks:
        ElementTree.SubElement(_case(suite, task), "error", message=_xml(message), type="not comparable")
    return _document(suite)


def _suite(title: str, **counts: int) -> ElementTree.Element:
    return ElementTree.Element("testsuite", {"name": f"aftertune gate: {_xml(title)}",
                                             **{k: str(v) for k, v in counts.items()}})


def _case(suite: ElementTree.Element, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname="aftertune.gate", name=_xml(name))


def _document(suite: ElementTree.Element) -> str:
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _xml(text: str) -> str:
    """Text that is valid in XML 1.0: control characters, lone surrogates and the two non-characters made visible."""
    return fmt.visible(text).replace("\ufffe", "⟨U+FFFE⟩").replace("\uffff", "⟨U+FFFF⟩")


# --- GitHub Actions ---
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
    """The gate as Markdown: a heading, the headline, and a table with one row for each limit."""
    failed = sum(line.failed for line in lines)
    verdict = f"failed for {failed} of {len(lines)} limits" if failed else "passed"
    rows = [[_foreign(line.task), _foreign(limit_text(line)),
             f"**{'failed' if line.failed else _OUTCOMES[line.outcome]}**", _foreign(gate_reason(line))]
            for line in lines]
    models = f"{md.code(fmt.visible(comparison.tuned_name))} against {md.code(fmt.visible(comparison.base_name))}"
    table = md.table(["task", "largest drop allowed", "result", "what is proven"], rows)
    said = md.text(" ".join(headline(comparison).sentences))
    return f"### aftertune gate: {verdict}\n\n{said}\n\n{models}\n\n{table}\n\n"


def _foreign(text: str) -> str:
    return md.text(fmt.visible(text))
