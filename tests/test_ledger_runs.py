"""The life of an evaluation, a tuning and a study in the ledger."""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from sqlalchemy import func, select

import ledger_cases as cases
from aftertune.errors import AmbiguousName, InputError, ResourceError, StorageError
from aftertune.ledger import Ledger, StoredCell, sqlite
from aftertune.ledger.digests import seal
from aftertune.ledger.lease import LEASE_TIMEOUT, Process, process_start
from aftertune.ledger.schema import item, lease, metadata, model, study
from aftertune.values import Answer, Comparison, Item, Response


@pytest.fixture
def ledger(place: Path | str) -> Iterator[Ledger]:
    with Ledger(place) as ledger:
        yield ledger


def finished(ledger: Ledger, id: str = "e1", name: str = "base") -> None:
    asked, given = cases.items(), cases.responses()
    ledger.open_evaluation(cases.evaluation(id, name), asked)
    ledger.save_batch(id, 0, given)
    ledger.finish_evaluation(cases.evaluation(id, name, scores=cases.scores()), *cases.answered(asked, given))


def compared(id: str, base: str) -> Comparison:
    return Comparison(id=id, base=base, tuned="e2", base_name="b", tuned_name="t", lineage=True, rows=())


def rows(ledger: Ledger, name: str) -> int:
    with ledger.database.read() as connection:
        return connection.execute(select(func.count()).select_from(metadata.tables[name])).scalar_one()


# An evaluation

def test_an_evaluation_from_opening_to_answers(ledger: Ledger) -> None:
    asked, given = cases.items(), cases.responses()
    running = ledger.open_evaluation(cases.evaluation(), asked)
    assert running == cases.evaluation()
    assert ledger.schedule("e1") is None
    ledger.save_schedule("e1", {"budget": 4096, "batches": [[0, 1], [2]]})
    ledger.save_batch("e1", 0, {p: r for p, r in given.items() if p >= 5})
    assert ledger.done_positions("e1") == set(range(5, 12))
    ledger.save_batch("e1", 1, {p: r for p, r in given.items() if p < 5})
    answers, positions = cases.answered(asked, given)
    end = cases.evaluation(scores=cases.scores(), engine_note="packed")
    done = ledger.finish_evaluation(end, answers, positions)
    assert (done.status, done.scores, done.engine_note) == ("done", cases.scores(), "packed")
    assert done.schedule == {"budget": 4096, "batches": [[0, 1], [2]]}
    assert ledger.answers("e1") == answers
    assert ledger.answers("e1", "arc_easy") == answers
    assert ledger.items("e1", "arc_easy") == asked
    assert ledger.responses("e1") == given


def test_opening_again_gives_what_is_stored(ledger: Ledger) -> None:
    finished(ledger)
    again = ledger.open_evaluation(cases.evaluation(name="another name"), cases.items())
    assert (again.status, again.name) == ("done", "base")
    with pytest.raises(StorageError, match="stored with other items"):
        ledger.open_evaluation(cases.evaluation(), cases.items(n=5))
    assert rows(ledger, "answer") == 6


def test_the_same_batch_again_is_nothing_and_another_content_is_refused(ledger: Ledger) -> None:
    ledger.open_evaluation(cases.evaluation(), cases.items())
    scored, told = Response(logprob=-1.5, greedy=True), Response(text="x", tokens=3, finish="eos")
    ledger.save_batch("e1", 3, {4: scored, 5: told})
    ledger.save_batch("e1", 3, {5: told, 4: scored})
    for batch, content, finding in [
        (3, {4: scored}, "position 5 is stored"),
        (3, {4: dataclasses.replace(scored, logprob=-1.25), 5: told}, "position 4 differs"),
        (4, {4: scored}, "position 4 belongs to batch 3"),
        (3, {4: scored, 5: told, 6: scored}, "position 6 is new"),
    ]:
        with pytest.raises(StorageError, match=finding):
            ledger.save_batch("e1", batch, content)
    assert ledger.done_positions("e1") == {4, 5}


def test_no_answers_before_the_end_but_items_from_the_start(ledger: Ledger) -> None:
    ledger.open_evaluation(cases.evaluation(), cases.items())
    assert ledger.answers("e1") == []
    assert ledger.items("e1") == cases.items()


def test_a_finish_that_does_not_fit_changes_nothing(ledger: Ledger) -> None:
    asked, given = cases.items(), cases.responses(11)
    ledger.open_evaluation(cases.evaluation(), asked)
    ledger.save_batch("e1", 0, given)
    answers, positions = cases.answered(asked, cases.responses())
    end = cases.evaluation(scores=cases.scores())
    other = dataclasses.replace(answers[0], item="f" * 64)
    for faulty, at, finding in [
        (answers, positions, r"1 requests have no stored response \(first: 11\)"),
        (answers[1:], positions[1:], "5 answers for 6 items"),
        (answers[1:], positions, "5 answers, but 6 lists"),
        ([other, *answers[1:]], positions, "does not belong to an item"),
        ([*answers[1:], answers[1]], positions, "6 answers for 6 items"),
    ]:
        with pytest.raises(StorageError, match=finding):
            ledger.finish_evaluation(end, faulty, at)
    assert ledger.find_evaluation("e1").status == "running"
    assert rows(ledger, "score") == 0


def test_finishing_again_is_nothing_with_the_same_scores_only(ledger: Ledger) -> None:
    finished(ledger)
    answers, positions = cases.answered(cases.items(), cases.responses())
    again = ledger.finish_evaluation(cases.evaluation(scores=cases.scores()), answers, positions)
    assert again.status == "done"
    with pytest.raises(StorageError, match="is already done with other scores"):
        ledger.finish_evaluation(cases.evaluation(scores=cases.scores()[:1]), answers, positions)


@pytest.mark.slow
def test_a_full_hellaswag_is_stored_in_seconds(ledger: Ledger) -> None:
    asked = [Item(task="hellaswag", index=i, hash=f"{i:064x}", doc={"query": f"{i} " + "word " * 60,
             "choices": ["ending " * 10] * 4}, cluster=str(i // 2)) for i in range(10_042)]
    given = {p: Response(logprob=-p / 7, greedy=False) for p in range(4 * len(asked))}
    answers = [Answer(task="hellaswag", index=i.index, item=i.hash, cluster=i.cluster,
                      metrics={"acc,none": 1.0, "acc_norm,none": 0.0},
                      responses=tuple(given[4 * k + c] for c in range(4))) for k, i in enumerate(asked)]
    ledger.open_evaluation(cases.evaluation(), asked)
    ledger.save_batch("e1", 0, given)
    positions = [range(4 * k, 4 * k + 4) for k in range(len(asked))]
    began = time.process_time()
    ledger.finish_evaluation(cases.evaluation(), answers, positions)
    assert time.process_time() - began < 3
    assert ledger.answers("e1", "hellaswag") == answers


def test_a_document_is_stored_once_for_all_evaluations(ledger: Ledger) -> None:
    finished(ledger, "e1")
    finished(ledger, "e2", "tuned")
    assert (rows(ledger, "item"), rows(ledger, "answer"), rows(ledger, "model")) == (6, 12, 1)


def test_deleting_one_evaluation_leaves_the_other_whole(ledger: Ledger) -> None:
    finished(ledger, "e1")
    finished(ledger, "e2", "tuned")
    ledger.save_comparison(compared("c1", "e1"))
    ledger.delete_evaluation("e1")
    assert ledger.comparisons() == []
    assert len(ledger.answers("e2")) == rows(ledger, "item") == 6
    ledger.delete_evaluation("e2")
    left = {name: rows(ledger, name) for name in metadata.tables}
    assert not any(left.values()), left
    assert next(f for f in ledger.check() if f.name == "integrity").value == "ok"


# Finding

def test_evaluations_are_found_by_id_name_and_beginning(ledger: Ledger) -> None:
    for id, name in [("abcd1111", "base"), ("abcd2222", "base"), ("ffff3333", "careful")]:
        ledger.open_evaluation(cases.evaluation(id, name), [])
    assert ledger.find_evaluation("abcd1111").id == "abcd1111"
    with pytest.raises(AmbiguousName, match=r"^2 evaluations in the ledger are called 'base': "
                                            r"abcd2222 \(package:llm/model\.gguf, 2026-01-01, running\), abcd1111 \(.*"
                                            r"; give the id$"):
        ledger.find_evaluation("base")
    assert [ledger.word_for(e) for e in ledger.evaluations()] == ["abcd1111", "abcd2222", "careful"]
    assert ledger.find_evaluation("ffff").name == "careful"
    with pytest.raises(InputError, match="several ids in the ledger's table"):
        ledger.find_evaluation("abcd")
    with pytest.raises(InputError, match=r"no evaluation 'carful'.*did you mean 'careful'"):
        ledger.find_evaluation("carful")
    for odd in ("a_c%", "abc\udcff", "\x00\x00\x00\x00"):
        with pytest.raises(InputError, match="no evaluation"):
            ledger.find_evaluation(odd)


def test_tunings_of_one_name_are_told_apart_by_id(ledger: Ledger) -> None:
    for number in range(8):
        ledger.save_tuning(cases.tuning(f"t-{number}", "careful"))
    with pytest.raises(AmbiguousName, match=r"^8 tunings .* t-7 \(.*t-2 .* and 2 more \(`aftertune runs` lists them\)"):
        ledger.find_tuning("careful")
    assert ledger.find_tuning("t-3").name == "careful"
    ledger.save_tuning(ledger.find_tuning("t-3"))  # what is stored under an id is not looked for by name


def test_an_empty_ledger_says_so(ledger: Ledger) -> None:
    with pytest.raises(InputError, match="no tuning 'x' in the ledger, which has none yet"):
        ledger.find_tuning("x")
    assert ledger.evaluations() == []


def test_an_unknown_task_names_the_known_ones(ledger: Ledger) -> None:
    finished(ledger)
    with pytest.raises(InputError, match=r"no task 'arc_esy' \(did you mean 'arc_easy'\?\)"):
        ledger.answers("e1", "arc_esy")


def test_the_order_is_that_of_insertion_whatever_the_clock_says(ledger: Ledger) -> None:
    for id, started in [("z", "2030-01-01"), ("a", "1999-01-01"), ("m", "2010-01-01")]:
        value = cases.evaluation(id, id)
        assert value.provenance is not None
        stamp = dataclasses.replace(value.provenance, started=started)
        ledger.open_evaluation(dataclasses.replace(value, provenance=stamp), [])
    ledger.delete_evaluation("m")
    ledger.open_evaluation(cases.evaluation("b", "b"), [])
    assert [e.id for e in ledger.evaluations()] == ["z", "a", "b"]


# Tunings, studies, reported scores

def test_a_tuning_and_its_log(ledger: Ledger) -> None:
    ledger.save_tuning(cases.tuning())
    for number, loss in [(10, 2.0), (20, 1.5), (10, 1.9)]:
        ledger.save_step("careful", number, {"loss": loss})
    log = ({"step": 10, "loss": 1.9}, {"step": 20, "loss": 1.5})
    assert ledger.find_tuning("t1").steps == log
    done = ledger.save_tuning(cases.tuning(status="done", result="f" * 64))
    assert (done.steps, done.status, done.result) == (log, "done", "f" * 64)
    ledger.save_tuning(cases.tuning(steps=({"step": 1, "loss": 3.0},)))
    assert [t.steps for t in ledger.tunings()] == [({"step": 1, "loss": 3.0},)]


def test_a_study_and_its_cells(ledger: Ledger) -> None:
    ledger.save_study("orders", "h1", "study: orders\n")
    ledger.save_cell("orders", "evaluate base", "running")
    ledger.save_cell("orders", "tune careful", "failed", error="out of memory")
    ledger.save_cell("orders", "evaluate base", "done", ref="e1")
    ledger.save_study("orders", "h2", "study: orders\nmargin: 5\n")
    assert ledger.cells("orders") == [
        StoredCell(study="orders", name="evaluate base", status="done", ref="e1"),
        StoredCell(study="orders", name="tune careful", status="failed", error="out of memory")]
    assert [(s.name, s.hash) for s in ledger.studies()] == [("orders", "h2")]
    with pytest.raises(InputError, match="did you mean 'orders'"):
        ledger.cells("order")
    with pytest.raises(StorageError, match="planned, running, done, failed"):
        ledger.save_cell("orders", "x", "finished")


def test_comparisons_by_their_evaluations(ledger: Ledger) -> None:
    for id, base in [("c1", "e1"), ("c2", "e9")]:
        ledger.save_comparison(compared(id, base))
    assert [c.id for c in ledger.comparisons()] == ["c1", "c2"]
    assert [c.id for c in ledger.comparisons(base="e9")] == ["c2"]
    assert [c.id for c in ledger.comparisons(base="e9", tuned="e1")] == []


def test_reported_scores_replace_those_of_the_same_document(ledger: Ledger) -> None:
    row = {"model": "Llama 3.2 1B", "task": "hellaswag", "metric": "acc", "value": 0.4523, "stderr": 0.005,
           "n": None}
    ledger.save_reported("record.md", [row, {**row, "metric": "acc_norm", "date": "2025-03-08"}])
    ledger.save_reported("record.md", [{**row, "date": "2025-03-08"}])
    assert ledger.reported("record.md") == [{"source": "record.md", **row, "date": "2025-03-08"}]
    with pytest.raises(StorageError, match="reported score 0 has no metric"):
        ledger.save_reported("record.md", [{"model": "a", "task": "b"}])
    assert len(ledger.reported()) == 1


# The lease

def test_a_live_process_keeps_its_evaluation(ledger: Ledger) -> None:
    ledger.open_evaluation(cases.evaluation(), [])
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        own = Process.own()
        holder = dataclasses.replace(own, pid=child.pid, started=process_start(child.pid) or "")
        hold(ledger, holder)
        for refused in (lambda: ledger.acquire("e1"), lambda: ledger.save_batch("e1", 0, cases.responses()),
                        lambda: ledger.finish_evaluation(cases.evaluation(), [], []),
                        lambda: ledger.delete_evaluation("e1")):
            with pytest.raises(ResourceError, match=f"process {child.pid} on {own.host}"):
                refused()
        ledger.release("e1")  # not ours: stays
        with pytest.raises(ResourceError):
            ledger.acquire("e1")
    finally:
        child.kill()
        child.wait()
    ledger.acquire("e1")
    ledger.save_batch("e1", 0, cases.responses())
    ledger.release("e1")
    assert rows(ledger, "lease") == 0


def hold(ledger: Ledger, holder: Process, silent: float = 0.0) -> None:
    """Put a lease of ``holder`` into the ledger, last renewed ``silent`` seconds ago."""
    with ledger.database.write() as connection:
        connection.execute(lease.delete())
        connection.execute(lease.insert().values(evaluation=1, heartbeat=time.time() - silent,
                                                 **dataclasses.asdict(holder)))


@pytest.mark.parametrize(("changes", "silent", "free"), [
    ({}, 0.0, True),  # our own
    ({"started": "1"}, 0.0, True),  # our pid, used again by us after the holder died
    ({"pid": 2**22 + 1, "started": "1"}, 0.0, True),  # no such process
    ({"boot": "another-boot/1"}, None, True),  # the machine was started anew since then
    ({"boot": "another-boot/1"}, 0.0, False),  # another machine of the same name, which was heard since our boot
    ({"host": "elsewhere", "boot": "b/1"}, LEASE_TIMEOUT - 5, False),
    ({"host": "elsewhere", "boot": "b/1"}, LEASE_TIMEOUT + 5, True),
    ({"host": "elsewhere", "boot": "b/1"}, -3600.0, False),  # the clock was moved back
])
def test_who_counts_as_alive(ledger: Ledger, changes: dict[str, object], silent: float | None, free: bool) -> None:
    ledger.open_evaluation(cases.evaluation(), [])
    if silent is None:
        silent = time.time() - psutil.boot_time() + 60
    hold(ledger, dataclasses.replace(Process.own(), **changes), silent)  # type: ignore[arg-type]
    if free:
        ledger.acquire("e1")
        ledger.acquire("e1")  # again by its holder
    else:
        with pytest.raises(ResourceError, match=f"on {changes.get('host', platform.node())} .*--take-over"):
            ledger.acquire("e1")


def test_a_lease_of_another_machine_whose_clock_was_ahead_can_be_taken(ledger: Ledger) -> None:
    """Nothing can say whether its process runs; one of this machine is known to run and keeps its lease."""
    ledger.open_evaluation(cases.evaluation(), [])
    hold(ledger, dataclasses.replace(Process.own(), host="elsewhere", boot="b/1"), silent=-7200.0)
    with pytest.raises(ResourceError, match=r"heartbeat 7\d{3} s in the future: the clock there was ahead.* add "
                                            r"--take-over"):
        ledger.acquire("e1")
    with Ledger(ledger.database.place, take_over=True) as other:
        other.acquire("e1")
        other.save_batch("e1", 0, {0: Response(logprob=-1.0)})
        hold(ledger, dataclasses.replace(Process.own(), pid=os.getppid(),
                                         started=process_start(os.getppid()) or ""), silent=-7200.0)
        with pytest.raises(ResourceError, match="in the future") as caught:
            other.acquire("e1")
    assert "--take-over" not in str(caught.value)


@pytest.mark.parametrize("silent", [0.0, LEASE_TIMEOUT + 5])
def test_who_lost_the_lease_stops_at_the_next_batch(ledger: Ledger, silent: float) -> None:
    """Also where this clock is so far ahead that the new holder looks dead."""
    ledger.open_evaluation(cases.evaluation(), [])
    ledger.acquire("e1")
    ledger.save_batch("e1", 0, {0: Response(logprob=-1.0)})
    hold(ledger, dataclasses.replace(Process.own(), host="elsewhere", boot="b/1"), silent)
    for write in (lambda: ledger.save_batch("e1", 1, {1: Response(logprob=-1.0)}),
                  lambda: ledger.finish_evaluation(cases.evaluation(), [], [])):
        with pytest.raises(ResourceError, match="on elsewhere"):
            write()
    assert ledger.done_positions("e1") == {0}


def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    try:
        deadline = time.monotonic() + 300
        while process_start(child.pid) is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process_start(child.pid) is None
    finally:
        child.wait()


def test_beating_renews_the_lease(ledger: Ledger) -> None:
    ledger.open_evaluation(cases.evaluation(), [])
    for renew in (lambda: ledger.beat("e1"), lambda: ledger.save_batch("e1", 0, {0: Response(logprob=-1.0)})):
        hold(ledger, Process.own(), silent=500)
        renew()
        with ledger.database.read() as connection:
            assert time.time() - connection.execute(select(lease.c.heartbeat)).scalar_one() < 60


# Threads and forks

def test_opening_the_ledger_again_keeps_the_locks_of_a_transaction(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """POSIX locks belong to the process: a second open and close of the file must not drop the first's.

    With the rollback journal, whose locks are on the file itself.
    """
    monkeypatch.setattr(sqlite, "on_network", lambda _path: True)
    path = tmp_path / "ledger.db"
    Ledger(path).close()
    write = ("import sys; from aftertune.ledger import sqlite, Ledger; sqlite.LOCK_TIMEOUT = 0.2; "
             "sqlite.on_network = lambda path: True; Ledger(sys.argv[1]).save_study('child', 'h', '')")
    with Ledger(path) as ledger:
        with ledger.database.write() as connection:
            connection.exec_driver_sql("INSERT INTO study (name, hash, yaml) VALUES ('mine', 'h', '')")
            seal(connection, study, [1])
            Ledger(path).close()
            child = subprocess.run([sys.executable, "-c", write, str(path)], capture_output=True, text=True,
                                   timeout=300, check=False)
        assert "locked" in child.stderr
        assert [s.name for s in ledger.studies()] == ["mine"]


def test_threads_share_a_ledger(ledger: Ledger) -> None:
    ledger.open_evaluation(cases.evaluation(), [])
    errors: list[BaseException] = []

    def work(worker: int) -> None:
        try:
            for k in range(10):
                ledger.save_batch("e1", worker * 10 + k, {worker * 10 + k: Response(logprob=-float(k))})
                ledger.done_positions("e1")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(w,)) for w in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert errors == []
    assert ledger.done_positions("e1") == set(range(40))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_opens_its_own_connection(ledger: Ledger) -> None:
    ledger.open_evaluation(cases.evaluation(), [])
    with ledger.database.read() as connection:
        parents = connection.connection.dbapi_connection
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            ledger.save_batch("e1", 0, {0: Response(logprob=-1.0)})
            with ledger.database.read() as connection:
                status = int(connection.connection.dbapi_connection is parents)
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    ledger.save_batch("e1", 1, {1: Response(logprob=-2.0)})
    assert ledger.done_positions("e1") == {0, 1}


def test_models_and_items_are_kept_as_rows_that_can_be_queried(ledger: Ledger) -> None:
    finished(ledger)
    with ledger.database.read() as connection:
        assert connection.execute(select(model.c.source)).scalar_one() == cases.MODEL.source
        assert connection.execute(select(model.c.fingerprint)).scalar_one() == cases.MODEL.fingerprint
        assert set(connection.execute(select(item.c.hash)).scalars()) == {i.hash for i in cases.items()}
