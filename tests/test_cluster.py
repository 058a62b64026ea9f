"""Workers on a Ray cluster: which clusters are refused, what the nodes need, shared fine-tunes, and lost nodes."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aftertune.errors import AftertuneError, InputError, ResourceError, StorageError
from aftertune.ledger import StoredCell
from aftertune.pipeline import cell_runs, driving, ray_workers, worker_choice
from aftertune.pipeline.driving import Drive, Report
from aftertune.pipeline.ray_workers import ClusterNode, check_address, is_remote
from aftertune.pipeline.scheduling import CellJob, CellQueue
from aftertune.pipeline.shared_root import SharedRoot
from aftertune.pipeline.worker import Opening, check_disk
from aftertune.pipeline.worker_choice import WorkerChoice, _on_cluster
from aftertune.study import Study
from test_cli import call

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
NODES = [ClusterNode("a" * 40, "one", 8, 0, 2**34), ClusterNode("b" * 40, "two", 4, 0, 2**33)]
OPENING = Opening("{}", "postgresql+psycopg://db/aftertune", "out")
JOBS = [CellJob("evaluate b", 1, memory=2**30), CellJob("tune x", 5, memory=2**32, disk=7)]


@pytest.fixture
def study() -> Study:
    return Study(study="s", bases={"b": {"model": "gpt2"}}, tasks=({"name": "piqa"},))  # type: ignore[arg-type]


@pytest.mark.parametrize(("address", "remote"), [
    ("", False), ("auto", False), ("127.0.0.1:6379", False), ("ray://localhost:10001", False),
    ("ray://[::1]:10001", False), ("ray://10.0.0.5:10001", True), ("ray://head:10001", True), ("10.0.0.5:6379", True)])
def test_a_cluster_of_another_machine_is_seen(address: str, remote: bool) -> None:
    assert is_remote(address) == remote


def test_a_remote_cluster_without_authentication_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the cluster cannot be asked, this side's setting decides."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setattr(ray_workers, "asks_for_token", lambda address: None)
    assert check_address("ray", insecure=False) is None
    with pytest.raises(InputError, match=r"without authentication.*RAY_AUTH_MODE=token"):
        check_address("ray://head:10001", insecure=False)
    assert check_address("ray://head:10001", insecure=True) == "ray://head:10001"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert check_address("ray://head:10001", insecure=False) == "ray://head:10001"
    monkeypatch.setenv("RAY_ADDRESS", "10.1.2.3:6379")
    monkeypatch.delenv("RAY_AUTH_MODE")
    with pytest.raises(InputError, match="--insecure-cluster"):
        check_address("ray", insecure=False)


def test_what_the_cluster_does_counts_and_not_this_sides_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token here protects no cluster that answers without one; Ray may also ask for it by default."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setattr(ray_workers, "asks_for_token", lambda address: False)
    with pytest.raises(InputError, match="this cluster answers without authentication"):
        check_address("ray://head:10001", insecure=False)
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setattr(ray_workers, "asks_for_token", lambda address: True)
    assert check_address("ray://head:10001", insecure=False) == "ray://head:10001"


@pytest.mark.parametrize(("code", "asks"), [
    ("UNAUTHENTICATED", True), (None, False), ("NOT_FOUND", False), ("UNAVAILABLE", None)])
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_server_is_asked_without_a_token(code: str | None, asks: bool | None, scheme: str) -> None:
    """Of a real server: what it answers decides, whatever the call."""
    grpc = pytest.importorskip("grpc")
    from concurrent.futures import ThreadPoolExecutor

    called: list[str] = []

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            called.append(details.method)

            def answer(request: bytes, context: Any) -> bytes:
                if code:
                    context.abort(grpc.StatusCode[code], "no")
                return b""

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(ThreadPoolExecutor(1), handlers=(Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert ray_workers.asks_for_token(f"{scheme}127.0.0.1:{port}") is asks
    finally:
        server.stop(None)
    assert called == ["/ray.rpc.RayletDriver/ClusterInfo" if scheme else "/ray.rpc.NodeInfoGcsService/CheckAlive"]


class FakeRay:
    """Ray, as far as `cluster` uses it: a cluster whose head is at an address."""

    def __init__(self, head: str = "127.0.0.1:6379", fault: Exception | None = None) -> None:
        self.gcs_address, self.fault, self.ended = head, fault, False
        self.exceptions = SimpleNamespace(RayError=ArithmeticError)

    def init(self, **_: Any) -> None:
        if self.fault:
            raise self.fault

    def is_initialized(self) -> bool:
        return False

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "NodeID": "a", "NodeManagerHostname": "one", "Resources": {"CPU": 2.0}}]

    def get_runtime_context(self) -> FakeRay:
        return self

    def shutdown(self) -> None:
        self.ended = True


def test_the_running_cluster_may_be_that_of_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine joined it with `ray start --address=HEAD:6379`, so no address names the head."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ray_workers, "load_ray", lambda: ray)
    monkeypatch.setattr(ray_workers, "asks_for_token", lambda address: None)
    ray = FakeRay()
    with ray_workers.cluster("ray", insecure=False) as nodes:
        assert [node.cpus for node in nodes] == [2.0]
    ray = FakeRay("10.1.2.3:6379")
    with pytest.raises(InputError, match="without authentication"), ray_workers.cluster("ray", insecure=False):
        pass
    assert ray.ended
    with ray_workers.cluster("ray", insecure=True):
        pass


def test_why_no_cluster_answers_is_one_line_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERTUNE_LEDGER", "postgresql+psycopg://me:s3cret-word@db/a")
    text = 'Initialization failure from server:\nTraceback:\n  File "a.py", line 1\n  File "b.py", line 2\n' + (
        f"{'x ' * 200}RuntimeError: port s3cret-word is taken")
    ray = FakeRay(fault=RuntimeError(text))
    monkeypatch.setattr(ray_workers, "load_ray", lambda: ray)
    why = r"no cluster answers .*RuntimeError: port \[redacted\] is taken\)"
    with pytest.raises(ResourceError, match=why) as caught, ray_workers.cluster("ray://127.0.0.1:1", insecure=False):
        pass
    assert "a.py" not in str(caught.value)


@pytest.mark.parametrize("on", ["dask", "ray://", "ray://head", "ray://head:x", "ray://a b:1", "http://head:1"])
def test_another_word_than_a_cluster_is_refused(on: str) -> None:
    with pytest.raises(InputError, match=r"give ray .* or ray://HOST:PORT"):
        check_address(on, insecure=False)


@pytest.mark.skipif(find_spec("ray") is not None, reason="ray is installed")
def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text("study: s\nbases: {b: {model: gpt2}}\ntasks: [{name: piqa}]\n")
    assert call(monkeypatch, "run", "s.yaml", "--on", "ray") == 4
    assert "aftertune[ray]" in capsys.readouterr().err
    assert call(monkeypatch, "run", "s.yaml", "--root", "x") == 2
    assert "--root has no effect without --on" in capsys.readouterr().err


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a run asks of the nodes, without Ray."""
    from aftertune.pipeline import ray_workers

    monkeypatch.setattr(ray_workers, "load_ray", lambda: None)
    return _on_cluster


def test_a_node_gets_what_the_plan_says(prepared: Any, study: Study) -> None:
    ready = prepared(WorkerChoice(on="ray", root="/mnt/runs"), study, JOBS, OPENING, NODES)
    needs = ready.workers.needs
    assert (ready.count, needs.cpus, needs.gpus, needs.memory) == (2, 4, 0, 2**32)
    assert (ready.workers.opening.out, ready.workers.opening.threads) == ("/mnt/runs/s", 4)
    assert ready.workers.opening.disk == {"tune x": 7}
    gpus = [replace(NODES[0], gpus=2), NODES[1]]
    ready = prepared(WorkerChoice(on="ray", root="s3://bucket/runs"), study, JOBS, OPENING, gpus)
    assert (ready.count, ready.workers.needs.cpus, ready.workers.needs.gpus) == (2, 4, 1)


@pytest.mark.parametrize(("change", "message"), [
    ({"ledger": "/home/me/ledger.db"}, "the ledger is a SQLite file"), ({"root": ""}, "give --root"),
    ({"nodes": []}, "no live node"), ({"nodes": [replace(NODES[0], memory=2**31)]}, "the largest node has 2.0 GiB")])
def test_what_a_cluster_cannot_do_is_refused(change: dict[str, Any], message: str, prepared: Any, study: Study) -> None:
    choice = WorkerChoice(on="ray", root=change.get("root", "/mnt/runs"))
    with pytest.raises(AftertuneError, match=message):
        prepared(choice, study, JOBS, replace(OPENING, ledger=change.get("ledger", OPENING.ledger)),
                 change.get("nodes", NODES))


def test_a_sqlite_ledger_does_on_a_cluster_of_this_machine_alone(
        prepared: Any, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [NODES[0], replace(NODES[1], host="one")]
    with pytest.raises(InputError, match=r"other machines than this one.*SQLite"):
        prepared(WorkerChoice(on="ray://one:10001", root="/mnt"), study, JOBS, replace(OPENING, ledger="l.db"), nodes)
    monkeypatch.setattr(worker_choice.platform, "node", lambda: "one")
    assert prepared(WorkerChoice(on="ray"), study, JOBS, replace(OPENING, ledger="l.db"), nodes).count == 2


def test_a_node_without_cpus_gets_no_worker_and_a_gpu_has_its_share_of_the_cores(prepared: Any, study: Study) -> None:
    choice, many = WorkerChoice(on="ray", root="/mnt"), [CellJob(f"tune {n}", 1) for n in range(20)]
    head = replace(NODES[0], id="c" * 40, cpus=0)
    ready = prepared(choice, study, many, OPENING, [head, *NODES])
    assert (ready.count, ready.workers.needs.cpus) == (2, 4)
    with pytest.raises(ResourceError, match="no node of the cluster has a CPU"):
        prepared(choice, study, many, OPENING, [head])
    mixed = [replace(NODES[0], gpus=1), replace(NODES[1], cpus=32, gpus=8)]
    ready = prepared(choice, study, many, OPENING, mixed)
    assert (ready.count, ready.workers.needs.cpus) == (9, 4), "all GPUs of the larger node have a worker"


def test_a_root_is_the_same_folder_for_all_nodes(prepared: Any, study: Study, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    for given, whole in (("runs", str(tmp_path / "runs")), ("~/runs", "/home/me/runs"), ("s3://b/runs", "s3://b/runs")):
        opening = prepared(WorkerChoice(on="ray", root=given), study, JOBS, OPENING, NODES).workers.opening
        assert opening.root == whole


# --- A cell that fails on one node ---


class NodeWorkers:
    """Workers on nodes. broken: cell -> nodes on which it fails, with the class of the error."""

    def __init__(self, broken: dict[str, list[str]], kind: str = "SourceError") -> None:
        self.broken, self.kind = broken, kind
        self.messages: list[tuple[str, dict[str, Any]]] = []
        self.ran: list[tuple[str, str]] = []
        self.started = 0

    def start(self) -> str:
        self.started += 1
        self.messages.append((f"worker {self.started}", {"event": "ready", "node": f"node {self.started}"}))
        return f"worker {self.started}"

    def send(self, worker: str, cell: str, *, helps: bool = False) -> None:
        node = worker.replace("worker", "node")
        self.ran.append((node, cell))
        event = "failed" if node in self.broken.get(cell, ()) else "done"
        self.messages.append((worker, {"event": event, "kind": self.kind, "reason": f"no data on {node}"}))

    def receive(self, timeout: float) -> Iterator[tuple[str, dict[str, Any]]]:
        messages, self.messages = self.messages, []
        yield from messages

    def stop(self) -> None:
        pass


def drive_nodes(workers: NodeWorkers, count: int = 3) -> Drive:
    jobs = [CellJob("tune x", 5), CellJob("evaluate x", 1, ("tune x",)), CellJob("evaluate b", 1)]
    report = Report(lambda *_: None, lambda *_: None, lambda *_: None)
    drive = Drive(CellQueue(jobs, count), workers, report, keep_going=True)
    drive.run(count)
    return drive


def test_a_cell_that_fails_on_a_node_is_tried_on_another_one() -> None:
    workers = NodeWorkers({"tune x": ["node 1", "node 2"]})
    assert drive_nodes(workers).failed == {}
    assert [node for node, cell in workers.ran if cell == "tune x"] == ["node 1", "node 2", "node 3"]


def test_a_cell_that_fails_on_all_nodes_fails_with_the_first_reason() -> None:
    workers = NodeWorkers({"tune x": ["node 1", "node 2", "node 3"]})
    assert drive_nodes(workers).failed == {"tune x": "no data on node 1", "evaluate x": "needs tune x, which failed"}
    assert ("evaluate b" in {cell for _, cell in workers.ran}) is True


def test_an_error_that_no_node_can_cause_is_not_tried_again() -> None:
    workers = NodeWorkers({"tune x": ["node 1"]}, kind="NotComparable")
    assert list(drive_nodes(workers).failed) == ["tune x", "evaluate x"]


def test_a_run_does_not_wait_forever_for_a_worker_that_gets_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cell failed on the only node; a second worker was asked for, and the cluster has no place for it."""
    workers, clock, texts = NodeWorkers({"tune x": ["node 1"]}), [0.0], list[str]()

    def receive(timeout: float) -> Iterator[tuple[str, dict[str, Any]]]:
        clock[0] += 20.0
        messages, workers.messages = workers.messages, []
        yield from (m for m in messages if m[0] == "worker 1")

    monkeypatch.setattr(workers, "receive", receive)
    monkeypatch.setattr(driving.time, "monotonic", lambda: clock[0])
    jobs = [CellJob("tune x", 5), CellJob("evaluate x", 1, ("tune x",)), CellJob("evaluate b", 1)]
    report = Report(lambda done, total, text: texts.append(text), lambda *_: None, lambda *_: None)
    drive = Drive(CellQueue(jobs, 2), workers, report, keep_going=True)
    drive.nodes["worker 0"] = "node 0"  # it was there when the cell failed
    drive.run(2)
    assert drive.failed == {"tune x": "no data on node 1", "evaluate x": "needs tune x, which failed"}
    assert [text for text in texts if "waiting" in text] == [
        "waiting until there is room for worker 2; others may use the machines, or a node is gone"]


def test_a_cell_needs_room_on_the_disk_of_its_node(tmp_path: Path) -> None:
    check_disk(tmp_path / "not" / "there", 1)
    with pytest.raises(ResourceError, match="GiB are needed on the disk of"):
        check_disk(tmp_path, 2**60)


# --- The shared root ---


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("AFTERTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_a_mounted_folder_is_used_as_it_is(tmp_path: Path) -> None:
    for url in (str(tmp_path / "runs"), f"file://{tmp_path}/runs"):
        root = SharedRoot.of(url, "orders")
        assert root.folder("careful") == tmp_path / "runs" / "orders" / "tunings" / "careful"
        root.store("careful")
        assert root.fetch("careful") == root.folder("careful")


def test_a_fine_tune_goes_over_a_file_system_of_another_kind(cache: Path) -> None:
    root = SharedRoot.of("memory://runs", "orders")
    folder = root.folder("careful")
    (folder / "kept").mkdir(parents=True)
    (folder / "aftertune.json").write_text("1")
    (folder / "kept" / "weights.bin").write_bytes(b"w")
    root.store("careful")
    shutil.rmtree(folder)
    assert root.fetch("careful") == folder
    assert (folder / "kept" / "weights.bin").read_bytes() == b"w"
    (folder / "kept" / "weights.bin").write_bytes(b"other")  # the same manifest: nothing is downloaded
    root.fetch("careful")
    assert (folder / "kept" / "weights.bin").read_bytes() == b"other"
    (folder / "aftertune.json").write_text("2")
    root.fetch("careful")
    assert (folder / "kept" / "weights.bin").read_bytes() == b"w"
    assert not root.fetch("unknown").exists()


def test_a_fine_tune_of_another_node_is_not_made_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is started again may give a finished cell to another node."""
    root = SharedRoot.of("memory://again", "orders")
    folder = root.folder("careful")
    folder.mkdir(parents=True)
    (folder / "aftertune.json").write_text("1")
    root.store("careful")
    shutil.rmtree(folder)
    found: list[str] = []
    monkeypatch.setattr(cell_runs, "tune", lambda spec, **_: found.append((spec.out / "aftertune.json").read_text()))
    study = Study(study="orders", bases={"b": {"model": "gpt2"}}, tasks=({"name": "piqa"},),  # type: ignore[arg-type]
                  tunings={"careful": {"base": "b", "data": "rows.jsonl"}})  # type: ignore[dict-item]
    runs = cell_runs.CellRuns(study, None, cache, root)  # type: ignore[arg-type]
    runs._questions = lambda name: []  # type: ignore[method-assign]
    runs.before = {"tune careful": StoredCell(study="orders", name="tune careful", status="done", ref="t", error=None)}
    runs._tune("careful", lambda *_: None)
    assert found == ["1"]
    monkeypatch.setattr(root.files, "put_file", lambda *_: found.append("uploaded again"))
    root.store("careful")
    assert found == ["1"]


def test_a_name_that_leaves_the_folder_is_not_downloaded(cache: Path) -> None:
    root = SharedRoot.of("memory://evil", "orders")
    root.files.pipe_file(f"{root.path}/careful/aftertune.json", b"1")
    root.files.store[f"/{root.path.strip('/')}/careful/../../../x"] = root.files.store[
        f"/{root.path.strip('/')}/careful/aftertune.json"]
    with pytest.raises(StorageError, match="is not in the folder"):
        root.fetch("careful")


def test_an_address_that_nothing_opens_is_one_line() -> None:
    with pytest.raises(InputError, match=r"--root nope://x: cannot be opened"):
        SharedRoot.of("nope://x", "orders")


# --- A real cluster ---


def require_ray() -> None:
    """Skip where Ray is missing, which must not be so in CI."""
    if find_spec("ray") is None:
        if os.environ.get("CI"):
            pytest.fail("ray is not installed; CI installs it with aftertune[test]")
        pytest.skip("ray is not installed (pip install 'aftertune[ray]')")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("kills", "methods"), [
    pytest.param(1, "[lora]", marks=pytest.mark.slow), pytest.param(3, "[lora, full]", marks=pytest.mark.soak)])
def test_a_cluster_that_loses_nodes_workers_and_its_run_ends_as_one_process_does(
        kills: int, methods: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_ray()
    import cluster_faults

    small = cluster_faults.STUDY.replace("[lora, ia3, full], seed: [0, 1]", f"{methods}, seed: [0]")
    assert small != cluster_faults.STUDY
    monkeypatch.setattr(cluster_faults, "STUDY", small)
    with cluster_faults.place("ray", count=2 if kills == 1 else 3) as nodes:
        figures = cluster_faults.Harness(tmp_path, kills=kills, seed=0, nodes=nodes).run()
    assert figures.wrong == []
    assert figures.kills.total() == kills
