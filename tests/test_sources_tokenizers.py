"""Another tokenizer than the model's: that of an adapter with added tokens, or of a folder; and traces of reasoning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from aftertune.errors import InputError, SourceError
from aftertune.evaluation import evaluate
from aftertune.ledger import Ledger
from aftertune.study import TaskSpec
from eval_cases import CHAT, byte_folder, byte_llama, byte_tokenizer, write_task

THINKING = CHAT + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A base, two tasks, and an adapter that was trained with two tokens more."""
    file = tmp_path / "docs.jsonl"
    file.write_text("".join(json.dumps({"question": f"After {n} <call>?", "answer": n % 2}) + "\n" for n in range(4)))
    for name, kind, more in (("pick", "multiple_choice", 'doc_to_choice: ["ab", "1"]\nmetric_list: [{metric: acc}]'),
                             ("write", "generate_until", "generation_kwargs: {max_gen_toks: 12, until: []}\n"
                                                         "metric_list: [{metric: exact_match}]")):
        write_task(tmp_path / "tasks", name, kind, file, more)
    byte_folder(tmp_path / "base", template=THINKING)
    return tmp_path


def adapter(home: Path, name: str, tokens: list[str], *, embeddings: bool, special: bool = False) -> Path:
    """A LoRA adapter on the resized base, with its tokenizer beside it; trained as users of PEFT do it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(home / "base")
    tokenizer.add_tokens(tokens, special_tokens=special)
    model = AutoModelForCausalLM.from_pretrained(home / "base")
    model.resize_token_embeddings(max(len(tokenizer), model.config.vocab_size))
    tuned = get_peft_model(model, LoraConfig(
        r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False,
        modules_to_save=["embed_tokens", "lm_head"] if embeddings else None))
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    tuned.save_pretrained(home / name, save_embedding_layers=False)
    tokenizer.save_pretrained(home / name)
    return home / name


def run(home: Path, *tasks: str, **settings: Any) -> Any:
    with Ledger(home / "ledger.db") as ledger:
        found = evaluate(str(home / "base"), [TaskSpec(name=name) for name in tasks or ("pick",)], ledger=ledger,
                         device="cpu", dtype="float32", threads=1, include_path=home / "tasks", **settings)
        return found, ledger.responses(found.id)


def test_an_adapter_with_added_tokens_is_asked_with_its_own_tokenizer(home: Path) -> None:
    """As plain PEFT answers: the base resized, then the adapter."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = adapter(home, "tuned", ["<call>", "<result>"], embeddings=True)
    with pytest.raises(SourceError, match="has shape"):
        run(home, adapter=str(folder))
    found, responses = run(home, adapter=str(folder), tokenizer="adapter")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(home / "base")
    model.resize_token_embeddings(len(tokenizer))
    model = PeftModel.from_pretrained(model, folder).eval()
    context = tokenizer.encode("After 0 <call>?")
    assert tokenizer.convert_tokens_to_ids("<call>") in context
    target = tokenizer.encode(" ab", add_special_tokens=False)
    with torch.no_grad():
        rows = model(torch.tensor([[*context, *target][:-1]])).logits[0, -len(target):].log_softmax(-1)
    expected = sum(float(row[token]) for row, token in zip(rows, target, strict=True))
    assert responses[0].logprob == pytest.approx(expected, abs=1e-4)
    assert any("the tokenizer is that of adapter, with 265 embedding rows" in w for w in found.warnings)


def test_the_tokenizer_is_part_of_the_identity(home: Path) -> None:
    shutil.copytree(home / "base", home / "other")
    byte_tokenizer(adds_bos=True, template=THINKING).save_pretrained(home / "other")
    plain, same = run(home)[0], run(home, tokenizer=str(home / "base"))[0]
    other = run(home, tokenizer=str(home / "other"))[0]
    assert (plain.id == same.id, plain.model.tokenizer == same.model.tokenizer) == (True, True)
    assert (plain.id == other.id, plain.model.fingerprint == other.model.fingerprint) == (False, True)


def test_added_tokens_without_embeddings_are_refused_unless_they_are_special(home: Path) -> None:
    bare = adapter(home, "bare", ["<call>", "<result>"], embeddings=False)
    with pytest.raises(SourceError, match="1 of its tokens, the first '<result>', are beyond the 264 embedding rows"):
        run(home, adapter=str(bare), tokenizer="adapter")
    special = adapter(home, "special", ["[PAD]", "[SEP]"], embeddings=False, special=True)
    first, again = (run(home, adapter=str(special), tokenizer="adapter", fork=fork)[1] for fork in (False, True))
    assert first == again  # the row of [SEP] is not random


def test_a_tokenizer_of_the_adapters_own_is_mentioned_where_it_differs(home: Path) -> None:
    from transformers import AutoTokenizer

    folder = adapter(home, "same", [], embeddings=False)
    assert not any("a tokenizer of its own" in w for w in run(home, adapter=str(folder))[0].warnings)
    tokenizer = AutoTokenizer.from_pretrained(home / "base")
    tokenizer.chat_template = CHAT + " "
    tokenizer.save_pretrained(folder)
    [note] = [w for w in run(home, adapter=str(folder), fork=True)[0].warnings if "a tokenizer of its own" in w]
    assert note.endswith("which differs in the chat template; it is not used: pass --tokenizer adapter to use it")


@pytest.mark.parametrize(("settings", "message"), [
    ({"tokenizer": "adapter"}, "add --adapter"), ({"tokenizer": "absent"}, "--tokenizer absent: no such folder"),
    ({"tokenizer": "tasks"}, "no tokenizer there")])
def test_a_tokenizer_that_is_not_there_is_one_line(home: Path, settings: dict[str, str], message: str) -> None:
    if settings["tokenizer"] == "tasks":
        settings = {"tokenizer": str(home / "tasks")}
    with pytest.raises(InputError, match=message) as error:
        run(home, **settings)
    assert "\n" not in str(error.value)


# --- Reasoning ---

def inner(texts: list[str]) -> str:
    """A letter inside one of the texts, to stand for the end of a trace."""
    return next(letter for text in texts for letter in text[2:-2] if letter.isascii() and letter.isalnum())


@pytest.mark.parametrize("end", ["a letter that is written", "</s>", "zzz"])
def test_a_trace_is_cut_as_in_lm_eval_and_kept(end: str) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from aftertune.engine import budget
    from aftertune.engine.engine import Engine
    from aftertune.values import Request

    model, tokenizer, prompts = byte_llama(), byte_tokenizer(), ["a", "The sky is", "ab ab ab", "zz", "one two three"]
    settings = {"max_gen_toks": 24, "until": ["q"]}
    engine = Engine(model, tokenizer, packed=True, budget=budget.resolve(model, free=10**9, threads=1))
    if end.startswith("a letter"):
        free = [Request(position=n, kind="generate", context=p, item=n, generation=settings)
                for n, p in enumerate(prompts)]
        end = inner([str(r.text) for b in engine.run(engine.plan(free), set()) for r in b.responses.values()])
    found = {p: r for b in engine.run(engine.plan([
        Request(position=n, kind="generate", context=p, item=n, generation={**settings, "think_end_token": end})
        for n, p in enumerate(prompts)]), set()) for p, r in b.responses.items()}
    special = end in tokenizer.all_special_tokens
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1,
              think_end_token=tokenizer.convert_tokens_to_ids(end) if special else end)
    theirs = lm.generate_until([Instance(request_type="generate_until", doc={}, arguments=(p, dict(settings)), idx=n)
                                for n, p in enumerate(prompts)], disable_tqdm=True)
    assert [found[n].text for n in range(len(prompts))] == theirs
    assert any(r.reasoning is not None for r in found.values()) is (end != "zzz")


def test_traces_are_counted_stored_and_shown_beside_the_answers(home: Path) -> None:
    from aftertune.comparison import flips
    from aftertune.report.changed_items import _flip

    end = inner([str(r.text) for r in run(home, "write", name="free")[1].values()])
    found, responses = run(home, "write", think_end_token=end, name="one")
    traces = [r for r in responses.values() if r.reasoning is not None]
    assert traces
    assert all(end not in str(r.text) for r in traces)
    assert found.tasks[0].generation["think_end_token"] == end
    [note] = [w for w in found.warnings if "reasoning trace" in w]
    assert note.startswith(f"write: {len(traces)} of 4 texts had a reasoning trace, which was cut off at {end} before")
    assert run(home, "write", name="two")[0].id != found.id
    side = flips.FlipSide(right=False, chosen="x", reasoning="because\nof this")
    flip = flips.Flip(task="write", index=0, item="h", direction="lost", question="q", choices=(), gold="1",
                      base=side, tuned=flips.FlipSide(right=True, chosen="1"))
    text = "\n".join(_flip(flip, ("one", "two"), "nats"))
    assert "Reasoning of one before it, which was not judged:" in text
    assert "because" in text


def test_a_trace_that_looks_like_its_mark_in_the_ledger_comes_back_unchanged(tmp_path: Path) -> None:
    import ledger_cases as cases
    from aftertune.values import Response

    values = [Response(text="b", reasoning="a"), Response(text="", reasoning=""), Response(text="\x1a\x1a3:abc"),
              Response(text="\x1a\x1a3:abc", reasoning="\x1a\x1a:"), Response(text="b", reasoning="\x00\ud800x")]
    with Ledger(tmp_path / "ledger.db") as ledger:
        ledger.open_evaluation(cases.evaluation(), cases.items())
        ledger.save_batch("e1", 0, dict(enumerate(values)))
        ledger.save_batch("e1", 0, dict(enumerate(values)))
        assert list(ledger.responses("e1").values()) == values


def test_the_template_is_told_whether_to_think(home: Path) -> None:
    plain, off = run(home, "write", apply_chat_template=True)[0], run(home, "write", apply_chat_template=True,
                                                                      enable_thinking=False)[0]
    assert (plain.tasks[0].template_arguments, off.tasks[0].template_arguments) == ({}, {"enable_thinking": False})
    assert plain.tasks[0].prompts != off.tasks[0].prompts
    assert plain.id != off.id


@pytest.mark.parametrize(("tasks", "settings", "message"), [
    (["write"], {"enable_thinking": True}, "add --apply-chat-template"),
    (["write"], {"enable_thinking": True, "apply_chat_template": True}, "add --think-end-token"),
    (["pick", "write"], {"enable_thinking": True, "apply_chat_template": True, "think_end_token": "</think>"},
     "task 'pick' scores given answers, before which a model cannot think"),
    (["pick"], {"think_end_token": "</think>"}, "no task here generates texts")])
def test_settings_for_reasoning_without_effect_are_refused(home: Path, tasks: list[str], settings: dict[str, Any],
                                                           message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(home, *tasks, **settings)


def test_a_template_that_does_not_read_it_is_refused(home: Path) -> None:
    byte_tokenizer(template=CHAT).save_pretrained(home / "base")
    (home / "base" / "chat_template.jinja").write_text(CHAT)
    with pytest.raises(InputError, match="its chat template does not read 'enable_thinking'"):
        run(home, "write", apply_chat_template=True, enable_thinking=False)


def test_a_base_beside_an_adapter_with_its_own_tokenizer_keeps_its_own(home: Path) -> None:
    from aftertune.early_stopping import until_decided
    from aftertune.study import EarlySpec, EvalSpec

    folder = adapter(home, "tuned", ["<call>", "<result>"], embeddings=True)
    spec = EvalSpec(model=str(home / "base"), adapter=str(folder), tokenizer="adapter", tasks=(TaskSpec(name="pick"),),
                    device="cpu", dtype="float32", threads=1, include_path=home / "tasks")
    with Ledger(home / "ledger.db") as ledger:
        decided = until_decided(spec, str(home / "base"), EarlySpec(), ledger=ledger)
        base = ledger.find_evaluation(decided.comparison.base)
    assert base.model.tokenizer != decided.tuned.model.tokenizer
