"""The page: one self-contained HTML file without scripts, to read, print and send.

    Path("report.html").write_text(write_page(results, title="Orders study"))

Everything foreign goes through Jinja2's autoescape; only the charts of this package are put in as markup.
A content security policy forbids scripts and every request. The same input gives the same bytes. A section is there
only where there is something to show in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from aftertune.report import formatting as fmt
from aftertune.report.badges import BADGES
from aftertune.report.columns import columns
from aftertune.report.facts import CODE
from aftertune.report.names import metric_description, metric_title, task_description, task_title
from aftertune.report.page.figures import balance_views, factor_views, with_classes
from aftertune.report.page.overview import overview
from aftertune.report.page.views import (
    cell_lines,
    comparison_view,
    contrast_view,
    costs,
    evaluation_view,
    examples,
    origins,
    quoted,
    told,
    tuning_view,
)
from aftertune.report.results import Results, families, outcomes
from aftertune.report.sentences import Observation, observations, seed_observations
from aftertune.report.table import metrics_by_task
from aftertune.values import Evaluation

_FEW = 12  # so many observations stand on the page at once
_MANY = 30  # more comparisons or fine-tunes than this, and their charts are drawn for one width only


def write_page(results: Results, *, title: str) -> str:
    """The report as HTML."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_seen)
    environment.globals |= {"badges": BADGES, "columns": columns}
    comparisons, tunings = results.comparisons, results.tunings
    stated, shown, found = quoted(results.reported), examples(results.flips), outcomes(results)
    return with_classes(environment.get_template("page.html").render(
        title=title, code=CODE, overview=overview(results, stated), observations=_observed(results),
        balances=balance_views(found), factors=factor_views(found),
        contrasts=[contrast_view(c) for c in results.contrasts], cells=cell_lines(results.cells),
        comparisons=[comparison_view(c, results, shown.get(c.id, []), many=len(comparisons) > _MANY)
                     for c in comparisons],
        families=[(f.title, fmt.compact(f.model.parameters),
                   [evaluation_view(e, f, results) for e in f.evaluations]) for f in families(results)],
        tunings=[tuning_view(t, many=len(tunings) > _MANY) for t in tunings], costs=costs(tunings),
        quoted=stated, told=told(results.reported),
        origins=origins(results), descriptions=_descriptions(results.evaluations)) + "\n")


def _seen(value: object) -> object:
    """Whatever the templates put in, with control and direction-changing characters shown by their code points."""
    return fmt.visible(value, len(value)) if isinstance(value, str) and not isinstance(value, Markup) else value


def _observed(results: Results) -> tuple[list[Observation], list[Observation]]:
    """The observations that stand on the page at once, and the rest: where there are many, what is undecided or kept
    can wait."""
    found = [*seed_observations(results.contrasts), *observations(results.comparisons)]
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
