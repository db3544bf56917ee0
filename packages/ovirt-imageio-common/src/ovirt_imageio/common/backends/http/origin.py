# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Where an image is served, and the best way there.

    url ──► OPTIONS ──► it names a Unix socket, and is on this host ──► OPTIONS there
     │                                                                     │ same answer
     └─ no connection: proxy_url, then the same                            ▼
                                                                    Unix socket, else TLS

A server is on this host if both ends of our own TCP connection have the same address.
That alone could be a forwarded port, so the daemon behind the Unix socket must also know
the same ticket and describe itself in the same words. Ticket ids are secrets that cannot
be guessed: another daemon refuses with 403.
"""

from __future__ import annotations

import json
import logging
import os
import ssl
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import SplitResult

from ovirt_imageio.common import imagesapi
from ovirt_imageio.common.errors import ImageioError, ProtocolError

from .adapters import TcpAdapter, UnixAdapter
from .channel import Channel, Reply
from .errors import NoCertificates, Unreachable, Untrusted

log = logging.getLogger(__name__)

_PORTS = {"http": 80, "https": 443}
_NO_OPTIONS = (204, 404, 405, 501)  # what servers answer that do not know the method


@dataclass(frozen=True)
class Origin:
    """The address of an image, and how to speak to its server.

    Attributes:
        url: Of the image.
        proxy_url: The same image at another server; None if there is none.
        cafile: Certificates to verify the server with; None means the system's.
        secure: Verify the server.
        timeout: Seconds that the server may be silent.
        connect_timeout: Seconds to connect to each address of the server.
        use_unix_socket: Take the Unix socket of a server on this host.
    """

    url: str
    proxy_url: str | None
    cafile: str | None
    secure: bool
    timeout: float | None
    connect_timeout: float | None
    use_unix_socket: bool

    def connect(self) -> tuple[Channel, Channel | None, Offer]:
        """Find a way to the image.

        Returns:
            The channel by TCP, one by Unix socket if that is usable, and what the server
            offers.

        Raises:
            ValueError: A URL is not one of an image.
            Unreachable: Neither URL can be connected.
            Untrusted: The server's certificate was not accepted.
            Forbidden: There is no such ticket.
            OSError: cafile cannot be read.
            ImageioError: The server does not answer as it should.
        """
        try:
            return self._connect(self.url)
        except Untrusted:
            raise
        except Unreachable as e:
            if self.proxy_url is None:
                raise
            try:
                return self._connect(self.proxy_url)
            except Unreachable as second:
                raise second.extended(f"; nor directly: {e}") from e

    def _connect(self, url: str) -> tuple[Channel, Channel | None, Offer]:
        channel = self._channel(imagesapi.split_url(url))
        try:
            reply = channel.request("OPTIONS")
            local = reply.is_local
            offer = read_offer(reply)
            unix = self._try_unix(url, offer) if local and self.use_unix_socket else None
        except BaseException:
            channel.close()
            raise
        return channel, unix, offer

    def _channel(self, parts: SplitResult) -> Channel:
        assert parts.hostname
        make_adapter = partial(
            TcpAdapter,
            parts.hostname,
            parts.port or _PORTS[parts.scheme],
            context=self._context() if parts.scheme == "https" else None,
            timeout=self.timeout,
            connect_timeout=self.connect_timeout,
        )
        return Channel(make_adapter, parts.path, timeout=self.timeout)

    def _try_unix(self, url: str, offer: Offer) -> Channel | None:
        """Return a channel by Unix socket if the same server answers there."""
        if not offer.unix_socket:
            return None
        make_adapter = partial(
            UnixAdapter,
            offer.unix_socket,
            timeout=self.timeout,
            connect_timeout=self.connect_timeout,
        )
        channel = Channel(make_adapter, imagesapi.split_url(url).path, timeout=self.timeout)
        try:
            if read_offer(channel.request("OPTIONS")) == offer:
                return channel
        except ImageioError as e:
            log.debug("Unix socket of the server is not usable: %s", e)
        channel.close()
        return None

    def _context(self) -> ssl.SSLContext:
        if self.secure:
            try:
                return ssl.create_default_context(cafile=self.cafile)
            except ssl.SSLError as e:
                raise NoCertificates(f"cafile {self.cafile!r} holds no certificate: {e.reason}", cause=e) from e
            except OSError as e:
                raise OSError(e.errno, f"cannot read cafile: {os.strerror(e.errno or 0)}", self.cafile) from e
        # The default context would read all of the system's certificates, which takes 20 ms.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context


@dataclass(frozen=True)
class Offer:
    """What a server says about an image in its answer to OPTIONS.

    Attributes:
        features: Names of `imagesapi`; empty for a server without OPTIONS.
        unix_socket: Address of its local service, None if there is none.
        max_readers: Connections that may read side by side.
        max_writers: Connections that may write side by side.
        writable: PUT is allowed, as far as the server tells.
        flushes_all: A flush covers what other connections wrote.
    """

    features: frozenset[str] = frozenset()
    unix_socket: str | None = None
    max_readers: int = 1
    max_writers: int = 1
    writable: bool = True
    flushes_all: bool = False


def read_offer(reply: Reply) -> Offer:
    """Read the answer to OPTIONS.

    Raises:
        Forbidden: There is no such ticket.
        Refused: Something else is wrong.
        ProtocolError: The answer makes no sense.
    """
    if reply.status in _NO_OPTIONS:
        reply.document()
        return Offer()
    reply.require(200)
    allow = reply.headers.get("Allow")
    server = reply.headers.get("Server", "")
    document = _parse(reply.document())
    return Offer(
        features=frozenset(map(str, document.get("features", ()))),
        unix_socket=document.get("unix_socket"),
        max_readers=document.get("max_readers", 1),
        max_writers=document.get("max_writers", 1),
        writable=allow is None or "PUT" in [method.strip() for method in allow.split(",")],
        flushes_all=not server.startswith(("imageio/1.", "imageio/2.")) and server.startswith("imageio/"),
    )


def _parse(data: bytes) -> dict[str, Any]:
    if not data.strip():
        return {}
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise ProtocolError(f"the server's options are no JSON: {data[:80]!r}") from e
    if not isinstance(document, dict):
        raise ProtocolError(f"the server's options are no JSON object: {data[:80]!r}")
    for key, kind in _KINDS.items():
        if key in document and type(document[key]) is not kind:
            raise ProtocolError(f"the server's options have {key} {document[key]!r}, expected {kind.__name__}")
    return document


_KINDS: dict[str, type] = {"features": list, "unix_socket": str, "max_readers": int, "max_writers": int}
