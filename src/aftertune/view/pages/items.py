"""The explorer of items: what a fine-tune lost and gained, one item after another, with both answers side by side.

    /compare/BASE/TUNED?task=hellaswag&show=lost&sort=margin              the list, with the margins to brush
    /compare/BASE/TUNED?task=hellaswag&show=lost&item=hellaswag:12        one item, the next and the one before
    /items/BASE/TUNED/margins?task=hellaswag                              the margins of all items, for the chart
    /items/BASE/TUNED/export?task=hellaswag&show=lost&as=rows             the selection as JSONL, or as training rows

The selection is in the address, so that it can be shared and kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from aftertune.catalog import MetricKey
from aftertune.comparison.paired_items import FAILURES, KINDS, PairedItem, PairedItems, paired_items
from aftertune.errors import InputError, visible_characters
from aftertune.ledger import Ledger
from aftertune.redaction import escape_hidden, redact_known
from aftertune.report import formatting as fmt
from aftertune.report.changed_items import score_unit
from aftertune.report.names import metric_title, task_title
from aftertune.values import Comparison, Evaluation
from aftertune.view.inputs import Inputs
from aftertune.view.item_texts import choice_bars, generated_texts
from aftertune.view.rendering import ViewContext, context_of, render

ItemSort = Literal["index", "margin", "base", "change"]
#: Value of `show` in an address -> kind of item.
SHOWN = {kind.replace(" ", "-"): kind for kind in KINDS}
FORMS = {name.replace(" ", "-"): name for name in FAILURES}
SORTS = {"index": "order of the task", "margin": "margin of the tuned model", "base": "margin of the base",
         "change": "change of the margin"}
_PER_PAGE = 50
_OPENING = 160
#: Most items of a task that are listed.
MOST_ITEMS = 100_000
#: Most items of which the margins are sent to the chart.
MOST_POINTS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemSelection:
    """Which items, in which order. show: a key of `SHOWN`, "" for all; form: a key of `FORMS`, a failure of the tuned
    answer; base, tuned: bounds of the margins, None for none."""

    show: str = ""
    subject: str = ""
    form: str = ""
    words: str = ""
    base: tuple[float | None, float | None] = (None, None)
    tuned: tuple[float | None, float | None] = (None, None)
    sort: ItemSort = "index"
    descending: bool = False

    @classmethod
    def of(cls, inputs: Inputs) -> ItemSelection:
        """The selection of an address."""
        sort: Any = inputs.word("sort", get_args(ItemSort), "index")
        return cls(show=inputs.word("show", {*SHOWN, "all"}, "all").replace("all", ""), subject=inputs.text("subject"),
                   form=inputs.word("form", FORMS), words=inputs.text("q"),
                   base=(inputs.decimal("bmin"), inputs.decimal("bmax")),
                   tuned=(inputs.decimal("tmin"), inputs.decimal("tmax")), sort=sort,
                   descending=inputs.word("order", ("asc", "desc"), "asc") == "desc")

    @property
    def brushed(self) -> bool:
        """Whether margins are bounded."""
        return any(v is not None for v in (*self.base, *self.tuned))

    def choose(self, items: Sequence[PairedItem]) -> list[PairedItem]:
        """The items of the selection in its order; those without a margin come last where it is sorted by one."""
        words = self.words.lower().split()
        chosen = [i for i in items if (not self.show or i.kind == SHOWN[self.show])
                  and (not self.subject or self.subject in (i.task, i.cluster))
                  and (not self.form or FORMS[self.form] in i.tuned_forms)
                  and (not self.brushed or self._has_margins(i))
                  and (not words or _has_words(i, words))]
        if self.sort == "index":
            return chosen[::-1] if self.descending else chosen
        key = _SORT_KEYS[self.sort]
        known = [i for i in chosen if i.margins is not None]
        known.sort(key=lambda i: key(i.margins or (0.0, 0.0)), reverse=self.descending)
        return [*known, *(i for i in chosen if i.margins is None)]

    def _has_margins(self, item: PairedItem) -> bool:
        return item.margins is not None and all(
            (low is None or value >= low) and (high is None or value <= high)
            for value, (low, high) in zip(item.margins, (self.base, self.tuned), strict=True))


_SORT_KEYS: dict[str, Callable[[tuple[float, float]], float]] = {
    "margin": lambda margins: margins[1], "base": lambda margins: margins[0],
    "change": lambda margins: margins[1] - margins[0]}


def _has_words(item: PairedItem, words: Sequence[str]) -> bool:
    texts = [text.lower() for text in item.texts]
    return all(any(word in text for text in texts) for word in words)


@dataclass(frozen=True, slots=True)
class ItemTask:
    """A task that the explorer can show. lost, gained: None where a metric is not right or wrong on each item."""

    name: str
    title: str
    lost: int | None
    gained: int | None


def task_choices(comparison: Comparison) -> list[ItemTask]:
    """The tasks and groups of a comparison whose items can be listed, those with the most lost items first."""
    rows = [r for r in comparison.rows if r.primary and not r.average_of and r.lost is not None]
    rows.sort(key=lambda r: -(r.lost or 0))
    return [ItemTask(r.task, task_title(r.task), r.lost, r.gained) for r in rows]


def chosen_metric(comparison: Comparison, task: str, tuned: Evaluation) -> str:
    """The ``metric,filter`` by which a comparison judges a task, where its caller chose another one than the task's
    primary metric; "" for the primary one."""
    primary = {t.primary for t in tuned.tasks if task in (t.task, *t.groups)}
    keys = (MetricKey.of(r.metric, r.filter) for r in comparison.rows
            if r.task == task and r.primary and not r.average_of)
    return next((key for key in keys if key not in primary), "")


def listed_items(context: ViewContext, ledger: Ledger, sides: tuple[Evaluation, Evaluation], task: str, *,
                 forced: bool, metric: str = "") -> PairedItems:
    """All items of a task with both answers; the last few tasks are remembered. forced: in spite of differences;
    metric: of `chosen_metric`."""
    base, tuned = sides
    count = sum(t.n if t.used is None else t.used for t in tuned.tasks if task in (t.task, *t.groups))
    if count > MOST_ITEMS:
        raise InputError(f"{task} has {count:,} items, and a page lists {MOST_ITEMS:,} at most; `aftertune flips "
                         f"{base.id} {tuned.id} --task {task}` lists those that changed")
    key = ("items", base.id, tuned.id, task, metric, forced, base.name, tuned.name)
    return context.memory.get(key, lambda: paired_items(base, tuned, task, ledger=ledger, metric=metric or None,
                                                        force=forced, common=forced))


def items_page(request: Request, sides: tuple[Evaluation, Evaluation], comparison: Comparison, ledger: Ledger
               ) -> Response:
    """The list, or one item where the address has one."""
    inputs = Inputs(request)
    tasks = task_choices(comparison)
    task = inputs.text("task") or (tasks[0].name if tasks else "")
    if not task:
        raise InputError("no task of this comparison is right or wrong on each item, so no item can be lost")
    forced, metric = comparison.forced or comparison.common, chosen_metric(comparison, task, sides[1])
    listed = listed_items(context_of(request), ledger, sides, task, forced=forced, metric=metric)
    of_comparison = {name: inputs.text(name) for name in ("id", "margin")}
    selection = ItemSelection.of(inputs)
    chosen = selection.choose(listed.items)
    values: dict[str, Any] = {
        "title": f"{task_title(task)}: {sides[1].name} against {sides[0].name}", "inputs": inputs, "listed": listed,
        "selection": selection, "chosen": len(chosen), "task": task, "tasks": tasks, "base": sides[0],
        "tuned": sides[1], "of_comparison": of_comparison, "metric": metric_text(listed), "shown": SHOWN,
        "counts": listed.counts,
        "paired_by": {"forced": 1 if forced else None, "metric": metric or None}}
    if wanted := inputs.text("item"):
        return render(request, "item.html", **values, **_one_item(listed, chosen, wanted))
    number = inputs.number("page", 1, least=1, most=100_000)
    rows = chosen[(number - 1) * _PER_PAGE:number * _PER_PAGE]
    return render(request, "items.html", **values, rows=[(i, place_of(i), opening(i)) for i in rows], page=number,
                  pages=max(1, -(-len(chosen) // _PER_PAGE)), sorts=SORTS, forms=FORMS, subjects=_subjects(listed),
                  with_margins=any(i.margins is not None for i in listed.items), points=min(len(listed.items),
                                                                                           MOST_POINTS))


def metric_text(listed: PairedItems) -> str:
    """The metric that says right or wrong."""
    keys = [MetricKey(key) for key in dict.fromkeys(listed.metrics.values())]
    return ", ".join(metric_title(key.metric, key.filter) for key in keys)


def place_of(item: PairedItem) -> str:
    """How an address names an item."""
    return f"{item.task}:{item.index}"


def opening(item: PairedItem) -> str:
    """The beginning of the question."""
    text = " ".join(item.question.split()) or "(no text)"
    return text if len(text) <= _OPENING else f"{text[:_OPENING - 1]}…"


def _subjects(listed: PairedItems) -> list[tuple[str, str]]:
    """(name, title) of the tasks of a group; none for a single task."""
    names = dict.fromkeys(i.task for i in listed.items)
    return [(name, task_title(name)) for name in names] if len(names) > 1 else []


# --- One item ---

def _one_item(listed: PairedItems, chosen: Sequence[PairedItem], wanted: str) -> dict[str, Any]:
    """What the page of one item shows; its neighbours are those of the selection."""
    task, _, index = wanted.rpartition(":")
    place = listed.find(task or listed.task, int(index)) if index.isascii() and index.isdigit() and len(index) < 12 \
        else None
    if place is None:
        raise InputError(f"{listed.task} has no item {wanted!r} that both models answered")
    item = listed.items[place]
    at = next((n for n, i in enumerate(chosen) if i is item), None)
    return {"item": item, "at": at, "position": None if at is None else at + 1, "place": place_of(item),
            "previous": place_of(chosen[at - 1]) if at else None,
            "next": place_of(chosen[at + 1]) if at is not None and at + 1 < len(chosen) else None,
            "bars": choice_bars(item), "texts": generated_texts(item, listed), "item_title": task_title(item.task),
            "unit": score_unit(MetricKey(listed.metrics[item.task]).metric), "margin": fmt.raw}


# --- Data and export ---

def _request_items(request: Request) -> tuple[PairedItems, ItemSelection]:
    """The items of an address and its selection."""
    from aftertune.comparison import find_finished

    inputs, context = Inputs(request), context_of(request)
    task = inputs.text("task")
    if not task:
        raise InputError("name a task: ?task=NAME")
    with context.ledgers.read() as ledger:
        base, tuned = (find_finished(request.path_params[side], ledger) for side in ("base", "tuned"))
        forced = inputs.flag("forced")
        return listed_items(context, ledger, (base, tuned), task, forced=forced,
                            metric=inputs.text("metric")), ItemSelection.of(inputs)


def margins(request: Request) -> Response:
    """The margins of all items, as arrays: base, tuned, kind and place of each."""
    listed, _ = _request_items(request)
    known = [(i, i.margins) for i in listed.items if i.margins is not None and all(map(math.isfinite, i.margins))]
    known = known[:MOST_POINTS]
    return JSONResponse({
        "base": [round(m[0], 5) for _, m in known], "tuned": [round(m[1], 5) for _, m in known],
        "kind": [KINDS.index(i.kind) for i, _ in known], "kinds": list(KINDS), "place": [place_of(i) for i, _ in known],
        "text": [visible_characters(redact_known(opening(i)[:80])) for i, _ in known],
        "names": [listed.base.name, listed.tuned.name],
        "left_out": len(listed.items) - len(known)})


def export(request: Request) -> Response:
    """The selection as JSONL: every field, or (as=rows) training rows with prompt and completion for replay."""
    listed, selection = _request_items(request)
    chosen = selection.choose(listed.items)
    kind = Inputs(request).word("as", ("items", "rows"), "items")
    lines = training_rows(chosen) if kind == "rows" else (_exported(i) for i in chosen)
    wanted = f"{listed.task}-{selection.show or 'all'}-{kind}"
    name = "".join(c if c.isascii() and c.isalnum() else "-" for c in wanted)[:100]  # a header has no other letters
    body = "".join(escape_hidden(redact_known(json.dumps(line, ensure_ascii=False, allow_nan=False))) + "\n"
                   for line in lines)
    return Response(body, media_type="application/jsonl; charset=utf-8", headers={
        "content-disposition": f'attachment; filename="{name}.jsonl"'})


def training_rows(items: Sequence[PairedItem]) -> Iterator[dict[str, str]]:
    """Prompt and right answer of each item that has one, as `aftertune tune --data` and `--replay` read them."""
    for item in items:
        if item.gold:
            yield {"prompt": item.question, "completion": item.completion}


def _exported(item: PairedItem) -> dict[str, Any]:
    """An item as JSON; numbers that are not finite become null."""
    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    out: dict[str, Any] = plain(asdict(item))
    return out


ROUTES = [Route("/items/{base}/{tuned}/margins", margins), Route("/items/{base}/{tuned}/export", export)]
