# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import subprocess
import sys

import pytest

from imageio_testing import qemu
from imageio_testing.qemu import Backing, MiB
from ovirt_imageio.common.qemu import locks
from ovirt_imageio.common.qemu.nbd import QemuNbdError, Server

pytestmark = qemu.needs_qemu


LIBVIRT = """
import fcntl, sys
with open(sys.argv[1], "r+b") as f:
    fcntl.lockf(f, fcntl.LOCK_SH, 1, 0)  # of the process, not of the open file
    print(flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def opened(path, flags=os.O_RDWR):
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_image_is_open_for_as_long_as_qemu_has_it(tmp_path, fmt, read_only, flags):
    qemu.make_image(tmp_path / "disk", fmt, MiB)
    with opened(tmp_path / "disk", flags) as fd:
        assert not locks.is_open_in_qemu(fd)
        with Server(str(tmp_path / "disk"), fmt, read_only=read_only):
            assert locks.is_open_in_qemu(fd)
        assert not locks.is_open_in_qemu(fd)


@pytest.mark.parametrize("read_only", [False, True])
def test_writer_is_told_from_a_reader_and_forbids_no_reading(tmp_path, read_only):
    qemu.make_image(tmp_path / "disk", "raw", MiB)
    with opened(tmp_path / "disk", os.O_RDONLY) as fd:
        with Server(str(tmp_path / "disk"), "raw", read_only=read_only):
            assert locks.is_written_in_qemu(fd) is not read_only
            assert not locks.is_reading_forbidden(fd)
        assert not locks.is_written_in_qemu(fd)


def test_reader_is_as_one_of_qemu(tmp_path):
    qemu.make_image(tmp_path / "disk", "raw", MiB)
    with opened(tmp_path / "disk") as fd, opened(tmp_path / "disk", os.O_RDONLY) as reader:
        locks.use_for_reading(reader)
        assert locks.is_open_in_qemu(fd)
        assert not locks.is_written_in_qemu(fd)
        with Server(str(tmp_path / "disk"), "raw"):
            pass


def test_reading_is_forbidden_with_all_else(tmp_path):
    qemu.make_image(tmp_path / "disk", "raw", MiB)
    with opened(tmp_path / "disk") as fd, opened(tmp_path / "disk") as other:
        locks.forbid_all(other)
        assert locks.is_reading_forbidden(fd)
        assert not locks.is_written_in_qemu(fd)


def test_backing_files_are_open_as_well(tmp_path):
    qemu.make_image(tmp_path / "base", "raw", MiB)
    qemu.make_image(tmp_path / "middle", "qcow2", MiB, backing=Backing(tmp_path / "base", "raw"))
    qemu.make_image(tmp_path / "top", "qcow2", MiB, backing=Backing(tmp_path / "middle", "qcow2"))
    with opened(tmp_path / "base") as base, opened(tmp_path / "middle") as middle:
        assert not (locks.is_open_in_qemu(base))
        assert not (locks.is_open_in_qemu(middle))
        with Server(str(tmp_path / "top"), "qcow2"):
            assert locks.is_open_in_qemu(base)
            assert locks.is_open_in_qemu(middle)


def test_lock_of_libvirt_counts(tmp_path):
    (tmp_path / "disk").touch()
    with opened(tmp_path / "disk") as fd:
        command = [sys.executable, "-c", LIBVIRT, tmp_path / "disk"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            assert locks.is_open_in_qemu(fd)
            process.stdin.close()
        assert not locks.is_open_in_qemu(fd)


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize("read_only", [False, True])
def test_what_is_forbidden_no_qemu_opens(tmp_path, fmt, read_only):
    qemu.make_image(tmp_path / "disk", fmt, MiB)
    with opened(tmp_path / "disk", os.O_RDONLY) as fd:
        locks.forbid_all(fd)
        assert not locks.is_open_in_qemu(fd)
        with pytest.raises(QemuNbdError, match='Failed to get ".*" lock'):
            with Server(str(tmp_path / "disk"), fmt, read_only=read_only):
                pass
    with Server(str(tmp_path / "disk"), fmt, read_only=read_only):
        pass


def test_qemu_that_has_an_image_open_is_not_disturbed(tmp_path):
    qemu.make_image(tmp_path / "disk", "raw", MiB)
    with opened(tmp_path / "disk") as fd, Server(str(tmp_path / "disk"), "raw"):
        locks.forbid_all(fd)
        assert locks.is_open_in_qemu(fd)


def test_file_system_without_locks_says_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    (tmp_path / "disk").touch()
    with opened(tmp_path / "disk") as fd:
        monkeypatch.setattr(fcntl, "fcntl", fail)
        assert not locks.is_open_in_qemu(fd)
        locks.forbid_all(fd)


def test_error_of_storage_passes(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "disk").touch()
    with opened(tmp_path / "disk") as fd:
        monkeypatch.setattr(fcntl, "fcntl", fail)
        for call in (locks.is_open_in_qemu, locks.forbid_all):
            with pytest.raises(OSError, match="Input/output"):
                call(fd)
