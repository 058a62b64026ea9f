"""Makes the options of a verb from the fields of a specification that have an `aftertune.study.Flag`.

    @with_options
    def tune(*, recipe: Given[TuneSpec], preview: Annotated[bool, typer.Option(…)] = False) -> None:
        spec = recipe.make()

The parameter ``recipe`` stands for one option of each marked field of `TuneSpec` and of its parts. The name, type, help
and default of an option are those of the field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError

from aftertune.api.parameters import comma_separated as comma_separated
from aftertune.errors import InputError
from aftertune.study import Spec, explain
from aftertune.study.matrix import nested
from aftertune.study.spec_options import SpecOption, kind_of, options_of
from aftertune.values import from_json

S = TypeVar("S", bound=Spec)

# Arguments and options that several verbs have.
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
StoredEvaluation = Annotated[str, typer.Argument(help="Id or name of an evaluation.")]
Common = Annotated[bool, typer.Option("--common", help="Compare on the items that both have.")]
Force = Annotated[bool, typer.Option("--force", help="Compare despite different settings; the result is marked.")]
TakeOver = Annotated[bool, typer.Option(
    "--take-over", help="Take over evaluations that a process of another machine holds and that has ended.")]
StudyFile = Annotated[Path, typer.Argument(help="Study file (YAML).")]


@dataclass(frozen=True, slots=True)
class Given(Generic[S]):
    """The fields of a specification that the command line sets. values: dotted path -> value."""

    spec: type[S]
    values: Mapping[str, Any]

    def make(self, **further: Any) -> S:
        """The specification, with further fields. Raises InputError that names the option of a wrong value."""
        options = list(options_of(self.spec))
        for missing in options:
            given = [o for o in options if o.part and o.part == missing.part and o.path in self.values]
            if given and missing.field.is_required() and missing.path not in self.values:
                raise InputError(f"{given[0].names[0]} and {missing.names[0]} go together; {missing.names[0]}: "
                                 f"{missing.help}")
        try:
            return self.spec(**{**nested(dict(self.values)), **further})
        except ValidationError as error:
            raise InputError(self.named(explain(error).replace("`study`: ", ""))) from None  # of no single field

    def named(self, text: str) -> str:
        """A message about fields, with the names of their options."""
        for option in options_of(self.spec):
            text = text.replace(f"`{option.path}`", f"`{option.names[0]}`")
        return text

    def names(self) -> list[str]:
        """Names of the options that the command line sets."""
        return [o.names[0] for o in options_of(self.spec) if o.path in self.values]


def as_parameter(option: SpecOption) -> Parameter:
    """The option as a parameter that typer reads."""
    default = option.field.get_default(call_default_factory=True) if not option.required else Parameter.empty
    if not isinstance(default, str | int | float | Path | type):
        default = None
    names = option.names
    switch = default is True or (default is None and kind_of(option.field.annotation) is bool)
    if switch:
        names = (f"{names[0]}/--no-{names[0].removeprefix('--')}", *names[1:])
    info = typer.Option(*names, help=option.help, metavar=option.flag.form or None) if names[0].startswith("--") else \
        typer.Argument(metavar=names[0], help=option.help)
    kind = list[str] if option.flag.repeatable else _typed(option.field.annotation)
    return Parameter(option.parameter, Parameter.KEYWORD_ONLY, default=default,
                     annotation=Annotated[kind if default is not None else kind | None, info])


def parse_option(option: SpecOption, value: Any) -> Any:
    """The value for the field, from the value that typer parsed. InputError if its form is wrong."""
    kind = kind_of(option.field.annotation)
    if option.flag.repeatable:
        return tuple(value)
    if get_origin(kind) is tuple:
        return tuple(comma_separated(value)) or None
    if get_origin(kind) is dict:
        values = get_args(kind)[1]
        return parse_settings(option.names[0], value) if values is Any else _pairs(option, value, values is not str)
    return value


def _pairs(option: SpecOption, texts: list[str], numeric: bool) -> dict[str, Any]:
    """``["hellaswag=200"]`` as {"hellaswag": "200"}. InputError if a text has another form."""
    pairs = {}
    for text in texts:
        key, _, value = (part.strip() for part in text.partition("="))
        if not key or not value or (numeric and not value.isdigit()):
            raise InputError(f"{option.names[0]} {text!r}: write {option.flag.form}, for example {option.names[0]} "
                             f"{option.flag.example}")
        pairs[key] = value
    return pairs


def option_of(spec: type[BaseModel], path: str) -> Any:
    """A typer option with the name and help of one field, for a verb that needs only this field."""
    option = next(o for o in options_of(spec) if o.path == path)
    return typer.Option(*option.names, help=option.help)


def with_options(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with each `Given` parameter replaced by the options of its specification."""
    specs: dict[str, tuple[type[Spec], list[SpecOption]]] = {}
    parameters = [Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    for parameter in signature(verb, eval_str=True).parameters.values():
        if get_origin(parameter.annotation) is Given:
            (spec,) = get_args(parameter.annotation)
            specs[parameter.name] = spec, list(options_of(spec))
            parameters += [as_parameter(option) for option in specs[parameter.name][1]]
        else:
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY))

    def run(context: typer.Context, **values: Any) -> None:
        for name, (spec, options) in specs.items():
            parsed = [(option, values.pop(option.parameter)) for option in options]
            values[name] = Given(spec, {o.path: parse_option(o, value) for o, value in parsed if _given(context, o)})
        verb(**values)

    run.__name__, run.__doc__, run.__module__ = verb.__name__, verb.__doc__, verb.__module__
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def parse_settings(flag: str, text: str) -> dict[str, Any]:
    """``a=1,b=[2]`` or a JSON object as a mapping. Values are parsed as JSON; if that fails, they are text."""
    if text.lstrip().startswith("{"):
        try:
            return dict(from_json(text))
        except ValueError as error:
            raise InputError(f"{flag} is not valid JSON: {error}") from None
    result: dict[str, Any] = {}
    for part in comma_separated(text):
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"{flag} {part!r}: write NAME=VALUE, with commas between them")
        try:
            result[key.strip()] = from_json(value.lower() if value in ("True", "False") else value)
        except ValueError:
            result[key.strip()] = value
    return result


def _given(context: typer.Context, option: SpecOption) -> bool:
    """Whether the command line sets the option."""
    source = context.get_parameter_source(option.parameter)
    return source is not None and source.name != "DEFAULT"


def _typed(annotation: Any) -> Any:
    """The type that typer parses a field as; values of a Literal are checked by the specification."""
    kind = kind_of(annotation)
    if get_origin(kind) is dict:
        return str if get_args(kind)[1] is Any else list[str]
    if get_origin(kind) in (Literal, tuple):
        return str
    return Path if issubclass(kind, BaseModel) else kind
