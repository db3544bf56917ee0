# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Stream a disk by its extents, in frames, as upstream's example does.

    sparse_stream.py download|incremental TRANSFER_URL > STREAM
    sparse_stream.py upload TRANSFER_URL < STREAM

Source: oVirt/ovirt-imageio, examples/sparse-stream, v2.5.1. It needs of extents: a list of them, `start`, `length`,
`zero`, `data` and `dirty`; `write_to` a stream, `read_from` one, `size`, `zero` and `flush`. The frames here are
plainer than there: a line of JSON, and the bytes of a data frame.
"""

from __future__ import annotations

import json
import sys
from typing import Any, BinaryIO

from ovirt_imageio.client import ImageioClient


def download(client: ImageioClient, out: BinaryIO, *, incremental: bool) -> None:
    """Stream what there is, or what has changed."""
    extents = list(client.extents("dirty" if incremental else "zero"))
    meta = {
        "virtual-size": extents[-1].start + extents[-1].length,
        "data-size": sum(extent.length for extent in extents if extent.data),
    }
    _frame(out, "meta", meta)
    for extent in extents:
        if incremental and not extent.dirty:  # type: ignore[union-attr]
            continue
        _frame(out, "zero" if extent.zero else "data", [extent.start, extent.length])
        if not extent.zero:
            client.write_to(out, extent.start, extent.length)
    _frame(out, "stop", None)


def upload(client: ImageioClient, source: Any) -> None:
    """Write what a stream has."""
    kind, meta = json.loads(source.readline())
    assert kind == "meta"
    if meta["virtual-size"] > client.size():
        raise SystemExit("the disk is smaller than the stream's")
    while True:
        kind, frame = json.loads(source.readline())
        if kind == "stop":
            break
        if kind == "zero":
            client.zero(*frame)
        else:
            client.read_from(source, *frame)
    client.flush()


def _frame(out: BinaryIO, kind: str, content: object) -> None:
    out.write(json.dumps([kind, content]).encode() + b"\n")


def main() -> None:
    """Download or upload."""
    what, url = sys.argv[1:]
    with ImageioClient(url, secure=False) as client:
        if what == "upload":
            upload(client, sys.stdin.buffer)
        else:
            download(client, sys.stdout.buffer, incremental=what == "incremental")


main()
