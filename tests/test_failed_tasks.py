"""A task that fails is reported, the others are answered and stored, and the same command later continues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aftertune.engine.tokenize import Encoder
from aftertune.errors import TaskError, TasksFailed
from aftertune.evaluation import EvaluationRun, evaluate
from aftertune.ledger import EntryLabel, Ledger
from cli_cases import call, settle
from eval_cases import byte_folder, byte_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}, cache_dir: "{cache}"}}
test_split: test
output_type: {kind}
doc_to_text: q
doc_to_target: {target}
target_delimiter: ""
{more}
"""
CHOICES = "doc_to_choice: choices\nmetric_list: [{metric: acc}, {metric: acc_norm}]"
GENERATED = "generation_kwargs: {until: ['.'], max_gen_toks: 4}\nmetric_list: [{metric: exact_match}]"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    byte_folder(tmp_path / "byte", window=64)
    settle(monkeypatch, tmp_path)
    (tmp_path / "tasks").mkdir()
    task(tmp_path, "good", [{"q": f"item {i}", "choices": ["yes", "no"], "gold": i % 2} for i in range(4)])
    task(tmp_path, "second", [{"q": f"thing {i}", "choices": ["a", "b"], "gold": i % 2} for i in range(3)])
    return tmp_path


def task(root: Path, name: str, rows: list[dict[str, Any]], kind: str = "multiple_choice", more: str = CHOICES,
         target: str = "gold") -> None:
    data = root / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "tasks" / f"{name}.yaml").write_text(TASK.format(
        name=name, data=data, cache=root / "cache" / name, kind=kind, more=more, target=target))


def run(root: Path, names: list[str], ledger: Ledger, **settings: Any) -> Any:
    return evaluate("byte", names, ledger=ledger, include_path=root / "tasks", device="cpu", dtype="float32", threads=1,
                    memory="1MB", **settings)


def long_answer(root: Path) -> None:
    """An answer that is longer than the model's window: it cannot be tokenized."""
    task(root, "bad", [{"q": "x", "choices": ["y" * 200, "n"], "gold": 0}])


def no_data(root: Path) -> None:
    task(root, "bad", [{"q": "x", "choices": ["y", "n"], "gold": 0}])
    (root / "bad.jsonl").unlink()


def bad_metric(root: Path) -> None:
    """A filter that raises where the answers are scored."""
    task(root, "bad", [{"q": "x", "gold": "y"}], "generate_until",
         GENERATED + "\nfilter_list: [{name: x, filter: [{function: map, mapping_dict: 5}]}]")


def repaired(root: Path) -> None:
    task(root, "bad", [{"q": "x", "choices": ["y", "n"], "gold": 0}])


@pytest.mark.parametrize(("fault", "reason"), [
    (long_answer, "a continuation has 200 tokens"), (no_data, "bad.jsonl: no such file"),
    (bad_metric, "its answers cannot be scored")])
def test_the_other_tasks_are_answered_and_kept(fault: Any, reason: str, place: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    fault(place)
    names = ["good", "bad", "second"]
    with Ledger(place / "other.db") as ledger:
        expected = run(place, ["good", "second"], ledger)
    with Ledger(place / "l.db") as ledger:
        with pytest.raises(TasksFailed, match=r"1 of 3 tasks failed: (task 'bad'|bad)") as caught:
            run(place, names, ledger, name="mine")
        assert reason in str(caught.value)
        [stored] = caught.value.evaluations
        assert (stored.status, stored.id, [t.task for t in stored.tasks]) == ("done", expected.id, ["good", "second"])
        assert stored.scores == expected.scores
        assert list(stored.failed) == ["bad"]
        assert any(w.startswith("task bad failed") for w in stored.warnings)
        with pytest.raises(TasksFailed):
            run(place, names, ledger, name="mine")
        ledger.save_label(stored.id, EntryLabel(tags=("paper",)))
        repaired(place)
        asked: list[int] = []
        answer = EvaluationRun.answer
        monkeypatch.setattr(EvaluationRun, "answer", lambda self, requests, stage=None: (
            asked.append(len(requests)), answer(self, requests, stage))[1])
        whole = run(place, names, ledger, name="mine")
        assert asked == [2], "only the requests of the task that failed"
        assert [t.task for t in whole.tasks] == names
        assert [s for s in whole.scores if s.task != "bad"] == list(expected.scores)
        assert ledger.answers(whole.id, "good") == ledger.answers(whole.id)[:4]
        assert [e.name for e in ledger.evaluations() if e.status == "done"] == ["mine"]
        assert ledger.labels() == {whole.id: EntryLabel(tags=("paper",))}, "of the one that it replaces"


def test_who_finishes_says_which_answers_were_taken(place: Path) -> None:
    """Another process took them: before an interruption, or at the same time."""
    def stop(done: int, total: int, text: str) -> None:
        if text == "answering":
            raise KeyboardInterrupt

    no_data(place)
    with Ledger(place / "l.db") as ledger:
        with pytest.raises(TasksFailed):
            run(place, ["good", "bad", "second"], ledger)
        repaired(place)
        with pytest.raises(KeyboardInterrupt):
            run(place, ["good", "bad", "second"], ledger, progress=stop)
        whole = run(place, ["good", "bad", "second"], ledger)
        assert [w.partition(": its answers were taken from ")[0] for w in whole.warnings if "taken from" in w] == [
            "good", "second"]
        assert "notes" not in whole.schedule


def test_a_helper_leaves_the_report_of_a_failed_task_to_the_command_that_was_typed(
        place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    no_data(place)
    words = ("eval", "byte", "--tasks", "good,bad", "--include-path", "tasks", "--device", "cpu", "--join")
    for helper, code in ((True, 0), (False, 2)):
        monkeypatch.setattr("aftertune.cli.workers.end_with_parent", lambda helper=helper: helper)
        assert call(monkeypatch, *words) == code
        assert ("1 of 2 tasks failed" in capfd.readouterr().err) == (not helper)


def test_the_answers_of_a_task_that_could_not_be_scored_are_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aftertune.tasks import scoring

    task(place, "bad", [{"q": "x", "choices": ["y", "n"], "gold": 0}])
    score = scoring._scores

    def broken(loaded: Any, *rest: Any) -> Any:
        if loaded.settings.task == "bad":
            raise ImportError("no module named metric")
        return score(loaded, *rest)

    with Ledger(place / "l.db") as ledger:
        with monkeypatch.context() as patch:
            patch.setattr(scoring, "_scores", broken)
            with pytest.raises(TasksFailed, match="no module named metric"):
                run(place, ["bad", "good"], ledger)
        monkeypatch.setattr(EvaluationRun, "_start", lambda self: pytest.fail("the model is not needed"))
        whole = run(place, ["bad", "good"], ledger)
        assert [t.task for t in whole.tasks] == ["bad", "good"]


def test_where_all_tasks_fail_nothing_is_stored(place: Path) -> None:
    long_answer(place)
    with Ledger(place / "l.db") as ledger:
        with pytest.raises(TaskError, match="a continuation has 200 tokens") as caught:
            run(place, ["bad"], ledger)
        assert not isinstance(caught.value, TasksFailed)
        assert ledger.evaluations() == []


def test_the_command_ends_with_2_and_shows_the_others(place: Path, monkeypatch: pytest.MonkeyPatch,
                                                      capfd: pytest.CaptureFixture[str]) -> None:
    no_data(place)
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(place / "l.db"))
    words = ["eval", "byte", "--include-path", "tasks", "--tasks", "good,bad", "--device", "cpu"]
    assert call(monkeypatch, *words) == 2
    shown = capfd.readouterr()
    assert "good" in shown.out
    assert "1 of 2 tasks failed" in shown.err
    assert "Traceback" not in shown.err
    repaired(place)
    assert call(monkeypatch, *words) == 0


def test_a_token_that_spans_context_and_answer(place: Path) -> None:
    """The byte tokenizer merges a and b, so "xa" + "b" has the tokens of "xa"'s x and of ab: none is left for b."""
    encoder = Encoder(byte_tokenizer(), max_length=64)
    alone = encoder.score("xa", "b")
    assert alone.alone
    assert list(alone.tokens) == [*encoder.encode("xa"), *encoder.tokenizer.encode("b", add_special_tokens=False)]
    assert alone.targets == 1
    assert not encoder.score("xa", "c").alone
    task(place, "merge", [{"q": "c", "choices": ["b", "c"], "gold": 0}, {"q": "xa", "choices": ["b", "c"], "gold": 0}])
    with Ledger(place / "l.db") as ledger:
        stored = run(place, ["merge", "good"], ledger)
        assert stored.status == "done"
        [note] = [w for w in stored.warnings if "encoded alone" in w]
        assert note.startswith("merge: in 1 of 2 items a token spans")
        assert note.endswith("items 1")
