"""Reads what only lm-eval's own tables have: the line above them, rows of groups, and the items of a limited run.

    run = read_run_line("hf (pretrained=org/m), gen_kwargs: (None), limit: 10.0, num_fewshot: None, batch_size: 1")
    run.model, run.limit                       ("org/m", 10.0)
    items_used("mmlu", run.limit)              570: ten of each of the 57 subjects
    full_name("- formal_logic", "mmlu")        "mmlu_formal_logic"
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from aftertune import catalog
from aftertune.catalog import BENCHMARKS
from aftertune.exchange.benchmark_names import compact
from aftertune.redaction import redact

_ARGUMENT = re.compile(r"(?:^|[,{(\s'\"])(peft|delta|pretrained|model_name|model|path)['\"]?\s?[=:]\s?['\"]?"
                       r"([^,'\"(){}\s=]{1,300})")
#: Arguments that name the model, the most specific first.
_NAMES = ("peft", "delta", "pretrained", "model_name", "model", "path")
_NUMBER = re.compile(r"\d{1,9}(?:\.\d{1,9})?")


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What the line states. model: "" where it names none; limit: None for all items; fewshot: "" for the default."""

    model: str = ""
    limit: float | None = None
    fewshot: str = ""


def read_run_line(text: str) -> RunSettings:
    """The model, limit and number of examples of lm-eval's line."""
    text = text[:20_000]
    arguments = text.partition(", gen_kwargs: ")[0].partition(", limit: ")[0]
    named: dict[str, str] = {}
    for name, value in _ARGUMENT.findall(arguments):
        named.setdefault(name, value)
    model = next((named[name] for name in _NAMES if name in named), "")
    limit = _NUMBER.match(text.partition(", limit: ")[2].strip())
    fewshot = _NUMBER.match(text.partition("num_fewshot: ")[2].strip())
    return RunSettings(redact(model), float(limit[0]) if limit else None, fewshot[0] if fewshot else "")


def is_lm_eval_table(heads: Sequence[str]) -> bool:
    """True for the head of lm-eval's and lighteval's own tables."""
    words = {compact(head) for head in heads}
    return bool(words & {"task", "tasks", "groups", "group"}) and {"version", "metric", "value"} <= words


def full_name(cell: str, root: str) -> str:
    """lm-eval's name of a row "- subject" below the group ``root``; other rows are returned without spaces."""
    bare = cell.strip()
    if not bare.startswith("-") or bare.startswith("--") or len(bare) < 3:
        return bare
    name = bare.lstrip("-").strip()
    inside = f"{root}_{re.sub(r'[^A-Za-z0-9]+', '_', name).strip('_')}" if root else name
    if inside.lower() in BENCHMARKS:
        return inside.lower()
    return inside if root.startswith("mmlu") and not name.startswith(root) else name


def items_used(task: str, limit: float | None) -> int | None:
    """The items of a task or group under lm-eval's --limit, which holds for each task; None where unknown.

    Of a limit below 1, a fraction, versions of lm-eval round the number of items up or down. One that is not above 0 is
    not lm-eval's.
    """
    sizes = [catalog.hub_items(leaf) for leaf in catalog.leaves(task)]
    if catalog.hub_items(task) is None or None in sizes:
        return None
    whole = [size for size in sizes if size is not None]
    if limit is None:
        return sum(whole)
    if limit <= 0:
        return None
    if limit < 1 and any(math.floor(size * limit) != math.ceil(size * limit) for size in whole):
        return None
    return sum(min(size, math.ceil(size * limit) if limit < 1 else int(limit)) for size in whole)
