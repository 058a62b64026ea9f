"""Texts in KV slots against transformers' own generate: the same texts, ends and counts, in any number of slots."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from aftertune.engine import packing
from aftertune.engine.decoder import Decoder, StopCriteria, Wave
from aftertune.engine.engine import Engine
from aftertune.engine.hf_generate import Generator
from aftertune.engine.sampling import can_use_slots
from aftertune.engine.schedule import Budget
from aftertune.engine.scorer import Scorer
from aftertune.engine.tokenize import Encoder, Generation, Prompt
from aftertune.values import Request, Response
from eval_cases import FAMILIES, SLIDING, byte_llama, byte_tokenizer, family

HEAD = "Answer in a word. ab ab is so and so:"  # longer than any window of the families
ENDS = ["", " a", " of many tokens, far longer than what the others have to say of it ab ab ab ab", " zz", " 1+1=",
        " ab", " The sky is what it is", " x" * 9, " no"]
Texts = dict[int, Response]


def settings(**values: Any) -> Generation:
    return Generation.resolve({"max_gen_toks": 10, **values}, "</s>")


def prompts(texts: list[str] | None = None) -> dict[int, Prompt]:
    """Prompts by request position; positions are not in order."""
    encoder = Encoder(byte_tokenizer(), 512)
    results = texts if texts is not None else [HEAD + end for end in ENDS]
    return {(7 * n + 3) % 100: encoder.prompt(text, 64) for n, text in enumerate(results)}


def decoded(model: Any, wave: dict[int, Prompt], one: Generation, *, slots: int, head: tuple[int, ...] = (),
            tokens: int = 128) -> Texts:
    """The texts of one wave; `ended` is called once for each."""
    ended: list[int] = []
    decoder = Decoder(Scorer(model, packed=True), byte_tokenizer(), tokens=tokens)
    actual: Texts = decoder.run(wave, one, Wave(slots, head, ended.append))
    assert Counter(ended) == Counter(list(wave))
    assert list(actual) == list(wave)
    return actual


def generated(model: Any, wave: dict[int, Prompt], one: Generation) -> Texts:
    """The definition: transformers' generate, one prompt at a time."""
    generator = Generator(model, byte_tokenizer())
    return {p: r for p, q in wave.items() for p, r in generator.run({p: q}, one).items()}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_slots_give_the_texts_of_generate(name: str, shared: bool) -> None:
    model, wave, generation = family(name), prompts(), settings()
    head = tuple(byte_tokenizer().encode(HEAD[:-1])) if shared else ()
    assert not shared or len(head) > SLIDING
    expected = generated(model, wave, generation)
    for slots in (1, 2, 5, 20):
        assert decoded(model, wave, generation, slots=slots, head=head) == expected, slots
    assert decoded(model, wave, generation, slots=5, head=head, tokens=1) == expected  # one prompt per pass
    assert len({r.text for r in expected.values()}) == len(expected), "the texts differ"


def test_prompts_of_one_token_and_of_hundreds_share_a_wave() -> None:
    model, generation = byte_llama(), settings()
    wave = prompts(["a", "b" * 400, "z", "c" * 37, "ab" * 150, " ab", "q"])
    expected = generated(model, wave, generation)
    for slots in (1, 2, 3, 7):
        assert decoded(model, wave, generation, slots=slots) == expected


@pytest.mark.parametrize("limit", [1, 2, 40])
def test_the_limit_ends_a_text(limit: int) -> None:
    model, wave, generation = byte_llama(), prompts(), settings(max_gen_toks=limit)
    expected = generated(model, wave, generation)
    assert any(r.tokens == limit and r.finish == "length" for r in expected.values())
    for slots in (1, 2, 5):
        assert decoded(model, wave, generation, slots=slots) == expected


def first_tokens(model: Any, wave: dict[int, Prompt], count: int) -> list[list[int]]:
    with torch.inference_mode():
        return [model.generate(input_ids=torch.tensor([q.tokens]), max_new_tokens=count, do_sample=False,
                               pad_token_id=2)[0, len(q.tokens):].tolist() for q in wave.values()]


@pytest.mark.parametrize("place", [0, 1, 4])
def test_an_end_token_ends_a_text_even_the_first(place: int) -> None:
    """Every token that some text has at this place counts as the end, one or many of them."""
    model, wave, generation = byte_llama(), prompts(), settings()
    tokens = first_tokens(model, wave, 10)
    for ends in (tokens[0][place], sorted({t[place] for t in tokens})):
        model.generation_config.eos_token_id = ends
        expected = generated(model, wave, generation)
        stopped = [r for r in expected.values() if r.finish == "eos"]
        assert any(r.tokens == place + 1 for r in stopped)
        assert all(len(r.text or "") >= 1 for r in stopped), "an end token that is text is read, as lm-eval does"
        assert isinstance(ends, int) or len(stopped) == len(wave)
        for slots in (1, 2, 5):
            assert decoded(model, wave, generation, slots=slots) == expected
        model.generation_config.eos_token_id = 1


def test_the_end_of_text_may_come_first() -> None:
    model, wave, generation = byte_llama(), prompts(), settings()
    first = first_tokens(model, wave, 1)[2][0]
    with torch.no_grad():
        model.lm_head.weight[1] = 1.5 * model.lm_head.weight[first]
    expected = generated(model, wave, generation)
    assert Response(text="", tokens=1, finish="eos") in expected.values()
    assert any((r.tokens or 0) > 1 for r in expected.values())
    for slots in (1, 2, 5):
        assert decoded(model, wave, generation, slots=slots) == expected


def talkative() -> Any:
    """A Llama that likes letters, and the token " ab" best of all."""
    model, tokenizer = byte_llama(), byte_tokenizer()
    liked = [tokenizer.convert_tokens_to_ids(t) for t in [*"abcdefghij.!", "Ġab", "Ġa"]]
    with torch.no_grad():
        model.lm_head.weight[liked] *= 4
    return model


def test_a_stop_string_ends_a_text_within_a_token_and_across_tokens() -> None:
    model, wave = talkative(), prompts()
    free = decoded(model, wave, settings(max_gen_toks=24), slots=4)
    whole = [r.text or "" for r in free.values()]
    across = {t[n: n + 3] for t in whole for n in range(2, 12) if t[n: n + 3].isalpha() and t[n: n + 3].isascii()}
    assert len(across) >= 5
    assert sum(" ab" in t for t in whole) >= 2
    for stop in ["b", " a", "ab", *sorted(across)[:4]]:
        generation = settings(max_gen_toks=24, until=[stop])
        expected = generated(model, wave, generation)
        for slots in (1, 4, 20):
            assert decoded(model, wave, generation, slots=slots) == expected, stop
        for p, r in expected.items():
            assert r.text == (free[p].text or "").split(stop)[0]
        assert any(r.finish == "stop" for r in expected.values()), stop


def test_several_stop_strings_and_the_end_of_text_among_them() -> None:
    model, wave = talkative(), prompts()
    for until in (["\n\n", "c", "</s>"], ["zzzz"], [], ["", "a"]):
        generation = settings(max_gen_toks=16, until=until)
        assert decoded(model, wave, generation, slots=3) == generated(model, wave, generation)


def test_the_end_of_a_text_by_its_parts() -> None:
    tokenizer = byte_tokenizer()
    ids = {t: tokenizer.convert_tokens_to_ids(t) for t in ("a", "b", "Ġab", "c", "</s>", "<pad>")}
    ending = StopCriteria(byte_llama(), tokenizer, settings(max_gen_toks=4, until=["b", "cc"]))

    def end(*tokens: str) -> tuple[bool, Response]:
        text = [ids[t] for t in tokens]
        return ending.ended([text])[0], ending.response(text, 5)

    assert end("a") == (False, Response(text="a", tokens=1, finish="length", truncated=5))
    assert end("a", "Ġab") == (True, Response(text="a a", tokens=2, finish="stop", truncated=5))
    assert end("a", "c", "c") == (True, Response(text="a", tokens=3, finish="stop", truncated=5))
    assert end("a", "c", "a", "c") == (True, Response(text="acac", tokens=4, finish="length", truncated=5))
    assert end("</s>") == (True, Response(text="", tokens=1, finish="eos", truncated=5))
    assert end("a", "</s>") == (True, Response(text="a", tokens=2, finish="eos", truncated=5))
    assert ending.ended([[ids["a"]], [ids["b"]], [ids["c"], ids["</s>"]]]) == [False, True, True]


def adapted() -> Any:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(byte_llama(), LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=rng) * 0.5)
    return model.eval()


@pytest.mark.parametrize("shared", [False, True])
def test_an_adapter_writes_its_own_texts(shared: bool) -> None:
    model, wave, generation = adapted(), prompts(), settings()
    head = tuple(byte_tokenizer().encode(HEAD[:-1])) if shared else ()
    expected = generated(model, wave, generation)
    for slots in (1, 2, 5):
        assert decoded(model, wave, generation, slots=slots, head=head) == expected
    base = generated(byte_llama(), wave, generation)
    assert all(base[p].text != expected[p].text for p in wave)


class Counts:
    """The rows of each pass: how many tokens, by the length of the flat batch."""

    def __init__(self, model: Any) -> None:
        self.widths: list[int] = []
        model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: Any, args: Any, values: dict[str, Any]) -> None:
        assert values["input_ids"].shape[0] == 1
        self.widths.append(values["input_ids"].shape[1])


def test_slots_stay_busy_until_nothing_waits() -> None:
    """Texts of very different lengths: a free slot is used again immediately."""
    model, wave = byte_llama(), prompts(["a", "b", "c", "d", "e", "f", "g", "h"])
    model.generation_config.eos_token_id = [t[n % len(t)] for n, t in enumerate(first_tokens(model, wave, 9))]
    generation = settings(max_gen_toks=30)
    lengths = {p: r.tokens or 0 for p, r in generated(model, wave, generation).items()}
    assert len(set(lengths.values())) >= 3
    counts = Counts(model)
    decoded(model, wave, generation, slots=2)
    fills = sum(len(q.tokens) for q in wave.values())
    assert sum(counts.widths) == fills + sum(lengths.values()) - len(wave)  # no token is computed twice, none is idle
    assert max(counts.widths) == 2
    counts.widths.clear()
    decoded(model, wave, generation, slots=8)
    assert counts.widths[0] == fills
    assert counts.widths[1:] == [sum(n > k for n in lengths.values()) for k in range(1, max(lengths.values()))]


def test_forced_steps_are_one_forward_pass() -> None:
    model, tokens = byte_llama(), tuple(byte_tokenizer().encode(HEAD))
    actual = Decoder(Scorer(model, packed=True), None, tokens=0).teacher_forced(tokens, 7)
    with torch.inference_mode():
        logits = model(torch.tensor([tokens[:-1]])).logits[0].log_softmax(-1)[-7:]
    expected = logits.gather(1, torch.tensor(tokens[-7:])[:, None])[:, 0]
    assert actual.tolist() == pytest.approx(expected.tolist(), abs=1e-4)


HARMLESS: list[dict[str, Any]] = [
    {}, {"temperature": 0.0}, {"temperature": 0.7, "do_sample": False}, {"top_k": 5}, {"top_p": 0.9},
    {"repetition_penalty": 1.0}, {"num_beams": 1}, {"length_penalty": 1.0}, {"no_repeat_ngram_size": None}]
HARMFUL: list[dict[str, Any]] = [
    {"repetition_penalty": 1.1}, {"num_beams": 2}, {"no_repeat_ngram_size": 2}, {"suppress_tokens": [70, 71]},
    {"min_new_tokens": 4}, {"bad_words_ids": [[70]]}, {"forced_eos_token_id": 1}]


def asked(values: dict[str, Any]) -> Generation:
    return Generation.resolve({"max_gen_toks": 8, **values}, "</s>")


@pytest.mark.parametrize("values", HARMLESS, ids=str)
def test_greedy_texts_take_slots(values: dict[str, Any]) -> None:
    model = byte_llama()
    assert can_use_slots(model, asked(values))
    for name, value in values.items():
        setattr(model.generation_config, name, value)
    assert can_use_slots(model, asked({}))
    model.generation_config.do_sample = True  # lm-eval's rule: a task's settings decide that
    model.generation_config.update(temperature=0.6, top_p=0.9, max_length=4096, eos_token_id=[1, 5])
    assert can_use_slots(model, asked({}))
    assert can_use_slots(adapted(), asked({}))


def engine(model: Any, *, packed: bool = True, slots: int = 2) -> Engine:
    return Engine(model, byte_tokenizer(), packed=packed,
                  budget=Budget(tokens=200, logits=100, cells=10**6, slots=slots, threads=1))


def texts(model: Any, values: dict[str, Any], *, packed: bool = True, slots: int = 2) -> tuple[Texts, list[int]]:
    """The texts of a whole engine, and the slots of each of its waves."""
    packed_engine = engine(model, packed=packed, slots=slots)
    requests = [Request(position=n, kind="generate", context=HEAD + end, generation={"max_gen_toks": 8, **values},
                        item=n) for n, end in enumerate(ENDS)]
    plan = packed_engine.plan(requests)
    assert plan.decision.packed == packed
    responses = {p: r for b in packed_engine.run(plan, set()) for p, r in b.responses.items()}
    return responses, [job.slots for job in plan.jobs]


@pytest.mark.parametrize("packed", [True, False])
def test_texts_share_the_tokens_that_a_budget_holds(packed: bool) -> None:
    """Long prompts are continued fewer at a time, in slots or by generate."""
    requests = [Request(position=n, kind="generate", context=chr(97 + n) * 40, generation={"max_gen_toks": 8}, item=n)
                for n in range(6)]
    at_once = []
    for keys in (48, 100, 200, 10**6):
        budget = Budget(tokens=200, logits=100, cells=10**6, slots=5, threads=1, keys=keys)
        first = Engine(byte_llama(), byte_tokenizer(), packed=packed, budget=budget).plan(requests).jobs[0]
        at_once.append(first.slots if packed else len(first.prompts))
    assert at_once == [1, 2, 4, 5]


@pytest.mark.parametrize("values", HARMFUL, ids=str)
def test_other_rules_of_choice_go_through_generate(values: dict[str, Any]) -> None:
    model, one = byte_llama(), asked(values)
    assert not can_use_slots(model, one)
    actual, slots = texts(model, values)
    assert set(slots) == {0}
    tokenizer = byte_tokenizer()
    for n, end in enumerate(ENDS):
        ids = tokenizer(HEAD + end, return_tensors="pt").input_ids
        with torch.inference_mode():
            expected = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=2, **values)
        assert actual[n].text == tokenizer.decode(expected[0, ids.shape[1]:], skip_special_tokens=True)
    for name, value in values.items():
        setattr(model.generation_config, name, value)
    assert not can_use_slots(model, asked({}))
    by_config, slots = texts(model, {})
    assert set(slots) == {0}
    assert by_config == actual


@pytest.mark.parametrize("values", [
    {"temperature": 0.8}, {"do_sample": True, "top_k": 7}, {"do_sample": True, "top_p": 0.6, "top_k": 0},
    {"temperature": 1.5, "min_p": 0.02}], ids=str)
def test_sampled_texts_are_those_of_generate_whatever_they_sat_beside(values: dict[str, Any]) -> None:
    model, tokenizer = byte_llama(), byte_tokenizer()
    assert can_use_slots(model, asked(values))
    actual, slots = texts(model, values)
    assert set(slots) == {2}
    assert texts(model, values, slots=1)[0] == texts(model, values, slots=5)[0] == actual
    settings = dict(asked(values).options)
    for n, end in enumerate(ENDS):
        ids = tokenizer(HEAD + end, return_tensors="pt").input_ids
        torch.manual_seed(n)
        with torch.inference_mode():
            expected = model.generate(ids, max_new_tokens=8, do_sample=True, pad_token_id=2, **settings)
        assert actual[n].text == tokenizer.decode(expected[0, ids.shape[1]:], skip_special_tokens=True)
    assert actual != texts(model, {})[0]


def test_draws_by_other_rules_go_through_generate() -> None:
    for values in ({"temperature": 0.8, "typical_p": 0.5}, {"temperature": 0.8, "eta_cutoff": 0.1}):
        assert not can_use_slots(byte_llama(), asked(values))
    assert can_use_slots(byte_llama(), asked({"typical_p": 0.5}))
    actual, slots = texts(byte_llama(), {"temperature": 0.8, "typical_p": 0.5})
    assert set(slots) == {0}
    assert len(slots) == len(actual) == len(ENDS)


@pytest.mark.parametrize("values", [{}, {"until": ["a"]}, {"eos_token_id": [70, 90, 110, 130, 150, 170, 190, 210]}],
                         ids=str)
def test_the_engines_agree(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed and plain, with the prefix shared and not, one slot or many: the same responses."""
    expected, none = texts(byte_llama(), values, packed=False)
    assert set(none) == {0}
    for least in (256, 10**6):
        monkeypatch.setattr(packing, "MIN_SAVED", least)
        for slots in (1, 3, 40):
            actual, each = texts(byte_llama(), values, slots=slots)
            assert actual == expected
            assert set(each) == {slots}


def test_an_empty_prompt_is_continued() -> None:
    wave = {0: Encoder(byte_tokenizer(), 64).prompt("", 8), 1: Encoder(byte_tokenizer(), 64).prompt("ab", 8)}
    expected = generated(byte_llama(), wave, settings())
    assert decoded(byte_llama(), wave, settings(), slots=2) == expected


@pytest.mark.parametrize("values", [
    {}, {"until": ["b", " a"]}, {"num_beams": 3}, {"num_beams": 3, "until": ["b", "i", "gh"]},
    {"eos_token_id": [67, 68, 72, 73]}, {"repetition_penalty": 1.3, "until": ["b"]}], ids=str)
def test_texts_are_lm_evals(values: dict[str, Any]) -> None:
    """lm-eval's own model class, one prompt at a time: stop strings, beams, and end tokens that are text."""
    model = talkative()
    with contextlib.redirect_stderr(io.StringIO()):
        theirs = HFLM(pretrained=model, tokenizer=byte_tokenizer(), batch_size=1)
        asked_of = [Instance(request_type="generate_until", doc={}, idx=n,
                             arguments=(HEAD + end, {"max_gen_toks": 8, "until": [], **values}))
                    for n, end in enumerate(ENDS)]
        expected = theirs.generate_until(asked_of, disable_tqdm=True)
    for packed in (True, False):
        actual, _ = texts(model, values, packed=packed)
        assert [actual[n].text for n in range(len(ENDS))] == expected
    assert len(set(expected)) > 3


def test_prompts_that_are_equal_keep_their_last_token() -> None:
    """All of them may share all but the last token, which predicts the first new one."""
    same = [Request(position=n, kind="generate", context=HEAD * 5 + ("" if n else "."), item=n,
                    generation={"max_gen_toks": 6}) for n in range(4)]
    packed_engine = engine(byte_llama())
    plan = packed_engine.plan(same)
    assert [len(job.prefix) for job in plan.jobs] == [len(byte_tokenizer().encode(HEAD * 5)) - 1]
    plain = engine(byte_llama(), packed=False)
    expected = {p: r for b in plain.run(plain.plan(same), set()) for p, r in b.responses.items()}
    assert {p: r for b in packed_engine.run(plan, set()) for p, r in b.responses.items()} == expected


class Starved:
    """Out of memory once a pass holds more than ``most`` tokens."""

    def __init__(self, model: Any, most: int) -> None:
        self.most, self.failed = most, 0
        model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: Any, args: Any, values: dict[str, Any]) -> None:
        if values["input_ids"].shape[1] > self.most:
            self.failed += 1
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")


@pytest.mark.parametrize("at", [3, 12, 20])
def test_each_text_counts_once_for_progress(at: int) -> None:
    """Memory runs out when some texts have ended: they are generated again, but counted once."""
    model = byte_llama()
    parts = engine(model)
    plan = parts.plan([Request(position=n, kind="generate", context="z" * n, generation={"max_gen_toks": 5}, item=n)
                       for n in range(1, 9)])
    calls, ticks, splits = [], [], []

    def once(*_: Any) -> None:
        calls.append(1)
        if len(calls) == at:
            raise RuntimeError("out of memory")

    model.register_forward_pre_hook(once)
    [batch] = parts.run(plan, set(), lambda _, rows: splits.append(rows), ticks.append)
    assert splits == [8]
    assert len(ticks) == 8
    assert sum(ticks) == batch.cost == plan.cost


def test_a_wave_continues_in_fewer_slots_after_an_oom_split() -> None:
    """Each OOM split also halves the slots. An ended text is counted once, and no text is missing."""
    wave_of = [Request(position=n, kind="generate", context="z", generation={"max_gen_toks": 8}, item=n)
               for n in range(16)]
    expected, actual, splits, ticks = [], [], [], []
    for most in (10**6, 2):
        model = byte_llama()
        packed_engine = engine(model, slots=8)
        plan = packed_engine.plan(wave_of)
        assert [job.slots for job in plan.jobs] == [8]
        Starved(model, most)
        into = expected if most > 2 else actual
        cost = 0
        for batch in packed_engine.run(plan, set(), lambda b, rows: splits.append((b, rows)), ticks.append):
            into.append(dict(batch.responses))
            cost += batch.cost
        assert sum(ticks) <= cost
        ticks.clear()
    assert actual == expected
    assert splits[:2] == [(0, 16), (0, 8)]
    assert len(splits) == 3  # 16 texts in 8 slots, twice 8 in 4, and then 4 in 2 each time
