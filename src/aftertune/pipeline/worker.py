"""The program of a worker: it runs the cells that another process names, one after another.

    python -P -m aftertune.pipeline.worker      started by `aftertune.pipeline.local_workers` and on nodes of a cluster

It speaks lines of JSON. The first line on stdin is the opening (`Opening`): the study as data, no code. Each further
one names a cell: {"cell": "tune careful"}. The worker writes {"event": "ready"}, and for each cell
{"event": "progress", …} and {"event": "done"} or {"event": "failed", "kind": "InputError", "reason": "…"}. With
"help": true the cell is an evaluation that another worker runs; at its end the line is {"event": "helped"}.

When stdin ends, because the other process closed it or is gone, the worker stops as at Ctrl-C: finished batches and
checkpoints stay.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import platform
import queue
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from aftertune import __version__
from aftertune.errors import AftertuneError, FolderInUse, InputError, InUse, ResourceError
from aftertune.ledger import Ledger
from aftertune.study import Study

#: Seconds between two reports of the progress of one stage.
_OFTEN = 0.25
#: Seconds that a cell waits for a process that holds its evaluation or folder: a worker of a run that was killed stops
#: at the end of its batch or step.
_WAIT = 300.0


@dataclass(frozen=True, slots=True)
class Opening:
    """What a worker gets first.

    study: as JSON; ledger: its path or address; out: folder of the run; folder: the working folder of the command, from
    which relative names of models start, where the node has it; command: its words, for the provenance; threads: of the
    CPU, None for all; take_over: as of `Ledger`; root: shared place of the fine-tunes, "" for ``out``; disk: bytes that
    a cell writes, by its name, where the node must have them free; version: of aftertune, which the node must have too.
    """

    study: str
    ledger: str
    out: str
    folder: str = ""
    command: tuple[str, ...] = ()
    threads: int | None = None
    take_over: bool = False
    root: str = ""
    disk: Mapping[str, int] = field(default_factory=dict)
    version: str = __version__

    def line(self) -> str:
        """The line of JSON."""
        return json.dumps({"open": asdict(self)})

    @classmethod
    def parse(cls, line: str) -> Opening:
        """Read the line. Raises ResourceError for that of another version, ValueError, KeyError or TypeError for what
        is none."""
        fields = json.loads(line)["open"]
        if (theirs := fields.get("version")) != __version__:
            raise ResourceError(f"aftertune {__version__} is installed on {platform.node()}, and the command runs "
                                f"{theirs}; install the same version on all nodes")
        return cls(**{**fields, "command": tuple(fields["command"])})


class Worker:
    """Runs cells. channel: where it writes its lines; received: the lines that it got, None at their end."""

    def __init__(self, opening: Opening, channel: TextIO, received: queue.Queue[str | None]) -> None:
        self.opening, self.channel, self.received = opening, channel, received
        self._sent, self._stage = 0.0, ""

    def work(self) -> None:
        """Run cells until there are no more lines."""
        from aftertune.pipeline.cell_runs import CellRuns
        from aftertune.pipeline.planning import SHARED_ENGINES
        from aftertune.pipeline.shared_root import SharedRoot

        study = Study.model_validate_json(self.opening.study)
        with Ledger(self.opening.ledger, take_over=self.opening.take_over) as ledger:
            root = SharedRoot.of(self.opening.root, study.study) if self.opening.root else None
            runs = CellRuns(study, ledger, Path(self.opening.out), root)
            runs.join = study.engine in SHARED_ENGINES
            self.send(event="ready", node=platform.node(), pid=os.getpid())
            while (line := self.received.get()) is not None:
                order = json.loads(line)
                if order.get("help"):
                    self.help(runs, str(order["cell"]))
                else:
                    self.run(runs, str(order["cell"]))

    def run(self, runs: Any, name: str) -> None:
        """Run one cell, and say how it ended. A cell that another process holds is tried again for some time."""
        from aftertune.engine.devices import set_threads

        cell, until = runs.cells[name], time.monotonic() + _WAIT
        while True:
            try:
                if self.opening.threads:
                    set_threads(self.opening.threads)
                check_disk(runs.folder(cell), self.opening.disk.get(name, 0))
                runs.load_needed(cell)
                runs.run(cell, self.progress)
            except (InUse, FolderInUse) as error:
                if time.monotonic() < until:
                    self.progress(0, 0, "waiting for another process that works on it")
                    time.sleep(1)
                    continue
                self.send(event="failed", kind=type(error).__name__, reason=str(error))
            except AftertuneError as error:
                self.send(event="failed", kind=type(error).__name__, reason=str(error))
            except Exception as error:
                traceback.print_exc()
                where = traceback.extract_tb(error.__traceback__)[-1]
                reason = (f"unexpected {type(error).__name__} in {Path(where.filename).name}:{where.lineno}: "
                          f"{str(error)[:300]}; this is a fault of aftertune, please report it")
                runs.ledger.save_cell(runs.study.study, name, "failed", error=reason)
                self.send(event="failed", kind="AftertuneError", reason=reason)
            else:
                self.send(event="done")
            return

    def help(self, runs: Any, name: str) -> None:
        """Help another worker with an evaluation. What goes wrong here is no fault of the cell."""
        cell = runs.cells[name]
        try:
            runs.load_needed(cell)
            runs.help(cell, lambda *_: None)
        except Exception:
            traceback.print_exc()
        self.send(event="helped")

    def progress(self, done: int, total: int, text: str) -> None:
        """Report progress, not more often than a person can read."""
        now, stage = time.monotonic(), text.partition(": step ")[0]
        if stage != self._stage or now - self._sent > _OFTEN or (total and done >= total):
            self._sent, self._stage = now, stage
            self.send(event="progress", done=done, total=total, text=text)

    def send(self, **message: Any) -> None:
        """Write one line; nobody may be there to read it."""
        with contextlib.suppress(OSError, ValueError):
            self.channel.write(json.dumps(message) + "\n")
            self.channel.flush()


def check_disk(folder: Path, needed: int) -> None:
    """Raise ResourceError where the disk of a folder has fewer bytes free than a cell needs."""
    there = next((p for p in (folder, *folder.parents) if p.exists()), Path.cwd())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise ResourceError(f"{folder}: {needed / 2**30:.1f} GiB are needed on the disk of {platform.node()}, and "
                            f"{free / 2**30:.1f} GiB are free; make room there, or give another --out or --root")


def _read(received: queue.Queue[str | None]) -> None:
    """Hand the lines of stdin on. At their end the work stops, as at Ctrl-C."""
    with contextlib.suppress(OSError, ValueError):
        for line in sys.stdin:
            received.put(line)
    received.put(None)
    os.kill(os.getpid(), signal.SIGINT)


def _stop(*_: Any) -> None:
    """Handle SIGTERM like Ctrl-C; a second one does not disturb the end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Run the worker. stdout is for its lines alone: what libraries print goes to stderr."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may ignore it
    atexit.register(gc.freeze)  # as a command does: it ends two seconds sooner
    received: queue.Queue[str | None] = queue.Queue()
    try:
        try:
            opening = Opening.parse(sys.stdin.readline())
        except (ValueError, KeyError, TypeError, AttributeError):
            print("aftertune: this program is started by `aftertune run --workers`", file=sys.stderr)
            return InputError.exit_code
        sys.argv = [*opening.command] or sys.argv
        with contextlib.suppress(OSError):
            os.chdir(opening.folder or ".")
        threading.Thread(target=_read, args=(received,), daemon=True).start()
        Worker(opening, channel, received).work()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except AftertuneError as error:
        print(f"aftertune: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
