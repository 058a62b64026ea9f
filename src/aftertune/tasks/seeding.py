"""Seeds the global random generators for each task, so that a task that shuffles has the same items in every process.

    source = TaskRandomness()
    with source.running():               from lm-eval's seeds
        task = build(…)
    with source.running():               continues where the block before ended
        task.build_all_requests(…)

lm-eval seeds once, before it loads the first task. So its items depend on the tasks that were loaded before. Here each
task starts from the same seeds, and has the items that lm-eval gives it when it is evaluated alone. After each block
the generators are again in the state in which the caller left them.

A task that shuffles in ``Dataset.map`` has a second problem: `datasets` keeps the result in its cache folder, under a
name that says nothing about the seeds, and a result from the cache leaves the generators where they were. Inside
`running` the name includes the states of the generators, and their states after the work are kept with the result.
"""

from __future__ import annotations

import contextlib
import functools
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aftertune.sources.cache import write_atomic
from aftertune.values import digest

#: lm-eval's default seeds (``lm_eval.config.evaluate_config.DEFAULT_SEED``): of random, NumPy and torch.
PYTHON_SEED, NUMPY_SEED, TORCH_SEED = 0, 1234, 1234


@dataclass(frozen=True)
class RandomStates:
    """The states of Python's, NumPy's and torch's global generators. torch: None where it is not imported."""

    python: Any
    numpy: Any
    torch: Any

    @classmethod
    def now(cls) -> RandomStates:
        torch = sys.modules.get("torch")
        return cls(random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state() if torch else None)

    def restore(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        if self.torch is not None:
            sys.modules["torch"].set_rng_state(self.torch)

    def stored(self) -> str:
        """The states of Python's and NumPy's generators as JSON."""
        key = self.numpy["state"]["key"].tolist()
        return json.dumps([self.python, {**self.numpy, "state": {**self.numpy["state"], "key": key}}])

    def load(self, text: str) -> RandomStates:
        """These states with Python's and NumPy's from `stored`."""
        (version, numbers, gauss), state = json.loads(text)
        state["state"]["key"] = np.array(state["state"]["key"], dtype=np.uint32)
        return RandomStates((version, tuple(numbers), gauss), state, self.torch)


def seed() -> None:
    """Seed the global generators as lm-eval does before it loads a task."""
    random.seed(PYTHON_SEED)
    np.random.seed(NUMPY_SEED)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(TORCH_SEED)


@contextlib.contextmanager
def unchanged_randomness() -> Iterator[None]:
    """Bring the states of the generators back after the block."""
    before = RandomStates.now()
    try:
        yield
    finally:
        before.restore()


class TaskRandomness:
    """The random generators of one task, and the results of ``Dataset.map`` that it has made or read.

    states: where the generators were at the end of the last block; paths: fingerprint -> file of a result.
    """

    def __init__(self) -> None:
        self.states: RandomStates | None = None
        self.paths: dict[str, Path] = {}

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the block with this task's generators. The caller's states come back afterwards."""
        with unchanged_randomness(), self._mapping():
            if self.states is None:
                seed()
            else:
                self.states.restore()
            try:
                yield
            finally:
                self.states = RandomStates.now()

    @contextlib.contextmanager
    def _mapping(self) -> Iterator[None]:
        """Let ``Dataset.map`` use this task's files inside the block."""
        from datasets import Dataset

        path_of, map_of = Dataset._get_cache_file_path, Dataset.map

        def cache_file_path(dataset: Any, fingerprint: str) -> str:
            default = Path(path_of(dataset, fingerprint))
            if fingerprint not in default.name:  # caching is off, or the data set is in memory
                return str(default)
            return str(self._path(default, fingerprint))

        @functools.wraps(map_of)
        def mapped(dataset: Any, *args: Any, **kwargs: Any) -> Any:
            known = set(self.paths)
            result = map_of(dataset, *args, **kwargs)
            for fingerprint in self.paths.keys() - known:
                _keep_states(self.paths[fingerprint])
            return result

        Dataset._get_cache_file_path, Dataset.map = cache_file_path, mapped
        try:
            yield
        finally:
            Dataset._get_cache_file_path, Dataset.map = path_of, map_of

    def _path(self, default: Path, fingerprint: str) -> Path:
        """The file for a result. Its name includes the states with which the task made the result first."""
        if fingerprint not in self.paths:
            key = digest([fingerprint, RandomStates.now().stored()])[:32]
            path = default.with_name(f"cache-{key}.arrow")
            if path.exists() and not _states_file(path).exists():
                path.unlink()  # its writer was interrupted
            self.paths[fingerprint] = path
        return self.paths[fingerprint]


def _states_file(path: Path) -> Path:
    return path.with_suffix(".random.json")


def _keep_states(path: Path) -> None:
    """Store the states after a result was made, or bring them back for a result from the cache."""
    file, now = _states_file(path), RandomStates.now()
    if file.exists():
        now.load(file.read_text(encoding="utf-8")).restore()
    elif path.exists():
        with contextlib.suppress(OSError):
            write_atomic(file, now.stored())
