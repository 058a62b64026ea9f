"""docs/notebook.md: each of its cells runs, in order, on a tiny seeded random model that has the name of a real one."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from eval_cases import CHAT, byte_folder

PAGE = Path(__file__).parents[1] / "docs" / "notebook.md"
CELLS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)

pytestmark = pytest.mark.filterwarnings("ignore")


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Run a cell, and return the value of its last line, as a notebook does."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(PAGE), "exec"), names)
    if last is None:
        return None
    assert isinstance(last, ast.Expr)
    return eval(compile(ast.Expression(last.value), str(PAGE), "eval"), names)


def test_every_cell_runs_and_shows_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AFTERTUNE_LEDGER", raising=False)
    byte_folder(tmp_path / "Qwen" / "Qwen2.5-0.5B", template=CHAT, window=4096)
    names: dict[str, Any] = {}
    shown: list[str] = []
    for cell in CELLS:
        value = run_cell(cell, names)
        if value is not None and hasattr(value, "_repr_html_"):
            html = value._repr_html_()
            assert html, cell
            shown.append(html)
    output = capsys.readouterr()
    assert "answering" not in output.err, "no progress is shown where there is no terminal"
    assert len(shown) >= 12
    assert sum("<svg" in html for html in shown) == 2
    assert "margin is 0.02" in output.out
    assert "--" not in output.out
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "card" / "README.md").is_file()
    assert "/data/rows-" in names["tuning"].data_source
