"""The HTML page and its charts: self-contained, inert, accessible, stable."""

from __future__ import annotations

import html
import math
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest

import report_cases as cases
from aftertune.report import write_page
from aftertune.report.charts import forest, loss_curve
from page_outline import Outline

ALL = (*cases.COMPARISONS, cases.MODELS, cases.FORCED)


@pytest.fixture(scope="module")
def page() -> str:
    return write_page(cases.results([*cases.EVALUATIONS, cases.FOREIGN], cases.TUNINGS, ALL, answers=cases.ANSWERS),
                      title="Orders <study>")


@pytest.fixture(scope="module")
def outline(page) -> Outline:
    return Outline.of(page)


def test_the_document_is_whole_and_ids_are_unique(outline):
    assert outline.broken == []
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))


def test_no_scripts_no_handlers_no_requests(page, outline):
    assert not {"script", "iframe", "img", "link", "object", "form"} & set(outline.tags)
    assert outline.handlers == []
    assert all(link.startswith("#") and link[1:] in outline.ids for link in outline.links)
    assert "http:" not in page
    assert "https:" not in page
    assert "url(" not in page.replace("url(#", "")
    assert "default-src 'none'" in page


def test_model_text_is_inert_and_visible(page):
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;⟨U+202E⟩" in page
    assert "⟨U+0000⟩" in page
    assert "<title>Orders &lt;study&gt;</title>" in page


def test_verdicts_are_words_with_marks_not_colour_alone(page):
    for word in ("forgot", "improved", "kept", "undecided", "higher"):
        assert re.search(rf'<span class="badge [a-z]+"><span aria-hidden="true">.</span> {word}</span>', page)


def test_the_page_shows_what_the_record_shows(page):
    for text in ("FORCED COMPARISON", "it is not proven that other-360m was made from smollm2", "−11.00",
                 "−16.10 to −6.20", "&lt;0.001", "12 / 45", "about 752 items would decide it", "1.912",
                 "random 300 of 10,042, seed 0", "Margin: ±5.00 points.", "Cut off at the limit",
                 "length of the choice in characters", cases.BASE.weights[:12]):
        assert text in page
    assert "nan" not in re.sub(r"[A-Za-z]nan|nan[a-z]", "", page)


def test_changed_answers_stand_side_by_side_lost_ones_first(page):
    pairs = re.findall(r"<strong>orders</strong>, item (\d+), (\w+)", page)
    assert pairs == [("2", "lost"), ("0", "gained"), ("1", "gained")]


def test_the_same_input_gives_the_same_bytes(page):
    again = write_page(cases.results([*cases.EVALUATIONS, cases.FOREIGN], cases.TUNINGS, ALL, answers=cases.ANSWERS),
                       title="Orders <study>")
    assert again == page


def test_an_empty_page_is_a_page():
    assert "Nothing has been evaluated yet." in write_page(cases.results(), title="Empty")


def test_the_forest_plot_speaks_and_takes_the_colours_of_the_page():
    svg = forest(cases.COMPARISONS[0], 760)
    label = re.search(r'<desc id="[^"]*">([^<]*)</desc>', svg)
    assert label
    assert "<title" in svg
    assert "HellaSwag: +0.33 (−2.50 to +3.20), kept" in label[1]
    assert "orders: +84.17" in label[1]
    for name in ("lower", "higher", "within", "undecided", "band"):
        used = name in {"higher", "within", "undecided", "band"}
        assert (f"var(--{name})" in svg) is used
    assert "#0a0b" not in svg
    assert ">improved</text>" in svg  # text stays text


def test_long_names_are_cut_in_the_plot_but_whole_in_its_label():
    name = "a_task_with_a_very_long_name_that_no_column_can_hold"
    long = replace(cases.COMPARISONS[1], rows=(replace(cases.CARELESS_ROWS[0], task=name),))
    svg = forest(long, 340)
    assert f">{name[:20]}…{name[-10:]}</text>" in svg
    assert f"{name}: −11.00" in svg


def test_hostile_names_stay_text_in_charts():
    odd = replace(cases.COMPARISONS[1],
                  rows=(replace(cases.CARELESS_ROWS[0], task='"><script>$x$</script>&'),))
    svg = forest(odd, 760)
    assert "<script" not in svg
    assert "$x$&lt;/script&gt;&amp;</text>" in svg  # shown as it is, not set as mathematics
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ">漢字</text>" in forest(replace(odd, rows=(replace(odd.rows[0], task="漢字"),)), 340)
    loop = replace(cases.TUNINGS[0], name='"><script>')
    assert "<script" not in loss_curve(loop, 340)


def test_nothing_to_draw_draws_nothing():
    rows = (replace(cases.CARELESS_ROWS[0], low=float("-inf")),)
    assert forest(replace(cases.COMPARISONS[1], rows=rows), 760) == ""
    assert loss_curve(replace(cases.TUNINGS[0], steps=()), 760) == ""
    lost = ({"step": 1.0, "loss": math.nan}, {"step": 2.0})
    assert loss_curve(replace(cases.TUNINGS[0], steps=lost), 760) == ""


def test_reports_import_no_model_library_and_charts_import_matplotlib_late():
    heavy = ["torch", "lm_eval", "transformers", "sqlalchemy", "matplotlib", "rich", "datasets"]
    code = f"import sys, aftertune.report; print(sorted(set({heavy}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [360, 400, 800, 1280])
def test_neither_the_page_nor_a_table_in_it_scrolls_sideways(page, tmp_path, width):
    """The page in a frame of this width with everything unfolded, measured by the browser."""
    unfolded = html.escape(page.replace("<details>", "<details open>"))
    probe = (f"<body><iframe id=f style='width:{width}px;height:900px;border:0' srcdoc=\"{unfolded}\"></iframe>"
             "<script>onload=()=>setTimeout(()=>{const d=f.contentDocument.documentElement;"
             "const all=[...d.querySelectorAll('.scroll')],cut=all.filter(e=>e.scrollWidth>e.clientWidth);"
             "document.body.textContent='width '+d.scrollWidth+' of '+d.clientWidth+', cut '+cut.length+' of '"
             "+all.length+' tables'},300)</script>")
    (tmp_path / "probe.html").write_text(probe, encoding="utf-8")
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom",
         "--window-size=1400,1000", "--virtual-time-budget=3000", f"--user-data-dir={tmp_path / 'profile'}",
         str(tmp_path / "probe.html")], capture_output=True, text=True, check=True, timeout=300)
    measured = re.search(r"width (\d+) of (\d+), cut (\d+) of (\d+) tables", done.stdout)
    assert measured is not None, done.stdout[-500:]
    assert [int(n) for n in measured.groups()][:3] == [width, width, 0]
    assert int(measured[4]) >= 10


def printed(page: str) -> tuple[list[str], bool]:
    """The sections that are printed unless everything is asked for, and whether everything is from the start."""
    return (re.findall(r'<section class="first" aria-labelledby="(\w+)">', page),
            '<input type="checkbox" id="print-all" checked>' in page)


def test_what_is_printed_is_the_overview_the_verdicts_and_the_observations(page):
    assert printed(page) == (["overview", "verdicts", "observations"], False)
    assert '<input type="checkbox" id="print-all">' in page
    rules = page.split("@media print {")[1].split("\n}")[0]
    for rule in ("body:not(:has(#print-all:checked)) :is(nav, main > section:not(.first), details:not([open])) "
                 "{ display: none; }", "body:has(#print-all:checked) details::details-content { content-visibility: "
                 "visible; block-size: auto; }"):
        assert rule in rules
    # a browser that does not know :has leaves these rules out, and prints everything
    assert all(":has(#print-all:checked)" in line for line in rules.splitlines() if "section" in line)


def test_a_page_without_comparisons_prints_everything():
    only = write_page(cases.results(cases.EVALUATIONS), title="x")
    assert printed(only) == (["overview"], True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_the_page_of_a_few_fine_tunes_prints_as_two_pages(page, tmp_path):
    counts = []
    for text in (page, page.replace('id="print-all">', 'id="print-all" checked>')):
        (tmp_path / "page.html").write_text(text, encoding="utf-8")
        subprocess.run(["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer",
                        f"--print-to-pdf={tmp_path / 'page.pdf'}", f"--user-data-dir={tmp_path / 'profile'}",
                        str(tmp_path / "page.html")], capture_output=True, check=True, timeout=120)
        counts.append(len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "page.pdf").read_bytes())))
    assert counts[0] <= 2 < counts[1]


def test_every_cell_of_a_narrow_page_has_its_heading(page):
    """Below 1010 px the rows are shown as cards, and the heading of each figure comes from its cell."""
    cells = re.findall(r'<td class="([^"]*)"( data-label="[^"]+")?>', page)
    assert len(cells) > 150
    assert {kind for kind, label in cells if not label} == {"verdict"}
