# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Which key of the logging sections is wrong, in the words of all other sections.

`logging.config.fileConfig` uses the sections; its errors name neither file nor key.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from .config import Config, ConfigError


def check(cfg: Config) -> None:
    """Refuse levels and names that nothing stands behind, in the sections that are in use.

    Raises:
        ConfigError: It names file, section, key, value and what was expected.
    """
    for kind in ("formatters", "handlers", "loggers"):
        for name in _names(cfg, kind, "keys"):
            _check_section(cfg, kind, f"{kind[:-1]}_{name}")
    if "root" not in _names(cfg, "loggers", "keys"):
        raise _error(cfg, "loggers", "keys", "root among the names")


def level_of(cfg: Config, section: str) -> int:
    """Return the level that a section of a logger or handler sets.

    Raises:
        ConfigError: It has a name that logging does not know.
    """
    level = logging.getLevelName(cfg.logging[section]["level"].strip())
    if not isinstance(level, int):
        raise _error(cfg, section, "level", "a level like INFO or DEBUG")
    return level


def blame(cfg: Config) -> ConfigError | None:
    """Return the error of the first handler or formatter that Python cannot make; None if that is not why."""
    for kind, section in _listed(cfg):
        keys = cfg.logging[section]
        if "class" in keys and not _is_class(keys["class"]):
            return _error(cfg, section, "class", f"a class of {kind}")
        for key in ("args", "kwargs"):
            if kind == "handlers" and key in keys and not _is_expression(keys[key]):
                return _error(cfg, section, key, "arguments of the class, as Python writes them")
    return None


def _listed(cfg: Config) -> Iterator[tuple[str, str]]:
    """Yield the kind and the section of each formatter and handler in use."""
    for kind in ("formatters", "handlers"):
        for name in _names(cfg, kind, "keys"):
            yield kind, f"{kind[:-1]}_{name}"


def _check_section(cfg: Config, kind: str, section: str) -> None:
    keys = cfg.logging.get(section)
    if keys is None:
        raise _error(cfg, kind, "keys", f"names that have a section, as [{section}]")
    needed = {"handlers": ["class"], "loggers": ["handlers"] if section == "logger_root" else ["handlers", "qualname"]}
    for key in needed.get(kind, []):
        if key not in keys:
            raise ConfigError(f"{_place(cfg, kind, 'keys')}: [{section}] has no key {key}")
    if "level" in keys and kind != "formatters":
        level_of(cfg, section)
    if kind == "loggers":
        _check_names(cfg, section, "handlers", among="handlers")
    if kind == "handlers" and keys.get("formatter"):
        _check_names(cfg, section, "formatter", among="formatters")


def _check_names(cfg: Config, section: str, key: str, *, among: str) -> None:
    known = _names(cfg, among, "keys")
    for name in _names(cfg, section, key):
        if name not in known:
            raise _error(cfg, section, key, f"names that keys of [{among}] has, {', '.join(known) or 'none'}")


def _names(cfg: Config, section: str, key: str) -> list[str]:
    """Split a list of names as fileConfig does."""
    text = cfg.logging[section].get(key, "")
    return [name.strip() for name in text.split(",")] if text.strip() else []


def _is_class(text: str) -> bool:
    try:
        found = eval(text, vars(logging))  # as fileConfig does with a file that its administrator wrote
    except Exception:
        found = _imported(text)
    return callable(found)


def _imported(text: str) -> object:
    import importlib  # only where the start fails, or a class is not of logging itself

    module, _, name = text.strip().rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None) if module else None
    except ImportError:
        return None


def _is_expression(text: str) -> bool:
    try:
        eval(text, vars(logging))  # see above
    except Exception:
        return False
    return True


def _error(cfg: Config, section: str, key: str, expected: str) -> ConfigError:
    value = cfg.logging[section].get(key, "")
    return ConfigError.value(cfg.sources.get((section, key)), section, key, value=value, expected=expected)


def _place(cfg: Config, section: str, key: str) -> str:
    return cfg.sources.get((section, key)) or "default"
