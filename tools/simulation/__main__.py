# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Let the client's transfers run over simulated time, server and disk, and look for broken promises.

Everything in a seed follows from its number: --show tells its story and each of its steps. With
--results seeds can be run in parts: each call goes on where the last one ended.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Optional

from . import report
from .bugs import BUGS, Bug
from .realm import check
from .seeds import Runner

_CHUNK = 100
_SHARE_OF = 500
_MOST = 20000
"""Seeds that are run at once, of which a bug's share is told, and at most for a bug."""


def arguments(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parse the command line."""
    p = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    p.add_argument("--seeds", type=int, default=100_000, help="how many, those of --results included")
    p.add_argument("--first", type=int, default=1, help="the first of them")
    p.add_argument("--minutes", type=float, default=240.0, help="begin no further seeds after so many")
    p.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that run seeds")
    p.add_argument("--show", type=int, metavar="SEED", help="run one seed, and print all that happens in it")
    p.add_argument("--bug", choices=[bug.name for bug in BUGS], help="plant a bug before")
    p.add_argument("--bugs", action="store_true", help="plant each bug, and count how many seeds find it")
    p.add_argument("--results", type=Path, help="file to keep results in, and to go on from")
    p.add_argument("--report", type=Path, help="page to write when all seeds are done")
    p.add_argument("--note", default="", help="what a reader of the page must know besides")
    p.add_argument("--command", default="make simulate", help="what the page says that it was made by")
    return p.parse_args(argv)


def _bug(name: Optional[str]) -> Optional[Bug]:
    return next((bug for bug in BUGS if bug.name == name), None)


def some(job: tuple[int, int, Optional[str]]) -> dict[str, Any]:
    """Run some seeds, in a process of their own; return their sum.

    Args:
        job: First seed, how many, and the name of a planted bug.
    """
    first, count, name = job
    bug = _bug(name)
    began = time.process_time()
    with Runner(bug.patches if bug else ()) as runner:
        results = report.summed([runner.run(seed) for seed in range(first, first + count)])
    results["seconds"] = time.process_time() - began
    return results


def _jobs(results: dict[str, Any], args: argparse.Namespace, until: float) -> Iterator[tuple[int, int, Optional[str]]]:
    """Return what is still to be done, in parts, as long as there is time."""
    end = args.first + args.seeds
    while results["next"] < end and time.monotonic() < until:
        first = results["next"]
        results["next"] = min(first + _CHUNK, end)
        yield first, results["next"] - first, args.bug


def run(results: dict[str, Any], args: argparse.Namespace) -> None:
    """Run seeds until there were enough, or time is over."""
    until = time.monotonic() + args.minutes * 60
    with ProcessPoolExecutor(args.jobs) as pool:
        jobs = _jobs(results, args, until)
        while part := list(islice(jobs, 4 * args.jobs)):
            for done in pool.map(some, part):
                report.add(results, done)
                for seed, broken in done["broken"].items():
                    print(f"seed {seed}: {'; '.join(broken)}", flush=True)
            if args.results:
                report.save(args.results, results)
            print(report.summary(results), flush=True)


def show(seed: int, bug: Optional[Bug]) -> int:
    """Run one seed and print it; 1 if a promise was broken."""
    trace: list[str] = []
    with Runner(bug.patches if bug else ()) as runner:
        outcome = runner.run(seed, trace)
    print("\n".join(trace))
    print(f"seed {seed}, {outcome.story}, digest {outcome.digest}:")
    print("\n".join(f"  {line}" for line in outcome.told))
    for broken in outcome.broken:
        print(f"broken: {broken}")
    return 1 if outcome.broken else 0


def examine(bug: Bug, jobs: int) -> dict[str, Any]:
    """Plant a bug, and return the first seed that finds it and how many of the first ones do."""
    parts = [(first, _CHUNK, bug.name) for first in range(1, _MOST, _CHUNK)]
    found: dict[int, str] = {}
    with ProcessPoolExecutor(jobs) as pool:
        for number in range(0, len(parts), jobs):
            some_parts = parts[number : number + jobs]
            for done in pool.map(some, some_parts):
                found.update((int(seed), broken[0]) for seed, broken in done["broken"].items())
            if some_parts[-1][0] + _CHUNK > _SHARE_OF and found:
                break
    share = sum(seed <= _SHARE_OF for seed in found)
    first = min(found, default=0)
    seeds = sorted(found)[:3]
    print(f"{bug.name}: first {first}, {share} of {_SHARE_OF}, {seeds}: {found.get(first, 'not found')}", flush=True)
    return {"first": first, "share": share, "said": found.get(first, ""), "seeds": seeds}


def examine_all(found: dict[str, Any], jobs: int) -> None:
    """Plant each bug that was not planted yet, after a look if all of them fit."""
    for bug in BUGS:
        check(bug.patches)
    for bug in BUGS:
        if bug.name not in found:
            found[bug.name] = examine(bug, jobs)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; 1 if a promise was broken, or a planted bug not found."""
    args = arguments(argv)
    if args.show is not None:
        return show(args.show, _bug(args.bug))
    results = report.load(args.results) if args.results else report.empty()
    if results["next"] is None:
        results["next"] = args.first
    if args.bugs:
        examine_all(results.setdefault("bugs", {}), args.jobs)
        if args.results:
            report.save(args.results, results)
    run(results, args)
    left = args.first + args.seeds - results["next"]
    if left > 0:
        print(f"{left:,} seeds are left: time is over")
    elif args.report:
        args.report.write_text(report.page(results, args.command, args.note), encoding="utf-8")
    missed = [name for name, row in results.get("bugs", {}).items() if not row["first"]]
    return 1 if missed or (results["broken"] and not args.bug) else 0


if __name__ == "__main__":
    sys.exit(main())
