# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Where an image is served, and the best way there.

    url ──► OPTIONS ──► it names a Unix socket, and is on this host ──► OPTIONS there
     │                                                                     │ same answer
     └─ no connection: proxy_url, then the same                            ▼
                                                                    Unix socket, else TLS

A server is on this host if both ends of our own TCP connection have the same address. That
alone could be a forwarded port: then the socket's name may belong to another program here. So
the kernel is asked which user listens there. The socket proves that it is the same server's
before the ticket's id is sent to it; see `sameserver`. Servers of 2.x give no proof: for them
the user counts. At last the daemon behind the Unix socket must know the same ticket
and describe itself in the same words.
"""

from __future__ import annotations

import json
import logging
import os
import ssl
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import SplitResult

from ovirt_imageio.common import hosts, imagesapi, sameserver
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.errors import ImageioError, OperationCancelled, ProtocolError
from ovirt_imageio.common.units import MiB

from .adapters import TcpAdapter, UnixAdapter
from .channel import Channel, Reply
from .errors import NoCertificates, Unreachable, Untrusted

log = logging.getLogger(__name__)

_PORTS = {"http": 80, "https": 443}
_NO_OPTIONS = (204, 404, 405, 501)  # what servers answer that do not know the method

_FOREIGN_GET = 32 * MiB
"""Most bytes of one GET from a server of another maker. OpenNebula's OneBEX makes one request of NBD of each GET.
By default qemu-nbd refuses requests over 32 MiB (NBD proto.md, "Block size constraints": the default of the
largest payload)."""


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
        cancel: Ends what waits for a server.
    """

    url: str
    proxy_url: str | None
    cafile: str | None
    secure: bool
    timeout: float | None
    connect_timeout: float | None
    use_unix_socket: bool
    cancel: Cancel | None = None

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
            OperationCancelled: cancel said so.
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
            hosts.decode_zone(parts.hostname),
            parts.port or _PORTS[parts.scheme],
            context=self._context() if parts.scheme == "https" else None,
            timeout=self.timeout,
            connect_timeout=self.connect_timeout,
            cancel=self.cancel,
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
            cancel=self.cancel,
        )
        parts = imagesapi.split_url(url)
        channel = Channel(make_adapter, parts.path, timeout=self.timeout)
        try:
            if parts.scheme == "https" and (offer.proof or offer.is_ours):
                self._demand_proof(channel, offer.proof)
            if read_offer(channel.request("OPTIONS")) == offer:
                return channel
        except OperationCancelled:
            channel.close()
            raise
        except ImageioError as e:
            log.debug("Unix socket of the server is not usable: %s", e)
        channel.close()
        return None

    def _demand_proof(self, channel: Channel, key: sameserver.Key | None) -> None:
        """Let the owner of a Unix socket prove that it is the server that gave us a key.

        Raises:
            Unreachable: It does not.
            ImageioError: It does not answer as a server does.
        """
        if key is not None:
            challenge = sameserver.make_challenge(key, os.urandom(sameserver.SIZE))
            anonymous = Channel(
                lambda: channel.adapter, f"{imagesapi.IMAGES}/*", timeout=self.timeout, adapter=channel.adapter
            )
            reply = anonymous.request("OPTIONS", headers={imagesapi.CHALLENGE: challenge})
            reply.document()
            if sameserver.holds(key, challenge, reply.fields.get(imagesapi.PROOF.lower(), "")):
                return
        raise Unreachable(f"the program at {channel.name} does not prove that it is the server of the image")

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
    """Facts about an image in a server's answer to OPTIONS.

    Attributes:
        features: Names of `imagesapi`; empty for a server without OPTIONS.
        unix_socket: Address of its local service, None if there is none.
        max_readers: Connections that may read side by side.
        max_writers: Connections that may write side by side.
        writable: PUT is allowed, as far as the server tells.
        is_ours: The server is of version 3 or newer, so it proves that its Unix socket is its own.
        proof: Id and key of that proof; see `sameserver`.
        flushes_all: A flush covers what other connections wrote.
        max_size: Bytes up to which PUT may reach; None if the server does not tell.
        largest_get: Most bytes that one GET may ask for.
    """

    features: frozenset[str] = frozenset()
    unix_socket: str | None = None
    max_readers: int = 1
    max_writers: int = 1
    writable: bool = True
    flushes_all: bool = False
    is_ours: bool = False
    proof: sameserver.Key | None = field(default=None, compare=False)
    max_size: int | None = None
    largest_get: int = imagesapi.LARGEST


def read_offer(reply: Reply) -> Offer:
    """Read the answer to OPTIONS.

    Raises:
        Forbidden: There is no such ticket.
        Refused: Something else is wrong.
        ProtocolError: The answer makes no sense.
    """
    if reply.status in _NO_OPTIONS:
        reply.document()
        return Offer(largest_get=_FOREIGN_GET)
    reply.require(200)
    allow = reply.fields.get("allow")
    server = reply.fields.get("server", "")
    document = _parse(reply.document())
    max_writers = document.get("max_writers", 1)
    may_put = allow is None or "PUT" in [method.strip() for method in allow.split(",")]
    is_ours = not server.startswith(("imageio/1.", "imageio/2.")) and server.startswith("imageio/")
    return Offer(
        features=frozenset(map(str, document.get("features", ()))),
        unix_socket=document.get("unix_socket"),
        max_readers=max(document.get("max_readers", 1), 1),
        max_writers=max(max_writers, 1),
        # Apache CloudStack tells of no writers where an image can only be read.
        writable=may_put and max_writers > 0,
        flushes_all=is_ours,
        is_ours=is_ours,
        proof=_proof(document),
        max_size=document.get("max_size"),
        largest_get=imagesapi.LARGEST if server.startswith("imageio/") else _FOREIGN_GET,
    )


def _proof(document: dict[str, Any]) -> sameserver.Key | None:
    if "unix_socket_proof" not in document:
        return None
    try:
        return sameserver.parse_key(document["unix_socket_proof"])
    except ValueError as e:
        raise ProtocolError(f"the server's options make no sense: {e}") from e


def _parse(data: bytes) -> dict[str, Any]:
    if not data.strip():
        return {}
    if not data.lstrip().startswith((b"{", b"[")):
        # As 2.x: a server that answers each OPTIONS in words of its own may still serve ranges.
        log.warning("The server's options are no JSON, so it has no features: %r", data[:80])
        return {}
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise ProtocolError(f"the server's options are no JSON: {data[:80]!r}") from e
    if not isinstance(document, dict):
        raise ProtocolError(f"the server's options are no JSON object: {data[:80]!r}")
    told = {key: value for key, value in document.items() if value is not None}
    for key, kind in _KINDS.items():
        if key in told and type(told[key]) is not kind:
            raise ProtocolError(f"the server's options have {key} {told[key]!r}, expected {kind.__name__}")
    return told


_KINDS: dict[str, type] = {
    "features": list,
    "unix_socket": str,
    "max_readers": int,
    "max_writers": int,
    "max_size": int,
}
