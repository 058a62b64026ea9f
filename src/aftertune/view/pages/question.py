"""One question across all models: how each evaluation in the ledger answered it."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aftertune.catalog import MetricKey
from aftertune.comparison.flips import question_of_document, side_of
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
    """The answer of one evaluation. value: of the metric; scores: (text, chosen) of each choice."""

    evaluation: str
    name: str
    right: bool
    value: str
    side: FlipSide
    scores: tuple[tuple[str, bool], ...]
    about: tuple[str, ...]


def question_page(request: Request) -> Response:
    """The page."""
    task, item_hash = request.path_params["task"], request.path_params["item"]
    with context_of(request).ledgers.read() as ledger:
        item = ledger.find_item(task, item_hash)
        answers = ledger.answers_to(task, item_hash)
        key = _primary(ledger, task, answers)
    asked = item.asked or question_of_document(item)
    gold = " | ".join(asked.choices[g] for g in asked.gold if g < len(asked.choices)) or asked.reference
    rows = [_model_answer(key, asked, a) for a in answers if key in a.answer.metrics]
    return render(request, "question.html", title=f"{task_title(task)}, item {item.index}", item=item, asked=asked,
                  gold=gold, rows=rows, task=task, unit=score_unit(MetricKey(key).metric) if key else "",
                  metric=metric_title(MetricKey(key).metric, MetricKey(key).filter) if key else "",
                  right=sum(r.right for r in rows), left_out=len(answers) - len(rows))


def _primary(ledger: Ledger, task: str, answers: list[QuestionAnswer]) -> str:
    """The primary metric of the task in the newest evaluation."""
    for found in reversed(answers):
        settings = ledger.find_evaluation(found.evaluation).task(task)
        if settings is not None:
            return settings.primary
    return ""


def _model_answer(key: str, asked: Asked, found: QuestionAnswer) -> ModelAnswer:
    side = side_of(key, asked, found.answer)
    best = max(range(len(side.scores)), key=side.scores.__getitem__) if side.scores else -1
    return ModelAnswer(evaluation=found.evaluation, name=found.name, right=side.right, side=side,
                       value=fmt.raw(found.answer.metrics[key], 3),
                       scores=tuple((fmt.raw(score, 3), n == best) for n, score in enumerate(side.scores)),
                       about=about_text(side) if not side.scores else ())


ROUTES = [Route("/question/{task:path}/{item}", question_page)]
