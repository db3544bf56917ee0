# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Cases that other programs that move disks have met: none of them ends in success without the data."""

from __future__ import annotations

import errno
import json
import os

import pytest

from imageio_testing.imageserver import Image, ScriptedServer, response
from imageio_testing.nbdpeer import Image as Export
from imageio_testing.nbdpeer import Peer
from imageio_testing.qemu import Backing, Fill, make_image, needs_qemu
from ovirt_imageio import client
from ovirt_imageio.client.local import Source
from ovirt_imageio.common import defaults
from ovirt_imageio.common.backends.nbd import NbdBackend
from ovirt_imageio.common.errors import ImageioError, RequestError
from ovirt_imageio.common.nbd import wire
from ovirt_imageio.common.units import GiB, KiB, MiB

# A zero longer than the server takes at once is whole.

HUGE = 5 * GiB + 4 * KiB
"""More than 32 bits can tell, and than a server zeroes at once."""


class Zeroed(Image):
    """A disk of HUGE bytes that remembers which ranges were zeroed."""

    def __init__(self):
        super().__init__(bytearray())
        self.zeroed = []

    def do_get(self, got, query):
        return response(206, b"d", Content_Range=f"bytes 0-0/{HUGE}")

    def do_patch(self, got, query):
        document = json.loads(got.body)
        if document["op"] == "zero":
            self.zeroed.append((document["offset"], document["size"]))
        return response(200)


def covers(ranges, size):
    position = 0
    for start, length in sorted(ranges):
        assert start == position
        assert 0 < length <= defaults.ZERO_LIMIT
        position += length
    return position == size


def test_long_zero_of_an_upload_reaches_the_server_as_a_whole(tmp_path):
    make_image(tmp_path / "image", "raw", HUGE)
    disk = Zeroed()
    with ScriptedServer(disk) as server:
        client.upload(tmp_path / "image", server.url, None, fmt="raw")
    assert covers(disk.zeroed, HUGE)


def test_long_zero_of_a_program_reaches_the_server_as_a_whole():
    disk = Zeroed()
    with ScriptedServer(disk) as server, client.ImageioClient(server.url) as c:
        c.zero(0, HUGE)
    assert covers(disk.zeroed, HUGE)


@needs_qemu
def test_long_zero_of_a_download_hides_all_of_the_backing_file(tmp_path):
    marks = [Fill(at, 512, 7) for at in (0, GiB - 512, 2 * GiB - 512, 2 * GiB, 4 * GiB - 512, 4 * GiB, HUGE - 512)]
    make_image(tmp_path / "base", "raw", HUGE, marks)

    class Empty(Zeroed):
        def extents(self, got, query):
            return response(200, json.dumps([{"start": 0, "length": HUGE, "zero": True, "hole": False}]).encode())

    with ScriptedServer(Empty()) as server:
        client.download(server.url, tmp_path / "new", None, backing_file="base", backing_format="raw")
    assert [extent.to_dict() for extent in client.extents(tmp_path / "new")] == [
        {"start": 0, "length": HUGE, "zero": True, "hole": False}
    ]


# An error reply leaves nothing of an older buffer.

SIZE = 4 * MiB
RUN = 64 * KiB
BAD = 2 * MiB + RUN
"""Where the storage of a source cannot be read."""


def failing(image, chunk):
    """Serve an image that cannot be read at BAD; send chunk bytes of what is before it first, then the error."""

    def script(talk):
        honest = talk.answer

        def answer(image, asked):
            if asked.command != wire.CMD_READ or not asked.offset <= BAD < asked.offset + asked.length:
                honest(image, asked)
                return
            if chunk and asked.offset < BAD:
                before = bytes(image.data[asked.offset : min(asked.offset + chunk, BAD)])
                talk.data(asked, asked.offset, before)
            talk.error(asked, errno.EIO, "medium error", offset=BAD)

        talk.answer = answer
        talk.serve(image)

    return Peer(script)


@pytest.mark.parametrize("chunk", [0, 4 * KiB, SIZE])
@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("qcow2", [False, True])
def test_source_that_cannot_be_read_sends_nothing_else_in_its_place(tmp_path, monkeypatch, chunk, verify, qcow2):
    values = range(1, 1 + SIZE // RUN)
    content = b"".join(bytes([value]) * RUN for value in values)
    (tmp_path / "image").write_bytes(content)
    disk = bytearray(b"\xdd" * SIZE)
    with failing(Export(bytearray(content)), chunk) as peer, ScriptedServer(Image(disk)) as server:
        monkeypatch.setattr(Source, "open", lambda source: NbdBackend(peer.address))
        monkeypatch.setattr(Source, "is_raw", not qcow2, raising=False)
        with pytest.raises(RequestError, match="medium error") as e:
            client.upload(tmp_path / "image", server.url, None, fmt="raw", verify=verify, max_workers=2)
    assert e.value.errno == errno.EIO
    assert all(set(disk[n * RUN :][:RUN]) <= {value, 0xDD} for n, value in enumerate(values))
    assert disk[BAD] == 0xDD


class Cut(Image):
    """Answers a GET with less than it says, and closes the connection."""

    def do_get(self, got, query):
        answer = super().do_get(got, query)
        head, body = answer.split(b"\r\n\r\n", 1)
        if len(body) <= 1:
            return answer
        got.socket.sendall(head + b"\r\n\r\n" + body[: len(body) // 2])
        return None


def test_reader_of_an_answer_that_was_cut_off_gets_nothing_of_an_older_one():
    class Writer:
        data = b""

        def write(self, view):
            self.data += bytes(view)

    data = bytearray(os.urandom(SIZE))
    with ScriptedServer(Image(data)) as honest, client.ImageioClient(honest.url) as c:
        c.read(0, bytearray(SIZE))  # what buffers hold now
    writer = Writer()
    with ScriptedServer(Cut(data)) as server, client.ImageioClient(server.url) as c:
        with pytest.raises(ImageioError):
            c.write_to(writer, MiB, 2 * MiB)
    assert writer.data == data[MiB : MiB + len(writer.data)]
    assert len(writer.data) <= MiB


# A chain never becomes full without a word.

FULL = "All of the image is transferred: nothing of"


class NoHoles(Image):
    """A server of a raw disk, or one that knows no holes: zeroes hide what is below."""

    def extents(self, got, query):
        extents = [
            {"start": 0, "length": MiB, "zero": False, "dirty": True},
            {"start": MiB, "length": 3 * MiB, "zero": True, "dirty": True},
        ]
        return response(200, json.dumps(extents).encode())


@needs_qemu
@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("backing_file", ["base", None])
def test_image_that_hides_all_of_its_backing_file_is_told(tmp_path, caplog, incremental, backing_file):
    make_image(tmp_path / "base", "raw", SIZE, [Fill(0, SIZE, 7)])
    options = {"incremental": incremental, "backing_file": backing_file, "backing_format": "raw"}
    with ScriptedServer(NoHoles(bytearray(b"d" * MiB + bytes(3 * MiB)))) as server:
        client.download(server.url, tmp_path / "new", None, **options)
    if backing_file:
        assert f"{FULL} the backing file 'base' will show" in caplog.text
    elif incremental:
        assert f"{FULL} a backing file that it gets later will show" in caplog.text
    else:
        assert caplog.text == ""


@needs_qemu
@pytest.mark.parametrize(("fmt", "is_told"), [("raw", True), ("qcow2", False)])
def test_layer_that_hides_all_of_the_disk_is_told(tmp_path, caplog, fmt, is_told):
    make_image(tmp_path / "layer", fmt, SIZE, [Fill(0, MiB, 1)])
    with ScriptedServer(Image(bytearray(SIZE))) as server:
        client.upload(tmp_path / "layer", server.url, None, backing_chain=False)
    assert (f"{FULL} what the disk has below it will show" in caplog.text) is is_told


@needs_qemu
def test_chain_that_stays_one_is_not_spoken_of(tmp_path, caplog):
    make_image(tmp_path / "base", "qcow2", SIZE, [Fill(0, MiB, 1)])
    make_image(tmp_path / "top", "qcow2", SIZE, [Fill(2 * MiB, MiB, 2)], backing=Backing(tmp_path / "base", "qcow2"))
    with ScriptedServer(Image(bytearray(SIZE))) as server:
        client.upload(tmp_path / "top", server.url, None)
    assert FULL not in caplog.text
