# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Checks a server, or compares this daemon with the last release of the second generation."""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import conformance as package

from .options import add_options
from .table import write_table

HERE = Path(__file__).parent
TOP = HERE.parent.parent
TABLE = TOP / "docs" / "reference" / "conformance.md"


def main(args: Sequence[str] | None = None) -> int:
    """Run the suite with its own options and those of pytest; returns an exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m conformance",
        usage="%(prog)s [options] [options of pytest]",
        description=package.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("--peer", type=Path, help="check ovirt-imageio 2.5.1, in an environment made in this folder")
    parser.add_argument("--table", action="store_true", help=f"check both and write {TABLE.relative_to(TOP)}")
    parser.add_argument("-h", "--help", action="store_true", help="show this, and the options of pytest")
    options, rest = parser.parse_known_args(args)
    if options.help:
        add_options(parser.add_argument_group("the server, and what to do with it").add_argument)
        parser.epilog = "All options of pytest:"
        parser.print_help()
        print(flush=True)
        return run(["--help"])
    if options.table:
        return compare(options.peer or TOP / ".cache" / "peer", rest)
    if options.peer:
        with peer_options(options.peer) as more:
            return run([*more, *rest])
    return run(rest)


def run(args: Sequence[str]) -> int:
    """Run the rules with these options of pytest."""
    base = ["-c", str(TOP / "pyproject.toml"), "--rootdir", str(TOP), "-p", "conformance.plugin", "-q"]
    return int(pytest.main([*base, *args, str(HERE)]))


def compare(environment: Path, args: Sequence[str]) -> int:
    """Check both servers and write the table of differences.

    Returns:
        0 if this daemon keeps every rule and each difference of the peer is explained.
    """
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        ours, theirs = Path(folder, "ours.json"), Path(folder, "theirs.json")
        status = _subprocess([f"--report={ours}", *args])
        _subprocess([f"--peer={environment}", f"--report={theirs}", *args])
        unexplained = write_table(TABLE, ours, theirs)
    for line in unexplained:
        print(line, file=sys.stderr)
    return status or bool(unexplained)


def _subprocess(args: Sequence[str]) -> int:
    environ = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    return subprocess.run([sys.executable, "-m", "conformance", *args], env=environ, check=False).returncode


@contextlib.contextmanager
def peer_options(environment: Path) -> Iterator[list[str]]:
    """Start ovirt-imageio 2.5.1 and yield the options that name its sockets.

    It has one control service, so a second daemon has one on TCP.
    """
    from bench.servers import Daemon
    from bench.setup import make_keys, make_peer
    from clients.host import Generation, Host
    from imageio_testing.pki import Pki

    peer = make_peer(environment)
    with tempfile.TemporaryDirectory(prefix="peer-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        keys = make_keys(folder)
        (folder / "second").mkdir()
        pki = Pki(keys.ca_file, keys.cert_file, keys.key_file)
        control = {"control": {"transport": "tcp", "port": 0}}
        second = Host(Generation("2.5.1", peer.python), folder / "second", pki, config=control)
        with Daemon(peer, folder, keys) as daemon, second:
            yield [
                f"--remote=https://localhost:{daemon.port}",
                f"--cafile={keys.ca_file}",
                f"--local={daemon.local}",
                f"--control={daemon.control}",
                f"--tcp-control=http://localhost:{second.control}",
                "--version-expected=2.5.1",
            ]


if __name__ == "__main__":
    sys.exit(main())
