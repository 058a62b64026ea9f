"""What changes a text is in the identity of an evaluation, and what does not is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aftertune.errors import InputError, SourceError
from aftertune.evaluation import evaluate
from aftertune.ledger import Ledger
from aftertune.sources import load_tokenizer, resolve_model
from aftertune.sources.generation import check_settings, generation_defaults
from aftertune.study import TaskSpec
from eval_cases import CHAT, byte_folder, write_task

PROMPTS = ["a", "The sky is", "ab ab ab ab", "Q: 1+1? A:", "zz", "one two three four five six"]


def texts(model: Any, settings: dict[str, Any]) -> list[str]:
    """What our engine writes."""
    from aftertune.engine import budget
    from aftertune.engine.engine import Engine
    from aftertune.values import Request
    from eval_cases import byte_tokenizer

    engine = Engine(model, byte_tokenizer(), packed=True, budget=budget.resolve(model, free=10**9, threads=1))
    requests = [Request(position=n, kind="generate", context=prompt, generation=settings, item=n)
                for n, prompt in enumerate(PROMPTS)]
    found = {p: r for batch in engine.run(engine.plan(requests), set()) for p, r in batch.responses.items()}
    return [str(found[n].text) for n in range(len(PROMPTS))]


def texts_of_lm_eval(model: Any, settings: dict[str, Any]) -> list[str]:
    """What lm-eval's ``hf`` model writes, one prompt at a time."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from eval_cases import byte_tokenizer

    lm = HFLM(pretrained=model, tokenizer=byte_tokenizer(), batch_size=1)
    return list(lm.generate_until([Instance(request_type="generate_until", doc={}, arguments=(p, dict(settings)), idx=n)
                                   for n, p in enumerate(PROMPTS)], disable_tqdm=True))


@pytest.mark.parametrize(("defaults", "settings"), [
    ({}, {}), ({"repetition_penalty": 1.4}, {}), ({"max_new_tokens": 5}, {}), ({"max_new_tokens": 30}, {}),
    ({}, {"max_length": 40}), ({"max_new_tokens": 3}, {"max_length": 40}), ({"eos_token_id": [1, 40]}, {}),
    ({"suppress_tokens": [45, 50, 60]}, {}), ({"no_repeat_ngram_size": 2}, {}), ({"min_length": 25}, {}),
    ({"do_sample": True, "temperature": 0.3, "top_p": 0.4}, {}), ({"num_beams": 3}, {}),
    ({"begin_suppress_tokens": [40, 41, 70]}, {}), ({"max_length": 9}, {}), ({"sequence_bias": [[[50], 10.0]]}, {}),
    ({"exponential_decay_length_penalty": [3, 1.5]}, {}), ({}, {"repetition_penalty": 1.4, "until": ["a"]}),
])
def test_a_generation_config_gives_the_texts_that_it_gives_in_lm_eval(defaults: dict[str, Any],
                                                                      settings: dict[str, Any]) -> None:
    from transformers import GenerationConfig

    from eval_cases import byte_llama

    model = byte_llama()
    model.generation_config = GenerationConfig.from_dict(
        {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, **defaults})
    settings = {"max_gen_toks": 16, **settings}
    assert texts(model, settings) == texts_of_lm_eval(model, settings)


def test_a_prompt_beyond_max_length_is_one_line() -> None:
    from eval_cases import byte_llama

    with pytest.raises(InputError, match="max_length is 14, which counts prompt and text together, but a"):
        texts(byte_llama(), {"max_length": 14})


PICK = 'doc_to_choice: ["ab", "1"]\nmetric_list: [{metric: acc}]'
WRITE = "generation_kwargs: {max_gen_toks: 9}\nmetric_list: [{metric: exact_match}]"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A model folder, and a task that is scored and one that is generated."""
    file = tmp_path / "docs.jsonl"
    file.write_text("".join(json.dumps({"question": f"After {n}?", "answer": n % 2}) + "\n" for n in range(3)))
    for name, kind, more in (("pick", "multiple_choice", PICK), ("write", "generate_until", WRITE)):
        write_task(tmp_path / "tasks", name, kind, file, more)
    byte_folder(tmp_path / "model", template=CHAT)
    return tmp_path


def run(home: Path, ledger: Ledger, *tasks: str, model: str = "model", **settings: Any) -> Any:
    return evaluate(str(home / model), [TaskSpec(name=name) for name in tasks], ledger=ledger, device="cpu",
                    dtype="float32", threads=1, include_path=home / "tasks", **settings)


def edited(path: Path, **changes: Any) -> None:
    """Set fields of a JSON file; None removes one."""
    values = {**(json.loads(path.read_text()) if path.exists() else {}), **changes}
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


#: An edit of one file of a model folder, whether scores may change by it, and whether texts may.
EDITS: dict[str, tuple[Callable[[Path], None], bool, bool]] = {
    "weights": (lambda f: flip(f / "model.safetensors"), True, True),
    "config.json, forward": (lambda f: edited(f / "config.json", rms_norm_eps=0.1), True, True),
    "config.json, describing": (lambda f: edited(f / "config.json", transformers_version="4.40.0"), False, False),
    "config.json, texts beside a generation config": (
        lambda f: edited(f / "config.json", repetition_penalty=2.0), False, False),
    "penalty": (lambda f: edited(f / "generation_config.json", repetition_penalty=2.0), False, True),
    "end": (lambda f: edited(f / "generation_config.json", eos_token_id=[1, 40]), False, True),
    "the tokenizer's own end": (lambda f: edited(f / "generation_config.json", eos_token_id=[1]), False, False),
    "suppressed": (lambda f: edited(f / "generation_config.json", suppress_tokens=[40]), False, True),
    "limit": (lambda f: edited(f / "generation_config.json", max_new_tokens=3), False, True),
    "sampling, which no task asks for": (
        lambda f: edited(f / "generation_config.json", do_sample=True, temperature=0.6, top_p=0.9), False, False),
    "cache": (lambda f: edited(f / "generation_config.json", use_cache=False), False, False),
    "tokenizer.json": (lambda f: edited(f / "tokenizer.json", normalizer={"type": "Lowercase"}), True, True),
    "tokenizer_config.json": (lambda f: edited(f / "tokenizer_config.json", pad_token="</s>"), True, True),
    "chat template": (lambda f: (f / "chat_template.jinja").write_text(CHAT + " "), True, True),
    "README.md": (lambda f: (f / "README.md").write_text("# A model"), False, False),
    "code that does not run": (lambda f: (f / "modeling.py").write_text("1/0"), False, False),
}


@pytest.mark.parametrize("name", sorted(EDITS))
def test_an_edit_of_a_model_folder_gives_another_id_where_answers_may_change(home: Path, name: str) -> None:
    edit, scores, written = EDITS[name]
    with Ledger(home / "ledger.db") as ledger:
        before = {task: run(home, ledger, task) for task in ("pick", "write")}
        shutil.copytree(home / "model", home / "other")
        edit(home / "other")
        after = {task: run(home, ledger, task, model="other") for task in ("pick", "write")}
    assert (before["pick"].id != after["pick"].id) is scores
    assert (before["write"].id != after["write"].id) is written


def test_without_a_generation_config_its_fields_in_config_json_count(home: Path) -> None:
    folder = home / "model"
    (folder / "generation_config.json").unlink()
    with Ledger(home / "ledger.db") as ledger:
        before = run(home, ledger, "write")
        edited(folder / "config.json", repetition_penalty=2.0)
        after = run(home, ledger, "write")
        found = [ledger.responses(e.id) for e in (before, after)]
    assert after.defaults == {"repetition_penalty": 2.0}
    assert (before.id != after.id, before.model.fingerprint == after.model.fingerprint) == (True, True)
    assert found[0] != found[1]
    assert any("generation_config.json changes its texts, as in lm-eval: repetition_penalty 2.0" in w
               for w in after.warnings)


def test_two_folders_that_differ_in_a_penalty_do_not_share_texts_and_the_comparison_names_it(home: Path) -> None:
    from aftertune.comparison import compare

    shutil.copytree(home / "model", home / "other")
    edited(home / "other" / "generation_config.json", repetition_penalty=2.0)
    with Ledger(home / "ledger.db") as ledger:
        one, other = run(home, ledger, "write"), run(home, ledger, "write", model="other", name="other")
        assert ledger.responses(one.id) != ledger.responses(other.id)
        found = {d.field: (d.left, d.right, d.blocking) for d in compare(one, other, ledger=ledger).differences}
    assert found["generation_config.repetition_penalty"] == ("none", "2.0", False)


def test_the_code_of_a_model_counts_where_it_runs(tmp_path: Path) -> None:
    from dataclasses import replace

    from aftertune.sources import fingerprint_code

    source = resolve_model(str(byte_folder(tmp_path / "model")))
    trusted = replace(source, trust_remote_code=True)
    assert fingerprint_code(trusted) is None
    (source.path / "modeling.py").write_text("A = 1")
    first = fingerprint_code(trusted)
    (source.path / "modeling.py").write_text("A = 2")
    assert (fingerprint_code(source), first != fingerprint_code(trusted)) == (None, True)


def test_sampling_fields_count_where_a_text_is_sampled(tmp_path: Path) -> None:
    source = resolve_model(str(byte_folder(tmp_path / "model")))
    edited(source.path / "generation_config.json", do_sample=True, temperature=0.6, top_p=0.9, chat_format="chatml")
    tokenizer = load_tokenizer(source)
    assert generation_defaults(source, tokenizer) == {}
    assert generation_defaults(source, tokenizer, sampled=True) == {"temperature": 0.6, "top_p": 0.9}


def test_a_damaged_generation_config_is_one_line(home: Path) -> None:
    (home / "model" / "generation_config.json").write_text("{")
    with Ledger(home / "ledger.db") as ledger, pytest.raises(SourceError, match=r"generation_config\.json: not valid"):
        run(home, ledger, "write")


@pytest.mark.parametrize(("given", "message"), [
    ({"no_such_option": 3}, r"'no_such_option' is no generation setting"),
    ({"max_new_token": 3}, r"did you mean 'max_new_tokens'"),
    ({"use_cache": False}, r"'use_cache' has no effect on a text"),
    ({"output_scores": True}, r"'output_scores' has no effect on a text"),
    ({"top_p": 0.9}, r"'top_p' has no effect on greedy texts; leave it out, or add do_sample=true"),
    ({"temperature": 0.7, "do_sample": False}, r"'temperature' has no effect with do_sample=false"),
    ({"max_gen_toks": 5, "max_tokens": 7}, r"'max_tokens' has no effect beside 'max_gen_toks'"),
    ({"length_penalty": 2.0}, r"'length_penalty' has no effect with one beam"),
])
def test_a_setting_without_effect_is_refused(home: Path, given: dict[str, Any], message: str) -> None:
    with Ledger(home / "ledger.db") as ledger:
        with pytest.raises(InputError, match=message) as error:
            run(home, ledger, "write", gen_kwargs=given)
        assert ledger.evaluations() == []
    assert "\n" not in str(error.value)


def test_settings_for_texts_are_refused_where_no_task_writes_any(home: Path) -> None:
    with Ledger(home / "ledger.db") as ledger, pytest.raises(InputError, match="no task here generates texts"):
        run(home, ledger, "pick", gen_kwargs={"max_gen_toks": 5})


def test_a_limit_that_the_model_overrides_is_refused(home: Path) -> None:
    edited(home / "model" / "generation_config.json", max_new_tokens=3)
    with Ledger(home / "ledger.db") as ledger:
        with pytest.raises(InputError, match=r"'max_gen_toks' has no effect: .* sets max_new_tokens to 3"):
            run(home, ledger, "write", gen_kwargs={"max_gen_toks": 5})
        assert run(home, ledger, "write").defaults == {"max_new_tokens": 3}


def test_settings_with_an_effect_are_taken() -> None:
    for given in ({"do_sample": True, "temperature": 0.7, "top_p": 0.9}, {"temperature": 0.7, "top_k": 5},
                  {"max_length": 40}, {"num_beams": 2, "length_penalty": 2.0}, {"repetition_penalty": 1.1},
                  {"until": ["x"], "do_sample": False, "temperature": 0.0}):
        check_settings(given, given, "write")
