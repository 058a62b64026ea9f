"""A value of another type in a good results file is refused in one line; `test_fuzz.py` tries many more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import test_exchange_lighteval
import test_exchange_versions
from aftertune.errors import InputError
from aftertune.exchange import import_results
from aftertune.ledger import Ledger
from exchange_cases import BASE_RIGHT, STAMP, lm_eval_folder


def good(kind: str, root: Path) -> Path:
    """A results file that can be imported."""
    root.mkdir(exist_ok=True)
    if kind == "lm-eval":
        return lm_eval_folder(root, "org/base", BASE_RIGHT) / f"results_{STAMP}.json"
    if kind == "lighteval":
        return test_exchange_lighteval.folder(root, "org/base", BASE_RIGHT, "0.13")
    path = root / "log.json"
    path.write_text((test_exchange_versions.DATA / "inspect_base_quiz.json").read_text())
    return path


@pytest.mark.parametrize(("kind", "change"), [
    ("lighteval", lambda v: v["config_tasks"]["arc:easy|25"]["metrics"][1].update(metric_name={})),
    ("inspect", lambda v: v["samples"][1].update(messages=True)),
    ("lm-eval", lambda v: v["configs"]["write"].update(generation_kwargs=1e308)),
    ("lm-eval", lambda v: v.update(system_instruction=3))])
def test_a_value_of_another_type_is_one_line(kind: str, change: Any, tmp_path: Path) -> None:
    path = good(kind, tmp_path / "out")
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    with Ledger(tmp_path / "ledger.db") as ledger:
        with pytest.raises(InputError, match=f"not in the form that {kind}[_a-z]* writes"):
            import_results(path, ledger=ledger)
        assert ledger.evaluations() == []
