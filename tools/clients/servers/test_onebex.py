# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Our client and OpenNebula's OneBEX."""

from __future__ import annotations

import pytest

from clients.servers.disk import BLOCK, Disk, serving
from clients.servers.onebex import LvmFull, LvmIncremental, NbdFull, NbdIncremental
from conformance.storage import pattern
from imageio_testing.qemu import needs_qemu
from ovirt_imageio import client
from ovirt_imageio.common.qemu import img

SIZE = 8 * BLOCK


def content() -> bytearray:
    data = bytearray(pattern(SIZE))
    data[BLOCK : 3 * BLOCK] = bytes(2 * BLOCK)
    return data


@pytest.mark.parametrize("handler", [NbdFull, LvmFull])
@pytest.mark.parametrize("verify", [False, True])
def test_full_backup(tmp_path, handler, verify):
    """It offers checksums that it has not: verifying reads both ends."""
    with serving(handler, Disk(content())) as url:
        client.download(url, tmp_path / "copy", None, fmt="raw", verify=verify)
    assert (tmp_path / "copy").read_bytes() == content()


@pytest.mark.parametrize("workers", [1, 4])
def test_long_run_of_data_is_read_in_parts_that_nbd_takes(tmp_path, workers):
    """A disk of data is one extent: qemu-nbd reads at most 32 MiB of it at a time."""
    disk = Disk(bytearray(b"x" * (66 << 20)))
    with serving(NbdFull, disk) as url:
        client.download(url, tmp_path / "copy", None, fmt="raw", max_workers=workers)
        with client.ImageioClient(url) as image, open(tmp_path / "stream", "wb") as stream:
            found = bytearray(len(disk.data))
            image.read(0, found)
            image.write_to(stream, 0, len(disk.data))
    assert found == disk.data
    assert (tmp_path / "copy").read_bytes() == disk.data
    assert (tmp_path / "stream").read_bytes() == disk.data


@needs_qemu
def test_full_backup_as_qcow2(tmp_path):
    with serving(NbdFull, Disk(content())) as url:
        client.download(url, tmp_path / "copy.qcow2", None)
    (tmp_path / "copy").write_bytes(content())
    assert img.compare(str(tmp_path / "copy"), str(tmp_path / "copy.qcow2"), fmt_a="raw", fmt_b="qcow2")


@needs_qemu
def test_incremental_backup(tmp_path):
    with serving(NbdFull, Disk(content())) as url:
        client.download(url, tmp_path / "full.qcow2", None)
    disk = Disk(content(), dirty={0, 7})
    disk.data[:BLOCK], disk.data[7 * BLOCK :] = b"n" * BLOCK, bytes(BLOCK)
    with serving(NbdIncremental, disk) as url:
        client.download(
            url,
            tmp_path / "inc.qcow2",
            None,
            incremental=True,
            backing_file="full.qcow2",
            backing_format="qcow2",
        )
        reads = [request for request in disk.requests if request.startswith("GET") and "extents" not in request]
    (tmp_path / "copy").write_bytes(disk.data)
    assert img.compare(str(tmp_path / "copy"), str(tmp_path / "inc.qcow2"), fmt_a="raw", fmt_b="qcow2")
    assert len(reads) <= 4  # two to look for the size, and one for each dirty range


@needs_qemu
@pytest.mark.parametrize("incremental", [True, False])
def test_changes_with_gaps_between_are_refused(tmp_path, incremental):
    """LVM's list tells neither what is clean nor where the disk ends."""
    with serving(NbdFull, Disk(content())) as url:
        client.download(url, tmp_path / "full.qcow2", None)
    options = {"backing_file": "full.qcow2", "backing_format": "qcow2"} if incremental else {}
    with serving(LvmIncremental, Disk(content(), dirty={1, 5})) as url:
        with pytest.raises(Exception, match="extents: expected an extent at 0, got .*start=65536"):
            client.download(url, tmp_path / "inc.qcow2", None, incremental=incremental, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["full.qcow2"]


def test_random_access():
    disk = Disk(content(), dirty={3})
    with serving(NbdIncremental, disk) as url, client.ImageioClient(url) as image:
        assert (image.size(), image.max_readers, image.max_writers) == (SIZE, 1, 1)
        assert [(extent.length, extent.dirty) for extent in image.extents("dirty")] == [
            (3 * BLOCK, False),
            (BLOCK, True),
            (4 * BLOCK, False),
        ]
        found = bytearray(512)
        image.read(SIZE - 512, found)
        image.flush()
    assert found == content()[-512:]


def test_upload_is_refused_with_its_words(tmp_path):
    (tmp_path / "image").write_bytes(content())
    with serving(NbdFull, Disk(content())) as url:
        with pytest.raises(Exception, match="501 .*Write operation not implemented"):
            client.upload(tmp_path / "image", url, None)


def test_finished_transfer_is_said(tmp_path):
    with serving(NbdFull, Disk(content())) as url:
        with pytest.raises(Exception, match="404 .*Transfer not found"):
            client.download(f"{url}-gone", tmp_path / "copy", None, fmt="raw")
    assert list(tmp_path.iterdir()) == []
