"""Owns the unpacked copies of GGUF files, so that only the first load pays for dequantisation.

    unpacked(source, "model", make)     # folder with config.json and model.safetensors in float32

Loading SmolLM2-135M's GGUF and its tokenizer takes transformers some 20 s of one core, nearly all of it in
Python: gguf's reader walks 98,000 tokens and merges (twice for the weights, once for the tokenizer),
transformers builds a map of tensor names for each module, numpy unpacks the blocks. From the copy it takes
2 s the first time (the sha256 is checked) and 0.5 s after that. A copy takes 4 bytes a parameter (538 MB
here) under ``gguf/`` of the cache folder. It is keyed by the fingerprints of the raw file and by the
library versions that unpacked it, written whole or not at all, and checked before use. The model's
fingerprint stays that of the raw GGUF.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from aftertune.errors import SourceError
from aftertune.sources.cache import beside, cache_root, usual_modes
from aftertune.sources.fingerprint import fingerprint_file, fingerprint_model
from aftertune.sources.origin import ModelSource
from aftertune.values import digest

#: Largest copy kept, in bytes; a larger GGUF is unpacked anew at each load.
LIMIT = 8 * 2**30
MANIFEST = "COMPLETE.json"


def unpacked(source: ModelSource, part: str, make: Callable[[Path], None]) -> Path | None:
    """Folder with ``part`` of a GGUF unpacked by ``make(folder)``, from the cache where it is whole.

    None where no copy can be kept: too large, too little disk, or a cache that cannot be written.
    """
    identity = fingerprint_model(source)
    key = digest([1, identity.weights, identity.config, identity.tokenizer,
                  version("transformers"), version("gguf")])[:32]
    folder = cache_root() / "gguf" / key / part
    if whole(folder):
        return folder
    need = 4 * (identity.parameters or 0) if part == "model" else 2**26
    if need > LIMIT or not _room(need):
        return None
    try:
        fresh = beside(folder)
        fresh.mkdir(parents=True)
    except OSError:
        return None
    try:
        make(fresh)
        _seal(fresh)
        if not whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another process was first; its copy is as good
            fresh.rename(folder)
        return folder if whole(folder) else None
    except OSError:
        return None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def whole(folder: Path) -> bool:
    """True where the folder has its manifest and every file in it has the content that was written."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return bool(files) and all(fingerprint_file(folder / name) == sha for name, sha in files.items())
    except (OSError, ValueError, AttributeError, SourceError):
        return False


def disk_use() -> int:
    """Bytes that unpacked copies take."""
    root = cache_root() / "gguf"
    return sum(p.stat().st_size for p in root.rglob("*") if p.is_file()) if root.is_dir() else 0


def _seal(folder: Path) -> None:
    usual_modes(folder)
    files = {p.name: fingerprint_file(p) for p in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(files), encoding="utf-8")


def _room(need: int) -> bool:
    try:
        root = cache_root()
        root.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(root).free > 2 * need
    except OSError:
        return False
