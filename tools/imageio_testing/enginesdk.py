# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The oVirt engine SDK for tests and trials, outside of the virtual environment.

    python -m imageio_testing.enginesdk        make it

It has a part in C, so installing it may fail where all else works: then what needs it is
skipped. Programs get it by PYTHONPATH. Its source distribution is kept beside it, for the
examples in it are tests of ours. All lies in `.cache/engine-sdk` and nothing of it is
ever committed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

REQUIREMENT = "ovirt-engine-sdk-python>=4.6,<4.7"

EXAMPLES_NEED = ("lxml>=4.9,<7",)
"""Packages that one of its examples imports besides."""

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "engine-sdk"

_TIMEOUT = 600


def folder() -> Path:
    """Where the SDK is for this version of Python."""
    return CACHE / f"python{sys.version_info[0]}.{sys.version_info[1]}"


def examples() -> Path:
    """Where the examples of its source distribution are."""
    return CACHE / "sdist" / "examples"


def path() -> str:
    """Return the entries of PYTHONPATH that provide the SDK, in front of the present ones."""
    return os.pathsep.join(filter(None, [str(folder()), os.environ.get("PYTHONPATH")]))


def is_here() -> bool:
    """Tell if the SDK and its examples can be used."""
    return all((folder() / name).is_dir() for name in ("ovirtsdk4", "lxml")) and examples().is_dir()


needs_engine_sdk = pytest.mark.skipif(
    not is_here(), reason="not installed: the oVirt engine SDK, see tools/imageio_testing/enginesdk.py"
)


def install() -> None:
    """Install the SDK, unless that was done.

    Raises:
        subprocess.CalledProcessError: pip could not; it has said why.
    """
    if is_here():
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    archives = sorted(CACHE.glob("ovirt_engine_sdk_python-*.tar.gz"))
    if not archives:
        _run([*pip, "download", "--no-deps", "--no-binary=ovirt-engine-sdk-python", "--dest", str(CACHE), REQUIREMENT])
        archives = sorted(CACHE.glob("ovirt_engine_sdk_python-*.tar.gz"))
    # Under another name until it is complete: this may be interrupted.
    unfinished = CACHE / f"unfinished-{os.getpid()}"
    try:
        _run(
            [
                *pip,
                "install",
                "--no-warn-script-location",
                "--target",
                str(unfinished),
                str(archives[-1]),
                *EXAMPLES_NEED,
            ]
        )
        shutil.rmtree(folder(), ignore_errors=True)
        unfinished.rename(folder())
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _unpack(archives[-1])


def _unpack(archive: Path) -> None:
    """Take the examples out of the source distribution."""
    target = examples()
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            _, _, name = member.name.partition("/")
            if member.isfile() and name.startswith("examples/") and ".." not in name:
                data = tar.extractfile(member)
                file = target.parent / name
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(data.read() if data else b"")


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, timeout=_TIMEOUT, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    try:
        install()
    except (subprocess.SubprocessError, OSError) as e:
        sys.exit(f"enginesdk: the oVirt engine SDK cannot be installed, what needs it is skipped: {e}")
