# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Deadlines against a plain list of them, with a clock that the test turns."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ovirt_imageio.daemon.http.deadlines import Deadlines
from ovirt_imageio.daemon.http.tasks import Task


def make_task() -> Task:
    nothing: Any = None
    return Task(nothing, nothing, "test")


def test_due_at_the_deadline_and_not_before() -> None:
    deadlines, task = Deadlines(), make_task()
    assert deadlines.next == math.inf
    deadlines.set(task, 5.0)
    assert deadlines.next == 5.0
    assert deadlines.due(4.999) == []
    assert deadlines.due(5.0) == [task]
    assert deadlines.due(100) == []


def test_wait_that_ended_is_not_due() -> None:
    deadlines, task = Deadlines(), make_task()
    deadlines.set(task, 5.0)
    task.deadline = math.inf
    assert deadlines.due(10) == []
    assert deadlines.next == math.inf


def test_task_that_ended_is_not_due() -> None:
    deadlines, task = Deadlines(), make_task()
    deadlines.set(task, 5.0)
    task.end()
    deadlines.ended(task)
    assert deadlines.due(10) == []


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 50), st.integers(0, 20)), max_size=60))
def test_same_as_looking_at_all_tasks(steps: list[tuple[int, int, int]]) -> None:
    """Each step gives a task a new deadline, then turns the clock."""
    deadlines, tasks = Deadlines(), [make_task() for _ in range(5)]
    now = 0.0
    for number, timeout, pause in steps:
        deadlines.set(tasks[number], now + timeout)
        now += pause
        expected = {id(task) for task in tasks if task.deadline <= now}
        assert min(task.deadline for task in tasks) >= deadlines.next
        due = deadlines.due(now)
        assert {id(task) for task in due} == expected
        assert len(due) == len(expected)
        for task in due:
            task.deadline = math.inf


def test_waits_in_time_push_once() -> None:
    deadlines, task = Deadlines(), make_task()
    for now in range(10_000):
        deadlines.set(task, now / 1000 + 60)
        task.deadline = math.inf
    assert len(deadlines) == 1


def test_tasks_that_ended_leave_the_heap() -> None:
    deadlines = Deadlines()
    for now in range(10_000):
        task = make_task()
        deadlines.set(task, now + 60_000)
        task.end()
        deadlines.ended(task)
    assert len(deadlines) < 2000
