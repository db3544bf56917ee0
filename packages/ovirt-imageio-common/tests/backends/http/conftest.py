# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

import socket

import pytest

from ovirt_imageio.common.backends.http.streams import Stream

PATIENCE = 20.0


@pytest.fixture
def pair():
    """A stream and the server's end of it."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE)
    with theirs:
        stream = Stream(ours, "the server", PATIENCE)
        yield stream, theirs
        stream.close()
