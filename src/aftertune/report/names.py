"""Gives tasks, metrics and models their titles and descriptions, from `aftertune.catalog`.

    task_title("mmlu_high_school_computer_science")     "MMLU High School Computer Science"
    metric_title("acc_norm", "none")                    "Normalized Accuracy"
    metric_title("exact_match", "strict-match")         "Strict Match"
    metric_name("exact_match", "strict-match")          "exact_match,strict-match"
    metric_label("acc_norm", "none")                    "acc_norm (Normalized Accuracy)"

A task or metric that the catalog does not list keeps its name.
"""

from __future__ import annotations

from aftertune.catalog import BENCHMARKS, FILTERS, METRICS, NO_FILTER, MetricKey


def task_title(task: str) -> str:
    """The title of a task; an unlisted variant of a listed group (``mmlu_pro``) begins with the group's title."""
    if task in BENCHMARKS:
        return BENCHMARKS[task].title
    group = next((b for b in BENCHMARKS.values() if b.members and b.scored and task.startswith(f"{b.name}_")), None)
    return f"{group.title} {task.removeprefix(f'{group.name}_').replace('_', ' ').title()}" if group else task


def task_description(task: str, *, target: bool = False) -> str:
    """What a task measures, in a sentence or two; "" for a task that is not in the catalog."""
    if task in BENCHMARKS:
        return BENCHMARKS[task].measures
    if target:
        return ("Target task: held-out prompts that test the skill which the fine-tune teaches. The generated answer "
                "is compared with the reference.")
    return ""


def metric_title(metric: str, filter_: str) -> str:
    """The title of a metric, with its filter if there is one."""
    if metric == "exact_match" and filter_ in FILTERS:
        return FILTERS[filter_][0]
    title = METRICS[metric].title if metric in METRICS else metric
    return title if filter_ in ("", NO_FILTER) else f"{title} ({filter_})"


def metric_name(metric: str, filter_: str) -> str:
    """The name of a metric as lm-eval and the options have it, with its filter if there is one."""
    return metric if filter_ in ("", NO_FILTER) else MetricKey.of(metric, filter_)


def metric_label(metric: str, filter_: str) -> str:
    """The name of a metric with its title beside it, if it has one."""
    name, title = metric_name(metric, filter_), metric_title(metric, filter_)
    return f"{name} ({title})" if metric in METRICS else name


def metric_description(metric: str, filter_: str) -> str:
    """What a metric counts; "" for a metric that is not in the catalog."""
    if metric == "exact_match" and filter_ in FILTERS:
        return FILTERS[filter_][1]
    return METRICS[metric].description if metric in METRICS else ""


def source_title(source: str) -> str:
    """The last part of a model source: ``package:x/SmolLM2.Q4_1.gguf`` -> ``SmolLM2.Q4_1``."""
    return source.rstrip("/").replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".gguf") or source
