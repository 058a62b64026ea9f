"""Defines the ``aftertune`` command line: a group of verbs whose modules are imported when they are needed.

    aftertune eval MODEL --tasks arc_easy     imports `aftertune.cli.eval` and calls its function `evaluate`
    aftertune --help                          imports the module of every verb; torch is only imported when a verb runs
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Annotated, Any, cast

import typer

from aftertune import __version__
from aftertune.cli.console import Passed, guarded
from aftertune.cli.help import show_help
from aftertune.cli.needs import check_needs

#: Group of the help -> verb -> "module:function".
GROUPS = {
    "First steps": {"demo": "study:demo", "doctor": "doctor:doctor", "skill": "reference:skill"},
    "Evaluate and fine-tune": {
        "eval": "eval:evaluate", "tune": "tune:tune", "checkpoints": "checkpoints:checkpoints",
        "rollback": "tune:rollback", "templates": "tune:templates"},
    "Compare": {
        "compare": "compare:compare", "flips": "compare:flips", "gate": "compare:gate", "drift": "drift:drift",
        "plan-items": "plan_items:plan_items"},
    "Repair and deploy": {
        "soften": "cure:soften", "blend": "cure:blend", "cure": "cure:cure", "check-merge": "deploy:check_merge",
        "check-deploy": "check_deploy:check_deploy"},
    "Studies": {"study": "study:study", "plan": "study:plan", "run": "study:run"},
    "Ledger": {
        "runs": "runs:runs", "show": "ledger:show", "view": "view:view", "rename": "entries:rename",
        "tag": "entries:tag", "note": "entries:note", "rm": "entries:rm", "ledger": "ledger_care:ledger"},
    "Reports and exchange": {
        "record": "record:record", "report": "record:report", "card": "ledger:card", "push": "bundle:push",
        "export": "ledger:export",
        "verify": "bundle:verify", "import": "ledger:import_", "audit": "audit:audit"},
}
#: Verb -> "module:function".
VERBS = {verb: function for verbs in GROUPS.values() for verb, function in verbs.items()}


class _Verb(typer.core.TyperCommand):
    """One verb: its help is in panels, and options without an effect are refused."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        del formatter
        show_help(self, ctx)

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        check_needs(self.name or "", ctx)
        return super().invoke(ctx)


class _Commands(Mapping[str, Any]):
    """The commands by their verbs. A command is built, and its module imported, at the first access."""

    def __init__(self) -> None:
        self._commands: dict[str, Any] = {}

    def __getitem__(self, verb: str) -> Any:
        if verb not in self._commands:
            module, _, function = VERBS[verb].partition(":")
            verb_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            group = next(title for title, verbs in GROUPS.items() if verb in verbs)
            verb_app.command(verb, cls=_Verb, rich_help_panel=group)(
                getattr(import_module(f"{__name__}.{module}"), function))
            self._commands[verb] = typer.main.get_command(verb_app)
        return self._commands[verb]

    def __iter__(self) -> Iterator[str]:
        return iter(VERBS)

    def __len__(self) -> int:
        return len(VERBS)


class _VerbGroup(typer.core.TyperGroup):
    """The group of all verbs."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = cast(Any, _Commands())

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, BrokenPipeError) as error:
            raise Passed(error) from error


app = typer.Typer(
    name="aftertune", cls=_VerbGroup, no_args_is_help=True, pretty_exceptions_enable=False,
    help="Fine-tune small language models and show, with evidence, what each fine-tune taught and what it made the "
         "model forget.",
    epilog="Exit codes: 0 success, 1 a gate failed, 2 bad input, 3 not comparable or not proven, 4 out of resources, "
           "5 storage.")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aftertune {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True,
                                          help="Show the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of expected errors.")] = False,
) -> None:
    """Options of every verb."""
    del version
    if debug:
        os.environ["AFTERTUNE_DEBUG"] = "1"


def main() -> None:
    """Entry point of the ``aftertune`` command."""
    atexit.register(gc.freeze)  # else Python searches all objects of torch for garbage at the end, for two seconds
    sys.exit(guarded(app))
