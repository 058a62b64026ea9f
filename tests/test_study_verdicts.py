"""What a study file says about verdicts: all fine-tunes as one family, and expected accuracy as the primary metric."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from aftertune.comparison import choose_primary, compare
from aftertune.errors import InputError
from aftertune.ledger import Ledger
from aftertune.pipeline.study_verdicts import over_studies, with_study_primary
from aftertune.study import Study
from early_cases import ADAPTED, BASE, changed, settings, store
from test_comparison import evaluated, right

STUDY = {"study": "many", "bases": {"base": {"model": "base"}}, "tasks": [{"name": "hellaswag"}],
         "tunings": {f"lora{k}": {"base": "base", "method": "lora", "data": {"file": "d.jsonl"}} for k in range(3)}}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as opened:
        yield opened


def stored(ledger: Ledger, refs: dict[str, str], **fields: str) -> None:
    """A study in the ledger with evaluations as its cells."""
    study = Study.model_validate(STUDY | fields)
    ledger.save_study(study.study, study.hash, study.model_dump_json())
    for name, ref in refs.items():
        ledger.save_cell(study.study, f"evaluate {name}", "done", ref=ref)


def test_ids_of_studies_without_the_fields_stay() -> None:
    plain = Study.model_validate(STUDY)
    assert Study.model_validate(STUDY | {"family": "pair"}).hash == plain.hash
    assert len({plain.hash, *(Study.model_validate(STUDY | more).hash
                              for more in ({"family": "study"}, {"primary": "prob"}))}) == 3
    assert "family" not in plain.later_settings(), "they change no evaluation"


def test_a_study_is_one_family_of_all_its_fine_tunes(ledger: Ledger) -> None:
    """Of three fine-tunes of the file one is evaluated; its verdict is that of three."""
    base = evaluated(ledger, "base", BASE, [(settings("a", 400), right(300, 400))])
    tuned = evaluated(ledger, "tuned", ADAPTED, [(settings("a", 400), right(291, 400))])
    alone = compare(base, tuned, margins=.01, ledger=ledger)
    assert alone.rows[0].told == "forgot"
    stored(ledger, {"base": base.id, "lora0": tuned.id})
    assert over_studies([alone], ledger) == (alone,)
    stored(ledger, {}, family="study")
    [judged] = over_studies([alone], ledger)
    assert (judged.rows[0].told, judged.rows[0].family_size) == ("worse", 3)
    assert judged.rows[0].p_adjusted == pytest.approx(3 * alone.rows[0].p_claims["worse"])
    assert ledger.find_comparison(alone.id) == alone, "stored as it is one by one"
    other = replace(alone, tuned="e-other")
    assert over_studies([other], ledger) == (other,), "not of the study"


def test_a_study_of_an_earlier_version_has_the_usual_rules(ledger: Ledger) -> None:
    base = evaluated(ledger, "base", BASE, [(settings("a", 400), right(300, 400))])
    study = Study.model_validate(STUDY)
    older = {k: v for k, v in study.model_dump(mode="json").items() if k not in ("family", "primary")}
    ledger.save_study(study.study, study.hash, json.dumps(older))
    ledger.save_cell(study.study, "evaluate base", "done", ref=base.id)
    assert with_study_primary([base], ledger) == (base,)


def test_expected_accuracy_as_the_primary_metric_of_a_study(ledger: Ledger) -> None:
    base = evaluated(ledger, "base", BASE, [(settings("a", 40), right(30, 40)), (
        settings("g", 40, output_type="generate_until"), right(30, 40))])
    other = evaluated(ledger, "other", BASE, [(settings("g", 40, output_type="generate_until"), right(30, 40))])
    stored(ledger, {"base": base.id, "lora0": other.id}, primary="prob")
    judged = with_study_primary([base, other], ledger)
    assert [t.primary for t in judged[0].tasks] == ["prob,none", "acc,none"]
    assert judged[1] == other, "nothing to choose among"


def test_after_an_early_stop_there_is_no_other_primary_metric(ledger: Ledger) -> None:
    base, tuned = changed(1000, .6, 30, 130)
    store(ledger, "base", BASE, {"t": base})
    early = store(ledger, "early", ADAPTED, {"t": tuned}, used={"t": 320})
    with pytest.raises(InputError, match="task t was stopped early by a test of acc, so it has no verdict by prob"):
        choose_primary(early, "prob")
