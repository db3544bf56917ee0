# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The command ovirt-imageio: the daemon.

Mistakes of the operator end in one line on standard error and exit status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING

from ovirt_imageio.common import standard

from . import config
from .config import Config, ConfigError
from .errors import HttpError
from .version import __version__

if TYPE_CHECKING:
    from .tickets import Ticket

PROG = "ovirt-imageio"

_HELP_WIDTH = 78

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon until a signal stops it; returns the exit status."""
    return standard.run(PROG, lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    args = _parser().parse_args(argv)
    try:
        cfg = config.load(args.conf_dir)
        if args.show_config:
            standard.show(json.dumps(cfg.to_dict(), indent=4, sort_keys=True) + "\n")
            return 0
        if args.check_config:
            return _check(cfg)
        return _serve(cfg, args)
    except ConfigError as e:
        return _fail(str(e))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Serve virtual disks over HTTP to whoever holds a ticket.",
        formatter_class=_help_formatter,
    )
    parser.add_argument(
        "-c",
        "--conf-dir",
        metavar="DIR",
        default=config.DEFAULT_CONF_DIR,
        help=f"folder with conf.d/*.conf, in place of {config.DEFAULT_CONF_DIR}",
    )
    parser.add_argument("--version", action="version", version=f"{PROG} {__version__}")
    parser.add_argument("--show-config", action="store_true", help="print the configuration in use as JSON")
    parser.add_argument("--check-config", action="store_true", help="check the configuration and TLS files")
    parser.add_argument("-t", "--ticket", metavar="FILE", help="JSON file with a ticket to add")
    return parser


def _help_formatter(prog: str) -> argparse.HelpFormatter:
    # Without a width it asks for the terminal's, by a module that loads all that makes archives: 3 ms.
    return argparse.HelpFormatter(prog, width=_HELP_WIDTH)


def _fail(text: str) -> int:
    standard.say(f"{PROG}: {text}")
    return 1


def _check(cfg: Config) -> int:
    from . import logcheck
    from .tls import origin_problem, server_context, validity

    logcheck.check(cfg)
    for warning in (*cfg.warnings, origin_problem(cfg)):
        if warning:
            standard.say(f"{PROG}: warning: {warning}")
    if cfg.tls.enable:
        found = validity(server_context(cfg))
        problem = found.problem(time.time()) if found else ""
        if problem:
            standard.say(f"{PROG}: warning: the certificate {cfg.tls.cert_file} {problem}")
    standard.show("The configuration is valid.\n")
    return 0


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Hold the garbage collector off what is made meanwhile, now and later: all of it stays."""
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def _serve(cfg: Config, args: argparse.Namespace) -> int:
    with _uncollected():
        # Here, so that --show-config answers without loading a server.
        from .server import Server
        from .systemd import Notifier

    ticket = _read_ticket(args.ticket) if args.ticket else None
    notifier = Notifier(os.environ if cfg.daemon.systemd_enable else {})
    server = Server(
        cfg,
        notifier=notifier,
        ticket=ticket,
        load_config=lambda: config.load(args.conf_dir),
    )
    status, starting = 0, True

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal status
        if not server.stop(signal.Signals(number).name):
            status = 128 + number
        if starting:  # which may hang, as by a log that nobody reads
            raise _StopsStarting

    def reload(number: int, frame: FrameType | None) -> None:
        server.reload()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGHUP, reload)
    try:
        server.start()
        starting = False
        server.run()
    except ConfigError as e:
        _log_failure(e)
        status = _fail(str(e))
    except _StopsStarting:
        log.info("Stopped while starting")
    finally:
        if not server.close():
            os._exit(status)  # the interpreter would wait for the log at its end
    logging.shutdown()
    return status


class _StopsStarting(BaseException):
    """A signal asks to end a daemon that does not serve yet."""


def _read_ticket(filename: str) -> Ticket:
    from .tickets import Ticket

    try:
        with open(filename, encoding="utf-8") as f:
            document = json.load(f)
    except OSError as e:
        raise ConfigError(f"--ticket {filename}: {e.strerror}") from e
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"--ticket {filename}: not JSON: {e}") from e
    if not isinstance(document, dict):
        raise ConfigError(f"--ticket {filename}: expected a JSON object")
    try:
        return Ticket.from_json(str(document.get("uuid")), document)
    except HttpError as e:
        raise ConfigError(f"--ticket {filename}: {e.text}") from e


def _log_failure(error: ConfigError) -> None:
    """Leave the reason in the log file as well; standard error gets it from `main`."""
    from .log import reaches_stderr

    if logging.getLogger().handlers and not reaches_stderr():
        log.error("Cannot start: %s", error)
