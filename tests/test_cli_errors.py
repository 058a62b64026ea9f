"""Bad input on the command line: one line on stderr that says what, where and what to do, and its exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from aftertune.methods import METHODS, join_names
from aftertune.redaction import redact
from cli_cases import call, one_line, settle
from eval_cases import byte_folder
from source_cases import tiny_adapter
from tuning_cases import rows, write_rows

STUDY = "study: s\nbases: {b: {model: byte}}\ntasks: [{name: arc_easy, limit: 2}]\n"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models, an adapter of the first, data, and a ledger with three evaluations of two kinds."""
    root = tmp_path_factory.mktemp("errors")
    byte_folder(root / "byte")
    byte_folder(root / "wide", hidden=64)
    byte_folder(root / "twin", initializer_range=0.31)
    tiny_adapter(root / "byte", root / "adapter")
    write_rows(root / "rows.jsonl", rows())
    (root / "broken.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n')
    (root / "bad.db").write_text("no database, but long enough to be read as the head of one" * 9)
    (root / "study.yaml").write_text(STUDY)
    for name, text in {"key": "margn: 3\n", "twice": "margin: 3\nmargin: 4\n", "engine": "engine: pakced\n",
                       "file": "tunings: {t: {base: b, data: {file: rwos.jsonl}}}\n",
                       "base": "tunings: {t: {base: bb, data: {file: rows.jsonl}}}\n"}.items():
        (root / f"{name}.yaml").write_text(STUDY + text)
    with pytest.MonkeyPatch.context() as patch:
        settle(patch, root)
        for name, count in (("base", "2"), ("other", "3")):
            assert call(patch, "eval", "byte", "--tasks", "arc_easy", "--limit", count, "--name", name) == 0
    return root


#: Command -> exit code, and what its line must say.
CASES: dict[str, tuple[int, tuple[str, ...]]] = {
    "eval byte --tasks helaswag": (2, ("'helaswag'", "did you mean 'hellaswag'", "--include-path")),
    "eval byte --tasks ,": (2, ("there is nothing to ask", "--tasks arc_easy,hellaswag", "--target FILE")),
    "eval byte --tasks arc_easy --task-data arc_easy=nope.jsonl": (2, ("arc_easy=nope.jsonl", "no such file")),
    "eval byte --tasks arc_easy --task-data sciq=x.jsonl": (2, ("'sciq'", "not among --tasks")),
    "eval byte --tasks arc_easy --task-data x": (2, ("TASK=FILE",)),
    "eval ./absent --tasks arc_easy": (2, ("./absent: no such file or folder",)),
    "eval ./byt --tasks arc_easy": (2, ("./byt", "did you mean 'byte'")),
    "eval byt --tasks arc_easy": (2, ("byt: this run is offline", "did you mean 'byte'", "download it once")),
    "eval no-org/no-model --tasks arc_easy": (2, ("no-org/no-model", "HF_HUB_OFFLINE", "or give a folder")),
    "eval package:no_such_package/x.gguf --tasks arc_easy": (2, ("pip install",)),
    "eval byte --tasks arc_easy --limit 0": (2, ("`--limit`", "greater than 0, found 0")),
    "eval byte --tasks arc_easy --sample -3": (2, ("`--sample`", "found -3")),
    "eval byte --tasks arc_easy --limit many": (2, ("--limit", "valid integer", "see `aftertune eval --help`")),
    "eval byte --tasks arc_easy --limit 3 --sample 3": (2, ("cannot be set together",)),
    "eval byte --tasks arc_easy --dtype float17": (2, ("`--dtype`", "'float32'", "found 'float17'")),
    "eval byte --tasks arc_easy --engine pakced": (2, ("`--engine`", "openai:URL or lm-eval:NAME", "'pakced'")),
    "eval byte --tasks arc_easy --device tpu": (4, ("'tpu'", "available: cpu")),
    "eval byte --tasks arc_easy --gen-kwargs a": (2, ("--gen-kwargs 'a'", "NAME=VALUE")),
    "eval wide --tasks arc_easy --adapter adapter": (2, ("adapter:", "has shape [4, 32]", "the given base is wide")),
    "eval twin --tasks arc_easy --adapter adapter": (2, ("was trained on", "twin, has other weights")),
    "eval byte --tasks arc_easy --adapter byte": (2, ("byte: not a PEFT adapter", "give it as the model")),
    "eval adapter --tasks arc_easy": (2, ("adapter: found a PEFT adapter", "--adapter")),
    "eval byte": (2, ("there is nothing to ask", "--tasks arc_easy,hellaswag", "--target FILE")),
    "evall byte": (2, ("'evall'", "'eval'")),
    "tune byte --data nope.jsonl": (2, ("nope.jsonl: no such data file",)),
    "tune byte --data broken.jsonl": (2, ("broken.jsonl:2: not valid JSON",)),
    "tune byte --data rows.jsonl --method lorra": (
        2, ("`--method`", join_names([repr(name) for name in METHODS]), "'lorra'")),
    "tune byte --data rows.jsonl --learning-rate -1": (2, ("`--learning-rate`", "found -1")),
    "compare base other": (3, ("arc_easy.limit (2 | 3)", "run both on the same items", "--common")),
    "compare base othr": (2, ("'othr'", "did you mean 'other'")),
    "eval byte --tasks arc_easy --until-decided": (2, ("--until-decided has no effect without --against",)),
    "eval byte --tasks arc_easy --against base": (2, ("--against has no effect without --until-decided",)),
    "eval byte --tasks arc_easy --until-decided --against base --margin 0": (2, ("--margin 0", "above 0, up to 100")),
    "eval byte --tasks arc_easy --until-decided --against base --batch 0": (2, ("--batch", "greater than 0")),
    "eval byte --tasks arc_easy --until-decided --against nobody": (2, ("'nobody' is neither a finished evaluation",)),
    "eval byte --tasks arc_easy --limit 3 --until-decided --against base": (3, ("arc_easy.items",)),
    "compare base other --margin 0": (2, ("--margin 0", "above 0, up to 100")),
    "compare base other --margin nan": (2, ("--margin nan", "above 0, up to 100")),
    "compare base base": (2, ("base and tuned are the same evaluation", "name the base first")),
    "eval byte --tasks arc_easy --name [red]x": (2, ("`--name`", "letters, digits", "'[red]x'")),
    "compare base": (2, ("aftertune compare --help",)),
    "show e-0000": (2, ("'e-0000'", "base")),
    "rollback ~nobody-here/out --to 1": (2, ("'~nobody-here/out'",)),
    f"rollback {'x' * 300} --to 1": (2, ("no tuning",)),
    "record --only othr": (2, ("'othr'", "did you mean 'other'")),
    "record --out bad.db/record.md": (5, ("record.md: cannot be written", "--out")),
    "run absent.yaml": (2, ("absent.yaml: no such study file",)),
    "run key.yaml": (2, ("key.yaml: unknown key `margn`", "did you mean 'margin'")),
    "run twice.yaml": (2, ("twice.yaml", "line 5", "'margin' occurs twice, first on line 4")),
    "run engine.yaml": (2, ("`engine`", "llamacpp, openai:URL or lm-eval:NAME", "'pakced'")),
    "run file.yaml": (2, ("`tunings.t.data.file`", "did you mean 'rows.jsonl'")),
    "run base.yaml": (2, ("tunings.t.base is 'bb'", "(b)")),
    "run study.yaml --out bad.db/out": (5, ("cannot be created", "--out")),
}


@pytest.mark.parametrize("words", CASES)
def test_bad_input_is_one_line_with_its_exit_code(words: str, workspace: Path, monkeypatch: pytest.MonkeyPatch,
                                                  capfd: pytest.CaptureFixture[str]) -> None:
    settle(monkeypatch, workspace)
    code, expected = CASES[words]
    assert (call(monkeypatch, *words.split()), one_line(capfd, expected)) == (code, "")


def test_the_cases_cover_every_exit_code() -> None:
    assert {code for code, _ in CASES.values()} == {2, 3, 4, 5}
    assert len(CASES) > 40


@pytest.mark.parametrize(("where", "code", "expected"), [
    ("bad.db", 5, ("bad.db: not a SQLite database", "set AFTERTUNE_LEDGER")),
    ("byte", 2, ("byte: is a folder", "for example")),
    ("absent.db", 2, ("absent.db: no ledger here yet", "aftertune eval")),
    ("~nobody-here/l.db", 2, ("~nobody-here/l.db: no ledger here yet", "aftertune eval")),
    ("mysql://host/db", 2, ("mysql://", "sqlite:///PATH")),
])
def test_a_ledger_that_cannot_be_used_is_one_line(where: str, code: int, expected: tuple[str, ...], workspace: Path,
                                                  monkeypatch: pytest.MonkeyPatch,
                                                  capfd: pytest.CaptureFixture[str]) -> None:
    settle(monkeypatch, workspace)
    monkeypatch.setenv("AFTERTUNE_LEDGER", where)
    assert (call(monkeypatch, "runs"), one_line(capfd, expected)) == (code, "")


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a folder that refuses even root")
def test_a_ledger_in_a_read_only_folder_is_one_line(workspace: Path, monkeypatch: pytest.MonkeyPatch,
                                                    capfd: pytest.CaptureFixture[str]) -> None:
    settle(monkeypatch, workspace)
    monkeypatch.setenv("AFTERTUNE_LEDGER", "/sys/kernel/l.db")
    code = call(monkeypatch, "eval", "byte", "--tasks", "arc_easy", "--limit", "2")
    assert (code, one_line(capfd, ("/sys/kernel", "AFTERTUNE_LEDGER", "writable folder"))) == (5, "")


def test_a_secret_in_bad_input_is_not_repeated(workspace: Path, monkeypatch: pytest.MonkeyPatch,
                                               capfd: pytest.CaptureFixture[str]) -> None:
    settle(monkeypatch, workspace)
    token = "hf_canary0123456789abcdefghijklmnop"
    assert redact(token) != token
    assert call(monkeypatch, "evall", token) == 2
    assert call(monkeypatch, "eval", "byte", "--tasks", "arc_easy", "--limit", token) == 2
    assert "canary" not in capfd.readouterr().err


def test_a_library_that_is_missing_is_one_line(workspace: Path, monkeypatch: pytest.MonkeyPatch,
                                               capfd: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'torch.cuda'", name="torch.cuda")

    settle(monkeypatch, workspace)
    monkeypatch.setattr("aftertune.ledger.Ledger.__init__", fail)
    assert call(monkeypatch, "runs") == 4
    assert one_line(capfd, ("the library 'torch' is missing in this environment", "pip install")) == ""
