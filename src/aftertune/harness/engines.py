"""Runs requests with lm-eval's model classes (``lm-eval:hf``, ``lm-eval:vllm`` …), for cross-checks and servers.

    engine = HarnessEngine.make("hf", model=model, tokenizer=tokenizer, batch_size=8)
    for batch in engine.run(engine.plan(requests), done=set()): …

A batch is up to 128 requests of one kind. ``hf`` runs the same loaded model as the other engines; other classes load
the model by themselves.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from aftertune.engine.engine import ResponseBatch
from aftertune.engine.verify import PackingDecision
from aftertune.errors import InputError, nearest
from aftertune.values import Request, Response, digest

#: Largest number of requests in one batch, which is one transaction of the ledger.
CHUNK = 128
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

    @classmethod
    def make(cls, name: str, *, model: Any, tokenizer: Any, batch_size: int) -> HarnessEngine:
        """The engine for lm-eval's ``hf`` class with a loaded model."""
        from lm_eval.models.huggingface import HFLM

        with contextlib.redirect_stderr(io.StringIO()):
            return cls(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, dtype=str(model.dtype)
                            .removeprefix("torch.")), name)

    @classmethod
    def by_name(cls, name: str, arguments: dict[str, Any], *, batch_size: int, device: str) -> HarnessEngine:
        """The engine for any model class in lm-eval's registry.

        arguments: the class's own arguments. Raises InputError if there is no such class.
        """
        from lm_eval.api.registry import MODEL_REGISTRY, get_model

        try:
            model_class = get_model(name)
        except (KeyError, ValueError) as error:
            names = sorted(str(k) for k in MODEL_REGISTRY.keys())  # noqa: SIM118 (lm-eval's own mapping type)
            raise InputError(f"engine 'lm-eval:{name}': lm-eval has no model class {name!r}{nearest(name, names)}; "
                             "`lm-eval:hf` runs transformers models") from error
        return cls(model_class.create_from_arg_obj(arguments, {"batch_size": batch_size, "device": device}), name)

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
            method = getattr(self.lm, _TYPES[chunk[0].kind])
            with contextlib.redirect_stderr(io.StringIO()):
                results = method([_instance(r) for r in chunk])
            responses = {r.position: _response(r, x) for r, x in zip(chunk, results, strict=True)}
            yield ResponseBatch(index, responses, len(chunk))


def _instance(request: Request) -> Any:
    from lm_eval.api.instance import Instance

    arguments: dict[str, tuple[Any, ...]] = {
        "score": (request.context, request.continuation), "rolling": (request.continuation,),
        "generate": (request.context, {k: v for k, v in request.generation.items() if k != "think_end_token"})}
    return Instance(request_type=_TYPES[request.kind], doc={}, arguments=arguments[request.kind], idx=0)


def _response(request: Request, result: Any) -> Response:
    # lm-eval's models say neither why a text ended nor how much of a context was cut off
    if request.kind == "generate":
        return Response(text=str(result), truncated=None)
    if request.kind == "rolling":
        return Response(logprob=float(result), truncated=None)
    return Response(logprob=float(result[0]), greedy=bool(result[1]), truncated=None)
