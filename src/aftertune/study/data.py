"""Defines the data of a fine-tune: new examples, and examples that are replayed against forgetting.

    DataSpec(file="orders.jsonl", examples=200)
    ReplaySpec(data="general.jsonl", share=0.2)          other data: a fifth of the mixture
    ReplaySpec(data="base:200")                          200 answers that the base itself writes
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from aftertune.study.fields import Flag, Positive, Share, Spec

#: Answers of the base whose replay is advised against forgetting.
ADVISED_ANSWERS = 200
#: Endings of data files; a name without one may be a data set of the Hub.
DATA_FILES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
#: Data sets of the Hub that have a short name here.
HUB_NAMES = {"alpaca": "tatsu-lab/alpaca", "alpaca-cleaned": "yahma/alpaca-cleaned"}


def on_hub(path: Path) -> bool:
    """Whether a path looks like the name of a data set of the Hub: ``alpaca``, ``owner/name``."""
    return path.suffix not in DATA_FILES and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(path)) is not None


def data_on_hub(source: str) -> str | None:
    """The Hub data set that is meant by the source of training data; None for a file."""
    name = HUB_NAMES.get(source, source)
    return name if "/" in name and on_hub(Path(name)) else None


class DataSource(Spec):
    """Examples: a file, or a data set of the Hub. A string is short for its ``file``."""

    file: Annotated[Path, Flag("--data"), Field(
        description="A .jsonl, .json, .csv or .parquet file, or a data set of the Hub (owner/name, alpaca).")]
    format: Annotated[
        Literal["auto", "prompt", "messages", "alpaca", "dolly", "sharegpt", "glaive", "preference", "text"], Flag(),
        Field(description="Format of a row.")] = "auto"
    fields: Annotated[dict[str, str], Flag("--field", form="OURS=THEIRS", example="prompt=question")] = Field(
        default_factory=dict, description="Other name of a field in the file: prompt=question.")
    encoding: Annotated[str, Flag(), Field(description="Encoding of a text file.")] = "utf-8"
    split: Annotated[str, Flag(), Field(description="Split of a Hub data set.")] = "train"
    subset: Annotated[str | None, Flag(), Field(description="Subset of a Hub data set that has several.")] = None
    skip_bad: Annotated[bool, Flag(), Field(
        description="Leave out rows that cannot be read or that the template refuses, and count them.")] = False
    dedup: Annotated[Literal["exact", "normalised", "none"] | None, Flag(), Field(
        description="Repeats to leave out: exact, normalised (those too that differ in case, spaces or Unicode form "
                    "alone) or none. Default: exact.")] = None

    @model_validator(mode="before")
    @classmethod
    def _a_name_is_a_file(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str | Path) else value


class DataSpec(DataSource):
    """Training data. Held-out and validation rows are chosen by the hash of the normalised prompt."""

    examples: Annotated[Positive | None, Flag(), Field(description="Train on a random subset of N examples.")] = None
    held_out: Annotated[Share | None, Flag(), Field(
        description="Share kept out of training to measure the loss before and after. Default: 0.1, about 1,000 rows "
                    "at most.")] = None
    held_out_file: Annotated[Path | None, Field(description="File of held-out rows, instead of a share.")] = None
    validation: Annotated[Share | None, Flag(), Field(
        description="Further share kept out of training, for early stopping.")] = None


class BaseReplay(Spec):
    """Replay of the base's own answers: how many, and to which prompts (None: those that come with the package)."""

    count: Positive
    file: Path | None = None

    @classmethod
    def parse(cls, text: str) -> BaseReplay:
        """``base:400`` or ``base:400:FILE``. Raises ValueError, in one line with what is allowed, for another form."""
        number, _, file = text.removeprefix(_BASE).partition(":")
        if not number.strip().isdecimal() or len(number) > 9 or not 0 < int(number) <= 100_000:
            raise ValueError(f"{text[:80]!r} is no number of answers; write base:N, for example base:400, or "
                             "base:N:FILE with a file of prompts, and N from 1 to 100,000")
        return cls(count=int(number), file=Path(file) if file else None)


#: The start of a replay source that is the base itself.
_BASE = "base:"


class ReplaySpec(Spec):
    """Other data that is mixed into the training data, against forgetting. All new examples are kept. A string is short
    for its ``data``."""

    data: Annotated[DataSource, Flag("--replay"), Field(
        description="Other data to mix in, against forgetting: a file, or base:N for N answers that the base itself "
                    "writes to general prompts (base:N:FILE: to those in a file, one a line).")]
    share: Annotated[Annotated[float, Field(gt=0, lt=1)] | None, Flag("--replay-share"), Field(
        description="Share of the other data in the final mixture, for example 0.2. Not for base:N.")] = None

    @model_validator(mode="before")
    @classmethod
    def _a_text_is_its_data(cls, value: Any) -> Any:
        return {"data": value} if isinstance(value, str | Path) else value

    @model_validator(mode="after")
    def _a_share_goes_with_a_file(self) -> ReplaySpec:
        if self.base is None and self.share is None:
            raise ValueError("`share` is missing: the share of the other data in the final mixture (--replay-share), "
                             "for example 0.2")
        if self.base is not None and self.share is not None:
            raise ValueError(f"`share` (--replay-share) does not go with base:{self.base.count}, which is the number "
                             "of answers; leave one of them out")
        if self.base is not None and (unused := sorted(self.data.model_fields_set - {"file"})):
            raise ValueError(f"`{unused[0]}` is for a file of data and has no effect on base:{self.base.count}; leave "
                             "it out")
        return self

    @property
    def base(self) -> BaseReplay | None:
        """The base's own answers that are replayed; None for the data of a file."""
        text = str(self.data.file)
        return BaseReplay.parse(text) if text.startswith(_BASE) else None

    def from_folder(self, folder: Path, data_file: Callable[[Path, Path], Path]) -> ReplaySpec:
        """The same with relative paths taken from ``folder``. data_file: does it for a data file."""
        if self.base is None:
            file = data_file(self.data.file, folder)
        elif self.base.file is None or self.base.file.is_absolute():
            return self
        else:
            file = Path(f"{_BASE}{self.base.count}:{folder / self.base.file}")
        return self.model_copy(update={"data": self.data.model_copy(update={"file": file})})
