# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Opening backends, lending them to requests, and closing them."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from types import TracebackType

from ovirt_imageio.common import defaults, imagesapi
from ovirt_imageio.common.backends.base import Backend
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.errors import (
    AuthorizationError,
    ImageioError,
    OperationCancelled,
    OutOfRange,
    RequestError,
)
from ovirt_imageio.common.nbd import ServerFull, ServerGone

from .debts import Debts
from .errors import DeadlineExpired, HttpError, Overloaded, origin_refusal, origin_status
from .http.loop import Loop
from .http.tasks import Token
from .members import Member, Open, Storage, Waiter, first_alive, has_server
from .operations import FLUSH, WRITE, ZERO, Operation
from .shared import CachedFile, Shared, SharedBackend
from .storages import Storages

# A host under load may be slow to greet; a full server never does.
FIRST_GREETING = 10.0
# How long a full server is not asked again: asking costs the asker a second.
FULL_PERIOD = 60.0
# How long one that refuses connections is not: it may be just being started.
GONE_PERIOD = 1.0
# How long a request waits for a member before it goes over the fast path's connection.
PATIENCE = 2.0
# How long it waits where there is no such connection.
QUEUE_TIMEOUT = 60.0
# Seconds between two looks whether a flush that overlaps another was answered.
_LOOK = 0.001
# Longer use of a member that owes a flush would let flushes wait for it.
_LONG_USE = 32 * 1024 * 1024

log = logging.getLogger(__name__)


class Lending(Debts):
    """The open backends of one transfer, and who has them. Loop thread only.

    Args:
        loop: The loop.
        open_backend: Opens a backend; called in a worker thread.
        limit: Most open backends.
        fast: Serve small requests in the loop, where the backend can.
        sparse: Zeroing may deallocate.
        timeout: Seconds that the storage may take for an answer in the loop; 0 for no limit.
        cancel: Given to all backends that are opened: ends what waits for storage.
        on_full: Called when the server takes no more connections; others may give some back.
        identify: Returns what is equal for all pools of the same storage, see `backends.identity`; called in
            a worker thread before storage is opened.
        storages: Where pools of the same storage are known.

    Attributes:
        storage: Properties of the storage, None until it was opened.
        identity: Names the storage that the URL leads to, None until it was opened.
        fast: Serves small requests in the loop, None if nothing does.
        closed: It was closed: the ticket was removed or cancelled.
    """

    def __init__(
        self,
        loop: Loop,
        open_backend: Open,
        *,
        limit: int = defaults.MAX_CONNECTIONS,
        fast: bool = True,
        sparse: bool = False,
        timeout: float = defaults.NBD_TIMEOUT,
        cancel: Cancel | None = None,
        on_full: Callable[[], None] = lambda: None,
        identify: Callable[[], Hashable] | None = None,
        storages: Storages | None = None,
    ) -> None:
        super().__init__(storages)
        self.closed = False
        self._loop = loop
        self._open_backend = open_backend
        self._identify = identify or (lambda: ("pool", id(self)))
        self._max = self._limit = limit
        self._full_until = 0.0
        self._wants_fast = fast
        self._sparse = sparse
        self._timeout = timeout or math.inf
        self._cancel = cancel or Cancel()
        self._on_full = on_full
        self._open = 0  # open or being opened, the fast path and those being closed included
        self._queue: deque[Waiter] = deque()
        self._preparing: list[Token] | None = None
        self._closing: list[Token] = []
        self._sharing = 0  # requests that share the fast path's connection
        self._sharers: deque[Token] = deque()  # of requests that wait to do so
        self._serials = itertools.count(1)  # connections in the order in which they were opened

    @property
    def waiting_count(self) -> int:
        """Operations that wait for a backend."""
        return len(self._queue)

    @property
    def open_count(self) -> int:
        """Backends that are open, being opened or being closed."""
        return self._open

    # Opening.

    async def prepare(self) -> Storage:
        """Open the first backend, and the fast path if there can be one.

        Raises:
            Overloaded: The server takes no connection.
            Exception: The storage cannot be opened.
        """
        while self.storage is None or (self.fast is None and self._wants_fast):
            self._check_closed()
            if self._preparing is not None:
                self._preparing.append(self._loop.token())
                await self._loop.suspend(self._preparing[-1])
                continue
            self._preparing = []
            try:
                await self._prepare()
            finally:
                waiting, self._preparing = self._preparing, None
                for token in waiting:
                    self._loop.resume(token)
        return self.storage

    async def _prepare(self) -> None:
        deadline = self._loop.now + FIRST_GREETING
        while True:
            member = await self._take(None)
            if member is not None:
                break
            if self._loop.now >= deadline:
                raise Overloaded("the storage takes no more connections, try again later")
        if self.storage is None:
            try:
                self.storage = await self._loop.worker(_look, member.backend)
            except BaseException:
                self._give_back(member)
                raise
        if not self.closed:
            self._storages.join(self.identity, self)
        if not self._become_fast(member):
            self._give_back(member)

    async def measure(self) -> Storage:
        """Ask the storage, which is open, for its size again.

        Raises:
            Exception: The storage failed.
        """
        assert self.storage is not None
        if isinstance(self.fast, CachedFile):
            self.fast.backend.measure()
            return self.storage
        member = await self._take(None)
        if member is None:
            return self.storage  # as far as known: all are in use for long
        try:
            await self._loop.worker(member.backend.measure)
        except BaseException:
            self._give_back(member, failed=True)
            raise
        # Not all instances share what they know.
        self.storage = self.storage._replace(sizes=member.backend.size_teller())
        self._give_back(member)
        return self.storage

    def _become_fast(self, member: Member) -> bool:
        """Use a member for small requests from now on, if it can and shall."""
        backend = member.backend
        if not self._wants_fast or self.fast is not None or self.closed:
            return False
        make_pipeline = getattr(backend, "pipeline", None)
        if make_pipeline is not None:
            self._busy.discard(member)
            self.fast = Shared(
                self._loop,
                make_pipeline(),
                capabilities=backend.capabilities,
                sparse=self._sparse,
                timeout=self._timeout,
                on_broken=self._shared_broke,
                on_flush_failed=self._flush_failed,
                on_doubt=self._shared_wrote_across,
                opened=member.opened,
                owes=backend.unflushed,
            )
            return True
        if getattr(backend, "can_nowait", False) and self._max > 1:
            if backend.unflushed:
                return False  # what is owed is looked for among the members
            self._busy.discard(member)
            self.fast = CachedFile(backend)
            return True
        self._wants_fast = False
        return False

    # Lending.

    def borrow(self, op: Operation, *, wish: int = 1) -> Lease:
        """Return a context manager that lends one to `wish` backends to an operation.

        Args:
            op: Its cancellation ends the wait.
            wish: Most backends that are of use; more than one where nobody waits.
        """
        return Lease(self, op, wish)

    async def lend(self, op: Operation, wish: int) -> list[Member]:
        """Lend members; what `borrow` does when it is entered. No members: see `share`.

        Raises:
            Overloaded: Too many wait for a backend.
            OperationCancelled: The operation was cancelled while waiting.
            Exception: The storage cannot be opened.
        """
        if self.storage is None:
            await self.prepare()
        members: list[Member] = []
        try:
            while not members:
                member = await self._take(op)
                if member is None:
                    return []
                members += await self._paid(member, op)
            while len(members) < wish and not self._queue:
                extra = await self._extra()
                if extra is None:
                    break
                members += await self._paid(extra, op)
        except BaseException:
            self.give_back(members)
            raise
        return members

    async def _extra(self) -> Member | None:
        """A member that would only help: None rather than an error."""
        try:
            return self._pop_idle() or await self._open_new()
        except (OSError, ImageioError) as e:
            self._check_closed()
            log.info("cannot open another connection to storage: %s", e)
            return None

    async def _paid(self, member: Member, op: Operation) -> list[Member]:
        """Let a member pay what it owes if it has to; none if that broke it, which is noted."""
        try:
            await self._pay(member, op)
        except BaseException as e:
            broken = member.backend.broken is not None
            self._give_back(member, failed=True)
            if broken and isinstance(e, ImageioError):
                log.info("a connection to storage broke at its flush: %s", e)
                return []
            raise
        return [member]

    async def _pay(self, member: Member, op: Operation) -> None:
        """Flush a member that owes that before a use in which it may break, or be missed for long."""
        assert self.storage is not None
        if not member.owed or op.kind == FLUSH:
            return
        one_for_all = self.storage.capabilities.multi_conn
        if op.kind in (WRITE, ZERO) and (one_for_all or 0 < op.length <= _LONG_USE):
            return
        if one_for_all and not has_server(member.backend):
            return
        refusals = self.refusals
        await self._loop.worker(member.backend.flush)
        await self._overlapping_answered(refusals, True)
        member.owed = False

    async def _overlapping_answered(self, refusals: int, owed: bool) -> None:
        """Wait for flushes of this storage that overlap one which has succeeded.

        The storage may refuse such a flush, and drop writes that the one which succeeded should have covered.

        Args:
            refusals: How many flushes storage had refused when that one began.
            owed: Something was owed then: it is lost if storage has refused one since.
        """
        under_way = self._storages.flushes_under_way(self.identity)
        while any(still() for still in under_way):
            await self._loop.sleep(_LOOK)
        if owed:
            self._wrote_across(refusals)

    def last_resort(self) -> Backend:
        """Return a backend that shares the fast path's connection with everybody."""
        if not isinstance(self.fast, Shared):
            raise Overloaded("the storage takes no more connections, try again later")
        return SharedBackend(self._loop, self.fast)

    async def share(self, op: Operation) -> Backend:
        """Return the `last_resort` when it is this request's turn; to be left by `leave`.

        Together with those that have a member no more than `limit` requests have it. Each may
        hold a worker for as long as its client likes, and other requests need workers too.

        Raises:
            Overloaded: There is no such connection, or the wait was too long.
            OperationCancelled: The operation was cancelled while waiting.
        """
        until = self._loop.now + QUEUE_TIMEOUT
        while self._sharing and self._sharing + len(self._busy) >= self._max:
            token = self._loop.token()
            self._sharers.append(token)
            op.waits_for(lambda: self._loop.resume(token, error=OperationCancelled("cancelled")))  # noqa: B023
            try:
                await self._loop.suspend(token, max(until - self._loop.now, 0))
            except DeadlineExpired:
                raise Overloaded("too many requests wait for the storage") from None
            finally:
                op.clear_wait()
                with contextlib.suppress(ValueError):
                    self._sharers.remove(token)
        self._check_closed()
        backend = self.last_resort()
        self._sharing += 1
        return backend

    def leave(self) -> None:
        """Use the backend of `share` no more."""
        self._sharing -= 1
        self._let_share()

    def _let_share(self) -> None:
        if self._sharers:
            self._loop.resume(self._sharers.popleft())

    def give_back(self, members: Sequence[Member], *, failed: Operation | None = None) -> None:
        """Take lent members back; broken ones are closed.

        Args:
            members: Members that were lent.
            failed: The operation that used them if it failed. No client may rely on bytes that it
                wrote over a broken connection, so they count as nothing.
        """
        for member in members:
            if failed is not None and member.backend.broken is not None and failed.kind in (WRITE, ZERO):
                failed.done = 0
            self._give_back(member, failed=failed is not None)

    async def _take(self, op: Operation | None) -> Member | None:
        """Take an idle member, open one, or wait in line; None if there is none to be had."""
        self._check_closed()
        if not self._queue:
            # While one was being opened, in vain, another may have been given back.
            member = self._pop_idle() or await self._open_new() or self._pop_idle()
            if member is not None:
                return member
        if self._is_hopeless():
            return None
        return await self._wait(op)

    def _is_hopeless(self) -> bool:
        """Tell whether there is nobody to give a member back."""
        return self._open <= isinstance(self.fast, (Shared, CachedFile))

    def _pop_idle(self) -> Member | None:
        while self._idle:
            member = self._idle.pop()
            self._busy.add(member)
            stale = getattr(member.backend, "stale", None)
            if stale is not None and stale():
                if member.backend.broken is None:
                    member.backend.broken = ServerGone("the server closed an idle connection")
                log.info("storage closed an idle connection, opening another")
                self._drop(member, owes=member.backend.unflushed)
                continue
            member.lend(self.refusals)
            return member
        return None

    async def _open_new(self) -> Member | None:
        """Open a member; None if as many are open as may be."""
        if self._open >= self._limit:
            if self._limit == self._max or self._loop.now < self._full_until:
                return None
            self._limit += 1  # perhaps the server has room again
        self._open += 1
        return await self._open_reserved()

    async def _open_reserved(self) -> Member | None:
        """Open a member, whose place is counted already.

        Returns:
            None if the server is full, or takes no more connections while others live.
        """
        opened: list[Backend] = []
        try:
            if self.storage is None:
                self.identity = await self._loop.worker(self._identify)
            await self._loop.worker(_open, self._open_backend, opened)
        except (OSError, ImageioError) as e:
            full = isinstance(e, ServerFull)
            if not full and (isinstance(e, AuthorizationError) or not self._has_others()):
                self._free_place()
                raise
            self._open -= 1
            self._wake_closing()
            self._limit = max(self._established(), 1)
            self._full_until = self._loop.now + (FULL_PERIOD if full else GONE_PERIOD)
            log.info("storage takes no more than %d connections: %s", self._limit, e)
            if full:
                self._on_full()
            if self._is_hopeless():
                for waiter in self._queue:
                    self._loop.resume(waiter.token)
            return None
        except BaseException:
            if opened:  # the task was cancelled meanwhile
                self._loop.spawn(self._close_backend(opened[0]), "close backend")
            else:
                self._free_place()
            raise
        member = Member(opened[0], next(self._serials))
        member.refusals = self.refusals
        self._busy.add(member)
        self._limit = max(self._limit, self._established())
        if self.closed:
            self._drop(member, owes=False)
            self._check_closed()
        return member

    def _has_others(self) -> bool:
        """Tell whether there are backends that a request can wait for, or share."""
        return bool(self._idle or self._busy) or isinstance(self.fast, Shared)

    def _established(self) -> int:
        return len(self._idle) + len(self._busy) + isinstance(self.fast, (Shared, CachedFile))

    async def _wait(self, op: Operation | None) -> Member | None:
        """Wait in line. None if it is time to share the fast path's connection."""
        loop = self._loop
        waiter = Waiter(loop.token())
        self._queue.append(waiter)
        # A wait without an operation cannot be cancelled, so it must not be long: removing the ticket waits for it.
        timeout = PATIENCE if op is None or isinstance(self.fast, Shared) else QUEUE_TIMEOUT
        try:
            if op is not None:
                op.waits_for(lambda: loop.resume(waiter.token, error=OperationCancelled("cancelled")))
            await loop.suspend(waiter.token, timeout)
        except DeadlineExpired:
            if op is None or isinstance(self.fast, Shared):
                return None
            raise Overloaded("too many requests wait for the storage") from None
        except BaseException:
            if waiter.given:
                self._return(waiter.member)
            raise
        finally:
            if op is not None:
                op.clear_wait()
            with contextlib.suppress(ValueError):
                self._queue.remove(waiter)
        if waiter.given and waiter.member is None:
            return await self._open_reserved() or self._pop_idle()
        return waiter.member

    async def _claim(self, member: Member, op: Operation) -> bool:
        """Borrow this very member; False if it is no more."""
        if member in self._idle:
            self._idle.remove(member)
            self._busy.add(member)
            member.lend(self.refusals)
            return True
        if member not in self._busy:
            return False
        loop = self._loop
        waiter = Waiter(loop.token())
        member.flushers.append(waiter)
        try:
            op.waits_for(lambda: loop.resume(waiter.token, error=OperationCancelled("cancelled")))
            await loop.suspend(waiter.token)
        except BaseException:
            if waiter.given:
                self._return(member)
            raise
        finally:
            op.clear_wait()
            if waiter in member.flushers:
                member.flushers.remove(waiter)
        return waiter.given

    def _give_back(self, member: Member, *, failed: bool = False) -> None:
        backend = member.backend
        if backend.unflushed and (member.owed or not failed):
            self._wrote_across(member.refusals)
        if backend.broken is not None or self.closed:
            self._drop(member, owes=member.owed if failed else backend.unflushed)
        else:
            backend.flush_under_way = None  # a failure was noted
            self._pass_on(member)

    def _return(self, given: Member | None) -> None:
        """Take back what was given to somebody whose wait ended otherwise: a member, or the place of one."""
        if given is None:
            self._free_place()
        else:
            self._give_back(given, failed=True)

    def _pass_on(self, member: Member) -> None:
        """Give a member to who waits for it."""
        for line in (member.flushers, self._queue):
            waiter = first_alive(line)
            if waiter is not None:
                member.lend(self.refusals)
                waiter.given, waiter.member = True, member
                self._loop.resume(waiter.token)
                return
        self._busy.discard(member)
        member.idle_since = self._loop.now
        self._idle.append(member)
        self._let_share()

    def _free_place(self) -> None:
        """One backend less is open: the first in line may open another."""
        waiter = None if self._open > self._limit else first_alive(self._queue)
        if waiter is None:
            self._open -= 1
        else:
            waiter.given = True
            self._loop.resume(waiter.token)
        self._wake_closing()

    def _drop(self, member: Member, *, owes: bool) -> None:
        """Close a member and forget it. Its debt is noted."""
        self._busy.discard(member)
        self._let_share()
        backend = member.backend
        waiting, member.flushers = member.flushers, deque()
        for waiter in waiting:
            self._loop.resume(waiter.token)
        if backend.broken is not None:
            if owes and not self.closed:
                self._note_loss(backend.broken)
            if isinstance(backend.broken, (RequestError, OSError)):
                self._flush_failed(backend.broken)
        self._loop.spawn(self._close_backend(backend), "close backend")

    async def _close_backend(self, backend: Backend) -> None:
        try:
            await self._loop.worker(backend.close)
        except Overloaded:
            backend.close()
        except Exception:
            log.warning("closing storage failed", exc_info=True)
        finally:
            self._free_place()

    def _shared_broke(self, shared: Shared) -> None:
        error = shared.broken
        if shared is not self.fast:
            return
        self.fast = None
        log.warning("the connection for small requests broke: %s", error)
        if shared.owing and error is not None:
            self._note_loss(error)
        self._free_place()

    def _shared_wrote_across(self) -> None:
        """The fast path acknowledged a write that was asked for before a refusal."""
        if self._refusal is not None:
            self._note_loss(self._refusal)

    # Closing.

    def _end(self) -> None:
        """Serve nobody any more: what storage says from now on is the business of other tickets."""
        self.closed = True
        self._storages.leave(self.identity, self)

    def interrupt(self) -> None:
        """End what waits for storage: the ticket is removed, and what its requests do counts no more."""
        self._end()
        self._cancel.cancel()
        self._close_shared()

    def _close_shared(self) -> None:
        fast = self.fast
        if isinstance(fast, Shared):
            self.fast = None
            fast.close(OperationCancelled("the ticket was removed"))
            self._free_place()

    async def close(self, timeout: float = math.inf, *, grace: float = math.inf) -> bool:
        """Close all backends; those that are lent when they come back, which is waited for.

        Args:
            timeout: Seconds to wait.
            grace: Seconds after which what still waits for storage is interrupted.

        Returns:
            False if some are still open after so many seconds.
        """
        self._end()
        for token in [*(waiter.token for waiter in self._queue), *self._sharers]:
            self._loop.resume(token, error=OperationCancelled("the ticket was removed"))
        self.close_idle()
        until = self._loop.now + timeout
        patience = min(until, self._loop.now + grace)
        while self._open:
            token = self._loop.token()
            self._closing.append(token)
            try:
                await self._loop.suspend(token, max(patience - self._loop.now, 0))
            except DeadlineExpired:
                if patience == until:
                    return False
                self.interrupt()
                patience = until
        return True

    def close_idle(self) -> None:
        """Close what nobody uses and what owes no flush. It is opened again when needed."""
        idle, self._idle = self._idle, []
        for member in idle:
            if member.backend.unflushed and not self.closed:
                self._idle.append(member)
            else:
                self._drop(member, owes=False)
        fast = self.fast
        if isinstance(fast, Shared):
            if self.closed or not (fast.unflushed or fast.in_use):
                self._close_shared()
        elif fast is not None:
            self.fast = None
            self._loop.spawn(self._close_backend(fast.backend), "close backend")

    def close_spare(self, seconds: float) -> None:
        """Close what nobody has used for so many seconds and what owes no flush, but for the last one.

        A server takes so many connections, and others may want them.
        """
        until = self._loop.now - seconds
        for member in list(self._idle):
            if self._established() == 1:
                return
            if member.idle_since <= until and not member.backend.unflushed:
                self._idle.remove(member)
                self._drop(member, owes=False)

    def _wake_closing(self) -> None:
        if not self._open:
            waiting, self._closing = self._closing, []
            for token in waiting:
                self._loop.resume(token)

    def _check_closed(self) -> None:
        if self.closed:
            raise OperationCancelled("the ticket was removed")


class Lease:
    """Backends that one operation borrowed; see `Pool.borrow`."""

    __slots__ = ("_members", "_op", "_pool", "_shares", "_wish")

    def __init__(self, pool: Lending, op: Operation, wish: int) -> None:
        self._pool = pool
        self._op = op
        self._wish = wish
        self._members: list[Member] = []
        self._shares = False

    async def __aenter__(self) -> list[Backend]:
        self._members = await self._pool.lend(self._op, self._wish)
        if not self._members:
            backend = await self._pool.share(self._op)
            self._shares = True
            return [backend]
        return [member.backend for member in self._members]

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.give_back(self._members, failed=self._op if error is not None else None)
        if self._shares:
            self._pool.leave()
        if error is not None and self._pool.storage is not None:
            self._check_smaller(error, self._pool.storage)

    def _check_smaller(self, error: BaseException, storage: Storage) -> None:
        """Tell the client the size where a range was checked against the size that storage had before."""
        fields = [("Content-Range", imagesapi.unsatisfied_range(storage.size))]
        if isinstance(error, OutOfRange):
            raise HttpError(416, f"the storage became smaller: {error}", headers=fields) from error
        if origin_status(error) == 416:
            raise origin_refusal(error, headers=fields) from error


def _look(backend: Backend) -> Storage:
    """Ask for the size, for which the backend of a proxied image asks its origin."""
    size, limit = backend.size, backend.max_size
    grow_to = limit if limit > size else 0
    return Storage(backend.size_teller(), backend.capabilities, grow_to, backend.no_dirty_reason)


def _open(open_backend: Open, opened: list[Backend]) -> None:
    """Open a backend, and leave it where it is found even if nobody waits any more."""
    opened.append(open_backend())
