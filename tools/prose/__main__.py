# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Look for prose that breaks the rules; status 1 if there is some."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional

from . import reading, rules

TOP = Path(__file__).parents[2]


def tracked(paths: Sequence[str]) -> list[Path]:
    """Return the pages and Python sources below paths that git knows, or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *paths],
        cwd=TOP,
        check=True,
        capture_output=True,
        text=True,
    )
    return sorted({TOP / name for name in listed.stdout.split("\n") if name.endswith((".md", ".py"))})


def look(path: Path) -> Iterator[rules.Fault]:
    """Yield the faults of a file."""
    text = path.read_text(encoding="utf-8")
    blocks, cells = (reading.source(text), ()) if path.suffix == ".py" else reading.page(text)
    for block in blocks:
        yield from rules.faults(block)
    for cell in cells:
        yield from rules.cell_faults(cell)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command."""
    p = argparse.ArgumentParser(prog="python -m prose", description=__doc__)
    p.add_argument("paths", nargs="*", default=["."], help="files and folders (default: all)")
    args = p.parse_args(argv)
    count = 0
    for path in tracked(args.paths):
        if path.exists():
            for fault in look(path):
                count += 1
                print(f"{path.relative_to(TOP)}:{fault.line}: {fault.rule}: {fault.text[:100]}")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
