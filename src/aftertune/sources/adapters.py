"""Finds PEFT adapters and checks that they belong to their base, before anything is loaded.

    adapter = resolve_adapter("out/careful", base, fingerprint_model(base))

PEFT loads an adapter onto a wrong base of the same shapes silently, and only warns if no tensor matches. So this module
checks the base that the adapter was trained on (recorded in ``aftertune.json``), the module names and the shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from aftertune.errors import SourceError
from aftertune.paths import exists, expanded, is_dir
from aftertune.sources import hub
from aftertune.sources.config_check import check_adapter_sizes
from aftertune.sources.fingerprint import (
    MANIFEST_FILE,
    changed_weights_message,
    fingerprint_adapter,
    fingerprint_model,
)
from aftertune.sources.resolve import (
    AdapterSource,
    ModelSource,
    looks_like_path,
    missing_path_message,
    read_fields,
    read_json,
    resolve_model,
)
from aftertune.sources.tensors import MODULE_PREFIX, TensorInfo, is_shared, read_bytes, read_header, weight_files
from aftertune.values import ModelIdentity, digest, json_ready

#: PEFT types with weights for the prompt and none for modules of the base.
PROMPT_TYPES = frozenset({"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE"})
#: PEFT types all of whose weights are shared by the layers.
SHARED_TYPES = frozenset({"UNILORA"})


def resolve_adapter(source: str, base: ModelSource, base_identity: ModelIdentity, *,
                    revision: str | None = None) -> AdapterSource:
    """Find and check the files of a PEFT adapter for ``base``. source: a folder or a Hub id.

    Raises SourceError for missing, pickled or damaged files, and for an adapter of another base.
    """
    folder, commit = adapter_folder(source, revision)
    config = check_adapter_files(folder, source)
    trained_on = " @ ".join(str(config[k]) for k in ("base_model_name_or_path", "revision") if config.get(k))
    adapter = AdapterSource(source=source, path=folder, revision=commit, base=base.source,
                            trained_on=trained_on, peft_type=str(config.get("peft_type", "LORA")))
    adapter = replace(adapter, proven=check_lineage(adapter, base, base_identity))
    if adapter.peft_type not in PROMPT_TYPES:
        from aftertune.sources.loading import base_shapes

        check_fit(adapter, base, read_header(folder / "adapter_model.safetensors"), base_shapes(base))
    check_named_base(adapter, base, base_identity)
    return adapter


def adapter_folder(source: str, revision: str | None = None) -> tuple[Path, str | None]:
    """The folder of an adapter, given as a folder or Hub id, and its commit hash on the Hub.

    Raises SourceError if there is none.
    """
    path = expanded(source)
    commit = None
    if is_dir(path):
        folder = path.resolve()
    elif exists(path):
        raise SourceError(f"{source}: found a file; an adapter is a folder with adapter_config.json and "
                          f"adapter_model.safetensors; give the folder {path.parent}")
    elif looks_like_path(source):
        raise SourceError(missing_path_message(source))
    else:
        folder, commit = hub.snapshot(source, revision=revision, patterns=hub.ADAPTER_FILES, usable=_is_complete)
    return folder, commit


def _is_complete(folder: Path) -> bool:
    return all((folder / n).is_file() for n in ("adapter_config.json", "adapter_model.safetensors"))


def check_adapter_files(folder: Path, source: str) -> dict[str, Any]:
    """Check the files of an adapter and return its config.

    Raises SourceError if the folder has no complete adapter in safetensors.
    """
    if not (folder / "adapter_config.json").is_file():
        hint = "; it is a model: give it as the model" if (folder / "config.json").is_file() else ""
        raise SourceError(f"{source}: not a PEFT adapter: no adapter_config.json in {folder}{hint}")
    if not (folder / "adapter_model.safetensors").is_file():
        if (folder / "adapter_model.bin").is_file():
            raise SourceError(f"{source}: has only pickled weights (adapter_model.bin), which can run code "
                              "when loaded; if you trust it, load it with PEFT and call save_pretrained(OUT), which "
                              "writes safetensors")
        raise SourceError(f"{source}: no adapter_model.safetensors in {folder}; save the adapter again")
    tensors = read_header(folder / "adapter_model.safetensors")
    if not tensors:
        raise SourceError(f"{source}: adapter_model.safetensors has no tensors; save the adapter again")
    config = read_fields(folder / "adapter_config.json")
    check_adapter_sizes(config, folder / "adapter_config.json", tensors)
    return config


def check_lineage(adapter: AdapterSource, base: ModelSource, identity: ModelIdentity) -> bool:
    """True if the adapter's manifest records the fingerprint of the given base.

    Raises SourceError if the manifest records another base or other adapter weights.
    """
    if not (adapter.path / MANIFEST_FILE).is_file():
        return False
    manifest = read_json(adapter.path / MANIFEST_FILE)
    trained_on = recorded_base(manifest)
    if trained_on is None:
        return False
    fingerprint, name = trained_on
    if fingerprint != identity.stored.fingerprint:
        raise SourceError(f"{adapter.source}: the adapter was trained on {name} (fingerprint {fingerprint[:12]}), but "
                          f"the given base is {base.named} (fingerprint {identity.stored.fingerprint[:12]}); give the "
                          "base that it was trained on")
    result = replace(identity.stored, adapter=fingerprint_adapter(adapter.path)).fingerprint
    if manifest.get("result") not in (None, result):
        raise SourceError(changed_weights_message(adapter.path / "adapter_model.safetensors", result,
                                                  str(manifest["result"])))
    return True


def check_named_base(adapter: AdapterSource, base: ModelSource, identity: ModelIdentity) -> None:
    """Raise SourceError if ``adapter_config.json`` names a local folder with other weights than the given base.

    Weights are compared only if both store the same tensors with the same dtypes and shapes: a base in another dtype
    or in a GGUF may be the same model.
    """
    if not is_dir(expanded(adapter.trained_on)):
        return
    try:
        named = resolve_model(adapter.trained_on)
        if named.path == base.path:
            return
        comparable = _stored(named) == _stored(base) and base.gguf_file is None
        differs = comparable and fingerprint_model(named).weights != identity.weights
    except SourceError:  # no complete model there to compare with
        return
    if differs:
        raise SourceError(f"{adapter.source}: the adapter was trained on {adapter.trained_on}, but the given base, "
                          f"{base.named}, has other weights of the same shapes; give the base that it was trained on, "
                          "or change base_model_name_or_path in its adapter_config.json")


def _stored(source: ModelSource) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, dtype and shape of every tensor in a model's safetensors files."""
    return sorted((t.name, t.dtype, t.shape) for path in weight_files(source.path) for t in read_header(path))


def recorded_base(manifest: Mapping[str, Any]) -> tuple[str, str] | None:
    """(fingerprint, name) of the base that an ``aftertune.json`` records; None if it records none.

    ``manifest["base"]`` is a ModelIdentity as JSON; the fingerprint is that of `ModelIdentity.fingerprint`.
    """
    base = manifest.get("base")
    if not isinstance(base, Mapping) or not base.get("weights"):
        return None
    fingerprint = digest(json_ready([base["weights"], base.get("config"), base.get("adapter")]))
    revision = f" (revision {str(base['revision'])[:12]})" if base.get("revision") else ""
    return fingerprint, f"{base.get('source', 'another base')}{revision}"


def check_fit(adapter: AdapterSource, base: ModelSource, tensors: tuple[TensorInfo, ...],
              shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise SourceError if a tensor of the adapter fits no module of the base, by name or by shape.

    shapes: parameter name -> shape, of the base model as transformers builds it.
    """
    modules = {name.rpartition(".")[0] for name in shapes}
    trained_on = adapter.trained_on or "a base that it does not name"
    bases = f"the adapter was trained on {trained_on}, the given base is {base.named}"
    per_module = [t for t in tensors if not is_shared(t.name)]  # PEFT checks the shapes of the shared ones
    if not per_module and adapter.peft_type in SHARED_TYPES:
        return
    module_of = {t.name: _module_of(t.name, modules) for t in per_module}
    unmatched = sorted(name for name, module in module_of.items() if module is None)
    if len(unmatched) == len(per_module):
        first = f", first {unmatched[0]!r}" if unmatched else ""
        raise SourceError(f"{adapter.source}: none of its {len(tensors)} tensors belongs to a module of the "
                          f"base{first}; {bases}")
    if unmatched:
        raise SourceError(f"{adapter.source}: {len(unmatched)} of its {len(tensors)} tensors belong to no module "
                          f"of the base, first {unmatched[0]!r}; {bases}")
    for tensor in per_module:
        module = module_of[tensor.name]
        weight = shapes.get(f"{module}.weight")
        if weight is not None and len(weight) == 2 and not _fits(tensor, str(module), weight):
            raise SourceError(f"{adapter.source}: {tensor.name!r} has shape {list(tensor.shape)}, which "
                              f"does not fit the base's {module} of shape {list(weight)}; {bases}")


def _module_of(name: str, modules: set[str]) -> str | None:
    """The module of the base that a tensor of the adapter belongs to; None if there is none.

    modules: those with parameters. It is the longest prefix of the tensor's name among them, or the module that
    contains some of them and has this tensor (an adaption prompt is added to a whole attention module).
    """
    segments = name.removeprefix(MODULE_PREFIX).split(".")
    prefixes = [".".join(segments[:n]) for n in range(len(segments) - 1, 0, -1)]
    if prefixes and any(module.startswith(f"{prefixes[0]}.") for module in modules):
        return prefixes[0]
    return next((p for p in prefixes if p in modules), None)


def _fits(tensor: TensorInfo, module: str, weight: tuple[int, ...]) -> bool:
    """LoRA's A is [r, in] and B is [out, r] for a weight [out, in] (for GPT-2's Conv1D: [in, out])."""
    kind = tensor.name.removeprefix(MODULE_PREFIX).removeprefix(f"{module}.").split(".")[0]
    if kind in {"lora_A", "lora_embedding_A"} and len(tensor.shape) == 2:
        return tensor.shape[1] in weight
    if kind in {"lora_B", "lora_embedding_B"} and len(tensor.shape) == 2:
        return tensor.shape[0] in weight
    return kind != "weight" or tensor.shape == weight


def has_zero_matrices(folder: Path) -> bool | None:
    """Whether all B matrices of a LoRA adapter are zero, so that it changes nothing.

    None for an adapter with other tensors than A and B, which may change something too. Raises SourceError for a
    damaged file.
    """
    zero, found = True, False
    for info, data in read_bytes(folder / "adapter_model.safetensors"):
        kind = info.name.removeprefix(MODULE_PREFIX)
        if "lora_B" in kind or "lora_embedding_B" in kind:
            zero, found = zero and bytes(data).count(0) == len(data), True
        elif "lora_A" not in kind and "lora_embedding_A" not in kind:
            return None
    return zero if found else None
