# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import random

import pytest

from clients.servers import cloudstack, onebex
from clients.servers.disk import Disk, serving
from imageio_testing.imageserver import Image, ScriptedServer, response
from ovirt_imageio.common.backends.http import Forbidden, HttpBackend, NotSupported, Refused
from ovirt_imageio.common.errors import ProtocolError, UnsupportedOperation
from ovirt_imageio.common.extents import DirtyExtent, ZeroExtent

KIB = 1 << 10
SIZE = 192 * KIB


def content() -> bytearray:
    """Data, zeroes, and data that are dirty."""
    return bytearray(random.Random(0).randbytes(64 * KIB) + bytes(64 * KIB) + b"x" * 64 * KIB)


def disk() -> Disk:
    return Disk(content(), dirty={2})


def test_onebex_is_read_whole():
    with serving(onebex.NbdFull, disk()) as url, HttpBackend(url) as backend:
        assert backend.size == SIZE
        data = bytearray(SIZE)
        backend.read_into(0, data)
        assert data == content()
        assert not any(extent.zero for extent in backend.extents())
        assert backend.capabilities.max_readers == 1


def test_size_by_extents_is_asked_for_once_for_all_clones():
    served = disk()
    with serving(onebex.NbdFull, served) as url, HttpBackend(url) as backend:
        assert backend.size == SIZE
        asked = len(served.requests)
        with backend.clone() as other:
            assert other.size == SIZE
        assert len(served.requests) == asked


def test_onebex_tells_dirty_extents():
    with serving(onebex.NbdIncremental, disk()) as url, HttpBackend(url, dirty=True) as backend:
        found = list(backend.extents("dirty"))
    assert found[-1] == DirtyExtent(128 * KIB, 64 * KIB, dirty=True, zero=False)


def test_checksum_that_is_offered_and_not_there_is_unsupported():
    with serving(onebex.NbdFull, disk()) as url, HttpBackend(url) as backend:
        with pytest.raises(UnsupportedOperation, match="404.*Unsupported endpoint"):
            backend.checksum()


def test_error_in_json_is_told_as_text():
    with serving(onebex.NbdFull, disk()) as url, HttpBackend(url) as backend:
        with pytest.raises(NotSupported) as e:
            backend.write(0, b"x")
    assert e.value.text == "Write operation not implemented"
    assert "{" not in str(e.value)


@pytest.mark.parametrize("body", [b'{"error": 5}', b"[]", b'{"message": "no"}', b'{"error": ""}', b'{"error"'])
def test_other_json_of_an_error_is_told_as_it_is(body):
    image = Image(content())
    image.do_get = lambda got, query: response(400, body)
    with ScriptedServer(image) as server, HttpBackend(server.url) as backend:
        with pytest.raises(Refused) as e:
            backend.size  # noqa: B018
    assert e.value.text == body.decode()


def test_extents_with_a_gap_tell_no_size():
    with serving(onebex.LvmIncremental, Disk(content(), dirty={0, 2})) as url, HttpBackend(url) as backend:
        with pytest.raises(ProtocolError, match="expected an extent at 65536"):
            backend.size  # noqa: B018


class Silent(onebex.NbdFull):
    """Tells of no extents, so nothing tells the size."""

    features = ()


def test_server_that_tells_no_size_at_all_is_named():
    with serving(Silent, disk()) as url, HttpBackend(url) as backend:
        with pytest.raises(ProtocolError, match="does not tell the size of the image"):
            backend.size  # noqa: B018


def test_206_to_a_request_for_all_tells_the_size():
    class Whole(Silent):
        def do_GET(self):  # noqa: N802
            if "Range" not in self.headers:
                self.headers["Range"] = f"bytes=0-{SIZE - 1}"
            super().do_GET()

    with serving(Whole, disk()) as url, HttpBackend(url) as backend:
        assert backend.size == SIZE
        data = bytearray(KIB)
        backend.read_into(SIZE - KIB, data)  # the connection of the whole answer is not used again
        assert data == content()[-KIB:]


def test_head_tells_the_size_where_nothing_else_does():
    class Headed(Silent):
        def do_HEAD(self):  # noqa: N802
            self._send(200, bytes(SIZE))

    with serving(Headed, disk()) as url, HttpBackend(url) as backend:
        assert backend.size == SIZE


def test_size_is_looked_for_no_further_when_the_ticket_ends():
    class Ending(Silent):
        def do_GET(self):  # noqa: N802
            if "Range" not in self.headers:
                self._send(403, b"expired")
                return
            super().do_GET()

    with serving(Ending, disk()) as url, HttpBackend(url) as backend:
        with pytest.raises(Forbidden, match="expired"):
            backend.size  # noqa: B018


def test_cloudstack_is_read_and_written():
    served = disk()
    with serving(cloudstack.Nbd, served) as url, HttpBackend(url, dirty=True) as backend:
        assert not backend.unix_socket_used
        assert not backend.capabilities.read_only
        assert backend.size == SIZE
        assert list(backend.extents())[1] == ZeroExtent(64 * KIB, 64 * KIB, zero=True, hole=False)
        assert list(backend.extents("dirty"))[1] == DirtyExtent(64 * KIB, 64 * KIB, dirty=False, zero=True)
        backend.write(5, b"abc")
        backend.zero(64, 64)
        backend.flush()
        with pytest.raises(UnsupportedOperation, match="checksum"):
            backend.checksum()
    assert served.data[5:8] == b"abc"
    assert served.data[64:128] == bytes(64)
    assert served.flushes == 1


def test_no_writers_means_that_nothing_may_be_written():
    with serving(cloudstack.ReadOnlyNbd, disk()) as url, HttpBackend(url) as backend:
        assert backend.capabilities.read_only
        assert backend.capabilities.max_writers == 1
        with pytest.raises(UnsupportedOperation, match="does not allow writing"):
            backend.write(0, b"x")


@pytest.mark.parametrize("key", ["unix_socket", "features", "max_readers", "max_writers"])
def test_null_is_as_good_as_absent(key):
    image = Image(content())
    image.document[key] = None
    with ScriptedServer(image) as server, HttpBackend(server.url) as backend:
        assert backend.size == SIZE


def test_options_in_other_words_mean_no_features(caplog):
    image = Image(content())
    image.do_options = lambda got, query: response(200, b"<html>GET, HEAD</html>")
    with ScriptedServer(image) as server, HttpBackend(server.url) as backend:
        assert not backend.features
        data = bytearray(SIZE)
        backend.read_into(0, data)
    assert data == content()
    assert "no JSON" in caplog.text
