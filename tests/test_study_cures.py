"""Less strength and rollback as cells of a study: made from the trained fine-tune, without training it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from aftertune.errors import InputError
from aftertune.ledger import Ledger
from aftertune.pipeline import cell_runs, cells_of, plan, run
from aftertune.study import Study
from eval_cases import CHAT, byte_folder
from tuning_cases import easy_rows, write_rows

pytestmark = pytest.mark.filterwarnings("ignore")
NAMES = ["rollback1", "soften0.5", "tuned"]


def study_of(folder: Path, matrix: dict[str, Any] | None = None, **tuning: Any) -> Study:
    """One fine-tune of two steps, whose first is kept, at strength 0.5 and rolled back."""
    recipe = {"base": "b", "data": {"file": "rows.jsonl", "validation": 0.2}, "max_steps": 2, "batch_size": 2,
              "learning_rate": 0.05, "early_stop": {"every": 1}, "keep_checkpoints": "all", **tuning}
    axes = matrix or {"rollback": [1, None], "soften": [0.5, None], "exclude": [{"soften": 0.5, "rollback": 1}]}
    return Study.parse({"study": "own", "dtype": "float32", "device": "cpu", "task_source": "pack",
                        "bases": {"b": {"model": str(folder / "base")}}, "tasks": [{"name": "arc_easy", "sample": 4}],
                        "matrix": {**recipe, **axes}}, where="study.yaml", folder=folder)


def test_cured_cells_come_after_what_they_are_made_from_and_other_ids_stay(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    assert sorted(study.tunings) == NAMES
    cells = {c.name: c for c in cells_of(study)}
    assert list(cells)[:2] == ["evaluate b", "tune tuned"]
    assert {cells[f"tune {name}"].needs for name in NAMES[:2]} == {("tune tuned",)}
    alone = study_of(tmp_path, {"seed": [0]})
    assert {*alone.tunings["s0"].settings()} & {"soften", "rollback"} == set()
    [trained] = [c for c in cells_of(alone) if c.name == "tune s0"]
    assert (trained.digest, trained.needs) == (cells["tune tuned"].digest, ()), "it is trained as without the cures"


@pytest.mark.parametrize(("matrix", "more", "message"), [
    ({"soften": [0.5]}, {}, r"no fine-tune with the same settings without it.*\(in a matrix: soften: \[null, 0.5\]\)"),
    ({"soften": [None, 0.5], "rollback": [None, 1]}, {}, "has `soften` and `rollback`; give one of them"),
    ({"rollback": [None, 1]}, {"keep_checkpoints": None}, "no checkpoints are kept; add keep_checkpoints: all"),
    ({"soften": [None, 0.5]}, {"merge": True}, "a cured fine-tune is not merged"),
    ({"soften": [None, 1.0]}, {}, "less than 1"),
])
def test_a_cure_that_cannot_be_made_is_refused_when_the_study_is_read(
        tmp_path: Path, matrix: dict[str, Any], more: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        study_of(tmp_path, matrix, **more)


def test_cured_cells_are_made_evaluated_and_shown_without_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                                   ) -> None:
    byte_folder(tmp_path / "base", template=CHAT, window=4096)
    write_rows(tmp_path / "rows.jsonl", easy_rows())
    trained: list[str] = []
    tune = cell_runs.tune
    monkeypatch.setattr(cell_runs, "tune", lambda spec, **more: trained.append(spec.name) or tune(spec, **more))
    study, out = study_of(tmp_path), tmp_path / "out"
    with Ledger(tmp_path / "l.db") as ledger:
        assert {c.name: c.cost.seconds for c in plan(study, ledger=ledger, file="s.yaml")}["tune soften0.5"] == 0
        found = run(study, ledger=ledger, out=out)
        assert trained == ["tuned"]
        tunings = {t.name: t for t in found.results.tunings}
        assert (tunings["soften0.5"].settings["soften"], tunings["rollback1"].settings["rollback"]) == (0.5, 1)
        assert tunings["rollback1"].result == tunings["tuned"].checkpoints[0].result
        assert tunings["rollback1"].held_out == tunings["tuned"].checkpoints[0].held_out
        assert len(found.results.comparisons) == 3
        assert all(c.lineage for c in found.results.comparisons)
        record, page = (path.read_text(encoding="utf-8") for path in (found.record, found.page))
        for text in ("without training from tuned, at strength 0.5", "without training from tuned, at its kept step 1"):
            assert text in record
            assert text in page
        again = run(study, ledger=ledger, out=out)
        assert {t.name: t.id for t in again.results.tunings} == {t.name: t.id for t in tunings.values()}
    name = "adapter_model.safetensors"
    whole, soft = (load_file(out / "tunings" / folder / name) for folder in ("tuned", "soften0.5"))
    assert all((0.5 * whole[k] - soft[k]).abs().max() == 0 for k in whole if "lora_B" in k)
    assert (out / "tunings/rollback1" / name).read_bytes() == (out / "tunings/tuned/kept/step-1" / name).read_bytes()
