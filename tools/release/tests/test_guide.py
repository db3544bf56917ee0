# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/guides/host.md, done as it says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from imageio_testing.hostroot import HostRoot
from release.tree import TOP

GUIDE = TOP / "docs" / "guides" / "host.md"

# Programs for things that a host in a folder cannot have: systemd, a firewall, the groups of oVirt.
NOT_HERE = {"systemctl", "firewall-cmd", "usermod"}
PROGRAMS = ("mkdir", "openssl", "cat", "truncate", "chown", "head", "cmp", "tail")


def commands(text: str) -> list[str]:
    """Commands of root in the console blocks of a page, with their here-documents."""
    found: list[str] = []
    for block in re.findall(r"^```console\n(.*?)^```", text, re.M | re.S):
        for line in block.splitlines():
            if line.startswith("# "):
                found.append(line[2:])
            else:
                found[-1] += "\n" + line
    return found


def untested(command: str) -> bool:
    return command.endswith("# untested")


def test_only_what_no_test_can_run_is_marked_untested():
    for command in commands(GUIDE.read_text()):
        assert untested(command) == (command.split()[0] in NOT_HERE), command


@pytest.mark.slow
def test_guide_leads_to_a_finished_transfer(
    new_host: Callable[[Path], HostRoot], add_program: Callable[[HostRoot, str], None], repo: Path
):
    host = new_host(repo)
    for name in PROGRAMS:
        add_program(host, name)
    host.write("/etc/ssl/openssl.cnf", "[req]\ndistinguished_name = name\nx509_extensions = v3\n[name]\n[v3]\n")
    host.write("/usr/lib/ssl/openssl.cnf", (host.root / "etc/ssl/openssl.cnf").read_text())

    install, *steps, remove = commands(GUIDE.read_text())
    assert (install.split()[:2], remove.split()[:2]) == (["dnf", "install"], ["dnf", "remove"])
    host.dnf(*install.split()[1:])
    start = next(i for i, step in enumerate(steps) if step.startswith("systemctl enable --now"))
    steps[start] = "start the service"
    script = Path(__file__).with_name("on_host.py").read_text()
    host.write("/tmp/on_host.py", script)
    done = host.run("python3", "/tmp/on_host.py", "guide", data=json.dumps([s for s in steps if not untested(s)]))
    assert "+ cmp image.raw /var/lib/images/disk.raw" in done.stderr
    assert '"my-ticket"' in done.stdout
    host.dnf(*remove.split()[1:])
    assert not (host.root / "usr/bin/ovirt-imageio").exists()
    assert (host.root / "etc/ovirt-imageio/conf.d/60-tls.conf").exists()
