# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile

import pytest

from ovirt_imageio.client.packed import HEAD_SIZE, recognise

DATA = os.urandom(5000)


def zipped():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("disk.raw", DATA)
    return out.getvalue()


def tarred():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("disk.raw")
        info.size = len(DATA)
        archive.addfile(info, io.BytesIO(DATA))
    return out.getvalue()


PACKED = {
    "gzip": (gzip.compress(DATA), "gunzip -k disk"),
    "xz": (lzma.compress(DATA), "unxz -k disk"),
    "bzip2": (bz2.compress(DATA), "bunzip2 -k disk"),
    "zip": (zipped(), "unzip disk"),
    "tar": (tarred(), "member="),
    # By their specifications: the standard library makes none of these.
    "zstd": (b"\x28\xb5\x2f\xfd" + DATA, "unzstd disk"),
    "LZ4": (b"\x04\x22\x4d\x18" + DATA, "unlz4 disk"),
    "7-Zip": (b"7z\xbc\xaf\x27\x1c\0\4" + DATA, "7z x disk"),
    "lzip": (b"LZIP\1" + DATA, "lzip -dk disk"),
    "macOS": (b"encrcdsa\0\0\0\2" + DATA, "hdiutil"),
}


@pytest.mark.parametrize("kind", PACKED)
def test_packed_file_is_recognised_with_what_to_do(kind):
    data, command = PACKED[kind]
    found = recognise(data[:HEAD_SIZE], "disk")
    assert found is not None
    assert kind in found.how
    assert command in found.advice


def test_name_in_the_advice_is_quoted_for_a_shell():
    found = recognise(PACKED["gzip"][0], "my disk; rm -rf x.gz")
    assert found is not None
    assert found.advice == "unpack it first: gunzip -k 'my disk; rm -rf x.gz'"


@pytest.mark.parametrize(
    "data", [b"", bytes(512), b"\x1f\x8b", b"BZh9 no block", b"\xeb\x3c\x90".ljust(510) + b"\x55\xaa"]
)
def test_what_is_not_packed_is_none(data):
    assert recognise(data, "disk") is None
