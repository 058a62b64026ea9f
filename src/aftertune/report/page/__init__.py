"""The page: one self-contained HTML file without scripts, to read, print and send.

    Path("report.html").write_text(write_page(evaluations, tunings, comparisons, title="Orders study"))

Everything foreign goes through Jinja2's autoescape; only the charts of this package are put in as markup.
A content security policy forbids scripts and every request. The same input gives the same bytes. A section is there
only where there is something to show in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from aftertune.report import format as fmt
from aftertune.report.facts import CODE
from aftertune.report.families import families
from aftertune.report.generated import Answers
from aftertune.report.names import metric_description, metric_title, task_description, task_title
from aftertune.report.observations import Observation, observations
from aftertune.report.outcomes import outcomes
from aftertune.report.page.examples import Flipped, examples
from aftertune.report.page.figures import balance_views, factor_views, with_classes
from aftertune.report.page.origins import costs, origins
from aftertune.report.page.overview import overview
from aftertune.report.page.quoted import quoted, told
from aftertune.report.page.views import cell_lines, comparison_view, contrast_view, evaluation_view, tuning_view
from aftertune.report.seeds import seed_observations
from aftertune.report.table import metrics_by_task
from aftertune.reported import Judged
from aftertune.values import Comparison, Contrast, Evaluation, Tuning

if TYPE_CHECKING:
    from aftertune.ledger import Cell

_FEW = 12  # so many observations stand on the page at once
_MANY = 30  # more comparisons or fine-tunes than this, and their charts are drawn for one width only


@dataclass(frozen=True, slots=True, kw_only=True)
class Studied:
    """What a study has beyond its runs. cells: in whatever state; contrasts: recipes compared over seeds."""

    cells: Sequence[Cell] = ()
    contrasts: Sequence[Contrast] = ()


def write_page(
    evaluations: Sequence[Evaluation],
    tunings: Sequence[Tuning],
    comparisons: Sequence[Comparison],
    *,
    title: str,
    answers: Answers | None = None,
    flips: Flipped | None = None,
    reported: Sequence[Judged] = (),
    study: Studied | None = None,
) -> str:
    """The report as HTML.

    answers: evaluation id -> answers, for the form of generated ones; flips: comparison id -> the items that changed,
    of each task; reported: documents of others with their audit; study: its cells and contrasts.
    """
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_seen)
    stated = quoted(reported)
    texts, shown = answers or {}, examples(flips or {})
    homes = families(evaluations, tunings)
    found = outcomes(evaluations, tunings, comparisons)
    return with_classes(environment.get_template("page.html").render(
        title=title, code=CODE, overview=overview(evaluations, tunings, comparisons, stated),
        observations=_observed(comparisons, (study or Studied()).contrasts),
        balances=balance_views(found), factors=factor_views(found),
        contrasts=[contrast_view(c) for c in (study or Studied()).contrasts],
        cells=cell_lines((study or Studied()).cells),
        comparisons=[comparison_view(c, texts, shown.get(c.id, []), many=len(comparisons) > _MANY)
                     for c in comparisons],
        families=[(f.title, fmt.compact(f.model.parameters),
                   [evaluation_view(e, f, tunings, texts) for e in f.evaluations]) for f in homes],
        tunings=[tuning_view(t, many=len(tunings) > _MANY) for t in tunings], costs=costs(tunings),
        quoted=stated, told=told(reported),
        origins=origins(evaluations, tunings), descriptions=_descriptions(evaluations)) + "\n")


def _seen(value: object) -> object:
    """Whatever the templates put in, with control and direction-changing characters shown by their code points."""
    return fmt.visible(value, len(value)) if isinstance(value, str) and not isinstance(value, Markup) else value


def _observed(comparisons: Sequence[Comparison], contrasts: Sequence[Contrast]
              ) -> tuple[list[Observation], list[Observation]]:
    """The observations that stand on the page at once, and the rest: where there are many, what is undecided or kept
    can wait."""
    found = [*seed_observations(contrasts), *observations(comparisons)]
    if len(found) <= _FEW:
        return found, []
    first = [o for o in found if o.lead in ("Forgetting", "Lower", "No observation")][:_FEW]
    return first, [o for o in found if o not in first]


def _descriptions(evaluations: Sequence[Evaluation]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """(task, what it measures, [(metric, what it counts)]) for every task with a score."""
    targets = {t.task for e in evaluations for t in e.tasks if t.target}
    return [(fmt.visible(task_title(task)), task_description(task, target=task in targets),
             [(fmt.visible(metric_title(*key)), metric_description(*key)) for key in keys])
            for task, keys in metrics_by_task(evaluations).items()]
