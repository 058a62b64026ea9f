"""Defines one training example: a conversation whose last turn is the answer that is learned.

    example = Example((("user", "Where is it?"),), "", extra={1: {"tool_calls": [{"type": "function", …}]}},
                      tools=({"type": "function", …},))
    example.messages         [{"role": "user", "content": "Where is it?"},
                              {"role": "assistant", "content": "", "tool_calls": [{"type": "function", …}]}]
    example.answers          (1,)

``messages`` and ``template_arguments`` are what a chat template receives. The other properties show the texts alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Turns = tuple[tuple[str, str], ...]

#: Keys of a turn, besides its role and content, that chat templates use. They change the text that is learned.
TURN_KEYS = ("reasoning_content", "reasoning", "thinking", "tool_calls", "tool_call_id", "name", "tool_responses",
             "tool_plan", "recipient", "end_turn")
#: Those of them that are learned: an answer that has one of them may have no text.
LEARNED_KEYS = ("tool_calls", "reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True, slots=True)
class Example:
    """One training example.

    turns: (role, text) before the last answer. completion: the text of the last answer. input: Alpaca's input to the
    instruction, which is the last turn. context: the indices of answers among the turns that are not learned. where:
    file and line; it does not count in comparisons of examples.

    extra: the other keys of a turn that a chat template may use, one of TURN_KEYS or ``content`` where it is not a text
    (None beside a tool call, an object as a tool's result), by the index of the turn; the completion is the turn after
    the last. tools: the functions that the model may call. template_arguments: other arguments of the chat template
    that come with the example, such as ``enable_thinking``.
    """

    turns: Turns
    completion: str
    input: str = ""
    context: tuple[int, ...] = ()
    where: str = field(default="", compare=False)
    extra: Mapping[int, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    tools: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    template_arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def row(self) -> dict[str, Any]:
        """The example as JSON-ready values, from which its fingerprint is computed. What an example does not have is
        left out, so that fingerprints from before it could be had stay the same."""
        row: dict[str, Any] = {"turns": [list(turn) for turn in self.turns], "completion": self.completion}
        parts = {"input": self.input, "context": list(self.context),
                 "extra": {str(turn): dict(keys) for turn, keys in self.extra.items()},
                 "tools": list(self.tools), "template_arguments": dict(self.template_arguments)}
        return row | {name: part for name, part in parts.items() if part}

    @property
    def answers(self) -> tuple[int, ...]:
        """The indices of the answers that are learned; the completion counts as the turn after the last."""
        earlier = (n for n, (role, _) in enumerate(self.turns) if role == "assistant" and n not in self.context)
        return (*earlier, len(self.turns))

    @property
    def conversation(self) -> Turns:
        """The turns, with Alpaca's input on a new line after its instruction."""
        if not self.input:
            return self.turns
        role, text = self.turns[-1]
        return (*self.turns[:-1], (role, f"{text}\n{self.input}"))

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation and its last answer as a chat template receives them, each with role, content and its other
        keys. Arguments of tool calls are objects, as transformers documents it."""
        turns = (*self.conversation, ("assistant", self.completion))
        return [{"role": role, "content": text} | dict(self.extra.get(n, {})) for n, (role, text) in enumerate(turns)]
