"""Shares the batches of an evaluation with the other processes that work on it.

    work = SharedWork(ledger, "e-1f…")           heartbeats until work.end()
    for number in work.batches(costs, report):   the batches of this process, until all are stored
        ledger.save_batch(…)
    work.wait_for(FINISH)                        True where this process stores the scores, and no other one

`aftertune.ledger.ranges` says which process computes which batches.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from aftertune.errors import AftertuneError
from aftertune.ledger import Ledger

#: Seconds between two looks at what other processes have stored, while this one waits for them.
POLL = 0.2
#: Seconds of waiting after which the progress says so.
_LONG = 10.0
#: Seconds between two heartbeats, however long a batch takes.
HEARTBEAT = 60.0


class SharedWork:
    """The work of this process on an evaluation, of which it has a lease.

    elsewhere: cost of the batches that other processes stored since `batches` was called; waits: whether this process
    has waited for the last batches of others for a while.
    """

    def __init__(self, ledger: Ledger, evaluation_id: str) -> None:
        self.ledger, self.id = ledger, evaluation_id
        self.elsewhere, self.waits = 0, False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat of {evaluation_id}", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Send no more heartbeats."""
        self._ended.set()
        self._thread.join(timeout=5)  # it may wait for the lock of another process, and writes nothing after that

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT):
            with contextlib.suppress(AftertuneError):  # what is wrong shows when the next batch is stored
                self.ledger.beat(self.id)

    def wait_for(self, step: int) -> bool:
        """Take a step that one process takes alone; wait while another one takes it. False where the evaluation is
        done."""
        while not self.ledger.take_step(self.id, step):
            if self.ledger.is_done(self.id):
                return False
            time.sleep(POLL)
        return True

    def batches(self, costs: Mapping[int, int], report: Callable[[], None]) -> Iterator[int]:
        """The numbers of the batches that this process computes, one after another, until all are stored.

        Each must be stored before the next one is taken. costs: as in `Ledger.take_range`. report: called when
        ``elsewhere`` or ``waits`` has changed.
        """
        own: set[int] = set()

        def look(stored: frozenset[int]) -> None:
            cost = sum(costs[n] for n in stored - own)
            if cost != self.elsewhere:
                self.elsewhere = cost
                report()

        self.elsewhere, self.waits, idle = 0, False, 0.0
        while True:
            taken = self.ledger.take_range(self.id, costs)
            look(taken.stored)
            shared, stop = taken.others > 0, taken.batches[-1] + 1 if taken.batches else 0
            if taken.batches:
                self.waits, idle = False, 0.0
            for number in taken.batches:
                now = self.ledger.range_stop(self.id) or 0
                shared, stop = shared or now < stop, now
                if number >= stop:
                    break  # another process took the rest
                if shared:
                    look(self.ledger.stored_batches(self.id, costs))
                yield number
                own.add(number)
            if not taken.batches:
                if taken.stored.issuperset(costs):
                    return
                time.sleep(POLL)
                idle += POLL
                if idle > _LONG and not self.waits:
                    self.waits = True
                    report()
