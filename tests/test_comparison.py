"""Comparisons on a real ledger: pairing, the guard, lineage, groups, words, and what is refused."""

import time
from dataclasses import replace

import numpy as np
import pytest

from aftertune.comparison import compare, differences
from aftertune.comparison.rows import over_fine_tunes
from aftertune.errors import InputError, NotComparable
from aftertune.ledger import Ledger
from aftertune.report.sentences import lineage_note
from aftertune.report.table import exploratory_text, note_text
from aftertune.stats import benjamini_hochberg, paired_evidence, stratified_mean, tango_interval
from aftertune.values import (
    Answer,
    Evaluation,
    HeldOut,
    Item,
    Provenance,
    Score,
    Tuning,
    digest,
    plain,
)
from early_cases import ADAPTED, BASE, STRANGER, settings

FULL = replace(BASE, source="out/careless", weights="w1")


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.db") as opened:
        yield opened


def evaluated(ledger, name, model, tasks, *, hashes=None, clusters=None, scores=(), **more):
    """A done evaluation in the ledger. tasks: (settings, values of acc or {metric: values})."""
    answers, items, made = [], [], []
    for task, given in tasks:
        metrics = given if isinstance(given, dict) else {"acc,none": given}
        for i in range(len(next(iter(metrics.values())))):
            content = (hashes or {}).get(task.task, {}).get(i, f"{task.task} item {i}")
            cluster = clusters[i] if clusters else None
            items.append(Item(task=task.task, index=i, hash=digest(content), doc={"q": content},
                              cluster=cluster))
            answers.append(Answer(task=task.task, index=i, item=digest(content), cluster=cluster,
                                  metrics={k: float(v[i]) for k, v in metrics.items()}))
        made += [Score(task=task.task, metric=k.rpartition(",")[0], filter=k.rpartition(",")[2],
                       value=float(np.mean(v)), stderr=None, n=len(v), primary=k == task.primary)
                 for k, v in metrics.items()]
    own = {(s.task, s.key) for s in scores}
    made = [s for s in made if (s.task, s.key) not in own]
    evaluation = Evaluation(id="e-" + name, name=name, model=model, tasks=tuple(t for t, _ in tasks),
                            device="cpu", dtype="float32", engine="packed", **more)
    ledger.open_evaluation(evaluation, items)
    evaluation = replace(evaluation, scores=(*made, *scores))
    return ledger.finish_evaluation(evaluation, answers, [()] * len(answers))


def right(k, n):
    """n answers of which the first k are right."""
    return [1.0] * k + [0.0] * (n - k)


def careful(ledger, **more):
    """Base and adapter on three tasks: one lost, one kept, one gained."""
    tasks = [settings("lost", 400), settings("kept", 500), settings("orders", 60, chance=None, target=True,
                                                                    output_type="generate_until")]
    values = {"lost": (right(300, 400), right(200, 400)), "kept": (right(400, 500), right(402, 500)),
              "orders": (right(0, 60), right(50, 60))}
    sides = [[(t, dict.fromkeys(("acc_norm,none", "acc,none"), values[t.task][side])) for t in tasks]
             for side in (0, 1)]
    return evaluated(ledger, "base", BASE, sides[0]), evaluated(ledger, "careful", ADAPTED, sides[1], **more)


def test_the_whole_way(ledger):
    base, tuned = careful(ledger)
    found = compare("base", "careful", margins=.02, ledger=ledger)
    assert found.lineage
    assert found.comparable
    assert [(r.task, r.metric, r.told) for r in found.rows] == [
        ("lost", "acc", "forgot"), ("kept", "acc", "kept"), ("orders", "acc", "improved"),
        ("average", "mean", "forgot"), ("lost", "acc_norm", ""), ("kept", "acc_norm", ""), ("orders", "acc_norm", "")]
    lost = found.rows[0]
    assert (lost.n, lost.base, lost.tuned, lost.delta, lost.gained, lost.lost) == (400, .75, .5, -.25, 0, 100)
    assert (lost.low, lost.high) == tango_interval(0, 100, 400)
    assert lost.p == lost.p_lower <= lost.p_adjusted < 1e-9
    assert (lost.kind, lost.margin, lost.filter, lost.items_needed) == ("binary", .02, "none", None)
    assert found.rows[2].target
    assert not found.rows[2].at_floor
    for row in found.rows[4:]:
        assert (row.p, row.p_adjusted, row.verdict, row.primary) == (None, None, None, False)
        assert row.p_mid is not None
    assert ledger.find_comparison(found.id) == found
    assert compare(base, tuned, ledger=ledger).id == found.id
    assert compare(base, tuned, margins=.05, ledger=ledger).id != found.id
    assert plain(found)["rows"][0]["verdict"] == "lower"
    assert found.id.startswith("c-")
    assert len(found.id) == 12


def test_holm_runs_over_the_primary_rows(ledger):
    """Over those on which something can be lost: the target task is a question of its own."""
    careful(ledger)
    rows = [r for r in compare("base", "careful", ledger=ledger).rows if r.primary]
    assert [(r.task, r.family_size) for r in rows] == [("lost", 2), ("kept", 2), ("orders", 1), ("average", 1)]
    assert rows[0].p_adjusted == pytest.approx(2 * rows[0].p)
    assert rows[2].p_adjusted == rows[2].p
    within = rows[1]
    assert within.p == within.p_within
    assert within.p_adjusted == pytest.approx(2 * within.p_within)
    assert benjamini_hochberg([r.p for r in rows]) != [r.p_adjusted for r in rows]


def test_margins_per_task_and_what_is_no_margin(ledger):
    careful(ledger)
    found = compare("base", "careful", margins={"lost": .5, "elsewhere": .1}, ledger=ledger)
    assert {r.task: r.margin for r in found.rows} == {"lost": .5, "kept": .02, "orders": .02, "average": .02}
    assert found.rows[0].verdict == "within"
    for wrong in (0, -1, 2, {"lost": 0.0}, float("nan")):
        with pytest.raises(InputError, match=r"margin of lost is .*fraction above 0"):
            compare("base", "careful", margins=wrong, ledger=ledger)


def test_without_lineage_nothing_is_forgotten(ledger):
    task = settings("t", 400)
    evaluated(ledger, "one", BASE, [(task, right(300, 400))])
    evaluated(ledger, "two", STRANGER, [(task, right(200, 400))])
    found = compare("one", "two", ledger=ledger)
    assert not found.lineage
    assert found.held_out is None
    assert [r.told for r in found.rows] == ["lower"]
    backwards = compare("two", "one", ledger=ledger)
    assert [(r.told, r.delta) for r in backwards.rows] == [("higher", .25)]


def tuning(status="done", base=BASE, result=FULL.fingerprint, name="careless"):
    return Tuning(id=f"t-{name}", name=name, base=base, method="full", data="d", data_source="d.jsonl",
                  examples=600, seed=0, settings={}, output="out", status=status, result=result,
                  held_out=HeldOut(n=60, before=2.1, after=.4, low=-1.9, high=-1.5))


@pytest.mark.parametrize(("made", "proven"), [
    (tuning(), True), (tuning(status="running"), False), (tuning(base=STRANGER), False),
    (tuning(result=STRANGER.fingerprint), False)])
def test_a_done_tuning_in_the_ledger_proves_lineage(ledger, made, proven):
    task = settings("t", 400)
    evaluated(ledger, "base", BASE, [(task, right(300, 400))])
    evaluated(ledger, "full", FULL, [(task, right(200, 400))])
    ledger.save_tuning(made)
    found = compare("base", "full", ledger=ledger)
    assert found.lineage is proven
    assert found.rows[0].told == ("forgot" if proven else "lower")
    assert found.held_out == (made.held_out if proven else None)


def test_an_adapter_on_another_base_is_no_lineage(ledger):
    task = settings("t", 400)
    evaluated(ledger, "base", BASE, [(task, right(300, 400))])
    evaluated(ledger, "elsewhere", replace(ADAPTED, weights="w9"), [(task, right(200, 400))])
    evaluated(ledger, "adapted", ADAPTED, [(task, right(200, 400))])
    evaluated(ledger, "again", replace(ADAPTED, adapter="a2"), [(task, right(200, 400))])
    assert not compare("base", "elsewhere", ledger=ledger).lineage
    assert not compare("adapted", "again", ledger=ledger).lineage
    assert compare("base", "again", ledger=ledger).lineage


@pytest.mark.parametrize(("change", "field"), [
    ({"version": "2.0"}, "t.version"), ({"num_fewshot": 5, "prompts": "p"}, "t.num_fewshot"),
    ({"prompts": "p"}, "t.prompts"), ({"chat_template": "x" * 99, "prompts": "p"}, "t.chat_template"),
    ({"system_instruction": "Be brief.", "prompts": "p"}, "t.system_instruction"),
    ({"fewshot_as_multiturn": True, "prompts": "p"}, "t.fewshot_as_multiturn"),
    ({"generation": {"max_gen_toks": 8}}, "t.generation.max_gen_toks"),
])
def test_what_must_agree_is_refused_and_can_be_forced(ledger, change, field):
    task = settings("t", 40)
    left = evaluated(ledger, "one", BASE, [(task, right(30, 40))])
    other = evaluated(ledger, "two", ADAPTED, [(replace(task, **change), right(20, 40))])
    assert [(d.field, d.blocking) for d in differences(left, other)] == [(field, True)]
    with pytest.raises(NotComparable, match=rf"one and two cannot be .* differ in {field} .*--force"):
        compare("one", "two", ledger=ledger)
    assert ledger.comparisons() == []
    forced = compare("one", "two", ledger=ledger, force=True)
    assert (forced.forced, forced.comparable) == (True, False)
    assert all("forced" in r.note for r in forced.rows)
    assert len(differences(left, other)[0].right) < 70


def test_other_items_are_refused_and_forced_onto_the_shared_ones(ledger):
    one = settings("t", 6, n_total=50, sample=6, sample_seed=0)
    two = replace(one, items="other", prompts="other", sample_seed=1)
    evaluated(ledger, "one", BASE, [(one, [1, 1, 0, 0, 1, 0])])
    moved = {"t": {0: "new a", 1: "new b", 2: "t item 1", 3: "t item 0"}}
    evaluated(ledger, "two", ADAPTED, [(two, [0, 0, 0, 1, 1, 1])], hashes=moved)
    with pytest.raises(NotComparable, match=r"t.items \(6 items \| 6 items, 4 shared\); t.sample_seed"):
        compare("one", "two", ledger=ledger)
    row, = compare("one", "two", ledger=ledger, force=True).rows
    # shared: 0 (1 -> 1), 1 (1 -> 0), 4 (1 -> 1), 5 (0 -> 1)
    assert (row.n, row.gained, row.lost, row.base) == (4, 1, 1, .75)


def test_the_same_items_under_another_limit_are_comparable(ledger):
    task = settings("t", 40)
    evaluated(ledger, "one", BASE, [(task, right(30, 40))])
    evaluated(ledger, "two", ADAPTED, [(replace(task, limit=40), right(30, 40))])
    found = compare("one", "two", ledger=ledger)
    assert [(d.field, d.left, d.right, d.blocking) for d in found.differences] == [
        ("t.limit", "none", "40", False)]


def test_equal_items_are_paired_in_order(ledger):
    task = settings("t", 4)
    twins = {"t": {0: "same", 2: "same"}}
    evaluated(ledger, "one", BASE, [(task, [1, 0, 0, 1])], hashes=twins)
    evaluated(ledger, "two", ADAPTED, [(task, [1, 1, 0, 1])], hashes=twins)
    row, = compare("one", "two", ledger=ledger).rows
    assert (row.n, row.gained, row.lost) == (4, 1, 0)


def test_answers_that_are_missing_block(ledger):
    task = settings("t", 5)
    evaluated(ledger, "one", BASE, [(task, right(3, 5))])
    evaluated(ledger, "two", ADAPTED, [(task, right(3, 4))])
    with pytest.raises(NotComparable, match=r"t.items \(5 items \| 4 items, 4 shared\)"):
        compare("one", "two", ledger=ledger)


def test_what_is_only_told(ledger):
    task, extra = settings("t", 40), settings("only_here", 10)
    versions = Provenance(command="x", started="2026-01-01T00:00:00Z",
                          versions={"torch": "2.13", "lm_eval": "0.4.13", "python": "3.11"})
    evaluated(ledger, "one", BASE, [(task, right(30, 40)), (extra, right(5, 10))],
              provenance=versions)
    two = evaluated(ledger, "two", ADAPTED, [(task, right(30, 40))], provenance=replace(
        versions, versions={"torch": "2.14", "lm-eval": "0.4.13", "python": "3.12"}))
    elsewhere = replace(two, dtype="bfloat16", device="cuda", engine="plain")
    found = compare("one", elsewhere, ledger=ledger)
    assert [(d.field, d.left, d.right) for d in found.differences] == [
        ("task only_here", "evaluated", "absent"), ("dtype", "float32", "bfloat16"),
        ("device", "cpu", "cuda"), ("engine", "packed", "plain"), ("torch version", "2.13", "2.14")]
    assert found.comparable
    assert {r.task for r in found.rows} == {"t"}


def test_one_difference_in_many_tasks_is_told_once(ledger):
    tasks = [settings(f"t{i}", 4) for i in range(5)]
    one = evaluated(ledger, "one", BASE, [(t, right(3, 4)) for t in tasks])
    two = evaluated(ledger, "two", BASE, [(replace(t, num_fewshot=5), right(3, 4)) for t in tasks])
    assert [d.field for d in differences(one, two)] == ["num_fewshot (t0, t1, t2 and 2 more)"]


def test_nothing_shared_and_nothing_finished(ledger):
    one = evaluated(ledger, "one", BASE, [(settings("a", 4), right(3, 4))])
    evaluated(ledger, "two", BASE, [(settings("b", 4), right(3, 4))])
    with pytest.raises(NotComparable, match="they share no answered item; evaluate both"):
        compare("one", "two", ledger=ledger, force=True)
    with pytest.raises(InputError, match="is 'running', and only a finished one"):
        compare(one, replace(one, id="e-x", name="x", status="running"), ledger=ledger)
    with pytest.raises(InputError, match="nobody"):
        compare("one", "nobody", ledger=ledger)


def test_one_item_and_items_that_all_agree_decide_nothing_and_crash_nothing(ledger):
    one, alike, real = settings("one", 1, chance=None), settings("alike", 30), settings("real", 30, chance=None)
    for name, model in (("base", BASE), ("tuned", ADAPTED)):
        evaluated(ledger, name, model, [(one, right(1, 1)), (alike, right(30, 30)),
                                        (real, {"acc,none": [0.5] * 30, "f1,none": [0.25] * 30})])
    found = compare("base", "tuned", ledger=ledger, margins=.02)
    rows = {(r.task, r.metric): r for r in found.rows}
    assert [r.told for r in found.rows if r.primary] == ["undecided"] * 4  # and the average
    assert all(-1 <= r.low <= 0 <= r.high <= 1 and r.delta == 0 for r in rows.values())
    assert "cannot be decided with this task" in rows["one", "acc"].note
    assert "no item differs" in rows["real", "f1"].note


def test_at_the_floor_the_note_says_how_many_items_would_show_the_base_above_it(ledger):
    """27 of 100 at chance 1/4: z² · .25 · .75 / .02² = 1800.7 items; a task of 570 has too few."""
    for name, model in (("base", BASE), ("tuned", ADAPTED)):
        evaluated(ledger, name, model, [(settings(task, 100, n_total=total, sample=100), right(27, 100))
                                        for task, total in (("large", 10_000), ("small", 570))])
    large, small = (row.note for row in compare("base", "tuned", ledger=ledger).rows)
    assert large == "about 1,801 items would show that the base is above chance, if its score stays the same"
    assert small == "this task has too few items to show that the base is above chance (1,801 needed, 570 exist)"


def test_where_the_interval_rules_zero_out_the_plan_takes_the_observed_difference(ledger):
    """36 gained, 59 lost of 300, margin 5: "if they do not differ" would be planned against the evidence."""
    task = settings("t", 300, n_total=10_000, sample=300)
    base = [0.0] * 36 + [1.0] * 59 + [1.0] * 84 + [0.0] * 121
    tuned = [1.0] * 36 + [0.0] * 59 + [1.0] * 84 + [0.0] * 121
    evaluated(ledger, "base", BASE, [(task, base)])
    evaluated(ledger, "tuned", ADAPTED, [(task, tuned)])
    row, = compare("base", "tuned", ledger=ledger, margins=.05).rows
    assert (row.told, row.high < 0, row.items_needed) == ("worse", True, 4099)
    assert "about 4,099 items would decide whether it is beyond the margin" in note_text(row)


def test_floor_and_items_needed(ledger):
    chance = settings("chance", 300, n_total=300)
    small = settings("small", 100, n_total=10_000, sample=100)
    tiny = settings("tiny", 8, n_total=1319, chance=None, limit=8, output_type="generate_until")
    short = settings("short", 100)
    near = settings("near", 2000, n_total=20_000)
    base = [(chance, right(75, 300)), (small, right(60, 100)), (tiny, right(0, 8)), (short, right(60, 100)),
            (near, right(1200, 2000))]
    tuned = [(chance, right(75, 300)), (small, right(61, 100)), (tiny, right(0, 8)),
             (short, [0.0] * 15 + [1.0] * 60 + [0.0] * 25), (near, right(1160, 2000))]
    evaluated(ledger, "base", BASE, base)
    evaluated(ledger, "tuned", ADAPTED, tuned)
    rows = {r.task: r for r in compare("base", "tuned", ledger=ledger).rows}
    for name in ("chance", "tiny"):
        row = rows[name]
        assert (row.verdict, row.told) == ("undecided", "undecided (at floor: nothing to forget)")
        assert row.at_floor
        assert row.items_needed is None
        assert row.note == "the base scores at chance, so no number of items can show a loss"
    assert rows["small"].told == "undecided"
    assert 100 < rows["small"].items_needed < 10_000
    assert (rows["small"].items_needed_at, rows["small"].items_needed_power) == (0.0, 0.8)
    assert rows["short"].items_needed is None
    assert "cannot be decided with this task (" in rows["short"].note
    assert "if the models do not differ, it has 100)" in rows["short"].note
    assert rows["near"].told == "worse"
    assert "close to the margin" in rows["near"].note


def test_real_values_and_whole_task_scores(ledger):
    rng = np.random.default_rng(6)
    nll, f1 = rng.normal(3, 1, 200), rng.uniform(size=200)
    task = settings("lambada", 200, primary="perplexity,none", chance=None,
                    higher_is_better={"perplexity": False, "f1": True, "loss": False, "bleu": True})

    def side(name, model, loss, extra):
        whole = {"perplexity": float(np.exp(loss.mean())), "bleu": 12.5, "word_perplexity": 30.0}
        scores = [Score(task="lambada", metric=m, filter="none", value=v, stderr=None, n=200)
                  for m, v in whole.items()]
        values = {"perplexity,none": -loss, "loss,none": loss, "f1,none": f1 + extra, "bleu,none": f1}
        evaluated(ledger, name, model, [(task, values)], scores=scores)

    side("base", BASE, nll, 0.0)
    side("tuned", ADAPTED, nll + rng.normal(.5, .1, 200), rng.normal(0, .01, 200))
    found = compare("base", "tuned", ledger=ledger, margins={"lambada": .02})
    rows = {r.metric: r for r in found.rows}
    assert set(rows) == {"perplexity", "loss", "f1"}
    perplexity = rows["perplexity"]
    assert (perplexity.told, perplexity.kind, perplexity.gained) == ("forgot", "real", None)
    assert perplexity.base == pytest.approx(nll.mean())
    assert perplexity.delta == pytest.approx(-.5, abs=.02)
    assert perplexity.tuned > perplexity.base
    assert "in nats; perplexity is exp of its mean" in perplexity.note
    assert rows["loss"].delta == pytest.approx(perplexity.delta)
    left_out = {d.field.split()[0]: (d.left, d.blocking) for d in found.differences}
    assert left_out == {"lambada.bleu,none": ("12.5 (of the whole task)", False),
                        "lambada.word_perplexity,none": ("30 (of the whole task)", False)}


def group_scores(tasks, values, group, *, macro=False):
    means = [np.mean(values[t.task]) for t in tasks]
    whole = np.mean(means) if macro else np.mean(np.concatenate([values[t.task] for t in tasks]))
    return Score(task=group, metric="acc", filter="none", value=float(whole), stderr=None, group=True,
                 n=sum(t.n for t in tasks))


@pytest.mark.parametrize("macro", [False, True])
def test_a_group_speaks_for_its_tasks(ledger, macro):
    rng = np.random.default_rng(14)
    sizes = {"law": 150, "maths": 60, "physics": 90}
    stem = [settings(n, sizes[n], groups=("mmlu", "mmlu_stem")) for n in ("maths", "physics")]
    every = [settings("law", 150, groups=("mmlu", "mmlu_humanities")), *stem]
    alone = settings("arc", 80)
    base = {t.task: (rng.uniform(size=t.n) < .6).astype(float) for t in (*every, alone)}
    tuned = {name: np.where(rng.uniform(size=v.size) < .3, 0.0, v) for name, v in base.items()}
    for name, model, values in (("base", BASE, base), ("tuned", ADAPTED, tuned)):
        evaluated(ledger, name, model, [(t, values[t.task]) for t in (*every, alone)], scores=(
            group_scores(every, values, "mmlu", macro=macro), group_scores(stem, values, "mmlu_stem")))
    found = compare("base", "tuned", margins={"mmlu": .05}, ledger=ledger)
    assert [(r.task, r.primary, r.margin) for r in found.rows] == [
        ("mmlu", True, .05), ("arc", True, .02), ("average", True, .02), ("law", False, .05), ("mmlu_stem", False, .02),
        ("maths", False, .05), ("physics", False, .05)]
    mmlu = found.rows[0]
    expected = stratified_mean([tuned[t.task] - base[t.task] for t in every], "macro" if macro else "micro")
    assert (mmlu.n, mmlu.delta) == (300, pytest.approx(expected.mean))
    low, high = expected.interval()
    assert low - .01 < mmlu.low <= low + 1e-12  # wider by the bound on losses that were not seen
    assert high - 1e-12 <= mmlu.high < high + .02
    assert (mmlu.told, mmlu.kind) == ("forgot", "binary")
    assert f"mean over the {'tasks' if macro else 'items'} of 3 tasks" in mmlu.note


def test_half_a_group_has_no_row(ledger):
    maths, law = (settings(n, 50, groups=("mmlu",)) for n in ("maths", "law"))
    values = {"maths": right(30, 50), "law": right(20, 50)}
    score = group_scores([maths, law], values, "mmlu")
    evaluated(ledger, "one", BASE, [(t, values[t.task]) for t in (maths, law)], scores=(score,))
    evaluated(ledger, "two", ADAPTED, [(maths, values["maths"])], scores=(score,))
    assert [(r.task, r.primary) for r in compare("one", "two", ledger=ledger).rows] == [("maths", True)]


def test_clusters_stand_beside_tango(ledger):
    task = settings("hellaswag", 400, cluster="source_id")
    sources = [str(i // 10) for i in range(400)]
    tuned = [0.0] * 20 + [1.0] * 380
    evaluated(ledger, "base", BASE, [(task, right(400, 400))], clusters=sources)
    evaluated(ledger, "tuned", ADAPTED, [(task, tuned)], clusters=sources)
    row, = compare("base", "tuned", ledger=ledger).rows
    assert row.told == "undecided"
    assert row.p_lower < .05 < row.p_adjusted
    assert "the tests disagree: lower by the item-wise test, undecided by the cluster-robust test" in row.note
    assert (row.low, row.high) == tango_interval(0, 20, 400)


def test_a_full_hellaswag_takes_well_under_a_second():
    """The statistics of 10,042 items with clusters, two metrics: the database is timed by its own tests."""
    rng = np.random.default_rng(1)
    base = (rng.uniform(size=10_042) < .6).astype(float)
    tuned = np.where(rng.uniform(size=10_042) < .08, 1 - base, base)
    clusters = [str(x) for x in rng.integers(0, 8407, 10_042)]
    start = time.process_time()
    for _ in range(2):
        paired_evidence(base, tuned, margin=.02, clusters=clusters)
    assert time.process_time() - start < 1.


def test_common_items_are_paired_on_request_only(ledger):
    one = settings("t", 6, n_total=50, sample=6, sample_seed=0)
    two = replace(one, items="other", prompts="other", sample_seed=1)
    evaluated(ledger, "one", BASE, [(one, [1, 1, 0, 0, 1, 0])])
    moved = {"t": {0: "new a", 1: "new b", 2: "t item 1", 3: "t item 0"}}
    evaluated(ledger, "two", ADAPTED, [(two, [0, 0, 0, 1, 1, 1])], hashes=moved)
    with pytest.raises(NotComparable, match=r"or compare the items that both have \(--common\)") as raised:
        compare("one", "two", ledger=ledger)
    assert [d.field for d in raised.value.differences] == ["t.items", "t.sample_seed"]
    found = compare("one", "two", ledger=ledger, common=True)
    row, = found.rows
    assert (row.n, row.n_total, row.gained, row.lost) == (4, 50, 1, 1)
    assert (found.forced, found.common, found.comparable) == (False, True, True)
    assert "forced" not in row.note
    assert ("t.items", "6 items", "6 items, 4 shared") in [(d.field, d.left, d.right) for d in found.differences]
    forced = compare("one", "two", ledger=ledger, force=True)
    assert forced.id != found.id


def test_common_items_leave_other_differences_blocking_and_doubt_the_examples(ledger):
    one = settings("t", 6, num_fewshot=5)
    evaluated(ledger, "one", BASE, [(one, [1, 1, 0, 0, 1, 0])])
    evaluated(ledger, "two", ADAPTED, [(replace(one, items="other", limit=5), [1, 1, 0, 0, 1])])
    evaluated(ledger, "three", ADAPTED, [(replace(one, items="other", version="2"), [1, 1, 0, 0, 1])])
    found = compare("one", "two", ledger=ledger, common=True)
    assert any("common items may differ" in d.field for d in found.differences)
    with pytest.raises(NotComparable, match=r"t\.version .*--force"):
        compare("one", "three", ledger=ledger, common=True)


def test_metrics_that_differ_block(ledger):
    task = settings("t", 4)
    one = evaluated(ledger, "one", BASE, [(task, right(3, 4))])
    other = replace(task, primary="acc_norm,none", higher_is_better={"acc_norm": True})
    two = evaluated(ledger, "two", ADAPTED, [(other, {"acc_norm,none": right(3, 4)})])
    assert [d.field for d in differences(one, two) if d.blocking] == ["t.primary", "t.metrics"]


def test_how_the_models_are_related(ledger):
    """Base and tuned, the wrong way round, two tunings of one base, one model twice, and strangers."""
    task = settings("t", 400)
    for name, model in (("base", BASE), ("a1", ADAPTED), ("a2", replace(ADAPTED, adapter="a2")), ("full", FULL),
                        ("again", replace(BASE, source="elsewhere")), ("stranger", STRANGER)):
        evaluated(ledger, name, model, [(task, right(300, 400))])
    ledger.save_tuning(tuning())
    relations = {(a, b): compare(a, b, ledger=ledger).relation for a, b in (
        ("base", "a1"), ("base", "full"), ("a1", "base"), ("full", "base"), ("a1", "a2"), ("a1", "full"),
        ("base", "again"), ("base", "stranger"), ("a1", "stranger"))}
    assert list(relations.values()) == [
        "tuned", "tuned", "reversed", "reversed", "siblings", "siblings", "same model", "", ""]
    siblings = compare("a1", "full", ledger=ledger)
    assert (siblings.origin, siblings.lineage, siblings.rows[0].told) == ("base", False, "within")
    assert "a1 and full were both made from base" in lineage_note(siblings)
    assert "the base is the second one here" in lineage_note(compare("full", "base", ledger=ledger))


def test_one_gate_or_question_may_look_at_some_tasks_alone(ledger):
    careful(ledger)
    found = compare("base", "careful", ledger=ledger, tasks=["kept"], save=False)
    assert {r.task for r in found.rows} == {"kept"}
    assert found.rows[0].p == found.rows[0].p_adjusted
    assert ledger.comparisons() == []
    with pytest.raises(InputError, match=r"no task 'kepd' \(did you mean 'kept'"):
        compare("base", "careful", ledger=ledger, tasks=["kepd"])


def test_a_margin_for_all_others(ledger):
    careful(ledger)
    found = compare("base", "careful", margins={"lost": .5, "*": .1}, ledger=ledger)
    assert {r.task: r.margin for r in found.rows} == {"lost": .5, "kept": .1, "orders": .1, "average": .1}


def test_the_tasks_of_a_group_are_explored_by_benjamini_hochberg(ledger):
    """57 subjects are one question; which of them stand out is told by q, without a verdict."""
    names = [f"mmlu_{i}" for i in range(12)]
    tasks = [settings(n, 60, groups=("mmlu",)) for n in names]
    before, after = [right(40, 60)] * 12, [right(10 if k < 2 else 39, 60) for k in range(12)]
    for name, model, values in (("base", BASE, before), ("tuned", ADAPTED, after)):
        evaluated(ledger, name, model, list(zip(tasks, values, strict=True)), scores=(group_scores(
            tasks, dict(zip(names, values, strict=True)), "mmlu"),))
    found = compare("base", "tuned", ledger=ledger)
    rows = [r for r in found.rows if r.group]
    assert [r.task for r in found.rows if r.primary] == ["mmlu"]
    assert {r.group for r in rows} == {"mmlu"}
    assert [r.q for r in rows] == pytest.approx(benjamini_hochberg([r.p_mid for r in rows]))
    assert exploratory_text(found) == [
        "MMLU (12 tasks): lower on MMLU 0, MMLU 1 (exploratory, Benjamini-Hochberg at 5 %)"]
    mmlu = found.rows[0]
    assert any("by task (cluster-robust)" in d for d in mmlu.details)
    assert any("macro mean" in d for d in mmlu.details)
    # a tenth is lost over all items, but in two of twelve tasks only: as a sample of tasks that proves nothing
    assert mmlu.verdict == "undecided"
    assert "undecided by the cluster-robust test" in mmlu.note


# --- Several fine-tunes together ---

def test_as_a_study_each_fine_tune_is_judged_at_its_part_of_the_level(ledger):
    """One comparison that is proven, and one that is proven only if it is judged alone. Of that one the weaker word
    stays, as far as it is proven over all."""
    base = evaluated(ledger, "base", BASE, [(settings("a", 400), right(300, 400))])
    clear = evaluated(ledger, "clear", ADAPTED, [(settings("a", 400), right(200, 400))])
    narrow = evaluated(ledger, "narrow", FULL, [(settings("a", 400), right(291, 400))])
    alone = [compare(base, tuned, margins=.01, ledger=ledger) for tuned in (clear, narrow)]
    assert [c.rows[0].verdict for c in alone] == ["lower", "lower"]
    p = [c.rows[0].p_adjusted for c in alone]
    assert .025 < p[1] < .05
    both = over_fine_tunes(alone)
    assert [(c.rows[0].verdict, c.rows[0].told) for c in both] == [("lower", "forgot"), ("worse", "worse")]
    assert [c.rows[0].p_adjusted for c in both] == pytest.approx([2 * p[0], 2 * alone[1].rows[0].p_worse])
    assert [c.rows[0].family_size for c in both] == [2, 2]
    assert "lower if this fine-tune is judged alone; over 2 fine-tunes only worse is proven" in both[1].rows[0].note
    many = over_fine_tunes([alone[1]] * 200)[0].rows[0]
    assert (many.verdict, many.told) == ("undecided", "undecided")
    assert "over 200 fine-tunes nothing is proven" in many.note
    earlier = replace(alone[1], rules=3, rows=(replace(alone[1].rows[0], p_claims={}),))
    assert over_fine_tunes([earlier, earlier])[0].rows[0].verdict == "undecided", "only the p of its verdict is known"
    assert over_fine_tunes(alone[:1]) == alone[:1]
    assert [c.rows[0].verdict for c in ledger.comparisons()] == ["lower", "lower"]  # stored as they are one by one
