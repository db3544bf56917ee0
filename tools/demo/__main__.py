# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Upload and download real disk images, and show what happened.

    make demo

Each image travels by a road of its own, up into a disk of the host and down again. The
roads are TLS and the Unix socket, raw and qcow2. All files lie in `.demo`. Programs that
the demo started have ended when it ends.
"""

from __future__ import annotations

import contextlib
import filecmp
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from demo.images import Image, make_disk, make_overlay
from imageio_testing.daemon import Daemon
from ovirt_imageio import client
from ovirt_imageio.common.extents import ZeroExtent
from ovirt_imageio.common.qemu import img, nbd
from ovirt_imageio.common.units import format_size

FOLDER = Path(".demo")
_SHOWN_EXTENTS = 6


class Failed(Exception):
    """The demonstration did not show what it should."""


@dataclass
class Trip:
    """Facts of one transfer, for the table at the end."""

    what: str
    road: str
    size: int
    seconds: float

    def row(self) -> str:
        """Write it as a line."""
        rate = format_size(self.size / self.seconds)
        return f"  {self.what:<44} {self.road:<12} {self.seconds:6.2f} s {rate + '/s':>13}"


class Demo:
    """The story, told in order. One instance is one run.

    Args:
        folder: Where everything is made; what is in it is removed first.
        has_qemu: qemu-img and qemu-nbd are there.
    """

    def __init__(self, folder: Path, *, has_qemu: bool) -> None:
        self._folder = folder
        self._has_qemu = has_qemu
        self._trips: list[Trip] = []

    def run(self) -> None:
        """Tell it.

        Raises:
            Failed: Something came back different.
        """
        started = time.monotonic()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        title("Disks to move")
        disk = make_disk(self._folder)
        describe(disk)
        images = [disk]
        if self._has_qemu:
            images.append(make_overlay(self._folder, disk))
            describe(images[1])
        else:
            print("  qemu-img and qemu-nbd are not here: raw images only, in a file of the host")
        # A daemon whose Unix socket is off is, for the client, one on another host.
        for road, local in (("TLS", False), ("Unix socket", True)):
            self._travel(road, local, images)
        self._report(images, time.monotonic() - started)

    def _travel(self, road: str, local: bool, images: list[Image]) -> None:
        folder = self._folder / road.split()[0].lower()
        folder.mkdir()
        with Daemon(folder, config={"local": {"enable": local}}) as daemon:
            where = daemon.local_socket if local else daemon.url
            title(f"A daemon, reached by {road}: {where}")
            for image in images:
                self._there_and_back(daemon, folder, road, image)

    def _there_and_back(self, daemon: Daemon, folder: Path, road: str, image: Image) -> None:
        size = client.info(image.path)["virtual-size"]
        stem = image.path.stem
        with self._host_disk(folder / f"host-{stem}", size) as storage:
            ticket = daemon.add_ticket(storage, size=size)
            url = f"{daemon.url}/images/{ticket}"
            with self._trip(f"{image.path.name} up", road, size) as bar:
                client.upload(image.path, url, daemon.ca_file, progress=bar)
            copies = []
            for fmt in ("raw", "qcow2")[: 1 + self._has_qemu]:
                copies.append(folder / f"{stem}-copy.{fmt}")
                with self._trip(f"{image.path.name} down, as {fmt}", road, size) as bar:
                    client.download(url, copies[-1], daemon.ca_file, fmt=fmt, progress=bar)
            show_ends(url, daemon, image)
            for copy in copies:
                self._compare(image, copy)
            daemon.remove_ticket(ticket)

    @contextlib.contextmanager
    def _host_disk(self, path: Path, size: int) -> Iterator[str]:
        """Make an empty disk, as an engine would on a host, and yield its URL for a ticket."""
        if not self._has_qemu:
            with open(path.with_suffix(".raw"), "wb") as f:
                f.truncate(size)
            yield f"file://{path.with_suffix('.raw').absolute()}"
            return
        disk = str(path.with_suffix(".qcow2"))
        img.create(disk, "qcow2", size=size)
        with nbd.Server(disk, "qcow2") as server:
            yield server.url

    @contextlib.contextmanager
    def _trip(self, what: str, road: str, size: int) -> Iterator[client.ProgressBar]:
        with client.ProgressBar(phase=what, error_phase=f"{what} failed") as bar:
            started = time.monotonic()
            yield bar
            seconds = time.monotonic() - started
        self._trips.append(Trip(what, road, size, seconds))

    def _compare(self, image: Image, copy: Path) -> None:
        """Compare a copy with what was sent: by bytes where both are raw, else by content."""
        if copy.suffix == image.path.suffix == ".raw":
            same, how = filecmp.cmp(image.path, copy, shallow=False), "every byte is equal"
        else:
            same = client.checksum(copy) == client.checksum(image.path)
            how = "the content is equal"
        if not same:
            raise Failed(f"{copy} differs from {image.path}")
        print(f"  {copy}: {how}")

    def _report(self, images: list[Image], seconds: float) -> None:
        title("What happened")
        for trip in self._trips:
            print(trip.row())
        print("  Rates count all bytes of the disk; what is zero was never sent.")
        title(f"Done in {seconds:.0f} s. To look at")
        for path in [image.path for image in images] + sorted(self._folder.glob("*/*copy*")):
            print(f"  {path}")
        for path in sorted(self._folder.glob("*/daemon.log")):
            print(f"  {path}")


def title(text: str) -> None:
    """Begin a part."""
    print(f"\n{text}", flush=True)


def describe(image: Image) -> None:
    """Tell what an image is."""
    about = client.info(image.path)
    size, room = format_size(about["virtual-size"]), format_size(about["actual-size"])
    print(f"  {image.path}: {image.about}, {size}, on disk {room}")


def show_ends(url: str, daemon: Daemon, image: Image) -> None:
    """Show what is data, and the checksums of both ends.

    Raises:
        Failed: They differ.
    """
    with client.ImageioClient(url, cafile=daemon.ca_file) as remote:
        extents = [extent for extent in remote.extents() if isinstance(extent, ZeroExtent)]
        there = remote.checksum().checksum
    data = sum(extent.length for extent in extents if not extent.zero)
    print(f"  extents there: {len(extents)}, {format_size(data)} of data")
    for extent in extents[:_SHOWN_EXTENTS]:
        kind = "zero" if extent.zero else "data"
        print(f"    {extent.start:>12,} {extent.length:>12,}  {kind}{', hole' if extent.hole else ''}")
    if len(extents) > _SHOWN_EXTENTS:
        print(f"    … and {len(extents) - _SHOWN_EXTENTS} more")
    here = client.checksum(image.path)["checksum"]
    print(f"  checksum here  {here}\n  checksum there {there}")
    if here != there:
        raise Failed(f"the disk differs from {image.path}")


def _ended(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Run it; returns the exit status."""
    signal.signal(signal.SIGTERM, _ended)
    has_qemu = bool(shutil.which("qemu-img") and shutil.which("qemu-nbd"))
    try:
        Demo(FOLDER, has_qemu=has_qemu).run()
    except Failed as e:
        print(f"demo: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; what was made so far is in .demo", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
