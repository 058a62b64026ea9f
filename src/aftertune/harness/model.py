"""Makes aftertune's engine a model of lm-eval, for use with ``simple_evaluate`` and lm-eval's tasks and groups.

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
from aftertune.tasks.chat_template import get_chat_template
from aftertune.values import Request, Response


class HarnessLM(LM):  # type: ignore[misc]  # mypy does not read lm-eval
    """One model with lm-eval's interface. The common prefix of the requests of one document is computed once.

    model: a model source (Hub id, folder, ``.gguf``, ``package:``), or a loaded transformers model.
    tokenizer: required with a loaded model.
    engine: "packed" or "plain".
    memory: bytes that batches may use; by default all that is free.
    threads: CPU threads; by default as `aftertune.evaluate` chooses them.
    loading: for a model source only: adapter, dtype, device, revision and trust_remote_code, as in
    `aftertune.evaluate`.
    Raises the errors of ``aftertune.errors``.
    """

    def __init__(self, model: Any, tokenizer: Any = None, *, engine: str = "packed", memory: int | None = None,
                 threads: int | None = None, **loading: Any) -> None:
        super().__init__()
        count = devices.set_threads(threads)
        if isinstance(model, str):
            model, source_tokenizer = _load(model, **loading)
            tokenizer = tokenizer or source_tokenizer
        elif tokenizer is None or loading:
            raise SourceError("a loaded model needs its tokenizer and takes no options for loading; call "
                              "HarnessLM(model, tokenizer)")
        self.model, self.tokenizer = model, tokenizer
        self._device = model.device
        free = devices.free_memory(str(model.device))
        self.budget = budget.resolve(model, free=min(free, memory or free), threads=count)
        self.engine = Engine(model, tokenizer, packed=engine == "packed", budget=self.budget)
        self.notes: list[str] = []

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """(log-likelihood of the continuation, whether it is the greedy one) of each request."""
        return self._answer("loglikelihood", [
            Request(position=i, kind="score", context=r.args[0], continuation=r.args[1], item=item)
            for i, (r, item) in enumerate(zip(requests, _documents(requests), strict=True))], requests,
            lambda r: (r.logprob, r.greedy))

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """The log-likelihood of each complete text."""
        return self._answer("loglikelihood_rolling", [
            Request(position=i, kind="rolling", context="", continuation=r.args[0], item=i)
            for i, r in enumerate(requests)], requests, lambda r: r.logprob)

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """The text after each context, up to a stop string."""
        return self._answer("generate_until", [
            Request(position=i, kind="generate", context=r.args[0], generation=r.args[1], item=i)
            for i, r in enumerate(requests)], requests, lambda r: r.text)

    def _answer(self, kind: str, requests: list[Request], instances: Sequence[Instance], read: Any) -> list[Any]:
        """Run the requests, one for each instance, and return what ``read`` takes from each response."""
        plan = self.engine.plan(requests)
        self.notes.append(plan.decision.note)
        responses: dict[int, Response] = {}
        for batch in self.engine.run(plan, set()):
            responses |= batch.responses
        answers = [read(responses[i]) for i in range(len(instances))]
        for instance, answer in zip(instances, answers, strict=True):
            self.cache_hook.add_partial(kind, instance.args, answer)
        return answers

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The text of the tokenizer's chat template; "" for False. A string names one of several templates."""
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
        template = get_chat_template(self.tokenizer)
        if template is None:
            raise SourceError("the tokenizer has no chat template; evaluate without one")
        return template.render(chat_history, add_generation_prompt)


def _load(model: str, *, adapter: str | None = None, dtype: str = "auto", device: str = "auto",
          revision: str | None = None, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Load a model source. Returns (model, tokenizer)."""
    device = devices.choose_device(device)
    dtype = devices.choose_dtype(dtype, device)
    source = sources.resolve_model(model, revision=revision, trust_remote_code=trust_remote_code)
    adapter_source = None
    if adapter is not None:
        adapter_source = sources.resolve_adapter(adapter, source, sources.fingerprint_model(source))
    tokenizer = sources.load_tokenizer(source)
    return sources.load_model(source, dtype, device, adapter_source, tokenizer=tokenizer), tokenizer


def _documents(requests: Iterable[Instance]) -> list[int]:
    """The item number of each request: consecutive requests of the same task and document are one item."""
    numbers: list[int] = []
    previous: Any = None
    for request in requests:
        document = (request.task_name, request.doc_id)
        if not numbers:
            numbers.append(0)
        else:
            numbers.append(numbers[-1] + (document != previous))
        previous = document
    return numbers
