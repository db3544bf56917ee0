# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Ending what waits: for a socket, a program, a name server, or time to pass.

    cancel = Cancel()
    thread one                                 thread two
    upload(…, cancel=cancel)                   cancel.cancel()
      cancel.add(sock.shutdown)                  flag set, shutdown() called
      recv()  ◄──────────── wakes ───────────────┘
      cancel.check() ─► OperationCancelled

A thread that is about to wait first adds the call that wakes it. A call that is added too late is made at
once, so no order of events leaves anything waiting.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import Any, Callable, Iterator, TypeVar

from ovirt_imageio.common.errors import OperationCancelled

log = logging.getLogger(__name__)

Wake = Callable[[], object]
"""Ends a wait. It is called once, in the thread that cancels, and returns at once."""

T = TypeVar("T")


class Cancel:
    """Ends what it was given to, at once and for good.

    Any thread may call any method, and so may the handler of a signal. One object may be given to
    several calls, which all end.
    """

    def __init__(self) -> None:
        # Held while a wait is ended: what it waits for is not released, and its number not used
        # again, meanwhile. Reentrant, for a handler may run in the middle of any method.
        self._lock = threading.RLock()
        self._wakes: dict[object, Wake] = {}
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """`cancel` was called."""
        return self._cancelled

    def cancel(self) -> None:
        """End all that was given this object, and all that will be. Idempotent."""
        with self._lock:
            self._cancelled = True
            while self._wakes:
                _, wake = self._wakes.popitem()
                _try(wake)

    def check(self) -> None:
        """Raise OperationCancelled if `cancel` was called."""
        if self._cancelled:
            raise OperationCancelled("the operation was cancelled")

    def add(self, wake: Wake) -> object:
        """Have something called by `cancel`, or at once if that was before.

        Returns:
            Key for `remove`.
        """
        key = object()
        with self._lock:
            if self._cancelled:
                _try(wake)
            else:
                self._wakes[key] = wake
        return key

    def remove(self, key: object) -> None:
        """Have it called no more. It does not run any more when this returns."""
        with self._lock:
            self._wakes.pop(key, None)

    @contextlib.contextmanager
    def waking(self, wake: Wake) -> Iterator[None]:
        """Have something called by `cancel` inside the context."""
        key = self.add(wake)
        try:
            yield
        finally:
            self.remove(key)

    def wait(self, seconds: float) -> None:
        """Wait, not longer than until `cancel` is called.

        Raises:
            OperationCancelled: It was.
        """
        # An Event or a Condition could be held by this very thread when a signal is handled.
        latch = threading.Lock()
        latch.acquire()
        with self.waking(latch.release):
            latch.acquire(timeout=seconds)
        self.check()

    def call(self, function: Callable[..., T], *args: Any, name: str) -> T:
        """Call what nothing can wake, in a thread that is left behind if need be.

        Where the system starts no thread the call is waited for.

        Args:
            function: It changes nothing, for it may go on when this has returned.
            args: Its arguments.
            name: Of the thread.

        Raises:
            OperationCancelled: `cancel` was called before it ended.
            As function.
        """
        result: list[tuple[T | None, BaseException | None]] = []
        latch = threading.Lock()
        latch.acquire()

        def run() -> None:
            try:
                result.append((function(*args), None))
            except BaseException as e:
                result.append((None, e))
            release()

        def release() -> None:
            with contextlib.suppress(RuntimeError):  # the other has done it
                latch.release()

        try:
            threading.Thread(target=run, name=name, daemon=True).start()
        except RuntimeError:  # the system starts no more threads
            run()
        with self.waking(release):
            latch.acquire()
        if not result:
            self.check()
        value, error = result[0]
        if error is not None:
            raise error
        return value  # type: ignore[return-value]


@contextlib.contextmanager
def below(cancel: Cancel | None) -> Iterator[Cancel]:
    """Make a Cancel that ends a part alone, and is cancelled with the whole.

    Raises:
        OperationCancelled: cancel was called before.
    """
    part = Cancel()
    if cancel is None:
        yield part
        return
    cancel.check()
    with cancel.waking(part.cancel):
        yield part


def _try(wake: Wake) -> None:
    try:
        wake()
    except Exception as e:
        log.debug("Cannot wake what waits: %r", e)
