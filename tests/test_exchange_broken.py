"""One value of a good results file replaced by another one: the file is read, or refused in one line."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import test_exchange_every_eval_ever
import test_exchange_lighteval
import test_exchange_versions
from aftertune.errors import InputError
from aftertune.exchange import audit, import_results
from aftertune.ledger import Ledger
from exchange_cases import BASE_RIGHT, STAMP, lm_eval_folder

OTHER: list[Any] = [None, 3, "x", [], {}, -1, 1e308, [[1]], True, {"a": {"b": 1}}, ["x"], [None], [{}], 10**30]


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of each value below ``value``; of a list only the first ones."""
    inside = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, part in inside:
        yield (*place, key)
        yield from places(part, (*place, key))


def replaced(value: Any, place: tuple[Any, ...], other: Any) -> Any:
    new = copy.deepcopy(value)
    node = new
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = other
    return new


def good(kind: str, root: Path) -> tuple[Path, Path]:
    """(file to change, file to import)."""
    root.mkdir(exist_ok=True)
    if kind == "lm-eval":
        path = lm_eval_folder(root, "org/base", BASE_RIGHT) / f"results_{STAMP}.json"
    elif kind == "dump":
        path = root / "dump.json"
        path.write_text(json.dumps({**test_exchange_versions.old_results("m", BASE_RIGHT),
                                    "samples": {"choose": test_exchange_versions.choose(BASE_RIGHT)}}))
    elif kind == "lighteval":
        path = test_exchange_lighteval.folder(root, "org/base", BASE_RIGHT, "0.13")
    elif kind == "inspect":
        path = root / "log.json"
        path.write_text((test_exchange_versions.DATA / "inspect_base_quiz.json").read_text())
    else:
        path = test_exchange_every_eval_ever.write(root / "eee", "org/base", BASE_RIGHT)
    return (path.with_name("a1_samples.jsonl"), path) if kind == "rows" else (path, path)


@pytest.mark.parametrize("kind", ["lm-eval", "dump", "lighteval", "every-eval-ever", "rows", "inspect"])
def test_any_value_may_be_another_one(kind: str, tmp_path: Path) -> None:
    file, path = good(kind, tmp_path / "out")
    text = file.read_text()
    rows = file.suffix == ".jsonl"
    value = [json.loads(line) for line in text.splitlines()] if rows else json.loads(text)
    chance = random.Random(19)
    where = list(places(value))
    with Ledger(tmp_path / "ledger.db") as ledger:
        for _ in range(40):
            new = replaced(value, chance.choice(where), chance.choice(OTHER))
            file.write_text("".join(json.dumps(row) + "\n" for row in new) if rows else json.dumps(new))
            for read in (lambda: import_results(path, ledger=ledger), lambda: audit(path)):
                try:
                    read()
                except InputError as error:
                    assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(("kind", "change"), [
    ("lighteval", lambda v: v["config_tasks"]["arc:easy|25"]["metrics"][1].update(metric_name={})),
    ("inspect", lambda v: v["samples"][1].update(messages=True)),
    ("lm-eval", lambda v: v["configs"]["write"].update(generation_kwargs=1e308)),
    ("lm-eval", lambda v: v.update(system_instruction=3))])
def test_a_value_of_another_type_is_one_line(kind: str, change: Any, tmp_path: Path) -> None:
    file, path = good(kind, tmp_path / "out")
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))
    with Ledger(tmp_path / "ledger.db") as ledger:
        with pytest.raises(InputError, match=f"not in the form that {kind}[_a-z]* writes"):
            import_results(path, ledger=ledger)
        assert ledger.evaluations() == []
