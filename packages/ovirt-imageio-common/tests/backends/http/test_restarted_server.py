# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""No flush succeeds whose server has lost what it should cover; one whose connection was lost alone does."""

from __future__ import annotations

import pytest

from imageio_testing.imageserver import Image, ScriptedServer, VolatileImage, response
from ovirt_imageio.common.backends.base import NullOperation
from ovirt_imageio.common.backends.http import Forbidden, HttpBackend, Refused, WritesLost
from ovirt_imageio.common.backends.memory import Memory, MemoryBackend
from ovirt_imageio.common.errors import ServerGone

SIZE = 1 << 20
DATA = b"d" * 4096

CHANGES = {
    "write": lambda backend, offset: backend.write(offset, DATA),
    "stream": lambda backend, offset: backend.stream_write(memory(), offset, len(DATA), NullOperation()),
    "zero": lambda backend, offset: backend.zero(offset, len(DATA)),
}


def memory():
    return MemoryBackend(Memory(bytearray(DATA * (SIZE // len(DATA)))))


@pytest.fixture(params=[True, False], ids=["tells", "2.5.1"])
def image(request):
    return VolatileImage(bytearray(b"\xff" * SIZE), tells=request.param)


@pytest.fixture
def telling():
    return VolatileImage(bytearray(SIZE), tells=True)


@pytest.fixture
def silent():
    return VolatileImage(bytearray(SIZE), tells=False)


@pytest.mark.parametrize("change", CHANGES)
def test_flush_after_a_restart_fails(image, change):
    with ScriptedServer(image) as server, HttpBackend(server.url) as backend:
        CHANGES[change](backend, 0)
        image.restart(server)
        for _ in range(2):
            with pytest.raises(WritesLost, match="may be lost"):
                backend.flush()
        assert backend.broken is not None
        assert backend.unflushed


@pytest.mark.parametrize("change", CHANGES)
def test_flush_after_a_restart_and_another_write_fails(image, change):
    with ScriptedServer(image) as server, HttpBackend(server.url) as backend:
        CHANGES[change](backend, 0)
        image.restart(server)
        CHANGES[change](backend, 8192)
        with pytest.raises(WritesLost):
            backend.flush()


def test_clone_writes_it_again(image):
    with ScriptedServer(image) as server, HttpBackend(server.url) as backend:
        backend.write(0, DATA)
        image.restart(server)
        with pytest.raises(WritesLost):
            backend.flush()
        with backend.clone() as other:
            assert not other.unflushed
            other.write(0, DATA)
            other.flush()
    assert image.stable[: len(DATA)] == DATA


def test_server_that_restarts_before_the_flush_reaches_it(image):
    """The flush is sent over the connection of the write, and repeated over a new one."""
    with ScriptedServer(image) as server, HttpBackend(server.url) as backend:
        backend.write(0, DATA)
        flushes = []

        def restart():
            if not flushes:
                flushes.append(1)
                image.restart(server)

        image.before_flush = restart
        with pytest.raises((WritesLost, ServerGone)):
            backend.flush()
        with pytest.raises(WritesLost):
            backend.flush()


def test_restart_after_a_flush_hurts_nobody(image):
    with ScriptedServer(image) as server, HttpBackend(server.url) as backend:
        backend.write(0, DATA)
        backend.flush()
        image.restart(server)
        backend.flush()
        backend.write(8192, DATA)
        backend.flush()
    assert image.stable[:4096] == image.stable[8192 : 8192 + 4096] == DATA


def test_connection_that_is_lost_alone_is_no_loss(telling):
    with ScriptedServer(telling) as server, HttpBackend(server.url) as backend:
        for offset in (0, 8192):
            backend.write(offset, DATA)
            server.hang_up()
        backend.flush()
        assert not backend.unflushed
    assert telling.stable[:4096] == telling.stable[8192 : 8192 + 4096] == DATA


def test_connection_that_is_lost_is_in_doubt_where_the_server_does_not_tell(silent):
    with ScriptedServer(silent) as server, HttpBackend(server.url) as backend:
        backend.write(0, DATA)
        server.hang_up()
        with pytest.raises(WritesLost, match="does not tell if it was restarted"):
            backend.flush()


def test_nothing_is_in_doubt_where_nothing_was_written(image):
    with ScriptedServer(image) as server, HttpBackend(server.url) as backend:
        backend.flush()
        server.hang_up()
        backend.flush()
        server.hang_up()
        backend.write(0, DATA)
        backend.read_into(0, bytearray(10))
        backend.flush()
    assert image.stable[:4096] == DATA


def test_server_that_ends_each_connection_as_it_says_is_not_doubted():
    image = Image(bytearray(SIZE))
    closing = lambda got: image(got).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)  # noqa: E731
    with ScriptedServer(closing) as server, HttpBackend(server.url) as backend:
        backend.write(0, DATA)
        backend.write(8192, DATA)
        backend.flush()
        assert server.connections > 3
    assert image.flushes == 1


def test_debt_of_an_instance_is_anothers_to_pay(telling):
    with ScriptedServer(telling) as server, HttpBackend(server.url) as one, one.clone() as other, one.clone() as third:
        assert one.debt is None
        one.write(0, DATA)
        other.assume(one.debt)
        other.flush()
        assert other.debt is None
        telling.restart(server)
        third.write(0, DATA)
        third.assume(one.debt)
        with pytest.raises(WritesLost, match="restarted"):
            third.flush()


def test_debt_in_doubt_stays_in_doubt(telling):
    with ScriptedServer(telling) as server, HttpBackend(server.url) as one, one.clone() as other:
        one.write(0, DATA)
        telling.restart(server)
        one.write(0, DATA)
        other.assume(one.debt)
        with pytest.raises(WritesLost):
            other.flush()


def test_lives_are_equal_where_one_flush_covers_both(image):
    with ScriptedServer(image) as server, HttpBackend(server.url) as one, one.clone() as other:
        one.write(0, DATA)
        other.flush()
        assert (one.life == other.life) is image.tells
        image.restart(server)
        other.flush()
        assert one.life != other.life


@pytest.mark.parametrize("status", [500, 507])
def test_no_flush_succeeds_after_one_that_storage_refused(image, status):
    answers = [response(status, b"the storage failed\n")]
    honest = image.do_patch
    image.do_patch = lambda got, query: got.body and answers.pop() if answers else honest(got, query)
    with ScriptedServer(image) as server, HttpBackend(server.url) as backend:
        backend.write(0, DATA)
        with pytest.raises(Refused, match="the storage failed"):
            backend.flush()
        with pytest.raises(WritesLost, match="an earlier flush failed.*the storage failed"):
            backend.flush()


@pytest.mark.parametrize("status", [403, 408, 429, 502, 503, 504])
def test_refusal_that_says_nothing_of_storage_is_no_loss(image, status):
    answers = [response(status, b"not now\n")]
    honest = image.do_patch
    image.do_patch = lambda got, query: got.body and answers.pop() if answers else honest(got, query)
    with ScriptedServer(image) as server, HttpBackend(server.url) as backend:
        backend.write(0, DATA)
        with pytest.raises(Forbidden if status == 403 else Refused):
            backend.flush()
        assert backend.unflushed
        backend.flush()
    assert image.stable[:4096] == DATA
