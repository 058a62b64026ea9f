"""Defines the data of a fine-tune: new examples, and examples that are replayed against forgetting.

    DataSpec(file="orders.jsonl", examples=200)
    ReplaySpec(data="general.jsonl", share=0.2)          other data: a fifth of the mixture
    ReplaySpec(data="base:400")                          400 answers that the base itself writes
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from aftertune.study.fields import Flag, Positive, Share, Spec

#: Endings of data files; a name without one may be a data set of the Hub.
DATA_FILES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
#: Data sets of the Hub that have a short name here.
HUB_NAMES = {"alpaca": "tatsu-lab/alpaca", "alpaca-cleaned": "yahma/alpaca-cleaned"}


def on_hub(path: Path) -> bool:
    """Whether a path looks like the name of a data set of the Hub: ``alpaca``, ``owner/name``."""
    return path.suffix not in DATA_FILES and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(path)) is not None


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


class ReplaySpec(Spec):
    """Other data that is mixed into the training data, against forgetting. All new examples are kept."""

    data: Annotated[DataSource, Flag("--replay"), Field(description="Other data to mix in, against forgetting.")]
    share: Annotated[float, Flag("--replay-share"), Field(
        gt=0, lt=1, description="Share of the other data in the final mixture, for example 0.2.")]
