# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon and the client share: NBD, storage backends, extents, checksums."""
