"""The bounds of everything that is read: one number for each, and the table of them in SECURITY.md.

    bounds.STUDY_CHARACTERS          262144
    print(bounds.table())            `python -m aftertune.bounds`: the table in Markdown

What exceeds a bound is refused in one line, or left out with a note that says so. A number stands here and nowhere
else; the module that reads takes it from here. Where a row has no bound of memory or time of its own, both follow from
its size and number, because reading takes time and memory in proportion to them (`benchmarks/hostile.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

Number = TypeVar("Number", int, float)
#: The columns of the table: how much text or how many bytes; how deep and how many; memory and processor time.
BoundKind = Literal["size", "number", "memory and time"]
KINDS: tuple[BoundKind, ...] = ("size", "number", "memory and time")
MIB, GIB = 2**20, 2**30


@dataclass(frozen=True, slots=True)
class Bound:
    """One bound. reader: what is read; text: the bound in words, with its number."""

    reader: str
    kind: BoundKind
    value: float
    text: str


#: Every bound, in the order of the table.
BOUNDS: list[Bound] = []


def _bound(value: Number, reader: str, kind: BoundKind, words: str) -> Number:
    """Add a bound to the table and return its number. words: with {} where the number belongs."""
    size = f"{value // GIB:,} GiB" if value % GIB == 0 and value else f"{value // MIB:,} MiB" \
        if value % MIB == 0 and value else f"{value:,} bytes"
    number = size if "bytes" in words else f"{value:,}" if isinstance(value, int) else f"{value:g}"
    BOUNDS.append(Bound(reader, kind, value, words.replace("{} bytes", "{}").format(number)))
    return value


_STUDY = "study file (YAML)"
STUDY_CHARACTERS = _bound(2**18, _STUDY, "size", "{} characters")
STUDY_DEPTH = _bound(40, _STUDY, "number", "{} levels")
STUDY_VALUES = _bound(50_000, _STUDY, "number", "{} values, each alias counted as what it stands for")
STUDY_TUNINGS = _bound(1000, _STUDY, "number", "{} tunings of a matrix")
STUDY_CROSSED = _bound(20, _STUDY, "number", "{} times as many combinations before `exclude`")
STUDY_MATCHED = _bound(2_000_000, _STUDY, "number", "{} comparisons of combinations with `include` and `exclude`")

_DATA = "training data"
DATA_ROW = _bound(32 * MIB, _DATA, "size", "{} bytes of a row")
PARQUET_TEXT = _bound(2**26, _DATA, "size", "Parquet: {} characters unpacked")
PARQUET_TEXT_PER_BYTE = _bound(1000, _DATA, "size", "and {} more for each byte of the file")
PARQUET_ROWS = _bound(100_000_000, _DATA, "number", "Parquet: {} rows")
PARQUET_ROWS_PER_BYTE = _bound(16, _DATA, "number", "{} rows for each byte of the file")
PARQUET_VALUES = _bound(1_000_000, _DATA, "number", "{} values of a column in one row")
PARQUET_BATCH = _bound(256, _DATA, "memory and time", "Parquet: {} rows unpacked at once")
CSV_COLUMNS = _bound(10_000, _DATA, "number", "CSV: {} columns")

_PARQUET = "metadata of a Parquet file"
PARQUET_MEMORY = _bound(4 * GIB, _PARQUET, "memory and time",
                        "{} bytes and twice the size of the file, in a process of its own")
PARQUET_SECONDS = _bound(60, _PARQUET, "memory and time", "{} s of processor time")

_PROMPTS = "list of prompts (replay from the base)"
PROMPTS_BYTES = _bound(16 * MIB, _PROMPTS, "size", "{} bytes")

_TASK = "task file of lm-eval (YAML)"
TASK_BYTES = _bound(5_000_000, _TASK, "size", "{} bytes")
TASK_FILES = _bound(50_000, _TASK, "number", "{} files in a folder")
TASK_MEMORY = _bound(256 * MIB, _TASK, "memory and time", "{} bytes with its includes")
TASK_SECONDS = _bound(5.0, _TASK, "memory and time", "{} s")

TASK_FAULT_LINES = _bound(1_000_000, _TASK, "number", "{} lines of a data file that are searched for a fault")
TASK_FAULT_BYTES = _bound(200_000_000, _TASK, "size", "{} bytes of a data file that are searched for a fault")

_TARGET = "rows of a target task"
TARGET_ROW = _bound(32 * MIB, _TARGET, "size", "{} bytes of a row")
TARGET_ROWS = _bound(1_000_000, _TARGET, "number", "{} rows")
TARGET_SLICES = _bound(50, _TARGET, "number", "{} slices")

_SCORER = "Python file of a scorer, where it is allowed"
SCORER_BYTES = _bound(5_000_000, _SCORER, "size", "{} bytes")
SCORER_SECONDS = _bound(60.0, _SCORER, "memory and time", "{} s to import it")

_ANSWER = "answer of a model (filters and metrics of a task)"
ANSWER_SECONDS = _bound(5.0, _ANSWER, "memory and time", "{} s for an answer")
ANSWER_SECONDS_EACH = _bound(0.01, _ANSWER, "memory and time",
                             "and {} s more for each answer where a filter takes all answers of a task at once")

_TEMPLATE = "chat template, template of a task"
TEMPLATE_CHARACTERS = _bound(20_000_000, _TEMPLATE, "size", "{} characters of a rendered text")
TEMPLATE_MEMORY = _bound(512 * MIB, _TEMPLATE, "memory and time", "{} bytes for a rendering")
TEMPLATE_SECONDS = _bound(5.0, _TEMPLATE, "memory and time", "{} s for a rendering")

_MODEL = "model folder (JSON files)"
MODEL_JSON = _bound(256 * MIB, _MODEL, "size", "{} bytes of a file")
MODEL_LAYERS = _bound(10_000, _MODEL, "number", "{} layers, and no more than the weights have")
MODEL_WIDTH = _bound(2**22, _MODEL, "number", "{} units of a layer, and heads")
MODEL_LABELS = _bound(100_000, _MODEL, "number", "{} labels or experts")
MODEL_POSITIONS = _bound(2**27, _MODEL, "number", "{} positions")
MODEL_VOCABULARY = _bound(2**26, _MODEL, "number", "{} tokens of the vocabulary")
MODEL_NAME = _bound(4096, _MODEL, "size", "{} characters of a name or path in it")

README_BYTES = _bound(MIB, "README.md of a model", "size", "{} bytes; a longer one is never replaced")

_SAFETENSORS = "safetensors"
SAFETENSORS_HEADER = _bound(100_000_000, _SAFETENSORS, "size", "{} bytes of a header, and no more than the file has")

_GGUF = "GGUF"
GGUF_TENSORS = _bound(100_000, _GGUF, "number", "{} tensors")
GGUF_KEYS = _bound(10_000, _GGUF, "number", "{} keys")
GGUF_VALUES = _bound(5_000_000, _GGUF, "number", "{} values in arrays, and no more than the file can hold")
GGUF_DIMENSIONS = _bound(4, _GGUF, "number", "{} dimensions of a tensor")
GGUF_NESTED = _bound(2, _GGUF, "number", "{} nested arrays")
GGUF_MEMORY = _bound(4 * GIB, _GGUF, "memory and time",
                     "{} bytes and twice the size of the file, in a process of its own")
GGUF_SECONDS = _bound(120, _GGUF, "memory and time", "{} s of processor time")
GGUF_BYTES_PER_SECOND = _bound(20_000_000, _GGUF, "memory and time", "and 1 s more for each {} bytes of the file")

_RECORD = "Markdown record"
RECORD_BYTES = _bound(4 * MIB, _RECORD, "size", "{} bytes")
RECORD_LINE = _bound(20_000, _RECORD, "size", "{} characters of a line")
RECORD_HTML = _bound(2**20, _RECORD, "size", "{} characters of an HTML table")
RECORD_TITLE = _bound(400, _RECORD, "size", "{} characters of a heading")
RECORD_CELL = _bound(300, _RECORD, "size", "{} characters of a cell with a figure")
RECORD_CELLS = _bound(100_000, _RECORD, "number", "{} cells")
RECORD_COLUMNS = _bound(300, _RECORD, "number", "{} columns of a table")
RECORD_SPAN = _bound(60, _RECORD, "number", "{} rows or columns that a cell spans")
RECORD_RUNS = _bound(500, _RECORD, "number", "{} tables with other scores of one model")
RECORD_FACTS = _bound(100, _RECORD, "number", "{} facts below a heading")
RECORD_NOTES = _bound(200, _RECORD, "number", "{} notes")
RECORD_REMARKS = _bound(200, _RECORD, "number", "{} remarks of a kind")
RECORD_LEAD = _bound(120, _RECORD, "size", "{} characters of the first words of a remark")
RECORD_FACT = _bound(4000, _RECORD, "size", "{} characters of a line that are searched for facts")
RECORD_CONTEXT = _bound(20_000, _RECORD, "size", "{} characters above a table that say how it was made")
RECORD_SECONDS = _bound(300.0, _RECORD, "memory and time", "{} s")

_SERVER = "answer of a model's server"
SERVER_ANSWER = _bound(64 * MIB, _SERVER, "size", "{} bytes of an answer")
SERVER_VALUES = _bound(5_000_000, _SERVER, "number", "{} commas and brackets, which separate values")
SERVER_SECONDS = _bound(600, _SERVER, "memory and time",
                        "{} s for a complete answer (`--engine-args timeout=`); 10 s for a question about the server")

_RESULTS = "results of other tools (JSON)"
RESULTS_BYTES = _bound(512 * MIB, _RESULTS, "size", "{} bytes unpacked")
RESULTS_LINE = _bound(64 * MIB, _RESULTS, "size", "{} characters of a line of samples")
RESULTS_DIGITS = _bound(300, _RESULTS, "size", "{} digits of a number")
RESULTS_VALUES = _bound(30_000_000, _RESULTS, "number", "{} commas and brackets, which separate values")
RESULTS_LINE_VALUES = _bound(3_000_000, _RESULTS, "number", "and {} of a line of samples")
RESULTS_DEPTH = _bound(100, _RESULTS, "number", "{} levels")
RESULTS_TASKS = _bound(10_000, _RESULTS, "number", "{} tasks and groups")
RESULTS_MEMORY = _bound(6 * GIB, _RESULTS, "memory and time", "{} bytes for a file, without its samples")
RESULTS_SECONDS = _bound(120.0, _RESULTS, "memory and time", "{} s for a file, without its samples")

_BUNDLE = "bundle of results (`aftertune verify`)"
BUNDLE_MANIFEST = _bound(16 * MIB, _BUNDLE, "size", "{} bytes of the manifest")
BUNDLE_LINE = _bound(64 * MIB, _BUNDLE, "size", "{} bytes of a line")
BUNDLE_VALUES = _bound(2_000_000, _BUNDLE, "number", "{} commas and brackets of a line, which separate values")
BUNDLE_EVALUATIONS = _bound(10_000, _BUNDLE, "number", "{} evaluations")

_LOG = "packed log of inspect_ai"
LOG_BYTES = _bound(4 * GIB, _LOG, "size", "{} bytes unpacked")

_DETAILS = "details of lighteval (Parquet)"
DETAILS_ROWS = _bound(10_000_000, _DETAILS, "number", "{} rows")
DETAILS_CELL = _bound(MIB, _DETAILS, "size", "{} characters of a cell that are read as a Python value")
DETAILS_TEXT = _bound(2**26, _DETAILS, "memory and time", "{} characters unpacked at once")

_EXAMPLES = "rows that a tuning leaves in its folder"
EXAMPLES_BYTES = _bound(MIB, _EXAMPLES, "size", "{} bytes")
EXAMPLES_TEXT = _bound(8000, _EXAMPLES, "size",
                       "{} characters of a part of a row; the middle of a longer one is left out")
EXAMPLES_PARTS = _bound(20, _EXAMPLES, "number", "{} parts of a row")

_VIEW = "request to `aftertune view`"
VIEW_QUERY = _bound(8192, _VIEW, "size", "{} bytes of an address")
VIEW_PARTS = _bound(8, _VIEW, "number", "{} parts of a page that one browser listens to")
VIEW_LISTENERS = _bound(100, _VIEW, "number", "{} browsers that listen for changes at once")
VIEW_BODY = _bound(2**16, _VIEW, "size", "{} bytes of a form")
VIEW_DOCUMENT = _bound(2**18, _VIEW, "size", "{} bytes of a form with a document to audit")
VIEW_PROMPT = _bound(4000, _VIEW, "size", "{} characters of a prompt for both models")
VIEW_TOKENS = _bound(512, _VIEW, "memory and time", "{} tokens that a model writes")


def table() -> str:
    """The table of all bounds in Markdown, with a row for each thing that is read."""
    lines = ["| what is read | size | depth and number | memory and time |", "|---|---|---|---|"]
    for reader in dict.fromkeys(bound.reader for bound in BOUNDS):
        cells = ["; ".join(b.text for b in BOUNDS if b.reader == reader and b.kind == kind) for kind in KINDS]
        lines.append(f"| {reader} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
