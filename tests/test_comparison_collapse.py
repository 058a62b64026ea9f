"""Signs of collapse: each kind, what is no sign, and what the base does too."""

from dataclasses import replace
from pathlib import Path

import pytest

from aftertune.comparison.collapse import find_signs
from aftertune.comparison.pairing import Pair
from aftertune.comparison.rows import build_drafts, judge_drafts
from aftertune.stats.collapse import (
    CLEARLY_ABOVE,
    LEAD_LEFT,
    LEVEL,
    RULES_OF_ANSWERS,
    VARIED,
    below_guess,
    guesses,
)
from aftertune.stats.verdict import GENERATION_FLOOR
from aftertune.values import Answer, Asked, Early, EarlyUnit, Evaluation, PairedCount, Response, Score
from early_cases import ADAPTED, BASE, settings

CHOICES = ("a", "b", "c", "d")
TEXT = {"output_type": "generate_until", "primary": "exact_match,none", "higher_is_better": {"exact_match": True},
        "chance": None, "generation": {"max_gen_toks": 64}}


def choices(task, chosen, *, keep=True):
    """Answers to questions whose right choice is 0, 1, 2, 3, 0, … keep: with their log-likelihoods."""
    return [Answer(task=task, index=i, item=f"{task} {i}", metrics={"acc,none": float(position == i % 4)},
                   responses=tuple(Response(logprob=-1.0 - (k != position)) for k in range(4)) if keep else ())
            for i, position in enumerate(chosen)]


def texts(task, given):
    """Generated answers. given: (text, finish, right)."""
    return [Answer(task=task, index=i, item=f"{task} {i}", metrics={"exact_match,none": float(right)},
                   responses=(Response(text=text, finish=finish),)) for i, (text, finish, right) in enumerate(given)]


def pair(left, right, **more):
    task = left[0].task
    if more.get("output_type") == "generate_until":
        asked = {a.item: Asked(reference=f"answer {a.index}") for a in left}
    else:
        asked = {a.item: Asked(choices=CHOICES, gold=(a.index % 4,)) for a in left}
    return Pair(settings(task, len(left), **more), left, right, left, right, questions=asked)


def evaluation(name, model, pairs, side):
    scores = []
    for p in pairs:
        answers, key = getattr(p, side), p.settings.primary
        metric, _, filter_ = key.partition(",")
        scores.append(Score(task=p.settings.task, metric=metric, filter=filter_, n=len(answers), stderr=None,
                            value=sum(a.metrics[key] for a in answers) / len(answers), primary=True))
    return Evaluation(id=f"e-{name}", name=name, model=model, tasks=tuple(p.settings for p in pairs), device="cpu",
                      dtype="float32", engine="packed", scores=tuple(scores))


def signs(*pairs, margin=0.02, rows=None):
    left, right = evaluation("base", BASE, pairs, "left"), evaluation("tuned", ADAPTED, pairs, "right")
    made = judge_drafts(build_drafts(left, right, pairs, margin)[0], lineage=True, forced=False)
    return find_signs(made if rows is None else rows(made), pairs, left, right)


def able(n, right=0.6, task="t"):
    """A base that takes the right choice on a share of n items, and else spreads its choices."""
    return choices(task, [i % 4 if i % 10 < 10 * right else (i + 1 + i // 10 % 3) % 4 for i in range(n)])


def guesser(n, task="t"):
    """A model whose choices have nothing to do with the question."""
    return choices(task, [(i * 7 + i // 4) % 4 for i in range(n)])


def test_a_model_that_scores_like_a_guess_has_collapsed():
    sign, = signs(pair(able(400), guesser(400)))
    assert (sign.kind, sign.task, sign.n, sign.chance, sign.below) == ("guessing", "t", 400, 0.25, False)
    assert sign.base == pytest.approx(0.6)
    assert sign.tuned == pytest.approx(0.25, abs=0.03)


def test_below_a_guess_is_said():
    wrong = choices("t", [(i + 1 + i // 4 % 3) % 4 if i % 8 else i % 4 for i in range(400)])  # 12.5 % right
    sign, = signs(pair(able(400), wrong))
    assert sign.below


@pytest.mark.parametrize(("base", "tuned", "n", "chance", "guess"), [
    (0.60, 0.26, 400, 0.25, True),
    (0.436, 0.204, 450, 0.25, True),
    (0.60, 0.35, 400, 0.25, False),  # far below the base, but above a guess
    (0.60, 0.40, 20, 0.25, False),   # too few items to tell it from the base
    (0.30, 0.25, 400, 0.25, False),  # the base itself is close to a guess
    (0.45, 0.29, 100, 0.25, False),  # more than half of the base's lead may be left
    (0.90, 0.50, 100, 0.5, True),    # two choices
    (0.35, 0.00, 200, None, True),   # generated answers: next to nothing is right
    (0.35, 0.05, 200, None, False),
    (0.05, 0.00, 200, None, False),
])
def test_what_is_like_a_guess(base, tuned, n, chance, guess):
    assert guesses(base, tuned, n, chance=chance) is guess


def test_below_a_guess_needs_the_whole_interval():
    assert below_guess(0.204, 450, 0.25)
    assert not below_guess(0.22, 450, 0.25)
    assert not below_guess(0.0, 450, None)


def test_like_a_guess_needs_a_proven_loss():
    one = pair(able(400), guesser(400))
    assert signs(one, rows=lambda rows: [replace(r, verdict="undecided") for r in rows]) == ()
    assert signs(one, rows=lambda rows: [replace(r, primary=False) for r in rows]) == ()


def test_a_model_that_did_not_change_shows_nothing():
    assert signs(pair(able(400), able(400))) == ()
    assert signs(pair(guesser(400), guesser(400))) == ()


def test_always_the_same_choice():
    found = signs(pair(able(60), choices("t", [2] * 58 + [0, 1])))
    sign = next(s for s in found if s.kind == "one_choice")
    assert (sign.n, sign.position, sign.base_too) == (60, 2, False)
    assert sign.tuned == pytest.approx(58 / 60)
    assert sign.base < 0.4
    assert sign.p < 0.001


def test_the_same_choice_of_both_is_no_change():
    sign, = signs(pair(choices("t", [0] * 100), choices("t", [1] * 100)))
    assert (sign.base_too, sign.position, sign.base_position, sign.p) == (True, 1, 0, None)


@pytest.mark.parametrize("why", ["too few items", "the right one is always the same", "the base guesses",
                                 "the base nearly does it", "not stored", "right choices not known"])
def test_what_is_no_sign_of_one_choice(why):
    n = 8 if why == "too few items" else 60
    before, after = able(n), choices("t", [2] * n)
    if why == "the base guesses":
        before = guesser(n)
    if why == "the base nearly does it":  # 77 % the same choice, and above a guess
        before = choices("t", [2 if i % 4 != 1 or i > 55 else 1 for i in range(n)])
    if why == "not stored":
        before, after = ([replace(a, responses=()) for a in side] for side in (before, after))
    both = pair(before, after)
    if why == "the right one is always the same":
        both = replace(both, questions={a.item: Asked(choices=CHOICES, gold=(2,)) for a in before})
    if why == "right choices not known":
        both = replace(both, questions={})
    assert [s for s in signs(both) if s.kind == "one_choice"] == []


def ended(n, task="t", right=0.0):
    return texts(task, [(f"answer {i}", "eos", i < right * n) for i in range(n)])


def test_texts_that_never_end():
    after = texts("t", [(f"and {i} and", "length", False) for i in range(58)] + [("a", "eos", False)] * 2)
    sign, = signs(pair(ended(60), after, **TEXT))
    assert (sign.kind, sign.limit, sign.base, sign.base_too) == ("endless", 64, 0.0, False)
    assert sign.tuned == pytest.approx(58 / 60)
    both, = signs(pair(after, after, **TEXT))
    assert both.base_too


@pytest.mark.parametrize("why", ["the score is safe", "ends not known", "the base nearly does it", "too few texts"])
def test_what_is_no_sign_of_endless_texts(why):
    n = 7 if why == "too few texts" else 60
    before = ended(n)
    after = texts("t", [(f"and {i}", "length", why == "the score is safe") for i in range(n)])
    if why == "ends not known":
        after = [replace(a, responses=(replace(a.responses[0], finish=None),)) for a in after]
    if why == "the base nearly does it":
        before = [*after[:30], *before[30:]]
    assert signs(pair(before, after, **TEXT)) == ()


def test_empty_answers():
    after = texts("t", [("", "eos", False) if i % 3 else (f"answer {i}", "eos", False) for i in range(60)])
    sign, = signs(pair(ended(60), after, **TEXT))
    assert (sign.kind, sign.base, sign.tuned) == ("empty", 0.0, pytest.approx(40 / 60))


def test_always_the_same_answer():
    after = texts("t", [("I cannot help.", "eos", False)] * 60)
    sign, = signs(pair(ended(60), after, **TEXT))
    assert (sign.kind, sign.answer, sign.tuned) == ("one_answer", "I cannot help.", 1.0)
    references = {a.item: Asked(reference="I cannot help.") for a in after}
    assert signs(replace(pair(ended(60), after, **TEXT), questions=references)) == ()  # they ask for one answer
    assert signs(replace(pair(ended(60), after, **TEXT), questions={})) == ()


def test_the_tests_of_a_comparison_share_one_level():
    """Eight texts of eight: p = 0.0078 alone, and 0.0234 over the three tests of one task."""
    after = texts("t", [(f"and {i}", "length", False) for i in range(8)])
    assert signs(pair(ended(8), after, **TEXT)) == ()
    after = texts("t", [(f"and {i}", "length", False) for i in range(10)])
    sign, = signs(pair(ended(10), after, **TEXT))
    assert sign.p == pytest.approx(3 * 2 / 2**10)
    others = [pair(ended(10, f"t{k}"), ended(10, f"t{k}"), **TEXT) for k in range(4)]
    assert signs(pair(ended(10), after, **TEXT), *others) == ()


def test_of_items_that_belong_together_one_is_tested():
    after = texts("t", [(f"and {i}", "length", False) for i in range(60)])
    both = pair(ended(60), after, **TEXT, target=True)
    labels = [("story", str(i // 10)) for i in range(60)]
    assert signs(both)
    assert signs(replace(both, clusters=labels)) == ()
    assert signs(replace(both, clusters=[None] * 60)) == ()


def test_a_group_is_looked_at_as_one():
    pairs = [pair(able(20, task=f"t{k}"), choices(f"t{k}", [3] * 20), groups=("g",)) for k in range(4)]
    left, right = (replace(e, scores=(*e.scores, Score(
        task="g", metric="acc", filter="none", n=80, stderr=None, group=True,
        value=sum(s.value for s in e.scores) / 4))) for e in (
            evaluation("base", BASE, pairs, "left"), evaluation("tuned", ADAPTED, pairs, "right")))
    rows = judge_drafts(build_drafts(left, right, pairs, 0.02)[0], lineage=True, forced=False)
    found = find_signs(rows, pairs, left, right)
    assert {(s.kind, s.task, s.n) for s in found} == {("guessing", "g", 80), ("one_choice", "g", 80)}


def test_a_look_at_a_time_chosen_by_the_data_needs_more():
    """A row that was stopped at its second look is judged at a sixth of the level."""
    one = pair(able(64), choices("t", [(i * 7 + i // 4) % 4 for i in range(64)]))
    unit = EarlyUnit(name="t", key="acc,none", tasks=("t",), items=1000, batch=32, order="o", used=64, verdict="lower")
    plan = Early(against="e-base", seed=0, margins={"t": 0.02}, units=(unit,))
    left, right = evaluation("base", BASE, [one], "left"), evaluation("tuned", ADAPTED, [one], "right")
    rows = judge_drafts(build_drafts(left, right, [one], 0.02)[0], lineage=True, forced=False)
    assert [s.kind for s in find_signs(rows, [one], left, right)] == ["guessing"]
    stopped = [replace(r, stopped_of=1000) for r in rows]
    assert find_signs(stopped, [one], left, replace(right, early=plan)) == ()


def test_the_documents_state_every_threshold():
    text = " ".join((Path(__file__).parents[1] / "docs" / "verdicts.md").read_text(encoding="utf-8").split())
    text = text[text.index("## Collapse"):text.index("## Several tasks")]
    shares = [f"{100 * share:g} %" for rule in RULES_OF_ANSWERS.values() for share in (rule.tuned, rule.base)]
    others = [f"{100 * CLEARLY_ABOVE:g} points", *(f"{100 * share:g} %" for share in (LEVEL, VARIED, GENERATION_FLOOR))]
    assert [threshold for threshold in (*shares, *others) if threshold not in text] == []
    assert LEAD_LEFT == 0.5
    assert "at most half of the lead" in text


def test_counts_of_unequal_lists_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        PairedCount.of([True], [])
