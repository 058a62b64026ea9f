"""Describes the training of any trainer of transformers as a tuning of the ledger.

    begun_tuning(trainer, base, resumed=None, watch={…}).settings      {"learning_rate": 2e-05, "epochs": 1.0, …}

Its id is a hash of base, data, settings and seed, as for ``aftertune tune``: the same script again has the same id, and
several seeds of one script are several seeds of one recipe.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from aftertune.errors import InputError
from aftertune.ledger import Ledger
from aftertune.provenance import capture
from aftertune.sources.live import is_peft
from aftertune.tuning import identify_tuning
from aftertune.values import ModelIdentity, Tuning

#: Our name of a setting -> the name in transformers' TrainingArguments.
_ARGUMENTS = {
    "epochs": "num_train_epochs", "max_steps": "max_steps", "learning_rate": "learning_rate",
    "batch_size": "per_device_train_batch_size", "accumulation": "gradient_accumulation_steps",
    "processes": "world_size", "warmup": "warmup_steps", "weight_decay": "weight_decay",
    "schedule": "lr_scheduler_type", "optimizer": "optim", "max_grad_norm": "max_grad_norm",
    "gradient_checkpointing": "gradient_checkpointing", "bf16": "bf16", "fp16": "fp16", "max_length": "max_length",
    "packing": "packing"}
#: Rows that are hashed together.
_CHUNK = 10_000


def begun_tuning(trainer: Any, base: ModelIdentity, resumed: Tuning | None, watch: Mapping[str, Any]) -> Tuning:
    """The tuning of a training that begins. resumed: the stored one that it goes on with, whose analyses up to the
    step of the checkpoint are kept. watch: the settings of the watch."""
    args, data, notes = trainer.args, trainer.train_dataset, []
    fingerprint = data_fingerprint(data)
    if not fingerprint:
        notes = [f"the training data have no fingerprint: they are read as a {type(data).__name__}, not from a table"]
    settings = _settings(trainer) | {"watch": dict(watch)}
    name = str(getattr(args, "run_name", None) or Path(args.output_dir).name or type(trainer).__name__)
    tuning = Tuning(
        id=identify_tuning(base, fingerprint, settings, args.seed), name=name, base=base, method=_method(trainer.model),
        data=fingerprint, data_source=_data_name(data), examples=len(data) if hasattr(data, "__len__") else 0,
        seed=args.seed, settings=settings, output=str(args.output_dir), notes=tuple(notes), provenance=capture(),
        trainable_parameters=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad))
    if resumed is None or resumed.base.fingerprint != base.fingerprint:
        return tuning
    kept = tuple(point for point in resumed.watch if point.step <= trainer.state.global_step)
    return replace(tuning, id=resumed.id, watch=kept, states=resumed.states, provenance=resumed.provenance)


def stored_tuning(ledger: Ledger, tuning_id: str | None) -> Tuning | None:
    """The tuning with this id, or None."""
    if not tuning_id:
        return None
    try:
        tuning = ledger.find_tuning(tuning_id)
    except InputError:
        return None
    return tuning if tuning.id == tuning_id else None


def data_fingerprint(data: Any) -> str:
    """SHA-256 over the rows of a ``datasets.Dataset`` in their order; "" for other data."""
    from datasets import Dataset

    if not isinstance(data, Dataset):
        return ""
    sha = hashlib.sha256()
    table = data.with_format("arrow")
    for start in range(0, len(data), _CHUNK):
        rows = table[start:start + _CHUNK]
        for name in sorted(rows.column_names):
            sha.update(repr((name, rows.column(name).to_pylist())).encode("utf-8", "surrogatepass"))
    return sha.hexdigest()


def _data_name(data: Any) -> str:
    """The name of the data set as ``datasets`` knows it."""
    info = getattr(data, "info", None)
    return str(getattr(info, "dataset_name", None) or "train_dataset of the trainer")


def _settings(trainer: Any) -> dict[str, Any]:
    """The settings of the training, those of a PEFT adapter among them."""
    values = {ours: getattr(trainer.args, theirs, None) for ours, theirs in _ARGUMENTS.items()}
    settings = {name: getattr(value, "value", value) for name, value in values.items() if value is not None}
    settings |= {"trainer": type(trainer).__name__, "dtype": str(trainer.model.dtype).removeprefix("torch.")}
    if is_peft(trainer.model):
        from aftertune.sources.fingerprint import adapter_fields
        from aftertune.values import json_ready

        config = trainer.model.peft_config[trainer.model.active_adapters[0]].to_dict()
        plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
        settings["adapter"] = json_ready(adapter_fields(plain))
    return settings


def _method(model: Any) -> str:
    """The fine-tuning method, by the names of `aftertune.methods` where there is one."""
    if not is_peft(model):
        return "full"
    config = model.peft_config[model.active_adapters[0]]
    kind = str(getattr(config.peft_type, "value", config.peft_type)).lower()
    if kind != "lora":
        return kind
    start = str(getattr(config, "init_lora_weights", True))
    return ("qlora" if getattr(model, "is_loaded_in_4bit", False) else "dora" if config.use_dora else
            "rslora" if config.use_rslora else "pissa" if start.startswith("pissa") else "lora")
