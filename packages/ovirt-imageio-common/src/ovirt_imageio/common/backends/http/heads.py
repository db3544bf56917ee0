# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Heads of responses: lines become values, and how the body is framed.

http.client lets the parser of e-mail read fields, and urllib3 and requests copy them into a
dictionary each. Here they are read once, into the dictionary that callers see.

Source: RFC 9112 §4 to §6.
"""

from __future__ import annotations

import http.client
from typing import Any, Callable, NamedTuple, Optional

from requests.structures import CaseInsensitiveDict

_LONGEST_LINE = 64 * 1024  # bytes; the limits of http.client
_MOST_FIELDS = 100
_BLANK = (" ", "\t")

ReadLine = Callable[[int], bytes]
"""Returns a line with its end, cut off at a number of bytes."""


class Head(NamedTuple):
    """The beginning of a response.

    Attributes:
        version: 10 or 11, as http.client counts.
        status: Status code, 100 to 999.
        reason: In the server's words, maybe empty.
        fields: By names in any case; values of one name are joined by commas.
    """

    version: int
    status: int
    reason: str
    fields: Any

    @property
    def is_chunked(self) -> bool:
        """The body comes in chunks."""
        return str(self.fields.get("Transfer-Encoding", "")).lower() == "chunked"

    @property
    def closes(self) -> bool:
        """The connection ends with the response."""
        connection = str(self.fields.get("Connection", "")).lower()
        if self.version == 11:
            return "close" in connection
        return "keep-alive" not in connection

    def length(self, method: Optional[str]) -> Optional[int]:
        """Bytes of the body of an answer to method; None if the head does not tell."""
        if self.status < 200 or self.status in (204, 304) or method == "HEAD":
            return 0
        if self.is_chunked:
            return None
        text = self.fields.get("Content-Length", "").strip()
        return int(text) if text.isascii() and text.isdigit() else None


def read_head(readline: ReadLine) -> Head:
    """Read the head of the final response; interim ones are passed over.

    Raises:
        http.client.HTTPException: What comes is none of HTTP/1.
        As readline.
    """
    while True:
        version, status, reason = _status(_line(readline, "status line"))
        fields = _fields(readline)
        if status >= 200 or status == 101:  # RFC 9110 §15.2; what switches protocols is no HTTP after it
            return Head(version, status, reason, fields)


def _status(line: str) -> tuple[int, int, str]:
    version, _, rest = line.partition(" ")
    code, _, reason = rest.strip().partition(" ")
    if not version.startswith("HTTP/1.") or len(code) != 3 or not (code.isascii() and code.isdigit()) or code < "100":
        raise http.client.HTTPException(f"expected the head of an HTTP/1 response, got {line[:80]!r}")
    return (10 if version == "HTTP/1.0" else 11), int(code), reason.strip()


def _fields(readline: ReadLine) -> Any:
    fields: Any = CaseInsensitiveDict()
    name = ""
    for _ in range(_MOST_FIELDS + 1):
        line = _line(readline, "header line")
        if not line:
            return fields
        if line.startswith(_BLANK) and name:  # §5.2: a line that goes on
            fields[name] += " " + line.strip()
            continue
        name, colon, value = line.partition(":")
        if not colon or not name or name.endswith(_BLANK) or name.startswith(_BLANK):
            raise http.client.HTTPException(f"malformed header line {line[:80]!r}")
        value = value.strip()
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    raise http.client.HTTPException(f"got more than {_MOST_FIELDS} headers")


def _line(readline: ReadLine, what: str) -> str:
    line = readline(_LONGEST_LINE + 1)
    if len(line) > _LONGEST_LINE:
        raise http.client.LineTooLong(what)
    return line.decode("latin-1").rstrip("\r\n")
