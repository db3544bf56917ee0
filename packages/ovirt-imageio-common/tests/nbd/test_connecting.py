# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Connecting to servers that refuse, lie, go away or say nothing."""

from __future__ import annotations

import errno
import socket
from types import SimpleNamespace

import pytest

from imageio_testing.nbdpeer import Image, Peer, serve
from ovirt_imageio.common import defaults, nbd, sockets
from ovirt_imageio.common.errors import ConnectionTimeout, PeerGone, ProtocolError, RequestError
from ovirt_imageio.common.nbd import connecting, wire

SHORT = 0.05  # for servers that never answer: a test waits this long


def test_server_that_never_greets_is_full():
    with Peer(lambda talk: talk.wait_for_hangup()) as peer:
        with pytest.raises(nbd.ServerFull, match="did not greet in 0.05 seconds"):
            nbd.Client(peer.address, greeting_timeout=SHORT)


def test_server_with_a_full_backlog_is_full(tmp_path):
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(path)
        listener.listen(0)
        waiting.connect(path)
        with pytest.raises(nbd.ServerFull, match="backlog is full"):
            nbd.Client(nbd.unix(path), greeting_timeout=SHORT)


def test_server_that_stops_in_the_negotiation_is_silent(monkeypatch):
    def script(talk):
        talk.greet()
        talk.wait_for_hangup()

    with Peer(script) as peer:
        # The start, before the greeting, after it, after the flags: then the time is nearly up.
        clock = iter([0, 0, 0, 60 - SHORT])
        monkeypatch.setattr(connecting, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        with pytest.raises(nbd.ServerTimeout, match="stayed silent during the negotiation") as e:
            nbd.Client(peer.address, connect_timeout=60, greeting_timeout=60)
    assert isinstance(e.value, ConnectionTimeout)
    assert isinstance(e.value, ProtocolError)


def test_zeroes_without_end_are_no_reply():
    def script(talk):
        talk.greet()
        talk.option()
        while True:
            talk.send(b"\0")

    with Peer(script) as peer:
        with pytest.raises(ProtocolError, match="server sent magic 0x0"):
            nbd.Client(peer.address)


@pytest.mark.parametrize("greet", [False, True])
def test_server_that_hangs_up_is_gone(greet):
    def script(talk):
        if greet:
            talk.greet()

    with Peer(script) as peer:
        with pytest.raises(nbd.ServerGone, match="negotiation of export" if greet else "greeting") as e:
            nbd.Client(peer.address)
    assert isinstance(e.value, PeerGone)


def test_unknown_export_is_refused():
    def script(talk):
        talk.greet()
        talk.expect_option(wire.OPT_STRUCTURED_REPLY)
        talk.reply(wire.OPT_STRUCTURED_REPLY, wire.REP_ERR_UNSUP)
        assert wire.string("missing") in talk.expect_option(wire.OPT_GO)
        talk.reply(wire.OPT_GO, wire.REP_ERR_UNKNOWN, b"no such thing")

    with Peer(script) as peer:
        with pytest.raises(RequestError, match="no such export") as e:
            nbd.Client(nbd.unix(peer.address.path, "missing"))
    assert e.value.errno == errno.ENOENT


def test_missing_server_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        nbd.Client(nbd.unix(str(tmp_path / "none")))


def test_wrong_url_is_a_value_error():
    with pytest.raises(ValueError, match="invalid NBD URL"):
        nbd.Client("http://host/")


def test_list_exports():
    with serve(Image(bytearray(10))) as peer:
        assert nbd.list_exports(peer.address) == ("",)
        assert nbd.list_exports(peer.address.uri()) == ("",)


def test_tcp_connection():
    with serve(Image(bytearray(b"abc")), tcp=True) as peer, nbd.Client(peer.address.uri()) as client:
        assert peer.address.transport == "tcp"
        assert client.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        buf = bytearray(3)
        client.read_into(0, buf)
        assert buf == b"abc"


def test_tcp_server_that_never_greets_is_full():
    with Peer(lambda talk: talk.wait_for_hangup(), tcp=True) as peer:
        with pytest.raises(nbd.ServerFull):
            nbd.Client(peer.address, greeting_timeout=SHORT)


def test_every_answer_leaves_less_time_for_the_next(monkeypatch):
    def script(talk):
        talk.greet()
        code, _ = talk.option()
        talk.reply(code, wire.REP_ERR_UNSUP)
        talk.wait_for_hangup()

    limits = []
    set_timeouts = sockets.set_timeouts

    def note(sock, seconds):
        limits.append(seconds)
        set_timeouts(sock, seconds)

    monkeypatch.setattr(connecting.sockets, "set_timeouts", note)
    with Peer(script) as peer:
        # Each look at the clock is ten seconds later: greeting, flags, reply to the first option.
        clock = iter(range(0, 100, 10))
        monkeypatch.setattr(connecting, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        with pytest.raises(nbd.ServerTimeout, match="did not finish the negotiation in time"):
            nbd.Client(peer.address, connect_timeout=40, greeting_timeout=60)
        assert next(clock) == 50
    assert limits[-3:] == [30, 20, 10]


def test_time_to_connect_includes_the_greeting():
    with Peer(lambda talk: talk.wait_for_hangup()) as peer:
        with pytest.raises(nbd.ServerFull):
            nbd.Client(peer.address, connect_timeout=SHORT, greeting_timeout=600)


def test_sockets_are_tuned():
    with serve(Image(bytearray(10))) as peer, nbd.Client(peer.address) as client:
        with socket.socket(socket.AF_UNIX) as other:
            untouched = other.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        assert client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > untouched
        # In one call what was asked for, up to a piece.
        assert client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == defaults.PIECE
    with serve(Image(bytearray(10)), tcp=True) as peer, nbd.Client(peer.address) as client:
        # Of TCP it would rule poll(2), too.
        assert client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1
        assert client.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
