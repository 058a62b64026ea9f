"""The embedded demo: a study file, its training and test data, and the program that generates the data.

    from aftertune.demo import folder
    Study.load(folder() / "study.yaml")
"""

from __future__ import annotations

from pathlib import Path


def folder() -> Path:
    """The folder of the embedded study and its data."""
    return Path(__file__).parent
