# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Simulated time, and the baton that one thread at a time holds.

Threads are real, but each waits for its baton before it goes on. A thread that sleeps or waits
picks the one that goes on next: the earliest in simulated time, by the dice among equals. So the
seed alone decides the order of everything, and a wait of an hour takes no time.

    task A   ───work───┐ park                    ┌──work── …
    task B             └─► work ──┐ sleep 2 ms   │
    task C                        └─► work ──────┘ ended

A process that is killed dooms its tasks. Each of their calls to the simulation from then on raises
`Killed`, so nothing that they do while they unwind has an effect.
"""

from __future__ import annotations

import heapq
import threading
from types import TracebackType
from typing import Callable, Iterable, Optional

from .dice import Dice

SECOND = 1_000_000
"""Simulated times are microseconds."""

HOUR = 3600 * SECOND


class Killed(BaseException):
    """The process of this thread was killed."""


class Stuck(Exception):
    """The simulation does not go on, or does not end. The text tells which."""


class Task:
    """One thread of a simulated process.

    Args:
        name: For the trace.
        call: Its work.

    Attributes:
        doomed: Its process was killed.
        ended: It returned.
        error: The exception that it raised.
    """

    def __init__(self, name: str, call: Callable[[], object]) -> None:
        self.name = name
        self.call = call
        self.baton = threading.Lock()
        self.baton.acquire()
        self.token = 0
        self.started = False
        self.woken = False
        self.doomed = False
        self.ended = False
        self.error: Optional[BaseException] = None
        self.waiters: list[Task] = []


class Crew:
    """Real threads that run tasks, one after another. A context manager: its end ends them."""

    def __init__(self) -> None:
        self._idle: list[_Hand] = []
        self._hands: list[_Hand] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for hand in self._hands:
            hand.scheduler = None
            hand.go.release()
            hand.thread.join()

    def run(self, task: Task, scheduler: Scheduler) -> None:
        """Begin a task in a thread that has nothing to do."""
        hand = self._idle.pop() if self._idle else self._hire()
        hand.task, hand.scheduler = task, scheduler
        hand.go.release()

    def _hire(self) -> _Hand:
        hand = _Hand(self)
        self._hands.append(hand)
        hand.thread.start()
        return hand

    def leave(self, hand: _Hand) -> None:
        """Take back a thread that has nothing to do."""
        self._idle.append(hand)


class _Hand:
    """One real thread of a crew."""

    def __init__(self, crew: Crew) -> None:
        self.go = threading.Lock()
        self.go.acquire()
        self.task: Task | None = None
        self.scheduler: Scheduler | None = None
        self._crew = crew
        self.thread = threading.Thread(target=self._loop, name="simulation", daemon=True)

    def _loop(self) -> None:
        while True:
            self.go.acquire()
            scheduler, task = self.scheduler, self.task
            if scheduler is None:
                return
            while task is not None:
                try:
                    task.call()
                except BaseException as e:
                    task.error = e
                following = scheduler.finish(task)
                task = self.task = None
                if not following.started:
                    following.started = True
                    task = following
                    continue
                self._crew.leave(self)
                following.baton.release()


class Scheduler:
    """Runs tasks one at a time. The thread that makes it is the first one, the driver.

    Args:
        dice: Decide among equals.
        crew: Runs the tasks.
        limit: Microseconds after which the simulation counts as endless.

    Attributes:
        now: Microseconds since the beginning.
        current: The task that runs.
        stuck: Why the simulation does not go on; the driver was woken to find it.
    """

    def __init__(self, dice: Dice, crew: Crew, *, limit: int) -> None:
        self._fraction = dice.fraction
        self._crew = crew
        self._limit = limit
        self._heap: list[tuple[int, float, int, Task, int]] = []
        self._serial = 0
        self.now = 0
        self.driver = self.current = Task("driver", _nothing)
        self.driver.started = True
        self.stuck: Optional[Stuck] = None

    def pass_time(self, micros: int) -> None:
        """Let the current task take so long; others go on meanwhile if they are due.

        Raises:
            Killed: Its process was killed.
        """
        until = self.now + micros
        if self._heap and self._heap[0][0] <= until:
            self.park(until)
            return
        self.now = until
        if self.current.doomed:
            raise Killed

    def park(self, until: Optional[int] = None) -> bool:
        """Let the current task wait until it is woken or time has come; tell if it was woken.

        Raises:
            Killed: Its process was killed.
        """
        task = self.current
        if task.doomed:
            raise Killed
        task.token += 1
        task.woken = False
        if until is not None:
            self._push(until, task)
        self._switch(task)
        if task.doomed:
            raise Killed
        return task.woken

    def wake(self, task: Task) -> None:
        """Let a task go on that waits, or begin."""
        task.token += 1
        task.woken = True
        self._push(self.now, task)

    def join(self, task: Task, until: Optional[int] = None) -> bool:
        """Let the current task wait for another to end; tell if it has.

        Raises:
            Killed: The process of the current task was killed.
        """
        while not task.ended:
            task.waiters.append(self.current)
            if not self.park(until):
                if self.current in task.waiters:
                    task.waiters.remove(self.current)
                return task.ended
            if self.stuck is not None and self.current is self.driver:
                return task.ended
        return True

    def unwind(self, tasks: Iterable[Task]) -> None:
        """Let tasks that are doomed come to their end. Called by the driver.

        Raises:
            Stuck: One does not.
        """
        for task in tasks:
            for _ in range(100):
                if task.ended:
                    break
                self.wake(task)
                self.driver.token += 1
                self._push(self.now + 1, self.driver)
                self._switch(self.driver)
            if not task.ended:
                raise Stuck(f"{task.name} was killed, and does not end")

    def doom(self, tasks: Iterable[Task]) -> None:
        """Let tasks unwind: their process was killed."""
        for task in tasks:
            if not task.ended and not task.doomed:
                task.doomed = True
                if not task.started:
                    task.ended = True
                elif task is not self.current:
                    self.wake(task)

    def finish(self, task: Task) -> Task:
        """Note that a task returned; return the one that goes on. Called by the crew."""
        task.ended = True
        for waiter in task.waiters:
            self.wake(waiter)
        self.current = self._next()
        return self.current

    def _push(self, when: int, task: Task) -> None:
        self._serial += 1
        heapq.heappush(self._heap, (when, self._fraction(), self._serial, task, task.token))

    def _next(self) -> Task:
        while self._heap:
            when, _, _, task, token = heapq.heappop(self._heap)
            if token != task.token or task.ended:
                continue
            if when > self.now:
                self.now = when
            if self.now > self._limit and self.stuck is None:
                self.stuck = Stuck(f"no end after {self.now // HOUR} hours")
                return self._woken_driver()
            return task
        if self.stuck is None:
            self.stuck = Stuck("every thread waits for another")
        return self._woken_driver()

    def _woken_driver(self) -> Task:
        self.driver.token += 1
        self.driver.woken = True
        return self.driver

    def _switch(self, task: Task) -> None:
        following = self._next()
        if following is task:
            return
        self.current = following
        if following.started:
            following.baton.release()
        else:
            following.started = True
            self._crew.run(following, self)
        task.baton.acquire()


def _nothing() -> None:
    """Do nothing."""
