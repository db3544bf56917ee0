# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A cancel ends whatever waits for an NBD server that is silent. Time limits are a minute or more."""

from __future__ import annotations

import threading

import pytest

from imageio_testing.nbdpeer import Image, Peer, serve
from imageio_testing.streams import Count
from ovirt_imageio.common import nbd
from ovirt_imageio.common.backends.nbd import NbdBackend
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.errors import OperationCancelled

pytestmark = pytest.mark.timeout(30)

SIZE = 1 << 20


def silent_after(steps, cancel):
    """A server that cancels when it falls silent, which is after some steps."""

    def script(talk):
        steps(talk)
        threading.Thread(target=cancel.cancel).start()
        talk.wait_for_hangup()

    return Peer(script)


def asked(talk):
    talk.negotiate(SIZE)
    talk.request()


CONNECTING = {
    "greeting": lambda talk: None,
    "negotiation": lambda talk: talk.greet(),
}
CALLS = {
    "read": lambda client: client.read_into(0, bytearray(SIZE)),
    "write": lambda client: client.write(0, bytes(SIZE)),
    "zero": lambda client: client.zero(0, SIZE),
    "flush": lambda client: client.flush(),
}


@pytest.mark.parametrize("when", CONNECTING)
def test_cancel_ends_connecting(when):
    cancel = Cancel()
    with silent_after(CONNECTING[when], cancel) as peer:
        with pytest.raises(OperationCancelled):
            nbd.Client(peer.address, greeting_timeout=1000, connect_timeout=1000, cancel=cancel)
    assert not cancel._wakes


@pytest.mark.parametrize("call", CALLS)
def test_cancel_ends_a_call(call):
    cancel = Cancel()
    with silent_after(asked, cancel) as peer, NbdBackend(peer.address, mode="r+", cancel=cancel) as backend:
        with pytest.raises(OperationCancelled):
            CALLS[call](backend)
        assert isinstance(backend.broken, OperationCancelled)
        with pytest.raises(OperationCancelled):
            backend.flush()
    assert not cancel._wakes


def test_cancelled_backend_connects_no_more():
    cancel = Cancel()
    with serve(Image(bytearray(SIZE))) as peer, NbdBackend(peer.address, cancel=cancel) as backend:
        cancel.cancel()
        with pytest.raises(OperationCancelled):
            backend.clone()
        with pytest.raises(OperationCancelled):
            backend.read_into(0, bytearray(1))


@pytest.mark.parametrize("end", ["close", "hand over", "break"])
def test_connections_that_ended_are_not_kept_for_a_cancel(end):
    cancel = Cancel()
    with serve(Image(bytearray(SIZE))) as peer:
        client = nbd.Client(peer.address, cancel=cancel)
        assert cancel._wakes
        if end == "hand over":
            client.hand_over()[0].close()
        elif end == "break":
            client.fail(OSError("broken"))
        client.close()
    assert not cancel._wakes


def test_stream_counts_nothing_after_a_cancel():
    cancel = Cancel()
    op = Count()
    with silent_after(asked, cancel) as peer, NbdBackend(peer.address, mode="r+", cancel=cancel) as backend:
        with pytest.raises(OperationCancelled):
            backend.read_from(Zeroes(), 0, 0, op)
            backend.write_to(Nowhere(), 0, SIZE, op)
    assert op.done == 0


class Zeroes:
    def readinto(self, view):
        view[:] = bytes(len(view))
        return len(view)


class Nowhere:
    def write(self, view):
        return len(view)
