"""The bench's own arithmetic: answers that must agree, parts that are kept, and the page it writes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import speed


def test_answers_must_agree() -> None:
    same = [[-1.0, True], [-2.0, False]]
    assert speed.disagreement(same, same, "float32") == ""
    assert "0.002" in speed.disagreement(same, [[-1.002, True], [-2.0, False]], "float32")
    assert "1 answers against 2" in speed.disagreement(same[:1], same, "float32")
    assert "50% agree" in speed.disagreement(same, [[-1.3, False], [-2.0, False]], "bfloat16")
    texts = ["a"] * 19
    assert speed.disagreement([*texts, "b"], [*texts, "c"], "float32") == ""
    assert "90% of the texts" in speed.disagreement([*texts[1:], "b", "b"], [*texts[1:], "c", "c"], "float32")


def test_a_finished_part_is_not_made_again(tmp_path: Path) -> None:
    made: list[str] = []
    for _ in range(2):
        store = speed.Store(tmp_path / "speed.json", fresh=False)
        assert store.part("one", lambda: made.append("one") or {"seconds": 1.5}) == {"seconds": 1.5}
    assert made == ["one"]
    speed.Store(tmp_path / "speed.json", fresh=True).part("one", lambda: made.append("again") or {})
    assert made == ["one", "again"]


def round_of(ours: float, theirs: float) -> dict[str, Any]:
    common = {"items": 64, "peak": 2**30}
    return {"aftertune": {**common, "seconds": ours, "verify": 2.0, "tokens": 10_000, "kept": 1_000},
            "lm-eval": {**common, "seconds": theirs}}


def test_the_page_tells_ratios_of_rounds_and_the_share_of_the_floor() -> None:
    result = {"batch": 16, "rounds": [round_of(10, 30), round_of(8, 20), round_of(10, 27)],
              "floor": {"layers": 0.0005, "head": 0.002}}
    page = "\n".join(speed.lines({"float32": {"hellaswag": result}},
                                 {"float32": {"100": 12.0, "400": 40.0, "1600": 160.0}}))
    assert "**2.70** (2.50 to 3.00)" in page
    assert "2.37 (16) | 6.40" in page
    assert "aftertune reaches 70% of it (70% to 88%)" in page
    assert "1600 cost 4.00 times 400" in page


def test_every_work_has_its_bar_and_its_items() -> None:
    assert set(speed.WORKS) == {"hellaswag", "mmlu", "choices", "gsm8k", "gsm8k_cot"}
    for work in speed.WORKS.values():
        assert set(work.bars) == {"float32", "bfloat16"}
        assert all(work.count(dtype) >= work.tried for dtype in work.bars) or work.tokens is None
    with pytest.raises(SystemExit, match="unknown typo"):
        speed.main(["--only", "typo"])
