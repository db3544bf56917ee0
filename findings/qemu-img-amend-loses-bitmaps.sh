#!/usr/bin/env bash
# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
#
# qemu-img amend to compat=0.10 succeeds silently on an image with a bitmap, which is lost on the way back.
#
# Software: qemu-utils 7.2 of Debian 12.
# Input: a qcow2 image with a persistent dirty bitmap, amended to compat=0.10 and to compat=1.1 again.
# Seen: both commands end with 0. The first says nothing; after it qemu-img info lists no bitmap. After the second
#       there is none either: the next incremental backup has to be a full one.

set -eu
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
# Its libraries come with `apt-get install qemu-utils`.
apt-get download -qq qemu-utils=1:7.2+dfsg-7+deb12u18+b3 2>/dev/null
dpkg -x qemu-utils_*.deb root
PATH=$tmp/root/usr/bin:$PATH
qemu-img create -q -f qcow2 disk.qcow2 64M
qemu-img bitmap --add disk.qcow2 checkpoint
bitmaps() { qemu-img info disk.qcow2 2>/dev/null | grep -c 'name: checkpoint' || true; }
before=$(bitmaps)
said=$(qemu-img amend -f qcow2 -o compat=0.10 disk.qcow2 2>&1)
old=$(bitmaps)
qemu-img amend -f qcow2 -o compat=1.1 disk.qcow2 2>/dev/null
after=$(bitmaps)
echo "bitmaps: $before, as 0.10: $old, as 1.1 again: $after; said at the first amend: '$said'"
[ "$before" = 1 ] && [ "$old" = 0 ] && [ "$after" = 0 ] && [ -z "$said" ]
