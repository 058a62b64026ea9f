"""Damaged files of models, tokenizers and adapters: one line that names the file and the field, never a traceback."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from aftertune.errors import AftertuneError, InputError, ResourceError, SourceError
from aftertune.sources import fingerprint_model, load_model, load_tokenizer, resolve_adapter, resolve_model
from aftertune.sources.generation import generation_defaults
from aftertune.sources.library_errors import forward_errors, load_errors, training_errors
from aftertune.sources.resolve import ModelSource
from cli_cases import call, one_line, settle
from eval_cases import CHAT, byte_folder, byte_llama

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from mutations import changed_value

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with all its JSON files, a LoRA adapter for it, and a few rows of training data."""
    from peft import LoraConfig, get_peft_model

    root = tmp_path_factory.mktemp("damaged")
    byte_folder(root / "base", template=CHAT)
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    (root / "base" / "special_tokens_map.json").write_text(json.dumps(tokens))
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], base_model_name_or_path="base")
    get_peft_model(byte_llama(), lora).save_pretrained(root / "adapter")
    rows = [{"prompt": f"q{i}", "completion": f" a{i}"} for i in range(4)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def changed(home: Path, out: Path, file: str, **fields: Any) -> Path:
    """A copy of the model, or of the adapter, with other values in one of its files."""
    shutil.copytree(home / ("adapter" if file.startswith("adapter") else "base"), out)
    values = json.loads((out / file).read_text())
    (out / file).write_text(json.dumps(values | fields))
    return out


#: file, field and value -> what the line must say.
CASES: dict[tuple[str, str, str], tuple[str, ...]] = {
    ("config.json", "architectures", '{"a": 1}'): ("architectures is {'a': 1}", "a list of texts"),
    ("config.json", "architectures", "7"): ("architectures is 7",),
    ("config.json", "hidden_size", '"abc"'): ("hidden_size is 'abc'", "a whole number"),
    ("config.json", "hidden_size", "128"): ("hidden_size is 128", "has 32 columns"),
    ("config.json", "num_hidden_layers", "1000000000"): ("num_hidden_layers is 1000000000",),
    ("config.json", "num_hidden_layers", "3"): ("num_hidden_layers is 3", "the weights have 2 layers"),
    ("config.json", "num_labels", "1000000000"): ("num_labels is 1000000000",),
    ("config.json", "num_attention_heads", "0"): ("num_attention_heads is 0",),
    ("config.json", "num_key_value_heads", "3"): ("num_key_value_heads is 3", "a divisor of 4"),
    ("config.json", "rope_parameters", '"x"'): ("rope_parameters is 'x'", "an object"),
    ("config.json", "rms_norm_eps", "NaN"): ("rms_norm_eps is nan", "allowed is a number"),
    ("config.json", "vocab_size", "0"): ("vocab_size is 0",),
    ("config.json", "vocab_size", "100"): ("vocab_size is 100", "has 264 rows"),
    ("tokenizer.json", "model", '{"type": "Evil"}'): ("cannot load its tokenizer", "tokenizer.json", "copy those"),
    ("tokenizer.json", "model", '{"type": "BPE", "vocab": null, "merges": []}'): ("cannot load its tokenizer",),
    ("tokenizer.json", "model", '{"type": "BPE", "continuing_subword_prefix": "x", "vocab": {"Ġ": 0, "a": 1, "Ġa": 2}, '
     '"merges": [["Ġ", "a"], ["Ġ", "Ġ"]]}'): ("begins with its continuing_subword_prefix",),
    ("tokenizer.json", "normalizer", '{"type": "Evil"}'): ("cannot load its tokenizer",),
    ("tokenizer.json", "added_tokens", "5"): ("added_tokens is 5",),
    ("tokenizer_config.json", "model_max_length", '"x"'): ("model_max_length is 'x'", "a number"),
    ("tokenizer_config.json", "chat_template", "5"): ("chat_template is 5", "a text"),
    ("special_tokens_map.json", "eos_token", "[1]"): ("eos_token is [1]",),
}


@pytest.mark.parametrize(("file", "field", "value"), CASES, ids=lambda v: str(v)[:20])
@pytest.mark.parametrize("words", ["eval m --tasks arc_easy --limit 2", "tune m --data rows.jsonl --preview"],
                         ids=lambda w: w.partition(" ")[0])
def test_it_is_one_line_before_a_model_is_built(words: str, file: str, field: str, value: str, home: Path,
                                                tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                capfd: pytest.CaptureFixture[str]) -> None:
    settle(monkeypatch, tmp_path)
    shutil.copyfile(home / "rows.jsonl", tmp_path / "rows.jsonl")
    changed(home, tmp_path / "m", file, **{field: json.loads(value)})
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    assert call(monkeypatch, *words.split()) == 2
    assert one_line(capfd, (file, *CASES[file, field, value])) == ""


@pytest.mark.parametrize("inner", [65, 2**22])
def test_weights_of_another_shape_than_the_config_says_name_the_tensor_and_both_shapes(
        inner: int, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = resolve_model(str(changed(home, tmp_path / "m", "config.json", intermediate_size=inner)))
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    with pytest.raises(SourceError, match=rf"6 of the 21 tensors .*mlp\..*the weights have \[.*64.*{inner}"):
        load_model(source, "float32", "cpu")


def test_a_config_of_a_larger_model_is_refused_by_its_number_of_values(home: Path, tmp_path: Path) -> None:
    folder = changed(home, tmp_path / "m", "config.json", attention_bias=True, num_labels=5)
    with pytest.raises(SourceError, match="lack 8 tensors"):  # few enough to look for them
        load_model(resolve_model(str(folder)), "float32", "cpu")
    config = json.loads((folder / "config.json").read_text())
    moe = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 4096}
    (folder / "config.json").write_text(json.dumps(config | moe))
    with pytest.raises(SourceError, match=r"describes a model of [0-9,]+ values, but the weights have"):
        load_model(resolve_model(str(folder)), "float32", "cpu")


def test_a_config_that_leaves_out_layers_or_biases_of_the_weights_is_refused(home: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    fewer = changed(home, tmp_path / "fewer", "config.json", num_hidden_layers=1)
    with pytest.raises(SourceError, match=r"leaves out 9 tensors of the weights, first 'model\.layers\.1\."):
        load_model(resolve_model(str(fewer)), "float32", "cpu")
    for name, value, refused in (("zero", 0.0, False), ("biased", 0.5, True)):  # zeros change nothing
        folder = changed(home, tmp_path / name, "config.json")
        weights = load_file(folder / "model.safetensors")
        weights["model.layers.0.self_attn.q_proj.bias"] = torch.full((32,), value)
        weights["model.vision.weight"] = torch.ones(2)  # a part that a text does not need
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        assert ("leaves out 1 tensors" in refusal(folder, None)) is refused
        assert bool(refusal(folder, None)) is refused


@pytest.mark.parametrize(("field", "value", "said"), [
    ("r", 10**9, "r is 1000000000"), ("r", "x", "r is 'x'"), ("rank_pattern", {"q_proj": 10**6}, "rank_pattern"),
    ("target_modules", 7, "target_modules is 7"), ("peft_type", [], r"peft_type is \[\]"),
    ("lora_alpha", "x", "lora_alpha is 'x'"), ("base_model_name_or_path", "a\0b", "base_model_name_or_path"),
    ("r", 4, "cannot load its adapter|tensors")])
def test_a_damaged_adapter_is_one_line(field: str, value: Any, said: str, home: Path, tmp_path: Path) -> None:
    base = resolve_model(str(home / "base"))
    folder = changed(home, tmp_path / "a", "adapter_config.json", **{field: value})
    with pytest.raises(SourceError, match=said) as error:
        load_model(base, "float32", "cpu", resolve_adapter(str(folder), base, fingerprint_model(base)))
    assert "\n" not in str(error.value)


# --- Random damage ---

FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
         "generation_config.json", "adapter_config.json")


def refusal(folder: Path, base: ModelSource | None) -> str:
    """What the error says when the folder is loaded as a model, or as an adapter of ``base``; "" if there is none."""
    try:
        if base is not None:
            load_model(base, "float32", "cpu", resolve_adapter(str(folder), base, fingerprint_model(base)))
        else:
            source = resolve_model(str(folder))
            fingerprint_model(source)
            tokenizer = load_tokenizer(source)
            generation_defaults(source, tokenizer)
            load_model(source, "float32", "cpu", tokenizer=tokenizer)
    except AftertuneError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("file", FILES)
def test_random_damage_is_one_short_line_or_harmless(file: str, home: Path, tmp_path: Path) -> None:
    base = resolve_model(str(home / "base"))
    refused = 0
    for seed in range(30):
        folder = tmp_path / str(seed)
        shutil.copytree(home / ("adapter" if file.startswith("adapter") else "base"), folder)
        values = changed_value(json.loads((folder / file).read_text()), random.Random(f"{file} {seed}"))
        (folder / file).write_text(json.dumps(values))
        said = refusal(folder, base if file.startswith("adapter") else None)
        assert "\n" not in said
        assert len(said) < 1000
        refused += bool(said)
    assert refused > 2


# --- The boundary ---

SOURCE = ModelSource(source="m", kind="folder", path=Path("m"))


def raised_in(package: str, error: BaseException) -> None:
    """Raise the error in a function of a package."""
    exec("def fail(error): raise error", space := {"__name__": f"{package}.part"})
    space["fail"](error.with_traceback(None))  # the same errors are raised in other tests


class PanicException(BaseException):  # the Rust code of tokenizers raises one
    pass


FAULTS = (Exception("bad\nvocab"), RuntimeError("shapes"), AssertionError(), ZeroDivisionError(),
          RecursionError("deep"), PanicException("index out of bounds"), OSError("gone"))
PASSING = (KeyboardInterrupt(), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"),
           InputError("ours"), SystemExit(3))


@pytest.mark.parametrize("error", FAULTS, ids=lambda e: type(e).__name__)
def test_whatever_a_library_raises_on_loading_is_one_line_with_its_cause(error: BaseException) -> None:
    with pytest.raises(SourceError, match=rf"^m: peft cannot load its adapter: {type(error).__name__}") as caught, \
            load_errors(SOURCE, "its adapter"):
        raised_in("peft", error)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", PASSING, ids=lambda e: type(e).__name__)
def test_a_request_to_stop_and_too_little_memory_are_no_fault_of_a_file(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, load_errors(SOURCE):
        raised_in("transformers", error)
    assert caught.value is error


def test_a_training_ends_in_one_line_where_a_library_fails_but_not_where_aftertune_does() -> None:
    with pytest.raises(InputError, match=r"^lora of m: peft failed: ValueError: no such layer; use another"), \
            training_errors("lora of m"):
        raised_in("peft", ValueError("no such\n layer"))
    with pytest.raises(ResourceError, match="out of memory"), training_errors("lora of m"):
        raised_in("torch", RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    with pytest.raises(ValueError, match="a fault of ours"), training_errors("lora of m"):
        raised_in("aftertune.tuning", ValueError("a fault of ours"))
    with pytest.raises(KeyboardInterrupt), training_errors("lora of m"):
        raised_in("torch", KeyboardInterrupt())


def test_a_tuning_in_which_a_library_fails_is_one_line(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                       capfd: pytest.CaptureFixture[str]) -> None:
    import trl

    settle(monkeypatch, tmp_path)
    monkeypatch.setattr(trl.SFTTrainer, "train", lambda *_, **__: raised_in("trl", IndexError("no such row")))
    words = f"tune {home / 'base'} --data {home / 'rows.jsonl'} --method lora --max-steps 1 --device cpu"
    assert call(monkeypatch, *words.split()) == 2
    assert one_line(capfd, ("trl failed: IndexError: no such row",)) == ""


def test_what_a_library_raises_in_a_forward_pass_is_one_line() -> None:
    """A model whose parts do not fit together was a traceback of torch."""
    import torch

    with pytest.raises(SourceError, match=r"^org/m: torch failed while the model computed: [^\n]*finished batches are "
                                          r"kept[^\n]*$") as caught, forward_errors("org/m"):
        torch.nn.functional.embedding(torch.tensor([9]), torch.zeros(4, 2))
    assert isinstance(caught.value.__cause__, IndexError)
    with pytest.raises(ZeroDivisionError), forward_errors("org/m"):
        _ = 1 / 0
    with pytest.raises(RuntimeError, match="out of memory"), forward_errors("org/m"):
        raise RuntimeError("CUDA out of memory")
