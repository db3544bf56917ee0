# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The doors of the daemon: where each service listens and whom it lets in.

A service is bound before it is started. TCP sockets and TLS keys are taken while the
process may still be root. Unix sockets are taken after privileges were dropped, so that
they belong to the daemon's user and group.
"""

from __future__ import annotations

import math
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterable

from . import binding
from .binding import UnixListener
from .config import Config, ConfigError
from .errors import HttpError
from .http.connection import Connection, Timeouts
from .http.cors import local_only
from .http.listeners import Listener
from .http.loop import Loop
from .http.message import LOCAL, REMOTE, Request
from .http.registry import Connections
from .http.router import Guard, Observer, Route, Router
from .http.tls import TlsConnection
from .tls import TlsContexts
from .version import __version__

_SERVER = f"imageio/{__version__}"


class Service(ABC):
    """One listening socket and the routes behind it. Loop thread only.

    Attributes:
        name: for logs, metrics and `Request.service`.
        address: where it listens, once bound: `host:port`, path, or abstract name.
        router: what serves its connections, once started.
    """

    name: str
    cors = False
    trusted = False
    needs_host = True

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.address = ""
        self.router: Router | None = None
        self._socket: socket.socket | None = None
        self._listener: Listener | None = None

    @abstractmethod
    def bind(self) -> None:
        """Take the address and listen; clients wait in the kernel until `start`.

        Raises:
            ConfigError: the address cannot be had.
        """

    def start(
        self,
        loop: Loop,
        routes: Iterable[Route],
        *,
        connections: Connections,
        observer: Observer | None = None,
    ) -> None:
        """Serve clients in the loop."""
        if self._socket is None:
            raise RuntimeError(f"service {self.name} is not bound")
        router = Router(
            routes,
            name=self.name,
            server=_SERVER,
            cors=self.cors,
            guard=self.guard(),
            trusted=self.trusted,
            needs_host=self.needs_host,
        )
        router.observer = observer
        self.router = router

        def connect(sock: socket.socket, peer: str) -> Connection:
            return self._connect(loop, sock, peer)

        self._listener = Listener(loop, self._socket, connect, router, connections)
        self._listener.start()

    def refuse_new_work(self) -> None:
        """Answer 503 from now on; running requests are not disturbed."""
        if self.router is not None:
            self.router.stopping = True

    def tell_left_out(self, now: float = math.inf) -> None:
        """See `Router.tell_left_out`."""
        if self.router is not None:
            self.router.tell_left_out(now)

    def close(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.stop()
            self._listener = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def guard(self) -> Guard | None:
        """Return what sees each request before its handler and may refuse it."""
        return None

    def _connect(self, loop: Loop, sock: socket.socket, peer: str) -> Connection:
        return Connection(
            loop,
            sock,
            service=self.name,
            peer=peer,
            timeouts=timeouts(self.cfg),
            splice=self.cfg.daemon.splice,
        )


def timeouts(cfg: Config) -> Timeouts:
    """Return how long the configuration lets clients take."""
    daemon = cfg.daemon
    return Timeouts(
        handshake=daemon.handshake_timeout,
        head=daemon.head_timeout,
        body=daemon.body_timeout,
        inactivity=daemon.inactivity_timeout,
    )


class RemoteService(Service):
    """HTTPS for clients on other hosts, web pages included.

    Attributes:
        contexts: what new connections are encrypted with; None without TLS.
        port: the TCP port, once bound.
    """

    name = REMOTE
    cors = True

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.contexts: TlsContexts | None = None
        self.port = 0

    def load_tls(self) -> None:
        """Load keys and certificates, if TLS is enabled.

        Raises:
            ConfigError: they cannot be read or do not fit.
        """
        if self.cfg.tls.enable:
            self.contexts = TlsContexts(self.cfg)

    def bind(self) -> None:
        """See `Service.bind`. Without `load_tls` before, it serves plain HTTP."""
        remote = self.cfg.remote
        try:
            self._socket = binding.bind_tcp(remote.host, remote.port)
        except OSError as e:
            raise _tcp_error(self.cfg, "remote", e) from e
        self.port = self._socket.getsockname()[1]
        self.address = tcp_address(self._socket)

    def _connect(self, loop: Loop, sock: socket.socket, peer: str) -> Connection:
        if self.contexts is None:
            return super()._connect(loop, sock, peer)
        return TlsConnection(
            loop,
            sock,
            self.contexts.current,
            service=self.name,
            peer=peer,
            timeouts=timeouts(self.cfg),
        )


class LocalService(Service):
    """HTTP on a Unix socket for any process of this host that holds a ticket."""

    name = LOCAL
    cors = True

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self._unix: UnixListener | None = None

    def bind(self) -> None:
        """See `Service.bind`."""
        # An abstract address has no permissions; a path shall admit the same clients.
        self._unix = _bind_unix(self.cfg, "local", self.cfg.local.socket, 0o666)
        self._socket, self.address = self._unix.sock, self._unix.address

    def close(self) -> None:
        """Stop listening and remove the socket's file."""
        super().close()
        if self._unix is not None:
            self._unix.close()


class ControlService(Service):
    """HTTP for the manager of this host, which adds and removes tickets.

    Attributes:
        refusing: set when the daemon stops: tickets may be seen and removed, not added.
    """

    name = "control"
    trusted = True
    needs_host = False  # the HTTP library of ovirt-engine sends none with HTTP/1.1

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.refusing = False
        self._unix: UnixListener | None = None

    @property
    def is_tcp(self) -> bool:
        """Whether it listens on TCP, where any process of this host may come."""
        return self.cfg.control.transport == "tcp"

    def bind(self) -> None:
        """See `Service.bind`."""
        control = self.cfg.control
        if not self.is_tcp:
            self._unix = _bind_unix(self.cfg, "control", control.socket, 0o660)
            self._socket, self.address = self._unix.sock, self._unix.address
            return
        try:
            self._socket = binding.bind_localhost(control.port, prefer_ipv4=control.prefer_ipv4)
        except OSError as e:
            raise _tcp_error(self.cfg, "control", e) from e
        self.address = tcp_address(self._socket)

    def close(self) -> None:
        """Stop listening and remove the socket's file."""
        super().close()
        if self._unix is not None:
            self._unix.close()

    def refuse_new_work(self) -> None:
        """Take no more tickets; what runs may be watched and cancelled."""
        self.refusing = True

    def guard(self) -> Guard:
        """See `Service.guard`."""
        return self._check

    def _check(self, request: Request) -> None:
        """Refuse web pages over TCP, and new tickets while the daemon stops."""
        if self.is_tcp:
            local_only(request)
        if self.refusing and request.method in ("PUT", "POST"):
            raise HttpError(503, "the server is stopping", close=True)


class MetricsService(Service):
    """Plain HTTP for Prometheus. Images and tickets are out of its reach."""

    name = "metrics"

    def bind(self) -> None:
        """See `Service.bind`."""
        metrics = self.cfg.metrics
        try:
            self._socket = binding.bind_tcp(metrics.host, metrics.port)
        except OSError as e:
            raise _tcp_error(self.cfg, "metrics", e) from e
        self.address = tcp_address(self._socket)


def _bind_unix(cfg: Config, section: str, address: str, mode: int) -> UnixListener:
    try:
        return UnixListener(address, mode)
    except OSError as e:
        expected = f"a Unix socket address of its own, but: {e.strerror}"
        raise cfg.error(section, "socket", expected) from e


def _tcp_error(cfg: Config, section: str, error: OSError) -> ConfigError:
    """Blame the host for what is its fault, otherwise the port."""
    no_address = isinstance(error, socket.gaierror) or error.errno in binding.NO_SUCH_ADDRESS
    if section != "control" and no_address:
        return cfg.error(section, "host", f"an address of this host, but: {error.strerror}")
    return cfg.error(section, "port", f"a free TCP port, but: {error.strerror}")


def tcp_address(sock: socket.socket) -> str:
    """Write where a TCP socket listens, as in a URL."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
