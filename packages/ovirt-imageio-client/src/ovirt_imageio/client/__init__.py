# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Upload, download and inspect virtual disks.

    from ovirt_imageio import client

    with client.ProgressBar() as progress:
        client.upload("disk.qcow2", url, "ca.pem", progress=progress)

Whole images: `upload` and `download`. Random access: `ImageioClient`. Images on this
machine: `info`, `measure`, `checksum`, `extents`.
"""

from .api import BUFFER_SIZE, MAX_WORKERS, checksum, download, extents, info, measure, upload
from .progress import ProgressBar
from .remote import ImageioClient
from .version import __version__

__all__ = [
    "BUFFER_SIZE",
    "MAX_WORKERS",
    "ImageioClient",
    "ProgressBar",
    "__version__",
    "checksum",
    "download",
    "extents",
    "info",
    "measure",
    "upload",
]
