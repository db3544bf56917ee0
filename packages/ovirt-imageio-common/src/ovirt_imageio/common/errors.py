# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors, told apart by whose fault they are.

A caller's mistake is a `ValueError`, and an `OSError` of storage passes unchanged;
everything else descends from `ImageioError`.
"""

from __future__ import annotations

import os
from types import TracebackType

_SHOWN = 100  # characters of a value that a message repeats


def shown(text: str) -> str:
    """Quote a text for a message: in one line, and cut off where it is long."""
    quoted = repr(text[: _SHOWN + 1])
    return quoted if len(quoted) <= _SHOWN else quoted[:_SHOWN] + "…"


class ImageioError(Exception):
    """Root of the errors of this project. All of them can be pickled and copied."""

    def __reduce__(self) -> tuple[object, ...]:
        """Say how to make the same error again, whatever arguments its class takes."""
        return _again, (type(self), self.args), self.__dict__


def _again(kind: type[ImageioError], args: tuple[object, ...]) -> ImageioError:
    base: type[Exception] = OSError if issubclass(kind, OSError) else Exception
    error = kind.__new__(kind)
    base.__init__(error, *args)
    return error


class AlsoOSError(ImageioError, OSError):
    """An error that is an `OSError` as well.

    Args:
        message: All of it.
        cause: The error of the system, whose `errno` this one gets.

    Attributes:
        errno: See errno(3); None where the system told none.
        strerror: The message.
    """

    def __init__(self, message: str, *, cause: BaseException | None = None) -> None:
        OSError.__init__(self, getattr(cause, "errno", None), message)

    def __str__(self) -> str:
        return str(self.strerror)


class ProtocolError(ImageioError):
    """The peer broke the rules of its protocol. The connection is dead."""


class RequestError(ImageioError):
    """The peer refused a request. The connection lives.

    Attributes:
        errno: Error number of the refusal, see errno(3).
    """

    def __init__(self, message: str, *, errno: int) -> None:
        super().__init__(message)
        self.errno = errno

    @property
    def strerror(self) -> str:
        """The system's words for errno."""
        return os.strerror(self.errno)


class OutOfRange(ImageioError, ValueError):
    """A range is not inside the image: the caller's mistake, or the image is not what it was."""


class UnsupportedOperation(ImageioError):
    """The peer or the storage cannot do this at all.

    Attributes:
        text: The reason in the peer's own words; empty if there are none.
    """

    text: str = ""


class ReadOnlyStorage(UnsupportedOperation):
    """The storage was to be opened for writing, and can only be read."""


class AuthorizationError(ImageioError):
    """The ticket is missing or expired, or does not allow this."""


class TicketError(ImageioError):
    """A ticket document is not valid."""


class TransferError(ImageioError):
    """A transfer could not be completed."""


class OperationCancelled(ImageioError):
    """The operation was cancelled from outside."""


class PeerGone(ImageioError):
    """The other end of a stream went away before its end."""


class ServerGone(PeerGone):
    """A server of storage went away: not the client that its data are for."""


class ConnectionTimeout(ImageioError):
    """The other end was silent for longer than allowed."""


class PeerTimeout(ConnectionTimeout):
    """The other end of a stream was silent: the client, not storage."""


class Naming:
    """While it is entered, an error of the system gets the name of a file, which system calls leave out.

    Args:
        path: Of the file.
    """

    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # An error of the other end of a stream is no error of the file.
        if isinstance(error, OSError) and not isinstance(error, ImageioError) and error.filename is None:
            error.filename = self._path
