"""``aftertune checkpoints``: the folders that a Trainer left, against the base, resumably, with a choice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from aftertune import trainer_checkpoints
from aftertune.errors import InputError, SourceError
from aftertune.ledger import Ledger
from aftertune.study import TaskSpec
from aftertune.trainer_checkpoints import CheckpointRequest, evaluate_checkpoints, find_checkpoints
from cli_cases import call
from eval_cases import CHAT, byte_folder
from test_callback import plain, sft

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with the checkpoints of an adapter and of a full fine-tune, of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("trained")
    byte_folder(folder / "base", template=CHAT, window=4096)
    saved = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    sft(folder / "base", folder / "adapter", adapter=True, **saved).train()
    trainer = plain(folder / "base", folder / "whole", eval_strategy="steps", eval_steps=1, **saved)
    trainer.processing_class = None
    trainer.train()
    return folder


def request(runs: Path, kind: str, **values: Any) -> CheckpointRequest:
    return CheckpointRequest(**{"folder": runs / kind, "base": str(runs / "base"), "settings": {"threads": 1},
                                "tasks": (TaskSpec(name="arc_easy", sample=12),), **values})


def test_adapters_are_compared_with_their_base_and_a_second_run_computes_nothing(
        runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aftertune.comparison import compare

    with Ledger(tmp_path / "l.db") as ledger:
        series = evaluate_checkpoints(request(runs, "adapter"), ledger=ledger)
        assert [(p.step, p.n, p.half) for p in series.tuning.watch] == [(1, 12, "all"), (2, 12, "all")]
        for step, point in zip((1, 2), series.tuning.watch, strict=True):
            made = compare(series.base, series.evaluations[step], ledger=ledger, save=False)
            assert made.lineage
            assert next(r for r in made.rows if r.primary).delta == pytest.approx(point.delta)
        monkeypatch.setattr(trainer_checkpoints.BaseModelCache, "load", None)
        again = evaluate_checkpoints(request(runs, "adapter"), ledger=ledger)
        assert (again.tuning.id, again.tuning.watch) == (series.tuning.id, series.tuning.watch)
        assert len(ledger.tunings()) == 1


def test_a_rule_chooses_on_one_half_and_reports_on_the_other(runs: Path, tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.db") as ledger:
        series = evaluate_checkpoints(request(runs, "whole", rule="validation loss, no loss > 100 on arc_easy"),
                                      ledger=ledger)
        choice = series.tuning.choice
        assert choice is not None
        assert choice.step == min(series.losses, key=lambda step: series.losses[step])
        assert {p.half for p in series.tuning.watch} == {"choice"}
        assert [(p.half, p.step) for p in choice.report] == [("report", choice.step)]
        assert series.tuning.watch[0].n + choice.report[0].n == 12
        assert series.tuning.results == (), "only the user says what a whole checkpoint was made from"
        assert any("that is your statement" in note for note in series.notes)
        with pytest.raises(InputError, match=r"--keep-best: the goal 'orders' is not measured.*goals here: arc_easy"):
            evaluate_checkpoints(request(runs, "whole", rule="orders"), ledger=ledger)


def test_a_rule_without_its_loss_is_refused_before_anything_is_evaluated(
        runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluated(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(trainer_checkpoints.EvaluationRun, "run", evaluated)
    with Ledger(tmp_path / "l.db") as ledger:
        with pytest.raises(InputError, match=r"has no eval_loss of the steps 1, 2, .* name a task as the goal"):
            evaluate_checkpoints(request(runs, "adapter", rule="validation loss"), ledger=ledger)
        with pytest.raises(AssertionError):
            evaluate_checkpoints(request(runs, "whole", rule="validation loss"), ledger=ledger)


def test_a_damaged_checkpoint_is_left_out_and_counted(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(runs / "adapter", tmp_path / "out")
    weights = tmp_path / "out" / "checkpoint-1" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    (tmp_path / "out" / "checkpoint-7").mkdir()
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(tmp_path / "l.db"))
    arguments = ("checkpoints", str(tmp_path / "out"), "--base", str(runs / "base"), "--watch", "arc_easy=4")
    assert call(monkeypatch, *arguments) == 0
    shown = capsys.readouterr().out
    assert "2 of 3 checkpoints were left out" in shown
    assert call(monkeypatch, *arguments, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["evaluations"]) == ["2"]
    assert "truncated" in found["failed"]["1"]
    assert "neither adapter_config.json nor config.json" in found["failed"]["7"]
    assert call(monkeypatch, "report", "--out", str(tmp_path / "report.html")) == 0
    assert call(monkeypatch, "record", "--out", str(tmp_path / "record.md")) == 0


def test_adapters_of_another_base_are_one_line(runs: Path, tmp_path: Path) -> None:
    other = byte_folder(tmp_path / "other", template=CHAT, window=4096, hidden=48)
    with Ledger(tmp_path / "l.db") as ledger, pytest.raises(
            SourceError, match=r"none of its 2 checkpoints can be evaluated; the first: .*the given base is"):
        evaluate_checkpoints(request(runs, "adapter", base=str(other)), ledger=ledger)


def test_what_is_not_there_is_said_with_what_was_looked_for(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder; give the trainer's output_dir"):
        find_checkpoints(tmp_path / "none")
    with pytest.raises(InputError, match=r"no checkpoints; looked for folders named checkpoint-STEP.*found adapter, "):
        find_checkpoints(runs)
    with pytest.raises(InputError, match=r"give .*adapter$"):
        find_checkpoints(runs / "adapter" / "checkpoint-1")
    with pytest.raises(InputError, match="no checkpoint of step 5; there are 1, 2"):
        find_checkpoints(runs / "adapter", [5])


@pytest.mark.parametrize(("words", "message"), [
    ((), "no tasks to evaluate; add for example --watch hellaswag=200"),
    (("--watch", "arc_easy"), "--watch 'arc_easy': write TASK=N"),
    (("--target", "none.jsonl=4"), "--target none.jsonl: no such file"),
    (("--watch", "arc_easy=4", "--steps", "1,x"), "'x' is no step"),
    (("--watch", "arc_easy=4", "--watch-margin", "0"), "--watch-margin is 0"),
    (("--watch", "arc_easy=4", "--dtype", "float8"), "`dtype`: Input should be 'auto', 'float32'"),
    (("--watch", f"arc_easy={10**14}"), "`sample`: Input should be less than"),
])
def test_wrong_options_are_one_line(runs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
                                    words: tuple[str, ...], message: str) -> None:
    assert call(monkeypatch, "checkpoints", str(runs / "adapter"), "--base", str(runs / "base"), *words) == 2
    assert message in " ".join(capfd.readouterr().err.split())
