# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""ci/bootstrap.sh in a checkout of its own, with a Python that records instead of installing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]

# Answers what bootstrap.sh asks, makes a "virtual environment" with itself in it.
PYTHON = """#!/bin/sh
echo "$*" >>"$LOG"
case "$1" in
    -) echo "$0" ;;
    -V*) echo "Python 3.9.99" ;;
    -m)
        case "$2:$FAIL_PIP" in
            venv:*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
            pip:yes) exit 1 ;;
        esac ;;
esac
"""


class Checkout:
    """A copy of what bootstrap.sh reads."""

    def __init__(self, folder: Path) -> None:
        self.top = folder / "checkout"
        self.log = folder / "log"
        self.python = folder / "python3"
        self.log.touch()
        self.python.write_text(PYTHON)
        self.python.chmod(0o755)
        for name in ("setup.cfg", "pyproject.toml", "VERSION"):
            for source in TOP.glob(f"packages/**/{name}"):
                self._copy(source)
        for source in TOP.glob("ci/*.*"):
            self._copy(source)

    def _copy(self, source: Path) -> None:
        target = self.top / source.relative_to(TOP)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)

    def bootstrap(self, *names: str, **env: str) -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        return subprocess.run(
            [self.top / "ci" / "bootstrap.sh", *names],
            env={
                "PATH": os.environ["PATH"],
                "PYTHON": str(self.python),
                "LOG": str(self.log),
                "NO_INSTALL": "1",
                **env,
            },
            capture_output=True,
            text=True,
            check=False,
        )

    def installs(self) -> list[str]:
        lines = self.log.read_text().splitlines()
        return [line for line in lines if line.startswith("-m pip install")]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_installs_the_packages_editable_and_the_tools(checkout: Checkout):
    done = checkout.bootstrap()
    assert done.returncode == 0, done.stderr
    pip, everything = checkout.installs()
    assert "pip>=" in pip
    assert "-r ci/requirements-dev.txt" in everything
    for name in ("common", "daemon", "client"):
        assert f"--editable=packages/ovirt-imageio-{name}" in everything


def test_second_run_installs_nothing(checkout: Checkout):
    checkout.bootstrap()
    done = checkout.bootstrap()
    assert (done.returncode, done.stderr) == (0, "")
    assert checkout.installs() == []


@pytest.mark.parametrize(
    "path",
    ["ci/requirements-dev.txt", "packages/ovirt-imageio-daemon/setup.cfg"],
)
def test_changed_input_makes_a_new_environment(checkout: Checkout, path: str):
    checkout.bootstrap()
    leftover = checkout.top / ".venv" / "leftover"
    leftover.touch()
    with open(checkout.top / path, "a") as f:
        f.write("# changed\n")
    assert checkout.bootstrap().returncode == 0
    assert len(checkout.installs()) == 2
    assert not leftover.exists()


def test_failed_install_is_tried_again(checkout: Checkout):
    assert checkout.bootstrap(FAIL_PIP="yes").returncode != 0
    assert checkout.bootstrap().returncode == 0
    assert len(checkout.installs()) == 2


def test_goes_on_without_what_cannot_be_installed(checkout: Checkout, tmp_path: Path):
    done = checkout.bootstrap("nbdkit", PATH=_path_without("nbdkit", tmp_path))
    assert done.returncode == 0, done.stderr
    assert "missing: nbdkit" in done.stderr
    assert "going on" in done.stderr
    assert len(checkout.installs()) == 2


def test_no_suitable_python_says_what_is_needed(checkout: Checkout):
    checkout.python.write_text("#!/bin/sh\nexit 1\n")
    done = checkout.bootstrap()
    assert done.returncode == 1
    assert "no Python 3.9 or newer" in done.stderr
    assert not (checkout.top / ".venv").exists()


def _path_without(command: str, folder: Path) -> str:
    """A PATH of links to every command but one."""
    links = folder / "links"
    links.mkdir()
    for directory in os.environ["PATH"].split(os.pathsep):
        for entry in Path(directory).glob("*"):
            if entry.name != command and not links.joinpath(entry.name).is_symlink():
                links.joinpath(entry.name).symlink_to(entry)
    return str(links)
