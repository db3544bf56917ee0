# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Kill the daemon and its storage at random moments, and look if anything was lost.

Rounds are numbered, and everything random in one follows from the seed and its number. With
--results they can be carried out in parts: each call goes on where the last one ended.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from ovirt_imageio import admin

from . import report
from .model import SECTOR, Model
from .rounds import Round, RoundFailed
from .targets import TICKET, Target, Targets

MIB = 1 << 20


def arguments(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parse the command line."""
    p = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    p.add_argument("targets", nargs="*", metavar="STORAGE", help="which storage (default: all in turn)")
    p.add_argument("--rounds", type=int, default=1000, help="how many, those of --results included")
    p.add_argument("--seconds", type=float, default=7200.0, help="begin no round after so many")
    p.add_argument("--writing", type=float, default=0.15, metavar="SECONDS", help="length of a round, about")
    p.add_argument("--size", type=int, default=4, metavar="MIB", help="of each image")
    p.add_argument("--seed", default="1", help="of everything random")
    p.add_argument("--results", type=Path, help="file to keep results in, and to go on from")
    p.add_argument("--report", type=Path, help="page to write when all rounds are done")
    p.add_argument("--command", default="make soak", help="what the page says that it was made by")
    return p.parse_args(argv)


def soak(targets: Sequence[Target], results: dict[str, Any], args: argparse.Namespace) -> None:
    """Carry out rounds until there were enough, time is over, or a byte was lost."""
    deadline = time.monotonic() + args.seconds
    models = {t.name: Model(t.size // SECTOR, zeroes_first=t.storage.zeroes_first) for t in targets}
    while results["next"] < args.rounds and time.monotonic() < deadline and not results["problems"]:
        number = results["next"]
        target = targets[number % len(targets)]
        round_ = Round(target, models[target.name], f"{args.seed}:{number}", seconds=args.writing)
        try:
            verdict = round_.run()
        except (RoundFailed, admin.Error) as e:
            raise SystemExit(f"round {number} of {target.name}, {dict(round_.counts)}: {e}\n{told(target)}") from e
        report.add(results, target.name, round_.counts, verdict)
        results["next"] = number + 1
        if args.results:
            report.save(args.results, results)
        print(f"{number} {target.name}: {dict(round_.counts)}, {verdict.open} open, {verdict.lost} lost", flush=True)


def told(target: Target) -> str:
    """Return what the daemons say of the ticket, and the ends of their logs. They do not survive it."""
    lines = []
    for daemon in target.daemons:
        try:
            lines.append(str(daemon.ticket(TICKET)))
        except (admin.Error, OSError) as e:
            lines.append(repr(e))
        daemon.send_signal(signal.SIGABRT)  # faulthandler tells what each thread does
        daemon.wait()
        lines.append(daemon.log[-6000:])
    return "\n".join(lines)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; 1 if a byte was lost."""
    args = arguments(argv)
    results = report.load(args.results) if args.results else report.empty()
    if results["seed"] not in ("", args.seed):
        print(f"{args.results} has results of seed {results['seed']}", file=sys.stderr)
        return 2
    results["seed"] = args.seed
    rng = random.Random(f"{args.seed}:{results['next']}:forgotten")
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        all_of_them = Targets(Path(folder), args.size * MIB, rng, args.targets or None)
        with all_of_them as targets:
            if not targets:
                print(f"no storage to try: {all_of_them.skipped or args.targets}", file=sys.stderr)
                return 2
            soak(targets, results, args)
    results["skipped"] = all_of_them.skipped
    for problem in results["problems"]:
        print(problem)
    print(report.summary(results))
    if args.report and results["next"] >= args.rounds:
        args.report.write_text(report.page(results, args.command))
    return 1 if results["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
