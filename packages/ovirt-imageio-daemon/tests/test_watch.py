# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Tickets that nobody uses are not looked at, and none whose time is over is missed."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ovirt_imageio.daemon.transfer import STATES
from ovirt_imageio.daemon.watch import Watch


class Thing:
    """An item that is watched; it counts how often it is looked at."""

    def __init__(self, expires, state="idle"):
        self.expires = expires
        self._state = state
        self.looks = 0

    @property
    def state(self):
        self.looks += 1
        return self._state


@pytest.fixture
def watch():
    return Watch()


def expired(watch, now):
    return list(watch.take_expired(now))


def test_each_is_told_once_when_its_time_is_over(watch):
    early, late = Thing(10.0), Thing(20.0)
    watch.add(late)
    watch.add(early)
    assert expired(watch, 9.9) == []
    assert expired(watch, 10.5) == [early]
    assert expired(watch, 15) == []
    assert expired(watch, 30) == [late]


def test_one_that_was_extended_is_told_when_that_is_over(watch):
    thing = Thing(10.0)
    watch.add(thing)
    thing.expires = 20.0  # as a finished operation does, which tells nobody
    assert expired(watch, 15) == []
    assert expired(watch, 20.5) == [thing]


@pytest.mark.parametrize("until", [5.0, 20.0])
def test_one_that_was_moved_is_told_anew(watch, until):
    thing = Thing(10.0)
    watch.add(thing)
    assert until > 10 or expired(watch, 4) == []
    if until > 10:
        assert expired(watch, 11) == [thing]
    thing.expires = until
    watch.move(thing)
    assert expired(watch, until + 0.5) == [thing]


def test_removed_and_cancelled_are_not_told(watch):
    removed, cancelled = Thing(10.0), Thing(10.0)
    for thing in removed, cancelled:
        watch.add(thing)
    watch.remove(removed)
    watch.cancel(cancelled)
    watch.move(removed)
    watch.move(cancelled)
    assert expired(watch, 20) == []
    watch.use(removed)
    assert not watch.in_use


def test_one_may_be_removed_while_others_are_told(watch):
    things = [Thing(10.0) for _ in range(3)]
    for thing in things:
        watch.add(thing)
    found = watch.take_expired(20)
    first = next(found)
    for thing in things:
        watch.remove(thing)
    assert list(found) == []
    assert first in things


def test_states_are_counted_without_a_look_at_who_is_not_in_use(watch):
    things = [Thing(10.0) for _ in range(10)]
    for thing in things:
        watch.add(thing)
    active, gone = Thing(99.0, "active"), Thing(5.0, "expired")
    for thing in active, gone:
        watch.add(thing)
        watch.use(thing)
    assert expired(watch, 6) == [gone]
    watch.cancel(things[0])
    assert watch.count(12) == Counter(active=1, expired=1, cancelled=1, idle=9)
    assert sum(thing.looks for thing in things) == 0
    assert set(watch.count(12)) <= set(STATES)


class Model(RuleBasedStateMachine):
    """The watch tells and counts what is true, whatever happens."""

    def __init__(self):
        super().__init__()
        self.watch, self.now, self.things = Watch(), 100.0, {}

    def pick(self, number):
        return list(self.things)[number % len(self.things)] if self.things else None

    @rule(timeout=st.integers(0, 20))
    def add(self, timeout):
        thing = Thing(self.now + timeout)
        self.things[thing] = "idle"
        self.watch.add(thing)

    @rule(number=st.integers(0, 99), timeout=st.integers(0, 20))
    def move(self, number, timeout):
        thing = self.pick(number)
        if thing and self.things[thing] != "cancelled":
            thing.expires, self.things[thing] = self.now + timeout, "idle"
            self.watch.move(thing)

    @rule(number=st.integers(0, 99), timeout=st.integers(0, 20))
    def extend(self, number, timeout):
        thing = self.pick(number)
        if thing and self.things[thing] == "idle":
            thing.expires = max(thing.expires, self.now + timeout)

    @rule(number=st.integers(0, 99))
    def cancel(self, number):
        thing = self.pick(number)
        if thing:
            self.things[thing] = "cancelled"
            self.watch.cancel(thing)

    @rule(number=st.integers(0, 99))
    def remove(self, number):
        thing = self.pick(number)
        if thing:
            del self.things[thing]
            self.watch.remove(thing)

    @rule(seconds=st.floats(0.25, 15))
    def look(self, seconds):
        self.now += seconds
        for thing in self.watch.take_expired(self.now):
            assert self.things[thing] == "idle"
            assert thing.expires <= self.now
            self.things[thing] = "expired"
        late = [t for t, state in self.things.items() if state == "idle" and t.expires < self.now - 0.25]
        assert not late

    @invariant()
    def counted(self):
        expected = Counter(self.things.values())
        found = self.watch.count(len(self.things))
        assert {state: found[state] for state in STATES} == {state: expected[state] for state in STATES}


test_model = Model.TestCase
