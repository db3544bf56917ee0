# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The page: which commands are shown, and in which world they run."""

from __future__ import annotations

import os
import sys
import tarfile
from pathlib import Path

from fakeengine.site import SECTION, Site
from imageio_testing.qemu import Fill, KiB, MiB, make_image
from ovirt_imageio.client.cli import COMMANDS

from .terminal import Terminal

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "transcripts.md"

_SIZE = 64 * MiB
_FILLS = (Fill(0, 64 * KiB, 0x11), Fill(8 * MiB, MiB, 0x22))

_INTRODUCTION = """\
# Transcripts

The output of each command of `ovirt-img` on a terminal. Made by running them, and compared by a test:
only times, rates and ids are made up.
"""


def make(folder: str | os.PathLike[str]) -> str:
    """Run all commands and return the page.

    Args:
        folder: Where everything is made; it exists and is empty.
    """
    top = Path(folder)
    (top / "site").mkdir()
    work = top / "work"
    work.mkdir()
    with Site(top / "site") as site:
        disk = site.add_disk("fedora", _SIZE, _FILLS)
        environ = {**site.environ(), "PATH": f"{_command(top)}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}
        terminal = Terminal(work, environ)
        ticket = site.daemon.add_ticket(_disk(top), size=_SIZE, ops=["read", "write"])
        names = {
            site.daemon.url: "https://host1:54322",
            ticket: "TICKET",
            f"{ticket[:8]}…": "TICKET…",
            f"{ticket[:8]}\\u2026": "TICKET\\u2026",
            disk.id: "DISK_ID",
            site.server.url: "https://engine",
            f"{site.home}/": "/home/me/",
        }
        _images(work, site.ca_file or "")
        parts = [_INTRODUCTION]
        for title, lines in _chapters(f"{site.daemon.url}/images/{ticket}", disk.id):
            parts.append(f"## {title}\n")
            parts += [f"```console\n{terminal.show(line, names)}```\n" for line in lines]
    return "\n".join(parts)


def _chapters(url: str, disk_id: str) -> list[tuple[str, list[str]]]:
    missing = "0cd81a7e-1f1a-4e3b-9a8f-5b3f7a1f0c52"
    return [
        ("Help", ["ovirt-img --help", *(f"ovirt-img {name} --help" for name in COMMANDS)]),
        (
            "Looking at images",
            [
                "ovirt-img info fedora.qcow2 | grep -E '^(virtual|filename|format)'",
                "ovirt-img info --member fedora.qcow2 appliance.ova | grep member",
                "ovirt-img measure -f raw fedora.qcow2",
                "ovirt-img extents fedora.qcow2",
                "ovirt-img extents -o json fedora.raw",
                "ovirt-img checksum fedora.qcow2",
            ],
        ),
        (
            "With a ticket",
            [
                f"ovirt-img info --cafile ca.pem {url}",
                f"ovirt-img upload --cafile ca.pem --verify fedora.qcow2 {url}",
                f"ovirt-img upload --cafile ca.pem --member fedora.qcow2 appliance.ova {url}",
                f"ovirt-img download --cafile ca.pem -f raw {url} copy.raw",
                f"ovirt-img checksum --cafile ca.pem {url}",
                f"ovirt-img download --cafile ca.pem -o json {url} copy.qcow2 | tail -n 1",
                f"ovirt-img download --cafile ca.pem -q -f raw {url} - | cmp - copy.raw",
                f"ovirt-img upload --cafile ca.pem - {url} < fedora.raw",
            ],
        ),
        (
            "With an engine",
            [
                f"ovirt-img upload-disk -c {SECTION} -s nfs1 fedora.qcow2",
                f"ovirt-img download-disk -c {SECTION} {disk_id} copy.qcow2",
            ],
        ),
        (
            "Failures",
            [
                "ovirt-img info missing.qcow2",
                f"ovirt-img upload fedora.qcow2 {url}",
                f"ovirt-img upload --cafile ca.pem fedora.qcow2 {url}x",
                f"ovirt-img upload -q -o json --cafile ca.pem fedora.qcow2 {url}x",
                "ovirt-img upload --max-workers 9 fedora.qcow2 https://host1:54322/images/TICKET",
                f"ovirt-img download -f raw --incremental {url} copy.raw",
                f"head -c 4096 fedora.raw | ovirt-img upload --cafile ca.pem - {url}",
                f"ovirt-img upload --verify - {url} < fedora.raw",
                "ovirt-img info external.qcow2",
                f"ovirt-img upload-disk -c {SECTION} -s tape fedora.qcow2",
                f"ovirt-img download-disk -c {SECTION} {missing} copy.qcow2",
                f"ovirt-img download-disk -c west {missing} copy.qcow2",
            ],
        ),
    ]


def _command(top: Path) -> Path:
    """Make the command, as an installed one would be found."""
    path = top / "bin" / "ovirt-img"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ovirt_imageio.client.cli "$@"\n')
    path.chmod(0o755)
    return path.parent


def _disk(top: Path) -> str:
    """Make a disk that is a file, and return its URL."""
    make_image(top / "disk.raw", "raw", _SIZE)
    return f"file://{top}/disk.raw"


def _images(work: Path, ca_file: str) -> None:
    """Make the files that the commands name."""
    (work / "ca.pem").write_bytes(Path(ca_file).read_bytes())
    make_image(work / "fedora.qcow2", "qcow2", _SIZE, _FILLS)
    make_image(work / "fedora.raw", "raw", _SIZE, _FILLS)
    with tarfile.open(work / "appliance.ova", "w") as tar:
        tar.add(work / "fedora.qcow2", "fedora.qcow2")
    # A header of qcow2 version 3 that names a data file: incompatible feature 2, extension "DATA".
    make_image(work / "external.qcow2", "qcow2", MiB)
    with open(work / "external.qcow2", "r+b") as f:
        f.seek(72)
        f.write((4).to_bytes(8, "big"))
        f.seek(112)
        f.write(b"DATA" + (8).to_bytes(4, "big") + b"/etc/foo" + bytes(8))
