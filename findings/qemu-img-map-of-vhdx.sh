#!/usr/bin/env bash
# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
#
# qemu-img map calls all of an empty VHDX data, where it calls an empty VDI, VMDK, QED, VHD and qcow2 zero.
#
# Software: qemu-utils 7.2 of Debian 12.
# Input: an image of 256 MiB of each format, as qemu-img create makes it.
# Seen: the driver of VHDX tells no block status, so one extent of data covers the disk.
# So: a program that copies what is data reads and sends 256 MiB of zeroes, and fills a thin disk.

set -eu
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
# Its libraries come with `apt-get install qemu-utils`.
apt-get download -qq qemu-utils=1:7.2+dfsg-7+deb12u18+b3 2>/dev/null
dpkg -x qemu-utils_*.deb root
PATH=$tmp/root/usr/bin:$PATH
for format in vhdx vdi vmdk qed vpc qcow2; do
    qemu-img create -q -f "$format" "disk.$format" 256M
    data=$(qemu-img map --output=json "disk.$format" | python3 -c '
import json, sys
print(sum(extent["length"] for extent in json.load(sys.stdin) if extent["data"]))')
    echo "$format: $data bytes of data"
    case $format in
        vhdx) [ "$data" = 268435456 ] ;;
        *) [ "$data" = 0 ] ;;
    esac
done
