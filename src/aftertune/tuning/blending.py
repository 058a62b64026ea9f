"""Writes a weighted blend of several fine-tunes of one base.

    write_blended([orders, chat], (0.5, 0.5), Path("out"))            whole weights, interpolated
    blends = AdapterBlends([orders, chat], [(0.5, 0.5)], Blending("ties"), folder)
    blends.write((0.5, 0.5), Path("out"))                              adapters, by PEFT's add_weighted_adapter

Whole weights: w = base + sum of weight_i (tuned_i - base), in float32, rounded once.

Adapters: "linear" is PEFT's combination type "cat", which gives exactly the weighted sum of the changes, with the ranks
added. (PEFT's own "linear" sums the factors A and B apart, which adds products of one adapter's A with another's B.)
TIES (Yadav et al. 2023, arXiv:2306.01708) and DARE (Yu et al. 2023, arXiv:2311.03099) are PEFT's; they need adapters of
one rank, and DARE drops values at random, by the seed.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aftertune.errors import InputError
from aftertune.sources import load_model, resolve_adapter
from aftertune.sources.adapter_loading import add_adapter
from aftertune.sources.fingerprint import fingerprint_model
from aftertune.sources.library_errors import disk_errors, memory_errors, quiet, writing_errors
from aftertune.sources.loading import weights_folder
from aftertune.sources.resolve import read_json
from aftertune.sources.tensors import weight_files
from aftertune.tuning.output import sort_names
from aftertune.tuning.strength import (
    ADAPTER_WEIGHTS,
    WHOLE,
    FineTuneFiles,
    copy_beside,
    rewrite,
    stored_tensors,
    write_softened,
)

#: Our names of the methods -> PEFT's combination types.
METHODS_OF_PEFT = {"linear": "cat", "ties": "ties", "dare_linear": "dare_linear", "dare_ties": "dare_ties"}


@dataclass(frozen=True, slots=True)
class Blending:
    """How adapters are blended. density: share of the values that TIES and DARE keep; seed: of DARE."""

    method: str = "linear"
    density: float = 0.5
    seed: int = 0


def check_blend(files: Sequence[FineTuneFiles], blending: Blending) -> None:
    """Raise InputError, in one line, if these fine-tunes cannot be blended."""
    if len({f.adapter for f in files}) > 1:
        raise InputError("a blend takes adapters or whole models, not both; merge the adapters first (tune --merge)")
    if not files[0].adapter:
        if blending.method != "linear":
            raise InputError(f"--method {blending.method}: whole models are interpolated (linear); for TIES and DARE "
                             "of whole models use mergekit, and compare its model with aftertune compare")
        return
    configs = [read_json(f.folder / "adapter_config.json") for f in files]
    for f, config in zip(files, configs, strict=True):
        if config.get("peft_type") != "LORA" or config.get("use_dora"):
            kind = "DoRA" if config.get("use_dora") else config.get("peft_type")
            raise InputError(f"{f.folder}: PEFT blends LoRA adapters, but this one is of type {kind}; use LoRA, or "
                             "merge each into its base (tune --merge) and blend the merged folders")
    ranks = {int(config.get("r") or 0) for config in configs}
    if blending.method != "linear" and (len(ranks) > 1 or any(c.get("rank_pattern") for c in configs)):
        raise InputError(f"--method {blending.method} needs adapters of one rank; these have "
                         f"{', '.join(map(str, sorted(ranks)))}; use --method linear")


def write_blended(files: Sequence[FineTuneFiles], weights: Sequence[float], out: Path) -> None:
    """Write whole weights between those of the base and of the fine-tunes to the new folder ``out``, in the layout and
    dtype of the first. Raises StorageError if the disk is full."""
    if (alone := _alone(weights)) is not None:
        write_softened(files[alone], {WHOLE: weights[alone]}, out)
        return
    with disk_errors(out, "run the same command again"), ExitStack() as stack:
        out.mkdir(parents=True)
        copy_beside(files[0].folder, out)
        stored = stack.enter_context(stored_tensors(weight_files(weights_folder(files[0].base))))
        tuned = [stack.enter_context(stored_tensors(f.weights)) for f in files]

        def blend(name: str, first: Any) -> Any:
            if not first.is_floating_point():
                return first
            base = stored(name).float()
            return base + sum(w * (of(name).float() - base) for w, of in zip(weights, tuned, strict=True))

        for path in files[0].weights:
            rewrite(path, out / path.name, blend)


def _alone(weights: Sequence[float]) -> int | None:
    """The number of the only fine-tune with a weight, None where there are several."""
    used = [n for n, weight in enumerate(weights) if weight != 0]
    return used[0] if len(used) == 1 and 0 < weights[used[0]] <= 1 else None


class AdapterBlends:
    """Blends of adapters. All of them are made at the first use, with the base in memory, which is then freed.

    choices: the weights of each blend. folder: a temporary folder for the blends.
    """

    def __init__(self, files: Sequence[FineTuneFiles], choices: Sequence[Sequence[float]], blending: Blending,
                 folder: Path) -> None:
        self.files, self.choices, self.blending, self.folder = files, choices, blending, folder
        self.ready = False

    def write(self, weights: Sequence[float], out: Path) -> None:
        """Write one blend to the new folder ``out``. Raises StorageError if the disk is full."""
        if (alone := _alone(weights)) is not None:
            write_softened(self.files[alone], {WHOLE: weights[alone]}, out)
            return
        if not self.ready:
            self._make_all()
            self.ready = True
        with disk_errors(out, "run the same command again"):
            out.mkdir(parents=True)
            copy_beside(self.files[0].folder, out)
            for name in ("adapter_config.json", ADAPTER_WEIGHTS):
                shutil.copyfile(self.folder / _name(self.choices.index(weights)) / name, out / name)

    def _make_all(self) -> None:
        base = self.files[0].base
        from aftertune.engine.memory import release_memory

        identity = fingerprint_model(base)
        model = load_model(base, "float32", "cpu")
        with quiet(), memory_errors(base, "cpu"), writing_errors("blending the adapters", "use another method"), \
                disk_errors(self.folder, "run the same command again"):
            names = [f"member{n}" for n in range(len(self.files))]
            for name, files in zip(names, self.files, strict=True):
                model = add_adapter(model, resolve_adapter(str(files.folder), base, identity), device="cpu", name=name)
            for number, weights in enumerate(self.choices):
                if _alone(weights) is None:
                    self._make(model, names, weights, number)
        del model
        release_memory()

    def _make(self, model: Any, members: Sequence[str], weights: Sequence[float], number: int) -> None:
        """One blend, written and removed from the model again."""
        import torch

        name, used = _name(number), [n for n, weight in enumerate(weights) if weight != 0]
        options = {} if self.blending.method == "linear" else {"density": self.blending.density}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.blending.seed)
            model.add_weighted_adapter([members[n] for n in used], [weights[n] for n in used], name,
                                       combination_type=METHODS_OF_PEFT[self.blending.method], **options)
        config = model.peft_config[name]
        config.use_rslora = False  # the scale of each adapter is in the tensors, and that of the blend is 1
        sort_names(config)
        model.save_pretrained(self.folder, selected_adapters=[name], save_embedding_layers=False)
        model.delete_adapter(name)


def _name(number: int) -> str:
    return f"blend{number}"
