# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Bytes that were received from a server, and not taken yet."""

from __future__ import annotations

import http.client
from typing import Callable

from ovirt_imageio.common.units import KiB

from .errors import ConnectionLost
from .heads import Head, parse_fields, parse_status
from .streams import Stream

_PIECE = 16 * KiB  # received at a time while a head is expected: a small body comes along
_LIMIT = 64 * KiB  # of a status line, and of all fields
_EMPTY_LINES = (b"\r\n", b"\n")


class Reader:
    """Reads heads and bodies from a stream. One thread.

    Unlike io.BufferedReader it tells how much it holds, so that the rest of a body can be
    spliced from the socket. An end within a head is an error.

    Args:
        stream: Where the bytes come from.
        name: The server, for messages.
    """

    def __init__(self, stream: Stream, name: str) -> None:
        self._stream = stream
        self._name = name
        self._buffer = b""
        self._start = 0  # of what was not taken yet

    @property
    def holds(self) -> int:
        """Bytes that were received and not taken."""
        return len(self._buffer) - self._start

    def take(self, limit: int) -> bytes:
        """Return what was received already, at most limit bytes, maybe none."""
        start = self._start
        data = self._buffer[start : start + limit]
        self._start += len(data)
        return data

    def peek(self, limit: int) -> bytes:
        """Return what comes next and leave it there; of plain streams, see `Stream.peek`."""
        return self._buffer[self._start : self._start + limit] or self._stream.peek(limit)

    def receive(self, view: memoryview) -> int:
        """Receive at least one byte into view; 0 at the end of the stream."""
        return self._copy(view) or self._stream.recv_into(view)

    def receive_all(self, view: memoryview) -> int:
        """Receive until view is full; less at the end of the stream, or when it pauses."""
        count = self._copy(view)
        return count if count == len(view) else count + self._stream.recv_all(view[count:])

    def head(self) -> Head:
        """Read the head of a final response; interim ones are passed over.

        Raises:
            http.client.HTTPException: The response is not of HTTP/1.
            ServerGone: The stream ended.
            ConnectionTimeout: The server is silent.
        """
        while True:
            version, status, reason = parse_status(self._line())
            head = Head(version, status, reason, parse_fields(self._fields()))
            if not head.is_interim:
                return head

    def frame(self, step: Callable[[bytes, int], int]) -> bool:
        """Let a decoder read from what was received; return whether it took some.

        Args:
            step: Given the bytes and where to begin; returns up to where it took them.
        """
        end = step(self._buffer, self._start)
        start, self._start = self._start, end
        return end > start

    def fill(self) -> bool:
        """Receive more; false at the end of the stream."""
        data = self._stream.recv(_PIECE)
        self._buffer = self._buffer[self._start :] + data
        self._start = 0
        return bool(data)

    def _line(self) -> bytes:
        """Take a line and its end."""
        while True:
            end = self._buffer.find(b"\n", self._start) + 1
            if end:
                return self.take(end - self._start)
            self._wait("status line")

    def _fields(self) -> bytes:
        """Take lines up to an empty one, and that as well; without their last end."""
        while True:
            buffer, start = self._buffer, self._start
            for blank in _EMPTY_LINES:
                if buffer.startswith(blank, start):
                    self._start += len(blank)
                    return b""
            found = buffer.find(b"\n\r\n", start)
            bare = buffer.find(b"\n\n", start, None if found < 0 else found)
            if bare >= 0 or found >= 0:
                end, size = (bare, 2) if bare >= 0 else (found, 3)
                self._start = end + size
                return buffer[start:end]
            self._wait("header line")

    def _wait(self, what: str) -> None:
        """Receive more of a head.

        Args:
            what: Part of it that is not complete.
        """
        if self.holds > _LIMIT:
            raise http.client.LineTooLong(what)
        if not self.fill():
            raise ConnectionLost(f"{self._name} closed the connection without an answer")

    def _copy(self, view: memoryview) -> int:
        count = min(len(view), len(self._buffer) - self._start)
        if count:
            end = self._start + count
            view[:count] = memoryview(self._buffer)[self._start : end]
            self._start = end
        return count
