# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The threads behind `Loop.worker`.

The loop alone counts and decides: it hands a job to a thread that is free or may be started.
Jobs beyond the limit wait in the loop, in order. So they do where the system starts no more threads.

Each thread waits for jobs of its own, so that a job wakes no other. Where they shared a queue, the
thread that had taken a job woke the next to look. That one had to take the interpreter's lock to
see that there was nothing. The thread that became free last is the first to be used again: its
buffers are in the processor's cache. The threads that are not needed are idle, ask the loop whether
they may go, and go.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ..errors import Overloaded

_IDLE_TIMEOUT = 10.0  # seconds until an idle thread, and the buffers it holds, go
_QUIET = 60.0  # seconds between two lines about threads that do not start

log = logging.getLogger(__name__)


class Job:
    """One call for a worker.

    Args:
        call: Function for the worker.
        args: Its arguments.
        on_done: Called in the loop's thread with the result and None, or None and the
            exception.
    """

    __slots__ = ("args", "call", "on_done", "on_start", "started")

    def __init__(
        self,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        on_done: Callable[[Any, BaseException | None], None],
    ) -> None:
        self.call = call
        self.args = args
        self.on_done = on_done
        self.on_start: Callable[[], None] | None = None
        self.started = False


class _Worker:
    """A thread, and what it is to do.

    Attributes:
        jobs: At most one; None tells it to end.
        thread: The thread.
    """

    __slots__ = ("jobs", "thread")

    def __init__(self, work: Callable[[_Worker], None], name: str) -> None:
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=work, args=(self,), name=name, daemon=True)


class Workers:
    """Threads that start on demand, to a limit. Loop thread only.

    Args:
        call_soon: Calls a function in the loop's thread, from any thread.
        limit: Most threads.
        nice: By how much they are nicer than the process, see nice(2).
        max_queue: Most jobs that wait for a thread.
        idle_timeout: Seconds until an idle thread ends.
        name: Of the threads, with a number behind it.
    """

    def __init__(
        self,
        call_soon: Callable[..., None],
        *,
        limit: int,
        nice: int = 0,
        max_queue: int = 1024,
        idle_timeout: float = _IDLE_TIMEOUT,
        name: str = "worker",
    ) -> None:
        if limit < 1:
            raise ValueError(f"limit of workers is {limit}, at least 1 is needed")
        self.busy = 0
        self._call_soon = call_soon
        self.limit = limit
        self._name = name
        self._nice = nice
        self._max_queue = max_queue
        self._idle_timeout = idle_timeout
        self._threads: set[_Worker] = set()
        self._free: list[_Worker] = []  # the last one was used last
        self._started = 0
        self._waiting: deque[Job] = deque()
        self._quiet_until = -math.inf  # about threads that do not start

    @property
    def threads(self) -> int:
        """Threads that exist and have not been told to end."""
        return self.busy + len(self._free)

    @property
    def waiting(self) -> int:
        """Jobs that wait for a thread. Any thread may ask."""
        return len(self._waiting)

    def submit(self, job: Job, *, first: bool = False) -> None:
        """Start the job, or let it wait for a thread.

        Args:
            job: Job to start.
            first: If it has to wait, then before all others, and however many those are.

        Raises:
            Overloaded: Too many jobs wait already, or there is no thread and none could be started.
        """
        worker = self._available()
        if worker is None:
            self._wait(job, first)
            return
        if self._waiting and not first:  # since no thread could be started before
            self._waiting.append(job)
            job = self._waiting.popleft()
        self._start(worker, job)

    def withdraw(self, job: Job) -> None:
        """Drop a job that still waits; one that was started or is unknown stays as it is."""
        with contextlib.suppress(ValueError):
            self._waiting.remove(job)

    def close(self, timeout: float) -> None:
        """End the threads. Those that are still in a call after so many seconds, all together, are left alone."""
        self._waiting.clear()
        for worker in self._threads:
            worker.jobs.put(None)
        until = time.monotonic() + timeout
        for worker in list(self._threads):
            worker.thread.join(max(until - time.monotonic(), 0))

    def _available(self) -> _Worker | None:
        """Take a thread that is free, or start one; None if all that there can be are busy."""
        if self.busy >= self.limit:
            return None
        return self._free.pop() if self._free else self._start_thread()

    def _wait(self, job: Job, first: bool) -> None:
        if not self.busy:
            raise Overloaded
        if first:
            self._waiting.appendleft(job)
        elif len(self._waiting) < self._max_queue:
            self._waiting.append(job)
        else:
            raise Overloaded

    def _start(self, worker: _Worker, job: Job) -> None:
        self.busy += 1
        job.started = True
        if job.on_start is not None:
            job.on_start()
        worker.jobs.put(job)

    def _start_thread(self) -> _Worker | None:
        self._started += 1
        worker = _Worker(self._work, f"{self._name}/{self._started}")
        try:
            worker.thread.start()
        except RuntimeError as e:  # the system's limit of threads
            now = time.monotonic()
            if now >= self._quiet_until:
                self._quiet_until = now + _QUIET
                log.warning("Cannot start worker %d: %s", self.threads + 1, e)
            return None
        self._threads.add(worker)
        return worker

    def _done(self, worker: _Worker, job: Job, value: Any, error: BaseException | None) -> None:
        self.busy -= 1
        if self._waiting:
            self._start(worker, self._waiting.popleft())
        else:
            self._free.append(worker)
        job.on_done(value, error)

    def _idle(self, worker: _Worker) -> None:
        """A thread found nothing to do for a while: let it go, unless it was given a job meanwhile."""
        if worker in self._free:
            self._free.remove(worker)
            worker.jobs.put(None)

    # In the threads.

    def _work(self, worker: _Worker) -> None:
        self._be_nice()
        while True:
            try:
                job = worker.jobs.get(timeout=self._idle_timeout)
            except queue.Empty:
                self._call_soon(self._idle, worker)
                continue
            if job is None:
                break
            self._run(worker, job)
            del job  # or an idle thread would keep the job's buffers
        self._call_soon(self._threads.discard, worker)

    def _run(self, worker: _Worker, job: Job) -> None:
        value = error = None
        try:
            value = job.call(*job.args)
        except BaseException as e:
            error = e
        self._call_soon(self._done, worker, job, value, error)
        # The error's traceback keeps this frame: what it holds would live on in a cycle.
        del job, value, error

    def _be_nice(self) -> None:
        if self._nice:
            thread = threading.get_native_id()
            with contextlib.suppress(OSError):  # denied by a sandbox: then as nice as the loop
                nice = os.getpriority(os.PRIO_PROCESS, thread)
                os.setpriority(os.PRIO_PROCESS, thread, nice + self._nice)
