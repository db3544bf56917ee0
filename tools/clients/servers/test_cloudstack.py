# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Our client and Apache CloudStack's image server."""

from __future__ import annotations

import pytest

from clients.servers.cloudstack import File, Nbd, ReadOnlyNbd
from clients.servers.disk import BLOCK, Disk, serving
from conformance.storage import pattern
from imageio_testing.qemu import make_image, needs_qemu
from ovirt_imageio import client
from ovirt_imageio.common.qemu import img

SIZE = 8 * BLOCK + 512
KINDS = [False, True, True, False, False, False, True, False, False]  # which blocks are zero


def content() -> bytearray:
    data = bytearray(pattern(SIZE))
    for number, zero in enumerate(KINDS):
        if zero:
            data[number * BLOCK : (number + 1) * BLOCK] = bytes(BLOCK)
    return data


@pytest.mark.parametrize("handler", [Nbd, ReadOnlyNbd, File])
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("verify", [False, True])
def test_download(pki, tmp_path, handler, tls, verify):
    with serving(handler, Disk(content()), pki=pki if tls else None) as url:
        client.download(url, tmp_path / "copy", pki.ca_file, fmt="raw", verify=verify)
    assert (tmp_path / "copy").read_bytes() == content()


@needs_qemu
@pytest.mark.parametrize("handler", [Nbd, ReadOnlyNbd, File])
def test_download_as_qcow2(tmp_path, handler):
    with serving(handler, Disk(content())) as url:
        client.download(url, tmp_path / "copy.qcow2", None)
    (tmp_path / "copy").write_bytes(content())
    assert img.compare(str(tmp_path / "copy"), str(tmp_path / "copy.qcow2"), fmt_a="raw", fmt_b="qcow2")


@needs_qemu
def test_incremental_backup(tmp_path):
    """The bitmap knows two blocks; the full backup lies below."""
    disk = Disk(content(), dirty={2, 5})
    make_image(tmp_path / "base.qcow2", "qcow2", SIZE)
    with serving(ReadOnlyNbd, Disk(content())) as url:
        client.download(url, tmp_path / "full.qcow2", None)
    disk.data[2 * BLOCK : 3 * BLOCK] = b"n" * BLOCK
    disk.data[5 * BLOCK : 6 * BLOCK] = bytes(BLOCK)
    with serving(ReadOnlyNbd, disk) as url:
        client.download(
            url,
            tmp_path / "inc.qcow2",
            None,
            incremental=True,
            backing_file="full.qcow2",
            backing_format="qcow2",
        )
    (tmp_path / "copy").write_bytes(disk.data)
    assert img.compare(str(tmp_path / "copy"), str(tmp_path / "inc.qcow2"), fmt_a="raw", fmt_b="qcow2")


@pytest.mark.parametrize("verify", [False, True])
def test_upload(tmp_path, verify):
    """The server flushes only if it is told: the data are on storage when the client is done."""
    (tmp_path / "image").write_bytes(content())
    disk = Disk(bytearray(b"\xff" * SIZE))
    with serving(Nbd, disk) as url:
        client.upload(tmp_path / "image", url, None, verify=verify)
    assert disk.data == content()
    assert disk.flushes


def test_random_access():
    disk = Disk(content(), dirty={0})
    with serving(Nbd, disk) as url, client.ImageioClient(url) as image:
        assert (image.size(), image.max_readers, image.max_writers) == (SIZE, 4, 4)
        assert [extent.zero for extent in image.extents()] == [False, True, False, True, False]
        assert [extent.length for extent in image.extents("dirty") if extent.dirty] == [BLOCK]
        image.write(5, b"abc")
        image.zero(512, 512)
        image.flush()
        found = bytearray(1024)
        image.read(0, found)
    expected = content()[:1024]
    expected[5:8], expected[512:1024] = b"abc", bytes(512)
    assert found == disk.data[:1024] == expected
    assert disk.flushes == 1


def test_backup_cannot_be_written(tmp_path):
    (tmp_path / "image").write_bytes(content())
    with serving(ReadOnlyNbd, Disk(content())) as url:
        with pytest.raises(Exception, match="does not allow writing"):
            client.upload(tmp_path / "image", url, None)


def test_file_takes_no_ranges_and_says_so(tmp_path):
    """An upload to a file goes by one PUT without a range there; ours writes ranges."""
    (tmp_path / "image").write_bytes(content())
    disk = Disk(bytearray(SIZE))
    with serving(File, disk) as url:
        with pytest.raises(Exception, match="400 .*Content-Range PUT not supported for file backend"):
            client.upload(tmp_path / "image", url, None)


def test_unknown_image_is_said(tmp_path):
    with serving(Nbd, Disk(content())) as url:
        with pytest.raises(Exception, match="404 .*unknown image_id"):
            client.download(f"{url}-other", tmp_path / "copy", None, fmt="raw")
    assert list(tmp_path.iterdir()) == []
