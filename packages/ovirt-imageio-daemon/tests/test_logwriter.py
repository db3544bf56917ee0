# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""A log that takes no lines stops nothing but the thread that writes it."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imageio_testing.daemon import Daemon
from ovirt_imageio.common.linux import F_SETPIPE_SZ
from ovirt_imageio.daemon import logwriter
from ovirt_imageio.daemon.log import JsonFormatter
from ovirt_imageio.daemon.logwriter import LogWriter


class Gate(logging.StreamHandler):  # type: ignore[type-arg]
    """Takes lines while it is open."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.entered = threading.Event()
        self.open = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.entered.set()
        assert self.open.wait(10)
        super().emit(record)

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("imageio-test-logwriter")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    yield logger
    logger.handlers.clear()


@contextlib.contextmanager
def writing(logger: logging.Logger, handler: logging.Handler, **options: Any) -> Iterator[LogWriter]:
    logger.addHandler(handler)
    writer = LogWriter([logger], **options)
    try:
        yield writer
    finally:
        assert writer.close(10)


def test_what_was_logged_before_can_be_waited_for(logger: logging.Logger) -> None:
    gate = Gate()
    with writing(logger, gate) as writer:
        logger.info("first")
        assert not writer.catch_up(0)
        logger.info("second")
        gate.open.set()
        assert writer.catch_up(60)
        assert gate.lines == ["first", "second"]
        assert writer.catch_up(60)
    assert writer.catch_up(0)  # it is closed: loggers write by themselves


def test_log_has_the_start_when_the_daemon_is_ready(tmp_path: Path) -> None:
    """A reader of the log that waits for the daemon alone finds what the start told."""
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        with Daemon(folder, tls=False) as daemon:
            assert "Ready in" in daemon.log


def test_lines_take_no_lock_of_their_handler(logger: logging.Logger) -> None:
    """A lock of None is no promise: logging of Python 3.13 enters it."""
    lines = io.StringIO()
    with writing(logger, logging.StreamHandler(lines)):
        (deferred,) = logger.handlers
        deferred.addFilter(lambda record: record.getMessage() != "kept back")
        deferred.lock = object()  # type: ignore[assignment]  # has no method that takes it
        logger.info("told")
        logger.info("kept back")
        deferred.lock = None
    assert lines.getvalue() == "told\n"


def test_lines_are_written_in_order_and_all_before_the_end(logger: logging.Logger) -> None:
    handler = logging.StreamHandler(io.StringIO())
    with writing(logger, handler):
        for i in range(100):
            logger.info("line %d", i)
    assert handler.stream.getvalue().splitlines() == [f"line {i}" for i in range(100)]
    logger.info("after the end")  # written at once
    assert handler.stream.getvalue().endswith("after the end\n")


def test_caller_does_not_wait_for_the_log(logger: logging.Logger) -> None:
    gate = Gate()
    with writing(logger, gate):
        logger.info("first")
        assert gate.entered.wait(10)
        logger.info("second")
        assert gate.lines == []
        gate.open.set()
    assert gate.lines == ["first", "second"]


def test_lines_that_do_not_fit_are_counted(logger: logging.Logger) -> None:
    gate = Gate()
    with writing(logger, gate, limit=3):
        logger.info("written")
        assert gate.entered.wait(10)
        for i in range(10):
            logger.info("line %d", i)
        gate.open.set()
    assert gate.lines == ["written", "line 0", "line 1", "line 2", "7 lines were lost here: the log took none"]


def test_record_is_what_it_was_when_it_was_logged(logger: logging.Logger) -> None:
    gate = Gate()
    gate.setFormatter(JsonFormatter())
    things = ["before"]
    with writing(logger, gate):
        try:
            raise OSError("no")
        except OSError:
            logger.exception("failed with %s", things)
        things.append("after")
        logger.info("%d", "not a number") if False else logger.info("plain")
        gate.open.set()
    first, second = map(json.loads, gate.lines)
    assert first["message"] == "failed with ['before']"
    assert first["exception"].endswith("OSError: no")
    assert first["thread"] == threading.current_thread().name
    assert second["message"] == "plain"


def test_record_keeps_nothing_alive(logger: logging.Logger) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.StreamHandler(io.StringIO())
    handler.addFilter(lambda record: records.append(record) or True)  # type: ignore[func-returns-value]
    with writing(logger, handler):
        try:
            raise OSError("no")
        except OSError:
            logger.exception("failed with %s", object())
    assert (records[0].args, records[0].exc_info) == (None, None)
    assert handler.stream.getvalue().endswith("OSError: no\n")


def test_levels_of_handlers_count(logger: logging.Logger) -> None:
    handler = logging.StreamHandler(io.StringIO())
    handler.setLevel(logging.WARNING)
    with writing(logger, handler):
        logger.info("quiet")
        logger.warning("loud")
    assert handler.stream.getvalue() == "loud\n"


def test_line_that_cannot_be_written_is_no_end(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(logging.StreamHandler):  # type: ignore[type-arg]
        def emit(self, record: logging.LogRecord) -> None:
            if record.msg == "bad":
                raise ValueError("cannot")
            super().emit(record)

    handler = Broken(io.StringIO())
    with writing(logger, handler):
        logger.info("bad")
        logger.info("good")
    assert handler.stream.getvalue() == "good\n"


def test_log_that_hangs_does_not_hold_up_the_end(logger: logging.Logger) -> None:
    gate = Gate()
    logger.addHandler(gate)
    writer = LogWriter([logger])
    logger.info("stuck")
    assert gate.entered.wait(10)
    assert not writer.close(0.01)
    logger.info("dropped, without waiting")
    gate.open.set()
    writer.join(10)


def test_line_is_written_at_once_where_no_thread_can_start(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(logwriter.threading.Thread, "start", refuse)
    handler = logging.StreamHandler(io.StringIO())
    with writing(logger, handler):
        logger.info("x")
        assert handler.stream.getvalue() == "x\n"


# The whole daemon.


@pytest.fixture
def full_pipe(tmp_path: Path) -> Iterator[Path]:
    """A FIFO that takes no byte more, and has a reader, who reads nothing."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.fcntl(fd, F_SETPIPE_SZ, 4096)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(fd, b"x")
        yield path
    finally:
        os.close(fd)


def test_daemon_serves_and_stops_with_a_log_that_takes_nothing(tmp_path: Path, full_pipe: Path) -> None:
    config = {
        "handlers": {"keys": "pipe"},
        "handler_pipe": {"class": "FileHandler", "args": f'("{full_pipe}",)'},
        "logger_root": {"level": "DEBUG", "handlers": "pipe"},
    }
    with Daemon(tmp_path, tls=False, config=config) as daemon:
        ticket_id = daemon.add_ticket("file:///dev/null", size=0)
        assert daemon.ticket(ticket_id)["size"] == 0
        with daemon.admin() as client:
            assert client.status()["stopping"] is False


SLOW = """
import os, signal, sys
from ovirt_imageio.daemon import cli, server

class Stuck:
    def __init__(self, *args, **options):
        pass
    def start(self):
        os.kill(os.getpid(), int(sys.argv[2]))
        os.read(os.pipe()[0], 1)  # as opening a pipe that nobody reads
    def stop(self, reason):
        return True
    def close(self):
        print("closed", flush=True)
        return True

server.Server = Stuck
sys.exit(cli.main(["-c", sys.argv[1]]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_a_start_that_hangs(tmp_path: Path, number: int) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "50.conf").write_text("")
    command = [sys.executable, "-c", SLOW, str(tmp_path), str(int(number))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "closed\n")
