"""Gets back what a fine-tune forgot without training, and hands on another of its kept checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from aftertune.api.counted_tasks import counted_task
from aftertune.api.parameters import LedgerPlace, opened, specification, with_settings
from aftertune.api.progress import shown_progress
from aftertune.api.settings import CureSettings
from aftertune.errors import InputError
from aftertune.study.cure import CureSpec
from aftertune.values import Progress, Tuning

if TYPE_CHECKING:
    from aftertune.cure import Cured, CureRequest


class BlendSettings(CureSettings, total=False):
    """Further keywords of `blend`."""

    density: float
    seed: int



#: A fine-tune: its value, its id or name in the ledger, or its folder.
NamedTuning = Tuning | str | Path
#: Tasks to keep, each with its margin in points: a mapping, or "hellaswag=2,arc_easy=2".
KeptTasks = Mapping[str, float] | str


@with_settings(CureSpec, without=("keep",))
def soften(tuning: NamedTuning, keep: KeptTasks, *, strengths: Sequence[float] = (), by: Literal["", "depth"] = "",
           ledger: LedgerPlace = None, progress: Progress | bool | None = None, **settings: Unpack[CureSettings]
           ) -> Cured:
    """Give a fine-tune less strength, without training, so that it keeps what ``keep`` names. One part of the items
    chooses the strength, the other part confirms it.

    tuning: a fine-tune, its id, name or folder. keep: tasks with their margins in points. strengths: to try, between 0
    (the base) and 1. by: "depth" also softens the thirds of the layers alone. ledger, progress: as of `evaluate`.

    The value says what was tried (``cure``), whether a model was ``written``, and where it is (``tuning.output``).
    Raises InputError.
    """
    from aftertune.cure import soften as run

    request = cure_request(_spec(keep, settings))
    with opened(ledger, create=False) as stored, shown_progress(progress) as update:
        return run(word_of(tuning), request, strengths=strengths, by=by, ledger=stored, progress=update)


@with_settings(CureSpec, without=("keep",))
def blend(tunings: Sequence[NamedTuning], keep: KeptTasks, *, weights: Sequence[float] = (), method: str = "linear",
          ledger: LedgerPlace = None, progress: Progress | bool | None = None, **settings: Unpack[BlendSettings]
          ) -> Cured:
    """Blend two or three fine-tunes of one base, without training, so that the blend keeps what ``keep`` names.

    tunings: fine-tunes, their ids, names or folders. keep: tasks with their margins in points. weights: of each
    fine-tune; without them, weights that sum to 1 are tried. method: linear, ties, dare_linear or dare_ties, of which
    the last three take density and seed. ledger, progress: as of `evaluate`.

    The value is as of `soften`. Raises InputError.
    """
    from aftertune.cure import blend as run
    from aftertune.tuning.blending import METHODS_OF_PEFT, Blending

    given: dict[str, Any] = dict(settings)
    blending = Blending(method, given.pop("density", 0.5), given.pop("seed", 0))
    if method not in METHODS_OF_PEFT:
        raise InputError(f"method is {method!r}; allowed are {', '.join(METHODS_OF_PEFT)}")
    used = {"linear": (), "ties": ("density",)}.get(method, ("density", "seed"))
    if idle := [name for name in ("density", "seed") if name in settings and name not in used]:
        raise InputError(f"{idle[0]} has no effect with the method {method}; leave it out, or choose another method")
    request = cure_request(_spec(keep, given))
    with opened(ledger, create=False) as stored, shown_progress(progress) as update:
        return run([word_of(t) for t in tunings], request, weights=weights, blending=blending, ledger=stored,
                   progress=update)


@with_settings(CureSpec, without=("keep",))
def cure(tuning: NamedTuning, keep: KeptTasks, *, others: Sequence[NamedTuning] = (), minutes: float | None = None,
         ledger: LedgerPlace = None, progress: Progress | bool | None = None, **settings: Unpack[CureSettings]
         ) -> Cured:
    """Try all cures without training: earlier kept checkpoints, less strength, and blends with ``others``. One part of
    the items chooses a model, the other part confirms it.

    tuning, keep: as of `soften`. others: fine-tunes of the same base to blend it with, at most two. minutes: time for
    trying; None is no limit. ledger, progress: as of `evaluate`.

    The value is as of `soften`, with what training again would cost (``again``). Raises InputError.
    """
    from aftertune.cure import cure as run

    request = cure_request(_spec(keep, settings))
    with opened(ledger, create=False) as stored, shown_progress(progress) as update:
        return run(word_of(tuning), request, others=[word_of(t) for t in others], minutes=minutes, ledger=stored,
                   progress=update)


@with_settings()
def rollback(tuning: NamedTuning, to: int, *, ledger: LedgerPlace = None) -> Tuning:
    """Hand on another kept checkpoint of a fine-tune: the weights in its folder become those of a step.

    tuning: a fine-tune that kept checkpoints (``keep_checkpoints`` of `tune`), its id, name or folder. to: the step.
    The weights that were final are kept as a checkpoint too. ledger: as of `evaluate`. Raises InputError.
    """
    from aftertune.tuning.rollback import roll_back

    with opened(ledger, create=False) as stored:
        return roll_back(word_of(tuning), to, stored)


def word_of(tuning: NamedTuning) -> str:
    """What the commands call a fine-tune."""
    return tuning.id if isinstance(tuning, Tuning) else str(tuning)


def cure_request(asked: CureSpec) -> CureRequest:
    """The request of a specification. Raises InputError for a target that cannot be asked."""
    from aftertune.cure import CureRequest

    target = None
    if asked.target is not None:
        target = counted_task("--target", asked.target, asked.match, asked.scorer)
        target = target.model_copy(update={"apply_chat_template": asked.apply_chat_template})
    return CureRequest(keep=asked.margins, items=asked.items, target=target, require_proof=asked.require_proof,
                       out=asked.out, settings=asked.settings)


def _spec(keep: KeptTasks, settings: Mapping[str, Any]) -> CureSpec:
    text = keep if isinstance(keep, str) else ",".join(f"{task}={points:g}" for task, points in keep.items())
    return specification(CureSpec, settings, keep=text)
