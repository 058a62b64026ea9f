"""Asks a base and its tuned model the same question. Both are named when the view starts, never by a page.

    models = BothModels.find(["SmolLM2-135M", "runs/orders"], ledger)
    models.ask(AskedPrompt("What is 2 + 2?", tokens=64))       [WrittenAnswer("Four.", "end", …), WrittenAnswer(…)]

One thread loads the models, when the first question comes, and answers. It takes one question at a time, so that a page
which is open in several places does not fill the memory; another one meanwhile is a ResourceError.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

from aftertune import bounds, sources
from aftertune.errors import InputError, ResourceError
from aftertune.values import Request

if TYPE_CHECKING:
    from aftertune.ledger import Ledger
    from aftertune.sources import AdapterSource, ModelSource

#: Tokens of an answer unless the page asks for another number.
DEFAULT_TOKENS = 128


@dataclass(frozen=True, slots=True)
class AskedPrompt:
    """What a person asks both models. tokens: the most tokens of an answer; chat: write it as a message of a chat,
    where the model has a chat template."""

    prompt: str
    tokens: int = DEFAULT_TOKENS
    chat: bool = True

    def check(self) -> None:
        """Raise InputError for a question that is empty or too long."""
        if not self.prompt.strip():
            raise InputError("write a prompt")
        if len(self.prompt) > bounds.VIEW_PROMPT:
            raise InputError(f"the prompt has {len(self.prompt):,} characters; {bounds.VIEW_PROMPT:,} are allowed")
        if not 1 <= self.tokens <= bounds.VIEW_TOKENS:
            raise InputError(f"tokens: allowed are whole numbers from 1 to {bounds.VIEW_TOKENS}")


@dataclass(frozen=True, slots=True)
class WrittenAnswer:
    """What one model wrote. about: how it ended, and what became of the prompt."""

    name: str
    text: str
    about: tuple[str, ...]


@dataclass(slots=True)
class _OneModel:
    """A model with its engine, which is made when it is first asked."""

    name: str
    source: ModelSource
    adapter: AdapterSource | None = None
    tokenizer: Any = None
    engine: Any = None
    earlier: Any = None  # decision about packing, and the length that it was verified for

    def load(self) -> None:
        """Load the weights unless they are there. Raises SourceError or ResourceError."""
        if self.engine is not None:
            return
        from aftertune.engine import budget, devices
        from aftertune.engine.engine import Engine

        device = devices.choose_device("auto")
        dtype = devices.choose_dtype("auto", device)
        threads = devices.set_threads(None)
        self.tokenizer = sources.load_tokenizer(self.source)
        model = sources.load_model(self.source, dtype, device, self.adapter, tokenizer=self.tokenizer)
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.max_new_tokens = None  # it would count before the tokens of the question
        limits = budget.resolve(model, free=devices.free_memory(device), threads=threads)
        self.engine = Engine(model, self.tokenizer, packed=True, budget=limits)

    def answer(self, question: AskedPrompt) -> WrittenAnswer:
        """The greedy continuation of the prompt."""
        from aftertune.tasks.chat_template import get_chat_template, template_date

        template = get_chat_template(self.tokenizer, template_date(self.tokenizer, None)) if question.chat else None
        prompt = template.render([{"role": "user", "content": question.prompt}]) if template else question.prompt
        tokens = min(question.tokens, self.engine.encoder.max_length // 2)
        plan = self.engine.plan([Request(position=0, kind="generate", context=prompt,
                                         generation={"max_gen_toks": tokens, "do_sample": False})], self.earlier)
        self.earlier = plan.decision, plan.longest
        response = next(response for batch in self.engine.run(plan, set()) for response in batch.responses.values())
        about = ["it ended by itself" if response.finish != "length" else f"cut off after {tokens:,} tokens"]
        if question.chat and template is None:
            about.append("the model has no chat template, so it continued the plain text")
        if response.truncated:
            about.append(f"{response.truncated:,} tokens at the start of the prompt did not fit")
        return WrittenAnswer(self.name, response.text or "", tuple(about))


@dataclass
class BothModels:
    """The base and the tuned model of one view."""

    models: tuple[_OneModel, _OneModel]
    _busy: Lock = field(default_factory=Lock)
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "aftertune-ask"))

    @classmethod
    def find(cls, words: Sequence[str], ledger: Ledger) -> BothModels:
        """The models with these names, the base first; nothing is loaded yet.

        words: as for `aftertune drift`: a model, then an adapter of it, a whole model or a fine-tune of the ledger.
        Raises InputError unless there are two, and SourceError for one that cannot be found.
        """
        if len(words) != 2:
            raise InputError(f"--with-model was given {len(words)} time{'s' * (len(words) != 1)}; give it twice, for "
                             "the base and for the tuned model: --with-model BASE --with-model TUNED")
        from aftertune.drift import resolve_tuned

        base = sources.resolve_model(words[0])
        target, adapter, tuning = resolve_tuned(words[1], base, sources.fingerprint_model(base), ledger)
        name = tuning.name if tuning is not None else words[1]
        return cls((_OneModel(_short(words[0]), base), _OneModel(_short(name), target, adapter)))

    @property
    def names(self) -> tuple[str, str]:
        """The names that the page shows."""
        return self.models[0].name, self.models[1].name

    def ask(self, question: AskedPrompt) -> list[WrittenAnswer]:
        """The answers of both models, the base's first. Raises InputError for the question, ResourceError while another
        one is answered and where memory is short, and SourceError for a model that cannot be loaded."""
        question.check()
        if not self._busy.acquire(blocking=False):
            raise ResourceError("the models are answering another question; wait a moment, then ask again")
        try:
            return self._thread.submit(self._answers, question).result()
        finally:
            self._busy.release()

    def _answers(self, question: AskedPrompt) -> list[WrittenAnswer]:
        for model in self.models:
            model.load()
        return [model.answer(question) for model in self.models]


def _short(word: str) -> str:
    """The name of a model without folders of this machine."""
    return word.rstrip("/").rpartition("/")[2] or word
