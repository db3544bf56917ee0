# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Many connections to one ticket on qemu-nbd: what each costs, and that all are served."""

from __future__ import annotations

import contextlib
import os
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from bench.machine import usage
from imageio_testing.daemon import Daemon
from imageio_testing.httppeer import HttpPeer, request_head
from imageio_testing.qemu import needs_qemu
from ovirt_imageio import client
from ovirt_imageio.common.qemu.nbd import Server

MiB = 1 << 20
SIZE = 16 * MiB
PIECE = 8 * MiB
MANY = 100

pytestmark = [pytest.mark.system, needs_qemu]


@pytest.fixture
def daemon(tmp_path):
    with Daemon(tmp_path, config={"daemon": {"stop_timeout": 0}}) as daemon:
        yield daemon


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk.raw"
    path.write_bytes(os.urandom(SIZE))
    return path


def connect(daemon, way):
    if way == "unix":
        return HttpPeer.unix(daemon.local_socket)
    return HttpPeer.tls("localhost", daemon.port, ca_file=daemon.ca_file)


def nbd_connections(server):
    """Connections that qemu-nbd has accepted, see proc(5): their sockets bear its address."""
    with open("/proc/net/unix") as f:
        rows = [line.split() for line in f]
    return sum(row[5] == "03" and row[-1] == server.socket_path for row in rows)


@pytest.mark.parametrize("way", ["unix", "tls"])
def test_idle_connections_that_moved_data_hold_nothing(daemon, disk, way):
    with Server(str(disk), "raw", cache="writeback") as server, contextlib.ExitStack() as stack:
        ticket = daemon.add_ticket(server.url, size=SIZE)
        data = disk.read_bytes()

        def more(count):
            for number in range(count):
                peer = stack.enter_context(connect(daemon, way))
                if number % 2:
                    fields = [("Content-Range", f"bytes 0-{PIECE - 1}/*")]
                    response = peer.request("PUT", f"/images/{ticket}?flush=n", headers=fields, body=data[:PIECE])
                    assert response.status == 200
                else:
                    fields = [("Range", f"bytes=0-{PIECE - 1}")]
                    assert peer.request("GET", f"/images/{ticket}", headers=fields).body == data[:PIECE]

        more(10)
        few, nbd = usage(daemon.pid), nbd_connections(server)
        more(MANY - 10)
        many = usage(daemon.pid)
        assert daemon.ticket(ticket)["connections"] == MANY
        assert many.threads <= few.threads + 1, "a worker that comes and goes"
        assert nbd_connections(server) <= 8
        assert nbd <= 8
        # A TLS connection keeps 100 KiB, a plain one 10; a buffer of 8 MiB each would be 720 MiB.
        assert many.rss - few.rss < 32 * MiB
        assert many.fds - few.fds <= MANY - 10 + 8


@pytest.mark.parametrize("way", ["unix", "tls"])
def test_twenty_connections_to_a_server_that_takes_one_are_all_served(daemon, disk, way):
    data = disk.read_bytes()
    with Server(str(disk), "raw", shared=1) as server, contextlib.ExitStack() as stack:
        ticket = daemon.add_ticket(server.url, size=SIZE)
        peers = [stack.enter_context(connect(daemon, way)) for _ in range(20)]
        pool = stack.enter_context(ThreadPoolExecutor(len(peers)))

        def read(number, length):
            start = number * 4096
            fields = [("Range", f"bytes={start}-{start + length - 1}")]
            body = peers[number].request("GET", f"/images/{ticket}", headers=fields).body
            return body == data[start : start + length]

        for length in (4096, MiB, PIECE):
            assert all(pool.map(read, range(len(peers)), [length] * len(peers)))
        for number, peer in enumerate(peers):
            fields = [("Content-Range", f"bytes {number * 1024}-{number * 1024 + 1023}/*")]
            peer.send(request_head("PUT", f"/images/{ticket}", headers=fields, body=bytes([number]) * 1024))
            peer.send(bytes([number]) * 1024)
        assert [peer.response().status for peer in peers] == [200] * 20
        assert nbd_connections(server) <= 2, "one that is used, and one that asks in vain"
    assert disk.read_bytes() == b"".join(bytes([n]) * 1024 for n in range(20)) + data[20 * 1024 :]


def test_silent_client_on_the_tls_port_delays_no_one(daemon, disk, tmp_path):
    with Server(str(disk), "raw") as server, contextlib.ExitStack() as stack:
        for first in (b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"):
            silent = stack.enter_context(socket.create_connection(("localhost", daemon.port), 10))
            silent.sendall(first)
        ticket = daemon.add_ticket(server.url, size=SIZE)
        copy = tmp_path / "copy.raw"
        client.download(f"{daemon.url}/images/{ticket}", str(copy), daemon.ca_file, fmt="raw")
        assert copy.read_bytes() == disk.read_bytes()
