# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Every kind of image that people bring, made by qemu-img or by the specification, and uploaded.

Each is the same disk: some data, a hole, and data in its last sector. All data that a guest
sees must arrive, and the hole must not; or the image is refused with the reason. The page
reference/images.md has what was seen.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import struct
import subprocess
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import pytest

from imageio_testing import vhd
from imageio_testing.differencing import make_vdi_child, make_vhdx_child
from imageio_testing.dmg import RAW, make_dmg
from imageio_testing.imageserver import Image, ScriptedServer
from imageio_testing.qemu import Backing, Fill, KiB, MiB, content, make_image, needs_qemu
from imageio_testing.tables import check_table
from ovirt_imageio import client
from ovirt_imageio.client.layers import InvalidImage, UnsafeImage, UnsupportedImage
from ovirt_imageio.common.qemu import img

pytestmark = [pytest.mark.system, pytest.mark.timeout(300), needs_qemu]

SIZE = 9 * MiB + 512
FILLS = (Fill(64 * KiB, 128 * KiB, 0xA1), Fill(MiB + 512, 512, 0xA2), Fill(SIZE - 512, 512, 0xA3))
DATA = bytes(content(SIZE, FILLS))

MOST_SENT = 4 * MiB
"""Bytes of PUTs that the data need, whatever the clusters: a hole of 6 MiB is not among them."""


@dataclass(frozen=True)
class Kind:
    """A kind of image.

    Attributes:
        name: For the page.
        make: Makes one in a folder: its path, and arguments of `upload`.
        taken: How it is read, for the page.
        refused: The error that an upload raises; None if it is taken.
        because: The error's words, a regular expression, for the page without its backslashes.
    """

    name: str
    make: Callable[[Path], tuple[Path, dict[str, Any]]]
    taken: str = "by qemu"
    refused: type[Exception] | None = None
    because: str = ""


def raw(folder: Path, size: int = SIZE, name: str = "disk.raw") -> Path:
    path = folder / name
    with open(path, "wb") as f:
        f.truncate(size)
        for fill in FILLS:
            if fill.offset + fill.length <= size:
                f.seek(fill.offset)
                f.write(DATA[fill.offset : fill.offset + fill.length])
    return path


def converted(fmt: str, *options: str):
    def make(folder: Path):
        command = ["qemu-img", "convert", "-f", "raw", "-O", fmt, *options, raw(folder), folder / "disk"]
        subprocess.run(command, check=True, capture_output=True)
        return folder / "disk", {}

    return make


def chain(fmt: str):
    """Data below a layer that has the last sector."""

    def make(folder: Path):
        make_image(folder / "base", fmt, SIZE, FILLS[:2])
        make_image(folder / "disk", fmt, SIZE, FILLS[2:], backing=Backing(folder / "base", fmt))
        return folder / "disk", {}

    return make


def made_vhd(kind: int, creator: bytes):
    def make(folder: Path):
        vhd.make_vhd(folder / "disk", SIZE, FILLS, kind=kind, creator=creator)
        return folder / "disk", {}

    return make


def child(make: Callable[..., object]):
    def made(folder: Path):
        make(folder / "disk", SIZE)
        return folder / "disk", {}

    return made


def marked(fmt: str, at: int, value: bytes):
    """An image of qemu-img, with some bytes of its header changed."""

    def make(folder: Path):
        path, options = converted(fmt)(folder)
        with open(path, "r+b") as f:
            f.seek(at)
            f.write(value)
        return path, options

    return make


def external(folder: Path):
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", "disk", str(SIZE)]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return folder / "disk", {}


def macos(folder: Path, **options):
    make_dmg(folder / "disk", DATA, **options)
    return folder / "disk", {}


def packed(pack: Callable[[bytes], bytes]):
    def make(folder: Path):
        (folder / "disk").write_bytes(pack(DATA))
        return folder / "disk", {}

    return make


def zipped(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("disk.raw", data)
    return out.getvalue()


def inside(make: Callable[[Path], tuple[Path, dict[str, Any]]], name: str, **options: Any):
    """The same as a member of an OVA."""

    def made(folder: Path):
        path, _ = make(folder)
        with tarfile.open(folder / "vm.ova", "w", format=tarfile.USTAR_FORMAT) as tar:
            tar.add(path, name)
        return folder / "vm.ova", {"member": name} if not options else {}

    return made


def plain(folder: Path):
    return raw(folder), {}


def odd(folder: Path):
    path = raw(folder)
    os.truncate(path, SIZE + 100)
    return path, {}


def cut(make: Callable[[Path], tuple[Path, dict[str, Any]]], name: str):
    def made(folder: Path):
        path, options = make(folder)
        os.truncate(path, path.stat().st_size - 512)
        path.rename(folder / name)
        return folder / name, options

    return made


def vmdk(subformat: str):
    return converted("vmdk", "-o", f"subformat={subformat}")


DIFFERENCING = "only what changed since its parent"
DATA_FILE = "keeps its data in another file"

KINDS = (
    Kind("raw", plain, "as it is"),
    Kind("raw, of an odd size", odd, "as it is"),
    Kind("qcow2, version 2", converted("qcow2", "-o", "compat=0.10")),
    Kind("qcow2, version 3", converted("qcow2", "-o", "compat=1.1")),
    Kind("qcow2, extended L2 entries", converted("qcow2", "-o", "extended_l2=on,cluster_size=128k")),
    Kind("qcow2, compressed by zlib", converted("qcow2", "-c")),
    Kind("qcow2, compressed by zstd", converted("qcow2", "-c", "-o", "compression_type=zstd")),
    Kind("qcow2, with a backing file", chain("qcow2"), "by qemu, with its chain"),
    Kind("qcow2, encrypted", marked("qcow2", 32, b"\0\0\0\2"), refused=UnsupportedImage, because="is encrypted"),
    Kind("qcow2, with a data file", external, refused=UnsafeImage, because=DATA_FILE),
    Kind("qcow, version 1", converted("qcow")),
    Kind("QED", converted("qed")),
    Kind("QED, with a backing file", chain("qed"), "by qemu, with its chain"),
    Kind("VMDK, monolithicSparse", vmdk("monolithicSparse")),
    Kind("VMDK, streamOptimized", vmdk("streamOptimized")),
    Kind("VMDK, with a parent", chain("vmdk"), "by qemu, with its chain"),
    Kind("VMDK, monolithicFlat", vmdk("monolithicFlat"), refused=UnsafeImage, because=DATA_FILE),
    Kind("VMDK, twoGbMaxExtentFlat", vmdk("twoGbMaxExtentFlat"), refused=UnsafeImage, because=DATA_FILE),
    Kind(
        "VMDK, a part of an ESX 3 image (COWD)",
        packed((b"COWD" + struct.pack("<10I", 1, 3, SIZE // 512, 1, 4, 5, 36, 0, 0, 0)).__add__),
        refused=UnsupportedImage,
        because="is a part of an image of VMware ESX",
    ),
    Kind("VMDK, twoGbMaxExtentSparse", vmdk("twoGbMaxExtentSparse"), refused=UnsafeImage, because=DATA_FILE),
    *(
        Kind(f"VHD, {name}, by `{creator.decode()}`", made_vhd(kind, creator + b"\0" * (4 - len(creator))), taken)
        for name, kind, taken in (
            ("fixed", vhd.FIXED, "as it is, without the footer"),
            ("dynamic", vhd.DYNAMIC, "by qemu"),
        )
        for creator in (b"vpc ", b"qemu", b"qem2", b"win ", b"d2v ", b"tap", b"CTXS", b"vbox", b"wa", b"vs")
    ),
    Kind("VHD, differencing", made_vhd(vhd.DIFFERENCING, b"vbox"), refused=UnsupportedImage, because=DIFFERENCING),
    Kind(
        "VHD, fixed, cut off",
        cut(made_vhd(vhd.FIXED, b"vbox"), "disk.vhd"),
        refused=InvalidImage,
        because="has no mark of one",
    ),
    Kind("VHDX, dynamic", converted("vhdx")),
    Kind("VHDX, fixed", converted("vhdx", "-o", "subformat=fixed")),
    Kind("VHDX, differencing", child(make_vhdx_child), refused=UnsupportedImage, because=DIFFERENCING),
    Kind("VDI, dynamic", converted("vdi")),
    Kind("VDI, static", converted("vdi", "-o", "static=on")),
    Kind("VDI, differencing", child(make_vdi_child), refused=UnsupportedImage, because=DIFFERENCING),
    Kind("Parallels", converted("parallels")),
    Kind("DMG, chunks by zlib", macos),
    Kind("DMG, plain chunks", lambda folder: macos(folder, kind=RAW)),
    Kind("DMG, cut off", cut(macos, "disk.dmg"), refused=InvalidImage, because="has no mark of one"),
    Kind("DMG, encrypted", packed(b"encrcdsa".__add__), refused=UnsupportedImage, because="is an encrypted disk image"),
    Kind("OVA, a member that is raw", inside(plain, "disk.raw"), "as it is, where it lies"),
    Kind("OVA, a member that is qcow2", inside(converted("qcow2"), "disk.qcow2"), "by qemu, where it lies"),
    Kind("OVA, a member that is VMDK", inside(vmdk("streamOptimized"), "disk.vmdk"), "by qemu, where it lies"),
    Kind("OVA, a member that is a fixed VHD", inside(made_vhd(vhd.FIXED, b"vbox"), "disk.vhd"), "without the footer"),
    Kind(
        "OVA, a member that is a dynamic VHD",
        inside(made_vhd(vhd.DYNAMIC, b"wa\0\0"), "disk.vhd"),
        "by qemu, where it lies",
    ),
    Kind(
        "OVA, no member named", inside(plain, "disk.raw", whole=True), refused=UnsupportedImage, because="is a tar file"
    ),
    *(
        Kind(f"packed by {name}", packed(pack), refused=UnsupportedImage, because=f"is packed by {name}")
        for name, pack in (
            ("gzip", gzip.compress),
            ("xz", lzma.compress),
            ("bzip2", bz2.compress),
            ("zip", zipped),
            ("zstd", b"\x28\xb5\x2f\xfd".__add__),
            ("LZ4", b"\x04\x22\x4d\x18".__add__),
            ("7-Zip", b"7z\xbc\xaf\x27\x1c".__add__),
            ("lzip", b"LZIP\1".__add__),
        )
    ),
)


class Disk(Image):
    """A disk of a server that counts what is sent, and is full of something."""

    def __init__(self, size: int) -> None:
        super().__init__(bytearray(b"d" * size))
        self.sent = 0

    def do_put(self, got, query):
        self.sent += got.length
        return super().do_put(got, query)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_kind_is_uploaded_whole_or_refused(kind, tmp_path):
    path, options = kind.make(tmp_path)
    if kind.refused is not None:
        disk = Disk(2 * SIZE)
        with ScriptedServer(disk) as server, pytest.raises(kind.refused, match=kind.because):
            client.upload(path, server.url, None, **options)
        assert disk.data == b"d" * len(disk.data)
        return
    told = client.info(path, **options)
    disk = Disk(told["virtual-size"])
    with ScriptedServer(disk) as server:
        client.upload(path, server.url, None, max_workers=2, **options)
    assert bytes(disk.data[:SIZE]) == DATA
    assert not any(disk.data[SIZE:])
    assert disk.sent <= MOST_SENT


def test_page_tells_each_kind(tmp_path):
    rows = []
    for number, kind in enumerate(KINDS):
        if kind.refused is None:
            (tmp_path / str(number)).mkdir()
            path, options = kind.make(tmp_path / str(number))
            told = client.info(path, **options)
            rows.append([kind.name, f"`{told['format']}`", f"{told['virtual-size']:,}", kind.taken, ""])
        else:
            rows.append([kind.name, "", "", "", f"{kind.because} (`{kind.refused.__name__}`)"])
    head = ["image", "`format`", "size, bytes", "read", "refused"]
    check_table("reference/images.md", "kinds", head, rows)


ALIKE = ("VHD, fixed, by `vbox`", "VHD, dynamic, by `wa`", "DMG, chunks by zlib", "OVA, a member that is a dynamic VHD")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.name in ALIKE], ids=lambda kind: kind.name)
def test_every_function_sees_the_same_disk(kind, tmp_path):
    path, options = kind.make(tmp_path)
    reference = raw(tmp_path, name="reference")
    assert client.info(path, **options)["virtual-size"] == SIZE
    assert client.measure(path, "raw", **options)["required"] == SIZE
    assert client.checksum(path, **options) == client.checksum(reference)
    assert sum(extent.length for extent in client.extents(path, **options)) == SIZE


def test_empty_vhdx_sends_nothing(tmp_path):
    """qemu's driver says that all of it is data."""
    img.create(str(tmp_path / "disk.vhdx"), "vhdx", size=256 * MiB)
    disk = Disk(256 * MiB)
    with ScriptedServer(disk) as server:
        client.upload(tmp_path / "disk.vhdx", server.url, None)
    assert disk.sent == 0
    assert not any(disk.data)


def test_packed_file_and_vhd_go_as_they_are_if_they_are_said_to_be_raw(tmp_path):
    for name, data in (("disk.gz", gzip.compress(DATA)), ("disk.vhd", None)):
        if data is None:
            vhd.make_vhd(tmp_path / name, SIZE, FILLS, kind=vhd.FIXED)
        else:
            (tmp_path / name).write_bytes(data)
        whole = (tmp_path / name).read_bytes()
        disk = Disk(len(whole))
        with ScriptedServer(disk) as server:
            client.upload(tmp_path / name, server.url, None, fmt="raw")
        assert disk.data == whole


def test_driver_of_qemu_tells_extents_or_is_known_to_be_blind(tmp_path):
    """Where a driver learns to tell them, looking at the data is no longer needed."""
    from ovirt_imageio.client import formats

    blind = set()
    for fmt in ("qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "vpc", "parallels"):
        img.create(str(tmp_path / fmt), fmt, size=4 * MiB)
        with contextlib.closing(client.extents(tmp_path / fmt)) as extents:
            if not any(extent.zero for extent in extents):
                blind.add(fmt)
    assert blind <= set(formats.BLIND)
