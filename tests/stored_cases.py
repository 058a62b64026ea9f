"""Builds the ledger and the values that `tests/data/ledger_6627cb2.sql`, its `.txt` and its `.json` hold.

Commit 6627cb2 wrote these files, with the functions of this module:

    python tests/stored_cases.py        run from the repository's root, prints nothing

The SQL file is the text of a whole ledger; the text file has one line per value read from it (``repr``, which tells a
whole number from a float and a tuple from a list). The JSON file is a fine-tune's ``aftertune.json``. Do not write them
anew: they prove that old data reads the same.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import select

import ledger_cases as cases
from aftertune import values
from aftertune.ledger import Ledger, schema
from aftertune.ledger.digests import seal
from aftertune.values import (
    Answer,
    Asked,
    Comparison,
    ComparisonRow,
    Difference,
    Early,
    EarlyUnit,
    Evaluation,
    FormCounts,
    FormShift,
    HeldOut,
    Item,
    Overlap,
    Provenance,
    Response,
    Score,
    Tuning,
    WatchPoint,
)

SQL = Path(__file__).parent / "data" / "ledger_6627cb2.sql"
VALUES = SQL.with_suffix(".txt")
MANIFEST = SQL.with_suffix(".json")
#: Rows that depend on the process that writes, tables that came later (digests with 0002, drift with 0003,
#: label with 0004) or were made anew (lease with 0005), and alembic's own table.
_CHANGING = ("CREATE TABLE lease", 'INSERT INTO "lease"', 'INSERT INTO "checksum"', "CREATE TABLE checksum",
             "CREATE TABLE drift", "CREATE INDEX ix_drift_", "CREATE TABLE label", 'INSERT INTO "label"',
             'INSERT INTO "alembic_version"', "CREATE TABLE alembic_version")

UNIT = EarlyUnit(name="arc_easy", key="acc,none", tasks=("arc_easy",), items=6, batch=2, order="o" * 64, used=4,
                 verdict="lower")
HELD_OUT = HeldOut(n=20, before=2.5, after=1.25, low=-1.5, high=-1.0)
ROW = ComparisonRow(task="arc_easy", metric="acc", filter="none", n=6, base=0.5, tuned=1 / 3, delta=-1 / 6, low=-0.5,
                    high=0.25, margin=0.02, primary=True, kind="binary", p=0.04, p_adjusted=0.08, gained=0, lost=1,
                    verdict="lower", told="forgot", stopped_of=6, details=("Tango -0.5 to 0.25",))


def evaluation() -> Evaluation:
    """A finished evaluation that uses every field."""
    return cases.evaluation(
        "e-full", "full", tuning="t-full", engine_note="packed: two real rows agree", status="done",
        tasks=(dataclasses.replace(cases.settings(), generation={"until": ["\n", "a\ud800b"], "temperature": 0},
                                   groups=("arc",), used=4, draw_seed=3, limit=None),
               dataclasses.replace(cases.settings("gsm8k", 2), chance=None, cluster="subject", target=True)),
        schedule={"budget": {"tokens": 4096, "backend": 0.5}, "halvings": [[1, 2], []], "note": "é𝄞\x00"},
        scores=(*cases.scores(), Score(task="gsm8k", metric="perplexity", filter="none", value=math.inf,
                                       stderr=math.inf, n=2, higher_is_better=False, group=True)),
        warnings=("a task was slow", "a\ud800b"),
        provenance=Provenance(command="aftertune eval x", started="2026-01-01T00:00:00+00:00", seconds=1.5,
                              versions={"torch": "2.13"}, hardware={"cpus": 2, "ram": 1e9, "gpu": None},
                              dirty=False),
        early=Early(against="e-other", seed=7, margins={"arc_easy": 0.02}, units=(UNIT,), max_width=0.1))


def items() -> list[Item]:
    """Items with what was asked, without it, and with a document of every JSON type."""
    first, *others = cases.items()
    asked = Asked(question="Which?", choices=("a", "b"), gold=(1,))
    document = {"n": [1, 1.0, None, True, {"deep": [[]]}], "a\ud800": "\x00\x1a", "big": 2**70, "inf": "inf"}
    return [dataclasses.replace(first, asked=asked), *others,
            Item(task="gsm8k", index=0, hash="h" * 64, doc=document, asked=Asked(reference="42")),
            Item(task="gsm8k", index=1, hash="h" * 64, doc={"n": 1e-7})]


def answers() -> tuple[list[Answer], list[list[int]]]:
    """Answers to the first four items of the stopped task and to both of the other, and their positions."""
    asked, given = items(), responses()
    some = [*asked[:4], *asked[6:]]
    positions = [[2 * k, 2 * k + 1] for k in range(len(some))]
    return [Answer(task=i.task, index=i.index, item=i.hash, cluster=i.cluster,
                   metrics={"acc,none": float(k % 2), "loss,none": math.nan if k else math.inf},
                   responses=tuple(given[q] for q in p), extracted={"none": f"a\ud800 {k}"})
            for k, (i, p) in enumerate(zip(some, positions, strict=True))], positions


def responses() -> dict[int, Response]:
    """Log-probabilities, an infinity, and generated texts."""
    written = Response(text="so 42\x00\ud800", tokens=9, finish="length", truncated=3)
    return {**cases.responses(), 11: Response(logprob=-math.inf, greedy=False), 12: written,
            13: dataclasses.replace(written, finish="eos"), 14: Response(logprob=0.1 + 0.2, greedy=True),
            15: Response()}


def tuning() -> Tuning:
    """A finished tuning that uses every field; some numbers are whole, and stay so."""
    return cases.tuning(
        "t-full", "careful", status="done", result="f" * 64, merged="g" * 64, trainable_parameters=460_800,
        settings={"lora": {"r": 16, "targets": ["q_proj"], "dropout": 0.0}, "learning_rate": 2e-4, "watch": None},
        held_out=HELD_OUT, steps=({"step": 1.0, "loss": 2.5}, {"step": 2, "loss": math.inf, "tokens": 512}),
        counts={"data": {"rows": 600, "empty": 0}, "training": {}}, notes=("stopped early",),
        overlap=(Overlap(task="arc_easy", n=6, exact=(0, 3), ngram=(3,), found=({"item": 0, "words": "a b"},)),),
        cost={"memory": 3_000_000_000, "seconds": 12.5, "estimated_memory": 2_000_000_000},
        provenance=Provenance(command="aftertune tune x", started="2026-01-01", finished="2026-01-02", git="abc"),
        watch=(WatchPoint(step=10, task="arc_easy", metric="acc", n=6, base=0.5, tuned=0.25, delta=-0.25, low=-0.5,
                          high=0.0, verdict="undecided"),))


def finite_tuning() -> Tuning:
    """The same without the infinity, which a manifest cannot hold."""
    return dataclasses.replace(tuning(), steps=({"step": 1.0, "loss": 1e-7}, {"step": 2, "tokens": 512}))


def comparison() -> Comparison:
    """A comparison that uses every field."""
    counts = FormCounts(n=6, no_answer=1, cut_off=0, no_end=2, other_form=0, empty=0)
    shift = FormShift(task="gsm8k", base=counts, tuned=counts, lost=1, lost_by_form=1, low=0.2, high=1.0,
                      cause="format")
    return Comparison(id="c-full", base="e-other", tuned="e-full", base_name="base", tuned_name="full", lineage=True,
                      rows=(ROW, dataclasses.replace(ROW, metric="acc_norm", primary=False, kind="real", p=None,
                                                     verdict=None, q=0.25, group="arc", n_total=570)),
                      differences=(Difference(field="dtype", left="float32", right="bfloat16", blocking=False),),
                      forced=True, held_out=HELD_OUT, relation="tuned", origin="base", common=True, forms=(shift,))


def fill(path: Path) -> None:
    """Write everything into a new ledger, and then what older versions lacked out of some rows again."""
    with Ledger(path) as ledger:
        running = dataclasses.replace(evaluation(), status="running", scores=(), schedule={})
        ledger.open_evaluation(running, items())
        ledger.save_batch("e-full", 0, dict(list(responses().items())[:10]))
        ledger.save_batch("e-full", 1, dict(list(responses().items())[10:]))
        ledger.finish_evaluation(evaluation(), *answers())
        ledger.open_evaluation(cases.evaluation("e-open", "open"), cases.items())
        ledger.save_schedule("e-open", {"budget": {"tokens": 512}})
        ledger.save_batch("e-open", 0, {0: Response(logprob=-1.5, greedy=True)})
        ledger.acquire("e-open")
        ledger.save_tuning(tuning())
        ledger.save_tuning(cases.tuning("t-old", "old"))
        ledger.save_step("t-old", 10, {"loss": 1.9})
        ledger.save_comparison(comparison())
        ledger.save_comparison(dataclasses.replace(comparison(), id="c-old"))
        ledger.save_reported("record.md", [{"model": "A", "task": "gsm8k", "metric": "exact_match", "value": 0.25,
                                            "n": 1319, "facts": {"dtype": "float16"}}],
                             [{"kind": "observation", "lead": "Size", "text": "larger"}])
        ledger.save_study("orders", "s" * 64, "study: orders\n")
        ledger.save_cell("orders", "evaluate base", "done", ref="e-full")
        ledger.save_cell("orders", "tune careful", "failed", error="out of memory")
    with closing(sqlite3.connect(path)) as raw, raw:
        for table, id_, lost in (("tuning", "t-old", ("merged", "cost", "watch", "overlap", "counts", "held_out")),
                                 ("comparison", "c-old", ("relation", "origin", "common", "forms"))):
            [text] = raw.execute(f"SELECT value FROM {table} WHERE id = ?", (id_,)).fetchone()
            value = {k: v for k, v in json.loads(text).items() if k not in lost} | {"of a later version": [1]}
            for row in value.get("rows", ()):
                for name in ("stopped_of", "q", "group", "details", "p_no_drop", "n_total"):
                    del row[name]
            raw.execute(f"UPDATE {table} SET value = ? WHERE id = ?",
                        (json.dumps(value, separators=(",", ":")), id_))
    with Ledger(path) as ledger, ledger.database.write() as connection:
        for table in (schema.tuning, schema.comparison):
            seal(connection, table, list(connection.execute(select(table.c.seq)).scalars()))


def without_new_fields(text: str) -> str:
    """``text`` (``repr`` or JSON of values) without the fields that came after 6627cb2, where they hold their default.

    A new field needs a default, so that old rows still open; then it may stand beside the old ones in what is written.
    """
    known = VALUES.read_text(encoding="utf-8")
    for kind in vars(values).values():
        for field in dataclasses.fields(kind) if isinstance(kind, type) and dataclasses.is_dataclass(kind) else ():
            made = field.default_factory
            value = field.default if made is dataclasses.MISSING else made()
            if value is not dataclasses.MISSING and not re.search(rf"\b{field.name}=", known):
                name, default = field.name, json.dumps(value)
                text = text.replace(f", {name}={value!r}", "")
                text = re.sub(rf',\s*"{name}": ?{re.escape(default)}(?=\s*[,}}])', "", text)
                text = re.sub(rf'(?<={{)(\s*)"{name}": ?{re.escape(default)},\s*', r"\1", text)
    return text


def dumped_before() -> str:
    """What `dump` gave of the ledger of the SQL file."""
    text = SQL.read_text(encoding="utf-8")
    return re.sub(r"^CREATE TABLE lease \(.*?\);\n", "", text, flags=re.DOTALL | re.MULTILINE)


def dump(path: Path) -> str:
    """The ledger as SQL text, without what depends on the process; its indexes come last, by name."""
    with closing(sqlite3.connect(path)) as raw:
        lines = [line for line in raw.iterdump() if not line.startswith(_CHANGING)]
    lines.sort(key=lambda line: line if line.startswith("CREATE INDEX") else "")  # made in any order
    return re.sub(r"(?<=,)(-?)Inf(?=[,)])", r"\g<1>9e999", "\n".join(lines)) + "\n"  # SQL has no word for infinity


def load(path: Path) -> None:
    """Make the ledger that the SQL file is the text of, as alembic's revision 0001."""
    with closing(sqlite3.connect(path)) as raw:
        raw.executescript(SQL.read_text(encoding="utf-8"))
        raw.executescript("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, CONSTRAINT "
                          "alembic_version_pkc PRIMARY KEY (version_num)); INSERT INTO alembic_version VALUES('0001');")


def read(path: Path) -> Iterator[str]:
    """One line for every value that the ledger gives back."""
    with Ledger(path) as ledger:
        found: list[Any] = [*ledger.evaluations(), *ledger.tunings(), *ledger.comparisons(), *ledger.reported(),
                            *ledger.remarks(), *ledger.studies(), *ledger.cells("orders")]
        for id_ in ("e-full", "e-open"):
            found += [*ledger.items(id_), *ledger.answers(id_), ledger.responses(id_), ledger.schedule(id_)]
    return (repr(value) for value in found)


if __name__ == "__main__":
    import tempfile

    from aftertune.tuning.output import write_manifest

    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "ledger.db"
        fill(made)
        SQL.write_text(dump(made), encoding="utf-8")
        VALUES.write_text("\n".join(read(made)) + "\n", encoding="utf-8")
        write_manifest(Path(folder), finite_tuning())
        MANIFEST.write_bytes((Path(folder) / "aftertune.json").read_bytes())
