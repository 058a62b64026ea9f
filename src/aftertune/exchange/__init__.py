"""What comes in from other tools and goes out to them: lm-eval's files and Markdown records.

    receive(Path("lm_eval_output"), ledger=ledger)      evaluations with answers, or reported scores
    audit(Path("record.md"))                            what the printed figures can be, and what they show
    send(evaluation, items, answers, folder=…)          lm-eval's files, for whatever reads these
"""

from aftertune.exchange.audits import (
           Audit,
           AuditFinding,
           Check,
           Claim,
           audit,
           audit_reported,
           audited_documents,
           check,
           pairing_text,
)
from aftertune.exchange.exporting import ExportedFiles, export_lm_eval, rebuilt
from aftertune.exchange.importing import ImportedResult, import_results

__all__ = [
           "Audit",
           "AuditFinding",
           "Check",
           "Claim",
           "ExportedFiles",
           "ImportedResult",
           "audit",
           "audit_reported",
           "audited_documents",
           "check",
           "export_lm_eval",
           "import_results",
           "pairing_text",
           "rebuilt",
]
