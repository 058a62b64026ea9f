"""Reading data files as people have them: CSV of every program, encodings, JSON lists, Parquet, and bounds."""

from __future__ import annotations

import codecs
import json
import tracemalloc
from pathlib import Path

import pytest

from aftertune.errors import InputError
from aftertune.sources.parquet_check import MAX_ROWS_PER_BYTE
from aftertune.tuning.data import ReadReport, read_examples
from aftertune.tuning.rows import ReadOptions, read_rows

PAIRS = [("Where is order 1?", "In Oslo."), ("Where is order 2; or 3, then?", 'In "Rome".')]
BAD_BYTE = b'{"prompt": "caf\xe9", "completion": "b"}\n'
GOOD = b'{"prompt": "a", "completion": "b"}\n'


def examples(path: Path, content: bytes | str, **options) -> tuple[list[tuple[str, str]], list[str]]:
    """The (prompt, completion) pairs of a file, and the notes but the one on its form."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    report = ReadReport()
    found = [(e.turns[-1][1], e.completion) for e in read_examples(path, ReadOptions(**options), report)]
    return found, [note for note in report.notes if "read as" not in note]


def table(delimiter: str = ",", before: str = "", after: str = "", head: str = "prompt{}completion") -> str:
    """PAIRS as CSV with every cell in quotes. before, after: what each line has besides."""
    def quoted(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    lines = [head.format(delimiter), *(f"{before}{quoted(p)}{delimiter}{quoted(c)}{after}" for p, c in PAIRS)]
    return "".join(line + "\r\n" for line in lines)


@pytest.mark.parametrize(("name", "content", "told"), [
    ("a.csv", table(), None),
    ("a.csv", table(";"), "semicolons as delimiters"),
    ("a.csv", table("\t"), "tabs as delimiters"),
    ("a.csv", table("|"), "vertical bars as delimiters"),
    ("a.tsv", table("\t"), None),
    ("a.tsv", table(","), "commas as delimiters"),
    ("a.csv", "sep=;\r\n" + table(";"), "semicolons as delimiters, which the line sep= names"),
    ("a.csv", "sep=#\n" + table("#"), "'#' as delimiters, which the line sep= names"),
    ("a.csv", table(",", before="7,", head=",prompt{}completion"),
     "the first column left out, because it has no name (an index, as pandas writes it)"),
    ("a.csv", table(",", after=",", head="prompt{}completion,"), "the last column left out, because it has no name"),
    ("a.csv", table(",", after=","), "empty cells at the end of 2 lines left out"),
    ("a.csv", table(",", head="prompt{}completion,"), "the last column left out"),
    ("a.csv", table(", "), None),
    ("a.csv", codecs.BOM_UTF8 + table().encode(), "a byte order mark, which was removed"),
    ("a.csv", table(";").encode("utf-16"), "the encoding UTF-16, which its byte order mark names; semicolons"),
    ("a.csv", "\n\n" + table(), None)])
def test_a_csv_of_every_program_is_read_and_what_was_assumed_is_told_in_one_line(tmp_path, name, content, told):
    found, notes = examples(tmp_path / name, content)
    assert found == PAIRS
    assert len(notes) == (told is not None)
    assert told is None or told in notes[0]


def test_lines_of_a_csv_are_those_where_its_rows_begin(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,completion\n"a\nb",c\n\nd,e\n')
    assert [row.where[-7:] for row in read_rows(tmp_path / "a.csv", ReadOptions(), [])] == ["a.csv:2", "a.csv:5"]


@pytest.mark.parametrize(("line", "found"), [
    ("a,b,c", "the number of cells differs from the first line (3 and 2)"),
    ("a", "the number of cells differs from the first line (1 and 2)"), ('"a"b,c', "not valid CSV ("),
    (b"caf\xe9,b", "byte 0xe9 is not UTF-8")])
def test_only_a_bad_line_of_a_csv_is_left_out(tmp_path, line, found):
    line = line if isinstance(line, bytes) else line.encode()
    content = b"prompt,completion\na,b\n" + line + b"\nc,d\n"
    with pytest.raises(InputError) as refused:
        examples(tmp_path / "a.csv", content)
    assert str(refused.value).startswith(f"{tmp_path / 'a.csv'}:3: ")
    assert found in str(refused.value)
    assert "--skip-bad" in str(refused.value)
    kept, notes = examples(tmp_path / "a.csv", content, skip_bad=True)
    assert kept == [("a", "b"), ("c", "d")]
    assert "1 of 3 rows are unreadable" in notes[0]


def test_a_quote_that_is_not_closed_hides_no_rows(tmp_path):
    with pytest.raises(InputError, match=r"a\.csv:3: not valid CSV \(unexpected end of data\)"):
        examples(tmp_path / "a.csv", 'prompt,completion\na,b\n"c,d\ne,f\n', skip_bad=True)


@pytest.mark.parametrize(("head", "found"), [
    ("prompt,prompt", "two columns are named 'prompt'"), (",", "the first line has no names of columns")])
def test_a_csv_without_distinct_names_is_refused(tmp_path, head, found):
    with pytest.raises(InputError) as refused:
        examples(tmp_path / "a.csv", f"{head}\na,b\n")
    assert found in str(refused.value)


def test_a_long_cell_is_read(tmp_path):
    assert examples(tmp_path / "a.csv", f'prompt,completion\na,"{"b" * 300_000}"\n')[0] == [("a", "b" * 300_000)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_names_the_encoding(tmp_path, name, encoding):
    rows = [{"prompt": "Öl – 油", "completion": "é"}]
    text = {"a.jsonl": json.dumps(rows[0], ensure_ascii=False) + "\n", "a.json": json.dumps(rows, ensure_ascii=False),
            "a.csv": "prompt,completion\nÖl – 油,é\n"}[name]
    found, notes = examples(tmp_path / name, text.encode(encoding))
    assert found == [("Öl – 油", "é")]
    assert ("a byte order mark, which w" if encoding == "utf-8-sig" else f"the encoding {encoding.upper()}") in notes[0]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_refused_with_its_name(tmp_path, encoding):
    content = GOOD.decode().encode(encoding)
    with pytest.raises(InputError, match=f"looks like {encoding.upper()} without a byte order mark; .*--encoding "
                                         f"{encoding}"):
        examples(tmp_path / "a.jsonl", content)
    assert examples(tmp_path / "a.jsonl", content, encoding=encoding)[0] == [("a", "b")]


@pytest.mark.parametrize(("name", "content"), [
    ("a.jsonl", GOOD + BAD_BYTE + GOOD),
    ("a.json", b"[\n" + GOOD.strip() + b",\n" + BAD_BYTE.strip() + b",\n" + GOOD + b"]")])
def test_a_bad_byte_costs_one_row(tmp_path, name, content):
    with pytest.raises(InputError, match=r"a\.jsonl?:[23].*byte 0xe9.* is not UTF-8; .*--skip-bad"):
        examples(tmp_path / name, content)
    found, notes = examples(tmp_path / name, content, skip_bad=True)
    assert found == [("a", "b")] * 2
    assert "1 of 3 rows are unreadable" in notes[0]


@pytest.mark.parametrize(("content", "found"), [
    ("[\n{}\n,\n{},\n]\n", r"a\.json:4: a comma after the last item \(item 1\), before the closing bracket in line 5"),
    ('[\n{"prompt": "a", "completion": "b"}\n{}]', r"a\.json:3: expected a comma or the closing bracket after item 0"),
    ('[{"prompt": "a",\n "completion" "b"}]', r"a\.json:2: not valid JSON \(Expecting ':' delimiter at column 15"),
    ('[{"prompt": "a', r"a\.json:1: not valid JSON \(Unterminated string"),
    ('{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n', r"give it the ending \.jsonl"),
    ('{"a": [], "b": []}', "2 lists"), ('{"a": 1} x', "more text after the end"), ("[] x", "more text after the end"),
    ('{"a" 1}', "expected a key and a colon"), ("[NaN]", "NaN is not JSON"),
    ("[" * 100_000, "nested too deeply")])
def test_what_is_wrong_in_a_json_file_is_told_with_its_line(tmp_path, content, found):
    content = content.replace("{}", '{"prompt": "a", "completion": "b"}')
    with pytest.raises(InputError, match=found) as refused:
        examples(tmp_path / "a.json", content)
    assert len(str(refused.value)) < 1000


def test_a_json_list_over_blocks_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("aftertune.tuning.json_rows._BLOCK", 16)
    rows = [{"prompt": f"é {n}" * (n % 40), "completion": f"{n}"} for n in range(1, 120)]
    for content in (json.dumps(rows), json.dumps({"v": "1.0", "rows": rows, "n": 12345}, indent=1)):
        assert examples(tmp_path / "a.json", content)[0] == [(r["prompt"], r["completion"]) for r in rows]
    places = [row.where for row in read_rows(tmp_path / "a.json", ReadOptions(), [])]
    assert places[:2] == [f"{tmp_path / 'a.json'}:4 (item 0)", f"{tmp_path / 'a.json'}:8 (item 1)"]


# --- Bounds ---


def test_a_row_that_is_too_long_costs_one_row(tmp_path, monkeypatch):
    monkeypatch.setattr("aftertune.tuning.text_rows.MAX_ROW", 1000)
    long = b'{"prompt": "' + b"a" * 5000 + b'", "completion": "b"}\n'
    with pytest.raises(InputError, match=r"a\.jsonl:2: the row is longer than .* MiB; shorten it"):
        examples(tmp_path / "a.jsonl", GOOD + long + GOOD)
    assert examples(tmp_path / "a.jsonl", GOOD + long + BAD_BYTE + GOOD, skip_bad=True)[0] == [("a", "b")] * 2


def test_an_item_without_end_is_not_read_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("aftertune.tuning.json_rows.MAX_ROW", 100_000)
    monkeypatch.setattr("aftertune.tuning.json_rows._BLOCK", 1000)
    with pytest.raises(InputError, match=r"a\.json:1: not valid JSON \(Unterminated string"):
        examples(tmp_path / "a.json", '[{"prompt": "' + "a" * 3_000_000)
    with pytest.raises(InputError, match=r"a\.json:1: not valid JSON \(Expecting"):
        examples(tmp_path / "a.json", '[{"prompt": "a", completion}' + " " * 3_000_000)


def test_rows_are_read_one_after_another(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes((b'{"prompt": "' + b"a" * 10_000 + b'", "completion": "b"}\n') * 2000)  # 20 MB
    tracemalloc.start()
    assert sum(1 for _ in read_rows(path, ReadOptions(), [])) == 2000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json", "a.parquet"])
def test_a_limit_reads_no_more_and_says_so(tmp_path, name):
    from pyarrow import Table, parquet

    path, rows, notes = tmp_path / name, [{"prompt": f"{n}", "completion": "b"} for n in range(50)], []
    if name == "a.parquet":
        parquet.write_table(Table.from_pylist(rows), path)
    else:
        path.write_text({"a.jsonl": "\n".join(map(json.dumps, rows)), "a.json": json.dumps(rows),
                         "a.csv": "prompt,completion\n" + "".join(f"{n},b\n" for n in range(50))}[name])
    assert [row.value["prompt"] for row in read_rows(path, ReadOptions(limit=3), notes)] == ["0", "1", "2"]
    assert notes == [f"{path}: only the first 3 rows were read"]
    assert len(list(read_rows(path, ReadOptions(limit=50), notes := []))) == 50
    assert notes == []


def test_a_parquet_file_whose_metadata_end_the_process_is_one_line():
    """A mutated file: the sizes of a column's statistics contradict each other, and pyarrow aborts."""
    path = Path(__file__).parent / "data" / "damaged_statistics.parquet"
    with pytest.raises(InputError, match=r"not a readable Parquet file \(the reading process was ended by SIGABRT"):
        read_examples(path)


def test_a_parquet_file_of_repeated_values_is_refused_before_it_is_unpacked(tmp_path):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "bomb.parquet"
    rows = pyarrow.DictionaryArray.from_arrays(pyarrow.nulls(2_000_000, pyarrow.int32()).fill_null(0), ["a" * 20])
    parquet.write_table(pyarrow.table({"prompt": rows, "completion": rows}), path, compression="zstd",
                        row_group_size=2_000_000)
    assert path.stat().st_size * MAX_ROWS_PER_BYTE < 2_000_000
    with pytest.raises(InputError, match=r"bytes that claim 2,000,000 rows; at most .* are read"):
        read_examples(path)


def test_a_parquet_list_of_repeated_values_is_refused(tmp_path, monkeypatch):
    import pyarrow
    from pyarrow import parquet

    monkeypatch.setattr("aftertune.sources.parquet_check.MAX_VALUES", 1000)
    path = tmp_path / "bomb.parquet"
    parquet.write_table(pyarrow.table({"prompt": [["a"] * 5000]}), path)
    with pytest.raises(InputError, match=r"a column claims 5,000 values in 1 rows"):
        read_examples(path)


@pytest.mark.parametrize("nested", [False, True])
def test_a_parquet_file_of_a_repeated_long_value_is_refused_before_it_fills_the_memory(tmp_path, nested):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "bomb.parquet"
    text = pyarrow.DictionaryArray.from_arrays(pyarrow.nulls(400, pyarrow.int32()).fill_null(0), ["a" * 1_000_000])
    if nested:
        text = pyarrow.ListArray.from_arrays(pyarrow.array(range(401), pyarrow.int32()), text)
    parquet.write_table(pyarrow.table({"prompt": text, "completion": ["b"] * 400}), path, compression="zstd")
    assert path.stat().st_size < 10_000  # and 400 MB of text
    tracemalloc.start()
    with pytest.raises(InputError, match=r"row \d\d: the file unpacks to more than 6\d,\d+,\d+ characters"):
        list(read_rows(path, ReadOptions(), []))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 250_000_000
    assert pyarrow.default_memory_pool().max_memory() < 600_000_000


def test_a_long_value_that_a_parquet_file_repeats_is_unpacked_once(tmp_path):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "long.parquet"
    text = pyarrow.DictionaryArray.from_arrays(pyarrow.nulls(256, pyarrow.int32()).fill_null(0), ["a" * 1_000_000])
    parquet.write_table(pyarrow.table({"prompt": text.cast(pyarrow.string()), "completion": ["b"] * 256}), path)
    before = pyarrow.total_allocated_bytes()
    rows = read_rows(path, ReadOptions(), [])
    next(rows)
    assert pyarrow.total_allocated_bytes() - before < 20_000_000


def test_a_parquet_column_that_cannot_be_read_is_left_out_and_told(tmp_path):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({
        "prompt": ["a", "c"], "completion": ["b", "d"],
        "when": pyarrow.array([2**62, 0], pyarrow.timestamp("us")),
        "zone": pyarrow.array([0, 0], pyarrow.timestamp("us", tz="Evil/Zone"))})
    parquet.write_table(table, tmp_path / "a.parquet")
    report = ReadReport()
    assert len(read_examples(tmp_path / "a.parquet", report=report)) == 2
    told = " ".join(report.notes)
    assert "the column 'when' cannot be read (OverflowError), so it was left out" in told
    assert "the column 'zone' cannot be read" in told


def test_keys_that_arrow_adds_to_objects_are_removed(tmp_path):
    import pyarrow
    from pyarrow import parquet

    talk = [{"role": "user", "content": "a", "tool_calls": None},
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": talk}]), tmp_path / "a.parquet")
    [example] = read_examples(tmp_path / "a.parquet")
    assert example.messages[0] == {"role": "user", "content": "a"}
    assert example.messages[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}


def test_a_packed_file_is_refused_at_once_with_what_to_do(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(b"\x1f\x8b" + b"\0" * 100)
    with pytest.raises(InputError, match=r"unknown kind of file '\.gz'; unpack it, and use one of \.jsonl"):
        read_examples(tmp_path / "a.jsonl.gz")


@pytest.mark.parametrize("content", ["sep=;\nprompt;completion\n" + "a;b;\n" * 9, table(";").encode("utf-16")])
def test_what_was_assumed_is_noted_also_where_few_rows_are_read(tmp_path, content):
    path = tmp_path / "a.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert len(list(read_rows(path, ReadOptions(limit=1), notes := []))) == 1
    assert "semicolons as delimiters" in notes[0]
    assert notes[1:] == [f"{path}: only the first 1 rows were read"]
