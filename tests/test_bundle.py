"""A bundle proves every score and verdict from the answers; whatever was changed in it is named."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import early_cases
from aftertune import bounds
from aftertune.bundle import Verified, export_bundle, files, verify_bundle
from aftertune.bundle.proof import Proof
from aftertune.bundle.proof import _prove_scores as prove_scores
from aftertune.bundle.rebuilding import Claims
from aftertune.comparison import choose_primary, compare
from aftertune.errors import DiskError, InputError, NotProven, TaskError
from aftertune.ledger import Ledger
from aftertune.ledger.faults import storage_error
from aftertune.sources.cache import temporary_path
from aftertune.tasks.rescoring import score_again
from aftertune.values import Margin
from aftertune.values.comparison import OUT_OF_TIME
from bundle_cases import CANARY, asked_ledger, hash_documents
from cli_cases import call, settle


@pytest.fixture(scope="module")
def ledger_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return asked_ledger(tmp_path_factory.mktemp("asked"))


@pytest.fixture(scope="module")
def written(ledger_file: Path) -> Path:
    folder = ledger_file.parent / "bundle"
    with Ledger(ledger_file) as ledger:
        export_bundle(ledger, "orders", folder, title="Orders")
    return folder


@pytest.fixture
def bundle(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(written, tmp_path / "bundle"))


def lines(folder: Path, name: str) -> list[Any]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def rewrite(folder: Path, name: str, values: list[Any]) -> None:
    """Change a file as someone who knows the format would: with its hash in the manifest."""
    (folder / name).write_text("".join(json.dumps(v) + "\n" for v in values), encoding="utf-8")
    listed = json.loads((folder / files.MANIFEST).read_text(encoding="utf-8"))
    files.write_manifest(folder, {k: v for k, v in listed.items() if k not in ("files", "format", "version")})


def change(folder: Path, name: str, line: int, *path: str | int, to: Any) -> None:
    """Replace one value of one line, and the hashes."""
    values = lines(folder, name)
    where = values[line]
    for step in path[:-1]:
        where = where[step]
    where[path[-1]] = to(where[path[-1]]) if callable(to) else to
    rewrite(folder, name, values)


def test_scores_and_verdicts_are_computed_again_from_the_answers(written: Path, monkeypatch: pytest.MonkeyPatch
                                                                 ) -> None:
    for name in ("torch.nn.Module.__call__", "transformers.AutoModelForCausalLM.from_pretrained"):
        monkeypatch.setattr(name, None)  # no model runs
    verified = verify_bundle(written)
    proof = verified.proof
    assert (proof.failed, proof.unchecked, proof.from_values, verified.documents) == ([], [], [], "same")
    assert (proof.evaluations, proof.answers, proof.scores, proof.comparisons, proof.scored) == (2, 34, 14, 1, 6)
    assert proof.rows == 8
    listed = set(files.names_in(written)) - {files.MANIFEST}
    assert listed == {*files.REQUIRED, files.answers_file(0), files.answers_file(1)}


def test_the_same_ledger_gives_the_same_bytes(ledger_file: Path, written: Path, tmp_path: Path) -> None:
    with Ledger(ledger_file) as ledger:
        again = export_bundle(ledger, "orders", tmp_path / "again", title="Orders")
    assert again.sha256 == files.sha256_of(written / files.MANIFEST)


@pytest.mark.parametrize("name", [*files.REQUIRED[:5], files.answers_file(1)])
def test_a_changed_byte_is_named(bundle: Path, name: str) -> None:
    text = (bundle / name).read_bytes()
    (bundle / name).write_bytes(text[:20] + bytes([text[20] ^ 1]) + text[21:])
    assert verify_bundle(bundle).proof.failed == [f"{name}: was changed (its SHA-256 is another one)"]


def test_missing_unknown_and_linked_files_are_named(bundle: Path, tmp_path: Path) -> None:
    (bundle / files.TUNINGS).unlink()
    (bundle / "ledger" / "more.bin").write_bytes(b"x")
    (bundle / files.RECORD).rename(tmp_path / "elsewhere.md")
    (bundle / files.RECORD).symlink_to(tmp_path / "elsewhere.md")
    assert verify_bundle(bundle).proof.failed == [
        "ledger/tunings.jsonl: the file is missing", "record.md: is a link or no plain file",
        "'ledger/more.bin': the manifest does not list this file"]


def _score(**changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        for name, value in changes.items():
            change(folder, files.EVALUATIONS, 1, "scores", 0, name, to=value)
    return apply


def _right_everywhere(folder: Path) -> None:
    """All items of one task right, in the values of the items and in the score."""
    values = lines(folder, files.answers_file(1))
    for line in values[:12]:
        line["answer"]["metrics"]["acc,none"] = 1.0
    rewrite(folder, files.answers_file(1), values)
    _score(value=1.0, stderr=0.0)(folder)


def _without_rows(folder: Path) -> None:
    change(folder, files.COMPARISONS, 0, "rows", to=lambda rows: [r for r in rows if r["task"] != "arc_easy"])


def _another_question(folder: Path) -> None:
    values = lines(folder, files.answers_file(0))
    values.append({**values[0], "item": {**values[0]["item"], "index": 9999}, "answer": None})
    rewrite(folder, files.answers_file(0), values)


def _other_manifest(folder: Path) -> None:
    listed = json.loads((folder / files.MANIFEST).read_text(encoding="utf-8"))
    (folder / files.MANIFEST).write_text(json.dumps({**listed, "comparisons": {}}), encoding="utf-8")


@pytest.mark.parametrize(("apply", "expected"), [
    (_score(value=0.9), "arc_easy: acc,none is 0.9, and its answers give"),
    (_score(stderr=0.001), "arc_easy: stderr of acc,none is 0.001, and its answers give"),
    (_score(n=1200), "arc_easy: n of acc,none is 1200, and its answers give 12"),
    (_right_everywhere, "acc,none is 1, and its responses give 0"),
    (lambda f: change(f, files.EVALUATIONS, 0, "scores", to=lambda s: s[1:]), "arc_easy: acc,none is missing"),
    (lambda f: change(f, files.answers_file(0), 2, "answer", "responses", 0, "logprob", to=0.0), "its responses give"),
    (lambda f: change(f, files.answers_file(0), 12, "answer", "responses", 0, "text", to="The answer is 18."),
     "gsm8k_cot, item"),
    (lambda f: change(f, files.answers_file(0), 14, "answer", "responses", 0, "text", to='{"item": 0}'),
     "orders_json, item"),
    (lambda f: change(f, files.answers_file(0), 1, "item", "doc", "answerKey", to="A"),
     "is not the one that its hash stands for"),
    (lambda f: change(f, files.answers_file(0), 1, "item", "asked", "gold", to=[3]), "its document gives"),
    (lambda f: rewrite(f, files.answers_file(0), lines(f, files.answers_file(0))[1:]), "11 answers to arc_easy, but"),
    (lambda f: change(f, files.COMPARISONS, 0, "rows", 0, "verdict", to="within"),
     "arc_easy acc_norm: verdict is within, and the answers give"),
    (lambda f: change(f, files.COMPARISONS, 0, "rows", 0, "told", to="improved"), "told is improved"),
    (lambda f: change(f, files.COMPARISONS, 0, "rows", 0, "p_adjusted", to=0.01), "p_adjusted is 0.01"),
    (lambda f: change(f, files.COMPARISONS, 0, "rows", 0, "delta", to=0.5), "delta is 0.5"),
    (lambda f: change(f, files.COMPARISONS, 0, "rows", 0, "margin", to=0.5), "arc_easy acc_norm: "),
    (lambda f: change(f, files.COMPARISONS, 0, "rows", 0, "lost", to=0), "lost is 0"),
    (_without_rows, "family_size is 2, and the answers give 1"),
    (lambda f: rewrite(f, files.TUNINGS, []), "lineage is True, and the answers give False"),
    (lambda f: change(f, files.COMPARISONS, 0, "changes", to=None), "changes is nothing"),
    (lambda f: change(f, files.EVALUATIONS, 0, "tasks", 0, "num_fewshot", to=5), "num_fewshot"),
    (lambda f: change(f, files.TUNINGS, 0, "method", to="lora"), "record.md: is not the document that"),
    (lambda f: change(f, files.EVALUATIONS, 0, "id", to="e-other"), "e-other"),
    (lambda f: change(f, files.COMPARISONS, 0, "rules", to=3), "judged by version 3 of the rules"),
    (lambda f: change(f, files.answers_file(0), 1, "answer", "cluster", to="one"), "cluster is one, and its document"),
    (_another_question, "13 questions of arc_easy, but"),
    (_other_manifest, "manifest.json: names other comparisons than"),
])
def test_a_changed_value_is_named_although_its_hash_was_changed_too(
        bundle: Path, apply: Callable[[Path], None], expected: str) -> None:
    apply(bundle)
    failed = verify_bundle(bundle).proof.failed
    assert failed
    assert any(expected in line for line in failed), failed
    assert not any("⟨" in line or "Traceback" in line for line in failed)


def test_an_answer_out_of_time_and_a_note_are_no_way_around_the_proof(bundle: Path) -> None:
    change(bundle, files.COMPARISONS, 0, "rows", 2, "note", to="significant")
    values = lines(bundle, files.answers_file(1))
    for line in values[12:14]:
        answer = line["answer"]
        answer["metrics"] = dict.fromkeys(answer["metrics"], 1.0)
        answer["extracted"] = dict.fromkeys(answer["extracted"], OUT_OF_TIME)
    rewrite(bundle, files.answers_file(1), values)
    proof = verify_bundle(bundle).proof
    assert any("its filters took too long" in line for line in proof.from_values)
    assert any("exact_match,flexible-extract is 0, and its items give 1" in line for line in proof.failed)
    assert any("orders_json exact_match: its note is not the one" in line for line in proof.unchecked)


def test_a_name_that_is_no_single_task_is_not_loaded(ledger_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger(ledger_file) as ledger:
        evaluation = ledger.evaluations()[0]
        items, answers = ledger.items(evaluation.id, "arc_easy"), ledger.answers(evaluation.id, "arc_easy")
    monkeypatch.setattr("aftertune.tasks.rescoring.load", None)
    for name in ("mmlu", "ai2_arc", "absent"):
        with pytest.raises(TaskError, match="no single task of this name"):
            score_again(replace(evaluation.tasks[0], task=name), items, answers)


def test_the_size_of_a_group_is_that_of_its_tasks(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        stored = early_cases.store(ledger, "base", early_cases.BASE, {"one": early_cases.changed(40, 0.7, 2, 9)[0]})
        group = replace(stored.scores[0], task="all", group=True, n=4000)
        evaluation = replace(stored, scores=(*stored.scores, group),
                             tasks=tuple(replace(t, groups=("all",)) for t in stored.tasks))
        proof = Proof()
        prove_scores(ledger, evaluation, Claims([], [], []), proof)
    [failed] = proof.failed
    assert failed.endswith(f"all: n of {group.key} is 4,000, and its tasks have 40 answers")


@pytest.mark.parametrize(("name", "line", "expected"), [
    (files.EVALUATIONS, "[" * 100_000, "not valid JSON: nested too deeply"),
    (files.EVALUATIONS, "[" + "1," * bounds.BUNDLE_VALUES + "1]", "more than 2,000,000 commas"),
    (files.EVALUATIONS, '{"id": "e-1"}', "ledger/evaluations.jsonl:1: Evaluation."),
    (files.EVALUATIONS, "[]", "expected a JSON object, found list"),
    (files.TUNINGS, '{"id": 3, "base": null}', "ledger/tunings.jsonl:1: Tuning."),
    (files.COMPARISONS, '{"rows": {"a": NaN}}', "ledger/comparisons.jsonl:1: Comparison."),
    (files.STUDIES, '{"name": "x", "hash": "y", "study": {"tunings": [1]}, "cells": []}', "a study is a mapping"),
    (files.STUDIES, '{"name": 1, "hash": 2, "study": {}, "cells": [{"name": "a"}]}', "ledger/studies.jsonl:1"),
    (files.answers_file(0), '{"item": {}, "answer": null}', "ledger/answers/0000.jsonl:1"),
    (files.answers_file(0), "\xff", "not valid JSON"),
])
def test_a_hostile_line_is_one_message(bundle: Path, name: str, line: str, expected: str) -> None:
    (bundle / name).write_bytes(line.encode("latin-1") + b"\n")
    listed = json.loads((bundle / files.MANIFEST).read_text(encoding="utf-8"))
    files.write_manifest(bundle, {k: v for k, v in listed.items() if k not in ("files", "format", "version")})
    [failed] = verify_bundle(bundle).proof.failed
    assert expected in failed


def test_a_full_disk_for_temporary_files_is_no_fault_of_the_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch
                                                                   ) -> None:
    def full(*_: Any) -> None:
        raise storage_error(bundle, type("Full", (Exception,), {"sqlite_errorname": "SQLITE_FULL"})())

    monkeypatch.setattr(Ledger, "store_evaluation", full)
    with pytest.raises(DiskError, match=r"no space left on the disk .*; or set TMPDIR to a folder on a disk with more"):
        verify_bundle(bundle)


def test_what_a_killed_export_left_is_removed_by_the_next(ledger_file: Path, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aftertune.bundle.write_page", lambda results, title: "")
    left = temporary_path(tmp_path / "bundle")
    left.mkdir()
    left.rename(left.with_name(left.name.replace(f"-{os.getpid()}-", "-999999999-")))
    with Ledger(ledger_file) as ledger:
        first = export_bundle(ledger, "orders", tmp_path / "bundle", title="Orders")
        assert export_bundle(ledger, "orders", tmp_path / "bundle", title="Orders").sha256 == first.sha256
        with pytest.raises(InputError, match="bundle: holds another bundle, or files beside one; give a new folder"):
            export_bundle(ledger, "orders", tmp_path / "bundle", title="Another title")
        (tmp_path / "bundle" / "mine.txt").touch()
        with pytest.raises(InputError, match="bundle: holds another bundle"):
            export_bundle(ledger, "orders", tmp_path / "bundle", title="Orders")
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_bundle_is_bounded(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, expected in (("BUNDLE_LINE", "0000.jsonl:1: more than 9 bytes"), ("BUNDLE_EVALUATIONS", "more than 1 ")):
        with monkeypatch.context() as patch:
            patch.setattr(bounds, name, 9 if name == "BUNDLE_LINE" else 1)
            if name == "BUNDLE_LINE":
                with pytest.raises(InputError, match=expected):
                    list(files.read_lines(bundle / files.answers_file(0), files.answers_file(0)))
            else:
                assert expected in verify_bundle(bundle).proof.failed[0]
    monkeypatch.setattr(bounds, "BUNDLE_MANIFEST", 99)
    with pytest.raises(InputError, match="more than 99 bytes"):
        verify_bundle(bundle)


def test_a_number_that_no_database_takes_is_one_message(bundle: Path) -> None:
    change(bundle, files.answers_file(0), 0, "item", "index", to=2**70)
    failed = verify_bundle(bundle).proof.failed
    assert failed
    change(bundle, files.answers_file(0), 0, "answer", "index", to=2**70)
    assert "too large" in verify_bundle(bundle).proof.failed[0]


def test_a_manifest_leads_to_no_other_file(bundle: Path) -> None:
    listed = json.loads((bundle / files.MANIFEST).read_text(encoding="utf-8"))
    for name in ("../secret", "/etc/passwd", "ledger/answers/../../../x", "ledger/answers/0000.jsonl/x"):
        listed["files"][name] = {"bytes": 0, "sha256": ""}
    (bundle / files.MANIFEST).write_text(json.dumps(listed), encoding="utf-8")
    failed = verify_bundle(bundle).proof.failed
    assert len(failed) == 4
    assert all("the manifest lists a file that no bundle has" in line for line in failed)


@pytest.mark.parametrize(("text", "expected"), [
    ("{}", "not the manifest of a bundle"), ("[", "not valid JSON"),
    ('{"format": "aftertune bundle", "version": 2, "aftertune": "9.0", "files": {}}', "a bundle of version 2")])
def test_another_folder_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(InputError, match="no such folder"):
        verify_bundle(tmp_path / "absent")
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        verify_bundle(tmp_path)
    (tmp_path / files.MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=expected):
        verify_bundle(tmp_path)


def test_comparisons_of_every_kind_are_proven(ledger_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                              ) -> None:
    monkeypatch.setattr("aftertune.bundle.write_page", lambda results, title: "")  # its charts take seconds
    path = Path(shutil.copy(ledger_file, tmp_path / "ledger.db"))
    with Ledger(path) as ledger:
        base, tuned = ledger.evaluations()
        prob = [choose_primary(e, "prob", "arc_easy") for e in (base, tuned)]
        made = [compare(base, tuned, margins={"arc_easy": 0.01, "*": 0.2}, ledger=ledger),
                compare(base, tuned, margins={"average": 0.3, "gsm8k_cot": Margin.given(4)}, ledger=ledger),
                compare(base, tuned, margins=0.11, ledger=ledger, tasks=("arc_easy",)),
                compare(base, tuned, margins=0.12, ledger=ledger, tasks=("arc_easy", "gsm8k_cot", "average")),
                compare(base, tuned, margins=0.13, ledger=ledger, tasks=("average",)),
                compare(*prob, margins=0.05, ledger=ledger), compare(tuned, base, ledger=ledger),
                compare(base, tuned, margins=0.14, ledger=ledger, common=True)]
        old = replace(made[0], id="c-old0000000", rules=3)
        ledger.save_comparison(old)
        written = export_bundle(ledger, None, tmp_path / "bundle", title="All")
    assert (written.proof.comparisons, written.proof.failed) == (9, [])
    [left_out] = written.left_out
    assert "c-old0000000" in left_out
    assert verify_bundle(tmp_path / "bundle").proof.failed == []


def test_an_evaluation_that_stopped_early_is_proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hash_documents(monkeypatch)
    monkeypatch.setattr("aftertune.bundle.write_page", lambda results, title: "")  # its charts take seconds
    values = {t: early_cases.changed(160, 0.7, 2, 60, seed) for seed, t in enumerate(("one", "two"))}
    with Ledger(tmp_path / "ledger.db") as ledger:
        base = early_cases.store(ledger, "base", early_cases.BASE, {t: v[0] for t, v in values.items()})
        tuned = early_cases.store(ledger, "tuned", early_cases.ADAPTED, {t: v[1] for t, v in values.items()},
                                  used={"one": 64})
        compare(base, tuned, ledger=ledger)
        drawn = early_cases.store_drawn(
            ledger, "drawn", early_cases.ADAPTED, {"one": values["one"][0]}, {"one": values["one"][1]},
            sure={"one": [k / 160 for k in range(160)]})
        compare(base, drawn, ledger=ledger, tasks=("one",))
        written = export_bundle(ledger, "all", tmp_path / "bundle", title="Early")
    assert (written.proof.evaluations, written.proof.comparisons, written.proof.failed) == (3, 2, [])
    verified = verify_bundle(tmp_path / "bundle")
    assert (verified.proof.failed, verified.documents) == ([], "same")
    change(tmp_path / "bundle", files.COMPARISONS, 0, "rows", 0, "low", to=-0.01)
    assert "low is -0.01" in verify_bundle(tmp_path / "bundle").proof.failed[0]


def test_a_ledger_that_contradicts_itself_gives_no_bundle(ledger_file: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(ledger_file, tmp_path / "ledger.db"))
    with Ledger(path) as ledger:
        [comparison] = ledger.comparisons()
        rows = (replace(comparison.rows[0], verdict="higher", told="improved"), *comparison.rows[1:])
        ledger.save_comparison(replace(comparison, rows=rows))
        with pytest.raises(NotProven, match=r"no bundle was written.*verdict is higher"):
            export_bundle(ledger, None, tmp_path / "bundle", title="All")
    assert [p.name for p in tmp_path.iterdir()] == ["ledger.db"]


def test_no_secret_and_no_path_gets_into_a_bundle(ledger_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                   ) -> None:
    path = Path(shutil.copy(ledger_file, tmp_path / "ledger.db"))
    monkeypatch.setenv("MY_API_KEY", "ice cube?")  # a secret that is in a question
    with Ledger(path) as ledger:
        [tuning] = ledger.tunings()
        ledger.save_tuning(replace(tuning, notes=(f"token={CANARY}",), settings={"note": CANARY}))
        written = export_bundle(ledger, None, tmp_path / "bundle", title=f"Results {CANARY} {'x' * 300}")
    for name in files.names_in(tmp_path / "bundle"):
        text = (tmp_path / "bundle" / name).read_text(encoding="utf-8")
        private = (CANARY, "ice cube?", str(ledger_file.parent), str(tmp_path))
        assert not [word for word in private if word in text], name
    assert len(written.proof.from_values) == 2
    assert "secrets were removed from 1 of its items" in written.proof.from_values[0]
    monkeypatch.delenv("MY_API_KEY")
    verified = verify_bundle(tmp_path / "bundle")
    assert (verified.proof.failed, verified.documents, len(verified.title)) == ([], "same", 200)


def test_the_verbs(ledger_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                   capsys: pytest.CaptureFixture[str]) -> None:
    settle(monkeypatch, tmp_path)
    shutil.copy(ledger_file, tmp_path / "ledger.db")
    assert call(monkeypatch, "export", "orders", "--bundle", "out") == 0
    assert "verdicts: 8 rows of 1 comparisons computed again" in capsys.readouterr().out
    assert call(monkeypatch, "verify", "out", "--strict") == 0
    assert "proven: the answers give every figure above" in capsys.readouterr().out
    change(tmp_path / "out", files.EVALUATIONS, 0, "scores", 0, "value", to=0.75)
    assert call(monkeypatch, "verify", "out", "--json") == 3
    shown = json.loads(capsys.readouterr().out)
    assert not shown["ok"]
    assert (shown["scores"], shown["rows"], shown["scored_again"], shown["documents"]) == (14, 8, 6, "not compared")
    assert call(monkeypatch, "verify", "out") == 3
    captured = capsys.readouterr()
    assert "acc,none is 0.75, and its answers give" in captured.out
    assert captured.err.splitlines()[-1].startswith("aftertune: out: not proven: evaluation e-")
    for words, expected in ((("export", "orders", "--bundle", "out"), "holds another bundle"),
                            (("export", "nobody", "--bundle", "new"), "no evaluation 'nobody'"),
                            (("export",), "name what to export"), (("verify", "new"), "no such folder"),
                            (("export", "orders", "--title", "x"), "--title has no effect")):
        assert call(monkeypatch, *words) == 2
        assert expected in capsys.readouterr().err
    assert "torch" in sys.modules


def test_what_was_not_compared_is_not_called_proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    documents = "not compared: another version of aftertune wrote them (9.0)"
    verified = Verified("T", "s", 9, documents, Proof(evaluations=1))
    monkeypatch.setattr("aftertune.bundle.verify_bundle", lambda folder, progress=None: verified)
    assert call(monkeypatch, "verify", "out") == 0
    assert "proven, except for what the lines above name" in capsys.readouterr().out
    assert call(monkeypatch, "verify", "out", "--strict") == 3
    assert "record and page: not compared" in capsys.readouterr().err
