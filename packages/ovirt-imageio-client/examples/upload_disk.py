# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Upload an image of any format to a new disk.

python upload_disk.py -c east --storage-domain nfs1 fedora.qcow2
"""

import os

import helper
from ovirtsdk4 import types

from ovirt_imageio import client

parser = helper.arguments("Upload an image to a new disk")
parser.add_argument("--storage-domain", required=True, help="where to make the disk")
parser.add_argument("filename", help="image to upload")
args = helper.parse(parser)

# How large the disk is for its guest, and how much room it takes as qcow2.
info = client.info(args.filename)
required = client.measure(args.filename, "qcow2")["required"]

with helper.connect(args) as system:
    disk = helper.create_disk(
        system,
        args.storage_domain,
        name=os.path.basename(args.filename),
        format=types.DiskFormat.COW,
        sparse=True,
        provisioned_size=info["virtual-size"],
        initial_size=required,
        # So that it can be backed up incrementally.
        backup=types.DiskBackup.INCREMENTAL,
    )
    with helper.transfer(system, helper.UPLOAD, disk=types.Disk(id=disk.id)) as transfer:
        with client.ProgressBar("uploading") as progress:
            client.upload(
                args.filename,
                transfer.transfer_url,
                args.cafile,
                secure=args.secure,
                proxy_url=transfer.proxy_url,
                progress=progress,
            )
    print(f"Disk: {disk.id}")
