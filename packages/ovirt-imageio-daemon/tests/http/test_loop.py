# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from imageio_testing.serving import PATIENCE
from ovirt_imageio.daemon.errors import DeadlineExpired, Overloaded
from ovirt_imageio.daemon.http import workers
from ovirt_imageio.daemon.http.loop import Loop, TaskCancelled

Run = Any  # conftest.Runner
Pair = tuple[socket.socket, socket.socket]
SOON = 0.005  # seconds


# Descriptors.


def test_readable_waits_for_data(run: Run, pair: Pair) -> None:
    ours, theirs = pair

    async def main() -> bytes:
        run.loop.spawn(write())
        await run.loop.readable(ours.fileno())
        return ours.recv(10)

    async def write() -> None:
        theirs.send(b"x")

    assert run(main()) == b"x"
    run.loop.forget(ours.fileno())


def test_readable_sees_the_end_of_the_stream(run: Run, pair: Pair) -> None:
    ours, theirs = pair

    async def main() -> bytes:
        theirs.close()
        await run.loop.readable(ours.fileno())
        return ours.recv(10)

    assert run(main()) == b""
    run.loop.forget(ours.fileno())


def test_writable_waits_for_room(run: Run, pair: Pair) -> None:
    ours, theirs = pair
    sent = fill(ours)

    async def main() -> None:
        run.loop.spawn(read())
        await run.loop.writable(ours.fileno())

    async def read() -> None:
        left = sent
        while left:
            left -= len(theirs.recv(1 << 20))

    run(main())
    assert ours.send(b"x") == 1
    run.loop.forget(ours.fileno())


def test_readers_and_writers_of_one_descriptor(run: Run, pair: Pair) -> None:
    ours, theirs = pair
    events: list[str] = []

    async def read() -> None:
        await run.loop.readable(ours.fileno())
        events.append("read")

    async def main() -> None:
        run.loop.spawn(read())
        for _ in range(3):
            await run.loop.writable(ours.fileno())
        events.append("written")
        theirs.send(b"x")
        await until(run.loop, lambda: len(events) == 2)

    run(main())
    assert events == ["written", "read"]
    run.loop.forget(ours.fileno())


def test_second_reader_of_a_descriptor_is_refused(run: Run, pair: Pair) -> None:
    fd = pair[0].fileno()

    async def read() -> None:
        await run.loop.readable(fd)

    async def main() -> None:
        first = run.loop.spawn(read())
        await run.loop.sleep(0)
        with pytest.raises(RuntimeError, match="two tasks"):
            await run.loop.readable(fd)
        first.cancel()

    run(main())
    run.loop.forget(fd)


def test_event_without_waiter_is_neither_lost_nor_repeated(run: Run, pair: Pair) -> None:
    ours, theirs = pair

    async def main() -> None:
        theirs.send(b"1")
        await run.loop.readable(ours.fileno())
        theirs.send(b"2")  # nobody waits now
        turns = count_turns(run.loop)
        await run.loop.sleep(SOON)
        assert turns() < 10, "the loop spins on an event that nobody waits for"
        await run.loop.readable(ours.fileno())

    run(main())
    assert ours.recv(10) == b"12"
    run.loop.forget(ours.fileno())


def test_hang_up_without_waiter_does_not_spin(run: Run, pair: Pair) -> None:
    ours, theirs = pair

    async def main() -> None:
        theirs.send(b"1")
        await run.loop.readable(ours.fileno())
        theirs.close()
        turns = count_turns(run.loop)
        await run.loop.sleep(SOON)
        assert turns() < 10

    run(main())
    run.loop.forget(ours.fileno())


def test_forget_ends_the_wait(run: Run, pair: Pair) -> None:
    ours, _ = pair

    async def forget() -> None:
        run.loop.forget(ours.fileno())

    async def main() -> None:
        run.loop.spawn(forget())
        with pytest.raises(OSError) as e:
            await run.loop.readable(ours.fileno())
        assert e.value.errno == errno.EBADF

    run(main())


def test_stale_event_of_a_closed_descriptor_is_dropped(run: Run) -> None:
    """Two descriptors are ready at once; the first task closes the second and reuses it."""
    a, a_peer = socket.socketpair()
    b, b_peer = socket.socketpair()
    woken: list[str] = []

    async def first() -> None:
        await run.loop.readable(a.fileno())
        number = b.fileno()
        run.loop.forget(number)
        b.close()
        fresh, fresh_peer = socket.socketpair()
        assert fresh.fileno() == number
        with fresh, fresh_peer:
            with pytest.raises(DeadlineExpired):
                await run.loop.readable(fresh.fileno(), SOON)
            run.loop.forget(fresh.fileno())
        woken.append("first")

    async def second() -> None:
        with pytest.raises(OSError):
            await run.loop.readable(b.fileno())
        woken.append("second")

    async def main() -> None:
        run.loop.spawn(first())
        run.loop.spawn(second())
        await run.loop.sleep(0)
        a_peer.send(b"x")
        b_peer.send(b"x")
        await until(run.loop, lambda: len(woken) == 2)

    run(main())
    assert sorted(woken) == ["first", "second"]
    run.loop.forget(a.fileno())
    for sock in (a, a_peer, b_peer):
        sock.close()


# Tokens.


def test_resume_gives_value_or_error(run: Run) -> None:
    loop = run.loop

    async def main() -> Any:
        good, bad = loop.token(), loop.token()
        loop.call_soon_threadsafe(loop.resume, good, 5)
        value = await loop.suspend(good)
        loop.call_soon_threadsafe(loop.resume, bad, None, KeyError("no"))
        with pytest.raises(KeyError):
            await loop.suspend(bad)
        return value

    assert run(main()) == 5


def test_resume_before_suspend(run: Run) -> None:
    loop = run.loop

    async def main() -> Any:
        good, bad = loop.token(), loop.token()
        loop.resume(good, 5)
        loop.resume(bad, error=KeyError("no"))
        with pytest.raises(KeyError):
            await loop.suspend(bad)
        return await loop.suspend(good)

    assert run(main()) == 5


def test_late_resume_never_ends_another_wait(run: Run) -> None:
    loop = run.loop

    async def main() -> Any:
        expired = loop.token()
        with pytest.raises(DeadlineExpired):
            await loop.suspend(expired, 0)
        current = loop.token()
        loop.call_soon_threadsafe(loop.resume, expired, "late")
        loop.call_soon_threadsafe(loop.resume, current, "right")
        loop.call_soon_threadsafe(loop.resume, current, "twice")
        value = await loop.suspend(current)
        await loop.sleep(0)
        return value

    assert run(main()) == "right"


# Deadlines.


def test_deadlines_expire_in_order(run: Run) -> None:
    order: list[int] = []

    async def wait(i: int) -> None:
        await run.loop.sleep(i * SOON)
        order.append(i)

    async def main() -> None:
        for i in (3, 1, 2):
            run.loop.spawn(wait(i))
        await until(run.loop, lambda: len(order) == 3)

    run(main())
    assert order == [1, 2, 3]


def test_deadline_of_a_descriptor_leaves_no_waiter(run: Run, pair: Pair) -> None:
    fd = pair[0].fileno()

    async def main() -> None:
        for wait in (run.loop.readable, run.loop.readable):
            with pytest.raises(DeadlineExpired):
                await wait(fd, 0)

    run(main())
    run.loop.forget(fd)


def test_earlier_deadline_after_a_later_one(run: Run) -> None:
    loop = run.loop

    async def main() -> None:
        token = loop.token()
        loop.call_soon_threadsafe(loop.resume, token)
        await loop.suspend(token, 1000)
        with pytest.raises(DeadlineExpired):
            await loop.suspend(loop.token(), 0)

    run(main())


def test_waits_that_end_in_time_do_not_fill_the_heap(run: Run) -> None:
    loop = run.loop

    async def main() -> None:
        for _ in range(5000):
            token = loop.token()
            loop.call_soon_threadsafe(loop.resume, token)
            await loop.suspend(token, 60)

    run(main())
    assert len(loop._deadlines) < 10


def test_tasks_that_ended_do_not_fill_the_heap(run: Run) -> None:
    loop = run.loop

    async def once() -> None:
        token = loop.token()
        loop.call_soon_threadsafe(loop.resume, token)
        await loop.suspend(token, 60)

    async def main() -> None:
        for _ in range(50):
            for _ in range(200):
                loop.spawn(once())
            await loop.sleep(0)

    run(main())
    assert len(loop._deadlines) < 3000


# Tasks.


def test_cancel_throws_where_the_task_waits(run: Run, pair: Pair) -> None:
    fd = pair[0].fileno()
    seen: list[str] = []
    waits: list[Callable[[], Any]] = [
        lambda: run.loop.readable(fd, 100),
        lambda: run.loop.suspend(run.loop.token(), 100),
        lambda: run.loop.sleep(100),
    ]

    async def wait(make: Callable[[], Any]) -> None:
        try:
            await make()
        finally:
            await run.loop.sleep(0)  # cleaning up may wait
            seen.append("ended")

    async def main() -> None:
        for make in waits:
            task = run.loop.spawn(wait(make))
            await run.loop.sleep(0)
            task.cancel()
            task.cancel()
            await until(run.loop, lambda task=task: task.done)  # type: ignore[misc]

    run(main())
    assert seen == ["ended"] * 3
    run.loop.forget(fd)


def test_cancel_before_the_first_step(run: Run) -> None:
    async def never() -> None:
        raise AssertionError("it ran")

    async def main() -> None:
        task = run.loop.spawn(never())
        task.cancel()
        await until(run.loop, lambda: task.done)

    run(main())


def test_task_may_cancel_itself(run: Run) -> None:
    tasks: list[Any] = []
    seen: list[str] = []

    async def own() -> None:
        tasks[0].cancel()
        seen.append("runs on until it waits")
        await run.loop.sleep(100)
        seen.append("not reached")

    async def main() -> None:
        tasks.append(run.loop.spawn(own()))
        await until(run.loop, lambda: tasks[0].done)

    run(main())
    assert seen == ["runs on until it waits"]
    assert tasks[0].done


def test_on_done_is_called_once(run: Run) -> None:
    ended: list[str] = []

    async def nothing() -> None:
        pass

    async def main() -> None:
        task = run.loop.spawn(nothing(), name="x")
        task.on_done(lambda t: ended.append(t.name))
        await until(run.loop, lambda: task.done)
        task.on_done(lambda t: ended.append("late"))

    run(main())
    assert ended == ["x", "late"]


def test_failed_task_is_logged_and_hurts_no_other(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise KeyError("what went wrong")

    async def main() -> None:
        task = run.loop.spawn(fail(), name="failing")
        run.loop.call_soon_threadsafe(int, "no number")
        run.loop.before_wait(lambda: int("no number"))
        await until(run.loop, lambda: task.done and caplog.text.count("no number") > 1)

    with caplog.at_level(logging.ERROR):
        run(main())
    assert "failing" in caplog.text
    assert "what went wrong" in caplog.text
    assert caplog.text.count("no number") >= 2


def test_before_wait_runs_once_after_what_is_ready(run: Run) -> None:
    calls: list[str] = []

    async def step(name: str) -> None:
        calls.append(name)

    async def main() -> None:
        run.loop.before_wait(lambda: calls.append("flush"))
        run.loop.spawn(step("a"))
        run.loop.spawn(step("b"))
        await until(run.loop, lambda: len(calls) == 3)
        await run.loop.sleep(0)

    run(main())
    assert calls.count("flush") == 1
    assert sorted(calls) == ["a", "b", "flush"]


def test_turn_comes_after_events(run: Run, pair: Pair) -> None:
    """A task that gives others a turn waits for those, too, whose event was not seen yet."""
    order: list[str] = []

    async def main() -> None:
        run.loop.spawn(note_event(run.loop, pair[0], order))
        await run.loop.sleep(0)
        pair[1].send(b"x")
        await run.loop.turn()
        order.append("turn")

    run(main())
    assert order == ["event", "turn"]


def test_client_that_was_answered_goes_before_a_turn(run: Run, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may need the processor that the loop uses, and what it sends then is served first."""
    order: list[str] = []
    wait = select.select

    def client(*args: Any) -> Any:
        order.append("client")
        pair[1].send(b"x")
        return wait(*args)

    async def main() -> None:
        run.loop.spawn(note_event(run.loop, pair[0], order))
        await run.loop.sleep(0)
        await run.loop.turn()
        order.append("turn")
        run.loop.expects = True
        await run.loop.turn()
        order.append("turn")
        await run.loop.turn()
        order.append("turn")

    monkeypatch.setattr(select, "select", client)
    run(main())
    assert order == ["turn", "client", "event", "turn", "turn"]
    run.loop.forget(pair[0].fileno())


def test_loop_looks_for_events_only_where_one_is_expected(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """No deadline ends its look."""
    monkeypatch.setattr(run.loop, "_look", 3600.0)
    run(run.loop.sleep(SOON))


# Workers.


def test_loop_does_not_keep_the_interpreter_from_a_worker(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sleeps when it has handed a call over, however long it looks for events otherwise."""
    run.loop.expects = True
    asleep = threading.Event()
    sleep = run.loop._sleep

    def noted(now: float) -> Any:
        asleep.set()
        return sleep(now)

    monkeypatch.setattr(run.loop, "_sleep", noted)
    monkeypatch.setattr(run.loop, "_look", 3600.0)
    assert run(run.loop.worker(asleep.wait, PATIENCE))


def test_worker_returns_and_raises(run: Run) -> None:
    def fail() -> None:
        raise KeyError("no")

    async def main() -> None:
        assert await run.loop.worker(threading.get_ident) != threading.get_ident()
        assert await run.loop.worker(max, 1, 2) == 2
        with pytest.raises(KeyError):
            await run.loop.worker(fail)

    run(main())


def test_calls_past_the_limit_wait_in_order(run: Run) -> None:
    gates = [threading.Event() for _ in range(6)]
    ended: list[int] = []

    async def call(i: int) -> None:
        await run.loop.worker(gates[i].wait, 10)
        ended.append(i)

    async def main() -> None:
        for i in range(6):
            run.loop.spawn(call(i))
        await run.loop.sleep(0)
        workers = run.loop._workers
        for i in range(6):
            # Two run, the others wait: opening a later gate would end nothing.
            assert (workers.threads, workers.waiting) == (2, max(4 - i, 0))
            gates[i].set()
            await until(run.loop, lambda i=i: len(ended) == i + 1)  # type: ignore[misc]

    run(main())
    assert ended == [0, 1, 2, 3, 4, 5]


def overloaded(**options: Any) -> None:
    """Two calls meet a loop with one worker: the second must be refused."""
    loop = Loop(max_workers=1, worker_nice=0, **options)
    gate = threading.Event()
    refused: list[Overloaded] = []
    ran: list[int] = []

    async def first() -> None:
        await loop.worker(gate.wait, 10)
        loop.stop()

    async def second() -> None:
        try:
            await loop.worker(ran.append, 1)
        except Overloaded as e:
            refused.append(e)
        gate.set()

    loop.spawn(first())
    loop.spawn(second())
    loop.run()
    loop.close()
    assert refused[0].status == 503
    assert not ran


def test_full_queue_is_overload() -> None:
    overloaded(max_queue=0)


def test_waiting_too_long_for_a_worker_is_overload() -> None:
    overloaded(queue_timeout=SOON)


@pytest.fixture
def thread_limit(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many more threads may start: the one number that it holds."""
    left = [100]
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    return left


def test_call_waits_for_a_worker_where_no_other_thread_can_start(
    run: Run, thread_limit: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    gate, ran = threading.Event(), []
    thread_limit[0] = 1

    async def main() -> None:
        tasks = [run.loop.spawn(run.loop.worker(gate.wait, 10))]
        await until(run.loop, lambda: run.loop.workers.busy == 1)
        tasks += [run.loop.spawn(run.loop.worker(ran.append, i)) for i in range(3)]
        await until(run.loop, lambda: run.loop.workers.waiting == 3)
        gate.set()
        await until(run.loop, lambda: all(task.done for task in tasks))

    run(main())
    assert ran == [0, 1, 2]
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # not one for each call
    assert "Cannot start worker 2: can't start new thread" in caplog.text


def test_call_that_waits_goes_first_when_threads_can_start_again(run: Run, thread_limit: list[int]) -> None:
    gate, ran = threading.Event(), []
    thread_limit[0] = 1

    async def main() -> None:
        busy = run.loop.spawn(run.loop.worker(gate.wait, 10))
        first = run.loop.spawn(run.loop.worker(ran.append, "first"))
        await until(run.loop, lambda: run.loop.workers.waiting == 1)
        thread_limit[0] = 1
        second = run.loop.spawn(run.loop.worker(ran.append, "second"))
        await until(run.loop, lambda: first.done and second.done)
        gate.set()
        await until(run.loop, lambda: busy.done)

    run(main())
    assert ran == ["first", "second"]


def test_call_is_refused_where_no_thread_can_start_at_all(run: Run, thread_limit: list[int]) -> None:
    thread_limit[0] = 0

    async def main() -> None:
        with pytest.raises(Overloaded):
            await run.loop.worker(print)
        thread_limit[0] = 1
        assert await run.loop.worker(len, "abc") == 3

    run(main())


def test_cancelled_task_waits_for_its_worker(run: Run) -> None:
    gate, ended = threading.Event(), []

    async def call() -> None:
        try:
            await run.loop.worker(gate.wait, 10)
        except TaskCancelled:
            ended.append(gate.is_set())
            raise

    async def main() -> None:
        task = run.loop.spawn(call())
        await run.loop.sleep(0)
        task.cancel()
        await run.loop.sleep(SOON)
        assert not task.done
        gate.set()
        await until(run.loop, lambda: task.done)

    run(main())
    assert ended == [True]


def test_cancelled_task_withdraws_a_waiting_call(run: Run) -> None:
    gate, ran = threading.Event(), []

    async def call(function: Callable[..., Any], *args: Any) -> None:
        await run.loop.worker(function, *args)

    async def main() -> None:
        busy = [run.loop.spawn(call(gate.wait, 10)) for _ in range(2)]
        task = run.loop.spawn(call(ran.append, 1))
        await run.loop.sleep(0)
        task.cancel()
        await until(run.loop, lambda: task.done)
        gate.set()
        await until(run.loop, lambda: all(b.done for b in busy))

    run(main())
    assert not ran


def test_idle_worker_ends(run: Run) -> None:
    run.loop._workers._idle_timeout = SOON
    threads: list[threading.Thread] = []

    async def main() -> None:
        threads.append(await run.loop.worker(threading.current_thread))
        await until(run.loop, lambda: not run.loop._workers._threads)
        threads.append(await run.loop.worker(threading.current_thread))  # and another comes on demand

    run(main())
    run.loop._workers.close(10)
    assert threads[0] is not threads[1]
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_crypto_runs_in_the_loop_where_the_system_starts_no_thread(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The handshake of each client was cut off, also while workers were there."""
    monkeypatch.setattr(run.loop._crypto, "_start_thread", lambda: None)

    async def main() -> int:
        return await run.loop.crypto(threading.get_ident, timeout=10)

    assert run(main()) == threading.get_ident()


def test_workers_that_hang_are_waited_for_together(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, now, waits = threading.Event(), [1000.0], []
    hanging = workers.Workers(lambda *_: None, limit=5)
    for _ in range(5):
        hanging.submit(workers.Job(gate.wait, (10,), lambda *_: None))

    def join(thread: threading.Thread, timeout: float) -> None:
        waits.append(timeout)
        now[0] += timeout

    with monkeypatch.context() as patch:
        patch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: now[0]))
        patch.setattr(threading.Thread, "join", join)
        hanging.close(2)
    gate.set()
    hanging.close(10)
    assert (len(waits), sum(waits)) == (5, 2)


def test_worker_that_was_used_last_is_used_first(run: Run) -> None:
    """The others sleep: a job that woke them as well would have them compete with the loop."""
    gate, used = threading.Event(), []

    async def main() -> None:
        busy = [run.loop.spawn(run.loop.worker(gate.wait, 10)) for _ in range(2)]
        await until(run.loop, lambda: run.loop.workers.busy == 2)
        gate.set()
        await until(run.loop, lambda: all(task.done for task in busy))
        used.extend([await run.loop.worker(threading.get_ident) for _ in range(10)])

    run(main())
    assert len(set(used)) == 1


def test_workers_are_nicer_than_the_loop() -> None:
    loop = Loop(max_workers=1, worker_nice=3)
    nice: list[int] = []

    async def main() -> None:
        nice.append(await loop.worker(os.getpriority, os.PRIO_PROCESS, 0))
        loop.stop()

    loop.spawn(main())
    loop.run()
    loop.close()
    assert nice == [os.getpriority(os.PRIO_PROCESS, 0) + 3]


# Waking, stopping.


@pytest.fixture
def later(run: Run) -> Iterator[Callable[..., None]]:
    """Call a function from another thread, when the loop sleeps."""
    timers: list[threading.Timer] = []

    def start(call: Callable[..., object], *args: Any) -> None:
        timers.append(threading.Timer(SOON, call, args))
        timers[-1].start()

    yield start
    for timer in timers:
        timer.join()


def test_other_threads_wake_a_sleeping_loop(run: Run, later: Callable[..., None]) -> None:
    async def main() -> Any:
        token = run.loop.token()
        later(run.loop.call_soon_threadsafe, run.loop.resume, token, "awake")
        return await run.loop.suspend(token)

    assert run(main()) == "awake"


def test_signal_wakes_the_loop(run: Run, later: Callable[..., None]) -> None:
    loop = run.loop
    token = loop.token()

    def handle(number: int, _: Any) -> None:
        loop._ready.append((None, loop.resume, (token, number)))  # and wakes nobody

    async def main() -> Any:
        later(os.kill, os.getpid(), signal.SIGUSR1)
        return await loop.suspend(token, 5)

    previous = signal.signal(signal.SIGUSR1, handle)
    try:
        assert run(main()) == signal.SIGUSR1
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_stop_from_a_signal_handler(later: Callable[..., None]) -> None:
    loop = Loop()
    previous = signal.signal(signal.SIGUSR1, lambda *_: loop.stop())
    try:
        # From within the loop: a signal that comes before it runs would be forgotten.
        loop.call_soon_threadsafe(later, os.kill, os.getpid(), signal.SIGUSR1)
        loop.run()
    finally:
        signal.signal(signal.SIGUSR1, previous)
        loop.close()


def test_close_lets_tasks_clean_up() -> None:
    loop = Loop()
    ended: list[str] = []

    async def wait() -> None:
        try:
            await loop.sleep(1000)
        finally:
            ended.append("clean")

    async def main() -> None:
        loop.stop()

    loop.spawn(wait())
    loop.spawn(main())
    loop.run()
    loop.close()
    assert ended == ["clean"]


async def until(loop: Loop, condition: Callable[[], bool]) -> None:
    """Let the loop turn until the condition holds; the runner gives up in the end."""
    while not condition():
        await loop.sleep(0.001)


async def note_event(loop: Loop, sock: socket.socket, order: list[str]) -> None:
    """Wait until a socket may be read."""
    await loop.readable(sock.fileno())
    order.append("event")


def fill(sock: socket.socket) -> int:
    """Send until the socket takes no more; return the bytes sent."""
    sent = 0
    try:
        while True:
            sent += sock.send(bytes(65536))
    except BlockingIOError:
        return sent


def count_turns(loop: Loop) -> Callable[[], int]:
    """Count how often the loop turns from now on."""
    turns = 0

    def again() -> None:
        nonlocal turns
        turns += 1
        loop.before_wait(again)

    loop.before_wait(again)
    return lambda: turns
