# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A daemon in front of a daemon: every request of the API, and what ends at either."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading

import pytest

from imageio_testing import qemu
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
from imageio_testing.httppeer import ConnectionEnded, HttpPeer
from ovirt_imageio import admin
from ovirt_imageio.common import checksum
from ovirt_imageio.common.backends.memory import Memory, MemoryBackend
from ovirt_imageio.common.qemu.nbd import Server

pytestmark = [pytest.mark.system, qemu.needs_qemu]


class Chain:
    """One image, its ticket at the origin, and one for that at the proxy.

    Attributes:
        server: qemu-nbd behind the origin.
        at_origin, at_proxy: Ids of the tickets.
        path: Of the image at the proxy.
    """

    def __init__(self, server, origin, proxy, *, size=SIZE, **keys):
        self.server = server
        self.origin = origin
        self.proxy = proxy
        self.at_origin = origin.add_ticket(server.url, size=size, **keys)
        self.at_proxy = proxy.add_ticket(f"{origin.url}/images/{self.at_origin}", size=size, **keys)
        self.path = f"/images/{self.at_proxy}"

    def client(self):
        return HttpPeer.unix(self.proxy.local_socket)

    def remove(self):
        self.proxy.remove_ticket(self.at_proxy)
        self.origin.remove_ticket(self.at_origin)

    def pause(self):
        os.kill(self.server.pid, signal.SIGSTOP)

    def resume(self):
        os.kill(self.server.pid, signal.SIGCONT)


@pytest.fixture
def chain(origin, proxy):
    with tempfile.TemporaryDirectory(prefix="io-", dir="/dev/shm") as folder:
        disk = os.path.join(folder, "disk.raw")
        with open(disk, "wb") as f:
            f.write(DATA)
        with Server(disk, "raw") as server:
            chain = Chain(server, origin, proxy)
            yield chain
            chain.resume()
            chain.remove()


@each_request
def test_every_request(chain, kind):
    with chain.client() as peer:
        assert_works(peer, chain.path, kind)
        # The changed bytes are there, and both ends have the same.
        whole = peer.request("GET", chain.path).body
    with HttpPeer.unix(chain.origin.local_socket) as peer:
        assert peer.request("GET", f"/images/{chain.at_origin}").body == whole


def test_what_the_origin_can_is_passed_on(chain):
    with chain.client() as peer, HttpPeer.unix(chain.origin.local_socket) as direct:
        found = peer.request("OPTIONS", chain.path)
        expected = direct.request("OPTIONS", f"/images/{chain.at_origin}")
        assert found.header("Allow") == expected.header("Allow")
        document = found.json()
        assert document.pop("unix_socket") == chain.proxy.local_socket
        assert document == {k: v for k, v in expected.json().items() if k != "unix_socket"}
        assert peer.request("HEAD", chain.path).header("Content-Length") == str(SIZE)


@pytest.mark.parametrize(("first", "last"), [(0, 0), (1, 4096), (MiB - 3, 3 * MiB), (SIZE - 1, SIZE - 1)])
def test_ranges(chain, first, last):
    with chain.client() as peer:
        response = peer.request("GET", chain.path, headers=[("Range", f"bytes={first}-{last}")])
        assert response.status == 206
        assert response.body == DATA[first : last + 1]
        data = bytes(last + 1 - first)
        head = [("Content-Range", f"bytes {first}-{last}/*")]
        assert peer.request("PUT", chain.path + "?flush=n", headers=head, body=data).status == 200
        assert peer.request("GET", chain.path).body == DATA[:first] + data + DATA[last + 1 :]


def test_no_more_is_seen_than_the_ticket_allows(chain):
    """Extents and checksum see what GET may read, at both ends."""
    size = 5 * MiB + 1000
    small = Chain(chain.server, chain.origin, chain.proxy, size=size)
    expected = checksum.checksum([MemoryBackend(Memory(DATA[:size]))])
    for daemon, ticket_id in ((small.origin, small.at_origin), (small.proxy, small.at_proxy)):
        path = f"/images/{ticket_id}"
        with HttpPeer.unix(daemon.local_socket) as peer:
            assert peer.request("GET", path).body == DATA[:size]
            assert [(e["start"], e["length"]) for e in peer.request("GET", path + "/extents").json()] == [(0, size)]
            assert peer.request("GET", path + "/checksum").json()["checksum"] == expected.checksum
            assert (
                peer.request("PUT", path, headers=[("Content-Range", f"bytes {size}-{size}/*")], body=b"x").status
                == 416
            )
    small.remove()


def test_dirty_extents(origin, proxy, tmp_path):
    disk = tmp_path / "disk.qcow2"
    qemu.make_image(disk, "qcow2", SIZE)
    subprocess.run(["qemu-img", "bitmap", "--add", disk, "b"], check=True)
    qemu.fill_image(disk, "qcow2", [qemu.Fill(MiB, MiB, 1)])
    with Server(str(disk), "qcow2", bitmap="b", read_only=True) as server:
        chain = Chain(server, origin, proxy, ops=["read"], dirty=True)
        with chain.client() as peer:
            assert peer.request("GET", chain.path + "/extents?context=dirty").json() == [
                {"start": 0, "length": MiB, "dirty": False, "zero": True},
                {"start": MiB, "length": MiB, "dirty": True, "zero": False},
                {"start": 2 * MiB, "length": SIZE - 2 * MiB, "dirty": False, "zero": True},
            ]
        chain.remove()


def test_why_there_are_no_dirty_extents_is_passed_on(chain, origin, proxy):
    ticket = origin.add_ticket(chain.server.url, size=SIZE, dirty=True, bitmap="friday")
    proxied = proxy.add_ticket(f"{origin.url}/images/{ticket}", size=SIZE, dirty=True)
    with HttpPeer.unix(proxy.local_socket) as peer:
        answer = peer.request("GET", f"/images/{proxied}/extents?context=dirty")
    assert (answer.status, answer.text) == (404, "the storage has no dirty extents: it has no bitmap 'friday'\n")
    proxy.remove_ticket(proxied)
    origin.remove_ticket(ticket)


def test_no_dirty_extents(chain):
    with chain.client() as peer:
        assert peer.request("GET", chain.path + "/extents?context=dirty").status == 404


# The end at either.


def begun(chain, peer, kind):
    """Begin a request that storage does not answer for now."""
    chain.pause()
    begin(peer, chain.path, kind)
    wait_for(lambda: chain.origin.ticket(chain.at_origin)["active"], "the request reaches the origin")


@pytest.mark.parametrize("kind", ["get", "zero", "flush", "extents", "checksum"])
@pytest.mark.parametrize("end", ["proxy", "origin"])
def test_cancelled(chain, kind, end):
    with chain.client() as peer:
        # Connections are open: it is the request that is cancelled, not the opening.
        assert peer.request("GET", chain.path, headers=[("Range", "bytes=0-9")]).body == DATA[:10]
        begun(chain, peer, kind)
        remove = threading.Thread(target=daemon_of(chain, end).remove_ticket, args=[ticket_of(chain, end)])
        remove.start()
        wait_for(lambda: is_cancelled(daemon_of(chain, end), ticket_of(chain, end)), "it is cancelled")
        chain.resume()
        with contextlib.suppress(ConnectionEnded) if kind == "get" else contextlib.nullcontext():
            # Some of a body may be on its way; then the end of the connection says it.
            response = complete(peer, kind)
            # A request that storage had finished by then has succeeded.
            assert response.status == 403 or kind == "flush", response
        remove.join()
    with chain.client() as peer:
        assert ask(peer, chain.path, kind).status == 403


@pytest.mark.parametrize("kind", ["get", "zero", "flush", "extents", "checksum"])
@pytest.mark.parametrize("end", ["proxy", "origin"])
def test_removal_ends_the_wait_for_storage(chain, kind, end):
    """Storage stands still until the ticket is gone."""
    with chain.client() as peer:
        assert peer.request("GET", chain.path, headers=[("Range", "bytes=0-9")]).body == DATA[:10]
        begun(chain, peer, kind)
        daemon_of(chain, end).remove_ticket(ticket_of(chain, end))
        with contextlib.suppress(ConnectionEnded) if kind == "get" else contextlib.nullcontext():
            assert complete(peer, kind).status == 403


def is_cancelled(daemon, ticket_id):
    try:
        return daemon.ticket(ticket_id)["canceled"]
    except admin.ServerError as e:
        return bool(e.code == 404)  # and gone


def daemon_of(chain, end):
    return chain.proxy if end == "proxy" else chain.origin


def ticket_of(chain, end):
    return chain.at_proxy if end == "proxy" else chain.at_origin


@each_request
@pytest.mark.parametrize("end", ["proxy", "origin"])
def test_expired(chain, kind, end):
    with chain.client() as peer:
        assert peer.request("GET", chain.path, headers=[("Range", "bytes=0-9")]).body == DATA[:10]
    daemon, ticket_id = daemon_of(chain, end), ticket_of(chain, end)
    # The end of an operation extends its ticket, and a client may have the last byte before that.
    wait_for(lambda: not daemon.ticket(ticket_id)["active"], "the first request has ended")
    with daemon.admin() as control:
        control.mod_ticket(ticket_id, {"timeout": 0})
    with chain.client() as peer:
        response = ask(peer, chain.path, kind)
        assert response.status == 403, response
        assert "expired" in response.text
    with daemon_of(chain, end).admin() as control:
        control.mod_ticket(ticket_of(chain, end), {"timeout": 300})
    with chain.client() as peer:
        assert_works(peer, chain.path, kind)


@each_request
def test_origin_without_storage(origin, proxy, kind):
    before = held(proxy)
    ticket = origin.add_ticket("nbd:unix:/nonexistent", size=SIZE)
    at_proxy = proxy.add_ticket(f"{origin.url}/images/{ticket}", size=SIZE)
    with HttpPeer.unix(proxy.local_socket) as peer:
        assert_failed(ask(peer, f"/images/{at_proxy}", kind))
    # The origin's words stand where operators look.
    assert "500" in proxy.ticket(at_proxy)["last_error"]["text"]
    proxy.remove_ticket(at_proxy)
    wait_for(lambda: held(proxy) <= before, "everything is closed")
