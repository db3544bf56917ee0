# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""A scheduler for coroutines that wait for a socket, a token, a deadline or a worker.

Theory of operation
-------------------

One thread runs the loop. A *task* is a coroutine that the loop steps. At any moment it
is ready or it waits for exactly one thing, and that thing alone can resume it:

- a descriptor: the task stands in a table under this descriptor. The event, the deadline
  or the cancellation that takes it out is the one that resumes it.
- a token: it is made for one wait and dies with it. A reply that comes after the wait
  has ended meets a dead token and is dropped: it can never resume another wait.

Descriptors stay registered with epoll while their connection lives, so that a request
costs no epoll_ctl(2): an event that nobody waits for unregisters its descriptor. Events
are level-triggered, hence nothing is lost; a task resumed by an event may still find
nothing to read, and waits again.

Tasks whose work may wait call `turn`. The loop resumes one of them in each of its turns, so a
flood delays itself. A client with a ticket, or its storage, that was answered or asked in the
same turn is let go first, too. The kernel often wakes it on the processor that the loop uses,
and there it waits for the loop, even beside an idle one. TLS handshakes, a millisecond of
arithmetic each, are done by two threads of their own, in order of arrival.

Deadlines are in a heap that nearly all waits leave alone, see deadlines.py.

When such a client or storage is expected soon, the loop looks for events again for about 100 µs
before it sleeps. Being woken costs more than a small request. Not when it has just handed a call to a worker,
which would wait as long for the interpreter's lock. Worker threads and signals wake it
through a pipe, and only while it sleeps.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import math
import os
import select
import signal
import threading
import time
import types
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeVar

from ovirt_imageio.common import defaults

from ..errors import DeadlineExpired, Overloaded
from .deadlines import Deadlines
from .tasks import Task, TaskCancelled, Token
from .workers import Job, Workers

__all__ = ["Loop", "Task", "TaskCancelled", "Token"]

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
_BROKEN = select.EPOLLHUP | select.EPOLLERR
_FOR_READER = READ | _BROKEN
_FOR_WRITER = WRITE | _BROKEN
_MAX_EVENTS = 256
_CRYPTO_THREADS = 2  # a flood of handshakes takes no more of the machine
_CRYPTO_QUEUE = 1 << 20  # bounded by the number of connections
_WAY = 50e-6  # seconds that those we expect have before we go on with what may wait
_MOST_SELECT = 1024  # FD_SETSIZE, see select(2)
_LONGEST_SLEEP = 60.0  # a bound on what a clock that was set back can do

T = TypeVar("T")

log = logging.getLogger(__name__)


class Loop:
    """One thread's scheduler.

    Args:
        max_workers: Most worker threads at a time.
        worker_nice: By how much workers are nicer than the loop (see nice(2)).
        look: Seconds to look for events before sleeping.
        max_queue: Most calls that wait for a worker; further ones are refused.
        queue_timeout: Seconds that a call waits for a worker before it is refused.

    Attributes:
        now: Seconds of the monotonic clock when the turn began.
        expects: A client with a ticket was answered, or its storage asked, and will go on soon; set by
            connections and storage.

    Unless a method says otherwise it belongs to the thread that runs the loop.
    """

    def __init__(
        self,
        max_workers: int = defaults.WORKERS,
        worker_nice: int = defaults.WORKER_NICE,
        look: float = defaults.LOOK,
        *,
        max_queue: int = 1024,
        queue_timeout: float = 30.0,
    ) -> None:
        self.now = time.monotonic()
        self.expects = False
        self._look = look
        self._queue_timeout = queue_timeout
        self._epoll = select.epoll()
        self._masks: dict[int, int] = {}
        self._readers: dict[int, Task] = {}
        self._writers: dict[int, Task] = {}
        self._forgotten: set[int] = set()  # in this turn: their events are stale
        # (task, value, error), or (None, call, args): other threads append as well.
        self._ready: deque[tuple[Any, Any, Any]] = deque()
        self._later: deque[Task] = deque()  # they gave others a turn
        self._looked = False  # for events, since the first of them did
        self._handed = False  # a call to a worker, in this turn
        self._before_wait: list[Callable[[], None]] = []
        self._deadlines = Deadlines()
        self._tasks: set[Task] = set()
        self._current: Task | None = None
        self._sleeping = False
        self._stopping = False
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._epoll.register(self._wake_read, READ)
        self._workers = Workers(
            self.call_soon_threadsafe,
            limit=max_workers,
            nice=worker_nice,
            max_queue=max_queue,
        )
        self._crypto = Workers(
            self.call_soon_threadsafe,
            limit=_CRYPTO_THREADS,
            nice=worker_nice,
            max_queue=_CRYPTO_QUEUE,
            name="crypto",
        )

    @property
    def workers(self) -> Workers:
        """The worker threads, to look at their numbers."""
        return self._workers

    # Awaited by coroutines.

    def readable(self, fd: int, timeout: float = math.inf) -> Awaitable[None]:
        """Wait until fd may be read: data, the end of the stream or an error.

        Args:
            fd: Descriptor of a socket or pipe in non-blocking mode. A read that follows
                may still find nothing.
            timeout: Seconds.

        Raises:
            DeadlineExpired: Nothing came in time.
        """
        wait: Any = self._wait_fd(self._readers, fd, READ, timeout)
        return wait  # type: ignore[no-any-return]

    def writable(self, fd: int, timeout: float = math.inf) -> Awaitable[None]:
        """Wait until fd may be written; as `readable`."""
        wait: Any = self._wait_fd(self._writers, fd, WRITE, timeout)
        return wait  # type: ignore[no-any-return]

    def token(self) -> Token:
        """Return a new token for one `suspend`."""
        return Token()

    @types.coroutine
    def suspend(self, token: Token, timeout: float = math.inf) -> Generator[Any, Any, Any]:
        """Wait until somebody resumes the token, and return the value given.

        A token that was resumed before returns at once.

        Raises:
            DeadlineExpired: It was not resumed in time. The token is dead then.
            BaseException: Error that `resume` was given.
        """
        if token.done:
            if token.error is not None:
                raise token.error
            return token.value
        task = token.task = self._running()
        task.wait = token
        if timeout != math.inf:
            self._deadlines.set(task, self.now + timeout)
        return (yield)

    async def sleep(self, seconds: float) -> None:
        """Wait for so many seconds."""
        with contextlib.suppress(DeadlineExpired):
            await self.suspend(Token(), seconds)

    @types.coroutine
    def turn(self) -> Generator[Any, Any, None]:
        """Let others have a turn: what is ready runs, and events are looked for.

        Of the tasks that wait so, one goes on in each turn of the loop, after the events that
        came until then.
        """
        self._later.append(self._running())
        yield

    async def worker(self, call: Callable[..., T], *args: Any, again: bool = False) -> T:
        """Run ``call(*args)`` in a worker thread and return what it returns.

        The task must not touch meanwhile what it gave to the call. A call that has
        begun is waited for, even if the task is cancelled.

        Args:
            call: Function for a worker.
            args: Its arguments.
            again: The call goes on with what a worker began. It is the next to be served, however
                long that takes, for its client can no longer be told to try later.

        Raises:
            Overloaded: No worker was free in time, or too many calls wait for one. The
                call has not run and never will.
            Exception: Error that the call raised.
        """
        timeout = math.inf if again else self._queue_timeout
        return await self._work(self._workers, timeout, call, args, first=again)

    async def crypto(self, call: Callable[..., T], *args: Any, timeout: float) -> T:
        """Run ``call(*args)``, which takes a while but waits for nothing, beside the loop.

        As `worker`, in a queue of its own. Where the system starts no thread for that, it is run here. A client
        that is greeted late is better off than one that is cut off without an answer.

        Args:
            call: Function to run.
            args: Its arguments.
            timeout: Seconds that the call may wait for its turn.

        Raises:
            Overloaded: Its turn did not come in time.
            Exception: Error that the call raised.
        """
        try:
            return await self._work(self._crypto, timeout, call, args)
        except Overloaded:
            if self._crypto.threads:
                raise
        await self.turn()
        return call(*args)

    async def _work(
        self, workers: Workers, timeout: float, call: Callable[..., T], args: tuple[Any, ...], *, first: bool = False
    ) -> T:
        token = Token()
        job = Job(call, args, functools.partial(self.resume, token))
        job.on_start = functools.partial(self._shield, token)
        workers.submit(job, first=first)
        self._handed = True
        try:
            result: T = await self.suspend(token, math.inf if job.started else timeout)
        except DeadlineExpired:
            if job.started:
                raise  # the call's own
            workers.withdraw(job)
            raise Overloaded from None
        except TaskCancelled:
            workers.withdraw(job)
            raise
        return result

    # Called by any code in the loop.

    def resume(self, token: Token, value: Any = None, error: BaseException | None = None) -> None:
        """Let the task that waits for the token go on, with a value or an error.

        Ignored if the token is dead: resumed before, expired or cancelled.
        """
        if token.done:
            return
        token.done = True
        task = token.task
        if task is None:
            token.value, token.error = value, error
            return
        task.wait = None
        task.deadline = math.inf
        self._ready.append((task, value, error))

    def spawn(self, coro: Coroutine[Any, Any, Any], name: str = "") -> Task:
        """Run the coroutine as a task of its own, from the next turn on.

        A task that ends with an exception is logged: nobody waits for its result.
        """
        task = Task(self, coro, name or getattr(coro, "__qualname__", ""))
        self._tasks.add(task)
        self._ready.append((task, None, None))
        return task

    def before_wait(self, call: Callable[[], None]) -> None:
        """Call once, when everything that is ready has run: the place to batch output."""
        self._before_wait.append(call)

    def forget(self, fd: int) -> None:
        """Drop everything about a descriptor; to be called before it is closed.

        A task that waits for it fails with ``OSError`` (EBADF).
        """
        self._forgotten.add(fd)
        self._set_mask(fd, 0)
        for table in (self._readers, self._writers):
            task = table.pop(fd, None)
            if task is not None:
                task.wait = None
                task.deadline = math.inf
                error = OSError(errno.EBADF, f"descriptor {fd} was closed while waited for")
                self._ready.append((task, None, error))

    # Called by any thread, and by signal handlers.

    def call_soon_threadsafe(self, call: Callable[..., object], *args: Any) -> None:
        """Call in the loop's thread, soon. Any thread."""
        self._ready.append((None, call, args))
        if self._sleeping:
            self._wake()

    def stop(self) -> None:
        """Make `run` return after the current turn. Any thread, signal handlers too."""
        self._stopping = True
        self._wake()

    # The loop itself.

    def run(self) -> None:
        """Run until `stop` is called. Signals wake it if this is the main thread."""
        self._stopping = False
        watching = threading.current_thread() is threading.main_thread()
        if watching:
            previous = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        try:
            while not self._stopping:
                self._turn()
        finally:
            if watching:
                signal.set_wakeup_fd(previous)

    def close(self, timeout: float = 5.0) -> None:
        """Cancel the tasks, end the workers and close the loop's descriptors.

        To be called when `run` has returned. A task that waits for a worker's call is
        given up after so many seconds.
        """
        for task in list(self._tasks):
            task.cancel()
        self._ready.extend((task, None, None) for task in self._later)
        self._later.clear()
        self._looked = False
        self._run_ready()
        until = time.monotonic() + timeout
        while self._workers.busy + self._crypto.busy and time.monotonic() < until:
            self._epoll.poll(0.01)
            self._run_ready()
        for task in list(self._tasks):
            task.coro.close()
        self._tasks.clear()
        self._workers.close(timeout)
        self._crypto.close(timeout)
        self._epoll.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _turn(self) -> None:
        self._run_ready()
        if self._looked:
            self._step(self._later.popleft(), None, None)
        if self._before_wait:
            calls, self._before_wait = self._before_wait, []
            for call in calls:
                self._call(call, ())
        self._looked = bool(self._later)
        events = self._poll()
        self.now = time.monotonic()
        self._forgotten.clear()
        for fd, mask in events:
            self._event(fd, mask)
        if self._deadlines.next <= self.now:
            for task in self._deadlines.due(self.now):
                self._drop_wait(task)
                self._ready.append((task, None, DeadlineExpired()))

    def _run_ready(self) -> None:
        """Run what is ready now; what becomes ready meanwhile has its turn after the events."""
        ready = self._ready
        for _ in range(len(ready)):
            task, value, error = ready.popleft()
            if task is not None:
                self._step(task, value, error)
            else:
                self._call(value, error)
        # The traceback of an error keeps this frame and that of `_step`: what they hold would live on.
        task = value = error = None

    def _poll(self) -> list[tuple[int, int]]:
        poll = self._epoll.poll
        if self._ready:
            return poll(0, _MAX_EVENTS)
        if self._later:
            if self.expects:
                self._make_way()
            return poll(0, _MAX_EVENTS)
        looks = self.expects and not self._handed
        self.expects = self._handed = False
        if not looks:
            return self._sleep(time.monotonic())
        until = time.monotonic() + self._look
        while True:
            events = poll(0, _MAX_EVENTS)
            if events or self._ready:
                return events
            now = time.monotonic()
            if now >= until:
                return self._sleep(now)

    def _make_way(self) -> None:
        """Leave the processor to whom we expect to go on, until the next event or for a moment.

        A short sleep, and no sched_yield(2): where others want the processor all the time, that gave
        it to them for milliseconds.
        """
        self.expects = False
        if self._epoll.fileno() >= _MOST_SELECT:
            return
        self._sleeping = True
        try:
            if not self._ready:
                select.select([self._epoll], [], [], _WAY)
        finally:
            self._sleeping = False

    def _sleep(self, now: float) -> list[tuple[int, int]]:
        # Other threads append to _ready, then look at _sleeping; this is the reverse order.
        self._sleeping = True
        try:
            timeout = min(max(self._deadlines.next - now, 0), _LONGEST_SLEEP)
            if self._ready or self._stopping:
                timeout = 0
            return self._epoll.poll(timeout, _MAX_EVENTS)
        finally:
            self._sleeping = False

    def _event(self, fd: int, mask: int) -> None:
        if fd in self._forgotten:
            return
        if fd == self._wake_read:
            with contextlib.suppress(BlockingIOError):
                os.read(fd, 4096)
            return
        unwanted = 0
        if mask & _FOR_READER:
            task = self._readers.pop(fd, None)
            if task is not None:
                self._step(task, None, None)
            else:
                unwanted = READ
        if mask & _FOR_WRITER and fd not in self._forgotten:
            task = self._writers.pop(fd, None)
            if task is not None:
                self._step(task, None, None)
            else:
                unwanted |= WRITE
        if unwanted:
            self._unregister(fd, unwanted)

    def _unregister(self, fd: int, unwanted: int) -> None:
        """Stop events that nobody waits for; a task stepped meanwhile may wait by now."""
        if fd in self._readers:
            unwanted &= ~READ
        if fd in self._writers:
            unwanted &= ~WRITE
        self._set_mask(fd, self._masks.get(fd, 0) & ~unwanted)

    def _set_mask(self, fd: int, mask: int) -> None:
        old = self._masks.get(fd, 0)
        if mask == old:
            return
        if not mask:
            del self._masks[fd]
            with contextlib.suppress(OSError):  # it may be closed by now
                self._epoll.unregister(fd)
            return
        if old:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.register(fd, mask)
        self._masks[fd] = mask

    @types.coroutine
    def _wait_fd(self, table: dict[int, Task], fd: int, kind: int, timeout: float) -> Generator[Any, Any, None]:
        if fd in table:
            raise RuntimeError(f"two tasks wait for the same event of descriptor {fd}")
        task = self._running()
        mask = self._masks.get(fd, 0)
        if not mask & kind:
            self._set_mask(fd, mask | kind)
        table[fd] = task
        task.wait = fd if kind == READ else ~fd
        if timeout != math.inf:
            self._deadlines.set(task, self.now + timeout)
        yield

    def _running(self) -> Task:
        task = self._current
        if task is None:
            raise RuntimeError("only a task of this loop can wait")
        return task

    def _step(self, task: Task, value: Any, error: BaseException | None) -> None:
        self._current = task
        task.wait = None
        task.deadline = math.inf
        if task.cancelled:
            task.cancelled = False
            error = TaskCancelled()
        try:
            if error is None:
                task.coro.send(value)
            else:
                task.coro.throw(error)
        except (StopIteration, TaskCancelled):
            self._end(task)
        except Exception:
            log.exception("Task %r failed", task.name)
            self._end(task)
        except BaseException:
            self._end(task)
            raise
        finally:
            self._current = value = error = None
        if task.cancelled and not task.done:
            self.cancel(task)  # it cancelled itself: thrown where it waits now

    def _call(self, call: Callable[..., object], args: Any) -> None:
        try:
            call(*args)
        except Exception:
            log.exception("Call %r failed", call)

    def _end(self, task: Task) -> None:
        self._tasks.discard(task)
        self._deadlines.ended(task)
        for call in task.end():
            self._call(call, (task,))

    def cancel(self, task: Task) -> None:
        """See `Task.cancel`."""
        if task.done:
            return
        task.cancelled = True
        wait = task.wait
        if wait is None or (isinstance(wait, Token) and wait.shielded):
            return  # _step throws it when the task goes on
        self._drop_wait(task)
        self._ready.append((task, None, None))

    def _shield(self, token: Token) -> None:
        """A worker has begun: neither a deadline nor a cancellation ends this wait."""
        token.shielded = True
        if token.task is not None and not token.done:
            token.task.deadline = math.inf

    def _drop_wait(self, task: Task) -> None:
        wait = task.wait
        if isinstance(wait, Token):
            wait.done = True
        elif wait is not None:
            if wait >= 0:
                del self._readers[wait]
            else:
                del self._writers[~wait]
        task.wait = None
        task.deadline = math.inf

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it wakes anyhow
            os.write(self._wake_write, b"\0")
