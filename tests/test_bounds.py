"""Every bound of what is read: SECURITY.md shows the table, and what exceeds a bound is one line, or is left out with a
note."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from aftertune import bounds
from aftertune.errors import AftertuneError

DOCUMENT = Path(__file__).parents[1] / "SECURITY.md"
HEAD = "| Task | Value |\n|---|---|\n"


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def study(text: str) -> Callable[[Path], object]:
    from aftertune.study import Study

    return lambda folder: Study.load(written(folder / "study.yaml", text))


def record(text: str) -> Callable[[Path], object]:
    from aftertune.exchange import audit

    return lambda folder: audit(written(folder / "record.md", text))


def rows(content: bytes) -> Callable[[Path], object]:
    from aftertune.tuning.text_rows import read_line_rows

    def read(folder: Path) -> None:
        for row in read_line_rows(written(folder / "rows.jsonl", content), "utf-8", []):
            if isinstance(row.value, AftertuneError):
                raise row.value
    return read


def rendering(template: str) -> Callable[[Path], object]:
    from jinja2.sandbox import SandboxedEnvironment

    from aftertune.sources.limits import limited

    return lambda folder: limited(template, lambda: SandboxedEnvironment().from_string(template).render())


def model_json(folder: Path) -> object:
    from aftertune.sources.resolve import read_json

    with (folder / "config.json").open("wb") as file:
        file.truncate(bounds.MODEL_JSON + 1)
    return read_json(folder / "config.json")


def layers(folder: Path) -> object:
    from aftertune.sources.config_check import check_fields

    return check_fields({"num_hidden_layers": bounds.MODEL_LAYERS + 1}, folder / "config.json")


def safetensors(folder: Path) -> object:
    from aftertune.sources.tensors import read_header

    return read_header(written(folder / "m.safetensors", struct.pack("<Q", bounds.SAFETENSORS_HEADER + 1) + b"{}" * 9))


def gguf(tensors: int = 0, keys: int = 0, rest: bytes = b"") -> Callable[[Path], object]:
    from aftertune.sources.gguf_header import check_gguf

    return lambda folder: check_gguf(written(folder / "m.gguf", b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + rest))


def samples(line: str) -> Callable[[Path], object]:
    from aftertune.exchange.files import json_rows

    def read(folder: Path) -> object:
        with gzip.open(folder / "samples.jsonl.gz", "wt", compresslevel=1) as file:
            file.write(line)
        return list(json_rows(folder / "samples.jsonl.gz", limit=bounds.RESULTS_LINE))
    return read


def results(folder: Path) -> object:
    from aftertune.exchange.lm_eval_files import read_results

    with (folder / "results.json").open("wb") as file:
        file.truncate(bounds.RESULTS_BYTES + 1)
    return read_results(folder / "results.json")


def prompts(folder: Path) -> object:
    from aftertune.tuning.general_prompts import PromptList

    with (folder / "prompts.txt").open("wb") as file:
        file.truncate(bounds.PROMPTS_BYTES + 1)
    return PromptList.read(folder / "prompts.txt")


def task_file(folder: Path) -> object:
    from aftertune.tasks.task_files import read_config

    return read_config(written(folder / "t.yaml", "# " + "x" * bounds.TASK_BYTES))


ARRAY = struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9)
#: The name of a bound -> what exceeds it, and what the one line says.
EXCEEDED: dict[str, tuple[Callable[[Path], object], str]] = {
    "STUDY_CHARACTERS": (study("#" * (bounds.STUDY_CHARACTERS * 4 + 1)), "at most 262,144 characters"),
    "STUDY_DEPTH": (study("a: " + "[" * 50 + "]" * 50), "nested"),
    "STUDY_VALUES": (study("a: &a [" + "1," * 300 + "]\nb: [" + "*a," * 300 + "]\n"), "values"),
    "DATA_ROW": (rows(b'{"text": "' + b"a" * bounds.DATA_ROW + b'"}\n'), "longer than 32 MiB"),
    "PROMPTS_BYTES": (prompts, "at most 16,777,216"),
    "TASK_BYTES": (task_file, "and 5,000,000 are allowed"),
    "TEMPLATE_CHARACTERS": (rendering("{% for i in range(300) %}{{ 'a' * 70000 }}{% endfor %}"),
                            "20,000,000 are allowed"),
    "TEMPLATE_MEMORY": (rendering("{{ 'a' * 2000000000 }}"), "512 MB of memory"),
    "MODEL_JSON": (model_json, "at most 268,435,456"), "MODEL_LAYERS": (layers, "10,000"),
    "SAFETENSORS_HEADER": (safetensors, "its header claims"),
    "GGUF_TENSORS": (gguf(bounds.GGUF_TENSORS + 1), "at most 100,000 are read"),
    "GGUF_KEYS": (gguf(0, bounds.GGUF_KEYS + 1), "at most 10,000 are read"),
    "GGUF_VALUES": (gguf(0, 1, ARRAY + struct.pack("<IQ", 0, bounds.GGUF_VALUES + 1)), "more than 5,000,000 values"),
    "GGUF_NESTED": (gguf(0, 1, ARRAY + struct.pack("<IQIQIQ", 9, 1, 9, 1, 0, 0)), "nested deeper than 2"),
    "GGUF_DIMENSIONS": (gguf(1, 0, struct.pack("<Q", 1) + b"w" + struct.pack("<I", 5)), "at most 4 are allowed"),
    "RECORD_BYTES": (record("x" * (bounds.RECORD_BYTES + 1)), "more than 4,194,304 bytes"),
    "RECORD_LINE": (record(f"{'9' * (bounds.RECORD_LINE + 1)}\n\n{HEAD}| piqa | ? |\n"), "at most 20,000 are read"),
    "RECORD_HTML": (record(f"<table>{'<tr><td>a</td></tr>' + chr(10)}{('b' * 90 + chr(10)) * 12_000}</table>\n"),
                    "at most 1,048,576 are read"),
    "RECORD_CELL": (record(f"{HEAD}| piqa | 0.{'0' * 400} |\n"), "not one figure"),
    "RECORD_CELLS": (record("|" * (bounds.RECORD_CELLS + 1)), "at most 100,000 are read"),
    "RECORD_COLUMNS": (record("| Task " + "| m " * 400 + "|\n" + "|---" * 401 + "|\n| piqa " + "| 0.5 " * 400 + "|\n"),
                       "a table of 401 columns was left out"),
    "RECORD_RUNS": (record("".join(f"{HEAD}| piqa | 0.{i:04} |\n\n" for i in range(600))), "more than 500 tables"),
    "RESULTS_BYTES": (results, "more than 536,870,912 bytes"),
    "RESULTS_LINE": (samples("{" + " " * bounds.RESULTS_LINE + "}"), "more than 67,108,864 characters"),
}
#: Bounds that another file tests, that leave something out with a note, or that are a factor of another one.
ELSEWHERE = {
    "STUDY_TUNINGS": "test_study_matrix.py", "STUDY_CROSSED": "test_study_matrix.py",
    "STUDY_MATCHED": "test_study_matrix.py", "PARQUET_TEXT": "test_tuning_rows.py",
    "PARQUET_TEXT_PER_BYTE": "test_tuning_rows.py", "PARQUET_ROWS": "test_tuning_rows.py",
    "PARQUET_ROWS_PER_BYTE": "test_tuning_rows.py", "PARQUET_VALUES": "test_tuning_rows.py",
    "PARQUET_BATCH": "test_tuning_rows.py", "TASK_FILES": "test_task_files.py", "TASK_MEMORY": "test_task_files.py",
    "TASK_SECONDS": "test_task_files.py", "TEMPLATE_SECONDS": "test_task_files.py",
    "GGUF_MEMORY": "test_sources_gguf.py", "GGUF_SECONDS": "test_sources_gguf.py",
    "GGUF_BYTES_PER_SECOND": "test_sources_gguf.py", "RECORD_TITLE": "test_exchange_tables.py",
    "RECORD_SPAN": "test_exchange_tables.py", "RECORD_FACTS": "test_exchange_tables.py",
    "RECORD_NOTES": "test_exchange_tables.py", "RECORD_SECONDS": "test_bounds.py",
    "SERVER_ANSWER": "test_server_engine.py",
    "RESULTS_DIGITS": "test_exchange_importing.py", "RESULTS_LOG": "test_exchange_inspect.py"}


def test_security_md_shows_the_table_of_all_bounds() -> None:
    assert bounds.table() in DOCUMENT.read_text(encoding="utf-8")


def test_every_bound_has_a_test() -> None:
    names = {name for name, value in vars(bounds).items()
             if name.isupper() and not name.startswith("_") and isinstance(value, int | float)} - {"MIB", "GIB"}
    assert len(names) == len(bounds.BOUNDS)
    assert names == EXCEEDED.keys() | ELSEWHERE.keys()
    assert not EXCEEDED.keys() & ELSEWHERE.keys()
    assert all((Path(__file__).parent / file).is_file() for file in ELSEWHERE.values())


@pytest.mark.parametrize("name", EXCEEDED)
def test_what_exceeds_a_bound_is_one_line(name: str, tmp_path: Path) -> None:
    read, said = EXCEEDED[name]
    with pytest.raises(Exception, match=said) as caught:
        read(tmp_path)
    message = str(caught.value)
    assert type(caught.value).__module__.startswith("aftertune.")
    assert "\n" not in message
    assert len(message) < 1000


def test_reading_a_record_has_a_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "RECORD_SECONDS", 0.2)
    with pytest.raises(AftertuneError, match=r"record.md: reading it takes more than 0.2 s"):
        record(HEAD + "".join(f"| own_{i} | 0.5 |\n" for i in range(9_000)))(tmp_path)


def test_every_number_of_the_table_is_of_a_known_kind() -> None:
    assert {bound.kind for bound in bounds.BOUNDS} == set(bounds.KINDS)
    assert all(bound.value > 0 for bound in bounds.BOUNDS)
