"""Measures `aftertune view` under load, while a run writes the ledger that it shows.

    python benchmarks/view_load.py                           50 clients for a minute; prints a table
    python benchmarks/view_load.py --clients 5 --seconds 10  a short trial
    python benchmarks/view_load.py --write                   also writes the section of docs/benchmarks.md

The run stores evaluations of 10,000 items batch by batch, as an evaluation does, and computes between the batches for
as long as a model would (--work). It is measured twice for the same time: alone, and with clients who open pages of the
view one after another, with a pause between them as a person makes it (--pause). The two measurements alternate in
rounds (--rounds), so that other work of the machine meets both. A run that stores fewer batches is slower. The view,
the run and the clients are processes of their own; the clients share one.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import requests

from document import write_section
from large import evaluations
from view import PAGES, large_ledger, served

#: Requests that take longer are errors, in seconds.
PATIENCE = 60
#: Batches of the run hold so many responses.
BATCH = 500


@dataclass
class Visits:
    """What the clients saw. times: milliseconds of each answered request; errors: what went wrong."""

    times: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Round:
    """One round. alone, watched: batches that the run stored in a second; visits: of the clients."""

    alone: float
    watched: float
    visits: Visits


def write_batches(path: Path, seconds: float, work: float) -> float:
    """Store batches of an evaluation until the time is over; batches in a second. work: seconds of computing each."""
    from aftertune.ledger import Ledger

    start, stored = 0.0, 0
    with Ledger(path) as ledger:
        for evaluation, items, answers in evaluations(10**9, seed=time.time_ns() % 2**31):
            named = replace(evaluation, id=f"e-{time.time_ns():x}", name=f"load-{time.time_ns():x}", scores=())
            ledger.open_evaluation(named, items)
            ledger.acquire(named.id)
            start = start or time.perf_counter()
            responses = [r for a in answers for r in a.responses]
            for batch, first in enumerate(range(0, len(responses), BATCH)):
                _compute(work)
                ledger.save_batch(named.id, batch, dict(enumerate(responses[first:first + BATCH], first)))
                stored += 1
                if time.perf_counter() - start >= seconds:
                    ledger.release(named.id)
                    return stored / (time.perf_counter() - start)
            ledger.release(named.id)
    raise AssertionError("there are always more evaluations")


def _compute(seconds: float) -> None:
    """Use a processor for so long, as a model does between two batches: a fixed number of steps, not of seconds."""
    total = 0
    for number in range(int(seconds * 2e7)):
        total += number


def run_for(path: Path, seconds: float, work: float) -> subprocess.Popen[str]:
    """Start the run in a process of its own; its output is its batches in a second."""
    return subprocess.Popen([sys.executable, __file__, "--run", str(path), "--seconds", str(seconds), "--work",
                             str(work)], stdout=subprocess.PIPE, text=True)


def rate_of(process: subprocess.Popen[str]) -> float:
    """The batches in a second of a run that ends."""
    text, _ = process.communicate()
    if process.returncode:
        sys.exit("the run failed; its message is above")
    return float(json.loads(text.strip().splitlines()[-1]))


def visit(address: str, over: threading.Event, pause: float, seed: int, visits: Visits) -> None:
    """Open pages as one client until the run is over."""
    choice, paths = random.Random(seed), list(PAGES.values())
    with requests.Session() as session:
        over.wait(choice.random() * pause)
        while not over.is_set():
            path = choice.choice(paths)
            start = time.perf_counter()
            try:
                answer = session.get(address + path, timeout=PATIENCE)
                if answer.status_code != 200:
                    visits.errors.append(f"{path}: status {answer.status_code}")
            except requests.RequestException as error:
                visits.errors.append(f"{path}: {type(error).__name__}")
            else:
                visits.times.append(1000 * (time.perf_counter() - start))
            over.wait(pause * (0.5 + choice.random()))


@contextmanager
def visited(address: str, clients: int, pause: float) -> Iterator[Visits]:
    """Clients who open pages meanwhile."""
    visits, over = Visits(), threading.Event()
    threads = [threading.Thread(target=visit, args=(address, over, pause, seed, visits)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield visits
    finally:
        over.set()
        for thread in threads:
            thread.join()


def one_round(path: Path, given: argparse.Namespace) -> Round:
    """The run alone, then with clients."""
    alone = rate_of(run_for(path, given.seconds, given.work))
    with served(path) as address:
        process = run_for(path, given.seconds, given.work)
        with visited(address, given.clients, given.pause) as visits:
            watched = rate_of(process)
    print(f"alone {alone:.2f} batches/s, with clients {watched:.2f}; {len(visits.times)} pages, "
          f"{len(visits.errors)} errors", file=sys.stderr)
    return Round(alone, watched, visits)


def table(rounds: Sequence[Round], given: argparse.Namespace) -> str:
    """The Markdown table."""
    times = sorted(t for r in rounds for t in r.visits.times)
    errors = [e for r in rounds for e in r.visits.errors]
    slower = [100 * (1 - r.watched / r.alone) for r in rounds]
    cuts = statistics.quantiles(times, n=20, method="inclusive") if len(times) > 1 else times * 19
    pages = [f"{len(times):,}", f"{len(errors):,}", f"{statistics.median(times):,.0f}", f"{cuts[18]:,.0f}",
             f"{times[-1]:,.0f}"] if times else ["0", f"{len(errors):,}", "–", "–", "–"]
    lines = ["| clients | seconds | pages | errors | p50, ms | p95, ms | slowest, ms | run alone, batches/s | "
             "with clients | run slower by, median (range) |", f"|{'---:|' * 10}",
             f"| {given.clients} | {given.seconds * len(rounds):g} | {' | '.join(pages)} | "
             f"{statistics.median(r.alone for r in rounds):.2f} | {statistics.median(r.watched for r in rounds):.2f} | "
             f"{statistics.median(slower):.1f} % ({min(slower):.1f} to {max(slower):.1f} %) |"]
    if errors:
        lines += ["", f"The first errors: {'; '.join(errors[:5])}."]
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and print or write the table. Exit code 1 where a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=1_000_000, help="of the ledger at the start")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pause", type=float, default=5.0, help="seconds between two pages of a client, on average")
    parser.add_argument("--work", type=float, default=0.5, help="seconds, roughly, that the run computes for a batch")
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)  # the process of the run
    given = parser.parse_args(words)
    if given.run is not None:
        print(json.dumps(write_batches(given.run, given.seconds, given.work)))
        return
    with tempfile.TemporaryDirectory(prefix="aftertune-view-load-") as folder:
        path = large_ledger(Path(folder), given.answers)
        rounds = [one_round(path, given) for _ in range(given.rounds)]
    text = table(rounds, given)
    print(text)
    if given.write:
        write_section("the view under load", "## The view under load\n\nWritten by `python benchmarks/view_load.py "
                      f"--write`: `aftertune view` on a ledger of {given.answers:,} answers that a run is writing. "
                      f"Each client opens a page, then waits {given.pause:g} s on average.\n\n{text}")
    if any(r.visits.errors for r in rounds):
        sys.exit(1)


if __name__ == "__main__":
    main()
