# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator

import pytest

from ovirt_imageio.daemon.systemd import Notifier


@pytest.fixture
def manager() -> Iterator[tuple[socket.socket, str]]:
    """systemd's end: a datagram socket and the value of NOTIFY_SOCKET."""
    with tempfile.TemporaryDirectory(prefix="io-") as folder:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(folder + "/notify")
            sock.settimeout(5)
            yield sock, folder + "/notify"


def test_states_reach_the_manager(manager: tuple[socket.socket, str]) -> None:
    sock, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready("Serving")
    state = sock.recv(1000).decode().splitlines()
    assert state == ["READY=1", "STATUS=Serving", f"MAINPID={os.getpid()}"]
    notifier.alive()
    assert sock.recv(1000) == b"WATCHDOG=1"
    notifier.stopping()
    assert sock.recv(1000).startswith(b"STOPPING=1")


def test_abstract_address_starts_with_at() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0imageio-notify-{os.getpid()}")
        sock.settimeout(5)
        Notifier({"NOTIFY_SOCKET": f"@imageio-notify-{os.getpid()}"}).alive()
        assert sock.recv(1000) == b"WATCHDOG=1"


def test_nothing_happens_without_a_manager() -> None:
    notifier = Notifier({})
    notifier.ready("Serving")
    assert notifier.watchdog_interval is None


def test_manager_that_is_gone_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    Notifier({"NOTIFY_SOCKET": "/no/such/socket"}).alive()
    assert "Cannot notify systemd" in caplog.text


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_watchdog_is_fed_twice_as_often_as_asked(environ: dict[str, str], expected: float | None) -> None:
    assert Notifier(environ).watchdog_interval == expected
