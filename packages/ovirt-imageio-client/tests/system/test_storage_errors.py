# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A daemon whose storage answers with errors, late, or not at all."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile

import pytest

from imageio_testing import nbdpeer, qemu
from imageio_testing.daemon import Daemon
from imageio_testing.faults import DATA, PATIENCE, SIZE, MiB, ask, assert_failed, assert_works, each_request, wait_for
from imageio_testing.httppeer import HttpPeer, request_head
from imageio_testing.mounts import mount
from imageio_testing.serving import Service
from ovirt_imageio.common.backends.nbd import NbdBackend
from ovirt_imageio.common.nbd import wire
from ovirt_imageio.common.qemu.nbd import Server
from ovirt_imageio.daemon import auth
from ovirt_imageio.daemon.pool import Pool

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    with Daemon(tmp_path_factory.mktemp("daemon"), tls=False) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def image():
    """A file that holds DATA."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as f:
        f.write(DATA)
        f.flush()
        yield f.name


@contextlib.contextmanager
def copy_on_write(image, *options):
    """The image behind nbdkit's cow filter, so that it stays as it is."""
    with qemu.nbdkit("file", image, *options, "--filter=cow") as url:
        yield url


# The call of the storage that fails; the cow filter zeroes by writing.
ERRORS = {
    "get": "pread",
    "put": "pwrite",
    "small-put": "pwrite",
    "zero": "pwrite",
    "small-zero": "pwrite",
    "extents": "extents",
    "checksum": "pread",
}


@qemu.needs_nbdkit
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("kind", ERRORS)
def test_error_of_storage_fails_the_request_alone(daemon, image, tmp_path, kind, error):
    trigger = tmp_path / "trigger"
    what = f"error-{ERRORS[kind]}"
    options = [f"{what}={error}", f"{what}-rate=100%", f"{what}-file={trigger}"]
    with copy_on_write(image, "--filter=error", *options) as url:
        ticket_id = daemon.add_ticket(url, size=SIZE)
        path = f"/images/{ticket_id}"
        with HttpPeer.unix(daemon.local_socket) as peer:
            assert_works(peer, path, kind if kind in ("extents", "checksum", "get") else "flush")
            trigger.touch()
            assert_failed(ask(peer, path, kind), 507 if error == "ENOSPC" else 500)
        assert error in daemon.ticket(ticket_id)["last_error"]["text"]
        trigger.unlink()
        with HttpPeer.unix(daemon.local_socket) as peer:
            assert_works(peer, path, kind)
        daemon.remove_ticket(ticket_id)


@qemu.needs_nbdkit
def test_client_that_leaves_hides_nothing_that_storage_said(daemon, image, tmp_path):
    """Of four connections one is told that the storage is full, and the client closes them all."""
    trigger = tmp_path / "trigger"
    options = ["error-pwrite=ENOSPC", "error-pwrite-rate=100%", f"error-pwrite-file={trigger}"]
    with copy_on_write(image, "--filter=error", *options) as url:
        ticket_id = daemon.add_ticket(url, size=SIZE)
        path = f"/images/{ticket_id}"
        with HttpPeer.unix(daemon.local_socket) as first, HttpPeer.unix(daemon.local_socket) as second:
            second.send(request_head("PUT", path, headers=[("Content-Length", str(SIZE))]) + bytes(100))
            wait_for(lambda: daemon.ticket(ticket_id)["active"], "the second upload began")
            trigger.touch()
            answer = first.request("PUT", path, body=b"x" * 4096)
            assert (answer.status, answer.text) == (507, "no space left on the storage\n")
        wait_for(lambda: not daemon.ticket(ticket_id)["active"], "both uploads ended")
        assert "ENOSPC" in daemon.ticket(ticket_id)["last_error"]["text"]
        daemon.remove_ticket(ticket_id)


@pytest.mark.parametrize("size", [4096, 2 * MiB], ids=["small", "large"])
def test_flush_that_failed_is_no_success(daemon, size):
    """Storage may have dropped what it could not write, so no later flush succeeds."""
    disk = nbdpeer.Image(bytearray(4 * MiB))
    with nbdpeer.serve(disk) as server, HttpPeer.unix(daemon.local_socket) as peer:
        ticket_id = daemon.add_ticket(server.address.uri(), size=4 * MiB)
        path = f"/images/{ticket_id}"
        assert peer.request("PUT", path + "?flush=n", body=b"x" * size).status == 200
        disk.errors[wire.CMD_FLUSH] = 5
        assert_failed(ask(peer, path, "flush"))
        assert "EIO" in daemon.ticket(ticket_id)["last_error"]["text"]
        disk.errors.clear()
        assert_failed(ask(peer, path, "flush"))
        daemon.remove_ticket(ticket_id)


@qemu.needs_nbdkit
@each_request
def test_slow_storage(daemon, image, kind):
    options = ["delay-read=10ms", "delay-write=10ms", "delay-zero=10ms", "delay-extents=10ms"]
    with copy_on_write(image, "--filter=delay", *options) as url:
        ticket_id = daemon.add_ticket(url, size=SIZE)
        with HttpPeer.unix(daemon.local_socket) as peer:
            assert_works(peer, f"/images/{ticket_id}", kind)
        daemon.remove_ticket(ticket_id)


@qemu.needs_nbdkit
@each_request
def test_server_that_is_about_to_exit(daemon, image, tmp_path, kind):
    trigger = tmp_path / "trigger"
    with copy_on_write(image, "--filter=exitwhen", f"exit-when-file-created={trigger}") as url:
        ticket_id = daemon.add_ticket(url, size=SIZE)
        path = f"/images/{ticket_id}"
        with HttpPeer.unix(daemon.local_socket) as peer:
            assert peer.request("GET", path, headers=[("Range", "bytes=0-9")]).body == DATA[:10]
            # From now on new connections are closed at once, which the second request may need.
            trigger.touch()
            response = ask(peer, path, kind)
            if response.status != 200:
                assert_failed(response)
        with HttpPeer.unix(daemon.local_socket) as peer:
            assert_works(peer, path, "small-put")
        daemon.remove_ticket(ticket_id)


@qemu.needs_qemu
@each_request
def test_silent_storage_runs_into_its_time_limit(image, tmp_path, monkeypatch, kind):
    pools, limit = [], 1.0

    def make_pool(*args, **options):
        pools.append(Pool(*args, **{**options, "timeout": limit}))
        return pools[-1]

    def open_backend(ticket):
        return NbdBackend(server.url, mode="r+", timeout=limit, greeting_timeout=limit)

    monkeypatch.setattr(auth, "Pool", make_pool)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))
        top = os.path.join(folder, "top.qcow2")
        qemu.make_image(top, "qcow2", SIZE, backing=qemu.Backing(image, "raw"))
        server = stack.enter_context(Server(top, "qcow2"))
        service = stack.enter_context(Service(tmp_path, open_backend))
        path = service.add_ticket(size=SIZE)
        with service.client() as peer:
            assert peer.request("GET", path, headers=[("Range", "bytes=0-9")]).body == DATA[:10]
            os.kill(server.pid, signal.SIGSTOP)
            response = ask(peer, path, kind)
            assert response.status in (500, 503), response
        pools[0]._timeout = limit = PATIENCE
        os.kill(server.pid, signal.SIGCONT)
        with service.client() as peer:
            assert_works(peer, path, kind)


@pytest.fixture
def small_file_system(tmp_path):
    """A folder with room for 4 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    with mount("none", folder, "-t", "tmpfs", "-o", "size=4m"):
        yield folder


@pytest.mark.parametrize("storage", ["file", pytest.param("nbd", marks=qemu.needs_qemu)])
def test_full_file_system(daemon, small_file_system, storage):
    disk = small_file_system / "disk"
    with open(disk, "wb") as f:
        f.truncate(8 * MiB)
    with contextlib.ExitStack() as stack:
        url = f"file://{disk}" if storage == "file" else stack.enter_context(Server(str(disk), "raw")).url
        ticket_id = daemon.add_ticket(url, size=8 * MiB, ops=["write"], sparse=True)
        path = f"/images/{ticket_id}"
        with HttpPeer.unix(daemon.local_socket) as peer:
            peer.send(b"PUT %b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (path.encode(), 8 * MiB))
            with contextlib.suppress(ConnectionError):
                peer.send(DATA[: 8 * MiB])
            assert_failed(peer.response("PUT"), 507)
        told = daemon.ticket(ticket_id)
        assert "ENOSPC" in told["last_error"]["text"] or "No space left" in told["last_error"]["text"]
        assert told["transferred"] <= 4 * MiB
        # Requests for which there is room are carried out all the same.
        with HttpPeer.unix(daemon.local_socket) as peer:
            zero = b'{"op": "zero", "offset": 0, "size": %d}' % (8 * MiB)
            assert peer.request("PATCH", path, body=zero).status == 200
            assert peer.request("PUT", path, body=DATA[:MiB]).status == 200
        daemon.remove_ticket(ticket_id)
    assert disk.read_bytes() == DATA[:MiB] + bytes(7 * MiB)
