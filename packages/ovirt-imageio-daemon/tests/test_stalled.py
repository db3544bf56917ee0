# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Clients with a ticket that stop in the middle of a body: they hold no worker that others need."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imageio_testing.daemon import Daemon
from imageio_testing.httppeer import HttpPeer, request_head
from imageio_testing.qemu import needs_qemu
from ovirt_imageio.common.qemu.nbd import Server

MiB = 1 << 20
SIZE = 16 * MiB  # more than the kernel buffers for one connection
SMALL = 2 * MiB
WORKERS = 2
BEGINNING = 3 * MiB + 1001  # of a body, until the client stops: no multiple of anything

pytestmark = pytest.mark.system


class Case:
    """A daemon with few workers, and somebody who needs one now and then."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self.daemon = daemon
        self.folder = folder
        self.data = os.urandom(SIZE)
        self.other = self.ticket(self.image("other", bytes(SMALL)), SMALL)

    def image(self, name: str, data: bytes) -> str:
        path = self.folder / name
        path.write_bytes(data)
        return f"file://{path}"

    def ticket(self, url: str, size: int = SIZE, **keys: Any) -> str:
        return f"/images/{self.daemon.add_ticket(url, size=size, **keys)}"

    def connect(self, way: str) -> HttpPeer:
        if way == "unix":
            return HttpPeer.unix(self.daemon.local_socket)
        return HttpPeer.tls("localhost", self.daemon.port, ca_file=self.daemon.ca_file)

    def wait_until_begun(self, *paths: str, count: int = WORKERS + 2) -> None:
        """Wait until so many requests run, with or without a worker. Each look drives the loop."""
        tickets = [path.rpartition("/")[2] for path in paths]
        for _ in range(20_000):
            if sum(len(self.daemon.ticket(ticket)["operations"]) for ticket in tickets) == count:
                return
        raise AssertionError("the requests have not begun")

    def assert_serves(self) -> None:
        data = os.urandom(SMALL)
        with self.connect("unix") as client:
            assert client.request("PUT", self.other, body=data).status == 200
            assert client.request("GET", self.other).body == data


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp("stalled")
    with Daemon(folder, config={"daemon": {"max_workers": WORKERS, "stop_timeout": 0}}) as daemon:
        yield Case(daemon, folder)


FILE = "file"
NBD = pytest.param("nbd", marks=needs_qemu)


@pytest.fixture(params=[FILE, NBD])
def storage(request: pytest.FixtureRequest, case: Case) -> Iterator[Any]:
    """Returns what gives a URL to the content of an image."""
    with contextlib.ExitStack() as stack:

        def serve(name: str, data: bytes) -> str:
            url = case.image(name, data)
            if request.param == "file":
                return url
            return stack.enter_context(Server(url[len("file://") :], "raw")).url

        yield serve


@pytest.mark.parametrize("way", ["unix", "tls"])
def test_readers_that_stop_leave_the_workers_to_others(case: Case, storage: Any, way: str) -> None:
    path = case.ticket(storage("image", case.data))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(case.connect(way)) for _ in range(WORKERS + 2)]
        for client in clients:
            client.send(request_head("GET", path))
        case.wait_until_begun(path)
        case.assert_serves()
        for client in clients:
            assert client.response().body == case.data
        # The connection serves the next request as if nothing had been.
        assert clients[0].request("GET", path, headers=[("Range", "bytes=0-99")]).body == case.data[:100]


@pytest.mark.parametrize(("way", "body"), [("unix", "whole"), ("tls", "whole"), ("unix", "chunked")])
def test_writers_that_stop_leave_the_workers_to_others(case: Case, storage: Any, way: str, body: str) -> None:
    paths = [case.ticket(storage(f"image{n}", bytes(SIZE))) for n in range(WORKERS + 2)]
    fields = [("Content-Length", str(SIZE)) if body == "whole" else ("Transfer-Encoding", "chunked")]
    data = case.data if body == "whole" else b"%x\r\n%b\r\n0\r\n\r\n" % (SIZE, case.data)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(case.connect(way)) for _ in paths]
        for client, path in zip(clients, paths):
            client.send(request_head("PUT", path, headers=fields))
            client.send(data[:BEGINNING])
        case.wait_until_begun(*paths)
        case.assert_serves()
        for client, path in zip(clients, paths):
            client.send(data[BEGINNING:])
            assert client.response().status == 200
            assert client.request("GET", path).body == case.data


def test_writer_that_stops_again_and_again_loses_nothing(case: Case) -> None:
    """Each time within a piece; nothing is counted before storage has it."""
    path = case.ticket(case.image("image", bytes(SIZE)), ops=["write"])
    piece = 700_001
    with case.connect("unix") as client:
        client.send(request_head("PUT", path, headers=[("Content-Length", str(SIZE))]))
        for start in range(0, 4 * piece, piece):
            client.send(case.data[start : start + piece])
            with contextlib.ExitStack() as stack:
                for _ in range(WORKERS):  # who take the workers, and do nothing with them
                    other = stack.enter_context(case.connect("unix"))
                    other.send(request_head("PUT", case.other, headers=[("Content-Length", str(SMALL))]))
                case.assert_serves()
            assert case.daemon.ticket(path.rpartition("/")[2])["transferred"] <= start + piece
        client.send(case.data[4 * piece :])
        assert client.response().status == 200
    assert Path(case.folder, "image").read_bytes() == case.data


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_ticket_of_stalled_clients_can_be_removed(case: Case, method: str) -> None:
    path = case.ticket(case.image("image", case.data))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(case.connect("unix")) for _ in range(WORKERS + 2)]
        for client in clients:
            client.send(request_head(method, path, headers=[("Content-Length", str(SIZE))] if method == "PUT" else []))
        case.wait_until_begun(path)
        case.assert_serves()
        case.daemon.remove_ticket(path.rpartition("/")[2])
        for client in clients:
            if method == "PUT":
                assert client.response().status == 403
            else:
                assert len(client.read_to_end()) < SIZE


def test_only_the_oldest_of_many_are_listed(case: Case) -> None:
    """A thousand of them would keep the loop for 10 ms each time somebody looks."""
    path = case.ticket(case.image("image", case.data))
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(case.connect("unix")).send(request_head("GET", path))
        case.wait_until_begun(path, count=32)
        case.assert_serves()
        assert len(case.daemon.ticket(path.rpartition("/")[2])["operations"]) == 32


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp("impatient")
    keys = {"max_workers": WORKERS, "stop_timeout": 0, "body_timeout": 1}
    with Daemon(folder, config={"daemon": keys}) as daemon:
        yield Case(daemon, folder)


@pytest.mark.parametrize("way", ["unix", "tls"])
def test_reader_that_takes_a_byte_now_and_then_is_left(impatient: Case, way: str) -> None:
    """One that is alone, so that a worker waits for it, and more than there are workers."""
    for count in (1, WORKERS + 2):
        path = impatient.ticket(impatient.image("image", impatient.data))
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(impatient.connect(way)) for _ in range(count)]
            for client in clients:
                client.send(request_head("GET", path))
                client.head()
            impatient.assert_serves()
            while impatient.daemon.ticket(path.rpartition("/")[2])["active"]:
                for client in clients:
                    with contextlib.suppress(OSError):
                        client.read(1)


@pytest.mark.parametrize("way", ["unix", "tls"])
def test_writer_that_sends_a_byte_now_and_then_is_left(impatient: Case, way: str) -> None:
    for count in (1, WORKERS + 2):
        path = impatient.ticket(impatient.image("image", impatient.data))
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(impatient.connect(way)) for _ in range(count)]
            for client in clients:
                client.send(request_head("PUT", path, headers=[("Content-Length", str(SIZE))]) + b"x")
            impatient.assert_serves()
            answers: list[int] = []
            while len(answers) < count:
                for client in clients[len(answers) :]:
                    with contextlib.suppress(OSError):
                        client.send(b"x")
                active = impatient.daemon.ticket(path.rpartition("/")[2])["operations"]
                answers += [clients[n].response().status for n in range(len(answers), count - len(active))]
            assert answers == [408] * count
