# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Non-blocking driver of the NBD protocol, for an event loop.

`Pipeline` has no scheduler inside. Its owner watches the socket and calls
`on_readable` and, while `wants_write`, `on_writable`; neither blocks or raises.
Requests that are submitted between two calls leave together with the next
`flush_output`, so that one system call carries the requests of many HTTP connections::

    read, write, zero, flush ──► _out ──► flush_output ──► server
    callbacks ◄── Replies ◄── input buffer ◄── on_readable ◄──┘
                     └─ payload: what the buffer holds is copied, the rest
                        is received where it belongs
"""

from __future__ import annotations

import errno
from collections import deque
from functools import partial
from itertools import islice
from typing import Any, Callable, Union

from ovirt_imageio.common import defaults
from ovirt_imageio.common.errors import ProtocolError, RequestError, UnsupportedOperation
from ovirt_imageio.common.extents import clip, merge
from ovirt_imageio.common.nbd import extents as status
from ovirt_imageio.common.nbd import wire
from ovirt_imageio.common.nbd.client import Client
from ovirt_imageio.common.nbd.errors import ServerGone
from ovirt_imageio.common.nbd.replies import Event, Request

Callback = Callable[[Any, Union[Exception, None]], None]

# Replies of many small requests arrive together.
_INPUT = 128 * 1024
# Replies as long as this on the average are received in two calls, head and payload. Passing 64 KiB on
# takes 49 µs, of which 23 went into copying it out of the input buffer. At 16 KiB the calls cost more.
_LONG = 48 * 1024
# Buffers in one sendmsg(); the kernel takes 1024 (IOV_MAX).
_BATCH = 512

_ZEROS = memoryview(bytes(defaults.PIECE))


class _Waiter:
    """The callback of a request, and the part of its range that was asked for."""

    __slots__ = ("callback", "cost", "data", "length", "skip")

    def __init__(self, callback: Callback, cost: int = 0, skip: int = 0, length: int = 0) -> None:
        self.callback = callback
        self.cost = cost  # bytes in flight
        self.skip = skip
        self.length = length  # of a read
        self.data: bytes | bytearray | None = None  # made when a part of it has come


class Pipeline:
    """Many requests in flight on one connection, never blocking.

    Used by one thread. A callback gets ``(data, None)`` when its request was answered, or
    ``(None, error)``. For a read data are bytes or a bytearray of its own, for others None. A
    callback may submit requests, and must not raise.

    When the connection breaks, every request in flight gets the error, `broken` is set, and the
    owner stops watching the socket and calls `close`.

    Args:
        client: a connected client without requests in flight; it cannot be used any more.

    Attributes:
        export: what was negotiated.
        block_size: offsets and lengths of `write` and `zero` are multiples of it.
        max_length: the longest read or write, in bytes.
        broken: why the connection cannot be used any more, or None.
        in_flight_bytes: payload bytes of requests that were not answered yet.
    """

    def __init__(self, client: Client) -> None:
        self.export = client.export
        self.block_size = client.export.minimum_block
        # A read may grow by a block at each end.
        self.max_length = max(client.max_request - 2 * (self.block_size - 1), self.block_size)
        self.address = client.address
        self.broken: Exception | None = None
        self.in_flight_bytes = 0
        self._sock, self._replies = client.hand_over()
        self._sock.setblocking(False)
        self._out: deque[Union[bytes, memoryview]] = deque()
        self._ready: list[Callback] = []
        self._in = memoryview(bytearray(_INPUT))
        self._have = 0
        # Payload being received: where the rest goes, and the request to end after it.
        self._target: memoryview | None = None
        self._ending: Request | None = None
        # A part of a reply that the input buffer cannot hold.
        self._part: memoryview | None = None

    def fileno(self) -> int:
        """Return the descriptor to watch, -1 once closed."""
        return self._sock.fileno()

    @property
    def in_flight(self) -> int:
        """Number of requests that were not answered yet."""
        return len(self._replies)

    @property
    def wants_write(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._out or self._ready)

    # Requests.

    def read(self, offset: int, length: int, callback: Callback) -> None:
        """Submit a read of any alignment.

        Args:
            offset: first byte, in bytes.
            length: in bytes, at most `max_length`.
            callback: gets bytes or a bytearray of that length.

        Raises:
            ValueError: outside the export or too long.
            ProtocolError: the connection is broken.
        """
        self._check(offset, length, limit=self.max_length)
        block = self.block_size
        if block == 1:
            self._submit(wire.CMD_READ, offset, length, _Waiter(callback, length, 0, length))
            return
        start = offset - offset % block
        end = min(offset + length + -(offset + length) % block, self.export.size)
        self._submit(wire.CMD_READ, start, end - start, _Waiter(callback, end - start, offset - start, length))

    def write(self, offset: int, data: Any, callback: Callback) -> None:
        """Submit a write; data must not change until the callback.

        Args:
            offset: first byte, in bytes; a multiple of `block_size`.
            data: readable buffer, at most `max_length` bytes, a multiple of `block_size`.
            callback: called when the server acknowledged.

        Raises:
            ValueError: outside the export, too long, or not aligned.
            ProtocolError: the connection is broken.
        """
        view = memoryview(data).cast("B")
        self._check(offset, len(view), limit=self.max_length, aligned=True)
        self._submit(wire.CMD_WRITE, offset, len(view), _Waiter(callback, len(view)))
        self._out.append(view)

    def zero(self, offset: int, length: int, callback: Callback, *, punch_hole: bool = False) -> None:
        """Submit zeroing of a range, by writing where the server has nothing better.

        Args:
            offset: first byte, in bytes; a multiple of `block_size`.
            length: in bytes, a multiple of `block_size`; at most `max_length` where zeros must be written.
            callback: called when the server acknowledged.
            punch_hole: the server may deallocate the range.

        Raises:
            ValueError: outside the export, too long, or not aligned.
            ProtocolError: the connection is broken.
        """
        if not self.export.can_zero:
            self._write_zeros(offset, length, callback)
            return
        self._check(offset, length, limit=wire.MAX_LENGTH, aligned=True)
        if length <= self.max_length:
            callback = partial(self._zero_answered, offset, length, callback)
        flags = 0 if punch_hole else wire.CMD_FLAG_NO_HOLE
        self._submit(wire.CMD_WRITE_ZEROES, offset, length, _Waiter(callback), flags=flags)

    def status(self, offset: int, length: int, context: str, callback: Callback) -> None:
        """Submit one step of asking for extents.

        Args:
            offset: first byte, in bytes.
            length: in bytes.
            context: ``"zero"`` or ``"dirty"``.
            callback: gets a list of ZeroExtent or DirtyExtent from offset on, merged, of
                one byte at least; it may end before the range does.

        Raises:
            ValueError: outside the export, or an unknown context.
            UnsupportedOperation: the context was not negotiated.
            ProtocolError: the connection is broken.
        """
        if context not in ("zero", "dirty"):
            raise ValueError(f"unknown context {context!r}, expected 'zero' or 'dirty'")
        dirty = self.export.require_dirty() if context == "dirty" else None
        if dirty is None and not self.export.can_extents:
            raise UnsupportedOperation(f"no extents of NBD export {self.address}: it tells no block status")
        self._check(offset, length, limit=self.export.size)
        block = self.block_size
        start = offset - offset % block
        size = min(length + offset - start, status.LONGEST)
        size = min(size + -size % block, self.export.size - start)
        request = self._submit(wire.CMD_BLOCK_STATUS, start, size, _Waiter(callback))
        request.data = _Waiter(partial(self._status_answered, request, dirty, offset, length, callback))

    def flush(self, callback: Callback) -> None:
        """Submit a flush, which covers every write answered before.

        Raises:
            ProtocolError: the connection is broken.
        """
        self._usable()
        if self.export.can_flush:
            self._submit(wire.CMD_FLUSH, 0, 0, _Waiter(callback))
        else:
            self._ready.append(callback)

    # Driven by the owner.

    def on_readable(self) -> None:
        """Take what has arrived and call back."""
        try:
            while self.broken is None and self._receive():
                pass
        except BlockingIOError:
            pass
        except (OSError, ProtocolError) as e:
            self._fail(e)

    def on_writable(self) -> None:
        """Send what the socket takes; same as `flush_output`."""
        self.flush_output()

    def flush_output(self) -> None:
        """Send submitted requests, as much as the socket takes."""
        ready, self._ready = self._ready, []
        for callback in ready:
            callback(None, None)
        try:
            while self._out and self.broken is None:
                self._sent(self._sock.sendmsg(list(islice(self._out, _BATCH))))
        except BlockingIOError:
            pass
        except OSError as e:
            self._fail(e)

    def close(self, error: Exception | None = None) -> None:
        """Close the connection; requests in flight get the error. May be called again."""
        if self._sock.fileno() == -1:
            return
        if self.broken is None:
            if not self.in_flight and not self._out:
                self._say_goodbye()
            self._fail(error or ServerGone(f"connection to NBD server {self.address} was closed"))
        self._sock.close()

    # Details.

    def _usable(self) -> None:
        if self.broken is not None:
            raise ProtocolError(f"connection to {self.address} is closed: {self.broken}") from self.broken

    def _check(self, offset: int, length: int, *, limit: int, aligned: bool = False) -> None:
        self._usable()
        if not 0 <= offset < offset + length <= self.export.size:
            raise ValueError(f"{length} bytes at {offset} are outside the export of {self.export.size} bytes")
        if length > limit:
            raise ValueError(f"request of {length} bytes is too long, expected at most {limit}")
        if aligned and (offset % self.block_size or length % self.block_size) and offset + length != self.export.size:
            raise ValueError(f"{length} bytes at {offset} are not aligned to {self.block_size}")

    def _submit(self, command: int, offset: int, length: int, waiter: _Waiter, *, flags: int = 0) -> Request:
        request = self._replies.expect(command, offset, length)
        request.data = waiter
        self.in_flight_bytes += waiter.cost
        self._out.append(wire.request(command, request.handle, offset, length, flags=flags))
        return request

    def _write_zeros(self, offset: int, length: int, callback: Callback) -> None:
        self._check(offset, length, limit=self.max_length, aligned=True)
        self._submit(wire.CMD_WRITE, offset, length, _Waiter(callback, length))
        for start in range(0, length, len(_ZEROS)):
            self._out.append(_ZEROS[: length - start])

    def _zero_answered(
        self, offset: int, length: int, callback: Callback, data: bytearray | None, error: Exception | None
    ) -> None:
        """A server may find out late that it cannot zero: write instead."""
        if self.broken is None and isinstance(error, RequestError) and error.errno == errno.EOPNOTSUPP:
            self._write_zeros(offset, length, callback)
        else:
            callback(data, error)

    def _status_answered(
        self,
        request: Request,
        dirty: str | None,
        offset: int,
        length: int,
        callback: Callback,
        _: Any,
        error: Exception | None,
    ) -> None:
        if error is not None:
            callback(None, error)
            return
        runs = self.export.by_name(request.status)
        base, depth = runs.get(wire.BASE_ALLOCATION), runs.get(wire.ALLOCATION_DEPTH)
        asked = request.offset, request.length
        found: list[Any]
        if dirty is not None:
            changed = status.dirty_extents(*asked, bitmap=runs[dirty], base=base)
            found = list(clip(merge(changed), offset, length))
        else:
            allocated = status.zero_extents(*asked, base=base or b"", depth=depth)
            found = list(clip(merge(allocated), offset, length))
        if found:
            callback(found, None)
            return
        error = ProtocolError(f"NBD server told nothing about the extents at {offset}")
        self._fail(error)
        callback(None, error)

    def _sent(self, count: int) -> None:
        while count:
            first = self._out[0]
            if count < len(first):
                self._out[0] = memoryview(first)[count:]
                return
            count -= len(first)
            self._out.popleft()

    def _receive(self) -> bool:
        """Receive once and handle it. False: the socket holds no more for now."""
        if self._target is not None and not self._have:
            wanted = len(self._target)
            count = self._sock.recv_into(self._target)
            self._require(count)
            self._advance(count)
        else:
            wanted = self._input_limit() - self._have
            count = self._sock.recv_into(self._in[self._have :], wanted)
            self._require(count)
            self._have += count
            self._handle_input()
        return count == wanted

    def _input_limit(self) -> int:
        """Where the input ends for now: after many short replies, or where the payload of a long one begins."""
        if self.in_flight_bytes < _LONG * len(self._replies):
            return len(self._in)
        return max(wire.DATA_CHUNK.size, self._replies.needs)

    def _require(self, count: int) -> None:
        if not count:
            raise ServerGone(f"NBD server {self.address} closed the connection")

    def _handle_input(self) -> None:
        """Handle what the input buffer holds; an incomplete part moves to its start."""
        pos = 0
        while self.broken is None:
            left = self._have - pos
            if self._target is not None:
                count = min(left, len(self._target))
                if not count:
                    break
                self._target[:count] = self._in[pos : pos + count]
                pos += count
                self._advance(count)
                continue
            needs = self._replies.needs
            if needs > len(self._in):
                # A long block status: it is received like payload.
                self._target = self._part = memoryview(bytearray(needs))
                continue
            if left < needs:
                break
            request = self._replies.whole_read(self._in, pos, self._have)
            if request is not None:
                pos = self._take_payload(request, pos + wire.DATA_CHUNK.size)
                continue
            part = self._in[pos : pos + needs]
            pos += needs
            self._feed(part)
        rest = self._have - pos
        if rest and pos:
            self._in[:rest] = bytes(self._in[pos : self._have])
        self._have = rest

    def _take_payload(self, request: Request, pos: int) -> int:
        """Take the payload of a read that was answered whole; return where what follows begins."""
        end = pos + request.length
        waiter: _Waiter = request.data
        if end <= self._have:
            waiter.data = bytes(self._in[pos:end])
            self._end(request)
            return end
        waiter.data = bytearray(request.length)
        self._target, self._ending = memoryview(waiter.data), request
        return pos

    def _feed(self, part: memoryview) -> None:
        event = self._replies.feed(part)
        if event is not None:
            self._on_event(event)

    def _on_event(self, event: Event) -> None:
        # A range that reads as zeros needs nothing: the buffer of a read starts as zeros.
        if event.payload:
            waiter: _Waiter = event.request.data
            if waiter.data is None:
                waiter.data = bytearray(event.request.length)
            start = event.offset - event.request.offset
            self._target = memoryview(waiter.data)[start : start + event.length]
            self._ending = event.request if event.done else None
        elif event.done:
            self._end(event.request)

    def _advance(self, count: int) -> None:
        """Some payload arrived; at its end the request may be complete."""
        assert self._target is not None
        if count < len(self._target):
            self._target = self._target[count:]
            return
        self._target = None
        if self._part is not None:
            part, self._part = self._part, None
            self._feed(part)
            return
        request, self._ending = self._ending, None
        if request is not None:
            self._end(request)

    def _end(self, request: Request) -> None:
        waiter: _Waiter = request.data
        self.in_flight_bytes -= waiter.cost
        data = waiter.data
        if request.error is not None:
            waiter.callback(None, request.error)
        elif data is None:
            waiter.callback(bytearray(waiter.length) if waiter.length else None, None)
        elif waiter.length == len(data):
            waiter.callback(data, None)
        else:
            waiter.callback(data[waiter.skip : waiter.skip + waiter.length], None)

    def _say_goodbye(self) -> None:
        try:
            self._sock.send(wire.request(wire.CMD_DISC, 0, 0, 0))
        except OSError:
            pass

    def _fail(self, error: Exception) -> None:
        """Break the connection; the owner closes it."""
        if self.broken is not None:
            return
        if isinstance(error, OSError):
            cause = error
            error = ServerGone(f"lost connection to NBD server {self.address}: {cause}")
            error.__cause__ = cause
        self.broken = error
        self.in_flight_bytes = 0
        self._out.clear()
        waiting = self._replies.abandon()
        # Announced as done, but its payload never came.
        if self._ending is not None:
            waiting.append(self._ending)
        self._target = self._ending = self._part = None
        ready, self._ready = self._ready, []
        for callback in [request.data.callback for request in waiting] + ready:
            callback(None, error)
