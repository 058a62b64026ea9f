"""Downloads models and adapters from the Hugging Face Hub, and checks whether the Hub can be reached.

    folder, commit = snapshot("Qwen/Qwen2-0.5B", revision=None, patterns=MODEL_FILES, usable=has_weights)

A complete snapshot in the local cache is used without a request to the Hub. So a branch keeps its cached commit until
another revision is given; the commit is always recorded. Pickled weights are never downloaded.
``HF_HUB_OFFLINE=1`` forbids all network access.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aftertune.errors import SourceError, nearest

#: Patterns of the files of a model, without pickles.
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
CODE_FILES = ("*.py",)
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "aftertune.json", "tokenizer*", "*.jinja",
                 "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt")
#: Copies of the weights in other formats.
IGNORED_FILES = ("consolidated*", "original/*", "onnx/*", "openvino/*", "coreml/*")

_forced_offline = ContextVar("_forced_offline", default=False)


@contextlib.contextmanager
def offline_only() -> Iterator[None]:
    """Use only files on this machine inside this block."""
    token = _forced_offline.set(True)
    try:
        yield
    finally:
        _forced_offline.reset(token)


def offline() -> bool:
    """True if network access is forbidden, by HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE or by `offline_only`."""
    return _forced_offline.get() or any(os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}
                                      for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def snapshot(repo: str, *, revision: str | None, patterns: tuple[str, ...],
             usable: Callable[[Path], bool]) -> tuple[Path, str]:
    """Folder of a snapshot and its commit hash, from the local cache or else from the Hub.

    patterns: which files to download. usable: whether a cached snapshot is complete.
    Raises SourceError with its own message for each cause: malformed id, unknown model, gated or refused, unknown
    revision, offline and not cached, unreachable.
    """
    folder = _cached(repo, revision, patterns)
    if folder is not None and usable(folder):
        return folder, folder.name
    if offline():
        state = "is only partly in" if folder is not None else "is not in"
        names = [*cached_repos(), *(p.name for p in sorted(Path().iterdir()) if p.is_dir())]
        raise SourceError(f"{repo}: this run is offline (HF_HUB_OFFLINE) and the model {state} the local "
                          f"cache {_cache_root()}{nearest(repo, names)}; download it once while online, or "
                          "give a folder, a .gguf file or package:NAME/FILE")
    folder = _fetch(repo, revision, patterns)
    return folder, folder.name


def cached_repos() -> list[str]:
    """Ids of the model repositories in the local cache."""
    root = _cache_root()
    names = sorted(p.name for p in root.glob("models--*")) if root.is_dir() else []
    return [n.removeprefix("models--").replace("--", "/") for n in names]


def _cache_root() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _download(repo: str, revision: str | None, patterns: tuple[str, ...], *, local: bool) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns), local_files_only=local,
                                  ignore_patterns=list(IGNORED_FILES), cache_dir=_cache_root()))


def _cached(repo: str, revision: str | None, patterns: tuple[str, ...]) -> Path | None:
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return _download(repo, revision, patterns, local=True)
    except LocalEntryNotFoundError:
        return None
    except HFValidationError:
        raise SourceError(f"{repo}: neither a path that exists nor a Hub id; a Hub id has the form org/name, a "
                          "path starts with ./ or /") from None


def _fetch(repo: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    try:
        return _download(repo, revision, patterns, local=False)
    except Exception as error:
        raise SourceError(download_error_message(error, repo, revision)) from None


def download_error_message(error: BaseException, repo: str, revision: str | None) -> str:
    """Error message for a failed download. It never quotes the server, whose text may contain addresses or tokens."""
    from huggingface_hub import errors

    status = _status(error)
    if isinstance(error, errors.GatedRepoError):
        return (f"{repo}: this model is gated; accept its terms at "
                f"https://huggingface.co/{repo} and set HF_TOKEN")
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo}: the Hub has this model but no revision {revision!r}; give a branch, tag or commit"
    if isinstance(error, errors.RepositoryNotFoundError) and status != 403:
        return (f"{repo}: the Hub has no such model (or it is private and no valid HF_TOKEN is set); check "
                f"the spelling{nearest(repo, cached_repos())}, or start a path with ./")
    if status in {401, 403}:
        return (f"{repo}: the Hub refused access (HTTP {status}); set HF_TOKEN to a token that may read this "
                "model, or unset one that has expired")
    if status is not None:
        return f"{repo}: the Hub answered HTTP {status}; try again later, or use a local folder"
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        return (f"{repo}: cannot write to the local cache {_cache_root()}: {error.strerror}; free some disk space or "
                "set HF_HOME")
    return (f"{repo}: the Hub cannot be reached and the model is not in the local cache {_cache_root()}; "
            "check the network, or give a folder, a .gguf file or package:NAME/FILE")


def _status(error: BaseException | None) -> int | None:
    """HTTP status of an error or of its cause; None if there is none."""
    current: Any = error
    while current is not None:
        response = getattr(current, "response", None)
        if response is not None:
            return int(response.status_code)
        current = current.__cause__
    return None


#: Seconds to wait for a connection to the Hub.
CONNECT_TIMEOUT = 3.0


@cache
def reachable() -> bool:
    """True if the Hub's host accepts a connection. Tried once per process.

    Without trying, it is False in offline mode and True behind a proxy.
    """
    if offline():
        return False
    from urllib.request import getproxies

    from huggingface_hub import constants

    url = urlsplit(constants.ENDPOINT)
    if getproxies().get(url.scheme):
        return True
    try:
        with socket.create_connection((url.hostname or "", url.port or 443), timeout=CONNECT_TIMEOUT):
            return True
    except OSError:
        return False
