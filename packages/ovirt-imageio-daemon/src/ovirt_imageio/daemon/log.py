# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Set up the log as the configuration says, and write ids so that they give nothing away."""

from __future__ import annotations

import configparser
import json
import logging
import logging.config
import sys
import time

from . import logcheck, logwriter
from .config import Config, ConfigError

log = logging.getLogger(__name__)


class LogDenied(ConfigError):
    """The user may not open a log file.

    Args:
        text: The error.
        filename: The file.
    """

    def __init__(self, text: str, filename: str) -> None:
        super().__init__(text)
        self.filename = filename


def configure(cfg: Config) -> None:
    """Apply the logging sections of the configuration (logging.config.fileConfig).

    Call as the user that the daemon runs as: a log file made by root could not be
    rotated later. See handover.py.

    Raises:
        ConfigError: a section is wrong or a log file cannot be written; `LogDenied` if it may not be.
    """
    logcheck.check(cfg)
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_dict(cfg.logging)
    try:
        logging.config.fileConfig(parser, disable_existing_loggers=False)
    except OSError as e:
        text = f"{_sections(cfg)}: cannot write the log {e.filename}: {e.strerror}"
        if isinstance(e, PermissionError) and isinstance(e.filename, str):
            raise LogDenied(text, e.filename) from e
        raise ConfigError(text) from e
    except Exception as e:
        # fileConfig evaluates `args` and imports classes: anything may come out of it.
        unknown = ConfigError(f"{_sections(cfg)}: {type(e).__name__}: {_one_line(e)}")
        raise (logcheck.blame(cfg) or unknown) from e
    logging.captureWarnings(True)


def loggers(cfg: Config) -> list[logging.Logger]:
    """Return the loggers that the configuration gives handlers to, the root first."""
    names = [name.strip() for name in cfg.logging["loggers"]["keys"].split(",")]
    others = [cfg.logging[f"logger_{name}"]["qualname"] for name in names if name != "root"]
    return [logging.getLogger(), *map(logging.getLogger, dict.fromkeys(others))]


def apply_levels(cfg: Config) -> list[str]:
    """Set the levels of configured loggers; handlers and formats stay as they are.

    Returns:
        Changes, like `root: INFO → DEBUG`.

    Raises:
        ConfigError: a level has a name that logging does not know; nothing is changed.
    """
    wanted: dict[str, tuple[logging.Logger, int]] = {}
    for section, keys in cfg.logging.items():
        if not section.startswith("logger_") or "level" not in keys:
            continue
        name = "root" if section == "logger_root" else keys.get("qualname", "")
        level = logcheck.level_of(cfg, section)
        wanted[name] = (logging.getLogger(None if name == "root" else name), level)
    changed = []
    for name, (logger, level) in wanted.items():
        if logger.level != level:
            old, new = logging.getLevelName(logger.level), logging.getLevelName(level)
            changed.append(f"{name}: {old} → {new}")
            logger.setLevel(level)
    return changed


def _sections(cfg: Config) -> str:
    """Name where logging is configured; which key it was, fileConfig does not tell."""
    return ", ".join(cfg.files) + ": [loggers] [handlers] [formatters]" if cfg.files else "logging"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def reaches_stderr() -> bool:
    """Tell whether the root logger writes to standard error."""
    return any(
        isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr
        for handler in map(logwriter.real, logging.getLogger().handlers)
    )


class JsonFormatter(logging.Formatter):
    """Writes a record as one JSON object on a line, for programs that collect logs.

    Keys: `time` (ISO 8601, UTC), `level`, `logger`, `thread`, `message`, and, with a
    traceback, `exception`. Chosen by `formatter = json` in a handler's section.
    """

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        # Not by datetime, which nothing else loads in a daemon.
        seconds, milliseconds = divmod(int(record.created * 1000), 1000)
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        entry = {
            "time": f"{when}.{milliseconds:03}+00:00",
            "level": record.levelname,
            "logger": record.name,
            "thread": record.threadName,
            "message": record.getMessage(),
        }
        if record.exc_text or record.exc_info:
            entry["exception"] = record.exc_text or self.formatException(record.exc_info)  # type: ignore[arg-type]
        return json.dumps(entry, ensure_ascii=False)


def one_line(text: str, longest: int = 1000) -> str:
    """Make any text fit into a line of the log: nobody may forge lines, nor fill the disk with them.

    Args:
        text: Any text; what is not printable is escaped.
        longest: Characters; what is longer is cut off.
    """
    line = text if text.isprintable() else repr(text)[1:-1]
    return line if len(line) <= longest else line[:longest] + "…"


def short_id(ticket_id: str) -> str:
    """Abbreviate a ticket id: whoever knows the whole id may use the ticket."""
    return ticket_id[:8] + "…" if len(ticket_id) > 8 else ticket_id
