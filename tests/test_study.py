"""A study file is read strictly: each mistake is one line with file, field, finding and the nearest name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from aftertune.errors import InputError
from aftertune.study import EvalSpec, Study, TaskSpec, parse_memory
from aftertune.values import Margin

WHOLE = """\
study: orders
margin: 5
bases:
  smollm2: {model: "package:llm/SmolLM2.gguf"}
  gpt2: {model: gpt2, revision: main}
tasks:
  - {name: hellaswag, sample: 300, margin: 3}
  - {name: gsm8k, data: data/gsm8k.jsonl, limit: 8, only: [smollm2, careful]}
  - {name: orders, target: {file: test.jsonl, shots_file: ../shots.jsonl, match: json}}
tunings:
  careful: {base: smollm2, data: {file: train.jsonl, held_out_file: /elsewhere/held.jsonl}, lora: {r: 8}}
  careless: {base: smollm2, method: full, data: {file: train.jsonl}, learning_rate: 1e-3}
"""
SMALL = """\
study: s
bases:
  small: {model: gpt2}
tasks:
  - {name: piqa}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    return folder / "study.yaml"


def refused(file: Path, text: str) -> str:
    """The message with which a study of this text is refused, without the file's name that opens it."""
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        Study.load(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message.removeprefix(f"{file}: ")


def read(file: Path, text: str) -> Study:
    file.write_text(text, encoding="utf-8")
    return Study.load(file)


def test_a_whole_study_is_read(file: Path) -> None:
    study = read(file, WHOLE)
    assert (study.study, list(study.bases), list(study.tunings)) == (
        "orders", ["smollm2", "gpt2"], ["careful", "careless"])
    assert study.bases["gpt2"].revision == "main"
    assert study.margins() == {"*": Margin(0.05), "hellaswag": Margin(0.03, 3), "gsm8k": Margin(0.05),
                               "orders": Margin(0.05)}
    assert study.tunings["careless"].learning_rate == 0.001
    assert study.tunings["careful"].lora.r == 8
    spec = study.tunings["careful"].spec(study.bases["smollm2"], name="careful", dtype="float32", device="cpu",
                                         out=Path("out"))
    assert (spec.model, spec.name, spec.lora, spec.data) == (
        "package:llm/SmolLM2.gguf", "careful", study.tunings["careful"].lora, study.tunings["careful"].data)


REPLAYED = "tunings:\n  t: {base: small, data: new.jsonl, replay: {data: old.jsonl, share: 0.2}}\n"


def test_a_file_stands_for_a_data_source_and_is_anchored(file: Path) -> None:
    tuning = read(file, SMALL + REPLAYED).tunings["t"]
    assert tuning.replay is not None
    assert (tuning.data.file, tuning.replay.data.file) == (file.parent / "new.jsonl", file.parent / "old.jsonl")
    assert tuning.replay.share == 0.2


@pytest.mark.parametrize(("old", "new", "told"), [
    ("share: 0.2", "share: 1", "`tunings.t.replay.share`: Input should be less than 1, found 1"),
    ("share: 0.2", "share: 0", "`tunings.t.replay.share`: Input should be greater than 0, found 0"),
    ("data: old.jsonl, ", "", "`tunings.t.replay.data` is missing: "),
    ("data: old.jsonl", "data: {file: old.jsonl, held_out: 0.1}",
     "unknown key `tunings.t.replay.data.held_out` (a key of `tunings.NAME.data`); known keys here: dedup, encoding"),
    ("share:", "shares: 1, share:", "unknown key `tunings.t.replay.shares` (did you mean 'share'?)"),
])
def test_bad_replay_is_refused(file: Path, old: str, new: str, told: str) -> None:
    assert refused(file, SMALL + REPLAYED.replace(old, new)).startswith(told)


# Unknown keys

@pytest.mark.parametrize(("old", "new", "key", "near"), [
    ("margin: 5", "margn: 5", "margn", "margin"),
    ("tunings:", "tuning:", "tuning", "tunings"),
    ("sample: 300", "sampel: 300", "tasks.0.sampel", "sample"),
    ("limit: 8", "limits: 8", "tasks.1.limits", "limit"),
    ("match: json", "matches: json", "tasks.2.target.matches", "match"),
    ("revision: main", "revison: main", "bases.gpt2.revison", "revision"),
    ("learning_rate:", "learningrate:", "tunings.careless.learningrate", "learning_rate"),
    ("held_out_file:", "heldout_file:", "tunings.careful.data.heldout_file", "held_out_file"),
    ("{r: 8}", "{aplha: 8}", "tunings.careful.lora.aplha", "alpha"),
])
def test_an_unknown_key_is_refused_with_the_nearest(file: Path, old: str, new: str, key: str, near: str) -> None:
    assert WHOLE.count(old) == 1
    message = refused(file, WHOLE.replace(old, new))
    assert message.startswith(f"unknown key `{key}` (did you mean '{near}'")
    assert "; known keys here: " in message
    assert "at least 1 item" not in message  # a refused part does not also count as missing


@pytest.mark.parametrize("name", ["data", "lora", "target", "tasks"])
def test_a_base_or_tuning_may_be_named_like_a_key(file: Path, name: str) -> None:
    mistyped = refused(file, SMALL.replace("small: {model: gpt2}", f"{name}: {{model: gpt2, revison: main}}"))
    assert mistyped == (f"unknown key `bases.{name}.revison` (did you mean 'revision'?); "
                        "known keys here: model, quantize, revision, tokenizer, trust_remote_code")
    tuning = f"tunings:\n  {name}: {{base: small, data: {{file: a.jsonl}}, epoch: 2}}\n"
    assert f"unknown key `tunings.{name}.epoch` (did you mean 'epochs'?)" in refused(file, SMALL + tuning)


# YAML

@pytest.mark.parametrize(("text", "key", "first", "again"), [
    (SMALL + "study: t\n", "study", 1, 6),
    (SMALL + "margin: 1\nmargin: 2\n", "margin", 6, 7),
    (SMALL + "margin: 1\n'margin': 2\n", "margin", 6, 7),
    (SMALL.replace("{model: gpt2}", "{model: gpt2, model: gpt3}"), "model", 3, 3),
    (SMALL.replace("  small: {model: gpt2}", "  small: {model: gpt2}\n  small: {model: gpt3}"), "small", 3, 4),
])
def test_a_key_that_occurs_twice_is_refused(file: Path, text: str, key: str, first: int, again: int) -> None:
    assert refused(file, text) == (f"not valid YAML: line {again}: the key {key!r} occurs twice, first on "
                                   f"line {first}; remove one of the two")


@pytest.mark.parametrize("value", [
    "!!python/object/apply:os.mkdir ['{}']", "!!python/object/new:pathlib.Path ['{}']",
    "!!python/name:os.system", "!!python/module:os", "!call 3"])
def test_a_tag_that_would_build_an_object_is_refused_and_not_run(file: Path, value: str) -> None:
    made = file.parent / "made"
    message = refused(file, SMALL + f"margin: {value.format(made)}\n")
    assert "could not determine a constructor for the tag" in message
    assert "line 6" in message
    assert not made.exists()


def test_a_tag_in_a_comment_or_a_string_is_text(file: Path) -> None:
    study = read(file, SMALL.replace("gpt2", '"!!python/name:os.system"') + "# !!python/module:os\n")
    assert study.bases["small"].model == "!!python/name:os.system"


@pytest.mark.parametrize(("text", "told"), [
    ("", "a study is a mapping with the keys study, bases, tasks, tunings; found NoneType"),
    ("- piqa\n", "found list"), ("study: [\n", "not valid YAML"), (SMALL + "---\n" + SMALL, "not valid YAML"),
    ("study: s\n", "`bases` is missing: Base models, by name; `tasks` is missing: Tasks to evaluate")])
def test_what_is_no_study_is_refused(file: Path, text: str, told: str) -> None:
    assert told in refused(file, text)


def test_a_file_that_is_absent_or_not_utf8_is_refused(file: Path) -> None:
    with pytest.raises(InputError, match=r"study\.yaml: no such study file"):
        Study.load(file)
    file.write_bytes(b"study: caf\xe9\n")
    with pytest.raises(InputError, match=r"byte 10 is not UTF-8; save the file as UTF-8"):
        Study.load(file)
    file.write_bytes(b"\xef\xbb\xbf" + SMALL.encode())  # Windows editors put a mark first
    assert Study.load(file).study == "s"


# Values

@pytest.mark.parametrize("margin", ["0", "-1", "0.0", "100.5", ".nan", ".inf", "small", "null"])
def test_a_margin_is_above_0_and_at_most_100(file: Path, margin: str) -> None:
    assert refused(file, SMALL + f"margin: {margin}\n").startswith("`margin`: Input should be ")
    task = SMALL.replace("{name: piqa}", f"{{name: piqa, margin: {margin}}}")
    if margin == "null":
        assert read(file, task).margins() == {"*": Margin(0.02), "piqa": Margin(0.02)}
    else:
        own = "`tasks.0`: `margin` of piqa is 100.5; its metric is a share"  # in its own unit a margin may exceed 100
        assert refused(file, task).startswith(own if margin == "100.5" else "`tasks.0.margin`: Input should be ")


def test_the_refusal_of_margin_0_shows_what_was_found(file: Path) -> None:
    assert refused(file, SMALL + "margin: 0\n") == "`margin`: Input should be greater than 0, found 0"
    assert read(file, SMALL + "margin: 100\n").margin == 100
    assert read(file, SMALL + "margin: 0.01\n").margins() == {"*": Margin(0.0001), "piqa": Margin(0.0001)}


def test_limit_and_sample_exclude_each_other(file: Path) -> None:
    both = refused(file, SMALL.replace("{name: piqa}", "{name: piqa, limit: 3, sample: 3}"))
    assert both == "`tasks.0`: `limit` (the first N) and `sample` (a random N) cannot be set together"
    with pytest.raises(ValueError, match="cannot be set together"):
        TaskSpec(name="piqa", limit=3, sample=3)
    for one in ("limit", "sample"):
        assert getattr(read(file, SMALL.replace("piqa}", f"piqa, {one}: 3}}")).tasks[0], one) == 3
        for wrong in ("0", "-3", "2.5", "all"):
            told = refused(file, SMALL.replace("piqa}", f"piqa, {one}: {wrong}}}"))
            assert told.startswith(f"`tasks.0.{one}`: ")
            assert f"found {wrong}" in told or f"found {wrong!r}" in told


@pytest.mark.parametrize(("target", "fine"), [
    ("match: regex", False), ("pattern: a", False), ("match: json, pattern: a", False),
    ("match: regex, pattern: a", True), ("match: exact", True), ("match: fuzzy", False)])
def test_a_pattern_goes_with_regex_alone(file: Path, target: str, fine: bool) -> None:
    text = SMALL.replace("piqa}", f"piqa, target: {{file: a.jsonl, {target}}}}}")
    if fine:
        assert read(file, text).tasks[0].target is not None
    else:
        assert refused(file, text).startswith("`tasks.0.target")


# Names

def test_a_mistyped_base_is_refused_with_the_nearest(file: Path) -> None:
    message = refused(file, WHOLE.replace("careful: {base: smollm2", "careful: {base: smolm2"))
    assert message == ("`study`: tunings.careful.base is 'smolm2', which is not among the bases (smollm2, gpt2) "
                       "(did you mean 'smollm2'?)")


def test_a_mistyped_name_in_only_is_refused_with_the_nearest(file: Path) -> None:
    message = refused(file, WHOLE.replace("only: [smollm2, careful]", "only: [smollm2, carefull]"))
    assert message == ("`study`: tasks.gsm8k.only names 'carefull', which is neither a base nor a tuning "
                       "(did you mean 'careful', 'careless'?)")


def test_a_tuning_needs_a_name_of_its_own(file: Path) -> None:
    message = refused(file, SMALL + "tunings:\n  small: {base: small, data: {file: a.jsonl}}\n")
    assert "'small' names both a base and a tuning" in message


@pytest.mark.parametrize("name", ["a b", "../a", "-a", "a/b", "é", "a" * 81])
def test_a_name_is_fit_for_a_file_and_a_flag(file: Path, name: str) -> None:
    for text in (SMALL.replace("study: s", f"study: '{name}'"), SMALL.replace("small:", f"'{name}':")):
        message = refused(file, text)
        assert "a name has letters, digits and . _ @ + -" in message or "at most 80 characters" in message


# Paths

def test_relative_paths_are_taken_from_the_folder_of_the_file(
        file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, folder = read(file, WHOLE), file.parent.resolve()
    target = study.tasks[2].target
    assert study.tasks[1].data == folder / "data/gsm8k.jsonl"
    assert target is not None
    assert (target.file, target.shots_file) == (folder / "test.jsonl", folder / "../shots.jsonl")
    assert study.tunings["careful"].data.file == folder / "train.jsonl"
    assert study.tunings["careful"].data.held_out_file == Path("/elsewhere/held.jsonl")
    assert study.tunings["careless"].data.held_out_file is None
    assert (study.tasks[0].data, study.tasks[0].target) == (None, None)
    monkeypatch.chdir(file.parent)
    here = Study.load("study.yaml")
    monkeypatch.chdir("/")
    assert here == study  # and it still points there after the process has moved
    assert here.hash == study.hash


def test_parse_anchors_what_a_caller_has_read(tmp_path: Path) -> None:
    raw: dict[str, Any] = {"study": "s", "bases": {"a": {"model": "gpt2"}},
                           "tasks": [{"name": "piqa", "data": "a.jsonl"}]}
    assert Study.parse(raw, where="notebook", folder=tmp_path).tasks[0].data == tmp_path / "a.jsonl"
    with pytest.raises(InputError, match=r"^notebook: unknown key `margn`"):
        Study.parse({**raw, "margn": 1}, where="notebook", folder=tmp_path)


# Hash

def test_the_hash_is_of_the_content_not_of_the_form(file: Path) -> None:
    first = read(file, WHOLE).hash
    assert first == read(file, WHOLE).hash
    turned = "\n".join(["# a comment", *WHOLE.splitlines()[2:], "margin: 5.0", "study: 'orders'", ""])
    assert turned != WHOLE
    assert read(file, turned).hash == first
    assert read(file, WHOLE + "dtype: auto\n").hash == first  # what is the default anyway
    assert read(file, WHOLE.replace("\n", "\r\n")).hash == first


def test_the_hash_is_sha256_of_the_sorted_json_with_its_defaults(file: Path) -> None:
    study = read(file, SMALL)
    later = dict.fromkeys(("enable_thinking", "think_end_token", "engine_args", "family", "primary", "until_decided",
                           "deploy"), True)  # they count where they are set
    values = json.loads(study.model_dump_json(exclude={**later, "bases": {"__all__": {"tokenizer"}},
                                                           "tasks": {"__all__": {"letters", "until_decided"}}}))
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    assert '"margin":2.0' in text
    assert study.hash == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(("old", "new"), [
    ("margin: 5", "margin: 4"), ("sample: 300", "sample: 299"), ("sample: 300", "limit: 300"),
    ("{r: 8}", "{r: 9}"), ("careless:", "careless2:"), ("test.jsonl", "test2.jsonl"), ("study: orders", "study: o")])
def test_each_change_of_content_changes_the_hash(file: Path, old: str, new: str) -> None:
    assert read(file, WHOLE).hash != read(file, WHOLE.replace(old, new, 1)).hash


def test_a_study_cannot_be_changed(file: Path) -> None:
    study = read(file, SMALL)
    with pytest.raises(ValueError, match="frozen"):
        study.margin = 3
    with pytest.raises(ValueError, match="frozen"):
        study.tasks[0].limit = 3


def test_an_absent_data_file_is_refused_before_anything_runs(file: Path) -> None:
    study = read(file, SMALL + "tunings:\n  t: {base: small, data: {file: orders_tain.jsonl}}\n")
    (file.parent / "orders_train.jsonl").touch()
    with pytest.raises(InputError, match=r"`tunings\.t\.data\.file` is .*tain\.jsonl.*mean 'orders_train\.jsonl'"):
        study.check_files()
    (file.parent / "orders_tain.jsonl").touch()
    study.check_files()


def test_a_data_set_of_the_hub_keeps_its_name(file: Path) -> None:
    text = SMALL + "tunings:\n  t: {base: small, data: alpaca, replay: {data: some/other-v1.5, share: 0.2}}\n"
    study = read(file, text)
    tuning = study.tunings["t"]
    assert tuning.replay is not None
    assert (tuning.data.file, tuning.replay.data.file) == (Path("alpaca"), Path("some/other-v1.5"))
    study.check_files()
    (file.parent / "alpaca").mkdir()
    assert read(file, text).tunings["t"].data.file == file.parent / "alpaca"


def test_an_unknown_engine_is_refused(file: Path) -> None:
    assert refused(file, SMALL + "engine: pakced\n") == (
        "`engine`: Input should be packed, plain, llamacpp, openai:URL or lm-eval:NAME, found 'pakced'")
    assert read(file, SMALL + "engine: lm-eval:hf\n").engine == "lm-eval:hf"


@pytest.mark.parametrize(("text", "size"), [("8GiB", 8 * 2**30), ("500MB", 500 * 10**6), ("1000000", 10**6),
                                            (" 1.5 gb ", 1_500_000_000), ("64k", 64_000), ("2ki", 2048)])
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "many", "-1GB", "8 TB", "1e9", "GiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_memory(text)
    with pytest.raises(ValueError, match="is not a size"):
        EvalSpec(model="m", tasks=(TaskSpec(name="t"),), memory=text)


WATCHED = """
study: s
bases: {b: {model: m}}
tasks:
  - {name: orders, target: {file: test.jsonl, match: json, cluster: origin, max_tokens: 9}}
  - {name: shown, num_fewshot: 1, target: {file: test.jsonl, shots_file: shots.jsonl}}
tunings:
  t: {base: b, data: rows.jsonl, keep_best: "NAME, no loss > 2 on piqa", watch: {tasks: {piqa: 9}, target: TARGET}}
"""


@pytest.mark.parametrize(("target", "items"), [
    ("orders", None), ("{name: orders}", None), ("{name: orders, items: 5}", 5)])
def test_a_watch_may_name_a_target_task_of_the_study(file: Path, target: str, items: int | None) -> None:
    named = read(file, WATCHED.replace("TARGET", target).replace("NAME", "orders"))
    rows = f"{{name: orders, file: test.jsonl, match: json, cluster: origin, max_tokens: 9, items: {items or 'null'}}}"
    assert named == read(file, WATCHED.replace("TARGET", rows).replace("NAME", "orders"))
    watch = named.tunings["t"].watch
    assert watch is not None
    assert watch.target is not None
    assert watch.target.file == file.parent / "test.jsonl"


def test_a_watched_target_may_still_be_a_file_and_one_with_examples_is_refused(file: Path) -> None:
    watch = read(file, WATCHED.replace("TARGET", "other.jsonl").replace("NAME", "other")).tunings["t"].watch
    assert watch is not None
    assert watch.target is not None
    assert (watch.target.name, watch.target.file) == ("other", file.parent / "other.jsonl")
    assert "`study`: tunings.t.watch.target names 'shown', which shows examples" in refused(
        file, WATCHED.replace("TARGET", "shown").replace("NAME", "shown"))
