"""Writes the help of a verb: its options in panels, each with its name, its help and its default.

    aftertune eval --help                       usage, arguments, and one panel for each kind of options

A name is never cut: one that is wider than its column has a line of its own. `PANELS` says which options belong
together; options that it does not name, of verbs with few options, are in one panel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

#: Verb -> panel -> the options in it, in the order of the help. An option that is not named is in the last panel.
PANELS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "eval": {
        "Tasks and items": ("tasks", "limit", "sample", "sample-seed", "num-fewshot", "task-data", "letters",
                            "include-path", "allow-task-code"),
        "A task of your own": ("target", "scorer", "slice", "target-tokens", "target-shots"),
        "Model": ("adapter", "engine", "engine-args", "dtype", "device", "quantize", "revision", "tokenizer",
                  "trust-remote-code"),
        "Prompts and answers": ("apply-chat-template", "template-date", "system-instruction", "fewshot-as-multiturn",
                                "enable-thinking", "think-end-token", "gen-kwargs"),
        "Early stopping": ("until-decided", "against", "margin", "stop-target", "draw", "batch", "min-items",
                           "max-items", "max-width"),
        "Run": ("name", "memory", "threads", "workers", "join", "fork", "track", "take-over"),
    },
    "tune": {
        "Data": ("data", "format", "field", "encoding", "split", "subset", "skip-bad", "dedup", "examples", "held-out",
                 "validation", "template", "template-date", "learn", "max-length"),
        "Method": ("method", "backend", "rank", "alpha", "dropout", "target-modules"),
        "Training": ("epochs", "max-steps", "learning-rate", "schedule", "batch-size", "accumulation",
                     "gradient-checkpointing", "validate-every", "patience", "seed"),
        "Against forgetting": ("replay", "replay-share", "anchor"),
        "Evaluation during training": ("watch", "watch-every", "watch-margin", "stop-when-forgot", "target",
                                       "target-match", "target-pattern", "scorer", "target-tokens",
                                       "target-items", "keep-checkpoints", "keep-best"),
        "Model and output": ("out", "name", "merge", "dtype", "save-dtype", "device", "revision", "trust-remote-code"),
        "Run": ("preview", "dry-run", "tasks", "track"),
    },
}
_WIDE = 40  # the widest column of names


def arrange(verb: str, parameters: list[Any]) -> dict[str, list[Any]]:
    """Panel -> the options in it. Those of a verb without panels are in one, "Options"."""
    options = {p.opts[0].removeprefix("--"): p for p in parameters
               if p.param_type_name == "option" and not getattr(p, "hidden", False)}
    if verb not in PANELS:
        return {"Options": list(options.values())}
    panels = {panel: [options.pop(name) for name in names if name in options] for panel, names in
              PANELS[verb].items()}
    panels[list(panels)[-1]] += options.values()
    return panels


def show_help(command: Any, context: Any) -> None:
    """Print the help of a verb."""
    from rich.padding import Padding
    from rich.text import Text

    from aftertune.cli.streams import rich_console

    console = rich_console()
    parameters = command.get_params(context)
    arguments = [p for p in parameters if p.param_type_name == "argument"]
    required = [p.opts[0] + " " + _value(p) for p in parameters if p.param_type_name == "option" and p.required]
    usage = " ".join((context.command_path, *map(usage_form, arguments), *required, "[OPTIONS]"))
    console.print(Padding(Text.assemble(("Usage: ", "yellow"), (usage, "bold")), (1, 1)))
    for paragraph in (command.help or "").split("\n\n"):
        console.print(Padding(Text(" ".join(paragraph.split())), (0, 1, 1, 1)))
    for title, members in ({"Arguments": arguments} | arrange(command.name or "", parameters)).items():
        if members:
            console.print(_panel(title, members, console.width))


def usage_form(argument: Any) -> str:
    """An argument as the usage line shows it."""
    name = str(argument.metavar or argument.name.upper())
    if argument.nargs == -1 and " | " not in name and not name.endswith("…"):
        name = f"{name}…"
    return name if argument.required or name.startswith("[") else f"[{name}]"


def default_of(option: Any) -> str:
    """An option's default; "" for a flag that is off and for None."""
    if option.is_flag:
        return str(option.opts[0]) if option.default else ""
    return "" if option.default in (None, "") else str(option.default)


def help_of(parameter: Any) -> str:
    """The help of a parameter, with its allowed range, and whether it may be given several times."""
    kind = getattr(parameter, "type", parameter)  # earlier versions of typer have the range there
    low, high = getattr(kind, "min", None), getattr(kind, "max", None)
    allowed = f"from {low:,} to {high:,}" if low is not None and high is not None else \
        f"{low:,} or more" if low is not None else f"{high:,} at most" if high is not None else ""
    text = parameter.help or ""
    repeatable = "repeatable" if getattr(parameter, "multiple", False) and "epeatable" not in text else ""
    return " ".join([text, *(f"({note})" for note in (allowed, repeatable) if note)])


def _value(option: Any) -> str:
    """What is written after an option, "" for a flag: N, NUMBER, PATH, or its own form."""
    if option.is_flag:
        return ""
    names = {"int": "N", "float": "NUMBER", "path": "PATH"}
    kind = option.bare_type().lower() if hasattr(option, "bare_type") else option.type.name.partition(" ")[0]
    return str(option.metavar or names.get(kind.replace("integer", "int"), "TEXT"))


def _panel(title: str, members: list[Any], width: int) -> RenderableType:
    """A panel of parameters: names on the left, help on the right, below the name where that is too wide."""
    from rich.cells import cell_len
    from rich.console import Group
    from rich.padding import Padding
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    names = [_name(p) for p in members]
    column = min(max(map(cell_len, map(str, names))), _WIDE, max((width - 4) * 2 // 5, 20))
    rows: list[RenderableType] = []
    for parameter, name in zip(members, names, strict=True):
        text = Text(help_of(parameter))
        if parameter.required and parameter.param_type_name == "option":
            text.append(" [required]", "red")
        if parameter.param_type_name == "option" and (default := default_of(parameter)):
            text.append(f" [default: {default}]", "dim")
        if cell_len(str(name)) > column:
            rows += [name, Padding(text, (0, 0, 0, min(column + 2, 8)))]
            continue
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(width=column, no_wrap=True)
        grid.add_column()
        grid.add_row(name, text)
        rows.append(grid)
    return Panel(Group(*rows), title=title, title_align="left", border_style="dim")


def _name(parameter: Any) -> Text:
    """A parameter's names with what is written after them."""
    from rich.text import Text

    if parameter.param_type_name == "argument":
        return Text(usage_form(parameter), "bold cyan")
    return Text.assemble((", ".join((*parameter.opts, *parameter.secondary_opts)), "bold cyan"),
                         (f" {_value(parameter)}".rstrip(), "yellow"))
