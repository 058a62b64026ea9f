"""Interrupts every kind of work at random moments, and checks that nothing is lost and the results are the same.

    python benchmarks/soak.py                               everything, in 90 minutes; --write: to docs/benchmarks.md
    python benchmarks/soak.py --only evaluation --kills 200 --seed 3
    python benchmarks/soak.py --scale 0.05                  a twentieth of everything

Each part runs commands of aftertune (`aftertune.cli.main`, in processes that are forked after the imports) on tiny
models and tasks, and interrupts them:

    evaluation, tuning, rollback, check-merge, soften, run, import, migration, record, page, bundle
                     SIGKILL, half of them at a random time, half before, in or after a random system call that changes
                     a file (write, fsync, rename, unlink, ...)
    signals          SIGTERM and SIGINT, some of them twice, in an evaluation, a tuning and a study
    stop             SIGSTOP; a second process with the same command, on this host and on another one, with --take-over
    shared           three processes of one evaluation; those that are killed are replaced by others, which join
    writers          eight processes with one ledger, some of them killed and started again
    full             a full disk at a random moment of an evaluation, a tuning, a study, a page, a bundle and a softened
                     model: a small tmpfs where this process may mount one, else failing system calls
    clock            jumps of the clock by up to 30 days (libfaketime), with kills; a lease that ends after its time

After each kill everything that was acknowledged, by the ledger or by a sealed checkpoint, must be there, and the same
command must go on at once. At the end ledger, weights and documents must be those of an undisturbed run, byte for byte
except for times and speeds, without a file more. The table says what was done; the exit code is 1 if anything differs.
A place where something differs is kept in ``--work``.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import soak_child
from aftertune.ledger.faults import LOCK_TIMEOUT
from document import read_section, write_section
from soak_child import AFTER, BEFORE, FULL, TORN, Child, Fault, message, one_line, other_host
from soak_content import content, differences, lost
from soak_jobs import Job, make_jobs, writers

FAKETIME = [f"/usr/lib/{machine}-linux-gnu/faketime/libfaketime.so.1" for machine in ("x86_64", "aarch64")]
#: Exit codes.
RESOURCES, STORAGE, STOPPED = 4, 5, 130


@dataclass(slots=True)
class Figures:
    """What one part did. interrupted: kills, signals, full disks or jumps; rounds: results compared with those of an
    undisturbed run; acknowledged: batches, steps, checkpoints and results that were said to be stored; wrong: what
    differed, in words."""

    part: str
    seed: int = 0
    interrupted: int = 0
    rounds: int = 0
    acknowledged: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Soak:
    """The state of a soak: where it works, its random numbers, and what undisturbed runs gave."""

    def __init__(self, work: Path) -> None:
        self.work, self.place = work, work / "place"
        self.place.mkdir(parents=True)
        self.jobs = make_jobs(work, self.place)
        self.whole: dict[str, tuple[Any, float, int]] = {}
        self.faults = hasattr(ctypes.CDLL(None), "soak_arm")
        self.figures = Figures("")

    def begin(self, part: str, total: int, seed: int) -> None:
        """Start a part of ``total`` interruptions; each part has its own random numbers."""
        self.chance = random.Random(f"{part} {seed}")
        self.figures, self.total, self._begun, self._told = Figures(part, seed), total, time.monotonic(), 0.0

    def undisturbed(self, job: Job) -> tuple[Any, float, int]:
        """Content, seconds and system calls of an undisturbed run. A command that is not forked gives the same."""
        if job.name not in self.whole:
            child = self.start(job, fresh=True)
            assert child.wait() == 0, f"{job.name}: {child.errors()[-2000:]}"
            seconds, calls = time.monotonic() - child.started, child.calls()
            forked = content(self.place)
            job.reset(self.place)
            own = {**os.environ, "AFTERTUNE_LEDGER": str(self.place / "ledger.db"), "LD_PRELOAD": ""}
            code = "import sys; sys.argv[0] = 'aftertune'; from aftertune.cli import main; main()"
            subprocess.run([sys.executable, "-c", code, *job.words], cwd=self.place, env=own, check=True,
                           capture_output=True)
            self.whole[job.name] = forked, seconds, calls
            unlike = list(differences(forked, content(self.place)))
            if unlike:
                self.wrong(f"two undisturbed runs of `{job.name}` differ: {unlike[:8]}")
        return self.whole[job.name]

    def start(self, job: Job, *, fresh: bool = False, **settings: Any) -> Child:
        """Start the job's command. fresh: in a new place."""
        if fresh:
            job.reset(self.place)
        return Child(self.place, *job.words, **settings)

    def interrupted(self) -> None:
        """Count an interruption, and show how far the part is."""
        figures, now = self.figures, time.monotonic()
        figures.interrupted += 1
        if now - self._told > 5 or figures.interrupted == self.total:
            self._told = now
            left = (now - self._begun) / figures.interrupted * (self.total - figures.interrupted)
            print(f"{figures.part}: {figures.interrupted} of {self.total}, {figures.rounds} results compared, "
                  f"{len(figures.wrong)} wrong, about {left / 60:.0f} min left", file=sys.stderr, flush=True)

    def turns(self, number: int, *names: str) -> Iterator[Job]:
        """These jobs in turn, each in a new place, until there are ``number`` interruptions."""
        jobs = [self.jobs[name] for name in names]
        for job in jobs:
            self.undisturbed(job)
        while self.figures.interrupted < number:
            job = jobs[self.figures.rounds % len(jobs)]
            job.reset(self.place)
            yield job

    def wrong(self, text: str) -> None:
        """Note what is wrong, and keep the place."""
        self.figures.wrong.append(text)
        kept = self.work / f"wrong-{self.figures.part}-{len(self.figures.wrong)}"
        if len(self.figures.wrong) <= 20:
            shutil.copytree(self.place, kept, dirs_exist_ok=True)
            (kept / "wrong.txt").write_text(f"{text}\n", encoding="utf-8")
        print(f"{self.figures.part}: WRONG: {text[:1500]} (kept in {kept})", file=sys.stderr, flush=True)

    def check_stored(self, children: Sequence[Child]) -> None:
        """Everything that the children acknowledged is there, and no batch was computed twice; an import is read again.
        """
        acks = [ack for child in children for ack in child.acknowledged()]
        self.figures.acknowledged += sum("calls" not in a for a in children[-1].acknowledged())
        gone = lost(self.place, acks)
        if gone:
            self.wrong(f"acknowledged, but not there: {gone[:4]}")
        seen: set[tuple[str, int]] = set()
        for child in children:
            batch = {(a["evaluation"], p) for a in child.acknowledged() if "batch" in a for p, _, _ in a["responses"]}
            if batch & seen and child.words[0] != "import":
                self.wrong(f"{len(batch & seen)} responses were computed again")
            seen |= batch

    def finish(self, job: Job, children: Sequence[Child]) -> None:
        """The same command works at once, and gives what an undisturbed run gives."""
        before = [step for child in children for step in _steps(child)]
        last = self.start(job)
        if last.wait() != 0:
            self.wrong(f"`{job.name}` ends with {last.code} afterwards: {message(last)}")
            return
        self.check_stored([*children, last])
        sealed = [_step_of(a["checkpoint"]) for child in children for a in child.acknowledged() if "checkpoint" in a]
        steps = _steps(last)
        if job.name.startswith("tune") and sealed and steps and min(steps) <= max(sealed):
            self.wrong(f"`{job.name}` does step {min(steps)} again, but {max(sealed)} was sealed (steps {before})")
        self.compare(job)

    def compare(self, job: Job) -> None:
        """The place has the content of an undisturbed run."""
        expected = self.undisturbed_content(job)
        self.figures.rounds += 1
        unlike = list(differences(expected, content(self.place)))
        if unlike:
            self.wrong(f"`{job.name}` is not as undisturbed: {unlike[:6]}")

    def undisturbed_content(self, job: Job) -> Any:
        """What `undisturbed` found before; it has to be known, because finding it clears the place."""
        return self.whole[job.name][0]

    def fault(self, job: Job, *, again: bool) -> Fault:
        """A SIGKILL at a random system call. again: of a command that goes on."""
        calls = self.undisturbed(job)[2] if job.name in self.whole else 0
        return Fault(self.chance.choice((BEFORE, AFTER, TORN)),
                     self.chance.randint(1, max(calls // (3 if again else 1), 1)))


def _steps(child: Child) -> list[int]:
    return [int(a["step"]) for a in child.acknowledged() if "step" in a]


def _step_of(checkpoint: str) -> int:
    return int(checkpoint.rpartition("-")[2])


# --- The parts ---


def killed(soak: Soak, names: Sequence[str], kills: int) -> None:
    """SIGKILL at random moments, several to a result."""
    for job in soak.turns(kills, *names):
        _, seconds, _ = soak.whole[job.name]
        children: list[Child] = []
        for _ in range(min(soak.chance.randint(1, 9), kills - soak.figures.interrupted)):
            again = bool(children)
            if soak.faults and soak.chance.random() < 0.5:
                child = soak.start(job, fault=soak.fault(job, again=again))
                child.wait()
            else:
                child = soak.start(job)
                time.sleep(soak.chance.uniform(0, seconds))
                child.kill()
            children.append(child)
            if child.code == -signal.SIGKILL:
                soak.interrupted()
            elif child.code != 0:
                soak.wrong(f"`{job.name}` ended with {child.code} before the kill: {message(child)}")
            soak.check_stored(children)
            if child.code != -signal.SIGKILL:
                break
        soak.finish(job, children)


def signals(soak: Soak, number: int) -> None:
    """SIGTERM and SIGINT at random moments, some of them twice within 50 ms."""
    late = 0.0
    for job in soak.turns(number, "eval", "tune lora", "run", "eval until decided", "tune full"):
        _, seconds, _ = soak.whole[job.name]
        children: list[Child] = []
        for _ in range(min(soak.chance.randint(1, 4), number - soak.figures.interrupted)):
            child = soak.start(job)
            time.sleep(soak.chance.uniform(0.05, seconds))
            kind, sent = soak.chance.choice((signal.SIGTERM, signal.SIGINT)), time.monotonic()
            child.send(kind)
            if soak.chance.random() < 0.4:
                time.sleep(soak.chance.uniform(0, 0.05))
                child.send(kind)
            child.wait()
            late = max(late, time.monotonic() - sent)
            after = sum(ack["at"] > sent for ack in child.acknowledged())
            if after > 9:  # in its last step a tuning ends
                soak.wrong(f"`{job.name}` stored {after} things after {kind.name}")
            children.append(child)
            soak.interrupted()
            if child.code not in (0, STOPPED):
                soak.wrong(f"`{job.name}` ended with {child.code} after {kind.name}: {message(child)}")
            elif child.code == STOPPED and one_line(child):
                soak.wrong(f"`{job.name}` after {kind.name}: {one_line(child)}")
            soak.check_stored(children)
            if child.code == 0:
                break
        soak.finish(job, children)
    soak.figures.notes.append(f"the longest time from a signal to the end was {late:.1f} s")


def stopped(soak: Soak, number: int) -> None:
    """SIGSTOP, while others run the same command: one of this host, and one of another host that takes over."""
    jobs = [soak.jobs[name] for name in ("eval", "tune lora", "run")]
    for job in jobs:
        soak.undisturbed(job)
    foreign = os.geteuid() == 0
    if not foreign:
        soak.figures.notes.append("no take-over from another host: only root can have another host name")
    locked = 0
    for turn in range(number):
        job = jobs[turn % len(jobs)]
        first = soak.start(job, fresh=True)
        deadline = time.monotonic() + 300
        while not any("batch" in a or "step" in a for a in first.acknowledged()) and first.poll() is None:
            assert time.monotonic() < deadline, message(first)
            time.sleep(0.005)
        time.sleep(soak.chance.uniform(0, 0.1))
        first.send(signal.SIGSTOP)
        held = first.poll() is None
        second = soak.start(job)
        if held and second.wait() == STORAGE and "kept the ledger locked" in message(second):
            held, locked = False, locked + 1  # it stopped in the middle of a transaction, which is waited for
        if held and second.wait() not in (RESOURCES, STORAGE, 0):
            soak.wrong(f"`{job.name}` beside a stopped one: {message(second)}")
        elif held and second.code != 0 and (one_line(second) or f"{first.pid} on " not in message(second)):
            soak.wrong(f"`{job.name}` beside a stopped one: {one_line(second) or message(second)}")
        others = [second]
        if foreign and held and job.name == "eval":
            others += _taken_over(soak, job)
        first.send(signal.SIGCONT)
        if first.wait() not in (0, RESOURCES):
            soak.wrong(f"`{job.name}` after SIGCONT: {message(first)}")
        soak.interrupted()
        for other in others:
            other.wait()
        last = soak.start(job)
        if last.wait() != 0:
            soak.wrong(f"`{job.name}` ends with {last.code} afterwards: {message(last)}")
        soak.compare(job)
    if locked:
        soak.figures.notes.append(f"{locked} of {number} stopped in a transaction, for which others wait "
                                  f"{LOCK_TIMEOUT:g} s")


def _taken_over(soak: Soak, job: Job) -> list[Child]:
    """The command on another host: refused, and with --take-over done."""
    refused = soak.start(job, before=other_host)
    if refused.wait() == 0 or "--take-over" not in message(refused):
        soak.wrong(f"`{job.name}` on another host is not refused: {refused.code}, {message(refused)}")
    taking = Child(soak.place, *job.words, "--take-over", before=other_host)
    if taking.wait() != 0:
        soak.wrong(f"`{job.name} --take-over` ends with {taking.code}: {message(taking)}")
    return [refused, taking]


def shared(soak: Soak, kills: int) -> None:
    """Three processes share an evaluation, also one that stops early; some are killed, and others join."""
    for job in soak.turns(kills, "eval shared", "eval shared", "eval until decided shared"):
        seconds = soak.whole[job.name][1]
        done: list[Child] = []
        running = [soak.start(job) for _ in range(3)]
        goal = min(soak.chance.randint(2, 8), kills - soak.figures.interrupted)
        while running:
            time.sleep(soak.chance.uniform(0, seconds) if goal else 0.02)
            done += [child for child in running if child.poll() is not None]
            running = [child for child in running if child.code is None]
            if goal and running:
                victim = running.pop(soak.chance.randrange(len(running)))
                if victim.kill():
                    goal -= 1
                    soak.interrupted()
                    running.append(soak.start(job))
                done.append(victim)
        for child in done:
            if child.code not in (0, -signal.SIGKILL):
                soak.wrong(f"`{job.name}`: one of three ended with {child.code}: {message(child)}")
        soak.check_stored(done)
        soak.figures.acknowledged += sum("calls" not in a for child in done[:-1] for a in child.acknowledged())
        soak.compare(job)


def several(soak: Soak, kills: int) -> None:
    """Eight processes write into one ledger, and some are killed and started again."""
    job = soak.jobs["eval"]
    commands = writers(job, 8)
    job.reset(soak.place)
    for words in commands:
        assert Child(soak.place, *words).wait() == 0
    expected = content(soak.place)
    while soak.figures.interrupted < kills:
        job.reset(soak.place)
        done: list[Child] = []
        running = [Child(soak.place, *words) for words in (*commands, *commands[:2])]  # two commands run twice
        goal = min(8, kills - soak.figures.interrupted)
        while running:
            time.sleep(soak.chance.uniform(0, 0.6) if goal else 0.02)
            done += [child for child in running if child.poll() is not None]
            running = [child for child in running if child.code is None]
            if goal and running:
                victim = running.pop(soak.chance.randrange(len(running)))
                if victim.kill():
                    goal -= 1
                    soak.interrupted()
                    running.append(Child(soak.place, *victim.words))
                done.append(victim)
        for child in done:
            refused = child.code == RESOURCES and child.words in commands[:2] and "is in use by" in message(child)
            if child.code not in (0, -signal.SIGKILL) and not refused:
                soak.wrong(f"one of eight ended with {child.code}: {message(child)}")
        for words in commands[:2]:  # the one that was killed may be the one that was not refused
            assert Child(soak.place, *words).wait() == 0
        gone = lost(soak.place, [a for child in done for a in child.acknowledged()])
        soak.figures.acknowledged += sum(len(child.acknowledged()) for child in done)
        unlike = [*gone, *differences(expected, content(soak.place))]
        soak.figures.rounds += 1
        if unlike:
            soak.wrong(f"eight at once are not as one after another: {unlike[:6]}")


def full(soak: Soak, number: int) -> None:
    """A full disk at a random moment, then room again: the same command goes on, and its result is the same."""
    jobs = [soak.jobs[name] for name in ("eval", "tune lora", "bundle", "tune full", "page", "run", "tune early",
                                            "soften", "record")]
    for job in jobs:
        soak.undisturbed(job)
    reached = 0
    with _small_disk(soak) as disk:
        if disk is None:
            soak.figures.notes.append("the full disk was simulated in system calls: this process may not mount")
        needed = {job.name: _needed(job, disk) for job in jobs} if disk else {}
        for job in soak.turns(number, *(job.name for job in jobs)):
            _, _, calls = soak.whole[job.name]
            if disk is not None and soak.chance.random() < 0.6:
                room = soak.chance.randint(0, needed[job.name] // 4096) * 4096
                ballast = disk / "ballast"
                with ballast.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, max(shutil.disk_usage(disk).free - room, 1))
                child = soak.start(job)
                child.wait()
                ballast.unlink()
                how = f"with {room // 1024} KiB"
            else:
                at = soak.chance.randint(1, max(calls, 1))
                child = soak.start(job, fault=Fault(FULL, at))
                child.wait()
                how = f"full from call {at} on"
            soak.interrupted()
            reached += child.code == STORAGE
            if child.code not in (0, STORAGE) or (child.code and one_line(child)):
                soak.wrong(f"`{job.name}` {how}: {one_line(child) or message(child)}")
            soak.check_stored([child])
            soak.finish(job, [child])
    soak.figures.notes.append(f"{reached} of {number} commands ended for want of space, the others had just enough")


@contextmanager
def _small_disk(soak: Soak) -> Iterator[Path | None]:
    """A tmpfs in the place; None where this process may not mount."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(soak.place)]
    soak.place.mkdir(exist_ok=True)
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield soak.place
    finally:
        subprocess.run(["umount", "-l", str(soak.place)], check=False)


def _needed(job: Job, disk: Path) -> int:
    """Bytes that the job needs at most beyond what it starts with."""
    job.reset(disk)
    free = shutil.disk_usage(disk).free
    least, child = free, Child(disk, *job.words)
    while child.poll() is None:
        least = min(least, shutil.disk_usage(disk).free)
        time.sleep(0.002)
    return free - min(least, shutil.disk_usage(disk).free)


def clock(soak: Soak, number: int) -> None:
    """Jumps of the clock, forwards and back, with kills; the lease of a dead process of another host ends after its
    time."""
    file = Path(os.environ["FAKETIME_TIMESTAMP_FILE"])
    for job in soak.turns(number, "eval", "tune lora", "run", "tune full", "eval until decided"):
        children = []
        for last in (False, True):
            child = soak.start(job)
            until = time.monotonic() + soak.chance.uniform(0.2, soak.whole[job.name][1])
            while child.poll() is None and (last or time.monotonic() < until):
                file.write_text(f"{soak.chance.randint(-30 * 86_400, 30 * 86_400):+d}\n", encoding="utf-8")
                soak.interrupted()
                time.sleep(soak.chance.uniform(0.05, 0.5))
            if not last:
                child.kill()
            children.append(child)
            if child.wait() not in (0, -signal.SIGKILL):
                soak.wrong(f"`{job.name}` with a jumping clock: {message(child)}")
            soak.check_stored(children)
        file.write_text("+0\n", encoding="utf-8")
        soak.finish(job, children)
    if os.geteuid() == 0:
        _lease_time(soak, file)


def _lease_time(soak: Soak, file: Path) -> None:
    """A lease of another host whose process was killed: refused for 15 minutes, then free."""
    job = soak.jobs["eval"]
    first = soak.start(job, fresh=True, before=other_host)
    while not any("batch" in a for a in first.acknowledged()) and first.poll() is None:
        time.sleep(0.005)
    if not first.kill():
        return
    soak.interrupted()
    for seconds, codes in ((0, (RESOURCES,)), (14 * 60, (RESOURCES,)), (16 * 60, (0,))):
        file.write_text(f"+{seconds}\n", encoding="utf-8")
        child = soak.start(job)
        if child.wait() not in codes:
            soak.wrong(f"{seconds} s after the last heartbeat of another host: {child.code}, {message(child)}")
    file.write_text("+0\n", encoding="utf-8")
    soak.compare(job)


#: Part -> (interruptions at scale 1, what does them).
PARTS: dict[str, tuple[int, Callable[[Soak, int], None]]] = {
    "evaluation": (200, lambda soak, n: killed(soak, ["eval", "eval", "eval until decided"], n)),
    "tuning": (60, lambda soak, n: killed(soak, ["tune kept", "tune lora", "tune full", "tune early"], n)),
    "rollback": (20, lambda soak, n: killed(soak, ["rollback"], n)),
    "check-merge": (10, lambda soak, n: killed(soak, ["check-merge"], n)),
    "soften": (10, lambda soak, n: killed(soak, ["soften"], n)),
    "run": (40, lambda soak, n: killed(soak, ["run"], n)),
    "import": (20, lambda soak, n: killed(soak, ["import"], n)),
    "migration": (20, lambda soak, n: killed(soak, ["migration"], n)),
    "record": (20, lambda soak, n: killed(soak, ["record"], n)),
    "page": (20, lambda soak, n: killed(soak, ["page"], n)),
    "bundle": (10, lambda soak, n: killed(soak, ["bundle"], n)),
    "signals": (40, signals),
    "stop": (6, stopped),
    "shared": (30, shared),
    "writers": (40, several),
    "full": (60, full),
    "clock": (300, clock),
}


# --- The command ---


def main(words: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(words)
    parts = list(PARTS) if options.only is None else [part for part in options.only.split(",") if part]
    if unknown := set(parts) - set(PARTS):
        raise SystemExit(f"--only {', '.join(sorted(unknown))}: the parts are {', '.join(PARTS)}")
    if "SOAK_WORK" not in os.environ:
        _restart(options.work, [part for part in parts if part != "clock"] or parts)
    work = Path(os.environ["SOAK_WORK"])
    here = [p for p in parts if p != "clock" or "FAKETIME_TIMESTAMP_FILE" in os.environ]
    done = _stored(options.figures)
    for figures in _soak(work, here, options):
        done[figures.part] = figures
        _store(options.figures, done)
    if here != parts:
        done["clock"] = _clock_figures(work, options)
        _store(options.figures, done)
    measured = [done[part] for part in PARTS if part in done]
    print(_table(measured))
    if options.write:
        write_section("soak", _table(measured, read_section("soak")))
    wrong = sum(len(figures.wrong) for part, figures in done.items() if part in parts)
    if not wrong:
        shutil.rmtree(work)
    return int(wrong > 0)


def _stored(file: Path | None) -> dict[str, Figures]:
    """The figures of a file by part; empty if there is none."""
    if file is None or not file.exists():
        return {}
    return {value["part"]: Figures(**value) for value in json.loads(file.read_text(encoding="utf-8"))}


def _store(file: Path | None, done: Mapping[str, Figures]) -> None:
    """Write the figures to a file, if there is one."""
    if file is not None:
        file.write_text(json.dumps([asdict(f) for f in done.values()], indent=1), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", help=f"parts, separated by commas: {', '.join(PARTS)}; \"\" for the table alone")
    default = ", ".join(f"{part} {number}" for part, (number, _) in PARTS.items())
    parser.add_argument("--kills", type=int, help=f"interruptions of each part; default: {default}")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the default interruptions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder to work in; default: a temporary one")
    parser.add_argument("--write", action="store_true", help="write the table to docs/benchmarks.md")
    parser.add_argument("--figures", type=Path, help="file that collects the figures of parts that run one by one")
    return parser


def _restart(work: Path | None, parts: Sequence[str]) -> None:
    """Start this program again, with the faults preloaded, and libfaketime for the clock."""
    work = Path(tempfile.mkdtemp(prefix="soak-", dir=work))
    for name in ("logs", "cache", "datasets"):
        (work / name).mkdir()
    libraries = [str(library)] if (library := soak_child.build(work)) else []
    settings = {"SOAK_WORK": str(work), "SOAK_LOGS": str(work / "logs"), "AFTERTUNE_CACHE": str(work / "cache"),
                "HF_DATASETS_CACHE": str(work / "datasets"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
                "TOKENIZERS_PARALLELISM": "false"}
    if list(parts) == ["clock"]:
        fake = next((path for path in FAKETIME if Path(path).exists()), None)
        if fake is None:
            raise SystemExit("the part clock needs libfaketime (Debian: apt-get install libfaketime); install it, or "
                             f"leave it out: --only {','.join(p for p in PARTS if p != 'clock')}")
        (work / "clock").write_text("+0\n", encoding="utf-8")
        libraries.append(fake)
        settings |= {"FAKETIME_TIMESTAMP_FILE": str(work / "clock"), "FAKETIME_NO_CACHE": "1",
                     "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}
    os.execve(sys.executable, [sys.executable, *sys.argv],
              {**os.environ, **settings, "LD_PRELOAD": " ".join(libraries)})


def _soak(work: Path, parts: Sequence[str], options: argparse.Namespace) -> Iterator[Figures]:
    """Run parts in this process; the figures of each, when it is done."""
    if not parts:
        return
    soak_child.preload()
    soak = Soak(work)
    for part in parts:
        number, run = PARTS[part]
        number = options.kills or max(1, round(number * options.scale))
        soak.begin(part, number, options.seed)
        run(soak, number)
        soak.figures.seconds = time.monotonic() - soak._begun
        if not soak.faults:
            soak.figures.notes.append("no C compiler: interrupted at random times only")
        yield soak.figures


def _clock_figures(work: Path, options: argparse.Namespace) -> Figures:
    """The part clock, in a process of its own with libfaketime."""
    file = work / "clock.json"  # not that of --figures, which may hold the figures of an earlier run
    variables = {k: v for k, v in os.environ.items() if k not in ("SOAK_WORK", "LD_PRELOAD")}
    command = [sys.executable, __file__, "--only", "clock", "--figures", str(file), "--seed", str(options.seed),
               "--scale", str(options.scale), "--work", str(work)]
    if options.kills:
        command += ["--kills", str(options.kills)]
    subprocess.run(command, env=variables, check=False, stdout=subprocess.DEVNULL)
    failed = Figures("clock", wrong=["the part did not end; its messages are above"])
    return _stored(file).get("clock", failed)


def _table(figures: Sequence[Figures], before: str = "") -> str:
    """The figures as a section of docs/benchmarks.md. before: the section as it is; other parts keep their lines."""
    rows = {f.part: [f"| {f.part} | {f.interrupted} | {f.rounds} | {f.acknowledged:,} | {len(f.wrong)} | {f.seed} "
                     f"| {f.seconds:.0f} |"] for f in figures}
    notes = {f.part: [f"- {f.part}: {note}." for note in f.notes] for f in figures}
    for part in PARTS.keys() - rows.keys():
        lines = before.splitlines()
        rows[part] = [line for line in lines if line.startswith(f"| {part} |")]
        notes[part] = [line for line in lines if line.startswith(f"- {part}: ")]
    return "\n".join([
        "## Interruptions", "",
        "Written by `python benchmarks/soak.py`; its docstring explains the parts.", "",
        "| part | interruptions | results compared | acknowledged | wrong | seed | seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |", *(row for part in PARTS for row in rows[part]), "",
        *(note for part in PARTS for note in notes[part]), ""])


if __name__ == "__main__":
    sys.exit(main())
