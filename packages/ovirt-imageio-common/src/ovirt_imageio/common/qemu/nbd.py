# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""qemu-nbd as a context manager. See qemu-nbd(8).

The socket is made and listened on before qemu-nbd starts, and handed to it the way
systemd does (sd_listen_fds(3)). No client ever waits for a file to appear, and a
connection is served as soon as qemu-nbd has opened the image.

The last connection ends qemu-nbd with it. This process keeps one open, so qemu-nbd lives
as long as this process does, and not longer. If it outlived a process that was killed, it
would hold the image's lock for ever, and no other process could continue.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from types import TracebackType
from typing import IO, Any

from ovirt_imageio.common import nbd
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.errors import AlsoOSError, ImageioError, OperationCancelled
from ovirt_imageio.common.qemu import image

log = logging.getLogger(__name__)

PROGRAM = "qemu-nbd"

# The process that LISTEN_PID names must be qemu-nbd, whose id is known after fork only.
# The socket comes as standard input: dash knows no descriptor numbers of two digits.
_HAND_OVER = 'exec 3<&0 </dev/null; LISTEN_PID=$$; export LISTEN_PID; exec "$@"'

_STOP_TIMEOUT = 30.0
_KILL_TIMEOUT = 5.0
_CANCEL_TIMEOUT = 0.5
_LOOK = 0.2
"""Seconds to write out what it holds, to end when it is killed, and to end then if the wait was cancelled. The
last is between two looks if that came to be."""

_LONGEST_FOLDER = 80

_MOST_WORDS = 64 << 10

_FILE_FAILED = re.compile(r"due to: .*?((?:reading from|writing to) file failed.*)")


class QemuNbdError(ImageioError):
    """qemu-nbd could not be started, or failed. The text is what it said."""


class NoQemuNbd(QemuNbdError, AlsoOSError, FileNotFoundError):
    """qemu-nbd is not installed."""


class Server:
    """An image served by qemu-nbd on a Unix socket.

    Args:
        filename: Path of the image.
        fmt: Format, never guessed.
        socket_path: Where to listen; None for a folder of its own.
        private: Only this process connects: the socket loses its name at once, so that a
            process that is killed leaves no folder. Not with `socket_path`.
        read_only: Refuse writing.
        shared: Connections at a time, beside our own.
        export_name: Name of the export.
        cache: `none`, `writeback`, `unsafe`, …
        aio: `threads`, `native` or `io_uring`; None for qemu's default.
        discard: Let trimming reach the image.
        detect_zeroes: `off`, `on` or `unmap`.
        bitmap: Dirty bitmap to offer.
        backing_chain: Let the backing chain show through.
        offset: Where the image begins in the file, for a member of a tar file.
        size: Bytes of the image there.
        backing: Node of the backing file, see `qemu.image`; None takes what the image names.
        cancel: Ends qemu-nbd, and what waits for it.
        options: Further options of the format driver.

    Attributes:
        url: Of the export, for a ticket or for `backends.open`.
        socket_path: Of the Unix socket.
    """

    def __init__(
        self,
        filename: str,
        fmt: str,
        *,
        socket_path: str | None = None,
        private: bool = False,
        read_only: bool = False,
        shared: int = 8,
        export_name: str = "",
        cache: str = "writeback",
        aio: str | None = None,
        discard: bool = True,
        detect_zeroes: str = "off",
        bitmap: str | None = None,
        backing_chain: bool = True,
        offset: int | None = None,
        size: int | None = None,
        backing: dict[str, Any] | None = None,
        cancel: Cancel | None = None,
        options: image.Options = (),
    ) -> None:
        self._cancel = cancel
        self._command = [
            PROGRAM,
            f"--shared={shared + 1}",
            f"--export-name={export_name}",
            f"--cache={cache}",
            f"--discard={'unmap' if discard else 'ignore'}",
            f"--detect-zeroes={detect_zeroes}",
        ]
        if fmt != "raw":
            # In a raw image nothing shows through, and it has no holes.
            self._command.append("--allocation-depth")
        if aio:
            self._command.append(f"--aio={aio}")
        if read_only:
            self._command.append("--read-only")
        if bitmap:
            self._command.append(f"--bitmap={bitmap}")
        self._command.append(
            image.reference(
                filename,
                fmt,
                offset=offset,
                size=size,
                backing_chain=backing_chain,
                backing=backing,
                options=options,
            )
        )
        self._filename = filename
        self._private = private and not socket_path and os.path.exists("/proc/self/fd")
        self._nameless = -1
        self._folder: str | None = None
        self._export_name = export_name
        self._stderr: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper: nbd.Client | None = None
        self.socket_path = socket_path or ""

    @property
    def address(self) -> nbd.Address:
        """Where the export is found."""
        return nbd.unix(self.socket_path, self._export_name)

    @property
    def url(self) -> str:
        """The address as tickets write it."""
        name = f":exportname={self._export_name}" if self._export_name else ""
        return f"nbd:unix:{self.socket_path}{name}"

    @property
    def pid(self) -> int:
        """Process id of qemu-nbd while it runs."""
        if self._process is None:
            raise ValueError("qemu-nbd is not running")
        return self._process.pid

    def start(self) -> None:
        """Start qemu-nbd and wait until it serves the image.

        Raises:
            QemuNbdError: It is not installed, or cannot open the image.
            OSError: The socket cannot be made.
            OperationCancelled: cancel said so.
        """
        if not self.socket_path:
            # The path of a socket may have 107 bytes only, see unix(7).
            roomy = len(os.fsencode(tempfile.gettempdir())) <= _LONGEST_FOLDER
            self._folder = tempfile.mkdtemp(prefix="imageio-", dir=None if roomy else "/tmp")
            self.socket_path = os.path.join(self._folder, "nbd.sock")
        try:
            self._launch()
            self._greet()
        except BaseException:
            self.stop(kill=True)
            raise

    def _launch(self) -> None:
        if not shutil.which(PROGRAM):
            raise NoQemuNbd("qemu-nbd is not installed (Debian: qemu-utils, Fedora and EL: qemu-img)")
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed in stop)
        with socket.socket(socket.AF_UNIX) as listener:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.socket_path)
            listener.bind(self.socket_path)
            listener.listen(64)
            if self._private:
                self._take_name_away()
            self._process = self._spawn(listener.fileno())

    def _take_name_away(self) -> None:
        """Keep the socket open in place of its name: proc(5) leads to it, and to no other."""
        fd = os.open(self.socket_path, os.O_PATH | os.O_CLOEXEC)
        self._remove_name()
        self._nameless = fd
        self.socket_path = f"/proc/self/fd/{fd}"

    def _remove_name(self) -> None:
        if self.socket_path and self._nameless < 0:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.socket_path)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder, self.socket_path = None, ""

    def _spawn(self, fd: int) -> subprocess.Popen[bytes]:
        """Start qemu-nbd with the listening socket `fd` as descriptor 3."""
        return subprocess.Popen(
            ["/bin/sh", "-c", _HAND_OVER, "sh", *self._command],
            stdin=fd,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            env={**os.environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "nbd"},
            # A Control-C is ours to handle: transfers end before their storage does.
            start_new_session=True,
        )

    def _greet(self) -> None:
        """Talk to the server: it answers when the image is open."""
        try:
            self._keeper = nbd.Client(self.address, greeting_timeout=30, cancel=self._cancel)
        except OperationCancelled:
            raise
        except (ImageioError, OSError) as e:
            said = self._said()
            raise QemuNbdError(f"qemu-nbd cannot serve {self._filename}: {said or e}") from e

    def _said(self) -> str:
        if self._process is None or self._stderr is None:
            return ""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        return self.words()

    def words(self) -> str:
        """Return the words of qemu-nbd until now, from its standard error. Any thread may call it."""
        if self._stderr is None:
            return ""
        # By pread: qemu-nbd shares the position, and goes on writing there.
        text = os.pread(self._stderr.fileno(), _MOST_WORDS, 0).decode("utf-8", "replace").strip()
        text = image.without_references(text, self._command)
        return "\n".join(line.removeprefix("qemu-nbd: ") for line in text.splitlines())

    def failure(self) -> str | None:
        """Tell why a connection was lost, in qemu-nbd's words. Any thread may call it.

        Returns:
            None if it runs, and did not say that its file failed: another attempt may help.
        """
        process = self._process
        lines = self.words().splitlines()
        for line in reversed(lines):
            found = _FILE_FAILED.search(line)
            if found:
                return found[1]
        if process is None or process.poll() is None:
            return None
        return lines[-1] if lines else f"it ended with status {process.returncode}"

    def stop(self, *, kill: bool = False) -> None:
        """End qemu-nbd; it writes out what it holds. Idempotent.

        Args:
            kill: End it at once. Writes that were not flushed are lost. Maybe rooms in the
                image that nothing refers to are left, and nothing worse.
        """
        process, self._process = self._process, None
        keeper, self._keeper = self._keeper, None
        if process is not None:
            process.kill() if kill else process.terminate()
        if keeper is not None:
            keeper.close()
        if process is not None:
            self._wait_for(process, killed=kill)
        if self._stderr is not None:
            self._stderr.close()
            self._stderr = None
        self._remove_name()
        if self._nameless >= 0:
            os.close(self._nameless)
            self._nameless, self.socket_path = -1, ""

    def _wait_for(self, process: subprocess.Popen[bytes], *, killed: bool) -> None:
        """Wait for its end, which a kill brings about in time, but for a system call that never returns."""
        deadline = time.monotonic() + (_KILL_TIMEOUT if killed else _STOP_TIMEOUT)
        while True:
            cancelled = self._cancel is not None and self._cancel.cancelled
            if cancelled:
                deadline = min(deadline, time.monotonic() + _CANCEL_TIMEOUT)
            if (cancelled or time.monotonic() >= deadline) and not killed:
                process.kill()
                killed = True
                deadline = time.monotonic() + (_CANCEL_TIMEOUT if cancelled else _KILL_TIMEOUT)
            try:
                process.wait(_LOOK)
                return
            except subprocess.TimeoutExpired:
                if killed and time.monotonic() >= deadline:
                    log.warning("Left behind: qemu-nbd %d, which does not end though it was killed", process.pid)
                    return

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
