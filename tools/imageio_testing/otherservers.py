# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Image servers of other makers, scripted: each with habits of its own.

The facts are of OpenNebula/one at f847cf2e, src/onebex/app/routes.rb and
src/onebex/exporters/nbd.rb; and of apache/cloudstack at 00d1dbc3,
scripts/vm/hypervisor/kvm/imageserver/handler.py.
"""

from __future__ import annotations

import json

from .imageserver import Got, Image, response

PART = 64 << 10
"""Bytes of each of the three extents: data; zeroes; data, which are dirty."""


class OneBex(Image):
    """OpenNebula's server of backups.

    It answers ranges only, tells the size nowhere but by the extents, which know no context,
    and offers a checksum that it does not have.

    Args:
        data: Content, three times PART.
    """

    def __init__(self, data: bytearray) -> None:
        super().__init__(data)
        self.document = {"features": ["checksum", "extents", "flush", "zero"], "max_readers": 1, "max_writers": 1}
        self.kinds = [("data", 0), ("zero", PART), ("dirty", 2 * PART)]

    def do_options(self, got: Got, query: str) -> bytes | None:
        """See Image."""
        return response(200, json.dumps(self.document).encode())

    def do_get(self, got: Got, query: str) -> bytes | None:
        """See Image."""
        if "/checksum" in got.target:
            return response(404, b'{"error":"Unsupported endpoint"}')
        if "range" not in got.headers:
            return response(416, b'{"error":"Missing Range header"}')
        first, _, last = got.headers["range"][len("bytes=") :].partition("-")
        data = bytes(self.data[int(first) : int(last) + 1])
        if len(data) != int(last) + 1 - int(first):
            return response(500, b'{"error":"nbdsh failed"}')
        return response(206, data, Content_Range=f"bytes {first}-{last}/*", Server="imageio/2.5.0")

    def do_put(self, got: Got, query: str) -> bytes | None:
        """See Image."""
        assert got.body is not None
        return response(501, b'{"error":"Write operation not implemented"}')

    def extents(self, got: Got, query: str) -> bytes | None:
        """See Image."""
        listing = []
        for kind, start in self.kinds:
            flags = {name: kind == name for name in ("dirty", "zero", "hole")}
            listing.append({"start": start, "length": PART, **flags})
        return response(200, json.dumps(listing).encode())


class CloudStack(Image):
    """Apache CloudStack's server: no socket, no word of holes, and no `Allow`.

    Args:
        data: Content, three times PART.
        read_only: The image cannot be written.
    """

    def __init__(self, data: bytearray, *, read_only: bool = False) -> None:
        super().__init__(data, features=("extents", "zero", "flush"))
        self.document["unix_socket"] = None
        if read_only:
            self.document.update(features=["extents"], max_writers=0)

    def do_options(self, got: Got, query: str) -> bytes | None:
        """See Image."""
        methods = "GET, PUT, PATCH, OPTIONS"
        return response(200, json.dumps(self.document).encode(), Access_Control_Allow_Methods=methods)

    def extents(self, got: Got, query: str) -> bytes | None:
        """See Image."""
        listing = [{"start": n * PART, "length": PART, "zero": n == 1} for n in range(3)]
        if query == "context=dirty":
            listing = [{**extent, "dirty": True} for extent in listing]
        return response(200, json.dumps(listing).encode())
