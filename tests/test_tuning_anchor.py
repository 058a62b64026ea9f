"""The anchor: its value and gradient against their definitions, what it refuses, and what stays the same without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from aftertune.errors import InputError
from aftertune.methods import METHODS
from aftertune.report import anchor_facts
from aftertune.report.facts import tuning_facts
from aftertune.sources import load_model, resolve_model
from aftertune.study import DataSpec, LoraSpec, TuneSpec
from aftertune.study.anchor import AnchorSetting
from aftertune.study.presets import ModelShape
from aftertune.tuning import step_text, tune
from aftertune.tuning.anchor import KlAnchor, L2Anchor, divergence, make_anchor
from aftertune.tuning.batching import EndToEnd, Logits, Padded, loss_and_predictions
from aftertune.tuning.build import build
from aftertune.tuning.estimate import ANCHOR_BYTES, HEAP, Machine, Workload, estimate
from aftertune.tuning.tokenize import IGNORED, EncodedRow
from tuning_cases import base_and_data, timeless, tiny_model, write_rows

#: A row of the new data with a prompt of three tokens, a replayed row, and another new row.
ROWS = [EncodedRow([9, 4, 7, 30, 31, 1], [IGNORED] * 3 + [30, 31, 1]),
        EncodedRow([8, 12, 13, 14, 1], [IGNORED] * 2 + [13, 14, 1], replayed=True),
        EncodedRow([5, 6, 7, 8, 9, 10, 11, 12, 13, 1], [IGNORED] * 9 + [1])]
LAYOUTS = pytest.mark.parametrize("layout", [EndToEnd(None), Padded(0, None)], ids=["end to end", "padded"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("anchor"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = base_and_data(tmp_path_factory.mktemp("anchored"))
    write_rows(place / "other.jsonl", [{"prompt": f"w{n} w{n + 1}", "completion": f"w{n} w3"} for n in range(20)])
    return place


def spec(place: Path, out: str, **settings: Any) -> TuneSpec:
    values = {"model": str(place / "base"), "data": DataSpec(file=place / "data.jsonl", held_out=0.2),
              "out": place / out, "learning_rate": 0.02, "max_steps": 6, "batch_size": 4, "dtype": "float32",
              "device": "cpu", "threads": 1, "lora": LoraSpec(r=4)}
    return TuneSpec(**{**values, **settings})


def weights(folder: Path) -> bytes:
    [path] = folder.glob("*model.safetensors")
    return path.read_bytes()


def started(folder: Path, method: str, rows: list[EncodedRow], setting: str = "kl:0.5") -> tuple[Any, Any]:
    """A model that has moved away from its base, and its anchor, which was made before."""
    model = build(load_model(resolve_model(str(folder)), "float32", "cpu"), method, LoraSpec(r=4), seed=0)
    anchor = make_anchor(AnchorSetting.parse(setting), model, method, rows)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += (0.5 if method == "vera" else 0.05) * torch.randn_like(parameter)
    return model, anchor


def total_loss(model: Any, anchor: Any, layout: Any, rows: list[EncodedRow]) -> torch.Tensor:
    """Mean nats of the learned tokens and the anchor's term, as the trainer adds them."""
    batch = layout.collate([{"input_ids": r.ids, "labels": r.labels, **anchor.row(r)} for r in rows])
    base = anchor.base(model, layout, batch)
    marks = batch["anchored"].bool()
    with layout.forward_context(model, batch):
        (nats, each), tuned = loss_and_predictions(layout, model, batch, marks)
        return nats / len(each) + anchor.term(base, tuned, int(marks.sum()))


def test_an_anchor_is_a_kind_and_a_weight() -> None:
    assert str(AnchorSetting.parse(" kl : 0.10")) == "kl:0.1"
    assert AnchorSetting.active("kl:0") is None
    assert AnchorSetting.active(None) is None
    for wrong in ("kl", "kl:", "kl:-1", "kl:nan", "l1:0.1", "0.1", "kl:inf"):
        with pytest.raises(ValueError, match=r"is no anchor; write kl:WEIGHT or l2:WEIGHT"):
            AnchorSetting.parse(wrong)


@pytest.mark.parametrize(("settings", "message"), [
    ({"anchor": "l2:0.01"}, "lora trains an adapter and leaves them as they are; use kl:0.01 instead"),
    ({"anchor": "kl:0.1", "learn": "all"}, "kl without replay counts on the prompts, but `learn: all` learns them"),
    ({"anchor": "near"}, "'near' is no anchor"),
])
def test_an_anchor_without_meaning_is_refused(place: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec(place, "refused", **settings)


def test_texts_without_prompts_have_nothing_to_anchor_on(place: Path) -> None:
    write_rows(place / "texts.jsonl", [{"text": f"w{n} w{n + 1} w3"} for n in range(20)])
    with pytest.raises(InputError, match=r"--anchor kl:0.1: the rows have no prompts .* add replay"):
        tune(spec(place, "texts", data=DataSpec(file=place / "texts.jsonl", held_out=0.2), template="plain",
                  anchor="kl:0.1"))


@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if m.base != "nf4"])
@LAYOUTS
def test_the_divergence_is_that_of_the_base_for_every_method(folder: Path, method: str, layout: Any) -> None:
    """Against the definition: both models read each row alone, in float64."""
    model, anchor = started(folder, method, ROWS)
    base = load_model(resolve_model(str(folder)), "float32", "cpu")
    [row] = [r for r in ROWS if r.replayed]
    with torch.no_grad():
        before, after = (m(torch.tensor([row.ids])).logits[0, :-1].double().log_softmax(-1) for m in (base, model))
        expected = float((before.exp() * (before - after)).sum(-1).mean())
        found = total_loss(model, anchor, layout, ROWS)
        alone = total_loss(model, KlAnchor(AnchorSetting("kl", 0.0), model, "lora" if METHODS[method].adapter else
                                           "full", replayed=True), layout, ROWS)
    assert expected > 1e-3
    assert float(found - alone) == pytest.approx(0.5 * expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if m.base != "nf4" and name != "dora"])
@LAYOUTS
def test_the_gradient_is_the_finite_difference(folder: Path, method: str, layout: Any) -> None:
    """DoRA has no such gradient: its norms count as constants."""
    rows = [row for row in ROWS if not row.replayed]  # so the prompts count
    model, anchor = started(folder, method, rows, "kl:3")
    trained = [p for p in model.parameters() if p.requires_grad]
    model.train()
    total_loss(model, anchor, layout, rows).backward()
    gradient = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])
    torch.manual_seed(2)
    noise = torch.randn_like(gradient)
    direction = gradient / gradient.norm() + noise / noise.norm()
    parts = [d.view_as(p) for d, p in zip(direction.split([p.numel() for p in trained]), trained, strict=True)]
    size, ends = 0.002, []
    for step in (size, -2 * size):
        with torch.no_grad():
            for parameter, part in zip(trained, parts, strict=True):
                parameter += step * part
            ends.append(float(total_loss(model, anchor, layout, rows)))
    assert (ends[0] - ends[1]) / (2 * size) == pytest.approx(float(gradient @ direction), rel=0.01)


def test_the_gradient_of_l2_is_the_finite_difference(folder: Path) -> None:
    model, anchor = started(folder, "full", ROWS, "l2:0.3")
    assert isinstance(anchor, L2Anchor)
    for each in model.parameters():
        each.grad = torch.ones_like(each)
    name, parameter = next((n, p) for n, p in model.named_parameters() if "q_proj" in n)

    def value() -> float:
        return 0.15 * sum(float((p.detach() - anchor.start[n]).double().square().sum())
                          for n, p in model.named_parameters())

    before = value()
    assert anchor.after_backward(model, 8.0) == pytest.approx(before)
    assert anchor.metrics(before, 0)["anchor_distance"] == pytest.approx((2 * before / 0.3) ** 0.5)
    with torch.no_grad():
        parameter[0, 0] += 0.02
        ends = [value()]
        parameter[0, 0] -= 0.04
        ends.append(value())
    slope = (ends[0] - ends[1]) / 0.04
    assert float(parameter.grad[0, 0]) == pytest.approx(1 + 8 * slope, rel=1e-3), f"scaled as the gradients are: {name}"


def test_the_divergence_in_chunks_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    base, tuned = Logits(torch.randn(50, 30)), Logits(torch.randn(50, 30, requires_grad=True))
    whole = divergence(base, tuned)
    whole.backward()
    gradient, tuned.values.grad = tuned.values.grad, None
    monkeypatch.setattr("aftertune.tuning.anchor._LOGITS", 30 * 16)
    parts = divergence(base, tuned)
    parts.backward()
    assert float(parts) == pytest.approx(float(whole))
    assert torch.allclose(tuned.values.grad, gradient, atol=1e-6)
    expected = torch.nn.functional.kl_div(tuned.values.log_softmax(-1), base.values.log_softmax(-1), log_target=True,
                                          reduction="sum")
    assert float(whole) == pytest.approx(float(expected), rel=1e-5)


def test_which_tokens_count() -> None:
    on_prompts, on_replay = (KlAnchor(AnchorSetting("kl", 1.0), torch.nn.Linear(1, 1), "lora", replayed=replayed)
                             for replayed in (False, True))
    turns = EncodedRow([9, 4, 30, 1, 7, 8, 31, 1, 2], [IGNORED, IGNORED, 30, 1, IGNORED, IGNORED, 31, 1, IGNORED])
    assert on_prompts.row(turns)["anchored"] == [0, 1, 0, 0, 1, 1, 0, 0, 0], "every question, but nothing after the end"
    assert on_replay.row(turns)["anchored"] == [0] * 9
    assert on_replay.row(ROWS[1])["anchored"] == [0, 1, 1, 1, 1]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_weight_of_zero_is_no_anchor_bit_by_bit(place: Path, method: str) -> None:
    kinds = {"lora": "kl:0", "full": "l2:0"}
    none = tune(spec(place, f"{method}-none", method=method))
    zero = tune(spec(place, f"{method}-zero", method=method, anchor=kinds[method]))
    assert zero.id == none.id
    assert weights(place / f"{method}-zero") == weights(place / f"{method}-none")
    assert timeless(zero.steps) == timeless(none.steps)
    assert "anchor" not in none.settings


@pytest.mark.parametrize(("method", "anchor", "replay"), [
    ("lora", "kl:5", False), ("pissa", "kl:5", True), ("full", "kl:5", True), ("full", "l2:3", False)])
def test_an_anchored_model_stays_nearer_to_its_base(place: Path, method: str, anchor: str, replay: bool) -> None:
    settings: dict[str, Any] = {"method": method, "max_steps": 12, "epochs": 3}
    if replay:
        settings["replay"] = {"data": place / "other.jsonl", "share": 0.5}
    name = f"{method}-{anchor[:2]}-{replay}"
    free, near = tune(spec(place, name, **settings)), tune(spec(place, f"{name}-near", anchor=anchor, **settings))
    assert near.id != free.id
    assert near.settings["anchor"] == anchor
    first, last = near.steps[0], near.steps[-1]
    measure = "anchor_kl" if anchor.startswith("kl") else "anchor_distance"
    assert first["anchor"] == pytest.approx(0, abs=1e-5), "the first step starts at the base"
    assert last["anchor"] > 0
    assert f"{last[measure]:.3}"[:3] in step_text(last)
    assert first["loss"] == pytest.approx(free.steps[0]["loss"], abs=1e-5), "the logged loss is without the anchor"
    [(label, text)] = anchor_facts(near)
    assert (label, anchor_facts(free)) == ("Anchor", [])
    where = " on the replayed rows" if replay else "" if method == "full" else " on the prompts"
    assert text.startswith(f"{anchor}{where}: ")
    assert "over the last 10 steps it added" in text
    assert ("Anchor", text) in tuning_facts(near)
    assert moved(place, name) > 1.2 * moved(place, f"{name}-near")


def moved(place: Path, out: str) -> float:
    """The mean divergence from the base over some texts of the vocabulary."""
    from aftertune.methods import writes_adapter
    from aftertune.sources import resolve_adapter
    from aftertune.tuning.output import read_manifest

    tuning = read_manifest(place / out)
    assert tuning is not None
    base = resolve_model(str(place / "base"))
    adapter = resolve_adapter(str(place / out), base, tuning.base) if writes_adapter(tuning.method) else None
    models = load_model(base, "float32", "cpu"), load_model(base if adapter else resolve_model(str(place / out)),
                                                            "float32", "cpu", adapter)
    ids = torch.tensor([[2, 6 + n, 7 + n, 1, 3, 6 + n] for n in range(20)])
    with torch.no_grad():
        before, after = (model(ids).logits.log_softmax(-1) for model in models)
    return float((before.exp() * (before - after)).sum(-1).mean())


def test_the_estimate_counts_the_second_copy_and_the_bases_passes() -> None:
    shape = ModelShape(hidden=64, layers=2, heads=4, kv_heads=2, inner=128, vocabulary=1000)
    load, machine = Workload(100, 8000, 100, 3000, replayed=4000), Machine("cpu", "float32", 1e9)

    def cost(**settings: Any) -> Any:
        recipe = TuneSpec(model="m", data=DataSpec(file=Path("data.jsonl")), **settings)
        return estimate(shape, recipe, load, machine)

    for method, anchor in (("full", "kl:0.1"), ("full", "l2:0.1"), ("lora", "kl:0.1"), ("pissa", "kl:0.1")):
        free, held, none = cost(method=method), cost(method=method, anchor=anchor), cost(method=method, anchor="kl:0")
        copied = 0 if method == "lora" else 4 * free.trainable
        compared = ANCHOR_BYTES + 2 * 4 * shape.vocabulary * shape.hidden if anchor.startswith("kl") else 0
        assert held.memory - free.memory == pytest.approx(HEAP * (copied + compared), abs=2), (method, anchor)
        assert (held.seconds > free.seconds) == (anchor != "l2:0.1")
        assert none == free


def test_memory_that_runs_out_leaves_the_weights_as_they_would_be(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"anchor": "kl:2", "accumulation": 2, "replay": {"data": place / "other.jsonl", "share": 0.5}}
    whole = tune(spec(place, "whole", **settings))
    predict, calls = EndToEnd.predict, []

    def scarce(self: Any, model: Any, batch: Any, wanted: Any) -> Any:
        rows = int((batch["position_ids"][0] == 0).sum())
        if model.training and rows > 2:
            calls.append(rows)
            raise MemoryError("not enough memory")
        return predict(self, model, batch, wanted)

    monkeypatch.setattr(EndToEnd, "predict", scarce)
    split = tune(spec(place, "split", **settings))
    assert calls
    for before, after in zip(whole.steps, split.steps, strict=True):
        for key in ("loss", "anchor"):
            assert before[key] == pytest.approx(after[key], rel=1e-4, abs=1e-6)
