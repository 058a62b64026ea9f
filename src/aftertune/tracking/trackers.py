"""Writes a run to each tracker that is known. Each works offline, with the tracker's own variables.

    TRACKERS["tensorboard"].log(run)         "tensorboard/orders", where the run is

    mlflow        MLFLOW_TRACKING_URI, else ./mlflow.db where its database packages are, else ./mlruns
    wandb         WANDB_MODE, WANDB_PROJECT, WANDB_DIR; without a key it works offline, in ./wandb
    trackio       TRACKIO_DIR; a SQLite file for each project
    tensorboard   TENSORBOARD_LOGGING_DIR, else ./tensorboard

An entry that is handed over again replaces its run where the tracker allows that. Nothing of this process is handed
over beside the run: no command line, no code, no git remote, no host name.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from aftertune.sources.cache import path_part
from aftertune.tracking.runs import PAGE, TrackedRun

#: MLflow's longest values.
_PARAM, _TAG = 6000, 5000


@dataclass(frozen=True, slots=True)
class Tracker:
    """One tracker. package: which it needs; log: writes a run, and returns the place of its group."""

    package: str
    log: Callable[[TrackedRun], str]


def _step(run: TrackedRun) -> int:
    """The step of the figures that belong to the whole run: the last one of its curves."""
    return run.curves[-1][0] if run.curves else 0


def _log_mlflow(run: TrackedRun) -> str:
    mlflow: Any = import_module("mlflow")
    entities: Any = import_module("mlflow.entities")
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(run.group)
    experiment = found.experiment_id if found else client.create_experiment(run.group)
    earlier = client.search_runs([experiment], filter_string=f"tags.`aftertune.id` = '{run.id}'")
    tags = {k.replace(":", "."): v[:_TAG] for k, v in run.tags.items()}
    created = client.create_run(experiment, run_name=run.name, tags={**tags, "mlflow.user": "", "mlflow.source.name": (
        "aftertune")})
    id_ = created.info.run_id
    params = [entities.Param(_mlflow_name(k), str(v)[:_PARAM]) for k, v in run.params.items()]
    metrics = [entities.Metric(_mlflow_name(k), v, 0, step) for step, values in [*run.curves, (_step(run), run.metrics)]
               for k, v in values.items()]
    try:
        for start in range(0, len(params), 100):
            client.log_batch(id_, params=params[start:start + 100])
        for start in range(0, len(metrics), 1000):
            client.log_batch(id_, metrics=metrics[start:start + 1000])
        for name, text in run.files.items():
            client.log_text(id_, text, name)
    except BaseException:
        client.set_terminated(id_, "FAILED")
        raise
    client.set_terminated(id_)
    for before in earlier:  # only now, so that a run that fails does not take the place of a complete one
        client.delete_run(before.info.run_id)
    return f"experiment {run.group} of {mlflow.get_tracking_uri()}"


def _mlflow_name(name: str) -> str:
    """A name with the characters that MLflow allows."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)[:250]


def _log_wandb(run: TrackedRun) -> str:
    wandb: Any = import_module("wandb")
    quiet = {"console": "off", "silent": True, "save_code": False, "disable_code": True, "disable_git": True,
             "x_disable_meta": True, "x_disable_stats": True, "x_disable_machine_info": True,
             "x_save_requirements": False, "program": "aftertune", "host": "", "username": "", "email": ""}
    mode = os.environ.get("WANDB_MODE") or (None if _has_wandb_key(wandb) else "offline")
    project = os.environ.get("WANDB_PROJECT") or "aftertune"
    words = sorted({v for k, v in run.tags.items() if k.startswith("verdict/")})
    settings = {k: v for k, v in quiet.items() if k in wandb.Settings.model_fields}
    session = wandb.init(project=project, group=run.group, job_type=run.kind, name=run.name, id=run.id, mode=mode,
                         resume="allow" if mode != "offline" else None, reinit="create_new", config={
                             **run.params, "aftertune": dict(run.tags)}, tags=[w[:64] for w in words],
                         settings=wandb.Settings(**settings))
    try:
        for step, values in run.curves:
            session.log(dict(values), step=step)
        session.summary.update({**run.metrics, **run.tags})
        with tempfile.TemporaryDirectory() as folder:
            if run.files:
                artifact = wandb.Artifact(path_part(f"results-{run.id}").replace(" ", "_"), type="results")
                for name, text in run.files.items():
                    (Path(folder) / name).write_text(text, encoding="utf-8")
                    artifact.add_file(str(Path(folder) / name), name=name)
                session.log_artifact(artifact)
            session.finish()
    except BaseException:
        session.finish(exit_code=1)
        raise
    return f"project {project}, {'offline: wandb sync sends it' if mode == 'offline' else mode or 'online'}"


def _has_wandb_key(wandb: Any) -> bool:
    """Whether wandb finds a key in its own places."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return bool(wandb.Api(timeout=5).api_key)
    except Exception:  # it raises several types of errors where there is no key
        return False


def _log_trackio(run: TrackedRun) -> str:
    trackio: Any = import_module("trackio")
    project = path_part(run.group)
    with_id = f"{run.name} ({run.id})"
    session = trackio.init(project=project, name=with_id, group=run.kind, embed=False, resume="never",
                           auto_log_gpu=False, auto_log_cpu=False, config={
                               **{k.lstrip("_"): v for k, v in run.params.items()}, **run.tags})
    try:
        for step, values in run.curves:
            session.log(dict(values), step=step)
        session.log({**run.metrics, **{name: trackio.Markdown(text) for name, text in run.files.items()
                                       if name != PAGE}}, step=_step(run) + 1)
        if PAGE in run.files:
            with tempfile.TemporaryDirectory() as folder:
                artifact = trackio.Artifact(path_part(f"results-{run.id}"), type="results")
                (Path(folder) / PAGE).write_text(run.files[PAGE], encoding="utf-8")
                artifact.add_file(str(Path(folder) / PAGE))
                session.log_artifact(artifact)
    finally:
        session.finish()
    return f"project {project} of {trackio.utils.TRACKIO_DIR}"


def _log_tensorboard(run: TrackedRun) -> str:
    """TensorBoard has no tags and no files: verdicts and the card are texts, and the page lies beside the events."""
    writer_of: Any = import_module("tensorboardX").SummaryWriter
    home = Path(os.environ.get("TENSORBOARD_LOGGING_DIR") or "tensorboard") / path_part(run.group)
    folder = home / path_part(f"{run.name}-{run.id}")
    if folder.is_dir() and not folder.is_symlink():
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
    writer = writer_of(str(folder))
    try:
        for step, values in run.curves:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
        for name, value in run.metrics.items():
            writer.add_scalar(name, value, _step(run))
        for title, table in (("parameters", run.params), ("verdicts", run.tags)):
            rows = "".join(f"| {k} | {str(v).replace('|', '/')} |\n" for k, v in table.items())
            writer.add_text(title, f"| name | value |\n|---|---|\n{rows}")
        for name, text in run.files.items():
            if name == PAGE:
                (folder / name).write_text(text, encoding="utf-8")
            else:
                writer.add_text(name, text)
    except BaseException:
        writer.close()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    writer.close()
    return str(home)


#: Name -> tracker. The names are those of the extras.
TRACKERS: dict[str, Tracker] = {
    "mlflow": Tracker("mlflow", _log_mlflow), "wandb": Tracker("wandb", _log_wandb),
    "trackio": Tracker("trackio", _log_trackio), "tensorboard": Tracker("tensorboardX", _log_tensorboard)}
