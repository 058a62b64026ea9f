"""What a place of `soak.py` holds: everything that must not depend on how often a command was interrupted.

    expected = content(place)                 in a forked process, as one JSON value
    differences(expected, content(place))     [".ledger.responses.e-1f[3]: … then, … now", …]
    lost(place, acknowledged)                 what was said to be stored and is not there

Times, speeds and costs are left out: they are other ones in every run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from aftertune.ledger.schema import Prose

#: Fields of stored values that hold times, speeds and costs.
_TIMES = frozenset({"provenance", "cost", "seconds", "tokens_per_second", "started", "finished", "tuned_at",
                    "alone"})  # of a cure, estimated seconds
#: Times, durations, speeds and memory in records and pages; the time of a training is unknown where another process
#: has done its last step.
_TEXT_TIMES = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\.\d+)?(Z|\+00:00)?( UTC)?|\d[\d,.]* (tokens/s|items/s)"
    r"|(?<![\w.])[\d.,]+ (s|min|h|GiB|MiB)\b|\d+ min \d+ s|\d+ h \d+ min"
    r'|<div><dt>Training Time</dt>.*?</div>|(?<=easured">)[^<]*|(?<=easured / estimated">)[^<]*', re.DOTALL)
#: The ledger and what SQLite keeps beside it.
_LEDGER = ("ledger.db", "ledger.db-journal", "ledger.db-wal", "ledger.db-shm")


def content(place: Path) -> Any:
    """Everything in ``place``: the ledger's values, and the files with their digests. Runs in a forked process."""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as file:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                value = {"ledger": _ledger(place / "ledger.db"), "files": _files(place)}
                Path(file.name).write_text(json.dumps(value), encoding="utf-8")
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0, f"{place}: the content cannot be read"
        return json.load(file)


def _ledger(path: Path) -> dict[str, Any]:
    """The values of a ledger by id."""
    from aftertune.ledger import Ledger
    from aftertune.values import plain

    if not path.exists():
        return {}
    with Ledger(path) as ledger:
        evaluations = ledger.evaluations()
        found = {f.name: f.value for f in ledger.check() if f.name == "integrity"}
        values: dict[str, Any] = _timeless({
            "integrity": found,
            "evaluations": {e.id: plain(e) for e in evaluations},
            "items": {e.id: [plain(i) for i in ledger.items(e.id)] for e in evaluations},
            "answers": {e.id: [plain(a) for a in ledger.answers(e.id)] for e in evaluations},
            "responses": {e.id: [[p, None if r.logprob is None else r.logprob.hex(), plain(r)]
                                 for p, r in ledger.responses(e.id).items()] for e in evaluations},
            "scores": {e.id: [[s.value.hex(), s.stderr and s.stderr.hex()] for s in e.scores] for e in evaluations},
            "tunings": {t.id: plain(t) for t in ledger.tunings()},
            "comparisons": {c.id: plain(c) for c in ledger.comparisons()},
            "studies": {s.name: [s.hash, [plain(c) for c in ledger.cells(s.name)]] for s in ledger.studies()},
            "reported": ledger.reported(), "remarks": ledger.remarks()})
        return values


def _timeless(value: Any) -> Any:
    """``value`` without the fields that hold times."""
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in _TIMES}
    return [_timeless(v) for v in value] if isinstance(value, list | tuple) else value


def _files(place: Path) -> dict[str, str]:
    """Path -> digest of every file but the ledger; of JSON, Markdown and HTML without times."""
    return {str(path.relative_to(place)): hashlib.sha256(_bytes(path)).hexdigest()[:16]
            for path in sorted(place.rglob("*")) if path.is_file() and path.name not in _LEDGER}


def _bytes(path: Path) -> bytes:
    if path.name == "aftertune.json" or path.name.startswith("results_"):
        return json.dumps(_timeless(json.loads(path.read_bytes()))).encode()
    if path.suffix in (".md", ".html"):
        return _TEXT_TIMES.sub("TIME", path.read_text(encoding="utf-8")).encode()
    return path.read_bytes()


def differences(then: Any, now: Any, place: str = "") -> Iterator[str]:
    """Where two contents differ."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*then, *now]):
            if key in then and key in now:
                yield from differences(then[key], now[key], f"{place}.{key}")
            else:
                yield f"{place}.{key} is {'new' if key in now else 'gone'}"
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for number, (left, right) in enumerate(zip(then, now, strict=True)):
            yield from differences(left, right, f"{place}[{number}]")
    elif then != now:
        yield f"{place}: {str(then)[:120]} then, {str(now)[:120]} now"


def lost(place: Path, acknowledged: Sequence[dict[str, Any]]) -> list[str]:
    """What was acknowledged and is not in the ledger. A copy is read, so that the next command finds what a kill left.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name in _LEDGER:
            if (place / name).exists():
                shutil.copyfile(place / name, Path(folder) / name)
        path = Path(folder) / _LEDGER[0]
        if not path.exists():
            return [f"{place}: no ledger"] if acknowledged else []
        try:
            with closing(sqlite3.connect(path)) as raw:
                if raw.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
                    return [f"{place}: the database is damaged"]
                return [text for ack in acknowledged for text in _missing(raw, ack)]
        except sqlite3.DatabaseError as error:
            return [f"{place}: {error}"]


def _missing(raw: sqlite3.Connection, ack: dict[str, Any]) -> Iterator[str]:
    """What of one acknowledgement is not in the ledger."""
    if "batch" in ack:
        plain: Any = Prose().process_result_value  # as it was before NUL and the like were escaped
        rows = {p: (None if v is None else float(v).hex(), plain(t, None)) for p, v, t in raw.execute(
            "SELECT position, logprob, text FROM response JOIN evaluation e ON e.seq = response.evaluation "
            "WHERE e.id = ?", [ack["evaluation"]])}
        gone = [p for p, v, t in ack["responses"] if rows.get(p) != (v, t)]
        if gone:
            yield f"evaluation {ack['evaluation']}, batch {ack['batch']}: positions {gone[:5]}"
    for kind, table, status in (("evaluation_done", "evaluation", "done"), ("tuning_done", "tuning", "done"),
                                ("comparison", "comparison", None)):
        if kind in ack:
            row = raw.execute(f"SELECT * FROM {table} WHERE id = ?", [ack[kind]]).fetchone()
            stored = row is not None and (status is None or raw.execute(
                f"SELECT status FROM {table} WHERE id = ?", [ack[kind]]).fetchone()[0] == status)
            if not stored:
                yield f"{table} {ack[kind]}"
    if "checkpoint" in ack and not _kept(Path(ack["checkpoint"])):
        yield ack["checkpoint"]


def _kept(checkpoint: Path) -> bool:
    """Whether a checkpoint, or a later state of its tuning, is complete: its newer ones replace it."""
    folder = checkpoint.parent
    if (folder.parent / "aftertune.json").exists():
        return True
    step = int(checkpoint.name.rpartition("-")[2])
    return any((p / "sealed.json").exists() and int(p.name.rpartition("-")[2]) >= step
               for p in folder.glob("checkpoint-*"))
