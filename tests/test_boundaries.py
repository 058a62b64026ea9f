"""Where a library raises something odd (merging, converting, lm-eval's classes, chat templates), a command ends in one
line with the right exit code, leaves nothing half-written, and keeps the cause for --debug."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aftertune.errors import AftertuneError, ResourceError, SourceError
from aftertune.harness import HarnessEngine
from aftertune.ledger import Ledger
from aftertune.sources import limits
from aftertune.sources.library_errors import disk_errors, writing_errors
from aftertune.values import Request
from cli_cases import call, one_line, settle
from deploy_cases import chat_model
from eval_cases import byte_folder
from ledger_cases import answered, evaluation, items, responses, settings
from test_damaged_models import FAULTS, PASSING, raised_in
from tuning_cases import easy_rows, write_rows

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny chat model, its data, and a LoRA that is not merged."""
    root = tmp_path_factory.mktemp("boundaries")
    chat_model("llama", root / "base", max_position_embeddings=512)
    write_rows(root / "rows.jsonl", easy_rows())
    with pytest.MonkeyPatch.context() as patch:
        settle(patch, root)
        assert call(patch, *TUNE) == 0
    return root


TUNE = ("tune", "base", "--data", "rows.jsonl", "--out", "easy", "--name", "easy", "--max-steps", "1",
        "--dtype", "float32")


# --- Merging and converting ---


@pytest.mark.parametrize("error", [e for e in FAULTS if not isinstance(e, OSError)], ids=lambda e: type(e).__name__)
def test_whatever_a_library_raises_on_writing_is_one_line_with_its_cause(error: BaseException, tmp_path: Path) -> None:
    said = rf"^writing x: gguf failed: {type(error).__name__}[^\n]*; use y; "
    with pytest.raises(SourceError, match=said) as caught, \
            writing_errors("writing x", "use y"), disk_errors(tmp_path, "run again"):
        raised_in("gguf", error)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [*PASSING, OSError("gone")], ids=lambda e: type(e).__name__)
def test_what_is_no_fault_of_a_writing_library_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, writing_errors("writing x", "use y"):
        raised_in("transformers", error)
    assert caught.value is error
    with pytest.raises(ZeroDivisionError), writing_errors("writing x", "use y"):
        raised_in("aftertune.deploy", ZeroDivisionError())


def test_a_full_disk_is_still_an_error_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(AftertuneError) as caught, writing_errors("writing x", "use y"), disk_errors(tmp_path, "go on"):
        raised_in("torch", RuntimeError("PytorchStreamWriter failed writing file data/0"))
    assert caught.value.exit_code == 5


def ends(words: str, error: BaseException, exit_code: int, said: tuple[str, ...], patch: pytest.MonkeyPatch,
         capfd: pytest.CaptureFixture[str]) -> None:
    """The command ends with one line and this exit code; with --debug it shows the cause too."""
    patch.setenv("AFTERTUNE_DEBUG", "")  # restored after the test
    capfd.readouterr()
    assert call(patch, *words.split()) == exit_code
    lines = capfd.readouterr().err.splitlines()
    assert "Traceback" not in "\n".join(lines)
    assert lines[-1].startswith("aftertune: ")
    assert all(text in lines[-1] for text in said), lines[-1]
    assert call(patch, "--debug", *words.split()) == exit_code
    shown = capfd.readouterr().err
    assert "Traceback" in shown
    assert type(error).__name__ in shown
    assert shown.splitlines()[-1].startswith("aftertune: ")


def test_a_merge_whose_writing_fails_keeps_the_training(home: Path, monkeypatch: pytest.MonkeyPatch,
                                                        capfd: pytest.CaptureFixture[str]) -> None:
    import transformers

    settle(monkeypatch, home)
    error = ValueError("The generation config\n is invalid")
    with monkeypatch.context() as patch:
        patch.setattr(transformers.PreTrainedModel, "save_pretrained",
                      lambda *_, **__: raised_in("transformers", error))
        ends(f"{' '.join(TUNE)} --merge", error, 2, (
            "easy: writing its merged weights: transformers failed: ValueError: The generation config is invalid",),
             patch, capfd)
    assert not list((home / "easy").glob("*merged*"))
    assert json.loads((home / "easy" / "aftertune.json").read_text())["status"] == "done"


def test_a_merge_in_which_peft_fails_is_one_line(home: Path, monkeypatch: pytest.MonkeyPatch,
                                                 capfd: pytest.CaptureFixture[str]) -> None:
    from peft.tuners.lora import Linear

    settle(monkeypatch, home)
    error = AssertionError("shape")
    monkeypatch.setattr(Linear, "merge", lambda *_, **__: raised_in("peft", error))
    ends(f"{' '.join(TUNE)} --merge", error, 2, ("peft cannot load it for merging",), monkeypatch, capfd)
    ends("check-merge base easy base", error, 2, ("peft cannot load its layer",
                                                                              "for merging"), monkeypatch, capfd)


@pytest.mark.parametrize("step", ["add_tokenizer_model", "write_kv_data_to_file", "write_tensor_data"])
def test_an_export_in_which_gguf_fails_leaves_nothing(step: str, home: Path, monkeypatch: pytest.MonkeyPatch,
                                                      capfd: pytest.CaptureFixture[str]) -> None:
    import gguf

    settle(monkeypatch, home)
    error = KeyError("no such type")
    monkeypatch.setattr(gguf.GGUFWriter, step, lambda *_, **__: raised_in("gguf", error))
    ends("export easy --format gguf --out made", error, 2, ("easy: writing model-q8_0.gguf: gguf failed: KeyError",),
         monkeypatch, capfd)
    assert not [p for p in home.iterdir() if "made" in p.name]


# --- lm-eval's classes ---

SCORE = Request(position=0, kind="score", item=0, context="q", continuation=" a")
GENERATE = Request(position=0, kind="generate", item=0, context="q", generation={"until": ["Z"], "max_gen_toks": 2})


def run_with(answer: Callable[[list[Any]], Any], name: str = "hf", request: Request = SCORE) -> Any:
    """What an engine of lm-eval makes of one request, where its class answers with ``answer``."""
    engine = HarnessEngine(SimpleNamespace(loglikelihood=answer, generate_until=answer), name)
    return list(engine.run(engine.plan([request]), set()))


@pytest.mark.parametrize("package", ["lm_eval", "torch", "transformers", "tqdm", "jinja2"])
@pytest.mark.parametrize("name", ["hf", "other"])
@pytest.mark.parametrize("error", [KeyError("x\ny"), AssertionError(), RecursionError("deep"), StopIteration()],
                         ids=lambda e: type(e).__name__)
def test_whatever_lm_evals_class_raises_is_one_line_with_its_cause(error: Exception, name: str, package: str) -> None:
    with pytest.raises((SourceError, ResourceError), match=rf"^the engine lm-eval:{name}:? [^\n]*$") as caught:
        run_with(lambda _: raised_in(package, error), name)
    assert type(error).__name__ in str(caught.value)
    assert "finished batches are kept" in str(caught.value)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("answer", [[], [None], [1.0], [("x", True)], [(None, True)], [()], [(0.0, True)] * 2],
                         ids=repr)
def test_what_is_no_response_is_one_line(answer: Any) -> None:
    with pytest.raises(ResourceError, match=r"^the engine lm-eval:hf failed: [^\n]*finished batches are kept"):
        run_with(lambda _: answer)


def test_too_little_memory_in_lm_evals_class_has_its_exit_code() -> None:
    with pytest.raises(ResourceError, match="out of memory") as caught:
        run_with(lambda _: raised_in("torch", RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")))
    assert caught.value.exit_code == 4


def test_a_fault_of_aftertune_and_a_request_to_stop_pass() -> None:
    with pytest.raises(ZeroDivisionError):
        run_with(lambda _: raised_in("aftertune.engine", ZeroDivisionError()))
    with pytest.raises(KeyboardInterrupt):
        run_with(lambda _: raised_in("lm_eval", KeyboardInterrupt()))


@pytest.mark.parametrize("where", ["__init__", "loglikelihood"])
def test_an_evaluation_in_which_hf_fails_is_one_line(where: str, home: Path, monkeypatch: pytest.MonkeyPatch,
                                                     capfd: pytest.CaptureFixture[str]) -> None:
    from lm_eval.models.huggingface import HFLM

    settle(monkeypatch, home)
    error = NotImplementedError("no such tokenizer")
    monkeypatch.setattr(HFLM, where, lambda *_, **__: raised_in("lm_eval", error))
    ends("eval base --tasks arc_easy --limit 1 --engine lm-eval:hf", error, 2, ("lm_eval failed", "no such tokenizer"),
         monkeypatch, capfd)


# --- Chat templates ---

#: Templates that no command may run to their end -> what is said about them.
TEMPLATES = {
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": "it takes more than 0.3 s",
    "{{ messages.__class__.__mro__ }}": "access to attribute '__class__'",
    "{{ nobody.name }}": "'nobody' is undefined",
    "{{ 'ab' * 3000 * (messages | length) }}": "characters, and 5,000 are allowed",
    "{{ 'a' * 10 ** 11 }}": "it needs more than 512 MB of memory",
}
READERS = ("eval base --tasks arc_easy --limit 1 --apply-chat-template",
           "tune base --data rows.jsonl --template chat --dry-run",
           "tune base --data rows.jsonl --template chat --preview",
           "drift base base --prompts 8 --tokens 2 --apply-chat-template")


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_template_ends_every_command_in_one_line(template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                        capfd: pytest.CaptureFixture[str]) -> None:
    settle(monkeypatch, tmp_path)
    byte_folder(tmp_path / "base", template=template, window=4096)
    write_rows(tmp_path / "rows.jsonl", easy_rows())
    monkeypatch.setattr(limits, "RENDER_TIMEOUT", 0.3)
    monkeypatch.setattr(limits, "RENDER_LENGTH", 5_000)
    monkeypatch.setattr(limits, "_slow", set())
    for words in READERS:
        capfd.readouterr()
        assert call(monkeypatch, *words.split()) == 2, words
        assert one_line(capfd, (TEMPLATES[template],)) == "", words


# --- Memory ---


@pytest.mark.slow
def test_memory_of_reading_and_checking_a_ledger_does_not_grow_with_its_answers(tmp_path: Path) -> None:
    """The peak of Python's memory for more answers, both of several chunks."""
    def peaks(n: int) -> list[int]:
        with Ledger(tmp_path / f"{n}.db") as ledger:
            stored = evaluation(tasks=(settings(n=n),), scores=())
            asked, given = items(n=n), responses(2 * n)
            ledger.open_evaluation(stored, asked)
            ledger.save_batch(stored.id, 0, given)
            ledger.finish_evaluation(stored, *answered(asked, given))
        found = []
        for read in (lambda ledger: ledger.each_answer(stored.id), lambda ledger: ledger.each_item(stored.id),
                     lambda ledger: ledger.check()):
            with Ledger(tmp_path / f"{n}.db") as ledger:
                tracemalloc.start()
                assert sum(1 for _ in read(ledger)) >= 1
                found.append(tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
        return found

    peaks(10)  # what is imported and cached at the first reading
    for name, few, many in zip(("answers", "items", "check"), peaks(2_500), peaks(6_000), strict=True):
        assert many < 1.3 * few, f"{name}: {few:,} and {many:,} bytes"
