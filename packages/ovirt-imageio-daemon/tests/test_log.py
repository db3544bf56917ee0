# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imageio_testing.daemon import Daemon
from ovirt_imageio.daemon import config, log


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Give the root logger back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers[:]:
        if handler not in handlers:
            root.removeHandler(handler)
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def load(tmp_path: Path, text: str) -> config.Config:
    path = tmp_path / "log.conf"
    path.write_text(text)
    return config.load_files([str(path)])


def file_handler(path: Path) -> str:
    return f'[handler_logfile]\nargs = ("{path}",)\n'


def test_default_handler_rotates_the_log_file(tmp_path: Path) -> None:
    log.configure(load(tmp_path, file_handler(tmp_path / "daemon.log")))
    logging.getLogger("x").info("100%% of %s", "it")
    (handler,) = logging.getLogger().handlers
    assert (handler.maxBytes, handler.backupCount) == (20 << 20, 10)  # type: ignore[attr-defined]
    line = (tmp_path / "daemon.log").read_text()
    assert line.endswith(" INFO    (MainThread) [x] 100% of it\n")
    assert not log.reaches_stderr()


def test_stderr_handler_is_noticed(tmp_path: Path) -> None:
    text = "[handlers]\nkeys = stderr\n[logger_root]\nhandlers = stderr\n"
    log.configure(load(tmp_path, text))
    assert log.reaches_stderr()


def test_log_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "no" / "daemon.log"
    with pytest.raises(config.ConfigError, match=rf"cannot write the log {missing}: No such file"):
        log.configure(load(tmp_path, file_handler(missing)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[logger_root]\nlevel = LOUD\n", "[logger_root] level = LOUD: expected a level like INFO"),
        ("[handler_logfile]\nlevel = 5x\n", "[handler_logfile] level = 5x: expected a level like INFO"),
        ("[handlers]\nkeys = nosuch\n", "[handlers] keys = nosuch: expected names that have a section"),
        ("[loggers]\nkeys = root,x\n", "[loggers] keys = root,x: expected names that have a section"),
        ("[loggers]\nkeys = x\n[logger_x]\nqualname = x\nhandlers=\n", "[loggers] keys = x: expected root"),
        ("[loggers]\nkeys = root,x\n[logger_x]\nhandlers =\n", "[logger_x] has no key qualname"),
        ("[loggers]\nkeys = root,x\n[logger_x]\nqualname = x\n", "[logger_x] has no key handlers"),
        ("[handlers]\nkeys = x\n[handler_x]\nlevel = INFO\n", "[handler_x] has no key class"),
        ("[formatters]\nkeys = x\n", "[formatters] keys = x: expected names that have a section, as [formatter_x]"),
        ("[handler_logfile]\nformatter = x\n", "[handler_logfile] formatter = x: expected names that keys"),
        ("[logger_root]\nhandlers = x\n", "[logger_root] handlers = x: expected names that keys of [handlers] has"),
        ("[handler_logfile]\nclass = no.such.Class\n", "[handler_logfile] class = no.such.Class: expected a class"),
        ("[handler_logfile]\nclass = nonsense\n", "[handler_logfile] class = nonsense: expected a class"),
        ("[formatter_long]\nclass = os.nonsense\n", "[formatter_long] class = os.nonsense: expected a class"),
        ("[handler_logfile]\nargs = nonsense(\n", "[handler_logfile] args = nonsense(: expected arguments"),
        ("[handler_logfile]\nkwargs = {x}\n", "[handler_logfile] kwargs = {x}: expected arguments"),
        ("[handler_logfile]\nargs = (1, 2, 3, 4, 5, 6, 7, 8)\n", "TypeError"),
    ],
)
def test_wrong_section_is_one_line_that_names_the_key(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(config.ConfigError, match=rf"{tmp_path}/log\.conf: .*{re.escape(expected)}") as e:
        log.configure(load(tmp_path, text))
    assert "\n" not in str(e.value)


def test_sections_that_are_not_in_use_are_not_looked_at(tmp_path: Path) -> None:
    text = "[logger_x]\nlevel = LOUD\n[handler_stderr]\nlevel = LOUD\nformatter = x\n"
    log.configure(load(tmp_path, file_handler(tmp_path / "daemon.log") + text))


def test_levels_change_while_running_and_changes_are_told(tmp_path: Path) -> None:
    log.configure(load(tmp_path, file_handler(tmp_path / "daemon.log")))
    text = "[logger_root]\nlevel = DEBUG\n[logger_x]\nqualname = some.x\nlevel = ERROR\n"
    cfg = load(tmp_path, text)
    assert log.apply_levels(cfg) == ["root: INFO → DEBUG", "some.x: NOTSET → ERROR"]
    assert log.apply_levels(cfg) == []
    logging.getLogger("some.x").setLevel(logging.NOTSET)


def test_unknown_level_changes_nothing(tmp_path: Path) -> None:
    level = logging.getLogger().level
    with pytest.raises(config.ConfigError, match=r"\[logger_x\] level = LOUD"):
        log.apply_levels(load(tmp_path, "[logger_root]\nlevel = DEBUG\n[logger_x]\nlevel = LOUD\n"))
    assert logging.getLogger().level == level


def test_ids_are_abbreviated() -> None:
    assert log.short_id("01234567-89ab-cdef") == "01234567…"
    assert log.short_id("short") == "short"


def test_any_text_fits_in_a_line() -> None:
    assert log.one_line("plain é") == "plain é"
    assert log.one_line("a\nb\x1b\u2028\ud800") == r"a\nb\x1b\u2028\ud800"
    assert log.one_line("x" * 60000) == "x" * 1000 + "…"
    assert log.one_line("\n" * 9, 4) == r"\n\n…"


def test_json_formatter_writes_one_object_a_line() -> None:
    record = logging.LogRecord("a.b", logging.WARNING, __file__, 1, "disk %s\nis full", ("»x«",), None)
    record.created = 1700000000.25
    text = log.JsonFormatter().format(record)
    assert "\n" not in text
    assert json.loads(text) == {
        "time": "2023-11-14T22:13:20.250+00:00",
        "level": "WARNING",
        "logger": "a.b",
        "thread": "MainThread",
        "message": "disk »x«\nis full",
    }


def test_json_formatter_keeps_the_traceback_in_the_object() -> None:
    try:
        raise OSError("no")
    except OSError:
        record = logging.LogRecord("a", logging.ERROR, __file__, 1, "failed", (), sys.exc_info())
    assert json.loads(log.JsonFormatter().format(record))["exception"].endswith("OSError: no")


def test_json_is_chosen_in_the_handlers_section(tmp_path: Path) -> None:
    with Daemon(tmp_path, tls=False, config={"handler_stderr": {"formatter": "json"}}) as daemon:
        assert daemon.pid
    entries = [json.loads(line) for line in daemon.log.splitlines()]
    assert entries[0]["message"].startswith("Starting ovirt-imageio")
