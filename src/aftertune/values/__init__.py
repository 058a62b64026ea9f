"""Defines the frozen dataclasses that the rooms pass to each other.

    from aftertune.values import Answer, Evaluation, Tuning, ComparisonRow

Values are fractions, never percent: an accuracy of 47 % is 0.47 and a margin of two points is 0.02. Only reports and
the terminal multiply by 100. Times are ISO 8601 in UTC. Hashes are SHA-256 in lower-case hex.
"""

from aftertune.values.comparison import (
    VERDICT_LABELS,
    Comparison,
    ComparisonRow,
    Contrast,
    Difference,
    Flip,
    Flips,
    FlipSide,
    FormCounts,
    FormShift,
    GateLine,
    Relation,
)
from aftertune.values.encoding import (
    canonical,
    digest,
    json_ready,
    plain,
    restore,
)
from aftertune.values.evaluation import (
    Answer,
    Asked,
    Early,
    EarlyUnit,
    Evaluation,
    Finish,
    Item,
    ModelIdentity,
    Progress,
    Provenance,
    Request,
    Response,
    Score,
    TaskSettings,
    Verdict,
)
from aftertune.values.tuning import (
    HeldOut,
    Overlap,
    Question,
    Tuning,
    WatchPoint,
)

__all__ = [
    "VERDICT_LABELS",
    "Answer",
    "Asked",
    "Comparison",
    "ComparisonRow",
    "Contrast",
    "Difference",
    "Early",
    "EarlyUnit",
    "Evaluation",
    "Finish",
    "Flip",
    "FlipSide",
    "Flips",
    "FormCounts",
    "FormShift",
    "GateLine",
    "HeldOut",
    "Item",
    "ModelIdentity",
    "Overlap",
    "Progress",
    "Provenance",
    "Question",
    "Relation",
    "Request",
    "Response",
    "Score",
    "TaskSettings",
    "Tuning",
    "Verdict",
    "WatchPoint",
    "canonical",
    "digest",
    "json_ready",
    "plain",
    "restore",
]
