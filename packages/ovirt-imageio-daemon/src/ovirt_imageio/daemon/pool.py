# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The open backends of one transfer, which its requests share.

Theory of operation
-------------------

At most `limit` backends are open. With NBD the first becomes the *fast path* for good:
small requests of any number of HTTP connections are pipelined over it in the loop. The
others are *members*: idle, or lent to one request whose worker thread uses it.

    requests ──► fast path (loop) ───────────────► storage
             ──► queue ──► member 1 (worker) ────►
                           member 2 (worker) ────►  ...  up to limit

A request borrows one member, and a second where no other request waits. If none is idle it
opens one. If that is not possible it waits in line; a member given back goes to the first in the
line. A server that takes no more connections lowers the limit for a while. Where no member can
be had at all, or waiting takes long, the request goes over the fast path's connection too.
That is in `lending`; what is owed to the client, and why, in `debts`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from ovirt_imageio.common import defaults
from ovirt_imageio.common.backends.base import Backend, pieces
from ovirt_imageio.common.errors import ImageioError, ProtocolError
from ovirt_imageio.common.nbd import ServerGone

from .debts import Covered
from .lending import Lending
from .members import Fast, Member, Storage, StorageFailed, has_server
from .operations import FLUSH, Operation
from .shared import Shared, SharedBackend

__all__ = ["Pool", "Storage", "StorageFailed"]

# Bytes zeroed between two looks at the cancel flag. A server that can zero needs milliseconds.
ZERO_PIECE = 128 * 1024 * 1024
T = TypeVar("T")

log = logging.getLogger(__name__)


class Pool(Lending):
    """The open backends of one transfer, and what is done with them. Loop thread only.

    Arguments and attributes are those of `Lending`.
    """

    # Small requests.

    async def read(self, op: Operation, offset: int, length: int) -> bytes | bytearray:
        """Return that many bytes: from the fast path if possible, else by a worker.

        Args:
            op: Waits for a backend end with it.
            offset: First byte.
            length: Bytes, few enough for memory.
        """
        fast = self.fast or await self._fast()
        if fast is not None:
            try:
                data = await fast.read(offset, length)
            except ProtocolError:
                if not isinstance(self._lost_server(fast), ServerGone):
                    raise
                fast = await self._fast()
                data = await fast.read(offset, length) if fast is not None else None
            if data is not None:
                return data
        async with self.borrow(op) as backends:
            return await self._loop.worker(_read, backends[0], offset, length)

    async def write(self, op: Operation, offset: int, data: bytes, *, flush: bool) -> None:
        """Write data at offset, and flush if told so. As `read`."""
        length = len(data)
        shared = self.fast or await self._fast()
        if not isinstance(shared, Shared) or not shared.can_write(offset, length):
            await self.change(op, _write, offset, data, flush=flush)
            return
        await self._change_shared(op, shared, length, lambda fast: fast.write(offset, data, promised=not flush), flush)

    async def zero(self, op: Operation, offset: int, length: int, *, flush: bool) -> None:
        """Make a range read as zeroes, and flush if told so; any length. As `read`."""
        shared = self.fast or await self._fast()
        if not isinstance(shared, Shared) or not shared.can_zero(offset, length):
            await self.change(op, _zero, offset, length, flush=flush)
            return
        await self._change_shared(op, shared, length, lambda fast: fast.zero(offset, length, promised=not flush), flush)

    async def _change_shared(
        self, op: Operation, shared: Shared, length: int, change: Callable[[Shared], Awaitable[None]], flush: bool
    ) -> None:
        """Change something over the fast path; the flush goes over the same connection."""

        async def request(fast: Shared) -> Covered | None:
            refusals = self.refusals
            await change(fast)
            if not flush:
                return None
            covered = await self._flush_over(fast)
            return covered._replace(refusals=refusals)

        covered = await self._twice(shared, request)
        if covered is not None:
            self.check_refusals(covered.refusals)
        op.advance(length)
        if covered is not None:
            await self._flush_rest(op, covered)

    async def change(self, op: Operation, call: Callable[..., None], *args: Any, flush: bool) -> None:
        """Run ``call(backend, op, *args)`` in a worker, and flush if told so."""
        async with self.borrow(op) as backends:
            covered = self.begin_flush(backends[0]) if flush else None
            await self._loop.worker(_change, backends[0], op, call, args, flush)
        if covered is not None:
            await self.finish_flush(op, covered)

    async def _twice(self, shared: Shared, request: Callable[[Shared], Awaitable[T]]) -> T:
        """Try a request again, on a new connection, if the server went away meanwhile.

        The server had nothing of the request, or all. Writing the same again does no harm: nothing
        was acknowledged, so no other client may rely on what is there.
        """
        try:
            return await request(shared)
        except ProtocolError:
            if not isinstance(self._lost_server(shared), ServerGone):
                raise
            again = await self._fast()
            if not isinstance(again, Shared):
                raise
            return await request(again)

    def _lost_server(self, fast: Fast) -> BaseException | None:
        return fast.broken if isinstance(fast, Shared) else None

    async def _fast(self) -> Fast | None:
        if self.fast is None and (self._wants_fast or self.storage is None):
            await self.prepare()
        return self.fast

    # Flushing.

    def begin_flush(self, backend: Backend) -> Covered:
        """Begin a flush that a worker does with a backend that it has.

        Returns:
            For `finish_flush`, once the worker has flushed.

        Raises:
            StorageFailed: Acknowledged data may be lost.
        """
        self._check_debts()
        if isinstance(backend, SharedBackend):
            return self._covered_over(backend.opened, True, backend)
        opened = next(member.opened for member in self._busy if member.backend is backend)
        return self._covered_over(opened, has_server(backend), backend)

    async def finish_flush(self, op: Operation, covered: Covered) -> None:
        """End what `begin_flush` began. Errors as `flush`."""
        await self._overlapping_answered(covered.refusals, covered.owed)
        self.check_refusals(covered.refusals)
        self._note_flushed(covered)
        await self._flush_rest(op, covered)

    async def flush(self, op: Operation) -> None:
        """Bring everything acknowledged for the ticket to stable storage.

        Raises:
            StorageFailed: Acknowledged data may be lost.
            Exception: The storage failed.
        """
        if self.storage is None or self.fast is None:
            await self.prepare()
        assert self.storage is not None
        self._check_debts()
        owing = self._owing()
        if isinstance(self.fast, Shared):
            if self.storage.capabilities.multi_conn or self.fast.unflushed or not owing:
                covered = await self._twice(self.fast, self._flush_over)
            else:
                covered = Covered([], None, 0, owing, None, self.refusals)
            await self._flush_rest(op, covered)
        elif owing and not self.storage.capabilities.multi_conn:
            await self._flush_rest(op, Covered([], None, 0, owing, None, self.refusals))
        else:
            async with self.borrow(op) as backends:
                covered = self.begin_flush(backends[0])
                await self._loop.worker(backends[0].flush)
            await self.finish_flush(op, covered)

    async def _flush_over(self, shared: Shared) -> Covered:
        """Flush the fast path."""
        self._check_debts()
        covered = self._covered_over(shared.opened, True, None)
        await shared.flush()
        await self._overlapping_answered(covered.refusals, covered.owed)
        self._note_flushed(covered)
        return covered

    async def _flush_rest(self, op: Operation, covered: Covered) -> None:
        """Flush what a flush did not cover."""
        rest, shared = covered.rest, covered.rest_shared
        if shared is not None and shared is self.fast and shared.unflushed:
            more = await self._flush_over(shared)
            rest = [member for member in rest if member in more.rest]
        for member in rest:
            op.check()
            await self._flush_member(member, op)
        self.check_lost()

    async def settle(self) -> None:
        """Flush what is owed before all backends are closed; nobody uses them any more.

        A failure is noted: see `inherit`.
        """
        try:
            self._drop_stale()
            if isinstance(self.fast, Shared) and self.fast.owing:
                refusals = self.refusals
                await self.fast.flush()
                await self._overlapping_answered(refusals, True)
            for member in self._owing():
                await self._flush_member(member, Operation(FLUSH))
        except (OSError, ImageioError) as e:
            self._note_loss(e)

    def flush_idle(self, seconds: float) -> None:
        """Flush what nobody has used for so many seconds, and what will be in doubt when its connection ends.

        A server of images closes what was idle for a minute. One that does not tell if it was restarted leaves in
        doubt what was written over that connection.
        """
        until = self._loop.now - seconds
        for member in self._idle:
            doubtful = member.backend.unflushed and not getattr(member.backend, "tells_restarts", True)
            if doubtful and member.idle_since <= until:
                self._loop.spawn(self._flush_quietly(member), "flush idle")

    async def _flush_quietly(self, member: Member) -> None:
        try:
            if member in self._idle:
                await self._flush_member(member, Operation(FLUSH))
        except (OSError, ImageioError) as e:
            log.info("an idle connection to storage could not be flushed: %s", e)

    def _check_debts(self) -> None:
        """Raise if acknowledged data may be lost, looking at idle connections first."""
        self._drop_stale()
        self.check_lost()

    def _drop_stale(self) -> None:
        """A server that was restarted may have lost what idle members wrote."""
        for member in [m for m in self._idle if m.backend.unflushed]:
            stale = getattr(member.backend, "stale", None)
            if stale is not None and stale():
                self._idle.remove(member)
                if member.backend.broken is None:
                    member.backend.broken = ServerGone("the server closed an idle connection")
                self._drop(member, owes=True)

    async def _flush_member(self, member: Member, op: Operation) -> None:
        if not await self._claim(member, op):
            return  # it was dropped: if it broke, that was noted
        try:
            if member.backend.unflushed:
                refusals = self.refusals
                await self._loop.worker(member.backend.flush)
                await self._overlapping_answered(refusals, member.owed)
        except BaseException:
            self._give_back(member, failed=True)
            raise
        self._give_back(member)


def _read(backend: Backend, offset: int, length: int) -> bytearray:
    data = bytearray(length)
    backend.read_into(offset, data)
    return data


def _write(backend: Backend, op: Operation, offset: int, data: bytes) -> None:
    backend.write(offset, data)
    op.advance(len(data))


def _zero(backend: Backend, op: Operation, offset: int, length: int) -> None:
    size = ZERO_PIECE if backend.capabilities.can_zero else defaults.PIECE
    for start, count in pieces(offset, length, size, align=backend.capabilities.block_size):
        op.check()
        backend.zero(start, count)
        op.advance(count)


def _change(backend: Backend, op: Operation, call: Callable[..., None], args: Sequence[Any], flush: bool) -> None:
    op.check()
    call(backend, op, *args)
    if flush:
        op.check()
        backend.flush()
