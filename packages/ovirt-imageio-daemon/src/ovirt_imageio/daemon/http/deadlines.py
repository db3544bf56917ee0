# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""When which task has waited long enough.

Nearly all waits end long before their deadline, so beginning and ending one must cost
nothing. A task has at most one entry in the heap that counts. A wait pushes an entry
only if its deadline is earlier than that one; a wait that ends leaves the heap alone. When
an entry comes up and the task's deadline lies later by now, the entry is pushed again.
"""

from __future__ import annotations

import heapq
import math

from .tasks import Task

_FEW = 512  # stale entries that are not worth looking for


class Deadlines:
    """The deadlines of all tasks. Points in time are those of the loop's clock."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Task]] = []
        self._pushed = 0  # so that entries of one time are never compared by task
        self._stale = 0  # entries that count no more

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next(self) -> float:
        """When to ask for `due` again at the latest; infinity if there is no deadline."""
        return self._heap[0][0] if self._heap else math.inf

    def set(self, task: Task, deadline: float) -> None:
        """Note the deadline of a task's current wait."""
        task.deadline = deadline
        if deadline < task.timer:
            if task.timer != math.inf:
                self._stale += 1
            self._push(task, deadline)

    def ended(self, task: Task) -> None:
        """Note that a task has ended."""
        task.deadline = math.inf
        if task.timer != math.inf:
            self._stale += 1

    def due(self, now: float) -> list[Task]:
        """Return the tasks whose deadline has passed."""
        tasks = []
        while self._heap and self._heap[0][0] <= now:
            when, _, task = heapq.heappop(self._heap)
            if task.done or when != task.timer:
                self._stale -= 1
                continue
            task.timer = math.inf
            if task.deadline <= now:
                tasks.append(task)
            elif task.deadline != math.inf:
                self._push(task, task.deadline)
        return tasks

    def _push(self, task: Task, deadline: float) -> None:
        if self._stale > _FEW and self._stale * 2 > len(self._heap):
            self._heap = [e for e in self._heap if not e[2].done and e[2].timer == e[0]]
            heapq.heapify(self._heap)
            self._stale = 0
        task.timer = deadline
        self._pushed += 1
        heapq.heappush(self._heap, (deadline, self._pushed, task))
