"""Results in experiment trackers: what a run has, real local stores that are read back, and trackers that fail."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aftertune import tracking
from aftertune.comparison import compare
from aftertune.errors import InputError, ResourceError
from aftertune.ledger import Ledger
from aftertune.tracking import TrackedRun, check_installed, parse_names, track, tracked_runs
from aftertune.tracking.trackers import Tracker
from aftertune.values import HeldOut, Provenance, Tuning, WatchPoint
from bundle_cases import CANARY
from cli_cases import call, settle
from early_cases import ADAPTED, BASE, changed, store


@pytest.fixture
def ledger_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base and a fine-tune of a study, compared; a secret and a path of this machine are among the texts."""
    settle(monkeypatch, tmp_path)
    base_values, tuned_values = changed(200, 0.7, 2, 80)
    with Ledger(tmp_path / "ledger.db") as ledger:
        base = store(ledger, "base", BASE, {"one": base_values})
        tuned = store(ledger, "careless", ADAPTED, {"one": tuned_values})
        ledger.save_tuning(Tuning(
            id="t-careless", name="careless", base=BASE, method="lora", data="d" * 64, data_source="/home/me/a/o.jsonl",
            examples=600, seed=1, settings={"learning_rate": 2e-4, "lora": {"r": 8}, "note": f"key={CANARY}"},
            output="/home/me/runs/careless", status="done", result=ADAPTED.fingerprint,
            held_out=HeldOut(n=20, before=2.5, after=1.25, low=-1.5, high=-1.0),
            steps=({"step": 1, "loss": 2.5}, {"step": 2, "loss": float("inf"), "tokens": 9}),
            watch=(WatchPoint(step=2, task="one", metric="acc", n=6, base=0.5, tuned=0.25, delta=-0.25, low=-0.5,
                              high=0.0, verdict="undecided"),),
            provenance=Provenance(command=f"aftertune tune x --data /home/me/a/o.jsonl --token {CANARY}",
                                  started="2026-01-01")))
        compare(base, tuned, ledger=ledger)
        ledger.save_study("orders", "s" * 64, json.dumps({"study": "orders", "tunings": {"careless": {}}}))
        for name, ref in (("evaluate base", base.id), ("tune careless", "t-careless"), ("evaluate careless", tuned.id)):
            ledger.save_cell("orders", name, "done", ref=ref)
    return tmp_path / "ledger.db"


def runs_of(path: Path) -> list[TrackedRun]:
    with Ledger(path) as ledger:
        return tracked_runs(ledger, ["e-base", "t-careless", "e-careless"])


def handed_over(name: str, path: Path) -> None:
    """Hand everything over twice: the second time replaces the first."""
    for _ in range(2):
        [line] = track([name], runs_of(path))
        assert line.startswith(f"{name}: 3 runs in "), line


def test_a_run_has_parameters_curves_scores_intervals_and_verdicts(ledger_file: Path) -> None:
    base, tuning, tuned = runs_of(ledger_file)
    assert [r.group for r in (base, tuning, tuned)] == ["orders"] * 3
    assert [r.kind for r in (base, tuning, tuned)] == ["evaluation", "tuning", "evaluation"]
    assert tuned.metrics["one/acc"] == pytest.approx(0.31)
    assert tuned.metrics["one/acc.low"] < 0.31 < tuned.metrics["one/acc.high"]
    assert tuned.metrics["against_base/one/high"] < -0.02
    assert (tuned.tags["verdict/one"], tuned.tags["against"], tuned.tags["aftertune.id"]) == ("forgot", "base",
                                                                                              "e-careless")
    assert tuned.tags["headline"]
    assert "verdict/one" not in base.tags
    assert tuning.tags["verdict/one"] == "forgot"
    assert (tuning.params["learning_rate"], tuning.params["lora.r"], tuning.params["data"]) == (2e-4, 8, "o.jsonl")
    assert list(tuning.curves) == [(1, {"loss": 2.5}), (2, {"tokens": 9.0}), (2, {
        "watch/one/tuned": 0.25, "watch/one/delta": -0.25, "watch/one/low": -0.5, "watch/one/high": 0.0})]
    assert tuning.metrics["held_out/after"] == 1.25
    assert tuned.files["README.md"].startswith("---")
    assert "<html" in tuned.files["report.html"]
    assert "forgot" in tuned.files["report.html"]


def test_no_secret_and_no_path_is_in_a_run(ledger_file: Path) -> None:
    for run in runs_of(ledger_file):
        text = repr(run)
        assert CANARY not in text
        assert "/home/me" not in text
        assert str(ledger_file.parent) not in text


def test_a_stopped_task_has_an_estimate_and_no_score(tmp_path: Path) -> None:
    base, tuned = changed(200, 0.7, 2, 80)
    with Ledger(tmp_path / "ledger.db") as ledger:
        store(ledger, "early", BASE, {"one": base}, used={"one": 64})
        [run] = tracked_runs(ledger, ["e-early"])
        with pytest.raises(InputError, match="no evaluation or tuning 'e-absent'"):
            tracked_runs(ledger, ["e-absent"])
    assert "one/acc.early_estimate" in run.metrics
    assert "one/acc" not in run.metrics
    assert run.tags["partial"] == "true"
    assert len(tuned) == 200


def test_a_tracker_that_fails_is_a_warning(ledger_file: Path, monkeypatch: pytest.MonkeyPatch,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    def fail(run: TrackedRun) -> str:
        print(f"noise {CANARY}")
        raise OSError(f"refused\n with token={CANARY}")

    monkeypatch.setitem(tracking.TRACKERS, "mlflow", Tracker("json", lambda run: f"http://me:secret@h/?key={CANARY}"))
    [line] = track(["mlflow"], runs_of(ledger_file))
    assert line.endswith("in http://[redacted]@h/?key=[redacted]")
    monkeypatch.setitem(tracking.TRACKERS, "wandb", Tracker("json", fail))
    [line] = track(["wandb"], runs_of(ledger_file))
    assert line.startswith("warning: wandb: refused with token=[redacted]; the results are in the ledger, and ")
    assert call(monkeypatch, "export", "orders", "--to", "wandb") == 4
    captured = capsys.readouterr()
    assert "aftertune: wandb: refused" in captured.err
    assert CANARY not in captured.err + captured.out


def test_names_and_packages_are_checked_before_the_work(ledger_file: Path, monkeypatch: pytest.MonkeyPatch,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_names(["mlflow", "wandb", "mlflow"], "--track") == ("mlflow", "wandb")
    monkeypatch.setitem(tracking.TRACKERS, "mlflow", Tracker("no_such_package", lambda run: ""))
    with pytest.raises(ResourceError, match=r"pip install 'aftertune\[mlflow\]'"):
        check_installed(["mlflow"])
    for words in (("eval", "absent", "--tasks", "arc_easy"), ("tune", "absent", "--data", "absent.jsonl"),
                  ("run", "study.yaml")):
        if words[0] == "run":
            Path("study.yaml").write_text("study: s\nbases: {b: {model: absent}}\ntasks: [{name: arc_easy}]\n")
        assert call(monkeypatch, *words, "--track", "mlflow") == 4
        assert call(monkeypatch, *words, "--track", "mlfow") == 2
        err = capsys.readouterr().err
        assert "mlflow is not installed; pip install 'aftertune[mlflow]'" in err
        assert "--track 'mlfow': allowed are mlflow, wandb, trackio, tensorboard (did you mean 'mlflow'?)" in err


def events(file: Path) -> Iterator[Any]:
    """The events of a file, as TensorBoard reads them."""
    from tensorboardX.proto.event_pb2 import Event

    data = file.read_bytes()
    while data:
        [size] = struct.unpack("<Q", data[:8])
        event = Event()
        event.ParseFromString(data[12:12 + size])
        yield event
        data = data[16 + size:]


def test_tensorboard(ledger_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboardX")
    handed_over("tensorboard", ledger_file)
    home = ledger_file.parent / "tensorboard" / "orders"
    assert sorted(p.name for p in home.iterdir()) == ["base-e-base", "careless-e-careless", "careless-t-careless"]
    [file] = (home / "careless-t-careless").glob("events.*")
    values = [(v.tag, e.step, v.simple_value) for e in events(file) for v in e.summary.value]
    assert ("loss", 1, 2.5) in values
    assert any(tag == "held_out/after" and value == 1.25 for tag, _, value in values)
    [file] = (home / "careless-e-careless").glob("events.*")
    content = file.read_bytes()
    assert b"| verdict/one | forgot |" in content
    assert (home / "careless-e-careless" / "report.html").stat().st_size > 2000
    assert not [p for p in home.rglob("*") if p.is_file() and CANARY.encode() in p.read_bytes()]
    assert call(monkeypatch, "export", "e-base", "--to", "tensorboard", "--json") == 0


def test_mlflow(ledger_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    store_ = ledger_file.parent / "mlruns"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(store_.as_uri())
    handed_over("mlflow", ledger_file)
    client = mlflow.MlflowClient()
    found = client.search_runs([client.get_experiment_by_name("orders").experiment_id])
    assert len(found) == 3
    runs = {r.data.tags["aftertune.id"]: r for r in found}
    tuned = runs["e-careless"]
    assert tuned.data.tags["verdict/one"] == "forgot"
    assert tuned.data.metrics["one/acc"] == pytest.approx(0.31)
    assert {f.path for f in client.list_artifacts(tuned.info.run_id)} == {"README.md", "report.html"}
    assert runs["t-careless"].data.params["learning_rate"] == "0.0002"
    curve = client.get_metric_history(runs["t-careless"].info.run_id, "loss")
    assert [(m.step, m.value) for m in curve] == [(1, 2.5)]
    assert not [p for p in store_.rglob("*") if p.is_file() and CANARY.encode() in p.read_bytes()]


class OldMlflow:
    """The calls of an MLflow client, whose runs were there before and which is interrupted at the first file."""

    def __init__(self, calls: list[tuple[Any, ...]], interrupted: bool) -> None:
        self.calls, self.interrupted = calls, interrupted

    def get_experiment_by_name(self, _: str) -> Any:
        return SimpleNamespace(experiment_id="1")

    def search_runs(self, *_: Any, **__: Any) -> list[Any]:
        return [SimpleNamespace(info=SimpleNamespace(run_id="old"))]

    def create_run(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(info=SimpleNamespace(run_id="new"))

    def log_batch(self, *_: Any, **__: Any) -> None:
        pass

    def log_text(self, *_: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt

    def set_terminated(self, *words: str) -> None:
        self.calls.append(("ended", *words))

    def delete_run(self, id_: str) -> None:
        self.calls.append(("deleted", id_))


def test_an_interrupted_run_of_mlflow_is_closed_and_the_one_before_stays(ledger_file: Path,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    client = OldMlflow(calls, interrupted=True)
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(
        MlflowClient=lambda: client, get_tracking_uri=lambda: "here"))
    monkeypatch.setitem(sys.modules, "mlflow.entities", SimpleNamespace(Param=tuple_of, Metric=tuple_of))
    [run, *_] = runs_of(ledger_file)
    with pytest.raises(KeyboardInterrupt):
        list(track(["mlflow"], [run]))
    assert calls == [("ended", "new", "FAILED")]
    client.interrupted = False
    assert [*track(["mlflow"], [run])] == ["mlflow: 1 run in experiment orders of here"]
    assert calls[1:] == [("ended", "new"), ("deleted", "old")]


def tuple_of(*values: Any) -> tuple[Any, ...]:
    return values


def test_what_cannot_be_made_a_run_is_a_warning(ledger_file: Path, monkeypatch: pytest.MonkeyPatch,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    from aftertune.cli.tracking import hand_over

    def fail(*_: Any) -> None:
        raise TypeError("float() argument must be a number")

    monkeypatch.setattr(tracking, "tracked_runs", fail)
    with Ledger(ledger_file) as ledger:
        assert hand_over(["mlflow"], ["e-base"], ledger) == ["warning: mlflow: float() argument must be a number"]
    assert "warning: mlflow: float()" in capsys.readouterr().err


def test_an_export_that_fails_ends_with_an_error_and_a_run_does_not(
        ledger_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The export is the whole job; `--track` is beside a job that is done."""
    from aftertune.cli.tracking import hand_over

    def fail(run: TrackedRun) -> str:
        raise OSError("no space left")

    monkeypatch.setitem(tracking.TRACKERS, "mlflow", Tracker("json", fail))
    monkeypatch.setitem(tracking.TRACKERS, "wandb", Tracker("json", lambda run: "here"))
    assert call(monkeypatch, "export", "orders", "--to", "mlflow", "--to", "wandb") == 4
    out, err = capfd.readouterr()
    assert out == "wandb: 3 runs in here\n"
    assert err.startswith("aftertune: mlflow: no space left; the results are in the ledger, and `aftertune export ID")
    assert err.count("\n") == 1
    with Ledger(ledger_file) as ledger:
        assert "no space left" in hand_over(["mlflow"], ["e-base"], ledger)[0]
    assert capfd.readouterr().err.startswith("warning: mlflow: no space left")
    with Ledger(ledger_file) as ledger:
        ledger.save_study("empty", "e" * 64, json.dumps({"study": "empty"}))
    assert call(monkeypatch, "export", "empty", "--to", "wandb") == 2
    assert "empty has no finished evaluation or fine-tune" in capfd.readouterr().err


def test_wandb(ledger_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(ledger_file.parent))
    [line] = track(["wandb"], runs_of(ledger_file))
    assert line.startswith("wandb: 3 runs in project aftertune, offline"), line
    files = [p for p in (ledger_file.parent / "wandb").rglob("*.wandb") if not p.is_symlink()]
    content = b"".join(p.read_bytes() for p in files)
    assert len(files) == 3
    for part in (b"learning_rate", b"one/acc.low", b"verdict/one", b"forgot", b"loss", b"orders"):
        assert part in content, part
    everything = [p for p in (ledger_file.parent / "wandb").rglob("*") if p.is_file()]
    assert not [p for p in everything if CANARY.encode() in p.read_bytes()]


def test_trackio(ledger_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = ledger_file.parent / "trackio"
    monkeypatch.setenv("TRACKIO_DIR", str(home))
    pytest.importorskip("trackio")
    handed_over("trackio", ledger_file)
    content = b"".join(p.read_bytes() for p in home.rglob("*") if p.is_file())
    for part in (b"learning_rate", b"one/acc.low", b"verdict/one", b"careless (t-careless)"):
        assert part in content, part
    assert CANARY.encode() not in content


def test_a_study_that_fails_hands_over_what_is_finished(ledger_file: Path, monkeypatch: pytest.MonkeyPatch,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    from aftertune.cli.tracking import tracked_study

    handed: list[TrackedRun] = []

    def log(run: TrackedRun) -> str:
        handed.append(replace(run))
        return "here"

    monkeypatch.setitem(tracking.TRACKERS, "mlflow", Tracker("json", log))
    with pytest.raises(RuntimeError, match="out of memory"), tracked_study(("mlflow",), "orders"):
        raise RuntimeError("out of memory")
    assert [r.id for r in handed] == ["e-base", "t-careless", "e-careless"]
    assert "mlflow: 3 runs in here" in capsys.readouterr().err
