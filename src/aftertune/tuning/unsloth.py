"""Owns fine-tuning through unsloth, whose kernels make LoRA on a CUDA device faster and leaner: it loads the model and
puts the adapter on; data, masks, loss, loop, checkpoints and record are those of every other tuning.

    backend_of(spec, source, "cuda")                 "unsloth", or "peft"; one line where what was asked for cannot be
    model = load(source, spec, "bfloat16", "cuda", longest=512)

Written against unsloth 2026.10. It reads the very files that the base's fingerprint is of, never a repository of its
own with other weights; its statistics, a download that counts users, are off; what it compiles lies in our cache. It is
imported after TRL, so that the loop's trainer is TRL's own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING, Any

from aftertune.errors import InputError, ResourceError, SourceError
from aftertune.methods import METHODS, unsloth_methods

if TYPE_CHECKING:
    from aftertune.sources import ModelSource
    from aftertune.study import Recipe, TuneSpec


def backend_of(spec: TuneSpec, source: ModelSource, device: str) -> str:
    """"unsloth" or "peft": what ``spec.backend`` comes to here. "auto" is unsloth wherever that can be.

    Raises InputError for what unsloth does not train, ResourceError where it cannot run.
    """
    if spec.backend == "peft":
        return "peft"
    wrong = _against(spec, source) or absent(device)
    if wrong is None:
        return "unsloth"
    if spec.backend == "auto":
        return "peft"
    raise wrong


def _against(spec: Recipe, source: ModelSource) -> InputError | None:
    """The error for what it does not train, if it is that."""
    way_out = "leave out backend: unsloth (--backend)"
    if METHODS[spec.method].unsloth is None:
        return InputError(f"backend unsloth trains {', '.join(unsloth_methods())}, not {spec.method}; {way_out}")
    if source.gguf_file is not None:
        return InputError(f"backend unsloth reads safetensors, and {source.source} is a GGUF file; {way_out}, or name "
                          "the model's folder or Hub id")
    if spec.watch is not None:
        return InputError(f"backend unsloth has layers that the watch cannot score; {way_out}, or watch")
    return None


def absent(device: str) -> ResourceError | None:
    """The error for a machine or an environment without it."""
    lacks = [] if device.startswith("cuda") else [f"the device is {device}"]
    lacks += [] if importlib.util.find_spec("unsloth") else ["the package unsloth is not installed"]
    if not lacks:
        return None
    return ResourceError(f"backend unsloth needs a CUDA device and the package unsloth, and {' and '.join(lacks)}; "
                         "leave it out to train with peft, or, beside a CUDA device, pip install 'aftertune[unsloth]'")


def version() -> str:
    """Of the installed package: part of what a tuning is, for its kernels differ from one to the next."""
    return metadata.version("unsloth")


def load(source: ModelSource, spec: TuneSpec, dtype: str, device: str, *, longest: int) -> Any:
    """The model with a fresh adapter, as `aftertune.tuning.build.build` makes one. longest: of the rows, in tokens.

    Raises SourceError where unsloth cannot load or adapt it, ResourceError where memory runs out.
    """
    import torch
    import transformers  # noqa: F401  # before unsloth, with TRL: see the head
    import trl  # noqa: F401

    from aftertune.tuning.build import check_targets, linear_layers

    checkpointing = "unsloth" if spec.gradient_checkpointing else False
    with _contained(), _told(source):
        from unsloth import FastLanguageModel

        model, _ = FastLanguageModel.from_pretrained(
            model_name=str(source.path), max_seq_length=longest, dtype=getattr(torch, dtype),
            load_in_4bit=METHODS[spec.method].base == "nf4", load_in_16bit=False, full_finetuning=False,
            device_map={"": device}, fix_tokenizer=False, trust_remote_code=source.trust_remote_code,
            use_gradient_checkpointing=checkpointing, use_exact_model_name=True, random_state=spec.seed)
        model.name_or_path = model.config._name_or_path = source.source
        targets = list(spec.lora.target_modules or linear_layers(model))
        check_targets(model, targets)
        made = FastLanguageModel.get_peft_model(
            model, r=spec.lora.r, lora_alpha=spec.lora.alpha, lora_dropout=spec.lora.dropout, bias="none",
            target_modules=targets, use_gradient_checkpointing=checkpointing, random_state=spec.seed,
            max_seq_length=longest, **METHODS[spec.method].unsloth or {})
    made.is_loaded_in_4bit = False  # else TRL casts the adapters to bfloat16, which loses small updates
    return made


@contextlib.contextmanager
def _contained() -> Iterator[None]:
    """What unsloth prints goes to the error stream, and what it writes into our cache."""
    from aftertune.sources.cache import cache_root

    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache_root() / "unsloth"))
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def _told(source: ModelSource) -> Iterator[None]:
    """Its errors as ours, in one line."""
    from aftertune.engine.memory import out_of_memory

    try:
        yield
    except (ImportError, NotImplementedError, OSError, RuntimeError, TypeError, ValueError) as error:
        if out_of_memory(error):
            raise ResourceError(f"{source.source}: out of memory while unsloth loaded it; try method qlora, or a "
                                "smaller model") from error
        raise SourceError(f"{source.source}: unsloth could not make it trainable "
                          f"({' '.join(str(error).split())[:200]}); leave out backend: unsloth (--backend)") from error
