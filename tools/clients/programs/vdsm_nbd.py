# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Use `_internal.nbd` as vdsm's tests do, and tell what was found as JSON.

    vdsm_nbd.py look|fill|dirty URL SIZE

Source: oVirt/vdsm, tests/storage/nbd_test.py, v4.50.7-31-gfd4b0df20.
"""

from __future__ import annotations

import json
import sys
from urllib.parse import urlparse

from ovirt_imageio._internal import nbd


def main() -> None:
    """Write or look."""
    what, url, size = sys.argv[1], urlparse(sys.argv[2]), int(sys.argv[3])
    if what == "dirty":
        with nbd.open(url, dirty=True) as client:
            extents = client.extents(0, size)
            assert client.dirty_bitmap is not None
            dirty = [(extent.length, extent.dirty) for extent in extents[client.dirty_bitmap]]
            first = client.read(1 << 20, 65536)
        print(json.dumps({"dirty": dirty, "first": f"{first[0]:x}" if len(set(first)) == 1 else ""}))
        return
    with nbd.open(url) as client:
        if what == "fill":
            client.write(0, bytes(size))
            client.flush()
        extents = client.extents(0, size)
    found = {name: [(e.length, e.zero, e.hole) for e in runs] for name, runs in extents.items()}
    print(json.dumps(found))


main()
