# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""One simulated machine: its processes, their threads, its clock, and what it notes of all they do.

Each act of a process outside of its memory is a `step`. It takes a moment of simulated time, other
threads may go on meanwhile, and the process may be killed before it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any, Callable, Optional, Protocol

from .dice import Dice
from .disk import Disk
from .faults import DiskFaults
from .network import Network
from .scheduler import Killed, Scheduler, Task


class Fate(Protocol):
    """Decides when a process is killed."""

    def strikes(self, what: str) -> bool:
        """Tell if the process is killed before this step."""


class Process:
    """A process: threads that share descriptors, and end together.

    Args:
        name: For the trace.
        uid: Its user.

    Attributes:
        number: As getpid(2) tells.
        tasks: Its threads; the first is its main one.
        files: Its open files, by descriptor.
        held: Called at its end: what else lets go then.
        fate: When it is killed, None for never.
        steps: How many it made.
        killed: It was.
        environ: Its environment.
        interrupt: Exception that its main thread raises at its next step, as a Control-C does.
        no_threads: It may start no further thread.
        library: The modules in its memory.
    """

    def __init__(self, name: str, *, uid: int = 0) -> None:
        self.name = name
        self.number = 0
        self.uid = uid
        self.tasks: list[Task] = []
        self.files: dict[int, Closable] = {}
        self.held: list[Callable[[], None]] = []
        self.fate: Optional[Fate] = None
        self.steps = 0
        self.killed = False
        self.environ: dict[str, str] = {"HOME": "/home"}
        self.interrupt: Optional[BaseException] = None
        self.no_threads = False
        self.library: Any = None


class Closable(Protocol):
    """A thing that a process has open."""

    def close(self) -> None:
        """Let go of it."""


class Kernel:
    """The machine.

    Args:
        scheduler: Its clock and threads.
        dice: For the length of steps.

    Attributes:
        disk: Of the machine.
        disk_faults: Faults of the disk.
        network: Servers that can be connected.
        turns: Probability that a thread is interrupted between two statements.
        trace: Events so far, in order.
        counts: How often what went wrong.
        processes: By the task that runs.
    """

    def __init__(self, scheduler: Scheduler, dice: Dice) -> None:
        self.scheduler = scheduler
        self.dice = dice
        self.counts: Counter[str] = Counter()
        self.disk = Disk(lambda: scheduler.now)
        self.disk_faults = DiskFaults(dice.child(), self.counts)
        self.network = Network()
        self.turns = 0.0
        self.trace: list[str] = []
        self.processes: dict[Task, Process] = {}
        self._outside = Process("outside")
        self.servers = Process("servers")
        self._numbers = 0

    @property
    def process(self) -> Process:
        """The process that runs."""
        return self.processes.get(self.scheduler.current, self._outside)

    def note(self, what: str) -> None:
        """Write into the trace."""
        scheduler = self.scheduler
        self.trace.append(f"{scheduler.now} {scheduler.current.name} {what}")

    def step(self, what: str, micros: int = 20) -> None:
        """Let the running thread do something outside of its memory.

        Args:
            what: For the trace and for the fate of the process.
            micros: Most microseconds that it takes.

        Raises:
            Killed: The process was killed before.
        """
        task = self.scheduler.current
        if task.doomed:
            raise Killed
        self.note(what)
        process = self.process
        process.steps += 1
        if process.fate is not None and process.fate.strikes(what):
            self.kill(process)
            raise Killed
        if process.interrupt is not None and task is process.tasks[0]:
            error, process.interrupt = process.interrupt, None
            raise error
        self.scheduler.pass_time(1 + int(self.dice.fraction() * micros))

    def turn(self) -> None:
        """Maybe let other threads go on in between: called between statements of the code under test."""
        if self.turns and self.dice.fraction() < self.turns and self.scheduler.current is not self.scheduler.driver:
            self.scheduler.pass_time(int(self.dice.fraction() * 2000))

    def sleep(self, seconds: float) -> None:
        """Let the running thread wait."""
        self.note(f"sleep {seconds!r}")
        self.scheduler.park(self.scheduler.now + max(1, int(seconds * 1e6)))

    def spawn(self, process: Process, name: str, call: Callable[[], object]) -> Task:
        """Start a thread of a process."""
        task = Task(f"{process.name}/{name}", call)
        process.tasks.append(task)
        self.processes[task] = process
        if process.killed:
            task.doomed = task.ended = True
        else:
            self.scheduler.wake(task)
        return task

    def behind(self, call: Callable[[], object]) -> None:
        """Let something happen behind the network, whatever becomes of the client."""
        self.spawn(self.servers, f"late-{len(self.servers.tasks)}", call)

    def kill(self, process: Process) -> None:
        """Kill a process: it does nothing more, and what it had open is closed."""
        if process.killed:
            return
        self.note(f"kill {process.name}")
        process.killed = True
        self.scheduler.doom(process.tasks)
        self.close_all(process)

    def close_all(self, process: Process) -> None:
        """Close what a process had open, as its end does."""
        for fd in sorted(process.files):
            process.files.pop(fd).close()
        held, process.held = process.held, []
        for let_go in held:
            let_go()

    def run(self, process: Process, call: Callable[[], object]) -> Task:
        """Start the main thread of a process."""
        self._numbers += 1
        process.number = 1000 + self._numbers
        return self.spawn(process, "main", call)

    def end(self, process: Process) -> None:
        """Wait for a process's main thread, and end what else it has. Called by the driver."""
        main = process.tasks[0]
        self.scheduler.join(main)
        self.kill(process)
        for task in process.tasks:
            self.scheduler.join(task)

    def digest(self) -> str:
        """Return the digest of all that happened."""
        return hashlib.blake2b("\n".join(self.trace).encode(), digest_size=16).hexdigest()


class _Active:
    """The machine that is simulated now."""

    kernel: Optional[Kernel] = None


def active() -> Kernel:
    """Return the machine that is simulated now.

    Raises:
        RuntimeError: There is none.
    """
    if _Active.kernel is None:
        raise RuntimeError("no simulation is running")
    return _Active.kernel


def activate(kernel: Optional[Kernel]) -> None:
    """Choose the machine that is simulated."""
    _Active.kernel = kernel
