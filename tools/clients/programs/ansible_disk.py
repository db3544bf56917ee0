# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Move a disk by the client library, as ansible's `ovirt_disk` does.

    ansible_disk.py upload|download FILE TRANSFER_URL PROXY_URL CAFILE

Source: oVirt/ovirt-ansible-collection, 3.2.2-1-9-g827dcc9, plugins/modules/ovirt_disk.py. Arguments that came late to
the library are given where the signature has them.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

from ovirt_imageio import client


def main() -> None:
    """Upload or download."""
    what, path, transfer_url, proxy_url, cafile = sys.argv[1:]
    known = inspect.signature(getattr(client, what)).parameters
    late: dict[str, Any] = {"proxy_url": proxy_url, "max_workers": 4}
    late = {name: value for name, value in late.items() if name in known}
    assert len(late) == 2, known
    if what == "upload":
        client.upload(path, transfer_url, cafile, secure=True, buffer_size=client.BUFFER_SIZE, **late)
    else:
        client.download(transfer_url, path, cafile, fmt="qcow2", secure=True, buffer_size=client.BUFFER_SIZE, **late)


main()
