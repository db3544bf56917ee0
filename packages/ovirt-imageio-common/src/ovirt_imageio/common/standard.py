# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Standard input, output and error of a command, whatever the caller made of them.

A descriptor of them that is closed would be the number of the next file that is opened, and what
is printed would go there. So each is opened, in a way that using it fails as it did.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import Callable, Iterator, TextIO

OUTPUT = "standard output"
"""Its name in errors, in the place of a file's."""

_CLOSED = ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY))
"""Stands for each stream: reading the first and writing the second fails, and errors go nowhere."""


def run(prog: str, body: Callable[[], int]) -> int:
    """Run a command, and make sure that what it printed was written.

    Args:
        prog: Its name, for messages.
        body: Its work; returns the exit status. It may leave failures of `show` to this.

    Returns:
        The exit status: 1 if standard output did not take all, 128 plus the number of SIGPIPE if
        the other program left.

    Raises:
        SystemExit: body did, as a parser of arguments does.
    """
    hold()
    try:
        return body() or _finished(prog)
    except SystemExit as e:
        status = 0 if e.code else _finished(prog)
        if not status:
            raise
        return status
    except OSError as e:
        if e.filename != OUTPUT:
            raise
        return failed(prog, e)
    finally:
        let_go()


def _finished(prog: str) -> int:
    try:
        finish()
    except OSError as e:
        return failed(prog, e)
    return 0


def failed(prog: str, error: OSError) -> int:
    """Tell a failure of the system in one line, but not that a reader left.

    Args:
        prog: Name of the command.
        error: The failure.

    Returns:
        The exit status.
    """
    if isinstance(error, BrokenPipeError) and error.filename == OUTPUT:
        return 128 + signal.SIGPIPE
    name = f"{error.filename}: " if error.filename is not None else ""
    say(f"{prog}: {name}{error.strerror or error}")
    return 1


def hold() -> None:
    """Open what of the three is closed. To be called before anything is opened."""
    for number, flags in _CLOSED:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)
    # The interpreter has none where it found the descriptor closed.
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def let_go() -> None:
    """Drop what could not be written: the interpreter would try once more when it ends, and fail."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            _drop(stream)


def _drop(stream: TextIO) -> None:
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def show(text: str) -> None:
    """Write a part of a result to standard output.

    Raises:
        BrokenPipeError: The other program left.
        OSError: It cannot be written; it names standard output.
    """
    with _naming_output():
        sys.stdout.write(text)


def finish() -> None:
    """Make sure that the result was written.

    Raises:
        As show.
    """
    with _naming_output():
        sys.stdout.flush()


def say(text: str) -> None:
    """Write a line to standard error; what cannot be written is lost."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _naming_output() -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise OSError(e.errno, e.strerror, OUTPUT) from e
