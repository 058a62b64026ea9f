"""Compares the tokenizer in an adapter's folder with that of the base, and takes another tokenizer for a model.

    tokenizer_note(adapter, tokenizer)
        "the folder of ./orders has a tokenizer of its own, which differs in 2 added tokens (the first: '<call>') …"

    choose_tokenizer("adapter", source, folder)          that tokenizer, and the source with enough embedding rows

PEFT and lm-eval take the tokenizer that they are given. A fine-tune that added tokens, or another chat template, was
trained with the tokenizer in its own folder, so this must be said where another one is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from aftertune.errors import SourceError
from aftertune.paths import expanded, is_dir
from aftertune.sources.adapters import adapter_folder
from aftertune.sources.loading import base_shapes, has_tokenizer, load_tokenizer
from aftertune.sources.resolve import AdapterSource, ModelSource, read_json
from aftertune.sources.tensors import read_header

ADAPTER, ADAPTER_FILE = "adapter", "adapter_model.safetensors"
#: Parts of a fast tokenizer that decide which tokens a text becomes, with their names in a sentence.
_PARTS = {"normalizer": "the normalizer", "pre_tokenizer": "the splitting into words", "model": "the merges",
          "post_processor": "the tokens around a text"}
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "lm_head", "embed_out")


def choose_tokenizer(choice: str, source: ModelSource, adapter: str | None, folder: Path | None
                     ) -> tuple[Any, Path, ModelSource]:
    """The tokenizer that was asked for, its folder, and the source with an embedding row for each of its tokens.

    choice: "adapter" or a folder. adapter, folder: the adapter as the user named it, and its folder.
    Raises SourceError if there is no such tokenizer, or if the adapter has no embeddings for its tokens.
    """
    if choice == ADAPTER and folder is None:
        raise SourceError("--tokenizer adapter takes the tokenizer in the folder of an adapter; add --adapter, or name "
                          "the folder of a tokenizer")
    where = folder if choice == ADAPTER and folder is not None else expanded(choice)
    if not is_dir(where):
        raise SourceError(f"--tokenizer {choice}: no such folder; give a folder with tokenizer.json or tokenizer.model")
    if choice == ADAPTER and not has_tokenizer(where):
        raise SourceError(f"{adapter}: no tokenizer in its folder {where}; leave --tokenizer out, or name a folder")
    tokenizer = load_tokenizer(source, where)
    rows = _rows(source)
    beyond = {i: t for t, i in tokenizer.get_vocab().items() if i >= rows}
    if not beyond:
        return tokenizer, where, source
    special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    brought = set() if folder is None else _brought(folder, max(beyond) + 1)
    if lacking := sorted(i for i in beyond if i not in special | brought):
        raise SourceError(f"--tokenizer {choice}: {len(lacking)} of its tokens, the first {beyond[lacking[0]]!r}, are "
                          f"beyond the {rows} embedding rows of {source.named}, and no adapter here has embeddings for "
                          "them; save the adapter with its embeddings (PEFT: save_embedding_layers=True)")
    return tokenizer, where, replace(source, rows=max(beyond) + 1)


def with_rows(source: ModelSource, adapter: str) -> ModelSource:
    """The source with as many embedding rows as an adapter was trained with, if it has embeddings with more rows."""
    folder, _ = adapter_folder(adapter)
    if not (folder / ADAPTER_FILE).is_file():
        return source
    rows = max((t.shape[0] for t in read_header(folder / ADAPTER_FILE)
                if t.name.endswith("weight") and t.name.split(".")[-2] in _EMBEDDINGS), default=0)
    return replace(source, rows=rows) if rows > _rows(source) else source


def _rows(source: ModelSource) -> int:
    """The number of embedding rows of a model."""
    shapes = base_shapes(source)
    return max(shape[0] for name, shape in shapes.items() if name.split(".")[-2] in _EMBEDDINGS)


def _brought(folder: Path, rows: int) -> set[int]:
    """Ids of tokens whose embeddings are in an adapter's file."""
    config = read_json(folder / "adapter_config.json")
    listed = config.get("trainable_token_indices") or config.get("token_indices") or []
    tokens = {i for ids in listed.values() for i in ids} if isinstance(listed, dict) else set(listed)
    whole = any(t.shape[:1] >= (rows,) and any(name in t.name.split(".") for name in _EMBEDDINGS)
                and t.name.endswith("weight") for t in read_header(folder / "adapter_model.safetensors"))
    return set(range(rows)) if whole else tokens


def tokenizer_note(adapter: AdapterSource, tokenizer: Any, source: ModelSource) -> str:
    """A sentence where the adapter's folder has a tokenizer that differs from the one in use; else ""."""
    if not has_tokenizer(adapter.path):
        return ""
    try:
        own = load_tokenizer(source, adapter.path)
    except SourceError as error:
        return f"the tokenizer in the folder of {adapter.source} cannot be read and is not used: {error}"
    different = ", ".join(differences(tokenizer, own))
    return different and (f"the folder of {adapter.source} has a tokenizer of its own, which differs in {different}; "
                          "it is not used: pass --tokenizer adapter to use it")


def differences(base: Any, own: Any) -> Iterator[str]:
    """What differs between two tokenizers in the tokens of a text or in the text of a chat."""
    ours, theirs = base.get_vocab(), own.get_vocab()
    if added := sorted((i, t) for t, i in theirs.items() if t not in ours):
        yield f"{len(added)} added tokens (the first: {added[0][1]!r})"
    elif ours != theirs:
        yield "the ids of its tokens"
    for kind in ("bos", "eos"):
        if getattr(base, f"{kind}_token") != getattr(own, f"{kind}_token"):
            yield f"the {kind} token"
    left, right = _backend(base), _backend(own)
    yield from (words for part, words in _PARTS.items()
                if left and right and not added and left.get(part) != right.get(part))
    if base.chat_template != own.chat_template:
        yield "the chat template"


def _backend(tokenizer: Any) -> dict[str, Any]:
    """The parts of a fast tokenizer; {} for another one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {}
    return parts
