"""Serves the view: chooses the address and the token, and runs uvicorn until Ctrl-C.

    serve(LedgerSource(path), ServerAddress(port=7788), announce=print)

Without a token the server only listens on this machine. A free port is port 0.
"""

from __future__ import annotations

import errno
import ipaddress
import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aftertune.errors import InputError, ResourceError
from aftertune.view.app import make_app
from aftertune.view.guard import Access
from aftertune.view.ledgers import LedgerSource
from aftertune.view.pages.live import STOPPING

LOOPBACK = "127.0.0.1"
_OF_THIS_MACHINE = ("localhost", LOOPBACK, "[::1]")


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where the server listens. host: an address or a name; token: whether a browser needs one."""

    host: str = LOOPBACK
    port: int = 7788
    token: bool = False

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def serve(ledgers: LedgerSource, address: ServerAddress, *, announce: Callable[[str], None],
          settings: Mapping[str, Any] | None = None) -> None:
    """Serve until Ctrl-C. announce: gets the address to open. settings: of single pages.

    Raises InputError for an address that others can reach without a token, ResourceError where the port is taken, and
    the errors of opening the ledger.
    """
    import uvicorn

    if not address.loopback and not address.token:
        raise InputError(f"--host {address.host}: other machines could read the ledger there; add --token, with which "
                         "a browser needs the printed address once, or leave --host out and use an SSH tunnel")
    with ledgers.write():  # an older ledger is migrated once, here; then it is only read
        pass
    with ledgers.read():
        pass
    token = secrets.token_urlsafe(24) if address.token else None
    servers: list[uvicorn.Server] = []
    with _listening(address) as listener:
        port = listener.getsockname()[1]
        access = Access(hosts=allowed_hosts(address.host, port), token=token)
        app = make_app(ledgers, access, {**(settings or {}), STOPPING: lambda: any(s.should_exit for s in servers)},
                       ready=True)
        host = f"[{address.host}]" if ":" in address.host else address.host
        if address.host in ("0.0.0.0", "::"):
            host = socket.gethostname()
        announce(f"http://{host}:{port}/{f'?token={token}' if token else ''}")
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, proxy_headers=False,
                                lifespan="off", timeout_graceful_shutdown=2, h11_max_incomplete_event_size=32_768,
                                ws="none")
        servers.append(uvicorn.Server(config))
        try:
            servers[0].run(sockets=[listener])
        finally:
            ledgers.close()


def allowed_hosts(host: str, port: int) -> frozenset[str]:
    """The values of the Host header under which the server is reached, in small letters."""
    names = {f"[{host}]" if ":" in host else host}
    if host in ("0.0.0.0", "::"):
        import psutil

        names = {socket.gethostname(), socket.getfqdn(), *_OF_THIS_MACHINE}
        for addresses in psutil.net_if_addrs().values():
            names |= {a.address for a in addresses if a.family == socket.AF_INET}
            names |= {f"[{a.address.partition('%')[0]}]" for a in addresses if a.family == socket.AF_INET6}
    elif ServerAddress(host).loopback:
        names |= set(_OF_THIS_MACHINE)
    return frozenset(f"{name.lower()}:{port}" for name in names) | (
        frozenset(name.lower() for name in names) if port == 80 else frozenset())


def _listening(address: ServerAddress) -> socket.socket:
    """A socket that listens at the address. ResourceError or InputError where it cannot."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, place = found[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise InputError(f"--host {address.host}: {error.strerror or error}; give an address of this machine, such as "
                         f"{LOOPBACK}") from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(place)
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise ResourceError(f"port {address.port} of {address.host} is taken or not allowed; give another one with "
                                "--port, or --port 0 for a free one") from None
        raise InputError(f"--host {address.host}: {error.strerror}; give an address of this machine, such as "
                         f"{LOOPBACK}") from None
    return listener
