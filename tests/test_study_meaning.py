"""An unknown key of a study gets its likely meaning: a key of another tool, of another part, or a mistyped one."""

from __future__ import annotations

from pathlib import Path

import pytest

from aftertune.errors import InputError
from aftertune.study import _PARTS, Study, StudyTuning, TaskSpec
from aftertune.study.matrix import field_paths
from aftertune.study.meaning import OTHER_NAMES

TUNING = "study: s\nbases: {b: {model: m}}\ntasks: [{name: arc_easy}]\ntunings: {t: {base: b, data: d.jsonl, %s}}\n"


@pytest.mark.parametrize(("more", "expected"), [
    ("lr: 1e-4", "unknown key `tunings.t.lr` (did you mean 'learning_rate'?)"),
    ("num_train_epochs: 3", "(did you mean 'epochs'?)"), ("lora_r: 8", "(did you mean 'lora.r'?)"),
    ("rank: 8", "(did you mean 'lora.r'?)"), ("validation: 0.1", "(a key of `tunings.NAME.data`)"),
    ("lora: {learning_rate: 1e-4}", "unknown key `tunings.t.lora.learning_rate` (a key of `tunings.NAME`)"),
    ("margin: 3", "(a key of the study itself)"), ("epohcs: 3", "(did you mean 'epochs'?)")])
def test_an_unknown_key_gets_its_likely_meaning(more: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(TUNING % more, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        Study.load(tmp_path / "s.yaml")
    assert expected in str(caught.value)


def test_a_missing_key_says_what_it_is() -> None:
    with pytest.raises(InputError, match="One of the study's bases"):
        Study.parse({"study": "s", "bases": {"b": {"model": "m"}}, "tasks": [{"name": "a"}],
                     "tunings": {"t": {"data": "d.jsonl"}}}, where="s.yaml", folder=Path())


def test_every_meaning_is_a_key() -> None:
    known = {*field_paths(StudyTuning), *field_paths(TaskSpec), *Study.model_fields,
             *(key for part in _PARTS.values() for key in part.model_fields)}
    assert {name for names in OTHER_NAMES.values() for name in names} <= known
