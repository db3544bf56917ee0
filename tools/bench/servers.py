# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The servers that a row measures: daemons of both implementations, qemu-nbd, nbdcopy."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Mapping, Optional, Sequence

START_TIMEOUT = 20.0


class BenchError(Exception):
    """The measurement could not be made."""


@dataclass(frozen=True)
class Implementation:
    """A Python environment that holds a daemon and a client of the same protocol.

    Attributes:
        name: of its column.
        python: its interpreter.
        prefix: command to run its programs with.
    """

    name: str
    python: str
    prefix: tuple[str, ...] = ()

    def command(self, *args: str) -> list[str]:
        """Return the command of a Python program."""
        return [*self.prefix, self.python, *args]

    @property
    def daemon(self) -> list[str]:
        """The daemon's command."""
        return [*self.prefix, str(Path(self.python).parent / "ovirt-imageio")]

    def unprivileged(self) -> Implementation:
        """The same without capabilities: with the limits of pipes that users have, see pipe(7)."""
        return replace(self, prefix=("setpriv", "--bounding-set=-all", "--inh-caps=-all"))


@dataclass(frozen=True)
class Keys:
    """TLS files of the remote service."""

    ca_file: str
    cert_file: str
    key_file: str


def wait_for(check: Any, what: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until check is true; starting a server is not part of any figure."""
    deadline = time.monotonic() + START_TIMEOUT
    while not check():
        if process.poll() is not None:
            raise BenchError(f"{what} ended with status {process.returncode} instead of starting")
        if time.monotonic() > deadline:
            raise BenchError(f"{what} did not start within {START_TIMEOUT} seconds")
        time.sleep(0.002)


def accepts(path: str) -> bool:
    """Tell if somebody listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as s:
        try:
            s.connect(path)
        except OSError:
            return False
    return True


class Server:
    """A process that is ended by its id when the measurement is over."""

    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """The process id, for machine.usage."""
        return self.process.pid

    def stop(self) -> None:
        """End the process and wait for it."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self: Any) -> Any:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.stop()


class QemuNbd(Server):
    """qemu-nbd over one image. Figures are of the server, not of its start."""

    def __init__(
        self,
        folder: Path,
        image: Path,
        *,
        fmt: str = "raw",
        shared: int = 64,
        cache: str = "writeback",
        read_only: bool = False,
        size: int = 0,
    ) -> None:
        self.size = size
        self.socket = str(folder / f"nbd-{uuid.uuid4().hex[:8]}.sock")
        command = [
            shutil.which("qemu-nbd") or "qemu-nbd",
            "--persistent",
            f"--shared={shared}",
            f"--socket={self.socket}",
            f"--format={fmt}",
            f"--cache={cache}",
            "--aio=native" if cache == "none" else "--aio=threads",
            "--discard=unmap",
            "--allocation-depth",
            "--export-name=",
        ]
        if read_only:
            command.append("--read-only")
        # It complains of each client that leaves without a word.
        self.process = subprocess.Popen([*command, str(image)], stderr=subprocess.DEVNULL)
        wait_for(lambda: os.path.exists(self.socket), "qemu-nbd", self.process)

    @property
    def url(self) -> str:
        """The ticket URL of the export."""
        return f"nbd:unix:{self.socket}"

    def stop(self) -> None:
        """End the process and remove the socket that qemu-nbd leaves."""
        super().stop()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket)


class Daemon(Server):
    """A daemon of either implementation, with all services and its tickets."""

    def __init__(
        self,
        implementation: Implementation,
        folder: Path,
        keys: Keys,
        *,
        local: bool = True,
        options: Optional[Mapping[str, object]] = None,
    ) -> None:
        self.implementation = implementation
        self.options = options or {}
        self.folder = folder / f"{implementation.name}-{uuid.uuid4().hex[:8]}"
        (self.folder / "conf.d").mkdir(parents=True)
        self.local = str(self.folder / "local.sock")
        self.control = str(self.folder / "control.sock")
        self.keys = keys
        self.port = _free_port()
        self.local_enabled = local
        (self.folder / "conf.d" / "50-bench.conf").write_text(self._config())
        with open(self.folder / "daemon.log", "wb") as log:
            start = time.monotonic()
            self.process = subprocess.Popen(
                [*implementation.daemon, "-c", str(self.folder)],
                stderr=log,
                stdout=log,
            )
        wait_for(lambda: accepts(self.control), f"daemon {implementation.name}", self.process)
        self.started_in = time.monotonic() - start

    def _config(self) -> str:
        options = "\n".join(f"{key} = {value}" for key, value in self.options.items())
        return f"""
[daemon]
{options}
run_dir = {self.folder}
drop_privileges = false
systemd_enable = false
inactivity_timeout = 600

[tls]
ca_file =
cert_file = {self.keys.cert_file}
key_file = {self.keys.key_file}

[backend_http]
ca_file = {self.keys.ca_file}

[remote]
host = 127.0.0.1
port = {self.port}

[local]
enable = {str(self.local_enabled).lower()}
socket = {self.local}

[control]
transport = unix
socket = {self.control}

[logger_root]
level = WARNING
handlers = stderr

[handlers]
keys = stderr

[handler_stderr]
class = logging.StreamHandler
level = WARNING
formatter = long
"""

    def ticket(self, url: str, size: int, *, ops: Sequence[str] = ("read", "write"), dirty: bool = False) -> str:
        """Put a ticket in and return its id."""
        ticket_id = str(uuid.uuid4())
        document = {
            "uuid": ticket_id,
            "size": size,
            "ops": list(ops),
            "timeout": 3600,
            "url": url,
            "sparse": True,
            "dirty": dirty,
            "inactivity_timeout": 3600,
        }
        with contextlib.closing(_UnixHTTPConnection(self.control)) as c:
            c.request("PUT", f"/tickets/{ticket_id}", json.dumps(document))
            response = c.getresponse()
            text = response.read()
            if response.status != 200:
                raise BenchError(f"ticket refused: {response.status} {text!r}")
        return ticket_id

    def url(self, ticket_id: str) -> str:
        """The address of an image on the remote service."""
        return f"https://localhost:{self.port}/images/{ticket_id}"


class _UnixHTTPConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as s:
        return int(s.getsockname()[1])


def nbdcopy(source: QemuNbd, target: QemuNbd) -> float:
    """Copy one export to the other and return the seconds until it is on stable storage, as with clients."""
    program = shutil.which("nbdcopy")
    if not program:
        raise BenchError("nbdcopy is not installed (Debian: libnbd-bin, Fedora: libnbd)")
    start = time.monotonic()
    subprocess.run(
        [
            program,
            "--allocated",
            "--flush",
            f"nbd+unix:///?socket={source.socket}",
            f"nbd+unix:///?socket={target.socket}",
        ],
        check=True,
    )
    return time.monotonic() - start
