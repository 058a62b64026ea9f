"""One evaluation by several processes: what is stored is what one process stores, whoever joins, leaves or is killed.

The processes come from a fork server that has the heavy libraries loaded already (as in `test_kills`).
"""

from __future__ import annotations

import json
import multiprocessing
import random
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from aftertune.errors import InputError, ResumeRefused, TasksFailed
from aftertune.evaluation import evaluate
from aftertune.evaluation.notes import device_name
from aftertune.ledger import Ledger
from aftertune.ledger.lease import Process
from aftertune.ledger.schema import lease
from aftertune.study import TargetSpec, TaskSpec
from aftertune.values import plain
from deciding_cases import decide, models, own_task
from eval_cases import byte_folder
from test_failed_tasks import bad_metric, long_answer, task
from test_kills import HEAVY, content

SETTINGS: dict[str, Any] = {"device": "cpu", "dtype": "float32", "task_source": "pack", "memory": "1MB",
                            "gen_kwargs": {"max_gen_toks": 8}}


def answer(model: str, ledger: str, items: int) -> Any:
    """What each process does: many small batches, and waves of generated texts."""
    tasks = [TaskSpec(name="arc_easy", sample=items), TaskSpec(name="gsm8k_cot", sample=items // 2)]
    with Ledger(ledger) as opened:
        return evaluate(model, tasks, ledger=opened, join=True, threads=1, **SETTINGS)


def answer_until_decided(model: str, ledger: str, rows: int) -> None:
    """The same with an evaluation that stops early, both models in one go."""
    place = Path(model)
    tasks = [TaskSpec(name="own", target=TargetSpec(file=place / "own.jsonl", max_tokens=3)),
             TaskSpec(name="arc_easy", sample=rows)]
    with Ledger(ledger) as opened:
        decide(place / "near", place / "base", tasks, opened, join=True)


def answer_with_failure(root: str, ledger: str) -> None:
    """One of the tasks cannot be tokenized or scored."""
    with Ledger(ledger) as opened, pytest.raises(TasksFailed):
        evaluate(str(Path(root) / "byte"), ["good", "bad", "second"], ledger=opened, include_path=Path(root) / "tasks",
                 device="cpu", dtype="float32", threads=1, memory="1MB", join=True)


def start(work: Any, *arguments: Any) -> Any:
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(HEAVY)
    process = server.Process(target=work, args=arguments)
    process.start()
    return process


def batches(path: Path) -> int:
    with closing(sqlite3.connect(path, timeout=30)) as raw:
        try:
            [[count]] = raw.execute("SELECT count(DISTINCT batch) FROM response")
        except sqlite3.OperationalError:  # it is being made
            return 0
        return int(count)


def wait_for(path: Path, number: int, processes: list[Any]) -> None:
    """Until so many batches are stored, or the processes have ended."""
    while not (path.exists() and batches(path) >= number) and any(p.is_alive() for p in processes):
        time.sleep(0.01)


def seals(path: Path) -> list[Any]:
    """The digests of what the processes computed: answers, responses and scores, as they are in the file."""
    with closing(sqlite3.connect(path)) as raw:
        return raw.execute('SELECT * FROM checksum WHERE "table" IN (\'answer\', \'response\', \'score\') '
                           "ORDER BY 1, 2, 3").fetchall()


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, and with the ledger of one process."""
    folder = tmp_path_factory.mktemp("one")
    byte_folder(folder / "model")
    answer(str(folder / "model"), str(folder / "whole.db"), 24)
    return folder


class Other:
    """Another process, on another machine, that joins this one after its first batch. stores: whether it stores the
    batches that it takes, as the ledger ``whole`` has them; else it is silent from then on."""

    def __init__(self, whole: Path, stores: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        self.whole, self.stores, self.taken = whole, stores, 0
        self.here = self.now = Process.own()
        self.costs: dict[int, int] = {}
        monkeypatch.setattr(Process, "own", lambda: self.now)
        take = Ledger.take_range

        def take_range(ledger: Ledger, evaluation_id: str, costs: dict[int, int]) -> Any:
            self.costs = costs
            return take(ledger, evaluation_id, costs)

        monkeypatch.setattr(Ledger, "take_range", take_range)

    def progress(self, ledger: Ledger) -> Any:
        def update(done: int, total: int, text: str) -> None:
            if text == "answering" and done and not self.taken and self.now is self.here:
                self.now = Process(1, "elsewhere", "boot", "1")
                self.join(ledger)
                self.now = self.here

        return update

    def join(self, ledger: Ledger) -> None:
        [evaluation] = ledger.evaluations()
        ledger.acquire(evaluation.id, shared=True, join=True)
        taken = ledger.take_range(evaluation.id, self.costs).batches
        self.taken = len(taken)
        if not self.stores:
            with ledger.database.write() as connection:
                connection.execute(lease.update().where(lease.c.host == "elsewhere").values(heartbeat=0.0))
            return
        with Ledger(self.whole) as whole:
            for number in taken:
                ledger.save_batch(evaluation.id, number, whole.batch_responses(evaluation.id, [number]))


@pytest.mark.parametrize("stores", [True, False], ids=["stores its batches", "dies"])
def test_another_process_joins_and(stores: bool, one: Path, place: Path | str, monkeypatch: pytest.MonkeyPatch
                                   ) -> None:
    """What it stores is not computed here, and what it does not is."""
    own: list[int] = []
    other, save = Other(one / "whole.db", stores, monkeypatch), Ledger.save_batch

    def save_batch(ledger: Ledger, evaluation_id: str, batch: int, responses: Any) -> None:
        own.extend([batch] if other.now is other.here else [])
        save(ledger, evaluation_id, batch, responses)

    monkeypatch.setattr(Ledger, "save_batch", save_batch)
    tasks = [TaskSpec(name="arc_easy", sample=24), TaskSpec(name="gsm8k_cot", sample=12)]
    with Ledger(place) as ledger:
        evaluate(str(one / "model"), tasks, ledger=ledger, join=True, threads=1, progress=other.progress(ledger),
                 **SETTINGS)
    assert content(place)[1] == content(one / "whole.db")[1]
    assert isinstance(place, str) or seals(place) == seals(one / "whole.db")
    assert other.taken
    assert len(own) == batches(one / "whole.db") - other.taken * stores
    assert len(set(own)) == len(own)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_store_what_one_does(count: int, one: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared.db"
    processes = [start(answer, str(one / "model"), str(shared), 24) for _ in range(count)]
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0] * count
    assert content(shared)[1] == content(one / "whole.db")[1]
    assert seals(shared) == seals(one / "whole.db")
    with closing(sqlite3.connect(shared)) as raw:
        assert raw.execute("SELECT count(*) FROM lease").fetchone() == (0,)


@pytest.mark.slow
def test_processes_come_and_go_and_are_killed(one: Path, tmp_path: Path) -> None:
    """Each kill leaves batches in the middle of a range; the last process takes what is left of all."""
    shared, chance, total = tmp_path / "shared.db", random.Random(7), batches(one / "whole.db")
    arguments = (answer, str(one / "model"), str(shared), 24)
    processes, killed = [start(*arguments), start(*arguments)], 0
    for n in range(4):
        wait_for(shared, 1 + (n + 1) * total // 6, processes)
        time.sleep(chance.uniform(0, 0.02))
        victim = processes.pop(chance.randrange(len(processes)))
        victim.kill()
        victim.join()
        killed += victim.exitcode == -9
        if n < 3:
            processes.append(start(*arguments))
    for process in processes:
        process.join()
    answer(str(one / "model"), str(shared), 24)
    assert killed >= 2
    assert content(shared)[1] == content(one / "whole.db")[1]
    assert seals(shared) == seals(one / "whole.db")


@pytest.mark.slow
def test_one_that_stops_early_by_several_processes(tmp_path: Path) -> None:
    """Both evaluations and the comparison are those of one process; one of three is killed in the middle."""
    own_task(tmp_path, models(tmp_path)["base"], 120)
    texts = []
    for name, count in (("one.db", 1), ("three.db", 3)):
        path = tmp_path / name
        processes = [start(answer_until_decided, str(tmp_path), str(path), 40) for _ in range(count)]
        if count > 1:
            wait_for(path, 12, processes)
            processes[-1].kill()
        for process in processes:
            process.join()
        assert [p.exitcode for p in processes[:2]] == [0] * min(count, 2)
        with Ledger(path) as ledger:
            [comparison] = ledger.comparisons()
            done = {e.id: e for e in ledger.evaluations()}
            assert set(done) == {comparison.base, comparison.tuned}
            assert {e.status for e in done.values()} == {"done"}
            texts.append(json.dumps([plain(comparison.rows[0]), comparison.id, [
                [plain(e.early), {k: v for k, v in e.schedule.items() if k != "seconds"},
                 [s.value.hex() for s in e.scores],
                 [[p, r.logprob and r.logprob.hex(), r.text] for p, r in ledger.responses(e.id).items()]]
                for e in (done[comparison.base], done[comparison.tuned])]]))
    assert texts[0] == texts[1]


@pytest.mark.slow
@pytest.mark.parametrize("fault", [long_answer, bad_metric])
def test_a_task_fails_in_all_processes_and_the_others_are_stored_once(fault: Any, tmp_path: Path) -> None:
    byte_folder(tmp_path / "byte", window=64)
    (tmp_path / "tasks").mkdir()
    for name, rows in (("good", 30), ("second", 20)):
        task(tmp_path, name, [{"q": f"{name} {i}", "choices": ["yes", "no"], "gold": i % 2} for i in range(rows)])
    fault(tmp_path)
    found = []
    for name, count in (("one.db", 1), ("three.db", 3)):
        processes = [start(answer_with_failure, str(tmp_path), str(tmp_path / name)) for _ in range(count)]
        for process in processes:
            process.join()
        assert [p.exitcode for p in processes] == [0] * count
        with Ledger(tmp_path / name) as ledger:
            found.append([[e.id, e.status, sorted(e.failed), [s.value.hex() for s in e.scores],
                           {k: v for k, v in e.schedule.items() if k not in ("seconds", "progress")},
                           [plain(a) for a in ledger.answers(e.id)], len(ledger.responses(e.id))]
                          for e in ledger.evaluations()])
            assert ledger.held() == set()
    assert found[0] == found[1]
    assert [e[1] for e in found[0]][-1] == "done"


def test_a_process_under_other_conditions_is_refused(one: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int, text: str) -> None:
        if text == "answering" and done:
            raise KeyboardInterrupt

    arguments = (str(one / "model"), [TaskSpec(name="gsm8k_cot", sample=8), TaskSpec(name="arc_easy", sample=8)])
    with Ledger(tmp_path / "shared.db") as ledger:
        with pytest.raises(KeyboardInterrupt):
            evaluate(*arguments, ledger=ledger, join=True, threads=1, progress=stop, **SETTINGS)
        with pytest.raises(ResumeRefused, match=r"threads: 1 then, 2 now"):
            evaluate(*arguments, ledger=ledger, join=True, threads=2, **SETTINGS)
        assert ledger.held() == set()
        assert evaluate(*arguments, ledger=ledger, join=True, **SETTINGS).status == "done"


def test_an_engine_of_one_process_cannot_be_joined(one: Path, tmp_path: Path) -> None:
    message = "the engine lm-eval:hf runs in one process; --join and --workers are for"
    with Ledger(tmp_path / "ledger.db") as ledger, pytest.raises(InputError, match=message):
        evaluate(str(one / "model"), ["arc_easy"], ledger=ledger, join=True, engine="lm-eval:hf", device="cpu",
                 task_source="pack")
    with Ledger(tmp_path / "ledger.db") as ledger:
        assert ledger.evaluations() == []


def test_the_device_is_stored_with_the_name_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: {"cuda": "Tesla T4", "cuda:1": "A10"}[device])
    assert [device_name(d) for d in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda (Tesla T4)", "cuda:1 (A10)"]
