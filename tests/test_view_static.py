"""The pages of comparisons as files, and the explorer of items in a notebook."""

from __future__ import annotations

import base64
import gzip
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

import aftertune
from aftertune.comparison import compare
from aftertune.comparison.paired_items import paired_items
from aftertune.errors import InputError
from aftertune.ledger import Ledger
from aftertune.values import Comparison
from aftertune.view import explorer
from aftertune.view.explorer import explorer_task, packed
from aftertune.view.static_site import write_static_site
from cli_cases import call, one_line
from view_cases import demo_ledger, tags

HOSTILE = "</script><img src=x onerror=alert(1)> \u202e hf_abcdefgh12345678"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(demo_ledger(tmp_path / "ledger.db")) as found:
        yield found


@pytest.fixture
def comparison(ledger: Ledger) -> Comparison:
    return next(c for c in ledger.comparisons() if c.tuned_name == "careless")


def unpacked(text: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(text)))


def data_of(script: str) -> Any:
    """What a data file hands to the explorer."""
    found = re.fullmatch(r'aftertune\.arrived\((".*?"),"([A-Za-z0-9+/=]+)"\);\n', script)
    assert found is not None
    value = unpacked(found[2])
    assert value["task"] == json.loads(found[1])
    return value


def test_the_pages_load_only_their_own_files_and_the_data_has_every_item(ledger: Ledger, comparison: Comparison,
                                                                          tmp_path: Path) -> None:
    written = write_static_site(ledger, tmp_path / "site", ledger.comparisons())
    assert written[0] == tmp_path / "site" / "index.html"
    for page in (tmp_path / "site").glob("*.html"):
        html = page.read_text(encoding="utf-8")
        found = tags(html)
        [policy] = [v["content"] for t, v in found if t == "meta" and v.get("http-equiv") == "Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        for tag, values in found:
            assert not any(name.startswith("on") or name == "style" for name in values), (page.name, tag, values)
            for name in ("src", "href"):
                address = values.get(name, "").partition("#")[0]
                assert not address or (page.parent / unescape(address)).is_file(), address
            assert tag != "form" or values.get("method") == "dialog"
    [items] = [p for p in written if p.name == f"{comparison.id}-items.html"]
    told = re.search(r'id="explorer-tasks">(.*?)</script>', items.read_text(encoding="utf-8"))
    assert told is not None
    for task in json.loads(told[1]):
        data = data_of((tmp_path / "site" / task["file"]).read_text(encoding="utf-8"))
        listed = paired_items("smollm2", "careless", task["task"], ledger=ledger)
        assert data["counts"] == listed.counts
        assert len(data["items"]) == len(listed.items)
        assert [i["kind"] for i in data["items"]] == [i.kind for i in listed.items]
        row = next(r for r in comparison.rows if r.task == task["task"] and r.primary)
        assert (data["counts"]["lost"], data["counts"]["gained"]) == (row.lost, row.gained)


def test_the_same_comparisons_give_the_same_bytes(ledger: Ledger, tmp_path: Path) -> None:
    first, second = (write_static_site(ledger, tmp_path / name, ledger.comparisons()) for name in ("a", "b"))
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_hostile_text_and_secrets_stay_text(ledger: Ledger, comparison: Comparison, tmp_path: Path) -> None:
    listed = paired_items("smollm2", "careless", "orders", ledger=ledger)
    items = tuple(replace(i, question=HOSTILE) for i in listed.items)
    text = packed(explorer_task(replace(listed, items=items)))
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", text)
    question = unpacked(text)["items"][0]["question"]
    assert "\u202e" in question
    assert "hf_abcdefgh12345678" not in question
    named = replace(comparison, tuned_name=HOSTILE)
    written = write_static_site(ledger, tmp_path / "site", [named])
    for page in (p for p in written if p.suffix == ".html"):
        html = page.read_text(encoding="utf-8")
        assert "<img" not in html
        assert "\u202e" not in html
        assert "hf_abcdefgh" not in html


def test_of_very_many_items_those_that_changed_are_kept(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = paired_items("smollm2", "careless", "hellaswag", ledger=ledger)
    changed = listed.counts["lost"] + listed.counts["gained"]
    monkeypatch.setattr(explorer, "MOST_ITEMS", changed + 2)
    data = explorer_task(listed)
    assert sum(i["kind"] in ("lost", "gained") for i in data["items"]) == changed
    assert data["left_out"] == len(listed.items) - changed - 2 > 0


def test_a_folder_with_other_files_is_left_alone(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "index.html").write_text("<p>mine", encoding="utf-8")
    with pytest.raises(InputError, match="has other files; give --export a new or an empty folder"):
        write_static_site(ledger, tmp_path / "own", ledger.comparisons())
    assert [p.name for p in (tmp_path / "own").iterdir()] == ["index.html"]
    write_static_site(ledger, tmp_path / "site", ledger.comparisons()[:1])
    write_static_site(ledger, tmp_path / "site", ledger.comparisons())  # its own pages are written again
    one = ledger.comparisons()[0]
    write_static_site(ledger, tmp_path / "site", [one])  # nothing of the other one is left to be published
    assert all(p.name.startswith(one.id) for p in tmp_path.glob("site/**/c-*"))
    with pytest.raises(InputError, match="there is no comparison to export"):
        write_static_site(ledger, tmp_path / "none", [])


@pytest.mark.parametrize(("arguments", "message"), [
    (["--comparison", "c-1"], "--comparison has no effect without --export"),
    (["--export", "site", "--port", "80"], "--port has no effect with --export"),
    (["--export", "site", "--comparison", "c-nothing"], "c-nothing")])
def test_wrong_calls_are_one_line(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                  capfd: pytest.CaptureFixture[str]) -> None:
    demo_ledger(tmp_path / "ledger.db")
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "view", "--ledger", "ledger.db", *arguments) == 2
    assert not one_line(capfd, (message,))
    assert not (tmp_path / "site").exists()


def test_the_command_writes_the_chosen_comparison(tmp_path: Path, comparison: Comparison,
                                                  monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
                                                  ) -> None:
    assert call(monkeypatch, "view", "--ledger", str(tmp_path / "ledger.db"), "--export", str(tmp_path / "site"),
                "--comparison", comparison.id) == 0
    assert "index.html and " in capfd.readouterr().out
    assert {p.name for p in (tmp_path / "site").glob("c-*.html")} == {f"{comparison.id}.html",
                                                                      f"{comparison.id}-items.html"}


def test_a_notebook_shows_the_explorer_in_a_frame_without_files(ledger: Ledger, comparison: Comparison, tmp_path: Path
                                                                ) -> None:
    shown = aftertune.view(comparison, ledger=ledger)
    [(_tag, values)] = [t for t in tags(shown._repr_html_()) if t[0] == "iframe"]
    assert values["sandbox"] == "allow-scripts allow-downloads"
    assert values["srcdoc"] == shown.page
    found = tags(shown.page)
    assert not any(t == "link" or v.get("src") for t, v in found)
    [policy] = [v["content"] for t, v in found if t == "meta" and v.get("http-equiv")]
    assert policy.count("'sha256-") == sum(t == "script" and "type" not in v for t, v in found)
    assert aftertune.view(comparison.id, tasks="orders", ledger=ledger).save(tmp_path / "x.html").is_file()
    with pytest.raises(InputError, match="no task 'piqa' with items to show"):
        aftertune.view(comparison, tasks=["piqa"], ledger=ledger)
    with pytest.raises(InputError, match="takes a comparison or its id, not float"):
        aftertune.view(2.0, ledger=ledger)  # type: ignore[arg-type]


def test_a_comparison_without_such_items_says_so(ledger: Ledger) -> None:
    base, _, tuned = ledger.evaluations()[:3]
    plain = compare(base, tuned, ledger=ledger, tasks=["hellaswag"], save=False)
    rows = tuple(replace(r, lost=None, gained=None) for r in plain.rows)
    with pytest.raises(InputError, match="no task of this comparison is right or wrong on each item"):
        aftertune.view(replace(plain, rows=rows), ledger=ledger)


def test_the_room_keeps_the_function_its_name() -> None:
    code = "import aftertune, aftertune.view.explorer; assert callable(aftertune.view), aftertune.view"
    subprocess.run([sys.executable, "-c", code], check=True)
