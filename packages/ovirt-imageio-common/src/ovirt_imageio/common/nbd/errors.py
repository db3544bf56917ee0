# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""How an NBD server fails, apart from refusing a request.

These errors are told apart from those of the other end of a stream. A daemon between an
HTTP client and an NBD server must not blame one for the other.
"""

from __future__ import annotations

from ovirt_imageio.common import errors
from ovirt_imageio.common.errors import ConnectionTimeout, ProtocolError


class ServerFull(ConnectionTimeout):
    """The server takes no more connections: it accepts, but does not greet."""


class ServerGone(ProtocolError, errors.ServerGone):
    """The server closed the connection while it owed an answer."""


class ServerTimeout(ProtocolError, ConnectionTimeout):
    """The server stayed silent for too long while it owed an answer."""
