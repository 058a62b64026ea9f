"""``aftertune demo``: the whole loop on the embedded study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for tunings, record and page.")] = Path("runs/demo"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Evaluate a real model, tune it with care and without, and see what each taught and what was forgotten."""
    from aftertune.cli.run import execute, show
    from aftertune.demo import folder
    from aftertune.study import Study

    show(execute(Study.load(folder() / "study.yaml"), out), as_json)
