# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Download a disk, and make sure that the file is what the server has.

python download_disk.py -c east DISK_ID fedora.qcow2
"""

import helper
from ovirtsdk4 import types

from ovirt_imageio import client

parser = helper.arguments("Download a disk")
parser.add_argument("disk_id", help="disk to download")
parser.add_argument("filename", help="image to make")
parser.add_argument("--format", choices=("raw", "qcow2"), default="qcow2", help="format of the image (default qcow2)")
args = helper.parse(parser)

with helper.connect(args) as system:
    with helper.transfer(system, helper.DOWNLOAD, disk=types.Disk(id=args.disk_id)) as transfer:
        with client.ProgressBar("downloading") as progress:
            client.download(
                transfer.transfer_url,
                args.filename,
                args.cafile,
                fmt=args.format,
                secure=args.secure,
                proxy_url=transfer.proxy_url,
                progress=progress,
                verify=True,
            )
