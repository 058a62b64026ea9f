"""Checks how a chat template's conversations are learned, against plain transformers.

    for check in check_templates():            every template that TRL ships
        check.name, check.results              "qwen3", {"answers": CaseResult("ok"), "tools": …}

Each case is a few conversations: answers of one letter, with white space, other scripts and the template's own marks;
several turns; a system prompt; reasoning; tool calls. The questions, system prompts and tool results contain words that
no answer has. A row is right if

- its token ids are those of plain ``apply_chat_template``, without line breaks after the last end of turn,
- each answer is learned with an end, and no word of another turn is,
- where the template marks answers with ``{% generation %}``, the learned tokens are those of transformers' mask.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aftertune.errors import InputError
from aftertune.sources.limits import limited
from aftertune.tuning.chat_turns import marks_answers, message_forms
from aftertune.tuning.example import Example
from aftertune.tuning.tokenize import IGNORED, EncodedRow, EncodeOptions, encode_all

#: Words of the turns that must not be learned.
FOREIGN = ("parcel", "brief", "warehouse")
_QUESTION = {"role": "user", "content": "Where is the parcel?"}
_SYSTEM = {"role": "system", "content": "Be brief."}
_TOOL = {"type": "function", "function": {
    "name": "track", "description": "Place of an order",
    "parameters": {"type": "object", "properties": {"order": {"type": "integer"}}}}}
_RESULT = {"role": "tool", "tool_call_id": "call_0", "name": "track", "content": '{"place": "warehouse"}'}
#: Answers that are easily mistaken for something else: letters of marks, white space, other scripts, marks, code.
ANSWERS = ("d", "e", "i", "<", " d", "d ", "\nd\n", "\n\n  d  \n", "Oslo.", "It's\n\nfine\n", "東京 ✓ 🎉", "<|im_end|>",
           "</s> x", "assistant", "user\nq", "<|im_start|>assistant\nhi<|im_end|>", "<tool_call>\n{}", "{{ x }}",
           "a<b>c", "<b>bold</b>", "[/INST] x", "<end_of_turn>", "<|eot_id|>", "<｜Assistant｜>", "Q", "J",
           '{"city": "Oslo"}', "if x:\n    return 0")
_MARKS = re.compile(r"<\|?[^<>\s'\"{}]+?\|?>|\[/?[A-Z_]+\]")


def _answer(content: str | None, **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **keys}


def _call(content: str | None) -> dict[str, Any]:
    return _answer(content, tool_calls=[{"type": "function", "id": "call_0", "function": {
        "name": "track", "arguments": {"order": 7}}}])


_THOUGHT = "<think>\nIt says Oslo.\n</think>\n\nOslo."
_MORE = {"role": "user", "content": "And the other parcel?"}
#: Name -> conversations. Those with a tool call get the tool.
CASES: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]] = {
    "answers": [[_QUESTION, _answer(text)] for text in ANSWERS],
    "turns": [[_QUESTION, _answer(first), _MORE, _answer(second)] for first, second in (
        ("d", "i"), (" Oslo.\n", "Rome."), ("東京", "<b>x</b>"))],
    "system": [[_SYSTEM, _QUESTION, _answer("d")], [_SYSTEM, _QUESTION, _answer("Oslo."), _MORE, _answer("e")]],
    "think": [[_QUESTION, _answer(_THOUGHT)], [_QUESTION, _answer(_THOUGHT.partition("\n")[2])],
              [_QUESTION, _answer("<think>It says Oslo.</think>Oslo.")],
              [_QUESTION, _answer(_THOUGHT), _MORE, _answer(_THOUGHT)]],
    "reasoning": [[_QUESTION, _answer("Oslo.", reasoning_content="It says Oslo.")],
                  [_QUESTION, _answer("Oslo.", thinking="It says Oslo.")]],
    "tools": [[_QUESTION, _call(content), _RESULT, _answer("Oslo.")] for content in ("", None, "Let me look.")],
}


@dataclass(frozen=True, slots=True)
class CaseResult:
    """The outcome of a case. status: ok; left out (the template does not write all of it, and what it writes is
    learned); refused (by the template, in all of its conversations); or wrong. details: why, a sentence each."""

    status: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TemplateCheck:
    """A template and the outcome of each case."""

    name: str
    results: Mapping[str, CaseResult]

    @property
    def wrong(self) -> bool:
        """True if a case is learned in another way than plain transformers write it."""
        return any(result.status == "wrong" for result in self.results.values())


def check_templates(names: Sequence[str] = (), *, trust_remote_code: bool = False) -> Iterator[TemplateCheck]:
    """Check templates one after another.

    names: models, as anywhere, or files that end in .jinja; by default every template of the installed TRL. A file is
    checked with a small byte-level tokenizer that has the marks in its text as tokens.
    Raises SourceError for a model that is not found, InputError for a missing file or a model without a template.
    """
    from aftertune.sources import load_tokenizer, resolve_model

    for name in names or [str(path) for path in trl_templates()]:
        if name.endswith(".jinja"):
            if not Path(name).is_file():
                raise InputError(f"{name}: no such file; give a .jinja file or a model")
            tokenizer = template_tokenizer(Path(name).read_text(encoding="utf-8"))
            yield check_template(Path(name).stem, tokenizer)
        else:
            tokenizer = load_tokenizer(resolve_model(name, trust_remote_code=trust_remote_code))
            if not tokenizer.chat_template:
                raise InputError(f"{name}: its tokenizer has no chat template; nothing to check")
            yield check_template(name, tokenizer)


def trl_templates() -> list[Path]:
    """The files of the chat templates that the installed TRL ships."""
    found = find_spec("trl")
    if found is None or found.origin is None:
        raise InputError("TRL is not installed; name a model or a .jinja file")
    return sorted((Path(found.origin).parent / "chat_templates").glob("*.jinja"))


def template_tokenizer(template: str) -> Any:
    """A byte-level tokenizer with this chat template. The marks in its text are tokens; some pairs are merged, so that
    a token can cross the border between a prompt and an answer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    marks = sorted({"<s>", "</s>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", *_MARKS.findall(template)})
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    words = [f"\n\n{message['content']} \n\n" for message in (_QUESTION, _SYSTEM, _MORE)] * 9
    core.train_from_iterator(words, trainers.BpeTrainer(
        vocab_size=300 + len(marks), special_tokens=marks, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


def check_template(name: str, tokenizer: Any) -> TemplateCheck:
    """Check the chat template of a tokenizer in every case."""
    return TemplateCheck(name, {case: _check_case(talks, tokenizer) for case, talks in CASES.items()})


def _check_case(talks: Sequence[Sequence[Mapping[str, Any]]], tokenizer: Any) -> CaseResult:
    refused, left_out, wrong = [], [], []
    for talk in talks:
        messages = [dict(message) for message in talk]
        example = _example(messages)
        try:
            found = encode_all([example], tokenizer, EncodeOptions("chat", 1_000_000))
        except InputError as error:
            refused.append(str(error))
            continue
        left_out += [note.removeprefix("template chat: ").partition("; the first is")[0] for note in found.notes
                     if "left out" in note or "not written" in note]
        wrong += [f"{messages[-1]['content']!r}: {fault}" for fault in _faults(found.rows, messages, example, tokenizer,
                                                                              complete=not left_out)]
    if wrong:
        return CaseResult("wrong", tuple(wrong))
    if len(refused) == len(talks):
        return CaseResult("refused", tuple(refused))
    return CaseResult("left out" if left_out or refused else "ok", (*left_out, *refused))


def _example(messages: list[dict[str, Any]]) -> Example:
    """The example that these messages are in a data file; its last message is the answer."""
    extra = {number: {key: value for key, value in message.items()
                      if key not in ("role", "content") or (key == "content" and value is None)}
             for number, message in enumerate(messages)}
    calls = any(message.get("tool_calls") for message in messages)
    return Example(tuple((m["role"], m["content"] or "") for m in messages[:-1]), messages[-1]["content"] or "",
                   extra={number: keys for number, keys in extra.items() if keys}, tools=(_TOOL,) if calls else ())


def _faults(rows: Sequence[EncodedRow], messages: list[dict[str, Any]], example: Example, tokenizer: Any, *,
            complete: bool) -> Iterator[str]:
    """What is wrong with the rows of an example. complete: the template writes all of it."""
    learned = [tokenizer.decode([i for i in row.labels if i != IGNORED]) for row in rows]
    ends = [number + 1 for number in example.answers] if len(rows) > 1 else [len(messages)]
    for row, end in zip(rows, ends, strict=False):
        references = list(_plain(messages[:end], example.tools, tokenizer))
        if not any(_same_ids(row, ids, tokenizer) for ids, _ in references):
            yield f"the ids are not those of plain transformers: {tokenizer.decode(row.ids[-40:])!r}"
        masks = [mask for ids, mask in references if _same_ids(row, ids, tokenizer) and any(mask)]
        if len(rows) == 1 and masks and not _same_mask(row, masks[0], tokenizer):
            yield f"the learned tokens are not those of the template's generation blocks: {learned[0]!r}"
    for number in example.answers:
        text = (messages[number]["content"] or "").strip()
        if complete and not any(_words(text, said) for said in learned):
            yield f"the answer is not learned: {learned!r}"
    said_last = messages[-1]["content"].strip()
    if learned[-1].rstrip().endswith(said_last) and not said_last.endswith(">"):  # it may be an end of turn itself
        yield "no end is learned"
    foreign = [word for word in FOREIGN if any(word in said for said in learned)]
    if foreign:
        yield f"words of other turns are learned ({', '.join(foreign)}): {learned!r}"


def _words(text: str, said: str) -> bool:
    """True if the text is learned. A template may write the marks around reasoning in its own way."""
    parts = [part.strip() for part in re.split(r"</?think>", text)]
    return text in said or ("</think>" in text and all(part in said for part in parts))


def _plain(messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]], tokenizer: Any
           ) -> Iterator[tuple[list[int], list[int]]]:
    """Ids and mask of plain transformers, for each form of the messages that the template takes. The mask is empty
    where the template marks no answers."""
    marked = marks_answers(tokenizer.get_chat_template(tools=list(tools) or None))
    for in_parts in (False, True):
        for form in message_forms(messages, in_parts):
            try:
                found = limited(str(tokenizer.chat_template), partial(
                    tokenizer.apply_chat_template, form, tools=list(tools) or None, return_dict=True,
                    return_assistant_tokens_mask=marked))
            except Exception:  # a template may raise anything; this form is not for it
                continue
            yield found["input_ids"], found["assistant_masks"] if marked else []


def _same_ids(row: EncodedRow, ids: list[int], tokenizer: Any) -> bool:
    """True if the row has these ids, without white space at their end. An end-of-sequence token may follow where the
    template writes no end of turn, and a beginning-of-sequence token may come first where it writes none."""
    starts = [[], [tokenizer.bos_token_id]] if tokenizer.bos_token_id not in ids[:1] else [[]]
    ended = row.ids[:-1] if row.ids[-1:] == [tokenizer.eos_token_id] else row.ids
    return any(own == (whole := [*start, *ids])[:len(own)] and not tokenizer.decode(whole[len(own):]).strip()
               for start in starts for own in (row.ids, ended))


def _same_mask(row: EncodedRow, mask: list[int], tokenizer: Any) -> bool:
    """True if the learned tokens are those of the mask, except white space after an end of turn."""
    if len(mask) < len(row.labels):
        mask = [*mask, *[1] * (len(row.labels) - len(mask))]
    return all(bool(wanted) == (label != IGNORED) or not tokenizer.decode([token]).strip()
               for token, label, wanted in zip(row.ids, row.labels, mask, strict=False))
