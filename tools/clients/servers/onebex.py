# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""OpenNebula's OneBEX: backups of virtual machines, to be read.

Source: OpenNebula/one, f847cf2e (after 7.4.0), src/onebex: app/routes.rb, app/helpers.rb, exporters/nbd.rb,
exporters/lvm.rb.

    OPTIONS:  `checksum`, `extents`, `flush` and `zero`, one reader and one writer, for any id
    extents:  `start`, `length`, `dirty`, `zero`, `hole`, whatever the context. By NBD they are those of one map:
              allocation, or dirty ranges. An incremental one of LVM lists only changed ranges, with gaps
    GET:      with a range ``bytes=a-b``; without 416, another 400, whatever the id; 206 with the total ``*``. Past the
              end 500; by NBD over 32 MiB as well, for one read of nbdsh is one request to qemu-nbd
    PATCH:    flush: 200 without a body; all else 400
    PUT:      501
    errors:   JSON, with the key `error`

Nothing tells the size of the disk but the extents. It speaks HTTP, without TLS. There is no checksum.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any
from urllib.parse import urlsplit

from .disk import IMAGE_ID, ImageHandler

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class NbdFull(ImageHandler):
    """The exporter of NBD, with the map of what is allocated."""

    features = ("checksum", "extents", "flush", "zero")
    largest_read = 32 * 1024 * 1024  # of qemu-nbd

    def do_OPTIONS(self) -> None:  # noqa: N802
        """Tell what it can."""
        self._send(200, {"features": list(self.features), "max_readers": 1, "max_writers": 1})

    def do_HEAD(self) -> None:  # noqa: N802
        """Answer as to a GET, without the body."""
        self.do_GET()

    def do_GET(self) -> None:  # noqa: N802
        """Send a range, or extents."""
        if self._path().endswith("/extents"):
            if self._image("/extents"):
                with self.disk.lock:
                    self._send(200, self.extents())
        elif re.fullmatch(r"/images/[^/]+", self._path()):
            self._get()
        else:
            self._error(404, "Unsupported endpoint")

    def do_PUT(self) -> None:  # noqa: N802
        """Refuse."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self._error(501, "Write operation not implemented")

    def do_PATCH(self) -> None:  # noqa: N802
        """Flush, which does nothing."""
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if document.get("op") != "flush":
            self._error(400, "Unsupported operation")
        elif self._image(""):
            self._send(200, b"")

    def extents(self) -> list[dict[str, Any]]:
        """List what nbdinfo tells. It calls what is not allocated "hole,zero", which is neither to the exporter."""
        return [_extent(start, length) for start, length, _, _ in self.disk.runs()]

    def _get(self) -> None:
        text = self.headers.get("Range")
        if text is None:
            self._error(416, "Missing Range header")
            return
        match = _RANGE.fullmatch(text)
        if match is None:
            self._error(400, "Invalid Range format. Expected: bytes=start-end")
            return
        first, last = int(match[1]), int(match[2])
        if last < first:
            self._error(416, "Invalid Range header")
            return
        if not self._image(""):
            return
        length = last + 1 - first
        with self.disk.lock:
            data = bytes(self.disk.data[first : last + 1])
        if len(data) != length or length > self.largest_read:
            self._error(500, self.failure(length, len(data)))
            return
        fields = {"Content-Range": f"bytes {first}-{last}/*", "Accept-Ranges": "bytes"}
        self._send(206, data, **fields, **{"Content-Disposition": "attachment"})

    def failure(self, expected: int, found: int) -> str:
        """Say why a range could not be read."""
        return "nbdsh failed: nbd_pread: read: command failed: Invalid argument (EINVAL)"

    def _path(self) -> str:
        return urlsplit(self.path).path

    def _image(self, tail: str) -> bool:
        """Tell if the path is that of the image; else answer."""
        if self._path() == f"/images/{IMAGE_ID}{tail}":
            return True
        known = re.fullmatch(rf"/images/[^/]+{tail}", self._path())
        self._error(404, "Transfer not found" if known else "Unsupported endpoint")
        return False

    def _error(self, status: int, message: str) -> None:
        self._send(status, {"error": message})

    def _send(self, status: int, content: Any, **fields: str) -> None:
        is_data = isinstance(content, bytes)
        body = content if is_data else json.dumps(content).encode()
        self.send_response_only(status)
        if is_data:
            fields["Server"] = "imageio/2.5.0"
        self.send_header("Content-Type", "application/octet-stream" if is_data and body else "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        self.log_request()
        if self.command != "HEAD":
            self.wfile.write(body)


class NbdIncremental(NbdFull):
    """The exporter of NBD, with the map of a dirty bitmap."""

    def extents(self) -> list[dict[str, Any]]:
        """List what is dirty and what is clean."""
        found: list[dict[str, Any]] = []
        for start, length, _, dirty in self.disk.runs():
            if found and found[-1]["dirty"] is dirty:
                found[-1]["length"] += length
            else:
                found.append(_extent(start, length, dirty=dirty))
        return found


class LvmFull(NbdFull):
    """The exporter of LVM: one extent of data, said to be dirty."""

    largest_read = sys.maxsize

    def failure(self, expected: int, found: int) -> str:
        """Say that the volume has ended."""
        return f"LVM read returned {found} bytes, expected {expected}"

    def extents(self) -> list[dict[str, Any]]:
        """List one extent."""
        return [_extent(0, len(self.disk.data), dirty=True)]


class LvmIncremental(LvmFull):
    """The exporter of LVM: what thin_delta finds, and nothing between."""

    def extents(self) -> list[dict[str, Any]]:
        """List what has changed."""
        return [_extent(start, length, dirty=True) for start, length, _, dirty in self.disk.runs() if dirty]


def _extent(start: int, length: int, *, dirty: bool = False) -> dict[str, Any]:
    return {"start": start, "length": length, "dirty": dirty, "zero": False, "hole": False}
