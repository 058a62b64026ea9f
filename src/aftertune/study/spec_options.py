"""Lists the options of a specification: one for each field that has an `aftertune.study.Flag`, and those of its parts.

    [option.parameter for option in options_of(TuneSpec)]       ["data", "format", …, "method", …, "rank", …, "model"]

The flags of the command line (`aftertune.cli.options`) and the parameters of the functions (`aftertune.api`) are made
from them, so that both have the same names, types, defaults and help.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from aftertune.study.fields import Flag


@dataclass(frozen=True, slots=True)
class SpecOption:
    """One option. path: of its field, with dots; part: path of the optional part that contains the field, "" for none;
    required: whether a command needs it."""

    path: str
    field: FieldInfo
    flag: Flag
    part: str = ""
    required: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names on the command line, the main one first."""
        return self.flag.names or ("--" + self.path.rpartition(".")[2].replace("_", "-"),)

    @property
    def parameter(self) -> str:
        """Name as a parameter of a function."""
        return self.names[0].removeprefix("--").replace("-", "_").lower()

    @property
    def help(self) -> str:
        """The field's description; the values of a Literal are added where it does not name them."""
        text, kind = self.field.description or "", kind_of(self.field.annotation)
        choices = [str(value) for value in get_args(kind)] if get_origin(kind) is Literal else []
        if all(choice in text for choice in choices):
            return text
        return f"{text.rstrip('.')}: {', '.join(choices[:-1])} or {choices[-1]}."


def options_of(spec: type[BaseModel], before: str = "", part: str = "", required: bool = True) -> Iterator[SpecOption]:
    """The options of a specification and of its parts, in the order of their fields."""
    for name, field in spec.model_fields.items():
        path, kind = before + name, kind_of(field.annotation)
        needed = required and field.is_required()
        flag = next((item for item in field.metadata if isinstance(item, Flag)), None)
        if flag is not None:
            yield SpecOption(path, field, flag, part, needed)
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            optional = path if field.default is None else part
            yield from options_of(kind, f"{path}.", optional, needed)


def kind_of(annotation: Any) -> Any:
    """A field's type without None and without constraints."""
    if get_origin(annotation) is Annotated:
        return kind_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return next(kind_of(member) for member in get_args(annotation) if member is not NoneType)
    return annotation
