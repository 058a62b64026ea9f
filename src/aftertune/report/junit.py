"""A gate in words and in JUnit XML, from its lines alone.

    gate_text(line)       "FAILED  hellaswag: a drop of more than 2.00 points is proven: −14.67 (…)"
    write_junit(lines, title="tuned against base")

JUnit has a test case a limit: failed, passed, or skipped where the base is at the floor and nothing was required.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from aftertune.catalog import is_fraction
from aftertune.report import formatting as fmt
from aftertune.report.table import early_text, items_text
from aftertune.values import GateLine


def gate_text(line: GateLine) -> str:
    """One line of a gate."""
    word = "FAILED" if line.failed else {"held": "passed", "open": "passed", "floor": "skipped"}[line.outcome]
    return f"{word:<8}{fmt.visible(line.task)}: {gate_reason(line)}"


def limit_text(line: GateLine) -> str:
    """The limit with its unit: "2.00 points"."""
    share = is_fraction(line.row.metric)
    return f"{fmt.raw((100 if share else 1) * line.limit, 2)}{' points' if share else ''}"


def gate_reason(line: GateLine) -> str:
    """What is proven, and the figures that it stands on."""
    row, scale = line.row, 100 if is_fraction(line.row.metric) else 1
    figures = (f"{fmt.points(row.delta, scale)}, 95 % interval {fmt.points_interval(row.low, row.high, scale)}, "
               f"n={fmt.count(row.n)}")
    drop = f"a drop of more than {limit_text(line)}"
    if row.stopped_of is not None:
        figures += f"; {early_text(row.n, row.stopped_of)}, the interval is for the full run"
    if line.outcome == "dropped":
        said = f"{drop} {'in the full run ' if row.stopped_of else ''}is proven ({figures})"
    elif line.outcome == "held":
        where = " in the full run" if row.stopped_of else ""
        said = f"proven: no drop of more than {limit_text(line)}{where} ({figures})"
    elif line.outcome == "floor":
        said = f"the base is at the floor: it has nothing to lose here, so this limit guards nothing ({figures})"
    else:
        plan = f"; {items_text(row)}" if items_text(row) else ""
        said = f"neither {drop} nor its absence is proven ({figures}{plan})"
    return said


def write_junit(lines: Sequence[GateLine], *, title: str) -> str:
    """The gate as a JUnit XML document."""
    suite = _suite(title, tests=len(lines), failures=sum(line.failed for line in lines),
                   skipped=sum(line.outcome == "floor" and not line.failed for line in lines), errors=0)
    for line in lines:
        case = _case(suite, f"{line.task}: at most {limit_text(line)} lost")
        if line.failed:
            ElementTree.SubElement(case, "failure", message=_xml(gate_reason(line)), type=line.outcome)
        elif line.outcome == "floor":
            ElementTree.SubElement(case, "skipped", message=_xml(gate_reason(line)))
        else:
            ElementTree.SubElement(case, "system-out").text = _xml(gate_reason(line))
    return _document(suite)


def write_junit_error(tasks: Sequence[str], message: str, *, title: str) -> str:
    """The same where the two could not be compared: every limit is an error."""
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
    """Text that XML 1.0 can hold: control characters, lone surrogates and the two non-characters made visible."""
    return fmt.visible(text).replace("\ufffe", "⟨U+FFFE⟩").replace("\uffff", "⟨U+FFFF⟩")
