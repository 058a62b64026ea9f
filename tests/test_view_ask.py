"""The page that asks a base and its tuned model the same question."""

from __future__ import annotations

import html
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from aftertune import bounds
from aftertune.cli import app
from aftertune.errors import InputError, ResourceError
from aftertune.ledger import Ledger
from aftertune.view.both_models import AskedPrompt, BothModels, WrittenAnswer
from aftertune.view.pages.ask import MODELS
from source_cases import tiny_adapter, tiny_llama
from view_cases import client, csrf_of


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ask")
    tiny_llama(folder / "base")
    tiny_adapter(folder / "base", folder / "adapter")
    tiny_llama(folder / "other", seed=5)
    with Ledger(folder / "ledger.db"):
        pass
    return folder


def found(home: Path, tuned: str = "adapter") -> BothModels:
    with Ledger(home / "ledger.db") as ledger:
        return BothModels.find([str(home / "base"), str(home / tuned)], ledger)


@pytest.fixture(scope="module")
def models(home: Path) -> BothModels:
    return found(home)


@pytest.fixture
def browser(home: Path, models: BothModels) -> TestClient:
    return client(home / "ledger.db", settings={MODELS: models})


def ask(browser: TestClient, **fields: str) -> Any:
    return browser.post("/ask", data={"csrf": csrf_of(browser, "/ask"), "tokens": "8", "chat": "1", **fields},
                        headers={"origin": "http://127.0.0.1:7788"})


def answers(page: str) -> list[str]:
    """The text of each answer."""
    return [html.unescape(re.sub(r"<[^>]+>", "", text))
            for text in re.findall(r'<pre class="answer"[^>]*>(.*?)</pre>', page, re.S)]


def greedy(folder: Path, adapter: Path | None, prompt: str, tokens: int) -> str:
    """The text that transformers' own generate writes."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    out = model.generate(input_ids=ids, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    text: str = tokenizer.decode(out[0, ids.shape[1]:], skip_special_tokens=True)
    return text


def test_both_models_answer_as_transformers_does_and_the_words_that_differ_are_marked(
        home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aftertune.engine.devices.choose_dtype", lambda *_: "float32")
    browser = client(home / "ledger.db", settings={MODELS: found(home)})
    page = ask(browser, prompt="w1 w2 w3")
    assert page.status_code == 200
    expected = [greedy(home / "base", adapter, "w1 w2 w3 ", 8) for adapter in (None, home / "adapter")]
    assert answers(page.text) == expected
    assert expected[0] != expected[1]
    assert "<mark>" in page.text
    assert "cut off after 8 tokens" in page.text
    assert answers(ask(browser, prompt="w1 w2 w3").text) == expected


def test_a_whole_model_is_a_tuned_model_too(home: Path) -> None:
    models = found(home, "other")
    assert models.names == ("base", "other")
    assert len(models.ask(AskedPrompt("w4", 4, chat=False))) == 2


@pytest.mark.parametrize(("fields", "line"), [
    ({"prompt": ""}, "write a prompt"),
    ({"prompt": "w" * (bounds.VIEW_PROMPT + 1)}, "4,000 are allowed"),
    ({"prompt": "w1", "tokens": "0"}, "from 1 to 512"),
    ({"prompt": "w1", "tokens": str(bounds.VIEW_TOKENS + 1)}, "from 1 to 512"),
    ({"prompt": "w1", "tokens": "many"}, "from 1 to 512")])
def test_prompt_and_tokens_are_bounded(browser: TestClient, fields: dict[str, str], line: str) -> None:
    page = ask(browser, **fields)
    assert page.status_code == 400
    assert line in page.text
    assert answers(page.text) == []


def test_line_ends_of_a_prompt_are_those_of_the_command_line(browser: TestClient, models: BothModels,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(type(models), "ask", lambda self, question: asked.append(question.prompt) or [
        WrittenAnswer(name, "w1", ()) for name in self.names])
    ask(browser, prompt="w1\r\nw2\r\n\r\nw3")  # as a browser sends it
    assert asked == ["w1\nw2\n\nw3"]


def test_a_prompt_and_an_answer_are_text(browser: TestClient) -> None:
    page = ask(browser, prompt="</textarea><script>alert(1)</script>").text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_one_question_at_a_time(home: Path, browser: TestClient, models: BothModels,
                                monkeypatch: pytest.MonkeyPatch) -> None:
    begun, released = threading.Event(), threading.Event()

    def slow(self: BothModels, question: AskedPrompt) -> list[Any]:
        begun.set()
        assert released.wait(60)
        return []

    monkeypatch.setattr(BothModels, "_answers", slow)
    first = threading.Thread(target=lambda: models.ask(AskedPrompt("w1")))
    first.start()
    assert begun.wait(60)
    with pytest.raises(ResourceError, match="another question"):
        models.ask(AskedPrompt("w2"))
    page = ask(browser, prompt="w2")
    released.set()
    first.join(60)
    assert page.status_code == 409
    assert "the models are answering another question; wait a moment, then ask again" in page.text
    assert ">w2</textarea>" in page.text
    assert models.ask(AskedPrompt("w3")) == []


def test_without_models_the_page_is_not_there(home: Path, browser: TestClient) -> None:
    assert 'href="/ask"' in browser.get("/").text
    plain = client(home / "ledger.db")
    assert 'href="/ask"' not in plain.get("/").text
    page = plain.get("/ask")
    assert page.status_code == 404
    assert "--with-model BASE --with-model TUNED" in page.text


def test_a_page_names_no_model(home: Path, browser: TestClient) -> None:
    page = ask(browser, prompt="w1", model=str(home / "other"), base=str(home / "other"))
    assert re.findall('aria-label="Answer of ([^"]*)"', page.text) == ["base", "adapter"]
    assert str(home) not in page.text


def test_two_models_are_named(home: Path) -> None:
    with Ledger(home / "ledger.db") as ledger, pytest.raises(InputError, match="give it twice"):
        BothModels.find(["base"], ledger)
    result = CliRunner().invoke(app, ["view", "--ledger", str(home / "ledger.db"), "--with-model",
                                      str(home / "base"), "--with-model", str(home / "absent")])
    assert result.exit_code != 0
