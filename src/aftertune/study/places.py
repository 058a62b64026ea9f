"""Owns where the data files of a study lie: relative paths are taken from the study's own folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aftertune.study import DataSpec, ReplaySpec, TaskSpec

#: Endings of data files; a name without one may be a data set of the Hub.
DATA_FILES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
#: Data sets of the Hub that have a short name here.
HUB_NAMES = {"alpaca": "tatsu-lab/alpaca", "alpaca-cleaned": "yahma/alpaca-cleaned"}


def anchored(path: Path | None, folder: Path) -> Path | None:
    """The path, taken from ``folder`` where it is relative."""
    return None if path is None else (path if path.is_absolute() else folder / path)


def on_hub(path: Path) -> bool:
    """Whether a data source that is no file here is named as a data set of the Hub is: ``alpaca``, ``owner/name``."""
    return path.suffix not in DATA_FILES and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(path)) is not None


def _data_file(path: Path | None, folder: Path) -> Path | None:
    """As `anchored`, but a data set of the Hub keeps its name."""
    return path if path is not None and on_hub(path) and not (folder / path).exists() else anchored(path, folder)


def anchored_task(task: TaskSpec, folder: Path) -> TaskSpec:
    """The task with every path taken from ``folder``."""
    update: dict[str, Any] = {"data": anchored(task.data, folder)}
    if task.target is not None:
        update["target"] = task.target.model_copy(update={
            "file": anchored(task.target.file, folder), "shots_file": anchored(task.target.shots_file, folder)})
    return task.model_copy(update=update)


def anchored_data(data: DataSpec, folder: Path) -> DataSpec:
    """The training data with every path taken from ``folder``."""
    return data.model_copy(update={"file": _data_file(data.file, folder),
                                   "held_out_file": _data_file(data.held_out_file, folder)})


def anchored_replay(replay: ReplaySpec | None, folder: Path) -> ReplaySpec | None:
    """What is replayed with every path taken from ``folder``."""
    if replay is None:
        return None
    data = replay.data.model_copy(update={"file": _data_file(replay.data.file, folder)})
    return replay.model_copy(update={"data": data})
