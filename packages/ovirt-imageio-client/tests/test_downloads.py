# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The fate of the file that has the name of a download, and of files beside it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import tempfile
import threading

import pytest

from imageio_testing.imageserver import Image, ScriptedServer, response
from imageio_testing.mounts import loop_device, mount
from imageio_testing.qemu import Fill, make_image, needs_qemu
from ovirt_imageio import client
from ovirt_imageio.client.inuse import ImageInUse
from ovirt_imageio.client.journal import CannotResume
from ovirt_imageio.common.errors import TransferError
from ovirt_imageio.common.qemu import img
from ovirt_imageio.common.qemu.nbd import Server
from ovirt_imageio.common.units import KiB, MiB

SIZE = 2 * MiB


class Dirty(Image):
    """A server that knows what changed.

    Args:
        data: Content.
        changed: Offset and length of each range.
        zero: It tells them as zeroes.
    """

    def __init__(self, data, changed, *, zero=False):
        super().__init__(data)
        self.changed = changed
        self.zero = zero

    def extents(self, got, query):
        listing, offset = [], 0
        for start, length in [*self.changed, (len(self.data), 0)]:
            if start > offset:
                listing.append({"start": offset, "length": start - offset, "dirty": False, "zero": False})
            if length:
                listing.append({"start": start, "length": length, "dirty": True, "zero": self.zero})
            offset = start + length
        return response(200, json.dumps(listing).encode())


class Paused:
    """A progress that waits for the test after the first bytes."""

    def __init__(self):
        self.begun = threading.Event()
        self.resume = threading.Event()

    def __call__(self, count):
        self.begun.set()
        assert self.resume.wait(30)


@contextlib.contextmanager
def running(move, *args, **options):
    """A transfer that is under way, and goes on when the block ends."""
    paused, ended = Paused(), []

    def run():
        try:
            move(*args, progress=paused, **options)
            ended.append(None)
        except Exception as e:
            ended.append(e)
            paused.begun.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert paused.begun.wait(30)
        yield ended
    finally:
        paused.resume.set()
        thread.join()


def random_data(seed, size=SIZE):
    return bytearray(random.Random(seed).randbytes(size))


def tree(folder):
    """Names and contents."""
    return {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder))}


def reads(path, fmt):
    """The bytes that a guest reads."""
    with tempfile.NamedTemporaryFile() as raw:
        img.convert(str(path), raw.name, fmt=fmt, target_fmt="raw")
        return raw.read()


# Two at once.


@needs_qemu
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize("resume", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("spelling", ["same", "link"])
def test_second_download_to_a_name_is_refused_before_it_touches_anything(tmp_path, fmt, resume, spelling):
    one, two = random_data(1), random_data(2)
    path = tmp_path / "disk"
    other = path
    if spelling == "link":
        other = tmp_path / "link"
        other.symlink_to("disk")
    journals = tmp_path / "journals"
    journals.mkdir()
    with ScriptedServer(Image(one)) as first, ScriptedServer(Image(two)) as second:
        options = [{"resume": True, "journal": journals / name} if again else {} for name, again in zip("ab", resume)]
        with running(client.download, first.url, path, None, fmt=fmt, **options[0]) as ended:
            with pytest.raises(ImageInUse, match=f"another download to {path} is running"):
                client.download(second.url, other, None, fmt=fmt, **options[1])
            assert not (journals / "b").exists()
    assert ended == [None]
    assert reads(path, fmt) == one
    assert os.listdir(journals) == []
    assert set(os.listdir(tmp_path)) - {"link", "journals"} == {"disk"}


@needs_qemu
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_download_to_the_part_of_another_one_is_refused(tmp_path, fmt):
    one, two = random_data(1), random_data(2)
    path, part = tmp_path / "disk", tmp_path / "disk.part"
    with ScriptedServer(Image(one)) as first, ScriptedServer(Image(two)) as second:
        with running(client.download, first.url, path, None, fmt=fmt) as ended:
            with pytest.raises(ImageInUse, match=rf"{part}.*|another download is writing {part}"):
                client.download(second.url, part, None, fmt=fmt)
    assert ended == [None]
    assert reads(path, fmt) == one
    assert os.listdir(tmp_path) == ["disk"]


def test_raw_image_is_written_to_its_part_whatever_has_that_name(tmp_path):
    """A worker that opens its ends again after a failure must not write to a file of another program."""
    one, two = random_data(1), random_data(2)
    path, part = tmp_path / "disk", tmp_path / "disk.part"

    class Breaking(Image):
        def do_get(self, got, query):
            if part.exists() and not (tmp_path / "other").exists() and "extents" not in got.target:
                part.rename(tmp_path / "other")
                part.write_bytes(two)
                return None
            return super().do_get(got, query)

    with ScriptedServer(Breaking(one)) as server:
        with pytest.raises(TransferError, match=f"{part} was removed or replaced by another program"):
            client.download(server.url, path, None, fmt="raw", max_workers=1)
    assert part.read_bytes() == two
    assert (tmp_path / "other").read_bytes() == one
    assert not path.exists()


@needs_qemu
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize("place", ["part", "in place", "device"])
def test_what_a_download_is_writing_is_not_uploaded(tmp_path, fmt, place):
    one = random_data(1)
    path = tmp_path / "disk"
    path.write_bytes(bytes(2 * SIZE))
    with contextlib.ExitStack() as stack:
        source = tmp_path / "disk.part"
        if place == "in place":
            (tmp_path / "mounted").write_bytes(b"")
            stack.enter_context(mount(path, tmp_path / "mounted", "--bind"))
            path, source = tmp_path / "mounted", path
        elif place == "device":
            path = source = stack.enter_context(loop_device(path))
        first = stack.enter_context(ScriptedServer(Image(one)))
        second = stack.enter_context(ScriptedServer(Image(bytearray(4 * SIZE))))
        with running(client.download, first.url, path, None, fmt=fmt) as ended:
            with pytest.raises((ImageInUse, img.QemuImgError), match="a download|lock"):
                client.upload(source, second.url, None)
            assert second.requests == []
        assert ended == [None]


@needs_qemu
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_device_that_is_uploaded_is_not_downloaded_to(tmp_path, fmt):
    one = random_data(1)
    (tmp_path / "disk").write_bytes(one)
    image = Image(bytearray(SIZE))
    with loop_device(tmp_path / "disk") as device:
        with ScriptedServer(image) as first, ScriptedServer(Image(bytearray(SIZE))) as second:
            with running(client.upload, device, first.url, None) as ended:
                with pytest.raises(ImageInUse, match=f"{device} is open in another program"):
                    client.download(second.url, device, None, fmt=fmt)
            assert ended == [None]
            assert image.data == one
            client.download(second.url, device, None, fmt="raw")


@pytest.mark.parametrize("spelling", ["same", "link", "hard link"])
def test_second_upload_with_one_journal_is_refused_before_it_touches_anything(tmp_path, spelling):
    (tmp_path / "disk").write_bytes(random_data(1))
    one, two = bytearray(SIZE), bytearray(SIZE)
    journal = tmp_path / "journal"
    other = journal
    with ScriptedServer(Image(one)) as first, ScriptedServer(Image(two)) as second:
        with running(client.upload, tmp_path / "disk", first.url, None, resume=True, journal=journal) as ended:
            if spelling != "same":
                other = tmp_path / "other"
                os.link(journal, other) if spelling == "hard link" else os.symlink("../" + tmp_path.name, other)
            other = other / "journal" if spelling == "link" else other
            before = journal.read_bytes()
            with pytest.raises(CannotResume, match=f"{other} is in use: another transfer"):
                client.upload(tmp_path / "disk", second.url, None, resume=True, journal=other)
            assert journal.read_bytes() == before
    assert ended == [None]
    assert (one, two) == (random_data(1), bytes(SIZE))
    assert not journal.exists()


# Devices.


@pytest.fixture
def device(tmp_path):
    with open(tmp_path / "under", "wb") as f:
        f.truncate(2 * SIZE)
    with loop_device(tmp_path / "under") as device:
        yield device


@needs_qemu
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_device_is_written_by_one_download_at_a_time(tmp_path, device, fmt):
    one, two = random_data(1), random_data(2)
    (tmp_path / "link").symlink_to(device)
    with ScriptedServer(Image(one)) as first, ScriptedServer(Image(two)) as second:
        with running(client.download, first.url, device, None, fmt=fmt) as ended:
            with pytest.raises(ImageInUse, match=f"{device} is mounted, or in use by another"):
                client.download(second.url, tmp_path / "link", None, fmt=fmt)
            assert second.requests == []
        assert ended == [None]
        assert reads(device, fmt)[:SIZE] == one
        client.download(second.url, tmp_path / "link", None, fmt=fmt)
    assert reads(device, fmt)[:SIZE] == two


@pytest.mark.skipif(not shutil.which("mkfs.ext4"), reason="not installed: mkfs.ext4")
def test_device_that_is_mounted_is_refused(tmp_path, device):
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    (tmp_path / "mounted").mkdir()
    with ScriptedServer(Image(random_data(1))) as server, mount(device, tmp_path / "mounted"):
        (tmp_path / "mounted" / "file").write_bytes(b"precious")
        with pytest.raises(ImageInUse, match=f"{device} is mounted, or in use by another"):
            client.download(server.url, device, None, fmt="raw")
    with mount(device, tmp_path / "mounted"):
        assert (tmp_path / "mounted" / "file").read_bytes() == b"precious"


@needs_qemu
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize("read_only", [False, True])
def test_device_that_a_qemu_has_open_is_not_written(device, fmt, read_only):
    with ScriptedServer(Image(random_data(1))) as server, Server(device, "raw", read_only=read_only):
        with pytest.raises(ImageInUse, match=f"{device} is open in another program"):
            client.download(server.url, device, None, fmt=fmt)
    with open(device, "rb") as f:
        assert f.read() == bytes(2 * SIZE)


# The backing file.


def chain(tmp_path):
    """top.qcow2 on middle.qcow2 on base.raw."""
    make_image(tmp_path / "base.raw", "raw", SIZE, [Fill(0, SIZE, 1)])
    img.create(str(tmp_path / "middle.qcow2"), "qcow2", size=SIZE, backing_file="base.raw", backing_format="raw")
    img.create(str(tmp_path / "top.qcow2"), "qcow2", size=SIZE, backing_file="middle.qcow2", backing_format="qcow2")


SPELLINGS = ["same", "symlink", "hard link", "dots", "absolute"]


def spelled(tmp_path, name, how):
    if how == "symlink":
        (tmp_path / "alias").symlink_to(name)
        return "alias"
    if how == "hard link":
        os.link(tmp_path / name, tmp_path / "alias")
        return "alias"
    return {"same": name, "dots": f"../{tmp_path.name}/./{name}", "absolute": str(tmp_path / name)}[how]


@needs_qemu
@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("how", SPELLINGS)
@pytest.mark.parametrize("target", ["top.qcow2", "middle.qcow2", "base.raw"])
def test_image_is_not_its_own_backing_file(tmp_path, target, how, incremental):
    chain(tmp_path)
    backing = spelled(tmp_path, "top.qcow2", how)
    before = tree(tmp_path)
    with ScriptedServer(Dirty(random_data(1), [(0, 64 * KiB)])) as server:
        with pytest.raises(ValueError, match=f"the backing file {backing!r} .*the image {tmp_path}/{target} itself"):
            client.download(
                server.url,
                tmp_path / target,
                None,
                incremental=incremental,
                backing_file=backing,
                backing_format="qcow2",
            )
        assert server.requests == []
    assert tree(tmp_path) == before


# A running qemu.


@needs_qemu
@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_image_that_a_qemu_has_open_is_not_replaced(tmp_path, fmt, read_only):
    path = tmp_path / "disk"
    make_image(path, fmt, SIZE, [Fill(0, MiB, 1)])
    with ScriptedServer(Image(random_data(1))) as server:
        with Server(str(path), fmt, read_only=read_only):
            before = tree(tmp_path)
            with pytest.raises(ImageInUse, match=f"{path} is open in another program"):
                client.download(server.url, path, None, fmt=fmt)
            assert tree(tmp_path) == before
        client.download(server.url, path, None, fmt=fmt)


@needs_qemu
def test_backing_file_of_an_image_that_a_qemu_has_open_is_not_replaced(tmp_path):
    chain(tmp_path)
    with ScriptedServer(Image(random_data(1))) as server, Server(str(tmp_path / "top.qcow2"), "qcow2"):
        for name, fmt in (("middle.qcow2", "qcow2"), ("base.raw", "raw")):
            with pytest.raises(ImageInUse, match=f"{name} is open in another program"):
                client.download(server.url, tmp_path / name, None, fmt=fmt)


# Bitmaps finer than clusters.


@needs_qemu
@pytest.mark.parametrize(
    "changed",
    [
        [(4 * KiB, 4 * KiB)],
        [(0, 512)],
        [(60 * KiB, 8 * KiB), (SIZE - 4 * KiB, 4 * KiB)],
        [(64 * KiB, 128 * KiB), (300 * KiB, 1024)],
    ],
)
def test_increment_without_a_backing_file_reads_right_when_it_gets_one(tmp_path, changed):
    old = random_data(1)
    new = bytearray(old)
    for start, length in changed:
        new[start : start + length] = random_data(2, length)
    (tmp_path / "full.raw").write_bytes(old)
    path = tmp_path / "increment.qcow2"
    with ScriptedServer(Dirty(new, changed)) as server:
        client.download(server.url, path, None, incremental=True)
    subprocess.check_call(
        ["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "full.raw", path],
    )
    assert reads(path, "qcow2") == new


@needs_qemu
@pytest.mark.parametrize("told", [False, True], ids=["found", "told"])
@pytest.mark.parametrize("around", [0, 1])
@pytest.mark.parametrize("changed", [(4 * KiB, 4 * KiB), (64 * KiB, 64 * KiB), (60 * KiB, 8 * KiB)])
def test_zeroes_of_an_increment_hide_the_backing_file_that_it_gets(tmp_path, changed, around, told):
    """Also where the whole cluster is zero, and where the server does not know that it is."""
    start, length = changed
    old = bytearray([around]) * SIZE
    old[start : start + length] = random_data(1, length)
    new = bytearray(old)
    new[start : start + length] = bytes(length)
    (tmp_path / "full.raw").write_bytes(old)
    path = tmp_path / "increment.qcow2"
    with ScriptedServer(Dirty(new, [changed], zero=told)) as server:
        client.download(server.url, path, None, incremental=True)
    subprocess.check_call(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "full.raw", path])
    assert reads(path, "qcow2") == new


# The file that stood there.


def test_owner_group_mode_and_attributes_are_kept(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(b"old")
    os.chown(path, 107, 36) if os.geteuid() == 0 else None
    os.chmod(path, 0o640)
    os.setxattr(path, "user.note", b"mine")
    before = os.stat(path)
    with ScriptedServer(Image(random_data(1))) as server:
        client.download(server.url, path, None, fmt="raw")
    after = os.stat(path)
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    assert os.getxattr(path, "user.note") == b"mine"


def test_part_of_the_user_is_left_alone(tmp_path):
    (tmp_path / "disk.part").write_bytes(b"mine")
    with ScriptedServer(Image(random_data(1))) as server:
        client.download(server.url, tmp_path / "disk", None, fmt="raw")
    assert tree(tmp_path) == {"disk": random_data(1), "disk.part": b"mine"}
