"""A real server's answers, recorded once and given again: `python tests/recorded_cases.py URL MODEL FILE` records.

The exchange is everything that one evaluation engine and the comparison of prompts ask: models, version, tokens,
log-probabilities of a prompt, a text, a chat, and an error.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import requests

from aftertune.errors import RequestError
from aftertune.harness.server import ServerEngine
from aftertune.harness.server_client import ServerClient
from aftertune.values import Request

QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]
SYSTEM = {"role": "system", "content": "Answer in one word."}


def asked(url: str, model: str) -> dict[str, Any]:
    """Everything that is asked of a server, with what was made of the answers."""
    engine = ServerEngine(url, model, {"num_concurrent": 1, "max_retries": 0})
    chat = engine.template.render(QUESTION)
    until = {"until": ["\n\n"], "do_sample": False}
    questions = [
        Request(position=0, kind="score", context="Two plus two is", continuation=" four"),
        Request(position=1, kind="score", context="Two plus two is", continuation=" green houses"),
        Request(position=2, kind="generate", context="One, two, three,", generation={**until, "max_gen_toks": 5}),
        Request(position=3, kind="generate", context=chat, generation={**until, "max_gen_toks": 40})]
    answers = {k: v for batch in engine.run(engine.plan(questions), done=set()) for k, v in batch.responses.items()}
    client = ServerClient(url, retries=0)
    long = Request(position=4, kind="generate", context="word " * 3000, generation={**until, "max_gen_toks": 5})
    try:
        list(engine.run(engine.plan([long]), done=set()))
        refused = ""
    except RequestError as error:
        refused = str(error)
    tokens = client.post("tokenize", {"model": engine.model, "messages": [SYSTEM, *QUESTION],
                                      "add_generation_prompt": True}, root=True)["tokens"]
    prompt = client.post("detokenize", {"model": engine.model, "tokens": tokens}, root=True)["prompt"]
    return {"facts": engine.facts, "scores": engine.scores, "tokenizes": engine.tokenizes, "refused": refused,
            "prompt": prompt, "answers": {n: {"text": a.text, "finish": a.finish, "tokens": a.tokens,
                                              "logprob": a.logprob, "greedy": a.greedy} for n, a in answers.items()}}


class _Handler(BaseHTTPRequestHandler):
    server: _Recorded

    def do_GET(self) -> None:
        self._answer("GET", None)

    def do_POST(self) -> None:
        self._answer("POST", json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, method: str, body: Any) -> None:
        status, value = self.server.answer(method, self.path, body)
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""


class _Recorded(ThreadingHTTPServer):
    """behind: the address of a real server, whose answers are added to ``exchanges``; "" gives those again."""

    daemon_threads = True

    def __init__(self, exchanges: list[dict[str, Any]], behind: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.exchanges, self.behind = exchanges, behind

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if self.behind:
            found = requests.request(method, self.behind + path, json=body, timeout=300)
            try:
                value = found.json()
            except ValueError:
                value = {"text": found.text[:200]}
            self.exchanges.append({"method": method, "path": path, "body": body, "status": found.status_code,
                                   "answer": value})
            return found.status_code, value
        known = next((e for e in self.exchanges if (e["method"], e["path"], e["body"]) == (method, path, body)), None)
        return (404, {"error": "not recorded"}) if known is None else (known["status"], known["answer"])


@contextmanager
def recorded(exchanges: list[dict[str, Any]], behind: str = "") -> Iterator[str]:
    """The address of a server that records or gives again."""
    with _Recorded(exchanges, behind) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()


def main(behind: str, model: str, file: str) -> None:
    """Record what a server at ``behind`` answers."""
    exchanges: list[dict[str, Any]] = []
    with recorded(exchanges, behind) as url:
        found = asked(url, model)
    content = {"model": model, "found": found, "exchanges": exchanges}
    Path(file).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
