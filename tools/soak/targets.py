# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Targets to kill: storage of every kind, and daemons in front of it."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Optional, Protocol

from imageio_testing.daemon import Daemon
from imageio_testing.ports import held_port
from imageio_testing.qemu import make_image
from imageio_testing.volatile import Volatile
from ovirt_imageio.common.qemu.nbd import Server

TICKET = "soak"

_EIO = 5


def as_it_is(url: str) -> str:
    """Spell a URL as storage does."""
    return url


def as_uri(url: str) -> str:
    """Spell the URL of an export on a Unix socket otherwise: as a URI, with a dot in the path."""
    folder, slash, name = url[len("nbd:unix:") :].rpartition("/")
    return f"nbd+unix:///?socket={folder}/.{slash}{name}"


class Storage(Protocol):
    """Storage that can be killed and started again.

    Attributes:
        zeroes_first: It may zero a range before it writes there, see `model`.
    """

    zeroes_first: bool

    @property
    def url(self) -> str:
        """For a ticket."""

    def start(self) -> None:
        """Serve."""

    def kill(self) -> None:
        """End at once; what was not flushed may be lost."""


class File:
    """A raw file: there is no server to kill."""

    zeroes_first = False

    def __init__(self, folder: Path, size: int) -> None:
        make_image(folder / "disk.raw", "raw", size)
        self.url = f"file://{folder / 'disk.raw'}"

    def start(self) -> None:
        """Nothing to do."""

    def kill(self) -> None:
        """Nothing to do."""


class QemuNbd:
    """qemu-nbd, with an image of a format."""

    def __init__(self, folder: Path, size: int, fmt: str, *, cache: str = "writeback") -> None:
        make_image(folder / f"disk.{fmt}", fmt, size)
        self.zeroes_first = fmt == "qcow2"
        self._server = Server(
            str(folder / f"disk.{fmt}"), fmt, socket_path=str(folder / "nbd.sock"), cache=cache, shared=20
        )
        self.url = self._server.url

    def start(self) -> None:
        """Serve."""
        self._server.start()

    def kill(self) -> None:
        """Kill qemu-nbd: a raw image keeps what it wrote, a qcow2 image may lose whole clusters."""
        self._server.stop(kill=True)


class Nbdkit:
    """nbdkit's file plugin, whose flush covers one connection only, or so it says."""

    zeroes_first = False

    def __init__(self, folder: Path, size: int) -> None:
        make_image(folder / "disk.raw", "raw", size)
        socket = folder / "nbd.sock"
        self.url = f"nbd:unix:{socket}"
        self._socket = socket
        self._command = ["nbdkit", "--foreground", "--exit-with-parent", "--filter=multi-conn", "--unix", str(socket)]
        self._command += ["--pidfile", str(folder / "pid"), "file", str(folder / "disk.raw")]
        self._command += ["multi-conn-mode=disable"]
        self._process: Optional[subprocess.Popen[bytes]] = None

    def start(self) -> None:
        """Serve; requests that come too early fail, as those to a dead server."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        """Kill nbdkit."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._socket.unlink(missing_ok=True)


class Forgetful:
    """The server of the tests that loses what no flush covers, as a host without power."""

    zeroes_first = False

    def __init__(self, size: int, *, multi_conn: bool, rng: random.Random) -> None:
        self._server = Volatile(size, multi_conn=multi_conn)
        self._server.__enter__()
        self._rng = rng

    @property
    def url(self) -> str:
        """For a ticket."""
        return self._server.url

    def start(self) -> None:
        """It serves already."""

    def refuse_flush(self) -> None:
        """Answer the next flush with an error, and forget that it should have written anything: as a page cache."""
        self._server.flush_errors = [_EIO]

    def kill(self) -> None:
        """Lose all, or a part of what no flush covers."""
        self._server.flush_errors = []
        chance = self._rng.choice([0.0, 0.5])
        self._server.crash(lambda: self._rng.random() < chance)

    def close(self) -> None:
        """End."""
        self._server.__exit__(None, None, None)


class Target:
    """Storage, and the daemons on the way to it.

    Args:
        name: Of the row in the report.
        storage: Keeps the data.
        daemons: The way to it: the last one talks to storage, those before are its proxies.
        size: Bytes.
        more: Faults of its own, which come more often. The fault `origin` ends the last daemon and storage, and
            brings both back behind a proxy whose ticket lives on. The fault `refusal` lets storage answer a flush
            with an error.
        spellings: Spell the URL of storage, for a ticket each.

    Attributes:
        faults: Names of what can be killed, `storage` where that is a server.
        more: As given.
        epoch: Counts the lives of the tickets.
    """

    def __init__(
        self,
        name: str,
        storage: Storage,
        daemons: list[Daemon],
        size: int,
        *,
        more: Sequence[str] = (),
        spellings: Sequence[Callable[[str], str]] = (as_it_is,),
    ) -> None:
        self.name = name
        self.storage = storage
        self.daemons = daemons
        self.size = size
        self.epoch = 0
        self._tickets = {f"{TICKET}-{n}" if n else TICKET: spell for n, spell in enumerate(spellings)}
        ways = ["daemon"] if len(daemons) == 1 else ["proxy", "daemon"]
        self.faults = ways + ([] if isinstance(storage, File) else ["storage"])
        self.more = list(more)

    @property
    def address(self) -> str:
        """Of the Unix socket where clients connect."""
        return self.daemons[0].local_socket

    @property
    def ticket_count(self) -> int:
        """Tickets of the storage."""
        return len(self._tickets)

    def ticket(self, number: int) -> str:
        """Return the ticket of a client."""
        return list(self._tickets)[number % len(self._tickets)]

    def add_ticket(self) -> None:
        """Begin a new life of the tickets, everywhere."""
        self.epoch += 1
        self._each_ticket(self._renew)

    def replace_ticket(self) -> None:
        """Put the same tickets again, which cancels requests that run. An owed flush stays owed."""
        self._each_ticket(self._put)

    def kill(self, fault: str) -> None:
        """Kill something and start it again; what needs a new ticket gets it."""
        if fault == "refusal":
            assert isinstance(self.storage, Forgetful)
            self.storage.refuse_flush()
            return
        if fault == "storage":
            self.storage.kill()
            self.storage.start()
            return
        daemon = self.daemons[0 if fault == "proxy" else -1]
        daemon.kill()
        if fault == "origin":
            self.storage.kill()
            self.storage.start()
            daemon.start()
            for ticket, spell in self._tickets.items():
                self._put(daemon, ticket, spell(self.storage.url))
            return
        daemon.start()
        self.add_ticket()

    def _each_ticket(self, do: Callable[[Daemon, str, str], None]) -> None:
        for ticket, spell in self._tickets.items():
            url = spell(self.storage.url)
            for daemon in reversed(self.daemons):
                do(daemon, ticket, url)
                url = f"http://localhost:{daemon.port}/images/{ticket}"

    def _renew(self, daemon: Daemon, ticket: str, url: str) -> None:
        with contextlib.suppress(Exception):
            daemon.remove_ticket(ticket)
        self._put(daemon, ticket, url)

    def _put(self, daemon: Daemon, ticket: str, url: str) -> None:
        daemon.add_ticket(url, size=self.size, ticket_id=ticket)


class Targets:
    """All of them, with what they share. A context manager.

    Args:
        folder: For images, sockets and configuration; its path has to be short.
        size: Bytes of each image.
        rng: Decides which writes forgetful storage forgets.
        names: Which are wanted; None for all that this machine can run.

    Attributes:
        skipped: Those that this machine cannot run, and why.
    """

    def __init__(self, folder: Path, size: int, rng: random.Random, names: Optional[list[str]] = None) -> None:
        self._folder = folder
        self._size = size
        self._rng = rng
        self._names = names
        self._stack = contextlib.ExitStack()
        self.skipped: dict[str, str] = {}

    def __enter__(self) -> list[Target]:
        try:
            return self._start()
        except BaseException:
            self._stack.close()
            raise

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _start(self) -> list[Target]:
        daemon = self._daemon("daemon")
        plain: dict[str, dict[str, object]] = {"daemon": {"loop_nbd": False, "splice": False, "max_connections": 3}}
        workers = self._daemon("workers", plain)
        proxy = self._daemon("proxy")
        # A proxy finds its origin again where that was.
        port = self._stack.enter_context(held_port())
        origin = self._daemon("origin", {"remote": {"host": "127.0.0.1", "port": port}})
        size = self._size
        rows: list[tuple[str, str, Callable[[Path], Storage], list[Daemon]]] = [
            ("file", "", lambda folder: File(folder, size), [daemon]),
            ("nbd-raw", "qemu-nbd", lambda folder: QemuNbd(folder, size, "raw"), [daemon]),
            ("nbd-qcow2", "qemu-nbd", lambda folder: QemuNbd(folder, size, "qcow2"), [daemon]),
            ("nbd-qcow2-workers", "qemu-nbd", lambda folder: QemuNbd(folder, size, "qcow2"), [workers]),
            ("nbdkit", "nbdkit", lambda folder: Nbdkit(folder, size), [daemon]),
            ("forgetful", "", lambda folder: Forgetful(size, multi_conn=True, rng=self._rng), [daemon]),
            ("forgetful-single", "", lambda folder: Forgetful(size, multi_conn=False, rng=self._rng), [daemon]),
            ("forgetful-workers", "", lambda folder: Forgetful(size, multi_conn=True, rng=self._rng), [workers]),
            ("proxy-file", "", lambda folder: File(folder, size), [proxy, daemon]),
            ("proxy-nbd-qcow2", "qemu-nbd", lambda folder: QemuNbd(folder, size, "qcow2"), [proxy, daemon]),
            ("proxy-forgetful", "", lambda folder: Forgetful(size, multi_conn=False, rng=self._rng), [proxy, daemon]),
            ("proxy-origin", "", lambda folder: Forgetful(size, multi_conn=True, rng=self._rng), [proxy, origin]),
            ("two-tickets", "", lambda folder: Forgetful(size, multi_conn=True, rng=self._rng), [daemon]),
            ("two-tickets-workers", "", lambda folder: Forgetful(size, multi_conn=False, rng=self._rng), [workers]),
        ]
        targets = []
        for name, program, make, daemons in rows:
            if self._names is not None and name not in self._names:
                continue
            if program and shutil.which(program) is None:
                self.skipped[name] = f"{program} is not installed"
                continue
            targets.append(self._target(name, make, daemons))
        return targets

    def _daemon(self, name: str, config: Optional[dict[str, dict[str, object]]] = None) -> Daemon:
        folder = self._folder / name
        folder.mkdir()
        config = {"control": {"remove_timeout": 15}, **(config or {})}
        command = [sys.executable, "-X", "faulthandler", "-m", "ovirt_imageio.daemon"]
        daemon = Daemon(folder, tls=False, config=config, command=command, level="ERROR")
        daemon.start()
        self._stack.callback(daemon.kill)
        return daemon

    def _target(self, name: str, make: Callable[[Path], Storage], daemons: list[Daemon]) -> Target:
        folder = self._folder / name
        folder.mkdir()
        storage = make(folder)
        storage.start()
        self._stack.callback(storage.close if isinstance(storage, Forgetful) else storage.kill)
        more = [fault for word, fault in (("origin", "origin"), ("two-tickets", "refusal")) if word in name]
        spellings = (as_it_is, as_uri) if "two-tickets" in name else (as_it_is,)
        return Target(name, storage, daemons, self._size, more=more, spellings=spellings)
