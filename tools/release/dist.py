# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Build sdists and wheels that come out equal, byte for byte, every time.

    python -m release.dist [--out DIR] [PACKAGE …]

setuptools writes the time and the order of a folder into an sdist, whatever
SOURCE_DATE_EPOCH says. So sdists are packed again with the time of the last commit, in
the order of names. Wheels are built from them.
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from release.tree import PACKAGES, TOP, Package, ReleaseError, epoch, export, find, run


def build(package: Package, out: Path, *, man: Path | None = None) -> tuple[Path, Path]:
    """Build one package.

    Args:
        package: To build.
        out: Folder for the results.
        man: Folder with the manual pages of all packages, by package name.

    Returns:
        The sdist and the wheel.

    Raises:
        ReleaseError: A build failed, or holds what it must not.
    """
    when = epoch()
    env = {**os.environ, "SOURCE_DATE_EPOCH": str(when), "PYTHONDONTWRITEBYTECODE": "1"}
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="imageio-dist-") as work:
        tree = Path(work) / package.name
        tree.mkdir()
        export(package, tree)
        if man is not None and (man / package.name).is_dir():
            shutil.copytree(man / package.name, tree / "man", dirs_exist_ok=True)
        run(sys.executable, "-m", "build", "--no-isolation", "--sdist", str(tree), env=env)
        raw = next((tree / "dist").glob("*.tar.gz"))
        sdist = out / raw.name
        repack(raw, sdist, when)
        unpacked = Path(work) / "unpacked"
        with tarfile.open(sdist) as tar:
            tar.extractall(unpacked)
        source = next(unpacked.iterdir())
        run(sys.executable, "-m", "build", "--no-isolation", "--wheel", str(source), env=env)
        built = next((source / "dist").glob("*.whl"))
        wheel = out / built.name
        shutil.copyfile(built, wheel)
    check_wheel(package, wheel)
    return sdist, wheel


def repack(source: Path, target: Path, when: int) -> None:
    """Pack a tar.gz again: sorted, by nobody, at one time."""
    with tarfile.open(source) as old, open(target, "wb") as raw:
        members = sorted(old.getmembers(), key=lambda m: m.name)
        with gzip.GzipFile("", "wb", fileobj=raw, mtime=when) as zipped:
            with tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as new:
                for member in members:
                    member.uid = member.gid = 0
                    member.uname = member.gname = ""
                    member.mtime = when
                    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
                    member.pax_headers = {}
                    new.addfile(member, old.extractfile(member) if member.isreg() else None)


def check_wheel(package: Package, wheel: Path) -> None:
    """Make sure that a wheel holds its own portions, and nothing of its sisters.

    Raises:
        ReleaseError: It names what does not belong.
    """
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
    own = {f"ovirt_imageio/{portion}/" for portion in package.portions}
    allowed = (*own, f"{package.module}-{package.version}.dist-info/")
    strange = [name for name in names if not name.startswith(allowed)]
    if strange:
        raise ReleaseError(f"{wheel.name} holds what is not its own: {', '.join(strange)}")
    for portion in own:
        if f"{portion}py.typed" not in names:
            raise ReleaseError(f"{wheel.name} lacks {portion}py.typed")


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    p = argparse.ArgumentParser(prog="python -m release.dist", description="Build sdists and wheels.")
    p.add_argument("packages", nargs="*", metavar="PACKAGE", help="common, daemon, client (default: all)")
    p.add_argument("--out", type=Path, default=TOP / "dist", help="folder for the results (default: dist)")
    p.add_argument("--man", type=Path, help="folder with built manual pages, by package")
    options = p.parse_args(argv)
    try:
        for package in [find(name) for name in options.packages] or PACKAGES:
            files = build(package, options.out, man=options.man)
            run(sys.executable, "-m", "twine", "check", "--strict", *map(str, files))
            for file in files:
                print(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)
    except ReleaseError as e:
        print(f"dist: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
