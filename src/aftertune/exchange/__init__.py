"""What comes in from other tools and goes out to them: lm-eval's files, Markdown records, tables, model cards.

    receive(Path("lm_eval_output"), ledger=ledger)      evaluations with answers, or reported scores
    audit(Path("record.md"))                            what the printed figures can be, and what they show
"""

from aftertune.exchange.arrivals import Arrival, receive
from aftertune.exchange.audits import Audit, Check, Claim, Finding, audit, check, pairing_text

__all__ = ["Arrival", "Audit", "Check", "Claim", "Finding", "audit", "check", "pairing_text", "receive"]
