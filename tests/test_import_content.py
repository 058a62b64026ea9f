"""What an import leaves in a ledger, byte for byte: ids, digests and rows are those of the version that held a whole
file in memory. And it is in the ledger completely, or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import test_exchange_lighteval as lighteval
from aftertune.errors import InputError, StorageError
from aftertune.exchange import audit, export_every_eval_ever, import_results, stored_answers
from aftertune.ledger import Ledger, Staging
from aftertune.values import ListDigest, digest
from exchange_cases import BASE_RIGHT, TUNED_RIGHT, choice_line, lm_eval_folder, one_task_folder, text_line

DATA = Path(__file__).parent / "data" / "exchange"
#: More than are stored at once (`aftertune.ledger.store.CHUNK`).
MANY = 1100


def copied(name: str) -> Callable[[Path], Path]:
    return lambda folder: Path(shutil.copy(DATA / name, folder / name))


def details(version: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        lighteval.folder(folder / "out", "org/base", BASE_RIGHT, version)
        return folder / "out"
    return write


def choices(folder: Path) -> Path:
    """Many documents, some of them with the same content, with two or four choices."""
    lines = [choice_line(i // 2 if i % 7 == 0 else i, 2 + 2 * (i % 2), i % 3 == 0) for i in range(MANY)]
    return one_task_folder(folder, "m", "arc_easy", lines, "acc")


def two_filters(folder: Path) -> Path:
    """Many documents with two filters: the lines of a document are far apart."""
    return lm_eval_folder(folder, "org/many", tuple(i % 2 for i in range(MANY)))


def texts(folder: Path) -> Path:
    lines = [text_line({"question": f"q{i}\x00\u2028", "options": ["x", "y"]}, f"q{i}\n(A) x (B) y", "A", "exact_match",
                       i % 2) for i in range(30)]
    return one_task_folder(folder, "e", "mmlu_pro", lines, "exact_match", kind="generate_until")


def every_eval_ever(folder: Path) -> Path:
    """Two metrics of one task and another task, their rows mixed, an id twice, and rows without a result."""
    results = [{"evaluation_name": name, "evaluation_result_id": id_, "metric_config": {"metric_name": metric},
                "score_details": {"score": 0.5}} for name, id_, metric in (
        ("quiz", "quiz_acc", "accuracy"), ("quiz", "quiz_f1", "f1"), ("say", "say_em", "exact_match"))]
    value = {"schema_version": "0.3.0", "evaluation_results": results, "evaluation_timestamp": "1741428000",
             "model_info": {"id": "org/m"}, "source_metadata": {"source_type": "evaluation_run"}}
    (folder / "e.json").write_text(json.dumps(value))
    rows = [{"evaluation_name": name, "evaluation_result_id": id_, "sample_id": str(i % 10 if name == "say" else i),
             "input": {"raw": f"q{i}", "reference": [str(i)]}, "output": {"raw": [f"a{i}"]},
             "evaluation": {"score": float(i % 2)},
             "answer_attribution": [{"extracted_value": f"x{i}", "is_terminal": True}]}
            for i in range(20) for name, id_ in (("say", "say_em"), ("quiz", "quiz_f1"), ("quiz", "quiz_acc"))]
    rows += [{"evaluation_name": "none", "sample_id": "1", "input": {}, "evaluation": {"score": 1.0}}] * 2
    (folder / "e_samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "e.json"


def own_export(folder: Path) -> Path:
    """What our own export of an imported run writes."""
    with Ledger(folder / "other.db") as ledger:
        [result] = import_results(lm_eval_folder(folder / "in", "org/base", BASE_RIGHT), ledger=ledger)
        found = result.evaluation
        assert found is not None
        export_every_eval_ever(found, stored_answers(ledger, found), folder=folder / "out",
                               prompts={})
    return folder / "out"


CASES: dict[str, Callable[[Path], Path]] = {
    **{name: copied(name) for name in ("inspect_base_quiz.json", "inspect_base_sums.json", "results_030.json")},
    **{f"lighteval {version}": details(version) for version in lighteval.VERSIONS},
    "lm-eval": lambda folder: lm_eval_folder(folder, "org/base", BASE_RIGHT),
    "lm-eval 0.4.5": lambda folder: lm_eval_folder(folder, "org/tuned", TUNED_RIGHT, old=True),
    "choices": choices, "two filters": two_filters, "texts": texts, "every eval ever": every_eval_ever,
    "own export": own_export}
#: Case -> SHA-256 of all rows of the ledger, by the version that held a whole file in memory. Of a part that another
#: tool took (lighteval; sums of inspect) they are newer: it is no longer called the first items of the task.
BEFORE = {
    "inspect_base_quiz.json": "9c9108a9b6b6138e",
    "inspect_base_sums.json": "de286e8e74546f27",
    "results_030.json": "9132a664967790ad",
    "lighteval 2023": "1de41493bdbded70",
    "lighteval 0.6": "7acfe450fb2d990f",
    "lighteval 0.9": "1de41493bdbded70",
    "lighteval 0.13": "72015490db08291c",
    "lm-eval": "af852bbfab92c19d",
    "lm-eval 0.4.5": "8a24344e862e8d85",
    "choices": "f5792c913660bf41",
    "two filters": "95dc4be84d8af6e4",
    "texts": "e31ca2eae8d3f230",
    "every eval ever": "f8eb773febbea8a9",
    "own export": "4a6669e9dc0048d3"}


#: The tables of that version, in which everything of an import is; without the checksums, which follow from the others.
TABLES = frozenset((
    "answer", "cell", "comparison", "evaluation", "item", "lease", "model", "reported_score", "response",
    "schedule", "score", "sqlite_sequence", "step", "study", "task", "tuning"))


#: Fields that values have got since, with their defaults.
LATER = {"part": "", "scorers": []}


def without_later(cell: Any) -> str:
    """A cell as text, without the fields of values that the version did not have."""
    if not isinstance(cell, str) or not cell.startswith("{"):
        return repr(cell)
    value = json.loads(cell)
    assert not {k for k in LATER if k in value and value[k] != LATER[k]}
    return repr(json.dumps({k: v for k, v in value.items() if k not in LATER}))


def content(path: Path) -> str:
    """The SHA-256 of all rows of a ledger."""
    connection = sqlite3.connect(path)
    names = [n for n, in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    rows = {n: [list(map(without_later, row)) for row in connection.execute(f'SELECT * FROM "{n}" ORDER BY 1, 2')]
            for n in names if n in TABLES}
    connection.close()
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def imported(case: str, folder: Path) -> str:
    """Import a case into a new ledger; its content."""
    place = folder / "place"
    place.mkdir()
    with Ledger(folder / "ledger.db") as ledger:
        import_results(CASES[case](place), ledger=ledger)
    return content(folder / "ledger.db")


@pytest.mark.parametrize("case", CASES)
def test_the_content_is_that_of_the_version_before(case: str, tmp_path: Path) -> None:
    assert imported(case, tmp_path)[:16] == BEFORE[case]


def many(folder: Path) -> Path:
    return choices(folder / "many")


def test_an_interrupted_import_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every insertion into a table: the ledger is what it was, and the same command then imports everything."""
    from sqlalchemy import Connection

    path = many(tmp_path)
    execute, left = Connection.execute, 0

    def failing(self: Any, statement: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal left
        if statement.__class__.__name__ == "Insert":
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
        return execute(self, statement, *args, **kwargs)

    with Ledger(tmp_path / "ledger.db") as ledger:
        before = content(tmp_path / "ledger.db")
        for left_now in (0, 1, 2, 3, 5, 7, 9, 11):
            left = left_now
            with monkeypatch.context() as patch:
                patch.setattr(Connection, "execute", failing)
                with pytest.raises(KeyboardInterrupt):
                    import_results(path, ledger=ledger)
            assert content(tmp_path / "ledger.db") == before, left_now
        [result] = import_results(path, ledger=ledger)
        assert result.new
        assert not ledger.check() or all(not f.problem for f in ledger.check())
        assert result.evaluation is not None
        assert len(ledger.answers(result.evaluation.id)) == MANY


def test_an_import_that_an_older_version_left_half_is_replaced(tmp_path: Path) -> None:
    from dataclasses import replace

    path = many(tmp_path)
    with Ledger(tmp_path / "whole.db") as whole:
        [result] = import_results(path, ledger=whole)
        done = result.evaluation
        assert done is not None
        items = whole.items(done.id)
    with Ledger(tmp_path / "half.db") as half:
        half.open_evaluation(replace(done, status="running", scores=()), items)
        half.acquire(done.id)
        [again] = import_results(path, ledger=half)
        assert again.new
        assert again.evaluation == done
        assert len(half.answers(done.id)) == MANY
        assert len(half.evaluations()) == 1


def test_a_digest_of_a_list_that_is_never_whole() -> None:
    for values in ([], [1], ["a", {"b": [1, "ä"], "a": None}, 1.5], [[], [[1], []]]):
        hashed = ListDigest()
        for value in values:
            hashed.add(value)
        assert hashed.hexdigest() == digest(values)
    hashed = ListDigest()
    hashed.add("x")
    hashed.add(iter(iter(part) for part in ([1, 2], [], [{"a": 1}])))
    hashed.add(iter(()))
    assert hashed.hexdigest() == digest(["x", [[1, 2], [], [{"a": 1}]], []])


def test_staged_rows_keep_their_order_and_their_part() -> None:
    with Staging() as staging:
        one, two = staging.part(), staging.part()
        for number in range(50):
            for part in (one, two):
                part.add(str(99 - number), {"n": number, "text": "\x00\ud800", "inf": float("inf")}, 0)
        there = one.find("99")
        assert there is not None
        one.change(there[0], ["changed"])
        assert one.find("x") is None
        assert (len(one), len(two)) == (50, 50)
        assert [value["n"] for value in one.values()] == list(range(50))
        assert list(one.states()) == [["changed"], *[0] * 49]
        assert set(two.states()) == {0}
        assert next(iter(one))[0] == {"n": 0, "text": "\x00\ud800", "inf": float("inf")}


def test_a_full_temporary_folder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = Staging.__init__

    def small(self: Staging) -> None:
        start(self)
        self.raw.execute("PRAGMA max_page_count=20")

    monkeypatch.setattr(Staging, "__init__", small)
    path = many(tmp_path)
    with Ledger(tmp_path / "ledger.db") as ledger:
        with pytest.raises(StorageError, match=r"database or disk is full.*set TMPDIR"):
            import_results(path, ledger=ledger)
        assert ledger.evaluations() == []


@pytest.mark.parametrize("doc", [None, [1, "a"], "text", 5])
def test_a_document_that_is_no_object_can_be_read_again(doc: Any, tmp_path: Path) -> None:
    """It was stored in a form that made the evaluation damaged."""
    path = one_task_folder(tmp_path, "m", "t", [{**choice_line(i, 2, i == 0), "doc": [doc, i]} for i in range(2)]
                           + [{**choice_line(2, 2, True), "doc": doc}], "acc")
    with Ledger(tmp_path / "ledger.db") as ledger:
        [result] = import_results(path, ledger=ledger)
        assert result.evaluation is not None
        assert [i.doc for i in ledger.items(result.evaluation.id)] == [{"doc": d} for d in ([doc, 0], [doc, 1], doc)]
        assert not [f for f in ledger.check() if "damaged" in f.value]


@pytest.mark.parametrize("groups", [{"g": ["g"]}, {"g": ["h"], "h": ["g"]}])
def test_groups_in_a_circle_are_read(groups: dict[str, list[str]], tmp_path: Path) -> None:
    scores = {name: {"acc,none": 0.5} for name in groups}
    (tmp_path / "results.json").write_text(json.dumps({
        "results": {"t": {"acc,none": 0.5}}, "groups": scores, "group_subtasks": groups}))
    assert len(audit(tmp_path / "results.json").checks) == 1 + len(groups)
    with Ledger(tmp_path / "ledger.db") as ledger:
        [result] = import_results(tmp_path, ledger=ledger)
        assert {r.task for r in result.reported} == {"t", *groups}


def test_samples_may_come_in_any_order_and_errors_name_their_line(tmp_path: Path) -> None:
    path = two_filters(tmp_path)
    [file] = path.glob("samples_write_*")
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:-1]) + "\n")
    with Ledger(tmp_path / "ledger.db") as ledger:
        with pytest.raises(InputError, match=rf"document {MANY - 1} has 1 lines and others 2"):
            import_results(path, ledger=ledger)
        file.write_text("\n".join([*lines, lines[3]]) + "\n")
        with pytest.raises(InputError, match=rf":{2 * MANY + 1}: document 3 occurs twice"):
            import_results(path, ledger=ledger)
        file.write_text("\n".join(lines[::-1]) + "\n")
        [result] = import_results(path, ledger=ledger)
        assert result.evaluation is not None
        answers = ledger.answers(result.evaluation.id, "write")
        assert [a.index for a in answers] == list(range(MANY))[::-1]
        assert all(len(a.metrics) == 2 for a in answers)


def all_cases(folder: Path) -> Iterator[tuple[str, str]]:
    for case in CASES:
        (folder / case).mkdir(parents=True)
        yield case, imported(case, folder / case)


if __name__ == "__main__":
    import tempfile

    for name, sha in all_cases(Path(tempfile.mkdtemp())):
        print(f'    "{name}": "{sha[:16]}",')
