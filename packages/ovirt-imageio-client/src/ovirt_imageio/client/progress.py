# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Progress: the bar that this project draws, and the ones that callers bring.

A transfer tells `size` once, and then counts bytes; each byte of an image counts once,
whether it was copied, zeroed or skipped.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Callable, Iterator, NamedTuple, Protocol, TextIO, Union

from ovirt_imageio.client.output import Output, columns, is_file
from ovirt_imageio.client.plan import Action
from ovirt_imageio.common.units import format_size

log = logging.getLogger(__name__)

REDRAW_INTERVAL = 1.0
"""Seconds after which a bar is drawn again though its percentage is the same: one percent
of a large disk takes minutes."""

QUIET_STEP = 10
"""Percents between the lines that go to a file or a pipe."""

_LAST_WORDS = 0.5
"""Seconds that a slow reader gets to take the last line when a Control-C ends the block."""


class ProgressLike(Protocol):
    """The part of a progress object that a transfer needs."""

    size: int | None

    def update(self, n: int) -> object:
        """Count n more bytes."""


Progress = Union[ProgressLike, Callable[[int], object], Any]
"""Progress that callers may pass. An object has `update`, and maybe `size` or `total` (tqdm). A
function is called with the number of bytes."""


class ProgressBar:
    """Shows how far a transfer is. Any thread may use it.

    On a terminal one line is drawn over and over; elsewhere quiet lines are written, one
    for each phase and each ten percent. With format `json` each change is one object on a
    line of its own. Its keys are `transferred` and, once known, `size` (integers, bytes),
    `elapsed` (seconds) and `description`.

    It never ends or delays what it shows. Output that fails is told once, by the log, and
    dropped. Lines for which a slow reader has no room are left out, but for the last one.
    Once closed it draws nothing.

    Args:
        phase: The work that is going on, in a few words.
        error_phase: The phase to end with when the block of the context manager raised.
        size: Bytes in all; None while not known.
        output: Text stream to write to; None means standard output.
        format: `text` or `json`.
        step: Not used; 2.x programs may pass it.
        width: Columns of the line on a terminal; fewer if the terminal is narrower.
        now: Returns seconds from any starting point.

    Raises:
        ValueError: The format is none of these.
    """

    def __init__(
        self,
        phase: str | None = None,
        error_phase: str = "command failed",
        size: int | None = None,
        output: TextIO | None = sys.stdout,
        format: str = "text",
        step: float | None = None,
        width: int = 79,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        if format not in ("text", "json"):
            raise ValueError(f"invalid progress format {format!r}: expected 'text' or 'json'")
        self._phase = phase or ""
        self._error_phase = error_phase
        self._size = None if size is None else int(size)
        stream = sys.stdout if output is None else output
        self._output = Output(stream, lambda why: log.warning("Progress is not shown any more: %s", why))
        self._stream = stream
        self._width = width
        self._now = now
        self._draw = self._draw_json if format == "json" else self._draw_text
        # A StringIO of a caller is drawn into as 2.x did; files and pipes get quiet lines.
        self._quiet = format == "text" and is_file(stream)
        self._lock = threading.Lock()
        self._start = now()
        self._done = 0
        self._drawn: tuple[int | None, float] = (None, self._start)
        self._told: tuple[object, ...] = ()
        self._closed = False
        with self._lock:
            self._redraw()

    @property
    def phase(self) -> str:
        """The work that is going on. Setting it redraws."""
        return self._phase

    @phase.setter
    def phase(self, text: str) -> None:
        with self._lock:
            if text != self._phase:
                self._phase = text
                self._redraw()

    @property
    def size(self) -> int | None:
        """Bytes in all; None while not known. Setting it redraws."""
        return self._size

    @size.setter
    def size(self, n: int | None) -> None:
        with self._lock:
            self._size = None if n is None else int(n)
            self._redraw()

    @property
    def done(self) -> int:
        """Bytes counted."""
        return self._done

    @property
    def lost(self) -> bool:
        """The output failed, and nothing is shown any more."""
        return self._output.lost

    def update(self, n: int) -> None:
        """Count n more bytes; redraw if that changes what is shown."""
        with self._lock:
            self._done += int(n)
            percent, drawn = self._drawn
            now_percent = self._percent()
            if self._quiet:
                due = (now_percent or 0) - (percent or 0) >= QUIET_STEP
            else:
                due = now_percent != percent or self._now() - drawn >= REDRAW_INTERVAL
            if due:
                self._redraw()

    def close(self) -> None:
        """Draw for the last time and end the line; what comes later is counted, not drawn. Idempotent."""
        self._close(None)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.phase = self._error_phase
        self._close(None if error is None or isinstance(error, Exception) else _LAST_WORDS)

    def _close(self, seconds: float | None) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._redraw(last=True, seconds=seconds)

    def _percent(self) -> int | None:
        if self._size is None:
            return None
        return min(100, self._done * 100 // self._size) if self._size else 100

    def _redraw(self, *, last: bool = False, seconds: float | None = 0) -> None:
        if (self._closed and not last) or self._output.lost:
            return
        now = self._now()
        text = self._draw(now - self._start, last)
        if self._output.write(text, seconds=seconds):
            self._drawn = (self._percent(), now)
            self._told = self._state()

    def record(self) -> dict[str, Any]:
        """Return how far it is now, as JSON has it."""
        record: dict[str, Any] = {
            "transferred": self._done,
            "elapsed": self._now() - self._start,
            "description": self._phase,
        }
        if self._size is not None:
            record["size"] = self._size
        return record

    def _draw_json(self, elapsed: float, last: bool) -> str:
        return json.dumps(self.record()) + "\n"

    def _draw_text(self, elapsed: float, last: bool) -> str:
        parts = self._parts(elapsed)
        if not self._quiet:
            # A terminal may have become narrower.
            width = min(self._width, columns(self._stream, self._width))
            return parts.fit(width).ljust(width) + ("\n" if last else "\r")
        # The end adds nothing if its numbers were told.
        return "" if self._told == self._state() else f"{parts}\n"

    def _state(self) -> tuple[object, ...]:
        return (self._done, self._size, self._phase)

    def _parts(self, elapsed: float) -> Parts:
        percent = self._percent()
        rate = self._done / elapsed if elapsed > 0 else 0.0
        unfinished = self._size is not None and self._done < self._size
        return Parts(
            percent="----" if percent is None else f"{percent:3d}%",
            done=format_size(self._done),
            size="" if self._size is None or self._done == self._size else f" of {format_size(self._size)}",
            elapsed=_elapsed(elapsed),
            rate=f"{format_size(rate)}/s",
            left=f"{_duration(((self._size or 0) - self._done) / rate)} left" if unfinished and rate else "",
            phase=self._phase,
        )


class Parts(NamedTuple):
    """The facts of a line of progress, each in words. Pure.

    [  55% ] 555 GiB of 999 GiB, 1:02:03, 153 MiB/s, 49:38 left | uploading image
     percent    done       size  elapsed       rate        left             phase
    """

    percent: str
    done: str
    size: str
    elapsed: str
    rate: str
    left: str
    phase: str

    def __str__(self) -> str:
        return self._join(self.elapsed, self.rate, self.left, phase=self.phase)

    def fit(self, width: int) -> str:
        """Return a line of at most width characters that leaves out what matters least, and cuts no word."""
        return next(line for line in self._lines() if len(line) <= width)

    def _lines(self) -> Iterator[str]:
        """Lines from the longest to the shortest, more or less."""
        numbers = [(self.elapsed, self.rate, self.left), (self.rate, self.left), (self.left,), ()]
        yield from (self._join(*some, phase=self.phase) for some in numbers)
        words = self.phase.split(" ")
        for some in numbers:
            yield from (self._join(*some, phase=" ".join(words[:count])) for count in range(len(words) - 1, -1, -1))
        yield from (f"[ {self.percent} ] {self.done}", f"[ {self.percent} ]", self.percent.strip(), "")

    def _join(self, *numbers: str, phase: str) -> str:
        line = ", ".join([f"[ {self.percent} ] {self.done}{self.size}", *filter(None, numbers)])
        return f"{line} | {phase}" if phase else line


class Counter:
    """The caller's progress, whatever it is, as one thing that many threads may use.

    Args:
        progress: As `Progress` says, or None.
        size: Bytes in all, told to the object if it wants to know.

    Attributes:
        done: Bytes counted.
        by_action: The same, by what was done with them.

    Raises:
        TypeError: progress is neither a function nor has `update`.
    """

    def __init__(self, progress: Progress | None, size: int) -> None:
        self._lock = threading.Lock()
        self._update = _update_of(progress)
        self._progress: Any = progress
        self._phase = self._trouble = ""
        self.size = size
        self.done = 0
        self.by_action = dict.fromkeys(Action, 0)
        if progress is not None and hasattr(progress, "update"):
            _tell_size(progress, size)

    def update(self, n: int, action: Action = Action.COPY) -> None:
        """Count n more bytes; the caller's code runs in this thread, one call at a time."""
        if not n:
            return
        with self._lock:
            self.done += n
            self.by_action[action] += n
            if self._trouble:
                self._calm()
            self._update(n)

    def trouble(self, text: str) -> None:
        """Show what is wrong beside the phase, until bytes move again."""
        if not hasattr(self._progress, "phase"):
            return
        with self._lock:
            if self._trouble != self._progress.phase:
                self._phase = self._progress.phase or ""
            self._trouble = f"{self._phase} ({text})".lstrip()
            self._progress.phase = self._trouble

    def _calm(self) -> None:
        """Show the phase as it was, unless the caller has set another."""
        if self._progress.phase == self._trouble:
            self._progress.phase = self._phase
        self._trouble = ""


def set_phase(progress: Progress | None, text: str) -> None:
    """Tell what is going on, to an object that shows it."""
    if progress is not None and hasattr(progress, "phase"):
        progress.phase = text


@contextmanager
def showing(progress: Progress | None, text: str) -> Iterator[None]:
    """Show what else is going on beside the phase, for a while."""
    before = getattr(progress, "phase", "")
    set_phase(progress, f"{before}, {text}" if before else text)
    yield
    set_phase(progress, before)


def _update_of(progress: Progress | None) -> Callable[[int], object]:
    if progress is None:
        return lambda n: None
    update = getattr(progress, "update", None)
    if callable(update):
        return update  # type: ignore[no-any-return]
    if callable(progress):
        return progress
    raise TypeError(f"invalid progress {progress!r}: expected a function or an object with 'update'")


def _tell_size(progress: Any, size: int) -> None:
    if not hasattr(progress, "size") and hasattr(progress, "total"):
        # tqdm: its length is `total`, and refresh() draws it.
        progress.total = size
        if callable(getattr(progress, "refresh", None)):
            progress.refresh()
    else:
        progress.size = size


def _elapsed(seconds: float) -> str:
    """Two digits after the point for times of less than a minute."""
    return f"{seconds:.2f} s" if seconds < 60 else _duration(seconds)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, seconds = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{seconds:02.0f}"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02.0f}"
