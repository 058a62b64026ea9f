"""``aftertune demo``: the whole loop on the embedded study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aftertune.cli.options import Json


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the tunings, the record and the page.")] = Path("runs/demo"),
    as_json: Json = False,
) -> None:
    """Evaluate a real model, fine-tune it with care and without, and compare what each learned and forgot."""
    from aftertune.cli.run import execute, show
    from aftertune.demo import folder
    from aftertune.study import Study

    show(execute(Study.load(folder() / "study.yaml"), out), as_json)
