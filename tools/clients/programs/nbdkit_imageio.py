# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The calls of nbdkit's example plugin to the client library, without nbdkit.

    nbdkit_imageio.py TRANSFER_URL SIZE

Source: libguestfs/nbdkit, plugins/python/examples/imageio.py, v1.33.11-2-g45b72f5b. One client for each connection,
which any thread takes from a queue. Without the parameter `ca_file` that is an empty string, with ``secure=no``.
Callbacks of nbdkit give the buffer that is to be filled or written.
"""

from __future__ import annotations

import queue
import sys
from concurrent.futures import ThreadPoolExecutor

from ovirt_imageio.client import ImageioClient

CONNECTIONS = 4
MIB = 1 << 20


def main() -> None:
    """Write, zero and read a disk with four threads."""
    url, size = sys.argv[1], int(sys.argv[2])
    pool: queue.Queue[ImageioClient] = queue.Queue()
    for _ in range(CONNECTIONS):
        pool.put(ImageioClient(url, cafile="", secure=False))

    def write(offset: int) -> None:
        client = pool.get()
        client.write(offset, memoryview(bytes([1 + offset // MIB]) * MIB))
        client.zero(offset + 4096, 8192)
        pool.put(client)

    def read(offset: int) -> None:
        client = pool.get()
        buf = bytearray(MIB)
        client.read(offset, buf)
        pool.put(client)
        data = bytearray(bytes([1 + offset // MIB]) * MIB)
        data[4096 : 4096 + 8192] = bytes(8192)
        assert buf == data

    client = pool.get()
    assert client.size() == size
    pool.put(client)
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        list(threads.map(write, range(0, size, MIB)))
        client = pool.get()
        client.flush()
        pool.put(client)
        list(threads.map(read, range(0, size, MIB)))
    while not pool.empty():
        pool.get().close()


main()
