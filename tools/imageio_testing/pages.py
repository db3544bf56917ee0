# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages of the documentation, done as a reader would: every block of code that they show.

console:  Each command after `$ ` runs in one shell, in an empty folder. It must print the lines
          that stand below it. A line `...` stands for any number of lines, and empty lines do
          not count.
python:   Runs as a program of its own, in the same folder. A block whose first line is
          `# NAME.py` is a file of the reader's, and is put there under that name.
ini:      Is loaded as a configuration, and may have no key that the daemon does not know.
json:     Is parsed.

A block whose first line says `# not run by a test: REASON` is left out, and so is a command
that ends with `# untested`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Iterator

from ovirt_imageio.daemon import config

from .ports import held_port

NOT_RUN = "# not run by a test: "
UNTESTED = "# untested"
PATIENCE = 60.0
"""Seconds after which a command is taken for stuck."""

_DAEMON = "ovirt-imageio"
_SERVERS = (_DAEMON, "qemu-nbd", "nbdkit", "python3")
_FENCE = re.compile(r"^```([a-z]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (\w+\.py)\n")
_LISTENING_TCP, _LISTENING_UNIX = "0A", "00010000"


class PageFailed(Exception):
    """A block did not do what the page says."""


@dataclass(frozen=True)
class Block:
    """A block of code of a page."""

    language: str
    text: str

    @property
    def run(self) -> bool:
        """Whether a test runs it."""
        return not self.text.startswith(NOT_RUN)


@dataclass
class Command:
    """A command of a console block, and the lines that it must print; None: anything."""

    text: str
    output: list[str]


def blocks(text: str) -> list[Block]:
    """Return the blocks of code of a page, in order."""
    return [Block(language, code) for language, code in _FENCE.findall(text)]


@contextlib.contextmanager
def with_free_ports(text: str) -> Iterator[str]:
    """Replace the daemon's ports by free ones, so that pages can be tested side by side."""
    with contextlib.ExitStack() as stack:
        for port in re.findall(r"\b5432[2-9]\b", text):
            if port in text:
                text = text.replace(port, str(stack.enter_context(held_port())))
        yield text


def commands(text: str) -> Iterator[Command]:
    """Take a console block apart. A command goes on until a shell takes it for complete."""
    current: Command | None = None
    for line in text.splitlines():
        if line.startswith("$ "):
            if current is not None:
                yield current
            current = Command(line[2:], [])
        elif current is None:
            raise PageFailed(f"a console block begins with {line!r}, not with a command")
        elif not current.output and not _is_complete(current.text):
            current.text += "\n" + line
        else:
            current.output.append(line)
    if current is not None:
        yield current


def _is_complete(text: str) -> bool:
    if text.endswith("\\"):
        return False
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    return done.returncode == 0 and not done.stderr


class Shell:
    """One bash, in a session of its own; whatever it started ends with it.

    Args:
        folder: where it runs; HOME as well.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {
            "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)]),
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        }
        self._process = subprocess.Popen(
            ["bash", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=self.env,
            text=True,
            start_new_session=True,
        )
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._notify_name = f"imageio-page-{self._process.pid}"
        self._notify.bind(f"\0{self._notify_name}")

    def __enter__(self) -> Shell:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        leader = self._process.pid
        if kind is not None:
            self._process.kill()  # it may be in the middle of a command
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in _session(leader) - {leader}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            if number == signal.SIGTERM:
                _until(lambda: _session(leader) <= {leader}, 10)
        self._process.communicate("exit\n" if kind is None else None)
        self._notify.close()

    def run(self, command: Command) -> None:
        """Run a command and compare what it prints.

        A server in the background is waited for until it listens, a daemon until it says that all its
        services do.

        Raises:
            PageFailed: it failed, or printed something else.
        """
        background = command.text.rstrip().endswith("&")
        program = command.text.split()[0]
        listening = _listeners(self._process.pid)
        # Servers go on writing while later commands print.
        start, end = ("exec 8>&1 >>servers.log 2>&1", "exec >&8 2>&1") if background else ("", "")
        if background and program == _DAEMON:
            start, end = f"{start}\nexport NOTIFY_SOCKET=@{self._notify_name}", f"{end}\nunset NOTIFY_SOCKET"
        status, output = self._send(f"{start}\n{command.text}\nstatus=$?\n{end}")
        if status != 0:
            raise PageFailed(f"{command.text}: exit status {status}\n{output}")
        serves = self._daemon_is_ready if program == _DAEMON else lambda: _listeners(self._process.pid) - listening
        if background and program in _SERVERS and not _until(serves, PATIENCE):
            log = (self.folder / "servers.log").read_text()
            raise PageFailed(f"{command.text}: it does not listen\n{log}")
        wanted = [line for line in command.output if line]
        if wanted and not matches(wanted, output.splitlines()):
            expected = "\n".join(wanted)
            raise PageFailed(f"{command.text}: expected\n{expected}\nbut it printed\n{output}")

    def _daemon_is_ready(self) -> bool:
        """Tell whether the daemon that was started last has said so; others may have said that they stop."""
        with contextlib.suppress(BlockingIOError):
            return self._notify.recv(4096).startswith(b"READY=1")
        return False

    def _send(self, text: str) -> tuple[int, str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        mark = "done 4f1c"
        self._process.stdin.write(f"{text}\necho; echo {mark} $status\n")
        self._process.stdin.flush()
        lines: list[str] = []
        for line in self._process.stdout:
            if line.startswith(mark):
                return int(line.split()[-1]), "".join(lines).rstrip("\n")
            if line.strip():
                lines.append(line)
        raise PageFailed(f"{text}: the shell ended\n{''.join(lines)}")


def run_page(page: Path, folder: Path) -> int:
    """Do all that a page shows, in an empty folder.

    Returns:
        The number of blocks that were run.

    Raises:
        PageFailed: something is not as the page says.
    """
    count = 0
    with Shell(folder) as shell, with_free_ports(page.read_text()) as text:
        for block in blocks(text):
            if block.run:
                count += 1
                _run_block(block, shell)
    return count


def _run_block(block: Block, shell: Shell) -> None:
    if block.language == "console":
        for command in commands(block.text):
            if not command.text.endswith(UNTESTED):
                shell.run(command)
    elif block.language == "python":
        named = _FILE.match(block.text)
        if named:
            _save_python(named[1], block.text, shell.folder)
        else:
            _run_python(block.text, shell)
    elif block.language == "ini":
        _load_ini(block.text, shell.folder)
    elif block.language == "json":
        json.loads(block.text)


def _run_python(text: str, shell: Shell) -> None:
    done = subprocess.run(
        [sys.executable, "-"],
        input=text,
        capture_output=True,
        text=True,
        cwd=shell.folder,
        env=shell.env,
        timeout=PATIENCE,
        check=False,
    )
    if done.returncode:
        raise PageFailed(f"{text}\n{done.stdout}{done.stderr}")


def _save_python(name: str, text: str, folder: Path) -> None:
    try:
        compile(text, name, "exec")
    except SyntaxError as e:
        raise PageFailed(f"{name}: {e}") from e
    (folder / name).write_text(text)


def _load_ini(text: str, folder: Path) -> None:
    path = folder / "page.conf"
    path.write_text(text)
    try:
        cfg = config.load_files([str(path)])
    except config.ConfigError as e:
        raise PageFailed(f"{text}\n{e}") from e
    if cfg.warnings:
        raise PageFailed(f"{text}\n{cfg.warnings}")


def matches(expected: list[str], printed: list[str]) -> bool:
    """Compare lines; `...` alone stands for any number of lines, within a line for any text."""
    pattern = "".join(
        "(?:.*\n)*" if line == "..." else ".*".join(map(re.escape, line.rstrip().split("..."))) + "\n"
        for line in expected
    )
    return re.fullmatch(pattern, "".join(f"{line.rstrip()}\n" for line in printed)) is not None


def _until(condition: object, seconds: float) -> bool:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)  # what other programs do is seen in /proc only, and nothing tells when
    return True


def _session(leader: int) -> set[int]:
    """Processes of a session."""
    found = set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            stat = Path("/proc", name, "stat").read_text()
        except OSError:
            continue
        state, _, _, session = stat.rpartition(")")[2].split()[:4]
        if int(session) == leader and state != "Z":
            found.add(int(name))
    return found


def _listeners(leader: int) -> set[str]:
    """Inodes of the sockets on which processes of a session listen."""
    listening = set()
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == _LISTENING_UNIX:
            listening.add(fields[6])
    for name in ("tcp", "tcp6"):
        for line in Path("/proc/net", name).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENING_TCP:
                listening.add(fields[9])
    held = set()
    for pid in _session(leader):
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{fd}"))
                if match:
                    held.add(match[1])
        except OSError:
            continue
    return held & listening
