"""Hands results to experiment trackers: MLflow, Weights & Biases, Trackio and TensorBoard.

    check_installed(("mlflow",))                       before a run: ResourceError that names the extra
    for line in track(("mlflow",), runs): …            where each run is, or a warning

A tracker shows what the ledger has: parameters, curves, scores with their intervals, verdicts as tags, page and card as
files. An entry of the ledger is one run, and the runs of a study are one group. A tracker that fails is a warning and
nothing else: the results are in the ledger, and `aftertune export ID --to NAME` hands them over later.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from importlib.util import find_spec

from aftertune.errors import InputError, ResourceError, nearest
from aftertune.redaction import redact
from aftertune.tracking.runs import TrackedRun, tracked_runs
from aftertune.tracking.trackers import TRACKERS

__all__ = ["TRACKERS", "TrackedRun", "check_installed", "parse_names", "track", "tracked_runs"]


def parse_names(names: Sequence[str], option: str) -> tuple[str, ...]:
    """The trackers that an option names, each once. Raises InputError for an unknown name."""
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"{option} {name!r}: allowed are {', '.join(TRACKERS)}{nearest(name, list(TRACKERS))}")
    return tuple(dict.fromkeys(names))


def check_installed(names: Sequence[str]) -> None:
    """ResourceError, before any work, where the package of a tracker is missing."""
    for name in names:
        if find_spec(TRACKERS[name].package) is None:
            raise ResourceError(f"{name} is not installed; pip install 'aftertune[{name}]', or leave the tracker out "
                                f"and hand the results over later with `aftertune export ID --to {name}`")


def track(names: Sequence[str], runs: Sequence[TrackedRun]) -> Iterator[str]:
    """Hand the runs to each tracker; gives a line for each of them. What a tracker prints is not shown."""
    for name in names:
        where: dict[str, int] = {}
        try:
            for run in runs:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    place = TRACKERS[name].log(run)
                where[place] = where.get(place, 0) + 1
        except (Exception, SystemExit) as error:  # a tracker never fails the run
            detail = redact(" ".join(str(error).split()))[:300] or type(error).__name__
            yield (f"warning: {name}: {detail}; the results are in the ledger, and `aftertune export ID --to {name}` "
                   "hands them over again")
        for place, count in where.items():
            yield f"{name}: {count} {'run' if count == 1 else 'runs'} in {redact(place)}"
