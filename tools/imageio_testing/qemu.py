# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Disk images with known content, and NBD servers that serve them.

make_image(path, "qcow2", 1 * GiB, [Fill(0, 1 * MiB, 0x55)])
with qemu.nbd.Server(path, "qcow2") as server: ...      # ovirt_imageio.common.qemu
with nbdkit("memory", "1G", "--filter=delay", "rdelay=10ms") as url: ...
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from typing import TYPE_CHECKING, NamedTuple, Union

import pytest

from ovirt_imageio.common import nbd
from ovirt_imageio.common.qemu import img

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Path = Union[str, "os.PathLike[str]"]

KiB = 1 << 10
MiB = 1 << 20
GiB = 1 << 30

START_TIMEOUT = 30.0
STOP_TIMEOUT = 10.0


def needs(*commands: str) -> pytest.MarkDecorator:
    """Mark a test, class or module that is skipped where one of `commands` is not installed."""
    absent = [command for command in commands if shutil.which(command) is None]
    return pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)}")


needs_qemu = needs("qemu-img", "qemu-nbd", "qemu-io")
needs_nbdkit = needs("nbdkit")


class Fill(NamedTuple):
    """A range of an image, in bytes, and the value of each byte in it.

    The value 0 writes zeroes by deallocating, as a guest's discard would.
    """

    offset: int
    length: int
    value: int


class Backing(NamedTuple):
    """The image below another."""

    path: Path
    fmt: str


def make_image(
    path: Path,
    fmt: str,
    size: int,
    fills: Iterable[Fill] = (),
    *,
    backing: Backing | None = None,
) -> None:
    """Make an image of `size` bytes that reads as zeroes, or as `backing`, but for `fills`.

    A raw image needs no qemu.

    Raises:
        ImageioError: qemu-img is not there, or failed.
        ValueError: a raw image with a backing.
    """
    if fmt == "raw":
        if backing:
            raise ValueError(f"a raw image has no backing: {backing}")
        with open(path, "wb") as f:
            f.truncate(size)
    else:
        img.create(
            os.fspath(path),
            fmt,
            size=size,
            backing_file=os.path.abspath(backing.path) if backing else None,
            backing_format=backing.fmt if backing else None,
        )
    fill_image(path, fmt, fills)


def fill_image(path: Path, fmt: str, fills: Iterable[Fill]) -> None:
    """Change ranges of an image that no server has open.

    Raises:
        subprocess.CalledProcessError: qemu-io failed; its output is in the error.
    """
    if fmt == "raw":
        with open(path, "r+b") as f:
            for fill in fills:
                f.seek(fill.offset)
                f.write(bytes([fill.value]) * fill.length)
        return
    commands: list[str] = []
    for offset, length, value in fills:
        how = f"write -P {value}" if value else "write -z -u"
        commands += ["-c", f"{how} {offset} {length}"]
    if commands:
        subprocess.run(
            ["qemu-io", "-f", fmt, "-d", "unmap", *commands, os.fspath(path)],
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )


def content(size: int, fills: Iterable[Fill] = ()) -> bytearray:
    """Return the content of an image of `make_image` without backing."""
    data = bytearray(size)
    for offset, length, value in fills:
        data[offset : offset + length] = bytes([value]) * length
    return data


@contextlib.contextmanager
def nbdkit(plugin: str, *args: str, tcp: bool = False) -> Iterator[str]:
    """Run nbdkit on a Unix socket and yield the URL of its export, ``nbd:unix:PATH``.

    Args:
        plugin: name of the plugin, like ``memory``.
        args: its parameters, and options of nbdkit like ``--filter=NAME``.
        tcp: on a free port of this machine instead: ``nbd:127.0.0.1:PORT``.

    The socket is handed over listening (nbdkit-service(1), "SOCKET ACTIVATION"), and has served
    one connection. So clients do not wait for a greeting as long as nbdkit may take to start.

    Raises:
        ServerGone: nbdkit ended, for its arguments are wrong.
    """
    with tempfile.TemporaryDirectory(prefix="imageio-") as folder:
        with socket.socket(socket.AF_INET if tcp else socket.AF_UNIX) as listener:
            path = os.path.join(folder, "nbd.sock")
            listener.bind(("127.0.0.1", 0) if tcp else path)
            url = f"nbd:127.0.0.1:{listener.getsockname()[1]}" if tcp else f"nbd:unix:{path}"
            process = _listening(listener, ["nbdkit", "--foreground", plugin, *args])
        try:
            nbd.Client(url, greeting_timeout=START_TIMEOUT).close()
            yield url
        finally:
            _stop(process)


def _listening(listener: socket.socket, command: list[str]) -> subprocess.Popen[bytes]:
    """Start `command` with a bound socket that listens as descriptor 3, see sd_listen_fds(3)."""
    listener.listen(64)
    # By way of standard input: a shell need not know numbers of two digits.
    script = 'exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
    return subprocess.Popen(
        ["/bin/sh", "-c", script, "sh", *command],
        stdin=listener.fileno(),
        stdout=subprocess.DEVNULL,
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
