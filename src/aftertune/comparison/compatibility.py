"""Checks whether two evaluations are comparable, and lists the settings in which they differ.

    differences(base, tuned)     (Difference("hellaswag.num_fewshot", left="0", right="5", blocking=True),)

A difference blocks the comparison if it is in the task version, metrics, items, few-shot examples, prompts, chat
template, system instruction or generation settings, or in a limit or sample that leads to other items. Dtype, device,
engine, quantization, library versions and tasks of only one evaluation are listed, but do not block. Different items do
not block a comparison on the common items.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from aftertune.values import Difference, Evaluation, TaskSettings, canonical, digest

#: Settings that must agree. Each also changes the prompts, so prompts are compared only where these agree.
_SETTINGS = ("version", "primary", "num_fewshot", "chat_template", "template_date", "template_arguments",
             "system_instruction", "fewshot_as_multiturn")
_LIBRARIES = ("torch", "transformers", "lm-eval")
_ITEM_FIELDS = ("items", "limit", "sample", "sample_seed")
#: Settings that the chat template of a server may change (`aftertune check-deploy`).
OF_TEMPLATE = frozenset({"chat_template", "template_date", "template_arguments", "prompts"})
#: Differences that an error message lists.
_LISTED = 8


class _TaskDifference(NamedTuple):
    """A difference within one task."""

    field: str
    left: str
    right: str
    blocking: bool = True


def differences(base: Evaluation, tuned: Evaluation) -> tuple[Difference, ...]:
    """The settings in which two evaluations differ, blocking ones first. Items are compared by their digest."""
    return find_differences(base, tuned, {})


def find_differences(left: Evaluation, right: Evaluation, counts: Mapping[str, tuple[int, int, int]], *,
                     common: bool = False, tasks: Collection[str] = ()) -> tuple[Difference, ...]:
    """As `differences`. counts: task -> number of answered items of the left, of the right, and of both.

    common: different items do not block where some are shared. tasks: only these tasks, or those of these groups.
    """
    merged: dict[_TaskDifference, list[str]] = {}
    ours, others = ([t for t in e.tasks if not tasks or {t.task, *t.groups} & set(tasks)] for e in (left, right))
    for mine in ours:
        theirs = right.task(mine.task)
        if theirs is not None:
            for difference in _task_differences(mine, theirs, counts.get(mine.task), common=common):
                merged.setdefault(difference, []).append(mine.task)
    result = [Difference(field=_field_name(d.field, names), left=d.left, right=d.right, blocking=d.blocking)
              for d, names in merged.items()]
    result += [Difference(field=f"task {t.task}", left="evaluated", right="absent", blocking=False)
               for t in ours if right.task(t.task) is None]
    result += [Difference(field=f"task {t.task}", left="absent", right="evaluated", blocking=False)
               for t in others if left.task(t.task) is None]
    result += [Difference(field=field, left=a, right=b, blocking=False)
               for field, a, b in _conditions(left, right) if a != b]
    return tuple(sorted(result, key=lambda d: not d.blocking))


def refusal_message(left: Evaluation, right: Evaluation, blocking: Sequence[Difference], *, forcible: bool) -> str:
    """The error message of a refused comparison, in one line. forcible: it can be forced, as some items are shared."""
    listed = [f"{d.field} ({d.left} | {d.right})" for d in blocking[:_LISTED]]
    more = f" and {len(blocking) - _LISTED} more" if len(blocking) > _LISTED else ""
    reason = f"they differ in {'; '.join(listed)}{more}" if listed else "they share no answered item"
    remedy = "run both under the same settings, or force it (--force)"
    if listed and all(setting_of(d) in _ITEM_FIELDS for d in blocking):
        remedy = "run both on the same items, or compare the items that both have (--common)"
    if not forcible:
        remedy = "evaluate both on the same items"
    return f"{left.name} and {right.name} cannot be compared: {reason}; {remedy}"


def setting_of(difference: Difference) -> str:
    """The setting that differs, without the tasks in which it does."""
    return difference.field.split(" ")[0].rpartition(".")[2]


def _field_name(field: str, tasks: Sequence[str]) -> str:
    """The name of a field that differs in the same way in one or more tasks."""
    if len(tasks) == 1:
        return f"{tasks[0]}.{field}"
    more = f" and {len(tasks) - 3} more" if len(tasks) > 3 else ""
    return f"{field} ({', '.join(tasks[:3])}{more})"


def _task_differences(mine: TaskSettings, theirs: TaskSettings, counts: tuple[int, int, int] | None, *,
                      common: bool) -> Iterator[_TaskDifference]:
    yield from _item_differences(mine, theirs, counts, common=common)
    differing = [f for f in _SETTINGS if getattr(mine, f) != getattr(theirs, f)]
    for field in differing:
        yield _TaskDifference(field, _short(getattr(mine, field)), _short(getattr(theirs, field)))
    if mine.higher_is_better.keys() != theirs.higher_is_better.keys():
        yield _TaskDifference("metrics", ", ".join(mine.higher_is_better), ", ".join(theirs.higher_is_better))
    if mine.scorers != theirs.scorers:
        left, right = (", ".join(s.scorers) or "those of its metrics" for s in (mine, theirs))
        yield _TaskDifference("scorers", left, right)
    for key in sorted({*mine.generation, *theirs.generation}):
        a, b = mine.generation.get(key), theirs.generation.get(key)
        if canonical(a) != canonical(b):
            yield _TaskDifference(f"generation.{key}", _short(a), _short(b))
    if mine.code and theirs.code and mine.code != theirs.code:
        changed = sorted(name for name in {*mine.code, *theirs.code} if mine.code.get(name) != theirs.code.get(name))
        left, right = (_short(", ".join(f"{n} {s.code.get(n, 'absent')[:12]}" for n in changed))
                       for s in (mine, theirs))
        yield _TaskDifference("code", left, right)
    if mine.prompts != theirs.prompts and mine.items == theirs.items and not differing:
        yield _TaskDifference("prompts", mine.prompts[:12], theirs.prompts[:12])
    if None not in (seeds := (mine.draw_seed, theirs.draw_seed)) and mine.draw_seed != theirs.draw_seed:
        yield _TaskDifference("draw_seed", str(seeds[0]), str(seeds[1]))  # both stopped early, in other random orders
    if common and mine.items != theirs.items and mine.num_fewshot and not differing:
        examples = f"{mine.num_fewshot} examples, drawn in the order of its items"
        yield _TaskDifference("few-shot examples of the common items may differ", examples, examples, blocking=False)


def _item_differences(mine: TaskSettings, theirs: TaskSettings, counts: tuple[int, int, int] | None, *,
                      common: bool) -> Iterator[_TaskDifference]:
    """Differences in the items. A limit on one side does not block where the items are the same."""
    other_items = mine.items != theirs.items
    blocking = other_items and not (common and counts is not None and counts[2] > 0)
    if counts is not None and (other_items or counts[2] < max(counts[:2])):
        n, m, shared = counts
        order = ", in another order" if n == m == shared else ""
        yield _TaskDifference("items", f"{n} items", f"{m} items, {shared} shared{order}", not common or not shared)
    elif other_items:
        yield _TaskDifference("items", f"{mine.n} items {mine.items[:12]}", f"{theirs.n} items {theirs.items[:12]}")
    for field in ("limit", "sample", "sample_seed"):
        a, b = getattr(mine, field), getattr(theirs, field)
        if a != b:
            yield _TaskDifference(field, _short(a), _short(b), blocking=blocking)


def _short(value: Any) -> str:
    """A setting in one line; of a long text (a chat template) the start and the digest."""
    text = value if isinstance(value, str) else "none" if value is None else canonical(value)
    flat = " ".join(text.split())
    return flat if len(flat) <= 40 else f"{flat[:20]}… sha256 {digest(text)[:12]}"


def _generates(value: Evaluation) -> bool:
    return any(task.output_type == "generate_until" for task in value.tasks)


def _conditions(left: Evaluation, right: Evaluation) -> Iterator[tuple[str, str, str]]:
    """Conditions that may change a score slightly, but do not block: (field, left, right), equal ones included."""
    for field in ("dtype", "device", "engine"):
        yield field, getattr(left, field), getattr(right, field)
    yield "quantization", left.model.quantization or "none", right.model.quantization or "none"
    yield "code of the model", (left.code_digest or "none")[:12], (right.code_digest or "none")[:12]
    if _generates(left) and _generates(right):
        for name in sorted({*left.defaults, *right.defaults}):
            yield f"generation_config.{name}", _short(left.defaults.get(name)), _short(right.defaults.get(name))
    ours, theirs = (dict(e.provenance.versions) if e.provenance else {} for e in (left, right))
    for library in _LIBRARIES:
        a, b = (v.get(library) or v.get(library.replace("-", "_")) for v in (ours, theirs))
        if a and b:
            yield f"{library} version", a, b
