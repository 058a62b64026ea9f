"""Tables of results as people publish them: what is read, what is left out with a note, and what is possible."""

from __future__ import annotations

from pathlib import Path

import pytest

from aftertune.errors import InputError
from aftertune.exchange import audit, import_results
from aftertune.exchange.markdown_record import Document, read_record
from aftertune.exchange.table_cells import read_cell, read_count
from aftertune.ledger import Ledger

DATA = Path(__file__).parent / "data" / "tables"
EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
RUN = "hf (pretrained=org/m,dtype=bfloat16), gen_kwargs: (None), limit: {}, num_fewshot: {}, batch_size: 8"
OWN = ("|  Tasks  |Version|Filter|n-shot| Metric |   |Value |   |Stderr|\n"
       "|---------|------:|------|-----:|--------|---|-----:|---|-----:|\n")


def read(tmp_path: Path, text: str, name: str = "doc.md") -> Document:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return read_record(path)


def figures(document: Document) -> list[tuple[str, str, str, str]]:
    """(model, task, metric, value) of each score."""
    return [(r.model, r.task, r.metric, r.value_text) for r in document.scores]


@pytest.mark.parametrize(("name", "models", "scores"), [
    ("correct_column", 1, 3), ("delta_column", 2, 6), ("fenced", 1, 3), ("gpqa_group", 1, 3), ("hendrycks_030", 1, 3),
    ("leaderboard_card", 1, 6), ("lighteval", 1, 3), ("mean_row", 2, 6), ("metric_filter", 1, 2), ("mmlu_full", 1, 3),
    ("mmlu_limit10", 1, 2), ("model_column_blank", 2, 4), ("models_as_rows", 2, 8), ("nous_percent", 1, 5),
    ("setup_columns", 2, 4), ("shots_column", 2, 6), ("truthfulqa_gen", 1, 4)])
def test_published_tables_are_read_whole_and_nothing_is_called_impossible(name: str, models: int, scores: int) -> None:
    path = DATA / f"{name}.md"
    found = audit(path)
    assert len({c.row.model for c in found.checks}) == models
    assert len(found.checks) == scores
    assert found.ok, [c.text for c in found.checks if not c.ok]
    assert not any("stated n" in c.text for c in found.checks if c.row.n_source != "stated")


def test_names_numbers_of_items_and_models_of_published_tables() -> None:
    fenced = read_record(DATA / "fenced.md").scores
    assert {(r.model, r.n_source) for r in fenced} == {("org/m", "known")}  # the line above the table names the model
    limited = {r.task: r for r in read_record(DATA / "mmlu_limit10.md").scores}
    assert (limited["mmlu"].n, limited["arc_challenge"].n, limited["mmlu"].n_source) == (570, 10, "stated")
    assert limited["mmlu"].facts == {"Limit": "10"}
    assert [r.task for r in read_record(DATA / "hendrycks_030.md").scores] == [
        "mmlu_abstract_algebra", "mmlu_abstract_algebra", "mmlu_moral_disputes"]
    card = {r.task: r for r in read_record(DATA / "leaderboard_card.md").scores}
    assert card.keys() == {"arc_challenge", "hellaswag", "mmlu", "truthfulqa_mc2", "winogrande", "gsm8k"}
    assert (card["arc_challenge"].metric, card["arc_challenge"].value) == ("acc_norm", pytest.approx(0.5717))
    assert card["truthfulqa_mc2"].mean_of == "the probability of the true answers"
    assert [r.task for r in read_record(DATA / "lighteval.md").scores] == ["arc_challenge", "arc_challenge", "gsm8k"]
    [first, second] = read_record(DATA / "metric_filter.md").scores
    assert [(r.metric, r.value, r.stderr) for r in (first, second)] == [("acc", .55, .01), ("acc_norm", .61, .01)]
    rows = read_record(DATA / "setup_columns.md").scores
    assert {r.model for r in rows} == {"big-120b (B200, FP4, 1)", "big-120b (H100, FP8, 2)"}
    assert {(r.metric, r.filter, r.n, r.n_source) for r in rows} == {
        ("exact_match", "strict-match", 1319, "stated"), ("exact_match", "flexible-extract", 1319, "stated")}
    full = [(r.task, r.error_of != "") for r in read_record(DATA / "mmlu_full.md").scores]
    assert full == [("mmlu", True), ("mmlu_humanities", True), ("mmlu_formal_logic", False)]
    generated = {r.metric: r for r in read_record(DATA / "truthfulqa_gen.md").scores}
    assert (generated["bleurt_max"].value, generated["bleu_max"].value, generated["acc"].value) == (
        -0.5266, 30.2628, 0.3914)
    assert {r.model for r in read_record(DATA / "shots_column.md").scores} == {"Alpha 8B", "Alpha 70B"}
    notes = [n.text for n in read_record(DATA / "delta_column.md").notes]
    assert notes == ["the column 'Δ' was left out: a comparison of other columns"]


@pytest.mark.parametrize(("cell", "value", "error"), [
    ("61.24", "61.24", ""), ("**61.24**", "61.24", ""), ("<u>61.24</u>", "61.24", ""), ("52.02*", "52.02", ""),
    ("68.77 (+1.2)", "68.77", ""), ("68.77 (↑1.2)", "68.77", ""), ("68.77 ↓0.4", "68.77", ""),
    ("61,26 %", "61.26%", ""),
    ("0,4531", "0.4531", ""), ("54.44 ± 1.46", "54.44", "1.46"), ("54.44±1.46 %", "54.44", "1.46%"),
    ("94.92% +/- 0.60%", "94.92%", "0.60%"), ("54.4 (±1.2)", "54.4", "1.2"), ("54.4<sub>±1.2</sub>", "54.4", "1.2"),
    ("$61.2 \\pm 0.4$", "61.2", "0.4"), ("$61.2_{\\pm 0.4}$", "61.2", "0.4"), ("61.2 &plusmn; 0.4", "61.2", "0.4"),
    ("np.float64(0.1288)", "0.1288", ""), ("tensor(0.1288, device='cuda:0')", "0.1288", ""), ("🥇 61.2", "61.2", ""),
    ("61.2 🏆", "61.2", ""), ("61.2[^1]", "61.2", ""), ("61.2<sup>2</sup>", "61.2", ""), ("61.2¹", "61.2", ""),
    ("[61.2](https://x.y/z)", "61.2", ""), ("0.6295(100%)", "0.6295", ""), ("54.4 [52.1, 56.7]", "54.4", ""),
    ("0.5034 ± N/A", "0.5034", ""), ("−0.5266", "-0.5266", ""), (".523", ".523", ""),
    ("\\textbf{61.2}", "61.2", ""), ("61.2%†", "61.2%", ""), ("`61.2`", "61.2", "")])
def test_figures_as_people_write_them(cell: str, value: str, error: str) -> None:
    found = read_cell(cell)
    assert found is not None
    assert (found.value, found.error) == (value, error)


@pytest.mark.parametrize("cell", ["0.65→0.56", "61.2 / 62.3", "26/100", "70B", "7.3GB", "5-shot", "~61.2", ">90",
                                  "Link", "1.234,5", "v0.3", "±5.02%", "2x", "9" * 400])
def test_what_is_not_one_figure_is_none(cell: str) -> None:
    assert read_cell(cell) is None


def test_counts_of_items() -> None:
    assert [read_count(t) for t in ("400 (random 400 of 10,042, seed 0)", "10,042", "1319", "–", "n=57", "0")] == [
        400, 10042, 1319, None, 57, None]


FORMS = {
    "quoted": "> | Task | Value |\n> |---|---|\n> | piqa | 0.7 |\n",
    "in a list": "- results\n\n  | Task | Value |\n  |---|---|\n  | piqa | 0.7 |\n",
    "details": "<details><summary>x</summary>\n\n| Task | Value |\n|---|---|\n| piqa | 0.7 |\n\n</details>\n",
    "no outer bars": "Task | Value\n---|---\npiqa | 0.7\n",
    "wide rule": "| Task | Value |\n|:---:|----------------------:|\n| piqa | 0.7 |\n",
    "rule with more columns": "| Task | Value |\n|---|---|---|\n| piqa | 0.7 |\n",
    "rule with fewer columns": "| Task | Value |\n|---|\n| piqa | 0.7 |\n",
    "fence": "```\n| Task | Value |\n|---|---|\n| piqa | 0.7 |\n```\n",
    "head behind the fence's marks": "```| Task | Value |\n|---|---|\n| piqa | 0.7 |\nAverage: 70\n```\n",
    "comments": "```bash\n# run it\n# | Task | Value |\n# |---|---|\n# | piqa | 0.7 |\n```\n",
    "quoted output": "```\n>> | Task | Value |\n>> |---|---|\n>> | piqa | 0.7 |\n```\n",
    "colours": "```\n\x1b[1m| Task | Value |\x1b[0m\n|---|---|\n| piqa | \x1b[32m0.7\x1b[0m |\n```\n",
    "box": "```\n┏━━━━━━┳━━━━━━━┓\n┃ Task ┃ Value ┃\n┡━━━━━━╇━━━━━━━┩\n│ piqa │ 0.7   │\n└──────┴───────┘\n```\n",
    "grid": "```\n+------+-------+\n| Task | Value |\n+======+=======+\n| piqa | 0.7   |\n+------+-------+\n```\n",
    "html": "<table>\n<tr><th>Task</th><th>Value</th></tr>\n<tr><td>piqa</td>\n<td><b>0.7</b></td></tr>\n</table>\n",
    "crlf": "| Task | Value |\r\n|---|---|\r\n| piqa | 0.7 |\r\n",
    "blank rows": "| Task | Value |\n|---|---|\n|  |  |\n| piqa | 0.7 |\n|  |  |\n",
    "long log": "```\n" + "Running loglikelihood requests: 96%|████ | 95947/100012\n" * 50 +
                "| Task | Value |\n|---|---|\n| piqa | 0.7 |\n```\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_table_is_read_wherever_it_stands(form: str, tmp_path: Path) -> None:
    document = read(tmp_path, FORMS[form])
    assert figures(document) == [("doc.md", "piqa", "acc", "0.7")]
    line = document.scores[0].line or 0
    assert "piqa" in FORMS[form].split("\n")[line - 1]


#: Tables that are none of results, or whose columns are settings: what is read of them.
OTHERS = {
    "hyperparameters": "| Parameter | Value |\n|---|---|\n| learning rate | 0.0002 |\n| epochs | 3 |\n",
    "property": "| Property | Value |\n|---|---|\n| Parameters | 1.14 |\n",
    "loss": "| Training Loss | Epoch | Step | Validation Loss | Accuracy |\n|---|---|---|---|---|\n"
            "| 0.69 | 1.0 | 100 | 0.6 | 0.8 |\n| 0.41 | 2.0 | 200 | 0.5 | 0.9 |\n",
    "files": "| Filename | Quant type | File Size | Description |\n|---|---|---|---|\n"
             "| m-Q4_K_M.gguf | Q4_K_M | 4.58 | good |\n",
    "licences": "| Dataset | License | Examples |\n|---|---|---|\n| Alpaca | MIT | 52,002 |\n"
                "| Dolly | CC | 15,011 |\n",
    "mixture": "| Dataset | Proportion |\n|---|---|\n| C4 web | 0.67 |\n| Books | 0.045 |\n",
    "hardware": "| Model | VRAM | Tokens/s |\n|---|---|---|\n| a | 14.5 | 33.1 |\n",
    "descriptions": "| Benchmark | Measures |\n|---|---|\n| MMLU | 57 subjects |\n| GSM8K | maths |\n",
    "sizes": "| Benchmark | Items | Choices |\n|---|---|---|\n| piqa | 1838 | 2 |\n| boolq | 3270 | 2 |\n",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_tables_give_no_score_beside_one_of_results(kind: str, tmp_path: Path) -> None:
    alone = f"# A\n\n{OTHERS[kind]}"
    with pytest.raises(InputError, match=r"doc\.md(:\d+)?: no "):
        read(tmp_path, alone)
    document = read(tmp_path, f"{alone}\n| Task | Value |\n|---|---|\n| piqa | 0.7 |\n")
    assert figures(document) == [("A", "piqa", "acc", "0.7")]


@pytest.mark.parametrize(("table", "columns", "left_out"), [
    ("| Benchmark | fp16 | w4a16 | Recovery |\n|---|---|---|---|\n| MMLU (5-shot) | 74.24 | 73.19 | 98.6% |\n"
     "| **Average** | **73.16** | **72.69** | **98.6%** |\n", ["fp16", "w4a16"], "Recovery"),
    ("| Task | Base | Tuned | Change |\n|---|---|---|---|\n| piqa | 70.1 | 71.2 | +1.1 |\n", ["Base", "Tuned"],
     "Change"),
    ("| Task | Base | Tuned | x |\n|---|---|---|---|\n| piqa | 70.1 | 71.2 | +1.1 |\n"
     "| boolq | 70.1 | 69.2 | -0.9 |\n", ["Base", "Tuned"], "x"),
    ("| Task | Items | A | Rank |\n|---|---|---|---|\n| piqa | 1838 | 70.1 | 3 |\n| boolq | 3270 | 62.2 | 4 |\n",
     ["A"], "Rank"),
    ("| Task | A | B | k |\n|---|---|---|---|\n| piqa | 70.1 | 71.0 | 3 |\n| boolq | 62.2 | 61.0 | 4 |\n",
     ["A", "B"], "k"),
    ("| Benchmark | A | Average |\n|---|---|---|\n| piqa | 70.1 | 66.0 |\n", ["A"], "Average")])
def test_columns_that_are_no_models_are_left_out_with_a_note(table: str, columns: list[str], left_out: str,
                                                              tmp_path: Path) -> None:
    document = read(tmp_path, table)
    assert list(dict.fromkeys(r.model for r in document.scores)) == columns
    assert any(f"the column '{left_out}' was left out" in n.text for n in document.notes)


@pytest.mark.parametrize(("table", "expected"), [
    ("| Model | Size | ARC-C (25-shot) | MMLU | Avg |\n|---|---|---|---|---|\n| **a** | 7 | 54.1 | 47.88 | 51 |\n"
     "| [b](https://h.f/b) | 7 | <u>53.07</u> | – | 50 |\n",
     [("a", "arc_challenge", "acc_norm", "54.1%"), ("a", "mmlu", "acc", "47.88%"),
      ("b", "arc_challenge", "acc_norm", "53.07%")]),
    ("| Model | MMLU | GSM8K |\n|:-:|:-:|:-:|\n|  | 5-shot | 8-shot |\n| a | 46.8 | 16.7 |\n",
     [("a", "mmlu", "acc", "46.8%"), ("a", "gsm8k", "exact_match", "16.7%")]),
    ("| Model / Quant | hellaswag | piqa |\n|---|---|---|\n| bf16 | 0.5717 | 0.7671 |\n",
     [("bf16", "hellaswag", "acc", "0.5717"), ("bf16", "piqa", "acc", "0.7671")]),
    ("| Task/Metric | M 6B |\n|---|---|\n| arc_easy/acc | 0.67 |\n| arc_easy/acc_norm | 0.62 |\n| Average | 0.6 |\n",
     [("M 6B", "arc_easy", "acc", "0.67"), ("M 6B", "arc_easy", "acc_norm", "0.62")]),
    ("| Benchmark |  | A | B |\n|---|---|---|---|\n| General | MMLU | 76.6 | 71.8 |\n|  | CMMLU | 83.1 | 53.9 |\n",
     [("A", "mmlu", "acc", "76.6%"), ("A", "CMMLU", "score", "83.1%"), ("B", "mmlu", "acc", "71.8%"),
      ("B", "CMMLU", "score", "53.9%")]),
    ("| Step | loss | PIQA | Sciq |\n|---|---|---|---|\n| 1000 | 3.41 | 0.61 | 0.7 |\n",
     [("Step 1000", "piqa", "acc", "0.61"), ("Step 1000", "sciq", "acc", "0.7")]),
    ("| Benchmark | Metric | A |\n|---|---|---|\n| PIQA | 0-shot | 77.3 |\n| BoolQ | – | 69.4 |\n",
     [("A", "piqa", "acc", "77.3%"), ("A", "boolq", "acc", "69.4%")]),
    ("| Aufgabe | Modell A |\n|---|---|\n| PIQA | 61,26 % |\n", [("Modell A", "piqa", "acc", "61.26%")]),
    ("| Model | Task | acc | stderr | acc_norm | stderr |\n|---|---|---|---|---|---|\n"
     "| a | piqa | .7 | .01 | .71 | .02 |\n",
     [("a", "piqa", "acc", ".7"), ("a", "piqa", "acc_norm", ".71")]),
    ("| Model | WikiText-2 PPL | MMLU |\n|---|---|---|\n| a | 5.40 | 65.1 |\n",
     [("a", "WikiText-2", "perplexity", "5.40"), ("a", "mmlu", "acc", "65.1%")])])
def test_models_tasks_and_metrics_as_columns(table: str, expected: list[tuple[str, str, str, str]],
                                             tmp_path: Path) -> None:
    assert sorted(figures(read(tmp_path, table))) == sorted(expected)


def test_one_odd_cell_costs_itself_and_is_told(tmp_path: Path) -> None:
    document = read(tmp_path, "| Task | Value | Stderr |\n|---|---|---|\n| piqa | see log | 0.01 |\n"
                              "| boolq | 0.7 | x% |\n| sciq | 130% | – |\n| gsm8k | – | – |\n"
                              "| arc_easy | 0.6 | 0.01 |\n")
    assert [(r.task, r.value, r.stderr) for r in document.scores] == [("boolq", .7, None), ("arc_easy", .6, .01)]
    assert [(n.line, n.text[:30]) for n in document.notes] == [
        (3, "'see log' of 'piqa' was left o"), (4, "the error 'x%' was left out: n"),
        (5, "'130%' of 'sciq' was left out:")]


def test_an_empty_model_repeats_the_one_above_and_two_tables_are_two_runs(tmp_path: Path) -> None:
    table = OWN + "|piqa|1|none|0|acc|↑|{}|±|0.0107|\n\n"
    document = read(tmp_path, f"# My model\n\n## Results\n\n{table.format('0.7002')}{table.format('0.6504')}"
                              f"{table.format('0.6504')}")
    assert [(r.model, r.value) for r in document.scores] == [("My model", 0.7002), ("My model (Results)", 0.6504)]
    runs = read(tmp_path, "# R\n\n" + "".join(f"```\n{RUN.format('None', 0).replace('org/m', name)}\n"
                                              f"{table.format(value)}```\n" for name, value in (("a/b", "0.7002"),
                                                                                                ("c/d", "0.6504"))))
    assert [(r.model, r.value) for r in runs.scores] == [("a/b", 0.7002), ("c/d", 0.6504)]
    captions = read(tmp_path, f"# Scores\n\n**m-base**\n\n{table.format('0.7002')}**m-2bit**\n\n"
                              f"{table.format('0.6504')}")
    assert [(r.model, r.value) for r in captions.scores] == [("m-base", 0.7002), ("m-2bit", 0.6504)]


def test_groups_and_their_subjects_of_lm_eval(tmp_path: Path) -> None:
    document = read(tmp_path, OWN + "|mmlu|2|none||acc|↑|0.2295|±|0.0035|\n"
                    "| - humanities|2|none||acc|↑|0.2421|±|0.0062|\n|  - formal_logic|1|none|0|acc|↑|0.2857|±|0.0404|\n"
                    "| - social sciences|2|none||acc|↑|0.21|±|0.01|\n\n"
                    + OWN.replace("Tasks", "Groups") + "|mmlu|2|none||acc|↑|0.2295|±|0.0035|\n")
    assert [r.task for r in document.scores] == ["mmlu", "mmlu_humanities", "mmlu_formal_logic", "mmlu_social_sciences"]
    assert [bool(r.error_of) for r in document.scores] == [True, True, False, True]


def test_limits_and_numbers_of_items(tmp_path: Path) -> None:
    rows = "|gsm8k|3|strict-match|5|exact_match|↑|0.897|±|0.0096|\n|boolq|2|none|0|acc|↑|0.6730|±|0.0148|\n"
    limited = read(tmp_path, f"{RUN.format('1000.0', 'None')}\n{OWN}{rows}")
    assert [(r.n, r.n_source) for r in limited.scores] == [(1000, "stated"), (1000, "stated")]
    share = read(tmp_path, f"{RUN.format('0.1', 'None')}\n{OWN}{rows}")
    assert [r.n for r in share.scores] == [None, 327]  # 131.9 of 1,319: versions of lm-eval round up or down
    path = tmp_path / "unlimited.md"
    path.write_text(OWN + "|arc_challenge|1|none|0|acc|↑|0.3970|±|0.0155|\n", encoding="utf-8")
    [check] = audit(path).checks  # the line above is missing, but only 397 of 1,000 gives both
    assert (check.mark, check.counts, check.row.n, check.row.n_source) == ("ok", (397,), 1000, "fits the error")
    assert "397 of 1,000 items" in check.text


ROW = ("| Model | Tokens | HellaSwag | Obqa | WinoGrande | ARC_c | ARC_e | boolq | piqa | avg |\n"
       "|---|---|---|---|---|---|---|---|---|---|\n"
       "| m-3T | 3T | 59.20 | 36.00 | 59.12 | 30.12 | {} | 57.83 | 73.29 | 52.9 |\n")


@pytest.mark.parametrize(("figure", "ok"), [("55.25", False), ("55.26", True), ("55.22", True), ("55.3", True)])
def test_a_figure_that_cannot_be_is_found_where_the_others_confirm_the_items(figure: str, ok: bool,
                                                                              tmp_path: Path) -> None:
    path = tmp_path / "doc.md"
    path.write_text(ROW.format(figure), encoding="utf-8")
    found = audit(path)
    assert found.ok is ok
    if not ok:
        [bad] = [c for c in found.checks if not c.ok]
        assert "at the 2,376 items that lm-eval's task has (1312 is 55.22% and 1313 is 55.26%)" in bad.text


def test_a_figure_that_nothing_confirms_is_not_called_impossible(tmp_path: Path) -> None:
    path = tmp_path / "doc.md"
    path.write_text("| Model | ARC_e |\n|---|---|\n| m-3T | 55.25 |\n", encoding="utf-8")
    [check] = audit(path).checks
    assert check.mark == "not checked"
    assert "the document does not state n" in check.text
    path.write_text("Means of three seeds:\n\n" + ROW.format("55.25"), encoding="utf-8")
    assert {c.text for c in audit(path).checks} == {"a mean (several runs) is no k of n"}


def test_established_is_significant_at_every_pairing(tmp_path: Path) -> None:
    """10 of 10 against 6 of 10: z is large, but no pairing is significant."""
    path = tmp_path / "doc.md"
    head = ("### {}\n\n| Task | Metric | Result | Error | n |\n|---|---|---|---|---|\n"
            "| {} | Exact Match | {} | {} | {} |\n\n")
    path.write_text("## S\n\n" + head.format("Base", "own", "100%", "0%", 10) +
                    head.format("Tuned", "own", "60%", "16.33%", 10), encoding="utf-8")
    [claim] = audit(path).claims
    assert (claim.status, claim.p_every > .05) == ("not shown", True)
    path.write_text("## S\n\n" + head.format("Base", "own", "90.0%", "0.95%", 1000) +
                    head.format("Tuned", "own", "60.0%", "1.55%", 1000), encoding="utf-8")
    assert audit(path).claims[0].status == "established"


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.md")), ids=lambda p: str(p.relative_to(EXAMPLES)))
def test_what_the_program_wrote_passes_its_own_audit_and_comes_back(path: Path, tmp_path: Path) -> None:
    if path.name == "README.md":
        with pytest.raises(InputError, match=r"no (table of scores|score)"):
            audit(path)
        return
    found = audit(path)
    assert found.ok, [c.text for c in found.checks if not c.ok]
    with Ledger(tmp_path / "l.db") as ledger:
        [imported] = import_results(path, ledger=ledger)
    text = path.read_text(encoding="utf-8")
    rows = {(r.model, r.task, r.metric, r.value_text, r.stderr_text, r.n) for r in imported.reported}
    lines = text.split("\n")
    printed = 0
    for number, line in enumerate(lines, start=1):  # every row of every model's table
        cells = [c.strip(" *") for c in line.strip("|").split("|")]
        if len(cells) == 6 and cells[3].startswith("±") and " to " in cells[4]:
            printed += 1
            [row] = [r for r in imported.reported if r.line == number]
            assert (row.value_text, f"±{row.stderr_text}", str(row.n)) == (cells[2], cells[3], cells[5].split()[0])
    assert printed >= 7
    assert len(rows) >= printed
    seeds = [r for r in imported.reported if "against" in r.section]  # of recipes, whose means are no k of n
    planned = sum(r.planned is not None for r in imported.reported)
    assert len(imported.reported) == printed + len(seeds) + planned
    assert all(r.mean_of for r in seeds)


COMPARED = """\
# Record
## {tuned} (full fine-tune, 40 examples)
| Task | Metric | Value | n |
|---|---|---|---|
| piqa | acc | 60.0% | 400 |
| own | acc | 30.0% | 100 |
## base-7b
| Task | Metric | Value | n |
|---|---|---|---|
| piqa | acc | 63.0% | 400 |
| own | acc | 10.0% | 100 |
### {title}
| Task | Metric | n | {base_head} | {tuned_head} | Difference | p |
|---|---|---|---|---|---|---|
| piqa | acc | 400 | 63.0% | 60.0% | -3.0 | 0.04 |
| own | acc | 100 | 10.0% | 30.0% | +20.0 | 0.001 |
| Average of 2 tasks | acc | 500 | 36.5% | 45.0% | +8.5 | 0.1 |
| piqa | expected accuracy | 400 | 61.2% | 57.7% | -3.5 | 0.02 |
"""


@pytest.mark.parametrize(("title", "heads"), [
    ("Comparison c-0123456789: ft-7b against base-7b", ("Base", "Tuned")), ("ft-7b vs. base-7b", ("Before", "After")),
    ("What changed", ("Baseline", "Fine-tuned"))])
def test_a_comparison_of_models_with_tables_of_their_own_repeats_them(title: str, heads: tuple[str, str], tmp_path: Path
                                                                      ) -> None:
    """Its means and further metrics made two more models of it, Base and Tuned."""
    document = read(tmp_path, COMPARED.format(tuned="ft-7b", title=title, base_head=heads[0], tuned_head=heads[1]))
    assert [(r.model, r.task, r.value_text) for r in document.scores] == [
        ("ft-7b (full fine-tune, 40 examples)", "piqa", "60.0%"),
        ("ft-7b (full fine-tune, 40 examples)", "own", "30.0%"), ("base-7b", "piqa", "63.0%"),
        ("base-7b", "own", "10.0%")]
    assert any("it stands only in a comparison" in note.text for note in document.notes)


def test_a_comparison_alone_names_its_models_by_its_heading(tmp_path: Path) -> None:
    text = COMPARED[COMPARED.index("###"):].format(title="ft-7b against base-7b", base_head="Base", tuned_head="Tuned")
    scores = [("piqa", "acc"), ("own", "acc"), ("piqa", "prob")]
    assert {(r.model, r.task, r.metric) for r in read(tmp_path, text).scores} == {
        (model, *score) for model in ("ft-7b", "base-7b") for score in scores}


def test_a_comparison_with_other_scores_is_another_model(tmp_path: Path) -> None:
    text = COMPARED.format(tuned="ft-7b", title="What changed", base_head="Base", tuned_head="Tuned")
    changed = read(tmp_path, text.replace("63.0% | 60.0% | -3.0", "63.0% | 59.0% | -4.0"))
    assert {r.model for r in changed.scores} == {"ft-7b (full fine-tune, 40 examples)", "base-7b", "Tuned"}


@pytest.mark.parametrize("words", ["Average of 2 Tasks", "mean over 6 benchmarks", "Macro average over the 57 subjects",
                                   "Average score across all tasks"])
def test_a_mean_of_so_many_tasks_is_no_benchmark(words: str, tmp_path: Path) -> None:
    document = read(tmp_path, f"| Task | Value |\n|---|---|\n| piqa | 0.5 |\n| {words} | 0.4 |\n")
    assert [r.task for r in document.scores] == ["piqa"]


@pytest.mark.parametrize("text", [
    "|" * 200_000, "| a " * 20_000 + "\n" + "|---" * 20_000 + "\n" + "| 1 " * 20_000, "(" * 100_000,
    "| Task | Value |\n|---|---|\n| piqa | " + "[" * 50_000 + " |\n", "<table>" * 20_000, "<td>" * 50_000,
    "| Task | Value |\n|---|---|\n| piqa | " + "9," * 50_000 + " |\n", "```\n" + "| a | b |\n" * 50_000,
    "hf (" + "pretrained=" * 20_000 + "), limit: 1, num_fewshot: 0", "mean " * 50_000, "# " + "a/" * 50_000,
    "| Task | Value |\n|---|---|\n" + "| piqa | ? |\n" * 5_000 + "> " * 5_000])
def test_long_and_hostile_text_is_read_in_a_moment(text: str, tmp_path: Path) -> None:
    """Each took seconds to hours with a pattern that goes back over what it read."""
    with pytest.raises(InputError, match=r"^[^\n]*$"):
        read(tmp_path, f"{text}\n")


def test_many_rows_are_read_in_a_moment(tmp_path: Path) -> None:
    rows = "".join(f"| own_{i} | {i % 100}.5 |\n" for i in range(5_000))
    assert len(read(tmp_path, "| Task | Value |\n|---|---|\n" + rows + rows).scores) == 5_000


def test_a_huge_number_of_items_is_audited_at_once(tmp_path: Path) -> None:
    """The audit counted up to the number of items, and made an array of it."""
    rows = "".join(f"| base m{i} | own | {n} | {40 + i} | 0.0011 |\n" for i, n in enumerate((2**31 - 1, 10**18, 100)))
    path = tmp_path / "record.md"
    path.write_text("| Model | Task | n | Value | Stderr |\n|---|---|---|---|---|\n" + rows, encoding="utf-8")
    huge, unreadable, plain = audit(path).checks
    assert (huge.row.n, unreadable.row.n, plain.row.n) == (2**31 - 1, None, 100)
    assert (huge.value_ok, huge.counts[0], plain.counts) == (True, 848_256_041, range(41, 43)[1:])


def test_what_is_beyond_a_bound_is_said(tmp_path: Path) -> None:
    scores = "| Task | Value |\n|---|---|\n| piqa | 0.5 |\n"
    document = read(tmp_path, f"{'x' * 30_000}\n\n{''.join(f'- f{i}: {i}{chr(10)}' for i in range(150))}\n{scores}")
    notes = " ".join(note.text for note in document.notes)
    assert "a line of 30,000 characters was left out; at most 20,000 are read" in notes
    assert "more than 100 facts below one heading" in notes
    assert len(document.scores[0].facts) == 100
    long = "<table>" + "<tr><td>a</td></tr>\n" * 60_000 + "</table>"
    assert "an HTML table of 1,2" in read(tmp_path, f"{long}\n\n{scores}").notes[0].text
    for text, said in (("|" * 100_001, "has 100,001 cells of tables"),
                       ("".join(f"{scores.replace('0.5', f'0.{i:04}')}\n" for i in range(600)),
                        "more than 500 tables have other scores of the model")):
        with pytest.raises(InputError, match=rf"^[^\n]*{said}[^\n]*$"):
            read(tmp_path, text)


@pytest.mark.parametrize("text", [
    "".join(f"| m{i} | 0.{i:05} |\n" for i in range(3_000)).join(("| Model | piqa |\n|---|---|\n", "")) * 2,
    "| Task | Filter | Metric | Value |\n|---|---|---|---|\n" + "".join(
        f"| own_{i // 2} | {('strict-match', 'flexible-extract')[i % 2]} | exact_match | 0.5 |\n"
        for i in range(4_000)),
    "| Task | " + " | ".join(f"m{i}" for i in range(250)) + " |\n" + "|---" * 251 + "|\n" + (
        "| own | " + "| **5**" * 250 + " |\n") * 40])
def test_many_models_columns_and_filters_are_audited_in_a_moment(text: str, tmp_path: Path) -> None:
    """Each took a time that grew with the square of its models, columns or rows."""
    path = tmp_path / "record.md"
    path.write_text(text, encoding="utf-8")
    assert audit(path).checks


@pytest.mark.parametrize(("text", "expected"), [
    ("## GSM8K\n\n| Metric | Base | Tuned |\n|---|---|---|\n| strict-match | 33.51% | 3.11% |\n",
     [("Base", "gsm8k", "exact_match", "33.51%"), ("Tuned", "gsm8k", "exact_match", "3.11%")]),
    ("# org/m\n\n## Results on BoolQ\n\n| Metric | Value |\n|---|---|\n| Accuracy | 0.81 |\n| F1 | 0.79 |\n",
     [("org/m", "boolq", "acc", "0.81"), ("org/m", "boolq", "f1", "0.79")]),
    ("The task is `gsm8k_cot_llama`.\n\n| Scheme | Strict Match | Flexible Extract |\n|---|---|---|\n"
     "| FP8 | 76.4% | 76.2% |\n",
     [("FP8", "gsm8k_cot_llama", "exact_match", "76.4%"), ("FP8", "gsm8k_cot_llama", "exact_match", "76.2%")])])
def test_a_heading_or_code_names_the_one_benchmark_of_a_table(text: str, expected: list[tuple[str, ...]],
                                                              tmp_path: Path) -> None:
    assert figures(read(tmp_path, text)) == expected
