"""Owns PEFT adapters before they are loaded: where they lie, and whether they belong to the base.

    adapter = resolve_adapter("out/careful", base, fingerprint_model(base))

Equal shapes load onto the wrong base without complaint, and PEFT only warns where nothing matches; so the
base that the adapter was trained on (``aftertune.json``), the modules and the shapes are checked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from aftertune.errors import SourceError
from aftertune.sources import hub
from aftertune.sources.fingerprint import LINEAGE, changed, fingerprint_adapter, fingerprint_model
from aftertune.sources.resolve import AdapterSource, ModelSource, absent, looks_like_path, read_json, resolve_model
from aftertune.sources.tensors import PREFIX, TensorInfo, is_shared, read_header, weight_files
from aftertune.values import ModelIdentity, digest

#: PEFT types whose weights belong to the prompt, not to modules of the base.
PROMPT_TYPES = frozenset({"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT"})


def resolve_adapter(source: str, base: ModelSource, base_identity: ModelIdentity, *,
                    revision: str | None = None) -> AdapterSource:
    """The files of a PEFT adapter (a folder or a Hub id) that fits ``base``.

    Raises SourceError for absent, pickled or damaged files, and for an adapter of another base.
    """
    path = Path(source).expanduser()
    commit = None
    if path.is_dir():
        folder = path.resolve()
    elif path.exists():
        raise SourceError(f"{source}: an adapter is a folder with adapter_config.json and "
                          f"adapter_model.safetensors; its folder is {path.parent}")
    elif looks_like_path(source):
        raise SourceError(absent(source))
    else:
        folder, commit = hub.snapshot(source, revision=revision, what=hub.ADAPTER, usable=_is_complete)
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


def _is_complete(folder: Path) -> bool:
    return all((folder / n).is_file() for n in ("adapter_config.json", "adapter_model.safetensors"))


def check_adapter_files(folder: Path, source: str) -> dict[str, Any]:
    """The adapter's config. Raises SourceError where the folder is no whole adapter in safetensors."""
    if not (folder / "adapter_config.json").is_file():
        hint = "; it holds a model: give it as the model" if (folder / "config.json").is_file() else ""
        raise SourceError(f"{source}: not a PEFT adapter: no adapter_config.json in {folder}{hint}")
    if not (folder / "adapter_model.safetensors").is_file():
        if (folder / "adapter_model.bin").is_file():
            raise SourceError(f"{source}: has only pickled weights (adapter_model.bin), which can run code "
                              "when loaded; load it with PEFT where you trust it, and save_pretrained(OUT) "
                              "writes safetensors")
        raise SourceError(f"{source}: no adapter_model.safetensors in {folder}; save the adapter again")
    if not read_header(folder / "adapter_model.safetensors"):
        raise SourceError(f"{source}: adapter_model.safetensors holds no tensors; save the adapter again")
    return read_json(folder / "adapter_config.json")


def check_lineage(adapter: AdapterSource, base: ModelSource, identity: ModelIdentity) -> bool:
    """Whether the adapter's own record names the base by content.

    Raises SourceError where it names another one, or where the adapter is not what it says was made.
    """
    if not (adapter.path / LINEAGE).is_file():
        return False
    record = read_json(adapter.path / LINEAGE)
    found = recorded_base(record)
    if found is None:
        return False
    if found[0] != identity.stored.fingerprint:
        raise SourceError(f"{adapter.source}: was trained on {found[1]} (fingerprint {found[0][:12]}), but the "
                          f"base given is {base.named} (fingerprint {identity.stored.fingerprint[:12]}); give the "
                          "base that it was trained on")
    whole = replace(identity.stored, adapter=fingerprint_adapter(adapter.path)).fingerprint
    if record.get("result") not in (None, whole):
        raise SourceError(changed(adapter.path / "adapter_model.safetensors", whole, str(record["result"])))
    return True


def check_named_base(adapter: AdapterSource, base: ModelSource, identity: ModelIdentity) -> None:
    """Raises SourceError where PEFT's config names a folder here whose tensors are stored alike and differ.

    A base stored in another way (another dtype, a GGUF) may be the same model, and passes.
    """
    if not Path(adapter.trained_on).expanduser().is_dir():
        return
    try:
        named = resolve_model(adapter.trained_on)
        if named.path == base.path:
            return
        alike = _stored(named) == _stored(base) and base.gguf_file is None
        other = alike and fingerprint_model(named).weights != identity.weights
    except SourceError:  # no whole model there: nothing is known
        return
    if other:
        raise SourceError(f"{adapter.source}: was trained on {adapter.trained_on}, and the base given, {base.named}, "
                          "has other weights of the same shapes; give the base that it was trained on, or name "
                          "this one in its adapter_config.json if it is meant for it")


def _stored(source: ModelSource) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, dtype and shape of every tensor in a model's safetensors."""
    return sorted((t.name, t.dtype, t.shape) for path in weight_files(source.path) for t in read_header(path))


def recorded_base(record: Mapping[str, Any]) -> tuple[str, str] | None:
    """(fingerprint, name) of the base that an ``aftertune.json`` records, None where it records none.

    ``base`` is a ModelIdentity as JSON (fingerprint as ModelIdentity.fingerprint forms it).
    """
    base = record.get("base")
    if not isinstance(base, Mapping) or not base.get("weights"):
        return None
    fingerprint = digest([base["weights"], base.get("config"), base.get("adapter")])
    revision = f" (revision {str(base['revision'])[:12]})" if base.get("revision") else ""
    return fingerprint, f"{base.get('source', 'another base')}{revision}"


def check_fit(adapter: AdapterSource, base: ModelSource, tensors: tuple[TensorInfo, ...],
              shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises SourceError where the adapter's modules or shapes are not those of the base.

    shapes: parameter name -> shape of the base model as transformers builds it.
    """
    modules = {name.rpartition(".")[0] for name in shapes}
    trained_on = adapter.trained_on or "a base that it does not name"
    both = f"the adapter was made for {trained_on}, the base given is {base.named}"
    own = [t for t in tensors if not is_shared(t.name)]  # PEFT checks the shapes of the others
    placed = {t.name: _module_of(t.name, modules) for t in own}
    lost = sorted(name for name, module in placed.items() if module is None)
    if len(lost) == len(own):
        first = f", first {lost[0]!r}" if lost else ""
        raise SourceError(f"{adapter.source}: none of its {len(tensors)} tensors belongs to a module of the "
                          f"base{first}; {both}")
    if lost:
        raise SourceError(f"{adapter.source}: {len(lost)} of its {len(tensors)} tensors belong to no module "
                          f"of the base, first {lost[0]!r}; {both}")
    for tensor in own:
        module = placed[tensor.name]
        weight = shapes.get(f"{module}.weight")
        if weight is not None and len(weight) == 2 and not _fits(tensor, str(module), weight):
            raise SourceError(f"{adapter.source}: {tensor.name!r} has shape {list(tensor.shape)}, which "
                              f"cannot go with the base's {module} of shape {list(weight)}; {both}")


def _module_of(name: str, modules: set[str]) -> str | None:
    parts = name.removeprefix(PREFIX).split(".")
    prefixes = (".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1))
    return next((p for p in prefixes if p in modules), None)


def _fits(tensor: TensorInfo, module: str, weight: tuple[int, ...]) -> bool:
    """LoRA A is [r, in] and B [out, r] beside a weight [out, in] (GPT-2's Conv1D: [in, out])."""
    kind = tensor.name.removeprefix(PREFIX).removeprefix(f"{module}.").split(".")[0]
    if kind in {"lora_A", "lora_embedding_A"} and len(tensor.shape) == 2:
        return tensor.shape[1] in weight
    if kind in {"lora_B", "lora_embedding_B"} and len(tensor.shape) == 2:
        return tensor.shape[0] in weight
    return kind != "weight" or tensor.shape == weight
