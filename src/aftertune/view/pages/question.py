"""One question across all models: how each evaluation in the ledger answered it, by the metric that judges it there.

Evaluations of one task may have other metrics, such as one that was imported and one with a scorer of one's own. Those
with the same primary metric are one table; every other metric of an answer stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aftertune.catalog import MetricKey
from aftertune.comparison.flips import question_of_document, side_of
from aftertune.errors import InputError
from aftertune.ledger import Ledger
from aftertune.ledger.questions import QuestionAnswer
from aftertune.report import formatting as fmt
from aftertune.report.changed_items import score_unit
from aftertune.report.names import metric_title, task_title
from aftertune.values import Asked, FlipSide
from aftertune.view.item_texts import about_text
from aftertune.view.rendering import context_of, render


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAnswer:
    """The answer of one evaluation. right: None where its metric is not right or wrong on each item; value: of that
    metric; others: of its other metrics; scores: (text, chosen) of each choice."""

    evaluation: str
    name: str
    right: bool | None
    value: str
    others: str
    side: FlipSide
    scores: tuple[tuple[str, bool], ...]
    about: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedAnswers:
    """The answers that one metric judges. unit: of the scores of the choices; choices: how many are scored, 0 for
    generated answers."""

    metric: str
    unit: str
    rows: tuple[ModelAnswer, ...]
    choices: int


def question_page(request: Request) -> Response:
    """The page."""
    task, item_hash = request.path_params["task"], request.path_params["item"]
    with context_of(request).ledgers.read() as ledger:
        item = ledger.find_item(task, item_hash)
        by_metric: dict[str, list[QuestionAnswer]] = {}
        for answer in ledger.answers_to(task, item_hash):
            by_metric.setdefault(_primary(ledger, task, answer), []).append(answer)
    asked = item.asked or question_of_document(item)
    gold = " | ".join(asked.choices[g] for g in asked.gold if g < len(asked.choices)) or asked.reference
    judged = [_judged(key, asked, answers) for key, answers in by_metric.items()]
    known = [row.right for group in judged for row in group.rows if row.right is not None]
    return render(request, "question.html", title=f"{task_title(task)}, item {item.index}", item=item, asked=asked,
                  gold=gold, judged=judged, task=task, right=sum(known), known=len(known),
                  models=sum(len(group.rows) for group in judged))


def _primary(ledger: Ledger, task: str, found: QuestionAnswer) -> str:
    """The metric that judges an answer: the primary one of its evaluation, else the first that the answer has."""
    try:
        settings = ledger.find_evaluation(found.evaluation).task(task)
    except InputError:  # removed since
        settings = None
    own = settings.primary if settings is not None else ""
    return own if own in found.answer.metrics else next(iter(found.answer.metrics), "")


def _judged(key: str, asked: Asked, answers: Sequence[QuestionAnswer]) -> JudgedAnswers:
    rows = tuple(_model_answer(key, asked, answer) for answer in answers)
    return JudgedAnswers(metric=_title(key), unit=score_unit(MetricKey(key).metric) if key else "", rows=rows,
                         choices=max(len(row.scores) for row in rows))


def _model_answer(key: str, asked: Asked, found: QuestionAnswer) -> ModelAnswer:
    values = found.answer.metrics
    side = side_of(key, asked, found.answer) if key else FlipSide(right=False, chosen="")
    best = max(range(len(side.scores)), key=side.scores.__getitem__) if side.scores else -1
    return ModelAnswer(
        evaluation=found.evaluation, name=found.name, right=side.right if values.get(key) in (0, 1) else None,
        side=side, value=fmt.raw(values.get(key), 3),
        scores=tuple((fmt.raw(s, 3), n == best) for n, s in enumerate(side.scores)),
        others=", ".join(f"{_title(name)} {fmt.raw(value, 3)}" for name, value in values.items() if name != key),
        about=about_text(side) if not side.scores else ())


def _title(key: str) -> str:
    return metric_title(MetricKey(key).metric, MetricKey(key).filter) if key else "no metric"


ROUTES = [Route("/question/{task:path}/{item}", question_page)]
