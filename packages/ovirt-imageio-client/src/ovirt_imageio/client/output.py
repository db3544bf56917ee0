# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Text that is shown while something more important goes on.

The stream may be closed, on a full disk, or a pipe that the other program reads slowly or not at
all. None of it may end or delay a transfer: the first failure is told once, and text that finds no
room is left out.

A stream of the system is written by its descriptor. Text left in its buffer after a failure
would be tried again when the interpreter ends, and fail the program.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
from typing import Callable, TextIO

OnLoss = Callable[[str], object]
"""Told once, in words, why nothing more is shown."""


class Output:
    """A stream of text that may be lost. One thread at a time.

    Args:
        stream: Where to write; None for one that is closed, as `sys.stdout` may be.
        on_loss: Called when the stream is lost.

    Attributes:
        lost: Nothing more can be written.
    """

    def __init__(self, stream: TextIO | None, on_loss: OnLoss) -> None:
        self._stream = stream
        self._fd = _descriptor(stream)
        self._on_loss = on_loss
        self.lost = False

    def write(self, text: str, *, seconds: float | None = 0) -> bool:
        """Write text, and tell if it was written.

        Args:
            text: It should be shorter than 4096 bytes: then a pipe takes all of it or nothing.
            seconds: How long to wait for a slow reader; None waits for ever.
        """
        if self.lost:
            return False
        try:
            return self._write(text, seconds)
        except (OSError, ValueError) as e:
            self.lost = True
            self._on_loss(e.strerror or str(e) if isinstance(e, OSError) else str(e))
            return False

    def _write(self, text: str, seconds: float | None) -> bool:
        if self._stream is None:
            raise ValueError("standard output is closed")
        text = _encodable(text, self._stream)
        if self._fd is None:
            self._stream.write(text)
            self._stream.flush()
            return True
        if not _has_room(self._fd, seconds):
            return False
        self._stream.flush()  # what the program printed before comes before
        _write_all(self._fd, text.encode(self._stream.encoding, self._stream.errors or "strict"))
        return True


def columns(stream: TextIO | None, default: int) -> int:
    """Columns of a terminal that can be drawn in without going to the next line."""
    try:
        found = os.get_terminal_size(stream.fileno() if stream is not None else -1).columns
    except (OSError, AttributeError, ValueError):
        return default
    # Serial lines and some containers do not know their size, and say 0.
    return found - 1 if found else default


def is_file(stream: TextIO | None) -> bool:
    """Tell if a stream is a real one that is no terminal."""
    try:
        return stream is not None and stream.fileno() >= 0 and not stream.isatty()
    except (OSError, AttributeError, ValueError):
        return False


def _descriptor(stream: TextIO | None) -> int | None:
    """The descriptor behind a text file of the system; None for all that only looks like one."""
    # A compressing or capturing stream may have a descriptor, and write something else there.
    if type(stream) is not io.TextIOWrapper:
        return None
    raw = stream.buffer.raw if type(stream.buffer) is io.BufferedWriter else stream.buffer
    try:
        return raw.fileno() if type(raw) is io.FileIO else None
    except ValueError:  # it is closed
        return None


def _encodable(text: str, stream: TextIO) -> str:
    """Replace what the stream's encoding does not have, such as names of files in an error."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _has_room(fd: int, seconds: float | None) -> bool:
    """Tell if a write would not wait; poll(2). A file always has room, and so has a pipe without a reader."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


def _write_all(fd: int, data: bytes) -> None:
    """Write all, also where another program made the descriptor a non-blocking one."""
    view = memoryview(data)
    while view:
        with contextlib.suppress(BlockingIOError):
            view = view[os.write(fd, view) :]
        if view:
            _has_room(fd, None)
