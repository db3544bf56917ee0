# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The promise of `verify=True` for a download: the new image reads as the server's disk, through its chain."""

from __future__ import annotations

import json
import os
import random
import subprocess
from urllib.parse import parse_qs

import pytest

from imageio_testing.imageserver import Image, ScriptedServer, response
from imageio_testing.qemu import Backing, make_image, needs_qemu
from ovirt_imageio import client
from ovirt_imageio.client.verify import VerificationFailed
from ovirt_imageio.common.backends.memory import Memory, MemoryBackend
from ovirt_imageio.common.checksum import checksum
from ovirt_imageio.common.extents import DirtyExtent, ZeroExtent
from ovirt_imageio.common.qemu import img
from ovirt_imageio.common.units import KiB, MiB

pytestmark = needs_qemu

SIZE = 12 * MiB
CHANGED = (5 * MiB, 128 * KiB)
ZEROED = (9 * MiB, MiB)

SERVERS = {
    "ranges": ("checksum", "checksum-range", "extents", "flush", "zero"),
    "whole": ("checksum", "extents", "flush", "zero"),
    "none": ("extents", "flush", "zero"),
}


class Disk(Image):
    """A disk that tells what changed, and hashes itself."""

    def __init__(self, data, features, zero, dirty):
        super().__init__(data, features=features)
        self.lists = {"context=zero": zero, "context=dirty": dirty}
        self.sent = data

    def extents(self, got, query):
        return response(200, json.dumps([extent.to_dict() for extent in self.lists[query]]).encode())

    def do_get(self, got, query):
        if "/checksum" in got.target:
            return self.checksum({key: values[0] for key, values in parse_qs(query).items()})
        honest, self.data = self.data, self.sent
        try:
            return super().do_get(got, query)
        finally:
            self.data = honest

    def checksum(self, query):
        result = checksum(
            [MemoryBackend(Memory(self.data))],
            int(query["length"]) if "length" in query else None,
            offset=int(query.get("offset", 0)),
            algorithm=query["algorithm"],
            block_size=int(query["block_size"]),
            blocks=query.get("blocks") == "y",
        )
        return response(200, json.dumps({k: v for k, v in result._asdict().items() if v is not None}).encode())


@pytest.fixture
def before():
    """The disk at the checkpoint: data, and zeroes."""
    return random.Random(1).randbytes(11 * MiB) + bytes(MiB)


@pytest.fixture
def now(before):
    """The disk now."""
    data = bytearray(before)
    data[CHANGED[0] : sum(CHANGED)] = b"\xcc" * CHANGED[1]
    data[ZEROED[0] : sum(ZEROED)] = bytes(ZEROED[1])
    return data


@pytest.fixture(params=SERVERS)
def disk(request, now):
    zero = [
        ZeroExtent(0, ZEROED[0], zero=False, hole=False),
        ZeroExtent(*ZEROED, zero=True, hole=False),
        ZeroExtent(10 * MiB, MiB, zero=False, hole=False),
        ZeroExtent(11 * MiB, MiB, zero=True, hole=True),
    ]
    dirty = [
        DirtyExtent(0, CHANGED[0], dirty=False, zero=False),
        DirtyExtent(*CHANGED, dirty=True, zero=False),
        DirtyExtent(sum(CHANGED), ZEROED[0] - sum(CHANGED), dirty=False, zero=False),
        DirtyExtent(*ZEROED, dirty=True, zero=True),
        DirtyExtent(10 * MiB, MiB, dirty=False, zero=False),
        DirtyExtent(11 * MiB, MiB, dirty=False, zero=True),
    ]
    return Disk(now, SERVERS[request.param], zero, dirty)


def download(disk, folder, **options):
    with ScriptedServer(disk) as server:
        client.download(server.url, folder / "new.qcow2", None, verify=True, max_workers=2, **options)


def reads(path, fmt="qcow2"):
    raw = f"{path}.reads"
    img.convert(str(path), raw, fmt=fmt, target_fmt="raw")
    with open(raw, "rb") as f:
        data = f.read()
    os.unlink(raw)
    return data


def test_incremental_image_over_the_right_backing_file_is_verified(disk, tmp_path, before, now):
    (tmp_path / "base").write_bytes(before)
    download(disk, tmp_path, incremental=True, backing_file="base", backing_format="raw")
    assert reads(tmp_path / "new.qcow2") == now


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


WRONG = {
    "another": (lambda data: random.Random(2).randbytes(SIZE), 0),
    "one byte": (lambda data: flipped(data, 10 * MiB + 5), 10 * MiB + 5),
    "beside what changed": (lambda data: flipped(data, sum(CHANGED)), sum(CHANGED)),
    "where it was zero": (lambda data: flipped(data, SIZE - 1), SIZE - 1),
    "empty": (lambda data: b"", 0),
    "shorter": (lambda data: data[: 10 * MiB], 10 * MiB),
    "longer": (lambda data: flipped(data, MiB) + b"more", MiB),
}


@pytest.mark.parametrize(("wrong", "at"), WRONG.values(), ids=WRONG)
def test_incremental_image_over_a_wrong_backing_file_is_noticed(disk, tmp_path, before, wrong, at):
    (tmp_path / "base").write_bytes(wrong(before))
    block = at // (4 * MiB)
    text = f"^block {block} differs .*; byte {at} was not downloaded.* backing file 'base', which is not what the disk"
    with pytest.raises(VerificationFailed, match=text) as e:
        download(disk, tmp_path, incremental=True, backing_file="base", backing_format="raw")
    assert e.value.block == block
    assert os.listdir(tmp_path) == ["base"]


def test_whole_chain_of_backing_files_is_read(disk, tmp_path, before, now):
    (tmp_path / "base").write_bytes(flipped(before, MiB))
    make_image(tmp_path / "middle", "qcow2", SIZE, backing=Backing(tmp_path / "base", "raw"))
    options = {"incremental": True, "backing_file": "middle", "backing_format": "qcow2"}
    with pytest.raises(VerificationFailed, match=f"byte {MiB} was not downloaded"):
        download(disk, tmp_path, **options)
    (tmp_path / "base").write_bytes(before)
    download(disk, tmp_path, **options)
    assert reads(tmp_path / "new.qcow2") == now


def test_difference_in_what_was_downloaded_does_not_blame_the_backing_file(disk, tmp_path, before, now):
    (tmp_path / "base").write_bytes(before)
    disk.sent = flipped(bytes(now), CHANGED[0])
    if disk.features == SERVERS["none"]:
        # The bytes that the server sends are all that is known of its disk.
        download(disk, tmp_path, incremental=True, backing_file="base", backing_format="raw")
        return
    with pytest.raises(VerificationFailed, match="^block 1 differs|another checksum") as e:
        download(disk, tmp_path, incremental=True, backing_file="base", backing_format="raw")
    assert "backing" not in str(e.value)


@pytest.mark.parametrize("size", [11 * MiB + 512, 11 * MiB, SIZE + MiB])
def test_backing_file_of_another_size_that_shows_the_same_is_right(disk, tmp_path, before, now, size, caplog):
    (tmp_path / "base").write_bytes(before.ljust(size, b"m")[:size])
    download(disk, tmp_path, incremental=True, backing_file="base", backing_format="raw")
    assert reads(tmp_path / "new.qcow2") == now
    assert f"base has {size} bytes, the disk {SIZE}" in caplog.text


def test_image_is_read_back_not_only_what_was_received(disk, tmp_path, before, monkeypatch):
    # The storage of this machine loses a write.
    (tmp_path / "base").write_bytes(before)
    written = []
    zero = client.api.DownloadPair.zero

    def lose(pair, offset, length):
        written.append(offset)
        if len(written) > 1:
            zero(pair, offset, length)

    monkeypatch.setattr(client.api.DownloadPair, "zero", lose)
    with pytest.raises(VerificationFailed, match="^block 2 differs"):
        download(disk, tmp_path, incremental=True, backing_file="base", backing_format="raw")


@pytest.mark.parametrize("seed", range(8))
def test_download_succeeds_if_and_only_if_the_image_reads_as_the_disk(tmp_path, seed):
    dice = random.Random(seed)
    size, step = 3 * MiB, 64 * KiB
    now = bytearray(dice.randbytes(size))
    base = bytearray(now)
    dirty = []
    for start in range(0, size, step):
        changed = dice.random() < 0.3
        if changed:
            base[start : start + step] = dice.randbytes(step)
        dirty.append(DirtyExtent(start, step, dirty=changed, zero=False))
    if dice.random() < 0.5:
        # In what changed it does not matter, elsewhere it does.
        base[dice.randrange(size)] ^= 1
    base = base[: dice.choice([size, size, size - step])] + dice.choice([b"", b"m" * step])
    (tmp_path / "base").write_bytes(base)
    shown = b"".join(bytes((now if e.dirty else base)[e.start :][:step]).ljust(step, b"\0") for e in dirty)
    disk = Disk(now, dice.choice(list(SERVERS.values())), [ZeroExtent(0, size, zero=False, hole=False)], dirty)
    options = {"incremental": True, "backing_file": "base", "backing_format": "raw"}
    if shown != now:
        with pytest.raises(VerificationFailed, match="backing file"):
            download(disk, tmp_path, **options)
        assert not (tmp_path / "new.qcow2").exists()
    else:
        download(disk, tmp_path, **options)
        assert reads(tmp_path / "new.qcow2") == now


# Without a backing file.


def test_incremental_image_alone_holds_what_changed_and_nothing_else(disk, tmp_path, before, now):
    download(disk, tmp_path, incremental=True)
    (tmp_path / "base").write_bytes(before)
    rebase = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "base", tmp_path / "new.qcow2"]
    subprocess.check_call(rebase)
    assert reads(tmp_path / "new.qcow2") == now


def test_incremental_image_that_lost_a_zeroed_range_is_noticed(disk, tmp_path, monkeypatch):
    monkeypatch.setattr(client.api.DownloadPair, "zero", lambda *_: None)
    with pytest.raises(VerificationFailed, match=f"{MiB} bytes at {ZEROED[0]}: .* is missing"):
        download(disk, tmp_path, incremental=True)


def test_incremental_image_that_holds_what_is_clean_is_noticed(disk, tmp_path, monkeypatch):
    flush = client.api.DownloadPair.flush

    def more(pair):
        pair._target.write(MiB, b"x")
        flush(pair)

    monkeypatch.setattr(client.api.DownloadPair, "flush", more)
    with pytest.raises(VerificationFailed, match=f"65536 bytes at {MiB}: .* is clean"):
        download(disk, tmp_path, incremental=True)


# All of a disk over a backing file.


def test_image_over_a_backing_file_that_shows_in_a_hole_is_noticed(disk, tmp_path, before):
    (tmp_path / "base").write_bytes(flipped(before, 11 * MiB))
    text = f"byte {11 * MiB} was not downloaded, for it shows the backing file 'base'.*pass shallow=True"
    with pytest.raises(VerificationFailed, match=text):
        download(disk, tmp_path, backing_file="base", backing_format="raw")


def test_layer_of_a_shallow_transfer_is_compared_in_what_it_holds(disk, tmp_path, before, now):
    base = flipped(before, 11 * MiB)
    (tmp_path / "base").write_bytes(base)
    options = {"backing_file": "base", "backing_format": "raw", "shallow": True}
    download(disk, tmp_path, **options)
    assert reads(tmp_path / "new.qcow2") == bytes(now[: 11 * MiB]) + base[11 * MiB :]
    disk.data[0] ^= 1
    disk.sent = flipped(bytes(disk.data), 0)
    if disk.features == SERVERS["ranges"]:
        with pytest.raises(VerificationFailed, match="block 0"):
            download(disk, tmp_path, **options)


def test_incremental_image_alone_holds_data_that_are_zeroes(disk, tmp_path, before, now):
    # A range that changed to zeroes hides the backing file, also where the server calls it data.
    now[CHANGED[0] : sum(CHANGED)] = bytes(CHANGED[1])
    download(disk, tmp_path, incremental=True)
    (tmp_path / "base").write_bytes(before)
    rebase = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "base", tmp_path / "new.qcow2"]
    subprocess.check_call(rebase)
    assert reads(tmp_path / "new.qcow2") == now
