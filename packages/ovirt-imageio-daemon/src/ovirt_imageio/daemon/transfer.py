# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""A ticket in use: its running operations, its connections, its validity.

The states of a ticket::

    valid ──time──► expired ──extend──► valid
      │                │
      └────cancel──────┴──► cancelled ──last operation ends──► closed

Expiry refuses new requests; a running one finishes, and extends the ticket. Cancelling
ends running ones at their next chunk; when the last has ended, storage is released.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable
from typing import Any

from ovirt_imageio.common.errors import PeerGone, PeerTimeout, ServerGone

from .errors import DeadlineExpired, HttpError
from .http.connection import Connection
from .http.loop import Loop
from .http.tasks import Token
from .log import one_line
from .operations import READ, WRITE, ZERO, Operation
from .pool import Pool, Storage
from .progress import Progress
from .stats import Meter, Stats
from .tickets import Ticket

_BY_CLIENT = (PeerGone, PeerTimeout, DeadlineExpired, HttpError)

GRACE = 0.25
"""Seconds that storage has for what it works on when a ticket is removed; then the wait for it ends."""

STATES = ("idle", "active", "expired", "cancelling", "cancelled")

# Clients that are told apart in the log; past it nobody reads on.
_MOST_USERS = 100

# Running operations that are shown one by one: a thousand took the loop 10 ms each time somebody looked.
_MOST_SHOWN = 32

log = logging.getLogger(__name__)


class Transfer:
    """The use of one ticket: its requests, storage and state. Loop thread only.

    Args:
        loop: The loop.
        ticket: The grant.
        make_pool: Makes its storage, when the first request comes; the transfer closes it.
        clock: Monotonic seconds.
        stats: Where finished operations are counted.
        on_use: Called when its use begins, the first time and after each `rest`.
        on_move: Called when the ticket becomes valid again, or expires earlier than it was to.

    Attributes:
        ticket: The grant.
        stats: Finished operations.
        expires: When the ticket ceases to be valid, in seconds of the clock.
        cancelled: It serves no requests any more.
        last_error: The last failure and its reason, empty while nothing failed. A client that leaves after
            storage has failed changes nothing.
    """

    def __init__(
        self,
        loop: Loop,
        ticket: Ticket,
        make_pool: Callable[[Ticket], Pool],
        *,
        clock: Callable[[], float],
        stats: Stats | None = None,
        on_use: Callable[[Transfer], None] = lambda transfer: None,
        on_move: Callable[[Transfer], None] = lambda transfer: None,
    ) -> None:
        self.ticket = ticket
        self.stats = stats or Stats()
        self._make_pool = make_pool
        self._pool: Pool | None = None
        self._on_use = on_use
        self._on_move = on_move
        self.cancelled = False
        self._loop = loop
        self._clock = clock
        self.expires = clock() + ticket.timeout
        self._touched = clock()
        self._running: dict[int, Operation] = {}
        self._connections: set[Connection] = set()
        self._progress = Progress()
        # Which operations "transferred" counts: with both granted it would mean nothing.
        one_way = len(set(ticket.ops)) == 1
        self._counted = ((WRITE, ZERO) if ticket.writable else (READ,)) if one_way else ()
        self._waiting: tuple[Token, ...] = ()
        self._users: dict[str, None] = {}
        self._meter: Meter | None = None  # while it is in use
        self.last_error = ""
        self._storage_failed = False
        self._failed = 0.0
        self._started = clock()
        self._expiry_noted = False
        self._opening = 0

    @property
    def pool(self) -> Pool:
        """Its storage. Very many tickets may be there that nobody uses: they have none."""
        if self._pool is None:
            self._pool = self._make_pool(self.ticket)
            self._pool.closed = self.cancelled
        return self._pool

    @property
    def open_count(self) -> int:
        """Connections to storage that it has open."""
        return 0 if self._pool is None else self._pool.open_count

    @property
    def is_untouched(self) -> bool:
        """Whether no request has come for it yet."""
        return self._pool is None and not self._connections

    @property
    def name(self) -> str:
        """Name in the log."""
        return self.ticket.name

    @property
    def active(self) -> bool:
        """Whether an operation runs."""
        return bool(self._running)

    @property
    def running(self) -> list[Operation]:
        """The operations that run, oldest first."""
        return list(self._running.values())

    @property
    def expired(self) -> bool:
        """Whether the time is over."""
        return self._clock() >= self.expires

    @property
    def age(self) -> float:
        """Seconds since the ticket was added."""
        return self._clock() - self._started

    # Validity.

    def check(self, op: str) -> None:
        """Raise unless the ticket allows an operation now.

        Args:
            op: ``"read"`` or ``"write"``.

        Raises:
            HttpError: 403.
        """
        if self.cancelled:
            raise HttpError(403, "the ticket was cancelled")
        if self._clock() >= self.expires:
            raise HttpError(403, "the ticket has expired")
        if not self.ticket.allows(op):
            raise HttpError(403, f"the ticket does not allow to {op}")

    def allows(self, op: str) -> bool:
        """Tell what `check` would not refuse."""
        return not self.cancelled and self._clock() < self.expires and self.ticket.allows(op)

    def extend(self, timeout: int) -> None:
        """Let the ticket be valid for so many seconds from now."""
        self.expires = self._clock() + timeout
        self._expiry_noted = False
        self._on_move(self)
        log.debug("%s: valid for %s s", self.name, timeout)

    def note_expiry(self) -> None:
        """Log that the time is over; to be called once, until it is extended."""
        log.info("%s: expired, the client was last heard of %d s ago", self.name, self.idle_time)
        self._expiry_noted = True

    # Operations.

    async def open_storage(self) -> Storage:
        """Return what the storage is; it is opened by the first request.

        Raises:
            Exception: It cannot be opened; remembered as the last error.
        """
        if self._meter is None:
            self._begin_use()
        self._opening += 1
        try:
            return await self.pool.prepare()
        except Exception as e:
            self._note_error("opening the storage", e)
            raise
        finally:
            self._opening -= 1

    def _note_error(self, what: str, error: BaseException) -> None:
        self.stats.error(error)
        by_client = isinstance(error, _BY_CLIENT) and not isinstance(error, ServerGone)
        if by_client and self._storage_failed:
            return  # the client left because of what storage said
        self._storage_failed = not by_client
        self.last_error = f"{what}: {error_text(error)}"
        self._failed = self._clock()

    def operation(self, kind: str, offset: int, length: int, connection: Connection) -> Operation:
        """Return a running operation; it ends when its context is left.

        Args:
            kind: One of those in `operations`.
            offset: First byte.
            length: Bytes, 0 if that is not known.
            connection: The client's.

        Raises:
            HttpError: 403 if the ticket was cancelled since it was checked.
        """
        if self.cancelled:
            raise HttpError(403, "the ticket was cancelled")
        if self._meter is None:
            self._begin_use()
        if connection not in self._connections:
            self._adopt(connection)
        op = Operation(kind, offset, length, started=self._clock(), on_end=self._ended)
        self._running[op.number] = op
        return op

    def touch(self, connection: Connection) -> None:
        """Note that the client is alive, which extends the ticket as a finished operation does."""
        self._renew()
        if connection not in self._connections:
            self._adopt(connection)

    def _adopt(self, connection: Connection) -> None:
        connection.join(self.ticket.uuid, self._connections.discard)
        connection.inactivity_timeout = self.ticket.longest_silence
        self._connections.add(connection)
        self._greet(connection)

    def _greet(self, connection: Connection) -> None:
        """Log who uses the ticket; once for each client, however many connections it opens."""
        user = f"{connection.service} by {connection.client}"
        if user not in self._users and len(self._users) < _MOST_USERS:
            self._users[user] = None
            log.info("%s: used over %s", self.name, user)

    def _renew(self) -> float:
        """Note a sign of the client: the ticket is valid for its timeout, at least; return the time."""
        now = self._touched = self._clock()
        if now + self.ticket.timeout > self.expires:
            self.expires = now + self.ticket.timeout
            if self._expiry_noted:
                self._expiry_noted = False
                self._on_move(self)
        return now

    def _ended(self, op: Operation, error: BaseException | None) -> None:
        del self._running[op.number]
        now = self._renew()
        if error is not None and not op.cancelled:
            self._note_error(op.describe(), error)
        if log.isEnabledFor(logging.DEBUG):
            outcome = "" if error is None else f", then {error_text(error)}"
            text = "%s: %s: %d bytes in %.4f s%s"
            log.debug(text, self.name, op.describe(), op.done, now - op.started, outcome)
        if op.done and op.kind in self._counted:
            self._progress.add(op.offset, op.done)
        self.stats.record(
            op.kind,
            op.done,
            seconds=now - op.started,
            network=op.network,
            waiting=op.waiting,
            failed=error is not None,
        )
        if self._waiting and not self._running:
            waiting, self._waiting = self._waiting, ()
            for token in waiting:
                self._loop.resume(token)

    # The end.

    def cancel(self) -> None:
        """Refuse further requests, end those that run, close connections: idle ones at once."""
        if not self.cancelled and not self.is_untouched:
            log.info("%s: cancelled, %d operations run", self.name, len(self._running))
        self.cancelled = True
        for op in list(self._running.values()):
            op.cancel()
        registries = {connection.registry for connection in self._connections}
        for connection in self._connections:
            connection.broken = True  # is closed when its request, which may succeed yet, has its answer
        for registry in registries:
            if registry is not None:
                registry.close_idle(self.ticket.uuid)

    async def unused(self, timeout: float, *, settle: bool = False) -> bool:
        """Wait until no operation runs and storage is released; False if that takes longer.

        To be called when the transfer was cancelled. Requests that wait for storage have a moment, unless
        the transfer is settled.

        Args:
            timeout: Seconds.
            settle: Flush what was acknowledged, for the client goes on with another transfer.
        """
        until = self._loop.now + timeout
        grace = math.inf if settle else GRACE
        if not await self._idle_by(min(until, self._loop.now + grace)):
            if not settle and self._pool is not None:
                self._pool.interrupt()
            if not await self._idle_by(until):
                return False
        if self._pool is None:
            return True
        if settle:
            await self.pool.settle()
        return await self.pool.close(max(until - self._loop.now, 0), grace=GRACE)

    async def _idle_by(self, until: float) -> bool:
        """Wait until no operation runs; False if some do at that time."""
        try:
            while self._running:
                token = self._loop.token()
                self._waiting += (token,)
                await self._loop.suspend(token, max(until - self._loop.now, 0))
        except DeadlineExpired:
            return False
        return True

    # Facts about the transfer.

    @property
    def connection_count(self) -> int:
        """Open connections that used this ticket last."""
        return len(self._connections)

    @property
    def transferred(self) -> int | None:
        """Distinct bytes that storage has acknowledged; None if both ways are granted."""
        if not self._counted:
            return None
        return self._progress.total_with(
            (op.offset, op.done) for op in self._running.values() if op.kind in self._counted
        )

    @property
    def idle_time(self) -> int:
        """Whole seconds since the client was last heard of, 0 while an operation runs."""
        return 0 if self._running else int(self._clock() - self._touched)

    @property
    def state(self) -> str:
        """Present state, one of `STATES`."""
        if self.cancelled:
            return "cancelling" if self.active else "cancelled"
        if self.active:
            return "active"
        return "expired" if self.expired else "idle"

    @property
    def reason(self) -> str:
        """Why it is in that state, in a sentence for an operator."""
        if self.cancelled:
            return "waiting for running operations to end" if self.active else "cancelled, waiting to be removed"
        if self.active:
            waiting = self._pool.waiting_count if self._pool is not None else 0
            return f"{waiting} operations wait for a connection to the storage" if waiting else "operations run"
        if self._opening:
            return "opening the storage"
        if self.expired:
            return "the ticket has expired; new requests are refused until it is extended"
        if not self.stats.operations and self.last_error:
            return "no request has succeeded yet"
        if not self.stats.operations:
            return "no request came yet" if not self.connection_count else "connected, no operation yet"
        return f"waiting for the client's next request for {self.idle_time} s"

    @property
    def moved(self) -> int:
        """Bytes that operations have worked on, the running ones included."""
        return self.stats.size + sum(op.done for op in self._running.values())

    def _begin_use(self) -> None:
        self._meter = Meter()
        self._meter.sample(self._clock(), self.moved)
        self._on_use(self)

    def sample(self) -> None:
        """Remember how far it is, for its rate; to be called every second or so while it is in use."""
        if self._meter is not None:
            self._meter.sample(self._clock(), self.moved)

    def rest(self) -> bool:
        """End its use if there is nothing to be seen of it any more, and tell that."""
        if self._running or self._opening or self.open_count or self.rate:
            return False
        self._meter = None
        return True

    @property
    def rate(self) -> int:
        """Bytes a second that its operations worked on, over the last samples."""
        return 0 if self._meter is None else self._meter.rate(self._clock(), self.moved)

    def info(self) -> dict[str, Any]:
        """Return what ``GET /tickets/{id}`` shows; sizes in bytes, times in seconds."""
        document = self.ticket.to_json()
        document.update(
            active=self.active,
            canceled=self.cancelled,
            connections=self.connection_count,
            expires=int(self.expires),
            idle_time=self.idle_time,
            state=self.state,
            reason=self.reason,
            rate=self.rate,
            operations=[self._operation(op) for op in itertools.islice(self._running.values(), _MOST_SHOWN)],
        )
        if self.last_error:
            document["last_error"] = {"age": int(self._clock() - self._failed), "text": self.last_error}
        transferred = self.transferred
        if transferred is not None:
            document["transferred"] = transferred
        return document

    def _operation(self, op: Operation) -> dict[str, Any]:
        return {
            "kind": op.kind,
            "offset": op.offset,
            "length": op.length,
            "done": op.done,
            "age": round(self._clock() - op.started, 3),
        }


def error_text(error: BaseException) -> str:
    """Name an error and its text, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {one_line(text)}" if text else type(error).__name__
