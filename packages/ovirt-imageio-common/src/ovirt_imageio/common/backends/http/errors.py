# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What can go wrong with an image server, beside what `common.errors` names.

    ImageioError
    ├── Unreachable                  no connection could be made: try another address
    │   └── Untrusted                the server's certificate was not accepted
    ├── PeerGone
    │   └── ServerGone               the connection broke: try again
    ├── ConnectionTimeout            the server is silent: try again
    ├── ProtocolError                the server's answer makes no sense
    └── RequestError
        └── Refused                  the server said no, and why
            ├── Forbidden            (AuthorizationError) 403
            └── NotSupported         (UnsupportedOperation) 404 of dirty extents, 405, 501

A plain `PeerGone` is the client of a daemon in proxy role: who is to blame stays clear.
"""

from __future__ import annotations

import errno

from ovirt_imageio.common.errors import (
    AuthorizationError,
    ImageioError,
    RequestError,
    UnsupportedOperation,
)

_ERRNO = {
    400: errno.EINVAL,
    403: errno.EACCES,
    404: errno.ENOENT,
    405: errno.EOPNOTSUPP,
    408: errno.ETIMEDOUT,
    409: errno.EBUSY,
    413: errno.EFBIG,
    416: errno.EINVAL,
    501: errno.EOPNOTSUPP,
    503: errno.EAGAIN,
    507: errno.ENOSPC,
}


class Unreachable(ImageioError):
    """No connection to the server could be made."""


class Untrusted(Unreachable):
    """The server's certificate was not accepted. Another address would hide that."""


class Refused(RequestError):
    """The server refused a request. The connection lives.

    Attributes:
        status: Status code of the response.
        text: What the server said, without the trailing newline.
        errno: What a local file would have said, see errno(3).
    """

    def __init__(self, message: str, *, status: int, text: str) -> None:
        super().__init__(message, errno=_ERRNO.get(status, errno.EIO))
        self.status = status
        self.text = text


class Forbidden(Refused, AuthorizationError):
    """The ticket is missing or expired, or does not allow this."""


class NotSupported(Refused, UnsupportedOperation):
    """The server, or the storage behind it, cannot do this."""


def refusal(what: str, status: int, reason: str, text: str) -> Refused:
    """Return the error that a response means.

    Args:
        what: The request, to begin the message with.
        status: Status code.
        reason: Reason phrase, used where there is no text.
        text: Body of the response.
    """
    text = text.strip()
    message = f"{what}: the server answered {status} {reason}"
    if text and text != reason:
        message += f": {text}"
    kind = {403: Forbidden, 405: NotSupported, 501: NotSupported}.get(status, Refused)
    return kind(message, status=status, text=text)
