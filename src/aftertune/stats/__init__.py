"""Computes verdicts from per-item values, with NumPy and SciPy alone.

    evidence = paired_evidence(base, tuned, margin=0.02)
    decision, = decide([Case(tests=evidence.tests)])

- evidence: chooses the test for the values of one metric and computes it
- paired: one metric of two models on the same items
- bootstrap: few or skewed values
- clustered: clusters of items, and groups of tasks
- across_seeds: several training seeds
- verdict: what is proven of a row, with Holm's and Benjamini and Hochberg's corrections
- sequential: the same verdicts before all items were asked
- planning: how many items are needed
- answer_format: answers without a usable format
- audit: checks of published scores
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
from aftertune.stats.verdict import Case, Decision, at_floor, benjamini_hochberg, decide, holm, label_of

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
    "label_of",
    "mcnemar_exact",
    "mcnemar_mid",
    "paired_evidence",
    "paired_mean",
    "smallest_difference",
    "stratified_mean",
    "tango_interval",
    "tango_statistic",
    "tango_tests",
    "wilson",
]
