# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Streams against the other end of a socket pair, which the test holds."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading

import pytest

from ovirt_imageio.common.backends.http.errors import Unreachable, Untrusted
from ovirt_imageio.common.backends.http.streams import Stream, TlsStream
from ovirt_imageio.common.errors import ConnectionTimeout, ProtocolError, ServerGone

PATIENCE = 20.0
SHORT = 0.05  # for servers that never answer: a test waits this long


@contextlib.contextmanager
def tls_pair(pki, *, version=None, **options):
    """A stream and the server's end of it, after the handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.cert_file, pki.key_file)
    if version is not None:
        context.maximum_version = version
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE)
    ends = []

    def shake_hands():
        ends.append(context.wrap_socket(theirs, server_side=True))

    thread = threading.Thread(target=shake_hands)
    thread.start()
    stream = TlsStream(
        ours,
        "the server",
        PATIENCE,
        connect_timeout=PATIENCE,
        context=ssl.create_default_context(cafile=pki.ca_file),
        server_hostname="localhost",
    )
    thread.join()
    with ends[0] as server:
        try:
            yield stream, server
        finally:
            stream.close()


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def tls(request, pki):
    with tls_pair(pki, version=request.param) as ends:
        yield ends


def received(stream, size):
    view = memoryview(bytearray(size))
    return bytes(view[: stream.recv_into(view)])


# Plain.


def test_unix_socket_is_not_taken_for_a_local_server(pair):
    stream, _ = pair
    assert not stream.is_local
    assert stream.splice_fd == stream.fileno()


def test_closed_connection_is_not_local():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = Stream(socket.create_connection(listener.getsockname()), "the server", None)
        accepted, _ = listener.accept()
        with accepted:
            assert stream.is_local
            stream.close()
            assert not stream.is_local


def test_receive_all_goes_on_after_a_pause(pair):
    stream, server = pair
    view = memoryview(bytearray(10))
    server.sendall(b"0123")
    server.shutdown(socket.SHUT_WR)
    assert stream.recv_all(view) == 4
    assert stream.recv_all(view) == 0


def test_answered_tells_of_data_and_of_the_end(pair):
    stream, server = pair
    assert not stream.answered()
    server.sendall(b"x")
    assert stream.answered()
    assert received(stream, 10) == b"x"
    assert not stream.answered()
    server.close()
    assert stream.answered()


@pytest.mark.parametrize("call", ["recv_into", "recv_all"])
def test_silent_server_runs_into_the_time_limit(pair, call):
    stream, _ = pair
    stream.settimeout(SHORT)
    with pytest.raises(ConnectionTimeout, match="the server sent nothing for 0.05 seconds"):
        getattr(stream, call)(memoryview(bytearray(1)))


def test_server_that_takes_nothing_runs_into_the_time_limit(pair):
    stream, _ = pair
    stream.settimeout(SHORT)
    with pytest.raises(ConnectionTimeout, match="the server took nothing"):
        stream.sendall(bytes(8 << 20))


def test_connection_that_is_gone(pair):
    stream, server = pair
    server.close()
    with pytest.raises(ServerGone, match="connection to the server lost: Broken pipe"):
        stream.sendall(b"x")
    stream.interrupt()
    assert received(stream, 1) == b""


# TLS.


def test_tls_moves_what_is_longer_than_its_buffers(tls):
    stream, server = tls
    data = bytes(range(256)) * 4096
    got = []
    thread = threading.Thread(target=lambda: got.append(b"".join(iter_received(server, len(data)))))
    thread.start()
    stream.sendall(data)
    thread.join()
    assert got == [data]
    thread = threading.Thread(target=server.sendall, args=(data,))
    thread.start()
    view = memoryview(bytearray(len(data)))
    assert stream.recv_all(view) == len(data)
    thread.join()
    assert view == data
    assert stream.splice_fd is None


def iter_received(sock, size):
    while size:
        data = sock.recv(min(size, 65536))
        assert data
        size -= len(data)
        yield data


def test_tls_answered_keeps_what_it_found(tls):
    stream, server = tls
    assert not stream.answered()
    server.sendall(b"0123456789")
    assert stream.answered()
    assert stream.answered()
    assert received(stream, 4) == b"0123"
    assert received(stream, 100) == b"456789"
    assert not stream.answered()


@pytest.mark.parametrize("polite", [True, False])
def test_tls_end_of_the_stream(tls, polite):
    stream, server = tls
    server.sendall(b"last")
    if polite:
        server.setblocking(False)
        with contextlib.suppress(ssl.SSLError, BlockingIOError):
            server.unwrap()
    server.close()
    view = memoryview(bytearray(10))
    assert stream.recv_all(view) == 4
    assert stream.answered()
    assert stream.recv_all(view) == 0


def test_tls_answered_when_the_connection_broke(pki):
    with tls_pair(pki) as (stream, server):
        stream.sendall(b"not read")
        server.close()  # with unread data: a reset
        assert stream.answered()


def test_tls_garbage_is_against_the_rules(pki):
    with tls_pair(pki) as (stream, server):
        with socket.socket(fileno=server.detach()) as raw:
            raw.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            with pytest.raises(ProtocolError, match="the server broke TLS"):
                received(stream, 10)


def test_tls_nothing_can_be_sent_after_the_end(pki):
    with tls_pair(pki) as (stream, server):
        server.close()
        with pytest.raises(ServerGone, match="lost"):
            for _ in range(10):
                stream.sendall(bytes(1 << 20))


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", Unreachable, "no TLS connection to the server: "),
        (b"", Unreachable, "no TLS connection to the server: "),
        (None, Unreachable, "no TLS connection to the server: the server sent nothing for 0.05 seconds"),
    ],
    ids=["plain HTTP", "hangs up", "silent"],
)
def test_tls_handshake_that_fails(pki, said, error, message):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        if said is not None:
            theirs.sendall(said)
            theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(error, match=message):
            TlsStream(
                ours,
                "the server",
                PATIENCE,
                connect_timeout=SHORT if said is None else PATIENCE,
                context=ssl.create_default_context(cafile=pki.ca_file),
                server_hostname="localhost",
            )


def test_tls_reset_in_the_handshake(pki):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        accepted.close()
        with ours, pytest.raises(Unreachable, match="no TLS connection to the server: connection to the server lost"):
            TlsStream(
                ours,
                "the server",
                PATIENCE,
                connect_timeout=PATIENCE,
                context=ssl.create_default_context(cafile=pki.ca_file),
                server_hostname="localhost",
            )


def test_tls_server_hears_why_it_is_not_trusted(pki):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.cert_file, pki.key_file)
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE)
    errors = []

    def shake_hands():
        try:
            context.wrap_socket(theirs, server_side=True).recv(1)
        except ssl.SSLError as e:
            errors.append(e)

    thread = threading.Thread(target=shake_hands)
    thread.start()
    with ours, pytest.raises(Untrusted, match="the certificate of the server was not accepted"):
        TlsStream(
            ours,
            "the server",
            PATIENCE,
            connect_timeout=PATIENCE,
            context=ssl.create_default_context(),
            server_hostname="localhost",
        )
    thread.join()
    theirs.close()
    assert "ALERT_UNKNOWN_CA" in str(errors[0])
