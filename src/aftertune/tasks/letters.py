"""Multiple choice by letter: the choices are listed as A, B, C …, and the model writes the letter of one.

    task = letters_task(arc_easy)
    task.config.task                    "arc_easy_letters"
    task.doc_to_text(doc)               "Question: Which … ?\\nA. wood\\nB. iron\\nAnswer:"

For engines that write texts and give no log-likelihoods of given answers: servers and llama.cpp. It is another task
than the one that it is made from: its items and prompts differ, so a score is compared with scores by letter alone.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from aftertune import catalog
from aftertune.errors import TaskError
from aftertune.tasks.letter_answers import read_letter
from aftertune.values import Asked
from aftertune.values.comparison import LETTER_FILTER, NO_ANSWER

#: Tokens that an answer may have: a letter, or a short sentence with it.
MAX_TOKENS = 16
#: How a text ends with what a prompt by letter writes itself.
_ENDING = "answer:"

#: What ends an answer: the model goes on with a question of its own. A letter may stand in the second line.
STOPS = ("\nQuestion", "\n\n\n")
#: Of the rules by which a letter is read. Scores by other rules are others.
VERSION = 2.0
#: Few-shot examples that are kept: the first ones of the split.
MAX_EXAMPLES = 64

AskedOf = Callable[[Any, Mapping[str, Any], int], Asked]


def letters_task(task: Any, asked: AskedOf) -> Any:
    """The task by letter. asked: gives question, choices and right answers of a document.

    Raises TaskError for a task that is no multiple choice, or has items with more choices than letters.
    """
    name = task.config.task
    if task.OUTPUT_TYPE != "multiple_choice":
        raise TaskError(f"task {name!r} is no multiple choice, so it cannot be asked by letter; leave --letters "
                        "out for it")
    documents = getattr(task, "task_docs", None)
    documents = task.eval_docs if documents is None else documents
    rows = [_row(task, doc, index, asked) for index, doc in enumerate(documents)]
    shots = [_row(task, doc, index, asked) for index, doc in enumerate(_examples(task))]
    return task_of_rows(f"{name}{catalog.LETTERS}", rows, {
        "description": task.config.description or "", "num_fewshot": task.get_config("num_fewshot"),
        **({"fewshot_config": {"sampler": "first_n", "samples": shots}} if shots else {})})


def task_of_rows(name: str, rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> Any:
    """The task by letter of items that have a prompt, choices and the right letter. config: further values."""
    from lm_eval.api.task import ConfigurableTask

    return ConfigurableTask(config={
        "task": name, "custom_dataset": partial(_dataset, rows), "output_type": "generate_until",
        "test_split": "test", "doc_to_text": "prompt", "doc_to_target": "letter", "target_delimiter": " ",
        "process_results": _process_results,
        "generation_kwargs": {"until": list(STOPS), "max_gen_toks": MAX_TOKENS, "do_sample": False},
        "filter_list": [{"name": LETTER_FILTER, "filter": [
            {"function": "custom", "filter_fn": _read}, {"function": "take_first"}]}],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": VERSION}, **config})


def _examples(task: Any) -> Sequence[Any]:
    """The documents for few-shot examples, where these are others than the scored ones."""
    split = getattr(getattr(task, "fewshot_cfg", None), "split", None) or task.config.fewshot_split
    if split is not None and split == (task.config.test_split or task.config.validation_split):
        return ()
    if not (task.has_training_docs() or task.config.fewshot_split):
        return ()
    return list(task.fewshot_docs() or ())[:MAX_EXAMPLES]


def _row(task: Any, doc: Mapping[str, Any], index: int, asked: AskedOf) -> dict[str, Any]:
    """One item: its prompt, its choices, the right letter, and its cluster where the task has one."""
    item = asked(task, doc, index)
    choices = [c.strip() for c in item.choices]
    if not 2 <= len(choices) <= len(string.ascii_uppercase) or len(item.gold) != 1:
        raise TaskError(f"task {task.config.task!r}, item {index}: {len(choices)} choices with {len(item.gold)} right "
                        f"ones cannot be asked by letter; 2 to {len(string.ascii_uppercase)} choices with one right "
                        "one can")
    cluster = catalog.cluster_label(catalog.cluster_field(task.config.task), doc)
    text = prompt(item.question, choices, before=bool(getattr(task, "multiple_input", 0)))
    return {"prompt": text, "choices": choices,
            "letter": string.ascii_uppercase[item.gold[0]], **({"cluster": cluster} if cluster is not None else {})}


def prompt(question: str, choices: Sequence[str], *, before: bool = False) -> str:
    """The question with lettered choices. before: the choices are what stands before ``question`` (WinoGrande).

    A question that lists its choices already (MMLU) stays as it is.
    """
    text = question.strip()
    letters = string.ascii_uppercase[:len(choices)]
    if before:
        choices, text = [f"{choice} {text}" for choice in choices], "Which sentence is right?"
    if text.lower().endswith(_ENDING):
        text = text[:-len(_ENDING)].rstrip()
    if tuple(choices) != tuple(letters):
        text = "\n".join([text, *(f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True))])
    return f"{text}\nAnswer:"


def _dataset(rows: Sequence[Mapping[str, Any]], **_: Any) -> Any:
    import datasets

    return datasets.DatasetDict({"test": datasets.Dataset.from_list([dict(row) for row in rows])})


def _read(responses: Sequence[Sequence[str]], docs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The letter of each text, or lm-eval's mark for no answer."""
    return [[read_letter(text, string.ascii_uppercase[:len(doc["choices"])]) or NO_ANSWER for text in texts]
            for texts, doc in zip(responses, docs, strict=True)]


def _process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    return {"exact_match": float(results[0] == doc["letter"])}
