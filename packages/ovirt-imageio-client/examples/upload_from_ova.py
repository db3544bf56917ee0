# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Upload a disk out of an OVA, without unpacking it.

python upload_from_ova.py -c east --storage-domain nfs1 appliance.ova disk1.vmdk
"""

import os

import helper
from ovirtsdk4 import types

from ovirt_imageio import client

parser = helper.arguments("Upload a disk out of an OVA")
parser.add_argument("--storage-domain", required=True, help="where to make the disk")
parser.add_argument("ova", help="the OVA, a tar file")
parser.add_argument("member", help="name of the disk's image inside it")
args = helper.parse(parser)

info = client.info(args.ova, member=args.member)
required = client.measure(args.ova, "qcow2", member=args.member)["required"]

with helper.connect(args) as system:
    disk = helper.create_disk(
        system,
        args.storage_domain,
        name=os.path.basename(args.member),
        format=types.DiskFormat.COW,
        sparse=True,
        provisioned_size=info["virtual-size"],
        initial_size=required,
    )
    with helper.transfer(system, helper.UPLOAD, disk=types.Disk(id=disk.id)) as transfer:
        with client.ProgressBar("uploading") as progress:
            client.upload(
                args.ova,
                transfer.transfer_url,
                args.cafile,
                secure=args.secure,
                proxy_url=transfer.proxy_url,
                progress=progress,
                member=args.member,
            )
    print(f"Disk: {disk.id}")
