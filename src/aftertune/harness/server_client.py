"""Talks to a server that speaks OpenAI's completions API: vLLM, llama.cpp, Ollama, LM Studio, TGI, OpenAI itself.

    client = ServerClient("http://127.0.0.1:8080/v1")
    client.post("completions", {"model": "m", "prompt": "Two plus two is", "max_tokens": 4})
    reported(client, "m")            {"server": "llama.cpp", "build": "b6123", "context": 4096, …}

The key comes from the environment variable OPENAI_API_KEY alone. Redirects are not followed. An answer has at most
``bounds.SERVER_ANSWER`` bytes.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import requests

from aftertune import bounds
from aftertune.errors import InputError, ResourceError, nearest
from aftertune.values import digest

KEY = "OPENAI_API_KEY"
#: Status codes after which the same request may succeed.
_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
#: Seconds of the first wait before another try; each further wait is twice as long, up to the longest.
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
#: Seconds that a question about the server itself may take.
_SHORT = 10.0


class Refused(Exception):
    """The server answered with an error that a further try does not change. status: of HTTP."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class ServerClient:
    """Asks one server. Its methods may be called from several threads.

    url: of the API, as ``study.fields.server_url`` gives it. retries: further tries where the server
    cannot be reached or is busy; timeout: seconds that one answer may take.
    """

    def __init__(self, url: str, *, retries: int = 5, timeout: float = 600.0) -> None:
        self.url = url
        self.retries, self.timeout = retries, timeout
        self.stop = threading.Event()
        self._local = threading.local()

    @property
    def root(self) -> str:
        """The address without the path of the API, for questions about the server."""
        return self.url.removesuffix("/v1")

    def post(self, path: str, body: Mapping[str, Any], *, root: bool = False) -> Any:
        """The JSON value of an answer. Raises Refused, or ResourceError if the server cannot be reached."""
        return self._asked(lambda s, wait: s.post(self._where(path, root), json=body, timeout=wait, stream=True,
                                                  allow_redirects=False))

    def get(self, path: str, *, root: bool = False) -> Any:
        """As ``post``, without a body."""
        return self._asked(lambda s, wait: s.get(self._where(path, root), timeout=wait, stream=True,
                                                 allow_redirects=False))

    def about(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """An object that describes the server, by a path of its root; {} where the server has none there."""
        try:
            found = (self.get(path, root=True) if body is None else self.post(path, body, root=True))
        except Refused:
            return {}
        return found if isinstance(found, dict) else {}

    def _where(self, path: str, root: bool) -> str:
        return f"{self.root if root else self.url}/{path}"

    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):
            session = requests.Session()
            session.trust_env = urlsplit(self.url).hostname not in ("127.0.0.1", "localhost", "::1")  # no proxy
            if key := os.environ.get(KEY):
                session.headers["Authorization"] = f"Bearer {key}"
            self._local.session = session
        session = self._local.session
        assert isinstance(session, requests.Session)
        return session

    def _asked(self, ask: Callable[[requests.Session, float], requests.Response]) -> Any:
        wait, why = _FIRST_WAIT, ""
        for number in range(self.retries + 1):
            if number:
                self.stop.wait(wait)
                wait = min(2 * wait, _LONGEST_WAIT)
            if self.stop.is_set():
                raise ResourceError("the evaluation was stopped")
            try:
                with ask(self._session(), self.timeout) as answer:
                    if answer.status_code == 200:
                        return _value(_body(answer))
                    why = _reason(answer.status_code, _body(answer))
                    if answer.status_code not in _RETRIED:
                        raise Refused(answer.status_code, why)
                    wait = _asked_to_wait(answer.headers.get("Retry-After"), wait)
            except (requests.ConnectionError, requests.Timeout) as error:
                why = _short(error)
            except requests.RequestException as error:
                raise ResourceError(f"the server {self.url} failed: {_short(error)}") from error
        tries = f"after {self.retries + 1} tries" if self.retries else "and was asked once"
        raise ResourceError(f"the server {self.url} did not answer {tries}: {why}; check that it runs and that the "
                            "address is right. Finished answers are kept: the same command continues")


def _body(answer: requests.Response) -> bytes:
    parts, size = [], 0
    for part in answer.iter_content(65536):
        size += len(part)
        if size > bounds.SERVER_ANSWER:
            raise ResourceError(f"the server sent more than {bounds.SERVER_ANSWER:,} bytes in one answer; is this the "
                                "address of a model?")
        parts.append(part)
    return b"".join(parts)


def _value(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(200, f"the answer is no JSON: {_line(body)}") from None


def _reason(status: int, body: bytes) -> str:
    """The status and what the server says about it."""
    try:
        found = json.loads(body)
        error = found.get("error", found) if isinstance(found, dict) else found
        text = str(error.get("message", error.get("detail", error)) if isinstance(error, dict) else error)
    except (ValueError, RecursionError):
        text = _line(body)
    return f"HTTP {status}: {' '.join(text.split())[:300]}"


def _line(body: bytes) -> str:
    return " ".join(body[:600].decode("utf-8", "replace").split())[:200]


def _short(error: Exception) -> str:
    text = str(error).lower()
    for sign, words in (("refused", "connection refused"), ("timed out", "no answer in time"),
                        ("name or service", "no host of this name"), ("resolve", "no host of this name")):
        if sign in text:
            return words
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _asked_to_wait(header: str | None, otherwise: float) -> float:
    try:
        return min(max(float(header or ""), 0.0), _LONGEST_WAIT)
    except ValueError:
        return otherwise


# --- What the server says about itself ---

def reported(client: ServerClient, model: str) -> dict[str, Any]:
    """What the server reports of itself and of the model: build, quantization, context length, template, file.

    Fields that it does not report are absent. Raises InputError if the server lists its models and has none of this
    name, and ResourceError if it cannot be reached.
    """
    entry = _listed(client, model)
    by = str(entry.get("owned_by", ""))
    facts: dict[str, Any] = {"api": by} if by else {}
    if length := entry.get("max_model_len"):
        facts["context"] = length
    if parent := entry.get("parent"):
        facts["adapter_of"] = str(parent)
    for kind, describe in (("llamacpp", _llama_cpp), ("vllm", _vllm), ("library", _ollama), ("", _tgi)):
        if by in (kind, "") or by not in ("llamacpp", "vllm", "library"):
            facts |= describe(client, model)
            if "server" in facts:
                break
    return {k: v for k, v in facts.items() if v not in (None, "")}


def served_models(client: ServerClient) -> list[str]:
    """The names of the models that a server lists; of a path (llama.cpp) its last part. [] where it lists none."""
    return [_last(name) for name in _entries(client)]


def _listed(client: ServerClient, model: str) -> Mapping[str, Any]:
    """What the server lists of a model; {} if it lists no models."""
    entries = _entries(client)
    files = {_last(name): row for name, row in entries.items()}
    for name in (model, f"{model}:latest"):  # Ollama adds the tag
        if found := entries.get(name) or files.get(name):
            return dict(found)
    if entries:
        raise InputError(f"the server {client.url} has no model {model!r}{nearest(model, list(files))}; it has: "
                         f"{', '.join(list(files)[:5])}")
    return {}


def _entries(client: ServerClient) -> dict[str, dict[str, Any]]:
    try:
        found = client.get("models")
    except Refused as error:
        if error.status in (401, 403):
            raise ResourceError(f"the server {client.url} refuses the key ({error}); set it in the environment "
                                f"variable {KEY}") from None
        return {}
    rows = found.get("data") if isinstance(found, dict) else None
    return {str(row.get("id")): row for row in rows or () if isinstance(row, dict)}


def _last(name: str) -> str:
    """The name of a file in the place of its path, which is how llama.cpp names a model."""
    return name.replace("\\", "/").rpartition("/")[2]


def _llama_cpp(client: ServerClient, model: str) -> dict[str, Any]:
    del model
    found = client.about("props")
    if "build_info" not in found:
        return {}
    settings = found.get("default_generation_settings")
    settings = settings if isinstance(settings, dict) else {}
    params = settings.get("params")
    params = params if isinstance(params, dict) else {}
    template = found.get("chat_template")
    return {"server": "llama.cpp", "build": str(found["build_info"]),
            "file": str(found.get("model_path") or "").replace("\\", "/").rpartition("/")[2],
            "context": settings.get("n_ctx"), "default_temperature": params.get("temperature"),
            "template": digest(str(template))[:12] if template else None}


def _vllm(client: ServerClient, model: str) -> dict[str, Any]:
    del model
    found = client.about("version")
    return {"server": "vLLM", "build": str(found["version"])} if "version" in found else {}


def _ollama(client: ServerClient, model: str) -> dict[str, Any]:
    found = client.about("api/version")
    if "version" not in found:
        return {}
    shown = client.about("api/show", {"model": model})
    details = shown.get("details")
    details = details if isinstance(details, dict) else {}
    return {"server": "Ollama", "build": str(found["version"]), "quantization": details.get("quantization_level"),
            "template": digest(str(shown["template"]))[:12] if shown.get("template") else None,
            "parameters": " ".join(str(shown.get("parameters") or "").split())[:300]}


def _tgi(client: ServerClient, model: str) -> dict[str, Any]:
    del model
    found = client.about("info")
    if "model_id" not in found:
        return {}
    return {"server": "TGI", "build": str(found.get("version", "")), "revision": found.get("model_sha"),
            "dtype": found.get("model_dtype"), "context": found.get("max_total_tokens")}
