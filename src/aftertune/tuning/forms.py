"""Recognises the form of a row by its keys, and reads the row as an example.

    name = form_of(row)                                  "sharegpt"
    example = FORMS[name].read(row, Place("a.jsonl:1"))

The forms are those of FORMS, in the order in which they are tried. Every form may have ``system``, ``tools`` (or
``functions``, as OpenAI wrote them) and ``chat_template_kwargs`` (as TRL has them). Other keys of a row are counted and
noted once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from aftertune.errors import InputError, shown
from aftertune.tuning.example import Example
from aftertune.tuning.glaive import read_glaive
from aftertune.tuning.turns import (
    Place,
    Turn,
    conversation,
    keys_of,
    read_conversation,
    read_tools,
    read_turns,
    text_of,
)

Row = Mapping[str, Any]

#: Arguments of a chat template that a row may not set, because they change more than the text.
_RESERVED = ("chat_template", "tokenize", "add_generation_prompt", "continue_final_message", "tools", "documents",
             "conversation", "messages", "padding", "truncation", "max_length", "return_tensors", "return_dict",
             "return_assistant_tokens_mask", "tokenizer_kwargs")
#: Other names of columns, for a hint: those of prompts and those of answers.
_LIKE_PROMPT = ("question", "query", "user", "human", "input", "instruction", "source", "problem", "context")
_LIKE_COMPLETION = ("answer", "response", "output", "target", "assistant", "bot", "reply", "solution", "label")


@dataclass(frozen=True, slots=True)
class Form:
    """One form of a row. keys: how a row looks, for messages; because: why a row is taken for it; fits: whether a row
    has the form; used: the keys that ``read`` uses."""

    keys: str
    because: str
    fits: Callable[[Row], bool]
    read: Callable[[Row, Place], Example]
    used: frozenset[str]


def form_of(row: Row) -> str:
    """The name of the form of a row; "prompt" if no form fits, so that the error names the missing key."""
    return next((name for name, form in FORMS.items() if form.fits(row)), "prompt")


def read_form(name: str, row: Row, place: Place, sources: Mapping[str, str]) -> Example:
    """The example of a row of a form. sources: our names -> names in the file, none of which is noted as unused.

    Raises InputError if the row is not an example.
    """
    form = FORMS[name]
    example = form.read(row, place)
    used = {*form.used, *sources.values()}
    if example.turns and not {"chat_template_kwargs", "tools", "functions"}.isdisjoint(row):
        functions = example.tools or read_functions(row, place, strict=name in ("messages", "sharegpt"))
        used |= {"chat_template_kwargs", *(("tools", "functions") if functions else ())}
        example = replace(example, tools=functions, template_arguments=_template_arguments(row, place))
    place.found.extend(("column", str(key)) for key, value in row.items()
                       if key not in used and value not in (None, "", [], {}))
    return example


def read_functions(row: Row, place: Place, *, strict: bool = True) -> tuple[Row, ...]:
    """The functions of ``tools`` or ``functions``. strict: another value is refused and not taken for a column of
    another meaning."""
    key = "tools" if row.get("tools") else "functions"
    value = row.get(key)
    if not value or (not strict and isinstance(value, str) and value.lstrip()[:1] not in ("[", "{")):
        return ()
    return read_tools(value, place.at(f": `{key}`"))


def _template_arguments(row: Row, place: Place) -> Row:
    arguments = row.get("chat_template_kwargs") or {}
    if not isinstance(arguments, dict) or any(key in _RESERVED for key in arguments):
        raise InputError(f"{place.where}: `chat_template_kwargs` must be an object without {', '.join(_RESERVED)}; "
                         f"found {shown(arguments)}; remove them, or leave such rows out (data.skip_bad, --skip-bad)")
    return {key: value for key, value in arguments.items() if value is not None}


# --- One function for each form ---


def _text(row: Row, key: str, place: Place) -> str:
    if key in row:
        return text_of(row, key, place, "")
    rule = f"each row must be {ACCEPTED_FORMS}; map other names with data.fields ({_field_hint(row, key)})"
    return text_of(row, key, place, rule)


def _field_hint(row: Row, key: str) -> str:
    """The options that map the names of this row, or how to write them."""
    names = {str(name).casefold(): name for name in row}
    prompt = next((names[name] for name in _LIKE_PROMPT if name in names), None)
    completion = next((names[name] for name in _LIKE_COMPLETION if name in names and names[name] != prompt), None)
    if key not in ("prompt", "completion") or "prompt" in row or "completion" in row or not prompt or not completion:
        return f"--field {key}=NAME"
    return f"--field prompt={prompt} --field completion={completion}"


def _system(row: Row, place: Place) -> list[Turn]:
    return [Turn("system", _text(row, "system", place))] if row.get("system") else []


def _prompt(row: Row, place: Place) -> Example:
    if row.get("label") is False:
        raise InputError(f"{place.where}: `label` is false, so the completion is a bad answer (unpaired preferences); "
                         "leave such rows out (data.skip_bad, --skip-bad)")
    return _prompt_and(row, "prompt", "completion", place)


def _prompt_and(row: Row, key: str, answer: str, place: Place) -> Example:
    """An example of a prompt and an answer, each a text or a list of turns. Answers in the prompt are context."""
    prompt: Any = row.get(key)
    completion: Any = row.get(answer)
    if not _is_turns(prompt) and not _is_turns(completion):
        turns = [*_system(row, place), Turn("user", _text(row, key, place))]
        return Example(tuple((turn.role, turn.text) for turn in turns), _text(row, answer, place))
    turns = list(read_turns(prompt, key, place)) if _is_turns(prompt) else [
        Turn("user", _text(row, key, place))]
    if not turns or turns[0].role != "system":
        turns = [*_system(row, place), *turns]
    learned = list(read_turns(completion, answer, place)) if _is_turns(completion) else [
        Turn("assistant", _text(row, answer, place))]
    return conversation([*turns, *learned], answer, place, first=len(turns))


def _is_turns(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and (
        "role" in value[0] or "from" in value[0])


def _messages(row: Row, place: Place) -> Example:
    key = "messages" if "messages" in row else "conversations"
    turns = row.get(key)
    own = isinstance(turns, list) and bool(turns) and isinstance(turns[0], dict) and "system" in (
        turns[0].get("role"), turns[0].get("from"))
    if key == "messages" and own and row.get("system"):
        place.found.append(("column", "system"))
        return read_conversation(turns, key, place)
    return read_conversation(turns, key, place, prompt=_system(row, place))


def _sharegpt(row: Row, place: Place) -> Example:
    key = "conversations" if "conversations" in row else "messages"
    return read_conversation(row.get(key), key, place, prompt=_system(row, place))


def _alpaca(row: Row, place: Place) -> Example:
    return _instruction(row, "input", "output", place)


def _dolly(row: Row, place: Place) -> Example:
    return _instruction(row, "context", "response", place)


def _instruction(row: Row, addition: str, answer: str, place: Place) -> Example:
    """An example of an instruction with an optional input to it, earlier turns and a system prompt."""
    history = row.get("history") or []
    if not isinstance(history, list) or not all(map(_is_pair, history)):
        raise InputError(f"{place.where}: `history` must be a list of [question, answer] pairs of texts, found "
                         f"{shown(history)}; write such pairs, or leave such rows out (data.skip_bad, --skip-bad)")
    turns = [turn for question, reply in history for turn in (("user", question), ("assistant", reply))]
    turns.append(("user", _text(row, "instruction", place)))
    added = _text(row, addition, place) if row.get(addition) is not None else ""
    turns = [*((turn.role, turn.text) for turn in _system(row, place)), *turns]
    empty = tuple(n for n, (role, text) in enumerate(turns) if role == "assistant" and not text.strip())
    return Example(tuple(turns), _text(row, answer, place), added.strip() and added, empty)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(x, str) for x in value)


def _preference(row: Row, place: Place) -> Example:
    """The preferred answer of a row that gives two."""
    if "preferred_output" in row:
        return _openai_preference(row, place)
    place.remark("rows give two answers; `chosen` is learned, and `rejected` is not used")
    chosen = row["chosen"]
    for key in ("messages", "conversations"):
        if key in row:
            prompt = [*_system(row, place), *read_turns(row[key], key, place)]
            answer = [chosen] if isinstance(chosen, dict) else chosen
            return read_conversation(answer, "chosen", place, prompt=prompt)
    if _is_turns(chosen) and any(isinstance(turn, dict) and turn.get("role", turn.get("from")) in ("user", "human")
                                 for turn in chosen):
        return _implicit_prompt(chosen, row.get("rejected"), place)
    if "instruction" in row:
        return _instruction(row, "input", "chosen", place)
    if "prompt" not in row:
        raise InputError(f"{place.where}: `chosen` without a `prompt`; found {keys_of(row)}; add the prompt, or learn "
                         "it as a plain text (--format text --field text=chosen)")
    return _prompt_and(row, "prompt", "chosen", place)


def _implicit_prompt(chosen: list[Any], rejected: Any, place: Place) -> Example:
    """A conversation whose prompt is what both answers begin with."""
    common = 0
    for one, other in zip(chosen, rejected if isinstance(rejected, list) else [], strict=False):
        if one != other:
            break
        common += 1
    turns = list(read_turns(chosen, "chosen", place))
    return conversation(turns, "chosen", place, first=min(common, len(turns) - 1))


def _openai_preference(row: Row, place: Place) -> Example:
    place.remark("rows give two answers; `preferred_output` is learned, and `non_preferred_output` is not used")
    given = row.get("input")
    if not isinstance(given, dict) or not isinstance(given.get("messages"), list):
        raise InputError(f"{place.where}: `input` must be an object with `messages`, found {shown(given)}; write the "
                         "form of OpenAI's preference data, or leave such rows out (data.skip_bad, --skip-bad)")
    prompt = list(read_turns(given["messages"], "input.messages", place))
    example = read_conversation(row["preferred_output"], "preferred_output", place, prompt=prompt)
    return replace(example, tools=read_functions(given, place))


def _glaive(row: Row, place: Place) -> Example:
    turns, tools = read_glaive(row, place)
    return replace(read_conversation(turns, "chat", place), tools=tools)


def _plain(row: Row, place: Place) -> Example:
    return Example((), _text(row, "text", place))


def _ends_with_answer(row: Row) -> bool:
    """Whether the conversation of a row ends with an answer, so that it is a whole one."""
    turns = row.get("messages", row.get("conversations"))
    last = turns[-1] if isinstance(turns, list) and turns and isinstance(turns[-1], dict) else {}
    return last.get("role", last.get("from")) in ("assistant", "gpt", "model", "chatgpt")


def _prefers(row: Row) -> bool:
    if "preferred_output" in row:
        return True
    talk = "messages" in row or "conversations" in row
    return {"chosen", "rejected"} <= set(row) and not {"completion", "output", "text"} & set(row) and not (
        talk and _ends_with_answer(row))


def _has(*keys: str) -> Callable[[Row], bool]:
    return lambda row: all(key in row for key in keys)


#: The forms, in the order in which a row is tried. The keys of this table are the values of ``format``.
FORMS: dict[str, Form] = {
    "preference": Form('{"prompt", "chosen", "rejected"}', "rows have `chosen` and `rejected`", _prefers, _preference,
                       frozenset({"prompt", "chosen", "rejected", "messages", "conversations", "system", "instruction",
                                  "input", "history", "preferred_output", "non_preferred_output"})),
    "messages": Form('{"messages": [{"role", "content"}, …]}', "rows have `messages`, a list of turns",
                     lambda row: "messages" in row and "completion" not in row, _messages,
                     frozenset({"messages", "conversations", "system"})),
    "sharegpt": Form('{"conversations": [{"from", "value"}, …]}', "rows have `conversations`, a list of turns",
                     _has("conversations"), _sharegpt, frozenset({"messages", "conversations", "system"})),
    "alpaca": Form('{"instruction", "input", "output"}', "rows have `instruction` and `output`",
                   _has("instruction", "output"), _alpaca,
                   frozenset({"instruction", "input", "output", "history", "system"})),
    "dolly": Form('{"instruction", "context", "response"}', "rows have `instruction` and `response`",
                  lambda row: "instruction" in row and "response" in row and "completion" not in row, _dolly,
                  frozenset({"instruction", "context", "response", "history", "system"})),
    "glaive": Form('{"system", "chat"}', "rows have `chat`, a text with lines that begin with USER:",
                   lambda row: isinstance(row.get("chat"), str) and "USER:" in row["chat"] and not (
                       {"text", "prompt", "completion"} & set(row)), _glaive, frozenset({"system", "chat"})),
    "text": Form('{"text"}', "rows have `text`, and no prompt and completion",
                 lambda row: "text" in row and not {"prompt", "completion"} & set(row), _plain, frozenset({"text"})),
    "prompt": Form('{"prompt", "completion"}', "rows have `prompt` and `completion`", _has("prompt", "completion"),
                   _prompt, frozenset({"prompt", "completion", "system"})),
}
#: The forms in a message.
ACCEPTED_FORMS = ", ".join(form.keys for form in reversed(FORMS.values()))
