"""Writes the HTML report: one self-contained page without scripts.

    Path("report.html").write_text(write_page(results, title="Orders study"))

Jinja2 escapes every text; only the charts of this package are inserted as markup. A content security policy forbids
scripts and all requests. The same input gives the same bytes. Sections without content are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import BaseLoader, Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from aftertune.report import formatting as fmt
from aftertune.report.badges import BADGES
from aftertune.report.columns import columns
from aftertune.report.facts import CODE
from aftertune.report.names import metric_description, metric_label, task_description, task_title
from aftertune.report.page.figures import balance_views, factor_views, with_classes
from aftertune.report.page.overview import overview
from aftertune.report.page.views import (
    audit_sentences,
    cell_rows,
    comparison_view,
    contrast_view,
    costs,
    evaluation_view,
    flips_views,
    provenance_view,
    reported_views,
    tuning_view,
)
from aftertune.report.results import Results, families, newest, outcomes
from aftertune.report.sentences import Observation, observations, seed_observations
from aftertune.report.table import metrics_by_task
from aftertune.values import Evaluation

TEMPLATES = Path(__file__).parent / "templates"
_MAX_OBSERVATIONS = 12  # that are shown without a click
_MANY = 30  # of more comparisons or fine-tunes than this, each chart is drawn for one width only


def write_page(results: Results, *, title: str) -> str:
    """The report as HTML."""
    environment = make_environment(FileSystemLoader(TEMPLATES))
    comparisons, tunings = results.comparisons, results.tunings
    reported, flips, tuning_outcomes = reported_views(results.reported), flips_views(results.flips), outcomes(results)
    return with_classes(environment.get_template("page.html").render(
        title=title, code=CODE, overview=overview(results, reported), observations=_observations(results),
        balances=balance_views(tuning_outcomes), factors=factor_views(tuning_outcomes),
        contrasts=[contrast_view(c) for c in results.contrasts], cells=cell_rows(results.cells),
        comparisons=[comparison_view(c, results, flips.get(c.id, []), many=len(comparisons) > _MANY)
                     for c in comparisons],
        families=[(f.title, fmt.compact(f.model.parameters),
                   [evaluation_view(e, f, results) for e in f.evaluations]) for f in families(results)],
        tunings=[tuning_view(t, many=len(tunings) > _MANY) for t in tunings], costs=costs(tunings),
        reported=reported, audit=audit_sentences(results.reported),
        provenance=provenance_view(results), descriptions=_descriptions(results.evaluations)) + "\n")


def make_environment(loader: BaseLoader) -> Environment:
    """Jinja2 for pages with results: every text is escaped, and its hidden characters are shown as code points."""
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True, finalize=_visible)
    environment.globals |= {"badges": BADGES, "columns": columns}
    return environment


def _visible(value: object) -> object:
    """A value as the templates insert it: control and direction-changing characters are shown as code points."""
    return fmt.visible(value, len(value)) if isinstance(value, str) and not isinstance(value, Markup) else value


def _observations(results: Results) -> tuple[list[Observation], list[Observation]]:
    """(shown, folded) observations. If there are many, only losses and refusals are shown without a click."""
    every = [*seed_observations(results.contrasts), *observations(newest(results.comparisons))]
    if len(every) <= _MAX_OBSERVATIONS:
        return every, []
    first = [o for o in every if o.lead in ("Forgetting", "Lower", "No observation")][:_MAX_OBSERVATIONS]
    return first, [o for o in every if o not in first]


def _descriptions(evaluations: Sequence[Evaluation]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """(task, what it measures, [(metric, what it counts)]) of each task that has a score."""
    targets = {t.task for e in evaluations for t in e.tasks if t.target}
    return [(fmt.visible(task_title(task)), task_description(task, target=task in targets),
             [(fmt.visible(metric_label(*key)), metric_description(*key)) for key in keys])
            for task, keys in metrics_by_task(evaluations).items()]
