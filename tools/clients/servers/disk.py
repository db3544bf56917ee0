# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""A disk in memory behind a server, and the server's life."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from imageio_testing.pki import Pki

BLOCK = 64 * 1024

IMAGE_ID = "one-7-0-5f2e"


@dataclass
class Disk:
    """Bytes, and which blocks were written since a checkpoint.

    Attributes:
        data: the content. A block of zeroes counts as not allocated.
        dirty: numbers of the blocks that were written since the checkpoint; None: there is no bitmap.
        flushes: how many flushes there were.
        requests: methods and targets of all requests, in order.
        lock: held while a request reads or changes it.
    """

    data: bytearray
    dirty: set[int] | None = None
    flushes: int = 0
    requests: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def runs(self) -> Iterator[tuple[int, int, bool, bool]]:
        """Yield start, length, zero and dirty of ranges that are alike, in order."""
        last: tuple[int, int, bool, bool] | None = None
        for number, start in enumerate(range(0, len(self.data), BLOCK)):
            block = self.data[start : start + BLOCK]
            zero, dirty = not any(block), number in (self.dirty or ())
            if last is not None and last[2:] == (zero, dirty):
                last = (last[0], last[1] + len(block), zero, dirty)
                continue
            if last is not None:
                yield last
            last = (start, len(block), zero, dirty)
        if last is not None:
            yield last


class ImageHandler(BaseHTTPRequestHandler):
    """The part that the stand-ins share: HTTP/1.1 where nothing else is said, and no log."""

    protocol_version = "HTTP/1.1"
    disk: Disk

    def log_message(self, format: str, *args: object) -> None:
        """Write no log."""

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Note the request."""
        self.disk.requests.append(f"{self.command} {self.path}")


@contextlib.contextmanager
def serving(handler: type[ImageHandler], disk: Disk, *, pki: Pki | None = None) -> Iterator[str]:
    """Serve a disk by a kind of server, with TLS if there are keys; yields the URL of the image."""
    configured = type("Configured", (handler,), {"disk": disk})
    with ThreadingHTTPServer(("127.0.0.1", 0), configured) as server:
        server.daemon_threads = False
        if pki is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(pki.cert_file, pki.key_file)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"{'https' if pki else 'http'}://localhost:{server.server_port}/images/{IMAGE_ID}"
        finally:
            server.shutdown()
            thread.join()
