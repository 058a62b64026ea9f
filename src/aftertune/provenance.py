"""Records how a result was made: command, package versions, hardware, git commit and times.

    before = capture()                     # Provenance(command="aftertune eval gpt2 --token [redacted]", …)
    …
    after = finish(before)                 # the same with finished and seconds

Secrets are removed from the command (`aftertune.redaction`). Versions come from the metadata of the packages, without
importing them. GPU names are read only if torch is already loaded.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aftertune.redaction import clean_command, process_command
from aftertune.values import Provenance

PACKAGES = ("aftertune", "torch", "transformers", "peft", "trl", "lm-eval", "datasets", "numpy")


_clocks: dict[str, float] = {}  # Provenance.started -> time.monotonic() at that moment, in this process


def capture(command: str | None = None) -> Provenance:
    """The provenance of a run that starts now. command: its command line, by default that of this process."""
    command_line = process_command(sys.argv) if command is None else clean_command(command)
    commit, dirty = _git(Path.cwd())
    started = _now()
    while started in _clocks:
        started = _now()
    _clocks[started] = time.monotonic()
    return Provenance(command=command_line, started=started, versions=_versions(), hardware=_hardware(),
                      git=commit, dirty=dirty)


def finish(provenance: Provenance) -> Provenance:
    """The same provenance with ``finished`` and ``seconds``, which are measured with the monotonic clock.

    For a run that another process started only the wall clock is available; if it was set back, seconds is 0. finished
    is never earlier than started.
    """
    started = datetime.fromisoformat(provenance.started)
    now = datetime.now(UTC)
    clock = _clocks.get(provenance.started)
    seconds = time.monotonic() - clock if clock is not None else (now - started).total_seconds()
    seconds = max(0.0, seconds)
    finished = max(now, started + timedelta(seconds=seconds))
    return replace(provenance, finished=finished.isoformat(timespec="microseconds"), seconds=seconds)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _versions() -> dict[str, str]:
    """Versions from the package metadata, without the packages that are not installed."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    if "aftertune" not in versions:
        from aftertune import __version__

        versions["aftertune"] = __version__
    return versions


def _hardware() -> dict[str, Any]:
    """Platform, CPU model, cores that this process may use, memory in bytes, and GPU names (if torch is loaded)."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"platform": platform.platform(), "machine": platform.machine(), "cpu": _cpu_model(),
            "cores": cores, "memory": int(psutil.virtual_memory().total), "gpus": _gpus()}


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        match = re.search(r"^model name\s*:\s*(.+)$", info.read_text(errors="replace"), re.MULTILINE)
        if match:
            return match[1].strip()
    if sys.platform == "darwin":
        return _output(["sysctl", "-n", "machdep.cpu.brand_string"], Path.cwd()) or platform.processor()
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    torch: Any = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda"):
        return []
    if torch.cuda.is_available():
        return [str(torch.cuda.get_device_name(i)) for i in range(torch.cuda.device_count())]
    mps = getattr(getattr(torch, "backends", None), "mps", None)
    return ["Apple MPS"] if mps is not None and mps.is_available() else []


def _git(folder: Path) -> tuple[str | None, bool | None]:
    """(commit, whether tracked files differ from it); (None, None) outside a repository or without git."""
    commit = _output(["git", "rev-parse", "--verify", "HEAD"], folder)
    if not commit:
        return None, None
    changed = _output(["git", "status", "--porcelain", "--untracked-files=no"], folder)
    return commit, None if changed is None else bool(changed)


def _output(command: list[str], folder: Path) -> str | None:
    """Standard output of a short command; None if it is missing, fails or takes more than five seconds."""
    try:
        completed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=5, check=True,
                                   env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"})
    except (OSError, subprocess.SubprocessError):
        return None
    return completed.stdout.strip()
