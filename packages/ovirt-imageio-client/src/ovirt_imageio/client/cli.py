# PYTHON_ARGCOMPLETE_OK
# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The command `ovirt-img`.

A failure is one line on standard error, with what to do about it. Exit status: 0 on
success, 1 on failure, 2 for wrong arguments, 128 plus the number of a signal.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING, Any, Callable, Iterator, NamedTuple, NoReturn, Sequence

from ovirt_imageio.client import commands, disks, options, pipes
from ovirt_imageio.client.failures import in_options, one_line
from ovirt_imageio.client.options import UsageError
from ovirt_imageio.client.report import Report
from ovirt_imageio.client.streaming import ReaderGone
from ovirt_imageio.client.version import __version__
from ovirt_imageio.common import standard

PROG = "ovirt-img"

log = logging.getLogger(__name__)


class Interrupted(BaseException):
    """A signal asks to end. Not an Exception, as KeyboardInterrupt is none."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Command(NamedTuple):
    """One command: how it is called, what it takes and what it does."""

    usage: str
    text: str
    add: Callable[[argparse.ArgumentParser], None]
    run: Callable[..., None]
    examples: str
    direction: str = ""  # in which it moves a disk

    @property
    def needs_engine(self) -> bool:
        """It finds its disk by an oVirt engine."""
        return self.add.__module__ == disks.__name__


_TICKET = "https://host1:54322/images/TICKET"

COMMANDS = {
    "upload-disk": Command(
        "[OPTION]... -s STORAGE_DOMAIN FILE",
        "Make a disk in an oVirt engine and upload an image to it.",
        disks.add_upload,
        disks.upload,
        "upload-disk -c east -s nfs1 fedora.qcow2",
        "upload",
    ),
    "download-disk": Command(
        "[OPTION]... DISK_ID FILE",
        "Download a disk of an oVirt engine.",
        disks.add_download,
        disks.download,
        "download-disk -c east 0cd81a7e-1f1a-4e3b-9a8f-5b3f7a1f0c52 fedora.qcow2",
        "download",
    ),
    "upload": Command(
        "[OPTION]... FILE URL",
        "Upload an image to a disk that a ticket permits. What is zero is zeroed, not sent.",
        commands.add_upload,
        commands.upload,
        f"upload --cafile ca.pem fedora.qcow2 {_TICKET}\nupload --member disk1.vmdk appliance.ova {_TICKET}",
        "upload",
    ),
    "download": Command(
        "[OPTION]... URL FILE",
        "Download a disk that a ticket permits. FILE gets its name when it is complete.",
        commands.add_download,
        commands.download,
        f"download --cafile ca.pem {_TICKET} fedora.qcow2\n"
        f"download --incremental --backing-file full.qcow2 {_TICKET} monday.qcow2",
        "download",
    ),
    "info": Command(
        "[OPTION]... FILE|URL",
        "Tell format and size of an image or a disk.",
        commands.add_info,
        commands.info,
        f"info fedora.qcow2\ninfo --cafile ca.pem {_TICKET}",
    ),
    "extents": Command(
        "[OPTION]... FILE|URL",
        "List what of an image or a disk is data, zero, or a hole.",
        commands.add_extents,
        commands.extents,
        f"extents -o json fedora.qcow2\nextents --dirty {_TICKET}",
    ),
    "checksum": Command(
        "[OPTION]... FILE|URL",
        "Compute the block hash of an image or a disk. Equal hashes mean equal content, whatever the formats.",
        commands.add_checksum,
        commands.checksum,
        f"checksum fedora.qcow2\nchecksum --cafile ca.pem {_TICKET}",
    ),
    "measure": Command(
        "[OPTION]... FILE",
        "Tell how much room an image needs in another format.",
        commands.add_measure,
        commands.measure,
        "measure -f qcow2 fedora.raw",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    return standard.run(PROG, lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    parser = make_parser()
    _complete(parser)
    try:
        with _signals():
            args = parser.parse_args(argv)
            if args.command is None:
                parser.error(f"give a command, one of {', '.join(COMMANDS)}")
            return _run(args)
    except WrongArguments as e:
        standard.say(f"{PROG}: {e.text}")
        _report_wrong(sys.argv[1:] if argv is None else argv, e.text)
        raise
    except KeyboardInterrupt:
        return _interrupted(signal.SIGINT).exit_status
    except Interrupted as e:
        return _interrupted(e.number).exit_status


class Failure(NamedTuple):
    """How a command failed: exit status and the line that tells, and the class of the error and its status."""

    exit_status: int
    text: str
    kind: str
    status: int | None = None


def _run(args: argparse.Namespace) -> int:
    """Run a command, and tell how it ended."""
    command = COMMANDS[args.command]
    report = _report(command, args.output, quiet=args.quiet, name=args.filename) if command.direction else None
    given = () if report is None else (report,)
    failure = None
    try:
        section = (options.merge_section(args),) if command.needs_engine else ()
        with _logging(args):
            log.info("%s %s: %s", PROG, __version__, args.command)
            failure = _failure_of(lambda: command.run(args, *section, *given))
    except UsageError as e:
        failure = Failure(2, f"{e} (see {PROG} {args.command} --help)", "UsageError")
        standard.say(f"{PROG}: {failure.text}")
    except KeyboardInterrupt:
        failure = _interrupted(signal.SIGINT)
    except Interrupted as e:
        failure = _interrupted(e.number)
    if failure is None:
        return 0
    if report is not None:
        report.fail(failure.kind, failure.text, status=failure.status, exit_status=failure.exit_status)
    return failure.exit_status


def _report(command: Command, form: str, *, quiet: bool, name: str) -> Report:
    """Return what tells how far a transfer is: beside the image, if that goes to standard output."""
    is_taken = command.direction == "download" and name == pipes.STREAM
    return Report(command.direction, form=form, quiet=quiet, stream=sys.stderr if is_taken else sys.stdout)


def _report_wrong(argv: Sequence[str], text: str) -> None:
    """Tell wrong arguments as JSON too, where they ask for it: a program reads the last line."""
    command = next((COMMANDS[word] for word in argv if word in COMMANDS), None)
    if command is None or not command.direction:
        return
    name = pipes.STREAM if pipes.STREAM in argv else ""
    report = _report(command, _form(argv), quiet=True, name=name)
    report.fail(UsageError.__name__, text, status=None, exit_status=2)


def _form(argv: Sequence[str]) -> str:
    """Look for `-o json` in arguments that make no sense as a whole."""
    parser = _Parser(add_help=False)
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    parser.add_argument("-q", "--quiet", action="store_true")
    try:
        return str(parser.parse_known_args(argv)[0].output)
    except WrongArguments:
        return "text"


def _failure_of(run: Callable[[], None]) -> Failure | None:
    """Run what a command does; tell a failure, and return it."""
    try:
        run()
        # Written now, a full disk or a closed pipe is still told.
        standard.finish()
    except UsageError:
        raise
    except BrokenPipeError as e:
        return _reader_left(e) if e.filename == standard.OUTPUT else _failed(e)
    except ReaderGone as e:
        return _reader_left(e)
    except Exception as e:
        log.debug("Failed", exc_info=True)
        return _failed(e)
    return None


def _reader_left(error: Exception) -> Failure:
    """End as a program does that the system ends; it says nothing."""
    return Failure(128 + signal.SIGPIPE, str(error), type(error).__name__)


def _failed(error: Exception) -> Failure:
    status = getattr(error, "status", None)
    failure = Failure(1, one_line(error), type(error).__name__, status if isinstance(status, int) else None)
    standard.say(f"{PROG}: {failure.text}")
    return failure


def _interrupted(number: int) -> Failure:
    failure = Failure(128 + number, f"interrupted by {signal.Signals(number).name}", "Interrupted")
    standard.say(f"{PROG}: {failure.text}")
    return failure


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Let signals that ask to end do it the way of Control-C."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise Interrupted(number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# Arguments.


class WrongArguments(SystemExit):
    """The arguments are none of a command."""

    def __init__(self, text: str) -> None:
        super().__init__(2)
        self.text = text


class _Parser(argparse.ArgumentParser):
    """Leaves it to the caller to tell wrong arguments, and so do the parsers of its commands."""

    def error(self, message: str) -> NoReturn:
        raise WrongArguments(f"{message} (see {self.prog} --help)")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help that looks the same whatever Python it is."""

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        # Before Python 3.13 the names of commands are measured without their indentation.
        for command in self._iter_indented_subactions(action):
            length = len(self._format_action_invocation(command)) + self._current_indent
            self._action_max_length = max(self._action_max_length, length)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, action.dest.upper())
        return f"{', '.join(action.option_strings)} {value}"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _parser(
        _Parser,
        PROG,
        usage=f"{PROG} COMMAND [OPTION]... ARGUMENT...",
        description="Upload, download and inspect virtual disks.",
        epilog=f"'{PROG} COMMAND --help' explains a command. upload-disk and download-disk need an\n"
        "oVirt engine; the others need nothing but a server and a ticket.",
    )
    parser.add_argument("--version", action="version", version=f"{PROG} {__version__}")
    subparsers = parser.add_subparsers(prog=PROG, title="commands", metavar="COMMAND", dest="command")
    for name, command in COMMANDS.items():
        examples = "\n".join(f"  {PROG} {line}" for line in command.examples.splitlines())
        sub = _parser(
            subparsers.add_parser,
            name,
            help=command.text.partition(". ")[0].rstrip("."),
            usage=f"{PROG} {name} {command.usage}",
            description=command.text,
            epilog=f"examples:\n{examples}",
        )
        command.add(sub)
    return parser


def _parser(make: Callable[..., argparse.ArgumentParser], name: str, **keys: Any) -> argparse.ArgumentParser:
    if make is _Parser:
        keys["prog"] = name
        parser: argparse.ArgumentParser = _Parser(formatter_class=_Formatter, **keys)
    else:
        parser = make(name, formatter_class=_Formatter, **keys)
    # Python 3.9 calls them "optional arguments".
    parser._optionals.title = "options"
    parser._positionals.title = "arguments"
    return parser


def _complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks how a line may go on; see the extra `completion`."""
    if "_ARGCOMPLETE" in os.environ:
        with contextlib.suppress(ImportError):
            import argcomplete

            argcomplete.autocomplete(parser)


# Log.


if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[Any]
else:
    # Python 3.9 has no subscript for it yet.
    _StreamHandler = logging.StreamHandler


class _OverProgress(_StreamHandler):
    """Writes to standard error, on a terminal in place of the line of progress."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"\r\x1b[K{text}" if self.stream.isatty() else text

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Lose a record that standard error does not take."""


class _LogFile(logging.FileHandler):
    """Writes to a file; says once if that fails, and nothing else fails of it."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if not self._failed:
            self._failed = True
            standard.say(f"{PROG}: cannot write the log file {self.baseFilename}: {sys.exc_info()[1]}")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


class _InOptions(logging.Formatter):
    """Log messages of the library, in the words of the command."""

    def format(self, record: logging.LogRecord) -> str:
        return in_options(super().format(record))


@contextlib.contextmanager
def _logging(args: argparse.Namespace) -> Iterator[None]:
    """Send the log where the arguments say."""
    handler: logging.Handler
    if args.log_file:
        try:
            handler = _LogFile(args.log_file)
        except OSError as e:
            raise UsageError(f"cannot write the log file {args.log_file}: {e.strerror}") from e
        handler.setFormatter(_InOptions("%(asctime)s %(levelname)-7s (%(threadName)s) [%(name)s] %(message)s"))
    else:
        handler = _OverProgress()
        handler.setFormatter(_InOptions(f"{PROG}: %(levelname)s: %(message)s"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel((args.log_level or "warning").upper())
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
        handler.close()


if __name__ == "__main__":
    sys.exit(main())
