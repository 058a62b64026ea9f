"""Replay without data: the prompts, what is left out of the base's answers, the store, and a training with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from aftertune.errors import InputError
from aftertune.pipeline.planning import Costs
from aftertune.report import data_facts
from aftertune.study import DataSpec, LoraSpec, ReplaySpec, Study, TuneSpec
from aftertune.study.presets import ModelShape
from aftertune.tuning import preview, tune
from aftertune.tuning.base_answers import CHUNK, AnswerStore, BaseAnswers, left_out, repeated_share
from aftertune.tuning.estimate import Machine, estimate_tuning, writing_seconds
from aftertune.tuning.general_prompts import PromptList, drift_prompts
from aftertune.tuning.output import read_manifest
from aftertune.tuning.split import normalized
from tuning_cases import base_and_data, write_rows

#: More prompts than one chunk has.
PROMPTS = [f"w{n} w{m}" for n in range(8) for m in range(10)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that ends its answers soon, data, and a list of prompts."""
    place = base_and_data(tmp_path_factory.mktemp("base_answers"))
    from safetensors.torch import load_file, save_file

    path = place / "base" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"][1] *= 1.6  # the head is tied: the end token becomes likely
    save_file(tensors, path, metadata={"format": "pt"})
    (place / "prompts.txt").write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    return place


def spec(place: Path, out: str, replay: str, **settings: Any) -> TuneSpec:
    values = {"model": str(place / "base"), "data": DataSpec(file=place / "data.jsonl", held_out=0.2),
              "out": place / out, "learning_rate": 0.02, "max_steps": 3, "batch_size": 4, "dtype": "float32",
              "device": "cpu", "threads": 1, "lora": LoraSpec(r=4), "replay": {"data": replay}}
    return TuneSpec(**{**values, **settings})


def writer(place: Path, folder: str, count: int, told: Callable[..., None] = lambda *_: None) -> BaseAnswers:
    return BaseAnswers(spec(place, "unused", f"base:{count}:{place / 'prompts.txt'}"), place / folder, told)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aftertune.tuning.base_answers.TOKENS", 12)


# --- Prompts ---


def test_the_packages_prompts_are_many_short_and_never_those_of_drift() -> None:
    prompts = PromptList.read(None).prompts
    assert len({normalized(p) for p in prompts}) == len(prompts) == 300
    assert not {normalized(p) for p in prompts} & {normalized(p) for p in drift_prompts()}
    assert max(map(len, prompts)) < 400
    few = prompts[:24]  # of each kind, so that a small number of answers is spread too
    for start in ("Explain", "List", "Rewrite", "Write", "Convert", "Summarise", "Is this message spam",
                  "My houseplant"):
        assert any(p.startswith(start) for p in few), start


def test_a_file_of_prompts_is_read_without_repeats_and_without_those_of_drift(tmp_path: Path) -> None:
    text = tmp_path / "prompts.txt"
    text.write_text(f"\ufeffsay w1\n\n  say W1 \n{drift_prompts()[0]}\nsay w2\r\n", encoding="utf-8")
    found = PromptList.read(text)
    assert (found.prompts, found.left_out) == (("say w1", "say w2"), 2)
    rows = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "say w1", "more": 1}, {"prompt": "say w2"}])
    assert PromptList.read(rows).digest == found.digest
    for content, message in (
            (b"\n", "has no prompt that can be used"), (drift_prompts()[3].encode(), "has no prompt that can be used"),
            (b"caf\xe9\n", "cannot be read as UTF-8 text")):
        text.write_bytes(content)
        with pytest.raises(InputError, match=message):
            PromptList.read(text)
    write_rows(rows, [{"prompt": "w1"}, {"question": "w2"}])
    with pytest.raises(InputError, match=r'prompts.jsonl:2: it has no text under the key "prompt"'):
        PromptList.read(rows)
    with pytest.raises(InputError, match="there is no file"):
        PromptList.read(tmp_path / "none.txt")


@pytest.mark.parametrize(("replay", "message"), [
    ("base:", "'base:' is no number of answers; write base:N"), ("base:0", "no number of answers"),
    ("base:x:file", "no number of answers"), ("base:" + "9" * 5000, "no number of answers"),
    ({"data": "base:10", "share": 0.2}, r"`share` \(--replay-share\) does not go with base:10"),
    ({"data": "other.jsonl"}, "`share` is missing"),
    ({"data": {"file": "base:10", "dedup": "none"}}, "`dedup` is for a file of data and has no effect on base:10"),
])
def test_a_wrong_replay_is_one_line(replay: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ReplaySpec.model_validate(replay)


def test_a_study_takes_the_file_of_prompts_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "new.jsonl").write_text("{}\n")
    raw = {"study": "s", "bases": {"b": {"model": "m"}}, "tasks": [{"name": "hellaswag"}], "matrix": {
        "base": "b", "data": "new.jsonl", "seed": [0, 1],
        "replay": [None, "base:5", "base:7:p.txt", {"data": "new.jsonl", "share": 0.5}]}}
    study = Study.parse(raw, where="study.yaml", folder=tmp_path)
    assert list(study.tunings)[:4] == ["s0-replaynone", "s0-replaybase-5", "s0-replaybase-7-p.txt", "s0-replaynew-0.5"]
    replays = [t.replay for t in study.tunings.values()][:4]
    assert [None if r is None else r.base and (r.base.count, r.base.file) for r in replays] == [
        None, (5, None), (7, tmp_path / "p.txt"), None]
    with pytest.raises(InputError, match=r"replay.data.file` is .*p.txt, but there is no such file"):
        study.check_files()
    (tmp_path / "p.txt").write_text("w1\n")
    study.check_files()


# --- What is left out ---


@pytest.mark.parametrize(("text", "finish", "reason"), [
    (" \n", "eos", "empty"),
    ("A good answer.", "length", "unfinished"),
    ("A good answer.", "eos", ""),
    ("It is a big part of the world. " * 4, "eos", "loops"),
    ("1. A map is a map.\n2. A map is a map.\n3. A map is a map.", "stop", "loops"),
    ("def f(x):\n    return x + 1\n\nprint(f(1))\nprint(f(2))", "eos", ""),
    ("\u8fd9\u662f\u4e00\u4e2a\u5f88\u597d\u7684\u7b54\u6848\u6ca1\u6709\u91cd\u590d", "eos", ""),
    ("\u8fd9\u662f\u540c\u6837\u7684\u4e00\u53e5\u8bdd\u3002" * 6, "eos", "loops"),
    ("no no no", "eos", ""),
])
def test_empty_endless_and_repeating_answers_are_left_out(text: str, finish: str, reason: str) -> None:
    assert left_out(text, finish) == reason


def test_the_repeated_share_is_that_of_groups_of_words() -> None:
    assert repeated_share("a b c d e f a b c d e") == pytest.approx(2 / 8)
    assert repeated_share("") == repeated_share("a b c") == 0.0


# --- The store ---


def test_a_damaged_chunk_is_not_taken(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path / "a" / "b.jsonl", "key")
    for start in (0, 2):
        store.add(start, [{"text": f"w{start}", "finish": "eos"}, {"text": "w9", "finish": "eos"}])
    again = AnswerStore(store.path, "key")
    assert again.chunks == store.chunks
    assert AnswerStore(store.path, "another").chunks == {}
    store.path.write_text(store.path.read_text().replace("w2", "w3"))
    assert AnswerStore(store.path, "key").chunks.keys() == {0}
    store.path.write_bytes(store.path.read_bytes()[:-20] + b"\xff\x00[" + b"\n3\n[]\n{}")
    assert AnswerStore(store.path, "key").chunks.keys() == {0}
    store.path.write_bytes(b"[" * 100_000)
    assert AnswerStore(store.path, "key").chunks == {}


# --- The base's answers ---


def test_the_answers_are_seeded_nested_stored_and_reused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Any, ...]] = []
    many = writer(place, "store", 45, lambda *p: told.append(p)).examples(lambda _: True)
    assert len(many.examples) == 45
    assert [t[0] for t in told] == sorted(t[0] for t in told)
    assert told[-1][:2] == (45, 45), "progress counts the answers that are kept"
    assert many.counts["rows"] == sum(many.counts.values()) - many.counts["rows"]
    assert many.counts["rows"] > CHUNK, "several chunks"
    assert all(e.turns[0][1] in PROMPTS and e.completion for e in many.examples)
    assert many.settings["temperature"] == 1.0
    assert len({e.completion for e in many.examples}) > 10, "sampled"
    monkeypatch.setattr("aftertune.tuning.base_answers._Generator", None)  # from here on the store answers
    few = writer(place, "store", 20).examples(lambda _: True)
    assert few.examples == many.examples[:20]
    refused = many.examples[0].turns
    others = writer(place, "store", 20).examples(lambda e: e.turns != refused)
    assert others.counts["set_aside"] >= 1
    assert others.examples[0] == many.examples[1]
    with pytest.raises(TypeError):
        writer(place, "elsewhere", 20).examples(lambda _: True)


def test_a_writing_that_was_killed_goes_on_with_the_same_answers(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = writer(place, "whole", 45).examples(lambda _: True)

    def die(done: int, *_: Any) -> None:
        if done == CHUNK - 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writer(place, "killed", 45, die).examples(lambda _: True)
    [path] = (place / "killed").glob("*.jsonl")
    kept = path.read_bytes()
    assert kept
    resumed = writer(place, "killed", 45).examples(lambda _: True)
    assert resumed.examples == whole.examples
    assert path.read_bytes().startswith(kept)
    [other] = (place / "whole").glob("*.jsonl")
    assert path.read_bytes() == other.read_bytes()


def test_a_prompt_is_answered_again_where_there_are_few_and_too_few_is_one_line(
        place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aftertune.tuning.base_answers.TOKENS", 40)
    (place / "few.txt").write_text("w1\nw2\nw3\n")
    few = BaseAnswers(spec(place, "unused", f"base:9:{place / 'few.txt'}"), place / "few", lambda *_: None)
    found = few.examples(lambda _: True)
    assert len({e.turns for e in found.examples}) == 3
    assert len(found.examples) == len({(e.turns, e.completion) for e in found.examples}) > 3
    with pytest.raises(InputError, match=r"--replay base:13: 3 prompts can have 12 answers at most \(4 each\)"):
        BaseAnswers(spec(place, "unused", f"base:13:{place / 'few.txt'}"), place / "few", lambda *_: None)


def test_a_base_that_never_ends_its_answers_is_one_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aftertune.tuning.base_answers.TOKENS", 1)
    (place / "few.txt").write_text("w1\nw2\n")
    never = BaseAnswers(spec(place, "unused", f"base:3:{place / 'few.txt'}"), place / "never", lambda *_: None)
    with pytest.raises(InputError, match=r"none of the base's 8 answers can be used \(.*needs --replay FILE"):
        never.examples(lambda _: False)


def test_fewer_answers_than_wanted_is_a_note(place: Path) -> None:
    found = writer(place, "store", 300).examples(lambda _: True)
    left = {name: count for name, count in found.counts.items() if name not in ("rows", "replayed")}
    assert found.counts["rows"] == 4 * len(PROMPTS)
    assert len(found.examples) + sum(left.values()) == 4 * len(PROMPTS)
    [note] = [note for note in found.notes if note.startswith("replay: only")]
    assert f"only {len(found.examples)} of 300 answers" in note
    assert f"{left['unfinished']} without an end within 12 tokens" in note


# --- A training with them ---


def test_a_tuning_replays_the_answers_and_says_how_they_were_made(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    replayed = spec(place, "replayed", f"base:12:{place / 'prompts.txt'}", anchor="kl:0.5")
    told: list[Any] = []
    tuning = tune(replayed, progress=lambda *p: told.append(p))
    assert tuning.settings["replay_examples"] == 12
    assert tuning.settings["replay_share"] == round(12 / (12 + tuning.examples), 4)
    assert tuning.settings["replay_base"] == {
        "prompts": PromptList.read(place / "prompts.txt").digest, "answers": 12, "temperature": 1.0, "max_tokens": 12,
        "seed": 0}
    assert read_manifest(place / "replayed") == tuning
    assert tuning.counts["replay_data"]["replayed"] == tuning.counts["replay"]["rows"] == 12
    assert any("answers of the base to 12 of 80 prompts" in note for note in tuning.notes)
    assert "12 replayed" in dict(data_facts(tuning.counts, ()))["Data Rows of Replay"]
    assert (place / ".aftertune" / "replay").is_dir()
    assert any("the base answers prompts" in text for *_, text in told)
    again = tune(replayed)
    assert again == tuning
    more = tune(spec(place, "more", f"base:13:{place / 'prompts.txt'}"))
    assert more.id != tuning.id


def test_the_preview_and_the_estimate_write_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aftertune.tuning.base_answers._Generator", None)
    wanted = spec(place, "none", "base:100", max_steps=None)
    assert any("the answers of the base are not shown" in note for note in preview(wanted).notes)
    without, with_answers = (estimate_tuning(s) for s in (wanted.model_copy(update={"replay": None}), wanted))
    assert with_answers.steps == without.steps + 25
    assert with_answers.seconds > without.seconds
    assert "for 100 answers of the base" in with_answers.basis


def test_a_plan_counts_the_writing_once_for_each_base(place: Path) -> None:
    raw = {"study": "s", "bases": {"b": {"model": str(place / "base")}}, "tasks": [{"name": "hellaswag"}], "matrix": {
        "base": "b", "data": str(place / "data.jsonl"), "replay": ["base:50"], "seed": [0, 1]}}
    study = Study.parse(raw, where="s", folder=place)
    costs = Costs(study, None)
    costs.machine = Machine("cpu", "float32", 1e9)
    first, second = (costs._tuning(name).seconds for name in study.tunings)
    shape = ModelShape.of(json.loads((place / "base" / "config.json").read_text()))
    assert shape is not None
    assert first - second == pytest.approx(writing_seconds(shape, 50, costs.machine))
