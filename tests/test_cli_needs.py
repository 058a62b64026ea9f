"""Options that have no effect without another one are refused, each with what it needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from aftertune.cli.needs import NEEDS
from aftertune.study import EarlySpec
from aftertune.study.spec_options import options_of
from cli_cases import call, one_line, settle
from test_docs import COMMANDS


@pytest.mark.parametrize(("words", "expected"), [
    ("eval m --tasks a --margin 3",
     "--margin has no effect without --until-decided; add --until-decided, or leave --margin out"),
    ("eval m --tasks a --max-items 3", "--max-items has no effect without --until-decided; add --until-decided"),
    ("export all --title x", "--title has no effect without --bundle; add --bundle, or leave --title out"),
    ("eval m --tasks a --until-decided", "--until-decided has no effect without --against; add --against"),
    ("eval m --tasks a --against b", "--against has no effect without --until-decided"),
    ("eval m --tasks a --sample-seed 1", "--sample-seed has no effect without --sample or --until-decided"),
    ("eval m --tasks a --no-enable-thinking", "--enable-thinking has no effect without --apply-chat-template"),
    ("tune m --data d.jsonl --patience 2", "--patience has no effect without --validation; add --validation"),
    ("tune m --data d.jsonl --watch-every 3", "--watch-every has no effect without --watch or --target"),
    ("tune m --data d.jsonl --method full --rank 8",
     "--rank has no effect with --method full; it goes with --method lora, qlora"),
    ("tune m --data d.jsonl --method ia3 --alpha 8", "--alpha has no effect with --method ia3; it goes with"),
    ("soften m --keep a=2 --match json", "--match has no effect without --target"),
    ("blend a b --keep a=2 --seed 1", "--seed has no effect with --method linear; it goes with --method dare_linear"),
    ("check-merge t --only-weights --sample 3",
     "--sample has no effect with --only-weights; leave --only-weights out, or leave --sample out"),
    ("check-merge b a m --sample 3",
     "--sample has no effect with BASE ADAPTER MERGED; give TUNING, or leave --sample out"),
    ("check-merge b a m --only-weights", "--only-weights has no effect with BASE ADAPTER MERGED; give TUNING"),
    ("check-merge t --trust-remote-code", "--trust-remote-code has no effect with TUNING; give BASE ADAPTER MERGED"),
    ("compare a b --details --json", "--details has no effect with --json; leave --json out"),
    ("flips a b --task t --out f.md --json", "--out has no effect with --json; leave --json out"),
    ("tag e --remove", "--remove has no effect without TAG…; add TAG…, or leave --remove out"),
    ("rm e --yes --dry-run", "--yes has no effect with --dry-run; leave --dry-run out"),
    ("eval m --tasks a --allow-task-code", "--allow-task-code has no effect without --include-path"),
    ("tune m --data d.jsonl --template plain --template-date 2025-01-01",
     "--template-date has no effect with --template plain; it goes with --template chat"),
    ("check-merge t --only-weights --nf4", "--nf4 has no effect with --only-weights; leave --only-weights out"),
    ("export all --bundle b --no-prompts", "--prompts has no effect with --bundle; leave --bundle out"),
    ("export all --to mlflow --no-prompts", "--prompts has no effect with --to; leave --to out"),
    ("check-deploy t --target-tokens 3", "--target-tokens has no effect without --target"),
    ("export all --format csv --quant q8_0", "--quant has no effect with --format csv; it goes with --format gguf"),
    ("export all --format csv --no-prompts", "--prompts has no effect with --format csv"),
])
def test_an_option_without_effect_is_refused(words: str, expected: str, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch,
                                             capfd: pytest.CaptureFixture[str]) -> None:
    settle(monkeypatch, tmp_path)
    assert call(monkeypatch, *words.split()) == 2
    assert one_line(capfd, (expected,)) == ""


def test_what_is_needed_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                  capfd: pytest.CaptureFixture[str]) -> None:
    """With what it needs, an option is not refused: the command goes on to the model, which is not there."""
    settle(monkeypatch, tmp_path)
    assert call(monkeypatch, "eval", "./m", "--tasks", "arc_easy", "--sample", "3", "--sample-seed", "1") == 2
    assert "has no effect" not in capfd.readouterr().err


@pytest.mark.parametrize("verb", NEEDS)
def test_the_options_of_the_table_exist(verb: str) -> None:
    options = {option for p in COMMANDS[verb].params for option in (*p.opts, *p.secondary_opts)}
    for refused, needs in NEEDS[verb]:
        assert set(refused) <= options
        for need in needs:
            if need.startswith("argument "):
                assert need.removeprefix("argument ") in {
                    form for p in COMMANDS[verb].params for form in (p.metavar or "").split(" | ")}
                continue
            assert (need.split()[1] if need.startswith("no ") else need.split()[0]) in options


def test_every_option_of_early_stopping_needs_it() -> None:
    refused = {option for options, needs in NEEDS["eval"] if needs == ("--until-decided",) for option in options}
    assert {option.names[0] for option in options_of(EarlySpec)} <= refused
