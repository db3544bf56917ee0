# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Parts that the daemon and the client share: NBD, storage backends, extents, checksums."""
