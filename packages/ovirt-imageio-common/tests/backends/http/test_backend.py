# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import contextlib
import io
import json
import os
import random
import select
import socket
import ssl
import struct
import threading
from functools import partial
from urllib.parse import urlsplit

import pytest

from imageio_testing.imageserver import TICKET, Got, Image, ScriptedServer, response
from imageio_testing.streams import Count
from ovirt_imageio.common import defaults, sameserver
from ovirt_imageio.common.backends.base import NullOperation
from ovirt_imageio.common.backends.http import (
    Forbidden,
    HttpBackend,
    NotSupported,
    Refused,
    Unreachable,
    Untrusted,
    adapters,
)
from ovirt_imageio.common.backends.http.adapters import TcpAdapter
from ovirt_imageio.common.backends.http.channel import Channel
from ovirt_imageio.common.backends.memory import Memory, MemoryBackend
from ovirt_imageio.common.errors import (
    AuthorizationError,
    ConnectionTimeout,
    OperationCancelled,
    PeerGone,
    ProtocolError,
    ServerGone,
    UnsupportedOperation,
)
from ovirt_imageio.common.extents import DirtyExtent, ZeroExtent

KIB = 1024
MIB = 1024 * KIB
SIZE = 3 * MIB + 5


def content() -> bytearray:
    return bytearray(random.Random(0).randbytes(SIZE))


@pytest.fixture
def image():
    return Image(content())


@pytest.fixture
def server(image):
    with ScriptedServer(image) as server:
        yield server


@pytest.fixture
def backend(server):
    with HttpBackend(server.url) as backend:
        yield backend


@pytest.fixture
def tls(pki):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.cert_file, pki.key_file)
    return context


class Counted(NullOperation):
    def __init__(self, cancel_after: int | None = None):
        self.done = 0
        self.cancel_after = cancel_after

    def advance(self, n: int) -> None:
        self.done += n

    def check(self) -> None:
        if self.cancel_after is not None and self.done >= self.cancel_after:
            raise OperationCancelled("cancelled by the test")


def memory(data: bytearray | None = None) -> MemoryBackend:
    storage = Memory(bytearray(SIZE) if data is None else data)
    backend = MemoryBackend(storage, mode="r+")
    backend.storage = storage
    return backend


# Honest servers


needs_ipv6 = pytest.mark.skipif(not os.path.exists("/proc/net/if_inet6"), reason="no IPv6")


@needs_ipv6
@pytest.mark.parametrize("zone", ["%251", "%1"])
def test_zone_of_an_address_is_for_this_machine_alone(image, tls, pki, zone):
    """The loopback interface has the number 1. The server is told no zone, and its certificate has none."""
    for context, cafile in ((None, None), (tls, pki.ca_file)):
        with ScriptedServer(image, context=context, host="::1") as server:
            with HttpBackend(server.url.replace("::1", f"::1{zone}"), cafile=cafile) as backend:
                backend.read_into(0, bytearray(10))
            port = urlsplit(server.url).port
        assert {got.headers["host"] for got in server.requests} == {f"[::1]:{port}"}


def test_read_fills_any_range(backend, image):
    for offset, length in [(0, 1), (1, 4095), (SIZE - 1, 1), (0, SIZE), (5, 2 * MIB), (7, 0)]:
        buf = bytearray(length)
        backend.read_into(offset, buf)
        assert buf == image.data[offset : offset + length]


@pytest.mark.parametrize(("offset", "length"), [(SIZE, 1), (0, SIZE + 1), (-1, 2)])
def test_every_call_refuses_a_range_outside_the_image(backend, offset, length):
    calls = [
        lambda: backend.read_into(offset, bytearray(length)),
        lambda: backend.write(offset, bytes(length)),
        lambda: backend.zero(offset, length),
        lambda: backend.stream_read(memory(), offset, length, NullOperation()),
        lambda: backend.stream_write(memory(), offset, length, NullOperation()),
        lambda: backend.extents(offset=offset, length=length),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"{length} bytes at {offset} "):
            call()


def test_growth_by_others_is_seen(image):
    image.server = "imageio/3.0.0"
    with ScriptedServer(image) as server, HttpBackend(server.url) as backend:
        assert backend.size == SIZE
        image.data += b"more"
        found = bytearray(4)
        backend.read_into(SIZE, found)
        assert found == b"more"
        image.data += b"even more"
        assert [extent.length for extent in backend.extents()] == [SIZE + 13]


def test_write_zero_and_flush(backend, image):
    backend.write(3, b"abc")
    assert backend.unflushed
    backend.zero(4, 4096)
    backend.flush()
    assert not backend.unflushed
    expected = content()
    expected[3:6] = b"abc"
    expected[4 : 4 + 4096] = bytes(4096)
    assert image.data == expected
    assert image.flushes == 1


def test_write_asks_for_no_flush(backend, server):
    backend.write(0, b"x")
    assert server.requests[-1].target.endswith("?flush=n")


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda b: memoryview(b).cast("H")])
def test_write_takes_any_buffer(backend, image, kind):
    backend.write(10, kind(b"abcdefgh"))
    assert image.data[10:18] == b"abcdefgh"


def test_one_connection_serves_all_requests(backend, server):
    data = bytearray(100)
    for offset in range(5):
        backend.read_into(offset, data)
        backend.write(offset, data)
        backend.stream_read(memory(), 0, SIZE, NullOperation())
        backend.stream_write(memory(), 0, SIZE, NullOperation())
        list(backend.extents())
        with pytest.raises(NotSupported):
            backend.extents("dirty")
    assert server.connections == 1


@pytest.mark.parametrize("closed", [False, True])
def test_requests_side_by_side_have_a_connection_each(server, image, closed):
    parts = urlsplit(server.url)
    make_adapter = partial(TcpAdapter, parts.hostname, parts.port, context=None, timeout=20.0, connect_timeout=20.0)
    channel = Channel(make_adapter, parts.path, timeout=20.0)
    first, second = bytearray(SIZE), bytearray(SIZE)
    with channel.request("GET") as one:
        with channel.request("GET") as two:
            if closed:
                channel.close()
            two.body.fill(memoryview(second))
        one.body.fill(memoryview(first))
    assert first == second == image.data
    with channel.request("OPTIONS"):
        pass
    channel.close()
    assert server.connections == (3 if closed else 2)


def test_clone_has_a_connection_of_its_own_and_asks_nothing(backend, server, image):
    assert backend.size == SIZE
    before = len(server.requests)
    with backend.clone() as other:
        buf = bytearray(10)
        other.read_into(0, buf)
        assert buf == image.data[:10]
        assert other.capabilities == backend.capabilities
    assert len(server.requests) == before + 1
    assert server.connections == 2


def test_closed_backend_refuses_work(backend):
    backend.close()
    backend.close()
    with pytest.raises(ValueError, match="closed"):
        backend.flush()


def test_requests_ask_for_no_encoding(backend, server):
    backend.read_into(0, bytearray(1))
    assert {got.headers["accept-encoding"] for got in server.requests} == {"identity"}


def test_empty_image():
    with ScriptedServer(Image(bytearray(), features=())) as server, HttpBackend(server.url) as backend:
        assert backend.size == 0
        assert list(backend.extents()) == []
        backend.read_into(0, bytearray())


def test_extents_of_an_empty_image_are_not_asked_for():
    image = Image(bytearray(), server="imageio/3.0.0")
    with ScriptedServer(image) as server, HttpBackend(server.url) as backend:
        assert list(backend.extents()) == []
        assert not any(got.target.endswith("/extents?context=zero") for got in server.requests)


def test_ipv6():
    with ScriptedServer(Image(content()), host="::1") as server, HttpBackend(server.url) as backend:
        assert backend.size == SIZE


# Streams


def test_streams_move_every_byte(backend, image):
    local = memory()
    op = Counted()
    backend.stream_read(local, 0, SIZE, op)
    assert local.storage.data == image.data
    assert op.done == SIZE
    local.write(5, b"changed")
    op = Counted()
    backend.stream_write(local, 0, SIZE, op)
    assert image.data[5:12] == b"changed"
    assert op.done == SIZE


def test_receiver_may_look_at_what_comes_next(backend, image):
    looked = []

    class Looking(MemoryBackend):
        def receive_from(self, peer, offset, length, op, *, others=()):
            done = 0
            while done < length:
                seen = peer.peek(100)
                assert seen == peer.peek(100)[: len(seen)]
                assert seen == image.data[done : done + len(seen)]
                looked.append(len(seen))
                piece = bytearray(min(MIB, length - done))
                done += peer.recv_into(memoryview(piece))
            looked.append(len(peer.peek(100)))

    backend.stream_read(Looking(Memory(bytearray(SIZE))), 0, SIZE, NullOperation())
    assert all(1 <= count <= 100 for count in looked[:-1])
    assert looked[-1] == 0


def test_streams_between_different_offsets(backend, image):
    local = memory()
    backend.stream_read(local, 1000, 5000, NullOperation(), dst_offset=7)
    assert local.storage.data[7:5007] == image.data[1000:6000]
    local.write(7, b"abc")
    backend.stream_write(local, 2000, 3, NullOperation(), src_offset=7, flush=True)
    assert image.data[2000:2003] == b"abc"
    assert not backend.unflushed


def test_readers_and_writers(backend, image):
    out = io.BytesIO()
    backend.write_to(out, 5, SIZE - 5)
    assert out.getvalue() == image.data[5:]
    backend.read_from(io.BytesIO(b"n" * (2 * MIB)), 5, 2 * MIB)
    assert image.data[5 : 5 + 2 * MIB] == b"n" * (2 * MIB)


def test_reader_that_ends_early_is_told_from_the_server(backend):
    with pytest.raises(PeerGone, match="ended") as error:
        backend.read_from(io.BytesIO(b"short"), 0, 10)
    assert not isinstance(error.value, ServerGone)
    backend.read_into(0, bytearray(1))


def test_cancelled_upload_sends_no_more_and_can_be_followed(backend, image, server):
    with pytest.raises(OperationCancelled):
        backend.stream_write(memory(), 0, SIZE, Counted(cancel_after=MIB))
    buf = bytearray(3)
    backend.read_into(0, buf)
    assert buf == content()[:3]
    assert server.connections == 2


def test_cancelled_download_can_be_followed(backend, server):
    with pytest.raises(OperationCancelled):
        backend.stream_read(memory(), 0, SIZE, Counted(cancel_after=MIB))
    backend.read_into(0, bytearray(3))
    assert server.connections == 2


@pytest.mark.parametrize("error", [BrokenPipeError(32, "disk"), OSError(5, "disk"), KeyError("disk")])
def test_error_of_the_source_is_not_taken_for_the_connections(backend, error):
    class Failing(MemoryBackend):
        def send_to(self, peer, offset, length, op, *, others=()):
            peer.send_all(b"some")
            raise error

    with pytest.raises(type(error)) as raised:
        backend.stream_write(Failing(Memory(bytearray(SIZE)), mode="r+"), 0, SIZE, NullOperation())
    assert raised.value is error
    backend.read_into(0, bytearray(3))


class ListPeer:
    """A peer that sends given pieces, and collects what it is sent."""

    splice_fd = None

    def __init__(self, *parts: bytes, chunked: bool = True):
        self.parts = list(parts)
        self.chunked = chunked
        self.events: list[object] = []

    def begin(self):
        self.events.append("begin")

    def send_all(self, data):
        self.events.append(bytes(data))

    def take(self, limit):
        return b""

    def recv_into(self, view):
        if not self.parts:
            if self.chunked:
                return 0
            raise PeerGone("the client went away")
        part = self.parts.pop(0)
        view[: len(part)] = part
        return len(part)


def test_proxied_download_begins_when_the_origin_answered(backend, image):
    peer = ListPeer()
    backend.send_to(peer, 10, SIZE - 10, NullOperation())
    assert peer.events[0] == "begin"
    assert b"".join(peer.events[1:]) == image.data[10:]


def test_refused_proxied_download_never_begins(backend, image, monkeypatch):
    assert backend.size
    monkeypatch.setattr(image, "do_get", lambda got, query: response(403, b"ticket expired\n"))
    peer = ListPeer()
    with pytest.raises(Forbidden, match="ticket expired"):
        backend.send_to(peer, 0, 10, NullOperation())
    assert peer.events == []


def test_ticket_id_is_not_told_by_an_error(image, monkeypatch):
    ticket_id = "c8a18586-f5f4-4c5c-9d8a-5b0e4ff8a4b8"
    said = f"there is no ticket '{ticket_id}'\n".encode()
    with ScriptedServer(image) as server:
        monkeypatch.setattr(image, "do_get", lambda got, query: response(403, said))
        with HttpBackend(server.url.rpartition("/")[0] + "/" + ticket_id) as backend:
            with pytest.raises(Forbidden, match="there is no ticket 'c8a18586…'") as error:
                backend.read_into(0, memoryview(bytearray(10)))
    assert ticket_id not in str(error.value) + error.value.text


@pytest.mark.parametrize("chunked", [True, False])
def test_proxied_upload(backend, image, server, chunked):
    op = Counted()
    backend.receive_from(ListPeer(b"ab", b"c" * 5000, b"d", chunked=chunked), 3, 5003, op)
    assert image.data[3:5006] == b"ab" + b"c" * 5000 + b"d"
    assert op.done == 5003
    assert server.methods().count("PUT") == 1


def test_proxied_upload_of_unknown_length_ends_with_its_body(backend, image):
    op = Counted()
    backend.receive_from(ListPeer(b"ab", b"c"), 3, SIZE - 3, op)
    assert image.data[3:7] == b"abc" + content()[6:7]
    assert op.done == 3


def test_client_that_leaves_a_proxied_upload_is_told_from_the_server(backend):
    with pytest.raises(PeerGone, match="client went away") as error:
        backend.receive_from(ListPeer(b"ab", chunked=False), 0, 100, NullOperation())
    assert not isinstance(error.value, ServerGone)


# Abilities of servers


def test_capabilities_come_from_options(backend):
    c = backend.capabilities
    assert (c.max_readers, c.max_writers, c.read_only) == (8, 8, False)
    assert c.can_zero
    assert c.can_flush
    assert c.can_extents
    assert backend.features == set(Image.FEATURES)


def test_flush_covers_all_connections_of_new_servers_only():
    for name, expected in [("imageio/2.5.1", False), ("imageio/3.0.0", True), ("nginx", False)]:
        with ScriptedServer(Image(content(), server=name)) as server, HttpBackend(server.url) as backend:
            assert backend.capabilities.multi_conn is expected


def test_read_ticket_refuses_writing(image, monkeypatch):
    monkeypatch.setattr(image, "do_options", lambda got, query: response(200, b"{}", Allow="OPTIONS,GET"))
    with ScriptedServer(image) as server, HttpBackend(server.url) as backend:
        for call in (lambda: backend.write(0, b"x"), lambda: backend.zero(0, 1)):
            with pytest.raises(UnsupportedOperation, match="does not allow writing"):
                call()
        assert server.methods() == ["OPTIONS"]


def test_server_without_options_and_features():
    image = Image(content(), features=None)
    with ScriptedServer(image) as server, HttpBackend(server.url) as backend:
        assert backend.capabilities.max_writers == 1
        assert list(backend.extents()) == [ZeroExtent(0, SIZE, False, False)]
        with pytest.raises(UnsupportedOperation):
            list(backend.extents("dirty"))
        with pytest.raises(UnsupportedOperation, match="checksum"):
            backend.checksum()
        backend.zero(5, 2 * MIB)
        assert image.data[5 : 5 + 2 * MIB] == bytes(2 * MIB)
        assert not backend.unflushed  # such servers flush after each PUT
        backend.flush()
        assert set(server.methods()) == {"OPTIONS", "GET", "PUT"}
        assert "?" not in server.requests[-1].target


def test_size_from_a_server_that_hides_it(image, monkeypatch):
    honest = image.do_get

    def get(got: Got, query: str) -> bytes | None:
        return honest(got, query).replace(f"/{SIZE}\r\n".encode(), b"/*\r\n")

    monkeypatch.setattr(image, "do_get", get)
    with ScriptedServer(image) as server, HttpBackend(server.url) as backend:
        assert backend.size == SIZE


@pytest.mark.parametrize(
    "body",
    [b"[]", b'{"features": 1}', b'{"max_readers": "8"}', b'{"max_writers": true}'],
)
def test_options_that_make_no_sense(body):
    with ScriptedServer(lambda got: response(200, body)) as server:
        with pytest.raises(ProtocolError, match="options"):
            HttpBackend(server.url)


def test_dirty_extents(image, monkeypatch):
    text = b'[{"start":0,"length":10,"dirty":true,"zero":false},{"start":10,"length":%d,"dirty":false,"zero":true}]'
    monkeypatch.setattr(image, "extents", lambda got, query: response(200, text % (SIZE - 10)))
    with ScriptedServer(image) as server, HttpBackend(server.url) as backend:
        assert list(backend.extents("dirty")) == [
            DirtyExtent(0, 10, True, False),
            DirtyExtent(10, SIZE - 10, False, True),
        ]
        assert list(backend.extents("dirty", offset=5, length=6)) == [
            DirtyExtent(5, 5, True, False),
            DirtyExtent(10, 1, False, True),
        ]


@pytest.mark.parametrize("checks", [1, 2, 3])
def test_extents_that_are_cancelled_are_read_no_further(image, monkeypatch, checks):
    """Asked before the request, and before more of the answer is read: this one has more than is read at once."""
    first = [{"start": start, "length": 1, "zero": start % 2 == 0} for start in range(8000)]
    text = json.dumps([*first, {"start": 8000, "length": SIZE - 8000, "zero": True}]).encode()
    monkeypatch.setattr(image, "extents", lambda got, query: response(200, text))
    with ScriptedServer(image) as server, HttpBackend(server.url) as backend:
        assert backend.size == SIZE
        before = len(server.requests)
        with pytest.raises(OperationCancelled, match="often enough"):
            backend.extents(op=Count(checks=checks))
        assert len(server.requests) == before + (checks > 1)
        assert sum(extent.length for extent in backend.extents()) == SIZE
        assert server.connections == (1 if checks == 1 else 2)


def test_no_dirty_extents_is_unsupported(backend):
    with pytest.raises(UnsupportedOperation, match="no dirty extents here"):
        backend.extents("dirty")


def test_unknown_context_is_the_callers_mistake(backend):
    with pytest.raises(ValueError, match="'alien'"):
        backend.extents("alien")


def test_checksum_arguments_and_result():
    def answer(got: Got) -> bytes | None:
        if "/checksum" in got.target:
            return response(200, b'{"algorithm":"sha1","block_size":4096,"checksum":"ab","blocks":["cd"]}')
        return image(got)

    image = Image(content(), features=("checksum", "checksum-range"))
    with ScriptedServer(answer) as server, HttpBackend(server.url) as backend:
        result = backend.checksum(algorithm="sha1", block_size=4096, offset=8192, length=4096, blocks=True)
        assert (result.checksum, result.blocks) == ("ab", ("cd",))
        query = server.requests[-1].target.split("?")[1]
        assert query == "algorithm=sha1&block_size=4096&offset=8192&length=4096&blocks=y"


def test_checksum_of_a_range_needs_the_feature(backend):
    with pytest.raises(UnsupportedOperation, match="checksum-range"):
        backend.checksum(offset=4096)


# Lies


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (response(206, b"0123456789", Content_Range="bytes 1-10/100"), "instead of"),
        (response(206, b"012345678", Content_Range="bytes 0-8/100"), "9 bytes instead of"),
        (response(206, b"0123456789"), "invalid Content-Range"),
        (response(206, b"0123456789", Content_Range="bytes 0-9/5"), "invalid Content-Range"),
        (response(206, b"", Content_Length=None, Content_Range="bytes 0-9/100"), "None bytes"),
        (response(200, b"x" * 100), "100 bytes instead of"),
        (response(204, b"", Content_Length=None), "204"),
        (response(302, b"", Location="http://elsewhere/"), "302"),
        (response(206, b"0123456789", Content_Range="bytes 0-9/100", Content_Encoding="gzip"), "gzip"),
        (b"not HTTP at all\r\n\r\n", "got 'not HTTP at all'"),
        (b"HTTP/2 206 Partial Content\r\n\r\n", "got 'HTTP/2"),
        (response(206, b"0123456789", Content_Length="10, 10"), "None bytes"),
    ],
)
def test_read_rejects_an_answer_to_another_question(backend, image, monkeypatch, answer, message):
    assert backend.size
    monkeypatch.setattr(image, "do_get", lambda got, query: answer)
    with pytest.raises(ProtocolError, match=message):
        backend.read_into(0, bytearray(10))


def test_whole_image_is_no_answer_to_a_range_of_its_length(backend, image, monkeypatch):
    assert backend.size
    monkeypatch.setattr(image, "do_get", lambda got, query: response(200, b"0123456789"))
    with pytest.raises(ProtocolError, match="whole image"):
        backend.read_into(5, bytearray(10))


def test_whole_image_is_an_answer_to_all_of_it(backend, image, monkeypatch):
    assert backend.size
    monkeypatch.setattr(image, "do_get", lambda got, query: response(200, bytes(image.data)))
    buf = bytearray(SIZE)
    backend.read_into(0, buf)
    assert buf == image.data


@pytest.mark.parametrize("sent", [0, 1, 4095, SIZE - 1])
def test_body_that_ends_early_is_an_error(backend, image, monkeypatch, sent):
    assert backend.size
    head = response(206, b"", Content_Length=SIZE, Content_Range=f"bytes 0-{SIZE - 1}/{SIZE}", Connection="close")
    monkeypatch.setattr(image, "do_get", lambda got, query: head + bytes(sent))
    for call in (
        lambda: backend.read_into(0, bytearray(SIZE)),
        lambda: backend.stream_read(memory(), 0, SIZE, NullOperation()),
        lambda: backend.write_to(io.BytesIO(), 0, SIZE),
    ):
        with pytest.raises(PeerGone):
            call()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[",
        b"[]",
        b'[{"start":0,"length":5,"zero":true}]',
        b'[{"start":0,"length":%d,"zero":true},{"start":0,"length":1,"zero":true}]' % SIZE,
        b'[{"start":1,"length":%d,"zero":true}]' % (SIZE - 1),
        b'[{"start":0,"length":%d,"zero":"yes"}]' % SIZE,
        b'[{"start":0,"length":%d,"zero":true}' % SIZE,
        b'[{"start":0,"length":%d,"zero":true}]]' % SIZE,
    ],
)
def test_extents_that_do_not_cover_the_image_are_rejected(backend, image, monkeypatch, text):
    monkeypatch.setattr(image, "extents", lambda got, query: response(200, text))
    with pytest.raises(ProtocolError, match="zero extents"):
        backend.extents()


# Refusals


def read_and_refuse(got: Got, status: int) -> bytes:
    assert got.body is not None
    return response(status, b"because\n")


@pytest.mark.parametrize(
    ("status", "kind"),
    [(403, AuthorizationError), (405, UnsupportedOperation), (500, Refused), (503, Refused), (416, Refused)],
)
def test_refusal_carries_status_and_text(backend, image, monkeypatch, status, kind):
    assert backend.size
    for name in ("do_get", "do_put", "do_patch"):
        monkeypatch.setattr(image, name, lambda got, query: read_and_refuse(got, status))
    for call in (
        lambda: backend.read_into(0, bytearray(1)),
        lambda: backend.write(0, b"x"),
        backend.flush,
    ):
        with pytest.raises(kind, match=f"{status}.*because") as error:
            call()
        assert error.value.status == status
        assert error.value.text == "because"


def test_messages_do_not_tell_the_ticket(backend, image, monkeypatch):
    assert backend.size
    monkeypatch.setattr(image, "do_get", lambda got, query: response(500, b"because\n"))
    with pytest.raises(Refused) as error:
        backend.read_into(0, bytearray(1))
    assert TICKET not in str(error.value)


def refuse_early(got: Got, query: str) -> bytes | None:
    """Answer before the body was read, as a server does that lingers on close."""
    got.socket.sendall(response(403, b"ticket expired\n", Connection="close"))
    got.socket.shutdown(socket.SHUT_WR)
    left = got.length
    while left:
        data = got.socket.recv(min(left, MIB))
        if not data:
            break
        left -= len(data)
    return None


def refuse_and_reset(got: Got, query: str) -> bytes | None:
    """Answer, and close with the body unread."""
    return response(403, b"ticket expired\n", Connection="close")


@pytest.mark.parametrize("refuse", [refuse_early, refuse_and_reset])
@pytest.mark.parametrize("unix", [True, False])
def test_refusal_while_a_body_is_sent_is_reported(tmp_path, refuse, unix, monkeypatch):
    if refuse is refuse_and_reset and not unix:
        pytest.skip("a reset of TCP discards the answer")
    path = str(tmp_path / "sock")
    big = 64 * MIB
    image = Image(bytearray(big), unix_socket=path)
    monkeypatch.setattr(image, "do_put", refuse)
    with (
        ScriptedServer(image) as server,
        ScriptedServer(image, unix=path),
        HttpBackend(server.url, use_unix_socket=unix) as backend,
    ):
        assert backend.unix_socket_used is unix
        for call in (
            lambda: backend.write(0, bytes(big)),
            lambda: backend.stream_write(memory(bytearray(big)), 0, big, NullOperation()),
            lambda: backend.read_from(io.BytesIO(bytes(big)), 0, big),
        ):
            with pytest.raises(Forbidden, match="ticket expired"):
                call()


def test_success_before_the_body_was_sent_is_a_lie(backend, image, monkeypatch):
    assert backend.size
    monkeypatch.setattr(image, "do_put", lambda got, query: response(200, Connection="close"))
    big = 64 * MIB
    backend._size.look(lambda: big)
    with pytest.raises((ProtocolError, ServerGone)):
        backend.stream_write(memory(bytearray(big)), 0, big, NullOperation())
    assert not backend.unflushed


# Connections


def test_idle_connection_that_the_server_dropped_is_replaced(image, monkeypatch):
    monkeypatch.setattr(image, "do_patch", lambda got, query: got.body and response(200, Connection="close"))
    with ScriptedServer(image) as server, HttpBackend(server.url) as backend:
        backend.flush()
        backend.read_into(0, bytearray(1))
        backend.flush()
        backend.write(0, b"x")
        assert image.data[:1] == b"x"


def test_connection_dropped_when_a_request_arrives_is_replaced(image):
    dropped = []

    def answer(got: Got) -> bytes | None:
        if got.connection not in dropped and got.connection < 3 and got.method != "OPTIONS":
            dropped.append(got.connection)
            return None
        return image(got)

    with ScriptedServer(answer) as server, HttpBackend(server.url) as backend:
        with pytest.raises(ServerGone):
            # The one that was open, and the fresh one after it: that is no accident.
            backend.write(0, b"x")
        assert backend.size == SIZE


def test_request_is_repeated_once_on_a_fresh_connection(image):
    def answer(got: Got) -> bytes | None:
        return None if got.connection == 1 and got.method != "OPTIONS" else image(got)

    with ScriptedServer(answer) as server, HttpBackend(server.url) as backend:
        backend.flush()
        assert image.flushes == 1
        assert server.connections == 2


def test_reset_is_a_gone_server(backend, image, monkeypatch):
    assert backend.size

    def reset(got: Got, query: str) -> bytes | None:
        got.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return None

    monkeypatch.setattr(image, "do_get", reset)
    with pytest.raises(ServerGone):
        backend.read_into(0, bytearray(1))


@pytest.mark.parametrize(
    "part", [b"", b"HTTP/1.1 206 Partial", response(206, b"", Content_Length=10, Content_Range="bytes 0-9/100")]
)
def test_silent_server_times_out(image, part):
    release = threading.Event()

    def get(got: Got, query: str) -> bytes | None:
        got.socket.sendall(part)
        release.wait(10)
        return None

    with ScriptedServer(image) as server, HttpBackend(server.url) as backend:
        assert backend.size
        image.do_get = get
        backend._remote._timeout = 0.05
        try:
            with pytest.raises(ConnectionTimeout, match="nothing for 0.05 seconds"):
                backend.read_into(0, bytearray(10))
        finally:
            release.set()


def test_server_that_takes_nothing_times_out(image):
    release = threading.Event()

    def put(got: Got, query: str) -> bytes | None:
        release.wait(10)
        return None

    image.do_put = put
    with ScriptedServer(image) as server, HttpBackend(server.url) as backend:
        backend._size.look(lambda: 64 * MIB)
        backend._timeout = 0.05
        try:
            with pytest.raises(ConnectionTimeout):
                backend.stream_write(memory(bytearray(64 * MIB)), 0, 64 * MIB, NullOperation())
        finally:
            release.set()


@contextlib.contextmanager
def closed_port():
    """A port where no server listens, and none can meanwhile."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{s.getsockname()[1]}/images/{TICKET}"


def test_proxy_is_used_when_the_server_cannot_be_reached(server):
    with closed_port() as closed, HttpBackend(closed, proxy_url=server.url) as backend:
        assert backend.size == SIZE


def test_unreachable_names_both_addresses():
    with closed_port() as first, closed_port() as second:
        with pytest.raises(Unreachable) as error:
            HttpBackend(first, proxy_url=second)
    for url in (first, second):
        assert url.split("/")[2] in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/images/x",
        "https:///images/x",
        "https://host/other/x",
        "https://host:port/images/x",
        "https://u:p@host/images/x",
        "https://host/images/x?close=y",
    ],
)
def test_url_of_no_image_is_the_callers_mistake(url):
    with pytest.raises(ValueError):
        HttpBackend(url)


# TLS


def test_certificate_is_verified_against_cafile(pki, tls, image):
    with ScriptedServer(image, context=tls) as server, HttpBackend(server.url, cafile=pki.ca_file) as backend:
        buf = bytearray(SIZE)
        backend.read_into(0, buf)
        assert buf == image.data
        local = memory()
        backend.stream_read(local, 0, SIZE, NullOperation())
        assert local.storage.data == image.data
        local.write(0, b"new")
        backend.stream_write(local, 0, SIZE, NullOperation())
        assert image.data[:3] == b"new"
        assert server.connections == 1


def test_unknown_certificate_is_not_trusted_and_no_proxy_hides_it(tls, image, server):
    with ScriptedServer(image, context=tls) as secure:
        with pytest.raises(Untrusted, match="certificate"):
            HttpBackend(secure.url, proxy_url=server.url)
    assert not server.requests


def test_environment_overrides_nothing(pki, tls, image, monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, "/nonexistent")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with ScriptedServer(image, context=tls) as server:
        with HttpBackend(server.url, cafile=pki.ca_file) as backend:
            assert backend.size == SIZE
        assert not any("authorization" in got.headers for got in server.requests)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", pki.ca_file)
        with pytest.raises(Untrusted):
            HttpBackend(server.url)


def test_insecure_accepts_any_certificate(tls, image):
    with ScriptedServer(image, context=tls) as server, HttpBackend(server.url, secure=False) as backend:
        assert backend.size == SIZE


def test_certificate_of_another_host_is_not_trusted(tls, pki, image):
    with ScriptedServer(image, context=tls, host="127.0.0.2") as server:
        with pytest.raises(Untrusted, match="127.0.0.2"):
            HttpBackend(server.url, cafile=pki.ca_file)


def test_cafile_that_cannot_be_read_is_named(tls, image, tmp_path):
    with ScriptedServer(image, context=tls) as server:
        with pytest.raises(OSError, match="missing.pem"):
            HttpBackend(server.url, cafile=str(tmp_path / "missing.pem"))
        (tmp_path / "empty.pem").write_text("no certificate")
        with pytest.raises(ValueError, match="empty.pem"):
            HttpBackend(server.url, cafile=str(tmp_path / "empty.pem"))


def test_server_that_ignores_a_handshake_is_unreachable(pki):
    with ScriptedServer(lambda got: None) as server:
        with pytest.raises(Unreachable, match="no TLS connection"):
            HttpBackend(server.url.replace("http:", "https:"), cafile=pki.ca_file, connect_timeout=0.05)


# Unix sockets


@pytest.fixture(params=["path", "abstract"])
def address(request, tmp_path):
    return str(tmp_path / "sock") if request.param == "path" else f"\0imageio-test-{os.getpid()}"


def test_unix_socket_of_this_host_is_used(address):
    image = Image(content(), unix_socket=address)
    with ScriptedServer(image) as server, ScriptedServer(image, unix=address) as local:
        with HttpBackend(server.url) as backend:
            assert backend.unix_socket_used
            data = bytearray(SIZE)
            backend.read_into(0, data)
            assert data == image.data
            backend.stream_write(memory(), 0, SIZE, NullOperation())
            assert image.data == bytes(SIZE)
            with backend.clone() as other:
                other.read_into(0, data)
        assert server.methods() == ["OPTIONS"]
        assert local.connections == 2


def test_unix_socket_gets_a_large_send_buffer(address):
    image = Image(content(), unix_socket=address)
    with ScriptedServer(image) as server, ScriptedServer(image, unix=address), socket.socket(socket.AF_UNIX) as like:
        like.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, defaults.HTTP_SNDBUF)
        wanted = like.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        with HttpBackend(server.url) as backend:
            backend.read_into(0, bytearray(1))
            stream = backend._unix.adapter.connection.stream
            with socket.socket(fileno=os.dup(stream.fileno())) as ours:
                assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == wanted


@pytest.mark.parametrize("what", ["ticket", "features", "silence", "nobody"])
def test_unix_socket_of_another_daemon_is_not_used(tmp_path, what):
    path = str(tmp_path / "sock")
    image = Image(content(), unix_socket=path)
    other = {
        "ticket": lambda got: response(403, b"no such ticket\n"),
        "features": Image(content(), unix_socket=path, max_readers=4, features=("extents",)),
        "silence": lambda got: None,
        "nobody": None,
    }[what]
    if what == "nobody":
        with ScriptedServer(image) as server, HttpBackend(server.url) as backend:
            assert not backend.unix_socket_used
        return
    with ScriptedServer(image) as server, ScriptedServer(other, unix=path) as local:
        with HttpBackend(server.url) as backend:
            assert not backend.unix_socket_used
            assert backend.size == SIZE
        assert local.methods() == ["OPTIONS"]


class Proving(Image):
    """A server of version 3: it gives keys by TLS, and its Unix socket proves itself."""

    secret = bytes(32)

    def __init__(self, **options):
        super().__init__(content(), server="imageio/3.0.0", **options)

    def do_options(self, got, query):
        fields = {"Server": self.server, "Allow": "OPTIONS,GET,PUT,PATCH"}
        challenge = got.headers.get("imageio-challenge")
        if challenge:
            fields["Imageio_Proof"] = sameserver.answer(self.secret, challenge)
        return response(200, json.dumps(self.document).encode(), **fields)


def proving(path):
    key = sameserver.make_key(Proving.secret, bytes(16))
    return Proving(unix_socket=path, unix_socket_proof=key._asdict())


def test_unix_socket_that_proves_itself_is_used(tmp_path, pki, tls):
    path = str(tmp_path / "sock")
    image = proving(path)
    with ScriptedServer(image, context=tls) as server, ScriptedServer(image, unix=path) as local:
        with HttpBackend(server.url, cafile=pki.ca_file) as backend:
            assert backend.unix_socket_used
            assert [got.target for got in local.requests] == ["/images/*", f"/images/{TICKET}"]
            # The connection that was proven gets the secret.
            assert {got.connection for got in local.requests} == {1}


@pytest.mark.parametrize("what", ["another secret", "no proof", "no key"])
def test_ticket_is_not_sent_to_a_socket_that_proves_nothing(tmp_path, pki, tls, what):
    path = str(tmp_path / "sock")
    image = proving(path)
    other = Image(content(), unix_socket=path, server="imageio/3.0.0") if what == "no proof" else proving(path)
    other.secret = bytes(range(32))
    if what == "no key":
        del image.document["unix_socket_proof"]
    with ScriptedServer(image, context=tls) as server, ScriptedServer(other, unix=path) as local:
        with HttpBackend(server.url, cafile=pki.ca_file) as backend:
            assert not backend.unix_socket_used
            data = bytearray(10)
            backend.read_into(0, data)
            assert data == image.data[:10]
        assert [got.target for got in local.requests] == ([] if what == "no key" else ["/images/*"])
        assert all(TICKET not in str(got.headers) for got in local.requests)


def test_malformed_key_is_an_error_of_the_server(tmp_path, pki, tls):
    image = Proving(unix_socket=str(tmp_path / "sock"), unix_socket_proof={"id": "x"})
    with ScriptedServer(image, context=tls) as server:
        with pytest.raises(ProtocolError, match="unix_socket_proof"):
            HttpBackend(server.url, cafile=pki.ca_file)


@pytest.mark.parametrize("encrypted", [False, True])
def test_nothing_is_sent_to_the_socket_of_another_user(tmp_path, pki, tls, monkeypatch, encrypted):
    path = str(tmp_path / "sock")
    image = proving(path)
    monkeypatch.setattr(adapters, "trusted_users", lambda: frozenset({os.geteuid() + 1}))
    with ScriptedServer(image, context=tls if encrypted else None) as server, ScriptedServer(image, unix=path) as local:
        with HttpBackend(server.url, cafile=pki.ca_file) as backend:
            assert not backend.unix_socket_used
            assert backend.size == SIZE
        assert local.requests == []


def test_users_of_servers_are_trusted():
    assert adapters.trusted_users() >= {0, os.geteuid()}


def test_unix_socket_can_be_declined(tmp_path):
    path = str(tmp_path / "sock")
    image = Image(content(), unix_socket=path)
    with ScriptedServer(image) as server, ScriptedServer(image, unix=path) as local:
        with HttpBackend(server.url, use_unix_socket=False) as backend:
            assert not backend.unix_socket_used
        assert local.connections == 0


def test_back_to_tcp_when_the_unix_socket_goes_away(tmp_path):
    path = str(tmp_path / "sock")
    image = Image(content(), unix_socket=path)
    with ScriptedServer(image) as server:
        with ScriptedServer(image, unix=path):
            backend = HttpBackend(server.url)
            assert backend.unix_socket_used
        with backend:
            backend.stream_write(memory(), 0, SIZE, NullOperation())
            assert not backend.unix_socket_used
            assert image.data == bytes(SIZE)


@pytest.mark.parametrize("context", [None, "tls"])
def test_interrupt_wakes_the_thread_that_waits(context, request):
    """The server is silent; the time limit of the backend is a minute."""
    waiting, done = threading.Event(), threading.Event()
    image = Image(content())

    def answer(got):
        if got.method == "OPTIONS" or got.headers.get("range") == "bytes=0-0":
            return image(got)
        waiting.set()
        done.wait(30)
        return None

    tls = request.getfixturevalue("tls") if context else None
    with ScriptedServer(answer, context=tls) as server, HttpBackend(server.url, secure=False) as backend:
        assert backend.size == SIZE
        waker = threading.Thread(target=lambda: waiting.wait(30) and backend.interrupt())
        waker.start()
        try:
            with pytest.raises(ServerGone):
                backend.read_into(0, bytearray(SIZE))
        finally:
            done.set()
            waker.join()


@pytest.mark.parametrize("context", [None, "tls"], ids=["plain", "tls"])
def test_interrupted_connection_is_reset(context, request):
    """All that came was read, so a close alone would reset nothing."""
    image, seen, looked = Image(content()), [], threading.Event()

    def answer(got):
        if got.method == "OPTIONS":
            return image(got)
        got.socket.sendall(response(206, b"some", Content_Length=SIZE, Content_Range=f"bytes 0-{SIZE - 1}/{SIZE}"))
        looking = select.poll()
        looking.register(got.socket, 0)  # errors and the end of both directions only
        seen.extend(looking.poll(10_000))
        looked.set()
        return None

    class Interrupting(MemoryBackend):
        def receive_from(self, peer, offset, length, op, *, others=()):
            view = memoryview(bytearray(10))
            assert peer.recv_into(view) == 4
            backend.interrupt()
            peer.recv_into(view)

    tls = request.getfixturevalue("tls") if context else None
    with ScriptedServer(answer, context=tls) as server, HttpBackend(server.url, secure=False) as backend:
        backend._size.look(lambda: SIZE)
        with pytest.raises(ServerGone):
            backend.stream_read(Interrupting(Memory(bytearray(SIZE))), 0, SIZE, NullOperation())
        assert looked.wait(20)
    assert [event & select.POLLERR for _, event in seen] == [select.POLLERR]


def test_interrupt_without_a_connection_does_nothing(backend):
    backend.close()
    backend.interrupt()
