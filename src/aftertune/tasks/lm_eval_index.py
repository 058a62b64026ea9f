"""Looks up tasks in lm-eval's task index (some 14,000 names), which is cached because building it takes seconds.

    tasks = manager(Path("my_tasks"))
    expand(tasks, "arc_*")                    # ["arc_challenge", "arc_easy", …]

The index maps names to YAML files. The cached copy is used as long as lm-eval's version and the path and modification
time of its task folder are the same.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import logging
from importlib import metadata
from pathlib import Path
from typing import Any

from aftertune.errors import TaskError, nearest
from aftertune.sources.cache import cache_root, write_atomic


def manager(include_path: Path | None = None, *, allow_code: bool = False) -> Any:
    """lm-eval's TaskManager for its own tasks and those in the folder ``include_path``.

    Raises TaskError if a task file in ``include_path`` runs Python code (``!function``) and ``allow_code`` is False.
    """
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    _sandbox_templates()
    key = _key()
    entries = _load(key)
    if entries is None:
        tasks = TaskManager()
        with contextlib.suppress(OSError):
            _save(key, tasks.task_index)
    else:
        tasks = TaskManager(include_defaults=False)
        tasks.task_index.update(entries)
    if include_path is not None:
        _check_included(include_path, allow_code)
        tasks.task_index.update(TaskManager(include_path=include_path, include_defaults=False).task_index)
    return tasks


def _sandbox_templates() -> None:
    """Make lm-eval render the templates of task files in Jinja's sandbox; in its own environment they can run code."""
    import lm_eval.utils
    from jinja2.sandbox import SandboxedEnvironment

    environment = lm_eval.utils.env
    if isinstance(environment, SandboxedEnvironment):
        return
    sandbox = SandboxedEnvironment(loader=environment.loader, undefined=environment.undefined,
                                   keep_trailing_newline=environment.keep_trailing_newline)
    sandbox.filters.update(environment.filters)
    lm_eval.utils.env = sandbox


def expand(tasks: Any, name: str) -> list[str]:
    """The names in the index that ``name`` matches: itself, or all matches of a pattern such as ``arc_*``.

    tasks: a TaskManager. Raises TaskError if nothing matches.
    """
    index = tasks.task_index
    if name in index:
        return [name]
    if any(c in name for c in "*?["):
        matches = sorted(fnmatch.filter(index, name))
        if matches:
            return matches
    problem = "no task matches" if "*" in name else "unknown task"
    near = nearest(name.strip("*_"), list(index))
    raise TaskError(f"{problem} {name!r}{near}; use a task or group of lm-eval {metadata.version('lm_eval')}, or "
                    "your own task files with --include-path")


def config(tasks: Any, name: str, *, resolve: bool = True) -> dict[str, Any]:
    """The values of a task's YAML file, with its includes. resolve: also import the functions that it names."""
    from lm_eval.tasks._yaml_loader import load_yaml

    path = tasks.task_index[name].yaml_path
    return dict(load_yaml(path, resolve_func=resolve)) if path else {}


def set_task_class(tasks: Any, names: list[str], task_class: type) -> None:
    """Make ``tasks`` (a TaskManager) build the named tasks as ``task_class``, also within groups."""
    from lm_eval.tasks._index import Entry, Kind

    for name in names:
        entry = tasks.task_index[name]
        # Without a YAML path, an earlier call has already replaced the entry.
        values = config(tasks, name) if entry.yaml_path else dict(entry.cfg or {})
        tasks.task_index[name] = Entry(name=name, kind=Kind.PY_TASK, yaml_path=None, tags=entry.tags,
                                       cfg=values | {"class": task_class})


def _key() -> list[Any]:
    import lm_eval.tasks

    folder = Path(lm_eval.tasks.__file__).parent
    return [metadata.version("lm_eval"), str(folder), folder.stat().st_mtime_ns]


def _file() -> Path:
    return cache_root() / "lm_eval_tasks.json"


def _load(key: list[Any]) -> dict[str, Any] | None:
    from lm_eval.tasks._index import Entry, Kind

    try:
        stored = json.loads(_file().read_text(encoding="utf-8"))
        if stored["key"] != key:
            return None
        return {name: Entry(name=name, kind=Kind[kind], yaml_path=Path(path) if path else None,
                            tags=set(tags))
                for name, (kind, path, tags) in stored["entries"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _save(key: list[Any], index: dict[str, Any]) -> None:
    rows = {name: [e.kind.name, str(e.yaml_path) if e.yaml_path else None, sorted(e.tags)]
            for name, e in index.items()}
    write_atomic(_file(), json.dumps({"key": key, "entries": rows}))


def _check_included(folder: Path, allow_code: bool) -> None:
    if not folder.is_dir():
        raise TaskError(f"--include-path {folder}: no such folder; give a folder with task files")
    for path in sorted(folder.rglob("*.yaml")):
        if not allow_code and _runs_code(path, set()):
            raise TaskError(f"{path}: this task file runs Python code in its folder; read the code, then pass "
                            "--allow-task-code to allow it")


def _runs_code(path: Path, seen: set[Path]) -> bool:
    """True if a task file, or one that it includes, names a Python function or class.

    The tags are read from the parser's events, because a tag may be written with escapes (``!%66unction``).
    """
    import yaml  # type: ignore[import-untyped]

    path = path.resolve()
    if path in seen or not path.is_file():
        return False
    seen.add(path)
    try:
        with path.open("rb") as file:
            events = list(yaml.parse(file, Loader=yaml.SafeLoader))
        document = yaml.compose(path.read_bytes(), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise TaskError(f"{path}: not valid YAML: {' '.join(str(error).split())[:200]}") from None
    tags = {getattr(event, "tag", None) for event in events}
    keys = {k.value: v for k, v in document.value} if isinstance(document, yaml.MappingNode) else {}
    included = keys.get("include")
    names = included.value if isinstance(included, yaml.SequenceNode) else [included] if included else []
    return any(t and t.startswith("!") and len(t) > 1 for t in tags) or "class" in keys or any(
        _runs_code(path.parent / str(n.value), seen) for n in names)
