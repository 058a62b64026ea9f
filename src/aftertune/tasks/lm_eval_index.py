"""lm-eval's task index (some 14,000 names), remembered between runs because building it takes seconds.

The index only maps names to YAML files; it is kept in the cache folder, keyed by lm-eval's version and the
place and time of its task folder, and made anew where anything of that differs.
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
    """A TaskManager that knows lm-eval's tasks and those under ``include_path``.

    Foreign task files may name Python functions (``!function``); they are refused unless ``allow_code``.
    """
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    _sandbox_templates()
    key = _key()
    entries = _load(key)
    if entries is None:
        made = TaskManager()
        with contextlib.suppress(OSError):
            _save(key, made.task_index)
    else:
        made = TaskManager(include_defaults=False)
        made.task_index.update(entries)
    if include_path is not None:
        _check_foreign(include_path, allow_code)
        made.task_index.update(TaskManager(include_path=include_path, include_defaults=False).task_index)
    return made


def _sandbox_templates() -> None:
    """Render the templates of task files in Jinja's sandbox: lm-eval's own environment lets them run code."""
    import lm_eval.utils
    from jinja2.sandbox import SandboxedEnvironment

    old = lm_eval.utils.env
    if isinstance(old, SandboxedEnvironment):
        return
    new = SandboxedEnvironment(loader=old.loader, undefined=old.undefined,
                               keep_trailing_newline=old.keep_trailing_newline)
    new.filters.update(old.filters)
    lm_eval.utils.env = new


def expand(made: Any, name: str) -> list[str]:
    """The index names that ``name`` stands for: itself, or all matches of a pattern such as ``arc_*``."""
    known = made.task_index
    if name in known:
        return [name]
    if any(c in name for c in "*?["):
        found = sorted(fnmatch.filter(known, name))
        if found:
            return found
    what = "no task matches" if "*" in name else "unknown task"
    near = nearest(name.strip("*_"), list(known))
    raise TaskError(f"{what} {name!r}{near}; any task or group of lm-eval "
                    f"{metadata.version('lm_eval')} works, own ones with --include-path")


def config(made: Any, name: str, *, resolve: bool = True) -> dict[str, Any]:
    """A task's own YAML values, includes merged; its functions imported where ``resolve``."""
    from lm_eval.tasks._yaml_loader import load_yaml

    path = made.task_index[name].yaml_path
    return dict(load_yaml(path, resolve_func=resolve)) if path else {}


def localise(made: Any, names: list[str], task_class: type) -> None:
    """Let the named tasks be built as ``task_class``, in groups too."""
    from lm_eval.tasks._index import Entry, Kind

    for name in names:
        entry = made.task_index[name]
        own = config(made, name) if entry.yaml_path else dict(entry.cfg or {})  # asked for before: already local
        made.task_index[name] = Entry(name=name, kind=Kind.PY_TASK, yaml_path=None, tags=entry.tags,
                                      cfg=own | {"class": task_class})


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


def _check_foreign(folder: Path, allow_code: bool) -> None:
    if not folder.is_dir():
        raise TaskError(f"--include-path {folder}: no such folder")
    for path in sorted(folder.rglob("*.yaml")):
        if not allow_code and _runs_code(path, set()):
            raise TaskError(f"{path}: this task file runs Python code of its folder; read it, then pass "
                            "--allow-task-code to run it")


def _runs_code(path: Path, seen: set[Path]) -> bool:
    """True where a task file, or one that it includes, names a function or a class.

    The parser's tokens are read, because a tag may be written with escapes (``!%66unction``).
    """
    import yaml  # type: ignore[import-untyped]

    path = path.resolve()
    if path in seen or not path.is_file():
        return False
    seen.add(path)
    try:
        with path.open("rb") as file:
            events = list(yaml.parse(file, Loader=yaml.SafeLoader))
        found = yaml.compose(path.read_bytes(), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise TaskError(f"{path}: not valid YAML: {' '.join(str(error).split())[:200]}") from None
    tags = {getattr(event, "tag", None) for event in events}
    keys = {k.value: v for k, v in found.value} if isinstance(found, yaml.MappingNode) else {}
    included = keys.get("include")
    names = included.value if isinstance(included, yaml.SequenceNode) else [included] if included else []
    return any(t and t.startswith("!") and len(t) > 1 for t in tags) or "class" in keys or any(
        _runs_code(path.parent / str(n.value), seen) for n in names)
