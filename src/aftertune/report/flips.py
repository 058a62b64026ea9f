"""The items that changed, as Markdown: owns how a question and both answers stand side by side.

    Path("flips.md").write_text(write_flips(found, limit=20))

Everything that a model or a data set wrote stands in fences longer than any it holds, with control characters shown
by their code points: it is read, never rendered.
"""

from __future__ import annotations

from collections.abc import Sequence

from aftertune.catalog import METRICS, MetricKey
from aftertune.report import format as fmt
from aftertune.report import markdown as md
from aftertune.report.names import metric_title, task_title
from aftertune.values import Difference, Flip, Flips, FlipSide

ENDS = {"length": "cut off at the token limit", "stop": "ended by a stop string", "eos": "ended by the model"}


def write_flips(found: Flips, *, limit: int | None = None) -> str:
    """The flips as one Markdown document; ``limit`` items of each direction at most."""
    key = MetricKey(found.metric)
    names = md.text(fmt.visible(found.base_name)), md.text(fmt.visible(found.tuned_name))
    blocks = [f"# {md.text(task_title(found.task))}: what changed from {names[0]} to {names[1]}"]
    if found.differences:
        blocks.append(f"> **{md.text(forced_text(found.differences))}**")
    blocks.append(f"Of {fmt.count(found.n)} items, by {md.text(metric_title(key.metric, key.filter))}: "
                  f"{fmt.count(found.lost)} lost (right before, wrong after), {fmt.count(found.gained)} gained.")
    for direction in ("lost", "gained"):
        mine = [f for f in found.flips if f.direction == direction]
        for flip in mine[:limit]:
            blocks += _flip(flip, names, score_unit(key.metric))
        if limit is not None and len(mine) > limit:
            blocks.append(f"*{fmt.count(len(mine) - limit)} more {direction} items are not shown.*")
    return "\n\n".join(blocks) + "\n"


def score_unit(metric: str) -> str:
    """The unit of what a metric compares: log-likelihoods, perhaps divided by the length of the choice."""
    length = METRICS[metric].length if metric in METRICS else ""
    return f"nats per {length}" if length else "nats"


def forced_text(differences: Sequence[Difference]) -> str:
    """The watermark of what was compared by force."""
    shown = "; ".join(f"{fmt.visible(d.field)}: {fmt.visible(d.left, 60)} against {fmt.visible(d.right, 60)}"
                      for d in differences)
    return f"FORCED COMPARISON: these evaluations are not comparable ({shown or 'compared with --force'})."


def _flip(flip: Flip, names: tuple[str, str], unit: str) -> list[str]:
    blocks = [f"## {flip.direction.capitalize()}: item {flip.index}",
              md.block(fmt.visible(flip.question) or "(no text)")]
    if flip.base.scores or flip.tuned.scores:
        return [*blocks, *_choices(flip, names, unit)]
    blocks += [f"Right answer: {md.code(fmt.visible(flip.gold, 300))}"] if flip.gold else []
    for name, side in zip(names, (flip.base, flip.tuned), strict=True):
        blocks += [f"**{name}**, {'right' if side.right else 'wrong'}{_about(side)}:",
                   md.block(fmt.visible(side.chosen) if side.chosen.strip() else "(empty)")]
    return blocks


def _about(side: FlipSide) -> str:
    """How the text ended, and what was taken from it."""
    ended = f", {ENDS[side.finish]}" if side.finish in ENDS else ""
    taken = [f"{md.text(name)} {md.code(fmt.visible(value, 100) or '(nothing)')}"
             for name, value in side.extracted.items() if value.strip() != side.chosen.strip()]
    return f"{ended}, extracted: {', '.join(taken)}" if taken else ended


def _choices(flip: Flip, names: tuple[str, str], unit: str) -> list[str]:
    """A table of the choices with both models' scores; what each took is bold."""
    sides = (flip.base, flip.tuned)
    best = [max(range(len(s.scores)), key=s.scores.__getitem__) if s.scores else -1 for s in sides]
    rows = []
    for at in range(max(len(s.scores) for s in sides)):
        text = flip.choices[at] if at < len(flip.choices) else f"choice {at + 1}"
        cells = [fmt.raw(s.scores[at], 3) if at < len(s.scores) else fmt.DASH for s in sides]
        rows.append(["✓" if text == flip.gold else "", md.text(fmt.visible(text, 300)),
                     *(f"**{cell}**" if at == b else cell for cell, b in zip(cells, best, strict=True))])
    margins = " and ".join(f"{fmt.change(s.margin)} ({name})" for s, name in zip(sides, names, strict=True)
                           if s.margin is not None)
    return [md.table(["", "Choice", *names], rows),
            f"Log-likelihoods in {unit}; bold: the choice taken."
            + (f" Margin of the right choice over the best other one: {margins}." if margins else "")]
