# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Transfers that are cancelled, and that give up as they were told, whatever their server does.

Where nothing else is told the server may be silent for a minute, and pytest's limit is less: a
test that ends was woken.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import socket
import ssl
import threading
from types import MappingProxyType
from typing import Mapping, NamedTuple

import pytest

from imageio_testing.imageserver import Image, ScriptedServer, response
from imageio_testing.qemu import needs_qemu
from ovirt_imageio import client
from ovirt_imageio.client import patience, plan, target
from ovirt_imageio.client import transfer as transfer_module
from ovirt_imageio.client.executor import Retry
from ovirt_imageio.client.gaveup import GaveUp
from ovirt_imageio.client.patience import Patience
from ovirt_imageio.common.backends.http import Refused, ServerSilent, streams
from ovirt_imageio.common.errors import OperationCancelled
from ovirt_imageio.common.qemu import img
from ovirt_imageio.common.sockets import set_timeouts
from ovirt_imageio.common.units import MiB

pytestmark = pytest.mark.timeout(30)

SIZE = 6 * MiB
NEW = ("checksum", "checksum-range", "extents", "flush", "zero")


class Server(Image):
    """Serves an image, until it falls silent at the first request of a kind.

    Attributes:
        waiting: It is silent.
        done: It may go on.
    """

    def __init__(self, silent_at, *, after=0, **keys):
        super().__init__(bytearray(random.Random(1).randbytes(SIZE)), **keys)
        self.silent_at = silent_at
        self.left = after
        self.waiting, self.done = threading.Event(), threading.Event()

    def __call__(self, got):
        if got.method == "PATCH" and len(got.body) < got.length:
            return None  # the client went away
        if not self.silent_at(got):
            return super().__call__(got)
        self.left -= 1
        if self.left >= 0:
            return super().__call__(got)
        self.waiting.set()
        self.done.wait(20)
        return None


def ranged_get(got):
    return got.method == "GET" and got.headers.get("range") not in (None, "bytes=0-0")


def asks(word):
    return lambda got: f"/{word}" in got.target


def does(method, word=b""):
    return lambda got: got.method == method and word in (got.body if method == "PATCH" else b"")


class Case(NamedTuple):
    direction: str
    silent_at: object
    after: int = 0
    fmt: str = "raw"
    keys: Mapping = MappingProxyType({})
    features: tuple = Image.FEATURES

    def __str__(self):
        return self.direction


CASES = {
    "upload, first contact": Case("upload", does("OPTIONS")),
    "upload, size": Case("upload", lambda got: got.headers.get("range") == "bytes=0-0"),
    "upload, data": Case("upload", does("PUT")),
    "upload, some data": Case("upload", does("PUT"), 2),
    "upload, zeroes": Case("upload", does("PATCH", b"zero"), keys={"sparse": True}),
    "upload, flush": Case("upload", does("PATCH", b"flush")),
    "upload, checksum": Case("upload", asks("checksum"), keys={"verify": True}),
    "upload, range of a checksum": Case("upload", asks("checksum"), keys={"verify": True}, features=NEW),
    "upload, read back": Case("upload", ranged_get, keys={"verify": True}, features=("extents", "flush", "zero")),
    "download, first contact": Case("download", does("OPTIONS")),
    "download, extents": Case("download", asks("extents")),
    "download, data": Case("download", ranged_get),
    "download, some data": Case("download", ranged_get, 2),
    "download, checksum": Case("download", asks("checksum"), keys={"verify": True}),
    "download, qcow2": Case("download", ranged_get, 2, fmt="qcow2"),
    "upload, qcow2": Case("upload", does("PUT"), 2, fmt="qcow2"),
}


@pytest.fixture(autouse=True)
def _short_requests(monkeypatch):
    monkeypatch.setattr(plan, "SHORTEST_CUT", MiB)


@pytest.fixture(params=CASES)
def case(request):
    case = CASES[request.param]
    if case.fmt == "qcow2" and needs_qemu.args[0]:
        pytest.skip(needs_qemu.kwargs["reason"])
    return case


@pytest.fixture(params=["plain", "tls"])
def context(request, pki):
    if request.param == "plain":
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.cert_file, pki.key_file)
    return context


@pytest.fixture
def transfer(case, tmp_path):
    """Runs the transfer of a case; its server is silent at some point."""
    server = Server(case.silent_at, after=case.after, features=case.features)
    path = tmp_path / "image"
    if case.direction == "upload":
        path.write_bytes(server.data[: SIZE // 2] if case.keys.get("sparse") else server.data)
        os.truncate(path, SIZE)
        if case.fmt == "qcow2":
            img.convert(str(path), str(tmp_path / "qcow2"), fmt="raw", target_fmt="qcow2")
            os.replace(tmp_path / "qcow2", path)

    def run(url, **more):
        keys = {"secure": False, "max_workers": 3, **case.keys, **more}
        keys.pop("sparse", None)
        if case.direction == "upload":
            return client.upload(str(path), url, None, **keys)
        return client.download(url, str(path), None, fmt=case.fmt, **keys)

    run.server = server
    run.folder = tmp_path
    run.is_upload = case.direction == "upload"
    yield run
    server.done.set()


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextlib.contextmanager
def nothing_is_touched_afterwards(transfer):
    """When the call has ended nothing is left that could change the image, or send to the server."""
    yield
    files = content(transfer.folder)
    assert set(files) == ({"image"} if transfer.is_upload else set())
    transfer.server.done.set()
    for thread in executor_threads():
        thread.join(10)
    assert executor_threads() == []
    assert content(transfer.folder) == files


def executor_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("transfer-")]


def when_silent(transfer, call):
    thread = threading.Thread(target=lambda: transfer.server.waiting.wait(20) and call())
    thread.start()
    return thread


def test_cancel_ends_a_transfer(transfer, context):
    cancel = client.Cancel()
    with ScriptedServer(transfer.server, context=context) as server:
        thread = when_silent(transfer, cancel.cancel)
        with nothing_is_touched_afterwards(transfer):
            with pytest.raises(OperationCancelled):
                transfer(server.url, cancel=cancel)
        thread.join()
    assert not cancel._wakes


def test_control_c_ends_a_transfer_of_a_program(transfer, context):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.get_ident()
    try:
        with ScriptedServer(transfer.server, context=context) as server:
            thread = when_silent(transfer, lambda: signal.pthread_kill(main, signal.SIGINT))
            with nothing_is_touched_afterwards(transfer):
                with pytest.raises(KeyboardInterrupt):
                    transfer(server.url)
            thread.join()
    finally:
        signal.signal(signal.SIGINT, before)


class Impatient:
    """A progress that raises when the server has fallen silent."""

    size = None

    def __init__(self, server):
        self.server = server

    def update(self, n):
        if self.server.waiting.wait(20):
            raise RuntimeError("the caller's own")


@pytest.mark.parametrize("case", [CASES["upload, some data"], CASES["download, some data"]], ids=str, indirect=False)
def test_exception_of_the_progress_ends_a_transfer_while_the_server_is_silent(case, tmp_path, context):
    server = Server(case.silent_at, after=1)
    (tmp_path / "source").write_bytes(bytes(server.data))
    with ScriptedServer(server, context=context) as scripted:
        keys = {"secure": False, "progress": Impatient(server), "max_workers": 4}
        try:
            with pytest.raises(RuntimeError, match="the caller's own"):
                if case.direction == "upload":
                    client.upload(str(tmp_path / "source"), scripted.url, None, **keys)
                else:
                    client.download(scripted.url, str(tmp_path / "image"), None, fmt="raw", **keys)
        finally:
            server.done.set()


@pytest.mark.parametrize("direction", ["upload", "download"])
def test_cancel_before_the_beginning_does_nothing(direction, tmp_path):
    cancel = client.Cancel()
    cancel.cancel()
    (tmp_path / "image").write_bytes(b"old")
    with ScriptedServer(Server(lambda got: False)) as server:
        with pytest.raises(OperationCancelled):
            if direction == "upload":
                client.upload(str(tmp_path / "image"), server.url, None, cancel=cancel)
            else:
                client.download(server.url, str(tmp_path / "image"), None, fmt="raw", cancel=cancel)
        assert server.requests == []
    assert content(tmp_path) == {"image": b"old"}


def test_cancel_ends_the_pause_between_two_attempts(tmp_path, monkeypatch):
    monkeypatch.setattr(Retry, "pause", lambda self, failures: 1000.0)
    cancel = client.Cancel()

    class Busy(Server):
        def do_put(self, got, query):
            cancel.cancel()
            return response(503, b"busy\n")

    (tmp_path / "image").write_bytes(bytes(range(256)) * 4096)
    with ScriptedServer(Busy(lambda got: False)) as server:
        with pytest.raises(OperationCancelled):
            client.upload(str(tmp_path / "image"), server.url, None, cancel=cancel)


def test_cancel_when_all_is_downloaded_gives_no_name(tmp_path, monkeypatch):
    """It comes after the last byte, and before the image gets its name."""
    cancel = client.Cancel()
    close = target.Target.close

    def cancel_and_close(self, **keys):
        cancel.cancel()
        close(self, **keys)

    monkeypatch.setattr(target.Target, "close", cancel_and_close)
    with ScriptedServer(Server(lambda got: False)) as server:
        with pytest.raises(OperationCancelled):
            client.download(server.url, str(tmp_path / "image"), None, fmt="raw", cancel=cancel)
    assert content(tmp_path) == {}


def test_one_cancel_ends_several_transfers_and_none_ends_a_cancel(tmp_path):
    (tmp_path / "small").write_bytes(bytes(MiB))
    cancel = client.Cancel()
    with ScriptedServer(Server(lambda got: False)) as server:
        client.upload(str(tmp_path / "small"), server.url, None, cancel=cancel)
        server.answer.silent_at = lambda got: got.method == "PUT" and got.socket.sendall(response(500))
        (tmp_path / "small").write_bytes(b"x" * MiB)
        with pytest.raises(Refused):
            client.upload(str(tmp_path / "small"), server.url, None, cancel=cancel)
        assert not cancel.cancelled
    servers = [Server(does("PUT")) for _ in range(2)]
    (tmp_path / "image").write_bytes(bytes(servers[0].data))
    ended = []

    def upload(url):
        with pytest.raises(OperationCancelled):
            client.upload(str(tmp_path / "image"), url, None, cancel=cancel)
        ended.append(url)

    with ScriptedServer(servers[0]) as one, ScriptedServer(servers[1]) as two:
        threads = [threading.Thread(target=upload, args=(server.url,)) for server in (one, two)]
        for thread in threads:
            thread.start()
        for server in servers:
            server.waiting.wait(20)
        cancel.cancel()
        for thread in threads:
            thread.join()
        for server in servers:
            server.done.set()
    assert len(ended) == 2


def test_cancel_ends_a_tls_handshake_and_a_connection_to_nowhere(tmp_path):
    (tmp_path / "image").write_bytes(bytes(MiB))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        cancel = client.Cancel()

        def end():
            with listener.accept()[0] as s:
                s.recv(1)
                cancel.cancel()

        thread = threading.Thread(target=end)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/images/x"
        with pytest.raises(OperationCancelled):
            client.upload(str(tmp_path / "image"), url, None, cancel=cancel)
        thread.join()


# The end of a resumed transfer's check.


@pytest.mark.parametrize("direction", ["upload", "download"])
def test_cancel_ends_the_check_of_what_was_done_and_keeps_the_journal(direction, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer_module, "CHECKPOINT_LENGTH", MiB)
    first = Server(does("PUT") if direction == "upload" else ranged_get, after=2, features=NEW)
    if direction == "upload":
        (tmp_path / "image").write_bytes(bytes(first.data))

    def run(url, cancel):
        keys = {"resume": True, "cancel": cancel, "max_workers": 1}
        with pytest.raises(OperationCancelled):
            if direction == "upload":
                client.upload(str(tmp_path / "image"), url, None, **keys)
            else:
                client.download(url, str(tmp_path / "image"), None, fmt="raw", **keys)

    for is_silent in (first.silent_at, asks("checksum")):
        first.silent_at, first.left = is_silent, 2 if is_silent is first.silent_at else 0
        first.waiting.clear()
        first.done.clear()
        cancel = client.Cancel()
        with ScriptedServer(first) as server:
            thread = threading.Thread(target=lambda end: first.waiting.wait(20) and end(), args=(cancel.cancel,))
            thread.start()
            run(server.url, cancel)
            first.done.set()
            thread.join()
        assert any(name.endswith(".journal") for name in content(tmp_path))


# Giving up.


@pytest.fixture
def short_silence(monkeypatch):
    """A limit of 33 seconds is made short, and so are pauses."""
    monkeypatch.setattr(streams, "set_timeouts", lambda s, t: set_timeouts(s, {33.0: 0.1}.get(t, t)))
    monkeypatch.setattr(Retry, "pause", lambda self, failures: 0.0)


SILENT_LATE = [name for name in CASES if name not in ("upload, first contact", "download, first contact")]


@pytest.mark.parametrize("case", [CASES[name] for name in SILENT_LATE], ids=SILENT_LATE, indirect=False)
def test_transfer_gives_up_after_timeout_and_retries(transfer, case, short_silence, caplog):
    """Each request is made once and twice again; so the case's own place is where it ends."""
    if case.fmt == "qcow2" and needs_qemu.args[0]:
        pytest.skip(needs_qemu.kwargs["reason"])
    caplog.set_level(logging.WARNING)
    with ScriptedServer(transfer.server) as server:
        with pytest.raises((GaveUp, ServerSilent), match=r"for 33\.0 seconds") as error:
            transfer(server.url, timeout=33.0, retries=2, max_workers=1)
        transfer.server.done.set()
    assert "client" not in str(error.value)
    again = [record for record in caplog.records if "trying again" in record.getMessage()]
    assert len(again) == 2


@pytest.mark.parametrize("direction", ["upload", "download"])
@pytest.mark.parametrize("retries", [0, 1, 9])
def test_server_that_cannot_be_reached_is_tried_as_often_as_told(direction, retries, tmp_path, monkeypatch, caplog):
    pauses = []
    monkeypatch.setattr(Retry, "pause", lambda self, failures: pauses.append(failures) or 0.0)
    (tmp_path / "image").write_bytes(bytes(MiB))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/images/x"
        with pytest.raises(ConnectionRefusedError):
            if direction == "upload":
                client.upload(str(tmp_path / "image"), url, None, retries=retries)
            else:
                client.download(url, str(tmp_path / "image"), None, retries=retries)
    assert pauses == list(range(1, retries + 1))


def test_time_limit_is_that_of_connecting_as_well():
    assert Patience(3.0).times() == {"timeout": 3.0, "strict": True, "connect_timeout": 3.0}
    assert Patience(300.0).times()["connect_timeout"] < 300
    assert Patience().times() == {}


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), "5"])
def test_time_limit_that_is_none_is_named(timeout, tmp_path):
    for call in (
        lambda: client.upload("x", "http://x/images/x", None, timeout=timeout),
        lambda: client.download("http://x/images/x", "x", None, timeout=timeout),
        lambda: client.ImageioClient("http://x/images/x", timeout=timeout),
    ):
        with pytest.raises(ValueError, match=f"invalid timeout {timeout!r}: expected seconds, more than 0"):
            call()


@pytest.mark.parametrize("retries", [-1, 1.5, "2"])
def test_retries_that_are_none_are_named(retries):
    with pytest.raises(ValueError, match=f"invalid retries {retries!r}: expected 0 or more"):
        client.upload("x", "http://x/images/x", None, retries=retries)


def test_cancel_that_is_none_is_named():
    for call in (
        lambda: client.upload("x", "http://x/images/x", None, cancel=threading.Event()),
        lambda: client.ImageioClient("http://x/images/x", cancel=threading.Event()),
        lambda: client.checksum("x", cancel=threading.Event()),
    ):
        with pytest.raises(TypeError, match="expected a client.Cancel"):
            call()


# Random access, and checksums of this machine.


def test_cancel_ends_a_call_of_a_client():
    image = Server(ranged_get)
    cancel = client.Cancel()
    with ScriptedServer(image) as server, client.ImageioClient(server.url, cancel=cancel) as c:
        thread = threading.Thread(target=lambda: image.waiting.wait(20) and cancel.cancel())
        thread.start()
        with pytest.raises(OperationCancelled):
            c.read(0, bytearray(SIZE))
        thread.join()
        image.done.set()
        with pytest.raises(OperationCancelled):
            c.flush()


def test_client_gives_up_a_silent_server(short_silence):
    image = Server(asks("checksum"))
    with ScriptedServer(image) as server, client.ImageioClient(server.url, timeout=33.0) as c:
        with pytest.raises(ServerSilent):
            c.checksum()
        image.done.set()


def test_cancel_ends_a_checksum_of_a_local_image(tmp_path, monkeypatch):
    (tmp_path / "image").write_bytes(random.Random(1).randbytes(8 * MiB))
    cancel = client.Cancel()
    assert client.checksum(str(tmp_path / "image"), cancel=cancel) == client.checksum(str(tmp_path / "image"))
    from ovirt_imageio.common.backends.file import FileBackend

    read_into = FileBackend.read_into

    def read_and_cancel(self, offset, buf):
        read_into(self, offset, buf)
        cancel.cancel()

    monkeypatch.setattr(FileBackend, "read_into", read_and_cancel)
    with pytest.raises(OperationCancelled):
        client.checksum(str(tmp_path / "image"), cancel=cancel)


def test_patience_counts_what_was_tried_again():
    with patience.patience(None, 3, None) as given:
        failures = [ConnectionResetError(), ConnectionResetError()]

        def call():
            if failures:
                raise failures.pop()
            return "done"

        given.cancel.wait = lambda seconds: None
        assert given.persist(call, "try") == "done"
        assert given.retried.count == 2
