"""Gets back what a fine-tune forgot, without training, and proves it on items that had no part in the choice.

    cured = soften("runs/orders", CureRequest(keep={"hellaswag": 2.0}), ledger=ledger)
    cured = blend(["runs/orders", "runs/chat"], CureRequest(keep={"hellaswag": 2.0}), ledger=ledger)
    cured = cure("runs/orders", CureRequest(keep={"hellaswag": 2.0}), minutes=20, ledger=ledger)    all of them

- choosing: chooses one model on one part of the items, and judges it on the other part
- trial: scores models that are made from fine-tunes, under a budget, chooses one, confirms it and writes it
- looks: earlier looks at models of the same fine-tune, which count
- chosen_items: items that chose a checkpoint in the training, which confirm nothing
- parents: finds a fine-tune with a proven base
- soften: one fine-tune at less strength
- blend: several fine-tunes of one base
- cure: earlier kept checkpoints, less strength and blends, together and under a budget
- retraining: what training again would cost
"""

from aftertune.cure.blend import blend
from aftertune.cure.cure import cure
from aftertune.cure.retraining import Retraining
from aftertune.cure.soften import soften
from aftertune.cure.trial import Cured, CureRequest

__all__ = ["CureRequest", "Cured", "Retraining", "blend", "cure", "soften"]
