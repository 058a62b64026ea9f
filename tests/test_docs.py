"""The documents: every command in them parses, every link has a target, and the how-to runs."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from aftertune.cli import app
from aftertune.cli.console import guarded
from aftertune.cli.reference import reference
from aftertune.study import BaseSpec, Study, StudyTuning, TargetSpec, TaskSpec
from aftertune.study.files import parse_yaml
from aftertune.study.matrix import field_paths
from eval_cases import CHAT, byte_folder
from exchange_cases import BASE_RIGHT, lm_eval_folder, record
from tuning_cases import easy_rows, write_rows

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
PAGES = (ROOT / "README.md", *sorted(ROOT.glob("CONTRIBUTING.md")), *sorted((ROOT / "docs").glob("*.md")),
         ROOT / "docs" / "examples" / "README.md")
PROGRAM: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = PROGRAM.commands

#: What the README and the guide write for something of the reader's own, or what would take too long here.
STAND_INS = {"MODEL": "Qwen/Qwen2.5-0.5B", "ID": "tuned", "PATH": "lm_eval_output", "FILE": "published.md",
             "300": "4", "hellaswag,arc_easy": "arc_easy,sciq", "hellaswag": "sciq", "hellaswag=2": "sciq=2"}


def fenced(text: str, word: str) -> list[list[str]]:
    """The lines of fenced blocks that begin with ``word``, as words without their comments and redirections."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.M | re.S)
    return [_before_redirection(shlex.split(line, comments=True)) for block in blocks for line in block.splitlines()
            if line.startswith(f"{word} ")]


def _before_redirection(words: list[str]) -> list[str]:
    return words[:words.index(">")] if ">" in words else words


def inline(text: str, word: str) -> list[list[str]]:
    """The code spans that begin with ``word``."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return [shlex.split(span) for span in re.findall(r"`([^`]+)`", prose) if span.startswith(f"{word} ")]


#: The commands that are run, in their order: those in the README's blocks, then those in sentences of it and the guide.
FENCED = fenced(README, "aftertune") + fenced(GUIDE, "aftertune")
SPANS = inline(README, "aftertune") + inline(GUIDE, "aftertune")


def test_readme_and_guide_have_the_commands_that_the_tests_below_are_about() -> None:
    assert [words[1] for words in FENCED] == ["demo", "eval", "tune", "eval", "compare", "flips", "gate", "run",
                                              "record", "report", "eval"]
    assert {words[1] for words in SPANS} >= {"audit", "card", "doctor", "eval", "export", "import", "plan-items",
                                             "record", "report", "run", "runs", "show", "study", "tune"}


def test_the_readme_fits_on_two_screens() -> None:
    lines = README.splitlines()
    assert len(lines) <= 100
    assert "docs/examples/replay/report.png" in README
    assert all(len(line) <= 120 for line in lines if not line.startswith("[!["))


def of_pages(find: Callable[[str, str], list[list[str]]]) -> list[Any]:
    """The commands that ``find`` finds in the documents beside the README, each with the name of its page."""
    return [pytest.param(words, id=f"{page.name}: {' '.join(words)}") for page in PAGES[1:]
            for words in find(page.read_text(encoding="utf-8"), "aftertune") if "[OPTIONS]" not in words]


@pytest.mark.parametrize("words", [*FENCED, *SPANS, *of_pages(fenced)], ids=" ".join)
def test_every_command_parses(words: list[str]) -> None:
    """Verb, flags and arguments as the parser takes them; nothing runs."""
    assert words[1] in COMMANDS
    context = COMMANDS[words[1]].make_context(words[1], words[2:])
    assert not context.args


@pytest.mark.parametrize("words", of_pages(inline))
def test_every_command_in_a_sentence_has_its_flags(words: list[str]) -> None:
    """In a sentence a command may stand without its arguments, and options of all verbs without a verb."""
    command = PROGRAM if words[1].startswith("--") else COMMANDS[words[1]]
    options = {option for p in command.params for option in (*p.opts, *p.secondary_opts)} | {"--help"}
    assert {word for word in words if word.startswith("--")} <= options


@pytest.mark.parametrize("verb", sorted(COMMANDS))
def test_every_verb_and_each_of_its_flags_is_documented(verb: str, monkeypatch: pytest.MonkeyPatch,
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert call(monkeypatch, verb, "--help") == 0
    shown = capsys.readouterr().out
    parameters = [p for p in COMMANDS[verb].params if p.name != "help"]
    assert "as_json" in {p.name for p in parameters}
    assert COMMANDS[verb].help.splitlines()[0].split(".")[0][:60] in shown
    for parameter in parameters:
        assert parameter.help, f"{verb} {parameter.name} has no help"
        assert all(option in shown for option in parameter.opts if option.startswith("--"))


def test_these_are_the_verbs() -> None:
    assert sorted(COMMANDS) == ["audit", "blend", "card", "check-deploy", "check-merge", "checkpoints", "compare",
                                "cure", "demo", "doctor", "drift", "eval", "export", "flips", "gate", "import",
                                "ledger", "note", "plan", "plan-items", "push", "record", "rename", "report", "rm",
                                "rollback", "run", "runs", "show", "skill", "soften", "study", "tag", "templates",
                                "tune", "verify", "view"]


def test_the_studies_of_the_documents_are_valid_and_every_key_is_documented(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    shown = [block for page in PAGES for block in re.findall(r"^```yaml\n(study: .*?)^```",
                                                             page.read_text(encoding="utf-8"), flags=re.M | re.S)]
    studies = [Study.parse(parse_yaml(block, Path("study.yaml")), where="", folder=tmp_path) for block in shown]
    assert [(study.study, len(study.tunings)) for study in studies] == [("levers", 12), ("orders", 1), ("crossed", 18)]
    keys = {name.rpartition(".")[2] for part in (Study, BaseSpec, TaskSpec, TargetSpec, StudyTuning)
            for name in field_paths(part)}
    assert len(keys) > 60
    assert [key for key in sorted(keys) if not re.search(rf"`{key}\b", text)] == []


def test_the_reference_is_what_the_commands_say() -> None:
    written = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert written == reference(), "docs/commands.md is not what the commands say now; run `make docs`"
    assert written.count("\n## ") == len(COMMANDS)
    for command in COMMANDS.values():
        for parameter in (p for p in command.params if p.name != "help" and p.param_type_name == "option"):
            assert f"`{parameter.opts[0]}`" in written


def test_every_make_target_that_the_documents_name_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.M))
    named = {words[1] for page in PAGES for text in (page.read_text(encoding="utf-8"),)
             for words in (*fenced(text, "make"), *inline(text, "make"))}
    assert named >= {"demo", "test", "setup"}
    assert named <= targets


def test_every_linked_or_named_file_exists() -> None:
    links = [(page, link) for page in PAGES
             for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
             if not re.match(r"[a-z]+://", link)]
    links += [(ROOT / "README.md", words[1]) for page in PAGES
              for words in inline(page.read_text(encoding="utf-8"), "python") if words[1].endswith(".py")]
    assert len(links) >= 4
    assert [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()] == []


def test_every_linked_heading_exists() -> None:
    links = [(page, target, heading) for page in PAGES for target, heading in
             re.findall(r"\]\(([^)#\s]*\.md)#([^)\s]+)\)", page.read_text(encoding="utf-8"))]
    assert len(links) >= 2
    for page, target, heading in links:
        headings = re.findall(r"^#+ (.*)$", (page.parent / target).read_text(encoding="utf-8"), flags=re.M)
        slugs = {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}
        assert heading in slugs, f"{page.name}: {target} has no heading #{heading}"


def call(patch: pytest.MonkeyPatch, *words: str) -> int:
    patch.setattr(sys, "argv", ["aftertune", *words])
    return guarded(app)


def own_study(folder: Path) -> None:
    """A study of the reader's own: the model, the data, one short fine-tune."""
    (folder / "study.yaml").write_text(
        "study: own\nmargin: 5\nbases: {b: {model: Qwen/Qwen2.5-0.5B}}\ntasks: [{name: arc_easy, sample: 4}]\n"
        "tunings: {t: {base: b, data: {file: orders.jsonl}, max_steps: 2}}\n", encoding="utf-8")


def test_the_how_to_works_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                           capfd: pytest.CaptureFixture[str]) -> None:
    """Every command of the README and the guide on a tiny seeded random model that has the name of a real one."""
    from datasets import Dataset

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(tmp_path / "ledger.db"))
    byte_folder(tmp_path / "Qwen" / "Qwen2.5-0.5B", template=CHAT, window=4096)
    write_rows(tmp_path / "orders.jsonl", easy_rows())
    Dataset.from_list([{"question": f"{i} + 1?", "answer": f"#### {i + 1}"} for i in range(6)]).to_parquet(
        tmp_path / "train.parquet")
    write_rows(tmp_path / "held.jsonl", [{"prompt": f"say {n}", "completion": str(n), "kind": ("odd", "even")[n % 2]}
                                         for n in range(8)])
    own_study(tmp_path)
    lm_eval_folder(tmp_path / "lm_eval_output", "org/other", BASE_RIGHT)
    (tmp_path / "published.md").write_text(record(), encoding="utf-8")
    runs = [[STAND_INS.get(word, word) for word in words[1:]] for words in [*FENCED, *SPANS]
            if words[1] not in ("demo", "view") and "--engine" not in words]  # a server; an engine with one
    for words in runs:
        if "gsm8k" in words:
            words += ["--limit", "1", "--gen-kwargs", "max_gen_toks=4"]
        if "--target" in words:
            words += ["--limit", "4", "--target-tokens", "4"]
        if words[0] == "drift":
            words += ["--prompts", "8", "--tokens", "4"]
        if "tinyllama" in words:
            words.append("--dry-run")
        assert call(monkeypatch, *words) == 0, (words, capfd.readouterr().err)
    shown = capfd.readouterr().out
    assert len(runs) >= 11
    assert "tuned against Qwen2.5-0.5B" in shown
    assert all((tmp_path / name).stat().st_size > 2000 for name in (
        "record.md", "report.html", "runs/own/record.md", "runs/own/report.html",
        "runs/orders/adapter_model.safetensors"))
    for part in ("Stderr", "held-out loss", "Gained/lost", "Held-out loss", "written to record.md"):
        assert part in shown, part


def _template(name: str) -> str:
    """A chat template that TRL ships."""
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_first_run_works_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                              capfd: pytest.CaptureFixture[str]) -> None:
    """Every command of docs/first-run.md in its order, on the same tiny model."""
    page = (ROOT / "docs" / "first-run.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(tmp_path / "ledger.db"))
    byte_folder(tmp_path / "Qwen" / "Qwen2.5-0.5B", template=CHAT, window=4096)
    byte_folder(tmp_path / "Qwen" / "Qwen3-0.6B", template=_template("qwen3"), window=4096)
    write_rows(tmp_path / "orders.jsonl", easy_rows())
    [shown] = re.findall(r"^```json\n(\{\"conversations.*?)^```", page, flags=re.M | re.S)
    write_rows(tmp_path / "support.jsonl", [json.loads(shown.replace("17", str(k))) for k in range(20, 32)])
    commands = [words for words in (*fenced(page, "aftertune"), *inline(page, "aftertune")) if words[1] != "demo"]
    for words in commands:
        assert call(monkeypatch, *(STAND_INS.get(word, word) for word in words[1:])) == 0, capfd.readouterr().err
    shown = capfd.readouterr().out
    assert all(part in shown for part in (
        "tuned against base", "written to card/README.md", "example 1  ", "support.jsonl: read as sharegpt",
        "qwen3-support against qwen3"))
    plain = " ".join(shown.split())
    assert re.search(r"⟦[^⟧]*<think> Order \d+ was sent. </think> Order \d+ is on its way.<\|im_end\|>⟧", plain)
    assert re.search(r"⟦[^⟧]*\"name\": \"find_order\", \"arguments\": \{\"id\": \d+\}\} </tool_call>", plain)
    assert not re.search(r"⟦[^⟧]*\"state\": \"sent\"[^⟧]*⟧", plain)
