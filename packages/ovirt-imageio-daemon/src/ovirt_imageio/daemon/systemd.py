# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Tell systemd how the daemon does: sd_notify(3) by a plain socket, no dependency."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

log = logging.getLogger(__name__)


class Notifier:
    """Sends states to the manager that started this process, if it asked for them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        self.watchdog_interval = _watchdog_interval(environ)

    def ready(self, status: str) -> None:
        """Report that requests are served."""
        self._send(f"READY=1\nSTATUS={status}\nMAINPID={os.getpid()}")

    def stopping(self) -> None:
        """Report that the daemon finishes what runs."""
        self._send("STOPPING=1\nSTATUS=Stopping")

    def alive(self) -> None:
        """Feed the watchdog; to be called by the loop, at least every `watchdog_interval`."""
        self._send("WATCHDOG=1")

    def _send(self, state: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                sock.sendto(state.encode(), self._address)
        except OSError as e:
            # Not worth ending a transfer: systemd itself acts when it hears nothing.
            log.warning("Cannot notify systemd at %r: %s", self._address, e)


def _watchdog_interval(environ: Mapping[str, str]) -> float | None:
    """Half of the time systemd waits, in seconds (sd_watchdog_enabled(3)); None if it does not."""
    usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0:
        return None
    if pid and pid != str(os.getpid()):
        return None
    return int(usec) / 2e6
