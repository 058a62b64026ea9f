"""Write sections of docs/benchmarks.md: each benchmark writes its own and leaves the others unchanged."""

from __future__ import annotations

from pathlib import Path

DOCUMENT = Path("docs/benchmarks.md")


def write_section(name: str, text: str, path: Path = DOCUMENT) -> None:
    """Put ``text`` in the place of the section ``name``, or after the last one where there is none yet."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    old = path.read_text(encoding="utf-8") if path.exists() else "# Benchmarks\n"
    before, found, rest = old.partition(begin)
    after = rest.partition(end)[2] if found else ""
    path.write_text((before if found else before.rstrip("\n") + "\n\n") + begin + text.strip("\n") + "\n" + end + after,
                    encoding="utf-8")


def read_section(name: str, path: Path = DOCUMENT) -> str:
    """The text of a section; "" where there is none."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return text.partition(f"<!-- {name}: begin -->\n")[2].partition(f"<!-- {name}: end -->")[0]
