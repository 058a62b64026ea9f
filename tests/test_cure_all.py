"""All cures without training in one trial: earlier checkpoints, less strength and blends, under a budget."""

from __future__ import annotations

import importlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from aftertune import tasks
from aftertune.cure import Cured, cure, trial
from aftertune.cure.chosen_items import ChoosingItems, items_that_chose
from aftertune.cure.cure import MOST_CHECKPOINTS, _earlier_checkpoints
from aftertune.cure.parents import Parent, find_parent
from aftertune.cure.retraining import retraining
from aftertune.cure.trial import TimeBudget, Trial, _record, _Scoring
from aftertune.errors import InputError
from aftertune.evaluation import evaluate
from aftertune.forgetting_watch import task_halves, watched_items
from aftertune.ledger import Ledger
from aftertune.provenance import capture
from aftertune.report import Results, confirmed_lines, recommendation, write_record
from aftertune.sources import fingerprint_file
from aftertune.study import TargetSpec, TaskSpec
from aftertune.study.anchor import ADVISED_ANCHOR
from aftertune.study.data import ADVISED_ANSWERS
from aftertune.study.keep_best import KeepBest
from aftertune.tasks import LoadOptions
from aftertune.tuning import read_tuning
from aftertune.tuning.strength import FineTuneFiles
from aftertune.values import Candidate, CheckpointChoice, Cure, Tuning, WatchPoint, digest, plain, restore
from cli_cases import call
from cure_cases import MORE, SETTINGS, asked_for, cure_place, fine_tune, fine_tune_with_checkpoints
from eval_cases import write_task
from tuning_cases import write_rows

pytestmark = pytest.mark.filterwarnings("ignore")
CHECKPOINTS = ["step 6", "step 3"]
STRENGTHS = ["strength 0.8", "strength 0.6", "strength 0.4", "strength 0.2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with a fine-tune whose checkpoints are kept, and another one."""
    folder = cure_place(tmp_path_factory.mktemp("cure"), items=48)
    fine_tune_with_checkpoints(folder, "kept")
    fine_tune(folder, "other", seed=3)
    return folder


@pytest.fixture(scope="module")
def answered(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with the answers of a cure."""
    path = tmp_path_factory.mktemp("answered") / "l.db"
    with Ledger(path) as ledger:
        cured(place, path.parent / "out", ledger)
    return path


@pytest.fixture
def ledger_file(answered: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copy(answered, tmp_path / "l.db"))


def cured(place: Path, out: Path, ledger: Ledger, margin: float = 60.0, others: tuple[str, ...] = (),
          minutes: float | None = None) -> Cured:
    return cure(str(place / "kept"), asked_for(place, margin, items=48, out=out),
                others=[str(place / name) for name in others], minutes=minutes, ledger=ledger)


# --- One trial ---


def test_one_of_all_models_is_chosen_and_it_alone_is_confirmed(place: Path, ledger_file: Path, tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger(ledger_file) as ledger:
        parent = read_tuning(str(place / "kept"), ledger)
        found = cured(place, tmp_path / "out", ledger)
        assert [c.name for c in found.cure.candidates] == ["strength 1", *CHECKPOINTS, *STRENGTHS]
        assert [c.result for c in found.cure.candidates[:3]] == [
            parent.result, *(c.result for c in reversed(parent.checkpoints) if c.step < 8)]
        judged = {e.model.fingerprint for e in ledger.evaluations() if e.name.endswith("-confirm")}
        chosen = next(c for c in found.cure.candidates if c.name == found.cure.chosen)
        assert judged == {parent.base.fingerprint, parent.result, chosen.result}
        assert found.cure.tries == 1
        assert found.cure.skipped == {}
        assert not {c.result for c in parent.checkpoints} & {*found.tuning.states}, "the training made them"
        before = {e.id for e in ledger.evaluations()}
        monkeypatch.setattr(trial, "choose", lambda *_: 1)
        back = cured(place, tmp_path / "back", ledger)
        assert (back.cure.chosen, back.written, back.cure.outcome != "failed") == ("step 6", True, True)
        assert (tmp_path / "back/adapter_model.safetensors").read_bytes() == (
            place / "kept/kept/step-6/adapter_model.safetensors").read_bytes()
        assert sum(e.id not in before for e in ledger.evaluations()) <= 1, "all other answers are stored"
        after = evaluate(str(place / "base"), [TaskSpec(name="colours", sample=10)], ledger=ledger,
                         adapter=str(tmp_path / "back"), include_path=place / "tasks", **SETTINGS)
        assert after.tuning == back.tuning.id
        assert find_parent(str(tmp_path / "back"), ledger).result == after.model.fingerprint
        assert "Models that were tried for" in write_record(Results.load(ledger), title="cures")


def test_blends_are_tried_where_another_fine_tune_is_named(place: Path, ledger_file: Path, tmp_path: Path) -> None:
    with Ledger(ledger_file) as ledger:
        found = cured(place, tmp_path / "out", ledger, others=("other",))
        assert [c.name for c in found.cure.candidates][7:] == [
            "weights 0.5, 0.5", "weights 0.75, 0.25", "weights 0.25, 0.75"]
        assert len(found.cure.parents) == 2
        with pytest.raises(InputError, match="two of them are the same model"):
            cured(place, tmp_path / "out", ledger, others=("kept",))
        with pytest.raises(InputError, match="--blend names 3 fine-tunes; allowed are 2"):
            cured(place, tmp_path / "out", ledger, others=("a", "b", "c"))


# --- The budget ---


def test_a_model_fits_if_it_and_the_confirmation_do(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(trial.time, "monotonic", lambda: clock[0])
    limit = TimeBudget(2, None)
    limit.base = 25.0
    limit.scored(20.0)
    limit.scored(10.0)
    clock[0] = 35.0
    assert limit.refusal("a") == "", "20 s for it and 65 s for the confirmation are left of 120"
    clock[0] = 35.5
    assert "no time for it in the budget of 2 minutes" in limit.refusal("b")
    clock[0] = 1e9
    assert TimeBudget(None, None).refusal("c") == ""


def test_what_does_not_fit_is_named_and_left_out_again(place: Path, ledger_file: Path, tmp_path: Path) -> None:
    with Ledger(ledger_file) as ledger:
        found = cured(place, tmp_path / "out", ledger, minutes=1e-5)
        assert [c.name for c in found.cure.candidates] == ["strength 1"]
        assert sorted(found.cure.skipped) == sorted([*CHECKPOINTS, *STRENGTHS])
        (line,) = [text for text in confirmed_lines(found.cure) if text.startswith("not tried: ")]
        assert line.startswith("not tried: step 6, step 3, strength 0.4, ")
        again = cured(place, tmp_path / "out", ledger, minutes=1e-5)
        assert (again.tuning.id, again.cure.skipped) == (found.tuning.id, found.cure.skipped)
        assert cured(place, tmp_path / "2", ledger, minutes=1e5).cure.skipped == {}
        with pytest.raises(InputError, match="give a number of minutes above 0"):
            cured(place, tmp_path / "3", ledger, minutes=0)


def test_checkpoints_and_the_middle_strengths_come_first(place: Path, ledger_file: Path, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refusal(self: TimeBudget, name: str) -> str:
        asked.append(name)
        return "" if len(asked) < 5 else "no budget"

    monkeypatch.setattr(TimeBudget, "refusal", refusal)
    with Ledger(ledger_file) as ledger:
        found = cured(place, tmp_path / "out", ledger, minutes=7)
    assert asked == [*CHECKPOINTS, "strength 0.4", "strength 0.6", "strength 0.2", "strength 0.8"]
    assert [c.name for c in found.cure.candidates] == ["strength 1", *CHECKPOINTS, "strength 0.6", "strength 0.4"]
    assert found.cure.skipped == {"strength 0.2": "no budget", "strength 0.8": "no budget"}


# --- Kept checkpoints ---


def parent_of(place: Path, tmp_path: Path) -> Parent:
    with Ledger(tmp_path / "p.db") as ledger:
        return find_parent(str(place / "kept"), ledger)


def test_damaged_and_later_checkpoints_are_not_tried_and_of_many_only_some(place: Path, tmp_path: Path) -> None:
    parent = parent_of(place, tmp_path)
    first, second, last = parent.tuning.checkpoints
    broken = replace(second, files={**second.files, "adapter_model.safetensors": "0" * 64})
    tuning = replace(parent.tuning, checkpoints=(first, broken, last))
    proposals, skipped = _earlier_checkpoints(replace(parent, tuning=tuning))
    assert ([p.name for p in proposals], list(skipped)) == (["step 3"], ["step 6"])
    assert "was changed since the training" in skipped["step 6"]
    rolled_back = replace(parent, tuning=replace(parent.tuning, final_step=6), result=second.result)
    assert [p.name for p in _earlier_checkpoints(rolled_back)[0]] == ["step 3"], "step 8 forgot more"
    many = tuple(replace(first, step=n, result=f"r{n}") for n in range(1, 8))
    proposals, skipped = _earlier_checkpoints(replace(parent, tuning=replace(parent.tuning, checkpoints=many)))
    assert [p.name for p in proposals] == ["step 7", "step 5", "step 3", "step 1"]
    assert sorted(skipped) == ["step 2", "step 4", "step 6"]
    assert len(proposals) == MOST_CHECKPOINTS
    merged = replace(parent, files=replace(parent.files, adapter=False))
    assert _earlier_checkpoints(merged) == ([], {}), "a checkpoint of an adapter is no whole model"


def test_a_fine_tune_without_strength_is_still_rolled_back(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                           ) -> None:
    def no_strength(files: FineTuneFiles) -> None:
        raise InputError(f"{files.folder}: no strength here")

    tried: list[Trial] = []

    def run(asked: Trial, **_: object) -> Cured:
        tried.append(asked)
        return Cured(asked.parents[0].tuning, False)

    module = importlib.import_module("aftertune.cure.cure")  # the name aftertune.cure.cure is that of the function
    monkeypatch.setattr(module, "check_strength", no_strength)
    monkeypatch.setattr(module, "run_trial", run)
    with Ledger(tmp_path / "l.db") as ledger:
        cured(place, tmp_path / "out", ledger, others=("other",))
        assert [p.name for p in tried[0].proposals] == ["strength 1", *CHECKPOINTS]
        assert tried[0].skipped == dict.fromkeys(("less strength", "blends"), f"{place / 'kept'}: no strength here")
        assert len(tried[0].parents) == 1
        tried[0].proposals[0].write(tmp_path / "as tuned")
        name = "adapter_model.safetensors"
        assert (tmp_path / "as tuned" / name).read_bytes() == (place / "kept" / name).read_bytes()
        with pytest.raises(InputError, match="other: no strength here"):
            cure(str(place / "other"), asked_for(place, out=tmp_path / "out"), ledger=ledger)


# --- Items on which a checkpoint was chosen ---


def chosen_on(tuning: Tuning, place: Path, items: int) -> tuple[Tuning, set[str]]:
    """A fine-tune whose checkpoint was chosen on half of so many rows of the target, and the hashes of this half."""
    target = TaskSpec(name="said", sample=items, target=TargetSpec(file=place / "say.jsonl"))
    halves = task_halves(tasks.load([target], LoadOptions()), KeepBest("said", {}))
    point = WatchPoint(step=3, task="said", metric="exact_match", n=9, base=0.5, tuned=0.5, delta=0.0, low=-0.1,
                       high=0.1, verdict="undecided", half="choice", is_target=True)
    settings = {**tuning.settings, "watch": {"tasks": {}}, "watched": watched_items(halves)}
    rule = CheckpointChoice(rule="said", step=3, met=True, reason="")
    return (replace(tuning, watch=(point,), choice=rule, settings=settings),
            {item.hash for item in halves["choice"][0].items})


def test_items_that_chose_a_checkpoint_do_not_confirm(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                      ) -> None:
    parent = parent_of(place, tmp_path)
    tuning, chose = chosen_on(parent.tuning, place, 20)
    asked = asked_for(place, out=tmp_path / "out")
    with Ledger(tmp_path / "l.db") as ledger:
        def scoring(of: Tuning) -> _Scoring:
            return _Scoring(Trial("cure", [replace(parent, tuning=of)], [], asked), ledger, lambda *_: None)

        [say, _] = tasks.load(asked.tasks, LoadOptions(include_path=place / "tasks"))
        plain, found = scoring(parent.tuning), scoring(tuning)
        assert found.chose.all == chose, "the row has the same hash, by whatever name it is asked"
        confirming = {item.hash for item in plain._items_of(say, "report").items}
        assert confirming & chose
        assert {item.hash for item in found._items_of(say, "report").items} == confirming - chose
        assert found.left_out == {"say": len(confirming & chose)}
        assert found._items_of(say, "choice").settings == plain._items_of(say, "choice").settings
        ledger.save_tuning(tuning)
        softened = replace(tuning, id="t-soft", choice=None, cure=made("open", "step 6", parents={tuning.id: "r"}))
        assert scoring(softened).chose.all == chose, "what comes from it was chosen with it"
        monkeypatch.setattr(trial, "FEWEST", 15)
        with pytest.raises(InputError, match=r"say: 40 items \(\d+ chose the checkpoint, --keep-best\) are too few"):
            scoring(chosen_on(parent.tuning, place, 40)[0])._items_of(say, "report")


def test_the_items_of_a_group_that_chose_are_found(place: Path, tmp_path: Path) -> None:
    """A rule may name a group, whose tasks are watched under their own names and have one row."""
    folder = tmp_path / "tasks"
    for name, shift in (("g_a", 0), ("g_b", 100)):
        rows = [{"question": f"say w{n + shift}", "answer": 0, "choices": ["w1", "w2"]} for n in range(60 - shift // 5)]
        write_rows(tmp_path / f"{name}.jsonl", rows)
        write_task(folder, name, "multiple_choice", tmp_path / f"{name}.jsonl", MORE)
    (folder / "both.yaml").write_text("group: both\ntask: [g_a, g_b]\nmetadata: {version: 1}\n"
                                      "aggregate_metric_list: [{metric: acc, weight_by_size: true}]\n")
    options = LoadOptions(include_path=folder)
    halves = task_halves(tasks.load([TaskSpec(name="both", sample=50)], options), KeepBest("both", {}))
    tuning, _ = chosen_on(parent_of(place, tmp_path).tuning, place, 20)
    point = replace(tuning.watch[0], task="both")
    made = replace(tuning, watch=(point,), choice=replace(tuning.choice, rule="both"),
                   settings={**tuning.settings, "watched": watched_items(halves)})
    specs = [TaskSpec(name="g_a", sample=80)]
    found = items_that_chose([made], specs, options)
    assert found.all == {item.hash for task in halves["choice"] for item in task.items}
    assert {len(task.items) for task in halves["choice"]} == {25, 20}
    assert found.unknown == ()
    assert items_that_chose([made], specs, LoadOptions()).unknown == ("g_a", "g_b"), "the tasks that may confirm"


def test_the_id_of_a_trial_has_no_field_of_a_later_version(place: Path, tmp_path: Path) -> None:
    asked = asked_for(place, out=tmp_path / "out")
    trial_of = Trial("cure", [parent_of(place, tmp_path)], [], asked)
    before = [{k: v for k, v in task.model_dump(mode="json").items() if k != "until_decided"} for task in asked.tasks]
    assert {*before[0]} == {"name", "num_fewshot", "limit", "sample", "sample_seed", "gen_kwargs", "data", "letters",
                            "apply_chat_template", "target", "margin", "only"}
    assert trial_of.id == "t-" + digest([
        "cure", [trial_of.parents[0].result], [], dict(asked.keep), before,
        [fingerprint_file(place / "say.jsonl")], {k: str(v) for k, v in asked.settings.items() if k != "threads"}])[:10]


def test_items_that_are_not_known_any_more_are_noted(place: Path, tmp_path: Path) -> None:
    tuning, _ = chosen_on(parent_of(place, tmp_path).tuning, place, 20)
    specs = asked_for(place).tasks
    for settings in ({"watch": {"tasks": {}}}, {"watched": {half: {"said": {"items": 10, "digest": "0" * 64}}
                                                            for half in ("choice", "report")}}):
        found = items_that_chose([replace(tuning, settings=settings)], specs, LoadOptions())
        assert (found.all, found.unknown) == (frozenset(), ("said",))
    assert items_that_chose([replace(tuning, choice=None)], specs, LoadOptions()) == ChoosingItems()
    trial_of = Trial("cure", [parent_of(place, tmp_path)], [], asked_for(place, out=tmp_path / "out"))

    def notes(unknown: tuple[str, ...]) -> str:
        return " ".join(_record(trial_of, made("open", "step 6"), capture(), ChoosingItems(unknown=unknown)).notes)

    assert "(--keep-best) on items of colours that are not known any more" in notes(("colours",))
    assert "--keep-best" not in notes(("said",))


# --- Training again ---


def test_training_again_is_estimated_from_the_recorded_time(place: Path, tmp_path: Path) -> None:
    parent = parent_of(place, tmp_path)
    parent = replace(parent, tuning=replace(parent.tuning, cost={"seconds": 1000.0},
                                            settings={**parent.tuning.settings, "max_steps": None}))
    rate, replay, anchor = retraining(parent)
    assert (rate.option, rate.seconds) == ("--learning-rate 0.01", 1000.0)
    assert replay.option == f"--replay base:{ADVISED_ANSWERS}"
    assert replay.seconds is not None
    assert replay.seconds > 1000 * (28 + ADVISED_ANSWERS) / 28, "an answer is longer than an example of these data"
    assert anchor.option == f"--anchor {ADVISED_ANCHOR}"
    assert anchor.seconds is not None
    assert 1000 < anchor.seconds < 3000
    unknown = retraining(replace(parent, tuning=replace(parent.tuning, cost={})))
    assert [way.seconds for way in unknown] == [None, None, None]
    settings = {**parent.tuning.settings, "anchor": "kl:1", "replay": "0" * 64}
    assert len(retraining(replace(parent, tuning=replace(parent.tuning, settings=settings)))) == 1


def test_what_is_advised_can_be_done(place: Path, tmp_path: Path) -> None:
    parent = parent_of(place, tmp_path)

    def options(method: str = "lora", **settings: object) -> list[str]:
        tuning = replace(parent.tuning, method=method, settings={**parent.tuning.settings, **settings})
        return [way.option for way in retraining(replace(parent, tuning=tuning))]

    replay, anchor = f"--replay base:{ADVISED_ANSWERS}", f"--anchor {ADVISED_ANCHOR}"
    assert options()[1:] == [replay, anchor]
    assert options(learn="all")[1:] == [replay, f"{replay} {anchor}"], "kl has no prompts to count on without replay"
    assert options(learn="all", replay="0" * 64)[1:] == [anchor]
    assert options(backend="unsloth")[1:] == [replay], "unsloth can have no anchor"
    assert options("adapter", checkpoints=[3, 6]) == [], "aftertune checkpoints has no tune command to run again"
    assert options("lora", trainer="SFTTrainer") == []
    assert options("of a later version")[1:] == [replay, anchor]
    assert recommendation(made("failed", ""), ways=False).startswith("recommendation: train again with a lower")


# --- The words ---


def made(outcome: str, chosen: str, **values: object) -> Cure:
    candidates = tuple(Candidate(name=name, parts={}, result=name, evaluation="e", points=())
                       for name in ("tuned", "step 6"))
    return Cure(kind="cure", keep={"colours": 2.0}, target="", candidates=candidates, chosen=chosen,
                **{"parents": {"t": "tuned"}, "outcome": outcome, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(("found", "written", "text"), [
    (made("confirmed", "step 6"), "out", "use out (step 6) instead of the fine-tune"),
    (made("confirmed", "tuned"), "", "keep the fine-tune as it is; what you named is kept"),
    (made("open", "step 6"), "out", "out (step 6) is the best choice, but it is not proven"),
    (made("open", "step 6"), "", "step 6 is the best choice, but it is not proven"),
    (made("open", "tuned"), "", "keep the fine-tune as it is for now; ask again with more --items"),
    (made("failed", "step 6"), "", "recommendation: train again in one of the ways below"),
    (made("failed", "", skipped={"step 3": "no time for it in the budget of 2 minutes"}), "",
     "first give a larger --budget"),
])
def test_the_recommendation_follows_from_what_is_confirmed(found: Cure, written: str, text: str) -> None:
    assert text in recommendation(found, written=written)
    assert restore(Cure, plain(found)) == found


def test_an_open_task_says_what_is_not_proven() -> None:
    """It said "undecided: open"."""
    points = tuple(WatchPoint(step=0, task=task, metric="acc,none", n=9, base=0.5, tuned=0.6, delta=0.1, low=-0.1,
                              high=0.3, verdict="undecided") for task in ("colours", "skill"))
    found = replace(made("open", "step 6"), target="skill", confirmed=points,
                    outcomes={"colours": "open", "skill": "open"})
    kept, learned = confirmed_lines(found)[:2]
    assert "undecided: a loss beyond the margin is not ruled out" in kept
    assert "undecided: a gain is not proven" in learned


def test_the_command_prints_the_table_the_recommendation_and_the_costs(
        place: Path, ledger_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(ledger_file))
    monkeypatch.setenv("COLUMNS", "200")
    words = ("cure", str(place / "kept"), "--items", "48", "--target", f"{place / 'say.jsonl'}=40", "--include-path",
             str(place / "tasks"), "--dtype", "float32", "--threads", "1", "--out", str(tmp_path / "out"))
    assert call(monkeypatch, *words, "--keep", "colours=60") == 0
    shown = capsys.readouterr().out
    for text in ("strength 1 (as tuned)", "step 6", "strength 0.2", "other items of", "7 models were tried",
                 "recommendation: ", "--learning-rate 0.01: about", f"--replay base:{ADVISED_ANSWERS}: about",
                 f"--anchor {ADVISED_ANCHOR}: about"):
        assert text in shown
    assert call(monkeypatch, *words, "--keep", "colours=1", "--budget", "0.001m", "--json") == 1
    found, error = capsys.readouterr()
    stated = json.loads(found.splitlines()[-1])
    assert (stated["kind"], stated["outcome"], len(stated["train_again"])) == ("cure", "failed", 3)
    assert "nothing was written: none of 1 models may be chosen" in error
    for budget_text in ("20", "m", "0m", "-3h", "nan m"):
        assert call(monkeypatch, *words, "--keep", "colours=1", f"--budget={budget_text}") == 2
        assert "write minutes or hours above 0" in " ".join(capsys.readouterr().err.split())
