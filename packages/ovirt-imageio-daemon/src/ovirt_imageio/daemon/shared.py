# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Small requests of a transfer, served in the loop without a thread.

`Shared` pipelines the requests of many HTTP connections over one NBD connection;
`CachedFile` answers reads that the page cache holds. Both belong to the loop's thread.

`SharedBackend` lets worker threads use a `Shared` too. It is the last resort where the
server takes no further connection, or all others are in use for long. It is slower than a
connection of one's own, but every request is served.
"""

from __future__ import annotations

import functools
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Optional

from ovirt_imageio.common import defaults, nbd
from ovirt_imageio.common.backends.base import Backend, Capabilities, NullOperation, Operation, pieces
from ovirt_imageio.common.backends.nbd import edge_lock, holding
from ovirt_imageio.common.buffers import Buffer
from ovirt_imageio.common.errors import RequestError, UnsupportedOperation
from ovirt_imageio.common.extents import Extent, ZeroExtent, merge

from .errors import DeadlineExpired
from .http.loop import Loop
from .http.tasks import Token

# Bytes asked for and not answered. Eight connections with requests of the inline limit need
# 1 MiB; more only fills buffers.
IN_FLIGHT_LIMIT = 8 * 1024 * 1024
# Longer zero requests would let small ones wait behind a server that has to write zeroes.
ZERO_LIMIT = 16 * 1024 * 1024
# One block status request of a worker.
_STATUS_STEP = 1024 * 1024 * 1024

Submit = Callable[[nbd.pipeline.Callback], None]
Note = Callable[[Optional[Exception]], None]


class Shared:
    """One NBD connection for the requests of many. Loop thread only.

    Args:
        loop: The loop.
        pipeline: The connection, not used by anybody else.
        capabilities: Of the backend that it came from.
        sparse: Zeroing may deallocate.
        timeout: Seconds the server may take for an answer, infinity for no limit; then the connection is given up.
        on_broken: Called once with this, when the connection broke.
        on_flush_failed: Called with the server's error when it answered a flush with one.
        on_doubt: Called when a write that a client is told of is acknowledged, and a flush was refused since it
            was asked for.
        opened: Place in the order in which connections of the pool were opened.
        owes: The connection has acknowledged writes already, which no flush covers.

    Attributes:
        size: Of the export, in bytes.
        capabilities: As given.
        closed: It cannot be used any more.
        acknowledged: Number of writes that the server acknowledged.
        opened: As given.
        refusals: How many flushes storage has refused since it was opened, whichever pool asked for them.
        flushes: Marks of those that the server has not answered.

    Writes are counted the moment their answer is read, not when the request's task goes on.
    The end of the connection may be read in the same turn.
    """

    def __init__(
        self,
        loop: Loop,
        pipeline: nbd.Pipeline,
        *,
        capabilities: Capabilities,
        sparse: bool = False,
        timeout: float = defaults.NBD_TIMEOUT,
        on_broken: Callable[[Shared], None],
        on_flush_failed: Callable[[Exception], None] = lambda error: None,
        on_doubt: Callable[[], None] = lambda: None,
        opened: int = 0,
        owes: bool = False,
    ) -> None:
        self.size = pipeline.export.size
        self.capabilities = capabilities
        self.closed = False
        self.acknowledged = int(owes)
        self.opened = opened
        self._flushed = 0  # how many of them a flush covers
        self.flushes: set[object] = set()
        self._promised = self.acknowledged  # the last of them that a client was told of, without a flush
        self._loop = loop
        self._pipeline = pipeline
        self._sparse = sparse
        self._timeout = timeout
        self._on_broken = on_broken
        self._on_flush_failed = on_flush_failed
        self._on_doubt = on_doubt
        self.refusals = 0
        self._scheduled = False  # output leaves before the loop waits
        self._draining = False
        self._waiting: deque[Token] = deque()
        loop.spawn(self._receive(), "nbd receive")

    @property
    def broken(self) -> Exception | None:
        """Why the connection cannot be used any more, or None."""
        return self._pipeline.broken

    @property
    def unflushed(self) -> bool:
        """Whether the server acknowledged a write since the last flush."""
        return self.acknowledged > self._flushed

    @property
    def owing(self) -> bool:
        """Whether a client was told of a write that no flush covers."""
        return self._promised > self._flushed

    @property
    def in_use(self) -> bool:
        """Whether the server owes an answer."""
        return self._pipeline.in_flight > 0

    def fits(self, offset: int, length: int) -> bool:
        """Tell whether a write or zero has whole blocks; others are a worker's."""
        block = self._pipeline.block_size
        return block == 1 or not (offset % block or (offset + length) % block)

    def can_write(self, offset: int, length: int) -> bool:
        """Tell whether the loop can write this."""
        return length <= self._pipeline.max_length and self.fits(offset, length)

    def can_zero(self, offset: int, length: int) -> bool:
        """Tell whether a zero is quick enough for the loop."""
        limit = ZERO_LIMIT if self.capabilities.can_zero else defaults.INLINE_LIMIT
        return length <= limit and self.fits(offset, length)

    async def read(self, offset: int, length: int) -> bytes | bytearray | None:
        """Return that many bytes from offset on; None if they are too many for a request.

        Raises:
            ImageioError: The server refused, or the connection broke.
        """
        if length > self._pipeline.max_length:
            return None
        if self._pipeline.in_flight_bytes > IN_FLIGHT_LIMIT:
            await self._room()
        token = Token()
        self._pipeline.read(offset, length, functools.partial(self._loop.resume, token))
        if not self._scheduled:
            self._schedule()
        data: bytes | bytearray
        try:  # as `_answer`, without another coroutine
            data = await self._loop.suspend(token, self._timeout)
        except DeadlineExpired as e:
            error = self.timed_out()
            self._broke(error)
            raise error from e
        finally:
            if self._waiting and self._pipeline.in_flight_bytes <= IN_FLIGHT_LIMIT:
                self._wake_one()
        return data

    async def write(self, offset: int, data: bytes, *, promised: bool = True) -> None:
        """Write data at offset; return when the server acknowledged. Errors as `read`.

        Args:
            offset: First byte.
            data: Bytes to write.
            promised: The client is told before a flush; otherwise it will be told when a flush
                over this connection has succeeded, or never.
        """
        if self._pipeline.in_flight_bytes > IN_FLIGHT_LIMIT:
            await self._room()
        await self._request(functools.partial(self._pipeline.write, offset, data), self._note_change(promised))

    async def zero(self, offset: int, length: int, *, promised: bool = True) -> None:
        """Make a range read as zeroes; as `write`."""
        request = functools.partial(self._pipeline.zero, offset, length, punch_hole=self._sparse)
        await self._request(request, self._note_change(promised))

    async def flush(self) -> None:
        """Bring what was acknowledged to stable storage. Errors as `read`."""
        await self._request(self._pipeline.flush, self._note_flush())

    def is_under_way(self, mark: object) -> bool:
        """Return whether the server owes the answer to a flush."""
        return not self.closed and mark in self.flushes

    def covered(self, acknowledged: int) -> None:
        """Note that a flush covers so many of the acknowledged writes."""
        self._flushed = max(self._flushed, acknowledged)

    def submit(self, request: Submit, callback: nbd.pipeline.Callback, kind: str = "") -> None:
        """Submit a request whose answer the callback takes, in the loop.

        Args:
            request: Submits it.
            callback: Gets the answer.
            kind: ``"change"`` or ``"flush"`` if it is one.
        """
        note = self._note_flush() if kind == "flush" else self._note_change(True) if kind == "change" else None
        noted = _noting(note, callback)
        try:
            request(noted)
        except Exception as e:
            noted(None, e)
            return
        self._schedule()

    def give_up(self) -> None:
        """Close the connection, for an answer did not come in time."""
        self._broke(self.timed_out())

    def close(self, error: Exception | None = None) -> None:
        """Close the connection; what is in flight fails with the error."""
        if self.closed:
            return
        self.closed = True
        self._loop.forget(self._pipeline.fileno())
        self._pipeline.close(error)
        self._wake_all()

    # Inside.

    def _request(self, submit: Callable[..., None], note: Note) -> Any:
        token = self._loop.token()
        submit(callback=_noting(note, functools.partial(self._loop.resume, token)))
        self._schedule()
        return self._answer(token)

    def _note_change(self, promised: bool) -> Note:
        """Return what notes the answer to a write that is submitted now."""
        refusals = self.refusals

        def note(error: Exception | None) -> None:
            if error is None:
                self.acknowledged += 1
                if promised:
                    self._promised = self.acknowledged
                    if self.refusals != refusals:
                        self._on_doubt()

        return note

    def _note_flush(self) -> Note:
        """Return what notes the answer to a flush that is submitted now."""
        covered = self.acknowledged
        mark = object()
        self.flushes.add(mark)

        def note(error: Exception | None) -> None:
            if error is None:
                self.covered(covered)
            elif isinstance(error, RequestError):
                self._on_flush_failed(error)
            self.flushes.discard(mark)

        return note

    def timed_out(self) -> nbd.ServerTimeout:
        """Return the error for an answer that did not come in time."""
        return nbd.ServerTimeout(f"NBD server {self._pipeline.address} did not respond in {self._timeout} s")

    async def _answer(self, token: Token) -> Any:
        try:
            return await self._loop.suspend(token, self._timeout)
        except DeadlineExpired as e:
            error = self.timed_out()
            self._broke(error)
            raise error from e
        finally:
            if self._waiting and self._pipeline.in_flight_bytes <= IN_FLIGHT_LIMIT:
                self._wake_one()

    async def _room(self) -> None:
        """Wait until fewer bytes are in flight; first come, first served."""
        token = self._loop.token()
        self._waiting.append(token)
        await self._loop.suspend(token)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.before_wait(self._flush_output)

    def _flush_output(self) -> None:
        self._scheduled = False
        if self.closed:
            return
        self._pipeline.flush_output()
        self._loop.expects = True
        if self._pipeline.broken is not None:
            self._broke(None)
        elif self._pipeline.wants_write and not self._draining:
            self._draining = True
            self._loop.spawn(self._drain(), "nbd send")

    async def _drain(self) -> None:
        try:
            while self._pipeline.wants_write and self._pipeline.broken is None:
                await self._loop.writable(self._pipeline.fileno())
                self._pipeline.on_writable()
        except OSError:
            return  # closed meanwhile
        finally:
            self._draining = False
        if self._pipeline.broken is not None:
            self._broke(None)

    async def _receive(self) -> None:
        pipeline, loop, fd = self._pipeline, self._loop, self._pipeline.fileno()
        try:
            while pipeline.broken is None:
                await loop.readable(fd)
                pipeline.on_readable()
        except OSError:
            return  # closed meanwhile
        self._broke(None)

    def _broke(self, error: Exception | None) -> None:
        if not self.closed:
            self.close(error)
            self._on_broken(self)

    def _wake_one(self) -> None:
        while self._waiting:
            token = self._waiting.popleft()
            if not token.done:
                self._loop.resume(token)
                return

    def _wake_all(self) -> None:
        while self._waiting:
            self._loop.resume(self._waiting.popleft())


class CachedFile:
    """Reads what the page cache holds of a file. Loop thread only.

    Args:
        backend: A `FileBackend` of its own.
    """

    def __init__(self, backend: Any) -> None:
        self.backend = backend

    async def read(self, offset: int, length: int) -> bytes | bytearray | None:
        """Return that many bytes, or None if they are not at hand: a worker has to wait."""
        data: bytes | bytearray | None = self.backend.read_nowait(offset, length)
        return data


class SharedBackend(Backend):
    """A `Shared` for a worker thread, which waits for the loop's answers.

    Any number of instances may work at a time. `unflushed` is the shared connection's
    business, so it stays False here.
    """

    def __init__(self, loop: Loop, shared: Shared) -> None:
        self.size = shared.size
        self.capabilities = shared.capabilities
        self._loop = loop
        self._shared = shared
        self.opened = shared.opened
        self._pipeline = shared._pipeline
        self._block = self._pipeline.block_size
        self._edges = edge_lock(self._pipeline.address)

    def read_into(self, offset: int, buf: Buffer) -> None:
        """See `Backend.read_into`."""
        view = memoryview(buf).cast("B")
        self.check_range(offset, len(view))
        for start, count in pieces(offset, len(view)):
            data = self._call(functools.partial(self._pipeline.read, start, count))
            view[start - offset :][:count] = data

    def write(self, offset: int, buf: Buffer) -> None:
        """See `Backend.write`."""
        view = memoryview(buf).cast("B")
        self.check_write(offset, len(view))
        for start, count, whole in self._parts(offset, len(view)):
            data = view[start - offset :][:count]
            if not whole:
                self._write_edge(start, data)
                continue
            for first, length in pieces(start, count):
                piece = data[first - start :][:length]
                self._change(functools.partial(self._pipeline.write, first, piece))

    def zero(self, offset: int, length: int) -> None:
        """See `Backend.zero`."""
        self.check_write(offset, length)
        sparse = self._shared._sparse
        step = ZERO_LIMIT if self.capabilities.can_zero else defaults.PIECE
        for start, count, whole in self._parts(offset, length):
            if not whole:
                self._write_edge(start, memoryview(bytes(count)))
                continue
            for first, size in pieces(start, count, step):
                request = functools.partial(self._pipeline.zero, first, size, punch_hole=sparse)
                self._change(request)

    def flush(self) -> None:
        """See `Backend.flush`."""
        self._call(self._pipeline.flush, "flush")

    def extents(
        self, context: str = "zero", *, offset: int = 0, length: int | None = None, op: Operation | None = None
    ) -> Iterator[Extent]:
        """See `Backend.extents`."""
        length = self.size - offset if length is None else length
        self.check_range(offset, length)
        if context == "dirty" and not self.capabilities.can_dirty:
            raise UnsupportedOperation("this export has no dirty bitmap")
        if context == "zero" and not self.capabilities.can_extents:
            return iter([ZeroExtent(offset, length, zero=False, hole=False)] if length else [])
        return merge(self._extents(context, offset, offset + length, op or NullOperation()))

    def close(self) -> None:
        """See `Backend.close`. The connection is not ours to close."""

    def _extents(self, context: str, offset: int, end: int, op: Operation) -> Iterator[Any]:
        while offset < end:
            op.check()
            length = min(_STATUS_STEP, end - offset)
            found = self._call(functools.partial(self._pipeline.status, offset, length, context))
            yield from found
            offset = found[-1].start + found[-1].length

    def _parts(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """Cut a range into edges within a block and whole blocks: offset, length, whole."""
        block, end = self._block, offset + length
        first = min(offset + -offset % block, end)
        last = end if end == self.size else max(end - end % block, first)
        for start, stop, whole in ((offset, first, False), (first, last, True), (last, end, False)):
            if start < stop:
                yield start, stop - start, whole

    def _write_edge(self, offset: int, data: memoryview) -> None:
        """Write part of a block: read, change, write; one thread at a time."""
        start = offset - offset % self._block
        with holding(self._edges, self._check_open):
            block = bytearray(min(self._block, self.size - start))
            self.read_into(start, block)
            block[offset - start : offset - start + len(data)] = data
            self._change(functools.partial(self._pipeline.write, start, block))

    def _check_open(self) -> None:
        if self._shared.closed:
            raise nbd.ServerGone(f"the connection to {self._pipeline.address} was closed")

    def _change(self, request: Submit) -> None:
        self._call(request, "change")

    def _call(self, request: Submit, kind: str = "") -> Any:
        """Run a request in the loop and wait for its answer.

        A request that the server keeps for too long ends with the connection. Left alone it
        would send a buffer that is used for something else by then.
        """
        answer = _Answer()
        self._loop.call_soon_threadsafe(self._shared.submit, request, answer.give, kind)
        timeout = self._shared._timeout
        if timeout == math.inf:
            answer.wait(None)
        elif not answer.wait(timeout):
            self._loop.call_soon_threadsafe(self._shared.give_up)
            if not answer.wait(timeout):  # the loop has ended
                raise self._shared.timed_out()
        return answer.take()


class _Answer:
    """The answer to one request, from the loop to a worker."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._value: Any = None
        self._error: Exception | None = None

    def give(self, value: Any, error: Exception | None) -> None:
        self._value, self._error = value, error
        self._event.set()

    def wait(self, timeout: float | None) -> bool:
        return self._event.wait(timeout)

    def take(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._value


def _noting(note: Note | None, callback: nbd.pipeline.Callback) -> nbd.pipeline.Callback:
    """Return a callback that notes an answer before it hands it on."""
    if note is None:
        return callback
    done = note

    def noting(value: Any, error: Exception | None) -> None:
        done(error)
        callback(value, error)

    return noting
