"""Every bound of what is read: SECURITY.md shows the table, and what exceeds a bound is one line, or is left out with a
note."""

from __future__ import annotations

import ast
import gzip
import json
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

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


def json_results(text: str) -> Callable[[Path], object]:
    """A results file through everything that reads one."""
    def read(folder: Path) -> object:
        from aftertune.exchange import import_results
        from aftertune.ledger import Ledger

        with Ledger(folder / "ledger.db") as ledger:
            return import_results(written(folder / "results.json", text), ledger=ledger)
    return read


def nested_groups(count: int) -> str:
    """Results with groups that are in one another."""
    groups = {f"g{i}": {"acc,none": 0.5} for i in range(count)}
    return json.dumps({"results": {"t": {"acc,none": 0.5}}, "groups": groups, "group_subtasks": {
        f"g{i}": [f"g{i + 1}"] if i + 1 < count else ["t"] for i in range(count)}})


def packed_log(folder: Path) -> object:
    from aftertune.exchange.inspect_logs import read_eval

    with zipfile.ZipFile(folder / "log.eval", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("header.json", " " * 2_000)
    return read_eval(folder / "log.eval")


def details(folder: Path) -> object:
    from aftertune.exchange.lighteval_files import _rows

    parquet(folder, {"predictions": ["[1.0]"] * 9})
    return list(_rows(folder / "rows.parquet"))


def parquet(folder: Path, columns: dict[str, list[Any]]) -> Path:
    import pyarrow
    from pyarrow import parquet as files

    files.write_table(pyarrow.table(columns), folder / "rows.parquet")
    return folder / "rows.parquet"


def parquet_rows(columns: dict[str, list[Any]]) -> Callable[[Path], object]:
    from aftertune.tuning.rows import ReadOptions, read_rows

    return lambda folder: list(read_rows(parquet(folder, columns), ReadOptions(), []))


def csv_rows(text: str) -> Callable[[Path], object]:
    from aftertune.tuning.csv_rows import read_csv_rows

    def read(folder: Path) -> None:
        for row in read_csv_rows(written(folder / "rows.csv", text), "utf-8", []):
            if isinstance(row.value, AftertuneError):
                raise row.value
    return read


def target(text: str) -> Callable[[Path], object]:
    from aftertune.tasks.targets import read_pairs

    return lambda folder: read_pairs(written(folder / "target.jsonl", text))


def config(**fields: Any) -> Callable[[Path], object]:
    from aftertune.sources.config_check import check_fields

    return lambda folder: check_fields(fields, folder / "config.json")


def matrix(text: str) -> Callable[[Path], object]:
    head = "study: s\nbases: {b: {model: m}}\ntasks: [{name: piqa}]\n"
    return study(f"{head}matrix: {{base: b, data: a.jsonl, {text}}}\n")


def many_tasks(folder: Path) -> object:
    from aftertune.tasks.task_files import TaskFolder

    for number in range(4):
        written(folder / f"t{number}.yaml", f"task: t{number}\ndataset_path: json\n")
    return TaskFolder(folder, allow_code=False)


def notes(text: str) -> Callable[[Path], str]:
    """The notes on a Markdown record."""
    from aftertune.exchange.markdown_record import read_record

    return lambda folder: " ".join(n.text for n in read_record(written(folder / "record.md", text)).notes)


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
    "RESULTS_LINE_VALUES": (samples('{"a": [' + "0," * bounds.RESULTS_LINE_VALUES + "0]}"),
                            "more than 3,000,000 commas"),
    "RESULTS_LINE": (samples("{" + " " * bounds.RESULTS_LINE + "}"), "more than 67,108,864 characters"),
    "RESULTS_VALUES": (json_results("[" + "0," * (bounds.RESULTS_VALUES + 1)), "more than 30,000,000 commas"),
    "RESULTS_DEPTH": (json_results('{"results": ' + "[" * 100 + "]" * 100 + "}"), "deeper than 100 levels"),
    "RESULTS_TASKS": (json_results(json.dumps({"results": {str(i): {"acc,none": 0.5} for i in range(10_001)}})),
                      "10,001 tasks and groups, but at most 10,000"),
    "LOG_BYTES": (packed_log, "2,000 bytes unpacked, but the limit is"),
    "DETAILS_ROWS": (details, "9 rows, but the limit is 3"),
    "RESULTS_SECONDS": (json_results(nested_groups(3_000)), "takes more than 0.2 s"),
    "PROMPTS_BYTES": (prompts, "at most 16,777,216"),
    "CSV_COLUMNS": (csv_rows(",".join(f"c{i}" for i in range(bounds.CSV_COLUMNS + 1)) + "\n"), "10,001 columns"),
    "PARQUET_TEXT": (parquet_rows({"text": [f"{i:09}" for i in range(9)]}), "unpacks to more than 50 characters"),
    "PARQUET_ROWS": (parquet_rows({"text": ["a"] * 9}), "that claim 9 rows; at most 3"),
    "PARQUET_ROWS_PER_BYTE": (parquet_rows({"text": ["a"] * 99_999}), "that claim 99,999 rows"),
    "PARQUET_VALUES": (parquet_rows({"text": [["a"] * 9]}), "a column claims 9 values in 1 rows"),
    "TARGET_ROW": (target('{"prompt": "' + "a" * bounds.TARGET_ROW + '"}'), "target.jsonl:1: the row is longer"),
    "TARGET_ROWS": (target('{"prompt": "a", "completion": "b"}\n' * 4), "at most 3 rows"),
    "MODEL_WIDTH": (config(hidden_size=bounds.MODEL_WIDTH + 1), "4,194,304"),
    "MODEL_LABELS": (config(num_labels=bounds.MODEL_LABELS + 1), "100,000"),
    "MODEL_POSITIONS": (config(n_positions=bounds.MODEL_POSITIONS + 1), "134,217,728"),
    "MODEL_VOCABULARY": (config(vocab_size=bounds.MODEL_VOCABULARY + 1), "67,108,864"),
    "STUDY_TUNINGS": (matrix(f"seed: [{', '.join(map(str, range(1001)))}]"), "1,000"),
    "STUDY_CROSSED": (matrix(f"seed: [{', '.join(map(str, range(300)))}], max_steps: "
                             f"[{', '.join(map(str, range(1, 101)))}], exclude: [{{seed: 1}}]"), "30000 combinations"),
    "TASK_FILES": (many_tasks, "more than 3 task files"),
}
#: Bounds that are lowered in their test, because an input that exceeds them is large or slow: where -> another number.
LOWERED: dict[str, tuple[str, float]] = {
    "LOG_BYTES": ("aftertune.exchange.inspect_logs._LIMIT", 1_000),
    "DETAILS_ROWS": ("aftertune.exchange.lighteval_files._ROWS", 3),
    "RESULTS_SECONDS": ("aftertune.bounds.RESULTS_SECONDS", 0.2),
    "PARQUET_TEXT": ("aftertune.tuning.arrow_rows.MAX_TEXT", 50),
    "PARQUET_ROWS": ("aftertune.sources.parquet_check.MAX_ROWS", 3),
    "PARQUET_VALUES": ("aftertune.sources.parquet_check.MAX_VALUES", 8),
    "TARGET_ROWS": ("aftertune.bounds.TARGET_ROWS", 3),
    "TASK_FILES": ("aftertune.tasks.task_files.MAX_FILES", 3),
}
#: Bounds beyond which something is left out with a note, and what the note says.
HEADING = f"# {'h' * (bounds.RECORD_TITLE + 1)}\n\n{HEAD}| piqa | 0.5 |\n"
LEFT_OUT: dict[str, tuple[Callable[[Path], str], str]] = {
    "RECORD_TITLE": (notes(HEADING), "a heading of 401 characters was cut at 400"),
    "RECORD_SPAN": (notes(f"<table><tr><td rowspan=61>a</td></tr></table>\n\n{HEAD}| piqa | 0.5 |\n"),
                    "a cell over 61 rows or columns was left out; at most 60"),
    "RECORD_NOTES": (notes(f"{HEAD}| piqa | 0.5 |\n\n" + "".join(
        f"# {'h' * (bounds.RECORD_TITLE + i)}\n\n" for i in range(1, 203))), "2 further notes are not listed"),
    "RECORD_FACTS": (notes(f"{''.join(f'- fact{i}: {i}{chr(10)}' for i in range(101))}\n\n{HEAD}| piqa | 0.5 |\n"),
                     "more than 100 facts below one heading"),
    "RECORD_FACT": (notes(f"- Command: {'x' * bounds.RECORD_FACT}\n\n{HEAD}| piqa | 0.5 |\n"),
                    "a fact of 4,009 characters was cut at 4,000"),
    "RECORD_REMARKS": (notes("".join(f"- [ ] point {i}\n" for i in range(201)) + f"\n{HEAD}| piqa | 0.5 |\n"),
                       "201 remarks of the kind 'future': only the first 200 were read"),
}
#: Bounds that another test hits: limits of time and memory, and those that only bound how much is searched.
ELSEWHERE = {
    "TARGET_SLICES": "test_target_scorers.py::test_rows_that_cannot_be_judged_are_refused_before_a_model_answers",
    "SCORER_BYTES": "test_target_scorers.py::test_a_file_that_is_not_there_or_too_long_is_refused",
    "SCORER_SECONDS": "test_target_scorers.py::test_an_import_that_does_not_end_has_a_bound",
    "README_BYTES": "test_sources_readme.py::test_a_very_long_readme_is_left_alone",
    "STUDY_MATCHED": "test_bounds.py::test_rules_of_a_matrix_are_bounded",
    "PARQUET_TEXT_PER_BYTE": "test_tuning_rows.py::"
                             "test_a_parquet_file_of_a_repeated_long_value_is_refused_before_it_fills_the_memory",
    "PARQUET_BATCH": "test_bounds.py::test_rows_of_a_parquet_file_are_unpacked_a_few_at_a_time",
    "DETAILS_TEXT": "test_bounds.py::test_rows_of_a_parquet_file_are_unpacked_a_few_at_a_time",
    "PARQUET_MEMORY": "test_bounds.py::test_the_child_that_reads_parquet_metadata_has_limits",
    "PARQUET_SECONDS": "test_bounds.py::test_the_child_that_reads_parquet_metadata_has_limits",
    "TASK_SECONDS": "test_task_files.py::test_a_merge_key_of_aliases_of_aliases_ends",
    "TASK_MEMORY": "test_bounds.py::test_a_task_file_has_a_memory_limit",
    "TASK_FAULT_LINES": "test_bounds.py::test_a_fault_of_task_data_is_searched_in_the_first_part",
    "TASK_FAULT_BYTES": "test_bounds.py::test_a_fault_of_task_data_is_searched_in_the_first_part",
    "ANSWER_SECONDS": "test_bad_inputs_evaluation.py::test_it_is_answered_and_told",
    "ANSWER_SECONDS_EACH": "test_bounds.py::test_a_filter_of_all_answers_has_time_for_each",
    "TEMPLATE_SECONDS": "test_task_files.py::test_a_chat_template_has_limits",
    "MODEL_NAME": "test_bounds.py::test_a_name_in_a_config_has_a_length",
    "GGUF_MEMORY": "test_sources_gguf.py::test_a_gguf_is_read_by_a_child_with_limits",
    "GGUF_SECONDS": "test_sources_gguf.py::test_a_gguf_is_read_by_a_child_with_limits",
    "GGUF_BYTES_PER_SECOND": "test_bounds.py::test_a_larger_gguf_has_more_time_and_memory",
    "RECORD_SECONDS": "test_bounds.py::test_reading_a_record_has_a_time_limit",
    "RECORD_LEAD": "test_bounds.py::test_long_first_words_are_no_remark",
    "RECORD_CONTEXT": "test_bounds.py::test_what_is_far_above_a_table_says_nothing_of_it",
    "SERVER_ANSWER": "test_server_engine.py::test_an_answer_without_end_is_not_read",
    "SERVER_VALUES": "test_server_engine.py::test_an_answer_of_too_many_values_is_refused",
    "SERVER_SECONDS": "test_server_engine.py::test_an_answer_of_too_many_values_is_refused",
    "BUNDLE_MANIFEST": "test_bundle.py::test_a_bundle_is_bounded",
    "BUNDLE_LINE": "test_bundle.py::test_a_bundle_is_bounded",
    "BUNDLE_VALUES": "test_bundle.py::test_a_hostile_line_is_one_message",
    "BUNDLE_EVALUATIONS": "test_bundle.py::test_a_bundle_is_bounded",
    "RESULTS_MEMORY": "test_bounds.py::test_reading_results_has_a_memory_limit",
    "RESULTS_DIGITS": "test_exchange_importing.py::test_hostile_results_files",
    "VIEW_QUERY": "test_view_guard.py::test_sizes_are_bounded",
    "VIEW_BODY": "test_view_guard.py::test_sizes_are_bounded",
    "VIEW_PARTS": "test_view_live.py::test_only_parts_of_pages_are_sent",
    "VIEW_LISTENERS": "test_view_live.py::test_the_number_of_listeners_is_bounded",
    "EXAMPLES_BYTES": "test_view_tunings.py::test_examples_are_read_within_bounds",
    "EXAMPLES_TEXT": "test_view_tunings.py::test_examples_are_read_within_bounds",
    "EXAMPLES_PARTS": "test_view_tunings.py::test_examples_are_read_within_bounds",
    "VIEW_DOCUMENT": "test_view_audit.py::test_the_size_of_a_document_is_bounded",
    "VIEW_PROMPT": "test_view_ask.py::test_prompt_and_tokens_are_bounded",
    "VIEW_TOKENS": "test_view_ask.py::test_prompt_and_tokens_are_bounded",
    "DETAILS_CELL": "test_bounds.py::test_a_long_cell_of_details_stays_a_text"}


def test_security_md_shows_the_table_of_all_bounds() -> None:
    assert bounds.table() in DOCUMENT.read_text(encoding="utf-8")


def test_every_bound_has_a_test() -> None:
    names = {name for name, value in vars(bounds).items()
             if name.isupper() and not name.startswith("_") and isinstance(value, int | float)} - {"MIB", "GIB"}
    assert len(names) == len(bounds.BOUNDS)
    tested = [*EXCEEDED, *LEFT_OUT, *ELSEWHERE]
    assert sorted(names) == sorted(tested)
    assert LOWERED.keys() <= EXCEEDED.keys()
    for where in set(ELSEWHERE.values()):
        file, _, test = where.partition("::")
        tree = ast.parse((Path(__file__).parent / file).read_text(encoding="utf-8"))
        assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, where


@pytest.mark.parametrize("name", EXCEEDED)
def test_what_exceeds_a_bound_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, said = EXCEEDED[name]
    if name in LOWERED:
        monkeypatch.setattr(*LOWERED[name])
        monkeypatch.setattr("aftertune.tuning.arrow_rows.MAX_TEXT_PER_BYTE", 0)
    with pytest.raises(Exception, match=said) as caught:
        read(tmp_path)
    message = str(caught.value)
    assert type(caught.value).__module__.startswith("aftertune.")
    assert getattr(caught.value, "exit_code", 2) == 2
    assert "\n" not in message
    assert len(message) < 1000


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_left_out_beyond_a_bound_is_noted(name: str, tmp_path: Path) -> None:
    read, said = LEFT_OUT[name]
    assert said in read(tmp_path)


def test_reading_results_has_a_memory_limit(tmp_path: Path) -> None:
    # in a process of its own: here the heap that earlier tests have freed could hold the value without new memory
    code = ("import sys; from pathlib import Path; from aftertune import bounds\n"
            "from aftertune.exchange import import_results; from aftertune.ledger import Ledger\n"
            "bounds.RESULTS_MEMORY = 32 * bounds.MIB\n"
            "with Ledger(Path('ledger.db')) as ledger: import_results(Path('results.json'), ledger=ledger)\n")
    written(tmp_path / "results.json", '{"results": {"a": "' + "x" * 2**26 + '"}}')
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "InputError: results.json: reading it needs more than 32 MiB of memory" in done.stderr[-1000:]


def test_rules_of_a_matrix_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aftertune.study.matrix.MATCHED", 10)
    rules = "exclude: [{seed: 0}, {seed: 1}, {seed: 2}]"
    with pytest.raises(AftertuneError, match="has 4 combinations and 3 entries of include and exclude"):
        matrix(f"seed: [0, 1, 2, 3], {rules}")(tmp_path)
    matrix(f"seed: [0, 1, 2, 3], {rules.replace(', {seed: 2}', '')}")(tmp_path)


def test_rows_of_a_parquet_file_are_unpacked_a_few_at_a_time(tmp_path: Path) -> None:
    from aftertune.sources.parquet_check import batch_rows, check_parquet

    metadata = check_parquet(parquet(tmp_path, {"text": [f"{i:099}" for i in range(1_000)]}))
    assert batch_rows(metadata, 10**12) == bounds.PARQUET_BATCH
    assert batch_rows(metadata, 300_000) < 4
    assert batch_rows(metadata, 1) == 1


def test_the_child_that_reads_parquet_metadata_has_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aftertune.sources import parquet_check
    from aftertune.sources.child_process import ChildLimits

    path = parquet(tmp_path, {"text": ["a"]})
    given: list[ChildLimits] = []

    def run(_module: str, _path: Path, limits: ChildLimits) -> tuple[int, bytes]:
        given.append(limits)
        return -24, b""

    monkeypatch.setattr(parquet_check, "run_child", run)
    with pytest.raises(AftertuneError, match="the time limit was reached"):
        parquet_check.check_parquet(path)
    assert given == [ChildLimits(bounds.PARQUET_MEMORY + 2 * path.stat().st_size, bounds.PARQUET_SECONDS)]


def test_metadata_of_a_parquet_file_that_need_too_much_memory_are_one_line(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child said nothing, and the process that reads the rows took what the child may not have."""
    from aftertune.sources import parquet_check

    monkeypatch.setattr(bounds, "PARQUET_MEMORY", 200 * bounds.MIB)
    path = parquet(tmp_path, {f"column {n}": ["a"] for n in range(5_000)})
    size = path.stat().st_size
    with pytest.raises(AftertuneError) as caught:
        parquet_check.check_parquet(path)
    assert str(caught.value) == (
        f"{path}: reading its metadata needs more than {200 + 2 * size // bounds.MIB} MiB of memory, and the file has "
        f"{size:,} bytes; write the file again with fewer columns and row groups")


def test_a_larger_gguf_has_more_time_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aftertune.sources import gguf_child
    from aftertune.sources.child_process import ChildLimits

    size = 3 * bounds.GGUF_BYTES_PER_SECOND
    with (tmp_path / "m.gguf").open("wb") as file:
        file.truncate(size)
    given: list[ChildLimits] = []

    def run(_module: str, _path: Path, limits: ChildLimits) -> tuple[int, bytes]:
        given.append(limits)
        return 0, b'{"facts": {}}'

    monkeypatch.setattr(gguf_child, "run_child", run)
    assert gguf_child.facts_from_child(tmp_path / "m.gguf") == {}
    assert given == [ChildLimits(bounds.GGUF_MEMORY + 2 * size, bounds.GGUF_SECONDS + 3)]


def test_a_task_file_has_a_memory_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aftertune.tasks.task_files import read_config

    given: list[int] = []

    @contextmanager
    def exceeded(new_bytes: int) -> Iterator[None]:
        given.append(new_bytes)
        yield
        raise MemoryError

    monkeypatch.setattr("aftertune.tasks.task_files.memory_limit", exceeded)
    with pytest.raises(AftertuneError, match=r"takes more than 5 s or 256 MB to read"):
        read_config(written(tmp_path / "t.yaml", "task: t\n"))
    assert given == [bounds.TASK_MEMORY]


@pytest.mark.parametrize(("name", "least"), [("MAX_LINES", 3), ("MAX_BYTES", 30)])
def test_a_fault_of_task_data_is_searched_in_the_first_part(name: str, least: int, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    from aftertune.tasks import data_faults

    path = written(tmp_path / "rows.jsonl", '{"a": 1}\n' * 4 + "{\n")
    assert str(data_faults._json_fault(path)).startswith(":5: ")
    monkeypatch.setattr(data_faults, name, least)
    assert data_faults._json_fault(path) is None


def test_a_filter_of_all_answers_has_time_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from aftertune.tasks import scoring

    given: list[float] = []
    monkeypatch.setattr(scoring, "time_limit", lambda seconds: given.append(seconds) or nullcontext())
    scoring._apply_filters(SimpleNamespace(instances=[0] * 300, apply_filters=lambda: None))
    assert given == [bounds.ANSWER_SECONDS + 300 * bounds.ANSWER_SECONDS_EACH]


def test_a_name_in_a_config_has_a_length(tmp_path: Path) -> None:
    from aftertune.sources import config_check

    allowed, _ = config_check._NAME
    assert allowed("x" * bounds.MODEL_NAME)
    assert not allowed("x" * (bounds.MODEL_NAME + 1))


def test_long_first_words_are_no_remark(tmp_path: Path) -> None:
    from aftertune.exchange.markdown_record import read_record

    items = "".join(f"- **{'w' * n}**: it is so\n" for n in (bounds.RECORD_LEAD, bounds.RECORD_LEAD + 1))
    document = read_record(written(tmp_path / "r.md", f"{HEAD}| piqa | 0.5 |\n\n## Observations\n\n{items}"))
    assert [len(r.lead) for r in document.remarks if r.kind == "observation"] == [bounds.RECORD_LEAD]


def test_what_is_far_above_a_table_says_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aftertune.exchange.markdown_record import read_record

    def error_of(limit: int) -> str:
        monkeypatch.setattr(bounds, "RECORD_CONTEXT", limit)
        text = "words before it\n\nErrors are standard deviations.\n\n| Task | Value | Stderr |\n|---|---|---|\n" \
            "| piqa | 0.5 | 0.1 |\n"
        return read_record(written(tmp_path / "r.md", text)).scores[0].error_of

    assert error_of(20_000) == "a standard deviation"
    assert error_of(10) != "a standard deviation"


def test_a_long_cell_of_details_stays_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    from aftertune.exchange import lighteval_files

    monkeypatch.setattr(lighteval_files, "_TEXT", 9)
    assert lighteval_files._value("[1, 2, 3]") == [1, 2, 3]
    assert lighteval_files._value("[1, 2, 34]") == "[1, 2, 34]"


def test_reading_a_record_has_a_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "RECORD_SECONDS", 0.2)
    with pytest.raises(AftertuneError, match=r"record.md: reading it takes more than 0.2 s"):
        record(HEAD + "".join(f"| own_{i} | 0.5 |\n" for i in range(9_000)))(tmp_path)


def test_every_number_of_the_table_is_of_a_known_kind() -> None:
    assert {bound.kind for bound in bounds.BOUNDS} == set(bounds.KINDS)
    assert all(bound.value > 0 for bound in bounds.BOUNDS)
