"""Writes reports: the Markdown record, the HTML page, model cards, terminal tables, CSV, JSON and LaTeX.

    from aftertune.report import Results, write_page, write_record
    Path("record.md").write_text(write_record(Results.load(ledger), title="Orders study"))

Reports show verdicts and never compute them. The same input gives the same bytes.
"""

from aftertune.report.card import Card, write_card
from aftertune.report.changed_items import write_flips
from aftertune.report.checkpoints import (
    CheckpointRow,
    checkpoint_rows,
    checkpoint_table,
    choice_lines,
    tuning_checkpoints,
)
from aftertune.report.columns import VerdictLine, unit_name, verdict_table
from aftertune.report.cures import confirmed_lines, cure_table, recommendation
from aftertune.report.documents import make_folder, write_document
from aftertune.report.facts import anchor_facts, data_facts, evaluation_facts, tuning_facts
from aftertune.report.formatting import duration as duration_text
from aftertune.report.gate_results import (
    annotation,
    gate_annotations,
    gate_reason,
    gate_summary,
    gate_text,
    write_junit,
    write_junit_error,
)
from aftertune.report.headline import headline, study_lines
from aftertune.report.page import write_page
from aftertune.report.record import write_record
from aftertune.report.results import Results, StoredAnswers
from aftertune.report.sections import Planned
from aftertune.report.sentences import seed_observations, watch_text, watermark
from aftertune.report.table import ScoreLine, score_interval, score_table
from aftertune.report.tables import (
    DataTable,
    as_csv,
    as_json,
    as_latex,
    as_markdown,
    as_objects,
    comparison_export,
    overview_export,
    scores_export,
)
from aftertune.report.terminal import terminal_scores, terminal_summary, terminal_table

__all__ = [
    "Card",
    "CheckpointRow",
    "DataTable",
    "Planned",
    "Results",
    "ScoreLine",
    "StoredAnswers",
    "VerdictLine",
    "anchor_facts",
    "annotation",
    "as_csv",
    "as_json",
    "as_latex",
    "as_markdown",
    "as_objects",
    "checkpoint_rows",
    "checkpoint_table",
    "choice_lines",
    "comparison_export",
    "confirmed_lines",
    "cure_table",
    "data_facts",
    "duration_text",
    "evaluation_facts",
    "gate_annotations",
    "gate_reason",
    "gate_summary",
    "gate_text",
    "headline",
    "make_folder",
    "overview_export",
    "recommendation",
    "score_interval",
    "score_table",
    "scores_export",
    "seed_observations",
    "study_lines",
    "terminal_scores",
    "terminal_summary",
    "terminal_table",
    "tuning_checkpoints",
    "tuning_facts",
    "unit_name",
    "verdict_table",
    "watch_text",
    "watermark",
    "write_card",
    "write_document",
    "write_flips",
    "write_junit",
    "write_junit_error",
    "write_page",
    "write_record",
]
