# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A proxy acknowledges no flush whose origin has lost what it should cover.

The origin is a server that loses what no flush covers when it is killed. One is of version 3, which tells
whether a flush covers a write, and one of 2.5.1, which tells nothing.
"""

from __future__ import annotations

import contextlib
import json

import pytest

from imageio_testing.httppeer import request_head
from imageio_testing.imageserver import ScriptedServer, VolatileImage, response
from imageio_testing.serving import Service
from ovirt_imageio.common import imagesapi
from ovirt_imageio.daemon.auth import _SPARE_TIME

KiB = 1 << 10
MiB = 1 << 20
SIZE = 8 * MiB

SMALL = b"s" * (4 * KiB)
BIG = b"B" * MiB


class Origin(ScriptedServer):
    """An origin that can be killed."""

    def __init__(self, tells):
        self.image = VolatileImage(bytearray(SIZE), tells=tells)
        super().__init__(self.image)

    def restart(self):
        self.image.restart(self)

    @property
    def stable(self):
        return self.image.stable

    @property
    def flushes(self):
        return self.image.flushes


@pytest.fixture(params=[True, False], ids=["tells", "2.5.1"])
def origin(request):
    with Origin(request.param) as origin:
        yield origin


@pytest.fixture
def telling():
    with Origin(True) as origin:
        yield origin


@pytest.fixture
def silent():
    with Origin(False) as origin:
        yield origin


@pytest.fixture
def serve(tmp_path):
    """Start a proxy of an origin, with one ticket."""
    with contextlib.ExitStack() as stack:

        def start(origin):
            service = stack.enter_context(Service(tmp_path))
            service.add_ticket(url=origin.url, size=SIZE)
            return service

        yield start


def put(service, offset, data, flush, ticket="t"):
    with service.client() as peer:
        content_range = f"bytes {offset}-{offset + len(data) - 1}/*"
        path = f"/images/{ticket}?flush={'y' if flush else 'n'}"
        return peer.request("PUT", path, headers=[("Content-Range", content_range)], body=data).status


def patch(service, ticket="t", **document):
    with service.client() as peer:
        return peer.request("PATCH", f"/images/{ticket}", body=json.dumps(document).encode())


def flush(service, ticket="t"):
    return patch(service, ticket, op="flush").status


def side_by_side(service, count, data):
    """Write over so many connections of the proxy, each of which owes a flush then."""
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(service.client()) for _ in range(count)]
        for number, peer in enumerate(peers):
            head = [("Content-Length", str(len(data))), ("Content-Range", f"bytes {number * MiB}-*/*")]
            peer.send(request_head("PUT", "/images/t?flush=n", headers=head) + data[:-1])
        while len(service.show()["operations"]) < count:
            pass
        for peer in peers:
            peer.send(data[-1:])
        assert [peer.response("PUT").status for peer in peers] == [200] * count


@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
def test_no_flush_succeeds_after_the_origin_lost_writes(serve, origin, data):
    service = serve(origin)
    assert put(service, 0, data, flush=False) == 200
    origin.restart()
    assert flush(service) == 500
    assert put(service, 0, SMALL, flush=True) == 500
    assert flush(service) == 500
    assert "may be lost" in service.show()["last_error"]["text"]


def test_no_flush_succeeds_after_the_origin_lost_zeroes(serve, origin):
    service = serve(origin)
    assert patch(service, op="zero", size=MiB).status == 200
    origin.restart()
    assert flush(service) == 500


def test_write_after_the_restart_does_not_hide_the_loss(serve, origin):
    service = serve(origin)
    assert put(service, 0, BIG, flush=False) == 200
    origin.restart()
    assert put(service, MiB, BIG, flush=False) == 200
    assert flush(service) == 500


def test_one_of_several_connections_knows_of_the_loss(serve, origin):
    service = serve(origin)
    side_by_side(service, 3, BIG)
    origin.restart()
    assert put(service, 4 * MiB, SMALL, flush=False) == 200
    assert flush(service) == 500
    assert flush(service) == 500


def test_flush_covers_what_all_connections_wrote(serve, origin):
    service = serve(origin)
    side_by_side(service, 3, BIG)
    assert flush(service) == 200
    assert origin.stable[: 3 * MiB] == BIG * 3
    assert origin.flushes == 1 if origin.image.tells else origin.flushes >= 3


def test_flush_over_a_young_connection_does_not_vouch_for_older_ones(serve, telling):
    service = serve(telling)
    side_by_side(service, 2, BIG)
    telling.restart()
    with service.client() as slow:  # takes the connection that was used last, of two that owe
        slow.send(request_head("PUT", "/images/t?flush=n", headers=[("Content-Length", "2")]) + b"x")
        assert flush(service) == 500


def test_origin_that_lost_nothing_goes_on(serve, origin):
    service = serve(origin)
    side_by_side(service, 2, BIG)
    assert flush(service) == 200
    origin.restart()
    assert flush(service) == 200
    assert put(service, 2 * MiB, BIG, flush=True) == 200
    assert origin.stable[: 3 * MiB] == BIG * 3


def test_connections_that_are_lost_alone_lose_nothing(serve, telling):
    service = serve(telling)
    side_by_side(service, 3, BIG)
    telling.hang_up()
    assert put(service, 3 * MiB, BIG, flush=False) == 200
    telling.hang_up()
    assert flush(service) == 200
    assert telling.stable[: 4 * MiB] == BIG * 4


def test_write_with_flush_whose_origin_restarts_in_between_can_be_tried_again(serve, telling):
    service = serve(telling)
    restarts = [telling.restart]
    telling.image.before_flush = lambda: restarts and restarts.pop()()
    assert put(service, 0, BIG, flush=True) == 500
    assert put(service, 0, BIG, flush=True) == 200
    assert telling.stable[:MiB] == BIG


def test_failed_flush_of_the_origin_is_a_loss_of_all_tickets(serve, origin):
    service = serve(origin)
    service.add_ticket("b", url=origin.url.replace("-secret", "%2Dsecret"), size=SIZE)
    assert put(service, 0, BIG, flush=False) == 200
    honest, answers = origin.image.do_patch, [response(500, b"the storage failed\n")]
    origin.image.do_patch = lambda got, query: got.body and answers.pop() if answers else honest(got, query)
    assert flush(service, "b") == 500
    assert flush(service) == 500
    assert flush(service) == 500


def test_idle_connection_is_flushed_before_its_end_leaves_it_in_doubt(tmp_path, silent):
    """The origin closes what was idle for a minute."""
    with Service(tmp_path) as service:
        service.add_ticket(url=silent.url, size=SIZE)
        side_by_side(service, 2, BIG)
        pool = service.tickets.get("t").pool
        service.call(pool.flush_idle, _SPARE_TIME)
        assert service.call(lambda: [member.backend.unflushed for member in pool._idle]) == [True, True]
        service.call(pool.flush_idle, 0)
        while any(member.backend.unflushed for member in service.call(lambda: [*pool._idle, *pool._busy])):
            pass
        assert silent.stable[: 2 * MiB] == BIG * 2
        silent.hang_up()
        assert flush(service) == 200


def test_idle_connection_to_an_origin_that_tells_is_left_alone(serve, telling):
    service = serve(telling)
    assert put(service, 0, BIG, flush=False) == 200
    service.call(service.tickets.get("t").pool.flush_idle, 0)
    assert put(service, 0, SMALL, flush=False) == 200
    assert telling.flushes == 0


# Answers to a proxy's own clients.


def test_changes_are_answered_with_the_life_of_the_ticket(serve, telling):
    service = serve(telling)
    answers = [patch(service, op="flush"), patch(service, op="zero", size=1)]
    with service.client() as peer:
        answers += [peer.request("PUT", "/images/t?flush=n", body=data) for data in (SMALL, BIG, b"")]
    lives = {answer.header(imagesapi.INSTANCE) for answer in answers}
    assert len(lives) == 1
    assert None not in lives
    service.add_ticket(url=telling.url, size=SIZE)  # settles what was owed, and takes it over
    assert patch(service, op="flush").header(imagesapi.INSTANCE) in lives
    service.manage("DELETE", "/tickets/t")
    service.add_ticket(url=telling.url, size=SIZE)
    assert patch(service, op="flush").header(imagesapi.INSTANCE) not in lives
