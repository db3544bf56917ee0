# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Replies of an NBD server, as a pure value: bytes in, events out.

`Replies` knows which requests wait for a reply. A driver gives it exactly
`needs` bytes at a time, and gets an event when enough is known. Payload of
reads never passes through here. An event with `payload` says where the next
`length` bytes of the stream belong. The driver moves them there (into a
buffer, or by splice)::

    simple       magic error handle ──────────────────────────► [payload]
    structured   magic flags type handle | length |
                   OFFSET_DATA    offset ──────────────────────► payload
                   OFFSET_HOLE    offset length
                   BLOCK_STATUS   context (length flags)*
                   ERROR[_OFFSET] error message [offset]
                   NONE

The server is not trusted. Every chunk must lie inside the request that it
answers. Every byte of a read must come exactly once, and so must every context
of a block status. Lengths are checked before anything is received. A breach is
a ProtocolError, after which the stream means nothing and must be closed. An
error of a request (RequestError) is part of the event that ends it, and the
connection lives on.

Source: NBD proto.md, "Transmission phase", "Structured reply chunk message".
"""

from __future__ import annotations

import errno
import sys
from array import array
from bisect import bisect_right
from typing import Any, Callable, Mapping, NamedTuple

from ovirt_imageio.common.errors import ProtocolError, RequestError
from ovirt_imageio.common.nbd import wire

# Extents in one block status reply: what nbdkit sends at most, eight times more than qemu.
MAX_STATUS_EXTENTS = 1024 * 1024
_MAX_STATUS = 4 + wire.STATUS_EXTENT.size * MAX_STATUS_EXTENTS
_MAX_ERROR = wire.ERROR.size + wire.MAX_STRING + wire.OFFSET.size


class Request:
    """A request that was sent and what came back for it.

    Attributes:
        handle: its cookie.
        command: ``wire.CMD_*``.
        offset, length: its range in bytes.
        done: the last part of its reply has been announced.
        error: why it failed; only meaningful once done.
        status: for block status, the raw extents by context number.
        data: free for the driver (where payload goes, the callback).
    """

    __slots__ = ("_ends", "_starts", "command", "data", "done", "error", "handle", "length", "offset", "status")

    def __init__(self, handle: int, command: int, offset: int, length: int) -> None:
        self.handle = handle
        self.command = command
        self.offset = offset
        self.length = length
        self.done = False
        self.error: RequestError | None = None
        self.status: dict[int, bytes] = {}
        self.data: Any = None
        # Ranges that a read delivered: disjoint, in order, neighbours joined.
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __str__(self) -> str:
        name = wire.COMMANDS.get(self.command, str(self.command))
        return f"{name} of {self.length} bytes at {self.offset}"

    @property
    def complete(self) -> bool:
        """Whether every byte of a read was delivered."""
        return self._starts == [self.offset] and self._ends == [self.offset + self.length]

    def deliver(self, start: int, length: int) -> None:
        """Account for a chunk of a read.

        Raises:
            ProtocolError: it lies outside the request or came before.
        """
        end = start + length
        if not length or start < self.offset or end > self.offset + self.length:
            raise ProtocolError(f"NBD server sent {length} bytes at {start} in reply to {self}")
        i = bisect_right(self._starts, start)
        if (i and self._ends[i - 1] > start) or (i < len(self._starts) and self._starts[i] < end):
            raise ProtocolError(f"NBD server sent bytes at {start} twice in reply to {self}")
        follows = i > 0 and self._ends[i - 1] == start
        precedes = i < len(self._starts) and self._starts[i] == end
        if follows and precedes:
            self._ends[i - 1] = self._ends.pop(i)
            del self._starts[i]
        elif follows:
            self._ends[i - 1] = end
        elif precedes:
            self._starts[i] = start
        else:
            self._starts.insert(i, start)
            self._ends.insert(i, end)


class Event(NamedTuple):
    """Something that a reply said.

    Attributes:
        request: the request that it belongs to.
        offset, length: for reads, the range this is about; length 0: nothing of the range.
        payload: ``length`` bytes of payload follow in the stream. If False and length is not 0, the
            range reads as zeros.
        done: nothing follows for the request but this payload.
    """

    request: Request
    offset: int
    length: int
    payload: bool
    done: bool


class Replies:
    """Matches replies with requests and checks them.

    Not thread safe. After a ProtocolError it must not be used any more.

    Args:
        structured: structured replies were negotiated.
        contexts: negotiated metadata contexts, name to number.
    """

    def __init__(self, *, structured: bool = False, contexts: Mapping[str, int] | None = None) -> None:
        self._structured = structured
        self._contexts = frozenset((contexts or {}).values())
        self._waiting: dict[int, Request] = {}
        self._handle = 0
        # A structured reply in parts: flags, type, request, length of what follows.
        self._flags = 0
        self._type = 0
        self._request: Request | None = None
        self._length = 0
        self._parse: Callable[[Any], Event | None] = self._magic
        self.needs = wire.SIMPLE_REPLY.size

    def __len__(self) -> int:
        return len(self._waiting)

    def expect(self, command: int, offset: int, length: int) -> Request:
        """Register a request, which gets the next handle."""
        self._handle += 1
        request = Request(self._handle, command, offset, length)
        self._waiting[request.handle] = request
        return request

    def abandon(self) -> list[Request]:
        """Forget all requests that still wait and return them: the connection is dead."""
        waiting = list(self._waiting.values())
        self._waiting.clear()
        return waiting

    def feed(self, data: Any) -> Event | None:
        """Take the next ``needs`` bytes of the stream, as bytes or a view.

        Returns:
            None when more is needed to know what came, else the event. If that
            announces payload, the payload must be taken from the stream before the
            next call.

        Raises:
            ProtocolError: the server broke the rules.
        """
        return self._parse(data)

    def whole_read(self, buffer: Any, start: int, end: int) -> Request | None:
        """Take a reply to a read that is one chunk, as nearly all are, in one step.

        A shortcut of several calls of `feed`, to be tried where a reply may begin. It checks as
        much, and leaves to them what it does not know.

        Args:
            buffer: what came of the stream.
            start: of the part that was not taken yet.
            end: of that part.

        Returns:
            The request, which has ended, when ``wire.DATA_CHUNK.size`` bytes were taken: all of its
            payload follows in the stream. None if nothing was taken.
        """
        if self._request is not None or end - start < wire.DATA_CHUNK.size:
            return None
        magic, flags, kind, handle, length, offset = wire.DATA_CHUNK.unpack_from(buffer, start)
        if magic != wire.STRUCTURED_REPLY_MAGIC or kind != wire.REPLY_OFFSET_DATA or flags != wire.REPLY_FLAG_DONE:
            return None
        request = self._waiting.get(handle)
        if (
            request is None
            or not self._structured
            or request.command != wire.CMD_READ
            or request.offset != offset
            or request.length != length - wire.OFFSET.size
            or request.error is not None
            or request._starts
        ):
            return None
        del self._waiting[handle]
        request.done = True
        return request

    # The parts of a reply, each a state that returns the event, or None to wait for the next part.

    def _magic(self, data: Any) -> Event | None:
        magic, error, handle = wire.SIMPLE_REPLY.unpack(data)
        if magic == wire.SIMPLE_REPLY_MAGIC:
            return self._simple(self._find(handle), error)
        if magic != wire.STRUCTURED_REPLY_MAGIC:
            raise ProtocolError(f"NBD server sent a reply with magic {magic:#x}")
        if not self._structured:
            raise ProtocolError("NBD server sent a structured reply, which was not negotiated")
        _, self._flags, self._type, handle = wire.STRUCTURED_REPLY.unpack(data)
        self._request = self._find(handle)
        return self._next(self._chunk_length, wire.U32.size)

    def _chunk_length(self, data: Any) -> Event | None:
        (self._length,) = wire.U32.unpack(data)
        request, length = self._current(), self._length
        if self._type == wire.REPLY_NONE:
            if length or not self._flags & wire.REPLY_FLAG_DONE:
                raise ProtocolError(f"NBD server sent an empty chunk with {length} bytes or more to come to {request}")
            return self._end_chunk()
        if self._type & wire.REPLY_ERROR_BIT:
            if not wire.ERROR.size <= length <= _MAX_ERROR:
                raise self._impossible()
            return self._next(self._error, length)
        if self._type == wire.REPLY_OFFSET_DATA and request.command == wire.CMD_READ:
            if length <= wire.OFFSET.size:
                raise self._impossible()
            return self._next(self._offset_data, wire.OFFSET.size)
        if self._type == wire.REPLY_OFFSET_HOLE and request.command == wire.CMD_READ:
            if length != wire.OFFSET_HOLE.size:
                raise self._impossible()
            return self._next(self._offset_hole, length)
        if self._type == wire.REPLY_BLOCK_STATUS and request.command == wire.CMD_BLOCK_STATUS:
            if length > _MAX_STATUS or length < 4 + wire.STATUS_EXTENT.size or (length - 4) % wire.STATUS_EXTENT.size:
                raise self._impossible()
            return self._next(self._block_status, length)
        raise ProtocolError(f"NBD server sent a chunk of type {self._type} in reply to {request}")

    def _offset_data(self, data: Any) -> Event:
        (offset,) = wire.OFFSET.unpack(data)
        return self._deliver(offset, self._length - wire.OFFSET.size, payload=True)

    def _offset_hole(self, data: Any) -> Event:
        offset, length = wire.OFFSET_HOLE.unpack(data)
        return self._deliver(offset, length, payload=False)

    def _deliver(self, offset: int, length: int, *, payload: bool) -> Event:
        self._current().deliver(offset, length)
        return self._end_chunk()._replace(offset=offset, length=length, payload=payload)

    def _block_status(self, data: Any) -> Event:
        request = self._current()
        (context,) = wire.U32.unpack_from(data)
        if context not in self._contexts:
            raise ProtocolError(f"NBD server sent block status for context {context}, which was not negotiated")
        if context in request.status:
            raise ProtocolError(f"NBD server sent context {context} twice in reply to {request}")
        extents = bytes(data[wire.U32.size :])
        _check_status(extents, request)
        request.status[context] = extents
        return self._end_chunk()

    def _error(self, data: Any) -> Event:
        request = self._current()
        code, size = wire.ERROR.unpack_from(data)
        end = wire.ERROR.size + size
        rest = len(data) - end
        has_offset = self._type == wire.REPLY_ERROR_OFFSET
        # Of error types that are not known only the common head may be relied on.
        known = has_offset or self._type == wire.REPLY_ERROR
        if rest < 0 or not code or (known and rest != (wire.OFFSET.size if has_offset else 0)):
            raise ProtocolError(f"NBD server sent a malformed error in reply to {request}")
        where = ""
        if has_offset:
            (offset,) = wire.OFFSET.unpack_from(data, end)
            if not request.offset <= offset < request.offset + max(request.length, 1):
                raise ProtocolError(f"NBD server sent an error at {offset} in reply to {request}")
            where = f" at offset {offset}"
        if request.error is None:
            message = wire.text(data[wire.ERROR.size : end])
            request.error = _request_error(request, code, where=where, message=message)
        return self._end_chunk()

    def _simple(self, request: Request, error: int) -> Event:
        if request.status or request._starts or request.error:
            raise ProtocolError(f"NBD server mixed simple and structured replies to {request}")
        if error:
            request.error = _request_error(request, error)
            return self._finish(request, Event(request, 0, 0, False, True))
        if request.command == wire.CMD_READ and not self._structured:
            event = Event(request, request.offset, request.length, True, True)
            request.deliver(request.offset, request.length)
            return self._finish(request, event)
        if request.command in (wire.CMD_READ, wire.CMD_BLOCK_STATUS):
            raise ProtocolError(f"NBD server sent a simple reply to {request}, expected a structured one")
        return self._finish(request, Event(request, 0, 0, False, True))

    def _end_chunk(self) -> Event:
        request = self._current()
        # Not kept: it holds the buffer of the caller.
        self._request = None
        self._next(self._magic, wire.SIMPLE_REPLY.size)
        done = bool(self._flags & wire.REPLY_FLAG_DONE)
        event = Event(request, 0, 0, False, done)
        return self._finish(request, event) if done else event

    def _finish(self, request: Request, event: Event) -> Event:
        if request.error is None:
            self._check_complete(request)
        del self._waiting[request.handle]
        request.done = True
        return event

    def _check_complete(self, request: Request) -> None:
        if request.command == wire.CMD_READ and not request.complete:
            raise ProtocolError(f"NBD server left out bytes in reply to {request}")
        if request.command == wire.CMD_BLOCK_STATUS and request.status.keys() != self._contexts:
            missing = sorted(self._contexts - request.status.keys())
            raise ProtocolError(f"NBD server left out contexts {missing} in reply to {request}")

    def _find(self, handle: int) -> Request:
        try:
            return self._waiting[handle]
        except KeyError:
            raise ProtocolError(f"NBD server sent a reply with unknown handle {handle}") from None

    def _current(self) -> Request:
        assert self._request is not None
        return self._request

    def _next(self, parse: Callable[[Any], Event | None], needs: int) -> Event | None:
        """Go to a state, which gets that many bytes; None for the caller to pass on."""
        self._parse = parse
        self.needs = needs
        return None

    def _impossible(self) -> ProtocolError:
        return ProtocolError(
            f"NBD server announced {self._length} bytes in a chunk of type {self._type} in reply to {self._current()}"
        )


def _check_status(extents: bytes, request: Request) -> None:
    """Extents have a length, and only the last one may reach past the request."""
    lengths = array("I", extents)[::2]
    if sys.byteorder == "little":
        lengths.byteswap()
    if not min(lengths):
        raise ProtocolError(f"NBD server sent an empty extent in reply to {request}")
    if sum(lengths) - lengths[-1] >= request.length:
        raise ProtocolError(f"NBD server sent extents past the end in reply to {request}")


def _request_error(request: Request, code: int, *, where: str = "", message: str = "") -> RequestError:
    number = wire.errno_of(code)
    said = f" ({message})" if message else ""
    return RequestError(f"NBD server failed {request}{where}: {errno.errorcode[number]}{said}", errno=number)
