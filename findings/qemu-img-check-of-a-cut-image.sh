#!/usr/bin/env bash
# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
#
# A qcow2 image that lost most of its last data cluster passes qemu-img check.
#
# Software: qemu-utils 7.2 of Debian 12.
# Input: an image of two clusters of data, cut off 4096 bytes into the second one, as a copy that was stopped leaves it.
# Seen: check finds no errors and has status 0; convert has status 0, and the lost bytes are zeroes.
# So: a check before a backup is used notices a lost cluster, and no loss within the last one.

set -eu
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
# Its libraries come with `apt-get install qemu-utils`.
apt-get download -qq qemu-utils=1:7.2+dfsg-7+deb12u18+b3 2>/dev/null
dpkg -x qemu-utils_*.deb root
PATH=$tmp/root/usr/bin:$PATH
qemu-img create -q -f qcow2 disk.qcow2 1M
qemu-io -f qcow2 -c 'write -q -P 65 0 128k' disk.qcow2
size=$(stat -c %s disk.qcow2)
qemu-img map --output=json disk.qcow2 >map.json
end=$(python3 -c 'import json; print(max(e["offset"] + e["length"] for e in json.load(open("map.json")) if e.get("offset")))')
[ "$end" = "$size" ] # the data is the file's end
truncate -s $((size - 61440)) disk.qcow2
check=0
qemu-img check -q disk.qcow2 >check.log 2>&1 || check=$?
convert=0
qemu-img convert -O raw disk.qcow2 disk.raw || convert=$?
kept=$(head -c 131072 disk.raw | tr -d '\0' | wc -c)
echo "check: status $check, convert: status $convert, $kept of 131072 bytes are there"
[ "$check" = 0 ] && [ "$convert" = 0 ] && [ "$kept" = 69632 ]
