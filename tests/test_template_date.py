"""The date that some chat templates write is a setting of fine-tunes and evaluations, and part of their ids."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from aftertune import Ledger, evaluate, tune
from aftertune.comparison.compatibility import differences
from aftertune.errors import InputError
from aftertune.study import DataSpec, EvalSpec, Study, TargetSpec, TaskSpec, TuneSpec
from aftertune.tasks.chat_template import apply_template, date_note, template_date
from aftertune.tuning import preview
from aftertune.tuning.template_check import template_tokenizer, trl_templates
from eval_cases import byte_folder
from tuning_cases import TEMPLATE, chat_tokenizer, rows, tiny_model, write_rows

TRL = {path.stem: path.read_text(encoding="utf-8") for path in trl_templates()}
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
DATED = "{{ strftime_now('w%d') }} " + TEMPLATE
BYTES = ("{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
         "{% if add_generation_prompt %}[assistant]{% endif %}")


@pytest.mark.parametrize(("name", "default", "chosen"), [
    ("llama3_1", "26 Jul 2024", "04 Mar 2025"), ("llama3_2", "26 Jul 2024", "04 Mar 2025"),
    ("gptoss", "2024-07-26", "2025-03-04"), ("muse_glimmer", "2024-07-26", "2025-03-04")])
def test_a_template_writes_the_same_date_every_day_and_a_chosen_one(name: str, default: str, chosen: str) -> None:
    tokenizer = template_tokenizer(TRL[name])
    texts = [apply_template(tokenizer, TALK, day=template_date(tokenizer, day)) for day in (None, "2025-03-04")]
    assert default in texts[0]
    assert chosen in texts[1]
    assert texts[0].replace(default, chosen) == texts[1]


@pytest.mark.parametrize("name", ["llama3_2", "gptoss", "muse_glimmer"])
def test_with_the_date_of_the_day_the_text_is_that_of_plain_transformers(name: str) -> None:
    tokenizer, day, after = template_tokenizer(TRL[name]), None, None
    while day is None or day != after:  # midnight may be between the two
        day = date.today()
        theirs = tokenizer.apply_chat_template(TALK, tokenize=False)
        after = date.today()
    assert apply_template(tokenizer, TALK, day=day.isoformat()) == theirs


def test_every_directive_of_the_date_is_written() -> None:
    form = "%A %a %B %b %d %-d %e %m %-m %Y %y %j %F %D %H:%M"
    day = date(2025, 3, 4)
    tokenizer = chat_tokenizer("{% if strftime_now is defined %}{{ strftime_now('" + form + "') }}{% endif %}")
    assert apply_template(tokenizer, TALK, day="2025-03-04") == day.strftime(form)


def test_a_template_without_a_date_has_none_and_a_chosen_date_is_said_to_have_no_effect() -> None:
    plain, dated, own = chat_tokenizer(), chat_tokenizer(DATED), template_tokenizer(TRL["llama3_1"])
    assert [template_date(tokenizer, None) for tokenizer in (plain, dated, own)] == [None, "2024-07-26", None]
    assert [template_date(tokenizer, "2025-03-04") for tokenizer in (plain, dated, own)] == [None, *["2025-03-04"] * 2]
    assert "has no effect: the chat template writes no date" in str(date_note(plain, "2025-03-04"))
    assert "gets 2024-07-26, so that its text stays the same every day" in str(date_note(dated, None))
    assert [date_note(plain, None), date_note(own, None), date_note(dated, "2025-03-04")] == [None] * 3


def test_a_date_is_a_day_in_every_spec(tmp_path: Path) -> None:
    bare: dict[str, Any] = {"model": "m", "data": DataSpec(file=tmp_path / "d.jsonl")}
    assert TuneSpec(**bare, template_date="2025-03-04").template_date == "2025-03-04"
    assert TuneSpec(**bare, template_date=date(2025, 3, 4)).template_date == "2025-03-04"  # as YAML reads it
    for value in ("tomorrow", "2025-02-30", 5):
        with pytest.raises(ValueError, match="is not a day; write it as YYYY-MM-DD"):
            EvalSpec(model="m", tasks=(TaskSpec(name="arc_easy"),), template_date=value)
    study = Study(study="s", bases={"b": {"model": "m"}}, tasks=({"name": "arc_easy"},), template_date="2025-03-04")
    assert study.template_date == "2025-03-04"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tiny_model(tmp_path / "base")
    chat_tokenizer(DATED).save_pretrained(folder)
    write_rows(tmp_path / "data.jsonl", rows(20))
    return folder


def tuning_spec(base: Path, **settings: Any) -> TuneSpec:
    return TuneSpec(**{"model": str(base), "data": DataSpec(file=base.parent / "data.jsonl"), "max_steps": 1,
                       "device": "cpu", "dtype": "float32", "threads": 1, "out": base.parent / "out", **settings})


def test_a_preview_shows_the_date_and_says_which_it_is(base: Path) -> None:
    shown = preview(tuning_spec(base), count=1)
    assert shown.examples[0].parts[0][0].startswith("w26 <|user|>")
    assert any("gets 2024-07-26" in note for note in shown.notes)


@pytest.mark.slow
def test_the_date_of_a_fine_tune_is_recorded_and_in_its_id(base: Path) -> None:
    first = tune(tuning_spec(base))
    assert first.settings["template_date"] == "2024-07-26"
    assert tune(tuning_spec(base, template_date="2024-07-26")).id == first.id
    other = tune(tuning_spec(base, template_date="2025-03-04", out=base.parent / "other"))
    assert other.settings["template_date"] == "2025-03-04"
    assert other.id != first.id
    plain = tune(tuning_spec(base, template="plain", template_date="2025-03-04", out=base.parent / "plain"))
    assert "template_date" not in plain.settings


@pytest.mark.slow
def test_the_date_of_an_evaluation_is_recorded_and_in_its_id(tmp_path: Path) -> None:
    write_rows(tmp_path / "sums.jsonl", [{"prompt": f"{n} + 1", "completion": str(n + 1)} for n in range(3)])
    task = TaskSpec(name="sums", target=TargetSpec(file=tmp_path / "sums.jsonl", max_tokens=4))
    dated = byte_folder(tmp_path / "dated", adds_bos=True, template=BYTES)
    settings: dict[str, Any] = {"device": "cpu", "dtype": "float32", "threads": 1, "apply_chat_template": True}
    with Ledger(tmp_path / "ledger.db") as ledger:
        first = evaluate(str(dated), [task], ledger=ledger, **settings)
        other = evaluate(str(dated), [task], ledger=ledger, template_date="2025-03-04", **settings)
        raw = evaluate(str(dated), [task], ledger=ledger, **{**settings, "apply_chat_template": False})
        assert [e.tasks[0].template_date for e in (first, other, raw)] == ["2024-07-26", "2025-03-04", None]
        assert len({first.id, other.id, raw.id}) == 3
        assert any("gets 2024-07-26" in warning for warning in first.warnings)
        assert not any("date" in warning for warning in (*other.warnings, *raw.warnings))
        assert "sums.template_date" in [d.field for d in differences(first, other) if d.blocking]
        assert evaluate(str(dated), [task], ledger=ledger, template_date="2024-07-26", **settings).id == first.id


def test_an_unset_date_leaves_the_id_of_an_evaluation_as_it_was() -> None:
    from aftertune.values import TaskSettings

    settings = TaskSettings(task="t", version="1", output_type="generate_until", num_fewshot=0, n=1, n_total=1,
                            split="test", data="file:t", items="i", prompts="p", primary="acc,none",
                            higher_is_better={"acc": True})
    assert "template_date" not in settings.hashed()


def test_a_date_that_is_no_day_is_one_line(base: Path) -> None:
    from aftertune.cli.options import Given

    with pytest.raises(InputError, match=r"`--template-date`.*'today' is not a day"):
        Given(EvalSpec, {"model": "m", "template_date": "today"}).make(tasks=(TaskSpec(name="arc_easy"),))
