"""What comes in from other tools and goes out to them: lm-eval's files, Markdown records, tables, model cards.

    receive(Path("lm_eval_output"), ledger=ledger)      evaluations with answers, or reported scores
    audit(Path("record.md"))                            what the printed figures can be, and what they show
    send(evaluation, items, answers, folder=…)          lm-eval's files, for whatever reads these
    as_csv(comparison_grid(comparison))                 a table for a spreadsheet; as_latex, as_json
"""

from aftertune.exchange.arrivals import Arrival, receive
from aftertune.exchange.audits import Audit, Check, Claim, Finding, audit, check, pairing_text
from aftertune.exchange.departures import Written, send
from aftertune.exchange.grids import Grid, as_csv, as_json, as_latex, comparison_grid, overview_grid, scores_grid
from aftertune.exchange.judged import judge, judged
from aftertune.exchange.prompts import rebuilt

__all__ = ["Arrival", "Audit", "Check", "Claim", "Finding", "Grid", "Written", "as_csv", "as_json", "as_latex",
           "audit", "check", "comparison_grid", "judge", "judged", "overview_grid", "pairing_text", "rebuilt",
           "receive", "scores_grid", "send"]
