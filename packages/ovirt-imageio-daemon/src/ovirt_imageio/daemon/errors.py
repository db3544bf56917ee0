# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Errors for requests that the daemon cannot serve as asked.

An error that a client shall read carries its status; the router alone writes it.
Any other exception reaches the client as a bare 500, its details going to the log.
"""

from __future__ import annotations

from collections.abc import Sequence

from ovirt_imageio.common.errors import ImageioError, PeerGone, PeerTimeout, RequestError, UnsupportedOperation

_LONGEST_WORDS = 200  # characters of what an origin says
_TRY_AGAIN = (429, 503)


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


NO_SPACE = HttpError(507, "no space left on the storage")
"""The answer to storage that is full, or to a quota that is used up: RFC 4918 §11.5."""


def origin_status(error: BaseException) -> int:
    """Return the status with which the origin of a proxied image refused; 0 if it was something else that failed."""
    return getattr(error, "status", 0) if isinstance(error, (RequestError, UnsupportedOperation)) else 0


def origin_refusal(error: BaseException, *, headers: Sequence[tuple[str, str]] = ()) -> HttpError:
    """Return what the client of a proxied image is told: status and words of the origin, as ovirt-imageio 2.x does.

    Args:
        error: Refusal by the origin. An `AuthorizationError` without a status is 403: the manager that gave
            out the tickets has to renew the one for the origin.
        headers: Fields for the client.
    """
    status = origin_status(error) or 403
    words = " ".join(str(getattr(error, "text", "")).split())[:_LONGEST_WORDS]
    if status == NO_SPACE.status:
        return HttpError(status, words or NO_SPACE.text)
    if status in _TRY_AGAIN:
        headers = (*headers, ("Retry-After", "1"))
    # Its 405 is about what it can do, where ours has to name the methods of the resource: RFC 9110 §15.5.6.
    return HttpError(
        501 if status == 405 else status, f"the origin refused: {words or 'no reason given'}", headers=headers
    )


class ClientLeft(HttpError, PeerGone):
    """The client left before its answer was ready. The status is for the log: nobody is told.

    Args:
        text: Text for the log, which the client does not hear.
    """

    def __init__(self, text: str) -> None:
        super().__init__(400, text, close=True)


class DeadlineExpired(ImageioError):
    """The event that was awaited did not happen before its deadline."""


class ClientTimeout(PeerTimeout):
    """The client, not storage, stayed silent past its timeout."""
