# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A simulated image server, by the HTTP contract, with a disk behind it that may crash.

There are three kinds. The kind `new` is ours. The kind `2.x` flushes the writes that came by the same
connection, and by those that are closed. The kind `old` offers nothing, and brings each write to stable
storage before it answers.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Optional
from urllib.parse import parse_qs

from ovirt_imageio.common import imagesapi

from .dice import Dice
from .network import Answer, Connection, Request, Trouble
from .store import UNIT, Change, Store

if TYPE_CHECKING:
    from .kernel import Kernel

_ALL = (
    imagesapi.FEATURE_CHECKSUM,
    imagesapi.FEATURE_CHECKSUM_RANGE,
    imagesapi.FEATURE_EXTENTS,
    imagesapi.FEATURE_FLUSH,
    imagesapi.FEATURE_ZERO,
)

KINDS = {
    "new": ("imageio/3.0.0", _ALL),
    "plain": ("imageio/3.0.0", tuple(name for name in _ALL if "checksum" not in name)),
    "2.x": ("imageio/2.5.1", tuple(name for name in _ALL if name != imagesapi.FEATURE_CHECKSUM_RANGE)),
    "old": ("imageio/1.5.3", ()),
}
"""Names that servers have for themselves, and the features that they offer."""


class Image:
    """A disk behind the server.

    Args:
        data: Its content, which is stable.

    Attributes:
        store: Its content now, and its stable content.
        holes: Units that nothing holds: in qcow2 a backing file would show through.
        dirty: Granules that changed since the checkpoint; None where no bitmap is.
        granularity: Bytes of a granule.
    """

    def __init__(self, data: bytes) -> None:
        self.store = Store()
        self.store.fill(data)
        self.holes: set[int] = set()
        self.dirty: Optional[set[int]] = None
        self.granularity = UNIT

    @property
    def size(self) -> int:
        """Bytes."""
        return self.store.size

    def zero_extents(self) -> list[dict[str, object]]:
        """List what is zero; neighbours of a kind are one."""
        kinds = []
        for unit, allocated in enumerate(self.store.now.allocated):
            zero = not allocated
            kinds.append((zero, zero and unit in self.holes))
        return [
            {"start": start, "length": length, "zero": kind[0], "hole": kind[1]}
            for start, length, kind in _runs(kinds, UNIT, self.size)
        ]

    def dirty_extents(self) -> list[dict[str, object]]:
        """List what is dirty, and of it what is zero."""
        dirty = self.dirty or set()
        step = min(UNIT, self.granularity)
        allocated = self.store.now.allocated
        kinds = [(at // self.granularity in dirty, not allocated[at // UNIT]) for at in range(0, self.size, step)]
        return [
            {"start": start, "length": length, "dirty": kind[0], "zero": kind[1]}
            for start, length, kind in _runs(kinds, step, self.size)
        ]

    def mark_dirty(self, before: bytes) -> None:
        """Note what differs from an earlier content, as a bitmap does that was begun then."""
        now, size = self.store.now.data, self.granularity
        self.dirty = {at // size for at in range(0, self.size, size) if now[at : at + size] != before[at : at + size]}


def _runs(kinds: list[tuple[bool, bool]], unit: int, size: int) -> list[tuple[int, int, tuple[bool, bool]]]:
    runs: list[tuple[int, int, tuple[bool, bool]]] = []
    for number, kind in enumerate(kinds):
        start = number * unit
        length = min(unit, size - start)
        if runs and runs[-1][2] == kind:
            runs[-1] = (runs[-1][0], runs[-1][1] + length, kind)
        else:
            runs.append((start, length, kind))
    return runs


class Server:
    """The server.

    Args:
        kernel: The machine that the network belongs to.
        dice: Decide what a crash keeps.
        kind: See `KINDS`.

    Attributes:
        tickets: Images by the path of their URL.
        trouble: Its faults.
        readers: Connections that may read side by side.
        writers: Those that may write.
        up: It runs.
        life: How often it was started.
        expired: Tickets that are refused.
        read_only: Tickets that only allow reading.
        most: Most connections that had a request at a time.
        mistakes: Acts of the client against the contract.
        room: Units that may still be allocated; None for enough.
    """

    def __init__(self, kernel: Kernel, dice: Dice, *, kind: str = "new") -> None:
        self._kernel = kernel
        self._dice = dice
        self.name, self.features = KINDS[kind]
        self.kind = kind
        self.tickets: dict[str, Image] = {}
        self.trouble = Trouble()
        self.readers = self.writers = 8 if self.features else 1
        self.up = True
        self.life = 0
        self.expired: set[str] = set()
        self.read_only: set[str] = set()
        self.mistakes: list[str] = []
        self.room: Optional[int] = None

    def reachable(self) -> bool:
        """Tell if it takes connections."""
        return self.up

    def crash(self, keep: float, *, forget: bool = True) -> None:
        """Lose power: connections break, and what no flush covers is lost."""
        self._kernel.note("the server crashes")
        self.up = False
        self._kernel.network.drop(self)
        if forget:
            for image in self._images():
                image.store.crash(self._dice, keep)

    def restart(self) -> None:
        """Come back, with the same tickets."""
        self._kernel.note("the server is back")
        self.up = True
        self.life += 1

    def _images(self) -> list[Image]:
        return list({id(image): image for image in self.tickets.values()}.values())

    def closed(self, connection: Connection) -> None:
        """Note that a connection ended: any flush covers what it wrote."""
        for image in self._images():
            changes = image.store.changes
            image.store.changes = [
                change._replace(writer=None) if change.writer is connection else change for change in changes
            ]

    def begin(self, connection: Connection, request: Request) -> Optional[Answer]:
        """Refuse what is no request for an image here."""
        path, image = self._find(request)
        if image is None or path in self.expired:
            return Answer(403, {}, b"no such ticket\n")
        if request.method in ("PUT", "PATCH") and path in self.read_only:
            return Answer(403, {}, b"the ticket does not allow writing\n")
        if request.method == "PUT":
            first, last = self._written(request)
            if last > image.size or last - first != request.length:
                self.mistakes.append(f"PUT of {request.length} bytes to {first}-{last} of {image.size}")
                return Answer(416, {}, b"not inside the image\n")
        return None

    def receive(self, connection: Connection, request: Request, position: int, data: bytes) -> Optional[Answer]:
        """Write a piece of an upload."""
        image = self._find(request)[1]
        if request.method != "PUT" or image is None:
            connection.document = data if not position else connection.document + data
            return None
        start = self._written(request)[0] + position
        if self._full(image, start, len(data)):
            return Answer(507, {}, b"no space left on the storage\n")
        image.store.write(start, data, self._writer(connection))
        if not self.features:
            image.store.flush(image.store.mark())
        return None

    def finish(self, connection: Connection, request: Request) -> Answer:
        """Carry a request out."""
        path, image = self._find(request)
        if image is None or path in self.expired:
            return Answer(403, {}, b"no such ticket\n")
        below, query = _parts(request.path, path)
        if request.method == "OPTIONS":
            return self._options(path)
        if request.method == "PUT":
            if query.get("flush", ["y"])[0] == "y":
                image.store.flush(image.store.mark())
            return self._done()
        if request.method == "PATCH":
            return self._patch(connection, image, request)
        if below == imagesapi.EXTENTS:
            return self._extents(image, query)
        if below == imagesapi.CHECKSUM:
            return self._checksum(image, query)
        return self._get(image, request)

    # Details.

    def _writer(self, connection: Connection) -> Optional[Connection]:
        """Return who has to flush what comes by a connection; None for any, as it is closed."""
        return connection if connection in self._kernel.network.open else None

    def _find(self, request: Request) -> tuple[str, Optional[Image]]:
        path = "/".join(request.path.partition("?")[0].split("/")[:3])
        return path, self.tickets.get(path)

    @staticmethod
    def _written(request: Request) -> tuple[int, int]:
        match = re.match(r"bytes (\d+)-(\d+)/", request.headers.get("Content-Range", ""))
        if match is None:
            return 0, request.length
        return int(match[1]), int(match[2]) + 1

    def _full(self, image: Image, start: int, length: int) -> bool:
        if self.room is None:
            return False
        allocated = image.store.now.allocated
        needed = sum(not allocated[unit] for unit in range(start // UNIT, -(-(start + length) // UNIT)))
        if needed > self.room:
            return True
        self.room -= needed
        return False

    def _options(self, path: str) -> Answer:
        if not self.features:
            return Answer(405, {}, b"")
        methods = "GET,OPTIONS" if path in self.read_only else "GET,PUT,PATCH,OPTIONS"
        document = {
            "features": list(self.features),
            "max_readers": self.readers,
            "max_writers": self.writers,
        }
        return Answer(200, {"Server": self.name, "Allow": methods}, json.dumps(document).encode())

    def _patch(self, connection: Connection, image: Image, request: Request) -> Answer:
        document = json.loads(connection.document)
        if document["op"] == imagesapi.OP_FLUSH:
            return self._flush(connection, image)
        start, length = document["offset"], document["size"]
        if start + length > image.size:
            self.mistakes.append(f"PATCH of {length} bytes at {start} of {image.size}")
            return Answer(416, {}, b"not inside the image\n")
        image.store.punch(start, length, self._writer(connection))
        if document.get("flush"):
            image.store.flush(image.store.mark())
        return self._done()

    def _flush(self, connection: Connection, image: Image) -> Answer:
        def covers(change: Change) -> bool:
            return self.kind != "2.x" or change.writer in (None, connection)

        mark = image.store.mark()
        if self._writer(connection) is not None:
            connection.step("flush")
        image.store.flush(mark, covers)
        return self._done()

    def _done(self) -> Answer:
        """Answer a write or a flush; servers of version 3 tell which life of theirs has carried it out."""
        tells = self.name.startswith("imageio/3.")
        return Answer(200, {imagesapi.INSTANCE: f"life-{self.life}"} if tells else {})

    def _extents(self, image: Image, query: dict[str, list[str]]) -> Answer:
        if query["context"] == [imagesapi.CONTEXT_DIRTY]:
            if image.dirty is None:
                return Answer(404, {}, b"the storage has no dirty extents\n")
            return Answer(200, {}, json.dumps(image.dirty_extents()).encode())
        return Answer(200, {}, json.dumps(image.zero_extents()).encode())

    def _checksum(self, image: Image, query: dict[str, list[str]]) -> Answer:
        block_size = int(query["block_size"][0])
        offset = int(query.get("offset", ["0"])[0])
        length = int(query.get("length", [str(image.size - offset)])[0])
        data = image.store.read(offset, length)
        blocks = [
            hashlib.blake2b(data[at : at + block_size], digest_size=32).digest() for at in range(0, length, block_size)
        ]
        document: dict[str, object] = {
            "algorithm": "blake2b",
            "block_size": block_size,
            "checksum": hashlib.blake2b(b"".join(blocks), digest_size=32).hexdigest(),
        }
        if "blocks" in query:
            document["blocks"] = [block.hex() for block in blocks]
        return Answer(200, {}, json.dumps(document).encode())

    def _get(self, image: Image, request: Request) -> Answer:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        if match is None:
            return Answer(200, {}, image.store.read(0, image.size))
        first, last = int(match[1]), int(match[2])
        if first >= image.size:
            return Answer(416, {"Content-Range": f"bytes */{image.size}"}, b"not inside the image\n")
        last = min(last, image.size - 1)
        headers = {"Content-Range": f"bytes {first}-{last}/{image.size}"}
        return Answer(206, headers, image.store.read(first, last + 1 - first))


def _parts(path: str, ticket: str) -> tuple[str, dict[str, list[str]]]:
    below, _, query = path[len(ticket) :].partition("?")
    return below.lstrip("/"), parse_qs(query)
