# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Image servers of other makers, for our client: stand-ins made after the facts of their sources.

    disk:         their content: bytes, and which of them are zero or dirty
    cloudstack:   Apache CloudStack's image server, over NBD and over a file
    onebex:       OpenNebula's OneBEX, over NBD and over LVM

Each has the routes, statuses, fields and bodies of the original, and its habits where it is wrong. KubeVirt serves
backups as well, but by another protocol (kubevirt/kubevirt, pkg/storage/export/virt-exportserver/exportserver.go,
d923fdb8). It has pages of a map, and data by ``offset`` and ``length`` in the query, with a token. No client of the
images API reads those.
"""
