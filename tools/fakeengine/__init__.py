# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""An engine to try things on: what oVirt's does about disks, transfers and backups.

    make engine

    model ──► storage    what there is; the files, qemu-nbd and tickets behind it
      ▲
     api ──► xml         requests of the REST API, answered from the model
      ▲
    server               HTTP, TLS, login

Programs that use ovirt-engine-sdk-python cannot tell it from a real one, as long as they
ask for what is here. It has storage domains, data centers, clusters, hosts, disks, their
snapshots, image transfers, virtual machines with their disks, and backups with
checkpoints. Nothing is kept when it ends.
"""

from .model import Engine
from .server import EngineServer
from .storage import Storage

__all__ = ["Engine", "EngineServer", "Storage"]
