"""A Hugging Face model card: README.md with its metadata, and the files of ``.eval_results`` beside it.

    card = write_card(tuning, results)
    card.readme                          ---\\nbase_model: …\\n---\\n\\n# careful …
    card.results["hellaswag.yaml"]       - dataset: {id: Rowan/hellaswag, task_id: hellaswag} …

It is made for publishing: places of this machine are names in it, and a verdict stands in it only where a comparison
of the ledger has one.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace

from aftertune.methods import writes_adapter
from aftertune.report import format as fmt
from aftertune.report import markdown as md
from aftertune.report.blocks import comparison_blocks, score_blocks
from aftertune.report.card.metadata import base_on_hub, data_on_hub, entries, header
from aftertune.report.card.subject import Subject
from aftertune.report.facts import CODE, Facts, evaluation_facts, method_text, model_facts, tuning_facts
from aftertune.report.names import source_title, task_title
from aftertune.report.observations import observations
from aftertune.report.results import Results
from aftertune.report.table import score_part
from aftertune.reported import proven
from aftertune.values import Comparison, Evaluation, Tuning


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """results: name of a file of ``.eval_results`` -> its YAML. left_out: tasks stopped early, which have no score."""

    readme: str
    results: Mapping[str, str]
    left_out: tuple[str, ...]


def write_card(about: Evaluation | Tuning, results: Results) -> Card:
    """The card of a finished evaluation's model, or of a tuning's. results: all that the ledger holds."""
    subject = Subject.of(about, results)
    blocks = [f"# {md.text(fmt.visible(subject.name))}", _summary(subject), *_results(subject), *_verdicts(subject),
              *_base(subject), *_training(subject), *_how(subject), *_commands(subject)]
    yaml = header(subject).to_yaml()
    return Card(readme=f"---\n{yaml}\n---\n\n" + "\n\n".join(blocks) + "\n", results=entries(subject),
                left_out=tuple(subject.left_out()))


def _summary(subject: Subject) -> str:
    """What the model is, in a sentence or two."""
    tuning, base, model = subject.tuning, subject.base, subject.model
    if tuning is not None and base is not None:
        hub = data_on_hub(tuning)
        data = _link(hub, f"datasets/{hub}") if hub else md.code(fmt.visible(tuning.data_source))
        kind = f"{md.text(method_text(tuning))} fine-tune" if writes_adapter(tuning.method) else "full fine-tune"
        text = f"A {kind} of {_named(subject)} on {fmt.count(tuning.examples)} examples of {data}."
    elif base is not None:
        text = f"An adapter on {_named(subject)}. How it was trained is not known here."
    else:
        text = "How this model was made is not known here."
    if model is not None and not proven(model):
        return f"{text} Its results were imported: they name the weights, and nobody read those."
    same = "" if base is None else ", which asks a model and its base the same questions"
    return f"{text} Its figures were measured with aftertune{same}."


def _named(subject: Subject) -> str:
    assert subject.base is not None
    hub = base_on_hub(subject.base)
    return _link(hub, hub) if hub else md.text(fmt.visible(source_title(subject.base.source)))


def _link(name: str, path: str) -> str:
    return f"[{md.text(name)}](https://huggingface.co/{path})"


def _results(subject: Subject) -> list[str]:
    """A table for each evaluation, and what its figures do not say."""
    if not subject.evaluations:
        return ["## Results", "*Not evaluated yet.*"]
    blocks = ["## Results"]
    for evaluation in subject.evaluations:
        if len(subject.evaluations) > 1:
            blocks.append(f"### {md.text(fmt.visible(evaluation.name))} ({md.text(evaluation.id)})")
        blocks += [*score_blocks(evaluation), *_limits(evaluation)]
    return [*blocks, "± is one standard error; the interval of a share is Wilson's. Bold: primary metrics."]


def _limits(evaluation: Evaluation) -> list[str]:
    """Which figures are not those of the whole benchmark."""
    names = list(dict.fromkeys(s.task for s in evaluation.scores))
    early = [n for n in names if evaluation.stopped(n)]
    partial = [n for n in names if n not in early and score_part(evaluation, n)]
    said = [(early, "Stopped early: early estimates, not scores; the interval of their comparison is for the full run"),
            (partial, "Measured on a part of the items, and so not scores of the whole benchmark")]
    return [f"**{text}:** " + "; ".join(md.text(f"{task_title(n)} ({score_part(evaluation, n)})") for n in tasks) + "."
            for tasks, text in said if tasks]


def _verdicts(subject: Subject) -> list[str]:
    """Sentences and tables of the comparisons; without any, that nothing is known."""
    if not subject.comparisons:
        return [] if subject.base is None else [
            "## Compared with its base", "*Not compared with its base, so that nothing is said here of what it "
            "learned or forgot.*"]
    blocks = ["## Compared with its base" if subject.comparisons[0].lineage else "## Compared with other models"]
    found = observations(subject.comparisons)
    if found:
        blocks.append("\n".join(f"- **{o.lead}**: {md.text(o.text)}" for o in found))
    for comparison in subject.comparisons:
        blocks += [f"### {md.text(fmt.visible(comparison.tuned_name))} against "
                   f"{md.text(fmt.visible(comparison.base_name))}", *comparison_blocks(comparison)]
    return [*blocks, "Each row is paired: both models answered the same items. A verdict is proven at 5 % after Holm's "
            "correction over the primary metrics; *undecided* is neither a loss nor its absence."]


def _base(subject: Subject) -> list[str]:
    model = subject.base or subject.model
    if model is None:
        return []
    facts = [(k, fmt.visible(v, 600)) for k, v in model_facts(model) if v]
    return ["## Base model" if subject.base is not None else "## Model", md.facts(facts, CODE)]


def _training(subject: Subject) -> list[str]:
    """The data and the recipe of a fine-tune; words of its examples are left out."""
    if subject.tuning is None:
        return []
    tuning = replace(subject.tuning, overlap=tuple(replace(o, found=()) for o in subject.tuning.overlap))
    elsewhere = {"Output", "Training Command", *dict(model_facts(tuning.base))}
    facts = [fact for fact in tuning_facts(tuning) if fact[0] not in elsewhere]
    data = [fact for fact in facts if fact[0].startswith(("Training Data", "Data "))]
    recipe = [fact for fact in facts if fact not in data]
    return ["## Training data", md.facts(data, CODE), "## Method and recipe", md.facts(recipe, CODE)]


def _how(subject: Subject) -> list[str]:
    blocks = ["## How it was evaluated"] if subject.evaluations else []
    for evaluation in subject.evaluations:
        elsewhere = {"Evaluation Command", "Batch Plan", *dict(model_facts(evaluation.model))} - {"Quantization"}
        facts: Facts = [fact for fact in evaluation_facts(evaluation, None) if fact[0] not in elsewhere]
        blocks.append(md.facts(facts, CODE))
    return blocks


def _commands(subject: Subject) -> list[str]:
    """What was run, in its order, and the comparisons; files and folders by their names."""
    made: list[Evaluation | Tuning] = [*subject.others, *subject.evaluations]
    made += [subject.tuning] if subject.tuning is not None else []
    runs = sorted((r.provenance.started, r.provenance.command) for r in made if r.provenance is not None)
    lines = list(dict.fromkeys(fmt.visible(command) for _, command in runs if command))
    if not lines:
        return []
    if not all(re.match(r"aftertune (run|demo)\b", line) for line in lines):  # these compare by themselves
        lines += [_compare(c) for c in subject.comparisons]
    return ["## Do it again", "Files and folders stand here by their names alone.", md.block("\n".join(lines))]


def _compare(comparison: Comparison) -> str:
    margins = list(dict.fromkeys(r.margin for r in comparison.rows if r.primary))
    names = f"{shlex.quote(fmt.visible(comparison.base_name))} {shlex.quote(fmt.visible(comparison.tuned_name))}"
    margin = f" --margin {100 * margins[0]:g}" if len(margins) == 1 else ""
    return f"aftertune compare {names}{margin}{' --common' if comparison.common else ''}"
