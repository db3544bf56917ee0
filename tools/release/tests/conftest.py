# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that `make dist rpm` built, and hosts to install them on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from imageio_testing import hostroot
from release import rpm, tree

# Packages of a host: its interpreter, and those from other repositories.
STUB = """
Name: host
Version: 1
Release: 1
Summary: What else a host has
License: GPL-2.0-or-later
BuildArch: noarch
Provides: python3 = {version}
Provides: python(abi) = {version}
Provides: /usr/bin/python3
Provides: /bin/sh
Provides: shadow-utils
Provides: qemu-img
Provides: python{version}dist(requests) = 2.25.1
Provides: python{version}dist(requests-unixsocket) = 0.2
%description
Stands for the distribution.
%files
"""


def _built(folder: Path, pattern: str) -> list[Path]:
    files = [next(iter(folder.glob(pattern.format(p=p, v=p.version))), None) for p in tree.PACKAGES]
    if None in files:
        pytest.skip("nothing is built: make dist rpm")
    return [file for file in files if file]


@pytest.fixture(scope="session")
def dist() -> Path:
    """The folder of the built packages."""
    return Path(os.environ.get("IMAGEIO_DIST", tree.TOP / "dist"))


@pytest.fixture(scope="session")
def wheels(dist: Path) -> list[Path]:
    """Wheels of common, daemon, client."""
    return _built(dist, "{p.module}-{v}-*.whl")


@pytest.fixture(scope="session")
def sdists(dist: Path) -> list[Path]:
    """Their sdists."""
    return _built(dist, "{p.module}-{v}.tar.gz")


@pytest.fixture(scope="session")
def rpms(dist: Path) -> list[Path]:
    """Their RPMs."""
    return _built(dist / "rpm", "{p.name}-{v}-*.noarch.rpm")


@pytest.fixture(scope="session")
def source_rpms(dist: Path) -> list[Path]:
    """Their source RPMs."""
    return _built(dist / "rpm", "{p.name}-{v}-*.src.rpm")


@pytest.fixture(scope="session")
def _host_tools() -> None:
    if lacks := hostroot.missing():
        pytest.skip("not here: " + ", ".join(lacks))


@pytest.fixture(scope="session")
def repo(rpms: list[Path], tmp_path_factory: pytest.TempPathFactory, _host_tools: None) -> Path:
    """A repository of our RPMs and the stub."""
    folder = tmp_path_factory.mktemp("repo")
    version = hostroot.PYTHON.replace("python", "")
    hostroot.build_stub(STUB.format(version=version), tmp_path_factory.mktemp("stub"), folder)
    for file in rpms:
        shutil.copy(file, folder)
    hostroot.make_repo(folder)
    return folder


@pytest.fixture(scope="session")
def newer(sdists: list[Path], repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of a later build, besides."""
    pytest.importorskip("wheel", reason="builds without isolation: ci/requirements-dist.txt")
    folder = tmp_path_factory.mktemp("newer")
    for package, sdist in zip(tree.PACKAGES, sdists):
        rpm.build(package, sdist, folder, dist=".9")
    for file in [*folder.glob("*.src.rpm")]:
        file.unlink()
    for file in repo.glob("*.rpm"):
        shutil.copy(file, folder)
    hostroot.make_repo(folder)
    return folder


@pytest.fixture
def add_program() -> Callable[[hostroot.HostRoot, str], None]:
    """Give a host a program of this machine, of administrators as well."""

    def add(host: hostroot.HostRoot, name: str) -> None:
        path = shutil.which(name, path=f"/usr/bin:/bin:/usr/sbin:/sbin:{os.environ['PATH']}")
        if path is None:
            pytest.skip(f"{name} is not installed")
        host.add_program(path)

    return add


@pytest.fixture
def new_host(
    tmp_path: Path, add_program: Callable[[hostroot.HostRoot, str], None], _host_tools: None
) -> Callable[..., hostroot.HostRoot]:
    """Make a host that finds the RPMs of a repository, and has more Python distributions."""

    def make(repo: Path, more: tuple[str, ...] = ()) -> hostroot.HostRoot:
        host = hostroot.HostRoot(tmp_path / "root", repo)
        for name in ("sh", "getent", "groupadd", "useradd"):
            add_program(host, name)
        host.add_python(["requests", "requests-unixsocket", *more])
        return host

    return make
