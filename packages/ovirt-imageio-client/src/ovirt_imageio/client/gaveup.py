# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The end of a transfer whose failures did not pass.

A program written for 2.x has no repeated attempts, and catches what ended the first one. So
the error is of that kind as well: a `ConnectionError`, a `socket.timeout`, another `OSError`,
or one with the status of the last answer.
"""

from __future__ import annotations

import socket

from ovirt_imageio.common.errors import AlsoOSError, ConnectionTimeout, PeerGone, TransferError


class GaveUp(TransferError):
    """All attempts failed for a reason that may pass.

    Args:
        message: All of it.
        cause: The last failure.

    Attributes:
        status: Status code of the last answer, None if there was none.
    """

    def __init__(self, message: str, *, cause: BaseException | None = None) -> None:
        super().__init__(message)
        self.status: int | None = getattr(cause, "status", None)

    @property
    def code(self) -> int | None:
        """The status, as programs for 2.x call it."""
        return self.status


class _OSGaveUp(AlsoOSError, GaveUp):
    def __init__(self, message: str, *, cause: BaseException | None = None) -> None:
        AlsoOSError.__init__(self, message, cause=cause)
        self.status = None


class GaveUpConnecting(_OSGaveUp, ConnectionRefusedError):
    """No server listened any more."""


class GaveUpReconnecting(_OSGaveUp, ConnectionResetError):
    """The connection broke again and again."""


class GaveUpWaiting(_OSGaveUp, socket.timeout):
    """The server was silent again and again."""


class GaveUpReaching(_OSGaveUp):
    """The server could not be reached any more."""


_KINDS: tuple[tuple[type[BaseException], type[GaveUp]], ...] = (
    (ConnectionRefusedError, GaveUpConnecting),
    (ConnectionError, GaveUpReconnecting),
    (PeerGone, GaveUpReconnecting),
    (ConnectionTimeout, GaveUpWaiting),
    (socket.timeout, GaveUpWaiting),
    (OSError, GaveUpReaching),
)


def gave_up(message: str, cause: BaseException) -> GaveUp:
    """Return the error for failures that did not pass, of a kind with the last one."""
    for kind, result in _KINDS:
        if isinstance(cause, kind):
            return result(message, cause=cause)
    return GaveUp(message, cause=cause)
