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
from imageio_testing.mounts import loop_device, mount
from ovirt_imageio.common import backends, linux
from ovirt_imageio.common.backends.file import FileBackend
from ovirt_imageio.common.backends.memory import Memory, MemoryBackend
from ovirt_imageio.common.qemu import img
from ovirt_imageio.common.qemu.nbd import Server

SECTOR = 512


class Places:
    """Folders on several file systems, made when they are asked for."""

    def __init__(self, folder):
        self._folder = folder
        self._mounted = {}
        self._stack = contextlib.ExitStack()

    def close(self):
        self._stack.close()

    def on(self, kind):
        """A folder on a file system of this kind."""
        if kind == temporary():
            return self._folder
        if kind == "tmpfs":
            return "/dev/shm"
        if kind not in self._mounted:
            self._mounted[kind] = self._stack.enter_context(file_system(self._folder, kind))
        return self._mounted[kind]


def temporary():
    """Name of the file system that holds temporary files; they are the only ones a user can be sure to have."""
    fd = os.open(tempfile.gettempdir(), os.O_RDONLY)
    try:
        return {0xEF53: "ext4", 0x58465342: "xfs", 0x01021994: "tmpfs"}.get(linux.file_system(fd), "temporary")
    finally:
        os.close(fd)


@contextlib.contextmanager
def file_system(folder, kind):
    """A file system of this kind in a file."""
    need(f"mkfs.{kind}")
    path, mounted = os.path.join(folder, kind), os.path.join(folder, f"{kind}-mounted")
    with open(path, "wb") as f:
        f.truncate(320 << 20)
    os.mkdir(mounted)
    subprocess.run([f"mkfs.{kind}", "-q", path], check=True, capture_output=True)
    with loop_device(path) as device, mount(device, mounted):
        yield mounted


@contextlib.contextmanager
def memory(places, size):
    image = Memory(size=size)
    yield Storage(lambda mode="r+", sparse=False: MemoryBackend(image, mode=mode), size)


@contextlib.contextmanager
def file(places, size, *, on, direct=False):
    with tempfile.NamedTemporaryFile(dir=places.on(on)) as f:
        f.truncate(size)
        yield Storage(
            lambda mode="r+", sparse=False: FileBackend(f.name, mode=mode, sparse=sparse, direct=direct), size
        )


@contextlib.contextmanager
def growing_file(places, size, limit, *, on, direct=False):
    with tempfile.NamedTemporaryFile(dir=places.on(on)) as f:
        f.truncate(size)
        yield Storage(
            lambda mode="r+", sparse=False: FileBackend(f.name, mode=mode, sparse=sparse, direct=direct, grow_to=limit),
            size,
        )


@contextlib.contextmanager
def block_device(places, size, *, sector):
    if not size:
        pytest.skip("a loop device is never empty")
    if size % sector:
        # The kernel would cut it off.
        yield unused(size, sector)
        return
    with tempfile.NamedTemporaryFile(dir=places.on("tmpfs")) as f:
        f.truncate(size)
        with loop_device(f.name, f"--sector-size={sector}") as device:
            yield Storage(
                lambda mode="r+", sparse=False: FileBackend(device, mode=mode, sparse=sparse), size, unit=sector
            )


def unused(size, unit):
    """Storage cannot have this size: the test skips it, and opens nothing."""
    return Storage(lambda mode="r+", sparse=False: pytest.fail("not opened"), size, unit=unit)


def open_url(url, mode="r+", sparse=False):
    return backends.open(url, mode=mode, sparse=sparse)


def need(*programs):
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")


@contextlib.contextmanager
def qemu_nbd(places, size, *, fmt, prepare=None):
    need("qemu-img", "qemu-nbd")
    if size % SECTOR:
        yield unused(size, SECTOR)
        return
    with tempfile.TemporaryDirectory(dir=places.on("tmpfs")) as folder:
        path = os.path.join(folder, "disk")
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
def nbdkit(places, size, *options, unit=1, tells_holes=True, tcp=False):
    need("nbdkit")
    if size % unit:
        yield unused(size, unit)
        return
    with qemu.nbdkit("memory", str(size), *options, tcp=tcp) as url:
        yield Storage(functools.partial(open_url, url), size, unit=unit, tells_holes=tells_holes)


def blocks(minimum, maximum):
    """Options for a server that refuses other requests."""
    return [
        "--filter=blocksize-policy",
        f"blocksize-minimum={minimum}",
        "blocksize-preferred=64K",
        f"blocksize-maximum={maximum}",
        "blocksize-error-policy=error",
    ]


FILES = {
    f"file-{on}{'-direct' if direct else ''}": {"on": on, "direct": direct}
    for on in sorted({temporary(), "ext4", "xfs", "tmpfs"})
    for direct in ([False] if on == "tmpfs" else [False, True])
}

# Each gets places and a size, and is a context of a Storage.
ROWS = {
    "memory": memory,
    **{name: functools.partial(file, **how) for name, how in FILES.items()},
    "device-512": functools.partial(block_device, sector=512),
    "device-4096": functools.partial(block_device, sector=4096),
    "nbd-raw": functools.partial(qemu_nbd, fmt="raw"),
    "nbd-qcow2": functools.partial(qemu_nbd, fmt="qcow2"),
    "nbd-qcow2-backing": functools.partial(qemu_nbd, fmt="qcow2", prepare=with_backing),
    "nbd-qcow2-compressed": functools.partial(qemu_nbd, fmt="qcow2", prepare=compressed),
    "nbdkit": nbdkit,
    "nbdkit-tcp": functools.partial(nbdkit, tcp=True),
    "nbdkit-blocks-512-64K": lambda places, size: nbdkit(places, size, *blocks(512, "64K"), unit=512),
    "nbdkit-blocks-4096": lambda places, size: nbdkit(places, size, *blocks(4096, "32M"), unit=4096),
    # The two below know neither zeroing nor allocation; the last one not even structured replies.
    "nbdkit-plain": lambda places, size: nbdkit(
        places, size, "--filter=noextents", "--filter=nozero", "zeromode=none", tells_holes=False
    ),
    "nbdkit-simple": lambda places, size: nbdkit(places, size, "--no-sr", "--filter=nozero", "zeromode=none"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    found = Places(str(tmp_path_factory.mktemp("places")))
    yield found
    found.close()


@pytest.fixture(params=ROWS)
def make(request, places):
    """Makes the storage of a row."""
    with contextlib.ExitStack() as stack:
        yield lambda size: stack.enter_context(ROWS[request.param](places, size))


@pytest.mark.system
class TestBackends(conformance.Suite):
    """The contract, for each row."""


GROWING = {
    **{name: functools.partial(growing_file, **how) for name, how in FILES.items()},
}


@pytest.fixture(params=GROWING)
def make_growing(request, places):
    """Makes the storage of a row, which grows; it goes when another is made."""
    with contextlib.ExitStack() as stack:

        def make(size, limit):
            stack.close()
            return stack.enter_context(GROWING[request.param](places, size, limit))

        yield make


@pytest.mark.system
class TestGrowth(conformance.GrowthSuite):
    """Growth, for each row that knows it."""
