"""Reads lists of general prompts: those that come with the package, and files of the user.

    drift_prompts()[0]                          'Explain why the sky is blue to a ten-year-old.'
    PromptList.read(None)                       the 300 prompts that the base answers for replay
    PromptList.read(Path("prompts.txt"))        a file of the user: a prompt on each line, or rows with a prompt

The two lists of the package have different purposes. On the prompts of ``drift_prompts.txt`` it is measured how far a
fine-tune moved a model (`aftertune.drift`, and the warning during a training). Those of ``replay_prompts.txt`` are
trained on. No prompt is in both, and a prompt for drift in a user's file is never trained on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from aftertune import bounds
from aftertune.errors import InputError
from aftertune.paths import is_file
from aftertune.tuning.split import normalized
from aftertune.tuning.text_rows import read_line_rows
from aftertune.values import digest


@dataclass(frozen=True, slots=True)
class PromptList:
    """Prompts for the base. prompts: each once, in the order of the list; left_out: how many of the list were repeats,
    or prompts on which drift is measured."""

    prompts: tuple[str, ...]
    left_out: int = 0

    @property
    def digest(self) -> str:
        """Identity of the prompts: SHA-256 of their texts, in order."""
        return digest(list(self.prompts))

    @classmethod
    def read(cls, file: Path | None) -> PromptList:
        """The prompts of a file, or those of the package for None.

        A file has one prompt on each line; one that ends in .jsonl has rows with the key ``prompt``. Raises InputError
        for a file that is not there or has no prompt.
        """
        if file is None:
            return cls(tuple(_lines("replay_prompts.txt")))
        if not is_file(file):
            raise InputError(f"--replay base: there is no file {file}; give a file with a prompt on each line, or "
                             "leave the file out to use the prompts that come with the package")
        seen = {normalized(prompt) for prompt in drift_prompts()}
        prompts: list[str] = []
        given = list(_read(file))
        for prompt in given:
            if (key := normalized(prompt)) not in seen:
                seen.add(key)
                prompts.append(prompt)
        if not prompts:
            raise InputError(f"--replay base: {file} has no prompt that can be used ({len(given)} lines; repeats and "
                             "prompts on which drift is measured do not count); give one prompt on each line")
        return cls(tuple(prompts), len(given) - len(prompts))


def drift_prompts() -> list[str]:
    """The prompts on which drift is measured."""
    return _lines("drift_prompts.txt")


def _read(file: Path) -> Iterable[str]:
    """The prompts of a user's file. Raises InputError, with file and line, for a row without a prompt."""
    if (size := file.stat().st_size) > bounds.PROMPTS_BYTES:
        raise InputError(f"{file}: {size:,} bytes, but a list of prompts has at most {bounds.PROMPTS_BYTES:,}; give a "
                         "shorter list")
    if file.suffix not in (".jsonl", ".ndjson"):
        try:
            yield from (line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: it cannot be read as UTF-8 text ({' '.join(str(error).split())[:100]}); give a "
                             "text file with a prompt on each line") from None
        return
    for row in read_line_rows(file, "utf-8", []):
        if isinstance(row.value, InputError):
            raise row.value
        prompt = row.value.get("prompt") if isinstance(row.value, dict) else None
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(f"{row.where}: it has no text under the key \"prompt\"; write {{\"prompt\": \"…\"}} on "
                             "each line")
        yield prompt.strip()


def _lines(name: str) -> list[str]:
    """The lines of a list that comes with the package."""
    text = files("aftertune").joinpath(name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]
