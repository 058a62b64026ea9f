"""Owns what the items of tasks ask, as text: what is looked for in training data.

    questions((TaskSpec(name="gsm8k_cot"),), LoadOptions())[0].texts
        ("Q: Janet's ducks lay 16 eggs …\\nA:", "Janet's ducks lay 16 eggs …", "Janet sells 16 - 3 - 4 = …")

The items are those that an evaluation of the same specification asks; no prompts with examples are built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aftertune.study import TaskSpec
from aftertune.tasks.load import LoadOptions, find, sample, silent
from aftertune.values import Question, digest, json_ready

#: A document's text of fewer words is a label or a choice, not a question.
WORDS = 8


def questions(specs: Sequence[TaskSpec], options: LoadOptions) -> list[Question]:
    """Every item of the tasks. Raises TaskError for a task that cannot be loaded."""
    found = []
    for spec, task, _, _ in find(specs, options):
        with silent():
            docs = task.eval_docs
        chosen = sample(len(docs), spec)
        places = sorted(chosen) if chosen is not None else range(min(spec.limit or len(docs), len(docs)))
        for place in places:
            doc = json_ready(dict(docs[place]))
            found.append(Question(task=task.config.task, index=place, hash=digest(doc), texts=_texts(task, doc)))
    return found


def _texts(task: Any, doc: Mapping[str, Any]) -> tuple[str, ...]:
    prompt = task.doc_to_text(doc)
    texts = [prompt] if isinstance(prompt, str) else []  # some tasks give the number of a choice
    texts += [text for text in doc.values() if isinstance(text, str) and len(text.split()) >= WORDS]
    return tuple(dict.fromkeys(text for text in texts if text.strip()))
