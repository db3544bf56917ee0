# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests of the REST API, answered from the model. Source: "Services" of the oVirt REST API."""

from __future__ import annotations

import re
import uuid
import xml.etree.ElementTree as ET
from typing import Callable, NamedTuple

from . import documents, model
from .model import Backup, Disk, Engine, Fault, Named, Transfer, Vm, new_id, not_found

_FORMATS = {"cow": "qcow2", "raw": "raw"}


class Request(NamedTuple):
    """A request, taken apart.

    Attributes:
        engine: That is asked.
        keys: Ids in the path.
        search: Condition for the members of a listing, `field=value and …`; empty for all.
        body: The document sent; an empty one if there is none.
    """

    engine: Engine
    keys: tuple[str, ...]
    search: str
    body: ET.Element

    def text(self, path: str, default: str = "") -> str:
        """Text of an element of the body."""
        return self.body.findtext(path) or default

    def flag(self, path: str, default: bool) -> bool:
        """An element of the body that is true or false."""
        return self.text(path, str(default)).lower() == "true"

    def id_of(self, path: str) -> str | None:
        """Id of an element of the body; None if it is not there or has none."""
        found = self.body.find(path)
        return None if found is None else found.get("id")


_ROUTES: list[tuple[str, re.Pattern[str], Callable[[Request], tuple[int, ET.Element]]]] = []


def _route(method: str, path: str) -> Callable[..., Callable[[Request], tuple[int, ET.Element]]]:
    """Register the answer to a method on a path, where `*` stands for an id."""
    pattern = re.compile(path.replace("*", "([^/]+)"))

    def register(answer: Callable[[Request], tuple[int, ET.Element]]) -> Callable[[Request], tuple[int, ET.Element]]:
        _ROUTES.append((method, pattern, answer))
        return answer

    return register


def answer(engine: Engine, method: str, path: str, search: str, body: bytes) -> tuple[int, ET.Element]:
    """Answer a request.

    Args:
        engine: That is asked.
        method: Of HTTP.
        path: Below `documents.API`.
        search: Of the query.
        body: XML, or nothing.

    Returns:
        Status and document.
    """
    path = path.strip("/")
    try:
        document = ET.fromstring(body) if body else ET.Element("action")
        for known, pattern, function in _ROUTES:
            match = pattern.fullmatch(path)
            if match and known == method:
                return function(Request(engine, match.groups(), search, document))
        raise Fault(404, f"There is no {method} {path} here", "Not found")
    except ET.ParseError as e:
        return 400, documents.fault(Fault(400, str(e), "Invalid document"))
    except Fault as e:
        return e.status, documents.fault(e)


def _done() -> tuple[int, ET.Element]:
    action = ET.Element("action")
    documents.add(action, "status", "complete")
    return 200, action


# The system.


@_route("GET", "")
def _product(request: Request) -> tuple[int, ET.Element]:
    return 200, documents.product()


_PLACES: dict[str, tuple[str, Callable[[Engine], Named]]] = {
    "storagedomains": ("storage_domain", lambda engine: engine.storage_domain),
    "datacenters": ("data_center", lambda engine: engine.data_center),
    "clusters": ("cluster", lambda engine: engine.cluster),
    "hosts": ("host", lambda engine: engine.host),
}


@_route("GET", "(storagedomains|datacenters|clusters|hosts)")
def _list_places(request: Request) -> tuple[int, ET.Element]:
    (folder,) = request.keys
    tag, find = _PLACES[folder]
    place = find(request.engine)
    # The field `name` alone is understood; by any other one everything is found.
    match = re.search(r"\bname ?= ?([^ ]+)", request.search)
    named = match[1].strip('"') if match and not request.search.startswith("storage.") else place.name
    found = [documents.named(tag, folder, place)] if named == place.name else []
    return 200, documents.listing(f"{tag}s", found)


@_route("GET", "(storagedomains|datacenters|clusters|hosts)/*")
def _get_place(request: Request) -> tuple[int, ET.Element]:
    folder, key = request.keys
    tag, find = _PLACES[folder]
    place = find(request.engine)
    if place.id != key:
        raise not_found(tag.replace("_", " "), key)
    return 200, documents.named(tag, folder, place)


@_route("GET", "events")
def _list_events(request: Request) -> tuple[int, ET.Element]:
    return 200, ET.Element("events")


# Disks.


@_route("GET", "disks")
def _list_disks(request: Request) -> tuple[int, ET.Element]:
    return 200, documents.listing("disks", [documents.disk(request.engine, d) for d in request.engine.disks.values()])


@_route("POST", "disks")
def _add_disk(request: Request) -> tuple[int, ET.Element]:
    domain = request.body.find("storage_domains/storage_domain")
    where = None if domain is None else domain.findtext("name") or domain.get("id")
    disk = Disk(
        id=_uuid(request.body.get("id")) or new_id(),
        name=request.text("name") or request.text("alias"),
        format=_FORMATS[request.text("format", "cow")],
        size=int(request.text("provisioned_size", "0")),
        description=request.text("description"),
        content_type=request.text("content_type", "data"),
        sparse=request.flag("sparse", True),
        backup=request.text("backup", "none"),
    )
    if disk.size <= 0:
        raise Fault(400, "Cannot add Virtual Disk. provisioned_size is required.")
    request.engine.add_disk(disk, where)
    return 202, documents.disk(request.engine, disk)


def _uuid(text: str | None) -> str | None:
    try:
        return str(uuid.UUID(text)) if text else None
    except ValueError:
        raise Fault(400, f"Invalid id {text!r}: expected a UUID") from None


@_route("GET", "disks/*")
def _get_disk(request: Request) -> tuple[int, ET.Element]:
    disk = request.engine.disk(*request.keys)
    request.engine.ask(disk)
    return 200, documents.disk(request.engine, disk)


@_route("DELETE", "disks/*")
def _remove_disk(request: Request) -> tuple[int, ET.Element]:
    request.engine.remove_disk(*request.keys)
    return _done()


@_route("GET", "storagedomains/*/disksnapshots")
def _list_snapshots(request: Request) -> tuple[int, ET.Element]:
    engine = request.engine
    found = [documents.disk_snapshot(engine, disk, v) for disk in engine.disks.values() for v in disk.chain[:-1]]
    return 200, documents.listing("disk_snapshots", found)


@_route("GET", "storagedomains/*/disksnapshots/*")
def _get_snapshot(request: Request) -> tuple[int, ET.Element]:
    disk, volume = request.engine.find_volume(request.keys[1])
    return 200, documents.disk_snapshot(request.engine, disk, volume)


# Transfers.


@_route("GET", "imagetransfers")
def _list_transfers(request: Request) -> tuple[int, ET.Element]:
    engine = request.engine
    return 200, documents.listing("image_transfers", [documents.transfer(engine, t) for t in engine.transfers.values()])


@_route("POST", "imagetransfers")
def _add_transfer(request: Request) -> tuple[int, ET.Element]:
    engine = request.engine
    if request.text("format", "raw") != "raw":
        raise Fault(501, "Only transfers of format raw are served here")
    snapshot_id = request.id_of("snapshot")
    if snapshot_id:
        disk, volume = engine.find_volume(snapshot_id)
    else:
        disk = engine.disk(request.id_of("disk") or request.id_of("image") or "")
        volume = disk.active
    transfer = Transfer(
        disk_id=disk.id,
        volume=volume,
        direction=request.text("direction", "upload"),
        size=disk.size,
        shallow=request.flag("shallow", False),
        timeout_policy=request.text("timeout_policy", "legacy"),
        inactivity_timeout=int(request.text("inactivity_timeout", "60")),
    )
    backup_id = request.id_of("backup")
    if backup_id:
        _from_backup(engine, transfer, backup_id)
    engine.add_transfer(transfer)
    return 201, documents.transfer(engine, transfer)


def _from_backup(engine: Engine, transfer: Transfer, backup_id: str) -> None:
    """Let a transfer read what a backup kept."""
    backup = next((vm.backups[backup_id] for vm in engine.vms.values() if backup_id in vm.backups), None)
    if backup is None or transfer.disk_id not in backup.disks:
        raise not_found("backup", backup_id)
    if backup.phase != "ready":
        raise Fault(409, f"Cannot transfer Virtual Disk: the backup is {backup.phase}.")
    transfer.backup_id = backup_id
    transfer.volume = model.Volume(transfer.disk_id, backup.disks[transfer.disk_id], transfer.volume.format)
    if backup.mode(engine, transfer.disk_id) == "incremental":
        transfer.bitmap = backup.from_checkpoint


@_route("GET", "imagetransfers/*")
def _get_transfer(request: Request) -> tuple[int, ET.Element]:
    transfer = request.engine.transfer(*request.keys)
    request.engine.ask(transfer)
    # It may have ended just now, and be gone.
    return 200, documents.transfer(request.engine, request.engine.transfer(transfer.id))


@_route("POST", "imagetransfers/*/*")
def _act(request: Request) -> tuple[int, ET.Element]:
    key, action = request.keys
    request.engine.act(request.engine.transfer(key), action)
    return _done()


# Virtual machines and backups.


@_route("GET", "vms")
def _list_vms(request: Request) -> tuple[int, ET.Element]:
    return 200, documents.listing("vms", [documents.vm(vm) for vm in request.engine.vms.values()])


@_route("POST", "vms")
def _add_vm(request: Request) -> tuple[int, ET.Element]:
    vm = Vm(request.text("name", "imported"))
    request.engine.vms[vm.id] = vm
    return 202, documents.vm(vm)


@_route("POST", "templates")
def _add_template(request: Request) -> tuple[int, ET.Element]:
    template = Named(request.text("name", "imported"))
    request.engine.templates[template.id] = template
    return 202, documents.named("template", "templates", template)


@_route("GET", "vms/*")
def _get_vm(request: Request) -> tuple[int, ET.Element]:
    return 200, documents.vm(request.engine.vm(*request.keys))


@_route("GET", "vms/*/diskattachments")
def _list_attachments(request: Request) -> tuple[int, ET.Element]:
    vm = request.engine.vm(*request.keys)
    return 200, documents.listing("disk_attachments", [documents.attachment(vm, disk_id) for disk_id in vm.disks])


@_route("POST", "vms/*/backups")
def _add_backup(request: Request) -> tuple[int, ET.Element]:
    engine = request.engine
    vm = engine.vm(*request.keys)
    backup = Backup(
        id=_uuid(request.body.get("id")) or new_id(),
        vm_id=vm.id,
        from_checkpoint=request.text("from_checkpoint_id") or None,
        to_checkpoint=None,
        description=request.text("description"),
    )
    disks = [disk.get("id") or "" for disk in request.body.findall("disks/disk")]
    engine.start_backup(backup, disks)
    return 202, documents.backup(backup)


@_route("GET", "vms/*/backups/*")
def _get_backup(request: Request) -> tuple[int, ET.Element]:
    backup = request.engine.backup(*request.keys)
    request.engine.ask(backup)
    return 200, documents.backup(backup)


@_route("GET", "vms/*/backups/*/disks")
def _list_backup_disks(request: Request) -> tuple[int, ET.Element]:
    engine = request.engine
    backup = engine.backup(*request.keys)
    found = [documents.disk(engine, engine.disk(key), backup_mode=backup.mode(engine, key)) for key in backup.disks]
    return 200, documents.listing("disks", found)


@_route("POST", "vms/*/backups/*/finalize")
def _finish_backup(request: Request) -> tuple[int, ET.Element]:
    request.engine.finish_backup(request.engine.backup(*request.keys))
    return _done()
