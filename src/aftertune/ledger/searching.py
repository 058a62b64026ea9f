"""Finds the entries of a ledger by words, and lists the scores of its evaluations.

    ledger.find("tuned")                              one evaluation, tuning or comparison
    ledger.search("orders", kind="tuning")            all that have a word in their id, name, model or tasks
    ledger.scores(task="hellaswag").to_frame()        one line for each score
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

from aftertune.actions import Shown, perform
from aftertune.errors import AmbiguousName, InputError
from aftertune.ledger.evaluations import Evaluations
from aftertune.ledger.records import Comparisons, Tunings
from aftertune.values import Comparison, Evaluation, Tuning

EntryKind = Literal["evaluation", "tuning", "comparison"]
Entry = Evaluation | Tuning | Comparison


class Entries(Shown, Sequence[Entry]):
    """Entries of a ledger, the newest last. A notebook shows them as a table."""

    __slots__ = ("entries",)

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = tuple(entries)

    def __getitem__(self, index: Any) -> Any:
        return Entries(self.entries[index]) if isinstance(index, slice) else self.entries[index]

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        lines = [f"  {entry.id} {title_of(entry)}" for entry in self.entries[-20:]]
        more = f"  … and {len(self) - 20} before them\n" if len(self) > 20 else ""
        return f"{len(self)} entries\n{more}" + "\n".join(lines)

    def to_frame(self) -> Any:
        """A pandas DataFrame with the columns id, kind, name, status and what."""
        return perform("to_frame", self)


def title_of(entry: Entry) -> str:
    """The name of an entry, or what a comparison compares."""
    return f"{entry.tuned_name} against {entry.base_name}" if isinstance(entry, Comparison) else entry.name


def _words(entry: Entry) -> Iterator[str]:
    """The texts of an entry that a search looks at."""
    yield from (entry.id, title_of(entry))
    if isinstance(entry, Comparison):
        yield from (row.task for row in entry.rows)
        return
    model = entry.model if isinstance(entry, Evaluation) else entry.base
    yield from (model.source, model.adapter_source or "")
    if isinstance(entry, Evaluation):
        yield from (name for task in entry.tasks for name in (task.task, *task.groups))
    else:
        yield from (entry.method, entry.data_source)


class Search(Evaluations, Tunings, Comparisons):
    """Searches over evaluations, tunings and comparisons."""

    def find(self, word: str) -> Entry:
        """The evaluation, tuning or comparison of an id or name.

        Raises InputError if there is none, and AmbiguousName if several evaluations, or several tunings, have the name.
        """
        order = {"t-": 1, "c-": 2}.get(word[:2], 0)
        searches: list[Any] = [self.find_evaluation, self.find_tuning, self.find_comparison]
        first: InputError | None = None
        for search in (searches[order], *(s for i, s in enumerate(searches) if i != order)):
            try:
                entry: Entry = search(word)
                return entry
            except AmbiguousName:
                raise
            except InputError as error:
                first = first or error
        assert first is not None
        raise first

    def search(self, text: str = "", *, kind: EntryKind | None = None, status: str | None = None) -> Entries:
        """The entries that have every word of ``text`` in their id, name, model, method, data or tasks, in any case.

        kind: only "evaluation", "tuning" or "comparison". status: only "done", "running" or "failed"; comparisons have
        none. Raises InputError for another kind.
        """
        if kind is not None and kind not in get_args(EntryKind):
            raise InputError(f"kind is {kind!r}; allowed are {', '.join(map(repr, get_args(EntryKind)))} and None")
        lists: dict[str, Any] = {"evaluation": self.evaluations, "tuning": self.tunings, "comparison": self.comparisons}
        entries = [entry for name, listed in lists.items() if kind in (None, name) for entry in listed()]
        words = text.lower().split()
        return Entries([e for e in entries if (status is None or getattr(e, "status", "done") == status)
                        and all(any(w in part.lower() for part in _words(e)) for w in words)])

    def scores(self, text: str = "", *, task: str | None = None) -> Any:
        """The scores of the finished evaluations as a table, which has ``to_frame()``.

        text: only those that `search` finds. task: only the scores of this task or group.
        """
        found = [e for e in self.search(text, kind="evaluation", status="done") if isinstance(e, Evaluation)]
        return perform("scores", self, found, task)

    def __repr__(self) -> str:
        evaluations, tunings, comparisons = self.evaluations(), self.tunings(), self.comparisons()
        unfinished = sum(e.status != "done" for e in evaluations)
        note = f" ({unfinished} not finished)" if unfinished else ""
        return (f"<Ledger {self.database.place}: {len(evaluations)} evaluations{note}, {len(tunings)} tunings, "
                f"{len(comparisons)} comparisons>")
