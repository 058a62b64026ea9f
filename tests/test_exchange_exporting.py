"""What goes out: exports that lm-eval's readers take with the same numbers, and tables that stay inert."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest

from aftertune.comparison import compare
from aftertune.errors import InputError, StorageError
from aftertune.evaluation import evaluate
from aftertune.exchange import (
    audit,
    export_every_eval_ever,
    export_lm_eval,
    import_results,
    rebuild_prompts,
    stored_answers,
)
from aftertune.ledger import Ledger
from aftertune.redaction import public_source
from aftertune.report import Results, as_csv, as_json, as_latex, comparison_export, overview_export, scores_export
from aftertune.stats import paired_mean
from aftertune.study import TaskSpec
from aftertune.values import Evaluation, Response
from eval_cases import byte_folder
from report_cases import COMPARISONS, EVALUATIONS, FORCED

TASKS = (TaskSpec(name="arc_easy", sample=30), TaskSpec(name="gsm8k_cot", limit=4))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two tiny models on thirty real questions and four generated answers, in a ledger of their own."""
    home = tmp_path_factory.mktemp("measured")
    with Ledger(home / "ledger.db") as ledger:
        for name, hidden in (("first", 32), ("second", 16)):
            evaluate(str(byte_folder(home / name, hidden=hidden, window=4096)), TASKS, ledger=ledger, name=name,
                     device="cpu", dtype="float32", task_source="pack", gen_kwargs={"max_gen_toks": 4}, threads=1)
        yield ledger


def no_answers(_task: str) -> list[Any]:
    return []


def exported(ledger: Ledger, name: str, folder: Path, **prompts: Any) -> Any:
    found = ledger.find_evaluation(name)
    return export_lm_eval(found, stored_answers(ledger, found), folder=folder, prompts=prompts)


def test_another_tool_reads_two_exports_and_finds_what_we_find(measured: Ledger, tmp_path: Path) -> None:
    """errorbars (PyPI): difference, standard error and exact McNemar p."""
    from errorbars.compare import paired_compare
    from errorbars.inputs import load_inputs

    comparison = compare("first", "second", ledger=measured)
    for task, metric, filter_ in (("arc_easy", "acc_norm", None), ("arc_easy", "acc", None),
                                  ("gsm8k_cot", "exact_match", "flexible-extract")):
        paths = []
        for name in ("first", "second"):
            written = exported(measured, name, tmp_path)
            paths += [p for p in written.samples if f"samples_{task}_" in p.name]
        data = load_inputs(paths, metric=metric, filter_name=filter_).data
        assert data.models() == ["first", "second"]
        left, right = (data.filter_model(m).scores_by_question() for m in data.models())
        theirs = paired_compare(list(right.values()), [left[k] for k in right])
        ours = next(r for r in comparison.rows if (r.task, r.metric) == (task, metric)
                    and r.filter == (filter_ or "none"))
        base, tuned = (measured.answers(measured.find_evaluation(n).id, task) for n in ("first", "second"))
        key = f"{metric},{filter_ or 'none'}"
        spread = paired_mean([b.metrics[key] - a.metrics[key] for a, b in zip(base, tuned, strict=True)])
        assert theirs.n == ours.n
        assert theirs.mean_diff == pytest.approx(ours.delta, abs=1e-12)
        assert theirs.se_paired == pytest.approx(spread.se, abs=1e-12)
        assert theirs.mcnemar is not None
        assert theirs.mcnemar.p_value == pytest.approx(ours.p_exact, abs=1e-12)
        assert (theirs.mcnemar.n10, theirs.mcnemar.n01) == (ours.gained, ours.lost)
    assert any(r.gained for r in comparison.rows)  # the two do differ


def test_import_reads_an_export_back_to_the_same_answers(measured: Ledger, tmp_path: Path) -> None:
    source = measured.find_evaluation("first")
    exported(measured, "first", tmp_path, **rebuild_prompts(source))
    with Ledger(tmp_path / "other.db") as other:
        [result] = import_results(tmp_path, ledger=other)
        found = result.evaluation
        assert found is not None
        assert found.tasks == source.tasks
        assert found.scores == source.scores
        assert other.answers(found.id) == measured.answers(source.id)
        items = [replace(item, asked=None) for item in measured.items(source.id)]  # lm-eval's files have no such key
        assert other.items(found.id) == items
        again = exported(other, "first", tmp_path / "again")
        first, second = (sorted(folder.glob("first/samples_*")) for folder in (tmp_path, tmp_path / "again"))
        assert [json.loads(p.read_text().splitlines()[0])["resps"] for p in first] == [
            json.loads(p.read_text().splitlines()[0])["resps"] for p in second]
        assert len(again.samples) == 2
    [result] = import_results(tmp_path / "first", ledger=measured, name="back")
    comparison = compare("first", "back", ledger=measured)
    assert not any(d.blocking for d in comparison.differences)
    assert all(r.delta == 0 for r in comparison.rows)
    assert all((r.gained, r.lost) == ((None, None) if r.metric == "prob" else (0, 0)) for r in comparison.rows)


def test_prompts_are_built_again_and_proven(measured: Ledger, tmp_path: Path) -> None:
    source = measured.find_evaluation("first")
    found = rebuild_prompts(source)
    assert "arc_easy" in found
    written = exported(measured, "first", tmp_path, **found)
    line = json.loads(next(p for p in written.samples if "arc_easy" in p.name).read_text().splitlines()[0])
    assert line["arguments"]["gen_args_0"]["arg_0"].startswith("Question: ")
    assert line["prompt_hash"] is not None
    bare = exported(measured, "first", tmp_path / "bare")
    line = json.loads(bare.samples[0].read_text().splitlines()[0])
    assert line["arguments"]["gen_args_0"]["arg_0"] is None
    changed = replace(source, tasks=tuple(replace(t, prompts="0" * 64) for t in source.tasks))
    assert rebuild_prompts(changed) == {}


def test_an_export_names_no_place_of_this_machine_and_is_the_same_twice(measured: Ledger, tmp_path: Path) -> None:
    first = exported(measured, "second", tmp_path / "a")
    second = exported(measured, "second", tmp_path / "b")
    text = "".join(p.read_text() for p in (first.results, *first.samples))
    assert text == "".join(p.read_text() for p in (second.results, *second.samples))
    home = str(Path(measured.find_evaluation("second").model.source).parent)
    assert home not in text
    assert str(Path.home()) not in text
    assert audit(first.results).ok
    assert sorted(p.name for p in first.results.parent.iterdir()) == sorted(
        p.name for p in (first.results, *first.samples))


@pytest.mark.parametrize(("source", "shown"), [
    ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"), ("/home/me/models/x", "x"), ("runs/a/b", "b"), ("./x", "x"),
    ("C:\\models\\x", "x"), ("package:llm/x.gguf", "package:llm/x.gguf"),
    ("org/hf_abcdefghijklmnop", "org/[redacted]")])
def test_sources_lose_their_folders(source: str, shown: str) -> None:
    assert public_source(source) == shown


def test_hostile_names_stay_below_the_folder(tmp_path: Path) -> None:
    hostile = replace(EVALUATIONS[0], name="../../../etc/x\x00", scores=(), tasks=(
        replace(EVALUATIONS[0].tasks[0], task="../up\n"),))
    written = export_lm_eval(hostile, no_answers, folder=tmp_path / "out", prompts={})
    assert all(p.resolve().is_relative_to(tmp_path / "out") for p in (written.results, *written.samples))


def test_what_has_no_whole_score_is_refused_and_disks_are_told(tmp_path: Path) -> None:
    stopped = replace(EVALUATIONS[0], tasks=tuple(replace(t, used=5) for t in EVALUATIONS[0].tasks))
    with pytest.raises(InputError, match="no task with a score of all its items"):
        export_lm_eval(stopped, no_answers, folder=tmp_path, prompts={})
    half = replace(EVALUATIONS[0], tasks=(replace(EVALUATIONS[0].tasks[0], used=5), *EVALUATIONS[0].tasks[1:]))
    written = export_lm_eval(half, no_answers, folder=tmp_path, prompts={})
    assert written.left_out == ("hellaswag",)
    assert "hellaswag" not in json.loads(written.results.read_text())["results"]
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        export_lm_eval(EVALUATIONS[0], no_answers, folder=tmp_path / "file", prompts={})


def test_infinite_and_empty_answers_come_back(tmp_path: Path, measured: Ledger) -> None:
    source = measured.find_evaluation("first")
    answers = [replace(a, responses=tuple(replace(r, logprob=float("-inf")) if r.logprob is not None else
                                          Response(text="", tokens=0, finish="length") for r in a.responses))
               for a in measured.answers(source.id)]
    rows = list(zip(answers, measured.items(source.id), strict=True))
    export_lm_eval(source, lambda task: [r for r in rows if r[0].task == task], folder=tmp_path, prompts={})
    with Ledger(tmp_path / "other.db") as other:
        [result] = import_results(tmp_path, ledger=other)
        assert result.evaluation is not None
        assert other.answers(result.evaluation.id) == answers


class Document(dict[str, Any]):
    __hash__ = object.__hash__  # type: ignore[assignment]


@pytest.mark.parametrize("export", [export_lm_eval, export_every_eval_ever])
def test_an_export_has_few_answers_in_memory(export: Any, measured: Ledger, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """It had all of them, with about 2 kB each."""
    found, each = measured.find_evaluation("first"), Ledger.each_item
    alive: WeakSet[Document] = WeakSet()
    together = []

    def counted(*words: Any) -> Iterator[Any]:
        for item in each(*words):
            doc = Document(item.doc)
            alive.add(doc)
            together.append(len(alive))
            yield replace(item, doc=doc)

    monkeypatch.setattr(Ledger, "each_item", counted)
    export(found, stored_answers(measured, found), folder=tmp_path, prompts=rebuild_prompts(found))
    assert len(together) >= len(measured.answers(found.id)) > 30
    assert max(together) < 6


# Tables

HOSTILE = ("=HYPERLINK(\"http://x\")", "+1", "-1", "@SUM(A1)", "\tx", "＝1", "a,b\"c\nd")


def hostile(text: str) -> Evaluation:
    scores = tuple(replace(s, task=text) for s in EVALUATIONS[0].scores[:1])
    return replace(EVALUATIONS[0], name=text, scores=scores)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_cell_of_a_csv_is_a_formula(text: str) -> None:
    table = scores_export(hostile(text))
    [head, row] = csv.reader(io.StringIO(as_csv(table)))
    assert head[0] == "task"
    assert row[0].lstrip("'") == text
    assert not row[0].startswith(("=", "+", "-", "@", "\t", "\r", "＝"))
    assert float(row[3]) == EVALUATIONS[0].scores[0].value


def test_negative_numbers_stay_numbers() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(comparison_export(COMPARISONS[1], "csv")))))
    assert float(rows[0]["delta"]) == COMPARISONS[1].rows[0].delta < 0
    assert (rows[0]["verdict"], rows[0]["label"]) == ("lower", "forgot")
    assert "FORCED" in comparison_export(FORCED, "csv").title


@pytest.mark.parametrize("text", [r"\input{/etc/passwd}", "100% $x$ #1 a_b {c} ~ ^ & <b>", "\\end{tabular}\x00\u202e"])
def test_latex_is_escaped(text: str) -> None:
    made = as_latex(scores_export(hostile(text)))
    body = made.split("\\midrule\n")[1]
    assert "\\input" not in made
    assert made.count("\\end{tabular}") == 1
    assert "\u202e" not in made
    assert body.count("&") - body.count(r"\&") == made.splitlines()[1].count("r") + made.splitlines()[1].count("l") - \
        "\\begin{tabular}".count("r") - "\\begin{tabular}".count("l") - 1
    assert made.splitlines()[0].startswith("% ")


def test_json_has_a_row_a_score() -> None:
    found = json.loads(as_json(scores_export(EVALUATIONS[0])))
    assert len(found["rows"]) == len(EVALUATIONS[0].scores)
    assert found["rows"][0]["low"] < found["rows"][0]["value"] < found["rows"][0]["high"]
    bad = replace(EVALUATIONS[0], scores=(replace(EVALUATIONS[0].scores[0], value=float("inf"), stderr=None),))
    assert json.loads(as_json(scores_export(bad)))["rows"][0]["value"] is None
    assert ",,," in as_csv(scores_export(bad))


def test_the_overview_has_every_primary_score_with_its_verdict() -> None:
    table = overview_export("orders", Results(evaluations=EVALUATIONS, comparisons=[*COMPARISONS, FORCED]))
    verdicts = {(row[0], row[2]): row[-2:] for row in table.rows}
    assert table.head[-2:] == ("verdict", "label")
    assert verdicts["careless", "hellaswag"] == ("lower", "forgot")
    assert verdicts["smollm2", "hellaswag"] == (None, None)
    assert len(table.rows) == sum(s.primary for e in EVALUATIONS for s in e.scores)


def test_the_verb(measured: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                  capsys: pytest.CaptureFixture[str]) -> None:
    from aftertune.cli import app
    from aftertune.cli.console import guarded

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(measured.database.path))
    comparison = compare("first", "second", ledger=measured)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["aftertune", "export", *words])
        code = guarded(app)
        out, err = capsys.readouterr()
        return code, out, err

    code, out, _ = call("first", "--json")
    assert code == 0
    told = json.loads(out)
    assert Path(told["results"]).is_file()
    assert told["without_prompts"] == []
    assert json.loads(call("first", "--no-prompts", "--json")[1])["without_prompts"] == ["arc_easy", "gsm8k_cot"]
    assert call("first", "--format", "csv")[1].startswith("task,metric,filter,value")
    assert "\\toprule" in call(comparison.id, "--format", "latex")[1]
    assert json.loads(call("all", "--format", "json")[1])["rows"]
    assert call("first", "--format", "csv", "--out", "t.csv")[1] == "written to t.csv\n"
    assert call("first", "--format", "xlsx")[0] == 2
    assert "no evaluation 'fist'" in call("fist")[2]


@pytest.mark.parametrize("name", ["org/..", "..", "../../x"])
def test_an_export_stays_in_its_folder_whatever_the_name(name: str, measured: Ledger, tmp_path: Path) -> None:
    found = measured.find_evaluation("first")
    written = export_lm_eval(replace(found, name=name), stored_answers(measured, found),
                             folder=tmp_path / "out", prompts={})
    inside = (tmp_path / "out").resolve()
    assert all(inside in path.resolve().parents and path.parent.resolve() != inside
               for path in (written.results, *written.samples))
