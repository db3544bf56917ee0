# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Doing the steps of a plan with several workers.

The caller's thread makes the steps and puts them into a queue; workers take them. Making
them may take as long as the server needs to tell its extents. Each worker owns a `Pair`:
an open connection to either end, which no other thread touches.

    caller:   extents ─► steps ─► queue
                                    ├─► worker: pair ─► copy, zero … flush
                                    └─► worker: pair ─► copy, zero … flush

Steps are idempotent. A step that fails for a passing reason is done again on a new pair,
after a pause that grows. The first failure that does not pass ends all workers and is raised
in the caller's thread. A connection that always breaks after some bytes must not make
a long request impossible. So each failure makes the worker's next request an eighth as
long, and each success doubles it again. Attempts are counted from the last success.

At its end each worker flushes what it wrote, also where that was over a connection
that is gone. Where the caller keeps a journal, it does so now and then on its way, and
tells which steps are on stable storage.

A server that was restarted may have lost what no flush covers, and its next flush proves
nothing. Then the worker does again what it did since its last flush:

    steps   1  2  3  flush  4  5  (restart)  6  flush: WritesLost ─► 4  5  6  flush
"""

from __future__ import annotations

import logging
import random
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Callable, Iterable, Protocol, Sequence, TypeVar

from ovirt_imageio.client.gaveup import gave_up
from ovirt_imageio.client.plan import Action, Step, Steps
from ovirt_imageio.client.progress import Counter
from ovirt_imageio.common import defaults
from ovirt_imageio.common.backends.base import Operation
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.errors import (
    ConnectionTimeout,
    ImageioError,
    OperationCancelled,
    PeerGone,
)

log = logging.getLogger(__name__)

_PASSING_STATUS = frozenset([408, 429, 502, 503, 504])

_SHORTEST_REQUEST = 64 << 10
"""Requests are not made shorter than this, however often they fail."""

_STOP_TIMEOUT = 0.5
"""Seconds that workers get to end when they are cancelled; then they are left behind."""

_LOOK = 0.2
"""Seconds after which a Control-C or a cancel is seen at the latest."""


class CopyOperation(Operation, Protocol):
    """Watches the copying of a range."""

    def advance(self, n: int, action: Action = Action.COPY) -> None:
        """Count n more bytes, in order, and what was done with them: zeroes may be found on the way."""


class Pair(ABC):
    """Both ends of a transfer, as one worker has them open."""

    owes_flush: bool = False
    """Something was written since the last flush."""

    acknowledges: bool = False
    """Bytes that `copy` counts are written: after a failure they need not be copied again."""

    @property
    def debt(self) -> Any:
        """Writes since the last flush, for another pair to answer for; None if there is nothing to tell."""
        return None

    def assume(self, debt: Any) -> None:  # noqa: B027 - most have nothing to do
        """Answer for what a pair wrote that is closed: the next flush has to cover it."""

    unit: int = 1
    """Bytes that `copy` is asked for a multiple of, except at the end of a step."""

    @abstractmethod
    def copy(self, offset: int, length: int, op: CopyOperation) -> None:
        """Copy a range; op is told of each piece."""

    @abstractmethod
    def zero(self, offset: int, length: int) -> None:
        """Zero a range of the target."""

    @abstractmethod
    def flush(self) -> None:
        """Bring what was written to stable storage.

        Raises:
            WritesLost: Bytes written since the last flush have to be written again, over another pair.
        """

    @abstractmethod
    def close(self) -> None:
        """Close both ends."""


@dataclass(frozen=True)
class Checkpoints:
    """How often a transfer makes sure of what it has.

    Attributes:
        record: Called with steps that are on stable storage.
        length: Bytes after which a worker flushes.
        seconds: Time after which it does.
        now: Monotonic seconds.
    """

    record: Callable[[Sequence[Step]], None]
    length: int
    seconds: float
    now: Callable[[], float] = time.monotonic


@dataclass(frozen=True)
class Retry:
    """How stubborn a transfer is.

    Attributes:
        attempts: How often in a row the same thing may fail.
        delay: Seconds before the second attempt; doubled for each further one.
        max_delay: Longest of these.
    """

    attempts: int = 7
    delay: float = 0.1
    max_delay: float = 5.0

    def pause(self, failures: int) -> float:
        """Seconds to wait after so many failures, spread so that workers do not march in step."""
        longest = min(self.delay * 2 ** (failures - 1), self.max_delay)
        return float(longest * random.uniform(0.5, 1.0))


def is_passing(error: BaseException) -> bool:
    """Tell if trying again may help: a reset, a time-out, an overloaded server."""
    if getattr(error, "status", None) in _PASSING_STATUS:
        return True
    # A program with such an error has loaded requests; other programs need not load it.
    from ovirt_imageio.common.backends.http.errors import Unreachable, Untrusted

    if isinstance(error, Untrusted):
        return False
    return isinstance(error, (PeerGone, Unreachable, ConnectionTimeout, ConnectionError, TimeoutError))


def _lost_writes(error: BaseException) -> bool:
    """Tell if a flush failed since what it was to cover may be lost, and can be written again."""
    from ovirt_imageio.common.backends.http.errors import WritesLost

    return isinstance(error, WritesLost)


T = TypeVar("T")


def _nothing() -> None:
    """Do nothing."""


def persist(
    call: Callable[[], T],
    what: str,
    *,
    retry: Retry | None = None,
    pause: Callable[[float], object] = time.sleep,
    on_retry: Callable[[], object] = _nothing,
) -> T:
    """Call something until it does not fail for a passing reason.

    Args:
        call: Can be repeated.
        what: It does, for the log.
        retry: How often.
        pause: Waits for seconds, and raises if that is to end.
        on_retry: Told of each attempt after the first.

    Raises:
        Exception: The last failure of call, as it raised it.
    """
    retry = retry or Retry()
    failures = 0
    while True:
        try:
            return call()
        except Exception as e:
            failures += 1
            if not is_passing(e) or failures >= retry.attempts:
                raise
            delay = retry.pause(failures)
            log.warning("Cannot %s: %s; trying again in %.1f seconds", what, e, delay)
            pause(delay)
            on_retry()


class StepQueue:
    """Steps on their way to the workers."""

    def __init__(self) -> None:
        self._steps = Steps()
        self._next = 0
        self._closed = False
        self._changed = threading.Condition()

    def put(self, step: Step) -> None:
        """Append a step."""
        with self._changed:
            self._steps.append(step)
            self._changed.notify()

    def get(self) -> Step | None:
        """Take the next step, waiting for it; None when there will be none."""
        with self._changed:
            while self._next == len(self._steps) and not self._closed:
                self._changed.wait()
            if self._next >= len(self._steps):
                return None
            self._next += 1
            return self._steps[self._next - 1]

    def close(self) -> None:
        """No further step will come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def clear(self) -> None:
        """Drop what is left, and close."""
        with self._changed:
            self._closed = True
            self._next = len(self._steps)
            self._changed.notify_all()


class _Request:
    """Watches one request of a step: counts each byte once, however often it is moved."""

    def __init__(self, job: _Job, cancel: Cancel) -> None:
        self._job = job
        self.position = job.position
        self.check = cancel.check

    def advance(self, n: int, action: Action = Action.COPY) -> None:
        """See CopyOperation."""
        self.position += n
        self._job.count_to(self.position, action)


class _Job:
    """A step while it is being done.

    Attributes:
        position: Offset up to which it is done.
    """

    def __init__(self, step: Step, counter: Counter, *, counted: bool = False) -> None:
        self.step = step
        self.position = step.offset
        self._counted = step.end if counted else step.offset
        self._counter = counter

    def count_to(self, position: int, action: Action | None = None) -> None:
        """Count bytes up to a position that were not counted before; None means what the step does."""
        if position > self._counted:
            self._counter.update(position - self._counted, self.step.action if action is None else action)
            self._counted = position


class Executor:
    """Does the steps of one transfer.

    Args:
        open_pair: Opens both ends; called in the thread of each worker, and again after
            a failure.
        counter: Told of each byte that is done.
        workers: Threads.
        retry: How to take failures that pass.
        checkpoints: Told of the steps that are on stable storage, from any worker.
        flush_length: Bytes after which a worker flushes in any case: no more is done again.
        can_redo: Steps that are done can be done again, in any order.
        cancel: Ends all, from any thread. It wakes every wait of a pair and of the making of steps.
            The first failure of a worker calls it.
        on_retry: Told of each attempt after the first, from any worker.
        pause: Waits for seconds or until it is cancelled; tests replace it.

    Attributes:
        flush_failed: Storage refused a flush. It may have forgotten what it could not write, so that
            a later flush succeeds without it.
    """

    def __init__(
        self,
        open_pair: Callable[[], Pair],
        counter: Counter,
        *,
        workers: int = defaults.MAX_WORKERS,
        retry: Retry | None = None,
        checkpoints: Checkpoints | None = None,
        flush_length: int | None = None,
        can_redo: bool = True,
        cancel: Cancel | None = None,
        on_retry: Callable[[], object] = _nothing,
        pause: Callable[[Cancel, float], object] = Cancel.wait,
    ) -> None:
        self._open_pair = open_pair
        self._counter = counter
        self._retry = retry or Retry()
        self._checkpoints = checkpoints
        self._flush_length = flush_length
        self._can_redo = can_redo
        self._pause = pause
        self._queue = StepQueue()
        self._cancel = cancel or Cancel()
        self._on_retry = on_retry
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self.flush_failed = False
        self._workers = [_Worker(self, f"transfer-{n}") for n in range(max(workers, 1))]

    def run(self, steps: Iterable[Step]) -> None:
        """Do all steps and flush; return when everything is on stable storage.

        Args:
            steps: In any order; made while the first ones are being done.

        Raises:
            GaveUp: A passing failure did not pass; its kind is that of the last failure.
            Exception: The first failure of all, as an end or steps raised it.
            OperationCancelled: It was cancelled.
            KeyboardInterrupt: As it came; workers were told to stop.
        """
        for worker in self._workers:
            worker.start()
        try:
            with self._cancel.waking(self._queue.clear):
                for step in steps:
                    self._cancel.check()
                    self._queue.put(step)
                self._queue.close()
                self._wait()
        except OperationCancelled as e:
            self.fail(e)
        except BaseException as e:
            self.fail(e)
            raise
        finally:
            self._stop()
        if self._error is not None:
            raise self._error

    def fail(self, error: BaseException) -> None:
        """End the transfer; the first error counts."""
        with self._lock:
            if self._error is None:
                self._error = error
        self._cancel.cancel()
        self._queue.clear()

    def _wait(self) -> None:
        """Wait for the workers' end; a look now and then shows that they will have none.

        A Control-C that comes when the interpreter has looked for signals, and does not wait
        yet, is seen when the wait is over.
        """
        for worker in self._workers:
            while not worker.join(_LOOK):
                self._cancel.check()

    def _stop(self) -> None:
        """Wait for workers that were cancelled, not for long: they are daemon threads."""
        deadline = time.monotonic() + _STOP_TIMEOUT
        left = [worker.name for worker in self._workers if not worker.join(max(0.0, deadline - time.monotonic()))]
        if left:
            log.warning("Left behind, waiting for an end that is silent: %s", ", ".join(left))


class _Worker:
    """One thread with its pair."""

    def __init__(self, executor: Executor, name: str) -> None:
        self._executor = executor
        self.name = name
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._ended = threading.Event()
        self._pair: Pair | None = None
        self._owes_flush = False
        self._limit = self._asked = defaults.EXTENT_LIMIT
        self._debt: Any = None
        self._unflushed = Steps()
        self._unflushed_length = 0
        self._recorded_at = 0.0

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout: float) -> bool:
        """Wait for its end; tell if that came in time.

        Not by Thread.join alone: up to Python 3.12 that takes a thread for ended when a
        Control-C comes while it waits.
        """
        ended = self._ended.wait(timeout)
        if ended:
            self._thread.join()
        return ended

    def _run(self) -> None:
        executor = self._executor
        try:
            if executor._checkpoints is not None:
                self._recorded_at = executor._checkpoints.now()
            while (step := executor._queue.get()) is not None:
                self._do(_Job(step, executor._counter))
                self._note(step)
            self._flush()
        except BaseException as e:
            # Also what a caller's progress raises must end all workers.
            executor.fail(e)
        finally:
            self._drop_pair()
            self._ended.set()

    def _do(self, job: _Job) -> None:
        step = job.step
        if step.action in (Action.SKIP, Action.DONE):
            job.position = step.end
        failures = 0
        while (start := job.position) < step.end:
            try:
                self._request(job)
                failures = 0
            except Exception as e:
                failures = 1 if job.position > start else failures + 1
                what = f"{step.action.name.lower()} {step.length} bytes at {step.offset}"
                self._recover(e, failures, what)
        job.count_to(step.end)

    def _request(self, job: _Job) -> None:
        """One request: all that is left of a step, or less after failures."""
        pair = self._opened()
        request = _Request(job, self._executor._cancel)
        request.check()
        step = job.step
        if step.action is Action.ZERO:
            length = step.end - job.position
            pair.zero(job.position, length)
        else:
            limit = max(self._limit - self._limit % pair.unit, pair.unit)
            length = self._asked = min(step.end - job.position, limit)
            self._copy(pair, job, length, request)
            self._limit = min(self._limit * 2, defaults.EXTENT_LIMIT)
        job.position += length
        job.count_to(job.position)

    def _copy(self, pair: Pair, job: _Job, length: int, request: _Request) -> None:
        try:
            pair.copy(job.position, length, request)
        except Exception:
            if pair.acknowledges:
                job.position = request.position
            raise

    def _note(self, step: Step) -> None:
        """Take note of a step that is done, and flush if it is time to."""
        checkpoints = self._executor._checkpoints
        if step.action is Action.DONE or (step.action is Action.SKIP and checkpoints is None):
            return
        self._unflushed.append(step)
        self._unflushed_length += step.length if step.action is Action.COPY else 0
        if self._is_full() or (checkpoints is not None and self._is_time(checkpoints)):
            self._flush()
            if checkpoints is not None:
                self._recorded_at = checkpoints.now()

    def _is_full(self) -> bool:
        limit = self._executor._flush_length
        return limit is not None and self._unflushed_length >= limit

    def _is_time(self, checkpoints: Checkpoints) -> bool:
        late = checkpoints.now() - self._recorded_at >= checkpoints.seconds
        return late or self._unflushed_length >= checkpoints.length

    def _flush(self) -> None:
        """Bring everything that this worker wrote to stable storage, and record it."""
        failures = 0
        while self._owes_flush or (self._pair is not None and self._pair.owes_flush):
            self._executor._cancel.check()
            try:
                self._opened().flush()
                self._owes_flush, self._debt = False, None
            except Exception as e:
                failures += 1
                if not (is_passing(e) or self._executor._cancel.cancelled):
                    self._executor.flush_failed = True
                lost = _lost_writes(e)
                if lost and not self._executor._can_redo:
                    raise
                self._recover(e, failures, "flush")
                if lost:
                    self._redo()
        checkpoints = self._executor._checkpoints
        if checkpoints is not None and len(self._unflushed):
            checkpoints.record(list(self._unflushed))
        self._unflushed, self._unflushed_length = Steps(), 0

    def _redo(self) -> None:
        """Do again what no flush covers: the server was restarted, and may have lost any of it."""
        self._owes_flush, self._debt = False, None
        for step in self._unflushed:
            if step.action in (Action.COPY, Action.ZERO):
                self._do(_Job(step, self._executor._counter, counted=True))

    def _opened(self) -> Pair:
        if self._pair is None:
            self._pair = self._executor._open_pair()
            if self._debt is not None:
                self._pair.assume(self._debt)
        return self._pair

    def _recover(self, error: Exception, failures: int, what: str) -> None:
        """Get ready for another attempt, or raise."""
        executor = self._executor
        self._drop_pair()
        self._limit = max(_SHORTEST_REQUEST, min(self._limit, self._asked) // 8)
        executor._cancel.check()
        if not is_passing(error):
            raise error
        if failures >= executor._retry.attempts:
            raise gave_up(f"cannot {what}, gave up after {failures} attempts: {error}", error) from error
        delay = executor._retry.pause(failures)
        log.warning("Cannot %s: %s; trying again in %.1f seconds", what, error, delay)
        executor._counter.trouble(f"attempt {failures + 1} of {executor._retry.attempts}: {error}")
        executor._pause(executor._cancel, delay)
        executor._on_retry()

    def _drop_pair(self) -> None:
        pair, self._pair = self._pair, None
        if pair is None:
            return
        self._owes_flush = self._owes_flush or pair.owes_flush
        self._debt = pair.debt or self._debt
        try:
            pair.close()
        except (OSError, ImageioError) as e:
            log.debug("Closing a connection failed: %s", e)
