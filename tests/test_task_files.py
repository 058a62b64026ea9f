"""Task files and data with mistakes: one line that names the file and the field, line, column or split."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from aftertune.errors import TaskError
from aftertune.sources import limits
from aftertune.study import TaskSpec
from aftertune.tasks import LoadOptions, load, score_responses
from aftertune.values import Response
from cli_cases import call, settle
from eval_cases import byte_folder

CHOICE: dict[str, Any] = {
    "task": "own", "dataset_path": "json", "output_type": "multiple_choice", "test_split": "test",
    "doc_to_text": "{{q}}", "doc_to_choice": "choices", "doc_to_target": "gold", "metric_list": [{"metric": "acc"}]}
TEXT: dict[str, Any] = {**CHOICE, "output_type": "generate_until", "doc_to_choice": None, "doc_to_target": "{{q}}",
                        "metric_list": [{"metric": "exact_match"}]}
ROWS = [{"q": f"item {i}", "choices": ["a", "b"], "gold": i % 2} for i in range(4)]


def folder_with(root: Path, config: dict[str, Any] | str, data: str | None = None) -> Path:
    folder = root / "tasks"
    folder.mkdir()
    (root / "rows.jsonl").write_text(data if data is not None else "".join(json.dumps(r) + "\n" for r in ROWS))
    if isinstance(config, dict):
        source = {"dataset_kwargs": {"data_files": {"test": str(root / "rows.jsonl")}, "cache_dir": str(root / "c")}}
        config = yaml.safe_dump({**source, **config})
    (folder / "own.yaml").write_text(config)
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(TaskError) as caught:
        load((TaskSpec(name="own"),), LoadOptions(include_path=folder, source="hub"))
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 1000
    return text


#: Changed fields -> what the message must say.
FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"metric_list": []}, "metric_list is empty"),
    ({"metric_list": [{"metric": "acuracy"}]}, "metric 'acuracy' is none of lm-eval's"),
    ({"metric_list": [{"metric": "acc", "aggregation": "meen"}]}, "aggregation is 'meen'"),
    ({"metric_list": "acc"}, "metric_list is 'acc'; allowed: a list"),
    ({"output_type": "choice"}, "output_type is 'choice'"),
    ({"doc_to_txt": "q"}, "unknown field 'doc_to_txt' (did you mean 'doc_to_text'"),
    ({"doc_to_text": None}, "doc_to_text is missing"),
    ({"doc_to_choice": None}, "doc_to_choice is missing"),
    ({"doc_to_choice": ["a", ""]}, "doc_to_choice is a list of 2"),
    ({"test_split": None}, "neither test_split nor validation_split"),
    ({"test_split": ["test"]}, "test_split is a list of 1; allowed: text"),
    ({"num_fewshot": "two"}, "num_fewshot is 'two'; allowed: a number"),
    ({"repeats": 0}, "repeats is 0; allowed: 1 to 1000"),
    ({"fewshot_config": {"sampler": "random"}}, "fewshot_config: sampler is 'random'"),
    ({"fewshot_config": {"shots": 3}}, "unknown field 'shots'"),
    ({"generation_kwargs": {"until": 5}}, "generation_kwargs: until is 5"),
    ({"filter_list": [{"name": "x", "filter": [{"function": "rexeg"}]}]}, "function is 'rexeg'"),
    ({"filter_list": [{"name": "x", "filter": [{"function": "regex", "regex_pattern": "("}]}]}, "regex_pattern is '('"),
    ({"filter_list": -1}, "filter_list is -1"),
    ({"dataset_path": None}, "dataset_path is missing"),
    ({"dataset_path": "jsn"}, "for local files, set dataset_path to one of json, csv"),
    ({"dataset_kwargs": {"data_files": {"test": "nowhere.jsonl"}}}, "nowhere.jsonl: no such file (data_files, split"),
    ({"dataset_kwargs": {}}, "names no data_files"),
    ({"test_split": "validation"}, "the data have no split 'validation'; data_files has: test"),
    ({"doc_to_text": "{{question}}"}, "'question' is undefined; the data have the columns q, choices, gold"),
    ({"doc_to_text": "{% for %}"}, "TemplateSyntaxError"),
    ({"doc_to_text": "{{ q.__class__ }}"}, "SecurityError"),
    ({"gen_prefix": "{{nope}}"}, "its prompts cannot be built: UndefinedError: 'nope' is undefined; the data have"),
]


@pytest.mark.parametrize(("change", "said"), FIELDS, ids=lambda v: v if isinstance(v, str) else "")
def test_a_mistake_in_a_task_file_is_reported_in_one_line(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    text = refused(folder_with(tmp_path, {**CHOICE, **change}))
    assert said in text
    assert "the Hub cannot be reached" not in text, "local data do not come from the Hub"


#: Content of the data file -> what the message must say after its name.
DATA = {
    '{"q": "a", "choices": ["a"], "gold": 0}\n{"q": "b", "choi\n': ":2: not valid JSON",
    '{"q": "a"}\n5\n': ":2: a number, where an object is needed", "": ": the file has no rows",
    '{"q": "a", "gold": 0}\n\n{"q": ["b"], "gold": 0}\n': ":3: column 'q' is a list here, and text in line 1"}


@pytest.mark.parametrize("content", DATA, ids=DATA.values())
def test_a_fault_in_the_data_is_reported_with_its_line(content: str, tmp_path: Path) -> None:
    text = refused(folder_with(tmp_path, CHOICE, content))
    assert f"rows.jsonl{DATA[content]}" in text
    assert "Hub" not in text


@pytest.mark.parametrize(("text", "said"), [
    ("task: own\na: [", "not valid YAML"), ("task: own\na: &a [*a]\nnope: 1\n", "unknown field"),
    ("- " * 50_000, "cannot be read"), ("task: own\ninclude: gone.yaml", "gone.yaml, which does not exist"),
    ("task: [own]", "must be names"), ("task: 5\ntag: own2", "must be names"),
    ("task: own\nx: !foo 3", "not valid YAML"),
    ("group: own\ntask: 5", "task is 5; allowed: a list of tasks"), ("group: own\ntask: [5]", "a member is 5"),
    ("task: own\ninclude: own.yaml", "Include cycle"), ("\x00", "not valid YAML")])
def test_a_file_that_is_no_task_file_is_reported(text: str, said: str, tmp_path: Path) -> None:
    assert said in refused(folder_with(tmp_path, text))


def test_a_merge_key_of_aliases_of_aliases_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line merges the keys of all lines before it, so the time grows with the square of the file."""
    chain = ["a0: &a0 {x0: 1}"] + [f"a{i}: &a{i} {{<<: *a{i - 1}, x{i}: 1}}" for i in range(1, 3_000)]
    monkeypatch.setattr("aftertune.tasks.task_files.READ_TIMEOUT", 0.05)
    text = refused(folder_with(tmp_path, "\n".join(chain) + "\ntask: own\n"))
    assert "own.yaml: the task file takes more than 0.05 s or 256 MB to read; write it without aliases" in text


@pytest.mark.parametrize("template", [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% set n = namespace(s='aaaaaaaaaa') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "{{ 'a' * 10**12 }}", "{{ q.ljust(30000000) }}"])
def test_a_template_has_limits(template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aftertune.sources.limits.RENDER_TIMEOUT", 1.0)
    start = time.monotonic()
    text = refused(folder_with(tmp_path, {**CHOICE, "doc_to_text": template}))
    assert any(said in text for said in ("takes more than 1 s", "needs more than 512 MB", "30,000,000 characters"))
    assert time.monotonic() - start < 60


def test_what_a_metric_raises_is_reported(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {**TEXT, "doc_to_target": "{{q}}", "metric_list": [{"metric": "f1"}],
                                    "filter_list": [{"name": "x", "filter": [{"function": "take_first_k", "k": 9}]}]})
    (loaded,) = load((TaskSpec(name="own"),), LoadOptions(include_path=folder, source="hub"))
    responses = {r.position: Response(text="a", tokens=1, finish="stop") for r in loaded.requests}
    with pytest.raises(TaskError, match="task 'own': its answers cannot be scored"):
        score_responses([loaded], responses)


LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}" \
        "{% endfor %}"
DOUBLED = "{% set n = namespace(s='aaaaaaaaaa') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}" \
          "{{ n.s }}"


@pytest.mark.parametrize("template", [LOOPS, DOUBLED], ids=["loops", "doubled"])
@pytest.mark.parametrize("words", ["eval byte --tasks arc_easy,openbookqa --limit 2 --apply-chat-template",
                                   "tune byte --data rows.jsonl --preview"])
def test_a_chat_template_has_limits(template: str, words: str, tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    byte_folder(tmp_path / "byte", template=template)
    rows = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settle(monkeypatch, tmp_path)
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(tmp_path / "l.db"))
    monkeypatch.setattr("aftertune.sources.limits.RENDER_TIMEOUT", 1.0)
    start = time.monotonic()
    assert call(monkeypatch, *words.split()) == 2
    error = capfd.readouterr().err
    assert any(said in error for said in ("it takes more than 1 s", "it needs more than 512 MB of memory"))
    assert "Traceback" not in error
    assert time.monotonic() - start < 60


def test_the_limits_leave_the_process_as_it_was() -> None:
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)
    with pytest.raises(limits.TemplateLimit, match="512 MB"):
        limits.limited("x", lambda: "a" * 10**11)
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)) == before
    assert limits.limited("x", lambda: "text") == "text"
