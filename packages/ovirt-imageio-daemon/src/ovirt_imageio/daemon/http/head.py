# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Response heads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from http import HTTPStatus

# Not http.client and email.utils: they take as long to import as all the rest of the server.
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]

_REASONS = {
    **{status.value: status.phrase for status in HTTPStatus},
    413: "Content Too Large",  # RFC 9110's names, the same on every Python
    416: "Range Not Satisfiable",
    417: "Expectation Failed",
    422: "Unprocessable Content",
}


class HeadWriter:
    """Writes response heads; what changes only once a second is kept.

    Args:
        server: Value of the Server field.
        clock: Seconds since the epoch.
    """

    def __init__(self, server: str, *, clock: Callable[[], float] = time.time) -> None:
        self._server = server
        self._clock = clock
        self._second = -1
        self._starts: dict[int, str] = {}

    def write(self, status: int, fields: Iterable[tuple[str, str]]) -> bytes:
        """Return the head of a response, the empty line included.

        Raises:
            ValueError: A field holds a line end or what is not Latin-1.
        """
        start = self.start(status)
        lines = [f"{name}: {value}" for name, value in fields]
        text = "\r\n".join([start, *lines, "", ""])
        if text.count("\n") != len(lines) + 4 or text.count("\r") != len(lines) + 4:
            raise ValueError(f"line end in a response field: {lines}")
        return text.encode("latin-1")

    def start(self, status: int) -> str:
        """Return the beginning of a head, without the line end, that is the same for all of a second."""
        second = int(self._clock())
        if second != self._second:
            self._second = second
            self._starts.clear()
        return self._starts.get(status) or self._start(status)

    def _start(self, status: int) -> str:
        start = self._starts[status] = (
            f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\nServer: {self._server}\r\nDate: {http_date(self._second)}"
        )
        return start


def http_date(seconds: int) -> str:
    """Write seconds since the epoch as RFC 9110 §5.6.7 wants dates, in any locale."""
    t = time.gmtime(seconds)
    day, month = _DAYS[t.tm_wday], _MONTHS[t.tm_mon - 1]
    clock = f"{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02}"
    return f"{day}, {t.tm_mday:02} {month} {t.tm_year:04} {clock} GMT"
