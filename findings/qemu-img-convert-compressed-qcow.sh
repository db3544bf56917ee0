#!/usr/bin/env bash
# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
#
# qemu-img convert -c -O qcow ends with 1 and without a word, though the image that it made is right.
#
# Software: qemu-utils 7.2 of Debian 12.
# Input: any raw image; here one of 4 MiB with some data.
# Seen: exit status 1, nothing printed, and qemu-img compare calls both identical. Without -c, or as qcow2, it is 0.
# So: a script that stops at the first failure throws away good images.

set -eu
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
# Its libraries come with `apt-get install qemu-utils`.
apt-get download -qq qemu-utils=1:7.2+dfsg-7+deb12u18+b3 2>/dev/null
dpkg -x qemu-utils_*.deb root
PATH=$tmp/root/usr/bin:$PATH
truncate -s 4M disk.raw
printf 'some data' | dd of=disk.raw conv=notrunc status=none
status=0
said=$(qemu-img convert -f raw -O qcow -c disk.raw disk.qcow 2>&1) || status=$?
compared=$(qemu-img compare -f raw -F qcow disk.raw disk.qcow)
plain=0
qemu-img convert -f raw -O qcow disk.raw plain.qcow || plain=$?
echo "compressed: status $status, said '$said', then: $compared; not compressed: status $plain"
[ "$status" = 1 ] && [ -z "$said" ] && [ "$compared" = "Images are identical." ] && [ "$plain" = 0 ]
