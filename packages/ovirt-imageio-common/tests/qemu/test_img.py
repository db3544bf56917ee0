# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
import copy
import errno
import os
import pickle
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from imageio_testing import qemu
from imageio_testing.qemu import Backing, Fill, KiB, MiB
from ovirt_imageio.common.qemu import img
from ovirt_imageio.common.qemu.findings import CheckReport

pytestmark = qemu.needs_qemu

SIZE = 4 * MiB
HOSTILE = ["nbd:localhost:10809", "json:{}", "fat:rw:x", "a,b=c", "a b", "-n", "ü"]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_any_name_is_a_file(tmp_path, monkeypatch, name, fmt):
    monkeypatch.chdir(tmp_path)
    img.create(name, fmt, size=SIZE)
    assert (tmp_path / name).is_file()
    assert img.info(name, fmt=fmt)["virtual-size"] == SIZE
    assert img.info(name)["format"] == fmt


@pytest.mark.parametrize("name", ["nbd:localhost:10809", "a,b=c"])
def test_backing_file_of_any_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    img.create(name, "qcow2", size=SIZE)
    img.create("top", "qcow2", backing_file=name, backing_format="qcow2")
    assert img.info("top")["virtual-size"] == SIZE


def test_info_tells_the_path_that_was_asked_for(tmp_path):
    path = str(tmp_path / "disk")
    img.create(path, "qcow2", size=SIZE)
    assert img.info(path)["filename"] == path


def test_info_of_a_member_of_a_file(tmp_path):
    inner, outer = tmp_path / "disk", tmp_path / "outer"
    img.create(str(inner), "qcow2", size=SIZE)
    content = inner.read_bytes()
    outer.write_bytes(b"x" * 1024 + content + b"x" * 1024)
    found = img.info(str(outer), offset=1024, size=len(content))
    assert (found["format"], found["virtual-size"]) == ("qcow2", SIZE)


def test_info_does_not_probe_when_told(tmp_path):
    path = tmp_path / "disk"
    img.create(str(path), "qcow2", size=SIZE)
    sectors = -(-path.stat().st_size // 512)
    assert img.info(str(path), fmt="raw")["virtual-size"] == sectors * 512


@pytest.mark.parametrize("fmt", ["raw", "qcow2", None])
def test_missing_image_is_named(tmp_path, fmt):
    with pytest.raises(img.QemuImgError, match="no-such.*No such file") as e:
        img.info(str(tmp_path / "no-such"), fmt=fmt)
    assert "json:" not in str(e.value)


def test_wrong_format_is_told(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(MiB))
    with pytest.raises(img.QemuImgError, match="not in qcow2 format"):
        img.info(str(path), fmt="qcow2")


def test_create_preallocates(tmp_path):
    path = tmp_path / "disk"
    img.create(str(path), "raw", size=SIZE, preallocation="falloc")
    assert path.stat().st_blocks * 512 >= SIZE


@pytest.mark.parametrize("call", [img.create, img.convert])
def test_backing_file_needs_its_format(tmp_path, call):
    with pytest.raises(ValueError, match="'base' needs its format"):
        if call is img.create:
            img.create(str(tmp_path / "top"), "qcow2", backing_file="base")
        else:
            img.convert("a", "b", fmt="raw", target_fmt="qcow2", backing_file="base")


@pytest.mark.parametrize("compressed", [False, True])
def test_convert_keeps_the_content(tmp_path, compressed):
    raw, qcow2 = str(tmp_path / "raw"), str(tmp_path / "qcow2")
    qemu.make_image(raw, "raw", SIZE, [Fill(MiB, MiB, 7)])
    img.convert(raw, qcow2, fmt="raw", target_fmt="qcow2", compressed=compressed)
    assert img.info(qcow2)["format"] == "qcow2"
    assert img.compare(raw, qcow2, fmt_a="raw", fmt_b="qcow2")


def test_convert_keeps_the_backing(tmp_path):
    base, source, target = (str(tmp_path / name) for name in ("base", "source", "target"))
    qemu.make_image(base, "raw", SIZE, [Fill(0, 2 * MiB, 7)])
    qemu.make_image(source, "qcow2", SIZE, [Fill(3 * MiB, 64 * KiB, 8)], backing=Backing(base, "raw"))
    img.convert(source, target, fmt="qcow2", target_fmt="qcow2", backing_file=base, backing_format="raw")
    own = [extent for extent in img.map_extents(target, fmt="qcow2") if extent["depth"] == 0 and extent["data"]]
    assert [(extent["start"], extent["length"]) for extent in own] == [(3 * MiB, 64 * KiB)]
    assert img.compare(source, target, fmt_a="qcow2", fmt_b="qcow2")


def test_compare_sees_one_byte(tmp_path):
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    qemu.make_image(a, "raw", SIZE)
    qemu.make_image(b, "raw", SIZE, [Fill(SIZE - 1, 1, 1)])
    assert not img.compare(a, b, fmt_a="raw", fmt_b="raw")


def test_compare_strictly_sees_the_size(tmp_path):
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    qemu.make_image(a, "raw", SIZE)
    qemu.make_image(b, "raw", 2 * SIZE)
    assert img.compare(a, b, fmt_a="raw", fmt_b="raw")
    assert not img.compare(a, b, fmt_a="raw", fmt_b="raw", strict=True)


def test_compare_of_a_missing_image_is_an_error(tmp_path):
    a = str(tmp_path / "a")
    qemu.make_image(a, "raw", SIZE)
    with pytest.raises(img.QemuImgError, match="No such file"):
        img.compare(a, str(tmp_path / "b"), fmt_a="raw", fmt_b="raw")


def entry_of(path, cluster):
    """Where the L2 entry of a cluster is, in a small image."""
    with open(path, "rb") as f:
        f.seek(40)
        (table,) = struct.unpack(">Q", f.read(8))
        f.seek(table)
        (entries,) = struct.unpack(">Q", f.read(8))
    return (entries & 0x00FFFFFFFFFFFE00) + 8 * cluster


def overwrite(path, at, data):
    with open(path, "r+b") as f:
        f.seek(at)
        f.write(data)


@pytest.fixture
def disk(tmp_path):
    path = str(tmp_path / "disk")
    qemu.make_image(path, "qcow2", SIZE, [Fill(0, MiB, 1)])
    return path


def test_check_finds_nothing_in_a_whole_image(disk):
    assert img.check(disk, fmt="qcow2") == CheckReport()


def test_check_says_what_is_wrong(disk):
    overwrite(disk, entry_of(disk, 5), b"\xff" * 8)
    report = img.check(disk, fmt="qcow2")
    assert report.is_damaged
    assert report.corruptions
    assert report.words[0].startswith("ERROR")


def test_check_of_an_image_that_is_cut_off(disk):
    os.truncate(disk, os.path.getsize(disk) // 2)
    report = img.check(disk, fmt="qcow2")
    assert report.is_damaged
    assert "end of the file" in report.words[0]


def test_check_counts_leaks_apart(disk):
    overwrite(disk, entry_of(disk, 5), bytes(8))
    report = img.check(disk, fmt="qcow2")
    assert (report.leaks, report.corruptions, report.words) == (1, 0, ())
    assert not report.is_damaged


def test_check_of_a_format_that_knows_none(tmp_path):
    path = str(tmp_path / "disk")
    qemu.make_image(path, "qcow", SIZE)
    assert img.check(path, fmt="qcow") == CheckReport(supported=False)


def test_check_that_fails_has_its_words(tmp_path):
    path = str(tmp_path / "disk")
    qemu.make_image(path, "vmdk", SIZE, [Fill(0, MiB, 1)])
    os.truncate(path, os.path.getsize(path) // 2)
    report = img.check(path, fmt="vmdk")
    assert report.is_damaged
    assert "after EOF" in " ".join(report.words)


def test_check_of_a_member_of_a_file(disk, tmp_path):
    data = Path(disk).read_bytes()
    (tmp_path / "outer").write_bytes(b"x" * 1024 + data + b"x" * 1024)
    assert img.check(str(tmp_path / "outer"), fmt="qcow2", offset=1024, size=len(data)) == CheckReport()


def test_check_does_not_look_below(tmp_path, disk):
    top = str(tmp_path / "top")
    qemu.make_image(top, "qcow2", SIZE, backing=Backing(disk, "qcow2"))
    os.truncate(disk, 512)
    assert img.check(top, fmt="qcow2") == CheckReport()


def test_check_of_an_image_that_qemu_writes_to(disk):
    with subprocess.Popen(["qemu-io", "-f", "qcow2", disk], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        writer.stdin.write(b"read 0 512\n")
        writer.stdin.flush()
        writer.stdout.readline()
        with pytest.raises(img.QemuImgError, match="check: Could not open .*lock") as e:
            img.check(disk, fmt="qcow2")
        writer.stdin.close()
        writer.stdout.read()
    assert "json:" not in str(e.value)
    assert disk in str(e.value)


def test_check_forgives_counts_that_a_crash_left_old(tmp_path):
    """qemu writes them when it opens the image the next time."""
    path = str(tmp_path / "disk")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", path, str(SIZE)], check=True)
    crash = "write -P 5 0 1M\nflush\nabort\n"
    subprocess.run(["qemu-io", "-f", "qcow2", path], input=crash, text=True, capture_output=True)
    assert img.check(path, fmt="qcow2").is_damaged
    assert img.check(path, fmt="qcow2", counts_are_old=True) == CheckReport()
    overwrite(path, entry_of(path, 5), b"\xff" * 8)
    assert img.check(path, fmt="qcow2", counts_are_old=True).is_damaged


def test_check_of_an_image_full_of_errors_is_ended(tmp_path, monkeypatch):
    """A program that finds the same for ever stands in for hours of a large image."""
    program = tmp_path / "qemu-img"
    program.write_text("#!/bin/sh\nwhile echo 'ERROR: it is worse and worse' >&2; do :; done\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    report = img.check("disk", fmt="qcow2")
    assert report.corruptions > 1000
    assert len(report.words) == 3


def test_measure_tells_what_an_image_needs(tmp_path):
    path = str(tmp_path / "disk")
    qemu.make_image(path, "raw", SIZE, [Fill(0, MiB, 1)])
    qcow2 = img.measure(path, "qcow2", fmt="raw")
    assert MiB < qcow2["required"] < SIZE < qcow2["fully-allocated"]
    assert img.measure(path, "raw", fmt="raw")["required"] == SIZE


def test_bitmap_is_added(tmp_path):
    path = str(tmp_path / "disk")
    img.create(path, "qcow2", size=SIZE)
    img.add_bitmap(path, "since-monday")
    bitmaps = img.info(path)["format-specific"]["data"]["bitmaps"]
    assert [bitmap["name"] for bitmap in bitmaps] == ["since-monday"]


def test_program_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/no/such/folder")
    assert shutil.which("qemu-img") is None
    with pytest.raises(img.QemuImgError, match="not installed") as e:
        img.info("/a")
    assert isinstance(e.value, FileNotFoundError)
    assert e.value.errno == errno.ENOENT


@pytest.mark.parametrize("way", [lambda e: e, copy.copy, lambda e: pickle.loads(pickle.dumps(e))])
def test_failure_is_one_of_subprocess_too(tmp_path, way):
    """So programs for 2.x catch it."""
    with pytest.raises(subprocess.CalledProcessError, match="nonsense") as e:
        img.measure(str(make(tmp_path)), "nonsense")
    error = way(e.value)
    assert isinstance(error, img.QemuImgError)
    assert (error.returncode, error.cmd[:2]) == (1, ["qemu-img", "measure"])
    assert "nonsense" in error.stderr
    assert str(error) == str(e.value)


def make(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(MiB))
    return path


def test_measure_of_a_size_tells_the_room_of_an_empty_and_of_a_full_image():
    room = img.measure_size(64 * MiB, "qcow2")
    assert 0 < room["required"] < MiB
    assert room["fully-allocated"] > 64 * MiB
