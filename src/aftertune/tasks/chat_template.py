"""Renders chat messages with a tokenizer's chat template, as transformers and lm-eval do.

    template = get_chat_template(tokenizer)
    template.render([{"role": "user", "content": "Hi"}]), template.hash
    apply_template(tokenizer, [{"role": "user", "content": "Hi"}], generation=True)      the text alone

Some templates write the date of the day (Llama 3.2, gpt-oss), so the same question would be another text tomorrow.
`template_date` says which date a template gets: the chosen one, else DEFAULT_DATE. Plain transformers and lm-eval write
the date of the day.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from typing import Any

from aftertune.errors import InputError, TaskError
from aftertune.sources.limits import limited, template_fault

#: The date that a template writes where none is chosen: the one that the templates of Llama 3.1 and 3.2 contain.
DEFAULT_DATE = "2024-07-26"
#: The function through which a template asks for the date of the day, and the variables that set a date instead.
_TODAY = "strftime_now"
_DATE_VARIABLES = {"date_string": "%d %b %Y", "current_date": "%Y-%m-%d"}
#: The directives of strftime that do not depend on the time of day, and those that do; %% must come last.
_DIRECTIVES = [f"%{flag}{letter}" for letter in "aAbBcdDeFgGhHIjmMnpPrRSTuUVwWxXyYzZ" for flag in ("", "-")] + ["%%"]


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A tokenizer's chat template. hash: sha256 of the template's text. date: that it writes, as YYYY-MM-DD; None for a
    template that writes none, and for the date of the day. arguments: further variables of the template, such as
    ``enable_thinking``."""

    tokenizer: Any
    hash: str
    date: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def render(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of a chat. A template that refuses system messages gets the chat without them, as in lm-eval.

        Raises TaskError if the template fails.
        """
        import jinja2

        try:
            try:
                return self._apply(chat_history, add_generation_prompt)
            except jinja2.exceptions.TemplateError:
                return self._apply([m for m in chat_history if m["role"] != "system"], add_generation_prompt)
        except Exception as error:  # a template is code in a sandbox and may raise anything
            raise TaskError(f"{self.tokenizer.name_or_path}: the chat template failed: {template_fault(error)}; fix "
                            "it, or evaluate without it (apply_chat_template: false)") from error

    def _apply(self, chat: list[dict[str, str]], generation: bool) -> str:
        return apply_template(self.tokenizer, chat, generation=generation, continue_final=not generation,
                              day=self.date, arguments=self.arguments)


def get_chat_template(tokenizer: Any, day: str | None = None, **arguments: Any) -> ChatTemplate | None:
    """The tokenizer's chat template, or its ``default`` if it has several; None if it has none.

    day, arguments: as in `apply_template`. Raises InputError for an argument that the template does not read.
    """
    text = getattr(tokenizer, "chat_template", None)
    if isinstance(text, dict):
        text = text.get("default")
    if not text:
        return None
    if unread := next((name for name in arguments if name not in text), None):
        raise InputError(f"{tokenizer.name_or_path}: its chat template does not read {unread!r}, so it would have no "
                         "effect; leave it out")
    return ChatTemplate(tokenizer, hashlib.sha256(text.encode()).hexdigest(), day, arguments)


def template_date(tokenizer: Any, chosen: str | None) -> str | None:
    """The date that the tokenizer's chat template writes: the chosen one, or DEFAULT_DATE where it would write that of
    the day. None if it writes no date, or only its own.

    chosen: YYYY-MM-DD, or None.
    """
    texts = getattr(tokenizer, "chat_template", None) or ""
    text = "\n".join(texts.values()) if isinstance(texts, dict) else texts
    if chosen is not None and any(name in text for name in (_TODAY, *_DATE_VARIABLES)):
        return chosen
    return DEFAULT_DATE if _TODAY in text else None


def date_note(tokenizer: Any, chosen: str | None) -> str | None:
    """A sentence where the template gets another date than that of the day without being asked, or a chosen date has no
    effect; else None."""
    day = template_date(tokenizer, chosen)
    if chosen is not None:
        return None if day else f"template_date {chosen} has no effect: the chat template writes no date"
    return day and (f"the chat template asks for the date of the day and gets {day}, so that its text stays the same "
                    "every day; another date: template_date, --template-date")


def apply_template(tokenizer: Any, messages: Sequence[Mapping[str, Any]], *,
                   tools: Sequence[Mapping[str, Any]] = (), generation: bool = False, continue_final: bool = False,
                   day: str | None = None, arguments: Mapping[str, Any] | None = None) -> str:
    """The text of a chat as the tokenizer's template writes it.

    generation: end with the start of an answer. continue_final: leave the last message open. day: the date that the
    template writes, as YYYY-MM-DD; None for the date of the day. arguments: other variables of the template. A template
    is code in a sandbox and may raise anything; it raises TemplateLimit beyond the limits of a rendering.
    """
    variables = template_variables(tokenizer, tools, day, arguments)
    return limited(str(getattr(tokenizer, "chat_template", None)), lambda: str(tokenizer.apply_chat_template(
        list(messages), tools=list(tools) or None, tokenize=False, add_generation_prompt=generation,
        continue_final_message=continue_final, **variables)))


def template_variables(tokenizer: Any, tools: Sequence[Mapping[str, Any]], day: str | None,
                       arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """What transformers gets besides messages and tools (`apply_template`): the variables of the template, and the
    template itself, as ``chat_template``, where its date is fixed."""
    settings: dict[str, Any] = dict(arguments or {})
    if day is not None:
        moment = date.fromisoformat(day)
        settings = {**{name: moment.strftime(form) for name, form in _DATE_VARIABLES.items()}, **settings}
        text = tokenizer.get_chat_template(tools=list(tools) or None)
        if _TODAY in text:
            settings["chat_template"] = _fixed_date(day) + text
    return settings


@lru_cache
def _fixed_date(day: str) -> str:
    """A Jinja macro that takes the place of ``strftime_now`` and formats one date. transformers turns functions among
    the variables of a template into text, so it cannot be passed as one. The line break after it is not written
    (transformers sets trim_blocks)."""
    moment = date.fromisoformat(day)
    filters = "".join(f"|replace({directive!r}, {moment.strftime(directive)!r})" for directive in _DIRECTIVES)
    return f"{{% macro {_TODAY}(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}\n"
