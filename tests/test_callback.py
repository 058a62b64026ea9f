"""ForgettingCallback in the trainers of transformers and TRL: it disturbs nothing, measures what an evaluation of the
saved files would, stores it, stops, and goes on from a checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from aftertune.callbacks import ForgettingCallback
from aftertune.comparison import compare
from aftertune.errors import InputError, StorageError
from aftertune.evaluation import evaluate
from aftertune.ledger import Ledger
from aftertune.study import TaskSpec
from eval_cases import CHAT, byte_folder

pytestmark = pytest.mark.filterwarnings("ignore")

TASKS = {"arc_easy": 12}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_folder(tmp_path_factory.mktemp("callback") / "base", template=CHAT, window=4096, attention_dropout=0.1)


def texts() -> Any:
    from datasets import Dataset

    return Dataset.from_list([{"prompt": f"say {i}: ", "completion": f"{i} {i}"} for i in range(24)])


def arguments(folder: Path, kind: Any, **values: Any) -> Any:
    return kind(**{"output_dir": str(folder), "max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 0.01,
                   "report_to": [], "save_strategy": "no", "logging_steps": 1, "use_cpu": True, "disable_tqdm": True,
                   "seed": 3, **values})


def load(base: Path, *, adapter: bool = False) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=4, lora_dropout=0.1, target_modules=["q_proj", "v_proj"],
                                            task_type="CAUSAL_LM")) if adapter else model


def sft(base: Path, out: Path, *, adapter: bool = False, **values: Any) -> Any:
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(load(base, adapter=adapter), args=arguments(out, SFTConfig, bf16=False, **values),
                      train_dataset=texts(), processing_class=AutoTokenizer.from_pretrained(base))


def plain(base: Path, out: Path, **values: Any) -> Any:
    """A plain Trainer; it evaluates on two of its rows."""
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = texts().map(lambda row: tokenizer(row["prompt"] + row["completion"])).remove_columns(
        ["prompt", "completion"])
    return Trainer(load(base), args=arguments(out, TrainingArguments, **values), train_dataset=rows,
                   eval_dataset=rows.select(range(2)),
                   processing_class=tokenizer, data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False))


def watched(trainer: Any, ledger: Path, lines: list[str], **values: Any) -> Any:
    trainer.add_callback(ForgettingCallback(trainer, TASKS, ledger=ledger, report=lines.append,
                                            **{"every": 2, **values}))
    return trainer


class Reporter(TrainerCallback):  # type: ignore[misc]
    def __init__(self) -> None:
        self.seen: set[str] = set()

    def on_log(self, *_: Any, logs: Any = None, **__: Any) -> None:
        self.seen |= set(logs)


class StopAfterSave(TrainerCallback):  # type: ignore[misc]
    def on_save(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = True


def state(trainer: Any) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    import torch

    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(("make", "values"), [
    (plain, {}), (sft, {"gradient_checkpointing": True, "adapter": True}),
    pytest.param(sft, {"adapter": True}, marks=pytest.mark.slow),
], ids=["full", "adapter-checkpointing", "adapter"])
def test_a_training_is_the_same_bit_by_bit_with_it(base: Path, tmp_path: Path, make: Any, values: Any) -> None:
    import torch

    lines: list[str] = []
    without = make(base, tmp_path / "a", **values)
    without.train()
    end = torch.get_rng_state()
    observed = watched(make(base, tmp_path / "b", **values), tmp_path / "l.db", lines)
    seen: list[bool] = []
    step = observed.training_step
    observed.training_step = lambda model, *rest: (step(model, *rest), seen.append(model.training))[0]
    observed.add_callback(reporter := Reporter())
    trained = {n for n, p in observed.model.named_parameters() if p.requires_grad}
    observed.train()
    assert same(state(observed), state(without))
    assert torch.equal(torch.get_rng_state(), end)
    assert all(seen)
    assert {n for n, p in observed.model.named_parameters() if p.requires_grad} == trained
    assert [line.split(":")[0] for line in lines] == ["watch, step 2", "watch, step 4", "watch"]
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (observed, without)]
    assert losses[0] == losses[1]
    assert {"loss", "forgetting/arc_easy"} <= reporter.seen


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "adapter"])
def test_what_is_stored_is_what_an_evaluation_of_the_files_says(base: Path, tmp_path: Path, adapter: bool) -> None:
    trainer = watched(sft(base, tmp_path / "out", adapter=adapter, save_strategy="steps", save_steps=2),
                      tmp_path / "l.db", [])
    trainer.train()
    with Ledger(tmp_path / "l.db") as ledger:
        (tuning,) = ledger.tunings()
        stored = ledger.evaluations()
        assert (tuning.status, tuning.method, tuning.name) == ("done", "lora" if adapter else "full", "out")
        assert [(p.step, p.n) for p in tuning.watch] == [(2, 12), (4, 12)]
        assert [s["step"] for s in tuning.steps] == [1, 2, 3, 4]
        assert tuning.data
        assert [e.status for e in stored] == ["done"] * 3
        asked = {"dtype": "float32", "threads": 1, "ledger": ledger}
        task = [TaskSpec(name="arc_easy", sample=12)]
        before = evaluate(str(base), task, **asked)
        assert before.id == stored[0].id, "the base of the watch is the base's evaluation"
        for step in (2, 4):
            folder = str(tmp_path / "out" / f"checkpoint-{step}")
            point = next(p for p in tuning.watch if p.step == step)
            after = evaluate(str(base), task, adapter=folder, **asked) if adapter else evaluate(folder, task, **asked)
            assert after.model.fingerprint in {e.model.fingerprint for e in stored}
            score = next(s.value for s in after.scores if s.primary)
            assert score == pytest.approx(point.tuned, abs=1e-12)
            made = compare(before, after, ledger=ledger, save=False)
            assert made.lineage
            row = next(r for r in made.rows if r.primary)
            assert row.delta == pytest.approx(point.delta)
        assert len(ledger.evaluations()) == 3, "what the watch stored answers for the files"
    logged = [entry for entry in trainer.state.log_history if "forgetting/arc_easy" in entry]
    assert [e["step"] for e in logged] == [2, 4]
    assert logged[0]["forgetting/arc_easy"] == pytest.approx(-100 * tuning.watch[0].delta)
    assert logged[0]["forgetting/arc_easy/low"] <= logged[0]["forgetting/arc_easy"]


@pytest.mark.parametrize("make", [plain, pytest.param(sft, marks=pytest.mark.slow)], ids=["full", "adapter"])
def test_a_training_that_goes_on_from_a_checkpoint_has_the_same_analyses(base: Path, tmp_path: Path, make: Any) -> None:
    values: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, **({"adapter": True} if make is sft else {})}
    whole = watched(make(base, tmp_path / "whole", **values), tmp_path / "whole.db", [])
    whole.train()
    first = watched(make(base, tmp_path / "out", **values), tmp_path / "l.db", [])
    first.add_callback(StopAfterSave())
    first.train()
    assert first.state.global_step == 2
    again = watched(make(base, tmp_path / "out", **values), tmp_path / "l.db", [])
    again.train(resume_from_checkpoint=True)
    assert same(state(again), state(whole))
    with Ledger(tmp_path / "whole.db") as one, Ledger(tmp_path / "l.db") as two:
        (expected,), (found,) = one.tunings(), two.tunings()
    assert found.watch == expected.watch
    assert found.states == expected.states
    assert (found.status, found.result) == ("done", expected.result)


def test_a_stored_tuning_is_found_by_its_whole_id_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ledger_cases
    from aftertune.callbacks.training_record import stored_tuning

    with Ledger(tmp_path / "l.db") as ledger:
        made = ledger.save_tuning(ledger_cases.tuning("t-123456"))
        monkeypatch.setattr(Ledger, "tunings", None)  # the others are not read
        assert stored_tuning(ledger, made.id) == made
        assert [stored_tuning(ledger, word) for word in (None, "", made.name + "x", made.id[:5], "none")] == [None] * 5


def test_a_full_training_that_goes_on_without_its_ledger_is_refused(base: Path, tmp_path: Path) -> None:
    values = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    watched(plain(base, tmp_path / "out", **values), tmp_path / "l.db", []).train()
    again = watched(plain(base, tmp_path / "out", **{**values, "max_steps": 4}), tmp_path / "other.db", [])
    with pytest.raises(InputError, match=r"from step 2, .* has no record of its first run.*give the ledger"):
        again.train(resume_from_checkpoint=True)


def test_a_proven_loss_stops_the_training(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aftertune import forgetting_watch

    monkeypatch.setattr(forgetting_watch, "_verdict", lambda *_, **__: "lower")
    trainer = watched(plain(base, tmp_path / "out"), tmp_path / "l.db", [], stop=True)
    trainer.train()
    assert trainer.state.global_step == 2
    with Ledger(tmp_path / "l.db") as ledger:
        (tuning,) = ledger.tunings()
    assert tuning.notes == ("stopped at step 2: arc_easy is proven to be forgotten by more than 2 points",)
    assert tuning.result in tuning.states


@pytest.mark.parametrize(("every", "values", "steps"), [
    ("save", {"save_strategy": "steps", "save_steps": 3}, [3, 4]),
    ("evaluate", {"eval_strategy": "steps", "eval_steps": 2}, [2, 4]),
    (3, {}, [3, 4]),
])
def test_it_measures_at_steps_evaluations_or_checkpoints(base: Path, tmp_path: Path, every: Any, values: Any,
                                                         steps: list[int]) -> None:
    trainer = watched(plain(base, tmp_path / "out", **values), tmp_path / "l.db", [], every=every)
    trainer.train()
    with Ledger(tmp_path / "l.db") as ledger:
        assert [p.step for p in ledger.tunings()[0].watch] == steps


def test_the_best_checkpoint_is_what_the_tuning_ends_with(base: Path, tmp_path: Path) -> None:
    trainer = plain(base, tmp_path / "out", eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
                    load_best_model_at_end=True, metric_for_best_model="loss", learning_rate=0.5)
    watched(trainer, tmp_path / "l.db", []).train()
    best = trainer.state.best_global_step
    with Ledger(tmp_path / "l.db") as ledger:
        (tuning,) = ledger.tunings()
        folder = evaluate(str(tmp_path / "out" / f"checkpoint-{best}"), ["arc_easy"], ledger=ledger, threads=1,
                          dtype="float32")
    assert best in {p.step for p in tuning.watch}
    assert tuning.result == folder.model.fingerprint


def test_an_analysis_that_fails_does_not_end_the_training(base: Path, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    from aftertune.callbacks.live_evaluation import LiveEvaluations

    def broken(*_: Any) -> Any:
        raise InputError("the disk is full")

    lines: list[str] = []
    monkeypatch.setattr(LiveEvaluations, "model", broken)
    trainer = watched(plain(base, tmp_path / "out"), tmp_path / "l.db", lines)
    trainer.train()
    assert trainer.state.global_step == 4
    assert lines == [f"watch, step {step} was not analysed: the disk is full" for step in (2, 4)]
    with Ledger(tmp_path / "l.db") as ledger:
        assert ledger.tunings()[0].status == "done"


def test_a_ledger_that_cannot_be_written_does_not_end_the_training(base: Path, tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    trainer = watched(plain(base, tmp_path / "out"), tmp_path / "l.db", lines)
    save = Ledger.save_tuning

    def broken(ledger: Ledger, tuning: Any) -> Any:
        if trainer.state.global_step:
            raise StorageError("the disk is full")
        return save(ledger, tuning)

    monkeypatch.setattr(Ledger, "save_tuning", broken)
    trainer.train()
    assert trainer.state.global_step == 4
    assert [line for line in lines if "stored" in line] == [
        "watch, step 2 is not stored yet: the disk is full", "watch, step 4 is not stored yet: the disk is full",
        f"watch: tuning {trainer.callback_handler.callbacks[-1].tuning.id} is not stored as done: the disk is full"]


def test_the_log_has_what_was_lost() -> None:
    from aftertune.callbacks.forgetting import _lost
    from aftertune.values import WatchPoint

    point = WatchPoint(step=1, task="t", metric="acc", n=8, base=0.5, tuned=0.25, delta=-0.25, low=-0.5, high=0.125,
                       verdict="undecided")
    assert _lost(point) == {"forgetting/t": 25.0, "forgetting/t/low": -12.5, "forgetting/t/high": 50.0}


@pytest.mark.parametrize(("tasks", "values", "message"), [
    (None, {}, "no tasks to watch; give names"), (TASKS, {"every": 0}, 'every is 0; allowed are a number of steps'),
    (TASKS, {"every": "epoch"}, 'every is .epoch.; allowed'), (TASKS, {"margin": 0}, "margin is 0; allowed"),
    (TASKS, {"chat_template": True}, "unknown setting 'chat_template'.*allowed: apply_chat_template"),
    (TASKS, {"engine": "lm-eval:vllm"}, "with packed or plain"),
    ({"arc_easy": 0}, {}, "`sample`: Input should be greater than 0"),
    (TASKS, {"memory": "much"}, "`memory`: 'much' is not a size"),
])
def test_wrong_arguments_are_refused_in_one_line(base: Path, tmp_path: Path, tasks: Any, values: Any,
                                                 message: str) -> None:
    with pytest.raises(InputError, match=message):
        ForgettingCallback(plain(base, tmp_path / "out"), tasks, **values)


def test_what_can_only_be_known_at_the_start_is_refused_there(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the first argument is the trainer, found dict: make the trainer first"):
        ForgettingCallback(TASKS)
    trainer = watched(plain(base, tmp_path / "out"), tmp_path / "l.db", [], every="evaluate")
    with pytest.raises(InputError, match='eval_strategy is "no", so nothing would be analysed'):
        trainer.train()
    trainer = plain(base, tmp_path / "out")
    trainer.processing_class = None
    with pytest.raises(InputError, match=r"no tokenizer.*processing_class=tokenizer"):
        watched(trainer, tmp_path / "l.db", []).train()
    trainer.is_fsdp_enabled = True
    callback = ForgettingCallback(trainer, TASKS)
    with pytest.raises(InputError, match="FSDP splits; train on one device or with distributed data parallel"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control)


def test_importing_the_name_is_light() -> None:
    code = ("import sys, aftertune.callbacks; assert 'ForgettingCallback' in dir(aftertune.callbacks); "
            "print([m for m in ('torch', 'transformers', 'trl') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_verbs_show_it(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                           capsys: pytest.CaptureFixture[str]) -> None:
    from cli_cases import call

    monkeypatch.setenv("AFTERTUNE_LEDGER", str(tmp_path / "l.db"))
    trainer = watched(plain(base, tmp_path / "out"), tmp_path / "l.db", lines := [])
    trainer.train()
    capsys.readouterr()
    assert call(monkeypatch, "runs", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [t["name"] for t in listed["tunings"]] == ["out"]
    assert [e["name"] for e in listed["evaluations"]] == ["base", "out-checkpoint-2", "out-checkpoint-4"]
    advised = lines[-1].split("`")[1].split()
    assert advised[:2] == ["aftertune", "compare"]
    assert call(monkeypatch, *advised[1:]) == 0
    assert call(monkeypatch, "record", "--out", str(tmp_path / "record.md")) == 0
    assert call(monkeypatch, "show", listed["tunings"][0]["id"]) == 0
    record = (tmp_path / "record.md").read_text(encoding="utf-8")
    assert "full fine-tune" in record
    assert listed["tunings"][0]["id"] in record
    assert call(monkeypatch, "card", "out-checkpoint-4", "--out", str(tmp_path / "card.md")) == 0


def test_the_program_in_the_documents_runs(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parent.parent / "docs" / "forgetting.md").read_text(encoding="utf-8")
    program = text.split("```python\n")[1].split("```")[0]
    assert len(program.splitlines()) <= 30
    texts().to_json(tmp_path / "orders.jsonl")
    for there, here in (("Qwen/Qwen2.5-0.5B", str(base)), ('{"hellaswag": 200}', '{"arc_easy": 4}'),
                        ("max_steps=300", "use_cpu=True, bf16=False, report_to=[], max_steps=2"),
                        ("every=100", "every=1"), ("save_steps=100", "save_steps=2"),
                        ("logging_steps=10", "logging_steps=1")):
        assert there in program
        program = program.replace(there, here)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(tmp_path / "l.db"))
    exec(compile(program, "docs/forgetting.md", "exec"), {})
    with Ledger(tmp_path / "l.db") as ledger:
        assert [p.step for p in ledger.tunings()[0].watch] == [1, 2]
