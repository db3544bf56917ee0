# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Debts of a pool: acknowledged data that no flush covers yet. The bookkeeping; `Pool` does the flushing.

A flush covers everything acknowledged for the ticket. A connection *owes* a flush when a
client was told of a write over it that no flush covers yet. Every connection that owes one
is flushed. A lent connection is waited for if it owed a flush when it was lent. So members
that owe one are flushed before long use.

Where the storage says that one flush covers all connections (`multi_conn`), that holds
for the server that answers the flush. Another connection may have written to one that is
dead by now, and not know it yet. Connections are numbered as they are opened, and a flush
over one covers those opened later:

    opened    A ──────────── B ─────── B writes ──── flush over A
                                                     A lived all the time, so B wrote to
                                                     the server that answers the flush

    opened    B ── B writes ────────── A ─────────── flush over A
                                                     the server may have been restarted in
                                                     between: B is flushed as well

The fast path is the oldest unless it broke, so that mostly one flush is enough.

A backend that makes its connections again by itself tells instead what has acknowledged its
writes, and what has answered the flush (`Backend.life`). Where both are the same, one flush is
enough; where not, each of those that owe one is flushed, and finds out for itself.

Acknowledged data may be lost when a connection that owes a flush breaks. It may be lost, too,
when the server answers a flush with an error while something is owed. No later flush may claim
otherwise: it fails, for as long as the ticket lives. A write that no client was told of is not
owed. An operation that fails with its connection, or whose own flush fails, can be tried again.

A flush that is answered with an error concerns all clients that wrote to the storage, for it may
have dropped any of their writes. All pools of the storage hear of it, see `storages`, whichever
asked for the flush; those that owe something fail from then on. A request that runs meanwhile may
have written before the answer, and be acknowledged after it:

    A  ── writes ─────────────────── is acknowledged ── flush: must fail
    B  ──────────── flush: error ──

So refusals are counted. A connection that wrote across one counts as if it had owed before.
An operation whose own flush succeeds across one fails, and can be tried again.

Two flushes may overlap. The storage refuses one, drops the writes of both, and answers the other with
success. The success may be read first. So each flush waits for those that are under way when it has
succeeded, and looks for refusals then.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Hashable
from functools import partial
from typing import NamedTuple

from ovirt_imageio.common.backends.base import Backend

from .members import Fast, Member, Storage, StorageFailed
from .shared import Shared
from .storages import Storages

log = logging.getLogger(__name__)


class Covered(NamedTuple):
    """Reach of a flush over one connection that begins now: what it covers, and what not.

    Attributes:
        members: Idle members that it covers, and how often they had been lent.
        shared: The fast path if it covers that.
        acknowledged: How many of its writes.
        rest: Members that owe a flush which has to be sent over them.
        rest_shared: The fast path if it needs a flush of its own.
        refusals: How many flushes storage had refused.
        owed: Something was owed before.
        backend: Backend that is flushed; None for the fast path.
    """

    members: list[tuple[Member, int]]
    shared: Shared | None
    acknowledged: int
    rest: list[Member]
    rest_shared: Shared | None
    refusals: int
    owed: bool = True
    backend: Backend | None = None


class Debts:
    """Knows which connections owe a flush, what a flush covers, and if something was lost. Loop thread only.

    Args:
        storages: Where pools of the same storage are known.

    Attributes:
        storage: Properties of the storage, None until it was opened.
        identity: Names the storage that the URL leads to, None until it was opened.
        fast: Serves small requests in the loop, None if nothing does.
        refusals: How many flushes storage has answered with an error, whichever pool asked for them.
        instance: Tells clients whether a flush covers what they wrote: the same for all that it does.
    """

    def __init__(self, storages: Storages | None = None) -> None:
        self.storage: Storage | None = None
        self.identity: Hashable = None
        self.fast: Fast | None = None
        self.refusals = 0
        self._refusal: BaseException | None = None
        self._storages = Storages() if storages is None else storages
        self._idle: list[Member] = []
        self._busy: set[Member] = set()
        self._lost: BaseException | None = None
        self.instance = os.urandom(8).hex()

    def inherit(self, other: Debts) -> None:
        """Take over from a pool of the same storage, which was settled, that acknowledged data may be lost."""
        self._lost = other._lost
        self.instance = other.instance

    def check_lost(self) -> None:
        """Raise if acknowledged data may be lost.

        Raises:
            StorageFailed: It may.
        """
        if self._lost is not None:
            raise StorageFailed(f"acknowledged data may be lost: {self._lost}") from self._lost

    def flush_refused(self, error: BaseException) -> None:
        """Storage answered a flush with an error: it may have dropped what anybody wrote. See `Sharer`."""
        self.refusals += 1
        self._refusal = error
        shared = self.fast if isinstance(self.fast, Shared) else None
        if shared is not None:
            shared.refusals += 1
        if self._owing() or (shared is not None and shared.owing):
            self._note_loss(error)

    def _flush_failed(self, error: BaseException) -> None:
        """Tell all who have this storage open that it answered a flush with an error."""
        self._storages.flush_refused(self.identity, error)

    def _wrote_across(self, refusals: int) -> None:
        """Note a loss if storage refused a flush since there were so many refusals.

        To be called when something was acknowledged that no flush covers.
        """
        if self.refusals != refusals and self._refusal is not None:
            self._note_loss(self._refusal)

    def flushes_under_way(self) -> list[Callable[[], bool]]:
        """Return, for each flush that storage has not answered, what tells if that is still so. See `Sharer`."""
        marks = [(member, member.backend.flush_under_way) for member in self._busy]
        under_way: list[Callable[[], bool]] = [
            partial(self._is_under_way, member, mark) for member, mark in marks if mark is not None
        ]
        shared = self.fast if isinstance(self.fast, Shared) else None
        if shared is not None:
            under_way += [partial(shared.is_under_way, mark) for mark in shared.flushes]
        return under_way

    def _is_under_way(self, member: Member, mark: object) -> bool:
        """Return whether a worker waits for the answer, or its failure was not noted yet."""
        return member in self._busy and member.backend.flush_under_way is mark

    def check_refusals(self, refusals: int) -> None:
        """Raise if storage refused a flush since there were so many refusals.

        Raises:
            StorageFailed: It did; what was written meanwhile may be lost, and can be written again.
        """
        if self.refusals != refusals:
            raise StorageFailed(f"storage failed at a flush meanwhile: {self._refusal}") from self._refusal

    def _owing(self) -> list[Member]:
        """Members that owe a flush."""
        owing = [member for member in self._idle if member.backend.unflushed]
        return owing + [member for member in self._busy if member.owed]

    def _note_loss(self, error: BaseException) -> None:
        if self._lost is None:
            log.error("storage failed before a flush, acknowledged data may be lost: %s", error)
            self._lost = error

    def _covered_over(self, opened: int, has_server: bool, backend: Backend | None) -> Covered:
        """Return what a flush covers that begins now.

        Args:
            opened: Of the connection that it goes over.
            has_server: True if the server may have been restarted since older connections were opened.
            backend: Backend that is flushed; None for the fast path.
        """
        assert self.storage is not None
        tells_life = backend is not None and backend.tells_life
        one_for_all = self.storage.capabilities.multi_conn and not tells_life
        rest = [
            member
            for member in self._owing()
            if member.backend is not backend and not (one_for_all and (member.opened > opened or not has_server))
        ]
        shared = self.fast if isinstance(self.fast, Shared) else None
        covers_shared = shared is not None and (shared.opened == opened or (one_for_all and shared.opened > opened))
        return Covered(
            [(m, m.uses) for m in self._idle if m.backend.unflushed and (tells_life or m not in rest)],
            shared if covers_shared else None,
            shared.acknowledged if shared is not None else 0,
            rest,
            shared if shared is not None and shared.unflushed and not covers_shared else None,
            self.refusals,
            bool(self._owing()) or (shared is not None and shared.owing),
            backend,
        )

    def _note_flushed(self, covered: Covered) -> None:
        """Note that a flush has succeeded; what it did not cover is left in `rest`."""
        backend = covered.backend
        if backend is not None and backend.tells_life:
            covered.rest[:] = [member for member in covered.rest if member.backend.life != backend.life]
        for member, uses in covered.members:
            if member.uses == uses and member not in covered.rest:
                member.backend.unflushed = False
        if covered.shared is not None:
            covered.shared.covered(covered.acknowledged)
