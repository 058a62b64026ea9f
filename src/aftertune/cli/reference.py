"""Prints the reference of the command line as Markdown.

    python -m aftertune.cli.reference > docs/commands.md

`make docs` runs this, and a test compares the two. ``typer utils docs`` is not used, because it cuts the summaries,
leaves required options out of the usage line, and escapes quotes in code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any


def reference() -> str:
    """Every verb with its help, its arguments, and its options with their defaults."""
    import typer

    from aftertune.cli import app

    group: Any = typer.main.get_command(app)
    blocks = ["# Commands", "Written by `make docs` from the program itself: what the `--help` of each verb says.",
              "Before the verb: " + " ".join(f"`{p.opts[0]}`: {_text(p.help)}" for p in group.params),
              _text(group.epilog), " · ".join(f"[{verb}](#{verb})" for verb in group.commands)]
    for verb, command in group.commands.items():
        blocks += _verb(verb, command)
    return "\n\n".join(blocks) + "\n"


def _verb(verb: str, command: Any) -> list[str]:
    """The section of one verb."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    required = [f"{p.opts[0]} {p.name.upper()}" for p in options if p.required]
    usage = " ".join([f"aftertune {verb}", *map(_usage_form, arguments), *required, "[OPTIONS]"])
    blocks = [f"## {verb}", _text(" ".join(command.help.split())), f"```text\n{usage}\n```"]
    if arguments:
        blocks.append(_table(("argument", "what it is"), ((f"`{_usage_form(p)}`", _text(p.help)) for p in arguments)))
    rows = ((", ".join(f"`{name}`" for name in (*p.opts, *p.secondary_opts)), _default(p), _help(p)) for p in options)
    return [*blocks, _table(("option", "default", "what it does"), rows)]


def _usage_form(argument: Any) -> str:
    """An argument as the usage line shows it."""
    name = argument.metavar or argument.name.upper()
    if argument.nargs == -1:
        name = f"{name}..."
    return name if argument.required else f"[{name}]"


def _default(option: Any) -> str:
    """An option's default; empty for a flag that is off and for None."""
    if option.required:
        return "required"
    if option.is_flag:
        return f"`{option.opts[0]}`" if option.default else ""
    return "" if option.default is None else f"`{option.default}`"


def _help(option: Any) -> str:
    """An option's help, its allowed range, and whether it is repeatable."""
    low, high = option.min, option.max
    allowed = f"from {low:g} to {high:g}" if low is not None and high is not None else \
        f"{low:g} or more" if low is not None else f"{high:g} at most" if high is not None else ""
    repeatable = "repeatable" if option.multiple and "epeatable" not in option.help else ""
    return " ".join([_text(option.help), *(f"({note})" for note in (allowed, repeatable) if note)])


def _text(text: str) -> str:
    """Help as Markdown: everything outside code spans is escaped."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([*_|~\[\]])", r"\\\1", p).replace("<", "&lt;") for p in parts)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(reference(), end="")
