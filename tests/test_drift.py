"""Drift: the KL divergence of a base and its fine-tune on texts that the base wrote."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch

from aftertune import sources
from aftertune.comparison import compare
from aftertune.drift import GENERAL, HELD_OUT, DriftOptions, measure_drift
from aftertune.engine import divergence
from aftertune.errors import AftertuneError, InputError, SourceError
from aftertune.ledger import Ledger
from aftertune.report import Results, write_page, write_record
from aftertune.study import TuneSpec
from aftertune.tuning import tune
from aftertune.tuning.general_prompts import drift_prompts
from cli_cases import call, settle
from early_cases import ADAPTED, store
from tuning_cases import base_and_data, chat_tokenizer, easy_rows, tiny_model, write_rows

FEW = DriftOptions(prompts=8, tokens=6, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base, its data, and a LoRA fine-tune of it in ``tuned``."""
    place = base_and_data(tmp_path_factory.mktemp("drift"))
    tune(TuneSpec.model_validate({
        "model": str(place / "base"), "data": {"file": str(place / "data.jsonl"), "held_out": 0.3},
        "out": str(place / "tuned"), "max_steps": 12, "learning_rate": 0.02, "batch_size": 4, "dtype": "float32",
        "device": "cpu"}))
    return place


def test_a_model_has_not_moved_from_itself(place):
    drift = measure_drift(str(place / "base"), str(place / "base"), FEW)
    [group] = drift.groups
    assert (group.name, group.kl, group.low, group.high, group.changed) == (GENERAL, 0.0, 0.0, 0.0, 0.0)
    assert not group.moved
    assert len(group.texts) == 8
    assert "no record of its data" in " ".join(drift.notes)


def test_the_divergence_is_that_of_the_two_models_on_the_texts_of_the_base(place):
    """Against torch's kl_div on the logits of plain transformers and PEFT."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    drift = measure_drift(str(place / "base"), str(place / "tuned"), replace(FEW, data=place / "data.jsonl"))
    general, held_out = drift.groups
    assert [general.name, held_out.name] == [GENERAL, HELD_OUT]
    assert general.moved
    assert held_out.moved
    assert held_out.low < held_out.kl < held_out.high
    assert [t.kl for t in held_out.texts] == sorted((t.kl for t in held_out.texts), reverse=True)

    from transformers import AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(place / "base").eval()
    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    text = held_out.texts[0]
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": text.prompt}], tokenize=False,
                                           add_generation_prompt=True)
    ids = tokenizer(prompt + text.text, add_special_tokens=False, return_tensors="pt").input_ids
    ends = ids.shape[1] - len(tokenizer(prompt, add_special_tokens=False).input_ids)
    if ends < text.tokens:  # the text ended with the end token, which the decoded text does not show
        ids = torch.cat([ids, torch.tensor([[tokenizer.eos_token_id]])], dim=1)
    with torch.inference_mode():
        before = base(ids).logits[0, -text.tokens - 1:-1, :len(tokenizer)].log_softmax(-1)
        tuned = PeftModel.from_pretrained(base, place / "tuned").eval()
        after = tuned(ids).logits[0, -text.tokens - 1:-1, :len(tokenizer)].log_softmax(-1)
    expected = torch.nn.functional.kl_div(after, before, log_target=True, reduction="sum") / text.tokens
    assert text.kl == pytest.approx(float(expected), rel=1e-4)


def test_few_tokens_of_the_distribution_give_a_lower_bound(place, monkeypatch):
    whole = measure_drift(str(place / "base"), str(place / "tuned"), FEW).groups[0]
    monkeypatch.setattr(divergence, "TOP", 8)
    part = measure_drift(str(place / "base"), str(place / "tuned"), FEW).groups[0]
    by_text = {t.prompt: t.kl for t in whole.texts}
    assert all(0 < t.kl <= by_text[t.prompt] + 1e-6 for t in part.texts)
    assert part.kl > 0.3 * whole.kl


def test_the_seed_decides_the_texts(place):
    def texts(seed):
        [group, *_] = measure_drift(str(place / "base"), str(place / "tuned"), replace(FEW, seed=seed)).groups
        return [(t.prompt, t.text, t.kl) for t in group.texts]

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)


def test_the_held_out_prompts_of_a_fine_tune_are_found_again(tmp_path):
    place = base_and_data(tmp_path)
    tune(TuneSpec.model_validate({
        "model": str(place / "base"), "data": {"file": str(place / "data.jsonl")}, "out": str(place / "tuned"),
        "max_steps": 1, "dtype": "float32", "device": "cpu"}))
    drift = measure_drift(str(place / "base"), str(place / "tuned"), FEW)
    held_out = drift.groups[1]
    questions = {row["prompt"] for row in easy_rows()}
    assert held_out.texts
    assert {t.prompt for t in held_out.texts} <= questions
    write_rows(place / "data.jsonl", easy_rows()[::2])
    drift = measure_drift(str(place / "base"), str(place / "tuned"), FEW)
    assert [g.name for g in drift.groups] == [GENERAL]
    assert "give the examples with --data FILE" in " ".join(drift.notes)
    (place / "data.jsonl").unlink()
    assert "can no longer be read" in " ".join(measure_drift(str(place / "base"), str(place / "tuned"), FEW).notes)


def test_another_held_out_share_is_found_by_the_number_of_its_examples(place):
    drift = measure_drift(str(place / "base"), str(place / "tuned"), FEW)
    count = json.loads((place / "tuned" / "aftertune.json").read_text())["settings"]["held_out_examples"]
    assert count > 4, "the default share of 40 examples"
    assert [g.name for g in drift.groups] == [GENERAL, HELD_OUT]
    assert len(drift.groups[1].texts) == min(count, FEW.prompts)
    assert not drift.notes


def test_a_model_with_fewer_tokens_is_refused(place, tmp_path):
    from transformers import LlamaForCausalLM

    tiny_model(tmp_path / "small")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "small")
    model.resize_token_embeddings(40)
    model.save_pretrained(tmp_path / "small")
    with pytest.raises(InputError, match="has 40 tokens, but the base's tokenizer has 4"):
        measure_drift(str(place / "base"), str(tmp_path / "small"), FEW)


def test_rows_of_no_token_do_not_count(place, tmp_path):
    """A fine-tune saved without the padding of the base's embeddings is the same model."""
    from transformers import LlamaForCausalLM

    tiny_model(tmp_path / "cut")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "cut")
    model.resize_token_embeddings(50)
    model.save_pretrained(tmp_path / "cut")
    drift = measure_drift(str(place / "base"), str(tmp_path / "cut"), FEW)
    assert drift.groups[0].kl == pytest.approx(0, abs=1e-6)


def test_damaged_weights_are_one_line(place, tmp_path):
    """Probabilities that are no numbers ended in a traceback of torch."""
    from transformers import LlamaForCausalLM

    tiny_model(tmp_path / "broken")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "broken")
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(SourceError, match="broken: transformers failed while the model computed: RuntimeError"):
        measure_drift(str(tmp_path / "broken"), str(place / "base"), FEW)
    with pytest.raises(AftertuneError, match="general prompts: the models' probabilities are not finite numbers"):
        measure_drift(str(place / "base"), str(tmp_path / "broken"), FEW)


def test_prompts_that_the_model_cannot_read_are_left_out_with_a_note(tmp_path):
    """GPT-2 and OPT have a row for each position: a longer text ended in an IndexError."""
    from transformers import GPT2Config, GPT2LMHeadModel

    base_and_data(tmp_path)
    tokenizer = chat_tokenizer()
    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=1,
                               eos_token_id=1, pad_token_id=0)).save_pretrained(tmp_path / "short")
    tokenizer.save_pretrained(tmp_path / "short")
    drift = measure_drift(str(tmp_path / "short"), str(tmp_path / "short"), replace(FEW, prompts=64))
    assert 0 < len(drift.groups[0].texts) < 64
    assert "are longer than 10 tokens and were left out" in " ".join(drift.notes)
    with pytest.raises(InputError, match=r"--tokens 16: .* reads at most 16 tokens"):
        measure_drift(str(tmp_path / "short"), str(tmp_path / "short"), replace(FEW, tokens=16))


def test_a_tuned_model_that_is_not_there_is_refused(place):
    with pytest.raises(SourceError, match="nowhere"):
        measure_drift(str(place / "base"), str(place / "nowhere"), FEW)


def test_general_prompts_are_distinct_lines():
    prompts = drift_prompts()
    assert len(prompts) == len({*prompts}) == 64


def test_the_verb_prints_a_table_and_one_json_object(place, tmp_path, monkeypatch, capfd):
    settle(monkeypatch, tmp_path)
    flags = ["--prompts", "8", "--tokens", "4", "--dtype", "float32", "--data", str(place / "data.jsonl")]
    assert call(monkeypatch, "drift", str(place / "base"), str(place / "tuned"), *flags) == 0
    out = capfd.readouterr().out
    for word in ("general prompts", "held-out prompts", "moved", "not that it forgot", "→",
                 "moves the model more than a random"):
        assert word in out
    assert call(monkeypatch, "drift", str(place / "base"), str(place / "tuned"), *flags, "--json") == 0
    value = json.loads(capfd.readouterr().out)
    assert [group["name"] for group in value["groups"]] == [GENERAL, HELD_OUT]
    assert all(group["moved"] and 0 < group["low"] < group["kl"] < group["high"] for group in value["groups"])


# --- What the ledger keeps of it ---
def test_the_same_question_is_answered_from_the_ledger(place, tmp_path, monkeypatch):
    with Ledger(tmp_path / "ledger.db") as ledger:
        first = measure_drift(str(place / "base"), str(place / "tuned"), FEW, ledger=ledger)
        assert ledger.find_drift(first.id) == ledger.drifts()[0] == first
        monkeypatch.setattr(sys.modules[measure_drift.__module__], "_measure", None)
        assert measure_drift(str(place / "base"), str(place / "tuned"), FEW, ledger=ledger) == first
        assert ledger.find_drift("d-0") is None
    for other in (replace(FEW, seed=1), replace(FEW, tokens=5), replace(FEW, prompts=9),
                  replace(FEW, data=place / "data.jsonl")):
        with Ledger(tmp_path / "ledger.db") as ledger, pytest.raises(TypeError, match="NoneType"):
            measure_drift(str(place / "base"), str(place / "tuned"), other, ledger=ledger)


def test_the_line_is_wherever_a_comparison_of_the_same_models_is_shown(place, tmp_path, monkeypatch, capfd):
    settle(monkeypatch, tmp_path)
    with Ledger(tmp_path / "ledger.db") as ledger:
        drift = measure_drift(str(place / "base"), str(place / "tuned"), FEW, ledger=ledger)
        for name, model in (("base", drift.base), ("tuned", drift.tuned), ("other", ADAPTED)):
            store(ledger, name, model, {"quiz": [1.0] * 30 + [0.0] * 10})
        found = [compare("base", tuned, ledger=ledger) for tuned in ("tuned", "other")]
        loaded = Results.load(ledger)
    assert [loaded.drift(c) for c in found] == [drift, None]
    line = f"Drift (KL divergence on texts that the base wrote, with 95 % intervals): {drift.groups[0].kl:.4f} nats per"
    assert write_record(loaded, title="x").count(line) == 1
    assert write_page(loaded, title="x").count(line) == 1
    for words in (("compare", "base", "tuned"), ("compare", "base", "tuned", "--details"), ("show", found[0].id)):
        assert call(monkeypatch, *words) == 0
        assert " ".join(capfd.readouterr().out.split()).count(line) == 1
    assert call(monkeypatch, "compare", "base", "other", "tuned", "--json") == 0
    without, measured = (c["drift"] for c in json.loads(capfd.readouterr().out)["comparisons"])
    assert without is None
    assert measured["id"] == drift.id
    assert [(g["name"], g["kl"]) for g in measured["groups"]] == [(g.name, g.kl) for g in drift.groups]


# --- A random adapter of the same size ---
def test_a_random_adapter_has_updates_of_the_same_size(place):
    from peft.tuners.lora import LoraLayer

    base = sources.resolve_model(str(place / "base"))
    adapter = sources.resolve_adapter(str(place / "tuned"), base, sources.fingerprint_model(base))

    def updates(model):
        return [layer.get_delta_weight("default") for layer in model.modules() if isinstance(layer, LoraLayer)]

    model = sources.load_model(base, "float32", "cpu", adapter)
    before = updates(model)
    assert sources.randomize_adapter(model, 0)
    after = updates(model)
    assert len(after) > 2
    for a, b in zip(before, after, strict=True):
        assert float(b.norm()) == pytest.approx(float(a.norm()), rel=1e-4)
        assert abs(float((a * b).sum() / (a.norm() * b.norm()))) < .5
    model.active_peft_config.use_dora = True
    assert not sources.randomize_adapter(model, 1)
    assert all(torch.equal(a, b) for a, b in zip(after, updates(model), strict=True))


def test_a_trained_adapter_moves_further_than_a_random_one_and_a_random_one_does_not(place, tmp_path):
    trained = measure_drift(str(place / "base"), str(place / "tuned"), FEW).groups[1]
    assert 0 < trained.random_kl < trained.low
    assert trained.beyond_random
    base = sources.resolve_model(str(place / "base"))
    adapter = sources.resolve_adapter(str(place / "tuned"), base, sources.fingerprint_model(base))
    model = sources.load_model(base, "float32", "cpu", adapter)
    assert sources.randomize_adapter(model, 5)
    model.save_pretrained(tmp_path / "random")
    noise = measure_drift(str(place / "base"), str(tmp_path / "random"), replace(FEW, prompts=64)).groups[0]
    assert noise.random_kl > 0
    assert not noise.beyond_random
    whole = measure_drift(str(place / "base"), str(place / "base"), FEW).groups[0]
    assert (whole.random_kl, whole.beyond_random) == (None, False)
