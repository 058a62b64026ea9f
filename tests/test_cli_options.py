"""Options from the fields of specifications: names, defaults, what is given, errors, and descriptions in the schema."""

from __future__ import annotations

import json
from typing import Annotated, Any

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner

from aftertune.cli.options import Given, JsonFlag, as_parameter, options_of, with_options
from aftertune.errors import InputError
from aftertune.study import (
    BaseSpec,
    DataSource,
    DataSpec,
    EarlySpec,
    EvalSpec,
    Flag,
    Spec,
    Study,
    StudyTuning,
    TargetSpec,
    TaskSpec,
    TuneSpec,
)
from aftertune.study.matrix import field_paths
from cli_cases import call


class Part(Spec):
    """An optional part with one required field."""

    tasks: Annotated[dict[str, int], Flag("--look", form="TASK=N", example="a=1"), Field(description="Look: TASK=N.")]
    every: Annotated[int, Flag("--look-every"), Field(gt=0, description="Steps.")] = 5


class Example(Spec):
    """One field of each kind."""

    source: Annotated[str, Flag("SOURCE"), Field(description="Where from.")]
    count: Annotated[Annotated[int, Field(gt=0)] | None, Flag(), Field(description="How many.")] = None
    share: Annotated[float, Flag("--part"), Field(description="Which share.")] = 0.5
    kind: Annotated[str, Flag(), Field(description="A kind.")] = "plain"
    names: Annotated[tuple[str, ...] | None, Flag(), Field(description="Names.")] = None
    quick: Annotated[bool, Flag(), Field(description="Be quick.")] = False
    hidden: int = 3
    part: Part | None = None


def run(*words: str) -> dict[str, Any]:
    """What a verb of `Example` is given: the values that are set, and the whole specification."""
    seen: dict[str, Any] = {}

    @with_options
    def verb(*, example: Given[Example], as_json: JsonFlag = False) -> None:
        """A verb."""
        seen.update(values=dict(example.values), json=as_json, spec=example.make())

    app = typer.Typer()
    app.command()(verb)
    result = CliRunner().invoke(app, words)
    if isinstance(result.exception, InputError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return seen


def test_options_are_those_of_the_fields() -> None:
    options = {o.path: (o.names, as_parameter(o).default, o.help) for o in options_of(Example)}
    assert list(options) == ["source", "count", "share", "kind", "names", "quick", "part.tasks", "part.every"]
    assert options["share"] == (("--part",), 0.5, "Which share.")
    assert options["count"] == (("--count",), None, "How many.")
    assert options["part.every"] == (("--look-every",), 5, "Steps.")


def test_only_what_is_given_is_set() -> None:
    seen = run("here", "--part", "0.5", "--names", "a, b", "--look", "x=2", "--look", "y=3", "--quick", "--json")
    assert seen["values"] == {"source": "here", "share": 0.5, "names": ("a", "b"), "quick": True,
                              "part.tasks": {"x": "2", "y": "3"}}
    assert seen["json"] is True
    assert seen["spec"] == Example(source="here", names=("a", "b"), quick=True, part=Part(tasks={"x": 2, "y": 3}))
    assert seen["spec"].model_fields_set == {"source", "share", "names", "quick", "part"}
    assert run("here")["values"] == {"source": "here"}


@pytest.mark.parametrize(("words", "message"), [
    (("--count", "0"), "`--count`: Input should be greater than 0, found 0"),
    (("--look", "x=1", "--look-every", "0"), "`--look-every`: Input should be greater than 0, found 0"),
    (("--look", "x"), "--look 'x': write TASK=N, for example --look a=1"),
    (("--look", "x=many"), "--look 'x=many': write TASK=N, for example --look a=1"),
    (("--look-every", "2"), "--look-every and --look go together; --look: Look: TASK=N."),
])
def test_an_error_names_the_option(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError) as caught:
        run("here", *words)
    assert str(caught.value) == message


def test_a_choice_is_named_in_the_help_where_the_description_does_not() -> None:
    helps = {o.path: o.help for o in options_of(TuneSpec)}
    assert helps["schedule"].endswith("linear or cosine.")
    assert helps["template"].count("alpaca") == 1


@pytest.mark.parametrize("specs", [(TuneSpec,), (EvalSpec, TaskSpec, EarlySpec)])
def test_each_option_of_a_verb_has_its_own_name_and_the_default_of_its_field(specs: tuple[type[Spec], ...]) -> None:
    options = [o for spec in specs for o in options_of(spec)]
    names = [name for o in options for name in o.names]
    assert len(names) == len(set(names)) > 20
    assert all(o.help.endswith(".") for o in options)
    for o in options:
        default = as_parameter(o).default
        assert default in (None, as_parameter(o).empty) or default == o.field.get_default(call_default_factory=True)


@pytest.mark.parametrize("spec", [Study, BaseSpec, TaskSpec, TargetSpec, EvalSpec, EarlySpec, DataSource, DataSpec,
                                  StudyTuning, TuneSpec])
def test_every_field_has_a_description(spec: type[Spec]) -> None:
    fields = field_paths(spec)
    assert [path for path, field in fields.items() if not field.description] == []
    assert [path for path, field in fields.items() if not str(field.description).endswith(".")] == []


def test_the_schema_shows_each_description(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "study", "--schema") == 0
    schema = json.loads(capsys.readouterr().out)
    parts = {"Study": schema, **schema["$defs"]}
    assert parts.keys() >= {"Study", "TaskSpec", "TargetSpec", "StudyTuning", "DataSpec", "LoraSpec", "WatchSpec"}
    bare = [f"{name}.{key}" for name, part in parts.items() for key, value in part["properties"].items()
            if not value.get("description")]
    assert bare == []
