"""The record's own study, run whole on tiny models of its four architectures, with its sources pointed by ``--set``:
base, LoRA, QLoRA, merge, evaluate, compare, record, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aftertune.ledger import Ledger
from aftertune.study import Study
from aftertune.study.presets import PRESETS
from eval_cases import CHAT, byte_tokenizer
from test_cli import call
from tuning_cases import FAMILIES, write_rows

pytestmark = pytest.mark.slow
STUDY = Path(__file__).parent.parent / "studies" / "peft_comparison.yaml"
#: Base of the study -> the architecture that it has.
BASES = {"base-llama-3.2-1b": "llama-3.2", "tinyllama-base": "tinyllama", "phi-2-base": "phi-2",
         "mistral-7b-base": "mistral"}
TASKS = {"mmlu_high_school_computer_science": 6, "hellaswag": 6, "gsm8k": 3}


def model_folder(folder: Path, base: str) -> Path:
    """A tiny random model of a base's architecture, stored in its dtype, that reads any text, byte by byte."""
    import torch
    import transformers

    kind, settings = FAMILIES[BASES[base]]
    stored = PRESETS[Study.load(STUDY).bases[base].model].stored
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**{
        "vocab_size": 264, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 8192, "initializer_range": 0.3, "bos_token_id": 0,
        "eos_token_id": 1, "pad_token_id": 2, **settings})
    transformers.AutoModelForCausalLM.from_config(config).to(getattr(torch, stored)).save_pretrained(folder)
    byte_tokenizer(template=CHAT).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The ``--set`` words that point the study at local models and data, and make it small."""
    place = tmp_path_factory.mktemp("peft")
    rows = write_rows(place / "alpaca.jsonl", [
        {"instruction": f"Name the number after {n}.", "input": "", "output": f"It is {n + 1}."} for n in range(60)])
    train = write_rows(place / "gsm8k.jsonl", [
        {"question": f"What is {n} and 1?", "answer": f"One more.\n#### {n + 1}"} for n in range(40)])
    words = [f"bases.{base}.model={model_folder(place / base, base)}" for base in BASES]
    words += [f"tasks.{task}.sample={n}" for task, n in TASKS.items()]
    words.append("dtype=float32")  # a CPU has no float16
    return [*words, f"tasks.gsm8k.data={train}", "task_source=pack", "device=cpu", f"tunings.*.data.file={rows}",
            "tunings.*.data.examples=16", "tunings.*.max_steps=2"]


@pytest.fixture(scope="module")
def ran(sets: list[str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The study, run: its folder, exit code and what it printed."""
    import contextlib
    import io

    place = tmp_path_factory.mktemp("ran")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("AFTERTUNE_LEDGER", str(place / "ledger.db"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = call(patch, "run", str(STUDY), *with_sets(sets), "--json")
        yield place, code, out.getvalue(), err.getvalue()


def with_sets(sets: list[str]) -> list[str]:
    return [word for text in sets for word in ("--set", text)]


def test_the_study_is_the_record_s(sets: list[str]) -> None:
    """Nothing but sources, sizes and steps is changed."""
    changed, own = Study.load(STUDY, sets), Study.load(STUDY)
    assert list(changed.bases) == list(own.bases) == list(BASES)
    assert {n: (t.method, t.base, t.merge) for n, t in changed.tunings.items()} == {
        n: (t.method, t.base, t.merge) for n, t in own.tunings.items()}
    assert len(own.bases) + len(own.tunings) == 9
    assert own.dtype == "float16"
    assert [t.name for t in changed.tasks] == list(TASKS)


def test_every_cell_is_done_and_every_tuned_model_is_compared_with_its_base(sets: list[str], ran: Any) -> None:
    place, code, out, err = ran
    assert code == 0, err
    found = json.loads(out)
    study = Study.load(STUDY, sets)
    with Ledger(place / "ledger.db") as ledger:
        cells = {c.name: c.status for c in ledger.cells(study.study)}
        tunings = {name: ledger.find_tuning(name) for name in study.tunings}
    assert set(cells.values()) == {"done"}
    assert {f"evaluate {n}" for n in (*study.bases, *study.tunings)} < set(cells)
    assert len(found["comparisons"]) == len(study.tunings)
    for name, tuning in tunings.items():
        assert tuning.held_out is not None
        assert tuning.method == study.tunings[name].method
        assert bool(tuning.merged) == study.tunings[name].merge
        assert (place / tuning.output / "adapter_config.json").is_file()


def test_the_record_has_a_section_for_each_family_and_a_row_for_each_model(
        sets: list[str], ran: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    place, code, _, err = ran
    assert code == 0, err
    monkeypatch.chdir(place)
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(place / "ledger.db"))
    assert call(monkeypatch, "record", "--out", "RECORD.md") == 0
    assert call(monkeypatch, "record", "--out", "again.md") == 0
    text = Path("RECORD.md").read_text(encoding="utf-8")
    assert text == Path("again.md").read_text(encoding="utf-8"), "the same bytes every time"
    assert text.count("## ") - text.count("### ") >= len(BASES)
    for name in (*BASES, *Study.load(STUDY).tunings):
        assert f"### {name} (" in text
    assert "Not Evaluated" not in text
    assert "more characters)" not in text, "a command can be copied whole"
    for title in ("HellaSwag", "GSM8K", "LoRA", "QLoRA"):
        assert title in text
    assert call(monkeypatch, "record", "--out", "public.md", "--published") == 0
    public = Path("public.md").read_text(encoding="utf-8")
    folder = sets[0].partition("=")[2].rpartition("/")[0]  # of the models
    assert folder in text
    assert folder not in public
    assert public.count("\n") == text.count("\n")
    assert call(monkeypatch, "report", "--out", "report.html", "--published") == 0
    page = Path("report.html").read_text(encoding="utf-8")
    assert folder not in page
    assert "<script" not in page
    assert page.count("<svg") >= 1
    capsys.readouterr()


def test_an_adapter_and_its_merge_are_the_same_model(ran: Any, monkeypatch: pytest.MonkeyPatch,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    place, code, _, err = ran
    assert code == 0, err
    monkeypatch.chdir(place)
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(place / "ledger.db"))
    assert call(monkeypatch, "check-merge", "tinyllama-lora-50k-examples", "--tasks", "hellaswag", "--sample", "4",
                "--json") == 0
    assert json.loads(capsys.readouterr().out)
