# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from fakeengine.site import Site
from imageio_testing.enginesdk import needs_engine_sdk
from imageio_testing.qemu import Fill, MiB, make_image, needs_qemu

from .page import holds

SIZE = 16 * MiB
FILLS = [Fill(0, 65536, 0x11), Fill(8 * MiB, MiB, 0x22)]


def run(generation, name, *args, **options):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    command = [generation.command(name), *map(str, args)]
    return subprocess.run(command, text=True, stdin=subprocess.DEVNULL, timeout=100, check=False, **options)


@holds("`ovirt-imageioctl` without a command")
def test_ctl_without_a_command(generations):
    theirs, ours = (run(generation, "ovirt-imageioctl") for generation in generations)
    assert (theirs.returncode, theirs.stdout[:6]) == (0, "usage:")
    assert (ours.returncode, ours.stdout) == (2, "")
    assert "add-ticket" in ours.stderr


@holds("`ovirt-imageioctl mod-ticket` without `--timeout`")
def test_ctl_mod_ticket(hosts):
    theirs, ours = (
        run(host.generation, "ovirt-imageioctl", "mod-ticket", "disk", "-c", host.conf_dir) for host in hosts
    )
    assert (theirs.returncode, ours.returncode) == (1, 2)


@holds("`ovirt-imageioctl`, missing file or configuration")
@pytest.mark.parametrize("args", [("add-ticket", "none", "-c", "CONF"), ("show-ticket", "disk", "-c", "none")])
def test_ctl_missing(hosts, tmp_path, args):
    theirs, ours = (
        run(
            host.generation,
            "ovirt-imageioctl",
            *(arg.replace("CONF", str(host.conf_dir)) for arg in args),
            cwd=tmp_path,
        )
        for host in hosts
    )
    assert (theirs.returncode, "Traceback" in theirs.stderr) == (1, True)
    assert (ours.returncode, len(ours.stderr.splitlines())) == (1, 1)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with Site(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture
def ovirt_img(site, tmp_path):
    """Runs the command of a generation in a folder of its own."""
    (tmp_path / "password").write_text(site.server.password)

    def ovirt_img(generation, command, *args, **options):
        args = (
            *(command, f"--engine-url={site.server.url}", f"--username={site.server.username}"),
            *(f"--password-file={tmp_path}/password", f"--cafile={site.ca_file}", *args),
        )
        env = {**os.environ, **site.environ(), "HOME": str(tmp_path)}
        return run(generation, "ovirt-img", *args, env=env, cwd=tmp_path, **options)

    return ovirt_img


@needs_qemu
@needs_engine_sdk
@holds("`ovirt-img download-disk`", "last line of `--output json`")
def test_download_disk(generations, site, ovirt_img, tmp_path):
    disk = site.add_disk("some", SIZE, FILLS)
    path = tmp_path / "disk.raw"
    kept, lines = [], []
    for generation in generations:
        path.write_bytes(b"old")
        old = path.stat().st_ino
        done = ovirt_img(generation, "download-disk", "-f", "raw", "-o", "json", disk.id, path)
        assert done.returncode == 0, done.stderr
        kept.append(path.stat().st_ino == old)
        lines.append(json.loads(done.stdout.splitlines()[-1]))
    assert kept == [True, False]
    assert ["transport" in line for line in lines] == [False, True]
    assert [line["transferred"] for line in lines] == [SIZE, SIZE]


@needs_qemu
@needs_engine_sdk
@holds("`ovirt-img`, damaged image", "`ovirt-img`, packed image (`.gz`, `.xz`, …)")
@pytest.mark.parametrize("kind", ["damaged", "packed"])
def test_upload_disk(generations, ovirt_img, tmp_path, kind):
    path = tmp_path / f"{kind}.img"
    if kind == "damaged":
        make_image(path, "qcow2", SIZE, FILLS)
        os.truncate(path, 300 << 10)
    else:
        path.write_bytes(b"\x1f\x8b\x08" + bytes(4093))
    theirs, ours = (ovirt_img(generation, "upload-disk", "-s", "nfs1", path) for generation in generations)
    assert theirs.returncode == 0, theirs.stderr
    assert ours.returncode == 1
    assert ("--no-check" if kind == "damaged" else "gunzip") in ours.stderr


@needs_qemu
@needs_engine_sdk
@holds("progress that cannot be written")
def test_progress_that_cannot_be_written(generations, site, ovirt_img, tmp_path):
    disk = site.add_disk("other", SIZE, FILLS)
    statuses = []
    for generation in generations:
        with open("/dev/full", "w") as full:
            statuses.append(ovirt_img(generation, "download-disk", disk.id, tmp_path / "disk", stdout=full).returncode)
    # 120 is the interpreter's, where the last line is written at its end only.
    assert statuses[0] in (1, 120)
    assert statuses[1] == 0


@needs_qemu
@needs_engine_sdk
@holds(
    "`ovirt-img upload-disk`, missing image",
    "`ovirt-img --password-file`",
    "`ovirt-img upload-disk` without `--description`",
    "`ovirt-img upload-disk`, last line of text",
)
def test_arguments_of_upload_disk(generations, site, ovirt_img, tmp_path):
    """A second line of the password file is part of the password for 2.5.1."""
    make_image(tmp_path / "named.raw", "raw", MiB, [])
    arguments = ["upload-disk", "-s", "nfs1", "named.raw"]
    lines = []
    for generation in generations:
        assert ovirt_img(generation, *arguments).returncode == 0
        disk = next(disk for disk in site.engine.disks.values() if disk.name == "named")
        lines.append(disk.description)
        del site.engine.disks[disk.id]
    assert lines == ["Uploaded by ovirt-img", "Uploaded by ovirt-img from named.raw"]
    texts = [
        ovirt_img(generation, *arguments).stdout.replace("\r", "\n").splitlines()[-1] for generation in generations
    ]
    assert [text.startswith("Disk: ") for text in texts] == [False, True]
    missing = [ovirt_img(generation, "upload-disk", "-s", "nfs1", "none").returncode for generation in generations]
    assert missing == [2, 1]
    (tmp_path / "password").write_text(f"{site.server.password}\nsecond\n")
    assert [ovirt_img(generation, *arguments).returncode for generation in generations] == [1, 0]
    (tmp_path / "password").unlink()
    assert [ovirt_img(generation, *arguments).returncode for generation in generations] == [1, 2]
