# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import io
import random
import subprocess
import sys

import pytest

from imageio_testing.imageserver import Image, ScriptedServer, response
from ovirt_imageio.client.remote import ImageioClient, OutOfBounds
from ovirt_imageio.common.errors import AuthorizationError, ImageioError, PeerGone, UnsupportedOperation
from ovirt_imageio.common.extents import ZeroExtent

SIZE = 3 * 1024**2 + 5


@pytest.fixture
def image():
    return Image(bytearray(random.Random(0).randbytes(SIZE)))


@pytest.fixture
def client(image):
    with ScriptedServer(image) as server, ImageioClient(server.url) as client:
        yield client


def test_size_and_limits(client):
    assert client.size() == SIZE
    assert client.max_readers == 8
    assert client.max_writers == 8


def test_read_fills_the_buffer_and_tells_how_much(client, image):
    buf = bytearray(1000)
    assert client.read(7, buf) == 1000
    assert buf == image.data[7:1007]


def test_write_zero_flush(client, image):
    client.write(5, b"hello")
    client.zero(0, 6)
    client.flush()
    assert image.data[:10] == b"\0\0\0\0\0\0ello"
    assert image.flushes == 1


def test_streams(client, image):
    out = io.BytesIO()
    client.write_to(out, 3, SIZE - 3)
    assert out.getvalue() == image.data[3:]
    client.read_from(io.BytesIO(b"x" * 2_000_000), 9, 2_000_000)
    assert image.data[9 : 9 + 2_000_000] == b"x" * 2_000_000


@pytest.mark.parametrize("buffer_size", [1, 4096, 16 * 1024**2])
def test_any_buffer_size(image, buffer_size):
    with ScriptedServer(image) as server, ImageioClient(server.url, buffer_size=buffer_size) as client:
        out = io.BytesIO()
        client.write_to(out, 0, 5000)
        assert out.getvalue() == image.data[:5000]
        client.read_from(io.BytesIO(b"y" * 5000), 0, 5000)
        assert image.data[:5000] == b"y" * 5000


def test_buffer_size_of_nothing_is_refused(image):
    with ScriptedServer(image) as server, pytest.raises(ValueError, match="buffer_size 0"):
        ImageioClient(server.url, buffer_size=0)


def test_extents(client):
    assert list(client.extents()) == [ZeroExtent(0, SIZE, False, False)]
    with pytest.raises(UnsupportedOperation):
        list(client.extents("dirty"))


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, ImageioError, OutOfBounds])
def test_range_outside_the_image_is_refused_as_in_2x_and_as_elsewhere(client, kind):
    for call in (
        lambda: client.read(SIZE, bytearray(1)),
        lambda: client.write(SIZE, b"x"),
        lambda: client.zero(0, SIZE + 1),
        lambda: client.write_to(io.BytesIO(), 1, SIZE),
        lambda: client.read_from(io.BytesIO(b"x"), -1, 1),
    ):
        with pytest.raises(kind, match="not inside the image"):
            call()


def test_reader_that_ends_early(client):
    with pytest.raises(PeerGone, match="ended"):
        client.read_from(io.BytesIO(b"abc"), 0, 4)


def test_checksum(image):
    def answer(got):
        if "/checksum" in got.target:
            return response(200, b'{"algorithm":"sha1","block_size":4194304,"checksum":"ab"}')
        return image(got)

    with ScriptedServer(answer) as server, ImageioClient(server.url) as client:
        assert client.checksum("sha1", 4194304).checksum == "ab"
        assert server.requests[-1].target.endswith("/checksum?algorithm=sha1&block_size=4194304")


def test_missing_ticket():
    with ScriptedServer(lambda got: response(403, b"no such ticket\n")) as server:
        with pytest.raises(AuthorizationError, match="no such ticket"):
            ImageioClient(server.url)


def test_import_of_the_module_loads_no_requests():
    code = "import sys, ovirt_imageio.client.remote; sys.exit('requests' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
