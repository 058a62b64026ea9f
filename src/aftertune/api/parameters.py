"""Makes the keywords of a function from the fields of specifications, and gives its errors the words of Python.

    @with_settings(EvalSpec, TaskSpec)
    def evaluate(model: str, **settings: Unpack[EvaluateSettings]) -> Evaluation:
        spec = specification(EvalSpec, settings)

The names are those of the options of the command line: ``--num-fewshot 5`` is ``num_fewshot=5``, and ``--rank 8``,
which is the field ``lora.r`` of a study, is ``rank=8``. A part of a specification can also be given whole, as
``lora={"r": 8}``.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeAlias, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from aftertune.errors import AftertuneError, InputError, nearest
from aftertune.study import EarlySpec, EvalSpec, Spec, TaskSpec, TuneSpec, WatchSpec, explain
from aftertune.study.matrix import nested
from aftertune.study.own_task import OwnTask
from aftertune.study.spec_options import SpecOption, kind_of, options_of

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound=Spec)

#: What a function takes as its ledger: an open one, its path, or None for the one of the command line.
LedgerPlace: TypeAlias = "Ledger | str | Path | None"


def settings_of(*specs: type[Spec], without: Sequence[str] = ()) -> dict[str, SpecOption]:
    """Keyword -> option, for the flags of some specifications. without: keywords that a function has of its own."""
    return {option.parameter: option for spec in specs for option in options_of(spec)
            if option.parameter not in without}


def with_settings(*specs: type[Spec], without: Sequence[str] = (), further: Mapping[str, str] | None = None
                  ) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """The function with the keywords of these specifications in its signature, for help() and completion.

    further: keyword -> type, of those that the function takes among its settings beside them. Its expected errors are
    raised with advice for Python (`python_advice`).
    """
    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            with python_advice():
                return function(*args, **kwargs)

        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if not specs or p.kind is not p.VAR_KEYWORD]
        settings = settings_of(*specs, without=[*without, *(p.name for p in own)])
        keywords = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=type_text(option),
                                      default=option.field.get_default(call_default_factory=True)
                                      if not option.field.is_required() else None)
                    for name, option in settings.items()]
        own += [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=None)
                for name, kind in (further or {}).items()]
        run.__signature__ = signature.replace(parameters=[*own, *keywords])  # type: ignore[attr-defined]
        run.__settings__ = settings  # type: ignore[attr-defined]
        return run

    return decorate


def specification(spec: type[S], settings: Mapping[str, Any], **fields: Any) -> S:
    """A specification from keywords; those that are None are left at their defaults. fields: whole fields of it.

    Raises InputError for an unknown keyword, with the nearest known ones, and for a wrong value.
    """
    options, values = settings_of(spec), {}
    for name, value in settings.items():
        if value is None:
            continue
        option = options.get(name)
        whole = name in spec.model_fields and isinstance(value, Spec | Mapping) and (
            option is None or get_origin(kind_of(option.field.annotation)) is not dict or isinstance(value, Spec))
        if whole or option is None:
            check_names(name, spec)
            values[name] = value.model_dump(exclude_unset=True) if isinstance(value, Spec) else value
        else:
            values[option.path] = _for_field(option, value)
    try:
        return spec(**{**nested(values), **fields})
    except ValidationError as error:
        text = explain(error).replace("`study`: ", "")
        for name, option in options.items():
            text = text.replace(f"`{option.path}`", f"`{name}`")
        raise InputError(text) from None


def check_names(name: str, *specs: type[Spec], without: Sequence[str] = ()) -> None:
    """Raise InputError for a keyword that is neither an option nor a field of the specifications."""
    fields = {field for spec in specs for field in spec.model_fields}
    known = sorted({*settings_of(*specs), *fields} - set(without))
    if name not in known:
        raise InputError(f"unknown setting {name!r}{nearest(name, known)}; allowed: {', '.join(known)}")


def alone(whole: str, **given: Any) -> None:
    """Raise InputError where a function is given settings beside a whole specification, which has them all."""
    names = [name for name, value in given.items() if value is not None and value != ()]
    if names:
        raise InputError(f"{', '.join(names)} beside {whole}: it has every setting, so {names[0]} has no effect; set "
                         f"{'it' if len(names) == 1 else 'them'} there, with spec.model_copy(update={{…}}) or a new "
                         "specification")


def comma_separated(text: str | None) -> list[str]:
    """The parts of a text between commas, without spaces around them and without empty ones."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _for_field(option: SpecOption, value: Any) -> Any:
    """One text or number for a field that takes several, as the command line allows it."""
    if get_origin(kind_of(option.field.annotation)) is tuple and isinstance(value, str):
        return (value,) if option.flag.repeatable else tuple(comma_separated(value))
    return value


@contextlib.contextmanager
def opened(ledger: LedgerPlace, *, create: bool = True) -> Iterator[Ledger]:
    """The ledger that a function was given: an open one stays open. create: make a missing one."""
    from aftertune.ledger import Ledger

    if isinstance(ledger, Ledger):
        yield ledger
        return
    if ledger is not None and not isinstance(ledger, str | Path):
        raise InputError(f"ledger is a {type(ledger).__name__}; allowed are an open Ledger, its path, and None")
    with Ledger(ledger, create=create) as own:
        yield own


# --- Types as text, for the signatures ---


def type_text(option: SpecOption) -> str:
    """The type of a keyword as an annotation: "int | None", "Mapping[str, int] | None"."""
    return f"{_type_text(option.field.annotation)} | None"


def _type_text(annotation: Any) -> str:
    kind = kind_of(annotation)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        further = [_type_text(a) for a in _alternatives(annotation) if kind_of(a) is not kind]
        return " | ".join([f"Literal[{', '.join(map(_quoted, arguments))}]", *further])
    if origin is dict:
        return f"Mapping[str, {_type_text(arguments[1])}]"
    if origin is tuple:
        return f"str | Sequence[{'int' if arguments[0] is int else 'str'}]"
    if kind is Path:
        return "str | Path"
    return kind.__name__ if isinstance(kind, type) and not issubclass(kind, BaseModel) else "Any"


def _alternatives(annotation: Any) -> list[Any]:
    """The members of a union, without None."""
    while get_origin(annotation) is not None and hasattr(annotation, "__metadata__"):
        annotation = get_args(annotation)[0]
    members = get_args(annotation) if get_origin(annotation) not in (Literal, None) else ()
    return [m for m in members if m is not type(None)]


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


# --- Advice for Python ---

#: Options that take no value, beside those of the specifications.
_SWITCHES = frozenset({"force", "common", "again", "strict", "require-proof", "keep-going", "published", "take-over",
                       "until-decided", "details", "lost", "gained"})
#: Command -> function, where the names differ.
_FUNCTIONS = {"eval": "evaluate", "plan-items": "plan_items", "import": "import_results", "run": "Study.run",
              "plan": "Study.plan", "study": "Study.load", "runs": "Ledger().search"}
_VERBS = ("eval", "tune", "compare", "flips", "gate", "drift", "plan-items", "record", "report", "card", "audit",
          "import", "run", "plan", "study", "runs", "soften", "blend")
_FLAG = re.compile(r"--(no-)?([a-z][a-z0-9-]*)"
                   r"(?:[ =](?!or\b|and\b)([A-Z][A-Z_]*=[A-Z]+|[A-Z][A-Z]+|[a-z_]+=[\w.-]+|[\d.]+(?<!\.)|<[^ ]+>))?")
#: Words after a flag that are not its value.
_NO_VALUES = frozenset(("or", "and", "to", "with", "for", "is", "are", "goes", "go", "here", "that", "this", "in", "on",
                        "of", "which", "as"))
#: Flag -> keyword, where they differ.
_RENAMED = {"task": "tasks"}
_WORD = re.compile(r" ([\w./:-]*\w)")
_CHOICE = re.compile(r" ([a-z][\w-]*)")
_COMMAND = re.compile(r"`aftertune (" + "|".join(_VERBS) + r")`")


@contextlib.contextmanager
def python_advice() -> Iterator[None]:
    """Give expected errors the words of Python: keywords in place of flags, calls in place of commands."""
    try:
        yield
    except AftertuneError as error:
        error.args = (in_python(str(error)), *error.args[1:])
        raise


def in_python(text: str) -> str:
    """A message for the command line as one for Python: ``--margin TASK=VALUE`` is ``margin={"TASK": VALUE}``."""
    parts, at = [], 0
    for match in _FLAG.finditer(text):
        if match.start() < at or _in_command(text, match.start()):
            continue
        written, end = _keyword(match, text)
        parts += [text[at:match.start()], written]
        at = end
    changed = "".join(parts) + text[at:]
    changed = _COMMAND.sub(lambda m: f"`aftertune.{_FUNCTIONS.get(m[1], m[1])}`", changed)
    return changed.replace("run the same command again", "make the same call again").replace("the same command",
                                                                                          "the same call")


def _in_command(text: str, at: int) -> bool:
    """Whether a place is inside a command in backticks, which stays as it is."""
    start = text.rfind("`", 0, at)
    return start >= 0 and text.startswith("`aftertune ", start) and "`" in text[at:]


def _keyword(match: re.Match[str], text: str) -> tuple[str, int]:
    """A flag with its value as a keyword, and where they end in the text."""
    option = _options().get(match[2])
    name, value, end = match[2].replace("-", "_") if option is None else option.parameter, match[3], match.end()
    kind = None if option is None else kind_of(option.field.annotation)
    if match[1] or kind is bool or match[2] in _SWITCHES:
        return f"{name}={not match[1]}", match.end() if value is None else match.start(3) - 1
    if value is None and get_origin(kind) is Literal and (found := _CHOICE.match(text, end)) and \
            found[1] in get_args(kind):
        return f'{name}="{found[1]}"', found.end()
    if value is None and option is None and (found := _WORD.match(text, end)) and found[1] not in _NO_VALUES:
        return f'{_RENAMED.get(name, name)}="{found[1]}"', found.end()
    if value is None:
        return f"{_RENAMED.get(name, name)}=", end + text[end:].startswith((" '", ' "'))
    if "=" in value:
        key, _, inner = value.partition("=")
        return f'{_RENAMED.get(name, name)}={{"{key}": {inner}}}', end
    quoted = not value[0].isdigit() and not value.isupper()
    return f'{name}="{value}"' if quoted else f"{name}={value}", end


@functools.cache
def _options() -> dict[str, SpecOption]:
    """Flag without dashes -> option, of all specifications."""
    specs: tuple[type[Spec], ...] = (EarlySpec, WatchSpec, OwnTask, TaskSpec, EvalSpec, TuneSpec)
    return {name.removeprefix("--"): option for spec in specs for option in options_of(spec) for name in option.names}
