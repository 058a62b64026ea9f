"""Fine-tunes at less strength and blends: chosen on one part of the items, confirmed on the other, resumed, refused."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aftertune.comparison import compare
from aftertune.cure import Cured, blend, soften, trial
from aftertune.cure.blend import grid
from aftertune.cure.choosing import AskedTask, Goal, choose, confirm, confirms, measure, refusal
from aftertune.cure.looks import earlier_looks, look, trained_tunings
from aftertune.cure.parents import find_parent
from aftertune.cure.soften import finer_strength, softened_proposals
from aftertune.cure.trial import Trial, run_trial
from aftertune.errors import InputError
from aftertune.evaluation import evaluate
from aftertune.ledger import Ledger
from aftertune.report import Results, write_record
from aftertune.study import TaskSpec
from aftertune.tuning import blending, read_tuning
from aftertune.tuning.cured import make_cured
from aftertune.tuning.output import read_manifest
from aftertune.values import Candidate, plain
from cli_cases import call
from cure_cases import SETTINGS, asked_for, cure_place, fine_tune, manifest

pytestmark = pytest.mark.filterwarnings("ignore")
STRENGTHS = (0.4, 0.7)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with an adapter and a full fine-tune, which forget the colours and learn to say."""
    folder = cure_place(tmp_path_factory.mktemp("cure"))
    fine_tune(folder, "adapter")
    fine_tune(folder, "other", seed=3)
    fine_tune(folder, "whole", method="full")
    return folder


@pytest.fixture(scope="module")
def answered(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with the answers of a cure of the full fine-tune, whose model is in "out" beside it."""
    path = tmp_path_factory.mktemp("answered") / "l.db"
    with Ledger(path) as ledger:
        softened(place, path.parent / "out", ledger)
    return path


@pytest.fixture
def ledger_file(answered: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copy(answered, tmp_path / "l.db"))


def softened(place: Path, out: Path, ledger: Ledger, name: str = "whole", **values: Any) -> Cured:
    return soften(str(place / name), asked_for(place, out=out, **values), strengths=STRENGTHS, ledger=ledger)


# --- Choosing and confirming ---


def values_of(task: str, lost: int, gained: int = 0, n: int = 200, base: int = 120) -> AskedTask:
    """A task of n items, of which the base has the first ``base`` right."""
    before = np.zeros(n)
    before[:base] = 1
    after = before.copy()
    after[:lost] = 0
    after[base:base + gained] = 1
    return AskedTask(task=task, metric="acc", before=before, after=after, chance=0.25)


GOAL = Goal({"kept": 5.0}, "target")


def model(lost: int, gained: int, kept_gained: int = 0) -> list[AskedTask]:
    return [values_of("target", 0, gained, base=0), values_of("kept", lost, kept_gained)]


def test_the_choice_gains_most_among_those_that_lose_no_more_than_the_margin() -> None:
    candidates = [measure(model(*counts), GOAL) for counts in ((30, 90), (10, 50), (8, 50), (1, 20))]
    assert refusal(candidates[0], GOAL) == "loses more than the margin on kept (−15.0 points)"
    assert choose(candidates, GOAL) == 2, "the target is equal, so the one that loses less"
    assert choose(candidates, Goal({"kept": 5.0})) == 1, "without a target the first that may be chosen"
    assert choose(candidates[:1], GOAL) is None
    assert refusal(measure(model(0, 0), GOAL), GOAL) == "gains nothing on target (+0.0 points)"


def test_a_cure_is_confirmed_open_or_failed() -> None:
    good = confirm(model(2, 50, 2), GOAL)
    assert (good.outcome, dict(good.outcomes)) == ("confirmed", {"target": "learned", "kept": "kept"})
    assert {p.half for p in good.points} == {"report"}
    unclear = confirm([values_of("target", 0, 2, base=0), values_of("kept", 12, 4)], GOAL)
    assert (unclear.outcome, dict(unclear.outcomes)) == ("open", {"target": "open", "kept": "open"})
    assert confirm(model(40, 50), GOAL).outcome == "failed"
    guessing = confirm([values_of("target", 0, 50, base=0), values_of("kept", 2, 2, base=50)], GOAL)
    assert guessing.outcomes["kept"] == "floor"
    assert guessing.outcome == "open", "nothing is kept where the base only guesses"


def test_a_claim_is_corrected_for_the_models_that_were_judged_on_these_items() -> None:
    values = model(5, 14, 5)
    assert confirm(values, GOAL).outcome == "confirmed"
    repeated = confirm(values, GOAL, tries=20)
    assert (repeated.outcome, dict(repeated.outcomes)) == ("open", {"target": "open", "kept": "open"})
    assert confirm(model(40, 50), GOAL, tries=20).outcome == "failed", "a loss needs no correction: it claims no cure"


def test_an_item_has_the_same_part_in_every_run() -> None:
    parts = [confirms(f"item {n}") for n in range(2000)]
    assert parts == [confirms(f"item {n}") for n in range(2000)]
    assert 900 < sum(parts) < 1100


def candidate(strength: float, refused: str = "") -> Candidate:
    return Candidate(name=f"strength {strength:g}", parts={"all": strength}, result="", evaluation="", points=(),
                     refused=refused)


@pytest.mark.parametrize(("lost", "kept", "tried"), [
    ((1, 0.8, 0.6, 0.4), (0.2,), ("strength 0.3", "strength 0.4")),
    ((1,), (0.8, 0.6), ("strength 0.9", "strength 1")),
    ((1, 0.8, 0.6, 0.4, 0.2), (), ("strength 0.1", "strength 0.2")),
    ((0.8,), (1, 0.6), None), ((), (), None)])
def test_the_strength_between_the_largest_that_keeps_and_the_next_is_tried_too(
        place: Path, ledger_file: Path, lost: tuple[float, ...], kept: tuple[float, ...],
        tried: tuple[str, str] | None) -> None:
    with Ledger(ledger_file) as ledger:
        parent = find_parent(str(place / "whole"), ledger)
    found = finer_strength(parent, [*(candidate(a, "loses") for a in lost), *(candidate(a) for a in kept),
                                    Candidate(name="step 5", parts={"step": 5}, result="", evaluation="", points=())])
    assert (found and (found[0].name, found[1])) == tried


# --- A trial ---


def test_a_finer_strength_is_a_candidate_like_the_others(place: Path, ledger_file: Path, tmp_path: Path) -> None:
    """The margin is between what the two strengths of the grid lose, and another command is another trial."""
    with Ledger(ledger_file) as ledger:
        parent = find_parent(str(place / "whole"), ledger)
        request = asked_for(place, out=tmp_path / "finer").asked_like(parent.tuning)
        coarse = Trial("soften", [parent], softened_proposals(parent, (1.0, 0.7, 0.4)), request)
        finer = replace(coarse, finer=partial(finer_strength, parent))
        assert finer.id != coarse.id
        cure = run_trial(finer, ledger=ledger).cure
        allowed = {c.parts["all"] for c in cure.candidates if not c.refused}
        names = [c.name for c in cure.candidates]
    if 0.7 in allowed:
        assert names == ["strength 1", "strength 0.85", "strength 0.7", "strength 0.4"]
    else:
        assert names == ["strength 1", "strength 0.7", "strength 0.55", "strength 0.4"]
    best = max((c for c in cure.candidates if not c.refused), key=lambda c: c.points[0].delta)
    assert next(c for c in cure.candidates if c.name == cure.chosen).points[0].delta == best.points[0].delta


def test_a_softened_model_keeps_what_was_named_and_has_its_lineage(place: Path, answered: Path, ledger_file: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    out = answered.parent / "out"
    monkeypatch.setattr(trial, "_Scoring", None)
    with Ledger(ledger_file) as ledger:
        before = {e.id for e in ledger.evaluations()}
        cured = softened(place, out, ledger)  # it is done, so nothing is computed
        assert {e.id for e in ledger.evaluations()} == before
        cure = cured.cure
        assert (cure.outcome, cure.chosen, cured.written) == ("confirmed", "strength 0.4", True)
        assert [c.name for c in cure.candidates] == ["strength 1", "strength 0.7", "strength 0.4"]
        assert cure.candidates[0].result == read_tuning(str(place / "whole"), ledger).result
        chosen, confirmed = {p.task: p for p in cure.candidates[2].points}, {p.task: p for p in cure.confirmed}
        assert {t: chosen[t].n + confirmed[t].n for t in chosen} == {"say": 40, "colours": 80}
        assert read_manifest(out) == cured.tuning
        after = evaluate(str(out), [TaskSpec(name="colours", sample=20)], ledger=ledger,
                         include_path=place / "tasks", **SETTINGS)
        base = evaluate(str(place / "base"), [TaskSpec(name="colours", sample=20)], ledger=ledger,
                        include_path=place / "tasks", **SETTINGS)
        assert compare(base, after, ledger=ledger).lineage
        assert after.tuning == cured.tuning.id
        (stored,) = [c for c in ledger.comparisons() if c.base_name == "whole-base-confirm"]
        assert {r.task: r.verdict for r in stored.rows if r.primary} == {t: p.verdict for t, p in confirmed.items()}
        assert stored.lineage


def test_strength_1_is_answered_as_the_fine_tune_is(place: Path, tmp_path: Path) -> None:
    """An adapter's answers at strength 1, with its values put into another one in memory, are those of its own load."""
    from aftertune.cure.parents import find_parent
    from aftertune.cure.soften import softened_proposals
    from aftertune.cure.trial import Trial, _Scoring

    with Ledger(tmp_path / "l.db") as ledger:
        parent = find_parent(str(place / "adapter"), ledger)
        proposals = softened_proposals(parent, [0.3, 1.0])
        request = asked_for(place, target=None, out=tmp_path / "out")
        scoring = _Scoring(Trial("soften", [parent], proposals, request), ledger, lambda *_: None)
        base = scoring.base("choice")
        tried = [scoring.candidate(proposal, tmp_path, base) for proposal in proposals]
        tuned = evaluate(str(place / "base"), [TaskSpec(name="colours")], ledger=ledger, include_path=place / "tasks",
                         adapter=str(place / "adapter"), **SETTINGS)
        of_tuned = {a.index: a.responses for a in ledger.answers(tuned.id)}
        answers = ledger.answers(tried[1].evaluation)
        assert answers
        assert all(answer.responses == of_tuned[answer.index] for answer in answers)
        assert tried[1].result == tuned.model.fingerprint
        assert tried[0].result != tuned.model.fingerprint


def test_a_run_that_was_stopped_goes_on_and_ends_the_same(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                          ) -> None:
    with Ledger(tmp_path / "whole.db") as ledger:
        unbroken = softened(place, tmp_path / "unbroken", ledger, "adapter")
    save, saved = Ledger.save_batch, []

    def interrupted(*arguments: Any) -> None:
        save(*arguments)
        saved.append(arguments[1:3])
        if len(saved) in (2, 6, 11):
            raise KeyboardInterrupt

    monkeypatch.setattr(Ledger, "save_batch", interrupted)
    stops = 0
    with Ledger(tmp_path / "l.db") as ledger:
        while True:
            try:
                resumed = softened(place, tmp_path / "out", ledger, "adapter")
            except KeyboardInterrupt:
                stops += 1
                assert not (tmp_path / "out").exists()
            else:
                break
    assert stops == 3
    assert len(saved) == len(set(saved)), "no batch is computed twice"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".out")] == []
    assert resumed.cure.candidates == unbroken.cure.candidates
    assert (resumed.cure.chosen, resumed.cure.confirmed) == (unbroken.cure.chosen, unbroken.cure.confirmed)
    if resumed.written:
        name = "adapter_model.safetensors"
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()


def work(tells: Connection, place: str, root: str) -> None:
    """What a child does that is killed: it says how far it is."""
    with Ledger(Path(root) / "l.db") as ledger:
        soften(f"{place}/whole", asked_for(Path(place), out=Path(root) / "out"), strengths=STRENGTHS, ledger=ledger,
               progress=lambda done, total, text: tells.send((done, text)))


@pytest.mark.slow
def test_a_killed_process_leaves_nothing_that_the_next_one_does_not_use_or_remove(place: Path, tmp_path: Path) -> None:
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["torch", "transformers", "lm_eval.tasks", "aftertune.cure"])
    for stop in (1500, 2500):
        listens, tells = server.Pipe(duplex=False)
        child = server.Process(target=work, args=(tells, str(place), str(tmp_path)))
        child.start()
        tells.close()
        while listens.recv()[0] < stop:
            pass
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert not (tmp_path / "out").exists()
    with Ledger(tmp_path / "l.db") as ledger:
        cured = softened(place, tmp_path / "out", ledger)
        assert cured.written
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("l.db")) == ["out"]
    with Ledger(tmp_path / "whole.db") as ledger:
        assert plain(softened(place, tmp_path / "2", ledger).cure)["candidates"] == plain(cured.cure)["candidates"]


def test_nothing_is_written_if_no_strength_is_good_enough(place: Path, ledger_file: Path, tmp_path: Path) -> None:
    with Ledger(ledger_file) as ledger:
        cured = softened(place, tmp_path / "out", ledger, margin=1.0)
        assert cured.failed
        assert cured.cure.reason.startswith("none of 3 models may be chosen: strength 1 loses more than the margin on "
                                            "colours (−")
        assert not (tmp_path / "out").exists()
        assert [t.cure is not None and t.result for t in ledger.tunings()][-1] is None
        assert softened(place, tmp_path / "other", ledger, require_proof=True).written, "what is proven is written"


def test_what_is_open_is_written_unless_proof_is_asked_for(place: Path, ledger_file: Path, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    judge = trial.confirm
    monkeypatch.setattr(trial, "confirm", lambda values, goal, **more: judge(values, goal, tries=10**6))
    with Ledger(ledger_file) as ledger:
        refused = softened(place, tmp_path / "out", ledger, require_proof=True)
        assert (refused.cure.outcome, refused.written, (tmp_path / "out").exists()) == ("open", False, False)
        cured = softened(place, tmp_path / "out", ledger)
        assert (cured.cure.outcome, cured.written) == ("open", True)
        assert "no loss beyond the margin is proven on colours, but none is ruled out either" in cured.cure.reason


def test_the_fine_tune_itself_is_not_copied(place: Path, tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.db") as ledger:
        cured = soften(str(place / "adapter"), asked_for(place, margin=90.0, target=None, out=tmp_path / "out"),
                       strengths=STRENGTHS, ledger=ledger)
        assert (cured.cure.chosen, cured.as_tuned, cured.failed, cured.written) == ("strength 1", True, False, False)
        assert not (tmp_path / "out").exists()


def test_a_second_cure_of_the_same_fine_tune_is_corrected(place: Path, answered: Path, ledger_file: Path,
                                                          tmp_path: Path) -> None:
    with Ledger(ledger_file) as ledger:
        first = softened(place, answered.parent / "out", ledger)
        again = soften(str(place / "whole"), asked_for(place, out=tmp_path / "2"), strengths=[0.5], ledger=ledger)
        assert (first.cure.tries, again.cure.tries) == (1, 2)
        fewer = softened(place, tmp_path / "3", ledger, items=60)
        assert fewer.cure.chosen == first.cure.chosen, "the same model"
        assert fewer.cure.tries == 3, "with another number of items it is another look"


def test_looks_at_models_of_one_fine_tune_count_once_each(answered: Path, ledger_file: Path) -> None:
    with Ledger(ledger_file) as ledger:
        cured = read_manifest(answered.parent / "out")
        assert cured is not None
        assert cured.cure is not None
        [trained] = cured.cure.parents
        parent = next(t for t in ledger.tunings() if t.id == trained)
        [first] = earlier_looks([parent], {"colours"}, ledger)
        assert first == look(cured.cure, [(p.task, p.n) for p in cured.cure.confirmed])
        assert earlier_looks([parent], {"another task"}, ledger) == set()
        ledger.save_tuning(replace(cured, id="t-again", name="again"))
        assert earlier_looks([parent], {"colours"}, ledger) == {first}, "the same look"
        fewer = tuple(replace(p, n=p.n - 1) for p in cured.cure.confirmed)
        ledger.save_tuning(replace(cured, id="t-fewer", name="fewer", cure=replace(cured.cure, confirmed=fewer)))
        looks = earlier_looks([parent], {"colours"}, ledger)
        assert len(looks) == 2, "the same model on another number of items"
        assert earlier_looks([cured], {"colours"}, ledger) == looks, "a softened model comes from the same fine-tune"
        assert trained_tunings([cured], ledger) == [parent]
        cell = make_cured(parent, answered.parent / "cell", name="cell", soften=0.5)
        ledger.save_tuning(cell)
        assert trained_tunings([cell], ledger) == [parent], "as a cell of a study it does too"
        assert earlier_looks([cell], {"colours"}, ledger) == looks
        ledger.save_tuning(replace(cured, id="t-of-cell", name="of cell", result="f", cure=replace(
            cured.cure, parents={cell.id: cell.result}, confirmed=tuple(replace(p, n=p.n - 2) for p in fewer))))
        assert len(earlier_looks([parent], {"colours"}, ledger)) == 3


def test_thirds_of_the_layers(place: Path, tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.db") as ledger:
        cured = soften(str(place / "whole"), asked_for(place, target=None, margin=90.0, out=tmp_path / "out"),
                       strengths=[0.5], by="depth", ledger=ledger)
    assert [(c.name, dict(c.parts)) for c in cured.cure.candidates][1:3] == [
        ("lower third 0.5", {"lower": 0.5, "middle": 1.0, "upper": 1.0}),
        ("middle third 0.5", {"lower": 1.0, "middle": 0.5, "upper": 1.0})]
    assert len({c.result for c in cured.cure.candidates}) == 5


# --- Blends ---


def test_a_linear_blend_of_adapters_is_the_weighted_sum_of_their_changes(place: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from aftertune.cure.parents import find_parent

    with Ledger(tmp_path / "l.db") as ledger:
        files = [find_parent(str(place / name), ledger).files for name in ("adapter", "other")]
    blends = blending.AdapterBlends(files, [(0.3, 0.6), (1.0, 0.0)], blending.Blending(), tmp_path / "scratch")
    blends.write((0.3, 0.6), tmp_path / "out")
    blends.write((1.0, 0.0), tmp_path / "alone")
    assert (tmp_path / "alone/adapter_model.safetensors").read_bytes() == files[0].weights[0].read_bytes()
    made, first, second = (load_file(f) for f in (tmp_path / "out/adapter_model.safetensors", *(f.weights[0]
                                                                                               for f in files)))
    scale = 32 / 4
    for name in first:
        if "lora_B" in name:
            a = name.replace("lora_B", "lora_A")
            wanted = scale * (0.3 * first[name] @ first[a] + 0.6 * second[name] @ second[a])
            assert (made[name] @ made[a] - wanted).abs().max() < 1e-5
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"]


def test_a_search_tries_each_fine_tune_alone_and_weights_that_sum_to_1() -> None:
    assert grid(2) == [(0.5, 0.5), (0.75, 0.25), (0.25, 0.75), (1.0, 0.0), (0.0, 1.0)]
    assert len(grid(3)) == 10
    assert all(abs(sum(weights) - 1) < 1e-9 for weights in grid(3))


def test_a_blend_of_adapters_is_confirmed_and_written(place: Path, tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.db") as ledger:
        words = [str(place / "adapter"), str(place / "other")]
        cured = blend(words, asked_for(place, margin=95.0, target=None, out=tmp_path / "out"), weights=(0.6, 0.6),
                      blending=blending.Blending("ties"), ledger=ledger)
        assert [c.name for c in cured.cure.candidates] == ["ties 0.5 weights 0.6, 0.6"]
        assert set(cured.cure.parents) == {read_tuning(word, ledger).id for word in words}
        assert cured.written
        assert read_tuning(str(tmp_path / "out"), ledger).result == cured.cure.candidates[0].result


def test_whole_models_are_interpolated(place: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from aftertune.cure.parents import find_parent

    fine_tune(place, "second", method="full", seed=5)
    with Ledger(tmp_path / "l.db") as ledger:
        files = [find_parent(str(place / name), ledger).files for name in ("whole", "second")]
        for words, message in (((0.5,), "--weights has 1 numbers for 2 fine-tunes"),
                               ((0.0, 1.0), "at least two of them above 0")):
            with pytest.raises(InputError, match=message):
                blend([str(place / "whole"), str(place / "second")], asked_for(place), weights=words, ledger=ledger)
        with pytest.raises(InputError, match="--method ties: whole models are interpolated"):
            blend([str(place / "whole"), str(place / "second")], asked_for(place), ledger=ledger,
                  blending=blending.Blending("ties"))
        with pytest.raises(InputError, match="adapters or whole models, not both"):
            blend([str(place / "whole"), str(place / "adapter")], asked_for(place), ledger=ledger)
        with pytest.raises(InputError, match="two of them are the same model"):
            blend([str(place / "whole"), str(place / "whole")], asked_for(place), ledger=ledger)
    blending.write_blended(files, (0.5, 0.25), tmp_path / "out")
    base, first, second, made = (load_file(folder / "model.safetensors") for folder in (
        place / "base", place / "whole", place / "second", tmp_path / "out"))
    for name, tensor in made.items():
        wanted = base[name] + 0.5 * (first[name] - base[name]) + 0.25 * (second[name] - base[name])
        assert (tensor - wanted).abs().max() < 1e-6


# --- Refusals ---


def test_what_has_no_proven_base_is_refused_in_one_line(place: Path, tmp_path: Path) -> None:
    def refused(word: Path, message: str, change: Callable[[], object] | None = None) -> None:
        if change:
            change()
        with Ledger(tmp_path / f"{message[:8]}.db") as ledger, pytest.raises(InputError, match=message):
            soften(str(word), asked_for(place, out=tmp_path / "out"), ledger=ledger)
        assert not (tmp_path / "out").exists()

    for name in ("whole", "adapter"):
        shutil.copytree(place / name, tmp_path / name)
    refused(tmp_path / "adapter", "restore them, or tune again",
            lambda: shutil.copy(place / "other/adapter_model.safetensors", tmp_path / "adapter"))
    refused(tmp_path / "whole", "nothing proves which base it was made from",
            lambda: (tmp_path / "whole/aftertune.json").unlink())
    moved = {**manifest(place / "whole")}
    moved["base"] = {**moved["base"], "source": str(place / "second-base")}
    cure_place(tmp_path / "elsewhere", items=4)
    (tmp_path / "elsewhere/base").rename(place / "second-base")
    shutil.copy(place / "whole/model.safetensors", place / "second-base")
    (tmp_path / "whole/aftertune.json").write_text(json.dumps(moved))
    refused(tmp_path / "whole", "but there is another model now")
    refused(tmp_path / "elsewhere", "neither an adapter nor a model there")


def test_tasks_that_cannot_choose_and_confirm_are_refused(place: Path, tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.db") as ledger:
        with pytest.raises(InputError, match=r"colours: 18 items are too few .*give a larger --items"):
            softened(place, tmp_path / "out", ledger, items=18)
        with pytest.raises(InputError, match=r"strength 1\.5: allowed are numbers above 0, up to 1"):
            soften(str(place / "whole"), asked_for(place), strengths=[1.5], ledger=ledger)
        (tmp_path / "full").mkdir()
        (tmp_path / "full/note.txt").write_text("mine")
        with pytest.raises(InputError, match="holds something else than this command would write"):
            softened(place, tmp_path / "full", ledger)


@pytest.mark.parametrize(("words", "message"), [
    (("--keep", "colours"), "`--keep` has 'colours'; write TASK=POINTS"),
    (("--keep", "colours=0"), "`--keep` has 'colours=0'; write TASK=POINTS"),
    (("--keep", "a=1,a=2"), "`--keep` has 'a' twice (1 and 2)"),
    (("--keep", ","), "`--keep` names no task"),
    (("--keep", "colours=2", "--target", "none.jsonl=20"), "--target none.jsonl: no such file"),
    (("--keep", "colours=2", "--target", "colours=20"), "which is also in `--keep`"),
    (("--keep", "colours=2", "--items", "4"), "`--items`: Input should be greater than or equal to 16"),
    (("--keep", "colours=2", "--target", "x=20", "--match", "regex"), "`--match`: Input should be 'exact' or 'json'"),
    (("--keep", "colours=2", "--by", "width"), "--by width: allowed is depth"),
    (("--keep", "colours=2", "--strengths", "0.2,x"), "'x' is no such number"),
])
def test_wrong_options_are_one_line(place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
                                    words: tuple[str, ...], message: str) -> None:
    assert call(monkeypatch, "soften", str(place / "whole"), *words) == 2
    assert message in " ".join(capfd.readouterr().err.split())


def test_the_commands_print_the_table_the_confirmation_and_the_folder(
        place: Path, ledger_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(ledger_file))
    monkeypatch.setenv("COLUMNS", "200")
    options = ("--items", "80", "--target", f"{place / 'say.jsonl'}=40", "--include-path", str(place / "tasks"),
               "--dtype", "float32", "--threads", "1", "--out", str(tmp_path / "out"))
    words = ("soften", str(place / "whole"), "--strengths", "0.4", *options)
    assert call(monkeypatch, *words, "--keep", "colours=40") == 0
    shown = capsys.readouterr().out
    for text in ("strength 1 (as tuned)", "strength 0.4", "chosen", "nothing is claimed from these", "other items of",
                 "confirmed: strength 0.4: a loss beyond the margin is ruled out on colours", "written to"):
        assert text in shown
    assert call(monkeypatch, "report", "--out", str(tmp_path / "report.html")) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Gain and loss against strength of out" in page
    assert "How out was made without training" in page
    assert "strength-0.4-choose" not in page, "what chose is in the record of the cure alone"
    with Ledger(ledger_file) as ledger:
        assert "Models that were tried for out" in write_record(Results.load(ledger), title="cures")
    assert call(monkeypatch, *words, "--keep", "colours=1", "--json", "--out", str(tmp_path / "none")) == 1
    found, error = capsys.readouterr()
    assert json.loads(found.splitlines()[-1])["outcome"] == "failed"
    assert "nothing was written: none of 2 models may be chosen" in error
    assert call(monkeypatch, "blend", str(place / "adapter"), "x", "--keep", "colours=2") == 2
    assert "give either --weights" in capsys.readouterr().err
