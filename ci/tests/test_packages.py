# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""ci/packages.sh on machines made of stand-ins that record how they were called."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CI = Path(__file__).resolve().parents[1]

# Programs of a bare system that packages.sh and find-python.sh use.
TOOLS = ("bash", "dirname", "env", "cat", "chmod")

RECORDER = """#!{bash}
echo "${{0##*/}} $*" >>{log}
{then}
"""


class Machine:
    """A folder of commands that is the whole PATH, and the log of the stand-ins' calls."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.log = folder / "log"
        self.bin.mkdir()
        self.log.touch()
        for tool in TOOLS:
            self.bin.joinpath(tool).symlink_to(shutil.which(tool))
        self.command("id", "echo 0")

    def command(self, name: str, then: str = "") -> None:
        bash = self.bin / "bash"
        path = self.bin / name
        path.write_text(RECORDER.format(bash=bash, log=self.log, then=then))
        path.chmod(0o755)

    def unprivileged(self, *, sudo: bool) -> None:
        self.command("id", "echo 1000")
        self.command("sudo", 'shift; "$@"' if sudo else "exit 1")

    def with_qemu(self) -> None:
        for name in ("qemu-img", "qemu-nbd", "qemu-io"):
            self.command(name)

    def installs(self, manager: str) -> None:
        """Let `manager` make qemu's commands when asked to install."""
        made = " ".join(str(self.bin / name) for name in ("qemu-img", "qemu-nbd", "qemu-io"))
        self.command(
            manager,
            f'case "$*" in *install*) for f in {made}; do echo >$f; chmod +x $f; done;; esac',
        )

    def run(self, *names: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.bin / "bash", CI / "packages.sh", *names],
            env={"PATH": str(self.bin), "PYTHON": sys.executable, **env},
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self, *names: str) -> list[str]:
        lines = self.log.read_text().splitlines()
        return [line for line in lines if line.split()[0] in names]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_dnf_installs_what_is_missing(machine: Machine):
    machine.installs("dnf")
    done = machine.run("qemu")
    assert done.returncode == 0, done.stderr
    assert machine.calls("dnf", "sudo") == ["dnf install -q -y qemu-img"]


def test_apt_refreshes_its_lists_then_installs(machine: Machine):
    machine.installs("apt-get")
    done = machine.run("qemu")
    assert done.returncode == 0, done.stderr
    assert machine.calls("apt-get") == [
        "apt-get update -q",
        "apt-get install -q -y --no-install-recommends qemu-utils",
    ]


def test_apt_is_chosen_where_both_are(machine: Machine):
    machine.installs("apt-get")
    machine.command("dnf")
    assert machine.run("qemu").returncode == 0
    assert machine.calls("dnf") == []


def test_passwordless_sudo_installs(machine: Machine):
    machine.installs("dnf")
    machine.unprivileged(sudo=True)
    done = machine.run("qemu")
    assert done.returncode == 0, done.stderr
    assert machine.calls("dnf", "sudo") == [
        "sudo -n true",
        "sudo -n dnf install -q -y qemu-img",
        "dnf install -q -y qemu-img",
    ]


@pytest.mark.parametrize("sudo", ["refuses", "absent"])
def test_no_right_to_install_says_what_to_install(machine: Machine, sudo: str):
    machine.command("dnf")
    machine.unprivileged(sudo=False)
    if sudo == "absent":
        machine.bin.joinpath("sudo").unlink()
    done = machine.run("qemu", "nbdkit")
    assert done.returncode == 1
    assert "missing: qemu nbdkit; to install it: sudo dnf install qemu-img nbdkit" in done.stderr
    assert machine.calls("dnf") == []


def test_no_install_only_looks(machine: Machine):
    machine.command("dnf")
    done = machine.run("qemu", NO_INSTALL="1")
    assert done.returncode == 1
    assert "sudo dnf install qemu-img" in done.stderr
    assert machine.calls("dnf") == []


def test_no_package_manager_says_so(machine: Machine):
    done = machine.run("qemu")
    assert done.returncode == 1
    assert "neither apt-get nor dnf" in done.stderr


def test_install_that_brings_nothing_fails(machine: Machine):
    machine.command("dnf", "exit 1")
    done = machine.run("qemu")
    assert done.returncode == 1
    assert "dnf failed" in done.stderr
    assert "missing still: qemu" in done.stderr


def test_software_that_cannot_be_had_does_not_keep_the_rest_away(machine: Machine):
    made = " ".join(str(machine.bin / name) for name in ("qemu-img", "qemu-nbd", "qemu-io"))
    machine.command("dnf", f'case "$*" in *nbdkit*) exit 1;; esac; for f in {made}; do echo >$f; chmod +x $f; done')
    done = machine.run("qemu", "nbdkit")
    assert done.returncode == 1
    assert machine.calls("dnf") == [
        "dnf install -q -y qemu-img nbdkit",
        "dnf install -q -y qemu-img",
        "dnf install -q -y nbdkit",
    ]
    assert "missing still: nbdkit\n" in done.stderr


def test_apt_goes_on_with_old_lists(machine: Machine):
    made = " ".join(str(machine.bin / name) for name in ("qemu-img", "qemu-nbd", "qemu-io"))
    machine.command("apt-get", f'[ "$1" = update ] && exit 1; for f in {made}; do echo >$f; chmod +x $f; done')
    assert machine.run("qemu").returncode == 0


@pytest.mark.parametrize("manager", ["apt-get", "dnf"])
def test_every_software_of_the_makefile_has_packages(machine: Machine, manager: str):
    makefile = CI.parent.joinpath("Makefile").read_text()
    lists = re.findall(r"^\w+_TOOLS = (.*)", makefile, re.MULTILINE)
    lists += re.findall(r"ci/bootstrap\.sh (.*)", makefile)
    names = sorted({name for line in lists for name in line.split() if name[0] != "$"})
    machine.command(manager)
    done = machine.run(*names, NO_INSTALL="1")
    assert "qemu" in names
    assert "unknown" not in done.stderr
    assert f"sudo {manager} install" in done.stderr


def test_nothing_missing_installs_nothing(machine: Machine):
    machine.command("dnf")
    machine.with_qemu()
    done = machine.run("python", "qemu")
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.calls("dnf") == []


def test_python_without_venv_is_installed(machine: Machine):
    machine.command("apt-get")
    machine.command("python3", "exit 1")
    done = machine.run("python", PYTHON="python3")
    assert done.returncode == 1
    assert "apt-get install -q -y --no-install-recommends python3 python3-venv" in machine.calls("apt-get")


def test_unknown_software_is_named(machine: Machine):
    machine.command("dnf")
    done = machine.run("teleporter")
    assert done.returncode == 2
    assert "unknown software: teleporter" in done.stderr
