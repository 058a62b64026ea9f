"""Takes a fine-tune to where it runs: files for other programs, and checks that nothing was lost on the way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from aftertune.api.comparing import PointMargin, margins_of
from aftertune.api.cures import NamedTuning, word_of
from aftertune.api.evaluating import Task, task_specs
from aftertune.api.parameters import LedgerPlace, comma_separated, opened, with_settings
from aftertune.api.progress import shown_progress
from aftertune.errors import InputError
from aftertune.values import Progress

if TYPE_CHECKING:
    from aftertune.deploy import ChainCheck, GgufExport
    from aftertune.merge_check import MergeCheck


@with_settings()
def export_gguf(tuning: NamedTuning, out: str | Path, *, kinds: str | Sequence[str] = ("q8_0",),
                ledger: LedgerPlace = None, progress: Progress | bool | None = None) -> GgufExport:
    """Write a fine-tune as GGUF files for llama.cpp and Ollama, from its merged weights.

    tuning: a fine-tune, its id, name or folder. out: the folder. kinds: types of the files, such as "f16" or "q4_k_m".
    ledger, progress: as of `evaluate`. Raises InputError and SourceError.
    """
    from aftertune.deploy import export_gguf as run

    listed = comma_separated(kinds) if isinstance(kinds, str) else list(kinds)
    with opened(ledger, create=False) as stored, shown_progress(progress) as update:
        return run(word_of(tuning), listed, Path(out), ledger=stored, progress=update)


@with_settings()
def check_merge(tuning: NamedTuning, tasks: Task | Iterable[Task] = "hellaswag", *, sample: int = 32, nf4: bool = False,
                dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32", ledger: LedgerPlace = None,
                progress: Progress | bool | None = None) -> MergeCheck:
    """Check that merged weights answer as the base with the adapter does.

    tuning: a fine-tune with merged weights, its id, name or folder. tasks: scored by log-likelihoods. sample: random
    items of each. nf4: also check the merged weights in 4 bits. dtype: of the computation. ledger, progress: as of
    `evaluate`.

    ``merged.same`` of the value says whether they do. Raises InputError.
    """
    from aftertune.merge_check import check_merge as run

    with opened(ledger, create=False) as stored, shown_progress(progress) as update:
        return run(word_of(tuning), tasks=task_specs(tasks, {"sample": sample}), ledger=stored, nf4=nf4, dtype=dtype,
                   progress=update)


@with_settings()
def check_deploy(tuning: NamedTuning, chain: str | Sequence[str], tasks: Task | Iterable[Task], *, out: str | Path,
                 margin: PointMargin = 2.0, ledger: LedgerPlace = None, progress: Progress | bool | None = None
                 ) -> ChainCheck:
    """Ask each form of a fine-tune the same items, and find the first one that lost something.

    tuning: a fine-tune, its id, name or folder. chain: links such as "adapter", "merged", "gguf:q8_0", "llamacpp:q8_0"
    and "openai:URL", the fine-tune first. tasks: as of `evaluate`; a target task asks what the fine-tune taught. out:
    folder for merged weights and GGUF files. margin: as of `compare`. ledger, progress: as of `evaluate`.

    ``broken`` of the value is the first link that lost something, or None. Raises InputError.
    """
    from aftertune.deploy import check_chain

    links = comma_separated(chain) if isinstance(chain, str) else list(chain)
    specs = task_specs(tasks, {})
    if not links:
        raise InputError('chain is empty; give links such as ["adapter", "merged", "gguf:q8_0"]')
    with opened(ledger, create=False) as stored, shown_progress(progress) as update:
        return check_chain(word_of(tuning), links, specs, ledger=stored, out=Path(out),
                           margins=margins_of(margin, None), progress=update)
