"""An evaluation that is killed with SIGKILL again and again ends with the numbers of an unbroken one.

The children come from a fork server that has the heavy libraries loaded already, so a restart costs what
reading the tasks and loading the model cost, not the imports. `benchmarks/soak.py` kills more often, and commands.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import time
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from aftertune.ledger import Ledger
from aftertune.study import TargetSpec, TaskSpec
from aftertune.values import Evaluation, plain
from deciding_cases import decide, models, own_task
from eval_cases import byte_folder, scored_and_generated

HEAVY = ["torch", "transformers", "lm_eval.tasks", "lm_eval.api.task", "datasets", "sqlalchemy",
         "transformers.models.llama.modeling_llama", "aftertune.evaluation"]


class Child:
    """A process that runs the evaluation into a ledger and tells of every batch on disk, and every text of a wave."""

    def __init__(self, model: Path, ledger: Path, items: int, target: Any = None) -> None:
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(HEAVY)
        self.told, tells = server.Pipe(duplex=False)
        self.process = server.Process(target=target or work, args=(tells, str(model), str(ledger), items))
        self.process.start()
        tells.close()

    def answering(self) -> tuple[int, int] | None:
        """How far it is: tokens done and in all, a wave that is not on disk yet too; None when it has ended."""
        try:
            said: tuple[int, int] = self.told.recv()
        except EOFError:
            self.process.join()
            return None
        return said

    def kill(self) -> bool:
        """SIGKILL; True where it was still at work."""
        self.process.kill()
        self.process.join()
        self.told.close()
        return self.process.exitcode == -signal.SIGKILL

    def finish(self) -> int:
        while self.answering() is not None:
            pass
        self.told.close()
        assert self.process.exitcode is not None
        return self.process.exitcode


def work(tells: Connection, model: str, ledger: str, items: int) -> None:
    """What a child does."""
    def progress(done: int, total: int, text: str) -> None:
        if text == "answering":
            tells.send((done, total))

    scored_and_generated(model, ledger, items, progress)


def work_until_decided(tells: Connection, folder: str, ledger: str, rows: int) -> None:
    """The same with an evaluation that stops early, both models in one go; it tells how far each round is."""
    def progress(done: int, total: int, text: str) -> None:
        if text.startswith("answering until"):
            tells.send((done, total))

    place = Path(folder)
    tasks = [TaskSpec(name="own", target=TargetSpec(file=place / "own.jsonl", max_tokens=3)),
             TaskSpec(name="arc_easy", sample=rows)]
    with Ledger(ledger) as opened:
        decide(place / "near", place / "base", tasks, opened, progress)


def content(path: Path | str) -> tuple[Evaluation, str]:
    """The evaluation, and every answer, response (floats by their exact bits) and score as text."""
    with Ledger(path) as ledger:
        [done] = ledger.evaluations()
        responses = ledger.responses(done.id)
        exact = [[p, None if r.logprob is None else r.logprob.hex(), r.greedy, r.text, r.tokens, r.finish,
                  r.truncated] for p, r in responses.items()]
        parts: dict[str, Any] = {
            "responses": exact, "answers": [plain(a) for a in ledger.answers(done.id)],
            "scores": [[s.task, s.key, s.value.hex(), s.stderr and s.stderr.hex(), s.n] for s in done.scores],
            "items": [plain(i) for i in ledger.items(done.id)], "plan": done.schedule["plan"],
            "warnings": done.warnings}
        assert next(f for f in ledger.check() if f.name == "integrity").value == "ok"
    return done, json.dumps(parts, indent=1)


def killed_and_whole(tmp_path: Path, *, kills: int, items: int, seed: int) -> None:
    """Kill ``kills`` times: after a few batches, within one, before the first, and at the very end."""
    model, chance = byte_folder(tmp_path / "model"), random.Random(seed)
    whole, broken = tmp_path / "whole.db", tmp_path / "broken.db"
    batches = []
    child = Child(model, whole, items)
    while (said := child.answering()) is not None:
        batches.append(said[0])
    assert child.finish() == 0
    assert len(batches) - 1 >= 20, f"only {len(batches) - 1} batches and texts"
    pace, landed, starts = max((len(batches) - 1) // kills, 1), 0, []
    while landed < kills:
        child = Child(model, broken, items)
        said = child.answering()
        assert said is not None, "the child died by itself"
        starts.append(said[0])
        last = landed == kills - 1
        for _ in range(len(batches) if last else chance.randint(0 if landed else 1, pace)):
            if said is not None and said[0] < said[1]:
                said = child.answering()
        time.sleep(chance.uniform(0.0, 0.01 if last else 0.06))
        if not child.kill():
            break  # it had finished: nothing is left to kill
        landed += 1
    final = Child(model, broken, items)
    assert final.finish() == 0
    done, numbers = content(broken)
    first, expected = content(whole)
    assert landed >= kills - 1
    assert starts == sorted(starts)
    assert len(set(starts)) > min(landed, 20) // 2, f"kills landed at {starts} of {batches[-1]}"
    assert done.id == first.id
    assert numbers == expected
    print(f"{landed} kills over {len(batches) - 1} batches and texts, restarted at {starts} of {batches[-1]} tokens")


@pytest.mark.slow
def test_a_kill_between_two_waves_changes_nothing(tmp_path: Path) -> None:
    """After each wave but the last: what is on disk stays, and the next one begins where it ended."""
    model, whole = byte_folder(tmp_path / "model"), tmp_path / "whole.db"
    told: list[int] = []
    child = Child(model, whole, 20)
    while (said := child.answering()) is not None:
        told.append(said[0])
    assert child.finish() == 0
    ends = [a for a, b in pairwise(told) if a == b]  # the last text of a wave, and then the wave
    assert len(ends) >= 3, f"only {len(ends)} waves"
    between = 0
    for n, end in enumerate(ends[:-1]):
        broken, before = tmp_path / f"broken-{n}.db", -1
        child = Child(model, broken, 20)
        while (said := child.answering()) is not None and not before == said[0] == end:
            before = said[0]
        child.kill()
        final = Child(model, broken, 20)
        begun = final.answering()
        assert begun is None or begun[0] in ends[n:]  # the next wave may be there already where the kill was slow
        between += begun is not None and begun[0] == end
        assert final.finish() == 0
        (done, numbers), (first, expected) = content(broken), content(whole)
        assert done.id == first.id
        assert numbers == expected
    assert between, "no kill landed between two waves"


@pytest.mark.slow
def test_kills_change_nothing_where_a_run_stops_early(tmp_path: Path) -> None:
    """Killed in the middle of rounds: both evaluations and the comparison end as those of an unbroken run."""
    own_task(tmp_path, models(tmp_path)["base"], 300)
    chance, texts = random.Random(3), []
    for name, kills in (("whole.db", 0), ("broken.db", 4)):
        for _ in range(kills):
            child = Child(tmp_path, tmp_path / name, 60, work_until_decided)
            assert child.answering() is not None
            for _ in range(chance.randint(1, 14)):
                child.answering()
            time.sleep(chance.uniform(0, 0.05))
            assert child.kill(), "it had finished before the kill"
        assert Child(tmp_path, tmp_path / name, 60, work_until_decided).finish() == 0
        with Ledger(tmp_path / name) as ledger:
            [comparison] = ledger.comparisons()
            done = {e.id: e for e in ledger.evaluations()}
            assert set(done) == {comparison.base, comparison.tuned}
            texts.append(json.dumps([plain(comparison.rows[0]), comparison.id, [
                [plain(e.early), e.schedule["stages"], [s.value.hex() for s in e.scores], [
                    [p, r.logprob and r.logprob.hex(), r.text] for p, r in ledger.responses(e.id).items()]]
                for e in (done[comparison.base], done[comparison.tuned])]]))
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_five_kills_change_nothing(tmp_path: Path) -> None:
    killed_and_whole(tmp_path, kills=5, items=20, seed=5)
