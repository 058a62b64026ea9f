"""A study file that is too large, too deep or damaged is one line, at once, and with little memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from aftertune.errors import InputError, nearest, shown
from aftertune.paths import exists, expanded, is_dir, is_file
from aftertune.sources.limits import memory_limit
from aftertune.study import Study, files
from aftertune.study.files import MAX_VALUES, parse_yaml

HEAD = """study: s
bases: {tiny: {model: "x"}}
tasks:
  - {name: own, limit: 3}
"""
GOOD = HEAD + 'tunings:\n  small: {base: tiny, data: "t.jsonl", max_steps: 1}\n'


def _bomb(levels: int, width: int = 10) -> str:
    """Lists of aliases of lists: a few lines for width ** levels values."""
    lines = [f"  l0: &l0 [{', '.join(['x'] * width)}]"]
    lines += [f"  l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * width)}]" for i in range(1, levels)]
    return "x:\n" + "\n".join(lines) + "\n"


def _tuning(text: str) -> str:
    return f'{HEAD}tunings:\n  small: {{base: tiny, data: "t.jsonl", {text}}}\n'


def _matrix(text: str) -> str:
    return f"{GOOD}matrix: {{base: tiny, data: t.jsonl, {text}}}\n"


NUMBERS = "[" + ",".join(map(str, range(900))) + "]"
CASES = {
    "aliases": (GOOD + _bomb(9), "more than 50,000 values, with those that aliases repeat"),
    "aliases in a setting": (GOOD.replace("limit: 3", f"gen_kwargs: {{a: &a [x,x], b: &b {[0] * 3}}}") + _bomb(7),
                             "more than 50,000 values"),
    "an alias of itself": (GOOD + "x: &a [*a]\n", "the alias *a is inside of what it stands for"),
    "an alias of itself in a mapping": (GOOD + "x: &a {b: {c: *a}}\n", "the alias *a is inside"),
    "an alias of nothing": (GOOD + "x: *nobody\n", "undefined alias"),
    "deep lists": (GOOD + f"x: {'[' * 5000}{']' * 5000}\n", "nested deeper than 40 levels"),
    "deep mappings": (GOOD + "x: " + "{a: " * 3000 + "1" + "}" * 3000 + "\n", "nested deeper than 40 levels"),
    "many values": (GOOD + f"x: [{'1,' * (MAX_VALUES + 9)}1]\n", "more than 50,000 values"),
    "a long file": (GOOD + f"x: {'y' * 2**18}\n", "characters, but at most 262,144 are allowed"),
    "a long number": (_tuning(f"seed: {'9' * 6000}"), "it has too many digits; write plain values"),
    "a number of 4,000 digits": (_tuning(f"seed: {'9' * 4000}"), "`tunings.small.seed`"),
    "a seed that numpy refuses": (_tuning("seed: -1"), "`tunings.small.seed`"),
    "a seed of 33 bits": (_tuning(f"seed: {2**32}"), "`tunings.small.seed`"),
    "1e11 steps": (_tuning("max_steps: 100000000000"), "`tunings.small.max_steps`"),
    "a name with a space": (GOOD.replace("study: s", "study: 2001-99-99").replace("small", "a b"),
                            "a name has letters"),
    "a tag that does not fit": (GOOD.replace("study: s", "study: !!int x"), "a value or a tag cannot be read"),
    "a tag of Python": (GOOD + "x: !!python/object/apply:os.system [id]\n", "could not determine a constructor"),
    "a long key": (GOOD + f"{'k' * 900}: 1\n", "unknown key `kkk"),
    "a long value": (_tuning(f"method: {'m' * 50_000}"), "`tunings.small.method`"),
    "a matrix of 1e9": (_matrix(f"seed: {NUMBERS}, learning_rate: {NUMBERS}, batch_size: {NUMBERS}"),
                        "at most 1,000 tunings are allowed"),
    "an axis of 30,000": (_matrix(f"seed: [{','.join(map(str, range(30_000)))}]"),
                          "a list in `matrix` has more than 1,000 values"),
    "an include of 1e6": (_matrix(f"seed: [1, 2], include: [{{epochs: {NUMBERS}, batch_size: {NUMBERS}}}]"),
                          "at most 1,000 tunings are allowed"),
    "a field of a number": (_matrix("lora: 1.5, lora.r: [2, 4]"), "`matrix` sets lora.r, but lora is 1.5"),
    "tunings beside a matrix are a text": (f"{HEAD}tunings: x\nmatrix: {{base: tiny, data: t.jsonl, seed: [0, 1]}}\n",
                                           "`tunings`: a mapping of names to tunings, found 'x'"),
    "no matrix": (GOOD + f"matrix: {'m' * 9000}\n", "`matrix`: a mapping of axes"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_study_is_one_short_line(case: str, tmp_path: Path) -> None:
    text, expected = CASES[case]
    (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
    with memory_limit(100 * 2**20), pytest.raises(InputError) as caught:
        Study.load(tmp_path / "study.yaml")
    message = str(caught.value)
    assert expected in message
    assert len(message) < 1000
    assert "\n" not in message


def test_a_date_is_text_and_a_good_study_with_aliases_is_read(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(GOOD.replace("study: s", "study: 2001-99-99"), encoding="utf-8")
    assert Study.load(path).study == "2001-99-99"
    assert parse_yaml("a: &a [1, 2]\nb: [*a, *a]\nc: 2026-11-29\nd: {<<: {e: 1}}", "x") == {
        "a": [1, 2], "b": [[1, 2], [1, 2]], "c": "2026-11-29", "d": {"e": 1}}


@pytest.mark.parametrize("name", ["n" * 5000 + ".jsonl", "~nobody/x.jsonl", "a\\0b.jsonl"])
def test_a_name_that_no_file_can_have_is_that_of_no_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(GOOD.replace("t.jsonl", name), encoding="utf-8")
    with pytest.raises(InputError, match=r"no such file|null|\\0"):
        Study.load(tmp_path / "study.yaml").check_files()
    path = expanded(name.replace("\\0", "\0"))
    assert not exists(path)
    assert not is_file(path)
    assert not is_dir(path)


def test_a_long_axis_is_refused_before_the_rest_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    add = files._Open.add
    monkeypatch.setattr(files._Open, "add", lambda node, event: (seen.append(event), add(node, event)))
    numbers = ",".join(map(str, range(3000)))
    for text in (_matrix(f"seed: [{numbers}]"), f"x: &a [1]\ny: *a\n{_matrix(f'exclude: [{numbers}]')}"):
        seen.clear()
        with pytest.raises(InputError, match="a list in `matrix` has more than 1,000 values"):
            parse_yaml(text, tmp_path / "study.yaml")
        assert len(seen) < 1100
    assert len(parse_yaml(f"tasks: [{numbers}]\nmatrix: {{seed: [0, 1]}}", "x")["tasks"]) == 3000


def test_a_change_with_a_bomb_is_text(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(GOOD, encoding="utf-8")
    with pytest.raises(InputError, match=r"--set tasks\.own\.limit"):
        Study.load(path, [f"tasks.own.limit={'[' * 9000}"])


def test_a_value_in_a_message_is_short() -> None:
    assert shown("abc") == "'abc'"
    assert shown([1, 2]) == "[1, 2]"
    assert len(shown("x" * 10**6)) <= 100
    assert len(shown(dict.fromkeys(range(1000), "y" * 100))) <= 102
    assert shown(10**5000) == "a number of thousands of digits"
    assert nearest("x" * 10**6, ["limit"]) == ""
    assert nearest("limt", ["limit"]) == " (did you mean 'limit'?)"


def test_a_file_is_scanned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size is checked in the pass that reads it: a file of the largest size takes a second of processor time."""
    from ruamel.yaml.scanner import Scanner

    begun: list[int] = []  # one for each plain text
    real = Scanner.fetch_plain
    monkeypatch.setattr(Scanner, "fetch_plain", lambda self: begun.append(1) or real(self))
    assert parse_yaml("a: [1, {b: c}]", "x") == {"a": [1, {"b": "c"}]}
    assert len(begun) == 4
