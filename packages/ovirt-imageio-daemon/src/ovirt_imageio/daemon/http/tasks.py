# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Tasks, which the loop schedules, and the identities of their waits."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loop import Loop


class TaskCancelled(BaseException):
    """Thrown into the coroutine of a cancelled task.

    Like ``asyncio.CancelledError`` it is no ``Exception``, so that handlers which
    deal with failures do not swallow it.
    """


class Token:
    """The identity of one wait: made by `Loop.token`, dead once it was resumed."""

    __slots__ = ("done", "error", "shielded", "task", "value")

    def __init__(self) -> None:
        self.task: Task | None = None
        self.done = False
        self.shielded = False
        self.value: Any = None
        self.error: BaseException | None = None


class Task:
    """A coroutine that the loop runs. Loop thread only."""

    __slots__ = (
        "_loop",
        "_on_done",
        "cancelled",
        "coro",
        "deadline",
        "done",
        "name",
        "timer",
        "wait",
    )

    def __init__(self, loop: Loop, coro: Coroutine[Any, Any, Any], name: str) -> None:
        self._loop = loop
        self.coro = coro
        self.deadline = math.inf  # of the current wait
        self.timer = math.inf  # when the heap entry that counts comes up
        # The current wait: a token, fd to read, ~fd to write, None while it is ready.
        self.wait: Token | int | None = None
        self.cancelled = False
        self._on_done: list[Callable[[Task], None]] = []
        self.name = name
        self.done = False

    def cancel(self) -> None:
        """Throw `TaskCancelled` into the coroutine, at once or where it next waits.

        A call that a worker thread already runs is not interrupted, for the thread owns
        what the task gave it. The error is thrown when the call has ended.
        """
        self._loop.cancel(self)

    def on_done(self, call: Callable[[Task], None]) -> None:
        """Call ``call(task)`` when the task has ended, at once if it has."""
        if self.done:
            call(self)
        else:
            self._on_done.append(call)

    def end(self) -> list[Callable[[Task], None]]:
        """Note that the coroutine has ended; return whom to tell. For the loop."""
        self.done = True
        calls, self._on_done = self._on_done, []
        return calls

    def __repr__(self) -> str:
        state = "done" if self.done else "ready" if self.wait is None else "waiting"
        return f"<Task {self.name!r} {state}>"
