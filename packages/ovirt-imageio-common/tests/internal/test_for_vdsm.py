# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The private modules of 2.x, used as vdsm uses them."""

import io
import os
import shutil
import threading
from urllib.parse import urlparse

import pytest

from imageio_testing import nbdpeer
from ovirt_imageio.common.errors import PeerGone, UnsupportedOperation


class StreamAdapter:
    """A source as vdsm wraps libvirt streams: it returns less than was asked for."""

    def __init__(self, data, step):
        self.stream = io.BytesIO(data)
        self.step = step

    def read(self, size):
        return self.stream.read(min(size, self.step))


class ReadintoAdapter(StreamAdapter):
    def readinto(self, buf):
        data = self.read(len(buf))
        buf[: len(data)] = data
        return len(data)


@pytest.fixture
def volume(tmp_path):
    path = tmp_path / "volume"
    path.write_bytes(b"x" * 3_000_000)
    return str(path)


def test_the_namespace_imports():
    import ovirt_imageio

    assert ovirt_imageio.__name__ == "ovirt_imageio"


@pytest.mark.parametrize("adapter", [StreamAdapter, ReadintoAdapter])
@pytest.mark.parametrize("size", [0, 1, 511, 4096, 2_999_999, 3_000_000])
def test_receive_copies_a_disk(volume, adapter, size):
    from ovirt_imageio._internal import directio

    data = os.urandom(size)
    op = directio.Receive(volume, adapter(data, 100_000), size=size, buffersize=1 << 20)
    op.run()
    assert op.done == size
    assert not op.active
    with open(volume, "rb") as f:
        assert f.read() == data + b"x" * (3_000_000 - size)


@pytest.mark.parametrize("size", [None, 1_000_001])
def test_receive_into_an_empty_file(tmp_path, size):
    """As vdsm's import of virtual machines does with volumes on file storage."""
    from ovirt_imageio._internal import directio

    (tmp_path / "volume").touch()
    data = os.urandom(1_000_001)
    op = directio.Receive(str(tmp_path / "volume"), StreamAdapter(data, 70_000), size=size, buffersize=1 << 18)
    op.run()
    assert (tmp_path / "volume").read_bytes() == data


def test_receive_without_size_copies_all(volume):
    from ovirt_imageio._internal import directio

    op = directio.Receive(volume, StreamAdapter(b"y" * 1000, 64))
    op.run()
    assert op.done == 1000


def test_done_is_seen_while_it_runs(volume):
    from ovirt_imageio._internal import directio

    seen = []

    class Watched(StreamAdapter):
        def read(self, size):
            seen.append(op.done)
            return super().read(size)

    op = directio.Receive(volume, Watched(b"y" * 3000, 1000), size=3000)
    thread = threading.Thread(target=op.run)
    thread.start()
    thread.join()
    assert seen == [0, 1000, 2000]


def test_a_source_that_ends_early_is_an_error(volume):
    from ovirt_imageio._internal import directio

    op = directio.Receive(volume, StreamAdapter(b"y" * 1000, 1000), size=1001)
    with pytest.raises(PeerGone, match="1000 of 1001 bytes"):
        op.run()
    assert not op.active


@pytest.fixture
def export():
    """An export that tells of data, zeroes, what no layer has, and what has changed."""
    status = {
        "base:allocation": [(4096, 0), (4096, 2), (8192, 3)],
        "qemu:allocation-depth": [(8192, 1), (8192, 0)],
        "qemu:dirty-bitmap:since": [(4096, 1), (12288, 0)],
    }
    with nbdpeer.serve(nbdpeer.Image(bytearray(16384), status=status)) as server:
        yield server


@pytest.mark.parametrize("dirty", [False, True])
def test_extents_are_told_by_context(export, dirty):
    from ovirt_imageio._internal import nbd

    with nbd.open(urlparse(f"nbd:unix:{export.address.path}"), dirty=dirty) as c:
        found = {name: list(extents) for name, extents in c.extents(0, 16384).items()}
        assert c.dirty_bitmap == ("qemu:dirty-bitmap:since" if dirty else None)
    assert [(e.length, e.zero) for e in found["base:allocation"]] == [(4096, False), (4096, True), (8192, True)]
    assert [(e.length, e.hole) for e in found["qemu:allocation-depth"]] == [(8192, False), (8192, True)]
    changed = [(e.length, e.dirty) for e in found.get("qemu:dirty-bitmap:since", ())]
    assert changed == ([(4096, True), (12288, False)] if dirty else [])


def test_extents_of_a_part_end_where_it_ends(export):
    from ovirt_imageio._internal import nbd

    with nbd.open(urlparse(f"nbd:unix:{export.address.path}")) as c:
        assert [e.length for e in c.extents(4096, 8192)["base:allocation"]] == [4096, 4096]


def test_several_bitmaps_are_as_good_as_none():
    from ovirt_imageio._internal import nbd

    status = {name: [(4096, 0)] for name in ("base:allocation", "qemu:dirty-bitmap:a", "qemu:dirty-bitmap:b")}
    with nbdpeer.serve(nbdpeer.Image(bytearray(4096), status=status), tcp=True) as server:
        with nbd.open(urlparse(f"nbd:{server.address.host}:{server.address.port}"), dirty=True) as c:
            assert c.dirty_bitmap is None
            assert list(c.extents(0, 4096)) == ["base:allocation"]


def test_server_without_block_status_tells_no_extents():
    from ovirt_imageio._internal import nbd

    with nbdpeer.serve(nbdpeer.Image(bytearray(4096), structured=False), tcp=True) as server:
        with nbd.open(urlparse(f"nbd://{server.address.host}:{server.address.port}/")) as c:
            assert c.export_size == 4096
            with pytest.raises(UnsupportedOperation, match="tells no extents"):
                c.extents(0, 4096)


def test_url_of_another_kind_is_refused():
    from ovirt_imageio._internal import nbd

    with pytest.raises(ValueError, match="file:///disk"):
        nbd.open(urlparse("file:///disk"))


@pytest.mark.skipif(not shutil.which("qemu-nbd"), reason="qemu-nbd is not installed")
def test_nbd_client_talks_to_qemu(tmp_path):
    from ovirt_imageio._internal import nbd
    from ovirt_imageio.common.qemu.nbd import Server

    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    with Server(str(image), "raw", export_name="sda") as server:
        address = nbd.UnixAddress(server.socket_path)
        assert address.url("sda") == server.url
        with nbd.Client(address, "sda") as c:
            assert c.export_size == 1 << 20
            c.write(4096, b"data")
            c.flush()
            assert c.read(4095, 6) == b"\0data\0"
            c.zero(4096, 4096)
            assert c.read(4096, 4) == bytes(4)
