# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Our examples, with the real SDK against an engine to try things on."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from fakeengine.site import SECTION, Site
from imageio_testing import enginesdk
from imageio_testing.qemu import Fill, MiB, make_image, needs_qemu
from ovirt_imageio import client
from ovirt_imageio.common.qemu import img

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = [pytest.mark.system, needs_qemu]

SIZE = 16 * MiB
FILLS = [Fill(0, 65536, 0x11), Fill(8 * MiB, MiB, 0x22)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with Site(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture
def run(site, tmp_path):
    def run(name, *args):
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / name), *map(str, args)],
            env=site.environ(),
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=100,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout.splitlines()

    return run


def same(a, b, fmt_a="qcow2", fmt_b="qcow2"):
    return img.compare(str(a), str(b), fmt_a=fmt_a, fmt_b=fmt_b)


def test_every_example_is_run_here():
    text = Path(__file__).read_text(encoding="utf-8")
    names = {path.name for path in EXAMPLES.glob("*.py")} - {"helper.py"}
    assert len(names) >= 8
    assert [name for name in names if f'"{name}"' not in text] == []


@enginesdk.needs_engine_sdk
def test_upload_and_download_a_disk(site, run, tmp_path):
    make_image(tmp_path / "my.qcow2", "qcow2", SIZE, FILLS)
    line = run("upload_disk.py", "-c", SECTION, "--storage-domain", "nfs1", "my.qcow2")[-1]
    disk = site.engine.disk(line.replace("Disk: ", ""))
    assert same(tmp_path / "my.qcow2", disk.active.path)
    run("download_disk.py", "-c", SECTION, "--format", "raw", disk.id, "copy.raw")
    assert same(tmp_path / "copy.raw", disk.active.path, "raw")
    assert disk.status == "ok"


@enginesdk.needs_engine_sdk
def test_download_a_snapshot_and_the_next_one_above_it(site, run, tmp_path):
    disk = site.add_disk("some", SIZE, FILLS)
    first = site.engine.snapshot(disk.id)
    site.write(disk, [Fill(4 * MiB, MiB, 0x33)])
    second = site.engine.snapshot(disk.id)
    run("download_snapshot.py", "-c", SECTION, "nfs1", first.id, "first.qcow2")
    run("download_snapshot.py", "-c", SECTION, "nfs1", second.id, "second.qcow2", "--backing-file", "first.qcow2")
    assert same(tmp_path / "first.qcow2", first.path)
    assert same(tmp_path / "second.qcow2", second.path)
    assert own_data(tmp_path / "second.qcow2") == [(4 * MiB, MiB)]


def own_data(path):
    extents = img.map_extents(str(path), fmt="qcow2")
    return [(e["start"], e["length"]) for e in extents if e["data"] and e["depth"] == 0]


@enginesdk.needs_engine_sdk
def test_upload_from_an_ova(site, run, tmp_path):
    make_image(tmp_path / "disk1.vmdk", "vmdk", SIZE)
    with tarfile.open(tmp_path / "my.ova", "w") as tar:
        tar.add(tmp_path / "disk1.vmdk", "disk1.vmdk")
    line = run("upload_from_ova.py", "-c", SECTION, "--storage-domain", "nfs1", "my.ova", "disk1.vmdk")[-1]
    disk = site.engine.disk(line.replace("Disk: ", ""))
    assert same(tmp_path / "disk1.vmdk", disk.active.path, "vmdk")


@enginesdk.needs_engine_sdk
def test_backup_fully_and_twice_incrementally(site, run, tmp_path):
    disk = site.add_disk("some", SIZE, FILLS)
    vm = site.add_vm("vm", [disk])
    line = ["backup_vm.py", "-c", SECTION]
    run(*line, "full", vm.id)
    for number in range(1, 3):
        site.write(disk, [Fill(2 * number * MiB, MiB, 0x30 + number)])
        name = run(*line, "incremental", vm.id)[-1]
        assert same(tmp_path / name, disk.active.path)
        assert own_data(tmp_path / name) == [(2 * number * MiB, MiB)]
    assert json.loads((tmp_path / "last.json").read_text())["files"] == {disk.id: name}


@enginesdk.needs_engine_sdk
def test_checksums_of_disk_and_image_are_equal(site, run):
    disk = site.add_disk("some", SIZE, FILLS)
    theirs = run("checksum_disk.py", "-c", SECTION, disk.id)
    assert theirs == run("checksum_image.py", disk.active.path)
    assert theirs[0].split()[2] == client.checksum(disk.active.path)["checksum"]


def test_upload_by_requests(site, run, tmp_path):
    make_image(tmp_path / "my.raw", "raw", SIZE, FILLS)
    make_image(tmp_path / "disk.raw", "raw", SIZE)
    ticket = site.daemon.add_ticket(f"file://{tmp_path}/disk.raw", size=SIZE)
    run("upload_by_requests.py", "my.raw", f"{site.daemon.url}/images/{ticket}", "--cafile", site.ca_file)
    assert same(tmp_path / "my.raw", tmp_path / "disk.raw", "raw", "raw")
