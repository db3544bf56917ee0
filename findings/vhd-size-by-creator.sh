#!/usr/bin/env bash
# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The size of a dynamic VHD depends on the four letters that name its creator.
#
# Software: qemu-utils 7.2 of Debian 12.
# Input: one image, whose geometry holds less than the size in its footer, as those of VirtualBox and Azure do.
# Seen: with creator "vbox", "wa", "vpc ", "vs  " and "qemu" qemu-img takes the geometry, and the end of the disk is
#       gone without a word; with "win ", "qem2", "d2v ", "tap" and "CTXS" it takes the size.
# So: force_size_calc=current_size has to be given for images by VirtualBox and Azure.

set -eu
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
# Its libraries come with `apt-get install qemu-utils`.
apt-get download -qq qemu-utils=1:7.2+dfsg-7+deb12u18+b3 2>/dev/null
dpkg -x qemu-utils_*.deb root
PATH=$tmp/root/usr/bin:$PATH
cat >stamp.py <<'PYTHON'
import struct, sys

creator = sys.argv[1].encode().ljust(4, b"\0")
with open("disk.vhd", "r+b") as image:
    data = bytearray(image.read())
    for start in (0, len(data) - 512):  # the footer and its copy
        footer = data[start : start + 512]
        cylinders, heads, sectors = struct.unpack(">HBB", footer[56:60])
        footer[28:32] = creator
        footer[56:60] = struct.pack(">HBB", cylinders - 100, heads, sectors)
        footer[64:68] = bytes(4)
        footer[64:68] = struct.pack(">I", ~sum(footer) & 0xFFFFFFFF)
        data[start : start + 512] = footer
    image.seek(0)
    image.write(data)
print(struct.unpack(">Q", footer[48:56])[0])
PYTHON
for creator in "vbox" "wa" "vpc " "vs  " "qemu" "win " "qem2" "d2v " "tap" "CTXS"; do
    rm -f disk.vhd
    qemu-img create -q -f vpc disk.vhd 2G
    size=$(python3 stamp.py "$creator")
    seen=$(qemu-img info --output=json disk.vhd | python3 -c 'import json, sys; print(json.load(sys.stdin)["virtual-size"])')
    forced=$(qemu-img info --output=json "json:{\"driver\": \"vpc\", \"force_size_calc\": \"current_size\",
        \"file\": {\"driver\": \"file\", \"filename\": \"disk.vhd\"}}" |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["virtual-size"])')
    echo "creator '$creator': footer $size, qemu-img $seen, forced $forced"
    [ "$forced" = "$size" ]
    case $creator in
        vbox | wa | "vpc " | "vs  " | qemu) [ "$seen" -lt "$size" ] ;;
        *) [ "$seen" = "$size" ] ;;
    esac
done
