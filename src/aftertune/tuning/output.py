"""Writes and reads the output folder of a tuning: adapter or weights, tokenizer, manifest and merged weights.

    save(model, "lora", tokenizer, folder, base)
    save_whole(model, tokenizer, folder, base, "bfloat16")
    result = identify(folder, "lora", base, identity)       fingerprint of the tuned model
    write_manifest(folder, tuning)                          aftertune.json, written last
    finished(folder, tuning_id, base, identity)             the Tuning, if the folder still holds it
    merge(base, adapter, folder / "merged", dtype="bfloat16")     fingerprint of the merged weights

A folder without a manifest was not finished.

A merge gives whole weights that plain transformers loads. It uses the base as it is stored, usually in 16 bits, also if
the adapter was trained on four bits: merging into dequantised weights would keep the quantisation error. Each layer is
summed in float32 and rounded once. Weights that no adapter changes stay the same, bit by bit.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aftertune.errors import AftertuneError, InputError, StorageError
from aftertune.methods import METHODS, writes_adapter
from aftertune.paths import exists, expanded, is_file
from aftertune.sources import (
    AdapterSource,
    ModelSource,
    fingerprint_model,
    load_model,
    load_tokenizer,
    resolve_adapter,
    resolve_model,
)
from aftertune.sources.cache import remove_path, set_default_mode, temporary_path, write_atomic
from aftertune.sources.fingerprint import TOKENIZER_FILES, fingerprint_adapter
from aftertune.sources.folder_lock import folder_lock
from aftertune.sources.library_errors import disk_errors, load_errors, memory_errors, quiet, writing_errors
from aftertune.sources.readme import README, header_fields, kept_readme, license_of, remove_stale, sealed
from aftertune.sources.resolve import read_json
from aftertune.sources.tensors import read_header, weight_files
from aftertune.study.presets import base_on_hub
from aftertune.tuning.targets import merge_refusal
from aftertune.values import ExportedModel, ModelIdentity, Tuning, from_json, plain, restore

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

# --- Merging an adapter into its base ---

#: The folder of the merged weights, in the output folder.
FOLDER = "merged"
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def merge(base: ModelSource, adapter: AdapterSource, out: Path, *, dtype: str) -> str:
    """Write ``base`` with ``adapter`` merged to the folder ``out``, completely or not at all; returns its fingerprint.

    dtype: of the weights if the base's files do not say it (a GGUF). Raises InputError if the merged weights would be
    a different model (a quantised base, tied embeddings), StorageError if they cannot be written.
    """
    tokenizer = load_tokenizer(base)
    model = load_model(base, stored_dtype(base) or dtype, "cpu", adapter, tokenizer=tokenizer)
    with quiet(), memory_errors(base, "cpu"):
        with load_errors(adapter, "it for merging (adapter_model.safetensors)", "tune again, or use it unmerged"):
            merged = _merge_layers(model, adapter)
        temporary = temporary_path(out)
        try:
            with writing_errors(f"{adapter.source}: writing its merged weights", "use the adapter unmerged"), \
                    disk_errors(out, "run the same command again"):
                merged.save_pretrained(temporary)
                tokenizer.save_pretrained(temporary)
                set_default_mode(temporary)
                shutil.rmtree(out, ignore_errors=True)
                temporary.rename(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return fingerprint_model(resolve_model(str(out))).fingerprint


def stored_dtype(base: ModelSource) -> str | None:
    """The dtype of most weights in a base's safetensors, None for a GGUF.

    Raises InputError if the base is stored quantised.
    """
    if base.gguf_file is not None:
        return None
    if read_json(base.path / "config.json").get("quantization_config"):
        raise InputError(f"{base.named} is stored quantised, and merging into rounded weights would give a different "
                         "model; merge into its 16-bit base, or use the adapter unmerged")
    weights: Counter[str] = Counter()
    for path in weight_files(base.path):
        for tensor in read_header(path):
            weights[tensor.dtype] += prod(tensor.shape)
    return _DTYPES.get(weights.most_common(1)[0][0])


def _merge_layers(model: Any, adapter: AdapterSource) -> Any:
    """The transformers model inside a PEFT model, with the adapter added to its weights."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    if reason := merge_refusal(model):
        raise InputError(f"{adapter.source}: the adapter, of type {adapter.peft_type}, {reason}; use it unmerged")
    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    with torch.no_grad():
        for layer in layers:
            base = layer.get_base_layer()
            dtype = next(base.parameters()).dtype  # fused experts have no ``weight``
            base.float()
            layer.merge(safe_merge=True)
            base.to(dtype)
    return model.unload()


# --- The output folder ---

MANIFEST = "aftertune.json"
#: What to do after a full disk.
AGAIN = "run the same command again: it continues from its last checkpoint"


def make(folder: Path) -> None:
    """Create the output folder. Raises StorageError if it cannot be written, so that this is known before training."""
    with _writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()


def prepare(folder: Path) -> None:
    """Remove the manifest, merged weights and card of an earlier tuning, and temporary files of safetensors that a
    killed process has left. Raises StorageError."""
    with _writable(folder):
        (folder / MANIFEST).unlink(missing_ok=True)
        remove_stale(folder)
        for path in folder.glob(".tmp??????"):
            remove_path(path)
        shutil.rmtree(folder / FOLDER, ignore_errors=True)


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{folder}: cannot write the tuned model here ({error.strerror}); "
                           "choose another folder with --out") from error


def whole_dtype(base: ModelSource, wanted: str) -> str:
    """The dtype in which whole weights are handed on: the base's, unless ``wanted`` is not "auto".

    That of a GGUF, whose weights are quantised, is float32, in which they are trained.
    """
    return wanted if wanted != "auto" else stored_dtype(base) or "float32"


def round_weights(model: Any, dtype: str) -> None:
    """Round the weights to ``dtype``, in place and in their present dtype: what is measured is what is handed on."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.copy_(parameter.to(getattr(torch, dtype)).to(parameter.dtype))


@contextlib.contextmanager
def rounded_weights(model: Any, dtype: str) -> Iterator[None]:
    """As `round_weights`, but the weights are restored at the end, bit by bit, so that a training can continue."""
    import torch

    weights = {} if dtype == "float32" else {n: p.detach().cpu().clone() for n, p in model.named_parameters()}
    round_weights(model, dtype)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in weights:
                    parameter.copy_(weights[name])


def save_whole(model: Any, tokenizer: Any, folder: Path, base: ModelSource, dtype: str) -> None:
    """Write whole weights in ``dtype``. All other files are the base's, so that only what was trained differs. The
    model stays as it is.

    Raises StorageError (disk full).
    """
    use_cache, model.config.use_cache = model.config.use_cache, True  # off while training
    try:
        with disk_errors(folder, AGAIN), quiet():
            model.save_pretrained(folder, state_dict=_state_in(model, dtype))
            if base.gguf_file is not None:
                config = read_json(folder / "config.json")
                write_atomic(folder / "config.json", json.dumps({**config, "dtype": dtype}, indent=2) + "\n")
                tokenizer.save_pretrained(folder)
            else:
                _keep_files(base.path, folder, dtype)
            set_default_mode(folder)
    finally:
        model.config.use_cache = use_cache


def _state_in(model: Any, dtype: str) -> dict[str, Any]:
    """The state of a model with its floating-point tensors in ``dtype``, in the memory of the CPU. Tied weights stay
    one tensor."""
    import torch

    copies: dict[tuple[int, Any, Any], Any] = {}
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            key = (tensor.data_ptr(), tensor.shape, tensor.stride())
            tensor = copies.setdefault(key, tensor.to("cpu", getattr(torch, dtype)))
        state[name] = tensor
    return state


def _keep_files(base: Path, folder: Path, dtype: str) -> None:
    """Write the base's config, generation settings and tokenizer to ``folder`` in place of those that were saved."""
    config = read_json(base / "config.json")
    named = [key for key in ("dtype", "torch_dtype") if key in config]
    write_atomic(folder / "config.json", json.dumps({**config, **dict.fromkeys(named, dtype)}, indent=2) + "\n")
    (folder / "generation_config.json").unlink(missing_ok=True)
    templates = [str(p.relative_to(base)) for p in base.glob("additional_chat_templates/*.jinja")]
    for name in ("generation_config.json", *TOKENIZER_FILES, *templates):
        if (base / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(base / name, folder / name)


def save(model: Any, method: str, tokenizer: Any, folder: Path, base: ModelIdentity) -> None:
    """Write an adapter as safetensors, and the tokenizer files. Raises StorageError (disk full).

    Its config names the base by its id on the Hub where that is known, so that plain PEFT finds it.
    """
    from safetensors.torch import save_file

    with disk_errors(folder, AGAIN), quiet(), kept_readme(folder):
        save_method = METHODS[method].save
        if save_method is not None:
            tensors, config = save_method(model)
            _prepare_config(config, base)
            save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
            config.save_pretrained(folder)
        else:
            for config in model.peft_config.values():
                _prepare_config(config, base)
            # An adapter never has embeddings here. This option keeps PEFT from asking the Hub about the base.
            model.save_pretrained(folder, save_embedding_layers=False)
        tokenizer.save_pretrained(folder)
        set_default_mode(folder)


def _prepare_config(config: Any, base: ModelIdentity) -> None:
    sort_names(config)
    if hub := base_on_hub(base):
        config.base_model_name_or_path, config.revision = hub, base.revision


def sort_names(config: Any) -> None:
    """Sort the names of layers in PEFT's config, so that every process writes the same file."""
    for name, value in vars(config).items():
        if isinstance(value, set | frozenset):
            setattr(config, name, sorted(value))


def identify(folder: Path, method: str, base: ModelSource, identity: ModelIdentity) -> str:
    """The fingerprint of the tuned model in the folder: the base with the adapter, or whole weights."""
    if not writes_adapter(method):
        return fingerprint_model(resolve_model(str(folder))).fingerprint
    return fingerprint_model(base, resolve_adapter(str(folder), base, identity)).fingerprint


def result_of(folder: Path, method: str, base: ModelIdentity) -> str:
    """The fingerprint of the tuned model in a folder, from the identity of its base. It does not check that an adapter
    fits the base."""
    if not writes_adapter(method):
        return fingerprint_model(resolve_model(str(folder))).fingerprint
    return replace(base.stored, adapter=fingerprint_adapter(folder)).fingerprint


def with_merged(tuning: Tuning, base: ModelSource) -> Tuning:
    """The tuning with merged weights in the folder ``merged`` of its output; undamaged ones are not written again.

    Raises InputError if the method writes whole weights.
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
    """The fingerprint of the merged weights in a tuning's folder; None if there are none, or they are damaged."""
    try:
        return fingerprint_model(resolve_model(str((folder / FOLDER).resolve()))).fingerprint
    except AftertuneError:
        return None


def folder_of(word: str, ledger: Ledger) -> Path:
    """The output folder of a tuning: ``word``, or that of the tuning with this id or name. InputError for neither."""
    folder = expanded(word)
    return folder if is_file(folder / MANIFEST) else Path(ledger.find_tuning(word).output)


def write_manifest(folder: Path, tuning: Tuning) -> None:
    """Write ``aftertune.json``, completely or not at all, and before it README.md where there is none."""
    text = json.dumps(plain(tuning), indent=2, ensure_ascii=False, sort_keys=True, allow_nan=False)
    with disk_errors(folder, AGAIN):
        if not exists(folder / README):
            write_atomic(folder / README, _readme(tuning))
        write_atomic(folder / MANIFEST, f"{text}\n")


def _readme(tuning: Tuning) -> str:
    """What the folder of a fine-tune says before it has a model card. It has no text of the user's."""
    from huggingface_hub.repocard_data import ModelCardData

    adapter = writes_adapter(tuning.method)
    fields = header_fields(tuning.base, adapter=adapter, method=tuning.method, data=tuning.data_source,
                           license_=license_of(tuning.base))
    header = ModelCardData(library_name="peft" if adapter else "transformers", **fields).to_yaml()
    hub = base_on_hub(tuning.base)
    of = f" of [{hub}](https://huggingface.co/{hub})" if hub else ""
    return sealed(f"---\n{header}\n---\n\n# {METHODS[tuning.method].title} fine-tune\n\n"
                  f"A fine-tune{of} on {tuning.examples:,} examples, made with aftertune. `aftertune card {tuning.id} "
                  "--out FOLDER` writes a model card with its scores and verdicts here, in place of this text.\n")


def read_manifest(folder: Path) -> Tuning | None:
    """The tuning in the manifest of a folder; None if there is no readable manifest."""
    try:
        return restore(Tuning, from_json((folder / MANIFEST).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def record_exports(tuning: Tuning, exported: Sequence[ExportedModel], ledger: Ledger) -> None:
    """Add exported models to the tuning in the manifest of its folder and in the ledger. tuning: as `read_tuning`
    returns it. Raises StorageError if another process works in the folder, or if it cannot be written."""
    folder = Path(tuning.output)
    with _writable(folder), folder_lock(folder, "works"):
        current = read_manifest(folder) or tuning
        exports = tuple({e.fingerprint: e for e in (*current.exports, *exported)}.values())
        if exports != current.exports:
            write_manifest(folder, replace(current, exports=exports))
    ledger.save_tuning(replace(current, exports=exports, output=tuning.output))


def finished(folder: Path, tuning_id: str, base: ModelSource, identity: ModelIdentity) -> Tuning | None:
    """The finished tuning with this id in ``folder``; None if there is none or its files changed since."""
    tuning = read_manifest(folder)
    if tuning is None or tuning.id != tuning_id or tuning.status != "done":
        return None
    try:
        fingerprint = identify(folder, tuning.method, base, identity)
    except AftertuneError:  # damaged files are trained again
        return None
    return tuning if fingerprint == tuning.result else None
