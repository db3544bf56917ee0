# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the side-by-side measurement: python -m bench [ROW …]."""

from __future__ import annotations

import argparse
import fnmatch
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Optional, Sequence

from bench import scaling, small, transfers  # noqa: F401  (they register their rows)
from bench.report import (
    OURS,
    PEER,
    Samples,
    curve,
    goals_table,
    picture,
    summarize,
    table,
    verdicts,
)
from bench.rows import ROWS, Row, Sample
from bench.servers import BenchError
from bench.setup import MIB, Setup, find_python, machine_facts, make_keys, make_ours, make_peer, python_version

TOP = Path(__file__).resolve().parents[2]
PICTURES = {
    "throughput.svg": ("Throughput against 2.5", "MiB/s"),
    "daemon-cpu.svg": ("Daemon CPU per GiB against 2.5", "daemon CPU s/GiB"),
    "requests.svg": ("Requests per second against 2.5", "requests/s"),
    "latency.svg": ("99th percentile of latency against 2.5", "p99 µs"),
}


def arguments(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parse the command line."""
    p = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    p.add_argument("rows", nargs="*", metavar="ROW", help="names or patterns (default: all)")
    p.add_argument("--list", action="store_true", help="print the rows and their goals")
    p.add_argument("--rounds", type=int, default=3, help="how often each is run in turn")
    p.add_argument("--minutes", type=float, default=17, help="after which rows have one round each")
    p.add_argument("--size", type=int, default=1024, metavar="MIB", help="size of the dense image")
    p.add_argument("--seconds", type=float, default=2.0, help="length of a small-request run")
    p.add_argument(
        "--python",
        default="newest",
        help="interpreter to make both environments with: a name, newest or oldest (default: newest)",
    )
    p.add_argument("--unprivileged", action="store_true", help="without capabilities, as users run it")
    p.add_argument("--out", type=Path, help="folder for the table and the pictures (default: print only)")
    p.add_argument("--table", type=Path, metavar="FILE", help="write the table alone")
    return p.parse_args(argv)


def chosen(patterns: Sequence[str]) -> list[Row]:
    """The rows that the patterns name, in the order of the table.

    Raises:
        BenchError: a pattern names no row.
    """
    for pattern in patterns:
        if not fnmatch.filter(ROWS, pattern):
            raise BenchError(f"no row is called {pattern!r}; --list prints them all")
    wanted = patterns or ["*"]
    return [r for name, r in ROWS.items() if any(fnmatch.fnmatch(name, p) for p in wanted)]


def measure(row: Row, setup: Setup, rounds: int, seconds: float) -> Samples:
    """Run one row with everybody in turn, after a run that only warms memory and caches.

    Fewer rounds than wanted are made, but one, when the row's seconds are over.
    """
    samples: dict[str, list[Sample]] = {}
    end = time.monotonic() + seconds
    row.measure(setup, setup.ours)
    for turn in range(rounds):
        for name, implementation in ((OURS, setup.ours), (PEER, setup.peer)):
            samples.setdefault(name, []).append(row.measure(setup, implementation))
        if row.baseline:
            samples.setdefault(row.baseline_name, []).append(row.baseline(setup))
        print(f"  {row.name}: round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
        if time.monotonic() > end:
            break
    return samples


def show(row: Row, samples: Samples) -> None:
    """Print what a row came to, for who waits."""
    lines = summarize(samples)
    for line in lines:
        ratio = line.ratio(PEER)
        values = "  ".join(f"{k}: {v:.4g}" for k, v in line.values.items())
        print(f"    {line.metric:20} {values}" + (f"  {ratio:.2f}×" if ratio else ""))
    for text, measured, ok in verdicts(row, lines):
        print(f"    {'reached' if ok else 'MISSED '}: {text}, {measured}", flush=True)


def write_report(folder: Path, setup: Setup, results: Sequence[tuple[Row, Samples]], rounds: int) -> None:
    """Write the table and the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "table.md", setup, results, rounds)
    for name, (title, metric) in PICTURES.items():
        (folder / name).write_text(picture(title, results, metric))
    by_name = {row.name: samples for row, samples in results}
    for c in scaling.CURVES:
        samples = by_name.get(c.row)
        if samples is not None:
            (folder / f"{c.name}.svg").write_text(curve(c.title, c.x, c.unit, samples))


def write_table(path: Path, setup: Setup, results: Sequence[tuple[Row, Samples]], rounds: int) -> None:
    """Write what was reached, and every figure."""
    facts = {
        **machine_facts(),
        "Python of 3": python_version(setup.ours.python),
        "Python of 2.5": python_version(setup.peer.python),
        "capabilities": "none" if setup.ours.prefix else "those of the user that ran it",
        "image": f"{setup.size // MIB} MiB",
        "rounds": str(rounds),
    }
    text = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    parts = (text, "### To reach", goals_table(results), "### Every figure", table(results))
    path.write_text("\n\n".join(parts) + "\n")


def run(options: argparse.Namespace) -> None:
    """Measure and report."""
    rows = chosen(options.rows)
    work = TOP / ".bench"
    work.mkdir(exist_ok=True)
    python = find_python(options.python)
    short = ".".join(python_version(python).split(".")[:2])
    ours = make_ours(work / f"ours-{short}", python)
    peer = make_peer(work / f"peer-{short}", python)
    if options.unprivileged:
        ours, peer = ours.unprivileged(), peer.unprivileged()
    # Set, it would have the modules compiled anew by every process.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    results = []
    with tempfile.TemporaryDirectory(prefix="imageio-", dir="/dev/shm") as memory:
        disk = Path(tempfile.mkdtemp(prefix="disk-", dir=work))
        try:
            setup = Setup(
                ours=ours,
                peer=peer,
                memory=Path(memory),
                disk=disk,
                keys=make_keys(Path(memory)),
                size=options.size * MIB,
                seconds=options.seconds,
            )
            end = time.monotonic() + options.minutes * 60
            for i, row in enumerate(rows):
                print(row.title, flush=True)
                share = (end - time.monotonic()) / (len(rows) - i)
                results.append((row, measure(row, setup, options.rounds, share)))
                show(*results[-1])
            if options.out:
                write_report(options.out, setup, results, options.rounds)
            if options.table:
                write_table(options.table, setup, results, options.rounds)
        finally:
            shutil.rmtree(disk)


def main() -> int:
    """Entry point."""
    options = arguments()
    if options.list:
        for r in ROWS.values():
            bounds = ", ".join(str(b) for b in (*r.goals, *r.limits))
            print(f"{r.name:24} {r.title}{': ' + bounds if bounds else ''}")
        return 0
    # Then, too, programs that were started end, and files that were made are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        run(options)
    except BenchError as e:
        print(f"bench: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
