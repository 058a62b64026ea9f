"""Texts through transformers' own generate: greedy waves, stop strings, sampling."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aftertune.engine.hf_generate import Generator
from aftertune.engine.tokenize import Encoder, Generation
from aftertune.errors import InputError
from eval_cases import byte_config, byte_llama, byte_tokenizer


def texts(prompts: list[str], settings: dict[str, Any], *, together: bool, model: Any = None) -> dict[int, Any]:
    tokenizer = byte_tokenizer()
    generator = Generator(model or byte_llama(), tokenizer)
    generation = Generation.resolve({"max_gen_toks": 24, **settings}, "</s>")
    encoder = Encoder(tokenizer, 256)
    wave = {n: encoder.prompt(p, generation.max_tokens) for n, p in enumerate(prompts)}
    if together:
        return generator.run(wave, generation)
    return {p: r for n in wave for p, r in generator.run({n: wave[n]}, generation).items()}


PROMPTS = ["a", "The sky is", "ab ab ab ab", "Q: 1+1? A:", "zz", "one two three four five six"]


def literal(prompt: str, limit: int) -> tuple[list[int], bool]:
    """Greedy tokens one by one, without a cache; True where EOS ended them."""
    model, tokenizer = byte_llama(), byte_tokenizer()
    ids, start = tokenizer.encode(prompt), len(tokenizer.encode(prompt))
    for _ in range(limit):
        with torch.inference_mode():
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
        if ids[-1] == tokenizer.eos_token_id:
            return ids[start:], True
    return ids[start:], False


def test_waves_give_the_texts_of_a_literal_greedy_loop() -> None:
    waved, single = texts(PROMPTS, {}, together=True), texts(PROMPTS, {}, together=False)
    assert waved == single
    ends = set()
    for n, prompt in enumerate(PROMPTS):
        tokens, ended = literal(prompt, 24)
        assert waved[n].text == byte_tokenizer().decode(tokens, skip_special_tokens=True)
        assert (waved[n].tokens, waved[n].finish) == (len(tokens), "eos" if ended else "length")
        ends.add(waved[n].finish)
    assert "length" in ends


def test_a_row_stops_at_a_stop_string_and_is_cut_there() -> None:
    free = texts(PROMPTS, {}, together=True)
    stops = {n: r.text[5:7] for n, r in free.items() if r.finish == "length" and r.text[5:7].isascii()}
    assert stops
    for n, stop in stops.items():
        actual = texts(PROMPTS, {"until": [stop]}, together=True)
        assert actual[n].text == free[n].text.split(stop)[0]
        assert actual[n].finish == "stop"
        assert actual[n].tokens < 24
        for other in set(free) - {n}:
            assert actual[other].text == free[other].text.split(stop)[0]


def test_sampled_texts_depend_on_the_position_alone() -> None:
    sampled = {"do_sample": True, "temperature": 1.0}
    first, again = (texts(["a", "a"], sampled, together=False) for _ in range(2))
    assert first == again
    assert first[0].text != first[1].text


def test_settings_that_transformers_rejects_are_an_error() -> None:
    with pytest.raises(InputError, match="generation settings"):
        texts(["a"], {"no_such_option": 3}, together=True)


def test_the_tiny_config_is_what_the_tests_say() -> None:
    assert byte_config().num_hidden_layers == 2
