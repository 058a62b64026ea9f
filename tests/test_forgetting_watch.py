"""The forgetting watch: it sees what a comparison would, disturbs nothing, is right over all its looks, and resumes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from aftertune import forgetting_watch as watch_module
from aftertune.catalog import MetricKey
from aftertune.errors import InputError
from aftertune.forgetting_watch import ForgettingWatch, _verdict, question_point, task_halves
from aftertune.ledger import Ledger
from aftertune.stats import tango_tests
from aftertune.stats.evidence import Evidence
from aftertune.stats.verdict import ALPHA
from aftertune.study import DataSpec, TuneSpec, WatchSpec
from aftertune.study.keep_best import KeepBest
from aftertune.tasks import LoadedTask
from aftertune.tasks.pools import pools
from aftertune.tuning import tune
from aftertune.values import Answer, Item, Tuning, WatchPoint, digest
from early_cases import settings
from eval_cases import CHAT, byte_folder
from test_cli import call
from tuning_cases import easy_rows, timeless, write_rows

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return byte_folder(tmp_path / "base", template=CHAT, window=4096)


def spec(model: Path, out: str, **values: Any) -> TuneSpec:
    rows = write_rows(model.parent / "rows.jsonl", easy_rows())
    return TuneSpec(**{"model": str(model), "data": DataSpec(file=rows), "out": model.parent / out, "max_steps": 4,
                       "learning_rate": 0.01, "dtype": "float32", "threads": 1, "batch_size": 2,
                       "watch": WatchSpec(tasks={"arc_easy": 12}, every=2), **values})


def weights(tuning: Tuning) -> bytes:
    name = "model.safetensors" if tuning.method == "full" else "adapter_model.safetensors"
    return (Path(tuning.output) / name).read_bytes()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_watched_run_ends_with_the_weights_of_an_unwatched_one(model: Path, method: str) -> None:
    more: dict[str, Any] = {"method": method, "lora": {"dropout": 0.1}}
    plain = tune(spec(model, "plain", **more))
    lines: list[str] = []
    watched = tune(spec(model, "watched", **more), look=ForgettingWatch(spec(model, "watched", **more),
                                                                        report=lines.append))
    assert weights(watched) == weights(plain)
    assert watched.id == plain.id
    assert [p.step for p in watched.watch] == [2, 4]
    assert plain.watch == ()
    assert len(lines) == 2
    assert watched.steps[1]["watch_arc_easy"] == watched.watch[0].delta


def test_a_reader_sees_steps_and_looks_while_it_trains(model: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, int]] = []
    asked = spec(model, "out")
    with Ledger(tmp_path / "ledger.db") as ledger, Ledger(tmp_path / "ledger.db", read_only=True) as reader:
        def progress(_done: int, _total: int, text: str) -> None:
            if text.startswith("training"):
                [entry] = reader.running()
                seen.append((entry.done, entry.total, len(reader.find_tuning(entry.id).watch)))

        made = tune(asked, ledger=ledger, look=ForgettingWatch(asked, report=lambda _: None), progress=progress)
        assert seen == [(1, 4, 0), (2, 4, 1), (3, 4, 1), (4, 4, 2)]
        assert reader.find_tuning(made.id).steps == made.steps
        assert not {"total_steps", "time"} & made.steps[0].keys()
    from aftertune.tuning.previews import read_examples

    [first, *_] = read_examples(Path(made.output))
    assert sum(len(text) for text, learned in first.parts if learned) > 0


def test_the_last_look_is_what_an_evaluation_of_both_says(model: Path, tmp_path: Path) -> None:
    from aftertune.evaluation import evaluate
    from aftertune.study import TaskSpec

    asked = spec(model, "out", method="full")
    made = tune(asked, look=ForgettingWatch(asked, report=lambda _: None))
    with Ledger(tmp_path / "ledger.db") as ledger:
        task = TaskSpec(name="arc_easy", sample=12)
        base, after = (evaluate(str(m), [task], ledger=ledger, dtype="float32", threads=1)
                       for m in (model, made.output))
    point = made.watch[-1]
    for side, value in ((base, point.base), (after, point.tuned)):
        assert next(s.value for s in side.scores if s.metric == point.metric) == pytest.approx(value)
    assert point.delta == pytest.approx(point.tuned - point.base)
    assert point.low <= point.delta <= point.high


def test_a_broken_run_goes_on_with_its_looks(model: Path) -> None:
    asked = spec(model, "whole", checkpoint_minutes=0)
    whole = tune(asked, look=ForgettingWatch(asked, report=lambda _: None))

    class Broken(ForgettingWatch):
        def __call__(self, model: Any, step: int, looks: int) -> tuple[WatchPoint, ...]:
            if step == 4:
                raise InputError("killed")
            return super().__call__(model, step, looks)

    again = spec(model, "broken", checkpoint_minutes=0)
    with pytest.raises(InputError):
        tune(again, look=Broken(again, report=lambda _: None))
    resumed = tune(again, look=ForgettingWatch(again, report=lambda _: None))
    assert resumed.watch == whole.watch
    assert weights(resumed) == weights(whole)
    assert timeless(resumed.steps) == timeless(whole.steps)


def test_a_proven_loss_ends_the_run_where_that_is_asked_for(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aftertune import forgetting_watch

    monkeypatch.setattr(forgetting_watch, "_verdict", lambda *_, **__: "lower")
    asked = spec(model, "out", watch=WatchSpec(tasks={"arc_easy": 4}, every=2, stop=True))
    made = tune(asked, look=ForgettingWatch(asked, report=lambda _: None))
    assert [p.step for p in made.watch] == [2]
    assert len(made.steps) == 2
    assert any("stopped at step 2: arc_easy is proven to be forgotten" in note for note in made.notes)
    assert made.id != tune(spec(model, "other")).id, "stopping changes what comes out"


def evidence(gained: int, lost: int, n: int) -> Evidence:
    return Evidence(n=n, base=0.5, tuned=0.5, delta=(gained - lost) / n, low=0, high=0, kind="binary",
                    tests=tango_tests(gained, lost, n, 0.02))


def test_all_looks_share_the_level() -> None:
    """10 gained, 26 lost of 200: more than two points at 5 %, not at a twentieth of that."""
    found = evidence(10, 26, 200)
    assert 0.05 / 20 < found.tests.lower < 0.05
    assert _verdict(found, 0.05, floor=False) == "lower"
    assert _verdict(found, 0.05 / 20, floor=False) == "undecided"
    kept = evidence(1, 1, 2000)
    assert _verdict(kept, 0.05, floor=False) == "within"
    assert _verdict(kept, 0.05, floor=True) == "undecided", "at the floor there is nothing to keep"


def test_the_flag_of_the_verb(model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(model.parent / "ledger.db"))
    rows = str(write_rows(model.parent / "rows.jsonl", easy_rows()))
    words = ("tune", str(model), "--data", rows, "--max-steps", "2", "--out", str(model.parent / "cli"))
    assert call(monkeypatch, *words, "--watch", "arc_easy=6", "--watch-every", "1", "--json") == 0
    shown = capfd.readouterr()
    assert [p["step"] for p in json.loads(shown.out)["watch"]] == [1, 2]
    assert "watch, step 1: arc_easy" in shown.err
    assert call(monkeypatch, *words, "--watch", "arc_easy") == 2
    assert "TASK=N" in capfd.readouterr().err


# --- Groups ---

def in_group(tasks: list[LoadedTask]) -> list[LoadedTask]:
    """The tasks as all members of a group "both" with a score by items."""
    score = SimpleNamespace(metric=MetricKey(tasks[0].settings.primary).metric, filter_list=None, weight_by_size=True)
    group = SimpleNamespace(aggregate_metric_list=[score], get_all_tasks=lambda: tasks)
    return [replace(task, groups={"both": group}) for task in tasks]


def test_a_group_with_a_score_is_one_row_and_one_question(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the mean over its items, and the rule of --keep-best may name it."""
    load = watch_module.tasks.load
    monkeypatch.setattr(watch_module.tasks, "load", lambda *given: in_group(load(*given)))
    families: list[float] = []
    monkeypatch.setattr(watch_module, "_verdict", lambda _, alpha, **__: families.append(ALPHA / alpha) or "undecided")
    asked = spec(model, "out", watch=WatchSpec(tasks={"arc_easy": 6, "sciq": 10}))
    lines: list[str] = []
    watch = ForgettingWatch(asked, report=lines.append, task_source="pack")
    loaded = AutoModelForCausalLM.from_pretrained(model)
    watch(loaded, 0, looks=3)
    [point] = watch(loaded, 2, looks=3)
    right = [a.metrics[watch.halves["all"][0].settings.primary] for answers in watch.base["all"].values()
             for a in answers]
    assert (point.task, point.n, point.delta) == ("both", 16, 0)
    assert point.base == pytest.approx(sum(right) / 16)
    assert len(lines) == 1
    watch.early(loaded, 2)
    assert families == pytest.approx([3, 1])
    halves = task_halves(watch.halves["all"], KeepBest("both", {}))
    sizes = {half: [len(t.items) for t in tasks] for half, tasks in halves.items()}
    assert sizes == {"choice": [3, 5], "report": [3, 5]}


def test_a_loss_that_no_task_shows_alone_is_proven_for_the_group() -> None:
    items = {name: tuple(Item(task=name, index=i, hash=digest([name, i]), doc={}) for i in range(150))
             for name in ("a", "b", "c")}
    tasks = in_group([LoadedTask(settings=settings(name, 150), items=of_task, requests=(), task=None, positions=())
                      for name, of_task in items.items()])
    base = {name: [Answer(task=name, index=i, item=item.hash, metrics={"acc,none": float(i < 90)})
                   for i, item in enumerate(of_task)] for name, of_task in items.items()}
    tuned = {name: [replace(a, metrics={"acc,none": float(8 <= a.index < 90)}) for a in answers]
             for name, answers in base.items()}
    [(name, members)] = pools(tasks)
    group = question_point(name, members, base, tuned, step=1, margin=2.0, family=1)
    alone = [question_point(t.settings.task, [t], base, tuned, step=1, margin=2.0, family=3) for t in members]
    assert (group.task, group.n, group.verdict) == ("both", 450, "lower")
    assert "lower" not in {p.verdict for p in alone}
    assert group.delta == pytest.approx(-8 / 150)
    [single] = in_group(tasks[:1])
    assert [name for name, _ in pools([single])] == ["both"]
    point = question_point("both", [single], base, tuned, step=1, margin=2.0, family=1)
    assert point.task == "both", "as a rule has it"
