"""Says what an unknown key of a study probably means.

    meaning("lr", ["learning_rate", …], parts)               " (did you mean 'learning_rate'?)"
    meaning("learning_rate", ["model", …], parts)            " (a key of `tunings.NAME`)"

The names of other tools (transformers, PEFT, axolotl, LLaMA-Factory, lm-eval) come first, then keys of other parts of a
study, then keys with a similar spelling.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from pydantic import BaseModel

from aftertune.errors import nearest

#: Key of another tool -> keys here that mean the same; the first that the part has, or else the first, is named.
OTHER_NAMES: Mapping[str, Sequence[str]] = {
    "lr": ("learning_rate",), "base_learning_rate": ("learning_rate",),
    "num_train_epochs": ("epochs",), "num_epochs": ("epochs",), "epoch": ("epochs",), "steps": ("max_steps",),
    "per_device_train_batch_size": ("batch_size",), "micro_batch_size": ("batch_size",),
    "train_batch_size": ("batch_size",), "gradient_accumulation_steps": ("accumulation",),
    "gradient_accumulation": ("accumulation",), "warmup_ratio": ("warmup",), "warmup_steps": ("warmup",),
    "lr_scheduler": ("schedule",), "lr_scheduler_type": ("schedule",), "scheduler": ("schedule",),
    "lora_r": ("lora.r", "r"), "lora_rank": ("lora.r", "r"), "rank": ("r", "lora.r"), "r": ("lora.r",),
    "lora_alpha": ("lora.alpha", "alpha"), "alpha": ("lora.alpha",), "lora_dropout": ("lora.dropout", "dropout"),
    "dropout": ("lora.dropout",), "lora_target": ("lora.target_modules", "target_modules"),
    "lora_target_modules": ("lora.target_modules", "target_modules"), "target_modules": ("lora.target_modules",),
    "max_seq_length": ("max_length",), "max_seq_len": ("max_length",), "cutoff_len": ("max_length",),
    "sequence_len": ("max_length",), "block_size": ("max_length",), "finetuning_type": ("method",),
    "adapter": ("method", "tokenizer"), "train_on_inputs": ("learn",), "chat_template": ("template",),
    "prompt_template": ("template",), "val_set_size": ("data.validation", "validation"),
    "val_size": ("data.validation", "validation"), "validation_split": ("data.validation", "validation"),
    "test_size": ("data.held_out", "held_out"), "dataset": ("data", "file"), "datasets": ("data", "file"),
    "dataset_path": ("data", "file"), "train_file": ("data", "file"), "path": ("file", "model", "data"),
    "data_files": ("file", "data"), "base_model": ("model", "base", "bases"), "pretrained": ("model",),
    "model_name_or_path": ("model", "base"), "model_name": ("model", "base"), "model_path": ("model", "base"),
    "models": ("bases",), "benchmarks": ("tasks",), "evals": ("tasks",), "task": ("name", "tasks"),
    "n_shot": ("num_fewshot",), "fewshot": ("num_fewshot",), "shots": ("num_fewshot",), "few_shot": ("num_fewshot",),
    "num_shots": ("num_fewshot",), "max_samples": ("limit", "sample"), "samples": ("sample",), "n": ("sample", "limit"),
    "generation_kwargs": ("gen_kwargs",), "lora_modules": ("lora.target_modules", "target_modules"),
    "save_steps": ("keep_checkpoints",), "save_total_limit": ("keep_checkpoints",),
    "early_stopping_patience": ("early_stop.patience", "patience"), "eval_steps": ("early_stop.every", "every"),
    "precision": ("dtype",), "torch_dtype": ("dtype",),
    "fine_tunes": ("tunings",), "finetunes": ("tunings",), "experiments": ("tunings",), "runs": ("tunings",),
    "grid": ("matrix",), "sweep": ("matrix",), "name": ("study",), "title": ("study",), "margins": ("margin",),
}


def meaning(key: str, known: Collection[str], parts: Mapping[str, type[BaseModel]]) -> str:
    """A remark on an unknown key, "" if there is nothing to say.

    known: the keys of its part. parts: the parts of a study by the key that holds them, "" for the study itself.
    """
    own = [name for name in OTHER_NAMES.get(key.lower().replace("-", "_"), ())
           if name.partition(".")[0] in known]
    if own:
        return f" (did you mean {own[0]!r}?)"
    others = [_place(name) for name, part in parts.items() if key in part.model_fields]
    return f" (a key of {others[0]})" if others else nearest(key, list(known))


def _place(name: str) -> str:
    """Where the part of a study is that a key holds."""
    places = {"": "the study itself", "tasks": "`tasks`", "target": "`tasks.target`", "bases": "`bases.NAME`",
              "tunings": "`tunings.NAME`"}
    return places.get(name, f"`tunings.NAME.{name}`")
