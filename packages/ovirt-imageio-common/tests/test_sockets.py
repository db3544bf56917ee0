# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
import contextlib
import select
import socket
import threading

import pytest

from ovirt_imageio.common import sockets
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.errors import ConnectionTimeout, OperationCancelled, PeerGone


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("/run/sock", "/run/sock"),
        ("\0/org/name", b"\0/org/name"),
        ("\\u0000/org/name", b"\0/org/name"),
        ("/" + "x" * 106, "/" + "x" * 106),
    ],
)
def test_unix_address_takes_paths_and_abstract_names(text, address):
    assert sockets.unix_address(text) == address


@pytest.mark.parametrize("text", ["", "\0", "\\u0000", "/" + "x" * 107, "/run/\0x"])
def test_unix_address_refuses_what_the_kernel_would_not_take(text):
    with pytest.raises(ValueError, match="Unix socket"):
        sockets.unix_address(text)


@pytest.fixture
def pair():
    a, b = socket.socketpair()
    with a, b:
        yield a, b


def test_recv_exactly_fills_over_many_packets(pair):
    a, b = pair
    for part in (b"ab", b"c", b"def"):
        b.sendall(part)
    buf = bytearray(6)
    sockets.recv_exactly(a, memoryview(buf))
    assert buf == b"abcdef"


def test_recv_exactly_tells_how_much_came_before_the_end(pair):
    a, b = pair
    b.sendall(b"abc")
    b.close()
    with pytest.raises(PeerGone, match="3 of 6 bytes"):
        sockets.recv_exactly(a, memoryview(bytearray(6)))


def test_a_silent_peer_ends_in_a_timeout(pair):
    a, _ = pair
    sockets.set_timeouts(a, 0.01)
    with pytest.raises(ConnectionTimeout, match="0 of 1 bytes"):
        sockets.recv_exactly(a, memoryview(bytearray(1)))


def test_connect_unix_to_an_abstract_name():
    name = "\0imageio-test-" + str(id(object()))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name.encode())
        listener.listen()
        with sockets.connect_unix(name, timeout=5) as a, listener.accept()[0] as b:
            b.sendall(b"x")
            assert a.recv(1) == b"x"
            assert a.gettimeout() is None


def test_connect_unix_names_nobody_behind(tmp_path):
    with pytest.raises(FileNotFoundError):
        sockets.connect_unix(str(tmp_path / "none"), timeout=5)


def test_connect_errors_name_the_address_and_keep_their_class(tmp_path):
    path = str(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=path):
        sockets.connect_unix(path)
    with socket.socket() as bound:  # but it does not listen
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        with pytest.raises(ConnectionRefusedError, match=f"127.0.0.1:{port}"):
            sockets.connect_tcp("127.0.0.1", port, timeout=5)
    with pytest.raises(socket.gaierror, match="no such host.invalid"):
        sockets.connect_tcp("no such host.invalid", 1, timeout=5)


def test_connect_unix_times_out_on_a_full_backlog(tmp_path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        with sockets.connect_unix(path), pytest.raises(ConnectionTimeout, match="accepted no connection"):
            sockets.connect_unix(path, timeout=0.01)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connect_tcp_by_both_families(host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        port = listener.getsockname()[1]
        with sockets.connect_tcp(host, port, timeout=5) as a, listener.accept()[0]:
            assert a.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert a.gettimeout() is None


@pytest.mark.parametrize("host", ["x" * 64, "a..b"])
def test_host_that_no_name_server_can_know_is_an_unknown_one(host):
    with pytest.raises(socket.gaierror, match=f"not a host name: '{host}'"):
        sockets.connect_tcp(host, 1)


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("192.0.2.1", False), ("host.invalid", False)],
)
def test_is_local_host(host, local):
    assert sockets.is_local_host(host) is local


@pytest.fixture
def full():
    """A Unix socket that takes no further client: connect(2) waits."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(b"")
        listener.listen(0)
        first.connect(listener.getsockname())
        yield listener.getsockname().decode()


def cancelled_while(call):
    """Call something that waits for ever, and cancel it when it does."""
    cancel = Cancel()
    looked = threading.Event()
    check = cancel.check

    def check_and_tell():
        check()
        looked.set()

    cancel.check = check_and_tell

    def end():
        assert looked.wait(10)
        cancel.cancel()

    thread = threading.Thread(target=end)
    thread.start()
    try:
        with pytest.raises(OperationCancelled):
            call(cancel)
    finally:
        thread.join()


def test_connecting_to_a_full_unix_socket_is_cancelled(full):
    cancelled_while(lambda cancel: sockets.connect_unix(full, 1000, cancel=cancel))


def test_connecting_to_a_full_unix_socket_ends_in_time_with_a_cancel_as_well(full):
    with pytest.raises(ConnectionTimeout, match=r"within 0\.01 seconds"):
        sockets.connect_unix(full, 0.01, cancel=Cancel())


@pytest.fixture
def deaf():
    """A TCP port whose backlog is full: the kernel answers no further client."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(2):
            s = stack.enter_context(socket.socket())
            s.setblocking(False)
            s.connect_ex(listener.getsockname())
            if not select.select([], [s], [], 0.2)[1]:
                break
        yield listener.getsockname()[1]


def test_connecting_to_a_deaf_host_is_cancelled(deaf):
    cancelled_while(lambda cancel: sockets.connect_tcp("127.0.0.1", deaf, 1000, cancel=cancel))


def test_connecting_to_a_deaf_host_ends_in_time(deaf):
    for cancel in (None, Cancel()):
        with pytest.raises(ConnectionTimeout, match=r"within 0\.01 seconds"):
            sockets.connect_tcp("127.0.0.1", deaf, 0.01, cancel=cancel)


def test_looking_up_a_name_is_cancelled(monkeypatch):
    asked, answer = threading.Event(), threading.Event()

    def getaddrinfo(*args, **keys):
        asked.set()
        answer.wait(10)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    cancel = Cancel()

    def end():
        asked.wait(10)
        cancel.cancel()

    thread = threading.Thread(target=end)
    thread.start()
    try:
        with pytest.raises(OperationCancelled):
            sockets.connect_tcp("name", 1, 1000, cancel=cancel)
    finally:
        answer.set()
        thread.join()


@pytest.mark.parametrize("cancel", [None, Cancel()])
def test_connect_tcp_tries_each_address_and_tells_of_the_last(monkeypatch, cancel):
    with socket.socket() as listener, socket.socket() as closed:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        closed.bind(("127.0.0.1", 0))
        addresses = [closed.getsockname(), listener.getsockname()]

        def getaddrinfo(*args, **keys):
            return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", address) for address in addresses]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        with sockets.connect_tcp("name", 1, 10, cancel=cancel) as s:
            assert s.getpeername() == listener.getsockname()
            assert s.getblocking()
        addresses.reverse()
        addresses[0] = closed.getsockname()
        with pytest.raises(ConnectionRefusedError, match="name:1"):
            sockets.connect_tcp("name", 1, 10, cancel=cancel)
