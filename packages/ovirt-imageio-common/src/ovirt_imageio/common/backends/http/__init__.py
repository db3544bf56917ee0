# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Images of other daemons. The only room that knows requests.

backend ─► origin ─► channel ─► adapters ─► connections ─► heads, streams
   │                                              ▲
   └─► peers, listing                      requests
"""

from .backend import HttpBackend
from .errors import (
    ConnectionLost,
    Forbidden,
    HandshakeBroken,
    NoGreeting,
    NotListening,
    NoTls,
    NotSupported,
    Refused,
    ServerSilent,
    UnknownHost,
    Unreachable,
    Untrusted,
    WritesLost,
)

__all__ = [
    "ConnectionLost",
    "Forbidden",
    "HandshakeBroken",
    "HttpBackend",
    "NoGreeting",
    "NoTls",
    "NotListening",
    "NotSupported",
    "Refused",
    "ServerSilent",
    "UnknownHost",
    "Unreachable",
    "Untrusted",
    "WritesLost",
]
