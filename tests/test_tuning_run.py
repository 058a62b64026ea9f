"""Whole fine-tunes of a tiny real model through TRL and PEFT."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from aftertune.errors import AftertuneError, InputError, StorageError
from aftertune.ledger import Ledger
from aftertune.sources import fingerprint_model, load_model, load_tokenizer, resolve_adapter, resolve_model
from aftertune.study import DataSpec, LoraSpec, TuneSpec
from aftertune.tuning import preview, tune
from aftertune.tuning.held_out import Batching, completion_losses
from aftertune.tuning.output import MANIFEST, read_manifest
from aftertune.tuning.split import Corpus
from aftertune.tuning.tokenize import EncodeOptions, encode_all
from aftertune.values import Question
from tuning_cases import base_and_data, timeless, write_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return base_and_data(tmp_path_factory.mktemp("tuning"))


def spec(place, out, **settings):
    values = {"model": str(place / "base"), "data": DataSpec(file=place / "data.jsonl", held_out=0.2),
              "out": place / out, "learning_rate": 0.02, "epochs": 6.0, "dtype": "float32", "device": "cpu",
              "threads": 1, "lora": LoraSpec(r=8)}
    return TuneSpec(**{**values, **settings})


@pytest.fixture(scope="module")
def tuned(place):
    told = []
    with Ledger(place / "ledger.db") as ledger:
        tuning = tune(spec(place, "lora", name="careful"), ledger=ledger, progress=lambda *p: told.append(p))
        stored = ledger.find_tuning("careful")
    return tuning, stored, told


def test_a_lora_learns_and_its_held_out_loss_falls(tuned):
    tuning, _, _ = tuned
    assert tuning.held_out.after < tuning.held_out.before - 1
    assert tuning.held_out.low < tuning.held_out.high < 0
    assert tuning.held_out.n + tuning.examples == 40
    assert tuning.steps[-1]["loss"] < tuning.steps[0]["loss"]
    assert [s["step"] for s in tuning.steps] == list(range(1, len(tuning.steps) + 1))


def test_the_output_is_a_peft_adapter_that_identifies_itself(place, tuned):
    tuning, _, _ = tuned
    base = resolve_model(str(place / "base"))
    identity = fingerprint_model(base)
    adapter = resolve_adapter(tuning.output, base, identity)
    assert fingerprint_model(base, adapter).fingerprint == tuning.result != identity.fingerprint
    names = {p.name for p in (place / "lora").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", MANIFEST} <= names
    record = json.loads((place / "lora" / MANIFEST).read_text())
    assert record["base"]["weights"] == identity.weights
    assert record["provenance"]["versions"]["trl"]
    assert record["settings"]["learning_rate"] == 0.02
    assert read_manifest(place / "lora") == tuning


def test_the_ledger_holds_the_tuning_and_every_step(tuned):
    tuning, stored, told = tuned
    assert (stored.id, stored.status, stored.result) == (tuning.id, "done", tuning.result)
    assert [s["loss"] for s in stored.steps] == [s["loss"] for s in tuning.steps]
    steps = [p for p in told if p[2].startswith("training: step ")]
    assert [p[0] for p in steps] == list(range(1, len(tuning.steps) + 1))
    assert {p[1] for p in steps} == {len(tuning.steps)}


def test_a_finished_tuning_is_not_run_again_and_a_damaged_one_is(place, tuned):
    tuning, _, _ = tuned
    told = []
    again = tune(spec(place, "lora", name="other"), progress=lambda *p: told.append(p))
    assert replace(again, name=tuning.name) == tuning
    assert told == []
    weights = place / "lora" / "adapter_model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    repaired = tune(spec(place, "lora", name="careful"), progress=lambda *p: told.append(p))
    assert told
    assert repaired.result == tuning.result
    assert timeless(repaired.steps) == timeless(tuning.steps)


def test_seed_and_data_make_another_tuning(place, tuned):
    tuning, _, _ = tuned
    other = tune(spec(place, "seeded", seed=1, max_steps=1))
    assert other.id != tuning.id
    assert len(other.steps) == 1


@pytest.mark.parametrize(("method", "key"), [
    ("dora", "use_dora"), ("rslora", "use_rslora"), ("ia3", "feedforward_modules"), ("pissa", "r")])
def test_every_adapter_method_learns_and_is_evaluated_as_it_was_trained(place, method, key):
    tuning = tune(spec(place, method, method=method))
    assert tuning.held_out.after < tuning.held_out.before - 0.1
    config = json.loads((place / method / "adapter_config.json").read_text())
    assert config[key]
    assert config["target_modules"] == sorted(config["target_modules"])  # every process writes the same file
    base = resolve_model(str(place / "base"))
    adapter = resolve_adapter(tuning.output, base, fingerprint_model(base))
    model, tokenizer = load_model(base, "float32", "cpu", adapter), load_tokenizer(base)
    held_out = encode_all(Corpus.load(spec(place, method).data, 0).held_out, tokenizer, EncodeOptions("chat", 1024))
    losses = completion_losses(model, held_out.rows, Batching(pad=tokenizer.pad_token_id, dtype="float32"))
    assert sum(losses) / len(losses) == pytest.approx(tuning.held_out.after, abs=1e-4)


def test_full_tuning_writes_weights_of_its_own(place):
    tuning = tune(spec(place, "full", method="full", learning_rate=0.01, max_steps=4))
    result = fingerprint_model(resolve_model(tuning.output))
    assert result.fingerprint == tuning.result != tuning.base.fingerprint
    assert tuning.trainable_parameters == result.parameters
    assert tuning.held_out.after < tuning.held_out.before


def test_a_loss_that_is_no_number_stops_at_its_step_and_leaves_no_result(place):
    with (Ledger(place / "broken.db") as ledger,
          pytest.raises(AftertuneError, match=r"the loss at step \d+ of 40 is .*lower learning_rate")):
        tune(spec(place, "broken", name="broken", method="full", learning_rate=1.0, weight_decay=1e30,
                  max_steps=40, warmup=0.0), ledger=ledger)
    with Ledger(place / "broken.db") as ledger:
        assert ledger.find_tuning("broken").status == "failed"
    assert not (place / "broken" / MANIFEST).exists()


def test_bfloat16_trains_too(place):
    tuning = tune(spec(place, "half", dtype="bfloat16", max_steps=12))
    assert tuning.settings["dtype"] == "bfloat16"
    assert tuning.held_out.after < tuning.held_out.before


def test_bad_targets_are_refused_and_recorded_as_failed(place):
    bad = spec(place, "targets", name="targets", lora=LoraSpec(target_modules=("attention",)))
    with Ledger(place / "targets.db") as ledger, pytest.raises(InputError, match="matches no layer"):
        tune(bad, ledger=ledger)
    with Ledger(place / "targets.db") as ledger:
        assert ledger.find_tuning("targets").status == "failed"


def test_an_output_that_cannot_be_written_is_known_before_training(place):
    (place / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot write the tuned model here"):
        tune(spec(place, "file"))


def test_replay_costs_what_the_tuning_says_and_is_part_of_what_it_is(place):
    write_rows(place / "other.jsonl", [{"prompt": f"w{n}", "completion": "w3"} for n in range(30)])
    told = []
    replayed = spec(place, "replayed", max_steps=4, replay={"data": place / "other.jsonl", "share": 0.25})
    tuning = tune(replayed, progress=lambda *p: told.append(p))
    plain = tune(spec(place, "unreplayed", max_steps=4))
    assert tuning.id != plain.id
    assert tuning.data != plain.data
    assert (tuning.examples, tuning.held_out.n) == (plain.examples, plain.held_out.n)
    assert tuning.held_out.before == pytest.approx(plain.held_out.before)
    assert tuning.settings["replay_examples"] == tuning.counts["replay"]["rows"] == round(tuning.examples / 3)
    assert any("more computation than for the new data alone" in note for note in tuning.notes)
    assert read_manifest(place / "replayed") == tuning
    again = tune(replayed, progress=lambda *_: told.append("ran"))
    assert again == tuning
    assert "ran" not in told


def test_a_preview_shows_text_and_mask_and_trains_nothing(place):
    found = preview(spec(place, "none"))
    assert [one.where for one in found.examples] == sorted(one.where for one in found.examples)
    assert len(found.examples) == 3
    for one in found.examples:
        assert [learned for _, learned in one.parts] == [False, True]
        assert one.parts[1][0].endswith("<|end|>")
        assert 0 < one.learned < one.tokens
    assert found.notes == (f"{place / 'data.jsonl'}: read as prompt, because the rows have `prompt` and `completion`",)
    write_rows(place / "replayed.jsonl", [{"prompt": f"w{n}", "completion": "w3"} for n in range(30)])
    found = preview(spec(place, "none", replay={"data": place / "replayed.jsonl", "share": 0.5}), count=2)
    assert [one.where.rpartition("/")[2].partition(":")[0] for one in found.examples] == [
        "data.jsonl", "data.jsonl", "replayed.jsonl"]


def test_a_preview_of_a_long_file_reads_its_first_rows_unless_something_is_searched_for(place, monkeypatch):
    monkeypatch.setattr("aftertune.tuning.previews.PREVIEW_ROWS", 12)
    shown = preview(spec(place, "none", data=DataSpec(file=place / "data.jsonl", examples=30)))
    assert shown.counts["data"]["rows"] == 12
    assert len(shown.examples) == 3
    assert f"{place / 'data.jsonl'}: only the first 12 rows were read" in shown.notes
    asked = [Question(task="t", index=0, hash="h", texts=("say w30 twice",))]
    assert preview(spec(place, "none"), questions=asked).counts["data"]["rows"] == 40
