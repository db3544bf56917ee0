# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A daemon whose storage fails in the middle of a request.

A stopped qemu-nbd takes requests and answers none. So a request is in its middle for
certain when the daemon calls the ticket active, and then the server is killed. Of each
kind of request the client is told, and the next request works once the server is back.
When the ticket is gone the daemon holds nothing of it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile

import pytest

from imageio_testing import qemu
from imageio_testing.daemon import Daemon
from imageio_testing.faults import (
    DATA,
    SIZE,
    MiB,
    ask,
    assert_failed,
    assert_works,
    begin,
    complete,
    each_request,
    held,
    wait_for,
)
from imageio_testing.httppeer import HttpPeer, request_head
from imageio_testing.nbdpeer import Image, Peer
from imageio_testing.settings import are_off
from ovirt_imageio.common.nbd import wire
from ovirt_imageio.common.qemu.nbd import Server

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
        assert_failed(complete(peer, kind))
    with HttpPeer.unix(daemon.local_socket) as peer:
        assert_failed(ask(peer, path, kind))
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
    # No part of it is known to have outlived the server: a client that resumes from here repeats it all.
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
    # A client that starts over with a ticket of its own may do so.
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

    with Peer(script) as peer:
        ticket_id = daemon.add_ticket(peer.address.uri(), size=MiB, ops=["write"])
        # Bytes that a worker moved straight to storage are not in the daemon any more: the client sends them again.
        for status in [500, 200] if are_off("inline", "loop nbd") else [200]:
            with HttpPeer.unix(daemon.local_socket) as client:
                assert client.request("PUT", f"/images/{ticket_id}", body=b"x" * 4096).status == status
        wait_for(lambda: daemon.ticket(ticket_id)["transferred"] == 4096, "the write counts once")
        daemon.remove_ticket(ticket_id)
    assert commands == [wire.CMD_WRITE, wire.CMD_FLUSH] * 2
    assert image.data[:4096] == b"x" * 4096
