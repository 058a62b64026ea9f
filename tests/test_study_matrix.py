"""A study's matrix and changes to a study in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aftertune.cli import app
from aftertune.errors import InputError
from aftertune.study import Study
from aftertune.study.cured import made_from

STUDY = """\
# what the study is for
study: orders
margin: 5   # points
bases:
  small: {model: ./small}
  large: {model: ./large}
tasks:
  - {name: hellaswag, sample: 300}
  - {name: arc_easy, limit: 20}
"""


def load(folder: Path, matrix: str, *sets: str) -> Study:
    path = folder / "study.yaml"
    path.write_text(STUDY + matrix)
    return Study.load(path, sets)


def test_axes_are_crossed_in_their_order_and_named_by_what_varies(tmp_path):
    study = load(tmp_path, """
matrix:
  base: small
  data: {file: rows.jsonl, held_out: 0.04}
  method: [lora, full]
  examples: [100, 2000]
  seed: [0, 1]
""")
    assert list(study.tunings) == [f"{m}-{n}-s{s}" for m in ("lora", "full") for n in ("n100", "n2k") for s in (0, 1)]
    one = study.tunings["full-n2k-s1"]
    assert (one.base, one.method, one.data.examples, one.data.held_out, one.seed) == ("small", "full", 2000, 0.04, 1)
    assert one.data.file == tmp_path / "rows.jsonl"


def test_a_whole_part_may_be_an_axis_and_be_excluded_by_its_value(tmp_path):
    study = load(tmp_path, """
matrix:
  base: small
  data: rows.jsonl
  replay: [null, {data: general.jsonl, share: 0.3}, "base:100"]
  anchor: [null, "kl:1"]
  exclude:
    - {replay: {data: general.jsonl, share: 0.3}, anchor: "kl:1"}
  include:
    - {replay: null, anchor: null, watch: {tasks: {hellaswag: 20}, every: 10}}
  name: "{replay}-{anchor}"
""")
    assert list(study.tunings) == ["none-none", "none-kl-1", "general-0.3-none", "base-100-none", "base-100-kl-1"]
    assert [t.watch is not None for t in study.tunings.values()] == [True, False, False, False, False]
    assert study.tunings["general-0.3-none"].replay.data.file == tmp_path / "general.jsonl"
    assert study.tunings["base-100-kl-1"].replay.base.count == 100


def test_the_study_of_cures_changes_one_thing_at_a_time():
    study = Study.load(Path(__file__).parent.parent / "studies" / "cures_smollm2.yaml")
    study.check_files()
    recipes = {(t.learning_rate, t.anchor, str(t.replay and (t.replay.base or t.replay.share)))
               for t in study.tunings.values()}
    cured = made_from(study.tunings)
    assert (len(study.tunings) - len(cured), len(cured), len(recipes)) == (15, 9, 5)
    assert sum(rate != 1e-3 or anchor is not None or replay != "None" for rate, anchor, replay in recipes) == 4
    assert sum(t.keep_checkpoints == "all" for name, t in study.tunings.items() if name not in cured) == 3


def test_share_zero_is_no_replay_and_excluded_combinations_are_gone(tmp_path):
    study = load(tmp_path, """
matrix:
  base: small
  data: rows.jsonl
  replay: {data: general.jsonl, share: [0, 0.3]}
  seed: [0, 1, 2]
  exclude: [{replay.share: 0, seed: [1, 2]}]
""")
    assert list(study.tunings) == ["replay0-s0", "replay30-s0", "replay30-s1", "replay30-s2"]
    assert study.tunings["replay0-s0"].replay is None
    assert study.tunings["replay30-s1"].replay.share == 0.3


def test_include_adds_to_combinations_or_adds_one(tmp_path):
    study = load(tmp_path, """
matrix:
  base: small
  data: rows.jsonl
  method: [lora, full]
  include:
    - {method: full, learning_rate: 2e-5}
    - {method: dora, seed: 3}
""")
    assert list(study.tunings) == ["lora", "full", "dora"]
    assert study.tunings["full"].learning_rate == 2e-5
    assert study.tunings["lora"].learning_rate is None
    assert (study.tunings["dora"].base, study.tunings["dora"].seed) == ("small", 3)


def test_a_template_names_them_and_must_tell_them_apart(tmp_path):
    head = "\nmatrix:\n  base: [small, large]\n  data: rows.jsonl\n  seed: [0, 1]\n"
    study = load(tmp_path, head + '  name: "{base}_{seed}"\n')
    assert list(study.tunings) == ["small_0", "small_1", "large_0", "large_1"]
    with pytest.raises(InputError, match="gives the name 'small' to 2 tunings"):
        load(tmp_path, head + '  name: "{base}"\n')


@pytest.mark.parametrize(("matrix", "said"), [
    ("  base: small\n  data: a.jsonl\n  sed: [0, 1]\n", "unknown axis 'sed' (did you mean 'seed'?)"),
    ("  base: small\n  data: a.jsonl\n  seed: [0, 0]\n", "each once"),
    ("  base: small\n  data: a.jsonl\n  seed: [0]\n  exclude: [{seed: 0}]\n", "leaves no combination"),
    ("  base: small\n  data: a.jsonl\n  exclude: [{method: lora}]\n", "which is not an axis"),
    ("  base: tiny\n  data: a.jsonl\n", "not among the bases"),
    ("  base: small\n  data: a.jsonl\n  method: [lora, lola]\n", "lola"),
])
def test_what_a_matrix_cannot_mean_is_told_in_one_line(tmp_path, matrix, said):
    with pytest.raises(InputError, match=r"study\.yaml") as error:
        load(tmp_path, "\nmatrix:\n" + matrix)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


MATRIX = "\nmatrix: {base: small, data: a.jsonl, seed: [0, 1]}\ntunings:\n  own: {base: large, data: {file: a.jsonl}}\n"


def test_changes_reach_every_place_and_its_hash(tmp_path):
    plain = load(tmp_path, MATRIX)
    study = load(tmp_path, MATRIX, "margin=3", "tasks.hellaswag.sample=50", "tasks.1.limit=5",
                 "bases.large.model=./other", "tunings.*.learning_rate=1e-4", "tunings.s*.examples=10",
                 "matrix.seed=[0, 1, 2]")
    assert (study.margin, study.tasks[0].sample, study.tasks[1].limit) == (3, 50, 5)
    assert study.bases["large"].model == "./other"
    assert list(study.tunings) == ["own", "s0", "s1", "s2"]
    assert {t.learning_rate for t in study.tunings.values()} == {1e-4}
    assert [t.data.examples for t in study.tunings.values()] == [None, 10, 10, 10]
    assert study.hash != plain.hash
    assert load(tmp_path, MATRIX).hash == plain.hash


@pytest.mark.parametrize(("change", "said"), [
    ("margin", "write KEY=VALUE"), ("margn=3", "did you mean 'margin'"), ("margin=much", "found 'much'"),
    ("tasks.helaswag.limit=5", "did you mean 'hellaswag'"), ("tasks.hellaswag.limt=5", "did you mean 'limit'"),
    ("tunings.own.lora.rank=4", "has no 'rank'"), ("tunings.none*.seed=1", "its entries: own, s0, s1"),
    ("margin.x=1", "is a single value")])
def test_changes_that_cannot_be_made_are_told(tmp_path, change, said):
    with pytest.raises(InputError) as error:
        load(tmp_path, MATRIX, change)
    assert said in str(error.value)


def test_the_verb_changes_a_file_and_keeps_comments_and_order(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY + MATRIX)
    run = CliRunner().invoke(app, ["study", str(path), "tasks.hellaswag.sample=50", "margin=3", "--json"])
    assert run.exit_code == 0, run.output
    assert list(json.loads(run.stdout)["tunings"]) == ["own", "s0", "s1"]
    text = path.read_text()
    assert text.splitlines()[0] == "# what the study is for"
    assert "margin: 3   # points" in text
    assert Study.load(path).tasks[0].sample == 50
    assert text.index("bases") < text.index("tasks") < text.index("matrix")


def test_the_schema_knows_matrix_and_tunings(tmp_path):
    schema = json.loads(CliRunner().invoke(app, ["study", "--schema"]).stdout)
    assert "seed" in schema["properties"]["matrix"]["properties"]
    assert {"study", "bases", "tasks", "tunings"} <= schema["properties"].keys()
