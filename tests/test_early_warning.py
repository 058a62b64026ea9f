"""The early warning: when it looks, what it says, and that the training stays as it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aftertune.sources import load_model, load_tokenizer, resolve_model
from aftertune.stats.evidence import paired_evidence
from aftertune.stats.verdict import ALPHA
from aftertune.study import DataSpec, LoraSpec, TuneSpec, WatchSpec
from aftertune.study.anchor import ADVISED_ANCHOR
from aftertune.study.data import ADVISED_ANSWERS
from aftertune.tuning import tune
from aftertune.tuning.early_warning import EarlyWarning, lower_rate
from aftertune.values import WatchPoint
from tuning_cases import base_and_data, timeless

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import early_drift

#: A limit that the tiny model exceeds.
LIMIT = 0.05


@pytest.fixture(autouse=True)
def _small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aftertune.tuning.early_warning.LIMIT", LIMIT)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_and_data(tmp_path_factory.mktemp("early"))


def spec(place: Path, out: str, **settings: Any) -> TuneSpec:
    values = {"model": str(place / "base"), "data": DataSpec(file=place / "data.jsonl", held_out=0.2),
              "out": place / out, "learning_rate": 0.05, "max_steps": 20, "batch_size": 2, "dtype": "float32",
              "device": "cpu", "threads": 1, "checkpoint_minutes": 0, "lora": LoraSpec(r=4, dropout=0.1)}
    return TuneSpec(**{**values, **settings})


def weights(folder: Path) -> bytes:
    [path] = folder.glob("*model.safetensors")
    return path.read_bytes()


def point(task: str = "hellaswag", delta: float = -0.06, verdict: str = "worse", target: bool = False) -> WatchPoint:
    return WatchPoint(step=5, task=task, metric="acc", n=200, base=0.4, tuned=0.4 + delta, delta=delta,
                      low=delta - 0.04, high=delta + 0.04, verdict=verdict, is_target=target)  # type: ignore[arg-type]


def early(place: Path, **settings: Any) -> EarlyWarning:
    wanted = spec(place, "unused", **settings)
    return EarlyWarning(wanted, learning_rate=0.05, tokenizer=load_tokenizer(resolve_model(wanted.model)))


class OtherModel:
    """A warning that starts with one model and checks another."""

    def __init__(self, place: Path, scale: float, **settings: Any) -> None:
        self.warning = early(place, **settings)
        self.model = load_model(resolve_model(str(place / "base")), "float32", "cpu")
        self.scale = scale

    def found(self, points: tuple[WatchPoint, ...] = ()) -> Any:
        import torch

        self.warning.start(self.model, 60)
        with torch.no_grad():
            self.model.get_input_embeddings().weight.mul_(1 + self.scale)
        return self.warning.check(self.model, 5, points)


def test_it_looks_once_in_the_first_steps_of_a_training_that_is_long_enough(place: Path) -> None:
    warning = early(place)
    assert [warning.step(total) for total in (1, 19, 20, 100, 101, 1000)] == [None, None, 5, 5, 6, 50]


def test_equal_models_have_no_drift_and_no_warning(place: Path) -> None:
    found = OtherModel(place, 0.0).found((point(verdict="undecided"), point("orders", target=True)))
    assert (found.kl, found.text) == (0.0, "")


def test_drift_alone_is_told_apart_from_a_loss_of_skill(place: Path) -> None:
    found = OtherModel(place, 1.0).found()
    assert found.kl > LIMIT
    assert found.text.startswith("early warning at step 5 of 60: this recipe will probably forget. drift: "
                                 f"{found.kl:.3f} nats per token on general prompts, more than {LIMIT:g} (")
    assert "which alone is no loss of skill); loss of skill: not measured (--watch hellaswag=200" in found.text
    for remedy in ("--learning-rate", "--rank 2", f"--replay base:{ADVISED_ANSWERS}", f"--anchor {ADVISED_ANCHOR}"):
        assert (remedy in found.text) == (remedy != "--rank 2"), remedy
    watched = OtherModel(place, 1.0).found((point(verdict="undecided", delta=-0.005),))
    assert "loss of skill: none is proven yet (hellaswag -0.5 points on 200 items" in watched.text
    lost = OtherModel(place, 0.0).found((point(), point("orders", delta=-0.5, target=True)))
    assert (f"drift: 0.000 nats per token on general prompts, less than {LIMIT:g}; loss of skill: proven on hellaswag "
            "-6.0 points on 200 items (95 % interval -10.0 to -2.0). To forget less:") in lost.text
    assert "orders" not in lost.text, "what is learned cannot be forgotten"


def test_what_is_there_already_is_not_suggested(place: Path) -> None:
    found = OtherModel(place, 1.0, method="full", anchor="kl:1", replay={"data": "base:5"}).found()
    assert "an adapter (--method lora)" in found.text
    assert "--rank" not in found.text
    assert "--replay" not in found.text
    assert "--anchor" not in found.text
    assert "(--rank 8 --alpha 16)" in OtherModel(place, 1.0, lora=LoraSpec(r=16)).found().text, \
        "the scale alpha / rank stays, so that the steps do not grow"


def test_what_is_suggested_can_be_done(place: Path) -> None:
    def anchor(**settings: Any) -> str:
        found = [remedy for remedy in early(place, **settings)._remedies(1.0) if remedy.startswith("an anchor")]
        return "".join(found)

    advised = f"--anchor {ADVISED_ANCHOR}"
    assert anchor() == f"an anchor ({advised})"
    assert anchor(learn="all") == f"an anchor (--replay base:{ADVISED_ANSWERS} {advised})"
    assert anchor(learn="all", replay={"data": "base:5"}) == f"an anchor ({advised})"
    assert anchor(backend="unsloth") == ""
    assert anchor(anchor="kl:0") == f"an anchor ({advised})", "a weight of 0 is no anchor"
    assert "a lower rank (--rank 8)" in early(place, method="vera", lora=LoraSpec(r=16))._remedies(1.0), "no alpha"
    advice = {"learn": "all", "replay": {"data": f"base:{ADVISED_ANSWERS}"}, "anchor": ADVISED_ANCHOR}
    assert spec(place, "advised", **advice).anchor == ADVISED_ANCHOR


def test_the_stored_table_has_all_recipes() -> None:
    stored = json.loads(early_drift.STORED.read_text(encoding="utf-8"))
    assert [(row["method"], row["learning_rate"]) for row in stored] == list(early_drift.RECIPES)


@pytest.mark.parametrize(("rate", "kl", "lower"), [
    (1e-3, LIMIT, 5e-4), (1e-3, 4 * LIMIT, 5e-4), (1e-3, 9 * LIMIT, 3e-4), (2e-4, 100 * LIMIT, 2e-5),
    (3e-4, 0.0, 1e-4)])
def test_the_suggested_rate_brings_the_drift_below_the_limit(rate: float, kl: float, lower: float) -> None:
    assert lower_rate(rate, kl) == pytest.approx(lower)
    assert kl * (lower / rate) ** 2 <= LIMIT * (1 + 1e-9)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_training_is_the_same_with_and_without_it(place: Path, method: str, monkeypatch: pytest.MonkeyPatch,
                                                      capfd: pytest.CaptureFixture[str]) -> None:
    warned = tune(spec(place, f"{method}-warned", method=method))
    said = capfd.readouterr().err
    assert "early warning at step 5 of 20" in said
    [note] = [note for note in warned.notes if note.startswith("early warning")]
    assert note in said
    assert warned.steps[4]["early_kl"] > LIMIT
    assert sum("early_kl" in step for step in warned.steps) == 1
    monkeypatch.setattr("aftertune.tuning.early_warning.SHORTEST", 10**9)
    plain = tune(spec(place, f"{method}-plain", method=method))
    assert "early warning" not in capfd.readouterr().err
    assert weights(place / f"{method}-plain") == weights(place / f"{method}-warned")
    without = [{k: v for k, v in step.items() if k != "early_kl"} for step in timeless(warned.steps)]
    assert without == timeless(plain.steps)
    assert plain.id == warned.id


def test_a_gentle_recipe_is_not_warned_of(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    gentle = tune(spec(place, "gentle", learning_rate=1e-4))
    assert 0 <= gentle.steps[4]["early_kl"] < LIMIT
    assert "early warning" not in capfd.readouterr().err
    assert not any(note.startswith("early warning") for note in gentle.notes)


def test_a_run_that_goes_on_keeps_its_warning_or_makes_it(place: Path) -> None:
    class Broken(Exception):
        pass

    whole = tune(spec(place, "unbroken"))
    for at in (3, 9):
        def break_at(done: int, _total: int, text: str, at: int = at) -> None:
            if text.startswith("training: step") and done == at:
                raise Broken

        broken = spec(place, f"broken-{at}")
        with pytest.raises(Broken):
            tune(broken, progress=break_at)
        done = tune(broken)
        assert timeless(done.steps) == timeless(whole.steps)
        assert done.notes == whole.notes


def test_a_model_that_cannot_be_looked_at_is_trained_with_a_note(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no logits here")

    monkeypatch.setattr("aftertune.tuning.early_warning.distributions", fail)
    done = tune(spec(place, "unseen"))
    assert "no early warning: no logits here" in done.notes
    assert len(done.steps) == 20


def test_the_watch_looks_once_more_and_keeps_its_own_looks(place: Path) -> None:
    """The points of the early look are corrected for the tasks alone, and are none of the watch's."""
    calls: list[Any] = []

    class Look:
        def __call__(self, _model: Any, step: int, looks: int) -> tuple[WatchPoint, ...]:
            calls.append((step, looks))
            return (point(verdict="undecided"),) if step else ()

        def early(self, _model: Any, step: int) -> tuple[WatchPoint, ...]:
            calls.append(("early", step))
            return (point(verdict="lower"),)

        def settings(self) -> dict[str, Any]:
            return {}

    done = tune(spec(place, "watched", watch=WatchSpec(tasks={"hellaswag": 200}, every=10)), look=Look())
    assert calls == [(0, 0), ("early", 5), (10, 2), (20, 2)]
    assert len(done.watch) == 2
    assert "loss of skill: proven on hellaswag" in "".join(done.notes)


def test_the_rule_of_the_watch_warns_of_at_most_five_percent_that_lose_nothing() -> None:
    """500 looks at 200 items of a model that answers 12 % of them otherwise, as often right as wrong."""
    random, warned = np.random.default_rng(0), 0
    for _ in range(500):
        base = random.random(200) < 0.4
        flipped = random.random(200) < 0.12
        tuned = np.where(flipped, random.random(200) < 0.4, base)
        evidence = paired_evidence(base.astype(float), tuned.astype(float), margin=0.02)
        warned += evidence.tests.lower < ALPHA or evidence.tests.worse < ALPHA
    assert warned / 500 <= 0.05 + 2 * (0.05 * 0.95 / 500) ** 0.5


def test_the_state_of_a_checkpoint_has_the_warning(place: Path) -> None:
    class Broken(Exception):
        pass

    def break_late(done: int, _total: int, text: str) -> None:
        if text.startswith("training: step") and done == 12:
            raise Broken

    with pytest.raises(Broken):
        tune(spec(place, "state", seed=3), progress=break_late)
    newest = max((place / "state" / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    assert json.loads((newest / "course.json").read_text())["warning"].startswith("early warning at step 5")
