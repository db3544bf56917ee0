# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Wheels and sdists."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from release import dist, tree

CLIENT = tree.find("client")


def make_wheel(folder: Path, *names: str) -> Path:
    path = folder / "client.whl"
    with zipfile.ZipFile(path, "w") as z:
        for name in names:
            z.writestr(name, "")
    return path


def test_wheel_of_its_own_files_is_accepted(tmp_path: Path):
    own = ("ovirt_imageio/client/py.typed", f"ovirt_imageio_client-{CLIENT.version}.dist-info/METADATA")
    dist.check_wheel(CLIENT, make_wheel(tmp_path, *own))


@pytest.mark.parametrize(
    "name",
    ["ovirt_imageio/__init__.py", "ovirt_imageio/common/units.py", "tests/test_api.py", "ovirt_imageio/client2.py"],
)
def test_wheel_with_strange_files_is_refused(tmp_path: Path, name: str):
    with pytest.raises(tree.ReleaseError, match=f"not its own: {name}"):
        dist.check_wheel(CLIENT, make_wheel(tmp_path, "ovirt_imageio/client/py.typed", name))


def test_wheel_without_types_is_refused(tmp_path: Path):
    with pytest.raises(tree.ReleaseError, match=r"lacks ovirt_imageio/client/py\.typed"):
        dist.check_wheel(CLIENT, make_wheel(tmp_path, "ovirt_imageio/client/api.py"))


def test_repacked_sdists_are_equal_whatever_made_them(tmp_path: Path):
    results = []
    for number, order in enumerate((("b", "a"), ("a", "b"))):
        raw = tmp_path / f"{number}.tar.gz"
        with tarfile.open(raw, "w:gz") as tar:
            for name in order:
                info = tarfile.TarInfo(name)
                info.size, info.mtime, info.uid, info.mode = 4, 1000 + number, number, 0o600 + number * 0o44
                tar.addfile(info, io.BytesIO(b"data"))
        dist.repack(raw, tmp_path / f"{number}.out", 1_700_000_000)
        results.append((tmp_path / f"{number}.out").read_bytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("package", tree.PACKAGES, ids=lambda p: p.short)
def test_requirements_between_sisters_agree_with_their_versions(package: tree.Package):
    pin = tree.requires(package)
    if package.short == "common":
        assert pin is None
        return
    common = tree.find("common").version
    major, minor = common.split(".")[:2]
    assert pin == f"~={major}.{minor}.0"
    spec = package.spec.read_text()
    assert f"Requires:       ovirt-imageio-common >= {major}.{minor}.0\n" in spec
    assert f"Requires:       ovirt-imageio-common < {major}.{int(minor) + 1}\n" in spec


@pytest.mark.parametrize("package", tree.PACKAGES, ids=lambda p: p.short)
def test_spec_and_changelog_speak_of_the_version(package: tree.Package):
    assert f"Version:        {package.version}\n" in package.spec.read_text()
    assert f"\n## {package.version}" in (package.folder / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_two_builds_are_equal(wheels: list[Path], sdists: list[Path], tmp_path: Path):
    pytest.importorskip("build", reason="builds without isolation: ci/requirements-dist.txt")
    for package, sdist, wheel in zip(tree.PACKAGES, sdists, wheels):
        man = _man_pages(sdist, tmp_path)
        again = dist.build(package, tmp_path, man=man)
        assert again[0].read_bytes() == sdist.read_bytes()
        assert again[1].read_bytes() == wheel.read_bytes()


def _man_pages(sdist: Path, folder: Path) -> Path:
    """Take the manual pages from an sdist, so that Sphinx is not asked again."""
    with tarfile.open(sdist) as tar:
        for member in tar.getmembers():
            parts = Path(member.name).parts
            if member.isreg() and parts[1:2] == ("man",):
                target = folder / "man" / sdist.name.rsplit("-", 1)[0].replace("_", "-") / parts[2]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(tar.extractfile(member).read())
    return folder / "man"


@pytest.mark.slow
def test_sdist_is_complete(sdists: list[Path]):
    for package, sdist in zip(tree.PACKAGES, sdists):
        with tarfile.open(sdist) as tar:
            names = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
        assert {"LICENSE", "README.md", "CHANGELOG.md", "setup.cfg", package.spec.name} <= names
        assert any(name.startswith("tests/") for name in names)
    assert {"man/ovirt-img.1"} <= names


# A transfer to the daemon's host, by a program that has only the client.
USE = """
import importlib.util, json, sys
assert importlib.util.find_spec("ovirt_imageio.daemon") is None
from ovirt_imageio import client
client.upload(sys.argv[1], sys.argv[3], sys.argv[4])
client.download(sys.argv[3], sys.argv[2], sys.argv[4], fmt="raw")
print(json.dumps([name for name in sys.modules if "ovirt_imageio" in name]))
"""


@pytest.mark.slow
def test_client_wheel_alone_transfers_without_a_compiler(wheels: list[Path], tmp_path: Path):
    from imageio_testing.daemon import Daemon

    common, _, client = wheels
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv/bin/python")
    no_compiler = {**os.environ, "CC": "/nonexistent", "CXX": "/nonexistent"}
    no_compiler.pop("PYTHONPATH", None)
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-q", str(common), str(client)], env=no_compiler, check=True, timeout=110)
    subprocess.run([*pip, "check"], check=True, timeout=60)
    image, disk, copy = tmp_path / "image", tmp_path / "disk", tmp_path / "copy"
    image.write_bytes(os.urandom(1 << 20) + bytes(1 << 20))
    disk.write_bytes(bytes(2 << 20))
    with Daemon(tmp_path) as daemon:
        ticket = daemon.add_ticket(f"file://{disk}", size=2 << 20)
        url = f"{daemon.url}/images/{ticket}"
        # Nothing else on the path: no qemu.
        environ = {"PATH": str(tmp_path / "venv/bin"), "LANG": "C.UTF-8"}
        command = [python, "-c", USE, str(image), str(copy), url, str(daemon.ca_file)]
        done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=True, timeout=60)
    imported = {".".join(name.split(".")[:2]) for name in json.loads(done.stdout)}
    assert imported == {"ovirt_imageio", "ovirt_imageio.client", "ovirt_imageio.common"}
    assert copy.read_bytes() == disk.read_bytes() == image.read_bytes()
