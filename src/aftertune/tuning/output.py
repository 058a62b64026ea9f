"""Owns a tuning's output folder: weights and tokenizer, and ``aftertune.json``, the manifest written last.

    save(model, "lora", tokenizer, folder)
    result = identify(folder, "lora", base, identity)       fingerprint of what came out
    write_manifest(folder, tuning)
    finished(folder, tuning_id, base, identity)             the Tuning, where the folder still holds it

A folder without a manifest is one that was never finished.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from aftertune.errors import AftertuneError, InputError, StorageError
from aftertune.methods import METHODS, writes_adapter
from aftertune.sources import ModelSource, fingerprint_model, resolve_adapter, resolve_model
from aftertune.sources.cache import usual_modes
from aftertune.sources.loading import quiet
from aftertune.tuning.merge import FOLDER, merge
from aftertune.values import ModelIdentity, Tuning, plain, restore

MANIFEST = "aftertune.json"


def prepare(folder: Path) -> None:
    """Make the folder, and take away the manifest and the merged weights of what is about to be replaced.

    Raises StorageError where it cannot be written, before any work is done.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StorageError(f"{folder}: cannot write the tuned model here ({error.strerror}); "
                           "choose another folder with --out") from error


def save(model: Any, method: str, tokenizer: Any, folder: Path) -> None:
    """Write adapter or weights as safetensors, and the tokenizer files. Raises StorageError (disk full)."""
    from safetensors.torch import save_file

    # An adapter never holds embeddings here; saying so keeps PEFT from asking the Hub about the base.
    options = {"save_embedding_layers": False} if hasattr(model, "peft_config") else {}
    try:
        with quiet():
            own = METHODS[method].save
            if own is not None:
                tensors, config = own(model)
                save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
                config.save_pretrained(folder)
            else:
                model.save_pretrained(folder, **options)
            tokenizer.save_pretrained(folder)
        usual_modes(folder)
    except OSError as error:
        raise StorageError(f"{folder}: the tuned model could not be written ({error.strerror or error}); "
                           "free some space and tune again") from error


def identify(folder: Path, method: str, base: ModelSource, identity: ModelIdentity) -> str:
    """Fingerprint of the model that the folder holds: the base with its adapter, or its own weights."""
    if not writes_adapter(method):
        return fingerprint_model(resolve_model(str(folder))).fingerprint
    return fingerprint_model(base, resolve_adapter(str(folder), base, identity)).fingerprint


def with_merged(tuning: Tuning, base: ModelSource) -> Tuning:
    """The tuning with its adapter merged too, into ``merged`` in its folder; one that is there already stays.

    Raises InputError where there is nothing to merge.
    """
    folder = Path(tuning.output)
    if not writes_adapter(tuning.method):
        raise InputError(f"{tuning.name}: a {tuning.method} tuning writes whole weights, so there is nothing to merge; "
                         "leave out --merge")
    if tuning.merged is not None and merged_fingerprint(folder) == tuning.merged:
        return tuning
    adapter = resolve_adapter(str(folder), base, tuning.base)
    return replace(tuning, merged=merge(base, adapter, folder / FOLDER, dtype=str(tuning.settings["dtype"])))


def merged_fingerprint(folder: Path) -> str | None:
    """Fingerprint of the merged weights in a tuning's folder, None where there are none that are whole."""
    try:
        return fingerprint_model(resolve_model(str((folder / FOLDER).resolve()))).fingerprint
    except AftertuneError:
        return None


def write_manifest(folder: Path, tuning: Tuning) -> None:
    """Write ``aftertune.json`` in one step: whole or not at all."""
    part = folder / f"{MANIFEST}.part"
    try:
        with part.open("w", encoding="utf-8") as file:
            json.dump(plain(tuning), file, indent=2, ensure_ascii=False, sort_keys=True, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(folder / MANIFEST)
    except OSError as error:
        raise StorageError(f"{folder / MANIFEST}: cannot be written ({error.strerror}); "
                           "free some space and tune again") from error


def read_manifest(folder: Path) -> Tuning | None:
    """The tuning that a folder says it holds, None where it says nothing readable."""
    try:
        return restore(Tuning, json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def finished(folder: Path, tuning_id: str, base: ModelSource, identity: ModelIdentity) -> Tuning | None:
    """The finished tuning of this id in ``folder``, None where it is another, unfinished or changed since."""
    tuning = read_manifest(folder)
    if tuning is None or tuning.id != tuning_id or tuning.status != "done":
        return None
    try:
        found = identify(folder, tuning.method, base, identity)
    except AftertuneError:  # damaged files are made anew
        return None
    return tuning if found == tuning.result else None
