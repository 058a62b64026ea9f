"""Talks to a server that speaks OpenAI's completions API: vLLM, llama.cpp, Ollama, LM Studio, TGI, OpenAI itself.

    client = ServerClient("http://127.0.0.1:8080/v1")
    client.post("completions", {"model": "m", "prompt": "Two plus two is", "max_tokens": 4})
    client.tried("version", root=True)    None where the server does not have it
    reported(client, "m")            {"server": "llama.cpp", "build": "b6123", "context": 4096, …}

The key comes from the environment variable OPENAI_API_KEY alone. Redirects are not followed. An answer has at most
``bounds.SERVER_ANSWER`` bytes and ``bounds.SERVER_VALUES`` values, and must be complete in time: a server that sends a
byte now and then is not waited for.
"""

from __future__ import annotations

import math
import os
import queue
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests

from aftertune import bounds
from aftertune.errors import InputError, ResourceError, nearest
from aftertune.redaction import redact_known
from aftertune.values import digest, from_json

Answered = TypeVar("Answered")
KEY = "OPENAI_API_KEY"
#: Status codes after which the same request may succeed.
_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
#: Seconds of the first wait before another try; each further wait is twice as long, up to the longest.
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
#: Seconds that a question about the server itself may take.
_SHORT = 10.0
#: Characters of a server's error that are looked at, and of a fact that it reports of itself.
_SAID, _FACT = 5000, 300
#: Errors after which the same request may succeed: no connection, no answer in time, half an answer.
_BROKEN_OFF = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


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
        self.key = _key()
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
        return self._asked(lambda s: s.post(self._where(path, root), json=body, timeout=self.timeout, stream=True,
                                            allow_redirects=False), self.timeout)

    def models(self) -> Any:
        """The JSON value of the server's list of models. Raises the same as ``post``."""
        wait = min(self.timeout, _SHORT)
        return self._asked(lambda s: s.get(self._where("models", False), timeout=wait, stream=True,
                                           allow_redirects=False), wait)

    def tried(self, path: str, body: Mapping[str, Any] | None = None, *, root: bool = False,
              timeout: float = _SHORT) -> Any:
        """The JSON value of an answer to a question that not every server knows, asked once. None where it has none:
        any status but 200, no JSON, or no answer within ``timeout`` seconds."""
        method = "GET" if body is None else "POST"
        try:
            status, found, _ = self._answer(lambda s: s.request(method, self._where(path, root), json=body, stream=True,
                                                                timeout=timeout, allow_redirects=False), timeout)
            return _value(found) if status == 200 else None
        except (requests.RequestException, Refused):
            return None

    def about(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """An object that describes the server, by a path of its root; {} where the server has none there."""
        found = self.tried(path, body, root=True)
        return found if isinstance(found, dict) else {}

    def _where(self, path: str, root: bool) -> str:
        return f"{self.root if root else self.url}/{path}"

    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):
            session = requests.Session()
            session.trust_env = urlsplit(self.url).hostname not in ("127.0.0.1", "localhost", "::1")  # no proxy
            if self.key:
                session.headers["Authorization"] = f"Bearer {self.key}"
            self._local.session = session
        session = self._local.session
        assert isinstance(session, requests.Session)
        return session

    def _answer(self, ask: Callable[[requests.Session], requests.Response], seconds: float
                ) -> tuple[int, bytes, str | None]:
        """Status, body and Retry-After of an answer. Raises requests.Timeout where it is not complete after so many
        seconds: the timeout of requests is one of silence alone."""
        session = self._session()

        def read() -> tuple[int, bytes, str | None]:
            with ask(session) as answer:
                return answer.status_code, _body(answer), answer.headers.get("Retry-After")

        try:
            return _in_time(read, seconds)
        except requests.Timeout:
            del self._local.session  # its connection may still be at work
            raise

    def _asked(self, ask: Callable[[requests.Session], requests.Response], seconds: float) -> Any:
        wait, why = _FIRST_WAIT, ""
        for number in range(self.retries + 1):
            if self.stop.wait(wait) if number else self.stop.is_set():
                raise ResourceError("the evaluation was stopped")
            if number:
                wait = min(2 * wait, _LONGEST_WAIT)
            try:
                status, body, pause = self._answer(ask, seconds)
                if status == 200:
                    return _value(body)
                why = _reason(status, body)
                if status not in _RETRIED:
                    raise Refused(status, why)
                wait = _asked_to_wait(pause, wait)
            except _BROKEN_OFF as error:
                why = _short(error)
            except requests.RequestException as error:
                raise ResourceError(f"the server {self.url} failed: {_short(error)}") from error
        tries = f"after {self.retries + 1} tries" if self.retries else "and was asked once"
        raise ResourceError(f"the server {self.url} did not answer {tries}: {why}; check that it runs and that the "
                            "address is right. Finished answers are kept: the same command continues")


def _key() -> str:
    """The key of the environment, "" for none. Raises InputError, without the key, for one that HTTP cannot send."""
    key = os.environ.get(KEY, "")
    if not (key.isascii() and key.isprintable()):
        number, letter = next((n, c) for n, c in enumerate(key, 1) if not (c.isascii() and c.isprintable()))
        raise InputError(f"{KEY}: character {number} of the key is U+{ord(letter):04X}, which no key has; set the "
                         "variable again, without line ends and quotation marks")
    return key


def _in_time(work: Callable[[], Answered], seconds: float) -> Answered:
    """What ``work`` gives, or its error. Raises requests.Timeout if it takes longer; it is left to itself then."""
    ended: queue.SimpleQueue[tuple[Answered | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            ended.put((work(), None))
        except BaseException as error:
            ended.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        found, error = ended.get(timeout=seconds)
    except queue.Empty:
        raise requests.Timeout("timed out") from None
    if error is not None:
        raise error
    return found  # type: ignore[return-value]  # there was no error


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
    if sum(map(body.count, (b",", b"[", b"{"))) > bounds.SERVER_VALUES:
        raise Refused(200, f"the answer has more than {bounds.SERVER_VALUES:,} values")
    try:
        return from_json(body)
    except ValueError:
        raise Refused(200, f"the answer is no JSON: {_line(body)}") from None


def _reason(status: int, body: bytes) -> str:
    """The status and what the server says about it."""
    try:
        found = _value(body)
        error = found.get("error", found) if isinstance(found, dict) else found
        text = str(error.get("message", error.get("detail", error)) if isinstance(error, dict) else error)
    except (Refused, ValueError):
        text = _line(body)
    return f"HTTP {status}: {redact_known(' '.join(text[:_SAID].split()))[:300]}"


def token_ids(found: Any) -> list[int]:
    """The token ids in the answer of ``/tokenize``; [] where it has none."""
    tokens = found.get("tokens") if isinstance(found, dict) else None
    return tokens if isinstance(tokens, list) and all(isinstance(t, int) and 0 <= t < 2**31 for t in tokens) else []


def _line(body: bytes) -> str:
    return redact_known(" ".join(body[:600].decode("utf-8", "replace").split()))[:200]


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

    model: its full name there. Fields that it does not report are absent. Raises ResourceError if it cannot be reached.
    """
    entry = _entries(client).get(model, {})
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
    return {k: v for k, found in facts.items() if (v := _fact(found)) not in (None, "")}


def _fact(found: Any) -> str | int | float | None:
    """What a server reports of itself as a number or a short text. None for a value of another kind."""
    if isinstance(found, str):
        return redact_known(found[:_SAID])[:_FACT]
    if isinstance(found, int):
        return found if abs(found) < 2**53 else None
    return found if isinstance(found, float) and math.isfinite(found) else None


def served_models(client: ServerClient) -> list[str]:
    """The full names of the models that a server lists; [] where it lists none."""
    return list(_entries(client))


def name_on_server(client: ServerClient, model: str) -> str:
    """The server's own full name of a model, which requests must have.

    model: that name, its last part (llama.cpp names a model by the path of its file), or an Ollama model without its
    tag. Raises InputError if the server lists its models and has none of this name, or several.
    """
    names = served_models(client)
    for wanted in (model, f"{model}:latest"):
        if wanted in names:
            return wanted
    if matches := [n for n in names if last_part(n) == model]:
        if len(matches) > 1:
            raise InputError(f"the server {client.url} has several models {model!r}: {', '.join(matches[:5])}; give "
                             "the full name of one")
        return matches[0]
    if names:
        known = nearest(model, [last_part(n) for n in names])
        raise InputError(f"the server {client.url} has no model {model!r}{known}; it has: {listed(names)}")
    return model


def listed(names: Sequence[str]) -> str:
    """The first names of a server's models, as a message shows them."""
    return ", ".join(map(short_name, names[:5])) + (", …" if len(names) > 5 else "")


def short_name(model: str) -> str:
    """A model's name without the folders of the server's machine, where it is the path of a file or folder there."""
    return last_part(model) if re.match(r"[/~.\\]|[A-Za-z]:[/\\]", model) else model


def stated_name(client: ServerClient, model: str) -> str:
    """The short name of a model, by which it is stored; the full one where the server has several of this name."""
    name = short_name(model)
    several = name != model and sum(last_part(n) == name for n in served_models(client)) > 1
    return model if several else name


def _entries(client: ServerClient) -> dict[str, dict[str, Any]]:
    try:
        found = client.models()
    except Refused as error:
        if error.status in (401, 403):
            raise ResourceError(f"the server {client.url} refuses the key ({error}); set it in the environment "
                                f"variable {KEY}") from None
        return {}
    rows = found.get("data") if isinstance(found, dict) else None
    return {str(row.get("id")): row for row in rows or () if isinstance(row, dict)}


def last_part(name: str) -> str:
    """The last part of a model's name that is a path or has an owner (``Qwen/Qwen3-0.6B``)."""
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2]


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
            "file": last_part(str(found.get("model_path") or "")),
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
