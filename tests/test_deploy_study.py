"""The links of a deployed fine-tune as cells of a study, and the gate over the links of a checked chain."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from aftertune.deploy import chain, gate_chain
from aftertune.deploy.gguf_file import FILE_TYPES
from aftertune.deploy.stored_check import FILE, read_check
from aftertune.errors import InputError
from aftertune.ledger import Ledger
from aftertune.pipeline import cells_of, plan, running, select_cells
from aftertune.pipeline.cell_runs import CellRuns
from aftertune.study import Study
from aftertune.study.links import WRITTEN_TYPES
from deploy_cases import chat_model, set_own_cache
from test_cli import call
from tuning_cases import easy_rows, write_rows

pytestmark = pytest.mark.filterwarnings("ignore")
STUDY = """study: own
margin: 5
dtype: float32
task_source: pack
bases: {b: {model: ./base}}
tasks:
  - {name: arc_easy, limit: 6}
  - {name: held, apply_chat_template: true, target: {file: held.jsonl, max_tokens: 8}}
tunings: {careful: {base: b, data: rows.jsonl, max_steps: 2, learning_rate: 0.02}}
deploy:
  careful: [merged, "gguf:f32"]
"""
LINKS = ["deploy careful adapter", "deploy careful merged", "deploy careful gguf:f32"]


def make_study(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """A study of one tiny base with a fine-tune that is deployed, in a folder that becomes the working one."""
    patch.chdir(folder)
    patch.setenv("AFTERTUNE_LEDGER", str(folder / "ledger.db"))
    set_own_cache(patch, folder / "cache")
    chat_model("llama", folder / "base", max_position_embeddings=512)
    write_rows(folder / "rows.jsonl", easy_rows())
    write_rows(folder / "held.jsonl", [{"prompt": f"Order {n}", "completion": f"{n}"} for n in range(6)])
    path = folder / "study.yaml"
    path.write_text(STUDY, encoding="utf-8")
    return path


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_study(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study, with what `run --json` printed; "checked" is a copy of its check of the links."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch, (folder / "run.json").open("w") as out, contextlib.redirect_stdout(out):
        assert call(patch, "run", str(make_study(folder, patch)), "--json") == 0
    shutil.copytree(folder / "runs/own/deploy/careful", folder / "checked")
    return folder


@pytest.fixture
def in_finished(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, and its ledger, for a test that only adds to it."""
    monkeypatch.chdir(finished)
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(finished / "ledger.db"))
    monkeypatch.setenv("AFTERTUNE_CACHE", str(finished / "cache"))
    return finished


def states() -> dict[str, str]:
    with Ledger() as ledger:
        return {c.name: c.status for c in ledger.cells("own")}


def test_types_of_files_are_those_that_are_written() -> None:
    assert set(WRITTEN_TYPES) == set(FILE_TYPES)


def test_links_are_cells_after_the_fine_tune(file: Path) -> None:
    study = Study.load(file)
    assert [c.name for c in cells_of(study)] == ["evaluate b", "tune careful", "evaluate careful", *LINKS]
    assert [c.name for c in select_cells(study, [LINKS[1]])][-2:] == LINKS[:2]
    planned = {c.name: c for c in plan(study, ledger=None, file="study.yaml")}
    assert planned[LINKS[2]].status == "planned"
    assert planned[LINKS[2]].cost.seconds is not None
    missing = Study.load(file, ['deploy={careful: ["gguf:q4_k_m"]}'])
    assert any("llama-quantize of llama.cpp on the PATH, for q4_k_m" in text for c in plan(
        missing, ledger=None, file="study.yaml") for text in c.missing)


def test_ids_of_studies_that_deploy_nothing_stay(file: Path) -> None:
    file.write_text(STUDY.partition("deploy:")[0], encoding="utf-8")
    before, empty = Study.load(file), Study.load(file, ["deploy={}"])
    assert before.hash == empty.hash
    file.write_text(STUDY, encoding="utf-8")
    after = Study.load(file)
    assert after.hash != before.hash
    assert {c.name: c.digest for c in cells_of(before)}.items() <= {c.name: c.digest for c in cells_of(after)}.items()


@pytest.mark.parametrize(("change", "words"), [
    ('deploy={carefull: [merged]}', "deploy.carefull is no fine-tune of the study (did you mean 'careful'"),
    ('deploy={careful: [gguf]}', "gguf: unknown link"), ('deploy={careful: [adapter]}', "needs two links or more"),
    ('deploy={careful: ["gguf:q9"]}', "'q9' is no type of a GGUF"),
    ('deploy={careful: [merged, merged]}', "a link is given twice"),
    ('deploy={careful: [merged], "care*": [merged]}', "deploy names careful twice, by careful and by care*"),
    ("bases.b.tokenizer=./base", "its base has a tokenizer of another folder"),
    ("until_decided=true", "its tasks stop at their verdicts")])
def test_what_cannot_be_done_is_refused_in_one_line(file: Path, change: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        Study.load(file, [change])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_thinking_does_not_reach_a_server(file: Path) -> None:
    sets = ["enable_thinking=false", 'deploy={careful: ["openai:http://127.0.0.1:9"]}']
    with pytest.raises(InputError, match="applies its own chat template, which `enable_thinking` does not reach"):
        Study.load(file, sets)


def test_a_study_evaluates_compares_and_shows_each_link_once(
        in_finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = in_finished / "study.yaml"
    shown = json.loads((in_finished / "run.json").read_text())
    assert set(states().values()) == {"done"}
    record, page = (Path("runs/own") / name for name in ("record.md", "report.html"))
    for text in (record.read_text(), page.read_text()):
        assert "careful@gguf-f32" in text
        assert "careful@merged" in text
    assert LINKS[2] in page.read_text()
    assert any("No link" in line for line in shown["headlines"])
    check = read_check(Path("runs/own/deploy/careful"))
    assert [link.name for link in check.links] == ["adapter", "merged", "gguf:f32"]
    asked: list[str] = []
    real = chain.evaluate
    monkeypatch.setattr(chain, "evaluate", lambda spec, **k: asked.append(spec.model) or real(spec, **k))
    assert call(monkeypatch, "run", str(file), "--json") == 0
    assert not asked, "what is checked is not checked again"
    assert json.loads(capsys.readouterr().out)["comparisons"] == shown["comparisons"]
    with_more = file.read_text().replace('"gguf:f32"]', '"gguf:f32", "gguf:q8_0"]')
    file.write_text(with_more, encoding="utf-8")
    assert call(monkeypatch, "run", str(file), "--only", "deploy careful gguf:q8_0", "--json") == 0
    assert len(asked) == 1
    assert "careful@gguf-q8_0" in record.read_text()
    assert "careful@merged" in record.read_text()


def test_a_link_that_fails_leaves_those_before_it(file: Path, monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(STUDY.replace('"gguf:f32"', '"openai:http://127.0.0.1:9/v1", "gguf:f32"'), encoding="utf-8")
    monkeypatch.setattr("aftertune.harness.server_client._FIRST_WAIT", 0.01)
    assert call(monkeypatch, "run", str(file), "--keep-going", "--json") == 1
    assert "did not answer" in capsys.readouterr().err
    found = states()
    assert found["deploy careful openai:http://127.0.0.1:9/v1"] == "failed"
    assert found["deploy careful merged"] == "done"
    assert found["deploy careful gguf:f32"] == "planned"


def test_the_gate_of_a_chain_ends_at_the_first_broken_link(
        in_finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(in_finished / "checked", tmp_path / "careful")
    gate = ("gate", "--chain", str(folder), "--max-drop", "arc_easy=90", "--max-drop", "held=90")
    assert call(monkeypatch, *gate, "--junit", "gate.xml") == 0
    shown = capsys.readouterr()
    assert [line.split()[1:3] for line in shown.out.splitlines()] == [
        ["merged,", "arc_easy:"], ["merged,", "held:"], ["gguf:f32,", "arc_easy:"], ["gguf:f32,", "held:"]]
    assert "FAILED" not in shown.out
    suite = ElementTree.fromstring(Path("gate.xml").read_text())[0]
    assert (suite.get("tests"), suite.get("failures")) == ("4", "0")
    content: dict[str, Any] = json.loads((folder / FILE).read_text())
    content["links"][1]["faults"] = ["it makes other prompts of messages: the system prompt is dropped"]
    (folder / FILE).write_text(json.dumps(content))
    assert call(monkeypatch, *gate, "--junit", "gate.xml", "--github") == 1
    shown = capsys.readouterr()
    assert "failed at merged, the first broken link (it makes other prompts" in shown.err
    assert "::error title=careful%3A merged::it makes other prompts" in shown.out
    suite = ElementTree.fromstring(Path("gate.xml").read_text())[0]
    assert (suite.get("tests"), suite.get("failures")) == ("3", "1")
    assert call(monkeypatch, *gate, "--json") == 1
    assert json.loads(capsys.readouterr().out)["broken"] == "merged"
    with Ledger() as ledger, pytest.raises(InputError, match=r"has no check-deploy.json with two links"):
        gate_chain(in_finished, {"held": 0.02}, ledger=ledger)
    content["links"][2]["evaluation"] = "e-nothing"
    (folder / FILE).write_text(json.dumps(content))
    with Ledger() as ledger, pytest.raises(InputError, match=r"gguf:f32 \(e-nothing\) is not in this ledger"):
        gate_chain(folder, {"held": 0.02}, ledger=ledger)
    (folder / FILE).write_text("{}")
    with Ledger() as ledger, pytest.raises(InputError, match="cannot be read as the result of"):
        gate_chain(folder, {"held": 0.02}, ledger=ledger)


@pytest.mark.parametrize(("words", "why"), [
    (("--max-drop", "a=2"), "gate needs two evaluations, the base first, or --chain"),
    (("one", "two", "--chain", "folder", "--max-drop", "a=2"), "leave the evaluations and --common out")])
def test_a_gate_has_two_evaluations_or_a_chain(words: tuple[str, ...], why: str, file: Path,
                                               monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
                                               ) -> None:
    assert call(monkeypatch, "gate", *words) == 2
    assert why in capsys.readouterr().err


def test_the_cells_of_a_chain_may_be_run_by_different_workers(file: Path, finished: Path) -> None:
    """Each cell by one that knows only the ledger; the chain and its check are those of one process."""
    study, documents = Study.load(file), []
    with Ledger() as ledger, Ledger(finished / "ledger.db") as other:
        running.save_study(study, ledger)
        for cell in cells_of(study):
            worker = CellRuns(study, ledger, Path("out"))
            worker.load_needed(cell)
            worker.run(cell, lambda *_: None)
        check = json.loads((Path("out/deploy/careful") / FILE).read_text(encoding="utf-8"))
        assert set(states().values()) == {"done"}
        for opened, out in ((ledger, Path("out")), (other, finished / "runs/own")):
            result = running.run(study, ledger=opened, out=out)
            documents.append((result.chains, [(c.id, c.rows) for c in result.comparisons]))
        alone = json.loads((finished / "checked" / FILE).read_text(encoding="utf-8"))
    assert documents[0] == documents[1]
    assert [link["name"] for link in check["links"]] == [link["name"] for link in alone["links"]]
    assert check.keys() == alone.keys()
