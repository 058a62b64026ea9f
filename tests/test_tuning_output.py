"""What a full fine-tune hands on differs from its base only in what was trained; guards ask what the base is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from aftertune.errors import InputError
from aftertune.sources.tensors import read_header
from aftertune.study import DataSpec, TuneSpec
from aftertune.tuning import tune
from tuning_cases import base_and_data, chat_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in bfloat16 with a config, generation settings and a tokenizer file that its author wrote by hand."""
    from transformers import AutoModelForCausalLM

    home: Path = base_and_data(tmp_path_factory.mktemp("output"), hidden=64)
    AutoModelForCausalLM.from_pretrained(home / "base", dtype=torch.bfloat16).save_pretrained(home / "base")
    config = json.loads((home / "base" / "config.json").read_text())
    (home / "base" / "config.json").write_text(json.dumps({**config, "use_cache": True, "author": "me"}))
    (home / "base" / "generation_config.json").write_text('{"repetition_penalty": 1.1}')
    return home


def spec(place: Path, out: str, **settings: Any) -> TuneSpec:
    values: dict[str, Any] = {
        "model": str(place / "base"), "data": DataSpec(file=place / "data.jsonl", held_out=0.2), "out": place / out,
        "method": "full", "max_steps": 3, "device": "cpu", "threads": 1, "learning_rate": 0.01, "dtype": "float32"}
    return TuneSpec(**{**values, **settings})


def _dtypes(folder: Path) -> set[str]:
    return {tensor.dtype for tensor in read_header(folder / "model.safetensors")}


def test_whole_weights_have_the_dtype_and_the_files_of_the_base(place: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = tune(spec(place, "full"))
    folder = Path(done.output)
    assert _dtypes(folder) == {"BF16"}
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        ours, theirs = (json.loads((f / name).read_text()) for f in (folder, place / "base"))
        assert ours == theirs, name
    assert "whole weights are written in bfloat16" in done.notes
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.use_cache
    base = AutoModelForCausalLM.from_pretrained(place / "base")
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), base.parameters(), strict=True))
    assert AutoTokenizer.from_pretrained(folder).chat_template == chat_tokenizer().chat_template


def test_another_dtype_is_another_tuning_with_these_weights(place: Path) -> None:
    done = tune(spec(place, "float32", save_dtype="float32"))
    assert _dtypes(Path(done.output)) == {"F32"}
    assert json.loads((Path(done.output) / "config.json").read_text())["dtype"] == "float32"
    assert done.id != tune(spec(place, "full")).id


def test_the_held_out_loss_is_that_of_the_weights_that_are_handed_on(place: Path) -> None:
    again = tune(spec(place, "again"))
    loss = tune(spec(place, "eval", model=again.output, max_steps=1)).held_out
    assert again.held_out is not None
    assert loss is not None
    assert loss.before == pytest.approx(again.held_out.after, rel=1e-6)


def test_save_dtype_with_an_adapter_is_refused(place: Path) -> None:
    with pytest.raises(InputError, match="--save-dtype bfloat16 is for whole weights"):
        tune(spec(place, "lora", method="lora", save_dtype="bfloat16"))


def _quantised(place: Path) -> Path:
    """The base as bitsandbytes stores it in four bits, as the bnb-4bit bases on the Hub are."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    folder = place / "base-4bit"
    if not folder.exists():
        settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                      bnb_4bit_compute_dtype=torch.float32)
        model = AutoModelForCausalLM.from_pretrained(place / "base", quantization_config=settings, device_map="cpu")
        model.save_pretrained(folder)
        chat_tokenizer().save_pretrained(folder)
    return folder


def test_a_base_in_four_bits_is_refused_for_whole_weights(place: Path) -> None:
    with pytest.raises(InputError, match=r"is stored quantised.*use its 16-bit base, or an adapter"):
        tune(spec(place, "full-4bit", model=str(_quantised(place))))


def test_an_adapter_on_a_base_in_four_bits_trains_in_float32(place: Path) -> None:
    """Updates of 1e-7 are below what bfloat16 adapters can hold: none of their weights would change."""
    from safetensors.torch import load_file

    done = tune(spec(place, "lora-4bit", model=str(_quantised(place)), method="lora", learning_rate=1e-7,
                     dtype="bfloat16"))
    weights = load_file(Path(done.output) / "adapter_model.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.float32}
    assert any(bool((t != t.bfloat16().float()).any()) for t in weights.values())


def _gpt2(folder: Path) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=24, n_embd=32, n_layer=1, n_head=2, bos_token_id=1,
                               eos_token_id=1)).save_pretrained(folder)
    chat_tokenizer().save_pretrained(folder)
    return folder


def test_rows_are_not_longer_than_learned_positions(place: Path, tmp_path: Path) -> None:
    data = tmp_path / "long.jsonl"
    rows = [{"prompt": f"say w{i}", "completion": " ".join(f"w{(i + k) % 40}" for k in range(60))} for i in range(20)]
    data.write_text("\n".join(map(json.dumps, rows)))
    given: dict[str, Any] = {"model": str(_gpt2(tmp_path / "gpt2")), "data": DataSpec(file=data, held_out=0.2),
                             "method": "lora"}
    done = tune(spec(place, "gpt2", **given))
    assert done.settings["max_length"] == 24
    assert "rows have at most 24 tokens, the model's number of positions" in done.notes
    with pytest.raises(InputError, match=r"--max-length 60: .* has 24 positions; use --max-length 24 or less"):
        tune(spec(place, "gpt2-long", **given, max_length=60))
