"""Nothing that the command line prints or writes holds a secret or a control character of somebody else's file."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from aftertune.cli import streams
from aftertune.cli.console import emit, guarded
from aftertune.errors import InputError, StorageError, visible_characters
from aftertune.ledger import Ledger
from aftertune.redaction import escape_hidden, redact
from aftertune.report import write_document
from cli_cases import call, settle
from ledger_cases import answered, evaluation, items, responses, scores

#: Colours, a window title, a C1 control, a change of direction, half a character, a line separator.
EVIL = "m\x1b[31m\x1b]0;title\x07\x9b1m\u202eabc\ud800\u2028x"
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2028\ud800]")


def test_the_stream_shows_control_characters_and_keeps_lines() -> None:
    out = io.StringIO()
    stream = streams.SafeStream(out, redact)
    assert stream.write("a\tb\r\n\x1b[31mé 🙂\n") == len("a\tb\r\n\x1b[31mé 🙂\n")
    assert out.getvalue() == "a\tb\n⟨U+001B⟩[31mé 🙂\n"


@pytest.mark.parametrize("verb", ["runs", "runs --json", "show e1", "record --out -", "report --out r.html",
                                  "export e1 --format csv", "card e1 --out card"])
def test_a_name_with_control_characters_reaches_neither_terminal_nor_files(
        verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    settle(monkeypatch, tmp_path)
    name = EVIL.replace("\ud800", "")  # a ledger holds no half characters
    with Ledger() as ledger:
        value = evaluation(name=name)
        ledger.open_evaluation(value, items())
        answers, _ = answered(items(), responses())
        ledger.finish_evaluation(replace(value, scores=scores()), answers, [()] * len(answers))
    call(monkeypatch, *verb.split())
    out, err = capsys.readouterr()
    written = [p.read_text(encoding="utf-8") for p in tmp_path.rglob("*") if p.suffix in (".md", ".html", ".csv")]
    assert out or err or written
    for text in (out, err, *written):
        assert not _CONTROL.search(text)


def test_rich_keeps_its_own_colours_and_shows_those_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.text import Text

    monkeypatch.setenv("HF_TOKEN", "canary-4711")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with streams.safe_streams():
        console = streams.rich_console()
        console.print(Text("name\x1b[7m canary-4711", style="bold"))
    out = sys.stdout
    assert isinstance(out, io.StringIO)
    assert "name⟨U+001B⟩[7m [redacted]" in out.getvalue()
    assert "\x1b[1m" in out.getvalue()


def test_no_module_of_the_command_line_makes_a_console_of_its_own() -> None:
    folder = Path(streams.__file__).parent
    makers = [p.name for p in folder.glob("*.py")
              if re.search(r"rich\.print|(?<!def )\bConsole\(", p.read_text(encoding="utf-8"))]
    assert makers == []


def test_json_escapes_what_is_hidden_and_keeps_the_value(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"name": "a\u202eb\x9b\U000e0001 é"}
    emit(value)
    out = capsys.readouterr().out
    assert not _CONTROL.search(out)
    assert "é" in out
    assert json.loads(out) == value
    assert json.loads(escape_hidden(json.dumps(EVIL, ensure_ascii=False))) == EVIL


def test_a_document_is_cleaned_unless_the_user_wrote_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary-4712")
    write_document(tmp_path / "a.md", "x\x1b[1m canary-4712")
    assert (tmp_path / "a.md").read_text(encoding="utf-8") == "x⟨U+001B⟩[1m [redacted]"
    write_document(tmp_path / "b.yaml", "x: \u200d", verbatim=True)
    assert (tmp_path / "b.yaml").read_text(encoding="utf-8") == "x: \u200d"


def _failing(error: BaseException) -> object:
    def app(**_: object) -> int:
        raise error

    return app


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(("error", "code"), [
    (InputError("no model canary-token-99"), 2), (StorageError("canary-token-99"), 5),
    (KeyError("postgresql://me:canary-token-99"), 1)])
def test_no_traceback_and_no_message_shows_a_secret(error: Exception, code: int, debug: bool,
                                                    monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-token-99")
    monkeypatch.setenv("AFTERTUNE_DEBUG", "1" if debug else "")
    assert guarded(_failing(error)) == code  # type: ignore[arg-type]
    err = capsys.readouterr().err
    assert "canary" not in err
    assert ("Traceback" in err) is debug
    assert err.splitlines()[-1].startswith("aftertune: ")


@pytest.mark.parametrize("address", ["postgresql://user:canary-4713", "postgresql://user:canary-4713@h:x/d",
                                     "mysql://u:canary-4713@h/db"])
def test_the_password_of_a_ledger_is_never_shown(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    settle(monkeypatch, tmp_path)
    monkeypatch.setenv("AFTERTUNE_LEDGER", address)
    monkeypatch.setenv("AFTERTUNE_DEBUG", "1")
    assert call(monkeypatch, "runs") == 2
    out, err = capsys.readouterr()
    assert "canary" not in out + err
    assert "sqlite:///PATH" in err


@pytest.mark.parametrize(("text", "shown"), [
    ("https:/u:PASSWORD@h/x", "https:/[redacted]@h/x"), ("postgresql://user:PASSWORD", "postgresql://user:[redacted]"),
    ("postgresql+psycopg://u:p@ss@h/d", "postgresql+psycopg://[redacted]@h/d"),
    ("http://localhost:8000/v1", "http://localhost:8000/v1"), ("http://localhost:8000", "http://localhost:8000"),
    ("see https://a.b/c: done", "see https://a.b/c: done"), ("C:/Users/x:y", "C:/Users/x:y")],
    ids=range(7))  # pytest puts the id into the environment, whose passwords are removed too
def test_logins_of_urls(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_a_full_stdout_is_one_line_and_exit_code_five(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run([sys.executable, "-m", "aftertune", "study", "--schema"], stdout=full,
                              stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 5
    assert done.stderr.startswith("aftertune: stdout: cannot be written (No space left on device)")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_stops_reading_is_no_error(tmp_path: Path) -> None:
    text = "# A\n\n| Task | Metric | Value |\n|---|---|---|\n" + "| hellaswag | acc | 45.23% |\n" * 3
    (tmp_path / "a.md").write_text(text, encoding="utf-8")
    with subprocess.Popen([sys.executable, "-m", "aftertune", "audit", "a.md"], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, cwd=tmp_path) as child:
        assert child.stdout is not None
        child.stdout.close()
        assert child.stderr is not None
        assert child.stderr.read() == b""
    assert child.returncode == 0


def test_a_terminal_without_unicode_and_a_very_long_path_are_no_traceback(tmp_path: Path) -> None:
    settings = {**os.environ, "PYTHONIOENCODING": "ascii", "AFTERTUNE_LEDGER": str(tmp_path / ("é" * 3000))}
    done = subprocess.run([sys.executable, "-m", "aftertune", "runs"], capture_output=True, text=True, cwd=tmp_path,
                          env=settings, check=False)
    assert done.returncode in (2, 5)
    assert done.stderr.startswith("aftertune: ")
    assert done.stderr.count("\n") == 1


def test_a_second_sigterm_does_not_disturb_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    def app(**_: object) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    assert guarded(app) == 130
    assert signal.getsignal(signal.SIGTERM) == before
    assert capsys.readouterr().err.startswith("aftertune: stopped; finished batches")


@pytest.mark.parametrize(("error", "code", "message"), [
    (KeyboardInterrupt(), 130, "aftertune: stopped; finished batches of an evaluation are stored; run the same command "
                               "again to continue\n"),
    (KeyboardInterrupt("stopped after step 3 of 8"), 130, "aftertune: stopped after step 3 of 8\n"),
    (BrokenPipeError(32, "Broken pipe"), 0, "")])
def test_a_verb_that_is_stopped_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                        capfd: pytest.CaptureFixture[str], error: BaseException, code: int,
                                        message: str) -> None:
    """typer ends a program without a word on Ctrl-C, and with 1 where the reader of a pipe has gone."""
    def stopped(*_: object, **__: object) -> None:
        raise error

    settle(monkeypatch, tmp_path)
    monkeypatch.setattr("aftertune.ledger.Ledger.__init__", stopped)
    monkeypatch.setattr("aftertune.cli.console.discard", lambda _: None)
    assert call(monkeypatch, "runs") == code
    assert capfd.readouterr().err == message


def test_visible_characters() -> None:
    assert visible_characters(EVIL) == ("m⟨U+001B⟩[31m⟨U+001B⟩]0;title⟨U+0007⟩⟨U+009B⟩1m⟨U+202E⟩abc⟨U+D800⟩⟨U+2028⟩x")
    assert visible_characters("soft\xadhyphen é ß 日本 🙂\n\t") == "soft⟨U+00AD⟩hyphen é ß 日本 🙂\n\t"
