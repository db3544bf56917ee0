# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""How long a transfer waits, how often it tries again, and what ends it before.

The three are the caller's, and travel together to all that waits: connecting, workers, checks.
"""

from __future__ import annotations

import contextlib
import math
import threading
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator, TypeVar

from ovirt_imageio.client.executor import Retry, persist
from ovirt_imageio.common import defaults
from ovirt_imageio.common.cancel import Cancel, below

FIRST_CONTACT = Retry(attempts=4)
"""Given up after half a second: a wrong address should be told at once."""

T = TypeVar("T")


class Tally:
    """Counts, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0

    def __call__(self) -> None:
        """Count one more."""
        with self._lock:
            self.count += 1


@dataclass(frozen=True)
class Patience:
    """The silence and failures that a transfer takes from its server.

    Attributes:
        timeout: Seconds of silence after which an attempt has failed; None leaves them to the kind
            of request.
        retry: How to take failures that pass.
        first_contact: The same before the server has answered once.
        cancel: Ends everything that waits.
        retried: Told of each attempt after the first, and knows how many there were.
    """

    timeout: float | None = None
    retry: Retry = field(default_factory=Retry)
    first_contact: Retry = FIRST_CONTACT
    cancel: Cancel = field(default_factory=Cancel)
    retried: Tally = field(default_factory=Tally)

    def persist(self, call: Callable[[], T], what: str, *, retry: Retry | None = None) -> T:
        """Call something until it does not fail for a passing reason.

        Args:
            call: Can be repeated.
            what: It does, for the log.
            retry: Other than for all else.

        Raises:
            OperationCancelled: cancel said so.
            Exception: The last failure of call, as it raised it.
        """
        return persist(call, what, retry=retry or self.retry, pause=self.cancel.wait, on_retry=self.retried)

    def manner(self) -> dict[str, Any]:
        """Return how workers take failures, as `Executor` takes it."""
        return {"retry": self.retry, "cancel": self.cancel, "on_retry": self.retried}

    def times(self) -> dict[str, Any]:
        """Return the time limits, as `HttpBackend` takes them."""
        if self.timeout is None:
            return {}
        connect = min(self.timeout, defaults.CONNECT_TIMEOUT)
        return {"timeout": self.timeout, "strict": True, "connect_timeout": connect}


@contextlib.contextmanager
def patience(timeout: float | None, retries: int | None, cancel: Cancel | None) -> Iterator[Patience]:
    """Begin a transfer that is cancelled by cancel, and by the first failure of any of its parts.

    Args:
        timeout: Seconds; None means the defaults.
        retries: Attempts after the first; None means the defaults.
        cancel: The caller's; it is not cancelled by what happens inside.

    Raises:
        ValueError: A number makes no sense.
        TypeError: cancel is something else.
        OperationCancelled: cancel said so before.
    """
    check_timeout(timeout)
    check_cancel(cancel)
    if retries is not None and (not isinstance(retries, int) or retries < 0):
        raise ValueError(f"invalid retries {retries!r}: expected 0 or more, or None")
    told = None if retries is None else Retry(retries + 1)
    with below(cancel) as part:
        yield Patience(timeout, told or Retry(), told or FIRST_CONTACT, part)


def check_timeout(timeout: float | None) -> None:
    """Refuse what is no time limit.

    Raises:
        ValueError: It names the value.
    """
    if timeout is not None and not (isinstance(timeout, (int, float)) and 0 < timeout < math.inf):
        raise ValueError(f"invalid timeout {timeout!r}: expected seconds, more than 0, or None")


def check_cancel(cancel: Cancel | None) -> None:
    """Refuse what cannot cancel, such as an Event.

    Raises:
        TypeError: It names the value.
    """
    if cancel is not None and not isinstance(cancel, Cancel):
        raise TypeError(f"invalid cancel {cancel!r}: expected a client.Cancel, or None")
