"""Starts workers on the nodes of a Ray cluster.

    with cluster("ray://head:10001", insecure=False) as nodes:      connects, or refuses in one line
        workers = RayWorkers(opening, Needs(cpus=4, memory=2**33))
        workers.start()                                             an actor on a node that has this to give

Each worker is a Ray actor that starts the same program as `local_workers` does, on its node, and passes its lines on.
So a node that is lost takes its program with it, and nothing of a study but its fields is sent. Ray is imported only
here.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import queue
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from aftertune.errors import InputError, ResourceError
from aftertune.pipeline.local_workers import ChildWorker, Message
from aftertune.pipeline.worker import Opening
from aftertune.redaction import redact

#: The running cluster of this machine, or that of RAY_ADDRESS.
RUNNING = "ray"
#: Seconds that a node has to start an actor, before the run says that it waits.
_LISTEN = 1.0
#: Seconds that a server has to answer a call without a token.
_ANSWER = 10.0


@dataclass(frozen=True, slots=True)
class ClusterNode:
    """A node. id: Ray's; cpus, gpus: numbers that it has; memory: bytes."""

    id: str
    host: str
    cpus: float
    gpus: float
    memory: int


@dataclass(frozen=True, slots=True)
class Needs:
    """What each worker needs of its node, as `plan` estimates it. memory: bytes."""

    cpus: float = 1
    gpus: float = 0
    memory: int = 0


def check_address(on: str, *, insecure: bool) -> str | None:
    """The address for Ray, None for the running cluster. Raises InputError for another word, and unless ``insecure``
    for a cluster of another machine that answers without a token, or of which this is not known and RAY_AUTH_MODE is
    not token."""
    if on == RUNNING:
        address = os.environ.get("RAY_ADDRESS", "")
    elif re.fullmatch(r"ray://[\w.\-\[\]:]+:\d+", on):
        address = on
    else:
        raise InputError(f"--on {on}: give ray (the running cluster, or that of RAY_ADDRESS) or ray://HOST:PORT")
    _check_authentication(on, address, insecure=insecure)
    return address or None


def _check_authentication(on: str, address: str, *, insecure: bool) -> None:
    if not is_remote(address) or insecure:
        return
    asks = asks_for_token(address)
    if asks or (asks is None and token_mode()):
        return
    found = ("this cluster would be used without authentication" if asks is None else
             "this cluster answers without authentication")
    raise InputError(f"--on {on}: {found}, so everyone who reaches its port could run programs on it; start Ray with "
                     "RAY_AUTH_MODE=token there and here, or add --insecure-cluster in a network that you trust")


def asks_for_token(address: str) -> bool | None:
    """Whether a Ray server refuses a call without a token; None where none answers, or not without TLS."""
    try:
        import grpc
    except ImportError:
        load_ray()
        raise ResourceError("--on needs the package grpcio, which is not installed; install it with pip install "
                            "'aftertune[ray]'") from None
    client = address.startswith("ray://")
    method = "/ray.rpc.RayletDriver/ClusterInfo" if client else "/ray.rpc.NodeInfoGcsService/CheckAlive"
    with grpc.insecure_channel(address.removeprefix("ray://")) as channel:
        try:
            channel.unary_unary(method)(b"", timeout=_ANSWER)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                return None
            return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False


def is_remote(address: str) -> bool:
    """Whether an address may name another machine than this one."""
    if address in ("", "auto", "local"):
        return False
    host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
    if host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback and host not in _own_addresses()
    except ValueError:
        return True


def _own_addresses() -> set[str]:
    """The addresses of this machine's network interfaces."""
    import psutil

    return {one.address.partition("%")[0] for addresses in psutil.net_if_addrs().values() for one in addresses}


def token_mode() -> bool:
    """Whether Ray here sends a token with every call."""
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"


def load_ray() -> Any:
    """The library. Raises ResourceError where it is not installed."""
    try:
        import ray
    except ImportError:
        raise ResourceError("--on needs the package ray, which is not installed; install it with pip install "
                            "'aftertune[ray]'") from None
    return ray


@contextlib.contextmanager
def cluster(on: str, *, insecure: bool) -> Iterator[list[ClusterNode]]:
    """Connect to a cluster until the end of the block. Raises InputError and ResourceError in one line."""
    address = check_address(on, insecure=insecure)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # a refusal is one line, without those of each attempt
    ray = load_ray()
    own = not ray.is_initialized()
    try:
        if own:
            with warnings.catch_warnings(action="ignore"):
                ray.init(address=address or "auto", log_to_driver=False, logging_level="ERROR", namespace="aftertune")
        nodes = [_node(n) for n in ray.nodes() if n["Alive"]]
        head = str(ray.get_runtime_context().gcs_address)
    except (ConnectionError, RuntimeError, OSError, ValueError, ray.exceptions.RayError) as error:
        raise ResourceError(f"--on {on}: no cluster answers ({_reason(error)}); start one with `ray start --head`, or "
                            "check the address and the token") from None
    try:
        if address is None:  # the running cluster may be that of another machine, which this one has joined
            _check_authentication(on, head, insecure=insecure)
        yield nodes
    finally:
        if own:
            ray.shutdown()


def _node(fields: dict[str, Any]) -> ClusterNode:
    has = fields.get("Resources", {})
    return ClusterNode(str(fields["NodeID"]), str(fields.get("NodeManagerHostname", "")), float(has.get("CPU", 0)),
                       float(has.get("GPU", 0)), int(has.get("memory", 0)))


class NodeWorker:
    """The actor: it runs the worker program on its node. name: of the worker; opening: its first line."""

    def __init__(self, name: str, opening: str, environment: dict[str, str]) -> None:
        import ray

        self.node = str(ray.get_runtime_context().get_node_id())
        self.received: queue.Queue[tuple[str, Message]] = queue.Queue()
        self.child = ChildWorker(name, Opening.parse(opening), environment, self.received)

    def write(self, line: str) -> None:
        """Pass a line to the program."""
        self.child.write(line)

    def listen(self, timeout: float) -> list[Message]:
        """What the program said; waits at most ``timeout`` seconds for it."""
        messages: list[Message] = []
        with contextlib.suppress(queue.Empty):
            messages.append(self.received.get(timeout=timeout)[1])
            while True:
                messages.append(self.received.get_nowait()[1])
        return [{**m, "node": f"{m['node']}/{self.node[:6]}"} if m.get("event") == "ready" else m for m in messages]

    def close(self) -> None:
        """Stop the program as Ctrl-C does, and wait for its end."""
        self.child.close()
        self.child.wait()


class RayWorkers:
    """Workers on a cluster that this process is connected to. opening: of each; needs: of its node."""

    def __init__(self, opening: Opening, needs: Needs) -> None:
        self.ray = load_ray()
        self.opening, self.needs = opening, needs
        self.actors: dict[str, Any] = {}
        self.listening: dict[Any, str] = {}  # worker by the call that waits for its messages
        self._count = 0

    def start(self) -> str:
        """Ask for another actor; Ray starts it where there is room."""
        self._count += 1
        name = f"worker {self._count}"
        environment = {"OMP_NUM_THREADS": str(self.opening.threads or 1)}
        actor = self.ray.remote(NodeWorker).options(
            num_cpus=self.needs.cpus, num_gpus=self.needs.gpus, memory=self.needs.memory or None, max_restarts=0,
            max_concurrency=4, scheduling_strategy="SPREAD").remote(name, self.opening.line(), environment)
        self.actors[name] = actor
        self._listen(name)
        return name

    def send(self, worker: str, cell: str, *, helps: bool = False) -> None:
        """Let a worker run a cell, or help with one that another worker runs."""
        import json

        self.actors[worker].write.remote(json.dumps({"cell": cell, "help": helps}))

    def receive(self, timeout: float) -> Iterator[tuple[str, Message]]:
        """What the workers said, and which of them were lost with their node."""
        if not self.listening:
            return
        try:
            self.ray.wait(list(self.listening), num_returns=1, timeout=timeout)
            ready, _ = self.ray.wait(list(self.listening), num_returns=len(self.listening), timeout=0)
        except (ConnectionError, self.ray.exceptions.RayError) as error:
            raise ResourceError(f"the cluster does not answer any more ({_reason(error)}); its workers end, and the "
                                "same command goes on when it is there again") from None
        for call in ready:
            worker = self.listening.pop(call)
            try:
                messages = self.ray.get(call)
            except self.ray.exceptions.RayError as error:
                messages = [{"event": "lost", "reason": _lost(error)}]
            if any(m.get("event") == "lost" for m in messages):
                self._end(worker)
            else:
                self._listen(worker)
            for message in messages:
                yield worker, message

    def stop(self) -> None:
        """Stop all workers and wait for their end; actors are removed."""
        with contextlib.suppress(ConnectionError, self.ray.exceptions.RayError):
            closing = [actor.close.remote() for actor in self.actors.values()]
            self.ray.wait(closing, num_returns=len(closing), timeout=600.0) if closing else None
        for worker in list(self.actors):
            self._end(worker)

    def _listen(self, worker: str) -> None:
        self.listening[self.actors[worker].listen.remote(_LISTEN)] = worker

    def _end(self, worker: str) -> None:
        actor = self.actors.pop(worker, None)
        if actor is not None:
            with contextlib.suppress(ConnectionError, self.ray.exceptions.RayError):
                self.ray.kill(actor)


def _lost(error: BaseException) -> str:
    """How an actor was lost, in words."""
    text = str(error).lower()
    return "its node was lost" if "node" in text and "died" in text else f"its worker was lost ({_reason(error)})"


def _reason(error: BaseException) -> str:
    """An error of Ray in few words, without secrets. Behind a traceback of another process is what it says."""
    text = redact(" ".join(str(error).rpartition("\n  File ")[2].split()))
    return text if len(text) <= 200 else f"{text[:60]} … {text[-140:]}"
