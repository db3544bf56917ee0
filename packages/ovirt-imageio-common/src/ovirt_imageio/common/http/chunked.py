# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The chunked transfer coding as a pure value: framing in, places of payload out.

A body is a sequence of chunks. Each is a size in hexadecimal on a line of its own, that many
bytes and an empty line. A chunk of size zero, trailer fields and an empty line end the body
(RFC 9112 §7.1). Chunk extensions and trailers are read and dropped.
"""

from __future__ import annotations

import re

from ovirt_imageio.common.errors import ProtocolError

_LINE_LIMIT = 4096  # bytes of a line with its extensions
_TRAILERS_LIMIT = 16 * 1024
_MAX_DIGITS = 15  # 2**60 - 1 bytes: more than any disk, less than what overflows

_size_line = re.compile(rb"([0-9A-Fa-f]+)[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?\Z").match
_trailer_line = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\Z").match


class BadChunks(ProtocolError):
    """The peer broke the rules of the chunked coding."""


class LongTrailers(BadChunks):
    """The peer sent more trailer fields than are read."""


class ChunkedDecoder:
    """Where payload and framing are in a chunked body.

    While `remaining` is positive, that many next bytes are payload; a caller that takes
    some says so with `took`. Otherwise `frame` is given what comes next.

    Attributes:
        remaining: Payload bytes left in the current chunk.
        done: The body has ended.
    """

    __slots__ = ("_after_data", "_in_trailers", "_trailers", "done", "remaining")

    def __init__(self) -> None:
        self.remaining = 0
        self.done = False
        self._after_data = False  # the line end behind a chunk's data comes next
        self._in_trailers = False
        self._trailers = 0

    def took(self, count: int) -> None:
        """Note that count bytes of payload were taken."""
        self.remaining -= count
        if not self.remaining:
            self._after_data = True

    def frame(self, data: bytes, start: int = 0) -> int:
        """Read one line of framing from data, beginning at start.

        Returns:
            Where the line ends; start if data holds no complete line, so more is needed.

        Raises:
            BadChunks: This is no framing.
            LongTrailers: There are too many trailers.
        """
        if self._after_data:
            have = data[start : start + 2]
            if have == b"\r\n":
                self._after_data = False
                return start + 2
            if have not in (b"", b"\r"):
                raise BadChunks("a chunk is longer than its size says")
            return start
        end = data.find(b"\n", start, start + _LINE_LIMIT)
        if end < 0:
            if len(data) - start >= _LINE_LIMIT:
                raise BadChunks("the line before a chunk is too long")
            return start
        if end == start or data[end - 1] != 0x0D:
            raise BadChunks("a line of the chunked body does not end with CR LF")
        self._line(data[start : end - 1])
        return end + 1

    def decode(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the payload found in data, and what of data was not used."""
        parts = []
        position = 0
        while not self.done:
            if self.remaining:
                part = data[position : position + self.remaining]
                if not part:
                    break
                self.took(len(part))
                parts.append(part)
                position += len(part)
            else:
                end = self.frame(data, position)
                if end == position:
                    break
                position = end
        return b"".join(parts), data[position:]

    def _line(self, line: bytes) -> None:
        if not self._in_trailers:
            match = _size_line(line)
            if not match or len(match[1]) > _MAX_DIGITS:
                raise BadChunks("a chunk does not begin with its size")
            self.remaining = int(match[1], 16)
            self._in_trailers = not self.remaining
        elif not line:
            self.done = True
        else:
            self._trailers += len(line)
            if self._trailers > _TRAILERS_LIMIT:
                raise LongTrailers("the trailers are too large")
            if not _trailer_line(line):
                raise BadChunks("a trailer field is malformed")
