"""Owns the numbered sections of a record: what was measured, what others reported, and what is planned, by family.

    sections = Sections()
    sections.put("SmolLM2", ["smollm2", "careful"], blocks)
    sections.put("TinyLlama (1.1B)", ["TinyLlama + QLoRA"], blocks)      beside tinyllama-qlora, where that is here

A name belongs to a section that has a name of the same letters and digits, or whose title begins it: "phi-2-base"
belongs to "Phi-2 (2.7B)".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from aftertune.report import documents as md
from aftertune.report import formatting as fmt
from aftertune.report.names import source_title
from aftertune.values.reported import plain_name

#: A title of fewer letters begins too many names.
_SHORTEST = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A model of a study that is not evaluated yet. base: the base's name there, model: its source; command: what
    would do it; state: of its cell, with the reason where there is one."""

    study: str
    name: str
    base: str
    model: str
    command: str
    state: str = "planned"


@dataclass(slots=True)
class _Section:
    title: str
    names: set[str]
    blocks: list[str]

    def has(self, name: str) -> bool:
        """Whether a model of this name belongs here."""
        stem = plain_name(re.sub(r"\(.*?\)", "", self.title))
        return plain_name(name) in self.names or (len(stem) >= _SHORTEST and plain_name(name).startswith(stem))


@dataclass(slots=True)
class Sections:
    """The sections in their order."""

    found: list[_Section] = field(default_factory=list)

    def put(self, title: str, names: Iterable[str], blocks: Sequence[str], *, note: str = "") -> None:
        """Add blocks to the first section that has one of the names, else to a new one with this title. note: stands
        behind a new section's title."""
        names = list(names)
        home = next((s for name in names for s in self.found if s.has(name)), None)
        if home is None:
            home = _Section(title + note, set(), [])
            self.found.append(home)
        home.names |= set(map(plain_name, names))
        home.blocks += blocks

    def blocks(self) -> list[str]:
        """All of it, numbered."""
        return [block for number, section in enumerate(self.found, 1)
                for block in (f"## {number}. {md.text(fmt.visible(section.title, 200))}", *section.blocks)]


def put_planned(sections: Sections, planned: Sequence[Planned], elsewhere: set[str]) -> None:
    """The models that studies plan, each in its family. elsewhere: plain names of models that are shown already."""
    for base in dict.fromkeys((p.study, p.base) for p in planned):
        group = [p for p in planned if (p.study, p.base) == base]
        blocks = []
        for one in group:
            if plain_name(one.name) not in elsewhere:
                state = "" if one.state == "planned" else f" ({md.text(fmt.visible(one.state, 400))})"
                blocks += [f"### {md.text(fmt.visible(one.name))} (Not Evaluated)",
                           f"*Not evaluated{state}, planned with: {md.code(fmt.visible(one.command, 400))}*"]
        if blocks:
            sections.put(source_title(group[0].model), [base[1], *(p.name for p in group)], blocks)


def open_cells(planned: Sequence[Planned]) -> list[str]:
    """Lines of the list of future work."""
    return [f"- [ ] {md.text(fmt.visible(p.name))} of the study {md.text(fmt.visible(p.study))}: "
            f"{md.code(fmt.visible(p.command, 400))}" for p in planned]
