# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The tickets that the host's manager has put in. They live in memory only, on purpose."""

from __future__ import annotations

import errno
import functools
import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator

from ovirt_imageio.common import backends
from ovirt_imageio.common.backends.base import Backend
from ovirt_imageio.common.backends.identity import identity
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.errors import ReadOnlyStorage
from ovirt_imageio.common.units import format_size

from .config import Config
from .errors import HttpError
from .http.loop import Loop
from .http.pace import Pace
from .log import one_line
from .pool import Pool
from .stats import Stats, Totals
from .storages import Storages
from .tickets import Ticket
from .transfer import Transfer
from .watch import Watch

# How long a ticket that replaces another waits for what runs, where remove_timeout is 0.
_REPLACE_TIMEOUT = 60.0

# Errors of open(2) for a file without permission, immutable, on a file system without writing, or executed.
_NOT_FOR_WRITING = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY)

log = logging.getLogger(__name__)

OpenTicket = Callable[[Ticket], Backend]


# Seconds after which connections to storage that nobody uses are given back: opening another costs
# milliseconds, and a server of images takes eight or so.
_SPARE_TIME = 10.0


class Tickets:
    """The store. Loop thread only.

    Args:
        loop: The loop.
        cfg: The configuration.
        totals: Counts the work of all transfers.
        open_backend: Opens the storage of a ticket; called in worker threads.
        clock: Monotonic seconds; the loop's by default.

    Attributes:
        cfg: The configuration; another one holds for tickets that come after it.
    """

    def __init__(
        self,
        loop: Loop,
        cfg: Config,
        *,
        totals: Totals | None = None,
        open_backend: OpenTicket | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._loop = loop
        self.cfg = cfg
        self._totals = totals or Totals()
        self._open_backend = open_backend
        self._clock = clock or (lambda: loop.now)
        self._transfers: dict[str, Transfer] = {}
        self._storages = Storages()
        self._watch = Watch()
        # Each of 100,000 transfers has few objects of its own, or the garbage collector stops the loop for long. These
        # are not methods of the watch, which knows the transfers: a circle would free all of them at once.
        self._make_pool, self._on_use, self._on_move = self._new_pool, self._use, self._move

    def __len__(self) -> int:
        return len(self._transfers)

    def __iter__(self) -> Iterator[Transfer]:
        return iter(list(self._transfers.values()))

    async def add(self, ticket: Ticket) -> None:
        """Take a ticket. One in use under this id is cancelled and replaced.

        Raises:
            HttpError: 409 if what runs with the old one does not end in time.
        """
        timeout = self.cfg.control.remove_timeout or _REPLACE_TIMEOUT
        before: Transfer | None = None
        same = False
        while ticket.uuid in self._transfers:
            before = self._transfers[ticket.uuid]
            same = await self._has_storage_of(ticket, before)
            await self._remove(before, timeout, "replaced by a new ticket", settle=same)
        self.insert(ticket)
        if before is not None and same:
            # The client need not know that its ticket is another one now.
            self._transfers[ticket.uuid].pool.inherit(before.pool)

    async def _has_storage_of(self, ticket: Ticket, before: Transfer) -> bool:
        """Tell whether a ticket leads to the storage of another, however its URL is spelled."""
        if before.is_untouched:
            return False
        if before.ticket.url == ticket.url:
            return True
        if before.pool.storage is None:
            return False  # nothing was written
        return before.pool.identity == await self._loop.worker(identity, ticket.url)

    def insert(self, ticket: Ticket) -> None:
        """Take a ticket that is new; `add` also replaces one.

        Raises:
            ValueError: There is one with this id.
        """
        if ticket.uuid in self._transfers:
            raise ValueError(f"there is a ticket {ticket.uuid!r} already")
        transfer = Transfer(
            self._loop,
            ticket,
            self._make_pool,
            clock=self._clock,
            stats=Stats(self._totals.operations),
            on_use=self._on_use,
            on_move=self._on_move,
        )
        self._transfers[ticket.uuid] = transfer
        self._watch.add(transfer)
        log.info(
            "%s: added, size=%d ops=%s timeout=%d url=%s",
            transfer.name,
            ticket.size,
            ",".join(ticket.ops),
            ticket.timeout,
            _shown(ticket.url),
        )

    def _use(self, transfer: Transfer) -> None:
        self._watch.use(transfer)

    def _move(self, transfer: Transfer) -> None:
        self._watch.move(transfer)

    def _new_pool(self, ticket: Ticket) -> Pool:
        daemon = self.cfg.daemon
        cancel = Cancel()
        opener = self._open_backend
        return Pool(
            self._loop,
            functools.partial(open_storage, self.cfg, ticket, cancel) if opener is None else lambda: opener(ticket),
            limit=daemon.max_connections,
            timeout=self.cfg.backend_nbd.timeout,
            cancel=cancel,
            fast=daemon.loop_nbd or not ticket.url.startswith("nbd"),
            sparse=ticket.sparse,
            on_full=functools.partial(self._make_room, ticket),
            identify=functools.partial(identity, ticket.url),
            storages=self._storages,
        )

    def first(self, limit: int) -> list[Transfer]:
        """Return so many transfers in the order in which they came; if there are more, those in use first."""
        if len(self._transfers) <= limit:
            return list(self._transfers.values())
        chosen = dict.fromkeys(itertools.islice(self._watch.in_use, limit))
        for transfer in self._transfers.values():
            if len(chosen) == limit:
                break
            chosen[transfer] = None
        return list(chosen)

    def states(self) -> Counter[str]:
        """Count the transfers by state, however many they are."""
        return self._watch.count(len(self._transfers))

    def get(self, ticket_id: str) -> Transfer:
        """Return the transfer of a ticket.

        Raises:
            HttpError: 404 if there is none.
        """
        transfer = self._transfers.get(ticket_id)
        if transfer is None:
            raise HttpError(404, f"there is no ticket {ticket_id[:100]!r}")
        return transfer

    def authorize(self, ticket_id: str, op: str) -> Transfer:
        """Return the transfer of a ticket that allows an operation now.

        Args:
            ticket_id: The id.
            op: ``"read"`` or ``"write"``.

        Raises:
            HttpError: 403 if there is no such ticket, if it has expired or was cancelled,
                or if it does not allow that.
        """
        transfer = self._transfers.get(ticket_id)
        if transfer is None:
            raise HttpError(403, f"there is no ticket {ticket_id[:100]!r}")
        transfer.check(op)
        return transfer

    def grants(self, transfer: Transfer, op: str) -> bool:
        """Tell whether a transfer is still that of its ticket, which allows an operation now."""
        return self._transfers.get(transfer.ticket.uuid) is transfer and transfer.allows(op)

    def extend(self, ticket_id: str, timeout: int) -> None:
        """Let a ticket be valid for so many seconds from now.

        Raises:
            HttpError: 404 if there is none.
        """
        self.get(ticket_id).extend(timeout)

    async def remove(self, ticket_id: str) -> None:
        """Cancel a ticket and drop it when it is unused. It need not exist.

        With ``control.remove_timeout`` of 0 a ticket in use is only cancelled: it goes when
        it is removed again, later.

        Raises:
            HttpError: 409 if it is still in use after ``control.remove_timeout``.
        """
        transfer = self._transfers.get(ticket_id)
        if transfer is None:
            return
        timeout = self.cfg.control.remove_timeout
        if timeout or not transfer.active:
            await self._remove(transfer, timeout or _REPLACE_TIMEOUT, "removed")
            return
        self._cancel(transfer)
        self._loop.spawn(transfer.unused(float("inf")), "release storage")

    async def clear(self, reason: str = "removed with all others") -> None:
        """Cancel and drop all tickets, waiting for what runs up to the remove timeout.

        At once no request finds its ticket any more; what runs is cancelled first. Others have a turn meanwhile.
        """
        dropped, watch = self._transfers, self._watch
        self._transfers, self._watch = {}, Watch()
        used = list(watch.in_use)
        until = self._loop.now + self.cfg.control.remove_timeout
        pace = Pace(self._loop)
        for transfer in used:
            del dropped[transfer.ticket.uuid]
            transfer.cancel()
            await pace.step()
        used += await self._drop_untouched(dropped, watch, reason)
        await self._drop_used(used, reason, until)

    async def _drop_untouched(self, dropped: dict[str, Transfer], watch: Watch, reason: str) -> list[Transfer]:
        """Cancel tickets; return those that a client has used. The others have one line in the log together."""
        pace, used, untouched = Pace(self._loop), [], 0
        while dropped:  # one by one, for to free 100,000 at once takes a second
            _, transfer = dropped.popitem()
            watch.remove(transfer)
            transfer.cancel()
            if transfer.is_untouched:
                untouched += 1
            else:
                used.append(transfer)
            await pace.step()
        if untouched:
            log.info("Tickets without any request, %d, were %s", untouched, reason)
        return used

    async def _drop_used(self, used: list[Transfer], reason: str, until: float) -> None:
        """Drop tickets side by side, for each waits a moment for its storage before it ends that wait."""
        if not used:
            return
        pace, token, left = Pace(self._loop), self._loop.token(), len(used)

        def ended(task: object) -> None:
            nonlocal left
            left -= 1
            if not left:
                self._loop.resume(token)

        for transfer in used:
            self._loop.spawn(self._drop(transfer, reason, until), "drop ticket").on_done(ended)
            await pace.step()
        await self._loop.suspend(token)

    async def _drop(self, transfer: Transfer, reason: str, until: float) -> None:
        if not await transfer.unused(max(until - self._loop.now, 0)):
            log.warning("%s: dropped while in use", transfer.name)
            self._loop.spawn(transfer.unused(float("inf")), "release storage")
        self._log_end(transfer, reason)

    async def close(self) -> None:
        """Cancel and drop all tickets because the daemon stops."""
        await self.clear("ended because the daemon stops")

    async def sweep(self) -> None:
        """Release storage that nobody uses, note how far transfers are, and whose time is over."""
        pace = Pace(self._loop)
        for transfer in self._watch.take_expired(self._clock()):
            transfer.note_expiry()
            await pace.step()
        for transfer in list(self._watch.in_use):
            self._look_at(transfer)
            await pace.step()

    def _look_at(self, transfer: Transfer) -> None:
        transfer.sample()
        if transfer.open_count:
            transfer.pool.flush_idle(_SPARE_TIME)
            if transfer.expired and not transfer.active:
                transfer.pool.close_idle()
            elif transfer.open_count > 1:
                transfer.pool.close_spare(_SPARE_TIME)
        if transfer.rest():
            self._watch.in_use.pop(transfer, None)

    def _make_room(self, ticket: Ticket) -> None:
        """Let other transfers of the same storage give back connections that they do not use."""
        wanting = self._transfers.get(ticket.uuid)
        if wanting is None:
            return
        for transfer in self._watch.in_use:
            if transfer is not wanting and transfer.open_count and transfer.pool.identity == wanting.pool.identity:
                transfer.pool.close_spare(0)

    async def _remove(self, transfer: Transfer, timeout: float, reason: str, *, settle: bool = False) -> None:
        self._cancel(transfer)
        if not await transfer.unused(timeout, settle=settle):
            raise HttpError(409, f"the ticket is still in use after {timeout:g} seconds")
        if self._transfers.get(transfer.ticket.uuid) is transfer:
            del self._transfers[transfer.ticket.uuid]
            self._watch.remove(transfer)
            self._log_end(transfer, reason)

    def _cancel(self, transfer: Transfer) -> None:
        transfer.cancel()
        self._watch.cancel(transfer)

    def _log_end(self, transfer: Transfer, reason: str) -> None:
        error = f", last error: {transfer.last_error}" if transfer.last_error else ""
        log.info("%s: %s after %.1f s, %s%s", transfer.name, reason, transfer.age, transfer.stats.summary(), error)


def open_storage(cfg: Config, ticket: Ticket, cancel: Cancel | None = None) -> Backend:
    """Open a backend of a ticket; for reading, where storage can only be read. Any thread.

    Args:
        cfg: Limits and certificates.
        ticket: The grant.
        cancel: Ends what waits for a server of the storage.

    Raises:
        Exception: See `ovirt_imageio.common.backends.open`.
    """
    began = time.monotonic()
    try:
        backend = _open(cfg, ticket, ticket.mode, cancel)
    except Exception as e:
        if not ticket.writable or not _is_read_only(e):
            raise
        backend = _open(cfg, ticket, "r", cancel)
    if log.isEnabledFor(logging.DEBUG):
        seconds = time.monotonic() - began
        log.debug("%s: opened %s in %.4f s: %s", ticket.name, _shown(ticket.url), seconds, _told(backend))
    return backend


def _open(cfg: Config, ticket: Ticket, mode: str, cancel: Cancel | None) -> Backend:
    return backends.open(
        ticket.url,
        mode=mode,
        sparse=ticket.sparse,
        dirty=ticket.dirty,
        bitmap=ticket.bitmap,
        cafile=cfg.backend_http.ca_file or cfg.tls.ca_file or None,
        connections=cfg.daemon.max_connections,
        timeout=cfg.backend_nbd.timeout,
        large_read=cfg.backend_nbd.large_read,
        cancel=cancel,
        grow_to=ticket.size if mode == "r+" else 0,
    )


def _is_read_only(error: Exception) -> bool:
    """Tell whether storage that could not be opened for writing may be opened for reading: open(2)."""
    return isinstance(error, ReadOnlyStorage) or (isinstance(error, OSError) and error.errno in _NOT_FOR_WRITING)


def _told(backend: Backend) -> str:
    """Say what a backend can do: `10.0 GiB, 8 readers, 8 writers`."""
    able = backend.capabilities
    writers = "read-only" if able.read_only else f"{able.max_writers} writer{'s'[: able.max_writers != 1]}"
    return f"{format_size(backend.size)}, {able.max_readers} reader{'s'[: able.max_readers != 1]}, {writers}"


def _shown(url: str) -> str:
    """A URL for the log: that of a proxied image ends with the id of another ticket."""
    if url[:4].lower() == "http":
        start, slash, last = url.rpartition("/")
        url = f"{start}{slash}{last[:8]}"
    return one_line(url)
