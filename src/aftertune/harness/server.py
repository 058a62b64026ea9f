"""Runs requests on a server that speaks OpenAI's completions API (``--engine openai:URL``).

    engine = ServerEngine("http://127.0.0.1:8080/v1", "orders-q8_0")
    for batch in engine.run(engine.plan(requests), done=set()): …

Each request is one batch, so that an interrupted evaluation continues with the first item without an answer. Several
requests are under way at once; a server may round differently with its load, so answers can differ from run to run.

Generated texts come from ``/chat/completions`` where the task uses the chat template (the server's own, which gets the
messages), otherwise from ``/completions``. Log-likelihoods need a server that gives the log-probabilities of a prompt
(vLLM does): with its ``/tokenize`` the tokens of context and continuation are split as in lm-eval, otherwise where the
continuation's text begins.
"""

from __future__ import annotations

import json
import math
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aftertune import bounds
from aftertune.engine.engine import ResponseBatch
from aftertune.engine.tokenize import Generation
from aftertune.engine.verify import PackingDecision
from aftertune.errors import InputError, RequestError, ResourceError, shown
from aftertune.harness.server_client import Refused, ServerClient, name_on_server, reported, token_ids
from aftertune.values import Finish, Request, Response, digest

#: Settings of ``--engine-args``, with their defaults: requests at once, further tries, seconds for an answer.
ARGUMENTS = {"num_concurrent": 4, "max_retries": 5, "timeout": bounds.SERVER_SECONDS}
#: Generation settings that the API takes under the same name.
_PASSED = frozenset({"temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty",
                     "repetition_penalty"})
#: Stop strings that OpenAI's API takes at most. Texts are also cut here, at all of them.
_MOST_STOPS = 4
#: Status codes of HTTP that are about what was sent: not taken, too large.
_OF_THE_REQUEST = frozenset({400, 413, 422})


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """The requests in their order; each is one batch."""

    requests: tuple[Request, ...]
    decision: PackingDecision
    digest: str
    longest: int = 0

    @property
    def cost(self) -> int:
        return len(self.requests)


class MessagesTemplate:
    """Stands for the chat template of a server: a prompt is the messages as JSON, which the server's template gets.

    hash: of what the server reports about its template, so that a changed template is another setting of a task.
    """

    def __init__(self, template: str) -> None:
        self.hash = digest(["template of the server", template])
        self.date: str | None = None
        self.arguments: Mapping[str, Any] = {}
        self.made: set[str] = set()

    def render(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The messages as JSON. Raises InputError for a chat in which the answer has begun."""
        if not add_generation_prompt:
            raise InputError("a task begins the model's answer, which a server's chat template cannot continue; leave "
                             "the task out, or leave --apply-chat-template out")
        text = json.dumps(chat_history, ensure_ascii=False)
        self.made.add(text)
        return text


class ServerEngine:
    """An engine for one model of a server. Raises InputError or ResourceError where the server cannot be used.

    model: as `name_on_server` takes it; afterwards the server's own name. facts: what the server reports of itself.
    scores: whether it gives the log-probabilities of a prompt. too_long: what to do about a prompt that the server does
    not take.
    """

    def __init__(self, url: str, model: str, arguments: Mapping[str, Any] | None = None) -> None:
        values = {**ARGUMENTS, **check_numbers("openai:URL", arguments or {}, ARGUMENTS)}
        self.client = ServerClient(url, retries=int(values["max_retries"]), timeout=float(values["timeout"]))
        self.concurrent = int(values["num_concurrent"])
        self.model = name_on_server(self.client, model)
        self.facts = reported(self.client, self.model)
        self.template = MessagesTemplate(str(self.facts.get("template", "")))
        self.tokenizes = bool(token_ids(self.client.tried("tokenize", self._text("a"), root=True)))
        self.scores = self._gives_prompt_logprobs()
        self.too_long = "start the server with a longer context"

    def plan(self, requests: Sequence[Request], known: tuple[PackingDecision, int] | None = None) -> ServerPlan:
        del known
        for request in requests:
            if request.kind == "generate":
                _sent(request.generation)
        server = " ".join(str(self.facts[k]) for k in ("server", "build") if k in self.facts) or "a server"
        text = digest([[r.position, r.context, r.continuation] for r in requests])
        return ServerPlan(tuple(requests), PackingDecision(False, f"answered by {server} at {self.client.url}"), text)

    def run(self, plan: ServerPlan, done: set[int], on_split: Callable[[int, int], None] | None = None,
            tick: Callable[[int], None] | None = None) -> Iterator[ResponseBatch]:
        """Run the requests that are not in ``done``, and yield each answer when it comes.

        Raises the first error of a request; answers that came before are yielded first.
        """
        del on_split, tick
        open_requests = [(n, r) for n, r in enumerate(plan.requests) if r.position not in done]
        waiting: queue.SimpleQueue[tuple[int, Request]] = queue.SimpleQueue()
        answers: queue.SimpleQueue[tuple[int, Request, Response | Exception]] = queue.SimpleQueue()
        for entry in open_requests:
            waiting.put(entry)

        ended = threading.Event()  # of this run alone: the next one may begin while an answer is still awaited

        def work() -> None:
            while not ended.is_set():
                try:
                    number, request = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    answers.put((number, request, self._answer(request)))
                except Exception as error:  # handed to the thread that reads the answers
                    answers.put((number, request, error))

        self.client.stop.clear()
        for _ in range(min(self.concurrent, len(open_requests))):
            threading.Thread(target=work, daemon=True).start()
        try:
            for _ in open_requests:
                number, request, response = answers.get()
                if isinstance(response, Exception):
                    raise response
                yield ResponseBatch(number, {request.position: response}, 1)
        finally:
            ended.set()
            self.client.stop.set()

    def _answer(self, request: Request) -> Response:
        try:
            if request.kind == "generate":
                return self._generated(request)
            return self._scored(request)
        except Refused as error:
            if error.status in _OF_THE_REQUEST:
                raise RequestError(f"the server {self.client.url} refused a request of {len(request.context):,} "
                                   f"characters: {error}; if it is too long, {self.too_long}, or leave the task out",
                                   request.position) from None
            raise ResourceError(f"the server {self.client.url} refused a request: {error}; its log may say more. "
                                "Finished answers are kept") from None

    # --- Texts ---

    def _generated(self, request: Request) -> Response:
        settings, body = _sent(request.generation)
        if settings.do_sample:
            body["seed"] = request.position
        chat = request.context in self.template.made
        if chat:
            found = self.client.post("chat/completions", {"model": self.model, **body,
                                                          "messages": json.loads(request.context)})
        else:
            found = self.client.post("completions", {"model": self.model, **body, "prompt": request.context})
        choice = _choice(found)
        message = choice.get("message") if chat else choice
        message = message if isinstance(message, dict) else {}
        text = message.get("content" if chat else "text")
        text = text if isinstance(text, str) else ""
        trace = message.get("reasoning_content") or message.get("reasoning")
        reasoning = trace if isinstance(trace, str) else None
        end = settings.think_end_token
        if end is not None and end in text:
            reasoning, _, text = text.rpartition(end)
            text = text.lstrip()
        cut = settings.cut(text)
        usage = found.get("usage")
        tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
        return Response(text=cut, tokens=tokens if _is_count(tokens) else None, truncated=None,
                        finish=_finish(choice, settings, was_cut=cut != text), reasoning=reasoning)

    # --- Log-likelihoods ---

    def _scored(self, request: Request) -> Response:
        """The log-probability of the continuation. Spaces at the end of the context belong to it, as in lm-eval."""
        spaces = len(request.context) - len(request.context.rstrip())
        context = request.context[:len(request.context) - spaces]
        continuation = request.context[len(context):] + request.continuation
        whole = self._tokens(context + continuation) if self.tokenizes else []
        scores = _token_rows(self.client.post("completions", self._echo(whole or context + continuation)))
        if whole:
            count: int | None = len(whole) - len(self._tokens(context))
            if count is None or count < 1:
                raise RequestError("a token spans the context and the answer", request.position)
        else:
            count = _last_tokens([t for t, _, _ in scores], continuation)
            if count is None:
                raise RequestError("the server's tokens do not show where the answer begins", request.position)
        rows = scores[-count:]
        if len(rows) < count or any(value is None for _, value, _ in rows):
            raise ResourceError(f"the server {self.client.url} left log-probabilities of a prompt out")
        return Response(logprob=float(sum(v for _, v, _ in rows if v is not None)),
                        greedy=all(best for _, _, best in rows), truncated=None)

    def _text(self, text: str) -> dict[str, Any]:
        return {"model": self.model, "prompt": text}

    def _echo(self, prompt: str | list[int]) -> dict[str, Any]:
        """The request for the log-probabilities of a prompt."""
        return {"model": self.model, "prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}

    def _tokens(self, text: str) -> list[int]:
        """The token ids of a prompt by the server's ``/tokenize``."""
        return token_ids(self.client.post("tokenize", self._text(text), root=True))

    def _gives_prompt_logprobs(self) -> bool:
        """Whether the server gives the log-probabilities of a prompt; asked once, with a short prompt."""
        prompt = "One two three"
        try:  # a server may load the model first
            rows = _token_rows(self.client.tried("completions", self._echo(prompt), timeout=self.client.timeout))
        except Refused:
            return False
        return len(rows) > 1 and all(value is not None for _, value, _ in rows[1:]) and prompt in "".join(
            token for token, _, _ in rows).replace("▁", " ").replace("Ġ", " ")


def check_numbers(engine: str, arguments: Mapping[str, Any], allowed: Mapping[str, int]) -> dict[str, Any]:
    """``--engine-args`` that are numbers. Raises InputError for a name or a value that has no meaning here."""
    for name, value in arguments.items():
        if name not in allowed:
            raise InputError(f"--engine-args {name}: the engine {engine} takes {', '.join(allowed)}")
        least = 0 if name == "max_retries" else 1
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 1_000_000:
            raise InputError(f"--engine-args {name}={value!r}: a whole number from {least} to 1,000,000 is needed")
    return dict(arguments)


def _sent(generation: Mapping[str, Any]) -> tuple[Generation, dict[str, Any]]:
    """The settings of a text, and the part of the request that they make. Raises InputError for a setting that the API
    does not have."""
    settings = Generation.resolve(generation, "")
    options = {k: v for k, v in dict(settings.options).items() if v is not None and k != "think_end_token"}
    unknown = sorted(options.keys() - _PASSED)
    if unknown:
        raise InputError(f"the engine openai:URL does not take the generation setting {unknown[0]!r}; it takes until, "
                         f"max_gen_toks, do_sample, {', '.join(sorted(_PASSED))}")
    stops = [s for s in settings.until if s][:_MOST_STOPS]
    body = {"max_tokens": settings.max_tokens, **(options if settings.do_sample else {"temperature": 0}),
            **({"stop": stops} if stops else {})}
    return settings, body


def _token_rows(found: Any) -> list[tuple[str, float | None, bool]]:
    """Of each token of an echoed prompt: its text, its log-probability (None for the first), whether it is the most
    likely one. Raises Refused for an answer without them."""
    values = _choice(found).get("logprobs")
    values = values if isinstance(values, dict) else {}
    tokens, numbers, tops = (values.get(k) for k in ("tokens", "token_logprobs", "top_logprobs"))
    if not (isinstance(tokens, list) and isinstance(numbers, list) and len(tokens) == len(numbers)):
        raise Refused(200, "the answer has no log-probabilities")
    tops = tops if isinstance(tops, list) and len(tops) == len(tokens) else [None] * len(tokens)
    rows = []
    for token, value, top in zip(tokens, numbers, tops, strict=True):
        number = None if value is None else _logprob(value)
        best = number is not None and isinstance(top, dict) and number >= max(map(_logprob, top.values()),
                                                                              default=number)
        rows.append((str(token), number, best))
    return rows[:-1]  # the last token is the one that was generated


def _logprob(value: Any) -> float:
    """A log-probability. Raises Refused for a value that is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf <= value < 2**53:
        raise Refused(200, f"a log-probability of the answer is {shown(value)}")
    return float(value) if value > -(2**53) else -math.inf


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _choice(found: Any) -> dict[str, Any]:
    choices = found.get("choices") if isinstance(found, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Refused(200, "the answer has no choices")
    return choices[0]


def _finish(choice: Mapping[str, Any], settings: Generation, *, was_cut: bool) -> Finish | None:
    """Why a text ended. The API's ``stop`` is the end token or a stop string; without stop strings it is the former.
    vLLM says which stop string it was, and null for the end token."""
    if was_cut:
        return "stop"
    reason = choice.get("finish_reason")
    if reason == "length":
        return "length"
    if reason != "stop":
        return None
    by = choice.get("stop_reason", "")
    if by is None or isinstance(by, int) or not any(settings.until):
        return "eos"
    return "stop"


def _last_tokens(tokens: Sequence[str], continuation: str) -> int | None:
    """How many tokens at the end write the continuation; None if a token spans its start or texts do not match."""
    length = 0
    for count, token in enumerate(reversed(tokens), start=1):
        length += len(token)
        if length == len(continuation):
            return count if "".join(tokens[-count:]) == continuation else None
        if length > len(continuation):
            return None
    return None


def is_server(engine: str) -> bool:
    """True for the name of an engine on a server, ``openai:URL``."""
    return engine.startswith("openai:")


def server_address(engine: str) -> str:
    """The address in the name of an engine on a server."""
    return engine.partition(":")[2]


