"""Prints the reference of the command line as Markdown, and implements ``skill``, which prints instructions for agents.

    python -m aftertune.cli.reference > docs/commands.md
    aftertune skill > SKILL.md

`make docs` runs this, and a test compares the two. ``typer utils docs`` is not used, because it cuts the summaries,
leaves required options out of the usage line, and escapes quotes in code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer

from aftertune.cli.console import emit
from aftertune.cli.help import arrange, default_of, help_of, usage_form
from aftertune.cli.options import JsonFlag


def reference() -> str:
    """Every verb with its help, its arguments, and its options with their defaults."""
    import typer

    from aftertune.cli import GROUPS, app

    group: Any = typer.main.get_command(app)
    blocks = ["# Commands", "Written by `make docs` from the program itself: what the `--help` of each verb says.",
              "Before the verb: " + " ".join(f"`{p.opts[0]}`: {_text(p.help)}" for p in group.params),
              _text(group.epilog), *(f"{title}: " + " · ".join(f"[{verb}](#{verb})" for verb in verbs)
                                       for title, verbs in GROUPS.items())]
    for verb, command in group.commands.items():
        blocks += _verb(verb, command)
    return "\n\n".join(blocks) + "\n"


def skill(as_json: JsonFlag = False) -> None:
    """Print instructions for an agent that reads results: the verbs that only read, and how to quote a verdict."""
    text = (Path(__file__).parent / "skill.md").read_text(encoding="utf-8")
    if as_json:
        emit({"skill": text})
    else:
        typer.echo(text, nl=False)


def _verb(verb: str, command: Any) -> list[str]:
    """The section of one verb."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    required = [f"{p.opts[0]} {p.name.upper()}" for p in options if p.required]
    usage = " ".join([f"aftertune {verb}", *map(usage_form, arguments), *required, "[OPTIONS]"])
    blocks = [f"## {verb}", _text(" ".join(command.help.split())), f"```text\n{usage}\n```"]
    if arguments:
        blocks.append(_table(("argument", "what it is"), ((f"`{usage_form(p)}`", _text(p.help)) for p in arguments)))
    panels = arrange(verb, options)
    for panel, members in panels.items():
        rows = ((", ".join(f"`{name}`" for name in (*p.opts, *p.secondary_opts)),
                 "required" if p.required else f"`{default}`" if (default := default_of(p)) else "",
                 _text(help_of(p))) for p in members)
        blocks.append(_table((panel.lower() if len(panels) > 1 else "option", "default", "what it does"), rows))
    return blocks


def _text(text: str) -> str:
    """Help as Markdown: everything outside code spans is escaped."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([*_|~\[\]])", r"\\\1", p).replace("<", "&lt;") for p in parts)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(reference(), end="")
