"""Defines how a fine-tune is kept near its base: ``--anchor kl:1`` or ``--anchor l2:0.01``.

    anchor = AnchorSetting.parse("kl:1")         AnchorSetting(kind="kl", weight=1.0)
    anchor.refusal("lora")                       "": the method can have it

``kl`` adds the divergence of the model's token probabilities from those of its base to the loss, ``l2`` the squared
distance of its weights from those of the base (`aftertune.tuning.anchor`). A weight of 0 is no anchor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from aftertune.methods import METHODS
from aftertune.study.data import ADVISED_ANSWERS

#: The anchor that is advised against forgetting.
ADVISED_ANCHOR = "kl:1"
_ALLOWED = f"write kl:WEIGHT or l2:WEIGHT with a weight of 0 or more, for example {ADVISED_ANCHOR}"


@dataclass(frozen=True, slots=True)
class AnchorSetting:
    """The kind of an anchor and its weight in the loss."""

    kind: Literal["kl", "l2"]
    weight: float

    @classmethod
    def parse(cls, text: str) -> AnchorSetting:
        """The anchor that ``text`` says. Raises ValueError, in one line with what is allowed, for another form."""
        kind, _, number = (part.strip() for part in text.partition(":"))
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if kind not in ("kl", "l2") or not 0 <= weight < math.inf:
            raise ValueError(f"{text[:80]!r} is no anchor; {_ALLOWED}")
        return cls("kl" if kind == "kl" else "l2", weight)

    @classmethod
    def active(cls, text: str | None) -> AnchorSetting | None:
        """The anchor that a recipe sets; None without one, and for a weight of 0, which changes nothing."""
        setting = None if text is None else cls.parse(text)
        return None if setting is None or setting.weight == 0 else setting

    def __str__(self) -> str:
        return f"{self.kind}:{self.weight:g}"

    def refusal(self, method: str) -> str:
        """Why a method cannot have this anchor, and what to do; "" if it can."""
        if self.kind == "l2" and METHODS[method].adapter:
            return (f"l2 keeps whole weights near those of the base, but {method} trains an adapter and leaves them as "
                    f"they are; use kl:{self.weight:g} instead, or the method full")
        return ""


def normalized(text: str) -> str:
    """An anchor in its shortest form. Raises ValueError as `AnchorSetting.parse`."""
    return str(AnchorSetting.parse(text))


def advised_anchor(*, learn: str, replayed: bool, backend: str) -> str:
    """The options of ``tune`` that add the advised anchor to a training without one; "" where it can have none.

    replayed: it has replay. Without replay the anchor counts on the prompts, so a training that learns them needs it.
    """
    if backend == "unsloth":
        return ""
    replay = f"--replay base:{ADVISED_ANSWERS} " if learn == "all" and not replayed else ""
    return f"{replay}--anchor {ADVISED_ANCHOR}"
