# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors of an image server, beside those that `common.errors` names.

    ImageioError
    ├── Unreachable                  (OSError) no connection could be made: try another address
    │   ├── NotListening             (ConnectionRefusedError)
    │   ├── HandshakeBroken          (ConnectionResetError)
    │   ├── NoGreeting               (socket.timeout)
    │   ├── UnknownHost              (socket.gaierror)
    │   └── NoTls                    (ssl.SSLError)
    │       └── Untrusted            (ssl.SSLCertVerificationError) try no other address
    ├── NoCertificates               (ssl.SSLError, ValueError) of a file of certificates
    ├── PeerGone
    │   ├── SourceEnded              (RuntimeError) of a reader that is uploaded
    │   └── ServerGone
    │       ├── ConnectionLost       (ConnectionResetError) try again
    │       │   └── BodyCut          (RuntimeError)
    │       └── WritesLost           of a flush: write again what was written since the last one
    ├── ConnectionTimeout
    │   └── ServerSilent             (socket.timeout) try again
    ├── ProtocolError                the server's answer makes no sense
    │   └── NotHttp                  (http.client.HTTPException)
    └── RequestError
        └── Refused                  the server said no, and why
            ├── Forbidden            (AuthorizationError) 403
            └── NotSupported         (UnsupportedOperation) 404 of dirty extents, 405, 501

In parentheses: what programs written for 2.x catch. A plain `PeerGone` is the client of a
daemon in proxy role: who is to blame stays clear.
"""

from __future__ import annotations

import errno
import http.client
import json
import socket
import ssl
from typing import TypeVar

from ovirt_imageio.common.errors import (
    AlsoOSError,
    AuthorizationError,
    ConnectionTimeout,
    ImageioError,
    PeerGone,
    ProtocolError,
    RequestError,
    ServerGone,
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


U = TypeVar("U", bound="Unreachable")


class Unreachable(AlsoOSError):
    """No connection to the server could be made."""

    def extended(self: U, text: str) -> U:
        """Return the same error with a longer message."""
        other = type(self)(f"{self}{text}", cause=self)
        other.__dict__.update(self.__dict__)
        return other


class NotListening(Unreachable, ConnectionRefusedError):
    """The server's host is there, and no server listens."""


class HandshakeBroken(Unreachable, ConnectionResetError):
    """The server closed the connection while it was being made."""


class NoGreeting(Unreachable, socket.timeout):
    """The server did not answer in time."""


class UnknownHost(Unreachable, socket.gaierror):
    """The host's name has no address."""


class NoTls(Unreachable, ssl.SSLError):
    """The server speaks no TLS, or none that both ends know.

    Attributes:
        library: As of `ssl.SSLError`.
        reason: As of `ssl.SSLError`.
    """

    def __init__(self, message: str, *, cause: BaseException | None = None) -> None:
        super().__init__(message, cause=cause)
        self.library = getattr(cause, "library", "")
        self.reason = getattr(cause, "reason", "")


class Untrusted(NoTls, ssl.SSLCertVerificationError):
    """The server's certificate was not accepted. Another address would hide that.

    Attributes:
        verify_code: Number of X509_verify_cert_error_string(3).
        verify_message: Its words.
    """

    def __init__(self, message: str, *, cause: BaseException | None = None) -> None:
        super().__init__(message, cause=cause)
        self.verify_code = getattr(cause, "verify_code", 0)
        self.verify_message = getattr(cause, "verify_message", "")


class ConnectionLost(AlsoOSError, ServerGone, ConnectionResetError):
    """The connection to the server broke."""


class BodyCut(ConnectionLost, RuntimeError):
    """The connection to the server broke within the body of a response."""


class WritesLost(ServerGone):
    """Writes since the last flush may be lost: its server, or the ticket there, is another one now."""


class ServerSilent(AlsoOSError, ConnectionTimeout, socket.timeout):
    """The server was silent for longer than allowed."""


class SourceEnded(PeerGone, RuntimeError):
    """The source of an upload ended before its end: the caller's reader is to blame."""


class NoCertificates(AlsoOSError, ssl.SSLError, ValueError):
    """A file that was said to hold certificates holds none."""


class NotHttp(ProtocolError, http.client.HTTPException):
    """The server sent bytes that are no HTTP."""


class Refused(RequestError):
    """The server refused a request. The connection lives.

    Attributes:
        status: Status code of the response.
        text: Words of the server, without the trailing newline.
        errno: Number that a local file would have given, see errno(3).
    """

    def __init__(self, message: str, *, status: int, text: str) -> None:
        super().__init__(message, errno=_ERRNO.get(status, errno.EIO))
        self.status = status
        self.text = text

    @property
    def code(self) -> int:
        """The status, as programs for 2.x call it."""
        return self.status

    @property
    def message(self) -> str:
        """The text, as programs for 2.x call it."""
        return self.text


class Forbidden(Refused, AuthorizationError):
    """The ticket is missing or expired, or does not allow this."""


class NotSupported(Refused, UnsupportedOperation):
    """The server, or the storage behind it, cannot do this."""


def unreachable(what: str, cause: BaseException) -> Unreachable:
    """Return the error that a failure to connect means.

    Args:
        what: The attempt, to begin the message with.
        cause: Error that ended it.
    """
    words = getattr(cause, "strerror", None) or str(cause)
    for kind, result in _KINDS:
        if isinstance(cause, kind):
            return result(f"{what}: {words}", cause=cause)
    return Unreachable(f"{what}: {words}", cause=cause)


_KINDS: tuple[tuple[type[BaseException], type[Unreachable]], ...] = (
    (ConnectionRefusedError, NotListening),
    (ServerGone, HandshakeBroken),
    (ConnectionError, HandshakeBroken),
    (ConnectionTimeout, NoGreeting),
    (socket.timeout, NoGreeting),
    (socket.gaierror, UnknownHost),
)


def not_there(what: str, error: ImageioError) -> NotSupported:
    """Return the error for a 404 of what hangs below an image."""
    return NotSupported(f"the server has no {what}: {error}", status=404, text=getattr(error, "text", ""))


def _words(text: str) -> str:
    """Return the words of an error: other servers say them as {"error": "…"}."""
    if not text.startswith("{"):
        return text
    try:
        error = json.loads(text).get("error")
    except (ValueError, RecursionError):
        return text
    return error if error and isinstance(error, str) else text


def refusal(what: str, status: int, reason: str, text: str) -> Refused:
    """Return the error that a response means.

    Args:
        what: The request, to begin the message with.
        status: Status code.
        reason: Reason phrase, used where there is no text.
        text: Body of the response.
    """
    text = _words(text.strip())
    message = f"{what}: the server answered {status} {reason}"
    if text and text != reason:
        message += f": {text}"
    kind = {403: Forbidden, 405: NotSupported, 501: NotSupported}.get(status, Refused)
    return kind(message, status=status, text=text)
