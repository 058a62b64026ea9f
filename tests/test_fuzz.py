"""The harness of mutated files: some cases of every kind, and that each way of failing is found and named."""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aftertune.errors import LONGEST_MESSAGE, InputError, SourceError, one_line
from aftertune.sources import parquet_check
from aftertune.sources.tensors import read_header, weight_files
from aftertune.tuning.output import MANIFEST, read_manifest
from aftertune.values import from_json

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import fuzz
import fuzz_kinds
import mutations

pytestmark = pytest.mark.filterwarnings("ignore")
#: Files of a kind; of the kinds that take longer, fewer.
COUNT = 60
FEW = {"adapter": 6, "record": 15, "results": 20, "lighteval": 20, "inspect": 20, "every-eval-ever": 20, "study": 20,
       "task": 20, "template": 20, "config": 20, "rows-parquet": 30, "bundle": 12}


@pytest.mark.parametrize("name", fuzz_kinds.KINDS)
def test_a_mutated_file_is_read_or_refused_in_one_short_line(name: str, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_kinds, "prepare", lambda _: None)  # with the caches of the tests
    monkeypatch.setattr(parquet_check, "run_child", parquet_check.run_child)  # two kinds replace it
    target = fuzz_kinds.open_kind(name, tmp_path)
    kind = replace(fuzz_kinds.KINDS[name], seconds=60.0)
    results = []
    for number in range(FEW.get(name, COUNT)):
        result = fuzz.try_case(kind, target, fuzz.file_of(kind, target, name, 1, number))
        assert not result.faults, f"{name}:1:{number}"
        results.append(result)
    assert sum(result.refused for result in results) > 0
    assert not fuzz.try_case(kind, target, target.seeds[0]).faults


def test_a_case_is_the_same_every_time_and_differs_from_its_file(tmp_path: Path) -> None:
    rng = random.Random
    for form in mutations.FORMS:
        data = b"a: 1\n| b | 2 |\n" * 9
        first = [mutations.mutated(data, form, rng(n), [data]) for n in range(200)]
        assert first == [mutations.mutated(data, form, rng(n), [data]) for n in range(200)]
        assert sum(changed != data for changed in first) > 150
        assert max(map(len, first)) <= mutations.MAX_SIZE
    assert list(mutations.places({"a": [1, {"b": 2}]})) == [("a",), ("a", 0), ("a", 1), ("a", 1, "b")]


#: Its file is read without a fault.
SEED = next(data for n in range(99) if zlib.crc32(data := b"some bytes %d" % n) % 16 == 0)


class _Bare(InputError):
    """An error of aftertune whose message is not bounded."""

    def __str__(self) -> str:
        return "two\nlines" + "x" * 2000


def _unread(data: bytes) -> Any:
    """Fails in a way that the file decides."""
    case = zlib.crc32(data) % 16
    if case == 1:
        raise ValueError("not ours")
    if case == 2:
        raise InputError("one line")
    if case == 3:
        raise _Bare("")
    if case == 4:
        while True:
            pass
    if case == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    if case == 6:
        with mmap.mmap(-1, 80 * 2**20) as pages:  # new memory, never what the heap of this process has left over
            for at in range(0, len(pages), mmap.PAGESIZE):
                pages[at] = 1
        return ["a note " * 500]
    if case == 7:
        start = time.process_time()
        while time.process_time() - start < 0.3:
            pass
    if case == 8:
        raise SystemExit(0)
    return []


def _fails(data: bytes) -> Any:
    raise ValueError


#: Every file of this kind is a fault.
FAULTY = fuzz_kinds.Kind("toy", "bytes", lambda _: fuzz_kinds.Target([SEED], _fails))


def test_every_way_of_failing_is_found_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "HARD_CLOCK", 3.0)
    monkeypatch.setattr(fuzz, "MEMORY", 40 * 2**20)
    toy = fuzz_kinds.Kind("toy", "bytes", lambda _: fuzz_kinds.Target([SEED], _unread), seconds=0.2)
    monkeypatch.setitem(fuzz_kinds.KINDS, "toy", toy)
    monkeypatch.setitem(fuzz_kinds.KINDS, "toy too", toy)
    summaries: dict[str, fuzz.Summary] = {}
    said: list[str] = []
    fuzz.Fuzzer(["toy", "toy too"], 50, 0, summaries, say=said.append).run(tmp_path)
    toys = summaries["toy"]
    assert [s.done for s in summaries.values()] == [50, 50]
    found = {place.partition(",")[0] for place in toys.faults}
    assert found == {"ValueError", "SystemExit", "a message of more than 1", "a control character in a message",
                     "endless", "the process ended with SIGKILL", "a note of more than 1", "more than 500 MB",
                     "more than 0.2 s"}
    assert toys.refused >= 2
    assert toys.slowest[0] >= 0.3
    assert toys.largest[0] > 40 * 2**20
    assert "| toy | 50 |" in fuzz.table(summaries)
    assert any("ValueError, test_fuzz.py:" in line and "toy:0:" in line for line in fuzz.faults(summaries, 0))
    state = tmp_path / "state.json"
    fuzz.save_state(state, 0, {"toy": toys, "toy too": replace(toys, faults={})})
    assert fuzz.load_state(state, 0) == {"toy too": replace(toys, faults={})}, "a kind with a fault starts again"


def test_a_kind_of_which_more_files_were_tried_before_keeps_its_row() -> None:
    few, many = (fuzz.Summary(done=done, refused=1) for done in (10, 3000))
    before = fuzz.page({"record": many, "gguf": few, "study": many}, 0)
    after = fuzz.page({"record": few, "gguf": many}, 0, before)
    assert [(title, done) for title, (done, _) in fuzz.rows_before(after).items()] == [
        ("Markdown record", 3000), ("study", 3000), ("GGUF header", 3000)]
    assert "9,000 mutated real files" in after


def test_a_fault_that_was_found_before_ctrl_c_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        time.sleep(0.5)
        raise KeyboardInterrupt

    monkeypatch.setattr(fuzz.Fuzzer, "_read", stop)
    monkeypatch.setitem(fuzz_kinds.KINDS, "toy", FAULTY)
    summaries: dict[str, fuzz.Summary] = {}
    with pytest.raises(KeyboardInterrupt):
        fuzz.Fuzzer(["toy"], 50, 0, summaries).run(tmp_path)
    assert summaries["toy"].faults


def test_the_command_ends_with_1_where_there_is_a_fault(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setitem(fuzz_kinds.KINDS, "toy", FAULTY)
    assert fuzz.main(["--only", "toy", "--count", "5"]) == 1
    assert "toy:0:0  5 times  ValueError" in capfd.readouterr().out


def test_the_command_shows_a_table_and_continues(tmp_path: Path, capfd: Any) -> None:
    state = tmp_path / "state.json"
    words = ["--only", "checkpoint", "--count", "40", "--jobs", "1", "--state", str(state)]
    assert fuzz.main(words) == 0
    assert "| checkpoint manifest | 40 |" in capfd.readouterr().out
    assert fuzz.main([*words[:3], "60", *words[4:]]) == 0
    assert "| checkpoint manifest | 60 |" in capfd.readouterr().out


# --- What the harness found ---


@pytest.mark.parametrize("text", ["{", "[" * 99_999, b"\xff", '"\\ud83d"', b'"\xed\xa0\xbd"', '{"a": "x\\uDC00"}'])
def test_json_that_cannot_be_used_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_json(text)


def test_json_with_whole_characters_is_read() -> None:
    assert from_json('{"a": "\\ud83d\\ude00 \\\\ud83d", "b": [1]}') == {"a": "😀 \\ud83d", "b": [1]}
    assert from_json("é".encode().join([b'"', b'"'])) == "é"


@pytest.mark.parametrize("text", ["[" * 99_999, '{"id": "\\ud83d"}', "5", "\0"])
def test_a_manifest_that_cannot_be_read_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(text)
    assert read_manifest(tmp_path) is None


@pytest.mark.parametrize("shard", ["n" * 5000, "a\0b", "~nobody"])
def test_a_shard_with_a_name_that_no_file_can_have_is_missing(shard: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": shard}}))
    with pytest.raises(SourceError, match="1 of 1 shards in the index are missing"):
        weight_files(tmp_path)


def test_a_tensor_with_half_a_character_in_its_name_is_a_damaged_header(tmp_path: Path) -> None:
    header = b'{"a\\ud83d": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}'
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(SourceError, match="the safetensors header is damaged"):
        read_header(tmp_path / "model.safetensors")


# --- The messages of aftertune's errors ---


def test_the_message_of_an_error_is_one_short_line() -> None:
    assert str(InputError("a\n  b\tc\x1b[31m\u202ed\ud800")) == "a b c⟨U+001B⟩[31m⟨U+202E⟩d⟨U+D800⟩"
    assert str(InputError("plain  ⟨text⟩ é 日本")) == "plain  ⟨text⟩ é 日本"
    long = str(InputError("where: " + "x" * 10**6 + "; do this"))
    assert len(long) <= LONGEST_MESSAGE
    assert long.startswith("where: xxx")
    assert long.endswith("; do this")
    for words in range(110, 420, 7):  # nothing of the end is lost, however long the message is
        advice = " ".join(f"w{n:03}" for n in range(50)) + "; do this"
        assert one_line("where " * words + advice).endswith(advice)


def test_a_word_at_the_cut_of_a_long_message_is_whole_or_left_out() -> None:
    for shift in range(300):
        words = one_line("a" * shift + " " + "secret-token-0123456789 " * 200).split()
        assert set(words[1:]) <= {"secret-token-0123456789", "…"}
