# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The knowledge of an engine, and the rules by which it changes.

Nothing is ready at once: a new disk is locked, a transfer initializes and finalizes.
How long that takes is counted in questions (`patience`), so that tests need no clock.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass, field

from ovirt_imageio.common.qemu import img

from .storage import Storage


class Fault(Exception):
    """The engine refuses.

    Attributes:
        status: Of the response.
        reason: In a few words.
        detail: In a sentence.
    """

    def __init__(self, status: int, detail: str, reason: str = "Operation Failed") -> None:
        super().__init__(detail)
        self.status, self.reason, self.detail = status, reason, detail


def not_found(kind: str, key: str) -> Fault:
    """The fault for something that there is not."""
    return Fault(404, f"Entity not found: {kind} {key}")


def new_id() -> str:
    """Return a new id."""
    return str(uuid.uuid4())


@dataclass
class Named:
    """A thing with an id and a name, and nothing else of interest."""

    name: str
    id: str = field(default_factory=new_id)


@dataclass
class Volume:
    """One file of a disk's chain: a snapshot, or the active one."""

    id: str
    path: str
    format: str


@dataclass
class Disk:
    """A disk.

    Attributes:
        format: `raw` or `qcow2`.
        waits: Questions until it is ready.
        owner: Id of the transfer that holds it.
        illegal: Content that was uploaded to it is no image.
        chain: Volumes from the oldest to the active one.
    """

    id: str
    name: str
    format: str
    size: int
    description: str = ""
    content_type: str = "data"
    sparse: bool = True
    backup: str = "none"
    waits: int = 0
    owner: str | None = None
    illegal: bool = False
    chain: list[Volume] = field(default_factory=list)

    @property
    def status(self) -> str:
        """`ok`, or `locked` while somebody works on it, or `illegal`."""
        if self.illegal:
            return "illegal"
        return "locked" if self.waits or self.owner else "ok"

    @property
    def active(self) -> Volume:
        """The volume that is written."""
        return self.chain[-1]


@dataclass
class Vm:
    """A virtual machine."""

    name: str
    disks: list[str] = field(default_factory=list)
    id: str = field(default_factory=new_id)
    backups: dict[str, Backup] = field(default_factory=dict)


@dataclass
class Backup:
    """A backup of a virtual machine.

    Attributes:
        disks: Ids, and the copy that is downloaded.
        from_checkpoint: Blocks that changed since then are wanted; None for all.
        to_checkpoint: Where the next one may start from.
    """

    id: str
    vm_id: str
    from_checkpoint: str | None
    to_checkpoint: str | None
    description: str = ""
    phase: str = "starting"
    waits: int = 0
    disks: dict[str, str] = field(default_factory=dict)

    def mode(self, engine: Engine, disk_id: str) -> str:
        """`incremental` for a disk that has the checkpoint, else `full`."""
        copy = self.disks[disk_id]
        if self.from_checkpoint and self.from_checkpoint in bitmaps(copy, engine.disk(disk_id).format):
            return "incremental"
        return "full"


@dataclass
class Transfer:
    """An image transfer."""

    disk_id: str
    volume: Volume
    direction: str
    size: int
    shallow: bool = False
    backup_id: str | None = None
    bitmap: str | None = None
    timeout_policy: str = "legacy"
    inactivity_timeout: int = 60
    phase: str = "initializing"
    waits: int = 0
    id: str = field(default_factory=new_id)
    ticket_id: str = field(default_factory=new_id)


class Engine:
    """An engine with one data center, host and storage domain. One thread at a time uses it.

    Args:
        storage: Where disks are.
        patience: Questions that a program must ask until something is ready.

    Attributes:
        finalizing: As patience, for a transfer to be finalized; None means as patience.
        forgets: A transfer that has ended is removed at once, as by engines before 4.4.7.
        refuses: Fate of a disk whose upload is not accepted, `illegal` or `removed`; empty accepts all uploads.
    """

    def __init__(self, storage: Storage, *, patience: int = 1) -> None:
        self.storage = storage
        self.patience = patience
        self.finalizing: int | None = None
        self.forgets = False
        self.refuses = ""
        self.storage_domain = Named("nfs1")
        self.data_center = Named("center1")
        self.cluster = Named("cluster1")
        self.host = Named("host1")
        self.disks: dict[str, Disk] = {}
        self.transfers: dict[str, Transfer] = {}
        self.vms: dict[str, Vm] = {}
        self.templates: dict[str, Named] = {}

    # Disks.

    def disk(self, disk_id: str) -> Disk:
        """Find a disk."""
        try:
            return self.disks[disk_id]
        except KeyError:
            raise not_found("disk", disk_id) from None

    def add_disk(self, disk: Disk, storage_domain: str | None) -> Disk:
        """Make a disk.

        Raises:
            Fault: Something is wrong with it.
        """
        if storage_domain not in (self.storage_domain.name, self.storage_domain.id):
            raise not_found("storage domain", str(storage_domain))
        if disk.id in self.disks:
            raise Fault(409, f"Cannot add Virtual Disk. Disk {disk.id} already exists.")
        if disk.format == "qcow2" and not disk.sparse and disk.backup != "incremental":
            raise Fault(409, "Cannot add Virtual Disk. Disk configuration (COW Preallocated) is incompatible.")
        disk.waits = self.patience
        self._add_volume(disk)
        self.disks[disk.id] = disk
        return disk

    def snapshot(self, disk_id: str) -> Volume:
        """Put a new active volume above the disk; return what is now a snapshot."""
        disk = self.disk(disk_id)
        frozen = disk.active
        path = self.storage.path(disk.id, f"snapshot-{frozen.id}", frozen.format)
        os.rename(frozen.path, path)
        frozen.path = path
        self._add_volume(disk, frozen)
        return frozen

    def _add_volume(self, disk: Disk, below: Volume | None = None) -> None:
        fmt = "qcow2" if below else disk.format
        volume = Volume(new_id(), self.storage.path(disk.id, "active", fmt), fmt)
        backing = (below.path, below.format) if below else (None, None)
        self.storage.make(volume.path, fmt, disk.size, *backing)
        disk.chain.append(volume)

    def find_volume(self, volume_id: str) -> tuple[Disk, Volume]:
        """Find a snapshot of any disk."""
        for disk in self.disks.values():
            for volume in disk.chain[:-1]:
                if volume.id == volume_id:
                    return disk, volume
        raise not_found("disk snapshot", volume_id)

    def remove_disk(self, disk_id: str) -> None:
        """Remove a disk that nobody uses."""
        if self.disk(disk_id).status != "ok":
            raise Fault(409, "Cannot remove Virtual Disk: the disk is locked.")
        self._forget(disk_id)

    def _forget(self, disk_id: str) -> None:
        del self.disks[disk_id]
        self.storage.remove(disk_id)

    # Transfers.

    def transfer(self, transfer_id: str) -> Transfer:
        """Find a transfer."""
        try:
            return self.transfers[transfer_id]
        except KeyError:
            raise not_found("image transfer", transfer_id) from None

    def add_transfer(self, transfer: Transfer) -> Transfer:
        """Start a transfer.

        Raises:
            Fault: The disk is in use, or cannot be served.
        """
        disk = self.disk(transfer.disk_id)
        if disk.status != "ok":
            raise Fault(409, f"Cannot transfer Virtual Disk: Disk {disk.name} is locked. Please try again later.")
        transfer.waits = self.patience
        self._permit(transfer)
        if not transfer.backup_id:
            disk.owner = transfer.id
        self.transfers[transfer.id] = transfer
        return transfer

    def _permit(self, transfer: Transfer) -> None:
        self.storage.permit(
            transfer.ticket_id,
            transfer.volume.path,
            transfer.volume.format,
            writing=transfer.direction == "upload",
            size=transfer.size,
            name=self.disk(transfer.disk_id).name,
            transfer_id=transfer.id,
            backing_chain=not transfer.shallow,
            bitmap=transfer.bitmap,
        )

    def act(self, transfer: Transfer, action: str) -> None:
        """Do what a client asks of a transfer."""
        if action == "extend":
            self.storage.extend(transfer.ticket_id)
        elif action == "resume":
            self._permit(transfer)
            transfer.phase, transfer.waits = "resuming", self.patience
        elif action in ("pause", "finalize", "cancel"):
            self.storage.revoke(transfer.ticket_id)
            phases = {"pause": "paused_user", "finalize": "finalizing_success", "cancel": "finished_cleanup"}
            transfer.phase, transfer.waits = phases[action], self.patience
            if action == "finalize" and self.finalizing is not None:
                transfer.waits = self.finalizing
            if action == "cancel":
                self._release(transfer, remove=transfer.direction == "upload")
        else:
            raise Fault(404, f"There is no action {action!r}")

    def _finish(self, transfer: Transfer) -> None:
        """Let the disk of a finalized transfer be used."""
        refused = transfer.direction == "upload" and self.refuses
        transfer.phase = "finished_failure" if refused else "finished_success"
        self.disk(transfer.disk_id).illegal = refused == "illegal"
        self._release(transfer, remove=refused == "removed")
        if self.forgets:
            del self.transfers[transfer.id]

    def _release(self, transfer: Transfer, *, remove: bool = False) -> None:
        disk = self.disk(transfer.disk_id)
        disk.owner = None
        if remove:
            self._forget(disk.id)

    # Backups.

    def vm(self, vm_id: str) -> Vm:
        """Find a virtual machine."""
        try:
            return self.vms[vm_id]
        except KeyError:
            raise not_found("virtual machine", vm_id) from None

    def backup(self, vm_id: str, backup_id: str) -> Backup:
        """Find a backup."""
        try:
            return self.vm(vm_id).backups[backup_id]
        except KeyError:
            raise not_found("backup", backup_id) from None

    def start_backup(self, backup: Backup, disk_ids: list[str]) -> Backup:
        """Keep the disks as they are now.

        Raises:
            Fault: There is no such disk or checkpoint.
        """
        disks = [self.disk(disk_id) for disk_id in disk_ids]
        since = backup.from_checkpoint
        if since and not any(since in bitmaps(disk.active.path, disk.active.format) for disk in disks):
            raise not_found("checkpoint", since)
        backup.to_checkpoint = new_id() if any(disk.active.format == "qcow2" for disk in disks) else None
        for disk in disks:
            checkpoint = backup.to_checkpoint if disk.active.format == "qcow2" else None
            backup.disks[disk.id] = self.storage.freeze(disk.active.path, backup.id, disk.id, checkpoint)
        backup.waits = self.patience
        self.vm(backup.vm_id).backups[backup.id] = backup
        return backup

    def finish_backup(self, backup: Backup) -> None:
        """Let go what a backup kept."""
        busy = [t for t in self.transfers.values() if t.backup_id == backup.id and t.phase == "transferring"]
        if busy:
            raise Fault(409, "Cannot stop VM backup. Image transfer is in progress.")
        self.storage.thaw(backup.id)
        backup.phase, backup.waits = "finalizing", self.patience

    # Time.

    def ask(self, thing: Disk | Transfer | Backup) -> None:
        """Take note that a program asks for a thing's state: it comes a step nearer to being ready."""
        if thing.waits:
            thing.waits -= 1
        elif isinstance(thing, Transfer) and thing.phase in ("initializing", "resuming"):
            thing.phase = "transferring"
        elif isinstance(thing, Transfer) and thing.phase == "finalizing_success":
            self._finish(thing)
        elif isinstance(thing, Backup) and thing.phase in ("starting", "finalizing"):
            thing.phase = {"starting": "ready", "finalizing": "succeeded"}[thing.phase]


def bitmaps(path: str, fmt: str) -> list[str]:
    """Names of the dirty bitmaps of an image."""
    if fmt != "qcow2":
        return []
    data = img.info(path, fmt=fmt)["format-specific"]["data"]
    return [bitmap["name"] for bitmap in data.get("bitmaps", [])]
