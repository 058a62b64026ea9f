"""Writes an Ollama Modelfile whose TEMPLATE gives the prompts of the model's own chat template.

    modelfile("model-q8_0.gguf", tokenizer, template="chat", ends=["<|im_end|>"], temperature=None)

Ollama does not run the Jinja template in a GGUF. Without TEMPLATE it compares the Jinja text with some twenty that it
knows, takes its own version of the nearest one, and passes the bare prompt on if none is near
(``detectChatTemplate`` in its server/model.go). A fine-tune would then answer prompts that it was not tuned on. So the
Jinja template is tried out: if its prompts are, for each role, fixed texts around the content, a Go template with the
same texts is written, and its prompts for all short conversations are compared with those of the Jinja template. A
template that is more than this (tools, dates, trimmed contents) has no TEMPLATE in the Modelfile, and a comment in it
says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aftertune.tasks.chat_template import apply_template
from aftertune.tuning.template import ALPACA, alpaca_prompt

#: The prompt of ``--template alpaca`` (`aftertune.tuning.template`), for one question.
_ALPACA = alpaca_prompt("{{ .Prompt }}", "{{ if .System }}{{ .System }}{{ else }}" + ALPACA + "{{ end }}")
_ROLES = ("system", "user", "assistant")
#: Contents that no template has in its own text, with white space that a template may trim.
_MARKS = tuple(f"⟪{n}⟫ x" for n in range(6))
#: The longest conversations that are compared.
_TURNS = 4


@dataclass(frozen=True, slots=True)
class TurnTexts:
    """A chat template that writes fixed texts around each content.

    opening: before a conversation that begins with a system message; default: before any other one (with a default
    system prompt). around: role -> the texts before and after its content. generation: the start of an answer.
    """

    opening: str
    default: str
    around: Mapping[str, tuple[str, str]]
    generation: str

    def render(self, messages: Sequence[Mapping[str, str]], *, generate: bool = True) -> str:
        """The prompt for these messages."""
        text = self.opening if messages[0]["role"] == "system" else self.default
        for message in messages:
            before, after = self.around[message["role"]]
            text += before + message["content"] + after
        return text + (self.generation if generate else "")


def turn_texts(tokenizer: Any) -> TurnTexts | None:
    """The fixed texts of a tokenizer's chat template; None if its prompts are more than fixed texts around contents."""
    try:
        found = _taken_apart(tokenizer)
        return found if found is not None and _agrees(found, tokenizer) else None
    except Exception:  # a template may refuse a conversation by any error of Jinja
        return None


def _taken_apart(tokenizer: Any) -> TurnTexts | None:
    """The texts around the marks in a few prompts."""
    def pieces(*roles: str, generate: bool = False) -> list[str]:
        rest, parts = _prompt(tokenizer, _messages(roles), generate), []
        for mark in _MARKS[:len(roles)]:
            before, found, rest = rest.partition(mark)
            if not found:
                return []
            parts.append(before)
        return [*parts, rest]

    user, twice = pieces("user"), pieces("user", "assistant", "user", "assistant", "user")
    system = pieces("system", "user")
    if not (user and twice and system):
        return None
    # "…<end of a user turn><start of an answer>…": the end is what follows a lone user turn
    end = user[1]
    if not all(part.startswith(end) for part in (twice[1], twice[3])):
        return None
    answer = twice[1][len(end):]
    closing = pieces("user", "assistant")[2]
    if not twice[2].startswith(closing):
        return None
    start = twice[2][len(closing):]
    if not user[0].endswith(start) or not system[1].endswith(start):
        return None
    generation = pieces("user", generate=True)[1].removeprefix(end)
    after_system = system[1][:len(system[1]) - len(start)]
    before_system = _later_system(pieces, closing, system[0])
    return TurnTexts(system[0].removesuffix(before_system), user[0][:len(user[0]) - len(start)], {
        "system": (before_system, after_system), "user": (start, end), "assistant": (answer, closing)}, generation)


def _later_system(pieces: Any, closing: str, first: str) -> str:
    """The text before a system message in the middle of a conversation, if one at the start ends with it too."""
    try:
        parts = pieces("user", "assistant", "system", "user")
    except Exception:  # many templates refuse such a message
        return ""
    if not parts or not parts[2].startswith(closing):
        return ""
    later = str(parts[2][len(closing):])
    return later if first.endswith(later) else ""


def _messages(roles: Sequence[str]) -> list[dict[str, str]]:
    return [{"role": role, "content": mark} for role, mark in zip(roles, _MARKS, strict=False)]


def _prompt(tokenizer: Any, messages: list[dict[str, str]], generate: bool) -> str:
    return apply_template(tokenizer, messages, generation=generate)


def _agrees(found: TurnTexts, tokenizer: Any) -> bool:
    """Whether the prompts of all conversations of a few turns are the same, contents with white space too."""
    for length in range(1, _TURNS + 1):
        for roles in itertools.product(("user", "assistant"), repeat=length):
            if any(a == b for a, b in itertools.pairwise(roles)) or roles[0] != "user":
                continue
            for start in ((), ("system",)):
                messages = _messages((*start, *roles))
                messages[-1]["content"] = f" {messages[-1]['content']}\n" if roles[-1] == "user" else "x"
                generate = roles[-1] == "user"
                if found.render(messages, generate=generate) != _prompt(tokenizer, messages, generate):
                    return False
    return True


def go_template(texts: TurnTexts) -> str:
    """The texts as a template of Go's text/template over Ollama's ``.Messages``."""
    before, after = ({r: texts.around[r][n] for r in _ROLES} for n in (0, 1))
    branches = "".join(
        f'{{{{ {"else " if n else ""}if eq .Role "{role}" }}}}{_literal(before[role])}{{{{ .Content }}}}'
        f"{_literal(after[role])}" for n, role in enumerate(_ROLES))
    return (f'{{{{- $first := index .Messages 0 }}}}{{{{ if eq $first.Role "system" }}}}{_literal(texts.opening)}'
            f"{{{{ else }}}}{_literal(texts.default)}{{{{ end }}}}"
            "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
            f'{branches}{{{{ end }}}}{{{{ if and $last (ne .Role "assistant") }}}}{_literal(texts.generation)}'
            "{{ end }}{{ end }}")


def _literal(text: str) -> str:
    """A text inside a Go template. One with braces, also one that the next action would follow, or with quotes that
    would end TEMPLATE, is written as a string."""
    if "{{" in text or "}}" in text or text.endswith("{") or '"""' in text:
        escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'{{{{ "{escaped}" }}}}'
    return text


def modelfile(weights: str, tokenizer: Any, *, template: str, ends: Sequence[str], temperature: float | None) -> str:
    """The text of a Modelfile. weights: name of the GGUF file beside it. ends: texts that end an answer.

    template: that of the tuning: "chat", "alpaca" or "plain". temperature: None for greedy answers.
    """
    lines = [f"# ollama create NAME -f Modelfile\nFROM ./{weights}"]
    if template == "alpaca":
        lines.append(f'# The prompt of the tuning (--template alpaca).\nTEMPLATE """{_ALPACA}"""')
    elif template == "plain" or not tokenizer.chat_template:
        why = "The tuning had no template" if template == "plain" else "The model has no chat template"
        lines.append(f'# {why}: the prompt is passed on unchanged.\nTEMPLATE """{{{{ .Prompt }}}}"""')
    else:
        texts = turn_texts(tokenizer)
        lines.append(_without_template() if texts is None else
                     "# The prompts of the model's own chat template, as Go's text/template.\n"
                     f'TEMPLATE """{go_template(_without_bos(texts, tokenizer))}"""')
    lines += [f'PARAMETER stop "{end}"' for end in dict.fromkeys(ends) if end and '"' not in end]
    if temperature is None:
        lines.append("# Answers are greedy, as in evaluations; Ollama's default is 0.8.\nPARAMETER temperature 0")
    else:
        lines.append(f"# Of the model's generation_config.json.\nPARAMETER temperature {temperature:g}")
    return "\n".join(lines) + "\n"


def _without_template() -> str:
    return ("# No TEMPLATE: the model's chat template does more than to write fixed texts around each message, which "
            "a Go\n# template here cannot repeat. Ollama then looks for a template of its own that is like it. "
            "Compare the prompts\n# before you rely on it, or serve the GGUF with llama.cpp, which runs the Jinja "
            "template in the file:\n# llama-server -m FILE.gguf --jinja")


def _without_bos(texts: TurnTexts, tokenizer: Any) -> TurnTexts:
    """The texts without the BOS token at their start, where the GGUF asks for it in front of each prompt."""
    if tokenizer("a").input_ids[:1] != [tokenizer.bos_token_id]:
        return texts
    bos = str(tokenizer.bos_token or "")
    return TurnTexts(texts.opening.removeprefix(bos), texts.default.removeprefix(bos), texts.around, texts.generation)
