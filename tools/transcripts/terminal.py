# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A terminal of 80 columns, and what is left on it."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from pathlib import Path
from typing import Mapping

_COLUMNS = 80
_TIMEOUT = 100

# Values that differ from run to run, and their replacements.
_VARIABLE = (
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "0cd81a7e-1f1a-4e3b-9a8f-5b3f7a1f0c52"),
    (re.compile(r"\d+\.\d\d s, [\d.]+ \w+/s"), "0.25 s, 256 MiB/s"),
    (re.compile(r'"(elapsed|seconds)": [\d.e-]+'), r'"\1": 0.25'),
)


class Terminal:
    """Runs lines of shell.

    Args:
        folder: The current folder.
        environ: The environment.
    """

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self._folder = folder
        self._environ = {**environ, "COLUMNS": str(_COLUMNS), "TERM": "dumb", "NO_COLOR": "1"}

    def show(self, line: str, names: Mapping[str, str]) -> str:
        """Run a line and return the prompt, the line and what it leaves on the terminal.

        Args:
            line: Of shell.
            names: Texts of this run, and what to write in their place.
        """
        text = f"$ {line}\n{screen(self._run(line))}"
        for found, name in names.items():
            text = text.replace(found, name).replace(found.partition("//")[2] or found, name.partition("//")[2] or name)
        text = text.replace(f"{self._folder}/", "")
        for pattern, name in _VARIABLE:
            text = pattern.sub(name, text)
        return text

    def _run(self, line: str) -> bytes:
        main, terminal = pty.openpty()
        try:
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, _COLUMNS, 0, 0))
            shell = subprocess.Popen(
                ["/bin/sh", "-c", line],
                cwd=self._folder,
                env=self._environ,
                stdin=terminal,
                stdout=terminal,
                stderr=terminal,
            )
            os.close(terminal)
            terminal = -1
            output = b"".join(iter(lambda: _read(main), b""))
            shell.wait(_TIMEOUT)
            return output
        finally:
            os.close(main)
            if terminal >= 0:
                os.close(terminal)


def _read(main: int) -> bytes:
    """Read what programs wrote; nothing when the last of them has ended."""
    try:
        return os.read(main, 65536)
    except OSError as e:
        if e.errno != errno.EIO:
            raise
        return b""


def screen(output: bytes) -> str:
    """Return what a terminal shows in the end: lines that were drawn over are gone."""
    lines: list[str] = []
    for line in output.decode().replace("\r\n", "\n").rstrip("\n").split("\n"):
        shown = line.rstrip("\r").rpartition("\r")[2]
        lines.append(shown.replace("\x1b[K", "").rstrip())
    return "".join(f"{line}\n" for line in lines)
