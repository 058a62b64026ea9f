"""Loads models and adds adapters with unsloth, whose kernels train LoRA on a CUDA device faster and in less memory.

    choose_backend(spec, source, "cuda")             "unsloth" or "peft"
    model = load(source, spec, "bfloat16", "cuda", longest=512)

Data, masks, training loop, checkpoints and output are the same as for PEFT. Written for unsloth 2026.10. It reads the
files that the base's fingerprint covers, and does not replace them by a repository of its own. Its usage statistics are
off, and what it compiles goes into our cache. It is imported after TRL, so that it does not replace TRL's trainer.
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


def choose_backend(spec: TuneSpec, source: ModelSource, device: str) -> str:
    """Resolve ``spec.backend`` to "unsloth" or "peft". "auto" is unsloth if it can train this, else PEFT.

    Raises InputError for "unsloth" with what it cannot train, ResourceError if it cannot run here.
    """
    if spec.backend == "peft":
        return "peft"
    error = _unsupported(spec, source) or unavailable_error(device)
    if error is None:
        return "unsloth"
    if spec.backend == "auto":
        return "peft"
    raise error


def _unsupported(spec: Recipe, source: ModelSource) -> InputError | None:
    """The error for what unsloth cannot train; None if it can."""
    remedy = "leave out backend: unsloth (--backend)"
    if METHODS[spec.method].unsloth is None:
        return InputError(f"backend unsloth trains {', '.join(unsloth_methods())}, not {spec.method}; {remedy}")
    if source.gguf_file is not None:
        return InputError(f"backend unsloth reads safetensors, but {source.source} is a GGUF file; {remedy}, or name "
                          "the model's folder or Hub id")
    if spec.anchor is not None:
        return InputError(f"backend unsloth computes its own loss, to which no anchor can be added; {remedy}")
    if spec.watch is not None:
        return InputError("backend unsloth does not support watch, because the watch cannot score its layers; "
                          f"{remedy}, or leave out watch")
    return None


def unavailable_error(device: str) -> ResourceError | None:
    """The error for a device or an environment in which unsloth cannot run; None if it can."""
    reasons = [] if device.startswith("cuda") else [f"the device is {device}"]
    reasons += [] if importlib.util.find_spec("unsloth") else ["the package unsloth is not installed"]
    if not reasons:
        return None
    return ResourceError(f"backend unsloth needs a CUDA device and the package unsloth, but {' and '.join(reasons)}; "
                         "leave it out to train with peft, or run pip install 'aftertune[unsloth]' on a machine with a "
                         "CUDA device")


def version() -> str:
    """The version of unsloth. It is part of a tuning's id, because its kernels change between versions."""
    return metadata.version("unsloth")


def load(source: ModelSource, spec: TuneSpec, dtype: str, device: str, *, longest: int) -> Any:
    """The model with a new adapter, as from `aftertune.tuning.build.build`. longest: tokens of the longest row.

    Raises SourceError if unsloth cannot load or adapt it, ResourceError if memory runs out.
    """
    import torch
    import transformers  # noqa: F401  # before unsloth: see the module docstring
    import trl  # noqa: F401

    from aftertune.tuning.targets import check_targets, linear_layers

    checkpointing = "unsloth" if spec.gradient_checkpointing else False
    with _redirected(), _one_line_errors(source):
        from unsloth import FastLanguageModel

        model, _ = FastLanguageModel.from_pretrained(
            model_name=str(source.path), max_seq_length=longest, dtype=getattr(torch, dtype),
            load_in_4bit=METHODS[spec.method].base == "nf4", load_in_16bit=False, full_finetuning=False,
            device_map={"": device}, fix_tokenizer=False, trust_remote_code=source.trust_remote_code,
            use_gradient_checkpointing=checkpointing, use_exact_model_name=True, random_state=spec.seed)
        model.name_or_path = model.config._name_or_path = source.source
        targets = list(spec.lora.target_modules or linear_layers(model))
        check_targets(model, targets)
        peft_model = FastLanguageModel.get_peft_model(
            model, r=spec.lora.r, lora_alpha=spec.lora.alpha, lora_dropout=spec.lora.dropout, bias="none",
            target_modules=targets, use_gradient_checkpointing=checkpointing, random_state=spec.seed,
            max_seq_length=longest, **METHODS[spec.method].unsloth or {})
    peft_model.is_loaded_in_4bit = False  # else TRL casts the adapters to bfloat16, which loses small updates
    return peft_model


@contextlib.contextmanager
def _redirected() -> Iterator[None]:
    """Send what unsloth prints to stderr, and what it compiles into our cache."""
    from aftertune.sources.cache import cache_root

    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache_root() / "unsloth"))
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def _one_line_errors(source: ModelSource) -> Iterator[None]:
    """Raise unsloth's errors as ours, in one line."""
    from aftertune.engine.memory import is_out_of_memory

    try:
        yield
    except (ImportError, NotImplementedError, OSError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise ResourceError(f"{source.source}: out of memory while unsloth loaded the model; try method qlora, "
                                "or a smaller model") from error
        raise SourceError(f"{source.source}: unsloth cannot make this model trainable "
                          f"({' '.join(str(error).split())[:200]}); leave out backend: unsloth (--backend)") from error
