# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a daemon does when its storage fails in the middle of a request.

A stopped qemu-nbd takes requests and answers none. So a request is in its middle for
certain when the daemon calls the ticket active, and then the server is killed. Whatever
it was: the client is told, the next request works once the server is back, and when
the ticket is gone the daemon holds nothing of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
import time
from typing import Callable

import pytest

from imageio_testing import qemu
from imageio_testing.daemon import Daemon
from imageio_testing.httppeer import HttpPeer, request_head
from imageio_testing.nbdpeer import Image, Peer
from ovirt_imageio.common import checksum
from ovirt_imageio.common.backends.memory import Memory, MemoryBackend
from ovirt_imageio.common.nbd import wire
from ovirt_imageio.common.qemu.nbd import Server

KiB, MiB = 1 << 10, 1 << 20

SIZE = 32 * MiB
DATA = os.urandom(MiB) * 32

PATIENCE = 20.0

pytestmark = [pytest.mark.system, qemu.needs_qemu]


class Disk:
    """A raw image behind a qemu-nbd that can be stopped, killed and started again."""

    def __init__(self, folder):
        self.path = os.path.join(folder, "disk.raw")
        with open(self.path, "wb") as f:
            f.write(DATA)
        self.server = Server(self.path, "raw", socket_path=os.path.join(folder, "nbd.sock"))
        self.server.start()

    def pause(self):
        os.kill(self.server.pid, signal.SIGSTOP)

    def resume(self):
        os.kill(self.server.pid, signal.SIGCONT)

    def kill(self):
        self.server.stop(kill=True)

    def start(self):
        self.server.start()

    def content(self):
        with open(self.path, "rb") as f:
            return f.read()


@pytest.fixture
def disk():
    with tempfile.TemporaryDirectory(prefix="io-", dir="/dev/shm") as folder:
        disk = Disk(folder)
        yield disk
        disk.kill()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    with Daemon(tmp_path_factory.mktemp("daemon"), tls=False) as daemon:
        yield daemon
        # Workers end when they were idle for long; one stuck in every test would show.
        assert len(os.listdir(f"/proc/{daemon.pid}/task")) <= 8


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not in {PATIENCE} seconds"
        time.sleep(0.005)


def held(daemon) -> int:
    """Sockets and files that the daemon has open; pipes it keeps for further use."""
    folder = f"/proc/{daemon.pid}/fd"
    links = []
    for fd in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(f"{folder}/{fd}"))
    return sum(not link.startswith("pipe:") for link in links)


# One request of each kind: what to send, and what a good answer holds.


def zero(offset, size, flush=True):
    return json.dumps({"op": "zero", "offset": offset, "size": size, "flush": flush}).encode()


def block_hash(data):
    found = checksum.checksum([MemoryBackend(Memory(data))])
    return found.checksum


REQUESTS = {
    "get": ("GET", "", None, lambda r: r.body == DATA),
    "put": ("PUT", "", DATA[::-1], lambda r: r.body == b""),
    "zero": ("PATCH", "", zero(0, SIZE), lambda r: r.body == b""),
    "small-zero": ("PATCH", "", zero(4096, 4096), lambda r: r.body == b""),
    "unflushed-zero": ("PATCH", "", zero(4096, 4096, flush=False), lambda r: r.body == b""),
    "flush": ("PATCH", "", b'{"op": "flush"}', lambda r: r.body == b""),
    "extents": ("GET", "/extents", None, lambda r: sum(e["length"] for e in r.json()) == SIZE),
    "checksum": ("GET", "/checksum", None, lambda r: r.json()["checksum"] == block_hash(DATA)),
}

each_request = pytest.mark.parametrize("kind", REQUESTS)


def begin(peer, path, kind):
    """Send the head of a request, and of the body of a large one nothing yet."""
    method, suffix, body, _ = REQUESTS[kind]
    peer.send(request_head(method, path + suffix, body=body))
    if body is not None and len(body) < MiB:
        peer.send(body)


def complete(peer, kind):
    """Send the rest of a request, as far as it is taken, and return the answer."""
    method, _, body, _ = REQUESTS[kind]
    if body is not None and len(body) >= MiB:
        with contextlib.suppress(ConnectionError):
            peer.send(body)
    return peer.response(method)


def assert_works(peer, path, kind):
    begin(peer, path, kind)
    response = complete(peer, kind)
    assert response.status == 200, response.text
    assert REQUESTS[kind][3](response)


def assert_fails(peer, path, kind):
    """Storage is gone: the client is told, in one line that tells nothing of the host."""
    begin(peer, path, kind)
    response = complete(peer, kind)
    assert response.status == 500
    assert response.text.count("\n") == 1
    assert "nbd" not in response.text


@each_request
def test_server_killed_in_the_middle(daemon, disk, kind):
    before = held(daemon)
    ticket_id = daemon.add_ticket(disk.server.url, size=SIZE)
    path = f"/images/{ticket_id}"
    with HttpPeer.unix(daemon.local_socket) as peer:
        # The pool has its connections, which the server's end breaks.
        assert peer.request("GET", path, headers=[("Range", "bytes=0-4095")]).body == DATA[:4096]
        assert peer.request("GET", path).body == DATA
        disk.pause()
        begin(peer, path, kind)
        wait_for(lambda: daemon.ticket(ticket_id)["active"], "the request reaches storage")
        disk.kill()
        response = complete(peer, kind)
        assert response.status == 500
        assert response.text.count("\n") == 1
    with HttpPeer.unix(daemon.local_socket) as peer:
        assert_fails(peer, path, kind)
    disk.start()
    with HttpPeer.unix(daemon.local_socket) as peer:
        assert_works(peer, path, kind)
    daemon.remove_ticket(ticket_id)
    wait_for(lambda: held(daemon) <= before, "everything is closed")


def test_killed_in_the_body_of_a_download(daemon, disk):
    path = f"/images/{daemon.add_ticket(disk.server.url, size=SIZE)}"
    with HttpPeer.unix(daemon.local_socket) as peer:
        peer.send(request_head("GET", path))
        assert peer.head().status == 200
        start = peer.read(MiB)
        # More is left than all sockets and pipes between us hold.
        disk.kill()
        rest = peer.read_to_end()
    assert len(start) + len(rest) < SIZE
    assert start + rest == DATA[: len(start) + len(rest)]


def test_killed_in_the_body_of_an_upload(daemon, disk):
    ticket_id = daemon.add_ticket(disk.server.url, size=SIZE, ops=["write"])
    path = f"/images/{ticket_id}?flush=n"
    with HttpPeer.unix(daemon.local_socket) as peer:
        peer.send(request_head("PUT", path, body=DATA))
        peer.send(DATA[: SIZE // 2])
        wait_for(lambda: daemon.ticket(ticket_id)["transferred"] > 0, "storage acknowledges something")
        disk.kill()
        with contextlib.suppress(ConnectionError):
            peer.send(DATA[SIZE // 2 :])
        assert peer.response("PUT").status == 500
    # Nobody knows what of it outlived the server: who resumes from here repeats it all.
    assert daemon.ticket(ticket_id)["transferred"] == 0
    disk.start()
    with HttpPeer.unix(daemon.local_socket) as peer:
        assert peer.request("PUT", f"/images/{ticket_id}", body=DATA[::-1]).status == 200
    assert daemon.ticket(ticket_id)["transferred"] == SIZE
    assert disk.content() == DATA[::-1]


@pytest.mark.parametrize("size", [4096, MiB], ids=["small", "large"])
def test_no_flush_claims_what_a_killed_server_had(daemon, disk, size):
    path = f"/images/{daemon.add_ticket(disk.server.url, size=SIZE)}"
    with HttpPeer.unix(daemon.local_socket) as peer:
        assert peer.request("PUT", path + "?flush=n", body=bytes(size)).status == 200
        disk.kill()
        disk.start()
        assert peer.request("PATCH", path, body=b'{"op": "flush"}').status == 500
        assert peer.request("PUT", path, body=bytes(size)).status == 500
    with HttpPeer.unix(daemon.local_socket) as peer:
        assert peer.request("GET", path).body[size:] == DATA[size:]
    # Whoever starts over with a ticket of its own may.
    path = f"/images/{daemon.add_ticket(disk.server.url, size=SIZE)}"
    with HttpPeer.unix(daemon.local_socket) as peer:
        assert peer.request("PUT", path, body=DATA).status == 200


@pytest.mark.parametrize("kind", ["get", "extents", "checksum", "flush", "zero"])
def test_restarted_server_is_found_again(daemon, disk, kind):
    path = f"/images/{daemon.add_ticket(disk.server.url, size=SIZE)}"
    with HttpPeer.unix(daemon.local_socket) as peer:
        for _ in range(2):
            assert peer.request("GET", path, headers=[("Range", "bytes=0-9")]).body == DATA[:10]
            assert_works(peer, path, "get")
            disk.kill()
            disk.start()
        assert_works(peer, path, kind)


def test_server_lost_between_write_and_flush(daemon):
    """Both are done again over a new connection: a flush there covers nothing of the old one."""
    image, commands = Image(bytearray(MiB)), []

    def script(talk):
        talk.negotiate(MiB)
        while True:
            asked = talk.request()
            commands.append(asked.command)
            if commands == [wire.CMD_WRITE, wire.CMD_FLUSH]:
                return
            talk.answer(image, asked)

    with Peer(script) as peer, HttpPeer.unix(daemon.local_socket) as client:
        ticket_id = daemon.add_ticket(peer.address.uri(), size=MiB, ops=["write"])
        assert client.request("PUT", f"/images/{ticket_id}", body=b"x" * 4096).status == 200
        assert daemon.ticket(ticket_id)["transferred"] == 4096
        daemon.remove_ticket(ticket_id)
    assert commands == [wire.CMD_WRITE, wire.CMD_FLUSH] * 2
    assert image.data[:4096] == b"x" * 4096
