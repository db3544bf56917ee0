# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""An engine, a daemon and a storage domain together.

with Site(folder) as site:
    disk = site.add_disk("fedora", 1 << 30, [Fill(0, 65536, 0x55)])
    subprocess.run(["ovirt-img", "download-disk", "-c", "fake", disk.id, "copy.qcow2"], env=site.environ())
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import TracebackType
from typing import Iterable

from imageio_testing import enginesdk
from imageio_testing.daemon import Daemon
from imageio_testing.pki import make_pki
from imageio_testing.qemu import Fill, fill_image

from .model import Disk, Engine, Vm, new_id
from .server import EngineServer
from .storage import Storage

SECTION = "fake"
"""Name of the section of the configuration files."""


class Site:
    """All that a program needs to move disks.

    Args:
        folder: Where everything is made; it exists.
        tls: Serve HTTPS.
        patience: As `Engine` takes it.

    Attributes:
        engine: The model.
        server: Its address.
        daemon: Serves the disks.
        ca_file: Verifies both; None without TLS.
        home: Folder for HOME, with the configuration of `ovirt-img` and of the SDK's examples.
    """

    def __init__(self, folder: str | os.PathLike[str], *, tls: bool = True, patience: int = 1) -> None:
        self.folder = Path(folder)
        self._pki = make_pki(self.folder) if tls else None
        self.ca_file = self._pki.ca_file if self._pki else None
        self.daemon = Daemon(self.folder, tls=tls, pki=self._pki)
        self._storage = Storage(self.folder / "storage", self.daemon)
        self.engine = Engine(self._storage, patience=patience)
        self.server = EngineServer(self.engine, pki=self._pki)
        self.home = self.folder / "home"
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Site:
        self._storage.folder.mkdir()
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.daemon)
            stack.callback(self._storage.close)
            stack.enter_context(self.server)
            self._write_config()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def add_disk(self, name: str, size: int, fills: Iterable[Fill] = (), *, fmt: str = "qcow2") -> Disk:
        """Make a disk with data, ready to use."""
        disk = self.engine.add_disk(Disk(new_id(), name, fmt, size), self.engine.storage_domain.name)
        disk.waits = 0
        self.write(disk, fills)
        return disk

    def write(self, disk: Disk, fills: Iterable[Fill]) -> None:
        """Write what a guest would write, which dirties the bitmaps."""
        fill_image(disk.active.path, disk.active.format, fills)

    def add_vm(self, name: str, disks: Iterable[Disk]) -> Vm:
        """Make a virtual machine of disks."""
        vm = Vm(name, [disk.id for disk in disks])
        self.engine.vms[vm.id] = vm
        return vm

    def environ(self) -> dict[str, str]:
        """Return the environment for a program: its home, and the engine SDK."""
        environ = {key: value for key, value in os.environ.items() if not key.startswith("XDG_")}
        return {**environ, "HOME": str(self.home), "PYTHONPATH": enginesdk.path()}

    def _write_config(self) -> None:
        folder = self.home / ".config"
        folder.mkdir(parents=True)
        lines = [
            f"[{SECTION}]",
            f"engine_url = {self.server.url}",
            f"username = {self.server.username}",
            f"password = {self.server.password}",
        ]
        if self.ca_file:
            lines.append(f"cafile = {self.ca_file}")
        for name in ("ovirt-img.conf", "ovirt.conf"):
            path = folder / name
            path.touch(0o600)
            path.write_text("\n".join(lines) + "\n")
