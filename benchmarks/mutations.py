"""Changes a real file into a broken one, the same way for the same random generator.

    mutated(data, "json", random.Random("record 0 17"), others)       the bytes with one to six changes
    changed_value({"a": [1, 2]}, rng)                                 a copy with one value, key or list changed

A change is one that people, disks and attackers make: cut, flipped, repeated and joined bytes; lines that are missing
or in another place; values of another type; numbers that no one has; texts that are too long, half a character or a
control character; nesting that is too deep. The form of a file decides which of them are tried: `FORMS`.
"""

from __future__ import annotations

import copy
import json
import random
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Mutator = Callable[[bytes, random.Random, Sequence[bytes]], bytes]
#: Bytes of a mutated file. What is longer is cut.
MAX_SIZE = 2**20
#: Values in the place of others, of every type and size.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 2**31, 2**53 + 1, 2**64, 10**30, -10**30, 1.5, 1e308, -1e308, 5e-324, float("nan"),
    float("inf"), "", "x", "0", "nan", "-1", "1e999", " ", "\x00", "\x1b[31mred", "a\nb", "\u202eabc", "\ud800",
    "a" * 5000, "é" * 300, "../../x", "/etc/passwd", "{{ x }}", [], {}, [[]], [{}], {"": None}, [1], ["x"], [None],
    {"a": 1}, {"a": {"b": [1]}}, [10**9], [[1]], {"type": "x"}, list(range(300)), [["a", "b"]] * 50, {"x" * 300: 1})
#: Texts in the place of numbers.
NUMBERS = (
    "0", "-0", "-1", "1", "0.5", "100", "101", "1e3", "1e308", "1e-320", "1e999", "-1e999", "nan", "inf", "NaN",
    "Infinity", "-Infinity", "9" * 20, "9" * 400, "9" * 5000, "0." + "3" * 400, "1_000", "0x1F", "1,000", "1.2.3", "١٢",
    "½", "2147483648", "18446744073709551615", "00012", "+5", "--5", "1e", ".", "5%", "±")
#: Texts that are put in anywhere.
PIECES = (
    "\x00", "\x1b]0;t\x07", "\r", "\r\n", "\n\n\n", "\t", "\x85", "\u2028", "\u202e", "\ufeff", "\u200b",
    "\u0301" * 50, "\U0001f600", "\ue000", "\\ud800", "\\u0000", "|", "||", "|---|", "#", "`", "```", "~~~", "<!--",
    "-->", "<b>", "**", "_", "[x](y)", "&", "*a", "&a ", "<<: *a", "!!int x", "!!python/object/apply:os.system [id]",
    "!function x.y", "? ", ": ", "- ", "{", "}", "[", "]", '"', "'", "%TAG", "---\n", "...\n", "{{", "}}",
    "{% for i in range(9) %}", "{% endfor %}", ",", ";", "=", '""', "\\", "e", "[" * 3000, '{"a":' * 3000, "(" * 2000,
    "- " * 2000, "> " * 1000, "9" * 5000, "x" * 20000, "| a " * 3000)
#: Bytes that are put in anywhere: no UTF-8, half characters, other encodings, signatures.
RAW_PIECES = (
    b"\xff", b"\xfe\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\x80" * 9, b"\x00" * 8,
    b"\x00" * 3000, b"\xff" * 8, b"\x1f\x8b\x08", b"PK\x03\x04", b"\x00\x00\xfe\xff", b"\xef\xbb\xbf")
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_WORD = re.compile(rb"[A-Za-z_][\w-]*")
_PLACES = 400  # places of a structure that are looked at; a vocabulary has many thousand
_DEEP = "@deep@"


def mutated(data: bytes, form: str, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """The bytes with one to six changes. form: one of FORMS; others: files of the same kind, to take parts from."""
    for _ in range(rng.choice((1, 1, 1, 1, 1, 2, 2, 2, 3, 6))):
        try:
            changed = rng.choice(FORMS[form])(data, rng, others)
        except (ValueError, ArithmeticError, RecursionError):  # of a file that earlier changes made extreme
            changed = _bytes(data, rng, others)
        data = changed[:MAX_SIZE]
    return data


# --- Values ---


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each value inside a structure, outer ones first; of a long list or mapping, some at its start."""
    stack = [(path, value)]
    for found, node in stack:
        inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for count, (key, part) in enumerate(inner):
            if count >= 40 or len(stack) >= _PLACES:
                break
            stack.append(((*found, key), part))
    yield from (found for found, _ in stack[1:])


def at(value: Any, path: Sequence[Any]) -> Any:
    """The value at a path."""
    for key in path:
        value = value[key]
    return value


def changed_value(value: Any, rng: random.Random, values: Sequence[Any] = VALUES) -> Any:
    """A copy of a JSON value with one change. values: what may come in the place of another value."""
    value = copy.deepcopy(value)
    paths = list(places(value))
    if not paths or rng.random() < 0.02:
        return rng.choice(values)
    *above, last = rng.choice(paths)
    parent = at(value, above)
    old, kind = parent[last], rng.random()
    if kind < 0.4:
        parent[last] = rng.choice(values)
    elif kind < 0.5:
        del parent[last]
    elif kind < 0.58:
        parent[last] = copy.deepcopy(at(value, rng.choice(paths)))
    elif kind < 0.64:
        parent[last] = rng.choice(([old], {"x": old}, [old, old], {str(last): old}, [old] * 200, str(old), _DEEP))
    elif kind < 0.72 and isinstance(parent, dict):
        parent[_changed_text(str(last), rng)] = parent.pop(last)
    elif kind < 0.78 and isinstance(parent, list):
        parent.insert(rng.randrange(len(parent) + 1), copy.deepcopy(rng.choice((old, *values))))
    else:
        parent[last] = _changed_scalar(old, rng)
    return value


def _changed_scalar(old: Any, rng: random.Random) -> Any:
    if isinstance(old, bool):
        return rng.choice((not old, int(old), str(old), None))
    if isinstance(old, int | float):
        return rng.choice((old + 1, -old, old * 2, old / 2, old * 10**9, float(old), str(old), old + 1e-9, [old]))
    if isinstance(old, str):
        return _changed_text(old, rng)
    return rng.choice(VALUES)


def _changed_text(text: str, rng: random.Random) -> str:
    where = rng.randrange(len(text) + 1)
    return rng.choice((
        lambda: text[:where] + rng.choice(PIECES) + text[where:], lambda: text[:where], lambda: text * 2,
        lambda: text.upper(), lambda: text[::-1], lambda: text + " ", lambda: text[:where] + "\ud83d" + text[where:],
        lambda: text * (2000 // (len(text) + 1) + 1), lambda: rng.choice(NUMBERS)))()


def written(value: Any, rng: random.Random) -> bytes:
    """A value as JSON, in one of the ways in which programs write it; half characters stay as they are."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, None, 2)))
    if _DEEP in text:
        depth = rng.choice((5, 30, 90, 400, 3000, 60_000))
        deep = "[" * depth + "]" * depth if rng.random() < 0.6 else '{"a":' * depth + "1" + "}" * depth
        text = text.replace(f'"{_DEEP}"', deep)
    return text.encode("utf-8", "surrogatepass")


def _json(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    try:
        return written(changed_value(json.loads(data), rng), rng)
    except (ValueError, RecursionError):
        return _bytes(data, rng, others)


def _json_text(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """A key twice, a comma or bracket too many, a number that JSON can hold and Python cannot."""
    keys = list(re.finditer(rb'"[^"\\]*"\s*:\s*("[^"]*"|[^,\[\]{}]+)', data))
    if keys and rng.random() < 0.4:
        match = rng.choice(keys)
        return data[:match.start()] + match[0].rstrip() + b", " + data[match.start():]
    marks = [m.start() for m in re.finditer(rb'[,:\[\]{}"]', data)]
    if marks and rng.random() < 0.5:
        where = rng.choice(marks)
        return data[:where] + rng.choice((b"", data[where:where + 1] * 2, b",", b"}", b"]", b"[")) + data[where + 1:]
    return _number(data, rng, others)


def _json_lines(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    lines = data.splitlines()
    number = rng.randrange(len(lines)) if lines else 0
    if lines:
        lines[number] = _json(lines[number], rng, others).replace(b"\n", b" ")
    return b"\n".join(lines) + b"\n"


# --- Bytes and lines ---


def _bytes(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    size = len(data)
    a, b = sorted((rng.randrange(size + 1), rng.randrange(size + 1)))
    length = min(b - a, rng.choice((1, 2, 4, 8, 64, 4096)))
    kind = rng.randrange(9)
    if kind == 0 and size:
        where = rng.randrange(size)
        return data[:where] + bytes([data[where] ^ 1 << rng.randrange(8)]) + data[where + 1:]
    if kind == 1:
        return data[:a] + rng.randbytes(rng.choice((1, 2, 8, 100))) + data[a:]
    if kind == 2:
        return data[:a] + data[a + length:]
    if kind == 3:
        return data[:a] + data[a:a + length] * rng.choice((2, 3, 50)) + data[a + length:]
    if kind == 4:
        return data[:a] if rng.random() < 0.7 else data[a:]
    if kind == 5 and others:
        other = rng.choice(others)
        where = rng.randrange(len(other) + 1)
        return data[:a] + other[where:]
    if kind == 6:
        return data[:a] + rng.choice(RAW_PIECES) + data[a + rng.choice((0, length)):]
    if kind == 7:
        return data[:a] + rng.choice(PIECES).encode() + data[a + rng.choice((0, 0, length)):]
    return data[:a] + bytes(rng.choice((0, 255, 10, 32)) for _ in range(length)) + data[a + length:]


def _number(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Another number in the place of one."""
    return _replaced(_NUMBER, data, rng, lambda old: rng.choice((*NUMBERS, old.decode() + "1")).encode()) or _bytes(
        data, rng, others)


def _word(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Another word of the file, a long one, or a piece in the place of a word."""
    words = _WORD.findall(data[:20_000])
    return _replaced(_WORD, data, rng, lambda old: rng.choice((
        rng.choice(words or [b"x"]), old * 2, old.upper(), b"", rng.choice(PIECES).encode()))) or _bytes(
            data, rng, others)


def _replaced(pattern: re.Pattern[bytes], data: bytes, rng: random.Random, new: Callable[[bytes], bytes]) -> bytes:
    start = rng.randrange(len(data) + 1) if data else 0
    match = pattern.search(data, start) or pattern.search(data)
    return data[:match.start()] + new(match[0]) + data[match.end():] if match else b""


def _lines(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Lines that are missing, repeated, swapped, moved in, or taken from another file."""
    lines = data.split(b"\n")
    number, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    kind = rng.randrange(8)
    if kind == 0:
        del lines[number]
    elif kind == 1:
        lines[number:number + 1] = [lines[number]] * rng.choice((2, 2, 3, 300))
    elif kind == 2:
        lines[number], lines[other] = lines[other], lines[number]
    elif kind == 3:
        lines[number] = rng.choice((b" ", b"  ", b"\t", b"      ", b"- ", b"> ")) + lines[number]
    elif kind == 4:
        lines[number] = lines[number].strip()
    elif kind == 5:
        lines[number] += rng.choice((b" ", b",", b":", b"|", b"#", b"\\", b"\r", lines[other]))
    elif kind == 6 and others:
        taken = rng.choice(others).split(b"\n")
        where = rng.randrange(len(taken))
        lines[number:number] = taken[where:where + rng.choice((1, 3, 10))]
    elif other != number:
        joined = lines[number] + lines[other]
        lines[min(number, other)] = joined
        del lines[max(number, other)]
    return b"\n".join(lines)


def _cells(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """The cells of a Markdown table or a CSV file: one changed, a column twice or missing, one row of another width."""
    lines = data.split(b"\n")
    delimiter = b"|" if data.count(b"|") > data.count(b",") else rng.choice((b",", b",", b";", b"\t"))
    rows = [n for n, line in enumerate(lines) if delimiter in line]
    if not rows:
        return _lines(data, rng, others)
    row = rng.choice(rows)
    cells = lines[row].split(delimiter)
    column = rng.randrange(len(cells))
    kind = rng.randrange(7)
    if kind < 3:
        cells[column] = rng.choice((
            b" " + rng.choice(NUMBERS).encode() + b"% ", rng.choice(NUMBERS).encode(), rng.choice(PIECES).encode(), b"",
            cells[rng.randrange(len(cells))], cells[column] * 2, b'"' + cells[column], cells[column] + b'"'))
    elif kind == 3:
        cells[column:column + 1] = [cells[column]] * rng.choice((2, 2, 3, 500, 2500))
    elif kind == 4:
        del cells[column]
    if kind < 5:
        lines[row] = delimiter.join(cells)
        return b"\n".join(lines)
    for n in rows:  # the same column in all rows
        parts = lines[n].split(delimiter)
        if column < len(parts):
            parts[column:column + 1] = [] if kind == 5 else [parts[column]] * 2
        lines[n] = delimiter.join(parts)
    return b"\n".join(lines)


def _yaml(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """The values of a YAML file changed and written as JSON, which is YAML too."""
    from ruamel.yaml import YAML

    try:
        return written(changed_value(YAML(typ="safe").load(data), rng), rng)
    except Exception:  # the file may already be broken
        return _lines(data, rng, others)


def _scalar(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Another value after a key of a YAML file."""
    choices = (*NUMBERS, *PIECES, "~", "null", "yes", "2026-01-01", "2026-13-99T99:99", "&a [*a]", "*a", "[1, [2]]",
               "{a: 1}", "|\n  x", ">-", "!!binary x", "!!set {a}", "!!omap [a: 1]", "0o17", "1:30", ".inf", "'",
               "\"\\x", "[]", "{}")
    return _replaced(re.compile(rb"(?<=: )[^\n]+"), data, rng, lambda _: rng.choice(choices).encode()) or _lines(
        data, rng, others)


# --- Binary files ---


def _header(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """The JSON header of a safetensors file, its length, or the size of the data."""
    length = int.from_bytes(data[:8], "little")
    header, body = data[8:8 + length], data[8 + length:]
    kind = rng.randrange(5)
    if kind == 0:
        other = rng.choice((0, 1, length + 1, max(length - 1, 0), 2**31, 2**63, 2**64 - 1))
        return (other & 2**64 - 1).to_bytes(8, "little") + data[8:]
    if kind == 1:
        return data[:8 + length] + rng.choice((b"", body[:-1], body + b"\0", body[:len(body) // 2]))
    change: Mutator = rng.choice((_json, _json, _json, _json_text, _number))
    new = change(header, rng, others)
    return len(new).to_bytes(8, "little") + new + body


def _integers(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Another integer in the place of one in the header of a binary file; most at the start, where the counts are."""
    size, form = rng.choice(((4, "<I"), (8, "<Q"), (4, "<i"), (8, "<d"), (1, "B")))
    if len(data) < 32:
        return _bytes(data, rng, others)
    where = rng.randrange(4, 24) if rng.random() < 0.2 else rng.randrange(0, min(len(data), 4096) - 8)
    old = int.from_bytes(data[where:where + size], "little")
    number = rng.choice((0, 1, 2, 9, old + 1, max(old - 1, 0), old * 2, 255, 2**16, 2**31, 2**32, 10**9, 2**40, 2**63,
                         2**64 - 1))
    if form == "<d":
        number_bytes: bytes = struct.pack(form, rng.choice((0.0, 1e308, float("nan"), -1.0)))
        return data[:where] + number_bytes + data[where + 8:]
    new: bytes = (number & 2**(8 * size) - 1).to_bytes(size, "little")
    return data[:where] + new + data[where + size:]


#: Form of a file -> its mutators; one that occurs several times is drawn so much more often.
FORMS: dict[str, tuple[Mutator, ...]] = {
    "bytes": (_bytes,),
    "json": (_json, _json, _json, _json, _json_text, _number, _bytes, _word),
    "jsonl": (_json_lines, _json_lines, _json_lines, _json_lines, _json_text, _number, _bytes, _lines, _word),
    "markdown": (_cells, _cells, _cells, _lines, _lines, _number, _word, _bytes),
    "csv": (_cells, _cells, _lines, _number, _word, _bytes, _bytes),
    "yaml": (_yaml, _yaml, _yaml, _scalar, _scalar, _lines, _number, _word, _bytes),
    "template": (_lines, _word, _word, _number, _bytes, _bytes),
    "safetensors": (_header, _header, _header, _bytes),
    "binary": (_integers, _integers, _bytes, _word),
}
