# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The examples of ovirt-engine-sdk-python 4.6.3, from the moment that they have a transfer.

    sdk_4_6.py upload|download|backup|ova|checksum|look FILE FORMAT CAFILE TRANSFER_URL PROXY_URL

Sources, all in the folder examples of the source distribution from PyPI:

- upload_disk.py, download_disk.py, checksum_disk.py, checksum_image.py, image_transfer.py
- backup_vm.py; FORMAT is the backing file
- upload_from_ova.py and upload_ova_as_vm_or_template.py; FORMAT is the member

PROXY_URL is empty for --use-proxy, where the proxy's URL is the one of the transfer.
"""

from __future__ import annotations

import inspect
import json
import ssl
import sys
from contextlib import closing
from http.client import HTTPSConnection
from typing import Any
from urllib.parse import urlparse

from ovirt_imageio import client


def late_arguments(proxy_url: str) -> dict[str, Any]:
    """Arguments that came late, where the signature has them."""
    known = inspect.signature(client.download).parameters
    late: dict[str, Any] = {"max_workers": 4}
    if proxy_url and "proxy_url" in known:
        late["proxy_url"] = proxy_url
    return {name: value for name, value in late.items() if name in known}


def move(what: str, path: str, fmt: str, cafile: str, url: str, proxy_url: str) -> None:
    """Upload, download, or download what belongs to a backup."""
    with client.ProgressBar() as pb:
        options: dict[str, Any] = {"secure": True, "buffer_size": client.BUFFER_SIZE, "progress": pb}
        options.update(late_arguments(proxy_url))
        if what == "upload":
            client.upload(path, url, cafile, **options)
        elif what == "download":
            client.download(url, path, cafile, fmt=fmt, **options)
        else:
            options.update(incremental=bool(fmt), backing_file=fmt or None, backing_format="qcow2")
            client.download(url, path, cafile, **options)


def upload_from_ova(path: str, member: str, cafile: str, url: str, proxy_url: str) -> dict[str, Any]:
    """Look at a disk in an OVA, and upload it."""
    info = client.info(path, member=member)
    measure = client.measure(path, "qcow2", member=member)
    with client.ProgressBar() as pb:
        client.upload(path, url, cafile, secure=True, progress=pb, proxy_url=proxy_url, member=member)
    return {"format": info["format"], "virtual-size": info["virtual-size"], "required": measure["required"]}


def checksum(path: str, cafile: str, url: str) -> dict[str, Any]:
    """Checksums of the disk, by the daemon, and of the image, by the library."""
    parsed = urlparse(url)
    context = ssl.create_default_context(cafile=cafile)
    with closing(HTTPSConnection(parsed.netloc, context=context)) as connection:
        connection.request("GET", parsed.path + "/checksum")
        response = connection.getresponse()
        data = response.read()
        assert response.status == 200, data
    return {"disk": json.loads(data), "image": client.checksum(path, member=None)}


def look(cafile: str, url: str, proxy_url: str) -> dict[str, Any]:
    """Read the beginning of the disk, again and again: so image_transfer.py keeps its connection."""
    with client.ImageioClient(url, cafile=cafile, proxy_url=proxy_url or url) as transfer:
        buf = bytearray(4096)
        for _ in range(3):
            transfer.read(0, buf)
        return {"size": transfer.size(), "first": bytes(buf[:8]).hex()}


def main() -> None:
    """Do one of these."""
    what, path, fmt, cafile, url, proxy_url = sys.argv[1:]
    if what == "checksum":
        print(json.dumps(checksum(path, cafile, url)))
    elif what == "ova":
        found = upload_from_ova(path, fmt, cafile, url, proxy_url or url)
        print("\n" + json.dumps(found))
    elif what == "look":
        print(json.dumps(look(cafile, url, proxy_url)))
    else:
        move(what, path, fmt, cafile, url, proxy_url)


main()
