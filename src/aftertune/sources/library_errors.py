"""Turns the messages and errors of transformers and PEFT into those of aftertune.

    with quiet(), load_errors(source), memory_errors(source, "cpu"):
        model = AutoModelForCausalLM.from_pretrained(folder)
"""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

from aftertune.errors import AftertuneError, InputError, ResourceError, SourceError, StorageError
from aftertune.sources.resolve import AdapterSource, ModelSource

#: How torch's own errors about writing a file begin or end (its writer does not pass on the system's error).
_DISK_SIGNS = ("PytorchStreamWriter failed", "No space left", "Disk quota exceeded", "unexpected pos",
               "basic_ios::clear")

#: The packages that build and train a model.
_TRAINING = frozenset({"accelerate", "bitsandbytes", "datasets", "numpy", "peft", "safetensors", "tokenizers", "torch",
                       "transformers", "trl", "unsloth", "unsloth_zoo"})
#: Those that run a model; lm-eval's class ``hf`` is one of them.
_COMPUTING = _TRAINING | {"lm_eval", "transformers_modules"}
#: Those that convert and write one.
_WRITING = _TRAINING | {"gguf", "huggingface_hub", "transformers_modules"}


#: On some processors bitsandbytes asks for another package whenever it is imported. Nothing here needs that package.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide the libraries' progress bars and warnings inside this block, but not errors or warnings from aftertune.

    The libraries warn about missing or unused tensors; this module checks for them and raises errors.
    """
    from transformers.utils import logging as progress

    enabled, level = progress.is_progress_bar_enabled(), progress.get_verbosity()
    progress.disable_progress_bar()
    progress.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(?!aftertune\b)")
            yield
    finally:
        progress.set_verbosity(level)
        if enabled:
            progress.enable_progress_bar()


@contextlib.contextmanager
def load_errors(source: ModelSource | AdapterSource, part: str = "it", remedy: str = "") -> Iterator[None]:
    """Turn whatever the libraries raise about the files into a SourceError of one line.

    part: what is loaded, with its file, such as "its tokenizer (tokenizer.json)". remedy: what to do.
    Out of memory is left to `memory_errors`; aftertune's own errors and Ctrl-C pass. The block must hold calls of
    libraries alone, so that no fault of aftertune is taken for one of the files.
    """
    try:
        yield
    except AftertuneError:
        raise
    except BaseException as error:  # the Rust code of tokenizers and safetensors raises some that are no Exception
        if not _is_library_fault(error):
            raise
        remedy = remedy or "download or save the files again"
        if "trust_remote_code" in str(error):
            remedy = "the model comes with its own code: pass --trust-remote-code if you trust it"
        raise SourceError(f"{source.source}: {library_of(error)} cannot load {part}: {_described(error)}; "
                          f"{remedy}") from error


@contextlib.contextmanager
def training_errors(what: str) -> Iterator[None]:
    """Turn what the libraries raise while a model is built and trained into an InputError or ResourceError of one line.

    what: for the message, such as "training model byte with lora". An error raised in aftertune's own code, or in a
    callback of the caller, passes.
    """
    try:
        yield
    except (AftertuneError, OSError):
        raise
    except BaseException as error:
        if is_memory_error(error):
            raise ResourceError(f"{what}: out of memory; use a smaller --max-length, --batch-size or model, or "
                                "--gradient-checkpointing") from error
        if not _is_library_fault(error) or library_of(error) not in _TRAINING:
            raise
        raise InputError(f"{what}: {library_of(error)} failed: {_described(error)}; use another method, model or "
                         "setting; `aftertune --debug` and the same words show where") from error


@contextlib.contextmanager
def forward_errors(model: str, *, kept: str = "finished batches are kept; ") -> Iterator[None]:
    """Turn what the libraries raise while a model computes into a SourceError of one line.

    model: its name, for the message; kept: what of the work is not lost. Out of memory is left to those who can split
    a batch; an error raised in aftertune's own code passes.
    """
    try:
        yield
    except (AftertuneError, OSError):
        raise
    except BaseException as error:
        if not _is_library_fault(error) or library_of(error) not in _COMPUTING:
            raise
        raise SourceError(f"{model}: {library_of(error)} failed while the model computed: {_described(error)}; "
                          f"{kept}check that weights, config and tokenizer belong together; "
                          "`aftertune --debug` and the same words show where") from error


@contextlib.contextmanager
def writing_errors(what: str, remedy: str) -> Iterator[None]:
    """Turn what the libraries raise while they convert or write a model into a SourceError of one line.

    what: for the message, such as "writing model-q8_0.gguf". It stands around `disk_errors`, to which errors of the
    disk belong; those about memory, and errors raised in aftertune's own code, pass.
    """
    try:
        yield
    except (AftertuneError, OSError):
        raise
    except BaseException as error:
        if not _is_library_fault(error) or library_of(error) not in _WRITING:
            raise
        raise SourceError(f"{what}: {library_of(error)} failed: {_described(error)}; {remedy}; "
                          "`aftertune --debug` and the same words show where") from error


def is_memory_error(error: BaseException) -> bool:
    """True for the errors that Python and torch raise when memory runs out, on any device."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(
        sign in text for sign in ("out of memory", "not enough memory", "allocate memory")))


def _is_library_fault(error: BaseException) -> bool:
    """True unless the error is a request to stop or says that memory ran out."""
    return (isinstance(error, Exception) or type(error).__name__ == "PanicException") and not is_memory_error(error)


def library_of(error: BaseException) -> str:
    """The package whose code raised the error, such as "transformers"; "aftertune" for our own.

    Python's own modules do not count: the error belongs to the package that called them.
    """
    module = type(error).__module__.partition(".")[0]
    if module in ("tokenizers", "safetensors", "pyo3_runtime"):
        return "tokenizers" if module == "pyo3_runtime" else module
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package and package not in sys.stdlib_module_names:
            return package
    return "aftertune"


def _described(error: BaseException) -> str:
    """The kind of an error and its message, on one line and not longer than a few."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{' …' if len(text) > 300 else ''}" if text else type(error).__name__


@contextlib.contextmanager
def memory_errors(source: ModelSource, device: str) -> Iterator[None]:
    """Turn errors about too little memory into a ResourceError of one line."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_memory_error(error):
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
    except BrokenPipeError:  # of the terminal, not of the disk
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        if isinstance(error, RuntimeError) and not any(sign in reason for sign in _DISK_SIGNS):
            raise
        raise StorageError(f"{folder}: cannot be written ({reason}); free some space and {remedy}") from error
