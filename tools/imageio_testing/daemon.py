# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""A real daemon in a process of its own, for tests, the demonstration and measurements.

    with Daemon(tmp_path) as daemon:
        ticket_id = daemon.add_ticket("file:///disk.raw", size=1 << 30, ops=["read"])
        get(daemon.url + "/images/" + ticket_id, ca_file=daemon.ca_file)

It takes free ports and Unix sockets in a private folder, so any number may run. Readiness
comes over the same socket that systemd would give it: nothing is polled.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ovirt_imageio import admin

from . import settings
from .pki import Pki, make_pki

START_TIMEOUT = 30.0
STOP_TIMEOUT = 60.0

Sections = Mapping[str, Mapping[str, object]]


def public_command() -> list[str] | None:
    """Return the command of a daemon that can do without root after its start.

    The interpreter of a developer often lies in a home folder that nobody else may
    enter; then the system's stands in, with the same sources. None if there is neither, or
    what is tested is installed wheels.
    """
    if _anyone_may_enter(os.path.dirname(os.__file__)):
        return [sys.executable, "-m", "ovirt_imageio.daemon"]
    python = "/usr/bin/python3"
    check = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 9))"]
    if not os.path.exists(python) or subprocess.run(check, check=False).returncode:
        return None
    import ovirt_imageio

    folders = [os.path.dirname(path) for path in ovirt_imageio.__path__]
    # Installed wheels lie beside packages that are made for this interpreter alone.
    if any(os.path.basename(folder) == "site-packages" for folder in folders):
        return None
    return ["/usr/bin/env", f"PYTHONPATH={':'.join(folders)}", python, "-m", "ovirt_imageio.daemon"]


def _anyone_may_enter(folder: str) -> bool:
    path = Path(folder).resolve()
    return all(parent.stat().st_mode & 0o001 for parent in (path, *path.parents))


class DaemonFailed(Exception):
    """The daemon did not start, or did not end cleanly. Its text is what the daemon wrote."""


class Daemon:
    """Starts a daemon on entering the context; stops it and looks at its end on leaving.

    Args:
        folder: where its configuration, keys and log are written.
        tls: serve HTTPS, with keys made for it unless `pki` gives some.
        pki: keys to use.
        config: further sections and keys; they win over those of this helper.
        args: further arguments of the command.
        command: what to run in place of this interpreter's module.
        level: of the log, which goes to standard error.
        user: run as this uid and gid, which drops all privileges first.

    Attributes:
        url: of the remote service, `https://localhost:PORT`.
        port: of the remote service.
        local_socket, control_socket: paths of the Unix sockets.
        ca_file: verifies `url`; None without TLS.
        conf_dir: for `-c` of either command.
        state: what it told systemd when it was ready: where its services listen.
        pid: of the process.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        tls: bool = True,
        pki: Pki | None = None,
        config: Sections | None = None,
        args: Sequence[str] = (),
        command: Sequence[str] = (sys.executable, "-m", "ovirt_imageio.daemon"),
        level: str = "INFO",
        user: tuple[int, int] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.conf_dir = str(self.folder / "daemon")
        self.ca_file: str | None = None
        self.port = 0
        self.state = ""
        self._tls = tls
        self._pki = pki
        self._extra = config or {}
        self._command = [*command, "-c", self.conf_dir, *args]
        self._level = level
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None
        self._stack = contextlib.ExitStack()

    # Life.

    def __enter__(self) -> Daemon:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: types.TracebackType | None,
    ) -> None:
        if exc is None:
            self.stop()
        else:
            self.kill()

    def start(self) -> None:
        """Start the daemon and wait until it serves.

        Raises:
            DaemonFailed: it ended, or was not ready in time.
        """
        # Socket addresses are limited to 107 bytes, folders of tests are often longer.
        sockets = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="io-"))
        if self._user:
            os.chown(sockets, *self._user)
        self.local_socket = os.path.join(sockets, "local")
        self.control_socket = os.path.join(sockets, "control")
        self._write_config(sockets)
        notify = self._stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        try:
            notify.bind(os.path.join(sockets, "notify"))
            os.chmod(os.path.join(sockets, "notify"), 0o777)
            self._spawn(os.path.join(sockets, "notify"))
            self._wait_ready(notify)
        except BaseException:
            self.kill()
            raise

    def stop(self, number: int | None = signal.SIGTERM) -> None:
        """Stop the daemon with a signal and check that it ended as it should.

        Args:
            number: of the signal; None if it was sent already.

        Raises:
            DaemonFailed: it had to be killed, or left a status, a traceback or a socket.
        """
        if self._process is None:
            return
        if number is not None:
            self._process.send_signal(number)
        try:
            status = self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise DaemonFailed(f"did not stop in {STOP_TIMEOUT:g} seconds:\n{self.log}") from None
        left = [name for name in (self.local_socket, self.control_socket) if os.path.exists(name)]
        self._release()
        if status != 0 or left or "Traceback" in self.log:
            raise DaemonFailed(f"status {status}, sockets left: {left}\n{self.log}")

    def kill(self) -> None:
        """End the daemon at once, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._release()

    def send_signal(self, number: int) -> None:
        """Send a signal to the daemon."""
        self._running().send_signal(number)

    def wait(self, timeout: float = STOP_TIMEOUT) -> int:
        """Wait for the daemon's end; returns its status."""
        return self._running().wait(timeout)

    # Use.

    @property
    def url(self) -> str:
        """Of the remote service, without a path."""
        return f"{'https' if self._tls else 'http'}://localhost:{self.port}"

    @property
    def pid(self) -> int:
        """Of the daemon's process."""
        return self._running().pid

    @property
    def log(self) -> str:
        """All that the daemon wrote to standard error, its log included."""
        return (self.folder / "daemon.log").read_text()

    def wait_for_log(self, text: str) -> str:
        """Wait until the daemon has logged a text, and return its log. A thread of its own writes it.

        Raises:
            AssertionError: It has not after START_TIMEOUT.
        """
        deadline = time.monotonic() + START_TIMEOUT
        while text not in (log := self.log):
            assert time.monotonic() < deadline, f"{text!r} is not in the log:\n{log}"
            time.sleep(0.005)
        return log

    def admin(self) -> admin.Client:
        """Return a client of the control service; close it after use."""
        return admin.Client(admin.load_config(self.conf_dir))

    def add_ticket(
        self,
        url: str,
        *,
        size: int,
        ops: Sequence[str] = ("read", "write"),
        timeout: int = 300,
        ticket_id: str | None = None,
        **keys: Any,
    ) -> str:
        """Add a ticket and return its id, by default a new one. `keys`: any further keys."""
        ticket_id = ticket_id or str(uuid.uuid4())
        ticket = {"uuid": ticket_id, "size": size, "url": url, "timeout": timeout}
        with self.admin() as client:
            client.add_ticket({**ticket, "ops": list(ops), **keys})
        return ticket_id

    def ticket(self, ticket_id: str) -> dict[str, Any]:
        """Return the state of a ticket."""
        with self.admin() as client:
            return client.get_ticket(ticket_id)

    def remove_ticket(self, ticket_id: str) -> None:
        """Cancel and remove a ticket."""
        with self.admin() as client:
            client.del_ticket(ticket_id)

    # Inside.

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the daemon is not running")
        return self._process

    def _write_config(self, sockets: str) -> None:
        sections: dict[str, dict[str, object]] = {
            "daemon": {"run_dir": sockets, "drop_privileges": False},
            "tls": {"enable": self._tls},
            "remote": {"port": 0},
            "local": {"socket": self.local_socket},
            "control": {"socket": self.control_socket},
            "profile": {"filename": self.folder / "profile"},
            "handlers": {"keys": "stderr"},
            "logger_root": {"level": self._level, "handlers": "stderr"},
        }
        if self._tls:
            pki = self._pki or make_pki(self.folder)
            self.ca_file = pki.ca_file
            sections["tls"].update(key_file=pki.key_file, cert_file=pki.cert_file)
        for more in (settings.from_environment(), self._extra):
            for section, keys in more.items():
                sections.setdefault(section, {}).update(keys)
        lines = []
        for section, values in sections.items():
            lines.append(f"[{section}]")
            lines += [f"{key} = {_text(value)}" for key, value in values.items()]
        # The name sorts after whatever an installed package has in its own folder.
        path = Path(self.conf_dir, "conf.d", "99-test.conf")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")

    def _spawn(self, notify: str) -> None:
        environ = {**os.environ, "NOTIFY_SOCKET": notify}
        identity: dict[str, Any] = {}
        if self._user:
            identity = {"user": self._user[0], "group": self._user[1], "extra_groups": []}
        with open(self.folder / "daemon.log", "wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                **identity,
            )

    def _wait_ready(self, notify: socket.socket) -> None:
        """Wait for the daemon's word, or its end."""
        pidfd = os.pidfd_open(self.pid)
        try:
            poll = select.poll()
            poll.register(notify, select.POLLIN)
            poll.register(pidfd, select.POLLIN)
            ready = [fd for fd, _ in poll.poll(START_TIMEOUT * 1000)]
        finally:
            os.close(pidfd)
        if notify.fileno() not in ready:
            raise DaemonFailed(f"did not get ready:\n{self.log}")
        state = notify.recv(4096).decode()
        match = re.search(r"remote on '.*?:(\d+)'", state)
        if not match:
            raise DaemonFailed(f"said {json.dumps(state)}, not where it listens:\n{self.log}")
        self.port = int(match[1])
        self.state = state

    def _release(self) -> None:
        self._process = None
        self._stack.close()


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).replace("\0", "\\u0000")
