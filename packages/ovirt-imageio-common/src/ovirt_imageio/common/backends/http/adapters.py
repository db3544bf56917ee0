# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Adapters of requests that send by connections of our own.

requests prepares requests and knows responses; `BaseAdapter.send` lies between. The adapters are
used without a `requests.Session`: they read no environment, no netrc and no cookies, and follow no
redirect. Contract and speed ask for that.
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
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict
from requests_unixsocket import DEFAULT_SCHEME

from ovirt_imageio.common import defaults, hosts
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.errors import ConnectionTimeout
from ovirt_imageio.common.sockets import connect_tcp, connect_unix, peer_credentials

from .errors import Unreachable, unreachable
from .exchange import Connection
from .streams import Stream, TlsStream

_USER = "ovirtimg"

_PORTS = {"http": 80, "https": 443}

_IDLE, _INTERVAL, _PROBES = 30, 10, 3  # seconds, seconds, count: a dead host shows in a minute


class Adapter(BaseAdapter, abc.ABC):
    """Sends requests to one server. One thread.

    One connection is kept. Another is made where a request begins before the answer to the
    last one was received.

    Args:
        base_url: Scheme and host, to make URLs for requests with.
        name: The server, for messages.
        host: For the field `Host`.

    Attributes:
        base_url: The argument.
        name: The argument.
        connection: Connection of the last request, None before the first.
    """

    def __init__(self, *, base_url: str, name: str, host: str) -> None:
        super().__init__()
        self.base_url = base_url
        self.name = name
        self.connection: Connection | None = None
        self._host = host
        self._idle: Connection | None = None

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = True,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> requests.Response:
        """Send a request, and receive the head of its answer.

        Args:
            request: Its headers lack `Host`, and have the length of the body. The body is bytes or
                a `StreamedBody`.
            stream: The body of the answer is never received here.
            timeout: Seconds that the server may be silent; None means for ever.
            verify: Not used: the adapter was told how to verify the server.
            cert: Not used.
            proxies: Not used.

        Returns:
            The answer, whose `raw` is the `Exchange`.

        Raises:
            Unreachable: No connection; nothing was sent.
            As Connection.exchange.
        """
        connection = self._take() or Connection(self._connect(), self.name, self._free)
        self.connection = connection
        try:
            exchange = connection.exchange(str(request.method), self._head(request), request.body, timeout)
        except BaseException:
            connection.close()
            raise
        response = requests.Response()
        response.status_code = exchange.head.status
        response.headers = CaseInsensitiveDict(exchange.head.fields)
        response.reason = exchange.head.reason
        response.url = str(request.url)
        response.raw = exchange
        response.request = request
        return response

    def close(self) -> None:
        """Close the connection. The adapter may still be used."""
        connection, self._idle = self._idle, None
        if connection is not None:
            connection.close()
        self.connection = None

    @abc.abstractmethod
    def _connect(self) -> Stream:
        """Connect to the server.

        Raises:
            Unreachable: There is none.
        """

    def _take(self) -> Connection | None:
        """Return the idle connection, unless the server has ended it."""
        connection, self._idle = self._idle, None
        if connection is None or connection.is_usable():
            return connection
        connection.close()
        return None

    def _free(self, connection: Connection) -> None:
        """Keep a connection whose exchange has ended."""
        if self._idle is None and connection is self.connection:
            self._idle = connection
        else:
            connection.close()

    def _head(self, request: requests.PreparedRequest) -> bytes:
        lines = [f"{request.method} {request.path_url} HTTP/1.1\r\nHost: {self._host}"]
        lines += [f"{name}: {value}" for name, value in request.headers.items()]
        lines.append("\r\n")
        return "\r\n".join(lines).encode("latin-1")


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
        super().__init__(base_url=f"{scheme}://{netloc}", name=netloc, host=_host_field(host, port, scheme))
        self._address = (host, port)
        self._context = context
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._cancel = cancel

    def _connect(self) -> Stream:
        host, port = self._address
        try:
            sock = connect_tcp(host, port, self._connect_timeout, cancel=self._cancel)
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
                server_hostname=hosts.without_zone(host),
                cancel=self._cancel,
            )
        except BaseException:
            sock.close()
            raise


class UnixAdapter(Adapter):
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
        super().__init__(base_url=f"{DEFAULT_SCHEME}{quote(address, safe='')}", name=shown, host="localhost")
        self._address = address
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._cancel = cancel

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


def _host_field(host: str, port: int, scheme: str) -> str:
    """Return the field `Host`; RFC 9110 §7.2."""
    name = hosts.in_url(hosts.without_zone(host))
    if not name.isascii():
        name = name.encode("idna").decode("ascii")
    return name if port == _PORTS[scheme] else f"{name}:{port}"


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
