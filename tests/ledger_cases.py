"""Owns the values that the ledger's tests store: one small evaluation, and anything hypothesis draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from aftertune.values import (
    Answer,
    Comparison,
    ComparisonRow,
    Difference,
    Evaluation,
    HeldOut,
    Item,
    ModelIdentity,
    Provenance,
    Response,
    Score,
    TaskSettings,
    Tuning,
    digest,
)

MODEL = ModelIdentity(source="package:llm/model.gguf", weights="w" * 64, config="c" * 64, tokenizer="t" * 64,
                      architecture="LlamaForCausalLM", parameters=134_515_008)


def settings(task: str = "arc_easy", n: int = 6) -> TaskSettings:
    return TaskSettings(task=task, version="1.0", output_type="multiple_choice", num_fewshot=0, n=n,
                        n_total=570, split="validation", data="pack:olmo", items=digest(n),
                        prompts=digest([n]), primary="acc_norm,none", chance=0.25,
                        higher_is_better={"acc": True, "acc_norm": True})


def evaluation(id: str = "e1", name: str = "base", **changes: Any) -> Evaluation:
    value = Evaluation(id=id, name=name, model=MODEL, tasks=(settings(),), device="cpu", dtype="float32",
                       engine="packed",
                       provenance=Provenance(command="aftertune eval x", started="2026-01-01"))
    return dataclasses.replace(value, **changes)


def items(task: str = "arc_easy", n: int = 6) -> list[Item]:
    """Items in an order of their own (a sample's), with a cluster."""
    return [Item(task=task, index=i, hash=digest([task, i]), cluster=f"g{i % 2}",
                 doc={"question": f"{task} {i}?", "choices": ["a", "b"]}) for i in range(n - 1, -1, -1)]


def responses(n: int = 12) -> dict[int, Response]:
    return {p: Response(logprob=-(p + 1) / 7, greedy=p % 3 == 0, truncated=p % 2) for p in range(n)}


def answered(asked: Sequence[Item], given: dict[int, Response]) -> tuple[list[Answer], list[list[int]]]:
    """Two responses an item, in order of the items."""
    positions = [[2 * k, 2 * k + 1] for k in range(len(asked))]
    answers = [Answer(task=i.task, index=i.index, item=i.hash, metrics={"acc,none": float(k % 2)},
                      cluster=i.cluster, responses=tuple(given[q] for q in p),
                      extracted={"none": f"answer {k}"})
               for k, (i, p) in enumerate(zip(asked, positions, strict=True))]
    return answers, positions


def scores() -> tuple[Score, ...]:
    return (Score(task="arc_easy", metric="acc", filter="none", value=0.5, stderr=0.1 + 0.2, n=6),
            Score(task="arc_easy", metric="acc_norm", filter="none", value=1 / 3, stderr=None, n=6,
                  primary=True))


def tuning(id: str = "t1", name: str = "careful", **changes: Any) -> Tuning:
    value = Tuning(id=id, name=name, base=MODEL, method="lora", data="d" * 64, data_source="orders.jsonl",
                   examples=600, seed=0, settings={"lora": {"r": 16}, "learning_rate": 2e-4}, output="out")
    return dataclasses.replace(value, **changes)


# What hypothesis draws: any text that Python holds (NUL, emoji, lone surrogates), any float but NaN.
text = st.text(st.characters(), max_size=12) | st.sampled_from(["\x00", "\x1a0000", "a\ud800b", "é𝄞", "\x1a"])
number = st.floats(allow_nan=False, allow_infinity=True)
finite = st.floats(allow_nan=False, allow_infinity=False)
count = st.integers(0, 2**31 - 1)
json_value = st.recursive(st.none() | st.booleans() | st.integers() | finite | text,
                          lambda part: st.lists(part, max_size=3) | st.dictionaries(text, part, max_size=3),
                          max_leaves=6)
mapping = st.dictionaries(text, json_value, max_size=3)
floats = st.dictionaries(text, number, max_size=3)

models = st.builds(ModelIdentity, source=text, weights=st.text("0123456789abcdef", min_size=1),
                   config=st.just("c"), tokenizer=st.just("t"), adapter=st.none() | st.just("a" * 64),
                   architecture=st.just("Llama"),
                   adapter_source=st.none() | st.just("out"),
                   parameters=st.none() | st.integers(0, 2**40), revision=st.none() | st.just("main"),
                   trust_remote_code=st.booleans())
provenances = st.none() | st.builds(Provenance, command=text, started=text, seconds=st.none() | finite,
                                    versions=st.dictionaries(text, text, max_size=2), hardware=mapping,
                                    dirty=st.none() | st.booleans())
task_settings = st.builds(TaskSettings, task=text, version=text, output_type=text, num_fewshot=count, n=count,
                          n_total=count, split=text, data=text, items=text, prompts=text, primary=text,
                          higher_is_better=st.dictionaries(text, st.booleans(), max_size=2),
                          limit=st.none() | count, generation=mapping, chance=st.none() | finite,
                          groups=st.tuples(text) | st.just(()), target=st.booleans())
score_values = st.builds(Score, task=text, metric=text.filter(lambda t: t.isprintable()),
                         filter=st.just("none"), value=number, stderr=st.none() | number, n=count,
                         higher_is_better=st.booleans(), primary=st.booleans(), group=st.booleans())
any_response = st.builds(Response, logprob=st.none() | number, greedy=st.none() | st.booleans(),
                         text=st.none() | text, tokens=st.none() | count,
                         finish=st.sampled_from([None, "stop", "eos", "length"]), truncated=count)
held_out = st.builds(HeldOut, n=count, before=finite, after=finite, low=finite, high=finite)
any_tuning = st.builds(Tuning, id=st.just(""), name=text, base=models, method=text, data=text,
                       data_source=text, examples=count, seed=count, settings=mapping, output=text,
                       status=st.just("done"), result=st.none() | st.just("f" * 64),
                       trainable_parameters=st.none() | st.integers(0, 2**40), held_out=st.none() | held_out,
                       steps=st.lists(floats, max_size=3).map(tuple),
                       notes=st.lists(text, max_size=2).map(tuple), provenance=provenances)
any_evaluation = st.builds(Evaluation, id=st.just(""), name=text, model=models,
                           tasks=st.lists(task_settings, max_size=2).map(tuple), device=text, dtype=text,
                           engine=text, engine_note=text, schedule=mapping, status=st.just("done"),
                           scores=st.lists(score_values, max_size=3).map(tuple),
                           warnings=st.lists(text, max_size=2).map(tuple), tuning=st.none() | st.just("t"),
                           provenance=provenances)
comparison_rows = st.builds(ComparisonRow, task=text, metric=text, filter=text, n=count, base=finite,
                            tuned=finite, delta=finite, low=finite, high=finite, margin=finite,
                            primary=st.booleans(), kind=st.sampled_from(["binary", "real"]),
                            p=st.none() | finite,
                            gained=st.none() | count, told=text, note=text,
                            verdict=st.sampled_from([None, "lower", "higher", "within", "undecided"]))
any_comparison = st.builds(Comparison, id=st.just(""), base=text, tuned=text, base_name=text,
                           tuned_name=text, lineage=st.booleans(),
                           rows=st.lists(comparison_rows, max_size=2).map(tuple),
                           differences=st.lists(st.builds(Difference, field=text, left=text, right=text,
                                                          blocking=st.booleans()), max_size=2).map(tuple),
                           forced=st.booleans(), held_out=st.none() | held_out)
