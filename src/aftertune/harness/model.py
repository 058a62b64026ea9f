"""aftertune's engine as a model of lm-eval, so that ``simple_evaluate`` and its own tasks and groups work unchanged.

    lm = HarnessLM("HuggingFaceTB/SmolLM2-135M", dtype="bfloat16")
    lm_eval.simple_evaluate(lm, tasks=["hellaswag", "mmlu"], limit=100)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from aftertune import sources
from aftertune.engine import budget, devices
from aftertune.engine.engine import Engine
from aftertune.errors import SourceError
from aftertune.tasks.chat_template import template_of
from aftertune.values import Request, Response


class HarnessLM(LM):  # type: ignore[misc]  # lm-eval is not followed into
    """One loaded model behind lm-eval's interface. Requests of one document share what they have in common.

    model: a model source (Hub id, folder, ``.gguf``, ``package:``), or a loaded transformers model with its
    ``tokenizer``. engine: "packed" or "plain". memory: bytes that the batches may take, all that is free by default.
    loading: of a source, adapter, dtype, device, revision and trust_remote_code, as `aftertune.evaluate` takes them.
    Raises the errors of ``aftertune.errors``.
    """

    def __init__(self, model: Any, tokenizer: Any = None, *, engine: str = "packed", memory: int | None = None,
                 threads: int | None = None, **loading: Any) -> None:
        super().__init__()
        count = devices.set_threads(threads)
        if isinstance(model, str):
            model, own = _load(model, **loading)
            tokenizer = tokenizer or own
        elif tokenizer is None or loading:
            raise SourceError("a loaded model comes with its tokenizer, and as it is: "
                              "HarnessLM(model, tokenizer)")
        self.model, self.tokenizer = model, tokenizer
        self._device = model.device
        free = devices.free_memory(str(model.device))
        self.budget = budget.resolve(model, free=min(free, memory or free), threads=count)
        self.engine = Engine(model, tokenizer, packed=engine == "packed", budget=self.budget)
        self.notes: list[str] = []

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """(log-likelihood of the continuation, all of it greedy) of each request."""
        found = self._answer("loglikelihood", [
            Request(position=i, kind="score", context=r.args[0], continuation=r.args[1], item=item)
            for i, (r, item) in enumerate(zip(requests, _documents(requests), strict=True))], requests,
            lambda r: (r.logprob, r.greedy))
        return list(found)

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """Log-likelihood of each whole text."""
        return self._answer("loglikelihood_rolling", [
            Request(position=i, kind="rolling", context="", continuation=r.args[0], item=i)
            for i, r in enumerate(requests)], requests, lambda r: r.logprob)

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """The text after each context, up to a stop string."""
        return self._answer("generate_until", [
            Request(position=i, kind="generate", context=r.args[0], generation=r.args[1], item=i)
            for i, r in enumerate(requests)], requests, lambda r: r.text)

    def _answer(self, kind: str, asked: list[Request], requests: Sequence[Instance], read: Any) -> list[Any]:
        plan = self.engine.plan(asked)
        self.notes.append(plan.decision.note)
        responses: dict[int, Response] = {}
        for batch in self.engine.run(plan, set()):
            responses |= batch.responses
        answers = [read(responses[i]) for i in range(len(requests))]
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial(kind, request.args, answer)
        return answers

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The text of the tokenizer's template (one of several by name), "" where none is to be applied."""
        if chat_template is False:
            return ""
        template = self.tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get(chat_template if isinstance(chat_template, str) else "default")
        if not template:
            raise SourceError(f"the tokenizer has no chat template{f' {chat_template!r}' if chat_template else ''}; "
                              "evaluate without one")
        return str(template)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        template = template_of(self.tokenizer)
        if template is None:
            raise SourceError("the tokenizer has no chat template; evaluate without one")
        return template.render(chat_history, add_generation_prompt)


def _load(model: str, *, adapter: str | None = None, dtype: str = "auto", device: str = "auto",
          revision: str | None = None, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """A model source as (model, tokenizer)."""
    device = devices.choose_device(device)
    dtype = devices.choose_dtype(dtype, device)
    source = sources.resolve_model(model, revision=revision, trust_remote_code=trust_remote_code)
    found = None
    if adapter is not None:
        found = sources.resolve_adapter(adapter, source, sources.fingerprint_model(source))
    tokenizer = sources.load_tokenizer(source)
    return sources.load_model(source, dtype, device, found, tokenizer=tokenizer), tokenizer


def _documents(requests: Iterable[Instance]) -> list[int]:
    """Ordinal of the document of each request: what follows under one task and document is one item."""
    found: list[int] = []
    before: Any = None
    for request in requests:
        now = (request.task_name, request.doc_id)
        if before is None or now != before:
            found.append(found[-1] + 1 if found else 0)
        else:
            found.append(found[-1])
        before = now
    return found
