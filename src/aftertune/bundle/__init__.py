"""Hands results on as a folder from which every score and every verdict can be computed again without a model.

    written = export_bundle(ledger, "orders", Path("orders-bundle"), title="Orders study")
    written.sha256                             of the manifest, which names the SHA-256 of every file
    proof = verify_bundle(Path("orders-bundle"))
    proof.failed                               () where everything is proven

    manifest.json       what the bundle contains, with the size and SHA-256 of each file
    ledger/*.jsonl      evaluations, fine-tunes, comparisons, drift, studies; ledger/answers: questions and answers
    record.md           the record and
    report.html         the page, written from exactly these lines
    environment.json    packages, versions and hardware of the machine that wrote it

A bundle is read back and proven before it is finished, so one that does not verify is never written.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aftertune import __version__
from aftertune.bundle import files
from aftertune.bundle.extract import choose, write_extract
from aftertune.bundle.proof import Proof, prove
from aftertune.bundle.rebuilding import Claims, rebuilt_ledger
from aftertune.comparison.flips import flips_by_comparison
from aftertune.errors import AftertuneError, InputError, NotProven, StorageError
from aftertune.exchange.files import in_the_form_of
from aftertune.pipeline.study_verdicts import over_studies, recipe_contrasts
from aftertune.provenance import capture
from aftertune.redaction import published
from aftertune.report import Results, write_document, write_page, write_record
from aftertune.sources.cache import temporary_path
from aftertune.values import RULES, Progress

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

#: Characters of a title.
_TITLE = 200
__all__ = ["Proof", "Verified", "WrittenBundle", "export_bundle", "verify_bundle"]


@dataclass(frozen=True, slots=True)
class WrittenBundle:
    """A bundle that was written. sha256: of its manifest. left_out: what of the ledger is not in it, and why."""

    folder: Path
    sha256: str
    files: int
    size: int
    proof: Proof
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verified:
    """What a bundle proves. title, sha256: of the bundle; files: how many were compared with the manifest; documents:
    "same" where record and page are what its lines give, else why they were not compared."""

    title: str
    sha256: str
    files: int
    documents: str
    proof: Proof


def export_bundle(ledger: Ledger, word: str | None, folder: Path, *, title: str, progress: Progress | None = None
                  ) -> WrittenBundle:
    """Write the bundle of an evaluation, a comparison, a study, or of everything (None), into a new folder.

    Raises InputError for an unknown entry or a folder that has files, StorageError if it cannot be written, and
    NotProven, with nothing written, where the stored answers do not give the stored scores or verdicts.
    """
    title = published(title)[:_TITLE]
    chosen = choose(ledger, word)
    with _new_folder(folder) as part:
        write_extract(ledger, chosen, part)
        with rebuilt_ledger(part) as (rebuilt, claims):
            proof = prove(rebuilt, claims, progress)
            if proof.failed:
                raise NotProven(f"no bundle was written, because the ledger's answers do not give what it says: "
                                f"{proof.failed[0]}{_more(proof.failed)}; `aftertune doctor` checks the ledger, and "
                                "`aftertune compare … --again` compares again")
            record, page = _documents(rebuilt, title)
        write_document(part / files.RECORD, record, verbatim=True)
        write_document(part / files.PAGE, page, verbatim=True)
        write_document(part / files.ENVIRONMENT, _environment())
        files.write_manifest(part, {
            "title": title, "aftertune": __version__, "rules": RULES,
            "evaluations": {e.id: published(e.name) for e in chosen.evaluations},
            "comparisons": {c.id: [c.base, c.tuned] for c in chosen.comparisons}})
        names = files.names_in(part)
        size = sum((part / name).stat().st_size for name in names)
    return WrittenBundle(folder, files.sha256_of(folder / files.MANIFEST), len(names), size, proof, chosen.left_out)


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside the wanted one, which gets its name when the block ends without an error. One that holds this
    very bundle stays: the command that wrote it may have been killed after that."""
    there = (folder / files.MANIFEST).is_file()
    if folder.is_symlink() or (folder.exists() and not there and (not folder.is_dir() or any(folder.iterdir()))):
        raise InputError(f"{folder}: is not an empty folder; give a new one with --bundle")
    part = temporary_path(folder.absolute())
    try:
        part.mkdir(parents=True)
        yield part
        if there and not _same(part, folder):
            raise InputError(f"{folder}: holds another bundle, or files beside one; give a new folder with --bundle")
        if not there:
            if folder.exists():
                folder.rmdir()
            part.rename(folder)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written ({error.strerror}); choose another folder with "
                           "--bundle") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _same(part: Path, folder: Path) -> bool:
    """Whether a folder holds this very bundle, and nothing else."""
    manifest = (part / files.MANIFEST).read_bytes()
    return (folder / files.MANIFEST).read_bytes() == manifest and not files.changed_files(folder, json.loads(manifest))


def verify_bundle(folder: Path, *, progress: Progress | None = None) -> Verified:
    """Compare the files with the manifest, then compute every score and verdict again. What is wrong is in
    ``proof.failed``; where a file was changed, only the files are compared.

    Raises InputError where the folder is no bundle.
    """
    manifest = files.read_manifest(folder)
    title, sha = str(manifest.get("title", folder.name))[:_TITLE], files.sha256_of(folder / files.MANIFEST)
    count = len(manifest["files"])
    proof = Proof(failed=files.changed_files(folder, manifest))
    if proof.failed:
        return Verified(title, sha, count, "not compared", proof)
    try:
        with rebuilt_ledger(folder) as (ledger, claims):
            proof = prove(ledger, claims, progress)
            proof.failed += _wrong_contents(folder, manifest, claims)
            documents = "not compared"
            if not proof.failed:
                documents = _compare_documents(folder, manifest, ledger, title, proof)
    except InputError as error:
        proof.failed.append(str(error))
        documents = "not compared"
    return Verified(title, sha, count, documents, proof)


def _wrong_contents(folder: Path, manifest: dict[str, Any], claims: Claims) -> list[str]:
    """What the manifest says of the contents and the lines do not, and answers that belong to no evaluation."""
    wrong = [f"{files.MANIFEST}: names other {what} than {name}" for what, name, there in (
        ("evaluations", files.EVALUATIONS, {e.id: e.name for e in claims.evaluations}),
        ("comparisons", files.COMPARISONS, {c.id: [c.base, c.tuned] for c in claims.comparisons}))
        if manifest.get(what) != there]
    used = {files.answers_file(number) for number in range(len(claims.evaluations))}
    return wrong + [f"{name}: the answers of no evaluation" for name in files.names_in(folder)
                    if name.startswith(f"{files.ANSWERS}/") and name not in used]


def _compare_documents(folder: Path, manifest: dict[str, Any], ledger: Ledger, title: str, proof: Proof) -> str:
    """Write record and page again and compare them. A failure goes to the proof."""
    if manifest.get("aftertune") != __version__:
        return f"not compared: another version of aftertune wrote them ({str(manifest.get('aftertune'))[:40]})"
    try:
        with in_the_form_of("aftertune", files.EVALUATIONS):
            again = _documents(ledger, title)
    except AftertuneError as error:
        proof.failed.append(f"{files.RECORD}: cannot be written again: {error}")
        return "not compared"
    differing = [name for name, text in zip((files.RECORD, files.PAGE), again, strict=True)
                 if hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() !=
                 files.sha256_of(folder / name)]
    proof.failed += [f"{name}: is not the document that the lines of the bundle give" for name in differing]
    return "not the same" if differing else "same"


def _documents(ledger: Ledger, title: str) -> tuple[str, str]:
    """The record and the page of a rebuilt ledger."""
    from aftertune.errors import visible_characters

    results = Results.load(ledger)
    results = replace(results, comparisons=over_studies(results.comparisons, ledger))
    results = replace(results, contrasts=recipe_contrasts(results, ledger))
    flips = flips_by_comparison(results.comparisons, results.answers, ledger=ledger)
    shown = published(title)
    return (visible_characters(write_record(results, title=shown)),
            visible_characters(write_page(replace(results, flips=flips), title=shown)))


def _environment() -> str:
    """The machine that wrote the bundle, without its name and without paths."""
    facts = asdict(published(capture("")))
    packages = sorted({f"{d.metadata['Name']}=={d.version}" for d in metadata.distributions() if d.metadata["Name"]},
                      key=str.lower)
    return json.dumps({"versions": facts["versions"], "hardware": facts["hardware"], "packages": packages},
                      indent=1) + "\n"


def _more(lines: list[str]) -> str:
    return f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
