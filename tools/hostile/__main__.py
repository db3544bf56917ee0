# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Send hostile clients in numbers to a real daemon, and write down what that costs."""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from bench.machine import Usage
from bench.setup import machine_facts, python_version
from imageio_testing.daemon import Daemon, public_command
from imageio_testing.hostile import CASES
from imageio_testing.pki import Pki, make_pki

from .measure import MIB, WAYS, Found, Victim, measure, p99, ratio

GOAL = 1.5  # p99 of a normal request meanwhile, against its unloaded value
# Clients of this case move megabytes each: with more of them, the speed of that would be measured.
COUNTS = {"idle with a ticket": 100}
USER = "nobody"


def arguments(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parse the command line."""
    p = argparse.ArgumentParser(prog="python -m hostile", description=__doc__)
    p.add_argument("cases", nargs="*", metavar="CASE", help="names (default: all)")
    p.add_argument("--list", action="store_true", help="print the cases")
    p.add_argument("--count", type=int, default=1000, help="hostile clients at a time")
    p.add_argument("--rounds", type=int, default=5, help="how often each case is run")
    p.add_argument("--seconds", type=float, default=4.0, help="length of each look, unloaded and meanwhile")
    p.add_argument("--report", type=Path, help="page to write")
    p.add_argument("--note", help="what a reader of the page must know besides")
    p.add_argument("--command", default="make hostile", help="what the page says that it was made by")
    options = p.parse_args(argv)
    for name in options.cases:
        if name not in CASES:
            p.error(f"there is no case {name!r}; --list prints them all")
    return options


def run(options: argparse.Namespace) -> dict[str, Found]:
    """Run the cases, each against a daemon of its own."""
    results = {}
    for name in options.cases or CASES:
        with contextlib.ExitStack() as stack:
            victim, twin = (Victim(stack.enter_context(daemon(stack))) for _ in range(2))
            count = min(COUNTS.get(name, options.count), options.count)
            found = measure(victim, twin, name, count, rounds=options.rounds, seconds=options.seconds)
        results[name] = found
        print(" | ".join(cells(name, found)), flush=True)
    return results


def daemon(stack: contextlib.ExitStack) -> Daemon:
    """Return a daemon with default settings, not started, in a folder that anybody may enter."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hostile-", dir="/dev/shm"))
    os.chmod(folder, 0o755)
    identity, command = unprivileged()
    return Daemon(folder, pki=keys(folder, identity), command=command, user=identity)


def unprivileged() -> tuple[Optional[tuple[int, int]], list[str]]:
    """Return who runs the daemon, if that is not us, and how."""
    command = public_command()
    if os.geteuid() or command is None:
        return None, [sys.executable, "-m", "ovirt_imageio.daemon"]
    user = pwd.getpwnam(USER)
    return (user.pw_uid, user.pw_gid), command


def keys(folder: str, identity: Optional[tuple[int, int]]) -> Pki:
    """Make TLS keys that the daemon can read."""
    pki = make_pki(folder)
    if identity:
        shutil.chown(pki.key_file, *identity)
    return pki


HEADER = (
    "case",
    "clients",
    "threads",
    "memory, MiB",
    "descriptors",
    "processor, %",
    *(
        f"p99 by {way}, ms: {when}"
        for way in ("Unix socket", "TLS")
        for when in ("unloaded", "meanwhile", "ratio", "twin", "as they come")
    ),
    "control, p50 ms",
    "transfer, s",
    "at most 1.5?",
)


def cells(name: str, found: Found) -> list[str]:
    """Return a row of the table."""
    row = [name, str(found.count)]
    row += [three(found, key, scale) for key, scale in (("threads", 1), ("rss", MIB), ("fds", 1))]
    row.append(" / ".join(f"{statistics.median(part) * 100:.0f}" for part in zip(*found.busy)))
    for way in WAYS:
        of, twin = ratio(found, way), ratio(found, f"twin {way}")
        row += [milliseconds(p99(found.unloaded, way)), milliseconds(p99(found.meanwhile, way))]
        row += [f"{of:.2f}{' **!**' if of > GOAL else ''}", f"{twin:.2f}", milliseconds(p99(found.arriving, way))]
    row += [milliseconds(statistics.median(found.control)), f"{statistics.median(found.transfers):.2f}"]
    return [*row, "no" if is_missed(found) else "yes"]


def three(found: Found, key: str, scale: int) -> str:
    """Return a figure before, during and after: medians of the rounds."""

    def middle(seen: Sequence[Usage]) -> str:
        return f"{statistics.median(getattr(usage, key) for usage in seen) / scale:.0f}"

    return " / ".join(map(middle, (found.before, found.during, found.after)))


def milliseconds(seconds: float) -> str:
    """Write a duration."""
    return f"{seconds * 1000:.2f}"


def page(results: dict[str, Found], options: argparse.Namespace) -> str:
    """Return the report."""
    identity, command = unprivileged()
    facts = {
        **machine_facts(),
        "Python": python_version(sys.executable if identity is None else command[-3]),
        "the daemon runs as": USER if identity else "whoever ran this",
        "rounds": str(options.rounds),
        "seconds of each slice": f"{options.seconds:g}",
        "samples in each slice": f"{fewest(results)} or more",
        "processor time that the host took away": f"{most_stolen(results):.1%} or less in any slice",
        "done of what each crowd was to do": f"{least_done(results):.0%} or more",
    }
    table = [HEADER, ["---"] * len(HEADER), *(cells(name, found) for name, found in results.items())]
    missed = [name for name, found in results.items() if is_missed(found)]
    return "\n".join(
        [
            "# Hostile clients",
            "",
            f"Made by `{options.command}`. Each case in turn attacks a daemon of its own with default settings.",
            "Meanwhile another client, with a ticket for another image, reads 4 KiB every few milliseconds. Its two",
            "connections are kept, one by Unix socket and one by TLS. Figures with slashes are before, during and",
            "after. The middle one is the most that was seen, the last one the rest 2.5 s after the last hostile",
            "connection has ended. The column *processor* is the part that the daemon takes of one without and with",
            "the crowd. Both the normal requests and those of the crowd are in it.",
            "",
            "Slices without and with the crowd take turns. Each with it is compared with the one right before. All",
            "figures are medians of the rounds, for machines are never alone, and rarely twice the same. Rounds in",
            "which the host of a virtual machine took its processors away are repeated. The column *twin* is the",
            "same ratio for a second daemon on the machine. No client attacks the twin, and it is asked in turn",
            "with the first. The crowd takes an excess over 1 there from the machine, not from the daemon. The",
            "columns *as they come* have the time in which all connections are made. The column *transfer* is an",
            "upload of 16 MiB by Unix socket and a download by TLS, while the crowd is there.",
            "",
            "Clients that drip or flood do so each second anew, one after the other. Of the clients that leave at",
            "once a tenth comes again each second. The processes that send the crowd run only while no other wants",
            "the processor, and still do all of their work.",
            "",
            *(f"- {name}: {value}" for name, value in facts.items()),
            "",
            *([options.note, ""] if options.note else []),
            *(f"| {' | '.join(row)} |" for row in table),
            "",
            f"A request meanwhile may take {GOAL} times its unloaded time at the 99th percentile; "
            + (f"missed by: {', '.join(missed)}." if missed else "every case keeps that."),
            "",
            "## The cases",
            "",
            *(f"**{name}**: {lowered(CASES[name].__doc__)}\n" for name in results),
        ]
    )


def fewest(results: dict[str, Found]) -> int:
    """Return from how many samples any percentile was taken at least."""
    kinds = [kind for found in results.values() for kind in (found.unloaded, found.meanwhile)]
    return min(len(part[way]) for kind in kinds for part in kind for way in WAYS)


def most_stolen(results: dict[str, Found]) -> float:
    """Return which part of the processors' time the host took away in the worst slice."""
    return max(part for found in results.values() for part in found.stolen)


def least_done(results: dict[str, Found]) -> float:
    """Return which part of what it was to do any crowd did at least."""
    return min(done for found in results.values() for done in found.done)


def is_missed(found: Found) -> bool:
    """Tell whether normal requests took too long."""
    return any(ratio(found, way) > GOAL for way in WAYS)


def lowered(text: Optional[str]) -> str:
    """Return a docstring as the end of a sentence."""
    return f"{text[0].lower()}{text[1:]}" if text else ""


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; 1 if a goal was missed."""
    options = arguments(argv)
    if options.list:
        for name, case in CASES.items():
            print(f"{name:24} {case.__doc__}")
        return 0
    print(" | ".join(HEADER))
    results = run(options)
    if options.report:
        options.report.write_text(page(results, options).rstrip() + "\n")
    return int(any(map(is_missed, results.values())))


if __name__ == "__main__":
    sys.exit(main())
