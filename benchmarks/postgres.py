"""Writes a ledger on a PostgreSQL server from many processes, and kills the server under them.

    python benchmarks/postgres.py                        32 writers for a minute, then 8 writers and 20 kills
    python benchmarks/postgres.py --writers 4 --seconds 5 --kills 2
    python benchmarks/postgres.py --write                also writes the section of docs/benchmarks.md

The server is started for this, with its disk waited for (fsync). Each writer is a process with an evaluation of its own
and stores batches of 16 responses as fast as it can. It notes each batch once the ledger has acknowledged it. After the
end, every acknowledged batch is read from the ledger and compared; one that is missing or differs is lost. The same is
measured with one writer on a SQLite file, and one on the server, for the cost of the way. A kill is SIGKILL for the
server and all its processes, at a random moment; then the server is started again.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from aftertune.ledger import Ledger
from aftertune.values import Evaluation, ModelIdentity, Response
from document import write_section
from postgres_cases import Server

MODEL = ModelIdentity(source="model", weights="w" * 64, config="c" * 64, tokenizer="t" * 64, architecture="Llama")
#: Responses of a batch: four choices of four items.
BATCH = 16
#: Batches by which a writer may be ahead of what it has noted: the one whose acknowledgement was cut off.
AHEAD = 1


@dataclass(frozen=True, slots=True)
class Load:
    """What writers did. acknowledged: batches; lost: of them; milliseconds: of each batch; errors: last lines."""

    writers: int
    seconds: float
    acknowledged: int
    lost: int
    milliseconds: tuple[float, ...]
    errors: tuple[str, ...]
    kills: int = 0


def responses(writer: int, batch: int) -> dict[int, Response]:
    """What a writer stores as a batch."""
    return {batch * BATCH + k: Response(logprob=-(writer * 1000 + batch * BATCH + k + 1) / 7, greedy=k % 4 == 0)
            for k in range(BATCH)}


def write_batches(place: str, writer: int, seconds: float) -> None:
    """Store batches until the time is over, and print the milliseconds of each once it is acknowledged."""
    id_ = f"e-writer-{writer:03d}"
    with Ledger(place) as ledger:
        ledger.open_evaluation(Evaluation(id=id_, name=id_, model=MODEL, tasks=(), device="cpu", dtype="float32",
                                          engine="packed"), [])
        ledger.acquire(id_)
        print("ready", flush=True)
        end, batch = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            started = time.monotonic()
            ledger.save_batch(id_, batch, responses(writer, batch))
            print(f"{1000 * (time.monotonic() - started):.3f}", flush=True)
            batch += 1
        ledger.release(id_)


def start_writer(place: str, writer: int, seconds: float, folder: Path) -> subprocess.Popen[bytes]:
    """A process that writes; what it says is in files of the folder."""
    words = [sys.executable, __file__, "--writer", str(writer), "--place", place, "--seconds", str(seconds)]
    with (folder / f"{writer}.out").open("wb") as out, (folder / f"{writer}.err").open("wb") as err:
        return subprocess.Popen(words, stdout=out, stderr=err)


def measure(place: str, writers: int, seconds: float, server: Server | None = None, kills: int = 0) -> Load:
    """Run writers, kill the server in between where that is asked for, and look for what is lost."""
    Ledger(place).close()
    with tempfile.TemporaryDirectory(prefix="aftertune-postgres-") as name:
        folder = Path(name)
        processes = [start_writer(place, n, seconds, folder) for n in range(writers)]
        while not all(b"ready" in (folder / f"{n}.out").read_bytes() or p.poll() is not None
                      for n, p in enumerate(processes)):
            time.sleep(0.05)
        draw = random.Random(32)
        for _ in range(kills):
            assert server is not None
            time.sleep(draw.uniform(0.2, 2.0) * seconds / (2 * kills))
            server.kill()
            server.start()
        for process in processes:
            process.wait()
        said = [(folder / f"{n}.out").read_text().split()[1:] for n in range(writers)]
        errors = [(folder / f"{n}.err").read_text().strip().splitlines()[-1][:300]
                  for n, process in enumerate(processes) if process.returncode]
    return Load(writers, seconds, sum(map(len, said)), lost(place, [len(s) for s in said]),
                tuple(float(ms) for s in said for ms in s), tuple(errors), kills)


def lost(place: str, acknowledged: Sequence[int]) -> int:
    """How many acknowledged batches the ledger does not have as they were sent. acknowledged: by writer."""
    missing = 0
    with Ledger(place, create=False) as ledger:
        for writer, count in enumerate(acknowledged):
            stored = ledger.responses(f"e-writer-{writer:03d}")
            missing += sum(any(stored.get(p) != r for p, r in responses(writer, batch).items())
                           for batch in range(count))
            assert len(stored) <= (count + AHEAD) * BATCH, "a batch is stored that nobody sent"
    return missing


def row(what: str, load: Load) -> str:
    """One line of the table."""
    times = sorted(load.milliseconds)
    cuts = statistics.quantiles(times, n=20, method="inclusive") if len(times) > 1 else [0.0] * 19
    return (f"| {what} | {load.writers} | {load.seconds:g} | {load.kills} | {load.acknowledged:,} | "
            f"{load.acknowledged / load.seconds:,.0f} | {statistics.median(times or [0.0]):.1f} | {cuts[18]:.1f} | "
            f"{times[-1] if times else 0:,.0f} | {len(load.errors)} | {load.lost} |")


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and print or write the table. Exit code 1 where a writer failed or a batch is lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--writers", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement")
    parser.add_argument("--kills", type=int, default=20, help="of the server, under 8 writers at most")
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    parser.add_argument("--writer", type=int, help=argparse.SUPPRESS)  # the process of a writer
    parser.add_argument("--place", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.writer is not None:
        write_batches(given.place, given.writer, given.seconds)
        return
    single, load = min(given.seconds, 10.0), os.getloadavg()[0]
    with Server(fast=False) as server, tempfile.TemporaryDirectory(prefix="aftertune-sqlite-") as folder:
        version = server.run("SHOW server_version")[0][0].split()[0]
        loads = {"SQLite file": measure(str(Path(folder) / "ledger.db"), 1, single),
                 "server, one writer": measure(server.database(), 1, single),
                 "server": measure(server.database(), given.writers, given.seconds),
                 "server, killed": measure(server.database(), min(8, given.writers), given.seconds, server,
                                           given.kills)}
    lines = ["| ledger | writers | seconds | kills | batches acknowledged | a second | p50, ms | p95, ms | "
             "slowest, ms | errors | lost |", f"|---|{'---:|' * 10}",
             *(row(what, done) for what, done in loads.items())]
    errors = [error for done in loads.values() for error in done.errors]
    text = "\n".join(lines + (["", f"The first errors: {'; '.join(errors[:3])}."] if errors else []))
    print(text)
    if given.write:
        write_section("PostgreSQL", "## PostgreSQL\n\nWritten by `python benchmarks/postgres.py --write`: processes "
                      f"that store batches of {BATCH} responses as fast as they can, on a PostgreSQL {version} of the "
                      f"same machine ({os.cpu_count()} cores, load {load:.0f} at the start) that waits for its "
                      "disk. A killed server is started again at once; its writers wait and go on, and the slowest "
                      f"batch has that wait in it.\n\n{text}")
    if errors or any(done.lost for done in loads.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
