# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Read the drop-in files into a frozen `Config`.

Files `conf.d/*.conf` of three folders are read in the order of their base
names. Later ones win, key by key. Of equal names the administrator's is read
last:

    /usr/lib/ovirt-imageio    what packages ship
    /run/ovirt-imageio        what a program sets until the next boot
    /etc/ovirt-imageio        what the administrator sets; `-c DIR` stands in for it

A DIR given must hold at least one file, for an empty one is a mistyped one.
"""

from __future__ import annotations

import configparser
import math
import os
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from ovirt_imageio.common.errors import ImageioError
from ovirt_imageio.common.units import parse_size

from . import options

DEFAULT_CONF_DIR = "/etc/ovirt-imageio"
RUNTIME_CONF_DIR = "/run/ovirt-imageio"
VENDOR_CONF_DIR = "/usr/lib/ovirt-imageio"

# Defaults of the sections that logging.config.fileConfig reads.
LOGGING_DEFAULTS: dict[str, dict[str, str]] = {
    "loggers": {"keys": "root"},
    "handlers": {"keys": "logfile"},
    "formatters": {"keys": "long,json"},
    "logger_root": {"level": "INFO", "handlers": "logfile", "propagate": "0"},
    "handler_logfile": {
        "class": "logging.handlers.RotatingFileHandler",
        "args": '("/var/log/ovirt-imageio/daemon.log",)',
        "kwargs": '{"maxBytes": 20971520, "backupCount": 10}',
        "level": "DEBUG",
        "formatter": "long",
    },
    "handler_stderr": {
        "class": "logging.StreamHandler",
        "args": "()",
        "level": "DEBUG",
        "formatter": "long",
    },
    "formatter_long": {
        "format": "%(asctime)s %(levelname)-7s (%(threadName)s) [%(name)s] %(message)s",
    },
    "formatter_json": {
        "class": "ovirt_imageio.daemon.log.JsonFormatter",
        "format": "%(message)s",
    },
}

# Prefixes of sections that fileConfig accepts: logger_NAME, handler_NAME and formatter_NAME.
_LOGGING_PREFIXES = ("logger_", "handler_", "formatter_")


# No file name, host, user or address has one; only an abstract socket address begins with NUL.
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class ConfigError(ImageioError, ValueError):
    """The configuration cannot be used. Its text is one line for the operator."""

    @classmethod
    def value(cls, filename: str | None, section: str, key: str, *, value: object, expected: str) -> ConfigError:
        """Build the error for a wrong value; `filename` None means that the default is wrong."""
        where = filename or "default"
        return cls(f"{where}: [{section}] {key} = {_show(value)}: expected {expected}")


def _show(value: object) -> str:
    """Write a value as it stands in a file, on one line."""
    if isinstance(value, bool):
        return str(value).lower()
    return _CONTROL_CHARACTERS.sub(lambda found: f"\\u{ord(found[0]):04x}", str(value)) or "(empty)"


class Config(NamedTuple):
    """The effective configuration, one attribute a section.

    Attributes:
        logging: sections for `logging.config.fileConfig`, as text.
        files: the files read, in order.
        warnings: one line for each unknown section or key, to be logged.
        sources: the file that set a (section, key), for error messages.
    """

    daemon: options.Daemon = options.Daemon()
    tls: options.Tls = options.Tls()
    backend_file: options.BackendFile = options.BackendFile()
    backend_nbd: options.BackendNbd = options.BackendNbd()
    backend_http: options.BackendHttp = options.BackendHttp()
    remote: options.Remote = options.Remote()
    local: options.Local = options.Local()
    control: options.Control = options.Control()
    profile: options.Profile = options.Profile()
    metrics: options.Metrics = options.Metrics()
    logging: Mapping[str, Mapping[str, str]] = LOGGING_DEFAULTS
    files: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    sources: Mapping[tuple[str, str], str] = MappingProxyType({})

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return section → key → value, the shape that `--show-config` prints."""
        result = {name: getattr(self, name).to_dict() for name in options.SECTIONS}
        result.update({name: _shown_logging(name, values) for name, values in self.logging.items()})
        return result

    def error(self, section: str, key: str, expected: str) -> ConfigError:
        """Build the error for a value that turned out wrong later, as a missing file does."""
        value = getattr(getattr(self, section), key)
        source = self.sources.get((section, key))
        return ConfigError.value(source, section, key, value=value, expected=expected)


def load(conf_dir: str = DEFAULT_CONF_DIR) -> Config:
    """Read the configuration of a daemon or its admin client.

    Args:
        conf_dir: stands in for /etc/ovirt-imageio.

    Raises:
        ConfigError: no file was found, a file cannot be read, or a value is wrong.
    """
    return load_files(find_files(conf_dir))


def find_files(conf_dir: str = DEFAULT_CONF_DIR) -> list[str]:
    """List the drop-in files in the order in which they are read.

    Raises:
        ConfigError: `conf_dir`, other than the default, has no `conf.d/*.conf`; or no folder has;
            or one may not be read.
    """
    found: list[tuple[str, int, str]] = []
    for rank, folder in enumerate([VENDOR_CONF_DIR, RUNTIME_CONF_DIR, conf_dir]):
        names = _list(os.path.join(folder, "conf.d"))
        if folder == conf_dir and not names and conf_dir != DEFAULT_CONF_DIR:
            found.clear()
            break
        found.extend((os.path.basename(name), rank, name) for name in names)
    if not found:
        raise ConfigError(f"{conf_dir}/conf.d: no configuration: expected at least one *.conf file")
    return [name for _, _, name in sorted(found)]


def _list(folder: str) -> list[str]:
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as e:
        raise ConfigError(f"{folder}: cannot be read: {e.strerror}") from e
    return [os.path.join(folder, name) for name in names if name.endswith(".conf") and name[0] != "."]


def load_files(files: Sequence[str]) -> Config:
    """Merge files, later ones win, and check every value.

    Raises:
        ConfigError: as for `load`.
    """
    merged = _Merged()
    for name in files:
        merged.add(name, _parse(name))
    cfg = Config(
        **{name: merged.section(name) for name in options.SECTIONS},
        logging=merged.logging,
        files=tuple(files),
        warnings=tuple(merged.warnings),
        sources=merged.sources,
    )
    _check_consistency(cfg)
    return cfg


def _parse(filename: str) -> configparser.ConfigParser:
    # No interpolation: a log format is full of percent signs.
    parser = configparser.ConfigParser(interpolation=None)
    try:
        with open(filename, encoding="utf-8") as f:
            parser.read_file(f)
    except OSError as e:
        raise ConfigError(f"{filename}: cannot be read: {e.strerror or e}") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{filename}: not UTF-8 text: {e}") from e
    except configparser.Error as e:
        raise ConfigError(f"{filename}: not an INI file: {' '.join(str(e).split())}") from e
    return parser


class _Merged:
    """Text values of all files so far, and which file set them."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, str]] = {name: {} for name in options.SECTIONS}
        self.logging = {name: dict(keys) for name, keys in LOGGING_DEFAULTS.items()}
        self.sources: dict[tuple[str, str], str] = {}
        self.warnings: list[str] = []
        self._known = {name: {info.key for info in options.describe(name)} for name in options.SECTIONS}

    def add(self, filename: str, parser: configparser.ConfigParser) -> None:
        for section in parser.sections():
            if section in LOGGING_DEFAULTS or section.startswith(_LOGGING_PREFIXES):
                self._add_logging(filename, section, parser[section])
            elif section in self.values:
                self._add_section(filename, section, parser[section])
            else:
                self.warnings.append(f"{filename}: unknown section [{section}] ignored")

    def _add_logging(self, filename: str, section: str, keys: Mapping[str, str]) -> None:
        self.logging.setdefault(section, {}).update(keys)
        self.sources.update(dict.fromkeys(((section, key) for key in keys), filename))
        text = keys.get("propagate")
        if section.startswith("logger_") and text is not None and not _is_integer(text.strip()):
            raise ConfigError.value(filename, section, "propagate", value=text, expected="0 or 1")

    def _add_section(self, filename: str, section: str, keys: Mapping[str, str]) -> None:
        for key, text in keys.items():
            if key in self._known[section]:
                self.values[section][key] = text
                self.sources[section, key] = filename
            else:
                self.warnings.append(f"{filename}: unknown key {key!r} in [{section}] ignored")

    def section(self, name: str) -> Any:
        """Build one section from its texts."""
        values = {}
        for info in options.describe(name):
            if info.key not in self.values[name]:
                continue
            text = self.values[name][info.key]
            try:
                values[info.key] = parse_value(text, info)
            except ValueError as e:
                source = self.sources[name, info.key]
                raise ConfigError.value(source, name, info.key, value=text, expected=str(e)) from e
        return options.SECTIONS[name](**values)


def parse_value(text: str, info: options.OptionInfo) -> bool | int | float | str:
    """Turn the text of a file into the value of a key.

    Raises:
        ValueError: its message is what was expected instead.
    """
    text = text.strip()
    if info.type == "bool":
        return _parse_bool(text)
    if info.type == "str":
        return _parse_text(text, info.rule)
    return _parse_number(text, info)


def _parse_bool(text: str) -> bool:
    try:
        return configparser.ConfigParser.BOOLEAN_STATES[text.lower()]
    except KeyError:
        raise ValueError("true or false") from None


def _parse_text(text: str, rule: options.Rule) -> str:
    if rule.choices:
        text = text.lower()  # 2.x does not look at the case either
        if text not in rule.choices:
            raise ValueError(" or ".join(rule.choices))
    if rule.path:
        for escape in ("\\u0000", "\\x00", "\\0"):
            if text.startswith(escape):
                text = "\0" + text[len(escape) :]
                break
    abstract = rule.socket and text.startswith("\0")
    if _CONTROL_CHARACTERS.search(text, 1 if abstract else 0):
        raise ValueError("text on one line without control characters")
    return text


def _parse_number(text: str, info: options.OptionInfo) -> int | float:
    rule = info.rule
    try:
        value = _number(text, info)
    except ValueError:
        raise ValueError(_expected_number(info)) from None
    low = rule.minimum is not None and value < rule.minimum
    high = rule.maximum is not None and value > rule.maximum
    if low or high:
        raise ValueError(_expected_number(info))
    return value


def _number(text: str, info: options.OptionInfo) -> int | float:
    if info.type == "float":
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(text)
        return value
    if info.rule.unit == "bytes":
        return parse_size(text)
    if not _is_integer(text):
        raise ValueError(text)
    return int(text)


def _is_integer(text: str) -> bool:
    """Tell what int() takes, but for 1_0 and digits of other scripts."""
    digits = text[1:] if text.startswith("-") else text
    return digits.isascii() and digits.isdigit()


def _shown_logging(section: str, keys: Mapping[str, str]) -> dict[str, Any]:
    """Return a logging section as 2.x shows it: all texts, but for the one number."""
    shown: dict[str, Any] = dict(keys)
    if section.startswith("logger_") and "propagate" in shown:
        shown["propagate"] = int(shown["propagate"])
    return shown


def _expected_number(info: options.OptionInfo) -> str:
    rule = info.rule
    kind = "a number" if info.type == "float" else "an integer"
    unit = {"s": " of seconds", "bytes": " of bytes (suffixes k, m, g, t)"}.get(rule.unit, "")
    if rule.minimum is not None and rule.maximum is not None:
        return f"{kind}{unit} from {rule.minimum:g} to {rule.maximum:.12g}"
    if rule.minimum is not None:
        return f"{kind}{unit}, {rule.minimum:g} or more"
    return kind + unit


def _check_consistency(cfg: Config) -> None:
    """Refuse keys that are right one by one but not together."""
    control = cfg.control
    if not control.enable:
        return
    if control.transport == "tcp" and control.port < 0:
        raise cfg.error("control", "port", "a TCP port from 0 to 65535, as transport is tcp")
    # An abstract address has no permissions: any user of the host could add tickets.
    if control.transport == "unix" and (not control.socket or control.socket.startswith("\0")):
        raise cfg.error("control", "socket", "the path of a Unix socket, as transport is unix")
