# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import errno
import pickle
import socket

import pytest

from ovirt_imageio.client.gaveup import GaveUp, gave_up
from ovirt_imageio.common.backends.http import errors
from ovirt_imageio.common.errors import ConnectionTimeout, PeerGone, ServerGone, TransferError

REFUSED = errors.NotListening("nobody", cause=ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"))


@pytest.mark.parametrize(
    ("cause", "kind", "number", "code"),
    [
        (REFUSED, ConnectionRefusedError, errno.ECONNREFUSED, None),
        (errors.ConnectionLost("lost"), ConnectionResetError, None, None),
        (PeerGone("the connection to the peer broke"), ConnectionError, None, None),
        (ServerGone("qemu-nbd is gone"), ConnectionError, None, None),
        (errors.ServerSilent("silent"), socket.timeout, None, None),
        (ConnectionTimeout("silent"), socket.timeout, None, None),
        (errors.UnknownHost("who?", cause=socket.gaierror(-2, "unknown")), OSError, -2, None),
        (errors.refusal("PUT", 503, "Service Unavailable", ""), GaveUp, None, 503),
    ],
)
def test_last_failure_decides_what_catches_it(cause, kind, number, code):
    error = gave_up("cannot copy, gave up", cause)
    assert isinstance(error, kind)
    assert isinstance(error, TransferError)
    assert (getattr(error, "errno", None), error.code) == (number, code)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.code) == ("cannot copy, gave up", code)
