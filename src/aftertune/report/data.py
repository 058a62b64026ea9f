"""What a fine-tune's data came to, as (label, value) pairs: what was left out, what is learned, what evaluations share.

    data_facts(tuning.counts, tuning.overlap)
        [("Data Rows", "999: 892 trained on, 93 held out; left out: 14 duplicates"), ("Data Learned", "135,902 …"), …]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from aftertune.report import format as fmt
from aftertune.report.names import task_title
from aftertune.values import Overlap

Counts = Mapping[str, Mapping[str, int]]

_USED = {"training": "trained on", "held_out": "held out", "validation": "for validation", "replayed": "replayed"}
_LEFT_OUT = {"duplicates": "duplicates", "alike": "duplicates but for case, spaces or Unicode form",
             "empty": "without a completion", "unreadable": "unreadable", "in_held_out_file":
             "with a prompt of the held-out file", "set_aside": "new or held out themselves", "not_drawn": "not drawn"}
_FILES = {"data": "Data Rows", "replay_data": "Data Rows of Replay"}
_SIDES = {"training": "Data Learned", "replay": "Data Learned of Replay", "held out": "Data Measured",
          "validation": "Data Validated"}
#: So many indices of items are named.
NAMED = 12


def data_facts(counts: Counts, overlap: Sequence[Overlap]) -> list[tuple[str, str]]:
    """A line for each file, each side and each task that was looked for; nothing for a tuning without counts."""
    files = [(label, _rows(counts[name])) for name, label in _FILES.items() if name in counts]
    sides = [(label, _learned(counts[name])) for name, label in _SIDES.items() if name in counts]
    return [*files, *sides, *((f"Data Overlap, {task_title(o.task)}", overlap_text(o)) for o in overlap)]


def overlap_text(overlap: Overlap) -> str:
    """How many of a task's items the training data shows, how, and which."""
    count = len(overlap.items)
    if not count:
        return f"none of {fmt.count(overlap.n)} items is in the training data, exactly or with 13 words in a row"
    named = ", ".join(map(str, overlap.items[:NAMED])) + (" …" if count > NAMED else "")
    first = next(iter(overlap.found), None)
    where = f"; the first in {first['in']}: {fmt.visible(str(first['words']), 80)!r}" if first else ""
    return (f"{fmt.count(count)} of {fmt.count(overlap.n)} items are in the training data "
            f"({len(overlap.exact)} exactly, {len(overlap.ngram)} with 13 words in a row): {named}{where}")


def _rows(found: Mapping[str, int]) -> str:
    used = ", ".join(_told(found, _USED))
    left = ", ".join(_told(found, _LEFT_OUT)) or "nothing"
    return f"{fmt.count(found['rows'])}: {used}; left out: {left}"


def _learned(side: Mapping[str, int]) -> str:
    share = fmt.percent(side["learned"] / max(side["tokens"], 1))
    learned, tokens, rows = (fmt.count(side[name]) for name in ("learned", "tokens", "rows"))
    text = f"{learned} of {tokens} tokens ({share}) in {rows} rows"
    more = {"cut": "cut at the end, being too long", "masked": "left out, their prompt filling the length"}
    return "; ".join([text, *_told(side, more)])


def _told(found: Mapping[str, int], words: Mapping[str, str]) -> Iterator[str]:
    return (f"{fmt.count(found[name])} {text}" for name, text in words.items() if found.get(name))
