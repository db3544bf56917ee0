# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Kept for vdsm only: the two modules of 2.x that it imports. Nothing else may use them.

vdsm imports virtual machines of other hypervisors with `directio.Receive`, and its tests
talk to qemu-nbd with `nbd.Client`. Other programs use `ovirt_imageio.client`.
"""
