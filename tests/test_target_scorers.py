"""Scorers of target tasks: their values are those of the libraries, and what they cannot judge is one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from aftertune import bounds
from aftertune.errors import AftertuneError, ResourceError, TaskError
from aftertune.study import Study, TargetSpec, TaskSpec
from aftertune.study.scorer import AnswerScorer, metrics_of
from aftertune.tasks import LoadOptions, item_warnings, load, score_responses
from aftertune.tasks.rescoring import score_again
from aftertune.tasks.scorers import judges
from aftertune.values import Response
from tuning_cases import write_rows

ANSWER, REFERENCE = "The cat sat on the mat, Bonn.", "A cat is on the mat."


def values(scorers: list[str], answer: str, reference: str, **more: Any) -> dict[str, float]:
    judged = judges([AnswerScorer.parse(text) for text in scorers], **more)
    doc = {"prompt": "p", "completion": reference}
    return {metric: value for judge in judged for metric, value in judge.values(answer, doc).items()}


def test_rouge_and_chrf_are_those_of_the_libraries() -> None:
    import sacrebleu
    from rouge_score import rouge_scorer

    found = values(["rouge", "chrf"], ANSWER, REFERENCE)
    theirs = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"]).score(REFERENCE, ANSWER)
    assert list(found) == ["rougeL", "rouge1", "rouge2", "sentence_chrf"]
    assert all(found[name] == theirs[name].fmeasure for name in theirs)
    assert found["sentence_chrf"] == pytest.approx(sacrebleu.sentence_chrf(ANSWER, [REFERENCE]).score / 100, abs=1e-12)
    same = values(["rouge", "chrf"], REFERENCE, REFERENCE)
    assert same == pytest.approx(dict.fromkeys(same, 1.0))
    assert all(0 <= value <= 1 for value in values(["rouge", "chrf"], "", REFERENCE).values())


@pytest.mark.parametrize(("scorer", "answer", "reference", "value"), [
    ("contains", "It is in BONN, I think", "Bonn ", 1.0), ("contains", "Bon", "Bonn", 0.0),
    ("exact", " a\n", "a", 1.0), ("regex:(\\d+) EUR", "12 EUR, not 13 EUR", "costs 12 EUR", 1.0),
    ("regex:\\d+", "none", "7", 0.0)])
def test_texts_are_judged(scorer: str, answer: str, reference: str, value: float) -> None:
    assert list(values([scorer], answer, reference).values()) == [value]


@pytest.mark.parametrize(("scorers", "metrics"), [
    (["json", "exact", "regex:a"], ["exact_match", "valid_json", "field_accuracy", "text_match", "regex_match"]),
    (["regex:a", "exact"], ["regex_match", "exact_match"]), (["regex:a"], ["exact_match"]),
    (["rouge", "python:judge.py:points"], ["rougeL", "rouge1", "rouge2", "points"])])
def test_each_scorer_has_metrics_of_its_own(scorers: list[str], metrics: list[str]) -> None:
    assert [m for own in metrics_of([AnswerScorer.parse(s) for s in scorers]) for m in own] == metrics


@pytest.mark.parametrize(("scorer", "said"), [
    ("rogue", "'rogue' is no scorer (did you mean 'rouge'?); allowed are exact, json, regex:PATTERN"),
    ("exact:1", "the scorer exact is written as exact"), ("regex", "is written as regex:PATTERN"),
    ("regex:(", "'(' is no regular expression"), ("python:judge.py", "written as python:FILE.py:FUNCTION"),
    ("python:judge.py:acc", "acc is the name of a metric that exists"),
    (["rouge", "rouge"], "rouge and rouge both have the metric rougeL")])
def test_a_wrong_scorer_is_named_with_what_is_allowed(scorer: Any, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TargetSpec(file=Path("held.jsonl"), scorer=scorer)
    assert said in str(caught.value)


def test_match_and_scorer_do_not_go_together_and_old_specifications_dump_as_before() -> None:
    with pytest.raises(ValidationError, match="`match` and `scorer` both say"):
        TargetSpec(file=Path("held.jsonl"), scorer="rouge", match="json")
    old = TargetSpec(file=Path("held.jsonl"), match="json").model_dump(mode="json")
    assert "scorer" not in old
    assert "slice" not in old
    assert TargetSpec.model_validate(TargetSpec(file=Path("x"), scorer="rouge", slice="kind").model_dump()).slice


def loaded(path: Path, options: LoadOptions | None = None, *, spec: dict[str, Any] | None = None, **target: Any
           ) -> list[Any]:
    return load((TaskSpec(name="mine", target=TargetSpec(file=path, **target), **(spec or {})),),
                options or LoadOptions())


def kinds(path: Path, count: int = 12) -> Path:
    write_rows(path, [{"prompt": f"p{n}", "completion": f"c{n}", "kind": ("red", "blue", "dark green")[n % 3], "n": n}
                      for n in range(count)])
    return path


def test_the_first_scorer_has_the_primary_metric(tmp_path: Path) -> None:
    [task] = loaded(kinds(tmp_path / "held.jsonl"), scorer=["chrf", "exact"])
    assert task.settings.primary == "sentence_chrf,none"
    assert task.settings.scorers == ("chrf", "exact")
    _, _, scores = score_responses([task], {n: Response(text="c1") for n in range(12)})
    assert {s.metric: s.unit for s in scores} == {"sentence_chrf": "mean of shares", "exact_match": "share"}
    assert next(s.value for s in scores if s.metric == "exact_match") == pytest.approx(1 / 12)


def test_what_says_no_more_than_the_metrics_is_not_part_of_the_settings(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"prompt": "p", "completion": "1"}])
    hashed = [loaded(tmp_path / "a.jsonl", **judged)[0].settings.hashed() for judged in (
        {"match": "json"}, {"scorer": "json"}, {"match": "regex", "pattern": "1"}, {"scorer": "regex:\\d"})]
    assert hashed[0] == hashed[1]
    assert "scorers" not in hashed[0]
    assert hashed[2]["scorers"] == ("regex:1",) != hashed[3]["scorers"]  # so they are two evaluations


def test_slices_are_tasks_of_a_group_whose_score_is_that_of_the_whole(tmp_path: Path) -> None:
    path = kinds(tmp_path / "held.jsonl")
    tasks = loaded(path, slice="kind")
    assert [(t.settings.task, t.settings.n, t.settings.groups) for t in tasks] == [
        (f"mine:{name}", 4, ("mine",)) for name in ("blue", "dark-green", "red")]
    [whole] = loaded(path)
    assert {i.hash for t in tasks for i in t.items} == {i.hash for i in whole.items}  # the column is not asked
    answers = {r.position: Response(text=f"c{int(r.context[1:]) % 8}") for t in tasks for r in t.requests}
    _, _, scores = score_responses(tasks, answers)
    alone = {r.position: Response(text=f"c{int(r.context[1:]) % 8}") for r in whole.requests}
    [score] = score_responses([whole], alone)[2]
    [group] = [s for s in scores if s.group]
    assert (group.task, group.metric, group.n) == ("mine", "exact_match", 12)
    assert group.value == pytest.approx(score.value)


@pytest.mark.parametrize("spec", [{"limit": 4}, {"sample": 4, "sample_seed": 1}])
def test_items_of_slices_are_chosen_from_the_whole_file(tmp_path: Path, spec: dict[str, Any]) -> None:
    path = kinds(tmp_path / "held.jsonl", 30)
    tasks, [whole] = loaded(path, slice="kind", spec=spec), loaded(path, spec=spec)
    assert {i.hash for t in tasks for i in t.items} == {i.hash for i in whole.items}
    assert all(t.settings.partial and t.settings.n_total == 10 for t in tasks)


def test_slices_without_items_are_named(tmp_path: Path) -> None:
    tasks = loaded(kinds(tmp_path / "held.jsonl"), slice="kind", spec={"limit": 2})
    assert [t.settings.task for t in tasks] == ["mine:blue", "mine:red"]
    assert "none of the 2 items that were chosen is in the slices mine:dark-green" in "".join(item_warnings(tasks))


@pytest.mark.parametrize(("rows", "target", "said"), [
    ([{"prompt": "a", "completion": "b", "kind": "x"}, {"prompt": "c", "completion": "d"}], {"slice": "kind"},
     ":2: `kind`, which the task's `slice` names, must be a text or a number"),
    ([{"prompt": "a", "completion": "b", "kind": "x"}], {"slice": "kind"}, "every row has the same `kind` ('x')"),
    ([{"prompt": "a", "completion": "b", "k": f"{n}"} for n in range(51)], {"slice": "k"}, "has 51 values, and 50"),
    ([{"prompt": "a", "completion": "b", "k": k} for k in ("x y", "x,y")], {"slice": "k"}, "both be named mine:x-y"),
    ([{"prompt": "a", "completion": "b", "k": "x" * 90}], {"slice": "k"}, "has 90 characters, and a slice at most 80"),
    ([{"prompt": "a"}], {}, ":1: expected a JSON object with the strings `prompt` and `completion`, which is the "
                            "reference; it has: prompt"),
    ([{"prompt": "a", "completion": " "}], {"scorer": "contains"}, ":1: `prompt` and `completion` must be strings"),
    ([{"prompt": "a", "completion": "{}"}, {"prompt": "a", "completion": "no"}], {"scorer": "json"},
     ":2: its completion is not JSON"),
    ([{"prompt": "a", "completion": "x"}], {"scorer": "regex:(\\d+)"}, ":1: its completion has no match of the "),
    ([{"prompt": "a", "completion": "b"}], {"scorer": "python:no.py:f"}, "runs Python code; read no.py, then let"),
    ([], {}, "has no rows")])
def test_rows_that_cannot_be_judged_are_refused_before_a_model_answers(
        tmp_path: Path, rows: list[dict[str, Any]], target: dict[str, Any], said: str) -> None:
    write_rows(tmp_path / "held.jsonl", rows)
    with pytest.raises(TaskError) as caught:
        loaded(tmp_path / "held.jsonl", **target)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pattern_that_backtracks_without_end_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr("aftertune.tasks.scoring.ANSWER_TIMEOUT", 0.2)
    write_rows(tmp_path / "held.jsonl", [{"prompt": "a", "completion": "aaaa"}])
    [task] = loaded(tmp_path / "held.jsonl", scorer="regex:^(a+)+$")
    _, _, [score] = score_responses([task], {0: Response(text="a" * 60 + "b")})
    assert score.value == 0
    write_rows(tmp_path / "slow.jsonl", [{"prompt": "a", "completion": "a" * 60 + "b"}])
    with pytest.raises(TaskError, match=r"slow.jsonl:1: the pattern '\^\(a\+\)\+\$' takes more than"):
        loaded(tmp_path / "slow.jsonl", scorer="regex:^(a+)+$")


CODE = LoadOptions(allow_task_code=True)


def test_a_function_judges_and_is_recorded(tmp_path: Path) -> None:
    path = kinds(tmp_path / "held.jsonl")
    code = tmp_path / "judge.py"
    code.write_text("def near(answer, reference):\n    return answer[:1] == reference[:1]\n\n"
                    "def by_row(answer, reference, row):\n    return row['n'] / 20 + (row['completion'] != reference)"
                    "\n")
    [task] = loaded(path, CODE, scorer=[f"python:{code}:near", f"python:{code}:by_row"])
    assert task.settings.primary == "near,none"
    assert task.settings.scorers == ("python:judge.py:near", "python:judge.py:by_row")
    assert [*task.settings.code] == ["judge.py"]
    _, _, scores = score_responses([task], {n: Response(text="c") for n in range(12)})
    assert {s.metric: s.value for s in scores} == pytest.approx({"near": 1.0, "by_row": sum(range(12)) / 240})
    before = task.settings.hashed()
    code.write_text(code.read_text() + "# changed\n")
    assert loaded(path, CODE, scorer=f"python:{code}:near")[0].settings.code != before["code"]


@pytest.mark.parametrize(("code", "said"), [
    ("def other(a, b):\n    return 1\n", "has no function 'score'; it has: other"),
    ("score = 3\n", "has no function 'score'; it has: none"),
    ("def score(answer):\n    return 1\n", "score(answer) cannot be called with (answer, reference)"),
    ("def score(a, b):\n    raise RuntimeError('no key')\n", "score failed on the answer 'c0': RuntimeError: no key"),
    ("def score(a, b):\n    return None\n", "score returned None for the answer 'c0'; return a finite number"),
    ("def score(a, b):\n    return float('nan')\n", "score returned nan for the answer 'c0'"),
    ("def score(a, b):\n    raise SystemExit\n", "score failed on the answer"),
    ("def score(a, b:\n", "judge.py:1: cannot be imported: SyntaxError"),
    ("import judge_helper\n", "cannot be imported: ModuleNotFoundError: No module named 'judge_helper'")])
def test_a_function_that_does_not_work_is_one_line(tmp_path: Path, code: str, said: str) -> None:
    path = kinds(tmp_path / "held.jsonl")
    (tmp_path / "judge.py").write_text(code)
    with pytest.raises(TaskError) as caught:
        loaded(path, CODE, scorer=f"python:{tmp_path / 'judge.py'}:score")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = kinds(tmp_path / "held.jsonl")
    with pytest.raises(TaskError, match=r"none.py: no such file"):
        loaded(path, CODE, scorer=f"python:{tmp_path / 'none.py'}:score")
    monkeypatch.setattr(bounds, "SCORER_BYTES", 10)
    (tmp_path / "judge.py").write_text("def score(a, b):\n    return 1\n")
    with pytest.raises(TaskError, match="a file with a scorer has at most 10 bytes"):
        loaded(path, CODE, scorer=f"python:{tmp_path / 'judge.py'}:score")


def test_an_import_that_does_not_end_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "SCORER_SECONDS", 0.2)
    (tmp_path / "judge.py").write_text("while True:\n    pass\n")
    with pytest.raises(TaskError, match=r"cannot be imported: it takes more than 0.2 s"):
        loaded(kinds(tmp_path / "held.jsonl"), CODE, scorer=f"python:{tmp_path / 'judge.py'}:score")


@pytest.mark.parametrize(("scorer", "module", "package"), [("rouge", "rouge_score.rouge_scorer", "rouge-score"),
                                                           ("chrf", "sacrebleu.metrics.chrf", "sacrebleu")])
def test_a_missing_library_is_named(scorer: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ResourceError, match=f"needs the package {package}, which is not installed"):
        judges([AnswerScorer(scorer)])


def test_a_study_runs_no_code_and_stops_no_slices(tmp_path: Path) -> None:
    def study(target: dict[str, Any], **more: Any) -> Study:
        return Study.parse({"study": "s", "bases": {"b": {"model": "m"}}, "tasks": [
            {"name": "mine", "target": {"file": "x.jsonl", **target}}], **more}, where="s.yaml", folder=tmp_path)

    assert study({"scorer": ["json", "rouge"], "slice": "kind"}).tasks[0].target.scorer == ("json", "rouge")
    with pytest.raises(AftertuneError, match="has a scorer in Python, and a study runs no code"):
        study({"scorer": "python:judge.py:score"})
    with pytest.raises(AftertuneError, match="has slices, whose verdicts need all of its items"):
        study({"slice": "kind"}, until_decided=True)


def test_a_watch_measures_a_named_target_by_its_first_scorer(tmp_path: Path) -> None:
    parsed = Study.parse(json.loads(json.dumps({
        "study": "s", "bases": {"b": {"model": "m"}},
        "tasks": [{"name": "mine", "target": {"file": "x.jsonl", "scorer": ["rouge", "chrf"], "slice": "kind"}}],
        "tunings": {"t": {"base": "b", "data": "d.jsonl", "watch": {"target": "mine"}}}})), where="s", folder=tmp_path)
    watch = parsed.tunings["t"].watch
    assert watch is not None
    assert watch.target is not None
    assert watch.target.scorer == ("rouge",)


def test_a_cluster_column_may_be_called_slice(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"prompt": f"p{n}", "completion": "c", "slice": f"s{n % 2}", "kind": f"k{n % 3}"}
                                      for n in range(6)])
    [whole] = loaded(tmp_path / "a.jsonl", cluster="slice")
    assert [i.cluster for i in whole.items] == ["s0", "s1"] * 3
    parts = loaded(tmp_path / "a.jsonl", cluster="slice", slice="kind")
    assert [[i.cluster for i in part.items] for part in parts] == [["s0", "s1"], ["s1", "s0"], ["s0", "s1"]]


def test_rouge_refuses_a_reference_of_which_it_counts_nothing(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"prompt": "p", "completion": "東京"}])
    with pytest.raises(TaskError, match="no letter from a to z and no digit"):
        loaded(tmp_path / "a.jsonl", scorer="rouge")
    assert loaded(tmp_path / "a.jsonl", scorer="chrf")


def test_a_slow_function_is_one_line_before_the_model_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "ANSWER_SECONDS", 0.2)
    (tmp_path / "slow.py").write_text("def slow(answer, reference):\n    while True:\n        pass\n")
    with pytest.raises(TaskError, match=r"slow\.py:slow takes more than 0\.2 s for one answer"):
        loaded(kinds(tmp_path / "a.jsonl"), LoadOptions(allow_task_code=True), scorer=f"python:{tmp_path}/slow.py:slow")


def test_a_scorer_that_is_not_known_here_is_said_by_a_proof(tmp_path: Path) -> None:
    [task] = loaded(kinds(tmp_path / "a.jsonl"), scorer="rouge")
    for text in ("bleu", "regex:("):
        with pytest.raises(TaskError, match="its scorers cannot be used here"):
            score_again(replace(task.settings, scorers=(text,)), [], [])
