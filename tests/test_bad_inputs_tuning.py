"""The catalogue of bad inputs, part two: training data (11 to 23), models and adapters (24 to 36), and a loss that is
not a finite number (37). Each case runs the command line. A refused input gives one line that says what was found,
where, and what to do next, with its exit code. An accepted input is counted or noted."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from aftertune.errors import AftertuneError
from aftertune.ledger import Ledger
from aftertune.sources import fingerprint_model, resolve_adapter, resolve_model
from aftertune.study import DataSpec, TuneSpec
from aftertune.tuning import tune
from aftertune.tuning.checkpoints import Checkpoints
from aftertune.values import Tuning, plain
from cli_cases import call, one_line, settle
from eval_cases import CHAT, byte_folder, byte_llama, byte_tokenizer
from source_cases import answering_hub, flip_byte, tiny_adapter, write_folder
from tuning_cases import rows, write_rows

ROW = '{"prompt": "a", "completion": "b"}'
ASKED = "three old friends walk slowly over the bridge to the mill on sunday"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, adapters and data, good and bad, each by its name."""
    root = tmp_path_factory.mktemp("bad")
    _data(root)
    _models(root)
    _adapters(root)
    return root


def _data(root: Path) -> None:
    write_rows(root / "good.jsonl", rows())
    good = (root / "good.jsonl").read_text()
    talk = {"messages": [{"role": "usr", "content": "a"}, {"role": "assistant", "content": "b"}]}
    for name, text in {
            "empty": "", "hollow": '{"prompt": "a", "completion": " "}\n', "nan": '{"prompt": NaN, "completion": "b"}',
            "infinite": f'{ROW}\n{{"prompt": "a", "completion": -Infinity}}', "deep": "[" * 100_000,
            "torn": f'{good}{{"prompt": "say w1', "other": f'{ROW}\n{{"prompt": "a", "answer": "b"}}\n',
            "type": '{"prompt": 3, "completion": "b"}', "role": f"{ROW}\n{json.dumps(talk)}"}.items():
        (root / f"{name}.jsonl").write_text(text)
    (root / "latin.jsonl").write_bytes(f'{ROW}\n{{"prompt": "caf\xe9", "completion": "b"}}\n'.encode("latin-1"))
    (root / "windows.jsonl").write_bytes(b"\xef\xbb\xbf" + good.replace("\n", "\r\n").encode())
    lines = rows()
    write_rows(root / "long.jsonl", [*lines, {"prompt": "w " * 100, "completion": "b"}])
    write_rows(root / "twice.jsonl", [*lines, *lines[:3], {**lines[5], "prompt": "SAY  w5 twice"}])
    write_rows(root / "shown.jsonl", [*lines, *({"prompt": f"{n} {ASKED}", "completion": "b"} for n in range(9))])
    write_rows(root / "tilde.jsonl", [*lines, {"prompt": "~ is to be said", "completion": "b"}])
    write_rows(root / "tildes.jsonl", [{**line, "prompt": f"~ {line['prompt']}"} for line in lines])
    write_rows(root / "text.jsonl", [{"text": f"{n} w"} for n in range(30)])
    write_rows(root / "asked.jsonl", [{"prompt": f"Now {ASKED}", "completion": "yes"},
                                      {"prompt": "What is the capital of Peru", "completion": "Lima"}])


def _models(root: Path) -> None:
    byte_folder(root / "base", template=CHAT)
    byte_folder(root / "wide", template=CHAT, hidden=64)
    byte_folder(root / "twin", template=CHAT, initializer_range=0.31)
    byte_folder(root / "raw")
    byte_folder(root / "hostile", template="{{ ''.__class__.__mro__ }}")
    byte_folder(root / "half", template="{% for m in messages %}{{ m")
    shutil.copytree(root / "base", root / "padless")
    _without(root / "padless", "pad_token")
    byte_llama(eos_token_id=None).save_pretrained(root / "endless")
    byte_tokenizer().save_pretrained(root / "endless")
    _without(root / "endless", "eos_token")
    torn = byte_llama()
    torn.model.embed_tokens.weight.data[byte_tokenizer().convert_tokens_to_ids("~")] = float("nan")
    torn.save_pretrained(root / "torn-out")
    byte_tokenizer(template=CHAT).save_pretrained(root / "torn-out")
    more = byte_tokenizer()
    more.add_tokens(["beyond", "further"])
    shutil.copytree(root / "base", root / "beyond")
    more.save_pretrained(root / "beyond")
    write_folder(root / "pickled")
    (root / "pickled" / "model.safetensors").rename(root / "pickled" / "pytorch_model.bin")
    cut = write_folder(root / "cut") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-5])
    flip_byte(write_folder(root / "flipped") / "model.safetensors", at=9)
    (write_folder(root / "sharded", shards=3) / "model-00002-of-00003.safetensors").unlink()
    write_folder(root / "encoder", config={"architectures": ["BertForMaskedLM"], "model_type": "bert"})
    shutil.copytree(root / "base", root / "full")
    made = fingerprint_model(resolve_model(str(root / "base")))
    (root / "full" / "aftertune.json").write_text(json.dumps({"method": "full", "result": made.fingerprint}))
    flip_byte(root / "full" / "model.safetensors")


def _without(folder: Path, key: str) -> None:
    """A folder's tokenizer without a special token."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != key}))


def _adapters(root: Path) -> None:
    """``foreign`` knows its base by name only, ``own`` by content."""
    tiny_adapter(root / "base", root / "foreign")
    config = json.loads((root / "foreign" / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": "org/base", "revision": "c0ffee"}
    (root / "foreign" / "adapter_config.json").write_text(json.dumps(config))
    base = resolve_model(str(root / "base"))
    identity = fingerprint_model(base)
    made = fingerprint_model(base, resolve_adapter(str(root / "foreign"), base, identity))
    shutil.copytree(root / "foreign", root / "own")
    (root / "own" / "aftertune.json").write_text(json.dumps({"base": plain(identity), "result": made.fingerprint}))
    shutil.copytree(root / "own", root / "spoilt")
    flip_byte(root / "spoilt" / "adapter_model.safetensors")
    shutil.copytree(root / "foreign", root / "stranger")
    weights = root / "stranger" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b"model.layers", b"model.floors"))
    shutil.copytree(root / "foreign", root / "pickled-adapter")
    (root / "pickled-adapter" / "adapter_model.safetensors").rename(root / "pickled-adapter" / "adapter_model.bin")


#: Number and name -> command, exit code, and parts of its message.
REFUSED: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "11-missing": ("tune base --data nope.jsonl", 2, ("nope.jsonl: no such data file", "give a .jsonl")),
    "11-empty": ("tune base --data empty.jsonl", 2, ("empty.jsonl: no examples", "write one example per row")),
    "11-hollow": ("tune base --data hollow.jsonl", 2, ("of 1 rows 0 are unreadable and 1 have an empty completion",
                                                       "needs a text to learn")),
    "12-not-utf8": ("tune base --data latin.jsonl", 2, ("latin.jsonl:2: byte 0xe9 at offset", "not UTF-8",
                                                        "--encoding")),
    "14-torn": ("tune base --data torn.jsonl", 2, ("torn.jsonl:41: not valid JSON", "--skip-bad")),
    "15-nan": ("tune base --data nan.jsonl", 2, ("nan.jsonl:1: ", "NaN is not JSON", "--skip-bad")),
    "15-infinity": ("tune base --data infinite.jsonl", 2, ("infinite.jsonl:2: ", "-Infinity is not JSON")),
    "15-deep": ("tune base --data deep.jsonl", 2, ("deep.jsonl:1: nested too deeply", "--skip-bad")),
    "16-field": ("tune base --data other.jsonl", 2, ("other.jsonl:2: no `completion`; found 'prompt', 'answer'",
                                                     "--field completion=NAME")),
    "17-type": ("tune base --data type.jsonl", 2, ("type.jsonl:1: `prompt` must be text, found int", "in quotes")),
    "17-role": ("tune base --data role.jsonl", 2, ("role.jsonl:2: messages[0]: role 'usr'", "system, user, assistant",
                                                   "did you mean 'user'")),
    "18-all": ("tune base --data good.jsonl --max-length 4", 2, (
        "examples fill max_length 4", "the first is good.jsonl", "raise max_length")),
    "18-text": ("tune base --data text.jsonl --max-length 1", 2, ("fill max_length 1", "raise max_length")),
    "24-path": ("eval ./bse --tasks arc_easy", 2, ("./bse: no such file or folder", "did you mean 'base'")),
    "24-id": ("eval org/bse --tasks arc_easy", 2, ("org/bse: this run is offline", "download it once while online")),
    "25-model": ("eval pickled --tasks arc_easy", 2, ("only pickled weights (pytorch_model.bin)", "save_pretrained")),
    "25-adapter": ("eval base --adapter pickled-adapter --tasks arc_easy", 2, ("only pickled weights",
                                                                             "save_pretrained")),
    "26-cut": ("eval cut --tasks arc_easy", 2, ("cut/model.safetensors: truncated", "the header says", "the file has",
                                                "download it again")),
    "26-header": ("eval flipped --tasks arc_easy", 2, ("flipped/model.safetensors: ", "download")),
    "26-adapter": ("eval base --adapter spoilt --tasks arc_easy", 2, (
        "spoilt/adapter_model.safetensors: ", "are damaged", "the fingerprint is", "aftertune.json says",
        "tune or download again")),
    "26-full": ("eval full --tasks arc_easy", 2, ("full/model.safetensors: ", "are damaged", "aftertune.json says")),
    "27-shard": ("eval sharded --tasks arc_easy", 2, ("1 of 3 shards", "missing: model-00002-of-00003.safetensors")),
    "28-shape": ("eval wide --adapter foreign --tasks arc_easy", 2, (
        "foreign: ", "has shape [4, 32]", "trained on org/base @ c0ffee, the given base is wide")),
    "29-content": ("eval twin --adapter own --tasks arc_easy", 2, (
        "own: the adapter was trained on ", "base (fingerprint ", "twin (fingerprint ",
        "give the base that it was trained on")),
    "30-no-key": ("eval base --adapter stranger --tasks arc_easy", 2, ("none of its 8 tensors belongs to a module",
                                                                      "trained on org/base")),
    "31-targets": ("tune base --data good.jsonl --target-modules atention", 2, (
        "'atention' matches no layer", "linear layers: down_proj, gate_proj, k_proj")),
    "33-eval": ("eval endless --tasks gsm8k_cot --limit 1 --gen-kwargs until=[],max_gen_toks=4", 2, (
        "no end-of-sequence token", "--gen-kwargs until=TEXT")),
    "34-vocabulary": ("eval beyond --tasks arc_easy --limit 1", 2, (
        "1 tokens beyond the model's 264 embedding rows, first 'further' with id 264", "use the model's own")),
    "35-none-eval": ("eval raw --tasks arc_easy --limit 1 --apply-chat-template", 2, (
        "'arc_easy' uses the chat template, but the model's tokenizer has none", "set apply_chat_template")),
    "35-none-tune": ("tune raw --data good.jsonl", 2, ("has no chat template", "--template")),
    "35-unsafe-tune": ("tune hostile --data good.jsonl", 2, ("the chat template rejects", "unsafe", "template: plain")),
    "35-unsafe-eval": ("eval hostile --tasks arc_easy --limit 1 --apply-chat-template", 2, ("chat template", "unsafe")),
    "35-broken-eval": ("eval half --tasks arc_easy --limit 1 --apply-chat-template", 2, ("chat template", "half")),
    "36-encoder": ("eval encoder --tasks arc_easy", 2, ("BertForMaskedLM is an encoder", "use a causal model",
                                                        "LlamaForCausalLM")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_input_is_one_line_with_its_exit_code(case: str, place: Path, monkeypatch: pytest.MonkeyPatch,
                                                    capfd: pytest.CaptureFixture[str]) -> None:
    settle(monkeypatch, place)
    words, code, said = REFUSED[case]
    assert (call(monkeypatch, *words.split()), one_line(capfd, said)) == (code, "")


def test_four_bits_without_bitsandbytes_say_what_to_install_and_offer_lora(
        place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    settle(monkeypatch, place)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    said = ("bitsandbytes", "pip install 'aftertune[qlora]'", "use lora instead")
    for words in ("tune base --data good.jsonl --method qlora", "eval base --tasks arc_easy --quantize nf4"):
        assert (call(monkeypatch, *words.split()), one_line(capfd, said)) == (4, "")


#: Number and name -> the error of the libraries for a data set of the Hub, and parts of our message.
OF_THE_HUB: dict[str, tuple[Exception, tuple[str, ...]]] = {
    "21-split": (ValueError('Unknown split "tran". Should be one of [\'train\', \'test\'].'), (
        "acme/rows: has no split 'tran'; it has 'train', 'test'", "--split")),
    "22-script": (RuntimeError("Dataset scripts are no longer supported, but found rows.py"), (
        "acme/rows: needs a loading script", "Parquet", "refs/convert/parquet")),
    "23-data-gated": (OSError("acme/rows is a gated dataset, hf_SECRET"), ("accept its terms", "HF_TOKEN")),
    "23-data-401": (OSError("401 for hf_SECRET"), ("refused access", "HF_TOKEN")),
    "23-data-offline": (ConnectionError("no route, hf_SECRET"), ("offline or the Hub cannot be reached", "local file")),
}


@pytest.mark.parametrize("case", OF_THE_HUB)
def test_what_the_hub_does_not_give_of_data_is_told_apart(case: str, place: Path, monkeypatch: pytest.MonkeyPatch,
                                                          capfd: pytest.CaptureFixture[str]) -> None:
    import datasets

    error, said = OF_THE_HUB[case]

    def load(*_: Any, **__: Any) -> None:
        raise error

    settle(monkeypatch, place)
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("aftertune.tuning.arrow_rows.offline", lambda: False)
    code = call(monkeypatch, "tune", "base", "--data", "acme/rows", "--split", "tran")
    _, err = told = capfd.readouterr()
    assert code == 2
    assert [text for text in said if text not in err] == []
    assert "SECRET" not in "".join(told)
    assert err.count("\naftertune: ") + err.startswith("aftertune: ") == 1


MODELS_OF_THE_HUB = {"23-model-gated": ("acme/gated", ("accept its terms", "HF_TOKEN")),
                     "23-model-401": ("acme/secret", ("refused access (HTTP 401)", "HF_TOKEN")),
                     "24-model-absent": ("acme/absent", ("no such model", "check the spelling"))}


@pytest.mark.parametrize("case", MODELS_OF_THE_HUB)
def test_what_the_hub_does_not_give_of_models_is_told_apart(case: str, place: Path, monkeypatch: pytest.MonkeyPatch,
                                                            capfd: pytest.CaptureFixture[str]) -> None:
    from huggingface_hub import constants

    model, said = MODELS_OF_THE_HUB[case]
    settle(monkeypatch, place)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "hub"))
    with answering_hub(monkeypatch):
        code = call(monkeypatch, "eval", model, "--tasks", "arc_easy")
    assert (code, one_line(capfd, said)) == (2, "")


#: Number and name -> arguments of a preview, the counts that it must show, by set and kind, and a part of a note.
ACCEPTED: dict[str, tuple[str, dict[str, dict[str, int]], str]] = {
    "13-marks": ("base --data windows.jsonl", {"data": {"rows": 40, "unreadable": 0}},
                 "windows.jsonl: has a byte order mark and CRLF line ends, which were removed"),
    "14-skipped": ("base --data torn.jsonl --skip-bad", {"data": {"rows": 41, "unreadable": 1}},
                   "1 of 41 rows are unreadable and were left out; the first: torn.jsonl:41"),
    "18-partly": ("base --data long.jsonl --max-length 96", {"training": {"masked": 1}}, "fill max_length 96"),
    "19-duplicates": ("base --data twice.jsonl", {"data": {"rows": 44, "duplicates": 3, "alike": 0}},
                      "1 examples are like an earlier one except for case, spaces or Unicode form; they are kept"),
    "19-alike": ("base --data twice.jsonl --dedup normalised", {"data": {"rows": 44, "duplicates": 3, "alike": 1}}, ""),
    "32-no-pad": ("padless --data good.jsonl", {}, "no pad token; padding uses its eos token '</s>' and is masked"),
    "33-no-eos": ("endless --data good.jsonl --template plain", {},
                  "no end-of-sequence token, so the model does not learn to end"),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_is_accepted_is_counted_or_noted(case: str, place: Path, monkeypatch: pytest.MonkeyPatch,
                                              capfd: pytest.CaptureFixture[str]) -> None:
    settle(monkeypatch, place)
    words, counts, note = ACCEPTED[case]
    assert call(monkeypatch, "tune", *words.split(), "--preview", "--json") == 0
    found = json.loads(capfd.readouterr().out)
    assert _other(found["counts"], counts) == {}
    assert any(note in text for text in found["notes"]) or not note


def _other(found: Mapping[str, Mapping[str, int]], expected: dict[str, dict[str, int]]) -> dict[str, int]:
    """Counts that are not as expected."""
    return {f"{side}.{kind}": found[side][kind] for side, kinds in expected.items() for kind, count in kinds.items()
            if found[side][kind] != count}


def test_20_overlap_is_told_with_the_ids_of_the_items(place: Path, monkeypatch: pytest.MonkeyPatch,
                                                      capfd: pytest.CaptureFixture[str]) -> None:
    settle(monkeypatch, place)
    words = "tune base --data shown.jsonl --tasks asked.jsonl --preview"
    assert call(monkeypatch, *words.split(), "--json") == 0
    [overlap] = json.loads(capfd.readouterr().out)["overlap"]
    assert (overlap["n"], overlap["ngram"]) == (2, [0])
    assert call(monkeypatch, *words.split()) == 0
    assert "1 of 2 items are in the training data" in " ".join(capfd.readouterr().out.split())


def test_29_an_adapter_whose_base_no_record_proves_is_evaluated_with_a_warning(
        place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    settle(monkeypatch, place)
    for adapter, limit in (("foreign", 1), ("own", 2)):  # what is asked again is answered from the ledger
        words = f"eval base --adapter {adapter} --tasks arc_easy --limit {limit} --json"
        assert call(monkeypatch, *words.split()) == 0
        warnings = json.loads(capfd.readouterr().out)["warnings"]
        lineage = [text for text in warnings if text.startswith("lineage not proven")]
        assert len(lineage) == (adapter == "foreign")
        assert all("foreign was trained; its config names org/base @ c0ffee" in text for text in lineage)


@pytest.fixture(scope="module")
def recorded(place: Path) -> Tuning:
    """What the ledger holds of a tuning on data that has a bit of everything that is accepted."""
    lines = [*rows(), *rows(3), {"prompt": f"Now {ASKED}", "completion": "yes"},
             {"prompt": "w " * 100, "completion": "b"}]
    text = "".join(json.dumps(line) + "\r\n" for line in lines)
    (place / "mixed.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode() + b'{"prompt": "say')
    words = ("tune padless --data mixed.jsonl --skip-bad --max-length 96 --tasks asked.jsonl --max-steps 2 --rank 2 "
             "--dtype float32 --device cpu --name mixed")
    with pytest.MonkeyPatch.context() as patch:
        settle(patch, place)
        assert call(patch, *words.split()) == 0
        with Ledger() as ledger:
            return ledger.find_tuning("mixed")


@pytest.mark.slow
@pytest.mark.parametrize(("case", "counts", "note"), [
    ("13", {}, "mixed.jsonl: has a byte order mark and CRLF line ends"),
    ("14", {"data": {"rows": 46, "unreadable": 1}}, "1 of 46 rows are unreadable"),
    ("18", {"training": {"masked": 1}}, "the prompts of 1 of"),
    ("19", {"data": {"duplicates": 3}}, ""),
    ("32", {}, "no pad token; padding uses its eos token '</s>' and is masked")])
def test_what_is_accepted_stands_in_the_ledger(case: str, counts: dict[str, dict[str, int]], note: str,
                                               recorded: Tuning) -> None:
    assert recorded.status == "done"
    assert _other(recorded.counts, counts) == {}
    assert any(note in text for text in recorded.notes) or not note


@pytest.mark.slow
def test_20_overlap_stands_in_the_ledger(recorded: Tuning) -> None:
    [overlap] = recorded.overlap
    assert (overlap.task, overlap.items) == ("asked.jsonl", (0,))
    assert "mixed.jsonl:44" in str(overlap.found)


@pytest.mark.slow
def test_37_a_loss_that_is_no_number_is_one_line_and_leaves_no_result(
        place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    settle(monkeypatch, place)
    words = "tune torn-out --data tilde.jsonl --batch-size 2 --rank 2 --dtype float32 --device cpu --name w --out wild"
    assert call(monkeypatch, *words.split()) == 1
    assert one_line(capfd, ("the loss at step", "is nan, in training examples ", "tilde.jsonl:41", "no checkpoint yet",
                            "lower learning_rate, now 0.0002, or train in float32")) == ""
    with Ledger() as ledger:
        assert ledger.find_tuning("w").status == "failed"
    assert not (place / "wild" / "aftertune.json").exists()


@pytest.mark.slow
def test_37_a_held_out_loss_that_is_no_number_is_known_before_training(
        place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    settle(monkeypatch, place)
    words = "tune torn-out --data tildes.jsonl --dtype float32 --device cpu"
    assert call(monkeypatch, *words.split()) == 1
    assert one_line(capfd, ("the measured loss is not a finite number for tildes.jsonl:", "damaged weights")) == ""


@pytest.mark.slow
def test_37_the_last_good_checkpoint_stays(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(monkeypatch, place)
    spec = TuneSpec(model="torn-out", data=DataSpec(file=Path("tilde.jsonl")), batch_size=2, accumulation=2,
                    dtype="float32", device="cpu", checkpoint_minutes=0, out=Path("kept"), name="kept")
    with Ledger() as ledger, pytest.raises(AftertuneError, match="the last good checkpoint is in kept/check") as error:
        tune(spec, ledger=ledger)
    told = re.match(r"the loss at step (\d+) of \d+ is nan, in training examples (.*); the last", str(error.value))
    assert told, error.value
    named = told[2].split(", ")
    assert "tilde.jsonl:41" in named
    assert len(named) == 2, "one micro-batch of two, not the step"
    with Ledger() as ledger:
        failed = ledger.find_tuning("kept")
    assert failed.status == "failed"
    newest = Checkpoints(place / "kept" / "checkpoints", failed.id).newest()
    assert newest is not None
    assert newest.name == f"checkpoint-{int(told[1]) - 1}"


def test_every_number_of_the_catalogue_from_11_to_37_has_a_case() -> None:
    tables = [*REFUSED, *OF_THE_HUB, *MODELS_OF_THE_HUB, *ACCEPTED]
    named = [name.removeprefix("test_") for name in globals() if re.match(r"test_\d", name)]
    assert {int(re.split("[-_]", case)[0]) for case in (*tables, *named)} == set(range(11, 38))
    assert len(tables) > 40
