"""Imports results of other tools, exports ours for them, and audits published scores.

    import_results(Path("lm_eval_output"), ledger=ledger)         evaluations with answers, or reported scores
    export_lm_eval(evaluation, answers, folder=…, prompts={})     files that readers of lm-eval's output accept
    audit(Path("record.md"))                                      which printed scores are possible, and what they show
"""

from aftertune.exchange.audits import (
    Audit,
    AuditFinding,
    Claim,
    audit,
    audit_document,
    audit_reported,
    audited_documents,
    imported_documents,
    pairing_text,
)
from aftertune.exchange.every_eval_ever_export import ExportedPair, export_every_eval_ever
from aftertune.exchange.exporting import ExportedFiles, export_lm_eval, rebuild_prompts, stored_answers
from aftertune.exchange.figure_marks import FigureMark, MarkedLine, mark_figures, mark_lines
from aftertune.exchange.importing import ImportedResult, import_results
from aftertune.exchange.markdown_record import parse_record
from aftertune.exchange.score_checks import Check, check_scores

__all__ = [
    "Audit",
    "AuditFinding",
    "Check",
    "Claim",
    "ExportedFiles",
    "ExportedPair",
    "FigureMark",
    "ImportedResult",
    "MarkedLine",
    "audit",
    "audit_document",
    "audit_reported",
    "audited_documents",
    "check_scores",
    "export_every_eval_ever",
    "export_lm_eval",
    "import_results",
    "imported_documents",
    "mark_figures",
    "mark_lines",
    "pairing_text",
    "parse_record",
    "rebuild_prompts",
    "stored_answers",
]
