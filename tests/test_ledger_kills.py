"""Processes that are killed, and processes that write at once."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import ledger_cases as cases
from aftertune.ledger import Ledger
from aftertune.values import Response

pytestmark = pytest.mark.slow

WRITER = textwrap.dedent("""
    import sys
    from aftertune.ledger import Ledger
    from aftertune.values import Response
    path, start = sys.argv[1], int(sys.argv[2])
    with Ledger(path) as ledger:
        ledger.acquire("e1")
        for batch in range(start, start + 100_000):
            given = {4 * batch + k: Response(logprob=-batch / 7, greedy=True) for k in range(4)}
            ledger.save_batch("e1", batch, given)
            print(batch, flush=True)
""")


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_kill_9_loses_no_batch_that_was_acknowledged(place: Path | str) -> None:
    path, chance = place, random.Random(7)
    with Ledger(path) as ledger:
        ledger.open_evaluation(cases.evaluation(), [])
    acknowledged = total = 0
    for _ in range(10):
        child = start(WRITER, path, acknowledged)
        assert child.stdout is not None
        first = child.stdout.readline()  # it took the dead one's lease and writes
        assert first, "the writer died by itself"
        time.sleep(chance.uniform(0.0, 0.3))
        child.send_signal(signal.SIGKILL)
        lines = [first, *child.stdout]
        child.wait()
        child.stdout.close()
        whole = [int(line) for line in lines if line.endswith("\n")]
        total += len(whole)
        with Ledger(path) as ledger:
            done = ledger.responses("e1")
            assert next(f for f in ledger.check() if f.name == "integrity").value == "ok"
        batches = len(done) // 4
        assert list(done) == list(range(4 * batches)), "a batch is there in part"
        assert whole[-1] + 1 <= batches <= whole[-1] + 2, "an acknowledged batch is lost, or one was not sent"
        assert all(r == Response(logprob=-(p // 4) / 7, greedy=True) for p, r in done.items())
        acknowledged = batches
    print(f"{total} acknowledged batches over 10 kills, none lost")
    assert total >= 10


def test_four_processes_write_a_hundred_transactions_each(tmp_path: Path, place: Path | str) -> None:
    code = textwrap.dedent("""
        import sys
        import ledger_cases as cases
        from aftertune.ledger import Ledger
        from aftertune.values import Response
        with Ledger(sys.argv[1]) as ledger:  # all four make and migrate the same new file
            id = f"e{sys.argv[2]}"
            ledger.open_evaluation(cases.evaluation(id, id), cases.items())
            for batch in range(99):
                ledger.save_batch(id, batch, {batch: Response(logprob=-float(batch))})
    """)
    path = tmp_path / "new" / "ledger.db" if isinstance(place, Path) else place
    folder = Path(__file__).parent
    children = [subprocess.Popen([sys.executable, "-c", code, str(path), str(k)], cwd=folder,
                                 stderr=subprocess.PIPE, text=True) for k in range(4)]
    for child in children:
        _, said = child.communicate(timeout=500)
        assert child.returncode == 0, said
    with Ledger(path) as ledger:
        assert sorted(e.id for e in ledger.evaluations()) == ["e0", "e1", "e2", "e3"]
        for k in range(4):
            assert ledger.responses(f"e{k}") == {b: Response(logprob=-float(b)) for b in range(99)}
            assert ledger.items(f"e{k}") == cases.items()
        assert next(f for f in ledger.check() if f.name == "integrity").value == "ok"


def test_a_second_process_on_one_evaluation_is_refused_by_name(place: Path | str) -> None:
    path = place
    with Ledger(path) as ledger:
        ledger.open_evaluation(cases.evaluation(), [])
        ledger.acquire("e1")
        child = subprocess.run([sys.executable, "-c", WRITER, str(path), "0"], capture_output=True, text=True,
                               timeout=300, check=False)
        assert child.returncode != 0
        assert "InUse: evaluation e1 is in use by process" in child.stderr
        assert ledger.done_positions("e1") == set()
