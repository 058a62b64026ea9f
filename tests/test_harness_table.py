"""What each engine takes, row by row, and models that an engine knows by a name only."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pytest

from aftertune.errors import InputError, ResourceError
from aftertune.evaluation import evaluate
from aftertune.harness import table
from aftertune.harness.table import ENGINES, OPTIONS, EngineFacts, check_engine, engine_facts
from aftertune.ledger import Ledger
from aftertune.study import EvalSpec, TaskSpec
from eval_cases import byte_folder, write_task

USABLE = sorted(name for name, facts in ENGINES.items() if facts.kind != "refused")
REFUSED = sorted(ENGINES.keys() - set(USABLE))


def lm_eval_classes() -> dict[str, tuple[list[str], list[str]]]:
    """Class of lm-eval -> (its bases, the parameters of its ``__init__``), read from the source without running it."""
    spec = find_spec("lm_eval")
    assert spec is not None
    assert spec.submodule_search_locations
    found: dict[str, tuple[list[str], list[str]]] = {}
    for path in Path(spec.submodule_search_locations[0], "models").glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                inits = [m for m in node.body if isinstance(m, ast.FunctionDef) and m.name == "__init__"]
                names = [a.arg for m in inits for a in (*m.args.args, *m.args.kwonlyargs)]
                found[node.name] = [ast.unparse(b) for b in node.bases], names
    return found


def parameters(classes: dict[str, tuple[list[str], list[str]]], name: str) -> Iterator[str]:
    if name in classes:
        bases, own = classes[name]
        yield from own
        for base in bases:
            yield from parameters(classes, base)


def test_the_table_has_every_engine_of_lm_eval_and_no_other() -> None:
    from lm_eval.models import MODEL_MAPPING

    ours = {"packed", "plain", "openai:URL", "llamacpp"}
    assert {*ours, *(f"lm-eval:{name}" for name in MODEL_MAPPING)} == ENGINES.keys()
    assert OPTIONS.keys() <= EvalSpec.model_fields.keys()
    assert engine_facts("openai:http://127.0.0.1:1/v1") is ENGINES["openai:URL"]
    assert all(facts.takes.keys() <= OPTIONS.keys() for facts in ENGINES.values())
    assert all(facts.reason for facts in ENGINES.values() if facts.kind == "refused")


@pytest.mark.parametrize("name", [n for n in USABLE if n.startswith("lm-eval:") and ENGINES[n].kind != "own"])
def test_the_arguments_of_a_row_are_those_of_lm_evals_class(name: str) -> None:
    from lm_eval.models import MODEL_MAPPING

    facts, classes = ENGINES[name], lm_eval_classes()
    known = set(parameters(classes, MODEL_MAPPING[name.removeprefix("lm-eval:")].rpartition(":")[2]))
    assert {argument for argument in (facts.model, *facts.takes.values()) if argument} <= known
    assert facts.packages
    assert facts.install.startswith("pip install ")


@pytest.mark.parametrize("name", USABLE)
@pytest.mark.parametrize("setting", sorted(OPTIONS))
def test_what_an_engine_does_not_take_is_refused_in_one_line(name: str, setting: str,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_installed", lambda package: True)
    for variable in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "TEXTSYNTH_API_SECRET_KEY"):
        monkeypatch.setenv(variable, "a-key-of-a-server")
    if setting in ENGINES[name].takes:
        assert check_engine(name, {setting}) is ENGINES[name]
        return
    with pytest.raises(InputError) as error:
        check_engine(name, {setting})
    assert str(error.value).startswith(f"{OPTIONS[setting]} is not possible with the engine {name}, ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", REFUSED)
def test_an_engine_that_cannot_give_the_answers_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"engine '{name}' cannot be used here: "):
        engine_facts(name)


@pytest.mark.parametrize("name", [n for n in USABLE if any(find_spec(p.partition(".")[0]) is None
                                                           for p in ENGINES[n].packages)])
def test_a_missing_package_is_one_line_with_its_command_and_leaves_nothing_in_the_ledger(
        name: str, tmp_path: Path) -> None:
    base = byte_folder(tmp_path / "base")
    with Ledger(tmp_path / "ledger.db") as ledger:
        with pytest.raises(ResourceError, match="which is not installed: pip install") as error:
            evaluate(str(base), [TaskSpec(name="arc_easy", limit=1)], ledger=ledger, engine=name, task_source="pack")
        assert ledger.evaluations() == []
    assert (error.value.exit_code, "\n" in str(error.value)) == (4, False)


def test_a_missing_key_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_installed", lambda package: True)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ResourceError, match="environment variable OPENAI_API_KEY, which is not set"):
        check_engine("lm-eval:openai-completions", set())


# --- Classes that stand in for those whose packages are not here ---

@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tasks, a base with adapters, and a class that records its arguments in the place of lm-eval's."""
    from lm_eval.api import registry
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    file = tmp_path / "docs.jsonl"
    file.write_text("".join(json.dumps({"question": f"After {n}?", "answer": n % 2}) + "\n" for n in range(3)))
    for name, kind, more in (("pick", "multiple_choice", 'doc_to_choice: ["ab", "1"]\nmetric_list: [{metric: acc}]'),
                             ("write", "generate_until", "generation_kwargs: {max_gen_toks: 9}\n"
                                                         "metric_list: [{metric: exact_match}]")):
        write_task(tmp_path / "tasks", name, kind, file, more)
    base = byte_folder(tmp_path / "base")
    for name, settings in (("lora", {}), ("dora", {"use_dora": True})):
        get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(
            r=32, target_modules=["q_proj"], task_type="CAUSAL_LM", **settings)).save_pretrained(tmp_path / name)
    Recorder.made, Recorder.fails = [], ""
    monkeypatch.setattr(table, "_installed", lambda package: True)
    monkeypatch.setattr(registry, "get_model", lambda name: Recorder)
    return tmp_path


class Recorder:
    """Answers each request with the same, and keeps what it was made with."""

    made: ClassVar[list[dict[str, Any]]] = []
    fails = ""

    @classmethod
    def create_from_arg_obj(cls, arguments: dict[str, Any], further: dict[str, Any]) -> Recorder:
        if cls.fails == "start":
            raise RuntimeError("no CUDA device\nwas found")
        cls.made.append({**arguments, **further})
        return cls()

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        if self.fails == "answer":
            raise ConnectionError("connection refused")
        return [(-float(len(r.args[1])), True) for r in requests]

    def generate_until(self, requests: list[Any]) -> list[str | None]:
        return [None for _ in requests]


def run(home: Path, model: str = "base", *tasks: str, **settings: Any) -> Any:
    source = str(home / model) if (home / model).exists() else model
    with Ledger(home / "ledger.db") as ledger:
        return evaluate(source, [TaskSpec(name=name) for name in tasks or ("pick",)], ledger=ledger,
                        include_path=home / "tasks", **settings)


def stored(home: Path) -> list[Any]:
    with Ledger(home / "ledger.db") as ledger:
        return ledger.evaluations()


def test_an_adapter_reaches_the_engine_that_loads_it_or_is_refused(home: Path) -> None:
    tuned = run(home, adapter=str(home / "lora"), engine="lm-eval:vllm", dtype="float32")
    assert Recorder.made == [{"pretrained": str(home / "base"), "dtype": "float32", "batch_size": 8,
                              "lora_local_path": str(home / "lora"), "max_lora_rank": 32}]
    assert tuned.model.adapter is not None
    with pytest.raises(InputError, match="loads only plain LoRA adapters, not use_dora"):
        run(home, adapter=str(home / "dora"), engine="lm-eval:vllm")
    with pytest.raises(InputError, match=r"--adapter is not possible with the engine lm-eval:sglang"):
        run(home, adapter=str(home / "lora"), engine="lm-eval:sglang")


def test_an_engine_that_fails_is_one_line_and_leaves_nothing(home: Path) -> None:
    for fails, message in (("start", "lm-eval:vllm failed: RuntimeError: no CUDA device was found"),
                           ("answer", "lm-eval:vllm failed: ConnectionError: connection refused")):
        Recorder.fails = fails
        with pytest.raises(ResourceError, match=message):
            run(home, engine="lm-eval:vllm")
        assert stored(home) == []


def test_a_server_needs_no_weights_and_its_identity_is_what_was_stated(home: Path) -> None:
    address = {"base_url": "http://localhost:8000/v1/completions", "num_concurrent": 4}
    first = run(home, "org/model", "pick", "write", engine="lm-eval:local-completions", engine_args=address)
    assert Recorder.made == [{"model": "org/model", **address, "batch_size": 1}]
    assert first.stated == {"model": "org/model", "base_url": "http://localhost:8000/v1/completions"}
    assert (first.device, first.dtype) == ("not stated", "not stated")
    assert any("is not verified: the engine knows the model by this name only" in w for w in first.warnings)
    again = run(home, "org/model", "pick", "write", engine="lm-eval:local-completions",
                engine_args={**address, "num_concurrent": 8})
    other = run(home, "org/model", "pick", "write", engine="lm-eval:local-completions",
                engine_args={"base_url": "http://localhost:9000/v1/completions"})
    assert (again.id == first.id, other.id == first.id) == (True, False)


def test_a_name_is_shown_as_not_verified_and_proves_no_lineage(home: Path) -> None:
    from aftertune.comparison import compare
    from aftertune.comparison.lineage import find_relation
    from aftertune.report.facts import evaluation_facts

    server: dict[str, Any] = {"engine": "lm-eval:local-completions", "engine_args": {"base_url": "http://a/v1"}}
    one = run(home, "org/model", name="one", **server)
    two = run(home, "org/model", name="two", fork=True, **server)
    assert one.model.fingerprint == two.model.fingerprint
    with Ledger(home / "ledger.db") as ledger:
        assert find_relation(one, two, ledger).relation == ""
        assert not compare(one, two, ledger=ledger).lineage
    facts = dict(evaluation_facts(one, None))
    assert facts["Identity"].startswith("not verified: ")
    assert "http://a/v1" in facts["Stated to the Engine"]


def test_vllm_takes_a_name_that_has_no_files_here(home: Path) -> None:
    found = run(home, "org/model", engine="lm-eval:vllm")
    assert Recorder.made == [{"pretrained": "org/model", "batch_size": 1}]
    assert found.stated == {"model": "org/model"}
    with pytest.raises(InputError, match="no such file or folder"):
        run(home, "./absent", engine="lm-eval:vllm")


@pytest.mark.parametrize(("arguments", "what"), [
    ({"auth_token": "x"}, "auth_token"), ({"base_url": "http://me:secret@host/v1"}, "base_url with a login"),
    ({"base_url": "http://host/v1?key=secret"}, "base_url with a login or a query")])
def test_a_secret_is_refused_on_the_command_line(home: Path, arguments: dict[str, str], what: str) -> None:
    with pytest.raises(InputError, match=what) as error:
        run(home, "org/model", engine="lm-eval:local-completions", engine_args=arguments)
    assert "secret" not in str(error.value)


def test_a_task_that_an_engine_cannot_answer_is_refused(home: Path) -> None:
    with pytest.raises(InputError, match="task 'pick' needs log-likelihoods of given answers, which the engine "
                                         "lm-eval:local-chat-completions does not give"):
        run(home, "org/model", engine="lm-eval:local-chat-completions", engine_args={"base_url": "http://a/v1"})
    with pytest.raises(InputError, match=r"task 'write': .* answers chats only; add --apply-chat-template"):
        run(home, "org/model", "write", engine="lm-eval:local-chat-completions", engine_args={"base_url": "http://a"})
    assert stored(home) == []


def test_facts_have_a_default_for_everything_but_the_kind() -> None:
    assert EngineFacts(kind="own").requests == {"score", "rolling", "generate"}
