# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Apache CloudStack's image server.

Source: apache/cloudstack, scripts/vm/hypervisor/kvm/imageserver: handler.py at 00d1dbc3, server.py at 19a8509f,
backends/nbd.py at 3e7268e4, backends/file.py at dc933a1a, constants.py at 0aef8c8f.

    OPTIONS:  `unix_socket` null; four readers; writers four, one over a file, none if it is read-only. No Allow
    extents:  `start`, `length`, `zero`, in pieces of 64 MiB at most; ``context=dirty`` adds `dirty`: all without bitmap
    GET:      a range may pass the end; a whole image has 200
    PUT:      not flushed unless ``flush=y``. The answer has a body. Over a file there are no ranges
    PATCH:    wants Content-Type application/json; zero and flush
    errors:   JSON, with the key `error`. The body of a request that is refused is not read

There is no checksum, and no HEAD: 501. It answers by HTTP/1.0, so a connection ends with its first response. The
reason: the handler sets `server_protocol`, which http.server does not know, and `protocol_version` keeps its default.
"""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from .disk import IMAGE_ID, ImageHandler

PIECE = 64 * 1024 * 1024
_CONTENT_RANGE = re.compile(r"bytes\s+(\d+)-(\d+)/(?:\*|\d+)")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class Refusal(Exception):
    """A status and the words of an error."""

    def __init__(self, status: int, text: str, **fields: str) -> None:
        super().__init__(text)
        self.status = status
        self.fields = fields


class Can(NamedTuple):
    """Abilities of a kind of storage."""

    features: tuple[str, ...]
    max_writers: int
    ranges: bool


class Nbd(ImageHandler):
    """The server over an export that can be written."""

    protocol_version = "HTTP/1.0"
    server_version = "cloudstack-image-server/1.0"
    can = Can(("extents", "zero", "flush"), 4, ranges=True)

    def do_OPTIONS(self) -> None:  # noqa: N802
        """Tell what it can."""
        self._answer(self._options)

    def do_GET(self) -> None:  # noqa: N802
        """Send the image, a range of it, or its extents."""
        self._answer(self._get)

    def do_PUT(self) -> None:  # noqa: N802
        """Write."""
        self._answer(self._put)

    def do_PATCH(self) -> None:  # noqa: N802
        """Zero or flush."""
        self._answer(self._patch)

    def _answer(self, method: Any) -> None:
        try:
            with self.disk.lock:
                method()
        except Refusal as e:
            self._send(e.status, {"error": str(e)}, **e.fields)

    def _options(self) -> None:
        self._route(None)
        document = {
            "unix_socket": None,
            "features": list(self.can.features),
            "max_readers": 4,
            "max_writers": self.can.max_writers,
        }
        self._send(200, document)

    def _get(self) -> None:
        tail = self._route("extents")
        if tail:
            self._extents()
            return
        size = len(self.disk.data)
        first, end, status, fields = 0, size, 200, {}
        if "Range" in self.headers:
            first, end = self._range(size)
            status, fields = 206, {"Content-Range": f"bytes {first}-{end - 1}/{size}"}
        self._send(status, bytes(self.disk.data[first:end]), **fields)

    def _range(self, size: int) -> tuple[int, int]:
        match = _RANGE.fullmatch(self.headers["Range"])
        if match is None or not any(match.groups()):
            raise Refusal(HTTPStatus.BAD_REQUEST, "invalid Range header")
        first = int(match[1]) if match[1] else max(size - int(match[2]), 0)
        end = min(int(match[2]) + 1, size) if match[1] and match[2] else size
        if first >= end:
            raise Refusal(416, "range not satisfiable", **{"Content-Range": f"bytes */{size}"})
        return first, end

    def _extents(self) -> None:
        if "extents" not in self.can.features:
            raise Refusal(HTTPStatus.BAD_REQUEST, "extents not supported for file backend")
        dirty_wanted = parse_qs(urlsplit(self.path).query).get("context") == ["dirty"]
        found: list[dict[str, Any]] = []
        for start, length, zero, dirty in self.disk.runs():
            for piece in range(start, start + length, PIECE):
                extent: dict[str, Any] = {"start": piece, "length": min(PIECE, start + length - piece), "zero": zero}
                if dirty_wanted:
                    extent["dirty"] = dirty or self.disk.dirty is None
                found.append(extent)
        self._send(200, found)

    def _put(self) -> None:
        self._route(None)
        length = int(self.headers["Content-Length"])
        flush = parse_qs(urlsplit(self.path).query).get("flush", ["n"])[0] in ("y", "yes", "true", "1")
        offset = 0
        if "Content-Range" in self.headers:
            if not self.can.ranges:
                raise Refusal(400, "Content-Range PUT not supported for file backend; use full PUT")
            match = _CONTENT_RANGE.match(self.headers["Content-Range"])
            if match is None:
                raise Refusal(400, "invalid Content-Range header: invalid Content-Range")
            offset = int(match[1])
        elif not self.can.ranges:
            self.disk.data[:] = bytes(length)
        size = len(self.disk.data)
        if offset + length > size:
            raise Refusal(416, "range not satisfiable", **{"Content-Range": f"bytes */{size}"})
        self.disk.data[offset : offset + length] = self.rfile.read(length)
        self.disk.flushes += flush
        self._send(200, {"ok": True, "bytes_written": length, "flushed": flush})

    def _patch(self) -> None:
        self._route(None)
        if not self.can.ranges:
            raise Refusal(400, "range writes and PATCH not supported for file backend; use PUT for full upload")
        if self.headers.get_content_type() != "application/json":
            raise Refusal(415, "PATCH requires Content-Type: application/json")
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if document["op"] == "zero":
            self._zero(int(document.get("offset") or 0), int(document["size"]))
        self.disk.flushes += document["op"] == "flush" or bool(document.get("flush"))
        self._send(200, {"ok": True})

    def _zero(self, offset: int, size: int) -> None:
        if size <= 0:
            raise Refusal(400, '"size" must be positive')
        if offset + size > len(self.disk.data):
            raise Refusal(400, "zero range out of bounds")
        self.disk.data[offset : offset + size] = bytes(size)

    def _route(self, tail: str | None) -> bool:
        parts = [part for part in urlsplit(self.path).path.split("/") if part]
        if len(parts) not in (2, 3) or parts[0] != "images":
            raise Refusal(404, "not found")
        if parts[1] != IMAGE_ID:
            raise Refusal(404, "unknown image_id")
        if len(parts) == 3 and parts[2] != tail:
            raise Refusal(404, "not found")
        return len(parts) == 3

    def _send(self, status: int, content: Any, **fields: str) -> None:
        is_data = isinstance(content, bytes)
        body = content if is_data else json.dumps(content, separators=(",", ":")).encode()
        self.send_response(status)
        self.send_header("Access-Control-Allow-Methods", "GET, PUT, OPTIONS")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/octet-stream" if is_data else "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class ReadOnlyNbd(Nbd):
    """The server over an export that can only be read: a backup."""

    can = Can(("extents",), 0, ranges=True)


class File(Nbd):
    """The server over a file: it is read, or written as a whole."""

    can = Can(("flush",), 1, ranges=False)
