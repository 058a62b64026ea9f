"""Defines the values of results that others report: scores in a document, and what an audit finds in them.

    Reported(source="record.md", model="Llama 3.2 1B", task="gsm8k", metric="exact_match", value=0.3351, …)
    proven(evaluation.model)        False for an imported evaluation
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from aftertune.values.evaluation import ModelIdentity

#: (task, metric, filter) of a score.
ScoreName = tuple[str, str, str]
#: Prefix of a fingerprint that is not made from the weights, because nobody has read them.
UNPROVEN = "unproven:"
#: Of a model that an engine knows by a name only: a server, files of another format.
STATED = f"{UNPROVEN}stated:"


def plain_name(name: str) -> str:
    """A name reduced to its letters and digits, to match a document's models with ours: "TinyLlama + QLoRA" becomes
    "tinyllamaqlora"."""
    return re.sub(r"[^a-z0-9]+", "", name.lower())


def proven(model: ModelIdentity) -> bool:
    """True where the fingerprint is made from the weights, False where a file only names the model."""
    return not model.weights.startswith(UNPROVEN)


def identity_note(model: ModelIdentity) -> str:
    """Why the identity of a model is not certain, in one sentence; "" where it is made from the weights."""
    if model.weights.startswith(STATED):
        return "not verified: the engine knows the model by this name only, and its weights were not read"
    return "" if proven(model) else "not proven: these results were imported, and the weights were not read"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """A score that a document states. It has no answers, so it cannot be compared item by item.

    source: the document. section: the heading above the model's heading. value, stderr: fractions where value_text is
    in percent. value_text, stderr_text: as printed, because the digits show how the figure was rounded. n: items, with
    n_source "stated" or "known" (the task's size). facts: the model's metadata list. planned: the command that would
    evaluate a model without scores; then task and metric are empty.
    """

    source: str
    model: str
    task: str = ""
    metric: str = ""
    filter: str = "none"
    value: float | None = None
    stderr: float | None = None
    n: int | None = None
    n_source: str = ""
    value_text: str = ""
    stderr_text: str = ""
    section: str = ""
    line: int | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    planned: str | None = None
    mean_of: str = ""
    error_of: str = ""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Reported:
        """Make one from a row of the ledger's reported scores; other columns of the row are ignored."""
        return cls(**{k: row[k] for k in cls.__dataclass_fields__ if k in row})


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """A statement of a document beside its scores.

    kind: "size", a row of its table of models (model, facts); "column", a model of its comparison table; "bold", a
    figure in bold in that table (model, task, metric, filter, text); "definition" of a metric; "description" of a task;
    "observation", with its lead; "future", an entry of its list of open points; "note", what was not read and why.
    """

    kind: Literal["size", "column", "bold", "definition", "description", "observation", "future", "note"]
    model: str = ""
    task: str = ""
    metric: str = ""
    filter: str = "none"
    lead: str = ""
    text: str = ""
    line: int | None = None
    facts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Remark:
        """Make one from a row of the ledger's remarks."""
        return cls(**{k: row[k] for k in cls.__dataclass_fields__ if k in row})


#: A reported score and the text of the audit about it.
Audited = tuple[Reported, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedDifference:
    """A difference between two models of a document.

    points: tuned minus base, in percentage points. family: both models are in one section, so the document may call it
    forgetting. told: "established" by the summary alone, "open" where the paired answers would decide, "not shown", or
    "cannot be checked".
    """

    base: str
    tuned: str
    score: ScoreName
    points: float
    family: bool
    told: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedDocument:
    """A document with the results of an audit.

    rows: its scores and planned models, each with the audit's mark and text ("" for a planned model). columns: the
    models of its table of performance. best: score -> the model of these that the summary alone proves to be better
    than all others. findings: (where, what) that a reader should know besides.
    """

    source: str
    rows: tuple[Audited, ...]
    remarks: tuple[Remark, ...] = ()
    differences: tuple[ReportedDifference, ...] = ()
    findings: tuple[tuple[str, str], ...] = ()
    columns: tuple[str, ...] = ()
    best: Mapping[ScoreName, str] = field(default_factory=dict)

    @property
    def scores(self) -> tuple[Audited, ...]:
        """The rows with a figure."""
        return tuple((row, text) for row, text in self.rows if row.planned is None)
