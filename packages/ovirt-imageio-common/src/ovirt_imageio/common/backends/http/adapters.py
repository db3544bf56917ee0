# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Adapters of requests: one pool a server, connections of our own.

They are used without a `requests.Session`: an adapter reads no environment, no netrc
and no cookies, and follows no redirect, which is what contract and speed ask for.
"""

from __future__ import annotations

import abc
import functools
import os
import socket
import ssl
from typing import Any
from urllib.parse import quote

import requests
import requests.adapters
import requests_unixsocket.adapters

from ovirt_imageio.common import defaults, hosts
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.errors import ConnectionTimeout
from ovirt_imageio.common.sockets import connect_tcp, connect_unix, peer_credentials

from .connections import Line, Opener, Pool
from .errors import Unreachable, unreachable
from .streams import Stream, TlsStream

_USER = "ovirtimg"

_IDLE, _INTERVAL, _PROBES = 30, 10, 3  # seconds, seconds, count: a dead host shows in a minute


class Adapter(requests.adapters.HTTPAdapter, abc.ABC):
    """What the adapters have in common: a single pool.

    Attributes:
        line: Tells which connection served the last request.
        base_url: Scheme and host, to make URLs for requests with.
        name: The server, for messages.
    """

    pool: Pool

    def __init__(self, *, base_url: str, name: str) -> None:
        super().__init__()
        self.line = Line()
        self.base_url = base_url
        self.name = name

    def get_connection(self, url: Any, proxies: Any = None) -> Any:
        """Return the pool. Called by requests before 2.32."""
        return self.pool

    def get_connection_with_tls_context(self, request: Any, verify: Any, proxies: Any = None, cert: Any = None) -> Any:
        """Return the pool. Called by requests from 2.32 on."""
        return self.pool

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Do nothing: the stream verifies, with the context it was given."""

    def request_url(self, request: Any, proxies: Any) -> str:
        """Return the path: there is no forwarding proxy."""
        return str(request.path_url)

    def build_response(self, req: Any, resp: Any) -> requests.Response:
        """Make the response, without looking for cookies, nor at the head again."""
        response = requests.Response()
        response.status_code = resp.status
        response.headers = resp.headers
        response.reason = resp.reason
        response.url = req.url
        response.raw = resp
        response.request = req
        return response

    def close(self) -> None:
        """Close idle connections. The adapter may still be used."""
        pool, self.pool = self.pool, self._make_pool()
        pool.close()
        self.line.connection = None

    @abc.abstractmethod
    def _make_pool(self) -> Pool:
        """Return a new pool, without connections."""

    def _new_pool(self, host: str, port: int | None, connect: Opener) -> Pool:
        return Pool(host, port, open_stream=connect, line=self.line)


class TcpAdapter(Adapter):
    """Connects to a TCP port.

    Args:
        host: Name or address.
        port: TCP port.
        context: For TLS; None for plain HTTP.
        timeout: Seconds of silence before a connection counts as dead.
        connect_timeout: Seconds to connect to each address of the host, and for each answer
            in the handshake.
        cancel: Ends what waits, and the connection.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        context: ssl.SSLContext | None,
        timeout: float | None,
        connect_timeout: float | None,
        cancel: Cancel | None = None,
    ) -> None:
        scheme = "https" if context else "http"
        netloc = f"{hosts.in_url(host)}:{port}"
        super().__init__(base_url=f"{scheme}://{netloc}", name=netloc)
        self._host = host
        self._port = port
        self._context = context
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._cancel = cancel
        self.pool = self._make_pool()

    def _make_pool(self) -> Pool:
        return self._new_pool(hosts.without_zone(self._host), self._port, self._connect)

    def _connect(self) -> Stream:
        try:
            sock = connect_tcp(self._host, self._port, self._connect_timeout, cancel=self._cancel)
        except (OSError, ConnectionTimeout) as e:
            raise unreachable(f"cannot connect to {self.name}", e) from e
        try:
            _keep_alive(sock)
            if self._context is None:
                return Stream(sock, self.name, self._timeout, cancel=self._cancel)
            return TlsStream(
                sock,
                self.name,
                self._timeout,
                connect_timeout=self._connect_timeout,
                context=self._context,
                server_hostname=hosts.without_zone(self._host),
                cancel=self._cancel,
            )
        except BaseException:
            sock.close()
            raise


class UnixAdapter(Adapter, requests_unixsocket.adapters.UnixAdapter):  # type: ignore[misc]
    """Connects to a Unix socket that root, this user or the service's user listens on.

    Tickets and data pass in plain text, so another user's program gets no request.

    Args:
        address: Path, or abstract name that starts with NUL.
        timeout: Seconds of silence before a connection counts as dead.
        connect_timeout: Seconds to wait for the server to accept.
        cancel: Ends what waits, and the connection.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout: float | None,
        connect_timeout: float | None,
        cancel: Cancel | None = None,
    ) -> None:
        shown = "@" + address[1:] if address.startswith("\0") else address
        super().__init__(base_url=f"http+unix://{quote(address, safe='')}", name=shown)
        self._address = address
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._cancel = cancel
        self.pool = self._make_pool()

    def _make_pool(self) -> Pool:
        return self._new_pool("localhost", None, self._connect)

    def _connect(self) -> Stream:
        try:
            sock = connect_unix(self._address, self._connect_timeout, cancel=self._cancel)
        except (OSError, ValueError, ConnectionTimeout) as e:
            raise unreachable(f"cannot connect to {self.name}", e) from e
        uid = peer_credentials(sock).uid
        if uid not in trusted_users():
            sock.close()
            raise Unreachable(f"the program at {self.name} belongs to user {uid}, not to root, us or {_USER!r}")
        # The sender's buffer rules a Unix socket; the server sets its own.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, defaults.HTTP_SNDBUF)
        return Stream(sock, self.name, self._timeout, cancel=self._cancel)


def trusted_users() -> frozenset[int]:
    """Return the users whose Unix sockets are taken for a server's."""
    return frozenset({0, os.geteuid(), *_service_user()})


@functools.cache
def _service_user() -> tuple[int, ...]:
    import pwd  # it may load libraries of the system's name service

    try:
        return (pwd.getpwnam(_USER).pw_uid,)
    except KeyError:
        return ()


def _keep_alive(sock: socket.socket) -> None:
    """Find out that the server's host died while a long checksum is waited for; tcp(7)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _INTERVAL)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
