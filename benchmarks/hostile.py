"""Measures how long the audit of Markdown records takes whose text is made to hurt, at two sizes.

    python benchmarks/hostile.py                      100,000 and 400,000 characters; prints a table

Every record is audited in a process of its own; time and the largest resident memory are those of the process, which
needs about a second and 130 MiB for a record of one line. A refusal of one line counts as read. Linear means that four
times the text takes at most about four times as long.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

HEAD = "| Task | Value |\n|---|---|\n"


def _lines(line: str) -> Callable[[int], str]:
    """A table whose rows are ``line`` with their number in the place of N."""
    return lambda size: HEAD + "".join(line.replace("N", str(i)) + "\n" for i in range(size // (len(line) + 5)))


def _wide(columns: int) -> Callable[[int], str]:
    """A table of models as columns, with as many rows as the size allows."""
    def text(size: int) -> str:
        head = "| Task | " + " | ".join(f"m{i}" for i in range(columns)) + " |\n|" + "---|" * (columns + 1) + "\n"
        row = "| own_N |" + " 50.25 ± 1.2 |" * columns + "\n"
        return head + "".join(row.replace("N", str(i)) for i in range(max(1, size // len(row))))
    return text


def _tables(table: str) -> Callable[[int], str]:
    return lambda size: "".join(table.replace("NN", f"{i:05}") for i in range(size // len(table)))


#: What the record consists of -> its text at a size in characters.
RECORDS: dict[str, Callable[[int], str]] = {
    "rows of one model": _lines("| own_N | 50.25 |"),
    "rows of many models": lambda size: "| Model | Task | Value |\n|---|---|---|\n" + "".join(
        f"| m{i} | piqa | {i % 97}.25 |\n" for i in range(size // 24)),
    "figures that are no k of n": lambda size: "| Model | Task | Value | Stderr |\n|---|---|---|---|\n" + "".join(
        f"| m{i % 40} | hellaswag | {i % 97}.2504{i % 89} | 3.1 |\n" for i in range(size // 40)),
    "strict and flexible matches": lambda size: "| Task | Filter | Metric | Value |\n|---|---|---|---|\n" + "".join(
        f"| own_{i // 2} | {('strict-match', 'flexible-extract')[i % 2]} | exact_match | 0.5 |\n"
        for i in range(size // 55)),
    "rows of means": _lines("| average N | 50.25 |"),
    "a table of 300 columns": _wide(300), "a table of 2,000 columns": _wide(2000),
    "tables of one model": _tables("| Task | Value |\n|---|---|\n| piqa | 0.NN |\n\n"),
    "tables and headings": _tables("# model NN\n\n| Task | Value |\n|---|---|\n| piqa | 0.5 |\n\n"),
    "two tables of many models": lambda size: "\n".join(
        f"# part {part}\n\n| Model | piqa | arc_easy |\n|---|---|---|\n" + "".join(
            f"| m{i + part} | 0.{i:05} | 0.7 |\n" for i in range(size // 60)) for part in (1, 2)),
    "facts and rows": lambda size: "".join(f"- fact {i}: {i}\n" for i in range(size // 40)) + "\n" +
    _lines("| own_N | 50.25 |")(size // 2),
    "numbers of 5,000 digits": _lines("| piqa | " + "9" * 5000 + " |"),
    "n of 18 and of 9 digits": lambda size: "| Model | Task | n | Value | Stderr |\n|---|---|---|---|---|\n" + "".join(
        f"| base m{i % 3} | own_{i} | {10**18 if i % 2 else 2**31 - 1} | {i % 97} | 0.0011 |\n"
        for i in range(size // 45)),
    "a long line": lambda size: HEAD + "| piqa | " + "9" * size + " |\n",
    "lines of emphasis": _lines("a*" * 400), "lines of brackets": _lines("[a](" * 200),
    "cells of marks": _lines("| " + "*_`" * 90 + " | 0.5 |"), "bars": lambda size: "|" * size,
    "lines of bars": lambda size: ("|-" * 60 + "\n") * (size // 121),
    "code blocks": lambda size: "```\n| Task | Value |\n| piqa | 0.5 |\n```\n" * (size // 45),
    "HTML tables": lambda size: ("<table><tr><th>Task</th><th>Value</th></tr><tr><td>piqa</td><td>0.5</td></tr>"
                                 "</table>\n") * (size // 90),
    "one HTML table": lambda size: "<table>" + "<tr><td>piqa</td><td>0.5</td></tr>" * (size // 35) + "</table>\n",
    "nested lists": lambda size: "".join("  " * (i % 60) + "- a: b\n" for i in range(size // 66)),
    "headings": lambda size: "".join(f"{'#' * (1 + i % 6)} mean over {i} seeds\n" for i in range(size // 25))}


def _audit(path: str, results: multiprocessing.Queue[tuple[float, float, str]]) -> None:
    from aftertune.errors import AftertuneError
    from aftertune.exchange import audit

    started = time.process_time()
    try:
        outcome = f"{len(audit(Path(path)).checks):,} scores"
    except AftertuneError as error:
        outcome = " ".join(str(error).replace(path, "").split())[:70]
    results.put((time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, outcome))


def measure(text: str, folder: Path) -> tuple[float, float, str]:
    """CPU seconds, MiB and outcome of the audit of one record."""
    path = folder / "record.md"
    path.write_text(text, encoding="utf-8")
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[tuple[float, float, str]] = context.Queue()
    process = context.Process(target=_audit, args=(str(path), results))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"the audit ended with {process.exitcode}, which is a fault of aftertune; its record: {text[:200]!r}")
    return results.get()


def main(sizes: Sequence[int], only: Sequence[str]) -> None:
    print("| record of | " + " | ".join(f"{s:,}: s | MiB" for s in sizes) + " | result at the larger size |")
    print("|---|" + "---:|" * (2 * len(sizes)) + "---|")
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for title, make in RECORDS.items():
            if only and not any(o in title for o in only):
                continue
            rows = [measure(make(size), Path(folder)) for size in sizes]
            slowest = max(slowest, *(seconds for seconds, _, _ in rows))
            cells = " | ".join(f"{seconds:.1f} | {memory:.0f}" for seconds, memory, _ in rows)
            print(f"| {title} | {cells} | {rows[-1][2]} |", flush=True)
    print(f"\nslowest: {slowest:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 400_000])
    parser.add_argument("--only", nargs="+", default=[])
    given = parser.parse_args()
    main(given.sizes, given.only)
