# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""virt-v2v: an nbdkit plugin that writes a disk through four connections of http.client.

Source: libguestfs/virt-v2v, output/ovirt-upload-plugin.py, v2.13.3-2-g71376bdb (rhv-upload-plugin.py to v2.8).

    OPTIONS:    200 with `features`, `unix_socket`, `max_readers`, `max_writers`; 204 or 405 of old servers
    GET:        with a Range; wants 206 and the Content-Length that was asked for
    PUT:        ``?flush=y|n``, Content-Range ``bytes a-b/*``; wants 200. A broken pipe while sending is passed
                over: the answer is read, and says why
    PATCH:      zero and flush, with Content-Type and Content-Length; wants 200

It makes the least of four, `max_readers` and `max_writers` connections, on a host of oVirt by the Unix socket. A flush
of NBD is sent on each of them. One that was idle for 30 s gets a flush, so that the server
does not close it: servers do after 60 s. The connection of OPTIONS is closed before. The body is always read.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPSConnection
from queue import Queue
from typing import Any, NamedTuple
from urllib.parse import urlparse

import pytest

from clients.host import Host, raw_volume
from conformance.storage import pattern
from imageio_testing.qemu import MiB, needs_qemu
from imageio_testing.volatile import Volatile
from ovirt_imageio.common.qemu import img
from ovirt_imageio.common.qemu.nbd import Server

MAX_CONNECTIONS = 4
IDLE_FLUSH = 30
SIZE = 8 * MiB


class UnixConnection(HTTPConnection):
    """The stdlib's connection, to the Unix socket that OPTIONS told."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Options(NamedTuple):
    """Abilities of the server."""

    can_flush: bool
    can_zero: bool
    unix_socket: str | None
    connections: int


class Plugin:
    """The plugin's pool, and the requests that it makes of NBD's."""

    def __init__(self, url: str, cafile: str, *, on_host: bool) -> None:
        self._url = urlparse(url)
        self._cafile = cafile
        with contextlib.closing(self._connect(None)) as connection:
            self.options = self._get_options(connection)
        self._pool: Queue[HTTPConnection] = Queue(self.options.connections)
        for _ in range(self.options.connections):
            self._pool.put(self._connect(self.options.unix_socket if on_host else None))

    def close(self) -> None:
        """Close all connections."""
        while not self._pool.empty():
            self._pool.get().close()

    def pread(self, offset: int, count: int) -> bytes:
        with self._borrow() as connection:
            connection.request("GET", self._url.path, headers={"Range": f"bytes={offset}-{offset + count - 1}"})
            response = connection.getresponse()
            assert response.status == 206, response.read()
            assert int(response.getheader("content-length") or -1) == count
            buf = bytearray(count)
            view, got = memoryview(buf), 0
            while got < count:
                n = response.readinto(view[got:])
                assert n, "short read"
                got += n
            return bytes(buf)

    def pwrite(self, offset: int, buf: bytes, *, fua: bool = False) -> tuple[int, bytes]:
        """Write, and return status and body of the answer, whatever it is."""
        flush = "y" if self.options.can_flush and fua else "n"
        with self._borrow() as connection:
            connection.putrequest("PUT", f"{self._url.path}?flush={flush}")
            connection.putheader("Content-Range", f"bytes {offset}-{offset + len(buf) - 1}/*")
            connection.putheader("Content-Length", str(len(buf)))
            connection.endheaders()
            with contextlib.suppress(BrokenPipeError):
                connection.send(buf)
            response = connection.getresponse()
            return response.status, response.read()

    def zero(self, offset: int, count: int, *, fua: bool = False) -> None:
        assert self.options.can_zero
        with self._borrow() as connection:
            self._patch(connection, {"op": "zero", "offset": offset, "size": count, "flush": fua})

    def flush(self) -> None:
        """Flush by each connection, when none of them works."""
        locked = [self._pool.get() for _ in range(self._pool.maxsize)]
        for connection in locked:
            self._patch(connection, {"op": "flush"})
        for connection in locked:
            self._pool.put(connection)

    @contextlib.contextmanager
    def _borrow(self) -> Iterator[HTTPConnection]:
        connection = self._pool.get()
        try:
            yield connection
        finally:
            self._pool.put(connection)

    def _patch(self, connection: HTTPConnection, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        connection.request("PATCH", self._url.path, body=body, headers=headers)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        response.read()

    def _connect(self, unix_socket: str | None) -> HTTPConnection:
        if unix_socket:
            return UnixConnection(unix_socket)
        context = ssl.create_default_context(purpose=ssl.Purpose.SERVER_AUTH, cafile=self._cafile)
        return HTTPSConnection(self._url.hostname or "", self._url.port, context=context, timeout=60)

    def _get_options(self, connection: HTTPConnection) -> Options:
        connection.request("OPTIONS", self._url.path)
        response = connection.getresponse()
        data = response.read()
        assert response.status == 200, data
        found = json.loads(data)
        most = min(found.get("max_readers", 1), found.get("max_writers", 1), MAX_CONNECTIONS)
        return Options("flush" in found["features"], "zero" in found["features"], found.get("unix_socket"), most)


@contextlib.contextmanager
def disk(host: Host, tmp_path: Any, storage: str) -> Iterator[tuple[str, str]]:
    """A disk to write to: its ticket and its transfer URL."""
    if storage == "file":
        ticket_id = host.add_ticket(raw_volume(tmp_path / "disk", SIZE), SIZE, ["write"], sparse=True)
        yield ticket_id, host.image_url(ticket_id)
        return
    img.create(str(tmp_path / "disk.qcow2"), "qcow2", size=SIZE)
    with Server(str(tmp_path / "disk.qcow2"), "qcow2", shared=8) as server:
        ticket_id = host.add_ticket(server.url, SIZE, ["write"], sparse=True)
        yield ticket_id, host.image_url(ticket_id)
        assert host.remove_ticket(ticket_id) < 300


@contextlib.contextmanager
def plugin(host: Host, url: str, *, on_host: bool = False) -> Iterator[Plugin]:
    """Load the plugin."""
    with contextlib.closing(Plugin(url, host.cafile, on_host=on_host)) as plugin:
        yield plugin


@needs_qemu
@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize(("storage", "connections"), [("file", 1), ("nbd", 4)])
def test_disk_is_written_by_all_connections_at_once(host, tmp_path, storage, connections, on_host):
    """nbdcopy has several requests in flight: data, zeroes, and a flush at the end."""
    data = bytearray(pattern(SIZE))
    with disk(host, tmp_path, storage) as (_, url), plugin(host, url, on_host=on_host) as v2v:
        assert v2v.options[:2] == (True, True)
        assert v2v.options.connections == connections
        assert (v2v.options.unix_socket or "").endswith("local")

        def copy(offset: int) -> None:
            if offset % (2 * MiB):
                v2v.zero(offset, MiB)
                data[offset : offset + MiB] = bytes(MiB)
            else:
                assert v2v.pwrite(offset, bytes(data[offset : offset + MiB]), fua=not offset)[0] == 200

        with ThreadPoolExecutor(MAX_CONNECTIONS) as threads:
            list(threads.map(copy, range(0, SIZE, MiB)))
            v2v.flush()
            read = b"".join(threads.map(lambda offset: v2v.pread(offset, MiB), range(0, SIZE, MiB)))
    assert read == data


@pytest.mark.parametrize("on_host", [False, True])
def test_flush_covers_what_all_connections_wrote(host, on_host):
    """A change with FUA is stable when it is answered, any other when a flush is answered."""
    data = pattern(SIZE)
    with Volatile(SIZE) as disk:
        ticket_id = host.add_ticket(disk.url, SIZE, ["write"], sparse=True)
        with plugin(host, host.image_url(ticket_id), on_host=on_host) as v2v:
            assert v2v.pwrite(0, data[:MiB], fua=True)[0] == 200
            assert disk.stable[:MiB] == data[:MiB]
            v2v.zero(0, 4096, fua=True)
            assert disk.stable[:MiB] == bytes(4096) + data[4096:MiB]

            def write(offset: int) -> int:
                return v2v.pwrite(offset, data[offset : offset + MiB])[0]

            with ThreadPoolExecutor(MAX_CONNECTIONS) as threads:
                assert set(threads.map(write, range(MiB, SIZE, MiB))) == {200}
            v2v.flush()
            assert disk.stable == bytes(4096) + data[4096:]
        assert host.remove_ticket(ticket_id) < 300


@needs_qemu
def test_small_requests_with_odd_edges(host, tmp_path):
    """nbdkit passes on what a client of NBD asks for."""
    with disk(host, tmp_path, "nbd") as (_, url), plugin(host, url) as v2v:
        assert v2v.pwrite(511, b"x" * 1025)[0] == 200
        v2v.zero(600, 100)
        assert v2v.pread(510, 1027) == b"\0" + b"x" * 89 + bytes(100) + b"x" * 836 + b"\0"


def test_connection_that_is_flushed_is_kept(host, tmp_path):
    """The plugin flushes an idle connection every 30 s; it is dropped after 60 s, and not before."""
    with disk(host, tmp_path, "file") as (ticket_id, url), plugin(host, url) as v2v:
        assert host.ticket(ticket_id)["inactivity_timeout"] > IDLE_FLUSH
        for _ in range(3):
            v2v.flush()
        assert v2v.pwrite(0, b"x" * 512)[0] == 200


def test_refused_write_is_read_though_the_pipe_broke(host, tmp_path):
    """The ticket went away: the answer says so, however much was sent before.

    2.5.1 closes with the rest unread, and the client may find a connection that was reset.
    """
    with disk(host, tmp_path, "file") as (ticket_id, url), plugin(host, url) as v2v:
        assert host.remove_ticket(ticket_id) < 300
        try:
            status, body = v2v.pwrite(0, bytes(4 * MiB))
        except OSError:
            assert host.generation.name == "2.5.1"
        else:
            assert (status, bool(body)) == (403, True)
