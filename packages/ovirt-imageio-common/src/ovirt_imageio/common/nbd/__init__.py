# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The NBD protocol, client side.

The protocol is a pure value (`wire`, `uri`, `handshake`, `replies`, `extents`)
with two drivers: `Client` blocks, `Pipeline` never does.
"""

from __future__ import annotations

from ovirt_imageio.common.nbd.client import Client
from ovirt_imageio.common.nbd.connecting import list_exports
from ovirt_imageio.common.nbd.errors import ServerFull, ServerGone, ServerTimeout
from ovirt_imageio.common.nbd.handshake import Export
from ovirt_imageio.common.nbd.pipeline import Pipeline
from ovirt_imageio.common.nbd.uri import Address, parse, tcp, unix

__all__ = [
    "Address",
    "Client",
    "Export",
    "Pipeline",
    "ServerFull",
    "ServerGone",
    "ServerTimeout",
    "list_exports",
    "parse",
    "tcp",
    "unix",
]
