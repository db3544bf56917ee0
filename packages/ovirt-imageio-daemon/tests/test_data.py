# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ovirt_imageio.daemon import config, options

DATA = Path(__file__).parent.parent / "data"

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def test_shipped_configuration_is_the_defaults_without_a_warning() -> None:
    files = sorted(map(str, (DATA / "conf.d").glob("*.conf")))
    cfg = config.load_files(files)
    assert cfg.warnings == ()
    assert cfg.to_dict() == config.Config().to_dict()


def test_keys_that_the_shipped_configuration_proposes_exist() -> None:
    text = (DATA / "conf.d" / "00-ovirt-imageio.conf").read_text()
    parser = configparser.ConfigParser()
    parser.read_string("\n".join(line[1:] for line in text.splitlines() if line[1:2].isalpha() or line[1:2] == "["))
    assert parser.sections() == ["tls"]
    for section in parser.sections():
        assert set(parser[section]) <= {info.key for info in options.describe(section)}


@needs_systemd
def test_unit_is_understood_by_systemd(tmp_path: Path) -> None:
    # The status is 0 even for an unknown key: what is printed counts.
    unit = (DATA / "ovirt-imageio.service").read_text()
    unit = unit.replace("/usr/bin/ovirt-imageio", sys.executable).replace("man:ovirt-imageio(8)", "")
    (tmp_path / "ovirt-imageio.service").write_text(unit)
    command = ["systemd-analyze", "verify", str(tmp_path / "ovirt-imageio.service")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert [line for line in done.stderr.splitlines() if "ovirt-imageio" in line] == []


@needs_systemd
def test_unit_is_hardened() -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20"]
    command.append(str(DATA / "ovirt-imageio.service"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
