"""Turns the messages and errors of transformers and PEFT into those of aftertune.

    with quiet(), load_errors(source), memory_errors(source, "cpu"):
        model = AutoModelForCausalLM.from_pretrained(folder)
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

from aftertune.errors import ResourceError, SourceError, StorageError
from aftertune.sources.resolve import AdapterSource, ModelSource

#: How torch's own errors about writing a file begin or end (its writer does not pass on the system's error).
_DISK_SIGNS = ("PytorchStreamWriter failed", "No space left", "Disk quota exceeded", "unexpected pos",
               "basic_ios::clear")


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
def load_errors(source: ModelSource | AdapterSource) -> Iterator[None]:
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
def memory_errors(source: ModelSource, device: str) -> Iterator[None]:
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


@contextlib.contextmanager
def disk_errors(folder: Path, remedy: str) -> Iterator[None]:
    """Turn errors of writing files into a StorageError of one line. safetensors and torch raise errors of their own.

    remedy: what the user should do once there is room.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        if isinstance(error, RuntimeError) and not any(sign in reason for sign in _DISK_SIGNS):
            raise
        raise StorageError(f"{folder}: cannot be written ({reason}); free some space and {remedy}") from error
