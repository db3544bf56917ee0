# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""ci/Containerfile, done step by step where no container engine is needed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from imageio_testing.hostroot import HostRoot
from imageio_testing.pki import make_pki
from release.tree import TOP

pytestmark = pytest.mark.slow

# Programs that steps call; the first image has all of them.
PROGRAMS = ("rm", "mkdir", "chown")


def steps(text: str) -> list[tuple[str, str]]:
    """Instructions and their arguments, lines that continue joined."""
    text = re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line]


def copy(host: HostRoot, sources: list[str], target: str, context: Path) -> None:
    """COPY: a target that ends with a slash is a folder."""
    path = host.root / target.lstrip("/")
    folder = path if target.endswith("/") else path.parent
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        found = list(context.glob(source))
        assert found, source
        for file in found:
            shutil.copyfile(file, folder / file.name if target.endswith("/") else path)


def test_recipe_makes_a_server(
    new_host: Callable[..., HostRoot],
    add_program: Callable[[HostRoot, str], None],
    wheels: list[Path],
    tmp_path: Path,
):
    context = tmp_path / "context"
    (context / "dist").mkdir(parents=True)
    (context / "ci").symlink_to(TOP / "ci")
    for wheel in wheels:
        shutil.copy(wheel, context / "dist")
    host = new_host(tmp_path, more=("pip",))
    for name in PROGRAMS:
        add_program(host, name)
    user, command = "root", []
    for instruction, argument in steps((TOP / "ci/Containerfile").read_text()):
        if instruction == "COPY":
            *sources, target = argument.split()
            copy(host, sources, target, context)
        elif instruction == "RUN":
            host.run("sh", "-e", "-c", argument)
        elif instruction == "USER":
            user = argument
        elif instruction in ("ENTRYPOINT", "CMD"):
            command += json.loads(argument)
        else:
            assert instruction in ("FROM", "VOLUME", "EXPOSE", "STOPSIGNAL")
    assert not (host.root / "tmp/wheels").exists()
    assert user == "ovirtimg"

    # Files that a user mounts.
    uid = 990
    pki = make_pki(tmp_path)
    files = [
        host.write("/keys/key.pem", Path(pki.key_file).read_text(), mode=0o400),
        host.write("/keys/cert.pem", Path(pki.cert_file).read_text() + Path(pki.ca_file).read_text()),
        host.write("/images/disk.raw", "\0" * 65536),
    ]
    ticket = {"uuid": "mine", "url": "file:///images/disk.raw", "size": 65536, "ops": ["write"], "timeout": 60}
    files.append(host.write("/images/ticket.json", json.dumps(ticket)))
    for file in files:
        shutil.chown(file, uid, uid)
    host.write("/tmp/on_host.py", Path(__file__).with_name("on_host.py").read_text())
    host.run("python3", "/tmp/on_host.py", "container", user, *command)
    assert (host.root / "images/disk.raw").read_bytes() == b"data" + bytes(65532)
