# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""forklift: disks of oVirt for KubeVirt, by the command `ovirt-img`.

Source: kubev2v/forklift, v2.7.0-3338-gd42511bb, cmd/ovirt-populator/ovirt-populator.go: the arguments, and the use of
the output. Standard error goes to standard output. Each line up to 64 KiB is read as JSON into `transferred` and
`size` (unsigned integers), `elapsed` (a number) and `description` (a string). Lines that are no JSON are logged and
passed over; one with another type is an error in its log. The status has to be 0. The volume exists before: it is a
block device, or a file of a file system.

The command is that of either generation, with the SDK. The engine is `fakeengine`, with a daemon of this checkout.
"""

from __future__ import annotations

import json
import subprocess
import uuid

import pytest

from fakeengine.site import Site
from imageio_testing.enginesdk import needs_engine_sdk
from imageio_testing.images import same_bytes
from imageio_testing.mounts import loop_device
from imageio_testing.qemu import Fill, MiB, content, needs_qemu

pytestmark = [needs_qemu, needs_engine_sdk]

SIZE = 16 * MiB
FILLS = [Fill(0, 65536, 0x11), Fill(8 * MiB, MiB, 0x22)]
MAX_LINE = 64 * 1024  # of Go's bufio.Scanner


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with Site(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.mark.parametrize("verify", ["cafile", "insecure"])
def test_volume_is_populated(library, site, tmp_path, verify):
    disk = site.add_disk(f"{library.name}-{verify}", SIZE, FILLS)
    volume = tmp_path / "disk.img"
    volume.touch()
    done = populate(library, site, verify, disk.id, volume, folder=tmp_path)
    assert done.returncode == 0, done.stdout
    (tmp_path / "expected").write_bytes(content(SIZE, FILLS))
    same_bytes(tmp_path / "expected", volume, size=SIZE)
    lines = progress(done.stdout)
    assert lines[-1]["transferred"] == lines[-1]["size"] == SIZE
    transferred = [line["transferred"] for line in lines if "size" in line]
    assert transferred == sorted(transferred)


def test_block_volume_is_populated(library, site, tmp_path):
    """The volume of a claim may be a device, which is larger than the disk.

    It may have held something else; 2.5.1 leaves that where the disk is zero, so it gets a device of zeroes here.
    """
    disk = site.add_disk(f"{library.name}-block", SIZE, FILLS)
    (tmp_path / "device").write_bytes((b"\xff" if library.name == "ours" else b"\0") * (SIZE + MiB))
    with loop_device(tmp_path / "device") as device:
        done = populate(library, site, "cafile", disk.id, device, folder=tmp_path)
        assert done.returncode == 0, done.stdout
    assert (tmp_path / "device").read_bytes()[:SIZE] == content(SIZE, FILLS)


def test_failure_has_a_status(library, site, tmp_path):
    """The error is in the log; the pod fails by the status."""
    done = populate(library, site, "cafile", str(uuid.UUID(int=0)), tmp_path / "disk.img", folder=tmp_path)
    assert done.returncode != 0
    assert done.stdout.strip()


def populate(library, site, verify, disk_id, volume, *, folder):
    """Run the command as the populator does."""
    password = folder / "ovirt.pass"
    password.write_text(site.server.password)
    trust = "--insecure" if verify == "insecure" else f"--cafile={site.ca_file}"
    command = [library.command("ovirt-img"), "download-disk", "--output", "json", f"--engine-url={site.server.url}"]
    command += [f"--username={site.server.username}", f"--password-file={password}", trust, "-f", "raw"]
    # A pod has no home and no configuration.
    env = {**site.environ(), "HOME": str(folder), "LC_ALL": "C"}
    return subprocess.run(
        [*command, disk_id, str(volume)],
        env=env,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=100,
    )


def progress(output: bytes):
    """Read lines as json.Unmarshal does into the populator's structure; other lines are passed over."""
    types = {"transferred": int, "size": int, "elapsed": (int, float), "description": str}
    lines = []
    for line in output.split(b"\n"):
        assert len(line) < MAX_LINE
        try:
            document = json.loads(line)
        except ValueError:
            continue
        for key, kind in types.items():
            if key in document:
                assert isinstance(document[key], kind), (key, document)
                assert not isinstance(document[key], bool), (key, document)
                assert key != "transferred" or document[key] >= 0
        assert "transferred" in document
        lines.append(document)
    return lines
