"""Studies whose fine-tunes are asked only as many items as their verdicts need: the file, ids, plan, run and report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aftertune import early_stopping
from aftertune.cli.study import _early_line
from aftertune.comparison import weighted_draws
from aftertune.errors import InputError
from aftertune.ledger import Ledger
from aftertune.pipeline import PlannedCell, cells_of, plan, running
from aftertune.pipeline.planning import Cost, early_items
from aftertune.stats.planning import items_until_kept
from aftertune.stats.sequential import PairedSequential
from aftertune.study import Study
from eval_cases import CHAT, byte_folder
from test_cli import call
from tuning_cases import easy_rows, write_rows

TUNING = {"base": "base", "method": "lora", "data": {"file": "d.jsonl"}}
STUDY: dict[str, Any] = {"study": "many", "bases": {"base": {"model": "base"}}, "tunings": {"lora": TUNING},
                         "tasks": [{"name": "hellaswag"}, {"name": "arc_easy"}]}


def study(**fields: Any) -> Study:
    return Study.parse(STUDY | fields, where="study.yaml", folder=Path())


def digests(made: Study) -> dict[str, str]:
    return {c.name: c.digest for c in cells_of(made)}


# --- The file ---

def test_ids_without_it_stay_and_with_it_only_fine_tunes_are_asked_again() -> None:
    before = study()
    assert "until_decided" not in json.dumps(before.tasks[0].settings())
    assert study(until_decided=False).hash == study(until_decided=None).hash == before.hash
    early = study(until_decided=True, margin=5)
    assert early.hash != study(margin=5).hash
    changed = {name for name, digest in digests(early).items() if digest != digests(study(margin=5))[name]}
    assert changed == {"evaluate lora"}
    assert digests(study(until_decided=True, margin=4)) != digests(early), "the margin decides when it stops"
    assert digests(study(margin=4)) == digests(study(margin=5))


def test_the_rule_takes_the_margins_of_the_study_and_tasks_may_differ() -> None:
    made = study(until_decided={"draw": "uniform", "max_items": 500}, margin=3)
    rule = made.early_rule("lora")
    assert rule is not None
    assert (rule.margin, rule.draw, rule.max_items, rule.target) == (3, "uniform", 500, "models")
    assert made.early_rule("base") is None
    tasks = [{"name": "hellaswag", "until_decided": True}, {"name": "arc_easy"}]
    assert [study(tasks=tasks).stops(t) for t in study(tasks=tasks).tasks] == [True, False]
    tasks[0]["until_decided"] = False
    assert study(tasks=tasks).early_rule("lora") is None
    assert [study(tasks=tasks, until_decided=True).stops(t) for t in study(tasks=tasks).tasks] == [False, True]


@pytest.mark.parametrize(("fields", "message"), [
    ({"primary": "prob"}, "stops tasks by their accuracy, so it does not go with `primary: prob`"),
    ({"family": "study", "tunings": {"lora": TUNING, "more": {**TUNING, "seed": 1}}},
     "`until_decided` proves less than `family: study` asks of several; leave one of them out"),
    ({"tasks": [{"name": "hellaswag", "only": ["lora"]}]}, "is asked hellaswag, and its base base is not; add base"),
    ({"until_decided": {"max_items": 10, "min_items": 20}}, "`max_items` is 10, less than `min_items`, 20"),
    ({"until_decided": {"most": 10}}, "unknown key `until_decided.most`; known keys here: batch")])
def test_what_cannot_stop_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        study(**({"until_decided": True} | fields))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# --- The plan ---

def test_a_plan_knows_how_items_are_drawn_and_how_many_are_asked() -> None:
    made = study(until_decided=True)
    found = {e.task: e for e in early_items(made, "lora", made.early_rule("lora"))}
    assert (found["hellaswag"].weighted, found["hellaswag"].total) == (True, 10042)
    assert found["hellaswag"].items == items_until_kept(0.1, 0.02, 10042, alpha=0.025, weighted=True) < 3000
    assert found["arc_easy"].items == found["arc_easy"].total, "too few items for this margin"
    capped = study(until_decided={"max_items": 400, "draw": "uniform"})
    assert {e.items for e in early_items(capped, "lora", capped.early_rule("lora"))} == {400}
    group = study(until_decided=True, tasks=[{"name": "mmlu"}])
    lines = [_early_line(PlannedCell("evaluate lora", "planned", Cost(1, 1, 1, ""), "", early=(*e.values(),)))
             for e in (found, {e.task: e for e in early_items(capped, "lora", capped.early_rule("lora"))})]
    assert lines[0].startswith("Until decided: a base is asked all items first, once for all its fine-tunes.")
    drawn = f"about {found['hellaswag'].items:,} of 10,042 of hellaswag (drawn where the base was unsure), all"
    assert drawn in lines[0]
    assert "about 400 of 10,042 of hellaswag, 400 of" in lines[1]
    [mmlu] = early_items(group, "lora", group.early_rule("lora"))
    assert mmlu.items == items_until_kept(0.1, 0.02, 14042, weighted=mmlu.weighted), "one question"


def test_the_estimate_is_the_median_of_runs() -> None:
    rng, used = np.random.default_rng(0), []
    for _ in range(24):
        test = PairedSequential(None, 0.02, alpha=0.05)
        d = rng.permutation(np.repeat([1.0, -1.0, 0.0], [400, 400, 9200]))
        for start in range(0, 10000, 64):
            test.update(d[start:start + 64])
            if test.verdict:
                break
        used.append(start + 64)
    assert np.median(used) == pytest.approx(items_until_kept(0.08, 0.02, 10000), rel=0.2)


# --- A run ---

@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of one tiny base with a fine-tune; 60 items are enough to be drawn with weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(tmp_path / "ledger.db"))
    monkeypatch.setattr(early_stopping, "FEW", 40)
    monkeypatch.setattr(weighted_draws, "_STRATUM", 6)
    byte_folder(tmp_path / "base", template=CHAT, window=4096)
    write_rows(tmp_path / "rows.jsonl", easy_rows())
    path = tmp_path / "study.yaml"
    path.write_text(
        "study: own\nmargin: 40\ndtype: float32\ntask_source: pack\nbases: {b: {model: ./base}}\n"
        "until_decided: {draw: weighted, target: full-run, batch: 8}\n"
        "tasks: [{name: arc_easy, sample: 60}, {name: sciq, sample: 6, until_decided: false}]\n"
        "tunings: {lora: {base: b, data: rows.jsonl, max_steps: 1}}\n", encoding="utf-8")
    return path


def test_fine_tunes_stop_at_their_verdicts_and_go_on_where_they_were_broken_off(
        file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real, count = Ledger.save_batch, [0]

    def broken(self: Ledger, evaluation: str, *given: Any) -> None:
        count[0] += self.find_evaluation(evaluation).early is not None
        if count[0] == 2:
            raise KeyboardInterrupt
        real(self, evaluation, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "save_batch", broken)
        with pytest.raises(KeyboardInterrupt), Ledger() as ledger:
            running.run(Study.load(file), ledger=ledger, out=Path("out"))
    with Ledger() as ledger:
        [begun] = [e for e in ledger.evaluations() if e.status == "running"]
        seen = set(ledger.responses(begun.id))
        cells = {c.name: c for c in plan(Study.load(file), ledger=ledger, file="study.yaml")}
        assert (cells["evaluate lora"].status, cells["evaluate b"].status) == ("planned", "done")
    assert call(monkeypatch, "run", str(file), "--out", "out", "--json") == 0
    [both] = [{r["task"]: r for r in c["rows"] if r["primary"]}
              for c in json.loads(capsys.readouterr().out)["comparisons"]]
    assert (both["arc_easy"]["stopped_of"], both["sciq"]["stopped_of"]) == (60, None)
    assert (both["arc_easy"]["n"] < 60, both["sciq"]["n"]) == (True, 6)
    assert both["arc_easy"]["margin"] == 0.4
    with Ledger() as ledger:
        base, lora = ledger.evaluations()
        assert [t.used for t in base.tasks] == [None, None]
        assert (lora.id, lora.early.against) == (begun.id, base.id)
        assert seen <= set(ledger.responses(lora.id))
        assert {u.name: (u.draw, u.used < u.items) for u in lora.early.units} == {
            "arc_easy": ("weighted", True), "sciq": ("", False)}
        assert not any("cannot be stopped" in w for w in lora.warnings)
        assert len(ledger.comparisons()) == 1
    record, page = (Path("out", name).read_text(encoding="utf-8") for name in ("record.md", "report.html"))
    for text in (record, page):
        assert "an early estimate, not the score" in text
