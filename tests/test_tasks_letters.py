"""Multiple choice by letter: prompts, the letter in an answer, and an evaluation of such a task."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from aftertune.errors import TaskError
from aftertune.evaluation import evaluate
from aftertune.ledger import Ledger
from aftertune.study import TaskSpec
from aftertune.tasks import LoadOptions, load
from aftertune.tasks.letter_answers import read_letter
from aftertune.tasks.letters import prompt
from eval_cases import byte_folder, write_task


@pytest.mark.parametrize(("question", "choices", "before", "text"), [
    ("Question: Which floats?\nAnswer:", ["wood", "iron"], False,
     "Question: Which floats?\nA. wood\nB. iron\nAnswer:"),
    ("Which?\nA. x\nB. y\nAnswer:", ["A", "B"], False, "Which?\nA. x\nB. y\nAnswer:"),
    ("fell.", ["The cup", "The saucer"], True,
     "Which sentence is right?\nA. The cup fell.\nB. The saucer fell.\nAnswer:")])
def test_prompts(question: str, choices: list[str], before: bool, text: str) -> None:
    assert prompt(question, choices, before=before) == text


@pytest.mark.parametrize(("text", "letter"), [
    (" B", "B"), ("(C", "C"), ("**B**", "B"), ("A", "A"), ("D. iron", "D"), ("B because it floats", "B"),
    ("The answer is C", "C"), ("The correct option: D", "D"), ("answer is (A", "A"), ("A metal sinks", None),
    ("Because", None), ("", None), ("the answer is Because", None), ("b", None),
    # the article and the choice
    ("A because it floats", "A"), ("A is correct", "A"), ("A seems right", "A"), ("A as it floats", "A"),
    ("A and nothing else", "A"), ("A.", "A"), ("A) a metal", "A"), ("A: wood", "A"), ("A - wood", "A"),
    ("(A) metal", "A"), ("A Wood", "A"), ("**A** metal", "A"), ("A\nmetal", "A"),
    ("A good answer would be C", "C"), ("A metal that sinks", None), ("A can of paint", None), ("A must", None),
    ("A means of transport", None), ("A island", None), ("A isolated metal", None), ("A-frame houses", None),
    ("A's weight", None), ("The answer is A metal", None), ("The answer is A because it floats", "A"),
    # the speaker and the choice
    ("I", "I"), ("I.", "I"), ("I: iron", "I"), ("I is correct", "I"), ("I because it floats", "I"),
    ("I think wood", None), ("I would say wood", None), ("I was told wood", None), ("I'd say wood", None),
    ("I’d say wood", None), ("I'm not sure", None), ("I think the answer is B", "B"), ("I'd choose option D", "D"),
    ("The answer is I think wood", None),
    # two letters are no answer
    ("A and B", None), ("Both A and B", None), ("**A** or **C**", None), ("The answer is B or C", None),
    ("Option A and option B", None), ("A or B, but the answer is C", "C"), ("A and Boron", "A"), ("B or so", "B"),
    # letters of words
    ("X-ray", None), ("D-day", None), ("T's", None), ("'B'", "B"), ("B - iron", "B"), ("Answer: **C**", "C"),
    ("the answer should be D", "D"), ("the answer is not A", None),
    # in the second line, and with a sentence before it
    ("The answer is:\nB", "B"), ("The answer is:\n\nB. iron", "B"), ("\n\nB", "B"), ("Sure!\n\n**B**", "B"),
    ("Iron floats.\nB", "B"), ("The best answer is\n**C**: iron", "C"), ("A metal\nB", "B"),
    # marks around it
    (r"\boxed{B}", "B"), (r"So it is $\boxed{\text{B}}$.", "B"), (r"\boxed{(B)}", "B"), (r"\boxed{B. iron}", "B"),
    ("Answer: (B)", "B"), ("**Answer:** B", "B"), ("**Answer**: B", "B"), ("<answer>B</answer>", "B"), ("B.", "B"),
    ("**B. iron**", "B"), ("The correct answer is B) iron", "B"), ("The correct letter is D", "D"),
    # the choices once more
    ("A\nB\nC\nD", None), ("A. wood\nB. iron", None), ("A. wood\nB", None), ("B\nA. wood\nB. iron", "B"),
    ("A. wood\nB. iron\nThe answer is B", "B"),
    # several answers, a denied one, none
    ("A\nThe answer is B", None), ("The answer is A. No, the answer is B", None), ("B\nC\nB", None),
    ("A, B and C", None), ("A, C", None), ("B, because it floats", "B"), ("A is wrong", None), ("(A) cannot be", None),
    ("Option A is incorrect", None), ("I cannot answer that.", None), ("None of the above", None), ("iron", None),
    # the next question is not the model's answer
    ("B\n\nQuestion: Which sinks?\nAnswer: C", "B")])
def test_the_letter_of_an_answer(text: str, letter: str | None) -> None:
    assert read_letter(text, "ABCDEFGHIJ") == letter
    if letter != "I":
        assert read_letter(text, "ABCD") == letter


@pytest.mark.parametrize("long", [
    "The answer is" + "**" * 30_000 + " x", "answer" + "*_" * 30_000 + "x", "B" + "\n* " * 30_000 + "x",
    r"\boxed{" + " " * 60_000 + "x", "A " + "*" * 30_000 + " and" + "* (" * 20_000 + "x"])
def test_a_long_run_of_marks_is_read_once(long: str) -> None:
    """In time that grows with its length: with its square, each of these would take a minute or more."""
    started = time.process_time()
    read_letter(long, "ABCD")
    assert time.process_time() - started < 5


@pytest.mark.parametrize("text", ["E", "E. gold", "The answer is E", r"\boxed{E}"])
def test_a_letter_without_a_choice_is_no_answer(text: str) -> None:
    assert read_letter(text, "ABCD") is None
    assert read_letter(text, "ABCDE") == "E"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    file = tmp_path / "docs.jsonl"
    file.write_text("".join(json.dumps({"question": f"Which is {n}?", "answer": n % 3}) + "\n" for n in range(6)))
    write_task(tmp_path / "tasks", "pick", "multiple_choice", file,
               'doc_to_choice: ["none", "one", "two"]\nmetric_list: [{metric: acc}]')
    write_task(tmp_path / "tasks", "write", "generate_until", file, "metric_list: [{metric: exact_match}]")
    return tmp_path


def test_a_task_by_letter(home: Path) -> None:
    task, = load([TaskSpec(name="pick", letters=True, limit=4)], LoadOptions(include_path=home / "tasks"))
    assert (task.settings.task, task.settings.output_type, task.settings.n) == ("pick_letters", "generate_until", 4)
    assert task.settings.chance == pytest.approx(1 / 3)
    assert str(task.settings.primary) == "exact_match,letter"
    assert task.requests[1].context == "Which is 1?\nA. none\nB. one\nC. two\nAnswer:"
    assert [item.asked.reference for item in task.items if item.asked] == ["A", "B", "C", "A"]
    whole, = load([TaskSpec(name="pick")], LoadOptions(include_path=home / "tasks"))
    assert not {i.hash for i in whole.items} & {i.hash for i in task.items}


def test_a_sample_has_the_same_items_as_the_task_itself(home: Path) -> None:
    specs = [TaskSpec(name="pick", sample=3, sample_seed=5, letters=letters) for letters in (False, True)]
    plain, by_letter = (load([spec], LoadOptions(include_path=home / "tasks"))[0] for spec in specs)
    assert [i.index for i in plain.items] == [i.index for i in by_letter.items]


def test_texts_have_no_letters(home: Path) -> None:
    with pytest.raises(TaskError, match="task 'write' is no multiple choice, so it cannot be asked by letter"):
        load([TaskSpec(name="write", letters=True)], LoadOptions(include_path=home / "tasks"))


def test_an_evaluation_by_letter_is_stored_beside_the_other(home: Path) -> None:
    base = byte_folder(home / "base")
    with Ledger(home / "ledger.db") as ledger:
        both = evaluate(str(base), [TaskSpec(name="pick"), TaskSpec(name="pick", letters=True)], ledger=ledger,
                        include_path=home / "tasks", dtype="float32")
    assert [t.task for t in both.tasks] == ["pick", "pick_letters"]
    assert {s.task for s in both.scores} == {"pick", "pick_letters"}


@pytest.mark.slow
def test_real_benchmarks_by_letter() -> None:
    specs = [TaskSpec(name=name, letters=True, limit=2)
             for name in ("arc_easy", "hellaswag", "winogrande", "mmlu_high_school_computer_science")]
    tasks = {t.settings.task: t for t in load(specs, LoadOptions(source="pack"))}
    arc = tasks["arc_easy_letters"].requests[0].context
    assert re.fullmatch(r"Question: .*\nA\. .*\nB\. .*\nC\. .*\nD\. .*\nAnswer:", arc, flags=re.S)
    assert tasks["hellaswag_letters"].settings.cluster == "cluster"
    assert tasks["hellaswag_letters"].items[0].cluster
    assert "Which sentence is right?" in tasks["winogrande_letters"].requests[0].context
    mmlu = tasks["mmlu_high_school_computer_science_letters"].requests[0].context
    assert mmlu.count("\nA. ") == 1
