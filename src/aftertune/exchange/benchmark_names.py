"""Reads the names that documents give to benchmarks and metrics.

    read_task("AI2 Reasoning Challenge (25-Shot)")     TaskName(task="arc_challenge", metric="acc_norm", …, known=True)
    read_task("leaderboard:gsm8k:5").task              "gsm8k"
    read_metric("acc_norm_stderr,none")                MetricName(metric="acc_norm", filter="none", error=True, …)
    is_benchmark("Alpha 8B")                           False: so a column with this head may be a model

The catalog has the benchmarks whose number of items is known. Of others only the name is known here, which is enough to
tell a column of scores from one of settings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from aftertune import catalog
from aftertune.catalog import NO_FILTER, MetricKey


def compact(words: str) -> str:
    """Words in lower case, letters and digits alone (of any script)."""
    return "".join(c for c in words.lower() if c.isalnum())


#: Benchmarks that are not in the catalog, in lower case without spaces and marks.
_OTHERS = frozenset((
    "acpbench", "afqmc", "agieval", "agievalen", "ai2d", "aime", "aime24", "aime25", "aime2024", "aime2025",
    "alpacaeval", "alpacaeval2", "alpacaeval20", "amc", "amc23", "anli", "anlir1", "anlir2", "anlir3", "apibank",
    "arc", "arceasychallenge", "arenahard", "arithmetic", "asdiv", "asserteval", "average4", "bbh", "bbq",
    "belebele", "bfcl", "bigbench", "bigbenchhard", "bigcodebench", "blimp", "bustm", "c3", "c4", "cb", "ceval",
    "cevalval", "cevalvalid", "chartqa", "chid", "cluewsc", "cmath", "cmmlu", "cmnli", "cmrc", "cnndm", "cola",
    "commonsenseqa", "copa", "coqa", "crowspairs", "cruxeval", "csl", "csqa", "docvqa", "drop", "ds1000", "ethics",
    "evalplus", "flores", "flores101", "flores200", "gaokao", "gaokaobench", "gpt4all", "global_mmlu", "glue", "gpqa",
    "gpqacot", "gpqadiamond", "gpqaextended", "gpqamain", "gsm", "gsm8kcot", "gsm8kplatinum", "gsmplus", "haerae",
    "headqa", "hendrycksmath", "hle", "hotpotqa", "humaneval", "humanevalplus", "humanevalx", "humanevalfix",
    "humanitieslastexam", "ifbench", "ifeval", "infinitebench", "jcommonsenseqa", "jmmlu", "kmmlu", "kobest",
    "lambada", "lambadaopenai", "lambadastandard", "livebench", "livecodebench", "logiqa", "logiqa2", "longbench",
    "math", "math500", "mathhard", "mathlvl5", "mathlevel5", "mathqa", "mathvista", "mbpp", "mbppplus", "mc_taco",
    "medmcqa", "medqa", "medqa4options", "mgsm", "minervamath", "mmbench", "mmlupro", "mmluprox", "mmluredux",
    "mmlustem", "mmmlu", "mmmu", "mmstar", "mmvet", "mnli", "mnlim", "mrpc", "mtbench", "multipl", "multiple",
    "multirc", "musr", "mutual", "naturalquestions", "needleinahaystack", "niah", "nq", "nqopen", "ocnli",
    "ocrbench", "olympiadbench", "pawsx", "paws", "pile", "prost", "ptb", "pubmedqa", "qasper", "qnli", "qqp",
    "quac", "race", "raceh", "racem", "racehigh", "racemiddle", "realtoxicity", "record", "rte", "ruler",
    "scienceqa", "simpleqa", "siqa", "snli", "socialiqa", "sst", "sst2", "stemmmlu", "storycloze", "stsb",
    "superglue", "svamp", "swag", "swebench", "swebenchverified", "taubench", "tau2bench", "textvqa", "theoremqa",
    "tldr", "tldr9", "tmmluplus", "tmlu", "tnews", "toxigen", "triviaqa", "truthfulqa", "truthfulqamc",
    "truthfulqamc1", "truthfulqamc2", "truthfulqagen", "turkishmmlu", "vqav2", "webqs", "webquestions", "wic",
    "wikitext", "wikitext2", "wikitext103", "wildbench", "wiki2", "winogender", "winobias", "wnli", "wsc", "wsc273",
    "xcopa", "xlsum", "xlwic", "xnli", "xquad", "xstorycloze", "xwinograd", "zebralogic", "zeroscrolls"))
#: Starts of names of versions, languages and parts of a benchmark.
_FAMILIES = (
    *(compact(name) for name, row in catalog.BENCHMARKS.items() if row.scored and not row.family),
    "mmmlu", "globalmmlu", "truthfulqa", "agieval", "bigbench", "bbh", "hendryckstest", "tinybench", "tinyarc",
    "tinygsm8k", "tinyhellaswag", "tinymmlu", "tinytruthfulqa", "tinywinogrande", "leaderboardbbh",
    "leaderboardgpqa", "leaderboardifeval", "leaderboardmath", "leaderboardmmlu", "leaderboardmusr", "ceval",
    "cmmlu", "gpqa", "anlir", "lambada", "xnli", "xcopa", "xwinograd", "xstorycloze", "blimp", "humaneval", "mbpp",
    "mgsm", "belebele", "ifeval", "livecodebench", "longbench", "minervamath", "hendrycksmath", "musr",
    "commonsenseqa", "wikitext", "flores", "paws", "triviaqa")
#: Benchmarks that are measured by perplexity, and those with a scale of their own.
_PERPLEXITY = frozenset((
    "wikitext", "wikitext2", "wikitext103", "wiki2", "ptb", "c4", "pile"))
_MARKS = frozenset((
    "mtbench", "mmvet", "ocrbench", "flores101", "flores200", "flores", "tldr", "xlsum", "cnndm"))
#: Suites under which lighteval and the Open LLM Leaderboard list their tasks.
_SUITES = frozenset((
    "leaderboard", "lighteval", "harness", "helm", "original", "community", "extended", "custom"))
_MEAN_OF = re.compile(r"(?i)(?:(?:macro|micro|overall)[ -]{1,2})?(?:avg\.?|averages?|means?)\s{1,3}(?:score\s{1,3})?"
                      r"(?:of|over|across)\s{1,3}(?:(?:the|all|these|our|\d{1,4})\s{1,3}){0,3}(?:tasks|benchmarks|"
                      r"evals|evaluations|datasets|data sets|scores|subjects|metrics)")
_MEANS = frozenset((
    "avg", "average", "averages", "mean", "means", "overall", "total", "all", "macroavg", "microavg", "averagescore",
    "meanscore", "overallaverage", "geomean", "平均", "promedio", "moyenne", "durchschnitt", "averageaccuracy",
    "avgscore", "avgacc", "accavg", "totalaverage", "summary"))
_SHOTS = re.compile(r"(?i)[\s,;_@/-]{0,3}\b(?:\d{1,3}|zero|one|few|five|ten)[\s_-]?shots?\b")
_BRACKET = re.compile(r"[(\[（]([^()\[\]（）]{0,80})[)\]）]")
_N = re.compile(r"(?i)\bn\s?=\s?([\d,]{1,12})")


@dataclass(frozen=True, slots=True)
class TaskName:
    """A benchmark as a document names it.

    task: lm-eval's name if it is known, else the document's. metric, filter: if the name says them or the benchmark
    has only one; "" else. known: the name is one of a benchmark.
    """

    task: str
    metric: str = ""
    filter: str = NO_FILTER
    known: bool = False


@dataclass(frozen=True, slots=True)
class MetricName:
    """A metric as a document names it. n: the number of items beside it; error: it is the metric's standard error."""

    metric: str
    filter: str = NO_FILTER
    n: int | None = None
    known: bool = False
    error: bool = False


def is_mean(words: str) -> bool:
    """True for a name such as Average or "Mean over 6 tasks", which stands for several benchmarks."""
    bare = _SHOTS.sub("", _BRACKET.sub("", words))
    return compact(bare) in _MEANS or _MEAN_OF.fullmatch(bare.strip(" *_:")) is not None


def is_shots(words: str) -> bool:
    """True for a number of examples alone: "5-shot"."""
    return _SHOTS.fullmatch(words.strip(" ()")) is not None


def is_benchmark(words: str) -> bool:
    """True where ``words`` is a name of a known benchmark."""
    return read_task(words).known


def read_task(words: str) -> TaskName:
    """The benchmark that a document calls ``words``."""
    words = " ".join(words.split())
    suite = _suite_task(words)
    inside = " ".join(_BRACKET.findall(suite))
    outside = _BRACKET.sub(" ", suite)
    bare = _SHOTS.sub("", outside).strip(" -–:,;*_")
    beside = MetricName("")
    for mark in ("/", ",", " "):  # "arc_challenge/acc_norm", "HellaSwag, acc_norm", "hellaswag acc"
        left, _, right = bare.rpartition(mark)
        if left.strip() and right.strip() and read_metric(right).known:
            bare, beside = left.strip(" -–:,;"), read_metric(right)
            break
    behind = outside[outside.find(",") + 1:] if "," in outside else ""
    for part in re.split(r"[,;\s]+", f"{inside} {behind}"):
        if not beside.metric and part and (metric := read_metric(part)).known:
            beside = metric
    return _named(bare, beside, words)


def _named(bare: str, beside: MetricName, words: str) -> TaskName:
    """The benchmark of a name without brackets and numbers of examples. words: the whole name."""
    short = compact(bare)
    task = catalog.task_named(bare)
    lower = words.lower()
    if task in catalog.BENCHMARKS and catalog.hub_items(task) is not None:
        metric = "exact_match" if catalog.BENCHMARKS[task].choices is None else ""
        if _leaderboard(task, lower):
            metric = "acc_norm"
        name = TaskName(task, metric, known=True)
    elif short == "arc" and "25" in lower and "shot" in lower:
        name = TaskName("arc_challenge", "acc_norm", known=True)
    elif short.startswith("truthfulqa") or short == "tqa":
        kind = next((k for k in ("mc1", "mc2", "gen") if k in compact(words)), "")
        name = TaskName(f"truthfulqa_{kind}" if kind else "truthfulqa_mc" if short.endswith("mc") else "truthfulqa",
                        known=short != "tqa")
        if short == "truthfulqa" and not kind and ("0-shot" in lower or "0 shot" in lower):
            # on the Open LLM Leaderboard it is mc2
            name = replace(name, task="truthfulqa_mc2")
    else:
        known = short in _OTHERS or short.startswith(_FAMILIES) or \
            (len(short) > 4 and short.endswith(("qa", "bench")))
        name = TaskName(bare if known and bare else words, known=known)
        if short in _PERPLEXITY or short.endswith(("ppl", "perplexity")):
            name = replace(name, metric="perplexity")
        elif short in _MARKS:
            name = replace(name, metric="rating")
    return replace(name, metric=beside.metric, filter=beside.filter) if beside.metric else name


def _leaderboard(task: str, lower: str) -> bool:
    """True for the two tasks of the Open LLM Leaderboard that it scores by normalised accuracy."""
    shots = catalog.LEADERBOARD_SHOTS.get(task)
    return shots is not None and (f"{shots}-shot" in lower or f"{shots} shot" in lower)


def _suite_task(words: str) -> str:
    """A task of lighteval without its suite and number of examples: "leaderboard|arc:challenge|25"."""
    if " " in words or not (":" in words or "|" in words):
        return words
    parts = [p for p in re.split(r"[:|]", words) if p]
    if parts and parts[0].lower() in _SUITES:
        parts = parts[1:]
    while len(parts) > 1 and parts[-1].isdigit():
        parts = parts[:-1]
    return "_".join(parts) if parts else words


def read_metric(words: str) -> MetricName:
    """The metric that a document calls ``words``; unknown words are returned unchanged."""
    words = " ".join(words.split())
    n = _N.search(words)
    items = int(digits) if n and (digits := n[1].replace(",", "")) else None
    key = MetricKey(words)
    if "," in words and " " not in words and key.metric:  # as lm-eval writes it: "acc,none"
        error = key.metric.endswith("_stderr")
        return MetricName(key.metric.removesuffix("_stderr"), key.filter, items, known=True, error=error)
    bare = _SHOTS.sub("", _BRACKET.sub(" ", words)).strip(" ,;:-–↑↓%*")
    error = bare.endswith("_stderr")
    bare = bare.removesuffix("_stderr")
    found = catalog.METRIC_WORDS.get(compact(bare))
    if found is None and catalog.is_metric(bare):
        found = catalog.metric_named(bare)
    if found is None:
        return MetricName(bare or words, NO_FILTER, items, known=False, error=error)
    return MetricName(found[0], found[1] or NO_FILTER, items, known=True, error=error)
