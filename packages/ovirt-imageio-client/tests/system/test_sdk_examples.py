# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs of others: the examples of ovirt-engine-sdk-python, unmodified, with our client.

They come with its source distribution, see `imageio_testing.enginesdk`. They wait a
second wherever they wait; here a second is short.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tarfile

import pytest

from fakeengine.site import SECTION, Site
from imageio_testing import enginesdk
from imageio_testing.qemu import Fill, MiB, make_image, needs_qemu
from ovirt_imageio import client
from ovirt_imageio.common.qemu import img

pytestmark = [pytest.mark.system, needs_qemu, enginesdk.needs_engine_sdk]

SIZE = 16 * MiB
FILLS = [Fill(0, 65536, 0x11), Fill(8 * MiB, MiB, 0x22)]

SHORT_SECONDS = "import time\nlong = time.sleep\ntime.sleep = lambda seconds: long(seconds / 20)\n"

OVF = """\
<ovf:Envelope xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
  <ovf:DiskSection>
    <ovf:Disk ovf:diskId="{disk_id}" ovf:fileRef="disk1.qcow2" ovf:volume-type="Sparse"/>
  </ovf:DiskSection>
  <ovf:VirtualSystem><ovf:Name>appliance</ovf:Name></ovf:VirtualSystem>
</ovf:Envelope>
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with Site(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture
def command(site, tmp_path):
    """Returns arguments of Popen that run an example."""
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "sitecustomize.py").write_text(SHORT_SECONDS)
    environ = site.environ()
    environ["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "short"), environ["PYTHONPATH"]])

    def make(name, *args):
        line = [sys.executable, str(enginesdk.examples() / name), *map(str, args)]
        return {"args": line, "env": environ, "cwd": tmp_path, "stdin": subprocess.DEVNULL, "encoding": "utf-8"}

    return make


@pytest.fixture
def run(command):
    def run(name, *args):
        done = subprocess.run(**command(name, *args), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=100)
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run


def same(a, b, fmt_a="qcow2", fmt_b="qcow2"):
    return img.compare(str(a), str(b), fmt_a=fmt_a, fmt_b=fmt_b)


def test_every_example_that_uses_our_client_is_run_here():
    with open(__file__, encoding="utf-8") as f:
        text = f.read()
    found = [path for path in enginesdk.examples().glob("*.py") if "ovirt_imageio" in path.read_text()]
    assert len(found) >= 7
    assert [path.name for path in found if f'"{path.name}"' not in text] == []


def test_upload_disk(site, run, tmp_path):
    make_image(tmp_path / "my.qcow2", "qcow2", SIZE, FILLS)
    out = run("upload_disk.py", "-c", SECTION, "--sd-name", "nfs1", "--disk-sparse", "my.qcow2")
    disk = site.engine.disk(re.search(r"Disk ID: (\S+)", out)[1])
    assert same(tmp_path / "my.qcow2", disk.active.path)


@pytest.mark.parametrize("options", [[], ["--use-proxy", "-f", "raw"]])
def test_download_disk(site, run, tmp_path, options):
    disk = site.add_disk("some", SIZE, FILLS)
    run("download_disk.py", "-c", SECTION, *options, disk.id, "my.img")
    assert same(tmp_path / "my.img", disk.active.path, "raw" if options else "qcow2")


def test_download_disk_snapshot(site, run, tmp_path):
    disk = site.add_disk("some", SIZE, FILLS)
    first = site.engine.snapshot(disk.id)
    site.write(disk, [Fill(4 * MiB, MiB, 0x33)])
    second = site.engine.snapshot(disk.id)
    run("download_disk_snapshot.py", "-c", SECTION, "nfs1", first.id, "first.qcow2")
    run("download_disk_snapshot.py", "-c", SECTION, "--backing-file", "first.qcow2", "nfs1", second.id, "second.qcow2")
    assert same(tmp_path / "first.qcow2", first.path)
    assert same(tmp_path / "second.qcow2", second.path)
    assert img.info(str(tmp_path / "second.qcow2"))["backing-filename"] == "first.qcow2"


def test_full_and_incremental_backup(site, run, tmp_path):
    disk = site.add_disk("some", SIZE, FILLS)
    vm = site.add_vm("vm", [disk])
    out = run("backup_vm.py", "-c", SECTION, "full", vm.id)
    checkpoint = re.search(r"Created checkpoint '(\S+)'", out)[1]
    site.write(disk, [Fill(4 * MiB, MiB, 0x33)])
    out = run("backup_vm.py", "-c", SECTION, "incremental", "--from-checkpoint-uuid", checkpoint, vm.id)
    backup = re.search(r"Creating backup file '(\S+)'", out)[1]
    assert same(tmp_path / backup, disk.active.path)
    # Only what changed was fetched: the rest shows from the full backup.
    data = [extent for extent in img.map_extents(str(tmp_path / backup), fmt="qcow2") if extent["depth"] == 0]
    assert [(extent["start"], extent["length"]) for extent in data if extent["data"]] == [(4 * MiB, MiB)]


def test_checksum_disk_and_checksum_image(site, run, tmp_path):
    disk = site.add_disk("some", SIZE, FILLS)
    theirs = json.loads(run("checksum_disk.py", "-c", SECTION, disk.id))
    ours = json.loads(run("checksum_image.py", disk.active.path))
    assert theirs == ours == client.checksum(disk.active.path)


def test_image_transfer_until_control_c(site, command):
    disk = site.add_disk("some", SIZE, FILLS)
    line = command("image_transfer.py", "-c", SECTION, "upload", disk.id, "--read-delay", "1000")
    line["env"] = {**line["env"], "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(**line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as example:
        lines = []
        try:
            for text in example.stdout:
                lines.append(text)
                if "Reading from server" in text:
                    example.send_signal(signal.SIGINT)
            assert example.wait(60) == 0, lines
        finally:
            example.kill()
    assert "Finalizing image transfer" in lines[-1]
    assert disk.status == "ok"


def make_ova(folder, disk_id):
    make_image(folder / "disk1.qcow2", "qcow2", SIZE, FILLS)
    (folder / "vm.ovf").write_text(OVF.format(disk_id=disk_id))
    with tarfile.open(folder / "my.ova", "w") as tar:
        tar.add(folder / "vm.ovf", "vm.ovf")
        tar.add(folder / "disk1.qcow2", "disk1.qcow2")


def test_upload_from_ova(site, run, tmp_path):
    make_ova(tmp_path, "unused")
    line = ["--ova-disk-name", "disk1.qcow2", "--sd-name", "nfs1", "--disk-sparse", "my.ova"]
    out = run("upload_from_ova.py", "-c", SECTION, *line)
    disk = site.engine.disk(re.search(r"Disk ID: (\S+)", out)[1])
    assert same(tmp_path / "disk1.qcow2", disk.active.path)


@pytest.mark.parametrize("option", [[], ["--template"]])
def test_upload_ova_as_vm_or_template(site, run, tmp_path, option):
    disk_id = f"0cd81a7e-1f1a-4e3b-9a8f-5b3f7a1f0c5{len(option)}"
    make_ova(tmp_path, disk_id)
    line = ["-c", SECTION, "--sd-name", "nfs1", "--cluster-name", "cluster1", *option, "my.ova"]
    run("upload_ova_as_vm_or_template.py", *line)
    assert same(tmp_path / "disk1.qcow2", site.engine.disk(disk_id).active.path)
    assert site.engine.templates if option else site.engine.vms
