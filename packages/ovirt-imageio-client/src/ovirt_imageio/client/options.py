# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Options of `ovirt-img`: what they mean, their limits, and the user's configuration file.

An engine's options come from the command line, else from a section of the file:

    [east]
    engine_url = https://engine.east.example.com
    username = admin@ovirt@internalsso
    password = secret
    cafile = /etc/pki/east-ca.pem
"""

from __future__ import annotations

import argparse
import configparser
import getpass
import os
import re
import uuid
import warnings
from dataclasses import dataclass, replace

from ovirt_imageio.client import folders
from ovirt_imageio.common import defaults
from ovirt_imageio.common.units import KiB, MiB, parse_size

CONFIG_NAME = "ovirt-img.conf"

LOG_LEVELS = ("debug", "info", "warning", "error")

MIN_WORKERS, MAX_WORKERS = 1, 8
"""Connections of a transfer; a server allows no more than eight."""

MIN_BUFFER, MAX_BUFFER = 64 * KiB, 16 * MiB

MIN_BLOCK, MAX_BLOCK, BLOCK_STEP = 1 * MiB, 16 * MiB, 4 * KiB
"""Blocks of a checksum that a server computes, see "GET /images/{id}/checksum"."""

DISK_TIMEOUT = 120.0
"""Seconds for the engine to make a disk or a transfer ready."""

_SWITCH = configparser.ConfigParser.BOOLEAN_STATES


class UsageError(Exception):
    """The command cannot be done as it was given. The text says what to give."""


@dataclass(frozen=True)
class Engine:
    """How to reach an engine.

    Attributes:
        url: Address, without the path of its API.
        username: With its profile, like `admin@internal`.
        password: Of the user; None while it was not asked for, see `with_password`.
        cafile: CA certificates of engine and hosts; None means the system's.
        secure: Verify their certificates.
        disk_timeout: Seconds that the engine may take for one thing.
        description: Of a new disk; None for one that says where it comes from.
    """

    url: str
    username: str
    password: str | None
    cafile: str | None = None
    secure: bool = True
    disk_timeout: float = DISK_TIMEOUT
    description: str | None = None


def config_path() -> str:
    """Return the path of the user's configuration file, which need not exist."""
    return os.path.join(folders.config() or "~/.config", CONFIG_NAME)


def read_section(name: str) -> dict[str, str]:
    """Read a section of the user's configuration file.

    Raises:
        UsageError: There is no such file or section, or it cannot be read.
    """
    path = config_path()
    parser = _read(path)
    if not parser.has_section(name):
        known = ", ".join(parser.sections()) or "none"
        raise UsageError(f"{path} has no section [{name}]; it has: {known}")
    return dict(parser.items(name))


def section_names() -> list[str]:
    """Return the names of all sections; none if the file cannot be read."""
    try:
        return _read(config_path()).sections()
    except UsageError:
        return []


def _read(path: str) -> configparser.ConfigParser:
    # A password may hold a percent sign.
    parser = configparser.ConfigParser(interpolation=None)
    if not os.path.isabs(path):
        raise UsageError(f"cannot read {path}: this user has no home folder; set HOME or XDG_CONFIG_HOME")
    try:
        with open(path, encoding="utf-8") as f:
            parser.read_file(f)
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise UsageError(f"cannot read {path}: it is not UTF-8") from e
    except configparser.Error as e:
        raise UsageError(" ".join(str(e).split())) from e
    return parser


def merge_section(args: argparse.Namespace) -> dict[str, str]:
    """Fill the options that were not given from the section that `-c` names.

    Args:
        args: Of a command with an engine. Changed: `log_file` and `log_level`.

    Returns:
        The section; empty without `-c`.

    Raises:
        UsageError: The file or a value of it makes no sense.
    """
    section = read_section(args.config) if args.config else {}
    args.log_file = args.log_file or section.get("log_file") or None
    level = section.get("log_level", "").lower()
    if level and level not in LOG_LEVELS:
        raise _bad(args.config, "log_level", level, f"one of {', '.join(LOG_LEVELS)}")
    args.log_level = args.log_level or level or None
    return section


def engine(args: argparse.Namespace, section: dict[str, str]) -> Engine:
    """Put together what reaches the engine.

    Args:
        args: Of a command with an engine.
        section: From `merge_section`.

    Raises:
        UsageError: Something is missing or makes no sense.
    """
    return Engine(
        url=_engine_url(args.engine_url or section.get("engine_url")),
        username=_required(args.username or section.get("username"), "--username", "username"),
        cafile=args.cafile or section.get("cafile") or None,
        secure=not args.insecure and _secure(args.config, section),
        disk_timeout=_seconds(args.config, section),
        description=getattr(args, "description", None) or section.get("description") or None,
        password=_password(args.password_file, section),
    )


def _engine_url(value: str | None) -> str:
    url = _required(value, "--engine-url", "engine_url")
    if not re.match(r"https?://[^/]", url):
        raise UsageError(f"{url!r} is no address of an engine: expected https://HOST")
    return url


def _required(value: str | None, option: str, key: str) -> str:
    if not value:
        raise UsageError(f"give {option}, or -c SECTION of {config_path()} that has {key!r}")
    return value


def _secure(name: str, section: dict[str, str]) -> bool:
    text = section.get("secure", "yes")
    if text.lower() not in _SWITCH:
        raise _bad(name, "secure", text, "yes or no")
    return _SWITCH[text.lower()]


def _seconds(name: str, section: dict[str, str]) -> float:
    text = section.get("disk_timeout", str(DISK_TIMEOUT))
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise _bad(name, "disk_timeout", text, "seconds, more than 0")
    return value


def _bad(name: str, key: str, value: str, expected: str) -> UsageError:
    return UsageError(f"{config_path()}, section [{name}]: {key} = {value!r}: expected {expected}")


def _password(path: str | None, section: dict[str, str]) -> str | None:
    """Get the password from a file of its own or from the section; None leaves it to the terminal."""
    return read_password(path) if path else section.get("password")


def with_password(settings: Engine) -> Engine:
    """Ask for the password at the terminal, if no option and no section had it.

    Raises:
        UsageError: There is no terminal.
    """
    if settings.password is not None:
        return settings
    try:
        with warnings.catch_warnings():
            # Without a terminal it would warn, and read a line that is no password.
            warnings.simplefilter("error", getpass.GetPassWarning)
            return replace(settings, password=getpass.getpass("Engine password: "))
    except (getpass.GetPassWarning, EOFError) as e:
        raise UsageError("there is no terminal to ask for the password: give --password-file") from e


def read_password(path: str) -> str:
    """Return the first line of a file.

    Raises:
        UsageError: The file cannot be read, or is empty.
    """
    try:
        with open(path, encoding="utf-8") as f:
            password = f.readline().rstrip("\r\n")
    except OSError as e:
        raise UsageError(f"cannot read the password file {path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise UsageError(f"cannot read the password file {path}: it is not UTF-8") from e
    if not password:
        raise UsageError(f"the password file {path} has no password on its first line")
    return password


# Types of arguments, for argparse. It shows the text of ArgumentTypeError.


def workers(text: str) -> int:
    """Read a number of connections."""
    if not text.isdecimal() or not MIN_WORKERS <= int(text) <= MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from {MIN_WORKERS} to {MAX_WORKERS}")
    return int(text)


def timeout(text: str) -> float:
    """Read seconds."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds, more than 0")
    return seconds


def retries(text: str) -> int:
    """Read a number of attempts."""
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number, 0 or more")
    return int(text)


def buffer_size(text: str) -> int:
    """Read the size of a worker's buffer."""
    return _size(text, MIN_BUFFER, MAX_BUFFER, "64k to 16m")


def block_size(text: str) -> int:
    """Read the size of a checksum's blocks."""
    size = _parsed(text)
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 1 byte or more")
    return size


def check_server_block(size: int | None) -> None:
    """Refuse a size of blocks that servers do not hash.

    Raises:
        UsageError: It says what they do.
    """
    if size is not None and (not MIN_BLOCK <= size <= MAX_BLOCK or size % BLOCK_STEP):
        raise UsageError(f"--block-size of {size} bytes: a server takes 1m to 16m, and multiples of 4k")


def image_size(text: str) -> int:
    """Read the size of an image."""
    try:
        return parse_size(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from e


def disk_id(text: str) -> str:
    """Read an id of a disk."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a UUID") from None


def _size(text: str, least: int, most: int, words: str) -> int:
    size = _parsed(text)
    if not least <= size <= most:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size from {words}")
    return size


def _parsed(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from e


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add the options that reach an engine."""
    group = parser.add_argument_group("engine")
    config = group.add_argument(
        "-c", "--config", metavar="SECTION", help=f"take what is not given from this section of ~/.config/{CONFIG_NAME}"
    )
    config.completer = lambda **_: section_names()  # type: ignore[attr-defined]
    group.add_argument("--engine-url", metavar="URL", help="address of the engine, https://HOST")
    group.add_argument("--username", metavar="USER", help="user of the engine, like admin@internal")
    group.add_argument(
        "--password-file", metavar="FILE", help="file with the password on its first line (else it is asked for)"
    )


def add_tls(parser: argparse.ArgumentParser) -> None:
    """Add the options that verify servers."""
    group = parser.add_argument_group("trust")
    group.add_argument("--cafile", metavar="FILE", help="CA certificates to verify servers with (else the system's)")
    group.add_argument(
        "--insecure", action="store_true", help="verify no certificates: anybody may read and change data"
    )


def add_transfer(parser: argparse.ArgumentParser) -> None:
    """Add the options of a transfer."""
    group = parser.add_argument_group("transfer")
    group.add_argument(
        "--max-workers",
        metavar="N",
        type=workers,
        default=defaults.MAX_WORKERS,
        help="connections, 1 to 8 (default %(default)s)",
    )
    group.add_argument(
        "--buffer-size",
        metavar="SIZE",
        type=buffer_size,
        default=defaults.BUFFER_SIZE,
        help="memory of each connection, 64k to 16m (default 4m)",
    )
    group.add_argument("--verify", action="store_true", help="compare both ends at the end")
    add_timeout(group)
    group.add_argument(
        "--retries",
        metavar="N",
        type=retries,
        help="attempts after the first, of what fails for a passing reason (default 6, 3 to begin with)",
    )


def add_timeout(group: argparse._ActionsContainer) -> None:
    """Add the option for the time that a server gets."""
    group.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=timeout,
        help="silence after which an attempt has failed (default 60, more for what takes storage long)",
    )


def add_resume(parser: argparse.ArgumentParser) -> None:
    """Add the options for a transfer that may be continued."""
    parser.add_argument(
        "--resume", action="store_true", help="continue where the same command stopped, and keep what a next one needs"
    )
    parser.add_argument("--journal", metavar="FILE", help="where --resume keeps what is done (else beside the image)")


def add_progress(parser: argparse.ArgumentParser) -> None:
    """Add the options of what is written where, of a command that shows progress."""
    group = add_output(parser, "progress as text or JSON lines")
    group.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def add_output(parser: argparse.ArgumentParser, text: str) -> argparse._ArgumentGroup:
    """Add the options of what is written where; text tells what -o is about."""
    group = parser.add_argument_group("output")
    group.add_argument("-o", "--output", choices=("text", "json"), default="text", help=f"{text} (default text)")
    group.add_argument("--log-file", metavar="FILE", help="write the log there, not to standard error")
    group.add_argument(
        "--log-level", metavar="LEVEL", choices=LOG_LEVELS, help=f"{', '.join(LOG_LEVELS)} (default warning)"
    )
    return group
