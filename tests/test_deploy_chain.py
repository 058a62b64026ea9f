"""The chain from an adapter to a server: every link answers the same items, and the first one that lost is named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aftertune.cli.check_deploy import check_object, cost_lines
from aftertune.deploy import chain, check_chain
from aftertune.deploy.chain import ChainCheck, CheckedLink, LinkMaker
from aftertune.deploy.export import merged_weights, remove_stale
from aftertune.deploy.findings import reason, summary
from aftertune.errors import InputError, ResourceError
from aftertune.ledger import Ledger
from aftertune.report.changes import drift_line
from aftertune.sources import fingerprint_model, load_model, resolve_adapter, resolve_model
from aftertune.study import DataSpec, TargetSpec, TaskSpec, TuneSpec
from aftertune.study.links import Link, parse_links
from aftertune.tuning import tune
from aftertune.tuning.output import merge
from aftertune.values import CollapseSign, Comparison, Tuning
from deploy_cases import CHATML, chat_model, chat_tokenizer, easy_tuning, set_own_cache
from ledger_cases import evaluation, tuning
from report_cases import row
from server_cases import served
from test_cli import call
from tuning_cases import write_rows


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chain")


@pytest.fixture(autouse=True)
def own_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_own_cache(monkeypatch, home / "cache")
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(home / "ledger.db"))


@pytest.fixture(scope="module")
def tuned(home: Path) -> Tuning:
    """A LoRA on a tiny Llama."""
    return easy_tuning(home)


@pytest.fixture
def target(home: Path) -> TaskSpec:
    rows = [json.dumps({"prompt": f"Order {n}", "completion": f"{n}"}) for n in range(12)]
    (home / "held.jsonl").write_text("\n".join(rows) + "\n")
    return TaskSpec(name="held", target=TargetSpec(file=home / "held.jsonl", max_tokens=8), apply_chat_template=True)


ARC = TaskSpec(name="arc_easy", limit=12)
COMPARED = partial(Comparison, id="c1", base="e0", tuned="e1", base_name="a", tuned_name="b", lineage=True, rows=())


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
    assert (adapter.cost, merged.cost) == (None, None)
    assert gguf.cost is not None
    assert gguf.cost.whole == "merged"
    assert gguf.cost.drift is not None
    assert gguf.cost.drift.kl < 1e-6
    assert not gguf.cost.drift.moved


def test_the_cost_of_rounding_is_measured_on_the_held_out_texts(home: Path, tuned: Tuning, target: TaskSpec,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger(home / "ledger.db") as ledger:
        check = check_chain("easy", ["merged", "gguf:q4_0"], [target, ARC], ledger=ledger, out=home / "made")
        cost = check.links[1].cost
        assert cost is not None
        assert cost.drift is not None
        assert cost.drift.kl > 1e-3
        assert cost.drift.low <= cost.drift.kl <= cost.drift.high
        lines = cost_lines(check.links[1])
        assert re.fullmatch(r"gguf:q4_0 (costs|gains) \d+\.\d\d points on ARC Easy against merged \(.* to .*\): "
                            r"undecided; expected accuracy .* \(.*\)", lines[1])
        assert re.fullmatch(r"gguf:q4_0: its token probabilities differ from those of the merged weights by .* nats "
                            r"per token on \d+ held-out texts \(.*\); the most likely token is another at .* of "
                            "their tokens", lines[2])
        assert check_object(check)["links"][1]["cost"]["held_out_texts"]["kl"] == cost.drift.kl
        assert any("Rounding (KL" in line for line in map(drift_line, ledger.drifts()))
        (home / "rows.jsonl").rename(home / "gone.jsonl")
        monkeypatch.setattr(ledger, "find_drift", lambda id_: None)
        again = check_chain("easy", ["merged", "gguf:q4_0"], [target], ledger=ledger, out=home / "made")
        (home / "gone.jsonl").rename(home / "rows.jsonl")
    assert again.links[1].cost is not None
    assert again.links[1].cost.drift is None
    assert any("can no longer be read as the fine-tune read it" in note for note in again.notes)


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


def test_a_type_is_understood_in_either_case() -> None:
    assert [link.detail for link in parse_links(["gguf:Q8_0", "llamacpp:Q4_K_M"])] == ["q8_0", "q4_k_m"]


def test_merged_weights_of_another_fine_tune_are_made_again(home: Path, tuned: Tuning, tmp_path: Path) -> None:
    other = easy_tuning(home, name="other", out="other", max_steps=1)
    folder, note = merged_weights(tuned, tmp_path / "made", lambda *_: None)
    assert not note
    assert json.loads((tmp_path / "made" / "merged.json").read_text())["result"] == tuned.result
    first = fingerprint_model(resolve_model(str(folder))).fingerprint
    again, note = merged_weights(other, tmp_path / "made", lambda *_: None)
    assert again == folder
    assert note == f"{folder}: was merged from another fine-tune and was made again"
    second = fingerprint_model(resolve_model(str(folder))).fingerprint
    assert second != first
    (tmp_path / "made" / "merged.json").unlink()
    with pytest.raises(InputError, match=r"exists, and no merged.json beside it says which fine-tune"):
        merged_weights(other, tmp_path / "made", lambda *_: None)
    assert fingerprint_model(resolve_model(str(folder))).fingerprint == second


def test_the_file_of_another_fine_tune_is_made_again_like_its_merged_weights(home: Path, tuned: Tuning, tmp_path: Path
                                                                            ) -> None:
    other = easy_tuning(home, name="other", out="other", max_steps=1)
    with Ledger(home / "ledger.db") as ledger:
        for fine_tune, expected in ((tuned, 0), (other, 2), (other, 0)):
            maker = LinkMaker(fine_tune, tmp_path / "made", ledger, lambda *_: None)
            file = maker.file("f32")
            assert json.loads((file.parent / "export.json").read_text())["result"] == fine_tune.result
            assert sum("another fine-tune" in note for note in maker.notes) == expected
        (file.parent / "notes.txt").write_text("mine")
        assert not remove_stale(file.parent, tuned)
        with pytest.raises(InputError, match="does not hold this export of easy complete and unchanged"):
            LinkMaker(tuned, tmp_path / "made", ledger, lambda *_: None).file("f32")
        assert (file.parent / "notes.txt").read_text() == "mine"


def test_the_base_is_found_again_as_it_was_given(tuned: Tuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                 ) -> None:
    """Revision and own code of the base, and the date of the template."""
    base = replace(tuned.base, source="org/base", revision="v2", trust_remote_code=True)
    changed = replace(tuned, base=base, settings={**tuned.settings, "template_date": "2025-03-04"})
    seen: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(chain, "resolve_model", lambda source, **options: seen.append((source, options)))
    monkeypatch.setattr(chain, "load_tokenizer", lambda source: chat_tokenizer())
    monkeypatch.setattr(chain, "merged_weights", lambda *_: (tmp_path / "merged", ""))
    with Ledger(tmp_path / "ledger.db") as ledger:
        maker = LinkMaker(changed, tmp_path, ledger, lambda *_: None)
        assert maker.prompts(Link("merged", "merged")) == ()
        specs = [maker.spec(Link(kind, kind), (ARC,)) for kind in ("adapter", "merged")]
        server = maker.spec(Link("openai:http://h:1#org/m", "openai", "http://h:1/v1", "org/m"), (ARC,))
    assert seen == [("org/base", {"revision": "v2", "trust_remote_code": True}),
                    (str(tmp_path / "merged"), {"trust_remote_code": True})]
    assert [(s.model, s.revision, s.trust_remote_code, s.template_date) for s in specs] == [
        ("org/base", "v2", True, "2025-03-04"), (str(tmp_path / "merged"), None, True, "2025-03-04")]
    assert (server.name, server.model, server.template_date) == ("easy@h-1-org-m", "org/m", None)


def test_a_server_with_the_date_of_the_day_is_sound(home: Path, tuned: Tuning, merged: Path) -> None:
    dated = "{{ strftime_now('%d %b %Y') }}" + CHATML
    with served(merged, "llamacpp") as server, Ledger(home / "ledger.db") as ledger:
        server.tokenizer.chat_template = dated
        maker = LinkMaker(tuned, home / "made", ledger, lambda *_: None)
        link, = parse_links(["merged", f"openai:{server.url}"])[1:]
        assert maker._server_prompts(link, chat_tokenizer(template=dated)) == ()
    assert maker.notes == [f"the chat template writes the date: 2024-07-26 in the fine-tune, that of the day in "
                           f"{link.name}"]


@pytest.mark.parametrize(("days", "sound"), [(-1, True), (1, True), (40, False)])
def test_a_server_may_be_in_another_time_zone(home: Path, tuned: Tuning, merged: Path, days: int, sound: bool,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    class Day(date):
        @classmethod
        def today(cls) -> date:
            return date(2026, 3, 1)

    monkeypatch.setattr(chain, "date", Day)
    with served(merged, "llamacpp") as server, Ledger(home / "ledger.db") as ledger:
        server.tokenizer.chat_template = f"{Day.today() + timedelta(days):%d %b %Y}{CHATML}"
        link, = parse_links(["merged", f"openai:{server.url}"])[1:]
        dated = chat_tokenizer(template="{{ strftime_now('%d %b %Y') }}" + CHATML)
        found = LinkMaker(tuned, home / "made", ledger, lambda *_: None)._server_prompts(link, dated)
    assert (found == ()) == sound


def test_too_little_memory_for_float32_leaves_the_chain(home: Path, tuned: Tuning, target: TaskSpec,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise ResourceError("base: the model does not fit into the memory of cuda")

    monkeypatch.setattr(chain, "held_out_drift", full)
    with Ledger(home / "ledger.db") as ledger:
        check = check_chain("easy", ["merged", "gguf:q8_0"], [target], ledger=ledger, out=home / "made")
    assert check.broken is None
    assert check.links[1].cost is not None
    assert check.links[1].cost.drift is None
    assert check.notes == ("the token probabilities of gguf:q8_0 were not compared in float32: base: the model does "
                           "not fit into the memory of cuda",)


def test_a_sign_of_collapse_is_named_once() -> None:
    sign = CollapseSign(task="held", kind="empty", base=0.0, tuned=1.0, n=9)
    one = COMPARED(signs=(sign,))
    link = CheckedLink(Link("merged", "merged"), evaluation("e1"), one, one)
    assert link.collapse == (sign,)
    assert reason(link) == "its texts are empty on held"


def test_the_summary_says_what_was_not_tested() -> None:
    rows = tuple(row(task, "acc", 60, (30, 30, 0), (-1, 1), verdict=verdict) for task, verdict in (
        ("held", "within"), ("arc_easy", "undecided"), ("judge", None)))
    link = CheckedLink(Link("merged", "merged"), evaluation("e1"), COMPARED(rows=rows), COMPARED(rows=rows))
    check = ChainCheck(tuning(), (link,))
    assert summary(check) == (
        "No link is shown to be broken. A loss beyond the margin is not ruled out on ARC Easy; ask more items. Not "
        "tested: judge, whose metric has a unit of its own; give a margin in it (--margin judge=VALUE).")
    sound = replace(link, first=COMPARED(rows=rows[:1]))
    assert summary(replace(check, links=(sound,))) == (
        "No link is broken: on every task, no link lost more than the margin.")


@pytest.mark.parametrize(("words", "said"), [
    (["adapter"], "needs two links or more"), (["adapter", "adapter"], "given twice"),
    (["gguf:q8_0", "gguf:Q8_0"], "given twice"),
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
    assert call(monkeypatch, *words, "--margin", "held=40", "--margin", "1") == 0
    assert call(monkeypatch, *words, "--margin", "none") == 2
    assert "TASK=VALUE in points or in the unit of its metric" in capsys.readouterr().err
    shutil.rmtree(home / "made", ignore_errors=True)
