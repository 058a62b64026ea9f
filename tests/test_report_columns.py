"""The list of the verdict table's columns: every output shows exactly its part of it, and nothing repeats it."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from rich.console import Console

import aftertune
import report_cases as cases
from aftertune.api.objects import comparison_object
from aftertune.report import (
    as_csv,
    as_json,
    as_latex,
    comparison_export,
    terminal_table,
    verdict_table,
    write_page,
    write_record,
)
from aftertune.report.badges import BADGES, NO_VERDICT, legend
from aftertune.report.columns import COLUMNS, columns, reference
from aftertune.report.results import Results
from aftertune.report.table import row_name
from aftertune.values import VERDICT_LABELS, ComparisonRow, Contrast
from page_outline import Outline

SOURCE, ROOT = Path(aftertune.__file__).parent, Path(__file__).parents[1]
COMPARISON = cases.COMPARISONS[0]
CONTRAST = Contrast(id="r-1", factor="method", left="lora", right="full", base_name="smollm2", settings=(),
                    seeds=(0, 1, 2), evaluations=(("a", "b"),) * 3, rows=cases.CAREFUL_ROWS[:2])
RESULTS = cases.results(cases.EVALUATIONS, cases.TUNINGS, [COMPARISON], contrasts=[CONTRAST])
#: Names of the version before, kept in the rows of ``compare --json``.
ALIASES = {"told", "ci"}
#: Headings that other tables have too: of scores, and of audited differences.
SHARED = {"Task", "Metric", "n", "95 % interval", "Points"}


def page_heads(html: str, label: str) -> tuple[list[str], list[list[str]]]:
    """The headings of the table with this label, and the narrow headings of each row's figures."""
    table = re.search(rf'aria-label="{re.escape(label)}".*?</table>', html, re.S)
    assert table is not None
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table[0].partition("<tbody>")[2], re.S)
    heads = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', table[0])
    return heads, [re.findall(r'data-label="(.*?)"', row) for row in rows]


def markdown_table(text: str, first: str) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the first pipe table whose heading line begins with these."""
    lines = text[text.index(first):].split("\n\n")[0].splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return head, rows


def test_keys_are_unique_and_data_columns_are_fields_of_the_row() -> None:
    keys = [c.key for c in COLUMNS]
    assert len(keys) == len(set(keys))
    stored = {f.name for f in fields(ComparisonRow)}
    assert {c.key for c in columns("json")} - {"label"} <= stored
    assert all(c.says.endswith(".") and c.outputs for c in COLUMNS)
    assert all(c.heading and c.text for c in COLUMNS if {"terminal", "markdown", "page", "seeds"} & set(c.outputs))


@pytest.mark.parametrize("width", [80, 200])
def test_the_terminal_shows_its_columns(width: int) -> None:
    console = Console(width=width, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(terminal_table(COMPARISON, width=width))
    lines = capture.get().splitlines()
    lines = lines[next(at for at, text in enumerate(lines) if COMPARISON.id in text):]
    figures = sorted((c for c in columns("terminal") if not c.name), key=lambda c: c.beside)
    heads = [c.short or c.heading for c in figures if width == 200 or not c.beside]
    assert lines[1].split() == " ".join(heads).split()
    line = verdict_table(COMPARISON)[0]
    at = next(at for at, text in enumerate(lines) if text.split()[:1] == [row_name(line.row)])
    row = " ".join(lines[at:at + 2])  # on a narrow terminal the figures may be below the metric
    assert all(line[c.key] in row for c in figures if width == 200 or not c.beside)


def test_markdown_shows_its_columns() -> None:
    text = write_record(RESULTS, title="t")
    head, rows = markdown_table(text, "| Task | Metric | n | Base |")
    assert head == [c.heading for c in columns("markdown")]
    assert [len(row) for row in rows] == [len(head)] * len(COMPARISON.rows)
    assert rows[0][head.index("Adjusted p")] == verdict_table(COMPARISON)[0]["p_adjusted"] == "0.008"
    over, _ = markdown_table(text, "| Task | Metric | n | lora |")
    assert over == [{"base": "lora", "tuned": "full"}.get(c.key, c.heading) for c in columns("seeds")]


def test_the_page_shows_its_columns() -> None:
    html = write_page(RESULTS, title="t")
    assert Outline.of(html).broken == []
    figures = [c for c in columns("page") if not c.name]
    heads, rows = page_heads(html, "Verdicts of careful against smollm2")
    assert heads == ["Task and metric", *(c.heading for c in figures)]
    assert rows == [[c.narrow or c.heading for c in figures if c.key != "label"]] * len(COMPARISON.rows)
    over, _ = page_heads(html, "full against lora")
    names = {"base": "lora", "tuned": "full"}
    assert over == ["Task and metric", *(names.get(c.key, c.heading) for c in columns("seeds page") if not c.name)]


def test_compare_and_export_have_the_same_keys() -> None:
    keys = [c.key for c in columns("json")]
    compared = json.loads(json.dumps(comparison_object(COMPARISON)))["rows"]
    exported = json.loads(as_json(comparison_export(COMPARISON, "json")))["rows"]
    head, *rows = csv.reader(io.StringIO(as_csv(comparison_export(COMPARISON, "csv"))))
    assert head == keys == [c.key for c in columns("csv")]
    assert [list(row) for row in exported] == [keys] * len(COMPARISON.rows)
    assert [{k: v for k, v in row.items() if k not in ALIASES} for row in compared] == exported
    assert all(row.keys() - exported[0].keys() == ALIASES for row in compared)
    assert [(r["verdict"], r["label"]) for r in exported[:3]] == [("within", "kept")] * 2 + [("undecided", "undecided")]
    assert [(r["told"], r["ci"]) for r in compared] == [(r.told, [r.low, r.high]) for r in COMPARISON.rows]
    assert rows[0][head.index("label")] == "kept"
    assert float(rows[0][head.index("p_adjusted")]) == COMPARISON.rows[0].p_adjusted


def test_latex_shows_its_columns_that_have_values() -> None:
    lines = as_latex(comparison_export(COMPARISON, "latex")).splitlines()
    heads = lines[lines.index(r"\toprule") + 1].removesuffix(r" \\").split(" & ")
    filled = [c.key for c in columns("latex") if any(c.value(r) is not None for r in COMPARISON.rows)]
    assert heads == [key.replace("_", " ") for key in filled]


def test_the_reference_is_the_list() -> None:
    text = (ROOT / "docs" / "columns.md").read_text(encoding="utf-8")
    assert text == reference(), "docs/columns.md is not what the list says now; run `make docs`"


def test_no_other_module_repeats_the_headings() -> None:
    own = {h for c in COLUMNS for h in (c.heading, c.short, c.narrow) if h} - SHARED
    assert len(own) >= 8
    found = []
    for path in SOURCE.rglob("*.py"):
        if path.name != "columns.py":
            body = [n for n in ast.parse(path.read_text(encoding="utf-8")).body
                    if not (isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) in ("__all__", "_HOME"))]
            words = [n.value for part in body for n in ast.walk(part)
                     if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            found += [f"{path.relative_to(SOURCE)}: {word!r}" for word in words if word in own]
    for path in SOURCE.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        found += [f"{path.relative_to(SOURCE)}: {head!r}" for head in own
                  if f">{head}</th>" in text or f'data-label="{head}"' in text]
    assert found == []


def test_a_row_is_built_in_one_place() -> None:
    made = [str(path.relative_to(SOURCE)) for path in sorted(SOURCE.rglob("*.py"))
            if any(isinstance(n, ast.Call) and ast.unparse(n.func) == "ComparisonRow"
                   for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))]
    assert made == ["comparison/rows.py"]


def test_badges_stand_in_one_place() -> None:
    symbols = [b.symbol for b in BADGES.values()]
    assert len({*symbols, NO_VERDICT.symbol}) == 8
    assert legend() == ("▼ lower, ▲ higher, ● within the margin, ◣ worse (below 0), ◢ better (above 0), ◗ not lower, "
                        "◆ undecided")
    assert BADGES.keys() == VERDICT_LABELS.keys()
    texts = {path: path.read_text(encoding="utf-8") for path in SOURCE.rglob("*") if path.suffix in (".py", ".html")}
    # ■ and ◆ are also marks of the loss curve, in views.py; table_cells.py removes the arrows of other people's tables
    assert {path.name for path, text in texts.items() if re.search("[▼▲●◇]", text)} == {"badges.py", "table_cells.py"}
    page = write_page(RESULTS, title="t")
    shown = set(re.findall(r'<span class="badge (\w+)"><span aria-hidden="true">(.)</span>', page))
    assert shown
    assert all(BADGES[verdict].symbol == symbol for verdict, symbol in shown)  # type: ignore[index]
    report = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    assert all(f"| {b.symbol} {VERDICT_LABELS[v]} |" in report for v, b in BADGES.items())


def test_what_a_report_is_made_of_travels_as_one_value() -> None:
    """No function of the report room takes two or more parts of `Results`."""
    parts = {f.name for f in fields(Results)}
    found = [f"{path.relative_to(SOURCE)}: {node.name}" for path in sorted((SOURCE / "report").rglob("*.py"))
             for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)
             if len(parts & {a.arg for a in (*node.args.args, *node.args.kwonlyargs)}) > 1]
    assert found == []
