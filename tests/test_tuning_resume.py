"""An interrupted fine-tune resumes from its newest complete checkpoint and ends with the same weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aftertune.errors import AftertuneError, ResumeRefused, StorageError
from aftertune.study import DataSpec, LoraSpec, TuneSpec
from aftertune.tuning import tune
from aftertune.tuning.checkpoints import Checkpoints
from aftertune.tuning.split import Corpus, Rules
from tuning_cases import base_and_data, easy_rows, timeless, write_rows

pytestmark = pytest.mark.slow
STEPS = 12  # 32 training examples, four a step in two parts, an epoch and a half: 8 steps an epoch


class Broken(Exception):
    """The end of the process, as far as a test can have it."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return base_and_data(tmp_path_factory.mktemp("resume"), hidden=64)  # wide enough for four bits


def spec(place, out, **settings):
    data = DataSpec(file=place / "data.jsonl", held_out=0.2)
    values = {"model": str(place / "base"), "data": data, "out": place / out, "learning_rate": 0.01, "epochs": 3.0,
              "max_steps": STEPS, "batch_size": 2, "accumulation": 2, "dtype": "float32",
              "device": "cpu", "threads": 1, "checkpoint_minutes": 0,
              "lora": LoraSpec(r=4, dropout=0.1)}
    return TuneSpec(**{**values, **settings})


def weights(folder: Path) -> bytes:
    [path] = folder.glob("*model.safetensors")
    return path.read_bytes()


def break_at(step):
    def told(done, _total, text):
        if text.startswith("training: step") and done == step:
            raise Broken

    return told


def steps_of(told):
    return [step for step, total, text in told if text.startswith("training: step")]


@pytest.mark.parametrize(("method", "at"), [
    *((method, at) for method in ("lora", "full") for at in (1, 5, 9, 11)), ("qlora", 5), ("qlora", 9), ("dora", 9),
    ("pissa", 9)])
def test_a_broken_run_ends_with_the_weights_of_an_unbroken_one(place, method, at):
    whole = tune(spec(place, f"{method}-whole", method=method))
    broken = spec(place, f"{method}-{at}", method=method)
    with pytest.raises(Broken):
        tune(broken, progress=break_at(at))
    told = []
    done = tune(broken, progress=lambda *p: told.append(p))
    # the watcher is told of a step before its checkpoint is written, so the broken step is done again
    assert steps_of(told) == list(range(at, STEPS + 1))
    assert weights(Path(done.output)) == weights(Path(whole.output))
    assert timeless(done.steps) == timeless(whole.steps)
    assert done.held_out == whole.held_out
    assert not (Path(done.output) / "checkpoints").exists()


@pytest.mark.parametrize(("method", "anchor", "at"), [
    ("lora", "kl:1", 5), ("lora", "kl:1", 9), ("pissa", "kl:1", 5), ("full", "kl:1", 9), ("full", "l2:1", 5)])
def test_a_broken_anchored_run_ends_with_the_weights_of_an_unbroken_one(place, method, anchor, at):
    """The anchor's base is that of the start, not that of the checkpoint."""
    whole = tune(spec(place, f"{method}-{anchor}-whole", method=method, anchor=anchor))
    broken = spec(place, f"{method}-{anchor}-{at}", method=method, anchor=anchor)
    with pytest.raises(Broken):
        tune(broken, progress=break_at(at))
    done = tune(broken)
    assert done.steps[-1]["anchor"] > 0
    assert weights(Path(done.output)) == weights(Path(whole.output))
    assert timeless(done.steps) == timeless(whole.steps)


def test_a_damaged_or_half_written_checkpoint_is_passed_over(place):
    whole, broken = tune(spec(place, "lora-whole", method="lora")), spec(place, "damaged")
    with pytest.raises(Broken):
        tune(broken, progress=break_at(8))
    folder = place / "damaged" / "checkpoints"
    assert {p.name for p in folder.glob("checkpoint-*")} == {"checkpoint-6", "checkpoint-7"}
    state = folder / "checkpoint-7" / "optimizer.pt"
    state.write_bytes(state.read_bytes()[:-1] + b"x")
    (folder / "checkpoint-9").mkdir()
    (folder / "checkpoint-9" / "adapter_model.safetensors").write_bytes(b"half")
    told = []
    done = tune(broken, progress=lambda *p: told.append(p))
    assert steps_of(told)[0] == 7
    assert weights(Path(done.output)) == weights(Path(whole.output))


def test_checkpoints_of_another_tuning_are_not_taken(place):
    with pytest.raises(Broken):
        tune(spec(place, "other"), progress=break_at(4))
    told = []
    tune(spec(place, "other", seed=1), progress=lambda *p: told.append(p))
    assert steps_of(told)[0] == 1
    assert Checkpoints(place / "other" / "checkpoints", "t-0").newest() is None


@pytest.mark.parametrize("data", ["alike", "common"])
def test_a_tuning_that_the_first_version_began_goes_on_by_its_rules(place, monkeypatch, data):
    """Repeats except for case were left out, and all rows of one prompt lay on one side."""
    lines = {"alike": [*easy_rows(), *({**row, "prompt": row["prompt"].upper()} for row in easy_rows())],
             "common": [*easy_rows(), *({"prompt": "say w38 twice", "completion": f"w1 w{n}"} for n in range(20))]}
    path = write_rows(place / f"{data}.jsonl", lines[data])

    def run(out, **options):
        return tune(spec(place, out, data=DataSpec(file=path, held_out=0.2)), **options)

    load = Corpus.load
    with monkeypatch.context() as first:
        first.setattr(Corpus, "load", lambda *parts: load(*parts[:3], Rules(first=True)))
        whole = run(f"{data}-whole")
        with pytest.raises(Broken):
            run(f"{data}-broken", progress=break_at(6))
    told = []
    done = run(f"{data}-broken", progress=lambda *p: told.append(p))
    assert steps_of(told)[0] == 6
    assert (done.id, done.data, weights(Path(done.output))) == (whole.id, whole.data, weights(Path(whole.output)))
    assert "continues by the rules for repeats and the split with which it was started" in " ".join(done.notes)
    again = run(f"{data}-whole")
    assert (again.id, again.result) == (whole.id, whole.result)
    assert run(f"{data}-anew").data != whole.data


def test_a_killed_process_goes_on(place):
    """SIGKILL at a step in the middle, in a process of its own."""
    whole, out = tune(spec(place, "lora-whole", method="lora")), place / "killed"
    values = json.dumps(spec(place, "killed").model_dump(mode="json"))
    script = ("import json, os, signal, sys\nfrom aftertune.study import TuneSpec\nfrom aftertune.tuning import tune\n"
              "def told(done, total, text):\n"
              "    if text.startswith('training: step') and done == 6: os.kill(os.getpid(), signal.SIGKILL)\n"
              "tune(TuneSpec(**json.loads(sys.argv[1])), progress=told)\n")
    died = subprocess.run([sys.executable, "-c", script, values], capture_output=True, check=False,
                          env={**os.environ, "HF_HUB_OFFLINE": "1"}, timeout=300)
    assert died.returncode == -signal.SIGKILL
    assert not (out / "aftertune.json").exists()
    told = []
    done = tune(spec(place, "killed"), progress=lambda *p: told.append(p))
    assert steps_of(told)[0] == 6
    assert weights(Path(done.output)) == weights(Path(whole.output))


def test_what_a_kill_at_the_very_end_left_is_removed(place, monkeypatch):
    killed = spec(place, "killed-at-the-end")
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "remove", lambda _self: _raise(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            tune(killed)
    assert (killed.out / "checkpoints").exists()
    for left in ("checkpoints", ".running"):
        (killed.out / ".running").touch()
        assert tune(killed).status == "done"
        assert not (killed.out / left).exists()
        assert not list(killed.out.glob(".running*"))


def test_temporary_files_of_safetensors_that_a_kill_left_are_removed(tmp_path):
    from aftertune.tuning import output

    for name in (".tmpk7wC62", "aftertune.json", "config.json"):
        (tmp_path / name).touch()
    output.prepare(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_a_loss_that_is_no_number_names_its_examples_and_keeps_the_checkpoint(place):
    with pytest.raises(AftertuneError) as error:
        tune(spec(place, "nan", method="full", learning_rate=1.0, lora=LoraSpec()), progress=poison())
    message = str(error.value)
    assert "the loss at step" in message
    assert "is nan, in training examples " in message
    assert "the last good checkpoint is in" in message
    assert list((place / "nan" / "checkpoints").glob("checkpoint-*/sealed.json"))


def poison():
    """A progress function that makes every weight in training NaN once three steps are done.

    Weights that exist already, of other tests in this process, are left alone.
    """
    before = _weights_in_memory()

    def told(done, _total, text):
        if text.startswith("training: step") and done == 3:
            others = {id(weight) for weight in before}
            for weight in _weights_in_memory():
                if id(weight) not in others:
                    weight.data.fill_(float("nan"))

    return told


def _weights_in_memory():
    import gc

    import torch

    return [thing for thing in gc.get_objects() if isinstance(thing, torch.nn.Parameter) and thing.requires_grad]


def _no_room(patch, target, name, error):
    """Every call of ``target.name`` fails as on a full disk."""
    def full(*_args, **_settings):
        raise error

    patch.setattr(target, name, full)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("failing", ["weights", "manifest"])
def test_a_full_disk_after_the_training_does_not_lose_it(place, method, failing, monkeypatch):
    """safetensors raises an error of its own; the same command with room ends without another step."""
    from safetensors import SafetensorError

    from aftertune.tuning import output

    whole = tune(spec(place, f"{method}-whole", method=method))
    full = spec(place, f"{method}-full-{failing}", method=method)
    with monkeypatch.context() as patch:
        if failing == "weights":
            name = "save" if method == "lora" else "save_whole"
            save = getattr(output, name)

            def broken(model, *rest):
                patch.setattr(type(model), "save_pretrained", lambda *_a, **_k: _raise(
                    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")))
                return save(model, *rest)

            patch.setattr(output, name, broken)
        else:
            _no_room(patch, output, "write_atomic", OSError(28, "No space left on device"))
        with pytest.raises(StorageError, match=r"No space left.* free some space"):
            tune(full)
    assert not (full.out / "aftertune.json").exists()
    told = []
    done = tune(full, progress=lambda *p: told.append(p))
    assert not steps_of(told)
    assert weights(full.out) == weights(Path(whole.output))
    assert timeless(done.steps) == timeless(whole.steps)
    assert done.notes == whole.notes
    assert not (full.out / "checkpoints").exists()


def _raise(error):
    raise error


def test_a_full_disk_at_a_checkpoint_is_one_line_and_the_run_goes_on_from_the_one_before(place, monkeypatch):
    whole, broken = tune(spec(place, "lora-whole", method="lora")), spec(place, "checkpoint-full")
    seal, sealed = Checkpoints.seal, []

    def limited(self, checkpoint, device):
        if len(sealed) == 5:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file")
        sealed.append(checkpoint)
        seal(self, checkpoint, device)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "seal", limited)
        with pytest.raises(StorageError, match="continues from its last checkpoint"):
            tune(broken)
    assert not list((broken.out / "checkpoints").glob(".reserved"))
    told = []
    done = tune(broken, progress=lambda *p: told.append(p))
    assert steps_of(told) == list(range(6, STEPS + 1))
    assert weights(Path(done.output)) == weights(Path(whole.output))


def test_too_little_room_is_known_before_the_training(place, monkeypatch):
    _no_room(monkeypatch, os, "posix_fallocate", OSError(28, "No space left on device"))
    told = []
    with pytest.raises(StorageError, match=r"MiB are needed for the tuned weights \(No space left"):
        tune(spec(place, "no-room"), progress=lambda *p: told.append(p))
    assert not steps_of(told)


def test_a_checkpoint_of_other_conditions_is_refused_and_its_threads_are_taken_over(place, monkeypatch):
    import torch

    broken = spec(place, "conditions", threads=2)
    with pytest.raises(Broken):
        tune(broken, progress=break_at(5))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "OTHER")
    with pytest.raises(ResumeRefused, match=r"cpu: .* then, OTHER now.*remove this folder"):
        tune(broken)
    monkeypatch.undo()
    with pytest.raises(ResumeRefused, match="threads: 2 then, 1 now"):
        tune(broken.model_copy(update={"threads": 1}))
    told = []
    done = tune(broken.model_copy(update={"threads": None}), progress=lambda *p: told.append(p))
    assert steps_of(told) == list(range(5, STEPS + 1))
    assert done.settings["threads"] == 2


def test_two_tunings_into_one_folder_at_once_are_refused(place):
    from aftertune.sources.folder_lock import folder_lock

    whole = tune(spec(place, "lora-whole", method="lora"))
    shared = spec(place, "shared")
    shared.out.mkdir()
    with folder_lock(shared.out, "trains"), pytest.raises(StorageError, match=rf"another process \({os.getpid()} on "):
        tune(shared)
    assert weights(Path(tune(shared).output)) == weights(Path(whole.output))
    assert not list(shared.out.glob(".running*")), "the folder is handed on as it is"
