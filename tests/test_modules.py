"""Holds the shape of the modules: no circle of imports, none too small to be worth a file, no name with two meanings.

The source is read, not run. The lists of exceptions only shrink: an entry that is no longer needed fails the test.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from test_layers import MODULES, Module

#: A module shorter than this needs at least two importers.
LINES_OF_A_SMALL_MODULE = 60
#: Small modules with one importer or none that are allowed. __main__ is run by ``python -m aftertune``.
SMALL_MODULES: frozenset[str] = frozenset({"aftertune.__main__"})
#: Class and alias names that are defined in more than one module.
REPEATED_NAMES: frozenset[str] = frozenset()


def dotted(module: Module) -> str:
    return ".".join(["aftertune", *module.parts, *(["__main__"] if module.path.name == "__main__.py" else [])])


def by_name(modules: list[Module]) -> dict[str, Module]:
    """The modules by their dotted names; migrations are left out, since alembic reads them by path."""
    return {dotted(m): m for m in modules if "migrations" not in m.path.parts}


def imports_between(modules: Mapping[str, Module]) -> dict[str, set[str]]:
    """For each module, the modules of the package that it imports anywhere: at the top, in functions, for types."""
    return {name: {target for _, imported in module.imports() if (target := _owner(imported, modules)) not in ("",
                                                                                                               name)}
            for name, module in modules.items()}


def _owner(imported: str, modules: Mapping[str, Module]) -> str:
    """The module that an imported dotted name lies in, "" for other packages and for the public names."""
    parts = imported.split(".")
    if parts[0] != "aftertune" or len(parts) < 2:
        return ""
    name = next(".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in modules)
    return "" if name == "aftertune" else name


def circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """The sets of two or more modules that import one another, directly or through others."""
    reached = {name: _reachable(name, graph) for name in graph}
    groups = {frozenset({name} | {other for other in reached[name] if name in reached[other]}) for name in graph}
    return sorted((set(g) for g in groups if len(g) > 1), key=sorted)


def _reachable(start: str, graph: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for target in graph.get(waiting.pop(), ()):
            if target not in seen:
                seen.add(target)
                waiting.append(target)
    return seen


def small(modules: Mapping[str, Module], graph: Mapping[str, set[str]]) -> set[str]:
    """Modules under the limit that at most one other module imports; a package's ``__init__`` does not count."""
    importers: dict[str, int] = defaultdict(int)
    for targets in graph.values():
        for target in targets:
            importers[target] += 1
    return {name for name, module in modules.items()
            if module.path.name != "__init__.py" and importers[name] <= 1
            and len(module.text.splitlines()) < LINES_OF_A_SMALL_MODULE}


def defined_types(module: Module) -> Iterator[str]:
    """The names of classes and of type aliases (``Name = …`` in camel case) at the top of a module."""
    for node in module.tree.body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (t.id for t in node.targets if isinstance(t, ast.Name) and _is_camel(t.id))


def _is_camel(name: str) -> bool:
    bare = name.lstrip("_")
    return bare[:1].isupper() and any(letter.islower() for letter in bare)


def repeated(modules: Mapping[str, Module]) -> dict[str, list[str]]:
    """Class and alias names with the modules that define them, where there is more than one."""
    places: dict[str, list[str]] = defaultdict(list)
    for name, module in modules.items():
        for defined in defined_types(module):
            places[defined].append(name)
    return {name: found for name, found in places.items() if len(found) > 1}


def test_no_modules_import_one_another() -> None:
    modules = by_name(MODULES)
    graph = imports_between(modules)
    assert sum(map(len, graph.values())) > 300  # the test sees the imports
    assert circles(graph) == []


def test_a_small_module_has_more_than_one_importer() -> None:
    modules = by_name(MODULES)
    offenders = small(modules, imports_between(modules))
    assert offenders - SMALL_MODULES == set(), "merge it into the module that imports it"
    assert SMALL_MODULES - offenders == set(), "take it off the list of exceptions"


def test_a_type_has_one_name_and_a_name_one_type() -> None:
    offenders = repeated(by_name(MODULES))
    assert {n: m for n, m in offenders.items() if n not in REPEATED_NAMES} == {}
    assert REPEATED_NAMES - offenders.keys() == set(), "take it off the list of exceptions"


# The checks themselves, on sources that break the rules

def sources(**texts: str) -> dict[str, Module]:
    return by_name([Module(Path(name.replace("__", "/") + ".py"), text) for name, text in texts.items()])


@pytest.mark.parametrize(("texts", "expected"), [
    ({"a__x": "from aftertune.a import y", "a__y": "import aftertune.b.z", "b__z": ""}, []),
    ({"a__x": "from aftertune.a import y", "a__y": "from aftertune.a.x import f"}, [{"aftertune.a.x",
                                                                                     "aftertune.a.y"}]),
    ({"a": "from aftertune.b import f", "b": "def f():\n    from aftertune.c import g",
      "c": "if TYPE_CHECKING:\n    import aftertune.a"}, [{"aftertune.a", "aftertune.b", "aftertune.c"}]),
])
def test_a_circle_is_seen(texts: dict[str, str], expected: list[set[str]]) -> None:
    assert circles(imports_between({"aftertune": Module(Path("__init__.py"), ""), **sources(**texts)})) == expected


@pytest.mark.parametrize(("lines", "importers", "allowed"), [(59, 1, False), (59, 2, True), (60, 1, True), (5, 0,
                                                                                                            False)])
def test_a_small_module_is_seen(lines: int, importers: int, allowed: bool) -> None:
    texts = {"a__x": "y = 1\n" * lines} | {f"b__i{n}": "from aftertune.a.x import y\n" + "z = 1\n" * 60
                                           for n in range(importers)}
    modules = {"aftertune": Module(Path("__init__.py"), ""), **sources(**texts)}
    assert ("aftertune.a.x" not in small(modules, imports_between(modules))) is (allowed)


@pytest.mark.parametrize(("first", "second", "allowed"), [
    ("class Plan: ...", "class Plan: ...", False),
    ("Plan = tuple[int, ...]", "class Plan: ...", False),
    ("class _Plan: ...", "class Plan: ...", True),
    ("PLAN = 1", "PLAN = 2", True),
    ("def plan(): ...", "def plan(): ...", True),
])
def test_a_repeated_name_is_seen(first: str, second: str, allowed: bool) -> None:
    assert (repeated(sources(a=first, b=second)) == {}) is allowed
