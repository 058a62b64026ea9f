"""Sources: identity by content, and a memory of it that never lies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from aftertune.errors import SourceError
from aftertune.sources import (
    cache,
    fingerprint_adapter,
    fingerprint_file,
    fingerprint_model,
    fingerprint_rows,
    fingerprint_tokenizer,
    resolve_model,
)
from aftertune.sources import fingerprint as room
from aftertune.sources.fingerprint import adapter_fields, function_fields
from aftertune.values import json_ready
from source_cases import CONFIG, flip_byte, tensors, write_folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AFTERTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def identity(folder):
    return fingerprint_model(resolve_model(str(folder)))


def test_the_same_content_in_other_shards_and_order_has_the_same_fingerprint(tmp_path):
    one = identity(write_folder(tmp_path / "one"))
    assert one == identity(tmp_path / "one")
    reordered = dict(reversed(list(tensors().items())))
    sharded = write_folder(tmp_path / "two", shards=2)
    for folder in (sharded, write_folder(tmp_path / "rev", weights=reordered)):
        other = identity(folder)
        assert (other.weights, other.fingerprint) == (one.weights, one.fingerprint)
    assert one.parameters == 16 * 8 + 8 * 8 + 8
    assert one.architecture == "LlamaForCausalLM"


def test_each_changed_byte_gives_another_fingerprint(tmp_path):
    folder = write_folder(tmp_path / "m")
    path = folder / "model.safetensors"
    start = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    seen = {identity(folder).weights}
    for at in range(start, path.stat().st_size, 97):
        flip_byte(path, at)
        seen.add(identity(folder).weights)
        flip_byte(path, at)
    assert len(seen) == 1 + len(range(start, path.stat().st_size, 97))
    assert identity(folder).weights in seen


def test_name_dtype_and_shape_count(tmp_path):
    weights = tensors()
    base = identity(write_folder(tmp_path / "m")).weights
    renamed = {("model.norm.bias" if n == "model.norm.weight" else n): t for n, t in weights.items()}
    query = "model.layers.0.self_attn.q_proj.weight"
    reshaped = {**weights, query: weights[query].reshape(4, 16)}
    retyped = {n: t.view(np.int32) for n, t in weights.items()}
    others = [identity(write_folder(tmp_path / f"o{i}", weights=w)).weights
              for i, w in enumerate((renamed, reshaped, retyped))]
    assert len({base, *others}) == 4


def test_a_copied_output_head_is_counted_once_and_an_own_one_twice(tmp_path):
    weights = tensors()
    plain = identity(write_folder(tmp_path / "m")).parameters
    copied = {**weights, "lm_head.weight": weights["model.embed_tokens.weight"].copy()}
    own = {**weights, "lm_head.weight": weights["model.embed_tokens.weight"] + 1}
    assert identity(write_folder(tmp_path / "tied", weights=copied)).parameters == plain
    assert identity(write_folder(tmp_path / "own", weights=own)).parameters == plain + 16 * 8


def test_shards_that_contradict_each_other_are_refused(tmp_path):
    from safetensors.numpy import save_file

    folder = write_folder(tmp_path / "m", shards=2)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    name = index["weight_map"]["model.norm.weight"]
    other = next(p for p in folder.glob("*.safetensors") if p.name != name)
    save_file({"model.norm.weight": np.ones(8, dtype=np.float32)}, other)
    with pytest.raises(SourceError, match="other content than in another shard"):
        room.fingerprint_weights(sorted(folder.glob("*.safetensors")))


@pytest.mark.parametrize(("change", "counts"), [
    ({"rope_theta": 20000.0}, True), ({"sliding_window": None}, True), ({"tie_word_embeddings": True}, True),
    ({"architectures": ["MistralForCausalLM"]}, True), ({"quantization_config": {"bits": 4}}, True),
    ({"image_token_id": 5}, True), ({"unheard_of": 1}, True), ({"max_position_embeddings": 99}, True),
    ({"transformers_version": "5.0"}, False), ({"torch_dtype": "bfloat16"}, False),
    ({"dtype": "float16"}, False),
    ({"use_cache": False}, False), ({"attention_dropout": 0.5}, False), ({"_name_or_path": "x"}, False),
    ({"eos_token_id": [2, 3]}, False), ({"pad_token_id": 0}, False), ({"temperature": 0.7}, False),
    ({"hidden_dropout_prob": 0.1}, False), ({"id2label": {"0": "x"}}, False),
])
def test_config_fields_count_where_they_change_the_function(tmp_path, change, counts):
    before = identity(write_folder(tmp_path / "a"))
    after = identity(write_folder(tmp_path / "b", config={**CONFIG, **change}))
    assert (before.config != after.config) is counts
    assert before.weights == after.weights
    assert (before.fingerprint != after.fingerprint) is counts


def test_pad_counts_where_positions_come_from_it_and_nested_configs_are_cleaned():
    assert function_fields({"model_type": "xglm", "pad_token_id": 1})["pad_token_id"] == 1
    nested = {"text_config": {"hidden_size": 4, "use_cache": True, "dtype": "bfloat16"}}
    assert function_fields(nested) == {"text_config": {"hidden_size": 4}}
    assert json_ready({"limit": [0.0, float("inf")], "raw": b"\x01", "n": np.int64(3)}) == {
        "limit": [0.0, "inf"], "raw": "01", "n": 3}


def test_tokenizer_identity_ignores_formatting_and_finds_the_template_anywhere(tmp_path):
    folder = write_folder(tmp_path / "m")
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps({"chat_template": "T", "eos_token": "b"}))
    first = fingerprint_tokenizer(folder)
    settings.write_text(json.dumps({"eos_token": "b", "name_or_path": "/somewhere"}, indent=2))
    (folder / "chat_template.jinja").write_text("T")
    saved = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**saved, "padding": {"length": 9}}, indent=1))
    assert fingerprint_tokenizer(folder) == first
    (folder / "chat_template.jinja").write_text("T ")
    assert fingerprint_tokenizer(folder) != first
    (folder / "chat_template.jinja").write_text("T")
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 1, "b": 0}}}))
    assert fingerprint_tokenizer(folder) != first


def test_adapter_identity_is_its_tensors_and_what_scales_them(tmp_path):
    from safetensors.numpy import save_file

    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"],
              "base_model_name_or_path": "x", "lora_dropout": 0.1, "init_lora_weights": True, "bias": "none"}

    def written(**changes):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **changes}))
        return fingerprint_adapter(tmp_path)

    save_file({"a.lora_A.weight": np.ones((4, 8), dtype=np.float32)}, tmp_path / "adapter_model.safetensors")
    first = written()
    assert first == written(target_modules=["v_proj", "q_proj"], lora_dropout=0.0, megatron_config=None,
                            base_model_name_or_path="y", init_lora_weights=False)
    others = [written(lora_alpha=16), written(use_dora=True), written(init_lora_weights="pissa")]
    assert len({first, *others}) == 4
    flip_byte(tmp_path / "adapter_model.safetensors")
    assert written() != first
    assert adapter_fields({"r": 0, "bias": "none", "x": {}}) == {"r": 0, "bias": "none"}


def test_rows_are_identified_by_content_and_order():
    rows = [{"prompt": "a", "completion": "ü"}, {"prompt": "b", "completion": "\ud800"}]
    assert fingerprint_rows(rows) == fingerprint_rows({k: r[k] for k in reversed(r)} for r in rows)
    assert fingerprint_rows(rows) != fingerprint_rows(rows[::-1])
    assert fingerprint_rows([{"a": "1"}, {"b": "2"}]) != fingerprint_rows([{"a": "1", "b": "2"}])


def test_a_file_is_its_bytes(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"abc")
    published = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4's own example
    assert fingerprint_file(path) == published
    with pytest.raises(SourceError, match="no such file"):
        fingerprint_file(tmp_path / "absent")


def count_reads(monkeypatch):
    """A list that grows each time a weight file is really read."""
    reads, real = [], room.read_bytes
    monkeypatch.setattr(room, "read_bytes", lambda path: (reads.append(path), real(path))[1])
    return reads


def test_unchanged_files_are_read_once_and_changed_ones_again(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MIN_AGE", -1.0)  # every file counts as settled
    folder = write_folder(tmp_path / "m")
    reads = count_reads(monkeypatch)
    first = identity(folder)
    assert identity(folder) == first
    assert len(reads) == 1
    path = folder / "model.safetensors"
    before = path.stat()
    time.sleep(0.05)  # more than the grain of a file system's clock
    flip_byte(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # size and mtime as before; ctime tells
    assert identity(folder).weights != first.weights
    assert len(reads) == 2


def test_a_fresh_file_is_not_remembered(tmp_path, monkeypatch, own_cache):
    reads = count_reads(monkeypatch)
    folder = write_folder(tmp_path / "m")
    identity(folder)
    identity(folder)
    assert len(reads) == 2
    assert not (own_cache / "fingerprints.json").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"k": 3}'])
def test_a_corrupt_memory_is_ignored_and_mended(tmp_path, monkeypatch, own_cache, content):
    monkeypatch.setattr(cache, "MIN_AGE", -1.0)
    folder = write_folder(tmp_path / "m")
    first = identity(folder)
    (own_cache / "fingerprints.json").write_bytes(content)
    assert identity(folder) == first
    assert json.loads((own_cache / "fingerprints.json").read_text())


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MIN_AGE", -1.0)
    (tmp_path / "blocked").write_text("a file where the cache folder should be")
    folder = write_folder(tmp_path / "m")
    first = identity(folder)
    monkeypatch.setenv("AFTERTUNE_CACHE", str(tmp_path / "blocked" / "cache"))
    assert identity(folder) == first


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch):
    path = tmp_path / "f.json"
    cache.write_atomic(path, "old")
    monkeypatch.setattr(cache.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space"):
        cache.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.glob(".f.json*")) == []


def test_what_a_killed_process_left_of_a_write_is_removed_by_the_next_one(tmp_path):
    """Temporary files and folders of dead processes of this machine alone."""
    target = tmp_path / "record.md"
    left = cache.temporary_path(target)
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True,
                          check=True).stdout.strip()
    names = {name: left.name.replace(f"-{os.getpid()}-", f"-{pid}-") for name, pid in (
        ("dead", dead), ("alive", os.getppid()))}
    names["elsewhere"] = names["dead"].replace(left.name.split(".")[-1].split("-")[0], "000000")
    for name in names.values():
        (tmp_path / name).write_text("half")
    folder = tmp_path / names["dead"].replace("record.md", "merged")
    folder.mkdir()
    (folder / "model.safetensors").write_text("half")
    cache.write_atomic(target, "whole")
    assert {p.name for p in tmp_path.iterdir()} == {"record.md", names["alive"], names["elsewhere"], folder.name}
    cache.temporary_path(tmp_path / "merged")
    assert not folder.exists()


def test_a_temporary_name_fits_where_the_name_fits(tmp_path):
    target = tmp_path / f"{'記' * 80}.md"
    cache.write_atomic(target, "text")
    assert target.read_text() == "text"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_for_the_user_have_the_mode_of_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        cache.write_atomic(tmp_path / "record.md", "text")
        (tmp_path / "model.safetensors").touch(mode=0o600)
        (tmp_path / "private.key").touch(mode=0o600)
        cache.set_default_mode(tmp_path)
    finally:
        os.umask(before)
    modes = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.iterdir()}
    assert modes == {"record.md": mode, "model.safetensors": mode, "private.key": 0o600}


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "data.bin"
    path.write_bytes(b"abc")
    keys = iter(["before", "after"])
    monkeypatch.setattr(room, "stat_key", lambda *_: next(keys))
    with pytest.raises(SourceError, match="changed while it was read"):
        fingerprint_file(path)


def test_the_memory_keeps_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MAX_ENTRIES", 3)
    for i in range(5):
        cache.cache_value(f"k{i}", {"weights": str(i)})
    assert [cache.cached_value(f"k{i}") is not None for i in range(5)] == [False, False, True, True, True]
