"""Arranges a record in numbered sections, one for each family of models: measured, reported and planned ones.

    sections = Sections()
    sections.add("SmolLM2", ["smollm2", "careful"], blocks)
    sections.add("TinyLlama (1.1B)", ["TinyLlama + QLoRA"], blocks)      joins the section of tinyllama-qlora, if any

A model belongs to a section that has a name with the same letters and digits, or whose title is the start of the
model's name: "phi-2-base" belongs to "Phi-2 (2.7B)".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from aftertune.report import documents as md
from aftertune.report import formatting as fmt
from aftertune.report.names import source_title
from aftertune.values.reported import plain_name

#: A shorter title is the start of too many names.
_SHORTEST = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A model of a study that is not evaluated yet.

    base: the name of its base in the study. model: the source of the base. command: the command that evaluates it.
    state: the state of its cell, with the reason if there is one.
    """

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
        """True if a model of this name belongs to the section."""
        stem = plain_name(re.sub(r"\(.*?\)", "", self.title))
        return plain_name(name) in self.names or (len(stem) >= _SHORTEST and plain_name(name).startswith(stem))


@dataclass(slots=True)
class Sections:
    """The sections, in order."""

    sections: list[_Section] = field(default_factory=list)

    def add(self, title: str, names: Iterable[str], blocks: Sequence[str], *, note: str = "") -> None:
        """Adds blocks to the first section that has one of the names, else to a new one with this title.

        note: appended to the title of a new section.
        """
        names = list(names)
        section = next((s for name in names for s in self.sections if s.has(name)), None)
        if section is None:
            section = _Section(title + note, set(), [])
            self.sections.append(section)
        section.names |= set(map(plain_name, names))
        section.blocks += blocks

    def blocks(self) -> list[str]:
        """The blocks of all sections below numbered headings."""
        return [block for number, section in enumerate(self.sections, 1)
                for block in (f"## {number}. {md.text(fmt.visible(section.title, 200))}", *section.blocks)]


def add_planned(sections: Sections, planned: Sequence[Planned], shown: set[str]) -> None:
    """Adds the models that studies plan, each to its family. shown: plain names of models that are already shown."""
    for base in dict.fromkeys((p.study, p.base) for p in planned):
        group = [p for p in planned if (p.study, p.base) == base]
        blocks = []
        for model in group:
            if plain_name(model.name) not in shown:
                state = "" if model.state == "planned" else f" ({md.text(fmt.visible(model.state, 400))})"
                blocks += [f"### {md.text(fmt.visible(model.name))} (Not Evaluated)",
                           f"*Not evaluated{state}, planned with: {md.code(fmt.visible(model.command, 400))}*"]
        if blocks:
            sections.add(source_title(group[0].model), [base[1], *(p.name for p in group)], blocks)


def open_cells(planned: Sequence[Planned]) -> list[str]:
    """Lines of the list of future work: each planned model with its command."""
    return [f"- [ ] {md.text(fmt.visible(p.name))} of the study {md.text(fmt.visible(p.study))}: "
            f"{md.code(fmt.visible(p.command, 400))}" for p in planned]
