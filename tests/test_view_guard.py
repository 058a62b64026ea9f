"""Who may ask the view and for what: hosts, origins, token, sizes, the secret of forms, headers, and error pages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from aftertune import bounds
from aftertune.errors import InputError, ResourceError, StorageError
from aftertune.ledger import EntryLabel, Ledger
from aftertune.ledger.schema import HEAD
from aftertune.ledger.sqlite import driver
from aftertune.view.guard import CSRF, POLICY, Access
from aftertune.view.ledgers import LedgerSource
from aftertune.view.rendering import _themes
from aftertune.view.server import ServerAddress, allowed_hosts, serve
from view_cases import HOST, ORIGIN, client, csrf_of, demo_ledger, post, tags

#: Every kind of page.
PAGES = ("/", "/runs", "/runs?q=careful&sort=name&order=desc&status=done", "/entry/e-careful", "/entry/t-careful001",
         "/compare/smollm2/careful", "/compare/e-smollm2/e-careless?task=hellaswag", "/compare/careful/careless",
         "/compare-reason?pick=e-careful&pick=e-smollm2")


@pytest.fixture(scope="module")
def ledger_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_ledger(tmp_path_factory.mktemp("view") / "ledger.db")


@pytest.fixture
def browser(ledger_path: Path) -> TestClient:
    return client(ledger_path)


@pytest.mark.parametrize("path", PAGES)
def test_a_page_has_a_strict_policy_and_nothing_inline(browser: TestClient, path: str) -> None:
    answer = browser.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    for tag, values in tags(answer.text):
        assert not [name for name in values if name == "style" or name.startswith("on")], (tag, values)
        assert tag != "style"
        assert tag != "script" or "src" in values or values.get("type") == "application/json"
        for name in ("src", "href", "action"):
            assert not values.get(name, "/").startswith(("http", "//", "javascript", "data")), (tag, values)


@pytest.mark.parametrize("path", PAGES)
def test_no_get_writes(ledger_path: Path, path: str) -> None:
    def content() -> dict[str, list[Any]]:
        with Ledger(ledger_path, read_only=True) as ledger, ledger.database.read() as connection:
            names = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars().all()
            return {name: list(connection.exec_driver_sql(f'SELECT * FROM "{name}"')) for name in names}

    before = content()
    client(ledger_path).get(path)
    assert content() == before


def test_the_ledger_refuses_writes_through_the_connection_of_pages(ledger_path: Path) -> None:
    from sqlalchemy.exc import OperationalError

    with LedgerSource(ledger_path).read() as ledger:
        with pytest.raises(StorageError, match="opened for reading"):
            ledger.save_label("e-careful", EntryLabel(note="x"))
        with pytest.raises((StorageError, OperationalError)), ledger.database.read() as connection:
            connection.exec_driver_sql("DELETE FROM label")
        with pytest.raises((StorageError, OperationalError)), ledger.database.read() as connection:
            connection.exec_driver_sql("CREATE TABLE x (y)")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("host", ["evil.example", "evil.example:7788", "127.0.0.1", "127.0.0.1:1", "",
                                  "localhost:7788.evil"])
def test_another_host_is_refused_with_every_method(browser: TestClient, method: str, host: str) -> None:
    assert browser.request(method, "/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:7789", "file://", ""])
def test_another_origin_is_refused_with_every_method(browser: TestClient, method: str, origin: str) -> None:
    assert browser.request(method, "/", headers={"origin": origin}).status_code == 403


def test_a_request_that_another_site_makes_a_page_send_is_refused(browser: TestClient) -> None:
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert browser.get("/", headers=headers).status_code == 403
    assert browser.get("/", headers={**headers, "sec-fetch-mode": "navigate"}).status_code == 200  # a link to us


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "X" * 99])
def test_another_method_is_refused(browser: TestClient, method: str) -> None:
    assert browser.request(method, "/").status_code == 405


def test_sizes_are_bounded(browser: TestClient) -> None:
    assert browser.get("/runs?q=" + "a" * bounds.VIEW_QUERY).status_code == 414
    assert browser.get("/" + "a" * bounds.VIEW_QUERY).status_code == 414
    assert browser.get("/runs?q=" + "a" * 501).status_code == 404
    form = {CSRF: csrf_of(browser), "note": "a" * (bounds.VIEW_BODY + 1)}
    assert browser.post("/entry/e-careful/note", data=form, headers={"origin": ORIGIN}).status_code == 413

    def chunks() -> Iterator[bytes]:  # no content-length
        for _ in range(bounds.VIEW_BODY // 1000 + 2):
            yield b"a" * 1000

    answer = browser.post("/entry/e-careful/note", content=chunks(), headers={
        "origin": ORIGIN, "content-type": "application/x-www-form-urlencoded"})
    assert answer.status_code == 413


def test_a_change_needs_the_secret_of_a_page_and_an_origin(browser: TestClient, ledger_path: Path) -> None:
    secret = csrf_of(browser)
    path, fields = "/entry/e-careful/note", {"note": "changed"}
    assert browser.post(path, data={CSRF: secret, **fields}).status_code == 403  # no origin
    assert browser.post(path, data=fields, headers={"origin": ORIGIN}).status_code == 403
    assert browser.post(path, data={CSRF: "x" + secret, **fields}, headers={"origin": ORIGIN}).status_code == 403
    assert browser.post(path, json={CSRF: secret}, headers={"origin": ORIGIN}).status_code == 415
    assert browser.get(path).status_code == 405
    with Ledger(ledger_path, read_only=True) as ledger:
        assert "e-careful" not in ledger.labels()
    assert browser.post(path, data=fields, headers={"origin": ORIGIN, "x-csrf-token": secret},
                        follow_redirects=False).status_code == 303
    with Ledger(ledger_path) as ledger:
        assert ledger.labels()["e-careful"].note == "changed"
        ledger.save_label("e-careful", EntryLabel())


def test_without_the_token_nothing_is_shown(ledger_path: Path) -> None:
    browser = client(ledger_path, access=Access(hosts=frozenset({HOST}), token="s3cret-token"))
    for path in ("/", "/runs", "/static/view.js", "/?token=other", "/entry/e-careful"):
        answer = browser.get(path)
        assert answer.status_code == 401
        assert "smollm2" not in answer.text
        assert "s3cret-token" not in answer.text
    assert browser.get("/", headers={"cookie": "aftertune_view_7788=other"}).status_code == 401
    first = browser.get("/runs?q=a%22b&token=s3cret-token")
    assert first.status_code == 200
    assert "url=/runs?q=a%22b\"" in first.text
    cookie = first.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert browser.get("/runs").status_code == 200  # the cookie is kept
    assert "s3cret-token" not in browser.get("/runs").text


def test_cookies_of_other_ports_do_not_hide_the_token(ledger_path: Path) -> None:
    browser = client(ledger_path, access=Access(hosts=frozenset({HOST}), token="s3cret-token"))
    assert browser.get("/?" + "a=1&" * 200).status_code == 401
    for other in ('state={"a": 1}', "x y=1", "a[b]=c,d", "=;"):
        cookies = f"{other}; aftertune_view_7788=s3cret-token"
        assert browser.get("/", headers={"cookie": cookies}).status_code == 200, other
        assert browser.get("/", headers={"cookie": f"{other}; aftertune_view_7788=other"}).status_code == 401


def test_a_browser_has_the_tokens_of_two_views_of_one_machine(ledger_path: Path) -> None:
    views = [client(ledger_path, access=Access(hosts=frozenset({f"127.0.0.1:{port}"}), token=f"token-{port}"))
             for port in (7788, 8000)]
    views[1].base_url = "http://127.0.0.1:8000"
    views[1].cookies = views[0].cookies  # as browsers do: a cookie has no port
    for port, view in zip((7788, 8000), views, strict=True):
        assert view.get(f"/?token=token-{port}").status_code == 200
    assert [view.get("/").status_code for view in views] == [200, 200]


@pytest.mark.parametrize("page", ["--5", "-", "1-", "²"])
def test_a_number_that_is_none_is_one_line(browser: TestClient, page: str) -> None:
    answer = browser.get("/runs", params={"page": page})
    assert answer.status_code == 404
    assert "allowed are whole numbers from 1 to 100000" in answer.text


def test_an_error_page_has_one_line_without_paths_and_without_a_traceback(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = demo_ledger(tmp_path / "ledger.db")
    browser = client(path)
    assert browser.get("/").status_code == 200
    path.rename(tmp_path / "moved.db")
    answer = browser.get("/")
    assert answer.status_code == 404
    assert "no ledger here yet" in answer.text
    assert str(tmp_path) not in answer.text
    part = browser.get("/compare-reason?pick=e-careful&pick=e-smollm2")
    assert "no ledger here yet" in part.text
    assert str(tmp_path) not in part.text
    (tmp_path / "moved.db").rename(path)
    assert browser.get("/").status_code == 200  # and it comes back

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(f"secret {tmp_path}/x hf_abcdefgh12345678")

    monkeypatch.setattr("aftertune.ledger.Ledger.newest_comparisons", fail)
    answer = browser.get("/")
    assert answer.status_code == 500
    for text in ("Traceback", str(tmp_path), "hf_abc", "secret"):
        assert text not in answer.text
    assert "RuntimeError" in capsys.readouterr().err


def test_a_ledger_that_is_newer_damaged_or_old_is_one_line(tmp_path: Path) -> None:
    path = demo_ledger(tmp_path / "ledger.db")
    browser = client(path)
    assert browser.get("/runs").status_code == 200
    sql(path, "UPDATE alembic_version SET version_num = '9999'")
    answer = browser.get("/runs")
    assert answer.status_code == 503
    assert "newer aftertune" in answer.text
    sql(path, "UPDATE alembic_version SET version_num = '0003'")
    assert "run `aftertune ledger size ledger.db` once" in browser.get("/runs").text
    sql(path, f"UPDATE alembic_version SET version_num = '{HEAD}'")
    assert browser.get("/runs").status_code == 200
    path.write_bytes(b"no database " * 100)
    answer = browser.get("/runs")
    assert answer.status_code == 503
    assert str(tmp_path) not in answer.text


def sql(path: Path, statement: str) -> None:
    """A change by another connection of the same library: two libraries in one process do not see their locks."""
    with closing(driver().connect(str(path), isolation_level=None)) as raw:
        raw.execute(statement)


def test_a_locked_ledger_is_one_line_after_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aftertune.ledger import sqlite

    path = demo_ledger(tmp_path / "ledger.db")
    sql(path, "PRAGMA journal_mode=DELETE")
    browser = client(path)
    assert browser.get("/runs").status_code == 200
    monkeypatch.setattr(sqlite, "_READ_TIMEOUT", 0.05)
    holder = sqlite.driver().connect(str(path), isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    answer = browser.get("/runs")
    assert answer.status_code == 503
    assert "locked" in answer.text
    holder.rollback()
    holder.close()
    assert browser.get("/runs").status_code == 200


def test_another_address_needs_a_token(ledger_path: Path) -> None:
    source = LedgerSource(ledger_path)
    for host in ("0.0.0.0", "192.0.2.1", "::", "example.org"):
        with pytest.raises(InputError, match="add --token"):
            serve(source, ServerAddress(host, 0), announce=print)
    assert ServerAddress("127.0.0.1").loopback
    assert ServerAddress("::1").loopback
    assert ServerAddress("localhost").loopback


def test_a_port_that_is_taken_is_one_line(ledger_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ResourceError, match="--port 0"):
            serve(LedgerSource(ledger_path), ServerAddress(port=taken.getsockname()[1]), announce=print)


def test_the_allowed_hosts_are_those_of_the_address() -> None:
    assert allowed_hosts("127.0.0.1", 7788) == {"127.0.0.1:7788", "localhost:7788", "[::1]:7788"}
    assert "localhost" in allowed_hosts("localhost", 80)
    assert allowed_hosts("192.0.2.1", 7) == {"192.0.2.1:7"}
    assert "[fe80::1]:7" in allowed_hosts("fe80::1", 7)
    assert "127.0.0.1:7" in allowed_hosts("0.0.0.0", 7)


def test_static_files_are_kept_by_their_content(browser: TestClient) -> None:
    links = [v.get("href") or v.get("src") or "" for tag, v in tags(browser.get("/").text) if tag in ("link", "script")]
    assert len(links) > 5
    for link in links:
        answer = browser.get(link)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
    assert browser.get("/static/view.js").headers["cache-control"] == "no-cache"
    for path in ("/static/nothing.js", "/static/../app.py", "/static/..%2fapp.py", "/static/%2fetc%2fpasswd"):
        assert browser.get(path).status_code == 404


def test_a_reader_chooses_the_colours() -> None:
    css = _themes(":root {\n --a: 1;\n}\n@media (prefers-color-scheme: dark) {\n  :root {\n --a: 2;\n  }\n}\nrest")
    assert ":root:not([data-theme=light])" in css
    assert ":root[data-theme=dark] {\n --a: 2;" in css
    assert ":root[data-theme=light] {\n --a: 1;" in css
    assert css.endswith("rest")


def test_vendored_files_are_listed() -> None:
    listed = (Path(__file__).parents[1] / "THIRD_PARTY.md").read_text()
    from aftertune.view import rendering

    files = sorted(p.name for p in (rendering.HERE / "static" / "vendor").iterdir())
    assert files
    assert [name for name in files if f"`{name}`" not in listed] == []


def test_form_actions_of_one_entry(tmp_path: Path) -> None:
    path = demo_ledger(tmp_path / "ledger.db")
    browser = client(path)
    assert post(browser, "/entry/e-careful/tags", add="paper best").status_code == 303
    assert post(browser, "/entry/e-careful/tags", remove="best", add="v2").status_code == 303
    assert post(browser, "/entry/e-careful/note", note="line\r\nline").status_code == 303
    assert post(browser, "/entry/e-careful/name", name="careful-v2").status_code == 303
    assert post(browser, "/entry/t-careful001/name", name="smollm2").status_code == 303
    for route, fields, text in (("name", {"name": "smollm2"}, "is the name of"), ("name", {"name": "<b>"}, "letters"),
                                ("tags", {"add": "a/b"}, "a tag has letters"), ("tags", {}, "no tag is given"),
                                ("note", {"note": "n" * 2001}, "2,001 characters")):
        answer = post(browser, f"/entry/e-careful/{route}", **fields)
        assert answer.status_code == 400
        assert text in answer.text
    assert post(browser, "/entry/e-none/name", name="x").status_code == 400
    with Ledger(path) as ledger:
        assert ledger.find_evaluation("careful-v2").id == "e-careful"
        assert ledger.labels()["e-careful"] == EntryLabel(tags=("paper", "v2"), note="line\nline")
        assert {c.tuned_name for c in ledger.comparisons()} == {"careful-v2", "careless"}
    page = browser.get("/runs?tag=v2").text
    assert "careful-v2" in page
    assert "careless" not in page
    assert post(browser, "/entry/e-careful/tags", add="archived").status_code == 303
    assert "careful-v2</a>" not in browser.get("/runs?kind=evaluation").text
    assert "careful-v2</a>" in browser.get("/runs?kind=evaluation&archived=1").text
