# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Let the host compute the block hash of a disk: its data never leave it.

    python checksum_disk.py -c east DISK_ID

Equal to what checksum_image.py prints for an image with the same content.
"""

import helper
from ovirtsdk4 import types

from ovirt_imageio import client

parser = helper.arguments("Compute the block hash of a disk")
parser.add_argument("disk_id", help="disk to look at")
args = helper.parse(parser)

with helper.connect(args) as system:
    with helper.transfer(system, helper.DOWNLOAD, disk=types.Disk(id=args.disk_id)) as transfer:
        with client.ImageioClient(
            transfer.transfer_url, args.cafile, secure=args.secure, proxy_url=transfer.proxy_url
        ) as disk:
            result = disk.checksum()

print(f"{result.algorithm} {result.block_size} {result.checksum}")
