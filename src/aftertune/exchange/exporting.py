"""Exports an evaluation as files in lm-eval's format, which lm-eval's tools and `aftertune import` can read.

    prompts = rebuild_prompts(evaluation)            {"hellaswag": its requests in order, …}
    files = export_lm_eval(evaluation, stored_answers(ledger, evaluation), folder=Path("out"), prompts=prompts)
    files.results                                    out/careful/results_2026-11-24T10-00-00.000000.json

The ledger does not store prompts. `rebuild_prompts` builds them again and keeps those whose digest equals the stored
one, so they are proven to be what the model saw; a prompt that is not given is written as null. The key ``aftertune``
holds what lm-eval has no key for: settings and fingerprints. Answers are read and written one after another, so memory
does not grow with them. Local paths, commands and host names are not written.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aftertune.catalog import MetricKey
from aftertune.errors import AftertuneError, InputError, StorageError
from aftertune.exchange.lm_eval_versions import samples_name
from aftertune.redaction import public_source
from aftertune.sources.cache import path_part, write_atomic
from aftertune.study import TaskSpec
from aftertune.tasks.loading import LoadOptions, load
from aftertune.values import Answer, Evaluation, Item, Request, Response, Score, TaskSettings, digest

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

# --- Prompts ---


def rebuild_prompts(evaluation: Evaluation) -> dict[str, tuple[Request, ...]]:
    """The requests, in order, of each task whose prompts can be built again and match the stored digest.

    Tasks with a chat template (it needs the tokenizer) and tasks with a file of their own are left out.
    """
    requests: dict[str, tuple[Request, ...]] = {}
    for task in evaluation.tasks:
        if task.target or task.chat_template or task.data.startswith("file:"):
            continue
        try:
            [loaded] = load((_spec(task),), LoadOptions(system_instruction=task.system_instruction))
        except (AftertuneError, ValueError):
            continue
        if digest([[r.context, r.continuation] for r in loaded.requests]) == task.prompts:
            requests[task.task] = loaded.requests
    return requests


def _spec(task: TaskSettings) -> TaskSpec:
    return TaskSpec(name=task.task, limit=task.limit, sample=task.sample, sample_seed=task.sample_seed or 0,
                    num_fewshot=task.num_fewshot)


# --- Files ---

@dataclass(frozen=True, slots=True)
class ExportedFiles:
    """The files of one export. left_out: tasks that were stopped early and so have no score of all their items."""

    results: Path
    samples: tuple[Path, ...]
    left_out: tuple[str, ...]


#: Task -> its answers with their items, in order; it is asked once for each filter, and once more with prompts.
AnswersOf = Callable[[str], Iterable[tuple[Answer, Item]]]


def stored_answers(ledger: Ledger, evaluation: Evaluation) -> AnswersOf:
    """Reads the answers of an evaluation, of which only some are in memory at once."""
    return lambda task: zip(ledger.each_answer(evaluation.id, task), ledger.each_item(evaluation.id, task), strict=True)


def export_lm_eval(evaluation: Evaluation, answers: AnswersOf, *, folder: Path,
                   prompts: Mapping[str, Sequence[Request]]) -> ExportedFiles:
    """Write a finished evaluation below ``folder``. Exporting it again writes the same files.

    answers: see `stored_answers`; prompts: by task, see `rebuild_prompts`. Raises InputError if no task has a score of
    all its items, and StorageError if a file cannot be written.
    """
    exported, left_out = complete_part(evaluation)
    stamp = _stamp(evaluation)
    target = folder / path_part(evaluation.name)
    hashes: dict[str, str] = {}
    try:
        paths = []
        for task in exported.tasks:
            paths.append(target / samples_name(task.task, stamp))
            lines, hashed = _lines(task, exported.scores, answers, prompts.get(task.task, ())), hashlib.sha256()
            write_atomic(paths[-1], _written(lines, hashed))
            hashes[task.task] = hashed.hexdigest()
        results = _results(exported, hashes)
        path = target / f"results_{stamp}.json"
        write_atomic(path, json.dumps(results, ensure_ascii=False, indent=2) + "\n")
    except OSError as error:
        raise StorageError(f"{target}: cannot be written ({error.strerror}); choose another folder with "
                           "--out") from None
    return ExportedFiles(path, tuple(paths), left_out)


def _written(lines: Iterable[dict[str, Any]], hashed: Any) -> Iterator[str]:
    """The lines of a samples file as text. hashed: receives the hashes of each, as lm-eval's ``task_hashes``."""
    for line in lines:
        hashed.update((str(line["doc_hash"]) + str(line["prompt_hash"]) + str(line["target_hash"])).encode())
        yield json.dumps(line, ensure_ascii=False) + "\n"


def complete_part(evaluation: Evaluation) -> tuple[Evaluation, tuple[str, ...]]:
    """(the evaluation with the tasks that have a score of all their items, the other tasks); InputError if none has."""
    left_out = tuple(t.task for t in evaluation.tasks if evaluation.stopped(t.task))
    complete = tuple(t for t in evaluation.tasks if t.task not in left_out)
    if evaluation.status != "done" or not complete:
        raise InputError(f"evaluation {evaluation.name} ({evaluation.id}) has no task with a score of all its items; "
                         "run the same command again to finish it, without --until-decided if it was stopped early")
    scores = tuple(s for s in evaluation.scores if not evaluation.stopped(s.task))
    return replace(evaluation, tasks=complete, scores=scores), left_out


def started_at(evaluation: Evaluation) -> datetime | None:
    """When the evaluation started; None where that is not known."""
    started = evaluation.provenance.started if evaluation.provenance else ""
    try:
        return datetime.fromisoformat(started)
    except ValueError:
        return None


def _stamp(evaluation: Evaluation) -> str:
    """The start time as lm-eval writes it in file names; 1970-01-01 if the evaluation has none."""
    started = started_at(evaluation) or datetime(1970, 1, 1)
    return started.replace(tzinfo=None).isoformat(timespec="microseconds").replace(":", "-")


def _results(evaluation: Evaluation, hashes: Mapping[str, str]) -> dict[str, Any]:
    """The JSON of the results file."""
    table: dict[str, dict[str, Any]] = {t.task: {"alias": t.task} for t in evaluation.tasks}
    groups: dict[str, dict[str, Any]] = {}
    for score in evaluation.scores:
        row = groups.setdefault(score.task, {"alias": score.task}) if score.group else table[score.task]
        row[score.key] = _json_number(score.value)
        row[score.key.stderr] = "N/A" if score.stderr is None else _json_number(score.stderr)
    children = {g: [t.task for t in evaluation.tasks if g in t.groups] for g in groups}
    provenance, model, first = evaluation.provenance, evaluation.model, evaluation.tasks[0]
    started = started_at(evaluation)
    versions = provenance.versions if provenance else {}
    return {
        "results": table, **({"groups": groups} if groups else {}),
        "group_subtasks": children | {t.task: [] for t in evaluation.tasks},
        "configs": {t.task: _config(t) for t in evaluation.tasks},
        "versions": {t.task: t.version for t in evaluation.tasks},
        "n-shot": {t.task: t.num_fewshot for t in evaluation.tasks},
        "higher_is_better": {t.task: dict(t.higher_is_better) for t in evaluation.tasks},
        "n-samples": {t.task: {"original": t.n_total, "effective": t.n} for t in evaluation.tasks},
        "config": {"model": "aftertune", "model_args": f"pretrained={public_source(model.source)}",
                   "model_num_parameters": model.parameters, "model_dtype": f"torch.{evaluation.dtype}",
                   "model_revision": model.revision, "device": evaluation.device, "limit": first.limit},
        "date": started.timestamp() if started else None, "lm_eval_version": versions.get("lm-eval"),
        "transformers_version": versions.get("transformers"),
        "task_hashes": hashes,
        "model_source": "aftertune", "model_name": evaluation.name,
        "system_instruction": first.system_instruction, "chat_template_sha": first.chat_template,
        "fewshot_as_multiturn": first.fewshot_as_multiturn,
        "total_evaluation_time_seconds": str(provenance.seconds) if provenance and provenance.seconds else None,
        "aftertune": {"evaluation": evaluation.id, "engine": evaluation.engine_note or evaluation.engine,
                      "tasks": [asdict(t) for t in evaluation.tasks],
                      "fingerprints": {"model": model.fingerprint, "weights": model.weights, "config": model.config,
                                       "tokenizer": model.tokenizer, "adapter": model.adapter}}}


def _config(task: TaskSettings) -> dict[str, Any]:
    config = {"task": task.task, "output_type": task.output_type, "test_split": task.split,
              "num_fewshot": task.num_fewshot, "generation_kwargs": dict(task.generation) or None,
              "dataset_path": task.data.removeprefix("hub:") if task.data.startswith("hub:") else None}
    return {k: v for k, v in config.items() if v is not None}


def _lines(task: TaskSettings, scores: Sequence[Score], answers: AnswersOf,
           requests: Sequence[Request]) -> Iterator[dict[str, Any]]:
    """The lines of one samples file: every document under the first filter, then under the next."""
    filters = dict.fromkeys(s.filter for s in scores if s.task == task.task)
    for name in filters:
        for answer, item, texts in with_prompts(task.task, answers, requests):
            yield sample_line(task, answer, item, name, texts)


def with_prompts(task: str, answers: AnswersOf, requests: Sequence[Request]
                 ) -> Iterator[tuple[Answer, Item, list[tuple[str, str] | None]]]:
    """Each answer with its item and the (context, continuation) of each response; None where the prompts are not known.
    """
    known = bool(requests) and len(requests) == sum(len(a.responses) for a, _ in answers(task))
    remaining = iter(requests)
    for answer, item in answers(task):
        texts: list[tuple[str, str] | None] = [None] * len(answer.responses)
        if known:
            texts = [(r.context, r.continuation) for r in islice(remaining, len(texts))]
        yield answer, item, texts


def sample_line(task: TaskSettings, answer: Answer, item: Item, name: str, texts: Sequence[tuple[str, str] | None]
                ) -> dict[str, Any]:
    """One line of a samples file. As in lm-eval's files, numbers in responses are written as text."""
    generated = task.output_type == "generate_until"
    rolling = task.output_type == "loglikelihood_rolling"
    pairs = [_pair(r) for r in answer.responses]
    metrics = {k.metric: v for k, v in ((MetricKey(k), v) for k, v in answer.metrics.items()) if k.filter == name}
    arguments: list[dict[str, Any]] = []
    for text in texts[:1] if generated else texts:
        request: dict[str, Any] = {"arg_0": None if text is None else text[1] if rolling else text[0]}
        if not rolling:
            request["arg_1"] = dict(task.generation) if generated else text[1] if text else None
        arguments.append(request)
    prompt = arguments[0]["arg_0"] if arguments else None
    return {
        "doc_id": answer.index, "doc": dict(item.doc), "target": "",
        "arguments": {f"gen_args_{i}": a for i, a in enumerate(arguments)},
        "resps": [[r.text or "" for r in answer.responses]] if generated else [[p] for p in pairs],
        "filtered_resps": [answer.extracted.get(name, "")] if generated else pairs,
        "filter": name, "metrics": list(metrics),
        "doc_hash": _hash(json.dumps(dict(item.doc), indent=2, ensure_ascii=False)),
        "prompt_hash": None if prompt is None else _hash(prompt), "target_hash": None,
        "aftertune": {k: [getattr(r, k) for r in answer.responses] for k in ("tokens", "finish", "truncated")},
        **metrics}


def _pair(response: Response) -> list[str]:
    """[log-likelihood, is it the most likely text] as lm-eval writes it; without the second where it is not known."""
    logprob = repr(response.logprob)
    return [logprob] if response.greedy is None else [logprob, str(response.greedy)]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else "N/A"
