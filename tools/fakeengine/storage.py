# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's part: files of disks, qemu-nbd in front of them, and tickets of a real daemon.

    DISK/base.qcow2 ◄── DISK/SNAPSHOT.qcow2 ◄── …        one file for each snapshot
    backups/BACKUP/DISK.qcow2                            the disk as it was at that moment

A checkpoint is a dirty bitmap in the disk that records what is written from then on.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from imageio_testing.daemon import Daemon
from ovirt_imageio import admin
from ovirt_imageio.common.qemu import img, nbd

TICKET_TIMEOUT = 300


class Storage:
    """A storage domain on files of this machine.

    Args:
        folder: Where the files are; it exists.
        daemon: Serves them; it runs.
    """

    def __init__(self, folder: str | os.PathLike[str], daemon: Daemon) -> None:
        self.folder = Path(folder)
        self.daemon = daemon
        self._servers: dict[str, nbd.Server] = {}

    def close(self) -> None:
        """End all that transfers left behind."""
        for ticket_id in list(self._servers):
            # Control-C has ended the daemon already: it got the signal as well.
            with contextlib.suppress(admin.Error, OSError):
                self.revoke(ticket_id)

    def path(self, disk_id: str, volume_id: str, fmt: str) -> str:
        """Where a volume of a disk is."""
        return str(self.folder / disk_id / f"{volume_id}.{fmt}")

    def make(self, path: str, fmt: str, size: int, backing: str | None = None, backing_fmt: str | None = None) -> None:
        """Make a volume, empty or above another one.

        Raises:
            ImageioError: qemu-img failed.
        """
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if fmt == "raw":
            with open(path, "xb") as f:
                f.truncate(size)
        else:
            img.create(path, fmt, size=size, backing_file=backing, backing_format=backing_fmt)

    def remove(self, disk_id: str) -> None:
        """Remove a disk with all its volumes."""
        shutil.rmtree(self.folder / disk_id, ignore_errors=True)

    def freeze(self, path: str, backup_id: str, disk_id: str, checkpoint_id: str | None) -> str:
        """Keep a disk as it is now, for a backup, and begin a checkpoint.

        Args:
            path: Of the disk's active volume.
            backup_id: Of the backup.
            disk_id: Of the disk.
            checkpoint_id: Name of the bitmap that records from now on; None for none.

        Returns:
            Path of the copy.
        """
        copy = self.folder / "backups" / backup_id / os.path.basename(path).replace("active", disk_id)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        if checkpoint_id:
            img.add_bitmap(path, checkpoint_id)
        return str(copy)

    def thaw(self, backup_id: str) -> None:
        """Remove what a backup kept."""
        shutil.rmtree(self.folder / "backups" / backup_id, ignore_errors=True)

    def permit(
        self,
        ticket_id: str,
        path: str,
        fmt: str,
        *,
        writing: bool,
        size: int,
        name: str,
        transfer_id: str,
        backing_chain: bool = True,
        bitmap: str | None = None,
    ) -> None:
        """Serve a volume and let whoever knows the ticket's id move its data.

        Args:
            ticket_id: For the ticket.
            path: Of the volume.
            fmt: Its format.
            writing: An upload.
            size: Bytes of the disk.
            name: For a browser's download.
            transfer_id: For the daemon's log.
            backing_chain: Let the volumes below show through.
            bitmap: Offer what changed by this bitmap.

        Raises:
            ImageioError: qemu-nbd or the daemon refused.
        """
        # Reading locks a volume as well: never two transfers of one disk.
        server = nbd.Server(path, fmt, read_only=not writing and not bitmap, backing_chain=backing_chain, bitmap=bitmap)
        server.start()
        self._servers[ticket_id] = server
        self.daemon.add_ticket(
            server.url,
            size=size,
            ops=["write" if writing else "read"],
            timeout=TICKET_TIMEOUT,
            ticket_id=ticket_id,
            sparse=True,
            dirty=bitmap is not None,
            filename=name,
            transfer_id=transfer_id,
        )

    def extend(self, ticket_id: str) -> None:
        """Let a ticket live for another while."""
        with self.daemon.admin() as client:
            client.mod_ticket(ticket_id, {"timeout": TICKET_TIMEOUT})

    def transferred(self, ticket_id: str) -> int:
        """How many bytes were moved, as the daemon says; 0 if it does not know the ticket."""
        if ticket_id not in self._servers:
            return 0
        return int(self.daemon.ticket(ticket_id).get("transferred", 0))

    def revoke(self, ticket_id: str) -> None:
        """End a ticket and what served it. Does nothing if that was done already."""
        server = self._servers.pop(ticket_id, None)
        if server is None:
            return
        try:
            self.daemon.remove_ticket(ticket_id)
        finally:
            server.stop()
