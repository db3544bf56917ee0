# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""One simulated world: a client's machine, a server, and the runs of the client's library between them."""

from __future__ import annotations

import hashlib
import posixpath
from typing import Any, Callable, Optional

from . import parts, qcow2
from .dice import Dice
from .disk import Disk, Node
from .fates import Event, Fate
from .kernel import Kernel, Process, activate
from .progress import Watch
from .realm import Patch
from .scheduler import HOUR, Crew, Killed, Scheduler, Task
from .server import Server
from .store import Store

HOST = "server:54322"

_LONGEST = 200 * HOUR
"""Simulated time after which a run counts as endless: no fault lasts for a thousandth of it."""


class Run:
    """One call of the library, in a process of its own or beside another.

    Attributes:
        label: For people.
        options: Of the call.
        watch: Its progress.
        error: Exception that it raised; None if it returned, or was killed.
        result: Value that it returned.
        cancelled: When its `Cancel` was used.
        began: Simulated microseconds.
        ended: As began; None if it was killed.
    """

    def __init__(self, label: str, options: dict[str, Any], watch: Watch) -> None:
        self.label = label
        self.options = options
        self.watch = watch
        self.error: Optional[BaseException] = None
        self.result: Any = None
        self.cancelled: Optional[int] = None
        self.began = 0
        self.ended: Optional[int] = None
        self.process: Optional[Process] = None
        self.task: Optional[Task] = None

    @property
    def succeeded(self) -> bool:
        """It returned."""
        return self.ended is not None and self.error is None

    @property
    def killed(self) -> bool:
        """It did not come to an end."""
        return self.ended is None

    def __str__(self) -> str:
        said = "killed" if self.killed else "success" if self.error is None else f"{kind(self.error)}: {self.error}"
        return f"{self.label}: {said}"


def kind(error: Optional[BaseException]) -> str:
    """Name the class of an error; empty for none."""
    return "" if error is None else type(error).__name__


class World:
    """Everything of one seed.

    Args:
        seed: Decides everything.
        crew: Real threads.
        patches: Planted bugs.
        raced: Interrupt threads between statements too.

    Attributes:
        dice: For the story.
        broken: Promises that were broken, in words.
        told: Events so far, in words.
    """

    def __init__(self, seed: int, crew: Crew, *, patches: tuple[Patch, ...] = (), raced: bool = False) -> None:
        dice = Dice(f"simulation {seed}")
        self.dice = dice
        self.scheduler = Scheduler(dice.child(), crew, limit=_LONGEST)
        self.kernel = Kernel(self.scheduler, dice.child())
        self.server = Server(self.kernel, dice.child(), kind="new")
        self.kernel.network.services[HOST] = self.server
        self.patches = patches
        self.raced = raced
        self.broken: list[str] = []
        self.told: list[str] = []
        self._runs = 0
        self._running: list[Run] = []

    @property
    def disk(self) -> Disk:
        """The client's disk."""
        return self.kernel.disk

    def __enter__(self) -> World:
        activate(self.kernel)
        return self

    def __exit__(self, *_: object) -> None:
        self.kernel.kill(self.kernel.servers)
        self.scheduler.unwind(self.kernel.servers.tasks)
        activate(None)

    def tell(self, what: str) -> None:
        """Note something in words, for people who read the story."""
        self.told.append(what)
        self.kernel.note(f"story {what}")

    def complain(self, what: str) -> None:
        """Note a promise that was broken."""
        self.broken.append(what)
        self.kernel.note(f"broken {what}")

    def process(self, *, uid: int = 0) -> Process:
        """Return a new process with the library in its memory."""
        self._runs += 1
        return Process(f"client-{self._runs}", uid=uid)

    def start(
        self,
        call: str,
        options: dict[str, Any],
        *,
        events: list[Event],
        cancel: Optional[int] = None,
        delay: float = 0.0,
        process: Optional[Process] = None,
        look: Callable[[Run], None],
    ) -> Run:
        """Begin a call of the library; `finish` waits for its end, and look is called in that moment."""
        process = process or self.process()
        watch = Watch(cancel)
        run = Run(f"{process.name} {call}", dict(options), watch)
        run.process = process
        library = process.library = process.library or parts.client(self.patches, self.raced)
        process.fate = Fate(events)

        def main() -> None:
            if delay:
                self.kernel.sleep(delay)
            run.began = self.scheduler.now
            try:
                run.result = getattr(library, call)(**run.options, progress=watch)
            except Killed:
                raise
            except BaseException as e:
                if self.scheduler.current.doomed:
                    raise Killed from e
                run.error = e
            run.ended = self.scheduler.now
            self.kernel.note(f"end {kind(run.error) if run.error else 'success'}")
            look(run)

        self._running.append(run)
        run.task = self.kernel.run(process, main)
        return run

    def finish(self) -> None:
        """Wait for the calls that were begun."""
        waiting, self._running = self._running, []
        while waiting:
            run = self._first(waiting)
            waiting.remove(run)
            process = run.process
            assert process is not None
            if not any(other.process is process for other in waiting):
                self._end(process)
            if self.scheduler.stuck is not None:
                self._unwind([run, *waiting])
                return

    def _first(self, waiting: list[Run]) -> Run:
        """Wait until one of the calls has ended."""
        tasks = [run.task for run in waiting if run.task is not None]
        while not any(task.ended for task in tasks) and self.scheduler.stuck is None:
            for task in tasks:
                task.waiters.append(self.scheduler.driver)
            self.scheduler.park()
            for task in tasks:
                if self.scheduler.driver in task.waiters:
                    task.waiters.remove(self.scheduler.driver)
        for run in waiting:
            if run.task is not None and run.task.ended:
                return run
        return waiting[0]

    def _end(self, process: Process) -> None:
        """Let a process end whose calls have: daemon threads end with it."""
        self.kernel.kill(process)
        self.scheduler.unwind(process.tasks)
        for task in process.tasks:
            if task is process.tasks[0] and task.error is not None and not isinstance(task.error, Killed):
                raise task.error  # of the simulation itself
            if task.error is not None and not isinstance(task.error, Killed):
                self.complain(f"a thread raised {kind(task.error)}: {task.error}")

    def _unwind(self, runs: list[Run]) -> None:
        """End everything after the simulation found that nothing goes on."""
        self.complain(f"{runs[0].label}: {self.scheduler.stuck}")
        for run in runs:
            if run.process is not None:
                self.kernel.kill(run.process)
                self.scheduler.unwind(run.process.tasks)

    def cancel_later(self, run: Run, seconds: float) -> None:
        """Cancel a call by another thread of its process, in a while."""
        cancel = run.options["cancel"] = parts.make_cancel(self.patches, self.raced)
        process = run.process
        assert process is not None

        def wait() -> None:
            self.kernel.sleep(seconds)
            run.cancelled = self.scheduler.now
            self.kernel.note("cancel")
            cancel.cancel()

        self.kernel.spawn(process, "canceller", wait)

    def power_loss(self) -> None:
        """Kill all clients, and let the disk forget what was not synced."""
        for run in self._running:
            if run.process is not None:
                self.kernel.kill(run.process)
        self.kernel.counts["power loss"] += 1
        keep = self.dice.weighted((2, 0.0), (3, 0.5), (1, 0.9), (1, 1.0))
        self.tell(f"power loss, keeps {keep}")
        self.disk.crash(self.dice, keep)

    def count(self, run: Run) -> None:
        """Count a run by its end."""
        counts = self.kernel.counts
        counts["runs"] += 1
        counts["killed" if run.killed else "succeeded" if run.succeeded else "failed"] += 1
        counts["steps"] += run.process.steps if run.process is not None else 0

    def kill(self, run: Run) -> bool:
        """Kill the process of a call."""
        if run.process is not None:
            self.kernel.kill(run.process)
        return True

    # Content of files.

    def file(self, path: str, *, stable: bool = False) -> Optional[Node]:
        """Return what a path names; what it would name after a power loss if that is wanted."""
        if not stable:
            return self.disk.find(path)
        return Stable(self.disk).find(path)

    def content(self, path: str, fmt: str, size: int, *, stable: bool = False) -> Optional[bytes]:
        """Return what a reader of an image sees; None if there is none.

        Raises:
            ValueError: It is no such image, or its backing file is none.
        """
        view: Disk = Stable(self.disk) if stable else self.disk
        node = view.find(path)
        if node is None:
            return None
        if fmt == "raw":
            return node.store.read(0, node.store.size)
        try:
            layer = qcow2.chain(view, path, fmt)
        except OSError as e:
            raise ValueError(f"{path}: {e}") from e
        if layer.size != size:
            raise ValueError(f"{path} has {layer.size} bytes, expected {size}")
        return layer.read(0, size)

    def note_content(self) -> None:
        """Write what both disks hold into the trace: of equal seeds each byte is equal."""
        stores = {path: node.store for path, node in self.disk.nodes() if not node.is_folder}
        stores.update((path, image.store) for path, image in self.server.tickets.items())
        for path, store in sorted(stores.items()):
            content = hashlib.blake2b(bytes(store.now.data) + bytes(store.stable.data), digest_size=8).hexdigest()
            self.kernel.note(f"holds {path} {content}")

    def listing(self, folder: str) -> set[str]:
        """Return the names in a folder."""
        return set(self.disk.folder(folder).names)


class Stable(Disk):
    """A disk as a power loss would leave it for certain. To look at."""

    def __init__(self, disk: Disk) -> None:
        super().__init__()
        self.root = _stable(disk.root)


def _stable(node: Node) -> Node:
    other = Node(node.number, node.stable_status[0], node.stable_status[1], node.stable_status[2])
    other.target = node.target
    if node.is_folder:
        other.names = {name: _stable(below) for name, below in node.stable_names.items()}
    else:
        store = Store()
        store.now = node.store.stable
        other.store = store
    return other


def beside(path: str, suffix: str) -> str:
    """Return the path of a file beside another."""
    folder, name = posixpath.split(path)
    return posixpath.join(folder, name + suffix)
