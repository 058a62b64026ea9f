"""Refuses options that have no effect without another one, before a verb runs.

    aftertune eval MODEL --tasks arc_easy --margin 3
    aftertune: --margin has no effect without --until-decided; add --until-decided, or leave --margin out

`NEEDS` is the one table of them. What an option needs is another option that is given ("--sample"), an option with one
of several values ("--format gguf"), an option that is not given ("no --only-weights"), or arguments that are given
("argument TAG…"), in the form with so many words where there are several forms ("argument BASE ADAPTER MERGED").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aftertune.errors import InputError
from aftertune.methods import METHODS, join_names

#: Verb -> (options, what each of them needs: one of these). Options of optional parts of a specification that lack a
#: required field are refused by `options.Given`.
NEEDS: Mapping[str, Sequence[tuple[Sequence[str], Sequence[str]]]] = {
    "eval": (
        (("--scorer", "--slice", "--target-tokens", "--target-shots"), ("--target",)),
        (("--margin", "--stop-target", "--draw", "--batch", "--min-items", "--max-items", "--max-width", "--against"),
         ("--until-decided",)),
        (("--until-decided",), ("--against",)),
        (("--sample-seed",), ("--sample", "--until-decided")),
        (("--allow-task-code",), ("--include-path", "--scorer")),
        (("--fewshot-as-multiturn", "--template-date", "--enable-thinking"), ("--apply-chat-template",)),
    ),
    "tune": (
        (("--validate-every", "--patience"), ("--validation",)),
        (("--template-date",), ("--template chat",)),
        (("--scorer",), ("--target",)),
        (("--watch-every", "--watch-margin", "--stop-when-forgot"), ("--watch", "--target")),
        *(((option,), (f"--method {'|'.join(name for name, m in METHODS.items() if setting in m.settings)}",))
          for option, setting in (("--rank", "r"), ("--alpha", "alpha"), ("--dropout", "dropout"),
                                  ("--target-modules", "target_modules"))),
    ),
    "view": (
        (("--comparison",), ("--export",)),
        (("--port", "--host", "--token", "--open"), ("no --export",)),
    ),
    "checkpoints": ((("--match", "--scorer"), ("--target",)),),
    **dict.fromkeys(("soften", "cure"), ((("--match", "--scorer", "--apply-chat-template"), ("--target",)),)),
    "blend": (
        (("--match", "--scorer", "--apply-chat-template"), ("--target",)),
        (("--density",), ("--method ties|dare_linear|dare_ties",)),
        (("--seed",), ("--method dare_linear|dare_ties",)),
    ),
    "check-merge": (
        (("--tasks", "--sample", "--nf4", "--dtype", "--device", "--only-weights"), ("argument TUNING",)),
        (("--trust-remote-code",), ("argument BASE ADAPTER MERGED",)),
        (("--tasks", "--sample", "--nf4", "--dtype", "--device"), ("no --only-weights",)),
    ),
    "check-deploy": (
        (("--sample",), ("--tasks",)),
        (("--target-match", "--target-pattern", "--scorer", "--target-tokens", "--chat"), ("--target",)),
        (("--target-pattern",), ("--target-match regex",)),
    ),
    "export": (
        (("--format", "--out", "--to", "--quant", "--prompts"), ("no --bundle",)),
        (("--format", "--out", "--quant", "--prompts"), ("no --to",)),
        (("--title",), ("--bundle",)),
        (("--quant",), ("--format gguf",)),
        (("--prompts",), ("--format lm-eval|every-eval-ever",)),
    ),
    "run": (
        (("--only", "--keep-going", "--workers", "--on", "--track", "--json"), ("no --cell",)),
        (("--root", "--insecure-cluster"), ("--on",)),
    ),
    "plan": ((("--json",), ("no --commands",)),),
    "compare": ((("--details",), ("no --json",)),),
    "flips": ((("--out",), ("no --json",)),),
    "tag": ((("--remove",), ("argument TAG…",)),),
    "rm": ((("--yes",), ("no --dry-run",)),),
}


def check_needs(verb: str, context: Any) -> None:
    """InputError for the first option of a call that has no effect. context: of the parser, with the parsed values."""
    parameters = {option: p for p in context.command.params for option in p.opts}
    given = {option for option, p in parameters.items() if _given(context, p)}
    values = {option: str(context.params.get(p.name)) for option, p in parameters.items()}
    for options, needs in NEEDS.get(verb, ()):
        for option in options:
            if option in given and not any(_met(need, given, values, context) for need in needs):
                raise InputError(f"{option} has no effect {_reason(needs, values, context)}, or leave {option} out")


def _given(context: Any, parameter: Any) -> bool:
    """Whether the command line sets an option."""
    source = context.get_parameter_source(parameter.name)
    return source is not None and source.name == "COMMANDLINE"


def _met(need: str, given: set[str], values: Mapping[str, str], context: Any) -> bool:
    """Whether a call has what an option needs."""
    if need.startswith("argument "):
        return _form(need, context) in (need.removeprefix("argument "), None)
    if need.startswith("no "):
        return need.removeprefix("no ") not in given
    option, _, allowed = need.partition(" ")
    return values[option] in allowed.split("|") if allowed else option in given


def _form(need: str, context: Any) -> str | None:
    """The form in which the arguments that a need names are given, "" where they are not; None for no form of them."""
    wanted = need.removeprefix("argument ")
    for parameter in context.command.params:
        forms = (parameter.metavar or "").split(" | ")
        if wanted in forms:
            words = context.params[parameter.name] or []
            if len(forms) == 1:
                return wanted if words else ""
            return next((form for form in forms if len(form.split()) == len(words)), None)
    raise LookupError(f"no argument of {context.command.name} is {wanted!r}")


def _reason(needs: Sequence[str], values: Mapping[str, str], context: Any) -> str:
    """What an option lacks, and what to do so that it has an effect."""
    option, _, allowed = needs[0].partition(" ")
    if option == "argument":
        found = _form(needs[0], context)
        return f"with {found}; give {allowed}" if found else f"without {allowed}; add {allowed}"
    if option == "no":
        return f"with {allowed}; leave {allowed} out"
    if allowed:
        return f"with {option} {values[option]}; it goes with {option} {join_names(allowed.split('|'), 'or')}"
    return f"without {' or '.join(needs)}; add {' or '.join(needs)}"
