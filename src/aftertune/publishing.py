"""Publishes a fine-tune on the Hugging Face Hub: its weights, its card, its results and its record.

    push = prepare_push(ledger, "orders", folder)         InputError or NotProven where the card would claim too much
    push.files                                            {"README.md": 4120, "adapter_model.safetensors": …}
    send(push, "user/orders", private=True)               the address of the commit

What is published is a new folder with exactly these files. The weights must be those that the ledger has, and every
score and verdict of the card is computed again from the stored answers (`aftertune.bundle`). The token is the one that
huggingface_hub finds in its own places (`hf auth login`, HF_TOKEN).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from aftertune.bundle.extract import choose_evaluations, write_extract
from aftertune.bundle.proof import Proof, prove
from aftertune.bundle.rebuilding import rebuilt_ledger
from aftertune.errors import InputError, NotProven, ResourceError, SourceError, StorageError
from aftertune.ledger.staging import temporary_root
from aftertune.redaction import public_source, published, redact
from aftertune.report import Results, write_card, write_document, write_record
from aftertune.sources.resolve import read_json
from aftertune.tuning.output import result_of
from aftertune.values import RULES, Evaluation, Progress, Tuning
from aftertune.values.reported import identity_note

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

#: The files of a fine-tune's folder that are published; what is not named here stays, such as checkpoints and logs.
_WEIGHTS = re.compile(
    r"adapter_config\.json|adapter_model\.safetensors|config\.json|generation_config\.json|model[\w.-]*\.safetensors"
    r"|model\.safetensors\.index\.json|tokenizer[\w.-]*|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)"
    r"|merges\.txt|[\w.-]+\.jinja|[\w.-]+\.model")
RECORD = "record.md"
#: Fields of these files that name a model.
_SOURCES = ("base_model_name_or_path", "_name_or_path", "name_or_path")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True, slots=True)
class Push:
    """What is ready to be published. files: path -> bytes. evaluations: those of the card. proof: of its scores and
    verdicts. left_out: tasks without a score of all items, which are not in the metadata."""

    folder: Path
    name: str
    files: Mapping[str, int]
    evaluations: tuple[str, ...]
    proof: Proof
    left_out: tuple[str, ...]


def prepare_push(ledger: Ledger, word: str, folder: Path, *, progress: Progress | None = None) -> Push:
    """Put what is published into ``folder``.

    Raises InputError for a word that is no finished fine-tune, and NotProven where the weights are not those that the
    ledger has, where a model's weights were never read, or where the answers do not give a score or a verdict.
    """
    tuning = ledger.find_tuning(word)
    if tuning.status != "done":
        raise InputError(f"{tuning.name} ({tuning.id}) is {tuning.status!r}; run the same command again to finish it")
    _check_weights(tuning, Path(tuning.output))
    evaluations = [e for e in ledger.evaluations() if e.status == "done" and tuning.made(e.model.fingerprint)]
    results = Results(evaluations=ledger.evaluations(), tunings=ledger.tunings(), comparisons=ledger.comparisons())
    comparisons = [c for c in results.comparisons if c.tuned in {e.id for e in evaluations}]
    sides = {c.base for c in comparisons} | {c.tuned for c in comparisons} | {e.id for e in evaluations}
    shown = [e for e in results.evaluations if e.id in sides]
    _check_identities(shown)
    proof = _proven(ledger, sides, progress)
    old = [c for c in comparisons if c.rules != RULES]
    if old:
        raise NotProven(f"comparison {old[0].id} was judged by version {old[0].rules} of the rules, and this program "
                        f"proves version {RULES}; `aftertune compare {old[0].base} {old[0].tuned} --again` first")
    card = write_card(tuning, results)
    _copy_weights(Path(tuning.output), folder)
    _check_weights(tuning, folder)  # links and files of other names are not copied
    _without_paths(folder)
    write_document(folder / "README.md", card.readme)
    for name, text in card.results.items():
        (folder / ".eval_results").mkdir(exist_ok=True)
        write_document(folder / ".eval_results" / name, text)
    write_document(folder / RECORD, write_record(_record_of(ledger, shown), title=published(tuning.name)))
    sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    return Push(folder, tuning.name, sizes, tuple(e.id for e in evaluations), proof, card.left_out)


def _check_weights(tuning: Tuning, folder: Path) -> None:
    """NotProven unless the folder, the output or its copy, has the weights of the result."""
    if not folder.is_dir():
        raise InputError(f"{tuning.output}: the folder of {tuning.name} is gone; push it from the machine that has "
                         "it, or train it again with the same command")
    try:
        found = result_of(folder, tuning.method, tuning.base)
    except SourceError as error:
        raise NotProven(f"{tuning.output}: these are not the weights of {tuning.name}: {error}") from error
    if found != tuning.result:
        raise NotProven(f"{tuning.output}: the weights are not those that the ledger has for {tuning.name}, so its "
                        "scores are not theirs; evaluate this folder, or hand on the weights of the fine-tune")


def _check_identities(evaluations: list[Evaluation]) -> None:
    """NotProven where the weights of a model were never read, so that its scores may be those of another model."""
    for evaluation in evaluations:
        note = identity_note(evaluation.model)
        if note:
            raise NotProven(f"evaluation {evaluation.name} ({evaluation.id}) would be in the card, and its model is "
                            f"{note}; evaluate it here first")


def _proven(ledger: Ledger, ids: set[str], progress: Progress | None) -> Proof:
    """Compute every score and verdict again. Raises NotProven."""
    if not ids:
        return Proof()
    with TemporaryDirectory(prefix="aftertune-", dir=temporary_root()) as extract:
        write_extract(ledger, choose_evaluations(ledger, ids), Path(extract))
        with rebuilt_ledger(Path(extract)) as (rebuilt, claims):
            proof = prove(rebuilt, claims, progress)
    if proof.failed:
        more = f" (and {len(proof.failed) - 1} more)" if len(proof.failed) > 1 else ""
        raise NotProven(f"nothing was published, because the stored answers do not give what the card would say: "
                        f"{proof.failed[0]}{more}; `aftertune doctor` checks the ledger")
    return proof


def _record_of(ledger: Ledger, shown: list[Evaluation]) -> Results:
    results = Results.load(ledger, [e.id for e in shown]) if shown else Results()
    tunings = tuple(replace(t, overlap=tuple(replace(o, found=()) for o in t.overlap)) for t in results.tunings)
    return replace(results, evaluations=published(results.evaluations), tunings=published(tunings),
                   comparisons=published(results.comparisons))


def _copy_weights(source: Path, folder: Path) -> None:
    try:
        for path in sorted(source.iterdir()):
            if _WEIGHTS.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                shutil.copyfile(path, folder / path.name)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written ({error.strerror}); set TMPDIR to a folder on a disk with "
                           "more space") from None


def _without_paths(folder: Path) -> None:
    """Where a base is a local folder, PEFT and transformers write its path into these files; only its name is left."""
    for name in ("adapter_config.json", "config.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file():
            value = read_json(path)
            changed = {key: public_source(value[key]) for key in _SOURCES if isinstance(value.get(key), str)}
            if changed != {key: value[key] for key in changed}:
                write_document(path, json.dumps({**value, **changed}, indent=2) + "\n", verbatim=True)


@contextmanager
def push_folder() -> Iterator[Path]:
    """A temporary folder for what is published."""
    with TemporaryDirectory(prefix="aftertune-", dir=temporary_root()) as folder:
        yield Path(folder)


def check_repository(name: str) -> None:
    """InputError for a name that is no repository of the Hub."""
    if not _REPOSITORY.fullmatch(name):
        raise InputError(f"--to {name!r}: write USER/NAME, the repository on the Hub")


def send(push: Push, repository: str, *, private: bool = False) -> str:
    """Create the repository if it is missing, and commit the files; returns the address of the commit.

    Raises InputError where the Hub refuses (no token, no permission), ResourceError where it cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api: Any = HfApi(library_name="aftertune")
    try:
        api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.repo_info(repository).private:
            raise InputError(f"--private: {repository} is there and is public; make it private in its settings on the "
                             "Hub, or give another name with --to; nothing was published")
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(push.folder / name))
                      for name in push.files]
        commit = api.create_commit(repository, operations, commit_message=f"{push.name}: weights, card and results")
    except InputError:
        raise
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        what = {401: "no valid token: `hf auth login`, or set HF_TOKEN",
                403: "this token may not write there; make one with write access"}.get(status or 0, _short(error))
        raise InputError(f"{repository}: the Hub refused it ({what}); nothing was published") from None
    except Exception as error:  # the HTTP library's own errors, and those of an unreachable host
        raise ResourceError(f"{repository}: the Hub cannot be reached ({_short(error)}); nothing was published; "
                            "HF_HUB_OFFLINE must not be set") from error
    return str(commit.commit_url)


def _short(error: Exception) -> str:
    return redact(" ".join(str(error).split()))[:200] or type(error).__name__
