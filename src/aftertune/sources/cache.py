"""Caches fingerprints, so that unchanged weights are hashed only once; makes paths from names, and writes files
atomically.

    key = stat_key([Path("model.safetensors")], "safetensors-1")     # path, device, inode, size, mtime_ns, ctime_ns
    cached_value(key) or cache_value(key, {"weights": "9f…"})
    path_part("org/..")                                              "org____"

The file is ``fingerprints.json`` in AFTERTUNE_CACHE (default ~/.cache/aftertune). It only saves time: a damaged or
unwritable one is ignored. A file that changed within the last two seconds is not cached, because a second change
within the resolution of the file system's clock would not be noticed.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
import time
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from aftertune.paths import expanded
from aftertune.values import digest

# --- Cached fingerprints ---

#: Age in seconds from which the times of a file identify its content.
MIN_AGE = 2.0
#: Number of entries to keep; the oldest are removed first.
MAX_ENTRIES = 2000


def cache_root() -> Path:
    """Folder for everything that can be computed again: AFTERTUNE_CACHE, or ~/.cache/aftertune."""
    return expanded(os.environ.get("AFTERTUNE_CACHE") or Path.home() / ".cache" / "aftertune")


def stat_key(paths: Sequence[Path], purpose: str) -> str:
    """Key of these files for as long as they are unchanged. purpose: what is computed from them, with a version."""
    rows = []
    for path in sorted(p.resolve() for p in paths):
        status = path.stat()
        rows.append([str(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns])
    return digest([purpose, rows])


def settled(paths: Sequence[Path]) -> bool:
    """True if no file changed within the last MIN_AGE seconds."""
    newest = max((max(s.st_mtime, s.st_ctime) for s in (p.stat() for p in paths)), default=0.0)
    return time.time() - newest > MIN_AGE


def cached_value(key: str) -> dict[str, Any] | None:
    """The value stored under ``key``, or None."""
    value = _read().get(key)
    return value if isinstance(value, dict) else None


def cache_value(key: str, value: dict[str, Any]) -> None:
    """Store ``value`` under ``key``. A cache that cannot be written is no error."""
    with contextlib.suppress(OSError):
        entries = _read()
        entries.pop(key, None)
        entries[key] = value
        newest = dict(list(entries.items())[-MAX_ENTRIES:])
        write_atomic(cache_root() / "fingerprints.json", json.dumps(newest))


# --- Paths and atomic writes ---

#: What a file's name may not contain: as in lm-eval's ``sanitize_model_name``, and control characters.
_UNSAFE = re.compile(r"[\"<>:/|\\?*\[\]\x00-\x1f\x7f-\x9f]+")
#: Categories of characters that are not seen or change the direction of a line: "x(U+202E)gpj.exe" looks
#: like "xexe.jpg".
_UNSEEN = ("Cf", "Co", "Zl", "Zp")
_LONGEST_NAME = 150  # bytes; file systems allow 255, and names of files get a stamp and an ending


def path_part(name: str) -> str:
    """The name of a model or task as one part of a path, which cannot lead out of its folder.

    "org/model" becomes "org__model", ".." becomes "__". A name that is too long is cut, with a hash of the whole.
    """
    name = "".join("__" if unicodedata.category(c) in _UNSEEN else c for c in name)
    part = _UNSAFE.sub("__", name.encode("utf-8", "backslashreplace").decode())
    part = re.sub(r"^\.+", "__", part).strip() or "__"
    if len(part.encode()) <= _LONGEST_NAME:
        return part
    cut = part.encode()[:_LONGEST_NAME - 9].decode("utf-8", "ignore")
    return f"{cut}-{hashlib.sha256(part.encode()).hexdigest()[:8]}"


def write_atomic(path: Path, text: str | Iterable[str]) -> None:
    """Write a file completely or not at all: write a temporary file in its folder, flush it to disk, rename it.

    text: the whole of it, or its parts one after another.

    The umask sets its mode, as for any new file (``tempfile`` would make it readable for its owner only).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines([text] if isinstance(text, str) else text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_path(path: Path) -> Path:
    """A unique path in the folder of ``path``, to be renamed to ``path`` once it is complete.

    Those of earlier calls for ``path`` are removed if their process, of this machine, was killed.
    """
    name = os.fsdecode(os.fsencode(path.name)[:100])  # file systems count bytes
    start = f".{name}.{_machine()}-"
    for old in path.parent.glob(f"{glob.escape(start)}*"):
        pid = old.name.removeprefix(start).partition("-")[0]
        if pid.isdigit() and not _is_running(int(pid)):
            remove_path(old)
    return path.with_name(f"{start}{os.getpid()}-{secrets.token_hex(4)}")


def remove_path(path: Path) -> None:
    """Remove a file or a folder, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _is_running(pid: int) -> bool:
    import psutil

    return bool(psutil.pid_exists(pid))


def _machine() -> str:
    """Six hex digits that differ between machines and containers, which may share a folder but not their processes."""
    namespace = Path("/proc/self/ns/pid")
    return digest([platform.node(), namespace.stat().st_ino if namespace.exists() else 0])[:6]


def set_default_mode(folder: Path) -> None:
    """Give the weights in ``folder`` the mode of a new file (safetensors makes them readable for their owner only)."""
    probe = temporary_path(folder / "mode")
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.glob("*.safetensors"):
        path.chmod(mode)


def _read() -> dict[str, Any]:
    try:
        entries = json.loads((cache_root() / "fingerprints.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return entries if isinstance(entries, dict) else {}
