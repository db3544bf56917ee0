# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""qemu-img as functions. See qemu-img(1)."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import tempfile
import threading
from typing import IO, Any, Callable, Sequence

from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.errors import AlsoOSError, ImageioError
from ovirt_imageio.common.qemu import image
from ovirt_imageio.common.qemu.findings import CheckReport, Findings

log = logging.getLogger(__name__)

PROGRAM = "qemu-img"

_LOOK, _KILL_TIMEOUT = 0.2, 0.5
"""Seconds between two looks if the caller was cancelled, and for a program to end that was killed."""


class QemuImgError(ImageioError):
    """qemu-img failed, or is not installed. The text is what it said."""


class QemuImgFailed(QemuImgError, subprocess.CalledProcessError):
    """qemu-img ended with another status than 0, which programs for 2.x catch as `subprocess.CalledProcessError`.

    Attributes:
        returncode: Its status; the negative number of a signal that ended it.
        cmd: The program and its arguments.
        output, stderr: Its output; the text of the error has the part that matters.
    """

    def __init__(self, message: str, done: subprocess.CompletedProcess[str]) -> None:
        Exception.__init__(self, message)
        self.returncode = done.returncode
        self.cmd = [PROGRAM, *done.args]
        self.output, self.stderr = done.stdout, done.stderr

    def __str__(self) -> str:
        return str(self.args[0])


class NoQemuImg(QemuImgError, AlsoOSError, FileNotFoundError):
    """qemu-img is not installed."""


def info(
    filename: str,
    *,
    fmt: str | None = None,
    offset: int | None = None,
    size: int | None = None,
    cancel: Cancel | None = None,
    options: image.Options = (),
) -> dict[str, Any]:
    """Describe an image.

    Args:
        filename: Path of the image.
        fmt: Format; None lets qemu look at the content.
        offset: Where the image begins in the file.
        size: Bytes of the image there.
        cancel: Ends qemu-img.
        options: Further options of the format driver.

    Returns:
        Output of `qemu-img info --output json`: `virtual-size` in bytes, `format`, maybe
        `backing-filename` and more.

    Raises:
        QemuImgError: It is no such image.
    """
    command = ["info", "--output", "json", "--force-share"]
    if fmt is None:
        command.append(_probed(filename, offset, size))
    else:
        node = image.reference(filename, fmt, offset=offset, size=size, backing_chain=False, options=options)
        command.append(node)
    result: dict[str, Any] = json.loads(_run(command, cancel))
    return result


def create(
    filename: str,
    fmt: str,
    *,
    size: int | None = None,
    backing_file: str | None = None,
    backing_format: str | None = None,
    preallocation: str | None = None,
    cluster_size: int | None = None,
    cancel: Cancel | None = None,
) -> None:
    """Create an image.

    Args:
        filename: Path of the new image; an existing file is overwritten.
        fmt: Format.
        size: Bytes that a guest sees; None takes those of the backing file.
        backing_file: Path that the image keeps, relative to itself if not absolute.
        backing_format: Format of the backing file, never guessed.
        preallocation: `off`, `metadata`, `falloc` or `full`.
        cluster_size: Bytes that the image allocates at a time.
        cancel: Ends qemu-img.

    Raises:
        ValueError: A backing file without its format.
        QemuImgError: qemu-img failed.
    """
    command = ["create", "-q", "-f", fmt]
    if preallocation:
        command += ["-o", f"preallocation={preallocation}"]
    if cluster_size:
        command += ["-o", f"cluster_size={cluster_size}"]
    if backing_file is not None:
        if not backing_format:
            raise ValueError(f"backing file {backing_file!r} needs its format")
        command += ["-b", image.plain(backing_file), "-F", backing_format]
    command.append(os.path.abspath(filename))
    if size is not None:
        command.append(str(size))
    _run(command, cancel)


def measure(
    filename: str,
    dst_fmt: str,
    *,
    fmt: str | None = None,
    offset: int | None = None,
    size: int | None = None,
    backing_chain: bool = True,
    backing: dict[str, Any] | None = None,
    cancel: Cancel | None = None,
    options: image.Options = (),
) -> dict[str, Any]:
    """Tell how much room an image needs in another format.

    Args:
        filename: Path of the image.
        dst_fmt: The other format.
        fmt: Format; None lets qemu look at the content, and open what that names.
        offset: Where the image begins in the file.
        size: Bytes of the image there.
        backing_chain: Count what the backing chain holds; else what the image itself does.
        backing: Node of the backing file; None lets qemu open what the image names.
        cancel: Ends qemu-img.
        options: Further options of the format driver.

    Returns:
        `required` and `fully-allocated`, in bytes, and maybe `bitmaps`.

    Raises:
        QemuImgError: qemu-img failed.
    """
    if fmt is None:
        source = _probed(filename, offset, size)
    else:
        source = image.reference(
            filename,
            fmt,
            offset=offset,
            size=size,
            backing_chain=backing_chain,
            backing=backing,
            options=options,
        )
    command = ["measure", "--force-share", "--output", "json", "-O", dst_fmt, source]
    result: dict[str, Any] = json.loads(_run(command, cancel))
    return result


def measure_size(size: int, dst_fmt: str, *, cancel: Cancel | None = None) -> dict[str, Any]:
    """Tell how much room a new image needs, empty and full.

    Args:
        size: Bytes that a guest sees.
        dst_fmt: Format of the image.
        cancel: Ends qemu-img.

    Returns:
        `required` and `fully-allocated`, in bytes.

    Raises:
        QemuImgError: qemu-img failed.
    """
    out = _run(["measure", "--output", "json", "-O", dst_fmt, "--size", str(size)], cancel)
    result: dict[str, Any] = json.loads(out)
    return result


def convert(
    source: str,
    target: str,
    *,
    fmt: str,
    target_fmt: str,
    compressed: bool = False,
    backing_file: str | None = None,
    backing_format: str | None = None,
) -> None:
    """Copy an image to another format.

    Args:
        source: Path of the image.
        target: Path of the new image; an existing file is overwritten.
        fmt: Format of source.
        target_fmt: Format of target.
        compressed: Compress the clusters of a qcow2 target.
        backing_file: Path that target keeps as its backing; it reads as source's backing does.
        backing_format: Format of the backing file, never guessed.

    Raises:
        ValueError: A backing file without its format.
        QemuImgError: qemu-img failed.
    """
    command = ["convert", "-O", target_fmt]
    if compressed:
        command.append("-c")
    if backing_file is not None:
        if not backing_format:
            raise ValueError(f"backing file {backing_file!r} needs its format")
        command += ["-B", image.plain(backing_file), "-F", backing_format]
    _run([*command, image.reference(source, fmt), os.path.abspath(target)])


def compare(a: str, b: str, *, fmt_a: str, fmt_b: str, strict: bool = False) -> bool:
    """Tell if two images read the same, for a guest.

    Args:
        a: Path of an image.
        b: Path of the other.
        fmt_a: Format of a.
        fmt_b: Format of b.
        strict: Allocation and size must be the same as well.

    Raises:
        QemuImgError: One of them cannot be read.
    """
    command = ["compare", "-q", "--force-share", *(["-s"] if strict else [])]
    done = _start([*command, image.reference(a, fmt_a), image.reference(b, fmt_b)])
    if done.returncode not in (0, 1):
        raise _failed(command, done)
    return done.returncode == 0


def check(
    filename: str,
    *,
    fmt: str,
    offset: int | None = None,
    size: int | None = None,
    options: image.Options = (),
    counts_are_old: bool = False,
    cancel: Cancel | None = None,
) -> CheckReport:
    """Look for what is wrong with the tables of an image; its backing files are not looked at.

    Args:
        filename: Path of the image.
        fmt: Format.
        offset: Where the image begins in the file.
        size: Bytes of the image there.
        options: Further options of the format driver.
        counts_are_old: See `findings.Findings`.
        cancel: Ends qemu-img.

    Raises:
        QemuImgError: It cannot be opened, for example because a qemu writes to it.
    """
    reference = image.reference(filename, fmt, offset=offset, size=size, backing_chain=False, options=options)
    findings = Findings(counts_are_old=counts_are_old)
    args = ["check", "--output", "json", reference]
    with tempfile.TemporaryFile("w+", errors="replace") as out:
        process = _popen(args, cancel, stdout=out)
        # The reader's alone: of a program that does not end, it is never closed.
        lines, process.stderr = process.stderr, None
        reader = threading.Thread(target=_collect, args=(lines, findings, process), name="qemu-img check", daemon=True)
        reader.start()
        try:
            _wait(process, cancel)
            reader.join()
        except BaseException:
            _kill(process, process.wait)
            raise
        out.seek(0)
        summary = out.read()
    said = " ".join(findings.words)
    if not summary and "Could not open" in said:
        done = subprocess.CompletedProcess(args, process.returncode, summary, said)
        raise QemuImgFailed(f"{PROGRAM} check: {image.without_references(said, args)}", done)
    return findings.report(summary, process.returncode)


def map_extents(filename: str, *, fmt: str) -> list[dict[str, Any]]:
    """The allocation of an image, as `qemu-img map --output json` prints it.

    Raises:
        QemuImgError: qemu-img failed.
    """
    out = _run(["map", "--output", "json", "--force-share", image.reference(filename, fmt)])
    result: list[dict[str, Any]] = json.loads(out)
    return result


def add_bitmap(filename: str, name: str) -> None:
    """Add a dirty bitmap to a qcow2 image; from then on it records changes.

    Raises:
        QemuImgError: qemu-img failed.
    """
    _run(["bitmap", "--add", "-f", "qcow2", os.path.abspath(filename), name])


def _probed(filename: str, offset: int | None, size: int | None) -> str:
    """Name an image whose format qemu finds out, but never its protocol."""
    raw = image.node(filename, "raw", offset=offset, size=size)
    file = raw if "offset" in raw else raw["file"]
    return "json:" + json.dumps({"file": file})


def _run(args: Sequence[str], cancel: Cancel | None = None) -> str:
    done = _start(args, cancel)
    if done.returncode:
        raise _failed(args, done)
    return done.stdout


def _start(args: Sequence[str], cancel: Cancel | None = None) -> subprocess.CompletedProcess[str]:
    process = _popen(args, cancel)
    try:
        out, err = _output(process, cancel)
    except BaseException:
        _kill(process, process.communicate)
        raise
    return subprocess.CompletedProcess(args, process.returncode, out, err)


def _popen(args: Sequence[str], cancel: Cancel | None, *, stdout: Any = subprocess.PIPE) -> subprocess.Popen[str]:
    if cancel is not None:
        cancel.check()
    try:
        return subprocess.Popen([PROGRAM, *args], stdout=stdout, stderr=subprocess.PIPE, text=True, errors="replace")
    except FileNotFoundError as e:
        raise NoQemuImg("qemu-img is not installed (Debian: qemu-utils, Fedora and EL: qemu-img)", cause=e) from e


def _collect(lines: IO[str] | None, findings: Findings, process: subprocess.Popen[str]) -> None:
    assert lines is not None
    with lines:
        if not findings.take(lines):
            process.kill()


def _wait(process: subprocess.Popen[str], cancel: Cancel | None) -> None:
    """Wait for the end of a program whose output others read."""
    while True:
        try:
            process.wait(None if cancel is None else _LOOK)
            return
        except subprocess.TimeoutExpired:
            assert cancel is not None
            cancel.check()


def _output(process: subprocess.Popen[str], cancel: Cancel | None) -> tuple[str, str]:
    """Wait for the end of a program, and look now and then if the wait was cancelled."""
    while True:
        try:
            return process.communicate(timeout=None if cancel is None else _LOOK)
        except subprocess.TimeoutExpired:
            assert cancel is not None
            cancel.check()


def _kill(process: subprocess.Popen[str], wait: Callable[..., object]) -> None:
    """End a program, and do not wait for a system call that never returns."""
    process.kill()
    try:
        wait(timeout=_KILL_TIMEOUT)
    except subprocess.TimeoutExpired:
        log.warning("Left behind: %s %d, which does not end though it was killed", PROGRAM, process.pid)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _failed(args: Sequence[str], done: subprocess.CompletedProcess[str]) -> QemuImgError:
    said = image.without_references(done.stderr.strip(), args) or f"exit status {done.returncode}"
    return QemuImgFailed(f"{PROGRAM} {args[0]}: {said.removeprefix('qemu-img: ')}", done)
