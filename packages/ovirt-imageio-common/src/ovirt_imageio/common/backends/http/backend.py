# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""An image that another daemon serves, by the HTTP API.

Used by the client, and by a daemon in proxy role. Short ranges are read into memory of
the caller by one request each. Long ones are one streamed request, whose payload goes
straight from a local backend to the socket and back, by splice(2) where both are plain.

Source: the images API, `docs/images.md`.
"""

from __future__ import annotations

import contextlib
import copy
import json
from functools import partial
from typing import Any, Callable, Hashable, Iterator, Literal, NamedTuple, Sequence

from ovirt_imageio.common import defaults, imagesapi
from ovirt_imageio.common.backends.base import (
    Backend,
    Capabilities,
    NullOperation,
    Operation,
    Peer,
    Reader,
    Writer,
    fill_from,
    pieces,
)
from ovirt_imageio.common.backends.imagesize import ImageSize
from ovirt_imageio.common.backends.pausing import is_paused
from ovirt_imageio.common.buffers import Buffer, borrow
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.checksum import ChecksumResult
from ovirt_imageio.common.errors import ConnectionTimeout, PeerGone, PeerTimeout, ProtocolError, UnsupportedOperation
from ovirt_imageio.common.extents import Extent, clip

from .answers import check_range_reply, read_checksum
from .channel import Reply
from .errors import ConnectionLost, NotSupported, Refused, ServerSilent, Unreachable, WritesLost, not_there
from .exchange import StreamedBody
from .listing import read_listing
from .origin import Origin
from .peers import DownloadPeer, UploadPeer, Watched, relay
from .readers import ReaderPeer, WriterPeer
from .size import ask_size, total_of
from .streams import Stream

_UNCERTAIN = (502, 503, 504)  # a server that answers so did not ask storage, or has no answer from it

_PATIENCE = 16  # times the timeout, for answers that storage has to work for: longer than a daemon waits for it


class Debt(NamedTuple):
    """Writes that no flush covers yet, and that another instance takes over.

    Attributes:
        life: Life of the server that acknowledged the first of them, see `Backend.life`.
        in_doubt: Some were acknowledged in another life.
    """

    life: Hashable
    in_doubt: bool


class HttpBackend(Backend):
    """An open image of an image server. One instance, one thread, one connection.

    A connection that the server closed is made again. A flush covers writes over the old
    one as well, unless the server was restarted in between. Servers of version 3 answer each write
    and flush with an id, `Imageio-Instance`, that is the same as long as a flush covers the
    writes. Others tell nothing: there a write is in doubt once its connection is gone.

        PUT flush=n   ──► 200, Imageio-Instance: 1
                          the server is restarted
        PATCH flush   ──► 200, Imageio-Instance: 2     WritesLost: it flushed nothing of ours

    After that no flush of the instance succeeds. A clone may write all of it again.

    Args:
        url: `https://HOST:PORT/images/ID`, or http.
        mode: `r` refuses writing; `r+` leaves it to the ticket.
        dirty: Dirty extents are wanted: only with this `capabilities.can_dirty` may be
            true. The server does not tell before it is asked for them.
        cafile: Certificates to verify the server with; None means the system's.
        secure: Verify the server. False accepts any certificate.
        proxy_url: The same image at another server, used when no connection to url can
            be made.
        timeout: Seconds that the server may be silent. It may take sixteen times as long for
            requests that make storage work, and any time for a checksum. None: for ever.
        strict: The timeout counts for those as well.
        connect_timeout: Seconds to connect to each address of the server.
        use_unix_socket: Use the Unix socket of a server on this host.
        buffer_size: Most bytes moved at a time where payload passes through memory.
        cancel: Ends what waits for the server, in this instance and in its clones.

    Attributes:
        features: Names of features that the server offers, see `imagesapi`.
        capabilities: From the server's answer to OPTIONS.
        unflushed: Something was written since the last flush.
        broken: Why no flush succeeds any more.

    Raises:
        ValueError: A URL is not one of an image.
        Unreachable: Neither URL can be connected.
        Untrusted: The server's certificate was not accepted.
        Forbidden: The ticket is missing or expired.
        OSError: cafile cannot be read.
        OperationCancelled: cancel said so, now or in any method.
        ImageioError: The server does not answer as it should.
    """

    read_only_reason = "the image was opened for reading, or the ticket does not allow writing"
    can_pause = False  # a PUT that has begun tells the server how long it will be
    tells_life = True

    def __init__(
        self,
        url: str,
        *,
        mode: str = "r+",
        dirty: bool = False,
        cafile: str | None = None,
        secure: bool = True,
        proxy_url: str | None = None,
        timeout: float | None = defaults.HTTP_TIMEOUT,
        strict: bool = False,
        connect_timeout: float | None = defaults.CONNECT_TIMEOUT,
        use_unix_socket: bool = True,
        buffer_size: int = defaults.PIECE,
        cancel: Cancel | None = None,
    ) -> None:
        if buffer_size < 1:
            raise ValueError(f"invalid buffer_size {buffer_size}: expected 1 byte or more")
        self.url = url
        self._buffer_size = buffer_size
        self._closed = False
        self._in_doubt = False
        self._cancel = cancel
        self._timeout = timeout
        self._patience = timeout if timeout is None or strict else timeout * _PATIENCE
        self._longest = timeout if strict else None
        origin = Origin(url, proxy_url, cafile, secure, timeout, connect_timeout, use_unix_socket, cancel)
        self._remote, self._unix, self._offer = origin.connect()
        if self._unix is not None:
            self._remote.close()  # kept for the day when the Unix socket fails
        self._size = ImageSize()  # shared by clones
        self.features = self._offer.features
        self.capabilities = Capabilities(
            max_readers=self._offer.max_readers,
            max_writers=self._offer.max_writers,
            can_zero=imagesapi.FEATURE_ZERO in self.features,
            can_extents=imagesapi.FEATURE_EXTENTS in self.features,
            can_dirty=dirty and imagesapi.FEATURE_EXTENTS in self.features,
            can_flush=imagesapi.FEATURE_FLUSH in self.features,
            multi_conn=self._offer.flushes_all,
            read_only=mode == "r" or not self._offer.writable,
        )

    @property
    def unix_socket_used(self) -> bool:
        """Requests go by the Unix socket of a server on this host."""
        return self._unix is not None

    @property
    def tells_restarts(self) -> bool:
        """The server tells if it was restarted: a connection that is lost alone leaves nothing in doubt."""
        return self._offer.is_ours

    @property
    def transport(self) -> Literal["unix", "tls", "tcp"]:
        """How requests go: by a Unix socket, encrypted, or in plain text."""
        if self._unix is not None:
            return "unix"
        return "tls" if self._remote.is_encrypted else "tcp"

    @property
    def size(self) -> int:  # type: ignore[override]
        """Bytes of the image; the first time it is asked from the server.

        Raises:
            As read_into.
        """
        return self._size.value if self._size.known else self.measure()

    def measure(self) -> int:
        """See Backend."""
        extents = self.capabilities.can_extents
        return self._size.look(partial(ask_size, self._request, extents=extents, timeout=self._patience))

    @property
    def max_size(self) -> int:
        """See Backend. The server of a file that may grow tells, but for those of 2.x: then the server decides.

        Raises:
            As read_into.
        """
        if self._offer.max_size is not None:
            return max(self._offer.max_size, self._size.value)
        # Servers of 2.x let one connection write to a file, and more to all else.
        return max(self.size, imagesapi.LARGEST if self._offer.max_writers == 1 else 0)

    def size_teller(self) -> Callable[[], int]:
        """See Backend."""
        size, _ = self._size, self.size
        return lambda: size.value

    def clone(self) -> HttpBackend:
        """Return an instance for another thread, with a connection of its own."""
        other = copy.copy(self)
        other._remote = self._remote.clone()
        other._unix = self._unix.clone() if self._unix else None
        other._closed = False
        other.unflushed = other._in_doubt = False
        other.broken = other.life = None
        return other

    @property
    def debt(self) -> Debt | None:
        """Writes that no flush covers yet; None if a flush covers all."""
        return Debt(self.life, self._in_doubt) if self.unflushed else None

    def assume(self, debt: Debt) -> None:
        """Answer for what an instance wrote that is closed: the next flush has to cover it."""
        self._in_doubt = self._in_doubt or debt.in_doubt or (self.unflushed and debt.life != self.life)
        self.life, self.unflushed = debt.life, True

    def interrupt(self) -> None:
        """Break the connection, to wake a thread that waits for the server.

        The request of that thread fails with ServerGone. Any thread may call this.
        """
        for channel in (self._unix, self._remote):
            if channel is not None:
                channel.interrupt()

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._closed = True
        self._remote.close()
        if self._unix is not None:
            self._unix.close()

    def read_into(self, offset: int, buf: Buffer) -> None:
        """Fill buf by one GET; from a server of another maker by GETs of at most 32 MiB.

        Raises:
            ValueError: The range is not inside the image.
            Refused: The server said no, and why.
            ServerGone, ConnectionTimeout, Unreachable: The connection failed.
            ProtocolError: The answer is not what was asked for.
        """
        with memoryview(buf) as given, given.cast("B") as view:
            self.check_range(offset, len(view))
            for start, count in self._gets(offset, len(view)):
                at = start - offset
                with self._get(start, count) as reply:
                    reply.body.fill(view[at : at + count])

    def write(self, offset: int, buf: Buffer) -> None:
        """Write buf by one PUT, without a flush.

        Raises:
            UnsupportedOperation: The ticket allows no writing.
            As read_into.
        """
        with memoryview(buf) as given, given.cast("B") as view:
            self.check_write(offset, len(view))
            if view:
                self._put(offset, len(view), view)

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeroes, by PATCH or by writing zeroes.

        Raises:
            As write.
        """
        self.check_write(offset, length)
        if not self.capabilities.can_zero:
            self._write_zeroes(offset, length)
            return
        for start, count in pieces(offset, length, defaults.ZERO_LIMIT):
            life = self._patch({"op": imagesapi.OP_ZERO, "offset": start, "size": count, "flush": False})
            self._size.note(start + count)
            self._acknowledged(life)

    def flush(self) -> None:
        """Bring what was written to stable storage.

        Does nothing for servers that cannot flush: those do it after each write.

        Raises:
            WritesLost: No flush covers a write that the server acknowledged before it was restarted, or before its
                ticket was added anew. With a server that does not tell, the connection was lost.
            As write.
        """
        if not self.capabilities.can_flush:
            self.unflushed = False
            return
        if self.broken is not None:
            raise WritesLost(f"an earlier flush failed: {self.broken}") from self.broken
        try:
            life = self._patch({"op": imagesapi.OP_FLUSH})
        except NotSupported:
            raise
        except Refused as e:
            if e.status >= 500 and e.status not in _UNCERTAIN:
                self.broken = e  # storage may have dropped what it could not write: the next flush proves nothing
            raise
        if self.unflushed and (self._in_doubt or life != self.life):
            self.broken = self._lost(life)
            raise self.broken
        self.life, self.unflushed = life, False

    def extents(
        self,
        context: str = imagesapi.CONTEXT_ZERO,
        *,
        offset: int = 0,
        length: int | None = None,
        op: Operation | None = None,
    ) -> Iterator[Extent]:
        """List the extents; the server's whole answer is read before this returns.

        op is asked before the request, and again whenever more of the answer is to be read. If it is
        cancelled then, the connection is closed and made again.

        Raises:
            ValueError: The context or the range makes no sense.
            UnsupportedOperation: The image has no dirty extents.
            As read_into.
        """
        if context not in imagesapi.CONTEXTS:
            raise ValueError(f"unknown context {context!r}: expected one of {', '.join(imagesapi.CONTEXTS)}")
        self.check_range(offset, self.size - offset if length is None else length)
        if not self.capabilities.can_extents:
            return super().extents(context, offset=offset, length=length, op=op)
        if not self.size and context == imagesapi.CONTEXT_ZERO:
            return iter(())  # the daemon of 2.5.1 fails to ask qemu-nbd
        op, size = op or NullOperation(), self.size
        try:
            listing = self._list(context, op)
        except ProtocolError:
            if self.measure() == size:
                raise
            listing = self._list(context, op)  # another program has changed the size
        return iter(clip(listing, offset, self.size - offset if length is None else length))

    def _list(self, context: str, op: Operation) -> Any:
        """List the extents of the whole image."""
        op.check()
        suffix = f"/{imagesapi.EXTENTS}?context={context}"
        with self._request("GET", suffix, timeout=self._patience) as reply:
            self._note_smaller(reply, self._size.value)
            if reply.status == 404 and context == imagesapi.CONTEXT_DIRTY:
                raise not_there("dirty extents", reply.error())
            reply.require(200)
            # Those that flush all connections at once are ours.
            old_server = not self._offer.flushes_all
            return read_listing(_checked(reply.body.receive, op), context, self.size, old_server=old_server)

    def checksum(
        self,
        *,
        algorithm: str | None = None,
        block_size: int | None = None,
        offset: int = 0,
        length: int | None = None,
        blocks: bool = False,
    ) -> ChecksumResult:
        """Let the server compute a block hash; it may take any time.

        Args:
            algorithm: None leaves it to the server: blake2b.
            block_size: Bytes; None leaves it to the server: 4 MiB.
            offset: Start of the range, a multiple of block_size.
            length: Bytes of the range; None means to the end of the image.
            blocks: Digests of all blocks are wanted.

        Raises:
            UnsupportedOperation: The server has no checksums, even if it offers them, or none of ranges.
            As read_into.
        """
        query = {"algorithm": algorithm, "block_size": block_size}
        feature = imagesapi.FEATURE_CHECKSUM
        if offset or length is not None or blocks:
            feature = imagesapi.FEATURE_CHECKSUM_RANGE
            query.update(offset=offset, length=length, blocks="y" if blocks else None)
        if feature not in self.features:
            raise UnsupportedOperation(f"the server does not offer {feature!r}: {sorted(self.features)}")
        given = "&".join(f"{key}={value}" for key, value in query.items() if value is not None)
        suffix = f"/{imagesapi.CHECKSUM}" + (f"?{given}" if given else "")
        with self._request("GET", suffix, timeout=self._longest) as reply:
            if reply.status == 404:
                raise not_there("checksum", reply.error())
            self._note_smaller(reply, self._size.value)
            return read_checksum(reply.require(200).document())

    def stream_read(
        self, dst: Backend, offset: int, length: int, op: Operation, *, dst_offset: int | None = None
    ) -> None:
        """Download a range into a local backend by one GET, or several as read_into.

        Args:
            dst: Where to write; told by `receive_from`.
            offset: Start of the range in this image.
            length: Bytes of the range.
            op: Told of each piece that dst has acknowledged, and asked if to go on.
            dst_offset: Start of the range in dst; None means offset.

        Raises:
            OperationCancelled: op said so. The connection is closed and made again.
            As read_into, and what dst raises.
        """
        self.check_range(offset, length)
        shift = 0 if dst_offset is None else dst_offset - offset
        for start, count in self._gets(offset, length):
            with self._get(start, count) as reply, self._blamed(reply.name):
                dst.receive_from(DownloadPeer(reply.body), start + shift, count, op)
                if reply.body.left:
                    reply.body.took(reply.body.left)  # what was spliced

    def stream_write(
        self,
        src: Backend,
        offset: int,
        length: int,
        op: Operation,
        *,
        src_offset: int | None = None,
        flush: bool = False,
    ) -> None:
        """Upload a range of a local backend by one PUT; return when it is acknowledged.

        Args:
            src: Backend to read from; its `send_to` sends the bytes.
            offset: Start of the range in this image.
            length: Bytes of the range.
            op: Told of each piece that was sent, which is not acknowledged before this
                returns; and asked if to go on.
            src_offset: Start of the range in src; None means offset.
            flush: The range is on stable storage when this returns.

        Raises:
            OperationCancelled: op said so. The connection is closed and made again.
            As write, and what src raises.
        """
        self.check_write(offset, length)
        if not length:
            return
        start = offset if src_offset is None else src_offset

        def send(stream: Stream) -> None:
            src.send_to(UploadPeer(stream), start, length, Watched(op, stream))

        with self._blamed((self._unix or self._remote).name):
            self._put(offset, length, StreamedBody(length, send), flush=flush)

    def send_to(
        self,
        peer: Peer,
        offset: int,
        length: int,
        op: Operation,
        *,
        others: Sequence[Backend] = (),
    ) -> None:
        """Pass a range on to a peer by one GET, or several as read_into. See Backend."""
        self.check_range(offset, length)
        if not length:
            peer.begin()
            return
        with borrow(min(length, self._buffer_size)) as view:
            for start, count in self._gets(offset, length):
                with self._get(start, count) as reply:
                    if start == offset:
                        peer.begin()
                    self._pass_on(reply, peer, view, op)
                    if is_paused(peer):
                        return

    def receive_from(
        self,
        peer: Peer,
        offset: int,
        length: int,
        op: Operation,
        *,
        others: Sequence[Backend] = (),
    ) -> None:
        """Pass on what a peer sends, by PUTs of at most 128 MiB. See Backend.

        A peer whose attribute `chunked` is false sends all of length: it is streamed.
        """
        self.check_write(offset, length)
        if getattr(peer, "chunked", True):
            self._receive_gathered(peer, offset, length, op)
            return

        def send(stream: Stream) -> None:
            relay(peer, stream, count, op, self._buffer_size)

        for start, count in pieces(offset, length, defaults.EXTENT_LIMIT):
            self._put(start, count, StreamedBody(count, send))
            op.advance(count)

    def read_from(self, reader: Reader, offset: int, length: int, op: Operation | None = None) -> None:
        """Upload what a reader gives, by PUTs of at most 128 MiB. See Backend."""
        self.receive_from(ReaderPeer(reader), offset, length, op or NullOperation())

    def write_to(self, writer: Writer, offset: int, length: int, op: Operation | None = None) -> None:
        """Download a range into a writer by one GET, or several as read_into. See Backend."""
        self.send_to(WriterPeer(writer), offset, length, op or NullOperation())

    @contextlib.contextmanager
    def _blamed(self, name: str) -> Iterator[None]:
        """Say that it was the server, where a local end moves its bytes and takes it for a client.

        Raises:
            OperationCancelled: It was we ourselves.
            ServerSilent, ConnectionLost: In place of what is said of a client.
        """
        try:
            yield
        except (PeerGone, ConnectionTimeout) as e:
            if self._cancel is not None:
                self._cancel.check()
            if isinstance(e, PeerTimeout):
                raise ServerSilent(f"{name} moved nothing for {self._timeout} seconds") from e
            if type(e) is PeerGone:
                raise ConnectionLost(f"connection to {name} lost: {e.__cause__ or 'it was closed'}") from e
            raise

    def _request(self, method: str, suffix: str = "", **arguments: Any) -> Reply:
        """Send a request by the Unix socket, or by TCP once that cannot be connected."""
        if self._closed:
            raise ValueError(f"the image at {self._remote.name} is closed")
        if self._unix is not None:
            try:
                return self._unix.request(method, suffix, **arguments)
            except Unreachable:
                self._unix.close()
                self._unix = None
        return self._remote.request(method, suffix, **arguments)

    def _gets(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Cut a range into what the server sends at a time."""
        return pieces(offset, length, self._offer.largest_get)

    def _pass_on(self, reply: Reply, peer: Peer, view: memoryview, op: Operation) -> None:
        """Pass on what is received until a peer pauses, which ends the connection."""
        while reply.body.left:
            op.check()
            count = reply.body.receive(view)
            peer.send_all(view[:count])
            op.advance(count)
            if is_paused(peer):
                reply.close()
                return

    def _get(self, offset: int, length: int) -> Reply:
        """Ask for a range, and make sure that it is what comes."""
        reply = self._request("GET", headers={"Range": imagesapi.byte_range(offset, length)})
        try:
            self._note_smaller(reply, offset + length)
            reply.require(200, 206)
            check_range_reply(reply, offset, length)
        except BaseException:
            reply.close()
            raise
        return reply

    def _note_smaller(self, reply: Reply, end: int) -> None:
        """Learn from a refused range that ends there how large the image is now."""
        size = total_of(reply) if reply.status == 416 else None
        if size is not None and size < end:
            self._size.note_smaller(size)

    def _put(self, offset: int, length: int, body: Any, *, flush: bool = False) -> None:
        can_flush = self.capabilities.can_flush
        reply = self._request(
            "PUT",
            ("?flush=y" if flush else "?flush=n") if can_flush else "",
            headers={"Content-Range": imagesapi.content_range(offset, length)},
            body=body,
            length=length,
            timeout=self._timeout if can_flush and not flush else self._patience,
            replay=not isinstance(body, StreamedBody),
        )
        with reply:
            life = reply.require(200, 204).life
        self._size.note(offset + length)
        if can_flush and not flush:
            self._acknowledged(life)

    def _acknowledged(self, life: Hashable) -> None:
        """Note that a write was acknowledged that no flush covers."""
        if not self.unflushed:
            self.life, self.unflushed = life, True
        elif life != self.life:
            self._in_doubt = True

    def _lost(self, life: Hashable) -> WritesLost:
        name = (self._unix or self._remote).name
        if isinstance(life, str) and isinstance(self.life, str):
            why = f"{name} was restarted, or its ticket added anew,"
        else:
            why = f"the connection to {name} was lost, which does not tell if it was restarted,"
        return WritesLost(f"{why} after it had acknowledged writes that no flush covered: they may be lost")

    def _patch(self, document: dict[str, Any]) -> Hashable:
        """Zero or flush; return what answered."""
        body = json.dumps(document).encode()
        reply = self._request(
            "PATCH",
            headers={"Content-Type": imagesapi.JSON},
            body=body,
            length=len(body),
            timeout=self._patience,
        )
        with reply:
            return reply.require(200, 204).life

    def _write_zeroes(self, offset: int, length: int) -> None:
        zeroes = memoryview(bytes(min(length, defaults.PIECE)))

        def send(stream: Stream) -> None:
            for _, size in pieces(0, count, len(zeroes)):
                stream.sendall(zeroes[:size])

        for start, count in pieces(offset, length, defaults.EXTENT_LIMIT):
            self._put(start, count, StreamedBody(count, send))

    def _receive_gathered(self, peer: Peer, offset: int, length: int, op: Operation) -> None:
        """Receive a body of unknown length: the origin is only told of what is at hand."""
        if not length:
            return
        with borrow(min(length, defaults.PIECE)) as view:
            for start, count in pieces(offset, length, len(view)):
                got = fill_from(peer, view[:count])
                op.check()
                if got:
                    self._put(start, got, view[:got])
                    op.advance(got)
                if got < count:
                    return


def _checked(receive: Callable[[memoryview], int], op: Operation) -> Callable[[memoryview], int]:
    """Return what asks op if to go on before each call."""

    def checked(view: memoryview) -> int:
        op.check()
        return receive(view)

    return checked
