"""What a comparison may claim: owns every formula between per-item values and a verdict (numpy, scipy only).

paired: one metric at fixed n; bootstrap: few or skewed values; grouped: clusters and task groups; seeds: several
trainings; multiplicity: Holm and BH; planning: items needed; form: wrong answer or none; evidence: which test applies
to which values; verdict: lower, higher, within or undecided; sequential: the same at the
first safe moment.

    evidence = paired_evidence(base, tuned, margin=0.02)
    decision, = decide([Case(tests=evidence.tests)])
"""

from aftertune.stats.clustered import clustered_mean, stratified_mean
from aftertune.stats.evidence import Evidence, group_evidence, paired_evidence
from aftertune.stats.paired import (
    Estimate,
    MarginTests,
    mcnemar_exact,
    mcnemar_mid,
    paired_mean,
    tango_interval,
    tango_statistic,
    tango_tests,
    wilson,
)
from aftertune.stats.planning import (
    items_for_difference,
    items_for_equivalence,
    items_needed,
    smallest_difference,
)
from aftertune.stats.sequential import PairedSequential
from aftertune.stats.verdict import Case, Decision, at_floor, benjamini_hochberg, decide, holm, tell

__all__ = [
    "Case",
    "Decision",
    "Estimate",
    "Evidence",
    "MarginTests",
    "PairedSequential",
    "at_floor",
    "benjamini_hochberg",
    "clustered_mean",
    "decide",
    "group_evidence",
    "holm",
    "items_for_difference",
    "items_for_equivalence",
    "items_needed",
    "mcnemar_exact",
    "mcnemar_mid",
    "paired_evidence",
    "paired_mean",
    "smallest_difference",
    "stratified_mean",
    "tango_interval",
    "tango_statistic",
    "tango_tests",
    "tell",
    "wilson",
]
