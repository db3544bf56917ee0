# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the suites of conformance, faults and durability without each of the fast paths, and without any."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from imageio_testing.settings import SWITCHES, VARIABLE

TOP = Path(__file__).resolve().parent.parent.parent
_DAEMON = "packages/ovirt-imageio-daemon/tests"
_CLIENT = "packages/ovirt-imageio-client/tests/system"

# Failures of storage, clients and daemons; then the promises of a flush.
FAULTS = [
    f"{_CLIENT}/test_faults.py",
    f"{_CLIENT}/test_storage_errors.py",
    f"{_CLIENT}/test_survives.py",
    f"{_CLIENT}/test_proxy.py",
    f"{_DAEMON}/test_cancelling.py",
    f"{_DAEMON}/test_stalled.py",
    f"{_DAEMON}/test_rejected_uploads.py",
]
DURABILITY = [
    f"{_DAEMON}/test_pool.py",
    f"{_DAEMON}/test_flush.py",
    f"{_DAEMON}/test_flush_properties.py",
]
_PYTEST = ["pytest", "-q", "-m", "not slow"]

SUITES = {
    "conformance": ["conformance"],
    "faults": [*_PYTEST, *FAULTS],
    "durability": [*_PYTEST, *DURABILITY],
    "soak": ["soak", "--rounds", "9", "--writing", "0.5"],
}
"""Modules and their arguments. The contract of backends has such rows itself, see test_http_conformance.py."""

PARALLEL = ("conformance", "pytest")  # modules that take -n

# Settings that switch fast paths off. With them on, `make check` runs all of this but the soak.
MATRIX = {
    **{f"without {name}": [setting] for name, setting in SWITCHES.items()},
    "without any": list(SWITCHES.values()),
}


def arguments(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parse the command line."""
    p = argparse.ArgumentParser(prog="python -m fastpaths", description=__doc__)
    p.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(map(repr, MATRIX))} (default: all)")
    p.add_argument("--suite", action="append", choices=SUITES, help="run only this one; may be repeated")
    p.add_argument("-n", "--processes", default="auto", help="of pytest (default: as many as processors)")
    options = p.parse_args(argv)
    for name in options.rows:
        if name not in MATRIX:
            p.error(f"there is no row {name!r}")
    return options


def run(settings: Sequence[str], suite: str, processes: str) -> Optional[str]:
    """Run a suite with these settings; return what it wrote if it failed."""
    module, *args = SUITES[suite]
    if module in PARALLEL:
        args += ["-n", processes]
    done = subprocess.run(
        [sys.executable, "-m", module, *args],
        cwd=TOP,
        env={**os.environ, "PYTHONPATH": str(TOP / "tools"), VARIABLE: " ".join(settings)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.stdout if done.returncode else None


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; 1 if a suite failed."""
    options = arguments(argv)
    failed = []
    for row in options.rows or MATRIX:
        for suite in options.suite or SUITES:
            began = time.monotonic()
            wrote = run(MATRIX[row], suite, options.processes)
            state = "ok" if wrote is None else "FAILED"
            print(f"{row:20} {suite:12} {state:7} {time.monotonic() - began:5.0f} s", flush=True)
            if wrote is not None:
                failed.append(f"{row}: {suite}")
                print(wrote, flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
