# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Install wheels of this checkout into the environment of this Python.

    python -m release.install [--constraint FILE] [--upgrade] PACKAGE …

Wheels are built from a copy, once for each state of a package, below .tox/wheels. Files
that lie about in the source tree cannot slip in, and no module is imported from it
afterwards. Environments may be made in parallel.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import sys
import tempfile
from pathlib import Path

from release.tree import TOP, Package, ReleaseError, export, find, run

STORE = TOP / ".tox" / "wheels"


def wheel(package: Package) -> Path:
    """Return the wheel of a package as it is now, built if need be.

    Raises:
        ReleaseError: The build failed.
    """
    STORE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=STORE) as work, open(STORE / "lock", "w") as lock:
        tree = Path(work, "tree")
        export(package, tree)
        folder = STORE / f"{package.short}-{_digest(tree)}"
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _pip("wheel", "--no-deps", f"--wheel-dir={work}/wheel", str(tree))
            Path(work, "wheel").rename(folder)
    return next(folder.glob("*.whl"))


def install(packages: list[Package], *, constraints: list[str], upgrade: bool) -> None:
    """Install wheels and what they require, and make sure that these are imported.

    Args:
        packages: All that are wanted: sisters that are not named are not found.
        constraints: Files of versions to take, for pip.
        upgrade: Take the newest of what they require.

    Raises:
        ReleaseError: pip failed, or a package would be imported from elsewhere.
    """
    wheels = [str(wheel(package)) for package in packages]
    options = [f"--constraint={path}" for path in constraints]
    if upgrade:
        options += ["--upgrade", "--upgrade-strategy=eager"]
    # Once for what they require, and once because a new wheel may bear the same version.
    _pip("install", *options, *wheels)
    _pip("install", "--no-deps", "--force-reinstall", *wheels)
    _pip("check")
    for package in packages:
        for portion in package.portions:
            _check_installed(f"ovirt_imageio.{portion}")


def _digest(tree: Path) -> str:
    """Tell one state of a package's files from another."""
    digest = hashlib.sha256()
    for path in sorted(path for path in tree.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(tree)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _check_installed(module: str) -> None:
    spec = importlib.util.find_spec(module)
    found = Path(spec.origin or "") if spec else None
    if found is None or Path(sys.prefix) not in found.parents:
        raise ReleaseError(f"{module} should be installed below {sys.prefix}, found: {found}")


def _pip(*args: str) -> None:
    run(sys.executable, "-m", "pip", *args)


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    p = argparse.ArgumentParser(prog="python -m release.install", description="Install wheels.")
    p.add_argument("packages", nargs="+", metavar="PACKAGE", help="common, daemon, client")
    p.add_argument("--constraint", action="append", default=[], help="file of versions to take")
    p.add_argument("--upgrade", action="store_true", help="take the newest requirements")
    args = p.parse_args(argv)
    try:
        packages = [find(name) for name in args.packages]
        install(packages, constraints=args.constraint, upgrade=args.upgrade)
    except ReleaseError as e:
        print(f"install: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
