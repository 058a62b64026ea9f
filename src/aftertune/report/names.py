"""Names for people: titles and descriptions of tasks and metrics, and how a metric is scaled.

    task_title("mmlu_high_school_computer_science")     "MMLU High School Computer Science"
    metric_title("acc_norm", "none")                    "Normalized Accuracy"
    metric_title("exact_match", "strict-match")         "Strict Match"

A task or metric that is not listed keeps its own name. The descriptions say what lm-eval 0.4.13 computes
(``lm_eval/api/task.py``, ``process_results``).
"""

from __future__ import annotations

_TASKS = {
    "hellaswag": ("HellaSwag", "Commonsense: which of four endings continues a short description of an "
                  "everyday scene. Each ending is scored by its log-likelihood after the description."),
    "arc_easy": ("ARC Easy", "Grade-school science questions with mostly four answers; each answer text is "
                 "scored by its log-likelihood after the question."),
    "arc_challenge": ("ARC Challenge", "The grade-school science questions that simple retrieval and word "
                      "co-occurrence get wrong; scored like ARC Easy."),
    "piqa": ("PIQA", "Physical commonsense: which of two solutions reaches a practical goal."),
    "winogrande": ("WinoGrande", "Pronoun resolution: which of two fillers fits the blank, judged by the "
                   "log-likelihood of the shared rest of the sentence after each filler."),
    "boolq": ("BoolQ", "Yes or no questions about a passage of text."),
    "sciq": ("SciQ", "Science exam questions with a supporting passage and four answers."),
    "openbookqa": ("OpenBookQA", "Elementary science questions that need a fact and common knowledge; four "
                   "answers."),
    "gsm8k": ("GSM8K", "Grade-school mathematics in words: the model writes its working, and the final "
              "number is taken from the text. The examples, from the train split, end in \"#### N\"."),
    "gsm8k_cot": ("GSM8K (chain of thought)", "Grade-school mathematics in words: the model writes its "
                  "working after eight fixed worked examples that end in \"The answer is N.\", and the "
                  "final number is taken from the text."),
    "mmlu": ("MMLU", "Multiple-choice questions on 57 subjects; the four answer letters are compared by "
             "log-likelihood. The score is the mean over all questions."),
}
_MMLU = ("Multiple-choice questions of the MMLU subject {subject}: the question and its four answers stand "
         "in the prompt, and the letters A to D are compared by log-likelihood.")

_METRICS = {
    "acc": ("Accuracy", "Share of items on which the right choice has the highest log-likelihood."),
    "acc_norm": ("Normalized Accuracy", "Share of items on which the right choice has the highest "
                 "log-likelihood divided by the length of the choice in characters (not bytes, not tokens)."),
    "acc_bytes": ("Byte-normalized Accuracy", "As normalized accuracy, with the length of the choice in "
                  "UTF-8 bytes."),
    "exact_match": ("Exact Match", "Share of items on which the answer equals the reference (for JSON: the "
                    "same object, whatever the order of its keys)."),
    "f1": ("F1", "Harmonic mean of precision and recall."),
    "word_perplexity": ("Word Perplexity", "exp(−log-likelihood / words) over all documents; lower is "
                        "better."),
    "byte_perplexity": ("Byte Perplexity", "exp(−log-likelihood / UTF-8 bytes) over all documents; lower is "
                        "better."),
    "bits_per_byte": ("Bits per Byte", "−log-likelihood / (UTF-8 bytes × ln 2) over all documents; lower is "
                      "better."),
    "perplexity": ("Perplexity", "exp(−mean log-likelihood of the continuation); lower is better."),
    "valid_json": ("Valid JSON", "Share of items on which the whole answer is JSON, right or wrong."),
    "field_accuracy": ("Field Accuracy", "Mean share of the reference object's fields that the answer has "
                       "right."),
}
_FILTERS = {
    "flexible-extract": ("Flexible Extract", "Share of items on which the answer found anywhere in the "
                         "generated text (for GSM8K the last number in it) equals the reference."),
    "strict-match": ("Strict Match", "Share of items on which the answer in the form that the examples use "
                     "equals the reference; a right answer in another form counts as wrong."),
}
_UNBOUNDED = frozenset({"word_perplexity", "byte_perplexity", "bits_per_byte", "perplexity", "bleu", "chrf",
                        "ter", "brier_score", "mcc", "likelihood"})


def task_title(task: str) -> str:
    """The name of a task as a reader knows it."""
    if task in _TASKS:
        return _TASKS[task][0]
    if task.startswith("mmlu_"):
        return "MMLU " + task.removeprefix("mmlu_").replace("_", " ").title()
    return task


def task_description(task: str, *, target: bool = False) -> str:
    """What a task measures, in a sentence or two; empty where nothing is known beyond its name."""
    if task in _TASKS:
        return _TASKS[task][1]
    if task.startswith("mmlu_"):
        return _MMLU.format(subject=task.removeprefix("mmlu_").replace("_", " "))
    if target:
        return ("Target task: held-out prompts of the kind that the fine-tune was made for. The answer is "
                "generated and matched against the reference.")
    return ""


def metric_title(metric: str, filter_: str) -> str:
    """The name of a metric with its filter as a reader knows it."""
    if metric == "exact_match" and filter_ in _FILTERS:
        return _FILTERS[filter_][0]
    title = _METRICS[metric][0] if metric in _METRICS else metric
    return title if filter_ in ("", "none") else f"{title} ({filter_})"


def metric_description(metric: str, filter_: str) -> str:
    """What a metric counts; empty where nothing is known beyond its name."""
    if metric == "exact_match" and filter_ in _FILTERS:
        return _FILTERS[filter_][1]
    return _METRICS[metric][1] if metric in _METRICS else ""


def is_fraction(metric: str) -> bool:
    """True where a metric lies between 0 and 1 and is told in percent."""
    return metric not in _UNBOUNDED


def source_title(source: str) -> str:
    """The telling part of a model source: ``package:x/SmolLM2.Q4_1.gguf`` -> ``SmolLM2.Q4_1``."""
    return source.rstrip("/").replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".gguf") or source
