# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A resumed transfer relies on nothing wrong if the run before ended before it had recorded anything."""

from __future__ import annotations

import json
import os

import pytest

from imageio_testing.imageserver import Image, ScriptedServer, response
from imageio_testing.qemu import Fill, make_image, needs_qemu
from ovirt_imageio import client
from ovirt_imageio.client import plan, transfer
from ovirt_imageio.client.journal import CannotResume
from ovirt_imageio.common.errors import AuthorizationError, ImageioError
from ovirt_imageio.common.units import MiB

SIZE = 4 * MiB


class Refusing(Image):
    """Does what it is told, and answers that the ticket has expired: what was done is not recorded."""

    def do_put(self, got, query):
        super().do_put(got, query)
        return response(403, b"the ticket has expired\n")

    def do_patch(self, got, query):
        super().do_patch(got, query)
        return response(403, b"the ticket has expired\n")


def upload(image, disk, server=Image, **options):
    with ScriptedServer(server(disk)) as running:
        client.upload(image, running.url, None, resume=True, max_workers=1, **options)


def test_disk_is_not_taken_for_zero_where_an_earlier_run_may_have_written(tmp_path):
    disk = bytearray(SIZE)
    make_image(tmp_path / "image", "raw", SIZE, [Fill(MiB, MiB, 1)])
    with pytest.raises(AuthorizationError):
        upload(tmp_path / "image", disk, Refusing, disk_is_zero=True)
    assert any(disk)
    make_image(tmp_path / "image", "raw", SIZE, [Fill(3 * MiB, MiB, 2)])
    upload(tmp_path / "image", disk, disk_is_zero=True)
    assert disk == (tmp_path / "image").read_bytes()


@needs_qemu
def test_disk_is_still_zero_if_the_earlier_run_did_not_get_that_far(tmp_path, monkeypatch):
    disk = bytearray(b"x" * SIZE)
    make_image(tmp_path / "image", "qcow2", SIZE, [Fill(0, MiB, 1)])
    with monkeypatch.context() as patch:
        patch.setattr(plan, "upload_steps", lambda *_, **__: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            upload(tmp_path / "image", disk, disk_is_zero=True)
    assert (tmp_path / "image.upload.journal").exists()
    upload(tmp_path / "image", disk, disk_is_zero=True)
    assert disk == b"\x01" * MiB + b"x" * 3 * MiB


@needs_qemu
def test_layer_that_changed_is_refused_where_an_earlier_run_may_have_written(tmp_path):
    below = b"b" * SIZE
    disk = bytearray(below)
    make_image(tmp_path / "layer", "qcow2", SIZE, [Fill(MiB, MiB, 1)])
    with pytest.raises(AuthorizationError):
        upload(tmp_path / "layer", disk, Refusing, backing_chain=False)
    assert disk != below
    make_image(tmp_path / "layer", "qcow2", SIZE, [Fill(3 * MiB, MiB, 2)])
    with pytest.raises(CannotResume, match="its extents are others now"):
        upload(tmp_path / "layer", disk, backing_chain=False)


@needs_qemu
def test_layer_that_did_not_change_is_continued(tmp_path):
    disk = bytearray(b"b" * SIZE)
    make_image(tmp_path / "layer", "qcow2", SIZE, [Fill(MiB, MiB, 1), Fill(2 * MiB, MiB, 0)])
    with pytest.raises(AuthorizationError):
        upload(tmp_path / "layer", disk, Refusing, backing_chain=False)
    upload(tmp_path / "layer", disk, backing_chain=False, disk_is_zero=True)
    assert disk == b"b" * MiB + b"\x01" * MiB + bytes(MiB) + b"b" * MiB
    assert os.listdir(tmp_path) == ["layer"]


@pytest.mark.parametrize("fmt", ["raw", pytest.param("qcow2", marks=needs_qemu)])
def test_journal_says_that_a_run_begins_before_the_first_byte_is_written(tmp_path, monkeypatch, fmt):
    make_image(tmp_path / "image", fmt, SIZE, [Fill(MiB, MiB, 1)])
    journal = tmp_path / "journal"
    synced, found = [], []
    fdatasync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (fdatasync(fd), synced.append(journal.read_bytes())))

    class Looking(Image):
        def do_put(self, got, query):
            found.append(synced[-1])
            return super().do_put(got, query)

        def do_patch(self, got, query):
            found.append(synced[-1])
            return super().do_patch(got, query)

    upload(tmp_path / "image", bytearray(SIZE), Looking, backing_chain=fmt == "raw", journal=journal)
    assert b'{"begun": true' in found[0]
    assert (b'"plan": "' in found[0]) is (fmt == "qcow2")


@needs_qemu
def test_nothing_is_left_of_an_image_whose_header_is_not_stable(tmp_path, monkeypatch):
    """qemu-img is silent if the header cannot be written, and the system tells it once."""

    def fsync(fd, fsync=os.fsync):
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".part"):
            raise OSError(5, "Input/output error")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with ScriptedServer(Image(bytearray(b"x" * SIZE))) as running, pytest.raises(OSError, match="Input/output error"):
        client.download(running.url, tmp_path / "image", None, resume=True, max_workers=1)
    assert os.listdir(tmp_path) == []


class Failing(Image):
    """Storage that refuses the second of all flushes."""

    flushes = 0

    def do_patch(self, got, query):
        answer = super().do_patch(got, query)
        return response(500, b"storage failed\n") if self.flushes == 2 else answer


def test_upload_relies_on_nothing_after_a_flush_that_storage_refused(tmp_path, monkeypatch):
    """Storage may have forgotten what it could not write; the next flush says nothing of it."""
    monkeypatch.setattr(transfer, "CHECKPOINT_LENGTH", MiB)
    monkeypatch.setattr(plan, "SHORTEST_CUT", MiB)
    make_image(tmp_path / "image", "raw", SIZE, [Fill(0, SIZE, 1)])
    disk = bytearray(SIZE)
    with pytest.raises(ImageioError, match="storage failed"):
        upload(tmp_path / "image", disk, Failing)
    disk[:] = bytes(SIZE)
    upload(tmp_path / "image", disk)
    assert disk == (tmp_path / "image").read_bytes()


@pytest.mark.parametrize("failing", [2, 3])
def test_download_relies_on_nothing_after_a_sync_that_failed(tmp_path, monkeypatch, failing):
    """The second sync of a part is the flush of its worker, the third is before it gets its name."""
    calls = []

    def fsync(fd, fsync=os.fsync):
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".part"):
            calls.append(fd)
            if len(calls) == failing:
                raise OSError(5, "Input/output error")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with ScriptedServer(Image(bytearray(b"x" * SIZE))) as running:

        def download():
            client.download(running.url, tmp_path / "image", None, fmt="raw", resume=True, max_workers=1)

        with pytest.raises(OSError, match="Input/output error"):
            download()
        assert sorted(os.listdir(tmp_path)) == []
        download()
    assert (tmp_path / "image").read_bytes() == b"x" * SIZE
    assert os.listdir(tmp_path) == ["image"]


@needs_qemu
@pytest.mark.parametrize("later", ["qcow2", None])
def test_download_continues_only_with_the_format_that_its_backing_file_has_in_its_header(tmp_path, monkeypatch, later):
    monkeypatch.setattr(transfer, "CHECKPOINT_SECONDS", 0.0)
    make_image(tmp_path / "base", "qcow2", SIZE, [Fill(2 * MiB, MiB, 7)])

    class Incremental(Image):
        refuses = True

        def extents(self, got, query):
            parts = [(0, True), (MiB, False), (3 * MiB, True)]
            ends = [start for start, _ in parts[1:]] + [SIZE]
            listing = [
                {"start": start, "length": end - start, "dirty": dirty, "zero": False}
                for (start, dirty), end in zip(parts, ends)
            ]
            return response(200, json.dumps(listing).encode())

        def do_get(self, got, query):
            if self.refuses and got.headers["range"].startswith(f"bytes={3 * MiB}"):
                return response(403, b"the ticket has expired\n")
            return super().do_get(got, query)

    content = bytearray(b"n" * MiB + bytes(MiB) + b"\7" * MiB + b"n" * MiB)
    server = Incremental(content)

    def download(backing_format):
        with ScriptedServer(server) as running:
            client.download(
                running.url,
                tmp_path / "image",
                None,
                incremental=True,
                backing_file="base",
                backing_format=backing_format,
                resume=True,
                max_workers=1,
            )

    with pytest.raises(AuthorizationError):
        download("raw")
    server.refuses = False
    with pytest.raises(CannotResume, match="it is of a transfer with backing format 'raw', not 'qcow2'"):
        download(later)
    assert not (tmp_path / "image").exists()
    os.unlink(tmp_path / "image.download.journal")
    download(later)
    assert client.checksum(tmp_path / "image") == client.checksum(make_raw(tmp_path / "raw", content))


def make_raw(path, content):
    path.write_bytes(content)
    return path
