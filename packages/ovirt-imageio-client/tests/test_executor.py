# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import logging
import random
import select
import signal
import threading

import pytest

from ovirt_imageio.client import executor as module
from ovirt_imageio.client import plan
from ovirt_imageio.client.executor import Checkpoints, Executor, Pair, Retry, StepQueue, is_passing, persist
from ovirt_imageio.client.plan import Action, Step
from ovirt_imageio.client.progress import Counter
from ovirt_imageio.common.backends.base import pieces
from ovirt_imageio.common.backends.http.errors import Unreachable, Untrusted, refusal
from ovirt_imageio.common.backends.memory import Memory, MemoryBackend
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.errors import ConnectionTimeout, ImageioError, OperationCancelled, PeerGone, TransferError
from ovirt_imageio.common.units import KiB, MiB


def no_pause(event, seconds):
    return None


class MemoryPair(Pair):
    """From memory to memory; `fault` is called before each piece and may raise."""

    def __init__(self, world):
        self.world = world
        self.source = MemoryBackend(world.source, mode="r")
        self.target = MemoryBackend(world.target)
        self.acknowledges = world.acknowledges
        self.closed = False
        with world.lock:
            world.pairs.append(self)

    def copy(self, offset, length, op):
        self.owes_flush = True
        for start, count in pieces(offset, length, 64 * KiB):
            op.check()
            self.world.fault("copy", start)
            buf = bytearray(count)
            self.source.read_into(start, buf)
            self.target.write(start, buf)
            op.advance(count)

    def zero(self, offset, length):
        self.owes_flush = True
        self.world.fault("zero", offset)
        self.target.zero(offset, length)

    def flush(self):
        self.world.fault("flush", 0)
        with self.world.lock:
            self.world.flushes += 1
        self.owes_flush = False

    def close(self):
        self.closed = True


class World:
    def __init__(self, data, *, fault=lambda kind, offset: None, acknowledges=False):
        self.source = Memory(data)
        self.target = Memory(b"\xff" * len(data))
        self.fault = fault
        self.acknowledges = acknowledges
        self.lock = threading.Lock()
        self.pairs = []
        self.flushes = 0
        self.counted = []

    def run(self, *, workers=2, retry=None, steps=None, limit=MiB, pause=no_pause):
        size = len(self.source.data)
        counter = Counter(self.counted.append, size)
        executor = Executor(
            lambda: MemoryPair(self), counter, workers=workers, retry=retry or Retry(attempts=4), pause=pause
        )
        if steps is None:
            steps = plan.upload_steps(MemoryBackend(self.source).extents(), copy_limit=limit)
        executor.run(steps)

    @property
    def moved(self):
        return bytes(self.target.data) == bytes(self.source.data)


@pytest.fixture
def image():
    rand = random.Random(1)
    return rand.randbytes(3 * MiB) + bytes(2 * MiB) + rand.randbytes(MiB + 512)


def test_all_steps_are_done_and_each_byte_counts_once(image):
    world = World(image)
    world.run()
    assert world.moved
    assert sum(world.counted) == len(image)


def test_every_worker_that_wrote_flushes_and_closes(image):
    world = World(image)
    world.run(workers=3)
    assert world.flushes == len(world.pairs)
    assert all(pair.closed and not pair.owes_flush for pair in world.pairs)


def test_empty_plan_opens_nothing():
    world = World(b"")
    world.run()
    assert world.pairs == []


def test_skipped_steps_count_and_open_nothing(image):
    world = World(image)
    world.run(steps=[Step(Action.SKIP, 0, len(image))])
    assert world.counted == [len(image)]
    assert world.pairs == []


@pytest.mark.parametrize("acknowledges", [False, True])
def test_passing_failures_are_repeated_and_bytes_count_once(image, acknowledges):
    rand = random.Random(2)

    def fault(kind, offset):
        if rand.random() < 0.3:
            raise rand.choice([PeerGone("gone"), ConnectionResetError(), refusal("x", 503, "busy", "")])

    world = World(image, fault=fault, acknowledges=acknowledges)
    world.run(retry=Retry(attempts=40))
    assert world.moved
    assert sum(world.counted) == len(image)
    assert len(world.pairs) > 2


def test_connection_that_always_breaks_after_some_bytes_ends_the_transfer_well():
    data = random.Random(3).randbytes(4 * MiB)
    left = [0]

    def fault(kind, offset):
        left[0] -= 64 * KiB
        if kind == "copy" and left[0] < 0:
            left[0] = 256 * KiB
            raise PeerGone("connection lost after 256 KiB")

    world = World(data, fault=fault)
    world.run(workers=1, limit=4 * MiB, retry=Retry(attempts=10))
    assert world.moved


def test_acknowledged_bytes_are_not_copied_again():
    data = random.Random(4).randbytes(MiB)
    seen = []

    def fault(kind, offset):
        if kind == "copy":
            seen.append(offset)
            if len(seen) == 9:
                raise PeerGone("gone")

    world = World(data, fault=fault, acknowledges=True)
    world.run(workers=1)
    assert seen == [*range(0, 9 * 64 * KiB, 64 * KiB), *range(8 * 64 * KiB, MiB, 64 * KiB)]


def test_failure_that_does_not_pass_is_reported_with_attempts_and_range(image):
    def fault(kind, offset):
        if kind == "copy":
            raise ConnectionTimeout("silent")

    world = World(image, fault=fault)
    with pytest.raises(TransferError, match=r"copy \d+ bytes at \d+, gave up after 4 attempts: silent"):
        world.run()
    assert all(pair.closed for pair in world.pairs)


def test_fatal_failure_is_raised_at_once_and_ends_all_workers(image):
    error = OSError(28, "No space left on device")

    def fault(kind, offset):
        if offset >= MiB:
            raise error

    world = World(image, fault=fault)
    with pytest.raises(OSError) as info:
        world.run()
    assert info.value is error
    assert world.flushes == 0


def test_what_the_progress_raises_ends_the_transfer(image):
    world = World(image)

    def update(n):
        raise RuntimeError("caller's own")

    executor = Executor(lambda: MemoryPair(world), Counter(update, 1), workers=2, pause=no_pause)
    with pytest.raises(RuntimeError, match="caller's own"):
        executor.run([Step(Action.COPY, 0, MiB), Step(Action.COPY, MiB, MiB)])


def test_failing_extents_end_the_workers(image, monkeypatch):
    monkeypatch.setattr(module, "_STOP_TIMEOUT", 20)
    world = World(image)

    def steps():
        yield Step(Action.COPY, 0, MiB)
        raise PeerGone("while listing")

    with pytest.raises(PeerGone, match="while listing"):
        world.run(steps=steps())
    assert all(pair.closed for pair in world.pairs)


def test_keyboard_interrupt_stops_workers_and_passes_on(image, monkeypatch):
    monkeypatch.setattr(module, "_STOP_TIMEOUT", 20)
    world = World(image)

    def steps():
        yield Step(Action.COPY, 0, MiB)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.run(steps=steps())
    assert all(pair.closed for pair in world.pairs)
    assert world.flushes == 0


class Stuck(MemoryPair):
    """Waits for an end that is silent; a cancel wakes it, as it wakes a socket."""

    def __init__(self, world, cancel):
        super().__init__(world)
        self.cancel = cancel
        self.waiting, self.woken = threading.Event(), threading.Event()

    def copy(self, offset, length, op):
        with self.cancel.waking(self.woken.set):
            self.waiting.set()
            assert self.woken.wait(20)
        raise PeerGone("woken")


def run_stuck(steps, cancel, workers=1, **keys):
    stuck = []

    def open_pair():
        stuck.append(Stuck(World(bytes(20)), cancel))
        return stuck[-1]

    executor = Executor(open_pair, Counter(None, 20), workers=workers, cancel=cancel, pause=no_pause, **keys)
    executor.run(steps(stuck))


def one_step_and(end):
    def steps(stuck):
        yield Step(Action.COPY, 0, 10)
        while not stuck:
            select.select([], [], [], 0.01)
        assert stuck[0].waiting.wait(20)
        yield from end() or ()

    return steps


def test_control_c_wakes_a_worker_that_waits():
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stuck(one_step_and(interrupt), Cancel())


def test_cancel_wakes_a_worker_that_waits():
    cancel = Cancel()
    with pytest.raises(OperationCancelled):
        run_stuck(one_step_and(cancel.cancel), cancel)
    assert not cancel._wakes


def test_failure_of_one_worker_wakes_the_others_and_the_steps():
    """Steps are made while an end lists its extents, which may take as long."""
    cancel = Cancel()

    def steps(stuck):
        yield Step(Action.COPY, 0, 10)
        with cancel.waking(release.set):
            started.set()
            assert release.wait(20)
        cancel.check()

    started, release = threading.Event(), threading.Event()

    class Failing(MemoryPair):
        def copy(self, offset, length, op):
            assert started.wait(20)
            raise OSError(28, "No space left on device")

    executor = Executor(lambda: Failing(World(bytes(20))), Counter(None, 20), workers=1, cancel=cancel)
    with pytest.raises(OSError, match="No space left"):
        executor.run(steps(()))


def test_cancelled_transfer_starts_nothing():
    cancel = Cancel()
    cancel.cancel()
    world = World(bytes(20))
    executor = Executor(lambda: MemoryPair(world), Counter(None, 20), cancel=cancel)
    with pytest.raises(OperationCancelled):
        executor.run([Step(Action.COPY, 0, 20)])
    assert world.pairs == []


def test_cancel_between_the_last_step_and_the_flush_flushes_nothing():
    cancel = Cancel()
    world = World(bytes(20), fault=lambda kind, offset: cancel.cancel() if kind == "copy" else None)
    recorded = []
    checkpoints = Checkpoints(recorded.append, length=10, seconds=0.0)
    executor = Executor(lambda: MemoryPair(world), Counter(None, 20), workers=1, cancel=cancel, checkpoints=checkpoints)
    with pytest.raises(OperationCancelled):
        executor.run([Step(Action.COPY, 0, 20)])
    assert (world.flushes, recorded) == (0, [])


def test_attempts_are_told(image):
    left = [3]

    def fault(kind, offset):
        if left[0]:
            left[0] -= 1
            raise PeerGone("gone")

    told = []
    world = World(image, fault=fault)
    executor = Executor(
        lambda: MemoryPair(world), Counter(None, 1), workers=1, on_retry=lambda: told.append(1), pause=no_pause
    )
    executor.run(COPIES[:1])
    assert len(told) == 3


def test_control_c_while_workers_are_waited_for_takes_none_for_ended(monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(module, "_STOP_TIMEOUT", 0.05)
    release = threading.Event()
    ended = threading.Event()

    class StuckForGood(MemoryPair):
        def copy(self, offset, length, op):
            queue = executor._queue
            with queue._changed:
                queue._changed.wait_for(lambda: queue._closed, 10)
            # No step will come: the caller's thread waits for the workers, or is about to.
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            assert release.wait(10)
            raise OperationCancelled("stopped")

        def close(self):
            ended.set()

    executor = Executor(lambda: StuckForGood(World(bytes(10))), Counter(None, 10), workers=1, pause=no_pause)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            executor.run([Step(Action.COPY, 0, 10)])
        assert not ended.is_set()
    finally:
        signal.signal(signal.SIGINT, before)
        release.set()
    assert "Left behind, waiting for an end that is silent: transfer-0" in caplog.text
    assert ended.wait(10)


def test_wait_for_workers_looks_for_signals_now_and_then(monkeypatch):
    """A Control-C that came just before a wait is seen only when that is over."""
    waits = []

    class Ended(threading.Event):
        def wait(self, timeout=None):
            waits.append(timeout)
            return len(waits) == 3

    executor = Executor(lambda: None, Counter(None, 0), workers=1)
    (worker,) = executor._workers
    monkeypatch.setattr(worker, "_ended", Ended())
    monkeypatch.setattr(worker, "_thread", threading.current_thread())
    monkeypatch.setattr(threading.current_thread(), "join", lambda: None)
    executor._wait()
    assert waits == [module._LOOK] * 3


def test_flush_is_owed_by_a_connection_that_broke():
    data = random.Random(5).randbytes(2 * MiB)
    state = {"broke": False}

    def fault(kind, offset):
        if kind == "flush" and not state["broke"]:
            state["broke"] = True
            raise ConnectionResetError

    world = World(data, fault=fault)
    world.run(workers=1)
    assert world.flushes == 1
    assert len(world.pairs) == 2


def test_pauses_grow_and_are_bounded():
    retry = Retry(attempts=10, delay=0.1, max_delay=2.0)
    pauses = [retry.pause(n) for n in range(1, 10)]
    assert all(pause <= 2.0 for pause in pauses)
    assert 0.05 <= pauses[0] <= 0.1
    assert pauses[-1] >= 1.0


def test_pauses_are_waited_for_between_attempts(image):
    waited = []

    def fault(kind, offset):
        raise PeerGone("gone")

    world = World(image, fault=fault)
    with pytest.raises(TransferError):
        world.run(workers=1, pause=lambda event, seconds: waited.append(seconds))
    assert len(waited) == 3


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (PeerGone("x"), True),
        (ConnectionTimeout("x"), True),
        (ConnectionResetError(), True),
        (BrokenPipeError(), True),
        (Unreachable("x"), True),
        (Untrusted("x"), False),
        (refusal("x", 503, "r", "t"), True),
        (refusal("x", 403, "r", "t"), False),
        (refusal("x", 500, "r", "t"), False),
        (OSError(28, "x"), False),
        (ValueError(), False),
        (OperationCancelled("x"), False),
    ],
)
def test_passing_errors(error, passing):
    assert is_passing(error) is passing


def test_queue_gives_steps_in_order_and_ends():
    queue = StepQueue()
    steps = [Step(Action.COPY, 0, 10), Step(Action.SKIP, 10, 1 << 50)]
    for step in steps:
        queue.put(step)
    queue.close()
    assert [queue.get(), queue.get(), queue.get()] == [*steps, None]


def test_queue_clear_drops_what_is_left():
    queue = StepQueue()
    queue.put(Step(Action.COPY, 0, 10))
    queue.clear()
    assert queue.get() is None


class Recorder:
    """Takes what is on stable storage; the clock is the test's."""

    def __init__(self, world, *, length, seconds=1000.0):
        self.world = world
        self.records = []
        self.time = 0.0
        self.checkpoints = Checkpoints(self.record, length=length, seconds=seconds, now=lambda: self.time)

    def record(self, steps):
        self.records.append((self.world.flushes, list(steps)))

    def run(self, steps, fault=None):
        executor = Executor(
            lambda: MemoryPair(self.world),
            Counter(None, 0),
            workers=1,
            retry=Retry(attempts=3),
            checkpoints=self.checkpoints,
            pause=no_pause,
        )
        executor.run(steps)


COPIES = [Step(Action.COPY, n * MiB, MiB) for n in range(6)]


def test_steps_are_recorded_after_the_flush_that_covers_them(image):
    recorder = Recorder(World(image), length=2 * MiB)
    recorder.run(COPIES[:5])
    assert recorder.records == [(1, COPIES[0:2]), (2, COPIES[2:4]), (3, COPIES[4:5])]


def test_steps_are_recorded_when_time_has_passed(image):
    world = World(image)
    recorder = Recorder(world, length=100 * MiB, seconds=2.0)

    def fault(kind, offset):
        if kind == "copy":
            recorder.time += 0.125

    world.fault = fault
    recorder.run(COPIES)
    assert [steps for _, steps in recorder.records] == [COPIES[0:1], COPIES[1:2], *([step] for step in COPIES[2:])]


def test_what_was_not_flushed_is_not_recorded(image):
    def fault(kind, offset):
        if kind == "flush" and len(recorder.records) == 1:
            raise OSError(5, "Input/output error")

    world = World(image, fault=fault)
    recorder = Recorder(world, length=2 * MiB)
    with pytest.raises(OSError, match="Input/output"):
        recorder.run(COPIES)
    assert [steps for _, steps in recorder.records] == [COPIES[0:2]]


def test_skipped_steps_are_recorded_and_done_ones_are_not(image):
    recorder = Recorder(World(image), length=2 * MiB)
    recorder.run([Step(Action.DONE, 0, MiB), Step(Action.SKIP, MiB, MiB)])
    assert recorder.records == [(0, [Step(Action.SKIP, MiB, MiB)])]


def test_requests_are_multiples_of_the_unit_also_after_failures():
    data = random.Random(6).randbytes(10 * MiB + 512)
    asked = []

    class Units(MemoryPair):
        unit = 3 * MiB

        def copy(self, offset, length, op):
            asked.append((offset, length))
            if len(asked) % 2:
                raise PeerGone("gone")
            super().copy(offset, length, op)

    world = World(data)
    executor = Executor(lambda: Units(world), Counter(None, 0), workers=1, retry=Retry(attempts=30), pause=no_pause)
    executor._workers[0]._limit = 4 * MiB
    executor.run([Step(Action.COPY, 0, len(data))])
    assert world.moved
    assert {offset % (3 * MiB) for offset, _ in asked} == {0}


def test_trouble_is_shown_in_the_progress_until_bytes_move(image):
    phases = []

    class Bar:
        size = None

        def __init__(self):
            self._phase = "uploading"

        @property
        def phase(self):
            return self._phase

        @phase.setter
        def phase(self, text):
            self._phase = text
            phases.append(text)

        def update(self, n):
            pass

    left = [2]

    def fault(kind, offset):
        if left[0]:
            left[0] -= 1
            raise PeerGone("connection lost")

    world = World(image, fault=fault)
    executor = Executor(
        lambda: MemoryPair(world), Counter(Bar(), 1), workers=1, retry=Retry(attempts=5), pause=no_pause
    )
    executor.run(COPIES[:1])
    assert phases == [
        "uploading (attempt 2 of 5: connection lost)",
        "uploading (attempt 3 of 5: connection lost)",
        "uploading",
    ]


def test_persist_repeats_what_passes_and_raises_the_last_failure():
    failures = [PeerGone("one"), ConnectionTimeout("two")]
    pauses = []

    def call():
        if failures:
            raise failures.pop(0)
        return "done"

    assert persist(call, "try", pause=pauses.append) == "done"
    assert len(pauses) == 2

    failures = [PeerGone(str(n)) for n in range(9)]
    with pytest.raises(PeerGone, match="2"):
        persist(call, "try", retry=Retry(attempts=3), pause=pauses.append)
    assert len(pauses) == 4


def test_persist_raises_at_once_what_does_not_pass():
    def call():
        raise refusal("x", 403, "Forbidden", "no such ticket")

    with pytest.raises(ImageioError, match="no such ticket"):
        persist(call, "try", pause=lambda seconds: pytest.fail("waited"))
