"""Scores stored responses again, with lm-eval's own filters and metrics, without a model and without a data set.

    again = score_again(settings, items, answers)
    again.answers[0].metrics, again.scores[0].value      from the documents and the responses alone

The task is built from the documents that are stored, so nothing is downloaded and the task's data need not be
installed. No code but lm-eval's own runs. A task that cannot be scored in this way raises TaskError with the reason:
it has code of the user, lm-eval does not know it, or its responses were not stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from itertools import chain

from aftertune.catalog import LETTERS, MetricKey
from aftertune.errors import ResourceError, TaskError
from aftertune.sources.limits import OutOfTime, time_limit
from aftertune.study import TaskSpec
from aftertune.study.scorer import AnswerScorer
from aftertune.tasks import lm_eval_index
from aftertune.tasks.letters import VERSION as LETTER_RULES
from aftertune.tasks.letters import task_of_rows
from aftertune.tasks.loading import LoadOptions, build_task, load
from aftertune.tasks.scorers import Judge, judges
from aftertune.tasks.scoring import ANSWER_TIMEOUT, score_responses
from aftertune.values import Answer, Asked, Item, Response, Score, TaskSettings

#: Characters with which a name stands for several tasks.
_PATTERN = "*?["


@dataclass(frozen=True, slots=True)
class ScoredAgain:
    """The answers of a task with their metrics, in the order of the items, and the scores of the task. asked: the
    questions that lm-eval makes of the documents; empty for a target task."""

    answers: tuple[Answer, ...]
    scores: tuple[Score, ...]
    asked: tuple[Asked | None, ...] = ()


def lm_eval_version() -> str:
    """The version of lm-eval with which responses are scored here."""
    return metadata.version("lm_eval")


def score_again(settings: TaskSettings, items: Sequence[Item], answers: Sequence[Answer]) -> ScoredAgain:
    """Score the stored responses of one task. items: of the answers, in their order. Raises TaskError."""
    if settings.target:
        return _target(settings, items, answers)
    if settings.code:
        raise TaskError("it runs code of a task folder")
    name = settings.task
    if any(c in name for c in _PATTERN):
        raise TaskError("its name is a pattern")
    if not name.endswith(LETTERS) and not lm_eval_index.is_task(name):
        raise TaskError("lm-eval has no single task of this name")
    documents = [dict(item.doc) for item in items]
    options = LoadOptions(documents={name: documents}, check_generation=False)
    spec = TaskSpec(name=name, num_fewshot=0)
    if name.endswith(LETTERS):
        if settings.version != str(LETTER_RULES):
            raise TaskError(f"its letters were read by version {settings.version} of the rules, and here by "
                            f"{LETTER_RULES}")
        loaded = build_task(spec, task_of_rows(name, documents, {"num_fewshot": 0}), options)
    else:
        [loaded] = load((spec,), options)
    if dict(loaded.settings.higher_is_better) != dict(settings.higher_is_better):
        raise TaskError(f"lm-eval {lm_eval_version()} has other metrics for it: "
                        f"{', '.join(loaded.settings.higher_is_better)}")
    if settings.cluster not in (None, loaded.settings.cluster):
        raise TaskError(f"its items are clustered by {settings.cluster}, and here by "
                        f"{loaded.settings.cluster or 'nothing'}")
    responses = dict(enumerate(chain.from_iterable(a.responses for a in answers)))
    if len(responses) != len(loaded.requests):
        raise TaskError(f"{len(responses)} responses are stored, and lm-eval {lm_eval_version()} asks "
                        f"{len(loaded.requests)}")
    missing = _missing(loaded.requests[0].kind if loaded.requests else "", responses)
    if missing:
        raise TaskError(missing)
    again, _, scores = score_responses([loaded], responses)
    return ScoredAgain(tuple(again), tuple(s for s in scores if not s.group), tuple(i.asked for i in loaded.items))


def _missing(kind: str, responses: Mapping[int, Response]) -> str:
    """What the responses lack that the metrics need; "" if nothing."""
    if kind == "generate":
        return "some of its texts are not stored" if any(r.text is None for r in responses.values()) else ""
    if any(r.logprob is None for r in responses.values()):
        return "some of its log-likelihoods are not stored"
    unknown = kind == "score" and any(r.greedy is None for r in responses.values())
    return "it is not stored which answers were the most likely ones" if unknown else ""


def group_scores_again(group: str, scores: Sequence[Score], members: Sequence[TaskSettings]
                       ) -> Iterator[tuple[Score, tuple[float, ...], tuple[float, ...]]]:
    """Each score of a group, with the values and the standard errors that lm-eval can have computed from its tasks:
    weighted by their items, and with equal weights."""
    from lm_eval.api.metrics import aggregate_subtask_metrics, pooled_sample_stderr

    names = {m.task for m in members}
    for score in (s for s in scores if s.group and s.task == group):
        parts = [s for s in scores if not s.group and s.task in names and s.key == score.key]
        if not parts or len(parts) != len(names):
            yield score, (), ()
            continue
        values, sizes = [s.value for s in parts], [s.n for s in parts]
        means = tuple(float(aggregate_subtask_metrics(values, sizes, weighted)) for weighted in (True, False))
        errors = [s.stderr for s in parts]
        pooled = () if any(e is None for e in errors) else (float(pooled_sample_stderr(errors, sizes)),)
        yield score, means, pooled


# --- Target tasks, which lm-eval does not know ---

def _target(settings: TaskSettings, items: Sequence[Item], answers: Sequence[Answer]) -> ScoredAgain:
    """A target task, by its stored scorers. Raises TaskError for one that runs code, and for one with a pattern of a
    version that did not store it."""
    if settings.code:
        raise TaskError("it runs code of the user")
    as_json = "valid_json" in settings.higher_is_better
    texts = settings.scorers or (("json",) if as_json else ("exact",))
    try:
        judged = judges([AnswerScorer.parse(text) for text in texts])
    except (ValueError, ResourceError) as error:  # of another version, or of a package that is not here
        raise TaskError(f"its scorers cannot be used here: {error}") from None
    again = []
    for item, answer in zip(items, answers, strict=True):
        reference, text = item.doc.get("completion"), answer.responses[0].text if len(answer.responses) == 1 else None
        if not isinstance(reference, str) or text is None:
            raise TaskError("its texts are not stored")
        again.append(replace(answer, metrics={MetricKey.of(name, "none"): value
                                              for name, value in _values(judged, text, item).items()}))
    if not (as_json or settings.scorers) and [a.metrics for a in again] != [dict(a.metrics) for a in answers]:
        raise TaskError("it compares texts by a pattern of its own, which is not stored")
    return ScoredAgain(tuple(again), tuple(_means(settings, again)))


def _values(judged: Sequence[Judge], answer: str, item: Item) -> dict[str, float]:
    """The metrics of one answer; of an empty one where a pattern takes too long, as in the evaluation."""
    for text in (answer, ""):
        try:
            with time_limit(ANSWER_TIMEOUT):
                return {k: v for judge in judged for k, v in judge.values(text, item.doc).items()}
        except OutOfTime:
            continue
        except (ValueError, RecursionError):
            raise TaskError(f"the reference of item {item.index} is not JSON") from None
    raise TaskError(f"scoring the answer to item {item.index} takes more than {ANSWER_TIMEOUT:g} s")


def _means(settings: TaskSettings, answers: Sequence[Answer]) -> Iterator[Score]:
    """The mean of each metric with lm-eval's standard error."""
    from lm_eval.api.metrics import mean, mean_stderr

    for key in answers[0].metrics if answers else ():
        values = [a.metrics[key] for a in answers]
        metric = MetricKey(key)
        yield Score(task=settings.task, metric=metric.metric, filter=metric.filter, value=float(mean(values)),
                    stderr=float(mean_stderr(values)) if len(values) > 1 else None, n=len(values),
                    primary=key == settings.primary)
