#!/usr/bin/env bash
# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
#
# qemu-img create -b refuses a backing file that is the new image, but not when it is spelt otherwise.
#
# Software: qemu-utils 7.2 of Debian 12.
# Input: an image, and a new one of the same name with it as its backing file, spelt `full.qcow2` and `./full.qcow2`.
# Seen: the first is refused. The second prints no error and ends with 0; the content is gone, and the image names
#       itself as its backing file. The two names are compared as text.
# So: a backup script that writes an increment over its base loses both.

set -eu
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
# Its libraries come with `apt-get install qemu-utils`.
apt-get download -qq qemu-utils=1:7.2+dfsg-7+deb12u18+b3 2>/dev/null
dpkg -x qemu-utils_*.deb root
PATH=$tmp/root/usr/bin:$PATH
make() {
    qemu-img create -q -f qcow2 full.qcow2 2M
    qemu-io -f qcow2 -c 'write -P 7 1M 64k' full.qcow2 >/dev/null
}
make
refused=0
qemu-img create -q -f qcow2 -b full.qcow2 -F qcow2 full.qcow2 2M 2>/dev/null || refused=$?
before=$(stat -c %s full.qcow2)
taken=0
qemu-img create -q -f qcow2 -b ./full.qcow2 -F qcow2 full.qcow2 2M 2>/dev/null || taken=$?
after=$(stat -c %s full.qcow2)
echo "same spelling: status $refused, $before bytes; other spelling: status $taken, $after bytes"
[ "$refused" = 1 ] && [ "$taken" = 0 ] && [ "$after" -lt "$before" ]
