# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The store of tickets, and what happens with a ticket in use."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import weakref
from collections import Counter

import pytest

from imageio_testing.serving import Runner
from ovirt_imageio.common.backends.memory import Memory, MemoryBackend
from ovirt_imageio.common.errors import OperationCancelled
from ovirt_imageio.common.nbd import ServerFull
from ovirt_imageio.daemon import auth, options
from ovirt_imageio.daemon.auth import Tickets
from ovirt_imageio.daemon.config import Config
from ovirt_imageio.daemon.errors import HttpError
from ovirt_imageio.daemon.http import pace
from ovirt_imageio.daemon.operations import FLUSH, READ, WRITE, ZERO
from ovirt_imageio.daemon.stats import Totals
from ovirt_imageio.daemon.tickets import Ticket
from ovirt_imageio.daemon.transfer import Transfer

SIZE = 1 << 20


class Client:
    """The part of a connection that a transfer knows."""

    service = "test"
    client = "unix:pid=1,uid=0"

    def __init__(self):
        self.ticket_id = None
        self.inactivity_timeout = 0.0
        self.registry = None
        self._leave = None

    def join(self, ticket_id, leave):
        self.close()
        self.ticket_id, self._leave = ticket_id, leave

    def close(self):
        if self._leave is not None:
            self._leave(self)


class Counted(MemoryBackend):
    closed = False

    def close(self):
        self.closed = True


class Store:
    """Tickets with storage in memory and a clock that the test moves."""

    def __init__(self, remove_timeout=5):
        self.now = 1000.0
        self.backends = []
        self.memory = Memory(size=SIZE)
        self.totals = Totals()
        self.run = Runner()
        cfg = Config(control=options.Control(remove_timeout=remove_timeout))
        self.tickets = Tickets(self.run.loop, cfg, totals=self.totals, open_backend=self.open, clock=lambda: self.now)

        self.limit = 99

    def open(self, ticket):
        if sum(not backend.closed for backend in self.backends) >= self.limit:
            raise ServerFull("no more connections")
        backend = Counted(self.memory)
        self.backends.append(backend)
        return backend

    def add(self, *, ops=("read", "write"), timeout=300, uuid="t", url="file:///none", transfer_id=None, inactivity=60):
        self.run(self.tickets.add(Ticket(uuid, SIZE, ops, timeout, url, inactivity, transfer_id=transfer_id)))
        return self.tickets.get(uuid)


@pytest.fixture
def store():
    with closing(Store()) as store:
        yield store


@contextlib.contextmanager
def closing(store):
    yield store
    store.run(store.tickets.close())
    store.run.close()


def refused(status, call, *args):
    with pytest.raises(HttpError) as caught:
        call(*args)
    assert caught.value.status == status


def test_ticket_cannot_forge_lines_of_the_log_nor_fill_it(store, caplog):
    with caplog.at_level(logging.INFO):
        store.add(uuid="a\nforged", url="file:///b\nforged")
        store.add(uuid="c", url="file:///" + "d" * 60000)
        store.add(uuid="e", url="HTTPS://host/images/0123456789")
        store.add(uuid="f", transfer_id="h" * 60000)
        store.add(uuid="i", transfer_id="j\nforged")
    assert len(caplog.messages) == 5
    assert all("\n" not in message and len(message) < 1200 for message in caplog.messages)
    assert caplog.messages[0].startswith(r"a\nforged: added")
    assert caplog.messages[2].endswith("url=HTTPS://host/images/01234567")
    assert caplog.messages[3].startswith("h" * 100 + "…: added")
    assert caplog.messages[4].startswith(r"j\nforged: added")


# Validity.


@pytest.mark.parametrize(
    ("backend", "tls", "found"), [("b.pem", "t.pem", "b.pem"), ("", "t.pem", "t.pem"), ("", "", None)]
)
def test_origin_is_verified_by_the_authority_of_tls_unless_it_has_its_own(monkeypatch, backend, tls, found):
    opened = []
    monkeypatch.setattr(auth.backends, "open", lambda url, **options: opened.append(options["cafile"]))
    cfg = Config(backend_http=options.BackendHttp(ca_file=backend), tls=options.Tls(ca_file=tls))
    auth.open_storage(cfg, Ticket("t", SIZE, ("read",), 300, "https://origin/images/x", 60))
    assert opened == [found]


def test_unknown_ticket_is_not_found_or_forbidden(store):
    refused(404, store.tickets.get, "x")
    refused(404, store.tickets.extend, "x", 1)
    refused(403, store.tickets.authorize, "x", "read")
    store.run(store.tickets.remove("x"))


def test_ticket_is_valid_until_its_time_is_over(store):
    transfer = store.add(timeout=10)
    store.now += 9.9
    assert store.tickets.authorize("t", "write") is transfer
    store.now += 0.1
    assert transfer.expired
    refused(403, store.tickets.authorize, "t", "read")
    store.tickets.extend("t", 5)
    assert store.tickets.authorize("t", "read") is transfer


def test_ticket_allows_what_was_granted(store):
    store.add(ops=("read",))
    store.tickets.authorize("t", "read")
    refused(403, store.tickets.authorize, "t", "write")


def test_finished_operation_extends_the_ticket(store):
    transfer = store.add(timeout=10)
    with transfer.operation(READ, 0, 10, Client()):
        store.now += 20
        assert transfer.expired
    assert not transfer.expired
    assert transfer.expires == store.now + 10


def test_finished_operation_never_shortens_the_ticket(store):
    transfer = store.add(timeout=10)
    transfer.extend(1000)
    with transfer.operation(READ, 0, 10, Client()):
        pass
    assert transfer.expires == store.now + 1000


def test_sign_of_the_client_extends_the_ticket_and_never_shortens_it(store):
    transfer = store.add(timeout=10)
    store.now += 5
    transfer.touch(Client())
    assert transfer.expires == store.now + 10
    transfer.extend(1000)
    transfer.touch(Client())
    assert transfer.expires == store.now + 1000


def test_two_tickets_of_one_id_are_a_mistake(store):
    store.add()
    with pytest.raises(ValueError, match="'t' already"):
        store.tickets.insert(store.tickets.get("t").ticket)


# Accounting.


@pytest.mark.parametrize(
    ("ops", "kinds"), [(("read",), {READ}), (("write",), {WRITE, ZERO}), (("write", "write"), {WRITE, ZERO})]
)
def test_transferred_counts_the_direction_that_was_granted(store, ops, kinds):
    transfer = store.add(ops=ops)
    for place, kind in enumerate((READ, WRITE, ZERO)):
        with transfer.operation(kind, place * 100, 100, Client()) as op:
            op.advance(100)
    assert transfer.transferred == 100 * len(kinds)


def test_transferred_of_both_directions_is_unknown(store):
    transfer = store.add()
    assert transfer.transferred is None
    assert "transferred" not in transfer.info()


def test_transferred_counts_bytes_once_with_the_done_part_of_what_runs(store):
    transfer = store.add(ops=("write",))
    with transfer.operation(WRITE, 0, 100, Client()) as op:
        op.advance(100)
    with transfer.operation(WRITE, 50, 100, Client()) as op:
        assert transfer.transferred == 100
        op.advance(70)
        assert transfer.transferred == 120
    assert transfer.info()["transferred"] == 120


def test_failed_operation_counts_what_it_did(store):
    transfer = store.add(ops=("write",))
    with pytest.raises(ValueError), transfer.operation(WRITE, 0, 100, Client()) as op:
        op.advance(30)
        raise ValueError
    assert transfer.transferred == 30
    assert not transfer.active


def test_idle_time_counts_from_the_last_sign_of_the_client(store):
    transfer = store.add()
    client = Client()
    store.now += 5.9
    assert transfer.idle_time == 5
    with transfer.operation(READ, 0, 1, client):
        store.now += 100
        assert transfer.idle_time == 0
        assert transfer.active
    assert transfer.idle_time == 0
    store.now += 7
    assert transfer.idle_time == 7
    transfer.touch(client)
    assert transfer.idle_time == 0


def test_connections_count_while_their_last_request_was_for_the_ticket(store):
    transfer, other = store.add(), store.add(uuid="other")
    one, two = Client(), Client()
    transfer.touch(one)
    transfer.touch(two)
    transfer.touch(two)
    assert transfer.connection_count == 2
    other.touch(two)
    assert (transfer.connection_count, other.connection_count) == (1, 1)
    transfer.touch(two)
    assert (transfer.connection_count, other.connection_count) == (2, 0)
    two.close()
    assert transfer.connection_count == 1
    assert one.inactivity_timeout == 60


def test_connection_of_a_ticket_without_inactivity_timeout_may_be_idle_for_ever(store):
    client = Client()
    store.add(inactivity=0).touch(client)
    assert client.inactivity_timeout == math.inf


def test_operations_of_all_tickets_are_summed(store):
    for uuid in "ab":
        with store.add(uuid=uuid).operation(WRITE, 0, 10, Client()) as op:
            op.advance(10)
    assert store.totals.operations.size == 20


def test_name_hides_most_of_the_id(store):
    assert store.add(uuid="0123456789abcdef").name == "01234567"


# The end.


def test_removing_a_ticket_closes_its_storage(store):
    transfer = store.add()
    store.run(transfer.open_storage())
    assert transfer.pool.open_count == 1
    store.run(store.tickets.remove("t"))
    assert (len(store.tickets), transfer.pool.open_count, transfer.pool.closed) == (0, 0, True)


def test_cancelled_ticket_starts_nothing(store):
    transfer = store.add()
    transfer.cancel()
    refused(403, transfer.check, "read")
    refused(403, transfer.operation, READ, 0, 1, Client())


def test_removing_waits_for_what_runs_after_cancelling_it(store):
    transfer = store.add()

    async def script():
        op = transfer.operation(READ, 0, 1, Client()).__enter__()
        removal = store.run.loop.spawn(store.tickets.remove("t"))
        while not op.cancelled:
            await store.run.loop.sleep(0)
        assert not removal.done
        assert transfer.state == "cancelling"
        with pytest.raises(OperationCancelled):
            op.check()
        op.__exit__(None, None, None)
        while not removal.done:
            await store.run.loop.sleep(0)

    store.run(script())
    assert len(store.tickets) == 0


def test_removing_a_ticket_that_stays_in_use_is_a_conflict():
    with closing(Store(remove_timeout=0.01)) as store:
        transfer = store.add()
        op = transfer.operation(FLUSH, 0, 0, Client())
        with pytest.raises(HttpError) as caught:
            store.run(store.tickets.remove("t"))
        assert caught.value.status == 409
        assert store.tickets.get("t") is transfer
        with op:
            pass
        store.run(store.tickets.remove("t"))
        assert len(store.tickets) == 0


def test_removing_without_patience_only_cancels_what_is_in_use():
    with closing(Store(remove_timeout=0)) as store:
        transfer = store.add()
        op = transfer.operation(FLUSH, 0, 0, Client())
        store.run(store.tickets.remove("t"))
        assert store.tickets.get("t") is transfer
        assert op.cancelled
        with op:
            pass
        store.run(store.tickets.remove("t"))
        assert len(store.tickets) == 0


def test_new_ticket_replaces_one_in_use(store):
    old = store.add()

    async def script():
        op = old.operation(READ, 0, 1, Client()).__enter__()
        adding = store.run.loop.spawn(store.tickets.add(Ticket("t", 1, ("read",), 1, "file:///new", 60)))
        while not op.cancelled:
            await store.run.loop.sleep(0)
        assert store.tickets.get("t") is old
        op.__exit__(None, None, None)
        while not adding.done:
            await store.run.loop.sleep(0)

    store.run(script())
    assert store.tickets.get("t").ticket.url == "file:///new"
    assert old.pool.closed


def test_clearing_drops_all_tickets_whatever_runs():
    with closing(Store(remove_timeout=0.01)) as store:
        transfer = store.add()
        store.add(uuid="other")
        op = transfer.operation(READ, 0, 1, Client())
        store.run(store.tickets.clear())
        assert len(store.tickets) == 0
        assert op.cancelled
        with op:
            pass


def test_sweep_closes_the_storage_of_expired_tickets_that_nobody_uses(store):
    expired, used, valid = (store.add(uuid=uuid, timeout=10) for uuid in "abc")
    for transfer in expired, used, valid:
        store.run(transfer.open_storage())
    valid.extend(100)
    store.now += 20
    with used.operation(READ, 0, 1, Client()):
        store.run(store.tickets.sweep())

        async def closed():
            while expired.pool.open_count:
                await store.run.loop.sleep(0)

        store.run(closed())
        assert (used.pool.open_count, valid.pool.open_count) == (1, 1)
    expired.extend(10)
    with store.tickets.get("a").operation(READ, 0, 4, Client()) as op:
        store.run(expired.pool.read(op, 0, 4))
    assert expired.pool.open_count == 1


# Very many tickets.


def test_ticket_that_nobody_uses_has_no_storage_and_is_not_looked_at(store, monkeypatch):
    looked = []
    sample = Transfer.sample
    monkeypatch.setattr(Transfer, "sample", lambda transfer: (looked.append(transfer), sample(transfer)))
    idle, used = store.add(uuid="a"), store.add(uuid="b")
    store.run(used.open_storage())
    assert (idle.is_untouched, used.is_untouched) == (True, False)
    store.run(store.tickets.sweep())
    assert looked == [used]
    store.run(used.pool.close())
    store.run(store.tickets.sweep())
    store.run(store.tickets.sweep())
    assert looked == [used, used]


def test_rate_begins_anew_with_each_use(store):
    transfer = store.add()
    store.now += 1000  # a client that comes late is not slow
    with transfer.operation(READ, 0, 100, Client()) as op:
        op.advance(100)
        store.now += 1
        assert transfer.info()["rate"] == 100
    for _ in range(12):
        store.now += 1
        store.run(store.tickets.sweep())
    assert transfer.info()["rate"] == 0
    store.now += 1000
    with transfer.operation(READ, 0, 100, Client()) as op:
        op.advance(100)
        store.now += 1
        assert transfer.info()["rate"] == 100


def test_expiry_is_told_once_and_again_after_the_ticket_was_extended(store, caplog):
    store.add(timeout=10)
    with caplog.at_level(logging.INFO):
        for seconds, extension in ((20, 0), (20, 5), (20, 0), (20, 0)):
            store.now += seconds
            store.run(store.tickets.sweep())
            if extension:
                store.tickets.extend("t", extension)
    assert [message for message in caplog.messages if "expired" in message] == [
        "t: expired, the client was last heard of 20 s ago",
        "t: expired, the client was last heard of 60 s ago",
    ]


def test_operation_that_ends_after_the_time_revives_the_ticket(store, caplog):
    transfer = store.add(timeout=10)
    with transfer.operation(READ, 0, 1, Client()):
        store.now += 20
        store.run(store.tickets.sweep())
    assert transfer.state == "idle"
    assert store.tickets.states()["idle"] == 1
    with caplog.at_level(logging.INFO):
        store.now += 20
        store.run(store.tickets.sweep())
    assert "expired" in caplog.text
    assert store.tickets.states()["expired"] == 1


def test_states_are_those_of_the_transfers():
    with closing(Store(remove_timeout=0)) as store:
        for uuid in "abcdef":
            store.add(uuid=uuid, timeout=10 if uuid in "ab" else 100)
        ops = [store.tickets.get(uuid).operation(READ, 0, 1, Client()) for uuid in "def"]
        store.run(store.tickets.remove("e"))
        store.now += 20
        store.run(store.tickets.sweep())
        store.run(store.tickets.remove("f"))
        ops[2].__exit__(None, None, None)
        found = store.tickets.states()
        expected = Counter(transfer.state for transfer in store.tickets)
        assert {**found} == {"idle": 1, "active": 1, "expired": 2, "cancelling": 1, "cancelled": 1} == {**expected}
        for op in ops[:2]:
            op.__exit__(None, None, None)


def test_first_are_all_in_order_or_those_in_use_before_the_others(store):
    for uuid in "abcde":
        store.add(uuid=uuid)
    with store.tickets.get("d").operation(READ, 0, 1, Client()):
        assert [transfer.name for transfer in store.tickets.first(5)] == list("abcde")
        assert [transfer.name for transfer in store.tickets.first(3)] == list("dab")
        assert store.tickets.first(0) == []


@pytest.fixture
def short_pieces(monkeypatch):
    monkeypatch.setattr(pace, "_PIECE", 0.0)


def turns_meanwhile(store, coro):
    """Run a coroutine; return how many turns another task has meanwhile."""
    count = []

    async def both():
        task = store.run.loop.spawn(coro)
        while not task.done:
            count.append(0)
            await store.run.loop.sleep(0)

    store.run(both())
    return len(count)


def test_others_have_their_turns_while_all_tickets_are_dropped(store, short_pieces, caplog):
    used = store.add(uuid="used")
    store.run(used.open_storage())
    for number in range(50):
        store.add(uuid=str(number))
    with caplog.at_level(logging.INFO):
        assert turns_meanwhile(store, store.tickets.clear()) >= 50
    assert len(store.tickets) == 0
    assert used.pool.closed
    assert [line for line in caplog.messages if "removed" in line] == [
        "Tickets without any request, 50, were removed with all others",
        "used: removed with all others after 0.0 s, [no operations]",
    ]


def test_others_have_their_turns_while_all_tickets_expire(store, short_pieces, caplog):
    for number in range(50):
        store.add(uuid=str(number), timeout=10)
    store.now += 20
    with caplog.at_level(logging.INFO):
        assert turns_meanwhile(store, store.tickets.sweep()) >= 50
    assert caplog.text.count("expired") == 50


def test_dropped_tickets_are_freed_one_by_one(store, short_pieces):
    """A circle of references would let the garbage collector free all of them in one turn."""
    for number in range(50):
        store.add(uuid=str(number))
    store.run(store.tickets.get("7").open_storage())
    alive = [weakref.ref(transfer) for transfer in store.tickets]
    gc.disable()
    try:
        store.run(store.tickets.clear())
        assert [ref() for ref in alive if ref()] == []
    finally:
        gc.enable()


def test_used_tickets_are_dropped_side_by_side(store, monkeypatch):
    """Each may wait a moment for storage that hangs: forty of them took ten seconds."""
    loop, waiting = store.run.loop, []

    async def unused(transfer, timeout, *, settle=False):
        waiting.append(loop.token())
        if len(waiting) == 3:  # only then does the first end
            for token in waiting:
                loop.resume(token, True)
        return await loop.suspend(waiting[-1], 10)

    for uuid in "abc":
        store.run(store.add(uuid=uuid).open_storage())
    pools = [transfer.pool for transfer in store.tickets]
    monkeypatch.setattr(Transfer, "unused", unused)
    store.run(store.tickets.clear())
    monkeypatch.undo()
    assert len(waiting) == 3
    for pool in pools:
        store.run(pool.close())


def test_tickets_may_come_while_all_are_dropped(store, short_pieces):
    for number in range(50):
        store.add(uuid=str(number))
    clearing = store.run.loop.spawn(store.tickets.clear())

    async def add():
        await store.run.loop.sleep(0)
        await store.tickets.add(Ticket("7", SIZE, ("read",), 300, "file:///new", 60))
        while not clearing.done:
            await store.run.loop.sleep(0)

    store.run(add())
    assert [transfer.ticket.url for transfer in store.tickets] == ["file:///new"]
    assert store.tickets.states()["idle"] == 1


def lend(store, transfer, count):
    """Use so many backends at a time, once."""

    async def use():
        with transfer.operation(READ, 0, SIZE, Client()) as op:
            async with transfer.pool.borrow(op, wish=count) as backends:
                assert len(backends) == count

    store.run(use())


def wait_for_one(store, transfer):
    """Wait until a transfer has but one backend."""

    async def closed():
        while transfer.pool.open_count > 1:
            await store.run.loop.sleep(0)

    store.run(closed())


@pytest.mark.parametrize("spelling", ["nbd:unix:/none/sock", "nbd:unix:/none/./sock", "nbd+unix:///?socket=/none/sock"])
def test_full_storage_takes_a_second_ticket_when_the_first_is_idle(store, spelling):
    store.limit = 4
    first, second = store.add(uuid="1", url="nbd:unix:/none/sock"), store.add(uuid="2", url=spelling)
    other = store.add(uuid="3", url="file:///other")
    lend(store, other, 1)
    lend(store, first, 3)
    lend(store, second, 1)
    wait_for_one(store, first)  # a worker closes what the first gives back, one after the other
    assert (first.pool.open_count, second.pool.open_count, other.pool.open_count) == (1, 1, 1)


def test_connections_that_nobody_uses_are_given_back_after_a_while(store, monkeypatch):
    transfer = store.add()
    lend(store, transfer, 4)
    store.run(store.tickets.sweep())
    assert transfer.pool.open_count == 4
    monkeypatch.setattr(auth, "_SPARE_TIME", 0.0)
    store.run(store.tickets.sweep())
    wait_for_one(store, transfer)
    assert [backend.closed for backend in store.backends].count(False) == 1
