"""The functions of the package: their keywords, rows in memory, margins in points, tables and frames, and errors."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import aftertune
from aftertune.actions import WORK
from aftertune.api.comparing import margins_of
from aftertune.api.evaluating import task_specs
from aftertune.api.parameters import in_python, settings_of, specification
from aftertune.api.reference import reference, settings_module
from aftertune.api.rows import stored_rows
from aftertune.api.tables import html_table
from aftertune.errors import InputError
from aftertune.study import DataSpec, EvalSpec, LoraSpec, TaskSpec, TuneSpec
from aftertune.values import Flip, Flips, FlipSide, Margin, Score
from ledger_cases import evaluation, tuning

ROOT = Path(__file__).parents[1]


def test_every_public_function_has_named_and_documented_parameters() -> None:
    functions = [getattr(aftertune, n) for n in aftertune.__all__ if inspect.isfunction(getattr(aftertune, n))]
    assert {f.__name__ for f in functions} >= {"evaluate", "tune", "compare", "flips", "gate", "plan_items", "drift",
                                              "report", "record", "card", "audit", "import_results"}
    for function in functions:
        assert function.__doc__, function
        assert all(p.annotation is not p.empty for p in inspect.signature(function).parameters.values()), function
    for name in ("run", "plan", "load"):
        assert getattr(aftertune.Study, name).__doc__


def test_the_functions_stay_where_rooms_have_their_names() -> None:
    importlib.import_module("aftertune.report.page")
    importlib.import_module("aftertune.drift")
    assert inspect.isfunction(aftertune.report)
    assert inspect.isfunction(aftertune.drift)
    assert aftertune.callbacks.__name__ == "aftertune.callbacks"


def test_the_first_use_of_a_name_imports_no_large_library() -> None:
    """In another process, because this one has them. It took a second with scipy and SQLAlchemy."""
    code = "import sys, aftertune; aftertune.evaluate, aftertune.tune, aftertune.Study; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    large = {"torch", "transformers", "scipy", "sqlalchemy", "pandas", "matplotlib", "rich", "jinja2"}
    assert large & set(loaded) == set()


def test_what_values_offer_is_of_classes_that_exist() -> None:
    assert callable(aftertune.compare)
    for action, name in WORK:
        module, _, kind = name.rpartition(".")
        assert inspect.isclass(getattr(importlib.import_module(module), kind)), (action, name)


def test_keywords_are_those_of_the_command_line() -> None:
    keywords = set(inspect.signature(aftertune.evaluate).parameters)
    assert {"limit", "sample", "num_fewshot", "gen_kwargs", "dtype", "engine"} <= keywords
    assert {"method", "rank", "replay_share", "watch"} <= set(inspect.signature(aftertune.tune).parameters)


def test_the_generated_files_are_up_to_date() -> None:
    assert (ROOT / "docs" / "api.md").read_text(encoding="utf-8") == reference(), "run `make docs`"
    module = Path(inspect.getfile(aftertune)).parent / "api" / "settings.py"
    assert module.read_text(encoding="utf-8") == settings_module(), "run `make docs`"


def test_a_specification_from_keywords() -> None:
    spec = specification(TuneSpec, {"data": "orders.jsonl", "rank": 4, "watch": {"arc_easy": 20}, "epochs": None},
                         model="m")
    assert (spec.lora.r, spec.watch and spec.watch.tasks, spec.epochs) == (4, {"arc_easy": 20}, 1.0)
    assert specification(TuneSpec, {"data": "x.jsonl", "lora": LoraSpec(alpha=8)}, model="m").lora.alpha == 8
    with pytest.raises(InputError, match=r"unknown setting 'rnak' \(did you mean 'rank'"):
        specification(TuneSpec, {"rnak": 4}, model="m")
    with pytest.raises(InputError, match="`limit`: Input should be greater than 0"):
        specification(TaskSpec, {"limit": 0}, name="arc_easy")
    assert settings_of(EvalSpec, without=("dtype",)).keys() == settings_of(EvalSpec).keys() - {"dtype"}


def test_tasks_are_names_specifications_or_dicts() -> None:
    specs = task_specs(["arc_easy", {"name": "sciq", "sample": 5}, TaskSpec(name="boolq", num_fewshot=1)],
                       {"limit": 3, "num_fewshot": 2})
    assert [(t.name, t.limit, t.sample, t.num_fewshot) for t in specs] == [
        ("arc_easy", 3, None, 2), ("sciq", None, 5, 2), ("boolq", 3, None, 1)]
    assert [t.name for t in task_specs("arc_easy, sciq", {})] == ["arc_easy", "sciq"]
    with pytest.raises(InputError, match="tasks is empty"):
        task_specs([], {})


# --- Rows in memory ---

ROWS = [{"prompt": f"say {i}", "completion": str(i), "note": None if i % 2 else "odd"} for i in range(4)]
FULL = [{k: v for k, v in row.items() if v is not None} for row in ROWS]


def forms() -> Iterator[Any]:
    import pandas
    from datasets import Dataset

    yield FULL
    yield (row for row in FULL)
    yield Dataset.from_list(ROWS)
    yield pandas.DataFrame(ROWS)


def test_the_same_rows_are_the_same_file_and_the_same_data_as_a_file_of_them(tmp_path: Path) -> None:
    from aftertune.tuning.split import Corpus

    paths = {stored_rows(data, tmp_path / "data") for data in forms()}
    assert len(paths) == 1
    (path,) = paths
    assert [json.loads(line) for line in path.read_text().splitlines()] == FULL
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps(row, indent=None, separators=(" ,", ":")) + "\n" for row in FULL))
    loaded = [Corpus.load(DataSpec(file=file), 0) for file in (path, own)]
    assert loaded[0].fingerprint == loaded[1].fingerprint
    assert [p.name for p in (tmp_path / "data").iterdir()] == [path.name]
    assert stored_rows("owner/name", tmp_path) == Path("owner/name")


@pytest.mark.parametrize(("data", "message"), [
    ([], "no rows"), (3, "data is a int; allowed are a file"), ([1], "row 0: found a int"),
    ([{"prompt": "a", "completion": object()}], "row 0: Object of type object"),
    ([{"prompt": float("nan")}], "row 0: Out of range float"),
])
def test_what_is_no_data_is_refused(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        stored_rows(data, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_dict_of_splits_is_refused_with_one_to_choose(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    with pytest.raises(InputError, match=r"splits 'train'.*data\['train'\]"):
        stored_rows(DatasetDict({"train": Dataset.from_list(FULL)}), tmp_path)


def test_tune_refuses_a_model_in_memory() -> None:
    with pytest.raises(InputError, match="tune loads the model by itself"):
        aftertune.tune(object(), data=FULL)  # type: ignore[arg-type]


# --- Margins in points ---

def scored() -> Any:
    return evaluation(scores=(Score(task="arc_easy", metric="acc", filter="none", value=0.5, stderr=None, n=4,
                                    primary=True),))


def test_margins_are_points() -> None:
    assert margins_of(2, scored()) == {"*": Margin(0.02)}
    assert margins_of({"arc_easy": 5, "*": 1}, scored()) == {"arc_easy": Margin(0.05, 5), "*": Margin(0.01)}
    assert margins_of(Margin(0.0002), scored()) == {"*": Margin(0.0002)}


@pytest.mark.parametrize("margin", [0.02, {"arc_easy": 0.05}, 0, -1, 101, True, "2", float("nan")])
def test_a_fraction_and_what_is_no_margin_are_refused(margin: Any) -> None:
    with pytest.raises(InputError, match="points"):
        margins_of(margin, scored())
    with pytest.raises(InputError, match=r"write 2 for 2 points"):
        margins_of(0.02, scored())


def test_a_small_margin_in_the_unit_of_a_metric_is_allowed() -> None:
    value = evaluation(scores=(Score(task="own", metric="perplexity", filter="none", value=12.0, stderr=None, n=4,
                                     primary=True, unit="unbounded"),))
    assert margins_of({"own": 0.05}, value)["own"].own == 0.05


def test_the_margins_of_before_are_refused_with_the_new_form() -> None:
    with pytest.raises(InputError, match=r"margins=0.02 is margin=2"):
        aftertune.compare("a", "b", margins=0.02)


# --- Errors in the words of Python ---

@pytest.mark.parametrize(("text", "python"), [
    ("add --apply-chat-template", "add apply_chat_template=True"),
    ("use --no-enable-thinking", "use enable_thinking=False"),
    ("give one with --margin judge=VALUE", 'give one with margin={"judge": VALUE}'),
    ("(--method full), but", '(method="full"), but'),
    ("add --think-end-token, for example </think>", "add think_end_token=, for example </think>"),
    ("leave out --merge and use", "leave out merge=True and use"),
    ("raise --validation, or watch tasks (--watch TASK=N)", 'raise validation=, or watch tasks (watch={"TASK": N})'),
    ("start a new one with --fork", "start a new one with fork=True"),
    ("run `aftertune eval` first", "run `aftertune.evaluate` first"),
    ("`aftertune compare --again` judges", "`aftertune compare --again` judges"),
    ("run the same command again to finish it", "make the same call again to finish it"),
    ("--target 'held.jsonl': write TASK=N", "target='held.jsonl': write TASK=N"),
    ("a -- b", "a -- b"),
])
def test_advice_is_for_python(text: str, python: str) -> None:
    assert in_python(text) == python


def test_an_error_of_a_function_has_the_words_of_python(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        aftertune.plan_items(ledger=tmp_path / "l.db")
    assert 'tasks="hellaswag"' in str(caught.value)
    assert "--" not in str(caught.value)
    assert caught.value._render_traceback_() == [f"InputError: {caught.value}"]


@pytest.mark.parametrize(("call", "message"), [
    (lambda: aftertune.evaluate(EvalSpec(model="m", tasks=(TaskSpec(name="sciq"),)), ["arc_easy"], limit=3),
     "tasks, limit beside an EvalSpec: it has every setting, so tasks has no effect; set them there"),
    (lambda: aftertune.tune(TuneSpec(model="m", data=DataSpec(file=Path("x.jsonl"))), rank=4),
     "rank beside a TuneSpec: it has every setting"),
    (lambda: aftertune.evaluate("m", ["sciq"], adapter=object()), "adapter is a object; give its folder or Hub id"),
    (lambda: aftertune.compare(None, "t"), "found a NoneType; give two evaluations, or their ids or names"),
    (lambda: aftertune.compare(Path("b"), "t"), "found a PosixPath"),
    (lambda: aftertune.flips(object(), "t", "sciq"), "found a object; give two evaluations"),
    (lambda: aftertune.card(object()), "found a object; give an evaluation or a tuning"),
    (lambda: aftertune.record(only=object()), "only has a object; allowed are evaluations"),
    (lambda: aftertune.record(studies="none.yaml"), "none.yaml: no such study file"),
    (lambda: aftertune.drift("m", object()), "tuned is a object; drift loads both models by itself"),
    (lambda: aftertune.record(ledger=5), "ledger is a int; allowed are an open Ledger, its path, and None"),
    (lambda: aftertune.plan_items("sciq", margin=0.02), "margin is 0.02; it is given in points.* write 2 for 2 points"),
    (lambda: aftertune.plan_items("sciq", power=0.8), "power=0.8: allowed are numbers above 5 and below 100"),
    (lambda: aftertune.plan_items("sciq", discordance="10"), "discordance=10: allowed are numbers above 0"),
    (lambda: aftertune.plan_items("ownn"), r'write tasks=\{"ownn": ITEMS\}'),
])
def test_a_wrong_argument_is_one_line_that_names_it(call: Any, message: str, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(tmp_path / "l.db"))
    aftertune.Ledger().close()
    with pytest.raises(InputError, match=message):
        call()


def test_a_fine_tune_is_no_model_and_no_adapter_by_itself(tmp_path: Path) -> None:
    value = tuning(output=str(tmp_path))
    with pytest.raises(InputError, match=r"adapter=tuning\.output"):
        aftertune.evaluate(value, ["sciq"], ledger=tmp_path / "l.db")
    with pytest.raises(InputError, match=r"adapter is a Tuning; .*adapter=tuning\.output"):
        aftertune.evaluate("m", ["sciq"], adapter=value, ledger=tmp_path / "l.db")


def test_a_frame_without_its_ledger_has_the_advice_of_python(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`aftertune\.evaluate`"):
        evaluation().to_frame("answers", ledger=tmp_path / "none.db")


# --- Tables, frames, dicts ---

def test_a_table_escapes_what_others_wrote() -> None:
    html = html_table("<b>", ("<i>",), [("<script>alert(1)</script>", "\x1b[31m")], ("a & b",))
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "\x1b" not in html
    assert "&lt;b&gt;" in html
    assert "a &amp; b" in html


def test_flips_show_themselves() -> None:
    side = FlipSide(right=True, chosen="<b>yes</b>", margin=0.5)
    flips = Flips(task="t", metric="acc,none", base_name="b", tuned_name="<t>", n=3, lost=1, gained=0, flips=(
        Flip(task="t", index=1, item="h", direction="lost", question="?", choices=("a",), gold="a", base=side,
             tuned=FlipSide(right=False, chosen="no")),))
    html = flips._repr_html_()
    assert html is not None
    assert "&lt;b&gt;yes&lt;/b&gt;" in html
    assert list(flips.to_frame()["tuned"]) == ["no"]
    assert flips.to_dict()["flips"][0]["base"]["chosen"] == "<b>yes</b>"
    first, head, row = str(replace(flips, tuned_name="[red]t")).splitlines()
    assert first == "t: 1 lost and 0 gained of 3 items (acc,none)"
    assert head.split() == ["item", "question", "right", "answer", "b", "[red]t"]
    assert row.split() == ["1", "lost", "?", "a", "right:", "<b>yes</b>", "wrong:", "no"]


def test_a_ledger_says_what_it_has_and_finds_it(tmp_path: Path) -> None:
    with aftertune.Ledger(tmp_path / "l.db") as ledger:
        assert repr(ledger).endswith("0 evaluations, 0 tunings, 0 comparisons>")
        value = ledger.open_evaluation(evaluation(), [])
        assert "1 evaluations (1 not finished)" in repr(ledger)
        assert [e.id for e in ledger.search(value.name)] == [value.id]
        assert len(ledger.search(f"{value.name} nothing-of-this-name")) == 0
        assert len(ledger.search(status="done")) == 0
        assert list(ledger.search().to_frame()["id"]) == [value.id]
        assert ledger.find(value.id).id == value.id
        assert len(ledger.scores().to_frame()) == 0
        with pytest.raises(InputError, match="kind is 'model'"):
            ledger.search(kind="model")  # type: ignore[arg-type]


def test_progress_is_silent_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    from aftertune.api.progress import shown_progress

    for wanted in (None, False):
        with shown_progress(wanted) as update:
            update(1, 2, "answering")
    assert capsys.readouterr().err == ""
    with shown_progress(True) as update:
        update(1, 2, "answering")
    assert "50 % answering" in capsys.readouterr().err

    def fail() -> None:
        with shown_progress(True) as update:
            update(1, 2, "answering")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert capsys.readouterr().err.endswith(" \r"), "the bar is removed after an error too"
    seen: list[tuple[int, int, str]] = []
    with shown_progress(lambda *step: seen.append(step)) as update:
        update(1, 2, "x")
    assert seen == [(1, 2, "x")]
