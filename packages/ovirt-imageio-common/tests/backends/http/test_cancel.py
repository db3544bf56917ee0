# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A cancel ends whatever waits for a server that is silent, wherever it is silent.

The backend's own time limit is a minute, and pytest's is less: a test that ends was woken.
"""

from __future__ import annotations

import contextlib
import io
import random
import socket
import threading

import pytest

from imageio_testing.imageserver import Image, ScriptedServer, response
from ovirt_imageio.common.backends.base import NullOperation
from ovirt_imageio.common.backends.file import FileBackend
from ovirt_imageio.common.backends.http import ConnectionLost, HttpBackend, ServerSilent, streams
from ovirt_imageio.common.backends.memory import Memory, MemoryBackend
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.errors import OperationCancelled
from ovirt_imageio.common.sockets import set_timeouts
from ovirt_imageio.common.units import KiB, MiB

pytestmark = pytest.mark.timeout(30)

SIZE = 8 * MiB


class Silent(Image):
    """Answers until it is asked for something that the test chose; then says nothing."""

    def __init__(self, when, begin=b"", **keys):
        super().__init__(bytearray(random.Random(1).randbytes(SIZE)), **keys)
        self.when = when
        self.begin = begin
        self.waiting, self.done = threading.Event(), threading.Event()

    def __call__(self, got):
        if not self.when(got):
            return super().__call__(got)
        if self.begin:
            got.socket.sendall(self.begin)
        self.waiting.set()
        self.done.wait(30)
        return None


@contextlib.contextmanager
def cancelled_when_it_waits(image, cancel):
    """Cancel as soon as the server has fallen silent."""
    canceller = threading.Thread(target=lambda: image.waiting.wait(30) and cancel.cancel())
    canceller.start()
    try:
        with pytest.raises(OperationCancelled):
            yield
        assert cancel.cancelled
    finally:
        image.waiting.set()
        image.done.set()
        canceller.join()


@pytest.fixture(params=["plain", "tls"])
def context(request):
    if request.param == "plain":
        return None
    import ssl

    pki = request.getfixturevalue("pki")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.cert_file, pki.key_file)
    return context


def is_big_get(got):
    return got.method == "GET" and got.headers.get("range", "bytes=0-0") != "bytes=0-0"


BODY = response(206, b"x" * (256 * KiB), Content_Length=SIZE, Content_Range=f"bytes 0-{SIZE - 1}/{SIZE}")
"""The beginning of an answer."""


def memory():
    return MemoryBackend(Memory(bytearray(SIZE)))


def file(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(bytes(SIZE))
    return FileBackend(str(path), mode="r+")


CASES = {
    "head": (is_big_get, b"", lambda c, _: c.read_into(0, bytearray(SIZE))),
    "body": (is_big_get, BODY, lambda c, _: c.read_into(0, bytearray(SIZE))),
    "body to memory": (is_big_get, BODY, lambda c, _: c.stream_read(memory(), 0, SIZE, NullOperation())),
    "body to a file": (is_big_get, BODY, lambda c, path: stream_to_file(c, path)),
    "body to a writer": (is_big_get, BODY, lambda c, _: c.write_to(io.BytesIO(), 0, SIZE)),
    "upload": (lambda got: got.method == "PUT", b"", lambda c, _: c.write(0, bytes(SIZE))),
    "upload of memory": (
        lambda got: got.method == "PUT",
        b"",
        lambda c, _: c.stream_write(memory(), 0, SIZE, NullOperation()),
    ),
    "upload of a file": (lambda got: got.method == "PUT", b"", lambda c, path: stream_from_file(c, path)),
    "upload of a reader": (lambda got: got.method == "PUT", b"", lambda c, _: c.read_from(Endless(), 0, SIZE)),
    "zero": (lambda got: got.method == "PATCH", b"", lambda c, _: c.zero(0, SIZE)),
    "flush": (lambda got: got.method == "PATCH", b"", lambda c, _: c.flush()),
    "extents": (lambda got: "/extents" in got.target, b"", lambda c, _: list(c.extents())),
    "checksum": (lambda got: "/checksum" in got.target, b"", lambda c, _: c.checksum()),
}


class Endless:
    def readinto(self, view):
        view[:] = bytes(len(view))
        return len(view)


def stream_to_file(client, path):
    with file(path) as target:
        client.stream_read(target, 0, SIZE, NullOperation())


def stream_from_file(client, path):
    with file(path) as source:
        client.stream_write(source, 0, SIZE, NullOperation())


@pytest.mark.parametrize("case", CASES)
def test_cancel_ends_a_request(case, context, tmp_path):
    when, begin, call = CASES[case]
    image = Silent(when, begin)
    cancel = Cancel()
    with ScriptedServer(image, context=context) as server:
        with HttpBackend(server.url, secure=False, cancel=cancel) as parent:
            assert parent.size == SIZE
            with parent.clone() as client, cancelled_when_it_waits(image, cancel):
                call(client, tmp_path)


@pytest.mark.parametrize("when", ["OPTIONS", "GET"])
def test_cancel_ends_the_first_contact(when, context):
    image = Silent(lambda got: got.method == when)
    cancel = Cancel()
    with ScriptedServer(image, context=context) as server:
        with cancelled_when_it_waits(image, cancel):
            with HttpBackend(server.url, secure=False, cancel=cancel) as backend:
                assert backend.size


@pytest.fixture
def mute():
    """A port that takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        yield listener


def test_cancel_ends_a_tls_handshake(mute):
    cancel = Cancel()

    def end():
        with mute.accept()[0] as s:
            assert s.recv(1)  # the handshake has begun
            cancel.cancel()

    canceller = threading.Thread(target=end)
    canceller.start()
    try:
        with pytest.raises(OperationCancelled):
            HttpBackend(f"https://127.0.0.1:{mute.getsockname()[1]}/images/x", secure=False, cancel=cancel)
    finally:
        canceller.join()


def test_cancel_ends_the_look_at_a_unix_socket(tmp_path):
    """The server on this host names a socket behind which nothing answers."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
        listener.listen(1)
        image = Image(bytearray(SIZE), unix_socket=str(tmp_path / "sock"))
        cancel = Cancel()

        def end():
            with listener.accept()[0] as s:
                s.recv(1)
                cancel.cancel()

        canceller = threading.Thread(target=end)
        canceller.start()
        try:
            with ScriptedServer(image) as server, pytest.raises(OperationCancelled):
                HttpBackend(server.url, cancel=cancel)
        finally:
            canceller.join()


def test_cancelled_backend_connects_no_more():
    """Also where no connection was open that could be broken."""
    image = Image(bytearray(SIZE))
    cancel = Cancel()
    with ScriptedServer(image) as server, HttpBackend(server.url, cancel=cancel) as parent:
        client = parent.clone()
        cancel.cancel()
        before = len(server.requests)
        for call in (lambda: client.read_into(0, bytearray(1)), client.flush, lambda: parent.size):
            with pytest.raises(OperationCancelled):
                call()
        assert len(server.requests) == before


def test_closed_connections_are_not_kept_for_a_cancel():
    cancel = Cancel()
    with ScriptedServer(Image(bytearray(SIZE))) as server:
        with HttpBackend(server.url, cancel=cancel) as parent, parent.clone() as client:
            client.read_into(0, bytearray(1))
            assert cancel._wakes
        assert not cancel._wakes


# Time limits.


@pytest.mark.parametrize("case", CASES)
def test_strict_time_limit_counts_for_every_request(case, tmp_path, monkeypatch):
    """A limit of 33 seconds is made short when all is silence."""
    when, begin, call = CASES[case]
    image = Silent(when, begin)
    with ScriptedServer(image) as server:
        with HttpBackend(server.url, timeout=33.0, strict=True) as parent:
            assert parent.size == SIZE
            shortened = {33.0: 0.05}
            monkeypatch.setattr(streams, "set_timeouts", lambda s, t: set_timeouts(s, shortened.get(t, t)))
            with parent.clone() as client:
                try:
                    with pytest.raises(ServerSilent, match=r"for 33\.0 seconds"):
                        call(client, tmp_path)
                finally:
                    image.done.set()


def test_server_that_leaves_is_not_called_a_client(tmp_path):
    def answer(got):
        if not is_big_get(got):
            return Image(bytearray(SIZE))(got)
        got.socket.sendall(BODY)
        return None

    with ScriptedServer(answer) as server, HttpBackend(server.url) as backend:
        with pytest.raises(ConnectionLost) as error:
            stream_to_file(backend, tmp_path)
    assert "client" not in str(error.value)


# Files.


def test_cancel_takes_a_file_away_from_the_thread_that_writes(tmp_path):
    cancel = Cancel()
    path = tmp_path / "image"
    path.write_bytes(b"old " * MiB)
    with FileBackend(str(path), mode="r+", cancel=cancel) as target, FileBackend(str(path), mode="r+") as other:
        target.write(0, b"new!")
        cancel.cancel()
        with contextlib.suppress(OSError):
            target.write(0, b"late")
        with contextlib.suppress(OSError):
            target.zero(0, MiB)
        with pytest.raises(OperationCancelled):
            target.flush()
        other.flush()
    assert path.read_bytes()[:8] == b"new!old "
    assert not cancel._wakes


def test_file_that_is_read_is_not_taken_away(tmp_path):
    cancel = Cancel()
    path = tmp_path / "image"
    path.write_bytes(b"data" * KiB)
    with FileBackend(str(path), cancel=cancel) as source:
        cancel.cancel()
        buf = bytearray(4)
        source.read_into(0, buf)
        assert buf == b"data"
