# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Images for the server under test, and tickets for them.

Each image is a raw file. It is offered to the server as a file, by qemu-nbd, or by another
ticket of the server itself, which is then its own origin. In each case the content of the
image is seen by reading the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from .server import Server

STORAGES = ("nbd", "file", "http")

# Not a multiple of anything but 512, so that the last blocks of all kinds are short.
IMAGE_SIZE = 6 * 1024**2 + 3 * 512
DISK_SIZE = 4 * 1024**3 + 16 * 1024**2

# Where the read-only image holds data, in bytes; all else is a hole.
IMAGE_DATA = ((0, 1024**2), (4 * 1024**2, 65536), (6 * 1024**2, 3 * 512))

_START_TIMEOUT = 20.0
_STOP_TIMEOUT = 10.0


@dataclass
class Volume:
    """Storage that tickets can be made for.

    Attributes:
        kind: one of `STORAGES`.
        path: the file with the content.
        url: for a ticket, by NBD or as a file.
        size: in bytes.
    """

    kind: str
    path: Path
    url: str
    size: int

    def content(self, offset: int = 0, length: int | None = None) -> bytes:
        """Read what the image holds."""
        with open(self.path, "rb") as f:
            f.seek(offset)
            return f.read(self.size - offset if length is None else length)

    def clear(self) -> None:
        """Let all of it be a hole."""
        os.truncate(self.path, 0)
        os.truncate(self.path, self.size)

    def fill(self, offset: int, data: bytes) -> None:
        """Change the content, behind the server's back."""
        with open(self.path, "r+b") as f:
            f.seek(offset)
            f.write(data)


@dataclass
class Grants:
    """Puts tickets into the server, and removes them at the end of a test.

    Attributes:
        server: under test.
    """

    server: Server
    _added: list[str] = field(default_factory=list)

    def add(self, volume: Volume, ops: tuple[str, ...] = ("read",), **keys: Any) -> str:
        """Add a ticket for an image and return its id.

        Args:
            volume: the image.
            ops: what is granted.
            keys: further keys of the ticket; ``size`` and ``timeout`` have defaults.
        """
        url = volume.url
        if volume.kind == "http":
            if not self.server.remote:
                pytest.skip("the server has no remote service to be an origin")
            same = {key: value for key, value in keys.items() if key in ("sparse", "dirty")}
            origin = self.put(url=url, size=volume.size, ops=list(ops), **same)
            url = f"{self.server.remote}/images/{origin}"
        return self.put(**{"url": url, "size": volume.size, "ops": list(ops), **keys})

    def put(self, **keys: Any) -> str:
        """Add a ticket with these keys and return its id, by default a new one."""
        document = {"uuid": str(uuid.uuid4()), "timeout": 300, **keys}
        ticket_id = str(document["uuid"])
        with self.server.connect("control") as control:
            response = control.put_json(f"/tickets/{ticket_id}", document)
        if response.status != 200:
            raise RuntimeError(f"no ticket could be added: {response.status} {response.text}")
        self._added.append(ticket_id)
        return ticket_id

    def info(self, ticket_id: str) -> dict[str, Any]:
        """Return the state of a ticket."""
        with self.server.connect("control") as control:
            document: dict[str, Any] = control.get(f"/tickets/{ticket_id}").json()
        return document

    def remove(self, ticket_id: str) -> int:
        """Cancel and remove a ticket; returns the status."""
        with self.server.connect("control") as control:
            return control.request("DELETE", f"/tickets/{ticket_id}").status

    def remove_all(self) -> None:
        """Remove what was added. Proxies go before their origins."""
        with self.server.connect("control") as control:
            for ticket_id in reversed(self._added):
                control.request("DELETE", f"/tickets/{ticket_id}")
        self._added.clear()


def pattern(length: int, seed: int = 0) -> bytes:
    """Bytes that differ from their neighbours near and far, none of them zero."""
    block = bytes(1 + (i * 7 + seed) % 251 for i in range(251))
    numbered = b"".join(b"%08d" % i + block for i in range(length // 259 + 1))
    return numbered[:length]


@contextlib.contextmanager
def qemu_nbd(path: Path, *arguments: str, fmt: str = "raw") -> Iterator[str]:
    """Serve an image by qemu-nbd and yield its URL.

    The socket lies beside the image, where the server can reach it: it may have a /tmp of its own, and be another user.
    """
    program = shutil.which("qemu-nbd")
    if program is None:
        pytest.skip("not installed: qemu-nbd")
    sock = path.with_name(f"nbd-{uuid.uuid4().hex[:12]}")
    command = [program, "--persistent", "--shared=64", f"--socket={sock}", f"--format={fmt}", "--export-name="]
    process = subprocess.Popen([*command, "--cache=writeback", "--discard=unmap", *arguments, str(path)], umask=0)
    try:
        _wait_for(sock, process)
        yield f"nbd:unix:{sock}"
    finally:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        sock.unlink(missing_ok=True)


def qemu_img(*arguments: str) -> None:
    """Run qemu-img."""
    program = shutil.which("qemu-img")
    if program is None:
        pytest.skip("not installed: qemu-img")
    subprocess.run([program, *arguments], check=True, stdout=subprocess.DEVNULL)


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text())


def _wait_for(sock: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait for a greeting: a signal that comes before it is served can get lost."""
    deadline = time.monotonic() + _START_TIMEOUT
    while True:
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(_START_TIMEOUT)
            with contextlib.suppress(OSError):
                s.connect(str(sock))
                if s.recv(18, socket.MSG_WAITALL)[:8] == b"NBDMAGIC":
                    return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("qemu-nbd did not start")
        time.sleep(0.005)
