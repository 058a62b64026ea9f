"""A published record read, audited, imported and shown: its figures are its own, marked as reported."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from aftertune.cli.console import guarded
from aftertune.errors import InputError
from aftertune.exchange import audit, audit_reported, audited_documents, import_results, pairing_text
from aftertune.exchange.markdown_record import read_record
from aftertune.ledger import Ledger
from exchange_cases import BASE_RIGHT, lm_eval_folder, record

DATA = Path(__file__).parent / "data"
QLORA = "TinyLlama + QLoRA"
TUNED = "Fine-tuned Llama 3.2 1B (2K Examples)"
LORA = "TinyLlama + LoRA (50K Examples)"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "record.md"
    path.write_text(record(), encoding="utf-8")
    return path


def test_every_figure_is_read_once_with_its_section_facts_and_size(file: Path) -> None:
    document = read_record(file)
    assert len(document.scores) == 20  # the wide table only repeats
    assert {(r.section, r.model) for r in document.scores} == {
        ("Llama 3.2 Models (1.2B)", "Base Llama 3.2 1B"), ("Llama 3.2 Models (1.2B)", TUNED),
        ("TinyLlama (1.1B)", LORA), ("TinyLlama (1.1B)", QLORA)}
    first, gsm = document.scores[0], document.scores[3]
    assert (first.task, first.metric, first.value, first.stderr, first.value_text, first.n, first.n_source) == (
        "mmlu_high_school_computer_science", "acc", 0.47, 0.0502, "47.00%", 100, "known")
    assert (gsm.task, gsm.metric, gsm.filter, gsm.n) == ("gsm8k", "exact_match", "flexible-extract", 1319)
    assert first.facts["Data Type"] == "float16"
    assert [(r.model, r.section, r.planned) for r in document.rows if r.planned is not None] == [
        ("TinyLlama Base Model", "TinyLlama (1.1B)", "./scripts/run.sh base tiny false"),
        ("Phi-2 (2.7B)", "Phi-2 (2.7B)", "./scripts/run.sh small qlora true")]


def test_an_error_beyond_every_float_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "other.md"
    path.write_text("| Model | ARC Easy |\n|--|--|\n| A | 25.00% ±1e400% |\n| B | 24.50% ±1.00% |\n", encoding="utf-8")
    assert [(r.value_text, r.stderr) for r in read_record(path).scores] == [("24.50%", 0.01)]


def test_other_forms_of_tables_are_read(tmp_path: Path) -> None:
    path = tmp_path / "other.md"
    path.write_text(
        "|  Tasks  |Version|Filter|n-shot| Metric |   |Value |   |Stderr|\n|---|--|--|--|--|--|--|--|--|\n"
        "|hellaswag|1|none|0|acc|↑|0.2871|±|0.0045|\n|||none|0|acc_norm|↑|0.3151|±|0.0046|\n"
        "|gsm8k|3|strict-match|5|exact_match|↑|0.0200|±|0.0039|\n|lambada|1|none|0|perplexity|↓|32.87|±|1.05|\n\n"
        "## Others\n\n| Benchmark | A | B | Size |\n|--|--|--|--|\n| ARC Easy | 45.2 ± 1.0 | 0.9 | 2K |\n"
        "| SciQ (0-shot) | – | 61 | 1K |\n\n```\n| Task | Result |\n|--|--|\n| x | not read |\n```\n", encoding="utf-8")
    rows = read_record(path).rows
    assert [(r.model, r.task, r.metric, r.filter, r.value, r.value_text, r.n) for r in rows] == [
        ("other.md", "hellaswag", "acc", "none", 0.2871, "0.2871", 10042),
        ("other.md", "hellaswag", "acc_norm", "none", 0.3151, "0.3151", 10042),
        ("other.md", "gsm8k", "exact_match", "strict-match", 0.02, "0.0200", 1319),
        ("other.md", "lambada", "perplexity", "none", 32.87, "32.87", None),
        ("A", "arc_easy", "acc", "none", 0.452, "45.2%", 2376), ("B", "arc_easy", "acc", "none", 0.009, "0.9%", 2376),
        ("B", "sciq", "acc", "none", 0.61, "61%", 1000)]


def test_marks_escapes_and_indented_parts_are_read_as_before() -> None:
    """Commit 6627cb2 wrote what it read of this record: a line for each row and remark. It did not read the table in a
    code block, which is the row of `x`."""
    document = read_record(DATA / "record_6627cb2.md")
    expected = (DATA / "record_6627cb2.txt").read_text(encoding="utf-8").splitlines()
    found = [repr(row).replace(", mean_of='', error_of='')", ")") for row in document.rows]
    found += [repr(remark) for remark in document.remarks if remark.kind != "note"]
    assert found == expected


def test_code_keeps_its_asterisks(tmp_path: Path) -> None:
    path = tmp_path / "code.md"
    path.write_text("# A\n- **Files**: `*.bin`, 5 * 3\n\n| Task | Result |\n|--|--|\n| piqa | 70%* |\n", "utf-8")
    [row] = read_record(path).rows
    assert row.facts == {"Files": "*.bin, 5 3"}  # elsewhere a lone asterisk is a mark: 70%*
    assert row.value == 0.7


def test_the_audit_says_what_the_figures_can_be_and_show(file: Path) -> None:
    found = audit(file)
    bad = [c for c in found.checks if not c.ok]
    assert [(c.row.model, c.row.value_text, c.row.stderr_text) for c in bad] == [
        (QLORA, "26.50%", "4.42%"), (QLORA, "2.74%", "0.44%"), (QLORA, "2.15%", "0.39%")]
    assert all(c.value_ok is False and c.stderr_ok is False for c in bad)
    assert "not reproducible as k/n at the 100 items that lm-eval's task has (26 is 26.00% and 27 is 27.00%)" in \
        bad[0].text
    assert not any("stated" in c.text for c in found.checks)  # the record states no n
    assert "it needs k=34-35, 2.58% to 2.65%" in bad[1].text
    assert not any("fabricat" in c.text for c in found.checks)
    assert {c.mark for c in found.checks if c.row.task == "hellaswag"} == {"ok*"}  # passing says nothing there
    status = {(c.tuned, c.task, c.filter if c.metric == "exact_match" else c.metric): c for c in found.claims}
    assert {k[1:] for k, c in status.items() if k[0] == TUNED and c.status == "established"} == {
        ("gsm8k", "flexible-extract"), ("gsm8k", "strict-match")}
    mmlu = status[TUNED, "mmlu_high_school_computer_science", "acc"]
    assert (mmlu.status, mmlu.family, round(mmlu.p, 2), round(mmlu.p_holm, 2)) == ("open", True, .06, .18)
    assert "at most 43 (43.0 %) do (exact: 37), after Holm 29" in pairing_text(mmlu)
    assert not any(c.family for c in found.claims if c.tuned in (LORA, QLORA))
    # 47 and 27 of 100: significant if the answers were independent, but not at every pairing after Holm
    assert status[LORA, "mmlu_high_school_computer_science", "acc"].status == "open"
    assert status[LORA, "hellaswag", "acc_norm"].status == "open"
    assert {c.status for c in found.claims if c.tuned == QLORA and c.task != "hellaswag"} == {"cannot be checked"}


def test_the_audit_reads_the_rest_of_the_document_too(file: Path) -> None:
    told = {f.where: f.text for f in audit(file).findings}
    assert "sets no dtype, unlike that of Base Llama 3.2 1B" in told[TUNED]
    assert "strict match equals flexible extract" in told["Base Llama 3.2 1B, gsm8k"]
    assert any("divides the log-likelihood of each choice by the length" in t for t in told.values())
    assert "Device CUDA | MPS" in told[LORA]
    sound = file.with_name("sound.md")
    sound.write_text(record().replace("Accuracy after normalizing for text format variations",
                                      "log-likelihood by length").replace("{DIR} ", "{DIR},dtype=float16 "), "utf-8")
    assert not any("dtype" in f.text or "definition" in f.text for f in audit(sound).findings)


def test_import_is_idempotent_and_marked_wherever_it_is_shown(
        file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(tmp_path / "ledger.db"))
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["aftertune", *words])
        assert guarded(_app()) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    for _ in range(2):
        said = call("import", "record.md")
        assert "20 reported scores of 4 models" in said
    with Ledger(tmp_path / "ledger.db") as ledger:
        assert len(ledger.reported()) == 22
    assert "reported" in call("runs")
    assert json.loads(call("runs", "--json"))["reported"][0]["scores"] == 20
    shown = call("show", "record.md")
    assert "not measured here" in shown
    assert shown.count("not reproducible as k/n") == 3
    text = call("record", "--out", "-")
    assert "## 1. Llama 3.2 Models (1.2B) (reported)" in text
    assert "| GSM8K | Flexible Extract | 33.51% | ±1.30% |" in text
    assert text.count("not reproducible as k/n") == 6  # beside its figure, and among the changes
    assert "planned with: `./scripts/run.sh small qlora true`" in text
    assert json.loads(call("audit", "record.md", "--json"))["ok"] is False
    monkeypatch.setattr(sys, "argv", ["aftertune", "audit", "record.md", "--strict"])
    assert guarded(_app()) == 1


def _app() -> object:
    from aftertune.cli import app

    return app


@pytest.mark.parametrize(("text", "said"), [
    ("", "no table of scores was found"),
    ("# A\n\njust words | and a pipe\n", "no table of scores was found"),
    ("| Task | Result |\n|--|--|\n| hellaswag | <b>lots</b> |\n", "bad.md:3: no score was read: '<b>lots</b>' of"),
    ("| Task | Result |\n|--|--|\n| hellaswag |\n", "bad.md:1: no score was read: the table has no figure"),
    ("| Task | Status |\n|--|--|\n| hellaswag | done |\n", "bad.md:1: no score was read: the table has no figure"),
    ("\x00" * 50, "no table of scores was found"), ("|" * 10_000 + "\n|--|\n|1|\n", "no table of scores was found"),
])
def test_a_broken_record_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.md"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught, Ledger(tmp_path / "l.db") as ledger:
        import_results(path, ledger=ledger)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_and_files_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "bad.md"
    path.write_bytes(b"| Task | Result |\n\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        audit(path)
    with pytest.raises(InputError, match="cannot be read"):
        audit(tmp_path / "none.md")


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "hostile.md"
    path.write_text("## <script>alert(1)</script>\n\n### [x](javascript:1) **b\u202e\n\n| Task | Result |\n|--|--|\n"
                    "| <img src=x> \\| a | 45.2% |\n\n- **Model Path**: `a` <b>\n", encoding="utf-8")
    from aftertune.report import Results, write_record

    text = write_record(Results(reported=[audit_reported(read_record(path))]), title="t")
    assert "<script>" not in text
    assert "<img" not in text
    assert "\u202e" not in text
    assert "[x](javascript" not in text


def test_a_record_shows_the_document_with_its_audit_and_says_where_it_departs(file: Path, tmp_path: Path) -> None:
    from aftertune.report import Planned, Results, write_record

    planned = [Planned(study="s", name=name, base=base, model=f"owner/{base}",
                       command=f"aftertune run s.yaml --only {name}")
               for name, base in (("base-llama-3.2-1b", "base-llama-3.2-1b"), ("tinyllama-base", "tinyllama-base"),
                                  ("tinyllama-qlora", "tinyllama-base"), ("other-x", "other"))]
    with Ledger(tmp_path / "ledger.db") as ledger:
        import_results(file, ledger=ledger)
        documents = audited_documents(ledger)
        text = write_record(Results(reported=documents, planned=planned), title="t")
        assert write_record(Results(reported=audited_documents(ledger), planned=planned), title="t") == text
    (document,) = documents
    assert document.columns == ("Base Llama 3.2 1B", LORA)
    assert ("hellaswag", "acc", "none") not in document.best
    assert document.best["gsm8k", "exact_match", "strict-match"] == "Base Llama 3.2 1B"
    assert "| **33.51% ± 1.30%** | 2.81% ± 0.45% |" in text
    assert "| Accuracy | 45.23% ± 0.50% | 45.84% ± 0.50% |" in text
    assert f"HellaSwag, Accuracy: 45.84% ± 0.50% of {LORA} is not bold here" in text
    assert text.count("is shown as printed and marked †") == 3
    assert "the definition of Normalized Accuracy is wrong" in text
    assert "the definition of 'Accuracy' is replaced" in text
    observed = text[text.index("### Key Observations"):text.index("### Changes from")]
    assert f"{TUNED} against Base Llama 3.2 1B: established by the summary alone: GSM8K, Flexible Extract" in observed
    assert "forgot" not in observed
    tiny = text[text.index("## 2. TinyLlama"):text.index("## 3. ")]
    assert "*Measure it here with: `aftertune run s.yaml --only tinyllama-qlora`*" in tiny
    assert "planned with: `aftertune run s.yaml --only tinyllama-base`" in tiny
    assert "other (reported)" not in text
    assert "### other-x (Not Evaluated)" in text[text.index("## 4. other"):]
    future = text[text.index("## Future Work"):]
    assert future.count("- [ ] ") == 4 + 1
    assert "aftertune run s.yaml --only other-x" in future


def test_where_the_best_figure_cannot_be_checked_nothing_is_bold(file: Path) -> None:
    """With the row that cannot be as a column, GSM8K has no proven best."""
    document = read_record(file)
    every = audit_reported(replace(document, remarks=()))
    assert QLORA in every.columns
    assert ("gsm8k", "exact_match", "strict-match") not in every.best


def test_a_folder_of_results_is_audited(tmp_path: Path) -> None:
    lm_eval_folder(tmp_path, "org/base", BASE_RIGHT)
    found = audit(tmp_path)
    assert found.ok
    assert {check.row.task for check in found.checks} == {"choose", "write"}
