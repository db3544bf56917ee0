# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Receive a disk into a volume by `_internal.directio`, as vdsm's kvm2ovirt does.

    vdsm_import.py stream|blocks SOURCE VOLUME BUFFER_SIZE

Source: oVirt/vdsm, lib/vdsm/kvm2ovirt.py, v4.50.7-31-gfd4b0df20. A stream of libvirt gives less than was asked
for, and nothing at its end; its size is not given. Blocks of a running machine are read by position. Another
thread reads `done` meanwhile. The output tells what it saw.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import BinaryIO

from ovirt_imageio._internal import directio


class Adapter:
    """Reads a file in short pieces, by the two calls that vdsm's adapters have."""

    def __init__(self, source: BinaryIO, most: int) -> None:
        self._source = source
        self._most = most

    def read(self, size: int) -> bytes:
        """Return some of the disk."""
        return self._source.read(min(size, self._most))

    def readinto(self, buf: bytearray) -> int:
        """Fill the beginning of a buffer; returns how much."""
        data = self.read(len(buf))
        buf[: len(data)] = data
        return len(data)


def main() -> None:
    """Receive, and tell how much."""
    kind, source, volume, buffer_size = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    with open(source, "rb") as f:
        size = f.seek(0, 2)
        f.seek(0)
        stream = kind == "stream"
        adapter = Adapter(f, 65536 if stream else buffer_size)
        op = directio.Receive(volume, adapter, size=None if stream else size, buffersize=buffer_size)
        seen = []
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.01):
                seen.append(op.done)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            op.run()
        finally:
            ended.set()
            watcher.join()
    print(json.dumps({"done": op.done, "seen": all(0 <= done <= size for done in seen)}))


main()
