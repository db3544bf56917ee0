# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Back up the disks of a running virtual machine, fully once and then incrementally.

    python backup_vm.py -c east full VM_ID --folder backups
    python backup_vm.py -c east incremental VM_ID --folder backups

Each backup leaves DISK_ID.CHECKPOINT.qcow2 in the folder. An incremental one holds what
changed since the last, which it has as its backing file: opened, it shows the whole disk.
`last.json` remembers for each disk the file, and the checkpoint to go on from.
"""

from __future__ import annotations

import json
import os
from typing import Any

import helper
from ovirtsdk4 import types

from ovirt_imageio import client

parser = helper.arguments("Back up the disks of a virtual machine")
parser.add_argument("kind", choices=("full", "incremental"), help="all data, or what changed since the last backup")
parser.add_argument("vm_id", help="virtual machine to back up")
parser.add_argument("--folder", default=".", help="where the backups are (default: here)")
args = helper.parse(parser)

memory = os.path.join(args.folder, "last.json")


def recall() -> dict[str, Any]:
    """Return what the last backup left: its checkpoint, and a file for each disk."""
    if args.kind == "full":
        return {"checkpoint": None, "files": {}}
    with open(memory, encoding="utf-8") as f:
        left: dict[str, Any] = json.load(f)
        return left


def download(system: Any, backup: types.Backup, disk: types.Disk, last: dict[str, Any]) -> str:
    """Download one disk of a backup; return the name of its file."""
    # For a disk that is new since the checkpoint the engine offers a full backup only.
    incremental = disk.backup_mode == types.DiskBackupMode.INCREMENTAL
    name = f"{disk.id}.{backup.to_checkpoint_id}.qcow2"
    what = {"disk": types.Disk(id=disk.id), "backup": types.Backup(id=backup.id)}
    with helper.transfer(system, helper.DOWNLOAD, **what) as transfer:
        with client.ProgressBar(f"disk {disk.id[:8]}") as progress:
            client.download(
                transfer.transfer_url,
                os.path.join(args.folder, name),
                args.cafile,
                incremental=incremental,
                # Relative to the new file, so that the folder may be moved.
                backing_file=last["files"][disk.id] if incremental else None,
                secure=args.secure,
                proxy_url=transfer.proxy_url,
                progress=progress,
            )
    return name


last = recall()
with helper.connect(args) as system:
    vm = system.vms_service().vm_service(args.vm_id)
    disks = [types.Disk(id=attachment.disk.id) for attachment in vm.disk_attachments_service().list()]
    backups = vm.backups_service()
    backup = backups.add(types.Backup(disks=disks, from_checkpoint_id=last["checkpoint"]))
    service = backups.backup_service(backup.id)
    try:
        helper.wait_until(lambda: service.get().phase == types.BackupPhase.READY)
        backup = service.get()
        files = {disk.id: download(system, backup, disk, last) for disk in service.disks_service().list()}
    finally:
        # Until then the guest writes beside its disks.
        service.finalize()
    helper.wait_until(lambda: service.get().phase == types.BackupPhase.SUCCEEDED)

with open(memory + ".new", "w", encoding="utf-8") as f:
    json.dump({"checkpoint": backup.to_checkpoint_id, "files": files}, f, indent=2)
os.replace(memory + ".new", memory)
print("\n".join(files.values()))
