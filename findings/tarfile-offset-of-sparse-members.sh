#!/usr/bin/env bash
# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The offset that Python's tarfile tells of a sparse member is no place where the disk image begins.
#
# Software: GNU tar 1.34 of Debian 12, tarfile of Python 3.11.
# Input: a disk image with holes, packed by `tar --sparse` in the formats gnu and posix, as an OVA may be.
# Seen: size is that of the whole image and offset_data is where its first piece of data is; 8 MiB were asked for,
#       5 KiB are there. A program that reads size bytes at offset_data, as for an ordinary member, gets other
#       content, without an error. Only `issparse()` tells.

set -eu
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
apt-get download -qq tar=1.34+dfsg-1.2+deb12u1 2>/dev/null
dpkg -x tar_*.deb root
truncate -s 8M disk.img
printf 'data in the middle' | dd of=disk.img bs=1 seek=4194304 conv=notrunc status=none
for format in gnu posix; do
    root/bin/tar --sparse --format="$format" -cf "$format.tar" disk.img
    python3 - "$format.tar" <<'PYTHON'
import sys, tarfile

with tarfile.open(sys.argv[1]) as archive, open(sys.argv[1], "rb") as raw, open("disk.img", "rb") as disk:
    member = archive.getmembers()[0]
    raw.seek(member.offset_data)
    found, wanted = raw.read(18), disk.read(18)
    print(f"{sys.argv[1]}: size {member.size}, at offset_data {found!r}, the image begins with {wanted!r}")
    sys.exit(not (member.issparse() and member.size == 8 << 20 and found != wanted))
PYTHON
done
