"""Sources: tiny real models, tokenizers and adapters through transformers and PEFT."""

from __future__ import annotations

import json
import logging
import shutil
import warnings

import pytest
from safetensors.numpy import load_file, save_file

from aftertune.errors import SourceError
from aftertune.sources import (
    add_adapter,
    check_vocabulary,
    fingerprint_model,
    load_model,
    load_tokenizer,
    resolve_adapter,
    resolve_model,
)
from aftertune.values import plain
from eval_cases import family
from source_cases import tiny_adapter, tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two bases of equal shape, a larger one, and an adapter of the first."""
    root = tmp_path_factory.mktemp("models")
    tiny_llama(root / "base")
    tiny_llama(root / "twin", seed=7)
    tiny_llama(root / "wide", hidden=64)
    tiny_llama(root / "shallow", layers=1)
    tiny_adapter(root / "base", root / "adapter")
    return root


def resolved(folder):
    source = resolve_model(str(folder))
    return source, fingerprint_model(source)


def logits(model):
    import torch

    with torch.no_grad():
        return model(torch.arange(12).reshape(1, 12)).logits


def test_a_model_loads_in_evaluation_mode_under_the_users_name(home):
    import torch

    source, _ = resolved(home / "base")
    tokenizer = load_tokenizer(source)
    model = load_model(source, "bfloat16", "cpu", attn_implementation="eager", tokenizer=tokenizer)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"
    assert model.name_or_path == str(home / "base")
    again = load_model(source, "float32", "cpu")
    assert torch.equal(logits(load_model(source, "float32", "cpu")), logits(again))


def test_no_warning_of_a_library_reaches_the_user_but_ours_do(home, monkeypatch, capfd):
    """PEFT and transformers warn of their own changes where an adapter is loaded (and where nothing matches)."""
    import peft

    base, identity = resolved(home / "base")
    adapter = resolve_adapter(str(home / "adapter"), base, identity)
    real = peft.PeftModel.from_pretrained

    def noisy(*given, **named):
        warnings.warn_explicit("old name", FutureWarning, "f.py", 1, module="transformers.modeling_utils")
        warnings.warn_explicit("old way", DeprecationWarning, "f.py", 2, module="peft.tuners")
        warnings.warn_explicit("our own", UserWarning, "f.py", 3, module="aftertune.sources.loading")
        return real(*given, **named)

    monkeypatch.setattr(peft.PeftModel, "from_pretrained", noisy)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        load_tokenizer(base)
        load_model(base, "float32", "cpu", adapter)
    assert [str(w.message) for w in seen] == ["our own"]
    assert "Warning" not in capfd.readouterr().err


def test_saving_and_resharding_keep_the_fingerprint_and_the_logits(home, tmp_path):
    import torch

    source, identity = resolved(home / "base")
    model = load_model(source, "float32", "cpu")
    model.save_pretrained(tmp_path / "again", max_shard_size="10KB")
    load_tokenizer(source).save_pretrained(tmp_path / "again")
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 1
    again, same = resolved(tmp_path / "again")
    for part in ("weights", "config", "tokenizer"):
        assert getattr(same, part) == getattr(identity, part)
    assert torch.equal(logits(model), logits(load_model(again, "float32", "cpu")))
    assert identity.parameters == sum(p.numel() for p in model.parameters())


def test_weights_that_lack_a_tensor_are_not_filled_with_noise(home, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(home / "base", folder)
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SourceError, match=r"lack 1 tensors .*'model\.layers\.1\.mlp\.up_proj\.weight'"):
        load_model(resolve_model(str(folder)), "float32", "cpu")


def test_an_unknown_model_type_is_one_line_with_the_flag_that_it_needs(home, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(home / "base", folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}, "model_type": "own"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('foreign code was run')")
    with pytest.raises(SourceError, match="--trust-remote-code") as error:
        load_model(resolve_model(str(folder)), "float32", "cpu")
    assert "\n" not in str(error.value)


def test_a_missing_pad_token_is_replaced_and_noted(home, tmp_path):
    folder = tiny_llama(tmp_path / "m", pad=False)
    tokenizer = load_tokenizer(resolve_model(str(folder)))
    assert tokenizer.pad_token == "<unk>"
    assert "no pad token" in tokenizer.notes[0]
    assert load_tokenizer(resolve_model(str(home / "base"))).notes == ()


def test_a_folder_without_tokenizer_says_so(home, tmp_path):
    shutil.copytree(home / "base", tmp_path / "m")
    for path in (tmp_path / "m").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(SourceError, match="no tokenizer in"):
        load_tokenizer(resolve_model(str(tmp_path / "m")))


def test_a_vocabulary_beyond_the_embedding_rows_is_refused_unless_special(home):
    source, _ = resolved(home / "base")
    model = load_model(source, "float32", "cpu")
    with pytest.raises(SourceError, match=r"40 tokens beyond the model's 64 embedding rows, first 'w60'"):
        load_model(source, "float32", "cpu", tokenizer=tiny_tokenizer(words=100))
    full = tiny_tokenizer(words=60)
    full.add_special_tokens({"additional_special_tokens": ["<image>"]})
    assert len(full) == 65
    check_vocabulary(full, model, source)


def test_an_adapter_is_put_on_unmerged_and_changes_the_model(home):
    import torch

    base, identity = resolved(home / "base")
    adapter = resolve_adapter(str(home / "adapter"), base, identity)
    tuned = load_model(base, "float32", "cpu", adapter)
    plain_logits = logits(load_model(base, "float32", "cpu"))
    assert (logits(tuned) - plain_logits).abs().max() > 1e-3
    with tuned.disable_adapter():
        assert torch.equal(logits(tuned), plain_logits)
    assert adapter.trained_on == str(home / "base")
    with_adapter = fingerprint_model(base, adapter)
    assert with_adapter.fingerprint != identity.fingerprint
    assert with_adapter.base.fingerprint == identity.fingerprint
    assert with_adapter.adapter_source == str(home / "adapter")


def test_several_adapters_share_one_base(home, tmp_path):
    import torch

    base, identity = resolved(home / "base")
    other = tiny_adapter(home / "base", tmp_path / "other", seed=5)
    first = resolve_adapter(str(home / "adapter"), base, identity)
    second = resolve_adapter(str(other), base, identity)
    both = add_adapter(load_model(base, "float32", "cpu", first), second, device="cpu", name="second")
    assert torch.equal(logits(both), logits(load_model(base, "float32", "cpu", second)))
    both.set_adapter("default")
    assert torch.equal(logits(both), logits(load_model(base, "float32", "cpu", first)))


def test_the_recorded_base_catches_another_base_of_equal_shape(home, tmp_path):
    base, identity = resolved(home / "base")
    twin, twin_identity = resolved(home / "twin")
    shutil.copytree(home / "adapter", tmp_path / "a")
    (tmp_path / "a" / "aftertune.json").write_text(json.dumps({"base": plain(identity), "seed": 0}))
    assert resolve_adapter(str(tmp_path / "a"), base, identity).path == tmp_path / "a"
    with pytest.raises(SourceError, match="was trained on") as error:
        resolve_adapter(str(tmp_path / "a"), twin, twin_identity)
    assert str(home / "base") in str(error.value)
    assert str(home / "twin") in str(error.value)
    assert identity.fingerprint[:12] in str(error.value)
    assert twin_identity.fingerprint[:12] in str(error.value)


@pytest.mark.parametrize(("base", "expected"), [
    ("wide", r"has shape \[4, 32\], which does not fit the base's model\.layers\.0\.self_attn\.q_proj"),
    ("shallow", r"4 of its 8 tensors belong to no module of the base, first '.*layers\.1"),
])
def test_an_adapter_of_other_shape_names_both_bases(home, base, expected):
    source, identity = resolved(home / base)
    with pytest.raises(SourceError, match=expected) as error:
        resolve_adapter(str(home / "adapter"), source, identity)
    assert f"trained on {home / 'base'}, the given base is {home / base}" in str(error.value)


def rename_tensors(source, target, change):
    """A copy of an adapter whose tensors are renamed (or dropped where ``change`` gives None)."""
    shutil.copytree(source, target)
    kept = {change(n): t for n, t in load_file(target / "adapter_model.safetensors").items() if change(n)}
    save_file(kept, target / "adapter_model.safetensors", metadata={"format": "pt"})
    return target


def test_an_adapter_of_a_base_with_equal_shapes_is_refused_where_its_config_can_tell(home, tmp_path):
    twin, identity = resolved(home / "twin")
    with pytest.raises(SourceError, match=r"was trained on .*/base, but the given base, .*/twin, has other weights"):
        resolve_adapter(str(home / "adapter"), twin, identity)
    shutil.copytree(home / "adapter", tmp_path / "moved")
    config = json.loads((home / "adapter" / "adapter_config.json").read_text())
    for name in ("org/some-model", str(home / "gone"), str(home / "twin"), None):  # nothing is known, or it fits
        (tmp_path / "moved" / "adapter_config.json").write_text(
            json.dumps({**config, "base_model_name_or_path": name}))
        assert resolve_adapter(str(tmp_path / "moved"), twin, identity).trained_on == (name or "")
    half = load_model(resolve_model(str(home / "base")), "bfloat16", "cpu")  # the same base in another dtype
    half.save_pretrained(tmp_path / "half")
    load_tokenizer(twin).save_pretrained(tmp_path / "half")
    source, identity = resolved(tmp_path / "half")
    assert resolve_adapter(str(home / "adapter"), source, identity).base == str(tmp_path / "half")


def test_an_adapter_that_matches_nothing_is_an_error_not_a_warning(home, tmp_path):
    base, identity = resolved(home / "base")
    foreign = rename_tensors(home / "adapter", tmp_path / "f", lambda n: n.replace("model.layers", "gpt.h"))
    with pytest.raises(SourceError, match="none of its 8 tensors belongs to a module"):
        resolve_adapter(str(foreign), base, identity)
    # The name fits a module, but PEFT has nothing to put there: its own warning becomes an error too.
    misnamed = rename_tensors(home / "adapter", tmp_path / "m", lambda n: n.replace("lora_", "lara_"))
    adapter = resolve_adapter(str(misnamed), base, identity)
    error = pytest.raises(SourceError, match="none of the adapter's 8 tensors was loaded into")
    with error:
        load_model(base, "float32", "cpu", adapter)
    partial = rename_tensors(home / "adapter", tmp_path / "p", lambda n: None if "layers.1" in n else n)
    adapter = resolve_adapter(str(partial), base, identity)
    error = pytest.raises(SourceError, match="lacks 4 tensors that its config requires")
    with error:
        load_model(base, "float32", "cpu", adapter)


@pytest.mark.parametrize("kind", ["VeraConfig", "RandLoraConfig"])
def test_an_adapter_that_shares_tensors_between_layers_is_loaded_whole_or_refused(home, tmp_path, kind):
    """Their random matrices stand once in the file, under no layer: ``base_model.vera_A``."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    base, identity = resolved(home / "base")
    config = getattr(peft, kind)(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM",
                                 projection_prng_key=3, save_projection=True)
    made = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(home / "base"), config)
    for parameter in (p for p in made.parameters() if p.requires_grad):
        torch.nn.init.normal_(parameter, std=0.2)
    made.save_pretrained(tmp_path / "shared")
    shared = [n for n in load_file(tmp_path / "shared" / "adapter_model.safetensors") if "base_model.model." not in n]
    assert len(shared) == 2
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        loaded = load_model(base, "float32", "cpu", resolve_adapter(str(tmp_path / "shared"), base, identity))
        assert torch.equal(loaded(ids).logits, made.eval()(ids).logits)
        with loaded.disable_adapter():
            assert not torch.equal(loaded(ids).logits, made(ids).logits)
    wide, wide_identity = resolved(home / "wide")
    with pytest.raises(SourceError) as refused:
        load_model(wide, "float32", "cpu", resolve_adapter(str(tmp_path / "shared"), wide, wide_identity))
    assert "shared: " in str(refused.value)
    assert "\n" not in str(refused.value)
    stray = rename_tensors(tmp_path / "shared", tmp_path / "stray", lambda n: n.replace(shared[0], "base_model.other"))
    with pytest.raises(SourceError):
        load_model(base, "float32", "cpu", resolve_adapter(str(stray), base, identity))
    alone = rename_tensors(tmp_path / "shared", tmp_path / "alone", lambda n: n if n in shared else None)
    with pytest.raises(SourceError, match="none of its 2 tensors belongs to a module of the base;"):
        resolve_adapter(str(alone), base, identity)


def test_a_shared_tensor_that_the_config_does_not_ask_for_is_refused(home, tmp_path):
    base, identity = resolved(home / "base")
    shutil.copytree(home / "adapter", tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    save_file({**tensors, "base_model.vera_A": next(iter(tensors.values()))},
              tmp_path / "a" / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SourceError, match=r"1 of the 9 tensors in its file have no place in the model, first "
                                          r"'base_model.vera_A'"):
        load_model(base, "float32", "cpu", resolve_adapter(str(tmp_path / "a"), base, identity))


def test_folders_that_are_no_adapters_say_what_they_are(home, tmp_path):
    base, identity = resolved(home / "base")

    def refused(source):
        with pytest.raises(SourceError) as error:
            resolve_adapter(str(source), base, identity)
        return str(error.value)

    assert "it is a model" in refused(home / "base")
    assert "did you mean 'adapter'" in refused(home / "adaptor")
    assert f"give the folder {home / 'adapter'}" in refused(home / "adapter" / "adapter_model.safetensors")
    shutil.copytree(home / "adapter", tmp_path / "a")
    weights = tmp_path / "a" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "truncated" in refused(tmp_path / "a")
    weights.rename(tmp_path / "a" / "adapter_model.bin")
    assert "pickled weights" in refused(tmp_path / "a")
    (tmp_path / "a" / "adapter_model.bin").unlink()
    assert "no adapter_model.safetensors" in refused(tmp_path / "a")


def test_gpt2s_transposed_layers_take_their_adapter(tmp_path):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tiny_adapter(tmp_path / "gpt2", tmp_path / "a", targets=("c_attn",))
    base, identity = resolved(tmp_path / "gpt2")
    adapter = resolve_adapter(str(tmp_path / "a"), base, identity)
    tuned, plain_model = load_model(base, "float32", "cpu", adapter), load_model(base, "float32", "cpu")
    assert not torch.equal(logits(tuned), logits(plain_model))


def test_a_package_that_is_not_needed_is_not_asked_for():
    """On processors with AVX-512 BF16, bitsandbytes wrote on stderr that `kernels` is missing, in every fine-tune."""
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    assert not logger.isEnabledFor(logging.WARNING)
    assert logger.isEnabledFor(logging.ERROR)


def test_attention_that_ignores_a_models_soft_capping_is_not_used(tmp_path, monkeypatch):
    """transformers 5.17 and before says that Gemma 2 goes with SDPA."""
    from transformers.models.gemma2.modeling_gemma2 import Gemma2PreTrainedModel

    monkeypatch.setattr(Gemma2PreTrainedModel, "_supports_sdpa", True)
    for name, expected in (("gemma2", "eager"), ("llama", "sdpa")):
        family(name).save_pretrained(tmp_path / name)
        model = load_model(resolve_model(str(tmp_path / name)), "float32", "cpu")
        assert model.config._attn_implementation == expected
