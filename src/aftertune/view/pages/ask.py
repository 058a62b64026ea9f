"""A prompt for the base and the tuned model, with both answers side by side. Only with `--with-model`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aftertune import bounds
from aftertune.errors import AftertuneError, InputError, ResourceError, one_line
from aftertune.redaction import public_text
from aftertune.view.both_models import DEFAULT_TOKENS, AskedPrompt, BothModels
from aftertune.view.guard import form_of
from aftertune.view.item_texts import word_diff
from aftertune.view.rendering import NavigationLink, context_of, render

#: The name of the setting that has the models.
MODELS = "models"


def ask(request: Request) -> Response:
    """The empty form."""
    return _page(request, _models(request), AskedPrompt("", DEFAULT_TOKENS))


def answer(request: Request) -> Response:
    """The form with both answers, or with one line that says why there are none."""
    models, question = _models(request), _asked(request)
    try:
        base, tuned = models.ask(question)
    except AftertuneError as error:
        status = 409 if isinstance(error, ResourceError) else 400 if isinstance(error, InputError) else 500
        return _page(request, models, question, status, fault=error)
    texts = [(one.name, parts, one.about)
             for one, parts in zip((base, tuned), word_diff(base.text, tuned.text), strict=True)]
    return _page(request, models, question, texts=texts, same=base.text == tuned.text)


def _asked(request: Request) -> AskedPrompt:
    """What the form asks. A number of tokens that is none becomes 0, which is refused with what is allowed.
    Browsers send a line end as two characters; the models get one, as on the command line."""
    form = form_of(request)
    written = form.get("tokens", str(DEFAULT_TOKENS))
    tokens = int(written) if written.isascii() and written.isdigit() and len(written) < 9 else 0
    return AskedPrompt(form.get("prompt", "").replace("\r\n", "\n"), tokens, form.get("chat") == "1")


def _models(request: Request) -> BothModels:
    """The models that the command line named."""
    models = context_of(request).settings.get(MODELS)
    if not isinstance(models, BothModels):
        raise InputError("this view has no models to ask; start it with --with-model BASE --with-model TUNED")
    return models


def _page(request: Request, models: BothModels, question: AskedPrompt, status: int = 200, *,
          fault: AftertuneError | None = None, **values: object) -> Response:
    line = public_text(one_line(str(fault))) if fault else ""
    return render(request, "ask.html", title="Ask both", http_status=status, **{
        "names": models.names, "question": question, "fault": line, "texts": (), "same": False,
        "most_tokens": bounds.VIEW_TOKENS, "most_characters": bounds.VIEW_PROMPT, **values})


ROUTES = [Route("/ask", ask, methods=["GET"]), Route("/ask", answer, methods=["POST"])]
NAVIGATION = NavigationLink("Both models", "/ask", 70, needs=MODELS)
