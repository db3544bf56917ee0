# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Requests that differ in the range only are answered as if each were the first.

The same conversation is held with a daemon that knows them and with one that does not.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imageio_testing.daemon import Daemon
from imageio_testing.httppeer import HttpPeer
from imageio_testing.httppeer import request_head as head
from imageio_testing.nbdpeer import Peer, Talk
from ovirt_imageio.common.nbd import wire

SIZE = 1 << 20
IMAGE = bytes(range(256)) * (SIZE // 256)

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Daemon]]:
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                Daemon(tmp_path_factory.mktemp("daemon"), tls=False, config={"daemon": {"quick_reads": quick}})
            )
            for quick in (True, False)
        ]


class Server:
    """NBD from memory; the errno that it answers reads with is in `error`."""

    def __init__(self) -> None:
        self.error = 0
        self.reads = 0

    def script(self, talk: Talk) -> None:
        """Play the server for one connection."""
        talk.negotiate(SIZE)
        while True:
            asked = talk.expect(wire.CMD_READ)
            self.reads += 1
            if self.error:
                talk.error(asked, self.error)
            else:
                talk.data(asked, asked.offset, IMAGE[asked.offset : asked.offset + asked.length], done=True)


class Talks:
    """One conversation with each daemon: what they say is compared."""

    def __init__(self, daemons: list[Daemon], stack: contextlib.ExitStack, url: str, **keys: Any) -> None:
        self.daemons = daemons
        self.url = url
        self.ticket_id = str(uuid.uuid4())
        self.add_ticket(**keys)
        self.clients = [stack.enter_context(HttpPeer.unix(daemon.local_socket)) for daemon in daemons]

    @property
    def path(self) -> str:
        return f"/images/{self.ticket_id}"

    def add_ticket(self, *, size: int = SIZE, **keys: Any) -> None:
        for daemon in self.daemons:
            daemon.add_ticket(self.url, size=size, ticket_id=self.ticket_id, **{"ops": ["read"], **keys})

    def ask(self, data: bytes) -> tuple[int, bytes]:
        """Send bytes to both; they answer the same."""
        answers = []
        for client in self.clients:
            client.send(data)
            answer = client.response()
            fields = tuple((name, value) for name, value in answer.headers if name != "Date")
            answers.append((answer.status, answer.reason, fields, answer.body))
        assert answers[0] == answers[1]
        return answers[0][0], answers[0][3]

    def get(self, span: str, *fields: tuple[str, str]) -> tuple[int, bytes]:
        return self.ask(head("GET", self.path, headers=[("Range", f"bytes={span}"), *fields]))

    def ticket(self) -> dict[str, Any]:
        """Return what both know of the ticket."""
        found = [daemon.ticket(self.ticket_id) for daemon in self.daemons]
        keys = ("transferred", "connections", "active", "canceled", "size")
        assert [found[0].get(key) for key in keys] == [found[1].get(key) for key in keys]
        return found[0]


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture(params=["nbd", "file"])
def talks(
    daemons: list[Daemon], stack: contextlib.ExitStack, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Talks]:
    if request.param == "nbd":
        url = f"nbd:unix:{stack.enter_context(Peer(Server().script)).address.path}"
    else:
        (tmp_path / "disk").write_bytes(IMAGE)
        url = f"file://{tmp_path}/disk"
    talks = Talks(daemons, stack, url, filename='50% "x".raw')
    yield talks
    for daemon in daemons:
        daemon.remove_ticket(talks.ticket_id)


def test_ranges_of_all_kinds(talks: Talks) -> None:
    spans = [(0, 9), (10, 19), (0, 0), (4096, 8191), (SIZE - 1, SIZE - 1), (0, 131071), (500, 132571)]
    for first, last in spans:
        assert talks.get(f"{first}-{last}") == (206, IMAGE[first : last + 1])
    assert talks.get("0-131072") == (206, IMAGE[:131073])  # by a worker
    assert talks.get("7-7") == (206, IMAGE[7:8])


@pytest.mark.parametrize("bad", [f"0-{SIZE}", "9-5", f"{SIZE}-{SIZE}", "1-2,3-4", "x-y", "-0"])
def test_bad_range_after_good_ones(talks: Talks, bad: str) -> None:
    assert talks.get("0-9")[0] == talks.get("1-10")[0] == 206
    assert talks.get(bad)[0] == 416
    assert talks.get("2-11") == (206, IMAGE[2:12])
    assert talks.get("3-12") == (206, IMAGE[3:13])


def test_other_requests_between(talks: Talks) -> None:
    assert talks.get("0-9")[0] == 206
    assert talks.get("1-10", ("Origin", "http://a"))[0] == 206
    assert talks.get("2-11", ("Origin", "http://a"))[0] == 206
    assert talks.get("3-12")[0] == 206
    assert talks.ask(head("PUT", talks.path, body=b""))[0] == 403
    assert talks.get("0-4", ("If-Range", '"x"'))[0] == 200
    assert talks.get("5-6", ("If-Range", '"x"'))[0] == 200
    assert talks.get("3-12") == (206, IMAGE[3:13])


def test_bodies_of_requests_are_read_each_time(talks: Talks) -> None:
    for first in range(3):
        data = head("GET", talks.path, headers=[("Range", f"bytes={first}-9"), ("Content-Length", "5")])
        assert talks.ask(data + b"GET /") == (206, IMAGE[first:10])


def test_requests_sent_ahead_are_answered_in_order(talks: Talks) -> None:
    heads = [head("GET", talks.path, headers=[("Range", f"bytes={n}-{n + 9}")]) for n in range(20)]
    for client in talks.clients:
        client.send(b"".join(heads))
        for n in range(20):
            assert client.response().body == IMAGE[n : n + 10]


def test_what_was_moved_is_counted(talks: Talks) -> None:
    for n in range(4):
        talks.get(f"{n * 50}-{n * 50 + 99}")
    found = talks.ticket()
    assert found["transferred"] == 250
    assert found["connections"] == 1


def test_validity_is_extended(talks: Talks) -> None:
    assert talks.get("0-9")[0] == 206
    for daemon in talks.daemons:
        with daemon.admin() as admin:
            admin.mod_ticket(talks.ticket_id, {"timeout": 5})
    assert talks.get("0-9")[0] == 206
    for daemon in talks.daemons:
        now = time.monotonic()
        assert daemon.ticket(talks.ticket_id)["expires"] > now + 200


def test_expired_ticket(talks: Talks) -> None:
    assert talks.get("0-9")[0] == 206
    for daemon in talks.daemons:
        with daemon.admin() as admin:
            admin.mod_ticket(talks.ticket_id, {"timeout": 0})
    assert talks.get("1-10")[0] == 403


def test_ticket_that_was_replaced(talks: Talks) -> None:
    assert talks.get("90-99")[0] == 206
    with contextlib.ExitStack() as stack:
        talks.add_ticket(size=50)
        talks.clients = [stack.enter_context(HttpPeer.unix(daemon.local_socket)) for daemon in talks.daemons]
        assert talks.get("0-9")[0] == 206
        assert talks.get("90-99")[0] == 416
        assert talks.get("40-49") == (206, IMAGE[40:50])


def test_storage_that_fails(daemons: list[Daemon], stack: contextlib.ExitStack) -> None:
    server = Server()
    talks = Talks(daemons, stack, f"nbd:unix:{stack.enter_context(Peer(server.script)).address.path}")
    assert talks.get("0-9")[0] == talks.get("1-10")[0] == 206
    server.error = 5
    assert talks.get("2-11")[0] == 500
    assert "EIO" in talks.ticket()["last_error"]["text"]
    server.error = 0
    assert talks.get("3-12") == (206, IMAGE[3:13])
    assert server.reads == 8
    for daemon in daemons:
        daemon.remove_ticket(talks.ticket_id)
