#!/usr/bin/env bash
# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
#
# qemu-nbd serves a raw file of 1000 bytes as 1024, and a write to its last sector makes the file grow.
#
# Software: qemu-utils 7.2 of Debian 12.
# Input: a regular file whose size is no multiple of 512, served with --format=raw.
# Seen: the export has 1024 bytes; after one write of 512 bytes at 512 the file has 1024 as well.
# So: a copy through the export differs from the file in size, and a client cannot tell from which byte on.

set -eu
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
# Its libraries come with `apt-get install qemu-utils`.
apt-get download -qq qemu-utils=1:7.2+dfsg-7+deb12u18+b3 2>/dev/null
dpkg -x qemu-utils_*.deb root
PATH=$tmp/root/usr/bin:$PATH
head -c 1000 /dev/zero | tr '\0' x >disk.raw
qemu-nbd --fork --persistent --socket="$tmp/sock" --pid-file="$tmp/pid" --format=raw disk.raw
uri="nbd+unix:///?socket=$tmp/sock"
export_size=$(qemu-img info --output=json "$uri" | python3 -c 'import json, sys; print(json.load(sys.stdin)["virtual-size"])')
qemu-io -f raw -c 'write -P 65 512 512' -c flush "$uri" >/dev/null
kill "$(cat pid)"
file_size=$(stat -c %s disk.raw)
echo "file before: 1000, export: $export_size, file after a write to its end: $file_size"
[ "$export_size" = 1024 ] && [ "$file_size" = 1024 ]
