"""Kills workers, nodes and the run itself at random moments, and compares what is left with an unbroken run.

    python benchmarks/cluster_faults.py                     30 kills on three workers of this machine
    python benchmarks/cluster_faults.py --on ray            30 kills on a Ray cluster of three nodes on this machine
    python benchmarks/cluster_faults.py --on ray:// --postgres      through the cluster's client port, with a token
                                                            where RAY_AUTH_MODE=token, and a ledger in PostgreSQL
    python benchmarks/cluster_faults.py --kills 5 --write

A round runs a study of tiny random models until it ends, and starts the same command again whenever the run itself was
killed. Rounds are repeated, each with a new ledger, until there were so many kills. At the end of each round every
score (by its bits), every answer and the weights of every fine-tune must be those of one process that nobody disturbed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from aftertune.ledger import Ledger
from aftertune.values import plain
from document import write_section
from eval_cases import CHAT, byte_folder
from postgres_cases import Server
from tuning_cases import easy_rows, write_rows

#: Marks the processes of one harness in their environment.
MARK = "AFTERTUNE_FAULTS"
STUDY = """\
study: faults
margin: 5
dtype: float32
device: cpu
task_source: pack
bases: {b: {model: ./base}}
tasks: [{name: arc_easy, sample: 120}]
matrix: {base: b, data: rows.jsonl, method: [lora, ia3, full], seed: [0, 1], max_steps: 6}
"""


@dataclass(slots=True)
class Figures:
    """What happened. wrong: differences from the unbroken run, one line each."""

    kills: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    starts: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def row(self, where: str) -> str:
        """Its row of the table."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kills.items()))
        return (f"| {where} | {self.kills.total()} ({kinds}) | {self.rounds} | {self.starts} | {len(self.wrong)} | "
                f"{self.seconds:.0f} s |")


def make_study(folder: Path) -> Path:
    """A study of a tiny base and its fine-tunes in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    byte_folder(folder / "base", template=CHAT, window=4096)
    write_rows(folder / "rows.jsonl", easy_rows())
    (folder / "study.yaml").write_text(STUDY, encoding="utf-8")
    return folder / "study.yaml"


def numbers(ledger: Path | str) -> dict[str, Any]:
    """Everything that a run computes: scores by their bits, answers, and what each fine-tune became."""
    with Ledger(ledger) as opened:
        evaluations = opened.evaluations()
        return {"cells": [(c.name, c.status) for c in opened.cells("faults")],
                "scores": {e.name: [(s.key, s.value.hex()) for s in e.scores] for e in evaluations},
                "models": {e.name: e.model.fingerprint for e in evaluations},
                "answers": {e.name: [plain(a) for a in opened.answers(e.id, "arc_easy")] for e in evaluations}}


class StudyProcess:
    """One `aftertune run` of the study. ledger: its file or address; words: further words of the command."""

    def __init__(self, file: Path, ledger: Path | str, words: Sequence[str], environment: dict[str, str]) -> None:
        search = os.pathsep.join(entry for entry in sys.path if entry)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "aftertune", "run", str(file), "--out", "out", *words], cwd=file.parent, text=True,
            env={**os.environ, "AFTERTUNE_LEDGER": str(ledger), "OMP_NUM_THREADS": "1", "PYTHONPATH": search,
                 **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
        self.lines: list[str] = []
        self.working = threading.Event()  # a cell is being worked on
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if "answering" in line or "step" in line:
                self.working.set()
        self.working.set()


def workers_of(mark: str) -> list[psutil.Process]:
    """The worker programs of this harness, wherever they were started."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "aftertune.pipeline.worker" in process.cmdline() and process.environ().get(MARK) == mark:
                found.append(process)
    return found


class Harness:
    """Runs rounds. nodes: the cluster, None for workers of this machine; ledger: gives the address of a new ledger,
    None for files."""

    def __init__(self, folder: Path, kills: int, seed: int, nodes: Any = None, minutes: float = 120.0,
                 ledger: Callable[[], str] | None = None) -> None:
        self.until = time.monotonic() + 60 * minutes
        self.file, self.kills, self.draw, self.nodes = make_study(folder), kills, random.Random(seed), nodes
        self.mark = os.environ[MARK]
        self.figures = Figures()
        self.new_ledger = ledger
        self.words = ["--workers", "3"] if nodes is None else ["--on", nodes.on]
        if nodes is not None and (ledger or "://" in nodes.on):
            self.words += ["--root", str(folder / "root")]
        self.environment = {} if nodes is None else nodes.environment

    def run(self) -> Figures:
        """The unbroken run, then rounds until there were enough kills."""
        started = time.monotonic()
        whole = StudyProcess(self.file, self.file.parent / "whole.db", (), {})
        if whole.process.wait() != 0:
            raise RuntimeError("".join(whole.lines[-5:]))
        expected = numbers(self.file.parent / "whole.db")
        while self.more():
            self.figures.rounds += 1
            for name in ("out", "root"):
                shutil.rmtree(self.file.parent / name, ignore_errors=True)
            ledger = self.new_ledger() if self.new_ledger else self.file.parent / f"round{self.figures.rounds}.db"
            self._round(ledger)
            found = numbers(ledger)
            self.figures.wrong += [f"round {self.figures.rounds}: {key} differ" for key in expected
                                   if found[key] != expected[key]]
        self.figures.seconds = time.monotonic() - started
        return self.figures

    def more(self) -> bool:
        """Whether further kills follow."""
        return self.figures.kills.total() < self.kills and time.monotonic() < self.until

    def _round(self, ledger: Path | str) -> None:
        run = self._start(ledger)
        while True:
            run.working.wait(300)
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.process.wait(self.draw.uniform(0.0, 4.0))
            if run.process.poll() is not None:
                if run.process.returncode == 0:
                    return
                if not any("failed or were skipped" in line for line in run.lines[-3:]) and run.process.returncode > 0:
                    self.figures.wrong.append(f"exit code {run.process.returncode}: {''.join(run.lines[-1:]).strip()}")
                run = self._start(ledger)
            elif self.more():
                self._kill(run)
            else:
                run.process.wait()

    def _start(self, ledger: Path | str) -> StudyProcess:
        self.figures.starts += 1
        return StudyProcess(self.file, ledger, self.words, self.environment)

    def _kill(self, run: StudyProcess) -> None:
        """Kill a worker program, the run, or a node, which is then replaced."""
        kinds = ["worker"] * 6 + ["run"] * 2 + (["node"] * 2 if self.nodes is not None else [])
        kind = self.draw.choice(kinds)
        if kind == "run":
            run.process.kill()
            run.process.wait()
        elif kind == "node":
            self.nodes.replace_one(self.draw)
        else:
            workers = workers_of(self.mark)
            if not workers:
                return
            with contextlib.suppress(psutil.Error):
                self.draw.choice(sorted(workers, key=lambda p: p.pid)).kill()
        self.figures.kills[kind] += 1
        print(f"kill {self.figures.kills.total()}: {kind}", file=sys.stderr, flush=True)
        if kind != "run":
            run.working.clear()


class LocalCluster:
    """A Ray cluster on this machine; each node has one CPU, and agents on ports that are free. client: commands reach
    it through its client port. on, environment: for a command that uses it."""

    def __init__(self, nodes: int = 3, *, client: bool = False) -> None:
        # without these, a node of a busy machine gives up while its agents start; Ray reads them when it is imported
        os.environ.setdefault("RAY_agent_register_timeout_ms", "600000")
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "600")
        from ray.cluster_utils import Cluster

        (port,) = free_ports(1)
        head = {**node_arguments(), "include_dashboard": False, **({"ray_client_server_port": port} if client else {})}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.on = f"ray://127.0.0.1:{port}" if client else "ray"
        self.environment = {} if client else {"RAY_ADDRESS": str(self.cluster.address)}
        self.others = [self.cluster.add_node(wait=False, **node_arguments()) for _ in range(nodes - 1)]

    def replace_one(self, draw: random.Random) -> None:
        """Kill a node other than the head with all that runs on it, and add a new one."""
        lost = self.others.pop(draw.randrange(len(self.others)))
        self.cluster.remove_node(lost, allow_graceful=False)
        self.others.append(self.cluster.add_node(wait=False, **node_arguments()))

    def close(self) -> None:
        """Stop all nodes."""
        self.cluster.shutdown()


def free_ports(count: int) -> list[int]:
    """Ports of this machine that are free now."""
    import socket

    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def node_arguments() -> dict[str, Any]:
    """Of a node: one CPU, a small object store, and ports that are free now."""
    names = ("metrics_agent_port", "runtime_env_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
    return {"num_cpus": 1, "object_store_memory": 80 * 2**20, **dict(zip(names, free_ports(len(names)), strict=True))}


@contextlib.contextmanager
def place(on: str, count: int = 3) -> Iterator[LocalCluster | None]:
    """The cluster of so many nodes, or None for this machine."""
    os.environ[MARK] = f"{os.getpid()}-{time.time_ns()}"
    if not on:
        yield None
        return
    nodes = LocalCluster(count, client=on == "ray://")
    try:
        yield nodes
    finally:
        nodes.close()


def main() -> int:
    """Kill, and print or write the table. Exit code 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--on", default="", choices=["", "ray", "ray://"])
    parser.add_argument("--postgres", action="store_true", help="the ledger is in PostgreSQL, started for this")
    parser.add_argument("--minutes", type=float, default=120.0, help="no kill and no round begins later than this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    given = parser.parse_args()
    where = ("three workers of one machine" if not given.on else "three Ray nodes of one machine"
             f"{', through the client port' * (given.on == 'ray://')}") + ", ledger in PostgreSQL" * given.postgres
    with contextlib.ExitStack() as stack:
        ledger = stack.enter_context(Server()).ledger if given.postgres else None
        folder, nodes = stack.enter_context(tempfile.TemporaryDirectory()), stack.enter_context(place(given.on))
        figures = Harness(Path(folder), given.kills, given.seed, nodes, given.minutes, ledger).run()
    text = ("| where | kills (of what) | rounds | starts of the run | differences | time |\n"
            "|---|---|--:|--:|--:|--:|\n" + figures.row(where))
    print(text, *figures.wrong, sep="\n")
    if given.write:
        name = f"faults on {where}"
        options = (f"{f'--on {given.on} ' if given.on else ''}{'--postgres ' * given.postgres}"
                   f"--minutes {given.minutes:g} --seed {given.seed}")
        write_section(name, f"## Kills of {where}\n\nWritten by `python benchmarks/cluster_faults.py {options} "
                      "--write`: SIGKILL at random moments of a study of a tiny base and six fine-tunes. Differences "
                      "are scores, answers and weights other than those of one process that nobody disturbed.\n\n"
                      f"{text}")
    return int(bool(figures.wrong))


if __name__ == "__main__":
    sys.exit(main())
