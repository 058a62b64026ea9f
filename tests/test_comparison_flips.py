"""Flips: which items changed, what both models did on them, and that hostile text stays text."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aftertune.cli import app
from aftertune.cli.console import guarded
from aftertune.comparison import compare
from aftertune.comparison.flips import flips, flips_by_comparison
from aftertune.errors import InputError, NotComparable
from aftertune.ledger import Ledger
from aftertune.report import write_flips
from aftertune.values import Answer, Asked, Evaluation, Item, Response, Score, digest
from test_comparison import ADAPTED, BASE, settings

HOSTILE = "# heading\n```\n<script>alert(1)</script>\n\x1b[31mred\u202e |x| ````"
CHOICES = ("a cat", "two big dogs")


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(tmp_path / "l.db"))
    with Ledger() as opened:
        yield opened


def stored(ledger: Ledger, name: str, model: Any, task: Any, sides: list[tuple[float, tuple[Response, ...]]], *,
           asked: Asked | None, key: str = "acc_norm,none", extracted: dict[str, str] | None = None) -> None:
    """A done evaluation of one task, one (value, responses) an item."""
    items = [Item(task=task.task, index=i, hash=digest([task.task, i]), doc={"question": f"q{i}", "answer": 1,
                                                                               "choices": list(CHOICES)},
                  asked=asked) for i in range(len(sides))]
    made = Evaluation(id=f"e-{name}", name=name, model=model, tasks=(task,), device="cpu", dtype="float32",
                      engine="packed")
    ledger.open_evaluation(made, items)
    positions, at, batch = [], 0, {}
    for _, responses in sides:
        positions.append(list(range(at, at + len(responses))))
        batch.update(dict(enumerate(responses, at)))
        at += len(responses)
    ledger.save_batch(made.id, 0, batch)
    answers = [Answer(task=task.task, index=i, item=item.hash, metrics={key: value}, responses=responses,
                      extracted=extracted or {}) for i, (item, (value, responses)) in enumerate(
                          zip(items, sides, strict=True))]
    metric, _, filter_ = key.partition(",")
    score = Score(task=task.task, metric=metric, filter=filter_, value=sum(v for v, _ in sides) / len(sides),
                  stderr=None, n=len(sides), primary=True)
    ledger.finish_evaluation(replace(made, scores=(score,)), answers, positions)


def pair_of_logs(cat: float, dogs: float) -> tuple[Response, ...]:
    return Response(logprob=cat, greedy=False), Response(logprob=dogs, greedy=False)


def choices(ledger: Ledger, asked: Asked | None) -> None:
    """Item 0 lost, item 1 the same, item 2 gained; lengths 5 and 12 characters."""
    task = settings("t", 3, primary="acc_norm,none")
    stored(ledger, "base", BASE, task, [(1.0, pair_of_logs(-10, -12)), (1.0, pair_of_logs(-10, -12)),
                                        (0.0, pair_of_logs(-5, -24))], asked=asked)
    stored(ledger, "tuned", ADAPTED, task, [(0.0, pair_of_logs(-4, -12)), (1.0, pair_of_logs(-10, -12)),
                                            (1.0, pair_of_logs(-10, -12))], asked=asked)


ASKED = Asked(question="Which is bigger?", choices=CHOICES, gold=(1,))


def test_the_flips_of_whole_comparisons_are_those_of_each_task(ledger: Ledger) -> None:
    choices(ledger, ASKED)
    comparison = compare("base", "tuned", ledger=ledger, save=False)
    answers = {e: ledger.answers(e) for e in ("e-base", "e-tuned")}
    whole = flips("base", "tuned", "t", ledger=ledger)
    assert flips_by_comparison([comparison], answers, ledger=ledger) == {comparison.id: (whole,)}
    none = flips_by_comparison([comparison], answers, ledger=ledger, each=0)[comparison.id][0]
    assert (none.lost, none.gained, none.flips) == (1, 1, ())
    assert flips_by_comparison([], answers, ledger=ledger) == {}


def test_choices_scores_and_margins(ledger: Ledger) -> None:
    choices(ledger, ASKED)
    found = flips("base", "tuned", "t", ledger=ledger)
    assert (found.n, found.lost, found.gained, found.metric) == (3, 1, 1, "acc_norm,none")
    lost, gained = found.flips
    assert (lost.index, lost.direction, lost.gold, lost.question) == (0, "lost", "two big dogs", "Which is bigger?")
    assert lost.base.scores == pytest.approx((-2.0, -1.0))  # nats per character
    assert (lost.base.chosen, lost.tuned.chosen) == ("two big dogs", "a cat")
    assert (lost.base.margin, lost.tuned.margin) == (pytest.approx(1.0), pytest.approx(-.2))
    assert (gained.index, gained.direction) == (2, "gained")
    assert [f.index for f in flips("base", "tuned", "t", ledger=ledger, direction="gained").flips] == [2]
    text = write_flips(found)
    assert "Of 3 items, by acc_norm (Normalized Accuracy): 1 lost (right before, wrong after), 1 gained." in text
    assert "| ✓ | two big dogs | **−1.000** | −1.000 |" in text
    assert "Margin of the right choice over the best other choice: +1.000 (base) and −0.200 (tuned)." in text
    assert "*1 more" not in text


def test_an_item_that_was_stored_without_its_question(ledger: Ledger) -> None:
    choices(ledger, None)
    lost = flips("base", "tuned", "t", ledger=ledger).flips[0]
    assert (lost.question, lost.choices, lost.gold) == ("q0", CHOICES, "two big dogs")


def test_hostile_texts_are_inert(ledger: Ledger) -> None:
    task = settings("g", 1, chance=None, output_type="generate_until", primary="exact_match,strict")
    for name, model, value, text in (("base", BASE, 1.0, "5"), ("tuned", ADAPTED, 0.0, HOSTILE)):
        stored(ledger, name, model, task, [(value, (Response(text=text, tokens=3, finish="length"),))],
               asked=Asked(question=HOSTILE, reference="5"), key="exact_match,strict",
               extracted={"strict": "[invalid]"})
    text = write_flips(flips("base", "tuned", "g", ledger=ledger))
    assert "wrong, cut off at the token limit, extracted: strict `[invalid]`:" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "⟨U+001B⟩" in text
    inside = False
    for line in text.splitlines():  # outside of the fences nothing of the model's stands
        if line.startswith("`````"):
            inside = not inside
        elif not inside:
            assert "script" not in line.replace("strict", "")
            assert line != "# heading"
    assert text.count("`````text") == 2
    assert not inside


def test_metrics_and_tasks_that_have_no_flips(ledger: Ledger) -> None:
    choices(ledger, ASKED)
    with pytest.raises(InputError, match=r"no metric 'acc' .* allowed: acc_norm,none"):
        flips("base", "tuned", "t", ledger=ledger, metric="acc")
    assert flips("base", "tuned", "t", ledger=ledger, metric="acc_norm").lost == 1
    with pytest.raises(InputError, match="no task 'tt'"):
        flips("base", "tuned", "tt", ledger=ledger)


def test_what_is_not_comparable_is_refused_or_marked(ledger: Ledger) -> None:
    task = settings("t", 1, primary="acc_norm,none")
    stored(ledger, "base", BASE, task, [(1.0, pair_of_logs(-1, -2))], asked=ASKED)
    stored(ledger, "tuned", ADAPTED, replace(task, num_fewshot=5), [(0.0, pair_of_logs(-1, -2))], asked=ASKED)
    with pytest.raises(NotComparable, match="num_fewshot"):
        flips("base", "tuned", "t", ledger=ledger)
    assert "FORCED COMPARISON" in write_flips(flips("base", "tuned", "t", ledger=ledger, force=True))


def test_the_verb(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                  capsys: pytest.CaptureFixture[str]) -> None:
    choices(ledger, ASKED)

    def call(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["aftertune", "flips", "base", "tuned", "--task", "t", *words])
        return guarded(app)

    assert call("--lost") == 0
    shown = capsys.readouterr().out
    assert "## Lost: item 0" in shown
    assert "## Gained" not in shown
    assert call("--out", str(tmp_path / "f.md")) == 0
    assert "## Gained: item 2" in (tmp_path / "f.md").read_text()
    capsys.readouterr()
    assert call("--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["lost"], found["gained"], len(found["flips"])) == (1, 1, 2)
    assert found["flips"][0]["base"]["margin"] == pytest.approx(1.0)
    assert call("--lost", "--gained") == 2
