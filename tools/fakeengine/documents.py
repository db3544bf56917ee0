# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Things of the model as documents of the REST API. Source: "Types" of the oVirt REST API."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from typing import Iterable

from . import model

API = "/ovirt-engine/api"

_FORMATS = {"qcow2": "cow", "raw": "raw"}


def element(tag: str, path: str, thing_id: str, **children: object) -> ET.Element:
    """Return a thing with id, link, and children that hold text."""
    result = ET.Element(tag, {"id": thing_id, "href": f"{API}/{path}"} if path else {"id": thing_id})
    for name, value in children.items():
        if value is not None:
            add(result, name, value)
    return result


def add(parent: ET.Element, tag: str, value: object) -> ET.Element:
    """Append a child that holds text."""
    child = ET.SubElement(parent, tag)
    child.text = str(value).lower() if isinstance(value, bool) else str(value)
    return child


def listing(tag: str, things: Iterable[ET.Element]) -> ET.Element:
    """Return a list of things."""
    result = ET.Element(tag)
    result.extend(things)
    return result


def product() -> ET.Element:
    """Return what the API says of itself."""
    result = ET.Element("api")
    info = ET.SubElement(result, "product_info")
    add(info, "name", "oVirt Engine")
    version = ET.SubElement(info, "version")
    for name, value in (("major", 4), ("minor", 5), ("build", 6), ("revision", 0), ("full_version", "4.5.6-fake")):
        add(version, name, value)
    return result


def named(tag: str, folder: str, thing: model.Named) -> ET.Element:
    """Return something that has just a name; a host is up."""
    result = element(tag, f"{folder}/{thing.id}", thing.id, name=thing.name)
    if tag == "host":
        add(result, "address", "localhost")
        add(result, "status", "up")
    return result


def disk(engine: model.Engine, thing: model.Disk, **more: object) -> ET.Element:
    """Return a disk, with the size that its active volume has."""
    result = element(
        "disk",
        f"disks/{thing.id}",
        thing.id,
        name=thing.name,
        alias=thing.name,
        description=thing.description,
        actual_size=allocated(thing.active.path),
        backup=thing.backup,
        content_type=thing.content_type,
        format=_FORMATS[thing.format],
        image_id=thing.active.id,
        provisioned_size=thing.size,
        total_size=sum(allocated(volume.path) for volume in thing.chain),
        sparse=thing.sparse,
        status=thing.status,
        storage_type="image",
        **more,
    )
    _storage_domain(engine, result)
    return result


def disk_snapshot(engine: model.Engine, thing: model.Disk, volume: model.Volume) -> ET.Element:
    """Return a snapshot of a disk."""
    path = f"storagedomains/{engine.storage_domain.id}/disksnapshots/{volume.id}"
    result = element(
        "disk_snapshot",
        path,
        volume.id,
        alias=thing.name,
        actual_size=allocated(volume.path),
        format=_FORMATS[volume.format],
        image_id=volume.id,
        provisioned_size=thing.size,
        status="ok",
    )
    result.append(element("disk", f"disks/{thing.id}", thing.id))
    number = thing.chain.index(volume)
    if number:
        result.append(element("parent", "", thing.chain[number - 1].id))
    _storage_domain(engine, result)
    return result


def _storage_domain(engine: model.Engine, parent: ET.Element) -> None:
    domain = engine.storage_domain
    domains = ET.SubElement(parent, "storage_domains")
    domains.append(element("storage_domain", f"storagedomains/{domain.id}", domain.id))


def transfer(engine: model.Engine, thing: model.Transfer) -> ET.Element:
    """Return a transfer; addresses are told while it may be used."""
    result = element(
        "image_transfer",
        f"imagetransfers/{thing.id}",
        thing.id,
        active=thing.phase == "transferring",
        direction=thing.direction,
        format="raw",
        inactivity_timeout=thing.inactivity_timeout,
        phase=thing.phase,
        shallow=thing.shallow,
        timeout_policy=thing.timeout_policy,
        transferred=engine.storage.transferred(thing.ticket_id),
    )
    if thing.phase == "transferring":
        daemon = engine.storage.daemon
        add(result, "transfer_url", f"{daemon.url}/images/{thing.ticket_id}")
        # The engine's own daemon would stand here. The host's under another name will do.
        add(result, "proxy_url", f"{daemon.url.replace('localhost', '127.0.0.1')}/images/{thing.ticket_id}")
    result.append(element("host", f"hosts/{engine.host.id}", engine.host.id))
    result.append(element("disk", f"disks/{thing.disk_id}", thing.disk_id))
    result.append(element("image", "", thing.disk_id))
    return result


def vm(thing: model.Vm) -> ET.Element:
    """Return a virtual machine."""
    return element("vm", f"vms/{thing.id}", thing.id, name=thing.name, status="up")


def attachment(thing: model.Vm, disk_id: str) -> ET.Element:
    """Return the attachment of a disk to a virtual machine."""
    result = element("disk_attachment", f"vms/{thing.id}/diskattachments/{disk_id}", disk_id, active=True)
    result.append(element("disk", f"disks/{disk_id}", disk_id))
    return result


def backup(thing: model.Backup) -> ET.Element:
    """Return a backup."""
    result = element(
        "backup",
        f"vms/{thing.vm_id}/backups/{thing.id}",
        thing.id,
        description=thing.description,
        from_checkpoint_id=thing.from_checkpoint,
        to_checkpoint_id=thing.to_checkpoint,
        phase=thing.phase,
    )
    result.append(element("vm", f"vms/{thing.vm_id}", thing.vm_id))
    return result


def fault(error: model.Fault) -> ET.Element:
    """Return a refusal."""
    result = ET.Element("fault")
    add(result, "detail", f"[{error.detail}]")
    add(result, "reason", error.reason)
    return result


def allocated(path: str) -> int:
    """Bytes that a file takes; 0 if it is gone."""
    try:
        return os.stat(path).st_blocks * 512
    except FileNotFoundError:
        return 0
