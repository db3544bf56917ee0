# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""A host with a daemon of either generation, set up by the drop-ins that its manager writes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from imageio_testing import peer, settings
from imageio_testing.httppeer import HttpPeer, Response
from imageio_testing.pki import Pki

PROGRAMS = Path(__file__).parent / "programs"

START_TIMEOUT = 30.0
STOP_TIMEOUT = 30.0
PROGRAM_TIMEOUT = 100.0

Sections = Mapping[str, Mapping[str, object]]

_READY = {"ours": "Ready in", "2.5.1": "control.service listening"}
_PORTS = {
    "ours": {"remote": r"remote on '.*?:(\d+)'", "control": r"control on '.*?:(\d+)'"},
    "2.5.1": {
        "remote": r"remote\.service listening on \('.*?', (\d+)",
        "control": r"control\.service listening on \('.*?', (\d+)",
    },
}


class HostFailed(Exception):
    """The daemon did not start, or did not end cleanly. Its text is what the daemon wrote."""


@dataclass(frozen=True)
class Generation:
    """A release that programs may meet.

    Attributes:
        name: ``"ours"`` or ``"2.5.1"``.
        python: the interpreter that has it.
    """

    name: str
    python: str

    def command(self, name: str) -> str:
        """Return the path of a command."""
        return str(Path(self.python).with_name(name))

    def run(self, program: str, *args: object, stdin: bytes = b"") -> bytes:
        """Run one of `programs/` with this generation's library; returns its standard output.

        Raises:
            AssertionError: It failed. The text is what it wrote.
        """
        command = [self.python, str(PROGRAMS / f"{program}.py"), *map(str, args)]
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=PROGRAM_TIMEOUT)
        assert done.returncode == 0, (done.stdout[-2000:] + done.stderr).decode()
        return done.stdout


def generation(name: str) -> Generation:
    """Return a generation; skips the test where 2.5.1 cannot be installed."""
    if name == "ours":
        return Generation(name, sys.executable)
    return Generation(name, peer.environment().python)


class Host:
    """A running daemon.

    Args:
        generation: what to run.
        folder: for its configuration and log; it exists.
        pki: keys of its remote service, and the authority that its http backend trusts.
        dropins: files of `conf.d` as a manager of hosts writes them, text by name.
        config: sections that this machine needs beside those; they win.

    Attributes:
        generation: as given.
        cafile: verifies `url`.
        conf_dir: for the option ``-c`` of a command.
        port: of the remote service.
        local: path of the local service's socket.
        control: path of the control service's socket, or its port on localhost.
    """

    def __init__(
        self,
        generation: Generation,
        folder: Path,
        pki: Pki,
        *,
        dropins: Mapping[str, str] | None = None,
        config: Sections | None = None,
    ) -> None:
        self.generation = generation
        self.folder = folder
        self.cafile = pki.ca_file
        self.conf_dir = folder / "imageio"
        self.port = 0
        self.local = ""
        self.control: str | int = ""
        self._pki = pki
        self._dropins = dropins or {}
        self._config = config or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Host:
        # Addresses of sockets are limited to 107 bytes, folders of tests are often longer.
        sockets = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="host-"))
        self.local, self.control = f"{sockets}/local", f"{sockets}/control"
        self._write_config(sockets)
        with open(self.folder / "daemon.log", "wb") as log:
            command = [self.generation.command("ovirt-imageio"), "-c", str(self.conf_dir)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self._wait_ready()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process is not None
        status = self._stop()
        self._stack.close()
        ours = self.generation.name == "ours"
        if kind is None and ours and (status or "Traceback" in self.log):
            raise HostFailed(f"status {status}\n{self.log}")

    @property
    def url(self) -> str:
        """Of the remote service, without a path."""
        return f"https://localhost:{self.port}"

    @property
    def log(self) -> str:
        """All that the daemon wrote."""
        return (self.folder / "daemon.log").read_text()

    def image_url(self, ticket_id: str) -> str:
        """Return the transfer URL that the engine gives to programs."""
        return f"{self.url}/images/{ticket_id}"

    def connect(self) -> HttpPeer:
        """Connect to the remote service."""
        return HttpPeer.tls("localhost", self.port, ca_file=self.cafile)

    def connect_control(self) -> HttpPeer:
        """Connect to the control service."""
        if isinstance(self.control, int):
            return HttpPeer.tcp("localhost", self.control)
        return HttpPeer.unix(self.control)

    def add_ticket(self, url: str, size: int, ops: Sequence[str], **keys: Any) -> str:
        """Add a ticket for a program that has its own from elsewhere; returns its id."""
        document = {"uuid": str(uuid.uuid4()), "size": size, "url": url, "ops": list(ops), "timeout": 300, **keys}
        ticket_id = str(document["uuid"])
        response = self._ask("PUT", f"/tickets/{ticket_id}", json.dumps(document).encode())
        assert response.status == 200, response
        return ticket_id

    def ticket(self, ticket_id: str) -> dict[str, Any]:
        """Return the state of a ticket."""
        document: dict[str, Any] = self._ask("GET", f"/tickets/{ticket_id}").json()
        return document

    def wait(self, ticket_id: str, **state: object) -> dict[str, Any]:
        """Poll a ticket, as the engine's monitor does, until these keys have these values; returns its state."""
        deadline = time.monotonic() + STOP_TIMEOUT
        while not state.items() <= (info := self.ticket(ticket_id)).items():
            assert time.monotonic() < deadline, info
        return info

    def remove_ticket(self, ticket_id: str) -> int:
        """Remove a ticket; returns the status."""
        return self._ask("DELETE", f"/tickets/{ticket_id}").status

    def _ask(self, method: str, target: str, body: bytes | None = None) -> Response:
        with self.connect_control() as control:
            return control.request(method, target, body=body)

    def _write_config(self, sockets: str) -> None:
        sections: dict[str, dict[str, object]] = {
            "daemon": {"run_dir": sockets, "drop_privileges": False, "systemd_enable": False, "poll_interval": 0.1},
            "tls": {"key_file": self._pki.key_file, "cert_file": self._pki.cert_file, "ca_file": self._pki.ca_file},
            "remote": {"port": 0},
            "local": {"socket": self.local},
            "control": {"socket": self.control},
            "handlers": {"keys": "stderr"},
            "logger_root": {"level": "INFO", "handlers": "stderr"},
        }
        extra = [self._config]
        if self.generation.name == "ours":
            extra.insert(0, settings.from_environment())
        for more in extra:
            for section, keys in more.items():
                sections.setdefault(section, {}).update(keys)
        folder = self.conf_dir / "conf.d"
        folder.mkdir(parents=True)
        for name, text in self._dropins.items():
            (folder / name).write_text(text)
        # The name sorts after whatever a manager, or an installed package, has.
        (folder / "99-this-machine.conf").write_text(_ini(sections))

    def _wait_ready(self) -> None:
        assert self._process is not None
        name = self.generation.name
        deadline = time.monotonic() + START_TIMEOUT
        while _READY[name] not in self.log:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise HostFailed(f"did not get ready:\n{self.log}")
            time.sleep(0.005)
        ports = {service: re.search(pattern, self.log) for service, pattern in _PORTS[name].items()}
        assert ports["remote"], self.log
        self.port = int(ports["remote"][1])
        if ports["control"]:
            self.control = int(ports["control"][1])

    def _stop(self) -> int:
        assert self._process is not None
        deadline = time.monotonic() + STOP_TIMEOUT
        while time.monotonic() < deadline:
            self._process.send_signal(signal.SIGTERM)
            # 2.5.1 misses a signal that comes just before it waits for one.
            again = STOP_TIMEOUT if self.generation.name == "ours" else 1.0
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(again)
        self._kill()
        raise HostFailed(f"did not stop in {STOP_TIMEOUT:g} seconds:\n{self.log}")

    def _kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._stack.close()


def qcow2_volume(path: Path, size: int) -> str:
    """Make what vdsm makes for a qcow2 disk on file storage, and return its ticket URL.

    It is some 200 KiB long, and grows while the image is uploaded.
    """
    command = ["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size)]
    subprocess.run(command, check=True, env={**os.environ, "LC_ALL": "C"})
    return f"file://{path}"


def raw_volume(path: Path, size: int, data: bytes = b"") -> str:
    """Make a raw disk on file storage that begins with data, and return its ticket URL."""
    with open(path, "wb") as f:
        f.write(data)
        f.truncate(size)
    return f"file://{path}"


def assert_content(host: Host, volume: Path, data: bytes) -> None:
    """Check that a volume that was smaller has this content.

    2.5.1 writes whole blocks of 4096 bytes, so its volume may end in zeroes.
    """
    content = volume.read_bytes()
    if host.generation.name == "2.5.1":
        assert len(content) in (len(data), -(-len(data) // 4096) * 4096), len(content)
        assert not any(content[len(data) :])
        content = content[: len(data)]
    assert content == data


def _ini(sections: Sections) -> str:
    lines = []
    for section, keys in sections.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {_text(value)}" for key, value in keys.items()]
    return "\n".join(lines) + "\n"


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
