# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""An oVirt engine: making disks, and transfers that permit to move their data.

    new transfer ──► initializing ──► transferring ──► finalizing ──► finished_success
                                          │                 └───────► finished_failure
                                          └── cancel ──► a disk being uploaded is removed

The engine is asked through ovirt-engine-sdk-python, an optional dependency that is
loaded when it is needed first. Source: "Image transfer" of the oVirt REST API.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import re
import signal
import threading
import time
from types import TracebackType
from typing import Any, Callable, Iterator, NamedTuple

from ovirt_imageio.client import options
from ovirt_imageio.common.errors import ImageioError

log = logging.getLogger(__name__)

VDSM_ID = "/etc/vdsm/vdsm.id"
"""Where a host of oVirt keeps its hardware id."""

_API = "/ovirt-engine/api"

_REQUEST_TIMEOUT = 60
"""Seconds for one answer of the engine."""

_LAST_WISHES = 3
"""Seconds for an answer when a signal asks to end."""

_LOGOUT = 1
"""Seconds for a logout, of which nothing depends."""

_LOOK = 0.2
"""Seconds between two looks if such a signal is held back."""

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_CURL_ERROR = re.compile(r"Error while sending HTTP request: \((\d+), ['\"](.*)['\"]\)")
_AUTH_ERROR = re.compile(r"^Error during SSO authentication \w+ ?: ")
"""How the SDK writes errors."""

_CERTIFICATE_ERRORS = (51, 58, 60, 77, 83, 90, 91)
"""See libcurl-errors(3): a certificate is missing, or was not accepted."""

FINALIZE_TIMEOUT = 300.0
"""Seconds for the engine to finalize a transfer, as 2.5.1 waits; more if `disk_timeout` is more."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0
"""Seconds between two questions if something is ready; doubled each time."""


class EngineError(ImageioError):
    """The engine cannot be reached, refused, or took too long.

    Attributes:
        status: Status code of its answer; None if there was none.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Transfer(NamedTuple):
    """A transfer that is ready to move data.

    Attributes:
        id: For the engine's log and the daemon's.
        url: Of the disk at a host.
        proxy_url: Of the disk at the engine; None if it has no proxy.
    """

    id: str
    url: str
    proxy_url: str | None


def load_sdk() -> Any:
    """Return the module ovirtsdk4.

    Raises:
        EngineError: It is not installed, or cannot be loaded.
    """
    try:
        import ovirtsdk4
        import ovirtsdk4.types
    except ImportError as e:
        if e.name == "ovirtsdk4":
            raise EngineError(
                "the oVirt engine SDK is not installed: pip install 'ovirt-imageio-client[engine]' "
                "(EL: dnf install python3-ovirt-engine-sdk4)"
            ) from e
        raise EngineError(f"the oVirt engine SDK cannot be loaded: {e}") from e
    return ovirtsdk4


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold back signals that ask to end: a transfer whose id is lost could not be cancelled."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _bounded(call: Callable[[], Any], seconds: float = _REQUEST_TIMEOUT) -> Any:
    """Call the SDK in a thread, which is left behind if need be.

    A login and a logout of it wait for ever, inside of libcurl: no signal ends that. Here a signal
    does; one that is held back leaves the engine `_LAST_WISHES` seconds more.

    Raises:
        EngineError: There was no answer in that many seconds.
        As call.
    """
    result: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            result.put((call(), None))
        except BaseException as e:
            result.put((None, e))

    threading.Thread(target=run, name="engine", daemon=True).start()
    begun = time.monotonic()
    while True:
        with contextlib.suppress(queue.Empty):
            value, error = result.get(timeout=_LOOK)
            break
        waited = time.monotonic() - begun
        if signal.sigpending().intersection(_ENDING):
            seconds = min(seconds, waited + _LAST_WISHES)
        if waited >= seconds:
            raise EngineError(f"the engine did not answer in {waited:.0f} seconds")
    if error is not None:
        raise error
    return value


class Engine:
    """A connection to an engine, which is logged in inside of its context. One thread uses it.

    Args:
        settings: How to reach it.
        pause: Waits for seconds; tests replace it.
        now: Returns seconds from any starting point.

    Raises:
        EngineError: There is no SDK, or cafile cannot be read.
    """

    def __init__(
        self,
        settings: options.Engine,
        *,
        pause: Callable[[float], object] = time.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._pause = pause
        self._now = now
        self._sdk = load_sdk()
        url = settings.url.rstrip("/")
        with self._errors("connect to the engine"):
            self._connection = self._sdk.Connection(
                url=url if url.endswith(_API) else url + _API,
                username=settings.username,
                password=settings.password,
                ca_file=settings.cafile,
                insecure=not settings.secure,
                timeout=_REQUEST_TIMEOUT,
            )
        self._system = self._connection.system_service()

    def __enter__(self) -> Engine:
        with self._errors("log in to the engine"):
            _bounded(self._connection.authenticate)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            _bounded(self._connection.close, _LOGOUT)
        except (self._sdk.Error, EngineError) as e:
            log.debug("Cannot log out: %s", e)

    def create_disk(self, *, storage_domain: str, disk_id: str | None, **properties: Any) -> str:
        """Make a disk and wait until it is ready.

        Args:
            storage_domain: Its name.
            disk_id: UUID for it; None lets the engine choose.
            properties: As `types.Disk` of the SDK has them; format is `raw` or `cow`.

        Returns:
            The id of the disk.

        Raises:
            EngineError: The engine refused, or was not done in time.
        """
        types = self._sdk.types
        disks = self._system.disks_service()
        for key, kind in (("format", types.DiskFormat), ("content_type", types.DiskContentType)):
            properties[key] = kind(properties[key])
        if properties.get("backup"):
            properties["backup"] = types.DiskBackup(properties["backup"])
        wanted = types.Disk(id=disk_id, storage_domains=[types.StorageDomain(name=storage_domain)], **properties)
        with self._errors("make the disk"):
            disk = disks.add(wanted)
        log.info("Made disk %s", disk.id)
        service = disks.disk_service(disk.id)
        for _ in self._polls(f"make disk {disk.id}"):
            with self._errors(f"make disk {disk.id}"):
                disk = service.get()
            if disk.status == types.DiskStatus.OK:
                break
            if disk.status == types.DiskStatus.ILLEGAL:
                raise EngineError(f"the engine could not make disk {disk.id}: see its events")
        return str(disk.id)

    def storage_domain_of(self, disk_id: str) -> str | None:
        """Return the name of a disk's storage domain.

        Raises:
            EngineError: There is no such disk.
        """
        with self._errors(f"find disk {disk_id}"):
            disk = self._system.disks_service().disk_service(disk_id).get()
            if not disk.storage_domains:
                return None
            domains = self._system.storage_domains_service()
            return str(domains.storage_domain_service(disk.storage_domains[0].id).get().name)

    @contextlib.contextmanager
    def transfer(self, disk_id: str, direction: str, *, storage_domain: str | None) -> Iterator[Transfer]:
        """Permit to move the data of a disk, inside the context.

        If the context fails the transfer is cancelled, which removes a disk that was
        being uploaded. Else it is finalized, which makes the disk usable.

        Args:
            disk_id: Of the disk, which no other program uses.
            direction: `upload` or `download`.
            storage_domain: Name of the disk's, to find out if this host can do it.

        Raises:
            EngineError: The engine refused, or was not done in time: in `disk_timeout` to start,
                and in FINALIZE_TIMEOUT to finalize, if that is longer.
        """
        transfers = self._system.image_transfers_service()
        transfer: Any = None
        service: Any = None
        try:
            wanted = self._wanted(disk_id, direction, storage_domain)
            with _uninterrupted(), self._errors(f"start the {direction}"):
                transfer = _bounded(lambda: transfers.add(wanted))
                service = transfers.image_transfer_service(transfer.id)
            log.info("Transfer %s %ss disk %s", transfer.id, direction, disk_id)
            yield self._ready(service, transfer.id)
        except BaseException as e:
            seconds = _REQUEST_TIMEOUT if isinstance(e, Exception) else _LAST_WISHES
            if service is not None:
                self._cancel(service, transfer.id, direction, seconds)
            elif direction == "upload":
                self._remove(disk_id, seconds)
            raise
        self._finalize(service, transfer.id, disk_id=disk_id, direction=direction)

    def _wanted(self, disk_id: str, direction: str, storage_domain: str | None) -> Any:
        types = self._sdk.types
        return types.ImageTransfer(
            disk=types.Disk(id=disk_id),
            direction=types.ImageTransferDirection(direction),
            host=self._local_host(storage_domain),
            # With raw the daemon serves what the guest sees, through qemu-nbd, whatever
            # the format of the disk.
            format=types.DiskFormat.RAW,
            timeout_policy=types.ImageTransferTimeoutPolicy.CANCEL,
        )

    def _local_host(self, storage_domain: str | None) -> Any:
        """Find this host in the engine: a transfer on it goes through a Unix socket."""
        try:
            with open(VDSM_ID, encoding="utf-8") as f:
                hardware_id = f.readline().strip()
        except OSError:
            return None
        if not storage_domain:
            return None
        centers = self._system.data_centers_service().list(search=f"storage.name={storage_domain}")
        if not centers:
            return None
        hosts = self._system.hosts_service().list(
            search=f"hw_id={hardware_id} and datacenter={centers[0].name} and status=Up"
        )
        return hosts[0] if hosts else None

    def _ready(self, service: Any, transfer_id: str) -> Transfer:
        phases = self._sdk.types.ImageTransferPhase
        for _ in self._polls(f"start transfer {transfer_id}"):
            transfer = self._get(service, transfer_id)
            if transfer.phase == phases.TRANSFERRING:
                break
            if transfer.phase != phases.INITIALIZING:
                raise EngineError(f"the engine could not start transfer {transfer_id}: it is {transfer.phase.value}")
        return Transfer(transfer_id, str(transfer.transfer_url), transfer.proxy_url or None)

    def _finalize(self, service: Any, transfer_id: str, *, disk_id: str, direction: str) -> None:
        phases = self._sdk.types.ImageTransferPhase
        what = f"finalize transfer {transfer_id}"
        with self._errors(what):
            service.finalize()
        for _ in self._polls(what, at_least=FINALIZE_TIMEOUT):
            phase = self._phase(service, transfer_id)
            if phase == phases.FINISHED_SUCCESS or (phase is None and self._is_usable(disk_id, direction)):
                break
            if phase not in (None, phases.FINALIZING_SUCCESS, phases.TRANSFERRING):
                raise EngineError(f"the {direction} was not accepted: transfer {transfer_id} is {phase.value}")

    def _phase(self, service: Any, transfer_id: str) -> Any:
        """Return the phase of a transfer; None when the engine has none of it any more."""
        with self._errors(f"look at transfer {transfer_id}"), contextlib.suppress(self._sdk.NotFoundError):
            return service.get().phase
        return None

    def _is_usable(self, disk_id: str, direction: str) -> bool:
        """Tell if a disk can be used after its transfer, of which the engine has forgotten how it ended.

        Engines before 4.4.7 remove a transfer at its end, when the disk has the status that it keeps.

        Raises:
            EngineError: It never will: what was uploaded was not accepted.
        """
        statuses = self._sdk.types.DiskStatus
        status = None
        with self._errors(f"look at disk {disk_id}"), contextlib.suppress(self._sdk.NotFoundError):
            status = self._system.disks_service().disk_service(disk_id).get().status
        if status in (statuses.OK, statuses.LOCKED):
            return bool(status == statuses.OK)
        how = "was removed" if status is None else f"is {status.value}"
        raise EngineError(f"the {direction} was not accepted: disk {disk_id} {how}")

    def _get(self, service: Any, transfer_id: str) -> Any:
        with self._errors(f"look at transfer {transfer_id}"):
            return service.get()

    def _cancel(self, service: Any, transfer_id: str, direction: str, seconds: float) -> None:
        try:
            _bounded(service.cancel, seconds)
        except (self._sdk.Error, EngineError) as e:
            log.warning("Cannot cancel transfer %s, do it in the engine: %s", transfer_id, self._reason(e))
            return
        what = "its disk is removed" if direction == "upload" else "the disk is as it was"
        log.warning("Transfer %s is cancelled, %s", transfer_id, what)

    def _remove(self, disk_id: str, seconds: float) -> None:
        """Remove a disk that no transfer owns."""
        try:
            _bounded(self._system.disks_service().disk_service(disk_id).remove, seconds)
        except (self._sdk.Error, EngineError) as e:
            log.warning("Cannot remove disk %s, do it in the engine: %s", disk_id, self._reason(e))

    def _polls(self, what: str, *, at_least: float = 0.0) -> Iterator[None]:
        """Go round until the caller breaks; fail after `disk_timeout`, or at_least that many seconds."""
        limit = max(self._settings.disk_timeout, at_least)
        deadline = self._now() + limit
        seconds = _FIRST_PAUSE
        while True:
            yield
            if self._now() >= deadline:
                raise EngineError(f"the engine did not {what} in {limit:g} seconds, see disk_timeout")
            self._pause(seconds)
            seconds = min(2 * seconds, _LONGEST_PAUSE)

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Translate errors of the SDK."""
        try:
            yield
        except self._sdk.Error as e:
            raise EngineError(f"cannot {what}: {self._reason(e)}", status=e.code) from e

    def _reason(self, error: Any) -> str:
        """The words of the engine or of curl, without the frame that the SDK puts around them."""
        if isinstance(error, EngineError):
            return str(error)
        detail = getattr(error.fault, "detail", None)
        text = str(detail or error).strip("[]")
        curl = _CURL_ERROR.fullmatch(text)
        if curl:
            text = curl[2]
        if curl and int(curl[1]) in _CERTIFICATE_ERRORS:
            return f"{text} (give the engine's CA certificate by --cafile)"
        if isinstance(error, self._sdk.AuthError):
            return f"{_AUTH_ERROR.sub('', text)} (check user name and password)"
        return text
