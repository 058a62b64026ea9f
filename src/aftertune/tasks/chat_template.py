"""Renders chat messages with a tokenizer's chat template, as lm-eval does.

    template = get_chat_template(tokenizer)
    template.render([{"role": "user", "content": "Hi"}]), template.hash
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from aftertune.errors import TaskError


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A tokenizer's chat template. hash: sha256 of the template's text."""

    tokenizer: Any
    hash: str

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
            raise TaskError(f"{self.tokenizer.name_or_path}: the chat template failed: {type(error).__name__}: "
                            f"{' '.join(str(error).split())[:200]}; fix it, or evaluate without it "
                            "(apply_chat_template: false)") from error

    def _apply(self, chat: list[dict[str, str]], generation: bool) -> str:
        return str(self.tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=generation, continue_final_message=not generation))


def get_chat_template(tokenizer: Any) -> ChatTemplate | None:
    """The tokenizer's chat template, or its ``default`` if it has several; None if it has none."""
    text = getattr(tokenizer, "chat_template", None)
    if isinstance(text, dict):
        text = text.get("default")
    return ChatTemplate(tokenizer, hashlib.sha256(text.encode()).hexdigest()) if text else None
