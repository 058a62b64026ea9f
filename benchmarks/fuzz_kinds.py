"""The kinds of files that `fuzz.py` breaks: real files of each kind, and how aftertune reads such a file.

    target = KINDS["record"].open(Path("/tmp/work"))
    target.seeds            the bytes of real records, from tests/data
    target.read(data)       reads them as `aftertune audit` and `aftertune import` do; returns its notes

Reading goes as far as a command goes before it takes the time of a model: the scores of a record are checked, the rows
of a data file are split and encoded, an adapter is compared with its base, a tokenizer encodes a text. The real files
come from tests/data and from the helpers with which the tests write theirs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
_LEDGER_CASES = 50  # cases that share a ledger; a new one takes longer than a case
_LOADED = 5  # of so many adapters, one is loaded
_AUDITED = 4  # of so many results, one is audited
_BUILT = 20  # of so many task files, one becomes a task
_STORED = 10  # of so many results, one is stored in a ledger
_STARTED = 100  # of so many Parquet files, one is checked in a process that is started, the others in a fork


@dataclass(frozen=True, slots=True)
class Target:
    """What a kind is tried with. seeds: real files; read: reads a file that may be broken, and returns notes and other
    texts that people see."""

    seeds: Sequence[bytes]
    read: Callable[[bytes], Iterable[str]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file. form: of `mutations.FORMS`; open: makes its target in an empty folder; seconds: of processor time
    that a case may take."""

    title: str
    form: str
    open: Callable[[Path], Target]
    seconds: float = 2.0


def _checked_in_a_fork() -> None:
    """Let Parquet files be checked in forks of this process, within the same limits beside the memory that it has: to
    start Python and pyarrow takes a hundred times as long. Of `_STARTED` files, one is checked as ever."""
    from aftertune.sources import parquet_check
    from aftertune.sources.child_process import ChildLimits, run_child

    def run(module: str, path: Path, limits: ChildLimits) -> tuple[int, bytes]:
        if path.stat().st_size % _STARTED == 0:
            return run_child(module, path, limits)
        here = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        output, out = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.dup2(out, 1)
                parquet_check.main(path, ChildLimits(limits.memory + here, limits.seconds))
                code = 0
            finally:
                os._exit(code)
        os.close(out)
        with os.fdopen(output, "rb") as file:
            said = file.read()
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said

    if Path("/proc/self/statm").exists():
        setattr(parquet_check, "run_child", run)  # noqa: B010  it is no public name of that module


# --- Results and records ---


class _Ledgers:
    """An empty ledger for some cases, then another one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.ledger: Any = None

    def current(self) -> Any:
        """The ledger for the next case."""
        from aftertune.ledger import Ledger

        if self.count % _LEDGER_CASES == 0:
            if self.ledger is not None:
                self.ledger.close()
            path = self.folder / "ledger.db"
            for file in self.folder.glob("ledger.db*"):
                file.unlink()
            self.ledger = Ledger(path)
        self.count += 1
        return self.ledger


def _imports(folder: Path, path: Path, file: Path | None = None) -> Callable[[bytes], Iterable[str]]:
    """Reads the results at ``path`` as import does, after ``file`` (default: the same) got the bytes. One of `_STORED`
    files is stored in a ledger, and one of `_AUDITED` is audited, because these take longer than the rest."""
    from aftertune.api.objects import audit_object
    from aftertune.exchange import audit, import_results, importing
    from aftertune.exchange.discovery import discover
    from aftertune.exchange.markdown_record import read_record
    from aftertune.exchange.reading import merged, read_run
    from aftertune.ledger import Staging

    ledgers = _Ledgers(folder)

    def notes_of(data: bytes) -> Iterable[str]:
        if len(data) % _STORED == 0:
            return [n for r in import_results(path, ledger=ledgers.current()) for n in (*r.notes, r.error)]
        if path.suffix == ".md":
            return [remark.text for remark in read_record(path).notes]
        with Staging() as staging:
            runs = [run for found, kind in discover(path).files for run in read_run(found, kind, staging)]
            return [note for run in merged(runs) for note in importing._read(run, staging).notes]

    def read(data: bytes) -> Iterable[str]:
        (file or path).write_bytes(data)
        notes = notes_of(data)
        if file is None and len(data) % _AUDITED == 0:
            audit_object(audit(path))
        return notes

    return read


def _sections(text: str) -> list[bytes]:
    """The sections of a record that have a table, each as a record of its own with at most 30 lines."""
    parts = re.split(r"^(?=#{1,3} )", text, flags=re.M)
    return ["\n".join(part.splitlines()[:30]).encode() for part in parts if "|--" in part]


def _record(folder: Path) -> Target:
    import exchange_cases

    whole = [exchange_cases.record(), (TESTS / "data" / "record_6627cb2.md").read_text(encoding="utf-8")]
    small = [section for text in whole for section in _sections(text)]
    return Target([*small * 3, *(text.encode() for text in whole)], _imports(folder, folder / "record.md"))


def _tables(folder: Path) -> Target:
    seeds = [p.read_bytes() for p in sorted((TESTS / "data" / "tables").glob("*.md"))]
    return Target(seeds, _imports(folder, folder / "record.md"))


def _lm_eval(folder: Path) -> tuple[Path, Path, list[bytes]]:
    """(results, samples, real results files) of a run of lm-eval."""
    import exchange_cases as cases
    import test_exchange_versions

    home = cases.lm_eval_folder(folder, "org/base", cases.BASE_RIGHT)
    results = home / f"results_{cases.STAMP}.json"
    old = json.dumps({**test_exchange_versions.old_results("m", cases.BASE_RIGHT),
                      "samples": {"choose": test_exchange_versions.choose(cases.BASE_RIGHT)}}).encode()
    seeds = [results.read_bytes(), old, (TESTS / "data" / "exchange" / "results_030.json").read_bytes()]
    return results, home / f"samples_choose_{cases.STAMP}.jsonl", seeds


def _results(folder: Path) -> Target:
    results, _, seeds = _lm_eval(folder)
    return Target(seeds, _imports(folder, results))


def _samples(folder: Path) -> Target:
    results, samples, _ = _lm_eval(folder)
    written = samples.with_name(samples.name.replace("choose", "write"))
    whole = {samples: samples.read_bytes(), written: written.read_bytes()}
    readers = {file: _imports(folder, results, file) for file in whole}

    def read(data: bytes) -> Iterable[str]:
        file = written if b"exact_match" in data else samples
        try:
            return readers[file](data)
        finally:
            file.write_bytes(whole[file])

    return Target(list(whole.values()), read)


def _lighteval(folder: Path) -> Target:
    import exchange_cases as cases
    import test_exchange_lighteval

    _checked_in_a_fork()
    paths = [test_exchange_lighteval.folder(folder / v, "org/base", cases.BASE_RIGHT, v)
             for v in test_exchange_lighteval.VERSIONS]
    return Target([p.read_bytes() for p in paths], _imports(folder, paths[-1]))


def _inspect(folder: Path) -> Target:
    seeds = [p.read_bytes() for p in sorted((TESTS / "data" / "exchange").glob("inspect_*.json"))]
    return Target(seeds, _imports(folder, folder / "log.json"))


def _inspect_archive(folder: Path) -> Target:
    seeds = [p.read_bytes() for p in sorted((TESTS / "data" / "exchange").glob("inspect_*.eval"))]
    return Target(seeds, _imports(folder, folder / "log.eval"))


def _every_eval_ever(folder: Path, *, rows: bool = False) -> Target:
    import exchange_cases as cases
    import test_exchange_every_eval_ever

    path = test_exchange_every_eval_ever.write(folder / "eee", "org/base", cases.BASE_RIGHT)
    file = path.with_name("a1_samples.jsonl") if rows else path
    return Target([file.read_bytes()], _imports(folder, path, file))


# --- Studies and tasks ---


def _study(folder: Path) -> Target:
    from aftertune.errors import InputError
    from aftertune.study import Study

    files = [ROOT / "src" / "aftertune" / "demo" / "study.yaml", *sorted((ROOT / "studies").glob("*.yaml")),
             TESTS / "data" / "version_before" / "project" / "study.yaml"]
    seeds = [file.read_bytes() for file in files]
    path = folder / "studies" / "study.yaml"
    path.parent.mkdir()

    def read(data: bytes) -> Iterable[str]:
        path.write_bytes(data)
        study = Study.load(path)
        study.margins()
        study.check_files()
        return ()

    for data in seeds:  # the data files that they name
        while True:
            try:
                read(data)
                break
            except InputError as error:
                missing = Path(str(error).split("` is ")[1].split(", but there is")[0])
                missing.parent.mkdir(parents=True, exist_ok=True)
                missing.touch()
    return Target(seeds, read)


def _task(folder: Path) -> Target:
    """A task file of the user. Of one file in `_BUILT` the task is built too, with its prompts, from four documents."""
    import yaml  # type: ignore[import-untyped]

    import test_task_files as cases
    from aftertune.errors import TaskError
    from aftertune.study import TaskSpec
    from aftertune.tasks import LoadOptions, load
    from aftertune.tasks.task_files import TaskFolder

    home = cases.folder_with(folder, cases.CHOICE)
    path = home / "own.yaml"
    whole = path.read_bytes()
    text = yaml.safe_dump({**yaml.safe_load(whole), **cases.TEXT}).encode()

    def read(data: bytes) -> Iterable[str]:
        path.write_bytes(data)
        tasks = TaskFolder(home, allow_code=False)
        for entry in tasks.index.values():
            tasks.config(entry)
        if not tasks.index:
            raise TaskError(f"no task{tasks.fault()}")
        if len(data) % _BUILT == 0 or data == whole:
            load((TaskSpec(name="own"),), LoadOptions(include_path=home, source="hub"))
        return tuple(tasks.faults.values())

    read(whole)  # makes lm-eval's index of tasks, which takes many seconds
    return Target([whole, text], read)


# --- Training data ---

_TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "Be short."}, {"role": "user", "content": "Where is it?"},
    {"role": "assistant", "content": "On its way."}, {"role": "user", "content": "When?"},
    {"role": "assistant", "content": "Today.", "weight": 1}]
_CALL = [{"role": "user", "content": "Where is order 7?"},
         {"role": "assistant", "content": None, "tool_calls": [{"id": "c0", "type": "function", "function": {
             "name": "track", "arguments": "{\"order\": 7}"}}]},
         {"role": "tool", "tool_call_id": "c0", "content": "{\"state\": \"sent\"}"},
         {"role": "assistant", "content": "It was sent."}]
_TOOLS = [{"type": "function", "function": {"name": "track", "parameters": {"type": "object", "properties": {
    "order": {"type": "integer"}}}}}]
_TALK = [("human", "Hi"), ("gpt", "Hello."), ("human", "Bye"), ("gpt", "Bye.")]
_TRACK = {"name": "track", "arguments": {"order": 7}}
_TRACKED = [("human", "Where is 7?"), ("function_call", json.dumps(_TRACK)), ("observation", "sent"), ("gpt", "Sent.")]
_GLAIVE = ("USER: Where is 7? <|endoftext|>\n\nASSISTANT: <functioncall> {\"name\": \"track\", \"arguments\": "
           "'{\"order\": 7}'} <|endoftext|>\n\nFUNCTION RESPONSE: {\"state\": \"sent\"}\n\nASSISTANT: Sent. "
           "<|endoftext|>")


def _said(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"from": who, "value": text} for who, text in turns]


#: Form -> rows in it.
ROWS: dict[str, list[dict[str, Any]]] = {
    "chat": [{"messages": _TURNS}, {"messages": _CALL, "tools": _TOOLS}],
    "sharegpt": [{"system": "Be short.", "conversations": _said(_TALK)},
                 {"conversations": _said(_TRACKED), "tools": json.dumps(_TOOLS)}],
    "alpaca": [{"instruction": "Add.", "input": "1 2", "output": "3"},
               {"instruction": "Again.", "input": "", "output": "4", "history": [["Add 1 2.", "3"]],
                "system": "Be short."}],
    "prompt": [{"prompt": "say w7", "completion": " w7"},
               {"prompt": _TURNS[:2], "completion": [_TURNS[2]]}],
    "dolly": [{"instruction": "Name it.", "context": "A mug.", "response": "Mug.", "category": "closed_qa"}],
    "glaive": [{"system": 'SYSTEM: You have functions - {"name": "track", "parameters": {}}', "chat": _GLAIVE}],
    "preference": [{"prompt": "Where?", "chosen": "Here.", "rejected": "No."},
                   {"chosen": _TURNS, "rejected": _TURNS[:2]}],
    "text": [{"text": "All of this is learned."}, {"text": "And this."}],
}


def _tokenizer() -> Any:
    import eval_cases

    return eval_cases.byte_tokenizer(template=eval_cases.CHAT)


def _examples(path: Path) -> Callable[[bytes], Iterable[str]]:
    """Reads a data file, removes repeats, splits and encodes; rows that cannot be read are left out in every other
    file, as its size decides."""
    from aftertune.tuning.data import ReadReport, read_examples
    from aftertune.tuning.rows import ReadOptions
    from aftertune.tuning.split import SplitKeys, seeded_order, without_repeats
    from aftertune.tuning.tokenize import EncodeOptions, encode_all

    tokenizer = _tokenizer()

    def read(data: bytes) -> Iterable[str]:
        path.write_bytes(data)
        report = ReadReport()
        skip = bool(len(data) % 2)
        examples = read_examples(path, ReadOptions(skip_bad=skip), report)
        kept, _, _ = without_repeats(examples, "normalised")
        keys = SplitKeys.of(kept, 0.1)
        seeded_order(kept, 0)
        for example in kept:
            json.dumps(example.row())
        template = ("chat", "chat", "chat", "alpaca", "plain")[len(data) % 5]
        encoded = encode_all(kept, tokenizer, EncodeOptions(template, 512, skip_bad=skip))
        return [*report.notes, *keys.notes(kept, 0.1, str(path)), *encoded.notes]

    return read


def _rows(form: str) -> Callable[[Path], Target]:
    def open_(folder: Path) -> Target:
        rows = [json.dumps(row) for row in ROWS[form]]
        return Target(["".join(f"{row}\n" for row in rows).encode(), f"{rows[-1]}\n".encode()],
                      _examples(folder / "rows.jsonl"))
    return open_


def _json_list(folder: Path) -> Target:
    lists: list[Any] = list(ROWS.values())
    return Target([json.dumps(v).encode() for v in (*lists, {"version": 1, "data": ROWS["alpaca"]})],
                  _examples(folder / "rows.json"))


def _csv(folder: Path) -> Target:
    tables = ("prompt,completion\nsay w1,w1\nsay w2,w2\n\"say, w3\",\"w\"\"3\nw4\"\n",
              "sep=;\nprompt;completion\nsay w1;w1\nsay w2;w2\n",
              ",instruction,input,output\n0,Add.,1 2,3\n1,Add.,,4\n",
              "text\nAll of this.\nAnd this.\n", "\ufeffinstruction,context,response\nName it.,A mug.,Mug.\n")
    return Target([t.encode() for t in tables], _examples(folder / "rows.csv"))


def _parquet(folder: Path) -> Target:
    import pyarrow as pa
    from pyarrow import parquet

    _checked_in_a_fork()
    seeds = []
    for rows in (ROWS["prompt"][:1] * 3, ROWS["chat"][:1], ROWS["sharegpt"][:1], ROWS["text"]):
        parquet.write_table(pa.Table.from_pylist(rows), folder / "seed.parquet")
        seeds.append((folder / "seed.parquet").read_bytes())
    return Target(seeds, _examples(folder / "rows.parquet"))


# --- Models, tokenizers and adapters ---


def _model_folder(folder: Path) -> Path:
    """A tiny Llama with tokenizer, chat template and all JSON files."""
    import eval_cases

    base: Path = eval_cases.byte_folder(folder / "base", template=eval_cases.CHAT)
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    (base / "special_tokens_map.json").write_text(json.dumps(tokens))
    return base


def _loads(folder: Path, name: str, more: Sequence[bytes] = ()) -> Target:
    """A file of a model: its folder is checked, and its tokenizer and generation settings are loaded."""
    from aftertune.sources import load_tokenizer, resolve_model
    from aftertune.sources.generation import generation_defaults
    from aftertune.sources.loading import base_shapes, shape_of

    base = _model_folder(folder)
    file = base / name
    tokenizer = load_tokenizer(resolve_model(str(base)))

    def read(data: bytes) -> Iterable[str]:
        file.write_bytes(data)
        source = resolve_model(str(base))
        if name == "config.json":
            shape_of(source)
            base_shapes(source)
        if name in ("config.json", "generation_config.json"):
            generation_defaults(source, tokenizer, sampled=bool(len(data) % 2))
            return ()
        return load_tokenizer(source).notes if "token" in name else ()

    return Target([file.read_bytes(), *more], read)


def _config(folder: Path) -> Target:
    import eval_cases

    others = [json.dumps(eval_cases.family(name).config.to_dict()).encode() for name in ("gpt2", "qwen2", "gemma2")]
    return _loads(folder, "config.json", others)


def _tokenizer_file(folder: Path) -> Target:
    import source_cases

    target = _loads(folder, "tokenizer.json")
    words = source_cases.tiny_tokenizer().backend_tokenizer.to_str().encode()
    return Target([*target.seeds, words], target.read)


def _adapter(folder: Path) -> Target:
    import source_cases
    from aftertune.sources import fingerprint_model, load_model, resolve_adapter, resolve_model
    from aftertune.sources.adapter_loading import add_adapter, remove_adapter

    base = resolve_model(str(_model_folder(folder)))
    identity = fingerprint_model(base)
    adapter = source_cases.tiny_adapter(base.path, folder / "adapter")
    file = adapter / "adapter_config.json"
    model = load_model(base, "float32", "cpu")
    names = set(model.state_dict())

    def read(data: bytes) -> Iterable[str]:
        """Of one file in `_LOADED` the adapter is loaded too."""
        nonlocal model
        file.write_bytes(data)
        source = resolve_adapter(str(adapter), base, identity)
        if len(data) % _LOADED:
            return ()
        try:
            model = remove_adapter(add_adapter(model, source, device="cpu"))
        finally:
            if set(model.state_dict()) != names:
                model = load_model(base, "float32", "cpu")
        return ()

    return Target([file.read_bytes()], read)


def _safetensors(folder: Path) -> Target:
    from aftertune.sources import fingerprint_model, resolve_model

    base = _model_folder(folder)
    file = base / "model.safetensors"
    data = file.read_bytes()
    small = _small_safetensors(folder)

    def read(data: bytes) -> Iterable[str]:
        from aftertune.sources.tensors import read_bytes

        file.write_bytes(data)
        for _ in read_bytes(file):
            pass
        fingerprint_model(resolve_model(str(base)))
        return ()

    return Target([data, small], read)


def _small_safetensors(folder: Path) -> bytes:
    import source_cases

    small: Path = source_cases.write_folder(folder / "small")
    return (small / "model.safetensors").read_bytes()


def _gguf(folder: Path) -> Target:
    import test_sources_gguf
    from aftertune.sources.resolve import check_gguf
    from aftertune.sources.tensors import read_gguf

    seeds = [test_sources_gguf.write_gguf(folder / f"{kind}.gguf", kind=kind).read_bytes() for kind in ("F32", "Q8_0")]
    path = folder / "model.gguf"

    def read(data: bytes) -> Iterable[str]:
        path.write_bytes(data)
        check_gguf(path, str(path))
        contents = read_gguf(path)
        contents.function_metadata()
        contents.tokenizer_metadata()
        return ()

    return Target(seeds, read)


def _index(folder: Path) -> Target:
    import source_cases
    from aftertune.sources import resolve_model

    base = source_cases.write_folder(folder / "shards", shards=2)
    file = base / "model.safetensors.index.json"

    def read(data: bytes) -> Iterable[str]:
        file.write_bytes(data)
        resolve_model(str(base))
        return ()

    return Target([file.read_bytes()], read)


def _template(_folder: Path) -> Target:
    """A chat template: it writes a conversation for an evaluation and for a fine-tune."""
    from aftertune.errors import AftertuneError
    from aftertune.tasks.chat_template import date_note, get_chat_template, template_date
    from aftertune.tuning.chat_turns import ChatWriter, Conversation
    from aftertune.tuning.template_check import trl_templates

    tokenizer = _tokenizer()
    files = sorted(trl_templates(), key=lambda p: p.stat().st_size)[:12]

    def read(data: bytes) -> Iterable[str]:
        tokenizer.chat_template = data.decode("utf-8", "replace")
        notes = [date_note(tokenizer, None) or ""]
        day = template_date(tokenizer, None)
        failed: AftertuneError | None = None
        try:
            template = get_chat_template(tokenizer, day)
            if template is not None:
                template.render(_TURNS[:2])
        except AftertuneError as error:
            failed = error
        ChatWriter(tokenizer, day).turn(Conversation(_TURNS), 2)
        if failed is not None:
            raise failed
        return notes

    return Target([file.read_bytes() for file in files], read)


# --- Our own files ---


def _checkpoint(folder: Path) -> Target:
    from aftertune.tuning.checkpoints import MANIFEST, Checkpoints

    whole = folder / "checkpoint-2"
    whole.mkdir()
    (whole / "course.json").write_text("{}")
    checkpoints = Checkpoints(folder, "t-1")
    checkpoints.seal(whole, "cpu")

    def read(data: bytes) -> Iterable[str]:
        whole.mkdir(exist_ok=True)
        (whole / "course.json").write_text("{}")
        (whole / MANIFEST).write_bytes(data)
        checkpoints.threads()
        checkpoints.begun()
        checkpoints.check("cpu")
        checkpoints.newest()
        return ()

    return Target([(whole / MANIFEST).read_bytes()], read)


def _manifest(folder: Path) -> Target:
    """aftertune.json of a fine-tune: read for a run that is repeated, and for the lineage of an adapter."""
    import source_cases
    from aftertune.sources import fingerprint_model, resolve_adapter, resolve_model
    from aftertune.tuning.output import MANIFEST, read_manifest
    from aftertune.values import plain

    project = TESTS / "data" / "version_before" / "project"
    base = resolve_model(str(_model_folder(folder)))
    identity = fingerprint_model(base)
    adapter = source_cases.tiny_adapter(base.path, folder / "adapter")
    seeds = [json.dumps({**json.loads(p.read_bytes()), "base": plain(identity), "result": None}).encode()
             for p in sorted(project.rglob(MANIFEST))]

    def read(data: bytes) -> Iterable[str]:
        (adapter / MANIFEST).write_bytes(data)
        read_manifest(adapter)
        resolve_adapter(str(adapter), base, identity)
        return ()

    return Target(seeds, read)


def _bundle(folder: Path) -> Target:
    """Lines of a bundle: their hashes are those of the manifest, and every score and verdict is computed again."""
    import pytest

    import bundle_cases
    import early_cases
    from aftertune.bundle import export_bundle, files, verify_bundle
    from aftertune.comparison import compare
    from aftertune.errors import LONGEST_MESSAGE, NotProven
    from aftertune.ledger import Ledger

    bundle = folder / "bundle"
    with Ledger(folder / "ledger.db") as ledger, pytest.MonkeyPatch.context() as patch:
        bundle_cases.hash_documents(patch)
        base, tuned = (early_cases.store(ledger, model.source, model, {"one": values}) for model, values in zip(
            (early_cases.BASE, early_cases.STRANGER), early_cases.changed(6, 0.5, 1, 2), strict=True))
        compare(base, tuned, ledger=ledger)
        export_bundle(ledger, None, bundle, title="Broken")
    names = [n for n in files.names_in(bundle) if n.startswith("ledger/") and (bundle / n).stat().st_size]
    whole = {name: (bundle / name).read_bytes() for name in names}
    manifest = json.loads((bundle / files.MANIFEST).read_text())
    facts = {k: v for k, v in manifest.items() if k not in ("files", "format", "version")}
    marks = {b'"responses"': files.answers_file(0), b'"verdict"': files.COMPARISONS}

    def read(data: bytes) -> Iterable[str]:
        name = next((name for mark, name in marks.items() if mark in data), files.EVALUATIONS)
        (bundle / name).write_bytes(data)
        files.write_manifest(bundle, facts)
        try:
            proof = verify_bundle(bundle).proof
        finally:
            (bundle / name).write_bytes(whole[name])
        texts = [*proof.failed, *proof.unchecked, *proof.from_values]
        if proof.failed and max(map(len, texts)) <= LONGEST_MESSAGE:
            raise NotProven(proof.failed[0])  # counted as refused
        return texts

    return Target([whole[name] for name in (files.EVALUATIONS, *marks.values())], read)


KINDS: dict[str, Kind] = {
    "record": Kind("Markdown record", "markdown", _record),
    "tables": Kind("Markdown tables", "markdown", _tables),
    "results": Kind("results of lm-eval", "json", _results),
    "samples": Kind("samples of lm-eval", "jsonl", _samples),
    "lighteval": Kind("results of lighteval", "json", _lighteval),
    "inspect": Kind("log of inspect_ai, .json", "json", _inspect),
    "inspect-eval": Kind("log of inspect_ai, .eval", "bytes", _inspect_archive),
    "every-eval-ever": Kind("Every Eval Ever", "json", _every_eval_ever),
    "eee-samples": Kind("Every Eval Ever, samples", "jsonl", lambda folder: _every_eval_ever(folder, rows=True)),
    "study": Kind("study", "yaml", _study),
    "task": Kind("task file", "yaml", _task),
    **{f"rows-{form}": Kind(f"data rows: {form}", "jsonl", _rows(form)) for form in ROWS},
    "rows-json": Kind("data rows: one JSON list", "json", _json_list),
    "rows-csv": Kind("data rows: CSV", "csv", _csv),
    "rows-parquet": Kind("data rows: Parquet", "bytes", _parquet),
    "config": Kind("config.json", "json", _config),
    "generation": Kind("generation_config.json", "json", lambda folder: _loads(folder, "generation_config.json")),
    "tokenizer": Kind("tokenizer.json", "json", _tokenizer_file),
    "tokenizer-config": Kind("tokenizer_config.json", "json", lambda folder: _loads(folder, "tokenizer_config.json")),
    "tokens-map": Kind("special_tokens_map.json", "json", lambda folder: _loads(folder, "special_tokens_map.json")),
    "index": Kind("index of shards", "json", _index),
    "safetensors": Kind("safetensors header", "safetensors", _safetensors),
    "gguf": Kind("GGUF header", "binary", _gguf),
    "adapter": Kind("adapter config", "json", _adapter),
    "template": Kind("chat template", "template", _template, seconds=7.0),
    "checkpoint": Kind("checkpoint manifest", "json", _checkpoint),
    "manifest": Kind("manifest of a fine-tune", "json", _manifest),
    "bundle": Kind("lines of a bundle", "jsonl", _bundle),
}


def prepare(folder: Path) -> None:
    """Settings of the process for all kinds: no network, caches in ``folder``, the helpers of the tests."""
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))
    os.environ |= {"HF_HUB_OFFLINE": "1", "AFTERTUNE_CACHE": str(folder / "cache"), "TOKENIZERS_PARALLELISM": "false",
                   "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1"}


def open_kind(name: str, folder: Path) -> Target:
    """The target of a kind, in a new folder below ``folder``."""
    home = folder / name
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    prepare(folder)
    return KINDS[name].open(home)
