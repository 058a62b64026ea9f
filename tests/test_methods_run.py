"""Every adapter method from end to end on tiny random models: trained, resumed, saved, evaluated and merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from aftertune.ledger import Ledger
from aftertune.merge_check import check_merge
from aftertune.methods import METHODS
from aftertune.sources import fingerprint_model, load_model, load_tokenizer, resolve_adapter, resolve_model
from aftertune.study import DataSpec, LoraSpec, TaskSpec, TuneSpec
from aftertune.tuning import tune
from aftertune.tuning.held_out import Batching, completion_losses
from aftertune.tuning.split import Corpus
from aftertune.tuning.tokenize import EncodeOptions, encode_all
from eval_cases import CHAT, byte_folder
from test_cli import call
from tuning_cases import base_and_data, easy_rows, timeless, write_rows

pytestmark = pytest.mark.slow

#: In four bits the evaluation in 16 bit is another one; tests/test_tuning_methods.py has qlora.
ADAPTERS = [name for name, method in METHODS.items() if method.adapter and method.base != "nf4"]
STEPS = 10


class Broken(Exception):
    """The end of the process, as far as a test can have it."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_and_data(tmp_path_factory.mktemp("methods"), hidden=64)


def spec(place: Path, out: str, method: str, **settings: Any) -> TuneSpec:
    lora = LoraSpec(r=8, dropout=0.25)
    return TuneSpec(**{
        "model": str(place / "base"), "data": DataSpec(file=place / "data.jsonl", held_out=0.2), "method": method,
        "out": place / out, "learning_rate": 0.05, "max_steps": STEPS, "epochs": 3.0, "batch_size": 4,
        "dtype": "float32", "device": "cpu", "threads": 1, "checkpoint_minutes": 0, "lora": lora, **settings})


@pytest.mark.parametrize("method", ADAPTERS)
def test_it_learns_and_the_saved_adapter_has_the_same_loss(place: Path, method: str) -> None:
    tuning = tune(spec(place, f"{method}-whole", method))
    assert tuning.held_out is not None
    assert tuning.held_out.after < tuning.held_out.before - 0.1
    base = resolve_model(str(place / "base"))
    adapter = resolve_adapter(tuning.output, base, fingerprint_model(base))
    assert adapter.proven
    assert fingerprint_model(base, adapter).fingerprint == tuning.result
    model, tokenizer = load_model(base, "float32", "cpu", adapter), load_tokenizer(base)
    examples = Corpus.load(spec(place, "none", method).data, 0).held_out
    held_out = encode_all(examples, tokenizer, EncodeOptions("chat", 1024))
    losses = completion_losses(model, held_out.rows, Batching(pad=tokenizer.pad_token_id, dtype="float32"))
    assert sum(losses) / len(losses) == pytest.approx(tuning.held_out.after, abs=1e-4)


@pytest.mark.parametrize("at", [2, 7])
@pytest.mark.parametrize("method", ADAPTERS)
def test_a_broken_run_ends_with_the_weights_of_an_unbroken_one(place: Path, method: str, at: int) -> None:
    def breaking(step: int, _total: int, text: str) -> None:
        if text.startswith("training: step") and step == at:
            raise Broken

    whole, broken = tune(spec(place, f"{method}-whole", method)), spec(place, f"{method}-{at}", method)
    with pytest.raises(Broken):
        tune(broken, progress=breaking)
    steps: list[int] = []
    done = tune(broken, progress=lambda step, _total, text:
                steps.append(step) if text.startswith("training: step") else None)
    assert steps == list(range(at, STEPS + 1)), "it starts from the checkpoint"
    files = [Path(t.output) / "adapter_model.safetensors" for t in (done, whole)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert (timeless(done.steps), done.held_out) == (timeless(whole.steps), whole.held_out)


@pytest.mark.parametrize("method", ADAPTERS)
def test_the_weights_of_the_best_validation_are_kept(place: Path, method: str) -> None:
    """At one of these rates the loss rises again after its best value."""
    data = DataSpec(file=place / "data.jsonl", held_out=0.2, validation=0.2)
    for rate in (0.3, 1.0):
        tuning = tune(spec(place, f"{method}-{rate}", method, data=data, early_stop={"every": 1, "patience": 3},
                           learning_rate=rate))
        losses = [step["validation_loss"] for step in tuning.steps if "validation_loss" in step]
        if losses[-1] > min(losses):
            break
    assert losses[-1] > min(losses), "the end is not the best"
    base = resolve_model(str(place / "base"))
    model, tokenizer = load_model(base, "float32", "cpu", resolve_adapter(tuning.output, base, tuning.base)), \
        load_tokenizer(base)
    rows = encode_all(Corpus.load(data, 0).validation, tokenizer, EncodeOptions("chat", 1024)).rows
    found = completion_losses(model, rows, Batching(pad=tokenizer.pad_token_id, dtype="float32"))
    assert sum(found) / len(found) == pytest.approx(min(losses), abs=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ADAPTERS)
def test_check_merge_agrees_that_the_merged_weights_are_the_same_model(tmp_path: Path, method: str, dtype: str) -> None:
    base = byte_folder(tmp_path / "base", template=CHAT, window=4096)
    if dtype == "bfloat16":
        load_model(resolve_model(str(base)), dtype, "cpu").save_pretrained(base)
    data = DataSpec(file=write_rows(tmp_path / "rows.jsonl", easy_rows()))
    with Ledger(tmp_path / "ledger.db") as ledger:
        tuning = tune(TuneSpec(
            model=str(base), data=data, out=tmp_path / "out", name="easy", max_steps=8, method=method,
            learning_rate=0.02, merge=True, dtype=dtype, threads=1, lora=LoraSpec(r=8)), ledger=ledger)
        assert tuning.merged not in (None, tuning.result)
        found = check_merge("easy", tasks=[TaskSpec(name="arc_easy", sample=6)], ledger=ledger)
    assert found.moved > 1e-2, "the tuning changed the model"
    assert found.merged.same
    assert found.merged.share <= (1e-3 if dtype == "float32" else 0.1)


@pytest.mark.parametrize("method", ADAPTERS)
def test_eval_takes_the_adapter_and_its_scores_are_those_of_transformers(
        tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`tune`, then `eval --adapter` by the packed engine; each log-likelihood is that of lm-eval's own model class."""
    base = byte_folder(tmp_path / "base", template=CHAT, window=4096)
    data = write_rows(tmp_path / "rows.jsonl", easy_rows())
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(tmp_path / "ledger.db"))
    out = str(tmp_path / "out")
    usual = ("--device", "cpu", "--dtype", "float32")
    rank = () if method == "ia3" else ("--rank", "8")
    assert call(monkeypatch, "tune", str(base), "--data", str(data), "--method", method, *rank,
                "--max-steps", "8", "--learning-rate", "0.02", "--out", out, *usual) == 0
    for engine in ("packed", "lm-eval:hf"):
        assert call(monkeypatch, "eval", str(base), "--adapter", out, "--tasks", "arc_easy", "--sample", "6", *usual,
                    "--engine", engine, "--name", engine.replace(":", "-")) == 0
    assert call(monkeypatch, "eval", str(base), "--tasks", "arc_easy", "--sample", "6", *usual, "--name", "base") == 0
    capsys.readouterr()
    with Ledger(tmp_path / "ledger.db") as ledger:
        ours, theirs, plain = (torch.tensor([r.logprob for a in ledger.answers(ledger.find_evaluation(name).id)
                                             for r in a.responses]) for name in ("packed", "lm-eval-hf", "base"))
    assert len(ours) == 24
    assert (ours - theirs).abs().max() < 1e-3 < (ours - plain).abs().mean()
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
