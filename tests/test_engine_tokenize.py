"""Texts to tokens, against lm-eval's own ``hf`` model: the ids that reach its forward pass are ours."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from transformers import LlamaConfig

from aftertune.engine.tokenize import Encoder, Generation, context_length
from aftertune.errors import InputError
from eval_cases import byte_llama, byte_tokenizer
from source_cases import tiny_tokenizer

WINDOW = 24
TOKENIZERS: dict[str, Callable[[], Any]] = {
    "bytes": byte_tokenizer, "bytes, adds BOS": lambda: byte_tokenizer(adds_bos=True),
    "bytes, no BOS": lambda: byte_tokenizer(bos=False), "words": tiny_tokenizer}


class Recorder(HFLM):  # type: ignore[misc]
    """lm-eval's model class; what would enter the model is kept instead."""

    inputs: list[list[int]]

    def _model_call(self, inps: torch.Tensor, attn_mask: Any = None, labels: Any = None) -> torch.Tensor:
        self.inputs += inps.tolist()
        return torch.zeros(*inps.shape, 264)

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **_: Any) -> torch.Tensor:
        self.inputs += context.tolist()
        return context

    def ids(self, kind: str, *arguments: Any) -> list[list[int]]:
        """Ids that enter the model for one request."""
        self.inputs = []
        request = Instance(request_type=kind, doc={}, arguments=arguments, idx=0)
        with contextlib.redirect_stderr(io.StringIO()):
            getattr(self, kind)([request], disable_tqdm=True)
        return self.inputs


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def pair(request: pytest.FixtureRequest) -> tuple[Encoder, Recorder]:
    tokenizer = TOKENIZERS[request.param]()
    with contextlib.redirect_stderr(io.StringIO()):
        other = Recorder(pretrained=byte_llama(window=WINDOW), tokenizer=tokenizer, batch_size=1)
    return Encoder(tokenizer, WINDOW), other


pieces = st.sampled_from(["a", "b", " a", " ab", "  ", " ", "w1 ", "w12", "é", "\n", "<s>", "zz", "€", "abab"])
texts = st.lists(pieces, max_size=18).map("".join)
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(context=texts, continuation=texts)
def test_scored_pairs_are_lm_evals(pair: tuple[Encoder, Recorder], context: str, continuation: str) -> None:
    ours, theirs = pair
    try:
        sequence = ours.score(context, continuation)
    except InputError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert "no tokens" in message or "context length" in message
        return
    if context and not context.strip(" \n") and not theirs._encode_pair(context, continuation)[0]:
        assert sequence.tokens[0] == ours.prefix_token  # lm-eval's own assertion fails here
        assert len(sequence.tokens) == sequence.targets + 1
        return
    if context:
        head, target = theirs._encode_pair(context, continuation)
        assert sequence.alone == (not target)
        if not target:  # a token spans the two, and lm-eval's own assertion fails; see its pull request 4055
            target = theirs.tok_encode(continuation, add_special_tokens=False)
            assert sequence.tokens == tuple((head + target)[-(WINDOW + 1):])
            assert sequence.targets == len(target)
            return
        assert sequence.tokens == tuple((head + target)[-(WINDOW + 1):])
        assert sequence.targets == len(target)
        assert sequence.truncated == max(len(head) + len(target) - WINDOW - 1, 0)
    assert theirs.ids("loglikelihood", context, continuation) == [list(sequence.tokens[:-1])]


@quick
@given(text=texts.filter(bool))
def test_rolling_windows_are_lm_evals(pair: tuple[Encoder, Recorder], text: str) -> None:
    ours, theirs = pair
    windows = ours.rolling(text)
    assert [list(w.tokens[:-1]) for w in windows] == theirs.ids("loglikelihood_rolling", text)
    assert sum(w.targets for w in windows) == len(ours.encode(text))
    assert [t for w in windows for t in w.tokens[-w.targets:]] == ours.encode(text)
    assert all(len(w.tokens) <= WINDOW + 1 for w in windows)


@quick
@given(context=texts.filter(bool), room=st.integers(1, WINDOW - 1))
def test_prompts_are_lm_evals(pair: tuple[Encoder, Recorder], context: str, room: int) -> None:
    ours, theirs = pair
    prompt = ours.prompt(context, room)
    [ids] = theirs.ids("generate_until", context, {"until": ["x"], "max_gen_toks": room})
    assert list(prompt.tokens) == (ids or [ours.prefix_token])  # generate takes no empty prompt
    assert len(prompt.tokens) <= WINDOW - room


def test_there_is_one_bos_whether_text_or_tokenizer_adds_it() -> None:
    encoder = Encoder(byte_tokenizer(adds_bos=True), 100)
    for text in ("a b", "<s>a b"):
        for ids in (encoder.score(text, " c").tokens, encoder.prompt(text, 8).tokens,
                    encoder.rolling(text)[0].tokens[-len(encoder.encode(text)):]):
            assert list(ids).count(encoder.prefix_token) == 1, text
    assert encoder.score("", "a").tokens[0] == encoder.prefix_token


def test_an_empty_prompt_begins_with_the_prefix_token() -> None:
    for bos in (True, False):
        encoder = Encoder(byte_tokenizer(bos=bos), 100)
        assert encoder.prompt("", 8).tokens == encoder.score("", "a").tokens[:1] == (encoder.prefix_token,)


def test_spaces_before_the_answer_belong_to_it() -> None:
    tokenizer = byte_tokenizer()
    encoder = Encoder(tokenizer, 100)
    kept = encoder.score("zz ", "ab")
    assert kept == encoder.score("zz", " ab")
    assert tokenizer.decode(list(kept.tokens[-kept.targets:])) == " ab"
    assert kept.targets == 1  # " ab" is one token of this tokenizer; "ab" after "zz " would be another


def test_a_text_that_cannot_be_tokenized_is_an_error() -> None:
    encoder = Encoder(byte_tokenizer(), 8)
    with pytest.raises(InputError, match="has no tokens"):
        encoder.score("zz", "")
    with pytest.raises(InputError, match="more than the model's context length of 8"):
        encoder.score("z", "z" * 9)
    with pytest.raises(InputError, match="max_gen_toks is 8"):
        encoder.prompt("z", 8)
    tokenizer = byte_tokenizer(bos=False)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="neither a BOS nor an EOS"):
        Encoder(tokenizer, 8)


def test_the_context_length_is_lm_evals(pair: tuple[Encoder, Recorder]) -> None:
    tokenizer = pair[0].tokenizer
    assert context_length(byte_llama(window=WINDOW).config, tokenizer) == pair[1].max_length == WINDOW
    assert context_length(LlamaConfig(max_position_embeddings=77), tokenizer) == 77


SETTINGS = [
    {}, {"until": ["\n"]}, {"until": "\n\n"}, {"until": ["</s>", "Q:"], "max_gen_toks": 5},
    {"max_new_tokens": 7}, {"max_tokens": 9, "max_gen_toks": 3}, {"max_completion_tokens": 4},
    {"do_sample": False, "temperature": 0.7}, {"temperature": 0.7}, {"temperature": 0.0}, {"do_sample": False},
    {"do_sample": True, "temperature": 0.5, "top_p": 0.9}, {"do_sample": True, "temperature": 1.0},
    {"repetition_penalty": 1.1, "until": []},
]


@pytest.mark.parametrize("given_settings", SETTINGS, ids=str)
def test_generation_settings_are_lm_evals(given_settings: dict[str, Any]) -> None:
    ours = Generation.resolve(given_settings, "</s>")
    theirs: dict[str, Any] = dict(normalize_gen_kwargs(dict(given_settings), 256))
    assert list(ours.until) == handle_stop_sequences(theirs.pop("until"), "</s>")
    assert ours.max_tokens == theirs.pop("max_gen_toks")
    assert ours.do_sample == theirs.pop("do_sample")
    if not ours.do_sample:
        theirs.pop("temperature", None)
    assert dict(ours.options) == theirs


def test_resolving_leaves_the_given_settings_alone() -> None:
    given_settings: dict[str, Any] = {"until": ["\n"], "max_gen_toks": 5}
    assert hash(Generation.resolve(given_settings, "</s>")) == hash(Generation.resolve(given_settings, "</s>"))
    assert given_settings == {"until": ["\n"], "max_gen_toks": 5}


@given(st.text("abQ:\n", max_size=20), st.lists(st.text("aQ:\n", max_size=3), max_size=4))
def test_texts_are_cut_as_lm_eval_cuts_them(text: str, until: list[str]) -> None:
    cut = Generation.resolve({"until": until}, "</s>").cut(text)
    assert cut == postprocess_generated_text(text, [*until, "</s>"], None)
