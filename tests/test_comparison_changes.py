"""What changed beside right and wrong: moves, calibration, positions, texts, no effect, and what is not known."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from aftertune.cli import app
from aftertune.comparison import compare
from aftertune.comparison.gate import gate
from aftertune.evaluation import evaluate
from aftertune.ledger import Ledger
from aftertune.report import Results, terminal_table, write_page, write_record
from aftertune.sources.adapters import has_zero_matrices
from aftertune.sources.fingerprint import fingerprint_adapter
from aftertune.study import EvalSpec
from aftertune.values import (
    Answer,
    Asked,
    Comparison,
    Evaluation,
    Item,
    ModelIdentity,
    Response,
    Score,
    TaskSettings,
    digest,
)
from early_cases import ADAPTED, BASE, settings
from eval_cases import CHAT, byte_folder
from source_cases import tiny_adapter

CHOICES = ("yes", "no, never", "perhaps", "it depends")
#: A task with its responses, one list for each item, and the values of its primary metric.
Side = tuple[TaskSettings, Sequence[Sequence[Response]], Sequence[float]]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as opened:
        yield opened


def stored(ledger: Ledger, name: str, model: ModelIdentity, tasks: Sequence[Side], *, asked: bool = True,
           group: str = "") -> Evaluation:
    """A finished evaluation. The right choice of item i is i % 4. group: of all tasks, with their mean as its score."""
    items, answers, positions, responses, scores = [], [], [], {}, []
    for task, texts, values in tasks:
        for i, (own, value) in enumerate(zip(texts, values, strict=True)):
            question = Asked(choices=CHOICES, gold=(i % 4,)) if task.output_type == "multiple_choice" else Asked()
            items.append(Item(task=task.task, index=i, hash=digest([task.task, i]), doc={"q": i, "source_id": i // 4},
                              asked=question if asked else None, cluster=str(i // 4) if task.cluster else None))
            first = len(responses)
            responses |= {first + k: r for k, r in enumerate(own)}
            positions.append(tuple(range(first, len(responses))))
            answers.append(Answer(task=task.task, index=i, item=items[-1].hash, metrics={task.primary: value},
                                  cluster=items[-1].cluster))
        scores.append(Score(task=task.task, metric=task.primary.split(",")[0], filter=task.primary.split(",")[1],
                            value=float(np.mean(values)), stderr=None, n=len(values), primary=True))
    if group:
        scores.append(replace(scores[0], task=group, value=float(np.mean([s.value for s in scores])), group=True,
                              n=len(items)))
    evaluation = Evaluation(id=f"e-{name}", name=name, model=model, device="cpu", dtype="float32", engine="packed",
                            tasks=tuple(task for task, _, _ in tasks))
    ledger.open_evaluation(evaluation, items)
    ledger.acquire(evaluation.id)
    ledger.save_batch(evaluation.id, 0, responses)
    return ledger.finish_evaluation(replace(evaluation, scores=tuple(scores)), answers, positions)


def scored(name: str, logprobs: np.ndarray, **more: Any) -> Side:
    """A multiple-choice task, by the raw log-likelihoods [items, 4]."""
    right = [float(row.argmax() == i % 4) for i, row in enumerate(logprobs)]
    return (settings(name, len(logprobs), **more),
            [[Response(logprob=float(v), greedy=False) for v in row] for row in logprobs], right)


def written(name: str, texts: Sequence[Response], **more: Any) -> Side:
    """A task with generated texts; those that begin with "r" are right."""
    task = settings(name, len(texts), output_type="generate_until", chance=None, primary="exact_match,none", **more)
    return task, [[text] for text in texts], [float((text.text or "").startswith("r")) for text in texts]


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(-8, 2, (n, 4))


def changes(ledger: Ledger, base: Sequence[Side], tuned: Sequence[Side], **more: Any) -> Comparison:
    stored(ledger, "base", BASE, base, **more)
    stored(ledger, "tuned", ADAPTED, tuned, **more)
    return compare("base", "tuned", ledger=ledger)


def test_moves_and_calibration_are_their_definitions(ledger: Ledger) -> None:
    before, gold = noise(120), np.arange(120) % 4
    after = before - .3 + np.random.default_rng(1).normal(0, .2, before.shape)
    task, = changes(ledger, [scored("quiz", before)], [scored("quiz", after)]).changes.tasks

    def softmax(v: np.ndarray) -> np.ndarray:
        return np.exp(v) / np.exp(v).sum(axis=1, keepdims=True)

    choice, text = task.moves
    right = [m[np.arange(120), gold] for m in (before, after, np.log(softmax(before)), np.log(softmax(after)))]
    assert (text.measure, text.n, text.mean) == ("text", 120, pytest.approx((right[1] - right[0]).mean()))
    assert (choice.measure, choice.mean) == ("choice", pytest.approx((right[3] - right[2]).mean()))
    assert (text.moved, choice.moved) == (True, False)
    assert text.p_adjusted == pytest.approx(2 * text.p)
    for side, values in ((task.calibration.base, before), (task.calibration.tuned, after)):
        p = softmax(values)
        assert side.confidence == pytest.approx(p.max(axis=1).mean())
        assert side.accuracy == pytest.approx((p.argmax(axis=1) == gold).mean())
        assert side.brier == pytest.approx(((p - np.eye(4)[gold]) ** 2).sum(axis=1).mean())
        assert side.error is not None
        assert side.error.bins == 10
    shift = task.calibration
    assert shift.overconfidence.mean == pytest.approx(
        (shift.tuned.confidence - shift.tuned.accuracy) - (shift.base.confidence - shift.base.accuracy))
    assert shift.overconfidence.low < shift.overconfidence.mean < shift.overconfidence.high
    assert shift.brier.mean == pytest.approx(shift.tuned.brier - shift.base.brier)
    same = (before.argmax(axis=1) == after.argmax(axis=1)).sum()
    assert (task.identical, task.answered, task.n, task.missing) == (same, 120, 120, ())


def test_normalized_accuracy_compares_and_shares_by_length(ledger: Ledger) -> None:
    """As expected accuracy does: the longest choice has the lowest log-likelihood, and is taken all the same."""
    logprobs = np.tile([-4.0, -8.0, -8.0, -9.0], (40, 1))
    task, texts, _ = scored("quiz", logprobs, primary="acc_norm,none")
    per_character = logprobs / [len(c) for c in CHOICES]
    right = [float(row.argmax() == i % 4) for i, row in enumerate(per_character)]
    entry, = changes(ledger, [(task, texts, right)], [(task, texts, right)]).changes.tasks
    chosen = int(per_character[0].argmax())
    assert chosen != int(logprobs[0].argmax())
    assert entry.positions.base[chosen] == 40
    shares = np.exp(per_character[0] * np.mean([len(c) for c in CHOICES]))
    assert entry.calibration.base.confidence == pytest.approx(shares.max() / shares.sum())
    assert entry.calibration.base.accuracy == .25


def test_one_choice_for_everything_is_seen_in_the_positions(ledger: Ledger) -> None:
    first, second = (np.full((100, 4), -9.0) for _ in range(2))
    first[:, 0], second[:, 1] = -1, -1
    found = changes(ledger, [scored("quiz", first)], [scored("quiz", second)])
    table = found.changes.tasks[0].positions
    assert (table.right, table.base, table.tuned) == ((25,) * 4, (100, 0, 0, 0), (0, 100, 0, 0))
    assert (found.changes.identical, found.changes.answered) == (0, 100)


def test_a_group_with_one_verdict_is_one_entry_and_so_is_its_correction(ledger: Ledger) -> None:
    def side(shift: float) -> list[Side]:
        return [scored(name, noise(60, k) + shift, groups=("both",)) for k, name in enumerate(("one", "two"))]

    for name, model, shift in (("base", BASE, 0.0), ("tuned", ADAPTED, -.5)):
        stored(ledger, name, model, side(shift), group="both")
    found = compare("base", "tuned", ledger=ledger)
    entry, = found.changes.tasks
    assert (entry.task, entry.n, entry.positions.n, found.changes.tests) == ("both", 120, 120, 2)
    assert entry.moves[1].mean == pytest.approx(-.5)


def test_clusters_reach_the_moves(ledger: Ledger) -> None:
    before = noise(120)
    after = before + np.repeat(np.random.default_rng(5).normal(.1, .3, 30), 4)[:, None]
    sides = [[scored("hellaswag", v, cluster="source_id")] for v in (before, after)]
    move = changes(ledger, *sides).changes.tasks[0].moves[1]
    assert move.clustered
    plain = (after - before)[:, 0]
    assert abs(move.z) < .7 * abs(plain.mean() / (plain.std(ddof=1) / math.sqrt(120)))


def test_texts_have_lengths_and_ends(ledger: Ledger) -> None:
    def text(length: int, finish: Any, words: str = "r ok", tokens: int | None = 0) -> Response:
        return Response(text=words, tokens=None if tokens is None else length, finish=finish)

    base = [text(4, "eos")] * 8 + [text(9, "stop"), text(10, None)]
    tuned = [text(4, "eos")] * 2 + [text(64, "length", "so on")] * 7 + [text(0, "eos", " ")]
    entry = changes(ledger, [written("gen", base)], [written("gen", tuned)]).changes.tasks[0]
    shift = entry.texts
    assert (shift.n, shift.unit, shift.base.median, shift.tuned.median) == (10, "tokens", 4, 64)
    assert (shift.base.long, shift.tuned.long) == (pytest.approx(9.1), 64)
    assert [getattr(shift.base, f) for f in ("ended", "stopped", "cut_off", "unknown", "empty")] == [8, 1, 0, 1, 0]
    assert [getattr(shift.tuned, f) for f in ("ended", "stopped", "cut_off", "unknown", "empty")] == [3, 0, 7, 0, 1]
    assert (entry.identical, entry.answered, entry.moves, entry.calibration) == (2, 10, (), None)
    assert entry.missing == ("how 1 of 10 texts of the base ended: it is not stored",)


def test_without_tokens_lengths_are_in_characters(ledger: Ledger) -> None:
    texts = [Response(text="r" * k, tokens=None, finish=None) for k in range(1, 11)]
    entry = changes(ledger, [written("gen", texts)], [written("gen", texts)]).changes.tasks[0]
    assert (entry.texts.unit, entry.texts.base.median, entry.texts.base.unknown) == ("characters", 5.5, 10)


def test_one_text_for_each_item_has_the_move_of_the_text_alone(ledger: Ledger) -> None:
    def side(shift: float, greedy: list[bool]) -> Side:
        task = settings("lambada", 40, output_type="loglikelihood", chance=None)
        return task, [[Response(logprob=-3.0 - k / 40 + shift, greedy=g)] for k, g in enumerate(greedy)], \
            list(map(float, greedy))

    entry, = changes(ledger, [side(0, [True] * 20 + [False] * 20)], [side(-.2, [True] * 10 + [False] * 30)]
                     ).changes.tasks
    assert [(m.measure, m.n, m.mean) for m in entry.moves] == [("text", 40, pytest.approx(-.2))]
    assert (entry.identical, entry.answered) == (10, 20)  # what it writes instead of the right text is not known


def test_what_older_and_imported_evaluations_lack_is_said(ledger: Ledger) -> None:
    found = changes(ledger, [scored("quiz", noise(50))], [scored("quiz", noise(50, 1))], asked=False)
    entry, = found.changes.tasks
    assert (entry.moves, entry.calibration, entry.answered) == ((), None, 50)
    assert entry.positions.right == ()
    assert entry.missing == ("the log-probabilities: the choices and the right one are not stored, as in imported "
                             "evaluations",)
    bare = settings("bare", 30)
    for name, model in (("b", BASE), ("t", ADAPTED)):
        stored(ledger, name, model, [(bare, [[]] * 30, [1.0] * 30)])
    nothing = compare("b", "t", ledger=ledger)
    assert (nothing.changes.answered, nothing.changes.text, nothing.changes.no_effect) == (0, None, "")
    assert "stored as scores alone" in write_record(results(ledger, nothing), title="x")


def test_a_log_likelihood_that_is_not_finite_is_left_out_and_counted(ledger: Ledger) -> None:
    after = noise(40) - .1
    after[3, 3] = -math.inf
    entry, = changes(ledger, [scored("quiz", noise(40))], [scored("quiz", after)]).changes.tasks
    assert [m.n for m in entry.moves] == [39, 39]
    assert entry.missing == ("the log-probabilities of 1 of 40 items: a log-likelihood is not finite",)


def test_other_dtypes_and_forced_comparisons_prove_no_move(ledger: Ledger) -> None:
    for name, model, shift in (("base", BASE, 0.0), ("half", ADAPTED, -1.0)):
        value = stored(ledger, name, model, [scored("quiz", noise(60) + shift)])
    half = replace(value, dtype="bfloat16")
    move = compare(ledger.find_evaluation("base"), half, ledger=ledger, save=False).changes.tasks[0].moves[1]
    assert (move.moved, move.problem) == (False, "computed in float32 and bfloat16")
    other = replace(value, tasks=(replace(value.tasks[0], prompts="other"),))
    forced = compare(ledger.find_evaluation("base"), other, ledger=ledger, force=True, save=False)
    assert forced.forced
    assert forced.changes.tasks[0].moves[1].problem == "forced: the evaluations differ in settings that must agree"
    assert "not seen to move (forced" in write_record(replace(results(ledger, compare(
        "base", "half", ledger=ledger)), comparisons=(forced,)), title="x")


def test_choices_that_are_asked_twice_count_once(ledger: Ledger) -> None:
    """As for `acc_mutual_info`: the second half is without the question."""
    before, after = noise(40), noise(40) - .5
    sides = []
    for values in (before, after):
        task, texts, right = scored("quiz", values)
        sides.append([(replace(task, primary="acc_mutual_info,none"),
                       [[*row, *(Response(logprob=-50.0, greedy=False) for _ in row)] for row in texts], right)])
    entry, = changes(ledger, *sides).changes.tasks
    assert [(m.n, m.mean) for m in entry.moves] == [(40, pytest.approx(0, abs=1e-9)), (40, pytest.approx(-.5))]


# --- Fine-tunes without an effect ---
def adapter(folder: Path, *, zero: bool, extra: bool = False) -> ModelIdentity:
    folder.mkdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    tensors = {name.format("A"): np.ones((2, 4), np.float32),
               name.format("B"): np.zeros((4, 2), np.float32) if zero else np.ones((4, 2), np.float32)}
    if extra:
        tensors["base_model.model.lm_head.weight"] = np.ones((4, 4), np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    return replace(BASE, adapter=fingerprint_adapter(folder), adapter_source=str(folder))


def no_effect(ledger: Ledger, model: ModelIdentity, change: float = 0.0, n: int = 40) -> Comparison:
    logprobs = noise(n)
    logprobs[np.arange(n), np.arange(n) % 4] += 3  # above chance
    stored(ledger, "base", BASE, [scored("quiz", logprobs)])
    stored(ledger, "tuned", model, [scored("quiz", logprobs + change)])
    return compare("base", "tuned", ledger=ledger)


def test_an_adapter_with_zero_matrices_is_named_and_never_kept_without_it(ledger: Ledger, tmp_path: Path) -> None:
    found = no_effect(ledger, adapter(tmp_path / "a", zero=True), n=600)
    row = found.rows[0]
    assert (found.changes.no_effect, row.told) == ("zero adapter", "kept")
    assert row.note.startswith("no effect seen: all B matrices of its adapter are zero")
    sentence = "tuned shows no effect: all B matrices of its adapter are zero."
    loaded = results(ledger, found)
    assert sentence in write_record(loaded, title="x")
    assert sentence in write_page(loaded, title="x")
    assert sentence in shown(found)


def test_an_adapter_that_was_not_loaded_is_told_from_a_zero_one(ledger: Ledger, tmp_path: Path) -> None:
    assert no_effect(ledger, adapter(tmp_path / "a", zero=False)).changes.no_effect == "not applied"


@pytest.mark.parametrize(("change", "effect"), [(0.0, "same numbers"), (5e-4, "rounding"), (2e-3, "")])
def test_without_its_files_the_numbers_alone_speak(ledger: Ledger, change: float, effect: str) -> None:
    found = no_effect(ledger, ADAPTED, change)
    assert found.changes.no_effect == effect
    assert ("no effect seen" in found.rows[0].note) == bool(effect)


def test_other_files_in_the_folder_are_not_the_evaluated_adapter(ledger: Ledger, tmp_path: Path) -> None:
    model = adapter(tmp_path / "a", zero=True)
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    (tmp_path / "a" / "adapter_config.json").unlink()
    (tmp_path / "a").rmdir()
    adapter(tmp_path / "a", zero=False)
    assert no_effect(ledger, model).changes.no_effect == "same numbers"


def test_the_same_model_evaluated_twice_is_no_fine_tune_without_effect(ledger: Ledger) -> None:
    found = no_effect(ledger, BASE)
    assert (found.changes.no_effect, found.changes.identical) == ("", 40)


def test_the_same_texts_alone_are_told_as_such(ledger: Ledger) -> None:
    texts = [Response(text=f"r {k}", tokens=3, finish="eos") for k in range(20)]
    assert changes(ledger, [written("gen", texts)], [written("gen", texts)]).changes.no_effect == "same texts"


def test_matrices_of_an_adapter(tmp_path: Path) -> None:
    for name, options, expected in (("zero", {"zero": True}, True), ("one", {"zero": False}, False),
                                    ("more", {"zero": True, "extra": True}, None)):
        adapter(tmp_path / name, **options)
        assert has_zero_matrices(tmp_path / name) is expected


def test_the_gate_says_it_too(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_effect(ledger, adapter(tmp_path / "a", zero=True), n=600)
    found, lines = gate("base", "tuned", {"quiz": .02}, ledger=ledger)
    assert [line.outcome for line in lines] == ["held"]
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(tmp_path / "ledger.db"))
    result = CliRunner().invoke(app, ["gate", "base", "tuned", "--max-drop", "quiz=2"])
    assert "tuned shows no effect: all B matrices" in result.stdout
    assert found.changes.no_effect == "zero adapter"


# --- How it is shown ---
def results(ledger: Ledger, found: Comparison) -> Results:
    return Results.load(ledger, [found.base, found.tuned])


def shown(found: Comparison, *, details: bool = False, width: int = 100) -> str:
    from rich.console import Console

    console = Console(width=width, record=True, file=io.StringIO())
    console.print(terminal_table(found, width=width, details=details))
    return " ".join(console.export_text().split())


def test_the_line_is_always_there_and_the_tables_on_request(ledger: Ledger, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    before = noise(100)
    texts = [Response(text=f"r {k}", tokens=3, finish="eos") for k in range(20)]
    found = changes(ledger, [scored("quiz", before), written("gen", texts)],
                    [scored("quiz", before - .25), written("gen", texts[:10] * 2)])
    line = ("The answers are the same on 91.67% of 120 items. The log-probability of the right texts changed by −0.250 "
            "nats")
    assert line in shown(found)
    assert "Calibration" not in shown(found)
    loaded = results(ledger, found)
    record, page, details = write_record(loaded, title="x"), write_page(loaded, title="x"), shown(found, details=True)
    for words in ("not seen to move", "moved", "Overconfidence (points)", "Median length"):
        assert words in record
        assert words in page
        assert words.split()[0] in details
    assert line in record
    assert page.count("Positions of the answers on quiz") == 1
    assert not {"forgot", "forgetting"} & set(record.partition("What changed")[2].partition("###")[0].lower().split())
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(tmp_path / "ledger.db"))
    value = json.loads(CliRunner().invoke(app, ["compare", "base", "tuned", "--json"]).stdout)["changes"]
    assert (value["identical"], value["answered"], value["no_effect"], value["moved"]) == (110, 120, None, ["quiz"])
    assert value["tasks"][0]["moves"][1]["moved"] is True
    assert set(value["tasks"][0]["calibration"]["base"]["error"]) == {"plain", "debiased", "by_chance", "bins"}


def test_a_comparison_of_an_older_version_shows_nothing_of_it(ledger: Ledger) -> None:
    found = changes(ledger, [scored("quiz", noise(40))], [scored("quiz", noise(40, 1))])
    older = ledger.save_comparison(replace(found, changes=None))
    assert ledger.find_comparison(older.id).changes is None
    assert "What changed" not in write_record(results(ledger, older), title="x")
    assert "The answers are the same" not in shown(older, details=True)


def test_the_engine_gives_the_numbers_of_the_base_for_an_adapter_that_was_never_trained(tmp_path: Path, ledger: Ledger
                                                                                        ) -> None:
    """The whole way, on a tiny random model: PEFT's fresh adapter has B = 0; one that has learned something has not."""
    base = byte_folder(tmp_path / "base", template=CHAT, window=4096)
    effects = {}
    for name in ("fresh", "other"):
        tiny_adapter(base, tmp_path / name, fresh=name == "fresh")
        for side, adapter_ in (("base", None), (name, str(tmp_path / name))):
            evaluate(EvalSpec.model_validate({"model": str(base), "adapter": adapter_, "name": side, "dtype": "float32",
                                              "tasks": ({"name": "arc_easy", "sample": 6},), "device": "cpu"}),
                     ledger=ledger)
        effects[name] = compare("base", name, ledger=ledger).changes
    assert (effects["fresh"].no_effect, effects["fresh"].identical) == ("zero adapter", 6)
    assert (effects["other"].no_effect, effects["other"].text.mean != 0) == ("", True)
