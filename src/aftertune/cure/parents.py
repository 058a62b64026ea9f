"""Finds a fine-tune with a proven base, which a cure starts from.

    parent = find_parent("runs/orders", ledger)       a folder, or the id or name of a fine-tune
    parent.files.base, parent.tuning.result

The proof is the manifest in the folder, or a fine-tune of the ledger that made exactly these weights. A base that is
not the one that the record names, or weights that were changed since, are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from aftertune.errors import InputError
from aftertune.paths import expanded, is_dir, is_file
from aftertune.sources import fingerprint_adapter, fingerprint_model, resolve_model
from aftertune.tuning import read_tuning
from aftertune.tuning.output import read_manifest
from aftertune.tuning.strength import FineTuneFiles, check_strength
from aftertune.values import ModelIdentity, Tuning

if TYPE_CHECKING:
    from aftertune.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Parent:
    """A fine-tune. tuning: as it made the weights in the folder; result: their fingerprint, with the base."""

    tuning: Tuning
    files: FineTuneFiles
    result: str

    @property
    def method(self) -> str:
        """The method for the record of a model in the same form: an adapter's own, "full" for whole weights."""
        return self.tuning.method if self.files.adapter else "full"


def find_parent(word: str, ledger: Ledger, *, softened: bool = True) -> Parent:
    """The fine-tune in a folder, or with this id or name.

    Raises InputError, in one line, if nothing proves what it was made from, if its base or its weights are not those of
    the record, or with ``softened`` if its form cannot be softened.
    """
    tuning, folder = _recorded(word, ledger)
    adapter = is_file(folder / "adapter_config.json")
    base = resolve_model(tuning.base.source, revision=tuning.base.revision,
                         trust_remote_code=tuning.base.trust_remote_code)
    now = fingerprint_model(base)
    if now.stored.fingerprint != tuning.base.stored.fingerprint:
        raise InputError(f"{word}: it was made from {tuning.base.source} with the fingerprint "
                         f"{tuning.base.stored.fingerprint[:12]}, but there is another model now "
                         f"({now.stored.fingerprint[:12]}); put the base back")
    result = _fingerprint(folder, now)
    if not tuning.made(result):
        raise InputError(f"{word}: the weights in {folder} are not those that the fine-tune {tuning.name} made; "
                         "restore them, or tune again")
    files = FineTuneFiles(folder, adapter, base)
    if softened:
        check_strength(files)
    if all(known.id != tuning.id for known in ledger.tunings()):  # its folder comes from another machine
        ledger.save_tuning(tuning)
    return Parent(tuning.at(result), files, result)


def _recorded(word: str, ledger: Ledger) -> tuple[Tuning, Path]:
    """The record of a fine-tune, and the folder with its weights."""
    folder = expanded(word)
    if not is_dir(folder):
        named = read_tuning(word, ledger)
        return named, Path(named.output)
    tuning = read_manifest(folder)
    if tuning is not None and tuning.status == "done":
        return replace(tuning, output=str(folder)), folder
    if not any(is_file(folder / name) for name in ("adapter_config.json", "config.json")):
        raise InputError(f"{word}: neither an adapter nor a model there; give the folder, id or name of a fine-tune")
    for known in reversed(ledger.tunings()):
        if known.status == "done" and known.made(_fingerprint(folder, known.base)):
            return known, folder
    raise InputError(f"{word}: nothing proves which base it was made from (no {folder / 'aftertune.json'} of a "
                     "finished tuning, and no fine-tune of the ledger made these weights); tune with aftertune, or "
                     "measure the training with aftertune checkpoints or ForgettingCallback, which record it")


def _fingerprint(folder: Path, base: ModelIdentity) -> str:
    """The fingerprint of the model in a folder: the base with the adapter, or whole weights."""
    if is_file(folder / "adapter_config.json"):
        return replace(base.stored, adapter=fingerprint_adapter(folder)).fingerprint
    return fingerprint_model(resolve_model(str(folder.resolve()))).fingerprint
