"""Is the Hub there? One short probe a process, so that offline machines go on at once.

Owns fetching from the Hugging Face Hub: the local cache first, safetensors only, errors told apart.

    folder, commit = snapshot("Qwen/Qwen2-0.5B", revision=None, what=MODEL, usable=has_weights)

A cached snapshot that is complete is used without asking the Hub, so a branch stands still until another
revision is asked for; the commit is always recorded. ``HF_HUB_OFFLINE=1`` forbids the network altogether.
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

#: Files of a model; pickles are never asked for.
MODEL = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
CODE = ("*.py",)
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "aftertune.json")
#: Second copies of the weights in other layouts.
IGNORED = ("consolidated*", "original/*", "onnx/*", "openvino/*", "coreml/*")


_kept_offline = ContextVar("_kept_offline", default=False)


@contextlib.contextmanager
def offline_only() -> Iterator[None]:
    """What is on this machine alone is looked at meanwhile."""
    token = _kept_offline.set(True)
    try:
        yield
    finally:
        _kept_offline.reset(token)


def offline() -> bool:
    """True where the network is forbidden: by the environment (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE), or for now."""
    return _kept_offline.get() or any(os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}
               for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def snapshot(repo: str, *, revision: str | None, what: tuple[str, ...],
             usable: Callable[[Path], bool]) -> tuple[Path, str]:
    """Folder of a snapshot and its commit hash; ``usable`` says whether a cached one is complete.

    Raises SourceError that tells apart: malformed, unknown, gated or refused, unknown revision, offline and
    not in the cache, unreachable.
    """
    folder = _cached(repo, revision, what)
    if folder is not None and usable(folder):
        return folder, folder.name
    if offline():
        state = "is only partly in" if folder is not None else "is not in"
        known = [*cached_repos(), *(p.name for p in sorted(Path().iterdir()) if p.is_dir())]
        raise SourceError(f"{repo}: this run is offline (HF_HUB_OFFLINE) and the model {state} the local "
                          f"cache {_cache_root()}{nearest(repo, known)}; fetch it once online, or "
                          "give a folder, a .gguf file or package:NAME/FILE")
    folder = _fetch(repo, revision, what)
    return folder, folder.name


def cached_repos() -> list[str]:
    """Ids of the model repositories in the local cache."""
    root = _cache_root()
    names = sorted(p.name for p in root.glob("models--*")) if root.is_dir() else []
    return [n.removeprefix("models--").replace("--", "/") for n in names]


def _cache_root() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _download(repo: str, revision: str | None, what: tuple[str, ...], *, local: bool) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo, revision=revision, allow_patterns=list(what), local_files_only=local,
                                  ignore_patterns=list(IGNORED), cache_dir=_cache_root()))


def _cached(repo: str, revision: str | None, what: tuple[str, ...]) -> Path | None:
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return _download(repo, revision, what, local=True)
    except LocalEntryNotFoundError:
        return None
    except HFValidationError:
        raise SourceError(f"{repo}: neither a path that exists nor a Hub id; a Hub id reads org/name, a path "
                          "starts with ./ or /") from None


def _fetch(repo: str, revision: str | None, what: tuple[str, ...]) -> Path:
    try:
        return _download(repo, revision, what, local=False)
    except Exception as error:
        raise SourceError(told(error, repo, revision)) from None


def told(error: BaseException, repo: str, revision: str | None) -> str:
    """One line for a failed download; never the server's text, which may carry addresses or tokens."""
    from huggingface_hub import errors

    status = _status(error)
    if isinstance(error, errors.GatedRepoError):
        return (f"{repo}: the Hub keeps this model behind a form; accept its terms at "
                f"https://huggingface.co/{repo} and set HF_TOKEN")
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo}: the Hub has this model but no revision {revision!r}; give its branch, tag or commit"
    if isinstance(error, errors.RepositoryNotFoundError) and status != 403:
        return (f"{repo}: the Hub has no such model (or it is private and no valid HF_TOKEN is set); check "
                f"the spelling{nearest(repo, cached_repos())}, or start a path with ./")
    if status in {401, 403}:
        return (f"{repo}: the Hub refused access (HTTP {status}); set HF_TOKEN to a token that may read this "
                "model, or unset one that has expired")
    if status is not None:
        return f"{repo}: the Hub answered HTTP {status}; try again later, or use a local folder"
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        return (f"{repo}: cannot write the local cache {_cache_root()}: {error.strerror}; make room or set "
                "HF_HOME")
    return (f"{repo}: the Hub cannot be reached and the model is not in the local cache {_cache_root()}; "
            "check the network, or give a folder, a .gguf file or package:NAME/FILE")


def _status(error: BaseException | None) -> int | None:
    """HTTP status of an error or of what caused it."""
    seen: Any = error
    while seen is not None:
        response = getattr(seen, "response", None)
        if response is not None:
            return int(response.status_code)
        seen = seen.__cause__
    return None


#: Seconds after which the Hub counts as not reached.
PATIENCE = 3.0


@cache
def reachable() -> bool:
    """True where the Hub's host takes a connection; never asked in offline mode or behind a proxy."""
    if offline():
        return False
    from urllib.request import getproxies

    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    if getproxies().get(parts.scheme):
        return True
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 443), timeout=PATIENCE):
            return True
    except OSError:
        return False
