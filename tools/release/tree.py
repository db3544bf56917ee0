# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The checkout: its packages, their versions, and when they last changed."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]


class ReleaseError(Exception):
    """Something cannot be released as it stands. The text says what to do."""


@dataclass(frozen=True)
class Package:
    """One distribution of the monorepo.

    Attributes:
        short: `common`, `daemon` or `client`.
        portions: Sub-packages of the namespace that it owns, and nobody else.
    """

    short: str
    portions: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name on PyPI and of the RPM."""
        return f"ovirt-imageio-{self.short}"

    @property
    def module(self) -> str:
        """Name as files of a build spell it."""
        return self.name.replace("-", "_")

    @property
    def folder(self) -> Path:
        """Where it lies in the checkout."""
        return TOP / "packages" / self.name

    @property
    def version_file(self) -> Path:
        """The one place that says the version."""
        return self.folder / "src" / "ovirt_imageio" / self.short / "VERSION"

    @property
    def version(self) -> str:
        """Version, as it stands."""
        return self.version_file.read_text(encoding="ascii").strip()

    @property
    def spec(self) -> Path:
        """The RPM's spec."""
        return self.folder / f"{self.name}.spec"


PACKAGES = (
    Package("common", ("common", "_internal")),
    Package("daemon", ("daemon", "admin")),
    Package("client", ("client",)),
)


def find(short: str) -> Package:
    """The package of a short name.

    Raises:
        ReleaseError: There is none.
    """
    for package in PACKAGES:
        if short in (package.short, package.name):
            return package
    names = ", ".join(p.short for p in PACKAGES)
    raise ReleaseError(f"no package is called {short!r}: expected one of {names}")


def run(*command: str, cwd: Path = TOP, env: dict[str, str] | None = None) -> str:
    """Run a program and return what it printed.

    Raises:
        ReleaseError: It failed; the text is what it said.
    """
    try:
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    except FileNotFoundError as e:
        raise ReleaseError(f"{command[0]} is not installed") from e
    if done.returncode:
        said = (done.stdout + done.stderr).strip()[-3000:]
        raise ReleaseError(f"{' '.join(command)} failed:\n{said}")
    return done.stdout


def epoch() -> int:
    """Seconds of the last commit: the time that all files of a build bear."""
    return int(run("git", "log", "-1", "--format=%ct"))


def export(package: Package, target: Path) -> None:
    """Copy what git knows of a package, so that nothing of a working tree slips in."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", ".", cwd=package.folder)
    for name in filter(None, listed.split("\0")):
        source = package.folder / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)


def requires(package: Package) -> str | None:
    """The requirement on the sister package in setup.cfg, if there is one."""
    text = (package.folder / "setup.cfg").read_text(encoding="utf-8")
    match = re.search(r"^\s*ovirt-imageio-common(.*)$", text, re.MULTILINE)
    return match[1].strip() if match else None
