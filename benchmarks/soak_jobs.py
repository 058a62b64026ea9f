"""The commands that `soak.py` interrupts, each with the small place that it works in.

    jobs = make_jobs(root, place)        builds models and data below ``root``
    job = jobs["tune full"]              and what the job starts from, once
    place = job.reset(root / "place")    a fresh copy of what the command starts from
    Child(place, *job.words)

Everything is tiny and random: a Llama of two layers with a byte tokenizer, two tasks of some dozen items, 24 examples.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from eval_cases import write_task
from families import make_data, make_model
from soak_child import Child

_QUIET = ("--device", "cpu", "--dtype", "float32")
_EVAL = ("--include-path", "tasks", *_QUIET, "--threads", "1", "--memory", "1MB")
_TUNE = ("tune", "model", "--data", "train.jsonl", "--out", "out", "--max-steps", "12", "--epochs", "4",
         "--batch-size", "2", "--accumulation", "2", "--held-out", "0.2", "--template", "plain", "--name", "tuned",
         "--learning-rate", "0.01", *_QUIET)
_STUDY = """\
study: soak
dtype: float32
device: cpu
margin: 5
task_source: pack
bases:
  base: {model: model}
tasks:
  - {name: arc_easy, sample: 12}
  - {name: own, target: {file: own.jsonl, max_tokens: 3}}
tunings:
  lora:
    base: base
    data: {file: train.jsonl, held_out: 0.2}
    template: plain
    batch_size: 4
    max_steps: 4
    learning_rate: 0.01
  full:
    base: base
    data: {file: train.jsonl, held_out: 0.2}
    method: full
    template: plain
    batch_size: 4
    max_steps: 4
    learning_rate: 0.01
"""
#: A ledger of the first schema.
OLD_LEDGER = Path(__file__).parents[1] / "tests" / "data" / "version_before" / "project" / "ledger.db"


@dataclass(frozen=True, slots=True)
class Job:
    """A command. start: the folder that it starts from."""

    name: str
    words: tuple[str, ...]
    start: Path

    def reset(self, place: Path) -> Path:
        """Make ``place`` what the command starts from."""
        for path in place.iterdir() if place.exists() else ():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        shutil.copytree(self.start, place, dirs_exist_ok=True)
        return place


def make_jobs(root: Path, place: Path) -> Jobs:
    """The jobs. place: where they will run; what was stored there names paths in it."""
    base = root / "start"
    base.mkdir(parents=True)
    forked(lambda: (make_model("Llama", base / "model"), make_model("Llama", base / "other", seed=1)))
    make_data(base / "train.jsonl")
    _write_tasks(base / "tasks", place)
    (base / "study.yaml").write_text(_STUDY, encoding="utf-8")
    (base / "own.jsonl").write_text("".join(
        json.dumps({"prompt": f"say w{i} ", "completion": f"w{i}"}) + "\n" for i in range(12)), encoding="utf-8")
    evaluate = ("eval", "model", "--tasks", "quiz,say", "--name", "base", *_EVAL)
    second = ("eval", "other", *evaluate[2:5], "second", *_EVAL)
    decide = ("eval", "other", "--tasks", "quiz", "--name", "tuned", "--until-decided", "--against", "model",
              "--margin", "5", "--batch", "8", *_EVAL)
    tune = {"tune lora": ("--merge", "--rank", "4", "--dropout", "0.1"), "tune full": ("--method", "full"),
            "tune early": ("--rank", "4", "--validation", "0.2", "--validate-every", "2", "--patience", "3"),
            "tune kept": ("--rank", "4", "--validation", "0.2", "--validate-every", "4", "--keep-checkpoints", "all")}

    def tuned(name: str) -> Job:
        return Job(name, (*_TUNE, *tune[name]), base)

    @cache
    def stored() -> Path:
        return _stored(root, place, base, decide, evaluate, second)

    @cache
    def merged() -> Path:
        return _after(tuned("tune lora"), root / "merged", place)

    def imported() -> Job:
        shutil.copytree(stored() / "export", root / "imported" / "export")
        return Job("import", ("import", "export"), root / "imported")

    def migrated() -> Job:
        (root / "old").mkdir()
        shutil.copyfile(OLD_LEDGER, root / "old" / "ledger.db")
        return Job("migration", ("runs",), root / "old")

    return Jobs({
        "eval": lambda: Job("eval", evaluate, base),
        "eval until decided": lambda: Job("eval until decided", decide, base),
        "eval shared": lambda: Job("eval shared", (*evaluate, "--join"), base),
        "eval until decided shared": lambda: Job("eval until decided shared", (*decide, "--join"), base),
        **{name: partial(tuned, name) for name in tune},
        "run": lambda: Job("run", ("run", "study.yaml", "--out", "runs"), base),
        "record": lambda: Job("record", ("record", "--out", "record.md"), stored()),
        "page": lambda: Job("page", ("report", "--out", "report.html"), stored()),
        "bundle": lambda: Job("bundle", ("export", "all", "--bundle", "bundle"), stored()),
        "import": imported, "migration": migrated,
        "rollback": lambda: Job("rollback", ("rollback", "out", "--to", "4"),
                                _after(tuned("tune kept"), root / "kept", place)),
        "check-merge": lambda: Job("check-merge", ("check-merge", "out", "--tasks", "arc_easy", "--sample", "8",
                                                   "--device", "cpu"), merged()),
        "soften": lambda: Job("soften", ("soften", "out", "--keep", "arc_easy=100", "--items", "60", "--strengths",
                                         "0.5", "--out", "soft", *_QUIET), merged())})


class Jobs(dict[str, Job]):
    """Jobs by name. One is built when it is asked for first, which clears the place where they run.

    makers: what builds each.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Job]]) -> None:
        super().__init__()
        self.makers = makers

    def __missing__(self, name: str) -> Job:
        self[name] = self.makers[name]()
        return self[name]


def writers(job: Job, number: int) -> list[tuple[str, ...]]:
    """The commands of processes that write into one ledger at once: evaluations of other samples."""
    return [(*job.words[:3], "quiz", "--name", f"w{n}", "--sample", "40", "--sample-seed", str(n), *_EVAL)
            for n in range(number)]


def forked(work: Callable[[], Any]) -> None:
    """Do ``work`` in a forked process, so that torch computes nothing in this one."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


def _after(job: Job, folder: Path, place: Path) -> Path:
    """A folder as a command leaves it in ``place``."""
    job.reset(place)
    child = Child(place, *job.words)
    assert child.wait() == 0, child.errors()
    shutil.copytree(place, folder)
    return folder


def _stored(root: Path, place: Path, base: Path, *commands: tuple[str, ...]) -> Path:
    """A folder with a ledger of finished evaluations, a comparison and its export."""
    job = Job("stored", (), base)
    job.reset(place)
    for words in (*commands, ("export", "base", "--out", "export"), ("export", "second", "--out", "export")):
        child = Child(place, *words)
        assert child.wait() == 0, child.errors()
    stored = root / "stored"
    shutil.copytree(place, stored)
    (stored / "record.md").write_text("an older record\n", encoding="utf-8")
    (stored / "report.html").write_text("<p>an older page\n", encoding="utf-8")
    return stored


def _write_tasks(folder: Path, place: Path) -> None:
    """Task files with their documents; lm-eval wants absolute paths of data."""
    folder.mkdir()
    quiz = [{"question": f"Is {i} odd? ", "answer": i % 2, "choices": ["no", "yes, it is"]} for i in range(60)]
    say = [{"question": f"say {i}: ", "answer": str(i)} for i in range(20)]
    generated = ("generation_kwargs: {max_gen_toks: 8}\n"
                 "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]")
    for name, rows, kind, more in (("quiz", quiz, "multiple_choice", "doc_to_choice: choices"),
                                   ("say", say, "generate_until", generated)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        write_task(folder, name, kind, place / "tasks" / f"{name}.jsonl", more)
