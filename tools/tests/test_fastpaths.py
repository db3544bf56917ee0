# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""That `make fast-paths` leaves no fast path out, and that its settings come to every daemon of the tests."""

from __future__ import annotations

import operator
from pathlib import Path

import pytest
from fastpaths import __main__ as fastpaths

from imageio_testing.daemon import Daemon
from imageio_testing.serving import configured
from imageio_testing.settings import SWITCHES, VARIABLE, are_off
from ovirt_imageio.daemon import config, options
from ovirt_imageio.daemon.config import Config

TOP = fastpaths.TOP

# Switches, on by default, that make nothing faster.
NO_FAST_PATHS = {"daemon.drop_privileges", "daemon.systemd_enable"}


def switched_off(cfg: Config) -> set[str]:
    """Return which fast paths a configuration goes without."""
    keys = {name: setting.partition("=")[0] for name, setting in SWITCHES.items()}
    return {name for name, key in keys.items() if not operator.attrgetter(key)(cfg)}


def test_every_switch_is_in_the_matrix():
    sections = [name for name in options.SECTIONS if name == "daemon" or name.startswith("backend_")]
    found = {
        f"{name}.{info.key}" for name in sections for info in options.describe(name) if info.default is True
    } - NO_FAST_PATHS
    assert found | {"daemon.inline_limit"} == {setting.partition("=")[0] for setting in SWITCHES.values()}


def test_every_switch_is_in_the_guide():
    guide = (TOP / "docs" / "guides" / "tuning.md").read_text()
    assert [setting for setting in SWITCHES.values() if f"`{setting.partition('=')[0]}" not in guide] == []


def test_suites_are_there():
    files = [arg for suite in fastpaths.SUITES.values() for arg in suite if arg.endswith(".py")]
    assert files
    assert [name for name in files if not Path(TOP, name).exists()] == []


@pytest.mark.system
def test_settings_come_to_a_daemon(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, " ".join(SWITCHES.values()))
    with Daemon(tmp_path, tls=False, config={"daemon": {"splice": True}}) as daemon:
        cfg = config.load(daemon.conf_dir)
    assert switched_off(cfg) == set(SWITCHES) - {"splice"}, "what a test sets itself wins"


def test_settings_come_to_a_service_in_the_test(monkeypatch):
    monkeypatch.setenv(VARIABLE, " ".join(SWITCHES.values()))
    cfg = configured(Config(daemon=options.Daemon(inline_limit=7)))
    assert cfg.daemon.inline_limit == 7
    assert switched_off(cfg) == set(SWITCHES) - {"inline"}
    monkeypatch.setenv(VARIABLE, SWITCHES["inline"])
    assert are_off("splice", "inline")
    assert not are_off("splice", "loop nbd")
    monkeypatch.delenv(VARIABLE)
    assert configured(Config()) == Config()


def test_failure_is_told(monkeypatch, capfd):
    monkeypatch.setitem(fastpaths.SUITES, "soak", ["timeit", "-n", "1", "-r", "1", "raise SystemExit('lost')"])
    assert fastpaths.main(["--suite", "soak", "without splice"]) == 1
    out, err = capfd.readouterr()
    assert "lost" in out
    assert err == "failed: without splice: soak\n"


def test_success_is_told(monkeypatch, capfd):
    told = f"import os; assert os.environ['{VARIABLE}'] == 'daemon.splice=no'"
    monkeypatch.setitem(fastpaths.SUITES, "soak", ["timeit", "-n", "1", "-r", "1", told])
    assert fastpaths.main(["--suite", "soak", "without splice"]) == 0
    assert "ok" in capfd.readouterr().out
