"""The embedded study and its data: made by the generator that stands beside them, and honestly hard."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from aftertune.demo import folder, orders, wordings
from aftertune.study import Study


def read(name):
    return [json.loads(line) for line in (folder() / name).read_text(encoding="utf-8").splitlines()]


def message(row):
    return row["prompt"].removeprefix(orders.INSTRUCTION).strip()


def test_the_generator_writes_the_files_again_byte_for_byte(tmp_path):
    written = orders.write(tmp_path)
    assert [p.name for p in written] == list(orders.FILES)
    for path in written:
        assert path.read_bytes() == (folder() / path.name).read_bytes()


@pytest.mark.parametrize(("name", "least"), [("orders_train.jsonl", 600), ("orders_test.jsonl", 100),
                                             ("orders_shots.jsonl", 3)])
def test_every_row_asks_for_one_object_with_the_five_keys(name, least):
    rows = read(name)
    assert len(rows) >= least
    assert len({r["prompt"] for r in rows}) == len(rows)
    for row in rows:
        answer = json.loads(row["completion"])
        assert list(answer) == ["item", "quantity", "color", "city", "day"]
        assert isinstance(answer["quantity"], int)
        assert answer["day"] in (None, *wordings.DAYS)
        assert "{" not in message(row)
        for key in ("item", "color", "city"):
            stem = answer[key][:4].lower() if answer[key] else ""
            assert stem in message(row).lower()


def test_no_sentence_of_the_held_out_part_is_ever_trained_on():
    def sentences(of):
        return [s for field in fields(wordings.Wordings) for s in getattr(of, field.name)]

    training, held_out = sentences(wordings.TRAINING), sentences(wordings.HELD_OUT)
    assert len(training) == len(set(training)) > 120
    assert len(held_out) == len(set(held_out)) > 70
    assert not set(training) & set(held_out)
    # Nor does a held-out sentence hide in the training file: the fixed words before its first slot.
    trained = " ".join(message(r) for r in read("orders_train.jsonl")).lower()
    openings = [s.split("{")[0].lower() for s in held_out]
    assert [o for o in openings if len(o) > 12 and o in trained] == []


def test_a_quarter_of_the_held_out_orders_are_about_places_never_trained_on():
    trained = {json.loads(r["completion"])["city"] for r in read("orders_train.jsonl")}
    tested = [json.loads(r["completion"])["city"] for r in read("orders_test.jsonl")]
    assert len(trained) > 80
    assert 0.15 < sum(city not in trained for city in tested) / len(tested) < 0.35


def test_the_answer_is_not_simply_what_comes_first():
    """Corrections and noise: another number, another item or another city stands in most messages."""
    rows = read("orders_test.jsonl")
    everything = [plural for _, plural in (*orders._SEEN.items, *orders._NEW.items)]
    cities = [*wordings.CITIES, *wordings.NEW_CITIES]

    def misleads(row):
        answer, text = json.loads(row["completion"]), message(row).lower()
        other_cities = any(c.lower() in text for c in cities if c != answer["city"])
        digits = any(c.isdigit() for c in text.replace(str(answer["quantity"]), ""))
        return other_cities or digits or sum(item in text for item in everything) > 1

    assert sum(map(misleads, rows)) / len(rows) > 0.5


def test_the_study_reads_and_its_files_are_there():
    study = Study.load(folder() / "study.yaml")
    assert set(study.tunings) == {"careful", "careless"}
    assert {t.method for t in study.tunings.values()} == {"lora", "full"}
    assert {margin.share for margin in study.margins().values()} == {0.05}
    for tuning in study.tunings.values():
        assert tuning.data.file.is_file()
    targets = [t.target for t in study.tasks if t.target]
    assert len(targets) == 2
    assert all(t.file.is_file() and (t.shots_file is None or t.shots_file.is_file()) for t in targets)
    assert [t.only for t in study.tasks if t.target and t.target.shots_file] == [("smollm2",)]
