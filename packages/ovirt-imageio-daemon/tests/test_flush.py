# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""No flush is acknowledged that does not cover everything acknowledged before.

The storage is a server that loses what no flush covers when it crashes. So every test may ask
for the one thing that counts: what is stable when a flush has succeeded.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading

import pytest

from imageio_testing.httppeer import request_head
from imageio_testing.serving import PATIENCE, Runner, Service
from imageio_testing.settings import are_off
from imageio_testing.volatile import ANSWERED, ASKED, DONE, Volatile
from ovirt_imageio.common import backends, linux, nbd
from ovirt_imageio.common.errors import PeerGone, RequestError
from ovirt_imageio.common.nbd import wire
from ovirt_imageio.daemon import options
from ovirt_imageio.daemon.config import Config
from ovirt_imageio.daemon.operations import FLUSH, WRITE, Operation
from ovirt_imageio.daemon.pool import Pool, StorageFailed

KiB = 1 << 10
MiB = 1 << 20
SIZE = 8 * MiB

SMALL = b"s" * (4 * KiB)  # over the connection that all share
BIG = b"B" * MiB  # by a worker, over a connection that it borrows


@pytest.fixture(params=[True, False], ids=["multi-conn", "single-conn"])
def server(request):
    with Volatile(SIZE, multi_conn=request.param) as server:
        yield server


@pytest.fixture
def multi():
    with Volatile(SIZE, multi_conn=True) as server:
        yield server


@pytest.fixture
def single():
    with Volatile(SIZE, multi_conn=False) as server:
        yield server


@pytest.fixture
def serve(tmp_path):
    """Start a service of tickets for a server's export, with one ticket."""
    services = []

    def start(server, **daemon):
        cfg = Config(control=options.Control(remove_timeout=5), daemon=options.Daemon(**daemon))
        service = Service(tmp_path, cfg=cfg)
        service.__enter__()
        services.append(service)
        service.add_ticket(url=server.url, size=SIZE)
        return service

    yield start
    for service in services:
        service.__exit__(None, None, None)
    linux.pipes.close()


def put(service, offset, data, flush, ticket="t"):
    with service.client() as peer:
        content_range = f"bytes {offset}-{offset + len(data) - 1}/*"
        path = f"/images/{ticket}?flush={'y' if flush else 'n'}"
        return peer.request("PUT", path, headers=[("Content-Range", content_range)], body=data).status


def patch(service, ticket="t", **document):
    with service.client() as peer:
        return peer.request("PATCH", f"/images/{ticket}", body=json.dumps(document).encode()).status


def flush(service, ticket="t"):
    return patch(service, ticket, op="flush")


def part_of_a_write(service, peer):
    """Send all but the last of the image, until some is acknowledged; several pieces are in flight."""
    peer.send(request_head("PUT", "/images/w?flush=n", headers=[("Content-Length", str(SIZE))]))
    peer.send(BIG * 7)
    while not service.show("w")["transferred"]:
        pass


def idle(service):
    """Wait until no operation runs."""
    while service.show()["active"]:
        pass


@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
def test_flush_covers_what_was_written_before(serve, server, data):
    service = serve(server)
    assert put(service, 0, data, flush=False) == 200
    assert flush(service) == 200
    assert server.stable[: len(data)] == data


@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
def test_write_with_flush_is_stable(serve, server, data):
    service = serve(server)
    assert put(service, 0, data, flush=True) == 200
    assert server.stable[: len(data)] == data


@pytest.mark.parametrize("big", [False, True], ids=["small", "big"])
def test_write_with_flush_covers_writes_of_others(serve, server, big):
    service = serve(server)
    hold = Hold(server, wire.CMD_WRITE, 3)
    threads = [threading.Thread(target=put, args=(service, n * MiB, BIG, False)) for n in range(3)]
    for thread in threads:
        thread.start()
    hold.wait()
    hold.release()
    for thread in threads:
        thread.join(PATIENCE)
    assert put(service, 4 * MiB, SMALL, flush=False) == 200
    assert put(service, 5 * MiB, BIG if big else SMALL, flush=True) == 200
    assert server.stable[: 3 * MiB] == BIG * 3
    assert server.stable[4 * MiB :][: len(SMALL)] == SMALL


def test_zero_with_flush_covers_writes_of_others(serve, server):
    service = serve(server)
    assert put(service, 0, BIG, flush=False) == 200
    assert put(service, MiB, SMALL, flush=False) == 200
    assert patch(service, op="zero", offset=2 * MiB, size=MiB, flush=True) == 200
    assert server.stable[:MiB] == BIG
    assert server.stable[MiB:][: len(SMALL)] == SMALL


@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
def test_no_flush_succeeds_after_acknowledged_data_were_lost(serve, server, data):
    service = serve(server)
    assert put(service, 0, data, flush=False) == 200
    server.crash()
    assert flush(service) == 500
    assert put(service, 0, SMALL, flush=True) == 500
    assert flush(service) == 500
    assert server.stable == bytes(SIZE)


def test_crash_after_a_flush_loses_nothing_and_hurts_nobody(serve, server):
    service = serve(server)
    assert put(service, 0, BIG, flush=False) == 200
    assert put(service, MiB, SMALL, flush=False) == 200
    assert flush(service) == 200
    server.crash()
    assert flush(service) == 200
    assert put(service, 2 * MiB, BIG, flush=True) == 200
    assert server.stable[: 3 * MiB] == BIG + SMALL + bytes(MiB - len(SMALL)) + BIG


# The server restarted, and not every connection knows.


def test_flush_over_a_new_connection_does_not_vouch_for_a_lent_one(serve, multi):
    service = serve(multi)
    assert put(service, 0, BIG, flush=False) == 200
    with service.client() as slow:
        # Lends the connection that owes a flush, for as long as this client takes.
        slow.send(request_head("PUT", "/images/t?flush=n", headers=[("Content-Length", str(MiB))]) + b"x")
        while not service.show()["active"]:
            pass
        multi.crash()
        flushed = threading.Event()
        multi.hook = lambda stage, _, asked: (stage, asked.command) == (ANSWERED, wire.CMD_FLUSH) and flushed.set()
        with service.client() as other:
            other.send(request_head("PATCH", "/images/t", body=b'{"op": "flush"}') + b'{"op": "flush"}')
            assert flushed.wait(PATIENCE)
            slow.reset()
            assert other.response("PATCH").status == 500
    assert multi.stable == bytes(SIZE)


def test_flush_of_a_young_connection_does_not_vouch_for_older_ones(multi):
    """As after the power of a remote host failed: its connections look well until they are used."""
    with Runners(multi) as run:
        pool = run.pool(fast=False)

        async def script():
            op = Operation(FLUSH)
            old = await pool.lend(op, 1)
            old[0].backend.write(0, SMALL)
            pool.give_back(old)
            old[0].backend.stale = lambda: False
            multi.crash()
            young = await pool.lend(op, 1)  # the old one, for nobody knows
            fresh = await pool.lend(op, 1)
            pool.give_back(young)
            pool.give_back(fresh)
            with pytest.raises(nbd.ServerGone):
                await pool.flush(op)
            with pytest.raises(StorageFailed):
                await pool.flush(op)

        run(script())
        assert multi.stable == bytes(SIZE)


def test_write_that_ends_with_its_connection_is_owed(multi):
    """The answer and the end of the connection are read in one turn of the loop."""
    asked, go, gone = threading.Event(), threading.Event(), threading.Event()

    def hook(stage, number, request):
        if request.command != wire.CMD_WRITE:
            return
        if stage == ASKED:
            asked.set()
            go.wait(PATIENCE)
        elif stage == ANSWERED:
            multi.crash()
            gone.set()

    with Runners(multi) as run:
        pool = run.pool()

        async def script():
            await pool.prepare()
            multi.hook = hook
            task = run.loop.spawn(pool.write(Operation(WRITE), 0, SMALL, flush=False))
            while not asked.is_set():
                await run.loop.sleep(0)
            go.set()
            gone.wait(PATIENCE)  # on purpose: the loop must not look meanwhile
            multi.hook = None
            while not task.done:
                await run.loop.sleep(0)
            with pytest.raises(StorageFailed):
                await pool.flush(Operation(FLUSH))

        run(script())
        assert multi.stable == bytes(SIZE)


@pytest.mark.parametrize("stage", [ASKED, DONE])
def test_write_with_flush_repeats_the_write_if_the_server_restarts_before_the_flush(serve, server, stage):
    service = serve(server)
    once(server, stage, wire.CMD_FLUSH)
    # Bytes that a worker moved straight to storage nobody has any more: the client has to send them again.
    for status in [500, 200] if are_off("inline", "loop nbd") else [200]:
        assert put(service, 0, SMALL, flush=True) == status
    assert server.stable[: len(SMALL)] == SMALL


@pytest.mark.parametrize("command", [wire.CMD_WRITE, wire.CMD_FLUSH], ids=["write", "flush"])
@pytest.mark.parametrize("stage", [ASKED, DONE])
def test_failed_write_can_be_tried_again(serve, server, stage, command):
    service = serve(server)
    once(server, stage, command)
    assert put(service, 0, BIG, flush=True) == 500
    assert put(service, 0, BIG, flush=True) == 200
    assert server.stable[:MiB] == BIG
    assert flush(service) == 200


def test_failed_write_over_a_connection_that_owes_is_a_loss(serve, multi):
    service = serve(multi)
    assert put(service, 0, BIG, flush=False) == 200
    once(multi, ASKED, wire.CMD_WRITE)
    assert put(service, MiB, BIG, flush=True) == 500
    assert put(service, MiB, BIG, flush=True) == 500


def test_bytes_of_a_write_that_storage_broke_do_not_count_as_transferred(serve, server):
    service = serve(server)
    service.add_ticket("w", url=server.url, size=SIZE, ops=["write"])
    with service.client() as peer:
        part_of_a_write(service, peer)
        server.crash()
        peer.send(BIG)
        assert peer.response("PUT").status == 500
    assert service.show("w")["transferred"] == 0


def test_bytes_of_a_write_that_the_client_broke_are_owed(serve, server):
    service = serve(server)
    service.add_ticket("w", url=server.url, size=SIZE, ops=["write"])
    with service.client() as peer:
        part_of_a_write(service, peer)
    while service.show("w")["active"]:
        pass
    transferred = service.show("w")["transferred"]
    with service.client() as peer:
        assert peer.request("PATCH", "/images/w", body=b'{"op": "flush"}').status == 200
    assert server.stable[:transferred] == (BIG * 7)[:transferred]


def test_abandoned_read_does_not_forget_what_its_connection_owed(serve, server):
    service = serve(server)
    assert put(service, 0, BIG, flush=False) == 200
    with service.client() as peer:
        peer.send(request_head("GET", "/images/t"))
        assert peer.head().status == 200
    idle(service)
    server.crash()
    assert flush(service) == 200
    assert server.stable[:MiB] == BIG


@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
def test_dropped_connection_that_owes_is_a_loss(serve, single, data):
    """The server lives, but what other connections flush is not that one's."""
    service = serve(single)
    assert put(service, 0, data, flush=False) == 200
    single.drop(*single.connections)
    assert flush(service) == 500


# The server answers, but with an error.


@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
def test_no_flush_succeeds_after_one_that_failed(serve, server, data):
    service = serve(server)
    assert put(service, 0, data, flush=False) == 200
    server.flush_errors = [5]
    assert flush(service) == 500
    assert flush(service) == 500
    assert put(service, MiB, data, flush=True) == 500
    assert server.stable == bytes(SIZE)


@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
def test_failed_flush_of_one_write_is_a_loss_of_others(serve, multi, data):
    service = serve(multi)
    assert put(service, 0, BIG, flush=False) == 200
    multi.flush_errors = [5]
    assert put(service, 4 * MiB, data, flush=True) == 500
    assert put(service, 4 * MiB, data, flush=True) == 500


@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
def test_write_whose_flush_failed_can_be_tried_again(serve, server, data):
    service = serve(server)
    server.flush_errors = [5]
    assert put(service, 0, data, flush=True) == 500
    assert put(service, 0, data, flush=True) == 200
    assert server.stable[: len(data)] == data


# The ticket changes.


def test_sweep_of_an_expired_ticket_keeps_what_owes_a_flush(serve, server):
    service = serve(server)
    service.add_ticket("w", url=server.url, size=SIZE, timeout=0)
    assert put(service, 0, BIG, flush=False) == 200
    assert put(service, MiB, SMALL, flush=False) == 200
    service.call(service.tickets.get("t").extend, 0)
    service.run(service.tickets.sweep)
    service.call(service.tickets.get("t").extend, 300)
    assert flush(service) == 200
    assert server.stable[: MiB + len(SMALL)] == BIG + SMALL


def test_ticket_that_replaces_another_owes_what_that_owed(serve, server):
    service = serve(server)
    assert put(service, 0, BIG, flush=False) == 200
    assert put(service, MiB, SMALL, flush=False) == 200
    service.add_ticket(url=server.url, size=SIZE)
    assert flush(service) == 200
    assert server.stable[: MiB + len(SMALL)] == BIG + SMALL


@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
def test_ticket_that_replaces_another_inherits_its_loss(serve, server, data):
    service = serve(server)
    assert put(service, 0, data, flush=False) == 200
    server.crash()
    service.add_ticket(url=server.url, size=SIZE)
    assert flush(service) == 500


def test_ticket_for_other_storage_does_not_inherit_a_loss(serve, server):
    service = serve(server)
    assert put(service, 0, SMALL, flush=False) == 200
    server.crash()
    with Volatile(SIZE) as other:
        service.add_ticket(url=other.url, size=SIZE)
        assert put(service, 0, SMALL, flush=True) == 200
        service.manage("DELETE", "/tickets/t")


# Several tickets have one storage.


def spellings(url):
    """Other URLs of an export on a Unix socket."""
    path = url[len("nbd:unix:") :]
    folder, name = os.path.split(path)
    link = os.path.join(folder, "link")
    os.symlink(name, link)
    return {
        "same": url,
        "uri": f"nbd+unix:///?socket={path}",
        "encoded": f"nbd+unix:///?socket={path.replace('/', '%2F')}",
        "dots": f"nbd:unix:{folder}/./{name}",
        "link": f"nbd:unix:{link}",
    }


SPELLINGS = ["same", "uri", "encoded", "dots", "link"]


@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_failed_flush_of_one_ticket_is_a_loss_of_the_other(serve, server, spelling, data):
    service = serve(server)
    service.add_ticket("b", url=spellings(server.url)[spelling], size=SIZE)
    assert put(service, 0, data, flush=False) == 200
    assert put(service, MiB, SMALL, flush=True, ticket="b") == 200
    server.flush_errors = [5]
    assert put(service, MiB, data, flush=True, ticket="b") == 500
    assert flush(service) == 500
    assert flush(service) == 500
    # The client of b was told of no write, so b owes nothing, and may write again.
    assert put(service, MiB, data, flush=True, ticket="b") == 200
    assert flush(service, "b") == 200


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_ticket_that_replaces_another_inherits_its_loss_by_any_spelling(serve, server, spelling):
    service = serve(server)
    assert put(service, 0, SMALL, flush=False) == 200
    server.flush_errors = [5]
    assert flush(service) == 500
    service.add_ticket(url=spellings(server.url)[spelling], size=SIZE)
    assert flush(service) == 500


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_ticket_that_replaces_another_flushes_what_that_owed_by_any_spelling(serve, server, spelling):
    service = serve(server)
    assert put(service, 0, BIG, flush=False) == 200
    assert put(service, MiB, SMALL, flush=False) == 200
    service.add_ticket(url=spellings(server.url)[spelling], size=SIZE)
    assert flush(service) == 200
    assert server.stable[: MiB + len(SMALL)] == BIG + SMALL


def test_failed_flush_of_a_ticket_that_is_replaced_is_a_loss_of_others(serve, server):
    service = serve(server)
    service.add_ticket("b", url=server.url, size=SIZE)
    assert put(service, 0, SMALL, flush=False) == 200
    assert put(service, MiB, SMALL, flush=False, ticket="b") == 200
    server.flush_errors = [5]
    service.add_ticket("b", url=server.url, size=SIZE)
    assert flush(service, "b") == 500
    assert flush(service) == 500


@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
def test_write_that_is_acknowledged_after_a_failed_flush_of_another_is_a_loss(serve, server, data):
    """It may have been done before, and dropped."""
    service = serve(server)
    service.add_ticket("b", url=server.url, size=SIZE)
    assert flush(service, "b") == 200
    with held(server, DONE, wire.CMD_WRITE) as release:
        answers = []
        writer = threading.Thread(target=lambda: answers.append(put(service, 0, data, flush=False)))
        writer.start()
        release.wait()
        server.flush_errors = [5]
        assert flush(service, "b") == 500
    writer.join(PATIENCE)
    assert answers == [200]
    assert flush(service) == 500
    assert flush(service, "b") == 200


@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
def test_write_with_flush_across_a_failed_flush_of_another_can_be_tried_again(serve, server, data):
    service = serve(server)
    service.add_ticket("b", url=server.url, size=SIZE)
    assert flush(service, "b") == 200
    with held(server, DONE, wire.CMD_WRITE) as release:
        answers = []
        writer = threading.Thread(target=lambda: answers.append(put(service, 0, data, flush=True)))
        writer.start()
        release.wait()
        server.flush_errors = [5]
        assert flush(service, "b") == 500
    writer.join(PATIENCE)
    assert answers == [500]
    assert put(service, 0, data, flush=True) == 200
    assert server.stable[: len(data)] == data


def test_failed_flush_is_no_loss_of_other_storage(serve, server):
    service = serve(server)
    with Volatile(SIZE) as other:
        service.add_ticket("b", url=other.url, size=SIZE)
        assert put(service, 0, SMALL, flush=False) == 200
        assert put(service, 0, SMALL, flush=False, ticket="b") == 200
        server.flush_errors = [5]
        assert flush(service) == 500
        assert flush(service, "b") == 200
        service.manage("DELETE", "/tickets/b")


@pytest.mark.parametrize("spelling", ["file://{0}/disk", "file:{0}/./disk", "file://{0}/link", "file://{0}/hard"])
def test_failed_flush_of_a_file_is_a_loss_of_all_its_tickets(serve, server, tmp_path, monkeypatch, spelling):
    (tmp_path / "disk").write_bytes(bytes(2 * MiB))
    (tmp_path / "link").symlink_to("disk")
    os.link(tmp_path / "disk", tmp_path / "hard")
    service = serve(server)
    service.add_ticket("a", url=f"file://{tmp_path}/disk", size=2 * MiB)
    service.add_ticket("b", url=spelling.format(tmp_path), size=2 * MiB)
    assert put(service, 0, BIG, flush=False, ticket="a") == 200
    sync = failing_once(os.fsync)
    monkeypatch.setattr(os, "fsync", sync)
    assert flush(service, "b") == 500
    assert flush(service, "a") == 500
    assert flush(service, "a") == 500


def test_nothing_is_kept_of_storage_that_no_ticket_has(serve, server):
    service = serve(server)
    service.add_ticket("b", url=spellings(server.url)["link"], size=SIZE)
    for ticket in ("t", "b"):
        assert put(service, 0, BIG, flush=False, ticket=ticket) == 200
    server.flush_errors = [5]
    assert flush(service) == 500
    assert len(service.tickets._storages) == 1
    for ticket in ("t", "b"):
        assert service.manage("DELETE", f"/tickets/{ticket}").status == 204
    assert len(service.tickets._storages) == 0


# Servers that take few connections.


def test_flush_where_all_share_one_connection(serve):
    with Volatile(SIZE, multi_conn=False, limit=1) as server:
        service = serve(server)
        assert put(service, 0, BIG, flush=False) == 200
        assert put(service, MiB, BIG, flush=True) == 200
        assert server.stable[: 2 * MiB] == BIG * 2
        server.crash()
        assert put(service, 2 * MiB, BIG, flush=False) == 200
        server.crash()
        assert flush(service) == 500


def test_edges_of_blocks_are_changed_under_one_lock_whatever_the_connection(serve):
    with Volatile(SIZE, block=4096) as server, Runners(server) as run:
        pool = run.pool()

        async def script():
            await pool.prepare()
            members = await pool.lend(Operation(WRITE, 0, 1), 1)
            assert pool.last_resort()._edges is members[0].backend._edges
            pool.give_back(members)

        run(script())


def test_silent_server_never_gets_a_buffer_that_was_given_back():
    """A request that was given up must not leave later, with what its buffer holds by then."""
    with Volatile(SIZE, multi_conn=False, limit=1) as server, Runners(server) as run:
        pool = run.pool(timeout=0.05)
        hold = Hold(server, wire.CMD_WRITE, 2)

        async def script():
            await pool.prepare()
            backend = pool.last_resort()
            with pytest.raises(nbd.ServerTimeout):
                await run.loop.worker(backend.write, 0, SMALL)
            assert pool.fast is None, "the connection is still open"

        run(script())
        hold.release()
    assert server.stable == bytes(SIZE)


def test_failed_flush_breaks_the_backend(server):
    with backends.open(server.url, mode="r+") as backend:
        backend.write(0, SMALL)
        server.flush_errors = [28]
        with pytest.raises(RequestError):
            backend.flush()
        assert backend.broken is not None
        assert backend.unflushed


def test_server_loses_what_no_flush_covers(server):
    """The judge of these tests judges as it should."""
    with backends.open(server.url, mode="r+") as one, backends.open(server.url, mode="r+") as other:
        one.write(0, SMALL)
        other.write(MiB, SMALL)
        one.flush()
        read = bytearray(len(SMALL))
        other.read_into(0, read)
        assert read == SMALL
        server.crash()
        assert server.stable[: len(SMALL)] == SMALL
        assert any(server.stable[MiB:]) is other.capabilities.multi_conn
        with pytest.raises(PeerGone):
            one.flush()


class Hold:
    """Lets a server's requests of one kind wait until they are released.

    Args:
        server: The server.
        command: Which requests.
        count: How many to wait for.
    """

    def __init__(self, server, command, count):
        self._command = command
        self._held = threading.Semaphore(0)
        self._count = count
        self._go = threading.Event()
        server.hook = self._hook

    def _hook(self, stage, number, request):
        if stage == ASKED and request.command == self._command:
            self._held.release()
            self._go.wait(PATIENCE)

    def wait(self):
        for _ in range(self._count):
            assert self._held.acquire(timeout=PATIENCE)

    def release(self):
        self._go.set()


@contextlib.contextmanager
def held(server, stage, command):
    """Let a server's first request of a kind wait at a stage; yield what is set when it does. It goes on at the end."""
    waits, go = threading.Event(), threading.Event()

    def hook(now, number, request):
        if (now, request.command) == (stage, command):
            server.hook = None
            waits.set()
            go.wait(PATIENCE)

    server.hook = hook
    try:
        yield waits
    finally:
        go.set()


def failing_once(call):
    """Return what fails the first time as a disk does, and then does what call does."""
    failures = [OSError(5, os.strerror(5))]

    def failing(*args):
        if failures:
            raise failures.pop()
        return call(*args)

    return failing


def once(server, stage, command):
    """Crash a server once, at a stage of the first request of a kind."""

    def hook(now, number, request):
        if now == stage and request.command == command:
            server.hook = None
            server.crash()

    server.hook = hook


class Runners:
    """A loop with pools for a server's export, closed at the end."""

    def __init__(self, server):
        self._server = server
        self._runner = Runner()
        self._pools = []
        self.loop = self._runner.loop

    def __call__(self, coro):
        return self._runner(coro)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        for pool in self._pools:
            self._runner(pool.close())
        self._runner.close()

    def pool(self, **options):
        pool = Pool(self.loop, lambda: backends.open(self._server.url, mode="r+"), **options)
        self._pools.append(pool)
        return pool


@contextlib.contextmanager
def late_refusal(server):
    """The next flush is refused, and that is said only when another flush was answered."""
    refused, answered = threading.Event(), threading.Event()
    later = []  # flushes that came after it

    def hook(stage, number, asked):
        if asked.command != wire.CMD_FLUSH:
            return
        if stage == ASKED and refused.is_set():
            later.append(asked)
        elif stage == DONE and not refused.is_set():
            refused.set()
            assert answered.wait(PATIENCE)
        elif stage == ANSWERED and asked in later:
            answered.set()

    server.flush_errors = [5]
    server.hook = hook
    try:
        yield refused
    finally:
        server.hook = None


@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
@pytest.mark.parametrize("what", ["flush", "write with flush"])
def test_flush_that_overlaps_one_that_storage_refuses_is_no_success(serve, server, data, what):
    """Storage drops the writes of both, and says so once: to the other, and later."""
    service = serve(server)
    service.add_ticket("b", url=server.url, size=SIZE)
    assert flush(service, "b") == 200
    assert put(service, 0, data, flush=False) == 200
    answers = []
    with late_refusal(server) as refused:
        other = threading.Thread(target=lambda: answers.append(flush(service, "b")))
        other.start()
        assert refused.wait(PATIENCE)
        found = flush(service) if what == "flush" else put(service, MiB, data, flush=True)
        other.join(PATIENCE)
    assert (found, answers) == (500, [500])
    assert flush(service) == 500, "the loss was forgotten"


@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
def test_write_whose_flush_overlaps_one_that_storage_refuses_can_be_tried_again(serve, server, data):
    service = serve(server)
    service.add_ticket("b", url=server.url, size=SIZE)
    assert flush(service, "b") == 200
    assert put(service, 0, data, flush=True) == 200
    with late_refusal(server) as refused:
        other = threading.Thread(target=lambda: flush(service, "b"))
        other.start()
        assert refused.wait(PATIENCE)
        assert put(service, 0, data, flush=True) == 500
        other.join(PATIENCE)
    assert put(service, 0, data, flush=True) == 200
    assert server.stable[: len(data)] == data
