"""Owns the memory of fingerprints: a small JSON file, so that unchanged weights are not hashed again.

    key = stat_key([Path("model.safetensors")])      # path, device, inode, size, mtime_ns, ctime_ns
    remembered(key) or remember(key, {"weights": "9f…"})

The file is ``fingerprints.json`` under AFTERTUNE_CACHE (default ~/.cache/aftertune). It only saves time: a
corrupt or unwritable one is ignored. A file changed within the last two seconds is not remembered, because a
second change inside the clock's grain would go unseen.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aftertune.values import digest

#: Seconds for which a fresh file is not trusted to be told apart by its times.
GRAIN = 2.0
#: Entries kept; the oldest go first.
ENTRIES = 2000


def cache_root() -> Path:
    """Folder of everything that can be made again: AFTERTUNE_CACHE, or ~/.cache/aftertune."""
    return Path(os.environ.get("AFTERTUNE_CACHE") or Path.home() / ".cache" / "aftertune").expanduser()


def stat_key(paths: Sequence[Path], purpose: str) -> str:
    """Identity of unchanged files on this machine; ``purpose`` names what was computed, and how."""
    rows = []
    for path in sorted(p.resolve() for p in paths):
        s = path.stat()
        rows.append([str(path), s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns])
    return digest([purpose, rows])


def settled(paths: Sequence[Path]) -> bool:
    """True where no file changed within the last GRAIN seconds."""
    newest = max((max(s.st_mtime, s.st_ctime) for s in (p.stat() for p in paths)), default=0.0)
    return time.time() - newest > GRAIN


def cached_value(key: str) -> dict[str, Any] | None:
    """What was stored under ``key``, or None."""
    value = _read().get(key)
    return value if isinstance(value, dict) else None


def cache_value(key: str, value: dict[str, Any]) -> None:
    """Store ``value``; failing to is no error."""
    with contextlib.suppress(OSError):
        entries = _read()
        entries.pop(key, None)
        entries[key] = value
        kept = dict(list(entries.items())[-ENTRIES:])
        write_atomic(cache_root() / "fingerprints.json", json.dumps(kept))


def write_atomic(path: Path, text: str) -> None:
    """Write a file whole or not at all: a temporary beside it, flushed to disk, then renamed.

    Its mode is the umask's, as for any file that the user makes (``tempfile`` would give it to its owner alone).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def beside(path: Path) -> Path:
    """A name in the folder of ``path`` that nothing else takes, for what is renamed to ``path`` when it is whole."""
    return path.with_name(f".{path.name[:100]}.{os.getpid()}-{secrets.token_hex(4)}")


def usual_modes(folder: Path) -> None:
    """Give the weights in ``folder`` the mode that a new file has (safetensors writes for the owner alone)."""
    probe = beside(folder / "mode")
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
