"""Writes what is made from the functions: the reference, and the types of their keywords for editors.

    python -m aftertune.api.reference > docs/api.md
    python -m aftertune.api.reference settings > src/aftertune/api/settings.py
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import aftertune
from aftertune.actions import Shown
from aftertune.api.evaluating import UNTIL_DECIDED
from aftertune.api.parameters import settings_of, type_text
from aftertune.study import EarlySpec, EvalSpec, TaskSpec, TuneSpec
from aftertune.study.checkpoints import CheckpointSpec
from aftertune.study.cure import CureSpec
from aftertune.study.own_task import OwnTask

#: The characters of a line.
_WIDTH = 120
#: Class of keywords -> the specifications that it is made from, and the keywords that the function has of its own.
SETTINGS: dict[str, tuple[tuple[Any, ...], tuple[str, ...]]] = {
    "EvaluateSettings": ((OwnTask, TaskSpec, EvalSpec, EarlySpec), ("model", "tokenizer", "adapter")),
    "CheckpointSettings": ((CheckpointSpec,), ()),
    "CureSettings": ((CureSpec,), ("keep",)),
    "TuneSettings": ((TuneSpec,), ("model", "data")),
}
#: Class of keywords -> keyword -> type, of those that are no options.
_FURTHER = {"TuneSettings": dict.fromkeys(("lora", "early_stop"), "Mapping[str, Any] | None"),
            "EvaluateSettings": UNTIL_DECIDED}
#: Values and classes that the reference describes beside the functions, with their methods.
CLASSES = ("Ledger", "Study", "Evaluation", "Comparison", "Tuning", "Flips", "GateResult", "Drift")
_HEAD = """# Python

<!-- made by `make docs` from the docstrings -->

Every function is a name of the package: `import aftertune`, then `aftertune.evaluate(…)`. [The notebook](notebook.md)
uses them in order. Keywords are named like the options of [the command line](commands.md). Margins and limits are in
points, discordance and power in percent; the values that the functions return hold fractions.
"""


def reference() -> str:
    """docs/api.md."""
    functions = [n for n in aftertune.__all__ if inspect.isfunction(getattr(aftertune, n))]
    parts = [_HEAD, "## Functions\n", *(_function(n, getattr(aftertune, n)) for n in functions), "## Classes\n",
             *(_class(n, getattr(aftertune, n)) for n in CLASSES)]
    return "\n".join(parts)


def settings_module() -> str:
    """src/aftertune/api/settings.py."""
    lines = ['"""The keywords of functions that are fields of specifications, for editors and type checkers.', "",
             "Made by `make docs` (`aftertune.api.reference`): change the fields in `aftertune.study` instead.", '"""',
             "", "from __future__ import annotations", "", "from collections.abc import Mapping, Sequence",
             "from pathlib import Path", "from typing import Any, Literal, TypedDict"]
    for name, (specs, without) in SETTINGS.items():
        lines += ["", "", f"class {name}(TypedDict, total=False):",
                  f'    """Fields of {" and ".join(spec.__name__ for spec in specs)}; each may be left out."""', ""]
        for keyword, option in settings_of(*specs, without=without).items():
            lines += _field(keyword, type_text(option))
        lines += [f"    {keyword}: {kind}" for keyword, kind in _FURTHER.get(name, {}).items()]
    return "\n".join(lines) + "\n"


def _field(name: str, kind: str) -> list[str]:
    line = f"    {name}: {kind}"
    if len(line) <= _WIDTH:
        return [line]
    inner, _, rest = kind.partition("[")
    values, _, end = rest.rpartition("]")
    return [f"    {name}: {inner}[", *textwrap.wrap(values, _WIDTH - 8, initial_indent="        ",
                                                   subsequent_indent="        "), f"    ]{end}"]


def _function(name: str, function: Callable[..., Any]) -> str:
    """The section of a function: its call, its docstring and the keywords that are made from specifications."""
    settings = getattr(function, "__settings__", {})
    own = [p for p in inspect.signature(function).parameters.values() if p.name not in settings]
    call = f"aftertune.{name}({', '.join(_parameters(own))}{', **settings' if settings else ''})"
    text = [f"### {name}\n", f"```python\n{_wrapped(call)}\n```\n", _paragraphs(function.__doc__ or "")]
    if settings:
        text += ["| setting | type | meaning |", "|---|---|---|"]
        text += [f"| `{keyword}` | `{type_text(option).removesuffix(' | None').replace(' | ', ' or ')}` | "
                 f"{_cell(option.help)} |" for keyword, option in settings.items()]
        text.append("")
    return "\n".join(text)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _parameters(parameters: list[inspect.Parameter]) -> Iterator[str]:
    """The parameters with their defaults, without annotations."""
    starred = False
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and not starred:
            starred = True
            yield "*"
        default = "" if p.default is p.empty else f"={p.default!r}"
        yield f"**{p.name}" if p.kind is p.VAR_KEYWORD else f"{p.name}{default}"


def _wrapped(call: str) -> str:
    start, _, rest = call.partition("(")
    return textwrap.fill(f"{start}({rest}", _WIDTH, subsequent_indent=" " * (len(start) + 1), break_long_words=False)


def _class(name: str, cls: type) -> str:
    """The section of a class: its docstring, and the methods that a notebook uses."""
    text = [f"### {name}\n", _paragraphs(cls.__doc__ or "")]
    own = [m for m in _METHODS if callable(getattr(cls, m, None))]
    for method in (m for m in own if m != "to_dict" or issubclass(cls, Shown)):
        function = getattr(cls, method)
        given = [p for p in inspect.signature(function).parameters.values() if p.name not in ("self", "cls")]
        text += [f"`.{method}({', '.join(_parameters(given))})`\n", _paragraphs(function.__doc__ or "")]
    return "\n".join(text)


_METHODS = ("load", "run", "plan", "find", "search", "scores", "to_frame", "to_dict", "plot")


def _paragraphs(docstring: str) -> str:
    """A docstring as Markdown paragraphs, with double backticks as single ones."""
    text = inspect.cleandoc(docstring).replace("``", "`")
    return "\n\n".join(textwrap.fill(" ".join(part.split()), _WIDTH, break_long_words=False, break_on_hyphens=False)
                       for part in text.split("\n\n")) + "\n"


if __name__ == "__main__":
    sys.stdout.write(settings_module() if sys.argv[1:] == ["settings"] else reference())
