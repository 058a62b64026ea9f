"""Implements ``export --format gguf`` and ``check-merge``.

    aftertune export orders --format gguf --quant q8_0,q4_k_m --out orders-gguf
    aftertune check-merge orders
    aftertune check-merge BASE ADAPTER MERGED
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aftertune.cli.console import emit, progress
from aftertune.cli.options import JsonFlag, comma_separated, option_of
from aftertune.errors import GateFailed, InputError
from aftertune.study import EvalSpec, TaskSpec

if TYPE_CHECKING:
    from aftertune.deploy import WeightsCheck
    from aftertune.ledger import Ledger
    from aftertune.merge_check import Agreement, MergeCheck
    from aftertune.values import Progress

#: How many names a fault shows.
_SHOWN = 4


def export_weights(word: str, quant: str, out: str | None, as_json: bool) -> None:
    """Write a tuning as GGUF files, and show them with the commands that use them."""
    from aftertune.deploy import export_gguf
    from aftertune.ledger import Ledger
    from aftertune.sources.cache import path_part

    folder = Path(out or f"exports/{path_part(Path(word).name)}-gguf")
    with Ledger() as ledger, progress() as update:
        export = export_gguf(word, comma_separated(quant), folder, ledger=ledger, progress=update)
    if as_json:
        emit({"tuning": export.tuning.id, "folder": str(export.folder), "converter": export.converter,
              "files": {kind: str(path) for kind, path in export.files.items()}, "notes": list(export.notes),
              "new": export.new})
        return
    for path in export.files.values():
        typer.echo(f"{'written to' if export.new else 'unchanged:'} {path} ({path.stat().st_size / 2**20:,.1f} MiB)")
    for note in export.notes:
        typer.echo(f"note: {note}")
    first = next(iter(export.files.values()))
    typer.echo(f"Ollama: ollama create NAME -f {export.folder}/Modelfile\nllama.cpp: llama-server -m {first} --jinja\n"
               f"measure what it costs: aftertune eval {first} --tasks …")


def check_merge(
    models: Annotated[list[str], typer.Argument(
        metavar="TUNING | BASE ADAPTER MERGED",
        help="A tuning with merged weights (folder, id or name), or a base, an adapter and merged weights or a GGUF "
             "file of any origin.")],
    tasks: Annotated[str, typer.Option(
        help="Tasks that are scored by log-likelihoods, separated by commas.")] = "hellaswag",
    sample: Annotated[int, typer.Option(min=1, help="Random items of each task.")] = 32,
    nf4: Annotated[bool, typer.Option("--nf4", help="Also check the merged weights in 4 bits.")] = False,
    dtype: Annotated[str, typer.Option(help="Data type; float32 shows the rounding of the weights alone.")] = "float32",
    device: Annotated[str, option_of(EvalSpec, "device")] = "auto",
    only_weights: Annotated[bool, typer.Option(
        "--only-weights", help="Compare the weights alone, without scoring items.")] = False,
    trust_remote_code: Annotated[bool, option_of(EvalSpec, "trust_remote_code")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Check that merged weights are the base with the adapter. Exit with 1 if they are not.

    Every weight is compared, to the rounding of its file. A weight that differs is named, with what it seems to be. For
    a tuning, the adapter and the merged weights then answer the same items: this finds a difference of a tenth of what
    the fine-tune changed, but not always one layer among many.
    """
    from aftertune.ledger import Ledger

    if len(models) not in (1, 3):
        raise InputError(f"check-merge: {len(models)} models given; give one tuning, or a base, an adapter and merged "
                         "weights")
    with progress() as update:
        if len(models) == 3:
            from aftertune.deploy import check_gguf, check_weights

            name, behaviour = models[2], None
            check = check_gguf if models[2].endswith(".gguf") else check_weights
            weights = check(*models, trust_remote_code=trust_remote_code, progress=update)
        else:
            specs = [TaskSpec(name=task, sample=sample) for task in comma_separated(tasks)]
            with Ledger() as ledger:
                name, weights = _weights_of(models[0], ledger, update)
                behaviour = None if only_weights else _behaviour(models[0], specs, ledger, nf4, (dtype, device), update)
    if as_json:
        emit({**_behaviour_object(behaviour), "weights": _weights_object(weights)})
    else:
        _show_weights(name, weights)
        if behaviour is not None:
            _show_check(behaviour)
    _refuse_different(name, weights, behaviour)


def _weights_of(word: str, ledger: Ledger, update: Progress) -> tuple[str, WeightsCheck]:
    """The name of a tuning, and the check of its merged weights."""
    from aftertune.deploy import check_weights
    from aftertune.merge_check import merged_tuning

    tuning, merged = merged_tuning(word, ledger)
    base = tuning.base
    return tuning.name, check_weights(base.source, tuning.output, str(merged), revision=base.revision,
                                      trust_remote_code=base.trust_remote_code, progress=update)


def _behaviour(word: str, tasks: list[TaskSpec], ledger: Ledger, nf4: bool, runs: tuple[str, str], update: Progress
               ) -> MergeCheck:
    """The check by the answers to items. runs: dtype and device."""
    from aftertune.merge_check import check_merge as check

    return check(word, tasks=tasks, ledger=ledger, nf4=nf4, dtype=runs[0], device=runs[1], progress=update)


def _refuse_different(name: str, weights: WeightsCheck, behaviour: MergeCheck | None) -> None:
    """Raise GateFailed unless the merged weights are the base with the adapter, by every check that was made."""
    if not weights.same:
        raise GateFailed(f"{name}: the merged weights are not the base with the adapter: {weights.faults[0].sentence}; "
                         "merge again, or use the adapter unmerged")
    if behaviour is not None and not behaviour.merged.same:
        raise GateFailed(f"{name}: the merged weights differ from the base with the adapter; use the adapter unmerged, "
                         "or merge into a base with a wider dtype, such as float32")


def _weights_object(check: WeightsCheck) -> dict[str, object]:
    """The check of the weights as ``check-merge --json`` prints it."""
    return {"same": check.same, "weights": check.weights, "adapted": check.adapted, "dtypes": list(check.dtypes),
            "kept": check.kept, "without_effect": list(check.idle), "notes": list(check.notes),
            "faults": [{"kind": f.kind, "sentence": f.sentence, "names": list(f.names)} for f in check.faults]}


def _show_weights(name: str, check: WeightsCheck) -> None:
    """Print whether the weights are right, and each fault with the first names."""
    stored = f" in {', '.join(check.dtypes)}" if check.dtypes else ""
    typer.echo(f"{name}: {check.weights:,} weights{stored}, {check.adapted:,} of them changed by the adapter: "
               f"{'each is the base with the adapter, to rounding' if check.same else 'not the base with the adapter'}")
    for fault in check.faults:
        more = f" and {len(fault.names) - _SHOWN:,} more" if len(fault.names) > _SHOWN else ""
        typer.echo(f"  {fault.sentence}: {', '.join(fault.names[:_SHOWN])}{more}")
    for note in check.notes:
        typer.echo(f"note: {note}")


def _behaviour_object(check: MergeCheck | None) -> dict[str, object]:
    """The check of the answers as ``check-merge --json`` prints it."""
    if check is None:
        return {}
    return {"tuning": check.tuning.id, "tasks": list(check.tasks), "items": check.items, "scores": check.scores,
            "moved": check.moved, "merged": _agreement_object(check.merged), "nf4": _agreement_object(check.nf4)}


def _agreement_object(agreement: Agreement | None) -> dict[str, object] | None:
    """The agreement with the adapter as ``check-merge --json`` prints it."""
    return None if agreement is None else {
        "same": agreement.same, "mean": agreement.mean, "largest": agreement.largest, "share": agreement.share,
        "discordant": agreement.discordant}


def _show_check(check: MergeCheck) -> None:
    """Print one line for each form of the merged weights."""
    typer.echo(f"{check.tuning.name}: {check.items} items of {', '.join(check.tasks)}, {check.scores} log-likelihoods; "
               f"the fine-tune changed them by {check.moved:.4f} nats on average")
    for label, agreement in (("merged", check.merged), ("merged, in 4 bits", check.nf4)):
        if agreement is not None:
            typer.echo(f"{label}: {'the same model' if agreement.same else 'a different model'}; differs by "
                       f"{agreement.mean:.4f} nats on average ({agreement.share:.1%} of that change), "
                       f"{agreement.largest:.4f} at most; {agreement.discordant} of {check.items} items have a "
                       "different answer")
