"""Owns the sizes of a model, read from its config without its weights."""

from __future__ import annotations

from aftertune.errors import SourceError
from aftertune.sources import hub
from aftertune.sources.folders import read_json
from aftertune.sources.origin import ModelSource
from aftertune.sources.resolve import resolve_model
from aftertune.study.presets import Shape, known


def shape_of(source: ModelSource) -> Shape | None:
    """The shape that a model's config (or GGUF metadata) tells; None where it names no such sizes."""
    preset = known(source.source)
    if preset is not None:
        return preset.shape
    if source.gguf_path is None:
        return Shape.of(read_json(source.path / "config.json"))
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(source.path), gguf_file=source.gguf_file)
    return Shape.of(config.to_dict())


def shape_on_hub(model: str, revision: str | None = None) -> Shape | None:
    """The same of a model that is not here: a preset's, or that of its config on the Hub, the only file fetched.

    Raises SourceError, as `resolve_model` does, for what is no Hub id or cannot be reached.
    """
    preset = known(model)
    if preset is not None:
        return preset.shape
    try:
        folder, _ = hub.snapshot(model, revision=revision, what=("config.json",),
                                 usable=lambda found: (found / "config.json").is_file())
    except SourceError:
        resolve_model(model, revision=revision)  # says what is wrong with a path, too
        raise
    return Shape.of(read_json(folder / "config.json"))
