"""A fine-tune on the Hub: what is sent to a local server that speaks the Hub's endpoints, and what is refused."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from aftertune.comparison import compare
from aftertune.errors import NotProven
from aftertune.ledger import Ledger
from aftertune.publishing import prepare_push
from aftertune.sources import fingerprint_model, resolve_model
from aftertune.values import Provenance, Tuning
from aftertune.values.reported import UNPROVEN
from bundle_cases import CANARY, hash_documents
from cli_cases import call, settle
from early_cases import BASE, changed, store
from eval_cases import byte_folder

TOKEN = "hf_aTokenOfThisTest0123456789"


class Hub:
    """What a server of the Hub was asked. files: by repository, path -> content. refuse: status of every answer."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, str]] = []
        self.created: list[dict[str, Any]] = []
        self.blobs: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.refuse = 0
        self.private = True

    def answer(self, method: str, path: str, body: bytes, address: str) -> tuple[int, Any]:
        if self.refuse:
            return self.refuse, {"error": "refused"}
        path = path.partition("?")[0]
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return 200, {"url": f"{address}/user/orders"}
        if path == "/api/models/user/orders":
            return 200, {"id": "user/orders", "private": self.private}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.endswith("/preupload/main"):
            names = [f["path"] for f in json.loads(body)["files"]]
            return 200, {"files": [{"path": n, "uploadMode": "lfs" if n.endswith(".safetensors") else "regular",
                                    "shouldIgnore": False} for n in names]}
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [
                {**o, "actions": {"upload": {"href": f"{address}/blob/{o['oid']}"}}} for o in
                json.loads(body)["objects"]]}
        if method == "PUT" and path.startswith("/blob/"):
            self.blobs[path.rpartition("/")[2]] = body
            return 200, {}
        if path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.files[value["path"]] = self.blobs[value["oid"]]
            return 200, {"commitUrl": f"{address}/user/orders/commit/abc", "commitOid": "abc", "pullRequestUrl": None}
        return 404, {"error": f"no {path}"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) \
                if self.headers.get("Transfer-Encoding") != "chunked" else self._chunks()
            state.requests.append((self.command, self.path, self.headers.get("authorization") or ""))
            status, value = state.answer(self.command, self.path, body, f"http://{self.headers['Host']}")
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _chunks(self) -> bytes:
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        do_GET = do_POST = do_PUT = _handle  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fine-tune with its folder, evaluated beside its base, in the ledger of the working folder."""
    settle(monkeypatch, tmp_path)
    hash_documents(monkeypatch)
    out = byte_folder(tmp_path / "out")
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    (out / "config.json").write_text(json.dumps({**config, "_name_or_path": f"{tmp_path}/base"}), encoding="utf-8")
    (out / "optimizer.pt").write_bytes(b"not to be published")
    (out / "notes.txt").write_text(CANARY, encoding="utf-8")
    model = replace(fingerprint_model(resolve_model(str(out))), source=str(out))
    base, tuned = changed(120, 0.7, 30, 2)
    with Ledger(tmp_path / "ledger.db") as ledger:
        before = store(ledger, "base", BASE, {"one": base})
        after = store(ledger, "orders", model, {"one": tuned})
        ledger.save_tuning(Tuning(
            id="t-orders", name="orders", base=BASE, method="full", data="d" * 64, data_source=f"{tmp_path}/o.jsonl",
            examples=600, seed=1, settings={"learning_rate": 2e-4}, output=str(out), status="done",
            result=model.fingerprint, provenance=Provenance(
                command=f"aftertune tune {tmp_path}/base --data {tmp_path}/o.jsonl --token {CANARY}",
                started="2026-01-01")))
        compare(before, after, ledger=ledger)
    return tmp_path


def test_weights_card_results_and_record_are_committed(hub: Hub, work: Path, monkeypatch: pytest.MonkeyPatch,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "push", "orders", "--to", "user/orders", "--private", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["commit"].endswith("/user/orders/commit/abc"), shown["scores"] >= 2, shown["rows"] >= 1) == (
        True, True, True)
    [created] = hub.created
    assert created["name"] == "orders"
    assert created.get("private") is True or created.get("visibility") == "private"
    assert {"README.md", "record.md", "config.json", "model.safetensors", "tokenizer.json"} <= hub.files.keys()
    assert hub.files.keys() == shown["files"].keys()
    assert not {"optimizer.pt", "notes.txt"} & hub.files.keys()
    assert hub.files["model.safetensors"] == (work / "out" / "model.safetensors").read_bytes()
    card = hub.files["README.md"].decode()
    assert "improved" in card
    tokens = {path.partition("?")[0].rpartition("/")[0]: token for _, path, token in hub.requests}
    for path in ("/api/repos", "/api/models/user/orders/preupload", "/api/models/user/orders/commit"):
        assert tokens[path] == f"Bearer {TOKEN}"
    everything = b"".join(hub.files.values())
    assert not [word for word in (CANARY, TOKEN, str(work)) if word.encode() in everything]


def test_a_public_repository_gets_nothing_that_should_be_private(hub: Hub, work: Path, monkeypatch: pytest.MonkeyPatch,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    hub.private = False
    assert call(monkeypatch, "push", "orders", "--to", "user/orders", "--private") == 2
    assert "user/orders is there and is public" in capsys.readouterr().err
    assert hub.files == {}


def test_weights_that_are_not_copied_are_not_published(work: Path, tmp_path: Path) -> None:
    weights = work / "out" / "model.safetensors"
    weights.rename(work / "elsewhere.safetensors")
    weights.symlink_to(work / "elsewhere.safetensors")
    (tmp_path / "push").mkdir()
    with Ledger(work / "ledger.db") as ledger, pytest.raises(NotProven, match="not the weights"):
        prepare_push(ledger, "orders", tmp_path / "push")


def test_a_dry_run_sends_nothing(hub: Hub, work: Path, monkeypatch: pytest.MonkeyPatch,
                                 capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "push", "orders", "--to", "user/orders", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "model.safetensors" in out
    assert "nothing was published (--dry-run)" in out
    assert hub.requests == []


def test_a_refusal_is_one_line(hub: Hub, work: Path, monkeypatch: pytest.MonkeyPatch,
                               capsys: pytest.CaptureFixture[str]) -> None:
    for status, expected in ((401, "no valid token"), (403, "may not write there")):
        hub.refuse = status
        assert call(monkeypatch, "push", "orders", "--to", "user/orders") == 2
        err = capsys.readouterr().err
        assert expected in err
        assert TOKEN not in err
    assert call(monkeypatch, "push", "orders", "--to", "orders") == 2
    assert "write USER/NAME" in capsys.readouterr().err
    assert call(monkeypatch, "push", "nobody", "--to", "user/orders") == 2
    assert hub.files == {}


def test_a_card_that_the_ledger_does_not_prove_is_refused(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(ledger: Ledger, message: str) -> None:
        with pytest.raises(NotProven, match=message):
            prepare_push(ledger, "orders", work / "push")
        assert not (work / "push").exists() or not any((work / "push").iterdir())

    (work / "push").mkdir()
    with Ledger(work / "ledger.db") as ledger:
        [comparison] = ledger.comparisons()
        first = replace(comparison.rows[0], verdict="within", told="kept")
        ledger.save_comparison(replace(comparison, rows=(first, *comparison.rows[1:])))
        refused(ledger, "the stored answers do not give what the card would say.*verdict is within")
        ledger.save_comparison(replace(comparison, rules=3))
        refused(ledger, "judged by version 3 of the rules")
        ledger.save_comparison(comparison)
        weights = work / "out" / "model.safetensors"
        content = weights.read_bytes()
        weights.write_bytes(content[:-4] + b"\0\0\0\0")
        refused(ledger, "the weights are not those that the ledger has for orders")
        weights.write_bytes(content)
        [base, _] = ledger.evaluations()
        foreign = replace(base.model, weights=UNPROVEN + "a", config=UNPROVEN + "a", tokenizer=UNPROVEN + "a")
        base_values, tuned_values = changed(120, 0.7, 30, 2)
        imported = store(ledger, "imported", foreign, {"one": base_values})
        compare(imported, ledger.find_evaluation("orders"), ledger=ledger)
        refused(ledger, "evaluation imported .e-imported. would be in the card, and its model is not proven")
        assert len(tuned_values) == 120
