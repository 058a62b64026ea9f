"""Reads the task files of a user's folder, judges them, and builds lm-eval's tasks from them.

    folder = TaskFolder(Path("my_tasks"), allow_code=False)
    manager.task_index.update(folder.index)
    manager._factory = task_factory(folder)

A task file is YAML, with includes, merge keys and ``!function`` references to Python files. What is judged is what
lm-eval's own loader returns, after all of these, and with the functions not imported. Where code is not allowed, the
task is built from this judged config, so no function is ever imported, in whatever way a file names it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aftertune import bounds
from aftertune.errors import TaskError
from aftertune.sources.limits import OutOfTime, memory_limit, template_fault, time_limit
from aftertune.tasks.seeding import TaskRandomness
from aftertune.tasks.task_fields import (
    NamedFunction,
    check_config,
    check_group,
    functions,
    refuse_code,
    refuse_evaluate,
)

#: Bounds of one task file: bytes, and seconds and bytes of memory to read it with its includes.
MAX_BYTES = bounds.TASK_BYTES
READ_TIMEOUT, READ_MEMORY = bounds.TASK_SECONDS, bounds.TASK_MEMORY
#: How often lm-eval reads the name of a task that it loads alone. Each time it draws from Python's generator.
_NAME_READINGS = 3
#: Files of a folder.
MAX_FILES = bounds.TASK_FILES


def read_config(path: Path) -> dict[str, Any]:
    """The values of a task file with those of its includes, as lm-eval merges them; functions as `NamedFunction`.

    Raises TaskError in one line if it cannot be read.
    """
    import yaml  # type: ignore[import-untyped]
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        if path.stat().st_size > MAX_BYTES:
            raise TaskError(f"{path}: the task file has {path.stat().st_size:,} bytes, and {MAX_BYTES:,} are allowed")
        with _functions_unresolved(), memory_limit(READ_MEMORY), time_limit(READ_TIMEOUT):
            return dict(load_yaml(path, resolve_func=False))
    except TaskError:
        raise
    except FileNotFoundError as error:
        missing = Path(error.filename or path)
        what = "no such task file" if missing == path else f"it includes {missing}, which does not exist"
        raise TaskError(f"{path}: {what}; check the path") from None
    except yaml.YAMLError as error:
        raise TaskError(f"{path}: not valid YAML: {' '.join(str(error).split())[:240]}") from None
    except (OutOfTime, MemoryError):
        raise TaskError(f"{path}: the task file takes more than {READ_TIMEOUT:g} s or {READ_MEMORY // 2**20} MB to "
                        "read; write it without aliases of aliases") from None
    except RecursionError:
        raise TaskError(f"{path}: the task file is nested too deeply, or an alias contains itself") from None
    except Exception as error:  # lm-eval and PyYAML raise many types of errors
        raise TaskError(f"{path}: the task file cannot be read: {template_fault(error)}") from None


@contextlib.contextmanager
def _functions_unresolved() -> Iterator[None]:
    """Let lm-eval's loader return a `NamedFunction` for each ``!function`` inside the block."""
    from lm_eval.tasks import _yaml_loader

    def constructor_for(folder: Path, resolve: bool) -> Any:  # noqa: ARG001 (lm-eval's signature)
        return lambda loader, node: NamedFunction(str(loader.construct_scalar(node)), folder)

    constructor = _yaml_loader._mk_function_ctor
    _yaml_loader._mk_function_ctor = constructor_for
    try:
        yield
    finally:
        _yaml_loader._mk_function_ctor = constructor


class TaskFolder:
    """The task files of a folder. index: name -> lm-eval's entry; faults: why other files could not be read.

    Raises TaskError if there is no such folder.
    """

    def __init__(self, folder: Path, *, allow_code: bool) -> None:
        from lm_eval.tasks._index import TaskIndex

        if not folder.is_dir():
            raise TaskError(f"--include-path {folder}: no such folder; give a folder with task files")
        self.folder, self.allow_code = folder, allow_code
        self.index: dict[str, Any] = {}
        self.faults: dict[Path, str] = {}
        for number, path in enumerate(TaskIndex._iter_yaml_files(folder)):
            if number >= MAX_FILES:
                raise TaskError(f"--include-path {folder}: more than {MAX_FILES:,} task files; give the folder of "
                                "your tasks")
            try:
                config = read_config(path)
                if {"class", "group", "task"}.isdisjoint(config):
                    continue  # it is there to be included
                entries: dict[str, Any] = {}
                TaskIndex.process_cfg(config, path, entries)
                if not all(isinstance(name, str) and name for name in entries):
                    raise TypeError
            except TaskError as error:
                self.faults[path] = str(error)
            except (TypeError, ValueError, KeyError, AttributeError):
                self.faults[path] = f"{path}: task, group and tag must be names"
            else:
                self._add(entries)

    def _add(self, entries: Mapping[str, Any]) -> None:
        """Add the entries of a file. As in lm-eval, the first file with a name has it, and a tag has all its tasks."""
        for name, entry in entries.items():
            first = self.index.setdefault(name, entry)
            if first is not entry and first.yaml_path is None:
                first.tags |= entry.tags

    def owns(self, entry: Any) -> bool:
        """True if lm-eval's entry comes from this folder."""
        own = self.index.get(entry.name)
        return own is not None and own.yaml_path == entry.yaml_path

    def config(self, entry: Any) -> dict[str, Any]:
        """The judged values of an entry of this folder. Raises TaskError if they cannot be used, or name code that is
        not allowed."""
        config = read_config(entry.yaml_path)
        if not self.allow_code:
            refuse_code(config, entry.yaml_path)
        check = check_group if "group" in config and not isinstance(config.get("task"), str) else check_config
        check(config, entry.yaml_path)
        return config

    def fault(self) -> str:
        """What is wrong with the files that could not be read, for the message about an unknown name."""
        if not self.faults:
            return ""
        more = f" (and {len(self.faults) - 1} more files)" if len(self.faults) > 1 else ""
        return f"; a file of {self.folder} cannot be read: {next(iter(self.faults.values()))}{more}"


def code_of(config: Mapping[str, Any]) -> dict[str, str]:
    """The code that a task file names: each Python file with its SHA-256, and each installed module."""
    code = {}
    for function in functions(config):
        file = function.file
        code[file.name if file else function.name] = hashlib.sha256(file.read_bytes()).hexdigest() if file else ""
    for entry in config.get("metric_list") or ():
        if isinstance(entry, dict) and entry.get("hf_evaluate"):
            code[f"evaluate:{entry.get('metric')}"] = ""
    return dict(sorted(code.items()))


def task_factory(folder: TaskFolder | None, *, allow_code: bool) -> Any:
    """lm-eval's factory of tasks, which judges each config before it is used and seeds each task.

    folder: of the user's task files. A task has its generators as ``randomness`` and its code as ``code``.
    """
    from lm_eval.tasks._factory import TaskFactory
    from lm_eval.tasks._index import Entry

    class JudgingFactory(TaskFactory):  # type: ignore[misc]
        """Builds tasks from judged configs. code: of the config that was loaded last."""

        code: Mapping[str, str] = {}

        def _load_full_config(self, entry: Any, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
            own: dict[str, str] = {}
            if folder is not None and folder.owns(entry):
                config = folder.config(entry)
                if allow_code:
                    own = code_of(config)
                else:  # built from what was judged
                    entry = Entry(name=entry.name, kind=entry.kind, yaml_path=None, cfg=config, tags=entry.tags)
            full: dict[str, Any] = super()._load_full_config(entry, overrides)
            if not allow_code:
                refuse_evaluate(full, entry.name)
            self.code = code_of(full) | own
            return full

        def _build_task(self, entry: Any, overrides: dict[str, Any] | None) -> Any:
            randomness = TaskRandomness()
            with randomness.running():
                task = super()._build_task(entry, overrides)
                for _ in range(_NAME_READINGS):
                    str(task.task_name)
            task.randomness, task.code = randomness, self.code
            return task

        def _build_group_members(self, member_list: list[Any], *args: Any) -> list[Any]:
            of_group, members = self.code, []
            for member in member_list:
                randomness = TaskRandomness()
                with randomness.running():  # for a task that is written inside the group's file
                    built = super()._build_group_members([member], *args)
                for task in built:
                    if not hasattr(task, "randomness"):
                        task.randomness, task.code = randomness, {}
                    task.code = {**of_group, **task.code}
                members += built
            return members

    return JudgingFactory()
