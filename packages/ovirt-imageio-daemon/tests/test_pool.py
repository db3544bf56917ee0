# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Requests of one ticket share its open backends, wait in line, and leave none behind."""

from __future__ import annotations

import threading

import pytest

from imageio_testing.nbdpeer import Peer
from imageio_testing.serving import PATIENCE, Runner
from imageio_testing.streams import Count
from imageio_testing.volatile import ASKED, Volatile
from ovirt_imageio.common import backends
from ovirt_imageio.common.backends.memory import Memory, MemoryBackend
from ovirt_imageio.common.errors import AuthorizationError, OperationCancelled, RequestError
from ovirt_imageio.common.nbd import ServerFull, ServerGone, ServerTimeout, wire
from ovirt_imageio.daemon import lending
from ovirt_imageio.daemon.errors import Overloaded
from ovirt_imageio.daemon.operations import FLUSH, READ, WRITE, Operation
from ovirt_imageio.daemon.pool import Pool

SIZE = 1 << 20


class Storage:
    """Counts what is open of an image in memory, and opens as the test says."""

    def __init__(self):
        self.memory = Memory(bytes(range(256)), size=SIZE)
        self.opened = 0
        self.open_now = 0
        self.errors = []
        self.gate = None
        self.entered = threading.Event()

    def __call__(self):
        if self.gate is not None:
            self.entered.set()
            assert self.gate.wait(PATIENCE)
        if self.errors:
            raise self.errors.pop(0)
        self.opened += 1
        self.open_now += 1
        return Counted(self)


class Counted(MemoryBackend):
    def __init__(self, storage):
        super().__init__(storage.memory)
        self._storage = storage

    def close(self):
        self._storage.open_now -= 1


@pytest.fixture
def run():
    runner = Runner()
    yield runner
    runner.close()


@pytest.fixture
def storage():
    storage = Storage()
    yield storage
    assert storage.open_now == 0, "a backend was left open"


@pytest.fixture
def make(run, storage):
    pools = []

    def make(**options):
        pools.append(Pool(run.loop, storage, **options))
        return pools[-1]

    yield make
    for pool in pools:
        assert run(pool.close(PATIENCE)), "the pool does not close"


async def until(run, condition):
    while not condition():
        await run.loop.sleep(0)


async def ended(run, task):
    await until(run, lambda: task.done)


def test_first_request_opens_the_storage(run, storage, make):
    pool = make()
    assert pool.storage is None
    assert run(pool.prepare()).size == SIZE
    run(pool.prepare())
    assert (storage.opened, pool.open_count) == (1, 1)


def test_requests_that_come_together_open_it_once(run, storage, make):
    pool = make()
    storage.gate = threading.Event()

    async def script():
        tasks = [run.loop.spawn(pool.prepare()) for _ in range(3)]
        await until(run, storage.entered.is_set)
        storage.gate.set()
        for task in tasks:
            await ended(run, task)

    run(script())
    assert storage.opened == 1


def test_storage_that_cannot_be_opened_is_tried_again(run, storage, make):
    pool = make()
    storage.errors = [FileNotFoundError("gone")]
    with pytest.raises(FileNotFoundError):
        run(pool.prepare())
    assert pool.open_count == 0
    run(pool.prepare())
    assert pool.open_count == 1


def test_backends_are_used_again(run, storage, make):
    pool = make()

    async def script():
        for _ in range(3):
            async with pool.borrow(Operation(READ)) as found:
                assert len(found) == 1

    run(script())
    assert storage.opened == 1


def test_lends_as_many_as_are_of_use_while_nobody_waits(run, storage, make):
    pool = make(limit=3)

    async def script():
        async with pool.borrow(Operation(READ), wish=2) as two:
            assert len(two) == 2
            async with pool.borrow(Operation(READ), wish=2) as one:
                assert len(one) == 1

    run(script())
    assert storage.opened == 3


def test_extra_backend_that_cannot_be_opened_is_done_without(run, storage, make):
    pool = make()
    run(pool.prepare())
    storage.errors = [OSError("no more")]

    async def script():
        async with pool.borrow(Operation(READ), wish=2) as found:
            assert len(found) == 1

    run(script())


def test_first_in_line_gets_what_is_given_back(run, storage, make):
    pool = make(limit=1)
    order = []

    async def use(name):
        async with pool.borrow(Operation(READ)):
            order.append(name)

    async def script():
        members = await pool.lend(Operation(READ), 1)
        tasks = []
        for name in "abc":
            tasks.append(run.loop.spawn(use(name)))
            await until(run, lambda: pool.waiting_count == len(tasks))
        assert order == []
        pool.give_back(members)
        for task in tasks:
            await ended(run, task)

    run(script())
    assert order == ["a", "b", "c"]
    assert storage.opened == 1


def test_cancelled_operation_leaves_the_line(run, storage, make):
    pool = make(limit=1)

    async def script():
        members = await pool.lend(Operation(READ), 1)
        op = Operation(READ)
        errors = []

        async def wait():
            try:
                await pool.lend(op, 1)
            except OperationCancelled as e:
                errors.append(e)

        task = run.loop.spawn(wait())
        await until(run, lambda: pool.waiting_count == 1)
        op.cancel()
        await ended(run, task)
        assert errors
        assert pool.waiting_count == 0
        pool.give_back(members)

    run(script())


def test_line_ends_after_a_while(run, storage, make, monkeypatch):
    monkeypatch.setattr(lending, "QUEUE_TIMEOUT", 0.01)
    pool = make(limit=1)

    async def script():
        members = await pool.lend(Operation(READ), 1)
        with pytest.raises(Overloaded):
            await pool.lend(Operation(READ), 1)
        pool.give_back(members)

    run(script())


def test_broken_backend_is_replaced_and_its_place_given_to_the_line(run, storage, make):
    pool = make(limit=1)

    async def script():
        members = await pool.lend(Operation(READ), 1)
        waiting = []

        async def wait():
            waiting.extend(await pool.lend(Operation(READ), 1))

        task = run.loop.spawn(wait())
        await until(run, lambda: pool.waiting_count == 1)
        members[0].backend.broken = ServerGone("x")
        pool.give_back(members)
        await ended(run, task)
        assert waiting[0].backend is not members[0].backend
        pool.give_back(waiting)

    run(script())
    assert (storage.opened, pool.open_count) == (2, 1)


def test_full_server_lowers_the_limit_for_a_while(run, storage, make):
    pool = make()

    async def script():
        members = await pool.lend(Operation(READ), 1)
        storage.errors = [ServerFull("full")]

        async def use():
            async with pool.borrow(Operation(READ)):
                pass

        tasks = []
        for count in 1, 2:
            tasks.append(run.loop.spawn(use()))
            await until(run, lambda count=count: pool.waiting_count == count)
        pool.give_back(members)
        for task in tasks:
            await ended(run, task)

    run(script())
    assert storage.opened == 1, "it was asked again"


@pytest.mark.parametrize("error", [ConnectionRefusedError("no"), ServerGone("no")], ids=["refused", "gone"])
def test_backend_in_use_is_waited_for_where_no_other_can_be_opened(run, storage, make, error):
    pool = make()

    async def script():
        members = await pool.lend(Operation(READ), 1)
        storage.errors = [error]
        given = []

        async def use():
            async with pool.borrow(Operation(READ)) as backends:
                given.extend(backends)

        task = run.loop.spawn(use())
        await until(run, lambda: pool.waiting_count == 1)
        pool.give_back(members)
        await ended(run, task)
        assert given == [members[0].backend]

    run(script())
    assert storage.opened == 1


def test_backend_given_back_while_another_could_not_be_opened_is_taken(run, storage, make):
    """It would not be given back a second time: the request would wait for nothing."""
    pool = make()

    async def script():
        members = await pool.lend(Operation(READ), 1)
        storage.gate, storage.errors = threading.Event(), [ConnectionRefusedError("no")]
        given = []

        async def use():
            async with pool.borrow(Operation(READ)) as backends:
                given.extend(backends)

        task = run.loop.spawn(use())
        await until(run, storage.entered.is_set)
        pool.give_back(members)
        storage.gate.set()
        await ended(run, task)
        assert given == [members[0].backend]

    run(script())


def test_storage_is_prepared_without_a_long_wait_for_others(run, storage, make, monkeypatch):
    """Removing a ticket waits for its operations, and such a wait cannot be cancelled."""
    monkeypatch.setattr(lending, "PATIENCE", 0.0)
    monkeypatch.setattr(lending, "FIRST_GREETING", 0.0)
    pool = make(fast=False, limit=1)

    async def script():
        members = await pool.lend(Operation(READ), 1)
        pool.storage = None
        with pytest.raises(Overloaded):
            await pool.prepare()
        pool.give_back(members)

    run(script())


def test_nobody_waits_for_others_where_storage_forbids(run, storage, make):
    pool = make()

    async def script():
        members = await pool.lend(Operation(READ), 1)
        storage.errors = [AuthorizationError("the ticket has expired")]
        with pytest.raises(AuthorizationError):
            await pool.lend(Operation(READ), 1)
        pool.give_back(members)
        assert await pool.lend(Operation(READ), 1) == members
        pool.give_back(members)

    run(script())


def test_what_nobody_uses_is_given_back(run, storage, make):
    pool = make()

    async def script():
        members = await pool.lend(Operation(READ), 4)
        assert len(members) == 4
        pool.close_spare(0)
        assert pool.open_count == 4, "they are lent"
        members[1].backend.unflushed = True
        pool.give_back(members)
        pool.close_spare(3600)
        assert pool.open_count == 4, "they were used just now"
        pool.close_spare(0)
        await until(run, lambda: pool.open_count == 1)
        (left,) = await pool.lend(Operation(READ), 1)
        assert left is members[1], "it owes a flush"
        left.backend.unflushed = False
        pool.give_back([left])
        pool.close_spare(0)
        assert pool.open_count == 1, "the last one stays"

    run(script())
    assert storage.opened == 4


# The end.


def test_closing_waits_for_what_is_lent(run, storage, make):
    pool = make()

    async def script():
        members = await pool.lend(Operation(READ), 1)
        assert not await pool.close(0)
        with pytest.raises(OperationCancelled):
            await pool.lend(Operation(READ), 1)
        pool.give_back(members)
        assert await pool.close(PATIENCE)

    run(script())
    assert storage.open_now == 0


def test_closing_ends_the_line(run, storage, make):
    pool = make(limit=1)

    async def script():
        members = await pool.lend(Operation(READ), 1)
        errors = []

        async def wait():
            try:
                await pool.lend(Operation(READ), 1)
            except OperationCancelled as e:
                errors.append(e)

        task = run.loop.spawn(wait())
        await until(run, lambda: pool.waiting_count == 1)
        assert not await pool.close(0)
        await ended(run, task)
        assert errors
        pool.give_back(members)

    run(script())


@pytest.mark.parametrize("error", [None, OSError("x"), ServerFull("x")], ids=["opened", "failed", "full"])
def test_closing_waits_for_what_is_being_opened(run, storage, make, error):
    pool = make()
    storage.gate = threading.Event()
    storage.errors = [error] if error else []

    async def script():
        failed = []

        async def prepare():
            try:
                await pool.prepare()
            except Exception as e:
                failed.append(e)

        task = run.loop.spawn(prepare())
        await until(run, storage.entered.is_set)
        assert not await pool.close(0)
        storage.gate.set()
        assert await pool.close(PATIENCE)
        await ended(run, task)
        assert failed

    run(script())
    assert storage.open_now == 0


def test_backend_opened_for_a_cancelled_task_is_closed(run, storage, make):
    pool = make()
    storage.gate = threading.Event()

    async def script():
        task = run.loop.spawn(pool.prepare())
        await until(run, storage.entered.is_set)
        task.cancel()
        storage.gate.set()
        await ended(run, task)
        await until(run, lambda: not pool.open_count)

    run(script())
    assert (storage.opened, storage.open_now) == (1, 0)


def test_member_given_to_a_cancelled_task_is_not_lost(run, storage, make):
    pool = make(limit=1)

    async def script():
        members = await pool.lend(Operation(READ), 1)
        task = run.loop.spawn(pool.lend(Operation(READ), 1))
        await until(run, lambda: pool.waiting_count == 1)
        pool.give_back(members)
        task.cancel()
        await ended(run, task)
        pool.give_back(await pool.lend(Operation(READ), 1))

    run(script())
    assert storage.opened == 1


def test_idle_backends_are_closed_and_opened_again(run, storage, make):
    pool = make()

    async def script():
        await pool.prepare()
        pool.close_idle()
        await until(run, lambda: not pool.open_count)
        assert await pool.read(Operation(READ), 1, 3) == bytes([1, 2, 3])

    run(script())
    assert storage.opened == 2


def test_backend_that_owes_a_flush_stays_open(run, storage, make):
    pool = make()

    async def script():
        await pool.change(Operation(WRITE), lambda backend, op: backend.write(0, b"x"), flush=False)
        pool.close_idle()
        assert pool.open_count == 1
        await pool.flush(Operation(FLUSH))
        pool.close_idle()
        await until(run, lambda: not pool.open_count)

    run(script())


# The connection that all share.


@pytest.fixture
def server():
    with Volatile(SIZE) as server:
        yield server


@pytest.fixture
def shared(run, server):
    pools = []

    def make(**options):
        pools.append(Pool(run.loop, lambda: backends.open(server.url, mode="r+"), **options))
        run(pools[-1].prepare())
        return pools[-1]

    yield make
    for pool in pools:
        assert run(pool.close(PATIENCE)), "the pool does not close"


def test_small_requests_share_one_connection(run, server, shared):
    pool = shared()

    async def script():
        tasks = [
            run.loop.spawn(pool.write(Operation(WRITE), n * 512, bytes([n]) * 512, flush=False)) for n in range(20)
        ]
        for task in tasks:
            await ended(run, task)
        assert await pool.read(Operation(READ), 19 * 512, 1) == bytes([19])

    run(script())
    assert len(server.connections) == 1


def test_small_request_survives_a_restart_of_the_server(run, server, shared):
    pool = shared()
    run(pool.write(Operation(WRITE), 0, b"x", flush=True))
    server.crash()
    assert run(pool.read(Operation(READ), 0, 1)) == b"x"
    server.crash()
    run(pool.write(Operation(WRITE), 1, b"y", flush=True))
    server.crash()
    run(pool.zero(Operation(WRITE), 0, 1, flush=True))
    assert server.stable[:2] == b"\0y"


def test_broken_connection_fails_all_that_wait_for_it(run, server, shared):
    pool = shared()
    go, asked = threading.Event(), threading.Event()

    def hook(stage, number, request):
        if stage == ASKED and request.command == wire.CMD_READ:
            asked.set()
            go.wait(PATIENCE)

    async def script():
        server.hook = hook
        errors = []

        async def read(fast):
            try:
                await fast.read(0, 1)
            except ServerGone as e:
                errors.append(e)

        tasks = [run.loop.spawn(read(pool.fast)) for _ in range(3)]
        await until(run, asked.is_set)
        server.hook = None
        server.crash()
        go.set()
        for task in tasks:
            await ended(run, task)
        assert len(errors) == 3
        assert pool.fast is None

    run(script())


def test_silent_server_is_given_up(run, server, shared):
    pool = shared(timeout=0.05)
    go = threading.Event()
    server.hook = lambda stage, number, asked: stage == ASKED and go.wait(PATIENCE)
    try:
        with pytest.raises(ServerTimeout):
            run(pool.read(Operation(READ), 0, 1))
        assert pool.fast is None
    finally:
        server.hook = None
        go.set()
    pool._timeout = PATIENCE
    assert run(pool.read(Operation(READ), 0, 1)) == b"\0"


def test_refused_request_leaves_the_connection_alive(run, server, shared):
    pool = shared()
    fast = pool.fast
    server.flush_errors = [28]
    with pytest.raises(RequestError):
        run(pool.flush(Operation(FLUSH)))
    assert pool.fast is fast
    run(pool.flush(Operation(FLUSH)))


def test_requests_beyond_the_memory_limit_wait(run, server, shared, monkeypatch):
    monkeypatch.setattr("ovirt_imageio.daemon.shared.IN_FLIGHT_LIMIT", 4096)
    pool = shared()

    async def script():
        tasks = [run.loop.spawn(pool.read(Operation(READ), 0, 8192)) for _ in range(5)]
        await until(run, lambda: pool.fast.in_use)
        assert pool.fast._pipeline.in_flight_bytes <= 2 * 8192
        for task in tasks:
            await ended(run, task)

    run(script())


def test_worker_does_everything_over_the_shared_connection(run, server, shared):
    pool = shared()

    async def script():
        backend = pool.last_resort()
        await run.loop.worker(backend.write, 100, b"abc")
        data = bytearray(3)
        await run.loop.worker(backend.read_into, 100, data)
        assert data == b"abc"
        await run.loop.worker(backend.zero, 101, 1)
        await run.loop.worker(backend.flush)
        assert server.stable[100:103] == b"a\0c"
        assert not pool.fast.unflushed
        extents = await run.loop.worker(lambda: list(backend.extents()))
        assert [tuple(extent) for extent in extents] == [(0, SIZE, False, False)]

    run(script())
    assert len(server.connections) == 1


def test_worker_that_is_cancelled_asks_the_shared_connection_no_more(run):
    asked = []

    def serve(talk):
        talk.negotiate(1 << 40, contexts={wire.BASE_ALLOCATION: 1})
        while True:
            request = talk.request()
            asked.append(request.command)
            talk.status(request, 1, [(request.length, wire.STATE_ZERO)], done=True)

    async def script(pool):
        await pool.prepare()
        backend = pool.last_resort()
        with pytest.raises(OperationCancelled, match="often enough"):
            await run.loop.worker(lambda: list(backend.extents(op=Count(checks=3))))
        await pool.close()

    with Peer(serve) as peer:
        run(script(Pool(run.loop, lambda: backends.open(f"nbd:unix:{peer.address.path}"))))
    assert asked == [wire.CMD_BLOCK_STATUS] * 2


@pytest.mark.parametrize(("offset", "length"), [(1000, 5), (4090, 12), (4096, 4096), (5, 20000)])
def test_worker_changes_parts_of_blocks_over_the_shared_connection(run, offset, length):
    with Volatile(SIZE, block=4096) as server:
        pool = Pool(run.loop, lambda: backends.open(server.url, mode="r+"))
        model = bytearray(SIZE)

        async def script():
            await pool.prepare()
            backend = pool.last_resort()
            await run.loop.worker(backend.write, 0, b"o" * 32768)
            await run.loop.worker(backend.write, offset, b"n" * length)
            await run.loop.worker(backend.zero, offset + 1, 2)
            await run.loop.worker(backend.flush)
            await pool.close()

        model[:32768] = b"o" * 32768
        model[offset : offset + length] = b"n" * length
        model[offset + 1 : offset + 3] = bytes(2)
        run(script())
        assert server.stable == model
