"""Studies: the order of cells, what names stand for, what is done again, what a failure stops, and what a plan says."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest

from aftertune.errors import InputError, StorageError
from aftertune.ledger import Ledger
from aftertune.ledger.running import RunningEntry
from aftertune.pipeline import cell_runs, cells_of, plan, running, select_cells
from aftertune.sources.folder_lock import folder_lock, try_folder_lock
from aftertune.study import Study
from eval_cases import CHAT, byte_folder
from test_cli import call
from tuning_cases import easy_rows, write_rows

pytestmark = pytest.mark.filterwarnings("ignore")
STUDIES = Path(__file__).parent.parent / "studies"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of one tiny base with two fine-tunes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(tmp_path / "ledger.db"))
    byte_folder(tmp_path / "base", template=CHAT, window=4096)
    write_rows(tmp_path / "rows.jsonl", easy_rows())
    path = tmp_path / "study.yaml"
    path.write_text("study: own\nmargin: 5\ndtype: float32\ntask_source: pack\nbases: {b: {model: ./base}}\n"
                    "tasks: [{name: arc_easy, sample: 4}]\n"
                    "matrix: {base: b, data: rows.jsonl, method: [lora, ia3], max_steps: 1}\n", encoding="utf-8")
    return path


def states(study: str = "own") -> dict[str, str]:
    with Ledger() as ledger:
        return {c.name: c.status for c in ledger.cells(study)}


def test_a_base_comes_first_and_its_tuned_models_are_evaluated_together(file: Path) -> None:
    names = [c.name for c in cells_of(Study.load(file))]
    assert names == ["evaluate b", "tune lora", "tune ia3", "evaluate lora", "evaluate ia3"]


@pytest.mark.parametrize(("only", "names"), [
    (["lora"], ["evaluate b", "tune lora", "evaluate lora"]), (["tune *"], ["tune lora", "tune ia3"]),
    (["b"], ["evaluate b"]), ([], ["evaluate b", "tune lora", "tune ia3", "evaluate lora", "evaluate ia3"])])
def test_only_names_cells_with_what_they_need(file: Path, only: list[str], names: list[str]) -> None:
    assert [c.name for c in select_cells(Study.load(file), only)] == names


def test_only_a_name_that_is_not_there_is_refused(file: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'lora'"):
        select_cells(Study.load(file), ["lorra"])


def test_a_part_then_the_rest_then_nothing(file: Path, monkeypatch: pytest.MonkeyPatch,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "run", str(file), "--only", "lora", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["comparisons"]) == 1
    assert states() == {"evaluate b": "done", "tune lora": "done", "evaluate lora": "done", "tune ia3": "planned",
                        "evaluate ia3": "planned"}
    loaded: list[str] = []
    cache = cell_runs.BaseModelCache
    real = cache.load
    monkeypatch.setattr(cache, "load", lambda self, *a, **k: loaded.append("") or real(self, *a, **k))
    assert call(monkeypatch, "run", str(file), "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["comparisons"]) == 2
    assert set(states().values()) == {"done"}
    assert len(loaded) == 1, "only what was missing"
    assert call(monkeypatch, "run", str(file), "--json") == 0
    assert len(loaded) == 1


def test_after_a_tuned_model_the_next_command_is_named(file: Path, monkeypatch: pytest.MonkeyPatch,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    """Where its base was asked the same items, and only there."""
    asked = ["--tasks", "arc_easy", "--dtype", "float32"]
    assert call(monkeypatch, "tune", "base", "--data", "rows.jsonl", "--max-steps", "1", "--out", "tuned") == 0
    assert call(monkeypatch, "eval", "base", *asked, "--limit", "3") == 0
    assert call(monkeypatch, "eval", "base", "--adapter", "tuned", *asked, "--limit", "2", "--name", "other") == 0
    assert "aftertune compare" not in capsys.readouterr().out
    assert call(monkeypatch, "eval", "base", "--adapter", "tuned", *asked, "--limit", "3", "--name", "mine") == 0
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert line == "compare with the base: aftertune compare base mine"
    assert call(monkeypatch, *line.partition(": aftertune ")[2].split()) == 0


def test_a_failed_cell_does_not_stop_the_rest(file: Path, monkeypatch: pytest.MonkeyPatch,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    real = cell_runs.tune

    def failing(spec: Any, **others: Any) -> Any:
        if spec.method == "lora":
            raise InputError("the disk is full of dragons")
        return real(spec, **others)

    monkeypatch.setattr(cell_runs, "tune", failing)
    assert call(monkeypatch, "run", str(file)) == 2
    assert states() == {"evaluate b": "done", "tune lora": "failed", "tune ia3": "planned", "evaluate lora": "planned",
                        "evaluate ia3": "planned"}
    capsys.readouterr()
    assert call(monkeypatch, "run", str(file), "--keep-going", "--json") == 1
    shown = capsys.readouterr()
    assert [f["cell"] for f in json.loads(shown.out)["failed"]] == ["tune lora", "evaluate lora"]
    assert "dragons" in shown.err
    assert "Traceback" not in shown.err
    assert states()["evaluate ia3"] == "done"
    with Ledger() as ledger:
        cells = {c.name: c for c in plan(Study.load(file), ledger=ledger, file="study.yaml")}
    assert (cells["tune lora"].status, "dragons" in cells["tune lora"].why) == ("failed", True)
    assert cells["evaluate ia3"].status == "done"
    monkeypatch.setattr(cell_runs, "tune", real)
    assert call(monkeypatch, "run", str(file)) == 0
    assert set(states().values()) == {"done"}


def test_a_plan_says_that_unsloth_is_not_here(file: Path) -> None:
    with Ledger() as ledger:
        study = Study.load(file, ["tunings.lora.backend=unsloth"])
        cells = {c.name: c.missing for c in plan(study, ledger=ledger, file="study.yaml")}
    assert "backend unsloth needs a CUDA device" in cells["tune lora"][0]
    assert cells["tune ia3"] == ()


def test_an_interrupted_cell_is_planned_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cell_runs, "tune", interrupted)
        with pytest.raises(KeyboardInterrupt), Ledger() as ledger:
            running.run(Study.load(file), ledger=ledger, out=Path("out"))
    assert states()["tune lora"] == "planned"
    with Ledger() as ledger:  # one that was killed says nothing
        ledger.save_cell("own", "tune lora", "running")
        [cell] = [c for c in plan(Study.load(file), ledger=ledger, file="f") if c.name == "tune lora"]
    assert (cell.status, "interrupted" in cell.why) == ("planned", True)


def test_a_second_process_is_refused_and_seen(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = file.parent / "out"
    out.mkdir()
    with folder_lock(out, "runs a study"), Ledger() as ledger:
        with pytest.raises(StorageError, match="another process"):
            running.run(Study.load(file), ledger=ledger, out=out)
        ledger.save_study("own", "h", Study.load(file).model_dump_json())
        ledger.save_cell("own", "evaluate b", "running")
        assert plan(Study.load(file), ledger=ledger, file="f", out=out)[0].status == "running"
        entry = RunningEntry(id="e-1", kind="evaluation", name="b", started="", done=30, total=120, seconds_left=45.0,
                             processes=2, hosts=("one", "two"))
        monkeypatch.setattr(Ledger, "running", lambda self: [entry])
        cell = plan(Study.load(file), ledger=ledger, file="f", out=out)[0]
        assert (cell.status, cell.why) == ("running", "25% done, about 45 s left, by 2 processes, on one and two")


def test_cells_are_stored_in_the_order_of_the_study(file: Path) -> None:
    """The page lists them in this order, in every process."""
    study = Study.load(file)
    with Ledger() as ledger:
        running.save_study(study, ledger)
        assert [c.name for c in ledger.cells(study.study)] == [c.name for c in cells_of(study)]
    assert len(cells_of(study)) > 2


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = ("import sys, time; from pathlib import Path; from aftertune.sources.folder_lock import folder_lock\n"
            "with folder_lock(Path(sys.argv[1]), 'runs a study'): print('locked', flush=True); time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"locked\n"
        with pytest.raises(StorageError, match=rf"another process \({child.pid} on "), \
                folder_lock(tmp_path, "runs a study"):
            pass
        child.kill()
    with folder_lock(tmp_path, "runs a study"), try_folder_lock(tmp_path) as second:
        assert not second
    with try_folder_lock(tmp_path / "none") as free:  # does not create a missing folder
        assert free
    assert not (tmp_path / "none").exists()


def test_a_lock_file_that_its_holder_removes_meanwhile_locks_nothing(tmp_path: Path,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process locks a new file while this one has opened the old one."""
    import filelock

    acquire, others = filelock.FileLock.acquire, []

    def slow(lock: filelock.FileLock, *words: Any, **settings: Any) -> Any:
        result = acquire(lock, *words, **settings)
        if not others:
            others.append(lock)
            (tmp_path / ".running").unlink()
            others.append(filelock.FileLock(tmp_path / ".running", blocking=False))
            acquire(others[1])
        return result

    monkeypatch.setattr(filelock.FileLock, "acquire", slow)
    with try_folder_lock(tmp_path) as free:
        assert not free
    others[1].release()
    with try_folder_lock(tmp_path) as free:
        assert free


def test_changed_cells_are_planned_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, "run", str(file)) == 0
    other = Study.load(file, ["tunings.lora.learning_rate=1e-3"])
    with Ledger() as ledger:
        found = {c.name: (c.status, bool(c.why)) for c in plan(other, ledger=ledger, file="f")}
    assert found == {"evaluate b": ("done", False), "tune lora": ("planned", True), "evaluate lora": ("planned", True),
                     "tune ia3": ("done", False), "evaluate ia3": ("done", False)}


def test_a_study_that_was_moved_with_its_files_is_the_same(file: Path, tmp_path: Path) -> None:
    digests = []
    for folder in ("here", "there"):
        place = tmp_path / folder / "study"
        place.mkdir(parents=True)
        for one in file.parent.glob("*.jsonl"):
            (place / one.name).write_bytes(one.read_bytes())
        (place / file.name).write_bytes(file.read_bytes())
        digests.append([c.digest for c in cells_of(Study.load(place / file.name))])
    assert digests[0] == digests[1]
    other = Study.load(file, ["matrix.data=other/rows.jsonl"])
    assert [c.digest for c in cells_of(other)][1:] != digests[0][1:]


def test_a_plan_runs_and_fetches_nothing(file: Path, monkeypatch: pytest.MonkeyPatch,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "plan", str(file), "--json") == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert [c["status"] for c in cells] == ["planned"] * 5
    assert all(c["seconds"] > 0 and c["memory"] > 0 and not c["missing"] and not c["estimated"] for c in cells)
    assert cells[1]["command"] == f"aftertune run {file} --only 'tune lora'"
    assert not (file.parent / "ledger.db").exists()
    assert call(monkeypatch, "run", str(file), "--only", "b") == 0
    capsys.readouterr()
    assert call(monkeypatch, "plan", str(file), "--json") == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert (cells[0]["status"], cells[3]["basis"]) == ("done", "the pace of evaluation b")


def test_the_record_as_a_study_is_planned_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    """All of the record's models with their costs; what an imported record reports is told from what is planned."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(tmp_path / "ledger.db"))
    with Ledger() as ledger:
        ledger.save_reported("record.md", [{"model": "TinyLlama + QLoRA", "task": "hellaswag", "metric": "acc",
                                            "value": 0.4498}])
    assert call(monkeypatch, "plan", str(STUDIES / "peft_comparison.yaml"), "--json") == 0
    cells = {c["cell"]: c for c in json.loads(capsys.readouterr().out)["cells"]}
    models = [name.removeprefix("evaluate ") for name in cells if name.startswith("evaluate ")]
    assert len(models) == 9
    assert all(c["seconds"] > 0 and c["estimated"] and c["missing"] for c in cells.values())
    assert cells["evaluate tinyllama-qlora"]["status"] == "reported"
    assert cells["evaluate tinyllama-base"]["status"] == "planned"
    assert any("gated" in text for text in cells["evaluate base-llama-3.2-1b"]["missing"])


@pytest.mark.parametrize("path", sorted(STUDIES.rglob("*.yaml")), ids=lambda p: p.name)
def test_every_study_that_is_shipped_is_right(path: Path) -> None:
    study = Study.load(path)
    study.check_files()
    assert cells_of(study)


LATER = ("enable_thinking: false\nthink_end_token: </think>\nengine_args: {base_url: 'http://localhost:1/v1'}\n")


def test_every_setting_of_eval_is_a_field_of_a_study(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def evaluated(spec: Any, **_: Any) -> Any:
        seen.append(spec)
        raise InputError("seen")

    monkeypatch.setattr(cell_runs, "evaluate", evaluated)
    text = file.read_text(encoding="utf-8").replace("./base}", "./base, tokenizer: other}")
    file.write_text(text + LATER, encoding="utf-8")
    with Ledger() as ledger, pytest.raises(InputError, match="seen"):
        running.run(Study.load(file), ledger=ledger, out=file.parent / "out")
    assert [(s.enable_thinking, s.think_end_token, s.tokenizer, s.engine_args) for s in seen[:1]] == [
        (False, "</think>", str(file.parent / "other"), {"base_url": "http://localhost:1/v1"})]


def test_ids_of_studies_without_the_later_fields_stay(tmp_path: Path) -> None:
    """The hash and the digests are those of the version before these fields."""
    raw = {"study": "s", "bases": {"a": {"model": "gpt2"}}, "tasks": [{"name": "piqa", "limit": 3}],
           "tunings": {"t": {"base": "a", "data": "alpaca"}}}
    study = Study.parse(raw, where="x", folder=tmp_path)
    assert study.hash == "ca6c7b836c2ffb4fce5c5929327fcda26934df08ad467c30b9cd08cd717615f9"
    before = {c.name: c.digest for c in cells_of(study)}
    assert [digest[:12] for digest in before.values()] == ["48222dd47a3f", "5e5231c5d518", "7e4a0eb46f8c"]
    for change, changed in (({"think_end_token": "</think>"}, {"evaluate a", "evaluate t"}),
                            ({"bases": {"a": {"model": "gpt2", "tokenizer": "/x"}}}, {"evaluate a", "evaluate t"})):
        other = Study.parse({**raw, **change}, where="x", folder=tmp_path)
        assert other.hash != study.hash
        assert {c.name for c in cells_of(other) if c.digest != before[c.name]} == changed


def test_a_base_cannot_take_the_tokenizer_of_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`tokenizer` names a folder"):
        Study.parse({"study": "s", "bases": {"a": {"model": "gpt2", "tokenizer": "adapter"}},
                     "tasks": [{"name": "piqa"}]}, where="x", folder=tmp_path)


def test_a_cell_leaves_nothing_of_its_model_in_memory(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                      ) -> None:
    """Trainer, model and optimizer refer to each other, and the error of a cell to all of them."""
    from aftertune.tuning import trainer

    made: list[weakref.ref[Any]] = []
    first, step = trainer.CompletionTrainer.__init__, trainer.CompletionTrainer.training_step

    def remembered(self: Any, *arguments: Any, **options: Any) -> None:
        first(self, *arguments, **options)
        made.extend([weakref.ref(self), weakref.ref(self.model)])

    def failing(self: Any, model: Any, *rest: Any) -> Any:
        if len(made) == 2:
            raise InputError("the first fine-tune fails")
        return step(self, model, *rest)

    monkeypatch.setattr(trainer.CompletionTrainer, "__init__", remembered)
    monkeypatch.setattr(trainer.CompletionTrainer, "training_step", failing)
    alive: dict[str, int] = {}
    with Ledger() as ledger:
        gc.disable()
        try:
            found = running.run(Study.load(file), ledger=ledger, out=tmp_path / "out", on_cell=lambda name, _: alive.
                                update({name: sum(ref() is not None for ref in made)}),
                                choice=running.CellChoice(keep_going=True))
        finally:
            gc.enable()
    assert [name for name, _ in found.failed] == ["tune lora", "evaluate lora"]
    assert len(made) == 4
    assert alive == dict.fromkeys(alive, 0) | {"tune lora": alive["tune lora"]}, "only while its error passes by"
