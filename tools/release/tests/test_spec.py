# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Specs as each distribution reads them, and what the RPMs say of themselves."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from release import tree

needs_rpm = pytest.mark.skipif(not shutil.which("rpmspec"), reason="rpmspec is not installed")
needs_rpmlint = pytest.mark.skipif(not shutil.which("rpmlint"), reason="rpmlint is not installed")

# Macros that the packages of distributions define, as far as the specs use them: each becomes
# one line that can be found again.
FEDORA = {
    "fedora": "42",
    "dist": ".fc42",
    "__python3": "/usr/bin/python3",
    "python3_sitelib": "/usr/lib/python3.13/site-packages",
    "pyproject_wheel": "MACRO-wheel",
    "pyproject_install": "MACRO-install",
    "_unitdir": "/usr/lib/systemd/system",
    "_sysusersdir": "/usr/lib/sysusers.d",
    "systemd_requires": "Requires(post): systemd",
    "systemd_post()": "MACRO-post %1",
    "systemd_preun()": "MACRO-preun %1",
    "systemd_postun_with_restart()": "MACRO-postun %1",
}
EL_9 = {**FEDORA, "fedora": "", "rhel": "9", "dist": ".el9", "python3_sitelib": "/usr/lib/python3.9/site-packages"}
EL_10 = {**EL_9, "rhel": "10", "dist": ".el10", "python3_sitelib": "/usr/lib/python3.12/site-packages"}
PLAIN = {"__python3": "/opt/python", "python3_sitelib": "/usr/lib/python3.11/site-packages"}

SYSTEMS = {"fedora": FEDORA, "el9": EL_9, "el10": EL_10}


def parse(package: tree.Package, macros: dict[str, str]) -> str:
    """The spec with all macros expanded."""
    defines = [word for name, value in macros.items() if value for word in ("--define", f"{name} {value}")]
    command = ["rpmspec", "-P", *defines, str(package.spec)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "%{" not in re.sub(r"%\{(buildroot|name)\}", "", done.stdout).split("%changelog")[0]
    return done.stdout


def section(text: str, name: str) -> str:
    """One section, like `install`."""
    # Debian's rpm expands %build itself away.
    names = "prep|build|install|pre|post|preun|postun|files|changelog"
    match = re.search(rf"^%{name}\n(.*?)(?=^%(?:{names})\b)", text, re.M | re.S)
    assert match, name
    return match[1]


@needs_rpm
@pytest.mark.parametrize("package", tree.PACKAGES, ids=lambda p: p.short)
@pytest.mark.parametrize("system", SYSTEMS)
def test_distributions_build_with_their_own_macros(package: tree.Package, system: str):
    text = parse(package, SYSTEMS[system])
    before_install = text[: text.index("\n%install\n")].splitlines()
    assert "MACRO-wheel" in before_install[-2:]
    assert "pip wheel" not in text
    install = section(text, "install")
    assert install.startswith("MACRO-install")
    for ours in ("pip install", "compileall", "gzip", "sed -i"):
        assert ours not in install
    assert "BuildRequires:  pyproject-rpm-macros" in text
    assert f"{SYSTEMS[system]['python3_sitelib']}/ovirt_imageio/{package.portions[0]}" in section(text, "files")
    assert f"Release:        1{SYSTEMS[system]['dist']}\n" in text
    assert ("python3-ovirt-engine-sdk4" in text) == (package.short == "client" and system != "fedora")


@needs_rpm
@pytest.mark.parametrize("package", tree.PACKAGES, ids=lambda p: p.short)
def test_plain_rpmbuild_needs_no_macros(package: tree.Package):
    text = parse(package, PLAIN)
    assert "MACRO" not in text
    assert "/opt/python -m pip wheel" in text
    assert "/opt/python -m pip install" in section(text, "install")
    assert "-rpm-macros" not in text


@needs_rpm
def test_daemon_tells_systemd_where_there_are_macros():
    text = parse(tree.find("daemon"), FEDORA)
    for name in ("post", "preun", "postun"):
        assert section(text, name).strip() == f"MACRO-{name} ovirt-imageio.service"
    assert "Requires(post): systemd" in text


def query(file: Path, what: str) -> list[str]:
    command = ["rpm", "-qp", f"--{what}", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()


@pytest.mark.slow
def test_rpms_require_own_and_obsolete_what_they_should(rpms: list[Path]):
    common, daemon, client = rpms
    for file in rpms:
        required = query(file, "requires")
        assert {line for line in required if line.startswith("/")} <= {"/bin/sh", "/usr/bin/python3"}
        assert any(line.startswith("python(abi)") for line in required)
        files = query(file, "list")
        assert sum(path.endswith("/site-packages/ovirt_imageio") for path in files) == 1
        assert not any(path.endswith("/ovirt_imageio/__init__.py") for path in files)
        assert any(path.endswith(".pyc") for path in files)
    assert any("dist(requests) >= 2.25" in line for line in query(common, "requires"))
    for file in (daemon, client):
        version = tree.find("common").version.rsplit(".", 1)[0]
        assert f"ovirt-imageio-common >= {version}.0" in query(file, "requires")
    assert "qemu-img" in query(client, "requires")
    assert "qemu-img" not in query(daemon, "requires")
    assert "python3-systemd" in query(daemon, "recommends")
    assert query(common, "obsoletes")[0].startswith("python3.11-ovirt-imageio-common < 3")
    assert query(client, "obsoletes")[0].startswith("python3.11-ovirt-imageio-client < 3")
    lists = [set(query(file, "list")) for file in rpms]
    shared = {path for path in lists[0] | lists[1] | lists[2] if sum(path in one for one in lists) > 1}
    assert {path.rsplit("/", 1)[1] for path in shared} == {"ovirt_imageio"}


@pytest.mark.slow
@needs_rpmlint
@pytest.mark.parametrize("number", range(3), ids=[p.short for p in tree.PACKAGES])
def test_rpmlint_misses_only_the_signature(rpms: list[Path], source_rpms: list[Path], number: int):
    config = tree.TOP / "ci" / "rpmlint.toml"
    command = ["rpmlint", "-c", str(config), str(rpms[number]), str(source_rpms[number])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    errors = re.findall(r": E: (\S+)", done.stdout)
    assert "1 packages" in done.stdout or "2 packages" in done.stdout, done.stdout + done.stderr
    assert set(errors) <= {"no-signature"}, done.stdout
