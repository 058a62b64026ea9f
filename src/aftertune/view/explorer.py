"""The explorer of items without a server: the data of a task as one compressed text, which explorer.js reads.

    explorer_task(listed)["items"][0]["kind"]      "lost"
    packed(value)                                  base64 of the gzipped JSON

The static export loads the text from a file beside its page, and a notebook has it in the page itself.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from typing import Any

from aftertune.catalog import MetricKey
from aftertune.comparison.paired_items import KINDS, PairedItem, PairedItems
from aftertune.redaction import escape_hidden, redact_known
from aftertune.report.changed_items import score_unit
from aftertune.report.names import task_title
from aftertune.view.item_texts import choice_bars, generated_texts
from aftertune.view.pages.items import metric_text

#: Most items of a task; those that changed come first.
MOST_ITEMS = 20_000


def explorer_task(listed: PairedItems) -> dict[str, Any]:
    """What explorer.js shows of a task.

    items: in the order of the task, at most `MOST_ITEMS`: where there are more, all that changed and then the first
    others; left_out: how many are missing.
    """
    items = list(listed.items)
    if len(items) > MOST_ITEMS:
        kept = {id(i) for i in sorted(items, key=lambda i: i.kind in ("both right", "both wrong"))[:MOST_ITEMS]}
        items = [i for i in items if id(i) in kept]
    return {"task": listed.task, "title": task_title(listed.task), "names": [listed.base.name, listed.tuned.name],
            "metric": metric_text(listed), "kinds": list(KINDS), "counts": listed.counts,
            "left_out": len(listed.items) - len(items), "items": [_item(i, listed) for i in items]}


def packed(value: Any) -> str:
    """JSON as text that a script may hold, without known secrets: the same value gives the same text."""
    text = escape_hidden(redact_known(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))))
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=9, mtime=0)).decode("ascii")


def _item(item: PairedItem, listed: PairedItems) -> dict[str, Any]:
    margins = item.margins
    known = margins is not None and all(map(math.isfinite, margins))
    return {"task": item.task, "task_title": task_title(item.task), "index": item.index, "kind": item.kind,
            "question": item.question, "gold": item.gold, "completion": item.completion, "cluster": item.cluster,
            "margins": [round(m, 5) for m in margins or ()] if known else None, "forms": list(item.tuned_forms),
            "unit": score_unit(MetricKey(listed.metrics[item.task]).metric),
            "right": [item.base.right, item.tuned.right],
            "bars": [{"text": b.text, "right": b.right, "sides": [list(b.base), list(b.tuned)]}
                     for b in choice_bars(item)],
            "texts": [{"name": t.name, "right": t.right, "about": list(t.about),
                       "parts": [[p.text, p.changed] for p in t.parts]} for t in generated_texts(item, listed)]}
