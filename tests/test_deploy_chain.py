"""The chain from an adapter to a server: every link answers the same items, and the first one that lost is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aftertune.deploy import check_chain
from aftertune.deploy.chain import parse_links
from aftertune.errors import InputError
from aftertune.ledger import Ledger
from aftertune.sources import load_model, resolve_adapter, resolve_model
from aftertune.study import DataSpec, TargetSpec, TaskSpec, TuneSpec
from aftertune.tuning import tune
from aftertune.tuning.output import merge
from aftertune.values import Tuning
from deploy_cases import chat_model
from server_cases import served
from test_cli import call
from tuning_cases import easy_rows, write_rows


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chain")


@pytest.fixture(autouse=True)
def own_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERTUNE_CACHE", str(home / "cache"))
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(home / "ledger.db"))


@pytest.fixture(scope="module")
def tuned(home: Path) -> Tuning:
    """A LoRA on a tiny Llama."""
    base = chat_model("llama", home / "base", max_position_embeddings=512)
    data = DataSpec(file=write_rows(home / "rows.jsonl", easy_rows()))
    with Ledger(home / "ledger.db") as ledger:
        return tune(TuneSpec(model=str(base), data=data, out=home / "out", name="easy", max_steps=4, learning_rate=0.02,
                             dtype="float32", threads=1), ledger=ledger)


@pytest.fixture
def target(home: Path) -> TaskSpec:
    rows = [json.dumps({"prompt": f"Order {n}", "completion": f"{n}"}) for n in range(12)]
    (home / "held.jsonl").write_text("\n".join(rows) + "\n")
    return TaskSpec(name="held", target=TargetSpec(file=home / "held.jsonl", max_tokens=8), apply_chat_template=True)


ARC = TaskSpec(name="arc_easy", limit=12)


@pytest.fixture
def merged(home: Path, tuned: Tuning) -> Iterator[Path]:
    folder = home / "served"
    if not folder.exists():
        base = resolve_model(tuned.base.source)
        merge(base, resolve_adapter(tuned.output, base, tuned.base), folder, dtype="float32")
    return folder


def test_a_whole_chain_is_sound(home: Path, tuned: Tuning, target: TaskSpec) -> None:
    with Ledger(home / "ledger.db") as ledger:
        check = check_chain("easy", ["adapter", "merged", "gguf:f32"], [target, ARC], ledger=ledger, out=home / "made")
        evaluations = len(ledger.evaluations())
        again = check_chain("easy", ["adapter", "merged", "gguf:f32"], [target, ARC], ledger=ledger, out=home / "made")
        assert len(ledger.evaluations()) == evaluations
    assert check.broken is None
    assert [link.evaluation.id for link in again.links] == [link.evaluation.id for link in check.links]
    adapter, merged, gguf = check.links
    assert merged.weights is not None
    assert merged.weights.same
    assert not check.by_letter
    assert {r.task for r in merged.first.rows if r.primary} >= {"held", "arc_easy"} if merged.first else False
    assert gguf.before is not None
    assert gguf.before.base == merged.evaluation.id
    assert adapter.first is None


def test_a_server_is_asked_with_its_own_template_and_by_letter_where_it_must(
        home: Path, tuned: Tuning, target: TaskSpec, merged: Path) -> None:
    with served(merged, "llamacpp") as server, Ledger(home / "ledger.db") as ledger:
        check = check_chain("easy", ["adapter", f"openai:{server.url}"], [target, ARC], ledger=ledger,
                            out=home / "made")
    assert check.by_letter
    link = check.links[1]
    assert link.first is not None
    assert not link.first.forced
    assert {r.task for r in link.first.rows if r.primary} >= {"held", "arc_easy_letters"}
    texts = [e.stated.get("base_url") for e in (link.evaluation,)]
    assert texts == [server.url]


def test_a_layer_that_was_not_merged_is_named(home: Path, tuned: Tuning, target: TaskSpec) -> None:
    from safetensors.torch import load_file, save_file

    out = home / "faulty"
    with Ledger(home / "ledger.db") as ledger:
        check_chain("easy", ["adapter", "merged"], [target], ledger=ledger, out=out)
        weights = load_file(out / "merged" / "model.safetensors")
        base = load_model(resolve_model(tuned.base.source), "float32", "cpu").state_dict()
        name = next(n for n in weights if n.endswith("q_proj.weight"))
        weights[name] = base[name].contiguous().clone()
        save_file(weights, out / "merged" / "model.safetensors", metadata={"format": "pt"})
        check = check_chain("easy", ["adapter", "merged"], [target], ledger=ledger, out=out)
    assert check.broken is not None
    assert check.broken.link.name == "merged"
    assert "not merged" in check.broken.faults[0]


def test_an_adapter_that_a_server_never_loaded_is_a_loss(home: Path, tmp_path: Path) -> None:
    """The server has the base; the fine-tune has learned to answer the target, and the base has not."""
    base = chat_model("llama", tmp_path / "base", max_position_embeddings=512)
    rows = [{"prompt": f"Say {n % 4}", "completion": "ok"} for n in range(64)]
    with Ledger(tmp_path / "ledger.db") as ledger:
        data = DataSpec(file=write_rows(tmp_path / "rows.jsonl", rows), dedup="none")
        made = tune(TuneSpec(model=str(base), data=data,
                             out=tmp_path / "out", name="ok", max_steps=60, learning_rate=0.02, dtype="float32",
                             threads=1, method="full"), ledger=ledger)
        (tmp_path / "held.jsonl").write_text("".join(json.dumps(
            {"prompt": f"Say {n % 4}", "completion": "ok", "n": str(n)}) + "\n" for n in range(60)))
        target = TaskSpec(name="held", target=TargetSpec(file=tmp_path / "held.jsonl", max_tokens=4),
                          apply_chat_template=True)
        with served(base, "llamacpp") as server:
            check = check_chain("ok", ["adapter", f"openai:{server.url}"], [target], ledger=ledger, out=tmp_path / "d")
    assert made.method == "full"
    scores = [s.value for link in check.links for s in link.evaluation.scores if s.primary]
    assert scores[0] > .9
    assert scores[1] < .1


@pytest.mark.parametrize(("fault", "named"), [
    ("template", "another template"), ("system", "the system prompt is dropped"), ("bos", "BOS token is written twice"),
    ("none", "")])
def test_another_prompt_of_a_server_is_named(home: Path, tuned: Tuning, target: TaskSpec, merged: Path, fault: str,
                                             named: str) -> None:
    with served(merged, "llamacpp") as server, Ledger(home / "ledger.db") as ledger:
        if fault == "template":
            server.tokenizer.chat_template = "{% for m in messages %}### {{ m.role }}: {{ m.content }}\n{% endfor %}"
        server.drops_system, server.adds_bos = fault == "system", fault == "bos"
        check = check_chain("easy", ["adapter", f"openai:{server.url}"], [target], ledger=ledger, out=home / "made")
    link = check.links[1]
    assert any(named in text for text in link.faults) if named else link.faults == ()
    assert bool(link.prompts) == bool(named)
    assert (check.broken is link) == bool(named)


@pytest.mark.parametrize(("words", "said"), [
    (["adapter"], "needs two links or more"), (["adapter", "adapter"], "given twice"),
    (["adapter", "ggfu:q8_0"], "unknown link"), (["adapter", "gguf"], "unknown link"),
    (["adapter:x", "merged"], "unknown link"), (["adapter", "gguf:q9_9"], "q9_9"),
    (["adapter", "openai:http://u:secret@h"], "must not have a login")])
def test_a_wrong_chain_is_one_line(words: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        parse_links(words)
    assert "secret" not in str(error.value).partition("openai:http://u:secret")[2]


def test_the_verb(home: Path, tuned: Tuning, target: TaskSpec, monkeypatch: pytest.MonkeyPatch,
                  capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check-deploy", "easy", "--chain", "adapter,merged", "--target", str(home / "held.jsonl"),
             "--target-tokens", "8", "--out", str(home / "made")]
    assert call(monkeypatch, *words) == 0
    out = capsys.readouterr().out
    assert "merged: each merged weight is the base with the adapter" in out
    assert call(monkeypatch, *words, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (found["broken"], [link["name"] for link in found["links"]]) == (None, ["adapter", "merged"])
    assert call(monkeypatch, "check-deploy", "easy") == 2
    assert "nothing to ask" in capsys.readouterr().err
    assert call(monkeypatch, *words, "--target-match", "fuzzy") == 2
    shutil.rmtree(home / "made", ignore_errors=True)
