"""A task of one's own without a study: `eval --target`, its scorers, slices and examples, and what is made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import aftertune
from aftertune.comparison import compare
from aftertune.errors import InputError
from aftertune.evaluation import evaluate
from aftertune.ledger import Ledger
from aftertune.report import Results, write_page, write_record
from aftertune.study import TargetSpec, TaskSpec
from aftertune.tasks.rescoring import score_again
from cli_cases import call, one_line, settle
from eval_cases import byte_folder
from tuning_cases import write_rows

SETTINGS: dict[str, Any] = {"device": "cpu", "dtype": "float32", "threads": 1}
FIXED = ("--device", "cpu", "--dtype", "float32", "--threads", "1", "--target-tokens", "4")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    byte_folder(folder / "base", window=512)
    byte_folder(folder / "tuned", window=512, num_hidden_layers=1)
    return folder


@pytest.fixture
def place(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a held-out file, whose right answers on one slice are those of the base."""
    settle(monkeypatch, tmp_path)
    for name in ("base", "tuned"):
        (tmp_path / name).symlink_to(models / name)
    rows = [{"prompt": f"say {n}:", "completion": f"w{n}", "kind": ("red", "blue")[n % 2]} for n in range(24)]
    write_rows(tmp_path / "held.jsonl", rows)
    task = TaskSpec(name="held", target=TargetSpec(file=tmp_path / "held.jsonl", max_tokens=4))
    with Ledger(tmp_path / "first.db") as ledger:
        asked = evaluate("base", [task], ledger=ledger, **SETTINGS)
        texts = [answer.responses[0].text or "" for answer in ledger.answers(asked.id)]
    for row, text in zip(rows, texts, strict=True):
        if row["kind"] == "red" and text.strip():
            row["completion"] = text
    write_rows(tmp_path / "held.jsonl", rows)
    write_rows(tmp_path / "train.jsonl", rows[1::2])
    return tmp_path


def shown(capfd: pytest.CaptureFixture[str]) -> str:
    return " ".join(capfd.readouterr().out.split())


def test_slices_have_verdicts_of_their_own_everywhere(place: Path, monkeypatch: pytest.MonkeyPatch,
                                                      capfd: pytest.CaptureFixture[str]) -> None:
    asked = ("--target", "orders=held.jsonl", "--scorer", "exact", "--scorer", "chrf", "--slice", "kind", *FIXED)
    assert call(monkeypatch, "eval", "base", *asked, "--name", "before") == 0
    table = shown(capfd)
    assert all(name in table for name in ("orders:red", "orders:blue", "exact_match", "sentence_chrf"))
    assert call(monkeypatch, "eval", "tuned", *asked, "--name", "after", "--json") == 0
    evaluation = json.loads(capfd.readouterr().out)
    assert {s["task"] for s in evaluation["scores"]} == {"orders", "orders:red", "orders:blue"}

    assert call(monkeypatch, "compare", "before", "after", "--json") == 0
    rows = [r for r in json.loads(capfd.readouterr().out)["rows"] if r["primary"]]
    assert [r["task"] for r in rows] == ["orders", "orders:blue", "orders:red"]
    assert {r["family_size"] for r in rows} == {3}  # one family
    assert "the whole task, with errors stratified by its 2 slices" in rows[0]["note"]
    assert all(r["verdict"] and r["metric"] == "exact_match" for r in rows)
    assert call(monkeypatch, "compare", "before", "after") == 0
    table = capfd.readouterr().out
    assert all(name in table for name in ("orders:red", "orders:blue"))
    with Ledger() as ledger:
        results = Results.load(ledger)
        documents = [write_record(results, title="own"), write_page(results, title="own")]
        for settings in ledger.evaluations()[0].tasks:  # scores can be computed again without the model
            of_task = ledger.evaluations()[0].id, settings.task
            answers = ledger.answers(*of_task)
            again = score_again(settings, ledger.items(*of_task), answers)
            assert [a.metrics for a in again.answers] == [dict(a.metrics) for a in answers]
    for text in documents:
        assert "orders:red" in text
        assert "sentence_chrf" in text


def test_examples_are_a_second_task(place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
                                    ) -> None:
    words = ("eval", "base", "--target", "held.jsonl", "--target-shots", "train.jsonl=2", "--limit", "6", *FIXED)
    assert call(monkeypatch, *words) == 0
    assert "held_2shot" in shown(capfd)
    with Ledger() as ledger:
        [evaluation] = ledger.evaluations()
        assert [(t.task, t.num_fewshot, t.n, t.target) for t in evaluation.tasks] == [
            ("held", 0, 6, True), ("held_2shot", 2, 6, True)]


def test_a_function_needs_the_flag_and_is_recorded(place: Path, monkeypatch: pytest.MonkeyPatch,
                                                   capfd: pytest.CaptureFixture[str]) -> None:
    (place / "judge.py").write_text("def short(answer, reference):\n    return len(answer) <= 2 * len(reference)\n")
    words = ("eval", "base", "--target", "held.jsonl", "--limit", "4", "--scorer", "python:judge.py:short", *FIXED)
    assert call(monkeypatch, *words) == 2
    assert not one_line(capfd, ("the scorer python:judge.py:short runs Python code; read judge.py, then let "
                                "`aftertune eval` run it with --allow-task-code",))
    assert call(monkeypatch, *words, "--allow-task-code") == 0
    capfd.readouterr()
    with Ledger() as ledger:
        [evaluation] = ledger.evaluations()
        assert [*evaluation.tasks[0].code] == ["judge.py"]
        assert evaluation.scores[0].metric == "short"


def test_evaluations_by_different_scorers_do_not_compare(place: Path) -> None:
    def asked(model: str, scorer: str) -> Any:
        return aftertune.evaluate(model, target="held.jsonl", scorer=scorer, target_tokens=4, limit=6, **SETTINGS)

    first, second, third = asked("base", "regex:.+"), asked("base", "regex:."), asked("tuned", "regex:.")
    assert first.id != second.id
    assert f"its answers were taken from evaluation {first.id}, which judges them in another way" in second.warnings[-1]
    assert not any("were taken" in warning for warning in third.warnings)
    assert compare(second, third).rows
    with pytest.raises(aftertune.AftertuneError, match="scorers"):
        compare(first, third)


@pytest.mark.parametrize(("words", "said"), [
    (("--scorer", "json"), "--scorer has no effect without --target; add --target"),
    ((), "there is nothing to ask; name tasks of lm-eval"),
    (("--target", "none.jsonl"), "none.jsonl: no such target file"),
    (("--target", "held.jsonl", "--scorer", "bleu"), "'bleu' is no scorer"),
    (("--target", "held.jsonl", "--num-fewshot", "2"), "show examples with --target-shots FILE=K"),
    (("--target", "held.jsonl", "--letters"), "--letters is for tasks of lm-eval and has no effect on --target"),
    (("--target", "held.jsonl", "--target-shots", "held.jsonl=2"), "prompts would show their own answers"),
    (("--target", "held.jsonl", "--target-shots", "train.jsonl"), "write FILE=K"),
    (("--target", "held.jsonl", "--slice", "color"), "held.jsonl:1: `color`, which the task's `slice` names"),
    (("--target", "empty.jsonl"), "empty.jsonl: the target file has no rows"),
    (("--target", "held.jsonl", "--scorer", "json"), "held.jsonl:2: its completion is not JSON"),
    (("--target", "held.jsonl", "--slice", "kind", "--until-decided", "--against", "b"), "so it cannot be stopped")])
def test_a_wrong_call_is_one_line(place: Path, words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch,
                                  capfd: pytest.CaptureFixture[str]) -> None:
    (place / "empty.jsonl").write_text("\n")
    rows = [json.loads(line) for line in (place / "held.jsonl").read_text().splitlines()]
    write_rows(place / "held.jsonl", [{**rows[0], "completion": "{}"}, *rows[1:]])
    assert call(monkeypatch, "eval", "base", *words) == 2
    assert not one_line(capfd, (said,))
    assert not Path("ledger.db").exists() or not Ledger().evaluations()


@pytest.mark.parametrize(("settings", "said"), [
    ({"scorer": "json", "tasks": ["arc_easy"]}, "`scorer` has no effect without `target`"),
    ({"target": "held.jsonl", "scorer": "bleu"}, "'bleu' is no scorer"),
    ({"target": "held.jsonl", "num_fewshot": 2}, 'show examples with target_shots="FILE=K"'),
    ({}, 'or a file of your own with target="FILE"')])
def test_a_wrong_call_in_python_names_its_keywords(place: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(aftertune.InputError) as caught:
        aftertune.evaluate("base", **settings)
    assert said in str(caught.value)


@pytest.mark.parametrize("word", ["models", "full-run"])
def test_target_keeps_its_two_words_for_early_stopping(place: Path, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--target models|full-run` of --until-decided was called `--stop-target` when --target became a file."""
    from aftertune.cli import eval as verb

    seen: list[Any] = []

    def decide(helpers: Any, against: str, early: Any, *rest: Any) -> Any:
        seen.append((early.make().target, [t.target for t in helpers.spec.tasks]))
        raise InputError("enough")

    monkeypatch.setattr(verb, "_decide", decide)
    words = ["eval", "model", "--tasks", "arc_easy", "--until-decided", "--against", "base", "--target", word]
    assert call(monkeypatch, *words) == 2
    (place / word).write_text('{"question": "1", "answer": "1"}\n', encoding="utf-8")
    assert call(monkeypatch, *words) == 2  # now it is a file
    assert [target for target, _ in seen] == [word, "models"]
    assert seen[0][1] == [None]
    assert seen[1][1][0] is not None


def test_the_base_with_examples_stands_beside_the_verdict(place: Path, monkeypatch: pytest.MonkeyPatch,
                                                          capfd: pytest.CaptureFixture[str]) -> None:
    asked = ("--target", "orders=held.jsonl", *FIXED)
    assert call(monkeypatch, "eval", "base", *asked, "--target-shots", "train.jsonl=2", "--name", "before") == 0
    assert call(monkeypatch, "eval", "tuned", *asked, "--name", "after") == 0
    capfd.readouterr()
    assert call(monkeypatch, "compare", "before", "after") == 0
    table = shown(capfd)
    assert "orders: with 2 examples in the prompt before scores" in table
    with Ledger() as ledger:
        [comparison] = ledger.comparisons()
        [shot] = comparison.few_shot
        [score] = [s for s in ledger.find_evaluation("before").scores if s.task == "orders_2shot" and s.primary]
        assert (shot.task, shot.shots, shot.value, shot.n) == ("orders", 2, score.value, score.n)
        results = Results.load(ledger)
    assert "with 2 examples in the prompt before scores" in write_record(results, title="x")
    assert "with 2 examples in the prompt before scores" in write_page(results, title="x")
    assert call(monkeypatch, "compare", "after", "before") == 0  # the base was not asked with examples
    assert "examples in the prompt" not in shown(capfd)
    assert call(monkeypatch, "eval", "base", "--tasks", "arc_easy_5shot", *FIXED[:-2]) == 2
    assert "--tasks arc_easy --num-fewshot 5" in capfd.readouterr().err
