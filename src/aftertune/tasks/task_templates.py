"""Renders the templates of lm-eval's task files in a sandbox, with limits in time, memory and size.

    limit_templates()      from now on, lm-eval's ``apply_template`` renders in `TaskEnvironment`

A template is compiled once, while lm-eval compiles it for every document.
"""

from __future__ import annotations

import datetime
import decimal
import functools
from typing import Any

from jinja2 import Template
from jinja2.sandbox import SandboxedEnvironment
from markupsafe import Markup

from aftertune.sources.limits import checked_size, template_limits

#: Types whose methods only read. A document may also have images and other values, whose methods write files.
_READ_ONLY = (str, bytes, int, float, bool, complex, type(None), list, tuple, dict, set, frozenset, range, Markup,
              datetime.date, datetime.time, datetime.timedelta, decimal.Decimal)
#: Compiled templates that are kept.
_KEPT = 1000


class _LimitedTemplate(Template):
    """A template with limits for each rendering. Raises OutOfTime, MemoryError or TooLong."""

    def render(self, *args: Any, **kwargs: Any) -> str:
        with template_limits():
            text = super().render(*args, **kwargs)
        return checked_size(text)


class TaskEnvironment(SandboxedEnvironment):
    """The environment of task files: Jinja's sandbox, without the methods of unusual values."""

    template_class = _LimitedTemplate

    def from_string(self, source: Any, globals: Any = None, template_class: Any = None) -> Template:
        """The compiled template."""
        if not isinstance(source, str) or globals or template_class:
            return super().from_string(source, globals, template_class)
        return self._compiled(source)

    @functools.lru_cache(_KEPT)  # noqa: B019 (there is one environment)
    def _compiled(self, source: str) -> Template:
        with template_limits():
            return super().from_string(source)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """True for attributes of plain values and of Jinja's own objects."""
        plain = isinstance(obj, _READ_ONLY) or type(obj).__module__.startswith("jinja2.")
        return plain and super().is_safe_attribute(obj, attr, value)


def limit_templates() -> None:
    """Make lm-eval render the templates of task files in this environment; in its own one they can run code."""
    import lm_eval.utils

    environment = lm_eval.utils.env
    if isinstance(environment, TaskEnvironment):
        return
    limited = TaskEnvironment(loader=None, undefined=environment.undefined,
                              keep_trailing_newline=environment.keep_trailing_newline)
    limited.filters.update(environment.filters)
    lm_eval.utils.env = limited
