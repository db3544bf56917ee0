# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""An NBD server that says what a test tells it to, true or not.

A script is a function that gets a `Talk`, one for each connection, and plays the server::

    def script(talk):
        talk.negotiate(size=4096, structured=True)
        request = talk.request()
        talk.chunk(request, REPLY_OFFSET_DATA, OFFSET.pack(8192) + b"x", done=True)

    with Peer(script) as peer:
        client = Client(peer.address)

`Talk.serve` plays an honest server over a bytearray, with the limits that are asked for. The peer keeps its own
numbers of the protocol where it tells lies about them; the honest words are those of
`ovirt_imageio.common.nbd.wire`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import tempfile
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Callable, Mapping

from ovirt_imageio.common.nbd import uri, wire

if TYPE_CHECKING:
    from types import TracebackType

FLAGS = wire.FLAG_HAS_FLAGS | wire.FLAG_SEND_FLUSH | wire.FLAG_SEND_WRITE_ZEROES | wire.FLAG_CAN_MULTI_CONN

# Nothing in a test waits longer than this for the other side, in seconds.
PATIENCE = 30.0


@dataclass(frozen=True)
class Asked:
    """A request as the client sent it."""

    flags: int
    command: int
    handle: int
    offset: int
    length: int
    payload: bytes = b""


@dataclass
class Image:
    """The content of the honest server, and its abilities.

    Attributes:
        data: the content; its length is the size of the export.
        flags: transmission flags.
        structured: offer structured replies.
        block_sizes: minimum, preferred, maximum; None: not told.
        status: runs of (length, flags) by context name, offered as metadata contexts.
        errors: errno to fail a command with, by command.
        hole_block: send blocks of this size that are zero as holes, 0 for never.
        whole: answer a read with one chunk that ends the reply, as qemu does, unless it has holes.
        asked: every request received, in order.
        lock: held while a request other than a read is carried out.
    """

    data: bytearray
    flags: int = FLAGS
    structured: bool = True
    block_sizes: tuple[int, int, int] | None = None
    status: Mapping[str, list[tuple[int, int]]] = field(default_factory=dict)
    errors: dict[int, int] = field(default_factory=dict)
    hole_block: int = 0
    whole: bool = False
    asked: list[Asked] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


class HungUp(Exception):
    """The client closed the connection."""


class Talk:
    """One connection of a client, seen from the server. Used by the script's thread."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.contexts: dict[str, int] = {}

    # Bytes.

    def send(self, *parts: bytes) -> None:
        """Send anything."""
        self.sock.sendall(b"".join(parts))

    def receive(self, size: int) -> bytes:
        """Receive exactly that many bytes.

        Raises:
            HungUp: the client closed the connection.
        """
        data = bytearray()
        while len(data) < size:
            try:
                part = self.sock.recv(size - len(data))
            except ConnectionError as e:
                raise HungUp from e
            if not part:
                raise HungUp
            data += part
        return bytes(data)

    def wait_for_hangup(self) -> None:
        """Say nothing more until the client closes the connection."""
        try:
            while self.sock.recv(65536):
                pass
        except ConnectionError:
            # Closed without reading what we said.
            pass

    # Negotiation.

    def greet(self, flags: int = wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES) -> int:
        """Greet, and return the client's flags."""
        self.send(wire.GREETING.pack(wire.INIT_MAGIC, wire.OPTION_MAGIC), wire.HANDSHAKE_FLAGS.pack(flags))
        return int(wire.CLIENT_FLAGS.unpack(self.receive(4))[0])

    def option(self) -> tuple[int, bytes]:
        """Receive an option: its code and data."""
        magic, code, length = wire.OPTION.unpack(self.receive(wire.OPTION.size))
        assert magic == wire.OPTION_MAGIC
        return code, self.receive(length)

    def expect_option(self, code: int) -> bytes:
        """Receive an option that must be this one, and return its data."""
        got, data = self.option()
        assert got == code, f"got option {got}, expected {code}"
        return data

    def reply(self, option: int, kind: int, data: bytes = b"") -> None:
        """Send a reply to an option."""
        self.send(wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, option, kind, len(data)), data)

    def info_export(self, size: int, flags: int = FLAGS) -> None:
        """Tell the size and flags of the export in reply to GO."""
        data = wire.INFO.pack(wire.INFO_EXPORT) + wire.EXPORT.pack(size, flags)
        self.reply(wire.OPT_GO, wire.REP_INFO, data)

    def info_block_sizes(self, minimum: int, preferred: int, maximum: int) -> None:
        """Tell the block sizes in reply to GO."""
        data = wire.INFO.pack(wire.INFO_BLOCK_SIZE) + wire.BLOCK_SIZES.pack(minimum, preferred, maximum)
        self.reply(wire.OPT_GO, wire.REP_INFO, data)

    def negotiate(
        self,
        size: int,
        *,
        flags: int = FLAGS,
        structured: bool = True,
        contexts: Mapping[str, int] | None = None,
        block_sizes: tuple[int, int, int] | None = None,
    ) -> None:
        """Negotiate honestly, up to the first request.

        Args:
            size: of the export, in bytes.
            flags: transmission flags.
            structured: accept structured replies.
            contexts: metadata contexts offered, name to number.
            block_sizes: minimum, preferred, maximum.
        """
        offered = dict(contexts or {})
        self.greet()
        while True:
            code, data = self.option()
            if code == wire.OPT_STRUCTURED_REPLY:
                self.reply(code, wire.REP_ACK if structured else wire.REP_ERR_UNSUP)
            elif code in (wire.OPT_LIST_META_CONTEXT, wire.OPT_SET_META_CONTEXT):
                self._meta_contexts(code, data, offered)
            elif code == wire.OPT_LIST:
                self.reply(code, wire.REP_SERVER, wire.string("") + b"details")
                self.reply(code, wire.REP_ACK)
            elif code == wire.OPT_GO:
                self.info_export(size, flags)
                if block_sizes:
                    self.info_block_sizes(*block_sizes)
                self.reply(code, wire.REP_ACK)
                return
            else:
                assert code == wire.OPT_ABORT, f"unexpected option {code}"
                raise HungUp

    def _meta_contexts(self, code: int, data: bytes, offered: Mapping[str, int]) -> None:
        for query in _queries(data):
            for name, number in offered.items():
                if name == query or (query.endswith(":") and name.startswith(query)):
                    self.reply(code, wire.REP_META_CONTEXT, wire.U32.pack(number) + name.encode())
                    if code == wire.OPT_SET_META_CONTEXT:
                        self.contexts[name] = number
        self.reply(code, wire.REP_ACK)

    # Transmission.

    def request(self) -> Asked:
        """Receive a request with its payload.

        Raises:
            HungUp: the client disconnected.
        """
        head = wire.REQUEST.unpack(self.receive(wire.REQUEST.size))
        magic, flags, command, handle, offset, length = head
        assert magic == wire.REQUEST_MAGIC
        if command == wire.CMD_DISC:
            raise HungUp
        payload = self.receive(length) if command == wire.CMD_WRITE else b""
        return Asked(flags, command, handle, offset, length, payload)

    def expect(self, command: int) -> Asked:
        """Receive a request that must be of this command."""
        asked = self.request()
        assert asked.command == command, f"got command {asked.command}, expected {command}"
        return asked

    def simple(self, asked: Asked, payload: bytes = b"", *, error: int = 0) -> None:
        """Send a simple reply."""
        self.send(wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, error, asked.handle), payload)

    def chunk(
        self, asked: Asked, kind: int, data: bytes = b"", *, done: bool = False, length: int | None = None
    ) -> None:
        """Send a chunk of a structured reply.

        Args:
            asked: what is answered.
            kind: type of the chunk.
            data: what follows the head.
            done: it is the last one.
            length: to announce instead of the length of data.
        """
        flags = wire.REPLY_FLAG_DONE if done else 0
        head = wire.STRUCTURED_REPLY.pack(wire.STRUCTURED_REPLY_MAGIC, flags, kind, asked.handle)
        self.send(head, wire.U32.pack(len(data) if length is None else length), data)

    def data(self, asked: Asked, offset: int, payload: bytes, *, done: bool = False) -> None:
        """Send a chunk of content."""
        self.chunk(asked, wire.REPLY_OFFSET_DATA, wire.OFFSET.pack(offset) + payload, done=done)

    def hole(self, asked: Asked, offset: int, length: int, *, done: bool = False) -> None:
        """Send a chunk that reads as zeros."""
        self.chunk(asked, wire.REPLY_OFFSET_HOLE, wire.OFFSET_HOLE.pack(offset, length), done=done)

    def status(self, asked: Asked, context: int, runs: list[tuple[int, int]], *, done: bool = False) -> None:
        """Send a block status chunk."""
        data = wire.U32.pack(context) + b"".join(wire.STATUS_EXTENT.pack(*run) for run in runs)
        self.chunk(asked, wire.REPLY_BLOCK_STATUS, data, done=done)

    def error(
        self, asked: Asked, code: int, message: str = "", *, offset: int | None = None, done: bool = True
    ) -> None:
        """Send an error chunk, with an offset if one is given."""
        text = message.encode()
        data = wire.ERROR.pack(code, len(text)) + text
        if offset is None:
            self.chunk(asked, wire.REPLY_ERROR, data, done=done)
        else:
            self.chunk(asked, wire.REPLY_ERROR_OFFSET, data + wire.OFFSET.pack(offset), done=done)

    # The honest server.

    def serve(self, image: Image) -> None:
        """Serve an image honestly until the client leaves."""
        numbers = {name: number for number, name in enumerate(image.status, 7)}
        self.negotiate(
            len(image.data),
            flags=image.flags,
            structured=image.structured,
            contexts=numbers,
            block_sizes=image.block_sizes,
        )
        while True:
            asked = self.request()
            # A read copies at once. Its reply must not keep other connections waiting for its client.
            with contextlib.nullcontext() if asked.command == wire.CMD_READ else image.lock:
                image.asked.append(asked)
                self.answer(image, asked)

    def answer(self, image: Image, asked: Asked) -> None:
        """Carry out a request and answer it honestly."""
        end = asked.offset + asked.length
        if asked.command in image.errors:
            self._fail(image, asked, image.errors[asked.command])
        elif _misaligned(image, asked) or end > len(image.data):
            self._fail(image, asked, 22)
        elif asked.command == wire.CMD_READ:
            self._read(image, asked)
        elif asked.command == wire.CMD_BLOCK_STATUS:
            self._block_status(image, asked)
        else:
            if asked.command == wire.CMD_WRITE:
                image.data[asked.offset : end] = asked.payload
            elif asked.command == wire.CMD_WRITE_ZEROES:
                image.data[asked.offset : end] = bytes(asked.length)
            self._fail(image, asked, 0)

    def _fail(self, image: Image, asked: Asked, error: int) -> None:
        if image.structured and error:
            self.error(asked, error)
        else:
            self.simple(asked, error=error)

    def _read(self, image: Image, asked: Asked) -> None:
        content = bytes(image.data[asked.offset : asked.offset + asked.length])
        if not image.structured:
            self.simple(asked, content)
            return
        if image.whole and not image.hole_block:
            self.data(asked, asked.offset, content, done=True)
            return
        step = image.hole_block or asked.length
        for start in range(0, asked.length, step):
            part = content[start : start + step]
            if image.hole_block and not any(part):
                self.hole(asked, asked.offset + start, len(part))
            else:
                self.data(asked, asked.offset + start, part)
        self.chunk(asked, wire.REPLY_NONE, done=True)

    def _block_status(self, image: Image, asked: Asked) -> None:
        for name, number in self.contexts.items():
            self.status(asked, number, list(_cut(image.status[name], asked.offset, asked.length)))
        self.chunk(asked, wire.REPLY_NONE, done=True)


class Peer:
    """A scripted server on a Unix socket of its own, or on a free TCP port.

    Args:
        script: called with a `Talk` for each connection, each in a thread.
        tcp: listen on TCP.

    Attributes:
        address: for a client.
        errors: what scripts raised, apart from HungUp. Raised again at the end.
    """

    def __init__(self, script: Callable[[Talk], None], *, tcp: bool = False) -> None:
        self._script = script
        self._folder = tempfile.mkdtemp(prefix="nbdpeer-")
        self._threads: list[threading.Thread] = []
        self._socks: list[socket.socket] = []
        self.errors: list[BaseException] = []
        if tcp:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.address = uri.tcp(*self._listener.getsockname())
        else:
            path = os.path.join(self._folder, "sock")
            self.address = uri.unix(path)
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(path)
        self._listener.listen(16)
        self._acceptor = threading.Thread(target=self._accept, name="nbdpeer-accept")

    def __enter__(self) -> Peer:
        self._acceptor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(PATIENCE)
        self._listener.close()
        for sock in self._socks:
            try:
                sock.shutdown(socket.SHUT_RD)
            except OSError:
                pass
        for thread in self._threads:
            thread.join(PATIENCE)
        shutil.rmtree(self._folder)
        if kind is None and self.errors:
            raise self.errors[0]

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.settimeout(PATIENCE)
            thread = threading.Thread(target=self._play, args=(sock,), name="nbdpeer-script")
            self._socks.append(sock)
            self._threads.append(thread)
            thread.start()

    def _play(self, sock: socket.socket) -> None:
        with sock:
            try:
                self._script(Talk(sock))
            except (HungUp, ConnectionError):
                pass
            except BaseException as e:
                self.errors.append(e)


def serve(image: Image, *, tcp: bool = False) -> Peer:
    """Return an honest server of an image."""
    return Peer(lambda talk: talk.serve(image), tcp=tcp)


def _queries(data: bytes) -> list[str]:
    """Queries in the data of a metadata context option."""
    (length,) = struct.unpack_from("!I", data)
    pos = 4 + length
    (count,) = struct.unpack_from("!I", data, pos)
    pos += 4
    queries = []
    for _ in range(count):
        (length,) = struct.unpack_from("!I", data, pos)
        queries.append(data[pos + 4 : pos + 4 + length].decode())
        pos += 4 + length
    return queries


def _misaligned(image: Image, asked: Asked) -> bool:
    if not image.block_sizes or asked.command == wire.CMD_FLUSH:
        return False
    minimum, _, maximum = image.block_sizes
    end = asked.offset + asked.length
    too_long = asked.length > maximum and asked.command in (wire.CMD_READ, wire.CMD_WRITE)
    return too_long or bool(asked.offset % minimum) or (bool(end % minimum) and end != len(image.data))


def _cut(runs: list[tuple[int, int]], offset: int, length: int) -> list[tuple[int, int]]:
    """The runs of a whole image that lie in a range."""
    cut = []
    start = 0
    for size, flags in runs:
        first, last = max(start, offset), min(start + size, offset + length)
        if first < last:
            cut.append((last - first, flags))
        start += size
    return cut
