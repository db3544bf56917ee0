# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The options that name the server under test.

An option that cannot be meant is refused before the first rule is tried, in one line: the option, its value, and what
was expected. No option is left out in silence, for then another server than the one meant would pass.
"""

from __future__ import annotations

import argparse
import os
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .server import Server

_NEED_CONTROL = ("--tcp-control", "--remote", "--cafile", "--local", "--version-expected")

_ADDRESS = r"://(\[[0-9A-Fa-f:.]+\]|[^/:@?#\[\]]+):[0-9]+"
_REMOTE = re.compile(rf"https?{_ADDRESS}/?")
_TCP_CONTROL = re.compile(rf"http{_ADDRESS}/?")


def add_options(add: Callable[..., Any]) -> None:
    """Add the options by a function like `argparse.ArgumentParser.add_argument`."""
    add("--control", metavar="ADDRESS", help="control service: a Unix socket, or http://localhost:PORT")
    add("--tcp-control", metavar="URL", help="control service on TCP, where --control is a Unix socket")
    add("--remote", metavar="URL", help="images service, like https://localhost:54322")
    add("--cafile", metavar="FILE", help="certificates, PEM, that verify --remote; default: those of the system")
    add("--local", metavar="SOCKET", help="images service on a Unix socket: a path, or @ and an abstract name")
    add("--folder", metavar="FOLDER", help="where to make images and sockets, which the server has to reach")
    add("--version-expected", metavar="VERSION", help="what the server should report as its version")
    add(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="configure the daemon of this checkout, if no other server is named",
    )
    add("--report", metavar="FILE", help="write the outcome of every rule, as JSON")


def check(options: argparse.Namespace) -> None:
    """Find out whether the options can be meant, and whether the services can be connected to.

    Raises:
        pytest.UsageError: with the option, its value, and what was expected.
    """
    _check_paths(options)
    if options.control is None:
        given = [name for name in _NEED_CONTROL if _value(options, name) is not None]
        if given:
            raise pytest.UsageError(
                f"{', '.join(given)}: expected --control as well, where tickets are added; "
                "without it a daemon of this checkout is checked"
            )
        return
    if options.set:
        raise pytest.UsageError("--set: expected no --control, for it configures the daemon of this checkout")
    if options.remote is None and options.local is None:
        raise pytest.UsageError(f"--control {options.control!r}: expected --remote or --local as well, or both")
    _check_addresses(options)
    _connect(options)


def named_server(options: argparse.Namespace, folder: Path) -> Server | None:
    """Return the server that the options name; None: a daemon of this checkout."""
    if getattr(options, "control", None) is None:
        return None
    return Server(
        remote=(options.remote or "").rstrip("/"),
        cafile=options.cafile,
        local=_unix_address(options.local or ""),
        control=options.control,
        folder=folder,
        version=options.version_expected or "",
    )


def _value(options: argparse.Namespace, name: str) -> Any:
    return getattr(options, name[2:].replace("-", "_"))


def _check_paths(options: argparse.Namespace) -> None:
    folder, report = options.folder, options.report
    if folder is not None and not (os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)):
        raise _wrong(options, "--folder", "a folder that exists and can be written to")
    if report is not None and not Path(report).absolute().parent.is_dir():
        raise _wrong(options, "--report", "a file in a folder that exists")


def _check_addresses(options: argparse.Namespace) -> None:
    if options.remote is not None and not _REMOTE.fullmatch(options.remote):
        raise _wrong(options, "--remote", "a URL with a port and without a path, like https://localhost:54322")
    if "://" in options.control and not _TCP_CONTROL.fullmatch(options.control):
        raise _wrong(options, "--control", "a Unix socket, or a URL like http://localhost:54324")
    if options.tcp_control is not None and not _TCP_CONTROL.fullmatch(options.tcp_control):
        raise _wrong(options, "--tcp-control", "a URL like http://localhost:54324")
    if options.cafile is None:
        return
    if not (options.remote or "").startswith("https:"):
        raise _wrong(options, "--cafile", "--remote with an https URL as well")
    try:
        ssl.create_default_context(cafile=options.cafile)
    except OSError as e:
        raise _wrong(options, "--cafile", "a PEM file of certificates", e) from e


def _connect(options: argparse.Namespace) -> None:
    """Connect to each service once: whatever is wrong here would fail every rule."""
    server = named_server(options, Path())
    assert server is not None
    for name, expected in (
        ("--control", "the control service of a running server"),
        ("--remote", "a running server, with a certificate that --cafile verifies"),
        ("--local", "the local service of a running server"),
    ):
        if _value(options, name) is None:
            continue
        try:
            server.connect(name[2:]).close()
        except OSError as e:
            raise _wrong(options, name, expected, e) from e


def _wrong(options: argparse.Namespace, name: str, expected: str, error: OSError | None = None) -> pytest.UsageError:
    reason = f"{error.strerror or error}; " if error else ""
    return pytest.UsageError(f"{name} {_value(options, name)!r}: {reason}expected {expected}")


def _unix_address(text: str) -> str:
    return "\0" + text[1:] if text[:1] == "@" else text
