"""The results of others: scores that a document states, and models that only a file's word stands for.

    Reported(source="record.md", model="Llama 3.2 1B", task="gsm8k", metric="exact_match", value=0.3351, …)
    proven(evaluation.model)        False for an evaluation that was imported
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from aftertune.values.evaluation import ModelIdentity

#: (task, metric, filter) of a score.
ScoreName = tuple[str, str, str]
#: Begins the place of a fingerprint where nobody read the weights.
UNPROVEN = "unproven:"


def plain_name(name: str) -> str:
    """A name by its letters and digits, by which a document's models and ours are known to be the same: "TinyLlama +
    QLoRA" is tinyllamaqlora."""
    return re.sub(r"[^a-z0-9]+", "", name.lower())


def proven(model: ModelIdentity) -> bool:
    """True where the weights were read, False where a foreign file only names them."""
    return not model.weights.startswith(UNPROVEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """A score that a document states: a figure without answers, so without a paired comparison.

    source: the document; section: its heading above the model's; value, stderr: fractions where value_text is in
    percent; value_text, stderr_text: as printed, since the digits say how far they were rounded. n: items, with
    n_source "stated" or "known" (the task's size). facts: the model's metadata list. planned: the model is not
    evaluated (task and metric are empty), and this is the command that would do it.
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

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Reported:
        """From a row of the ledger's reported scores; what else the row says is left out."""
        return cls(**{k: row[k] for k in cls.__dataclass_fields__ if k in row})


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """What a document says beside its scores.

    kind: "size", a row of its table of models (model, facts); "column", a model that its comparison table has; "bold",
    a figure set in bold there (model, task, metric, filter, text); "definition" of a metric, "description" of a task;
    "observation" with its lead; "future", an open point of its list.
    """

    kind: Literal["size", "column", "bold", "definition", "description", "observation", "future"]
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
        """From a row of the ledger's remarks."""
        return cls(**{k: row[k] for k in cls.__dataclass_fields__ if k in row})


#: A reported score and what the audit says of it.
Audited = tuple[Reported, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedDifference:
    """A difference between two models of a document. points: in percent; family: both stand in one section, so that
    the document may speak of forgetting; told: "established" by the summary alone, "open" where the paired answers
    would decide, "not shown", or "cannot be checked"."""

    base: str
    tuned: str
    score: ScoreName
    points: float
    family: bool
    told: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedDocument:
    """A document of others with what an audit says of it.

    rows: its scores and planned models, each with the audit's mark and text ("" for a planned model); columns: the
    models that its table of performance has; best: of each score the model of these that the summary alone proves
    better than every other; findings: (where, what) else the reader should know.
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
        return tuple((row, said) for row, said in self.rows if row.planned is None)
