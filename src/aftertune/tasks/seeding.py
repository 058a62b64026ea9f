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
`running` the name includes the states of the generators, and their states after the work are kept with the result. A
result of lm-eval's own code over a data set in memory is used again if it drew no random numbers.
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
from aftertune.study import TaskSpec
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

    def equal(self, other: RandomStates) -> bool:
        """Nothing was drawn between the two."""
        if self.torch is None or other.torch is None:
            return self.torch is other.torch and self.stored() == other.stored()
        return bool((self.torch == other.torch).all()) and self.stored() == other.stored()

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
            key = _memory_key(dataset, args, kwargs)
            if key in _IN_MEMORY:
                return _IN_MEMORY[key][1]
            known, before = set(self.paths), RandomStates.now()
            result = map_of(dataset, *args, **kwargs)
            for fingerprint in self.paths.keys() - known:
                _keep_states(self.paths[fingerprint])
            if key is not None and before.equal(RandomStates.now()):
                _keep_in_memory(key, dataset, result)
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


#: The last results of maps over data sets in memory: (id of the data set, function) -> (data set, result).
_IN_MEMORY: dict[tuple[int, str], tuple[Any, Any]] = {}
MOST_IN_MEMORY = 8


def _memory_key(dataset: Any, args: Any, kwargs: Any) -> tuple[int, str] | None:
    """Names the result of a map over a data set in memory by a function of lm-eval's own tasks, else None.

    lm-eval processes a split for the items, and again for the examples, in each evaluation; `datasets` keeps only the
    results of data sets in files. The code of a user's task is run each time: it may have changed.
    """
    import lm_eval
    from datasets.fingerprint import Hasher

    code = getattr(args[0] if args else kwargs.get("function"), "__code__", None)
    if dataset.cache_files or code is None or Path(lm_eval.__file__).parent not in Path(code.co_filename).parents:
        return None
    try:
        return id(dataset), Hasher.hash([args, kwargs])
    except Exception:  # pickling may raise anything
        return None


def _keep_in_memory(key: tuple[int, str], dataset: Any, result: Any) -> None:
    """Keep a result that drew no random number, with its data set, whose id is then no other's."""
    _IN_MEMORY[key] = dataset, result
    while len(_IN_MEMORY) > MOST_IN_MEMORY:
        del _IN_MEMORY[next(iter(_IN_MEMORY))]


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


def sample_indices(total: int, spec: TaskSpec) -> set[int] | None:
    """Indices of a seeded random sample; None if the spec has no sample or one of all items."""
    if spec.sample is None or spec.sample >= total:
        return None
    return set(random.Random(spec.sample_seed).sample(range(total), spec.sample))
