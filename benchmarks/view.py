"""Measures the pages of `aftertune view` on a large ledger: the first request, and the median of the next ones.

    python benchmarks/view.py                       a ledger of 1,000,000 answers; prints a table
    python benchmarks/view.py --answers 100000      quicker
    python benchmarks/view.py --ledger many.db      one that is there; nothing is written to it
    python benchmarks/view.py --write               also writes the section of docs/benchmarks.md

The ledger is like that of `benchmarks/large.py`: evaluations of 10,000 items of a base and of models made from it, and
one comparison. The server is `aftertune view` in a process of its own; a request is timed from sending it to the last
byte. The first request of each page comes right after the start of a server of its own, so nothing is remembered.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from document import write_section
from large import evaluations, run

#: Title -> address. The first is what a person sees when the view opens.
PAGES = {"overview": "/", "runs": "/runs", "runs, searched": "/runs?q=tuned-9&sort=name",
         "comparison": "/compare/base-0/tuned-1", "items": "/compare/base-0/tuned-1?task=choose&show=lost",
         "one item": "/compare/base-0/tuned-1?task=choose&show=all&item=choose:5000",
         "evaluation": "/entry/base-0"}


@dataclass(frozen=True, slots=True)
class PageTime:
    """Milliseconds. first: after the start of the server; median: of the next requests."""

    first: float
    median: float
    kibibytes: float


@contextmanager
def served(ledger: Path) -> Iterator[str]:
    """The address of a server for the ledger."""
    process = subprocess.Popen([sys.executable, "-m", "aftertune", "view", "--ledger", str(ledger), "--port", "0"],
                               stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        if found is None:
            sys.exit("the server did not start; its message is above")
        address = found[0].rstrip("/")
        while requests.get(f"{address}/static/view.js", timeout=60).status_code != 200:
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait()


def timed(address: str, path: str) -> tuple[float, int]:
    """Milliseconds and bytes of one request."""
    start = time.perf_counter()
    answer = requests.get(address + path, timeout=600)
    took = 1000 * (time.perf_counter() - start)
    if answer.status_code != 200:
        sys.exit(f"{path}: status {answer.status_code}")
    return took, len(answer.content)


def measure(ledger: Path, repeats: int) -> dict[str, PageTime]:
    """Title of a page -> its times."""
    out = {}
    for title, path in PAGES.items():
        with served(ledger) as address:
            first, size = timed(address, path)
            again = [timed(address, path)[0] for _ in range(repeats)]
        out[title] = PageTime(first, statistics.median(again), size / 1024)
        print(f"{title}: {first:.0f} ms first, {out[title].median:.0f} ms again", file=sys.stderr)
    return out


def table(times: dict[str, PageTime]) -> str:
    """The Markdown table."""
    rows = [f"| {title} | {t.first:,.0f} | {t.median:,.0f} | {t.kibibytes:,.0f} |" for title, t in times.items()]
    return "\n".join(["| page | first request, ms | median of the next, ms | KiB |", "|---|---:|---:|---:|", *rows])


def large_ledger(folder: Path, answers: int) -> Path:
    """A ledger of so many answers, with one comparison."""
    from aftertune.ledger import Ledger

    path = folder / "many.db"
    with Ledger(path) as ledger:
        for number, (evaluation, items, given) in enumerate(evaluations(answers, seed=2)):
            ledger.store_evaluation(evaluation, zip(items, given, strict=True))
            print(f"\r{(number + 1) * len(items):,} answers", end="", file=sys.stderr)
    print(file=sys.stderr)
    run(["compare", "base-0", "tuned-1"], path, folder)
    return path


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=1_000_000)
    parser.add_argument("--ledger", type=Path, help="use this ledger of large.py")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    given = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="aftertune-view-") as folder:
        path = given.ledger or large_ledger(Path(folder), given.answers)
        times = measure(path, given.repeats)
    print(table(times))
    if given.write:
        write_section("the view", f"## The view\n\nWritten by `python benchmarks/view.py --write`: the pages of "
                      f"`aftertune view` on a ledger of {given.answers:,} answers.\n\n{table(times)}")


if __name__ == "__main__":
    main()
