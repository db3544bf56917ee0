# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Failures as one line for people: what happened, and what to do."""

from __future__ import annotations

import tarfile

from ovirt_imageio.client.certificates import advice, advice_without_tls
from ovirt_imageio.client.layers import UnsafeImage
from ovirt_imageio.common.errors import AuthorizationError, ImageioError

_OPTIONS = {
    "pass allow_external=True": "give --allow-external",
    "pass check=False": "give --no-check",
    'pass fmt="raw"': "give --source-format raw",
    "by member=": "by --member",
    "pass journal=PATH": "give --journal FILE",
    "pass shallow=True": "give --shallow",
    "pass size=N": "give --size N",
    "with resume=True": "with --resume",
}
"""Names in the library's texts, and the options for them here."""


def one_line(error: BaseException) -> str:
    """Say in one line why a command failed.

    Args:
        error: The failure that ended it.
    """
    text = in_options(" ".join(_text(error).split()))
    hint = _hint(error)
    return f"{text} ({hint})" if hint else text


def in_options(text: str) -> str:
    """Name the options of the command where the library names its arguments."""
    for argument, option in _OPTIONS.items():
        text = text.replace(argument, option)
    return text


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        names = [str(name) or "''" for name in (error.filename, error.filename2) if name is not None]
        return ": ".join([*names, error.strerror])
    if isinstance(error, (ImageioError, OSError, ValueError, tarfile.TarError)):
        return str(error) or type(error).__name__
    # A mistake of ours: told as one, so that a user can report it.
    return f"internal error: {type(error).__name__}: {error}"


def _hint(error: BaseException) -> str:
    # A program with such an error has loaded requests; other programs need not load it.
    from ovirt_imageio.common.backends.http.errors import NoTls, Unreachable, Untrusted

    if isinstance(error, Untrusted):
        return advice(error.verify_code, error.verify_message)
    if isinstance(error, NoTls):
        return advice_without_tls(error.reason)
    if isinstance(error, Unreachable):
        return "is the address right, and the server running?"
    if isinstance(error, AuthorizationError):
        return "tickets end with their transfer: start another one"
    if isinstance(error, (ImageioError, OSError, ValueError, UnsafeImage, tarfile.TarError)):
        return ""
    return "--log-level debug shows where"
