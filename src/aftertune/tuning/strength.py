"""Writes a fine-tune at less strength: an adapter scaled, or whole weights between those of the base and the fine-tune.

    write_softened(FineTuneFiles(Path("runs/orders"), adapter=True, base=source), {"all": 0.4}, Path("out"))
    write_softened(files, {"lower": 0.3, "middle": 1.0, "upper": 1.0}, Path("out"))     a third of the layers alone

Strength 1 is the fine-tune and strength 0 the base. Whole weights are w = base + a (tuned - base) for the strength a
(Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", arXiv:2109.01903). An adapter is scaled in the tensors
on which its change of the weights depends linearly (`_RULES`), so its config stays the same and every library that
reads the fine-tune reads the result. DoRA's magnitudes and IA3's factors are interpolated with those of the base.

A file is written as that of the fine-tune, tensor by tensor, so that few are in memory. Tensors are computed in float32
and rounded once to the dtype of the file; strengths 0 and 1 give the tensors of the base and of the fine-tune bit by
bit.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aftertune.errors import InputError
from aftertune.sources import ModelSource
from aftertune.sources.fingerprint import PLAIN_INITS, TOKENIZER_FILES
from aftertune.sources.library_errors import disk_errors
from aftertune.sources.loading import weights_folder
from aftertune.sources.resolve import read_json
from aftertune.sources.tensors import EMBEDDINGS, MODULE_PREFIX, read_header, weight_files

#: The part of a fine-tune that is all of it, and those that `--by depth` softens one by one.
WHOLE, THIRDS = "all", ("lower", "middle", "upper")
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_BESIDE = (*TOKENIZER_FILES, "config.json", "generation_config.json", "adapter_config.json",
           "model.safetensors.index.json")
#: Returns the new content of a tensor, from its name and content.
Change = Callable[[str, Any], Any]


@dataclass(frozen=True, slots=True)
class FineTuneFiles:
    """The files of a fine-tune. folder: with an adapter or whole weights; base: what it was made from."""

    folder: Path
    adapter: bool
    base: ModelSource

    @property
    def weights(self) -> tuple[Path, ...]:
        """The files with the tuned weights."""
        return (self.folder / ADAPTER_WEIGHTS,) if self.adapter else weight_files(self.folder)

    @property
    def names(self) -> list[str]:
        """The names of its tensors."""
        return [info.name for path in self.weights for info in read_header(path)]


def check_strength(files: FineTuneFiles) -> None:
    """Raise InputError, in one line, if a fine-tune cannot be softened."""
    if files.adapter:
        _check_adapter(files)
        return
    for source in (files.folder, files.base.path):
        if files.base.gguf_file is None and read_json(source / "config.json").get("quantization_config"):
            raise InputError(f"{source}: its weights are stored quantised, and rounded weights cannot be interpolated; "
                             "soften a fine-tune with 16-bit weights of a 16-bit base, or an adapter")
    if not files.weights:
        raise InputError(f"{files.folder}: no safetensors there, so there are no weights to interpolate")
    stored = {i.name: i.shape for path in weight_files(weights_folder(files.base)) for i in read_header(path)}
    tuned = {i.name: i.shape for path in files.weights for i in read_header(path)}
    if other := sorted(stored.items() ^ tuned.items()):
        raise InputError(f"{files.folder}: its weights and those of the base, {files.base.named}, are not the same "
                         f"tensors, first {other[0][0]!r} of shape {list(other[0][1])}; give a fine-tune that kept the "
                         "base's architecture and vocabulary")


def write_softened(files: FineTuneFiles, parts: Mapping[str, float], out: Path) -> None:
    """Write the fine-tune at these strengths to the new folder ``out``, without a manifest.

    parts: strength of the whole ("all"), or of each third of the layers. Strength 1 of the whole is a copy, also of
    what cannot be softened. Raises InputError if it cannot be softened, StorageError if the disk is full.
    """
    as_tuned = dict(parts) == {WHOLE: 1.0}
    strength = {} if as_tuned else strengths(files.names, parts)
    with disk_errors(out, "run the same command again"), ExitStack() as stack:
        out.mkdir(parents=True)
        copy_beside(files.folder, out)
        if as_tuned:
            for path in files.weights:
                shutil.copyfile(path, out / path.name)
            return
        if files.adapter:
            change = _adapter_change(files, strength, stack)
        else:
            stored = stack.enter_context(stored_tensors(weight_files(weights_folder(files.base))))
            change = lambda name, tuned: _between(stored(name), tuned, strength[name])  # noqa: E731
        for path in files.weights:
            rewrite(path, out / path.name, change)


def strengths(names: Sequence[str], parts: Mapping[str, float]) -> dict[str, float]:
    """The strength of each tensor. The layers that occur, in the order of the first number in the names, are cut into
    thirds; what comes before them (embeddings) belongs to the lower third, and what comes after them to the upper one.
    """
    if set(parts) == {WHOLE}:
        return dict.fromkeys(names, parts[WHOLE])
    layer = {name: int(match[1]) if (match := _LAYER.search(name)) else None for name in names}
    rank = {n: k for k, n in enumerate(sorted({n for n in layer.values() if n is not None}))}
    count = len(rank)
    if count < len(THIRDS):
        raise InputError(f"the fine-tune changes weights in {count} layer{'s' * (count != 1)}, which cannot be cut "
                         f"into {len(THIRDS)} parts; leave out --by depth")
    return {name: parts[_third(name, None if n is None else rank[n], count)] for name, n in layer.items()}


_LAYER = re.compile(r"\.(\d+)\.")


def _third(name: str, rank: int | None, count: int) -> str:
    if rank is None:
        return THIRDS[0] if name.endswith(EMBEDDINGS) else THIRDS[-1]
    return THIRDS[len(THIRDS) * rank // count]


# --- Files, tensor by tensor ---


def rewrite(path: Path, out: Path, change: Change) -> None:
    """Write a safetensors file as ``path``, with ``change(name, tensor)`` for each tensor, which keeps dtype and
    shape."""
    import torch
    from safetensors import safe_open

    infos = sorted(read_header(path), key=lambda info: info.begin)
    with path.open("rb") as file, out.open("wb") as new, safe_open(path, framework="pt") as tensors:
        new.write(file.read(infos[0].begin if infos else -1))
        for info in infos:
            tensor = tensors.get_tensor(info.name)
            changed = change(info.name, tensor).to(tensor.dtype).contiguous()
            new.write(changed.reshape(-1).view(torch.uint8).numpy().tobytes())


@contextmanager
def stored_tensors(paths: Sequence[Path]) -> Iterator[Callable[[str], Any]]:
    """A function that reads one tensor of safetensors files by its name."""
    from safetensors import safe_open

    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in paths]
        place = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        yield lambda name: place[name].get_tensor(name)


def copy_beside(folder: Path, out: Path) -> None:
    """Copy the files of a model or adapter that hold no weights: configs, tokenizer, chat templates and its code."""
    beside = [*(folder / name for name in _BESIDE), *folder.glob("additional_chat_templates/*.jinja"),
              *folder.glob("*.py")]
    for path in beside:
        if path.is_file():
            target = out / path.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)


def _between(base: Any, tuned: Any, strength: float) -> Any:
    """base + strength (tuned - base), in float32; the tensors themselves at 0 and 1. Others than floating-point ones
    are those of the fine-tune."""
    import torch

    if strength == 1 or not tuned.is_floating_point():
        return tuned
    return base if strength == 0 else torch.lerp(base.float(), tuned.float(), strength)


# --- Adapters ---


@dataclass(frozen=True, slots=True)
class _Rule:
    """How an adapter is scaled, by the names of its tensors. scaled: multiplied by the strength; ones: interpolated
    with 1; fixed: stays."""

    scaled: str
    ones: str = "(?!)"
    fixed: str = "(?!)"


#: PEFT type -> its rule. The change of the weights is linear in what is scaled; of OFT it is the angle of the rotation.
_RULES = {
    "LORA": _Rule(scaled=r"\.lora_(embedding_)?B(\.|$)", fixed=r"\.lora_(embedding_)?A(\.|$)"),
    "IA3": _Rule(scaled="(?!)", ones=r"\.ia3_l(\.|$)"),
    "VERA": _Rule(scaled=r"\.vera_lambda_b(\.|$)", fixed=r"\.vera_lambda_d(\.|$)|vera_[AB]$"),
    "OFT": _Rule(scaled=r"\.oft_R(\.|$)"),
}
_MAGNITUDE = re.compile(r"^(.*)\.lora_magnitude_vector(\.weight)?$")


def _check_adapter(files: FineTuneFiles) -> None:
    config = read_json(files.folder / "adapter_config.json")
    kind = str(config.get("peft_type", "LORA"))
    remedy = "soften an adapter without it, or a full fine-tune"
    if kind not in _RULES:
        raise InputError(f"{files.folder}: an adapter of type {kind} has no strength; allowed are "
                         f"{', '.join(_RULES)}; {remedy}")
    start = config.get("init_lora_weights", True)
    for what, found in (("trained biases of the base", config.get("bias", "none") not in ("none", None)),
                        ("modules_to_save", bool(config.get("modules_to_save"))),
                        ("trainable_token_indices", bool(config.get("trainable_token_indices"))),
                        (f"the start {start!r}, which changes the base,", start not in PLAIN_INITS)):
        if found:
            raise InputError(f"{files.folder}: the adapter has {what} and cannot be scaled; {remedy}")
    rule = _RULES[kind]
    known = re.compile("|".join([rule.scaled, rule.ones, rule.fixed, _MAGNITUDE.pattern]))
    if unknown := [name for name in files.names if not known.search(name)]:
        raise InputError(f"{files.folder}: the adapter's tensor {unknown[0]!r} has no strength ({len(unknown)} such "
                         f"tensors); {remedy}")


def _adapter_change(files: FineTuneFiles, strength: Mapping[str, float], stack: ExitStack) -> Change:
    """The change of each tensor of an adapter."""
    import torch

    config = read_json(files.folder / "adapter_config.json")
    rule, transposed = _RULES[str(config.get("peft_type", "LORA"))], bool(config.get("fan_in_fan_out"))
    stored = None
    if any(_MAGNITUDE.match(name) for name in files.names):
        stored = stack.enter_context(stored_tensors(weight_files(weights_folder(files.base))))

    def change(name: str, tensor: Any) -> Any:
        a = strength[name]
        if a == 1 or re.search(rule.fixed, name):
            return tensor
        if match := _MAGNITUDE.match(name):
            assert stored is not None
            weight = stored(f"{match[1].removeprefix(MODULE_PREFIX)}.weight")
            return _between(_row_lengths(weight, tensor, transposed=transposed), tensor, a)
        return _between(torch.ones_like(tensor), tensor, a) if re.search(rule.ones, name) else tensor.float() * a

    return change


def _row_lengths(weight: Any, like: Any, *, transposed: bool) -> Any:
    """The lengths of the rows of a weight [outputs, inputs], which are DoRA's magnitudes before it is trained.
    transposed: it is stored as [inputs, outputs], as in GPT-2."""
    import torch

    return torch.linalg.norm(weight.float(), dim=0 if transposed else 1).reshape(like.shape)
