"""Ledgers, tunings and checkpoints of the version before open, resume and compare as they did there.

``data/version_before`` was made by commit 6627cb2 (``data/make_version_before.py``): ``project`` is what a user had in
his folder, ``expected.json`` is what that commit read in it, and what its stopped works came to where they were not
stopped. Ids and stored values must be equal. Numbers that are computed again must be equal bit by bit where processor
and libraries are those of the data, and within small bounds elsewhere.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from aftertune import Ledger, Margin, compare, evaluate
from aftertune.early_stopping import EarlySpec, until_decided
from aftertune.errors import ResumeRefused
from aftertune.forgetting_watch import ForgettingWatch
from aftertune.ledger.digests import seal
from aftertune.ledger.schema import schedule as schedule_table
from aftertune.study import EvalSpec, TaskSpec, TuneSpec
from aftertune.tuning import tune
from cli_cases import call, settle

pytestmark = pytest.mark.filterwarnings("ignore")
DATA = Path(__file__).parent / "data" / "version_before"
EXPECTED: dict[str, Any] = json.loads((DATA / "expected.json").read_text(encoding="utf-8"))
WHOLE: dict[str, Any] = EXPECTED["whole"]
#: Name -> id of the evaluations.
IDS = {value["name"]: key for key, value in EXPECTED["evaluations"].items()}
QUIET: dict[str, Any] = {"device": "cpu", "dtype": "float32", "task_source": "pack", "threads": 1, "memory": "1MB"}
HALF = EvalSpec(model="./base", adapter="runs/tunings/lora", name="half", gen_kwargs={"max_gen_toks": 8}, **QUIET,
                tasks=(TaskSpec(name="arc_easy", sample=20), TaskSpec(name="gsm8k_cot", sample=8)))
#: Bounds where another processor computes: log-likelihoods in nats, losses in nats per token, scores.
NATS, LOSSES, SCORES = 1e-3, 0.02, 0.1


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the old project, as the working folder; its name is part of the stored study."""
    folder = tmp_path / "project"
    shutil.copytree(DATA / "project", folder)
    settle(monkeypatch, folder)
    return folder


def as_json(value: Any) -> Any:
    """A value as JSON has it: dataclasses as mappings, tuples as lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): as_json(inner) for key, inner in value.items()}
    return [as_json(inner) for inner in value] if isinstance(value, list | tuple) else value


def differences(then: Any, now: Any, place: str = "") -> Iterator[str]:
    """Where ``now`` lacks or changes what ``then`` holds; a value may have gained fields."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key, value in then.items():
            if key in now:
                yield from differences(value, now[key], f"{place}.{key}")
            else:
                yield f"{place}.{key} is gone"
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for number, (left, right) in enumerate(zip(then, now, strict=True)):
            yield from differences(left, right, f"{place}[{number}]")
    elif then != now:
        yield f"{place}: {then!r} then, {now!r} now"


def assert_same(then: Any, now: Any) -> None:
    found = list(differences(then, as_json(now)))
    assert not found, found[:8]


def stored(project: Path) -> dict[str, Any]:
    """The old ledger's values, in the form of ``expected.json``."""
    with Ledger(project / "ledger.db") as ledger:
        evaluations = ledger.evaluations()
        return {
            "evaluations": {e.id: e for e in evaluations},
            "answers": {e.id: ledger.answers(e.id) for e in evaluations if e.status == "done"},
            "items": {key: ledger.items(key) for key in EXPECTED["items"]},
            "responses": {key: ledger.responses(key) for key in EXPECTED["responses"]},
            "tunings": {t.id: t for t in ledger.tunings()}, "comparisons": {c.id: c for c in ledger.comparisons()},
            "studies": ledger.studies(), "cells": ledger.cells("old"), "reported": ledger.reported(),
            "remarks": ledger.remarks()}


def test_the_data_is_small_and_names_no_place_of_the_machine_that_made_it() -> None:
    files = [path for path in DATA.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 3_000_000
    for path in files:
        content = path.read_bytes()
        for word in (b"/home/", b"/root/", b"/tmp/", b"/work/", b"/Users/"):
            assert word not in content, path


@pytest.mark.parametrize("part", ["evaluations", "answers", "items", "responses", "tunings", "comparisons", "studies",
                                  "cells", "reported", "remarks"])
def test_every_stored_value_is_read_as_the_version_before_read_it(project: Path, part: str) -> None:
    now = stored(project)[part]
    assert_same(EXPECTED[part], now)
    assert len(now) == len(EXPECTED[part])
    assert len(now) or part == "remarks"


def test_the_ledger_is_whole(project: Path) -> None:
    with Ledger(project / "ledger.db") as ledger:
        assert {f.name: f.value for f in ledger.check()}["integrity"] == "ok"


def test_manifests_are_the_files_that_were_written(project: Path) -> None:
    now = {str(path.relative_to(project)): hashlib.sha256(path.read_bytes()).hexdigest()
           for path in sorted(project.rglob("aftertune.json"))}
    assert now == EXPECTED["manifests"]
    for path in now:
        manifest = json.loads((project / path).read_text(encoding="utf-8"))
        assert_same(EXPECTED["tunings"][manifest["id"]], manifest)


def test_the_commands_read_the_old_ledger(project: Path, monkeypatch: pytest.MonkeyPatch,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*words: str) -> Any:
        assert call(monkeypatch, *words, "--json") == 0
        return json.loads(capsys.readouterr().out)

    listed = shown("runs")
    for kind in ("evaluations", "tunings", "comparisons"):
        assert [one["id"] for one in listed[kind]] == list(EXPECTED[kind])
    assert [one["source"] for one in listed["reported"]] == ["others.md"]
    for kind in ("evaluations", "tunings", "comparisons"):
        for key, value in EXPECTED[kind].items():
            assert_same(value, shown("show", key))
    cells = {cell["cell"]: cell for cell in shown("plan", "study.yaml", "--out", "runs")["cells"]}
    assert {name: cell["status"] for name, cell in cells.items()} == {
        one["name"]: "done" for one in EXPECTED["cells"]}


def test_record_page_card_and_table_are_written(project: Path, monkeypatch: pytest.MonkeyPatch,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["record"], ["report"], ["card", "lora", "--out", "card"], ["export", "lora"]):
        assert call(monkeypatch, *words) == 0, words
    capsys.readouterr()
    record, page = Path("record.md").read_text(encoding="utf-8"), Path("report.html").read_text(encoding="utf-8")
    scores = [s for e in EXPECTED["evaluations"].values() if e["status"] == "done" and not e["early"]
              for s in e["scores"]]
    assert len(scores) == 30
    for score in scores:
        assert f"{100 * score['value']:.2f}%" in record
        assert f"{100 * score['value']:.2f}" in page
    assert "45.23%" in record
    assert call(monkeypatch, "export", next(iter(EXPECTED["comparisons"])), "--format", "csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == len(next(iter(EXPECTED["comparisons"].values()))["rows"])
    for row, then in zip(rows, next(iter(EXPECTED["comparisons"].values()))["rows"], strict=True):
        assert (row["task"], row["metric"], int(row["n"])) == (then["task"], then["metric"], then["n"])
        assert float(row["base"]) == pytest.approx(then["base"], abs=1e-9)


def test_a_comparison_computed_again_is_the_same(project: Path) -> None:
    with Ledger(project / "ledger.db") as ledger:
        for then in EXPECTED["comparisons"].values():
            margins = {row["task"]: Margin(share=row["margin"]) for row in then["rows"]}
            now = compare(then["base"], then["tuned"], margin=margins, ledger=ledger)
            assert now.id == then["id"]
            assert_same(without_words(then), without_words(as_json(now)))


def without_words(comparison: dict[str, Any]) -> dict[str, Any]:
    """A comparison without its sentences, which a later version may put in other words; of a label the first word."""
    rows = [{**{k: v for k, v in row.items() if k not in ("note", "details")}, "told": row["told"].split(" (")[0]}
            for row in comparison["rows"]]
    return {**comparison, "rows": rows, "differences": []}


def test_the_same_question_is_answered_from_the_ledger(project: Path, monkeypatch: pytest.MonkeyPatch,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    """Evaluations, tunings and comparisons of the old study: no weights are read, and no file is written anew."""
    def loads(*_: Any, **__: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", loads)
    before = {path: path.read_bytes() for path in project.rglob("aftertune.json")}
    assert call(monkeypatch, "run", "study.yaml", "--out", "runs", "--json") == 0
    comparisons = json.loads(capsys.readouterr().out)["comparisons"]
    assert [c["comparison"] for c in comparisons] == list(EXPECTED["comparisons"])[:4]
    assert {path: path.read_bytes() for path in project.rglob("aftertune.json")} == before
    for part in ("evaluations", "answers", "tunings"):
        assert_same(EXPECTED[part], stored(project)[part])


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an evaluation that begins here has as its conditions: threads, libraries, processor, budget, batches."""
    folder = tmp_path_factory.mktemp("here") / "project"
    shutil.copytree(DATA / "project", folder)
    with contextlib.chdir(folder), Ledger("fresh.db") as ledger:
        [lora] = [t for t in EXPECTED["tunings"].values() if t["name"] == "lora"]
        done = evaluate(HALF, ledger=ledger)
        assert done.id == IDS["half"]
        assert lora["output"] == "runs/tunings/lora"
        assert done.provenance is not None
        return {"schedule": as_json(done.schedule), "cpu": done.provenance.hardware["cpu"],
                "versions": dict(done.provenance.versions), "scores": as_json(done.scores)}


def pass_time(project: Path) -> None:
    """The process that held the stopped evaluation, on another machine, has been silent for a day."""
    with contextlib.closing(sqlite3.connect(project / "ledger.db")) as connection, connection:
        assert connection.execute("SELECT host FROM lease").fetchall() == [("elsewhere",)]
        connection.execute("UPDATE lease SET heartbeat = ?", [time.time() - 86_400])


#: What of a schedule must be met for an evaluation to go on.
KEPT = ("plan", "threads", "torch", "transformers", "cpu", "budget")


def same_machine(here: dict[str, Any]) -> bool:
    """True where processor and libraries are those of the data, so that numbers are equal bit by bit."""
    then = WHOLE["evaluations"][IDS["half"]]
    versions = {name: then["provenance"]["versions"].get(name) for name in ("torch", "transformers", "peft", "trl")}
    return (here["cpu"] == then["provenance"]["hardware"]["cpu"]
            and all(here["versions"].get(name) == version for name, version in versions.items())
            and all(here["schedule"][key] == then["schedule"][key] for key in KEPT))


def adopt(project: Path, here: dict[str, Any]) -> None:
    """Write this machine's conditions into the stopped evaluations, which would else not be gone on with."""
    with contextlib.closing(sqlite3.connect(project / "ledger.db")) as connection, connection:
        for name in ("half", "early-half"):
            where = "(SELECT seq FROM evaluation WHERE id = ?)"
            [[text]] = connection.execute(f"SELECT value FROM schedule WHERE evaluation = {where}", [IDS[name]])
            taken = KEPT if name == "half" else KEPT[1:]
            schedule = {**json.loads(text), **{key: here["schedule"][key] for key in taken}}
            connection.execute(f"UPDATE schedule SET value = ? WHERE evaluation = {where}",
                               [json.dumps(schedule), IDS[name]])
        seqs = [seq for (seq,) in connection.execute("SELECT evaluation FROM schedule")]
    with Ledger(project / "ledger.db") as ledger, ledger.database.write() as opened:
        seal(opened, schedule_table, seqs)


def assert_scores(then: list[dict[str, Any]], now: Any, exact: bool) -> None:
    now = as_json(now)
    if exact:
        assert_same(then, now)
        return
    assert [(s["task"], s["metric"], s["n"]) for s in now] == [(s["task"], s["metric"], s["n"]) for s in then]
    assert [s["value"] for s in now] == pytest.approx([s["value"] for s in then], abs=SCORES)


def assert_answers(then: list[dict[str, Any]], now: Any, exact: bool) -> None:
    """The log-likelihoods and texts of every answer."""
    now = as_json(now)
    assert [(a["task"], a["index"], a["item"]) for a in now] == [(a["task"], a["index"], a["item"]) for a in then]
    if exact:
        assert_same(then, now)
    else:
        for left, right in zip(then, now, strict=True):
            for a, b in zip(left["responses"], right["responses"], strict=True):
                assert b["logprob"] == (None if a["logprob"] is None else pytest.approx(a["logprob"], abs=NATS))


@pytest.mark.parametrize("moved", [False, True], ids=["as it is", "on another machine"])
def test_a_stopped_evaluation_goes_on_to_the_scores_of_an_unbroken_one(project: Path, here: dict[str, Any],
                                                                       moved: bool) -> None:
    """Its process was killed on a machine of another name, so its lease is still there."""
    exact = same_machine(here)
    pass_time(project)
    told: list[tuple[int, int]] = []
    then = WHOLE["evaluations"][IDS["half"]]
    if moved:  # begun elsewhere: refused, until its conditions are those of this machine
        adopt(project, {"schedule": {**here["schedule"], "torch": "0.0"}})
        with Ledger("ledger.db") as ledger, pytest.raises(ResumeRefused, match="torch"):
            evaluate(HALF, ledger=ledger)
    if moved or not exact:
        adopt(project, here)
    with Ledger("ledger.db") as ledger:
        before = ledger.responses(IDS["half"])
        done = evaluate(HALF, ledger=ledger, progress=lambda *p: told.append(p[:2]) if p[2] == "answering" else None)
        answers = ledger.answers(done.id)
        after = ledger.responses(IDS["half"])
    assert told[0][0] > 0, "it began anew"
    assert len(before) < len(after)
    assert {p: after[p] for p in before} == before
    assert (done.id, done.status) == (IDS["half"], "done")
    assert_scores(then["scores"], done.scores, exact)
    assert_answers(WHOLE["answers"][IDS["half"]], answers, exact)
    assert_scores(as_json(done.scores), here["scores"], exact)


def test_a_stopped_early_evaluation_goes_on_to_the_same_verdicts(project: Path, here: dict[str, Any]) -> None:
    exact = same_machine(here)
    if not exact:
        adopt(project, here)
    tasks = (TaskSpec(name="own", apply_chat_template=True, target={"file": "own.jsonl", "max_tokens": 8}),
             TaskSpec(name="known", target={"file": "known.jsonl", "max_tokens": 3}),
             TaskSpec(name="arc_easy", sample=24))
    spec = EvalSpec(model="runs/tunings/full", name="early-half", tasks=tasks, **QUIET)
    with Ledger("ledger.db") as ledger:
        before = ledger.responses(IDS["early-half"])
        decided = until_decided(spec, "b", EarlySpec(margin=10), ledger=ledger)
        after = ledger.responses(IDS["early-half"])
    then = WHOLE["evaluations"][IDS["early-half"]]
    assert (decided.tuned.id, decided.comparison.id) == (IDS["early-half"], WHOLE["comparison"]["id"])
    assert {p: after[p] for p in before} == before
    assert [u["order"] for u in then["early"]["units"]] == [u.order for u in decided.tuned.early.units]
    if exact:
        assert_scores(then["scores"], decided.tuned.scores, exact)
        assert_same(then["early"], decided.tuned.early)
    # it stopped by the rule of its version, about the full run; the words of a new comparison are about the models
    assert [(u["name"], u["used"], u["verdict"]) for u in then["early"]["units"]] == [
        (u.name, u.used, u.verdict) for u in decided.tuned.early.units]
    close = 1e-12 if exact else SCORES
    rows = [r for r in decided.comparison.rows if r.metric != "prob"]  # there are rows for expected accuracy, too
    for old, new in zip(WHOLE["comparison"]["rows"], rows, strict=True):
        assert (old["task"], old["metric"], old["n"]) == (new.task, new.metric, new.n)
        assert old["stopped_of"] == new.stopped_of
        assert (new.base, new.tuned, new.delta) == pytest.approx((old["base"], old["tuned"], old["delta"]), abs=close)
        if new.stopped_of is None and new.primary:  # since version 4 of the rules the looks have a part of the level
            assert new.low < old["low"] < old["high"] < new.high
        elif new.stopped_of is None or new.primary:
            ends = (new.low, new.high) if new.stopped_of is None else (new.full_low, new.full_high)
            assert ends == pytest.approx((old["low"], old["high"]), abs=close)


def tune_spec(out: str) -> TuneSpec:
    """The stopped tuning as it was asked for."""
    return TuneSpec(
        model="./base", name="half-tuning", out=out, method="lora", learning_rate=0.02, epochs=3.0, max_steps=12,
        batch_size=2, accumulation=2, dtype="float32", device="cpu", threads=1, checkpoint_minutes=0,
        lora={"r": 4, "dropout": 0.1}, data={"file": "rows.jsonl", "validation": 0.2},
        early_stop={"every": 2, "patience": 20}, watch={"tasks": {"arc_easy": 8}, "every": 4},
        replay={"data": "replay.jsonl", "share": 0.2})


def assert_tuned(done: Any, exact: bool) -> None:
    """The stopped tuning ended as the unbroken one of the version before."""
    then, now = WHOLE["tuning"], as_json(done)
    kept = ("id", "method", "data", "examples", "seed", "settings", "counts", "trainable_parameters", "status")
    assert_same({key: then[key] for key in kept}, now)
    weights = Path(done.output) / "adapter_model.safetensors"
    if exact:
        assert hashlib.sha256(weights.read_bytes()).hexdigest() == WHOLE["weights"]
        assert_same({key: then[key] for key in ("result", "held_out", "watch")}, now)
    steps = [[step.get(key) for key in ("loss", "validation_loss", "learning_rate")] for step in now["steps"]]
    before = [[step.get(key) for key in ("loss", "validation_loss", "learning_rate")] for step in then["steps"]]
    assert len(steps) == len(before)
    for left, right in zip(steps, before, strict=True):
        assert left == (right if exact else [None if x is None else pytest.approx(x, abs=LOSSES) for x in right])
    for key in ("before", "after", "low", "high"):
        assert now["held_out"][key] == pytest.approx(then["held_out"][key], abs=0 if exact else LOSSES)


@pytest.mark.slow
def test_a_stopped_tuning_goes_on_from_its_checkpoint_to_the_same_weights(project: Path, here: dict[str, Any]) -> None:
    """Its checkpoints hold dropout's random numbers, the best weights of validation, and looks at a task."""
    exact, told = same_machine(here), []
    spec = tune_spec("runs/half")
    with Ledger("ledger.db") as ledger:
        done = tune(spec, ledger=ledger, progress=lambda *p: told.append(p), look=ForgettingWatch(spec,
                                                                                                  task_source="pack"))
        stored_now = ledger.find_tuning(done.id)
    steps = [step for step, _, text in told if text.startswith("training: step")]
    assert steps == [8, 9, 10, 11, 12], "the newest checkpoint is that of step 7"
    assert_tuned(done, exact)
    assert_same(as_json(done), stored_now)
    assert not Path("runs/half/checkpoints").exists()


@pytest.mark.slow
def test_a_tuning_begun_anew_is_the_old_one(project: Path, here: dict[str, Any]) -> None:
    spec = tune_spec("runs/anew")
    assert_tuned(tune(spec, look=ForgettingWatch(spec, task_source="pack")), same_machine(here))


@pytest.mark.slow
def test_an_old_adapter_and_old_weights_compute_what_they_did(project: Path, here: dict[str, Any]) -> None:
    """Into a fresh ledger, so that nothing is answered from the old one; the ids are the same again."""
    exact = same_machine(here)
    tasks = (TaskSpec(name="arc_easy", sample=24),
             TaskSpec(name="gsm8k_cot", sample=2, gen_kwargs={"max_gen_toks": 8}),
             TaskSpec(name="own", apply_chat_template=True, target={"file": "own.jsonl", "max_tokens": 8}),
             TaskSpec(name="known", target={"file": "known.jsonl", "max_tokens": 3}))
    models = {"lora": ("./base", "runs/tunings/lora"), "full": ("runs/tunings/full", None),
              "dora-s1": ("./base", "runs/tunings/dora-s1")}
    with Ledger("fresh.db") as ledger:
        for name, (model, adapter) in models.items():
            done = evaluate(model, tasks, adapter=adapter, ledger=ledger, device="cpu", dtype="float32",
                            task_source="pack", threads=1)
            assert done.id == IDS[name]
            assert_scores(EXPECTED["evaluations"][done.id]["scores"], done.scores, exact)
            assert_answers(EXPECTED["answers"][done.id], ledger.answers(done.id), exact)
