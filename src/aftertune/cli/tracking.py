"""Implements ``--track`` of `eval`, `tune` and `run`, and ``export --to``: results for experiment trackers.

    aftertune tune Qwen/Qwen2.5-0.5B --data orders.jsonl --track tensorboard
    aftertune export orders --to mlflow
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from aftertune.cli.console import emit
from aftertune.cli.options import comma_separated
from aftertune.errors import AftertuneError, AmbiguousName, InputError, ResourceError
from aftertune.redaction import redact

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

#: How the line of a tracker that failed begins.
_WARNING = "warning: "

Track = Annotated[list[str] | None, typer.Option(
    "--track", help="Experiment tracker that gets the results: mlflow, wandb, trackio or tensorboard. Repeatable.")]


def chosen_trackers(texts: Sequence[str] | None, option: str = "--track") -> tuple[str, ...]:
    """The trackers of an option, which are installed. Raises InputError and ResourceError."""
    if not texts:
        return ()
    from aftertune.tracking import check_installed, parse_names

    names = parse_names([name for text in texts for name in comma_separated(text)], option)
    check_installed(names)
    return names


def hand_over(names: Sequence[str], ids: Sequence[str], ledger: Ledger) -> list[str]:
    """Hand entries of the ledger to trackers, and print where they are on stderr. A failure is a warning."""
    lines = []
    for line in _handed(names, ids, ledger):
        lines.append(line)
        typer.echo(line, err=True)
    return lines


def _handed(names: Sequence[str], ids: Sequence[str], ledger: Ledger) -> Iterator[str]:
    """Hand entries over; a line for each tracker, a warning where one failed."""
    if not names or not ids:
        return
    from aftertune.tracking import track, tracked_runs

    try:
        yield from track(names, tracked_runs(ledger, ids))
    except Exception as error:  # what is handed over never fails the run that made it
        yield f"{_WARNING}{', '.join(names)}: {redact(str(error)) or type(error).__name__}"


@contextlib.contextmanager
def tracked_study(names: Sequence[str], study: str) -> Iterator[None]:
    """Hand the finished cells of a study to trackers when the block ends, also when it fails."""
    try:
        yield
    finally:
        if names:
            from aftertune.ledger import Ledger

            with contextlib.suppress(AftertuneError), Ledger(create=False) as ledger:
                hand_over(names, study_entries(ledger, study), ledger)


def study_entries(ledger: Ledger, study: str) -> list[str]:
    """Ids of the finished evaluations and tunings of a study, in the order of its cells."""
    return [c.ref for c in ledger.cells(study) if c.ref and c.status == "done"]


def export_runs(word: str, to: Sequence[str], as_json: bool) -> None:
    """Hand an evaluation, a tuning, a comparison, a study or everything to trackers. ResourceError where one failed:
    here this is the whole job."""
    from aftertune.ledger import Ledger

    names = chosen_trackers(to, "--to")
    with Ledger(create=False) as ledger:
        ids = _entries(ledger, word)
        if not ids:
            raise InputError(f"{word} has no finished evaluation or fine-tune to hand over; `aftertune runs` lists "
                             "what the ledger has")
        lines = list(_handed(names, ids, ledger))
    failed = [line.removeprefix(_WARNING) for line in lines if line.startswith(_WARNING)]
    if as_json:
        emit({"handed_over": lines})
    else:
        for line in lines:
            if not line.startswith(_WARNING):
                typer.echo(line)
    if failed:
        raise ResourceError("; ".join(failed))


def _entries(ledger: Ledger, word: str) -> list[str]:
    """Ids of the evaluations and tunings that a word stands for. Raises InputError."""
    if word == "all":
        return [t.id for t in ledger.tunings()] + [e.id for e in ledger.evaluations()]
    if word in {s.name for s in ledger.studies()}:
        return study_entries(ledger, word)
    found: list[str] = []
    first: InputError | None = None
    for find in (ledger.find_evaluation, ledger.find_tuning):  # a fine-tune and its evaluation have the same name
        try:
            found.append(find(word).id)
        except AmbiguousName:
            raise
        except InputError as error:
            first = first or error
    if not found:
        try:
            comparison = ledger.find_comparison(word)
        except InputError:
            assert first is not None
            raise first from None
        found = [comparison.base, comparison.tuned]
    return found
