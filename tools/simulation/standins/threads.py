# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""In place of `threading`: threads that the scheduler runs, and locks that it knows of."""

from __future__ import annotations

from typing import Any, Callable, Iterable, Mapping, Optional

from ..kernel import Process, active
from ..scheduler import Killed, Task
from . import unknown

__getattr__ = unknown("threading")

TIMEOUT_MAX = 1e9


def _until(timeout: Optional[float]) -> Optional[int]:
    return None if timeout is None or timeout < 0 else active().scheduler.now + max(0, int(timeout * 1e6))


class Lock:
    """See threading.Lock. A lock that a killed thread held is free when the thread unwinds."""

    def __init__(self) -> None:
        self._owner: Optional[Task] = None
        self._waiting: list[Task] = []

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; tell if it was free in time."""
        kernel = active()
        scheduler = kernel.scheduler
        if scheduler.current.doomed:
            raise Killed
        if self._owner is not None and not blocking:
            return False
        until = _until(timeout)
        while self._owner is not None:
            self._waiting.append(scheduler.current)
            woken = False
            try:
                woken = scheduler.park(until)
            finally:
                if scheduler.current in self._waiting:
                    self._waiting.remove(scheduler.current)
            if not woken and self._owner is not None:
                return False
        self._owner = scheduler.current
        return True

    def release(self) -> None:
        """Give the lock back."""
        if self._owner is None:
            raise RuntimeError("release unlocked lock")
        self._owner = None
        if self._waiting:
            active().scheduler.wake(self._waiting.pop(0))

    def locked(self) -> bool:
        """Tell if it is taken."""
        return self._owner is not None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class RLock(Lock):
    """See threading.RLock."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock once more."""
        if self._owner is not active().scheduler.current and not super().acquire(blocking, timeout):
            return False
        self._depth += 1
        return True

    def release(self) -> None:
        """Give it back once."""
        self._depth -= 1
        if not self._depth:
            super().release()


class Condition:
    """See threading.Condition."""

    def __init__(self, lock: Optional[Lock] = None) -> None:
        self._lock = RLock() if lock is None else lock
        self._waiting: list[Task] = []
        self.acquire, self.release = self._lock.acquire, self._lock.release

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def wait(self, timeout: Optional[float] = None) -> bool:
        """Wait to be notified; tell if that came in time."""
        scheduler = active().scheduler
        task = scheduler.current
        self._waiting.append(task)
        until = _until(timeout)
        self._lock.release()
        woken = False
        try:
            woken = scheduler.park(until)
        finally:
            if task in self._waiting:
                self._waiting.remove(task)
            if task.doomed:
                # Its `with` gives back what it does not have.
                self._lock = RLock()
                self._lock._owner, self._lock._depth = task, 1
            else:
                self._lock.acquire()
        return woken

    def wait_for(self, predicate: Callable[[], object], timeout: Optional[float] = None) -> object:
        """Wait for something to be true."""
        until = _until(timeout)
        while not (result := predicate()):
            left = None if until is None else (until - active().scheduler.now) / 1e6
            if left is not None and left <= 0:
                break
            self.wait(left)
        return result

    def notify(self, n: int = 1) -> None:
        """Wake waiting threads."""
        for _ in range(min(n, len(self._waiting))):
            active().scheduler.wake(self._waiting.pop(0))

    def notify_all(self) -> None:
        """Wake all waiting threads."""
        self.notify(len(self._waiting))


class Event:
    """See threading.Event."""

    def __init__(self) -> None:
        self._set = False
        self._waiting: list[Task] = []

    def is_set(self) -> bool:
        """Tell if it was set."""
        return self._set

    def set(self) -> None:
        """Wake all that wait."""
        self._set = True
        waiting, self._waiting = self._waiting, []
        for task in waiting:
            active().scheduler.wake(task)

    def clear(self) -> None:
        """Let others wait again."""
        self._set = False

    def wait(self, timeout: Optional[float] = None) -> bool:
        """Wait for it; tell if it is set."""
        scheduler = active().scheduler
        until = _until(timeout)
        while not self._set:
            self._waiting.append(scheduler.current)
            try:
                if not scheduler.park(until) and not self._set:
                    return False
            finally:
                if scheduler.current in self._waiting:
                    self._waiting.remove(scheduler.current)
        return True


class Semaphore:
    """See threading.Semaphore."""

    def __init__(self, value: int = 1) -> None:
        self._value = value
        self._changed = Condition()

    def acquire(self, blocking: bool = True, timeout: Optional[float] = None) -> bool:
        """Take one."""
        with self._changed:
            if not self._value and (not blocking or not self._changed.wait_for(lambda: self._value, timeout)):
                return False
            self._value -= 1
        return True

    def release(self, n: int = 1) -> None:
        """Give some back."""
        with self._changed:
            self._value += n
            self._changed.notify(n)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


BoundedSemaphore = Semaphore


class Thread:
    """See threading.Thread."""

    def __init__(
        self,
        group: None = None,
        target: Optional[Callable[..., object]] = None,
        name: Optional[str] = None,
        args: Iterable[Any] = (),
        kwargs: Optional[Mapping[str, Any]] = None,
        *,
        daemon: Optional[bool] = None,
    ) -> None:
        self.name = name or "thread"
        self.daemon = bool(daemon)
        self._target, self._args, self._kwargs = target, tuple(args), dict(kwargs or {})
        self._task: Optional[Task] = None

    def start(self) -> None:
        """Let it run."""
        kernel = active()
        kernel.step(f"thread {self.name}", 50)
        if kernel.process.no_threads:
            raise RuntimeError("can't start new thread")
        self._task = kernel.spawn(kernel.process, self.name, self.run)

    def run(self) -> None:
        """Do what it was made for."""
        if self._target is not None:
            self._target(*self._args, **self._kwargs)

    def join(self, timeout: Optional[float] = None) -> None:
        """Wait for its end."""
        assert self._task is not None
        active().scheduler.join(self._task, _until(timeout))

    def is_alive(self) -> bool:
        """Tell if it runs."""
        return self._task is not None and not self._task.ended

    @property
    def ident(self) -> Optional[int]:
        """A number of its own."""
        return None if self._task is None else active().process.tasks.index(self._task) + 1


class _Main(Thread):
    """The first thread of a process."""

    def __init__(self, process: Process) -> None:
        super().__init__(name="MainThread")
        self._task = process.tasks[0]


def main_thread() -> Thread:
    """Return the first thread of the process."""
    return _Main(active().process)


def current_thread() -> Thread:
    """Return the running thread."""
    kernel = active()
    thread = Thread(name=kernel.scheduler.current.name.rpartition("/")[2])
    thread._task = kernel.scheduler.current
    return thread


def get_ident() -> int:
    """Return a number of the running thread."""
    kernel = active()
    return kernel.process.tasks.index(kernel.scheduler.current) + 1


get_native_id = get_ident
