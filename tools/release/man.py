# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the manual pages, sorted into the packages that ship them.

    python -m release.man --out DIR

The result has a folder for each package that has pages, as `release.dist --man` takes it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from release.tree import TOP, ReleaseError, find, run

# Commands and files of each package. A page without an owner is an error.
OWNERS = {
    "ovirt-imageio.8": "daemon",
    "ovirt-imageioctl.8": "daemon",
    "ovirt-imageio.conf.5": "daemon",
    "ovirt-img.1": "client",
}


def build(out: Path) -> list[Path]:
    """Build all pages.

    Args:
        out: Folder for the packages' folders.

    Returns:
        The pages.

    Raises:
        ReleaseError: Sphinx failed, or a page is missing or nobody's.
    """
    with tempfile.TemporaryDirectory(prefix="imageio-man-") as work:
        # Gaps in the sources of the pages are found when the documentation is built.
        options = ("-q", "-D", "autosummary_generate=0", "-b", "man", "-d", f"{work}/doctrees")
        run(sys.executable, "-m", "sphinx", *options, str(TOP / "docs"), f"{work}/man")
        built = {page.name: page for page in Path(work, "man").glob("*.[0-9]")}
        if built.keys() != OWNERS.keys():
            raise ReleaseError(
                f"docs made the manual pages {sorted(built)}, their owners are known of {sorted(OWNERS)}"
            )
        return [_place(page, out / find(OWNERS[name]).name) for name, page in sorted(built.items())]


def _place(page: Path, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(page, folder / page.name))


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    p = argparse.ArgumentParser(prog="python -m release.man", description="Build the manual pages.")
    p.add_argument("--out", type=Path, required=True, help="folder for the results")
    args = p.parse_args(argv)
    try:
        for page in build(args.out):
            print(page)
    except ReleaseError as e:
        print(f"man: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
