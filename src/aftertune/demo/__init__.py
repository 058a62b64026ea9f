"""The embedded study: ``study.yaml``, the data it trains and tests on, and the generator of that data.

    from aftertune.demo import folder
    Study.load(folder() / "study.yaml")
"""

from __future__ import annotations

from pathlib import Path


def folder() -> Path:
    """Where the embedded study and its data lie."""
    return Path(__file__).parent
