"""Runs requests with lm-eval's model classes (``lm-eval:hf``, ``lm-eval:vllm`` …), for cross-checks and servers.

    engine = HarnessEngine.make("hf", model=model, tokenizer=tokenizer, batch_size=8)
    for batch in engine.run(engine.plan(requests), done=set()): …

A batch is up to 128 requests of one kind. ``hf`` runs the same loaded model as the other engines; other classes load
the model by themselves.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from aftertune.engine.engine import ResponseBatch
from aftertune.engine.verify import PackingDecision
from aftertune.errors import AftertuneError, InputError, ResourceError
from aftertune.sources.library_errors import forward_errors, library_of
from aftertune.values import Request, Response, digest

#: Largest number of requests in one batch, which is one transaction of the ledger.
CHUNK = 128
#: Names of lm-eval's class that runs on the loaded model.
OURS = ("hf", "hf-auto", "huggingface")
_TYPES = {"score": "loglikelihood", "rolling": "loglikelihood_rolling", "generate": "generate_until"}


@dataclass(frozen=True, slots=True)
class HarnessPlan:
    """Requests in chunks. Each chunk has requests of one kind."""

    chunks: tuple[tuple[Request, ...], ...]
    decision: PackingDecision
    digest: str
    longest: int = 0

    @property
    def cost(self) -> int:
        """Number of requests."""
        return sum(len(chunk) for chunk in self.chunks)


class HarnessEngine:
    """Runs requests with an lm-eval model object. name: the name of its class in lm-eval's registry."""

    def __init__(self, lm: Any, name: str) -> None:
        self.lm = lm
        self.name = name
        self.as_messages = False  # prompts are chats in JSON, for the server's own template

    @classmethod
    def make(cls, name: str, *, model: Any, tokenizer: Any, batch_size: int, think_end_token: str | None = None
             ) -> HarnessEngine:
        """The engine for lm-eval's ``hf`` class with a loaded model. think_end_token: ends a reasoning trace.

        Raises SourceError if the class cannot start.
        """
        from lm_eval.models.huggingface import HFLM

        end: str | int | None = think_end_token
        if end is not None and end in tokenizer.all_special_tokens:  # decoded texts do not show it
            end = int(tokenizer.convert_tokens_to_ids(end))
        with forward_errors(f"the engine lm-eval:{name}", kept=""), contextlib.redirect_stderr(io.StringIO()):
            return cls(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, dtype=str(model.dtype)
                            .removeprefix("torch."), think_end_token=end), name)

    @classmethod
    def by_name(cls, name: str, arguments: Mapping[str, Any], *, batch_size: int, device: str | None) -> HarnessEngine:
        """The engine for any model class in lm-eval's registry.

        arguments: the class's own arguments. Raises ResourceError if the class cannot start.
        """
        from lm_eval.api.registry import get_model

        try:
            further = {"batch_size": batch_size, **({} if device is None else {"device": device})}
            further = {k: v for k, v in further.items() if k not in arguments}
            with contextlib.redirect_stderr(io.StringIO()):
                return cls(get_model(name).create_from_arg_obj(dict(arguments), further), name)
        except Exception as error:  # every class raises errors of its own
            raise _failed(name, error) from error

    def plan(self, requests: Sequence[Request], known: tuple[PackingDecision, int] | None = None) -> HarnessPlan:
        del known
        chunks = []
        for _, group in groupby(requests, key=lambda r: r.kind):
            rows = list(group)
            chunks += [tuple(rows[i: i + CHUNK]) for i in range(0, len(rows), CHUNK)]
        text = digest([[r.position, r.context, r.continuation] for r in requests])
        return HarnessPlan(tuple(chunks), PackingDecision(False, f"lm-eval's own {self.name} model"), text)

    def run(self, plan: HarnessPlan, done: set[int], on_split: Callable[[int, int], None] | None = None,
            tick: Callable[[int], None] | None = None) -> Iterator[ResponseBatch]:
        """Run the chunks with requests that are not in ``done``.

        The callbacks are not used: if memory runs out, lm-eval makes its batches smaller by itself and does not say so.
        """
        del on_split, tick
        for index, chunk in enumerate(plan.chunks):
            if done.issuperset(r.position for r in chunk):
                continue
            responses = self._run(chunk)
            yield ResponseBatch(index, responses, len(chunk))

    def _run(self, chunk: Sequence[Request]) -> dict[int, Response]:
        """The responses to one chunk. Raises SourceError where a model in this process fails, and ResourceError where
        lm-eval's class does, returns something else than responses, or has too little memory."""
        method = getattr(self.lm, _TYPES[chunk[0].kind])
        instances = [self._instance(r) for r in chunk]
        try:
            with forward_errors(f"the engine lm-eval:{self.name}") if self.name in OURS else contextlib.nullcontext(), \
                    contextlib.redirect_stderr(io.StringIO()):
                results = list(method(instances))
        except AftertuneError:
            raise
        except Exception as error:  # a server may be gone, and every class raises errors of its own
            if self.name in OURS and (isinstance(error, OSError) or library_of(error) == "aftertune"):
                raise
            raise _failed(self.name, error) from error
        try:
            return {r.position: _response(r, x) for r, x in zip(chunk, results, strict=True)}
        except (TypeError, ValueError, IndexError, KeyError) as error:  # not what lm-eval's classes return
            raise _failed(self.name, error) from error

    def _instance(self, request: Request) -> Any:
        from lm_eval.api.instance import Instance

        context: Any = request.context
        if self.as_messages:
            from lm_eval.models.api_models import JsonChatStr

            context = JsonChatStr(context)
        settings = {k: v for k, v in request.generation.items() if k != "think_end_token"}
        arguments: dict[str, tuple[Any, ...]] = {
            "score": (context, request.continuation), "rolling": (request.continuation,),
            "generate": (context, settings)}
        return Instance(request_type=_TYPES[request.kind], doc={}, arguments=arguments[request.kind], idx=0)


class ServerTemplate:
    """The chat template of a model behind a name: lm-eval's class applies it, or leaves it to the server.

    hash: of the engine's name, because nobody has read the template.
    """

    def __init__(self, engine: HarnessEngine) -> None:
        self.engine = engine
        self.hash = digest(["template of the engine", engine.name])
        self.date: str | None = None
        self.arguments: Mapping[str, Any] = {}

    def render(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of a chat, or its messages as JSON. Raises InputError if lm-eval's class makes neither."""
        try:
            made = self.engine.lm.apply_chat_template(chat_history, add_generation_prompt)
        except AftertuneError:
            raise
        except Exception as error:  # the template may be a server's
            raise _failed(self.engine.name, error) from error
        if isinstance(made, str):
            return made
        if not hasattr(made, "prompt"):
            raise InputError(f"the engine lm-eval:{self.engine.name} makes no prompt of a chat with a remote tokenizer"
                             "; set tokenizer_backend=huggingface and a tokenizer (--engine-args)")
        self.engine.as_messages = True
        return str(made.prompt)


def _failed(name: str, error: Exception) -> ResourceError:
    """The error for a class of lm-eval that failed, in one line."""
    cause = error.last_attempt.exception() if hasattr(error, "last_attempt") else error  # tenacity's RetryError
    text = " ".join(str(cause).split())[:300]
    return ResourceError(f"the engine lm-eval:{name} failed: {type(cause).__name__}{f': {text}' if text else ''}; "
                         "finished batches are kept: run the same command again once its cause is gone")


def _response(request: Request, result: Any) -> Response:
    # lm-eval's models say neither why a text ended nor how much of a context was cut off
    if request.kind == "generate":
        return Response(text="" if result is None else str(result), truncated=None)
    if request.kind == "rolling":
        return Response(logprob=float(result), truncated=None)
    return Response(logprob=float(result[0]), greedy=bool(result[1]), truncated=None)
