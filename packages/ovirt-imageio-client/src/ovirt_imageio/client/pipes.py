# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The file name `-` of `ovirt-img`: standard input and output, and what cannot work with them."""

from __future__ import annotations

import argparse
import os
from typing import Any, Iterable

from ovirt_imageio.client import options
from ovirt_imageio.client.options import UsageError

STREAM = "-"

_ONCE = "a stream passes once"
_RAW = "a stream is raw"


def add_size(parser: argparse.ArgumentParser) -> None:
    """Add the option for the size of what comes from standard input."""
    parser.add_argument(
        "--size",
        metavar="SIZE",
        type=options.image_size,
        help="bytes of an image from standard input (else those of its file, or of the disk)",
    )


def arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return what a stream takes of `options.add_transfer`."""
    return {"timeout": args.timeout, "retries": args.retries}


def check_upload(args: argparse.Namespace) -> None:
    """Refuse options that make no sense with standard input, or without.

    Raises:
        UsageError: It names the option, and why.
    """
    if args.filename != STREAM:
        if args.size is not None:
            raise UsageError("--size is for an image from standard input: FILE is -")
        return
    _refuse(
        "from standard input",
        [
            *_of_both(args),
            ("--member", args.member, "a tar file is read by its directory: save it"),
            ("--no-backing-chain", not args.backing_chain, _RAW),
            ("--allow-external", args.allow_external, _RAW),
            (f"--source-format {args.source_format}", args.source_format not in (None, "raw"), _RAW),
        ],
    )
    if os.isatty(0):
        raise UsageError("standard input is a terminal: redirect it, or name a file")


def check_download(args: argparse.Namespace) -> None:
    """Refuse options that make no sense with standard output.

    Raises:
        UsageError: It names the option, and why.
    """
    if args.filename != STREAM:
        return
    _refuse("to standard output", _of_both(args))
    if args.format != "raw":
        raise UsageError(f"a {args.format} image is not written in order: for standard output give -f raw")
    if os.isatty(1):
        raise UsageError("standard output is a terminal: redirect it, or name a file")


def _of_both(args: argparse.Namespace) -> list[tuple[str, Any, str]]:
    return [
        ("--verify", args.verify, _ONCE),
        ("--resume", getattr(args, "resume", False), _ONCE),
        ("--journal", getattr(args, "journal", None), _ONCE),
    ]


def _refuse(where: str, options: Iterable[tuple[str, Any, str]]) -> None:
    for option, given, why in options:
        if given:
            raise UsageError(f"{option} does not work {where}: {why}")
