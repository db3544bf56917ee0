# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Build binary and source RPMs from sdists.

    python -m release.rpm [--out DIR] [--dist DIR] [PACKAGE …]

Works with the macros of Fedora and EL, and with a plain rpmbuild such as Debian's. For
the latter an interpreter that is not Debian's own is needed, for that one installs into
dist-packages: the one that runs this is taken.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from release.tree import PACKAGES, TOP, Package, ReleaseError, epoch, find, run


def build(package: Package, sdist: Path, out: Path, *, python: str = sys.executable, dist: str = "") -> list[Path]:
    """Build the RPMs of one package.

    Args:
        package: To build.
        sdist: Its source.
        out: Folder for the results.
        python: Interpreter for hosts whose rpm has no Python macros; it has pip,
            setuptools and wheel.
        dist: Text behind the release number, as `.el9`; by default that of rpm.

    Returns:
        The binary and the source RPM.

    Raises:
        ReleaseError: rpmbuild is missing or failed.
    """
    if not shutil.which("rpmbuild"):
        raise ReleaseError("rpmbuild is not installed (Debian: rpm, Fedora and EL: rpm-build)")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="imageio-rpm-") as top:
        sources = Path(top) / "SOURCES"
        sources.mkdir()
        shutil.copy2(sdist, sources)
        defines = _defines(Path(top), python, dist)
        env = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch())}
        run("rpmbuild", "-ba", "--nodeps", *defines, str(package.spec), env=env)
        built = sorted(Path(top).glob("*RPMS/**/*.rpm"))
        results = [out / rpm.name for rpm in built]
        for rpm, result in zip(built, results):
            shutil.copyfile(rpm, result)
    return results


def _defines(top: Path, python: str, dist: str) -> list[str]:
    """Definitions that a host with the macros of Fedora or EL does not need, and those for equal results."""
    values = {
        "_topdir": str(top),
        "_build_id_links": "none",
        "_buildhost": "localhost",
        "use_source_date_epoch_as_buildtime": "1",
        "clamp_mtime_to_source_date_epoch": "1",
    }
    if dist:
        values["dist"] = dist
    if not run("rpm", "--eval", "%{?python3_sitelib}").strip():
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        values["__python3"] = python
        values["python3_version"] = version
        values["python3_sitelib"] = f"/usr/lib/python{version}/site-packages"
    return [word for name, value in values.items() for word in ("--define", f"{name} {value}")]


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    p = argparse.ArgumentParser(prog="python -m release.rpm", description="Build RPMs from sdists.")
    p.add_argument("packages", nargs="*", metavar="PACKAGE", help="common, daemon, client (default: all)")
    p.add_argument("--dist", type=Path, default=TOP / "dist", help="folder with the sdists (default: dist)")
    p.add_argument("--out", type=Path, default=TOP / "dist" / "rpm", help="folder for the results")
    options = p.parse_args(argv)
    try:
        for package in [find(name) for name in options.packages] or PACKAGES:
            sdist = options.dist / f"{package.module}-{package.version}.tar.gz"
            if not sdist.exists():
                raise ReleaseError(f"{sdist} is missing: run `make dist` first")
            for file in build(package, sdist, options.out):
                print(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)
    except ReleaseError as e:
        print(f"rpm: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
