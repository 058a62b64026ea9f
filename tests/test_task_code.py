"""A task folder's code never runs without --allow-task-code, however a file names it. With it, it is recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aftertune.errors import TaskError
from aftertune.study import TaskSpec
from aftertune.tasks import LoadedTask, LoadOptions, load

PLAIN = """task: own_x
dataset_path: json
dataset_kwargs: {data_files: {test: "ROWS"}, cache_dir: "FOLDER/cache"}
output_type: generate_until
test_split: test
doc_to_text: "Q: {{q}} A:"
doc_to_target: "{{a}}"
generation_kwargs: {until: ["Z"], max_gen_toks: 5, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
#: Each writes the file ``ran`` when it is imported.
EVIL = "import pathlib\npathlib.Path(r'FOLDER/ran').write_text('x')\ndef f(*args, **kwargs):\n    return args[0]\n"
_METRIC = "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]"

#: How a task file names code -> what is added to the plain file, or replaced in it; other files of the folder.
WAYS: dict[str, dict[str, str]] = {
    "tag": {"own.yaml": PLAIN + "process_docs: !function evil.f\n"},
    "tag with an escape": {"own.yaml": PLAIN + "process_docs: !%66unction evil.f\n"},
    "another handle": {"own.yaml": "%TAG !e! !func\n---\n" + PLAIN + "process_docs: !e!tion evil.f\n"},
    "prompt": {"own.yaml": PLAIN.replace('doc_to_text: "Q: {{q}} A:"', "doc_to_text: !function evil.f")},
    "metric": {"own.yaml": PLAIN.replace("metric: exact_match", "metric: !function evil.f")},
    "aggregation": {"own.yaml": PLAIN.replace("aggregation: mean", "aggregation: !function evil.f")},
    "filter": {"own.yaml": PLAIN + "filter_list: [{name: x, filter: [{function: custom, filter_fn: !function evil.f}]}]"
               "\n"},
    "filter class": {"own.yaml": PLAIN + "filter_list: [{name: x, filter: [{function: !function evil.f}]}]\n"},
    "results": {"own.yaml": PLAIN + "process_results: !function evil.f\n"},
    "data": {"own.yaml": PLAIN + "custom_dataset: !function evil.f\n"},
    "examples": {"own.yaml": PLAIN + "fewshot_config: {samples: !function evil.f}\n"},
    "sampler": {"own.yaml": PLAIN + "fewshot_config: {sampler: !function evil.f}\n"},
    "metadata": {"own.yaml": PLAIN + "metadata: [{deep: [!function evil.f]}]\n"},
    "class": {"own.yaml": PLAIN + "class: !function evil.f\n"},
    "class by name": {"own.yaml": PLAIN + "class: evil.f\n"},
    "include": {"own.yaml": PLAIN + "include: hidden\n", "hidden": "process_docs: !function evil.f\n"},
    "include of an include": {"own.yaml": PLAIN + "include: [one]\n", "one": "include: hidden\n",
                              "hidden": "process_docs: !function evil.f\n"},
    "merge key": {"own.yaml": PLAIN + "<<: {include: hidden}\n", "hidden": "process_docs: !function evil.f\n"},
    "merge key with an alias": {"own.yaml": "metadata: &m {include: hidden}\n<<: *m\n" + PLAIN,
                                "hidden": "process_docs: !function evil.f\n"},
    "merge key with a list": {"own.yaml": PLAIN + "<<: [{metadata: {version: 1}}, {include: [hidden]}]\n",
                              "hidden": "process_docs: !function evil.f\n"},
    "quoted key": {"own.yaml": PLAIN + '"\\x69nclude": hidden\n', "hidden": "process_docs: !function evil.f\n"},
    "include outside": {"own.yaml": PLAIN + "include: ../outside\n", "../outside": "process_docs: !function evil.f\n",
                        "../evil.py": EVIL},
    "metric as a folder": {"own.yaml": PLAIN.replace("metric: exact_match", "metric: FOLDER/tasks/m"), "m/m.py": EVIL},
    "metric as a file": {"own.yaml": PLAIN.replace("metric: exact_match", "metric: FOLDER/tasks/evil.py")},
    "metric of the Hub": {"own.yaml": PLAIN.replace("metric: exact_match", "metric: someone/metric")},
    "hf_evaluate": {"own.yaml": PLAIN.replace("metric: exact_match", "metric: exact_match, hf_evaluate: true")},
    "script as data": {"own.yaml": PLAIN.replace("dataset_path: json", "dataset_path: FOLDER/tasks/evil.py")},
    "folder with a script": {"own.yaml": PLAIN.replace("dataset_path: json", "dataset_path: FOLDER/tasks")},
    "pickles": {"own.yaml": PLAIN.replace("dataset_path: json", "dataset_path: pandas")},
    "archives": {"own.yaml": PLAIN.replace("dataset_path: json", "dataset_path: webdataset")},
    "another file system": {"own.yaml": PLAIN.replace('"ROWS"', '"simplecache::ssh://host/rows.jsonl"')},
    "loader's option": {"own.yaml": PLAIN.replace("{data_files:", "{storage_options: {a: b}, data_files:")},
    "prompts of another program": {"own.yaml": PLAIN + 'use_prompt: "FOLDER/p.yaml:x"\n'},
    "custom generate": {"own.yaml": PLAIN.replace("do_sample: false", "do_sample: false, custom_generate: a/b")},
    "remote code in generate": {"own.yaml": PLAIN.replace("do_sample: false", "trust_remote_code: true")},
    "group": {"own.yaml": "group: own_x\ntask: [{task: inner, process_docs: !function evil.f}]\n"},
    "group with a task inside": {
        "own.yaml": "group: own_x\ntask:\n  - {task: inner, dataset_path: json, test_split: test, doc_to_text: q, "
                    "doc_to_target: a, dataset_kwargs: {data_files: {test: ROWS}}, metric_list: [{metric: "
                    "FOLDER/tasks/m}]}\n", "m/m.py": EVIL},
    "group that changes another task": {
        "own.yaml": "group: own_x\ntask: [{task: inner, metric_list: [{metric: FOLDER/tasks/m}]}]\n",
        "inner.yaml": PLAIN.replace("own_x", "inner"), "m/m.py": EVIL},
    "member of a group": {"own.yaml": "group: own_x\ntask: [inner]\n",
                          "inner.yaml": PLAIN.replace("own_x", "inner") + "process_docs: !function evil.f\n"},
    "member of a tag": {"inner.yaml": PLAIN.replace("own_x", "inner") + "tag: own_x\nprocess_docs: !function evil.f\n"},
    "Python tag": {"own.yaml": PLAIN + "metadata: !!python/object/apply:os.system ['touch FOLDER/ran']\n"},
    "template": {"own.yaml": PLAIN.replace("{{q}}", "{{ q.__class__.__mro__ }}")},
    "template of the answer": {"own.yaml": PLAIN.replace('"{{a}}"', '"{{ cycler.__init__.__globals__ }}"')},
}


def task_folder(root: Path, files: dict[str, str]) -> Path:
    folder = root / "tasks"
    folder.mkdir()
    (root / "rows.jsonl").write_text("".join(json.dumps({"q": f"q{i}", "a": "x"}) + "\n" for i in range(3)))
    for name, text in {"evil.py": EVIL, **files}.items():
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text.replace("ROWS", str(root / "rows.jsonl")).replace("FOLDER", str(root)))
    return folder


def one(folder: Path, **fields: Any) -> LoadedTask:
    [loaded] = load((TaskSpec(name="own_x"),), LoadOptions(include_path=folder, source="hub", **fields))
    return loaded


@pytest.mark.parametrize("way", WAYS)
def test_no_code_runs_without_the_flag(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = task_folder(tmp_path, WAYS[way])
    with pytest.raises(TaskError) as caught:
        one(folder)
    assert not (tmp_path / "ran").exists()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize("way", ["tag", "include", "merge key"])
def test_no_code_runs_where_the_user_gives_the_documents(way: str, tmp_path: Path) -> None:
    folder = task_folder(tmp_path, WAYS[way])
    with pytest.raises(TaskError, match="--allow-task-code"):
        load((TaskSpec(name="own_x", data=tmp_path / "rows.jsonl"),), LoadOptions(include_path=folder))
    assert not (tmp_path / "ran").exists()


def test_a_plain_task_file_is_used_beside_one_with_code(tmp_path: Path) -> None:
    code = PLAIN.replace("own_x", "other") + "process_docs: !function evil.f\n"
    loaded = one(task_folder(tmp_path, {"own.yaml": PLAIN, "other.yaml": code, "broken.yaml": "a: ["}))
    assert [r.context for r in loaded.requests] == ["Q: q0 A:", "Q: q1 A:", "Q: q2 A:"]
    assert loaded.settings.code == {}
    assert not (tmp_path / "ran").exists()


def test_what_the_flag_allowed_is_recorded(tmp_path: Path) -> None:
    import hashlib

    folder = task_folder(tmp_path, WAYS["merge key"])
    loaded = one(folder, allow_task_code=True)
    assert (tmp_path / "ran").exists()
    assert loaded.settings.code == {"evil.py": hashlib.sha256((folder / "evil.py").read_bytes()).hexdigest()}
    plain = one(task_folder_of(tmp_path / "plain", {"own.yaml": PLAIN}))
    assert "code" not in plain.settings.hashed()
    assert loaded.settings.hashed()["code"] == loaded.settings.code


def task_folder_of(root: Path, files: dict[str, str]) -> Path:
    root.mkdir()
    return task_folder(root, files)


def test_a_value_with_methods_that_write_is_closed_to_templates() -> None:
    from aftertune.tasks.task_templates import TaskEnvironment

    class Image:
        saved = ""

        def save(self, place: str) -> str:
            Image.saved = place
            return "done"

    template = TaskEnvironment().from_string("{{ image.save('x') }}")
    with pytest.raises(Exception, match="unsafe"):
        template.render(image=Image())
    assert Image.saved == ""
    assert TaskEnvironment().from_string("{{ q.strip().split('|')[0] ~ d.year }}").render(
        q=" a|b ", d=__import__("datetime").date(2024, 5, 1)) == "a2024"
