# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The plot of all stories: stormy runs that may end in any way, and a calm one that has to succeed.

An example:

    run 1 ── faults, killed at a step ──────┐ after each: the promises that hold
    run 2 ── faults, power lost ────────────┤ however a run ends
    run 3 ── other ticket, source changed ──┘
    calm ─── nothing is wrong: success, or a refusal for which there is a reason
"""

from __future__ import annotations

from typing import Any, Callable, Optional

from .. import images
from ..dice import Dice
from ..fates import TELLING, Event
from ..faults import DiskTrouble
from ..network import Trouble
from ..server import Image, Server
from ..store import UNIT
from ..world import HOST, Run, World, kind

_DOCUMENTED = frozenset(["ImageioError", "OSError", "ValueError", "Cancelled", "KeyboardInterrupt"])

_CALM_ATTEMPTS = 3

_AT_ONCE = 2_000_000
"""Microseconds in which a call ends that was cancelled: a second, and what its last steps take."""

_ENDINGS = (
    (3, ""),
    (4, "kill"),
    (3, "power"),
    (1, "cancel"),
    (1, "Cancel"),
    (1, "interrupt"),
    (1, "outage"),
    (2, "crash"),
)
"""How runs end, and how often each way. At an outage the server is unreachable for a while; at a crash it also
forgets what no flush covers. It comes back with the same tickets."""


def url(ticket: str) -> str:
    """Return the URL of a ticket."""
    return f"http://{HOST}/images/{ticket}"


def size(dice: Dice) -> int:
    """Return the size of an image: up to some steps of 8 KiB, which stand for 8 MiB."""
    units = dice.about(100, 1600) if dice.chance(0.7) else dice.about(1, 100)
    return units * UNIT if dice.chance(0.7) else max(1, units * UNIT - 4 * dice.below(15))


def whole(size: int) -> int:
    """Return the size of an image of whole units."""
    return max(UNIT, size // UNIT * UNIT)


def trouble(dice: Dice) -> Trouble:
    """Return what goes wrong with the server: nothing, or some kinds of it."""
    if dice.chance(0.25):
        return Trouble()
    often = dice.pick((0.01, 0.03, 0.1))
    kinds = {name: often for name in Trouble._fields if not name.startswith("damaged") and dice.chance(0.4)}
    for name in ("failed", "garbage"):
        # These end a transfer.
        if name in kinds:
            kinds[name] = 0.004 if dice.chance(0.5) else 0.0
    if dice.chance(0.2):
        kinds[dice.pick(("damaged_put", "damaged_get"))] = dice.pick((0.005, 0.05))
    return Trouble(**kinds)


def disk_trouble(dice: Dice) -> DiskTrouble:
    """Return what goes wrong with the client's disk: most often nothing."""
    kinds = {name: dice.pick((0.01, 0.1)) for name in ("read", "write", "sync") if dice.chance(0.08)}
    if dice.chance(0.15):
        kinds["short"] = 0.2
    return DiskTrouble(**kinds)


class Story:
    """A transfer that is tried until it succeeds.

    Attributes:
        call: The function of the library.
        moving: Beginnings of the steps that move bytes.
        size: Bytes that are moved.
        options: Of the call.
        excuses: Why a run may refuse to continue what was begun.
        damaged: Bytes were damaged on their way, so only what is verified is right.
        restless: How likely what is copied is something else at the next run.
        amid: Runs are hit while they move bytes.
    """

    call = ""
    moving: tuple[str, ...] = ()
    size = 0

    def __init__(self, world: World) -> None:
        self.world = world
        self.dice = world.dice
        self.excuses: set[str] = set()
        self.damaged = False
        self.options: dict[str, Any] = {}
        self.restless = self.dice.pick((0.0, 0.2, 0.6))
        self.amid = self.dice.chance(0.3)
        self._tickets = 0

    # Methods that a story may override.

    def before(self, number: int) -> None:
        """Change what changes before a run; the calm one has the number -1."""

    def after_success(self, run: Run) -> None:
        """Check what a run that returns has done."""

    def after_failure(self, run: Run) -> None:
        """Check what a run that raises has left."""

    def at_rest(self) -> None:
        """Check what holds while nothing runs."""

    def may_fail(self, run: Run) -> bool:
        """Tell if an error is right though nothing is wrong."""
        refusals = ("CannotResume", "QemuNbdError") if "storage failed" in self.excuses else ("CannotResume",)
        return bool(self.excuses) and kind(run.error) in refusals

    def heed(self, run: Run) -> None:
        """Do what the error says: remove what was begun."""
        for _, folder in list(self.world.disk.nodes()):
            for name in [name for name in folder.names if name.endswith(".journal")]:
                folder.change({name: None})
                folder.sync()
        self.excuses.clear()

    # The plot.

    def play(self) -> None:
        """Let runs fail in many ways, and the last one succeed."""
        dice = self.dice
        for number in range(dice.weighted((3, 1), (4, 2), (3, 3), (1, 5))):
            self.still()
            self.before(number)
            if self.stormy() or self.world.broken:
                return
        self.calm()

    def stormy(self) -> bool:
        """Let one run be, with everything that may befall it; tell if that was all."""
        world, dice = self.world, self.dice
        self.raise_storm()
        ending = dice.weighted(*_ENDINGS)
        run = self.start(self.options, events=self.events(ending), cancel=self.cancel_at(ending))
        if ending == "Cancel":
            world.cancel_later(run, dice.fraction() * dice.pick((0.01, 0.3, 5.0, 100.0)))
        world.finish()
        self.settle(ending, run)
        return run.succeeded

    def raise_storm(self) -> None:
        """Choose what goes wrong."""
        world, dice = self.world, self.dice
        world.server.trouble = trouble(dice)
        world.kernel.disk_faults.trouble = disk_trouble(dice)
        world.kernel.network.latency = dice.pick((300, 3000, 30000, 400000))
        world.kernel.turns = dice.pick((0.0, 0.01, 0.05)) if world.raced else 0.0
        world.disk.room = dice.about(10, 2000) if dice.chance(0.05) else None

    def settle(self, ending: str, *runs: Run) -> None:
        """Look at what is left when all has ended."""
        world = self.world
        self.note_damage()
        world.server.up = True
        for run in runs:
            world.tell(f"{run} [{ending}] {self.shown()}")
            world.count(run)
        if ending == "power":
            world.power_loss()
        if self.dice.chance(0.1):
            self.restart()
        if not world.broken:
            self.at_rest()

    def calm(self) -> None:
        """Let a run without faults succeed."""
        world = self.world
        self.still()
        self.before(-1)
        for _ in range(_CALM_ATTEMPTS):
            run = self.start(self.options, events=[])
            world.finish()
            world.tell(f"calm {run}")
            world.count(run)
            if run.succeeded or world.broken:
                break
            if not self.may_fail(run):
                world.complain(f"{run}, though nothing is wrong")
                return
            self.heed(run)
        else:
            world.complain(f"{run}, for ever")
        if not world.broken:
            self.at_rest()

    def still(self) -> None:
        """Let nothing go wrong."""
        world = self.world
        world.server.trouble, world.kernel.disk_faults.trouble = Trouble(), DiskTrouble()
        world.server.room = world.disk.room = None
        world.kernel.turns = 0.0
        world.kernel.network.latency = 3000

    def shown(self) -> str:
        """Tell what the run had to cope with."""
        troubles = {name: often for name, often in self.world.server.trouble._asdict().items() if often}
        options = {name: value for name, value in self.options.items() if value not in (None, False)}
        return f"{options} {troubles} {sorted(self.world.kernel.disk_faults.failed)}"

    def note_damage(self) -> None:
        """Take note whether bytes may be damaged by now."""
        if self.world.kernel.network.damaged:
            self.damaged = True
            self.excuses.add("damage")
        if "sync" in self.world.kernel.disk_faults.failed:
            # A power loss may take back what was synced before, for all that a journal knows.
            self.excuses.add("storage failed")

    def start(self, options: dict[str, Any], *, events: list[Event], cancel: Optional[int] = None, **how: Any) -> Run:
        """Begin a run."""
        run = self.world.start(self.call, options, events=events, cancel=cancel, look=self.look, **how)
        for event in events:
            if event.act is kill:
                event.act = lambda: self.world.kill(run)
        return run

    # Events that befall a run.

    def events(self, ending: str) -> list[Event]:
        """Return what befalls a run that ends so."""
        acts: dict[str, Callable[[], bool]] = {
            "kill": kill,
            "power": kill,
            "interrupt": self.interrupt,
            "outage": self.outage,
            "crash": self.crash,
        }
        if ending == "Cancel" and self.dice.chance(0.5):
            return [self.at(self.outage)]
        return [self.at(acts[ending])] if ending in acts else []

    def at(self, act: Callable[[], bool]) -> Event:
        """Choose when something happens: at the n-th step of all, or of a kind."""
        dice = self.dice
        if self.amid:
            return Event(dice.pick(self.moving), dice.about(1, 30), act)
        if dice.chance(0.5):
            return Event(dice.pick(TELLING), dice.about(1, 12), act)
        return Event("", dice.about(1, 2500), act)

    def interrupt(self) -> bool:
        """Send a Control-C."""
        self.world.kernel.counts["Control-C"] += 1
        self.world.kernel.process.interrupt = KeyboardInterrupt()
        return False

    def outage(self) -> bool:
        """Let the server be unreachable for a while. It forgets nothing."""
        world = self.world
        world.kernel.counts["server: outage"] += 1
        seconds = self.dice.pick((0.05, 1.0, 20.0, 10000.0))
        world.server.crash(1.0, forget=False)

        def back() -> None:
            world.kernel.sleep(seconds)
            if not world.server.up:
                world.server.restart()

        world.kernel.behind(back)
        return False

    def crash(self) -> bool:
        """Let the server lose power, and come back with the same tickets."""
        world = self.world
        world.kernel.counts["server: crash"] += 1
        keep, seconds = self.dice.pick((0.0, 0.5, 1.0)), self.dice.pick((0.05, 1.0, 5.0))
        world.server.crash(keep)

        def back() -> None:
            world.kernel.sleep(seconds)
            if not world.server.up:
                world.server.restart()

        world.kernel.behind(back)
        return False

    def restart(self) -> None:
        """Let the server lose power while no run is there."""
        world = self.world
        world.kernel.counts["server: crash"] += 1
        keep = self.dice.pick((0.0, 0.5, 1.0))
        world.tell(f"the server is restarted, keeps {keep}")
        world.server.crash(keep)
        world.server.restart()

    def cancel_at(self, ending: str) -> Optional[int]:
        """Return after how many bytes the caller cancels."""
        return self.dice.between(0, self.size) if ending == "cancel" else None

    # The server.

    def serve(self, kind: str) -> None:
        """Let the server be of a kind."""
        world = self.world
        world.server = world.kernel.network.services[HOST] = Server(world.kernel, self.dice.child(), kind=kind)

    def new_ticket(self, image: Image, *, beside: bool = False) -> str:
        """Serve an image by a ticket that no run had before.

        Args:
            image: Behind the ticket.
            beside: Other tickets stay.
        """
        self._tickets += 1
        ticket = f"ticket-{self._tickets}"
        tickets = self.world.server.tickets
        if not beside:
            tickets.clear()
        tickets[f"/images/{ticket}"] = image
        return url(ticket)

    # Checks of all runs.

    def look(self, run: Run) -> None:
        """Check a run that has ended just now."""
        self.note_damage()
        world = self.world
        for wrong in (*run.watch.wrong, *world.server.mistakes):
            world.complain(f"{run.label}: {wrong}")
        if run.cancelled is not None and world.scheduler.now > run.cancelled + _AT_ONCE:
            world.complain(
                f"{run.label}: it went on for {(world.scheduler.now - run.cancelled) / 1e6} s when cancelled"
            )
        if run.error is None:
            if run.watch.done != self.size or run.watch.size != self.size:
                world.complain(f"{run}: progress told {run.watch.done} of {run.watch.size}, expected {self.size}")
            self._check_result(run)
            self.after_success(run)
            return
        if _DOCUMENTED.isdisjoint(cls.__name__ for cls in type(run.error).__mro__):
            world.complain(f"{run.label} raised {kind(run.error)}, which is not documented: {run.error}")
        self.after_failure(run)

    def _check_result(self, run: Run) -> None:
        """Check what a run says that it did."""
        result = run.result
        moved = result.moved + result.zeroed + result.skipped + result.resumed
        if moved != self.size or min(result.moved, result.zeroed, result.skipped, result.resumed) < 0:
            self.world.complain(f"{run}: {result} does not add up to {self.size} bytes")
        if result.verified != run.options["verify"] or (result.resumed and not run.options["resume"]):
            self.world.complain(f"{run}: {result} is not what was asked for: {run.options}")
        seconds = (self.world.scheduler.now - run.began) / 1e6
        if not seconds - 1.0 < result.seconds < seconds + 0.001:  # the end of qemu-nbd is not counted
            self.world.complain(f"{run}: {result} took {seconds} seconds")

    def must_equal(self, what: str, expected: bytes, found: Optional[bytes]) -> None:
        """Check content."""
        difference = "nothing is there" if found is None else images.difference(expected, found)
        if difference:
            self.world.complain(f"{what}: {difference}")


def kill() -> bool:
    """Stand for the death of the process, until it is known."""
    raise AssertionError("the run has not begun")
