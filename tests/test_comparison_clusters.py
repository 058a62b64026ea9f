"""Items that belong together, the families of the tests, and recipes over seeds by the same rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aftertune.catalog import cluster_field, cluster_label
from aftertune.comparison import compare, compare_again
from aftertune.comparison.across_seeds import contrasts_across_seeds
from aftertune.errors import TaskError
from aftertune.ledger import Ledger
from aftertune.report.table import note_text
from aftertune.study import TargetSpec, TaskSpec
from aftertune.tasks import LoadOptions, load
from aftertune.values import RULES, Answer, Evaluation, Item, ModelIdentity, Score, TaskSettings, Tuning, digest
from early_cases import ADAPTED, BASE, settings

Documents = Callable[[str, int], dict[str, Any]]


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    with Ledger(tmp_path / "ledger.db") as opened:
        yield opened


def evaluated(ledger: Ledger, name: str, model: ModelIdentity, tasks: Sequence[tuple[TaskSettings, Any]], *,
              document: Documents | None = None, stored: bool = False, group: str = "", field: str | None = None
              ) -> Evaluation:
    """A finished evaluation. document: (task, index) -> document; stored: with the clusters of the documents; group: a
    group with the mean over all items."""
    items, answers = [], []
    for task, values in tasks:
        for i, value in enumerate(values):
            doc = document(task.task, i) if document else {"q": f"{task.task} {i}"}
            cluster = cluster_label(field or cluster_field(task.task), doc) if stored else None
            items.append(Item(task=task.task, index=i, hash=digest(doc), doc=doc, cluster=cluster))
            answers.append(Answer(task=task.task, index=i, item=digest(doc), metrics={"acc,none": float(value)},
                                  cluster=cluster))
    scores = [Score(task=t.task, metric="acc", filter="none", value=float(np.mean(v)), stderr=None, n=len(v),
                    primary=True) for t, v in tasks]
    if group:
        every = np.concatenate([v for _, v in tasks])
        scores.append(Score(task=group, metric="acc", filter="none", value=float(every.mean()), stderr=None,
                            n=every.size, group=True))
    evaluation = Evaluation(id=f"e-{name}", name=name, model=model, tasks=tuple(t for t, _ in tasks), device="cpu",
                            dtype="float32", engine="packed")
    ledger.open_evaluation(evaluation, items)
    return ledger.finish_evaluation(replace(evaluation, scores=tuple(scores)), answers, [()] * len(answers))


def changed(n: int, lost: int) -> tuple[np.ndarray, np.ndarray]:
    """n right answers, of which the first ``lost`` are lost."""
    base = np.ones(n)
    tuned = base.copy()
    tuned[:lost] = 0
    return base, tuned


def compared(ledger: Ledger, task: TaskSettings, values: tuple[Any, Any], **more: Any) -> Any:
    for name, model, side in (("base", BASE, values[0]), ("tuned", ADAPTED, values[1])):
        evaluated(ledger, name, model, [(task, side)], **more)
    [row] = compare("base", "tuned", ledger=ledger).rows
    return row


# --- Items that belong together ---

def test_equal_items_are_one_cluster(ledger: Ledger) -> None:
    """100 items, ten copies of each: four lost items are 40 lost answers."""
    task = settings("own", 1000)
    values = changed(1000, 40)
    row = compared(ledger, task, values, document=lambda _, i: {"q": i // 10})
    assert (row.p_lower < .001, row.verdict) == (True, "undecided")
    assert "(100 clusters)" in row.note


def test_distinct_items_have_no_clusters(ledger: Ledger) -> None:
    row = compared(ledger, settings("own", 1000), changed(1000, 40))
    assert row.verdict == "lower"
    assert "cluster" not in row.note


@pytest.mark.parametrize("stored", [True, False])
def test_questions_on_one_passage_are_one_cluster(ledger: Ledger, stored: bool) -> None:
    """Also where both evaluations were stored before boolq had a cluster field: it is read from the documents."""
    row = compared(ledger, settings("boolq", 400, chance=.5, cluster="passage" if stored else None), changed(400, 20),
                   document=lambda _, i: {"passage": "long text " * 30 + str(i // 10), "question": i}, stored=stored)
    assert (row.p_lower < .05, row.verdict) == (True, "undecided")
    assert "(40 clusters)" in row.note


def test_clusters_of_one_side_are_enough(ledger: Ledger) -> None:
    def document(_: str, i: int) -> dict[str, Any]:
        return {"passage": i // 10, "question": i}

    base, tuned = changed(400, 20)
    task = settings("boolq", 400)
    evaluated(ledger, "base", BASE, [(task, base)], document=document)
    evaluated(ledger, "tuned", ADAPTED, [(replace(task, cluster="passage"), tuned)], document=document, stored=True)
    [row] = compare("base", "tuned", ledger=ledger).rows
    assert row.verdict == "undecided"
    assert "(40 clusters)" in row.note


def test_unknown_clusters_and_one_cluster_prove_nothing(ledger: Ledger, tmp_path: Path) -> None:
    task, values = settings("boolq", 1000), changed(1000, 200)
    row = compared(ledger, task, values)
    assert row.verdict == "undecided"
    assert "the clusters of 1,000 of 1,000 items are not known, so" in row.note
    with Ledger(tmp_path / "other.db") as other:
        row = compared(other, task, values, document=lambda _, i: {"passage": "the same", "question": i})
        assert row.verdict == "undecided"
        assert "all items are one cluster" in row.note


def test_a_paradigm_of_blimp_is_one_cluster_of_its_group_alone(ledger: Ledger) -> None:
    """Within a task the items are independent; in the group those of one phenomenon belong together."""
    names = [f"blimp_p{k}" for k in range(6)]
    tasks = [settings(name, 200, chance=.5, groups=("blimp",)) for name in names]
    lost = {"blimp_p0": 60, "blimp_p1": 60}
    for name, model, side in (("base", BASE, 0), ("tuned", ADAPTED, 1)):
        evaluated(ledger, name, model, [(t, changed(200, lost.get(t.task, 0))[side]) for t in tasks], group="blimp",
                  document=lambda task, i: {"q": f"{task} {i}", "linguistics_term": f"term {int(task[-1]) // 2}"})
    rows = {r.task: r for r in compare("base", "tuned", ledger=ledger).rows}
    assert rows["blimp"].verdict == "undecided"
    assert "(3 clusters)" in rows["blimp"].note
    assert "cluster" not in rows["blimp_p0"].note
    [row] = [r for r in compare("base", "tuned", ledger=ledger, tasks=["blimp_p0"], save=False).rows if r.primary] or \
        [rows["blimp"]]
    assert row.verdict in ("lower", "undecided")


def test_a_group_with_one_task_is_asked_as_this_task(ledger: Ledger) -> None:
    task = settings("blimp_p0", 400, chance=.5, groups=("blimp",))
    for name, model, side in (("base", BASE, 0), ("tuned", ADAPTED, 1)):
        evaluated(ledger, name, model, [(task, changed(400, 120)[side])], group="blimp",
                  document=lambda task, i: {"q": f"{task} {i}", "linguistics_term": "term"})
    rows = {r.task: r for r in compare("base", "tuned", ledger=ledger).rows}
    assert (rows["blimp"].verdict, "cluster" in rows["blimp"].note) == ("lower", False)


def test_fields_of_the_catalog() -> None:
    assert {name: cluster_field(name) for name in (
        "race", "belebele_deu_Latn", "drop", "squadv2", "multirc", "boolq", "winogrande", "wsc273", "blimp", "arc_easy",
        "hellaswag", "racecar")} == {
        "race": "article", "belebele_deu_Latn": "flores_passage", "drop": "passage", "squadv2": "context",
        "multirc": "paragraph", "boolq": "passage", "winogrande": "option1+option2", "wsc273": "options",
        "blimp": "linguistics_term", "arc_easy": None, "hellaswag": "source_id", "racecar": None}
    one, other = {"option1": "Ann", "option2": "Bea"}, {"option1": "Bea", "option2": "Ann"}
    assert cluster_label("option1+option2", one) == cluster_label("option1+option2", other) == '["Ann", "Bea"]'
    assert cluster_label("option1+option2", {"option1": "Ann"}) is None
    assert cluster_label("source_id", {"source_id": 7}) == "7"
    assert cluster_label("passage", {"passage": "x" * 500}).startswith("sha256 ")  # type: ignore[union-attr]


def test_lm_eval_reads_the_fields() -> None:
    """Each field of the catalog is in a file of the task in lm-eval's folder, or in the data of its pack."""
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    for folder, field in (("race", "article"), ("belebele", "flores_passage"), ("drop", "passage"),
                          ("squadv2", "context"), ("super_glue/multirc", "paragraph"), ("super_glue/boolq", "passage"),
                          ("winogrande", "option1"), ("winogrande", "option2"), ("wsc273", "options"),
                          ("qa4mre", "document_str"), ("mc_taco", "sentence"), ("xquad", "context")):
        texts = [p.read_text(encoding="utf-8") for p in (root / folder).iterdir() if p.is_file()]
        assert any(field in text for text in texts), (folder, field)


def test_a_target_task_names_its_field(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text("".join(f'{{"prompt": "q{i}", "completion": "a", "order": {i // 2}}}\n' for i in range(4)),
                    encoding="utf-8")
    spec = TaskSpec(name="own", target=TargetSpec(file=file, cluster="order"))
    [loaded] = load((spec,), LoadOptions())
    assert (loaded.settings.cluster, [i.cluster for i in loaded.items]) == ("order", ["0", "0", "1", "1"])
    [plain] = load((TaskSpec(name="own", target=TargetSpec(file=file)),), LoadOptions())
    assert (plain.settings.cluster, plain.items[0].cluster) == (None, None)
    wrong = TaskSpec(name="own", target=TargetSpec(file=file, cluster="passage"))
    with pytest.raises(TaskError, match=r"own.jsonl:1: `passage`, which the task's `cluster` names, must be"):
        load((wrong,), LoadOptions())


# --- Families, and the rules' version ---

def test_only_what_can_be_lost_shares_the_error_level(ledger: Ledger) -> None:
    """A loss beside two tasks at the floor and the target: alone it is proven, over four tests it is not."""
    tasks = [settings("lost", 400), settings("chance", 200), settings("guess", 200),
             settings("own", 100, target=True, chance=None)]
    base = [np.repeat([1.0, 0.0], (300, 100)), *[np.repeat([1.0, 0.0], (50, 150))] * 2, np.zeros(100)]
    tuned = [base[0].copy(), base[1], base[2], np.ones(100)]
    tuned[0][:14] = 0
    evaluated(ledger, "base", BASE, list(zip(tasks, base, strict=True)))
    evaluated(ledger, "tuned", ADAPTED, list(zip(tasks, tuned, strict=True)))
    rows = {r.task: r for r in compare("base", "tuned", ledger=ledger).rows}
    assert .05 / 4 < rows["lost"].p < .05
    assert (rows["lost"].verdict, rows["lost"].p_adjusted) == ("lower", rows["lost"].p)
    assert {name: r.family_size for name, r in rows.items()} == {"lost": 1, "chance": 2, "guess": 2, "own": 1}
    assert rows["own"].verdict == "higher"


def test_a_stored_comparison_keeps_what_it_said(ledger: Ledger) -> None:
    """One by the rules of an earlier version is returned as it is; a new judgement has an id of its own."""
    task = settings("own", 400)
    for name, model, values in zip(("base", "tuned"), (BASE, ADAPTED), changed(400, 60), strict=True):
        evaluated(ledger, name, model, [(task, values)])
    now = compare("base", "tuned", ledger=ledger, save=False)
    assert now.rules == RULES
    earlier = replace(now, rules=1, rows=(replace(now.rows[0], told="as it was", family_size=None),))
    ledger.save_comparison(earlier)
    assert compare("base", "tuned", ledger=ledger) == earlier
    again = compare_again("base", "tuned", ledger=ledger)
    assert (again.rules, again.id != earlier.id, again.rows) == (RULES, True, now.rows)
    assert ledger.find_comparison(earlier.id) == earlier
    assert compare_again("base", "tuned", ledger=ledger) == again


def test_an_undecided_row_says_what_its_number_is_for(ledger: Ledger) -> None:
    task = settings("own", 300, n_total=10_000, sample=300)
    base, tuned = changed(300, 8)
    base[290:], tuned[290:] = 0, 1
    row = compared(ledger, task, (base, tuned))
    assert row.verdict == "undecided"
    assert note_text(row).startswith(f"about {row.items_needed:,} items would decide it with power 80 % if the models "
                                     "do not differ")
    old = replace(row, items_needed_at=None, items_needed_power=None)
    assert note_text(old).startswith(f"about {row.items_needed:,} items would decide it if the models do not differ")


# --- Recipes over seeds ---

def contrast_rows(ledger: Ledger, tasks: Sequence[TaskSettings], left: Mapping[str, Any], right: Mapping[str, Any],
                  **more: Any) -> dict[str, Any]:
    """The rows of two recipes with three seeds each. left, right: task -> values [seeds, items]."""
    evaluations, tunings = [], []
    for recipe, values in (("lora", left), ("full", right)):
        for seed in range(3):
            name = f"{recipe}-s{seed}"
            model = replace(BASE, source=name, weights=name)
            evaluations.append(evaluated(ledger, name, model, [(t, values[t.task][seed]) for t in tasks], **more))
            tunings.append(Tuning(
                id=f"t-{name}", name=name, base=BASE, method=recipe, data="d", data_source="d.jsonl", examples=60,
                seed=seed, settings={}, output="out", status="done", result=model.fingerprint))
    [contrast] = contrasts_across_seeds(evaluations, tunings, margins=.05, ledger=ledger)
    return {row.task: row for row in contrast.rows}


def test_two_guessing_recipes_are_not_the_same(ledger: Ledger) -> None:
    rng = np.random.default_rng(0)
    tasks = [settings("guess", 2000), settings("known", 2000)]
    values = {"guess": (rng.random((3, 2000)) < .25) * 1.0, "known": (rng.random((3, 2000)) < .8) * 1.0}
    rows = contrast_rows(ledger, tasks, values, values | {"guess": values["guess"][:, ::-1]})
    assert (rows["guess"].verdict, rows["guess"].at_floor) == ("undecided", True)
    assert "both recipes score no better than a guess" in rows["guess"].note
    assert (rows["known"].at_floor, rows["known"].family_size) == (False, 1)


def test_subjects_of_a_group_are_one_question(ledger: Ledger) -> None:
    rng = np.random.default_rng(1)
    tasks = [settings(f"subject{k}", 60, groups=("mmlu",)) for k in range(12)]
    left = {t.task: (rng.random((3, 60)) < .7) * 1.0 for t in tasks}
    right = {name: v * (rng.random((3, 60)) < .6) for name, v in left.items()}
    rows = contrast_rows(ledger, tasks, left, right, group="mmlu")
    assert list(rows) == ["mmlu"]
    assert (rows["mmlu"].verdict, rows["mmlu"].n) == ("lower", 720)
    assert rows["mmlu"].delta == pytest.approx(np.mean([right[t] - left[t] for t in left]))
    assert "mean over the items of 12 tasks" in rows["mmlu"].note


def test_repeated_items_are_one_cluster_over_seeds_too(ledger: Ledger) -> None:
    left = {"own": np.ones((3, 400))}
    right = {"own": left["own"].copy()}
    right["own"][:, :40] = 0
    right["own"][0, 40] = 0
    rows = contrast_rows(ledger, [settings("own", 400)], left, right, document=lambda _, i: {"q": i // 20})
    assert (rows["own"].p_lower < .05, rows["own"].verdict) == (True, "undecided")
    assert "(20 clusters)" in rows["own"].note


def test_no_change_on_few_items_is_not_the_same_over_seeds(ledger: Ledger) -> None:
    left = {"own": np.ones((3, 40))}
    right = {"own": left["own"].copy()}
    right["own"][0, 0] = 0
    rows = contrast_rows(ledger, [settings("own", 40)], left, right)
    assert rows["own"].verdict == "undecided"
    assert rows["own"].low < -.08
