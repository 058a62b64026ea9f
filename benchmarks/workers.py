"""Measures how much faster several workers run a study than one, in the time outside set-up.

    python benchmarks/workers.py                        1 and 2 workers with one thread each
    python benchmarks/workers.py --workers 1 2 4 --write

The study has one tiny base and fine-tunes of it. Every worker has one thread, so a machine needs as many free cores as
workers. The clock starts when the first cell is given out and stops when the last one ends: starting the workers and
writing the record are set-up. Each number of workers is measured some times, in turns, and the fastest run counts.

The processor time of all workers in that time is shown too. On a machine that others use, seconds say little; the same
processor time for two workers as for one says that two do no more work than one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from aftertune.ledger import Ledger
from aftertune.pipeline import CellChoice, WorkerChoice, run
from aftertune.study import Study
from document import write_section
from eval_cases import CHAT, byte_folder
from tuning_cases import easy_rows, write_rows

SECTION = "several workers"
STUDY = """\
study: workers
margin: 5
dtype: float32
device: cpu
task_source: pack
bases: {{b: {{model: {folder}/base}}}}
tasks: [{{name: arc_easy, sample: 200}}]
matrix: {{base: b, data: rows.jsonl, method: [lora, full], seed: [0, 1, 2, 3], epochs: {epochs}}}
"""


@dataclass(frozen=True, slots=True)
class Taken:
    """seconds: from the first cell's start to the last one's end; processor: seconds of all workers in that time."""

    seconds: float
    processor: float


def processor_seconds() -> float:
    """Of the workers that run now."""
    total = 0.0
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            times = child.cpu_times()
            total += times.user + times.system
    return total


def measure(file: Path, workers: int, turn: int) -> Taken:
    """Run the study with some workers into a new ledger."""
    begun: list[Taken] = []
    ended: list[Taken] = []

    def on_cell(_: str, status: str) -> None:
        (begun if status == "running" else ended).append(Taken(time.monotonic(), processor_seconds()))

    study = Study.load(file)
    place = file.parent / f"{workers}-{turn}"
    with Ledger(f"{place}.db") as ledger:
        run(study, ledger=ledger, out=place, choice=CellChoice(), on_cell=on_cell, workers=WorkerChoice(workers))
    return Taken(ended[-1].seconds - begun[0].seconds, ended[-1].processor - begun[0].processor)


def table(taken: dict[int, Taken]) -> str:
    """The table of the document."""
    first = taken[1].seconds
    rows = [f"| {count} | {value.seconds:.1f} s | {first / value.seconds:.2f} | {first / value.seconds / count:.2f} | "
            f"{value.processor:.1f} s |" for count, value in taken.items()]
    head = ["| workers | seconds | times as fast | of linear | processor time |", "|--:|--:|--:|--:|--:|"]
    return "\n".join([*head, *rows])


def main() -> int:
    """Measure, and print or write the table. Exit code 1 where it is less than 0.85 of linear."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    taken: dict[int, Taken] = {}
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(sys.stderr):
        folder = Path(name)
        byte_folder(folder / "base", template=CHAT, window=4096)
        write_rows(folder / "rows.jsonl", easy_rows())
        file = folder / "study.yaml"
        file.write_text(STUDY.format(folder=folder, epochs=given.epochs), encoding="utf-8")
        for turn in range(given.times):
            for count in dict.fromkeys([1, *given.workers]):
                value = measure(file, count, turn)
                taken[count] = min(value, taken.get(count, value), key=lambda t: t.seconds)
                print(f"turn {turn + 1}, {count} workers: {value.seconds:.1f} s, {value.processor:.1f} s of processor "
                      "time", file=sys.stderr, flush=True)
    text = table(taken)
    print(text)
    if given.write:
        words = " ".join(map(str, given.workers))
        write_section(SECTION, f"## Several workers on one machine\n\nWritten by `python benchmarks/workers.py "
                      f"--workers {words} --write` on {os.cpu_count()} cores: a study of a tiny base and eight "
                      "fine-tunes, one thread for each worker, the time from the start of the first cell to the end of "
                      f"the last one.\n\n{text}")
    return int(any(taken[1].seconds / value.seconds / count < 0.85 for count, value in taken.items()))


if __name__ == "__main__":
    sys.exit(main())
