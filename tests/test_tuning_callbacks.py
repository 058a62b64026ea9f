"""Validation, early stopping, learning rates, splitting a batch when memory runs out, and Ctrl-C."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from aftertune.errors import ResourceError
from aftertune.study import DataSpec, LoraSpec, TuneSpec
from aftertune.tuning import tune
from aftertune.tuning.batching import EndToEnd
from tuning_cases import base_and_data, timeless


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_and_data(tmp_path_factory.mktemp("callbacks"))


def spec(place: Path, out: str, *, validation: float | None = None, **settings: Any) -> TuneSpec:
    data = DataSpec(file=place / "data.jsonl", held_out=0.2, validation=validation)
    return TuneSpec(**{
        "model": str(place / "base"), "data": data, "out": place / out, "learning_rate": 0.01, "max_steps": 8,
        "batch_size": 4, "epochs": 4.0, "dtype": "float32", "device": "cpu", "threads": 1, "lora": LoraSpec(r=4),
        **settings})


def weights(place: Path, out: str) -> dict[str, Any]:
    return dict(load_file(place / out / "adapter_model.safetensors"))


def same(a: dict[str, Any], b: dict[str, Any], bound: float) -> bool:
    return a.keys() == b.keys() and all((a[k] - b[k]).abs().max() <= bound for k in a)


def test_the_learning_rate_falls_along_its_schedule(place: Path) -> None:
    rates = {kind: [s["learning_rate"] for s in tune(spec(place, kind, schedule=kind, warmup=0.0)).steps]
             for kind in ("linear", "cosine")}
    assert rates["linear"] == pytest.approx([0.01 * (8 - n) / 8 for n in range(8)])
    assert rates["cosine"][4] == pytest.approx(0.005)
    assert rates["cosine"][1] > rates["linear"][1]


def test_training_stops_when_validation_stops_improving_and_keeps_the_best_weights(place: Path) -> None:
    # at this rate the loss falls and then breaks loose
    wild = {"learning_rate": 0.5, "max_steps": 30, "epochs": 30.0, "early_stop": {"every": 1, "patience": 3}}
    done = tune(spec(place, "early", validation=0.2, **wild))
    losses = [s["validation_loss"] for s in done.steps]
    best = losses.index(min(losses)) + 1
    assert len(losses) == best + 3 < 30
    [note] = [n for n in done.notes if n.startswith("stopped early")]
    assert f"the weights are those of step {best}" in note
    assert done.held_out is not None  # measured on what came out: near the best, far from the last
    assert abs(done.held_out.after - min(losses)) < abs(done.held_out.after - losses[-1]) / 2
    assert done.settings["early_stop"] == {"every": 1, "patience": 3}
    assert done.settings["validation_examples"] > 0


def test_a_resumed_run_with_validation_ends_with_the_same_weights(place: Path) -> None:
    values = {"learning_rate": 0.5, "max_steps": 20, "epochs": 20.0, "checkpoint_minutes": 0,
              "early_stop": {"every": 2, "patience": 3}}

    def broken(done: int, _total: int, text: str) -> None:
        if text.startswith("training: step") and done == 5:
            raise RuntimeError("broken")

    whole = tune(spec(place, "v-whole", validation=0.2, **values))
    with pytest.raises(RuntimeError, match="broken"):
        tune(spec(place, "v-broken", validation=0.2, **values), progress=broken)
    done = tune(spec(place, "v-broken", validation=0.2, **values))
    assert timeless(done.steps) == timeless(whole.steps)
    assert same(weights(place, "v-broken"), weights(place, "v-whole"), 0)
    assert done.notes == whole.notes


def test_without_validation_nothing_stops_it(place: Path) -> None:
    done = tune(spec(place, "plain"))
    assert len(done.steps) == 8
    assert not any("validation_loss" in s for s in done.steps)
    assert "early_stop" not in done.settings


def test_gradient_checkpointing_changes_no_weight(place: Path) -> None:
    tune(spec(place, "plain"))
    done = tune(spec(place, "saving", gradient_checkpointing=True))
    assert done.settings["gradient_checkpointing"] is True
    assert same(weights(place, "saving"), weights(place, "plain"), 1e-6)


def test_out_of_memory_splits_the_batch_and_the_weights_stay_the_same(place: Path, monkeypatch: Any) -> None:
    tune(spec(place, "plain"))
    loss = EndToEnd.loss

    def short(self: EndToEnd, model: Any, batch: Any) -> Any:
        if model.training and int((batch["position_ids"] == 0).sum()) > 1:
            raise MemoryError("not enough memory")
        return loss(self, model, batch)

    monkeypatch.setattr(EndToEnd, "loss", short)
    done = tune(spec(place, "parts"))
    assert "out of memory: each batch was split in 4; the effective batch size is unchanged" in done.notes
    assert same(weights(place, "parts"), weights(place, "plain"), 1e-5)


def test_one_example_that_does_not_fit_is_an_error_with_advice(place: Path, monkeypatch: Any) -> None:
    def short(*_: Any, **__: Any) -> Any:
        raise MemoryError("not enough memory")

    monkeypatch.setattr("aftertune.tuning.trainer.CompletionTrainer.compute_loss", short)
    with pytest.raises(ResourceError, match=r"one example of up to \d+ tokens.*--gradient-checkpointing"):
        tune(spec(place, "none"))


def test_ctrl_c_ends_after_a_step_with_a_checkpoint_and_the_run_goes_on(place: Path,
                                                                        capsys: pytest.CaptureFixture[str]) -> None:
    whole = tune(spec(place, "plain"))

    def pressed(done: int, _total: int, text: str) -> None:
        if text.startswith("training: step") and done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"stopped after step \d of 8; its checkpoint is kept"):
        tune(spec(place, "pressed"), progress=pressed)
    assert "SIGINT: stopping after this step, with a checkpoint" in capsys.readouterr().err
    done = tune(spec(place, "pressed"))
    assert timeless(done.steps) == timeless(whole.steps)
    assert same(weights(place, "pressed"), weights(place, "plain"), 0)
