"""What comes in from other tools and goes out to them: lm-eval's files and Markdown records.

    receive(Path("lm_eval_output"), ledger=ledger)      evaluations with answers, or reported scores
    audit(Path("record.md"))                            what the printed figures can be, and what they show
    send(evaluation, items, answers, folder=…)          lm-eval's files, for whatever reads these
"""

from aftertune.exchange.arrivals import Arrival, receive
from aftertune.exchange.audits import Audit, Check, Claim, Finding, audit, check, pairing_text
from aftertune.exchange.departures import Written, send
from aftertune.exchange.judged import judge, judged
from aftertune.exchange.prompts import rebuilt

__all__ = ["Arrival", "Audit", "Check", "Claim", "Finding", "Written", "audit", "check", "judge", "judged",
           "pairing_text", "rebuilt", "receive", "send"]
