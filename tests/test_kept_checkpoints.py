"""Kept checkpoints: complete folders, the choice of one of them, resuming, and the rollback to another one."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aftertune.errors import InputError, StorageError
from aftertune.evaluation import evaluate
from aftertune.forgetting_watch import ForgettingWatch
from aftertune.ledger import Ledger
from aftertune.study import BaseSpec, DataSpec, LoraSpec, Study, TaskSpec, TuneSpec, WatchSpec
from aftertune.tuning import _prepare, kept, output, read_tuning, tune
from aftertune.tuning.rollback import roll_back
from aftertune.tuning.template import alpaca_prompt
from aftertune.values import Tuning, WatchPoint
from eval_cases import CHAT, byte_folder
from test_cli import call
from tuning_cases import easy_rows, timeless, write_rows

pytestmark = pytest.mark.filterwarnings("ignore")
RULE = "say, no loss > 30 on arc_easy"


class Broken(Exception):
    """The end of the process, as far as a test can have it."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    byte_folder(folder / "base", template=CHAT, window=4096)
    write_rows(folder / "rows.jsonl", easy_rows())
    write_rows(folder / "say.jsonl", [{"prompt": f"say w{n} twice", "completion": "w1 w2"} for n in range(50, 58)])
    return folder


def spec(place: Path, out: str, **values: Any) -> TuneSpec:
    watch = WatchSpec(tasks={"arc_easy": 8}, target={"file": place / "say.jsonl", "max_tokens": 8}, every=2)
    return TuneSpec(**{
        "model": str(place / "base"), "data": DataSpec(file=place / "rows.jsonl"), "out": place / out, "max_steps": 6,
        "epochs": 3.0, "learning_rate": 0.02, "dtype": "float32", "device": "cpu", "threads": 1, "batch_size": 4,
        "lora": LoraSpec(r=4, dropout=0.1), "watch": watch, "keep_checkpoints": "all", **values})


def run(asked: TuneSpec, **options: Any) -> Tuning:
    return tune(asked, look=ForgettingWatch(asked, report=lambda _: None) if asked.watch else None, **options)


@pytest.fixture(scope="module")
def whole(place: Path) -> Tuning:
    return run(spec(place, "whole", keep_best=RULE))


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def steps(tuning: Tuning) -> list[int]:
    return [c.step for c in tuning.checkpoints]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(5, 25)[None]).logits


# --- What is kept ---


def test_each_look_is_kept_as_a_folder_that_plain_peft_loads(place: Path, whole: Tuning) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    assert steps(whole) == [2, 4, 6]
    base = str(place / "base")
    plain = run(spec(place, "four", max_steps=6, watch=None, keep_checkpoints=None))
    for checkpoint in whole.checkpoints:
        folder = Path(whole.output) / checkpoint.folder
        assert checkpoint.files == {name: hashlib.sha256(data).hexdigest() for name, data in content(folder).items()
                                    if name != "aftertune.json"}
        assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json"} <= checkpoint.files.keys()
    last = Path(whole.output) / whole.checkpoints[-1].folder
    assert (last / "adapter_model.safetensors").read_bytes() == (
        Path(plain.output) / "adapter_model.safetensors").read_bytes(), "keeping disturbs no training"
    loaded = logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(last)).eval())
    final = logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), plain.output).eval())
    assert torch.equal(loaded, final)
    assert whole.checkpoints[-1].held_out == plain.held_out
    assert len({str(load_file(Path(whole.output) / c.folder / "adapter_model.safetensors"))
                for c in whole.checkpoints}) == 3


def test_an_evaluation_of_a_kept_checkpoint_is_proven_to_come_from_the_base(place: Path, whole: Tuning) -> None:
    from aftertune.comparison import compare

    first = whole.checkpoints[0]
    with Ledger(place / "lineage.db") as ledger:
        ledger.save_tuning(whole)
        task = [TaskSpec(name="arc_easy", sample=4)]
        settings: dict[str, Any] = {"ledger": ledger, "dtype": "float32", "threads": 1}
        base = evaluate(str(place / "base"), task, **settings)
        tuned = evaluate(str(place / "base"), task, adapter=f"{whole.output}/{first.folder}", **settings)
        assert tuned.model.fingerprint == first.result
        assert tuned.tuning == whole.id
        compared = compare(base, tuned, ledger=ledger)
    assert compared.lineage
    assert compared.held_out == first.held_out != whole.checkpoints[-1].held_out
    assert not any("lineage not proven" in warning for warning in tuned.warnings)


def test_the_last_n_stay_and_all_numbers_with_them(place: Path) -> None:
    made = run(spec(place, "last", keep_checkpoints=1))
    assert steps(made) == [6]
    assert [p.name for p in (place / "last" / "kept").iterdir()] == ["step-6"]
    assert [p.step for p in made.watch if p.task == "arc_easy"] == [2, 4, 6]
    assert [p.half for p in made.watch] == ["all"] * 6
    assert made.final_step == 6
    assert made.choice is None


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
def test_the_last_n_stay_while_there_are_fewer(tmp_path: Path, whole: Tuning, count: int) -> None:
    writer = kept.CheckpointWriter(lambda *_: None, 4, print)
    origin = kept.Origin("t-1", "lora", whole.base)
    copies = kept.KeptCheckpoints(tmp_path, origin, kept.KeepPlan(count), writer)
    for n, checkpoint in enumerate(whole.checkpoints, 1):
        shutil.copytree(Path(whole.output) / checkpoint.folder, copies.folder / f"step-{checkpoint.step}")
        kept.seal(copies.folder / f"step-{checkpoint.step}", origin, checkpoint.step, None)
        copies.prune(None)
        assert [c.step for c in copies.checkpoints()] == steps(whole)[max(n - count, 0):n]


def test_what_a_killed_process_left_of_a_choice_is_removed_by_the_next_run(place: Path) -> None:
    asked = spec(place, "left", keep_best=RULE, keep_checkpoints=None)
    made = run(asked)
    assert not (place / "left" / "kept").exists()
    left = place / "left" / "kept" / "step-2"
    left.mkdir(parents=True)
    (left / "aftertune.json").write_text(json.dumps({"tuning": made.id}), encoding="utf-8")
    (place / "left" / "checkpoints").mkdir()
    assert run(asked).id == made.id
    assert not (place / "left" / "kept").exists()


def test_without_a_watch_each_validation_is_kept(place: Path) -> None:
    data = DataSpec(file=place / "rows.jsonl", validation=0.2)
    made = run(spec(place, "validated", watch=None, data=data, early_stop={"every": 3, "patience": 9},
                    keep_best="validation loss", keep_checkpoints=2))
    losses = {int(s["step"]): s["validation_loss"] for s in made.steps if "validation_loss" in s}
    assert steps(made) == [3, 6]
    assert made.choice is not None
    assert made.choice.step == min(losses, key=lambda step: losses[step])


def test_whole_weights_are_kept_as_they_would_be_handed_on(place: Path) -> None:
    from transformers import AutoModelForCausalLM

    wide = AutoModelForCausalLM.from_pretrained(place / "base").to(torch.bfloat16)
    bf16 = byte_folder(place / "bf16", template=CHAT, window=4096)
    wide.save_pretrained(bf16)
    full: dict[str, Any] = {"method": "full", "model": str(bf16), "watch": None, "lora": LoraSpec(), "dtype": "float32"}
    data = DataSpec(file=place / "rows.jsonl", validation=0.2)
    stop = {"every": 3, "patience": 9}
    plain = run(spec(place, "full-plain", **full, data=data, early_stop=stop, keep_checkpoints=None))
    lines: list[str] = []
    made = run(spec(place, "full", **full, data=data, early_stop=stop), progress=lambda *p: lines.append(p[2]))
    assert made.result == plain.result, "rounding for a checkpoint does not touch the weights in training"
    assert made.held_out == plain.held_out
    checkpoint = next(c for c in made.checkpoints if c.step == made.final_step)
    assert checkpoint.result == made.result
    assert checkpoint.held_out == made.held_out
    folder = Path(made.output) / checkpoint.folder
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert torch.equal(logits(model), logits(AutoModelForCausalLM.from_pretrained(plain.output)))
    assert content(folder)["config.json"] == (Path(plain.output) / "config.json").read_bytes()
    assert any(line.startswith("keeping up to 2 checkpoints of about ") for line in lines)
    other = next(c for c in made.checkpoints if c.step != made.final_step)
    with Ledger(place / "full.db") as ledger:
        back = roll_back(made.output, other.step, ledger)
    assert (back.result, back.held_out) == (other.result, other.held_out) != (made.result, made.held_out)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(made.output)),
                       logits(AutoModelForCausalLM.from_pretrained(Path(made.output) / other.folder)))


def test_ids_of_tunings_without_these_settings_stay(place: Path, whole: Tuning) -> None:
    plain = run(spec(place, "four", watch=None, keep_checkpoints=None))
    watched = run(spec(place, "four", keep_checkpoints=None))
    assert plain.id == watched.id, "a watch alone changes no weights"
    others = {whole.id, plain.id}
    for changes in ({"keep_best": "say, no loss > 40 on arc_easy"}, {"keep_checkpoints": 2, "keep_best": RULE},
                    {"watch": WatchSpec(tasks={"arc_easy": 10}, target={"file": place / "say.jsonl"}, every=2),
                     "keep_best": RULE}):
        asked = spec(place, "none", **changes)
        others.add(_prepare(asked, (), ForgettingWatch(asked)).tuning.id)
    assert len(others) == 5
    assert not {"watch", "watched", "keep_best", "keep_checkpoints"} & plain.settings.keys()


# --- The choice ---


def test_one_half_chooses_and_the_other_reports(place: Path, whole: Tuning) -> None:
    asked = spec(place, "whole", keep_best=RULE)
    watch = ForgettingWatch(asked)
    choosing, reporting = ({(t.settings.task, i.index) for t in watch.halves[half] for i in t.items}
                           for half in ("choice", "report"))
    assert len(choosing) == len(reporting) == 8
    assert not choosing & reporting
    assert {p.half for p in whole.watch} == {"choice"}
    assert whole.choice is not None
    assert [(p.task, p.half, p.n, p.step) for p in whole.choice.report] == [
        ("say", "report", 4, whole.choice.step), ("arc_easy", "report", 4, whole.choice.step)]
    assert [p.is_target for p in whole.choice.report] == [True, False]
    checkpoint = next(c for c in whole.checkpoints if c.step == whole.choice.step)
    assert whole.result == checkpoint.result
    assert (whole.final_step, whole.held_out) == (checkpoint.step, checkpoint.held_out)
    assert output.read_manifest(Path(whole.output)) == whole
    assert whole.settings["keep_best"] == RULE
    assert whole.settings["watched"]["choice"]["say"]["items"] == 4
    assert whole.settings["watched"]["choice"]["say"] != whole.settings["watched"]["report"]["say"]


class Scripted(ForgettingWatch):
    """Every checkpoint is as good as the base; on the items that choose, chance favours the second one."""

    def __call__(self, model: Any, step: int, looks: int) -> tuple[WatchPoint, ...]:
        if step == 0:
            return ()
        luck = {2: -0.25, 4: 0.5, 6: 0.25}[step]
        return tuple(self._made(step, task, luck if task == "say" else self.drop, "choice") for task in TASKS)

    drop = 0.0

    def report(self, model: Any, step: int) -> tuple[WatchPoint, ...]:
        self.reported = [*getattr(self, "reported", ()), step]
        return tuple(self._made(step, task, 0.0, "report") for task in TASKS)

    @staticmethod
    def _made(step: int, task: str, delta: float, half: Any) -> WatchPoint:
        return WatchPoint(step=step, task=task, metric="acc", n=4, base=0.5, tuned=0.5 + delta, delta=delta, low=-1,
                          high=1, verdict="undecided", half=half, is_target=task == "say")


TASKS = ("say", "arc_easy")


def test_what_is_reported_is_not_what_chose(place: Path) -> None:
    asked = spec(place, "scripted", keep_best=RULE, keep_checkpoints=None)
    look = Scripted(asked)
    made = tune(asked, look=look)
    assert made.choice is not None
    assert (made.choice.step, made.final_step) == (4, 4)
    assert made.choice.reason.endswith("(say +50.0 points on 4 items, arc_easy +0.0 on 4 items)")
    assert [p.delta for p in made.choice.report] == [0.0, 0.0]
    assert look.reported == [2, 4], "step 6 is no better, so it is not measured"
    assert made.checkpoints == ()
    assert not (place / "scripted" / "kept").exists()
    assert made.notes == tuple(n for n in made.notes if "the weights are those" not in n)


def test_no_checkpoint_that_meets_the_rule_is_said_and_is_no_failure(
        place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(Scripted, "drop", -0.5)
    monkeypatch.setattr("aftertune.forgetting_watch.ForgettingWatch", Scripted)
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(place / "unmet.db"))
    words = ("tune", str(place / "base"), "--data", str(place / "rows.jsonl"), "--max-steps", "6", "--epochs", "3",
             "--out", str(place / "unmet"), "--watch", "arc_easy=8", "--watch-every", "2", "--target",
             f"say={place / 'say.jsonl'}", "--batch-size", "4", "--keep-best", RULE, "--keep-checkpoints", "2")
    assert call(monkeypatch, *words) == 0
    shown = " ".join(capfd.readouterr().out.split())
    assert f'NO CHECKPOINT MEETS "{RULE}"; step 4 was taken: none of 3 checkpoints meets the rule' in shown
    assert "on the other half of the items, step 4: say 50.00% → 50.00%" in shown
    assert "2 checkpoints are kept in" in shown
    assert call(monkeypatch, *words, "--json") == 0
    made = json.loads(capfd.readouterr().out)
    assert made["choice"]["met"] is False
    assert [c["step"] for c in made["checkpoints"]] == [4, 6]
    assert [(row["step"], row["saved"], row["final"]) for row in made["by_step"]] == [
        (2, False, False), (4, True, True), (6, True, False)]


def test_the_target_is_asked_as_in_the_training(place: Path) -> None:
    contexts = {}
    for template in ("chat", "alpaca", "plain"):
        asked = spec(place, "none", template=template)
        target, easy = ForgettingWatch(asked).halves["all"]
        contexts[template] = target.requests[0].context
        assert "### Instruction" not in easy.requests[0].context
        assert "<|user|>" not in easy.requests[0].context
    prompt = "say w50 twice"
    assert contexts["plain"] == prompt
    assert contexts["chat"] == chat_prompt(place, prompt)
    assert contexts["alpaca"] == alpaca_prompt(prompt)


def chat_prompt(place: Path, prompt: str) -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    return str(tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False,
                                             add_generation_prompt=True))


@pytest.mark.parametrize(("flags", "fault"), [
    (["--keep-best", "orders", "--watch", "arc_easy=8"], "`--keep-best`: the goal 'orders' is not measured"),
    (["--keep-best", "arc_easy, no loss over 2 on arc_easy", "--watch", "arc_easy=8"], "is no condition"),
    (["--keep-best", "arc_easy"], "`--keep-best` needs steps at which the model is measured"),
    (["--keep-checkpoints", "all"], "`--keep-checkpoints` needs steps at which the model is measured"),
    (["--keep-checkpoints", "some", "--watch", "arc_easy=8"], "'some' is neither all nor a number of checkpoints"),
    (["--keep-checkpoints", "0", "--watch", "arc_easy=8"], "'0' is neither all nor a number of checkpoints"),
    (["--keep-best", "arc_easy", "--watch", "arc_easy=1"], "arc_easy cannot choose and report"),
    (["--keep-best", "validation loss, no loss > 2 on arc_easy", "--watch", "arc_easy=8", "--watch-every", "3",
      "--validation", "0.2", "--validate-every", "2"], "make the first a multiple of the second"),
    (["--target", "nowhere.jsonl"], "nowhere.jsonl: no such target file"),
    (["--target", "arc_easy=say.jsonl", "--watch", "arc_easy=8"], "'arc_easy' names both a watched task and the"),
    (["--target-match", "json"], "--target-match and --target go together"),
])
def test_wrong_flags_are_one_line(place: Path, flags: list[str], fault: str, monkeypatch: pytest.MonkeyPatch,
                                  capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(place / "flags.db"))
    assert call(monkeypatch, "tune", str(place / "base"), "--data", str(place / "rows.jsonl"), "--out",
                str(place / "flags"), *flags) == 2
    error = capfd.readouterr().err.strip()
    assert fault in error.splitlines()[-1]


def test_python_without_the_watch_is_refused(place: Path) -> None:
    with pytest.raises(InputError, match=r"tune\(spec, look=ForgettingWatch\(spec\)\)"):
        tune(spec(place, "unwatched"))


def test_a_study_takes_the_same_settings(tmp_path: Path) -> None:
    raw: dict[str, Any] = {
        "study": "kept", "bases": {"b": {"model": "org/b"}}, "tasks": [{"name": "arc_easy"}], "tunings": {"t": {
            "base": "b", "data": "rows.jsonl", "keep_checkpoints": 2, "keep_best": RULE,
            "watch": {"tasks": {"arc_easy": 8}, "target": "say=rows/say.jsonl"}}}}
    tuning = Study.parse(raw, where="s", folder=tmp_path).tunings["t"]
    asked = tuning.spec(BaseSpec(model="org/b"), name="t", dtype="auto", device="cpu", out=tmp_path)
    assert (asked.keep_checkpoints, asked.keep_best) == (2, RULE)
    assert asked.watch is not None
    assert asked.watch.target is not None
    assert (asked.watch.target.name, asked.watch.target.file) == ("say", tmp_path / "rows" / "say.jsonl")
    write_rows(tmp_path / "rows.jsonl", easy_rows())
    with pytest.raises(InputError, match=r"`tunings.t.watch.target.file` is .*say.jsonl, but there is no such file"):
        Study.parse(raw, where="s", folder=tmp_path).model_copy(update={"tasks": ()}).check_files()
    raw["tunings"]["t"]["watch"]["target"] = {"file": "say.jsonl", "itmes": 3}
    with pytest.raises(InputError, match=r"unknown key `tunings.t.watch.target.itmes` \(did you mean 'items'\?\)"):
        Study.parse(raw, where="s", folder=tmp_path)
    raw["tunings"]["t"] |= {"keep_checkpoints": True, "watch": {"tasks": {"arc_easy": 8}}, "keep_best": "arc_easy"}
    with pytest.raises(InputError, match="it is neither all nor a number of checkpoints"):
        Study.parse(raw, where="s", folder=tmp_path)


# --- Resuming ---


def break_at(step: int) -> Any:
    def progress(done: int, _total: int, text: str) -> None:
        if text.startswith("training: step") and done == step:
            raise Broken

    return progress


@pytest.mark.parametrize(("at", "minutes"), [(3, 0), (5, 99)])
def test_a_broken_run_has_the_same_kept_checkpoints(place: Path, whole: Tuning, at: int, minutes: float) -> None:
    """Also where it starts again from its first step, over checkpoints that it has already kept."""
    broken = spec(place, f"broken-{at}-{minutes}", keep_best=RULE, checkpoint_minutes=minutes)
    with pytest.raises(Broken):
        run(broken, progress=break_at(at))
    (Path(broken.out or "") / "kept" / ".step-9.1-x").mkdir()
    done = run(broken)
    assert content(Path(done.output) / "kept") == content(Path(whole.output) / "kept")
    assert (done.checkpoints, done.choice, done.watch) == (whole.checkpoints, whole.choice, whole.watch)
    assert (done.result, done.held_out, done.final_step) == (whole.result, whole.held_out, whole.final_step)
    assert timeless(done.steps) == timeless(whole.steps)


def test_a_full_disk_leaves_no_half_checkpoint_and_the_run_goes_on(place: Path, whole: Tuning,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    full = spec(place, "disk", keep_best=RULE, checkpoint_minutes=0)
    save, saved = output.save, []

    def limited(model: Any, method: str, tokenizer: Any, folder: Path, base: Any) -> None:
        saved.append(folder)
        if len(saved) == 2:
            (folder / "adapter_model.safetensors").write_bytes(b"half")
            raise StorageError(f"{folder}: cannot be written (No space left on device); free some space and "
                               f"{output.AGAIN}")
        save(model, method, tokenizer, folder, base)

    with monkeypatch.context() as patch:
        patch.setattr(output, "save", limited)
        with pytest.raises(StorageError, match=r"kept/step-4: cannot be written \(No space left.*last checkpoint$"):
            run(full)
    assert [p.name for p in (place / "disk" / "kept").iterdir()] == ["step-2"], "no rest, and no reserved space"
    done = run(full)
    assert content(Path(done.output) / "kept") == content(Path(whole.output) / "kept")


def test_too_little_room_for_the_checkpoints_is_known_before_the_training(place: Path,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    lines: list[str] = []
    with pytest.raises(StorageError, match=r"MiB are needed for 3 kept checkpoints \(No space left on device\); free "
                                           r"some space, keep fewer with --keep-checkpoints N, or choose another"):
        run(spec(place, "no-room"), progress=lambda *p: lines.append(p[2]))
    assert not any(line.startswith("training: step") for line in lines)


def test_checkpoints_of_another_tuning_in_the_folder_are_removed_and_other_files_stay(place: Path) -> None:
    first = run(spec(place, "shared", keep_checkpoints=2, max_steps=4))
    assert steps(first) == [2, 4]
    (place / "shared" / "kept" / "notes.txt").write_text("mine")
    second = run(spec(place, "shared", keep_checkpoints=1, max_steps=2))
    assert steps(second) == [2]
    assert sorted(p.name for p in (place / "shared" / "kept").iterdir()) == ["notes.txt", "step-2"]


# --- Rollback ---


def weights_of(tuning: Tuning) -> str:
    return hashlib.sha256((Path(tuning.output) / "adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.fixture
def rolled(place: Path, tmp_path: Path) -> tuple[Tuning, Path]:
    """A finished tuning in a folder of its own, in a ledger."""
    made = run(spec(place, "rolled"))
    shutil.copytree(made.output, tmp_path / "out")
    return replace(made, output=str(tmp_path / "out")), tmp_path / "ledger.db"


def test_rollback_there_and_back(place: Path, rolled: tuple[Tuning, Path]) -> None:
    made, path = rolled
    task = [TaskSpec(name="arc_easy", sample=4)]
    with Ledger(path) as ledger:
        ledger.save_tuning(made)
        settings: dict[str, Any] = {"ledger": ledger, "dtype": "float32", "threads": 1, "adapter": made.output}
        before = evaluate(str(place / "base"), task, **settings)
        back = roll_back(made.output, 2, ledger)
        first = back.checkpoints[0]
        assert (back.final_step, back.result, back.held_out) == (2, first.result, first.held_out)
        assert weights_of(back) == first.files["adapter_model.safetensors"]
        assert back.notes[-1] == "rolled back from step 6: the weights are those of step 2"
        manifest = output.read_manifest(Path(made.output))
        assert manifest is not None
        assert ledger.find_tuning(made.id) == replace(manifest, output=made.output) == back
        after = evaluate(str(place / "base"), task, **settings)
        assert (after.model.fingerprint, before.model.fingerprint) == (back.result, made.result)
        assert before.tuning == after.tuning == made.id
        assert ledger.find_evaluation(before.id).model.fingerprint == made.result
        again = roll_back(made.id, 6, ledger)
        assert (again.result, again.held_out) == (made.result, made.held_out)
        assert weights_of(again) == weights_of(made)
        assert [n for n in again.notes if "rolled back" in n] == [
            "rolled back from step 2: the weights are those of step 6"]
        assert roll_back(made.id, 6, ledger) == again
    asked = spec(place, made.output)
    assert run(asked).result == made.result, "nothing is trained again"


def test_final_weights_that_were_not_kept_are_kept_by_a_rollback(place: Path, tmp_path: Path) -> None:
    """The run stops between two looks, so that its last step was not kept."""
    data = DataSpec(file=place / "rows.jsonl", validation=0.2)
    stop: dict[str, Any] = {"data": data, "early_stop": {"every": 1, "patience": 1}, "learning_rate": 0.5}
    made = run(spec(place, str(tmp_path / "out"), **stop, max_steps=20, epochs=20.0, watch=WatchSpec(
        tasks={"arc_easy": 4}, every=2)))
    assert made.final_step is not None
    if made.final_step in steps(made):
        pytest.skip("the best validation loss was at a look")
    with Ledger(tmp_path / "ledger.db") as ledger:
        back = roll_back(made.output, steps(made)[0], ledger)
        assert made.final_step in steps(back)
        assert roll_back(made.output, made.final_step, ledger).result == made.result


def test_a_rollback_that_is_killed_is_not_taken_for_whole_and_is_completed(
        place: Path, rolled: tuple[Tuning, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    made, path = rolled

    def killed(*_: Any) -> None:
        raise Broken

    with Ledger(path) as ledger:
        ledger.save_tuning(made)
        with monkeypatch.context() as patch:
            patch.setattr(kept, "hand_on", killed)
            with pytest.raises(Broken):
                roll_back(made.output, 2, ledger)
        manifest = output.read_manifest(Path(made.output))
        assert manifest is not None
        assert manifest.status == "rolling back"
        with pytest.raises(InputError, match="no finished tuning"):
            read_tuning(made.output, ledger)
        done = run(spec(place, made.output))
        assert (done.final_step, done.result) == (2, made.checkpoints[0].result), "completed, and not trained again"
        assert roll_back(made.output, 4, ledger).final_step == 4


def test_a_rollback_whose_step_is_damaged_in_the_middle_goes_on_with_another(
        place: Path, rolled: tuple[Tuning, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The advice of each message works: it is followed here."""
    made, path = rolled
    out = Path(made.output)

    def killed(*_: Any) -> None:
        raise Broken

    def damage_step(step: int) -> None:
        file = out / f"kept/step-{step}/adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"x")

    with Ledger(path) as ledger:
        ledger.save_tuning(made)
        with monkeypatch.context() as patch:
            patch.setattr(kept, "hand_on", killed)
            with pytest.raises(Broken):
                roll_back(made.output, 2, ledger)
        damage_step(2)
        with pytest.raises(InputError, match=rf"was interrupted, .* aftertune rollback {out} --to 6$"):
            run(spec(place, made.output))
        with pytest.raises(InputError, match=r"step 2 cannot be used, .*; choose another step \(4, 6\)"):
            roll_back(made.output, 2, ledger)
        back = roll_back(made.output, 4, ledger)
        assert (back.status, back.final_step, back.result) == ("done", 4, made.checkpoints[1].result)
        assert weights_of(back) == made.checkpoints[1].files["adapter_model.safetensors"]
        assert [n for n in back.notes if "rolled back" in n] == [
            "rolled back from step 6: the weights are those of step 4"]
        with monkeypatch.context() as patch:
            patch.setattr(kept, "hand_on", killed)
            with pytest.raises(Broken):
                roll_back(made.output, 6, ledger)
        damage_step(4)
        damage_step(6)
        for again in (lambda: roll_back(made.output, 6, ledger), lambda: run(spec(place, made.output))):
            with pytest.raises(InputError, match=rf"intact: remove {out} and tune again"):
                again()
    shutil.rmtree(out)
    assert run(spec(place, made.output)).result == made.result


def test_a_full_disk_in_a_rollback_changes_nothing(rolled: tuple[Tuning, Path],
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    made, path = rolled

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    before = weights_of(made)
    with Ledger(path) as ledger:
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "copyfile", full)
            with pytest.raises(StorageError, match="No space left on device"):
                roll_back(made.output, 2, ledger)
        assert weights_of(made) == before
        assert not list(Path(made.output).glob(".adapter*"))
        assert roll_back(made.output, 2, ledger).final_step == 2


def test_errors_of_a_rollback(place: Path, rolled: tuple[Tuning, Path], monkeypatch: pytest.MonkeyPatch,
                              capfd: pytest.CaptureFixture[str]) -> None:
    made, path = rolled
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(path))

    def said(*words: str) -> str:
        assert call(monkeypatch, "rollback", *words) == 2
        return capfd.readouterr().err

    assert "no kept checkpoint of step 3; there are those of the steps 2, 4, 6" in said(made.output, "--to", "3")
    none = run(spec(place, "four", watch=None, keep_checkpoints=None))
    assert "it kept no checkpoints; tune with --keep-checkpoints all" in said(none.output, "--to", "3")
    assert "nothing" in said("nothing", "--to", "3")
    damaged = Path(made.output) / made.checkpoints[0].folder / "adapter_model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    assert "was changed since the training; choose another step" in said(made.output, "--to", "2")
    assert call(monkeypatch, "rollback", made.output, "--to", "4", "--json") == 0
    assert json.loads(capfd.readouterr().out)["final_step"] == 4
    assert call(monkeypatch, "rollback", made.output, "--to", "6") == 0
    assert f"{made.output} now holds the weights of step 6 of {made.name}" in capfd.readouterr().out


def test_merged_weights_of_the_earlier_step_are_removed_and_said(place: Path, rolled: tuple[Tuning, Path]) -> None:
    made, path = rolled
    out = Path(made.output)
    merged = run(spec(place, made.output, merge=True))
    assert merged.merged is not None
    with Ledger(path) as ledger:
        back = roll_back(made.output, 2, ledger)
    assert back.merged is None
    assert not (out / "merged").exists()
    assert back.notes[-1].startswith("the merged weights of the earlier step were removed; the same tune command with")
    again = run(spec(place, made.output, merge=True))
    assert again.final_step == 2
    assert again.merged not in (None, merged.merged)
