# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""What the daemon answers when it cannot do what was asked.

An error that a client shall read carries its status; the router alone writes it.
Any other exception reaches the client as a bare 500, its details going to the log.
"""

from __future__ import annotations

from collections.abc import Sequence

from ovirt_imageio.common.errors import ImageioError, PeerGone, PeerTimeout


class HttpError(ImageioError):
    """An error with the response it leads to.

    Args:
        status: HTTP status code, 400 to 599.
        text: One short sentence for the client, without a newline.
        headers: Header fields that the error response carries besides the usual ones,
            like ``Allow`` of a 405.
        close: Close the connection after the response: what follows on it cannot
            be trusted or is not worth reading.
    """

    def __init__(
        self,
        status: int,
        text: str,
        *,
        headers: Sequence[tuple[str, str]] = (),
        close: bool = False,
    ) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = tuple(headers)
        self.close = close

    def __str__(self) -> str:
        return f"{self.status} {self.text}"


class Overloaded(HttpError):
    """No worker or connection was free in time (503): the client may try again."""

    def __init__(self, text: str = "the server is overloaded, try again later") -> None:
        super().__init__(503, text, headers=[("Retry-After", "1")])


class ClientLeft(HttpError, PeerGone):
    """The client left before its answer was ready. The status is for the log: nobody is told.

    Args:
        text: What the client does not hear.
    """

    def __init__(self, text: str) -> None:
        super().__init__(400, text, close=True)


class DeadlineExpired(ImageioError):
    """What was awaited did not happen before its deadline."""


class ClientTimeout(PeerTimeout):
    """The client, not storage, stayed silent past its timeout."""
