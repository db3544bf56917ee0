# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Download a snapshot of a disk: all that the disk held then, or only what it adds.

    python download_snapshot.py -c east nfs1 SNAPSHOT_1 first.qcow2
    python download_snapshot.py -c east nfs1 SNAPSHOT_2 second.qcow2 --backing-file first.qcow2

The second one fetches the data of its snapshot alone; for the rest it shows the first.
"""

import os

import helper
from ovirtsdk4 import types

from ovirt_imageio import client

parser = helper.arguments("Download a snapshot of a disk")
parser.add_argument("storage_domain", help="where the snapshot is")
parser.add_argument("snapshot_id", help="disk snapshot to download")
parser.add_argument("filename", help="image to make")
parser.add_argument("--backing-file", help="the snapshot before this one, beside the new image")
args = helper.parse(parser)

with helper.connect(args) as system:
    domains = system.storage_domains_service().list(search=f"name={args.storage_domain}")
    if not domains:
        raise SystemExit(f"there is no storage domain {args.storage_domain}")
    snapshots = system.storage_domains_service().storage_domain_service(domains[0].id).disk_snapshots_service()
    snapshot = snapshots.snapshot_service(args.snapshot_id).get()

    # A shallow transfer leaves out what lies below the snapshot.
    shallow = bool(args.backing_file)
    what = {"snapshot": types.DiskSnapshot(id=snapshot.id), "shallow": shallow}
    with helper.transfer(system, helper.DOWNLOAD, **what) as transfer:
        with client.ProgressBar("downloading") as progress:
            client.download(
                transfer.transfer_url,
                args.filename,
                args.cafile,
                secure=args.secure,
                proxy_url=transfer.proxy_url,
                progress=progress,
                backing_file=os.path.basename(args.backing_file) if shallow else None,
            )
