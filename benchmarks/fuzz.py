"""Mutated real files of every kind that aftertune reads: each is read, or refused in one short line.

    python benchmarks/fuzz.py                                all kinds, 100,000 files each; also: make fuzz
    python benchmarks/fuzz.py --only record,gguf --count 500
    python benchmarks/fuzz.py --case record:0:1234           one file again, with its traceback
    python benchmarks/fuzz.py --state fuzz.json --minutes 5  for so long; the same command continues

A case is a kind, a seed and a number, and these three decide its file: `mutations.py` changes one of the real files of
`fuzz_kinds.py`. It is a fault of aftertune where reading that file

    raises anything but aftertune's own errors (AftertuneError), or ends the process
    takes more than 2 s of processor time (a chat template: 7 s), or 30 s of it without an end, or waits for 300 s
    takes more than 500 MB of memory beside what the process had
    gives a message or a note of more than 1,000 characters, or a message with a control character or a line break

Files are read in a child process with a limit on its memory, so that a crash or an endless loop is found, named and
skipped. At most two children run at once. Ctrl-C or SIGTERM shows the table so far and keeps the state. The exit code
is 1 if there is a fault.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import random
import re
import resource
import selectors
import signal
import sys
import tempfile
import time
import traceback
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fuzz_kinds
from document import read_section, write_section
from fuzz_kinds import KINDS, Kind, Target
from mutations import mutated

COUNT = 100_000
LONGEST_MESSAGE = 1000
#: Bytes of memory that a case may take, and that the child may take before the system refuses more.
MEMORY, ADDRESS_SPACE = 500 * 2**20, 3 * 2**30
#: Seconds of processor time after which a case is taken for endless; or as many by the clock, ten times, in which it
#: waits for something else than a processor.
HARD_CLOCK = 30.0
JOBS = 2
MIB = 2**20
#: Characters that change the direction of a line.
_BIDI = "\u202a\u202b\u202d\u202e\u2066\u2067"


# --- One case ---


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with how a case was read. place: names the fault, the same for all cases that show it; text: more
    about this case."""

    place: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """A case that was read. refused: with an error of aftertune; seconds: of processor time; memory: bytes beside what
    the process had before."""

    refused: bool
    seconds: float
    memory: int
    faults: tuple[Fault, ...]


def file_of(kind: Kind, target: Target, name: str, seed: int, number: int) -> bytes:
    """The mutated file of a case."""
    rng = random.Random(f"{name} {seed} {number}")
    return mutated(rng.choice(target.seeds), kind.form, rng, target.seeds)


def try_case(kind: Kind, target: Target, data: bytes) -> Result:
    """Read a file and say what is wrong with that."""
    from aftertune.errors import AftertuneError

    _reset_peak()
    before, start = _peak(), time.process_time()
    faults: list[Fault] = []
    refused = False
    try:
        texts = list(target.read(data))
    except AftertuneError as error:
        refused = True
        faults += _message_faults(error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        faults.append(_unexpected(error))
    else:
        faults += [Fault("a note of more than 1,000 characters", text[:300])
                   for text in texts if len(text) > LONGEST_MESSAGE]
    seconds, memory = time.process_time() - start, max(_peak() - before, 0)
    if seconds > kind.seconds:
        faults.append(Fault(f"more than {kind.seconds:g} s", f"{seconds:.1f} s"))
    if memory > MEMORY:
        faults.append(Fault("more than 500 MB", f"{memory / MIB:,.0f} MiB"))
    return Result(refused, seconds, memory, tuple(faults))


def _message_faults(error: Exception) -> Iterator[Fault]:
    text, where = str(error), _place(error)
    if len(text) > LONGEST_MESSAGE:
        yield Fault(f"a message of more than 1,000 characters, {where}", f"{len(text):,}: {text[:200]} … {text[-200:]}")
    if not text.strip():
        yield Fault(f"an empty message, {where}")
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _BIDI for c in text):
        yield Fault(f"a control character in a message, {where}", ascii(text[:400]))


def _unexpected(error: BaseException) -> Fault:
    """An error of another library or of Python, by its type and the place in aftertune."""
    return Fault(f"{type(error).__name__}, {_place(error)}", ascii(" ".join(str(error).split())[:300]))


def _place(error: BaseException) -> str:
    """The last line of aftertune that an error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f"{os.sep}aftertune{os.sep}" in f.filename] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""


def _reset_peak() -> None:
    """Let the kernel measure the peak of the memory from now on. Elsewhere the peak is that of the whole process."""
    with contextlib.suppress(OSError), Path("/proc/self/clear_refs").open("w") as file:
        file.write("5")


def _peak() -> int:
    """Bytes of memory at the peak. getrusage would give that of the process that started this one, if it had more."""
    with contextlib.suppress(OSError, StopIteration), Path("/proc/self/status").open(encoding="ascii") as file:
        return int(next(line for line in file if line.startswith("VmHWM:")).split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _at_work(pid: int) -> tuple[float, bool]:
    """Seconds of processor time of a process, and whether it waits for something else than a processor."""
    import psutil

    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        times = process.cpu_times()
        waits = process.status() != psutil.STATUS_RUNNING and not process.children()
        return float(times.user + times.system), waits
    return 0.0, False


# --- The cases of one kind, in a child process ---

_FIELDS = ("ready", "number", "refused", "slowest", "slowest_case", "largest", "largest_case", "seconds")


class _Shared:
    """Numbers that a child writes and its parent reads, also after the child has died."""

    def __init__(self) -> None:
        self.memory = memoryview(mmap.mmap(-1, 8 * len(_FIELDS))).cast("d")

    def __getitem__(self, name: str) -> float:
        return float(self.memory[_FIELDS.index(name)])

    def __setitem__(self, name: str, value: float) -> None:
        self.memory[_FIELDS.index(name)] = value

    def add(self, number: int, result: Result) -> None:
        """Count a result."""
        self["refused"] += result.refused
        self["seconds"] += result.seconds
        for what, value in (("slowest", result.seconds), ("largest", float(result.memory))):
            if value > self[what]:
                self[what], self[f"{what}_case"] = value, number


def _child(name: str, seed: int, numbers: range, folder: Path, shared: _Shared, out: int) -> None:
    """Try the cases; faults go to ``out``, one JSON object a line. The number of the current case is in ``shared``."""
    kind = KINDS[name]
    _silence()
    target = fuzz_kinds.open_kind(name, folder)
    for data in target.seeds[-1:]:  # imports what is needed
        try_case(kind, target, data)
    _limit_memory()
    shared["ready"] = 1.0
    for number in numbers:
        shared["number"] = number
        result = try_case(kind, target, file_of(kind, target, name, seed, number))
        shared.add(number, result)
        for fault in result.faults:
            os.write(out, (json.dumps([number, fault.place, fault.text[:800]]) + "\n").encode())
    shared["number"] = numbers.stop


def _silence() -> None:
    """What libraries print goes nowhere; their warnings are not shown."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    if not os.environ.get("AFTERTUNE_DEBUG"):
        os.dup2(nowhere, 2)


def _limit_memory() -> None:
    with contextlib.suppress(OSError, ValueError):
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESS_SPACE, resource.RLIM_INFINITY))


# --- All kinds, in the parent ---


@dataclass(slots=True)
class Summary:
    """What is known of one kind. done: cases; slowest, largest: (value, case); faults: place -> (count, first case,
    text)."""

    done: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest: tuple[float, int] = (0.0, 0)
    largest: tuple[float, int] = (0.0, 0)
    faults: dict[str, tuple[int, int, str]] = field(default_factory=dict)

    def add_fault(self, number: int, place: str, text: str) -> bool:
        """Count a fault; True for the first one at its place."""
        count, first, known = self.faults.get(place, (0, number, text))
        self.faults[place] = (count + 1, first, known)
        return count == 0

    def add(self, shared: _Shared) -> None:
        """Add the numbers of a child."""
        self.done = max(self.done, int(shared["number"]))
        self.refused += int(shared["refused"])
        self.seconds += shared["seconds"]
        self.slowest = max(self.slowest, (shared["slowest"], int(shared["slowest_case"])))
        self.largest = max(self.largest, (shared["largest"], int(shared["largest_case"])))


class _Run:
    """A child at work on a kind."""

    def __init__(self, name: str, seed: int, numbers: range, folder: Path) -> None:
        self.name, self.shared = name, _Shared()
        self.shared["number"] = numbers.start
        self.output, out = os.pipe()
        self.text, self.last, self.since, self.stuck = b"", -1.0, (0.0, 0.0), False
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(self.output)
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_DFL)
                _child(name, seed, numbers, folder, self.shared, out)
                code = 0
            except BaseException:
                os.write(out, (json.dumps([-1, "the harness failed", traceback.format_exc()[-800:]]) + "\n").encode())
            finally:
                os._exit(code)
        os.close(out)

    def lines(self) -> tuple[list[list[Any]], bool]:
        """The faults that have come, and whether the child has ended."""
        data = os.read(self.output, 2**20)
        *whole, self.text = (self.text + data).split(b"\n")
        return [json.loads(line) for line in whole], not data

    def is_stuck(self) -> bool:
        """True if the same case has been read for longer than the hard clock; making the target may take longer."""
        now, (used, waits) = time.monotonic(), _at_work(self.pid)
        if self.shared["number"] != self.last:
            self.last, self.since = self.shared["number"], (now, used)
        most = HARD_CLOCK if self.shared["ready"] else 10 * HARD_CLOCK
        self.stuck = self.stuck or used - self.since[1] > most or (waits and now - self.since[0] > 10 * most)
        return self.stuck  # also once it has been killed for that

    def kill(self) -> None:
        """End the child."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """The exit status of the ended child; negative for a signal."""
        os.close(self.output)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class Fuzzer:
    """Tries the cases of the kinds, some of them at once.

    summaries: by kind, may hold what was done before. until: the time (of time.monotonic) to stop at.
    """

    def __init__(self, names: Sequence[str], count: int, seed: int, summaries: dict[str, Summary], *, jobs: int = JOBS,
                 until: float = float("inf"), say: Callable[[str], None] = print) -> None:
        self.count, self.seed, self.summaries, self.jobs = count, seed, summaries, jobs
        self.until, self.say = until, say
        self.waiting = [n for n in names if summaries.setdefault(n, Summary()).done < count]
        self.before = {n: summaries[n].done for n in self.waiting}
        self.running: dict[str, _Run] = {}
        self.began, self.said = time.monotonic(), 0.0

    def run(self, folder: Path) -> None:
        """Try all cases, or those until the end of the time or Ctrl-C."""
        with selectors.DefaultSelector() as selector:
            try:
                while self.waiting or self.running:
                    while self.waiting and len(self.running) < self.jobs and time.monotonic() < self.until:
                        self._begin(self.waiting.pop(0), folder, selector)
                    if not self.running:
                        return
                    for key, _ in selector.select(0.25):
                        self._read(key.data, folder, selector)
                    self._watch()
            finally:
                for run in self.running.values():
                    run.kill()
                    while not self._note(run):  # what it found before it ended
                        pass
                    run.wait()
                    self.summaries[run.name].add(run.shared)

    def _begin(self, name: str, folder: Path, selector: selectors.BaseSelector) -> None:
        run = _Run(name, self.seed, range(self.summaries[name].done, self.count), folder)
        self.running[name] = run
        selector.register(run.output, selectors.EVENT_READ, run)

    def _read(self, run: _Run, folder: Path, selector: selectors.BaseSelector) -> None:
        summary = self.summaries[run.name]
        if not self._note(run):
            return
        selector.unregister(run.output)
        code = run.wait()
        del self.running[run.name]
        summary.add(run.shared)
        number = int(run.shared["number"])
        if code == 0 or time.monotonic() > self.until:
            return
        if code > 0:  # the harness itself has failed, as its last line says
            return
        place = "endless" if run.is_stuck() else f"the process ended with {signal.Signals(-code).name}"
        if summary.add_fault(number, place, ""):
            self.say(f"fault: {run.name}:{self.seed}:{number}  {place}")
        summary.done = number + 1
        if summary.done < self.count:
            self._begin(run.name, folder, selector)

    def _note(self, run: _Run) -> bool:
        """Count the faults that have come; True if the child has ended."""
        lines, ended = run.lines()
        for number, place, text in lines:
            if self.summaries[run.name].add_fault(number, place, text):
                self.say(f"fault: {run.name}:{self.seed}:{number}  {place}  {text[:300]}")
        return ended

    def _watch(self) -> None:
        """End children that are stuck, or all of them at the end of the time; show the progress."""
        now = time.monotonic()
        for run in self.running.values():
            if run.is_stuck() or now > self.until:
                run.kill()
        if now - self.said > 15:
            self.said = now
            self.say(self._progress())

    def _progress(self) -> str:
        done = sum(s.done for s in self.summaries.values()) + sum(
            int(r.shared["number"]) - self.summaries[n].done for n, r in self.running.items())
        total = self.count * len(self.summaries)
        new = done - sum(self.before.get(n, s.done) for n, s in self.summaries.items())
        rate = new / max(time.monotonic() - self.began, 1e-9)
        left = f"{(total - done) / rate / 60:.0f} min left" if rate else "starting"
        return (f"{done:,} of {total:,} files, {rate:.0f} a second, {left}, "
                f"{sum(len(s.faults) for s in self.summaries.values())} faults; now {', '.join(self.running)}")


# --- Report ---


def table(summaries: Mapping[str, Summary], before: Mapping[str, tuple[int, str]] | None = None) -> str:
    """A Markdown table of what was tried. before: title -> files and row of an earlier run, which stays where it tried
    more files."""
    lines = ["| kind | files | read | refused | faults | slowest | most memory | ms a file |",
             "|---|---|---|---|---|---|---|---|"]
    for name, kind in KINDS.items():
        done, row = (before or {}).get(kind.title, (0, ""))
        if name in summaries and summaries[name].done > done:
            row = _row(kind, summaries[name])
        lines += [row] if row else []
    return "\n".join(lines)


def _row(kind: Kind, s: Summary) -> str:
    found = sum(count for count, _, _ in s.faults.values())
    return (f"| {kind.title} | {s.done:,} | {max(s.done - s.refused - found, 0):,} | {s.refused:,} | {found:,} "
            f"| {s.slowest[0]:.2f} s | {s.largest[0] / MIB:.0f} MiB | {1000 * s.seconds / s.done:.1f} |")


def rows_before(text: str) -> dict[str, tuple[int, str]]:
    """Title -> files and row of each kind in an earlier table."""
    rows = [line for line in text.splitlines() if re.match(r"\| [^|]+ \| [\d,]+ \|", line)]
    return {cells[1].strip(): (int(cells[2].replace(",", "")), row) for row in rows for cells in [row.split("|")]}


def faults(summaries: Mapping[str, Summary], seed: int) -> list[str]:
    """A line for each fault, with the case that shows it."""
    return [f"{name}:{seed}:{first}  {count:,} times  {place}  {text}" for name, s in summaries.items()
            for place, (count, first, text) in s.faults.items()]


def page(summaries: Mapping[str, Summary], seed: int, before: str = "") -> str:
    """The section of docs/benchmarks.md. before: the section as it is; a kind of which an earlier run tried more files
    keeps its row."""
    rows = table(summaries, rows_before(before))
    total = sum(files for files, _ in rows_before(rows).values())
    return (f"## Mutated files\n\nWritten by `python benchmarks/fuzz.py --write` (seed {seed}); its docstring says "
            f"what counts as a fault. {total:,} mutated real files; each row is the longest run of its kind. Slowest "
            f"and most memory are those of one file, in processor time and beside the memory of the process.\n\n"
            f"{rows}\n")


def load_state(path: Path | None, seed: int) -> dict[str, Summary]:
    """What was done before, from the file of --state. A kind with a fault is tried again from its first file."""
    if path is None or not path.exists():
        return {}
    state = json.loads(path.read_text(encoding="utf-8"))
    if state["seed"] != seed:
        sys.exit(f"{path}: made with --seed {state['seed']}; give the same seed, or another file")
    return {name: Summary(**{**s, "slowest": tuple(s["slowest"]), "largest": tuple(s["largest"]),
                             "faults": {k: tuple(v) for k, v in s["faults"].items()}})
            for name, s in state["kinds"].items() if name in KINDS and not s["faults"]}


def save_state(path: Path, seed: int, summaries: Mapping[str, Summary]) -> None:
    """Write what was done, for the next run."""
    kinds = {name: {f: getattr(s, f) for f in Summary.__slots__} for name, s in summaries.items()}
    path.write_text(json.dumps({"seed": seed, "kinds": kinds}), encoding="utf-8")


def show_case(name: str, seed: int, number: int, keep: Path | None) -> int:
    """Read one file again, with its traceback."""
    with tempfile.TemporaryDirectory() as folder:
        target = fuzz_kinds.open_kind(name, Path(folder))
        data = file_of(KINDS[name], target, name, seed, number)
        if keep is not None:
            keep.write_bytes(data)
        print(f"{len(data):,} bytes: {data[:300]!r}")
        result = try_case(KINDS[name], target, data)
        with contextlib.suppress(Exception):
            try:
                print(list(target.read(data)))
            except Exception:
                traceback.print_exc()
                raise
    print(f"{result.seconds:.2f} s, {result.memory / MIB:.0f} MiB")
    for fault in result.faults:
        print(f"fault: {fault.place}  {fault.text}")
    return int(bool(result.faults))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=COUNT, help="files of each kind")
    parser.add_argument("--only", default=",".join(KINDS), help="kinds, separated by commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many minutes")
    parser.add_argument("--jobs", type=int, default=JOBS, choices=(1, 2), help="processes")
    parser.add_argument("--state", type=Path, help="a file with what was done; the next run continues from it")
    parser.add_argument("--case", help="KIND:SEED:NUMBER, read one file again")
    parser.add_argument("--keep", type=Path, help="with --case: write its file there")
    parser.add_argument("--write", action="store_true", help="write the table to docs/benchmarks.md")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Try the files; returns the exit code."""
    arguments = _arguments(argv)
    if arguments.case:
        name, seed, number = arguments.case.split(":")
        return show_case(name, int(seed), int(number), arguments.keep)
    names = arguments.only.split(",")
    if unknown := [n for n in names if n not in KINDS]:
        sys.exit(f"unknown kind {unknown[0]}; kinds: {', '.join(KINDS)}")
    known = load_state(arguments.state, arguments.seed)
    summaries = {n: known.get(n, Summary()) for n in names}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    fuzzer = Fuzzer(names, arguments.count, arguments.seed, summaries, jobs=arguments.jobs,
                    until=time.monotonic() + 60 * arguments.minutes, say=lambda text: print(text, flush=True))
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        fuzzer.run(Path(folder))
    everything = {**known, **summaries}
    if arguments.state:
        save_state(arguments.state, arguments.seed, everything)
    found = faults(summaries, arguments.seed)
    print("\n".join([table(summaries), *found]))
    if arguments.write:
        write_section("mutated files", page(everything, arguments.seed, read_section("mutated files")))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
