# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Heads of responses: bytes become values, and how the body is framed. Pure.

http.client lets the parser of e-mail read fields, and urllib3 and requests copy them into a
dictionary each. Here they are read once.

Source: RFC 9112 §4 to §6.
"""

from __future__ import annotations

import http.client
from typing import Dict, NamedTuple, Optional

_MOST_FIELDS = 100  # as http.client
_BLANK = (" ", "\t")

Fields = Dict[str, str]
"""Values by name in lower case; values of one name are joined by commas."""


class Head(NamedTuple):
    """The beginning of a response.

    Attributes:
        version: 10 or 11, as http.client counts.
        status: Status code, 100 to 999.
        reason: In the server's words, maybe empty.
        fields: Header fields of the server.
    """

    version: int
    status: int
    reason: str
    fields: Fields

    @property
    def is_interim(self) -> bool:
        """Another head follows; RFC 9110 §15.2. A connection that switches protocols is no HTTP after it."""
        return self.status < 200 and self.status != 101

    @property
    def is_chunked(self) -> bool:
        """The body comes in chunks."""
        return self.fields.get("transfer-encoding", "").lower() == "chunked"

    @property
    def closes(self) -> bool:
        """The connection ends with the response."""
        connection = self.fields.get("connection", "").lower()
        if self.version == 11:
            return "close" in connection
        return "keep-alive" not in connection

    def length(self, method: Optional[str]) -> Optional[int]:
        """Bytes of the body of an answer to method; None if the head does not tell."""
        if self.status < 200 or self.status in (204, 304) or method == "HEAD":
            return 0
        if "transfer-encoding" in self.fields and self.is_chunked:
            return None
        text = self.fields.get("content-length", "")
        return int(text) if text.isascii() and text.isdigit() else None


def parse_status(line: bytes) -> tuple[int, int, str]:
    """Return version, status and reason of a status line.

    Raises:
        http.client.HTTPException: It is none of HTTP/1.
    """
    text = line.decode("latin-1").rstrip("\r\n")
    version, _, rest = text.partition(" ")
    code, _, reason = rest.strip().partition(" ")
    if not version.startswith("HTTP/1.") or len(code) != 3 or not (code.isascii() and code.isdigit()) or code < "100":
        raise http.client.HTTPException(f"expected the head of an HTTP/1 response, got {text[:80]!r}")
    return (10 if version == "HTTP/1.0" else 11), int(code), reason.strip()


def parse_fields(block: bytes) -> Fields:
    """Return the fields of a head.

    Args:
        block: Their lines, without the empty one.

    Raises:
        http.client.HTTPException: A line is malformed, or there are too many.
    """
    fields: Fields = {}
    name = ""
    lines = block.decode("latin-1").split("\n") if block else []
    if len(lines) > _MOST_FIELDS:
        raise http.client.HTTPException(f"got more than {_MOST_FIELDS} headers")
    for line in lines:
        if line.startswith(_BLANK) and name:  # §5.2: a line that goes on
            fields[name] += " " + line.strip()
            continue
        name, colon, value = line.partition(":")
        if not colon or not name or name.endswith(_BLANK) or name.startswith(_BLANK):
            raise http.client.HTTPException(f"malformed header line {line.rstrip()[:80]!r}")
        name, value = name.lower(), value.strip()
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields
