# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Images of every kind that people bring, small and with large holes, and their content.

    sample = make_sample("qcow2-chain", folder)
    client.upload(sample.path, url, ca_file, **sample.options)
    same_bytes(sample.reference, downloaded)

The reference is a raw file with the guest's view, made by qemu-img: our own code never
says what is right.
"""

from __future__ import annotations

import os
import random
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterator

from imageio_testing.qemu import Backing, Fill, GiB, KiB, MiB, make_image

SIZE = 48 * MiB

_FILLS = (
    Fill(0, 64 * KiB, 0xA1),
    Fill(3 * MiB + 512, 1 * MiB, 0xA2),
    Fill(9 * MiB, 3 * MiB, 0xA3),
    Fill(40 * MiB - 512, 1024, 0xA4),
    Fill(SIZE - 512, 512, 0xA5),
)


@dataclass(frozen=True)
class Sample:
    """An image to upload.

    Attributes:
        path: Of the file that is uploaded.
        reference: A raw file: what a guest sees in it.
        options: Further arguments of `client.upload`.
        size: Bytes of the image.
    """

    path: str
    reference: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the image."""
        return os.path.getsize(self.reference)


def names() -> list[str]:
    """The samples that `make_sample` knows."""
    return list(_MAKERS)


def make_sample(name: str, folder: Path) -> Sample:
    """Make a sample in a folder."""
    return _MAKERS[name](folder)


def same_bytes(one: str | os.PathLike[str], other: str | os.PathLike[str], *, size: int | None = None) -> None:
    """Compare two raw files byte by byte; holes of both are not read.

    Args:
        one: Path.
        other: Path.
        size: Bytes that matter, the rest of either must be zeroes; None: as long as each other.

    Raises:
        AssertionError: They differ; it says where.
    """
    with open(one, "rb") as a, open(other, "rb") as b:
        sizes = [os.fstat(f.fileno()).st_size for f in (a, b)]
        if size is None:
            assert sizes[0] == sizes[1], f"{one} has {sizes[0]} bytes, {other} {sizes[1]}"
        for start, stop in _data(a.fileno(), b.fileno()):
            for offset in range(start, stop, MiB):
                count = min(MiB, stop - offset)
                left, right = (os.pread(f.fileno(), count, offset).ljust(count, b"\0") for f in (a, b))
                if left != right:
                    at = next(i for i in range(count) if left[i] != right[i])
                    raise AssertionError(f"{one} and {other} differ at {offset + at}: {left[at]} and {right[at]}")


def compare(path: str | os.PathLike[str], fmt: str, reference: str | os.PathLike[str]) -> None:
    """Compare an image with a raw file by qemu-img compare.

    Raises:
        AssertionError: They differ; it says where.
    """
    command = ["qemu-img", "compare", "-f", fmt, "-F", "raw", os.fspath(path), os.fspath(reference)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{path} is not {reference}: {done.stdout}"


def as_raw(path: str | os.PathLike[str], fmt: str, raw: Path, *options: str) -> str:
    """Convert an image to a raw file by qemu-img; returns its path."""
    _qemu_img("convert", "-f", fmt, *options, "-O", "raw", path, raw)
    return str(raw)


def _data(*descriptors: int) -> Iterator[tuple[int, int]]:
    """Ranges in which a file holds data, of one file after the other."""
    for fd in descriptors:
        size, start = os.fstat(fd).st_size, 0
        while start < size:
            try:
                start = os.lseek(fd, start, os.SEEK_DATA)
            except OSError:
                break  # nothing but a hole is left
            stop = os.lseek(fd, start, os.SEEK_HOLE)
            yield start, stop
            start = stop


def _qemu_img(*arguments: str | os.PathLike[str]) -> None:
    command = ["qemu-img", *(os.fspath(argument) for argument in arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


def _raw(folder: Path, size: int = SIZE) -> Path:
    path = folder / "disk.raw"
    make_image(path, "raw", size, [fill for fill in _FILLS if fill.offset + fill.length <= size])
    return path


def _plain(size: int) -> Callable[[Path], Sample]:
    """A raw image of any size, whose last byte is data."""

    def make(folder: Path) -> Sample:
        path = _raw(folder, size)
        if size:
            with open(path, "r+b") as f:
                f.seek(size - 1)
                f.write(b"z")
        return Sample(str(path), str(path))

    return make


def _converted(fmt: str, *options: str, extension: str | None = None) -> Callable[[Path], Sample]:
    """An image that qemu-img makes of the raw one."""

    def make(folder: Path) -> Sample:
        raw = _raw(folder)
        path = folder / f"disk.{extension or fmt}"
        _qemu_img("convert", "-f", "raw", "-O", fmt, *options, raw, path)
        # Some formats round the size up.
        return Sample(str(path), as_raw(path, fmt, folder / "reference.raw"))

    return make


def _qcow2(folder: Path) -> Sample:
    path = folder / "disk.qcow2"
    make_image(path, "qcow2", SIZE, [*_FILLS, Fill(10 * MiB, MiB, 0)])
    return Sample(str(path), as_raw(path, "qcow2", folder / "reference.raw"))


def _big(folder: Path) -> Sample:
    """4 GiB with holes: data in the first, the last and some other clusters."""
    path = folder / "big.qcow2"
    rand = random.Random(4)
    offsets = sorted({0, 4 * GiB - MiB, *(rand.randrange(4 * GiB // MiB) * MiB for _ in range(12))})
    make_image(path, "qcow2", 4 * GiB, [Fill(offset, MiB, 1 + n) for n, offset in enumerate(offsets)])
    return Sample(str(path), as_raw(path, "qcow2", folder / "reference.raw"))


def _chain(folder: Path) -> Sample:
    """Three layers; each hides some of the ones below, also by zeroes, and names it relatively."""
    make_image(folder / "base.raw", "raw", SIZE // 2, _FILLS[:3])
    make_image(folder / "middle.qcow2", "qcow2", SIZE, [Fill(9 * MiB, MiB, 0xB1)])
    make_image(folder / "top.qcow2", "qcow2", SIZE, [])
    middle = Backing(folder / "middle.qcow2", "qcow2")
    make_image(middle.path, "qcow2", SIZE, _MIDDLE, backing=Backing(folder / "base.raw", "raw"))
    make_image(folder / "top.qcow2", "qcow2", SIZE, _TOP, backing=middle)
    _qemu_img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "middle.qcow2", folder / "top.qcow2")
    return Sample(str(folder / "top.qcow2"), as_raw(folder / "top.qcow2", "qcow2", folder / "reference.raw"))


_MIDDLE = (Fill(9 * MiB, MiB, 0xB1), Fill(30 * MiB, 2 * MiB, 0xB2))
_TOP = (Fill(3 * MiB, MiB, 0), Fill(31 * MiB, 64 * KiB, 0xC1), Fill(SIZE - MiB, MiB, 0xC2))


def _top_alone(folder: Path) -> Sample:
    """The top image of a chain, without what is below it."""
    chain = _chain(folder)
    make_image(folder / "alone.qcow2", "qcow2", SIZE, _TOP)
    reference = as_raw(folder / "alone.qcow2", "qcow2", folder / "reference.raw")
    return Sample(chain.path, reference, {"backing_chain": False})


def _preallocated(folder: Path) -> Sample:
    path = folder / "full.raw"
    with open(path, "wb") as f:
        os.posix_fallocate(f.fileno(), 0, SIZE)
    make_image(folder / "disk.raw", "raw", SIZE, _FILLS)
    with open(path, "r+b") as f:
        for fill in _FILLS:
            f.seek(fill.offset)
            f.write(bytes([fill.value]) * fill.length)
    return Sample(str(path), str(folder / "disk.raw"))


def _iso(folder: Path) -> Sample:
    """A hybrid ISO: a boot sector, and a volume descriptor of ISO 9660 with a directory record."""
    path = folder / "boot.iso"
    sector = 2048
    descriptor = bytearray(sector)
    descriptor[:7] = b"\1CD001\1"
    descriptor[40:72] = b"SAMPLE".ljust(32)
    blocks = 5 * MiB // sector + 3
    descriptor[80:88] = blocks.to_bytes(4, "little") + blocks.to_bytes(4, "big")
    descriptor[128:132] = sector.to_bytes(2, "little") + sector.to_bytes(2, "big")
    with open(path, "wb") as f:
        f.write(b"\xeb\x3c\x90".ljust(510, b"\x90") + b"\x55\xaa")
        f.seek(16 * sector)
        f.write(descriptor + b"\xffCD001\1".ljust(sector, b"\0"))
        f.write(random.Random(9).randbytes((blocks - 18) * sector))
    return Sample(str(path), str(path))


def _member(make: Callable[[Path], Sample], member: str) -> Callable[[Path], Sample]:
    """An OVA: a tar file with a description and the sample as its second member."""

    def packed(folder: Path) -> Sample:
        sample = make(folder)
        (folder / "vm.ovf").write_text("<Envelope/>")
        with tarfile.open(folder / "vm.ova", "w", format=tarfile.USTAR_FORMAT) as tar:
            tar.add(folder / "vm.ovf", "vm.ovf")
            tar.add(sample.path, member)
        return Sample(str(folder / "vm.ova"), sample.reference, {**sample.options, "member": member})

    return packed


_MAKERS: dict[str, Callable[[Path], Sample]] = {
    "raw": _plain(SIZE),
    "raw-empty": _plain(0),
    "raw-sector": _plain(512),
    "raw-odd": _plain(5 * MiB + 4097),
    "raw-preallocated": _preallocated,
    "iso": _iso,
    "qcow2": _qcow2,
    "qcow2-big": _big,
    "qcow2-compressed": _converted("qcow2", "-c"),
    "qcow2-preallocated": _converted("qcow2", "-o", "preallocation=full"),
    "qcow2-v2": _converted("qcow2", "-o", "compat=0.10,cluster_size=4096"),
    "qcow2-chain": _chain,
    "qcow2-top": _top_alone,
    "vmdk": _converted("vmdk"),
    "vmdk-stream": _converted("vmdk", "-o", "subformat=streamOptimized"),
    "vdi": _converted("vdi"),
    "vhdx": _converted("vhdx"),
    "vpc": _converted("vpc", extension="vhd"),
    "qcow": _converted("qcow"),
    "qed": _converted("qed"),
    "parallels": _converted("parallels", extension="hdd"),
    "ova-raw": _member(_plain(5 * MiB + 512), "disk1.raw"),
    "ova-qcow2": _member(_qcow2, "disk1.qcow2"),
    "ova-vmdk": _member(_converted("vmdk", "-o", "subformat=streamOptimized"), "disk1.vmdk"),
}
