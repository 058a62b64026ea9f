"""Holds the layer line of ``aftertune/__init__.py``, the rooms of the heavy libraries, and the size aims.

The source is read, not run: every import statement counts, at the top of a module, inside a function and under
TYPE_CHECKING alike, and so does ``import_module("a name in quotes")``.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from inspect import isclass, isfunction
from pathlib import Path

import pytest

import aftertune

SOURCE = Path(aftertune.__file__).parent

#: The only rooms that may import a library, where it is not free to all. ``methods`` holds one entry per method, with
#: the functions that make PEFT's config and convert what was trained. It imports PEFT and torch inside these functions.
HOMES = {
    "torch": {"engine", "tuning", "sources", "harness", "evaluation", "methods", "callbacks"},
    "transformers": {"engine", "tuning", "sources", "harness", "evaluation", "callbacks"},
    "peft": {"tuning", "sources", "methods"},
    "trl": {"tuning"},
    "lm_eval": {"tasks", "harness"},
    "sqlalchemy": {"ledger"},
    "alembic": {"ledger"},
    "matplotlib": {"report"},
    "typer": {"cli"},
    "starlette": {"view"},
    "uvicorn": {"view"},
}
LINES_OF_A_MODULE, LINES_OF_A_FUNCTION, PARAMETERS = 600, 60, 8
#: The compiled kernels, and the only other modules that may import them: the engine's selector, fine-tuning on a CPU,
#: and the check of this machine.
CPU_WING = "aftertune.engine.cpu"
CPU_WING_IMPORTERS = {"engine/backends.py", "tuning/batching.py", "cli/doctor.py"}


def layer_line(docstring: str) -> dict[str, int]:
    """The place of each room in the one line ``a > b, c > d``; rooms between commas share a place."""
    lines = [line for line in docstring.splitlines() if " > " in line]
    assert len(lines) == 1, lines
    return {room.strip(): place for place, rooms in enumerate(lines[0].split(">")) for room in rooms.split(",")}


@dataclass(frozen=True)
class Module:
    """One source file. path: below the package; room: the first part of the path, "" for the package itself."""

    path: Path
    text: str

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(part for part in self.path.with_suffix("").parts if part not in ("__init__", "__main__"))

    @property
    def room(self) -> str:
        return self.parts[0] if self.parts else ""

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, str(self.path))

    def imports(self) -> Iterator[tuple[int, str]]:
        """(line, dotted name) of whatever is imported; ``from a import b`` gives ``a.b``."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                origin = ".".join(filter(None, [self._package(node.level), node.module]))
                yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)
            elif isinstance(node, ast.Call) and _called(node.func) in ("import_module", "__import__"):
                names = [a.value for a in node.args[:1] if isinstance(a, ast.Constant)]
                yield from ((node.lineno, str(name)) for name in names)

    def _package(self, level: int) -> str:
        """What ``level`` leading dots stand for here."""
        if not level:
            return ""
        package = ["aftertune", *self.path.parent.parts]
        return ".".join(package[:len(package) - level + 1])


def _called(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def crossings(module: Module, places: dict[str, int]) -> list[str]:
    """Imports of a room that is not to the right of the module's own."""
    found = []
    for line, name in module.imports():
        top, _, rest = name.partition(".")
        if top != "aftertune":
            continue
        room = rest.partition(".")[0]
        if rest in aftertune.__all__:  # ``from aftertune import Ledger``: the room behind the public name
            room = aftertune._HOME[room].split(".")[1]
        if room in ("", "__version__", module.room):
            continue
        if room not in places or places[room] <= places[module.room]:
            found.append(f"{module.path}:{line}: {module.room} may not import {room or name}")
    return found


def strangers(module: Module) -> list[str]:
    """Imports of a library that belongs to other rooms."""
    return [f"{module.path}:{line}: {name} belongs to {', '.join(sorted(HOMES[library]))}"
            for line, name in module.imports()
            if (library := name.split(".")[0]) in HOMES and module.room not in HOMES[library]]


def sizes(module: Module) -> list[str]:
    """What is longer, or takes more parameters, than the aims allow; options of a verb are not counted."""
    lines = len(module.text.splitlines())
    found = [f"{module.path}: {lines} lines"] if lines > LINES_OF_A_MODULE else []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            lines = (node.end_lineno or 0) - node.lineno + 1
            taken = [a.arg for a in arguments if not (module.room == "cli" and _is_flag(a))]
            count = len(taken) - (taken[:1] in (["self"], ["cls"]))
            if lines > LINES_OF_A_FUNCTION:
                found.append(f"{module.path}:{node.lineno}: {node.name} has {lines} lines")
            if count > PARAMETERS:
                found.append(f"{module.path}:{node.lineno}: {node.name} takes {count} parameters")
    return found


def _is_flag(argument: ast.arg) -> bool:
    """A parameter that is an option of the command line: Annotated[…, typer.Option(…)]."""
    return argument.annotation is not None and "typer." in ast.unparse(argument.annotation)


PLACES = layer_line(aftertune.__doc__ or "")
MODULES = [Module(p.relative_to(SOURCE), p.read_text("utf-8")) for p in sorted(SOURCE.rglob("*.py"))]
SUBMODULES = [m.name for m in pkgutil.walk_packages([str(SOURCE)], "aftertune.") if "__main__" not in m.name]


def test_every_module_was_found() -> None:
    assert len(MODULES) >= 100
    migrations = [m for m in MODULES if "migrations" in m.path.parts]  # alembic reads these; nothing imports them
    mains = [m for m in MODULES if m.path.name == "__main__.py"]
    assert len(SUBMODULES) == len(MODULES) - len(migrations) - len(mains) - 1


def test_the_line_names_the_rooms_that_there_are() -> None:
    rooms = {m.room for m in MODULES} - {""}
    assert rooms <= PLACES.keys(), f"not in the layer line: {rooms - PLACES.keys()}"
    assert PLACES.keys() <= rooms, f"no such room: {PLACES.keys() - rooms}"
    assert PLACES["cli"] == 0
    assert PLACES["errors"] == max(PLACES.values()) >= 8
    assert PLACES["tuning"] == PLACES["report"] < PLACES["engine"] == PLACES["ledger"] < PLACES["values"]


def test_left_imports_right_and_siblings_do_not_meet() -> None:
    inner = [m for m in MODULES if m.room]
    assert [line for m in inner for line in crossings(m, PLACES)] == []
    between = {(m.room, name.split(".")[1]) for m in inner for _, name in m.imports()
               if name.startswith("aftertune.")}
    assert len({(a, b) for a, b in between if a != b}) >= 30  # the test sees the imports that there are


def test_heavy_libraries_stay_in_their_rooms() -> None:
    assert [line for m in MODULES for line in strangers(m)] == []
    seen = {name.split(".")[0] for m in MODULES for _, name in m.imports()}
    assert HOMES.keys() <= seen, f"nobody imports {HOMES.keys() - seen}"


def of_the_cpu_wing(module: Module) -> list[str]:
    """Imports of the compiled kernels from outside of them."""
    if module.parts[:2] == ("engine", "cpu"):
        return []
    return [f"{module.path}:{line}: {name}" for line, name in module.imports() if f"{name}.".startswith(f"{CPU_WING}.")]


def test_few_modules_know_the_compiled_kernels() -> None:
    """The engine's core runs without them: only its selector names them, and only inside its functions."""
    assert {m.path.as_posix() for m in MODULES if of_the_cpu_wing(m)} == CPU_WING_IMPORTERS
    selector = next(m for m in MODULES if m.path.as_posix() == "engine/backends.py")
    top = [n for n in selector.tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    assert of_the_cpu_wing(Module(selector.path, "\n".join(map(ast.unparse, top)))) == []


def test_the_package_itself_imports_nothing_of_its_own() -> None:
    package = next(m for m in MODULES if not m.room)
    names = [ast.unparse(n) for n in package.tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    assert names == ["from __future__ import annotations", "import sys", "from types import ModuleType",
                     "from typing import TYPE_CHECKING, Any"]
    typed = {name.split(".")[-1] for _, name in package.imports() if name.startswith("aftertune.")}
    assert typed - {"studies", "callbacks"} == set(aftertune.__all__) == aftertune._HOME.keys()


def test_modules_and_functions_keep_to_the_size_aims() -> None:
    assert [line for m in MODULES for line in sizes(m)] == []


def test_every_public_verb_works_after_every_submodule_has_been_imported() -> None:
    for name in SUBMODULES:
        importlib.import_module(name)
    verbs = ["audit", "blend", "card", "check_deploy", "check_merge", "checkpoints", "compare", "cure", "drift",
             "evaluate", "export", "export_gguf", "flips", "gate", "import_results", "plan_items", "record", "report",
             "rollback", "soften", "tune", "view"]
    for verb in verbs:
        assert isfunction(getattr(aftertune, verb)), verb
        assert getattr(aftertune, verb).__doc__
    nouns = sorted(set(aftertune.__all__) - set(verbs))
    assert nouns == ["AftertuneError", "Comparison", "Drift", "EvalSpec", "Evaluation", "Flips", "GateResult",
                     "InputError", "Ledger", "Margin", "NotComparable", "Study", "TaskSpec", "TasksFailed", "TuneSpec",
                     "Tuning"]
    assert all(isclass(getattr(aftertune, noun)) for noun in nouns)
    assert set(aftertune.__all__) <= set(dir(aftertune))
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        _ = aftertune.evalute


# The checks themselves, on sources that break the rules

@pytest.mark.parametrize(("path", "text", "allowed"), [
    ("stats/x.py", "from aftertune.values import plain", True),
    ("stats/x.py", "import aftertune.errors", True),
    ("stats/x.py", "from aftertune.stats.y import z", True),
    ("stats/x.py", "from .y import z", True),
    ("stats/x.py", "from aftertune import __version__", True),
    ("report/x.py", "from aftertune import Ledger", True),
    ("stats/x.py", "from aftertune.ledger import Ledger", False),
    ("stats/x.py", "import aftertune.ledger.schema as s", False),
    ("stats/x.py", "from aftertune import Ledger", False),
    ("stats/x.py", "from aftertune import engine", False),
    ("stats/x.py", "from .. import engine", False),
    ("stats/x.py", "from ..engine.runner import Engine", False),
    ("stats/x.py", "def f():\n    from aftertune.tasks import load", False),
    ("stats/x.py", "if TYPE_CHECKING:\n    from aftertune.cli import main", False),
    ("stats/x.py", "importlib.import_module('aftertune.report.page')", False),
    ("stats/x.py", "from aftertune.attic import x", False),
    ("values.py", "from aftertune.errors import nearest", True),
    ("values.py", "from aftertune.study import Study", False),
    ("values.py", "from . import study", False),
    ("errors.py", "from aftertune.values import plain", False),
    ("comparison/__init__.py", "from aftertune.report import format", False),
    ("comparison/__init__.py", "from ..stats import holm", True),
    ("pipeline/running.py", "from aftertune.cli import main", False),
])
def test_a_crossing_is_seen(path: str, text: str, allowed: bool) -> None:
    assert (crossings(Module(Path(path), text), PLACES) == []) is allowed


@pytest.mark.parametrize(("path", "text", "allowed"), [
    ("engine/cpu/x.py", "from aftertune.engine.cpu import ops", True),
    ("engine/cpu/__init__.py", "from aftertune.engine.cpu.ops import TILE", True),
    ("engine/x.py", "from aftertune.engine import attention", True),
    ("engine/x.py", "from aftertune.engine import cpu", False),
    ("engine/x.py", "def f():\n    from aftertune.engine.cpu.ops import TILE", False),
    ("engine/x.py", "import_module('aftertune.engine.cpu')", False),
    ("engine/x.py", "from .cpu import ops", False),
    ("tuning/x.py", "import aftertune.engine.cpu.ops", False),
])
def test_an_import_of_the_compiled_kernels_is_seen(path: str, text: str, allowed: bool) -> None:
    assert (of_the_cpu_wing(Module(Path(path), text)) == []) is allowed


@pytest.mark.parametrize(("path", "text", "allowed"), [
    ("engine/x.py", "import torch", True),
    ("harness/x.py", "from lm_eval.api.instance import Instance", True),
    ("ledger/x.py", "from sqlalchemy.engine import Dialect", True),
    ("report/x.py", "import torchaudio", True),
    ("report/x.py", "def f():\n    import torch.nn as nn", False),
    ("stats/__init__.py", "from torch import Tensor", False),
    ("evaluation.py", "from lm_eval.tasks import TaskManager", False),
    ("tasks/x.py", "__import__('torch')", False),
    ("comparison/x.py", "from sqlalchemy import select", False),
    ("cli/x.py", "import alembic", False),
    ("__init__.py", "import torch", False),
])
def test_a_library_in_a_strange_room_is_seen(path: str, text: str, allowed: bool) -> None:
    assert (strangers(Module(Path(path), text)) == []) is allowed


@pytest.mark.parametrize(("path", "text", "allowed"), [
    ("stats/x.py", "x = 1\n" * 600, True),
    ("stats/x.py", "x = 1\n" * 601, False),
    ("stats/x.py", "def f():\n" + "    x = 1\n" * 59, True),
    ("stats/x.py", "class A:\n    async def f():\n" + "        x = 1\n" * 60, False),
    ("stats/x.py", "def f(self, a, b, c, d, e, /, f, g, *, h): ...", True),
    ("stats/x.py", "def f(a, b, c, d, e, f, g, *, h, i): ...", False),
    ("cli/x.py", "def f(a, b, c, d, e, f, g, h, i: Annotated[int, typer.Option()]): ...", True),
    ("stats/x.py", "def f(a, b, c, d, e, f, g, h, i: Annotated[int, typer.Option()]): ...", False),
    ("cli/x.py", "def f(a, b, c, d, e, f, g, h, i: int): ...", False),
    ("cli/x.py", "def f(\n" + "    a: Annotated[int, typer.Option()],\n" * 9 + "):\n" + "    x = 1\n" * 49, True),
    ("cli/x.py", "def f(\n" + "    a: Annotated[int, typer.Option()],\n" * 9 + "):\n" + "    x = 1\n" * 50, False),
])
def test_what_is_too_large_is_seen(path: str, text: str, allowed: bool) -> None:
    assert (sizes(Module(Path(path), text)) == []) is allowed
