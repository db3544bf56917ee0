# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The command ovirt-imageioctl."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

from ovirt_imageio.common import standard
from ovirt_imageio.daemon.version import __version__

from . import report
from .client import DEFAULT_CONF_DIR, Client, load_config
from .client import Error as AdminError

PROG = "ovirt-imageioctl"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, or 1 after one line on stderr."""
    return standard.run(PROG, lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    parser, commands = _parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.error(f"give a command, one of {', '.join(commands)}")
    try:
        with Client(load_config(args.conf_dir)) as client:
            args.command(client, args)
    except OSError as e:
        return standard.failed(PROG, e)
    except (AdminError, ValueError) as e:
        standard.say(f"{PROG}: {e}")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _parser() -> tuple[argparse.ArgumentParser, Collection[str]]:
    """Return the parser and the names of the commands."""
    parser = argparse.ArgumentParser(prog=PROG, description="Control the ovirt-imageio service.")
    parser.add_argument("--version", action="version", version=f"{PROG} {__version__}")
    _add_conf_dir(parser, DEFAULT_CONF_DIR)
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(name: str, run: Callable[[Client, Any], None], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        _add_conf_dir(command, argparse.SUPPRESS)  # not given here: what was given before the command stays
        command.set_defaults(command=run)
        return command

    command = add("add-ticket", _add_ticket, "Add a ticket.")
    command.add_argument("filename", help="JSON file with the ticket")
    for name, run, text in [
        ("show-ticket", _show_ticket, "Show the state of a ticket."),
        ("mod-ticket", _mod_ticket, "Change a ticket."),
        ("del-ticket", _del_ticket, "Cancel and remove a ticket."),
    ]:
        command = add(name, run, text)
        command.add_argument("ticket_id", help="the ticket's uuid")
        if name == "mod-ticket":
            text = "how long it is valid from now on"
            command.add_argument("--timeout", metavar="SECONDS", type=int, required=True, help=text)
    for name, run, text in [
        ("list", _list, "List the transfers: what they do and how far they are."),
        ("status", _status, "Show how the daemon does."),
    ]:
        command = add(name, run, text)
        command.add_argument("--json", action="store_true", help="print JSON")
        if name == "list":
            text = "of the transfers at most so many, those in use first (default 1000)"
            command.add_argument("--limit", type=int, metavar="N", help=text)
    add("start-profile", _start_profile, "Start profiling the daemon.")
    add("stop-profile", _stop_profile, "Stop profiling and write the result.")
    return parser, commands.choices


def _add_conf_dir(parser: argparse.ArgumentParser, default: str) -> None:
    text = f"configuration folder (default {DEFAULT_CONF_DIR})"
    parser.add_argument("-c", "--conf-dir", metavar="DIR", default=default, help=text)


def _add_ticket(client: Client, args: argparse.Namespace) -> None:
    client.add_ticket(read_ticket(args.filename))


def read_ticket(filename: str) -> dict[str, Any]:
    """Read a ticket from a JSON file.

    Raises:
        ValueError: the file is not a JSON object; OSError: it cannot be read.
    """
    with open(filename, encoding="utf-8") as f:
        try:
            ticket = json.load(f)
        except (ValueError, RecursionError) as e:
            raise ValueError(f"{filename}: not JSON: {e}") from e
    if not isinstance(ticket, dict):
        raise ValueError(f"{filename}: expected a JSON object, not {type(ticket).__name__}")
    return ticket


def _print(text: str) -> None:
    standard.show(f"{text}\n")


def _show_ticket(client: Client, args: argparse.Namespace) -> None:
    _print(json.dumps(client.get_ticket(args.ticket_id), indent=2))


def _mod_ticket(client: Client, args: argparse.Namespace) -> None:
    client.mod_ticket(args.ticket_id, {"timeout": args.timeout})


def _del_ticket(client: Client, args: argparse.Namespace) -> None:
    client.del_ticket(args.ticket_id)


def _list(client: Client, args: argparse.Namespace) -> None:
    status = client.status(args.limit)
    if args.json:
        _print(json.dumps(status["transfers"], indent=2))
    else:
        _print("\n".join(report.transfers(status["transfers"], total=status["tickets"]["total"])))


def _status(client: Client, args: argparse.Namespace) -> None:
    status = client.status(None if args.json else 0)
    if args.json:
        _print(json.dumps(status, indent=2))
    else:
        _print("\n".join(report.daemon(status)))


def _start_profile(client: Client, args: argparse.Namespace) -> None:
    client.start_profile()


def _stop_profile(client: Client, args: argparse.Namespace) -> None:
    client.stop_profile()


if __name__ == "__main__":
    sys.exit(main())
