# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Standard output of a command that moves a disk: how far it is, and how it ended.

With JSON each line is an object with the keys of progress, and the last one has more:

    any ───── {"transferred": 0, "elapsed": 0.1, "description": "uploading image", "size": 6442450944}
    success ─ {…, "description": "upload completed", "moved": 1310720, "zeroed": 6441140224, …}
    failure ─ {…, "description": "upload failed", "kind": "Forbidden", "message": "…", "status": 403, "exit_status": 1}

So a program that reads progress alone reads all lines alike.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any, TextIO

from ovirt_imageio.client.output import Output
from ovirt_imageio.client.progress import ProgressBar
from ovirt_imageio.client.result import TransferResult
from ovirt_imageio.common.standard import say

_LONGEST = 4000
"""Characters of a message: a line must fit into the buffers of programs that read lines."""

_LAST_WORDS = 0.5
"""Seconds that a slow reader gets to take the last line when a signal ended the command."""


class Report:
    """Of one command. One thread, but for the bar.

    Args:
        direction: `upload` or `download`.
        form: `text` or `json`.
        quiet: Show no progress.
        stream: Where to write.
    """

    def __init__(self, direction: str, *, form: str, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._direction = direction
        self._form = form
        self._quiet = quiet
        self._stream = sys.stdout if stream is None else stream
        self._bar: ProgressBar | None = None

    def begin(self, phase: str) -> ProgressBar:
        """Begin to show progress, in the context of what is returned.

        Args:
            phase: The work that is done first.
        """
        output: Any = _Nowhere() if self._quiet else self._stream
        error_phase = f"{self._direction} failed"
        self._bar = ProgressBar(phase, error_phase=error_phase, output=output, format=self._form)
        return self._bar

    def finish(self, result: TransferResult, *, disk_id: str | None = None) -> None:
        """Tell that it succeeded.

        Args:
            result: Of the transfer.
            disk_id: Of a disk that was made.
        """
        more = {} if disk_id is None else {"disk_id": disk_id}
        if self._form == "json":
            self._write_object({**dataclasses.asdict(result), **more})
        elif disk_id is not None and not self._write(f"Disk: {disk_id}\n"):
            say(f"Disk: {disk_id}")

    def fail(self, kind: str, message: str, *, status: int | None, exit_status: int) -> None:
        """Tell that it failed; standard error is told by the caller.

        Args:
            kind: Of the failure: the class of the error.
            message: In a line.
            status: Of the server's answer, if that was the failure.
            exit_status: Of the command.
        """
        if self._form == "json":
            failure = {"kind": kind, "message": message[:_LONGEST], "status": status, "exit_status": exit_status}
            self._write_object(failure, seconds=_LAST_WORDS if exit_status > 128 else None)

    def _write_object(self, more: dict[str, Any], *, seconds: float | None = None) -> None:
        nowhere: Any = _Nowhere()
        bar = self._bar or ProgressBar(f"{self._direction} failed", output=nowhere)
        self._write(json.dumps({**bar.record(), **more}) + "\n", seconds=seconds)

    def _write(self, text: str, *, seconds: float | None = None) -> bool:
        if self._bar is not None and self._bar.lost:
            return False  # which was told
        output = Output(self._stream, lambda why: say(f"ovirt-img: standard output: {why}"))
        return output.write(text, seconds=seconds)


class _Nowhere:
    """A stream that shows nothing."""

    encoding = "utf-8"

    def write(self, text: str) -> None:
        """Drop it."""

    def flush(self) -> None:
        """Do nothing."""
