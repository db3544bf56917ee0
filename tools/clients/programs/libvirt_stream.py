# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Upload what a libvirt stream gives, as upstream's example does; a file stands for the stream.

    libvirt_stream.py SOURCE TRANSFER_URL

Source: oVirt/ovirt-imageio, examples/libvirt-stream, v2.5.1. Data comes in a buffer that is used again, holes come
without. The rest of a larger disk is zeroed. The progress bar learns its size after it began.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import BinaryIO, Optional

from ovirt_imageio.client import ImageioClient, ProgressBar

BUFFER_SIZE = 64 * 1024


def frames(stream: BinaryIO) -> Iterator[tuple[int, int, Optional[memoryview]]]:
    """Cut a file into data, and holes where a block of it is zero."""
    buf = bytearray(BUFFER_SIZE)
    offset = 0
    while True:
        length = stream.readinto(buf)  # type: ignore[attr-defined]
        if not length:
            return
        with memoryview(buf)[:length] as view:
            yield offset, length, view if any(view) else None
        offset += length


def main() -> None:
    """Upload."""
    source, url = sys.argv[1:]
    with ImageioClient(url, secure=False) as client, ProgressBar() as progress:
        source_size, size = os.path.getsize(source), client.size()
        assert source_size <= size, "Target disk is smaller than source disk"
        progress.size = size
        with open(source, "rb") as stream:
            for start, length, data in frames(stream):
                if data:
                    client.write(start, data)
                else:
                    client.zero(start, length)
                progress.update(length)
        if size > source_size:
            client.zero(source_size, size - source_size)
            progress.update(size - source_size)
        client.flush()


main()
