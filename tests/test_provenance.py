"""Provenance: what it says, and what it must never say."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shlex
import subprocess
import sys
import types
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from aftertune import provenance
from aftertune.provenance import capture, finish
from aftertune.redaction import REDACTED, redact
from aftertune.values import Provenance, plain

CANARY = "Zq7canary9Kx2"


def run(monkeypatch: pytest.MonkeyPatch, *argv: str) -> str:
    monkeypatch.setattr(sys, "argv", list(argv))
    return capture().command


# What it says

def test_the_command_is_the_line_as_it_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    line = run(monkeypatch, "/opt/venv/bin/aftertune", "eval", "gpt2", "--tasks", "arc_easy,hellaswag",
               "--gen-kwargs", "max_gen_toks=64", "--name", "two words", "--num-fewshot=3")
    assert line == ("aftertune eval gpt2 --tasks arc_easy,hellaswag --gen-kwargs max_gen_toks=64 "
                    "--name 'two words' --num-fewshot=3")
    assert run(monkeypatch, "/src/aftertune/__main__.py", "runs") == "python -m aftertune runs"
    assert run(monkeypatch, "") == ""
    assert capture("aftertune demo").command == "aftertune demo"


@pytest.mark.parametrize("harmless", [
    "--max-tokens 128", "--tokenizer gpt2", "pretrained=gpt2,add_bos_token=True,dtype=float32", "key=value",
    "--tasks secret_santa --limit 5", "pad_token=<pad>", "a token of thanks", "the password is short",
    "--data orders/train.jsonl", "hf_hub", "https://huggingface.co/org/model@main", "lr=1e-4,max_gen_toks=3"])
def test_what_is_no_secret_stays(harmless: str) -> None:
    assert redact(harmless) == harmless


def test_versions_are_those_installed_and_nothing_is_imported() -> None:
    code = ("import json, sys; from aftertune.provenance import capture; p = capture('x'); "
            "print(json.dumps([p.versions, p.hardware, list(sys.modules)]))")
    told = subprocess.check_output([sys.executable, "-c", code], text=True)
    versions, hardware, imported = json.loads(told)
    assert not {"torch", "transformers", "numpy", "peft", "trl", "datasets", "lm_eval"} & set(imported)
    assert hardware["gpus"] == []
    assert versions["python"] == platform.python_version()
    for package in ("torch", "transformers", "peft", "trl", "lm-eval", "datasets", "numpy"):
        assert versions[package] == version(package)
    assert "aftertune" in versions


def test_hardware_has_units_and_no_host_name() -> None:
    hardware = capture("x").hardware
    assert hardware["cores"] >= 1
    assert hardware["memory"] > 2**28
    assert hardware["cpu"]
    assert set(hardware) == {"platform", "machine", "cpu", "cores", "memory", "gpus"}
    assert platform.node() not in hardware.values()
    assert json.loads(json.dumps(plain(capture("x"))))["command"] == "x"


@pytest.mark.parametrize(("cuda", "mps", "names"), [
    (2, False, ["Card 0", "Card 1"]), (0, True, ["Apple MPS"]), (0, False, [])])
def test_the_gpu_is_asked_of_a_torch_that_is_already_there(
        monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, names: list[str]) -> None:
    torch: Any = types.ModuleType("torch")
    torch.cuda = types.SimpleNamespace(is_available=lambda: cuda > 0, device_count=lambda: cuda,
                                       get_device_name=lambda i: f"Card {i}")
    torch.backends = types.SimpleNamespace(mps=types.SimpleNamespace(is_available=lambda: mps))
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert capture("x").hardware["gpus"] == names


def test_git_commit_and_whether_files_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert (capture("x").git, capture("x").dirty) == (None, None)
    settings = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]

    def git(*arguments: str) -> str:
        return subprocess.check_output(["git", *settings, *arguments], text=True).strip()

    git("init", "-q")
    assert capture("x").git is None  # no commit yet
    (tmp_path / "a.txt").write_text("one")
    git("add", "a.txt")
    git("commit", "-qm", "first")
    assert (capture("x").git, capture("x").dirty) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "results.json").write_text("not tracked")
    assert capture("x").dirty is False
    (tmp_path / "a.txt").write_text("two")
    assert capture("x").dirty is True


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert capture("x").git is None


# Times

def test_the_end_is_after_the_beginning() -> None:
    begun = capture("x")
    assert begun.finished is None
    ended = finish(begun)
    assert ended.seconds is not None
    assert 0 <= ended.seconds < 60
    assert ended.finished is not None
    assert begun.started <= ended.finished
    assert datetime.fromisoformat(begun.started).utcoffset() == timedelta(0)
    assert dataclasses.replace(ended, finished=None, seconds=None) == begun


def test_a_clock_that_moves_back_gives_no_negative_time(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = capture("x")
    ticks = provenance._clocks[begun.started]

    class Back(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Back:
            return cls(2001, 1, 1, tzinfo=tz)

    monkeypatch.setattr(provenance, "datetime", Back)
    monkeypatch.setattr(provenance.time, "monotonic", lambda: ticks + 90.5)
    ended = finish(begun)
    assert ended.seconds == pytest.approx(90.5, abs=1e-6)  # the clock itself is a float
    assert ended.finished is not None
    took = datetime.fromisoformat(ended.finished) - datetime.fromisoformat(begun.started)
    assert took == timedelta(seconds=90.5)


def test_a_run_of_another_process_is_timed_by_the_wall_clock() -> None:
    early = (datetime.now(UTC) - timedelta(hours=2)).isoformat()
    late = (datetime.now(UTC) + timedelta(hours=2)).isoformat()
    seconds = [finish(Provenance(command="x", started=s)).seconds for s in (early, late)]
    assert seconds[0] == pytest.approx(7200, abs=60)
    assert seconds[1] == 0.0
    assert finish(Provenance(command="x", started=late)).finished == datetime.fromisoformat(late).isoformat(
        timespec="microseconds")


# What it must never say

ARGUMENTS = [
    ["--token", CANARY], [f"--token={CANARY}"], ["--hf-token", f"{CANARY} {CANARY}"],
    ["--api-key", f"'{CANARY}"], ["--gen-kwargs", f"api_key={CANARY},temperature=0"],
    ["--model-args", f"pretrained=x,token={CANARY}"],
    [f"HF_TOKEN={CANARY}"], [f"--password={CANARY}"], ["--client-secret", CANARY], [f"wandbApiKey={CANARY}"],
    ["--header", f"Authorization: Bearer {CANARY}abcdefgh"], ["--header", f"x-api-key: {CANARY}"],
    [f"postgresql://user:{CANARY}@host/db"], [f"https://{CANARY}@github.com/a/b"],
    [f"https://u:p@{CANARY}@h/"],
    ["--model-args", json.dumps({"api_key": CANARY, "model": "gpt-4"})], [f"--secret={CANARY} {CANARY}"],
    ["--model-args", f"a=b,secret='{CANARY} {CANARY}'"], ["-token", CANARY],
    ["--access-key", CANARY], ["--token", "-" + CANARY], [f"hf_{CANARY}abc"], [f"x=hf_{CANARY}abc,b=c"],
    ["sk-" + CANARY + CANARY], ["ghp_" + CANARY + CANARY], ["github_pat_" + CANARY + CANARY],
    ["eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0." + CANARY], ["glpat-" + CANARY + CANARY],
]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=lambda a: " ".join(a)[:40])
def test_a_secret_on_the_command_line_never_shows(
        monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    line = run(monkeypatch, "aftertune", "eval", "gpt2", *arguments, "--tasks", "arc_easy")
    assert CANARY not in line
    assert REDACTED in line
    assert line.startswith("aftertune eval gpt2 ")
    assert line.endswith(" --tasks arc_easy")


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=lambda a: " ".join(a)[:40])
def test_nor_in_a_given_command(arguments: list[str]) -> None:
    assert CANARY not in capture("aftertune eval " + shlex.join(arguments)).command
    simple = [a for a in arguments if " " not in a]
    assert CANARY not in capture("it's aftertune eval " + shlex.join(simple)).command  # an open quote


@pytest.mark.parametrize("secret", [
    f"--api-key '{CANARY}", f'--token "{CANARY} {CANARY}', f"--token ,{CANARY}", f"--token a;{CANARY}",
    f'--token \\"{CANARY} b', f"--token a\\ {CANARY}", f"token='{CANARY} {CANARY}", f'"api_key": "{CANARY}'])
def test_after_an_open_quote_nothing_behind_a_secret_key_stays(secret: str) -> None:
    """Such a line has no arguments that could be told apart, so all of it from the value on is blanked."""
    quoted = "it's " if secret.count("'") != 1 else ""
    command = f"{quoted}aftertune eval gpt2 --limit 3 {secret} --seed 1"
    with pytest.raises(ValueError, match=r"No closing quotation"):
        shlex.split(command)
    shown = capture(command).command
    assert CANARY not in shown
    assert shown.startswith(f"{quoted}aftertune eval gpt2 --limit 3 ")
    assert shown.endswith("[redacted]")
    assert capture("it's --max-tokens 3 --seed 1").command == "it's --max-tokens 3 --seed 1"


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "PGPASSWORD",
                                  "AWS_SECRET_ACCESS_KEY", "MY_SERVICE_SECRET", "hf_token"])
@pytest.mark.parametrize("value", [CANARY, f"{CANARY}/+= &'x", f"p@ss {CANARY}"])
def test_the_value_of_a_secret_variable_never_shows(
        monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    from urllib.parse import quote

    monkeypatch.setenv(name, value)
    assert CANARY not in run(monkeypatch, "aftertune", "eval", value, "--revision", value, f"x{value}y",
                             quote(value, safe=""))
    assert CANARY not in redact(f"the server said: {value} is wrong")
    assert CANARY not in json.dumps(plain(capture(f"aftertune eval {value}")))


def test_a_short_or_plain_variable_does_not_blank_out_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "1")
    monkeypatch.setenv("USE_SECRET", "false")
    monkeypatch.setenv("MAX_TOKENS", "hellaswag")
    assert run(monkeypatch, "aftertune", "eval", "--limit", "10", "--tasks", "hellaswag") == (
        "aftertune eval --limit 10 --tasks hellaswag")


def test_a_flag_after_a_secret_flag_is_not_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    line = run(monkeypatch, "aftertune", "eval", "--use-token", "--tasks", "a")
    assert line == "aftertune eval --use-token --tasks a"


def test_redacting_twice_changes_nothing() -> None:
    once = redact(f"--token {CANARY} password={CANARY} postgresql://u:{CANARY}@h hf_{CANARY}1")
    assert redact(once) == once
    assert once == f"--token {REDACTED} password={REDACTED} postgresql://{REDACTED}@h {REDACTED}"


def test_a_long_text_is_redacted_in_time() -> None:
    import time

    begun = time.process_time()
    redact("word=" * 20_000 + "a" * 100_000 + "://" + "x" * 100_000)
    assert time.process_time() - begun < 2


def test_no_environment_value_is_stored_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARMLESS_LOOKING", CANARY)
    assert CANARY not in json.dumps(plain(capture("x")))
    assert os.environ["HARMLESS_LOOKING"] == CANARY
