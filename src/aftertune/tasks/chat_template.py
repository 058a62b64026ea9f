"""A tokenizer's chat template as lm-eval calls it, with its identity."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from aftertune.errors import TaskError


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """hash: sha256 of the template's text. ``render`` takes messages and returns the prompt's text."""

    tokenizer: Any
    hash: str

    def render(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """As lm-eval's ``hf`` model: a template that refuses a system message gets the chat without it.

        Raises TaskError for one that cannot be used.
        """
        import jinja2

        try:
            try:
                return self._apply(chat_history, add_generation_prompt)
            except jinja2.exceptions.TemplateError:
                return self._apply([m for m in chat_history if m["role"] != "system"], add_generation_prompt)
        except Exception as error:  # a template is foreign code in a sandbox: it may raise anything
            raise TaskError(f"{self.tokenizer.name_or_path}: its chat template cannot be used: {type(error).__name__}: "
                            f"{' '.join(str(error).split())[:200]}; mend it, or evaluate without it "
                            "(apply_chat_template: false)") from error

    def _apply(self, chat: list[dict[str, str]], generation: bool) -> str:
        return str(self.tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=generation, continue_final_message=not generation))


def template_of(tokenizer: Any) -> ChatTemplate | None:
    """The tokenizer's template (its ``default`` where it has several), or None."""
    text = getattr(tokenizer, "chat_template", None)
    if isinstance(text, dict):
        text = text.get("default")
    return ChatTemplate(tokenizer, hashlib.sha256(text.encode()).hexdigest()) if text else None
