"""Every method on every model family: trained, saved, merged, loaded by plain transformers, evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aftertune import evaluation
from aftertune.errors import InputError
from aftertune.ledger import Ledger
from aftertune.sources import fingerprint_model, load_model, load_tokenizer, resolve_adapter, resolve_model
from aftertune.sources.tensors import read_header
from aftertune.study import DataSpec, LoraSpec, TargetSpec, TaskSpec, TuneSpec
from aftertune.tuning import tune
from tuning_cases import FAMILIES, easy_rows, family_model, write_rows

pytestmark = pytest.mark.slow

METHODS = ("full", "lora", "qlora", "dora")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    for name in FAMILIES:
        family_model(folder / name, name, dtype="bfloat16")
    write_rows(folder / "data.jsonl", easy_rows())
    write_rows(folder / "target.jsonl", easy_rows()[:6])
    return folder


def spec(place: Path, family: str, method: str, **settings) -> TuneSpec:
    values = {"model": str(place / family), "data": DataSpec(file=place / "data.jsonl", held_out=0.2), "method": method,
              "out": place / f"{family}-{method}", "learning_rate": 0.05 if method == "ia3" else 0.02, "epochs": 6.0,
              "dtype": "float32", "device": "cpu", "threads": 1, "lora": LoraSpec(r=8), "merge": method != "full"}
    return TuneSpec(**{**values, **settings})


def logits(model, tokenizer):
    import torch

    ids = torch.tensor([tokenizer("<|user|> say w3 twice <|end|> <|assistant|> w1 w2")["input_ids"]])
    with torch.no_grad():
        return model(ids).logits.float()


def right_answers(place: Path, model: str, **settings) -> float:
    task = TaskSpec(name="twice", target=TargetSpec(file=place / "target.jsonl", max_tokens=4))
    with Ledger(place / "ledger.db") as ledger:
        done = evaluation.evaluate(model, [task], ledger=ledger, dtype="float32", device="cpu", threads=1,
                                   apply_chat_template=True, **settings)
        return next(s.value for s in done.scores if s.primary)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_method_trains_saves_merges_and_is_evaluated(place, family, method):
    import torch
    from transformers import AutoModelForCausalLM

    with Ledger(place / "ledger.db") as ledger:
        tuning = tune(spec(place, family, method), ledger=ledger)
        assert ledger.find_tuning(tuning.id) == tuning
    assert tuning.held_out.after < tuning.held_out.before - 1
    base = resolve_model(str(place / family))
    assert tuning.base.fingerprint == fingerprint_model(base).fingerprint
    out = Path(tuning.output)
    assert right_answers(place, str(place / family)) == 0
    if method == "full":
        assert right_answers(place, str(out)) == 1
        return
    four = {"quantize": "nf4"} if method == "qlora" else {}
    assert right_answers(place, str(place / family), adapter=str(out), **four) == 1, "on its own base"
    unmerged = right_answers(place, str(place / family), adapter=str(out))
    assert unmerged >= 0.5, "and in 16 bit"
    assert right_answers(place, str(out / "merged")) == unmerged
    adapter = resolve_adapter(str(out), base, fingerprint_model(base))
    tokenizer = load_tokenizer(base)
    apart = logits(load_model(base, "float32", "cpu", adapter), tokenizer)
    plain, info = AutoModelForCausalLM.from_pretrained(out / "merged", output_loading_info=True)
    assert not info["missing_keys"]
    assert plain.dtype == torch.bfloat16
    together = logits(plain.float(), tokenizer)
    untouched = logits(load_model(base, "float32", "cpu"), tokenizer)
    assert (together - apart).abs().mean() < 0.05 * (untouched - apart).abs().mean()
    assert fingerprint_model(resolve_model(str(out / "merged"))).fingerprint == tuning.merged != tuning.result


def test_tied_embeddings_stay_tied_and_what_no_adapter_touches_stays_bit_by_bit(place):
    tuning = tune(spec(place, "llama-3.2", "lora"))
    merged, base = Path(tuning.output) / "merged", place / "llama-3.2"
    names = {t.name for t in read_header(merged / "model.safetensors")}
    assert "lm_head.weight" not in names
    assert names == {t.name for t in read_header(base / "model.safetensors")}
    assert json.loads((merged / "config.json").read_text())["tie_word_embeddings"] is True
    model = load_model(resolve_model(str(merged)), "float32", "cpu")
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    before = load_model(resolve_model(str(base)), "float32", "cpu").state_dict()
    changed = {name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}
    assert changed == {n for n in before if n.endswith("proj.weight")}
    assert {"generation_config.json", "tokenizer.json", "chat_template.jinja"} <= {p.name for p in merged.iterdir()}


@pytest.mark.parametrize("method", ["rslora", "ia3", "pissa"])
def test_other_adapters_merge_to_the_same_function(place, method):
    tuning = tune(spec(place, "phi-2", method))
    base = resolve_model(str(place / "phi-2"))
    tokenizer = load_tokenizer(base)
    apart = logits(load_model(base, "float32", "cpu", resolve_adapter(tuning.output, base, tuning.base)), tokenizer)
    together = logits(load_model(resolve_model(f"{tuning.output}/merged"), "float32", "cpu"), tokenizer)
    untouched = logits(load_model(base, "float32", "cpu"), tokenizer)
    assert (together - apart).abs().mean() < 0.05 * (untouched - apart).abs().mean()


def test_a_finished_tuning_is_merged_without_training_again_and_its_lineage_is_known(place):
    from aftertune import compare

    plain, told = spec(place, "mistral", "lora", out=place / "later", merge=False), []
    with Ledger(place / "later.db") as ledger:
        tuning = tune(plain, ledger=ledger)
        assert tuning.merged is None
        assert not (place / "later" / "merged").exists()
        merged = tune(plain.model_copy(update={"merge": True}), ledger=ledger, progress=lambda *p: told.append(p[2]))
        assert told == ["merging the adapter into the base"]
        assert (merged.result, merged.steps, merged.id) == (tuning.result, tuning.steps, tuning.id)
        assert ledger.find_tuning(tuning.id).merged == merged.merged
        weights = place / "later" / "merged" / "model.safetensors"
        first = weights.stat().st_mtime_ns
        assert tune(plain, ledger=ledger).merged == merged.merged, "the manifest remembers"
        tune(plain.model_copy(update={"merge": True}))
        assert weights.stat().st_mtime_ns == first, "what is there is not made again"
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
        assert tune(plain.model_copy(update={"merge": True})).merged == merged.merged
        assert weights.stat().st_mtime_ns != first, "what was damaged is made again"
        task = TaskSpec(name="twice", target=TargetSpec(file=place / "target.jsonl", max_tokens=4))
        base, after = (evaluation.evaluate(str(m), [task], ledger=ledger, dtype="float32", device="cpu",
                                           apply_chat_template=True)
                       for m in (place / "mistral", place / "later" / "merged"))
        assert after.tuning == tuning.id
        assert compare(base, after, ledger=ledger).lineage


def test_a_merge_that_would_change_the_embedding_too_is_refused(place):
    settings = {"max_steps": 1, "lora": LoraSpec(r=4, target_modules=("q_proj", "embed_tokens"))}
    tied = spec(place, "llama-3.2", "lora", out=place / "tied", **settings)
    refusal = "embed_tokens, whose weight is both embedding and output head"
    with pytest.raises(InputError, match=f"^--merge: .*{refusal}"):
        tune(tied)
    assert not (place / "tied" / "aftertune.json").exists(), "refused before training"
    tune(tied.model_copy(update={"merge": False}))
    with pytest.raises(InputError, match=f"{refusal}.*; use it unmerged"):
        tune(tied)
    assert (place / "tied" / "aftertune.json").exists(), "the adapter that is done stays"
    assert not (place / "tied" / "merged").exists()
    assert tune(spec(place, "tinyllama", "lora", out=place / "untied", **settings)).merged


def test_a_base_that_is_stored_quantised_is_not_merged_into(place, tmp_path):
    from aftertune.tuning.output import stored_dtype

    family_model(tmp_path / "base", "mistral", dtype="bfloat16")
    assert stored_dtype(resolve_model(str(tmp_path / "base"))) == "bfloat16"
    config = tmp_path / "base" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(InputError, match="is stored quantised"):
        stored_dtype(resolve_model(str(tmp_path / "base")))


def test_full_keeps_updates_that_bfloat16_weights_would_lose(place):
    """A learning rate below the step of bfloat16 at most weights: Adam moves each by about 1e-5 a step."""
    import torch

    tuning = tune(spec(place, "mistral", "full", out=place / "small", learning_rate=1e-5, dtype="bfloat16", max_steps=4,
                       warmup=0.0, save_dtype="float32"))
    before = load_model(resolve_model(str(place / "mistral")), "float32", "cpu").state_dict()
    after = load_model(resolve_model(tuning.output), "float32", "cpu").state_dict()
    weights = [n for n in before if n.endswith("proj.weight")]
    moved = torch.cat([(after[n] - before[n]).flatten() for n in weights])
    in_half = torch.cat([(after[n].bfloat16().float() - before[n]).flatten() for n in weights])
    assert (moved != 0).float().mean() > 0.95
    assert moved.abs().max() < 1e-4
    assert (in_half != 0).float().mean() < 0.1, "most of these updates are not to be seen in bfloat16"
