"""Asks every form in which a fine-tune is handed on the same items, and finds the first form that lost something.

    check = check_chain("orders", ("adapter", "merged", "gguf:q8_0", "openai:http://127.0.0.1:8080"), tasks,
                        ledger=ledger, out=Path("orders-deploy"))
    check.broken              None, or the first link with a proven loss or a fault
    check.links[2].first      the comparison of gguf:q8_0 with the first link

    chain = Chain(tuning, parse_links(words), tasks, ledger=ledger, out=out)      one link at a time
    chain.check(chain.links[0])

The links are those of `aftertune.study.links`. Merged weights are also compared with base and adapter, tensor by
tensor.
Each link is compared with the one before and with the first, by the verdicts of `aftertune.comparison`. Servers write
prompts with their own chat template: this is part of what is checked, so it does not block a comparison. Where a link
gives no log-likelihoods, all links are asked multiple-choice tasks by letter (`aftertune.tasks.letters`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aftertune.comparison import check_margins, compare
from aftertune.comparison.compatibility import OF_TEMPLATE
from aftertune.comparison.margins import MARGIN, Margins
from aftertune.deploy.export import export_gguf, file_name, merged_weights, remove_stale
from aftertune.deploy.merged_weights import WeightsCheck, check_weights
from aftertune.deploy.prompts import PromptDifference, prompt_differences, server_writer, writer
from aftertune.deploy.stored_check import StoredLink, write_check
from aftertune.drift import DriftOptions, held_out_drift
from aftertune.errors import InputError, ResourceError
from aftertune.evaluation import evaluate
from aftertune.harness.server_client import ServerClient, listed, name_on_server, served_models
from aftertune.methods import writes_adapter
from aftertune.sources import load_tokenizer, resolve_model
from aftertune.study import EvalSpec, TaskSpec
from aftertune.study.links import Link, parse_links
from aftertune.tasks import LoadOptions, find_tasks
from aftertune.tasks.chat_template import template_date
from aftertune.tuning import read_tuning
from aftertune.values import CollapseSign, Comparison, ComparisonRow, Drift, DriftGroup, Evaluation, Progress, Tuning

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

#: Seconds that a server may take to write a prompt.
_TEMPLATE_SECONDS = 60.0
#: Settings of an evaluation that llama.cpp and servers decide themselves.
_OWN_WEIGHTS = ("dtype", "device", "engine", "engine_args", "template_date", "enable_thinking")


@dataclass(frozen=True, slots=True)
class QuantizationCost:
    """What the rounding of a GGUF file costs. whole: the name of the link with the weights that it was made from;
    compared: their answers. drift: of the token probabilities on the fine-tune's held-out texts, computed in float32;
    None where these cannot be read again."""

    whole: str
    compared: Comparison
    drift: DriftGroup | None = None


@dataclass(frozen=True, slots=True)
class CheckedLink:
    """A link with its answers. first, before: its comparison with the first link and with the one before; None for the
    first. prompts: the conversations of which it makes another prompt than the fine-tune's chat template. faults: what
    is wrong with its files or its prompts. cost: of a GGUF file after the weights that it was made from, else None."""

    link: Link
    evaluation: Evaluation
    first: Comparison | None = None
    before: Comparison | None = None
    weights: WeightsCheck | None = None
    prompts: tuple[PromptDifference, ...] = ()
    faults: tuple[str, ...] = ()
    cost: QuantizationCost | None = None

    @property
    def losses(self) -> tuple[ComparisonRow, ...]:
        """The tasks on which a loss beyond the margin is proven, against the link before or against the first."""
        found = {row.task: row for comparison in (self.first, self.before) if comparison
                 for row in comparison.rows if row.primary and row.verdict == "lower"}
        return tuple(found.values())

    @property
    def broken(self) -> bool:
        """True where its files have a fault, a loss is proven, or its answers collapsed."""
        return bool(self.faults or self.losses or self.collapse)

    @property
    def collapse(self) -> tuple[CollapseSign, ...]:
        """The signs of collapse that the link before, or the first one, does not have; each once."""
        signs = {(sign.task, sign.kind): sign for comparison in (self.before, self.first) if comparison
                 for sign in comparison.signs if not sign.base_too}
        return tuple(signs.values())


@dataclass(frozen=True, slots=True)
class ChainCheck:
    """The checked links, in the order in which they were given."""

    tuning: Tuning
    links: tuple[CheckedLink, ...]
    by_letter: bool = False
    notes: tuple[str, ...] = field(default=())

    @property
    def broken(self) -> CheckedLink | None:
        """The first link that is broken."""
        return next((link for link in self.links if link.broken), None)


def check_chain(word: str, chain: Sequence[str], task_specs: Sequence[TaskSpec], *, ledger: Ledger, out: Path,
                margins: Margins = MARGIN, progress: Progress | None = None) -> ChainCheck:
    """Evaluate each link of a finished tuning and compare it. word: the tuning's folder, id or name.

    out: folder for merged weights and GGUF files that do not exist yet, and for the result (`stored_check`). margins:
    as for `compare`. What is in the ledger is not asked again. Raises the errors of `evaluate`, `export_gguf` and
    `parse_links`.
    """
    links = parse_links(chain)
    run = Chain(read_tuning(word, ledger), links, task_specs, ledger=ledger, out=out, margins=margins)
    run.progress = progress or run.progress
    for number, link in enumerate(links):
        run.progress(number, len(links), link.name)
        run.check(link)
        if number == 0 and isinstance(margins, Mapping):
            check_margins(margins, [(run.checked[0].evaluation,) * 2])
    run.write()
    return run.result


class Chain:
    """The links of a finished tuning, which are asked one after another.

    settings: of `EvalSpec`, for all evaluations. The other arguments are those of `check_chain`.
    """

    def __init__(self, tuning: Tuning, links: Sequence[Link], task_specs: Sequence[TaskSpec], *, ledger: Ledger,
                 out: Path, margins: Margins = MARGIN, settings: Mapping[str, Any] | None = None) -> None:
        self.links, self.ledger, self.margins = tuple(links), ledger, margins
        self.progress: Progress = lambda *_: None
        self.asked, self.by_letter = _asked(links, task_specs, str((settings or {}).get("task_source", "auto")))
        self.maker = LinkMaker(tuning, out, ledger, lambda *words: self.progress(*words), settings or {})
        self.checked: list[CheckedLink] = []

    @property
    def result(self) -> ChainCheck:
        """The links that were checked so far."""
        return ChainCheck(self.maker.tuning, tuple(self.checked), self.by_letter, tuple(self.maker.notes))

    def write(self) -> None:
        """Keep what was found in the folder of the chain (`stored_check`)."""
        write_check(self.maker.tuning, [StoredLink(c.link.name, c.evaluation.id, c.faults) for c in self.checked],
                    self.maker.out)

    def check(self, link: Link) -> CheckedLink:
        """Ask a link, compare it with the first one and with the one before, and look at its files and prompts."""
        maker = self.maker
        weights = maker.weights() if link.kind == "merged" else None
        evaluation = evaluate(maker.spec(link, self.asked), ledger=self.ledger, progress=self.progress)
        with_prompts = any(maker.templated(spec) for spec in self.asked)
        prompts = maker.prompts(link) if with_prompts else ()
        faults = [fault.sentence for fault in weights.faults] if weights else []
        faults += [f"it makes other prompts of messages: {cause}" for cause in dict.fromkeys(p.cause for p in prompts)]
        cost = None
        if whole := _whole(self.checked) if link.kind == "gguf" else None:
            cost = QuantizationCost(whole.link.name, self._compared(whole.evaluation, evaluation), maker.drift(link))
        return self.add(CheckedLink(link, evaluation, weights=weights, prompts=prompts, faults=tuple(faults),
                                    cost=cost))

    def add(self, link: CheckedLink) -> CheckedLink:
        """Add a link that was asked, with its comparisons."""
        if self.checked:
            first, before = (self._compared(other.evaluation, link.evaluation)
                             for other in (self.checked[0], self.checked[-1]))
            link = replace(link, first=first, before=before)
        self.checked.append(link)
        return link

    def _compared(self, left: Evaluation, right: Evaluation) -> Comparison:
        return compare(left, right, margins=self.margins, ledger=self.ledger, force=OF_TEMPLATE)


def _whole(checked: Sequence[CheckedLink]) -> CheckedLink | None:
    """The link with the weights that a GGUF file was made from: the merged ones, or the fine-tune itself."""
    kinds = {link.link.kind: link for link in checked}
    return kinds.get("merged") or kinds.get("adapter")


def _asked(links: Sequence[Link], task_specs: Sequence[TaskSpec], source: str) -> tuple[tuple[TaskSpec, ...], bool]:
    """The tasks as all links are asked them, and whether any is asked by letter."""
    if all(link.scores for link in links):
        return tuple(task_specs), False
    specs = []
    for spec in task_specs:
        rows = [] if spec.target else find_tasks([spec], LoadOptions(source=source))
        multiple = bool(rows) and all(task.OUTPUT_TYPE == "multiple_choice" for _, task, _, _ in rows)
        specs.append(spec.model_copy(update={"letters": True}) if multiple else spec)
    return tuple(specs), any(spec.letters for spec in specs)


class LinkMaker:
    """Makes the files of links that do not exist yet, in the folder ``out``. settings: of their evaluations."""

    def __init__(self, tuning: Tuning, out: Path, ledger: Ledger, progress: Progress,
                 settings: Mapping[str, Any] | None = None) -> None:
        self.tuning, self.out, self.ledger, self.progress = tuning, out, ledger, progress
        self.settings = dict(settings or {})
        self.notes: list[str] = []
        self.day: str | None = self.settings.get("template_date") or tuning.settings.get("template_date")

    def templated(self, spec: TaskSpec) -> bool:
        """Whether a task is asked with the chat template."""
        chat = spec.apply_chat_template
        return bool(self.settings.get("apply_chat_template")) if chat is None else chat

    def spec(self, link: Link, task_specs: tuple[TaskSpec, ...]) -> EvalSpec:
        """The evaluation of a link."""
        tuning = self.tuning
        common: dict[str, Any] = {**{k: v for k, v in self.settings.items() if link.scores or k not in _OWN_WEIGHTS},
                                  "tasks": task_specs, "name": link.evaluation_name(called(tuning))}
        if link.kind == "openai":
            model = link.model or _only_model(link.detail)
            return EvalSpec(**{**common, "model": model, "engine": f"openai:{link.detail}"})
        if link.kind == "llamacpp":
            return EvalSpec(**{**common, "model": str(self.file(link.detail)), "engine": "llamacpp"})
        if self.day is not None:
            common["template_date"] = self.day
        if link.kind == "gguf":
            return EvalSpec(model=str(self.file(link.detail)), **common)
        base = tuning.base
        common["trust_remote_code"] = base.trust_remote_code
        if link.kind == "merged":
            return EvalSpec(model=str(self.merged), **common)
        if not writes_adapter(tuning.method):
            return EvalSpec(model=tuning.output, **common)
        return EvalSpec(model=base.source, revision=base.revision, adapter=tuning.output,
                        quantize="nf4" if base.quantization else None, **common)

    @property
    def merged(self) -> Path:
        """The folder of the merged weights."""
        folder, note = merged_weights(self.tuning, self.out, self.progress)
        self._note(note)
        return folder

    def _note(self, *notes: str) -> None:
        self.notes += [note for note in notes if note and note not in self.notes]

    def weights(self) -> WeightsCheck | None:
        """The comparison of the merged weights with base and adapter; None for a tuning of whole weights."""
        if not writes_adapter(self.tuning.method):
            return None
        base = self.tuning.base
        return check_weights(base.source, self.tuning.output, str(self.merged), revision=base.revision,
                             trust_remote_code=base.trust_remote_code, progress=self.progress)

    def prompts(self, link: Link) -> tuple[PromptDifference, ...]:
        """The conversations of which the link makes another prompt than the fine-tune's chat template."""
        if link.kind == "adapter":
            return ()
        base, trusted = self.tuning.base, self.tuning.base.trust_remote_code
        if writes_adapter(self.tuning.method):
            source = resolve_model(base.source, revision=base.revision, trust_remote_code=trusted)
        else:
            source = resolve_model(self.tuning.output, trust_remote_code=trusted)
        tokenizer = load_tokenizer(source)
        if not tokenizer.chat_template:
            return ()
        if link.kind == "openai":
            return self._server_prompts(link, tokenizer)
        file = self.merged if link.kind == "merged" else self.file(link.detail)
        theirs = writer(load_tokenizer(resolve_model(str(file), trust_remote_code=trusted)), self.day)
        return tuple(prompt_differences(writer(tokenizer, self.day), theirs, bos=tokenizer.bos_token))

    def _server_prompts(self, link: Link, tokenizer: Any) -> tuple[PromptDifference, ...]:
        """The conversations of which a server makes another prompt. A template that writes a date gets that of today on
        both sides, as servers do it, or of a day beside it, which it may be where the server is; a note says which one
        the fine-tune has."""
        client = ServerClient(link.detail, retries=1, timeout=_TEMPLATE_SECONDS)
        theirs = server_writer(client, name_on_server(client, link.model or _only_model(link.detail)), tokenizer)
        if theirs is None:
            self.notes.append(f"{link.name} does not say which prompts it makes of messages, so they are not compared")
            return ()
        days = [today := date.today()]
        if (ours := template_date(tokenizer, self.day)) is not None:
            self.notes.append(f"the chat template writes the date: {ours} in the fine-tune, that of the day in "
                              f"{link.name}")
            days += [today - timedelta(1), today + timedelta(1)]
        found: list[PromptDifference] = []
        for day in days:
            different = prompt_differences(writer(tokenizer, day.isoformat()), theirs, bos=tokenizer.bos_token,
                                           asked=True)
            if not different:
                return ()
            found = found or different
        return tuple(found)

    def drift(self, link: Link) -> DriftGroup | None:
        """How far the token probabilities of a GGUF file are from those of the merged weights."""
        found: Drift | str
        try:
            found = held_out_drift(self.tuning, str(self.merged), str(self.file(link.detail)), DriftOptions(
                dtype="float32", trust_remote_code=self.tuning.base.trust_remote_code), ledger=self.ledger,
                progress=self.progress)
        except ResourceError as error:  # the links were asked in the dtype of their files, which takes less memory
            found = f"the token probabilities of {link.name} were not compared in float32: {error}"
        if not isinstance(found, str):
            return found.groups[0]
        self._note(found)
        return None

    def file(self, kind: str) -> Path:
        """The GGUF file of a type, exported where it does not exist."""
        folder = self.out / f"gguf-{kind}"
        merged = self.merged
        stale = remove_stale(folder, self.tuning)
        export = export_gguf(self.tuning.id, (kind,), folder, ledger=self.ledger, progress=self.progress, merged=merged)
        self._note(stale, *export.notes)
        return folder / file_name(kind)


def called(tuning: Tuning) -> str:
    """How links of a tuning are called: by its name, or by its folder where it has none."""
    return Path(tuning.output).name if tuning.name == tuning.id and tuning.output else tuning.name


def _only_model(url: str) -> str:
    """The name of the only model of a server. Raises InputError if it lists none or several."""
    names = served_models(ServerClient(url, retries=1))
    if len(names) != 1:
        what = f"has the models {listed(names)}" if names else "does not list its models"
        raise InputError(f"the server {url} {what}; name one in the chain: openai:{url}#NAME")
    return names[0]
