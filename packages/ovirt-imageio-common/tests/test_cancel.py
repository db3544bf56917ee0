# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import signal
import socket
import threading

import pytest

from ovirt_imageio.common.cancel import Cancel, below
from ovirt_imageio.common.errors import OperationCancelled


def test_nothing_ends_without_cancel():
    cancel = Cancel()
    cancel.check()
    cancel.wait(0)
    assert not cancel.cancelled


def test_cancel_ends_what_comes_later():
    cancel = Cancel()
    cancel.cancel()
    cancel.cancel()
    assert cancel.cancelled
    with pytest.raises(OperationCancelled, match="the operation was cancelled"):
        cancel.check()
    with pytest.raises(OperationCancelled):
        cancel.wait(1000)


def test_each_wake_is_called_once_and_a_failing_one_stops_no_other():
    cancel = Cancel()
    called = []
    cancel.add(lambda: called.append("a"))
    cancel.add(lambda: 1 / 0)
    cancel.add(lambda: called.append("b"))
    cancel.cancel()
    cancel.cancel()
    assert sorted(called) == ["a", "b"]


def test_what_is_added_too_late_is_called_at_once():
    cancel = Cancel()
    cancel.cancel()
    called = []
    cancel.remove(cancel.add(lambda: called.append(1)))
    assert called == [1]


def test_what_is_removed_is_not_called():
    cancel = Cancel()
    called = []
    with cancel.waking(lambda: called.append(1)):
        pass
    cancel.cancel()
    assert called == []


def test_remove_waits_for_a_wake_that_runs():
    """The thread that removes it closes the descriptor next, whose number may then be another file's."""
    cancel = Cancel()
    running, go_on = threading.Event(), threading.Event()
    order = []

    def wake():
        running.set()
        go_on.wait(10)
        order.append("woken")

    key = cancel.add(wake)
    canceller = threading.Thread(target=cancel.cancel)
    canceller.start()
    running.wait(10)

    def remove():
        cancel.remove(key)
        order.append("removed")

    remover = threading.Thread(target=remove)
    remover.start()
    go_on.set()
    canceller.join()
    remover.join()
    assert order == ["woken", "removed"]


def test_another_thread_ends_a_wait():
    cancel = Cancel()
    waiting = threading.Event()
    ended = []

    def wait():
        waiting.set()
        with pytest.raises(OperationCancelled):
            cancel.wait(1000)
        ended.append(True)

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait(10)
    cancel.cancel()
    thread.join()
    assert ended == [True]


def test_signal_handler_may_cancel_what_its_own_thread_waits_for():
    cancel = Cancel()
    before = signal.signal(signal.SIGUSR1, lambda *_: cancel.cancel())
    try:
        timer = threading.Thread(target=signal.pthread_kill, args=(threading.get_ident(), signal.SIGUSR1))
        timer.start()
        with pytest.raises(OperationCancelled):
            cancel.wait(1000)
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_signal_handler_may_cancel_in_the_middle_of_a_method():
    cancel = Cancel()

    class Meanwhile(dict):
        def __setitem__(self, key, value):
            super().__setitem__(key, value)
            cancel.cancel()  # as a handler would that runs now

    cancel._wakes = Meanwhile()
    called = []
    cancel.remove(cancel.add(lambda: called.append(1)))
    assert called == [1]


def test_call_returns_what_the_function_returns_or_raises():
    cancel = Cancel()
    assert cancel.call(divmod, 7, 2, name="t") == (3, 1)
    with pytest.raises(ZeroDivisionError):
        cancel.call(divmod, 7, 0, name="t")


def test_call_leaves_behind_what_does_not_end():
    cancel = Cancel()
    begun, release = threading.Event(), threading.Event()

    def stuck():
        begun.set()
        release.wait(10)

    def other():
        begun.wait(10)
        cancel.cancel()

    thread = threading.Thread(target=other)
    thread.start()
    try:
        with pytest.raises(OperationCancelled):
            cancel.call(stuck, name="t")
        assert not release.is_set()
    finally:
        release.set()
        thread.join()


def test_below_ends_with_the_whole_and_not_the_other_way_round():
    whole = Cancel()
    with below(whole) as part:
        part.cancel()
        assert not whole.cancelled
    with below(whole) as part:
        whole.cancel()
        assert part.cancelled
    with pytest.raises(OperationCancelled):
        with below(whole):
            pytest.fail("begun")


def test_below_forgets_a_part_that_ended():
    whole = Cancel()
    with below(whole) as part:
        pass
    whole.cancel()
    assert not part.cancelled
    with below(None) as part:
        assert not part.cancelled


def test_socket_is_woken_by_its_shutdown():
    cancel = Cancel()
    a, b = socket.socketpair()
    with a, b, cancel.waking(lambda: a.shutdown(socket.SHUT_RDWR)):
        thread = threading.Thread(target=cancel.cancel)
        thread.start()
        assert a.recv(1) == b""
        thread.join()


def test_call_is_waited_for_where_the_system_starts_no_thread(monkeypatch):
    def none(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    cancel = Cancel()
    assert cancel.call(threading.get_ident, name="x") == threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        cancel.call(lambda: 1 / 0, name="x")
