"""What a Markdown record says beside its scores."""

from __future__ import annotations

from pathlib import Path

from aftertune.exchange import import_results
from aftertune.exchange.markdown_record import read_record
from aftertune.ledger import Ledger
from aftertune.values.reported import Remark

RECORD = """\
# Results
## 1. Small
| Task | Metric | Result | Error Range |
|---|---|---|---|
| **GSM8K** | flexible-extract | **33.51%** | ±1.30% |
## 2. Large
| Task | Metric | Result | Error Range |
|---|---|---|---|
| **GSM8K** | flexible-extract | **40.00%** | ±1.35% |
## Comparison
| Model | Parameters | Training Data Size |
|---|---|---|
| Small | 1B | 2,000 examples |

| Task | Metric | First | Second |
|---|---|---|---|
| GSM8K | flexible-extract | 33.51% | **40.00%** |
### Key Observations
1. **Size**: The larger one is better.
## Task Descriptions
- **GSM8K**: Grade school mathematics
- **Normalized Accuracy**: Accuracy after the text was normalised
## Future Work
- [ ] Evaluate a third model
- [x] Evaluate the second one
"""


def test_sizes_columns_bold_figures_definitions_observations_and_open_points(tmp_path: Path) -> None:
    path = tmp_path / "record.md"
    path.write_text(RECORD)
    found: dict[str, list[Remark]] = {}
    for remark in read_record(path).remarks:
        found.setdefault(remark.kind, []).append(remark)
    [size] = found["size"]
    assert (size.model, size.facts) == ("Small", {"Parameters": "1B", "Training Data Size": "2,000 examples"})
    assert [(c.model, c.lead) for c in found["column"]] == [("Small", "First"), ("Large", "Second")]
    [bold] = found["bold"]
    assert (bold.model, bold.task, bold.filter, bold.text) == ("Large", "gsm8k", "flexible-extract", "40.00%")
    [definition] = found["definition"]
    assert (definition.metric, definition.text) == ("acc_norm", "Accuracy after the text was normalised")
    assert [(o.lead, o.text) for o in found["observation"]] == [("Size", "The larger one is better.")]
    assert [d.task for d in found["description"]] == ["gsm8k"]
    assert [f.text for f in found["future"]] == ["Evaluate a third model"]
    assert RECORD.splitlines()[(bold.line or 0) - 1].startswith("| GSM8K")


def test_the_ledger_keeps_them_apart_from_scores(tmp_path: Path) -> None:
    path = tmp_path / "record.md"
    path.write_text(RECORD)
    with Ledger(tmp_path / "l.db") as ledger:
        for _ in range(2):  # the second time in the place of the first
            import_results(path, ledger=ledger)
        assert [row["model"] for row in ledger.reported()] == ["Small", "Large"]
        kept = tuple(Remark.of(row) for row in ledger.remarks())
    assert kept == read_record(path).remarks
