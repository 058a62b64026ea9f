"""Defines the frozen dataclasses that the rooms pass to each other.

    from aftertune.values import Answer, Evaluation, Tuning, ComparisonRow

Shares are fractions, never percent: an accuracy of 47 % is 0.47 and a margin of two points is 0.02. Only reports and
the terminal multiply by 100. Metrics that are no shares (perplexity, BLEU) have their own unit. Times are ISO 8601 in
UTC. Hashes are SHA-256 in lower-case hex.
"""

from aftertune.values.comparison import (
    RULES,
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
    Margin,
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
    group_unit,
)
from aftertune.values.tuning import (
    CheckpointChoice,
    HeldOut,
    KeptCheckpoint,
    Overlap,
    Question,
    Tuning,
    WatchPoint,
)

__all__ = [
    "RULES",
    "VERDICT_LABELS",
    "Answer",
    "Asked",
    "CheckpointChoice",
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
    "KeptCheckpoint",
    "Margin",
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
    "group_unit",
    "json_ready",
    "plain",
    "restore",
]
