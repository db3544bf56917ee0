# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Parts of a pool: its members, and places in its lines."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Union

from ovirt_imageio.common.backends.base import Backend, Capabilities
from ovirt_imageio.common.errors import ImageioError

from .http.tasks import Token
from .shared import CachedFile, Shared, SharedBackend

Fast = Union[Shared, CachedFile]
Open = Callable[[], Backend]


class StorageFailed(ImageioError):
    """Storage broke off while it owed an answer, lost what it had acknowledged, or became smaller."""


class Storage(NamedTuple):
    """Properties of the storage, known since it was opened.

    Attributes:
        sizes: Tells how many bytes it has now.
        capabilities: Of its backend.
        grow_to: Bytes up to which writing may make it grow; 0 if it does not grow.
        no_dirty_reason: Why there are no dirty extents, in words, if there are none.
    """

    sizes: Callable[[], int]
    capabilities: Capabilities
    grow_to: int = 0
    no_dirty_reason: str = ""

    @property
    def size(self) -> int:
        """Bytes that it has now."""
        return self.sizes()

    @property
    def may_grow(self) -> bool:
        """Whether it may have more bytes than `size` tells: others write to it as well."""
        return self.capabilities.resizable or self.grow_to > 0

    @property
    def max_size(self) -> int:
        """Bytes up to which it may be written."""
        return max(self.sizes(), self.grow_to)


class Member:
    """A backend of the pool.

    Attributes:
        backend: The backend.
        opened: Place in the order in which connections were opened.
        uses: How often it was lent: tells whether it was used since.
        owed: It owed a flush when it was lent.
        refusals: How many flushes storage had refused when it was lent.
        idle_since: When it was given back last, by the loop's clock.
        flushers: Flushes that wait for it.
    """

    __slots__ = ("backend", "flushers", "idle_since", "opened", "owed", "refusals", "uses")

    def __init__(self, backend: Backend, opened: int = 0) -> None:
        self.backend = backend
        self.opened = opened
        self.uses = 0
        self.owed = False
        self.refusals = 0
        self.idle_since = 0.0
        self.flushers: deque[Waiter] = deque()

    def lend(self, refusals: int) -> None:
        """Take note that it is lent.

        Args:
            refusals: How many flushes storage has refused.
        """
        self.uses += 1
        self.owed = self.backend.unflushed
        self.refusals = refusals


class Waiter:
    """A place in a line. A member that it was given is kept here, lest it gets lost with its task."""

    __slots__ = ("given", "member", "token")

    def __init__(self, token: Token) -> None:
        self.token = token
        self.given = False
        self.member: Member | None = None  # None: the right to open one


def has_server(backend: Backend) -> bool:
    """Tell whether a backend is a connection to a server, which may be restarted."""
    return hasattr(backend, "stale") or isinstance(backend, SharedBackend)


def first_alive(line: deque[Waiter]) -> Waiter | None:
    """Take the first in line who still waits."""
    while line:
        waiter = line.popleft()
        if not waiter.token.done:
            return waiter
    return None
