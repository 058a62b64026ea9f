"""The addresses of entries, comparisons and tasks, for Python and for templates.

    comparison_path("e-1f…", "e-93…", task="hellaswag")      "/compare/e-1f…/e-93…?task=hellaswag"
    entry_path("tuning", "t-93…")                            "/entry/t-93…"

Each of them is in one place, so that a page can move and the static export can write other addresses.
"""

from __future__ import annotations

from urllib.parse import quote, urlencode

from aftertune.values import Comparison


def _path(*parts: str, **query: object) -> str:
    """A path of quoted parts, with those values of the query that are not empty."""
    path = "/" + "/".join(quote(part, safe="@:,+") for part in parts)
    values = [(k, str(v)) for k, v in query.items() if v not in (None, "")]
    return f"{path}?{urlencode(values)}" if values else path


def entry_path(kind: str, id_: str) -> str:
    """The page of an evaluation, a tuning or a comparison. kind: which of them."""
    del kind  # one page has all kinds
    return _path("entry", id_)


def comparison_path(base: str, tuned: str, **query: object) -> str:
    """The page of two evaluations, by ids or names. query: of the page, such as task or id."""
    return _path("compare", base, tuned, **query)


def stored_path(comparison: Comparison) -> str:
    """The page of a stored comparison."""
    return comparison_path(comparison.base, comparison.tuned, id=comparison.id)


def items_path(base: str, tuned: str, task: str, show: str = "lost", **query: object) -> str:
    """The items of two evaluations, one by one. query: sort, item, …"""
    return _path("compare", base, tuned, task=task, show=show, **query)


def question_path(task: str, item: str) -> str:
    """One question with the answers of all models. item: its hash."""
    return _path("question", task, item)


def runs_path(**query: object) -> str:
    """The table of models and runs. query: of the page, such as tag or task."""
    return _path("runs", **query)


def tuning_path(id_: str) -> str:
    """The curves of a fine-tune."""
    return _path("tuning", id_)


def study_path(name: str) -> str:
    """The cells of a study."""
    return _path("study", name)


def audit_path(**query: object) -> str:
    """The audits. query: source, the name of an imported document."""
    return _path("audit", **query)


#: What templates call.
LINKS = {f.__name__: f for f in (entry_path, comparison_path, stored_path, items_path, question_path, runs_path,
                                 tuning_path, study_path, audit_path)}
