# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Compute the block hash of an image, whatever its format. No engine is needed.

python checksum_image.py fedora.qcow2
python checksum_image.py appliance.ova --member disk1.vmdk
"""

import argparse

from ovirt_imageio import client

parser = argparse.ArgumentParser(description="Compute the block hash of an image")
parser.add_argument("filename", help="image to look at")
parser.add_argument("--member", help="name of the image inside the file, an OVA")
args = parser.parse_args()

result = client.checksum(args.filename, member=args.member)
print(f"{result['algorithm']} {result['block_size']} {result['checksum']}")
