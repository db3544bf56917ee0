# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""An NBD server that forgets what no flush covers, as a host does that loses power.

Killing qemu-nbd proves little about flushes, for its writes stay in the page cache of the
host. This server keeps every write in a journal until a flush covers it, by the letter of
the protocol ("Ordering of messages and writes"). A flush covers the writes that were answered
before on its own connection. It covers those of all connections only if the server says
`CAN_MULTI_CONN`. A crash drops the journal, or any part of it. All connections see the same
content, and a stable write is never replaced by an older one.

    with Volatile(1 * MiB) as server:
        backend = backends.open(server.url, mode="r+")
        backend.write(0, b"x" * 512)
        server.crash()
        assert server.stable[:512] == bytes(512)
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

from ovirt_imageio.common.nbd import wire

from .nbdpeer import Asked, HungUp, Peer, Talk

_FLAGS = wire.FLAG_HAS_FLAGS | wire.FLAG_SEND_FLUSH | wire.FLAG_SEND_WRITE_ZEROES

ASKED, DONE, ANSWERED = "asked", "done", "answered"
"""When a hook is called: before a request is carried out, before and after its reply is sent."""

Hook = Callable[[str, int, Asked], None]


class _Write(NamedTuple):
    serial: int
    connection: int
    offset: int
    data: bytes


class Volatile:
    """The server, in threads of its own.

    Args:
        size: Bytes of the export.
        multi_conn: One flush covers all connections.
        block: Smallest block, in bytes.
        limit: Connections that are greeted at a time.

    Attributes:
        stable: Content that a crash leaves.
        hook: Called with the stage, the number of the connection and the request, in the thread
            of the connection; what it raises ends the connection.
        flush_errors: Errors, as on the wire, that the next flushes are answered with. The writes that
            they should have covered are dropped, and the next flush knows nothing of them.
        refuse: Close new connections at once, as if no server listened.
    """

    def __init__(self, size: int, *, multi_conn: bool = True, block: int = 1, limit: int = 1000) -> None:
        self.stable = bytearray(size)
        self.hook: Hook | None = None
        self.flush_errors: list[int] = []
        self.refuse = False
        self._current = bytearray(size)
        self._journal: list[_Write] = []
        self._multi_conn = multi_conn
        self._block = block
        self._limit = limit
        self._lock = threading.Lock()
        self._numbers = self._serial = 0
        self._talks: dict[int, Talk] = {}
        self._peer = Peer(self._serve)

    @property
    def url(self) -> str:
        """Of the export."""
        return f"nbd:unix:{self._peer.address.path}"

    @property
    def connections(self) -> list[int]:
        """Numbers of the open connections, oldest first."""
        with self._lock:
            return list(self._talks)

    def __enter__(self) -> Volatile:
        self._peer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._hang_up(self.connections)
        self._peer.__exit__(kind, error, traceback)

    def crash(self, keep: Callable[[], bool] = lambda: False) -> None:
        """Lose what no flush covers, end all connections, and serve again.

        Args:
            keep: Asked for each write that may be lost, in order: True keeps it.
        """
        with self._lock:
            journal, self._journal = self._journal, []
            for write in journal:
                if keep():
                    self._commit(write)
            self._current[:] = self.stable
            dead = list(self._talks)
            for number in dead:
                self._end(self._talks.pop(number))

    def drop(self, *numbers: int) -> None:
        """End connections, of which the server itself takes no harm."""
        self._hang_up(list(numbers))

    def _hang_up(self, numbers: list[int]) -> None:
        with self._lock:
            for number in numbers:
                if number in self._talks:
                    self._end(self._talks.pop(number))

    @staticmethod
    def _end(talk: Talk) -> None:
        with contextlib.suppress(OSError):
            talk.sock.shutdown(socket.SHUT_RDWR)

    def _serve(self, talk: Talk) -> None:
        with self._lock:
            if self.refuse:
                return
            full = len(self._talks) >= self._limit
            if not full:
                self._numbers += 1
                number = self._numbers
                self._talks[number] = talk
        if full:
            talk.wait_for_hangup()
            return
        talk.sock.settimeout(None)
        flags = _FLAGS | (wire.FLAG_CAN_MULTI_CONN if self._multi_conn else 0)
        blocks = (self._block, max(self._block, 4096), 32 * 1024 * 1024) if self._block > 1 else None
        try:
            talk.negotiate(len(self.stable), flags=flags, structured=False, block_sizes=blocks)
            while True:
                self._answer(talk, number, talk.request())
        finally:
            with self._lock:
                self._talks.pop(number, None)

    def _answer(self, talk: Talk, number: int, asked: Asked) -> None:
        self._call(ASKED, number, asked)
        with self._lock:
            if number not in self._talks:
                raise HungUp  # crashed meanwhile: nothing of it is done
            payload, error = self._carry_out(number, asked)
        self._call(DONE, number, asked)
        talk.simple(asked, payload, error=error)
        self._call(ANSWERED, number, asked)

    def _call(self, stage: str, number: int, asked: Asked) -> None:
        if self.hook is not None:
            self.hook(stage, number, asked)

    def _carry_out(self, number: int, asked: Asked) -> tuple[bytes, int]:
        end = asked.offset + asked.length
        if asked.command == wire.CMD_FLUSH:
            return b"", self._flush(number)
        if end > len(self.stable) or (asked.offset % self._block or end % self._block):
            return b"", 22
        if asked.command == wire.CMD_READ:
            return bytes(self._current[asked.offset : end]), 0
        data = asked.payload if asked.command == wire.CMD_WRITE else bytes(asked.length)
        self._current[asked.offset : end] = data
        self._serial += 1
        self._journal.append(_Write(self._serial, number, asked.offset, data))
        return b"", 0

    def _flush(self, number: int) -> int:
        covered = [write for write in self._journal if self._multi_conn or write.connection == number]
        done = {write.serial for write in covered}
        self._journal = [write for write in self._journal if write.serial not in done]
        if self.flush_errors:
            return self.flush_errors.pop(0)
        for write in covered:
            self._commit(write)
        return 0

    def _commit(self, write: _Write) -> None:
        """Make a write stable, and forget what earlier ones that were not flushed have below it."""
        end = write.offset + len(write.data)
        self.stable[write.offset : end] = write.data
        journal: list[_Write] = []
        for old in self._journal:
            old_end = old.offset + len(old.data)
            if old.serial >= write.serial or old_end <= write.offset or end <= old.offset:
                journal.append(old)
                continue
            if old.offset < write.offset:
                journal.append(old._replace(data=old.data[: write.offset - old.offset]))
            if end < old_end:
                journal.append(old._replace(offset=end, data=old.data[end - old.offset :]))
        self._journal = journal


def coin(seed: int) -> Callable[[], bool]:
    """Return what keeps each write by the toss of a coin."""
    rng = random.Random(seed)
    return lambda: rng.random() < 0.5
