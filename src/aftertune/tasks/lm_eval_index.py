"""Looks up tasks in lm-eval's task index (some 14,000 names), which is cached because building it takes seconds.

    tasks = manager(Path("my_tasks"))
    expand(tasks, "arc_*")                    # ["arc_challenge", "arc_easy", …]

The index maps names to YAML files. The cached copy is used as long as lm-eval's version and the path and modification
time of its task folder are the same.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import json
import logging
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from aftertune.errors import UnknownTask, nearest
from aftertune.sources.cache import cache_root, write_atomic
from aftertune.tasks.task_files import TaskFolder, read_config, task_factory
from aftertune.tasks.task_templates import limit_templates


def manager(include_path: Path | None = None, *, allow_code: bool = False) -> Any:
    """lm-eval's TaskManager for its own tasks and those in the folder ``include_path``.

    A task from ``include_path`` that names Python code is refused when it is built, unless ``allow_code``. Raises
    TaskError if there is no such folder.
    """
    from lm_eval.tasks import TaskManager

    hide_warnings()
    limit_templates()
    key = _key()
    entries = _load(key)
    if entries is None:
        tasks = TaskManager()
        with contextlib.suppress(OSError):
            _save(key, tasks.task_index)
    else:
        tasks = TaskManager(include_defaults=False)
        tasks.task_index.update(entries)
    tasks.folder = TaskFolder(include_path, allow_code=allow_code) if include_path is not None else None
    if tasks.folder is not None:
        tasks.task_index.update(tasks.folder.index)
    tasks._factory = task_factory(tasks.folder, allow_code=allow_code)
    return tasks


def hide_warnings() -> None:
    """Hide lm-eval's own warnings; its errors are still shown."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def expand(tasks: Any, name: str) -> list[str]:
    """The names in the index that ``name`` matches: itself, or all matches of a pattern such as ``arc_*``.

    tasks: a TaskManager. Raises UnknownTask if nothing matches.
    """
    index = tasks.task_index
    if name in index:
        return [name]
    if any(c in name for c in "*?["):
        matches = sorted(fnmatch.filter(index, name))
        if matches:
            return matches
    if (shots := re.fullmatch(r"(.+)_(\d+)-?shot", name)) and shots[1] in index:
        raise UnknownTask(f"unknown task {name!r}; examples are a setting and no part of the name: --tasks {shots[1]} "
                          f"--num-fewshot {int(shots[2])}, as an evaluation of its own")
    problem = "no task matches" if "*" in name else "unknown task"
    near = nearest(name.strip("*_"), list(index))
    fault = tasks.folder.fault() if getattr(tasks, "folder", None) else ""
    raise UnknownTask(f"{problem} {name!r}{near}; use a task or group of lm-eval {metadata.version('lm_eval')}, or "
                      f"your own task files with --include-path{fault}")


def is_task(name: str) -> bool:
    """Whether lm-eval has one task of this name, and not a group or a tag, whose tasks bring data of their own."""
    from lm_eval.tasks._index import Kind

    entry = manager().task_index.get(name)
    return entry is not None and entry.kind in (Kind.TASK, Kind.PY_TASK)


def config(tasks: Any, name: str) -> dict[str, Any]:
    """The values of a task's YAML file, with its includes. The functions that it names are not imported."""
    entry = tasks.task_index[name]
    if entry.yaml_path is None:
        return {}
    folder = getattr(tasks, "folder", None)
    return dict(folder.config(entry) if folder and folder.owns(entry) else read_config(entry.yaml_path))


def set_task_class(tasks: Any, names: list[str], task_class: type) -> None:
    """Make ``tasks`` (a TaskManager) build the named tasks as ``task_class``, also within groups."""
    from lm_eval.tasks._index import Entry, Kind

    for name in names:
        entry = tasks.task_index[name]
        # Without a YAML path, an earlier call has already replaced the entry.
        values = tasks._factory._load_full_config(entry) if entry.yaml_path else dict(entry.cfg or {})
        tasks.task_index[name] = Entry(name=name, kind=Kind.PY_TASK, yaml_path=None, tags=entry.tags,
                                       cfg=values | {"class": task_class})


def _key() -> tuple[str, str, int]:
    import lm_eval.tasks

    folder = Path(lm_eval.tasks.__file__).parent
    return metadata.version("lm_eval"), str(folder), folder.stat().st_mtime_ns


def _file() -> Path:
    return cache_root() / "lm_eval_tasks.json"


def _load(key: tuple[str, str, int]) -> dict[str, Any] | None:
    """The entries of the cached copy, None if there is none for ``key``. Nobody changes an entry."""
    try:
        state = _file().stat()
    except OSError:
        return None
    return _read(_file(), (state.st_ino, state.st_size, state.st_mtime_ns), key)


@functools.lru_cache(maxsize=2)
def _read(file: Path, _state: tuple[int, ...], key: tuple[str, str, int]) -> dict[str, Any] | None:
    """The entries of a file in this state: read once in a process, not for each evaluation."""
    from lm_eval.tasks._index import Entry, Kind

    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        if stored["key"] != list(key):
            return None
        return {name: Entry(name=name, kind=Kind[kind], yaml_path=Path(path) if path else None,
                            tags=set(tags))
                for name, (kind, path, tags) in stored["entries"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _save(key: tuple[str, str, int], index: dict[str, Any]) -> None:
    rows = {name: [e.kind.name, str(e.yaml_path) if e.yaml_path else None, sorted(e.tags)]
            for name, e in index.items()}
    write_atomic(_file(), json.dumps({"key": key, "entries": rows}))
