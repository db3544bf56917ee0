# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""One suite over every storage of this package.

A row that this machine cannot run is skipped with the reason.
"""

import contextlib
import functools
import os
import shutil
import subprocess
import tempfile

import pytest

from imageio_testing import conformance, qemu
from imageio_testing.conformance import Storage, pattern
from ovirt_imageio.common import backends
from ovirt_imageio.common.backends.file import FileBackend
from ovirt_imageio.common.backends.memory import Memory, MemoryBackend
from ovirt_imageio.common.qemu import img
from ovirt_imageio.common.qemu.nbd import Server

SECTOR = 512


def memory(size):
    image = Memory(size=size)
    return Storage(lambda mode="r+", sparse=False: MemoryBackend(image, mode=mode), size)


@contextlib.contextmanager
def file_in(folder, size, *, direct):
    with tempfile.NamedTemporaryFile(dir=folder) as f:
        f.truncate(size)
        yield Storage(
            lambda mode="r+", sparse=False: FileBackend(f.name, mode=mode, sparse=sparse, direct=direct), size
        )


@contextlib.contextmanager
def shared_memory():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield folder


@contextlib.contextmanager
def loop_device(path, *options):
    """A block device over a file."""
    if os.geteuid() or not os.path.exists("/dev/loop-control") or not shutil.which("losetup"):
        pytest.skip("loop devices need root, /dev/loop-control and losetup")
    done = subprocess.run(["losetup", "--find", "--show", *options, path], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no loop device: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextlib.contextmanager
def block_device(folder, size, *, sector, direct=None):
    if not size:
        pytest.skip("a loop device is never empty")
    path = os.path.join(folder, "loop")
    with open(path, "wb") as f:
        f.truncate(size)
    if size % sector:
        # The kernel would cut it off.
        yield Storage(lambda mode="r+", sparse=False: pytest.fail("not opened"), size, unit=sector)
        return
    with loop_device(path, f"--sector-size={sector}") as device:
        yield Storage(
            lambda mode="r+", sparse=False: FileBackend(device, mode=mode, sparse=sparse, direct=direct),
            size,
            unit=sector,
        )


@contextlib.contextmanager
def file_system(folder, kind):
    """A file system of this kind in a file."""
    program = f"mkfs.{kind}"
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")
    path, mounted = os.path.join(folder, "fs"), os.path.join(folder, "mounted")
    with open(path, "wb") as f:
        f.truncate(320 << 20)
    os.mkdir(mounted)
    subprocess.run([program, "-q", path], check=True, capture_output=True)
    with loop_device(path) as device:
        done = subprocess.run(["mount", device, mounted], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"cannot mount {kind}: {done.stderr.strip()}")
        try:
            yield mounted
        finally:
            subprocess.run(["umount", mounted], check=True)


def open_url(url, mode="r+", sparse=False):
    return backends.open(url, mode=mode, sparse=sparse)


def need(*programs):
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")


@contextlib.contextmanager
def qemu_nbd(folder, size, *, fmt, prepare=None):
    need("qemu-img", "qemu-nbd")
    path = os.path.join(folder, "disk")
    if size % SECTOR:
        yield Storage(lambda mode="r+", sparse=False: pytest.fail("not opened"), size, unit=SECTOR)
        return
    model = (prepare or create)(path, fmt, size)
    with Server(path, fmt) as server:
        yield Storage(functools.partial(open_url, server.url), size, unit=SECTOR, model=model)


def create(path, fmt, size):
    img.create(path, fmt, size=size)
    return bytearray(size)


def with_backing(path, fmt, size):
    """Data in the base, in the middle and in the top image, some of it hidden by zeroes."""
    model = bytearray(size)
    if size < conformance.SIZE:
        return create(path, fmt, size)
    base, middle = path + ".base", path + ".middle"
    qemu.make_image(base, "raw", size, [qemu.Fill(0, 1 << 20, 1), qemu.Fill(2 << 20, 1 << 19, 2)])
    qemu.make_image(middle, fmt, size, [qemu.Fill(1 << 19, 1 << 20, 3)], backing=qemu.Backing(base, "raw"))
    qemu.make_image(path, fmt, size, [qemu.Fill(1 << 20, 1 << 17, 0)], backing=qemu.Backing(middle, fmt))
    for start, end, value in [
        (0, 1 << 20, 1),
        (2 << 20, 5 << 19, 2),
        (1 << 19, 3 << 19, 3),
        (1 << 20, 9 << 17, 0),
    ]:
        model[start:end] = bytes([value]) * (end - start)
    return model


def compressed(path, fmt, size):
    model = bytearray(pattern(0, size))
    with open(path + ".raw", "wb") as f:
        f.write(model)
    img.convert(path + ".raw", path, fmt="raw", target_fmt=fmt, compressed=True)
    return model


@contextlib.contextmanager
def nbdkit(size, *options, unit=1, tells_holes=True):
    need("nbdkit")
    if size % unit:
        yield Storage(lambda mode="r+", sparse=False: pytest.fail("not opened"), size, unit=unit)
        return
    with qemu.nbdkit("memory", str(size), *options) as url:
        yield Storage(functools.partial(open_url, url), size, unit=unit, tells_holes=tells_holes)


@pytest.fixture(scope="module")
def xfs(tmp_path_factory):
    with file_system(str(tmp_path_factory.mktemp("xfs")), "xfs") as folder:
        yield folder


ROWS = {
    "memory": lambda size, request, stack: memory(size),
    "file": lambda size, request, stack: stack.enter_context(
        file_in(request.getfixturevalue("tmp_path"), size, direct=None)
    ),
    "file-direct": lambda size, request, stack: stack.enter_context(
        file_in(request.getfixturevalue("tmp_path"), size, direct=True)
    ),
    "file-tmpfs": lambda size, request, stack: stack.enter_context(
        file_in(stack.enter_context(shared_memory()), size, direct=None)
    ),
    "file-xfs": lambda size, request, stack: stack.enter_context(
        file_in(request.getfixturevalue("xfs"), size, direct=None)
    ),
    "file-xfs-direct": lambda size, request, stack: stack.enter_context(
        file_in(request.getfixturevalue("xfs"), size, direct=True)
    ),
    "device-512": lambda size, request, stack: stack.enter_context(
        block_device(stack.enter_context(shared_memory()), size, sector=512)
    ),
    "device-4096": lambda size, request, stack: stack.enter_context(
        block_device(stack.enter_context(shared_memory()), size, sector=4096)
    ),
    "nbd-raw": lambda size, request, stack: stack.enter_context(
        qemu_nbd(stack.enter_context(shared_memory()), size, fmt="raw")
    ),
    "nbd-qcow2": lambda size, request, stack: stack.enter_context(
        qemu_nbd(stack.enter_context(shared_memory()), size, fmt="qcow2")
    ),
    "nbd-qcow2-backing": lambda size, request, stack: stack.enter_context(
        qemu_nbd(stack.enter_context(shared_memory()), size, fmt="qcow2", prepare=with_backing)
    ),
    "nbd-qcow2-compressed": lambda size, request, stack: stack.enter_context(
        qemu_nbd(stack.enter_context(shared_memory()), size, fmt="qcow2", prepare=compressed)
    ),
    "nbdkit": lambda size, request, stack: stack.enter_context(nbdkit(size)),
    "nbdkit-4096": lambda size, request, stack: stack.enter_context(
        nbdkit(
            size,
            "--filter=blocksize-policy",
            "blocksize-minimum=4096",
            "blocksize-preferred=64K",
            "blocksize-error-policy=error",
            unit=4096,
        )
    ),
    "nbdkit-plain": lambda size, request, stack: stack.enter_context(
        nbdkit(size, "--filter=noextents", "--filter=nozero", "zeromode=none", tells_holes=False)
    ),
}


@pytest.fixture(params=ROWS)
def make(request):
    """Makes the storage of a row."""
    with contextlib.ExitStack() as stack:
        yield lambda size: ROWS[request.param](size, request, stack)


@pytest.mark.system
class TestBackends(conformance.Suite):
    """The contract, for each row."""
