"""What runs now is seen in the browser: progress, one poller for all, and what a ledger in trouble says."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from aftertune import bounds
from aftertune.errors import StorageError
from aftertune.ledger import Ledger
from aftertune.ledger.changes import LedgerChanges
from aftertune.ledger.running import PROGRESS, evaluation_mark, seconds_left, step_mark
from aftertune.ledger.sqlite import driver
from aftertune.values import Response, Tuning
from aftertune.view import live as live_module
from aftertune.view.live import LiveHub
from report_cases import TUNINGS
from view_cases import client, demo_ledger
from view_server import events, serving


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return demo_ledger(tmp_path / "ledger.db")


def begin_evaluation(ledger: Ledger, total: int, done: int) -> str:
    """An evaluation on which this process works."""
    base = ledger.find_evaluation("e-smollm2")
    items = [item for task in base.tasks for item in ledger.items(base.id, task.task)]
    new = replace(base, id="e-live000001", name="live", status="running", scores=(), schedule={})
    ledger.open_evaluation(new, items)
    ledger.acquire(new.id)
    ledger.save_schedule(new.id, {PROGRESS: evaluation_mark(total, 0, ledger.time())})
    answer(ledger, range(done))
    return new.id


def answer(ledger: Ledger, positions: range) -> None:
    ledger.save_batch("e-live000001", positions.start, {p: Response(logprob=-1.0, greedy=False) for p in positions})


def begin_tuning(ledger: Ledger, folder: Path, **values: Any) -> Tuning:
    """A fine-tune whose folder this process holds."""
    return ledger.save_tuning(replace(
        TUNINGS[0], id="t-live000001", name="live", status="running", result=None, held_out=None, steps=(),
        output=str(folder), **values))


def test_a_running_evaluation_says_how_far_it_is(path: Path) -> None:
    with Ledger(path) as ledger:
        begin_evaluation(ledger, 40, 10)
        [entry] = ledger.running()
        assert (entry.kind, entry.done, entry.total) == ("evaluation", 10, 40)
        assert entry.seconds_left is not None
        assert "10 of 40 responses" in client(path).get("/").text
        ledger.release("e-live000001")
        assert ledger.running() == []
        assert "e-live000001" in ledger.interrupted()


def test_a_running_training_says_how_far_it_is(path: Path, tmp_path: Path) -> None:
    from aftertune.sources.folder_lock import folder_lock

    folder = tmp_path / "out"
    folder.mkdir()
    with Ledger(path) as ledger, folder_lock(folder, "trains"):
        begin_tuning(ledger, folder)
        [entry] = ledger.running()
        assert (entry.done, entry.total, entry.seconds_left) == (0, 0, None)
        for number in range(1, 4):
            ledger.save_step("t-live000001", number, {"loss": 2.0 - number / 10, **step_mark(12)})
            time.sleep(0.02)
        [entry] = ledger.running()
        assert (entry.done, entry.total, entry.loss) == (3, 12, 1.7)
        assert entry.seconds_left is not None
        browser = client(path)
        assert "3 of 12 steps, loss 1.700" in browser.get("/").text
        assert "3 of 12 steps" in browser.get("/tuning/t-live000001").text
    assert "interrupted" in client(path).get("/tuning/t-live000001").text


def test_the_rest_takes_as_long_as_the_pace_says() -> None:
    assert seconds_left(30, 10, 5.0) == 15.0
    assert seconds_left(30, 0, 5.0) is None
    assert seconds_left(-3, 10, 5.0) == 0.0


def test_a_commit_of_another_connection_is_noticed(path: Path) -> None:
    changes = LedgerChanges(path)
    assert changes.happened()
    assert not changes.happened()
    with Ledger(path) as ledger:
        ledger.rename("e-careful", "renamed")
    assert changes.happened()
    assert not changes.happened()
    moved = path.with_name("moved.db")
    path.rename(moved)
    with pytest.raises(StorageError, match="not there any more"):
        changes.happened()
    moved.rename(path)
    assert changes.happened()
    changes.close()


class Counted:
    """Changes that happen when a test says so."""

    def __init__(self) -> None:
        self.now, self.trouble, self.looks = True, "", 0

    def happened(self) -> bool:
        self.looks += 1
        if self.trouble:
            raise StorageError(self.trouble)
        now, self.now = self.now, False
        return now

    def close(self) -> None:
        pass


async def _next(stream: Any) -> str:
    return str(await asyncio.wait_for(anext(stream), 20))


def test_all_browsers_share_one_poller_and_each_part_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "INTERVAL", 0.01)
    monkeypatch.setattr(live_module, "AGAIN", 1000.0)
    changes, made = Counted(), []

    def render(part: str) -> str:
        made.append(part)
        return f"<p>{part} {changes.looks}</p>"

    async def run() -> None:
        hub = LiveHub(changes, render)
        streams = [hub.events(("running",)) for _ in range(5)]
        for stream in streams:
            assert (await _next(stream)).startswith("retry")
        first = {await _next(stream) for stream in streams}
        assert len(first) == 1
        assert made == ["running"]
        changes.now = True
        second = {await _next(stream) for stream in streams}
        assert len(second) == 1
        assert second != first
        assert made == ["running"] * 2
        changes.trouble = "/data/x/ledger.db: locked"
        [trouble] = {await _next(stream) for stream in streams}
        assert "locked" in trouble
        assert "/data" not in trouble
        changes.trouble = ""
        texts = [await _next(streams[0]) for _ in range(2)]
        assert 'data: {"text": ""}' in texts[0]
        for stream in streams:
            await stream.aclose()
        assert not hub._clients

    asyncio.run(run())


def test_a_part_that_nobody_listened_to_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "AGAIN", 1000.0)
    made: list[str] = []
    hub = LiveHub(Counted(), lambda part: made.append(part) or f"<p>{len(made)}</p>")  # type: ignore[func-returns-value]
    for wanted in ({"running", "studies"}, {"running"}, {"running", "studies"}):
        hub._look(wanted)
    assert sorted(made) == ["running", "studies", "studies"]


def test_a_part_that_fails_does_not_keep_the_others_from_being_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "INTERVAL", 0.01)
    broken: dict[str, Exception] = {"a:1": ValueError("x"),
                                    "b": StorageError("/data/x/ledger.db: evaluation e-1 is damaged")}

    def render(part: str) -> str:
        if part in broken:
            raise broken[part]
        return f"<p>{part}</p>"

    async def run() -> None:
        hub = LiveHub(Counted(), render)
        stream, other = hub.events(("a:1", "b", "c")), hub.events(("c",))
        events = [await _next(stream) for _ in range(3)]
        assert "what is new in a cannot be shown (ValueError)" in events[1]
        assert "evaluation e-1 is damaged" in events[1]
        assert "/data" not in events[1]
        assert "<p>c</p>" in events[2]
        assert "<p>c</p>" in [await _next(other) for _ in range(2)][1]  # who does not show them hears nothing of them
        broken.clear()
        text = await _next(stream)
        while 'data: {"text": ""}' not in text:
            text += await _next(stream)
        assert "<p>a:1</p>" in text + await _next(stream) + await _next(stream)
        for one in (stream, other):
            await one.aclose()

    asyncio.run(run())


def test_a_connection_without_news_gets_an_empty_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "INTERVAL", 0.01)
    monkeypatch.setattr(live_module, "HEARTBEAT", 0.05)

    async def run() -> None:
        stream = LiveHub(Counted(), lambda _: "<p>same</p>").events(("running",))
        assert [(await _next(stream))[:5] for _ in range(4)] == ["retry", "event", ": sti", ": sti"]
        await stream.aclose()

    asyncio.run(run())


def test_the_number_of_listeners_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "VIEW_LISTENERS", 1)
    with serving(path) as address, events(address, "running") as first:
        next(first)
        answer = httpx.get(f"{address}/live?part=running")
        assert answer.status_code == 503
        assert "1 browsers listen already" in answer.text


@pytest.mark.parametrize("query", ["", "part=nothing", "part=Running", "&".join(f"part=study:{n}" for n in range(9))])
def test_only_parts_of_pages_are_sent(path: Path, query: str) -> None:
    browser: TestClient = client(path)
    assert browser.get(f"/live?{query}").status_code == 404
    assert browser.head("/live?part=running").status_code == 200


def test_a_run_of_another_process_shows_up_moves_and_ends(path: Path) -> None:
    with serving(path) as address, events(address, "running") as news:
        name, data = next(news)
        assert (name, data["part"]) == ("part", "running")
        assert "No process works on this ledger" in data["html"]
        with Ledger(path) as ledger:
            begin_evaluation(ledger, 40, 4)
            assert "4 of 40 responses" in _html_with(news, "of 40")
            answer(ledger, range(4, 12))
            assert "12 of 40 responses" in _html_with(news, "12 of")
            ledger.release("e-live000001")
        _html_with(news, "No process works")


def _html_with(news: Any, text: str) -> str:
    for name, data in news:
        if name == "part" and text in data["html"]:
            return str(data["html"])
    raise AssertionError(f"the events ended before {text!r}")


def test_a_ledger_that_is_moved_away_is_one_line_and_comes_back(path: Path) -> None:
    with serving(path) as address, events(address, "running") as news:
        next(news)
        moved = path.with_name("moved.db")
        path.rename(moved)
        name, data = next(n for n in news if n[0])
        assert name == "trouble"
        assert "\n" not in data["text"]
        assert str(path.parent) not in data["text"]
        moved.rename(path)
        assert next(n for n in news if n[0] == "trouble")[1]["text"] == ""


def test_a_ledger_that_is_locked_is_one_line_until_it_is_free(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "INTERVAL", 0.05)
    monkeypatch.setattr("aftertune.ledger.changes._WAIT", 0.05)
    monkeypatch.setattr("aftertune.ledger.sqlite._READ_TIMEOUT", 0.05)
    with closing(driver().connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode=DELETE")  # as on a network disk: a writer keeps readers out
        with serving(path) as address, events(address, "running") as news:
            next(news)
            other.execute("BEGIN EXCLUSIVE")
            line = next(n for n in news if n[0] == "trouble")[1]["text"]
            assert line == ("ledger.db: another process has kept the ledger locked for longer than this one waits; try "
                            "again when that process has ended")
            page = httpx.get(f"{address}/runs")
            assert page.status_code == 503
            assert "kept the ledger locked" in page.text
            other.execute("ROLLBACK")
            assert next(n for n in news if n[0] == "trouble")[1]["text"] == ""
            assert httpx.get(f"{address}/runs").status_code == 200


def test_a_ledger_that_a_newer_version_migrates_is_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "INTERVAL", 0.05)
    with serving(path) as address, events(address, "running", "studies") as news:
        next(news)
        with closing(driver().connect(path)) as other, other:
            other.execute("UPDATE alembic_version SET version_num = '9999'")
        line = next(n for n in news if n[0] == "trouble")[1]["text"]
        assert line.startswith("ledger.db: written by a newer aftertune: its schema is 9999")
        assert str(path.parent) not in line
        assert line.count("newer aftertune") == 1  # two parts, one line
        page = httpx.get(f"{address}/")
        assert page.status_code == 503
        assert "written by a newer aftertune" in page.text


def test_the_server_stops_while_browsers_listen(path: Path) -> None:
    ended = threading.Event()

    def listen(address: str) -> None:
        with events(address, "running") as news:
            for _ in news:
                pass
        ended.set()

    with serving(path) as address:
        thread = threading.Thread(target=listen, args=(address,), daemon=True)
        thread.start()
        time.sleep(0.5)
    assert ended.wait(30)
