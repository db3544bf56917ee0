# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Grants to clients, as the host's manager wrote them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ovirt_imageio.common import backends, imagesapi, nbd

from . import params
from .errors import HttpError
from .log import one_line

OPS = ("read", "write")

# Characters of a file name. Each becomes up to 13 in Content-Disposition, and http.client takes lines
# of 64 KiB. File systems have names of 255 bytes.
_LONGEST_NAME = 2048
# Bytes of a bitmap's name in a qcow2 image, see qcow2.txt, "Bitmap directory".
_LONGEST_BITMAP = 1023
_SCHEMES = "nbd:, nbd://, nbd+unix://, file://, file:/, https:// or http://"

# Characters of an id that ovirt-imageio 2.x shows where no transfer_id was given.
_SHOWN_OF_ID = 18

# Characters of a name in the log, which is in each of a transfer's lines.
_LONGEST_IN_LOG = 100


class Ticket(NamedTuple):
    """A grant. It never changes; what happens with it is a transfer's.

    Attributes:
        uuid: The ticket's id.
        size: Bytes of the image that the client may touch.
        ops: ``"read"``, ``"write"`` or both; write implies read.
        timeout: Seconds of validity, also those by which each finished operation extends it.
        url: Address of the backend.
        inactivity_timeout: Seconds after which an idle connection is closed; 0 for never.
        transfer_id: Name in logs; None if that was not given.
        filename: Name of the image in a browser; None if that was not given.
        sparse: Zeroing may deallocate.
        dirty: Dirty extents are wanted.
        bitmap: The bitmap of the export that they mean; None if that was not given.
    """

    uuid: str
    size: int
    ops: tuple[str, ...]
    timeout: int
    url: str
    inactivity_timeout: int
    transfer_id: str | None = None
    filename: str | None = None
    sparse: bool = False
    dirty: bool = False
    bitmap: str | None = None

    @classmethod
    def from_json(cls, ticket_id: str, document: Mapping[str, Any], *, inactivity_timeout: int = 60) -> Ticket:
        """Return the ticket that a document describes; unknown keys are ignored.

        Args:
            ticket_id: The id in the path of the request.
            document: The request's body.
            inactivity_timeout: Seconds, if the document does not tell.

        Raises:
            HttpError: 400, naming the key that is missing or wrong.
        """
        uuid = params.text(document, "uuid")
        if uuid != ticket_id:
            raise params.invalid("uuid", uuid, f"the id in the path, {ticket_id[:100]!r}")
        return cls(
            uuid=uuid,
            size=params.integer(document, "size"),
            ops=_ops(document),
            timeout=params.integer(document, "timeout"),
            url=_url(document),
            inactivity_timeout=params.integer(document, "inactivity_timeout", default=inactivity_timeout),
            transfer_id=params.optional_text(document, "transfer_id"),
            filename=_filename(document),
            sparse=params.boolean(document, "sparse"),
            dirty=params.boolean(document, "dirty"),
            bitmap=_bitmap(document),
        )

    @property
    def writable(self) -> bool:
        """Whether the image may be changed."""
        return "write" in self.ops

    @property
    def mode(self) -> str:
        """How backends are opened: ``"r"`` or ``"r+"``."""
        return "r+" if self.writable else "r"

    @property
    def name(self) -> str:
        """Name in the log in place of the id: a client that knows the id may use the ticket."""
        return one_line(self.transfer_id or self.uuid[:8], _LONGEST_IN_LOG)

    @property
    def longest_silence(self) -> float:
        """Seconds that a connection may be idle, infinity without a limit."""
        return self.inactivity_timeout or math.inf

    def allows(self, op: str) -> bool:
        """Tell whether ``"read"`` or ``"write"`` was granted."""
        return op in self.ops or (op == "read" and self.writable)

    def to_json(self) -> dict[str, Any]:
        """Return the ticket as ``GET /tickets/{id}`` shows it; `filename` and `bitmap` only if set.

        Without a `transfer_id` it shows one made of the id, as ovirt-imageio 2.x does.
        """
        transfer_id = self.transfer_id
        if transfer_id is None:
            transfer_id = f"(ticket/{self.uuid[:_SHOWN_OF_ID]})"
        document: dict[str, Any] = {
            "uuid": self.uuid,
            "size": self.size,
            "ops": list(self.ops),
            "timeout": self.timeout,
            "url": self.url,
            "sparse": self.sparse,
            "dirty": self.dirty,
            "inactivity_timeout": self.inactivity_timeout,
            "transfer_id": transfer_id,
        }
        if self.filename is not None:
            document["filename"] = self.filename
        if self.bitmap is not None:
            document["bitmap"] = self.bitmap
        return document


def _ops(document: Mapping[str, Any]) -> tuple[str, ...]:
    value = params.required(document, "ops")
    if not isinstance(value, list) or not value or not all(op in OPS for op in value):
        raise params.invalid("ops", value, "a list of 'read', 'write' or both")
    return tuple(value)


def _bitmap(document: Mapping[str, Any]) -> str | None:
    value = params.optional_text(document, "bitmap")
    if value is not None and (not value or "\0" in value or len(value.encode()) > _LONGEST_BITMAP):
        raise params.invalid("bitmap", value, f"a name of 1 to {_LONGEST_BITMAP} bytes without NUL")
    return value


def _filename(document: Mapping[str, Any]) -> str | None:
    value = params.optional_text(document, "filename")
    if value is not None and len(value) > _LONGEST_NAME:
        raise params.invalid("filename", value, f"at most {_LONGEST_NAME} characters")
    return value


def _url(document: Mapping[str, Any]) -> str:
    """Return the address if it can be one of a backend; whether it is, opening tells."""
    url = params.text(document, "url")
    scheme = url.partition(":")[0].lower()
    try:
        if scheme in ("nbd", "nbd+unix"):
            nbd.parse(url)
        elif scheme == "file":
            backends.file_path(url)
        elif scheme in ("http", "https"):
            imagesapi.split_url(url)
        else:
            raise params.invalid("url", url, f"an address with {_SCHEMES}")
    except ValueError as e:
        raise HttpError(400, f"'url' is not understood: {e}") from e
    return url
