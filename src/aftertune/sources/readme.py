"""Reads and keeps the README.md of a model's folder: who wrote it, what its header says, and the base's license.

    header_fields(base, adapter=True, method="lora", data="orders.jsonl")      {"base_model": "org/base", …}
    text = sealed("# careful …")               the text with a comment at its end, which holds its SHA-256
    replaceable(folder)                        True: no README.md, one of ours that nobody changed, or PEFT's template
    with kept_readme(folder):                  PEFT writes a template, or adds lines to the user's file, when it saves
        model.save_pretrained(folder)
    license_of(base)                           "apache-2.0", from the base's README.md in its folder or the Hub's cache

A README that a person wrote or changed is never replaced without being asked.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aftertune import bounds
from aftertune.paths import exists, expanded, is_dir, is_file
from aftertune.study.data import data_on_hub
from aftertune.study.presets import base_on_hub, preset_of
from aftertune.values import ModelIdentity

README = "README.md"
_HEADER = re.compile(r"\A---[ \t]*\n.*?^---[ \t]*$", re.DOTALL | re.MULTILINE)
#: Bytes of a README.md that is read.
MAX_BYTES = bounds.README_BYTES
_SEAL = re.compile(r"\n<!-- aftertune wrote this file: sha256 ([0-9a-f]{64}) -->\n\Z")
#: What PEFT adds to the body of huggingface_hub's template.
_ADDED = re.compile(r"### Framework versions|- PEFT [\w.+-]+|## Training procedure|The following `bitsandbytes` .*|"
                    r"- (load_in|bnb|llm_int8|quant|_load)\w*: .*")


def sealed(text: str) -> str:
    """The text with a comment that holds its SHA-256, by which an unchanged file is recognised."""
    return f"{text}\n<!-- aftertune wrote this file: sha256 {hashlib.sha256(text.encode()).hexdigest()} -->\n"


def replaceable(folder: Path) -> bool:
    """Whether the folder's README.md may be replaced: there is none, it is ours and unchanged, or it is a template."""
    path = folder / README
    if not is_file(path):
        return not exists(path)
    text = _text(path)
    if text is None:
        return False
    seal = _SEAL.search(text)
    if seal is not None:
        return hashlib.sha256(text[:seal.start()].encode()).hexdigest() == seal[1]
    return _is_template(text)


def remove_stale(folder: Path) -> None:
    """Remove a README.md that describes other weights than those that come next, unless a person wrote it."""
    if replaceable(folder):
        (folder / README).unlink(missing_ok=True)


@contextmanager
def kept_readme(folder: Path) -> Iterator[None]:
    """Leave README.md as it was; it is removed again where there was none."""
    path = folder / README
    before = path.read_bytes() if is_file(path) else None
    try:
        yield
    finally:
        if before is None:
            path.unlink(missing_ok=True)
        elif path.read_bytes() != before:
            path.write_bytes(before)


def header_fields(base: ModelIdentity | None, *, adapter: bool, method: str | None, data: str | None,
                  license_: str | None) -> dict[str, Any]:
    """The header of the README.md of a model, for the Hub; unknown fields are None.

    base: what it was made from. method, data: of its fine-tune; data as the user named it.
    """
    hub = base_on_hub(base) if base is not None else None
    datasets = data_on_hub(data) if data is not None else None
    return {"base_model": hub, "base_model_relation": ("adapter" if adapter else "finetune") if hub else None,
            "datasets": [datasets] if datasets else None, "license": license_,
            "pipeline_tag": "text-generation", "tags": ["aftertune", *([method] if method else [])]}


def license_of(model: ModelIdentity) -> str | None:
    """The license of a model: of a preset, or as its README.md states it in its folder or in the cache of the Hub; None
    if it is not known. Nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if preset := preset_of(model.source):
        return preset.license
    folder = expanded(model.source)
    path: object = folder / README if is_dir(folder) else None
    if path is None:
        try:
            path = try_to_load_from_cache(model.source, README, revision=model.revision)
        except HFValidationError:
            return None
    text = _text(Path(path)) if isinstance(path, str | Path) and is_file(Path(path)) else None
    header = _HEADER.match(text) if text else None
    found = re.search(r"^license: *['\"]?([\w.+-]{1,60})['\"]? *$", header[0], re.MULTILINE) if header else None
    return found[1] if found else None


def _is_template(text: str) -> bool:
    """Whether a README is huggingface_hub's template as PEFT fills it in, and nobody changed it."""
    from huggingface_hub import ModelCard, ModelCardData

    template, body = (_HEADER.sub("", t, count=1).splitlines()
                      for t in (ModelCard.from_template(ModelCardData()).content, text))
    known = {line.strip() for line in template}
    return known <= {"", *(line.strip() for line in body)} and all(
        line.strip() in known or _ADDED.fullmatch(line.strip()) for line in body)


def _text(path: Path) -> str | None:
    """The text of a README; None for one that is too long."""
    if path.stat().st_size > MAX_BYTES:
        return None
    return path.read_bytes().decode("utf-8", errors="replace").replace("\r\n", "\n")
