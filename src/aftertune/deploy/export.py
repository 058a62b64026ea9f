"""Exports a finished fine-tune as GGUF files, with an Ollama Modelfile and a manifest, in a new folder.

    export_gguf("orders", ("q8_0", "q4_k_m"), Path("orders-gguf"), ledger=ledger)

    orders-gguf/model-q8_0.gguf  model-q4_k_m.gguf  Modelfile  export.json

The merged weights are those in the tuning's folder, or are made for the export. Architectures that are tested are
written here (`aftertune.deploy.gguf_file`), others by llama.cpp's converter if it is installed. Each file is read back,
and its fingerprint is stored in the ledger as a model that the tuning made, so that `compare` knows where it is from.

The folder appears when everything in it is complete. A run that stops leaves nothing; the next one begins again.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aftertune import __version__
from aftertune.deploy import gguf_file, llama_cpp
from aftertune.deploy.modelfile import modelfile
from aftertune.errors import InputError, SourceError, StorageError, shown
from aftertune.methods import writes_adapter
from aftertune.redaction import public_source
from aftertune.sources import ModelSource, fingerprint_model, load_tokenizer, resolve_adapter, resolve_model
from aftertune.sources.cache import remove_path, temporary_path, write_atomic
from aftertune.sources.fingerprint import fingerprint_file
from aftertune.sources.generation import FILE, generation_defaults
from aftertune.sources.library_errors import disk_errors, writing_errors
from aftertune.sources.loading import load_config
from aftertune.sources.resolve import read_json
from aftertune.sources.tensors import read_header, weight_files
from aftertune.study.links import check_types
from aftertune.tuning import read_tuning
from aftertune.tuning.output import FOLDER, merge, merged_fingerprint, record_exports
from aftertune.values import ExportedModel, Progress, Tuning

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

MANIFEST = "export.json"
#: Beside merged weights that are no part of a tuning's folder: what they were made from.
_MERGED = f"{FOLDER}.json"
#: Bits of a weight in a file, rounded up, to estimate its size; types of llama.cpp's quantiser have at most 7.
_BITS = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 9}
_MOST_BITS = 8
_AGAIN = "run the same command again"


@dataclass(frozen=True, slots=True)
class GgufExport:
    """What an export wrote. files: type -> path. notes: what a user of the files should know. new: False if the folder
    had all of it already."""

    tuning: Tuning
    folder: Path
    files: Mapping[str, Path]
    converter: str
    notes: tuple[str, ...] = ()
    new: bool = True


def export_gguf(word: str, kinds: Sequence[str], out: Path, *, ledger: Ledger, progress: Progress | None = None,
                merged: Path | None = None) -> GgufExport:
    """Write a finished tuning as GGUF files to the new folder ``out``. word: its folder, id or name.

    kinds: names of types, such as "f16" or "q4_k_m". merged: whole weights of the tuning that exist already. Raises
    InputError (unknown type, existing folder), SourceError (a model that cannot be converted), ResourceError (a program
    is missing) or StorageError (no space).
    """
    kinds, progress = check_types(kinds), progress or (lambda *_: None)
    tuning = read_tuning(word, ledger)
    earlier = _existing(out, tuning, kinds)
    if earlier is not None:
        record_exports(tuning, _exported(out, kinds, tuning), ledger)
        return earlier
    quantizer = llama_cpp.require_quantizer(kinds)
    temporary = temporary_path(out)
    try:
        with writing_errors(f"{tuning.name}: writing {', '.join(map(file_name, kinds))}", "convert the merged weights "
                            "with llama.cpp yourself, or serve them without a GGUF"), disk_errors(out, _AGAIN):
            out.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            with _merged(tuning, temporary, progress, merged) as model:
                export = _Export(tuning, model, temporary, kinds, quantizer)
                _check_space(export, out)
                converter, programs = export.write(progress)
                notes = export.notes()
                export.write_modelfile()
            progress(0, 0, "reading the files back")
            exported = _exported(temporary, kinds, tuning)
            _write_manifest(temporary, tuning, exported, {"converter": converter, **programs, "notes": notes})
            temporary.rename(out)
    finally:
        remove_path(temporary)
    record_exports(tuning, exported, ledger)
    return GgufExport(tuning, out, {k: out / file_name(k) for k in kinds}, converter, tuple(notes))


def file_name(kind: str) -> str:
    """The name of the GGUF file of a type."""
    return f"model-{kind}.gguf"


def _existing(out: Path, tuning: Tuning, kinds: Sequence[str]) -> GgufExport | None:
    """The finished export of this tuning in the folder; None if the folder does not exist or is empty.

    Raises InputError if it holds anything else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        manifest = read_json(out / MANIFEST)
        files = {kind: out / file_name(kind) for kind in kinds}
        same = manifest["result"] == tuning.result and all(
            fingerprint_file(path) == manifest["files"][path.name]["sha256"] for path in files.values())
    except (OSError, SourceError, KeyError, TypeError):
        same = False
    if not same:
        raise InputError(f"{out}: exists and does not hold this export of {tuning.name} complete and unchanged; give "
                         "another folder with --out, or remove it")
    return GgufExport(tuning, out, files, str(manifest.get("converter", "")), tuple(manifest.get("notes", ())), False)


@contextmanager
def _merged(tuning: Tuning, folder: Path, progress: Progress, known: Path | None = None) -> Iterator[ModelSource]:
    """The folder of the tuning's whole weights: ``known``, or its own, or one that is merged into ``folder``."""
    if known is not None:
        yield resolve_model(str(known))
        return
    if not writes_adapter(tuning.method):
        yield resolve_model(tuning.output)
        return
    kept = Path(tuning.output) / FOLDER
    if tuning.merged is not None and merged_fingerprint(Path(tuning.output)) == tuning.merged:
        yield resolve_model(str(kept))
        return
    made = folder / FOLDER
    _merge_into(tuning, made, progress)
    yield resolve_model(str(made))
    remove_path(made)


def _merge_into(tuning: Tuning, folder: Path, progress: Progress) -> None:
    progress(0, 0, "merging the adapter into the base")
    base = resolve_model(tuning.base.source, revision=tuning.base.revision,
                         trust_remote_code=tuning.base.trust_remote_code)
    merge(base, resolve_adapter(tuning.output, base, tuning.base), folder, dtype=str(tuning.settings["dtype"]))


def remove_stale(out: Path, tuning: Tuning) -> str:
    """Remove the export of another tuning from a folder; returns a note, "" where there is none.

    A folder that holds anything else, or an export that was changed since, stays: `export_gguf` refuses it.
    """
    try:
        manifest = read_json(out / MANIFEST)
        name, files = str(manifest["name"]), dict(manifest["files"])
        stale = manifest["result"] != tuning.result and {p.name for p in out.iterdir()} <= {
            MANIFEST, "Modelfile", *files} and all(fingerprint_file(out / file) == about["sha256"]
                                                   for file, about in files.items())
    except (OSError, SourceError, KeyError, TypeError, ValueError):
        return ""
    if not stale:
        return ""
    remove_path(out)
    return f"{out}: was the export of another fine-tune ({shown(name)}) and was made again"


def merged_weights(tuning: Tuning, out: Path, progress: Progress) -> tuple[Path, str]:
    """The folder of a tuning's whole weights: its own, or ``out/merged``, which is made where it does not exist, and
    made again where it is that of another tuning; with a note if it was, else "".

    Raises InputError for a folder that was not made here.
    """
    note = ""
    if not writes_adapter(tuning.method):
        return Path(tuning.output), note
    if (own := Path(tuning.output) / FOLDER).is_dir():
        return own, note
    folder, record = out / FOLDER, out / _MERGED
    if not folder.exists() or _merged_from(record) != tuning.result:
        if folder.exists() and _merged_from(record) is None:
            raise InputError(f"{folder}: exists, and no {_MERGED} beside it says which fine-tune it was merged from; "
                             "remove it, or give another folder with --out")
        if folder.exists():
            note = f"{folder}: was merged from another fine-tune and was made again"
        with disk_errors(out, _AGAIN):
            out.mkdir(parents=True, exist_ok=True)
            remove_path(folder)  # before the record is written, so that it never names other weights
            content = {"aftertune": __version__, "tuning": tuning.id, "name": tuning.name, "result": tuning.result}
            write_atomic(record, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        _merge_into(tuning, folder, progress)
    return folder, note


def _merged_from(record: Path) -> str | None:
    """The result of the tuning whose merged weights lie beside the record; None where there is no readable record."""
    try:
        result = read_json(record)["result"]
    except (OSError, SourceError, KeyError, TypeError):
        return None
    return result if isinstance(result, str) else None


@dataclass(frozen=True, slots=True)
class _Export:
    """One export at work. model: the whole weights. quantizer: path of llama-quantize, if a type needs it."""

    tuning: Tuning
    model: ModelSource
    folder: Path
    kinds: tuple[str, ...]
    quantizer: str | None

    def write(self, progress: Progress) -> tuple[str, dict[str, str]]:
        """Write the file of each type; returns the name of the converter, and of the quantiser if it was used."""
        made: dict[str, str] = {}
        convert, title = self._converter()
        for number, kind in enumerate(self.kinds):
            progress(number, len(self.kinds), f"writing {file_name(kind)}")
            if kind in gguf_file.FILE_TYPES:
                convert(self.folder / file_name(kind), kind)
        through = [k for k in self.kinds if k not in gguf_file.FILE_TYPES]
        if through and self.quantizer:
            source = self.folder / "wide.gguf"
            convert(source, "f32")
            for kind in through:
                made["quantizer"] = llama_cpp.quantize(self.quantizer, source, self.folder / file_name(kind), kind)
            source.unlink()
        return title, made

    def _converter(self) -> tuple[Any, str]:
        """The function that writes one file, and its name. Raises SourceError if there is none for this model."""
        reason = gguf_file.refusal(load_config(self.model))
        if not reason:
            def write(path: Path, kind: str) -> None:
                gguf_file.write_gguf(self.model, path, kind, name=self.tuning.name)

            return write, f"aftertune {__version__} with gguf {version('gguf')}"
        if any(self.model.path.glob("*.py")):
            raise SourceError(f"{self.tuning.name}: {reason}, and the model has code of its own, which no converter "
                              "may run here; convert it with llama.cpp yourself")
        converter = llama_cpp.find_converter()
        if converter is None:
            raise SourceError(f"{self.tuning.name}: {reason}, which is not written to a GGUF here; install llama.cpp's "
                              f"converter, which knows more architectures: {llama_cpp.INSTALL_CONVERTER}, and "
                              f"{_AGAIN}")
        if few := [k for k in self.kinds if k in gguf_file.FILE_TYPES and k not in llama_cpp.CONVERTER_TYPES]:
            raise InputError(f"--quant {','.join(few)}: llama.cpp's converter writes {reason.split(' is ')[0]} as "
                             f"{', '.join(llama_cpp.CONVERTER_TYPES)}; choose from these, or a k-quant such as q4_k_m")

        def run(path: Path, kind: str) -> None:
            assert converter is not None
            converter.convert(self.model.path, path, kind, self.tuning.name)

        return run, converter.title

    def write_modelfile(self) -> None:
        """Write the Modelfile for the first type."""
        tokenizer = load_tokenizer(self.model)
        ends = [tokenizer.eos_token_id, *generation_defaults(self.model, tokenizer).get("eos_token_id", [])]
        temperature: float | None = None
        if (self.model.path / FILE).is_file():
            settings = read_json(self.model.path / FILE)
            given = settings.get("temperature") if settings.get("do_sample") else None
            temperature = given if isinstance(given, int | float) and math.isfinite(given) else None
        text = modelfile(file_name(self.kinds[0]), tokenizer, template=self._template(),
                         ends=[tokenizer.convert_ids_to_tokens(n) for n in ends if n is not None],
                         temperature=temperature)
        write_atomic(self.folder / "Modelfile", text)

    def _template(self) -> str:
        return str(self.tuning.settings.get("template", "chat"))

    def notes(self) -> list[str]:
        """What a user of the files should know."""
        notes = []
        if self._template() != "chat":
            notes.append(f"tuned with the template {self._template()}: a server's chat requests use the model's chat "
                         "template instead, so send it finished prompts (/v1/completions), or use the Modelfile")
        if self.tuning.base.source.endswith(".gguf"):
            notes.append("the base is a GGUF, so the weights of a fine-tune are the base's quantised ones with the "
                         "adapter; exporting them again rounds a second time")
        return notes


def _check_space(export: _Export, out: Path) -> None:
    """Raise StorageError if the disk has no room for the files."""
    parameters = sum(math.prod(t.shape) for path in weight_files(export.model.path) for t in read_header(path))
    widths = [_BITS.get(k, _MOST_BITS) for k in export.kinds]
    if any(k not in gguf_file.FILE_TYPES for k in export.kinds):
        widths.append(_BITS["f32"])
    need, free = parameters * sum(widths) // 8, shutil.disk_usage(export.folder).free
    if need > free:
        raise StorageError(f"{out}: the export needs about {need / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free "
                           "there; free some space, export fewer types, or give another folder with --out")


def _exported(folder: Path, kinds: Sequence[str], tuning: Tuning) -> tuple[ExportedModel, ...]:
    """The files as models that the tuning made, each read back whole."""
    assert tuning.result is not None
    return tuple(ExportedModel(fingerprint=fingerprint_model(resolve_model(str(folder / file_name(kind)))).fingerprint,
                               kind=f"gguf {kind}", result=tuning.result) for kind in kinds)


def _write_manifest(folder: Path, tuning: Tuning, exported: Sequence[ExportedModel], more: Mapping[str, Any]) -> None:
    """Write export.json, which names the tuning, its base, and each file with its sha256."""
    files = {}
    for model in exported:
        path = folder / file_name(model.kind.removeprefix("gguf "))
        files[path.name] = {"quantization": model.kind.removeprefix("gguf "), "fingerprint": model.fingerprint,
                            "sha256": fingerprint_file(path), "bytes": path.stat().st_size}
    content = {"aftertune": __version__, "tuning": tuning.id, "name": tuning.name, "method": tuning.method,
               "result": tuning.result, "base": public_source(tuning.base.source),
               "base_fingerprint": tuning.base.fingerprint, "files": files, **more}
    write_atomic(folder / MANIFEST, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
