"""Bad tasks, data and comparisons, numbered as in the list of bad inputs (44 to 54): each gives its answer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from aftertune.ledger import Ledger
from aftertune.study import TaskSpec
from aftertune.tasks import LoadOptions, answer_warnings, load, score_responses, scoring
from aftertune.values import Response
from cli_cases import call, settle
from eval_cases import byte_folder

pytestmark = pytest.mark.filterwarnings("ignore")
HEAD = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}, cache_dir: "{cache}"}}
test_split: test
doc_to_text: q
"""
CHOICE = "output_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: gold\n"
TEXT = "output_type: generate_until\ndoc_to_target: gold\ngeneration_kwargs: {until: ['.'], max_gen_toks: 4}\n"
NORMED = "metric_list: [{metric: acc}, {metric: acc_norm}]\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models, one of them with a short window, and tasks of somebody else."""
    root = tmp_path_factory.mktemp("bad")
    byte_folder(root / "byte")
    byte_folder(root / "short", window=64)
    rows = {"ok": [{"q": f"item {i}", "choices": ["a", "b"], "gold": i % 2} for i in range(6)],
            "void": [{"q": "x", "choices": ["a", "b"], "gold": 1}, {"q": "y", "choices": [], "gold": 0}],
            "blank": [{"q": "x", "choices": ["a", "b"], "gold": 1}, {"q": "y", "choices": ["a", ""], "gold": 0}],
            "beyond": [{"q": "x", "choices": ["a", "b"], "gold": 1}, {"q": "y", "choices": ["a", "b"], "gold": 5}],
            "twice": [{"q": q, "choices": ["a", "b"], "gold": 1} for q in "xxxy"],
            "slow": [{"q": f"q{i}", "gold": "b"} for i in range(3)]}
    folder = root / "tasks"
    folder.mkdir()
    for name, found in rows.items():
        data = root / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in found))
        kind = TEXT + SLOW if name == "slow" else CHOICE + NORMED
        (folder / f"{name}.yaml").write_text(HEAD.format(name=name, data=data, cache=root / "cache" / name) + kind)
    return root


SLOW = """filter_list:
  - {name: get, filter: [{function: regex, regex_pattern: "(a+)+c"}, {function: take_first}]}
metric_list: [{metric: exact_match}]
"""
EVAL = "eval byte --include-path tasks --tasks"
#: number, command -> exit code, and what its line must say.
REFUSED: dict[str, tuple[int, tuple[str, ...]]] = {
    "44 eval byte --tasks helaswag,arc_easy": (2, ("'helaswag'", "did you mean 'hellaswag'")),
    "44 eval byte --tasks arc_easy,hellaswg_*": (2, ("no task matches 'hellaswg_*'", "did you mean 'hellaswag'")),
    f"45 {EVAL} void": (2, ("'void'", "item 1", "no choices")),
    f"45 {EVAL} blank": (2, ("'blank'", "item 1", "empty")),
    f"45 {EVAL} beyond": (2, ("'beyond'", "item 1", "5")),
    f"47 {EVAL} ok --num-fewshot 9": (2, ("num_fewshot is 9", "6 examples to draw from", "at most (--num-fewshot)")),
}


@pytest.mark.parametrize("words", REFUSED, ids=lambda w: w.partition(" ")[0])
def test_it_is_refused_in_one_line_before_a_run_begins(words: str, place: Path, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch,
                                                       capfd: pytest.CaptureFixture[str]) -> None:
    code, said = REFUSED[words]
    settle(monkeypatch, place)
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(tmp_path / "l.db"))
    assert call(monkeypatch, *words.split()[1:]) == code
    last = capfd.readouterr().err.rstrip().rpartition("\n")[2]
    assert last.startswith("aftertune: ")
    assert [text for text in said if text not in last] == []
    if (tmp_path / "l.db").exists():
        with Ledger(tmp_path / "l.db") as ledger:
            assert ledger.evaluations() == []


def _eval(patch: pytest.MonkeyPatch, words: str, name: str) -> None:
    assert call(patch, "eval", *words.split(), "--name", name) == 0


def _shown(patch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *words: str) -> str:
    capfd.readouterr()
    assert call(patch, *words) == 0
    return " ".join(capfd.readouterr().out.split())


def cut_contexts(patch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    _eval(patch, "short --tasks arc_easy --limit 3", "short")
    shown = _shown(patch, capfd, "show", "short")
    assert re.search(r"arc_easy: \d+ contexts did not fit into the context window and were truncated", shown)
    with Ledger() as ledger:
        answers = ledger.answers(ledger.find_evaluation("short").id)
    assert any(r.truncated for a in answers for r in a.responses)


def repeated_documents(patch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    _eval(patch, "byte --include-path tasks --tasks twice", "twice")
    assert "twice: 2 of 4 items repeat the document of an earlier item" in _shown(patch, capfd, "show", "twice")


def slow_pattern(patch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    patch.setattr(scoring, "ANSWER_TIMEOUT", 0.2)
    (one,) = load((TaskSpec(name="slow"),), LoadOptions(include_path=Path("tasks")))
    texts = ["aac", "a" * 64 + "b", "aac"]
    responses = {r.position: Response(text=text, tokens=1, finish="stop")
                 for r, text in zip(one.requests, texts, strict=True)}
    answers, _, scores = score_responses((one,), responses)
    assert [a.extracted["get"] == "[out of time]" for a in answers] == [False, True, False]
    assert [s.n for s in scores] == [3]
    [warning] = answer_warnings((one,), responses, answers)
    assert "slow: the task's filters took more than 0.2 s on each of 1 of 3 answers" in warning


def nothing_to_extract(patch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    words = "byte --tasks gsm8k_cot --limit 2 --gen-kwargs max_gen_toks=4 --memory 1GB"
    _eval(patch, words, "mute")
    shown = _shown(patch, capfd, "show", "mute")
    assert "gsm8k_cot: 2 of 2 texts (100 %) have no extractable answer" in shown
    assert "0.00%" in shown


def a_part(patch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    _eval(patch, "byte --include-path tasks --tasks ok --limit 2", "two")
    assert "ok (2 of 6)" in _shown(patch, capfd, "runs")
    assert "of 6" in _shown(patch, capfd, "show", "two")
    assert "n=2 of 6" in _shown(patch, capfd, "record", "--only", "two", "--out", "-")


def other_settings(patch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    _eval(patch, "byte --include-path tasks --tasks ok", "zero")
    _eval(patch, "byte --include-path tasks --tasks ok --num-fewshot 1", "one")
    assert call(patch, "compare", "zero", "one") == 3
    assert "ok.num_fewshot (0 | 1)" in capfd.readouterr().err
    assert "FORCED COMPARISON" in _shown(patch, capfd, "compare", "zero", "one", "--force")


def other_items(patch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    _eval(patch, "byte --include-path tasks --tasks ok --limit 2", "two")
    _eval(patch, "byte --include-path tasks --tasks ok --limit 4", "four")
    assert call(patch, "compare", "two", "four") == 3
    assert "--common" in capfd.readouterr().err
    rows = json.loads(_shown(patch, capfd, "compare", "two", "four", "--common", "--json"))["rows"]
    assert {row["n"] for row in rows} == {2}


def no_variance(patch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    _eval(patch, "byte --include-path tasks --tasks ok --limit 1 --dtype bfloat16", "a")
    _eval(patch, "byte --include-path tasks --tasks ok --limit 1 --dtype float32", "b")
    shown = _shown(patch, capfd, "compare", "a", "b", "--json")
    assert "NaN" not in shown
    row = json.loads(shown)["rows"][0]
    assert row["ci"][0] <= row["delta"] <= row["ci"][1]


ANSWERED: dict[int, Callable[..., None]] = {
    46: cut_contexts, 48: repeated_documents, 49: slow_pattern, 50: nothing_to_extract, 51: a_part, 52: other_settings,
    53: other_items, 54: no_variance}


@pytest.mark.parametrize("number", ANSWERED)
def test_it_is_answered_and_told(number: int, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                 capfd: pytest.CaptureFixture[str]) -> None:
    settle(monkeypatch, place)
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(tmp_path / "l.db"))
    monkeypatch.setenv("COLUMNS", "200")
    ANSWERED[number](monkeypatch, capfd)


def test_every_number_has_its_case() -> None:
    assert {int(w.partition(" ")[0]) for w in REFUSED} | set(ANSWERED) == set(range(44, 55))
