"""lm-eval's output folders read: of every layout from 0.4.5 on, against a real run of lm-eval, and broken ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import test_harness
from aftertune.comparison import compare
from aftertune.errors import InputError, NotComparable
from aftertune.exchange import audit, import_results
from aftertune.ledger import Ledger
from aftertune.report import Results, write_record
from aftertune.report.changed_items import form_text, format_table
from aftertune.report.table import part_text
from aftertune.values import Evaluation
from aftertune.values.reported import proven
from eval_cases import byte_folder
from exchange_cases import BASE_RIGHT, STAMP, TUNED_RIGHT, lm_eval_folder

SAMPLES = f"samples_write_{STAMP}.jsonl"
RESULTS = f"results_{STAMP}.json"


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    with Ledger(tmp_path / "ledger.db") as opened:
        yield opened


#: The tasks of a real run: multiple choice, generated, and rolling, on a file of twelve documents.
real_tasks = test_harness.tasks


def single(path: Path, ledger: Ledger, name: str | None = None) -> Evaluation:
    [result] = import_results(path, ledger=ledger, name=name)
    assert result.evaluation is not None
    return result.evaluation


@pytest.mark.parametrize("old", [False, True], ids=["0.4.13", "0.4.5"])
def test_a_folder_becomes_an_evaluation_with_answers(old: bool, tmp_path: Path, ledger: Ledger) -> None:
    found = single(lm_eval_folder(tmp_path / "out", "org/base", BASE_RIGHT, old=old), ledger)
    assert (found.name, found.status, found.device, found.dtype, found.engine) == (
        "base", "done", "cuda", "float16", "lm-eval:hf")
    assert not proven(found.model)
    assert found.model.parameters == 1_235_814_400
    write = found.task("write")
    assert write is not None
    assert (write.version, write.num_fewshot, write.n, write.n_total, write.primary, write.generation) == (
        "3.0", 5, 12, 12, "exact_match,flexible-extract", {"until": ["\n"]})
    assert [(s.task, s.key, round(s.value, 4), s.n, s.primary) for s in found.scores] == [
        ("choose", "acc,none", 0.6667, 12, True), ("write", "exact_match,strict-match", 0.3333, 12, False),
        ("write", "exact_match,flexible-extract", 0.6667, 12, True)]
    answers = ledger.answers(found.id, "write")
    assert [a.metrics["exact_match,flexible-extract"] for a in answers] == list(BASE_RIGHT)
    assert [a.metrics["exact_match,strict-match"] for a in answers] == [r * (i % 2) for i, r in enumerate(BASE_RIGHT)]
    assert answers[0].responses[0].text == "answer 0"
    chosen = ledger.answers(found.id, "choose")[0]
    assert [(r.logprob, r.greedy) for r in chosen.responses] == [(-1.5, True), (-2.5, False)]
    assert ledger.items(found.id, "choose")[0].doc == {"question": "q0", "gold": 0}
    assert found.provenance is not None
    assert found.provenance.started.startswith("2025-03-08")


def test_twice_is_once_and_two_folders_compare(tmp_path: Path, ledger: Ledger) -> None:
    out = tmp_path / "out"
    lm_eval_folder(out, "org/base", BASE_RIGHT)
    lm_eval_folder(out, "org/tuned", TUNED_RIGHT, old=True)
    first = import_results(out, ledger=ledger)
    shutil.move(out, tmp_path / "moved")
    again = import_results(tmp_path / "moved", ledger=ledger)
    assert [a.new for a in first + again] == [True, True, False, False]
    assert len(ledger.evaluations()) == 2
    comparison = compare("base", "tuned", ledger=ledger)
    assert not comparison.lineage  # nothing proves who was made from whom
    assert all("forgot" not in r.told for r in comparison.rows)
    row = next(r for r in comparison.rows if r.task == "choose")
    assert (row.gained, row.lost, row.n, row.delta) == (1, 5, 12, -4 / 12)


def test_one_base_may_stand_behind_two_names(tmp_path: Path, ledger: Ledger) -> None:
    folder = lm_eval_folder(tmp_path / "out", "org/base", BASE_RIGHT)
    assert single(folder / RESULTS, ledger, "mine").name == "mine"
    lm_eval_folder(tmp_path / "out", "org/base", BASE_RIGHT, stamp="2025-03-09T10-00-00.1")
    with pytest.raises(InputError, match="--name mine names one evaluation"):
        import_results(tmp_path / "out", ledger=ledger, name="mine")


def test_without_samples_the_scores_are_reported(tmp_path: Path, ledger: Ledger) -> None:
    folder = lm_eval_folder(tmp_path / "out", "org/base", BASE_RIGHT, samples=False)
    for _ in range(2):
        [result] = import_results(folder, ledger=ledger)
    assert result.evaluation is None
    assert [(r.task, r.filter, r.n) for r in result.reported] == [
        ("choose", "none", 12), ("write", "strict-match", 12), ("write", "flexible-extract", 12)]
    assert len(ledger.reported()) == 3
    assert audit(folder / RESULTS).ok
    broken = json.loads((folder / RESULTS).read_text())
    broken["results"]["choose"]["acc,none"] = 0.7
    (folder / RESULTS).write_text(json.dumps(broken))
    assert [c.mark for c in audit(folder / RESULTS).checks] == ["not reproducible", "ok", "ok"]


def test_part_of_the_tasks_may_have_samples_and_groups_need_all(tmp_path: Path, ledger: Ledger) -> None:
    groups: dict[str, Any] = {"group_subtasks": {"both": ["choose", "write"], "half": ["choose"]},
              "groups": {"both": {"alias": "both", "acc,none": 0.5, "acc_stderr,none": 0.1},
                         "half": {"alias": "half", "acc,none": 8 / 12, "acc_stderr,none": "N/A"}}}
    folder = lm_eval_folder(tmp_path / "out", "org/base", BASE_RIGHT, **groups)
    (folder / SAMPLES).unlink()
    [result] = import_results(folder, ledger=ledger)
    assert result.evaluation is not None
    assert result.evaluation.tasks[0].groups == ("both", "half")
    assert [(s.task, s.group, s.n, s.stderr is None) for s in result.evaluation.scores] == [
        ("choose", False, 12, False), ("half", True, 12, True)]
    assert {r.task for r in result.reported} == {"write", "both"}


def test_a_name_that_is_taken_is_refused_and_nothing_is_stored(tmp_path: Path, ledger: Ledger) -> None:
    single(lm_eval_folder(tmp_path / "a", "org/base", BASE_RIGHT), ledger, "mine")
    folder = lm_eval_folder(tmp_path / "b", "org/tuned", TUNED_RIGHT)
    (folder / SAMPLES).unlink()  # the scores of this task come without answers
    with pytest.raises(InputError, match=r"--name mine: evaluation e-[0-9a-f]+ has this name; choose another one"):
        import_results(folder, ledger=ledger, name="mine")
    assert ledger.reported() == []
    [result] = import_results(folder, ledger=ledger, name="other")
    assert {r.task for r in result.reported} == {"write"}
    assert [e.name for e in ledger.evaluations()] == ["mine", "other"]


def test_the_file_name_layout_with_a_json_output_path(tmp_path: Path, ledger: Ledger) -> None:
    folder = lm_eval_folder(tmp_path / "out", "org/base", BASE_RIGHT)
    (folder / RESULTS).rename(folder / f"mine_{STAMP}.json")
    assert single(tmp_path, ledger).name == "base"


def test_secrets_do_not_come_along(tmp_path: Path, ledger: Ledger) -> None:
    folder = lm_eval_folder(tmp_path / "out", "org/base", BASE_RIGHT, pretty_env_info="HF_TOKEN=hf_abcdefghijklmnop",
                            model_name="https://user:hf_abcdefghijklmnop@host/model", config={
                                "model": "hf", "model_args": "pretrained=x,token=hf_abcdefghijklmnop"})
    found = single(folder, ledger)
    assert "hf_abcdefghijklmnop" not in repr(found)
    assert b"hf_abcdefghijklmnop" not in (tmp_path / "ledger.db").read_bytes()


def edit(folder: Path, name: str, change: Any) -> None:
    path = folder / name
    if name.endswith(".json"):
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
        return
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in change(lines)))


def with_first(lines: list[Any], **changes: Any) -> list[Any]:
    return [lines[0] | changes, *lines[1:]]


@pytest.mark.parametrize(("name", "change", "said"), [
    (RESULTS, lambda v: v | {"results": []}, "no object `results`"),
    (RESULTS, lambda v: v | {"configs": 3}, "`configs` is a int"),
    (RESULTS, lambda v: v | {"results": v["results"] | {"write": [1]}}, "`results.write` is a list"),
    (RESULTS, lambda v: v | {"n-samples": {"write": {"effective": 13}}}, "12 documents, but .* states 13"),
    (RESULTS, lambda v: v | {"results": {**v["results"], "write": {"alias": "write"}}}, "has more lines than|no score"),
    (SAMPLES, lambda lines: [], "has no lines"),
    (SAMPLES, lambda lines: lines[:-1], "has 1 lines and others 2"),
    (SAMPLES, lambda lines: [*lines, lines[0]], "occurs twice"),
    (SAMPLES, lambda lines: with_first(lines, doc_id="x"), ":1: no `doc_id`"),
    (SAMPLES, lambda lines: with_first(lines, doc_id=2**70), ":1: no `doc_id`"),
    (SAMPLES, lambda lines: with_first(lines, arguments={}), ":1: no `arguments`"),
    (SAMPLES, lambda lines: with_first(lines, resps=[]), ":1: 1 requests .* and 0 responses"),
    (SAMPLES, lambda lines: with_first(lines, resps=None), "no responses"),
    (SAMPLES, lambda lines: [3], ":1: expected a JSON object, found int"),
    (SAMPLES, lambda lines: [x | {"exact_match": 1.0} for x in lines], "give the two files of the same run"),
    (f"samples_choose_{STAMP}.jsonl", lambda lines: with_first(lines, resps=[[["x", "True"]], [["-1", "False"]]]),
     "is not a log-likelihood"),
    (f"samples_choose_{STAMP}.jsonl", lambda lines: with_first(lines, resps=[[["nan", "True"]], [["-1", "False"]]]),
     "is not a log-likelihood"),
])
def test_broken_folders_are_one_line_and_leave_nothing(name: str, change: Any, said: str, tmp_path: Path,
                                                       ledger: Ledger) -> None:
    folder = lm_eval_folder(tmp_path / "out", "org/base", BASE_RIGHT)
    edit(folder, name, change)
    with pytest.raises(InputError, match=said) as caught:
        import_results(folder, ledger=ledger)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ledger.evaluations() == []


@pytest.mark.parametrize(("content", "said"), [
    (b"{", "not valid JSON"), (b"\xff", "not UTF-8"), (b"[" * 100_000, "nested deeper than 100 levels"),
    (b'{"results": {"a": {"acc,none": NaN}}}', r"no score that can be read \(1 tasks: a\)"),
    (b'{"results": {"a": {"acc,none": 1' + b"0" * 400 + b"}}}", "no score that can be read"),
    (b'{"results": {"\\ud800": {"acc,none": 0.5}}}', "half a character"), (b"", "not valid JSON")])
def test_hostile_results_files(content: bytes, said: str, tmp_path: Path, ledger: Ledger) -> None:
    path = tmp_path / RESULTS
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        import_results(path, ledger=ledger)


def test_what_is_no_result_is_said(tmp_path: Path, ledger: Ledger) -> None:
    folder = lm_eval_folder(tmp_path / "out", "org/base", BASE_RIGHT)
    with pytest.raises(InputError, match="a samples file alone"):
        import_results(folder / SAMPLES, ledger=ledger)
    with pytest.raises(InputError, match="no such file or folder"):
        import_results(tmp_path / "none", ledger=ledger)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no results_"):
        import_results(tmp_path / "empty", ledger=ledger)


KEYS = st.sampled_from(["results", "configs", "n-samples", "config", "model_args", "groups", "group_subtasks",
                        "versions", "a", "acc,none", "acc_stderr,none", "date", "model_name"])
json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                           lambda part: st.lists(part, max_size=3) | st.dictionaries(KEYS, part, max_size=4),
                           max_leaves=12)


@given(st.dictionaries(st.sampled_from(["groups", "group_subtasks", "config", "n-samples", "date", "model_name",
                                        "versions", "results"]), json_values), json_values)
def test_any_json_is_read_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, parts: dict[str, Any],
                                                 row: Any) -> None:
    path = tmp_path_factory.mktemp("fuzz") / RESULTS
    path.write_text(json.dumps({"results": {"a": {"acc,none": 0.5}, "b": row}, **parts}, allow_nan=True))
    try:
        audit(path)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_a_real_run_of_lm_eval_pairs_with_our_own(real_tasks: list[Any], tmp_path: Path, ledger: Ledger) -> None:
    """The same tiny model on the same tasks by lm-eval's `hf`, through its own writer, and by our engine."""
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker

    from aftertune.evaluation import evaluate

    tasks = real_tasks
    model = byte_folder(tmp_path / "model")
    tracker = EvaluationTracker(output_path=str(tmp_path / "out"))
    results = simple_evaluate("hf", model_args=f"pretrained={model},dtype=float32", device="cpu", tasks=tasks[1],
                              task_manager=tasks[0], evaluation_tracker=tracker, log_samples=True, bootstrap_iters=0)
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for name in tasks[1]:
        tracker.save_results_samples(task_name=name, samples=samples[name])
    theirs = single(tmp_path / "out", ledger, "theirs")
    ours = evaluate(str(model), tasks[1], ledger=ledger, include_path=tmp_path, device="cpu", dtype="float32",
                    name="ours")
    for task in tasks[1]:
        mine, other = ours.task(task), theirs.task(task)
        assert mine is not None
        assert other is not None
        assert (mine.items, mine.prompts, mine.version, mine.generation, mine.chance, mine.primary) == (
            other.items, other.prompts, other.version, other.generation, other.chance, other.primary), task
    comparison = compare("ours", "theirs", ledger=ledger)
    assert not any(d.blocking for d in comparison.differences)
    assert {r.task for r in comparison.rows} == {"pick", "write"}  # bits per byte are no mean over items
    assert all(abs(r.delta) < 1e-4 and r.n == 12 for r in comparison.rows)
    assert [a.metrics for a in ledger.answers(theirs.id, "whole")] == [
        pytest.approx(a.metrics, rel=1e-4) for a in ledger.answers(ours.id, "whole")]
    assert [a.responses[0].text for a in ledger.answers(ours.id, "write")] == [
        a.responses[0].text for a in ledger.answers(theirs.id, "write")]
    assert not comparison.lineage


def test_an_unknown_end_is_not_counted_as_one_without_end_token(tmp_path: Path, ledger: Ledger) -> None:
    """lm-eval's files do not say how a text ended, nor whether a context was cut off."""
    for model, right in (("org/base", BASE_RIGHT), ("org/tuned", TUNED_RIGHT)):
        import_results(lm_eval_folder(tmp_path / "out", model, right), ledger=ledger)
    comparison = compare("base", "tuned", ledger=ledger)
    [form] = comparison.forms
    assert (form.tuned.n, form.tuned.cut_off, form.tuned.no_end, form.tuned.unknown_end) == (12, 0, 0, 12)
    assert (form.lost, form.lost_by_form, form.lost_unknown, form.cause) == (5, 0, 5, "mixed")
    assert form_text(form.tuned) == "all 12 with an answer (how they ended is not known)"
    answers = ledger.answers(ledger.find_evaluation("tuned").id)
    assert {r.truncated for a in answers for r in a.responses} == {None}
    [line] = format_table(ledger.find_evaluation("tuned"), answers)
    assert (line.by_end(line.cut_off), line.by_end(line.no_end)) == ("not known", "not known")
    record = write_record(Results.load(ledger), title="T")
    assert "of 12, not known cut off" not in record
    assert "how they ended is not known" in record


def test_other_prompts_are_not_comparable(tmp_path: Path, ledger: Ledger) -> None:
    import_results(lm_eval_folder(tmp_path / "a", "org/base", BASE_RIGHT), ledger=ledger)
    import_results(lm_eval_folder(tmp_path / "b", "org/tuned", TUNED_RIGHT, **{"n-shot": {"choose": 5, "write": 5}}),
            ledger=ledger)
    with pytest.raises(NotComparable, match=r"choose\.num_fewshot"):
        compare("base", "tuned", ledger=ledger)


def answers_of(folder: Path, change: Any) -> Path:
    """The folder with other lines of answers in all of its samples files. change: the lines -> the lines."""
    for path in folder.glob("samples_*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in change(lines)))
    return folder


def moved(by: int) -> Any:
    """Lines whose documents are others of the task."""
    return lambda lines: [line | {"doc_id": line["doc_id"] + by} for line in lines]


def test_a_part_of_a_task_is_neither_all_of_it_nor_a_random_sample(tmp_path: Path, ledger: Ledger) -> None:
    counts = {"n-samples": {t: {"original": 1319, "effective": 12} for t in ("choose", "write")}}
    folders = {
        "first": lm_eval_folder(tmp_path / "a", "org/m", BASE_RIGHT, **counts),
        "chosen": answers_of(lm_eval_folder(tmp_path / "b", "org/m", BASE_RIGHT, **counts), moved(700)),
        "unstated": lm_eval_folder(tmp_path / "c", "org/m", BASE_RIGHT, **{"n-samples": {}, "config": {"limit": 12}}),
        "beyond": answers_of(lm_eval_folder(tmp_path / "d", "org/m", BASE_RIGHT, **{"n-samples": {}}), moved(88))}
    found = {name: single(folder, ledger, name) for name, folder in folders.items()}
    parts = {name: part_text(e.tasks[0]) for name, e in found.items()}
    assert parts == {"first": "first 12 of 1,319", "chosen": "12 of 1,319, not known how they were chosen",
                     "unstated": "first 12 of a number that is not stated",
                     "beyond": "12 of 100, not known how they were chosen"}
    assert all(e.tasks[0].partial and e.tasks[0].sample is None for e in found.values())
    assert not any("random sample" in w or "not stated" in w for w in found["first"].warnings)
    assert "they may be no random sample" in found["chosen"].warnings[1]
    assert "how many the task has is not stated" in found["unstated"].warnings[1]


def test_documents_in_another_order_pair_by_content_once_that_is_allowed(tmp_path: Path, ledger: Ledger) -> None:
    base = single(lm_eval_folder(tmp_path / "a", "org/base", BASE_RIGHT), ledger, "base")
    tuned = single(answers_of(lm_eval_folder(tmp_path / "b", "org/tuned", TUNED_RIGHT), lambda lines: lines[::-1]),
                   ledger, "tuned")
    with pytest.raises(NotComparable, match=r"12 shared, in another order.*--common"):
        compare(base, tuned, ledger=ledger)
    row = next(r for r in compare(base, tuned, ledger=ledger, common=True).rows if r.task == "choose")
    assert (row.gained, row.lost, row.n) == (1, 5, 12)
