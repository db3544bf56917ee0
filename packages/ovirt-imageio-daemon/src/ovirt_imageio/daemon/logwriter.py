# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""A thread that writes the log, so that the loop and the workers never wait for it.

A pipe may have a reader that reads nothing, a file may be on storage that hangs. The thread that logs puts a
record into a queue and goes on; one thread alone waits::

    loop, workers ──record──► queue ──► writer thread ──► handlers ──► file, pipe

A queue that is full takes no more: lines are counted then, and the count is written where they would be.
A record is frozen before: its text is made, so that nothing it names can change or live on.
"""

from __future__ import annotations

import copy
import logging
import queue
import threading
from collections.abc import Sequence
from typing import Tuple, Union

_LIMIT = 10_000  # lines that wait, about 10 MB

_Line = Tuple[logging.Handler, logging.LogRecord]


class LogWriter:
    """Writes what loggers are told, in a thread of its own.

    Args:
        loggers: Loggers whose handlers are used by that thread from now on.
        limit: Lines that may wait.
    """

    def __init__(self, loggers: Sequence[logging.Logger], *, limit: int = _LIMIT) -> None:
        self._loggers = loggers
        self._limit = limit
        self._queue: queue.SimpleQueue[Union[_Line, threading.Event, None]] = queue.SimpleQueue()
        self._lost = 0
        self._losing = threading.Lock()
        self._written = 0
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the system's limit of threads: as without this class
            self._loggers = ()
        for logger in self._loggers:
            logger.handlers[:] = [Deferred(self, handler) for handler in logger.handlers]

    def put(self, target: logging.Handler, record: logging.LogRecord) -> None:
        """Let the thread hand a record to a handler. Any thread; never waits for the log."""
        if self._lost or self._queue.qsize() >= self._limit:
            self._put_late(target, record)
        else:
            self._queue.put((target, record))

    def catch_up(self, timeout: float) -> bool:
        """Wait until what was logged before is written.

        Args:
            timeout: Seconds at most.

        Returns:
            False if it is not yet.
        """
        if not self._loggers or not self._thread.is_alive():
            return True
        written = threading.Event()
        self._queue.put(written)
        return written.wait(timeout)

    def close(self, timeout: float) -> bool:
        """Write what waits, and let the loggers write by themselves again.

        Args:
            timeout: Seconds that the log may take for a line.

        Returns:
            False if the log hangs: the thread is left alone, and further lines are dropped.
        """
        if not self._loggers:
            return True
        self._queue.put(None)
        written = -1
        while self._thread.is_alive() and written != self._written:
            written = self._written
            self._thread.join(timeout)
        if self._thread.is_alive():
            return False
        for logger in self._loggers:
            logger.handlers[:] = [real(handler) for handler in logger.handlers]
        return True

    def join(self, timeout: float) -> None:
        """Wait for the end of the thread, after `close`."""
        self._thread.join(timeout)

    def _put_late(self, target: logging.Handler, record: logging.LogRecord) -> None:
        with self._losing:
            if self._queue.qsize() >= self._limit:
                self._lost += 1
                return
            if self._lost:
                self._queue.put((target, self._take_lost()))
            self._queue.put((target, record))

    def _take_lost(self) -> logging.LogRecord:
        lost, self._lost = self._lost, 0
        text = f"{lost} lines were lost here: the log took none"
        return logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, None, None)

    # In the thread.

    def _write_all(self) -> None:
        target: logging.Handler | None = None
        while True:
            line = self._queue.get()
            if isinstance(line, tuple):
                target, record = line
                self._write(target, record)
            if self._lost and target is not None and (line is None or self._queue.empty()):
                with self._losing:
                    record = self._take_lost()
                self._write(target, record)
            if isinstance(line, threading.Event):
                line.set()
            if line is None:
                return

    def _write(self, target: logging.Handler, record: logging.LogRecord) -> None:
        try:
            target.handle(record)
        except Exception:  # a handler reports its own errors: this one cannot
            target.handleError(record)
        self._written += 1


class Deferred(logging.Handler):
    """Stands in for a handler, which the thread uses.

    Args:
        writer: The thread's.
        target: The handler.
    """

    def __init__(self, writer: LogWriter, target: logging.Handler) -> None:
        super().__init__(target.level)
        self.target = target
        self._writer = writer

    def createLock(self) -> None:  # noqa: N802
        """Have none: a queue needs none, and nobody shall wait."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """See `logging.Handler.handle`, which from Python 3.13 on takes the lock though it is None."""
        kept: bool | logging.LogRecord = self.filter(record)
        if kept:
            self.emit(kept if isinstance(kept, logging.LogRecord) else record)
        return bool(kept)

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        try:
            self._writer.put(self.target, _frozen(record, self.target.formatter))
        except Exception:  # the text and its arguments do not fit
            self.handleError(record)


def real(handler: logging.Handler) -> logging.Handler:
    """Return the handler that another one stands in for, or the same."""
    return handler.target if isinstance(handler, Deferred) else handler


def _frozen(record: logging.LogRecord, formatter: logging.Formatter | None) -> logging.LogRecord:
    frozen = copy.copy(record)
    frozen.msg, frozen.args = record.getMessage(), None
    if record.exc_info:
        frozen.exc_text = (formatter or _plain).formatException(record.exc_info)
        frozen.exc_info = None
    return frozen


_plain = logging.Formatter()
