# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Run an engine, a daemon and a disk until Control-C, and say what to type.

make engine
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Iterator, NoReturn

from imageio_testing import enginesdk
from imageio_testing.daemon import DaemonFailed
from imageio_testing.qemu import Fill, GiB, MiB
from ovirt_imageio.common.errors import ImageioError

from .site import SECTION, Site

TOP = Path(__file__).resolve().parents[2]

_SIZE = 1 * GiB
_FILLS = (Fill(0, 8 * MiB, 0x11), Fill(300 * MiB, 64 * MiB, 0x22), Fill(_SIZE - MiB, MiB, 0x33))


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="make engine", description=__doc__.partition("\n")[0])
    parser.add_argument("--patience", type=int, default=2, help="questions until something is ready (default 2)")
    args = parser.parse_args(argv)
    if not shutil.which("qemu-nbd"):
        print("engine: qemu-nbd is not installed (Debian: qemu-utils, Fedora and EL: qemu-img)", file=sys.stderr)
        return 1
    try:
        with _signals(), tempfile.TemporaryDirectory(prefix="imageio-engine-") as folder:
            with contextlib.suppress(_Stopped), Site(folder, patience=args.patience) as site:
                print(text(site), flush=True)
                while True:
                    signal.pause()
    except (ImageioError, DaemonFailed, OSError) as e:
        print(f"engine: {e}", file=sys.stderr)
        return 1
    print("Everything has ended, nothing is left.")
    return 0


class _Stopped(BaseException):
    """A signal asks to end."""


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Let the first signal end the wait, and further ones not disturb the end."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        print(f"\nStopping for {signal.Signals(number).name} ...", flush=True)
        raise _Stopped

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def text(site: Site) -> str:
    """Make a disk, a snapshot and a virtual machine, and say what can be done with them."""
    disk = site.add_disk("fedora", _SIZE, _FILLS)
    disk.backup = "incremental"
    snapshot = site.engine.snapshot(site.add_disk("debian", _SIZE, _FILLS).id)
    vm = site.add_vm("server1", [disk])
    domain = site.engine.storage_domain.name
    examples = Path(os.path.relpath(TOP / "packages/ovirt-imageio-client/examples"))
    script = sys.executable
    with contextlib.suppress(ValueError):
        script = os.path.relpath(sys.executable)
    bin_folder = os.path.dirname(script)
    sdk = "" if enginesdk.is_here() else "\nThe engine SDK is missing: only commands by URL will work.\n"
    return f"""\
An engine at {site.server.url}, user {site.server.username}, password {site.server.password};
a daemon at {site.daemon.url}; both verified by {site.ca_file}.
{sdk}
In another terminal:

  export HOME={site.home}
  export PYTHONPATH={enginesdk.folder()}
  export PATH={os.path.abspath(bin_folder)}:$PATH

  ovirt-img download-disk -c {SECTION} {disk.id} fedora.qcow2
  ovirt-img upload-disk -c {SECTION} -s {domain} fedora.qcow2

  python {examples}/upload_disk.py -c {SECTION} --storage-domain {domain} fedora.qcow2
  python {examples}/download_disk.py -c {SECTION} {disk.id} copy.qcow2
  python {examples}/download_snapshot.py -c {SECTION} {domain} {snapshot.id} snapshot.qcow2
  python {examples}/backup_vm.py -c {SECTION} full {vm.id}
  python {examples}/backup_vm.py -c {SECTION} incremental {vm.id}
  python {examples}/checksum_disk.py -c {SECTION} {disk.id}

Write to the disk of the virtual machine, as its guest would, between two backups:

  qemu-io -f qcow2 -c 'write -P 0x44 100m 1m' {disk.active.path}

Control-C ends it all."""


if __name__ == "__main__":
    sys.exit(main())
