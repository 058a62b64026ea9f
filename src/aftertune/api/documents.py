"""Writes the documents of a ledger, audits published ones, and imports the results of other tools."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from aftertune.api.comparing import NamedEvaluation, words_of
from aftertune.api.parameters import LedgerPlace, opened, with_settings
from aftertune.errors import InputError
from aftertune.values import Comparison, Evaluation, Tuning

if TYPE_CHECKING:
    from aftertune.exchange import Audit, ImportedResult
    from aftertune.ledger import Ledger
    from aftertune.report import Card, Planned, Results


@with_settings()
def record(out: str | Path = "record.md", *, title: str = "Model evaluation record",
           only: Iterable[NamedEvaluation] | NamedEvaluation = (), studies: Sequence[str | Path] | str | Path = (),
           published: bool = False, ledger: LedgerPlace = None) -> Path:
    """Write the ledger as a Markdown record, and return its path.

    only: evaluations, or their ids or names; default: all. studies: study files, whose models without an evaluation are
    listed. published: replace each path of this machine with a name. ledger: as of `evaluate`. Raises InputError for an
    empty ledger, and StorageError where the file cannot be written.
    """
    from aftertune.report import write_document, write_record

    studies = [studies] if isinstance(studies, str | Path) else studies
    with opened(ledger, create=False) as stored:
        text = write_record(results_of(stored, words_of(only), studies, published=published, plans=True), title=title)
    write_document(Path(out), text)
    return Path(out)


@with_settings()
def report(out: str | Path = "report.html", *, title: str = "Model evaluation report",
           only: Iterable[NamedEvaluation] | NamedEvaluation = (), published: bool = False, ledger: LedgerPlace = None
           ) -> Path:
    """Write the ledger as one self-contained HTML page, and return its path. The arguments are those of `record`."""
    from aftertune.report import write_document

    with opened(ledger, create=False) as stored:
        text = page_text(stored, title, words_of(only), published=published)
    write_document(Path(out), text)
    return Path(out)


def page_text(ledger: Ledger, title: str, only: Sequence[str], *, published: bool) -> str:
    """The page of a ledger as HTML."""
    from aftertune.comparison.flips import flips_by_comparison
    from aftertune.report import write_page

    results = results_of(ledger, only, (), published=published, plans=False)
    flips = flips_by_comparison(results.comparisons, results.answers, ledger=ledger)
    return write_page(replace(results, flips=flips), title=title)


def results_of(ledger: Ledger, only: Sequence[str], files: Sequence[str | Path], *, published: bool, plans: bool
               ) -> Results:
    """The results in the ledger and the comparisons of recipes that they allow.

    only: ids or names of evaluations, [] for all. plans: also list the models that studies, including those in
    ``files``, have not evaluated. published: replace the paths of this machine. Raises InputError for an empty ledger.
    """
    from aftertune.exchange import audited_documents
    from aftertune.pipeline.study_verdicts import over_studies, recipe_contrasts
    from aftertune.redaction import published as public
    from aftertune.report import Results

    reported = [] if only else audited_documents(ledger)
    planned = _planned(ledger, files) if plans and not only else []
    results = replace(Results.load(ledger, only), reported=reported, planned=planned)
    results = replace(results, comparisons=over_studies(results.comparisons, ledger))
    if not (results.evaluations or reported or planned):
        raise InputError("the ledger has no finished evaluation yet; run `aftertune eval` or `aftertune demo` first")
    if published:
        results = replace(results, evaluations=public(results.evaluations), tunings=public(results.tunings),
                          comparisons=public(results.comparisons), reported=public(reported), planned=public(planned))
    return replace(results, contrasts=recipe_contrasts(results, ledger))


def _planned(ledger: Ledger, files: Sequence[str | Path]) -> list[Planned]:
    """The cells without an evaluation, in the studies in ``files`` and the other studies in the ledger."""
    from aftertune.pipeline import unevaluated
    from aftertune.study import Study

    studies = {study.study: (study, str(file)) for file, study in ((file, Study.load(file)) for file in files)}
    for stored in ledger.studies():
        if stored.name not in studies:
            with contextlib.suppress(ValueError):  # the study was stored by another version of aftertune
                studies[stored.name] = (Study.model_validate_json(stored.yaml), "")
    return [cell for study, file in studies.values() for cell in unevaluated(study, ledger=ledger, file=file)]


@with_settings()
def card(about: Evaluation | Tuning | str, out: str | Path = "card", *, license: str | None = None,
         include_partial: bool = False, force: bool = False, ledger: LedgerPlace = None) -> list[Path]:
    """Write a model card for the Hugging Face Hub, and return the paths of its files: README.md and .eval_results.

    about: an evaluation or a tuning, or its id or name. out: a folder, for example that of the model. license: as the
    Hub names it, such as "apache-2.0"; default: that of the base, where it is known. include_partial: also write scores
    of a part of a benchmark to .eval_results. force: overwrite a README.md of others. ledger: as of `evaluate`. Raises
    InputError and StorageError.
    """
    if not isinstance(about, str | Evaluation | Tuning | Comparison):
        raise InputError(f"found a {type(about).__name__}; give an evaluation or a tuning, or its id or name")
    with opened(ledger, create=False) as stored:
        written = card_of(stored, about if isinstance(about, str) else about.id, license_=license,
                          partial=include_partial)
    return write_card_files(written, Path(out), force)


def card_of(ledger: Ledger, word: str, *, license_: str | None, partial: bool) -> Card:
    """The card of an evaluation or a tuning, by id or name. Raises InputError for another or an unfinished entry."""
    from aftertune.report import Results, write_card

    about = ledger.find(word)
    if isinstance(about, Comparison):
        raise InputError(f"{word} is a comparison, but a card describes one model; give the id or name of its "
                         f"evaluation ({about.tuned_name}) or of its tuning")
    if about.status != "done":
        raise InputError(f"{about.name} ({about.id}) is {about.status!r}, but a card needs a finished run; run the "
                         "same command again to finish it")
    return write_card(about, Results(evaluations=ledger.evaluations(), tunings=ledger.tunings(),
                                     comparisons=ledger.comparisons()),
                      license_=license_, partial=partial)


def write_card_files(model_card: Card, out: Path, force: bool) -> list[Path]:
    """Write the card's files. InputError if another README.md exists, unless ``force``."""
    from aftertune.report import make_folder, write_document
    from aftertune.sources.readme import README, replaceable

    readme = out / README
    if not force and not replaceable(out):
        raise InputError(f"{readme}: this file exists, and aftertune did not write it, or it was changed since; choose "
                         "another folder with --out, or overwrite it with --force")
    make_folder(out / ".eval_results" if model_card.results else out)
    files = {readme: model_card.readme,
             **{out / ".eval_results" / name: text for name, text in model_card.results.items()}}
    for path, text in files.items():
        write_document(path, text)
    for name, text in model_card.withheld.items():  # written by an earlier call with --include-partial
        earlier = out / ".eval_results" / name
        if earlier.is_file() and earlier.read_text(encoding="utf-8", errors="replace") == text:
            earlier.unlink()
    return list(files)


@with_settings()
def audit(file: str | Path) -> Audit:
    """Check whether the scores of a document are possible (k of n), and what its differences can show.

    file: a Markdown record, or results of lm-eval, lighteval or inspect_ai: a file or a folder. Raises InputError.
    """
    from aftertune.exchange import audit as run

    return run(Path(file))


@with_settings()
def import_results(path: str | Path, *, name: str | None = None, ledger: LedgerPlace = None) -> list[ImportedResult]:
    """Import results of lm-eval, lighteval, inspect_ai or Every Eval Ever, or a Markdown record, into the ledger.

    With samples they can be compared; without samples they are reported scores. path: a file or a folder. name: of the
    evaluation, or of the record. A file of a folder that cannot be read has its ``error``. Raises InputError where
    nothing can be imported.
    """
    from aftertune.exchange import import_results as run

    with opened(ledger) as stored:
        return run(Path(path), ledger=stored, name=name)
